"""Plots: a roofline of the benchmark, and how right the planner's choices are."""

from __future__ import annotations

import math

from conv3d_cli.bench.choices import CLOSE, Choices
from conv3d_cli.bench.report import BenchReport, heading
from conv3d_cli.pictures.plotting import save_figure

COLOURS = {
    "torch": "#ee4c2c",
    "onnxruntime": "#b5651d",
    "bioimage-cpp": "#2a9d8f",
    "ndimage": "#8caae6",
    "signal": "#4c6fb5",
    "ITK": "#8e6bbf",
    "DIPlib": "#5c9a5c",
}


def plot_roofline(report: BenchReport, path: str) -> None:
    """Plot all cases and peers into a file, and replace it if it exists.

    path : str      its suffix chooses the format (see `plotting.SUFFIXES`)
    """
    from matplotlib.figure import Figure

    limits = report.used
    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    intensities = [case.case.flops / case.case.bytes_moved for case in report.cases] or [1.0]
    ridge = limits.fma / limits.copy
    left, right = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    roof = [(x, min(limits.fma, x * limits.copy) / 1e9) for x in (left, ridge, right)]
    axes.plot(*zip(*roof, strict=True), color="black", linewidth=1.5)
    axes.annotate(
        f"FMA peak {limits.fma / 1e9:.0f} GFLOP/s",
        (right, limits.fma / 1e9),
        ha="right",
        va="bottom",
        fontsize=8,
    )
    axes.annotate(
        f"copy {limits.copy / 1e9:.0f} GB/s",
        (left, left * limits.copy / 1e9),
        ha="left",
        va="bottom",
        fontsize=8,
    )
    seen = set()
    for x, case in zip(intensities, report.cases, strict=True):
        for peer in case.peers:
            if peer.ms is None:
                continue
            library = peer.name.split()[0].split(".")[0]
            label = library if library not in seen else None
            seen.add(library)
            colour = COLOURS.get(library, "grey")
            axes.plot(
                x,
                case.case.flops / peer.ms / 1e6,
                ".",
                color=colour,
                markersize=5,
                alpha=0.7,
                label=label,
            )
        label = "conv3d" if "conv3d" not in seen else None
        seen.add("conv3d")
        axes.plot(x, case.gflops, "o", color="black", markersize=6, label=label)
        axes.annotate(
            case.case.name, (x, case.gflops), xytext=(5, 3), textcoords="offset points", fontsize=7
        )
    axes.loglog()
    axes.set_xlabel("flops per byte of memory traffic")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(heading(report)[0], fontsize=9)
    axes.grid(which="major", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=8)
    save_figure(figure, path, overwrite=True)


def plot_choices(choices: Choices, path: str) -> None:
    """Plot the regrets, and predicted against measured times, and replace the file if it exists.

    path : str      its suffix chooses the format (see `plotting.SUFFIXES`)
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(11, 5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(choices.heading, fontsize=9)

    regrets = [regret for regret in choices.regrets() if math.isfinite(regret)]
    shares = [100 * (n + 1) / len(choices.timed) for n in range(len(regrets))]
    left.step(regrets, shares, where="post", color="black")
    left.set_xscale("log")
    top = max(1.6, regrets[-1] * 1.05)
    ticks = [tick for tick in (1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50) if tick <= top]
    left.set_xlim(0.99, top)
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    left.set_xlabel("regret: time of the choice / time of the fastest algorithm")
    left.set_ylabel("% of the problems")
    for share in (50, 95):
        left.axhline(share, color="#dddddd", linewidth=0.8, zorder=0)

    names = {timed.chosen for timed in choices.timed}
    for number, name in enumerate(sorted(names)):
        points = [
            (1e3 * timed.measured[name], 1e3 * timed.predicted(choices.cpu_class))
            for timed in choices.timed
            if timed.chosen == name and name in timed.measured
        ]
        if points:
            colour = f"C{number}"
            right.plot(*zip(*points, strict=True), ".", markersize=4, color=colour, label=name)
    times = [1e3 * min(timed.measured.values()) for timed in choices.timed]
    ends = min(times), max(times)
    for factor, style in ((1, "-"), (CLOSE, ":"), (1 / CLOSE, ":")):
        right.plot(ends, [factor * end for end in ends], style, color="grey", linewidth=0.8)
    right.loglog()
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.set_xlabel("measured ms")
    right.set_ylabel("predicted ms")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_axisbelow(True)
    save_figure(figure, path, overwrite=True)

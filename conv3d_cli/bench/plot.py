"""The roofline plot: speed against arithmetic intensity, below the machine's limits."""

from __future__ import annotations

from conv3d_cli.bench.report import BenchReport, heading
from conv3d_cli.pictures.plotting import save_figure

COLOURS = {
    "torch": "#ee4c2c",
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

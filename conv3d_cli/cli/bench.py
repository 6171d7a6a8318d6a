"""`conv3d bench`: the engine against the machine's limits, and against other libraries where they are installed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.options import SectionedCommand, options, table_options
from conv3d_cli.errors import FormatError, SpecError

if TYPE_CHECKING:
    from conv3d_cli.bench.report import BenchReport

what_options = options(
    "What is measured",
    click.option(
        "--case", "patterns", multiple=True, metavar="PATTERN",
        help="Cases by name (* and ? stand for anything), or a group: dense, large, separable, channels, held (beside the "
        "table), all. May be given several times.  [default: the cases with targets]",
    ),
    click.option("--size", type=click.IntRange(min=4), metavar="N", help="Volumes of N x N x N instead of each case's own size."),
    click.option("--quick", is_flag=True, help="Three rounds, and no peer that takes over a second."),
    click.option("--no-peers", is_flag=True, help="Only conv3d."),
    click.option("--calibrate", is_flag=True, help="Every algorithm on the cases, and the planner's constants for this CPU."),
)  # fmt: skip

how_options = options(
    "How",
    table_options("threads"),
    click.option("--repeat", type=click.IntRange(min=1), metavar="N", help="Rounds; the median counts.  [default: 9]"),
    click.option(
        "--patience", type=click.FloatRange(min=0), default=15.0, show_default=True, metavar="SECONDS",
        help="Peers that would take longer for one call are left out.",
    ),
    click.option(
        "--keep-memory", is_flag=True,
        help="Freed memory is kept for the next allocation: peers that allocate at each call gain much, ours nothing.",
    ),
)  # fmt: skip

output_options = options(
    "Output",
    click.option("--json", "json_path", metavar="FILE", help="Write all figures as JSON; - for stdout, instead of the table."),
    click.option("--markdown", is_flag=True, help="The table in Markdown."),
    click.option("--plot", "plot_path", metavar="FILE.png", help="Draw a roofline (needs the [plot] extra)."),
    click.option(
        "--from", "sources", multiple=True, metavar="FILE",
        help="Measure nothing: show what --json wrote, of several runs together.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
)  # fmt: skip


@click.command(cls=SectionedCommand)
@what_options
@how_options
@output_options
def bench(
    patterns: tuple[str, ...],
    size: int | None,
    quick: bool,
    no_peers: bool,
    calibrate: bool,
    threads: int | None,
    repeat: int | None,
    patience: float,
    keep_memory: bool,
    json_path: str | None,
    markdown: bool,
    plot_path: str | None,
    sources: tuple[str, ...],
    quiet: bool,
) -> None:
    """Measure the engine beside the machine and other libraries.

    \b
      conv3d bench --quick
      conv3d bench --case '3^3' --case 'gaussian *'
      conv3d bench --json bench.json --plot roofline.png

    Peers are timed where they are installed (pip install 'conv3d[bench]': PyTorch, SciPy, SimpleITK, DIPlib), in turn with
    conv3d on the same volume; the result of each is compared with ours first.

    \b
    ms            conv3d, its plan made and its output at hand
    call          the function conv3d(), which plans and allocates too
    % limit       part of the machine's limit that is reached (target): the larger
                  of flops / FMA peak and bytes / copy bandwidth, over ms
    GFLOP/s       flops of the direct sum over ms; of three passes where the
                  kernel is a Gaussian or a box
    plan          ms that the planner predicted
    ratio         how many times ours the strongest peer takes (target): of ms
                  where it fills an output at hand, of call where it allocates
    error         largest difference from float64, as part of sum|w| max|x|
    """
    from conv3d_cli.bench.cases import choose_cases
    from conv3d_cli.bench.plot import plot_roofline
    from conv3d_cli.bench.report import markdown as as_markdown
    from conv3d_cli.system.atomic import check_target
    from conv3d_cli.system.machine import thread_count

    # before minutes of measuring
    if plot_path:
        from conv3d_cli.pictures.plotting import check_plotting

        check_plotting(plot_path, "--plot", overwrite=True)
    if json_path not in (None, "-"):
        check_target(str(json_path), overwrite=True, send=True)
    cases = choose_cases(patterns, size)
    count = thread_count(threads)
    if calibrate:
        click.echo(_calibration(cases, count, quiet))
        return
    if sources:
        report = _read(sources)
        chosen = {case.name for case in cases}
        report.cases = [case for case in report.cases if not patterns or case.case.name in chosen]
    else:
        from conv3d_cli.bench.run import Settings

        settings = Settings(
            count, repeat or (3 if quick else 9), min(patience, 1.0) if quick else patience, not no_peers,
            1.0 if quick else 4.0,
        )  # fmt: skip
        report = _measure(cases, settings, keep_memory, quiet)
    if json_path == "-":
        click.echo(json.dumps(report.record()))
    elif markdown:
        click.echo(as_markdown(report))
    else:
        _show(report)
    if json_path not in (None, "-"):
        _write(str(json_path), json.dumps(report.record(), indent=1) + "\n")
    if plot_path:
        plot_roofline(report, plot_path)


def _measure(cases: list[Any], settings: Any, keep_memory: bool, quiet: bool) -> BenchReport:
    """The limits, then the cases."""
    from conv3d_cli.bench.limits import measure_limits
    from conv3d_cli.bench.report import new_report
    from conv3d_cli.bench.run import keep_freed_memory, run_cases

    kept = keep_memory and keep_freed_memory()
    if keep_memory and not kept:
        raise SpecError("--keep-memory is not available on this system")
    with _Status(quiet) as said:
        said("limits")
        report = new_report([measure_limits(n) for n in sorted({1, settings.threads})], kept)
        for measured in run_cases(cases, settings, said):
            report.add(measured)
    return report


class _Status:
    """One line on a terminal's stderr that says what is being measured."""

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._status: Any = None

    def __enter__(self) -> _Status:
        if self._shown:
            from rich.console import Console

            self._status = Console(stderr=True).status("measuring")
            self._status.start()
        return self

    def __call__(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"measuring: {text}")

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _show(report: BenchReport) -> None:
    """The table, its heading and what was left out."""
    from rich.console import Console
    from rich.table import Table

    from conv3d_cli.bench.report import COLUMNS, cells, heading, is_missed, left_out

    click.echo("\n".join(heading(report)) + "\n")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in COLUMNS:
        table.add_column(
            name, justify="left" if name in ("case", "strongest peer") else "right", no_wrap=True
        )
    for measured in report.cases:
        has_target = measured.case.share or measured.case.ratio
        table.add_row(
            *cells(measured),
            style="red" if is_missed(measured) else "green" if has_target else None,
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    notes = left_out(report)
    if notes:
        click.echo("\nnot timed:\n" + "\n".join(f"  {note}" for note in notes))


def _calibration(cases: list[Any], threads: int, quiet: bool) -> str:
    """Measured and predicted times of every algorithm, and the row of constants."""
    from conv3d_cli.bench.calibrate import as_source, factors, measure_pairs
    from conv3d_cli.bench.report import cpu_model
    from conv3d_cli.engine.cpu import cpu_class

    with _Status(quiet) as said:
        pairs = list(measure_pairs(cases, threads, progress=said))
    fitted = factors(pairs)
    lines = [f"{'algorithm':<12} {'case':<20} {'ms':>9} {'predicted':>9} {'factor':>7}"]
    for pair in sorted(pairs, key=lambda pair: pair.algorithm):
        lines.append(
            f"{pair.algorithm:<12} {pair.case:<20} {1e3 * pair.measured:>9.2f} {1e3 * pair.predicted:>9.2f} {pair.factor:>7.2f}"
        )
    lines.append("")
    for name, (factor, least, most) in fitted.items():
        lines.append(
            f"{name}: median {factor:.2f}, from {least:.2f} to {most:.2f} times the median"
        )
    return "\n".join(
        [*lines, "", as_source(fitted, cpu_class().name, f"{cpu_model()}, {threads} threads")]
    )


def _read(paths: tuple[str, ...]) -> BenchReport:
    from conv3d_cli.bench.report import merged, report_of_record

    reports = []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                record = json.load(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FormatError(f"cannot read {path}: {reason}") from None
        reports.append(report_of_record(record, path))
    return merged(reports)


def _write(path: str, text: str) -> None:
    from conv3d_cli.system.atomic import text_output

    with text_output(path, overwrite=True) as output:
        output.file.write(text.encode())
        output.commit()

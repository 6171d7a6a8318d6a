"""`conv3d bench`: the engine against the machine's limits, and against installed libraries."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.options import SectionedCommand, is_given, options, table_options
from conv3d_cli.cli.parameters import FileName, UnitOption
from conv3d_cli.cli.values import Real, Whole
from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.settings.option import File, Unit

if TYPE_CHECKING:
    from conv3d_cli.bench.report import BenchReport

case_options = options(
    "Cases",
    click.option(
        "--case",
        "patterns",
        multiple=True,
        metavar="PATTERN",
        help="Measure the cases with this name (* and ? are wildcards), or of this group: dense, "
        "large, separable, channels, held (those outside the table of targets), all. May "
        "be given several times.  [default: the cases with targets]",
    ),
    click.option(
        "--size",
        cls=UnitOption,
        unit=Unit.VOXELS,
        type=Whole(4),
        metavar="N",
        help="Measure on N x N x N voxels instead of each case's own size.",
    ),
    click.option(
        "--quick",
        is_flag=True,
        help="Measure three rounds, and no peer that takes over a second.",
    ),
    click.option("--no-peers", is_flag=True, help="Measure only conv3d."),
)

planner_options = options(
    "The choice of algorithms",
    click.option(
        "--regret",
        is_flag=True,
        help="Time every algorithm on random problems instead of the cases, and show how much "
        "longer the chosen one took than the fastest.",
    ),
    click.option(
        "--fit",
        is_flag=True,
        help="Fit the planner's predictions to these times, and print engine/fitted.py. Without "
        "--from, the times are measured for each class of CPUs that this one can run.",
    ),
    click.option(
        "--seed",
        type=Whole(0),
        metavar="N",
        help="Draw other random problems.  [default: 0 for --regret, 1 for --fit]",
    ),
    click.option(
        "--problems",
        type=Whole(1),
        metavar="N",
        help="Number of random problems.  [default: 300 for --regret, 1200 for --fit]",
    ),
)

run_options = options(
    "Measurement",
    table_options("threads"),
    click.option(
        "--repeat",
        type=Whole(1),
        metavar="N",
        help="Number of rounds, of which the median counts.  [default: 9]",
    ),
    click.option(
        "--patience",
        cls=UnitOption,
        unit=Unit.SECONDS,
        type=Real(0),
        default=15.0,
        show_default=True,
        metavar="SECONDS",
        help="Leave out peers that would take longer than this for one call.",
    ),
    click.option(
        "--keep-memory",
        is_flag=True,
        help="Keep freed memory for the next allocation. Peers that allocate at each call gain "
        "much, conv3d nothing.",
    ),
)

output_options = options(
    "Output",
    click.option(
        "--json",
        "json_path",
        metavar="FILE",
        type=FileName(File.WRITTEN),
        help="Write all figures as JSON; - prints them instead of the table.",
    ),
    click.option("--markdown", is_flag=True, help="Print the table as Markdown."),
    click.option(
        "--plot",
        "plot_path",
        metavar="FILE.png",
        type=FileName(File.WRITTEN),
        help="Draw a roofline (pip install 'conv3d[plot]').",
    ),
    click.option(
        "--from",
        "sources",
        multiple=True,
        metavar="FILE",
        type=FileName(File.READ),
        help="Measure nothing; show figures that --json wrote. Several files are merged.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress on stderr."),
)


@click.command(cls=SectionedCommand)
@case_options
@planner_options
@run_options
@output_options
@click.pass_context
def bench(
    ctx: click.Context,
    patterns: tuple[str, ...],
    size: int | None,
    quick: bool,
    no_peers: bool,
    regret: bool,
    fit: bool,
    seed: int | None,
    problems: int | None,
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
    """Measure the engine against the machine and other libraries.

    \b
      conv3d bench --quick
      conv3d bench --case '3^3' --case 'gaussian *'
      conv3d bench --json bench.json --plot roofline.png
      conv3d bench --regret --seed 7

    Peers are PyTorch, ONNX Runtime, SciPy, SimpleITK, DIPlib and bioimage-cpp, those that
    are installed (pip install 'conv3d[bench]'). They take turns with conv3d on the same volume,
    after the result of each has been compared with conv3d's.

    \b
    ms            time of conv3d with a plan and an output array at hand
    call          time of the function conv3d(), which also plans and allocates
    % limit       the machine's limit, as a percentage of ms (target): the larger
                  of flops / FMA peak and bytes / copy bandwidth
    GFLOP/s       flops of the direct sum over ms; for a Gaussian or a box, flops
                  of three passes
    plan          ms that the planner predicted
    ratio         time of the strongest peer over ms if it fills an array at hand,
                  else over call (target)
    error         largest difference from float64, as a fraction of sum|w| max|x|
    """
    from conv3d_cli.bench.cases import choose_cases
    from conv3d_cli.bench.plot import plot_roofline
    from conv3d_cli.bench.report import markdown as as_markdown
    from conv3d_cli.system.atomic import check_target
    from conv3d_cli.system.machine import thread_count

    _check_options(ctx, regret, fit, bool(sources))
    # check outputs before minutes of measuring
    if plot_path:
        from conv3d_cli.pictures.plotting import check_plotting

        check_plotting(plot_path, "--plot", overwrite=True)
    if json_path not in (None, "-"):
        check_target(str(json_path), overwrite=True)
    if fit:
        _fit(seed, problems, sources, quiet)
        return
    if regret:
        _regret(seed, problems, sources, json_path, plot_path, quiet)
        return
    cases = choose_cases(patterns, size)
    count = thread_count(threads)
    if sources:
        report = _read(sources)
        chosen = {case.name for case in cases}
        report.cases = [case for case in report.cases if not patterns or case.case.name in chosen]
    else:
        from conv3d_cli.bench.run import Settings

        rounds = repeat or (3 if quick else 9)
        patience, budget = (min(patience, 1.0), 1.0) if quick else (patience, 4.0)
        settings = Settings(count, rounds, patience, not no_peers, budget)
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
    """Measure the machine's limits, then the cases."""
    from conv3d_cli.bench.limits import measure_limits
    from conv3d_cli.bench.report import new_report
    from conv3d_cli.bench.run import keep_freed_memory, run_cases

    kept = keep_memory and keep_freed_memory()
    if keep_memory and not kept:
        raise SpecError("--keep-memory is not available on this system")
    with _Status(quiet) as status:
        status("limits")
        report = new_report([measure_limits(n) for n in sorted({1, settings.threads})], kept)
        for measured in run_cases(cases, settings, status):
            report.add(measured)
    return report


class _Status:
    """A line on stderr that tells what is being measured, if stderr is a terminal."""

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
    """Print the heading, the table, and the peers that were not timed."""
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


# The options of `bench` that neither --regret nor --fit takes, and those that only they take.
_CASES_ONLY = (
    *("patterns", "size", "quick", "no_peers"),
    *("threads", "repeat", "patience", "keep_memory", "markdown"),
)
_PLANNER_ONLY = ("seed", "problems")


def _check_options(ctx: click.Context, regret: bool, fit: bool, is_read: bool) -> None:
    """Refuse options that would have no effect."""
    if regret and fit:
        raise SpecError("--regret shows what --fit fits; give one of them")
    if regret or fit:
        words = "--regret" if regret else "--fit"
        for name in (*_CASES_ONLY, *(("json_path", "plot_path") if fit else ())):
            _refuse_given(ctx, name, f"has no effect beside {words}; leave it out")
    for name in _PLANNER_ONLY:
        if not (regret or fit):
            _refuse_given(ctx, name, "belongs to --regret or --fit; give one of them")
        elif is_read:
            _refuse_given(ctx, name, "draws problems, and --from reads them; leave one out")


def _refuse_given(ctx: click.Context, name: str, reason: str) -> None:
    if is_given(ctx, name):
        option = next(p.opts[0] for p in ctx.command.params if p.name == name)
        raise SpecError(f"{option} {reason}")


def _regret(
    seed: int | None,
    problems: int | None,
    sources: tuple[str, ...],
    json_path: str | None,
    plot_path: str | None,
    quiet: bool,
) -> None:
    """Measure (or read) the planner's choices, and show them."""
    from conv3d_cli.bench.choices import measure_choices, merged, table
    from conv3d_cli.bench.plot import plot_choices

    if sources:
        choices = merged(_read_choices(sources))
    else:
        with _Status(quiet) as status:
            choices = measure_choices(seed or 0, problems or 300, status)
    if json_path == "-":
        click.echo(json.dumps(choices.record()))
    else:
        click.echo("\n".join(table(choices)))
    if json_path not in (None, "-"):
        _write(str(json_path), json.dumps(choices.record(), indent=1) + "\n")
    if plot_path:
        plot_choices(choices, plot_path)


def _fit(seed: int | None, problems: int | None, sources: tuple[str, ...], quiet: bool) -> None:
    """Measure (or read) random problems for each class of CPUs, and print the coefficients."""
    from conv3d_cli.bench.choices import measure_classes, merged
    from conv3d_cli.bench.fitting import as_source, fit

    if sources:
        measured = list(_read_choices(sources))
    else:
        with _Status(quiet) as status:
            measured = measure_classes(1 if seed is None else seed, problems or 1200, status)
    classes = dict.fromkeys(choices.cpu_class for choices in measured)
    whole = [
        merged(choices for choices in measured if choices.cpu_class == name) for name in classes
    ]
    click.echo(
        as_source(
            {choices.cpu_class: fit(choices.timed) for choices in whole},
            {choices.cpu_class: choices.heading for choices in whole},
        )
    )


def _read_choices(paths: tuple[str, ...]) -> Iterator[Any]:
    from conv3d_cli.bench.choices import choices_of_record

    for path in paths:
        yield choices_of_record(_read_json(path), path)


def _read(paths: tuple[str, ...]) -> BenchReport:
    from conv3d_cli.bench.report import merged, report_of_record

    return merged([report_of_record(_read_json(path), path) for path in paths])


def _read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"cannot read {path}: {reason}") from None


def _write(path: str, text: str) -> None:
    from conv3d_cli.system.atomic import output_file

    with output_file(path, overwrite=True) as output:
        output.file.write(text.encode())
        output.commit()

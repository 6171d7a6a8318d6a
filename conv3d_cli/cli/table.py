"""The table at the end of a batch, on stderr: coloured on a terminal, else plain and aligned."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from conv3d_cli.batch.results import TableRow

if TYPE_CHECKING:
    from conv3d_cli.pipeline.request import Job

STYLES = {
    "done": "green",
    "planned": "cyan",
    "skipped": "yellow",
    "failed": "bold red",
    "cancelled": "yellow",
}
# More skipped or cancelled volumes than this share one row, with their number.
FEW = 10


def cells(rows: Sequence[TableRow]) -> list[tuple[str, str, str, str, str]]:
    """Texts of the table: status, output, seconds, MB/s, remark. Failed volumes come last.

    >>> done = TableRow("done", "a.npy", "", 0.5, 1_000_000)
    >>> cells([TableRow("failed", "b.npy"), done])
    [('done', 'a.npy', '0.50', '2.0', ''), ('failed', 'b.npy', '', '', '')]
    """
    shown = [row for row in rows if row.status != "failed"]
    for status in ("skipped", "cancelled"):
        same = [row for row in shown if row.status == status]
        if len(same) > FEW:
            shown = [row for row in shown if row.status != status]
            shown.append(TableRow(status, f"{len(same)} volumes", _common_remark(same)))
    shown += [row for row in rows if row.status == "failed"]
    return [(row.status, row.target, *_times(row), row.remark) for row in shown]


def _common_remark(rows: Sequence[TableRow]) -> str:
    """The remark of all rows; "" if they differ."""
    remarks = {row.remark for row in rows}
    return remarks.pop() if len(remarks) == 1 else ""


def _times(row: TableRow) -> tuple[str, str]:
    if row.seconds is None:
        return "", ""
    rate = f"{row.volume_bytes / 1e6 / row.seconds:.1f}" if row.seconds > 0 else ""
    return f"{row.seconds:.2f}", rate


def summary(rows: Sequence[TableRow], seconds: float) -> str:
    """Count the volumes of each status; tell the duration and the rate.

    >>> summary([TableRow("done", "a.npy", "", 0.5, 3_000_000), TableRow("failed", "b.npy")], 1.5)
    '1 done, 1 failed in 1.5 s, 2.0 MB/s'
    """
    counts = {status: sum(row.status == status for row in rows) for status in STYLES}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    total = sum(row.volume_bytes for row in rows)
    if total and seconds > 0:
        return f"{text} in {seconds:.1f} s, {total / 1e6 / seconds:.1f} MB/s"
    return f"{text} in {seconds:.1f} s"


NAME = 1  # the column of output names
GAP = "..."  # for what is left out of a long name
SHORTEST = 16  # columns of a name on a narrow terminal
BETWEEN = 2  # spaces between columns
HEAD = ("", "output", "seconds", "MB/s", "")
SIDES = ("left", "left", "right", "right", "left")


def show_table(rows: Sequence[TableRow], seconds: float, hidden: Sequence[str] = ()) -> None:
    """Print the table and its summary on stderr.

    hidden : sequence of str    statuses without rows in the table; the summary counts them
    """
    shown = [row for row in rows if row.status not in hidden]
    if shown:
        _show_rows(shown)
    click.echo(summary(rows, seconds), err=True)


def _show_rows(rows: Sequence[TableRow]) -> None:
    whole = [HEAD, *cells(rows)]
    timed = any(row.seconds is not None for row in rows)
    columns = [n for n in range(len(HEAD)) if n <= NAME or any(line[n] for line in whole[1:])]
    lines: list[tuple[str, ...]] = [tuple(line[n] for n in columns) for line in whole]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [SIDES[column] for column in columns]
    if sys.stderr.isatty():
        _show_on_terminal(lines, widths, sides)
        return
    for line in lines if timed else lines[1:]:
        fitted = [
            text.rjust(width) if side == "right" else text.ljust(width)
            for text, width, side in zip(line, widths, sides, strict=True)
        ]
        click.echo("  ".join(fitted).rstrip(), err=True)


def _show_on_terminal(
    lines: Sequence[Sequence[str]], widths: Sequence[int], sides: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    others = sum(widths) - widths[NAME] + BETWEEN * (len(widths) - 1)
    names = shortened([line[NAME] for line in lines], max(SHORTEST, console.width - others))
    table = Table(box=None, pad_edge=False, padding=(0, BETWEEN, 0, 0), header_style="bold")
    for head, side in zip(lines[0], sides, strict=True):
        table.add_column(head, justify=side, overflow="fold")  # type: ignore[arg-type]
    for (status, _, *rest), name in zip(lines[1:], names[1:], strict=True):
        table.add_row(Text(status, STYLES[status]), Text(name), *map(Text, rest))
    console.print(table)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names in at most `width` columns; of a longer one, a part in the middle is left out.

    The part is chosen so that different names stay different, if that can be.

    >>> shortened(["a.nii", "sub-01_task-rest_run-1_bold.nii.gz"], 20)
    ['a.nii', 'sub-01_ta...d.nii.gz']
    >>> shortened(["sub-1_run-1_desc-preproc_bold.nii", "sub-1_run-2_desc-preproc_bold.nii"], 19)
    ['sub-1_run-1...d.nii', 'sub-1_run-2...d.nii']
    """
    kept = max(0, width - len(GAP))
    middle = (kept + 1) // 2
    different = len(set(names))
    for shift in range(kept + 1):
        for head in {middle + shift, middle - shift}:
            if 0 <= head <= kept:
                short = [_cut(name, width, head) for name in names]
                if len(set(short)) == different:
                    return short
    return [_cut(name, width, middle) for name in names]


def _cut(name: str, width: int, head: int) -> str:
    """A name in at most `width` columns, with this many characters before the gap."""
    if len(name) <= width:
        return name
    tail = width - len(GAP) - head
    return name[:head] + GAP + (name[-tail:] if tail > 0 else "")


def plan_line(job: Job) -> str:
    """A plan in one line; on a terminal that is too narrow for it, in one line for each file.

    >>> from conv3d_cli.pipeline.request import Job, Stage
    >>> plan_line(Job("in/a.nii", "out/a.nii", (Stage("box:size=3"),)))
    'in/a.nii -> out/a.nii'
    """
    parts = [job.source, f"-> {job.target}"]
    if job.missing.mask is not None:
        parts.append(f"(mask {job.missing.mask})")
    line = " ".join(parts)
    if sys.stderr.isatty() and len(line) > shutil.get_terminal_size().columns:
        return "\n   ".join(parts)
    return line

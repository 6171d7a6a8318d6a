"""The table at the end of a batch, on stderr: coloured on a terminal, else plain and aligned."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from conv3d_cli.batch.results import TableRow

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
    >>> cells([TableRow("failed", "b.npy", "no such file"), done])
    [('done', 'a.npy', '0.50', '2.0', ''), ('failed', 'b.npy', '', '', 'no such file')]
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


HEAD = ("", "output", "seconds", "MB/s", "")
SIDES = ("left", "left", "right", "right", "left")


def show_table(rows: Sequence[TableRow], seconds: float) -> None:
    """Print the table and its summary on stderr."""
    timed = any(row.seconds is not None for row in rows)
    columns = (0, 1, 2, 3, 4) if timed else (0, 1, 4)
    lines = [[texts[column] for column in columns] for texts in (HEAD, *cells(rows))]
    sides = [SIDES[column] for column in columns]
    if sys.stderr.isatty():
        _show_on_terminal(lines, sides)
    else:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines if timed else lines[1:]:
            fitted = [
                text.rjust(width) if side == "right" else text.ljust(width)
                for text, width, side in zip(line, widths, sides, strict=True)
            ]
            click.echo("  ".join(fitted).rstrip(), err=True)
    click.echo(summary(rows, seconds), err=True)


def _show_on_terminal(lines: Sequence[Sequence[str]], sides: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, side in zip(lines[0], sides, strict=True):
        table.add_column(head, justify=side, overflow="fold")  # type: ignore[arg-type]
    for status, *others in lines[1:]:
        table.add_row(Text(status, STYLES[status]), *map(Text, others))
    Console(stderr=True, highlight=False).print(table)

"""The table at the end of a batch, on stderr: coloured on a terminal, else plain and aligned."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import click

from conv3d_cli.batch.results import TableRow
from conv3d_cli.system.portable import slashes
from conv3d_cli.system.words import TERMINAL, plain_text

if TYPE_CHECKING:
    from conv3d_cli.pipeline.request import Job

# Colours of a terminal, by status.
STYLES = {"done": "32", "planned": "36", "skipped": "33", "failed": "1;31", "cancelled": "33"}
# More skipped or cancelled volumes than this share one row, with their number.
FEW = 10


def cells(rows: Sequence[TableRow]) -> list[list[str]]:
    """Texts of the table, its head first: status, output, seconds, what was found, remark.

    Only columns that hold something are there; status, output and remark always are. Failed
    volumes come last.

    >>> done = TableRow("done", "a.npy", "", 0.5, 1_000_000, {"clipped": "12"})
    >>> for line in cells([TableRow("failed", "b.npy"), done]):
    ...     print(line)
    ['', 'output', 'seconds', 'clipped', '']
    ['done', 'a.npy', '0.50', '12', '']
    ['failed', 'b.npy', '', '', '']
    """
    shown = [row for row in rows if row.status != "failed"]
    for status in ("skipped", "cancelled"):
        same = [row for row in shown if row.status == status]
        if len(same) > FEW:
            shown = [row for row in shown if row.status != status]
            shown.append(TableRow(status, f"{len(same)} volumes", _common_remark(same)))
    shown += [row for row in rows if row.status == "failed"]
    heads = list(dict.fromkeys(head for row in shown for head in row.found))
    timed = ["seconds"] * any(row.seconds is not None for row in shown)
    return [["", "output", *timed, *heads, ""]] + [
        [
            row.status,
            plain_text(row.target, TERMINAL),
            *("" if row.seconds is None else f"{row.seconds:.2f}" for _ in timed),
            *(row.found.get(head, "") for head in heads),
            plain_text(row.remark, TERMINAL),
        ]
        for row in shown
    ]


def _common_remark(rows: Sequence[TableRow]) -> str:
    """The remark of all rows; "" if they differ."""
    remarks = {row.remark for row in rows}
    return remarks.pop() if len(remarks) == 1 else ""


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


LEAST_REMARK = 24  # columns; in fewer, a remark stands below its row


def show_table(rows: Sequence[TableRow], seconds: float, hidden: Sequence[str] = ()) -> None:
    """Print the table and its summary on stderr.

    hidden : sequence of str    statuses without rows in the table; the summary counts them
    """
    terminal = sys.stderr.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    shown = [row for row in rows if row.status not in hidden]
    for status, text in table_lines(shown, width) if shown else ():
        style = STYLES.get(status) if terminal and status else None
        head, rest = text[: len(status)], text[len(status) :]
        click.echo((f"\x1b[{style}m{head}\x1b[0m" if style else head) + rest, err=True)
    click.echo(summary(rows, seconds), err=True)


def table_lines(rows: Sequence[TableRow], width: int | None) -> list[tuple[str, str]]:
    """Lines of the table, each with the status that it begins with, or "".

    width : int or None     of the terminal: the outputs' common folder stands in the head, and
                            remarks are wrapped, or stand below their row; names are never broken.
                            None: whatever they need, a row a line

    >>> rows = [TableRow("done", "out/a.npy"), TableRow("failed", "out/b.npy", "no such file")]
    >>> for _, line in table_lines(rows, 36):
    ...     print(line)
            output in out/
    done    a.npy
    failed  b.npy  no such file
    """
    lines = cells(rows)
    headed = len(lines[0]) > 3  # status, output and remark need no head
    if width is not None:
        folder = _common_folder([plain_text(row.target, TERMINAL) for row in rows])
        for line in lines[1:]:
            line[1] = line[1].removeprefix(folder)
        lines[0][1] += f" in {folder}" if folder else ""
    columns = list(range(len(lines[0]) - 1))
    widths = {
        column: max(len(line[column]) for line in (lines if column else lines[1:]))
        for column in columns
    }
    if width is not None and folder:  # a long folder must not push the times away
        widths[1] = max((len(line[1]) for line in lines[1:]), default=0)
    if width is not None and sum(widths.values()) + 2 * len(columns) - 2 > width:
        columns = [0, *columns[2:], 1]  # only a name may run over the edge
        widths[1] = 0
    found = []
    for number, line in enumerate(lines):
        if number == 0 and width is None and not headed:
            continue
        fitted = [
            (str.rjust if column > 1 else str.ljust)(line[column], widths[column])
            for column in columns
        ]
        text = "  ".join(fitted)
        found += [
            (line[0] if k == 0 else "", each)
            for k, each in enumerate(_with_remark(text, line[-1], width))
        ]
    return found


def _with_remark(text: str, remark: str, width: int | None) -> list[str]:
    """A row with its remark: behind it, or below it where there is too little room."""
    if not remark or width is None:
        return [f"{text}  {remark}".rstrip()]
    beside = width - len(text) - 2
    first, indent = (f"{text}  ", len(text) + 2) if beside >= LEAST_REMARK else ("", 8)
    if len(remark) <= beside:
        first, indent = f"{text}  ", len(text) + 2
    wrapped = textwrap.fill(
        remark,
        width,
        initial_indent=first or " " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).splitlines()
    return wrapped if first else [text.rstrip(), *wrapped]


def _common_folder(targets: Sequence[str]) -> str:
    """The folder of all outputs, with its slash; "" if they have none in common.

    >>> _common_folder(["out/a/x.npy", "out/b/y.npy"]), _common_folder(["x.npy", "out/y.npy"])
    ('out/', '')
    """
    if len(targets) < 2:
        return ""
    folders = [slashes(target).split("/")[:-1] for target in targets]
    common = takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    return "".join(f"{name}/" for name, *_ in common)


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

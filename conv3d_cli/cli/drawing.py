"""Pictures on the terminal: coloured half-blocks, or characters of different weight.

A character is about twice as high as wide. So `▀`, with one colour for its upper half and another
for the lower, shows two square cells. Rich converts 24-bit colours to a terminal's 256 or 16.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.text import Text

    from conv3d_cli.pictures.panels import Panel, Shades

SHADES = " .:-=+*#%@"
GAP = 2  # columns between panels


def in_colour(stream: Any) -> bool:
    """Whether a stream is a terminal that can show colours and half-blocks."""
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and encoding == "utf8" and not plain


def draw(
    rows: Sequence[Sequence[Panel]], voxel: float, most: int = 8, lines: int | None = None
) -> None:
    """Print panels on stdout, all at one scale, as large as the terminal's width allows.

    rows : sequences of panels      panels of one row are printed side by side
    voxel : float                   a voxel's shortest side, in the panels' unit of length
    most : int                      largest number of cells for that side
    lines : int or None             largest height of a row, in lines; None: any
    """
    columns = shutil.get_terminal_size((100, 24)).columns
    scale = fitting_scale(rows, columns, voxel, most, lines)
    widths = _column_widths(rows, scale)
    if not in_colour(sys.stdout):
        for row in rows:
            for line in text_lines(row, scale, widths):
                click.echo(line)
            click.echo()
        return
    from rich.console import Console

    console = Console(highlight=False, width=columns)
    for row in rows:
        for styled in _coloured_lines(row, scale, widths):
            console.print(styled, soft_wrap=True)
        console.print()


def terminal_lines() -> int | None:
    """Number of lines of the terminal on stdout; None if stdout is not a terminal."""
    return shutil.get_terminal_size((100, 24)).lines if sys.stdout.isatty() else None


def fitting_scale(
    rows: Sequence[Sequence[Panel]], columns: int, voxel: float, most: int, lines: int | None = None
) -> float:
    """Cells per unit of length at which every row of panels fits.

    If there is room, a voxel's shortest side gets a whole number of cells.

    columns : int                   width of the terminal, in characters
    rows, voxel, most, lines : see `draw`
    """
    scale = most / voxel
    for row in rows:
        frames = sum(map(_frame_width, row))
        room = max(len(row), columns - GAP * (len(row) - 1) - frames)
        scale = min(scale, room / sum(panel.extent[1] for panel in row))
        if lines is not None:
            scale = min(scale, 2 * max(4, lines) / max(panel.extent[0] for panel in row))
    # titles may be wider than their pictures, and panels of other rows wider than those of this one
    narrowest = _column_widths(rows, 0.0)
    while (
        sum(widths := _column_widths(rows, scale)) + GAP * (len(widths) - 1) > columns
        and widths != narrowest
    ):
        scale *= 0.95
    cells = scale * voxel
    return int(cells) / voxel if cells >= 1 else scale


def _column_widths(rows: Sequence[Sequence[Panel]], scale: float) -> list[int]:
    """Width of each column of panels, in characters."""
    return [
        max(_width(row[i], scale) for row in rows if i < len(row))
        for i in range(max(map(len, rows)))
    ]


def text_lines(row: Sequence[Panel], scale: float, widths: Sequence[int]) -> list[str]:
    """Lines that show panels side by side in ASCII.

    In panels of signed values, every second character of negative values is a minus.

    widths : sequence of int        width of each panel's column, in characters
    """
    blocks = []
    for panel in row:
        high, wide = _cells(panel, scale)
        blocks.append(
            (
                panel,
                [_characters(line, panel.signed) for line in panel.paint(-(-high // 2), wide)],
                wide,
            )
        )
    return [line.rstrip() for line in _side_by_side(blocks, widths, "".join)]


def _coloured_lines(row: Sequence[Panel], scale: float, widths: Sequence[int]) -> list[Text]:
    from rich.text import Text

    blocks = []
    for panel in row:
        high, wide = _cells(panel, scale)
        blocks.append((panel, _half_blocks(panel.paint(high, wide), panel.palette), wide))
    return _side_by_side(
        blocks,
        widths,
        lambda parts: Text().join(p if isinstance(p, Text) else Text(p) for p in parts),
    )


def _cells(panel: Panel, scale: float) -> tuple[int, int]:
    height, width = (max(1, round(side * scale)) for side in panel.extent)
    return height, width


def _characters(shades: Shades, signed: bool) -> str:
    """One line: the darkest shade (of signed values, the middle one) is a space; NaN is `?`."""
    from conv3d_cli.pictures.panels import NOT_A_NUMBER

    brightest, heaviest = NOT_A_NUMBER - 1, len(SHADES) - 1
    found = []
    for position, shade in enumerate(map(int, shades)):
        if shade == NOT_A_NUMBER:
            found.append("?")
            continue
        strength = abs(2 * shade - brightest) / brightest if signed else shade / brightest
        level = min(
            heaviest, int(strength * heaviest + 0.999 if signed else strength * heaviest + 0.5)
        )
        found.append(
            "-" if signed and position % 2 and 2 * shade < brightest and level else SHADES[level]
        )
    return "".join(found)


def _half_blocks(shades: Shades, palette: Shades) -> list[Text]:
    from rich.text import Text

    names = ["rgb({},{},{})".format(*map(int, colour)) for colour in palette]
    lines = []
    for top in range(0, len(shades), 2):
        line = Text()
        if top + 1 < len(shades):
            cells = zip(shades[top].tolist(), shades[top + 1].tolist(), strict=True)
            for (upper, lower), run in itertools.groupby(cells):
                line.append("▀" * len(list(run)), style=f"{names[upper]} on {names[lower]}")
        else:
            for upper, alone in itertools.groupby(shades[top].tolist()):
                line.append("▀" * len(list(alone)), style=names[upper])
        lines.append(line)
    return lines


def _width(panel: Panel, scale: float) -> int:
    """Width of a panel with its letters, numbers and title, in characters."""
    wide = _cells(panel, scale)[1]
    below = len(_numbers_below(panel, wide))
    return max(wide + _frame_width(panel), _numbers_width(panel) + below, len(panel.title))


def _frame_width(panel: Panel) -> int:
    """Width of what stands beside a picture: letters at both sides, or numbers at the left."""
    return 4 if any(panel.letters) else _numbers_width(panel)


def _numbers_width(panel: Panel) -> int:
    """Width of the numbers at the left, with a space; 0 without."""
    from conv3d_cli.pictures.panels import axis_labels

    return 0 if panel.down is None else 1 + max(map(len, axis_labels(panel.down, 2).values()))


def _numbers_below(panel: Panel, wide: int) -> str:
    """The line of numbers below a picture; "" without. A number without room is left out."""
    from conv3d_cli.pictures.panels import axis_labels

    if panel.across is None:
        return ""
    line = ""
    labels = axis_labels(panel.across, wide)
    for cell, text in sorted(labels.items()):
        start = 0 if cell == 0 else cell - len(text) + 1 if cell == wide - 1 else cell
        if not line:
            line = text
        elif cell == wide - 1:
            line = line.ljust(max(start, len(line) + 1)) + text
        elif len(line) < start and start + len(text) + 1 < wide - len(labels[max(labels)]):
            line = line.ljust(start) + text
    return line


def _side_by_side(
    blocks: Sequence[tuple[Panel, list[Any], int]], widths: Sequence[int], join: Any
) -> list[Any]:
    """Lines that show several pictures side by side, with titles above and letters around."""
    framed = [_framed(panel, lines, wide, join) for panel, lines, wide in blocks]
    result = []
    for number in range(max(map(len, framed))):
        parts: list[Any] = []
        for lines, width in zip(framed, widths, strict=False):
            line, length = lines[number] if number < len(lines) else ("", 0)
            parts += [line, " " * (width - length + GAP)]
        result.append(join(parts[:-1]))
    return result


def _framed(panel: Panel, lines: list[Any], wide: int, join: Any) -> list[tuple[Any, int]]:
    """Lines of a picture with its title and letters, each with its width."""
    left, right, top, bottom = panel.letters
    lettered = any(panel.letters)
    if panel.down is not None:
        return _numbered(panel, lines, wide, join)
    over = " " * ((wide + 3) // 2)
    framed: list[tuple[Any, int]] = [(panel.title, len(panel.title))]
    if lettered:
        framed.append((over + top, len(over) + 1))
    for number, line in enumerate(lines):
        if lettered:
            middle = number == (len(lines) - 1) // 2
            before, after = (f"{left} ", f" {right}") if middle else ("  ", "  ")
            framed.append((join([before, line, after]), wide + 4))
        else:
            framed.append((line, wide))
    if lettered:
        framed.append((over + bottom, len(over) + 1))
    return framed


def _numbered(panel: Panel, lines: list[Any], wide: int, join: Any) -> list[tuple[Any, int]]:
    """Lines of a picture with its title and the numbers of its axes, each with its width."""
    from conv3d_cli.pictures.panels import axis_labels

    assert panel.down is not None
    margin, below = _numbers_width(panel), _numbers_below(panel, wide)
    labels = axis_labels(panel.down, len(lines))
    framed: list[tuple[Any, int]] = [(panel.title, len(panel.title))]
    for number, line in enumerate(lines):
        label = labels.get(number, "").rjust(margin - 1)
        framed.append((join([label, " ", line]), wide + margin))
    framed.append((" " * margin + below, margin + len(below)))
    return framed


def wrapped(lines: Sequence[str]) -> str:
    """Text, wrapped at the width of the terminal if stdout is one."""
    if not sys.stdout.isatty():
        return "\n".join(lines)
    columns = shutil.get_terminal_size((100, 24)).columns
    return "\n".join(textwrap.fill(line, columns, subsequent_indent="  ") for line in lines)

"""The report of a batch: a self-contained HTML page with pictures, which loads nothing.

The table above the sections is known only at the end. So the sections wait in an unnamed temporary
file, and memory holds the pictures of one volume at a time. `Report.finish` writes the page, which
appears complete.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from conv3d_cli.pictures.panels import (
    GREY,
    Shades,
    Window,
    geometry_words,
    panels_of,
    robust_window,
    window_words,
)
from conv3d_cli.pictures.png import encode_png
from conv3d_cli.pictures.slices import Slices, Values
from conv3d_cli.system.atomic import output_file, write_errors
from conv3d_cli.system.scratch import unnamed_file
from conv3d_cli.system.words import percent

PIXELS = 150  # longest side of a thumbnail's slice
BINS = 64  # of a histogram
# The histogram, in pixels: widths of its left margin, of its axis and of its right margin, the
# bottom of its axis and the margin above and the room below it, a bar beyond the window and its gap
LEFT, WIDTH, RIGHT = 48, 320, 24
HEIGHT, ABOVE, BELOW = 140, 12, 20
BAR, GAP = 12, 3
COPY_BYTES = 1 << 20  # copied at a time

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.4em }
h2 { font-size: 1.1em; margin: 2.2em 0 .4em; border-top: 1px solid #ddd; padding-top: 1em }
table { border-collapse: collapse; width: 100%; font-size: .9em }
th, td { text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid #eee;
  vertical-align: top }
td { overflow-wrap: anywhere } td:first-child { white-space: nowrap; overflow-wrap: normal }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.done { color: #1a7f37 } .failed { color: #b3261e } .skipped { color: #777 }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start }
figure { margin: .5em 0 } figcaption { font-size: .8em; color: #555; max-width: 34em }
img { display: block; background: #000 }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto; font-size: .8em; white-space: pre-wrap }
svg.histogram text { font-size: 11px; fill: #555 }
.before { color: #4477aa } .after { color: #dd7722 } .note { margin: .2em 0; font-size: .9em }
"""


@dataclass(frozen=True)
class Entry:
    """The entry of one volume in a report.

    title : str             heading of its section
    status : str            "done", "skipped" or "failed"
    row : mapping           its row of the table: column to text
    decided, done : str     aligned lines on the plan and on the run; the run's come first
    notes : sequence of str
    error : str             "" unless it failed
    before, after : Slices or None  pictures of input and output
    same_window : bool      show both pictures with the same grey-level window (valid if the kernel
                            sums to 1)
    """

    title: str
    status: str
    row: Mapping[str, str]
    decided: str = ""
    done: str = ""
    notes: Sequence[str] = ()
    error: str = ""
    before: Slices | None = None
    after: Slices | None = None
    same_window: bool = False


class Report:
    """A page being written: `add` entries in order, then `finish`.

    path : str              the page; a device or a FIFO will do
    overwrite : bool        an existing page may be replaced
    Used as a context manager, it leaves no file unless `finish` was called.
    Raises: OutputExistsError, WriteError.
    """

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path = path
        self._output = output_file(path, overwrite)
        try:
            with write_errors(path):
                self._sections = unnamed_file(path)
        except BaseException:
            self._output.abort()
            raise
        self._rows: list[tuple[str, Mapping[str, str]]] = []

    def add(self, entry: Entry) -> None:
        """Add a row of the table and a section. Raises: WriteError."""
        self._rows.append((entry.status, entry.row))
        with write_errors(self.path):
            self._sections.write(section(entry, len(self._rows)).encode("utf-8", "replace"))

    def finish(self, title: str, command: str) -> None:
        """Write the page.

        title : str         of the page
        command : str       the command line, shown below the title
        Raises: WriteError; OutputExistsError if the page appeared meanwhile.
        """
        head = (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n<h1>{_text(title)}</h1>\n<pre>{_text(command)}</pre>\n{table(self._rows)}"
        )
        with write_errors(self.path):
            self._output.file.write(head.encode("utf-8", "replace"))
            self._sections.seek(0)
            while part := self._sections.read(COPY_BYTES):
                self._output.file.write(part)
            self._output.file.write(b"</body>\n</html>\n")
        self._output.commit()

    def close(self) -> None:
        """Remove all temporary files; the page stays if it was finished."""
        self._sections.close()
        self._output.abort()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _text(words: str) -> str:
    """A text as HTML, with a question mark for control characters and halves of surrogate pairs."""

    def allowed(c: str) -> bool:
        return c in "\n\t" or ((c.isprintable() or c.isspace()) and not 0xD800 <= ord(c) < 0xE000)

    return html.escape("".join(c if allowed(c) else "?" for c in words))


def table(rows: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The table above the sections as HTML, without empty columns; each row links to its section.

    rows : (status, column to text) of each volume
    """
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    columns = [column for column in columns if any(row.get(column) for _, row in rows)]
    numeric = {c for c in columns if all(_is_number(row.get(c, "")) for _, row in rows)}
    kind = {c: ' class="number"' if c in numeric else "" for c in columns}
    lines = [
        "<table>\n<tr><th></th>"
        + "".join(f"<th{kind[c]}>{_text(c)}</th>" for c in columns)
        + "</tr>\n"
    ]
    for number, (status, row) in enumerate(rows, 1):
        cells = "".join(f"<td{kind[c]}>{_text(row.get(c, ''))}</td>" for c in columns)
        lines.append(
            f'<tr><td><a href="#v{number}" class="{status}">{status}</a></td>{cells}</tr>\n'
        )
    return "".join(lines) + "</table>\n"


def _is_number(text: str) -> bool:
    try:
        return not text or float(text.replace(",", "")) is not None
    except ValueError:
        return False


def section(entry: Entry, number: int) -> str:
    """The section of one volume as HTML.

    number : its row in the table, from 1
    """
    status = f'<span class="{entry.status}">{entry.status}</span>'
    parts = [f'<h2 id="v{number}">{status} {_text(entry.title)}</h2>\n']
    if entry.error:
        parts.append(f'<p class="failed">{_text(entry.error)}</p>\n')
    shown = [
        (name, s) for name, s in (("before", entry.before), ("after", entry.after)) if s is not None
    ]
    if shown:
        common = robust_window([s.values for _, s in shown]) if entry.same_window else None
        parts.append('<div class="pictures">\n')
        parts += [_figure(name, s, common or robust_window([s.values])) for name, s in shown]
        parts.append(f"{histogram([(name, s.values) for name, s in shown])}</div>\n")
    parts += [f'<p class="note">note: {_text(note)}</p>\n' for note in entry.notes]
    if entry.decided or entry.done:
        parts += [f"<pre>{_text(text)}</pre>\n" for text in (entry.done, entry.decided) if text]
    return "".join(parts)


def _figure(name: str, slices: Slices, window: Window) -> str:
    """A thumbnail with its caption as HTML; `name` is "before" or "after"."""
    shades, letters = thumbnail(slices, window)
    data = base64.b64encode(encode_png(shades, GREY)).decode("ascii")
    height, width = shades.shape
    axes = "x".join(map(str, slices.header.shape[1:4]))
    words = "; ".join(
        [
            f"{axes} voxels at {','.join(map(str, slices.at))}",
            *part_words(slices),
            letters,
            *geometry_words(slices),
            window_words(window),
        ]
    )
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{name}: three slices"><figcaption><b class="{name}">{name}</b>: {_text(words)}'
        "</figcaption></figure>\n"
    )


def part_words(slices: Slices) -> list[str]:
    """Which time point and which channel are drawn, where there are several; counted from 0."""
    count, *_, channels = slices.header.shape
    return [
        f"{word} {index} (of {size}, from 0)"
        for word, index, size in (
            ("time point", slices.n, count),
            ("channel", slices.channel, channels),
        )
        if size > 1
    ]


def thumbnail(slices: Slices, window: Window) -> tuple[Shades, str]:
    """The three slices side by side as shades (rows, columns), and a text on their orientation."""
    panels = panels_of(slices, window)
    scale = PIXELS / max(side for panel in panels for side in panel.extent)
    painted = [
        panel.paint(*(max(1, round(side * scale)) for side in panel.extent)) for panel in panels
    ]
    height, gap = max(len(shades) for shades in painted), 4
    sheet = np.zeros(
        (height, sum(shades.shape[1] for shades in painted) + gap * (len(painted) - 1)), np.uint8
    )
    left = 0
    for shades in painted:
        top = (height - len(shades)) // 2
        sheet[top : top + len(shades), left : left + shades.shape[1]] = shades
        left += shades.shape[1] + gap
    if any(panels[0].letters):
        words = "; ".join(
            f"{p.title.split(', ')[-1]}: {p.letters[0]} left, {p.letters[2]} top" for p in panels
        )
    else:
        words = "; ".join(f"{'dhw'[i]}: {panel.directions}" for i, panel in enumerate(panels))
    return sheet, words


def histogram(series: Sequence[tuple[str, Values]]) -> str:
    """Histograms of the voxels drawn as HTML with SVG; "" without two different values.

    series : (name, values) of each curve; all share the bins, heights are square roots of counts

    The horizontal axis has the values, the vertical one the part of a curve's voxels in a bin. What
    lies beyond the window is counted in a bar of its own at either end, beyond the axis.
    """
    finite = [(name, values[np.isfinite(values)]) for name, values in series]
    low, high = robust_window([values for _, values in finite])
    if not low < high:
        return ""
    curves = [(name, _shares(values, low, high)) for name, values in finite]
    top = max(float(shares.max()) for _, shares in curves)
    lines = [_curve(name, shares / top) for name, shares in curves]
    beyond = [f"{name} {percent(shares[0])} and {percent(shares[-1])}" for name, shares in curves]
    not_finite = [(name, int((~np.isfinite(values)).sum())) for name, values in series]
    left_out = ", ".join(f"{name} {count}" for name, count in not_finite if count)
    caption = (
        "values of the voxels drawn, and the part of them in each bin on a square root scale; "
        f"dashed bars: all voxels below {low:.6g} and above {high:.6g} ({', '.join(beyond)})"
    )
    caption += f"; not finite: {left_out}" if left_out else ""
    return (
        f'<figure><svg width="{LEFT + WIDTH + RIGHT}" height="{HEIGHT + BELOW}" role="img" '
        f'class="histogram"><title>histogram</title>{"".join(lines)}'
        f"{_axes(low, high, top)}</svg><figcaption>{_text(caption)}</figcaption></figure>\n"
    )


def _shares(values: Values, low: float, high: float) -> Values:
    """The part of the values below the window, in each of its bins, and above it: (BINS + 2,)."""
    counts, _ = np.histogram(values, BINS, (low, high))
    outside = np.count_nonzero(values < low), np.count_nonzero(values > high)
    return np.array([outside[0], *counts, outside[1]], np.float64) / max(1, values.size)


def _curve(name: str, shares: Values) -> str:
    """A curve and its two bars beyond the window as SVG.

    shares : (BINS + 2,)    of the largest bin of all curves
    """
    tops = HEIGHT - (HEIGHT - ABOVE) * np.sqrt(shares)
    points = " ".join(
        f"{LEFT + BAR + (i + j) * (WIDTH - 2 * BAR) / BINS:.1f},{y:.1f}"
        for i, y in enumerate(tops[1:-1])
        for j in (0, 1)
    )
    ends = LEFT + BAR, LEFT + WIDTH - BAR
    bars = "".join(
        f'<rect class="{name} beyond" x="{x:.1f}" y="{y:.1f}" width="{BAR - GAP}" '
        f'height="{HEIGHT - y:.1f}" fill="none" stroke="currentColor" stroke-dasharray="2"/>'
        for x, y in ((LEFT, tops[0]), (ends[1] + GAP, tops[-1]))
        if y < HEIGHT
    )
    return (
        f'<polyline class="{name}" points="{ends[0]},{HEIGHT} {points} {ends[1]},{HEIGHT}" '
        f'fill="currentColor" fill-opacity="0.15" stroke="currentColor"/>{bars}'
    )


def _axes(low: float, high: float, top: float) -> str:
    """The axes with ticks and numbers as SVG; `top` is the part at the top of the vertical one."""
    scale = (WIDTH - 2 * BAR) / (high - low)
    parts = [
        f'<path d="M{LEFT},{ABOVE} V{HEIGHT} H{LEFT + WIDTH}" fill="none" stroke="#555"/>',
    ]
    for value in round_numbers(low, high):
        x = LEFT + BAR + (value - low) * scale
        parts.append(
            f'<path d="M{x:.1f},{HEIGHT} v4" stroke="#555"/>'
            f'<text x="{x:.1f}" y="{HEIGHT + 15}" text-anchor="middle">{value:.6g}</text>'
        )
    for part in (top, top / 4):
        y = HEIGHT - (HEIGHT - ABOVE) * math.sqrt(part / top)
        parts.append(
            f'<path d="M{LEFT},{y:.1f} h-4" stroke="#555"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{percent(part)}</text>'
        )
    return "".join(parts)


def round_numbers(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high for the ticks of an axis: at most `most`, evenly spaced.

    >>> round_numbers(0.0, 983.5), round_numbers(-0.13, 0.2)
    ([0.0, 200.0, 400.0, 600.0, 800.0], [-0.1, 0.0, 0.1, 0.2])
    """
    power = 10.0 ** math.floor(math.log10(high - low))
    for step in (power * factor for factor in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5)):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < most:
            break
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]

"""A report of a batch: one HTML page with all its pictures in it, which needs no network and no library.

Sections wait in an unnamed temporary file until the table that stands above them is known, so memory holds one volume's
pictures at a time; the page appears whole, by `finish`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from conv3d_cli.formats.base import unnamed_file
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
from conv3d_cli.system.atomic import text_output, write_errors

PIXELS = 150  # of the longest side of a thumbnail
BINS = 64
COPIED = 1 << 20  # bytes at a time

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin: 2.2em 0 .4em; border-top: 1px solid #ddd; padding-top: 1em }
table { border-collapse: collapse; width: 100%; font-size: .9em }
th, td { text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid #eee; vertical-align: top }
td { overflow-wrap: anywhere } td:first-child { white-space: nowrap; overflow-wrap: normal }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.done { color: #1a7f37 } .failed { color: #b3261e } .skipped { color: #777 }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start }
figure { margin: .5em 0 } figcaption { font-size: .8em; color: #555; max-width: 34em }
img { display: block; background: #000 }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto; font-size: .8em; white-space: pre-wrap }
.before { color: #4477aa } .after { color: #dd7722 } .note { margin: .2em 0; font-size: .9em }
"""


@dataclass(frozen=True)
class Entry:
    """What a report tells of one volume.

    row : mapping           of the table: column to text
    status : str            "done", "skipped" or "failed"
    decided : str           aligned lines, as `describe` makes them
    before, after           its pictures; None where there are none
    shared : bool           both under one window: the kernel keeps the scale of values
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
    shared: bool = False


class Report:
    """A page being written: `add` entries in order, then `finish`. As a context manager it leaves nothing unless finished."""

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path = path
        self._output = text_output(path, overwrite)
        self._sections = unnamed_file()
        self._rows: list[tuple[str, Mapping[str, str]]] = []

    def add(self, entry: Entry) -> None:
        """Take a volume's section. Raises: WriteError."""
        self._rows.append((entry.status, entry.row))
        with write_errors(self.path):
            self._sections.write(section(entry, len(self._rows)).encode("utf-8", "replace"))

    def finish(self, title: str, command: str) -> None:
        """Write the page. Raises: WriteError."""
        head = (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>\n<pre>{_text(command)}</pre>\n"
            f"{table(self._rows)}"
        )
        with write_errors(self.path):
            self._output.file.write(head.encode("utf-8", "replace"))
            self._sections.seek(0)
            while part := self._sections.read(COPIED):
                self._output.file.write(part)
            self._output.file.write(b"</body>\n</html>\n")
        self._output.commit()

    def close(self) -> None:
        """Leave nothing unless the page was finished."""
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
    """Words as HTML; what no page can hold (control characters, halves of surrogate pairs) as a question mark."""
    shown = "".join(
        c
        if c in "\n\t" or ((c.isprintable() or c.isspace()) and not 0xD800 <= ord(c) < 0xE000)
        else "?"
        for c in words
    )
    return html.escape(shown)


def table(rows: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The table on top; each row leads to its section."""
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
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
    """All about one volume."""
    parts = [
        f'<h2 id="v{number}"><span class="{entry.status}">{entry.status}</span> {_text(entry.title)}</h2>\n'
    ]
    if entry.error:
        parts.append(f'<p class="failed">{_text(entry.error)}</p>\n')
    shown = [
        (name, s) for name, s in (("before", entry.before), ("after", entry.after)) if s is not None
    ]
    if shown:
        together = robust_window([s.values for _, s in shown]) if entry.shared else None
        parts.append('<div class="pictures">\n')
        parts += [_figure(name, s, together or robust_window([s.values])) for name, s in shown]
        parts.append(f"{histogram([(name, s.values) for name, s in shown])}</div>\n")
    parts += [f'<p class="note">note: {_text(note)}</p>\n' for note in entry.notes]
    if entry.decided or entry.done:
        parts.append(
            f"<pre>{_text(chr(10).join(text for text in (entry.decided, entry.done) if text))}</pre>\n"
        )
    return "".join(parts)


def _figure(name: str, slices: Slices, window: Window) -> str:
    shades, letters = thumbnail(slices, window)
    data = base64.b64encode(encode_png(shades, GREY)).decode("ascii")
    height, width = shades.shape
    axes = "x".join(map(str, slices.header.shape[1:4]))
    words = "; ".join(
        [
            f"{axes} voxels at {','.join(map(str, slices.at))}",
            letters,
            *geometry_words(slices),
            window_words(window),
        ]
    )
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{name}: three slices">'
        f'<figcaption><b class="{name}">{name}</b>: {_text(words)}</figcaption></figure>\n'
    )


def thumbnail(slices: Slices, window: Window) -> tuple[Shades, str]:
    """The three slices side by side as shades, and what lies at their edges in words."""
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
        words = "; ".join(f"{'dhw'[i]}: {panel.words}" for i, panel in enumerate(panels))
    return sheet, words


def histogram(series: Sequence[tuple[str, Values]]) -> str:
    """Counts of the voxels drawn in bins that all share, as SVG; heights go with the root of the counts."""
    finite = [(name, values[np.isfinite(values)]) for name, values in series]
    low, high = robust_window([values for _, values in finite])
    if not low < high:
        return ""
    width, height = 300, 130
    lines = []
    for name, values in finite:
        # values beyond the ends are counted in the last bins
        counts, _ = np.histogram(np.clip(values, low, high), BINS, (low, high))
        tops = height - height * np.sqrt(counts / max(1, counts.max()))
        points = " ".join(
            f"{(i + j) * width / BINS:.1f},{y:.1f}" for i, y in enumerate(tops) for j in (0, 1)
        )
        lines.append(
            f'<polyline class="{name}" points="0,{height} {points} {width},{height}" fill="currentColor" fill-opacity="0.15" '
            'stroke="currentColor"/>'
        )
    left_out = [f"{name} {np.size(all_) - values.size}" for (name, all_), (_, values) in zip(series, finite, strict=True)
                if np.size(all_) > values.size]  # fmt: skip
    caption = f"values of the voxels drawn, {low:.6g} to {high:.6g}; heights: square root of the share of the fullest bin"
    caption += f"; not finite: {', '.join(left_out)}" if left_out else ""
    return (
        f'<figure><svg width="{width}" height="{height + 2}" viewBox="0 -1 {width} {height + 2}" role="img">'
        f"<title>histogram</title>{''.join(lines)}</svg><figcaption>{_text(caption)}</figcaption></figure>\n"
    )

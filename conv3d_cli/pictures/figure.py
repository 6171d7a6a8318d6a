"""Draw panels as a figure of Matplotlib, in the colours of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conv3d_cli.pictures.panels import NOT_A_NUMBER, Panel, axis_labels
from conv3d_cli.system.words import plain_text

INCHES = 2.6  # longest side of a panel
TEXT_INCHES = 0.62  # around a row of panels, for titles and letters
LINE_INCHES = 0.17  # height of a line of the caption
DPI = 110


def make_figure(
    rows: Sequence[Sequence[Panel]], caption: Sequence[str], headings: Sequence[str] = ()
) -> Any:
    """A Matplotlib figure of rows of panels at a common scale, with a colour bar for each window.

    caption : sequence of str       lines below the panels
    headings : sequence of str      titles of the columns
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    widths = [max(row[i].extent[1] for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(panel.extent[0] for panel in row) for row in rows]
    scale = INCHES / max(max(panel.extent) for row in rows for panel in row)
    inches = (
        [max(0.8, width * scale) for width in widths],
        [max(0.3, height * scale) for height in heights],
    )
    gap = 0.5
    margin = 0.6 if any(panel.down for row in rows for panel in row) else 0.35  # holds numbers
    below = 0.15 + LINE_INCHES * len(caption)
    over = 0.45 if headings else 0.1
    bars = _windows(rows)
    labels = [len(label) for panel in bars for label in _bar_labels(panel)]
    bar = max([0.75, *(0.3 + 0.065 * length for length in labels)])  # with room for its numbers
    longest = max((len(line) for line in caption), default=0) * 0.075
    wide = max(sum(inches[0]) + gap * columns + bar * len(bars), longest) + margin
    high = sum(inches[1]) + TEXT_INCHES * len(rows) + below + over
    figure = Figure(figsize=(wide, high), dpi=DPI)
    top = high - over
    for row, height in zip(rows, inches[1], strict=True):
        top -= TEXT_INCHES / 2
        left = margin
        for panel, width in zip(row, inches[0], strict=False):
            own = panel.extent[1] * scale, panel.extent[0] * scale
            place = (left + (width - own[0]) / 2, top - (height + own[1]) / 2)
            _panel(
                figure.add_axes((place[0] / wide, place[1] / high, own[0] / wide, own[1] / high)),
                panel,
                own,
            )
            left += width + gap
        top -= height + TEXT_INCHES / 2
    for position, (heading, width) in enumerate(zip(headings, inches[0], strict=False)):
        centre = margin + sum(inches[0][:position]) + gap * position + width / 2
        figure.text(
            centre / wide,
            (high - 0.3) / high,
            plain_text(heading),
            ha="center",
            fontsize=9,
            weight="bold",
            parse_math=False,
        )
    start = margin + sum(inches[0]) + gap * columns - 0.15
    for number, panel in enumerate(bars):
        length = min(2.2, high - below - over - 0.5)
        middle = (below + high - over) / 2
        corner = (
            (start + bar * number) / wide,
            (middle - length / 2) / high,
            0.12 / wide,
            length / high,
        )
        _bar(figure.add_axes(corner), panel)
    for number, line in enumerate(caption):
        figure.text(
            margin / wide,
            (below - 0.05 - LINE_INCHES * (number + 1)) / high,
            plain_text(line),
            fontsize=7.5,
            color="#444444",
            parse_math=False,
        )
    return figure


def _windows(rows: Sequence[Sequence[Panel]]) -> list[Panel]:
    """One panel for each colour bar: panels with the same window and shades share a bar."""
    found: dict[tuple[object, ...], Panel] = {}
    for panel in (panel for row in rows for panel in row):
        if panel.has_scale and panel.window[0] < panel.window[1]:
            found.setdefault((panel.window, panel.signed, panel.gamma), panel)
    return list(found.values())


def _panel(axes: Any, panel: Panel, inches: tuple[float, float]) -> None:
    """Draw a panel of (width, height) `inches`; voxels smaller than a dot are averaged."""
    cells = [
        min(count, max(1, round(side * DPI)))
        for count, side in zip(panel.values.shape, inches[::-1], strict=True)
    ]
    axes.imshow(panel.palette[panel.paint(*cells)], aspect="auto", interpolation="nearest")
    for ends, count, show in (
        (panel.across, cells[1], axes.set_xticks),
        (panel.down, cells[0], axes.set_yticks),
    ):
        labels = {} if ends is None else axis_labels(ends, count)
        show(list(labels), list(labels.values()), fontsize=6)
    axes.tick_params(length=2, pad=1)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    left, right, top, bottom = panel.letters
    axes.set_title(panel.title, fontsize=8, pad=13 if top else 5)
    style = {"transform": axes.transAxes, "fontsize": 8, "color": "#666666"}
    axes.text(-0.02, 0.5, left, ha="right", va="center", **style)
    axes.text(1.02, 0.5, right, ha="left", va="center", **style)
    axes.text(0.5, 1.01, top, ha="center", va="bottom", **style)
    axes.text(0.5, -0.015, bottom, ha="center", va="top", **style)


def _bar_labels(panel: Panel) -> list[str]:
    """The values at the ends of a colour bar and in its middle, from the lowest."""
    low, high = panel.window
    values = [low, 0.0, high] if panel.signed else [low, (low + high) / 2, high]
    return [f"{value:.4g}" for value in values]


def _bar(axes: Any, panel: Panel) -> None:
    """Draw a colour bar with the values at its ends and in its middle."""
    import numpy as np

    shades = np.arange(NOT_A_NUMBER, dtype=np.uint8)[:, None]
    axes.imshow(panel.palette[shades], aspect="auto", origin="lower")
    axes.set_yticks([0, (NOT_A_NUMBER - 1) / 2, NOT_A_NUMBER - 1], _bar_labels(panel), fontsize=7)
    axes.yaxis.tick_right()
    axes.tick_params(length=2, pad=2)
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)

"""Panels: planes with a size, a window and words, painted in 255 shades and one more for what is not a number.

A panel is painted at any size: a cell smaller than a voxel repeats it, one as large as several shows their mean, or of signed
values (differences, kernels) the one farthest from 0, so that no peak is lost. The shade of a cell is an index into a palette,
which PNG files, Matplotlib and the terminal share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.pictures.orientation import OBLIQUE, Orientation, orientations, tilt
from conv3d_cli.pictures.slices import Slices, Values

Shades = NDArray[np.uint8]
Window = tuple[float, float]

NOT_A_NUMBER = 255  # the shade of NaN, and of nothing
PERCENT = 0.5  # of the voxels drawn, that the window leaves out at either end


def _palette(colours: Values, nan: tuple[int, int, int]) -> Shades:
    return np.vstack([np.round(colours), nan]).astype(np.uint8)


def _signed_colours() -> Values:
    """Blue below 0, black at 0, orange above."""
    strength = np.linspace(-1, 1, NOT_A_NUMBER)[:, None]
    return np.abs(strength) * np.where(strength > 0, (255.0, 170.0, 60.0), (70.0, 150.0, 255.0))


# (256, 3) RGB
GREY = _palette(np.repeat(np.linspace(0, 255, NOT_A_NUMBER)[:, None], 3, axis=1), (110, 40, 120))
SIGNED = _palette(_signed_colours(), (110, 40, 120))


@dataclass(frozen=True, eq=False)
class Panel:
    """One plane as it is drawn.

    values : (rows, columns)        upright; the first row on top
    extent : (height, width)        in units that all panels of a picture share
    window : (low, high)            values that the darkest and the brightest shade stand for
    signed : bool                   colours on both sides of 0
    bend : float                    shades go with |value|^bend: below 1 lifts the tails of bell shapes
    measures : bool                 its shades stand for values, so a scale of them is shown
    """

    title: str
    values: Values
    extent: tuple[float, float]
    window: Window
    letters: tuple[str, str, str, str] = ("", "", "", "")
    words: str = ""
    signed: bool = False
    bend: float = 1.0
    measures: bool = True

    @property
    def palette(self) -> Shades:
        """(256, 3) RGB of the shades."""
        return SIGNED if self.signed else GREY

    def paint(self, rows: int, columns: int) -> Shades:
        """Shades, (rows, columns): 0 to 254 across the window, `NOT_A_NUMBER` where there is no number."""
        low, high = self.window
        with np.errstate(invalid="ignore", over="ignore"):
            clipped = np.clip(self.values, low, high)  # of a window of one value, all
            level = (
                (clipped / 2 - low / 2) / (high / 2 - low / 2)
                if high > low
                else np.where(np.isnan(clipped), clipped, 0.5)
            )
        if self.bend != 1:
            around = 2 * level - 1
            level = (np.sign(around) * np.abs(around) ** self.bend + 1) / 2
        cells = resize(level - 0.5 if self.signed else level, rows, columns, peak=self.signed)
        cells = cells + 0.5 if self.signed else cells
        shades = np.full(cells.shape, NOT_A_NUMBER, np.uint8)
        known = ~np.isnan(cells)
        shades[known] = np.rint(cells[known] * (NOT_A_NUMBER - 1))
        return shades


def resize(plane: Values, rows: int, columns: int, peak: bool = False) -> Values:
    """A plane in another number of cells: voxels repeated where there are more, summed up where there are fewer.

    peak : bool     False: their mean; True: the value farthest from 0. NaN counts only where there is nothing else.
    >>> resize(np.array([[1.0, 3.0, -5.0, np.nan]]), 1, 2), resize(np.array([[1.0, 3.0, -5.0, 4.0]]), 1, 2, peak=True)
    (array([[ 2., -5.]]), array([[ 3., -5.]]))
    """
    for axis, count in ((0, rows), (1, columns)):
        size = plane.shape[axis]
        if count >= size:
            plane = plane.take((np.arange(count) * 2 + 1) * size // (2 * count), axis=axis)
            continue
        starts = np.arange(count) * size // count
        if peak:
            high, low = (
                np.fmax.reduceat(plane, starts, axis=axis),
                np.fmin.reduceat(plane, starts, axis=axis),
            )
            plane = np.where(np.abs(low) > np.abs(high), low, high)
        else:
            known = ~np.isnan(plane)
            total = np.add.reduceat(np.where(known, plane, 0.0), starts, axis=axis)
            number = np.add.reduceat(known.astype(np.float64), starts, axis=axis)
            plane = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return plane


def robust_window(values: Sequence[Values]) -> Window:
    """The window that leaves out `PERCENT` of the finite values at either end; (0, 0) if there are none.

    >>> robust_window([np.arange(1001.0)])
    (5.0, 995.0)
    """
    finite = np.concatenate([np.ravel(v)[np.isfinite(np.ravel(v))] for v in values])
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (PERCENT, 100 - PERCENT), method="nearest")
    if low == high:  # most voxels are the same: then all of them
        low, high = finite.min(), finite.max()
    return float(low), float(high)


def signed_window(values: Sequence[Values]) -> Window:
    """A window around 0 that leaves out `PERCENT` of the finite values, those farthest from it."""
    low, high = robust_window([np.abs(v) for v in values])
    top = max(abs(low), abs(high))
    return -top, top


def lengths(slices: Slices) -> tuple[float, float, float]:
    """How long a volume is along D, H, W, in its unit; in voxels where it has no spacing."""
    spacing = slices.header.grid.spacing or (1.0, 1.0, 1.0)
    d, h, w = (size * step for size, step in zip(slices.header.shape[1:4], spacing, strict=True))
    return d, h, w


def shortest_side(slices: Slices) -> float:
    """The shortest distance between two samples, in the volume's unit."""
    return min(
        step * side
        for step, side in zip(
            slices.steps, slices.header.grid.spacing or (1.0, 1.0, 1.0), strict=True
        )
    )


def panels_of(slices: Slices, window: Window) -> list[Panel]:
    """The slices across depth, height and width as panels."""
    return [
        _panel(slices, plane, turn, window)
        for plane, turn in zip(slices.planes, orientations(slices.header.grid), strict=True)
    ]


def difference_panels(first: Slices, second: Slices) -> tuple[list[Panel], str]:
    """The second volume minus the first, slice by slice, and what there is to say about it.

    Both must have the same shape, and be cut at the same voxel.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        planes = [b - a for a, b in zip(first.planes, second.planes, strict=True)]
    window = signed_window(planes)
    turns = orientations(first.header.grid)
    panels = [
        _panel(first, plane, turn, window, signed=True)
        for plane, turn in zip(planes, turns, strict=True)
    ]
    largest, words = -1.0, "no difference of two numbers"
    for axis, plane in enumerate(planes):
        sizes = np.where(np.isfinite(plane), np.abs(plane), -1.0)
        row, column = np.unravel_index(int(sizes.argmax()), sizes.shape)
        if sizes[row, column] > largest:
            largest = float(sizes[row, column])
            place = [int(row), int(column)]
            place.insert(axis, 0)
            place = [p * s for p, s in zip(place, first.steps, strict=True)]
            place[axis] = first.at[axis]
            words = (
                f"largest {plane[row, column]:+.6g} at voxel {','.join(map(str, place))}"
                if largest
                else "none: all equal"
            )
    return panels, words


def _panel(
    slices: Slices, plane: Values, turn: Orientation, window: Window, signed: bool = False
) -> Panel:
    sizes = lengths(slices)
    title = f"{'dhw'[turn.axis]} = {slices.at[turn.axis]}" + (f", {turn.name}" if turn.name else "")
    extent = (sizes[turn.down], sizes[turn.right])
    return Panel(title, turn.upright(plane), extent, window, turn.letters, turn.words, signed)


def geometry_words(slices: Slices) -> list[str]:
    """How the slices are turned and scaled, in sentences."""
    grid = slices.header.grid
    words = []
    if grid.spacing is None:
        words.append("no voxel size: drawn as cubes")
    else:
        words.append(
            f"voxels of {','.join(f'{s:g}' for s in grid.spacing)} {grid.unit or 'units'} (depth,height,width)"
        )
    angle = tilt(grid)
    if angle >= OBLIQUE:
        words.append(f"oblique: its axes are up to {angle:.3g} degrees off the letters'")
    if max(slices.steps) > 1:
        words.append(
            f"every {','.join(map(str, slices.steps))}th voxel along depth,height,width is drawn"
        )
    return words


def window_words(window: Window, given: bool = False) -> str:
    """What the shades stand for."""
    low, high = window
    if low == high:
        return f"grey: {low:g}, the only value" if math.isfinite(low) else "grey: no number"
    return f"black {low:.6g}, white {high:.6g}" + (
        "" if given else f" ({PERCENT:g} to {100 - PERCENT:g} % of the voxels drawn)"
    )

"""Panels: planes with a physical size, a grey-level window and labels, painted in shades.

A panel can be painted at any size. A cell smaller than a voxel repeats it; a cell that covers
several voxels shows their mean, or the value farthest from 0 for signed values (differences,
kernels), so that no peak is lost. The shade of a cell is an index into a palette, which PNG files,
Matplotlib and the terminal share: 255 shades, and one for NaN.
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

NOT_A_NUMBER = 255  # the shade of NaN
PERCENT = 0.5  # of the voxels drawn lie beyond each end of a robust window


def _palette(colours: Values, nan: tuple[int, int, int]) -> Shades:
    """The palette (256, 3) of 255 colours and that of NaN."""
    return np.vstack([np.round(colours), nan]).astype(np.uint8)


def _signed_colours() -> Values:
    """Colours (255, 3): blue below 0, black at 0, orange above."""
    strength = np.linspace(-1, 1, NOT_A_NUMBER)[:, None]
    return np.abs(strength) * np.where(strength > 0, (255.0, 170.0, 60.0), (70.0, 150.0, 255.0))


# (256, 3) RGB
GREY = _palette(np.repeat(np.linspace(0, 255, NOT_A_NUMBER)[:, None], 3, axis=1), (110, 40, 120))
SIGNED = _palette(_signed_colours(), (110, 40, 120))


@dataclass(frozen=True, eq=False)
class Panel:
    """One plane as it is drawn.

    values : (rows, columns)        the first row is drawn on top
    extent : (height, width)        in units that all panels of a picture share
    window : (low, high)            values of the darkest and of the brightest shade
    letters : 4 str                 at the left, right, top and bottom edge, or ""
    directions : str                directions of the axes in words
    signed : bool                   the palette has colours on both sides of 0
    gamma : float                   exponent of the distance from the middle of the window; below 1
                                    it makes small values of a signed panel visible
    has_scale : bool                show a colour bar, since the shades represent values
    across : (left, right) or None  numbers of an axis below, at its ends
    down : (top, bottom) or None    numbers of an axis at the left, at its ends
    """

    title: str
    values: Values
    extent: tuple[float, float]
    window: Window
    letters: tuple[str, str, str, str] = ("", "", "", "")
    directions: str = ""
    signed: bool = False
    gamma: float = 1.0
    has_scale: bool = True
    across: tuple[float, float] | None = None
    down: tuple[float, float] | None = None

    @property
    def palette(self) -> Shades:
        """The RGB colours (256, 3) of the shades."""
        return SIGNED if self.signed else GREY

    def paint(self, rows: int, columns: int) -> Shades:
        """Shades (rows, columns): 0 to 254 across the window, `NOT_A_NUMBER` for NaN."""
        low, high = self.window
        with np.errstate(invalid="ignore", over="ignore"):
            clipped = np.clip(self.values, low, high)
            if high > low:
                level = (clipped / 2 - low / 2) / (high / 2 - low / 2)
            else:
                level = np.where(np.isnan(clipped), clipped, 0.5)
        if self.gamma != 1:
            centred = 2 * level - 1
            level = (np.sign(centred) * np.abs(centred) ** self.gamma + 1) / 2
        cells = resize(level - 0.5 if self.signed else level, rows, columns, peak=self.signed)
        cells = cells + 0.5 if self.signed else cells
        shades = np.full(cells.shape, NOT_A_NUMBER, np.uint8)
        known = ~np.isnan(cells)
        shades[known] = np.rint(cells[known] * (NOT_A_NUMBER - 1))
        return shades


def axis_labels(ends: tuple[float, float], count: int) -> dict[int, str]:
    """The numbers along an axis of `count` cells, by cell: at both ends, and 0 if it lies between.

    >>> axis_labels((-3.0, 3.0), 7), axis_labels((0.25, 0.0), 1)
    ({0: '-3', 3: '0', 6: '3'}, {0: '0.25'})
    """
    first, last = ends
    labels = {0: f"{first:.3g}"}
    if first != last:
        labels.setdefault(count - 1, f"{last:.3g}")
    if min(first, last) < 0 < max(first, last):
        labels.setdefault(round(first / (first - last) * (count - 1)), "0")
    return dict(sorted(labels.items()))


def resize(plane: Values, rows: int, columns: int, peak: bool = False) -> Values:
    """A plane resampled to (rows, columns) cells: voxels are repeated, or combined if too many.

    peak : bool     combine voxels by False: their mean; True: the value farthest from 0
    A cell is NaN only if all its voxels are.
    >>> resize(np.array([[1.0, 3.0, -5.0, np.nan]]), 1, 2)
    array([[ 2., -5.]])
    >>> resize(np.array([[1.0, 3.0, -5.0, 4.0]]), 1, 2, peak=True)
    array([[ 3., -5.]])
    """
    for axis, count in ((0, rows), (1, columns)):
        size = plane.shape[axis]
        if count >= size:
            plane = plane.take((np.arange(count) * 2 + 1) * size // (2 * count), axis=axis)
            continue
        starts = np.arange(count) * size // count
        if peak:
            high = np.fmax.reduceat(plane, starts, axis=axis)
            low = np.fmin.reduceat(plane, starts, axis=axis)
            plane = np.where(np.abs(low) > np.abs(high), low, high)
        else:
            known = ~np.isnan(plane)
            total = np.add.reduceat(np.where(known, plane, 0.0), starts, axis=axis)
            number = np.add.reduceat(known.astype(np.float64), starts, axis=axis)
            plane = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return plane


def robust_window(values: Sequence[Values]) -> Window:
    """The window with `PERCENT` of the finite values below it and as many above.

    (0, 0) without finite values.
    >>> robust_window([np.arange(1001.0)])
    (5.0, 995.0)
    """
    finite = np.concatenate([np.ravel(v)[np.isfinite(np.ravel(v))] for v in values])
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (PERCENT, 100 - PERCENT), method="nearest")
    if low == high:  # nearly all voxels are equal: take the whole range
        low, high = finite.min(), finite.max()
    return float(low), float(high)


def signed_window(values: Sequence[Values]) -> Window:
    """A symmetric window around 0 without the `PERCENT` of finite values farthest from 0."""
    low, high = robust_window([np.abs(v) for v in values])
    top = max(abs(low), abs(high))
    return -top, top


def lengths(slices: Slices) -> tuple[float, float, float]:
    """The size of a volume along D, H, W in its unit of length; in voxels without a spacing."""
    spacing = slices.header.grid.spacing or (1.0, 1.0, 1.0)
    d, h, w = (size * step for size, step in zip(slices.header.shape[1:4], spacing, strict=True))
    return d, h, w


def shortest_side(slices: Slices) -> float:
    """The shortest distance between two samples in the volume's unit; in voxels without spacing."""
    spacing = slices.header.grid.spacing or (1.0, 1.0, 1.0)
    return min(step * side for step, side in zip(slices.steps, spacing, strict=True))


def panels_of(slices: Slices, window: Window) -> list[Panel]:
    """The slices across depth, height and width as panels."""
    return [
        _panel(slices, plane, turn, window)
        for plane, turn in zip(slices.planes, orientations(slices.header.grid), strict=True)
    ]


def difference_panels(first: Slices, second: Slices) -> tuple[list[Panel], str]:
    """Panels of the second volume minus the first, and a text about the largest difference.

    first, second : of the same shape, through the same voxel
    """
    with np.errstate(invalid="ignore", over="ignore"):
        planes = [b - a for a, b in zip(first.planes, second.planes, strict=True)]
    window = signed_window(planes)
    turns = orientations(first.header.grid)
    panels = [
        _panel(first, plane, turn, window, signed=True)
        for plane, turn in zip(planes, turns, strict=True)
    ]
    largest, text = -1.0, "no difference of two numbers"
    for axis, plane in enumerate(planes):
        sizes = np.where(np.isfinite(plane), np.abs(plane), -1.0)
        row, column = np.unravel_index(int(sizes.argmax()), sizes.shape)
        if sizes[row, column] > largest:
            largest = float(sizes[row, column])
            place = [int(row), int(column)]
            place.insert(axis, 0)
            place = [p * s for p, s in zip(place, first.steps, strict=True)]
            place[axis] = first.at[axis]
            voxel = ",".join(map(str, place))
            text = f"largest {plane[row, column]:+.6g} at voxel {voxel}"
    return panels, "none: all equal" if largest == 0 else text


def _panel(
    slices: Slices, plane: Values, turn: Orientation, window: Window, signed: bool = False
) -> Panel:
    sizes = lengths(slices)
    title = f"{'dhw'[turn.axis]} = {slices.at[turn.axis]}" + (f", {turn.name}" if turn.name else "")
    extent = (sizes[turn.down], sizes[turn.right])
    return Panel(title, turn.upright(plane), extent, window, turn.letters, turn.directions, signed)


def geometry_words(slices: Slices) -> list[str]:
    """Notes for a caption on voxel size, oblique axes and voxels left out."""
    grid = slices.header.grid
    words = []
    if grid.spacing is None:
        words.append("no voxel size: voxels are drawn as cubes")
    else:
        words.append(f"voxels of {grid.spacing_words} (depth,height,width)")
    angle = tilt(grid)
    if angle >= OBLIQUE:
        words.append(f"oblique: the axes are up to {angle:.3g} degrees off the letters' directions")
    if max(slices.steps) > 1:
        words.append(
            f"every {','.join(map(str, slices.steps))}th voxel along depth,height,width is drawn"
        )
    return words


def window_words(window: Window, given: bool = False) -> str:
    """The values of the darkest and brightest shade, for a caption.

    given : bool    the user chose the window
    >>> window_words((0.0, 255.0), given=True)
    'black 0, white 255'
    """
    low, high = window
    if low == high:
        return f"grey: {low:g}, the only value" if math.isfinite(low) else "grey: no number"
    percent = "" if given else f" ({PERCENT:g} to {100 - PERCENT:g} % of the voxels drawn)"
    return f"black {low:.6g}, white {high:.6g}{percent}"

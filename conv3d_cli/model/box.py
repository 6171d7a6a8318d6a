"""Boxes of voxels: the one type for a block of a volume, of a slab or of a grid of blocks.

A `Span` is a half-open range of positions along one axis, a `Box` has one span each for depth,
height and width. `Runs` are disjoint spans along one axis in ascending order, such as the planes to
read. Positions may count anything: voxels, planes, chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from conv3d_cli.model.spec import Triple

Span = tuple[int, int]  # (start, stop)
Runs = tuple[Span, ...]  # ascending and disjoint
Slices = tuple[slice, slice, slice]


class Size(NamedTuple):
    """Numbers of voxels along depth, height and width.

    >>> Size(2, 3, 4).voxels
    24
    """

    depth: int
    height: int
    width: int

    @property
    def voxels(self) -> int:
        """The number of voxels: the product of the three."""
        return self.depth * self.height * self.width


class Box(NamedTuple):
    """The voxels from start to stop - 1 along depth, height and width.

    >>> box = Box((0, 2), (4, 8), (10, 15))
    >>> box.size, box.size.voxels
    (Size(depth=2, height=4, width=5), 40)
    """

    depth: Span
    height: Span
    width: Span

    @classmethod
    def whole(cls, size: Sequence[int]) -> Box:
        """The box of all voxels of an array.

        size : (d, h, w, ...)
        >>> Box.whole((2, 3, 4, 1))
        Box(depth=(0, 2), height=(0, 3), width=(0, 4))
        """
        return cls((0, size[0]), (0, size[1]), (0, size[2]))

    @classmethod
    def at(cls, start: Sequence[int], size: Sequence[int]) -> Box:
        """The box of `size` (d, h, w) whose first voxel is `start`.

        >>> Box.at((1, 0, 5), (2, 3, 4))
        Box(depth=(1, 3), height=(0, 3), width=(5, 9))
        """
        (d, h, w), (depth, height, width) = start, size
        return cls((d, d + depth), (h, h + height), (w, w + width))

    @property
    def start(self) -> Triple:
        """The first voxel."""
        return self.depth[0], self.height[0], self.width[0]

    @property
    def size(self) -> Size:
        """Voxels along each axis; 0 where a span stops before it starts."""
        (a, b), (c, d), (e, f) = self
        return Size(max(0, b - a), max(0, d - c), max(0, f - e))

    @property
    def is_empty(self) -> bool:
        """True if the box has no voxels.

        >>> Box((0, 2), (5, 5), (0, 9)).is_empty
        True
        """
        (a, b), (c, d), (e, f) = self
        return b <= a or d <= c or f <= e

    @property
    def slices(self) -> Slices:
        """The box as an index of an array (d, h, w, ...).

        >>> Box((0, 1), (2, 4), (0, 5)).slices
        (slice(0, 1, None), slice(2, 4, None), slice(0, 5, None))
        """
        (a, b), (c, d), (e, f) = self
        return slice(a, b), slice(c, d), slice(e, f)

    def intersect(self, other: Box) -> Box:
        """The box of the voxels in both; empty if the boxes do not overlap.

        >>> Box((0, 2), (4, 8), (0, 5)).intersect(Box((1, 9), (0, 6), (3, 4)))
        Box(depth=(1, 2), height=(4, 6), width=(3, 4))
        """
        (a, b), (c, d), (e, f) = self
        (i, j), (k, m), (n, o) = other
        return Box((max(a, i), min(b, j)), (max(c, k), min(d, m)), (max(e, n), min(f, o)))

    def hull(self, other: Box) -> Box:
        """The smallest box that contains both; neither may be empty.

        >>> Box((0, 2), (4, 8), (0, 5)).hull(Box((1, 9), (0, 6), (3, 4)))
        Box(depth=(0, 9), height=(0, 8), width=(0, 5))
        """
        (a, b), (c, d), (e, f) = self
        (i, j), (k, m), (n, o) = other
        return Box((min(a, i), max(b, j)), (min(c, k), max(d, m)), (min(e, n), max(f, o)))

    def align(self, units: Sequence[int], size: Sequence[int]) -> Box:
        """The smallest box of whole units (chunks, tiles) that contains this one.

        units : (d, h, w), voxels of a unit
        size : (d, h, w) of the array, whose end may cut the last unit short
        >>> Box((1, 2), (3, 9), (0, 1)).align((1, 4, 4), (9, 10, 3))
        Box(depth=(1, 2), height=(0, 10), width=(0, 3))
        """
        depth, height, width = (align(*one) for one in zip(self, units, size, strict=False))
        return Box(depth, height, width)

    def within(self, outer: Box) -> Box:
        """The same box, relative to the first voxel of an `outer` box.

        >>> Box((4, 6), (8, 9), (0, 5)).within(Box((4, 9), (5, 9), (0, 5)))
        Box(depth=(0, 2), height=(3, 4), width=(0, 5))
        """
        (a, b), (c, d), (e, f) = self
        (z, _), (y, _), (x, _) = outer
        return Box((a - z, b - z), (c - y, d - y), (e - x, f - x))

    def shift(self, offset: Sequence[int]) -> Box:
        """The box moved by `offset` voxels (d, h, w).

        >>> Box((0, 2), (4, 8), (0, 5)).shift((1, -4, 0))
        Box(depth=(1, 3), height=(0, 4), width=(0, 5))
        """
        (a, b), (c, d), (e, f) = self
        z, y, x = offset
        return Box((a + z, b + z), (c + y, d + y), (e + x, f + x))


def count_voxels(boxes: Iterable[Box]) -> int:
    """The number of voxels in all boxes; a voxel in several boxes counts several times.

    >>> count_voxels([Box((0, 1), (2, 4), (0, 5)), Box((3, 3), (0, 9), (0, 9))])
    10
    """
    return sum(math.prod(box.size) for box in boxes)


# --------------------------------------------------------------------------------------------------
# Along one axis


def align(span: Span, unit: int, size: int) -> Span:
    """The smallest span of whole units that contains a span, cut off at the end of the axis.

    unit, size : positions of a unit, and of the axis
    >>> align((5, 9), 4, 10)
    (4, 10)
    """
    start, stop = span
    return start // unit * unit, min(-(-stop // unit) * unit, size)


def split(size: int, step: int) -> list[Span]:
    """An axis of `size` positions as spans of `step`; the last may be shorter.

    >>> split(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def merge(spans: Iterable[Span], gap: int = 0) -> Runs:
    """Sort spans into runs: spans that touch, overlap or are at most `gap` apart become one.

    >>> merge([(5, 7), (0, 3), (3, 4)])
    ((0, 4), (5, 7))
    """
    found: list[Span] = []
    for start, stop in sorted(spans):
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return tuple(found)


def intersect(first: Runs, second: Runs) -> Runs:
    """The positions in both.

    >>> intersect(((0, 4), (8, 9)), ((2, 20),))
    ((2, 4), (8, 9))
    """
    both = ((max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second)
    return merge(run for run in both if run[0] < run[1])


def subtract(runs: Runs, others: Runs) -> Runs:
    """The positions of `runs` that are in none of `others`.

    >>> subtract(((0, 4), (8, 9)), ((2, 3),))
    ((0, 2), (3, 4), (8, 9))
    """
    left = list(runs)
    for start, stop in others:
        pieces = [
            (max(run[0], at), min(run[1], to))
            for run in left
            for at, to in ((0, start), (stop, run[1]))
        ]
        left = [run for run in pieces if run[0] < run[1]]
    return tuple(sorted(left))


def align_runs(runs: Runs, unit: int, size: int) -> Runs:
    """Every run aligned as by `align`, and merged.

    >>> align_runs(((3, 4), (9, 10)), 4, 10)
    ((0, 4), (8, 10))
    """
    return merge(align(run, unit, size) for run in runs)


def count_positions(runs: Runs) -> int:
    """The number of positions in the runs.

    >>> count_positions(((0, 4), (8, 9)))
    5
    """
    return sum(stop - start for start, stop in runs)

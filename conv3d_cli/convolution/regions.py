"""Regions: which outputs have missing voxels in their windows, which have no voxel at all, and boxes around them.

Certainty is known for blocks of input voxels (`engine.weighting.certainty_flags`), and is needed for blocks of
outputs. The window of an output block is a product of positions along depth, height and width, so it is found axis
by axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine import Team
from conv3d_cli.engine.weighting import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    IN_MASK,
    INCOMPLETE,
    PRESENT,
    Certainty,
    certainty_flags,
)
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import ConvProblem, Triple

Flags = NDArray[np.bool_]
Positions = tuple[list[int], list[int], list[int]]

UNITS = (1, BLOCK_ROWS, BLOCK_COLUMNS)  # input voxels that share their flags


class BlockFlags(NamedTuple):
    """What the windows of blocks of outputs hold, (d, h, w) bool each.

    incomplete : some certainty in the window is not 1
    present : some certainty in it is above 0
    in_mask : the mask is above 0 under the centre of some output
    """

    incomplete: Flags
    present: Flags
    in_mask: Flags


class CertaintySource(NamedTuple):
    """Voxels that may be missing: their certainty, (slope, intercept), and the dtype they are computed in."""

    certainty: Certainty
    scale: tuple[float, float]
    real: np.dtype[Any]


def classify_blocks(
    source: NDArray[Any], positions: Positions, problem: ConvProblem, region: Box, block: Triple,
    voxels: CertaintySource | None, team: Team,
) -> BlockFlags:  # fmt: skip
    """What the windows hold of each block of a region of a slab's outputs.

    source : (planes, rows, columns, c)     what was read for the slab: voxels, or (`voxels` is None) a mask
    positions : along each axis, for each position of the taps its place in the source, -1 outside
    region : outputs, all of them along height and width
    block : outputs of a block
    What lies outside the volume counts as data, unless the boundary renormalizes.
    """
    (start, stop), stride = region[0], problem.strides[0]
    planes = positions[0][start * stride : (stop - 1) * stride + problem.extent[0]]
    held = [plane for plane in planes if plane >= 0] or [0]
    first, last = min(held), max(held) + 1
    certainty, scale, real = (None, (1.0, 0.0), source.dtype) if voxels is None else voxels
    found = certainty_flags(source[first:last], certainty, scale, real, team)
    axes = [
        _axis(problem, 0, tuple(plane - first if plane >= 0 else -1 for plane in planes), stop - start, block[0], len(found)),
        *(
            _axis(problem, axis, tuple(positions[axis]), region[axis][1], block[axis], found.shape[axis])
            for axis in (1, 2)
        ),
    ]  # fmt: skip
    windows, centres, (depth, height, width) = zip(*axes, strict=True)
    outside = depth[:, None, None] | height[None, :, None] | width
    incomplete, present = (_reached(windows, found & bit != 0) for bit in (INCOMPLETE, PRESENT))
    if problem.boundary.renormalizes:
        incomplete = incomplete | outside
    else:
        present = present | outside
    return BlockFlags(incomplete, present, _reached(centres, found & IN_MASK != 0))


@lru_cache(maxsize=16)
def _axis(
    problem: ConvProblem, axis: int, places: tuple[int, ...], size: int, step: int, units: int
) -> tuple[Flags, Flags, Flags]:
    """What blocks of outputs see along an axis.

    Returns which blocks of input lie in the window of each block of outputs (blocks, units), which of them lie
    under the centre of one of its outputs (blocks, units), and which blocks of outputs see the outside (blocks,).
    """
    stride, extent = problem.strides[axis], problem.extent[axis]
    first = math.floor(problem.centre[axis] * problem.dilation_rate[axis])
    indices = np.asarray(places)
    unit = np.where(indices >= 0, indices // UNITS[axis], units)  # the last one is outside
    seen = np.zeros((2, -(-size // step), units + 1), bool)
    for number, start in enumerate(range(0, size, step)):
        stop = min(start + step, size)
        seen[0, number, unit[start * stride : (stop - 1) * stride + extent]] = True
        seen[1, number, unit[start * stride + first : (stop - 1) * stride + first + 1 : stride]] = (
            True
        )
    return seen[0, :, :-1], seen[1, :, :-1], seen[0, :, -1]


def _reached(windows: Sequence[Flags], blocks: Flags) -> Flags:
    """Which windows hold one of the flagged blocks. (A product of truth values is an "or" of "and"s.)"""
    depth, height, width = windows
    along = (depth @ blocks.reshape(len(blocks), -1)).reshape(-1, *blocks.shape[1:])
    return np.asarray(np.matmul(np.matmul(height, along), width.T))


def boxes_around(wanted: Flags, block: Triple, region: Box, halo: Triple) -> list[Box]:
    """Disjoint boxes of outputs that hold all wanted blocks.

    Boxes are joined where that saves work, which is about the product of size + halo along the three axes.

    >>> wanted = np.zeros((1, 4, 9), bool)
    >>> wanted[0, 1:3, 1] = wanted[0, 0, 8] = True
    >>> for box in boxes_around(wanted, (4, 10, 10), Box.whole((4, 40, 85)), (2, 2, 2)):
    ...     print(*box)
    (0, 4) (0, 10) (80, 85)
    (0, 4) (10, 30) (10, 20)
    """

    def work(box: Box) -> int:
        return math.prod(
            (b - a) * step + beside for (a, b), step, beside in zip(box, block, halo, strict=True)
        )

    boxes: list[Box] = []  # in blocks
    for band, first, last in runs_of(wanted.any(axis=0)):
        planes = np.flatnonzero(wanted[:, band, first:last].any(axis=1))
        box = Box((int(planes[0]), int(planes[-1]) + 1), (band, band + 1), (first, last))
        for number, other in enumerate(boxes):
            if other[1][1] < band:
                continue
            joined = box.hull(other)
            if work(joined) <= work(box) + work(other):
                boxes[number] = joined
                break
        else:
            boxes.append(box)
    return [
        _outputs(box, block, region) for box in sorted(_disjoint(boxes), key=lambda box: box[1])
    ]


def _outputs(box: Box, block: Triple, region: Box) -> Box:
    """The outputs of a box of blocks of a region."""
    depth, height, width = (
        (first + a * step, min(first + b * step, last))
        for (a, b), step, (first, last) in zip(box, block, region, strict=True)
    )
    return Box(depth, height, width)


def _disjoint(boxes: list[Box]) -> list[Box]:
    """The boxes, with those that overlap replaced by the box around them."""
    for first, second in itertools.combinations(range(len(boxes)), 2):
        if not boxes[first].intersect(boxes[second]).is_empty:
            rest = [box for number, box in enumerate(boxes) if number not in (first, second)]
            return _disjoint([*rest, boxes[first].hull(boxes[second])])
    return boxes


def runs_of(flags: Any) -> list[tuple[int, int, int]]:
    """The runs of flags (rows, columns) that are set: (row, start, stop) each.

    >>> runs_of(np.array([[True, True, False, True], [False, True, True, False]]))
    [(0, 0, 2), (0, 3, 4), (1, 1, 3)]
    """
    changes = np.diff(np.pad(flags.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(changes > 0)
    stops = np.nonzero(changes < 0)[1]
    return list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))


def strips_of(flags: Flags, block: Triple, region: Box) -> list[Box]:
    """The outputs of flagged blocks, as runs along the width, and along depth where all of them are flagged."""
    through = np.asarray(flags.all(axis=0))
    runs = [((0, len(flags)), run) for run in runs_of(through)]
    for plane, rest in enumerate(flags & ~through):
        runs += [((plane, plane + 1), run) for run in runs_of(rest)]
    return [
        _outputs(Box(planes, (band, band + 1), (a, b)), block, region)
        for planes, (band, a, b) in runs
    ]


def count_outside(flags: Flags, block: Triple, region: Box, boxes: Iterable[Box]) -> int:
    """How many outputs of flagged blocks lie in none of the boxes, which are whole blocks."""
    left = flags_outside(flags, block, region, boxes)
    depth, height, width = (
        np.diff([*range(0, b - a, n), b - a]) for (a, b), n in zip(region, block, strict=True)
    )
    return int(np.einsum("dhw,d,h,w->", left, depth, height, width))


def flags_outside(flags: Flags, block: Triple, region: Box, boxes: Iterable[Box]) -> Flags:
    """The flags, without those of blocks in one of the boxes, which are whole blocks."""
    left = flags.copy()
    for box in boxes:
        blocks = (
            ((a - first) // n, -((first - b) // n))
            for (a, b), (first, _), n in zip(box, region, block, strict=True)
        )
        left[Box(*blocks).slices] = False
    return left


class EdgeCoverage:
    """The coverage of each output where only voxels outside the volume are missing.

    Along an axis, outputs form a class if the same taps lie outside, so there are few different coverages.

    weights : (kd, kh, kw)      of sum 1
    axes : the axes along which voxels outside are missing; along others they are data
    """

    def __init__(
        self, problem: ConvProblem, weights: NDArray[np.float64], axes: Sequence[int] = (0, 1, 2)
    ) -> None:
        self.classes: list[NDArray[np.int64]] = []  # the class of each output along each axis
        self.whole: list[Flags] = []  # whether all taps of an output lie inside
        table = weights
        for axis, (n, taps) in enumerate(zip(problem.out_size, problem.kernel_size, strict=True)):
            inside = np.asarray(problem.source_indices(axis, 0, n)) >= 0
            places = (
                np.arange(n)[:, None] * problem.strides[axis]
                + np.arange(taps) * problem.dilation_rate[axis]
            )
            kept = inside[places] if axis in axes else np.ones((n, taps), bool)
            kinds, of_output = np.unique(kept, axis=0, return_inverse=True)
            table = np.moveaxis(
                np.einsum("ct,t...->c...", kinds.astype(np.float64), np.moveaxis(table, axis, 0)),
                0,
                axis,
            )
            self.classes.append(of_output.reshape(-1))
            self.whole.append(np.asarray(kept.all(axis=1)))
        self.table = table  # (classes along depth, height, width)

    def at(self, part: Box, real: np.dtype[np.float64]) -> NDArray[np.float64]:
        """The coverage of a box of outputs (d, h, w, 1)."""
        return self.table[
            np.ix_(*(of[a:b] for of, (a, b) in zip(self.classes, part, strict=True)))
        ].astype(real)[..., None]

    def edges(self, part: Box) -> Iterator[tuple[Box, Box]]:
        """Boxes of the outputs in `part` with a tap outside, each with the box of outputs whose coverage it has.

        The second box is 1 long along an axis where coverage does not change.
        """
        depth, height, width = (self._runs(axis, span) for axis, span in enumerate(part))
        for (planes, own_planes, d), (rows, own_rows, h), (
            columns,
            own_columns,
            w,
        ) in itertools.product(depth, height, width):
            if not (d and h and w):
                yield Box(planes, rows, columns), Box(own_planes, own_rows, own_columns)

    def _runs(self, axis: int, span: Span) -> list[tuple[Span, Span, bool]]:
        """Split a span into runs whose taps all lie inside and runs at the edge: (run, span of coverage, inside?)."""
        start, stop = span
        flags = self.whole[axis][start:stop]
        cuts = [0, *(np.flatnonzero(np.diff(flags.astype(np.int8))) + 1).tolist(), stop - start]
        found = []
        for a, b in itertools.pairwise(cuts):
            same = bool(flags[a])
            run = (start + a, start + b)
            found.append((run, (run[0], run[0] + 1) if same else run, same))
        return found

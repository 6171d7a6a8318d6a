"""Find the outputs whose windows hold missing voxels or no voxel at all, and boxes around them.

The engine flags blocks of input voxels by their certainty (`engine.weighting.certainty_flags`);
this module derives flags for blocks of outputs. The window of an output block is the product of
its positions along depth, height and width, so each axis is treated on its own.
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

UNITS = (1, BLOCK_ROWS, BLOCK_COLUMNS)  # size of a block of input voxels with common flags


class BlockFlags(NamedTuple):
    """Flags of blocks of outputs, each an array (d, h, w) of bool with one value per block.

    incomplete : some certainty in the block's window is not 1
    present : some certainty in the window is above 0
    in_mask : the mask is above 0 under the centre of some output of the block
    """

    incomplete: Flags
    present: Flags
    in_mask: Flags


class CertaintySource(NamedTuple):
    """Voxels that may be missing.

    certainty : Certainty
    scale : (slope, intercept)      of the stored voxels
    real : dtype                    of the arithmetic, float32 or float64
    """

    certainty: Certainty
    scale: tuple[float, float]
    real: np.dtype[Any]


def classify_blocks(
    source: NDArray[Any],
    positions: Positions,
    problem: ConvProblem,
    region: Box,
    block: Triple,
    voxels: CertaintySource | None,
    team: Team,
) -> BlockFlags:
    """Flags of each block of outputs in a region of a slab.

    source : (planes, rows, columns, c)     input of the slab: voxels, or a mask if `voxels` is None
    positions : 3 lists     for every depth, height and width position that taps span, its index
                            along that axis of `source`; -1 outside the volume
    region : Box            outputs to classify; it spans the whole height and width
    block : Triple          outputs per block along each axis
    voxels : CertaintySource or None
    Voxels outside the volume count as data, unless the boundary renormalizes.
    """
    (start, stop), stride = region[0], problem.strides[0]
    planes = positions[0][start * stride : (stop - 1) * stride + problem.extent[0]]
    inside = [plane for plane in planes if plane >= 0] or [0]
    first, last = min(inside), max(inside) + 1
    certainty, scale, real = (None, (1.0, 0.0), source.dtype) if voxels is None else voxels
    flags = certainty_flags(source[first:last], certainty, scale, real, team)
    depth_positions = (plane - first if plane >= 0 else -1 for plane in planes)
    tap_positions = (tuple(depth_positions), tuple(positions[1]), tuple(positions[2]))
    sizes = (stop - start, region[1][1], region[2][1])
    windows, centres, (depth, height, width) = zip(
        *(
            _axis_windows(
                problem, axis, tap_positions[axis], sizes[axis], block[axis], flags.shape[axis]
            )
            for axis in range(3)
        ),
        strict=True,
    )
    outside = depth[:, None, None] | height[None, :, None] | width
    incomplete, present = (_any_flagged(windows, flags & bit != 0) for bit in (INCOMPLETE, PRESENT))
    if problem.boundary.renormalizes:
        incomplete = incomplete | outside
    else:
        present = present | outside
    return BlockFlags(incomplete, present, _any_flagged(centres, flags & IN_MASK != 0))


@lru_cache(maxsize=16)
def _axis_windows(
    problem: ConvProblem, axis: int, positions: tuple[int, ...], size: int, step: int, units: int
) -> tuple[Flags, Flags, Flags]:
    """The windows of blocks of outputs along one axis.

    positions : index in the source of each position that taps span, -1 outside the volume
    size, step : outputs along the axis, and outputs per block
    units : blocks of input voxels along the axis
    Returns (windows, centres, outside). windows (blocks, units): the input blocks in the window of
    each output block. centres (blocks, units): the input blocks under the centres of its outputs.
    outside (blocks,): whether its window reaches outside the volume.
    """
    stride, extent = problem.strides[axis], problem.extent[axis]
    centre = math.floor(problem.centre[axis] * problem.dilation_rate[axis])
    indices = np.asarray(positions)
    unit = np.where(indices >= 0, indices // UNITS[axis], units)  # one extra unit for the outside
    blocks = -(-size // step)
    windows = np.zeros((blocks, units + 1), bool)
    centres = np.zeros((blocks, units + 1), bool)
    for number, start in enumerate(range(0, size, step)):
        first, last = start * stride, (min(start + step, size) - 1) * stride
        windows[number, unit[first : last + extent]] = True
        centres[number, unit[first + centre : last + centre + 1 : stride]] = True
    return windows[:, :-1], centres[:, :-1], windows[:, -1]


def _any_flagged(windows: Sequence[Flags], flags: Flags) -> Flags:
    """Whether each window holds a flagged block.

    windows : 3 arrays (output blocks, input blocks), one per axis
    A matrix product of bool arrays is an "or" of "and"s.
    """
    depth, height, width = windows
    along = (depth @ flags.reshape(len(flags), -1)).reshape(-1, *flags.shape[1:])
    return np.asarray(np.matmul(np.matmul(height, along), width.T))


def boxes_around(wanted: Flags, block: Triple, region: Box, halo: Triple) -> list[Box]:
    """Disjoint boxes of outputs that cover all wanted blocks.

    wanted : (d, h, w) bool     one flag per block of the region
    block : Triple              outputs per block along each axis
    halo : Triple               size along each axis of a window's overlap with the next, in outputs
    Two boxes are joined where that saves work, estimated as the product of size + halo over the
    three axes.

    >>> wanted = np.zeros((1, 4, 9), bool)
    >>> wanted[0, 1:3, 1] = wanted[0, 0, 8] = True
    >>> for box in boxes_around(wanted, (4, 10, 10), Box.whole((4, 40, 85)), (2, 2, 2)):
    ...     print(*box)
    (0, 4) (0, 10) (80, 85)
    (0, 4) (10, 30) (10, 20)
    """

    def work(box: Box) -> int:
        return math.prod(
            (b - a) * step + margin for (a, b), step, margin in zip(box, block, halo, strict=True)
        )

    boxes: list[Box] = []  # counted in blocks
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
    """The outputs in a box of blocks."""
    depth, height, width = (
        (first + a * step, min(first + b * step, last))
        for (a, b), step, (first, last) in zip(box, block, region, strict=True)
    )
    return Box(depth, height, width)


def _disjoint(boxes: list[Box]) -> list[Box]:
    """The boxes, after each two that overlap are replaced by the box around both."""
    for first, second in itertools.combinations(range(len(boxes)), 2):
        if not boxes[first].intersect(boxes[second]).is_empty:
            rest = [box for number, box in enumerate(boxes) if number not in (first, second)]
            return _disjoint([*rest, boxes[first].hull(boxes[second])])
    return boxes


def runs_of(flags: Any) -> list[tuple[int, int, int]]:
    """Runs of set flags (rows, columns) along each row, as (row, start, stop).

    >>> runs_of(np.array([[True, True, False, True], [False, True, True, False]]))
    [(0, 0, 2), (0, 3, 4), (1, 1, 3)]
    """
    changes = np.diff(np.pad(flags.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(changes > 0)
    stops = np.nonzero(changes < 0)[1]
    return list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))


def strips_of(flags: Flags, block: Triple, region: Box) -> list[Box]:
    """The outputs of flagged blocks, as disjoint strips along the width.

    A strip spans the whole depth where the blocks of all planes are flagged.
    """
    through = np.asarray(flags.all(axis=0))
    runs = [((0, len(flags)), run) for run in runs_of(through)]
    for plane, rest in enumerate(flags & ~through):
        runs += [((plane, plane + 1), run) for run in runs_of(rest)]
    return [
        _outputs(Box(planes, (band, band + 1), (a, b)), block, region)
        for planes, (band, a, b) in runs
    ]


def count_outside(flags: Flags, block: Triple, region: Box, boxes: Iterable[Box]) -> int:
    """The number of outputs in flagged blocks that no box covers; boxes are whole blocks."""
    left = flags_outside(flags, block, region, boxes)
    depth, height, width = (
        np.diff([*range(0, b - a, n), b - a]) for (a, b), n in zip(region, block, strict=True)
    )
    return int(np.einsum("dhw,d,h,w->", left, depth, height, width))


def flags_outside(flags: Flags, block: Triple, region: Box, boxes: Iterable[Box]) -> Flags:
    """The flags (d, h, w), cleared for blocks that a box covers; boxes are whole blocks."""
    left = flags.copy()
    for box in boxes:
        blocks = (
            ((a - first) // n, -((first - b) // n))
            for (a, b), (first, _), n in zip(box, region, block, strict=True)
        )
        left[Box(*blocks).slices] = False
    return left


class EdgeCoverage:
    """The coverage of each output if only voxels outside the volume are missing.

    Outputs with the same taps outside along an axis form a class, so there are few different
    coverages.

    weights : (kd, kh, kw)      of sum 1
    axes : sequence of int      the axes along which voxels outside are missing; along the other
                                axes they are data
    """

    def __init__(
        self, problem: ConvProblem, weights: NDArray[np.float64], axes: Sequence[int] = (0, 1, 2)
    ) -> None:
        self.classes: list[NDArray[np.int64]] = []  # the class of each output along each axis
        self.complete: list[Flags] = []  # along each axis, whether all taps of an output lie inside
        table = weights
        for axis, (n, taps) in enumerate(zip(problem.out_size, problem.kernel_size, strict=True)):
            inside = np.asarray(problem.source_indices(axis, 0, n)) >= 0
            positions = (
                np.arange(n)[:, None] * problem.strides[axis]
                + np.arange(taps) * problem.dilation_rate[axis]
            )
            is_data = inside[positions] if axis in axes else np.ones((n, taps), bool)
            classes, class_of_output = np.unique(is_data, axis=0, return_inverse=True)
            sums = np.einsum(
                "ct,t...->c...", classes.astype(np.float64), np.moveaxis(table, axis, 0)
            )
            table = np.moveaxis(sums, 0, axis)
            self.classes.append(class_of_output.reshape(-1))
            self.complete.append(np.asarray(is_data.all(axis=1)))
        self.table = table  # coverage (classes along depth, height, width)

    def at(self, outputs: Box, real: np.dtype[np.float64]) -> NDArray[np.float64]:
        """The coverage of a box of outputs (d, h, w, 1), of dtype `real`."""
        classes = (
            class_of_output[start:stop]
            for class_of_output, (start, stop) in zip(self.classes, outputs, strict=True)
        )
        return self.table[np.ix_(*classes)].astype(real)[..., None]

    def edges(self, outputs: Box) -> Iterator[tuple[Box, Box]]:
        """Split the outputs with a tap outside the volume into boxes.

        outputs : Box       only outputs in it are considered
        Yields (box, source): the coverage of `box` is that of the outputs in `source`, which is 1
        long along the axes on which coverage does not change.
        """
        runs = (self._runs(axis, span) for axis, span in enumerate(outputs))
        for depth, height, width in itertools.product(*runs):
            if not (depth.inside and height.inside and width.inside):
                yield (
                    Box(depth.span, height.span, width.span),
                    Box(depth.coverage, height.coverage, width.coverage),
                )

    def _runs(self, axis: int, span: Span) -> list[_Run]:
        """Split a span into runs whose taps all lie inside the volume and runs at its edges."""
        start, stop = span
        flags = self.complete[axis][start:stop]
        cuts = [0, *(np.flatnonzero(np.diff(flags.astype(np.int8))) + 1).tolist(), stop - start]
        runs = []
        for a, b in itertools.pairwise(cuts):
            inside = bool(flags[a])
            run = (start + a, start + b)
            runs.append(_Run(run, (run[0], run[0] + 1) if inside else run, inside))
        return runs


class _Run(NamedTuple):
    """Consecutive outputs along an axis.

    span : the outputs
    coverage : the outputs whose coverage they have
    inside : all taps lie inside the volume
    """

    span: Span
    coverage: Span
    inside: bool

"""Windows: which outputs see voxels that are missing, or any at all; and boxes of outputs around them.

Weights are known for blocks of input voxels (see `engine.survey`), and asked for in blocks of outputs. What an output block
sees is a product of positions along depth, height and width, so it is found axis by axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.normalize import BLOCK_COLUMNS, BLOCK_ROWS, HOLDING, INSIDE, LACKING
from conv3d_cli.model.spec import ConvProblem

Flags = NDArray[np.bool_]
Triple = tuple[int, int, int]
Span = tuple[int, int]
Part = tuple[Span, Span, Span]  # (start, stop) along depth, height and width

UNITS = (1, BLOCK_ROWS, BLOCK_COLUMNS)  # input voxels that a survey tells of together


class Sight(NamedTuple):
    """What blocks of outputs see, (d, h, w) each.

    lacking : some weight in the window is not 1
    holding : some weight in it is above 0
    inside : the mask is, under some output's centre
    """

    lacking: Flags
    holding: Flags
    inside: Flags


def sight(
    found: NDArray[np.uint8], problem: ConvProblem, positions: Sequence[Sequence[int]], size: Triple, block: Triple
) -> Sight:
    """What blocks of a slab's outputs see.

    found : (planes, row blocks, column blocks)     a survey of the slab's input
    positions : along each axis, for every position of the taps its place in that input, -1 outside
    size, block : outputs, and those of a block
    Outside counts as data, unless the boundary renormalizes.
    """
    windows: list[Flags] = []
    centres: list[Flags] = []
    beyond: list[Flags] = []
    for axis, (indices, n, step) in enumerate(zip(positions, size, block, strict=True)):
        places = np.asarray(indices)
        units = np.where(places >= 0, places // UNITS[axis], found.shape[axis])  # the last column is outside
        stride, extent = problem.strides[axis], problem.extent[axis]
        first = math.floor(problem.centre[axis] * problem.dilation_rate[axis])
        seen = np.zeros((2, -(-n // step), found.shape[axis] + 1), bool)
        for number, start in enumerate(range(0, n, step)):
            stop = min(start + step, n)
            seen[0, number, units[start * stride : (stop - 1) * stride + extent]] = True
            seen[1, number, units[start * stride + first : (stop - 1) * stride + first + 1 : stride]] = True
        windows.append(seen[0, :, :-1])
        centres.append(seen[1, :, :-1])
        beyond.append(seen[0, :, -1])
    outside = beyond[0][:, None, None] | beyond[1][None, :, None] | beyond[2]
    lacking, holding = (_reached(windows, found & bit != 0) for bit in (LACKING, HOLDING))
    if problem.boundary.renormalizes:
        lacking = lacking | outside
    else:
        holding = holding | outside
    return Sight(lacking, holding, _reached(centres, found & INSIDE != 0))


def _reached(windows: Sequence[Flags], blocks: Flags) -> Flags:
    """Which outputs' windows meet one of the blocks. (A product of truth values is an "or" of "and"s.)"""
    depth, height, width = windows
    along = (depth @ blocks.reshape(len(blocks), -1)).reshape(-1, *blocks.shape[1:])
    return np.asarray(np.matmul(np.matmul(height, along), width.T))


def boxes_around(wanted: Flags, block: Triple, size: Triple, halo: Triple) -> list[Part]:
    """Boxes of outputs, none of which meet, that hold all wanted blocks: few, for the work is about Π (size + halo) of each.

    >>> wanted = np.zeros((1, 4, 9), bool)
    >>> wanted[0, 1:3, 1] = wanted[0, 0, 8] = True
    >>> boxes_around(wanted, (4, 10, 10), (4, 40, 85), (2, 2, 2))
    [((0, 4), (0, 10), (80, 85)), ((0, 4), (10, 30), (10, 20))]
    """

    def work(box: Part) -> int:
        return math.prod((b - a) * step + beside for (a, b), step, beside in zip(box, block, halo, strict=True))

    boxes: list[Part] = []  # in blocks
    for band in range(wanted.shape[1]):
        for columns in runs_of(np.asarray(wanted[:, band].any(axis=0))):
            planes = np.flatnonzero(wanted[:, band, slice(*columns)].any(axis=1))
            box: Part = ((int(planes[0]), int(planes[-1]) + 1), (band, band + 1), columns)
            for number, other in enumerate(boxes):
                if other[1][1] < band:
                    continue
                joined = _around(box, other)
                if work(joined) <= work(box) + work(other):
                    boxes[number] = joined
                    break
            else:
                boxes.append(box)
    boxes = _apart(boxes)
    return [
        tuple((a * step, min(b * step, n)) for (a, b), step, n in zip(box, block, size, strict=True))  # type: ignore[misc]
        for box in sorted(boxes, key=lambda box: box[1])
    ]


def _around(first: Part, second: Part) -> Part:
    depth, height, width = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(first, second, strict=True))
    return depth, height, width


def _apart(boxes: list[Part]) -> list[Part]:
    """Boxes that meet made one."""
    for first, second in itertools.combinations(range(len(boxes)), 2):
        if all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(boxes[first], boxes[second], strict=True)):
            rest = [box for number, box in enumerate(boxes) if number not in (first, second)]
            return _apart([*rest, _around(boxes[first], boxes[second])])
    return boxes


def runs_of(flags: Flags) -> Iterator[Span]:
    """Where flags are set: (start, stop) of each run.

    >>> list(runs_of(np.array([True, True, False, True])))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return ((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def strips_of(flags: Flags, block: Triple, size: Triple) -> Iterator[tuple[slice, slice, slice]]:
    """The outputs of flagged blocks, as runs along the width."""
    for plane, band in itertools.product(*map(range, flags.shape[:2])):
        for columns in runs_of(flags[plane, band]):
            spans = ((plane, plane + 1), (band, band + 1), columns)
            depth, height, width = (
                slice(a * step, min(b * step, n)) for (a, b), step, n in zip(spans, block, size, strict=True)
            )
            yield depth, height, width


class EdgeCoverage:
    """What means hold of the kernel's weight where nothing is missing but what lies outside the volume.

    Outputs that leave the same taps outside along an axis are of one class there, so there are few different coverages.

    weights : (kd, kh, kw)      of sum 1
    axes : those along which voxels outside are missing; along others they are data
    """

    def __init__(self, problem: ConvProblem, weights: NDArray[np.float64], axes: Sequence[int] = (0, 1, 2)) -> None:
        self.classes: list[NDArray[np.int64]] = []  # of every output along each axis
        self.whole: list[Flags] = []  # whether an output leaves no tap outside
        table = weights
        for axis, (n, taps) in enumerate(zip(problem.out_size, problem.kernel_size, strict=True)):
            inside = np.asarray(problem.source_indices(axis, 0, n)) >= 0
            places = np.arange(n)[:, None] * problem.strides[axis] + np.arange(taps) * problem.dilation_rate[axis]
            kept = inside[places] if axis in axes else np.ones((n, taps), bool)
            kinds, of_output = np.unique(kept, axis=0, return_inverse=True)
            table = np.moveaxis(
                np.einsum("ct,t...->c...", kinds.astype(np.float64), np.moveaxis(table, axis, 0)), 0, axis
            )
            self.classes.append(of_output.reshape(-1))
            self.whole.append(np.asarray(kept.all(axis=1)))
        self.table = table  # (classes along depth, height, width)

    def at(self, part: Part, real: np.dtype[np.float64]) -> NDArray[np.float64]:
        """The coverage of a box of outputs (d, h, w, 1)."""
        return self.table[np.ix_(*(of[a:b] for of, (a, b) in zip(self.classes, part, strict=True)))].astype(real)[
            ..., None
        ]

    def edges(self, part: Part) -> Iterator[tuple[Part, Part]]:
        """The outputs of a box that leave a tap outside, in boxes; and for each the box of coverage that stands for it.

        The second is 1 long where coverage is the same along that axis.
        """
        depth, height, width = (self._runs(axis, span) for axis, span in enumerate(part))
        for (planes, own_planes, d), (rows, own_rows, h), (columns, own_columns, w) in itertools.product(
            depth, height, width
        ):
            if not (d and h and w):
                yield (planes, rows, columns), (own_planes, own_rows, own_columns)

    def _runs(self, axis: int, span: Span) -> list[tuple[Span, Span, bool]]:
        """A span in runs of outputs that leave no tap outside and others: (run, what stands for it, whether they do not)."""
        start, stop = span
        flags = self.whole[axis][start:stop]
        cuts = [0, *(np.flatnonzero(np.diff(flags.astype(np.int8))) + 1).tolist(), stop - start]
        found = []
        for a, b in itertools.pairwise(cuts):
            same = bool(flags[a])
            run = (start + a, start + b)
            found.append((run, (run[0], run[0] + 1) if same else run, same))
        return found

"""Grids: dilation divides the outputs into grids of every d-th voxel, each a dense convolution.

Taps are d voxels apart, so outputs d apart read inputs d apart and no others. An algorithm for
dense kernels computes each grid by itself: its tasks read and write every d-th voxel, by tables of
offsets and by strides (`loops/drive.py`). So a task's arrays stay as small as without dilation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.views import OUTSIDE_OFFSET
from conv3d_cli.model.box import Box, Size
from conv3d_cli.model.spec import ConvProblem, Triple

# Planes that a step should not exceed by much: slabs have whole steps, and deep ones take memory.
SLAB_PLANES = 32
LEAST_PLANES = 2  # of a grid


class Grids(NamedTuple):
    """How dilation divides a problem.

    problem : ConvProblem   the dense convolution of the largest grid, in a slab of `SLAB_PLANES`
    apart : (D, H, W)       distance of the voxels of a grid; the number of grids along each axis
    """

    problem: ConvProblem
    apart: Triple

    @property
    def total(self) -> int:
        """The number of grids."""
        return math.prod(self.apart)

    def largest(self, size: Triple) -> Size:
        """The outputs of the largest grid of a region.

        >>> Grids(None, (1, 2, 5)).largest((3, 3, 3))
        Size(depth=3, height=2, width=1)
        """
        return Size(*(-(-n // apart) for n, apart in zip(size, self.apart, strict=True)))

    def offset(self, number: int) -> Triple:
        """The first voxel of a grid.

        >>> Grids(None, (1, 2, 5)).offset(7)
        (0, 1, 2)
        """
        rest, width = divmod(number, self.apart[2])
        depth, height = divmod(rest, self.apart[1])
        return depth, height, width

    def outputs(self, size: Triple, number: int) -> Size:
        """The outputs of a grid in a region; there may be none.

        >>> Grids(None, (1, 2, 5)).outputs((3, 3, 3), 9)
        Size(depth=3, height=1, width=0)
        """
        axes = zip(size, self.offset(number), self.apart, strict=True)
        return Size(*(max(0, -(-(n - first) // apart)) for n, first, apart in axes))

    def spread(self, size: tuple[int, ...]) -> Size:
        """The voxels that so many of a grid span, with those of all other grids between them."""
        return Size(*(n * apart for n, apart in zip(size, self.apart, strict=True)))

    def of_all(self, problem: ConvProblem, seconds: float) -> float:
        """The time of a problem whose grids these are, from that of `self.problem`."""
        if self.total == 1:
            return seconds
        parts = math.prod(problem.out_size) / max(1, math.prod(self.problem.out_size))
        return seconds * parts

    def around(self, box: Box) -> Box:
        """A box of all grids as a box of the region."""
        starts = [start * apart for (start, _), apart in zip(box, self.apart, strict=True)]
        return Box.at((starts[0], starts[1], starts[2]), self.spread(box.size))


def tables_by_grid(table: NDArray[np.int64], apart: int) -> NDArray[np.int64]:
    """A table of offsets by grid, (grids, positions); short ones end with positions outside.

    >>> tables_by_grid(np.arange(5), 2)[0].tolist()
    [0, 2, 4]
    """
    if apart == 1:
        return table[None]
    positions = -(-len(table) // apart)
    padded = np.full(positions * apart, OUTSIDE_OFFSET, np.int64)
    padded[: len(table)] = table
    return np.ascontiguousarray(padded.reshape(positions, apart).T)


def undivided(problem: ConvProblem) -> Grids:
    """One grid, of all voxels."""
    return Grids(problem, (1, 1, 1))


@lru_cache(maxsize=256)
def grids_of(problem: ConvProblem) -> Grids:
    """The grids of a problem; one if it is dense, or has strides.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> spec = ConvSpec(padding="same", dilation_rate=(2, 1, 4))
    >>> grids = grids_of(spec.resolve((1, 8, 8, 9, 1), (3, 3, 3, 1, 1)))
    >>> grids.apart, grids.problem.out_size, grids.problem.extent
    ((2, 1, 4), (4, 8, 3), (3, 3, 3))
    """
    apart: list[int] = [
        rate if taps > 1 else 1
        for rate, taps in zip(problem.dilation_rate, problem.kernel_size, strict=True)
    ]
    if problem.strides != (1, 1, 1) or math.prod(apart) == 1:
        return undivided(problem)
    three = apart[0], apart[1], apart[2]
    depth, height, width = (-(-n // d) for n, d in zip(problem.out_size, three, strict=True))
    if three[0] > 1:
        depth = min(depth, max(LEAST_PLANES, SLAB_PLANES // three[0]))
    out = depth, height, width
    reach = [n + taps - 1 for n, taps in zip(out, problem.kernel_size, strict=True)]
    dense = replace(
        problem,
        in_size=(reach[0], reach[1], reach[2]),
        out_size=out,
        dilation_rate=(1, 1, 1),
        pad_before=(0, 0, 0),
        pad_after=(0, 0, 0),
    )
    return Grids(dense, three)

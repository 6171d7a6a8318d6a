"""The direct sum: every tap of the kernel, in a fixed order, for any problem.

It is the definition made quick enough: taps are a table of offsets into the packed tile, taken eight at a time over a
whole row of outputs, so the compiler's vectors run along the width. It accepts every legal problem; the other algorithms
are measured and tested against it.

Order of summation of one output voxel (the same for any tile, slab or thread): taps in (channel, kd, kh, kw) order, in
blocks of 8, blocks in chunks of 64. So rounding grows with 8 + 64 + taps/512, not with the taps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.jit import compiled
from conv3d_cli.engine.tile import Algorithm, TileLayout, plan_tile
from conv3d_cli.model.spec import ConvProblem

# Bytes of scratch and accumulator a tile may take: about a common L2, so that a packed tile is read from it.
TILE_BYTES = 1 << 20


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """None: it takes everything."""
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time: measured rates of one thread (2026-11, AVX-512 server core), packing and storing included."""
    voxels = math.prod(problem.out_shape)
    return (problem.flops / 30e9 + voxels * 1.5e-9) / threads


class Prepared:
    """The weights and offsets of one problem, ready for any of its tiles."""

    def __init__(self, problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> None:
        self.problem, self.dtype = problem, dtype
        self.layout: TileLayout = plan_tile(problem, dtype, TILE_BYTES)
        # (filters, taps); the filters of a group stand together, as in Keras
        self.weights = np.ascontiguousarray(
            weights.transpose(4, 3, 0, 1, 2).reshape(problem.filters, problem.taps), dtype=dtype
        )
        self.offsets = self.layout.tap_offsets(problem)

    def new_workspace(self) -> NDArray[Any]:
        """What one thread needs besides the tile: a row of partial sums."""
        return np.empty(self.layout.tile.width, self.dtype)

    def convolve_tile(
        self, group: int, scratch: NDArray[Any], accumulator: NDArray[Any], workspace: NDArray[Any]
    ) -> None:
        """Sum the taps of one group over a packed tile.

        scratch : flat, packed by this layout
        accumulator : (filters of the group, d, h, w), overwritten
        """
        problem, layout = self.problem, self.layout
        first = group * problem.filters_per_group
        direct_loops(
            scratch, self.offsets, self.weights[first : first + problem.filters_per_group],
            layout.plane_step * problem.strides[0], layout.row_step * problem.strides[1], workspace, accumulator,
        )  # fmt: skip


@compiled
def _row(scratch, start, width):
    # As a slice: a sum of signed indices would be tested for negative values and keep the loop from being vectorised.
    return scratch[start : start + width]


@compiled
def direct_loops(scratch, offsets, weights, plane_step, row_step, partial, out):
    # scratch: flat; offsets (T,); weights (F, T); partial: (>= w,); out: (F, d, h, w)
    filters, depth, height, width = out.shape
    taps = offsets.size
    for od in range(depth):
        for oh in range(height):
            base = od * plane_step + oh * row_step
            for f in range(filters):
                for chunk in range(0, taps, 512):
                    row = out[f, od, oh] if chunk == 0 else partial
                    for ow in range(width):
                        row[ow] = 0
                    stop = min(chunk + 512, taps)
                    t = chunk
                    while t + 8 <= stop:
                        w0, w1, w2, w3 = weights[f, t], weights[f, t + 1], weights[f, t + 2], weights[f, t + 3]
                        w4, w5, w6, w7 = weights[f, t + 4], weights[f, t + 5], weights[f, t + 6], weights[f, t + 7]
                        x0, x1 = _row(scratch, base + offsets[t], width), _row(scratch, base + offsets[t + 1], width)
                        x2, x3 = (
                            _row(scratch, base + offsets[t + 2], width),
                            _row(scratch, base + offsets[t + 3], width),
                        )
                        x4, x5 = (
                            _row(scratch, base + offsets[t + 4], width),
                            _row(scratch, base + offsets[t + 5], width),
                        )
                        x6, x7 = (
                            _row(scratch, base + offsets[t + 6], width),
                            _row(scratch, base + offsets[t + 7], width),
                        )
                        for ow in range(width):
                            total = x0[ow] * w0
                            total += x1[ow] * w1
                            total += x2[ow] * w2
                            total += x3[ow] * w3
                            total += x4[ow] * w4
                            total += x5[ow] * w5
                            total += x6[ow] * w6
                            total += x7[ow] * w7
                            row[ow] += total
                        t += 8
                    while t < stop:
                        w0, x0 = weights[f, t], _row(scratch, base + offsets[t], width)
                        for ow in range(width):
                            row[ow] += x0[ow] * w0
                        t += 1
                    if chunk > 0:
                        for ow in range(width):
                            out[f, od, oh, ow] += partial[ow]


ALGORITHM = Algorithm(
    name="direct",
    summary="every tap in turn; any kernel, stride, dilation, group and dtype",
    reject=reject,
    prepare=Prepared,
    seconds=seconds,
)

"""The end of a tile: bias, activation, rounding, saturation, and the store in the output's dtype and order.

It runs on the tile's accumulator while that is still in the cache, so none of it costs a pass over the volume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.jit import compiled
from conv3d_cli.engine.packing import FlatView

Activation = Callable[[NDArray[Any]], None]  # in place


def finish_tile(
    accumulator: NDArray[Any],
    bias: NDArray[Any] | None,
    activation: Activation | None,
    out: FlatView,
    offset: int,
) -> int:
    """Add the bias, apply the activation, and store; return how many voxels an integer dtype could not hold.

    accumulator : (filters, d, h, w)        changed in place
    out : FlatView of a (D, H, W, C) array; `offset` is the element of the tile's first voxel and filter
    """
    if bias is not None:
        accumulator += bias[:, None, None, None]
    if activation is not None:
        activation(accumulator)
    plane_step, row_step, column_step, filter_step = out.strides
    steps = (filter_step, plane_step, row_step, column_step)
    if out.flat.dtype.kind == "f":
        store_float_loops(accumulator, out.flat, offset, *steps)
        return 0
    limits = np.iinfo(out.flat.dtype)
    # both ends as float64: the minimum is exact, and so is maximum + 1, a power of two
    ends = np.array([limits.min, limits.max], out.flat.dtype)
    return int(
        store_integer_loops(accumulator, out.flat, offset, *steps, ends, float(limits.min), float(limits.max + 1))
    )


@compiled
def store_float_loops(accumulator, out, offset, filter_step, plane_step, row_step, column_step):
    # accumulator: (F, d, h, w); out: flat
    filters, depth, height, width = accumulator.shape
    for f in range(filters):
        for i in range(depth):
            for j in range(height):
                to = offset + f * filter_step + i * plane_step + j * row_step
                values = accumulator[f, i, j]
                if column_step == 1:
                    row = out[to : to + width]
                    for k in range(width):
                        row[k] = values[k]
                else:
                    for k in range(width):
                        out[to + k * column_step] = values[k]


@compiled
def store_integer_loops(
    accumulator, out, offset, filter_step, plane_step, row_step, column_step, ends, lowest, beyond
):  # fmt: skip
    # accumulator: (F, d, h, w); out: flat; values are rounded half to even and saturated; NaN becomes 0 and is counted
    filters, depth, height, width = accumulator.shape
    clipped = 0
    zero = ends[0] - ends[0]
    for f in range(filters):
        for i in range(depth):
            for j in range(height):
                to = offset + f * filter_step + i * plane_step + j * row_step
                for k in range(width):
                    value = np.rint(np.float64(accumulator[f, i, j, k]))
                    if lowest <= value < beyond:
                        out[to + k * column_step] = value
                    else:
                        clipped += 1
                        if value >= beyond:
                            out[to + k * column_step] = ends[1]
                        elif value < lowest:
                            out[to + k * column_step] = ends[0]
                        else:
                            out[to + k * column_step] = zero
    return clipped

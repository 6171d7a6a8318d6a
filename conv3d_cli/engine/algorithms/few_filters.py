"""Few filters over many channels: vectors along the channels, whose lanes are summed per voxel.

Vectors along one or three filters would be nearly empty. The algorithm runs the depthwise
micro-kernel (`loops/depthwise.py`) with items for every vector of channels. If the channels do not
fill whole vectors, the last vector overlaps the one before, with zero weights in the shared lanes;
then steps with NaN or infinity are recomputed, since zero times infinity is NaN.

Order of summation of one output voxel (the same for any tile, slab, thread or CPU): in each lane,
chunks of at most about 96 terms, or the square root of all, each summed from zero; then the lanes
in pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms.channels import aligned, column_items, padded_bytes, predicted
from conv3d_cli.engine.algorithms.depthwise import (
    MOST_TAPS,
    item_taps,
    plan_layout,
    register_rows,
    split_chunks,
)
from conv3d_cli.engine.cpu import REFERENCE
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm
from conv3d_cli.model.spec import ConvProblem

LEAST_CHANNELS = 4


def vector_lanes(problem: ConvProblem, itemsize: int) -> int:
    """The number of channels of a vector, no more than a group has.

    It is the same on every CPU, since the lanes are summed in pairs.
    """
    lanes = REFERENCE.lanes * 4 // itemsize
    while lanes > problem.channels_per_group:
        lanes //= 2
    return lanes


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why it cannot compute this problem, or None: channels must fill a vector."""
    if problem.channels_per_group < LEAST_CHANNELS:
        return f"too few channels per group to fill a vector: {problem.channels_per_group}"
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    channels, lanes = problem.channels_per_group, vector_lanes(problem, 4)
    waste = -(-channels // lanes) * lanes / channels
    return predicted(problem, waste, lanes, problem.filters, 3e-9) / threads


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Tables of items and chunks, the weights in the order of the items, and the loops."""
    size, channels = dtype.itemsize, problem.channels_per_group
    lanes = vector_lanes(problem, size)
    stride, dilation = problem.strides[2], problem.dilation_rate[2]
    taps = item_taps(problem, MOST_TAPS)
    rows = register_rows(lanes * size, taps)
    layout = plan_layout(problem, dtype, 1)

    items = column_items(problem.kernel_size, taps)
    starts = [min(c, channels - lanes) for c in range(0, channels, lanes)]
    places = items.places(problem, layout)
    # (items, vectors): an item for every vector of channels at each of the kernel's column items
    offsets = np.add.outer(places[0], starts).ravel()
    planes = np.repeat(places[1], len(starts))
    ends = len(items.long) * len(starts), len(items.all) * len(starts)
    chunks = split_chunks(ends, taps, 1)

    runs = []
    by_filter = np.moveaxis(weights.astype(dtype), 4, 0)  # (filters, kd, kh, kw, channels)
    for some, length in ((items.long, taps), (items.short, taps - 1)):
        for d, h, w in some:
            for vector, start in enumerate(starts):
                part = by_filter[:, d, h, w : w + length, start : start + lanes].copy()
                # zeros in the lanes that the previous vector sums
                part[..., : vector * lanes - start] = 0
                runs.append(part.reshape(problem.filters, -1))
    packed = np.concatenate(runs, axis=1)

    keep = [np.ascontiguousarray(a, np.int64) for a in (offsets * size, planes, chunks)]
    unit = layout.pitch * size * (1 if taps > 1 else stride)
    parameters = np.array(
        [unit, packed.shape[1], *(a.ctypes.data for a in keep), len(chunks)], np.int64
    )
    geometry = (stride, dilation) if taps > 1 else (1, 0)
    constants = 1, taps, int(bool(items.short)), *geometry, 1, 1, rows, lanes, dtype.name
    return PreparedAlgorithm(
        layout=layout,
        convolve=machine_code("depthwise", "sum_lanes", *constants),
        pack_weights=lambda: aligned(packed),
        parameters=parameters,
        spreads_nonfinite=channels % lanes != 0,
        keep=keep,
        weight_bytes=padded_bytes(2 * packed.size, dtype, problem.taps),
    )


ALGORITHM = Algorithm(
    name="few-filters",
    summary="few filters over many channels: vectors along the channels",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

"""The depthwise sum: many groups of a channel or few, channels-last, vectors along the filters of several groups.

It runs the depthwise micro-kernel (`loops/depthwise.py`). Groups are packed, summed and stored many at a time, as they lie in
memory; planar packing of one channel would pick each number out of a cache line of its own.

Order of summation of one output voxel (the same for any tile, slab or thread): chunks of at most about 96 taps, each summed from
zero, then added up in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms.channels import (
    CHUNK_TERMS,
    aligned,
    column_items,
    cut_evenly,
    in_blocks,
    padded_bytes,
    predicted,
)
from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.tile import (
    Algorithm,
    PreparedAlgorithm,
    TileLayout,
    chunk_terms,
    voxels_layout,
)
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem

# Bytes of packed planes: most of a common L2, as halos are packed twice and memory binds.
TILE_BYTES = 5 << 17
MOST_CHANNELS = 128  # packed together, where the number of groups can be divided so
MOST_TAPS = 3  # kernel columns that share a loaded vector
MOST_ROWS = 12  # voxels of a register tile
TASKS = 24


def vector_lanes(problem: ConvProblem, itemsize: int) -> int:
    """Filters of a vector: whole groups; 0 if there is no such vector."""
    filters, channels = problem.filters_per_group, problem.channels_per_group
    lanes = cpu_class().lanes * 4 // itemsize
    while lanes > problem.filters:
        lanes //= 2
    fits = lanes % filters == 0 and channels <= filters and lanes * itemsize >= 16
    return lanes if fits else 0


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Groups must be whole parts of a vector, with no more channels than filters."""
    if problem.groups == 1:
        return "the channels are not in groups"
    if min(vector_lanes(problem, 4), vector_lanes(problem, 8)) == 0:
        return f"groups of {problem.channels_per_group} channels and {problem.filters_per_group} filters do not fill vectors"
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time."""
    lanes = vector_lanes(problem, 4)
    filters = groups_together(problem, lanes) * problem.filters_per_group
    vectors = problem.filters // filters * -(-filters // lanes)
    # a shuffle for nearly every multiplication
    shuffled = 1.4 if problem.channels_per_group > 1 else 1.0
    return (
        predicted(problem, shuffled * vectors * lanes / problem.filters, lanes, vectors) / threads
    )


def groups_together(problem: ConvProblem, lanes: int) -> int:
    """How many groups are packed at once: a divisor of their number, of whole vectors if there is one."""
    filters = problem.filters_per_group
    divisors = [
        n for n in range(1, problem.groups + 1) if problem.groups % n == 0 and n * filters >= lanes
    ]
    small = [n for n in divisors if n * filters <= MOST_CHANNELS] or divisors[:1]
    return max(small, key=lambda n: (n * filters % lanes == 0, n))


def item_taps(problem: ConvProblem, most: int) -> int:
    """Kernel columns in an item: parts of nearly equal length where outputs share what they read, else one."""
    stride, dilation, kw = problem.strides[2], problem.dilation_rate[2], problem.kernel_size[2]
    shared = (stride == 1 and dilation <= 2) or (stride == 2 and dilation == 1)
    return -(-kw // -(-kw // min(kw, most))) if shared else 1


def cut_chunks(ends: tuple[int, int], taps: int, terms: int) -> list[tuple[int, int, int]]:
    """Chunks (first item, items, 1 for short ones) of long items up to ends[0] and short ones up to ends[1].

    terms : int     of one tap
    """
    most = chunk_terms(ends[1] * taps * terms, CHUNK_TERMS)
    chunks = []
    for short, first, last in ((0, 0, ends[0]), (1, ends[0], ends[1])):
        per_chunk = max(1, most // (max(taps - short, 1) * terms))
        chunks += [(i, min(per_chunk, last - i), short) for i in range(first, last, per_chunk)]
    return chunks


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Tables of items and chunks, and the weights in the order they are read."""
    size, cpu = dtype.itemsize, cpu_class()
    lanes = vector_lanes(problem, size)
    together = groups_together(problem, lanes)
    stride, dilation = problem.strides[2], problem.dilation_rate[2]
    taps = item_taps(problem, max(1, MOST_TAPS // problem.channels_per_group))
    rows = min(MOST_ROWS, cpu.registers - taps * problem.channels_per_group - 2)
    layout = plan_layout(problem, dtype, together)

    items = column_items(problem.kernel_size, taps)
    offsets, planes = items.places(problem, layout)
    chunks = cut_chunks((len(items.long), len(items.all)), taps, problem.channels_per_group)

    order = [tap for some, length in ((items.long, taps), (items.short, taps - 1))
             for d, h, w in some for tap in ((d, h, w + k) for k in range(length))]  # fmt: skip
    d, h, w = np.array(order).T
    filters = together * problem.filters_per_group
    starts = [min(v, filters - lanes) for v in range(0, filters, lanes)]
    in_order = weights[d, h, w].astype(dtype)  # (taps, channels, all filters)
    runs = [
        in_order[:, :, first + start : first + start + lanes].ravel()
        for first in range(0, problem.filters, filters)
        for start in starts
    ]
    keep = [np.ascontiguousarray(a, np.int64) for a in (np.array(offsets) * size, planes, chunks)]
    unit = layout.pitch * size * (1 if taps > 1 else stride)
    parameters = np.array(
        [unit, problem.taps * lanes, *(a.ctypes.data for a in keep), len(chunks)], np.int64
    )
    geometry = (stride, dilation) if taps > 1 else (1, 0)
    code = machine_code(
        "depthwise", "sum_lanes", 0, taps, int(bool(items.short)), *geometry, problem.channels_per_group,
        problem.filters_per_group, rows, lanes, dtype.name,
    )  # fmt: skip
    return PreparedAlgorithm(
        layout, code, lambda: aligned(np.concatenate(runs)), parameters, keep=keep, groups_together=together,
        weight_bytes=padded_bytes(2 * sum(run.size for run in runs), dtype, problem.taps),
    )  # fmt: skip


def plan_layout(problem: ConvProblem, dtype: np.dtype[Any], together: int) -> TileLayout:
    """Tiles whose planes and sums stay in the cache, of nearly equal size, and enough of them for all threads."""
    depth, height, width = problem.out_size
    filters = together * problem.filters_per_group

    def layout(tile: Size) -> TileLayout:
        return voxels_layout(
            problem, tile, filters=filters, channel_pitch=together * problem.channels_per_group
        )

    tile = cut_evenly(
        problem, lambda tile: layout(tile).scratch_size * dtype.itemsize <= TILE_BYTES
    )
    tasks = problem.groups // together * -(-height // tile.height) * -(-width // tile.width)
    found = layout(tile._replace(depth=min(depth, 64, max(8, -(-depth // -(-TASKS // tasks))))))
    return in_blocks(found, dtype.itemsize)


ALGORITHM = Algorithm(
    name="depthwise",
    summary="many groups of a channel or few: vectors along the filters of several groups",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

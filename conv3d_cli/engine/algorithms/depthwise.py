"""The depthwise sum: many groups of one or a few channels; vectors span the filters of many groups.

It runs the depthwise micro-kernel (`loops/depthwise.py`). Many groups at a time are packed, summed
and stored in their channels-last memory order; planar packing of one channel would read a whole
cache line for each voxel.

Order of summation of one output voxel (the same for any tile, slab or thread): chunks of at most
about 96 taps, or the square root of all, each summed from zero; then the sum of the chunks, in
registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms.channels import (
    CHUNK_TERMS,
    aligned,
    column_items,
    even_tile,
    padded_bytes,
    predicted,
    with_row_blocks,
)
from conv3d_cli.engine.cpu import REFERENCE, cpu_class
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

# Bytes of packed planes: most of a common L2, because halos are packed twice and memory is the
# bottleneck.
TILE_BYTES = 5 << 17
MOST_CHANNELS = 128  # packed together, if the number of groups has a divisor that allows it
MOST_TAPS = 3  # kernel columns that share a loaded vector
MOST_ROWS = 12  # voxels of a register tile
TASKS = 24  # the least number of tasks, so that threads end together


def vector_lanes(problem: ConvProblem, itemsize: int) -> int:
    """The number of filters of a vector, which spans whole groups; 0 if no vector fits.

    It is that of `REFERENCE`, so that every CPU accepts the same problems.
    """
    filters, channels = problem.filters_per_group, problem.channels_per_group
    lanes = REFERENCE.lanes * 4 // itemsize
    while lanes > problem.filters:
        lanes //= 2
    fits = lanes % filters == 0 and channels <= filters and lanes * itemsize >= 16
    return lanes if fits else 0


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why it cannot compute this problem, or None.

    Groups must divide a vector, with no more channels than filters.
    """
    if problem.groups == 1:
        return "the channels are not in groups"
    if min(vector_lanes(problem, 4), vector_lanes(problem, 8)) == 0:
        channels, filters = problem.channels_per_group, problem.filters_per_group
        return f"too few per group to fill vectors: channels {channels}, filters {filters}"
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    lanes = vector_lanes(problem, 4)
    filters = groups_together(problem, lanes) * problem.filters_per_group
    vectors = problem.filters // filters * -(-filters // lanes)
    # with several channels, nearly every multiplication needs a shuffle
    slower = 1.4 if problem.channels_per_group > 1 else 1.0
    used = slower * vectors * lanes / problem.filters
    return predicted(problem, used, lanes, vectors) / threads


def groups_together(problem: ConvProblem, lanes: int) -> int:
    """The number of groups packed at once: a divisor of all; it fills whole vectors if possible."""
    filters = problem.filters_per_group
    divisors = [
        n for n in range(1, problem.groups + 1) if problem.groups % n == 0 and n * filters >= lanes
    ]
    small = [n for n in divisors if n * filters <= MOST_CHANNELS] or divisors[:1]
    return max(small, key=lambda n: (n * filters % lanes == 0, n))


def item_taps(problem: ConvProblem, most: int) -> int:
    """The number of kernel columns of an item, at most `most`.

    The kernel's width is split evenly if neighbouring outputs share their input columns; otherwise
    an item is one column.
    """
    stride, dilation, kw = problem.strides[2], problem.dilation_rate[2], problem.kernel_size[2]
    shared = (stride == 1 and dilation <= 2) or (stride == 2 and dilation == 1)
    return -(-kw // -(-kw // min(kw, most))) if shared else 1


def register_rows(vector_bytes: int, weights: int) -> int:
    """The voxels of a register tile, which leave registers for so many vectors of weights.

    vector_bytes : int      of a vector; a wider one than the CPU's takes several registers
    """
    cpu = cpu_class()
    vectors = cpu.registers // -(-vector_bytes // (4 * cpu.lanes))
    return max(1, min(MOST_ROWS, vectors - weights - 2))


def split_chunks(ends: tuple[int, int], taps: int, terms: int) -> list[tuple[int, int, int]]:
    """Split items into chunks: (first item, number of items, 1 if they are short) each.

    ends : (int, int)   where the long items end, and the short ones behind them
    taps : int          kernel columns of a long item; a short item has one less
    terms : int         terms per tap
    """
    most = chunk_terms(ends[1] * taps * terms, CHUNK_TERMS)
    chunks = []
    for short, first, last in ((0, 0, ends[0]), (1, ends[0], ends[1])):
        per_chunk = max(1, most // (max(taps - short, 1) * terms))
        chunks += [(i, min(per_chunk, last - i), short) for i in range(first, last, per_chunk)]
    return chunks


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Tables of items and chunks, the weights in the order of the items, and the loops."""
    size = dtype.itemsize
    lanes = vector_lanes(problem, size)
    # narrower on a narrower CPU, if they still span whole groups: no lane is added to another
    lanes = min(lanes, max(cpu_class().lanes * 4 // size, problem.filters_per_group))
    together = groups_together(problem, lanes)
    stride, dilation = problem.strides[2], problem.dilation_rate[2]
    taps = item_taps(problem, max(1, MOST_TAPS // problem.channels_per_group))
    rows = register_rows(lanes * size, taps * problem.channels_per_group)
    layout = plan_layout(problem, dtype, together)

    items = column_items(problem.kernel_size, taps)
    offsets, planes = items.places(problem, layout)
    group_shape = problem.channels_per_group, problem.filters_per_group
    chunks = split_chunks((len(items.long), len(items.all)), taps, problem.channels_per_group)

    long_taps = [(d, h, w + k) for d, h, w in items.long for k in range(taps)]
    short_taps = [(d, h, w + k) for d, h, w in items.short for k in range(taps - 1)]
    d, h, w = np.array(long_taps + short_taps).T
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
    constants = 0, taps, int(bool(items.short)), *geometry, *group_shape, rows, lanes, dtype.name
    return PreparedAlgorithm(
        layout=layout,
        convolve=machine_code("depthwise", "sum_lanes", *constants),
        pack_weights=lambda: aligned(np.concatenate(runs)),
        parameters=parameters,
        keep=keep,
        groups_together=together,
        weight_bytes=padded_bytes(2 * sum(run.size for run in runs), dtype, problem.taps),
    )


def plan_layout(problem: ConvProblem, dtype: np.dtype[Any], together: int) -> TileLayout:
    """Tiles of nearly equal size whose planes fit the cache, and enough tasks for all threads.

    together : int      groups packed at once
    """
    depth, height, width = problem.out_size
    filters = together * problem.filters_per_group

    def layout(tile: Size) -> TileLayout:
        return voxels_layout(
            problem, tile, filters=filters, channel_pitch=together * problem.channels_per_group
        )

    tile = even_tile(problem, lambda tile: layout(tile).scratch_size * dtype.itemsize <= TILE_BYTES)
    tasks = problem.groups // together * -(-height // tile.height) * -(-width // tile.width)
    found = layout(tile._replace(depth=min(depth, 64, max(8, -(-depth // -(-TASKS // tasks))))))
    return with_row_blocks(found, dtype.itemsize)


ALGORITHM = Algorithm(
    name="depthwise",
    summary="many groups of one or a few channels: vectors along the filters of many groups",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

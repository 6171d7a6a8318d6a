"""The channel direct sum: many channels or filters, with vectors along the filters.

It runs the channel micro-kernel (`loops/channels.py`) on planes packed channels-last. Filters are
split into blocks of two vectors; an odd number of vectors ends in a block of three, or is a single
one. Filters are padded to whole vectors in the packed weights, and lanes of padding are not stored;
input is never padded, since 0 times infinity is NaN.

Order of summation of one output voxel (the same for any tile, slab, thread or CPU): chunks of at
most about 96 terms, or the square root of all, each summed from zero, then added to the sums in
memory.
Chunks are grouped into passes over blocks of input channels, so that the weights of a pass and a
block of filters stay in L2 while a step's voxels are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import REFERENCE, CpuClass, cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.tile import (
    Algorithm,
    PreparedAlgorithm,
    TileLayout,
    WeightBytes,
    chunk_terms,
    voxels_layout,
)
from conv3d_cli.engine.views import aligned_zeros
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem

CHUNK_TERMS = 96
# Weights of a pass and a block of filters: a quarter of a common L2.
PASS_BYTES = 1 << 18
# The part of a task's planes and sums that a pass reads and writes: half of a common L2.
TILE_BYTES = 1 << 19
# Sums that are stored at once: half of L1, so that sums and stores to memory alternate often (1->32
# channels: 9.5 instead of 11.1 ms).
BLOCK_BYTES = 1 << 14
# A step of fewer voxels would fetch a pass's weights into L2 for too little work.
STEP_VOXELS = 512
# The least number of tasks, if it costs little, so that threads end together.
TASKS = 24
TOGETHER = 64  # most channels or filters of the groups that are packed together
# Measured per thread, 2026-11, on Zen 4 (115 GFLOP/s a core; it computes 16 lanes in two halves, so
# 8 lanes are as fast):
FMA_RATE = 109e9
FULL_LANES = 8
PACK_TIME, STORE_TIME = 0.2e-9, 0.15e-9  # per element
SHARED_TAPS = 3  # kernel columns that share a broadcast value
SINGLE_ROWS = 14  # voxels of a register tile of one vector


class Blocks(NamedTuple):
    """The blocks of a group's filters: `pairs` of two vectors, then one of `odd` vectors (0: none).

    lanes : int                     filters of a vector
    pair_rows, odd_rows : int       voxels of a register tile
    taps : int                      most kernel columns of an item
    """

    lanes: int
    pairs: int
    odd: int
    pair_rows: int
    odd_rows: int
    taps: int

    @property
    def padded(self) -> int:
        """The number of filters, including padding."""
        return self.lanes * (2 * self.pairs + self.odd)

    @property
    def widest(self) -> int:
        """The filters of the widest block."""
        return self.lanes * max(2 if self.pairs else 0, self.odd)


class Items(NamedTuple):
    """Runs of kernel columns, each as (kernel plane, kernel row, first column).

    long : list         runs of the full length
    short : list        runs of one column less
    """

    long: list[tuple[int, int, int]]
    short: list[tuple[int, int, int]]

    @property
    def all(self) -> list[tuple[int, int, int]]:
        """The long items, then the short ones."""
        return self.long + self.short

    def places(self, problem: ConvProblem, layout: TileLayout) -> tuple[list[int], list[int]]:
        """The items' offsets in a packed plane, in elements, and their planes in the window."""
        along_d, along_h, along_w = problem.dilation_rate
        offsets = [
            h * along_h * layout.row_step + w * along_w * layout.pitch for _, h, w in self.all
        ]
        return offsets, [d * along_d for d, _, _ in self.all]


def column_items(kernel_size: tuple[int, int, int], taps: int) -> Items:
    """Split kernel rows into items of `taps` columns, and of one less for the rest.

    Taps are not padded, since 0 times infinity is NaN.

    >>> column_items((1, 1, 5), 3)
    Items(long=[(0, 0, 0)], short=[(0, 0, 3)])
    """
    kd, kh, kw = kernel_size
    parts = -(-kw // taps)
    long_parts = kw - parts * (taps - 1)
    split = long_parts * taps
    starts = range(0, split, taps), range(split, kw, max(taps - 1, 1))
    long, short = (
        [(d, h, w) for d in range(kd) for h in range(kh) for w in columns] for columns in starts
    )
    return Items(long, short)


def filter_blocks(problem: ConvProblem, itemsize: int, cpu: CpuClass) -> Blocks:
    """Split the filters of a group into blocks whose register tiles fit the CPU's registers.

    The number of taps depends on the problem alone, since it orders the sums.
    """
    lanes, filters = cpu.lanes * 4 // itemsize, problem.filters_per_group
    vectors = -(-filters // lanes)
    shared = problem.strides[2] <= 2 and problem.dilation_rate[2] <= 2
    taps = min(problem.kernel_size[2], SHARED_TAPS) if shared else 1
    if vectors == 1:
        while lanes > 4 and lanes // 2 >= filters:
            lanes //= 2
        return Blocks(lanes, 0, 1, 0, min(SINGLE_ROWS, cpu.registers - taps - 1), taps)
    odd = 3 if vectors % 2 else 0
    pairs = (vectors - odd) // 2
    pair_rows = min(cpu.channel[0], (cpu.registers - 2 * taps - 1) // 2) if pairs else 0
    odd_rows = (cpu.registers - 3 * taps - 1) // 3 if odd else 0
    return Blocks(lanes, pairs, odd, pair_rows, odd_rows, taps)


def groups_together(problem: ConvProblem, blocks: Blocks) -> int:
    """The number of groups packed and stored at once, whose channels share cache lines."""
    if blocks.padded != problem.filters_per_group:
        return 1
    widest = max(problem.channels_per_group, problem.filters_per_group)
    return max(
        n
        for n in range(1, problem.groups + 1)
        if problem.groups % n == 0 and (n == 1 or n * widest <= TOGETHER)
    )


def channel_blocks(problem: ConvProblem, taps: int, padded_bytes: int) -> tuple[int, int]:
    """The most channels of a chunk and of a pass.

    padded_bytes : int      bytes of one term's weights, for a block of filters
    """
    channels, kernel_taps = problem.channels_per_group, math.prod(problem.kernel_size)
    chunk = -(-channels // -(-channels * taps // chunk_terms(problem.taps, CHUNK_TERMS)))
    most = max(chunk, PASS_BYTES // (padded_bytes * kernel_taps) // chunk * chunk)
    passes = -(-channels // most)
    return chunk, -(-channels // passes // chunk) * chunk


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """None: it accepts every problem, but is slow if a group has only one or two filters."""
    return None


def predicted(
    problem: ConvProblem, lanes_used: float, lanes: int, sums: int, sum_time: float = 1.4e-9
) -> float:
    """One thread's predicted seconds, for an algorithm that packs channels-last.

    lanes_used : float      multiplications computed per multiplication needed
    lanes : int             float32 elements of a vector
    sums : int              sums (vectors or single ones) per voxel; each takes `sum_time` to start
                            and end
    """
    rate = FMA_RATE * min(1.0, lanes / FULL_LANES)
    voxels = math.prod(problem.out_size)
    moved = PACK_TIME * math.prod(problem.in_shape[1:]) + STORE_TIME * math.prod(
        problem.out_shape[1:]
    )
    return problem.batch * (voxels * sums * sum_time + moved) + problem.flops * lanes_used / rate


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    blocks = filter_blocks(problem, 4, REFERENCE)
    waste = blocks.padded / problem.filters_per_group
    number = blocks.pairs + (1 if blocks.odd else 0)
    return predicted(problem, waste, blocks.lanes, problem.groups * number) / threads


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Tables of items and chunks, the weights in the order of the items, and the loops."""
    size = dtype.itemsize
    blocks = filter_blocks(problem, size, cpu_class())
    # items of nearly equal length
    taps = -(-problem.kernel_size[2] // -(-problem.kernel_size[2] // blocks.taps))
    widest = filter_blocks(problem, size, REFERENCE).widest
    chunk_channels, pass_channels = channel_blocks(problem, taps, widest * size)
    together = groups_together(problem, blocks)
    layout = plan_layout(problem, dtype, blocks, pass_channels, together)

    items = column_items(problem.kernel_size, taps)
    long_items, (_, kh, kw) = len(items.long), problem.kernel_size
    offsets, planes = items.places(problem, layout)
    channels, groups = problem.channels_per_group, problem.groups
    passes: list[tuple[int, ...]] = []
    chunks: list[tuple[int, ...]] = []
    order: list[NDArray[np.int64]] = []
    for first_channel in range(0, channels, pass_channels):
        begin = len(chunks)
        before = sum(terms.size for terms in order)
        # the terms of the pass, as rows (tap, channel) of the weights
        pass_rows: list[NDArray[np.int64]] = []
        pass_terms = 0
        for c in range(first_channel, min(first_channel + pass_channels, channels), chunk_channels):
            count = min(chunk_channels, first_channel + pass_channels - c, channels - c)
            for short, first, last in ((0, 0, long_items), (1, long_items, len(items.all))):
                length = taps - short
                per_chunk = max(
                    1, chunk_terms(problem.taps, CHUNK_TERMS) // (count * max(length, 1))
                )
                for item in range(first, last, per_chunk):
                    some = items.all[item : min(item + per_chunk, last)]
                    is_first = int(len(chunks) == 0)
                    chunks.append((item, len(some), c * size, count, short, pass_terms, is_first))
                    d, h, w = np.array(some).T[:, :, None, None]
                    tap = (d * kh + h) * kw + w + np.arange(length)
                    rows = tap * channels + c + np.arange(count)[:, None]  # (items, channels, taps)
                    pass_rows.append(rows.ravel())
                    pass_terms += rows.size
        order.append(np.concatenate(pass_rows))
        passes.append((begin, len(chunks), before, pass_terms))

    tables = np.array(offsets) * size, planes, passes, chunks
    keep = [np.ascontiguousarray(table, np.int64) for table in tables]
    unit = layout.pitch * size
    if blocks.taps == 1:
        unit *= problem.strides[2]
    parameters = np.array(
        [
            unit,
            blocks.padded,
            blocks.pairs,
            len(passes),
            sum(terms.size for terms in order),
            together,
            channels * size,
            *(table.ctypes.data for table in keep),
        ],
        np.int64,
    )
    geometry = (problem.strides[2], problem.dilation_rate[2]) if taps > 1 else (1, 0)
    register_tiles = blocks.pair_rows, blocks.odd, blocks.odd_rows
    constants = taps, int(bool(items.short)), *geometry, *register_tiles, blocks.lanes, dtype.name
    return PreparedAlgorithm(
        layout=layout,
        convolve=machine_code("channels", "sum_voxels", *constants),
        pack_weights=lambda: _pack_weights(weights, order, blocks, groups, dtype),
        parameters=parameters,
        keep=keep,
        groups_together=together,
        weight_bytes=padded_bytes(problem.taps * groups * blocks.padded, dtype, problem.taps),
    )


def padded_bytes(weights: int, dtype: np.dtype[Any], terms: int) -> WeightBytes:
    """Memory of packed weights and their tables, and of three copies while they are packed.

    weights : int       number of weights, with filters padded to whole vectors
    terms : int         number of terms that a filter sums
    """
    return WeightBytes(weights * dtype.itemsize + 16 * terms, 3 * weights * dtype.itemsize)


def _pack_weights(
    weights: NDArray[Any],
    order: list[NDArray[np.int64]],
    blocks: Blocks,
    groups: int,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """The weights as (groups, passes, blocks, terms of the pass, filters of the block).

    order : list of arrays      the terms of each pass, as rows (tap, channel) of the weights
    Filters are padded with zeros.
    """
    filters = weights.shape[4] // groups
    by_term = np.zeros((groups, weights[..., 0].size, blocks.padded), dtype)
    by_term[..., :filters] = weights.reshape(-1, groups, filters).transpose(1, 0, 2)
    widths = [2 * blocks.lanes] * blocks.pairs + ([blocks.odd * blocks.lanes] if blocks.odd else [])
    ends = np.cumsum(widths)
    runs = [
        by_term[g, rows, end - width : end].ravel()
        for g in range(groups)
        for rows in order
        for width, end in zip(widths, ends, strict=True)
    ]
    return aligned(np.concatenate(runs))


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A flat copy that begins at a cache line."""
    copy = aligned_zeros(array.size, array.dtype)
    copy[:] = array.ravel()
    return copy


def plan_layout(
    problem: ConvProblem,
    dtype: np.dtype[Any],
    blocks: Blocks,
    pass_channels: int,
    together: int,
) -> TileLayout:
    """Tiles of nearly equal size whose planes and sums fit the cache, enough for all threads.

    pass_channels : int     input channels of a pass
    together : int          groups packed at once
    """
    channels = problem.channels_per_group * together
    # Voxels a multiple of 2 KB apart would share too few cache sets.
    pitch = channels + 16 if channels * dtype.itemsize % 2048 == 0 else channels
    depth, height, width = problem.out_size

    def layout(tile: Size, step_depth: int) -> TileLayout:
        return voxels_layout(
            problem,
            tile,
            filters=blocks.padded * together,
            step_depth=step_depth,
            channel_pitch=pitch,
        )

    def used(tile: Size, step_depth: int) -> float:
        """The bytes of planes and sums that a pass reads and writes."""
        found = layout(tile, step_depth)
        planes = found.scratch_size * min(1.0, pass_channels / channels)
        of_sums = min(1.0, max(2, blocks.odd) * blocks.lanes / blocks.padded)
        return (planes + found.accumulator_size * of_sums) * dtype.itemsize

    tile = even_tile(problem, lambda tile: used(tile, 1) <= TILE_BYTES)
    step_depth = 1
    weights_bytes = problem.taps * blocks.padded * dtype.itemsize
    while (
        step_depth < min(4, depth)
        and weights_bytes > PASS_BYTES
        and step_depth * tile.height * tile.width < STEP_VOXELS
        and used(tile, step_depth * 2) <= 2 * TILE_BYTES
    ):
        step_depth *= 2
    # Neighbouring tasks both pack the planes between them, which costs little compared with many
    # filters.
    least = step_depth * (4 if math.prod(problem.kernel_size) > 1 else 1)
    tasks = problem.groups // together * -(-height // tile.height) * -(-width // tile.width)
    blocks_wanted = -(-TASKS // tasks)
    tile_depth = min(max(least, -(-depth // blocks_wanted)), 64)
    tile_depth = -(-tile_depth // step_depth) * step_depth
    found = layout(
        tile._replace(depth=min(tile_depth, -(-depth // step_depth) * step_depth)), step_depth
    )
    return with_row_blocks(found, dtype.itemsize) if weights_bytes <= PASS_BYTES else found


def even_tile(problem: ConvProblem, fits: Callable[[Size], bool]) -> Size:
    """The tile, as deep as the output, whose height and width are halved in turn until it fits.

    It divides a plane into parts of nearly equal size.
    """
    depth, height, width = problem.out_size
    tile = Size(depth, height, min(width, 128))
    while not fits(tile) and tile.height * tile.width > 64:
        if tile.height > 4 or tile.width <= 24:
            tile = tile._replace(height=-(-tile.height // 2))
        else:
            tile = tile._replace(width=-(-tile.width // 2))
    return Size(depth, even_part(height, tile.height), even_part(width, tile.width))


def with_row_blocks(layout: TileLayout, itemsize: int) -> TileLayout:
    """The layout with sums stored every few rows, while they are in L1."""
    _, plane, row, _ = layout.sums
    height = max(1, BLOCK_BYTES // (row * itemsize * layout.step_depth))
    if height >= layout.tile.height:
        return layout
    plane = height * row
    return replace(
        layout,
        block_height=height,
        sums=(1, plane, row, layout.sums[3]),
        accumulator_size=plane * layout.step_depth,
    )


def even_part(size: int, most: int) -> int:
    """The size of nearly equal parts of at most `most`.

    >>> even_part(10, 4)
    4
    """
    return -(-size // -(-size // most))


ALGORITHM = Algorithm(
    name="channels",
    summary="many channels or filters: vectors along the filters; "
    "any kernel, stride, dilation and group",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

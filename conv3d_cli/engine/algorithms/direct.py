"""The direct sum: every tap of the kernel, in a fixed order, for any problem.

It runs the spatial micro-kernel (`loops/spatial.py`): vectors along the width, register tiles of
rows x vectors. It accepts every legal problem; the other algorithms are measured and tested against
it.

Order of summation of one output voxel (the same for any tile, slab or thread): items (columns of
the kernel) in chunks of 64 taps, or the square root of all, each summed from zero. So the rounding
error grows with that root, not with the number of taps.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

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
    enough_tasks,
    rows_layout,
    shrink_tile,
)
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem

# Bytes of a task's packed planes and sums: with the plane that is being prefetched, well within a
# common L2.
TILE_BYTES = 384 << 10
CHUNK_TAPS = 64
MOST_TAPS = 9  # kernel rows of an item, whose weights stay in registers
# taps that the stencil unrolls; one chunk at most, so that the order of the sum is the same
STENCIL_TAPS = 27


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """None: it accepts every problem."""
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    if is_stencil(problem) and problem.groups == 1:
        return stencil_seconds(problem) / threads
    return predicted(problem, item_shape(problem)[0], problem.flops) / threads


def stencil_seconds(problem: ConvProblem) -> float:
    """One thread's predicted seconds for one channel, which is read where it lies.

    Fitted to 75 kernels from 1^3 to 5x5x5 (2026-11, AVX-512); most are within a factor of 1.3.
    Moving voxels then took 0.37 ns; 0.3 since rows that share a cache line are joined.
    """
    lanes = REFERENCE.lanes
    waste = math.ceil(problem.out_size[2] / lanes) * lanes / max(1, problem.out_size[2])
    moved = math.prod(problem.in_shape) + math.prod(problem.out_shape)
    return problem.flops * waste / 140e9 + moved * 0.3e-9 + 2e-4


def predicted(problem: ConvProblem, taps: int, flops: float) -> float:
    """One thread's predicted seconds, at rates measured on Zen 4, 2026-11.

    taps : int          taps of an item
    flops : float       floating-point operations; of a sparse kernel, those of its nonzero items
    The time is that of the sums at the register tile's rate, of packing and of storing.
    """
    lanes = REFERENCE.lanes
    waste = math.ceil(problem.out_size[2] / lanes) * lanes / max(1, problem.out_size[2])
    # items of one tap load as many vectors as they sum
    rate = 100e9 if taps > 1 else 50e9
    # Interleaved channels are read one by one; with groups, only those of one group from a cache
    # line.
    pack = 0.23e-9 if problem.in_channels == 1 else 5e-9 if problem.groups > 1 else 0.9e-9
    store = 0.23e-9 if problem.filters == 1 else 0.5e-9
    moving = math.prod(problem.in_shape) * pack + math.prod(problem.out_shape) * store
    return flops * waste / rate + moving + 20e-6


def item_shape(problem: ConvProblem) -> tuple[int, int, int]:
    """The shape of items: (taps, row_stride, row_gap).

    taps: kernel rows of an item. row_stride: distance between neighbouring output rows of a
    register tile, in kernel rows; row_gap: the same distance in output rows.
    """
    stride, dilation, kh = problem.strides[1], problem.dilation_rate[1], problem.kernel_size[1]
    parts = -(-kh // MOST_TAPS)
    if stride == 1:
        return -(-kh // parts), 1, dilation
    if stride == 2 and dilation == 1:
        return -(-kh // parts), 2, 1
    return 1, 1, 1


def register_tile(taps: int, cpu: CpuClass) -> tuple[int, int]:
    """The register tile, (rows, vectors): sums, loaded vectors and weights fit the registers.

    No class of CPUs has a larger one, in rows and in elements, than `REFERENCE`.
    """
    columns = cpu.spatial[1]
    rows = max(2, min(cpu.spatial[0], (cpu.registers - columns - taps) // columns))
    return rows, columns


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Tables of items, the weights in the order of the items, and the loops."""
    if is_stencil(problem):
        return prepare_stencil(problem, weights, dtype)
    return prepare_items(problem, weights, dtype, item_shape(problem))


def is_stencil(problem: ConvProblem) -> bool:
    """Whether the stencil (`loops/stencil.py`) computes it: a small filter for each channel."""
    small = problem.taps <= STENCIL_TAPS and problem.kernel_size[1] <= MOST_TAPS
    single = problem.channels_per_group == problem.filters_per_group == 1
    unit = problem.strides == problem.dilation_rate == (1, 1, 1)
    return small and single and unit


def stencil_tile(problem: ConvProblem, cpu: CpuClass) -> Size:
    """The register tile of the stencil, in planes, rows and vectors.

    Planes are the same for every CPU: slabs begin at multiples of them.
    """
    most = 3 if problem.kernel_size[0] > 1 else 1
    # of equally many steps, those with the fewest planes
    planes = -(-problem.out_size[0] // -(-problem.out_size[0] // most))
    if cpu.registers < 32:
        return Size(planes, 2, 1)
    return Size(planes, 4, 1 if planes > 1 else 2)


def prepare_stencil(
    problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]
) -> PreparedAlgorithm:
    """The weights in the order of the sum, and the loops."""
    packed = np.ascontiguousarray(weights.astype(dtype).transpose(4, 3, 0, 2, 1))
    tile = stencil_tile(problem, cpu_class())
    lanes = cpu_class().lanes * 4 // dtype.itemsize

    code = machine_code("stencil", "sum_stencil", *problem.kernel_size, *tile, lanes, dtype.name)
    return PreparedAlgorithm(
        layout=stencil_layout(problem, dtype),
        convolve=code,
        pack_weights=lambda: packed,
        parameters=np.zeros(0, np.int64),
        in_place=lambda bits: code if bits == 0 else None,
        rows=tile.height,
        weight_bytes=weight_bytes(problem, dtype, problem.kernel_size[1]),
    )


def stencil_layout(problem: ConvProblem, dtype: np.dtype[Any]) -> TileLayout:
    """As `plan_layout`; blocks of few rows, whose sums stay in L1."""
    planes, rows, columns = stencil_tile(problem, REFERENCE)
    window = planes + problem.kernel_size[0] - 1
    columns *= REFERENCE.lanes * 4 // dtype.itemsize

    def layout(tile: Size) -> TileLayout:
        return rows_layout(
            problem,
            tile,
            step_depth=planes,
            spare_rows=rows,
            spare_columns=columns,
            block_height=rows * (4 // rows),
            origin=-problem.pad_before[2] % 16,
        )

    def fits(tile: Size) -> bool:
        found = layout(tile)
        return (found.scratch_size + found.accumulator_size) * dtype.itemsize <= TILE_BYTES

    tile = shrink_tile(problem, Size(258, 64, 512), fits)
    # addresses of lines that are prefetched, and of tables of lines
    return dataclasses.replace(layout(tile), workspace_bytes=8 * (planes * (rows + 1) + 2 * window))


def prepare_items(
    problem: ConvProblem,
    weights: NDArray[Any],
    dtype: np.dtype[Any],
    shape: tuple[int, int, int],
    sparse: bool = False,
) -> PreparedAlgorithm:
    """As `prepare`, for another shape of items.

    shape : (int, int, int)     see `item_shape`
    sparse : bool       skip items whose weights are zero in all filters
    """
    taps, row_stride, gap = shape
    rows, columns = register_tile(taps, cpu_class())
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    layout = plan_layout(problem, dtype, taps, gap)

    kd, kh, kw = problem.kernel_size
    channels, filters = problem.channels_per_group, problem.filters
    # Kernel rows are split into parts of `taps`, and of one less for the rest. Taps are not padded,
    # since 0 * inf is NaN.
    parts = -(-kh // taps)
    long_parts = kh - parts * (taps - 1)
    by_filter = weights.astype(dtype).transpose(4, 3, 0, 2, 1)  # (filters, channels, kd, kw, kh)
    split = long_parts * taps
    offsets, planes, runs = [], [], []
    for first, count, size in ((0, long_parts, taps), (split, parts - long_parts, taps - 1)):
        of_items = by_filter[..., first : first + count * size].reshape(
            filters, channels * kd * kw * count, size
        )
        kept = np.ones(of_items.shape[1], bool)
        if sparse:
            kept = (of_items != 0).any(axis=(0, 2))
            kept[:1] |= not kept.any() and first == 0  # a sum has at least one item
        runs.append(of_items[:, kept].reshape(filters, -1))
        c, d, w, part = np.indices((channels, kd, kw, count)).reshape(4, -1)
        along, stride = w * problem.dilation_rate[2], problem.strides[2]
        offsets.append(
            c * layout.channel_step
            + (first + part * size) * problem.dilation_rate[1] * layout.row_step
            + along % stride * layout.pitch
            + along // stride
        )
        planes.append(d * problem.dilation_rate[0])
        offsets[-1], planes[-1] = offsets[-1][kept], planes[-1][kept]
    packed = np.concatenate(runs, axis=1)
    per_chunk = max(1, chunk_terms(problem.taps, CHUNK_TAPS) // taps)
    long_items, items = offsets[0].size, offsets[0].size + offsets[1].size
    starts = [*range(0, long_items, per_chunk), *range(long_items, items, per_chunk), items]
    # An item of one tap has no next kernel row: its step leads from one output row to the next.
    single = shape == (1, 1, 1)
    tap_rows = problem.strides[1] if single else problem.dilation_rate[1]
    keep = [
        np.ascontiguousarray(a, np.int64)
        for a in (np.concatenate(offsets) * dtype.itemsize, np.concatenate(planes), starts)
    ]
    tap_step = tap_rows * layout.row_step * dtype.itemsize
    addresses = (array.ctypes.data for array in keep)
    parameters = np.array(
        [packed.shape[1], long_items, len(starts) - 1, tap_step, gap, *addresses], np.int64
    )
    short = 1 if long_parts < parts else 0
    constants = taps, short, row_stride, rows, columns, lanes, dtype.name
    return PreparedAlgorithm(
        layout=layout,
        convolve=machine_code("spatial", "sum_taps", *constants),
        pack_weights=lambda: np.ascontiguousarray(packed),
        parameters=parameters,
        keep=keep,
        rows=rows * gap,
        weight_bytes=weight_bytes(problem, dtype, taps),
    )


def weight_bytes(problem: ConvProblem, dtype: np.dtype[Any], taps: int) -> WeightBytes:
    """Memory of the packed weights and their tables, and of three copies while they are packed.

    taps : int      taps of an item
    """
    kd, kh, kw = problem.kernel_size
    weights = problem.taps * problem.filters * dtype.itemsize
    items = problem.channels_per_group * kd * kw * -(-kh // taps)
    return WeightBytes(weights + 24 * items, 3 * weights + 96 * items)


def plan_layout(problem: ConvProblem, dtype: np.dtype[Any], taps: int, gap: int) -> TileLayout:
    """The tile: wide rows, and as many of them as fit the cache with their sums.

    taps, gap : int     of the items, see `item_shape`
    It is the same on every CPU: a task of `sparse` with NaN is recomputed as a whole.
    """
    # what register tiles may compute beyond the task
    rows, columns = register_tile(taps, REFERENCE)
    rows, columns = rows * gap, columns * REFERENCE.lanes * 4 // dtype.itemsize

    # aligns the first voxel behind the padding to a vector, since packed voxels are loaded often
    origin = -problem.pad_before[2] % 16 if problem.strides[2] == 1 else 0

    def layout(tile: Size) -> TileLayout:
        return rows_layout(
            problem,
            tile,
            spare_rows=rows,
            spare_columns=columns,
            block_height=4 * rows,
            origin=origin,
        )

    def fits(tile: Size) -> bool:
        found = layout(tile)
        return (found.scratch_size + found.accumulator_size) * dtype.itemsize <= TILE_BYTES

    height = -(-96 // rows) * rows
    tile = shrink_tile(problem, Size(64, height, 512), fits)
    return layout(enough_tasks(problem, tile))


ALGORITHM = Algorithm(
    name="direct",
    summary="every weight in turn; any kernel, stride, dilation, group and dtype",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

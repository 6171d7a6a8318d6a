"""Overlap-save FFT tiles: large kernels at a cost that hardly grows with their size.

The volume is divided into overlapping tiles. The circular convolution of a tile with the kernel, a
product of spectra, equals the linear convolution in the part that is kept. Two neighbouring tiles
are transformed as one complex tile (`loops/fft.py`). The tile's sizes along the three axes are
those with the least predicted cost; packing supplies the boundary, so every boundary mode is exact.

A voxel's error is relative to the largest voxel of its tile (about 1e-7 of sum|w| max|x| in
float32), so the result may differ from zero where the direct sum is exactly zero. NaN and infinity
would spread over a tile. So would an overflow of an intermediate sum, which numbers above about
1e31 can cause: such sums can exceed the result by a factor of the tile's elements. All these cases
leave NaN or infinity in the sums of the step; the loops detect them, and `direct` recomputes the
step.

Source: Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3 (overlap-save); Cooley & Tukey
1965; Good 1958 (radix 6).
"""

from __future__ import annotations

import math
from collections import namedtuple
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import MachineCode, machine_code
from conv3d_cli.engine.step import AlgorithmData, Output, Source, StepRecord
from conv3d_cli.engine.tile import (
    Algorithm,
    PreparedAlgorithm,
    TileLayout,
    WeightBytes,
    spread_rows,
)
from conv3d_cli.engine.views import aligned_zeros
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.system.elementary import by_quarters

# Indices of the loops' int64 parameters. `stages_*` and `convolve_depth` are addresses; the fields
# from `plane` on are byte offsets into the workspace, except `fence`, which has the bits of a
# float64. A namedtuple, because Numba treats its members as constants.
P: Any = namedtuple(
    "P",
    "tile_planes tile_rows tile_columns kept_columns stages_d stages_h stages_w convolve_depth "
    "plane_row plane_bytes plane buffer lines sources targets zeros results fence",
)(*range(18))

# With fewer taps the direct sum is faster, and exact for whole numbers.
LEAST_TAPS = 65
# The most memory of a kernel's spectra, and of a thread's planes.
MOST_SPECTRUM_BYTES = 1 << 30
MOST_WORKSPACE_BYTES = 1 << 28

# `direct` computes tiles with numbers from here on, mostly sentinels, even if nothing overflows: a
# tile's rounding noise is relative to its largest number.
HUGE = 1e30

# Depth of a task, which transforms each plane once. Planes that two tasks read are transformed
# twice.
MOST_PLANES = 128

# Tile sizes along height and width, whole vectors, and along depth, with the radices of their
# stages. A depth line has at least two stages, since the first one gathers and the last one
# multiplies by the spectrum; radix 1 copies.
PLANE_SIZES = {
    16: (4, 4), 32: (4, 8), 48: (6, 8), 64: (8, 8), 80: (2, 5, 8), 96: (3, 4, 8), 128: (4, 4, 8),
    144: (3, 6, 8), 160: (4, 5, 8), 192: (4, 6, 8), 240: (5, 6, 8), 256: (4, 8, 8), 288: (6, 6, 8),
    320: (5, 8, 8), 384: (6, 8, 8),
}  # fmt: skip
DEPTH_SIZES = {
    1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (1, 4), 5: (1, 5), 6: (1, 6), 8: (1, 8), 10: (2, 5),
    12: (3, 4), 16: (4, 4), 20: (4, 5), 24: (4, 6), 30: (5, 6), 32: (4, 8), 40: (5, 8), 48: (6, 8),
    64: (8, 8), 80: (2, 5, 8), 96: (3, 4, 8), 128: (4, 4, 8), 160: (4, 5, 8), 192: (4, 6, 8),
    240: (5, 6, 8), 256: (4, 8, 8), 320: (5, 8, 8), 384: (6, 8, 8),
}  # fmt: skip

PRODUCT_ROWS = 16  # rows of a matrix product in registers
ROW_LANES = 8  # no vector of float64 has more

# Vector instructions per element: of a butterfly, by radix; of a transposition, with loads and
# stores.
BUTTERFLIES = {1: 0.0, 2: 2.0, 3: 4.0, 4: 4.0, 5: 7.2, 6: 6.0, 8: 7.0}
TRANSPOSE = 16


class Rates(NamedTuple):
    """Nanoseconds on one thread, fitted to 39 runs of kernels from 5^3 to 41^3 (2026-11, Zen 4).

    Most predictions are within a factor of 1.5.
    """

    instruction: float = 0.081  # per vector instruction of 16 lanes
    outer_byte: float = 0.0206  # per byte from or to the outer cache
    memory_byte: float = 0.0608  # per byte from or to memory, in addition
    line: float = 43.0  # per depth line, for the calls of its stages
    packed_row: float = 45.0  # per row
    packed: float = 0.3  # per voxel
    stored: float = 0.58  # per voxel
    # Per voxel, times the logarithm of the channels it lies between, of packing and of storing: one
    # channel uses a part of each cache line (1x11x11 to 15^3 on 2 to 16 channels).
    interleaved: float = 1.0
    prepared: float = 1.4  # per byte of the kernel's spectrum
    preparation: float = 1e6  # of a kernel, whatever its size
    # A factor of the total, if one channel is transformed back for several filters: 2 to 4 filters
    # took 1.1 to 2.1 times the prediction without it (9^3 to 41^3 on 256^3).
    several_filters: float = 1.6


RATES = Rates()


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why it cannot compute this problem, or should not; None if it can."""
    taps = math.prod(problem.kernel_size)
    if taps < LEAST_TAPS:
        return f"a kernel of {taps} weights, fewer than {LEAST_TAPS}, is quicker to sum directly"
    if problem.strides != (1, 1, 1):
        strides = "x".join(map(str, problem.strides))
        return f"strides are {strides}, and a transform computes every voxel"
    magnitude = sum_of_magnitudes(problem, weights)
    if not (magnitude == 0 or 1e-25 < magnitude < 1e25):
        return (
            f"the weights' magnitudes add up to {magnitude:.3g}, "
            "and spectra in float32 need 1e-25 to 1e25"
        )
    if choose_tile(problem) is None:
        return f"the kernel spans {'x'.join(map(str, problem.extent))} voxels, more than a tile"
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    found = choose_tile(problem)
    return math.inf if found is None else found[1] / threads


def sum_of_magnitudes(problem: ConvProblem, weights: NDArray[Any]) -> float:
    """The largest sum of |weights| of a filter: no output exceeds this times the largest voxel."""
    magnitudes = np.abs(weights.reshape(-1, problem.filters))
    return float(magnitudes.sum(axis=0, dtype=np.float64).max())


def line_instructions(radices: tuple[int, ...]) -> float:
    """Vector instructions per element of a transform.

    These are butterflies, loads, stores, and the twiddles of all stages but the last.
    """
    inner = [4 - 4 / radix for radix in radices[:-1]]
    return math.fsum([*(BUTTERFLIES[radix] + 4 for radix in radices), *inner])


@lru_cache(maxsize=64)
def choose_tile(problem: ConvProblem) -> tuple[Size, float] | None:
    """The fastest tile, and its predicted seconds on one thread; None if no tile is large enough.

    The time is the sum of instructions, bytes that leave the inner caches, and packing, each at a
    measured rate (see `Rates`).
    """
    extent, out = problem.extent, problem.out_size
    filters, channels = problem.filters_per_group, problem.channels_per_group
    candidates = [
        [size for size in sizes if size >= least]
        for sizes, least in zip((DEPTH_SIZES, *[PLANE_SIZES] * 2), extent, strict=True)
    ]
    planes, rows, columns = (axis.ravel() for axis in np.meshgrid(*candidates, indexing="ij"))
    kept_planes, kept_rows, kept_columns = (
        n - e + 1 for n, e in zip((planes, rows, columns), extent, strict=True)
    )
    plane_bytes = 8 * rows * columns
    spectrum_bytes = plane_bytes * planes * channels * filters
    workspace = plane_bytes * (planes * channels + kept_planes * filters)
    fits = (spectrum_bytes * problem.groups <= MOST_SPECTRUM_BYTES) & (
        workspace <= MOST_WORKSPACE_BYTES
    )
    if not fits.any():
        return None
    depth_line = np.repeat(
        [line_instructions(DEPTH_SIZES[n]) for n in candidates[0]],
        len(candidates[1]) * len(candidates[2]),
    )
    plane_lines = {n: line_instructions(PLANE_SIZES[n]) for n in PLANE_SIZES}
    row_line, column_line = (
        np.array([plane_lines[n] for n in axis.tolist()]) for axis in (rows, columns)
    )

    bands = (
        -(-out[1] // kept_rows) * -(-out[2] // (2 * kept_columns)) * problem.groups * problem.batch
    )
    blocks = -(-out[0] // task_depth(kept_planes))
    packed_planes = out[0] + blocks * (extent[0] - 1)
    step_planes = -(-out[0] // kept_planes) * planes
    elements = rows * columns / 16
    kept_share = -(-kept_columns // 16) * 16 / columns
    instructions = elements * (
        packed_planes * channels * (row_line + column_line + TRANSPOSE)
        + step_planes * ((channels + filters) * depth_line + 4 * channels * filters)
        + out[0] * filters * (column_line + TRANSPOSE + row_line * kept_share)
    )
    moved = plane_bytes * (
        packed_planes * channels
        + step_planes * (channels + channels * filters)
        + 2 * out[0] * filters
    )
    # the fractions of these bytes that come from the outer cache and from memory
    megabytes = (workspace + spectrum_bytes) / 2**20
    outer, memory = np.clip((megabytes - 0.75) / 2, 0, 1), np.clip((megabytes - 8) / 16, 0, 1)
    packed_rows = packed_planes * channels * np.minimum(rows, out[1] + extent[1] - 1)
    packed = packed_rows * np.minimum(kept_columns + columns, out[2] + extent[2] - 1)
    band_time = (
        RATES.instruction * instructions
        + (RATES.outer_byte * outer + RATES.memory_byte * memory) * moved
        + RATES.line * step_planes / planes * elements
        + RATES.packed_row * packed_rows
        + (RATES.packed + interleaving(problem.in_channels)) * packed
    )
    total = (
        bands * band_time
        + (RATES.stored + interleaving(problem.filters)) * math.prod(problem.out_shape)
        + RATES.prepared * spectrum_bytes * problem.groups
        + RATES.preparation
    )
    total = total * (1 + 1 / (bands * blocks))  # threads wait for the last task
    total = total * (RATES.several_filters if filters > 1 and channels == 1 else 1)
    best = int(np.argmin(np.where(fits, total, np.inf)))
    return Size(int(planes[best]), int(rows[best]), int(columns[best])), float(total[best]) * 1e-9


def interleaving(channels: int) -> float:
    """Nanoseconds per voxel of one channel, because the others lie between its voxels.

    >>> interleaving(1), interleaving(16), interleaving(64)
    (0.0, 4.0, 4.0)
    """
    return RATES.interleaved * math.log2(min(channels, 16))


def task_depth(kept_planes: Any) -> Any:
    """Output planes of a task: whole steps, about `MOST_PLANES`.

    kept_planes : int or int array      output planes of a step
    """
    return kept_planes * -(-MOST_PLANES // kept_planes)


def plan_layout(
    problem: ConvProblem, tile: Size, dtype: np.dtype[Any]
) -> tuple[TileLayout, dict[str, int]]:
    """The memory of a task, and those of its `P` fields that are sizes and offsets."""
    size = dtype.itemsize
    lanes = cpu_class().lanes * 4 // size
    kept = Size(*(n - e + 1 for n, e in zip(tile, problem.extent, strict=True)))
    filters, channels = problem.filters_per_group, problem.channels_per_group
    element = 2 * lanes * size
    # an odd number of cache lines apart: otherwise lines along height and depth would share cache
    # sets
    plane_row = tile.width * 2 * size + 64
    plane_bytes = tile.height * tile.width * 2 * size + 192
    parts = {
        "ring": tile.depth * channels * plane_bytes,
        "zeros": channels * plane_bytes,
        "results": (kept.depth + 1) * filters * plane_bytes,
        "plane": tile.height * plane_row,
        "buffer": max(tile.height, tile.width) * element,
        "lines": (channels + 1) * tile.depth * element,
        "sources": tile.depth * 8,
        "targets": tile.depth * 8,
    }
    fields, workspace = {}, 0
    for name, part in parts.items():
        fields[name] = workspace
        workspace += -(-part // 64) * 64 + 64
    del fields["ring"]  # its offset is 0
    fields |= {
        "tile_planes": tile.depth,
        "tile_rows": tile.height,
        "tile_columns": tile.width,
        "kept_columns": kept.width,
        "plane_row": plane_row,
        "plane_bytes": plane_bytes,
    }
    columns = kept.width + tile.width
    row_step = spread_rows(columns)
    channel_step = tile.height * row_step
    sums_row = spread_rows(2 * kept.width + 16)
    sums_plane = tile.height * sums_row
    layout = TileLayout(
        tile=Size(task_depth(kept.depth), kept.height, 2 * kept.width),
        step_depth=kept.depth,
        ring=1,
        pack="rows",
        pitch=row_step,
        row_step=row_step,
        plane_step=channel_step,
        channel_step=channel_step,
        scratch_size=channels * channel_step + 16,
        sums=(sums_plane, 0, sums_row, 1),
        accumulator_size=filters * sums_plane,
        workspace_bytes=workspace,
    )
    return layout, fields


def digit_reversed(radices: tuple[int, ...]) -> NDArray[np.int64]:
    """The frequency at each position after the forward stages.

    >>> digit_reversed((2, 3)).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    order = np.zeros(1, np.int64)
    for radix in reversed(radices):
        order = (np.arange(radix)[:, None] + radix * order[None, :]).ravel()
    return order


def stage_table(
    radices: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    """The stages of a line, as the loops read them, and the arrays of twiddles that they point to.

    The table is int64: the number of stages, then (radix, span, blocks, address of twiddles) of
    each. The twiddles of a stage are (span, radix - 1, re | im), exp(-2 pi i n k / (radix * span)),
    rounded from float64.
    """
    table, keep = [len(radices)], []
    length, blocks = math.prod(radices), 1
    for radix in radices:
        span = length // radix
        n, k = np.arange(span)[:, None], np.arange(1, radix)[None, :]
        cosines, sines = by_quarters(n * k, length)
        twiddles = np.stack([cosines, -sines], axis=-1).astype(dtype)
        if not twiddles.size:
            twiddles = np.zeros(1, dtype)
        keep.append(twiddles)
        table += [radix, span, blocks, twiddles.ctypes.data]
        length, blocks = span, blocks * radix
    return np.array(table, np.int64), keep


def kernel_spectrum(
    problem: ConvProblem, weights: NDArray[Any], tile: Size, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The spectra that multiply the lines along depth.

    They are conjugate, since the taps are not flipped, and include the factor 1/n of the inverse.

    Returns (group, row block, column, filter, channel, depth, re | im, lane), with frequencies in
    the order of the transforms.
    """
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    groups, filters, channels = (
        problem.groups,
        problem.filters_per_group,
        problem.channels_per_group,
    )
    (kd, kh, _), dilation = problem.kernel_size, problem.dilation_rate
    radices = (DEPTH_SIZES[tile.depth], PLANE_SIZES[tile.height], PLANE_SIZES[tile.width])
    order = [digit_reversed(stages) for stages in radices]

    # (filters in all, channels, kd, kh, kw)
    taps = weights.astype(dtype).astype(np.float64).transpose(4, 3, 0, 1, 2)
    # (..., re kh | im kh, column)
    columns = along_width(taps, order[2], dilation[2], tile.width).astype(dtype)
    columns = columns.reshape(*taps.shape[:3], 2 * kh, tile.width)
    matrix = real_matrix(order[1], kh, dilation[1], tile.height)
    planes = multiply(matrix, columns, dtype).reshape(
        groups, filters, channels, kd, tile.height // lanes, lanes, 2, tile.width
    )
    # (group, row block, column, filter, channel, re | im, kd, lane)
    columns = planes.transpose(0, 4, 7, 1, 2, 6, 3, 5)
    return multiply(
        real_matrix(order[0], kd, dilation[0], tile.depth),
        columns.reshape(-1, 2 * kd, lanes),
        dtype,
    )


def along_width(
    taps: NDArray[np.float64], frequencies: NDArray[np.int64], dilation: int, length: int
) -> NDArray[np.float64]:
    """The inverse transforms of kernel rows (..., kh, kw), computed in float64.

    frequencies : (n,)      of the result, in this order
    dilation : int          distance of the taps
    Returns (..., 2, kh, n), re and im.
    """
    kw = taps.shape[-1]
    matrix = real_matrix(frequencies, kw, dilation, length)[:, :kw]  # the taps are real
    rows = taps.reshape(-1, kw)
    columns = np.zeros((kw, -(-len(rows) // ROW_LANES) * ROW_LANES))
    columns[:, : len(rows)] = rows.T
    waves = multiply(matrix, columns, np.dtype(np.float64))[:, : len(rows)]
    waves = waves.reshape(len(frequencies), 2, *taps.shape[:-1])
    return waves.transpose(*range(2, 2 + taps.ndim - 2), 1, taps.ndim, 0)


def real_matrix(
    frequencies: NDArray[np.int64], taps: int, dilation: int, length: int
) -> NDArray[np.float64]:
    """The inverse transform as a real matrix.

    Rows are re and im of each frequency in turn, columns re of all taps and im of all taps.

    taps, dilation : int    number of taps, and their distance
    length : int            length of the transform

    >>> real_matrix(np.array([1]), 2, 1, 4).round(2) + 0.0
    array([[ 0.25,  0.  ,  0.  , -0.25],
           [ 0.  ,  0.25,  0.25,  0.  ]])
    """
    places = frequencies[:, None] * (np.arange(taps) * dilation)[None, :]
    re, im = (wave / length for wave in by_quarters(places, length))
    real = np.stack([np.concatenate([re, -im], 1), np.concatenate([im, re], 1)], 1)
    return real.reshape(2 * len(frequencies), 2 * taps)


def multiply(matrix: NDArray[Any], columns: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The products matrix @ columns, computed in `dtype` on this thread.

    matrix : (rows, terms)
    columns : (..., terms, n)       n is a multiple of a vector's lanes
    Returns (..., rows, n).
    """
    rows = -(-len(matrix) // PRODUCT_ROWS) * PRODUCT_ROWS
    transposed = np.zeros((matrix.shape[1], rows), dtype)
    transposed[:, : len(matrix)] = matrix.T
    source = np.ascontiguousarray(columns, dtype)
    *stack, terms, count = source.shape
    out = aligned_zeros(math.prod(stack) * rows * count, dtype)
    parameters = np.array([math.prod(stack), rows, terms, count], np.int64)
    products_code(dtype)(
        StepRecord(Source(source), AlgorithmData(transposed, parameters), Output(out))
    )
    whole = out.reshape(*stack, rows, count)
    return whole if rows == len(matrix) else np.ascontiguousarray(whole[..., : len(matrix), :])


def products_code(dtype: np.dtype[Any]) -> MachineCode:
    """The loops that `multiply` runs."""
    return machine_code("products", "products", cpu_class().lanes * 4 // dtype.itemsize, dtype.name)


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """The spectra, twiddles and loops, and the layout."""
    found = choose_tile(problem)
    assert found is not None, "rejected"
    tile = found[0]
    layout, fields = plan_layout(problem, tile, dtype)
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    absorb_plane, convolve_planes, convolve_depth = (
        machine_code("fft", factory, lanes, dtype.name)
        for factory in ("absorb_plane", "convolve_planes", "convolve_depth")
    )
    keep: list[Any] = []
    radices = (DEPTH_SIZES[tile.depth], PLANE_SIZES[tile.height], PLANE_SIZES[tile.width])
    for name, stages in zip(("stages_d", "stages_h", "stages_w"), radices, strict=True):
        table, twiddles = stage_table(stages, dtype)
        keep += [table, twiddles]
        fields[name] = table.ctypes.data
    fields["convolve_depth"] = 0
    fields["fence"] = int(np.array(HUGE).view(np.int64))
    return PreparedAlgorithm(
        layout=layout,
        convolve=convolve_planes,
        pack_weights=lambda: kernel_spectrum(problem, weights, tile, dtype),
        parameters=np.array([fields[name] for name in P._fields], np.int64),
        absorb=absorb_plane,
        spreads_nonfinite=True,
        rounds_tiles=True,
        checks_nonfinite=True,
        calls={P.convolve_depth: convolve_depth},
        packs_weights=(products_code(np.dtype(np.float64)), products_code(dtype)),
        keep=keep,
        weight_bytes=spectrum_bytes(problem, tile, dtype),
    )


def spectrum_bytes(problem: ConvProblem, tile: Size, dtype: np.dtype[Any]) -> WeightBytes:
    """Memory of the spectra, and of the largest step of `kernel_spectrum` while they are made."""
    real, (kd, kh, kw) = dtype.itemsize, problem.kernel_size
    kernels = problem.filters * problem.channels_per_group
    lines = kernels * kd * kh * tile.width
    planes = kernels * kd * tile.height * tile.width
    kept = 2 * real * kernels * math.prod(tile)
    taps = 8 * kernels * kd * kh * kw
    # the taps once more in columns, their transform, and the transform reordered
    along_width = 2 * 16 * lines + 2 * taps
    # real and imaginary parts, the same rounded, and their sums
    along_height = (2 * 16 + 2 * real) * lines + 2 * real * planes
    rows = -(-2 * tile.depth // PRODUCT_ROWS) * PRODUCT_ROWS
    summed = real * kernels * rows * tile.height * tile.width
    # planes, the same reordered, and their sums, of which some are kept
    along_depth = 16 * lines + 2 * 2 * real * planes + summed
    return WeightBytes(kept, taps + max(along_width, along_height, along_depth))


ALGORITHM = Algorithm(
    name="fft",
    summary="overlap-save tiles by fast Fourier transforms; large kernels of any shape, strides 1",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

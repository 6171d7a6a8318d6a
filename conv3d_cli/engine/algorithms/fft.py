"""Overlap-save FFT tiles: large kernels at a cost that hardly grows with their size.

The volume is cut into overlapping tiles whose circular convolution with the kernel, a product of spectra, is right in the
part that is kept. Two tiles side by side travel as one complex tile (`loops/fft.py`). The sizes along the three axes are
chosen for the problem out of many, by what they are predicted to cost; packing makes the boundary, so every mode is exact.

A voxel's error is relative to the largest voxel of its tile (about 1e-7 of sum|w| max|x| in float32), so it may differ from
zero where the direct sum would be exactly zero. NaN and infinity would spread over a tile. So would an overflow on the way,
which numbers above about 1e31 may meet: sums there may be larger than the result by the number of a tile's elements. All
these leave NaN or infinity in the sums of the step, which is looked for, and the step is done over by `direct`.

Source: Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3 (overlap-save); Cooley & Tukey 1965; Good 1958 (radix 6).
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

# What the loops need beyond the step record, as int64 numbers. `stages_*` and `convolve_depth` are addresses; from `plane` on,
# offsets in bytes into the workspace; `fence` is a float64.
P: Any = namedtuple(  # a namedtuple, since Numba takes its members as constants
    "P",
    "tile_planes tile_rows tile_columns kept_columns stages_d stages_h stages_w convolve_depth plane_row plane_bytes "
    "plane buffer lines sources targets zeros results fence",
)(*range(18))

# Below this many taps the direct sum is quicker, and exact where numbers are whole.
LEAST_TAPS = 65
# A kernel's spectra may take this much memory, and a thread's planes.
MOST_SPECTRUM_BYTES = 1 << 30
MOST_WORKSPACE_BYTES = 1 << 28

# Tiles with numbers from here on, sentinels mostly, are left to the direct sum even where nothing overflows: a tile's
# rounding noise is relative to its largest number.
HUGE = 1e30

# Depth of a task: planes are transformed once a task, save those that its neighbours need too.
MOST_PLANES = 128

# Tile sizes along height and width, whole vectors, and along depth, with the radices of their stages. The first stage of a depth
# line gathers and the last one multiplies by the spectrum, so it has two at least; 1 copies.
PLANE_SIZES = {
    16: (4, 4), 32: (4, 8), 48: (6, 8), 64: (8, 8), 80: (2, 5, 8), 96: (3, 4, 8), 128: (4, 4, 8), 144: (3, 6, 8),
    160: (4, 5, 8), 192: (4, 6, 8), 240: (5, 6, 8), 256: (4, 8, 8), 288: (6, 6, 8), 320: (5, 8, 8), 384: (6, 8, 8),
}  # fmt: skip
DEPTH_SIZES = {
    1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (1, 4), 5: (1, 5), 6: (1, 6), 8: (1, 8), 10: (2, 5), 12: (3, 4), 16: (4, 4), 20: (4, 5),
    24: (4, 6), 30: (5, 6), 32: (4, 8), 40: (5, 8), 48: (6, 8), 64: (8, 8), 80: (2, 5, 8), 96: (3, 4, 8), 128: (4, 4, 8),
    160: (4, 5, 8), 192: (4, 6, 8), 240: (5, 6, 8), 256: (4, 8, 8), 320: (5, 8, 8), 384: (6, 8, 8),
}  # fmt: skip

PRODUCT_ROWS = 16  # of a matrix product, held in registers

# Vector instructions of a butterfly per element, by radix, and of a transposed element with its loads and stores.
BUTTERFLIES = {1: 0.0, 2: 2.0, 3: 4.0, 4: 4.0, 5: 7.2, 6: 6.0, 8: 7.0}
TRANSPOSE = 16


class Rates(NamedTuple):
    """Nanoseconds on one thread, fitted to 39 runs of kernels from 5^3 to 41^3; most of them within 1.5 x (2026-11, Zen 4)."""

    instruction: float = 0.081  # of 16 lanes
    outer_byte: float = 0.0206  # a byte from or to the outer cache
    memory_byte: float = 0.0608  # what memory adds
    line: float = 43.0  # calls of a depth line's stages
    packed_row: float = 45.0
    packed: float = 0.3  # a voxel
    stored: float = 0.58  # a voxel
    prepared: float = 0.33  # a byte of the kernel's spectrum
    # of all of it, where one channel is transformed back for several filters: 2 to 4 took 1.1 to 2.1 times what is predicted
    # without, 9^3 to 41^3 on 256^3
    several_filters: float = 1.6


RATES = Rates()


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why a transform is out of the question."""
    taps = math.prod(problem.kernel_size)
    if taps < LEAST_TAPS:
        return f"a kernel of {taps} taps is summed quicker than it is transformed (from {LEAST_TAPS} taps on)"
    if problem.strides != (1, 1, 1):
        return f"strides are {'x'.join(map(str, problem.strides))}, and a transform computes every voxel"
    reach = sum_of_magnitudes(problem, weights)
    if not (reach == 0 or 1e-25 < reach < 1e25):
        return f"the weights' magnitudes add up to {reach:.3g}, and spectra in float32 need 1e-25 to 1e25"
    if choose_tile(problem) is None:
        return f"the kernel spans {'x'.join(map(str, problem.extent))} voxels, more than a tile"
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time."""
    found = choose_tile(problem)
    return math.inf if found is None else found[1] / threads


def sum_of_magnitudes(problem: ConvProblem, weights: NDArray[Any]) -> float:
    """The largest sum of |weights| of a filter: no output is larger than this times the largest voxel."""
    return float(np.abs(weights.reshape(-1, problem.filters).astype(np.float64)).sum(axis=0).max())


def line_instructions(radices: tuple[int, ...]) -> float:
    """Vector instructions an element takes in a transform: butterflies, loads and stores, twiddles of all stages but the last."""
    inner = [4 - 4 / radix for radix in radices[:-1]]
    return sum(BUTTERFLIES[radix] + 4 for radix in radices) + sum(inner)


@lru_cache(maxsize=64)
def choose_tile(problem: ConvProblem) -> tuple[Size, float] | None:
    """The quickest tile and its predicted seconds on one thread; None if there is none.

    Seconds are instructions, bytes that leave the inner caches, and packing, each at a measured rate (see `Rates`).
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
    # shares of these bytes that come from the outer cache and from memory
    megabytes = (workspace + spectrum_bytes) / 2**20
    outer, memory = np.clip((megabytes - 0.75) / 2, 0, 1), np.clip((megabytes - 8) / 16, 0, 1)
    packed_rows = packed_planes * channels * np.minimum(rows, out[1] + extent[1] - 1)
    packed = packed_rows * np.minimum(kept_columns + columns, out[2] + extent[2] - 1)
    each = (
        RATES.instruction * instructions
        + (RATES.outer_byte * outer + RATES.memory_byte * memory) * moved
        + RATES.line * step_planes / planes * elements
        + RATES.packed_row * packed_rows + RATES.packed * packed
    )  # fmt: skip
    total = (
        bands * each
        + RATES.stored * math.prod(problem.out_shape)
        + RATES.prepared * spectrum_bytes * problem.groups
    )
    total = total * (1 + 1 / (bands * blocks))  # threads wait for the last task
    total = total * (RATES.several_filters if filters > 1 and channels == 1 else 1)
    best = int(np.argmin(np.where(fits, total, np.inf)))
    return Size(int(planes[best]), int(rows[best]), int(columns[best])), float(total[best]) * 1e-9


def task_depth(kept_planes: Any) -> Any:
    """Planes of a task: whole steps, about `MOST_PLANES`."""
    return kept_planes * -(-MOST_PLANES // kept_planes)


def plan_layout(
    problem: ConvProblem, tile: Size, dtype: np.dtype[Any]
) -> tuple[TileLayout, dict[str, int]]:
    """The memory of a task, and its `P` fields that are sizes and places."""
    size = dtype.itemsize
    lanes = cpu_class().lanes * 4 // size
    kept = Size(*(n - e + 1 for n, e in zip(tile, problem.extent, strict=True)))
    filters, channels = problem.filters_per_group, problem.channels_per_group
    element = 2 * lanes * size
    # an odd number of cache lines apart, or lines along height and depth would share cache sets
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
    places, workspace = {}, 0
    for name, part in parts.items():
        places[name] = workspace
        workspace += -(-part // 64) * 64 + 64
    del places["ring"]  # begins the workspace
    places |= {
        "tile_planes": tile.depth, "tile_rows": tile.height, "tile_columns": tile.width, "kept_columns": kept.width,
        "plane_row": plane_row, "plane_bytes": plane_bytes,
    }  # fmt: skip
    columns = kept.width + tile.width
    row_step = spread_rows(columns)
    channel_step = tile.height * row_step
    sums_row = spread_rows(2 * kept.width + 16)
    sums_plane = tile.height * sums_row
    layout = TileLayout(
        Size(task_depth(kept.depth), kept.height, 2 * kept.width), kept.depth, 1, "rows", row_step, row_step, channel_step,
        channel_step, channels * channel_step + 16, (sums_plane, 0, sums_row, 1), filters * sums_plane, workspace,
    )  # fmt: skip
    return layout, places


def digit_reversed(radices: tuple[int, ...]) -> NDArray[np.int64]:
    """The frequency that stands at each position after the forward stages.

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
    """The stages of a line for the loops: their number, then (radix, span, blocks, address of twiddles) each; and the twiddles.

    Twiddles of a stage: (span, radix - 1, re | im), exp(-2 pi i n k / (radix * span)), rounded from float64.
    """
    table, keep = [len(radices)], []
    length, blocks = math.prod(radices), 1
    for radix in radices:
        span = length // radix
        n, k = np.arange(span)[:, None], np.arange(1, radix)[None, :]
        factors = np.exp(-2j * np.pi * (n * k % length) / length)
        twiddles = np.ascontiguousarray(factors, np.complex128).view(np.float64).astype(dtype)
        if not twiddles.size:
            twiddles = np.zeros(1, dtype)
        keep.append(twiddles)
        table += [radix, span, blocks, twiddles.ctypes.data]
        length, blocks = span, blocks * radix
    return np.array(table, np.int64), keep


def kernel_spectrum(
    problem: ConvProblem, weights: NDArray[Any], tile: Size, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The spectra by which lines along depth are multiplied: conjugate, since taps are not flipped, and scaled by 1/n.

    Returns (group, row block, column, filter, channel, depth, re | im, lane), frequencies in the transforms' order.
    """
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    groups, filters, channels = (
        problem.groups,
        problem.filters_per_group,
        problem.channels_per_group,
    )
    (kd, kh, kw), dilation = problem.kernel_size, problem.dilation_rate
    radices = (DEPTH_SIZES[tile.depth], PLANE_SIZES[tile.height], PLANE_SIZES[tile.width])
    order = [digit_reversed(stages) for stages in radices]

    # (filters in all, channels, kd, kh, kw)
    taps = weights.astype(dtype).astype(np.float64).transpose(4, 3, 0, 1, 2)
    spread = np.zeros((*taps.shape[:4], (kw - 1) * dilation[2] + 1))
    spread[..., :: dilation[2]] = taps
    along_width = np.fft.ifft(spread, tile.width)[..., order[2]]
    # (..., re kh | im kh, column)
    columns = np.concatenate([along_width.real, along_width.imag], axis=-2)
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


def real_matrix(
    frequencies: NDArray[np.int64], taps: int, dilation: int, length: int
) -> NDArray[np.float64]:
    """The inverse transform of taps that are `dilation` apart, (re and im in turn of each frequency, re taps | im taps).

    >>> real_matrix(np.array([1]), 2, 1, 4).round(2) + 0.0
    array([[ 0.25,  0.  ,  0.  , -0.25],
           [ 0.  ,  0.25,  0.25,  0.  ]])
    """
    places = frequencies[:, None] * (np.arange(taps) * dilation)[None, :] % length
    waves = np.exp(2j * np.pi * places / length) / length
    real = np.stack(
        [np.concatenate([waves.real, -waves.imag], 1), np.concatenate([waves.imag, waves.real], 1)],
        1,
    )
    return real.reshape(2 * len(frequencies), 2 * taps)


def multiply(matrix: NDArray[Any], columns: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """matrix (rows, terms) @ columns (..., terms, columns), in dtype; columns are whole vectors."""
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
    """What `multiply` runs."""
    return machine_code("products", "products", cpu_class().lanes * 4 // dtype.itemsize, dtype.name)


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Spectrum, twiddles and loops of one problem."""
    found = choose_tile(problem)
    assert found is not None, "rejected"
    tile = found[0]
    layout, places = plan_layout(problem, tile, dtype)
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    absorb, planes, depth = (
        machine_code("fft", factory, lanes, dtype.name)
        for factory in ("absorb_plane", "convolve_planes", "convolve_depth")
    )
    keep: list[Any] = []
    radices = (DEPTH_SIZES[tile.depth], PLANE_SIZES[tile.height], PLANE_SIZES[tile.width])
    for name, stages in zip(("stages_d", "stages_h", "stages_w"), radices, strict=True):
        table, twiddles = stage_table(stages, dtype)
        keep += [table, twiddles]
        places[name] = table.ctypes.data
    places["convolve_depth"] = 0
    places["fence"] = int(np.array(HUGE).view(np.int64))
    parameters = np.array([places[name] for name in P._fields], np.int64)
    return PreparedAlgorithm(
        layout, planes, lambda: kernel_spectrum(problem, weights, tile, dtype), parameters, absorb=absorb, spreads_nonfinite=True,
        checks_nonfinite=True, calls={P.convolve_depth: depth}, packs_weights=products_code(dtype), keep=keep,
        weight_bytes=spectrum_bytes(problem, tile, dtype),
    )  # fmt: skip


def spectrum_bytes(problem: ConvProblem, tile: Size, dtype: np.dtype[Any]) -> WeightBytes:
    """What the spectra take: themselves, and while they are made the steps of `kernel_spectrum`, axis after axis."""
    real, (kd, kh, kw) = dtype.itemsize, problem.kernel_size
    kernels = problem.filters * problem.channels_per_group
    lines = kernels * kd * kh * tile.width
    planes = kernels * kd * tile.height * tile.width
    kept = 2 * real * kernels * math.prod(tile)
    taps = 8 * kernels * kd * kh * (kw + problem.extent[2])
    # complex: what is transformed, the transform, and in its order
    along_width = 2 * 16 * lines + 2 * taps
    along_height = (
        2 * 16 + 2 * real
    ) * lines + 2 * real * planes  # real and imaginary parts apart, rounded, summed
    rows = -(-2 * tile.depth // PRODUCT_ROWS) * PRODUCT_ROWS
    summed = real * kernels * rows * tile.height * tile.width
    # planes, and in order; their sums, of which some are kept
    along_depth = 16 * lines + 2 * 2 * real * planes + summed
    return WeightBytes(kept, taps + max(along_width, along_height, along_depth))


ALGORITHM = Algorithm(
    name="fft",
    summary="overlap-save tiles by fast Fourier transforms; large kernels of any form, strides 1",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

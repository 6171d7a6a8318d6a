"""Overlap-save FFT tiles: large kernels at a cost that hardly grows with their size.

The volume is cut into overlapping tiles whose circular convolution with the kernel, a product of spectra, is right in the part
that is kept. Two tiles side by side travel as one complex tile (`loops/fft.py`). The sizes along the three axes are chosen for the
problem out of many, by what they are predicted to cost; packing makes the boundary, so every mode is exact.

A voxel's error is relative to the largest voxel of its tile (about 1e-7 of sum|w| max|x| in float32), so it may differ from zero
where the direct sum would be exactly zero. NaN and infinity would spread over a tile. So does an overflow on the way, which numbers
above about 1e31 may meet: sums there may be larger than the result by the number of a tile's elements. All these leave NaN or infinity
in the sums of the step, which is looked for, and the step is done over by `direct`.

Source: Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3 (overlap-save); Cooley & Tukey 1965; Good 1958 (radix 6).
"""

from __future__ import annotations

import itertools
import math
from collections import namedtuple
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm, Tile, TileLayout, spread_rows
from conv3d_cli.model.spec import ConvProblem

# What the loops need beyond the step record, as int64 numbers. `stages_*` and `convolve_depth` are addresses; from `plane` on,
# offsets in bytes into the workspace; `fence` is a float64.
P: Any = namedtuple(  # type: ignore[misc]  # a namedtuple, since Numba takes its members as constants
    "P",
    "tile_planes tile_rows tile_columns kept_columns stages_d stages_h stages_w convolve_depth plane_row plane_bytes "
    "plane buffer lines sources targets zeros results fence",
)(*range(18))

# Below this many taps the direct sum is quicker, and exact where numbers are whole.
LEAST_TAPS = 65
# A kernel's spectra may take this much memory.
MOST_SPECTRUM_BYTES = 1 << 30

# Tiles with numbers from here on, sentinels mostly, are left to the direct sum even where nothing overflows: a tile's rounding noise
# is relative to its largest number.
HUGE = 1e30

# Depth of a task: planes are transformed once a task, save those that its neighbours need too.
MOST_PLANES = 128

# Tile sizes along height and width, whole vectors, and along depth, with the radices of their stages. The first stage of a depth
# line gathers and the last one multiplies by the spectrum, so it has two at least; 1 copies.
PLANE_SIZES = {
    16: (4, 4), 32: (4, 8), 48: (6, 8), 64: (8, 8), 80: (2, 5, 8), 96: (3, 4, 8), 128: (4, 4, 8), 144: (3, 6, 8),
    160: (4, 5, 8), 192: (4, 6, 8), 256: (4, 8, 8),
}  # fmt: skip
DEPTH_SIZES = {
    1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (1, 4), 5: (1, 5), 6: (1, 6), 8: (1, 8), 10: (2, 5), 12: (3, 4), 16: (4, 4), 20: (4, 5),
    24: (4, 6), 32: (4, 8), 40: (5, 8), 48: (6, 8), 64: (8, 8), 80: (2, 5, 8), 96: (3, 4, 8), 128: (4, 4, 8), 160: (4, 5, 8),
    192: (4, 6, 8), 256: (4, 8, 8),
}  # fmt: skip


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


@lru_cache(maxsize=64)
def choose_tile(problem: ConvProblem) -> tuple[Tile, float] | None:
    """The quickest tile and its predicted seconds on one thread; None if there is none."""
    extent, out = problem.extent, problem.out_size
    filters, channels = problem.filters_per_group, problem.channels_per_group
    best = None
    for rows, columns in itertools.product(PLANE_SIZES, PLANE_SIZES):
        kept_rows, kept_columns = rows - extent[1] + 1, columns - extent[2] + 1
        if min(kept_rows, kept_columns) < 1:
            continue
        tasks = -(-out[1] // kept_rows) * -(-out[2] // (2 * kept_columns))
        for planes in DEPTH_SIZES:
            kept_planes = planes - extent[0] + 1
            if kept_planes < 1 or planes * rows * columns * 8 * channels * problem.filters > MOST_SPECTRUM_BYTES:
                continue
            steps = -(-out[0] // kept_planes)
            elements = rows * columns / 16
            forward = (out[0] + extent[0] - 1) * channels * elements * 2 * 15
            depth = steps * elements * planes * (channels * 12 + filters * (4 * channels + 12))
            inverse = out[0] * filters * elements * (15 + 12 * kept_columns / columns)
            cost = (forward + depth + inverse) * tasks * problem.groups * problem.batch * 0.4e-9
            if best is None or cost < best[1]:
                best = Tile(planes, rows, columns), cost
    return best


def plan_layout(problem: ConvProblem, tile: Tile, dtype: np.dtype[Any]) -> tuple[TileLayout, dict[str, int]]:
    """The memory of a task, and its `P` fields that are sizes and places."""
    size = dtype.itemsize
    lanes = cpu_class().lanes * 4 // size
    kept = Tile(*(n - e + 1 for n, e in zip(tile, problem.extent, strict=True)))
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
    depth = kept.depth * max(1, -(-MOST_PLANES // kept.depth))
    layout = TileLayout(
        Tile(depth, kept.height, 2 * kept.width), kept.depth, 1, "rows", row_step, row_step, channel_step, channel_step,
        channels * channel_step + 16, (sums_plane, 0, sums_row, 1), filters * sums_plane, workspace,
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


def stage_table(radices: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
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


def kernel_spectrum(problem: ConvProblem, weights: NDArray[Any], tile: Tile, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The spectra by which lines along depth are multiplied: conjugate, since taps are not flipped, and scaled by 1/n.

    Returns (group, row block, column, filter, channel, depth, re | im, lane), frequencies in the transforms' order.
    """
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    radices = (DEPTH_SIZES[tile.depth], PLANE_SIZES[tile.height], PLANE_SIZES[tile.width])
    matrices = []
    for n, stages, kernel, dilation in zip(tile, radices, problem.kernel_size, problem.dilation_rate, strict=True):
        places = digit_reversed(stages)[:, None] * (np.arange(kernel) * dilation)[None, :]
        matrices.append(np.exp(2j * np.pi * (places % n) / n) / n)
    groups, filters, channels = problem.groups, problem.filters_per_group, problem.channels_per_group
    by_filter = weights.astype(dtype).astype(np.float64).transpose(4, 3, 0, 1, 2)  # (filters in all, channels, kd, kh, kw)
    along_width = by_filter @ matrices[2].T
    planes = matrices[1] @ along_width  # (filters, channels, kd, rows, columns)
    kd = problem.kernel_size[0]
    planes = planes.reshape(groups, filters, channels, kd, tile.height // lanes, lanes, tile.width)
    planes = planes.transpose(0, 4, 6, 1, 2, 3, 5)  # (group, row block, column, filter, channel, kd, lane)
    # the last axis as a product of real matrices, whose rows alternate between re and im
    columns = np.concatenate([planes.real, planes.imag], axis=-2).astype(dtype)
    along = matrices[0]
    real = np.stack([np.concatenate([along.real, -along.imag], 1), np.concatenate([along.imag, along.real], 1)], 1)
    return np.ascontiguousarray(real.reshape(2 * tile.depth, 2 * kd).astype(dtype) @ columns)


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Spectrum, twiddles and loops of one problem."""
    found = choose_tile(problem)
    assert found is not None, "rejected"
    tile = found[0]
    layout, places = plan_layout(problem, tile, dtype)
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    absorb, planes, depth = (
        machine_code("fft", factory, lanes, dtype.name) for factory in ("absorb_plane", "convolve_planes", "convolve_depth")
    )
    keep: list[Any] = [depth]
    radices = (DEPTH_SIZES[tile.depth], PLANE_SIZES[tile.height], PLANE_SIZES[tile.width])
    for name, stages in zip(("stages_d", "stages_h", "stages_w"), radices, strict=True):
        table, twiddles = stage_table(stages, dtype)
        keep += [table, twiddles]
        places[name] = table.ctypes.data
    places["convolve_depth"] = depth.address
    places["fence"] = int(np.array(HUGE).view(np.int64))
    parameters = np.array([places[name] for name in P._fields], np.int64)
    spectrum = kernel_spectrum(problem, weights, tile, dtype)
    return PreparedAlgorithm(layout, planes, spectrum, parameters, absorb=absorb, fenced=True, checks=True, keep=keep)


ALGORITHM = Algorithm(
    name="fft",
    summary="overlap-save tiles by fast Fourier transforms; large kernels of any form, strides 1",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

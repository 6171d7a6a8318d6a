"""Separable kernels: three short filters instead of one large kernel, where the kernel is their outer product.

Gaussian, box, Sobel and every other outer product of three filters need kd + kh + kw multiplications a voxel instead of
kd·kh·kw. A sum of a few outer products (Laplacian of Gaussian) is as good: the kernel is written as

    K[d, h, w] = Σ_a Σ_b depth[a, d] · height[b, h] · width[a, b, w]

with few a and b, found by singular value decompositions along depth and height (a Tucker decomposition, Kolda and Bader,
SIAM Review 51 (2009) 455-500, section 4, with the core kept in `width`). Accepted only where that is exact
within the rounding of the arithmetic. The passes run over tiles, see `loops/separable.py`.

NaN and infinity reach the same voxels as in the direct sum where there is one term: a product is not finite if one factor
is. Several terms may be of opposite signs; then such steps are computed again.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.tile import (
    Algorithm,
    PreparedAlgorithm,
    TileLayout,
    WeightBytes,
    packed_size,
    rows_layout,
)
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem

Array = NDArray[np.float64]

# Sum of |error| of the factorisation, relative to the sum of |weights|.
EXACT = {"float32": 2.0**-23, "float64": 2.0**-48}
# Terms of opposite signs multiply the rounding error by (sum of all terms' |weights|) / (sum of |weights|): so much at most.
CANCELLATION = 3.0
MOST_TERMS = 3
MOST_FILTERS = 4  # a group's; each has planes of its own in the ring
# Equal terms, as of a constant volume, all round the same way: 32 in a row keep three passes below 1e-6 (measured for boxes
# of up to 201 taps a side).
CHUNK_TAPS, CHUNK_PAIRS = 32, 32
# Bytes a task may hold: the ring and what is on its way there, in an L2 of 1 MiB.
TILE_BYTES = 3 << 18
BLOCK_BYTES = 1 << 15  # sums of a block of rows, computed and then stored


class Factors(NamedTuple):
    """A group of filters in factors: depth (filters, a, kd), height (filters, b, kh), width (filters, a, b, kw), float64."""

    depth: Array
    height: Array
    width: Array

    @property
    def kept(self) -> int:
        return int(self.depth.shape[1])

    @property
    def terms(self) -> int:
        return int(self.height.shape[1])

    @property
    def taps(self) -> int:
        """Multiplications a voxel and filter."""
        kd, kh, kw = (int(f.shape[-1]) for f in (self.depth, self.height, self.width))
        return self.terms * kh + self.kept * self.terms * kw + self.kept * kd


def factorise(weights: NDArray[Any]) -> Factors | None:
    """The factors of weights (kd, kh, kw, 1, filters), exact to the rounding of their dtype; None where there are none."""
    weights = np.ascontiguousarray(weights)
    return _factorise(weights.tobytes(), weights.dtype.name, weights.shape)


@lru_cache(maxsize=8)
def _factorise(data: bytes, dtype: str, shape: tuple[int, ...]) -> Factors | None:
    weights = np.frombuffer(data, dtype).reshape(shape).astype(np.float64)
    if not np.isfinite(weights).all():
        return None
    found = []
    for f in range(shape[4]):
        one = _factorise_one(weights[..., 0, f], EXACT[dtype])
        if one is None:
            return None
        found.append(one)
    kept, terms = (max(len(one[axis]) for one in found) for axis in (0, 1))
    kd, kh, kw = shape[:3]
    factors = Factors(
        np.zeros((len(found), kept, kd)),
        np.zeros((len(found), terms, kh)),
        np.zeros((len(found), kept, terms, kw)),
    )
    for f, (depth, height, width) in enumerate(found):
        factors.depth[f, : len(depth)] = depth
        factors.height[f, : len(height)] = height
        factors.width[f, : len(depth), : len(height)] = width
    return factors


def _factorise_one(kernel: Array, exact: float) -> tuple[Array, Array, Array] | None:
    """(a, kd), (b, kh), (a, b, kw) of one kernel (kd, kh, kw), or None."""
    allowed = exact * np.abs(kernel).sum()
    by_slices = _tidy(kernel, exact, *_slices(kernel))
    if _error(kernel, *by_slices) <= allowed / 2:
        return by_slices
    depth = _basis(kernel, 0, allowed / 2)
    height = _basis(kernel, 1, allowed / 2)
    if depth is None or height is None:
        return None
    width = np.einsum("ad,bh,dhw->abw", depth, height, kernel)
    factors = _tidy(kernel, exact, depth, height, width)
    if not _error(kernel, *factors) <= allowed:
        return None
    absolute = np.einsum("ad,bh,abw->", *(np.abs(factor) for factor in factors))
    if absolute > CANCELLATION * np.abs(kernel).sum():
        return None
    return factors


def _slices(kernel: Array) -> tuple[Array, Array, Array]:
    """The lines through the largest weight: of an outer product, its factors, and as round as the weights themselves."""
    d, h, w = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    pivot = kernel[d, h, w] or 1.0
    return kernel[:, h, w][None] / pivot, kernel[d, :, w][None] / pivot, kernel[d, h, :][None, None]


def _basis(kernel: Array, axis: int, allowed: float) -> Array | None:
    """The fewest orthonormal vectors (n, k) whose span holds the kernel's lines along an axis; None beyond MOST_TERMS."""
    lines = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    vectors = np.linalg.svd(lines, full_matrices=False)[0].T
    for count in range(1, min(MOST_TERMS, len(vectors)) + 1):
        basis: Array = vectors[:count]
        if np.abs(lines - basis.T @ (basis @ lines)).sum() <= allowed:
            return basis * np.where(basis.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    return None


def _tidy(kernel: Array, exact: float, *factors: Array) -> tuple[Array, Array, Array]:
    """Exact zeros where the kernel is zero across, and exact symmetry where the factors have it but for rounding."""
    tidied = []
    for axis, factor in enumerate(factors):
        across = tuple(other for other in range(3) if other != axis)
        factor = np.where(np.any(kernel != 0, axis=across), factor, 0.0)
        mirrored = factor[..., ::-1]
        if np.abs(factor - mirrored).max() <= 8 * exact * np.abs(factor).max():
            factor = (factor + mirrored) / 2
        tidied.append(factor)
    return tidied[0], tidied[1], tidied[2]


def _error(kernel: Array, depth: Array, height: Array, width: Array) -> float:
    # Two products by NumPy's own loops: its BLAS leaves threads spinning that the run would have to share the CPUs with.
    product = np.einsum("ad,ahw->dhw", depth, np.einsum("bh,abw->ahw", height, width))
    return float(np.abs(product - kernel).sum())


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why a kernel is not computed by separate filters."""
    if problem.channels_per_group > 1:
        return f"each filter sums {problem.channels_per_group} channels, not 1"
    if problem.filters_per_group > MOST_FILTERS:
        return f"a channel has {problem.filters_per_group} filters, more than {MOST_FILTERS}"
    if sum(n > 1 for n in problem.kernel_size) < 2:
        return "the kernel has one axis: there is nothing to separate"
    factors = factorise(_as_real(weights))
    if factors is None:
        return f"the kernel is not a sum of outer products of at most {MOST_TERMS} filters an axis"
    if factors.taps >= problem.taps:
        return f"the separate filters have {factors.taps} taps, the kernel {problem.taps}"
    real = _as_real(weights).dtype
    largest = float(np.abs(_scaled(factors, halved=False).depth).max())
    if largest > float(
        np.finfo(real).max
    ):  # the last pass makes good what the first two are scaled down by
        return (
            f"the weights add up to so much that a factor of them, {largest:.3g}, is beyond {real}"
        )
    return None


def _as_real(weights: NDArray[Any]) -> NDArray[Any]:
    return weights.astype(np.float32 if weights.dtype == np.float32 else np.float64, copy=False)


class _Tiling(NamedTuple):
    """A tile, the bytes of the workspace's parts, and the predicted time of the whole problem on one core."""

    layout: TileLayout
    lines: int
    half_rows: int
    ring_plane: int
    ring: int
    seconds: float


# Nanoseconds of one core for a vector of 64 bytes: packed, a tap of each pass (folded or not), stored. Fitted to
# measurements of kernels of 3 to 41 taps an axis, Zen 4, 2026-11.
PACK, STORE = 4.0, 8.0
HEIGHT, WIDTH, DEPTH = {True: 0.26, False: 0.33}, 0.34, {True: 0.25, False: 0.33}
# more for each packed or stored where channels are interleaved: 2 to 8 of them, or more; and beyond 8 groups
INTERLEAVED, MANY_CHANNELS, MANY_GROUPS = 16.0, 28.0, 64.0
MOST_ROWS = 64  # of a tile: 128 took up to 1.4 times as long


def _sums() -> int:
    """Vectors of sums in registers: a folded pass needs three registers for each."""
    return 8 if cpu_class().registers >= 32 else 4


@lru_cache(maxsize=64)
def _best_tiling(
    problem: ConvProblem, kept: int, terms: int, folds: tuple[bool, bool], itemsize: int
) -> _Tiling:
    """The tile with the least predicted time: flops and bytes of halos against the cache that a ring needs."""
    sums = _sums()
    depth, height, width = problem.out_size
    step_depth = min(sums, 1 << (depth - 1).bit_length())
    heights = sorted(
        {
            min(sums * n, -(-height // sums) * sums)
            for n in (1, 2, 3, 4, 6, 8, 12, 16)
            if sums * n <= MOST_ROWS
        }
    )
    widths = {-(-width // n) for n in range(1, -(-width // 64) + 1) if -(-width // n) <= 1024}
    depths = {-(-depth // n) for n in (1, 2, 4) if depth // n >= 2 * problem.extent[0] or n == 1}
    found = [
        _tiling(
            problem,
            kept,
            terms,
            folds,
            itemsize,
            Size(-(-d // step_depth) * step_depth, h, w),
            step_depth,
        )
        for d in depths
        for h in heights
        for w in widths
    ]
    return min(found, key=lambda tiling: tiling.seconds)


def _tiling(
    problem: ConvProblem,
    kept: int,
    terms: int,
    folds: tuple[bool, bool],
    itemsize: int,
    tile: Size,
    step_depth: int,
) -> _Tiling:
    sums = _sums()
    kd, kh, kw = problem.kernel_size
    planes, rows, columns = packed_size(problem, tile)
    pitch = -(-tile.width // 16) * 16
    block = max(1, BLOCK_BYTES // (step_depth * pitch * itemsize))
    layout = rows_layout(
        problem,
        tile,
        step_depth=step_depth,
        ring=1,
        spare_rows=sums,
        sums_pitch=pitch,
        block_height=min(block, tile.height),
    )
    ring = packed_size(problem, tile._replace(depth=step_depth))[0]
    filters = problem.filters_per_group
    full_height = -(-tile.height // sums) * sums
    # an odd number of cache lines, so that a column's planes fall into different sets of the cache
    ring_plane = full_height * pitch * itemsize + 64
    ring_plane += 64 * (ring_plane // 64 % 2 == 0)
    half_rows = sums * layout.row_step * itemsize + 256
    lines = 8 * max(full_height * problem.strides[1] + rows, ring)
    lines = -(-lines // 64) * 64
    workspace = lines + terms * half_rows + filters * kept * ring * ring_plane + 256

    # vectors of a whole task
    packed = planes * rows * layout.row_step * itemsize / 64
    halves = planes * full_height * columns * itemsize / 64
    filtered = planes * full_height * pitch * itemsize / 64
    put = tile.depth * full_height * pitch * itemsize / 64
    fold_d, fold_h = folds
    held = workspace + rows * layout.row_step * itemsize
    far = 1.0 if held <= TILE_BYTES else 1.2 if held <= 4 * TILE_BYTES else 2.0
    strided_in, strided_out = (
        (0.0 if channels == 1 else INTERLEAVED if channels <= 8 else MANY_CHANNELS)
        + (MANY_GROUPS if problem.groups > 8 else 0.0)
        for channels in (problem.in_channels, problem.filters)
    )
    nanoseconds = (
        (PACK + strided_in) * packed
        + HEIGHT[fold_h] * filters * terms * kh * halves
        + WIDTH * filters * kept * terms * kw * filtered
        + DEPTH[fold_d] * far * filters * kept * kd * put
        + (STORE + strided_out) * filters * put
    )
    tasks = problem.groups * math.prod(
        -(-n // size) for n, size in zip(problem.out_size, tile, strict=True)
    )
    shared = -(-tasks // 4) * 4  # so that four threads have equal shares
    return _Tiling(
        dataclasses.replace(layout, workspace_bytes=workspace), lines, half_rows, ring_plane, ring,
        shared * problem.batch * nanoseconds * 1e-9,
    )  # fmt: skip


def _is_unit(problem: ConvProblem) -> list[bool]:
    """Whether neighbouring outputs of an axis share their taps' inputs."""
    return [
        s == 1 and rate == 1 for s, rate in zip(problem.strides, problem.dilation_rate, strict=True)
    ]


def _folds(problem: ConvProblem, factors: Factors) -> tuple[bool, bool]:
    """Whether the filters along depth, and along height, are all symmetric and neighbouring outputs share their lines."""
    unit_d, unit_h, _ = _is_unit(problem)
    depth, height, _ = ((factor == factor[..., ::-1]).all() for factor in factors)
    return bool(unit_d and depth), bool(unit_h and height)


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time."""
    factors = factorise(_as_real(weights))
    assert factors is not None
    folds = _folds(problem, factors)
    return (
        _best_tiling(
            problem, factors.kept, factors.terms, folds, np.dtype(weights.dtype).itemsize
        ).seconds
        / threads
    )


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Factors in the range that the passes want, and the tile."""
    factors = factorise(weights.astype(dtype))
    assert factors is not None
    fold_d, fold_h = _folds(problem, factors)
    tiling = _best_tiling(problem, factors.kept, factors.terms, (fold_d, fold_h), dtype.itemsize)
    layout = tiling.layout
    depth, height, width = _scaled(factors, fold_h)
    filters = problem.filters
    packed = np.concatenate(
        [part.reshape(filters, -1) for part in (height, width, depth)], axis=1
    ).astype(dtype)

    kd, kh, kw = problem.kernel_size
    along, stride = np.arange(kw) * problem.dilation_rate[2], problem.strides[2]
    offsets = (along % stride * layout.pitch + along // stride) * dtype.itemsize
    ring_at = tiling.lines + factors.terms * tiling.half_rows
    ring_row = layout.sums[2] * dtype.itemsize
    parameters = np.array(
        [
            kd, kh, kw, problem.dilation_rate[0], problem.dilation_rate[1], factors.terms, factors.kept, tiling.lines,
            tiling.half_rows, ring_at, tiling.ring_plane, tiling.ring, ring_row, offsets.ctypes.data,
        ],
        np.int64,
    )  # fmt: skip
    sums, lanes = _sums(), cpu_class().lanes * 4 // dtype.itemsize
    unit_d, unit_h, _ = map(int, _is_unit(problem))
    chunks = CHUNK_TAPS, CHUNK_PAIRS
    absorb = machine_code(
        "separable", "filter_plane", sums, int(fold_h), unit_h, *chunks, lanes, dtype.name
    )
    convolve = machine_code(
        "separable",
        "filter_depth",
        layout.step_depth,
        int(fold_d),
        unit_d,
        *chunks,
        lanes,
        dtype.name,
    )
    return PreparedAlgorithm(
        layout,
        convolve,
        lambda: packed,
        parameters,
        absorb=absorb,
        spreads_nonfinite=factors.kept * factors.terms > 1,
        keep=[offsets],
        weight_bytes=WeightBytes(packed.nbytes, packed.nbytes + 2 * weights.size * dtype.itemsize),
    )


def _scaled(factors: Factors, halved: bool) -> Factors:
    """The same kernel, with factors scaled by powers of two: what the first two passes give is at most half of max|volume|,
    so that no sum of two of it overflows. `halved`: the first pass halves the volume for the same reason."""

    def power(sums: Array) -> Array:
        return np.exp2(np.ceil(np.log2(np.where(sums > 0, sums, 1.0))))

    first = 2 * power(np.abs(factors.height).sum(axis=2))  # (filters, b)
    height = factors.height / first[:, :, None] * (2 if halved else 1)
    width = factors.width * first[:, None, :, None]
    second = power(np.abs(width).sum(axis=(2, 3)))  # (filters, a)
    return Factors(factors.depth * second[:, :, None], height, width / second[:, :, None, None])


ALGORITHM = Algorithm(
    name="separable",
    summary="a filter along each axis in turn, for kernels that are outer products or sums of a few",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

"""Separable kernels: a kernel that is an outer product of three 1-D filters, applied axis by axis.

Gaussian, box, Sobel and every other outer product of three filters need kd + kh + kw
multiplications per voxel instead of kd·kh·kw. A kernel that is the sum of a few outer products
(Laplacian of Gaussian) is factorised too:

    K[d, h, w] = Σ_a Σ_b depth[a, d] · height[b, h] · width[a, b, w]

with few a and b, found from the singular vectors along depth and height (a Tucker
decomposition, Kolda and Bader, SIAM Review 51 (2009) 455-500, section 4; `width` includes the
core). The algorithm accepts a kernel only if the factorisation is exact within the rounding of the
arithmetic. The passes run over tiles, see `loops/separable.py`.

With one term, NaN and infinity reach the same voxels as in the direct sum, since a product is not
finite if a factor is not. Several terms may have opposite signs; then such steps are recomputed.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import REFERENCE, CpuClass, cpu_class
from conv3d_cli.engine.machine_code import MachineCode, machine_code
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
from conv3d_cli.system.linear import leading_directions, remainders

Array = NDArray[np.float64]

# Tolerance of a factorisation: sum of |error| relative to sum of |weights|.
EXACT = {"float32": 2.0**-23, "float64": 2.0**-48}
# Terms of opposite signs multiply the rounding error by (sum of all terms' |weights|) / (sum of
# |weights|). This is the largest ratio accepted.
CANCELLATION = 3.0
MOST_TERMS = 3
MOST_FILTERS = 4  # per group; each filter needs its own planes in the ring
# The terms of a constant volume are equal and all round the same way: chunks of 32 keep the error
# of three passes below 1e-6 (measured for boxes of up to 201 taps per axis).
CHUNK_TAPS, CHUNK_PAIRS = 32, 32
# Loops of known numbers of taps take a tenth less time, but each size compiles its own for seconds:
# they are for outputs of many voxels. Taps are per axis; one chunk at most, so that the order of
# the sum is the same.
UNROLLED_TAPS, UNROLLED_VOXELS = 17, 1 << 23
# Bytes of a task's ring and of planes on their way into it, for an L2 of 1 MiB.
TILE_BYTES = 3 << 18
SPARE_COLUMNS = 16  # of the ring, whose columns lie in cache lines as those of the output do
BLOCK_BYTES = 1 << 15  # sums of a block of rows that are computed and then stored


class Factors(NamedTuple):
    """The factors of filters, all float64; a and b are those of the sum in the module's docstring.

    depth : (filters, a, kd)
    height : (filters, b, kh)
    width : (filters, a, b, kw)
    """

    depth: Array
    height: Array
    width: Array

    @property
    def depth_terms(self) -> int:
        """The number of filters along depth (a): as many filtered planes go into the ring."""
        return int(self.depth.shape[1])

    @property
    def height_terms(self) -> int:
        """The number of filters along height (b)."""
        return int(self.height.shape[1])

    @property
    def taps(self) -> int:
        """Multiplications per voxel and filter."""
        kd, kh, kw = (int(f.shape[-1]) for f in (self.depth, self.height, self.width))
        terms = self.depth_terms * self.height_terms
        return self.height_terms * kh + terms * kw + self.depth_terms * kd


def factorise(weights: NDArray[Any]) -> Factors | None:
    """The factors of a group's filters; None if a filter needs more than MOST_TERMS per axis.

    weights : (kd, kh, kw, 1, filters)      float32 or float64
    The factors are exact to the rounding of this dtype.

    >>> ones = factorise(np.ones((3, 5, 7, 1, 1)))
    >>> ones.depth.shape, ones.height.shape, ones.width.shape, ones.taps
    ((1, 1, 3), (1, 1, 5), (1, 1, 1, 7), 15)
    """
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
    depth_terms, height_terms = (max(len(one[axis]) for one in found) for axis in (0, 1))
    kd, kh, kw = shape[:3]
    factors = Factors(
        np.zeros((len(found), depth_terms, kd)),
        np.zeros((len(found), height_terms, kh)),
        np.zeros((len(found), depth_terms, height_terms, kw)),
    )
    for f, (depth, height, width) in enumerate(found):
        factors.depth[f, : len(depth)] = depth
        factors.height[f, : len(height)] = height
        factors.width[f, : len(depth), : len(height)] = width
    return factors


def _factorise_one(kernel: Array, exact: float) -> tuple[Array, Array, Array] | None:
    """The factors (a, kd), (b, kh), (a, b, kw) of one kernel (kd, kh, kw), or None."""
    allowed = exact * np.abs(kernel).sum()
    lines = _clean(kernel, exact, *_central_lines(kernel))
    if _error(kernel, *lines) <= allowed / 2:
        return lines
    depth = _basis(kernel, 0, allowed / 2)
    height = _basis(kernel, 1, allowed / 2)
    if depth is None or height is None:
        return None
    along_depth = [(line[:, None, None] * kernel).sum(axis=0) for line in depth]
    width = np.array([[(b[:, None] * a).sum(axis=0) for b in height] for a in along_depth])
    factors = _clean(kernel, exact, depth, height, width)
    if not _error(kernel, *factors) <= allowed:
        return None
    sizes_d, sizes_h, sizes = (np.abs(factor).sum(axis=-1) for factor in factors)
    if (sizes_d[:, None] * sizes_h * sizes).sum() > CANCELLATION * np.abs(kernel).sum():
        return None
    return factors


def _central_lines(kernel: Array) -> tuple[Array, Array, Array]:
    """The kernel's lines through its largest weight.

    They are the factors of an outer product, and inherit whole numbers from its weights.
    """
    d, h, w = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    pivot = kernel[d, h, w] or 1.0
    return kernel[:, h, w][None] / pivot, kernel[d, :, w][None] / pivot, kernel[d, h, :][None, None]


def _basis(kernel: Array, axis: int, allowed: float) -> Array | None:
    """The fewest orthonormal vectors (n, k) that span the kernel's lines along an axis.

    allowed : float     largest sum of |error|
    Returns None if more than MOST_TERMS vectors are needed.
    """
    lines = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    most = min(MOST_TERMS, *lines.shape)
    # Most kernels are no such sums, which is quickly seen: see the bound of `remainders`.
    hopeless = 2.0**most * math.sqrt(len(lines)) * allowed
    for count, remainder in enumerate(remainders(lines, most)):
        if count == 0 or remainder > hopeless:
            continue
        basis: Array = leading_directions(lines, count)
        rest = lines.copy()
        for direction in basis:
            rest -= direction[:, None] * (direction[:, None] * lines).sum(axis=0)
        if np.abs(rest).sum() <= allowed:
            return basis * np.where(basis.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    return None


def _clean(kernel: Array, exact: float, *factors: Array) -> tuple[Array, Array, Array]:
    """The factors without rounding noise.

    An element becomes 0 where the kernel's whole slice is 0; factors that are symmetric but for
    rounding become exactly symmetric.
    """
    cleaned = []
    for axis, factor in enumerate(factors):
        across = tuple(other for other in range(3) if other != axis)
        factor = np.where(np.any(kernel != 0, axis=across), factor, 0.0)
        mirrored = factor[..., ::-1]
        if np.abs(factor - mirrored).max() <= 8 * exact * np.abs(factor).max():
            factor = (factor + mirrored) / 2
        cleaned.append(factor)
    return cleaned[0], cleaned[1], cleaned[2]


def _error(kernel: Array, depth: Array, height: Array, width: Array) -> float:
    """The sum of |error| of a factorisation."""
    # not by NumPy's BLAS: its bits depend on the CPU, and its threads keep spinning and would
    # compete with the run
    rest = kernel.copy()
    for along_depth, planes in zip(depth, width, strict=True):
        plane = np.zeros(kernel.shape[1:])
        for along_height, line in zip(height, planes, strict=True):
            plane += along_height[:, None] * line
        rest -= along_depth[:, None, None] * plane
    return float(np.abs(rest).sum())


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why a kernel cannot be separated, or need not be; None if it is separable."""
    if problem.channels_per_group > 1:
        return f"each filter sums {problem.channels_per_group} channels, not 1"
    if problem.filters_per_group > MOST_FILTERS:
        return f"a channel has {problem.filters_per_group} filters, more than {MOST_FILTERS}"
    if sum(n > 1 for n in problem.kernel_size) < 2:
        return "the kernel has one axis: there is nothing to separate"
    factors = factorise(_as_real(weights))
    if factors is None:
        return f"the kernel is not a sum of outer products of at most {MOST_TERMS} filters per axis"
    if factors.taps >= problem.taps:
        return f"the separate filters have {factors.taps} weights, the kernel {problem.taps}"
    # the depth factors include the scale that the first two passes leave out
    real = _as_real(weights).dtype
    largest = float(np.abs(_scaled(factors, halved=False).depth).max())
    if largest > float(np.finfo(real).max):
        return f"the weights are so large that a factor of them, {largest:.3g}, overflows {real}"
    return None


def _as_real(weights: NDArray[Any]) -> NDArray[Any]:
    return weights.astype(np.float32 if weights.dtype == np.float32 else np.float64, copy=False)


class _Tiling(NamedTuple):
    """A tile, the sizes of the workspace's parts, and the predicted time on one core.

    lines : int         bytes of a table of line addresses; there are two
    half_rows : int     bytes of the rows filtered along the height, per term
    ring_plane : int    bytes of a plane in the ring of filtered planes
    ring : int          planes of the ring
    seconds : float     predicted time of the whole problem
    """

    layout: TileLayout
    lines: int
    half_rows: int
    ring_plane: int
    ring: int
    seconds: float


# Nanoseconds of one core per vector of 64 bytes: to pack and to store it, and per tap of each pass
# (True: folded). Fitted to measurements of kernels of 3 to 41 taps per axis, Zen 4, 2026-11.
PACK = 4.0
# True: rows of one channel; 6 ns less since these are joined and passes are unrolled, 2026-11-30
STORE = {True: 2.0, False: 8.0}
ROW = 30.0  # of each packed and each stored row: many short ones take longer than few long ones
HEIGHT, WIDTH, DEPTH = {True: 0.26, False: 0.33}, 0.34, {True: 0.25, False: 0.33}
# additional nanoseconds per packed or stored vector: with 2 to 8 interleaved channels; with more;
# with more than 8 groups
INTERLEAVED, MANY_CHANNELS, MANY_GROUPS = 16.0, 28.0, 64.0
MOST_ROWS = 64  # of a tile: 128 took up to 1.4 times as long


def _sums(cpu: CpuClass) -> int:
    """The vectors of sums in registers; a folded pass needs three registers for each."""
    return 8 if cpu.registers >= 32 else 4


@lru_cache(maxsize=64)
def _best_tiling(
    problem: ConvProblem,
    depth_terms: int,
    height_terms: int,
    folds: tuple[bool, bool],
    itemsize: int,
    sums: int,
) -> _Tiling:
    """The tiling with the least predicted time.

    Small tiles compute more halo; the rings of large tiles do not fit the cache.
    """
    depth, height, width = problem.out_size
    step_depth = min(sums, 1 << (depth - 1).bit_length())
    bands = [n for n in (1, 2, 3, 4, 6, 8, 12, 16) if sums * n <= MOST_ROWS]
    heights = sorted({min(sums * n, -(-height // sums) * sums) for n in bands})
    widths = {-(-width // n) for n in range(1, -(-width // 64) + 1) if -(-width // n) <= 1024}
    depths = {-(-depth // n) for n in (1, 2, 4) if depth // n >= 2 * problem.extent[0] or n == 1}
    tiles = [
        Size(-(-d // step_depth) * step_depth, h, w)
        for d in depths
        for h in heights
        for w in widths
    ]
    tilings = [
        _tiling(problem, depth_terms, height_terms, folds, itemsize, sums, tile, step_depth)
        for tile in tiles
    ]
    return min(tilings, key=lambda tiling: tiling.seconds)


def _tiling(
    problem: ConvProblem,
    depth_terms: int,
    height_terms: int,
    folds: tuple[bool, bool],
    itemsize: int,
    sums: int,
    tile: Size,
    step_depth: int,
) -> _Tiling:
    """The layout, workspace and predicted time for one tile.

    folds : (bool, bool)    see `_folds`
    sums : int              vectors of sums in registers
    """
    kd, kh, kw = problem.kernel_size
    planes, rows, columns = packed_size(problem, tile)
    pitch = -(-tile.width // 16) * 16 + SPARE_COLUMNS
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
    # an odd number of cache lines, so that the planes of one column use different cache sets
    ring_plane = full_height * pitch * itemsize + 64
    ring_plane += 64 * (ring_plane // 64 % 2 == 0)
    half_rows = sums * layout.row_step * itemsize + 256
    lines = 8 * max(full_height * problem.strides[1] + rows, depth_terms * ring)
    lines = -(-lines // 64) * 64
    planes_in_ring = filters * depth_terms * ring
    workspace = 2 * lines + height_terms * half_rows + planes_in_ring * ring_plane + 256

    # vectors of a task: packed, filtered along height, along width, along depth
    packed = planes * rows * layout.row_step * itemsize / 64
    along_height = planes * full_height * columns * itemsize / 64
    along_width = planes * full_height * pitch * itemsize / 64
    along_depth = tile.depth * full_height * pitch * itemsize / 64
    fold_d, fold_h = folds
    task_bytes = workspace + rows * layout.row_step * itemsize
    slower = 1.0 if task_bytes <= TILE_BYTES else 1.4 if task_bytes <= 4 * TILE_BYTES else 3.0
    strided_in, strided_out = (
        (0.0 if channels == 1 else INTERLEAVED if channels <= 8 else MANY_CHANNELS)
        + (MANY_GROUPS if problem.groups > 8 else 0.0)
        for channels in (problem.in_channels, problem.filters)
    )
    nanoseconds = (
        (PACK + strided_in) * packed
        + HEIGHT[fold_h] * filters * height_terms * kh * along_height
        + WIDTH * filters * depth_terms * height_terms * kw * along_width
        + DEPTH[fold_d] * slower * filters * depth_terms * kd * along_depth
        + (STORE[problem.filters == 1] + strided_out) * filters * along_depth
        + ROW * (planes * rows + filters * tile.depth * full_height)
    )
    tasks = problem.groups * math.prod(
        -(-n // size) for n, size in zip(problem.out_size, tile, strict=True)
    )
    rounded_tasks = -(-tasks // 4) * 4  # four threads take as long as the one with the most tasks
    return _Tiling(
        layout=dataclasses.replace(layout, workspace_bytes=workspace),
        lines=lines,
        half_rows=half_rows,
        ring_plane=ring_plane,
        ring=ring,
        seconds=rounded_tasks * problem.batch * nanoseconds * 1e-9,
    )


def _is_unit(problem: ConvProblem) -> list[bool]:
    """Per axis, whether stride and dilation are 1, so that neighbouring outputs share inputs."""
    return [
        s == 1 and rate == 1 for s, rate in zip(problem.strides, problem.dilation_rate, strict=True)
    ]


def _folds(problem: ConvProblem, factors: Factors) -> tuple[bool, bool]:
    """Whether the passes along depth and along height are folded.

    They are if all their filters are symmetric, and stride and dilation are 1.
    """
    unit_d, unit_h, _ = _is_unit(problem)
    depth, height, _ = ((factor == factor[..., ::-1]).all() for factor in factors)
    return bool(unit_d and depth), bool(unit_h and height)


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    factors = factorise(_as_real(weights))
    assert factors is not None
    tiling = _tiling_of(problem, factors, weights.dtype, _sums(REFERENCE))
    return tiling.seconds / threads


def _tiling_of(problem: ConvProblem, factors: Factors, dtype: np.dtype[Any], sums: int) -> _Tiling:
    terms = factors.depth_terms, factors.height_terms
    return _best_tiling(problem, *terms, _folds(problem, factors), dtype.itemsize, sums)


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """The scaled factors in the order in which the passes read them, the layout and the loops."""
    factors = factorise(weights.astype(dtype))
    assert factors is not None
    fold_d, fold_h = _folds(problem, factors)
    # Steps with NaN are recomputed as a whole if there are several terms: then every CPU must have
    # the same ones.
    several = factors.depth_terms * factors.height_terms > 1
    sums = _sums(REFERENCE if several else cpu_class())
    tiling = _tiling_of(problem, factors, dtype, sums)
    layout = tiling.layout
    depth, height, width = _scaled(factors, fold_h)
    parts = [part.reshape(problem.filters, -1) for part in (height, width, depth)]
    packed = np.concatenate(parts, axis=1).astype(dtype)

    kd, kh, kw = problem.kernel_size
    along, stride = np.arange(kw) * problem.dilation_rate[2], problem.strides[2]
    offsets = (along % stride * layout.pitch + along // stride) * dtype.itemsize
    half_at = 2 * tiling.lines  # behind two tables
    ring_at = half_at + factors.height_terms * tiling.half_rows
    ring_row = layout.sums[2] * dtype.itemsize
    parameters = np.array(
        [
            kd,
            kh,
            kw,
            problem.dilation_rate[0],
            problem.dilation_rate[1],
            factors.height_terms,
            factors.depth_terms,
            half_at,
            tiling.half_rows,
            ring_at,
            tiling.ring_plane,
            tiling.ring,
            ring_row,
            offsets.ctypes.data,
            tiling.lines,
        ],
        np.int64,
    )
    lanes = cpu_class().lanes * 4 // dtype.itemsize
    unit_d, unit_h, _ = map(int, _is_unit(problem))
    most = UNROLLED_TAPS if math.prod(problem.out_size) >= UNROLLED_VOXELS else 0
    known_d, known_h, known_w = (
        taps if is_unit and taps <= most else 0
        for taps, is_unit in zip(problem.kernel_size, _is_unit(problem), strict=True)
    )
    chunks = CHUNK_TAPS, CHUNK_PAIRS, lanes

    def filter_plane(bits: int) -> MachineCode:
        constants = sums, int(fold_h), unit_h, known_h, known_w, *chunks, bits, dtype.name
        return machine_code("separable", "filter_plane", *constants)

    filter_depth = layout.step_depth, int(fold_d), unit_d, known_d, *chunks, dtype.name
    return PreparedAlgorithm(
        layout=layout,
        convolve=machine_code("separable", "filter_depth", *filter_depth),
        pack_weights=lambda: packed,
        parameters=parameters,
        absorb=filter_plane(0),
        in_place=None if several or problem.strides[2] > 1 else filter_plane,
        spreads_nonfinite=several,
        keep=[offsets],
        rows=sums,
        weight_bytes=WeightBytes(packed.nbytes, packed.nbytes + 2 * weights.size * dtype.itemsize),
    )


def _scaled(factors: Factors, halved: bool) -> Factors:
    """The factors, scaled by powers of two so that no sum of two filtered values overflows.

    halved : bool       the first pass halves the volume when it loads it, for the same reason
    Filtered along height and width, no value exceeds max|volume| / 2; the depth factors compensate.
    """

    def power(sums: Array) -> Array:
        mantissas, exponents = np.frexp(np.where(sums > 0, sums, 1.0))
        return np.asarray(np.ldexp(1.0, exponents - (mantissas == 0.5)))

    first = 2 * power(np.abs(factors.height).sum(axis=2))  # (filters, b)
    height = factors.height / first[:, :, None] * (2 if halved else 1)
    width = factors.width * first[:, None, :, None]
    second = power(np.abs(width).sum(axis=(2, 3)))  # (filters, a)
    return Factors(factors.depth * second[:, :, None], height, width / second[:, :, None, None])


ALGORITHM = Algorithm(
    name="separable",
    summary="a filter along each axis in turn: kernels that are outer products, or sums of a few",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

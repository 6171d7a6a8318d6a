"""Fourier tiles of many channels: the products of spectra are matrix products over the channels.

The volume is divided into overlapping tiles (overlap-save, as in `fft`), whose transforms have
vectors of channels as elements. At each frequency, the tiles of a step form one complex matrix
product: (tiles x channels) * (channels x filters). The tiles' sizes are those with the least
predicted cost. For a 5x5x5 kernel between 64 channels, tiles of 12^3 need 18 times fewer
multiplications than the direct sum.

A voxel's error is relative to the largest voxel of its tile. NaN, infinity and huge numbers, which
could overflow in a transform, would spread over a tile; packing finds them, and `direct` recomputes
their steps.

Source: Zlateski, Jia, Li & Durand, "FFT convolutions are faster than Winograd on modern CPUs, here
is why", arXiv 1809.07851; Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3.
"""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms.fft import BUTTERFLIES, sum_of_magnitudes
from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.step import AlgorithmData, Output, Source, StepRecord
from conv3d_cli.engine.tile import (
    Algorithm,
    PreparedAlgorithm,
    TileLayout,
    WeightBytes,
    voxels_layout,
)
from conv3d_cli.engine.views import aligned_zeros
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem

# Indices of the loops' int64 parameters. `convolve_depth` and `multiply_spectra` are addresses;
# `table`, `lines`, `products`, `results` and `buffer` are byte offsets into the workspace, which
# begins with the spectra; those that end in `_step`, `_row` or `_plane` are distances in bytes, and
# `group_weights` is a size in bytes. `few` frequencies of the plane are convolved along depth at
# once.
P: Any = namedtuple(
    "P",
    "kept_rows kept_columns channel_vectors filter_vectors frequencies few ring turns chunk_turns "
    "spectrum_plane result_plane lines_step products_step buffer_row group_weights table lines "
    "products results buffer tile_planes convolve_depth multiply_spectra",
)(*range(23))

# Lengths of transforms along depth and height, and, even, along width.
SIZES = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 18, 20, 24)
WIDTHS = (2, 4, 6, 8, 10, 12, 16, 18, 20, 24)
# Lengths of transforms that have no butterfly of their own, and the radix of their first stage.
FACTORS = {9: 3, 10: 2, 12: 3, 15: 3, 16: 4, 18: 3, 20: 4, 24: 4}

LEAST_CHANNELS = 8
LEAST_TAPS = 9
# Sum of |weights| of a filter: with voxels below 2^64 no transform overflows, and no weight becomes
# denormal.
LEAST_MAGNITUDE, LARGEST_MAGNITUDE = 1e-25, 1e14
# The most memory of the weights' spectra, and of a thread's spectra of tiles.
MOST_SPECTRUM_BYTES = 1 << 28
MOST_WORKSPACE_BYTES = 1 << 26
# Most tiles of a step: the more, the more work for each weight that is read.
STEP_TILES = (8, 16, 32, 64)
TASKS, MOST_STEPS = 16, 8  # least tasks, if the volume has so many steps; most steps of a task

VECTOR = 16  # elements of a vector, for predictions: the same on every CPU
TILE_ROWS = 12  # most tiles of a register tile
UNROLL = 4  # channels per iteration of the product's loop
TOLD_BYTES = 16  # of what `convolve_depth` tells `multiply_spectra`
LINES_BYTES = 1 << 18  # lines along depth and their products: a quarter of a common L2
MOST_FREQUENCIES = 16
CHUNK = 64  # channels that are summed from zero, then added to the sum


class Tiles(NamedTuple):
    """How a volume is divided.

    size : Size         input voxels of a tile: the lengths of its transforms
    kept : Size         outputs of a tile
    step : Size         tiles of a step along each axis
    steps : int         steps of a task
    """

    size: Size
    kept: Size
    step: Size
    steps: int

    @property
    def frequencies(self) -> int:
        """Complex frequencies of a plane of a tile."""
        return self.size.height * self.size.width // 2


def tile_rows() -> int:
    """Tiles of a register tile: two sums each, besides a weight and a value of two parts each."""
    return min((cpu_class().registers - 4) // 2, TILE_ROWS)


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """The spectra, the layout and the loops."""
    found = choose_tiles(problem)
    assert found is not None, "rejected"
    tiles = found[0]
    size = dtype.itemsize
    lanes = cpu_class().lanes * 4 // size
    unroll = min(UNROLL, lanes)
    element = 2 * lanes * size
    channels, filters = problem.channels_per_group, problem.filters_per_group
    vectors, filter_vectors = -(-channels // lanes), -(-filters // lanes)
    padded = -(-channels // unroll) * unroll
    in_plane = tiles.step.height * tiles.step.width
    in_step = tiles.step.depth * in_plane
    kept_planes = tiles.step.depth * tiles.kept.depth
    ring = kept_planes - tiles.kept.depth + tiles.size.depth

    # an odd number of cache lines apart, so that they do not share cache sets
    spectrum_plane = odd_lines(in_plane * vectors * tiles.frequencies * element)
    result_plane = odd_lines(in_plane * filter_vectors * tiles.frequencies * element)
    lines_step = odd_lines(in_step * vectors * element)
    products_step = odd_lines(in_step * filter_vectors * element)
    few = max(
        n
        for n in range(1, MOST_FREQUENCIES + 1)
        if tiles.frequencies % n == 0
        and (n == 1 or n * tiles.size.depth * (lines_step + products_step) <= LINES_BYTES)
    )
    fields = {
        "kept_rows": tiles.kept.height,
        "kept_columns": tiles.kept.width,
        "channel_vectors": vectors,
        "filter_vectors": filter_vectors,
        "frequencies": tiles.frequencies,
        "few": few,
        "ring": ring,
        "turns": padded // unroll,
        "chunk_turns": CHUNK // unroll,
        "spectrum_plane": spectrum_plane,
        "result_plane": result_plane,
        "lines_step": lines_step,
        "products_step": products_step,
        "buffer_row": odd_lines(tiles.size.width // 2 * element),
        "group_weights": tiles.frequencies * tiles.size.depth * filter_vectors * padded * element,
        "tile_planes": tiles.size.depth,
        "convolve_depth": 0,
        "multiply_spectra": 0,
    }
    workspace = (ring + 1) * spectrum_plane
    for name, part in (
        ("table", TOLD_BYTES + tiles.step.depth * tiles.size.depth * 8),
        ("lines", few * tiles.size.depth * lines_step),
        ("products", few * tiles.size.depth * products_step),
        ("results", kept_planes * result_plane),
        ("buffer", tiles.size.height * fields["buffer_row"]),
    ):
        fields[name] = workspace
        workspace += odd_lines(part)
    sizes = tiles.size.height, tiles.kept.height, tiles.size.width, tiles.kept.width
    code = "fft_channels"
    calls = {
        P.convolve_depth: machine_code(
            code, "convolve_depth", tiles.size.depth, tiles.kept.depth, lanes, dtype.name
        ),
        P.multiply_spectra: machine_code(code, "multiply_spectra", tile_rows(), lanes, dtype.name),
    }
    transform = machine_code(code, "transform_weights", *problem.kernel_size, lanes, dtype.name)
    spectrum = problem.groups * fields["group_weights"]
    packing = packing_sizes(problem, tiles, lanes, dtype)

    def pack_weights() -> NDArray[Any]:
        """The spectra, in the order that `loops.fft_channels.convolve_depth` reads."""
        taps = parts_of_filters(problem, weights.astype(dtype), lanes, packing.part)
        out = aligned_zeros(spectrum // size, dtype)
        factors = transform_factors(problem, tiles.size)
        transform(
            StepRecord(
                Source(taps),
                Output(out),
                AlgorithmData(
                    parameters=np.array(
                        [
                            problem.groups,
                            filter_vectors,
                            channels,
                            padded,
                            *(len(table) for table in factors),
                            *(table.ctypes.data for table in factors),
                        ],
                        np.int64,
                    ),
                    workspace=aligned_zeros(packing.workspace, np.dtype(np.uint8)),
                ),
            )
        )
        return out

    return PreparedAlgorithm(
        layout=plan_layout(problem, tiles, vectors * lanes, filter_vectors * lanes, workspace),
        convolve=machine_code(code, "convolve_tiles", *sizes, lanes, dtype.name),
        pack_weights=pack_weights,
        parameters=np.array([fields[name] for name in P._fields], np.int64),
        absorb=machine_code(code, "absorb_plane", *sizes[::2], lanes, dtype.name),
        spreads_nonfinite=True,
        rounds_tiles=True,
        calls=calls,
        packs_weights=(transform,),
        weight_bytes=WeightBytes(spectrum, packing.taps + packing.workspace),
    )


def odd_lines(size: int) -> int:
    """The least odd number of cache lines that has `size` bytes, in bytes.

    >>> odd_lines(65), odd_lines(129)
    (192, 192)
    """
    lines = -(-size // 64)
    return 64 * (lines + 1 - lines % 2)


def plan_layout(
    problem: ConvProblem, tiles: Tiles, channel_pitch: int, filters: int, workspace: int
) -> TileLayout:
    """The memory of a task: one packed plane, and the sums of one plane.

    channel_pitch, filters : int    channels and filters of a group, padded to whole vectors
    workspace : int                 bytes
    """
    task = Size(*(kept * number for kept, number in zip(tiles.kept, tiles.step, strict=True)))
    layout = voxels_layout(
        problem, task, filters=filters, channel_pitch=channel_pitch, workspace_bytes=workspace
    )
    return replace(
        layout,
        tile=task._replace(depth=task.depth * tiles.steps),
        step_depth=task.depth,
        ring=1,
        scratch_size=layout.plane_step + 16,
    )


class PackingSizes(NamedTuple):
    """What packing of the weights needs.

    part : int          filters that are transformed at once
    taps, workspace : int       bytes of the weights in float64 and of intermediate transforms
    """

    part: int
    taps: int
    workspace: int


def packing_sizes(
    problem: ConvProblem, tiles: Tiles, lanes: int, dtype: np.dtype[Any]
) -> PackingSizes:
    """The memory of `transform_weights` and its source."""
    (kd, kh, kw), channels = problem.kernel_size, problem.channels_per_group
    part = lanes * dtype.itemsize // 8
    filters = -(-problem.filters_per_group // lanes) * lanes * problem.groups
    taps = 8 * kd * kh * kw * channels * filters
    lines = kd * tiles.size.width // 2 * kh
    planes = tiles.frequencies * channels * kd
    return PackingSizes(part, 2 * taps, 16 * part * (lines + planes))


def parts_of_filters(
    problem: ConvProblem, weights: NDArray[Any], lanes: int, part: int
) -> NDArray[np.float64]:
    """The weights as (group, vector of filters, part, channel, kd, kh, kw, filters of a part)."""
    groups, filters = problem.groups, problem.filters_per_group
    padded = -(-filters // lanes) * lanes
    taps = np.zeros((*weights.shape[:4], groups, padded))
    taps[..., :filters] = weights.reshape(*weights.shape[:4], groups, filters)
    return np.ascontiguousarray(
        taps.reshape(*weights.shape[:4], groups, padded // part, part).transpose(
            4, 5, 3, 0, 1, 2, 6
        )
    )


def transform_factors(problem: ConvProblem, size: Size) -> list[NDArray[np.complex128]]:
    """The inverse transforms of the taps along depth, height and width: (frequency, tap) each.

    They include the factor 1/n of the transform back.

    size : Size         lengths of the transforms
    """
    depth, height, width = (
        np.arange(n)[:, None] * np.arange(taps) / n
        if axis < 2
        else (np.arange(n // 2)[:, None] + 0.25) * np.arange(taps) / (n // 2)
        for axis, (n, taps) in enumerate(zip(size, problem.kernel_size, strict=True))
    )
    elements = size.depth, size.height, size.width // 2
    return [
        np.exp(2j * np.pi * turns) / n
        for turns, n in zip((depth, height, width), elements, strict=True)
    ]


class Rates(NamedTuple):
    """Nanoseconds on one thread, fitted to 59 runs of kernels from 3^3 to 7^3 between 16 to 128
    channels (2026-11, AVX-512).

    These ran on a CPU with 190 GFLOP/s a core, where the fit was within a factor of 1.2; the rate
    of products, and less of the rest, is what they would take at the 115 GFLOP/s that the other
    algorithms were measured at.
    """

    instruction: float = 0.23  # of transforms, per vector of 16 lanes
    product: float = 0.215  # per FMA of 16 lanes
    weight: float = 0.04  # per byte of weights' spectra from the outer cache
    outer: float = 0.01  # per byte of tiles' spectra from or to the outer cache
    memory: float = 0.11  # and from or to memory, in addition
    packed: float = 0.8  # per element
    stored: float = 0.4  # per element
    prepared: float = 1.3  # per FMA of 8 doubles, of the weights' transforms
    scattered: float = 1.2  # per byte of their spectra beyond MANY_BYTES


RATES = Rates()
MANY_BYTES = 1 << 27


def line_instructions(size: int) -> float:
    """Vector instructions per complex element of a transform, with loads and stores.

    >>> line_instructions(8), line_instructions(16)
    (11.0, 18.25)
    """

    def arithmetic(n: int) -> float:
        if n in BUTTERFLIES:
            return BUTTERFLIES[n]
        radix, rest = FACTORS[n], n // FACTORS[n]
        twiddles = 4 * (1 - 1 / radix) * (1 - 1 / rest)
        return arithmetic(radix) + twiddles + arithmetic(rest)

    # registers hold 12 elements and what is computed from them
    return arithmetic(size) + 4 + 4 * (size > 12) + 4 * (size > 16)


@lru_cache(maxsize=1)
def transform_costs() -> NDArray[np.float64]:
    """`line_instructions` of each length, by length."""
    costs = np.zeros(SIZES[-1] + 1)
    costs[list(SIZES)] = [line_instructions(size) for size in SIZES]
    return costs


class Work(NamedTuple):
    """What a division of the volume computes and moves: numbers, or arrays of one per division.

    instructions, products : float      vector instructions of transforms, FMAs of products
    weights : float         bytes of the weights' spectra that steps read
    moved : float           bytes of the tiles' spectra that are written and read
    held : float            bytes of the tiles' spectra of a step
    packed, stored : float  elements
    spectra : float         bytes of the weights' spectra
    prepared : float        FMAs of the weights' transforms
    """

    instructions: Any
    products: Any
    weights: Any
    moved: Any
    held: Any
    packed: Any
    stored: int
    spectra: Any
    prepared: Any

    def nanoseconds(self) -> Any:
        """The predicted time on one thread."""
        megabytes = self.held / 2**20
        outer, memory = np.clip((megabytes - 0.75) / 2, 0, 1), np.clip((megabytes - 8) / 16, 0, 1)
        far = np.clip((megabytes + self.spectra / 2**20 - 0.75) / 2, 0, 1)
        return (
            RATES.instruction * self.instructions
            + RATES.product * self.products
            + RATES.weight * far * self.weights
            + (RATES.outer * outer + RATES.memory * memory) * self.moved
            + RATES.packed * self.packed
            + RATES.stored * self.stored
            + RATES.prepared * self.prepared
            + RATES.scattered * np.maximum(self.spectra - MANY_BYTES, 0)
        )


def count_work(problem: ConvProblem, size: Any, step: Any, steps: Any) -> Work:
    """The work of a division of the volume.

    size, step : three ints, or int arrays, each        as in `Tiles`
    steps : int or int array                            as in `Tiles`
    """
    costs = transform_costs()
    (depth, height, width), (tiles_d, tiles_h, tiles_w) = size, step
    kept = kept_size(problem, size)
    counts = [-(-whole // one) for whole, one in zip(problem.out_size, kept, strict=True)]
    channels, filters = problem.channels_per_group, problem.filters_per_group
    vectors, filter_vectors = -(-channels // VECTOR), -(-filters // VECTOR)
    half = width // 2
    volumes = problem.groups * problem.batch
    columns = volumes * counts[1] * counts[2]
    bands = volumes * -(-counts[1] // tiles_h) * -(-counts[2] // tiles_w)
    depth_steps = -(-counts[0] // tiles_d)
    # of all tasks of a band
    planes = problem.out_size[0] + -(-depth_steps // steps) * (problem.extent[0] - 1)
    frequencies = height * half
    in_width, in_height = half * (costs[half] + 4), frequencies * costs[height]
    instructions = columns * (
        planes * vectors * (height * in_width + in_height)
        + problem.out_size[0] * filter_vectors * (kept[1] * in_width + in_height)
        + counts[0] * (vectors + filter_vectors) * frequencies * depth * costs[depth]
    )
    products = 4 * columns * counts[0] * frequencies * depth * channels * filter_vectors
    # fewer than four rows of a register tile wait for each other
    tiles = tiles_d * tiles_h * tiles_w
    products = products * np.maximum(1, 4 / even_part(tiles, TILE_ROWS))
    element = 8 * VECTOR
    spectrum = element * frequencies * depth * channels * filter_vectors
    moved = vectors * (planes + counts[0] * depth) + 2 * filter_vectors * problem.out_size[0]
    held = vectors * ((tiles_d - 1) * kept[0] + depth) + filter_vectors * tiles_d * kept[0]
    rows, row = (
        number * one + extent - 1
        for number, one, extent in zip(
            (tiles_h, tiles_w), kept[1:], problem.extent[1:], strict=True
        )
    )
    return Work(
        instructions=instructions,
        products=products,
        weights=spectrum * depth_steps * bands,
        moved=element * frequencies * columns * moved,
        held=element * frequencies * tiles_h * tiles_w * held,
        packed=bands * planes * rows * row * channels,
        stored=math.prod(problem.out_shape),
        spectra=spectrum * problem.groups,
        prepared=problem.groups * channels * 2 * filter_vectors * weight_products(problem, size),
    )


def weight_products(problem: ConvProblem, size: Any) -> Any:
    """The FMAs that transform one channel of a vector of filters, see `transform_factors`.

    size : three ints, or int arrays        as in `Tiles`

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> problem = ConvSpec().resolve((1, 9, 9, 9, 16), (3, 3, 3, 16, 16))
    >>> weight_products(problem, (8, 8, 8))  # 9 lines of 4, 3 planes of 32, 8 planes of 32
    4440
    """
    (kd, kh, kw), (depth, height, width) = problem.kernel_size, size
    half = width // 2
    return 2 * kd * kh * kw * half + 4 * kd * kh * height * half + 4 * kd * depth * height * half


def kept_size(problem: ConvProblem, size: Any) -> list[Any]:
    """The outputs of a tile along each axis: those that nothing wraps around to."""
    return [n - extent + 1 for n, extent in zip(size, problem.extent, strict=True)]


def useful_sizes(lengths: tuple[int, ...], extent: int, outputs: int) -> list[int]:
    """The lengths of a tile along one axis that a larger number of tiles would not need less of.

    >>> useful_sizes((4, 8, 12, 16, 24), extent=5, outputs=14)
    [8, 12, 24]
    """
    shortest = {-(-outputs // (n - extent + 1)): n for n in reversed(lengths) if n >= extent}
    return sorted(shortest.values())


def even_part(whole: Any, most: Any) -> Any:
    """The size of nearly equal parts of at most `most`, by arrays."""
    return -(-whole // -(-whole // most))


@lru_cache(maxsize=64)
def choose_tiles(problem: ConvProblem) -> tuple[Tiles, float] | None:
    """The fastest division, and its predicted seconds on one thread; None if no tile is large
    enough.

    The choice is the same on every CPU, since it rounds all voxels of a tile together.
    """
    outputs, extent = problem.out_size, problem.extent
    candidates = [
        useful_sizes(lengths, *axis)
        for lengths, *axis in zip((SIZES, SIZES, WIDTHS), extent, outputs, strict=True)
    ]
    if not all(candidates) or not all(outputs):
        return None
    *size, most = (axis.ravel() for axis in np.meshgrid(*candidates, STEP_TILES, indexing="ij"))
    kept = kept_size(problem, size)
    counts = [-(-whole // one) for whole, one in zip(outputs, kept, strict=True)]
    tiles_w = even_part(counts[2], most)
    tiles_h = even_part(counts[1], np.maximum(most // tiles_w, 1))
    tiles_d = even_part(counts[0], np.maximum(most // (tiles_w * tiles_h), 1))
    step = tiles_d, tiles_h, tiles_w
    bands = problem.groups * -(-counts[1] // tiles_h) * -(-counts[2] // tiles_w)
    depth_steps = -(-counts[0] // tiles_d)
    steps = even_part(depth_steps, np.clip(depth_steps * bands // TASKS, 1, MOST_STEPS))
    found = count_work(problem, size, step, steps)
    tasks = bands * -(-depth_steps // steps)
    time = found.nanoseconds() * (1 + 1 / tasks)  # threads wait for the last task
    fits = (found.spectra <= MOST_SPECTRUM_BYTES) & (found.held <= MOST_WORKSPACE_BYTES)
    if not fits.any():
        return None
    best = int(np.argmin(np.where(fits, time, np.inf)))
    tiles = Tiles(
        Size(*(int(n[best]) for n in size)),
        Size(*(int(n[best]) for n in kept)),
        Size(*(int(n[best]) for n in step)),
        int(steps[best]),
    )
    return tiles, float(time[best]) * 1e-9


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why it cannot compute this problem, or should not; None if it can."""
    if problem.strides != (1, 1, 1):
        return f"strides are {'x'.join(map(str, problem.strides))}, not 1"
    few = min(problem.channels_per_group, problem.filters_per_group)
    if few < LEAST_CHANNELS:
        return f"fewer than {LEAST_CHANNELS} channels or filters per group: {few}"
    taps = math.prod(problem.kernel_size)
    if taps < LEAST_TAPS:
        return f"a kernel of {taps} weights, fewer than {LEAST_TAPS}, is quicker to sum directly"
    magnitude = sum_of_magnitudes(problem, weights)
    if not (magnitude == 0 or LEAST_MAGNITUDE < magnitude < LARGEST_MAGNITUDE):
        return (
            f"the weights' magnitudes add up to {magnitude:.3g}, and their spectra need "
            f"{LEAST_MAGNITUDE:.0e} to {LARGEST_MAGNITUDE:.0e}"
        )
    if choose_tiles(problem) is None:
        return f"the kernel spans {'x'.join(map(str, problem.extent))} voxels, more than a tile"
    return None


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    found = choose_tiles(problem)
    return math.inf if found is None else found[1] / threads


ALGORITHM = Algorithm(
    name="fft-channels",
    summary="Fourier tiles of many channels: matrix products over channels; strides 1",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
    by_grids=True,
)

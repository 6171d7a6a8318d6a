"""Winograd's minimal filtering: kernels of 3 or 1 weights along each axis, between many channels.

It uses F(2, 3) along depth, and F(2, 3) or F(4, 3) along height and width. Transformed tiles of
a 3x3x3 kernel need 3.4 or 4.5 times fewer multiplications than the direct sum, so it is faster than
the direct sum could be at the CPU's FMA peak. The rounding error is 2 to 3.5 times that of the
direct sum, and up to 5 times with F(4, 3) along two axes of a flat kernel.

An axis with one weight is not transformed. With dilation, each grid is computed by itself
(`engine/grids.py`).

Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Jia, Zlateski,
Durand & Li, "Optimizing N-dimensional, Winograd-based convolution for manycore CPUs", PPoPP 2018.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import REFERENCE, CpuClass, cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.step import AlgorithmData, Output, Source, StepRecord
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm, WeightBytes, voxels_layout
from conv3d_cli.engine.views import aligned_zeros
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem

# Outputs of a tile along an axis -> the points at which it is evaluated, in addition to infinity.
# For 4 outputs the usual points 0, 1, -1, 2, -2 lose five bits per axis. These, too, are exact in a
# few bits, and were the best of 60 sets tried (1.7 times less rounding error).
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
DEPTH = 2  # outputs of a tile along depth, if the kernel has more than one weight there
TASK_DEPTHS = (16, 8, 4)  # output planes of a task: the most that leave TASKS tasks
TASKS = 16
UNROLL = 4  # channels per iteration of the product's loop
# Channels summed from zero: with 128 the rounding error is twice as large, the time 5 % less.
CHUNK = 32
CACHE_BYTES = 3 << 17  # evaluated inputs and products of a task
LEAST_CHANNELS = 8
# Sum of |weights| of a filter: with voxels below 2^64 no transform overflows.
LARGEST_WEIGHTS = 1e16

# Seconds of one thread, fitted on an AVX-512 core with an FMA peak of 115 GFLOP/s.
SECONDS_PER_PRODUCT = 1 / 56e9  # of a weight and an evaluated input
SECONDS_PER_WEIGHT = 0.04e-9  # fetched from beyond L2, in every step
SECONDS_PER_EVALUATION = 0.15e-9
SECONDS_PER_INTERPOLATION = 0.10e-9
SECONDS_PER_PACKED = 0.4e-9
SECONDS_PER_STORED = 0.25e-9
SECONDS_PER_STEP = 2e-6


class TileBlocking(NamedTuple):
    """How the work of a group is divided.

    depth, height, width : int  outputs of a tile; 1 along an axis with one weight
    rows, vectors : int         register tile of the products: tiles x vectors of filters
    last_rows, last_vectors : int   register tile of a last block of another width; 0: there is none
    blocks : int                blocks of filters that are `vectors` wide
    chunk, chunks : int         channels summed at once, and number of such chunks
    """

    depth: int
    height: int
    width: int
    rows: int
    vectors: int
    last_rows: int
    last_vectors: int
    blocks: int
    chunk: int
    chunks: int

    @property
    def positions(self) -> int:
        """Evaluation points of a plane of a tile."""
        return points(self.height) * points(self.width)

    @property
    def outputs(self) -> tuple[int, int, int]:
        """Outputs of a tile along depth, height and width."""
        return self.depth, self.height, self.width


def points(outputs: int) -> int:
    """The number of points at which a tile is evaluated along an axis; see `TileBlocking`."""
    return outputs + 2 if outputs > 1 else 1


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why it cannot compute this problem, or None."""

    def triple(values: tuple[int, int, int]) -> str:
        return "x".join(map(str, values))

    if sorted(problem.kernel_size)[-2:] != [3, 3] or 2 in problem.kernel_size:
        return f"kernel is {triple(problem.kernel_size)}, not 3x3x3, 1x3x3, 3x1x3 or 3x3x1"
    if problem.strides != (1, 1, 1):
        return f"strides are {triple(problem.strides)}, not 1"
    few = min(problem.channels_per_group, problem.filters_per_group)
    if few < LEAST_CHANNELS:
        return f"fewer than {LEAST_CHANNELS} channels or filters per group: {few}"
    if not np.abs(weights).sum(axis=(0, 1, 2, 3)).max() < LARGEST_WEIGHTS:
        return "weights are not finite, or so large that their transform could overflow"
    return None


def transform_matrix(outputs: int) -> NDArray[np.float64]:
    """The Toom-Cook transform of a kernel's three taps along one axis: G, (outputs + 2, 3).

    >>> transform_matrix(2)
    array([[-1. ,  0. ,  0. ],
           [ 0.5,  0.5,  0.5],
           [ 0.5, -0.5,  0.5],
           [ 0. ,  0. ,  1. ]])
    """
    at = POINTS[outputs]
    rows = [[p**k / math.prod(p - q for q in at if q != p) for k in range(3)] for p in at]
    return np.array([*rows, [0.0, 0.0, 1.0]]) + 0.0


@lru_cache(maxsize=64)
def tile_blocking(
    channels: int, filters: int, outputs: tuple[int, int, int], itemsize: int, cpu: CpuClass
) -> TileBlocking:
    """The blocking of a group.

    channels, filters : int     of the group
    outputs : (int, int, int)   of a tile, along depth, height and width
    itemsize : int              bytes of an element, 4 or 8
    """
    lanes = cpu.lanes * 4 // itemsize
    rows, vectors = cpu.channel
    blocks, last = divmod(-(-filters // lanes), vectors)
    # one wider block instead of a block of one vector, which would wait for loads
    if last == 1 and vectors == 2 and blocks:
        blocks, last = blocks - 1, 3
    chunks = -(-channels // CHUNK)
    chunk = math.ceil(channels / chunks / 16) * 16
    return TileBlocking(
        *outputs,
        rows=rows,
        vectors=vectors if blocks else 0,
        last_rows=min(rows * vectors // last, rows) if last else 0,
        last_vectors=last,
        blocks=blocks,
        chunk=chunk,
        chunks=-(-channels // chunk),
    )


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """The transformed weights, the layout and the loops."""
    lanes, size = cpu_class().lanes * 4 // dtype.itemsize, dtype.itemsize
    chosen, rows, columns, _ = choose_tiles(problem, size)
    channels, filters = problem.channels_per_group, problem.filters_per_group
    blocking = tile_blocking(channels, filters, chosen.outputs, size, cpu_class())
    groups = problem.groups
    padded_filters = -(-filters // lanes) * lanes
    full_chunks = (blocking.chunks - 1) * blocking.chunk  # channels of all chunks but the last
    last_turns = -(-(channels - full_chunks) // UNROLL)
    padded_channels = full_chunks + UNROLL * last_turns

    most_tiles = rows * columns + max(blocking.rows, blocking.last_rows)
    # An odd number of cache lines from one position to the next, so that they do not share cache
    # sets.
    evaluated_step = most_tiles * blocking.chunk * blocking.chunks * size + 64
    product_step = most_tiles * max(blocking.vectors, blocking.last_vectors) * lanes * size + 64
    depth = task_depth(problem, blocking, rows, columns)
    layout = voxels_layout(
        problem,
        Size(depth, rows * blocking.height, columns * blocking.width),
        filters=padded_filters,
        step_depth=blocking.depth,
        channel_pitch=-(-channels // 16) * 16,
        workspace_bytes=blocking.positions * (evaluated_step + product_step),
    )
    depth_weights = blocking.positions * padded_channels * padded_filters * size
    taps_count = math.prod(problem.kernel_size)
    weight_bytes = groups * points(blocking.depth) * depth_weights
    parameters = np.array(
        [
            blocking.chunks,
            last_turns,
            most_tiles,
            evaluated_step,
            product_step,
            blocking.blocks,
            depth_weights,
        ],
        np.int64,
    )
    tile = blocking.outputs
    register_tiles = blocking.rows, blocking.vectors, blocking.last_rows, blocking.last_vectors
    sum_tiles = *tile, *register_tiles, lanes, blocking.chunk, dtype.name
    source = weights if weights.dtype in (np.float32, np.float64) else weights.astype(np.float64)
    transform = machine_code(
        "winograd", "transform_weights", *tile, lanes, source.dtype.name, dtype.name
    )

    def pack_weights() -> NDArray[Any]:
        """The transformed weights, in the order that `loops.winograd.sum_tiles` documents."""
        taps = np.zeros((taps_count, channels, groups, padded_filters), source.dtype)
        taps[..., :filters] = source.reshape(-1, channels, groups, filters)
        packed = aligned_zeros(weight_bytes // size, dtype)
        blocks = blocking.blocks, blocking.vectors, blocking.last_vectors
        arguments = np.array([groups, channels, padded_channels, *blocks], np.int64)
        transform(StepRecord(Source(taps), Output(packed), AlgorithmData(parameters=arguments)))
        return packed

    taps_bytes = taps_count * channels * groups * padded_filters * source.dtype.itemsize
    return PreparedAlgorithm(
        layout=layout,
        convolve=machine_code("winograd", "sum_tiles", *sum_tiles),
        pack_weights=pack_weights,
        parameters=parameters,
        spreads_nonfinite=True,
        rounds_tiles=True,
        packs_weights=(transform,),
        weight_bytes=WeightBytes(weight_bytes, taps_bytes),
    )


@lru_cache(maxsize=64)
def choose_tiles(problem: ConvProblem, itemsize: int) -> tuple[TileBlocking, int, int, float]:
    """The fastest division of the work that fits the cache, the same on every CPU.

    It decides which outputs are transformed together, and which are recomputed with a NaN.

    itemsize : int      bytes of an element, 4 or 8
    Returns (blocking, rows of tiles in a task, columns of tiles in a task, predicted seconds of one
    thread).
    """
    lanes = REFERENCE.lanes * 4 // itemsize
    found = []
    for outputs in tile_outputs(problem.kernel_size):
        blocking = tile_blocking(
            problem.channels_per_group, problem.filters_per_group, outputs, itemsize, REFERENCE
        )
        block_filters = max(blocking.vectors, blocking.last_vectors) * lanes
        tile_numbers = blocking.positions * (blocking.chunk * blocking.chunks + block_filters)
        most = max(CACHE_BYTES // (tile_numbers * itemsize), blocking.rows, 1)
        all_rows, all_columns = (
            -(-size // one) for size, one in zip(problem.out_size[1:], outputs[1:], strict=True)
        )
        steps = problem.groups * -(-problem.out_size[0] // blocking.depth)
        for rows, columns in itertools.product(even_parts(all_rows), even_parts(all_columns)):
            if rows * columns <= most or rows == columns == 1:
                time = math.fsum(
                    times_r * times_c * step_seconds(problem, blocking, r, c)
                    for r, times_r in parts(all_rows, rows)
                    for c, times_c in parts(all_columns, columns)
                )
                found.append((time * steps, blocking, rows, columns))
    time, blocking, rows, columns = min(found, key=lambda one: one[0])
    return blocking, rows, columns, time


def tile_outputs(kernel_size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The tiles that are tried for a kernel: their outputs along depth, height and width.

    F(4, 3) along all three axes would lose too many bits.

    >>> tile_outputs((3, 3, 3)), tile_outputs((1, 3, 3))
    ([(2, 2, 4), (2, 2, 2)], [(1, 4, 4), (1, 4, 2), (1, 2, 4), (1, 2, 2)])
    """
    depth, *plane = kernel_size
    heights = (1,) if plane[0] == 1 else (2,) if kernel_size == (3, 3, 3) else (4, 2)
    widths = (1,) if plane[1] == 1 else (4, 2)
    return list(itertools.product((DEPTH if depth > 1 else 1,), heights, widths))


def task_depth(problem: ConvProblem, blocking: TileBlocking, rows: int, columns: int) -> int:
    """Output planes of a task of rows x columns tiles."""
    depth, height, width = problem.out_size
    bands = (
        problem.groups
        * math.ceil(height / (rows * blocking.height))
        * math.ceil(width / (columns * blocking.width))
    )
    enough = [planes for planes in TASK_DEPTHS if bands * math.ceil(depth / planes) >= TASKS]
    planes = min(enough[0] if enough else TASK_DEPTHS[-1], depth)
    return math.ceil(planes / blocking.depth) * blocking.depth


def step_seconds(problem: ConvProblem, blocking: TileBlocking, rows: int, columns: int) -> float:
    """Predicted seconds of a step of rows x columns tiles."""
    channels, filters = problem.channels_per_group, problem.filters_per_group
    half = max(blocking.rows // 2, 1)
    tiles, positions = rows * columns, points(blocking.depth) * blocking.positions
    padded_tiles = -(-tiles // half) * half
    lanes = REFERENCE.lanes
    padded_filters, padded_channels = -(-filters // lanes) * lanes, -(-channels // lanes) * lanes
    weights = positions * channels * padded_filters
    # a register tile of one vector waits for its loads
    slower = 1.3 if blocking.last_vectors == 1 and not blocking.blocks else 1.0
    height, width = rows * blocking.height, columns * blocking.width
    halo = [extent - 1 for extent in problem.extent[1:]]
    packed = blocking.depth * 1.2 * (height + halo[0]) * (width + halo[1]) * channels
    stored = blocking.depth * height * width * filters
    transforms = (
        padded_channels * SECONDS_PER_EVALUATION + padded_filters * SECONDS_PER_INTERPOLATION
    )
    return (
        weights * (padded_tiles * slower * SECONDS_PER_PRODUCT + SECONDS_PER_WEIGHT)
        + tiles * positions * transforms
        + packed * SECONDS_PER_PACKED
        + stored * SECONDS_PER_STORED
        + SECONDS_PER_STEP
    )


def even_parts(whole: int) -> list[int]:
    """Sizes that divide `whole` into nearly equal parts, one for each number of parts.

    >>> even_parts(10)
    [10, 5, 4, 3, 2, 1]
    """
    return sorted({-(-whole // n) for n in range(1, whole + 1)}, reverse=True)


def parts(whole: int, part: int) -> list[tuple[int, int]]:
    """The parts of size `part`, and the rest, that make up `whole`: (size, count) each.

    >>> parts(10, 4)
    [(4, 2), (2, 1)]
    """
    full, rest = divmod(whole, part)
    return [(part, full), *([(rest, 1)] if rest else [])]


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds."""
    return choose_tiles(problem, 4)[3] / threads


ALGORITHM = Algorithm(
    name="winograd",
    summary="minimal filtering F(2, 3) and F(4, 3): 3x3x3 or flat kernels between many channels",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
    by_grids=True,
)

"""Winograd's minimal filtering, F(2, 3) along depth and height and F(2, 3) or F(4, 3) along the width, for many channels.

Transformed tiles need 3.4 or 4.5 times fewer multiplications than the direct sum, so it passes the direct sum's FMA peak. The
price is rounding: about 2 and 3.5 times the direct sum's error.

Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Jia, Zlateski, Durand & Li, "Optimizing
N-dimensional, Winograd-based convolution for manycore CPUs", PPoPP 2018.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.step import AlgorithmData, Output, Source, StepRecord
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm, WeightBytes, voxels_layout
from conv3d_cli.engine.views import aligned_zeros
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem

# Outputs of a tile along an axis -> the points it is evaluated at, besides infinity. For 4 outputs the usual 0, 1, -1, 2, -2
# lose five bits in one axis; these are exact in few bits too, and were the best of 60 sets tried (rounding: 1.7 times less).
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
DEPTH = 2  # outputs of a tile along depth
TASK_DEPTHS = (16, 8, 4)  # output planes of a task: as many as leave TASKS tasks
TASKS = 16
UNROLL = 4  # channels in one turn of the product's loop
CHUNK = (
    32  # channels summed from zero: of 128 the rounding would be twice as much, the time 5 % less
)
CACHE_BYTES = 3 << 17  # evaluated inputs and products of a task
LEAST_CHANNELS = 8
LARGEST_WEIGHTS = 1e16  # a filter's sum: with voxels below 2^64 no transform overflows

# Seconds of a thread, fitted to an AVX-512 core with an FMA peak of 115 GFLOP/s.
SECONDS_A_PRODUCT = 1 / 56e9  # of a weight and an evaluated input
SECONDS_A_WEIGHT = 0.04e-9  # fetched from beyond L2, for every step
SECONDS_AN_EVALUATED = 0.15e-9
SECONDS_AN_INTERPOLATED = 0.10e-9
SECONDS_A_PACKED = 0.4e-9
SECONDS_A_STORED = 0.25e-9
SECONDS_A_STEP = 2e-6


class Shape(NamedTuple):
    """How the work is cut.

    height, width : int         outputs of a tile
    rows, vectors : int         register tile of the products
    last_rows, last_vectors     that of the last block of filters, 0 where it is no other
    blocks : int                of filters, `vectors` wide
    chunk, chunks : int         channels summed at once
    """

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
        """Positions of a plane."""
        return (self.height + 2) * (self.width + 2)


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why it cannot run this, or None."""
    if problem.kernel_size != (3, 3, 3):
        return f"kernel is {'x'.join(map(str, problem.kernel_size))}, not 3x3x3"
    if problem.strides != (1, 1, 1):
        return f"strides are {problem.strides}, not 1"
    if problem.dilation_rate != (1, 1, 1):
        return f"dilation is {problem.dilation_rate}, not 1"
    few = min(problem.channels_per_group, problem.filters_per_group)
    if few < LEAST_CHANNELS:
        return f"{few} channels or filters a group, fewer than {LEAST_CHANNELS}"
    if not np.abs(weights).sum(axis=(0, 1, 2, 3)).max() < LARGEST_WEIGHTS:
        return "weights are not finite, or so large that their transform could overflow"
    return None


def transform_matrix(outputs: int) -> NDArray[np.float64]:
    """The kernel's transform along one axis, G (outputs + 2, 3), by Toom and Cook.

    >>> transform_matrix(2)
    array([[-1. ,  0. ,  0. ],
           [ 0.5,  0.5,  0.5],
           [ 0.5, -0.5,  0.5],
           [ 0. ,  0. ,  1. ]])
    """
    points = POINTS[outputs]
    rows = [[p**k / math.prod(p - q for q in points if q != p) for k in range(3)] for p in points]
    return np.array([*rows, [0.0, 0.0, 1.0]]) + 0.0


@lru_cache(maxsize=64)
def cut(channels: int, filters: int, lanes: int, width: int) -> Shape:
    """The cut for a group of so many channels and filters, with tiles of this width."""
    rows, vectors = cpu_class().channel
    blocks, last = divmod(-(-filters // lanes), vectors)
    if (
        last == 1 and vectors == 2 and blocks
    ):  # one wider block instead of one vector alone, which would wait for loads
        blocks, last = blocks - 1, 3
    chunks = -(-channels // CHUNK)
    chunk = math.ceil(channels / chunks / 16) * 16
    chunks = -(-channels // chunk)
    return Shape(
        2,
        width,
        rows,
        vectors if blocks else 0,
        min(rows * vectors // last, rows) if last else 0,
        last,
        blocks,
        chunk,
        chunks,
    )


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Transformed weights and a layout."""
    lanes, size = cpu_class().lanes * 4 // dtype.itemsize, dtype.itemsize
    shape, rows, columns, _ = choose_tiles(problem, size)
    channels, filters, groups = (
        problem.channels_per_group,
        problem.filters_per_group,
        problem.groups,
    )
    padded_filters = -(-filters // lanes) * lanes
    turns = -(-(channels - (shape.chunks - 1) * shape.chunk) // UNROLL)
    padded_channels = (shape.chunks - 1) * shape.chunk + UNROLL * turns

    room = rows * columns + max(shape.rows, shape.last_rows)
    # An odd number of cache lines from one position to the next, so that they do not share cache sets.
    evaluated_step = room * shape.chunk * shape.chunks * size + 64
    product_step = room * max(shape.vectors, shape.last_vectors) * lanes * size + 64
    tile = Size(
        task_depth(problem, shape, rows, columns), rows * shape.height, columns * shape.width
    )
    layout = voxels_layout(
        problem, tile, filters=padded_filters, step_depth=DEPTH, channel_pitch=-(-channels // 16) * 16,
        workspace_bytes=shape.positions * (evaluated_step + product_step),
    )  # fmt: skip
    depth_weights = shape.positions * padded_channels * padded_filters * size
    parameters = np.array(
        [shape.chunks, turns, room, evaluated_step, product_step, shape.blocks, depth_weights],
        np.int64,
    )
    code = machine_code(
        "winograd", "sum_tiles", shape.height, shape.width, shape.rows, shape.vectors, shape.last_rows, shape.last_vectors,
        lanes, shape.chunk, dtype.name,
    )  # fmt: skip
    source = weights if weights.dtype in (np.float32, np.float64) else weights.astype(np.float64)
    transform = machine_code(
        "winograd",
        "transform_weights",
        shape.height,
        shape.width,
        lanes,
        source.dtype.name,
        dtype.name,
    )

    def pack_weights() -> NDArray[Any]:
        """(groups, depth positions, blocks of filters, positions of a plane, channels, filters of a block)."""
        taps = np.zeros((27, channels, groups, padded_filters), source.dtype)
        taps[..., :filters] = source.reshape(27, channels, groups, filters)
        packed = aligned_zeros(groups * (DEPTH + 2) * depth_weights // size, dtype)
        cut = np.array(
            [groups, channels, padded_channels, shape.blocks, shape.vectors, shape.last_vectors],
            np.int64,
        )
        transform(StepRecord(Source(taps), Output(packed), AlgorithmData(parameters=cut)))
        return packed

    taps = 27 * channels * groups * padded_filters * source.dtype.itemsize
    return PreparedAlgorithm(
        layout, code, pack_weights, parameters, spreads_nonfinite=True, packs_weights=transform,
        weight_bytes=WeightBytes(groups * (DEPTH + 2) * depth_weights, taps),
    )  # fmt: skip


@lru_cache(maxsize=64)
def choose_tiles(problem: ConvProblem, itemsize: int) -> tuple[Shape, int, int, float]:
    """The cut, rows and columns of tiles in a task, and the seconds of one thread: the fastest that fit the cache."""
    lanes = cpu_class().lanes * 4 // itemsize
    found = []
    for width in (4, 2):
        shape = cut(problem.channels_per_group, problem.filters_per_group, lanes, width)
        of_block = max(shape.vectors, shape.last_vectors) * lanes
        most = max(
            CACHE_BYTES // (shape.positions * (shape.chunk * shape.chunks + of_block) * itemsize),
            shape.rows,
            1,
        )
        all_rows, all_columns = (
            -(-problem.out_size[1] // shape.height),
            -(-problem.out_size[2] // shape.width),
        )
        for rows, columns in itertools.product(even_parts(all_rows), even_parts(all_columns)):
            if rows * columns <= most:
                time = sum(
                    times_r * times_c * step_seconds(problem, shape, r, c)
                    for r, times_r in parts(all_rows, rows)
                    for c, times_c in parts(all_columns, columns)
                )
                steps = problem.groups * -(-problem.out_size[0] // DEPTH)
                found.append((time * steps, shape, rows, columns))
    time, shape, rows, columns = min(found, key=lambda f: f[0])
    return shape, rows, columns, time


def task_depth(problem: ConvProblem, shape: Shape, rows: int, columns: int) -> int:
    """Output planes of a task of rows x columns tiles."""
    depth, height, width = problem.out_size
    bands = (
        problem.groups
        * math.ceil(height / (rows * shape.height))
        * math.ceil(width / (columns * shape.width))
    )
    enough = [planes for planes in TASK_DEPTHS if bands * math.ceil(depth / planes) >= TASKS]
    return min(enough[0] if enough else TASK_DEPTHS[-1], math.ceil(depth / DEPTH) * DEPTH)


def step_seconds(problem: ConvProblem, shape: Shape, rows: int, columns: int) -> float:
    """Predicted time of a step of rows x columns tiles."""
    channels, filters = problem.channels_per_group, problem.filters_per_group
    half = max(shape.rows // 2, 1)
    tiles, positions = rows * columns, (DEPTH + 2) * shape.positions
    padded_tiles = -(-tiles // half) * half
    lanes = cpu_class().lanes
    padded_filters, padded_channels = -(-filters // lanes) * lanes, -(-channels // lanes) * lanes
    weights = positions * channels * padded_filters
    # a register tile of one vector waits for its loads
    slower = 1.3 if shape.last_vectors == 1 and not shape.blocks else 1.0
    packed = DEPTH * 1.2 * (rows * shape.height + 2) * (columns * shape.width + 2) * channels
    stored = DEPTH * rows * shape.height * columns * shape.width * filters
    return (
        weights * (padded_tiles * slower * SECONDS_A_PRODUCT + SECONDS_A_WEIGHT)
        + tiles
        * positions
        * (padded_channels * SECONDS_AN_EVALUATED + padded_filters * SECONDS_AN_INTERPOLATED)
        + packed * SECONDS_A_PACKED
        + stored * SECONDS_A_STORED
        + SECONDS_A_STEP
    )


def even_parts(whole: int) -> list[int]:
    """Sizes that cut `whole` into nearly equal parts, one for each number of parts.

    >>> even_parts(10)
    [10, 5, 4, 3, 2, 1]
    """
    return sorted({-(-whole // n) for n in range(1, whole + 1)}, reverse=True)


def parts(whole: int, part: int) -> list[tuple[int, int]]:
    """(size, how often) of the parts that `whole` is cut into.

    >>> parts(10, 4)
    [(4, 2), (2, 1)]
    """
    full, rest = divmod(whole, part)
    return [(part, full), *([(rest, 1)] if rest else [])]


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted time."""
    return choose_tiles(problem, 4)[3] / threads


ALGORITHM = Algorithm(
    name="winograd",
    summary="minimal filtering F(2, 3) and F(4, 3): 3x3x3 kernels between many channels",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

"""Tiles: what every algorithm shares, and what an algorithm is.

The output of a volume and group is cut into *tasks*: columns of `tile.height x tile.width` voxels, `tile.depth` planes long.
A task is swept along depth in *steps* of `step_depth` planes. Input planes are packed into a ring of scratch memory
(`loops/pack.py`) as the sweep reaches them, so each is packed once a task; the algorithm sums a step into the accumulator, and
the store (`loops/store.py`) puts it out. Sizes depend on the problem alone, never on threads or slabs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import MachineCode
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem


@dataclass(frozen=True)
class TileLayout:
    """How a task's input and sums lie in a thread's memory. Steps and sizes are in numbers.

    tile : Size             the largest task; those at the volume's edge are smaller
    step_depth : int        output planes computed at once
    ring : int              packed planes held: at least the window of a step, or 1 where planes are absorbed at once
    pack : str              "rows": (channel, plane, row, phase-split width); "voxels": (plane, row, column, channel)
    pitch, row_step, plane_step, channel_step : int     of the packed planes (see `loops/pack.py`)
    scratch_size : int      all of them, and what register tiles may read beyond
    sums : (int, int, int, int)     steps of the accumulator from one filter, plane, row, column to the next
    accumulator_size : int
    workspace_bytes : int   further memory of a thread
    origin : int            numbers before the scratch's first one, to align what is packed most
    block_height : int      rows that are computed, then stored, at once; 0: all of the task's
    """

    tile: Size
    step_depth: int
    ring: int
    pack: Literal["rows", "voxels"]
    pitch: int
    row_step: int
    plane_step: int
    channel_step: int
    scratch_size: int
    sums: tuple[int, int, int, int]
    accumulator_size: int
    workspace_bytes: int = 0
    block_height: int = 0
    origin: int = 0


def packed_size(problem: ConvProblem, tile: Size) -> Size:
    """Input positions that a box of outputs reads: (planes, rows, columns)."""
    return Size(
        *((n - 1) * s + e for n, s, e in zip(tile, problem.strides, problem.extent, strict=True))
    )


def spread_rows(length: int) -> int:
    """A row length that is a multiple of 16 numbers, and no multiple of 256: rows a power of two apart share cache sets."""
    rounded = math.ceil(length / 16) * 16
    return rounded + 16 if rounded % 256 == 0 else rounded


def rows_layout(
    problem: ConvProblem,
    tile: Size,
    *,
    step_depth: int = 1,
    ring: int | None = None,
    spare_rows: int = 0,
    spare_columns: int = 0,
    sums_pitch: int | None = None,
    block_height: int = 0,
    origin: int = 0,
) -> TileLayout:
    """A layout that packs rows, with planar sums (filter, plane, row, column).

    block_height : int                  see `TileLayout`
    spare_rows, spare_columns : int     output rows and columns that register tiles may compute beyond the task's
    ring : int or None                  None: the window of a step
    """
    planes, rows, columns = packed_size(problem, tile._replace(depth=step_depth))
    stride = problem.strides[2]
    pitch = math.ceil(columns / stride / 16) * 16
    row_step = spread_rows(stride * pitch)
    plane_step = rows * row_step
    ring = planes if ring is None else ring
    channel_step = ring * plane_step
    spare = (spare_rows * problem.strides[1] + 1) * row_step + spare_columns + 16
    sums_row = (
        math.ceil(tile.width / 16) * 16 if sums_pitch is None else sums_pitch
    ) + spare_columns
    sums_plane = ((block_height or tile.height) + spare_rows) * sums_row
    filters = problem.filters_per_group
    return TileLayout(
        tile, step_depth, ring, "rows", pitch, row_step, plane_step, channel_step,
        problem.channels_per_group * channel_step + spare,
        (step_depth * sums_plane, sums_plane, sums_row, 1), filters * step_depth * sums_plane,
        block_height=block_height, origin=origin,
    )  # fmt: skip


def voxels_layout(
    problem: ConvProblem,
    tile: Size,
    *,
    filters: int,
    step_depth: int = 1,
    workspace_bytes: int = 0,
    channel_pitch: int | None = None,
) -> TileLayout:
    """A layout that packs voxels, with sums (plane, row, column, filter).

    filters : int           filters a voxel's sums hold: those of a group, padded to whole vectors
    channel_pitch : int     numbers from one packed position to the next; None: the group's channels
    """
    planes, rows, columns = packed_size(problem, tile._replace(depth=step_depth))
    pitch = problem.channels_per_group if channel_pitch is None else channel_pitch
    row_step = spread_rows(columns * pitch)
    plane_step = rows * row_step
    spare = row_step + 16
    sums_row = tile.width * filters
    sums_plane = tile.height * sums_row
    return TileLayout(
        tile, step_depth, planes, "voxels", pitch, row_step, plane_step, 1, planes * plane_step + spare,
        (1, sums_plane, sums_row, filters), step_depth * sums_plane, workspace_bytes,
    )  # fmt: skip


LEAST_ROWS, LEAST_COLUMNS = 4, 64


def shrink_tile(problem: ConvProblem, tile: Size, fits: Callable[[Size], bool]) -> Size:
    """The tile, cut to the output's size, with height and width halved in turn until `fits`, or down to the least."""
    tile = Size(*(min(size, wish) for size, wish in zip(problem.out_size, tile, strict=True)))
    while not fits(tile):
        if tile.height > LEAST_ROWS and (
            tile.height >= tile.width // 8 or tile.width <= LEAST_COLUMNS
        ):
            tile = tile._replace(height=max(LEAST_ROWS, -(-tile.height // 2)))
        elif tile.width > LEAST_COLUMNS:
            tile = tile._replace(width=max(LEAST_COLUMNS, -(-tile.width // 2)))
        else:
            break
    return tile


def enough_tasks(problem: ConvProblem, tile: Size, step_depth: int = 1, wish: int = 48) -> Size:
    """The tile, made less deep until threads have `wish` tasks to share, or packing the halo anew would cost too much."""
    least = step_depth * math.ceil(max(8, 2 * (problem.extent[0] - 1)) / step_depth)
    columns = problem.groups * math.prod(
        -(-n // t) for n, t in zip(problem.out_size[1:], tile[1:], strict=True)
    )
    while tile.depth > least and columns * -(-problem.out_size[0] // tile.depth) < wish:
        half = step_depth * math.ceil(tile.depth / 2 / step_depth)
        tile = tile._replace(depth=max(least, half))
    return tile


def chunk_terms(terms: int, least: int) -> int:
    """How many of so many terms are summed from zero before they join the rest.

    Equal terms, as of a constant volume, all round the same way; so neither a chunk nor the number of chunks may grow with the
    terms. At 27^3 taps chunks of 64 drift by 5e-6, chunks of the square root by 4e-7 (relative, float32).

    >>> chunk_terms(27, 64), chunk_terms(27**3, 64)
    (64, 140)
    """
    return max(least, math.isqrt(terms))


class WeightBytes(NamedTuple):
    """Memory that an algorithm takes for its weights, beside those it is given.

    kept : int      of the packed weights, and what is known of each of them
    packing : int   more than that, while they are packed
    """

    kept: int
    packing: int


NO_WEIGHTS = WeightBytes(0, 0)


@dataclass
class PreparedAlgorithm:
    """An algorithm made ready for one problem and its weights; shared by all threads, changed by none.

    convolve : MachineCode          sums a step (`step_planes` planes) of a group into the accumulator
    absorb : MachineCode or None    runs on each packed plane, in order, before the next one is packed
    pack_weights : callable         the weights in whatever order `convolve` wants; called when the first step is run
    packs_weights : MachineCode or None     what `pack_weights` runs
    parameters : array              int64 numbers for `convolve`
    spreads_nonfinite : bool        NaN and infinity would spread beyond the windows that hold them: steps with one in
                                    their window are computed again by `direct`
    checks_nonfinite : bool         `absorb` and `convolve` find such steps themselves, so packing need not look
    calls : dict                    functions that `convolve` calls: the place in `parameters` of each one's address, which
                                    stands there once it is loaded
    keep : list                     arrays whose addresses stand in `parameters`
    groups_together : int           groups that a task packs, sums and stores as if they were one; divides their number
    weight_bytes : WeightBytes      what the packed weights take
    """

    layout: TileLayout
    convolve: MachineCode
    pack_weights: Callable[[], NDArray[Any]]
    parameters: NDArray[np.int64]
    absorb: MachineCode | None = None
    spreads_nonfinite: bool = False
    checks_nonfinite: bool = False
    calls: dict[int, MachineCode] = field(default_factory=dict)
    packs_weights: MachineCode | None = None
    keep: list[Any] = field(default_factory=list)
    groups_together: int = 1
    weight_bytes: WeightBytes = NO_WEIGHTS

    @cached_property
    def weights(self) -> NDArray[Any]:
        """The packed weights."""
        return self.pack_weights()


class Algorithm(NamedTuple):
    """One way to compute a convolution.

    name : str              for `--algorithm` and `explain`
    summary : str           one line
    reject : callable       (problem, weights) -> why it cannot run this, or None
    prepare : callable      (problem, weights, dtype) -> PreparedAlgorithm
    seconds : callable      (problem, weights, threads) -> predicted time
    """

    name: str
    summary: str
    reject: Callable[[ConvProblem, NDArray[Any]], str | None]
    prepare: Callable[[ConvProblem, NDArray[Any], np.dtype[Any]], PreparedAlgorithm]
    seconds: Callable[[ConvProblem, NDArray[Any], int], float]

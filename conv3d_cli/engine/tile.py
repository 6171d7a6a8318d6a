"""Tiles: the memory layout of a task, and the interface of an algorithm.

The output of a volume and group is divided into *tasks*: columns of `tile.height x tile.width`
voxels, `tile.depth` planes long. A task sweeps along depth in *steps* of `step_depth` planes. Input
planes are packed into a ring of scratch memory (`loops/pack.py`) when the sweep reaches them, so
each is packed once per task; the algorithm sums a step into the accumulator, and the store
(`loops/store.py`) writes it to the output. Sizes depend on the problem alone; `division.py` cuts
tiles into smaller tasks for many threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.grids import Grids, grids_of, undivided
from conv3d_cli.engine.machine_code import MachineCode
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem


@dataclass(frozen=True)
class TileLayout:
    """The layout of a task's packed input and sums in memory. Steps and sizes are in elements.

    tile : Size             output voxels of a task; tasks at the volume's edge are smaller
    step_depth : int        output planes computed at once
    ring : int              packed planes in the ring: at least the window of a step, or 1 for an
                            algorithm that absorbs each plane when it is packed
    pack : str              "rows": (channel, plane, row, width split by stride phase);
                            "voxels": (plane, row, column, channel)
    pitch, row_step, plane_step, channel_step : int     strides of the packed planes (see
                            `loops/pack.py`)
    scratch_size : int      the ring, and what register tiles may read beyond its end
    sums : (int, int, int, int)     strides of the accumulator: filter, plane, row, column
    accumulator_size : int
    workspace_bytes : int   further memory of a thread, for the algorithm
    block_height : int      rows that are computed and then stored at once; 0: all rows of the task
    origin : int            elements before the ring, chosen so that most packed vectors are aligned
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
    """The size of the input that a tile of outputs reads: (planes, rows, columns)."""
    axes = zip(tile, problem.strides, problem.extent, strict=True)
    return Size(*((size - 1) * stride + extent for size, stride, extent in axes))


def spread_rows(length: int) -> int:
    """The least row length that is a multiple of 16 elements and not of 256.

    Rows that are a power of two apart would share cache sets.

    >>> spread_rows(100), spread_rows(250)
    (112, 272)
    """
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
    """A layout with packed rows and planar sums (filter, plane, row, column).

    tile, step_depth, block_height, origin : see `TileLayout`
    ring : int or None                  packed planes in the ring; None: the window of a step
    spare_rows, spare_columns : int     output rows and columns that register tiles may compute
                                        beyond the task
    sums_pitch : int or None            elements of a row of sums; None: the width, rounded up to 16
    """
    planes, rows, columns = packed_size(problem, tile._replace(depth=step_depth))
    stride = problem.strides[2]
    pitch = math.ceil(columns / stride / 16) * 16
    row_step = spread_rows(stride * pitch)
    plane_step = rows * row_step
    ring = planes if ring is None else ring
    channel_step = ring * plane_step
    spare = (spare_rows * problem.strides[1] + 1) * row_step + spare_columns + 16
    if sums_pitch is None:
        sums_pitch = math.ceil(tile.width / 16) * 16
    sums_row = sums_pitch + spare_columns
    sums_plane = ((block_height or tile.height) + spare_rows) * sums_row
    return TileLayout(
        tile=tile,
        step_depth=step_depth,
        ring=ring,
        pack="rows",
        pitch=pitch,
        row_step=row_step,
        plane_step=plane_step,
        channel_step=channel_step,
        scratch_size=problem.channels_per_group * channel_step + spare,
        sums=(step_depth * sums_plane, sums_plane, sums_row, 1),
        accumulator_size=problem.filters_per_group * step_depth * sums_plane,
        block_height=block_height,
        origin=origin,
    )


def voxels_layout(
    problem: ConvProblem,
    tile: Size,
    *,
    filters: int,
    step_depth: int = 1,
    workspace_bytes: int = 0,
    channel_pitch: int | None = None,
) -> TileLayout:
    """A layout with packed voxels and sums (plane, row, column, filter).

    tile, step_depth, workspace_bytes : see `TileLayout`
    filters : int           sums per voxel: the filters of a group, padded to whole vectors
    channel_pitch : int or None     elements per packed position; None: the channels of a group
    """
    planes, rows, columns = packed_size(problem, tile._replace(depth=step_depth))
    pitch = problem.channels_per_group if channel_pitch is None else channel_pitch
    row_step = spread_rows(columns * pitch)
    plane_step = rows * row_step
    spare = row_step + 16
    sums_row = tile.width * filters
    sums_plane = tile.height * sums_row
    return TileLayout(
        tile=tile,
        step_depth=step_depth,
        ring=planes,
        pack="voxels",
        pitch=pitch,
        row_step=row_step,
        plane_step=plane_step,
        channel_step=1,
        scratch_size=planes * plane_step + spare,
        sums=(1, sums_plane, sums_row, filters),
        accumulator_size=step_depth * sums_plane,
        workspace_bytes=workspace_bytes,
    )


SPARE_LINES = 4  # rows that a register tile may read beyond a task, where it reads in place
LEAST_ROWS, LEAST_COLUMNS = 4, 64


def shrink_tile(problem: ConvProblem, tile: Size, fits: Callable[[Size], bool]) -> Size:
    """The tile, clipped to the output, with height and width halved in turn until it fits.

    fits : callable     whether a tile fits; LEAST_ROWS x LEAST_COLUMNS are not halved any more
    """
    tile = Size(*(min(size, wish) for size, wish in zip(problem.out_size, tile, strict=True)))
    while not fits(tile):
        is_high = tile.height >= tile.width // 8 or tile.width <= LEAST_COLUMNS
        if tile.height > LEAST_ROWS and is_high:
            tile = tile._replace(height=max(LEAST_ROWS, -(-tile.height // 2)))
        elif tile.width > LEAST_COLUMNS:
            tile = tile._replace(width=max(LEAST_COLUMNS, -(-tile.width // 2)))
        else:
            break
    return tile


def enough_tasks(problem: ConvProblem, tile: Size, step_depth: int = 1, wish: int = 48) -> Size:
    """The tile, with its depth halved until threads have `wish` tasks to share.

    Its depth stays large enough that packing the halo again for each task does not cost too much.
    """
    least = step_depth * math.ceil(max(8, 2 * (problem.extent[0] - 1)) / step_depth)
    columns = problem.groups * math.prod(
        -(-n // t) for n, t in zip(problem.out_size[1:], tile[1:], strict=True)
    )
    while tile.depth > least and columns * -(-problem.out_size[0] // tile.depth) < wish:
        half = step_depth * math.ceil(tile.depth / 2 / step_depth)
        tile = tile._replace(depth=max(least, half))
    return tile


def chunk_terms(terms: int, least: int) -> int:
    """The size of the chunks that a sum of `terms` terms is split into, at least `least`.

    Each chunk is summed from zero, then added to the total. The terms of a constant volume are
    equal and all round the same way, so neither a chunk nor the number of chunks may grow in
    proportion to the terms. With 27^3 taps, chunks of 64 drift by 5e-6, chunks of the square root
    by 4e-7 (relative, float32).

    >>> chunk_terms(27, 64), chunk_terms(27**3, 64)
    (64, 140)
    """
    return max(least, math.isqrt(terms))


class WeightBytes(NamedTuple):
    """Bytes that an algorithm allocates for its weights, in addition to the given weights.

    kept : int      of the packed weights and their tables
    packing : int   of temporary copies while the weights are packed
    """

    kept: int
    packing: int


NO_WEIGHTS = WeightBytes(0, 0)


@dataclass
class PreparedAlgorithm:
    """An algorithm prepared for one problem and its weights; all threads share it, none changes it.

    layout : TileLayout             memory of a task
    convolve : MachineCode          sums a step (`step_planes` planes) into the accumulator
    pack_weights : callable         () -> the weights in the order that `convolve` reads; called
                                    before the first step runs
    parameters : array              int64 arguments of `convolve` and `absorb`
    absorb : MachineCode or None    runs on each packed plane before the next plane is packed
    spreads_nonfinite : bool        NaN and infinity would spread beyond the outputs whose windows
                                    contain them, so `direct` recomputes steps with one in their
                                    window
    rounds_tiles : bool             the voxels of a tile are rounded together, as in a transform, so
                                    that a tile is never cut along height and width
    checks_nonfinite : bool         `absorb` and `convolve` find such steps themselves, so packing
                                    does not
    calls : dict                    functions that `convolve` calls: index in `parameters` ->
                                    function, whose address is written there when it is loaded
    packs_weights : tuple of MachineCode    the loops that `pack_weights` runs
    keep : list                     arrays whose addresses are in `parameters`
    in_place : callable or None     (`stored_bits` of a source) -> `absorb`, or `convolve` if there
                                    is none, that reads rows of the source where they lie; None
                                    if it does not read such numbers
    groups_together : int           groups that a task packs, sums and stores as one; a divisor of
                                    their number
    rows : int                      rows of a register tile, or a good number of them; tasks end
                                    at multiples of it
    weight_bytes : WeightBytes      memory of the packed weights
    """

    layout: TileLayout
    convolve: MachineCode
    pack_weights: Callable[[], NDArray[Any]]
    parameters: NDArray[np.int64]
    absorb: MachineCode | None = None
    spreads_nonfinite: bool = False
    rounds_tiles: bool = False
    checks_nonfinite: bool = False
    calls: dict[int, MachineCode] = field(default_factory=dict)
    packs_weights: tuple[MachineCode, ...] = ()
    keep: list[Any] = field(default_factory=list)
    in_place: Callable[[int], MachineCode | None] | None = None
    groups_together: int = 1
    rows: int = 8
    weight_bytes: WeightBytes = NO_WEIGHTS

    @cached_property
    def weights(self) -> NDArray[Any]:
        """The packed weights; packed at the first access."""
        return self.pack_weights()


class Algorithm(NamedTuple):
    """One way to compute a convolution.

    name : str              name for `--algorithm` and `explain`
    summary : str           one line for reports
    reject : callable       (problem, weights) -> reason why it cannot compute this problem, or None
    prepare : callable      (problem, weights, dtype) -> PreparedAlgorithm
    seconds : callable      (problem, weights, threads) -> predicted time in seconds
    by_grids : bool         for a dilated problem, those three take the dense one of `grids`
    """

    name: str
    summary: str
    reject: Callable[[ConvProblem, NDArray[Any]], str | None]
    prepare: Callable[[ConvProblem, NDArray[Any], np.dtype[Any]], PreparedAlgorithm]
    seconds: Callable[[ConvProblem, NDArray[Any], int], float]
    by_grids: bool = False

    def grids(self, problem: ConvProblem) -> Grids:
        """The dense problem that it computes, and how far apart its voxels are."""
        return grids_of(problem) if self.by_grids else undivided(problem)

    def declines(self, problem: ConvProblem, weights: NDArray[Any]) -> str | None:
        """Why it cannot compute a problem, or None."""
        return self.reject(self.grids(problem).problem, weights)

    def own_seconds(self, problem: ConvProblem, weights: NDArray[Any]) -> float:
        """The time of one thread as it predicts it itself, before `costs` corrects it."""
        grids = self.grids(problem)
        return grids.of_all(problem, self.seconds(grids.problem, weights, 1))

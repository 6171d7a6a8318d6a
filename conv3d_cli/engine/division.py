"""Divide a region of outputs into tasks that keep all threads of a team at work.

The tile of an algorithm is the largest task: it fits the caches. Where a region has few tiles, they
are cut into smaller tasks. A voxel gets the same bits in a task of any size, so the division may
depend on the number of threads.
"""

from __future__ import annotations

import heapq
import itertools
import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import Triple

# Tasks for each thread, wherever the region has them. Then no thread is idle for more than a fifth
# of the time, even if all tasks take equally long and their number is the least favourable.
TASKS_PER_THREAD = 4
# With so many tiles per thread, smaller or more equal tasks would gain too little.
ENOUGH_TILES = 8
# The least useful task: a thread spends about 5 us in the interpreter, which all threads share,
# before it computes the next one.
LEAST_TASK_SECONDS = 10e-6
# All tasks together may take longer than whole tiles, since each packs its halo once more: by this
# share for each further thread, and at most so many times as long.
REPEATED_PER_THREAD, MOST_REPEATED = 1 / 32, 2.0
# TASKS_PER_THREAD may end later by this share for each doubling of the threads, since no CPU is
# always equally fast, and the slowest of many is slower; but by no more than they can save.
WORTH_PER_DOUBLING, MOST_WORTH = 0.05, 1 / TASKS_PER_THREAD
ROW_COLUMNS = 16  # a row takes as much longer as so many columns would take
COLUMNS = 64  # tasks end at multiples of these: whole register tiles and cache lines
PACK_SECONDS = 0.35e-9  # of a packed voxel


class Cuts(NamedTuple):
    """The largest task of an algorithm, where it may be cut, and what its parts cost.

    tile : Size             output voxels of the largest task; its depth is in whole steps
    step_depth : int        planes that are computed together; no task cuts them
    rows : int          tasks end at multiples of these rows, of a register tile
    strides, extent : (D, H, W)     of the problem
    across : str            how height and width may be cut: "anywhere"; "evenly", so that a tile
                            is a number of whole tasks; "never"
    filters_planes : bool   each packed plane is also filtered or transformed
    channels : int          packed for each voxel
    voxel_seconds : float   predicted time of one thread for an output voxel of all filters
    """

    tile: Size
    step_depth: int
    rows: int
    strides: Triple
    extent: Triple
    across: Literal["anywhere", "evenly", "never"]
    filters_planes: bool
    channels: int
    voxel_seconds: float

    def seconds(self, size: tuple[Any, ...], parts: tuple[Any, ...] = (1, 1, 1)) -> Any:
        """The predicted time of one thread for a box of outputs, cut into parts along each axis.

        size, parts : three numbers or arrays
        """
        planes, rows, columns = (
            n * stride + count * (extent - stride)
            for n, count, stride, extent in zip(size, parts, self.strides, self.extent, strict=True)
        )
        pack = min(PACK_SECONDS * self.channels, self.voxel_seconds / 2)
        # a filtered plane takes about two thirds of the arithmetic of an output plane
        depth = (2 * planes / self.strides[0] + size[0]) / 3 if self.filters_planes else size[0]
        outputs = depth * size[1] * (size[2] + parts[2] * ROW_COLUMNS)
        packed = planes * rows * (columns + parts[2] * ROW_COLUMNS)
        return pack * packed + (self.voxel_seconds - pack) * outputs


class TaskGrid(NamedTuple):
    """The tasks of a region: see `Tasks` of the step record.

    tile : Size         output voxels of a task; its depth is a multiple of the step's
    counts : Size       tasks along each axis, for one set of groups packed together
    steps_per_task : int
    tasks : int         tasks in total
    """

    tile: Size
    counts: Size
    steps_per_task: int
    tasks: int


@lru_cache(maxsize=256)
def divide(size: Size, blocks: int, threads: int, cuts: Cuts) -> TaskGrid:
    """The tasks of a region.

    size : Size         outputs of the region
    blocks : int        sets of groups that are packed together

    >>> cuts = Cuts(Size(32, 64, 256), 1, 8, (1, 1, 1), (3, 3, 3), "anywhere", False, 1, 1e-9)
    >>> divide(Size(32, 256, 256), 1, 1, cuts).tile
    Size(depth=32, height=64, width=256)
    >>> [divide(Size(32, 256, 256), 1, threads, cuts).tasks for threads in (1, 2, 8, 64)]
    [4, 8, 32, 64]
    """
    tile = Size(*(min(n, whole) for n, whole in zip(cuts.tile, size, strict=True)))
    # whole steps per task, so that a step covers the same planes however tasks are divided
    tile = tile._replace(depth=-(-tile.depth // cuts.step_depth) * cuts.step_depth)
    grid = _grid(tile, size, blocks, cuts)
    if not size.voxels or grid.tasks >= ENOUGH_TILES * threads:
        return grid
    if threads == 1:
        if cuts.across != "anywhere":
            return grid
        tile = tile._replace(height=_parts(size.height, cuts.rows, tile.height)[0])
        return _grid(tile, size, blocks, cuts)
    return _grid(_smaller_tile(tile, size, blocks, threads, cuts), size, blocks, cuts)


def _grid(tile: Size, size: Size, blocks: int, cuts: Cuts) -> TaskGrid:
    counts = Size(*(-(-whole // n) for whole, n in zip(size, tile, strict=True)))
    return TaskGrid(tile, counts, tile.depth // cuts.step_depth, blocks * counts.voxels)


def _smaller_tile(tile: Size, size: Size, blocks: int, threads: int, cuts: Cuts) -> Size:
    """The tile of the tasks that a team is predicted to finish first.

    Of the useful tasks, those are considered that keep as many threads as possible at work, so
    never fewer threads work because there are more of them.
    """
    lengths: list[list[int]] = [_parts(size.depth, cuts.step_depth, tile.depth)]
    for axis, unit in ((1, cuts.rows), (2, COLUMNS)):
        if cuts.across == "anywhere" or (cuts.across == "evenly" and tile[axis] >= size[axis]):
            lengths.append(_parts(size[axis], unit, tile[axis]))
        elif cuts.across == "evenly":
            parts = (tile[axis] // n for n in range(1, tile[axis] // unit + 1))
            lengths.append([n for n in parts if tile[axis] % n == 0] or [tile[axis]])
        else:
            lengths.append([tile[axis]])
    tiles = np.array([tile, *itertools.product(*lengths)], np.int64).T
    counts = -(-np.array(size)[:, None] // tiles)
    tasks = blocks * counts.prod(axis=0)
    one = cuts.seconds(tuple(np.minimum(tiles, np.array(size)[:, None])))
    all_tasks = blocks * cuts.seconds(tuple(size), tuple(counts))
    outputs = tiles.prod(axis=0) * cuts.voxel_seconds
    repeated = min(MOST_REPEATED, 1 + REPEATED_PER_THREAD * (threads - 1))
    useful = (outputs >= LEAST_TASK_SECONDS) & (all_tasks <= repeated * all_tasks[0])
    useful[0] = True
    useful &= tasks >= min(threads, tasks[useful].max())
    # the end if tasks are equal, or by Graham's bound, whichever is earlier
    end = np.where(
        useful, np.minimum(-(-tasks // threads) * one, all_tasks / threads + one), np.inf
    )
    worth = 1 + min(WORTH_PER_DOUBLING * math.log2(threads), MOST_WORTH)
    many = (tasks >= TASKS_PER_THREAD * threads) & (end <= worth * end.min())
    if many.any():
        end[~many] = np.inf
    best = int(np.lexsort((tasks, end))[0])
    return Size(*tiles[:, best].tolist())


def _parts(size: int, unit: int, most: int) -> list[int]:
    """The lengths of nearly equal parts of an axis, in whole units; the longest is first.

    most : int      longest part; it need not be in whole units

    >>> _parts(100, 8, 64), _parts(91, 8, 91)
    ([56, 40, 32, 24, 16, 8], [91, 48, 32, 24, 16, 8])
    """
    units = -(-size // unit)
    lengths: list[int] = []
    for count in range(-(-size // most), units + 1):
        length = min(-(-units // count) * unit, most)
        if not lengths or length < lengths[-1]:
            lengths.append(length)
    return lengths or [most]


class Sharing(NamedTuple):
    """How the threads of a team are predicted to share a region.

    tasks : int         that can run at once
    at_work : int       threads that have a task: no more than there are tasks
    idle : float        share of the time of all threads in which they wait for the last task
    speedup : float     how many times sooner they end than one thread
    """

    tasks: int
    at_work: int
    idle: float
    speedup: float


def share(size: Size, blocks: int, threads: int, cuts: Cuts) -> Sharing:
    """Predict how threads share a region; the first free one takes the next task (`Team.run`).

    size, blocks, threads, cuts : see `divide`
    """

    def ends(count: int) -> list[float]:
        grid = divide(size, blocks, count, cuts)
        loads = [0.0] * count
        of_axis = [
            [min(n, whole - start) for start in range(0, whole, n)]
            for n, whole in zip(grid.tile, size, strict=True)
        ]
        for _ in range(blocks):
            for task in itertools.product(*of_axis):
                heapq.heapreplace(loads, loads[0] + cuts.seconds(task))
        return loads

    tasks = divide(size, blocks, threads, cuts).tasks
    loads = ends(threads)
    last = max(loads)
    if not last:
        return Sharing(tasks, 0, 1.0, 1.0)
    idle = max(0.0, 1 - sum(loads) / (threads * last))
    return Sharing(tasks, min(threads, tasks), idle, ends(1)[0] / last)

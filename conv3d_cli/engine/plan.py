"""The plan: which algorithm computes a problem, what it costs, and the run over a slab.

`make_plan` asks every algorithm in order whether it accepts and how long it would take, and keeps the answers for
`explain`. `Plan.convolve_slab` drives tiles through pack → loops → epilogue on a team of threads. The choice depends on
problem and weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine import direct
from conv3d_cli.engine.epilogue import Activation, finish_tile
from conv3d_cli.engine.packing import FlatView, flat_view, inner_run, is_flattenable, offset_table, pack_loops
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm, Tile
from conv3d_cli.errors import ShapeError, unknown_name
from conv3d_cli.model.spec import ConvProblem

# In order of preference where the predicted times are equal. `direct` accepts everything and stands last.
ALGORITHMS: tuple[Algorithm, ...] = (direct.ALGORITHM,)


@dataclass
class Plan:
    """How one problem will be computed.

    problem, weights, dtype     as given; dtype is that of the arithmetic, float32 or float64
    algorithm : Algorithm       the chosen one
    refusals : list             (name, reason) of those that declined
    seconds : dict              predicted time of each that accepted, by name
    """

    problem: ConvProblem
    weights: NDArray[Any]
    dtype: np.dtype[Any]
    threads: int
    algorithm: Algorithm
    refusals: list[tuple[str, str]]
    seconds: dict[str, float]
    prepared: PreparedAlgorithm
    _workers: dict[int, Any] = field(default_factory=dict)

    @property
    def bytes_moved(self) -> int:
        """Bytes that must pass through memory at least: input once, output once, in the arithmetic's dtype."""
        return (math.prod(self.problem.in_shape) + math.prod(self.problem.out_shape)) * self.dtype.itemsize

    @property
    def scratch_bytes(self) -> int:
        """Memory of all threads' tiles."""
        layout = self.prepared.layout
        return (layout.scratch_size + layout.accumulator_size + layout.tile.width) * self.dtype.itemsize * self.threads

    def convolve_slab(
        self,
        source: NDArray[Any],
        out: NDArray[Any],
        planes: list[int],
        team: Team,
        *,
        scale: tuple[float, float] = (1.0, 0.0),
        bias: NDArray[Any] | None = None,
        activation: Activation | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Convolve some depth planes of one volume.

        source : (planes, H, W, C)          any real dtype and strides; values are source · scale[0] + scale[1]
        out : (slab, out H, out W, filters) filled; integers are rounded half to even and saturated
        planes : list of int                for every depth position the slab's taps span, its plane in `source`; -1 where
                                            a constant stands (see `ConvProblem.source_indices`)
        progress : callable                 told the voxels finished, from any thread
        Returns how many voxels the output's dtype could not hold.
        """
        problem = self.problem
        # The loops do not check bounds; whatever they are led to by a wrong table is read.
        assert source.shape[1:] == (*problem.in_size[1:], problem.in_channels), source.shape
        assert max(planes) < len(source), (max(planes), len(source))
        if not is_flattenable(source):
            source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
        source_view = flat_view(source.view(np.uint8) if source.dtype == bool else source)
        out_view = flat_view(out)
        tile = self.prepared.layout.tile
        counts = Tile(*(-(-n // t) for n, t in zip(out.shape[:3], tile, strict=True)))
        tables = _Tables(problem, planes, source_view, scale)
        clipped = [0] * self.threads

        def work(worker: int, task: int) -> None:
            rest, w = divmod(task, counts.width)
            rest, h = divmod(rest, counts.height)
            group, d = divmod(rest, counts.depth)
            start = Tile(d * tile.depth, h * tile.height, w * tile.width)
            stop = Tile(*(min(a + n, size) for a, n, size in zip(start, tile, out.shape[:3], strict=True)))
            clipped[worker] += self._convolve_tile(
                self._worker(worker), tables, source_view, out_view, group, start, stop, bias, activation
            )
            if progress is not None:
                size = math.prod(b - a for a, b in zip(start, stop, strict=True))
                progress(size * problem.filters_per_group)

        team.run(problem.groups * math.prod(counts), work)
        return sum(clipped)

    def store(self, values: NDArray[Any], out: NDArray[Any]) -> int:
        """Put values (d, h, w, c) into an array of that shape, rounded and saturated as the epilogue does it."""
        view = flat_view(out)
        tile = np.ascontiguousarray(values.transpose(3, 0, 1, 2), dtype=self.dtype)
        return finish_tile(tile, None, None, view, view.start)

    def _worker(self, worker: int) -> tuple[NDArray[Any], NDArray[Any], Any]:
        """Scratch, accumulator and workspace of one thread, made at its first tile."""
        if worker not in self._workers:
            layout = self.prepared.layout
            # Zeros, since the gap at a row's end is read into lanes that are not kept: they must be finite numbers.
            scratch = np.zeros(layout.scratch_size, self.dtype)
            accumulator = np.empty(layout.accumulator_size, self.dtype)
            self._workers[worker] = scratch, accumulator, self.prepared.new_workspace()
        return self._workers[worker]

    def _convolve_tile(
        self,
        memory: tuple[NDArray[Any], NDArray[Any], Any],
        tables: _Tables,
        source: FlatView,
        out: FlatView,
        group: int,
        start: Tile,
        stop: Tile,
        bias: NDArray[Any] | None,
        activation: Activation | None,
    ) -> int:
        problem, layout = self.problem, self.prepared.layout
        scratch, accumulator, workspace = memory
        planes, rows, columns, run_start, run_stop = tables.tile(start, stop)
        channel_step = source.strides[3]
        first_channel = source.start + group * problem.channels_per_group * channel_step
        pack_loops(
            source.flat, first_channel, channel_step, problem.channels_per_group, planes, rows, columns,
            run_start, run_stop, source.strides[2], self.dtype.type(problem.boundary.value),
            tables.scaled, tables.slope, tables.intercept,
            problem.strides[2], layout.pitch, layout.height, layout.depth, layout.row_step, scratch,
        )  # fmt: skip
        shape = (problem.filters_per_group, *(b - a for a, b in zip(start, stop, strict=True)))
        accumulator = accumulator[: math.prod(shape)].reshape(shape)
        self.prepared.convolve_tile(group, scratch, accumulator, workspace)
        first_filter = group * problem.filters_per_group
        offset = out.start + first_filter * out.strides[3]
        offset += sum(a * stride for a, stride in zip(start, out.strides[:3], strict=True))
        group_bias = None if bias is None else bias[first_filter : first_filter + problem.filters_per_group]
        return finish_tile(accumulator, group_bias, activation, out, offset)


@lru_cache(maxsize=16)
def _plane_indices(problem: ConvProblem) -> tuple[list[int], list[int]]:
    """The source rows and columns of a whole plane: the same for every slab of a problem."""
    return problem.source_indices(1, 0, problem.out_size[1]), problem.source_indices(2, 0, problem.out_size[2])


class _Tables:
    """Where the packed positions of a slab lie in its source, along each axis."""

    def __init__(self, problem: ConvProblem, planes: list[int], source: FlatView, scale: tuple[float, float]) -> None:
        self.problem = problem
        rows, columns = _plane_indices(problem)
        self.rows = offset_table(rows, source.strides[1])
        self.columns = offset_table(columns, source.strides[2])
        self.planes = offset_table(planes, source.strides[0])
        self.run = inner_run(columns)
        self.slope, self.intercept = scale
        self.scaled = scale != (1.0, 0.0)

    def tile(self, start: Tile, stop: Tile) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int, int]:
        """Offsets of the planes, rows and columns a tile packs, and its run of columns that follow one another."""
        first = [a * s for a, s in zip(start, self.problem.strides, strict=True)]
        last = [(b - 1) * s + e for b, s, e in zip(stop, self.problem.strides, self.problem.extent, strict=True)]
        run_start = min(max(self.run[0], first[2]), last[2])
        run_stop = max(run_start, min(self.run[1], last[2]))
        return (
            self.planes[first[0] : last[0]],
            self.rows[first[1] : last[1]],
            self.columns[first[2] : last[2]],
            run_start - first[2],
            run_stop - first[2],
        )


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of this name.

    Raises: UnknownNameError.
    """
    for algorithm in ALGORITHMS:
        if algorithm.name == name:
            return algorithm
    raise unknown_name("algorithm", name, ["auto", *(a.name for a in ALGORITHMS)])


def make_plan(
    problem: ConvProblem,
    weights: NDArray[Any],
    *,
    dtype: str | np.dtype[Any] = "float32",
    threads: int = 1,
    algorithm: str = "auto",
) -> Plan:
    """Choose an algorithm and make it ready.

    weights : (kd, kh, kw, in_channels/groups, filters)
    algorithm : "auto", or a name from ALGORITHMS, which is then used or refused
    Raises: UnknownNameError; ShapeError if the named algorithm cannot run this problem.
    """
    forced = None if algorithm == "auto" else find_algorithm(algorithm)
    refusals, seconds = [], {}
    for candidate in ALGORITHMS:
        reason = candidate.reject(problem, weights)
        if reason is None:
            seconds[candidate.name] = candidate.seconds(problem, weights, threads)
            continue
        refusals.append((candidate.name, reason))
        if candidate is forced:
            raise ShapeError(f"algorithm '{algorithm}' cannot run this: {reason}")
    # Threads divide every prediction alike, so the choice does not depend on them.
    chosen = forced or find_algorithm(min(seconds, key=seconds.__getitem__))
    real = np.dtype(dtype)
    prepared = chosen.prepare(problem, weights, real)
    return Plan(problem, weights, real, threads, chosen, refusals, seconds, prepared)

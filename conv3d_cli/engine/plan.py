"""The plan: which algorithm computes a problem, what it costs, and the run over a slab.

`make_plan` asks every algorithm in order whether it accepts and how long it would take, and keeps the answers for
`explain`. `Plan.convolve_slab` hands tasks to a team of threads. The choice depends on problem, weights and CPU class alone.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms import channels, depthwise, direct, few_filters, fft, separable, sparse, winograd
from conv3d_cli.engine.costs import factor
from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.normalize import Division, Weighing
from conv3d_cli.engine.step import HELD_BAD, HELD_MISSING, F, new_step, set_fields
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm, Tile, WeightBytes
from conv3d_cli.engine.views import FlatView, aligned_zeros, flat_view, inner_run, is_flattenable, offset_table
from conv3d_cli.errors import ShapeError, unknown_name
from conv3d_cli.model.spec import ConvProblem

# In order of preference where the predicted times are equal. `direct` accepts everything and stands last.
ALGORITHMS: tuple[Algorithm, ...] = (
    separable.ALGORITHM,
    winograd.ALGORITHM,
    few_filters.ALGORITHM,
    depthwise.ALGORITHM,
    channels.ALGORITHM,
    fft.ALGORITHM,
    sparse.ALGORITHM,
    direct.ALGORITHM,
)

Part = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) along depth, height and width
Activation = Callable[[NDArray[Any]], None]  # in place

# Outputs larger than this are stored past the caches: they would only push out what is needed again.
STREAMING_BYTES = 8 << 20
# Tasks handed to a thread at once: enough of these that no thread waits long for the last one.
SHARES = 64

# With fewer tasks a thread, one of another size keeps others waiting; but bands below so many rows pack too much halo.
FEW_TASKS, LEAST_BAND = 8, 32

_callback_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Worker(NamedTuple):
    """A thread's step record and the memory it points to."""

    step: NDArray[np.int64]
    memory: tuple[NDArray[Any], ...]
    accumulator: NDArray[Any]


class _Run(NamedTuple):
    """What all boxes of a slab have in common: see `Plan.convolve_slab`; sums_channels: of what `out` holds."""

    source: FlatView
    out: FlatView
    team: Team
    scale: tuple[float, float]
    bias: NDArray[Any] | None
    activation: Activation | None
    noted: list[Part] | None = None
    weighing: Weighing | None = None
    division: Division | None = None
    sums_channels: int = 1


class _Box(NamedTuple):
    """A box of a slab's outputs: its groups, offset tables of its input positions, where its output begins, and its size.

    run : (int, int)    positions along the width that follow one another in the source
    out_start : int     of the first group's first voxel, in elements
    mask : tables       of the mask's planes, rows and columns; empty without one
    """

    groups: range
    planes: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    run: tuple[int, int]
    out_start: int
    size: Tile
    mask: tuple[NDArray[np.int64], ...] = ()


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
    _workers: dict[int, _Worker] = field(default_factory=dict)

    @cached_property
    def prepared(self) -> PreparedAlgorithm:
        """Weights packed, and what loops it will run; made when first needed. No machine code is loaded for it."""
        return self.algorithm.prepare(self.problem, self.weights, self.dtype)

    @cached_property
    def fallback(self) -> Plan:
        """The plan for steps that hold NaN or infinity, which only the direct sum keeps within their windows."""
        return make_plan(self.problem, self.weights, dtype=self.dtype, threads=self.threads, algorithm="direct")

    @property
    def depth_step(self) -> int:
        """Slabs must begin at multiples of this, so that the same planes are computed together whatever the slab."""
        return self.prepared.layout.step_depth

    @property
    def grain(self) -> Tile:
        """Boxes that begin and end at multiples of this have the bits of the whole volume.

        1 where each voxel is summed on its own. Else tiles: a transform rounds all voxels of a tile together, and steps with
        NaN or infinity are done over as a whole.
        """
        tile = self.prepared.layout.tile
        return Tile(self.depth_step, *tile[1:]) if self.prepared.fenced else Tile(1, 1, 1)

    @property
    def bytes_moved(self) -> int:
        """Bytes that must pass through memory at least: input once, output once, in the arithmetic's dtype."""
        return (math.prod(self.problem.in_shape) + math.prod(self.problem.out_shape)) * self.dtype.itemsize

    @property
    def scratch_bytes(self) -> int:
        """Memory of the tiles of all threads that have work in a whole volume."""
        return self.scratch_for(self.problem.out_size)

    def scratch_for(self, size: tuple[int, int, int]) -> int:
        """Memory of the tiles of the threads that have work in a box of outputs (d, h, w)."""
        layout = self.prepared.layout
        numbers = layout.scratch_size + layout.accumulator_size
        _, tasks = self._tasks(Tile(*size), self.problem.groups, self.threads)
        return (numbers * self.dtype.itemsize + layout.workspace_bytes) * min(self.threads, tasks)

    def _tasks(self, size: Tile, groups: int, threads: int) -> tuple[Tile, int]:
        """How large the tasks of a box of outputs are, and how many."""
        layout, together = self.prepared.layout, self.prepared.groups_together
        tile = Tile(*(min(n, whole) for n, whole in zip(layout.tile, size, strict=True)))
        # whole steps a task, so that steps stand where they would in one task
        tile = tile._replace(depth=-(-tile.depth // layout.step_depth) * layout.step_depth)
        if not self.prepared.fenced:
            tile = _even_bands(tile, size, groups // together, threads)
        counts = (-(-whole // n) for whole, n in zip(size, tile, strict=True))
        return tile, groups // together * math.prod(counts)

    @property
    def weight_bytes(self) -> WeightBytes:
        """Memory of the packed weights, those of `fallback` included where a step may need it."""
        own = self.prepared.weight_bytes
        if not self.prepared.fenced:
            return own
        repair = direct.weight_bytes(self.problem, self.dtype, direct.item_shape(self.problem)[0])
        return WeightBytes(own.kept + repair.kept, max(own.packing, repair.packing))

    def loops(
        self,
        source: np.dtype[Any],
        out: np.dtype[Any],
        scale: tuple[float, float] = (1.0, 0.0),
        weighing: Weighing | None = None,
        division: Division | None = None,
    ) -> list[MachineCode]:
        """The driver, packing and store for a source's and an output's dtype, and the algorithm's own: ready to run."""
        layout, real = self.prepared.layout, self.dtype.name
        checked = int(self._is_fenced(source, scale, weighing) and not self.prepared.checks)
        if weighing is None:
            pack = machine_code("pack", f"pack_{layout.pack}", source.name, real, checked)
        else:
            pack = machine_code(
                "weigh",
                f"weigh_{layout.pack}",
                source.name,
                real,
                "none" if weighing.mask is None else weighing.mask.dtype.name,
            )
        codes = [
            machine_code("drive", "run_tasks"),
            pack,
            machine_code("store", "store", real, out.name) if division is None else division.code(self.dtype),
            self.prepared.convolve,
            *([] if self.prepared.absorb is None else [self.prepared.absorb]),
            *([] if self.prepared.packs_weights is None else [self.prepared.packs_weights]),
            *self.prepared.calls.values(),
        ]
        load(codes)
        for place, code in self.prepared.calls.items():
            self.prepared.parameters[place] = code.address
        return codes

    def convolve_slab(
        self,
        source: NDArray[Any],
        out: NDArray[Any],
        planes: list[int],
        team: Team,
        *,
        rows: list[int] | None = None,
        columns: list[int] | None = None,
        scale: tuple[float, float] = (1.0, 0.0),
        bias: NDArray[Any] | None = None,
        activation: Activation | None = None,
        progress: Callable[[int], None] | None = None,
        noted: list[Part] | None = None,
        weighing: Weighing | None = None,
        division: Division | None = None,
    ) -> int:
        """Convolve some depth planes of one volume, or a band of rows of them, or a box.

        source : (planes, rows, columns, C)     any real dtype and strides; values are source * scale[0] + scale[1]
        out : (d, h, w, filters)            filled; integers are rounded half to even and saturated
        planes : list of int                for every depth position the slab's taps span, its plane in `source`; -1 where
                                            a constant stands (see `ConvProblem.source_indices`)
        rows, columns : list of int or None     the same along height and width; None: source and out hold all of them
        bias : (filters,)                   added before the activation
        progress : callable                 told the voxels finished, from any thread
        weighing : Weighing or None         what voxels are multiplied by, or the weights that are convolved in their place
        noted : list or None                takes the parts, (start, stop) along depth, height and width, whose windows may hold a
                                            weight other than 1
        division : Division or None         what is summed is coverage: `out` holds sums, which it divides
        The slab must begin at a multiple of `depth_step`, a band or a box begin and end at multiples of `grain`.
        Returns how many voxels the output's dtype could not hold; of a division, how many means had too little coverage.
        """
        problem = self.problem
        if weighing is not None and weighing.is_idle(source.dtype, scale):
            weighing = None
        # The loops do not check bounds; whatever they are led to by a wrong table is read.
        whole_rows, whole_columns = _plane_indices(problem)
        rows = whole_rows if rows is None else rows
        columns = whole_columns if columns is None else columns
        assert source.shape[3] == problem.in_channels, source.shape
        assert out.shape[3] == problem.filters or division is not None, out.shape
        if out.size == 0:
            return 0
        for axis, indices in enumerate((planes, rows, columns)):
            assert max(indices) < source.shape[axis], (axis, max(indices), source.shape)
            assert len(indices) == (out.shape[axis] - 1) * problem.strides[axis] + problem.extent[axis], (
                axis,
                out.shape,
            )
        if not is_flattenable(source):
            source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
        source_view = flat_view(source.view(np.uint8) if source.dtype == bool else source)
        out_view = flat_view(out)
        mask: tuple[NDArray[np.int64], ...] = ()
        if weighing is not None and weighing.mask is not None:
            assert weighing.mask.strides[2] == weighing.mask.itemsize, weighing.mask.strides
            for axis, (indices, own) in enumerate(zip(weighing.positions, (planes, rows, columns), strict=True)):
                assert len(indices) == len(own), (axis, len(indices), len(own))
                assert max(indices) < weighing.mask.shape[axis], (axis, max(indices), weighing.mask.shape)
            steps = [stride // weighing.mask.itemsize for stride in weighing.mask.strides]
            mask = tuple(offset_table(indices, step) for indices, step in zip(weighing.positions, steps, strict=True))
        box = _Box(
            range(problem.groups),
            offset_table(planes, source_view.strides[0]),
            offset_table(rows, source_view.strides[1]),
            offset_table(columns, source_view.strides[2]),
            inner_run(columns),
            out_view.start,
            Tile(*out.shape[:3]),
            mask,
        )
        bias = None if bias is None else np.ascontiguousarray(bias, self.dtype)
        run = _Run(source_view, out_view, team, scale, bias, activation, noted, weighing, division, out.shape[3])
        return self._convolve_box(box, run, progress)

    def make_ready(self, workers: Iterable[int]) -> None:
        """Make each worker's memory, before they run slabs side by side (see `OneOf`)."""
        for plan in (self, self.fallback) if self.prepared.fenced else (self,):
            for number in workers:
                plan._worker(number)

    def store(self, values: NDArray[Any], out: NDArray[Any]) -> int:
        """Put values (d, h, w, c) into an array of that shape, rounded and saturated as a convolution does it."""
        if out.size == 0:
            return 0
        values = np.ascontiguousarray(values, self.dtype)
        view = flat_view(out)
        step, clipped = new_step(), np.zeros(1, np.int64)
        plane_step, row_step, column_step, filter_step = (stride // values.itemsize for stride in values.strides)
        set_fields(
            step, filters=out.shape[3], step_planes=out.shape[0], block_rows=out.shape[1], width=out.shape[2],
            accumulator=values.ctypes.data, acc_filter_step=filter_step, acc_plane_step=plane_step,
            acc_row_step=row_step, acc_column_step=column_step, clipped=clipped.ctypes.data, **_out_fields(view, view.start),
        )  # fmt: skip
        machine_code("store", "store", self.dtype.name, view.flat.dtype.name)(step.ctypes.data)
        return int(clipped[0])

    def _convolve_box(self, box: _Box, run: _Run, progress: Callable[[int], None] | None = None) -> int:
        """Cut a box into tasks and have the team run them; how many voxels the output's dtype could not hold."""
        source, out = run.source, run.out
        problem, layout = self.problem, self.prepared.layout
        tile, tasks = self._tasks(box.size, len(box.groups), run.team.threads)
        counts = Tile(*(-(-size // n) for size, n in zip(box.size, tile, strict=True)))
        together = self.prepared.groups_together
        steps_per_task = tile.depth // layout.step_depth
        clipped = np.zeros(tasks * steps_per_task, np.int64)
        weighing, division = run.weighing, run.division
        fenced = self._is_fenced(source.flat.dtype, run.scale, weighing)
        flags = np.zeros(tasks * steps_per_task, np.uint8) if fenced or run.noted is not None else None
        counts_voxels = out.flat.dtype.kind != "f" or division is not None
        drive, pack, store, *_ = self.loops(source.flat.dtype, out.flat.dtype, run.scale, weighing, division)
        fields: dict[str, Any] = {
            "pack": pack.address, "store": store.address,
            "first_group": box.groups.start // together,
            "depth_blocks": counts.depth, "height_bands": counts.height, "width_bands": counts.width,
            "tile_depth": tile.depth, "tile_height": tile.height, "tile_width": tile.width,
            "steps_per_task": steps_per_task,
            "out_depth": box.size.depth, "out_height": box.size.height, "out_width": box.size.width,
            "block_height": layout.block_height or tile.height, "source_itemsize": source.flat.itemsize,
            "source": source.flat.ctypes.data + source.start * source.flat.itemsize,
            "source_channel_step": source.strides[3], "source_column_step": source.strides[2],
            "planes": box.planes.ctypes.data, "rows": box.rows.ctypes.data, "columns": box.columns.ctypes.data,
            "run_start": box.run[0], "run_stop": box.run[1],
            "fill": problem.boundary.value, "scaled": run.scale != (1.0, 0.0), "slope": run.scale[0], "intercept": run.scale[1],
            "clipped": clipped.ctypes.data, "flags": 0 if flags is None else flags.ctypes.data,
            "bias": 0 if run.bias is None else run.bias.ctypes.data,
            "has_bias": run.bias is not None and run.activation is None,
            **_out_fields(out, box.out_start),
        }  # fmt: skip
        if weighing is not None:
            fields |= weighing.fields(source.flat.dtype)
            fields["look"] = fenced and not self.prepared.checks
            fields |= zip(
                ("mask_planes", "mask_rows", "mask_columns"), (table.ctypes.data for table in box.mask), strict=False
            )
        if division is not None:
            fields |= division.fields(self.dtype, max(1, run.sums_channels // problem.filters))
        share = max(1, tasks // (SHARES * run.team.threads))
        voxels = _voxels_by_task(problem.filters_per_group * together, counts, tile, box.size)
        callbacks = {}
        failures: list[BaseException] = []
        for number in run.team.workers(tasks):
            worker = self._worker(number)
            set_fields(worker.step, activate=0, **fields)
            if run.activation is not None:
                callbacks[number] = self._callback(worker, run.bias, run.activation, failures)
                set_fields(worker.step, activate=ctypes.cast(callbacks[number], ctypes.c_void_p).value or 0)

        def work(number: int, task: int) -> None:
            step = self._workers[number].step
            first, last = task * share, min((task + 1) * share, tasks)
            step[F.first_task], step[F.last_task] = first, last
            drive(step.ctypes.data)
            if failures:
                raise failures[0]
            if progress is not None:
                progress(sum(voxels(t) for t in range(first, last)))

        run.team.run(-(-tasks // share), work)
        if run.noted is not None and flags is not None:
            for number in np.flatnonzero(flags & HELD_MISSING).tolist():
                start, size = self._place(number, steps_per_task, tile, counts, box)
                depth, height, width = ((a, a + n) for a, n in zip(start, size, strict=True))
                run.noted.append((depth, height, width))
        if fenced and flags is not None:
            for number in np.flatnonzero(flags & HELD_BAD).tolist():
                clipped[number] = self._repair(number, steps_per_task, tile, counts, box, run._replace(noted=None))
        return int(clipped.sum()) if counts_voxels else 0

    def _place(self, number: int, steps_per_task: int, tile: Tile, counts: Tile, box: _Box) -> tuple[Tile, Tile]:
        """Where a step's outputs begin in the box, and their size."""
        task, index = divmod(number, steps_per_task)
        rest, w = divmod(task, counts.width)
        rest, h = divmod(rest, counts.height)
        start = Tile(rest % counts.depth * tile.depth + index * self.depth_step, h * tile.height, w * tile.width)
        extent = Tile(self.depth_step, tile.height, tile.width)
        return start, Tile(*(min(n, whole - at) for n, at, whole in zip(extent, start, box.size, strict=True)))

    def _repair(self, number: int, steps_per_task: int, tile: Tile, counts: Tile, box: _Box, run: _Run) -> int:
        """Do a step over by the direct sum, since its window holds NaN, infinity or huge numbers."""
        problem = self.problem
        start, size = self._place(number, steps_per_task, tile, counts, box)
        block = number // steps_per_task // math.prod(counts)
        together = self.prepared.groups_together
        first = [at * stride for at, stride in zip(start, problem.strides, strict=True)]
        last = [(at + n - 1) * s + e for at, n, s, e in zip(start, size, problem.strides, problem.extent, strict=True)]
        planes, rows, columns = (
            table[a:b] for table, a, b in zip((box.planes, box.rows, box.columns), first, last, strict=True)
        )
        part = _Box(
            box.groups[block * together : (block + 1) * together],
            planes,
            rows,
            columns,
            (max(box.run[0] - first[2], 0), max(box.run[1] - first[2], 0)),
            box.out_start + sum(at * stride for at, stride in zip(start, run.out.strides[:3], strict=True)),
            size,
            tuple(table[a:b] for table, a, b in zip(box.mask, first, last, strict=False)),
        )
        return self.fallback._convolve_box(part, run)

    def _is_fenced(self, source: np.dtype[Any], scale: tuple[float, float], weighing: Weighing | None = None) -> bool:
        """Whether packing must look for NaN, infinity and huge numbers, which would spread."""
        if weighing is not None and weighing.weights:
            return False
        values = [self.problem.boundary.value, *scale]
        small = source.kind != "f" and source.itemsize <= 4  # integers that stay below 2^64 when scaled
        finite = small and all(math.isfinite(v) and abs(v) < 1e9 for v in values)
        return self.prepared.fenced and not (finite and (weighing is None or weighing.mask is None))

    def _worker(self, number: int) -> _Worker:
        """One thread's step record with its memory, made when first needed."""
        if number not in self._workers:
            problem, prepared = self.problem, self.prepared
            layout = prepared.layout
            # Zeros, since register tiles read beyond a row's end into lanes that are not kept: they should be no NaN.
            scratch = aligned_zeros(layout.origin + layout.scratch_size, self.dtype)[layout.origin :]
            accumulator = aligned_zeros(layout.accumulator_size, self.dtype)
            workspace = aligned_zeros(layout.workspace_bytes, np.dtype(np.uint8))
            window = np.zeros((layout.step_depth - 1) * problem.strides[0] + problem.extent[0], np.int64)
            step = new_step()
            set_fields(
                step, absorb=0 if prepared.absorb is None else prepared.absorb.address, convolve=prepared.convolve.address,
                step_depth=layout.step_depth, itemsize=self.dtype.itemsize,
                stride_d=problem.strides[0], stride_h=problem.strides[1], stride_w=problem.strides[2],
                extent_d=problem.extent[0], extent_h=problem.extent[1], extent_w=problem.extent[2],
                channels=problem.channels_per_group * prepared.groups_together,
                filters=problem.filters_per_group * prepared.groups_together,
                scratch=scratch.ctypes.data, ring=layout.ring, pitch=layout.pitch, row_step=layout.row_step,
                plane_step=layout.plane_step, channel_step=layout.channel_step,
                weights=prepared.weights.ctypes.data, parameters=prepared.parameters.ctypes.data,
                workspace=workspace.ctypes.data, accumulator=accumulator.ctypes.data, window=window.ctypes.data,
                acc_filter_step=layout.sums[0], acc_plane_step=layout.sums[1], acc_row_step=layout.sums[2],
                acc_column_step=layout.sums[3],
            )  # fmt: skip
            self._workers[number] = _Worker(step, (scratch, workspace, window), accumulator)
        return self._workers[number]

    def _callback(
        self, worker: _Worker, bias: NDArray[Any] | None, activation: Activation, failures: list[BaseException]
    ) -> Any:
        """A function of machine code's convention that adds the bias and applies an activation written in Python."""
        layout = self.prepared.layout

        def activate(_: int) -> None:
            try:
                step = worker.step
                shape = (step[F.filters], step[F.step_planes], step[F.block_rows], step[F.width])
                strides = [n * self.dtype.itemsize for n in layout.sums]
                sums = np.lib.stride_tricks.as_strided(worker.accumulator, shape, strides)
                if bias is not None:
                    first = step[F.group] * step[F.filters]
                    sums += bias[first : first + step[F.filters], None, None, None]
                activation(sums)
            except BaseException as error:  # must not pass through machine code; raised when the task returns
                failures.append(error)

        return _callback_type(activate)


def _out_fields(out: FlatView, start: int) -> dict[str, int]:
    return {
        "out": out.flat.ctypes.data + start * out.flat.itemsize,
        "out_plane_step": out.strides[0], "out_row_step": out.strides[1], "out_column_step": out.strides[2],
        "out_filter_step": out.strides[3], "streaming": int(out.flat.nbytes >= STREAMING_BYTES),
    }  # fmt: skip


def _even_bands(tile: Tile, size: Tile, groups: int, threads: int) -> Tile:
    """The tile, made less high where there are few tasks, so that threads have the same work.

    >>> _even_bands(Tile(32, 64, 256), Tile(32, 200, 256), groups=1, threads=2)
    Tile(depth=32, height=56, width=256)
    """
    bands = -(-size.height // tile.height)
    others = groups * -(-size.depth // tile.depth) * -(-size.width // tile.width)
    if bands * others >= FEW_TASKS * threads:
        return tile
    shared = next(count for count in range(bands, bands + threads) if count * others % threads == 0)
    if size.height < LEAST_BAND * shared:
        return tile
    return tile._replace(height=min(tile.height, -(-size.height // shared // 8) * 8))


def _voxels_by_task(filters: int, counts: Tile, tile: Tile, size: Tile) -> Callable[[int], int]:
    """How many output numbers a task gives."""

    def voxels(task: int) -> int:
        rest, w = divmod(task, counts.width)
        rest, h = divmod(rest, counts.height)
        d = rest % counts.depth
        return filters * math.prod(min(n, whole - i * n) for i, n, whole in zip((d, h, w), tile, size, strict=True))

    return voxels


@lru_cache(maxsize=16)
def _plane_indices(problem: ConvProblem) -> tuple[list[int], list[int]]:
    """The source rows and columns of a whole plane: the same for every slab of a problem."""
    return problem.source_indices(1, 0, problem.out_size[1]), problem.source_indices(2, 0, problem.out_size[2])


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of this name.

    Raises: UnknownNameError.
    """
    for algorithm in ALGORITHMS:
        if algorithm.name == name:
            return algorithm
    raise unknown_name("algorithm", name, ["auto", *(a.name for a in ALGORITHMS)])


def planning_bytes(problem: ConvProblem, dtype: np.dtype[Any]) -> int:
    """Memory that `make_plan` takes while it looks at the weights: copies in the arithmetic's dtype and in float64, and what
    the factorisation of a filter takes and leaves."""
    weights = problem.taps * problem.filters
    rounded = 0 if dtype.itemsize == 8 else dtype.itemsize * weights
    if problem.channels_per_group > 1:
        return rounded + 16 * weights
    return rounded + (dtype.itemsize + 8) * weights + 40 * problem.taps + 700 * problem.filters


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
    real = np.dtype(dtype)
    rounded = weights.astype(real, copy=False)  # what the arithmetic will have: how exact a factorisation must be
    refusals, seconds = [], {}
    for candidate in ALGORITHMS:
        reason = candidate.reject(problem, rounded)
        if reason is None:
            cost = factor(cpu_class().name, candidate.name)
            seconds[candidate.name] = cost * candidate.seconds(problem, rounded, threads)
            continue
        refusals.append((candidate.name, reason))
        if candidate is forced:
            raise ShapeError(f"algorithm '{algorithm}' cannot run this: {reason}")
    # Threads divide every prediction alike, so the choice does not depend on them.
    chosen = forced or find_algorithm(min(seconds, key=seconds.__getitem__))
    return Plan(problem, weights, real, threads, chosen, refusals, seconds)

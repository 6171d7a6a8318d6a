"""The plan: the algorithm that computes a problem, its predicted cost, and the run over a slab.

`make_plan` asks every algorithm in order whether it accepts the problem and how long it would take,
and records the answers for `explain`. `Plan.convolve_slab` checks that the loops will stay within
its arrays, and hands tasks to a team of threads. The choice of an algorithm depends on the problem
and the weights alone: it is the same on every machine.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine import costs
from conv3d_cli.engine.algorithms import (
    channels,
    depthwise,
    direct,
    few_filters,
    fft,
    fft_channels,
    separable,
    sparse,
    winograd,
)
from conv3d_cli.engine.checksum import (
    UNCHECKED,
    WRONG,
    WRONG_WEIGHTS,
    Checks,
    Fault,
    as_words,
    name_of,
)
from conv3d_cli.engine.division import Cuts, Sharing, TaskGrid, divide, share
from conv3d_cli.engine.grids import Grids, tables_by_grid
from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.repetition import Filled, Repetition
from conv3d_cli.engine.step import (
    HAS_INCOMPLETE,
    HAS_NONFINITE,
    AlgorithmData,
    CheckedRun,
    DivisionFields,
    Epilogue,
    F,
    FieldGroup,
    Functions,
    Geometry,
    GridFields,
    InPlace,
    Output,
    Pointer,
    Progress,
    Scratch,
    Source,
    StepRecord,
    StepResults,
    Sums,
    Tasks,
    address_of,
    fill,
)
from conv3d_cli.engine.team import SerialWorker, Team
from conv3d_cli.engine.tile import (
    SPARE_LINES,
    Algorithm,
    PreparedAlgorithm,
    WeightBytes,
    packed_size,
)
from conv3d_cli.engine.views import (
    OUTSIDE,
    FlatView,
    aligned_zeros,
    flat_view,
    inner_run,
    is_flattenable,
    offset_table,
    stored_bits,
)
from conv3d_cli.engine.weighting import Certainty, Division
from conv3d_cli.errors import FaultError, ShapeError, unknown_name
from conv3d_cli.model.box import Box, Size
from conv3d_cli.model.ramp import Ramp
from conv3d_cli.model.spec import ConvProblem, Triple

# In order of preference if predicted times are equal. `direct` accepts everything and comes last.
ALGORITHMS: tuple[Algorithm, ...] = (
    separable.ALGORITHM,
    winograd.ALGORITHM,
    fft_channels.ALGORITHM,
    few_filters.ALGORITHM,
    depthwise.ALGORITHM,
    channels.ALGORITHM,
    fft.ALGORITHM,
    sparse.ALGORITHM,
    direct.ALGORITHM,
)

# compiled, or a function that changes the array in place
Activation = Ramp | Callable[[NDArray[Any]], None]
Tables = tuple[list[int], list[int], list[int]]  # source indices: planes, rows, columns
# the same as offsets in memory
Offsets = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
_TABLE_NAMES = ("planes", "rows", "columns")

# Stores to outputs of at least this size bypass the caches: they would evict data still in use.
STREAMING_BYTES = 8 << 20
LINE_BYTES = 64  # of the cache; no vector is longer
# Tasks are handed to a thread in batches, about this many per thread, so that no thread waits long
# at the end.
BATCHES_PER_THREAD = 64

_callback_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class SlabResult(NamedTuple):
    """What `Plan.convolve_slab` reports in addition to its output.

    clipped : int           values that the output's dtype cannot represent; in a division, outputs
                            below `min_coverage`
    flagged : list of Box   boxes of the slab whose windows may contain a certainty other than 1;
                            empty unless `flags_incomplete` asked for them
    """

    clipped: int
    flagged: list[Box]


class _Worker(NamedTuple):
    """A thread's step record, and its accumulator, which a Python activation changes in place."""

    step: StepRecord
    accumulator: NDArray[Any]


class _Run(NamedTuple):
    """The arguments that all regions of a slab share; see `Plan.convolve_slab`.

    again : bool            a step that failed its check is computed again
    sums_channels : int     channels of `out`; in a division, a multiple of those of coverage
    """

    source: FlatView
    out: FlatView
    team: Team
    scale: tuple[float, float]
    bias: NDArray[Any] | None
    activation: Activation | None
    flags_incomplete: bool = False
    certainty: Certainty | None = None
    division: Division | None = None
    sums_channels: int = 1
    again: bool = False


class _Region(NamedTuple):
    """Outputs to compute: a box of a slab, some groups, offsets in source, mask and output.

    groups : range      numbers of the groups
    tables : (planes, rows, columns)    offsets of the input positions in the source
    run : (int, int)    start and stop of the positions along the width that are consecutive columns
    out_start : int     offset of the box's first voxel in the output, in elements
    size : Size         output voxels of the box
    mask_tables : (planes, rows, columns)   the same in the mask; () without a mask
    """

    groups: range
    tables: Offsets
    run: tuple[int, int]
    out_start: int
    size: Size
    mask_tables: Offsets | tuple[()] = ()


@dataclass
class Plan:
    """How one problem will be computed; made by `make_plan`.

    problem : ConvProblem
    weights : (kd, kh, kw, in_channels/groups, filters)
    dtype : dtype               of the arithmetic, float32 or float64
    threads : int               threads that the predictions assume
    algorithm : Algorithm       the chosen algorithm
    refusals : list             (name, reason) of each algorithm that cannot compute the problem
    seconds : dict              name -> predicted seconds of each algorithm that can
    checks : Checks or None     the checksums of each step; see `check`
    """

    problem: ConvProblem
    weights: NDArray[Any]
    dtype: np.dtype[Any]
    threads: int
    algorithm: Algorithm
    refusals: list[tuple[str, str]]
    seconds: dict[str, float]
    checks: Checks | None = None
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _named: dict[tuple[Any, ...], list[MachineCode]] = field(default_factory=dict)
    _loaded: set[tuple[Any, ...]] = field(default_factory=set)

    @cached_property
    def grids(self) -> Grids:
        """The dense problem that the loops compute, and how far apart its voxels are."""
        return self.algorithm.grids(self.problem)

    @cached_property
    def prepared(self) -> PreparedAlgorithm:
        """The algorithm prepared for this problem, at the first access. Loads no machine code."""
        return self.algorithm.prepare(self.grids.problem, self.weights, self.dtype)

    @cached_property
    def fallback(self) -> Plan:
        """The direct sum's plan, which recomputes steps that hold NaN, or fail their check.

        Only the direct sum confines NaN and infinity to the outputs whose windows contain them.
        """
        plan = make_plan(
            self.grids.problem,
            self.weights,
            dtype=self.dtype,
            threads=self.threads,
            algorithm="direct",
        )
        if self.checks is not None:
            plan.check()
        return plan

    def check(self) -> None:
        """Check every step by checksums from now on; to be called before the first run.

        A step that fails is computed again by `fallback`. See `engine/checksum.py`.
        """
        if self.checks is None:
            self.checks = self._make_checks()

    @property
    def check_seconds(self) -> float:
        """CPU seconds that `check` adds to the run of a whole volume, predicted."""
        seconds = (self.checks or self._make_checks()).seconds
        return self.grids.of_all(self.problem, seconds)

    def _make_checks(self) -> Checks:
        return Checks(self.grids.problem, self.weights, self.prepared, self.dtype)

    @property
    def depth_step(self) -> int:
        """The number of planes computed together.

        Slabs must begin at multiples of it, so that their size does not change which planes are
        computed together.
        """
        return self.prepared.layout.step_depth * self.grids.apart[0]

    @property
    def tile(self) -> Size:
        """The voxels from the first to the last output of the largest task."""
        return self.grids.spread(self.prepared.layout.tile)

    @property
    def block_alignment(self) -> Size:
        """A box that begins and ends at multiples of this is bitwise equal to the whole volume's.

        It is 1 x 1 x 1 if each voxel is summed on its own, otherwise a tile: a transform rounds all
        voxels of a tile together, and a step with NaN or infinity is recomputed as a whole.
        """
        if not self.prepared.spreads_nonfinite:
            return Size(1, 1, 1)
        return self.tile._replace(depth=self.depth_step)

    @property
    def bytes_moved(self) -> int:
        """The least memory traffic: input and output once each, in the arithmetic's dtype."""
        voxels = math.prod(self.problem.in_shape) + math.prod(self.problem.out_shape)
        return voxels * self.dtype.itemsize

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the threads' memory for a whole volume: packed planes, sums and workspaces."""
        return self.scratch_for(self.problem.out_size)

    def scratch_for(self, size: tuple[int, int, int]) -> int:
        """Bytes of the threads' memory for a box of outputs (d, h, w).

        A thread without a task in the box allocates none.
        """
        layout = self.prepared.layout
        elements = layout.scratch_size + layout.accumulator_size
        of_thread = elements * self.dtype.itemsize + layout.workspace_bytes
        # the line before the sums, and the ends of rows, see `loops/store.py`
        of_thread += LINE_BYTES * (1 + 2 * layout.step_depth)
        if self.checks is not None:
            of_thread += self.checks.worker_bytes
        return of_thread * min(self.threads, self.tasks_for(size))

    def tasks_for(self, size: tuple[int, int, int]) -> int:
        """The number of tasks of a box of outputs (d, h, w), which can all run at once."""
        return self._task_grid(size, self.problem.groups, self.threads).tasks

    def sharing(self, size: tuple[int, int, int]) -> Sharing:
        """How the threads are predicted to share a box of outputs (d, h, w)."""
        blocks = self.problem.groups // self.prepared.groups_together * self.grids.total
        return share(self.grids.largest(size), blocks, self.threads, self._cuts)

    def use_threads(self, threads: int) -> None:
        """Plan for another number of threads, by which all predicted times are divided."""
        if threads != self.threads:
            share = self.threads / threads
            self.seconds = {name: seconds * share for name, seconds in self.seconds.items()}
            self.threads = threads

    @property
    def weight_bytes(self) -> WeightBytes:
        """Memory of the packed weights, including those of `fallback` if steps may need it."""
        own = self.prepared.weight_bytes
        if self.checks is not None:
            own = own._replace(kept=own.kept + self.checks.weight_bytes)
        if not self.prepared.spreads_nonfinite:
            return own
        taps = direct.item_shape(self.grids.problem)[0]
        fallback = direct.weight_bytes(self.grids.problem, self.dtype, taps)
        return WeightBytes(own.kept + fallback.kept, max(own.packing, fallback.packing))

    def loops(
        self,
        source: np.dtype[Any],
        out: np.dtype[Any],
        scale: tuple[float, float] = (1.0, 0.0),
        certainty: Certainty | None = None,
        division: Division | None = None,
    ) -> list[MachineCode]:
        """The loops of a run, loaded or compiled: driver, packing, store, then the algorithm's own.

        source, out : dtype     of the volumes
        scale : (slope, intercept)  of the source
        certainty, division : see `convolve_slab`; of their arrays only the dtypes matter
        """
        key, codes = self._loops_by_key(source, out, scale, certainty, division)
        if key not in self._loaded:
            load(codes)
            for place, code in self.prepared.calls.items():
                self.prepared.parameters[place] = code.address
            self._loaded.add(key)
        return codes

    def loops_to_load(
        self,
        source: np.dtype[Any],
        out: np.dtype[Any],
        scale: tuple[float, float] = (1.0, 0.0),
        certainty: Certainty | None = None,
        division: Division | None = None,
    ) -> list[MachineCode]:
        """What `loops` returns; none is loaded for it."""
        if certainty is not None and certainty.changes_nothing(source, scale):
            certainty = None
        return self._loops_by_key(source, out, scale, certainty, division)[1]

    def _loops_by_key(
        self,
        source: np.dtype[Any],
        out: np.dtype[Any],
        scale: tuple[float, float],
        certainty: Certainty | None,
        division: Division | None,
    ) -> tuple[tuple[Any, ...], list[MachineCode]]:
        checked = (
            self._must_find_nonfinite(source, scale, certainty)
            and not self.prepared.checks_nonfinite
        )
        mask = None if certainty is None or certainty.mask is None else certainty.mask.dtype
        inside = None if division is None or division.inside is None else division.inside.dtype
        policies = certainty is not None, mask, division is not None, inside
        bits = self._bits_in_place(source, scale, certainty)
        key = (source, out, checked, *policies, self.checks is not None, bits)
        # cached, since composing the names of the loops takes as long as computing a small box
        if key not in self._named:
            self._named[key] = self._name_loops(source, out, checked, bits, certainty, division)
        return key, self._named[key]

    def _name_loops(
        self,
        source: np.dtype[Any],
        out: np.dtype[Any],
        checked: bool,
        bits: int | None,
        certainty: Certainty | None,
        division: Division | None,
    ) -> list[MachineCode]:
        """See `loops`.

        checked : bool      packing searches for NaN, infinity and huge numbers
        bits : int or None  see `_bits_in_place`
        """
        convolve, absorb = self.prepared.convolve, self.prepared.absorb
        if self.prepared.in_place is not None and bits is not None:
            reads = self.prepared.in_place(bits)
            assert reads is not None
            convolve, absorb = (reads, None) if absorb is None else (convolve, reads)
        layout, real = self.prepared.layout, self.dtype.name
        if certainty is None:
            pack = machine_code("pack", f"pack_{layout.pack}", source.name, real, int(checked))
        else:
            mask = "none" if certainty.mask is None else certainty.mask.dtype.name
            pack = machine_code(
                "weighted_pack", f"pack_weighted_{layout.pack}", source.name, real, mask
            )
        if division is None:
            store = self.store_code(out)
        else:
            store = division.code(self.dtype)
        codes = [
            machine_code("drive", "run_tasks"),
            pack,
            store,
            convolve,
            *([] if absorb is None else [absorb]),
            *self.prepared.packs_weights,
            *self.prepared.calls.values(),
        ]
        if self.checks is not None:
            codes += self.checks.codes(out, division is not None)
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
        flags_incomplete: bool = False,
        certainty: Certainty | None = None,
        division: Division | None = None,
    ) -> SlabResult:
        """Convolve a slab (some depth planes) of one volume, or a band of its rows, or a box.

        source : (planes, rows, columns, C)     any real dtype and strides; a voxel's value is
                                            source * scale[0] + scale[1]
        out : (d, h, w, filters)            receives the output; integers are rounded half to even
                                            and saturated
        planes : list of int                index in `source` of each plane that the slab's taps
                                            span; -1 outside, where the boundary's constant stands
                                            (see `ConvProblem.source_indices`)
        rows, columns : list of int or None     the same for rows and columns; None: source and out
                                            contain all of them
        team : Team                         runs the tasks
        scale : (slope, intercept)          of the source
        bias : (filters,) or None           added before the activation
        activation : Ramp, callable or None     a function changes sums (filters, d, h, w) in
                                            place, in any thread
        progress : callable or None         is called with the number of output values of each batch
                                            of tasks, when the batch is finished, in any thread
        flags_incomplete : bool             report the outputs whose windows contain a certainty
                                            other than 1
        certainty : Certainty or None       multiplies the voxels, or replaces them
        division : Division or None         `out` contains sums (d, h, w, k * filters); compute
                                            their coverage and divide them by it
        The slab must begin at a multiple of `depth_step`; a band or box must begin and end at
        multiples of `block_alignment`, or at the volume's edge.
        Raises: IndexError, ValueError if a table or an array would lead the loops outside memory.
        """
        if certainty is not None and certainty.changes_nothing(source.dtype, scale):
            certainty = None
        tables = self._tables(planes, rows, columns)
        _check_tables(self.problem, source, out, tables, bias, certainty, division)
        if out.size == 0:
            return SlabResult(0, [])
        _check_memory(out, division, certainty, self.dtype)
        if not is_flattenable(source):
            source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
        run = _Run(
            source=flat_view(source.view(np.uint8) if source.dtype == bool else source),
            out=flat_view(out),
            team=team,
            scale=scale,
            bias=None if bias is None else np.ascontiguousarray(bias, self.dtype),
            activation=activation,
            flags_incomplete=flags_incomplete,
            certainty=certainty,
            division=division,
            sums_channels=out.shape[3],
        )
        return self._convolve_region(self._region(run, out.shape, tables), run, progress)

    def repetition(
        self,
        source: NDArray[Any],
        out: NDArray[Any],
        planes: list[int],
        bias: NDArray[Any] | None = None,
        activation: Activation | None = None,
    ) -> Repetition | None:
        """A whole volume's convolution, ready to be repeated for other arrays of the same layout.

        Arguments as of `convolve_slab`, at most one of whose threads it takes; arrays that the
        loops cannot read where they lie give None. The plan serves this purpose alone from now on.
        """
        tables = self._tables(planes, None, None)
        _check_tables(self.problem, source, out, tables, bias, None, None)
        _check_memory(out, None, None, self.dtype)
        if not out.size or source.dtype == bool or not is_flattenable(source):
            return None
        if self.grids.total > 1:
            return None
        run = _Run(
            source=flat_view(source),
            out=flat_view(out),
            team=SerialWorker(0),
            scale=(1.0, 0.0),
            bias=None if bias is None else np.ascontiguousarray(bias, self.dtype),
            activation=activation,
        )
        _, filled = self._fill(self._region(run, out.shape, tables), run)
        self._prepare_workers(filled, run, 0)
        step = self._worker(0).step
        return Repetition(
            step,
            filled,
            step[F.source] - address_of(source),
            step[F.out] - address_of(out),
            self.prepared,
            self.scratch_bytes + self.weight_bytes.kept,
        )

    def _tables(
        self, planes: list[int], rows: list[int] | None, columns: list[int] | None
    ) -> Tables:
        whole_rows, whole_columns = _plane_indices(self.problem)
        return (
            planes,
            whole_rows if rows is None else rows,
            whole_columns if columns is None else columns,
        )

    def _region(self, run: _Run, shape: Sequence[int], tables: Tables) -> _Region:
        """All outputs (d, h, w, filters) of a run."""
        mask_tables: Offsets | tuple[()] = ()
        if (certainty := run.certainty) is not None and certainty.mask is not None:
            mask_tables = _offset_tables(
                certainty.positions, certainty.mask.strides, certainty.mask.itemsize
            )
        return _Region(
            groups=range(self.problem.groups),
            tables=_offset_tables(tables, run.source.strides),
            run=inner_run(tables[2]),
            out_start=run.out.start,
            size=Size(*shape[:3]),
            mask_tables=mask_tables,
        )

    def make_ready(self) -> None:
        """Pack the weights, which workers share, before any of them needs them (`SerialWorker`)."""
        for plan in (self, self.fallback) if self.prepared.spreads_nonfinite else (self,):
            plan.prepared.weights  # noqa: B018

    def store(self, values: NDArray[Any], out: NDArray[Any]) -> int:
        """Store values (d, h, w, c) as a convolution does: integers are rounded and saturated.

        out : (d, h, w, c)      receives the values

        Returns the number of values that the dtype of `out` cannot represent.
        Raises: ValueError if the shapes differ.
        """
        if values.shape != out.shape:
            raise ValueError(f"values {values.shape} do not fit an output {out.shape}")
        if out.size == 0:
            return 0
        values = np.ascontiguousarray(values, self.dtype)
        view = flat_view(out)
        clipped = np.zeros(1, np.int64)
        plane_step, row_step, column_step, filter_step = (
            stride // values.itemsize for stride in values.strides
        )
        step = StepRecord(
            Geometry(filters=out.shape[3]),
            Progress(step_planes=out.shape[0], block_rows=out.shape[1], width=out.shape[2]),
            Sums(values, filter_step, plane_step, row_step, column_step),
            StepResults(clipped),
            _output_fields(view, view.start),
        )
        self.store_code(view.flat.dtype)(step)
        return int(clipped[0])

    def store_code(self, out: np.dtype[Any]) -> MachineCode:
        """The loop by which `store` stores values as this dtype."""
        return machine_code("store", "store", self.dtype.name, out.name)

    def _fill(self, region: _Region, run: _Run) -> tuple[TaskGrid, Filled]:
        """Divide a region into tasks, with the fields of its workers' step records."""
        source, out, certainty, division = run.source, run.out, run.certainty, run.division
        grid = self._task_grid(region.size, len(region.groups), run.team.threads)
        steps = grid.tasks * grid.steps_per_task
        clipped = np.zeros(steps, np.int64)
        finds_nonfinite = self._must_find_nonfinite(source.flat.dtype, run.scale, certainty)
        flags = np.zeros(steps, np.uint8) if finds_nonfinite or run.flags_incomplete else None
        drive, pack, store, convolve, *others = self.loops(
            source.flat.dtype, out.flat.dtype, run.scale, certainty, division
        )
        groups: list[FieldGroup] = [
            self._functions(pack, store, convolve, others),
            self._task_fields(region, grid),
            self._source_fields(region, run),
            self._in_place_fields(region, run),
            StepResults(clipped, flags),
            _output_fields(self._of_grid(out), region.out_start),
        ]
        if certainty is not None:
            certainty_fields = certainty.fields(source.flat.dtype, *region.mask_tables)
            certainty_fields.flags_nonfinite = (
                finds_nonfinite and not self.prepared.checks_nonfinite
            )
            groups.append(certainty_fields)
        if division is not None:
            repeat = max(1, run.sums_channels // self.problem.filters)
            groups.append(self._spread(division.fields(self.dtype, repeat)))
        if self.grids.total > 1:
            groups.append(self._grid_fields(region, run))
        checked = None if self.checks is None else self.checks.begin(steps)
        if checked is not None:
            groups.append(checked)
        self.prepared.weights  # noqa: B018 (packed before the workers, which share them)
        return grid, Filled(grid.tasks, drive, clipped, flags, [], groups, {}, checked)

    def _prepare_workers(self, filled: Filled, run: _Run, *numbers: int) -> None:
        """Fill the step records of these workers, which are made at their first use."""
        workers = [self._worker(number) for number in numbers]
        fill([worker.step for worker in workers], *filled.groups)
        for number, worker in zip(numbers, workers, strict=True):
            filled.epilogues[number] = self._add_epilogue(worker, run, filled.failures)
        if self.checks is not None:
            around = self.checks.codes(run.out.flat.dtype, run.division is not None)
            for worker in workers:
                self.checks.surround(worker.step, around)

    def _convolve_region(
        self, region: _Region, run: _Run, progress: Callable[[int], None] | None = None
    ) -> SlabResult:
        """Run a region as tasks of the team, then recompute steps with NaN or infinity."""
        grid, filled = self._fill(region, run)
        flags, clipped = filled.flags, filled.clipped
        known = [number for number in run.team.workers(grid.tasks) if number in self._workers]
        self._prepare_workers(filled, run, *known)
        batch_size = max(1, grid.tasks // (BATCHES_PER_THREAD * run.team.threads))
        filters = self.problem.filters_per_group * self.prepared.groups_together
        output_values = _output_values(filters, grid, region.size, self.grids)

        def work(number: int, batch: int) -> None:
            if number not in filled.epilogues:
                # here, since memory is near the CPU that first writes to it
                self._prepare_workers(filled, run, number)
            step = self._workers[number].step
            first, last = batch * batch_size, min((batch + 1) * batch_size, grid.tasks)
            step[F.first_task], step[F.last_task] = first, last
            filled.drive(step)
            if filled.failures:
                raise filled.failures[0]
            if progress is not None:
                progress(sum(output_values(task) for task in range(first, last)))

        run.team.run(-(-grid.tasks // batch_size), work)
        filled.groups.clear()  # alive until here, since the loops read their addresses
        filled.epilogues.clear()
        flagged = []
        if run.flags_incomplete and flags is not None:
            numbers = np.flatnonzero(flags & HAS_INCOMPLETE).tolist()
            boxes = (self._box_of_step(number, grid) for number in numbers)
            around = dict.fromkeys(self.grids.around(box) for box in boxes)
            flagged = [box.intersect(Box.whole(region.size)) for box in around]
        if flags is not None and self._must_find_nonfinite(
            run.source.flat.dtype, run.scale, run.certainty
        ):
            self._recompute_nonfinite(flags, clipped, grid, region, run)
        if filled.checked is not None:
            self._repair(filled.checked, grid, region, run, clipped, flags)
        counts = run.out.flat.dtype.kind != "f" or run.division is not None
        return SlabResult(int(clipped.sum()) if counts else 0, flagged)

    def _task_grid(self, size: Triple, groups: int, threads: int) -> TaskGrid:
        """Divide a region of outputs into tasks; each of a grid, of which all have as many."""
        blocks = groups // self.prepared.groups_together * self.grids.total
        return divide(self.grids.largest(size), blocks, threads, self._cuts)

    @cached_property
    def _cuts(self) -> Cuts:
        """Where tasks may be cut, and what they cost."""
        problem, prepared, layout = self.grids.problem, self.prepared, self.prepared.layout
        values = problem.batch * math.prod(self.problem.out_size) * problem.groups
        seconds = self.seconds[self.algorithm.name] * self.threads / max(1, values)
        across: Literal["anywhere", "evenly", "never"] = "anywhere"
        if prepared.spreads_nonfinite:
            across = "never" if prepared.rounds_tiles else "evenly"
        return Cuts(
            tile=layout.tile,
            step_depth=layout.step_depth,
            rows=prepared.rows,
            strides=problem.strides,
            extent=problem.extent,
            across=across,
            filters_planes=prepared.absorb is not None,
            channels=problem.channels_per_group * prepared.groups_together,
            voxel_seconds=seconds * prepared.groups_together,
        )

    def _functions(
        self,
        pack: MachineCode,
        store: MachineCode,
        convolve: MachineCode,
        others: list[MachineCode],
    ) -> Functions:
        absorb = 0 if self.prepared.absorb is None else others[0].address
        return Functions(pack.address, absorb, convolve.address, store.address)

    def _task_fields(self, region: _Region, grid: TaskGrid) -> Tasks:
        return Tasks(
            first_group=region.groups.start // self.prepared.groups_together,
            depth_blocks=grid.counts.depth,
            height_bands=grid.counts.height,
            width_bands=grid.counts.width,
            tile_depth=grid.tile.depth,
            tile_height=grid.tile.height,
            tile_width=grid.tile.width,
            steps_per_task=grid.steps_per_task,
            out_depth=region.size.depth,
            out_height=region.size.height,
            out_width=region.size.width,
            block_height=self.prepared.layout.block_height or grid.tile.height,
        )

    def _of_grid(self, out: FlatView) -> FlatView:
        """An output whose next voxel is the next one of the same grid."""
        spread = (stride * d for stride, d in zip(out.strides, self.grids.apart, strict=False))
        return out._replace(strides=(*spread, *out.strides[3:]))

    def _spread(self, fields: DivisionFields) -> DivisionFields:
        """The fields of a division, with strides from one voxel of a grid to the next."""
        for what in ("coverage", "inside"):
            for axis, apart in zip(("plane", "row", "column"), self.grids.apart, strict=True):
                name = f"{what}_{axis}_step"
                setattr(fields, name, getattr(fields, name) * apart)
        return fields

    def _grid_fields(self, region: _Region, run: _Run) -> GridFields:
        """The grids of a region."""
        grids, out, division = self.grids, run.out, run.division
        fields = GridFields(grids.total, all_out=Pointer(out.flat, region.out_start))
        numbers: dict[str, Sequence[int]] = {
            "apart": grids.apart,
            "positions": [-(-len(t) // d) for t, d in zip(region.tables, grids.apart, strict=True)],
            "out_apart": [stride * out.flat.itemsize for stride in out.strides[:3]],
        }
        if division is not None:
            for name in ("coverage", "inside"):
                if (array := getattr(division, name)) is not None:
                    setattr(fields, f"all_{name}", array)
                    numbers[f"{name}_apart"] = array.strides[:3]
        for name, three in numbers.items():
            for axis, number in zip("dhw", three, strict=True):
                setattr(fields, f"{name}_{axis}", number)
        for prefix, tables in (("", region.tables), ("mask_", region.mask_tables)):
            for name, table, d in zip(_TABLE_NAMES, tables, grids.apart, strict=False):
                setattr(fields, f"all_{prefix}{name}", tables_by_grid(table, d))
        fields.all_depth, fields.all_height, fields.all_width = region.size
        return fields

    def _source_fields(self, region: _Region, run: _Run) -> Source:
        source, (planes, rows, columns) = run.source, region.tables
        slope, intercept = run.scale
        return Source(
            source=Pointer(source.flat, source.start),
            source_itemsize=source.flat.itemsize,
            source_channel_step=source.strides[3],
            source_column_step=source.strides[2],
            planes=planes,
            rows=rows,
            columns=columns,
            run_start=region.run[0] if self.grids.total == 1 else 0,
            run_stop=region.run[1] if self.grids.total == 1 else 0,
            fill=self.problem.boundary.value,
            scaled=run.scale != (1.0, 0.0),
            slope=slope,
            intercept=intercept,
        )

    def _bits_in_place(
        self, source: np.dtype[Any], scale: tuple[float, float], certainty: Certainty | None
    ) -> int | None:
        """The `stored_bits` of a source whose rows are read where they lie, or None."""
        changed = scale != (1.0, 0.0) or certainty is not None
        if self.prepared.in_place is None or changed:
            return None
        bits = stored_bits(source.name, self.dtype.name)
        if bits is None or self.prepared.in_place(bits) is None:
            return None
        return bits if self.checks is None or bits == 0 else None  # checks sum the sums' dtype

    def _in_place_fields(self, region: _Region, run: _Run) -> InPlace:
        """Whether rows of the source are read where they lie; no fields set if all are packed."""
        source, out, fill = run.source, run.out, self.problem.boundary.value
        bits = self._bits_in_place(source.flat.dtype, run.scale, run.certainty)
        ends = run.bias, run.activation, run.division, self.checks
        is_plain = all(end is None for end in ends)
        writes_out = is_plain and out.flat.dtype == self.dtype and out.strides[2] == 1
        if bits is None or source.strides[2] != 1:
            return InPlace(writes_out=writes_out)
        if bits:
            limits = np.iinfo(source.flat.dtype)
            if not (limits.min <= fill <= limits.max and fill == int(fill)):
                return InPlace(writes_out=writes_out)
        # one that absorbs planes reads a column of them by itself, but checks do not
        by_columns = self.prepared.absorb is not None and self.checks is None
        return InPlace(
            reads_source=1,
            row_reach=0 if by_columns else self.problem.extent[2] - 1,
            writes_out=writes_out,
            outside=np.full(len(region.tables[2]), fill, source.flat.dtype),
        )

    def _add_epilogue(self, worker: _Worker, run: _Run, failures: list[BaseException]) -> Any:
        """Fill a worker's `Epilogue`. Returns the objects that must live as long as the run."""
        callback = None
        epilogue = Epilogue(bias=run.bias, has_bias=run.bias is not None)
        if isinstance(run.activation, Ramp):
            epilogue = self._ramp_fields(run.activation, run.bias)
        elif run.activation is not None:
            callback = self._callback(worker, run.bias, run.activation, failures)
            epilogue = Epilogue(ctypes.cast(callback, ctypes.c_void_p).value or 0, run.bias)
        fill([worker.step], epilogue)
        return epilogue, callback

    def _box_of_step(self, number: int, grid: TaskGrid) -> Box:
        """The outputs of a step, relative to the region, or to its grid; it may reach beyond."""
        task, index = divmod(number, grid.steps_per_task)
        rest, w = divmod(task, grid.counts.width)
        rest, h = divmod(rest, grid.counts.height)
        step_depth = self.prepared.layout.step_depth
        plane = rest % grid.counts.depth * grid.tile.depth + index * step_depth
        start = (plane, h * grid.tile.height, w * grid.tile.width)
        return Box.at(start, (step_depth, grid.tile.height, grid.tile.width))

    def _repair(
        self,
        checked: CheckedRun,
        grid: TaskGrid,
        region: _Region,
        run: _Run,
        clipped: NDArray[np.int64],
        flags: NDArray[np.uint8] | None,
    ) -> None:
        """Recompute the steps that failed their check, and count what was checked.

        clipped : (steps,)          is corrected
        flags : (steps,) or None    steps with `HAS_NONFINITE` were computed again already
        Raises: FaultError if a step fails again, or in a division, which cannot be done twice.
        """
        checks, verdicts = self.checks, checked.verdicts
        assert checks is not None
        assert isinstance(verdicts, np.ndarray)
        if not checks.weights_intact():
            verdicts |= WRONG_WEIGHTS
            # from the start: some algorithms keep the array that they return as packed
            anew = self.algorithm.prepare(self.grids.problem, self.weights, self.dtype)
            self.prepared.weights[...] = anew.weights
        if flags is not None:
            verdicts[flags & HAS_NONFINITE != 0] = UNCHECKED
        deviations = checked.deviations
        assert isinstance(deviations, np.ndarray)
        # a task at the end of the depth has fewer steps than the others
        computed = self._computed(grid, region)
        verdicts[~computed] = 0
        wrong = np.flatnonzero(verdicts & WRONG)
        with checks.counts.lock:
            checks.counts.steps += int(computed.sum())
            checks.counts.unchecked += int(np.count_nonzero(verdicts & UNCHECKED))
            passed = deviations[verdicts == 0]
            checks.counts.worst = max(checks.counts.worst, float(passed.max(initial=0.0)))
        for number in wrong.tolist():
            block = number // grid.steps_per_task // grid.counts.voxels
            box, what = self._box_of_step(number, grid), name_of(int(verdicts[number]))
            box = box.intersect(self._whole(block, region))
            deviation = float(deviations[number])
            if run.again or run.division is not None:
                raise FaultError(
                    f"the {what} of a tile of {box.size.depth} x {box.size.height} x "
                    f"{box.size.width} outputs failed the checksum"
                    f"{' twice' if run.again else ''} (sums are off by {as_words(deviation)}): "
                    "memory or CPU of this machine are faulty; nothing was written, test them "
                    "before you use it"
                )
            clipped[number] = self._recompute(block, box, region, run._replace(again=True))
            with checks.counts.lock:
                of_grid = self.grids.offset(block % self.grids.total)[0]
                plane = checks.first_plane + of_grid + box.start[0] * self.grids.apart[0]
                fault = Fault(self.algorithm.name, what, box.size, plane, deviation)
                checks.counts.faults.append(fault)

    def _computed(self, grid: TaskGrid, region: _Region) -> NDArray[Any]:
        """(steps,) Whether each step has outputs: tasks at an end have fewer, and grids differ."""
        numbers = np.arange(grid.tasks * grid.steps_per_task)
        task, index = np.divmod(numbers, grid.steps_per_task)
        block, depth, height, width = np.unravel_index(
            task, (grid.tasks // grid.counts.voxels, *grid.counts)
        )
        plane = depth * grid.tile.depth + index * self.prepared.layout.step_depth
        starts = plane, height * grid.tile.height, width * grid.tile.width
        first = np.unravel_index(block % self.grids.total, self.grids.apart)
        inside: list[NDArray[np.bool_]] = [
            start * apart + offset < size
            for start, apart, offset, size in zip(
                starts, self.grids.apart, first, region.size, strict=True
            )
        ]
        return inside[0] & inside[1] & inside[2]

    def _whole(self, block: int, region: _Region) -> Box:
        """All outputs of a grid, by the number of the block of tasks."""
        return Box.whole(self.grids.outputs(region.size, block % self.grids.total))

    def _recompute_nonfinite(
        self,
        flags: NDArray[np.uint8],
        clipped: NDArray[np.int64],
        grid: TaskGrid,
        region: _Region,
        run: _Run,
    ) -> None:
        """Recompute by the direct sum where windows contain NaN, infinity or huge numbers.

        flags, clipped : (steps,)   HAS_NONFINITE marks the steps to recompute; receives the number
                                    of values that the output's dtype cannot represent

        The step of a whole tile is recomputed, in however many tasks it was cut, so that the
        same voxels are recomputed for any number of threads.
        """
        flagged = np.flatnonzero(flags & HAS_NONFINITE)
        if not flagged.size:
            return
        tile, counts = self.prepared.layout.tile, grid.counts
        tasks, index = np.divmod(np.arange(len(flags)), grid.steps_per_task)
        blocks, depth, height, width = np.unravel_index(
            tasks, (grid.tasks // counts.voxels, *counts)
        )
        # the steps of each tile, as one number
        extents = (grid.tasks // counts.voxels, counts.depth * grid.steps_per_task, *counts[1:])
        places = (
            blocks,
            depth * grid.steps_per_task + index,
            height * grid.tile.height // tile.height,
            width * grid.tile.width // tile.width,
        )
        of_step, first, number = np.unique(
            np.ravel_multi_index(places, extents), return_index=True, return_inverse=True
        )
        again = np.zeros(len(of_step), bool)
        again[number[flagged]] = True
        clipped[again[number]] = 0
        for found in np.flatnonzero(again).tolist():
            block, step, row, column = map(int, np.unravel_index(of_step[found], extents))
            step_depth = self.prepared.layout.step_depth
            start = (step * step_depth, row * tile.height, column * tile.width)
            box = Box.at(start, (step_depth, *tile[1:])).intersect(self._whole(block, region))
            clipped[first[found]] = self._recompute(block, box, region, run)

    def _recompute(self, block: int, box: Box, region: _Region, run: _Run) -> int:
        """Recompute a box by the direct sum.

        block : int     number of the groups that are packed together, and of the grid
        box : Box       outputs, relative to the region or to the grid
        Returns the number of values that the output's dtype cannot represent.
        """
        problem, together = self.grids.problem, self.prepared.groups_together
        block, number = divmod(block, self.grids.total)
        region, run = self._one_grid(number, region, run)
        places = [
            slice(start * stride, (stop - 1) * stride + extent)
            for (start, stop), stride, extent in zip(
                box, problem.strides, problem.extent, strict=True
            )
        ]
        first = places[2].start
        offsets = (at * stride for at, stride in zip(box.start, run.out.strides[:3], strict=True))
        step = _Region(
            groups=region.groups[block * together : (block + 1) * together],
            tables=_slice_tables(region.tables, places),
            run=(max(region.run[0] - first, 0), max(region.run[1] - first, 0)),
            out_start=region.out_start + sum(offsets),
            size=box.size,
            mask_tables=_slice_tables(region.mask_tables, places) if region.mask_tables else (),
        )
        return self.fallback._convolve_region(step, run._replace(flags_incomplete=False)).clipped

    def _one_grid(self, number: int, region: _Region, run: _Run) -> tuple[_Region, _Run]:
        """A grid of a region as a region, and the run for it."""
        if self.grids.total == 1:
            return region, run
        offset, apart = self.grids.offset(number), self.grids.apart
        aside = sum(n * stride for n, stride in zip(offset, run.out.strides, strict=False))

        def tables(given: Offsets) -> Offsets:
            planes, rows, columns = (
                tables_by_grid(table, d)[first]
                for table, d, first in zip(given, apart, offset, strict=True)
            )
            return planes, rows, columns

        part = region._replace(
            tables=tables(region.tables),
            run=(0, 0),
            out_start=region.out_start + aside,
            size=self.grids.outputs(region.size, number),
            mask_tables=tables(region.mask_tables) if region.mask_tables else (),
        )
        return part, run._replace(out=self._of_grid(run.out))

    def _must_find_nonfinite(
        self, source: np.dtype[Any], scale: tuple[float, float], certainty: Certainty | None = None
    ) -> bool:
        """Whether steps with NaN, infinity or huge numbers must be found and recomputed.

        True if the algorithm would spread them and this source can contain them.
        """
        if certainty is not None and certainty.replaces_source:
            return False
        values = [self.problem.boundary.value, *scale]
        # integers that stay below 2^64 when scaled
        small = source.kind != "f" and source.itemsize <= 4
        finite = small and all(math.isfinite(v) and abs(v) < 1e9 for v in values)
        unmasked = certainty is None or certainty.mask is None
        return self.prepared.spreads_nonfinite and not (finite and unmasked)

    def _worker(self, number: int) -> _Worker:
        """A thread's step record and memory, allocated at the first call."""
        if number not in self._workers:
            self._workers[number] = self._make_worker()
        return self._workers[number]

    def _make_worker(self) -> _Worker:
        problem, prepared, layout = self.grids.problem, self.prepared, self.prepared.layout
        # Zeros: register tiles read beyond a row's end, into lanes that are discarded, and should
        # find no NaN there.
        scratch = aligned_zeros(layout.origin + layout.scratch_size, self.dtype)
        # `store` reads up to a cache line before a row
        line = LINE_BYTES // self.dtype.itemsize
        accumulator = aligned_zeros(line + layout.accumulator_size, self.dtype)[line:]
        shared = aligned_zeros(2 * LINE_BYTES * layout.step_depth, np.dtype(np.uint8))
        window = (layout.step_depth - 1) * problem.strides[0] + problem.extent[0]
        lines = np.zeros((2, 0, 0), np.int64)
        if prepared.in_place is not None:
            rows = packed_size(problem, layout.tile).height + SPARE_LINES
            lines = np.empty((2, layout.ring, rows), np.int64)
            places = np.arange(layout.ring)[:, None] * layout.plane_step
            places = places + np.arange(rows) * layout.row_step
            lines[:] = scratch[layout.origin :].ctypes.data + places * self.dtype.itemsize
        step = StepRecord(
            Geometry(
                *problem.strides,
                *problem.extent,
                channels=problem.channels_per_group * prepared.groups_together,
                filters=problem.filters_per_group * prepared.groups_together,
                step_depth=layout.step_depth,
            ),
            Scratch(
                itemsize=self.dtype.itemsize,
                scratch=scratch[layout.origin :],
                ring=layout.ring,
                pitch=layout.pitch,
                row_step=layout.row_step,
                plane_step=layout.plane_step,
                channel_step=layout.channel_step,
                window=np.zeros(window, np.int64),
                packed_lines=lines[0],
                source_lines=lines[1],
                lines_step=lines.shape[2],
            ),
            AlgorithmData(
                weights=prepared.weights,
                parameters=prepared.parameters,
                workspace=aligned_zeros(layout.workspace_bytes, np.dtype(np.uint8)),
            ),
            Sums(accumulator, *layout.sums, shared),
            *(() if self.checks is None else (self.checks.tables(),)),
        )
        return _Worker(step, accumulator)

    def ramp_code(self, ramp: Ramp) -> MachineCode:
        """The loop that adds the bias and applies an activation of two straight parts."""
        return machine_code("ramp", "ramp", self.dtype.name, ramp.form)

    def _ramp_fields(self, ramp: Ramp, bias: NDArray[Any] | None) -> Epilogue:
        """The bias as the loop reads it, and the numbers of an activation of two straight parts."""
        filter_step, *_, column_step = self.prepared.layout.sums
        count = self.problem.filters_per_group * self.prepared.groups_together
        step = column_step if filter_step == 1 and column_step > count else count
        padded = np.full((self.problem.filters // count, step), -0.0, self.dtype)
        if bias is not None:
            padded[:, :count] = bias.reshape(-1, count)
        code = self.ramp_code(ramp)
        load([code])
        return Epilogue(
            code.address, padded, 0, step, ramp.threshold, ramp.floor, ramp.ceiling, ramp.slope
        )

    def _callback(
        self,
        worker: _Worker,
        bias: NDArray[Any] | None,
        activation: Callable[[NDArray[Any]], None],
        failures: list[BaseException],
    ) -> Any:
        """A C function that adds the bias and applies an activation written in Python."""
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
            # Exceptions must not cross machine code: `work` raises them after the loops have ended.
            except BaseException as error:
                failures.append(error)

        return _callback_type(activate)


def _output_fields(out: FlatView, start: int) -> Output:
    """The fields of an output whose first voxel is element `start` of its flat memory."""
    plane_step, row_step, column_step, filter_step = out.strides
    streaming = out.flat.nbytes >= STREAMING_BYTES
    first = Pointer(out.flat, start)
    return Output(first, filter_step, plane_step, row_step, column_step, streaming)


def _offset_tables(tables: Tables, strides: Sequence[int], itemsize: int = 1) -> Offsets:
    """Tables of source indices as offsets in elements, for memory with these strides in bytes.

    itemsize : int      of an element; 1 if the strides are in elements already
    """
    planes, rows, columns = tables
    return (
        offset_table(planes, strides[0] // itemsize),
        offset_table(rows, strides[1] // itemsize),
        offset_table(columns, strides[2] // itemsize),
    )


def _slice_tables(tables: Offsets, slices: Sequence[slice]) -> Offsets:
    """One slice of each table."""
    planes, rows, columns = (table[part] for table, part in zip(tables, slices, strict=True))
    return planes, rows, columns


def _check_tables(
    problem: ConvProblem,
    source: NDArray[Any],
    out: NDArray[Any],
    tables: Tables,
    bias: NDArray[Any] | None,
    certainty: Certainty | None,
    division: Division | None,
) -> None:
    """Check that the loops, which check no bounds, will stay within all arrays.

    Raises: IndexError for an index beyond the source or the mask; ValueError for a wrong shape.
    """
    if source.ndim != 4 or source.shape[3] != problem.in_channels:
        raise ValueError(
            f"the source must be (planes, rows, columns, {problem.in_channels}), "
            f"received {source.shape}"
        )
    repeats = division is not None and out.ndim == 4 and out.shape[3] % problem.filters == 0
    if out.ndim != 4 or (out.shape[3] != problem.filters and not repeats):
        raise ValueError(f"the output must be (d, h, w, {problem.filters}), received {out.shape}")
    if bias is not None and bias.shape != (problem.filters,):
        raise ValueError(
            f"the bias must have {problem.filters} numbers, received the shape {bias.shape}"
        )
    if division is not None:
        division.check_shapes(out.shape, problem.filters)
    if out.size == 0:
        return
    for axis, indices in enumerate(tables):
        _check_table("source", axis, indices, source.shape[axis])
        positions = (out.shape[axis] - 1) * problem.strides[axis] + problem.extent[axis]
        if len(indices) != positions:
            raise ValueError(
                f"{out.shape[axis]} outputs read {positions} {_TABLE_NAMES[axis]}, "
                f"received {len(indices)}"
            )
    if certainty is None or certainty.mask is None:
        return
    mask = certainty.mask
    if mask.ndim != 3:
        raise ValueError(f"the mask must be (planes, rows, columns), received {mask.shape}")
    for axis, (indices, of_source) in enumerate(zip(certainty.positions, tables, strict=True)):
        name = _TABLE_NAMES[axis]
        _check_table("mask", axis, indices, mask.shape[axis])
        if len(indices) != len(of_source):
            raise ValueError(
                f"the mask has {len(indices)} {name} for {len(of_source)} of the source"
            )
        if indices != of_source and any(
            index == OUTSIDE != other for index, other in zip(indices, of_source, strict=True)
        ):
            raise IndexError(f"the mask's {name} are outside where the source's are not")


def _check_memory(
    out: NDArray[Any], division: Division | None, certainty: Certainty | None, real: np.dtype[Any]
) -> None:
    """Check that `out` is writable, and that arrays have the strides and dtypes that loops assume.

    Raises: ValueError.
    """
    if not (out.flags.writeable and is_flattenable(out)):
        raise ValueError(
            "the output must be a writable array of aligned numbers in native byte order"
        )
    if division is not None and out.dtype != real:
        raise ValueError(f"sums to be divided must be {real}, received {out.dtype}")
    if division is not None:
        division.check_memory(real)
    if certainty is None or certainty.mask is None:
        return
    mask = certainty.mask
    if not is_flattenable(mask) or (mask.strides[2] != mask.itemsize and mask.shape[2] > 1):
        raise ValueError(
            "the mask's rows must be contiguous numbers in native byte order, "
            f"received {mask.dtype.str} with strides {mask.strides}"
        )


def _check_table(owner: str, axis: int, indices: list[int], size: int) -> None:
    """Check that indices are from 0 to size - 1, or `OUTSIDE`. Raises: IndexError."""
    if max(indices) >= size or min(indices) < OUTSIDE:
        wrong = next(i for i in indices if not OUTSIDE <= i < size)
        raise IndexError(
            f"the {owner}'s {_TABLE_NAMES[axis]} must be 0 to {size - 1}, or {OUTSIDE} outside; "
            f"received {wrong}"
        )


def _output_values(filters: int, grid: TaskGrid, size: Size, grids: Grids) -> Callable[[int], int]:
    """A function that returns the number of output values of a task, by the task's number."""

    def count(task: int) -> int:
        rest, w = divmod(task, grid.counts.width)
        rest, h = divmod(rest, grid.counts.height)
        block, d = divmod(rest, grid.counts.depth)
        sizes = zip((d, h, w), grid.tile, grids.outputs(size, block % grids.total), strict=True)
        return filters * math.prod(max(0, min(n, whole - i * n)) for i, n, whole in sizes)

    return count


@lru_cache(maxsize=16)
def _plane_indices(problem: ConvProblem) -> tuple[list[int], list[int]]:
    """The source rows and columns of a whole plane: the same for all slabs of a problem."""
    rows, columns = (problem.source_indices(axis, 0, problem.out_size[axis]) for axis in (1, 2))
    return rows, columns


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of this name.

    Raises: UnknownNameError, which lists the names.

    >>> find_algorithm("direct").summary
    'every weight in turn; any kernel, stride, dilation, group and dtype'
    """
    for algorithm in ALGORITHMS:
        if algorithm.name == name:
            return algorithm
    raise unknown_name("algorithm", name, ["auto", *(a.name for a in ALGORITHMS)])


def planning_bytes(problem: ConvProblem, dtype: np.dtype[Any]) -> int:
    """Bytes that `make_plan` allocates while it examines the weights.

    These are copies in the arithmetic's dtype and in float64, temporary arrays of the factorisation
    of a filter, and the factors that it keeps.
    """
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
    """Choose an algorithm for a problem and its weights.

    weights : (kd, kh, kw, in_channels/groups, filters)
    dtype : "float32" or "float64"      of the arithmetic
    threads : int               divides the predicted times; the choice does not depend on it
    algorithm : str             "auto": the fastest by prediction; or a name in ALGORITHMS
    Raises: UnknownNameError; ShapeError if the named algorithm cannot compute this problem.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> problem = ConvSpec(padding="same").resolve((1, 64, 64, 64, 1), (9, 9, 9, 1, 1))
    >>> make_plan(problem, np.ones((9, 9, 9, 1, 1))).algorithm.name
    'separable'
    """
    forced = None if algorithm == "auto" else find_algorithm(algorithm)
    real = np.dtype(dtype)
    # as the arithmetic sees them: a factorisation must be exact to the rounding of this dtype
    rounded = weights.astype(real, copy=False)
    refusals, own = [], {}
    for candidate in ALGORITHMS:
        reason = candidate.declines(problem, rounded)
        if reason is None:
            own[candidate.name] = candidate.own_seconds(problem, rounded)
            continue
        refusals.append((candidate.name, reason))
        if candidate is forced:
            raise ShapeError(
                f"algorithm '{algorithm}' cannot run this: {reason}; leave it out, and the fastest "
                "that can is taken"
            )
    chosen = forced or find_algorithm(costs.choose(problem, own))
    seconds = {name: one / threads for name, one in costs.predict(problem, own).items()}
    return Plan(problem, weights, real, threads, chosen, refusals, seconds)

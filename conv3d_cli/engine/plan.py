"""The plan: which algorithm computes a problem, what it costs, and the run over a slab.

`make_plan` asks every algorithm in order whether it accepts the problem and how long it would take, and keeps the
answers for `explain`. `Plan.convolve_slab` checks that the loops will stay within its arrays, and hands tasks to a
team of threads. The choice of an algorithm depends on the problem, the weights and the CPU class alone.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms import (
    channels,
    depthwise,
    direct,
    few_filters,
    fft,
    separable,
    sparse,
    winograd,
)
from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.step import (
    HAS_INCOMPLETE,
    HAS_NONFINITE,
    AlgorithmData,
    Epilogue,
    F,
    FieldGroup,
    Functions,
    Geometry,
    Output,
    Pointer,
    Progress,
    Scratch,
    Source,
    StepRecord,
    StepResults,
    Sums,
    Tasks,
    fill,
)
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm, WeightBytes
from conv3d_cli.engine.views import (
    OUTSIDE,
    FlatView,
    aligned_zeros,
    flat_view,
    inner_run,
    is_flattenable,
    offset_table,
)
from conv3d_cli.engine.weighting import Certainty, Division
from conv3d_cli.errors import ShapeError, unknown_name
from conv3d_cli.model.box import Box, Size
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

Activation = Callable[[NDArray[Any]], None]  # in place
Tables = tuple[list[int], list[int], list[int]]  # of planes, rows and columns
# the same, as offsets in memory
Offsets = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
_TABLE_NAMES = ("planes", "rows", "columns")

# Outputs larger than this are stored past the caches: they would only push out what is needed again.
STREAMING_BYTES = 8 << 20
# Tasks handed to a thread at once: enough of these that no thread waits long for the last one.
SHARES = 64

# With fewer tasks a thread, one of another size keeps others waiting; but bands below so many rows pack too much halo.
FEW_TASKS, LEAST_BAND = 8, 32

_callback_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class SlabResult(NamedTuple):
    """What a run over a slab tells beside its output.

    clipped : int       voxels that the output's dtype could not hold; of a division, outputs below `min_coverage`
    flagged : list of Box   the outputs, in the slab, whose windows may hold a voxel of another certainty than 1;
                        empty if they were not asked for
    """

    clipped: int
    flagged: list[Box]


class _Worker(NamedTuple):
    """A thread's step record, and the sums that an activation written in Python works on."""

    step: StepRecord
    accumulator: NDArray[Any]


class _Run(NamedTuple):
    """What all regions of a slab have in common; see `Plan.convolve_slab`.

    sums_channels : int     channels of `out`: of a division, several may share one channel of coverage
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


class _Region(NamedTuple):
    """Outputs to compute: a box of a slab and some groups, with the offsets that its loops read and write at.

    tables : planes, rows, columns      offsets of the input positions
    run : (int, int)    positions along the width that follow one another in the source
    out_start : int     the first group's first voxel, in elements
    mask_tables : planes, rows, columns     of the mask; empty without one
    """

    groups: range
    tables: Offsets
    run: tuple[int, int]
    out_start: int
    size: Size
    mask_tables: Offsets | tuple[()] = ()


class _Cut(NamedTuple):
    """How a region is cut into tasks: see `Tasks` of the step record.

    tile : Size         of a task, whole steps deep
    counts : Size       tasks along each axis
    """

    tile: Size
    counts: Size
    steps_per_task: int
    tasks: int


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
    _loops: dict[tuple[Any, ...], list[MachineCode]] = field(default_factory=dict)

    @cached_property
    def prepared(self) -> PreparedAlgorithm:
        """Weights packed, and what loops it will run; made when first needed. No machine code is loaded for it."""
        return self.algorithm.prepare(self.problem, self.weights, self.dtype)

    @cached_property
    def fallback(self) -> Plan:
        """The plan for steps that hold NaN or infinity, which only the direct sum keeps within their windows."""
        return make_plan(
            self.problem, self.weights, dtype=self.dtype, threads=self.threads, algorithm="direct"
        )

    @property
    def depth_step(self) -> int:
        """Slabs must begin at multiples of this, so that the same planes are computed together whatever the slab."""
        return self.prepared.layout.step_depth

    @property
    def block_alignment(self) -> Size:
        """Boxes of outputs that begin and end at multiples of this get the bits of the whole volume.

        It is 1 where each voxel is summed on its own. Else it is a tile: a transform rounds all voxels of a tile
        together, and a step with NaN or infinity is computed again as a whole.
        """
        tile = self.prepared.layout.tile
        return (
            Size(self.depth_step, *tile[1:]) if self.prepared.spreads_nonfinite else Size(1, 1, 1)
        )

    @property
    def bytes_moved(self) -> int:
        """Bytes that must pass through memory at least: input once, output once, in the arithmetic's dtype."""
        return (
            math.prod(self.problem.in_shape) + math.prod(self.problem.out_shape)
        ) * self.dtype.itemsize

    @property
    def scratch_bytes(self) -> int:
        """Memory of the tiles of all threads that have work in a whole volume."""
        return self.scratch_for(self.problem.out_size)

    def scratch_for(self, size: tuple[int, int, int]) -> int:
        """Memory of the tiles of the threads that have work in a box of outputs (d, h, w)."""
        layout = self.prepared.layout
        numbers = layout.scratch_size + layout.accumulator_size
        tasks = self._cut(Size(*size), self.problem.groups, self.threads).tasks
        return (numbers * self.dtype.itemsize + layout.workspace_bytes) * min(self.threads, tasks)

    @property
    def weight_bytes(self) -> WeightBytes:
        """Memory of the packed weights, those of `fallback` included where a step may need it."""
        own = self.prepared.weight_bytes
        if not self.prepared.spreads_nonfinite:
            return own
        repair = direct.weight_bytes(self.problem, self.dtype, direct.item_shape(self.problem)[0])
        return WeightBytes(own.kept + repair.kept, max(own.packing, repair.packing))

    def loops(
        self,
        source: np.dtype[Any],
        out: np.dtype[Any],
        scale: tuple[float, float] = (1.0, 0.0),
        certainty: Certainty | None = None,
        division: Division | None = None,
    ) -> list[MachineCode]:
        """The driver, packing and store for a source's and an output's dtype, and the algorithm's own: ready to run."""
        checked = (
            self._looks_for_nonfinite(source, scale, certainty)
            and not self.prepared.checks_nonfinite
        )
        mask = None if certainty is None or certainty.mask is None else certainty.mask.dtype
        inside = None if division is None or division.inside is None else division.inside.dtype
        key = (source, out, checked, certainty is not None, mask, division is not None, inside)
        if (
            key not in self._loops
        ):  # found once: naming them takes as long as to compute a small box
            self._loops[key] = self._load_loops(source, out, checked, certainty, division)
        return self._loops[key]

    def _load_loops(
        self,
        source: np.dtype[Any],
        out: np.dtype[Any],
        checked: bool,
        certainty: Certainty | None,
        division: Division | None,
    ) -> list[MachineCode]:
        """See `loops`; checked: whether packing looks for NaN, infinity and huge numbers."""
        layout, real = self.prepared.layout, self.dtype.name
        if certainty is None:
            pack = machine_code("pack", f"pack_{layout.pack}", source.name, real, int(checked))
        else:
            mask = "none" if certainty.mask is None else certainty.mask.dtype.name
            pack = machine_code(
                "weighted_pack", f"pack_weighted_{layout.pack}", source.name, real, mask
            )
        codes = [
            machine_code("drive", "run_tasks"),
            pack,
            machine_code("store", "store", real, out.name)
            if division is None
            else division.code(self.dtype),
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
        flags_incomplete: bool = False,
        certainty: Certainty | None = None,
        division: Division | None = None,
    ) -> SlabResult:
        """Convolve some depth planes of one volume, or a band of rows of them, or a box.

        source : (planes, rows, columns, C)     any real dtype and strides; values are source * scale[0] + scale[1]
        out : (d, h, w, filters)            filled; integers are rounded half to even and saturated
        planes : list of int                for every depth position the slab's taps span, its plane in `source`; -1 where
                                            a constant stands (see `ConvProblem.source_indices`)
        rows, columns : list of int or None     the same along height and width; None: source and out hold all of them
        bias : (filters,)                   added before the activation
        progress : callable                 gets the number of voxels finished, from any thread
        flags_incomplete : bool             find the outputs whose windows hold a certainty other than 1
        certainty : Certainty or None       what voxels are multiplied by, or what is convolved in their place
        division : Division or None         coverage is computed, and `out`, which holds sums, is divided by it
        The slab must begin at a multiple of `depth_step`, a band or a box begin and end at multiples of `block_alignment`.
        Raises: IndexError, ValueError if a table or an array would lead the loops outside memory.
        """
        problem = self.problem
        if certainty is not None and certainty.changes_nothing(source.dtype, scale):
            certainty = None
        whole_rows, whole_columns = _plane_indices(problem)
        rows = whole_rows if rows is None else rows
        columns = whole_columns if columns is None else columns
        _check_tables(problem, source, out, (planes, rows, columns), bias, certainty, division)
        if out.size == 0:
            return SlabResult(0, [])
        _check_memory(out, division, certainty, self.dtype)
        if not is_flattenable(source):
            source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
        source_view = flat_view(source.view(np.uint8) if source.dtype == bool else source)
        out_view = flat_view(out)
        mask_tables: Offsets | tuple[()] = ()
        if certainty is not None and certainty.mask is not None:
            mask_tables = _offset_tables(
                certainty.positions, certainty.mask.strides, certainty.mask.itemsize
            )
        tables = _offset_tables((planes, rows, columns), source_view.strides)
        region = _Region(
            range(problem.groups),
            tables,
            inner_run(columns),
            out_view.start,
            Size(*out.shape[:3]),
            mask_tables,
        )
        bias = None if bias is None else np.ascontiguousarray(bias, self.dtype)
        run = _Run(
            source_view,
            out_view,
            team,
            scale,
            bias,
            activation,
            flags_incomplete,
            certainty,
            division,
            out.shape[3],
        )
        return self._convolve_region(region, run, progress)

    def make_ready(self, workers: Iterable[int]) -> None:
        """Make each worker's memory, before they run slabs side by side (see `SerialWorker`)."""
        for plan in (self, self.fallback) if self.prepared.spreads_nonfinite else (self,):
            for number in workers:
                plan._worker(number)

    def store(self, values: NDArray[Any], out: NDArray[Any]) -> int:
        """Put values (d, h, w, c) into an array of that shape, rounded and saturated as a convolution does it.

        Returns how many values the array's dtype could not hold. Raises: ValueError for another shape.
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
        machine_code("store", "store", self.dtype.name, view.flat.dtype.name)(step)
        return int(clipped[0])

    def _convolve_region(
        self, region: _Region, run: _Run, progress: Callable[[int], None] | None = None
    ) -> SlabResult:
        """Cut a region into tasks and have the team run them."""
        source, out, certainty, division = run.source, run.out, run.certainty, run.division
        cut = self._cut(region.size, len(region.groups), run.team.threads)
        steps = cut.tasks * cut.steps_per_task
        clipped = np.zeros(steps, np.int64)
        looks = self._looks_for_nonfinite(source.flat.dtype, run.scale, certainty)
        flags = np.zeros(steps, np.uint8) if looks or run.flags_incomplete else None
        drive, pack, store, *_ = self.loops(
            source.flat.dtype, out.flat.dtype, run.scale, certainty, division
        )
        groups: list[FieldGroup] = [
            self._functions(pack, store),
            self._task_fields(region, cut),
            self._source_fields(region, run),
            StepResults(clipped, flags),
            _output_fields(out, region.out_start),
        ]
        if certainty is not None:
            own = certainty.fields(source.flat.dtype, *region.mask_tables)
            own.flags_nonfinite = looks and not self.prepared.checks_nonfinite
            groups.append(own)
        if division is not None:
            groups.append(
                division.fields(self.dtype, max(1, run.sums_channels // self.problem.filters))
            )
        workers = list(run.team.workers(cut.tasks))
        fill([self._worker(number).step for number in workers], *groups)
        failures: list[BaseException] = []
        epilogues = [self._add_epilogue(self._worker(number), run, failures) for number in workers]

        together = max(1, cut.tasks // (SHARES * run.team.threads))
        voxels = _voxels_by_task(
            self.problem.filters_per_group * self.prepared.groups_together, cut, region.size
        )

        def work(number: int, share: int) -> None:
            step = self._workers[number].step
            first, last = share * together, min((share + 1) * together, cut.tasks)
            step[F.first_task], step[F.last_task] = first, last
            drive(step)
            if failures:
                raise failures[0]
            if progress is not None:
                progress(sum(voxels(task) for task in range(first, last)))

        run.team.run(-(-cut.tasks // together), work)
        del groups, epilogues  # held until here, since the loops follow their addresses
        flagged = []
        if run.flags_incomplete and flags is not None:
            numbers = np.flatnonzero(flags & HAS_INCOMPLETE).tolist()
            flagged = [self._box_of_step(number, cut, region) for number in numbers]
        if looks and flags is not None:
            for number in np.flatnonzero(flags & HAS_NONFINITE).tolist():
                clipped[number] = self._recompute_nonfinite(number, cut, region, run)
        counts = out.flat.dtype.kind != "f" or division is not None
        return SlabResult(int(clipped.sum()) if counts else 0, flagged)

    def _cut(self, size: Size, groups: int, threads: int) -> _Cut:
        """The tasks of a region of outputs: how large they are, and how many."""
        layout, together = self.prepared.layout, self.prepared.groups_together
        tile = Size(*(min(n, whole) for n, whole in zip(layout.tile, size, strict=True)))
        # whole steps a task, so that steps stand where they would in one task
        tile = tile._replace(depth=-(-tile.depth // layout.step_depth) * layout.step_depth)
        if not self.prepared.spreads_nonfinite:
            tile = _even_bands(tile, size, groups // together, threads)
        counts = Size(*(-(-whole // n) for whole, n in zip(size, tile, strict=True)))
        return _Cut(
            tile, counts, tile.depth // layout.step_depth, groups // together * counts.voxels
        )

    def _functions(self, pack: MachineCode, store: MachineCode) -> Functions:
        prepared = self.prepared
        absorb = 0 if prepared.absorb is None else prepared.absorb.address
        return Functions(pack.address, absorb, prepared.convolve.address, store.address)

    def _task_fields(self, region: _Region, cut: _Cut) -> Tasks:
        return Tasks(
            first_group=region.groups.start // self.prepared.groups_together,
            depth_blocks=cut.counts.depth, height_bands=cut.counts.height, width_bands=cut.counts.width,
            tile_depth=cut.tile.depth, tile_height=cut.tile.height, tile_width=cut.tile.width,
            steps_per_task=cut.steps_per_task,
            out_depth=region.size.depth, out_height=region.size.height, out_width=region.size.width,
            block_height=self.prepared.layout.block_height or cut.tile.height,
        )  # fmt: skip

    def _source_fields(self, region: _Region, run: _Run) -> Source:
        source, (planes, rows, columns) = run.source, region.tables
        return Source(
            Pointer(source.flat, source.start), source.flat.itemsize, source.strides[3], source.strides[2],
            planes, rows, columns, *region.run, fill=self.problem.boundary.value,
            scaled=run.scale != (1.0, 0.0), slope=run.scale[0], intercept=run.scale[1],
        )  # fmt: skip

    def _add_epilogue(self, worker: _Worker, run: _Run, failures: list[BaseException]) -> Any:
        """Fill a worker's `Epilogue`. Returns what must live as long as the run: the group, and the function it calls."""
        callback = None
        epilogue = Epilogue(bias=run.bias, has_bias=run.bias is not None)
        if run.activation is not None:
            callback = self._callback(worker, run.bias, run.activation, failures)
            epilogue = Epilogue(ctypes.cast(callback, ctypes.c_void_p).value or 0, run.bias)
        fill([worker.step], epilogue)
        return epilogue, callback

    def _box_of_step(self, number: int, cut: _Cut, region: _Region) -> Box:
        """The outputs of a step, counted from the region's first one."""
        task, index = divmod(number, cut.steps_per_task)
        rest, w = divmod(task, cut.counts.width)
        rest, h = divmod(rest, cut.counts.height)
        plane = rest % cut.counts.depth * cut.tile.depth + index * self.depth_step
        start = (plane, h * cut.tile.height, w * cut.tile.width)
        extent = (self.depth_step, cut.tile.height, cut.tile.width)
        return Box.at(start, extent).intersect(Box.whole(region.size))

    def _recompute_nonfinite(self, number: int, cut: _Cut, region: _Region, run: _Run) -> int:
        """Compute a step again by the direct sum, since its window holds NaN, infinity or huge numbers.

        Returns how many voxels the output's dtype could not hold.
        """
        problem, together = self.problem, self.prepared.groups_together
        box = self._box_of_step(number, cut, region)
        block = number // cut.steps_per_task // cut.counts.voxels
        places = [
            slice(start * stride, (stop - 1) * stride + extent)
            for (start, stop), stride, extent in zip(
                box, problem.strides, problem.extent, strict=True
            )
        ]
        first = places[2].start
        step = _Region(
            region.groups[block * together : (block + 1) * together],
            _cut_tables(region.tables, places),
            (max(region.run[0] - first, 0), max(region.run[1] - first, 0)),
            region.out_start
            + sum(at * stride for at, stride in zip(box.start, run.out.strides[:3], strict=True)),
            box.size,
            _cut_tables(region.mask_tables, places) if region.mask_tables else (),
        )
        return self.fallback._convolve_region(step, run._replace(flags_incomplete=False)).clipped

    def _looks_for_nonfinite(
        self, source: np.dtype[Any], scale: tuple[float, float], certainty: Certainty | None = None
    ) -> bool:
        """Whether steps with NaN, infinity or huge numbers, which would spread, must be found and computed again."""
        if certainty is not None and certainty.replaces_source:
            return False
        values = [self.problem.boundary.value, *scale]
        # integers that stay below 2^64 when scaled
        small = source.kind != "f" and source.itemsize <= 4
        finite = small and all(math.isfinite(v) and abs(v) < 1e9 for v in values)
        return self.prepared.spreads_nonfinite and not (
            finite and (certainty is None or certainty.mask is None)
        )

    def _worker(self, number: int) -> _Worker:
        """One thread's step record with its memory, made when first needed."""
        if number not in self._workers:
            problem, prepared = self.problem, self.prepared
            layout, together = prepared.layout, prepared.groups_together
            # Zeros, since register tiles read beyond a row's end into lanes that are not kept: they should be no NaN.
            scratch = aligned_zeros(layout.origin + layout.scratch_size, self.dtype)[
                layout.origin :
            ]
            accumulator = aligned_zeros(layout.accumulator_size, self.dtype)
            workspace = aligned_zeros(layout.workspace_bytes, np.dtype(np.uint8))
            window = np.zeros(
                (layout.step_depth - 1) * problem.strides[0] + problem.extent[0], np.int64
            )
            step = StepRecord(
                Geometry(
                    *problem.strides, *problem.extent, problem.channels_per_group * together,
                    problem.filters_per_group * together, layout.step_depth,
                ),
                Scratch(
                    self.dtype.itemsize, scratch, layout.ring, layout.pitch, layout.row_step, layout.plane_step,
                    layout.channel_step, window,
                ),
                AlgorithmData(prepared.weights, prepared.parameters, workspace),
                Sums(accumulator, *layout.sums),
            )  # fmt: skip
            self._workers[number] = _Worker(step, accumulator)
        return self._workers[number]

    def _callback(
        self,
        worker: _Worker,
        bias: NDArray[Any] | None,
        activation: Activation,
        failures: list[BaseException],
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
            except (
                BaseException
            ) as error:  # must not pass through machine code; raised when the task returns
                failures.append(error)

        return _callback_type(activate)


def _output_fields(out: FlatView, start: int) -> Output:
    """An output from an element on."""
    planes, rows, columns, filters = out.strides
    return Output(
        Pointer(out.flat, start), filters, planes, rows, columns, out.flat.nbytes >= STREAMING_BYTES
    )


def _offset_tables(tables: Tables, strides: Sequence[int], itemsize: int = 1) -> Offsets:
    """The offsets of planes, rows and columns in memory of these strides."""
    planes, rows, columns = tables
    return (
        offset_table(planes, strides[0] // itemsize),
        offset_table(rows, strides[1] // itemsize),
        offset_table(columns, strides[2] // itemsize),
    )


def _cut_tables(tables: Offsets, places: Sequence[slice]) -> Offsets:
    """The part of each table that lies at its place."""
    planes, rows, columns = (table[place] for table, place in zip(tables, places, strict=True))
    return planes, rows, columns


def _check_tables(
    problem: ConvProblem, source: NDArray[Any], out: NDArray[Any], tables: Tables, bias: NDArray[Any] | None,
    certainty: Certainty | None, division: Division | None,
) -> None:  # fmt: skip
    """Check that the loops, which check no bounds, will stay within the arrays of `Plan.convolve_slab`.

    Raises: IndexError for a position beyond the source or the mask, ValueError for sizes that do not fit.
    """
    if source.ndim != 4 or source.shape[3] != problem.in_channels:
        raise ValueError(
            f"the source is (planes, rows, columns, {problem.in_channels}), received {source.shape}"
        )
    repeats = division is not None and out.ndim == 4 and out.shape[3] % problem.filters == 0
    if out.ndim != 4 or (out.shape[3] != problem.filters and not repeats):
        raise ValueError(f"the output is (d, h, w, {problem.filters}), received {out.shape}")
    if bias is not None and bias.shape != (problem.filters,):
        raise ValueError(f"the bias has {problem.filters} numbers, received the shape {bias.shape}")
    if division is not None:
        division.check_shapes(out.shape, problem.filters)
    if out.size == 0:
        return
    for axis, indices in enumerate(tables):
        _check_table("source", axis, indices, source.shape[axis])
        positions = (out.shape[axis] - 1) * problem.strides[axis] + problem.extent[axis]
        if len(indices) != positions:
            raise ValueError(
                f"{out.shape[axis]} outputs read {positions} {_TABLE_NAMES[axis]}, received {len(indices)}"
            )
    if certainty is None or certainty.mask is None:
        return
    mask = certainty.mask
    if mask.ndim != 3:
        raise ValueError(f"the mask is (planes, rows, columns), received {mask.shape}")
    for axis, (indices, own) in enumerate(zip(certainty.positions, tables, strict=True)):
        _check_table("mask", axis, indices, mask.shape[axis])
        if len(indices) != len(own):
            raise ValueError(
                f"the mask has {len(indices)} {_TABLE_NAMES[axis]} for {len(own)} of the source"
            )
        if indices != own and any(
            i == OUTSIDE != other for i, other in zip(indices, own, strict=True)
        ):
            raise IndexError(
                f"the mask's {_TABLE_NAMES[axis]} lie outside where the source's do not"
            )


def _check_memory(
    out: NDArray[Any], division: Division | None, certainty: Certainty | None, real: np.dtype[Any]
) -> None:
    """Check that the loops may write to `out`, and that arrays have the strides and dtypes that the loops assume.

    Raises: ValueError.
    """
    if not (out.flags.writeable and is_flattenable(out)):
        raise ValueError("the output is a writable array of aligned numbers in native byte order")
    if division is not None and out.dtype != real:
        raise ValueError(f"sums that are divided are {real}, received {out.dtype}")
    if division is not None:
        division.check_memory(real)
    if certainty is None or certainty.mask is None:
        return
    mask = certainty.mask
    if not is_flattenable(mask) or (mask.strides[2] != mask.itemsize and mask.shape[2] > 1):
        raise ValueError(
            "the mask has rows of adjacent numbers in native byte order, "
            f"received {mask.dtype.str} in strides {mask.strides}"
        )


def _check_table(owner: str, axis: int, indices: list[int], size: int) -> None:
    """Check that indices are below a size, or `OUTSIDE`. Raises: IndexError."""
    if max(indices) >= size or min(indices) < OUTSIDE:
        wrong = next(i for i in indices if not OUTSIDE <= i < size)
        name = _TABLE_NAMES[axis]
        raise IndexError(
            f"the {owner}'s {name} are 0 to {size - 1}, or {OUTSIDE} outside; received {wrong}"
        )


def _even_bands(tile: Size, size: Size, groups: int, threads: int) -> Size:
    """The tile, made less high where there are few tasks, so that threads have the same work.

    >>> _even_bands(Size(32, 64, 256), Size(32, 200, 256), groups=1, threads=2)
    Size(depth=32, height=56, width=256)
    """
    bands = -(-size.height // tile.height)
    others = groups * -(-size.depth // tile.depth) * -(-size.width // tile.width)
    if bands * others >= FEW_TASKS * threads:
        return tile
    shared = next(count for count in range(bands, bands + threads) if count * others % threads == 0)
    if size.height < LEAST_BAND * shared:
        return tile
    return tile._replace(height=min(tile.height, -(-size.height // shared // 8) * 8))


def _voxels_by_task(filters: int, cut: _Cut, size: Size) -> Callable[[int], int]:
    """A function that tells how many output numbers a task gives."""

    def voxels(task: int) -> int:
        rest, w = divmod(task, cut.counts.width)
        rest, h = divmod(rest, cut.counts.height)
        d = rest % cut.counts.depth
        sizes = zip((d, h, w), cut.tile, size, strict=True)
        return filters * math.prod(min(n, whole - i * n) for i, n, whole in sizes)

    return voxels


@lru_cache(maxsize=16)
def _plane_indices(problem: ConvProblem) -> tuple[list[int], list[int]]:
    """The source rows and columns of a whole plane: the same for every slab of a problem."""
    return problem.source_indices(1, 0, problem.out_size[1]), problem.source_indices(
        2, 0, problem.out_size[2]
    )


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
    # what the arithmetic will have: how exact a factorisation must be
    rounded = weights.astype(real, copy=False)
    refusals, seconds = [], {}
    for candidate in ALGORITHMS:
        reason = candidate.reject(problem, rounded)
        if reason is None:
            cost = cpu_class().factor(candidate.name)
            seconds[candidate.name] = cost * candidate.seconds(problem, rounded, threads)
            continue
        refusals.append((candidate.name, reason))
        if candidate is forced:
            raise ShapeError(f"algorithm '{algorithm}' cannot run this: {reason}")
    # Threads divide every prediction alike, so the choice does not depend on them.
    chosen = forced or find_algorithm(min(seconds, key=seconds.__getitem__))
    return Plan(problem, weights, real, threads, chosen, refusals, seconds)

"""Prepare a job: decide everything that does not depend on its voxels.

`prepare_job` opens the input, reads the kernels, resolves every integer, plans the arithmetic,
makes the output's header, and chooses slabs or boxes under the memory ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from conv3d_cli.convolution.assemble import ResolvedConvolution, assemble, resolve_convolution
from conv3d_cli.convolution.copying import Copy
from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.formats import (
    content_of,
    is_stream,
    lost_provenance,
    open_volume,
    output_access,
    output_bytes,
    output_format,
)
from conv3d_cli.formats.base import random_access
from conv3d_cli.formats.conventions import notes_for
from conv3d_cli.kernels.lengths import read_spacing
from conv3d_cli.layer import get_activation, get_regularizer
from conv3d_cli.model.box import Size
from conv3d_cli.model.grid import Grid, Spacing, grid_after, triple_text
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import Missing, missing_value_notes, stored_value
from conv3d_cli.model.patches import PatchLayout
from conv3d_cli.model.spec import AXIS_NAMES, ConvProblem, VoxelTransform
from conv3d_cli.model.volume import (
    ArrayReader,
    Axes,
    VolumeHeader,
    VolumeReader,
    parts_in_storage_order,
)
from conv3d_cli.network.operations.base import Operation, Shape
from conv3d_cli.network.operations.channels import ArgMax, TakeChannels
from conv3d_cli.network.operations.missing import MaskCertainty
from conv3d_cli.pipeline.blocking import Blocking, Boxes, choose_blocking, fit_patches
from conv3d_cli.pipeline.checks import begin_checks
from conv3d_cli.pipeline.chosen import places_of
from conv3d_cli.pipeline.flow import derived_header, whole_nodes
from conv3d_cli.pipeline.graph import (
    ConvolutionNode,
    Graph,
    OperationNode,
    PatchBody,
    PatchedNode,
    StreamPlan,
)
from conv3d_cli.pipeline.held import nodes_to_spool
from conv3d_cli.pipeline.kernels import resolve_kernel
from conv3d_cli.pipeline.memory import (
    UNLIMITED,
    MemoryUse,
    SlabJob,
    check_planning,
    megabytes,
    weight_memory,
)
from conv3d_cli.pipeline.request import (
    OUTPUT_DTYPES,
    SAME_DTYPE,
    Job,
    Stage,
    Step,
    inputs_of,
    read_chosen,
    read_overlap,
    read_patch,
)
from conv3d_cli.pipeline.selection import check_selection
from conv3d_cli.pipeline.unused import unused_notes
from conv3d_cli.settings.presets import PRESETS
from conv3d_cli.system.machine import format_bytes, memory_ceiling, thread_count
from conv3d_cli.system.room import PROCESS_BYTES, READING_BYTES, ceiling_of_memory
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask
    from conv3d_cli.engine import Plan
    from conv3d_cli.network.shapes import ShapedNetwork
    from conv3d_cli.pipeline.boxes.stream import BoxJob
    from conv3d_cli.pipeline.normalization import Normalized


@dataclass
class PreparedStage:
    """A stage that is ready to run.

    kernel : Kernel             as applied
    problem : ConvProblem       of the whole volume
    losses : dict               penalties of the weights by name ("kernel", "bias"), as in Keras
    inputs : tuple of int       positions of the stages that it takes from, -1 for the volume
    """

    stage: Stage
    kernel: Kernel
    problem: ConvProblem
    convolution: Convolution
    losses: dict[str, float]
    inputs: tuple[int, ...]

    @property
    def node(self) -> ConvolutionNode:
        """Its place in the graph."""
        return ConvolutionNode(self.inputs, self.convolution)

    @property
    def plan(self) -> Plan:
        """The engine's plan."""
        return self.convolution.plan


@dataclass
class PreparedStep:
    """A step that is ready to run.

    inputs : tuple of int       positions of the stages that it takes from, -1 for the volume
    real : dtype                of its output
    """

    step: Step
    operation: Operation
    inputs: tuple[int, ...]
    real: np.dtype[Any]

    @property
    def node(self) -> OperationNode:
        """Its place in the graph."""
        return OperationNode(self.inputs, self.operation, self.real)


@dataclass
class PreparedPatches:
    """A step that runs a job of its own in every patch, ready to run.

    inputs : tuple of int       positions of the stages that it takes from, -1 for the volume
    layout : PatchLayout        of the patches
    inner : PreparedJob         of one patch, whose voxels its reader does not have
    body : PatchBody            how it runs
    """

    step: Step
    inputs: tuple[int, ...]
    layout: PatchLayout
    inner: PreparedJob
    body: PatchBody

    @property
    def node(self) -> PatchedNode:
        """Its place in the graph."""
        return PatchedNode(self.inputs, self.layout, self.body)


@dataclass
class PreparedJob:
    """A job that is ready to run. Use it within the context of `prepare_job`.

    reader : VolumeReader       of the input, open
    header : VolumeHeader       of the output
    boxes : Boxes or None       None: slabs of whole planes, which fit into memory
    spool_input : list of bool  for each stage, whether its input goes to a temporary file first
    spool_output : bool         whether the output goes to a temporary file first
    spooled : frozenset of int  stages, or -1 for the volume, whose output goes to a temporary file,
                                since several stages take it at different times
    network : ShapedNetwork or None     that the stages were made of
    label_names : dict          names of the labels that are written, by number
    normalized : Normalized or None     statistics by which the first step scales the input
    memory_use : MemoryUse      at the peak of the process
    mask : Mask or None         its reader is open
    notes : list of str         for the user
    """

    job: Job
    reader: VolumeReader
    stages: list[AnyPrepared]
    header: VolumeHeader
    stream_plan: StreamPlan
    boxes: Boxes | None
    spool_input: list[bool]
    spool_output: bool
    memory_use: MemoryUse
    mask: Mask | None = None
    notes: list[str] = field(default_factory=list)
    spooled: frozenset[int] = frozenset()
    network: ShapedNetwork | None = None
    label_names: dict[int, str] = field(default_factory=dict)
    normalized: Normalized | None = None

    @cached_property
    def graph(self) -> Graph:
        """The nodes of all stages."""
        return _graph(self.stages)

    @property
    def convolutions(self) -> list[PreparedStage]:
        """The stages that are convolutions, in order."""
        return [stage for stage in self.stages if isinstance(stage, PreparedStage)]

    @property
    def patches(self) -> PreparedPatches | None:
        """The stage that runs in patches; None if there is none."""
        return next((one for one in self.stages if isinstance(one, PreparedPatches)), None)

    @property
    def last(self) -> PreparedStage:
        """The convolution whose output is written."""
        return self.convolutions[-1]

    @property
    def passes(self) -> int:
        """How often the volume, or what was made of it, is gone through from end to end."""
        return 1 + len(self.spooled)

    @property
    def threads(self) -> int:
        """The number of threads that compute: as many as given, or as fit into memory."""
        return self.last.plan.threads

    @property
    def computed_at_once(self) -> Size:
        """Outputs (d, h, w) of the last convolution that the threads share: a slab or a box."""
        if self.boxes is not None:
            return Size(*self.boxes.partition.block)
        depth, height, width = self.last.problem.out_size
        return Size(min(self.stream_plan.slab_depth, depth), height, width)

    @property
    def memory(self) -> int:
        """The predicted peak of the whole process in bytes."""
        return self.memory_use.total


AnyPrepared: TypeAlias = PreparedStage | PreparedStep | PreparedPatches


@contextmanager
def prepare_job(job: Job) -> Iterator[PreparedJob]:
    """Open a job's files and decide everything that does not depend on voxels.

    Leaving the context closes the files.
    Raises: FormatError, ShapeError (which names the input), SpecError, UnknownNameError,
        MemoryLimitError.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(open_source(job))
        with naming(reader):
            mask = stack.enter_context(open_job_mask(job, reader.header))
            prepared = prepare_opened(job, reader, mask)
        yield prepared


def prepare_opened(
    job: Job,
    reader: VolumeReader,
    mask: Mask | None = None,
    reopened: Callable[[], AbstractContextManager[VolumeReader]] | None = None,
) -> PreparedJob:
    """Decide everything about a job whose volume and mask are open.

    reopened : callable or None     opens the volume once more; None: by its path
    Raises: as `prepare_job`, but for files.
    """
    normalized = None
    notes: list[str] = []
    if job.operation is not None and not job.is_composed:
        job = _compose(job, reader.header, notes, reopened or partial(open_source, job))
    if job.normalize_input != "none" and not job.is_normalized:
        job, normalized = _normalize(job, reader)
    return _prepare(job, reader, mask, normalized, notes)


def _compose(
    job: Job,
    header: VolumeHeader,
    notes: list[str],
    reopened: Callable[[], AbstractContextManager[VolumeReader]],
) -> Job:
    """The job with the stages of its operation. Raises: as `composing.compose`."""
    from conv3d_cli.pipeline.composing import compose  # few jobs have one

    with ceiling_of_memory(_ceiling(job)):
        return compose(job, header, _grid_of(job, header, notes), notes, reopened)


def _normalize(job: Job, reader: VolumeReader) -> tuple[Job, Normalized]:
    """The job after the first pass over its input, and what was found.

    Raises: as `normalization.normalize`.
    """
    from conv3d_cli.pipeline.normalization import normalize  # few jobs do

    with ExitStack() as stack, job.limits():
        mask = None
        if job.normalize_mask is not None:
            opened = open_mask(job.normalize_mask, reader.header, spacing=given_spacing(job))
            mask = stack.enter_context(opened)
        return normalize(job, reader, lambda: open_source(job), mask)


@contextmanager
def naming(reader: VolumeReader) -> Iterator[None]:
    """A context that adds the volume's path and shape to a ShapeError."""
    try:
        yield
    except ShapeError as error:
        raise ShapeError(
            f"{error} (volume {reader.path}, {describe_shape(reader.header.axes)})"
        ) from error


def open_source(job: Job, again: bool = False) -> VolumeReader:
    """Open a job's input, with the axes and the spacing that the job gives.

    again : bool        see `open_volume`
    Raises: FormatError if it cannot be read, ShapeError if it tells another spacing.
    """
    with job.limits():
        reader = open_volume(
            job.source,
            axes=job.axes,
            channels_first=job.channels_first,
            spacing=given_spacing(job),
            again=again,
        )
        value = stored_value(job.missing.value, reader.header.dtype)
        reader.notes = notes_for(reader.notes, value, partial(_takes_missing, job))
        if not job.chooses_channels:
            return reader
        from conv3d_cli.pipeline.chosen import choose_channels  # few jobs choose

        return choose_channels(reader, read_chosen(job.channels), job.target)


def _takes_missing(job: Job) -> bool:
    """Whether the job's command has an option for the value of missing voxels."""
    if job.operation is not None:
        from conv3d_cli.pipeline.operations import find_operation  # few jobs have one

        return find_operation(job.operation).takes_missing
    first = job.stages[0]
    return len(job.stages) > 1 or not isinstance(first, Stage) or not first.copies


def given_spacing(job: Job) -> Spacing | None:
    """The spacing that a job gives for its input and its mask."""
    return None if job.spacing is None else read_spacing(job.spacing)


@contextmanager
def open_job_mask(job: Job, header: VolumeHeader, again: bool = False) -> Iterator[Mask | None]:
    """Open a job's mask, if it has one: see `open_mask`."""
    path = job.missing.mask
    if path is None:
        yield None
        return
    with (
        job.limits(),
        open_mask(path, header, job.missing.labels, given_spacing(job), again) as mask,
    ):
        yield mask


@contextmanager
def open_mask(
    path: str,
    header: VolumeHeader,
    labels: bool = False,
    spacing: Spacing | None = None,
    again: bool = False,
) -> Iterator[Mask]:
    """Open a mask and check it against the volume with this header; leaving closes it.

    spacing : Spacing or None   for what the file does not tell (see `complete_grid`)
    again : bool                see `open_volume`
    Raises: FormatError if it cannot be read, ShapeError if it does not fit.
    """
    from conv3d_cli.convolution.masks import check_mask

    with random_access(open_volume(path, spacing=spacing, again=again)) as reader:
        yield check_mask(reader, header, labels)


def _graph(stages: Sequence[AnyPrepared]) -> Graph:
    return Graph(tuple(stage.node for stage in stages))


class _ResolvedStage(NamedTuple):
    """A stage whose sizes are known, and the penalties of its weights by name."""

    stage: Stage
    inputs: tuple[int, ...]
    resolved: ResolvedConvolution
    losses: dict[str, float]


class _ResolvedStep(NamedTuple):
    """A step whose sizes are known."""

    step: Step
    inputs: tuple[int, ...]
    operation: Operation


class _ResolvedPatches(NamedTuple):
    """A step that runs other stages in every patch, whose sizes are known."""

    prepared: PreparedPatches
    chain: _Resolved


class _Resolved(NamedTuple):
    """All stages of a job, whose sizes are known; and the network that they were made of."""

    stages: list[_ResolvedStage | _ResolvedStep | _ResolvedPatches]
    network: ShapedNetwork | None

    @property
    def convolutions(self) -> list[_ResolvedStage]:
        """Those that are convolutions."""
        return [stage for stage in self.stages if isinstance(stage, _ResolvedStage)]

    @property
    def all_convolutions(self) -> list[_ResolvedStage]:
        """Those that are convolutions, and those that run in patches before them."""
        inner = [one.chain for one in self.stages if isinstance(one, _ResolvedPatches)]
        return [*(one for chain in inner for one in chain.all_convolutions), *self.convolutions]

    @property
    def last(self) -> ResolvedConvolution:
        """The convolution whose output is written."""
        return self.convolutions[-1].resolved

    @property
    def selecting(self) -> Operation | None:
        """The operation after which nothing is computed: it selects what is written."""
        step = self.stages[-2] if len(self.stages) > 1 else None
        last = self.stages[-1]
        is_copy = isinstance(last, _ResolvedStage) and last.resolved.is_copy
        return step.operation if isinstance(step, _ResolvedStep) and is_copy else None

    @property
    def labels(self) -> int:
        """The number of labels that are written; 0 for other values."""
        operation = self.selecting
        return operation.inputs[0].channels if isinstance(operation, ArgMax) else 0


class _StreamOrder(NamedTuple):
    """The order of streaming: see `_stream_order`, `StreamPlan` and `PreparedJob`."""

    parts: list[tuple[int, slice]]
    spool_input: list[bool]
    spool_output: bool


def _prepare(
    job: Job,
    reader: VolumeReader,
    mask: Mask | None,
    normalized: Normalized | None,
    composed: Sequence[str],
) -> PreparedJob:
    notes = [*reader.notes, *composed]
    if normalized is not None:
        notes.append(normalized.note())
    if mask is not None:
        notes += [f"mask {mask.reader.path}: {note}" for note in mask.reader.notes]
    with ceiling_of_memory(_ceiling(job)):
        chain = _resolve_stages(job, reader.header, notes)
    names = _label_names(job, chain, notes)
    header = _output_header(job, reader.header, chain)
    notes += missing_value_notes(job.missing, reader.header.dtype)
    notes += _shift_notes(job, header, chain)
    if lost := output_format(job.target).lost_meaning(header):
        notes.append(lost)
    notes += unused_notes(job, reader.header, [one.resolved for one in chain.all_convolutions])
    notes += lost_provenance(job.target, header)
    order = _stream_order(job, reader, header, chain)
    if order.spool_output:
        notes.append(
            "the output goes through a temporary file in $TMPDIR, since its file is written in "
            "another order than it is computed; that takes space and time, the result is the same"
        )
    keeps_scale = header.scale != (1.0, 0.0)
    stages, planning = _assemble_stages(job, chain, order, mask, keeps_scale)
    planning.append(MemoryUse({"process": READING_BYTES}).plus(filters=job.making))
    graph = _graph(stages)
    spooled = nodes_to_spool(graph)
    if order.spool_input[0] and len(graph.consumers[-1]) > 1:  # once, for all that take the volume
        spooled |= {-1}
        order.spool_input[0] = False
    blocking = _choose_blocking(job, reader, stages, header, order, spooled)
    if blocking.full_memory:
        notes.append(
            f"{graph.last.plan.threads} of {count_of(thread_count(job.threads), 'thread')} "
            f"compute, since the memory of more is above the ceiling of "
            f"{format_bytes(memory_ceiling(_ceiling(job)))}; all would with "
            f"{setting('max_memory', megabytes(blocking.full_memory))}"
        )
    # boxes are only used with readers that give any box of voxels
    spool_input = order.spool_input if blocking.boxes is None else [False] * len(stages)
    if any(spool_input) or (-1 in spooled and reader.sequential):
        notes.append(
            "the input goes through a temporary file in $TMPDIR, since its file is read in another "
            "order than it is needed; that takes space and time, the result is the same"
        )
    if spooled - {-1}:
        held = [str(job.stages[n].name) for n in sorted(spooled - {-1})]
        need = whole_nodes(graph)
        notes.append(
            f"{count_of(1 + len(spooled), 'pass', 'passes')} through the volume, all of which "
            f"{_listed(need)} of the network {'need' if len(need) > 1 else 'needs'} before the "
            f"first voxel: temporary files in $TMPDIR hold the output of {_listed(held)}"
        )
    filled = graph.written(_streamed_dtype(job, header)) is not None
    return PreparedJob(
        job=job,
        reader=reader,
        stages=stages,
        header=header,
        stream_plan=StreamPlan(graph.last, order.parts, blocking.depth, filled),
        boxes=blocking.boxes,
        spool_input=spool_input,
        spool_output=order.spool_output,
        memory_use=max(blocking.memory, *planning, key=lambda use: use.total),
        mask=mask,
        notes=notes,
        spooled=spooled,
        network=chain.network,
        label_names=names,
        normalized=normalized,
    )


def _listed(names: Sequence[str]) -> str:
    """Names of nodes in a note."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _resolve_stages(
    job: Job, header: VolumeHeader, notes: list[str], cure: str = "pad or crop the volume before"
) -> _Resolved:
    """Kernel, problem and activations of every stage, for what it takes.

    cure : str      what to do about sizes that do not join
    Raises: ShapeError, which names the layer of a stack; other errors of `resolve_kernel`, and of
        `shape_network`.
    """
    network = None
    if job.network is not None:
        from conv3d_cli.network.shapes import shape_network  # few jobs have a network

        network = shape_network(job.network, Shape(*header.shape[1:]), cure)
        notes += job.network.notes
        if network.apart:
            names = ", ".join(f"'{name}'" for name in network.apart)
            notes.append(
                f"the network joins volumes whose voxels lie at other places, at {names}; the "
                "output's place is that of the first"
            )
    chain: list[_ResolvedStage | _ResolvedStep | _ResolvedPatches] = []
    grid = _grid_of(job, header, notes)
    # masks and missing voxels are of the input, the coverage of a mean is of each layer
    later = Missing(min_coverage=job.missing.min_coverage)
    shapes, grids = {-1: header.shape}, {-1: grid}
    for number, stage in enumerate(job.stages):
        inputs = inputs_of(stage, number)
        if isinstance(stage, Step) and stage.body is not None:
            source = shapes[inputs[0]]
            patches = _prepare_patches(job, stage, inputs, source, grids[inputs[0]], notes)
            chain.append(patches)
            shapes[number] = (*source[:4], patches.prepared.body.result.shape[4])
            grids[number] = grid_after(grids[inputs[0]], patches.prepared.body.result.transform)
            continue
        if isinstance(stage, Step):
            from conv3d_cli.network.operations.catalogue import make_operation

            if job.selects and number == len(job.stages) - 2:
                check_selection(job, shapes[inputs[0]][4])
            operation = make_operation(stage.node, [Shape(*shapes[n][1:]) for n in inputs])
            chain.append(_ResolvedStep(stage, inputs, operation))
            # the place of a network's voxels is known from the network itself
            shapes[number], grids[number] = (header.shape[0], *operation.shape), grid
            continue
        shape, of_volume = shapes[inputs[0]], inputs == (-1,)
        try:
            kernel, losses = resolve_kernel(
                stage, shape, grids[inputs[0]], notes, number, job.given
            )
            resolved = resolve_convolution(
                stage.spec(kernel.is_layer),
                kernel,
                shape,
                activations=[get_activation(identifier) for identifier in stage.activations],
                channels_first=job.channels_first,
                magnitude=stage.magnitude,
                missing=job.missing if of_volume and not job.is_composed else later,
            )
        except ShapeError as error:
            where = f"layer {stage.name or number + 1}: " if len(job.stages) > 1 else ""
            raise ShapeError(f"{where}{error}") from error
        notes += [*resolved.notes, *stage.notes]
        chain.append(_ResolvedStage(stage, inputs, resolved, losses))
        problem = resolved.problem
        shapes[number] = (shape[0], *problem.out_size, resolved.channels_out)
        grids[number] = grid_after(grids[inputs[0]], problem)
    return _Resolved(chain, network)


def _prepare_patches(
    job: Job,
    step: Step,
    inputs: tuple[int, ...],
    source: tuple[int, ...],
    grid: Grid,
    notes: list[str],
) -> _ResolvedPatches:
    """Lay the patches of a volume, and decide how one of them is computed.

    source : (N, D, H, W, C)    of what they are patches of
    grid : Grid                 by which lengths are converted to voxels
    Raises: ShapeError, which names the patch, also for an output of another size; as
        `_resolve_stages`.
    """
    from conv3d_cli.pipeline.patches import inner_job  # few jobs have any

    assert step.body is not None
    patch = read_patch(job.patch, grid)
    _, depth, height, width, channels = source
    layout = PatchLayout((depth, height, width), patch, read_overlap(job.overlap), job.blend)
    real, own = np.dtype(job.precision), inner_job(job, step.body)
    header = VolumeHeader(Axes("zyxc", (*patch, channels)), real, grid=grid)
    reader = ArrayReader(np.broadcast_to(np.zeros((), real), header.axes.shape), header)
    where = f"in a patch of {'x'.join(map(str, patch))} voxels"
    try:
        chain = _resolve_stages(own, header, notes, "pass a patch of such a size")
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from error
    last, (_, transform) = chain.last, _placed(chain, grid)
    if last.problem.out_size != patch:
        cure = (
            f"keep the size ({setting('padding', 'same')}, no strides)"
            if chain.network is None
            else "pass sizes that the network keeps: multiples of its strides, where all layers pad"
        )
        raise ShapeError(
            f"{where}: the output has {'x'.join(map(str, last.problem.out_size))} voxels, and "
            f"patches are blended where it has as many; leave {setting('patch')} out, or {cure}"
        )
    shape = Shape(*patch, last.channels_out)
    result = replace(derived_header(header, shape, real), transform=transform)
    order = _stream_order(own, reader, result, chain)
    stages, planning = _assemble_stages(own, chain, order, None, False, layout.count)
    graph = _graph(stages)
    spooled = nodes_to_spool(graph)
    plan = StreamPlan(graph.last, order.parts, 1, graph.written(result.dtype) is not None)
    body = PatchBody(
        graph,
        plan,
        header,
        result,
        spooled,
        tuple(n for n, spooled in enumerate(order.spool_input) if spooled),
    )
    inner = PreparedJob(
        job=own,
        reader=reader,
        stages=stages,
        header=result,
        stream_plan=plan,
        boxes=None,
        spool_input=order.spool_input,
        spool_output=False,
        memory_use=max(planning, key=lambda use: use.total),
        spooled=spooled,
        network=chain.network,
    )
    return _ResolvedPatches(PreparedPatches(step, inputs, layout, inner, body), chain)


def _placed(chain: _Resolved, grid: Grid) -> tuple[Grid, VoxelTransform]:
    """The grid of the output of stages, and the map from its voxels to those of the input.

    grid : Grid     of the input
    """
    if chain.network is not None:
        (output,) = chain.network.network.outputs.values()
        transform = chain.network.transforms[output]
        return grid_after(grid, transform), transform
    transform = VoxelTransform()
    for one in chain.stages:
        if isinstance(one, _ResolvedStep):
            continue
        if isinstance(one, _ResolvedPatches):
            step = one.prepared.body.result.transform
        else:
            step = one.resolved.problem.voxel_transform
        grid, transform = grid_after(grid, step), transform.then(step)
    return grid, transform


def _grid_of(job: Job, header: VolumeHeader, notes: list[str]) -> Grid:
    """The grid by which lengths are converted to voxels.

    notes : list of str     extended if that is not the header's
    """
    grid = header.grid
    if job.preset is None or not PRESETS[job.preset.name].by_pixdim:
        return grid
    by_pixdim = grid.by_other_spacing
    if by_pixdim is not grid:
        notes.append(
            f"{setting('like', job.preset.name)} takes lengths by pixdim: voxels of "
            f"{by_pixdim.spacing_words}"
        )
    return by_pixdim


def _label_names(job: Job, chain: _Resolved, notes: list[str]) -> dict[int, str]:
    """The names of the labels that are written. Raises: FormatError, ShapeError, SpecError."""
    if job.label_names is None:
        return {}
    if not chain.labels:
        raise SpecError(
            f"{setting('label_names', job.label_names)} is for labels, and the network gives none: "
            f"pass {setting('argmax', True)}, too, or leave it out"
        )
    from conv3d_cli.pipeline.labels import check_label_names, read_label_names  # few jobs do

    names = read_label_names(job.label_names)
    if note := check_label_names(job.label_names, names, chain.labels):
        notes.append(note)
    return names


def _output_header(job: Job, source: VolumeHeader, chain: _Resolved) -> VolumeHeader:
    """The header of the output.

    Raises: ShapeError for --scale auto with RGB voxels, and for --scale keep without a copy.
    """
    grid, transform = _placed(chain, source.grid)
    last = chain.last
    shape = (source.shape[0], *last.problem.out_size, last.channels_out)
    copies = len(chain.stages) == 1 and last.is_copy and _regularizer(chain) is None
    dtype = _output_dtype(job, source, copies, chain.labels)
    plain = bool(job.selects) and shape[4] == 1
    header = output_header(job.target, source, shape, grid, transform, dtype, plain)
    is_labels = chain.labels > 0 or (copies and content_of(job.source) == "labels")
    header = replace(header, is_filtered=not copies, is_copy=copies, is_labels=is_labels)
    if job.scale == "keep":
        if not copies:
            raise ShapeError(
                f"{setting('scale', 'keep')} keeps the numbers of the input, which only a copy has "
                "(the kernel identity): leave it out"
            )
        if _keeps_scale(job, source, dtype):
            header = replace(header, scale=source.scale)
    composed = job.channel_names if job.is_composed else None
    taken = chain.selecting
    if isinstance(taken, TakeChannels):
        made = _Resolved(chain.stages[:-2], chain.network)
        before = _with_names(header, made, composed)
        header = _taken_names(before, taken)
        of_input = job.network is None and not job.is_composed and bool(made.convolutions)
        if of_input and not _mixes_channels(made):
            places = places_of(taken.taken, taken.inputs[0].channels)
            header = replace(header, channel_places=places)
    else:
        header = _with_names(header, chain, composed)
    if job.history:
        header = replace(header, history=(*source.history, job.history))
    if job.scale == "auto" and "s" in header.axes.letters:
        raise ShapeError(
            f"{setting('scale', 'auto')} is not for RGB voxels, whose readers ignore a slope; "
            "leave it out"
        )
    return header


def _with_names(
    header: VolumeHeader, chain: _Resolved, composed: tuple[str, ...] | None = None
) -> VolumeHeader:
    """The header of an output with what names its channels.

    composed : tuple or None    of an operation: names of the channels that it makes of each of the
                                input's; () if it keeps them
    """
    layers = [one for one in chain.stages if isinstance(one, _ResolvedStage)]
    last = layers[-1].resolved if layers else None
    if composed is not None:
        return replace(header, components=composed)
    if last is not None and last.kernel.is_bank and not last.magnitude:
        return replace(header, components=last.kernel.filter_names)
    if last is not None and not _mixes_channels(chain):
        return header
    # no channel is one of the input's
    facts = replace(header.facts, channel_names=(), channel_colors=())
    return replace(header, facts=facts, channel_places=())


def _taken_names(header: VolumeHeader, taken: TakeChannels) -> VolumeHeader:
    """The header of an output of some channels, with their names.

    header : VolumeHeader       with the names of all of them
    """
    channels, components = taken.inputs[0].channels, header.components
    if len(components) == channels:
        return replace(header, components=tuple(components[n] for n in taken.taken))
    axes = Axes("czyx", (channels, 1, 1, 1))
    every = replace(header, axes=axes)
    names, colors = (
        tuple(own[n] for n in taken.taken) if own else ()
        for own in (every.channel_names, every.channel_colors)
    )
    facts = replace(header.facts, channel_names=names, channel_colors=colors)
    return replace(header, facts=facts, components=())


def _regularizer(chain: _Resolved) -> Any:
    """The activity regularizer of the last convolution; None if there is none."""
    return chain.convolutions[-1].stage.activity_regularizer


def _copy_dtype(source: VolumeHeader) -> np.dtype[Any]:
    """The dtype of a copy for which none is given: float32 if it holds every value, else a wider.

    64-bit integers become float64, since few formats hold them.
    """
    stored = source.dtype
    if np.can_cast(stored, np.float32):
        return np.dtype(np.float32)
    is_short = stored.itemsize < 8 and source.scale == (1.0, 0.0)
    return stored if is_short else np.dtype(np.float64)


def _keeps_scale(job: Job, source: VolumeHeader, dtype: np.dtype[Any]) -> bool:
    """Whether a copy in a dtype has the input's stored numbers, with their slope and intercept.

    An output of floats that was asked for has the values.
    """
    same_kind = dtype == source.dtype or (dtype.kind in "iu" and source.dtype.kind in "iu")
    is_scaled = source.scale != (1.0, 0.0)
    return same_kind and is_scaled and output_format(job.target).holds_scale


def _shift_notes(job: Job, header: VolumeHeader, chain: _Resolved) -> list[str]:
    """A note if output voxels lie between input voxels, as an even kernel places them."""
    shifted = [axis for axis, offset in enumerate(header.transform.offset) if offset % 1]
    if not shifted:
        return []
    kernels = [one.resolved.kernel for one in chain.all_convolutions]
    even = any(kernel.size[axis] % 2 == 0 for kernel in kernels for axis in shifted)
    cause = "an even kernel" if even else "a kernel whose centre lies between voxels"
    cause = cause if job.given_network is None else "the network"
    half = all(header.transform.offset[axis] % 1 == 0.5 for axis in shifted)
    along = ",".join(AXIS_NAMES[axis] for axis in shifted)
    told = output_format(job.target).holds_spacing and header.grid.affine is not None
    who = "its affine tells that, but programs that overlay by voxel ignore it"
    return [
        f"{cause} moves the output by {'half' if half else 'a part of'} a voxel along {along}: its "
        f"first voxel lies at input voxel {triple_text(header.transform.offset)}; "
        + (who if told else "nothing in the output tells that")
    ]


def _output_dtype(job: Job, source: VolumeHeader, copies: bool, labels: int = 0) -> np.dtype[Any]:
    """The dtype of the output; `same` is the input's, and a copy's default holds every value.

    labels : int        how many there are to write; 0: other values
    Raises: ShapeError under `same` for a dtype that no output has, for integers with a scale that
    the output would not have, and for --scale auto with floats.
    """
    if job.dtype is None and labels:
        return np.dtype(next(name for most, name in _LABEL_DTYPES if labels <= most))
    wanted = SAME_DTYPE if job.dtype is None and copies and job.scale == "keep" else job.dtype
    if wanted is None:
        return np.dtype(_copy_dtype(source) if copies else np.float32)
    if wanted != SAME_DTYPE:
        return np.dtype(wanted)
    dtype = source.dtype
    if copies and job.scale == "keep" and source.scale != (1.0, 0.0):
        # values instead of the stored numbers, where the output cannot have their scale
        return dtype if output_format(job.target).holds_scale else _copy_dtype(source)
    same, auto = setting("dtype", SAME_DTYPE), setting("scale", "auto")
    cure = f"pass another dtype, such as {setting('dtype', 'float32')}"
    if dtype.kind in "fb" and job.scale == "auto":
        raise ShapeError(f"{auto} is for integer outputs, and the input is {dtype.name}")
    if copies and source.file_dtype is not None and source.file_dtype.str[1:] == "f2":
        return np.dtype(np.float16)
    if dtype.name not in OUTPUT_DTYPES and not (copies and dtype == np.bool_):
        raise ShapeError(f"{same}: no output has the input's dtype {dtype.name}; {cure}")
    if dtype.kind != "f" and source.scale != (1.0, 0.0) and job.scale != "auto":
        slope, intercept = source.scale
        raise ShapeError(
            f"{same}: the input stores {dtype.name} with a scale (value = stored * {slope:g} "
            f"+ {intercept:g}), without which values would be rounded to whole numbers; pass "
            f"{setting('scale', 'keep') if copies else auto} (NIfTI), too, or {cure}"
        )
    return dtype


# the most labels that are written in a dtype
_LABEL_DTYPES = ((255, "uint8"), (65535, "uint16"), (math.inf, "uint32"))


def _assemble_stages(
    job: Job,
    chain: _Resolved,
    order: _StreamOrder,
    mask: Mask | None,
    keeps_scale: bool,
    patches: int = 1,
) -> tuple[list[AnyPrepared], list[MemoryUse]]:
    """Plan all stages. Returns them, and the memory that the planning of each needs.

    Only the last stage may compute channels one by one; the others compute all channels at once.

    keeps_scale : bool      see `Copy`
    patches : int           of which each goes through all stages
    Raises: MemoryLimitError for more weights than the ceiling allows.
    """
    stages: list[AnyPrepared] = []
    planning = []
    kernels: list[Kernel] = []
    for position, one in enumerate(chain.stages):
        if isinstance(one, _ResolvedPatches):
            stages.append(one.prepared)
            planning.append(one.prepared.inner.memory_use)
            kernels += [stage.kernel for stage in one.prepared.inner.convolutions]
            continue
        if isinstance(one, _ResolvedStep):
            real = np.dtype(job.precision)
            if isinstance(one.operation, MaskCertainty) and mask is not None:
                one.operation.certainty_in = partial(mask.certainty_in, real=real)
            stages.append(PreparedStep(one.step, one.operation, one.inputs, real))
            continue
        stage, inputs, resolved, losses = one
        channels = resolved.problem.in_channels
        if position == len(chain.stages) - 1 and order.parts:
            part_channels = order.parts[0][1]
            channels = part_channels.stop - part_channels.start
        part = resolved.problem.part(channels)
        kernels.append(resolved.kernel)
        planning.append(check_planning(kernels, part, np.dtype(job.precision), _ceiling(job)))
        convolution = assemble(
            resolved,
            channels,
            precision=job.precision,
            threads=thread_count(job.threads),
            algorithm=job.algorithm,
            activity=get_regularizer(stage.activity_regularizer),
            mask=None if job.is_composed else mask,
            several_parts=len(order.parts) > 1,
            reports_coverage=job.needs_coverage,
            watches_losses=True,
        )
        if isinstance(convolution, Copy):
            convolution.keeps_scale = keeps_scale
        stages.append(
            PreparedStage(stage, resolved.kernel, resolved.problem, convolution, losses, inputs)
        )
    begin_checks(job, _graph(stages).convolutions, len(order.parts) * patches)
    return stages, planning


def _choose_blocking(
    job: Job,
    reader: VolumeReader,
    stages: list[AnyPrepared],
    header: VolumeHeader,
    order: _StreamOrder,
    spooled: frozenset[int],
) -> Blocking:
    """Slabs, or boxes, that fit under the memory ceiling. Raises: MemoryLimitError."""
    graph = _graph(stages)
    decide_disk(graph, memory_ceiling(_ceiling(job)))
    channels = _channels_written(graph.last, order, header)
    in_channels = (
        graph.last.problem.in_channels
        if len(stages) == 1
        else reader.header.axes.canonical_shape[4]
    )
    every = [
        *stages,
        *(s for one in stages if isinstance(one, PreparedPatches) for s in one.inner.stages),
    ]
    done = [stage for stage in every if isinstance(stage, PreparedStage)]
    given = [stage.stage.kernel for stage in done if isinstance(stage.stage.kernel, Kernel)]
    weights = weight_memory([*given, *(stage.kernel for stage in done)], graph.all_convolutions)
    slab_job = SlabJob(
        graph,
        reader.header.dtype,
        _streamed_dtype(job, header),
        sequential=(reader.sequential or len(stages) > 1) and not order.spool_input[-1],
        channels=channels,
        weights=weights,
        reader=lambda planes: reader.buffer_bytes(planes, in_channels),
        writer=output_bytes(
            job.target,
            header,
            channels,
            chunks=job.chunks,
            levels=job.levels,
            levels_by=job.levels_by,
            compression=job.compression,
        ),
        in_channels=in_channels,
        in_plane_voxels=math.prod(reader.header.shape[2:4]),
        spooled=spooled,
        in_memory=reader.in_memory,
    )
    for body in graph.bodies:
        fit_patches(slab_job, body, memory_ceiling(_ceiling(job)))
    return choose_blocking(
        slab_job, _ceiling(job), lambda: _box_job(job, reader, graph, header, channels, weights)
    )


# What an operation that iterates may keep in memory before its volumes go into files.
ITERATED_BYTES = 640 << 20


def decide_disk(graph: Graph, ceiling: int) -> None:
    """Decide for operations that iterate whether their volumes are in memory or in files.

    ceiling : int       of the whole process in bytes
    """
    room = ceiling - PROCESS_BYTES
    most = room if ceiling >= UNLIMITED else min(room // 2, ITERATED_BYTES)
    for node in graph.nodes:
        if isinstance(node, OperationNode) and node.operation.iterates:
            held = node.operation.held_bytes(node.real, graph.last.plan.threads, on_disk=False)
            node.operation.on_disk = held > most


def _streamed_dtype(job: Job, header: VolumeHeader) -> np.dtype[Any]:
    """The dtype of the voxels that the writer takes."""
    return np.dtype(np.float32) if job.scale == "auto" else header.dtype


def _channels_written(convolution: Convolution, order: _StreamOrder, header: VolumeHeader) -> int:
    """The number of output channels written for one part of the volume."""
    if not order.parts:
        return header.shape[4]
    stored = convolution.stored(order.parts[0][1], header.shape[4])
    return int(stored.stop - stored.start)


def _ceiling(job: Job) -> int | None:
    """The ceiling in bytes; None: see `memory_ceiling`."""
    return UNLIMITED if job.on_cluster else job.max_memory


def _box_job(
    job: Job,
    reader: VolumeReader,
    graph: Graph,
    out_header: VolumeHeader,
    channels: int,
    weights: dict[str, int],
) -> BoxJob | None:
    """The job in boxes, or None if it cannot be computed in boxes.

    Boxes need a reader and a writer of boxes, an output without additional volumes, and a graph
    without patches and without an operation on the whole volume. All convolutions but the last
    compute their boxes with a halo, so they can have neither an activation along the width nor an
    activity penalty, which counts every voxel once.
    """
    from conv3d_cli.pipeline.boxes.stream import BoxJob

    reading = reader.box_access()
    writing = output_access(
        job.target,
        out_header,
        chunks=job.chunks,
        levels=job.levels,
        levels_by=job.levels_by,
        compression=job.compression,
    )
    convolutions = graph.convolutions
    if reading is None or writing is None or job.beside or graph.needs_whole or graph.bodies:
        return None
    if not all(convolution.takes_boxes for convolution in convolutions):
        return None
    for convolution in convolutions[:-1]:
        along_width = job.channels_first and any(a.kind == "axis" for a in convolution.activations)
        if along_width or convolution.activity is not None:
            return None
    return BoxJob(graph, reader.header, out_header, reading, writing, channels, weights)


def output_header(
    target: str,
    source: VolumeHeader,
    shape: tuple[int, ...],
    grid: Grid,
    transform: VoxelTransform,
    dtype: np.dtype[Any],
    plain: bool = False,
) -> VolumeHeader:
    """The header of an output volume, with its axes in the order of its format.

    target : str                    path, whose suffix tells the format
    source : VolumeHeader           of the input
    shape : (N, D, H, W, C)         of the output
    grid : Grid                     of the output
    transform : VoxelTransform      from output voxels to input voxels
    dtype : dtype                   of the output
    plain : bool                    its one channel has no axis, unless its file would be read wrong
    """
    letters = source.axes.letters_after(shape)
    if plain and (output_format(target).names_axes or not source.axes.batch_letters):
        letters = "".join(a for a in letters if a not in "cs")
    channels = shape[4]
    sizes = dict(zip("zyx", shape[1:4], strict=True))
    if not plain and len([a for a in letters if a in "cs"]) < 2:
        sizes[next((a for a in letters if a in "cs"), "c")] = channels
    letters = output_format(target).output_letters(letters, channels, dtype)
    channel_letters = [a for a in letters if a in "cs"]
    if len(channel_letters) == 1:
        sizes[channel_letters[0]] = channels
    return replace(
        source,
        axes=source.axes.renamed(letters, sizes),
        dtype=dtype,
        grid=grid,
        scale=(1.0, 0.0),
        transform=transform,
    )


def _stream_order(
    job: Job, reader: VolumeReader, header: VolumeHeader, chain: _Resolved
) -> _StreamOrder:
    """Choose the order of the parts, and the temporary files that sequential ends need for it.

    header : VolumeHeader   of the output
    """
    in_axes, out_axes = reader.header.axes, header.axes
    writes_stream = is_stream(job.target, job.compression)
    # with wrap the first output planes need the last input planes
    spooled = [isinstance(one, _ResolvedStage) and _wraps(one) for one in chain.stages]
    together = reader.channels_together or _mixes_channels(chain)
    spooled[0] |= together and in_axes.canonical_shape[4] > 1 and not in_axes.channels_within_plane
    spooled[0] &= reader.sequential
    if together:
        count = in_axes.canonical_shape[0]
        parts = [(n, slice(0, chain.last.problem.in_channels)) for n in range(count)]
        scattered = out_axes.canonical_shape[4] > 1 and not out_axes.channels_within_plane
        return _StreamOrder(parts, spooled, writes_stream and scattered)
    read_order = list(parts_in_storage_order(in_axes, channels_together=False))
    if not writes_stream:
        return _StreamOrder(read_order, spooled, False)
    write_order = list(parts_in_storage_order(out_axes, channels_together=False))
    spooled[0] |= reader.sequential and read_order != write_order
    return _StreamOrder(write_order, spooled, False)


def _wraps(stage: _ResolvedStage) -> bool:
    """Whether the first output planes need the last input planes."""
    problem = stage.resolved.problem
    pads = problem.pad_before[0] > 0 or problem.pad_after[0] > 0
    return problem.boundary.mode == "wrap" and pads


def _mixes_channels(chain: _Resolved) -> bool:
    """Whether all channels of a volume are computed together.

    Layers mix channels, banks make several of one, stacks compute them together, and activations
    along an axis (softmax) need all of them.
    """
    kernel = chain.convolutions[0].resolved.kernel
    needs_all = any(activation.kind != "voxel" for activation in chain.last.activations)
    return kernel.is_layer or kernel.is_bank or len(chain.stages) > 1 or needs_all


def describe_shape(axes: Axes) -> str:
    """Letters and sizes of axes, for messages.

    >>> describe_shape(Axes("zyx", (4, 5, 6)))
    'zyx 4x5x6'
    """
    return f"{axes.letters} {'x'.join(map(str, axes.shape))}"

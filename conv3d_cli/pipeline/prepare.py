"""Everything about a job that can be known without its voxels.

`prepare_job` opens the input, reads the kernels, and settles problems, plans, the output's header, and the slab depth (or the
boxes) under the memory ceiling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conv3d_cli.convolution.assemble import ResolvedConvolution, assemble, resolve_convolution
from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.errors import ShapeError
from conv3d_cli.formats import (
    is_stream,
    open_volume,
    output_access,
    output_bytes,
    output_format,
)
from conv3d_cli.formats.base import random_access
from conv3d_cli.layer import get_activation, get_regularizer
from conv3d_cli.model.grid import Grid, grid_after
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING
from conv3d_cli.model.spec import ConvProblem, VoxelTransform
from conv3d_cli.model.volume import Axes, VolumeHeader, VolumeReader, parts_in_storage_order
from conv3d_cli.pipeline.blocking import Blocking, Boxes, choose_blocking
from conv3d_cli.pipeline.kernels import resolve_kernel
from conv3d_cli.pipeline.memory import (
    UNLIMITED,
    MemoryUse,
    SlabJob,
    check_planning,
    reading_kernels,
    weight_memory,
)
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.stream import StreamPlan
from conv3d_cli.system.machine import thread_count

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask
    from conv3d_cli.engine import Plan
    from conv3d_cli.pipeline.boxes.stream import BoxJob


@dataclass
class PreparedStage:
    """A stage with everything known but the voxels.

    problem : ConvProblem       of the whole volume
    losses : dict               penalties of the weights, by name ("kernel", "bias"), in Keras' sense
    """

    stage: Stage
    kernel: Kernel
    problem: ConvProblem
    convolution: Convolution
    losses: dict[str, float]

    @property
    def plan(self) -> Plan:
        """The engine's plan."""
        return self.convolution.plan


@dataclass
class PreparedJob:
    """A job with everything known but the voxels; `reader` is open, so use it within `prepare_job`'s context.

    header : VolumeHeader       of the output
    boxes : Boxes or None       how it is cut where whole planes do not fit; None: in slabs of whole planes
    spool_input : list of bool  for each stage, whether its input waits in a temporary file
    memory_use : MemoryUse      what it holds at its peak
    mask : Mask or None         its reader is open, too
    """

    job: Job
    reader: VolumeReader
    stages: list[PreparedStage]
    header: VolumeHeader
    stream_plan: StreamPlan
    boxes: Boxes | None
    spool_input: list[bool]
    spool_output: bool
    memory_use: MemoryUse
    mask: Mask | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """The predicted peak of the whole process in bytes."""
        return self.memory_use.total


@contextmanager
def prepare_job(job: Job) -> Iterator[PreparedJob]:
    """Settle everything but the voxels. Errors name the input.

    Raises: FormatError, ShapeError, SpecError, MemoryLimitError, ...
    """
    with ExitStack() as stack:
        reader = stack.enter_context(
            open_volume(job.source, axes=job.axes, channels_first=job.channels_first)
        )
        with naming(reader):
            path, mask = job.missing.mask, None
            if path is not None:
                mask = stack.enter_context(open_mask(path, reader.header, job.missing.labels))
            prepared = _prepare(job, reader, mask)
        yield prepared


@contextmanager
def naming(reader: VolumeReader) -> Iterator[None]:
    """Errors of what does not fit name the volume."""
    try:
        yield
    except ShapeError as error:
        raise ShapeError(
            f"{error} (volume {reader.path}, {describe_shape(reader.header.axes)})"
        ) from error


@contextmanager
def open_mask(path: str, header: VolumeHeader, labels: bool = False) -> Iterator[Mask]:
    """The mask in a file, open, checked against the volume that it is for. Raises: FormatError, ShapeError."""
    from conv3d_cli.convolution.masks import check_mask

    with random_access(open_volume(path)) as reader:
        yield check_mask(reader, header, labels)


class _Stage(NamedTuple):
    """A stage whose sizes are known, and the penalties of its weights."""

    stage: Stage
    resolved: ResolvedConvolution
    losses: dict[str, float]


class _Order(NamedTuple):
    """In which order a volume is streamed: see `_stream_order`."""

    parts: list[tuple[int, slice]]
    spool_input: list[bool]
    spool_output: bool


def _prepare(job: Job, reader: VolumeReader, mask: Mask | None) -> PreparedJob:
    notes = list(reader.notes)
    with reading_kernels(_ceiling(job)):
        chain = _resolve_stages(job, reader.header, notes)
    header = _output_header(job, reader.header, chain)
    order = _stream_order(job, reader, header, chain)
    if order.spool_output:
        notes.append(
            "the output waits in a temporary file last: its stream cannot be written in the order computed"
        )
    stages, planning = _assemble_stages(job, chain, order, mask)
    blocking = _choose_blocking(job, reader, stages, header, order)
    # what boxes need is read and computed wherever it lies
    spool_input = order.spool_input if blocking.boxes is None else [False] * len(stages)
    if any(spool_input):
        notes.append(
            "the input waits in a temporary file first: its stream cannot be read in the order needed"
        )
    stream_plan = StreamPlan(stages[-1].convolution, order.parts, blocking.depth)
    return PreparedJob(
        job, reader, stages, header, stream_plan, blocking.boxes, spool_input, order.spool_output,
        max(blocking.memory, *planning, key=lambda use: use.total), mask, notes,
    )  # fmt: skip


def _resolve_stages(job: Job, header: VolumeHeader, notes: list[str]) -> list[_Stage]:
    """Kernels, problems and activations of all stages; each reads the output of the one before."""
    chain: list[_Stage] = []
    shape, grid = header.shape, header.grid
    for number, stage in enumerate(job.stages):
        try:
            kernel, losses = resolve_kernel(stage, shape, grid, notes, number)
            resolved = resolve_convolution(
                stage.spec(kernel.is_layer),
                kernel,
                shape,
                activations=[get_activation(identifier) for identifier in stage.activations],
                channels_first=job.channels_first,
                magnitude=stage.magnitude,
                missing=job.missing if number == 0 else NOTHING,
            )
        except ShapeError as error:
            where = f"layer {stage.name or number + 1}: " if len(job.stages) > 1 else ""
            raise ShapeError(f"{where}{error}") from error
        notes += [*resolved.notes, *stage.notes]
        chain.append(_Stage(stage, resolved, losses))
        problem = resolved.problem
        shape, grid = (
            (shape[0], *problem.out_size, resolved.channels_out),
            grid_after(grid, problem),
        )
    return chain


def _output_header(job: Job, source: VolumeHeader, chain: list[_Stage]) -> VolumeHeader:
    """The header of what is written. Raises: ShapeError for a scale that its voxels cannot have."""
    grid, transform = source.grid, VoxelTransform()
    for _, resolved, _ in chain:
        grid = grid_after(grid, resolved.problem)
        transform = transform.then(resolved.problem.voxel_transform)
    last = chain[-1].resolved
    shape = (source.shape[0], *last.problem.out_size, last.channels_out)
    header = output_header(job.target, source, shape, grid, transform, np.dtype(job.dtype))
    if last.kernel.is_bank and not last.magnitude:
        header = replace(header, components=last.kernel.filter_names)
    if job.history:
        header = replace(header, history=(*source.history, job.history))
    if job.scale == "auto" and "s" in header.axes.letters:
        raise ShapeError(
            "--scale auto is not for RGB voxels, whose readers know no slope; leave it out"
        )
    return header


def _assemble_stages(
    job: Job, chain: list[_Stage], order: _Order, mask: Mask | None
) -> tuple[list[PreparedStage], list[MemoryUse]]:
    """All stages made ready, and what it took to look at their weights.

    Only the last one may compute channels one by one; those before it give whole volumes.
    Raises: MemoryLimitError for more weights than the ceiling allows.
    """
    stages, planning = [], []
    kernels: list[Kernel] = []
    for position, (stage, resolved, losses) in enumerate(chain):
        channels = resolved.problem.in_channels
        if position == len(chain) - 1 and order.parts:
            every = order.parts[0][1]
            channels = every.stop - every.start
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
            mask=mask,
            several_parts=len(order.parts) > 1,
            reports_coverage=job.needs_coverage,
        )
        stages.append(PreparedStage(stage, resolved.kernel, resolved.problem, convolution, losses))
    return stages, planning


def _choose_blocking(
    job: Job, reader: VolumeReader, stages: list[PreparedStage], header: VolumeHeader, order: _Order
) -> Blocking:
    """Slabs, or boxes, that fit under the ceiling of memory. Raises: MemoryLimitError."""
    convolutions = [stage.convolution for stage in stages]
    channels = _channels_written(convolutions[-1], order, header)
    in_channels = convolutions[0].problem.in_channels
    given = [stage.stage.kernel for stage in stages if isinstance(stage.stage.kernel, Kernel)]
    weights = weight_memory([*given, *(stage.kernel for stage in stages)], convolutions)
    slab_job = SlabJob(
        convolutions,
        reader.header.dtype,
        np.dtype(np.float32) if job.scale == "auto" else header.dtype,
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
            compression=job.compression,
        ),
    )
    return choose_blocking(
        slab_job, _ceiling(job), lambda: _box_job(job, reader, stages, header, channels, weights)
    )


def _channels_written(convolution: Convolution, order: _Order, header: VolumeHeader) -> int:
    """Channels that are written of a part."""
    if not order.parts:
        return header.shape[4]
    stored = convolution.stored(order.parts[0][1], header.shape[4])
    return int(stored.stop - stored.start)


def _ceiling(job: Job) -> int | None:
    return UNLIMITED if job.on_cluster else job.max_memory


def _box_job(
    job: Job,
    reader: VolumeReader,
    stages: list[PreparedStage],
    out_header: VolumeHeader,
    channels: int,
    weights: dict[str, int],
) -> BoxJob | None:
    """The job as one that is done box by box; None if it cannot be: both ends must give and take boxes, nothing is written
    beside the output, no convolution but the last may look at more than its voxels, and penalties are summed where each
    voxel is computed once."""
    from conv3d_cli.pipeline.boxes.stream import BoxJob

    reading = reader.box_access()
    writing = output_access(
        job.target, out_header, chunks=job.chunks, levels=job.levels, compression=job.compression
    )
    convolutions = [stage.convolution for stage in stages]
    along_width = job.channels_first and any(
        a.kind == "axis" for c in convolutions[:-1] for a in c.activations
    )
    if job.beside or not all(convolution.takes_boxes for convolution in convolutions):
        return None
    if (
        reading is None
        or writing is None
        or along_width
        or any(c.activity is not None for c in convolutions[:-1])
    ):
        return None
    return BoxJob(convolutions, reader.header, out_header, reading, writing, channels, weights)


def output_header(
    target: str,
    source: VolumeHeader,
    shape: tuple[int, ...],
    grid: Grid,
    transform: VoxelTransform,
    dtype: np.dtype[Any],
) -> VolumeHeader:
    """The header of the output: axes in its format's order, sizes (N, D, H, W, C), the grid after the convolutions."""
    letters = source.axes.letters
    channels = shape[4]
    sizes = dict(zip("zyx", shape[1:4], strict=True))
    if channels != source.shape[4]:
        # one channel axis; samples of a pixel (s) stay samples while their number stays
        letters = letters.replace("s", "" if "c" in letters else "c")
    if len([a for a in letters if a in "cs"]) < 2:
        sizes[next((a for a in letters if a in "cs"), "c")] = channels
    if "z" not in letters and shape[1] > 1:
        letters = letters.replace("y", "zy")
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
    job: Job, reader: VolumeReader, header: VolumeHeader, chain: list[_Stage]
) -> _Order:
    """Parts in the order they are streamed; for each stage whether its input waits in a temporary file; and the output.

    header : VolumeHeader   of the output
    """
    in_axes, out_axes = reader.header.axes, header.axes
    problems = [resolved.problem for _, resolved, _ in chain]
    writes_stream = is_stream(job.target, job.compression)
    # planes of the far end stand beside those of the near one
    spooled = [
        p.boundary.mode == "wrap" and (p.pad_before[0] > 0 or p.pad_after[0] > 0) for p in problems
    ]
    together = reader.channels_together or _mixes_channels(chain)
    spooled[0] |= together and in_axes.canonical_shape[4] > 1 and not in_axes.channels_within_plane
    spooled[0] &= reader.sequential
    if together:
        count = in_axes.canonical_shape[0]
        parts = [(n, slice(0, problems[-1].in_channels)) for n in range(count)]
        scattered = out_axes.canonical_shape[4] > 1 and not out_axes.channels_within_plane
        return _Order(parts, spooled, writes_stream and scattered)
    readable = list(parts_in_storage_order(in_axes, channels_together=False))
    if not writes_stream:
        return _Order(readable, spooled, False)
    writable = list(parts_in_storage_order(out_axes, channels_together=False))
    spooled[0] |= reader.sequential and readable != writable
    return _Order(writable, spooled, False)


def _mixes_channels(chain: list[_Stage]) -> bool:
    """Whether all channels of a volume are computed together: layers mix them, banks make several of one, stacks compute
    them together, and a softmax looks at all of them."""
    kernel = chain[0].resolved.kernel
    looks_at_all = any(activation.kind != "voxel" for activation in chain[-1].resolved.activations)
    return kernel.is_layer or kernel.is_bank or len(chain) > 1 or looks_at_all


def describe_shape(axes: Axes) -> str:
    """Axes and sizes for messages.

    >>> describe_shape(Axes("zyx", (4, 5, 6)))
    'zyx 4x5x6'
    """
    return f"{axes.letters} {'x'.join(map(str, axes.shape))}"

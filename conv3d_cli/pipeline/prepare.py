"""Everything about a job that can be known without its voxels.

`prepare_job` opens the input, reads the kernels, and settles problems, plans, the output's header, and the slab depth (or the
boxes) under the memory ceiling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.convolution.prepared import Convolution, channels_after
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
from conv3d_cli.model.kernel import Kernel, require_held
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import Boundary, ConvProblem, ConvSpec, VoxelTransform
from conv3d_cli.model.volume import Axes, VolumeHeader, VolumeReader, parts_in_storage_order
from conv3d_cli.pipeline.kernels import resolve_kernel
from conv3d_cli.pipeline.memory import PROCESS_BYTES, UNLIMITED, Boxes, Held, cut_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.stream import Passage
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
    spec: ConvSpec
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
    memory : int                predicted peak of the whole process in bytes
    mask : Mask or None         its reader is open, too
    """

    job: Job
    reader: VolumeReader
    stages: list[PreparedStage]
    header: VolumeHeader
    passage: Passage
    boxes: Boxes | None
    spool_input: list[bool]
    spool_output: bool
    memory: int
    mask: Mask | None = None
    notes: list[str] = field(default_factory=list)


@contextmanager
def prepare_job(job: Job) -> Iterator[PreparedJob]:
    """Settle everything but the voxels. Errors name the input.

    Raises: FormatError, ShapeError, SpecError, MemoryLimitError, ...
    """
    with ExitStack() as stack:
        reader = stack.enter_context(open_volume(job.source, axes=job.axes, channels_first=job.channels_first))
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
        raise ShapeError(f"{error} (volume {reader.path}, {describe_shape(reader.header.axes)})") from error


@contextmanager
def open_mask(path: str, header: VolumeHeader, labels: bool = False) -> Iterator[Mask]:
    """The mask in a file, open, checked against the volume that it is for. Raises: FormatError, ShapeError."""
    from conv3d_cli.convolution.masks import check_mask

    with random_access(open_volume(path)) as reader:
        yield check_mask(reader, header, labels)


def _prepare(job: Job, reader: VolumeReader, mask: Mask | None) -> PreparedJob:
    header = reader.header
    notes = list(reader.notes)
    kernels, shape, grid, transform = [], header.shape, header.grid, VoxelTransform()
    resolved = []
    for number, stage in enumerate(job.stages):
        try:
            kernel, losses = resolve_kernel(stage, shape, grid, notes, number)
            spec = stage.spec(kernel.is_layer)
            missing = job.missing if number == 0 else NOTHING
            if missing.divides(Boundary.parse(spec.boundary)):
                kernel = _mean_kernel(kernel, notes)
            problem = spec.resolve(shape, kernel.weights.shape, kernel.centre)
            filters = problem.filters // (kernel.filters_per_channel if stage.magnitude else 1)
            functions = [get_activation(identifier) for identifier in stage.activations]
            channels = channels_after(filters, functions, job.channels_first)
        except ShapeError as error:
            where = f"layer {stage.name or number + 1}: " if len(job.stages) > 1 else ""
            raise ShapeError(f"{where}{error}") from error
        kernels.append(kernel)
        notes += stage.notes
        resolved.append((stage, kernel, losses, spec, problem, functions))
        shape, grid = (shape[0], *problem.out_size, channels), grid_after(grid, problem)
        transform = transform.then(problem.voxel_transform)

    out_header = output_header(job.target, header, shape, grid, transform, np.dtype(job.dtype))
    if kernels[-1].is_bank and not job.stages[-1].magnitude:
        out_header = replace(out_header, components=kernels[-1].filter_names)
    if job.history:
        out_header = replace(out_header, history=(*header.history, job.history))
    # layers mix channels, banks make several of one, stacks compute them together, and a softmax looks at all of them
    together = (
        kernels[0].is_layer
        or kernels[0].is_bank
        or len(resolved) > 1
        or any(a.kind != "voxel" for a in resolved[-1][-1])
    )
    together |= reader.channels_together
    if job.scale == "auto" and "s" in out_header.axes.letters:
        raise ShapeError("--scale auto is not for RGB voxels, whose readers know no slope; leave it out")
    parts, spool_input, spool_output = _stream_order(
        reader, out_header, together, [problem for *_, problem, _ in resolved], is_stream(job.target, job.compression)
    )
    if spool_output:
        notes.append("the output waits in a temporary file last: its stream cannot be written in the order computed")

    stages = []
    for position, (stage, kernel, losses, spec, problem, functions) in enumerate(resolved):
        # Only the last stage streams a filter's channels one by one; those before it compute them together.
        last = position == len(resolved) - 1
        channels = parts[0][1].stop - parts[0][1].start if last and parts else problem.in_channels
        convolution = Convolution(
            plan_part(spec, kernel, problem, channels, job.precision, thread_count(job.threads), job.algorithm),
            kernel.is_layer,
            kernel.bias_for(problem.filters),
            functions,
            job.channels_first,
            get_regularizer(stage.activity_regularizer),
            per_channel=kernel.filters_per_channel,
            magnitude=stage.magnitude,
        )
        missing = job.missing if position == 0 else NOTHING
        if missing.concerns(problem.boundary):
            convolution = _normalized(convolution, missing, kernel, mask, len(parts) > 1, job)
        stages.append(PreparedStage(stage, kernel, spec, problem, convolution, losses))
    sequential = (reader.sequential or len(stages) > 1) and not spool_input[-1]
    plans = [s.plan for s in stages]
    one_by_one = not (kernels[-1].is_layer or kernels[-1].is_bank) and len(stages) == 1
    written = channels if one_by_one else out_header.shape[4]
    held = Held(
        lambda planes: (
            reader.held_bytes(planes, plans[0].problem.in_channels)
            + sum(s.convolution.held_bytes(planes) for s in stages)
        ),
        output_bytes(
            job.target, out_header, written, chunks=job.chunks, levels=job.levels, compression=job.compression
        ),
    )
    ceiling = UNLIMITED if job.on_cluster else job.max_memory
    cut = cut_job(
        plans,
        header.dtype,
        np.dtype(np.float32) if job.scale == "auto" else out_header.dtype,
        sequential,
        ceiling,
        held,
        lambda: _box_job(job, reader, stages, out_header, parts),
    )
    if cut.boxes is not None:
        spool_input = [False] * len(stages)  # what boxes need is read and computed wherever it lies
    if any(spool_input):
        notes.append("the input waits in a temporary file first: its stream cannot be read in the order needed")
    passage = Passage(stages[-1].convolution, parts, cut.depth)
    return PreparedJob(
        job, reader, stages, out_header, passage, cut.boxes, spool_input, spool_output, cut.memory, mask, notes
    )


def _box_job(
    job: Job,
    reader: VolumeReader,
    stages: list[PreparedStage],
    out_header: VolumeHeader,
    parts: list[tuple[int, slice]],
) -> BoxJob | None:
    """The job as one that is done box by box; None if it cannot be: both ends must give and take boxes, nothing is written
    beside the output, no convolution but the last may look at more than its voxels, and penalties are summed where each
    voxel is computed once."""
    from conv3d_cli.pipeline.boxes.stream import BoxJob

    reading = reader.box_access()
    writing = output_access(job.target, out_header, chunks=job.chunks, levels=job.levels, compression=job.compression)
    convolutions = [stage.convolution for stage in stages]
    along_width = job.channels_first and any(a.kind == "axis" for c in convolutions[:-1] for a in c.activations)
    if job.beside or not all(convolution.takes_boxes for convolution in convolutions):
        return None
    if reading is None or writing is None or along_width or any(c.activity is not None for c in convolutions[:-1]):
        return None
    stored = convolutions[-1].stored(parts[0][1], out_header.shape[4])
    base = PROCESS_BYTES + sum(c.plan.scratch_bytes for c in convolutions)
    return BoxJob(convolutions, reader.header, out_header, reading, writing, stored.stop - stored.start, base)


def _mean_kernel(kernel: Kernel, notes: list[str]) -> Kernel:
    from conv3d_cli.convolution.masked import mean_kernel

    if abs(kernel.sum - 1) > 1e-6 and kernel.sum > 0:
        notes.append(f"the result is a mean: the weights of {kernel.name} are divided by their sum, {kernel.sum:.6g}")
    return mean_kernel(kernel)


def _normalized(
    convolution: Convolution, missing: Missing, kernel: Kernel, mask: Mask | None, many: bool, job: Job
) -> Convolution:
    """The convolution with what `Missing` asks for.

    many : bool     whether it runs over several parts, which may share their coverage
    """
    from conv3d_cli.convolution.masked import check_centre, masked_convolution

    check_centre(missing, convolution.problem, kernel)
    return masked_convolution(convolution, missing, kernel, mask, many, reports_coverage=job.needs_coverage)


def plan_part(
    spec: ConvSpec, kernel: Kernel, problem: ConvProblem, channels: int, precision: str, threads: int, algorithm: str
) -> Plan:
    """The engine's plan for one part of a volume (they are all alike): `channels` of it."""
    from conv3d_cli.engine import make_plan  # Numba is imported late: `info` and errors do without

    real = np.dtype(precision)
    kernel.check_range(real)
    require_held(problem.boundary.value, real, f"boundary {problem.boundary.mode}={problem.boundary.value:g} is")
    # Where a filter's channels are streamed one by one, their number is not the whole volume's.
    part_spec = spec if kernel.is_layer else replace(spec, filters=None)
    part = part_spec.resolve((1, *problem.in_size, channels), kernel.weights.shape, kernel.centre)
    return make_plan(part, kernel.for_channels(channels), dtype=precision, threads=threads, algorithm=algorithm)


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
    reader: VolumeReader,
    out_header: VolumeHeader,
    together: bool,
    problems: list[ConvProblem],
    writes_stream: bool,
) -> tuple[list[tuple[int, slice]], list[bool], bool]:
    """Parts in the order they are streamed; for each stage whether its input is spooled for that order; and the output.

    together : bool         all channels of a volume are one part
    writes_stream : bool    the output can only be written forward
    """
    in_axes, out_axes = reader.header.axes, out_header.axes
    # planes of the far end stand beside those of the near one
    spooled = [p.boundary.mode == "wrap" and (p.pad_before[0] > 0 or p.pad_after[0] > 0) for p in problems]
    spooled[0] |= together and in_axes.canonical_shape[4] > 1 and not in_axes.channels_within_plane
    spooled[0] &= reader.sequential
    if together:
        count = in_axes.canonical_shape[0]
        parts = [(n, slice(0, problems[-1].in_channels)) for n in range(count)]
        scattered = out_axes.canonical_shape[4] > 1 and not out_axes.channels_within_plane
        return parts, spooled, writes_stream and scattered
    readable = list(parts_in_storage_order(in_axes, channels_together=False))
    if not writes_stream:
        return readable, spooled, False
    writable = list(parts_in_storage_order(out_axes, channels_together=False))
    spooled[0] |= reader.sequential and readable != writable
    return writable, spooled, False


def describe_shape(axes: Axes) -> str:
    """Axes and sizes for messages.

    >>> describe_shape(Axes("zyx", (4, 5, 6)))
    'zyx 4x5x6'
    """
    return f"{axes.letters} {'x'.join(map(str, axes.shape))}"

"""The job: one volume through one convolution, from file to file, in slabs.

`prepare_job` opens the input, reads the kernel, and settles everything that can be known without voxels: the problem, the
plan, the output's header, the slab depth under the memory ceiling. `run_job` streams: a reader thread fetches the next
slab while the team computes this one and a writer thread stores the last. Memory depends on the slab, not on the file.
`conv3d()` on arrays runs the same loop with a reader and a writer over arrays.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.atomic import check_target
from conv3d_cli.errors import MemoryLimitError, OutputExistsError, ShapeError, SpecError
from conv3d_cli.formats import is_stream, open_volume, output_format
from conv3d_cli.formats.base import SpooledWriter, spool_reader
from conv3d_cli.kernels import read_kernel
from conv3d_cli.layer import activations
from conv3d_cli.machine import format_bytes, thread_count, usable_memory
from conv3d_cli.model.grid import grid_after
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import Boundary, ConvProblem, ConvSpec
from conv3d_cli.model.volume import Axes, VolumeHeader, VolumeReader, VolumeWriter, parts_in_storage_order
from conv3d_cli.slabs import SlabSource, cut_slabs, most_planes

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team

INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
OUTPUT_DTYPES = (*INTEGER_DTYPES, "float32", "float64")

SLAB_BYTES = 24 << 20  # input and output of a slab, unless the ceiling asks for less: beyond it nothing gets faster
LEAST_SLAB = 8  # planes, if memory allows: below it halos are packed over and over
PROCESS_BYTES = 190 << 20  # the interpreter with its libraries, before the first voxel
# Slabs held at once. Input: being computed, waiting, and for a stream what is being read and joined to the halo.
# Output: being computed, waiting, being written.
IN_FLIGHT_IN, IN_FLIGHT_STREAM, IN_FLIGHT_OUT = 2, 4, 3


@dataclass(frozen=True)
class Job:
    """What is asked for, as the command line and configs say it.

    source, target : str        paths; "-" is a .npy pipe
    kernel : str or Kernel      a built-in with parameters, a file, or a kernel
    padding, boundary           None: `same` and `symmetric` for a 3-D kernel (a filter), `valid` and `zeros` for a 5-D one
    bias : sequence of floats or None           None: the kernel's own, unless `use_bias` is False
    dtype : str                 of the output voxels; integers are rounded half to even and saturated
    precision : str             of the arithmetic, "float32" or "float64"
    max_memory : int or None    bytes for the whole process
    """

    source: str
    target: str
    kernel: str | Kernel
    padding: str | int | Sequence[object] | None = None
    boundary: str | Boundary | None = None
    strides: int | Sequence[int] = 1
    dilation_rate: int | Sequence[int] = 1
    groups: int = 1
    filters: int | None = None
    allow_strided_dilation: bool = False
    activation: str | None = None
    bias: Sequence[float] | None = None
    use_bias: bool = True
    flip: bool = False
    normalize: bool = False
    axes: str | None = None
    data_format: str = "channels_last"
    dtype: str = "float32"
    precision: str = "float32"
    threads: int | None = None
    max_memory: int | None = None
    algorithm: str = "auto"
    overwrite: bool = False
    gz_level: int = 1

    def __post_init__(self) -> None:
        # Everything that no volume could make legal is refused here, before any file is touched.
        if self.dtype not in OUTPUT_DTYPES:
            raise SpecError(f"dtype must be one of {', '.join(OUTPUT_DTYPES)}, received '{self.dtype}'")
        if self.precision not in ("float32", "float64"):
            raise SpecError(f"precision must be float32 or float64, received '{self.precision}'")
        if self.data_format not in ("channels_last", "channels_first"):
            raise SpecError(f"data_format must be channels_last or channels_first, received '{self.data_format}'")
        activation = activations.get(self.activation)
        if activation.kind != "voxel":
            raise SpecError(f"activation '{activation.name}' needs a whole axis and cannot be computed slab by slab")
        thread_count(self.threads)
        self.spec(is_layer=False)

    def spec(self, is_layer: bool) -> ConvSpec:
        """The specification, with the defaults of a layer or a filter."""
        padding, boundary = ("valid", "zeros") if is_layer else ("same", "symmetric")
        return ConvSpec(
            strides=self.strides,
            padding=padding if self.padding is None else self.padding,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            filters=self.filters,
            boundary=boundary if self.boundary is None else self.boundary,
            allow_strided_dilation=self.allow_strided_dilation,
        )


@dataclass
class Passage:
    """How voxels move from a reader to a writer.

    plan : Plan                 of one part: all channels of a volume, or one where channels are streamed one by one
    parts : list                (n, input channels) in the order they are streamed
    slab_depth : int            output planes computed at once
    is_layer : bool             whether a part gives all filters, or (a 3-D kernel) its own channels
    bias : (filters,) or None
    activation : Activation     of kind "voxel"
    """

    plan: Plan
    parts: list[tuple[int, slice]]
    slab_depth: int
    is_layer: bool
    bias: NDArray[Any] | None
    activation: activations.Activation


@dataclass
class PreparedJob:
    """A job with everything known but the voxels; `reader` is open, so use it within `prepare_job`'s context.

    problem : ConvProblem       of the whole volume
    memory : int                predicted peak of the whole process in bytes
    """

    job: Job
    reader: VolumeReader
    kernel: Kernel
    spec: ConvSpec
    problem: ConvProblem
    header: VolumeHeader
    passage: Passage
    spool_input: bool
    spool_output: bool
    memory: int
    notes: list[str] = field(default_factory=list)


@dataclass
class JobReport:
    """What was done: voxels computed, how many an integer dtype could not hold, seconds by stage, notes."""

    source: str
    target: str
    voxels: int
    clipped: int
    seconds: float
    read_seconds: float
    compute_seconds: float
    write_seconds: float
    notes: list[str]


@contextmanager
def prepare_job(job: Job) -> Iterator[PreparedJob]:
    """Settle everything but the voxels. Errors name the input.

    Raises: FormatError, ShapeError, SpecError, MemoryLimitError, ...
    """
    with ExitStack() as stack:
        reader = stack.enter_context(
            open_volume(job.source, axes=job.axes, channels_first=job.data_format == "channels_first")
        )
        try:
            prepared = _prepare(job, reader)
        except ShapeError as error:
            raise ShapeError(f"{error} (volume {reader.path}, {describe_shape(reader.header.axes)})") from error
        yield prepared


def _prepare(job: Job, reader: VolumeReader) -> PreparedJob:
    header = reader.header
    kernel = resolve_kernel(job, header)
    spec = job.spec(kernel.is_layer)
    problem = spec.resolve(header.shape, kernel.weights.shape, kernel.centre)
    notes = list(reader.notes)

    out_header = output_header(job.target, header, problem, np.dtype(job.dtype))
    parts, spool_input, spool_output = _stream_order(reader, out_header, kernel, problem, job.target)
    if spool_input:
        notes.append("the input is unpacked to a temporary file first: its stream cannot be read in the order needed")
    if spool_output:
        notes.append(
            "the output is packed from a temporary file last: its stream cannot be written in the order computed"
        )

    plan = plan_part(spec, kernel, problem, parts, job.precision, thread_count(job.threads), job.algorithm)
    sequential = reader.sequential and not spool_input
    depth, memory = slab_depth(plan, header.dtype, np.dtype(job.dtype), sequential, job.max_memory)
    passage = Passage(
        plan, parts, depth, kernel.is_layer, kernel.bias_for(problem.filters), activations.get(job.activation)
    )
    return PreparedJob(
        job, reader, kernel, spec, problem, out_header, passage, spool_input, spool_output, memory, notes
    )


def plan_part(
    spec: ConvSpec,
    kernel: Kernel,
    problem: ConvProblem,
    parts: list[tuple[int, slice]],
    precision: str,
    threads: int,
    algorithm: str,
) -> Plan:
    """The engine's plan for one part of a volume (they are all alike)."""
    from conv3d_cli.engine import make_plan  # Numba is imported late: `info` and errors do without

    channels = parts[0][1].stop - parts[0][1].start if parts else problem.in_channels
    # Where a filter's channels are streamed one by one, their number is not the whole volume's.
    part_spec = spec if kernel.is_layer else replace(spec, filters=None)
    part = part_spec.resolve((1, *problem.in_size, channels), kernel.weights.shape, kernel.centre)
    return make_plan(part, kernel.for_channels(channels), dtype=precision, threads=threads, algorithm=algorithm)


def resolve_kernel(job: Job, header: VolumeHeader) -> Kernel:
    """The job's kernel with its options applied: flip, normalize, bias."""
    kernel = job.kernel if isinstance(job.kernel, Kernel) else read_kernel(job.kernel, header.grid)
    if job.flip:
        kernel = kernel.flipped()
    if job.normalize:
        kernel = kernel.normalized()
    if not job.use_bias:
        return replace(kernel, bias=None)
    return kernel if job.bias is None else replace(kernel, bias=np.asarray(job.bias, np.float64))


def output_header(target: str, source: VolumeHeader, problem: ConvProblem, dtype: np.dtype[Any]) -> VolumeHeader:
    """The header of the output: axes in its format's order, new sizes, the grid after the convolution."""
    letters = source.axes.letters
    sizes = dict(zip("zyx", problem.out_size, strict=True))
    if problem.filters != problem.in_channels or len(source.axes.channel_letters) < 2:
        # one channel axis; samples of a pixel (s) stay samples while their number stays
        if problem.filters != problem.in_channels:
            letters = letters.replace("s", "" if "c" in letters else "c")
        channel = next((a for a in letters if a in "cs"), "c")
        sizes[channel] = problem.filters
    if "z" not in letters and problem.out_size[0] > 1:
        letters = letters.replace("y", "zy")
    letters = output_format(target).output_letters(letters, problem.filters, dtype)
    channel_letters = [a for a in letters if a in "cs"]
    if len(channel_letters) == 1:
        sizes[channel_letters[0]] = problem.filters
    return replace(
        source,
        axes=source.axes.renamed(letters, sizes),
        dtype=dtype,
        grid=grid_after(source.grid, problem),
        scale=(1.0, 0.0),
        transform=problem.voxel_transform,
    )


def _stream_order(
    reader: VolumeReader, out_header: VolumeHeader, kernel: Kernel, problem: ConvProblem, target: str
) -> tuple[list[tuple[int, slice]], bool, bool]:
    """Parts in the order they are streamed, and whether input or output must be spooled for that order."""
    in_axes, out_axes = reader.header.axes, out_header.axes
    writes_stream = is_stream(target)
    # planes of the far end stand beside those of the near one
    wraps = problem.boundary.mode == "wrap" and (problem.pad_before[0] > 0 or problem.pad_after[0] > 0)
    backwards = wraps or (kernel.is_layer and in_axes.canonical_shape[4] > 1 and not in_axes.channels_within_plane)
    if kernel.is_layer:
        parts = list(parts_in_storage_order(in_axes, channels_together=True))
        scattered = out_axes.canonical_shape[4] > 1 and not out_axes.channels_within_plane
        return parts, reader.sequential and backwards, writes_stream and scattered
    readable = list(parts_in_storage_order(in_axes, channels_together=False))
    if not writes_stream:
        return readable, reader.sequential and backwards, False
    writable = list(parts_in_storage_order(out_axes, channels_together=False))
    return writable, reader.sequential and (backwards or readable != writable), False


def slab_depth(
    plan: Plan,
    in_dtype: np.dtype[Any],
    out_dtype: np.dtype[Any],
    sequential: bool,
    max_memory: int | None,
) -> tuple[int, int]:
    """Output planes computed at once, and the peak memory of the process that follows: (planes, bytes).

    Raises: MemoryLimitError if not even one plane fits; the message says what would.
    """
    problem = plan.problem
    in_plane = math.prod(problem.in_size[1:]) * problem.in_channels * in_dtype.itemsize
    out_plane = math.prod(problem.out_size[1:]) * problem.filters * out_dtype.itemsize
    limit = usable_memory() if max_memory is None else max_memory

    def peak(depth: int) -> int:
        # The halo is largest at the first slab with a full set of planes; two slabs show it.
        slabs = cut_slabs(problem, depth)
        planes = most_planes(problem, slabs, sequential)
        held = IN_FLIGHT_STREAM if sequential else IN_FLIGHT_IN
        data = held * planes * in_plane + IN_FLIGHT_OUT * min(depth, problem.out_size[0]) * out_plane
        return PROCESS_BYTES + plan.scratch_bytes + data

    wish = SLAB_BYTES // max(1, problem.strides[0] * in_plane + out_plane)
    depth = min(max(wish, LEAST_SLAB), problem.out_size[0])
    while depth > 1 and peak(depth) > limit:
        depth = -(-depth // 2)
    if peak(depth) > limit:
        raise MemoryLimitError(
            f"one plane at a time needs {format_bytes(peak(1))} of memory for the whole process, "
            f"the ceiling is {format_bytes(limit)}; pass --max-memory {-(-peak(1) >> 20)}M or more"
        )
    return depth, peak(depth)


def describe_shape(axes: Axes) -> str:
    """Axes and sizes for messages.

    >>> describe_shape(Axes("zyx", (4, 5, 6)))
    'zyx 4x5x6'
    """
    return f"{axes.letters} {'x'.join(map(str, axes.shape))}"


def check_paths(job: Job) -> None:
    """Refuse an output that exists or is the input, before any work.

    Raises: OutputExistsError, WriteError, SpecError for an unknown suffix.
    """
    output_format(job.target)
    if job.target == "-":
        return
    if (
        os.path.exists(job.source)
        and os.path.exists(job.target)
        and os.path.samefile(job.source, job.target)
        and not job.overwrite
    ):
        raise OutputExistsError(
            f"cannot write {job.target}: it is the input; name another file, or pass --overwrite to replace it at the end"
        )
    check_target(job.target, job.overwrite)


def run_job(job: Job, progress: Callable[[int, int], None] | None = None, team: Team | None = None) -> JobReport:
    """Convolve one volume, from file to file.

    progress : callable     told (voxels finished, voxels in all), from any thread
    The output appears complete or not at all. Raises: any Conv3DError; KeyboardInterrupt leaves nothing behind.
    """
    started = time.perf_counter()
    check_paths(job)
    with prepare_job(job) as prepared:
        reader = prepared.reader
        if prepared.spool_input:
            reader = spool_reader(reader)
        with reader:
            create = output_format(job.target).create
            options = {"overwrite": job.overwrite, "gz_level": job.gz_level, "threads": job.threads}
            writer = create(job.target, prepared.header, **options)
            if prepared.spool_output:
                writer = SpooledWriter(writer)
            with writer:
                stages = stream(prepared.passage, reader, writer, progress, team)
                reader.finish()
                finish = time.perf_counter()
                writer.commit()
                stages.write += time.perf_counter() - finish
        notes = [*prepared.notes, *writer.notes]
        voxels = math.prod(prepared.problem.out_shape)
    if stages.clipped:
        share = 100 * stages.clipped / voxels
        notes.append(f"{stages.clipped} voxels ({share:.2g} %) did not fit {job.dtype} and were clipped")
    seconds = time.perf_counter() - started
    return JobReport(
        job.source, job.target, voxels, stages.clipped, seconds, stages.read, stages.compute, stages.write, notes
    )


@dataclass
class StageTimes:
    """Seconds in each stage (they overlap) and voxels clipped."""

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    clipped: int = 0


def stream(
    passage: Passage,
    reader: VolumeReader,
    writer: VolumeWriter,
    progress: Callable[[int, int], None] | None = None,
    team: Team | None = None,
) -> StageTimes:
    """Move every slab from reader to writer through the engine: one read ahead, two writes behind."""
    from conv3d_cli.engine import Team

    plan = passage.plan
    slabs = cut_slabs(plan.problem, passage.slab_depth)
    activation = None if passage.activation.is_linear else passage.activation.in_place
    bias = None if passage.bias is None else passage.bias.astype(plan.dtype)
    times = StageTimes()
    total = math.prod(writer.header.shape)
    done = 0
    lock = threading.Lock()

    def advance(voxels: int) -> None:
        nonlocal done
        if progress is not None:
            with lock:
                done += voxels
            progress(done, total)

    sources = [SlabSource(reader, n, channels, slabs) for n, channels in passage.parts]
    steps = [(part, index) for part in range(len(sources)) for index in range(len(slabs))]

    def read(step: int) -> Any:
        started = time.perf_counter()
        part, index = steps[step]
        slab = sources[part].read(index)
        times.read += time.perf_counter() - started
        return slab

    def write(n: int, depth_start: int, channel_start: int, block: NDArray[Any]) -> None:
        started = time.perf_counter()
        writer.write(n, depth_start, channel_start, block)
        times.write += time.perf_counter() - started

    with ExitStack() as stack:
        team = team or stack.enter_context(Team(plan.threads))
        reading = stack.enter_context(_one_thread("conv3d-read"))
        writing = stack.enter_context(_one_thread("conv3d-write"))
        written: deque[Future[None]] = deque()
        ahead = reading.submit(read, 0) if steps else None
        for step, (part, index) in enumerate(steps):
            assert ahead is not None
            slab = ahead.result()
            ahead = reading.submit(read, step + 1) if step + 1 < len(steps) else None
            n, channels = passage.parts[part]
            # a filter's output channels are its input channels; a layer's are all of them
            outputs = slice(0, plan.problem.filters) if passage.is_layer else channels
            depth = slice(slabs[index].start, slabs[index].stop)
            block = writer.block(n, depth, outputs)
            started = time.perf_counter()
            times.clipped += plan.convolve_slab(
                slab.source, block, slab.planes, team,
                scale=reader.header.scale,
                bias=None if bias is None else bias[outputs],
                activation=activation,
                progress=advance,
            )  # fmt: skip
            times.compute += time.perf_counter() - started
            sources[part].release(index)
            while len(written) > 1:
                written.popleft().result()
            written.append(writing.submit(write, n, depth.start, outputs.start, block))
        for future in written:
            future.result()
    return times


@contextmanager
def _one_thread(name: str) -> Iterator[ThreadPoolExecutor]:
    """A background thread for one stage. Leaving waits for what it does just now and drops the rest."""
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

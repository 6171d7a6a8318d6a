"""The job: one volume through one convolution or a stack of them, from file to file.

`prepare_job` opens the input, reads the kernels, and settles everything that can be known without voxels: problems, plans,
the output's header, the slab depth (or the boxes) under the memory ceiling. `run_job` streams (`stream.py`, `boxes/`). Memory
depends on the slab, not on the file.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.convolution.prepared import Convolution, channels_after
from conv3d_cli.errors import OutputExistsError, ShapeError, SpecError
from conv3d_cli.formats import (
    check_compression,
    check_output,
    create_volume,
    is_stream,
    lies_within,
    open_volume,
    output_access,
    output_bytes,
    output_format,
    replaced_part,
)
from conv3d_cli.formats.base import ScaledWriter, SpooledWriter, random_access, spool_reader
from conv3d_cli.kernels import read_kernel
from conv3d_cli.kernels.lengths import MAX_WEIGHTS
from conv3d_cli.layer import get_activation, get_constraint, get_initializer, get_regularizer
from conv3d_cli.model.grid import Grid, grid_after
from conv3d_cli.model.kernel import Kernel, require_held
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import Boundary, ConvProblem, ConvSpec, VoxelTransform, triple
from conv3d_cli.model.volume import Axes, VolumeHeader, VolumeReader, VolumeWriter, parts_in_storage_order
from conv3d_cli.pipeline.kernel_fit import Fitting, fit_kernel
from conv3d_cli.pipeline.memory import PROCESS_BYTES, UNLIMITED, Boxes, Held, cut_job
from conv3d_cli.pipeline.stream import LayerReader, Passage, stream
from conv3d_cli.system.atomic import together
from conv3d_cli.system.machine import thread_count

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask
    from conv3d_cli.engine import Plan
    from conv3d_cli.pipeline.boxes.stream import BoxJob
    from conv3d_cli.settings.presets import Applied

INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
OUTPUT_DTYPES = (*INTEGER_DTYPES, "float32", "float64")

DRAWN_KERNEL, DRAWN_BIAS = "glorot_uniform", "zeros"  # Keras' initializers where none is named


@dataclass(frozen=True)
class Stage:
    """One convolution of a job, as the command line and configs say it, in Keras' words.

    kernel : str, Kernel or None        a built-in with parameters, a file, a kernel; None: drawn by `kernel_initializer`
    kernel_size, filters                needed without a kernel; else checked against it
    padding, boundary                   None: same and symmetric for a 3-D kernel (a filter), valid and zeros for a 5-D one
    activations : tuple                 identifiers as `layer.activations.get` takes them, applied in order
    bias : sequence of floats or None   None: the kernel's own, unless `use_bias` is False
    magnitude : bool                    of a bank (`sobel:axis=xyz`): the root of the sum of its filters' squares
    seed : int or None                  of the initializers
    kernel_spacing, crop_kernel         what is done so that the kernel fits: see `Fitting`
    notes : tuple of str                what should be known of the kernel's file
    files : tuple of str                that weights and bias were read from already
    """

    kernel: str | Kernel | None = None
    name: str | None = None
    kernel_size: int | Sequence[int] | None = None
    filters: int | None = None
    strides: int | Sequence[int] = 1
    padding: str | int | Sequence[object] | None = None
    dilation_rate: int | Sequence[int] = 1
    groups: int = 1
    boundary: str | Boundary | None = None
    allow_strided_dilation: bool = False
    activations: tuple[Any, ...] = ()
    bias: Sequence[float] | None = None
    use_bias: bool = True
    flip: bool = False
    normalize: bool = False
    kernel_initializer: Any = DRAWN_KERNEL
    bias_initializer: Any = DRAWN_BIAS
    seed: int | None = None
    kernel_regularizer: Any = None
    bias_regularizer: Any = None
    activity_regularizer: Any = None
    kernel_constraint: Any = None
    bias_constraint: Any = None
    magnitude: bool = False
    kernel_spacing: str = "match"
    crop_kernel: float | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Everything that no volume could make legal is refused here, before any file is touched.
        if self.kernel is None and (self.filters is None or self.kernel_size is None):
            raise SpecError(
                "no kernel: pass -k, for example -k gaussian:fwhm=6mm, a config with a kernel (-c), "
                "or --filters and --kernel-size for a kernel drawn by --kernel-initializer"
            )
        if self.kernel_size is not None:
            triple(self.kernel_size, "kernel_size")
        self.spec(is_layer=False)
        _ = self.fitting
        for identifier in self.activations:
            activation = get_activation(identifier)
            if activation.kind == "tensor":
                raise SpecError(
                    f"activation '{activation.text}' needs the whole output at once, and a volume is streamed; "
                    "only the last axis (axis=-1) can be streamed"
                )
        for identifier, default in ((self.kernel_initializer, DRAWN_KERNEL), (self.bias_initializer, DRAWN_BIAS)):
            if identifier != default:
                get_initializer(identifier, seed=self.seed)
        for identifier in (self.kernel_regularizer, self.bias_regularizer):
            get_regularizer(identifier)
        activity = get_regularizer(self.activity_regularizer)
        if activity is not None and not activity.additive:
            raise SpecError(
                "the activity_regularizer must be a plain sum over voxels (l1, l2, l1l2) to be summed while streaming"
            )
        for identifier in (self.kernel_constraint, self.bias_constraint):
            get_constraint(identifier)

    @property
    def fitting(self) -> Fitting:
        """What is done so that the kernel fits. Raises: SpecError."""
        return Fitting(self.kernel_spacing, self.crop_kernel)

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


@dataclass(frozen=True)
class Job:
    """What is asked for: a volume, the convolutions it goes through, and how to run.

    source, target : str        paths; "-" is a .npy pipe
    stages : tuple of Stage     in order; one for a filter or a layer, several for a stack, run in one pass
    dtype : str                 of the output voxels; integers are rounded half to even and saturated
    precision : str             of the arithmetic, "float32" or "float64"
    max_memory : int or None    bytes for the whole process; None: see `machine.memory_ceiling`
    missing : Missing           what is done about voxels that are missing, or outside a mask
    scale : str                 of integer NIfTI outputs: "none", or "auto", a slope and an intercept that the values fill
    strict : bool               clipped voxels, means without voxels, and what the format cannot hold are errors
    coverage : str or None      where the part of the kernel's weight that each mean holds is written
    preset : Applied or None    the preset that set some of this, for reports
    history : str               a line that is added to the output's history (see `VolumeHeader`); "" adds none
    on_cluster : bool           workers hold boxes, not slabs: no ceiling for slabs of whole planes
    chunks, levels              of a Zarr output: voxels (D, H, W) of a chunk; levels of resolution
    compression : str           of a TIFF output: "none", "deflate" or "zstd"
    files : tuple of str        that these settings came from: configs, a manifest
    """

    source: str
    target: str
    stages: tuple[Stage, ...]
    axes: str | None = None
    data_format: str = "channels_last"
    dtype: str = "float32"
    precision: str = "float32"
    threads: int | None = None
    max_memory: int | None = None
    algorithm: str = "auto"
    overwrite: bool = False
    gz_level: int = 1
    chunks: int | Sequence[int] | None = None
    levels: int = 1
    compression: str = "none"
    missing: Missing = NOTHING
    coverage: str | None = None
    scale: str = "none"
    strict: bool = False
    preset: Applied | None = None
    history: str = ""
    on_cluster: bool = False
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.stages:
            raise SpecError("no layers: a stack needs at least one")
        if self.dtype not in OUTPUT_DTYPES:
            raise SpecError(f"dtype must be one of {', '.join(OUTPUT_DTYPES)}, received '{self.dtype}'")
        if self.precision not in ("float32", "float64"):
            raise SpecError(f"precision must be float32 or float64, received '{self.precision}'")
        if self.data_format not in ("channels_last", "channels_first"):
            raise SpecError(f"data_format must be channels_last or channels_first, received '{self.data_format}'")
        thread_count(self.threads)
        if self.chunks is not None:
            triple(self.chunks, "chunks")
        if self.levels < 1:
            raise SpecError(f"levels must be at least 1 (the full resolution alone), received {self.levels}")
        check_compression(self.compression)
        means = self.missing.weighs or self.missing.nan == "ignore"
        if means and len(self.stages) > 1:
            raise SpecError("a mask and missing voxels are for one convolution, and this is a stack of layers")
        boundaries = [stage.spec(is_layer=False).boundary for stage in self.stages]
        if self.coverage is not None and not self.missing.divides(Boundary.parse(boundaries[-1])):
            raise SpecError(
                "--coverage-out tells what means are made of: pass --mask, --nan ignore, --missing or --boundary renormalize"
            )
        if self.scale not in ("none", "auto"):
            raise SpecError(f"scale must be none or auto, received '{self.scale}'")
        if self.scale == "auto" and (output_format(self.target).name != "NIfTI" or np.dtype(self.dtype).kind == "f"):
            raise SpecError(
                "--scale auto is for integer NIfTI outputs, which hold a slope and an intercept: pass --dtype int16 (or the "
                "like) and a .nii, .nii.gz or .hdr name"
            )
        if self.on_cluster and (self.strict or self.scale != "none"):
            raise SpecError("--scheduler does not take --strict and --scale yet: leave it out")
        if self.on_cluster and self.missing != NOTHING:
            raise SpecError("--scheduler does not take --mask, --nan and --missing yet: leave it out")

    @property
    def channels_first(self) -> bool:
        return self.data_format == "channels_first"


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


@dataclass
class JobReport:
    """What was done: voxels computed, how many an integer dtype could not hold, seconds by stage, losses, notes.

    bytes_in, bytes_out : int       of the input's and the output's voxels, unpacked
    """

    source: str
    target: str
    voxels: int
    bytes_in: int
    bytes_out: int
    clipped: int
    seconds: float
    read_seconds: float
    compute_seconds: float
    write_seconds: float
    losses: dict[str, float]
    notes: list[str]


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
    """The job as one that is done box by box; None if it cannot be: both ends must give and take boxes, no convolution but the
    last may look at more than its voxels, and penalties are summed where each voxel is computed once."""
    from conv3d_cli.pipeline.boxes.stream import BoxJob

    reading = reader.box_access()
    writing = output_access(job.target, out_header, chunks=job.chunks, levels=job.levels, compression=job.compression)
    convolutions = [stage.convolution for stage in stages]
    along_width = job.channels_first and any(a.kind == "axis" for c in convolutions[:-1] for a in c.activations)
    if not all(convolution.takes_boxes for convolution in convolutions):
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
    from conv3d_cli.convolution.masked import check_centre, normalized

    check_centre(missing, convolution.problem, kernel)
    return normalized(convolution, missing, kernel, mask, many, tells_coverage=job.coverage is not None)


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


def resolve_kernel(
    stage: Stage, shape: tuple[int, int, int, int, int], grid: Grid, notes: list[str], number: int
) -> tuple[Kernel, dict[str, float]]:
    """The stage's kernel for a volume (N, D, H, W, C) with its options applied, and the penalties of its weights.

    number : int        of the stage; the seed of a drawn kernel that has none
    In order: read or drawn, made to fit, flipped, normalized, bias set, constraints. What a constraint changed is noted.
    """
    if stage.kernel is None:
        seed = number if stage.seed is None else stage.seed
        kernel = draw_kernel(stage, shape[4], seed)
        if stage.seed is None:
            notes.append(f"kernel {kernel.name} is drawn by its initializer with seed {seed}; --seed N draws another")
    else:
        given = stage.kernel if isinstance(stage.kernel, Kernel) else None
        kernel = given or read_kernel(str(stage.kernel), grid)
        kernel, found = fit_kernel(kernel, None if given else str(stage.kernel), grid, stage.fitting, stage.normalize)
        notes += found
    if stage.kernel_size is not None and kernel.size != triple(stage.kernel_size, "kernel_size"):
        raise ShapeError(
            f"kernel_size={stage.kernel_size} was asked for, but the kernel {kernel.name} is {kernel.size}"
        )
    if stage.magnitude and not kernel.is_bank:
        raise SpecError(
            f"magnitude is of several derivatives, as in sobel:axis=xyz, and {kernel.name} is one kernel; name its axes, or "
            "leave magnitude out"
        )
    if stage.flip:
        kernel = kernel.flipped()
    if stage.normalize:
        kernel = kernel.normalized()
    if not stage.use_bias:
        kernel = replace(kernel, bias=None)
    elif stage.bias is not None:
        kernel = replace(kernel, bias=np.asarray(stage.bias, np.float64))

    def layer_shaped(weights: np.ndarray) -> np.ndarray:
        return (
            weights if weights.ndim == 5 else weights[..., None, :] if weights.ndim == 4 else weights[..., None, None]
        )

    constrain, constrain_bias = get_constraint(stage.kernel_constraint), get_constraint(stage.bias_constraint)
    if constrain is not None:
        constrained = constrain(layer_shaped(kernel.weights))
        kernel = replace(kernel, weights=constrained.reshape(kernel.weights.shape))
        notes.append(f"kernel_constraint {_named(stage.kernel_constraint)} applied to kernel {kernel.name}")
    if constrain_bias is not None and kernel.bias is not None:
        kernel = replace(kernel, bias=constrain_bias(kernel.bias))
        notes.append(f"bias_constraint {_named(stage.bias_constraint)} applied to the bias of {kernel.name}")
    losses = {}
    penalty, bias_penalty = get_regularizer(stage.kernel_regularizer), get_regularizer(stage.bias_regularizer)
    if penalty is not None:
        losses["kernel"] = float(penalty(layer_shaped(kernel.weights)))
    if bias_penalty is not None and kernel.bias is not None:
        losses["bias"] = float(bias_penalty(kernel.bias))
    return kernel, losses


def _named(identifier: Any) -> str:
    """What messages call an initializer or constraint: its name as given, or its class."""
    if isinstance(identifier, Mapping):
        return str(identifier.get("class_name", identifier))
    return identifier if isinstance(identifier, str) else type(identifier).__name__


def draw_kernel(stage: Stage, channels: int, seed: int) -> Kernel:
    """A kernel drawn by the stage's initializers for a volume of `channels`: the same for the same seed.

    Raises: ShapeError if groups do not divide the channels; SpecError for more weights than any kernel may have.
    """
    from conv3d_cli.layer.config import derived_seed

    assert stage.kernel_size is not None
    assert stage.filters is not None
    if channels % stage.groups:
        raise ShapeError(
            f"groups must divide the input channels, received groups={stage.groups} and {channels} channels"
        )
    shape = (*triple(stage.kernel_size, "kernel_size"), channels // stage.groups, stage.filters)
    if math.prod(shape) > MAX_WEIGHTS:
        raise SpecError(
            f"a drawn kernel of shape {shape} would have more than {MAX_WEIGHTS:,} weights; give a smaller kernel_size or "
            "fewer filters"
        )

    def draw(identifier: Any, which: str, shape: tuple[int, ...]) -> np.ndarray:
        # The same numbers as a Conv3D of this seed; None draws glorot_uniform, as in Keras. There is always a seed, where
        # Keras would draw one: the same input and options must give the same bytes.
        own = derived_seed(seed, which)
        initializer = get_initializer(DRAWN_KERNEL if identifier is None else identifier, seed=own)
        assert initializer is not None
        with np.errstate(over="ignore"):
            drawn = initializer(shape)
        if not np.isfinite(drawn).all():
            raise SpecError(
                f"{which}_initializer {_named(identifier)} gives numbers beyond float32, in which Keras draws; lower its "
                "parameters"
            )
        return drawn

    weights = draw(stage.kernel_initializer, "kernel", shape)
    bias = None
    if stage.use_bias and stage.bias is None:
        bias = draw(stage.bias_initializer, "bias", (stage.filters,))
    return Kernel(weights, bias, name=stage.name or _named(stage.kernel_initializer))


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


def check_paths(job: Job, make_folder: bool = False) -> None:
    """Refuse an output that exists or is the input, before any work.

    make_folder : bool      its folder may be missing as long as it can be made
    Raises: OutputExistsError, WriteError, SpecError for an unknown suffix.
    """
    output_format(job.target)
    if job.target == "-":
        return
    if lies_within(job.source, job.target):
        # a store is replaced as a whole, with what else it holds: levels, labels, other images
        raise OutputExistsError(f"cannot write {job.target}: the input lies in it; name another store")
    if (
        os.path.exists(job.source)
        and os.path.exists(job.target)
        and os.path.samefile(job.source, job.target)
        and not job.overwrite
    ):
        raise OutputExistsError(
            f"cannot write {job.target}: it is the input; name another file, or pass --overwrite to replace it at the end"
        )
    if part := replaced_part(job.source, job.target):
        raise OutputExistsError(
            f"cannot write {job.target}: {part} is one of the files that the input {job.source} is read from; "
            "name another file"
        )
    check_output(
        job.target,
        overwrite=job.overwrite,
        make_folder=make_folder,
        chunks=job.chunks,
        levels=job.levels,
        compression=job.compression,
    )
    if job.coverage is not None:
        if os.path.realpath(job.coverage) in (
            os.path.realpath(job.target),
            os.path.realpath(job.source),
        ) or replaced_part(job.source, job.coverage):
            raise OutputExistsError(f"cannot write {job.coverage}: it is the input or the output; name another file")
        check_output(job.coverage, overwrite=job.overwrite, make_folder=make_folder)


def run_job(
    job: Job,
    progress: Callable[[int, int], None] | None = None,
    decided: Callable[[PreparedJob], None] | None = None,
) -> JobReport:
    """Convolve one volume, from file to file.

    progress : callable     told (voxels finished, voxels in all), from any thread
    decided : callable      told what was decided, before the first voxel (a pipe cannot be opened once more to look)
    The output appears complete or not at all. Raises: any Conv3DError; KeyboardInterrupt leaves nothing behind.
    """
    from conv3d_cli.engine import Team

    started = time.perf_counter()
    check_paths(job)
    with prepare_job(job) as prepared, ExitStack() as stack:
        if decided is not None:
            decided(prepared)
        team = stack.enter_context(Team(thread_count(job.threads)))
        reader, stages = prepared.reader, prepared.stages
        if prepared.boxes is None:
            for position, spooled in enumerate(prepared.spool_input):
                if spooled:
                    reader = stack.enter_context(spool_reader(reader))
                if position < len(stages) - 1:
                    reader = LayerReader(reader, stages[position].convolution, team)
        writer = _writer(job, prepared.header)
        if prepared.spool_output and job.scale == "none":
            writer = SpooledWriter(writer)
        with writer, naming(prepared.reader):
            coverage = None if job.coverage is None else stack.enter_context(_coverage_writer(job, prepared))
            if prepared.boxes is None:
                times = stream(prepared.passage, reader, writer, team, progress, coverage)
            else:
                from conv3d_cli.pipeline.boxes.stream import stream_boxes  # late: few jobs need it

                convolutions, parts = [stage.convolution for stage in stages], prepared.passage.parts
                times = stream_boxes(convolutions, prepared.boxes.cutting, parts, reader, writer, team, progress)
            reader.finish()
            bare = _bare_note(prepared)
            if job.strict:
                _refuse_losses(
                    [*clipped_note(job, times.clipped, math.prod(prepared.header.shape)), *bare, *writer.notes]
                )
            finish = time.perf_counter()
            with together():
                if coverage is not None:
                    coverage.commit()
                writer.commit()
            times.write += time.perf_counter() - finish
    notes = [
        *prepared.notes,
        *(note for note in prepared.reader.notes if note not in prepared.notes),
        *writer.notes,
        *bare,
    ]
    voxels = math.prod(prepared.header.shape)
    notes += clipped_note(job, times.clipped, voxels)
    seconds = time.perf_counter() - started
    return JobReport(
        job.source, job.target, voxels, prepared.reader.header.nbytes, prepared.header.nbytes, times.clipped, seconds,
        times.read, times.compute, times.write, all_losses(prepared), notes,
    )  # fmt: skip


def _writer(job: Job, header: VolumeHeader) -> VolumeWriter:
    """The output's writer."""

    def create(header: VolumeHeader) -> VolumeWriter:
        return create_volume(
            job.target,
            header,
            overwrite=job.overwrite,
            gz_level=job.gz_level,
            threads=job.threads,
            chunks=job.chunks,
            levels=job.levels,
            compression=job.compression,
        )

    if job.scale == "none":
        return create(header)
    return ScaledWriter(header, job.target, lambda scale: create(replace(header, scale=scale)))


def _coverage_writer(job: Job, prepared: PreparedJob) -> VolumeWriter:
    """A volume like the output, of float32."""
    assert job.coverage is not None
    header = prepared.header
    letters = output_format(job.coverage).output_letters(header.axes.letters, header.shape[4], np.dtype(np.float32))
    sizes = {a: header.shape[4] for a in letters if a in "cs" and len([c for c in letters if c in "cs"]) == 1}
    own = replace(header, axes=header.axes.renamed(letters, sizes), dtype=np.dtype(np.float32))
    writer = create_volume(job.coverage, own, overwrite=job.overwrite, gz_level=job.gz_level, threads=job.threads)
    return SpooledWriter(writer) if writer.sequential else writer


def _refuse_losses(notes: list[str]) -> None:
    if notes:
        raise ShapeError(f"--strict: {'; '.join(notes)}; nothing was written")


def _bare_note(prepared: PreparedJob) -> list[str]:
    """A note on means that had too few voxels. Raises: ShapeError if all of them had."""
    missing, first = prepared.job.missing, prepared.stages[0].convolution
    if missing.mask is not None:
        if not first.bare:
            return []
        too_little = f"inside the mask had less than {missing.min_coverage:g} of the kernel's weight (--min-coverage)"
        if not first.any_mean:
            raise ShapeError(f"no voxel is left: all {first.bare} voxels {too_little}")
        return [f"{first.bare} voxels {too_little} and are 0"]
    bare = [(stage.convolution.bare, math.prod(stage.problem.out_shape)) for stage in prepared.stages]
    if any(count == total for count, total in bare):
        raise ShapeError("no voxel is left: all of them are missing")
    return [
        f"{count} voxels ({100 * count / total:.2g} %) had too little of the kernel's weight and are NaN"
        for count, total in bare
        if count
    ]


def clipped_note(job: Job, clipped: int, voxels: int) -> list[str]:
    """A note on voxels that the output's dtype could not hold, if there were any."""
    share = 100 * clipped / max(1, voxels)
    return [f"{clipped} voxels ({share:.2g} %) did not fit {job.dtype} and were clipped"] if clipped else []


def all_losses(prepared: PreparedJob) -> dict[str, float]:
    """Penalties of weights and outputs after a run, by name; with the layer's name where there are several.

    The activity penalty is summed in float64 over the slabs and divided by the first batch axis, as Keras does.
    """
    batch_shape = prepared.reader.header.axes.batch_shape
    batch = batch_shape[0] if batch_shape else 1
    losses = {}
    for number, stage in enumerate(prepared.stages):
        prefix = f"{stage.stage.name or number + 1}." if len(prepared.stages) > 1 else ""
        if stage.convolution.activity is not None:
            losses[f"{prefix}activity"] = stage.convolution.activity_sum / max(1, batch)
        losses.update({f"{prefix}{name}": value for name, value in stage.losses.items()})
    return losses

"""The request: a job and its convolutions, in Keras' words, checked as far as no file is needed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conv3d_cli.errors import (
    ShapeError,
    SpecError,
    UnknownNameError,
    name_hint,
    named,
    setting,
    unknown_name,
    words,
)
from conv3d_cli.formats import check_compression, check_levels_by, output_format, scaled_formats
from conv3d_cli.formats.zarr.remote import check_timeout, waiting
from conv3d_cli.kernels.lengths import parse_lengths, read_lengths, read_sizes, read_spacing
from conv3d_cli.layer import get_activation, get_constraint, get_initializer, get_regularizer
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.patches import BLENDS
from conv3d_cli.model.spec import Boundary, ConvSpec, Triple, triple
from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation
from conv3d_cli.pipeline.outputs import VOLUME, Output, PeakRules, role_of
from conv3d_cli.settings.options import COPYING, OPTIONS
from conv3d_cli.system.machine import thread_count
from conv3d_cli.system.room import ceiling_of_memory
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.network.graph import Network, Node
    from conv3d_cli.settings.presets import Applied


INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
OUTPUT_DTYPES = (*INTEGER_DTYPES, "float32", "float64")
SAME_DTYPE = "same"

# the default boundaries of filters and of layers
FILTER_BOUNDARY, LAYER_BOUNDARY = Boundary("symmetric"), Boundary("zeros")
DRAWN_KERNEL, DRAWN_BIAS = "glorot_uniform", "zeros"  # the default initializers, as in Keras


def read_channels(value: Any) -> tuple[int, ...]:
    """Positions of channels, counted from 0, as an option, a config or Python gives them.

    Raises: SpecError.

    >>> read_channels("1, 2"), read_channels([0]), read_channels(3)
    ((1, 2), (0,), (3,))
    """
    found = read_chosen(value)
    numbers = tuple(one for one in found if isinstance(one, int))
    if len(numbers) != len(found):
        raise _wrong_channels(value)
    return numbers


def read_chosen(value: Any) -> tuple[int | str, ...]:
    """As `read_channels`, for a copy: words are names of channels. Raises: SpecError.

    >>> read_chosen("1, DAPI"), read_chosen(["DAPI, old", 0])
    ((1, 'DAPI'), ('DAPI, old', 0))
    """
    parts = value.split(",") if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    found: list[int | str] = []
    for part in parts:
        text = part.strip() if isinstance(part, str) else part
        if isinstance(text, str) and text:
            number = re.fullmatch(r"-?[0-9]+", text)
            text = int(text) if number else text
        if isinstance(text, str) and text:
            found.append(text)
        elif isinstance(text, (int, np.integer)) and not isinstance(text, bool) and text >= 0:
            found.append(int(text))
        else:
            raise _wrong_channels(value)
    if not found:
        raise _wrong_channels(value)
    return tuple(found)


def _wrong_channels(value: Any) -> SpecError:
    return SpecError(
        "channels must be whole numbers, counted from 0 (in a copy also names), with commas "
        f"between them, as in {setting('channels', '1,2')}; received {value!r:.60}"
    )


NORMALIZATIONS = ("zscore", "minmax", "percentile", "none")


class InputNormalization(NamedTuple):
    """How an input is scaled by its own statistics.

    method : str            one of `NORMALIZATIONS`
    percentiles : (LO, HI)  that become 0 and 1, of "percentile"
    nonzero : bool          only voxels that are not 0 count
    """

    method: str
    percentiles: tuple[float, float] = (0.0, 100.0)
    nonzero: bool = False

    @property
    def text(self) -> str:
        """As the option is written."""
        own = ":{:g},{:g}".format(*self.percentiles) if self.method == "percentile" else ""
        return f"{self.method}{own}{':nonzero' if self.nonzero else ''}"


def read_normalization(text: str) -> InputNormalization:
    """The normalization that an option names. Raises: SpecError, UnknownNameError.

    >>> read_normalization("percentile:1,99:nonzero")
    InputNormalization(method='percentile', percentiles=(1.0, 99.0), nonzero=True)
    """
    method, *parts = (part.strip().lower() for part in text.split(":"))
    if method not in NORMALIZATIONS:
        raise unknown_name("normalize_input", method, NORMALIZATIONS)
    nonzero = parts[-1:] == ["nonzero"] and method != "none"
    parts = parts[:-1] if nonzero else parts
    if method != "percentile" and not parts:
        return InputNormalization(method, nonzero=nonzero)
    try:
        (numbers,) = parts
        low, high = map(float, numbers.split(","))
    except ValueError:
        low = high = math.nan
    if method != "percentile" or not 0 <= low < high <= 100:
        raise SpecError(
            f"{named('normalize_input')} must be zscore, minmax, percentile:LO,HI with percentages "
            "from 0 to 100, as in percentile:1,99, each perhaps with :nonzero after it, or none; "
            f"received {text!r:.60}"
        )
    return InputNormalization(method, (low, high), nonzero)


def read_patch(value: Any, grid: Grid | None = None) -> Triple:
    """The size of a patch in voxels along D, H, W, as an option, a config or Python gives it.

    grid : Grid or None     by which lengths are converted, and rounded; None: the volume is not
                            known yet, and lengths are taken as if voxels had a side of 1
    Raises: SpecError, UnknownNameError; ShapeError for lengths without a voxel spacing.

    >>> read_patch("64,96,96"), read_patch(32), read_patch("96mm", Grid((3.0, 2.0, 2.0), "mm"))
    ((64, 96, 96), (32, 32, 32), (32, 48, 48))
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    text = ",".join(map(str, parts))
    try:
        if not any(letter.isalpha() for letter in text):
            return read_sizes(text, named("patch"))
        sizes: Sequence[float] = parse_lengths(text, named("patch"))[0]
    except UnknownNameError:
        raise
    except SpecError:
        sizes = (0,)
    if min(sizes) <= 0:
        raise SpecError(
            f"{named('patch')} must be one size or three in depth,height,width order: whole "
            f"numbers of voxels of at least 1, as in {setting('patch', '64,96,96')}, or lengths "
            f"with a unit, as in {setting('patch', '96mm')}; received {text!r:.60}"
        )
    if grid is not None:
        sizes = read_lengths(text, named("patch"), grid)
    voxels = [round(size) for size in sizes]
    if min(voxels) < 1 and grid is not None:
        raise ShapeError(
            f"{setting('patch', text)} is less than half a voxel, whose sides are "
            f"{grid.spacing_words}; pass a larger patch"
        )
    return triple([max(1, length) for length in voxels], "patch")


def read_overlap(value: Any) -> tuple[float, float, float]:
    """The overlap of patches along D, H, W, as an option, a config or Python gives it.

    Raises: SpecError.

    >>> read_overlap("0.25"), read_overlap([0, 0.5, 0.5])
    ((0.25, 0.25, 0.25), (0.0, 0.5, 0.5))
    """
    parts = value.split(",") if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    try:
        found = [float(part) for part in parts]
    except (TypeError, ValueError):
        found = []
    if len(found) not in (1, 3) or not all(0 <= part < 1 for part in found):
        raise SpecError(
            f"{named('overlap')} must be a fraction from 0 to below 1, or three in "
            f"depth,height,width order, as in {setting('overlap', 0.5)}; received {value!r:.60}"
        )
    depth, height, width = found * 3 if len(found) == 1 else found
    return depth, height, width


@dataclass(frozen=True)
class Stage:
    """One convolution of a job, in Keras' words, as options and configs give it.

    kernel : str, Kernel or None    a built-in with parameters, a path, or a kernel in memory; None
                                    draws one by `kernel_initializer`
    name : str or None              of the layer, for messages
    kernel_size : int, 3 ints or None   required for a drawn kernel; else checked against the kernel
    filters : int or None           required for a drawn kernel; else checked against the kernel
    strides, padding, dilation_rate, groups, boundary, allow_strided_dilation : see `ConvSpec`
        None for padding and boundary: "same" and symmetric for a filter (a 3-D kernel), "valid" and
        zeros for a layer (a 5-D kernel)
    activations : tuple             identifiers for `layer.activations.get`, applied in order
    bias : sequence of floats or None   None: the kernel's own bias
    use_bias : bool                 False drops the bias
    flip : bool                     convolve (with the kernel flipped) rather than cross-correlate
    normalize : bool                scale the weights to sum 1
    kernel_initializer, bias_initializer : identifiers for `layer.initializers.get`
    seed : int or None              of the initializers
    kernel_regularizer, bias_regularizer, activity_regularizer : identifiers of penalties, or None
    kernel_constraint, bias_constraint : identifiers for `layer.constraints.get`, or None
    magnitude : bool                replace the filters of a bank (`sobel:axis=xyz`) by the root of
                                    the sum of their squares
    kernel_spacing, crop_kernel, subtract_background : see `KernelAdaptation`
    notes : tuple of str            on the kernel's file, for the user
    files : tuple of str            paths that weights and bias were read from
    inputs : tuple of int or None   the position in the job of what it convolves, or -1 for the
                                    volume; None: the one before it

    Raises: SpecError, UnknownNameError for settings that are wrong for every volume.
    >>> Stage("gaussian:fwhm=6mm", strides=2).spec(is_layer=False).padding
    'same'
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
    subtract_background: str | float | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    inputs: tuple[int, ...] | None = None

    @property
    def copies(self) -> bool:
        """Whether it is a plain copy, with nothing before or after it.

        >>> Stage("identity").copies, Stage("identity", strides=2).copies
        (True, False)
        """
        bare = replace(self, notes=(), files=(), name=None)
        return isinstance(self.kernel, str) and bare == Stage(COPYING)

    def __post_init__(self) -> None:
        # Settings that are wrong for every volume are refused here, before any file is opened.
        if self.kernel is None and (self.filters is None or self.kernel_size is None):
            raise SpecError(
                "no kernel: "
                + words(
                    "pass -k, for example -k gaussian:fwhm=6mm, a config with a kernel (-c), or",
                    "pass one, for example 'gaussian:fwhm=6mm', config= with a kernel, or",
                )
                + f" {setting('filters')} and {setting('kernel_size')} for a kernel drawn by "
                f"{setting('kernel_initializer')}"
            )
        if self.kernel_size is not None:
            triple(self.kernel_size, "kernel_size")
        _ = self._filter_spec, self.adaptation
        if self.kernel is None and self.subtract_background is not None:
            raise SpecError(
                f"{setting('subtract_background')} is for kernels from files, and this one is "
                "drawn by its initializer; leave it out"
            )
        for identifier in self.activations:
            activation = get_activation(identifier)
            if activation.kind == "tensor":
                raise SpecError(
                    f"activation '{activation.text}' needs the whole output at once, but volumes "
                    "are streamed; use the last axis (axis=-1)"
                )
        for identifier, default in (
            (self.kernel_initializer, DRAWN_KERNEL),
            (self.bias_initializer, DRAWN_BIAS),
        ):
            if identifier != default:
                get_initializer(identifier, seed=self.seed)
        for identifier in (self.kernel_regularizer, self.bias_regularizer):
            get_regularizer(identifier)
        activity = get_regularizer(self.activity_regularizer)
        if activity is not None and not activity.additive:
            raise SpecError(
                "the activity_regularizer must be a plain sum over voxels, since volumes are "
                f"streamed, received {type(activity).__name__}; use l1, l2 or l1l2"
            )
        for identifier in (self.kernel_constraint, self.bias_constraint):
            get_constraint(identifier)

    def with_made_kernel(self, kernel: Kernel) -> Stage:
        """The stage with its final kernel: read or drawn, adapted, flipped, constrained.

        Settings that shaped the kernel return to their defaults; notes, files and the kernel's own
        grid are dropped.

        >>> import numpy as np
        >>> stage = Stage("box:size=3", strides=2, flip=True)
        >>> final = stage.with_made_kernel(Kernel(np.ones((3, 3, 3))))
        >>> final.strides, final.flip
        (2, False)
        """
        kernel = kernel if kernel.grid is None else replace(kernel, grid=None)
        made = {"kernel": kernel, "notes": (), "files": ()}
        return replace(self, **{**_defaults(Stage, _MAKES_KERNEL), **made})

    @property
    def adaptation(self) -> KernelAdaptation:
        """The policy for the kernel's background, spacing and borders. Raises: SpecError."""
        return KernelAdaptation(self.kernel_spacing, self.crop_kernel, self.subtract_background)

    @cached_property
    def _filter_spec(self) -> ConvSpec:
        """The parsed specification with the defaults of a filter. Raises: SpecError."""
        return ConvSpec(
            strides=self.strides,
            padding="same" if self.padding is None else self.padding,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            filters=self.filters,
            boundary=FILTER_BOUNDARY if self.boundary is None else self.boundary,
            allow_strided_dilation=self.allow_strided_dilation,
        )

    def spec(self, is_layer: bool) -> ConvSpec:
        """The parsed specification with the defaults of a layer (a 5-D kernel) or of a filter."""
        spec = self._filter_spec
        if is_layer and self.padding is None:
            spec = replace(spec, padding="valid")
        if is_layer and self.boundary is None:
            spec = replace(spec, boundary=LAYER_BOUNDARY)
        return spec


@dataclass(frozen=True)
class Body:
    """The stages that a job runs in each patch, and the network that they were made of, if any."""

    stages: tuple[Stage | Step, ...]
    network: Network | None = None


@dataclass(frozen=True)
class Step:
    """An operation of a network that is no convolution, in a job.

    node : Node                 its name, operation, attributes and weights
    inputs : tuple of int       positions in the job of what it takes, or -1 for the volume
    files : tuple of str        paths that weights were read from
    body : Body or None         what it runs in each patch of what it takes
    """

    node: Node
    inputs: tuple[int, ...]
    files: tuple[str, ...] = ()
    body: Body | None = None

    @property
    def name(self) -> str:
        """The name of its node."""
        return self.node.name


@dataclass(frozen=True)
class Job:
    """A request to convolve one volume.

    source, target : str        paths; "-" for a .npy stream on standard input or output
    stages : tuple              one `Stage` for a filter or a layer; several for a stack; a `Step`
                                for every other operation of a network. Each after those that it
                                takes from; the last is a `Stage`
    axes : str or None          letters of the input's axes; None: as the file or its format says
    spacing : str or None       voxel spacing, as in "0.3,0.1,0.1um", for what the files of input
                                and mask do not tell (see `model.grid.complete_grid`)
    data_format : str           "channels_last" or "channels_first"
    normalize_input : str       how the input is scaled first, see `read_normalization`
    normalize_mask : str or None    mask of the voxels whose statistics count for that
    template_mask : str or None     volume that tells which voxels of a template are matched
    patch : text, int, ints or None     size of the patches in which the body of a step runs, see
                                `read_patch`; None: there is none
    overlap : text, number or numbers   of patches, see `read_overlap`
    blend : str                 how their outputs are blended, see `model.patches`
    output_name : str or None   the output of a network that has several
    channels : tuple or None    positions of the channels that are written, in order; the last step
                                takes them (`selection.py`). None: all are
    argmax : bool               what is written is the label of each voxel, of the last step
    label_names : str or None   file with names of the labels, see `labels.py`
    dtype : str or None         of the output voxels; integers are rounded half to even and
                                saturated. None: float32; for labels uint8, or a wider dtype that
                                holds them; for a copy, which computes nothing, a dtype that holds
                                every value
    precision : str             of the arithmetic, "float32" or "float64"
    threads : int or None       None: see `machine.thread_count`
    max_memory : int or None    ceiling of the whole process in bytes; None: see
                                `machine.memory_ceiling`
    timeout : float or None     seconds without a byte after which a server is given up; None: see
                                `formats.zarr.remote`
    algorithm : str             name of an algorithm, or "auto" for the fastest
    overwrite : bool            replace outputs that exist
    gz_level : int              0 to 3, of .nii.gz and deflate
    chunks : int, 3 ints or None    voxels (D, H, W) of a chunk of a Zarr output
    levels : int                levels of resolution of a Zarr output
    levels_by : str or None     how they are made: see `formats.base.OutputOptions`
    compression : str           of a TIFF output: "none", "deflate" or "zstd"
    missing : Missing           policy for missing voxels and for voxels outside a mask
    beside : tuple of Output    additional volumes to write, see `outputs.ROLES`
    scale : str                 "none"; or "auto": fit a slope and an intercept to the values, for
                                integer outputs of formats that hold them; or "keep": a copy has
                                the input's numbers, with their slope and intercept
    strict : bool               make clipped voxels, means of few voxels, and losses of the format
                                errors
    preset : Applied or None    the preset that gave some of the settings, for reports
    history : str               a line to add to the output's history (see `VolumeHeader`); "" for
                                none
    checks : bool or None       check every tile by a checksum while it is computed; None: where
                                that costs little, see `pipeline.checks`
    share_of_start : float      part of the process's start that this job bears, 1 / jobs in a batch
    on_cluster : bool           boxes are computed by a cluster's workers, so no ceiling applies to
                                slabs on this machine
    files : tuple of str        paths that the settings came from: configs, a manifest
    given : frozenset of str    names of the options that were given, for notes on those without an
                                effect
    network : Network or None   that the stages were made of; None: they are a stack
    is_normalized : bool        the first step does what `normalize_input` says
    operation : str or None     an operation that takes the place of the first stage, see
                                `operations/`
    composed_from : Stage or None   the stage that the operation has taken the place of; its kernel
                                is the operation's, if it takes one
    channel_names : tuple       names of the channels that an operation makes of each of the input's
    peak_rules : PeakRules or None  what the peaks of the output are, for the table of them
    found : mapping             numbers that an operation chose by looking at the volume, by name
    making : int                bytes of memory that making an operation's stages took at the most

    Raises: SpecError, UnknownNameError for settings that are wrong for every volume.
    >>> Job("in.nii", "out.nii", (Stage("box:size=3"),)).outputs
    (Output(role='volume', path='out.nii'),)
    """

    source: str
    target: str
    stages: tuple[Stage | Step, ...]
    axes: str | None = None
    spacing: str | None = None
    data_format: str = "channels_last"
    normalize_input: str = "none"
    normalize_mask: str | None = None
    template_mask: str | None = None
    patch: str | int | Sequence[int] | None = None
    overlap: str | float | Sequence[float] = 0.5
    blend: str = "gaussian"
    output_name: str | None = None
    channels: str | int | Sequence[int] | None = None
    argmax: bool = False
    label_names: str | None = None
    dtype: str | None = None
    precision: str = "float32"
    threads: int | None = None
    max_memory: int | None = None
    timeout: float | None = None
    algorithm: str = "auto"
    overwrite: bool = False
    gz_level: int = 1
    chunks: int | Sequence[int] | None = None
    levels: int = 1
    levels_by: str | None = None
    compression: str = "none"
    missing: Missing = NOTHING
    beside: tuple[Output, ...] = ()
    scale: str = "none"
    strict: bool = False
    preset: Applied | None = None
    history: str = ""
    checks: bool | None = None
    share_of_start: float = 1.0
    on_cluster: bool = False
    files: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    network: Network | None = None
    is_normalized: bool = False
    operation: str | None = None
    composed_from: Stage | None = None
    channel_names: tuple[str, ...] = ()
    peak_rules: PeakRules | None = None
    found: Mapping[str, float] = field(default_factory=dict)
    making: int = 0

    @contextmanager
    def limits(self) -> Iterator[None]:
        """In the body, files that are opened keep to `timeout` and, headers, to `max_memory`."""
        with waiting(self.timeout), ceiling_of_memory(self.max_memory):
            yield

    def __post_init__(self) -> None:
        if not self.stages:
            raise SpecError("a job needs at least one layer, received none; give a kernel")
        if self.channels is not None:
            read = read_chosen if self.chooses_channels else read_channels
            object.__setattr__(self, "channels", read(self.channels))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", self.dtype.lower())
        if self.dtype not in (None, *OUTPUT_DTYPES, SAME_DTYPE):
            names = (*OUTPUT_DTYPES, SAME_DTYPE)
            hint = name_hint("dtype", str(self.dtype), names).rstrip("; ")
            raise SpecError(
                f"dtype must be one of {', '.join(OUTPUT_DTYPES)}, or {SAME_DTYPE} for the "
                f"input's, received '{self.dtype}'{hint and f'; {hint}'}"
            )
        if self.precision not in ("float32", "float64"):
            raise SpecError(f"precision must be float32 or float64, received '{self.precision}'")
        if self.spacing is not None:
            read_spacing(self.spacing)
        if self.data_format not in ("channels_last", "channels_first"):
            raise SpecError(
                "data_format must be channels_last or channels_first, received "
                f"'{self.data_format}'"
            )
        thread_count(self.threads)
        check_timeout(self.timeout)
        if self.chunks is not None:
            triple(self.chunks, "chunks")
        if self.levels < 1:
            raise SpecError(
                f"levels must be at least 1 (only the full resolution), received {self.levels}"
            )
        check_levels_by(self.levels_by)
        check_compression(self.compression)
        means = self.missing.has_weights or self.missing.nan == "ignore"
        normalization = read_normalization(self.normalize_input)
        object.__setattr__(self, "normalize_input", normalization.text)
        asked = setting("normalize_input", normalization.text)
        if self.normalize_mask is not None and normalization.method == "none":
            raise SpecError(
                f"{setting('normalize_mask', self.normalize_mask)} needs "
                f"{setting('normalize_input', 'zscore')} or another normalization: pass it, too, "
                "or leave the mask out"
            )
        if normalization.method != "none" and self.source == "-":
            raise SpecError(f"{asked} reads the input twice, and a pipe is read once: name a file")
        if normalization.method != "none" and (self.missing != NOTHING or self.beside):
            raise SpecError(
                f"{asked} does not go with a mask of means, missing values, {setting('nan')} or a "
                "second output: leave one of them out"
            )
        if self.selects and (means or self.beside):
            raise SpecError(
                f"{self.selects} does not go with a mask, missing values, "
                f"{setting('nan', 'ignore')} or a second output: write all channels first, and "
                f"select from that file by {words('-k identity', 'the kernel identity')} and "
                f"{self.selects}"
            )
        self._check_patches()
        if means and len(self.stages) > 1 and self.operation is None:
            raise SpecError(
                f"a mask, missing values and {setting('nan', 'ignore')} are for one convolution, "
                f"received {self.called}; run the layers one by one"
            )
        first = [s for s in self.stages if isinstance(s, Step) and -1 in s.inputs]
        composed = self.operation is not None or self.patched is not None
        if first and self.missing.nan != "propagate" and not composed:
            raise SpecError(
                f"{setting('nan', self.missing.nan)} is done by convolutions, and the network "
                f"begins with {first[0].node.title}; leave it out"
            )
        boundary = self.convolutions[-1].spec(is_layer=False).boundary
        self._check_beside()
        for role in (role_of(output.role) for output in self.beside):
            if role.of_means and not self.missing.takes_means(boundary):
                raise SpecError(
                    f"{role.flag} {role.purpose}, and this job takes none; pass {setting('mask')}, "
                    f"{setting('nan', 'ignore')}, {setting('missing')} or "
                    f"{setting('boundary', 'renormalize')}"
                )
        if self.scale not in ("none", "auto", "keep"):
            raise SpecError(f"scale must be none, auto or keep, received '{self.scale}'")
        if self.label_names is not None and not self.argmax and self.network is None:
            raise SpecError(
                f"{setting('label_names', self.label_names)} is for labels: pass "
                f"{setting('argmax', True)}, too, or leave it out"
            )
        if self.scale == "auto" and self.argmax:
            raise SpecError(
                f"{setting('scale', 'auto')} stretches values, and {self.selects} writes labels, "
                "which are stored as they are: leave one of them out"
            )
        dtype = self.dtype or "float32"
        if self.scale == "auto" and (
            not output_format(self.target).holds_scale or dtype.startswith("float")
        ):
            raise SpecError(
                f"{setting('scale', 'auto')} is for integer outputs in formats that hold a slope "
                f"and an intercept, {scaled_formats()}; received {dtype} in {self.target}; pass "
                f"{setting('dtype', 'int16')} (or another integer dtype), and a name with such a "
                "suffix"
            )
        if self.on_cluster and self.scale != "none":
            raise SpecError("--scheduler does not take --scale yet: leave it out")
        if self.on_cluster and self.missing != NOTHING:
            raise SpecError(
                "--scheduler does not take --mask, --nan and --missing yet: leave it out"
            )

    @property
    def is_composed(self) -> bool:
        """Whether the stages are those of an operation."""
        return self.composed_from is not None

    @property
    def convolutions(self) -> list[Stage]:
        """The stages that are convolutions, in order."""
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    @property
    def patched(self) -> Body | None:
        """What the job runs in patches; None if it has none."""
        return next((s.body for s in self.stages if isinstance(s, Step) and s.body), None)

    @property
    def given_stages(self) -> tuple[Stage | Step, ...]:
        """The stages that were asked for: those that run in patches, or else all."""
        return self.stages if self.patched is None else self.patched.stages

    @property
    def given_network(self) -> Network | None:
        """The network that was asked for, which may run in patches."""
        return self.network if self.patched is None else self.patched.network

    @property
    def called(self) -> str:
        """The stages in messages.

        >>> Job("in.nii", "out.nii", (Stage("box:size=3"), Stage("box:size=3"))).called
        'a stack of 2 layers'
        """
        if self.operation is not None:
            return f"the operation {self.operation}"
        if self.patched is not None:
            return f"patches ({setting('patch', self.patch)})"
        if self.network is not None:
            return f"a network of {count_of(len(self.network.nodes), 'node')}"
        return f"a stack of {count_of(len(self.stages), 'layer')}"

    @property
    def selects(self) -> str:
        """The setting that selects what of the last output is written; "" if all of it is.

        >>> Job("in.nii", "out.nii", (Stage("box:size=3"),), channels="1,2").selects
        "channels='1,2'"
        """
        if self.argmax:
            return setting("argmax", True)
        chosen = read_chosen(self.channels) if self.channels is not None else ()
        return setting("channels", ",".join(map(str, chosen))) if chosen else ""

    @property
    def chooses_channels(self) -> bool:
        """Whether channels are chosen as the volume is read: of a copy, so that bits are kept."""
        return (
            self.channels is not None
            and self.network is None
            and self.operation is None
            and len(self.stages) == 1
            and isinstance(self.stages[0], Stage)
            and self.stages[0].copies
        )

    @property
    def is_chain(self) -> bool:
        """Whether every stage is a convolution of the one before it."""
        return all(
            isinstance(stage, Stage) and inputs_of(stage, number) == (number - 1,)
            for number, stage in enumerate(self.stages)
        )

    def _check_patches(self) -> None:
        """Check and read the settings of patches. Raises: SpecError, UnknownNameError."""
        if self.patch is None:
            return
        read_patch(self.patch)
        parts = self.patch if isinstance(self.patch, (list, tuple)) else [self.patch]
        object.__setattr__(self, "patch", ",".join(map(str, parts)))
        object.__setattr__(self, "overlap", read_overlap(self.overlap))
        if self.blend not in BLENDS:
            raise unknown_name("blend", self.blend, BLENDS)
        asked = setting("patch", self.patch)
        if self.on_cluster:
            raise SpecError(f"--scheduler does not take {asked} yet: leave one of them out")
        body = () if self.patched is None else self.patched.stages
        if any(isinstance(stage, Stage) and stage.activity_regularizer for stage in body):
            raise SpecError(
                f"{setting('activity_regularizer')} counts every voxel once, and patches overlap: "
                f"leave it or {asked} out"
            )

    def _check_beside(self) -> None:
        """Check that the job can have what it writes beside its output. Raises: SpecError."""
        for role in (role_of(output.role) for output in self.beside):
            if role.is_table and self.operation is None:
                raise SpecError(
                    f"{role.flag} {role.purpose}, which only conv3d match computes: leave it out, "
                    f"or pass {setting('operation', 'match')} and a template as {setting('kernel')}"
                )
            if role.values is not None and self.operation is not None:
                raise SpecError(
                    f"{role.flag} {role.purpose} of a convolution, which an operation does not "
                    "have: leave it out"
                )

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All volumes that the job writes, its main output first."""
        return (Output(VOLUME, self.target), *self.beside)

    def path_of(self, role: str) -> str | None:
        """The path of the volume with a role; None if the job does not write one."""
        return next((output.path for output in self.outputs if output.role == role), None)

    @property
    def needs_coverage(self) -> bool:
        """Whether an additional volume is computed from the coverage of means."""
        return any(role_of(output.role).of_means for output in self.beside)

    @property
    def channels_first(self) -> bool:
        """Whether the channel axis comes before the spatial axes."""
        return self.data_format == "channels_first"

    def as_trial(self, target: str) -> Job:
        """The same convolution with a float32 output in another file, without additional volumes.

        Settings of storage (`--levels`, `--scale` and the like) return to their defaults, so that
        any format can take the output.
        """
        return replace(
            self, **{**_defaults(Job, _STORES), "beside": (), "target": target, "overwrite": True}
        )


def inputs_of(stage: Stage | Step, position: int) -> tuple[int, ...]:
    """The positions of what a stage takes, which itself has a position in its job.

    >>> inputs_of(Stage("box:size=3"), 2)
    (1,)
    """
    return (position - 1,) if stage.inputs is None else stage.inputs


def stage_names(job: Job) -> list[str]:
    """A name for each stage: its own, or its number.

    >>> stage_names(Job("in.nii", "out.nii", (Stage("box:size=3", name="a"), Stage("box:size=3"))))
    ['a', '2']
    """
    return [stage.name or str(number) for number, stage in enumerate(job.stages, 1)]


_MAKES_KERNEL = {option.field for option in OPTIONS if option.makes_kernel}
_STORES = {option.field for option in OPTIONS if option.stores}


def _defaults(kind: type[Stage] | type[Job], names: set[str]) -> dict[str, Any]:
    """The default values of some fields, by name."""
    return {field.name: field.default for field in fields(kind) if field.name in names}

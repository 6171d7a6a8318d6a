"""What is asked for: a job, and the convolutions it is made of, in Keras' words. Nothing here knows a voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.errors import SpecError
from conv3d_cli.formats import (
    check_compression,
    output_format,
    scaled_formats,
)
from conv3d_cli.layer import get_activation, get_constraint, get_initializer, get_regularizer
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import Boundary, ConvSpec, triple
from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation
from conv3d_cli.pipeline.outputs import ROLES, VOLUME, Output
from conv3d_cli.settings.options import OPTIONS
from conv3d_cli.system.machine import thread_count

if TYPE_CHECKING:
    from conv3d_cli.settings.presets import Applied


INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
OUTPUT_DTYPES = (*INTEGER_DTYPES, "float32", "float64")

FILTER_BOUNDARY, LAYER_BOUNDARY = Boundary("symmetric"), Boundary("zeros")  # where none is given
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
    kernel_spacing, crop_kernel         what is done so that the kernel fits: see `KernelAdaptation`
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
        _ = self._filter_spec, self.adaptation
        for identifier in self.activations:
            activation = get_activation(identifier)
            if activation.kind == "tensor":
                raise SpecError(
                    f"activation '{activation.text}' needs the whole output at once, and a volume is streamed; "
                    "only the last axis (axis=-1) can be streamed"
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
                "the activity_regularizer must be a plain sum over voxels (l1, l2, l1l2) to be summed while streaming"
            )
        for identifier in (self.kernel_constraint, self.bias_constraint):
            get_constraint(identifier)

    def with_made_kernel(self, kernel: Kernel) -> Stage:
        """The stage with its kernel as it was read or drawn, adapted to the volume and constrained.

        What was used up in making it has its default, and no file is named any more.

        >>> made = Stage("box:size=3", strides=2, flip=True).with_made_kernel(Kernel(np.ones((3, 3, 3))))
        >>> made.strides, made.flip
        (2, False)
        """
        return replace(
            self, **{**_defaults(Stage, _MAKES_KERNEL), "kernel": kernel, "notes": (), "files": ()}
        )

    @property
    def adaptation(self) -> KernelAdaptation:
        """What is done so that the kernel fits. Raises: SpecError."""
        return KernelAdaptation(self.kernel_spacing, self.crop_kernel)

    @cached_property
    def _filter_spec(self) -> ConvSpec:
        """The specification, parsed, with the defaults of a filter. Raises: SpecError."""
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
        """The specification, with the defaults of a layer (a 5-D kernel) or a filter."""
        spec = self._filter_spec
        if is_layer and self.padding is None:
            spec = replace(spec, padding="valid")
        if is_layer and self.boundary is None:
            spec = replace(spec, boundary=LAYER_BOUNDARY)
        return spec


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
    beside : tuple of Output    volumes that are written beside the output: see `outputs.ROLES`
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
    beside: tuple[Output, ...] = ()
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
            raise SpecError(
                f"dtype must be one of {', '.join(OUTPUT_DTYPES)}, received '{self.dtype}'"
            )
        if self.precision not in ("float32", "float64"):
            raise SpecError(f"precision must be float32 or float64, received '{self.precision}'")
        if self.data_format not in ("channels_last", "channels_first"):
            raise SpecError(
                f"data_format must be channels_last or channels_first, received '{self.data_format}'"
            )
        thread_count(self.threads)
        if self.chunks is not None:
            triple(self.chunks, "chunks")
        if self.levels < 1:
            raise SpecError(
                f"levels must be at least 1 (the full resolution alone), received {self.levels}"
            )
        check_compression(self.compression)
        means = self.missing.has_weights or self.missing.nan == "ignore"
        if means and len(self.stages) > 1:
            raise SpecError(
                "a mask and missing voxels are for one convolution, and this is a stack of layers"
            )
        boundary = self.stages[-1].spec(is_layer=False).boundary
        for role in (ROLES[output.role] for output in self.beside):
            if role.of_means and not self.missing.takes_means(boundary):
                raise SpecError(
                    f"{role.flag} {role.purpose}: pass --mask, --nan ignore, --missing or --boundary renormalize"
                )
        if self.scale not in ("none", "auto"):
            raise SpecError(f"scale must be none or auto, received '{self.scale}'")
        if self.scale == "auto" and (
            not output_format(self.target).holds_scale or np.dtype(self.dtype).kind == "f"
        ):
            raise SpecError(
                f"--scale auto is for integer outputs that hold a slope and an intercept, {scaled_formats()}: "
                "pass --dtype int16 (or the like) and such a name"
            )
        if self.on_cluster and (self.strict or self.scale != "none"):
            raise SpecError("--scheduler does not take --strict and --scale yet: leave it out")
        if self.on_cluster and self.missing != NOTHING:
            raise SpecError(
                "--scheduler does not take --mask, --nan and --missing yet: leave it out"
            )

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All volumes that the job writes, its main output first."""
        return (Output(VOLUME, self.target), *self.beside)

    def path_of(self, role: str) -> str | None:
        """Where the volume of a role is written; None if the job has none."""
        return next((output.path for output in self.outputs if output.role == role), None)

    @property
    def needs_coverage(self) -> bool:
        """Whether a volume beside the output is made of the coverage of means."""
        return any(ROLES[output.role].of_means for output in self.beside)

    @property
    def channels_first(self) -> bool:
        return self.data_format == "channels_first"

    def as_trial(self, target: str) -> Job:
        """The same convolution into another file, whose format need not hold what the job's own output does.

        Voxels are stored as float32, and nothing is written beside them.
        """
        return replace(
            self, **{**_defaults(Job, _STORES), "beside": (), "target": target, "overwrite": True}
        )


_MAKES_KERNEL = {option.field for option in OPTIONS if option.makes_kernel}
_STORES = {option.field for option in OPTIONS if option.stores}


def _defaults(kind: type[Stage] | type[Job], names: set[str]) -> dict[str, Any]:
    """The defaults of some fields."""
    return {field.name: field.default for field in fields(kind) if field.name in names}

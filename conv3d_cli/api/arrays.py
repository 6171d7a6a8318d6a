"""`conv3d()`: convolve arrays and volumes in memory, with Keras' argument names and defaults."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conv3d_cli.api.containers import BATCH_LETTERS, Result, contents, plain
from conv3d_cli.api.kernels import KernelLike, kernel_for
from conv3d_cli.api.plans import KeptCall, KeptCalls, KeptPlans, call_key, plan_key
from conv3d_cli.convolution.assemble import ResolvedConvolution, assemble, resolve_convolution
from conv3d_cli.convolution.slabs import SlabSource
from conv3d_cli.engine import kept_team
from conv3d_cli.engine.team import SerialWorker
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.formats import read_volume
from conv3d_cli.layer import activations
from conv3d_cli.model.grid import Grid, grid_after
from conv3d_cli.model.missing import MIN_COVERAGE, Missing
from conv3d_cli.model.spec import Boundary, ConvSpec
from conv3d_cli.model.volume import (
    ArrayReader,
    ArrayWriter,
    Axes,
    Volume,
    VolumeHeader,
    parts_in_storage_order,
)
from conv3d_cli.pipeline.blocking import DEEP_SLAB_BYTES, LEAST_SLAB
from conv3d_cli.pipeline.graph import Graph, StreamPlan
from conv3d_cli.pipeline.outputs import ROLES
from conv3d_cli.pipeline.stream import load_loops, stream
from conv3d_cli.system.machine import thread_count

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask
    from conv3d_cli.convolution.prepared import Convolution

Activation: TypeAlias = str | Mapping[str, Any] | activations.Activation | Callable[..., Any] | None

# Work that is predicted to take less is done in the calling thread: to start a thread and wait for
# it takes 0.1 to 0.5 ms (2 CPUs, 2026-11), and predictions count the packing of the weights, which
# is done once.
QUICK_SECONDS = 1e-3

_plans = KeptPlans()
_calls = KeptCalls()


class Keywords(TypedDict, total=False):
    """The keyword arguments of `conv3d`, for type checkers."""

    strides: int | Sequence[int]
    padding: str | int | Sequence[object]
    dilation_rate: int | Sequence[int]
    groups: int
    data_format: str
    kernel_layout: str
    kernel_spacing: str
    activation: Activation
    magnitude: bool
    boundary: str | Boundary
    mask: Any
    mask_mode: str
    mask_labels: bool
    nan: str
    missing: float | None
    min_coverage: float
    out: Any
    threads: int | None
    algorithm: str
    allow_strided_dilation: bool


@overload
def conv3d(
    x: Volume, kernel: KernelLike, bias: ArrayLike | None = None, **keywords: Unpack[Keywords]
) -> Volume: ...


@overload
def conv3d(
    x: np.ma.MaskedArray[Any, Any],
    kernel: KernelLike,
    bias: ArrayLike | None = None,
    **keywords: Unpack[Keywords],
) -> np.ma.MaskedArray[Any, Any]: ...


@overload
def conv3d(
    x: NDArray[Any] | Sequence[Any],
    kernel: KernelLike,
    bias: ArrayLike | None = None,
    **keywords: Unpack[Keywords],
) -> NDArray[Any]: ...


@overload
def conv3d(
    x: Any, kernel: KernelLike, bias: ArrayLike | None = None, **keywords: Unpack[Keywords]
) -> Any: ...


def conv3d(
    x: Any,
    kernel: KernelLike,
    bias: ArrayLike | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[object] = "valid",
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
    data_format: str = "channels_last",
    kernel_layout: str = "keras",
    kernel_spacing: str = "match",
    activation: Activation = None,
    magnitude: bool = False,
    boundary: str | Boundary = "zeros",
    mask: Any = None,
    mask_mode: str = "clip",
    mask_labels: bool = False,
    nan: str = "propagate",
    missing: float | None = None,
    min_coverage: float = MIN_COVERAGE,
    out: Any = None,
    threads: int | None = None,
    algorithm: str = "auto",
    allow_strided_dilation: bool = False,
) -> Any:
    """Convolve an array as Keras' Conv3D does: cross-correlation, the kernel is not flipped.

    x : (D, H, W), or (..., D, H, W, C) with any batch axes; (..., C, D, H, W) under
        data_format="channels_first". Real numbers of any dtype. Or a `Volume`, whose `axes` and
        `grid` tell everything; or a masked array, a PyTorch tensor, an xarray or a Dask array (see
        below)
    kernel : (kd, kh, kw), applied to every channel separately; or (kd, kh, kw, C/groups, filters);
        or text, as for the command: "gaussian:fwhm=6mm" (mm need a `Volume`), the path of a file;
        or a `Kernel`, which may be a bank: "gradient:axis=dhw" makes three output channels from
        each input channel
    bias : (filters,), one number for all filters, or None
    strides, dilation_rate : int or 3 ints, in D, H, W order
    padding : "valid", "same" (Keras' split), "full", an int, 3 ints, or 3 (before, after) pairs
    groups : int, divides the input channels and the filters of a 5-D kernel
    data_format : "channels_last" or "channels_first"
    kernel_layout : "keras", or "torch" for an array (filters, C/groups, kd, kh, kw)
    kernel_spacing : if x is a `Volume` and the kernel's file gives another voxel spacing: "match"
        refuses the kernel, "resample" resamples it, "ignore" applies it voxel by voxel
    activation : a name, a serialised dict, a callable or None; see `conv3d_cli.layer.activations`
    magnitude : with a bank, return the root of the sum of its filters' squares: one output channel
        for each input channel
    boundary : the values that padding reads: "zeros", "constant=V", "nearest", "symmetric",
        "mirror" or "wrap"; "renormalize" reads none and divides by the weights inside the volume
    mask : (D, H, W) of certainties of at least 0, a `Volume` on the grid of x, the path of one, or
        None. With a mask each output is a mean, sum(w m x) / sum(w m). Only ratios of its values
        matter: m is the mask divided by its largest value
    mask_mode, mask_labels, nan, missing, min_coverage : see `conv3d_cli.model.missing.Missing`
    out : a NumPy array of the result's shape and dtype to fill, which must not overlap x, or None
    threads : int or None; None: CONV3D_THREADS, else OMP_NUM_THREADS, else all usable CPUs
    algorithm : "auto" or the name of one, as `conv3d explain` lists them
    allow_strided_dilation : compute strides > 1 with dilation > 1, which Keras refuses
    Returns float64 if x is float64, else float32, in the layout of x and in the same kind of array:

    - a `Volume` with the grid of the result; `write_volume` writes it as the command does
    - a masked array: its masked voxels are missing, as those of value `missing` are; results that
      rest on less than `min_coverage` of the kernel's weight are masked
    - a tensor on the CPU, without gradients
    - an xarray DataArray with its dimensions, and the coordinates of the voxels that are left. Its
      dimensions are told by their names (z, y, x, depth, height, width, c, channel), and its voxel
      spacing by even coordinates with an attribute `units`
    - a Dask array, which is computed at once, in memory, and refused if that is too small

    Raises: SpecError for arguments that are never legal, ShapeError for shapes that do not fit
        (both are ValueErrors), MemoryLimitError; FormatError for a file.
    Source: Keras 3, keras/src/layers/convolutional/base_conv.py.

    >>> conv3d(np.ones((4, 4, 4)), np.ones((3, 3, 3))).shape
    (2, 2, 2)
    >>> conv3d(np.ones((1, 5, 5, 5, 2)), np.ones((3, 3, 3, 2, 8)), strides=2, padding="same").shape
    (1, 3, 3, 3, 8)

    A volume is smoothed by a length in its own unit, and keeps its grid:

    >>> from conv3d_cli import Grid, Volume
    >>> scan = Volume(np.ones((6, 8, 8)), "zyx", Grid((3.0, 2.0, 2.0), "mm"))
    >>> smooth = conv3d(scan, "gaussian:fwhm=6mm", padding="same", boundary="nearest")
    >>> smooth.data.shape, smooth.grid.spacing
    ((6, 8, 8), (3.0, 2.0, 2.0))

    NaN can be left out of a mean:

    >>> x, box = np.ones((4, 4, 4)), np.ones((3, 3, 3)) / 27
    >>> x[1, 2, 2] = np.nan
    >>> y = conv3d(x, box, padding="same", boundary="nearest", nan="ignore")
    >>> float(y.max().round(6))
    1.0

    A bank of derivatives, and its magnitude:

    >>> ramp = np.add.outer(3 * np.arange(5.0), np.zeros((5, 5))) + 4 * np.arange(5.0)
    >>> conv3d(ramp, "gradient:axis=dhw")[0, 0, 0].tolist()
    [3.0, 0.0, 4.0]
    >>> float(conv3d(ramp, "gradient:axis=dhw", magnitude=True)[0, 0, 0])
    5.0
    """
    call = None
    if mask is None and missing is None and nan == "propagate" and not magnitude:
        options = (
            *(strides, padding, dilation_rate, groups, data_format, kernel_layout, kernel_spacing),
            *(activation, boundary, threads, algorithm, allow_strided_dilation),
        )
        call = call_key(x, kernel, bias, options)
        if call is not None and (found := _calls.repeat(call, x, out)) is not None:
            return found
    source = contents(x)
    if source.values.dtype.kind not in "buif":
        raise ShapeError(
            f"x must hold real numbers, received dtype {source.values.dtype}; pass an array, or a "
            "Volume as read_volume() makes it"
        )
    if data_format not in ("channels_last", "channels_first"):
        raise SpecError(
            f"data_format must be 'channels_last' or 'channels_first', received {data_format!r}"
        )
    function = activations.get(activation)
    spec = ConvSpec(
        strides,
        padding,
        dilation_rate,
        groups,
        boundary=boundary,
        allow_strided_dilation=allow_strided_dilation,
    )
    used = kernel_for(kernel, spec, source.grid, kernel_layout, kernel_spacing, function)
    if bias is not None:
        used = replace(used, bias=contents(bias, "bias").values)
    if magnitude and not used.is_bank:
        raise SpecError(
            "magnitude needs a bank of derivatives, as in axis=dhw, "
            f"received {used.name}, which is one kernel"
        )
    policy = Missing(
        nan, missing, None if mask is None else "mask", mask_mode, mask_labels, min_coverage
    )
    values = source.values
    if source.missing is not None:
        values, policy = _marked(values, source.missing, policy)

    # in either byte order
    wide = values.dtype.kind == "f" and values.dtype.itemsize >= 8
    precision = "float64" if wide else "float32"
    stored = values.dtype
    if stored.kind == "f" and stored.itemsize not in (4, 8):
        stored = np.dtype(precision)
    letters = source.letters or axis_letters(values.ndim, used.is_layer, data_format)
    header = VolumeHeader(
        Axes(letters, values.shape), stored.newbyteorder("="), source.grid or Grid()
    )
    resolved = resolve_convolution(
        spec,
        used,
        header.shape,
        magnitude=magnitude,
        missing=policy,
        activations=[function] if function.kind == "voxel" else [],
    )
    if source.missing is not None:
        for note in resolved.notes:
            warnings.warn(note, stacklevel=2)
    problem = resolved.problem
    out_axes = header.axes.resized(
        (header.shape[0], *problem.out_size, resolved.channels_out),
        channels_first=data_format == "channels_first",
    )
    sums = np.empty(out_axes.shape, precision)
    if out is not None and function.kind == "voxel":
        sums = _checked_out(out, out_axes.shape, precision, values)
    coverage = None
    if source.missing is not None and mask is not None:
        coverage = np.empty(out_axes.shape, np.float32)
    _compute(
        resolved,
        ArrayReader(values, header),
        ArrayWriter(sums, VolumeHeader(out_axes, sums.dtype)),
        mask=None if mask is None else checked_mask(mask, header, mask_labels),
        threads=thread_count(threads),
        algorithm=algorithm,
        coverage=coverage,
        call=call if function.kind == "voxel" else None,
    )
    if function.kind != "voxel":
        sums = function(sums)
        if out is not None:
            given = _checked_out(out, sums.shape, precision, values)
            given[...] = sums
            sums = given
    if source.wrap is plain:
        return sums if out is None else out
    lacking = None
    if source.missing is not None and nan != "zero":
        lacking = np.isnan(sums) if coverage is None else coverage < min_coverage
    return source.wrap(
        Result(
            sums,
            lacking,
            out_axes,
            grid_after(header.grid, problem),
            problem.voxel_transform,
            used.filter_names if used.is_bank and not magnitude else (),
        )
    )


def _compute(
    resolved: ResolvedConvolution,
    reader: ArrayReader,
    writer: ArrayWriter,
    *,
    mask: Mask | None,
    threads: int,
    algorithm: str,
    coverage: NDArray[np.float32] | None,
    call: Hashable,
) -> None:
    """Run a convolution from array to array.

    coverage : array or None    like the output; receives the coverage of its means
    call : hashable or None     the key by which the call will be known if it is repeated
    """
    problem, policy = resolved.problem, resolved.missing
    values = reader.array
    parts = list(parts_in_storage_order(reader.header.axes, channels_together=True))
    dtype = writer.array.dtype
    key = plan_key(resolved, reader.header.dtype.str, dtype.name, threads, algorithm)
    kept = _plans.take(key)
    if key is not None and kept is None:
        # with a copy of the weights, since the caller may change those of a Kernel in place
        resolved = replace(resolved, kernel=replace(resolved.kernel))
    convolution = assemble(
        resolved,
        problem.in_channels,
        precision=writer.array.dtype.name,
        threads=threads,
        algorithm=algorithm,
        mask=mask,
        several_parts=len(parts) > 1,
        reports_coverage=coverage is not None,
        plan=kept,
    )
    depth = problem.out_size[0]
    if policy.applies_to(problem.boundary) or resolved.magnitude:
        # in slabs small enough that weights and sums stay in the caches
        step = convolution.plan.depth_step
        plane = max(1, values.itemsize * values.size // max(1, len(parts) * problem.in_size[0]))
        depth = min(depth, step * -(-max(DEEP_SLAB_BYTES // plane, LEAST_SLAB) // step))
    beside = []
    if coverage is not None:
        header = VolumeHeader(writer.header.axes, coverage.dtype)
        beside = [(ROLES["coverage"], ArrayWriter(coverage, header))]
    if kept is None:
        load_loops(Graph.chain([convolution]), reader.header, dtype)
    plan = convolution.plan
    work = plan.seconds[plan.algorithm.name] * plan.threads * len(parts)
    quick = work < QUICK_SECONDS and mask is None
    with SerialWorker(0) if quick else kept_team(threads) as team:
        stream(
            StreamPlan(convolution, parts, depth),
            reader,
            writer,
            team,
            beside=beside,
            in_turn=quick or (len(parts) == 1 and depth >= problem.out_size[0]),
        )
    if quick and call is not None and kept is not None and not _calls.holds(call):
        repeated = _repeated(convolution, parts, reader, writer)
        if repeated is not None:
            _calls.keep(call, repeated)
            return
    _plans.keep(key, plan)


def _repeated(
    convolution: Convolution,
    parts: list[tuple[int, slice]],
    reader: ArrayReader,
    writer: ArrayWriter,
) -> KeptCall | None:
    """A convolution from array to array that the next calls can repeat; None if they cannot."""
    problem, sums = convolution.problem, writer.array
    if len(parts) != 1 or not sums.flags.carray:
        return None
    n, channels = parts[0]
    slab = SlabSource(reader, n, channels, problem).read(0, problem.out_size[0])
    stored = convolution.stored(channels, writer.header.shape[4])
    block = writer.block(n, slice(0, problem.out_size[0]), stored)
    arrays = ((slab.source, reader.array), (block, sums))
    if not all(np.may_share_memory(view, array) for view, array in arrays):
        return None  # a copy
    repetition = convolution.repetition(slab, block)
    return None if repetition is None else KeptCall(repetition, sums.shape, sums.dtype)


def _marked(
    values: NDArray[Any], masked: NDArray[np.bool_], policy: Missing
) -> tuple[NDArray[Any], Missing]:
    """A copy of an array whose masked voxels hold a value that marks them, and the policy for it.

    masked : bool, of the shape of the array
    Raises: ShapeError if the policy allows no missing voxels.
    """
    if policy.nan == "error":
        raise ShapeError(
            f"nan='error' allows no missing voxels, received {int(masked.sum())} masked ones; "
            "use nan='propagate', which leaves them out, or nan='zero'"
        )
    if policy.value is not None:
        masked = masked | (values == policy.value)
    if values.dtype.kind != "f" or values.dtype.itemsize not in (4, 8):
        wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
        values = values.astype(np.float64 if wide else np.float32)
    else:
        values = values.astype(values.dtype.newbyteorder("="))
    if policy.nan != "propagate":
        values[masked] = np.nan
        return values, policy
    # NaN stays what it is: another number marks the masked voxels, one that no other voxel has
    marker = np.finfo(values.dtype).max
    values[masked] = 0
    while (values == marker).any():
        marker = np.nextafter(marker, values.dtype.type(0))
    values[masked] = marker
    return values, replace(policy, value=float(marker))


def _checked_out(
    out: Any, shape: tuple[int, ...], dtype: str, source: NDArray[Any]
) -> NDArray[Any]:
    """The array in `out`, which fits the result. Raises: ShapeError."""
    array = out.data if isinstance(out, Volume) else out
    if not isinstance(array, np.ndarray):
        raise ShapeError(f"out must be a NumPy array, received a {type(array).__name__}")
    array = np.asarray(array)
    if array.shape != shape or array.dtype != dtype:
        raise ShapeError(
            f"out must be an array of {dtype} and of the result's shape {shape}, received "
            f"{array.dtype} {array.shape}"
        )
    if not array.flags.writeable:
        raise ShapeError("out must be an array that can be filled, and this one is read-only")
    if not array.flags.aligned:
        raise ShapeError(
            f"the numbers of out must lie at multiples of {array.itemsize} bytes in memory, and "
            "these do not: pass an array that np.empty has made"
        )
    if np.may_share_memory(array, source):
        raise ShapeError("out must not overlap x, which is read while out is written: pass a copy")
    return array


def checked_mask(mask: Any, header: VolumeHeader, labels: bool) -> Mask:
    """A mask checked against the volume that `header` describes.

    Raises: ShapeError if it does not fit, FormatError if its file cannot be read.
    """
    from conv3d_cli.convolution.masks import check_mask

    path = "array"
    if isinstance(mask, (str, os.PathLike)):
        path = os.fspath(mask)
        mask = read_volume(path)
    found = contents(mask, "mask")
    array, letters = found.values, found.letters or "zyx"
    if found.missing is not None:
        array = np.where(found.missing, 0, array)
    if array.ndim != len(letters) or array.dtype.kind not in "buif":
        raise ShapeError(
            "the mask must be (D, H, W) of real numbers, "
            f"received {array.ndim} axes of {array.dtype}"
        )
    own = VolumeHeader(
        Axes(letters, array.shape), array.dtype.newbyteorder("="), found.grid or Grid()
    )
    return check_mask(ArrayReader(array, own, path), header, labels)


def axis_letters(rank: int, is_layer: bool, data_format: str) -> str:
    """Letters as in `Axes` for an array of `rank` axes. Raises: ShapeError for a wrong rank."""
    if rank == 3:
        if is_layer:
            raise ShapeError(
                "a 5-D kernel needs an array with a channel axis, received a 3-D one; "
                "add it with x[..., None]"
            )
        return "zyx"
    space = "zyxc" if data_format == "channels_last" else "czyx"
    if rank < 3 or rank - 4 > len(BATCH_LETTERS):
        raise ShapeError(f"x must be (D, H, W) or (..., D, H, W, C), received {rank} axes")
    return BATCH_LETTERS[: rank - 4] + space

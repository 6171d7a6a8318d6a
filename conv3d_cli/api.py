"""`conv3d()`: convolve NumPy arrays, with Keras' argument names and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conv3d_cli.convolution.assemble import assemble, resolve_convolution
from conv3d_cli.engine import Team
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.layer import activations
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import MIN_COVERAGE, Missing
from conv3d_cli.model.spec import Boundary, ConvSpec
from conv3d_cli.model.volume import (
    ArrayReader,
    ArrayWriter,
    Axes,
    VolumeHeader,
    VolumeReader,
    parts_in_storage_order,
)
from conv3d_cli.pipeline.blocking import DEEP_SLAB_BYTES, LEAST_SLAB
from conv3d_cli.pipeline.stream import StreamPlan, load_loops, stream
from conv3d_cli.system.machine import thread_count

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask

BATCH_LETTERS = "tabdefghijklmnopqruvw"


def conv3d(
    x: ArrayLike,
    kernel: ArrayLike | Kernel,
    bias: ArrayLike | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[object] = "valid",
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
    data_format: str = "channels_last",
    activation: str | Mapping[str, Any] | activations.Activation | Callable[..., Any] | None = None,
    magnitude: bool = False,
    boundary: str | Boundary = "zeros",
    mask: ArrayLike | None = None,
    mask_mode: str = "clip",
    mask_labels: bool = False,
    nan: str = "propagate",
    missing: float | None = None,
    min_coverage: float = MIN_COVERAGE,
    threads: int | None = None,
    algorithm: str = "auto",
    allow_strided_dilation: bool = False,
) -> NDArray[Any]:
    """Convolve an array as Keras' Conv3D does: cross-correlation, the kernel is not flipped.

    x : (D, H, W), or (..., D, H, W, C) with any batch axes; (..., C, D, H, W) under
        data_format="channels_first". Real numbers of any dtype.
    kernel : (kd, kh, kw), applied to every channel separately; or (kd, kh, kw, C/groups, filters);
        or a `Kernel`, which may be a bank: `read_kernel("gradient:axis=dhw")` makes three output
        channels from each input channel
    bias : (filters,), one number for all filters, or None
    strides, dilation_rate : int or 3 ints, in D, H, W order
    padding : "valid", "same" (Keras' split), "full", an int, 3 ints, or 3 (before, after) pairs
    groups : int, divides the input channels and the filters of a 5-D kernel
    data_format : "channels_last" or "channels_first"
    activation : a name, a serialised dict, a callable or None; see `layer.activations`
    magnitude : with a bank, return the root of the sum of its filters' squares: one output channel
        for each input channel
    boundary : the values that padding reads: "zeros", "constant=V", "nearest", "symmetric",
        "mirror" or "wrap"; "renormalize" reads none and divides by the weights inside the volume
    mask : (D, H, W) of certainties of at least 0, or None. With a mask each output is a mean,
        sum(w m x) / sum(w m). Only ratios of its values matter: m is the mask divided by its
        largest value
    mask_mode, mask_labels, nan, missing, min_coverage : see `model.missing.Missing`
    threads : int or None; None: CONV3D_THREADS, else OMP_NUM_THREADS, else all usable CPUs
    algorithm : "auto" or the name of one, as `conv3d explain` lists them
    allow_strided_dilation : compute strides > 1 with dilation > 1, which Keras refuses
    Returns float64 if x is float64, else float32, in the layout of x.
    Raises: SpecError for arguments that are never legal, ShapeError for shapes that do not fit
        (both are ValueErrors).
    Source: Keras 3, keras/src/layers/convolutional/base_conv.py.

    >>> conv3d(np.ones((4, 4, 4)), np.ones((3, 3, 3))).shape
    (2, 2, 2)
    >>> conv3d(np.ones((1, 5, 5, 5, 2)), np.ones((3, 3, 3, 2, 8)), strides=2, padding="same").shape
    (1, 3, 3, 3, 8)

    NaN can be left out of a mean:

    >>> x, box = np.ones((4, 4, 4)), np.ones((3, 3, 3)) / 27
    >>> x[1, 2, 2] = np.nan
    >>> y = conv3d(x, box, padding="same", boundary="nearest", nan="ignore")
    >>> float(y.max().round(6))
    1.0

    A bank of derivatives, and its magnitude:

    >>> from conv3d_cli import read_kernel
    >>> ramp = np.add.outer(3 * np.arange(5.0), np.zeros((5, 5))) + 4 * np.arange(5.0)
    >>> gradient = read_kernel("gradient:axis=dhw")
    >>> conv3d(ramp, gradient)[0, 0, 0].tolist()
    [3.0, 0.0, 4.0]
    >>> float(conv3d(ramp, gradient, magnitude=True)[0, 0, 0])
    5.0
    """
    x = np.asarray(x)
    if x.dtype.kind not in "buif":
        raise ShapeError(f"x must hold real numbers, received dtype {x.dtype}")
    kernel = kernel if isinstance(kernel, Kernel) else Kernel(np.asarray(kernel))
    if bias is not None:
        kernel = replace(kernel, bias=np.asarray(bias))
    if data_format not in ("channels_last", "channels_first"):
        raise SpecError(
            f"data_format must be 'channels_last' or 'channels_first', received {data_format!r}"
        )
    if magnitude and not kernel.is_bank:
        raise SpecError(
            "magnitude needs a bank of derivatives, as in axis=dhw, "
            f"received {kernel.name}, which is one kernel"
        )
    letters = _axis_letters(x.ndim, kernel, data_format)
    spec = ConvSpec(
        strides,
        padding,
        dilation_rate,
        groups,
        boundary=boundary,
        allow_strided_dilation=allow_strided_dilation,
    )
    function = activations.get(activation)

    # in either byte order
    precision = "float64" if x.dtype.kind == "f" and x.dtype.itemsize >= 8 else "float32"
    stored = x.dtype if x.dtype.kind != "f" or x.dtype.itemsize in (4, 8) else np.dtype(precision)
    header = VolumeHeader(Axes(letters, x.shape), stored.newbyteorder("="))
    policy = Missing(
        nan, missing, None if mask is None else "mask", mask_mode, mask_labels, min_coverage
    )
    resolved = resolve_convolution(
        spec,
        kernel,
        header.shape,
        magnitude=magnitude,
        missing=policy,
        activations=[function] if function.kind == "voxel" else [],
    )
    problem, channels = resolved.problem, resolved.channels_out
    sizes = dict(zip("zyxc", (*problem.out_size, channels), strict=True))
    if "c" not in letters and channels > 1:  # a bank makes vectors from a (D, H, W) array
        letters = f"{letters}c" if data_format == "channels_last" else f"c{letters}"
    out_axes = header.axes.renamed(letters, sizes)
    out = np.empty(out_axes.shape, precision)
    parts = list(parts_in_storage_order(header.axes, channels_together=True))
    workers = thread_count(threads)
    convolution = assemble(
        resolved,
        problem.in_channels,
        precision=precision,
        threads=workers,
        algorithm=algorithm,
        mask=None if mask is None else _checked_mask(mask, header, mask_labels),
        several_parts=len(parts) > 1,
    )
    reader: VolumeReader = ArrayReader(x, header)
    depth = problem.out_size[0]
    if policy.applies_to(problem.boundary) or magnitude:
        # in slabs small enough that weights and sums stay in the caches
        step = convolution.plan.depth_step
        plane = max(1, x.itemsize * x.size // max(1, len(parts) * problem.in_size[0]))
        depth = min(depth, step * -(-max(DEEP_SLAB_BYTES // plane, LEAST_SLAB) // step))
    stream_plan = StreamPlan(convolution, parts, depth)
    load_loops([convolution], header, out.dtype)
    with Team(workers) as team:
        stream(stream_plan, reader, ArrayWriter(out, VolumeHeader(out_axes, out.dtype)), team)
    return out if function.kind == "voxel" else function(out)


def _checked_mask(mask: ArrayLike, header: VolumeHeader, labels: bool) -> Mask:
    """A mask (D, H, W) checked against the volume that `header` describes. Raises: ShapeError."""
    from conv3d_cli.convolution.masks import check_mask

    array = np.asarray(mask)
    if array.ndim != 3 or array.dtype.kind not in "buif":
        raise ShapeError(
            "the mask must be (D, H, W) of real numbers, "
            f"received {array.ndim} axes of {array.dtype}"
        )
    reader = ArrayReader(
        array, VolumeHeader(Axes("zyx", array.shape), array.dtype.newbyteorder("=")), "mask"
    )
    return check_mask(reader, header, labels)


def _axis_letters(rank: int, kernel: Kernel, data_format: str) -> str:
    """Letters as in `Axes` for an array of `rank` axes. Raises: ShapeError for a wrong rank."""
    if rank == 3:
        if kernel.is_layer:
            raise ShapeError(
                "a 5-D kernel needs an array with a channel axis, received a 3-D one; "
                "add it with x[..., None]"
            )
        return "zyx"
    space = "zyxc" if data_format == "channels_last" else "czyx"
    if rank < 3 or rank - 4 > len(BATCH_LETTERS):
        raise ShapeError(f"x must be (D, H, W) or (..., D, H, W, C), received {rank} axes")
    return BATCH_LETTERS[: rank - 4] + space

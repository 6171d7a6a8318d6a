"""The kernel of `conv3d()`, from all that people pass: text, a path, an array, a `Kernel`."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import ArrayLike

from conv3d_cli.api.containers import contents
from conv3d_cli.errors import ShapeError, SpecError, unknown_name
from conv3d_cli.kernels import is_builtin, may_name_a_layer, read_kernel
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import ConvSpec, parse_padding, triple
from conv3d_cli.model.volume import Axes, Volume
from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation, adapt_kernel

if TYPE_CHECKING:
    from conv3d_cli.layer.activations import Activation

KernelLike: TypeAlias = "ArrayLike | Kernel | str | os.PathLike[str] | Any"

# layout of a 5-D array of weights -> its axes in Keras' order: depth, height, width, in, filters
LAYOUTS = {"keras": (0, 1, 2, 3, 4), "torch": (2, 3, 4, 1, 0)}


def kernel_for(
    kernel: KernelLike,
    spec: ConvSpec,
    grid: Grid | None,
    layout: str,
    spacing: str,
    activation: Activation,
) -> Kernel:
    """The kernel to convolve with.

    kernel : text of a built-in, path, array, `Kernel` or `Volume`
    spec, activation        of the convolution; those of a layer in a weights file must be the same
    grid : Grid or None     of the volume
    layout, spacing : str   the arguments `kernel_layout` and `kernel_spacing` of `conv3d`
    Raises: SpecError, ShapeError, FormatError, UnknownNameError.
    """
    if layout not in LAYOUTS:
        raise unknown_name("kernel_layout", layout, LAYOUTS)
    wish = KernelAdaptation(spacing)
    text = _text(kernel)
    given = kernel if isinstance(kernel, Kernel) else None
    if text is None and not isinstance(kernel, (Kernel, Volume)):
        return kernel_of_array(kernel, layout)
    if isinstance(kernel, Volume):
        given = kernel_of_array(kernel)
    if layout != "keras":
        raise SpecError(
            f"kernel_layout={layout!r} is for arrays, whose layout nothing tells; leave it out "
            f"with {text or 'a Kernel'}"
        )
    if text is not None and not is_builtin(text):
        _check_layer(text, spec, activation)
    found = read_kernel(str(text), grid) if given is None else given
    if spacing == "match" and (found.grid is None or grid is None):
        return found
    found, notes = adapt_kernel(found, text or found.name, grid, wish)
    if spacing == "match":
        for note in notes:
            warnings.warn(note, stacklevel=3)
    return found


def kernel_of_array(weights: Any, layout: str = "keras") -> Kernel:
    """A kernel from an array in either layout, or from a `Volume`, whose grid it keeps.

    Three axes are the same in both layouts.
    Raises: ShapeError.
    >>> import numpy as np
    >>> kernel_of_array(np.ones((8, 2, 3, 3, 5)), "torch").weights.shape
    (3, 3, 5, 2, 8)
    """
    array = contents(weights, "kernel").values
    if isinstance(weights, Volume):
        axes = Axes(weights.axes, array.shape)
        if axes.canonical_shape[0] * axes.canonical_shape[4] > 1:
            raise ShapeError(
                f"a Volume as a kernel has depth, height and width, received the axes "
                f"{weights.axes} of {array.shape}"
            )
        array = axes.block(array, 0, slice(None), slice(None))[..., 0]
        known = weights.grid.spacing is not None and weights.grid.unit is not None
        return Kernel(array, grid=weights.grid if known else None)
    return Kernel(array.transpose(LAYOUTS[layout]) if array.ndim == 5 else array)


def _text(kernel: Any) -> str | None:
    """The text or path of a kernel; None for one in memory."""
    if isinstance(kernel, str):
        return kernel
    if isinstance(kernel, os.PathLike):
        path = str(os.fspath(kernel))
        return os.path.join(os.curdir, path) if is_builtin(path) else path
    return None


def _check_layer(text: str, spec: ConvSpec, activation: Activation) -> None:
    """Refuse a layer of a weights file that runs with other settings than these."""
    if not may_name_a_layer(text):
        return
    from conv3d_cli.kernels import weights
    from conv3d_cli.layer import activations

    if weights.find_weights_file(weights.split_name(text)[0]) is None:
        return
    config = weights.saved_layer(text).config or {}
    own = {
        "strides": triple(config.get("strides", 1), "strides"),
        "padding": parse_padding(config.get("padding", "valid")),
        "dilation_rate": triple(config.get("dilation_rate", 1), "dilation_rate"),
        "groups": config.get("groups", 1),
    }
    differing = [f"{name}={value!r}" for name, value in own.items() if value != getattr(spec, name)]
    trained = activations.get(config.get("activation"))
    if trained.name != activation.name:
        differing.append(f"activation={trained.name!r}")
    if config and differing:
        raise SpecError(
            f"{text} is a layer with {', '.join(differing)}, and conv3d() was asked for something "
            "else; pass these, or read_kernel() of it for its weights alone"
        )

"""Widgets for napari: convolve a layer, and compare two layers.

napari finds them by `napari.yaml` and makes their forms from the signatures. Choices and tooltips
are those of the table of options. napari is imported only when a widget runs: it resolves the
names of its types, which are texts here, by itself.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.missing import MASK_MODES, NAN_MODES
from conv3d_cli.model.spec import BOUNDARIES, ConvSpec
from conv3d_cli.model.units import unit_name
from conv3d_cli.settings.options import OPTION

if TYPE_CHECKING:
    import napari.layers
    import napari.qt.threading
    import napari.types

    from conv3d_cli.model.kernel import Kernel
    from conv3d_cli.model.spec import VoxelTransform

Array = NDArray[Any]
Layer = tuple[Array, dict[str, Any], str]

MOST_VALUES = 1_000_000  # so many voxels of a layer tell its window


def _form(name: str, **more: Any) -> dict[str, Any]:
    """How a form shows an option of the table: its help as a tooltip, and some facts more."""
    return {"tooltip": OPTION[name].help, **more}


def apply(
    layer: "napari.layers.Image",
    kernel: Annotated[str, _form("kernel")] = "gaussian:fwhm=2vox",
    flip: Annotated[bool, _form("flip")] = False,
    normalize: Annotated[bool, _form("normalize")] = False,
    padding: Annotated[str, _form("padding")] = "same",
    boundary: Annotated[
        str, _form("boundary", choices=[b for b in BOUNDARIES if b != "constant"])
    ] = "symmetric",
    mask: "napari.layers.Labels | None" = None,
    mask_mode: Annotated[str, _form("mask_mode", choices=MASK_MODES)] = "clip",
    mask_labels: Annotated[bool, _form("mask_labels")] = False,
    nan: Annotated[str, _form("nan", choices=NAN_MODES)] = "propagate",
) -> "napari.qt.threading.FunctionWorker[list[napari.types.LayerDataTuple]]":
    """Convolve a layer in the background; the results are new layers beside it.

    layer : napari Image        of three axes or more; the last three are depth, height, width
    kernel, flip, normalize, padding, boundary : as in `conv3d apply`
    mask : napari Labels or None    (depth, height, width), of the layer's size
    mask_mode, mask_labels, nan : as in `conv3d apply`
    Returns a worker of napari, which makes the layers: one for each filter of the kernel.
    Raises: SpecError and ShapeError, before anything runs, for what `convolved` refuses at once.
    """
    from napari.qt.threading import thread_worker

    missing: dict[str, Any] = {"nan": nan}
    if mask is not None:
        values = np.asarray(mask.data)
        missing |= {
            "mask": values if mask_labels else values != 0,
            "mask_mode": mask_mode,
            "mask_labels": mask_labels,
        }
    chosen = _kernel(layer, kernel, flip, normalize)
    worker: Any = thread_worker(convolved, start_thread=True)
    return worker(layer, chosen, padding, boundary, missing)


def view(
    first: "napari.layers.Image", second: "napari.layers.Image"
) -> "napari.types.LayerDataTuple":
    """Show two layers with one window of grey, and their difference as a new layer.

    first, second : napari Image    of the same shape and scale
    Returns the layer of second - first: blue below 0, black at 0, orange above.
    Raises: ShapeError if the layers do not fit each other.
    """
    from conv3d_cli.pictures.panels import SIGNED, robust_window, signed_window

    if first.data.shape != second.data.shape or not np.allclose(first.scale, second.scale):
        raise ShapeError(
            f"the layers must have one shape and scale, received {first.name} of shape "
            f"{first.data.shape}, scale {tuple(first.scale)}, and {second.name} of shape "
            f"{second.data.shape}, scale {tuple(second.scale)}"
        )
    a, b = (np.asarray(layer.data, np.float32) for layer in (first, second))
    difference = b - a
    window = _limits(robust_window([_some(a), _some(b)]))
    first.contrast_limits = second.contrast_limits = window
    return (
        difference,
        {
            **_place(first),
            "name": f"{second.name} - {first.name}",
            "contrast_limits": _limits(signed_window([_some(difference)])),
            "colormap": {"name": "conv3d difference", "colors": SIGNED[:-1] / 255},
        },
        "image",
    )


# --------------------------------------------------------------------------------------------------
# Layers and arrays


def convolved(
    layer: Any, kernel: "Kernel", padding: str, boundary: str, missing: dict[str, Any]
) -> list[Layer]:
    """The layers that a convolution makes: one for each filter.

    layer : napari Image
    kernel : Kernel             of three axes, or a bank of such
    padding, boundary : str     as in `conv3d apply`
    missing : dict              arguments of `conv3d` about masks and missing voxels
    Raises: as `conv3d`.
    """
    from conv3d_cli.api.arrays import conv3d

    values = np.asarray(layer.data)
    result = conv3d(values[..., None], kernel, padding=padding, boundary=boundary, **missing)
    shape = (1, *values.shape[-3:], 1)
    problem = ConvSpec(padding=padding, boundary=boundary).resolve(shape, (*kernel.size, 1, 1))
    place = moved(_place(layer), problem.voxel_transform)
    names = kernel.filter_names or (kernel.name,)
    return [
        (result[..., number], {**place, "name": f"{layer.name}, {name}"}, "image")
        for number, name in enumerate(names)
    ]


def _kernel(layer: Any, text: str, flip: bool, normalize: bool) -> "Kernel":
    """The kernel for a layer. Raises: SpecError for a layer that is not to be convolved."""
    from conv3d_cli.kernels import read_kernel

    if getattr(layer, "rgb", False):
        raise SpecError(f"{layer.name} is RGB; split its channels (right click on the layer) first")
    if getattr(layer, "multiscale", False):
        raise SpecError(f"{layer.name} has several resolutions; add one of them as a layer")
    if layer.data.ndim < 3:
        raise SpecError(
            f"a layer needs three axes, depth, height and width; {layer.name} has {layer.data.ndim}"
        )
    kernel = read_kernel(text, grid_of(layer))
    if kernel.is_layer:
        raise SpecError(f"{text} is a Conv3D layer; the widget takes filters of three axes")
    kernel = kernel.flipped() if flip else kernel
    return kernel.normalized() if normalize else kernel


def grid_of(layer: Any) -> Grid:
    """The spacing of a layer along its last three axes; none if its units are no lengths.

    >>> from types import SimpleNamespace
    >>> layer = SimpleNamespace(scale=(1.0, 0.3, 0.1, 0.1), units=("s", "um", "um", "um"))
    >>> grid_of(layer).spacing, grid_of(layer).unit
    ((0.3, 0.1, 0.1), 'um')
    """
    units = [unit_name(str(unit)) for unit in (getattr(layer, "units", None) or ())[-3:]]
    if len(units) < 3 or None in units:
        return Grid()
    unit = str(units[-1])
    d, h, w = (
        Grid((float(scale),) * 3, own).spacing_in(unit)[0]
        for scale, own in zip(layer.scale[-3:], units, strict=True)
    )
    return Grid((d, h, w), unit)


def _place(layer: Any) -> dict[str, Any]:
    """Where a layer lies in napari's world, as arguments of a new layer."""
    names = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


def moved(place: dict[str, Any], transform: "VoxelTransform") -> dict[str, Any]:
    """The place of an output whose voxel 0 lies on another voxel of the input.

    >>> from conv3d_cli.model.spec import VoxelTransform
    >>> place = {"scale": (3.0, 2.0, 2.0), "translate": (10.0, 0.0, 0.0)}
    >>> moved(place, VoxelTransform(offset=(1.0, 0.5, 0.0)))["translate"].tolist()
    [13.0, 1.0, 0.0]
    """
    count = len(place["scale"])
    steps = np.diag(np.asarray(place["scale"], np.float64))
    if "shear" in place:
        shear = np.eye(count)
        shear[np.triu_indices(count, 1)] = place["shear"]  # napari tells what is above the diagonal
        steps = np.asarray(place["rotate"]) @ shear @ steps
    offset = np.zeros(count)
    offset[-3:] = transform.offset
    return {**place, "translate": np.asarray(place["translate"]) + steps @ offset}


def _some(values: Array) -> Array:
    """At most `MOST_VALUES` of the values, evenly taken."""
    return np.ravel(values)[:: max(1, math.ceil(values.size / MOST_VALUES))]


def _limits(window: tuple[float, float]) -> tuple[float, float]:
    """A window as napari takes it: the upper end above the lower."""
    low, high = window
    return (low, high) if high > low else (low, low + 1.0)

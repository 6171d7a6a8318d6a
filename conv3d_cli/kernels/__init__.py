"""Kernels by name or from a file: `gaussian:fwhm=6mm`, `psf.tif`, `model.keras::conv3d_1`.

A built-in kernel is one function in `builtin.py` and one line in `BUILTIN_KERNELS`; its signature
defines its parameters on the command line. `expressions.py` has the built-in that takes a formula.
The suffix of a file selects its reader: `files.py` reads kernel files. `weights/` reads files of
trained layers, and looks inside them. The class `Kernel` itself is in `model/kernel.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

from conv3d_cli.errors import SpecError, UnknownNameError, setting, unknown_name
from conv3d_cli.formats import recognize
from conv3d_cli.kernels import builtin, expressions, files, microscope
from conv3d_cli.kernels.files import KERNEL_FILES, find_kernel_file, no_kernel_file, read_bias
from conv3d_cli.kernels.grammar import (
    BuiltinKernel,
    KernelFunction,
    build_kernel,
    describe,
    function_name,
    lower_names,
)
from conv3d_cli.kernels.manifests import is_manifest
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.system.inputs import check_input

__all__ = [
    "BUILTIN_KERNELS",
    "KERNEL_FILES",
    "BuiltinKernel",
    "describe_builtins",
    "find_kernel_file",
    "is_builtin",
    "may_name_a_layer",
    "normal_text",
    "orient_kernel",
    "read_bias",
    "read_kernel",
    "write_kernel",
]

# The order of `conv3d kernel list`: averages, second derivatives, first derivatives, sharpening,
# microscopes, formulas.
BUILTIN_KERNELS: tuple[KernelFunction, ...] = (
    builtin.identity,
    builtin.box,
    builtin.gaussian,
    builtin.ball,
    builtin.laplacian,
    builtin.log,
    builtin.dog,
    builtin.sobel,
    builtin.prewitt,
    builtin.scharr,
    builtin.gradient,
    builtin.gaussian_derivative,
    builtin.sharpen,
    builtin.unsharp,
    microscope.born_wolf,
    microscope.gibson_lanni,
    expressions.expr,
)


def is_builtin(text: str) -> bool:
    """Whether a kernel text names a built-in kernel (its parameters may still be wrong).

    >>> is_builtin("gaussian:fwhm=6mm"), is_builtin("./gaussian"), is_builtin("psf.tif")
    (True, False, False)
    """
    name = function_name(text.partition(":")[0])
    return any(function.__name__ == name for function in BUILTIN_KERNELS)


def normal_text(text: str) -> str:
    """A kernel text with the names of a built-in and its parameters in lower case.

    >>> normal_text("Gaussian:FWHM=6mm"), normal_text("PSF.tif")
    ('gaussian:fwhm=6mm', 'PSF.tif')
    """
    return lower_names(text) if is_builtin(text) else text


def describe_builtins() -> list[BuiltinKernel]:
    """Name, parameters and summary of every built-in kernel.

    >>> box, gaussian, ball = describe_builtins()[1:4]
    >>> box.name, [str(parameter) for parameter in box.parameters]
    ('box', ['[size=3]'])
    >>> ball.name, [str(parameter) for parameter in ball.parameters]
    ('ball', ['radius=LENGTH', '[orient=voxel|world]'])
    """
    return [describe(function) for function in BUILTIN_KERNELS]


def orient_kernel(kernel: str | Kernel | None, orient: str) -> str:
    """Add `orient` to the text of a built-in kernel.

    Raises: SpecError if the kernel has no such parameter, or the text gives it another value.
    >>> orient_kernel("sobel:axis=x", "world")
    'sobel:axis=x:orient=world'
    """
    orientable = [
        k.name for k in describe_builtins() if any(p.name == "orient" for p in k.parameters)
    ]
    name, *pairs = (
        (part.strip() for part in kernel.split(":"))
        if isinstance(kernel, str)
        else ("this kernel",)
    )
    if name not in orientable:
        raise SpecError(
            f"{setting('orient', orient)} is for {', '.join(orientable)}; {name} has no direction "
            "in the world: leave it out"
        )
    given = [
        pair.partition("=")[2].strip()
        for pair in pairs
        if pair.partition("=")[0].strip() == "orient"
    ]
    if given and given != [orient]:
        raise SpecError(
            f"{setting('orient', orient)} contradicts orient={given[0]} of the kernel: leave one "
            "of them out"
        )
    return kernel if given and isinstance(kernel, str) else f"{kernel}:orient={orient}"


def may_name_a_layer(text: str) -> bool:
    """Whether a kernel text may name a layer in a weights file; if not, skip `kernels.weights`.

    >>> [may_name_a_layer(text) for text in ("model.keras", "psf.npy", "gaussian:sigma=1vox")]
    [True, False, False]
    """
    if is_manifest(text):
        return True
    return "::" in text or not (is_builtin(text) or find_kernel_file(text) is not None)


def write_kernel(path: str | os.PathLike[str], kernel: Kernel, *, overwrite: bool = False) -> None:
    """Write a kernel in the format of the suffix; a filter bank becomes a one-channel Conv3D layer.

    Raises: as `files.write_kernel`.
    """
    files.write_kernel(path, kernel.as_layer() if kernel.is_bank else kernel, overwrite=overwrite)


def read_kernel(
    text: str | os.PathLike[str], grid: Grid | None = None, *, folder: Path | None = None
) -> Kernel:
    """Read a kernel from its text: a built-in with parameters, a file, or FILE::NAME (a layer).

    text : as `-k` takes it, or the path of a file
    grid : Grid or None     grid of the volume; lengths in mm, um, ... need its voxel spacing
    folder : Path or None   base of a relative path; None: the current folder

    Raises: UnknownNameError for a text that names no kernel; SpecError for a wrong parameter, or a
    weights file of several layers without NAME; FormatError for a missing or damaged file;
    ShapeError for wrong shapes or values, or a length in mm for a volume without voxel spacing.

    >>> read_kernel("gaussian:sigma=1,1,0.5vox").size
    (9, 9, 5)
    """
    text = os.fspath(text)
    if grid is not None and not isinstance(grid, Grid):
        raise SpecError(
            f"read_kernel() takes a Grid, received {type(grid).__name__}; pass that of the volume, "
            "as in read_kernel('gaussian:fwhm=6mm', volume.grid)"
        )
    if is_builtin(text):
        return build_kernel(text, BUILTIN_KERNELS, grid)
    path = os.path.join(folder, text) if folder is not None else text
    if may_name_a_layer(path):
        from conv3d_cli.kernels import weights

        file, layer = weights.split_name(path)
        if weights.find_weights_file(file) is not None:
            return weights.saved_layer(path).as_kernel(path)
        kind = find_kernel_file(path)
        if layer is not None and not (kind is not None and kind.has_parts):
            raise SpecError(
                f"{file} holds one kernel, and no layers to choose from; leave out ::{layer} "
                f"(weights files are {weights.weights_suffixes()})"
            )
    looks_like_a_file = find_kernel_file(text) is not None or "/" in text or os.sep in text
    if not looks_like_a_file and not os.path.exists(path):
        name, colon, _ = text.partition(":")
        error = unknown_name("kernel", name.strip(), [f.__name__ for f in BUILTIN_KERNELS])
        raise error if colon else UnknownNameError(f"{error}; nor is there a file of this name")
    if find_kernel_file(path) is None and recognize(path) is None:
        check_input(path)
        raise no_kernel_file(path)
    return files.read_kernel_file(path, lambda inner: build_kernel(inner, BUILTIN_KERNELS, grid))

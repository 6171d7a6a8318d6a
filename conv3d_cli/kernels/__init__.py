"""Kernels by name or from a file: `gaussian:fwhm=6mm`, `psf.tif`, `model.keras::conv3d_1`.

A built-in kernel is one function in `builtin.py` and one line in `BUILTIN_KERNELS`; its signature is its grammar. One of them
takes a formula (`expressions.py`). A kernel file's format is claimed by the suffix (`files.py`), and so is that of a file of
trained layers (`weights/`). What a kernel is, and what can be asked of it, is `model/kernel.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

from conv3d_cli.errors import SpecError, UnknownNameError, unknown_name
from conv3d_cli.kernels import builtin, expressions, files
from conv3d_cli.kernels.files import KERNEL_FILES, find_kernel_file, known_suffixes, read_bias
from conv3d_cli.kernels.grammar import BuiltinKernel, KernelFunction, build_kernel, describe
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel

__all__ = [
    "BUILTIN_KERNELS",
    "KERNEL_FILES",
    "BuiltinKernel",
    "describe_builtins",
    "find_kernel_file",
    "is_builtin",
    "known_suffixes",
    "may_name_a_layer",
    "orient_kernel",
    "read_bias",
    "read_kernel",
    "write_kernel",
]

# in the order `conv3d kernel list` shows them: averages, second derivatives, first derivatives, sharpening, any
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
    expressions.expr,
)


def is_builtin(text: str) -> bool:
    """Whether a kernel text names a built-in kernel (its parameters may still be wrong).

    >>> is_builtin("gaussian:fwhm=6mm"), is_builtin("./gaussian"), is_builtin("psf.tif")
    (True, False, False)
    """
    name = text.partition(":")[0].strip()
    return any(function.__name__ == name for function in BUILTIN_KERNELS)


def describe_builtins() -> list[BuiltinKernel]:
    """Name, parameters and summary of every built-in kernel.

    >>> [f"{k.name} {' '.join(map(str, k.parameters))}" for k in describe_builtins() if k.name in ("box", "ball", "laplacian")]
    ['box [size=3]', 'ball radius=LENGTH [orient=voxel|world]', 'laplacian [neighbours=6|18|26]']
    """
    return [describe(function) for function in BUILTIN_KERNELS]


def orient_kernel(kernel: str | Kernel | None, orient: str) -> str:
    """The text of a built-in kernel with its parameter `orient` set.

    Raises: SpecError for a kernel that has none, or says another.
    >>> orient_kernel("sobel:axis=x", "world")
    'sobel:axis=x:orient=world'
    """
    able = [k.name for k in describe_builtins() if any(p.name == "orient" for p in k.parameters)]
    name, *pairs = (
        (part.strip() for part in kernel.split(":"))
        if isinstance(kernel, str)
        else ("this kernel",)
    )
    if name not in able:
        raise SpecError(
            f"--orient {orient} is for {', '.join(able)}; {name} has no direction in the world: leave it out"
        )
    given = [
        pair.partition("=")[2].strip()
        for pair in pairs
        if pair.partition("=")[0].strip() == "orient"
    ]
    if given and given != [orient]:
        raise SpecError(
            f"--orient {orient} contradicts orient={given[0]} of the kernel: leave one of them out"
        )
    return kernel if given and isinstance(kernel, str) else f"{kernel}:orient={orient}"


def may_name_a_layer(text: str) -> bool:
    """Whether a kernel's text may stand for a layer in a weights file; if not, `kernels.weights` need not be loaded.

    >>> may_name_a_layer("model.keras"), may_name_a_layer("psf.npy"), may_name_a_layer("gaussian:sigma=1vox")
    (True, False, False)
    """
    return "::" in text or not (is_builtin(text) or find_kernel_file(text) is not None)


def write_kernel(path: str, kernel: Kernel, *, overwrite: bool = False) -> None:
    """Save a kernel by the suffix of its name; a bank as the Conv3D layer it is for one channel. See `files.write_kernel`."""
    files.write_kernel(path, kernel.as_layer() if kernel.is_bank else kernel, overwrite=overwrite)


def read_kernel(text: str, grid: Grid | None = None, *, folder: Path | None = None) -> Kernel:
    """The kernel a text stands for: a built-in with parameters, a file, or FILE::NAME, a layer in a weights file.

    grid : Grid or None     of the volume the kernel is for; lengths in mm, um, ... need its spacing
    folder : Path or None   where a relative path starts, for a text out of a file; None: the current folder
    Raises: UnknownNameError if it is none; SpecError for a wrong parameter, or a weights file of several layers without a
    NAME; FormatError for a missing or damaged file;
    ShapeError for wrong shapes or values, or a length in mm on a volume without spacing.

    >>> read_kernel("gaussian:sigma=1,1,0.5vox").size
    (9, 9, 5)
    """
    if is_builtin(text):
        return build_kernel(text, BUILTIN_KERNELS, grid)
    path = os.path.join(folder, text) if folder is not None else text
    if may_name_a_layer(path):
        from conv3d_cli.kernels import weights

        file, layer = weights.split_name(path)
        if weights.find_weights_file(file) is not None:
            return weights.saved_layer(path).as_kernel(path)
        if layer is not None:
            raise SpecError(
                f"{file} holds one kernel, and no layers to choose from; leave out ::{layer} (weights files are "
                f"{weights.weights_suffixes()})"
            )
    looks_like_a_file = find_kernel_file(text) is not None or "/" in text or os.sep in text
    if not looks_like_a_file and not os.path.exists(path):
        name, colon, _ = text.partition(":")
        error = unknown_name("kernel", name.strip(), [f.__name__ for f in BUILTIN_KERNELS])
        raise error if colon else UnknownNameError(f"{error}; nor is there a file of this name")
    return files.read_kernel_file(path, lambda inner: build_kernel(inner, BUILTIN_KERNELS, grid))

"""Adapt a kernel from a file to a volume: subtract its background, resample it, crop its borders.

This module decides whether that is done; `kernels/background.py`, `kernels/resampling.py` and
`kernels/cropping.py` do it.
"""

from __future__ import annotations

from dataclasses import dataclass

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.kernels import is_builtin
from conv3d_cli.kernels.background import check_background, find_pedestal, subtract_background
from conv3d_cli.kernels.cropping import check_tolerance, crop_kernel
from conv3d_cli.kernels.lengths import Floats
from conv3d_cli.kernels.resampling import differing_axes, resample_kernel
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel

SPACINGS = ("match", "resample", "ignore")


@dataclass(frozen=True)
class KernelAdaptation:
    """The policy for a kernel whose voxel spacing or borders do not suit the volume.

    spacing : str           if the kernel's file gives another voxel spacing than the volume's:
                            "match" refuses the kernel, "resample" resamples it, "ignore" applies it
                            voxel by voxel
    crop : float or None    largest fraction of Σ|w| that cropped borders may contain; None keeps
                            the borders
    background : str, float or None     subtracted from all weights: "border", the median of the
                            kernel's border, or a number; None subtracts nothing, and a note tells
                            of a border that looks like a background
    Raises: SpecError for another word or an impossible fraction.
    """

    spacing: str = "match"
    crop: float | None = None
    background: str | float | None = None

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise SpecError(
                f"kernel_spacing is {', '.join(SPACINGS[:-1])} or {SPACINGS[-1]}, received "
                f"'{self.spacing}'"
            )
        if self.crop is not None:
            check_tolerance(self.crop)
        if self.background is not None:
            check_background(self.background)


def adapt_kernel(
    kernel: Kernel,
    text: str | None,
    grid: Grid | None,
    adaptation: KernelAdaptation,
    normalize: bool = False,
) -> tuple[Kernel, list[str]]:
    """Subtract the background of a kernel, resample it and crop it, in this order.

    The background comes first: resampling would smear its edge, and cropping would keep it.

    text : str or None      the kernel's name or path as given; None for a kernel in memory
    grid : Grid or None     of the volume
    normalize : bool        the kernel will be scaled to sum 1, for the error bound in the note
    Returns the kernel, and notes for the user.
    Raises: ShapeError if spacings differ under "match", if spacings that "resample" needs are
        unknown, or if no weight is above the background; SpecError for the background of a built-in
        kernel.

    >>> import numpy as np
    >>> kernel = Kernel(np.pad([[[1.0, 2.0, 1.0]]], ((0, 0), (0, 0), (1, 1))), name="k")
    >>> adapted, notes = adapt_kernel(kernel, None, None, KernelAdaptation(crop=0.0))
    >>> adapted.size, notes
    ((1, 1, 3), ['kernel k is cropped from 1x1x5 to 1x1x3 weights; the rest were zeros'])
    """
    kernel, notes = _without_background(kernel, text, adaptation.background)
    kernel_grid = None if text is None else kernel.grid
    if adaptation.spacing == "resample" and text is not None and not is_builtin(text):
        kernel, resampling_notes = _resampled(kernel, kernel_grid, grid)
        notes += resampling_notes
    elif adaptation.spacing == "match" and kernel_grid is not None and not kernel_grid.lacks:
        notes += _check_spacing(kernel, kernel_grid, grid)
    if adaptation.crop is not None:
        size, cropped = kernel.size, crop_kernel(kernel, adaptation.crop)
        kernel = cropped.kernel
        if any(cropped.removed):
            bound, effect = cropped.error_bound(normalize), "the rest were zeros"
            if bound:
                effect = f"no sum is off by more than {bound:.2g} of the largest |x|"
            notes.append(
                f"kernel {kernel.name} is cropped from {_size_text(size)} to "
                f"{_size_text(kernel.size)} weights; {effect}"
            )
    return kernel, notes


def _without_background(
    kernel: Kernel, text: str | None, background: str | float | None
) -> tuple[Kernel, list[str]]:
    """The kernel without its background, and a note on it or on one that seems to be there."""
    if background is None:
        pedestal = None if text is None or is_builtin(text) else find_pedestal(kernel)
        if pedestal is None:
            return kernel, []
        return kernel, [
            f"the border of kernel {kernel.name} is {pedestal}: if that is a background, "
            "--subtract-background border removes it"
        ]
    if text is not None and is_builtin(text):
        raise SpecError(
            f"--subtract-background is for kernels from files, and {text} is built-in; leave it out"
        )
    kernel, note = subtract_background(kernel, background)
    return kernel, [note] if note else []


def _check_spacing(kernel: Kernel, kernel_grid: Grid, grid: Grid | None) -> list[str]:
    """Check that kernel and volume have the same spacing.

    Returns a note if one of the spacings is unknown. Raises: ShapeError if the spacings differ.
    """
    kernel_spacing = f"kernel {kernel.name} has voxels of {_spacing_text(kernel_grid)}"
    if grid is None:
        return []
    if grid.lacks:
        return [
            f"{kernel_spacing}, and the volume {grid.lacks}: the kernel is applied voxel by voxel; "
            "--spacing tells the volume's"
        ]
    if not differing_axes(kernel.size, *_in_one_unit(kernel_grid, grid)):
        return []
    if kernel_grid.spacing == (1.0, 1.0, 1.0) and kernel_grid.unit == "mm":
        # nibabel, SimpleITK and others write this for voxels of unknown size
        return [
            f"{kernel_spacing}, as of files that tell no size, and the volume of "
            f"{_spacing_text(grid)}: the kernel is applied voxel by voxel; --kernel-spacing "
            "resample trusts its spacing, --kernel-spacing ignore silences this note"
        ]
    raise ShapeError(
        f"{kernel_spacing}, the volume of {_spacing_text(grid)}; pass --kernel-spacing resample to "
        "resample the kernel, or ignore to apply it voxel by voxel"
    )


def _resampled(
    kernel: Kernel, kernel_grid: Grid | None, grid: Grid | None
) -> tuple[Kernel, list[str]]:
    """The kernel at the volume's spacing, and a note if that changed it. Raises: ShapeError."""
    if kernel_grid is None or kernel_grid.lacks:
        raise ShapeError(
            f"kernel {kernel.name} cannot be resampled: it {(kernel_grid or Grid()).lacks}, as "
            "files of volumes can; leave out --kernel-spacing resample to apply it voxel by voxel"
        )
    if grid is None or grid.lacks:
        lacks = "no volume is known" if grid is None else f"the volume {grid.lacks}"
        raise ShapeError(
            f"kernel {kernel.name} cannot be resampled: {lacks}; tell it with --spacing, or leave "
            "out --kernel-spacing resample to apply the kernel voxel by voxel"
        )
    spacings = _in_one_unit(kernel_grid, grid)
    if not differing_axes(kernel.size, *spacings):
        return kernel, []
    resampled = resample_kernel(kernel, *spacings)
    note = (
        f"kernel {kernel.name} is resampled from voxels of {_spacing_text(kernel_grid)} to "
        f"{_spacing_text(grid)}, from {_size_text(kernel.size)} to {_size_text(resampled.size)} "
        f"weights; its sum stays {kernel.sum:.6g}"
    )
    return resampled, [note]


def _in_one_unit(kernel_grid: Grid, grid: Grid) -> tuple[Floats, Floats]:
    """The spacings of kernel and volume along D, H, W, in the kernel's unit."""
    assert kernel_grid.spacing is not None
    assert kernel_grid.unit is not None
    return kernel_grid.spacing, grid.spacing_in(kernel_grid.unit)


def _spacing_text(grid: Grid) -> str:
    """A spacing for messages: 2,0.5,0.5 um."""
    assert grid.spacing is not None
    return f"{','.join(f'{step:.4g}' for step in grid.spacing)} {grid.unit or 'without a unit'}"


def _size_text(size: tuple[int, int, int]) -> str:
    """A size for messages: 3x3x3."""
    return "x".join(map(str, size))

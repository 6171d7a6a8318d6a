"""Adapt a kernel from a file to a volume: resample it to the volume's spacing, crop its borders.

This module decides whether a kernel is resampled and cropped; `kernels/resampling.py` and
`kernels/cropping.py` do it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.kernels import is_builtin
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
    Raises: SpecError for another word or an impossible fraction.
    """

    spacing: str = "match"
    crop: float | None = None

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise SpecError(
                f"kernel_spacing is {', '.join(SPACINGS[:-1])} or {SPACINGS[-1]}, received "
                f"'{self.spacing}'"
            )
        if self.crop is not None:
            check_tolerance(self.crop)


def adapt_kernel(
    kernel: Kernel,
    text: str | None,
    grid: Grid | None,
    adaptation: KernelAdaptation,
    normalize: bool = False,
) -> tuple[Kernel, list[str]]:
    """Resample and crop a kernel as the policy says.

    text : str or None      the kernel's name or path as given; None for a kernel that knows no grid
    grid : Grid or None     of the volume
    normalize : bool        the kernel will be scaled to sum 1, for the error bound in the note
    Returns the kernel, and notes for the user.
    Raises: ShapeError if spacings differ under "match", or if spacings that "resample" needs are
        unknown.

    >>> import numpy as np
    >>> kernel = Kernel(np.pad([[[1.0, 2.0, 1.0]]], ((0, 0), (0, 0), (1, 1))), name="k")
    >>> adapted, notes = adapt_kernel(kernel, None, None, KernelAdaptation(crop=0.0))
    >>> adapted.size, notes
    ((1, 1, 3), ['kernel k is cropped from 1x1x5 to 1x1x3 weights; the rest were zeros'])
    """
    notes = []
    kernel_grid = None if text is None else kernel.grid
    if adaptation.spacing == "resample" and text is not None and not is_builtin(text):
        kernel, resampling_notes = _resampled(kernel, kernel_grid, grid)
        notes += resampling_notes
    elif adaptation.spacing == "match" and kernel_grid is not None:
        notes += _check_spacing(kernel, kernel_grid, grid)
    if adaptation.crop is not None:
        size, cropped = kernel.size, crop_kernel(kernel, adaptation.crop)
        kernel = cropped.kernel
        if any(cropped.removed):
            bound, effect = cropped.error_bound(normalize), "the rest were zeros"
            if bound:
                effect = f"no sum is off by more than {bound:.2g} of the largest |x|"
            notes.append(
                f"{kernel.title} is cropped from {_size_text(size)} to "
                f"{_size_text(kernel.size)} weights; {effect}"
            )
    return kernel, notes


def _check_spacing(kernel: Kernel, kernel_grid: Grid, grid: Grid | None) -> list[str]:
    """Check that kernel and volume have the same spacing.

    Returns a note if one of the spacings is unknown. Raises: ShapeError if the spacings differ.
    """
    kernel_spacing = f"{kernel.title} has voxels of {_spacing_text(kernel_grid)}"
    if grid is None:
        return []
    if grid.spacing is None or grid.unit is None:
        return [
            f"{kernel_spacing}, and the volume tells no spacing: the kernel is applied voxel by "
            "voxel"
        ]
    if not differing_axes(kernel.size, *_in_one_unit(kernel_grid, grid)):
        return []
    if kernel_grid.spacing == (1.0, 1.0, 1.0) and kernel_grid.unit == "mm":
        # nibabel, SimpleITK and others write this for voxels of unknown size
        return [
            f"{kernel_spacing}, as of files that tell no size, and the volume of "
            f"{_spacing_text(grid)}: the kernel is applied voxel by voxel; "
            f"{setting('kernel_spacing', 'resample')} trusts its spacing, "
            f"{setting('kernel_spacing', 'ignore')} silences this note"
        ]
    raise ShapeError(
        f"{kernel_spacing}, the volume of {_spacing_text(grid)}; pass "
        f"{setting('kernel_spacing', 'resample')} to resample the kernel, or "
        f"{setting('kernel_spacing', 'ignore')} to apply it voxel by voxel"
    )


def _resampled(
    kernel: Kernel, kernel_grid: Grid | None, grid: Grid | None
) -> tuple[Kernel, list[str]]:
    """The kernel at the volume's spacing, and a note if that changed it. Raises: ShapeError."""
    if kernel_grid is None:
        raise ShapeError(
            f"{kernel.title} cannot be resampled: it tells no voxel spacing, as files of "
            f"volumes can; leave out {setting('kernel_spacing', 'resample')} to apply it voxel by "
            "voxel"
        )
    if grid is None or grid.spacing is None or grid.unit is None:
        raise ShapeError(
            f"{kernel.title} cannot be resampled: the volume tells no voxel spacing; leave "
            f"out {setting('kernel_spacing', 'resample')} to apply it voxel by voxel"
        )
    spacings = _in_one_unit(kernel_grid, grid)
    if not differing_axes(kernel.size, *spacings):
        return kernel, []
    resampled = replace(resample_kernel(kernel, *spacings), grid=grid)
    note = (
        f"{kernel.title} is resampled from voxels of {_spacing_text(kernel_grid)} to "
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
    return f"{','.join(f'{step:.4g}' for step in grid.spacing)} {grid.unit}"


def _size_text(size: tuple[int, int, int]) -> str:
    """A size for messages: 3x3x3."""
    return "x".join(map(str, size))

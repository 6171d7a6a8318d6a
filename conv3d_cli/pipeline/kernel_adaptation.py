"""A kernel file made to fit a volume: the spacing of its own that it may tell, and the empty borders that it may have.

What resampling and cropping are is `kernels/resampling.py` and `kernels/cropping.py`; here it is decided whether they are done.
"""

from __future__ import annotations

from dataclasses import dataclass

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.kernels import is_builtin
from conv3d_cli.kernels.cropping import check_tolerance, crop_kernel
from conv3d_cli.kernels.lengths import Floats
from conv3d_cli.kernels.resampling import differing_axes, resample_kernel
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel

SPACINGS = ("match", "resample", "ignore")


@dataclass(frozen=True)
class KernelAdaptation:
    """What is done to a kernel so that it fits.

    spacing : str           where its file tells another voxel spacing than the volume's: "match" refuses it, "resample" samples
                            it anew, "ignore" applies it voxel by voxel
    crop : float or None    the part of Σ|w| that its borders may hold to be cropped; None: nothing is
    Raises: SpecError for another word or tolerance.
    """

    spacing: str = "match"
    crop: float | None = None

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise SpecError(
                f"kernel_spacing is {', '.join(SPACINGS[:-1])} or {SPACINGS[-1]}, received '{self.spacing}'"
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
    """The kernel resampled and cropped as asked for, and notes on it.

    text : str or None      as it was read; None: it came from no file
    grid : Grid or None     of the volume
    normalize : bool        whether it is scaled to sum 1 afterwards, for the bound that the note tells
    Raises: ShapeError if spacings differ and must not, or what was asked for cannot be done.
    """
    notes = []
    own = None if text is None else kernel.grid
    if adaptation.spacing == "resample" and text is not None and not is_builtin(text):
        kernel, note = _resampled(kernel, own, grid)
        notes += note
    elif adaptation.spacing == "match" and own is not None:
        notes += _matching(kernel, own, grid)
    if adaptation.crop is not None:
        size, cropped = kernel.size, crop_kernel(kernel, adaptation.crop)
        kernel = cropped.kernel
        if any(cropped.removed):
            bound = cropped.error_bound(normalize)
            notes.append(
                f"kernel {kernel.name} is cropped from {_by(size)} to {_by(kernel.size)} weights; "
                + (
                    f"no sum is off by more than {bound:.2g} of the largest |x|"
                    if bound
                    else "the rest were zeros"
                )
            )
    return kernel, notes


def _matching(kernel: Kernel, own: Grid, grid: Grid | None) -> list[str]:
    """Notes where it cannot be said whether spacings differ. Raises: ShapeError if they do."""
    what = f"kernel {kernel.name} has voxels of {_words(own)}"
    if grid is None:
        return []
    if grid.spacing is None or grid.unit is None:
        return [f"{what}, and the volume tells no spacing: the kernel is applied voxel by voxel"]
    if not differing_axes(kernel.size, *_in_one_unit(own, grid)):
        return []
    if own.spacing == (1.0, 1.0, 1.0) and own.unit == "mm":
        # what nibabel, SimpleITK and others write where nobody said how large a voxel is
        return [
            f"{what}, as of files that tell no size, and the volume of {_words(grid)}: the kernel is applied voxel by voxel; "
            "--kernel-spacing resample takes it at its word, ignore leaves out this note"
        ]
    raise ShapeError(
        f"{what}, the volume of {_words(grid)}; pass --kernel-spacing resample to sample the kernel anew, or ignore to apply "
        "it voxel by voxel"
    )


def _resampled(kernel: Kernel, own: Grid | None, grid: Grid | None) -> tuple[Kernel, list[str]]:
    if own is None:
        raise ShapeError(
            f"kernel {kernel.name} cannot be resampled: it tells no voxel spacing, as files of volumes can; leave out "
            "--kernel-spacing resample to apply it voxel by voxel"
        )
    if grid is None or grid.spacing is None or grid.unit is None:
        raise ShapeError(
            f"kernel {kernel.name} cannot be resampled: the volume tells no voxel spacing; leave out --kernel-spacing resample "
            "to apply it voxel by voxel"
        )
    spacings = _in_one_unit(own, grid)
    if not differing_axes(kernel.size, *spacings):
        return kernel, []
    resampled = resample_kernel(kernel, *spacings)
    note = (
        f"kernel {kernel.name} is resampled from voxels of {_words(own)} to {_words(grid)}, from {_by(kernel.size)} to "
        f"{_by(resampled.size)} weights; its sum stays {kernel.sum:.6g}"
    )
    return resampled, [note]


def _in_one_unit(own: Grid, grid: Grid) -> tuple[Floats, Floats]:
    assert own.spacing is not None
    assert own.unit is not None
    return own.spacing, grid.spacing_in(own.unit)


def _words(grid: Grid) -> str:
    """A spacing for people: 2,0.5,0.5 um."""
    assert grid.spacing is not None
    return f"{','.join(f'{step:.4g}' for step in grid.spacing)} {grid.unit}"


def _by(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))

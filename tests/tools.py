"""Smoothing as other tools do it: by the installed tool, or by its published formula in float64.

Each function takes a volume with axes x, y, z (t), its voxel size in mm and a FWHM in mm, and
returns the smoothed volume. The formulas are loops over lines and share no code with the package.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

Array = np.ndarray
FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))


def command(name: str) -> str | None:
    """The path of a program: on PATH, or in the folder of this Python; None if it is missing."""
    neighbour = Path(sys.executable).parent / name
    return shutil.which(name) or (str(neighbour) if neighbour.exists() else None)


def run_on_file(
    volume: Array,
    spacing: tuple[float, ...],
    folder: Path,
    arguments: Callable[[str, str], list[str]],
) -> Array:
    """Process a volume with a program that reads and writes NIfTI.

    arguments : callable    (input path, output path) -> command
    """
    source, target = folder / "tool_in.nii.gz", folder / "tool_out.nii.gz"
    image = nib.Nifti1Image(volume.astype(np.float32), np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, source)
    target.unlink(missing_ok=True)
    subprocess.run(arguments(str(source), str(target)), check=True, capture_output=True)
    return np.asarray(nib.load(target).get_fdata())


def along_lines(volume: Array, function: Callable[[Array, int], Array]) -> Array:
    """Apply `function(line, axis)` to all lines along x, then y, then z."""
    volume = volume.astype(np.float64)
    for axis in range(3):
        volume = np.apply_along_axis(function, axis, volume, axis)
    return volume


def filtered(
    line: Array,
    weights: Array,
    renormalized: bool = False,
    mirrored: bool = False,
    repeated: bool = False,
) -> Array:
    """Filter a line with symmetric weights. Zeros are outside it, unless an option says otherwise.

    renormalized : bool     nothing is outside: divide by the weight that is inside
    mirrored : bool         one mirrored voxel, then zeros
    repeated : bool         the last voxel, again and again
    """
    reach, n = len(weights) // 2, len(line)
    padded = np.pad(line, reach, mode="edge" if repeated else "constant")
    if mirrored:
        padded[reach - 1], padded[reach + n] = line[1], line[-2]
    out = np.convolve(padded, weights, mode="valid")
    if renormalized:
        out /= np.convolve(np.pad(np.ones(n), reach), weights, mode="valid")
    return out


def sigmas(fwhm: float, spacing: tuple[float, ...]) -> list[float]:
    """The standard deviation in voxels along each axis."""
    return [fwhm / FWHM_PER_SIGMA / step for step in spacing[:3]]


# --------------------------------------------------------------------------------------------------
# Installed tools


def fsl(volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path) -> Array:
    """`niimath -s`; niimath is a reimplementation of fslmaths."""
    sigma = repr(fwhm / FWHM_PER_SIGMA)
    return run_on_file(
        volume, spacing, folder, lambda a, b: [str(command("niimath")), a, "-s", sigma, b]
    )


def mrtrix(volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path) -> Array:
    """`mrfilter smooth`."""
    sigma = repr(fwhm / FWHM_PER_SIGMA)
    return run_on_file(
        volume,
        spacing,
        folder,
        lambda a, b: [str(command("mrfilter")), "-quiet", a, "smooth", b, "-stdev", sigma],
    )


def nilearn(volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path) -> Array:
    """`nilearn.image.smooth_img`."""
    from nilearn.image import smooth_img

    image = nib.Nifti1Image(volume.astype(np.float32), np.diag([*spacing, 1.0]))
    return np.asarray(smooth_img(image, fwhm).get_fdata())


def scipy(volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path) -> Array:
    """`scipy.ndimage.gaussian_filter` with its defaults."""
    import scipy.ndimage

    axes: Any = (0, 1, 2)
    return np.asarray(
        scipy.ndimage.gaussian_filter(volume.astype(np.float64), sigmas(fwhm, spacing), axes=axes)
    )


def itk(volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path) -> Array:
    """`SimpleITK.DiscreteGaussian` with its defaults."""
    SimpleITK = pytest.importorskip("SimpleITK")
    image = SimpleITK.GetImageFromArray(volume.astype(np.float32).T)
    image.SetSpacing([float(step) for step in spacing])
    return np.asarray(
        SimpleITK.GetArrayFromImage(SimpleITK.DiscreteGaussian(image, (fwhm / FWHM_PER_SIGMA) ** 2))
    ).T


# --------------------------------------------------------------------------------------------------
# Formulas of tools that are not installed


def spm(
    volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path | None = None
) -> Array:
    """spm_smooth.m, spm_smoothkern.m, spm_conv_vol.c: zeros outside x and y; z is renormalized."""
    from scipy.special import erf

    def smooth(line: Array, axis: int) -> Array:
        variance = sigmas(fwhm, spacing)[axis] ** 2 + np.finfo(np.float64).eps
        reach = math.floor(6 * math.sqrt(variance) + 0.5)
        x = np.arange(-reach, reach + 1)
        a, b, c = 1 / math.sqrt(2 * variance), -0.5 / variance, math.sqrt(variance / 2 / math.pi)
        part = [0.5 * erf(a * y) * y + c * np.exp(b * y**2) for y in (x + 1, x, x - 1)]
        weights = np.maximum(part[0] - 2 * part[1] + part[2], 0)
        return filtered(line, weights / weights.sum(), renormalized=axis == 2)

    return along_lines(np.nan_to_num(volume, nan=0), smooth)


def afni(
    volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path | None = None
) -> Array:
    """edt_blur.c: weights are means over voxels; one mirrored voxel outside, then zeros."""

    def smooth(line: Array, axis: int) -> Array:
        sigma = sigmas(fwhm, spacing)[axis]
        reach = max(1, math.ceil(2.5 * sigma))
        weights = []
        for x in range(-reach, reach + 1):
            parts = np.exp(-0.5 * (np.linspace(x - 0.5, x + 0.5, 23) / sigma) ** 2)
            weights.append(parts.sum() - 0.5 * (parts[0] + parts[-1]))
        return filtered(line, np.array(weights) / sum(weights), mirrored=True)

    return along_lines(volume, smooth)


def wb(volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path | None = None) -> Array:
    """AlgorithmVolumeSmoothing.cxx, orthogonal axes, no ROI."""

    def smooth(line: Array, axis: int) -> Array:
        sigma = sigmas(fwhm, spacing)[axis]
        x = np.arange(-max(1, math.floor(3 * sigma)), max(1, math.floor(3 * sigma)) + 1)
        return filtered(line, np.exp(-((x / sigma) ** 2) / 2), renormalized=True)

    return along_lines(volume, smooth)


def imagej(
    volume: Array, spacing: tuple[float, ...], fwhm: float, folder: Path | None = None
) -> Array:
    """GaussianBlur.java, makeGaussianKernel: accuracy of float images, without the downscaling."""

    def smooth(line: Array, axis: int) -> Array:
        sigma = sigmas(fwhm, spacing)[axis]
        radius = math.ceil(sigma * math.sqrt(-2 * math.log(2e-4))) + 1
        half = [math.exp(-0.5 * i * i / sigma / sigma) for i in range(radius)]
        if radius > 3:
            slope, r = math.inf, radius
            while r > radius // 2:
                r -= 1
                if math.sqrt(half[r]) / (radius - r) >= slope:
                    break
                slope = math.sqrt(half[r]) / (radius - r)
            half[r + 2 :] = [(radius - i) ** 2 * slope**2 for i in range(r + 2, radius)]
        weights = np.array(half[:0:-1] + half)
        return filtered(line, weights / weights.sum(), repeated=True)

    return along_lines(volume, smooth)


TOOLS = {
    function.__name__: function
    for function in (fsl, spm, afni, mrtrix, nilearn, scipy, itk, imagej, wb)
}


def installed(name: str) -> bool:
    """True if a tool can run here. Formulas need only SciPy."""
    import importlib.util

    programs = {"fsl": "niimath", "mrtrix": "mrfilter"}
    libraries = {"nilearn": "nilearn", "itk": "SimpleITK"}
    if name in programs:
        return command(programs[name]) is not None
    return importlib.util.find_spec(libraries.get(name, "scipy")) is not None

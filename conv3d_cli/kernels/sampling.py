"""How other tools make a Gaussian of voxels: how far it reaches, and its weights before they are divided by their sum.

`gaussian:sampling=NAME` chooses one. All are written from the formula that the tool's source states, along one axis, with σ in
voxels; σ = 0 is no smoothing and does not come here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conv3d_cli.model.kernel import Weights


@dataclass(frozen=True)
class Sampling:
    """A tool's Gaussian along one axis.

    reach : callable        σ in voxels -> voxels to each side
    weights : callable      (σ, reach) -> 2·reach + 1 weights, of any sum
    words : str             both, for people
    """

    reach: Callable[[float], int]
    weights: Callable[[float, int], Weights]
    words: str


def _positions(reach: int) -> Weights:
    return np.arange(-reach, reach + 1, dtype=np.float64)


def _at_centres(sigma: float, reach: int) -> Weights:
    """exp(-x²/2σ²) at the voxels' centres."""
    return np.asarray(np.exp(-0.5 * (_positions(reach) / sigma) ** 2))


def _round_up_half(value: float) -> int:
    """MATLAB's and C's round(), of numbers from 0 on."""
    return math.floor(value + 0.5)


def _interpolated(sigma: float, reach: int) -> Weights:
    """The Gaussian convolved with the triangle of linear interpolation: SPM's spm_smoothkern of degree 1.

    The double integral of the Gaussian, G(x) = x·Φ(x/σ) + σ·φ(x/σ), differenced twice.
    """

    def integral(x: float) -> float:
        # second differences of G(x) - max(x, 0) are those of G away from 0; near it the triangle is added back
        x = -abs(x)
        density = math.exp(-0.5 * (x / sigma) ** 2) / math.sqrt(2 * math.pi)
        return x * 0.5 * math.erfc(-x / (sigma * math.sqrt(2))) + sigma * density

    values = [
        integral(x - 1) - 2 * integral(x) + integral(x + 1) + max(0.0, 1 - abs(x))
        for x in _positions(reach).tolist()
    ]
    weights: Weights = np.maximum(np.array(values), 0)
    return weights


_AFNI_PARTS = 11  # NG of edt_blur.c: half the parts of a voxel


def _over_voxels(sigma: float, reach: int) -> Weights:
    """The Gaussian's mean over each voxel, by the trapezoid rule over its parts."""
    parts = np.arange(-_AFNI_PARTS, _AFNI_PARTS + 1) / (2 * _AFNI_PARTS)
    share = np.ones(len(parts))
    share[[0, -1]] = 0.5
    return np.asarray(np.exp(-0.5 * ((_positions(reach)[:, None] + parts) / sigma) ** 2) @ share)


# MaximumError and MaximumKernelWidth, as SimpleITK.DiscreteGaussian has them
ITK_ERROR, ITK_WIDTH = (
    0.01,
    32,
)


def _bessel(sigma: float, count: int) -> Weights:
    """exp(-t)·I_n(t) for n = 0 ... count - 1, with t = σ²: the Gaussian that diffusion on a grid makes (Lindeberg 1990).

    They are the Fourier coefficients of exp(t·(cos θ - 1)), which falls off faster than any power: aliases are below rounding.
    """
    size = 2 * (count + math.ceil(16 * sigma) + 64)
    spectrum = np.exp(sigma**2 * (np.cos(2 * np.pi * np.arange(size // 2 + 1) / size) - 1))
    return np.asarray(np.fft.irfft(spectrum, size)[:count])


def _itk_reach(sigma: float) -> int:
    """The first n >= 1 with which the weights add up to 1 - MaximumError, at most MaximumKernelWidth."""
    sums = 2 * np.cumsum(_bessel(sigma, ITK_WIDTH + 1))
    sums -= sums[0] / 2
    enough = np.flatnonzero(sums >= 1 - ITK_ERROR)
    return max(1, int(enough[0]) if len(enough) else ITK_WIDTH)


def _itk(sigma: float, reach: int) -> Weights:
    half = _bessel(sigma, reach + 1)
    return np.concatenate([half[:0:-1], half])


IMAGEJ_ACCURACY = 2e-4  # of float and 16-bit images; 2e-3 of 8-bit ones


def _imagej_reach(sigma: float) -> int:
    return math.ceil(sigma * math.sqrt(-2 * math.log(IMAGEJ_ACCURACY)))


def _imagej(sigma: float, reach: int) -> Weights:
    """The Gaussian, its tail replaced by a parabola that touches it and reaches 0 one voxel beyond."""
    end = reach + 1
    half = np.exp(-0.5 * (np.arange(end) / sigma) ** 2)
    if end > 3:
        slope, position = math.inf, end
        while position > end // 2:
            position -= 1
            found = math.sqrt(half[position]) / (end - position)
            if found >= slope:
                break
            slope = found
        tail = np.arange(position + 2, end)
        half[tail] = ((end - tail) * slope) ** 2
    return np.concatenate([half[:0:-1], half])


# scipy: as `builtin` does it
SamplingName = Literal["scipy", "fsl", "spm", "afni", "mrtrix", "itk", "imagej", "wb"]

SAMPLINGS = {
    "fsl": Sampling(
        lambda s: max(1, _round_up_half(6 * s)),
        _at_centres,
        "max(1, round(6σ)), at voxels' centres",
    ),
    "spm": Sampling(
        lambda s: _round_up_half(6 * s),
        _interpolated,
        "round(6σ), convolved with linear interpolation",
    ),
    "afni": Sampling(
        lambda s: max(1, math.ceil(2.5 * s)),
        _over_voxels,
        "max(1, ceil(2.5σ)), averaged over voxels",
    ),
    "mrtrix": Sampling(lambda s: math.ceil(2 * s), _at_centres, "ceil(2σ), at voxels' centres"),
    "itk": Sampling(_itk_reach, _itk, "discrete (Bessel) Gaussian to an error of 0.01, at most 32"),
    "imagej": Sampling(_imagej_reach, _imagej, "ceil(4.13σ), its tail bent to 0"),
    "wb": Sampling(
        lambda s: max(1, math.floor(3 * s)), _at_centres, "max(1, floor(3σ)), at voxels' centres"
    ),
}

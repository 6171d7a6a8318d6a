"""How other tools sample a Gaussian: its reach in voxels, and its weights before normalisation.

`gaussian:sampling=NAME` chooses one. Each implements the formula in the source code of that tool,
along one axis, with σ > 0 in voxels (the caller handles σ = 0, which means no smoothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conv3d_cli.model.kernel import Weights
from conv3d_cli.system import elementary
from conv3d_cli.system.normal import normal_cdf


@dataclass(frozen=True)
class Sampling:
    """A tool's Gaussian along one axis.

    reach : callable        σ in voxels -> voxels on each side of the centre
    weights : callable      (σ, reach) -> (2·reach + 1,) float64 weights, not normalised
    words : str             reach and weights in words, for `conv3d presets`
    """

    reach: Callable[[float], int]
    weights: Callable[[float, int], Weights]
    words: str


def _positions(reach: int) -> Weights:
    return np.arange(-reach, reach + 1, dtype=np.float64)


def _at_centres(sigma: float, reach: int) -> Weights:
    """exp(-x²/2σ²) at the voxel centres."""
    return np.asarray(elementary.exp(-0.5 * (_positions(reach) / sigma) ** 2))


def _round_up_half(value: float) -> int:
    """Round a number >= 0 as MATLAB and C do: halves go up."""
    return math.floor(value + 0.5)


def _interpolated(sigma: float, reach: int) -> Weights:
    """The Gaussian convolved with a triangle (linear interpolation): spm_smoothkern of degree 1.

    It is the second difference of the Gaussian's double integral, G(x) = x·Φ(x/σ) + σ·φ(x/σ).
    """

    def integral(x: float) -> float:
        # G(x) - max(x, 0), which avoids cancellation at large |x|; its second differences lack
        # those of max(x, 0), the triangle max(0, 1 - |x|), which is added below
        x = -abs(x)
        density = elementary.exp(-0.5 * (x / sigma) ** 2) / math.sqrt(2 * math.pi)
        return x * float(normal_cdf(np.array(x / sigma), elementary.exp)) + sigma * float(density)

    values = [
        integral(x - 1) - 2 * integral(x) + integral(x + 1) + max(0.0, 1 - abs(x))
        for x in _positions(reach).tolist()
    ]
    weights: Weights = np.maximum(np.array(values), 0)
    return weights


_AFNI_HALF_INTERVALS = 11  # NG of edt_blur.c: a voxel is divided into 2·NG intervals


def _voxel_average(sigma: float, reach: int) -> Weights:
    """The Gaussian averaged over each voxel by the trapezoid rule."""
    n = _AFNI_HALF_INTERVALS
    nodes = np.arange(-n, n + 1) / (2 * n)
    trapezoid = np.ones(len(nodes))
    trapezoid[[0, -1]] = 0.5
    positions = _positions(reach)[:, None] + nodes
    averaged = elementary.exp(-0.5 * (positions / sigma) ** 2) * trapezoid
    return np.asarray(averaged.sum(axis=1))


# MaximumError and MaximumKernelWidth: defaults of SimpleITK.DiscreteGaussian
ITK_ERROR = 0.01
ITK_WIDTH = 32


def _bessel(sigma: float, count: int) -> Weights:
    """exp(-t)·I_n(t) for n = 0 ... count - 1, t = σ²: the Gaussian of diffusion on a discrete grid.

    They are the Fourier coefficients of exp(t·(cos θ - 1)). These fall off faster than any power,
    so the aliases of a finite transform are below rounding. Source: Lindeberg 1990.
    """
    size = 2 * (count + math.ceil(16 * sigma) + 64)
    cosines, _ = elementary.by_quarters(np.arange(size), size)
    spectrum = elementary.exp(sigma**2 * (cosines - 1))
    places = np.arange(size)
    return np.array([(spectrum * cosines[places * n % size]).sum() / size for n in range(count)])


def _itk_reach(sigma: float) -> int:
    """The first n >= 1 whose weights sum to 1 - MaximumError, but at most MaximumKernelWidth."""
    sums = 2 * np.cumsum(_bessel(sigma, ITK_WIDTH + 1))
    sums -= sums[0] / 2
    enough = np.flatnonzero(sums >= 1 - ITK_ERROR)
    return max(1, int(enough[0]) if len(enough) else ITK_WIDTH)


def _itk(sigma: float, reach: int) -> Weights:
    half = _bessel(sigma, reach + 1)
    return np.concatenate([half[:0:-1], half])


IMAGEJ_ACCURACY = 2e-4  # for float and 16-bit images; ImageJ uses 2e-3 for 8-bit images


def _imagej_reach(sigma: float) -> int:
    return math.ceil(sigma * math.sqrt(-2 * math.log(IMAGEJ_ACCURACY)))


def _imagej(sigma: float, reach: int) -> Weights:
    """The Gaussian with a parabola as its tail: tangent to it, and 0 one voxel beyond the reach."""
    end = reach + 1
    half = elementary.exp(-0.5 * (np.arange(end) / sigma) ** 2)
    if end > 3:
        slope, position = math.inf, end
        while position > end // 2:
            position -= 1
            candidate = math.sqrt(half[position]) / (end - position)
            if candidate >= slope:
                break
            slope = candidate
        tail = np.arange(position + 2, end)
        half[tail] = ((end - tail) * slope) ** 2
    return np.concatenate([half[:0:-1], half])


# "scipy" is the default, which `builtin.gaussian` computes itself; these are its words.
DEFAULT_WORDS = "int(4σ + 0.5), at voxel centres"
SamplingName = Literal["scipy", "fsl", "spm", "afni", "mrtrix", "itk", "imagej", "wb"]

SAMPLINGS = {
    "fsl": Sampling(
        lambda s: max(1, _round_up_half(6 * s)),
        _at_centres,
        "max(1, round(6σ)), at voxel centres",
    ),
    "spm": Sampling(
        lambda s: _round_up_half(6 * s),
        _interpolated,
        "round(6σ), convolved with linear interpolation",
    ),
    "afni": Sampling(
        lambda s: max(1, math.ceil(2.5 * s)),
        _voxel_average,
        "max(1, ceil(2.5σ)), averaged over voxels",
    ),
    "mrtrix": Sampling(lambda s: math.ceil(2 * s), _at_centres, "ceil(2σ), at voxel centres"),
    "itk": Sampling(_itk_reach, _itk, "discrete (Bessel) Gaussian to an error of 0.01, at most 32"),
    "imagej": Sampling(_imagej_reach, _imagej, "ceil(4.13σ), its tail bent to 0"),
    "wb": Sampling(
        lambda s: max(1, math.floor(3 * s)), _at_centres, "max(1, floor(3σ)), at voxel centres"
    ),
}

"""Point spread functions of microscopes by theory: Born and Wolf, Gibson and Lanni.

The functions are built-in kernels, see `builtin.py`. The optical axis is the depth.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import SpecError
from conv3d_cli.kernels.builtin import require_size, whole_voxels
from conv3d_cli.kernels.lengths import Floats, Kind, Lengths, Sizes, read_number, voxels
from conv3d_cli.model.kernel import Kernel, Weights
from conv3d_cli.model.spec import triple
from conv3d_cli.system import elementary

Aperture = Annotated[float, Kind(read_number, "NUMBER", "0.5")]
Reals = NDArray[np.float64]

# How far a kernel reaches unless its size is given: radii of the first dark ring across the axis,
# and distances to the first dark point along it.
RINGS, DARK_POINTS = 5, 3
MOST_WAVELENGTHS = 10_000  # that a point may lie below the cover glass
# Samples of the pupil for each turn of the phase, and at least.
PER_TURN, LEAST_SAMPLES = 24, 128


def born_wolf(na: Aperture, ri: float, wavelength: Lengths, size: Sizes | None = None) -> Kernel:
    """Point spread function of a microscope without aberrations; widefield.

    Formula: w = |∫ J0(k·NA·r·ρ) exp(-i·k·NA²·z·ρ² / (2·ri)) ρ dρ|², ρ from 0 to 1, k = 2π/λ,
    r across the optical axis (depth) and z along it; sum 1

    na : number             numerical aperture, below ri
    ri : number             refractive index of the immersion: 1.518 oil, 1.33 water, 1 air
    wavelength : lengths    of the emitted light in vacuum, as 520nm
    size : voxels           odd; unless given, 5 rings across the axis and 3 dark points along it

    Source: Born and Wolf, Principles of Optics, 7th ed. (1999), section 8.8; as PSFGenerator has it
    (Kirshner et al., J. Microsc. 249 (2013) 13-25).

    >>> born_wolf(na=0.5, ri=1, wavelength=(1, 2, 2), size=(1, 1, 5)).weights.round(3).tolist()
    [[[0.016, 0.247, 0.475, 0.247, 0.016]]]
    """
    lengths = _lengths(na, ri, wavelength, "born_wolf")

    def phase(square: Reals, z: Reals) -> Reals:
        return z[:, None] * (-0.5 * na * na / ri) * square

    weights = _pupil_integral(lengths, na, ri, size, 1.0, phase, "born_wolf")
    return Kernel(weights, name="born_wolf")


def gibson_lanni(
    na: Aperture,
    ri: float,
    wavelength: Lengths,
    sample: float = 1.33,
    depth: Lengths | None = None,
    size: Sizes | None = None,
) -> Kernel:
    """Point spread function of a microscope that looks into a sample of another index; widefield.

    Formula: w = |∫ J0(k·NA·r·ρ) exp(i·k·W(ρ)) ρ dρ|², ρ from 0 to 1, k = 2π/λ,
    W = d·√(sample² - NA²·ρ²) - (z + d·ri/sample)·√(ri² - NA²·ρ²), d the depth of the point, z along
    the optical axis (depth) from its focus, deeper into the sample; sum 1

    na : number             numerical aperture, below ri
    ri : number             refractive index of the immersion: 1.518 oil, 1.33 water, 1 air
    wavelength : lengths    of the emitted light in vacuum, as 520nm
    sample : number         refractive index of the sample
    depth : lengths         of the point below the cover glass, as 5um; without one, no aberration
    size : voxels           odd; unless given, 5 rings across the axis and 3 dark points along it

    The cover glass and the immersion are those that the objective is made for.

    Source: Gibson and Lanni, J. Opt. Soc. Am. A 8 (1991) 1601-1613.

    >>> gibson_lanni(na=0.5, ri=1, wavelength=(1, 2, 2), size=(3, 1, 1)).weights.round(3).tolist()
    [[[0.327]], [[0.347]], [[0.327]]]
    """
    lengths = _lengths(na, ri, wavelength, "gibson_lanni")
    if not (sample >= 1 and math.isfinite(sample)):
        raise SpecError(f"sample is a refractive index of at least 1, received sample={sample:g}")
    # in wavelengths
    given = (0.0, 0.0, 0.0) if depth is None else voxels(depth, "depth", zero=True)
    below, *others = (far / length for far, length in zip(given, lengths, strict=True))
    if max(below, *others) > MOST_WAVELENGTHS:
        raise SpecError(
            f"depth is {max(below, *others):.3g} wavelengths, more than {MOST_WAVELENGTHS}: give a "
            "smaller one (is the unit right?)"
        )
    # beyond, no light of the sample reaches the immersion
    most = min(1.0, sample / na) if below else 1.0

    def phase(square: Reals, z: Reals) -> Reals:
        sines = na * na * square
        outside = np.sqrt(ri * ri - sines)
        inside = np.sqrt(np.maximum(sample * sample - sines, 0))
        aberration = below * (inside - ri / sample * outside)
        return -z[:, None] * outside + aberration

    weights = _pupil_integral(lengths, na, ri, size, most, phase, "gibson_lanni", below)
    return Kernel(weights, name="gibson_lanni")


def _lengths(na: float, ri: float, wavelength: Any, name: str) -> Floats:
    """The wavelength in voxels along D, H, W. Raises: SpecError for impossible optics."""
    if not (ri >= 1 and math.isfinite(ri)):
        raise SpecError(f"ri is a refractive index of at least 1, received ri={ri:g}")
    if not 0 < na < ri:
        raise SpecError(
            f"na must be above 0 and below ri={ri:g}, as in {name}:na=1.4:ri=1.518:"
            f"wavelength=520nm, received na={na:g}"
        )
    return voxels(wavelength, "wavelength")


def _pupil_integral(
    lengths: Floats,
    na: float,
    ri: float,
    size: Any,
    most: float,
    phase: Any,
    name: str,
    below: float = 0.0,
) -> Weights:
    """The squared magnitude of the field, (d, h, w), of the sum 1.

    lengths : 3 floats      a wavelength in voxels along D, H, W
    most : float            radius of the pupil that light goes through
    phase : callable        (ρ², z in wavelengths) -> optical path in wavelengths, (z, ρ²)
    below : float           wavelengths to the cover glass
    """
    if size is None:
        wished = [DARK_POINTS * 2 * ri / (na * na), *[RINGS * 0.61 / na] * 2]
        reach = [
            whole_voxels(far * length + 1, name, "wavelength")
            for far, length in zip(wished, lengths, strict=True)
        ]
    else:
        if any(taps % 2 == 0 for taps in triple(size, "size")):
            raise SpecError(
                f"size must be odd, so that the point is in the middle, received size={size}"
            )
        reach = [taps // 2 for taps in triple(size, "size")]
    require_size([2 * n + 1 for n in reach], name, "size" if size is not None else "wavelength")
    # distances in wavelengths; many voxels have the same one
    across = [np.arange(n + 1) / length for n, length in zip(reach[1:], lengths[1:], strict=True)]
    radii, places = np.unique((across[0] ** 2)[:, None] + across[1] ** 2, return_inverse=True)
    radii = np.sqrt(radii)
    z = np.arange(-reach[0], reach[0] + 1) / lengths[0]
    # turns of the phase over the pupil, of the Bessel function and along the axis
    turns = na * radii[-1] + (abs(z).max() + below) * (ri - math.sqrt(ri * ri - na * na))
    count = 2 * max(LEAST_SAMPLES, math.ceil(PER_TURN * (turns + below)))
    square = np.arange(count + 1) * (most * most / count)  # ρ², so that ρ dρ is constant
    simpson = np.full(count + 1, 2.0)
    simpson[1::2], simpson[0], simpson[-1] = 4.0, 1.0, 1.0
    path = phase(square, z)
    path = 2 * math.pi * (path - path[:, :1])
    real, imaginary = elementary.cos(path) * simpson, elementary.sin(path) * simpson
    fields = np.zeros((2, len(z), len(radii)))
    for n in range(count + 1):  # in order, so that sums are the same on every machine
        waves = _bessel(2 * math.pi * na * math.sqrt(square[n]) * radii)
        fields[0] += real[:, n, None] * waves
        fields[1] += imaginary[:, n, None] * waves
    power = fields[0] ** 2 + fields[1] ** 2
    quarter = power[:, places.reshape(reach[1] + 1, reach[2] + 1)]
    half = np.concatenate([quarter[:, :0:-1], quarter], axis=1)
    whole = np.concatenate([half[:, :, :0:-1], half], axis=2)
    return np.ascontiguousarray(whole / elementary.total(whole))


def _bessel(x: Reals) -> Reals:
    """The Bessel function J0 of numbers (n,), by its integral, to 1e-14.

    >>> _bessel(np.array([0.0, 1.0])).round(12).tolist()
    [1.0, 0.765197686558]
    """
    count = math.ceil(float(x.max(initial=0)) / 3) + 12
    total = np.zeros_like(x)
    heights = elementary.sin(math.pi * (np.arange(count) + 0.5) / (2 * count))
    for n in range(count):  # the mean over a quarter of a turn, where it is even
        total += elementary.cos(x * heights[n])
    return total / count

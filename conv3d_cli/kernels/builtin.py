"""The built-in kernels: one documented function each, in voxels.

A function's signature is its grammar on the command line: `gaussian:sigma=1.5,1,1vox` calls `gaussian(sigma=(1.5, 1, 1))`,
and lengths in mm arrive here as voxels already. To add a kernel, write such a function and put its name into
`BUILTIN_KERNELS` (`kernels/__init__.py`). All are correlation kernels, as Keras and scipy.ndimage apply them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from conv3d_cli.errors import SpecError, unknown_name
from conv3d_cli.kernels.lengths import MAX_WEIGHTS, Axis, Floats, Lengths, Sizes, axis_number, voxels
from conv3d_cli.kernels.sampling import SAMPLINGS, SamplingName
from conv3d_cli.model.kernel import Kernel, Weights
from conv3d_cli.model.spec import triple

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
# Lengths made of decimal or float32 spacings miss whole voxels by rounding: 3 mm / 0.1 mm is not quite 30.
_ROUNDING = 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Averages


def identity() -> Kernel:
    """Leaves the volume as it is: one voxel of weight 1.

    Formula: y = x

    Source: the unit of convolution; useful to try paddings, strides and formats.

    >>> identity().weights.tolist()
    [[[1.0]]]
    """
    return Kernel(np.ones((1, 1, 1)), name="identity")


def box(size: Sizes = 3) -> Kernel:
    """Mean of a block of voxels.

    Formula: w = 1 / (D·H·W) everywhere in the block; sum 1

    size : voxels       of the block, one number or D,H,W; an even size lies half a voxel off centre

    Source: scipy.ndimage.uniform_filter.

    >>> box(size=(1, 1, 4)).weights.tolist()
    [[[0.25, 0.25, 0.25, 0.25]]]
    """
    shape = triple(size, "size")
    _require_size(shape, "box", "size")
    return Kernel(np.full(shape, 1 / math.prod(shape)), name="box")


def gaussian(
    fwhm: Lengths | None = None,
    sigma: Lengths | None = None,
    truncate: float = 4,
    sampling: SamplingName = "scipy",
) -> Kernel:
    """Gaussian smoothing, by full width at half maximum (fwhm) or standard deviation (sigma).

    Formula: w = exp(-(d²/σd² + h²/σh² + w²/σw²) / 2), then scaled to sum 1; FWHM = 2·sqrt(2·ln 2)·σ = 2.3548·σ

    fwhm, sigma : lengths       one of the two; 0 on an axis: no smoothing along it
    truncate : number           the kernel reaches int(truncate·σ + 0.5) voxels to each side
    sampling : a tool's name    whose weights and reach are taken (`conv3d presets` tells them); all but scipy set the reach

    Source: scipy.ndimage.gaussian_filter, to which it is equal up to rounding; nilearn uses the same. The other samplings:
    kernels/sampling.py.

    >>> gaussian(sigma=(0, 0, 1), truncate=1).weights.round(4).tolist()
    [[[0.2741, 0.4519, 0.2741]]]
    """
    if fwhm is not None and sigma is None:
        d, h, w = (width / FWHM_PER_SIGMA for width in voxels(fwhm, "fwhm", zero=True))
        deviations: Floats = (d, h, w)
    elif sigma is not None and fwhm is None:
        deviations = voxels(sigma, "sigma", zero=True)
    else:
        raise SpecError(
            f"gaussian needs fwhm or sigma{', not both' if fwhm is not None else ''}, as in gaussian:fwhm=6mm or "
            "gaussian:sigma=1.5vox"
        )
    if sampling == "scipy":
        return Kernel(_gaussian_weights(deviations, truncate, "gaussian"), name="gaussian")
    if sampling not in SAMPLINGS:
        raise unknown_name("sampling", sampling, ["scipy", *SAMPLINGS])
    if truncate != 4:
        raise SpecError(f"sampling={sampling} sets how far the Gaussian reaches; leave out truncate={truncate:g}")
    tool = SAMPLINGS[sampling]
    reach = [_whole(tool.reach(deviation), "gaussian", "sigma") if deviation else 0 for deviation in deviations]
    _require_size([2 * r + 1 for r in reach], "gaussian", "sigma")
    profiles = [
        tool.weights(deviation, radius) if deviation else np.ones(1)
        for deviation, radius in zip(deviations, reach, strict=True)
    ]
    return Kernel(_outer([profile / profile.sum() for profile in profiles]), name="gaussian")


def ball(radius: Lengths) -> Kernel:
    """Mean of the voxels within a radius: a ball, in voxels an ellipsoid where the spacing differs between axes.

    Formula: w = 1/n for the n voxels with (d/rd)² + (h/rh)² + (w/rw)² <= 1 (to 1e-6, for rounded spacings), else 0; sum 1

    radius : lengths    from the central voxel's centre; below 1 voxel on an axis, only the central plane is left

    Source: the sphere of fslmaths -kernel sphere and 3dLocalstat -nbhd SPHERE, by voxel centres.

    >>> int((ball(radius=1).weights > 0).sum()), ball(radius=(0.5, 1, 2)).size
    (7, (1, 3, 5))
    """
    radii = voxels(radius, "radius")
    reach = [_whole(r * (1 + _ROUNDING), "ball", "radius") for r in radii]
    _require_size([2 * r + 1 for r in reach], "ball", "radius")
    squares = [(np.arange(-n, n + 1) / r) ** 2 for n, r in zip(reach, radii, strict=True)]
    inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] <= 1 + 2 * _ROUNDING
    return Kernel(inside / inside.sum(), name="ball")


# ---------------------------------------------------------------------------------------------------------------------
# Second derivatives


def laplacian(neighbours: Literal[6, 18, 26] = 6) -> Kernel:
    """Laplacian, the sum of the three second derivatives: negative on bright spots.

    Formula: 6: faces - 6·centre; 18: (2·faces + edges - 24·centre) / 6; 26: (14·faces + 3·edges + corners - 128·centre) / 30,
    where faces, edges and corners are sums over the 6, 12 and 8 neighbours of that kind; sum 0

    neighbours : 6, 18 or 26    all three are exact for polynomials of degree 3; the error of 18 and 26 does not depend on
                                the direction

    Source: 6: scipy.ndimage.laplace. 18, 26: Patra and Karttunen, Stencils with isotropic discretization error for
    differential operators, Numer. Methods Partial Differential Eq. 22 (2006) 936-953.

    >>> laplacian().weights[1].tolist()
    [[0.0, 1.0, 0.0], [1.0, -6.0, 1.0], [0.0, 1.0, 0.0]]
    """
    stencils = {6: (-6, 1, 0, 0, 1), 18: (-24, 2, 1, 0, 6), 26: (-128, 14, 3, 1, 30)}
    if neighbours not in stencils:
        raise SpecError(f"neighbours is 6, 18 or 26, received {neighbours!r}")
    *by_distance, scale = stencils[neighbours]
    distance = np.abs(np.indices((3, 3, 3)) - 1).sum(axis=0)  # 0 centre, 1 face, 2 edge, 3 corner
    return Kernel(np.array(by_distance)[distance] / scale, name="laplacian")


def log(sigma: Lengths, truncate: float = 4) -> Kernel:
    """Laplacian of Gaussian: edges and blobs at a scale; negative on bright blobs of radius sqrt(3)·sigma.

    Formula: w = Σ over axes a of (a²/σa⁴ - 1/σa²) · g, with g the gaussian kernel; the scale is per voxel²

    sigma : lengths     of the Gaussian, positive on every axis
    truncate : number   the kernel reaches int(truncate·σ + 0.5) voxels to each side

    Source: Marr and Hildreth, Theory of edge detection, Proc. R. Soc. Lond. B 207 (1980) 187-217; sampled as in
    scipy.ndimage.gaussian_laplace, to which it is equal up to rounding.

    >>> round(float(log(sigma=1).weights[4, 4, 4]), 4)
    -0.1905
    """
    deviations = voxels(sigma, "sigma")
    smooth = _profiles(deviations, truncate, "log")
    if min(len(profile) for profile in smooth) == 1:
        raise SpecError(
            f"log needs at least one voxel to each side, received sigma={_voxel_text(deviations)} and truncate={truncate:g}; "
            "give a larger sigma"
        )
    weights = np.zeros([len(profile) for profile in smooth])
    for axis, deviation in enumerate(deviations):
        positions = np.arange(len(smooth[axis])) - len(smooth[axis]) // 2
        profiles = list(smooth)
        profiles[axis] = smooth[axis] * (positions**2 / deviation**4 - 1 / deviation**2)
        weights += _outer(profiles)
    return Kernel(weights, name="log")


def dog(sigma: Lengths, sigma2: Lengths | None = None, ratio: float = 1.6, truncate: float = 4) -> Kernel:
    """Difference of Gaussians: a band of scales; positive on bright blobs.

    Formula: w = gaussian(sigma) - gaussian(sigma2), each of sum 1, with sigma2 = ratio·sigma unless it is given; sum 0

    sigma : lengths     of the narrower Gaussian
    sigma2 : lengths    of the wider one
    ratio : number      above 1; at 1.6 the shape is close to the Laplacian of Gaussian with its sign turned
    truncate : number   the kernel reaches int(truncate·sigma2 + 0.5) voxels to each side

    Source: Marr and Hildreth, Theory of edge detection, Proc. R. Soc. Lond. B 207 (1980) 187-217, appendix B.

    >>> abs(dog(sigma=1).sum) < 1e-12, dog(sigma=0, sigma2=(0, 0, 0.3)).weights.round(4).tolist()
    (True, [[[-0.0038, 0.0077, -0.0038]]])
    """
    narrow = voxels(sigma, "sigma", zero=True)
    if sigma2 is not None and ratio != 1.6:
        raise SpecError(f"dog takes sigma2 or ratio, not both, received ratio={ratio:g} and sigma2")
    if sigma2 is not None:
        wide = voxels(sigma2, "sigma2", zero=True)
    elif ratio > 1 and math.isfinite(ratio):
        d, h, w = (ratio * value for value in narrow)
        wide = (d, h, w)
    else:
        raise SpecError(f"ratio must be above 1, as in ratio=1.6, received ratio={ratio:g}")
    if any(a > b for a, b in zip(narrow, wide, strict=True)) or narrow == wide:
        raise SpecError(
            "dog subtracts a wider Gaussian from a narrower one, "
            f"received sigma={_voxel_text(narrow)} and sigma2={_voxel_text(wide)}"
        )
    weights = -_gaussian_weights(wide, truncate, "dog")
    _add_centred(weights, _gaussian_weights(narrow, truncate, "dog"))
    return Kernel(weights, name="dog")


# ---------------------------------------------------------------------------------------------------------------------
# First derivatives


def sobel(axis: Axis) -> Kernel:
    """Sobel derivative along one axis, smoothed across it: positive where values rise along the axis.

    Formula: [-1, 0, 1] along the axis ⊗ [1, 2, 1] along the two others; divide by 32 for the slope per voxel

    axis : d, h or w    (z, y, x)

    Source: Sobel and Feldman, A 3x3 isotropic gradient operator for image processing (1968); scipy.ndimage.sobel, to which
    it is equal.

    >>> sobel(axis="w").weights[1].tolist()
    [[-2.0, 0.0, 2.0], [-4.0, 0.0, 4.0], [-2.0, 0.0, 2.0]]
    """
    return _derivative(axis, [-1, 0, 1], [1, 2, 1], "sobel")


def prewitt(axis: Axis) -> Kernel:
    """Prewitt derivative along one axis, averaged across it: positive where values rise along the axis.

    Formula: [-1, 0, 1] along the axis ⊗ [1, 1, 1] along the two others; divide by 18 for the slope per voxel

    axis : d, h or w    (z, y, x)

    Source: Prewitt, Object enhancement and extraction, in Picture Processing and Psychopictorics (1970);
    scipy.ndimage.prewitt, to which it is equal.

    >>> prewitt(axis="h").weights[0].tolist()
    [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    return _derivative(axis, [-1, 0, 1], [1, 1, 1], "prewitt")


def scharr(axis: Axis) -> Kernel:
    """Scharr derivative along one axis, whose direction is truer than sobel's: positive where values rise along the axis.

    Formula: [-1, 0, 1] along the axis ⊗ [3, 10, 3] along the two others; divide by 512 for the slope per voxel

    axis : d, h or w    (z, y, x)

    Source: Scharr, Optimale Operatoren in der Digitalen Bildverarbeitung, thesis, Heidelberg (2000), in whole numbers and
    not normalised, as sobel and prewitt are.

    >>> scharr(axis="w").weights[0].tolist()
    [[-9.0, 0.0, 9.0], [-30.0, 0.0, 30.0], [-9.0, 0.0, 9.0]]
    """
    return _derivative(axis, [-1, 0, 1], [3, 10, 3], "scharr")


def gradient(axis: Axis) -> Kernel:
    """Central difference along one axis: the slope per voxel, without smoothing.

    Formula: [-0.5, 0, 0.5] along the axis

    axis : d, h or w    (z, y, x)

    Source: numpy.gradient, to which it is equal inside the volume.

    >>> gradient(axis="w").weights.tolist()
    [[[-0.5, 0.0, 0.5]]]
    """
    return _derivative(axis, [-0.5, 0, 0.5], [1], "gradient")


# ---------------------------------------------------------------------------------------------------------------------
# Sharpening


def sharpen(amount: float = 1) -> Kernel:
    """Sharpens by subtracting the Laplacian.

    Formula: w = identity - amount · laplacian(6); sum 1

    amount : number     0 leaves the volume as it is

    Source: Gonzalez and Woods, Digital Image Processing, section 3.6, in three dimensions.

    >>> sharpen(amount=0.5).weights[1].tolist()
    [[0.0, -0.5, 0.0], [-0.5, 4.0, -0.5], [0.0, -0.5, 0.0]]
    """
    weights = 0.0 - _finite(amount, "amount") * laplacian().weights
    weights[1, 1, 1] += 1
    return Kernel(weights, name="sharpen")


def unsharp(sigma: Lengths, amount: float = 1, truncate: float = 4) -> Kernel:
    """Unsharp mask: sharpens by adding what a Gaussian takes away.

    Formula: w = identity + amount · (identity - gaussian(sigma)); sum 1

    sigma : lengths     of the Gaussian; 0 on an axis: no smoothing along it
    amount : number     0 leaves the volume as it is
    truncate : number   the kernel reaches int(truncate·σ + 0.5) voxels to each side

    Source: Gonzalez and Woods, Digital Image Processing, section 3.6 (unsharp masking, highboost filtering).

    >>> unsharp(sigma=(0, 0, 1), truncate=1).weights.round(4).tolist()
    [[[-0.2741, 1.5481, -0.2741]]]
    """
    factor = _finite(amount, "amount")
    weights = -factor * _gaussian_weights(voxels(sigma, "sigma", zero=True), truncate, "unsharp")
    _add_centred(weights, np.full((1, 1, 1), 1 + factor))
    return Kernel(weights, name="unsharp")


# ---------------------------------------------------------------------------------------------------------------------
# Shared parts


def _gaussian_weights(deviations: Floats, truncate: float, name: str) -> Weights:
    return _outer(_profiles(deviations, truncate, name))


def _profiles(deviations: Floats, truncate: float, name: str) -> list[Weights]:
    """One sampled Gaussian of sum 1 for each axis, its size checked before any is made."""
    if not 0 < truncate < math.inf:
        raise SpecError(f"truncate must be positive, as in truncate=4, received truncate={truncate:g}")
    reach = [_whole(truncate * deviation + 0.5, name, "sigma") for deviation in deviations]
    _require_size([2 * r + 1 for r in reach], name, "sigma")
    profiles = []
    for radius, deviation in zip(reach, deviations, strict=True):
        profile = np.ones(1)
        if radius:
            profile = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
        profiles.append(profile / profile.sum())
    return profiles


def _outer(profiles: Sequence[Weights]) -> Weights:
    d, h, w = profiles
    return d[:, None, None] * h[:, None] * w


def _add_centred(weights: Weights, smaller: Weights) -> None:
    """Add a kernel to the middle of one that is at least as large; both have odd sizes."""
    starts = [(a - b) // 2 for a, b in zip(weights.shape, smaller.shape, strict=True)]
    weights[tuple(slice(s, s + n) for s, n in zip(starts, smaller.shape, strict=True))] += smaller


def _derivative(axis: str, along: Sequence[float], across: Sequence[float], name: str) -> Kernel:
    profiles = [np.array(across, dtype=np.float64) for _ in range(3)]
    profiles[axis_number(axis)] = np.array(along, dtype=np.float64)
    return Kernel(_outer(profiles) + 0.0, name=name)  # + 0.0: no minus zeros in files and pictures


def _whole(value: float, name: str, parameter: str) -> int:
    """Voxels to each side, cut to a whole number; also refuses what no integer type holds."""
    if value > MAX_WEIGHTS:
        raise SpecError(f"{name} would reach {value:.3g} voxels to each side; {_smaller(parameter)}")
    return int(value)


def _require_size(shape: Sequence[int], name: str, parameter: str) -> None:
    if math.prod(shape) > MAX_WEIGHTS:
        d, h, w = shape
        raise SpecError(f"{name} would have {d} x {h} x {w} weights, more than {MAX_WEIGHTS:,}; {_smaller(parameter)}")


def _smaller(parameter: str) -> str:
    return f"give a smaller {parameter}" + ("" if parameter == "size" else " (is the unit right?)")


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise SpecError(f"{name} must be finite, received {name}={value}")
    return float(value)


def _voxel_text(values: Floats) -> str:
    return ",".join(f"{value:g}" for value in values) + "vox"

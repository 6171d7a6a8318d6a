"""The built-in kernels: one documented function per kernel, in voxels.

A function's signature defines its parameters on the command line: `gaussian:sigma=1.5,1,1vox` calls
`gaussian(sigma=(1.5, 1, 1))`. Lengths in mm have been converted to voxels before. To add a kernel,
write such a function and add its name to `BUILTIN_KERNELS` (`kernels/__init__.py`). A function that
takes lengths should also take `orient` and pass both to `resolve_lengths`, which makes it right on
sheared grids; without `orient`, lengths in mm are refused there. All functions return correlation
kernels, as Keras and scipy.ndimage apply them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from conv3d_cli.errors import SpecError, unknown_name
from conv3d_cli.kernels.lengths import (
    MAX_WEIGHTS,
    Axes,
    Floats,
    Lengths,
    Sizes,
    axis_numbers,
    voxels,
)
from conv3d_cli.kernels.sampling import SAMPLINGS, SamplingName
from conv3d_cli.kernels.world import (
    VOXEL_AXES,
    Ellipsoid,
    OrientKind,
    PerKind,
    laplacian_coefficients,
    requested_slopes,
    resolve_lengths,
    voxel_offsets,
)
from conv3d_cli.model.kernel import Kernel, Weights
from conv3d_cli.model.spec import triple
from conv3d_cli.system import elementary, linear
from conv3d_cli.system.room import require_weights

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
# Lengths divided by decimal or float32 spacings miss whole voxels by rounding: 3 mm / 0.1 mm is not
# quite 30.
_ROUNDING = 1e-6


# --------------------------------------------------------------------------------------------------
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

    size : voxels       edges of the block, one number or D,H,W; an even edge shifts it half a voxel

    Source: scipy.ndimage.uniform_filter.

    >>> box(size=(1, 1, 4)).weights.tolist()
    [[[0.25, 0.25, 0.25, 0.25]]]
    """
    shape = triple(size, "size")
    require_size(shape, "box", "size")
    return Kernel(np.full(shape, 1 / math.prod(shape)), name="box")


def gaussian(
    fwhm: Lengths | None = None,
    sigma: Lengths | None = None,
    truncate: float = 4,
    sampling: SamplingName = "scipy",
    orient: OrientKind = VOXEL_AXES,
) -> Kernel:
    """Gaussian smoothing, by full width at half maximum (fwhm) or standard deviation (sigma).

    Formula: w = exp(-(d²/σd² + h²/σh² + w²/σw²) / 2), then scaled to sum 1;
    FWHM = 2·sqrt(2·ln 2)·σ = 2.3548·σ

    fwhm, sigma : lengths       one of the two; 0 on an axis: no smoothing along it
    truncate : number           the kernel reaches int(truncate·σ + 0.5) voxels to each side
    sampling : a tool's name    weights and reach of this tool (`conv3d presets` lists them); only
                                scipy takes truncate
    orient : voxel or world     axes of unequal lengths: the volume's D,H,W or the world's z,y,x

    If lengths in mm are not along orthogonal voxel axes (on a sheared grid, or with orient=world on
    an oblique one), the kernel is w = exp(-xᵀ·S⁻¹·x / 2) at x mm from the centre, S = diag(σ²), in
    the box around the ellipsoid of truncate·σ.

    Source: scipy.ndimage.gaussian_filter, equal up to rounding; nilearn uses it too. Other
    samplings: kernels/sampling.py.

    >>> gaussian(sigma=(0, 0, 1), truncate=1).weights.round(4).tolist()
    [[[0.2741, 0.4519, 0.2741]]]
    """
    if (fwhm is None) == (sigma is None):
        raise SpecError(
            f"gaussian needs fwhm or sigma{', not both' if fwhm is not None else ''}, as in "
            "gaussian:fwhm=6mm or gaussian:sigma=1.5vox"
        )
    name, given = ("fwhm", fwhm) if fwhm is not None else ("sigma", sigma)
    assert given is not None
    if sampling != "scipy" and orient.steps is None:
        # other tools smooth along the voxel axes, whatever the angles between them
        lengths: Floats | Ellipsoid = voxels(given, name, zero=True)
    else:
        lengths = resolve_lengths(given, name, orient, zero=True)
    deviations = lengths if fwhm is None else _sigma_from_fwhm(lengths)
    if sampling == "scipy":
        return Kernel(
            _gaussian_weights(deviations, truncate, "gaussian"),
            name="gaussian",
            built=_how_built(deviations),
        )
    if sampling not in SAMPLINGS:
        raise unknown_name("sampling", sampling, ["scipy", *SAMPLINGS])
    if truncate != 4:
        raise SpecError(
            f"sampling={sampling} sets how far the Gaussian reaches; leave out "
            f"truncate={truncate:g}"
        )
    if isinstance(deviations, Ellipsoid):
        raise SpecError(
            f"sampling={sampling} goes along voxel axes, and here {deviations.reason}; leave it out"
        )
    tool = SAMPLINGS[sampling]
    reach = [
        whole_voxels(tool.reach(deviation), "gaussian", "sigma") if deviation else 0
        for deviation in deviations
    ]
    require_size([2 * r + 1 for r in reach], "gaussian", "sigma")
    profiles = [
        tool.weights(deviation, radius) if deviation else np.ones(1)
        for deviation, radius in zip(deviations, reach, strict=True)
    ]
    return Kernel(
        _outer([profile / elementary.total(profile) for profile in profiles]), name="gaussian"
    )


def ball(radius: Lengths, orient: OrientKind = VOXEL_AXES) -> Kernel:
    """Mean of the voxels within a radius; an ellipsoid in voxels if the spacing differs by axis.

    Formula: w = 1/n for the n voxels with (d/rd)² + (h/rh)² + (w/rw)² <= 1, else 0; sum 1
    (to 1e-6, for rounded spacings)

    radius : lengths            measured between voxel centres; below 1 voxel on an axis, the kernel
                                has a single plane there
    orient : voxel or world     axes of unequal lengths: the volume's D,H,W or the world's z,y,x

    A radius in mm makes a ball in the world, on sheared grids too.

    Source: fslmaths -kernel sphere and 3dLocalstat -nbhd SPHERE, which also test voxel centres.

    >>> int((ball(radius=1).weights > 0).sum()), ball(radius=(0.5, 1, 2)).size
    (7, (1, 3, 5))
    """
    lengths = resolve_lengths(radius, "radius", orient)
    radii = _half_widths(lengths)
    reach = [whole_voxels(r * (1 + _ROUNDING), "ball", "radius") for r in radii]
    require_size([2 * r + 1 for r in reach], "ball", "radius")
    if isinstance(lengths, Ellipsoid):
        distances = lengths.squared_distances(reach)
    else:
        squares = [(np.arange(-n, n + 1) / r) ** 2 for n, r in zip(reach, radii, strict=True)]
        distances = squares[0][:, None, None] + squares[1][:, None] + squares[2]
    inside = distances <= 1 + 2 * _ROUNDING
    return Kernel(inside / inside.sum(), name="ball", built=_how_built(lengths))


# --------------------------------------------------------------------------------------------------
# Second derivatives


def laplacian(neighbours: Literal[6, 18, 26] = 6) -> Kernel:
    """Laplacian, the sum of the three second derivatives: negative on bright spots.

    Formula: 6: faces - 6·centre; 18: (2·faces + edges - 24·centre) / 6;
    26: (14·faces + 3·edges + corners - 128·centre) / 30, where faces, edges and corners are the
    sums of the 6, 12 and 8 neighbours of that kind; sum 0

    neighbours : 6, 18 or 26    all are exact for polynomials of degree 3; the error of 18 and 26 is
                                isotropic

    Source: 6: scipy.ndimage.laplace. 18, 26: Patra and Karttunen, Stencils with isotropic
    discretization error for differential operators, Numer. Methods Partial Differential Eq. 22
    (2006) 936-953.

    >>> laplacian().weights[1].tolist()
    [[0.0, 1.0, 0.0], [1.0, -6.0, 1.0], [0.0, 1.0, 0.0]]
    """
    stencils = {6: (-6, 1, 0, 0, 1), 18: (-24, 2, 1, 0, 6), 26: (-128, 14, 3, 1, 30)}
    if neighbours not in stencils:
        raise SpecError(f"neighbours is 6, 18 or 26, received {neighbours!r}")
    *by_distance, scale = stencils[neighbours]
    distance = np.abs(np.indices((3, 3, 3)) - 1).sum(axis=0)  # 0 centre, 1 face, 2 edge, 3 corner
    return Kernel(np.array(by_distance)[distance] / scale, name="laplacian")


def log(
    sigma: Lengths, truncate: float = 4, per: PerKind | None = None, orient: OrientKind = VOXEL_AXES
) -> Kernel:
    """Laplacian of Gaussian: edges, and blobs of radius sqrt(3)·sigma; negative on bright blobs.

    Formula: w = Σ over axes a of (a²/σa⁴ - 1/σa²) · g, with g the gaussian kernel; per voxel²

    sigma : lengths             standard deviation, positive on every axis
    truncate : number           the kernel reaches int(truncate·σ + 0.5) voxels to each side
    per : vox or a unit         Laplacian in world coordinates, per mm² for mm: fits a polynomial of
                                degree 2, weighted by g, and is exact for such polynomials
    orient : voxel or world     axes of unequal lengths: the volume's D,H,W or the world's z,y,x

    Source: Marr and Hildreth, Theory of edge detection, Proc. R. Soc. Lond. B 207 (1980) 187-217.
    Without per, equal up to rounding to scipy.ndimage.gaussian_laplace.

    >>> round(float(log(sigma=1).weights[4, 4, 4]), 4)
    -0.1905
    """
    deviations = resolve_lengths(sigma, "sigma", orient)
    reach = _reach(deviations, truncate, "log")
    if min(reach) == 0:
        raise SpecError(
            "log needs at least one voxel to each side, received "
            f"sigma={_voxel_text(_half_widths(deviations))} and truncate={truncate:g}; "
            "give a larger sigma"
        )
    if per is not None:
        gaussian_weights = _gaussian_weights(deviations, truncate, "log")
        weights = _curvature_filter(gaussian_weights, reach, laplacian_coefficients(per))
    elif isinstance(deviations, Ellipsoid):
        inverse = linear.inverse(deviations.covariance)
        slopes = linear.combine(inverse, voxel_offsets(reach))
        gaussian_weights = _gaussian_weights(deviations, truncate, "log")
        weights = ((slopes**2).sum(axis=0) - np.trace(inverse)) * gaussian_weights
    else:
        profiles = _gaussian_profiles(deviations, truncate, "log")
        weights = np.zeros([len(profile) for profile in profiles])
        for axis in range(3):
            second = _derivative_profile(profiles[axis], deviations[axis], 2)
            weights += _outer_with(profiles, axis, second)
    words = "" if per is None else f"per {per.word}²"
    return Kernel(weights, name="log", built=_how_built(deviations, words))


def dog(
    sigma: Lengths,
    sigma2: Lengths | None = None,
    ratio: float = 1.6,
    truncate: float = 4,
    orient: OrientKind = VOXEL_AXES,
) -> Kernel:
    """Difference of Gaussians: a band of scales; positive on bright blobs.

    Formula: w = gaussian(sigma) - gaussian(sigma2), each of sum 1; sum 0.
    Unless given, sigma2 = ratio·sigma

    sigma : lengths             standard deviation of the narrower Gaussian
    sigma2 : lengths            standard deviation of the wider one
    ratio : number              above 1; with 1.6, close to the Laplacian of Gaussian times -1
    truncate : number           the kernel reaches int(truncate·sigma2 + 0.5) voxels to each side
    orient : voxel or world     axes of unequal lengths: the volume's D,H,W or the world's z,y,x

    Source: Marr and Hildreth, Theory of edge detection, Proc. R. Soc. Lond. B 207 (1980) 187-217,
    appendix B.

    >>> abs(dog(sigma=1).sum) < 1e-12, dog(sigma=0, sigma2=(0, 0, 0.3)).weights.round(4).tolist()
    (True, [[[-0.0038, 0.0077, -0.0038]]])
    """
    narrow = resolve_lengths(sigma, "sigma", orient, zero=True)
    if sigma2 is not None and ratio != 1.6:
        raise SpecError(f"dog takes sigma2 or ratio, not both, received ratio={ratio:g} and sigma2")
    if sigma2 is not None:
        wide = resolve_lengths(sigma2, "sigma2", orient, zero=True)
    elif ratio > 1 and math.isfinite(ratio):
        d, h, w = (ratio * value for value in _half_widths(narrow))
        wide = narrow.scaled(ratio) if isinstance(narrow, Ellipsoid) else (d, h, w)
    else:
        raise SpecError(f"ratio must be above 1, as in ratio=1.6, received ratio={ratio:g}")
    low, high = _half_widths(narrow), _half_widths(wide)
    if any(a > b for a, b in zip(low, high, strict=True)) or low == high:
        raise SpecError(
            "dog subtracts a wider Gaussian from a narrower one, "
            f"received sigma={_voxel_text(low)} and sigma2={_voxel_text(high)}"
        )
    weights = -_gaussian_weights(wide, truncate, "dog")
    _add_to_centre(weights, _gaussian_weights(narrow, truncate, "dog"))
    return Kernel(weights, name="dog", built=_how_built(wide))


# --------------------------------------------------------------------------------------------------
# First derivatives


def sobel(axis: Axes, per: PerKind | None = None, orient: OrientKind = VOXEL_AXES) -> Kernel:
    """Sobel derivative along an axis, smoothed across it: positive where values rise.

    Formula: [-1, 0, 1] along the axis ⊗ [1, 2, 1] along the others: 32 times the slope per voxel

    axis : d, h or w            or z, y, x; several letters, as in xyz, give one channel each
    per : vox or a unit         the slope per voxel, mm or another unit, not 32 times it
    orient : voxel or world     slopes along the volume's own axes, or along the world axes, per mm

    Source: Sobel and Feldman, A 3x3 isotropic gradient operator for image processing (1968); equal
    to scipy.ndimage.sobel.

    >>> sobel(axis="w").weights[1].tolist()
    [[-2.0, 0.0, 2.0], [-4.0, 0.0, 4.0], [-2.0, 0.0, 2.0]]
    """
    return _first_derivative("sobel", axis, per, orient, [-1, 0, 1], [1, 2, 1])


def prewitt(axis: Axes, per: PerKind | None = None, orient: OrientKind = VOXEL_AXES) -> Kernel:
    """Prewitt derivative along an axis, averaged across it: positive where values rise.

    Formula: [-1, 0, 1] along the axis ⊗ [1, 1, 1] along the others: 18 times the slope per voxel

    axis : d, h or w            or z, y, x; several letters, as in xyz, give one channel each
    per : vox or a unit         the slope per voxel, mm or another unit, not 18 times it
    orient : voxel or world     slopes along the volume's own axes, or along the world axes, per mm

    Source: Prewitt, Object enhancement and extraction, in Picture Processing and Psychopictorics
    (1970); equal to scipy.ndimage.prewitt.

    >>> prewitt(axis="h").weights[0].tolist()
    [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    return _first_derivative("prewitt", axis, per, orient, [-1, 0, 1], [1, 1, 1])


def scharr(axis: Axes, per: PerKind | None = None, orient: OrientKind = VOXEL_AXES) -> Kernel:
    """Scharr derivative along an axis, more isotropic than sobel: positive where values rise.

    Formula: [-1, 0, 1] along the axis ⊗ [3, 10, 3] along the others: 512 times the slope per voxel

    axis : d, h or w            or z, y, x; several letters, as in xyz, give one channel each
    per : vox or a unit         the slope per voxel, mm or another unit, not 512 times it
    orient : voxel or world     slopes along the volume's own axes, or along the world axes, per mm

    Source: Scharr, Optimale Operatoren in der Digitalen Bildverarbeitung, thesis, Heidelberg
    (2000); integer weights, not normalised, as in sobel and prewitt.

    >>> scharr(axis="w").weights[0].tolist()
    [[-9.0, 0.0, 9.0], [-30.0, 0.0, 30.0], [-9.0, 0.0, 9.0]]
    """
    return _first_derivative("scharr", axis, per, orient, [-1, 0, 1], [3, 10, 3])


def gradient(axis: Axes, per: PerKind | None = None, orient: OrientKind = VOXEL_AXES) -> Kernel:
    """Central difference along an axis: the slope per voxel, without smoothing.

    Formula: [-0.5, 0, 0.5] along the axis

    axis : d, h or w            or z, y, x; several letters, as in xyz, give one channel each
    per : vox or a unit         the slope per voxel, mm or another unit
    orient : voxel or world     slopes along the volume's own axes, or along the world axes, per mm

    Source: equal to numpy.gradient inside the volume.

    >>> gradient(axis="w").weights.tolist(), gradient(axis="xyz").filter_names
    ([[[-0.5, 0.0, 0.5]]], ('gradient x', 'gradient y', 'gradient z'))
    """
    return _first_derivative("gradient", axis, per, orient, [-0.5, 0, 0.5], [0, 1, 0])


def gaussian_derivative(
    sigma: Lengths,
    axis: Axes,
    order: Literal[1, 2] = 1,
    truncate: float = 4,
    per: PerKind | None = None,
    orient: OrientKind = VOXEL_AXES,
) -> Kernel:
    """Derivative of a Gaussian along an axis: slope (or curvature) at a scale.

    Formula: order 1: w = a/σa² · g; order 2: w = (a²/σa⁴ - 1/σa²) · g; along axis a, with g the
    gaussian kernel; per voxel. With per or orient=world: the derivative of a polynomial of degree
    `order`, fitted with the weights g

    sigma : lengths             standard deviation; 0 on an axis: no smoothing along it
    axis : d, h or w            or z, y, x; several letters, as in xyz, give one channel each
    order : 1 or 2              1: slope, positive where values rise; 2: curvature
    truncate : number           the kernel reaches int(truncate·σ + 0.5) voxels to each side
    per : vox or a unit         the exact slope of a ramp, per voxel, mm or another unit; order 2:
                                the curvature, per mm² for mm
    orient : voxel or world     slopes along the volume's own axes, or along the world axes, per mm

    Source: without per and orient, equal up to rounding to scipy.ndimage.gaussian_filter with
    order. Several axes with --magnitude: scipy.ndimage.gaussian_gradient_magnitude.

    >>> gaussian_derivative(sigma=(0, 0, 1), axis="w", truncate=1).weights.round(4).tolist()
    [[[-0.2741, 0.0, 0.2741]]]
    """
    if order not in (1, 2):
        raise SpecError(f"order is 1 or 2, received {order!r}")
    slopes = requested_slopes(axis, per, orient)
    deviations = resolve_lengths(sigma, "sigma", orient, zero=True)
    reach = _reach(deviations, truncate, "gaussian_derivative")
    used = axis_numbers(axis) if slopes is None else np.flatnonzero(slopes.coefficients.any(axis=1))
    if any(reach[a] == 0 for a in used):
        raise SpecError(
            "gaussian_derivative needs at least one voxel to each side along the axes of its "
            f"slope, received sigma={_voxel_text(_half_widths(deviations))} and "
            f"truncate={truncate:g}; give a larger sigma"
        )
    if slopes is not None:
        smooth = _gaussian_weights(deviations, truncate, "gaussian_derivative")
        if order == 1:
            filters = _slope_filters(smooth, reach, slopes.coefficients)
        else:
            filters = [
                _curvature_filter(smooth, reach, np.outer(column, column))
                for column in slopes.coefficients.T
            ]
    elif isinstance(deviations, Ellipsoid):
        inverse = linear.inverse(deviations.covariance)
        smooth = _gaussian_weights(deviations, truncate, "gaussian_derivative")
        first = linear.combine(inverse, voxel_offsets(reach))
        filters = [
            smooth * (first[a] if order == 1 else first[a] ** 2 - inverse[a, a])
            for a in axis_numbers(axis)
        ]
    else:
        profiles = _gaussian_profiles(deviations, truncate, "gaussian_derivative")
        filters = [
            _outer_with(profiles, a, _derivative_profile(profiles[a], deviations[a], order))
            for a in axis_numbers(axis)
        ]
    words = "" if slopes is None else slopes.words(order)
    return _kernel_or_bank("gaussian_derivative", axis, filters, _how_built(deviations, words))


# --------------------------------------------------------------------------------------------------
# Sharpening


def sharpen(amount: float = 1) -> Kernel:
    """Sharpens by subtracting the Laplacian.

    Formula: w = identity - amount · laplacian(6); sum 1

    amount : number     0 leaves the volume as it is

    Source: Gonzalez and Woods, Digital Image Processing, section 3.6, in three dimensions.

    >>> sharpen(amount=0.5).weights[1].tolist()
    [[0.0, -0.5, 0.0], [-0.5, 4.0, -0.5], [0.0, -0.5, 0.0]]
    """
    weights = 0.0 - _require_finite(amount, "amount") * laplacian().weights
    weights[1, 1, 1] += 1
    return Kernel(weights, name="sharpen")


def unsharp(
    sigma: Lengths, amount: float = 1, truncate: float = 4, orient: OrientKind = VOXEL_AXES
) -> Kernel:
    """Unsharp mask: sharpens by adding the detail that a Gaussian removes.

    Formula: w = identity + amount · (identity - gaussian(sigma)); sum 1

    sigma : lengths             standard deviation; 0 on an axis: no smoothing along it
    amount : number             0 leaves the volume as it is
    truncate : number           the kernel reaches int(truncate·σ + 0.5) voxels to each side
    orient : voxel or world     axes of unequal lengths: the volume's D,H,W or the world's z,y,x

    Source: Gonzalez and Woods, Digital Image Processing, section 3.6 (unsharp masking, highboost
    filtering).

    >>> unsharp(sigma=(0, 0, 1), truncate=1).weights.round(4).tolist()
    [[[-0.2741, 1.5481, -0.2741]]]
    """
    factor = _require_finite(amount, "amount")
    deviations = resolve_lengths(sigma, "sigma", orient, zero=True)
    weights = -factor * _gaussian_weights(deviations, truncate, "unsharp")
    _add_to_centre(weights, np.full((1, 1, 1), 1 + factor))
    return Kernel(weights, name="unsharp", built=_how_built(deviations))


# --------------------------------------------------------------------------------------------------
# Shared by several kernels


def _gaussian_weights(deviations: Floats | Ellipsoid, truncate: float, name: str) -> Weights:
    if not isinstance(deviations, Ellipsoid):
        return _outer(_gaussian_profiles(deviations, truncate, name))
    weights = elementary.exp(
        -0.5 * deviations.squared_distances(_reach(deviations, truncate, name))
    )
    return np.asarray(weights / elementary.total(weights))


def _reach(deviations: Floats | Ellipsoid, truncate: float, name: str) -> list[int]:
    """Voxels on each side of the centre along D, H, W.

    Raises: SpecError for the truncation, or too many weights, before any is allocated.
    """
    if not 0 < truncate < math.inf:
        raise SpecError(
            f"truncate must be positive, as in truncate=4, received truncate={truncate:g}"
        )
    reach = [
        whole_voxels(truncate * deviation + 0.5, name, "sigma")
        for deviation in _half_widths(deviations)
    ]
    require_size([2 * r + 1 for r in reach], name, "sigma")
    return reach


def _gaussian_profiles(deviations: Floats, truncate: float, name: str) -> list[Weights]:
    """A sampled Gaussian of sum 1 for each of D, H, W."""
    profiles = []
    for radius, deviation in zip(_reach(deviations, truncate, name), deviations, strict=True):
        profile = np.ones(1)
        if radius:
            profile = elementary.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
        profiles.append(profile / elementary.total(profile))
    return profiles


def _derivative_profile(profile: Weights, deviation: float, order: int) -> Weights:
    """Derivative (order 1 or 2) of a sampled Gaussian, as a correlation kernel."""
    positions = np.arange(len(profile)) - len(profile) // 2
    if order == 1:
        return profile * (positions / deviation**2)
    return profile * (positions**2 / deviation**4 - 1 / deviation**2)


def _outer_with(profiles: Sequence[Weights], axis: int, profile: Weights) -> Weights:
    """Outer product of three profiles, of which `profile` replaces the one along `axis`."""
    return _outer([profile if a == axis else other for a, other in enumerate(profiles)])


def _half_widths(lengths: Floats | Ellipsoid) -> Floats:
    return lengths.half_widths if isinstance(lengths, Ellipsoid) else lengths


def _sigma_from_fwhm(fwhm: Floats | Ellipsoid) -> Floats | Ellipsoid:
    if isinstance(fwhm, Ellipsoid):
        return fwhm.scaled(1 / FWHM_PER_SIGMA)
    d, h, w = (width / FWHM_PER_SIGMA for width in fwhm)
    return d, h, w


def _how_built(lengths: Floats | Ellipsoid, words: str = "") -> str:
    """How a kernel was adapted to its volume, for `kernel show`; "" if it was not."""
    world = f"true to the world: {lengths.reason}" if isinstance(lengths, Ellipsoid) else ""
    return "; ".join(filter(None, [world, words]))


def _slope_filters(smooth: Weights, reach: Sequence[int], coefficients: Weights) -> list[Weights]:
    """A filter for each column of `coefficients` (3, n), applied to the slopes of a fitted plane.

    Least squares with weights `smooth`: at offset i, smooth · i · (Σ smooth·i·iᵀ)⁻¹ · column.
    """
    used = [a for a in range(3) if reach[a]]
    offsets = voxel_offsets(reach)[used]
    moments = linear.inner_products(offsets * smooth, offsets)
    solved = linear.solve(_without_rounding(moments), coefficients[used])
    return [smooth * slopes for slopes in linear.combine(solved.T, offsets)]


def _curvature_filter(smooth: Weights, reach: Sequence[int], coefficients: Weights) -> Weights:
    """The filter Σ coefficients[a, b] · ∂²/∂a∂b of a fitted polynomial of degree 2.

    Least squares with weights `smooth`; coefficients are (3, 3).
    """
    used = [a for a in range(3) if reach[a]]
    offsets = voxel_offsets(reach)
    pairs = [(a, b) for a in used for b in used if a <= b]
    basis = np.stack([np.ones_like(smooth), *(offsets[a] * offsets[b] for a, b in pairs)])
    derivatives = np.array([0.0, *(2 * coefficients[a, b] for a, b in pairs)])
    moments = linear.inner_products(basis * smooth, basis)
    solved = linear.solve(_without_rounding(moments), derivatives)
    return np.asarray(smooth * linear.combine(solved[None], basis)[0])


def _without_rounding(moments: Weights) -> Weights:
    """Zero the moments that vanish by symmetry; rounding left there would break separability."""
    scale = np.sqrt(moments.diagonal())
    return np.where(np.abs(moments) < 1e-12 * np.outer(scale, scale), 0.0, moments)


def _outer(profiles: Sequence[Weights]) -> Weights:
    d, h, w = profiles
    return d[:, None, None] * h[:, None] * w


def _add_to_centre(weights: Weights, smaller: Weights) -> None:
    """Add `smaller` to the middle of `weights`, in place; both have odd sizes."""
    starts = [(a - b) // 2 for a, b in zip(weights.shape, smaller.shape, strict=True)]
    weights[tuple(slice(s, s + n) for s, n in zip(starts, smaller.shape, strict=True))] += smaller


def _first_derivative(
    name: str,
    axis: str,
    per: PerKind | None,
    orient: OrientKind,
    along: Sequence[float],
    across: Sequence[float],
) -> Kernel:
    """A derivative kernel of 3 x 3 x 3, or a bank of them for several axes.

    along, across : 3 numbers       profiles along the axis of the derivative and the other two
    """
    smoothing = [np.array(across, np.float64)] * 3
    by_axis = [_outer_with(smoothing, a, np.array(along, np.float64)) for a in range(3)]
    slopes = requested_slopes(axis, per, orient)
    if slopes is None:
        return _kernel_or_bank(name, axis, [by_axis[a] for a in axis_numbers(axis)], "")
    scale = (along[2] - along[0]) * math.fsum(across) ** 2  # the result on a slope of 1 per voxel
    filters = []
    for column in slopes.coefficients.T:
        combined = np.zeros((3, 3, 3))
        for coefficient, derivative in zip(column, by_axis, strict=True):
            if coefficient:
                combined += coefficient / scale * derivative
        filters.append(combined)
    return _kernel_or_bank(name, axis, filters, slopes.words())


def _kernel_or_bank(name: str, axis: str, filters: Sequence[Weights], built: str) -> Kernel:
    """A kernel of one filter or a bank of several, without outer planes of zeros.

    axis : str      one letter for each filter
    """
    weights = np.stack(filters, axis=-1) + 0.0  # + 0.0 turns -0.0 into 0.0 for files and pictures
    for a in range(3):
        planes = np.moveaxis(weights, a, 0)
        while len(planes) > 2 and not planes[0].any() and not planes[-1].any():
            planes = planes[1:-1]
        weights = np.moveaxis(planes, 0, a)
    if len(filters) == 1:
        return Kernel(weights[..., 0], name=name, built=built)
    return Kernel(
        weights, name=name, filter_names=tuple(f"{name} {letter}" for letter in axis), built=built
    )


def whole_voxels(value: float, name: str, parameter: str) -> int:
    """Truncate a reach in voxels to an integer. Raises: SpecError if it is too large."""
    if value > MAX_WEIGHTS:
        raise SpecError(
            f"{name} would reach {value:.3g} voxels to each side; {_size_cure(parameter)}"
        )
    return int(value)


def require_size(shape: Sequence[int], name: str, parameter: str) -> None:
    """Refuse a kernel with too many weights. Raises: SpecError."""
    if math.prod(shape) > MAX_WEIGHTS:
        d, h, w = shape
        raise SpecError(
            f"{name} would have {d} x {h} x {w} weights, more than {MAX_WEIGHTS:,}; "
            f"{_size_cure(parameter)}"
        )
    require_weights(math.prod(shape), name)


def _size_cure(parameter: str) -> str:
    return f"give a smaller {parameter}" + ("" if parameter == "size" else " (is the unit right?)")


def _require_finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise SpecError(f"{name} must be finite, received {name}={value}")
    return float(value)


def _voxel_text(values: Floats) -> str:
    return ",".join(f"{value:g}" for value in values) + "vox"

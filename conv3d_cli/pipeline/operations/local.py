"""`local`: statistics of the voxels around each voxel, in a box, a ball, or under a Gaussian."""

from __future__ import annotations

from typing import Literal

from conv3d_cli.errors import SpecError, named, setting, words
from conv3d_cli.kernels.builtin import ball, box, gaussian
from conv3d_cli.kernels.lengths import Lengths, Sizes
from conv3d_cli.kernels.world import VOXEL_AXES, OrientKind
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import triple
from conv3d_cli.pipeline.operations.base import ComposedOperation, Composition


def local(
    made: Composition,
    /,
    statistic: Literal["mean", "std", "variance", "zscore", "snr", "contrast"] = "mean",
    size: Sizes | None = None,
    radius: Lengths | None = None,
    sigma: Lengths | None = None,
    truncate: float = 4,
    ddof: Literal[0, 1] = 0,
    orient: OrientKind = VOXEL_AXES,
) -> int:
    """Statistics of the voxels around each voxel: in a box, a ball, or under a Gaussian.

    conv3d local head.nii.gz --statistic std --size 7 -o std.nii.gz
    conv3d local head.nii.gz --statistic zscore --radius 6mm -o z.nii.gz
    conv3d local scans --statistic snr --sigma 2mm --out-dir snr

    Voxels that are missing (--nan ignore, --missing) or outside a --mask are left out. Sums are
    taken in float64 around values of the window itself, so that nothing cancels where voxels are
    large and vary little.

    Formulas: mean = Σ w·x / Σ w; variance = Σ w·(x - mean)² / Σ w; std = √variance;
    zscore = (x - mean) / std; snr = mean / std; contrast = std / mean; a quotient is 0 where its
    divisor is 0

    statistic : word    what to compute; zscore needs the voxel itself, the others its surroundings
    size : voxels       edges of a box around the voxel, one odd number or D,H,W
    radius : lengths    radius of a ball, as that of the kernel ball
    sigma : lengths     standard deviation of a Gaussian whose weights the voxels have
    truncate : number   the Gaussian reaches int(truncate·σ + 0.5) voxels to each side
    ddof : 0 or 1       variances of the window's voxels, or of what they are a sample of (n - 1)
    orient : voxel or world     axes of unequal lengths: the volume's D,H,W or the world's z,y,x

    Source: scipy.ndimage.uniform_filter and gaussian_filter of x and x² for mean and std with
    ddof=0; SimpleITK's Noise filter for std with ddof=1.
    """
    window = _window(size, radius, sigma, truncate, orient)
    if ddof and window.weights.size == 1:
        raise SpecError(
            f"{setting('ddof', 1)} divides by one voxel less than the window has, and it has one: "
            f"take a larger window, or {setting('ddof', 0)}"
        )
    masked = made.missing.mask is not None
    taken = (made.volume,) if made.certainty is None else (made.volume, made.certainty)
    return made.step(
        "LocalStatistics",
        *taken,
        weights={"window": window.weights},
        statistic=statistic,
        boundary=str(made.boundary),
        ddof=ddof,
        min_coverage=made.missing.min_coverage,
        empty=0.0 if masked else None,  # NaN
        masked=masked,
    )


def _window(
    size: Sizes | None,
    radius: Lengths | None,
    sigma: Lengths | None,
    truncate: float,
    orient: OrientKind,
) -> Kernel:
    """The weights of the window. Raises: SpecError."""
    given = {"size": size, "radius": radius, "sigma": sigma}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        received = " and ".join(map(named, names)) or "none of them"
        raise SpecError(
            f"local needs {named('size')}, {named('radius')} or {named('sigma')} to say what is "
            f"around a voxel, as in {words('--size 7', 'local:size=7')}, received {received}"
        )
    if truncate != 4 and sigma is None:
        raise SpecError(
            f"{setting('truncate', f'{truncate:g}')} is for {named('sigma')}: leave it out with "
            f"{named(names[0])}"
        )
    if radius is not None:
        return ball(radius, orient)
    if sigma is not None:
        return gaussian(sigma=sigma, truncate=truncate, orient=orient)
    assert size is not None
    edges = triple(size, "size")
    if any(edge % 2 == 0 for edge in edges):
        raise SpecError(
            f"{named('size')} must be odd on every axis, so that a voxel is in the middle, "
            f"received {','.join(map(str, edges))}"
        )
    return box(edges)


OPERATION = ComposedOperation(local, takes_missing=True)

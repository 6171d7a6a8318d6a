"""`local`: statistics of the voxels around each voxel."""

from __future__ import annotations

from conv3d_cli.errors import SpecError
from conv3d_cli.kernels.builtin import ball, box, gaussian
from conv3d_cli.kernels.lengths import Lengths, Sizes
from conv3d_cli.pipeline.operations.base import ComposedOperation, Composition


def local(
    made: Composition,
    /,
    size: Sizes | None = None,
    radius: Lengths | None = None,
    sigma: Lengths | None = None,
) -> int:
    """Mean of the voxels around each voxel: in a box, a ball, or under a Gaussian.

    conv3d local brain.nii.gz --size 7 -o mean.nii.gz
    conv3d local brain.nii.gz --radius 3mm -o mean.nii.gz
    conv3d local brain.nii.gz --sigma 2mm -o mean.nii.gz

    size : voxels       edges of a box, one number or D,H,W
    radius : lengths    of a ball
    sigma : lengths     standard deviation of a Gaussian
    """
    given = [value is not None for value in (size, radius, sigma)]
    if sum(given) != 1:
        raise SpecError("local needs one of size, radius and sigma, as in local:size=7")
    kernel = (
        box(size)
        if size is not None
        else ball(radius)
        if radius is not None
        else gaussian(sigma=sigma)
    )
    return made.convolve(kernel)


OPERATION = ComposedOperation(local)

"""`tensor`: the structure tensor or the Hessian at each voxel, and what is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError, named, setting, unknown_name
from conv3d_cli.kernels.lengths import Floats, Kind, Lengths, PhysicalLengths
from conv3d_cli.kernels.world import VOXEL_AXES, OrientKind, shear_text
from conv3d_cli.model.grid import ORTHOGONAL, Grid, shear, unit_steps
from conv3d_cli.network.operations.tensors import FEATURES, OF_HESSIAN
from conv3d_cli.pipeline.operations.base import ComposedOperation, Composition


def read_features(text: str, name: str, grid: Grid | None = None) -> tuple[str, ...]:
    """Parse names of features, joined by commas.

    Raises: UnknownNameError; SpecError for one that is given twice.
    >>> read_features("Eigenvalues,coherence", "features")
    ('eigenvalues', 'coherence')
    """
    names = tuple(part.strip().lower() for part in text.split(","))
    for part in names:
        if part not in FEATURES:
            raise unknown_name(name, part, list(FEATURES))
        if names.count(part) > 1:
            raise SpecError(f"{name} has {part} twice, received {name}={text}")
    return names


Features = Annotated[tuple[str, ...], Kind(read_features, "NAMES", "eigenvalues")]


def tensor(
    made: Composition,
    /,
    sigma: Lengths,
    window: Lengths | None = None,
    of: Literal["structure", "hessian"] = "structure",
    features: Features | None = None,
    orient: OrientKind = VOXEL_AXES,
) -> int:
    """Structure tensor, or Hessian: eigenvalues, coherence and directions at each voxel.

    conv3d tensor muscle.nii.gz --sigma 1mm --window 3mm -o eigenvalues.nii.gz
    conv3d tensor fibres.tif --sigma 1vox --window 4vox --features orientation -o fibres.nii
    conv3d tensor angio.nii.gz --of hessian --sigma 2mm -o curvature.nii.gz

    The structure tensor is made of the products of the slopes along D, H, W at the scale sigma,
    each averaged by a Gaussian window. Slopes are per the unit of sigma: per mm, or per voxel.

    sigma : lengths         standard deviation of the Gaussian whose derivatives are taken
    window : lengths        standard deviation of the Gaussian that averages products
    of : structure or hessian       the tensor: structure, or of second derivatives
    features : names        eigenvalues (largest first), coherence (0 to 1, fractional anisotropy),
                            linearity, planarity, orientation (along fibres), normal (across
                            plates); several are joined by commas [default: eigenvalues]
    orient : voxel or world         directions as d,h,w along the volume's own axes, or as x,y,z of
                            its affine
    """
    output = features or ("eigenvalues",)
    if of == "structure" and window is None:
        raise SpecError(
            f"a structure tensor needs {named('window')}, as in {setting('window', '3mm')}"
        )
    if of == "hessian" and window is not None:
        raise SpecError(
            f"{named('window')} is for a structure tensor, and {setting('of', 'hessian')} takes "
            "none: leave it out"
        )
    if of == "hessian" and (wrong := [name for name in output if name not in OF_HESSIAN]):
        raise SpecError(
            f"{wrong[0]} is of a structure tensor, and {setting('of', 'hessian')} has "
            f"{', '.join(OF_HESSIAN)}: leave it out"
        )
    for lengths in (sigma, window):
        if isinstance(lengths, PhysicalLengths) and shear(lengths.steps) > ORTHOGONAL:
            raise ShapeError(
                f"tensor works along orthogonal voxel axes, and here {shear_text(lengths.steps)}; "
                "give sigma and window in voxels"
            )
    axes = np.eye(3)
    letters = "dhw"
    if orient.steps is not None:
        if not isinstance(sigma, PhysicalLengths):
            raise SpecError(
                f"{setting('orient', 'world')} takes directions in space: give {named('sigma')} in "
                "a unit of length, as 1mm"
            )
        axes, letters = unit_steps(orient.steps)[::-1], "xyz"  # rows are z, y, x
    own: dict[str, Any] = {"outputs": list(output), "axes": axes.tolist()}
    taken: dict[str, Any] = {
        "sigma": _three(sigma),
        "per": _per(sigma),
        "boundary": str(made.boundary),
    }
    made.channel_names = _names(output, letters)
    if of == "hessian":
        return made.step("HessianTensor", made.volume, **taken, **own)
    return made.step("StructureTensor", made.volume, window=_three(window), **taken, **own)


def _three(lengths: Any) -> list[float]:
    """Lengths in voxels along D, H, W."""
    d, h, w = lengths if isinstance(lengths, tuple) else (lengths,) * 3
    return [float(d), float(h), float(w)]


def _per(sigma: Any) -> Floats:
    """Slopes in the unit of sigma, of slopes of 1 per voxel along D, H, W."""
    if not isinstance(sigma, PhysicalLengths):
        return 1.0, 1.0, 1.0
    d, h, w = (1 / float(step) for step in np.linalg.norm(sigma.steps, axis=0))
    return d, h, w


def _names(output: tuple[str, ...], letters: str) -> tuple[str, ...]:
    """The names of the channels of each channel of the volume."""
    found: list[str] = []
    for name in output:
        if name == "eigenvalues":
            found += [f"eigenvalue {n}" for n in (1, 2, 3)]
        elif FEATURES[name] == 3:
            found += [f"{name} {letter}" for letter in letters]
        else:
            found.append(name)
    return tuple(found)


OPERATION = ComposedOperation(tensor)

"""`ridges`: how much the volume looks like a tube, a plate or a blob at each voxel."""

from __future__ import annotations

from typing import Any, Literal

from conv3d_cli.errors import SpecError, named, setting
from conv3d_cli.kernels.lengths import PhysicalLengths, Scales
from conv3d_cli.network.operations.ridges import MEASURES
from conv3d_cli.pipeline.operations.base import ComposedOperation, Composition

# method -> parameters that only it takes
_OWN = {"frangi": ("alpha", "beta"), "jerman": ("tau",)}


def ridges(
    made: Composition,
    /,
    scales: Scales,
    method: Literal["frangi", "sato", "jerman", "meijering"] = "frangi",
    polarity: Literal["bright", "dark"] = "bright",
    shape: Literal["tube", "plate", "blob"] = "tube",
    alpha: float | None = None,
    beta: float | None = None,
    tau: float | None = None,
    c: float | None = None,
    best_scale: Literal["no", "yes"] = "no",
) -> int:
    """Vessels, fibres and other ridges: how much each voxel looks like a tube, at its best scale.

    conv3d ridges angio.nii.gz --scales 1,2,4mm -o vessels.nii.gz
    conv3d ridges cells.tif --method sato --scales 2,4vox --polarity dark -o out.tif
    conv3d ridges bone.nii.gz --shape plate --scales 1mm -o sheets.nii.gz
    conv3d ridges angio.nii.gz --scales 1,2mm --best-scale -o both.nii.gz

    The measures are made of the eigenvalues of the Hessian, the second derivatives of the volume
    smoothed by a Gaussian of each scale and normalised by it. A tube of radius r answers most at a
    scale between r / √2 and r. Scales are at least half a voxel.

    scales : lengths            standard deviations of the Gaussian, such as 1,2,4mm or 2vox
    method : a measure          frangi and jerman: from 0 to 1; sato: contrast; meijering: for
                                neurites, from 0 to 1
    polarity : bright or dark   whether ridges are brighter or darker than what is around them
    shape : tube, plate, blob   what is looked for; plates and blobs only by frangi
    alpha : number              frangi: larger leaves out more that is like a plate [default: 0.5]
    beta : number               frangi: smaller leaves out more that is like a blob [default: 0.5]
    tau : number                jerman: smaller evens out more, from 0 to 1 [default: 0.75]
    c : number                  frangi: norm of the Hessian that counts as structure [default: half
                                of the largest in the volume, at each scale]; jerman: least
                                eigenvalue [default: tau times the largest]; meijering: what counts
                                as 1 [default: the largest]
    best_scale : yes or no      write the scale of the largest response, too, as a second channel:
                                in the unit of scales, 0 where there is no response
    """
    measure = MEASURES[method]
    given = {"alpha": alpha, "beta": beta, "tau": tau}
    for owner, names in _OWN.items():
        for name in names:
            if given[name] is not None and owner != method:
                raise SpecError(
                    f"{named(name)} is for {setting('method', owner)}, and {method} takes none: "
                    "leave it out"
                )
    for name, value in {"alpha": alpha, "beta": beta, "c": c}.items():
        if value is not None and not value > 0:
            raise SpecError(f"{named(name)} must be above 0, received {value:g}")
    if tau is not None and not 0 < tau <= 1:
        raise SpecError(f"{named('tau')} must be above 0 and at most 1, received {tau:g}")
    if c is not None and measure.of_largest is None:
        raise SpecError(f"{method} takes no {named('c')}: leave it out")
    shared: dict[str, Any] = {
        "method": method,
        "bright": polarity == "bright",
        "scales": [list(sigma) for sigma in scales],
        "boundary": str(made.boundary),
    }
    taken = [made.volume]
    if measure.of_largest is not None and c is None:
        planes = made.step("RidgeMaxima", made.volume, **shared)
        taken.append(made.step("GlobalMaxPooling3D", planes))
    numbers = {**given, "c": c}
    own: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    if best_scale == "yes":
        made.channel_names = ("response", "scale")
        own["lengths"] = [
            (one.lengths if isinstance(one, PhysicalLengths) else one)[0] for one in scales
        ]
    return made.step("Ridges", *taken, **shared, shape=shape, **own)


OPERATION = ComposedOperation(ridges)

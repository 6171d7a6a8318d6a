"""`match`: normalized cross-correlation with a template, and its peaks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, named, setting
from conv3d_cli.kernels.lengths import Lengths, voxels
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import AXIS_NAMES
from conv3d_cli.pipeline.operations.base import ComposedOperation, Composition
from conv3d_cli.pipeline.outputs import PEAKS, PeakRules
from conv3d_cli.settings.needs import no_effect

# Where the standard deviation of a window is not above this part of its mean, rounding of the
# template's sums could move a correlation by about a hundredth.
STEADY = {"float32": 2e-5, "float64": 4e-14}


def match(
    made: Composition,
    /,
    ignore: float | None = None,
    threshold: float | None = None,
    min_distance: Lengths | None = None,
) -> int:
    """Find where a template fits: its normalized cross-correlation with what is around a voxel.

    conv3d match head.nii.gz -k t.nii.gz -o score.nii.gz --peaks peaks.tsv
    conv3d match head.nii.gz -k log:sigma=2vox -o score.nii.gz --boundary zeros
    conv3d match stack.tif -k ball.npy --ignore 0 -o score.tif
    conv3d match stack.tif -k cell.tif --template-mask cell_mask.tif -o score.tif

    The template is the kernel (-k), of any format; its centre is where it fits. Scores are
    between -1 and 1, whatever the volume's brightness and contrast: 1 where its voxels are a
    multiple of the template's plus a constant, -1 if that multiple is negative, and 0 where the
    volume does not vary.

    Formula: Σ (t - mean t)·(x - mean x) / √(Σ (t - mean t)² · Σ (x - mean x)²), over the voxels of
    the template

    ignore : number         template voxels of this value are no part of it, as 0 around a template
                            that is not a box
    threshold : number      the least score of a peak, for --peaks; by default 0.5
    min_distance : lengths  of two peaks the lower one is left out if it is nearer than this; by
                            default half the template's size along each axis

    Source: J. P. Lewis, Fast normalized cross-correlation, Vision Interface (1995) 120-123; with
    masks: D. Padfield, Masked object registration in the Fourier domain, IEEE TIP 21 (2012);
    scikit-image's match_template with pad_input=True and --boundary zeros.
    """
    assert made.kernel is not None
    if threshold is not None and not -1 <= threshold <= 1:
        raise SpecError(
            f"{setting('threshold', f'{threshold:g}')}: scores are from -1 to 1, so pass a number "
            "in this range"
        )
    template, inside = _template(made.kernel, made, ignore)
    if not made.writes_table:
        given = {"threshold": threshold, "min_distance": min_distance}
        made.notes += [
            no_effect(name, f"it is for the table that {named('peaks')} writes")
            for name, value in given.items()
            if value is not None
        ]
    reach = tuple(n / 2 for n in inside.shape)
    if min_distance is not None:
        reach = voxels(min_distance, "min_distance", zero=True)
    made.peaks = PeakRules(0.5 if threshold is None else threshold, (reach[0], reach[1], reach[2]))
    sums = made.convolve(Kernel(template, name=made.kernel.name))
    return made.step(
        "NormalizedCorrelation",
        made.volume,
        sums,
        weights={"window": inside},
        boundary=str(made.boundary),
        steady=STEADY[made.precision],
    )


def _template(
    kernel: Kernel, made: Composition, ignore: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the template's sums, see `NormalizedCorrelation`, and 1 where it is.

    Raises: ShapeError for a template that cannot be matched.
    """
    if kernel.is_layer or kernel.is_bank:
        raise ShapeError(
            f"match needs a template of one channel (depth, height, width), and {kernel.title} is "
            "a layer or has several filters; pass one volume"
        )
    values = np.asarray(kernel.weights, np.float64)
    for axis, (own, length) in enumerate(zip(values.shape, made.shape.size, strict=True)):
        if own > length:
            sizes = (
                "x".join(map(str, values.shape)),
                "x".join(map(str, made.shape.size)),
            )
            raise ShapeError(
                f"the template {kernel.name} of {sizes[0]} voxels is larger than the volume of "
                f"{sizes[1]} along {AXIS_NAMES[axis]}; crop it, or exchange the two"
            )
    inside = _inside(values, kernel, made.template_mask)
    if ignore is not None:
        inside &= values != ignore
    if not inside.any():
        raise ShapeError(
            f"all voxels of the template {kernel.name} that count are {ignore:g}, which "
            f"{setting('ignore', ignore)} leaves out; pass another number"
        )
    own = values[inside]
    if own.min() == own.max():
        where = "everywhere" if inside.all() else "wherever it counts"
        raise ShapeError(
            f"the template {kernel.name} is {own[0]:g} {where}, so that nothing in a volume is "
            "more like it than anything else; take a template that varies"
        )
    own = own / np.abs(own).max()
    own = own - math.fsum(own) / len(own)
    weights = np.zeros(values.shape)
    weights[inside] = own / math.sqrt(math.fsum(own * own) * len(own))
    return weights, inside.astype(np.float64)


def _inside(values: NDArray[np.float64], kernel: Kernel, mask: Kernel | None) -> NDArray[np.bool_]:
    """Where a template is. Raises: ShapeError for a mask that does not fit, or has no voxel."""
    if mask is None:
        return np.ones(values.shape, bool)
    if mask.weights.shape != values.shape:
        own, wanted = ("x".join(map(str, one)) for one in (mask.weights.shape, values.shape))
        raise ShapeError(
            f"the template mask {mask.name} has {own} voxels, and the template {kernel.name} has "
            f"{wanted}: pass a mask of the template's shape"
        )
    inside = np.asarray(mask.weights > 0)
    if not inside.any():
        raise ShapeError(
            f"no voxel of the template mask {mask.name} is above 0, so nothing of the template is "
            "left: pass another mask"
        )
    return inside


OPERATION = ComposedOperation(match, takes_kernel=True, takes_template_mask=True, table=PEAKS)

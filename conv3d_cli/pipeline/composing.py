"""Makes the stages and steps of a job of its operation, when its volume is known.

Missing voxels are replaced before the operation, and outputs outside a mask after it, by steps of
their own (`network/operations/missing.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import SpecError, setting, words
from conv3d_cli.kernels import is_builtin, read_kernel
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import Missing, stored_value
from conv3d_cli.model.volume import VolumeHeader, VolumeReader
from conv3d_cli.network.operations.base import Shape
from conv3d_cli.pipeline.kernels import resolve_kernel
from conv3d_cli.pipeline.operations import find_operation
from conv3d_cli.pipeline.operations.base import ComposedOperation, Composition
from conv3d_cli.pipeline.outputs import ROLES
from conv3d_cli.pipeline.request import Job, Stage, Step, inputs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from conv3d_cli.model.grid import Grid


# Settings of a convolution that an operation takes, and those for one that takes a kernel.
_TAKEN = ("boundary",)
_OF_KERNEL = (
    "kernel",
    "fwhm",
    "sigma",
    "flip",
    "normalize",
    "kernel_spacing",
    "crop_kernel",
    "subtract_background",
    "orient",
)
PLACEHOLDER = "identity"  # the kernel of a stage that an operation takes the place of


def options_taken(operation: ComposedOperation) -> tuple[str, ...]:
    """Names of the options of a convolution that an operation takes."""
    return _TAKEN + (_OF_KERNEL if operation.takes_kernel else ())


def check_operation(text: str, given: Sequence[str], missing: Missing) -> str:
    """Check, before any file is opened, what is asked of an operation. Returns its normal text.

    given : sequence of str     names of the settings of the convolution that it takes the place of
    missing : Missing           policy for missing voxels
    Raises: UnknownNameError for another operation; SpecError for its parameters, for settings that
        it does not take, and for a kernel that it lacks.

    >>> check_operation("Local:size=3", ["boundary"], Missing())
    'local:size=3'
    """
    operation = find_operation(text)
    normal = operation.normal_text(text)
    taken = options_taken(operation)
    for name in given:
        if name not in taken:
            raise SpecError(
                f"{setting(name)} is for a convolution, and {operation.name} does not take it: "
                "leave it out"
            )
    kernels = ("kernel", "fwhm", "sigma")
    if operation.takes_kernel and not any(name in given for name in kernels):
        example = words("-k psf.tif", "kernel='psf.tif'")
        raise SpecError(f"{operation.name} needs a kernel: pass one, as in {example}")
    if missing.labels:
        raise SpecError(
            f"{setting('mask_labels')} is for means, which see their own region only; "
            f"{operation.name} takes a mask of ones and zeros"
        )
    if not operation.takes_missing and (missing.value is not None or missing.nan == "ignore"):
        asked = setting("missing") if missing.value is not None else setting("nan", "ignore")
        raise SpecError(
            f"{asked} is for means, and {operation.name} takes none: pass "
            f"{setting('nan', 'zero')}, or leave it out"
        )
    return normal


def check_template_mask(path: str, text: str | None) -> None:
    """Check that a template mask belongs to an operation that has a template.

    text : str or None      of the operation
    Raises: SpecError.
    """
    if text is None or not find_operation(text).takes_template_mask:
        raise SpecError(
            f"{setting('template_mask', path)} belongs to the template of conv3d match: leave it "
            f"out, or pass {setting('operation', 'match')}"
        )


def check_tables(text: str, roles: Sequence[str]) -> None:
    """Check that an operation has the tables that are asked for beside its output.

    roles : sequence of str     of the outputs beside it
    Raises: SpecError.
    """
    operation = find_operation(text)
    for role in (ROLES[name] for name in roles):
        if role.is_table and role.name != operation.table:
            raise SpecError(
                f"{role.flag} {role.purpose}, and {operation.name} has none: leave it out"
            )


def compose(
    job: Job,
    header: VolumeHeader,
    grid: Grid,
    notes: list[str],
    reopened: Callable[[], AbstractContextManager[VolumeReader]],
) -> Job:
    """The job with the stages that its operation makes of a volume.

    header : VolumeHeader   of the volume
    grid : Grid             by which lengths are converted to voxels
    notes : list of str     extended by what the user should know
    reopened : callable     opens the volume once more, unless it comes from a pipe
    Raises: SpecError, ShapeError; what reading the volume raises.
    """
    assert job.operation is not None
    operation = find_operation(job.operation)
    first, *others = job.stages
    assert isinstance(first, Stage)
    kernel = None
    if operation.takes_kernel:
        kernel, _ = resolve_kernel(first, header.shape, grid, notes, 0, job.given)
    made = Composition(
        shape=Shape(*header.shape[1:]),
        grid=grid,
        boundary=first.spec(is_layer=False).boundary,
        precision=job.precision,
        missing=job.missing,
        kernel=kernel,
        template_mask=_template_mask(job, first),
        reopened=None if job.source == "-" else reopened,
        writes_table=job.path_of(operation.table) is not None,
        notes=notes,
    )
    _replace_missing(made, operation, header)
    values = operation.values(job.operation, grid)
    last = _limit_to_mask(made, operation.function(made, **values))
    if not others and not (
        last == len(made.stages) - 1 and isinstance(made.stages[last], Stage)
    ):  # what is written is the output of a convolution
        made.stages.append(Stage(PLACEHOLDER, inputs=(last,)))
    places = {0: last}
    stages: list[Stage | Step] = list(made.stages)
    for number, stage in enumerate(others, 1):
        taken = tuple(places[position] for position in inputs_of(stage, number))
        places[number] = len(stages)
        stages.append(replace(stage, inputs=taken))
    return replace(
        job,
        stages=tuple(stages),
        composed_from=first,
        channel_names=made.channel_names,
        peak_rules=made.peaks,
        found=made.found,
        making=made.making,
    )


def _template_mask(job: Job, stage: Stage) -> Kernel | None:
    """The volume that tells which voxels of a template count, turned as the template is.

    stage : Stage       of the template
    Raises: FormatError, ShapeError, SpecError.
    """
    if job.template_mask is None:
        return None
    asked = setting("template_mask", job.template_mask)
    adaptation = stage.adaptation
    changed = {
        setting("crop_kernel"): adaptation.crop is not None,
        setting("kernel_spacing", "resample"): adaptation.spacing == "resample",
    }
    for other, is_given in changed.items():
        if is_given:
            raise SpecError(
                f"{asked} has the shape of the template's file, which {other} changes: leave one "
                "of them out"
            )
    if is_builtin(job.template_mask):
        raise SpecError(f"{asked} names a built-in kernel: pass a file")
    found = read_kernel(job.template_mask)
    return found.flipped() if stage.flip else found


def _replace_missing(made: Composition, operation: ComposedOperation, header: VolumeHeader) -> None:
    """Add the steps that find missing voxels and replace them.

    header : VolumeHeader   of the volume
    """
    missing = made.missing
    if missing.nan == "error":
        made.volume = made.step("OnlyFinite")
    elif missing.nan == "zero":
        made.volume = made.step("ReplaceMissing", nan=True)
    if not operation.takes_missing:
        return
    found = []
    if missing.mask is not None:
        found.append(made.step("MaskCertainty"))
    if missing.value is not None or missing.nan == "ignore":
        slope, intercept = header.scale
        stored = stored_value(missing.value, header.dtype)
        value = None if stored is None else stored * slope + intercept
        attributes: dict[str, Any] = {"nan": missing.nan == "ignore", "value": value}
        volume = made.volume
        found.append(made.step("Present", volume, **attributes))
        made.volume = made.step("ReplaceMissing", volume, **attributes)
    if found:
        made.certainty = found[0] if len(found) == 1 else made.step("Multiply", *found)


def _limit_to_mask(made: Composition, last: int) -> int:
    """Add the step that decides on outputs outside the mask. Returns the output's position."""
    missing = made.missing
    if missing.mask is None or missing.mask_mode == "extend":
        return last
    inside = next(
        (
            position
            for position, stage in enumerate(made.stages)
            if isinstance(stage, Step) and stage.node.operation == "MaskCertainty"
        ),
        None,
    )
    if inside is None:
        inside = made.step("MaskCertainty")
    taken = (last, inside, made.volume) if missing.mask_mode == "keep" else (last, inside)
    return made.step("Inside", *taken)

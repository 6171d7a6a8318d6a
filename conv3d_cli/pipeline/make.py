"""Make a `Job`, with its `Stage`s and its `Missing`, from settings; nothing else does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from conv3d_cli.errors import SpecError, setting
from conv3d_cli.kernels import orient_kernel
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import Missing
from conv3d_cli.pipeline.outputs import outputs_beside
from conv3d_cli.pipeline.request import Job, Stage, Step
from conv3d_cli.pipeline.selection import select_in_network, select_in_stack
from conv3d_cli.settings.merge import JobSettings
from conv3d_cli.settings.option import Place
from conv3d_cli.settings.options import Settings

if TYPE_CHECKING:
    from conv3d_cli.network.graph import Network


def make_job(source: str, target: str, settings: JobSettings) -> Job:
    """The job that reads `source` and writes `target`.

    Raises: SpecError, UnknownNameError for settings that are wrong for every volume.

    >>> from conv3d_cli.settings.merge import merge_settings
    >>> settings = merge_settings(Settings(kernel="box:size=3", nan="ignore", gz_level=2))
    >>> job = make_job("a.nii", "b.nii", settings)
    >>> job.stages[0].kernel, job.missing.nan, job.gz_level
    ('box:size=3', 'ignore', 2)
    """
    beside = outputs_beside(settings.run.given())
    network, missing = settings.network, Missing(**settings.run.arguments(Place.MISSING))
    if settings.run.operation is not None:
        from conv3d_cli.pipeline.iterations import saved_outputs  # few jobs have one

        settings = _with_operation(settings, settings.run.operation, missing)
        beside += saved_outputs(str(settings.run.operation), target)
    if settings.run.template_mask is not None:
        from conv3d_cli.pipeline.composing import check_template_mask  # few jobs have one

        check_template_mask(settings.run.template_mask, settings.run.operation)
    if settings.run.patch is not None:
        from conv3d_cli.pipeline.patches import check_patched, in_patches  # few jobs have any

        check_patched(settings)
        bare = replace(settings.run, argmax=None, channels=None)
        if network is not None:
            network = select_in_network(network, bare)
        stages = in_patches(_stages(replace(settings, run=bare), network), network, settings.run)
        network = None
    else:
        if network is not None:
            network = select_in_network(network, settings.run)
        stages = _stages(settings, network)
    return Job(
        source=source,
        target=target,
        stages=stages,
        network=network,
        missing=missing,
        beside=beside,
        preset=settings.preset,
        files=settings.run.files,
        given=settings.given,
        **settings.run.arguments(Place.JOB),
    )


def _with_operation(settings: JobSettings, text: str, missing: Missing) -> JobSettings:
    """The settings with an operation in normal form, and a kernel for the stage that it replaces.

    Raises: SpecError, UnknownNameError.
    """
    from conv3d_cli.pipeline.composing import (  # few jobs have one
        PLACEHOLDER,
        check_operation,
        check_tables,
    )

    if not settings.is_one or settings.preset is not None:
        other = "a stack, or a network" if settings.preset is None else setting("like")
        raise SpecError(f"{setting('operation', text)} does not go with {other}; leave one out")
    (stage,) = settings.stages
    normal = check_operation(text, list(stage.given()), missing)
    check_tables(normal, [output.role for output in outputs_beside(settings.run.given())])
    if stage.kernel is None:
        stage = replace(stage, kernel=PLACEHOLDER)
    return replace(settings, stages=(stage,), run=replace(settings.run, operation=normal))


def _stages(settings: JobSettings, network: Network | None) -> tuple[Stage | Step, ...]:
    if network is None:
        return select_in_stack([*map(make_stage, settings.stages)], settings.run)
    from conv3d_cli.pipeline.lowering import lower_network  # few jobs have a network

    return lower_network(network)


def make_stage(settings: Settings) -> Stage:
    """One convolution of a job. --orient becomes a parameter of its kernel.

    Raises: SpecError, UnknownNameError for wrong settings, and for --orient with a kernel that has
        no such parameter.

    >>> make_stage(Settings(kernel="box:size=3", strides=2)).strides
    2
    """
    values = settings.arguments(Place.STAGE)
    kernel = settings.kernel
    if settings.orient not in (None, "voxel"):
        values["kernel"] = orient_kernel(
            kernel if isinstance(kernel, (str, Kernel)) else None, str(settings.orient)
        )
    return Stage(
        activations=settings.activations or (), notes=settings.notes, files=settings.files, **values
    )

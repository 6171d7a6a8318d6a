"""--patch: the request to run a network, or any stages, in overlapping patches.

A step of the job has the stages as its body. A patch is a volume of its own: it goes through the
body as a volume goes through a job, slab by slab (`flow.PatchReader`). Rows of patches are computed
from the first plane to the last, and the planes that they share wait until all of them are done, in
memory or in temporary files. Patches are added in one order, so the bits depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from conv3d_cli.errors import SpecError, setting
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.network.graph import Network, Node
from conv3d_cli.pipeline.request import Body, Job, Stage, Step
from conv3d_cli.pipeline.selection import selecting_node

if TYPE_CHECKING:
    from conv3d_cli.settings.merge import JobSettings
    from conv3d_cli.settings.options import Settings

NAME = "patches"


def check_patched(settings: JobSettings) -> None:
    """Refuse settings of a job that do not go with patches. Raises: SpecError."""
    run = settings.run
    asked = setting("patch", run.patch)
    other = None
    if run.operation is not None:
        other = setting("operation", run.operation)
    elif settings.preset is not None:
        other = setting("like", settings.preset.name)
    elif run.mask is not None:
        other = setting("mask", run.mask)
    elif run.missing is not None:
        other = setting("missing", run.missing)
    elif run.nan == "ignore":
        other = setting("nan", run.nan)
    if other is not None:
        raise SpecError(f"{asked} does not go with {other}: leave one of them out")


def in_patches(
    stages: Sequence[Stage | Step], network: Network | None, run: Settings
) -> tuple[Stage | Step, ...]:
    """The stages of a job that runs others in patches, and then selects what is written.

    stages : sequence           that run in patches
    network : Network or None   that they were made of
    run : Settings              of the job
    Raises: SpecError for a network whose output is labels; as `selecting_node`.
    """
    if network is not None:
        (output,) = network.outputs.values()
        last = next((node for node in network.nodes if node.name == output), None)
        if last is not None and last.operation == "ArgMax":
            raise SpecError(
                f"{last.title} ends the network, and labels of patches cannot be blended: save the "
                f"model without it, and pass {setting('argmax', True)} with {setting('patch')}"
            )
    made: list[Stage | Step] = []
    treated = {"zero": ("ReplaceMissing", {"nan": True}), "error": ("OnlyFinite", {})}
    if run.nan in treated:
        operation, attributes = treated[run.nan]
        made.append(Step(Node("nan", operation, (), attributes), (-1,)))
    node = Node(NAME, "Patches", (), {"patch": run.patch})
    made.append(Step(node, (len(made) - 1,), body=Body(tuple(stages), network)))
    selecting = selecting_node(run, [stage.name or "" for stage in made])
    if selecting is not None:
        made.append(Step(selecting, (len(made) - 1,)))
    return (*made, Stage("identity"))  # what is written is the output of a convolution


def inner_job(job: Job, body: Body) -> Job:
    """The job of one patch. What is done before and after the patches is left to the outer one."""
    return replace(
        job,
        stages=body.stages,
        network=body.network,
        patch=None,
        normalize_input="none",
        normalize_mask=None,
        output_name=None,
        channels=None,
        argmax=False,
        label_names=None,
        dtype=None,
        missing=NOTHING
        if job.missing == NOTHING
        else Missing(min_coverage=job.missing.min_coverage),
        beside=(),
        scale="none",
    )

"""Passes the options of `conv3d apply` to `batch/plan.py`, which plans its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.options import table_parameters, text_parser
from conv3d_cli.errors import SpecError
from conv3d_cli.pipeline.outputs import OUTPUT_OPTIONS
from conv3d_cli.settings.merge import apply_settings
from conv3d_cli.settings.needs import check_needs
from conv3d_cli.settings.options import MANIFEST_OPTIONS, Settings

if TYPE_CHECKING:
    from conv3d_cli.batch.plan import JobPlan
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.settings.merge import JobSettings


def obey_limits(ctx: click.Context, given: Settings) -> None:
    """Until a command ends, let what it opens keep to its --timeout and --max-memory."""
    from conv3d_cli.formats.zarr.remote import waiting
    from conv3d_cli.system.machine import byte_size
    from conv3d_cli.system.room import ceiling_of_memory

    ctx.with_resource(waiting(given.timeout))
    ceiling = None if given.max_memory is None else byte_size(str(given.max_memory))
    ctx.with_resource(ceiling_of_memory(ceiling))


def plan_command(ctx: click.Context, inputs: tuple[str, ...], given: Settings) -> JobPlan:
    """Plan the jobs of a command.

    ctx : click.Context     its command parses the columns of a manifest
    inputs : tuple of str   volumes and folders
    given : Settings        options given on the command line
    Raises: click.UsageError without inputs; SpecError for --desc without --bids; as
    `batch.plan.plan_jobs`.
    """
    from conv3d_cli.batch.plan import BatchRequest, plan_jobs

    obey_limits(ctx, given)
    if given.desc is not None and not given.bids:
        raise SpecError("--desc is the label of --bids; pass both, or neither")
    if given.manifest is None and not inputs:
        raise click.UsageError(
            "no input; name volumes or folders, or a table of volumes with --manifest", ctx
        )
    request = BatchRequest(
        inputs=inputs,
        manifest=given.manifest,
        output=given.output,
        out_dir=given.out_dir,
        suffix=given.suffix or "",
        prefix=given.prefix or "",
        ending=given.out_format or "",
        recursive=bool(given.recursive),
        patterns=given.glob or (),
        stack=bool(given.stack),
        include_discrete=bool(given.include_discrete),
        allow_outside=bool(given.allow_outside),
        bids=bool(given.bids),
        history=bool(given.history),
    )
    return plan_jobs(request, CommandOptions(ctx, given))


class CommandOptions:
    """The `JobOptions` of a command line.

    ctx : click.Context     context of the command
    given : Settings        options given on the command line
    """

    def __init__(self, ctx: click.Context, given: Settings) -> None:
        self.given = given
        taken = table_parameters(ctx)
        self.columns: Sequence[str] = [name for name in MANIFEST_OPTIONS if name in taken]
        self._parse = text_parser(ctx)

    def settings(self, given: Settings, files: Sequence[str] = ()) -> MergedSettings:
        """Merge options with their config and preset. Raises: as `apply_settings`."""
        merged = apply_settings(given)
        return MergedSettings(
            replace(merged, run=replace(merged.run, files=(*merged.run.files, *files)))
        )

    def parse(self, column: str, text: str) -> Any:
        """Parse an option's value from a manifest. Raises: ValueError, with the reason."""
        return self._parse(column, text)


@dataclass(frozen=True)
class MergedSettings:
    """The `JobTemplate` of batch/plan.py, made from merged settings."""

    merged: JobSettings

    @property
    def overwrite(self) -> bool:
        """Whether outputs may replace existing files."""
        return bool(self.merged.run.overwrite)

    @property
    def mask(self) -> str | None:
        """The mask, or the rule that finds the mask of each volume."""
        return self.merged.run.mask

    @property
    def writes_labels(self) -> bool:
        """Whether the outputs are labels: of --argmax, or of a network that ends so."""
        network = self.merged.network
        if network is None:
            return bool(self.merged.run.argmax)
        operations = {node.name: node.operation for node in network.nodes}
        output = self.merged.run.output_name or next(iter(network.outputs))
        ends = operations.get(network.outputs.get(output, ""))
        return bool(self.merged.run.argmax) or (
            ends == "ArgMax" and self.merged.run.channels is None
        )

    @property
    def used_files(self) -> list[str]:
        """Paths of files that jobs use besides their inputs and outputs."""
        run = self.merged.run
        found: list[Any] = [
            *run.files,
            run.mask,
            run.normalize_mask,
            run.template_mask,
            run.label_names,
            *(getattr(run, option) for option in OUTPUT_OPTIONS),
        ]
        for stage in self.merged.stages:
            found += [*stage.files, stage.kernel]
        return [path for path in found if isinstance(path, str)]

    def job(self, source: str, target: str, mask: str | None = None) -> Job:
        """The job of one volume; `mask` is what the rule found for it. Raises: SpecError."""
        from conv3d_cli.pipeline.make import make_job

        merged = self.merged
        if mask is not None:
            merged = replace(merged, run=replace(merged.run, mask=mask))
        job = make_job(source, target, merged)
        check_needs(merged)  # after wrong values were refused
        return job

"""The options of `conv3d apply`, as `batch/plan.py` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.options import text_parser
from conv3d_cli.errors import SpecError
from conv3d_cli.pipeline.outputs import OUTPUT_OPTIONS
from conv3d_cli.settings.options import MANIFEST_OPTIONS, Settings

if TYPE_CHECKING:
    from conv3d_cli.batch.plan import JobPlan
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.settings.merge import JobSettings


def plan_command(ctx: click.Context, inputs: tuple[str, ...], given: Settings) -> JobPlan:
    """The jobs of a command.

    given : Settings        what was given on the command line
    Raises: as `batch.plan.plan_jobs`.
    """
    from conv3d_cli.batch.plan import BatchRequest, plan_jobs

    if given.desc is not None and not given.bids:
        raise SpecError("--desc is the label of --bids: pass both")
    if given.manifest is None and not inputs:
        raise click.UsageError(
            "no input: name volumes or folders, or a table of them with --manifest", ctx
        )
    request = BatchRequest(
        inputs=inputs,
        manifest=given.manifest,
        output=given.output,
        out_dir=given.out_dir,
        suffix=given.suffix or "",
        prefix=given.prefix or "",
        recursive=bool(given.recursive),
        patterns=given.glob or (),
        include_discrete=bool(given.include_discrete),
        bids=bool(given.bids),
        history=bool(given.history),
    )
    return plan_jobs(request, CommandOptions(ctx, given))


class CommandOptions:
    """The options of a command line, as `JobOptions`."""

    columns: Sequence[str] = MANIFEST_OPTIONS

    def __init__(self, ctx: click.Context, given: Settings) -> None:
        self.given = given
        self._parse = text_parser(ctx)

    def settings(self, given: Settings, files: Sequence[str] = ()) -> MergedSettings:
        """What options, config and preset ask for together. Raises: as `apply_settings`."""
        merged = apply_settings(given)
        return MergedSettings(
            replace(merged, run=replace(merged.run, files=(*merged.run.files, *files)))
        )

    def parse(self, column: str, text: str) -> Any:
        """The value of an option, from its text. Raises: ValueError."""
        return self._parse(column, text)


@dataclass(frozen=True)
class MergedSettings:
    """Merged settings, as the `JobTemplate` of batch/plan.py."""

    merged: JobSettings

    @property
    def overwrite(self) -> bool:
        """Whether outputs may replace files."""
        return bool(self.merged.run.overwrite)

    @property
    def used_files(self) -> list[str]:
        """Files that jobs use beside their inputs."""
        run = self.merged.run
        found: list[Any] = [
            *run.files,
            run.mask,
            *(getattr(run, option) for option in OUTPUT_OPTIONS),
        ]
        for stage in self.merged.stages:
            found += [*stage.files, stage.kernel]
        return [path for path in found if isinstance(path, str)]

    def job(self, source: str, target: str) -> Job:
        """The job of one volume. Raises: SpecError."""
        from conv3d_cli.pipeline.make import make_job

        return make_job(source, target, self.merged)


def apply_settings(given: Settings) -> JobSettings:
    """The settings of `apply`'s jobs; under --to-fwhm the kernel is found later.

    given : Settings        what was given on the command line, and in a manifest's row
    Raises: as `merge_settings`; SpecError for --to-fwhm beside a kernel.
    """
    from conv3d_cli.settings.merge import merge_settings

    settings = merge_settings(given)
    if given.to_fwhm:
        if len(settings.stages) > 1 or settings.stages[0].kernel is not None:
            raise SpecError("--to-fwhm finds its kernel: leave out -k, and the config's")
        settings = replace(settings, stages=(replace(settings.stages[0], kernel="identity"),))
    return settings

"""The options of `conv3d apply`, as `batch/plan.py` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.options import MANIFEST_OPTIONS, given_options, job_settings, make_job
from conv3d_cli.errors import SpecError
from conv3d_cli.pipeline.outputs import OUTPUT_OPTIONS

if TYPE_CHECKING:
    from conv3d_cli.batch.plan import JobPlan
    from conv3d_cli.pipeline.request import Job


def plan_command(ctx: click.Context) -> JobPlan:
    """The jobs of a command. Raises: as `batch.plan.plan_jobs`."""
    from conv3d_cli.batch.plan import BatchRequest, plan_jobs

    params = ctx.params
    if params["desc"] is not None and not params["bids"]:
        raise SpecError("--desc is the label of --bids: pass both")
    if params["manifest"] is None and not params["inputs"]:
        raise click.UsageError("no input: name volumes or folders, or a table of them with --manifest", ctx)
    request = BatchRequest(
        inputs=params["inputs"],
        manifest=params["manifest"],
        output=params["output"],
        out_dir=params["out_dir"],
        suffix=params["suffix"],
        prefix=params["prefix"],
        recursive=params["recursive"],
        patterns=params["glob"],
        include_discrete=params["include_discrete"],
        bids=params["bids"],
        history=params["history"],
    )
    return plan_jobs(request, CommandOptions(ctx))


class CommandOptions:
    """The options of a command line, as `JobOptions`."""

    columns: Sequence[str] = MANIFEST_OPTIONS

    def __init__(self, ctx: click.Context) -> None:
        self.given = given_options(ctx)
        self._ctx = ctx
        self._parameters = {parameter.name: parameter for parameter in ctx.command.params}

    def settings(self, given: dict[str, Any], files: Sequence[str] = ()) -> MergedSettings:
        """What options, config and preset ask for together. Raises: as `apply_settings`."""
        merged = apply_settings(self._ctx, given)
        return MergedSettings({**merged, "files": (*merged.get("files", ()), *files)})

    def parse(self, column: str, text: str) -> Any:
        """The value of an option, from its text. Raises: ValueError."""
        parameter = self._parameters[column]
        kind = click.BOOL if getattr(parameter, "is_flag", False) else parameter.type
        try:
            return kind.convert(text, parameter, self._ctx)
        except click.BadParameter as error:
            raise ValueError(error.message) from None


@dataclass(frozen=True)
class MergedSettings:
    """Arguments for `make_job`, as `JobSettings`."""

    arguments: dict[str, Any]

    @property
    def overwrite(self) -> bool:
        """Whether outputs may replace files."""
        return bool(self.arguments.get("overwrite"))

    @property
    def used_files(self) -> list[str]:
        """Files that jobs use beside their inputs."""
        found = [*self.arguments.get("files", ()), *map(self.arguments.get, ("mask", *OUTPUT_OPTIONS))]
        for stage in self.arguments["stages"]:
            found += [*stage.get("files", ()), stage.get("kernel")]
        return [path for path in found if isinstance(path, str)]

    def job(self, source: str, target: str) -> Job:
        """The job of one volume. Raises: SpecError."""
        return make_job(source, target, self.arguments)


def apply_settings(ctx: click.Context, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments for `make_job` but source and target; under --to-fwhm the kernel is found later.

    given : dict or None    options by their parameters' names; None: those of the command line
    Raises: as `job_settings`.
    """
    settings = job_settings(given_options(ctx) if given is None else given)
    if ctx.params["to_fwhm"]:
        if len(settings["stages"]) > 1 or "kernel" in settings["stages"][0]:
            raise SpecError("--to-fwhm finds its kernel: leave out -k, and the config's")
        settings["stages"] = [{**settings["stages"][0], "kernel": "identity"}]
    return settings

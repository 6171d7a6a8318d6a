"""The files that a run reads: the volume, and the mask, config, kernel and bias that have one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.files import input_files
from conv3d_cli.pipeline.request import Job
from conv3d_cli.settings.options import Settings


@dataclass(frozen=True)
class InputFile:
    """A file, or the folder of a store, that a run reads: role is "volume", "mask", "config", "kernel" or "bias"."""

    role: str
    path: str


def files_of(job: Job, given: Settings) -> list[InputFile]:
    """Everything that a job reads, each file once.

    given : Settings        what was given: a manifest's row is part of it, what a config says is not
    Raises: FormatError if half of a pair is missing.
    """
    found: dict[str, InputFile] = {}
    for role, path in _named(job, given):
        found.setdefault(os.path.realpath(path), InputFile(role, path))
    return list(found.values())


def _named(job: Job, given: Settings) -> Iterator[tuple[str, str]]:
    for role, paths in input_files(job).items():
        for path in paths:
            yield "volume" if role == "input" else role.partition(" of layer ")[0], path
    if given.config is not None:
        yield "config", given.config
    for stage in job.stages:
        weights = stage.kernel.name.partition("::")[0] if isinstance(stage.kernel, Kernel) else None
        for path in stage.files:
            yield "kernel" if path == weights else "bias", path

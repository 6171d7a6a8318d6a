"""The files that a run reads: volume, mask, config, kernel and bias."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.files import input_files
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.settings.options import Settings


@dataclass(frozen=True)
class InputFile:
    """A file that a run reads, or the folder of a Zarr store.

    role : str      "volume", "mask", "normalization mask", "template mask", "label names",
                    "config", "weights", "kernel" or "bias"
    """

    role: str
    path: str


def files_of(job: Job, given: Settings) -> list[InputFile]:
    """All files that a job reads, each once.

    given : Settings        the options, with those of a manifest's row, without those of a config

    Raises: FormatError if one file of a pair (.hdr and .img) is missing.
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
    for path in () if job.given_network is None else job.given_network.files:
        yield "weights", path
    for stage in job.given_stages:
        kernel = stage.kernel if isinstance(stage, Stage) else None
        weights = kernel.name.partition("::")[0] if isinstance(kernel, Kernel) else None
        for path in stage.files:
            yield "kernel" if path == weights else "bias", path

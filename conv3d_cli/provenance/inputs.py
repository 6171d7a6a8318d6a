"""The files that a run reads: the volume, and the mask, config, kernel and bias that have one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conv3d_cli.config import config_files, is_kernel_file
from conv3d_cli.formats import input_files
from conv3d_cli.job import Job
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.provenance.command import names_file

Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class InputFile:
    """A file, or the folder of a store, that a run reads: role is "volume", "mask", "config", "kernel" or "bias"."""

    role: str
    path: str

    def stamp(self) -> Stamp:
        """What changes if the file is written to meanwhile: size and time of it, or of all files in the folder."""
        paths = [self.path]
        if os.path.isdir(self.path):
            paths = sorted(os.path.join(where, name) for where, _, names in os.walk(self.path) for name in names)
        return tuple((status.st_size, status.st_mtime_ns) for status in map(os.stat, paths))


def files_of(job: Job, given: Mapping[str, Any]) -> list[InputFile]:
    """Everything that a job reads, each file once.

    given : the options of the command line, by their names: some files leave no trace in the job
    Raises: FormatError if half of a pair is missing.
    """
    found: dict[str, InputFile] = {}
    for role, path in _named(job, given):
        found.setdefault(os.path.realpath(path), InputFile(role, path))
    return list(found.values())


def _named(job: Job, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for path in input_files(job.source):
        yield "volume", path
    for path in input_files(job.missing.mask) if job.missing.mask is not None else ():
        yield "mask", path
    config = given.get("config")
    if config is not None:
        yield "config", config
    for stage in job.stages:
        name = stage.kernel.name if isinstance(stage.kernel, Kernel) else stage.kernel
        # a kernel that is written in a config has a name, too, and no file
        if name is not None and is_kernel_file(name) and os.path.isfile(file := name.partition("::")[0]):
            yield "kernel", file
    if names_file("bias", given.get("bias")):
        yield "bias", given["bias"]
    for path in config_files(config) if config is not None else ():
        if os.path.isfile(path):
            yield "bias", path

"""Finds a fault that all volumes of a batch share, before any work: it is told once.

Such a fault lies in what they share: a mask or a kernel that is missing or fits none of them, a
ceiling of memory below the least that is needed, outputs that all exist already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conv3d_cli.batch.steps import (
    BatchOptions,
    FinishedOutputs,
    JobRun,
    check_verifiable,
    resume,
    skip_existing,
)
from conv3d_cli.errors import Conv3DError, FormatError, MemoryLimitError, one_line
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.pipeline.request import Job


@dataclass(frozen=True)
class SharedFault:
    """A fault because of which no volume of a batch can be convolved.

    error : Conv3DError     the error, worded for all of them
    jobs : list of Job      the jobs that are not done yet; none of them can start
    """

    error: Conv3DError
    jobs: list[Job]


def shared_fault(jobs: Sequence[Job], options: BatchOptions) -> SharedFault | None:
    """The fault of all jobs that are not done yet; None if one has none, or another one.

    Prepares jobs until one succeeds, which is the first one unless something is wrong. An input
    that cannot be read is a fault of its own, and does not count. Reads no voxels and writes
    nothing.
    Raises: ClusterError if the cluster cannot be reached; SpecError for jobs that no cluster takes.
    """
    if len(jobs) < 2:
        return None
    if options.scheduler is not None:
        from conv3d_cli.cluster.run import check_scheduler

        jobs = [replace(job, on_cluster=True) for job in jobs]
        check_scheduler(options.scheduler)
    errors: list[Conv3DError] = []
    waiting: list[Job] = []
    kind: Any = None
    for job in jobs:
        run = JobRun(job, options, FinishedOutputs(), _ignore, _ignore)
        error = _error_of(run)
        if run.result is not None:
            continue  # it needs no work
        waiting.append(job)
        if isinstance(error, FormatError) and job.source in one_line(error):
            continue
        if error is None or kind not in (None, _kind(error, job)):
            return None
        kind = _kind(error, job)
        errors.append(error)
    if len(errors) < 2:
        return None
    first = max(errors, key=lambda error: getattr(error, "needed", 0))
    if len({one_line(error) for error in errors}) > 1:
        others = count_of(len(errors) - 1, "other volume")
        first = type(first)(f"{one_line(first)}; the same holds for {others}")
    return SharedFault(first, waiting)


def _error_of(run: JobRun) -> Conv3DError | None:
    """The error of a job before its first voxel; None without one."""
    from conv3d_cli.pipeline.prepare import prepare_job

    try:
        for step in (skip_existing, resume, check_verifiable):
            step(run)
            if run.result is not None:
                return None
        run.check_paths()
        with prepare_job(run.job):
            return None
    except Conv3DError as error:
        return error


def _ignore(*_: object) -> None:
    """Shows nothing: no voxel is computed."""


def _kind(error: Conv3DError, job: Job) -> Any:
    """What the errors of several jobs have in common if their fault is the same.

    Errors may differ in the names and the sizes of the volumes; files that cannot be read are
    different faults.
    """
    if isinstance(error, MemoryLimitError):
        return MemoryLimitError
    text = one_line(error)
    if isinstance(error, FormatError):
        return text
    for name in (job.target, job.source):
        text = text.replace(name, "")
    return type(error), re.sub(r"[\d.,]+", "0", text)

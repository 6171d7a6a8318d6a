"""The result of each job of a batch, and the protocol of the reporter that shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from conv3d_cli.errors import Conv3DError, one_line

if TYPE_CHECKING:
    from conv3d_cli.batch.preview import Preview
    from conv3d_cli.pipeline.request import Job

Say = Callable[[str], None]
"""Takes a message for the user."""


@dataclass(frozen=True)
class TableRow:
    """One volume in the table at the end of a batch.

    status : str                "done", "planned", "skipped", "failed" or "cancelled"
    target : str                path of the output
    remark : str                why it was skipped; the error of a failed one is told when it fails
    seconds : float or None     duration of its run; None if it was not run
    volume_bytes : int          size of the input's voxels, unpacked
    found : dict of str         what is told of its values, by the heads of the columns
    """

    status: str
    target: str
    remark: str = ""
    seconds: float | None = None
    volume_bytes: int = 0
    found: dict[str, str] = field(default_factory=dict)


@dataclass
class JobResult:
    """The result of one job.

    job : Job                   the job
    status : str                "done", "planned", "skipped", "failed" or "cancelled"
    record : dict               its object for --json
    remark : str                why it was skipped or failed
    messages : list of str      messages for the user, shown after those of all earlier jobs
    notes : list of str         notes on the volume, shown after the messages
    error : Conv3DError or None the error that it failed with
    preview : Preview or None   pictures for the page of --report; dropped when they are shown
    volume_bytes : int          size of the input's voxels, unpacked; 0 unless the job is done
    """

    job: Job
    status: str
    record: dict[str, Any]
    remark: str = ""
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: Conv3DError | None = None
    preview: Preview | None = None
    volume_bytes: int = 0

    def row(self) -> TableRow:
        """The job's row in the table at the end."""
        from conv3d_cli.batch.report import table_columns  # here, because it imports NumPy

        return TableRow(
            self.status,
            self.job.target,
            "" if self.error is not None else self.remark,
            self.record.get("seconds"),
            self.volume_bytes,
            table_columns(self.record),
        )

    def error_words(self) -> str:
        """The error of a failed job in a batch, with the name of its input if it names no file."""
        names = (self.job.source, self.job.target)
        named = any(name in self.remark for name in names)
        return self.remark if named else f"{self.job.source}: {self.remark}"


def skipped(job: Job, reason: str) -> JobResult:
    """The result of a job that needs no work."""
    return JobResult(
        job, "skipped", {"input": job.source, "output": job.target, "reason": reason}, reason
    )


def cancelled(job: Job) -> JobResult:
    """The result of a job that did not start, or did not finish, because another one failed."""
    return JobResult(job, "cancelled", {"input": job.source, "output": job.target})


def failed(
    job: Job, error: Conv3DError, messages: list[str], preview: Preview | None = None
) -> JobResult:
    """The result of a job that ended with an error."""
    text = one_line(error)
    record = {
        "input": job.source,
        "output": job.target,
        "error": text,
        "exit_code": error.exit_code,
    }
    return JobResult(job, "failed", record, text, messages, error=error, preview=preview)


class Progress(Protocol):
    """Shows the progress of one volume, or of many."""

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` voxels (or volumes) are finished. Called from any thread."""

    def say(self, text: str) -> None:
        """Show a message while the progress is shown."""


class Reporter(Protocol):
    """Shows a batch to the user, while it runs and at its end."""

    def progress(self, label: str, volumes: bool = False) -> AbstractContextManager[Progress]:
        """Show progress until the context ends.

        label : str         the volume's name, or another title
        volumes : bool      progress counts volumes; else it counts voxels
        """

    def say(self, text: str) -> None:
        """Show a message, also if the user asked for quiet."""

    def show(self, result: JobResult, say: Say) -> None:
        """Show the result of a job. Results come in the order of their jobs.

        result : JobResult      the reporter drops its preview
        say : callable          shows its messages
        Raises: WriteError if a page cannot be written.
        """

    def finish(self, rows: Sequence[TableRow], seconds: float) -> None:
        """Show the table of all jobs.

        seconds : float     duration of the batch
        """

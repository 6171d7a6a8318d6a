"""`apply --report`: what is looked at before and after each job, and the entry of the page that comes of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import Conv3DError

if TYPE_CHECKING:
    from conv3d_cli.cli.batch import Attempt
    from conv3d_cli.pictures.page import Entry
    from conv3d_cli.pictures.slices import Slices
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.pipeline.run import JobReport


@dataclass
class Sight:
    """What a page shows of one job. Both volumes are read apart from the job, three planes of each.

    seconds : float         spent on looking while the job waited
    output_letters : str    axes of the output in storage order
    """

    job: Job
    decided: str = ""
    done: str = ""
    before: Slices | None = None
    after: Slices | None = None
    shared: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output_letters: str = ""

    def look_before(self, prepared: PreparedJob) -> None:
        """Keep what was decided, and the input as it is before an output may take its place."""
        from conv3d_cli.cli.report import describe

        started = time.perf_counter()
        self.decided = describe(prepared)
        # a kernel of sum 1 without an activation keeps the scale of values
        self.shared = all(
            abs(stage.kernel.sum - 1) < 1e-3 and all(name in (None, "linear") for name in stage.stage.activations)
            and not (stage.kernel.is_layer or stage.kernel.is_bank)
            for stage in prepared.stages
        )  # fmt: skip
        self.before = self._look(self.job.source, prepared.reader.header.axes.letters)
        self.output_letters = prepared.header.axes.letters
        self.seconds += time.perf_counter() - started

    def look_after(self, report: JobReport) -> JobReport:
        """Look at the output; the report without the time that looking took."""
        from dataclasses import replace

        from conv3d_cli.cli.report import describe_run

        report = replace(report, seconds=max(0.0, report.seconds - self.seconds))
        self.done = describe_run(report)
        self.after = self._look(self.job.target, self.output_letters)
        return report

    def _look(self, path: str, letters: str) -> Slices | None:
        """Three slices of a file; None, and a note, where it cannot be read once more."""
        from conv3d_cli.formats import find_format
        from conv3d_cli.pictures.slices import read_slices

        if path == "-":
            self.notes.append("what passes through a pipe has no picture")
            return None
        found = find_format(path)
        try:
            # where the file does not name its axes: here they are known
            named = found is None or found.names_axes
            return read_slices(path, axes=None if named else letters, most=512)
        except Conv3DError as error:
            self.notes.append(f"no picture: {error}")
            return None


def entry_of(attempt: Attempt) -> Entry:
    """The entry of one job's attempt."""
    from conv3d_cli.pictures.page import Entry

    job, record, sight = attempt.job, attempt.record, attempt.sight or Sight(attempt.job)
    row: dict[str, str] = {"input": _name(job.source), "output": _name(job.target)}
    for column, key in (
        ("seconds", "seconds"), ("read MB/s", "read_mb_per_s"), ("compute MB/s", "compute_mb_per_s"),
        ("write MB/s", "write_mb_per_s"), ("clipped", "clipped"),
    ):  # fmt: skip
        row[column] = _number(record.get(key))
    notes = record.get("notes", [])
    row["notes"] = str(len(notes)) if notes else ""
    return Entry(
        title=f"{job.source} → {job.target}",
        status=attempt.status,
        row=row,
        decided=sight.decided,
        done=sight.done,
        notes=[*notes, *sight.notes, *([attempt.remark] if attempt.status == "skipped" else [])],
        error=record.get("error", ""),
        before=sight.before,
        after=sight.after,
        shared=sight.shared,
    )


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or path


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"

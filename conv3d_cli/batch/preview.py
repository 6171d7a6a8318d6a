"""Slices of a job's input and output, for the page of `apply --report`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from conv3d_cli.errors import Conv3DError

if TYPE_CHECKING:
    from conv3d_cli.model.grid import Spacing
    from conv3d_cli.pictures.slices import Slices
    from conv3d_cli.pipeline.prepare import AnyPrepared, PreparedJob
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.pipeline.run import JobReport


@dataclass
class Preview:
    """One job on the page: its decisions, and three slices of its input and of its output.

    The slices are read from the files, besides the job's own reading.

    decided, done : str             reports of the plan and of the run, in aligned lines
    before, after : Slices or None  slices of the input and of the output
    same_window : bool              show both with the same grey-level window
    notes : list of str             reasons for missing pictures
    seconds : float                 time that the job waited for the first picture
    output_letters : str            axes of the output in storage order
    """

    job: Job
    decided: str = ""
    done: str = ""
    before: Slices | None = None
    after: Slices | None = None
    same_window: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output_letters: str = ""

    def look_before(self, prepared: PreparedJob) -> None:
        """Keep the decisions, and slices of the input before an output may replace it."""
        from conv3d_cli.batch.report import describe
        from conv3d_cli.pipeline.prepare import given_spacing

        started = time.perf_counter()
        self.decided = describe(prepared)
        self.same_window = all(map(_keeps_scale, prepared.stages))
        self.before = self._look(
            self.job.source, prepared.reader.header.axes.letters, given_spacing(self.job)
        )
        self.output_letters = prepared.header.axes.letters
        self.seconds += time.perf_counter() - started

    def look_after(self, report: JobReport) -> JobReport:
        """Keep slices of the output. Returns the report, less the time that `look_before` took."""
        from conv3d_cli.batch.report import describe_run

        report = replace(report, seconds=max(0.0, report.seconds - self.seconds))
        self.done = describe_run(report)
        self.after = self._look(self.job.target, self.output_letters)
        return report

    def _look(self, path: str, letters: str, spacing: Spacing | None = None) -> Slices | None:
        """Three slices of a file; None, and a note, if it cannot be read a second time."""
        from conv3d_cli.formats import find_format
        from conv3d_cli.pictures.slices import read_slices
        from conv3d_cli.system.atomic import sent_to

        if sent_to(path):
            self.notes.append(f"no picture: the volume passes through {sent_to(path)}")
            return None
        found = find_format(path)
        try:
            # if the file does not name its axes, the job knows them
            named = found is None or found.names_axes
            own = None if named else letters
            return read_slices(path, axes=own, max_samples=512, spacing=spacing)
        except Conv3DError as error:
            self.notes.append(f"no picture: {error}")
            return None


def _keeps_scale(stage: AnyPrepared) -> bool:
    """Whether a stage keeps the scale of values: a kernel of sum 1 without an activation."""
    from conv3d_cli.pipeline.prepare import PreparedStage

    if not isinstance(stage, PreparedStage):
        return False
    if stage.kernel.is_layer or stage.kernel.is_bank:
        return False
    linear = all(name in (None, "linear") for name in stage.stage.activations)
    return linear and abs(stage.kernel.sum - 1) < 1e-3

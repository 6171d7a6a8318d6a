"""The steps of one job of a batch, in their order: `STEPS`.

A step looks at a `JobRun` and changes it. A step that sets `result` ends the run: a job that is done
already needs no more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conv3d_cli.batch.results import JobResult, Say, failed, skipped
from conv3d_cli.errors import Conv3DError
from conv3d_cli.system.atomic import placed_outputs

if TYPE_CHECKING:
    from conv3d_cli.batch.preview import Preview
    from conv3d_cli.batch.resume import ResumeLog, ResumeStatus
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.pipeline.run import JobReport
    from conv3d_cli.provenance.run import Recording


@dataclass(frozen=True)
class BatchOptions:
    """How the jobs of a batch are run.

    dry_run : bool              plan only, write nothing
    skip_existing : bool        a job whose output exists is skipped
    make_folder : bool          make the folders of outputs
    scheduler : str or None     run on this Dask cluster: see `cluster.run`
    verify : int or None        compute so many voxels of each output again
    to_fwhm : str or None       choose kernels that make outputs as smooth as this
    fail_fast : bool            after a failure begin no other job, and cancel those that run
    details : bool              describe each job and its times in messages
    describe_plans : bool       under `dry_run`: describe each plan in messages
    previews : bool             take pictures of inputs and outputs
    recordings : dict           what is written beside each output, by the output's path
    resume_log : ResumeLog or None   knows which jobs are done, and learns which are now
    """

    dry_run: bool = False
    skip_existing: bool = False
    make_folder: bool = False
    scheduler: str | None = None
    verify: int | None = None
    to_fwhm: str | None = None
    fail_fast: bool = False
    details: bool = False
    describe_plans: bool = True
    previews: bool = False
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    resume_log: ResumeLog | None = None


@dataclass
class FinishedOutputs:
    """Outputs of a batch that are in their places, in no order.

    written : list of str       by this batch; not all may be verified
    complete : list of str      verified if that was asked for, or made by an earlier run
    """

    written: list[str] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)


@dataclass
class JobRun:
    """One job on its way through the steps.

    progress : callable         takes (voxels finished, voxels in all), from any thread
    say : callable              takes messages that come before the first voxel
    messages : list of str      for the end
    notes : list of str         that stand before those of the run
    status : ResumeStatus or None   of the resume log
    report : JobReport or None  once the job has run
    verified : dict             what verification found, for the record
    result : JobResult or None  of a job that needs no more steps
    """

    job: Job
    options: BatchOptions
    finished: FinishedOutputs
    progress: Callable[[int, int], None]
    say: Say
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    preview: Preview | None = None
    status: ResumeStatus | None = None
    report: JobReport | None = None
    verified: dict[str, Any] = field(default_factory=dict)
    result: JobResult | None = None

    @property
    def recording(self) -> Recording | None:
        """What is written beside the output."""
        return self.options.recordings.get(self.job.target)

    def check_paths(self) -> None:
        """Refuse files that could not be written, before any work.

        Raises: OutputExistsError, WriteError, SpecError.
        """
        from conv3d_cli.pipeline.run import check_paths

        check_paths(self.job, make_folder=self.options.make_folder)
        if self.recording is not None:
            from conv3d_cli.provenance.run import check_sidecar

            check_sidecar(self.recording, self.job.overwrite, self.options.make_folder)

    def give_up(self) -> None:
        """Write down that the job came to nothing."""
        if self.options.resume_log is not None and self.status is not None:
            self.options.resume_log.give_up(self.status)


# ---------------------------------------------------------------------------------------------------------------------
# Before the run


def skip_existing(run: JobRun) -> None:
    """Skip a job whose output exists, under --skip-existing."""
    from conv3d_cli.formats import output_exists

    if run.options.skip_existing and output_exists(run.job.target):
        run.finished.complete.append(run.job.target)
        run.result = skipped(run.job, "output exists")


def resume(run: JobRun) -> None:
    """Skip a job that the resume log knows to be done.

    Raises: OutputExistsError for an output that is something else.
    """
    if run.options.resume_log is None:
        return
    run.status = run.options.resume_log.status(run.job)
    if run.status.done:
        run.finished.complete.append(run.job.target)
        run.result = skipped(run.job, "done already")
    else:
        run.job = run.status.allowed_job()


def make_folders(run: JobRun) -> None:
    """Make the folders that the outputs go to. Raises: WriteError."""
    if not run.options.make_folder or run.options.dry_run:
        return
    from conv3d_cli.system.atomic import write_errors

    for output in run.job.outputs:
        if "://" not in output.path:
            with write_errors(output.path):
                os.makedirs(os.path.dirname(output.path) or ".", exist_ok=True)


def match_smoothness(run: JobRun) -> None:
    """Choose the kernel that gives the output the smoothness of --to-fwhm."""
    if run.options.to_fwhm is None:
        return
    from conv3d_cli.analysis.smoothness import match_fwhm

    run.check_paths()
    matched = match_fwhm(run.job, run.options.to_fwhm)
    run.job, run.notes = matched.job, [matched.words()]


def plan(run: JobRun) -> None:
    """Under --dry-run: decide everything and run nothing."""
    if not run.options.dry_run:
        return
    from conv3d_cli.batch.report import describe, plan_record
    from conv3d_cli.pipeline.prepare import prepare_job

    run.check_paths()
    with prepare_job(run.job) as prepared:
        messages = [f"note: {run.job.source}: {note}" for note in run.notes]
        messages += [describe(prepared)] if run.options.describe_plans else []
        run.result = JobResult(run.job, "planned", plan_record(prepared), messages=messages)


def check_verifiable(run: JobRun) -> None:
    """Refuse a job that could not be verified afterwards. Raises: SpecError."""
    if run.options.verify is not None:
        from conv3d_cli.analysis.verify import check_verifiable

        check_verifiable(run.job)


# ---------------------------------------------------------------------------------------------------------------------
# The run, and after it


def convolve(run: JobRun) -> None:
    """Run the job here or on the cluster, with the files that are written beside its output."""
    options = run.options
    if options.previews:
        from conv3d_cli.batch.preview import Preview

        run.preview = Preview(run.job)

    def decided(prepared: PreparedJob) -> None:
        if options.details:
            from conv3d_cli.batch.report import describe

            run.say(describe(prepared))
        if run.preview is not None:
            run.preview.look_before(prepared)
        if options.resume_log is not None and run.status is not None:
            options.resume_log.begin(run.status)

    def start(job: Job, decided: Callable[[PreparedJob], None]) -> JobReport:
        if options.scheduler is None:
            from conv3d_cli.pipeline.run import run_job

            return run_job(job, run.progress, decided)
        from conv3d_cli.cluster.run import run_on_cluster

        return run_on_cluster(job, options.scheduler, run.progress, decided)

    placed: list[str] = []
    try:
        with placed_outputs() as placed:
            if run.recording is None:
                run.report = start(run.job, decided)
            else:
                from conv3d_cli.provenance.run import run_recorded

                run.report = run_recorded(run.job, run.recording, start, decided)
    finally:  # an interrupt that waited for the output to take its place comes here
        if run.report is not None or os.path.normpath(run.job.target) in map(
            os.path.normpath, placed
        ):
            run.finished.written.append(run.job.target)
            if options.verify is None:
                run.finished.complete.append(run.job.target)


def verify(run: JobRun) -> None:
    """Compute some voxels of the output again. Raises: DifferenceError."""
    if run.options.verify is not None:
        from conv3d_cli.analysis.verify import verify_output

        found = verify_output(run.job, run.options.verify)
        run.verified = {"verified": found.voxels, "verified_worst": found.worst}
        run.finished.complete.append(run.job.target)


def record(run: JobRun) -> None:
    """Write into the resume log that the job is done."""
    log = run.options.resume_log
    if log is not None and run.status is not None and run.report is not None:
        run.report = replace(run.report, notes=[*run.report.notes, *log.finish(run.status)])


def picture(run: JobRun) -> None:
    """Take a picture of the output."""
    if run.preview is not None and run.report is not None:
        run.report = run.preview.look_after(run.report)


def done(run: JobRun) -> JobResult:
    """The result of a job that has gone through all steps."""
    from conv3d_cli.batch.report import describe_run, run_record

    assert run.report is not None
    report, details = (
        replace(run.report, notes=[*run.notes, *run.report.notes]),
        run.options.details,
    )
    messages = [*run.messages, *(f"note: {run.job.source}: {note}" for note in report.notes)]
    messages += [describe_run(report)] if details else []
    if run.verified and details:
        messages.append(
            f"verified   {run.verified['verified']} voxels; the largest difference is "
            f"{100 * run.verified['verified_worst']:.2g} % of the bound"
        )
    values = {**run_record(report), **run.verified}
    if run.recording is not None:
        values["sidecar"] = run.recording.sidecar
        messages += [f"sidecar    {run.recording.sidecar}"] if details else []
    return JobResult(
        run.job,
        "done",
        values,
        messages=messages,
        preview=run.preview,
        volume_bytes=report.bytes_in,
    )


STEPS: tuple[Callable[[JobRun], None], ...] = (
    skip_existing,
    resume,
    make_folders,
    match_smoothness,
    plan,
    check_verifiable,
    convolve,
    verify,
    record,
    picture,
)


def run_steps(run: JobRun) -> JobResult:
    """Take a job through `STEPS`, as far as it goes.

    An error of the job is its result; interrupts pass through.
    """
    try:
        for step in STEPS:
            step(run)
            if run.result is not None:
                return run.result
    except Conv3DError as error:
        run.give_up()
        return failed(run.job, error, run.messages, run.preview)
    except BaseException:
        if (
            run.job.target not in run.finished.written
        ):  # else the next run sees that this one left it
            run.give_up()
        raise
    return done(run)

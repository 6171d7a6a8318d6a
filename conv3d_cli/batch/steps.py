"""The steps that each job of a batch goes through, in the order of `STEPS`.

A step reads and changes a `JobRun`. A step that sets `result`, for example for a job that is done
already, ends the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conv3d_cli.batch.results import JobResult, Say, failed, skipped
from conv3d_cli.errors import (
    Conv3DError,
    DifferenceError,
    OutputExistsError,
    SpecError,
    named,
)
from conv3d_cli.system.atomic import committed_together, placed_outputs
from conv3d_cli.system.faults import explained
from conv3d_cli.system.words import count_of, percent

if TYPE_CHECKING:
    from conv3d_cli.batch.preview import Preview
    from conv3d_cli.batch.resume import ResumeLog, ResumeStatus
    from conv3d_cli.cluster.scheduler import Scheduler
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.pipeline.run import JobReport
    from conv3d_cli.provenance.run import Recording


@dataclass(frozen=True)
class BatchOptions:
    """How to run the jobs of a batch.

    dry_run : bool                  plan only, write nothing
    skip_existing : bool            skip jobs whose output exists
    make_folder : bool              create the folders of outputs
    scheduler : Scheduler or None   run on its Dask cluster: see `cluster.run`
    verify : int, str or None       number of voxels of each output to compute again; "all" or
                                    "off": whether tiles are checked by checksums
    jobs : int                      jobs of the batch, which share the process's start
    to_fwhm : str or None           choose kernels that smooth outputs to this FWHM
    fail_fast : bool                after a failure, start no other job and cancel those that run
    details : bool                  describe each job and its times in messages
    describe_plans : bool           with `dry_run`: describe each plan in messages, its notes too
    previews : bool                 take pictures of inputs and outputs
    depfile : str or None           make rules to write together with the output of the only job
    recordings : dict               records to write beside outputs, by the output's path
    resume_log : ResumeLog or None  tells which jobs are done, and records those that finish
    """

    dry_run: bool = False
    skip_existing: bool = False
    make_folder: bool = False
    scheduler: Scheduler | None = None
    verify: int | str | None = None
    jobs: int = 1
    to_fwhm: str | None = None
    fail_fast: bool = False
    details: bool = False
    describe_plans: bool = True
    previews: bool = False
    depfile: str | None = None
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    resume_log: ResumeLog | None = None


@dataclass
class FinishedOutputs:
    """Paths of outputs of a batch that are in place, in no particular order.

    written : list of str       written by this batch; some may not be verified yet
    complete : list of str      verified if the user asked for that, or made by an earlier run
    depfile : bool              the make rules of the only job are written
    """

    depfile: bool = False
    written: list[str] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)


@dataclass
class JobRun:
    """One job on its way through the steps.

    job : Job                       the job; steps may replace it
    options : BatchOptions          how to run it
    finished : FinishedOutputs      outputs of the batch that are in place
    progress : callable             called with (voxels finished, all voxels), from any thread
    say : callable                  shows messages that come before the first voxel
    messages : list of str          messages to show at the end
    notes : list of str             notes to show before those of the run
    preview : Preview or None       pictures of input and output
    status : ResumeStatus or None   what the resume log says about the job
    report : JobReport or None      the report of the run; None before it
    verified : dict                 the outcome of the verification, for the job's record
    result : JobResult or None      the result of a job that needs no more steps
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
    def verified_voxels(self) -> int | None:
        """How many voxels of the output to compute again; None: none."""
        return read_verify(self.options.verify)[0]

    @property
    def recording(self) -> Recording | None:
        """The records to write beside the output; None if there are none."""
        return self.options.recordings.get(self.job.target)

    def check_paths(self) -> None:
        """Refuse output files that cannot be written, before any work.

        Raises: OutputExistsError, WriteError, SpecError.
        """
        from conv3d_cli.pipeline.run import check_paths
        from conv3d_cli.system.atomic import how_to_replace

        try:
            check_paths(self.job, make_folder=self.options.make_folder)
        except OutputExistsError as error:
            if self.options.jobs > 1 and str(error).endswith(how_to_replace()):
                # of many volumes most are done already, as a rule
                raise OutputExistsError(f"{error}, or --skip-existing to keep it") from None
            raise
        if self.recording is not None:
            from conv3d_cli.provenance.run import check_sidecar

            check_sidecar(self.recording, self.job.overwrite, self.options.make_folder)

    @property
    def is_written(self) -> bool:
        """Whether this run has put the output in place."""
        return self.job.target in self.finished.written

    def end(self, right: bool = True) -> None:
        """Tell the resume log that the job failed, or was interrupted.

        right : bool    an output in place holds what it should. It stays logged as begun, so that
                        the next run may replace it
        """
        if right and self.is_written:
            return
        if self.options.resume_log is not None and self.status is not None:
            self.options.resume_log.give_up(self.status)


def read_verify(value: int | str | None) -> tuple[int | None, bool | None]:
    """The option --verify: voxels to compute again, and whether tiles are checked by checksums.

    Raises: SpecError.

    >>> read_verify("200"), read_verify("all"), read_verify("off"), read_verify(None)
    ((200, None), (None, True), (None, False), (None, None))
    """
    if value is None:
        return None, None
    word = str(value).strip().lower()
    if word in ("all", "off"):
        return None, word == "all"
    if not (word.isascii() and word.isdigit() and 0 < int(word) < 2**63):
        raise SpecError(
            f"{named('verify')} must be a whole number of at least 1, all or off, "
            f"received {value!r}"
        )
    return int(word), None


# --------------------------------------------------------------------------------------------------
# Before the run


def skip_existing(run: JobRun) -> None:
    """With --skip-existing: skip a job whose output exists."""
    from conv3d_cli.formats import output_exists

    if run.options.skip_existing and output_exists(run.job.target):
        run.finished.complete.append(run.job.target)
        run.result = skipped(run.job, "output exists")


def resume(run: JobRun) -> None:
    """With --resume: skip a job that is done according to the resume log.

    Raises: OutputExistsError if the output exists and is not what the job would write.
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
    """Create the folders of the outputs. Raises: WriteError."""
    if not run.options.make_folder or run.options.dry_run:
        return
    from conv3d_cli.system.atomic import write_errors

    for output in run.job.outputs:
        if "://" not in output.path:
            with write_errors(output.path):
                os.makedirs(os.path.dirname(output.path) or ".", exist_ok=True)


def match_smoothness(run: JobRun) -> None:
    """With --to-fwhm: choose the kernel that smooths the output to that FWHM."""
    if run.options.to_fwhm is None:
        return
    from conv3d_cli.analysis.smoothness import match_fwhm

    run.check_paths()
    matched = match_fwhm(run.job, run.options.to_fwhm)
    run.job, run.notes = matched.job, [matched.words()]


def choose_checks(run: JobRun) -> None:
    """With --verify all or off: check all tiles by checksums, or none. Raises: SpecError."""
    checks = read_verify(run.options.verify)[1]
    run.job = replace(run.job, checks=checks, share_of_start=1 / max(1, run.options.jobs))


def plan(run: JobRun) -> None:
    """With --dry-run: decide everything and run nothing."""
    if not run.options.dry_run:
        return
    from conv3d_cli.batch.report import describe, plan_record
    from conv3d_cli.pipeline.prepare import prepare_job

    run.check_paths()
    with prepare_job(run.job) as prepared:
        described = run.options.describe_plans
        run.result = JobResult(
            run.job,
            "planned",
            plan_record(prepared),
            messages=[describe(prepared)] if described else [],
            notes=[*run.notes, *([] if described else prepared.notes)],
        )


def check_verifiable(run: JobRun) -> None:
    """With --verify: refuse a job that cannot be verified afterwards. Raises: SpecError."""
    if run.verified_voxels is not None:
        from conv3d_cli.analysis.verify import check_verifiable

        check_verifiable(run.job)


# --------------------------------------------------------------------------------------------------
# The run, and after it


def convolve(run: JobRun) -> None:
    """Run the job, here or on the cluster, and write its output and the records beside it."""
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

            counts = options.details or options.previews
            return run_job(job, run.progress, decided, counts)
        from conv3d_cli.cluster.run import run_on_cluster

        return run_on_cluster(job, options.scheduler, run.progress, decided)

    placed: list[str] = []
    try:
        with placed_outputs() as placed, committed_together():
            if run.recording is None:
                report = start(run.job, decided)
            else:
                from conv3d_cli.provenance.run import run_recorded

                report = run_recorded(run.job, run.recording, start, decided)
            if options.depfile is not None:
                from conv3d_cli.batch.depfile import write_depfile

                write_depfile(options.depfile, [run.job])
        run.report = report
        run.finished.depfile = options.depfile is not None
    finally:  # an interrupt may arrive while the output takes its place
        paths = map(os.path.normpath, placed)
        if run.report is not None or os.path.normpath(run.job.target) in paths:
            run.finished.written.append(run.job.target)
            if run.verified_voxels is None:
                run.finished.complete.append(run.job.target)


def verify(run: JobRun) -> None:
    """With --verify: compute some voxels of the output again. Raises: DifferenceError."""
    count = run.verified_voxels
    if count is not None:
        from conv3d_cli.analysis.verify import verify_output

        found = verify_output(run.job, count)
        run.verified = {"verified": found.voxels, "verified_worst": found.worst}
        run.finished.complete.append(run.job.target)


def record(run: JobRun) -> None:
    """With --resume: log that the job is done."""
    log = run.options.resume_log
    if log is not None and run.status is not None and run.report is not None:
        run.report = replace(run.report, notes=[*run.report.notes, *log.finish(run.status)])


def picture(run: JobRun) -> None:
    """With --report: keep slices of the output."""
    if run.preview is not None and run.report is not None:
        run.report = run.preview.look_after(run.report)


def done(run: JobRun) -> JobResult:
    """The result of a job that has gone through all steps."""
    from conv3d_cli.batch.report import describe_run, run_record

    assert run.report is not None
    details = run.options.details
    report = replace(run.report, notes=[*run.notes, *run.report.notes])
    messages = [*run.messages, *([describe_run(report)] if details else [])]
    if run.verified and details:
        messages.append(
            f"verified   {count_of(run.verified['verified'], 'voxel')}; the largest difference is "
            f"{percent(run.verified['verified_worst'])} of the bound"
        )
    values = {**run_record(report), **run.verified}
    if run.job.missing.mask is not None:
        values["mask"] = run.job.missing.mask
    if run.recording is not None:
        values["sidecar"] = run.recording.sidecar
        messages += [f"sidecar    {run.recording.sidecar}"] if details else []
    return JobResult(
        run.job,
        "done",
        values,
        messages=messages,
        notes=report.notes,
        preview=run.preview,
        volume_bytes=report.bytes_in,
    )


STEPS: tuple[Callable[[JobRun], None], ...] = (
    skip_existing,
    resume,
    make_folders,
    choose_checks,
    match_smoothness,
    plan,
    check_verifiable,
    convolve,
    verify,
    record,
    picture,
)


def run_steps(run: JobRun) -> JobResult:
    """Take a job through `STEPS` until a step sets its result.

    An error of the job becomes its result; interrupts pass through.
    """
    job = run.job
    try:
        try:
            _run_steps(run)
        except OutputExistsError:
            run.end()
            if not _made_meanwhile(job, run.options.resume_log):
                raise
            run.job, run.notes, run.preview = job, [], None
            _run_steps(run)
    except Exception as error:
        fault = error if isinstance(error, Conv3DError) else explained(error)
        run.end(right=not isinstance(fault, DifferenceError))
        if fault is None:
            raise
        if run.is_written and not isinstance(fault, DifferenceError):
            fault = type(fault)(f"{fault}; {run.job.target} is written")
        return failed(run.job, fault, run.messages, run.preview)
    except BaseException:
        run.end()
        raise
    return done(run) if run.result is None else run.result


def _run_steps(run: JobRun) -> None:
    for step in STEPS:
        step(run)
        if run.result is not None:
            return


def _made_meanwhile(job: Job, log: ResumeLog | None) -> bool:
    """Whether another run with --resume has written the output since this one looked for it.

    The output is then that of this job, or the other run has not yet said so: both would write
    the same bytes.
    """
    if log is None or job.overwrite:
        return False
    status = log.status(job)
    return status.done or status.interrupted

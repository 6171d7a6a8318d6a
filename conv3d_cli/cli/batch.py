"""Running one job or many: side by side where that helps, with progress, and an account of each."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.batch_page import Sight, entry_of
from conv3d_cli.cli.messages import echo
from conv3d_cli.cli.progress import ProgressBar
from conv3d_cli.cli.table import TableRow, show_table
from conv3d_cli.errors import Conv3DError, MemoryLimitError, SpecError, one_line
from conv3d_cli.system.machine import memory_ceiling, thread_count

if TYPE_CHECKING:
    from conv3d_cli.batch.resume import Ledger
    from conv3d_cli.pictures.page import Report
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.pipeline.run import JobReport
    from conv3d_cli.provenance.run import Recording

# Volumes at a time, unless they are told. Side by side, one is opened or flushed to the disk while another is computed, and
# each has fewer threads to wait for: 200 scans of 64 x 64 x 32 take a fifth less time two at a time, 8 of 224^3 a tenth
# (2 CPUs, 2026-11). Large files fill the CPUs by themselves, and two would take the memory of two.
AT_ONCE, SMALL_FILE_BYTES = 4, 32 << 20


class Stopped(BaseException):
    """The batch was interrupted: raised in the threads of its jobs, so that they leave nothing behind."""


@dataclass
class Attempt:
    """What came of one job.

    status : str            "done", "planned", "skipped", "failed" or "cancelled"
    record : dict           for --json
    told : list of str      what there is to say about it, once it is its turn
    sight : Sight or None   for the page of --report
    volume_bytes : int      of the input's voxels, where they went through
    """

    job: Job
    status: str
    record: dict[str, Any]
    remark: str = ""
    told: list[str] = field(default_factory=list)
    error: Conv3DError | None = None
    sight: Sight | None = None
    volume_bytes: int = 0


@dataclass
class Batch:
    """Runs jobs and keeps the account; a failed volume does not stop the rest.

    page : Report or None       takes an entry for each job; whoever opened it finishes it
    recordings : dict           what is written beside each output, by its name
    ledger : Ledger or None     knows what is done already, and is told what is
    fail_fast : bool            nothing is begun after the first failure, and what runs beside it is cancelled
    written : list of str       outputs that stand, in no order
    complete : list of str      outputs that stand as they are to be, those of earlier runs, too, in no order
    lost : OSError or None      why stdout took no more lines of --json, which keeps no volume from being made
    """

    as_json: bool
    quiet: bool
    verbose: bool
    dry_run: bool = False
    skip_existing: bool = False
    make_folder: bool = False
    scheduler: str | None = None
    verify: int | None = None
    to_fwhm: str | None = None
    page: Report | None = None
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    ledger: Ledger | None = None
    fail_fast: bool = False
    exit_code: int = 0
    written: list[str] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)
    lost: OSError | None = None
    rows: list[TableRow] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def run(self, jobs: Sequence[Job], at_once: int | None = None) -> None:
        """Run or plan jobs, and account for them in their order.

        at_once : int or None       None: see `volumes_at_once`
        Raises: the error of a job that is the only one. An interrupt gets a note on what stands.
        """
        try:
            self._run_all(jobs, at_once)
        except Exception:
            raise
        except BaseException as interrupt:
            interrupt.add_note(self._what_stands(jobs))
            raise

    def _run_all(self, jobs: Sequence[Job], at_once: int | None) -> None:
        if at_once is not None and at_once > 1 and self.scheduler is not None:
            raise SpecError(
                "--jobs is for this machine, and a cluster takes one volume at a time: leave one of them out"
            )
        count = volumes_at_once(jobs) if at_once is None else min(at_once, len(jobs))
        if count > 1 and self.scheduler is None and not self.dry_run:
            jobs = self._side_by_side(jobs, count)
        for number, job in enumerate(jobs, 1):
            if self.fail_fast and self.exit_code:
                self._account(cancelled(job))
                continue
            name = os.path.basename(job.source.rstrip("/"))
            label = name if len(jobs) == 1 else f"{number}/{len(jobs)} {name}"
            with ProgressBar(label, self.quiet) as progress:
                attempt = self._attempt(job, progress, progress.say)
            if attempt.error is not None and len(jobs) == 1 and not self.rows:
                self._tell(attempt)
                self._show(attempt)
                raise attempt.error
            self._account(attempt)

    def _side_by_side(self, jobs: Sequence[Job], count: int) -> list[Job]:
        """Run jobs, `count` at a time; those that need more memory than their share are left, to be run alone.

        Jobs are accounted for in their order, each as soon as it and those before it are done.
        """
        stop = threading.Event()

        def advance(done: int, total: int) -> None:
            if stop.is_set():
                raise Stopped

        def attempt_beside(job: Job) -> Attempt:
            if stop.is_set():
                return cancelled(job)
            try:
                attempt = self._attempt(share(job, count), advance)
            except Stopped:
                return cancelled(job)
            if self.fail_fast and attempt.error is not None and not isinstance(attempt.error, MemoryLimitError):
                self.exit_code = self.exit_code or attempt.error.exit_code  # the first one's in time
                stop.set()
            return attempt

        pool = ThreadPoolExecutor(count, thread_name_prefix="conv3d-job")
        left = []
        attempts: list[Future[Attempt]] = []
        settled = 0
        try:
            with ProgressBar(f"{len(jobs)} volumes", self.quiet, volumes=True) as progress:
                attempts = [pool.submit(attempt_beside, job) for job in jobs]
                for number, (job, future) in enumerate(zip(jobs, attempts, strict=True), 1):
                    attempt = future.result()
                    settled = number
                    if isinstance(attempt.error, MemoryLimitError):
                        left.append(job)
                    else:
                        self._account(attempt, progress.say)
                    progress(number, len(jobs))
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future in attempts[settled:]:  # after an interrupt: what came to an end behind a volume that did not
                if not future.cancelled() and future.exception() is None and future.result().status != "cancelled":
                    self._account(future.result())
        return left

    def _what_stands(self, jobs: Sequence[Job]) -> str:
        """What an interrupt has left of a batch, and how the rest is made."""
        complete, written = len(self.complete), [name for name in self.written if name not in self.complete]
        words = [f"{name} is written, and not verified" for name in written]
        if complete and len(jobs) == 1:
            words.append(f"{self.complete[0]} is complete")
        elif complete:
            words.append(f"{complete} of {len(jobs)} volumes {'is' if complete == 1 else 'are'} complete")
        if not words:
            return "no output was left behind"
        if complete < len(jobs) and not written:
            if self.ledger is not None:
                words.append("the same command with --resume does the rest")
            elif not any(job.overwrite for job in jobs):
                words.append("the same command with --skip-existing does the rest")
        return "; ".join(words)

    def _attempt(
        self, job: Job, progress: Callable[[int, int], None], say: Callable[[str], None] | None = None
    ) -> Attempt:
        """Run or plan one job.

        say : callable or None      for what is told before the first voxel; None: it is kept for later
        """
        from conv3d_cli.batch.report import describe, describe_run, plan_record, run_record
        from conv3d_cli.formats import output_exists
        from conv3d_cli.pipeline.prepare import prepare_job

        if self.skip_existing and output_exists(job.target):
            self.complete.append(job.target)
            return skipped(job, "output exists")
        told: list[str] = []
        say = told.append if say is None else say
        sight = Sight(job) if self.page is not None else None

        def decided(prepared: PreparedJob) -> None:
            if self.verbose and not self.quiet:
                say(describe(prepared))
            if sight is not None:
                sight.look_before(prepared)
            if ledger is not None and standing is not None:
                ledger.begin(standing)

        smoothness: list[str] = []  # what --to-fwhm found
        ledger, standing = self.ledger, None
        try:
            if ledger is not None:
                standing = ledger.standing(job)
                if standing.done:
                    self.complete.append(job.target)
                    return skipped(job, "done already")
                job = standing.allow()
            if self.make_folder and not self.dry_run and "://" not in job.target:
                make_folder_of(job.target)
            if self.to_fwhm is not None:
                from conv3d_cli.analysis.smoothness import match_fwhm

                self._check(job)
                matched = match_fwhm(job, self.to_fwhm)
                job, smoothness = matched.job, [matched.words()]
            if self.dry_run:
                self._check(job)
                with prepare_job(job) as prepared:
                    told += [f"note: {job.source}: {note}" for note in smoothness]
                    told += [describe(prepared)] if self.verbose or not self.as_json else []
                    return Attempt(job, "planned", plan_record(prepared), told=told)
            if self.verify is not None:
                from conv3d_cli.analysis.verify import check_verifiable

                check_verifiable(job)
            report = self._run(job, progress, decided)
            self.written.append(job.target)
            verified = {}
            if self.verify is not None:
                from conv3d_cli.analysis.verify import verify_output

                found = verify_output(job, self.verify)
                verified = {"verified": found.voxels, "verified_worst": found.worst}
            self.complete.append(job.target)
            if ledger is not None and standing is not None:
                report = replace(report, notes=[*report.notes, *ledger.finish(standing)])
        except Conv3DError as error:
            if ledger is not None and standing is not None:
                ledger.give_up(standing)
            record = {"input": job.source, "output": job.target, "error": one_line(error), "exit_code": error.exit_code}
            return Attempt(job, "failed", record, one_line(error), told, error, sight)
        except BaseException:
            if ledger is not None and standing is not None:
                ledger.give_up(standing)
            raise
        if sight is not None:
            report = sight.look_after(report)
        report = replace(report, notes=[*smoothness, *report.notes])
        told += [f"note: {job.source}: {note}" for note in report.notes]
        if self.verbose:
            told.append(describe_run(report))
            if verified:
                told.append(
                    f"verified   {found.voxels} voxels; the largest difference is {100 * found.worst:.2g} % of the bound"
                )
        record = {**run_record(report), **verified}
        if job.target in self.recordings:
            record["sidecar"] = self.recordings[job.target].sidecar
            told += [f"sidecar    {record['sidecar']}"] if self.verbose else []
        return Attempt(job, "done", record, "", told, sight=sight, volume_bytes=report.bytes_in)

    def _check(self, job: Job) -> None:
        """Refuse what could not be written, before any work."""
        from conv3d_cli.pipeline.run import check_paths

        check_paths(job, make_folder=self.make_folder)
        if job.target in self.recordings:
            from conv3d_cli.provenance.run import check_sidecar

            check_sidecar(self.recordings[job.target], job.overwrite, self.make_folder)

    def _run(self, job: Job, progress: Callable[[int, int], None], decided: Callable[[PreparedJob], None]) -> JobReport:
        """Run one job, here or on the cluster, with what is written beside its output."""

        def run(job: Job, decided: Callable[[PreparedJob], None]) -> JobReport:
            if self.scheduler is None:
                from conv3d_cli.pipeline.run import run_job

                return run_job(job, progress, decided)
            from conv3d_cli.cluster.run import run_on_cluster

            return run_on_cluster(job, self.scheduler, progress, decided)

        if job.target not in self.recordings:
            return run(job, decided)
        from conv3d_cli.provenance.run import run_recorded

        return run_recorded(job, self.recordings[job.target], run, decided)

    def _tell(self, attempt: Attempt, say: Callable[[str], None] | None = None) -> None:
        for text in attempt.told if not self.quiet else ():
            (say or echo)(text)
        if self.as_json and self.lost is None:
            try:
                click.echo(json.dumps({"status": attempt.status, **attempt.record}))
            except OSError as error:
                self.lost = error

    def _show(self, attempt: Attempt) -> None:
        """Put a job on the page, if there is one, and forget its pictures."""
        if self.page is not None:
            self.page.add(entry_of(attempt))
            attempt.sight = None

    def _account(self, attempt: Attempt, say: Callable[[str], None] | None = None) -> None:
        """Say what came of a job, and write it down."""
        self._tell(attempt, say)
        self._show(attempt)
        seconds = attempt.record.get("seconds")
        self.rows.append(TableRow(attempt.status, attempt.job.target, attempt.remark, seconds, attempt.volume_bytes))
        if attempt.error is not None:
            self.exit_code = self.exit_code or attempt.error.exit_code
            (say or echo)(f"Error: {attempt.remark}")

    def close(self) -> None:
        """The table at the end of a batch. Raises: OSError where stdout has lost lines of --json."""
        if len(self.rows) > 1 and not self.quiet:
            show_table(self.rows, time.perf_counter() - self.started)
        if self.lost is not None:
            raise self.lost


def skipped(job: Job, reason: str) -> Attempt:
    """A job that needs no work."""
    return Attempt(job, "skipped", {"input": job.source, "output": job.target, "reason": reason}, reason)


def cancelled(job: Job) -> Attempt:
    """A job that another's failure kept from being run, or from being finished."""
    return Attempt(job, "cancelled", {"input": job.source, "output": job.target})


def make_folder_of(target: str) -> None:
    """Make the folder that an output goes to. Raises: WriteError."""
    from conv3d_cli.system.atomic import write_errors

    with write_errors(target):
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)


def volumes_at_once(jobs: Sequence[Job]) -> int:
    """How many volumes are worked on at a time: several where each is a small file, so that neither memory nor CPUs are short."""
    if len(jobs) < 2:
        return 1
    try:
        largest = max(
            os.stat(job.source).st_size if os.path.isfile(job.source) else SMALL_FILE_BYTES + 1 for job in jobs
        )
    except OSError:
        return 1
    return min(AT_ONCE, thread_count(jobs[0].threads), len(jobs)) if largest <= SMALL_FILE_BYTES else 1


def share(job: Job, count: int) -> Job:
    """A job that leaves room for others: its part of the threads, and of the memory that is not the process's own."""
    from conv3d_cli.pipeline.memory import PROCESS_BYTES

    ceiling = memory_ceiling(job.max_memory)
    beside = max(0, ceiling - PROCESS_BYTES)
    return replace(
        job, threads=max(1, thread_count(job.threads) // count), max_memory=ceiling - beside + beside // count
    )

"""Runs the jobs of a batch, several at a time where that is faster, and reports them in order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from conv3d_cli.batch.results import JobResult, Reporter, Say, TableRow, cancelled, failed
from conv3d_cli.batch.shared import shared_fault
from conv3d_cli.batch.steps import BatchOptions, FinishedOutputs, JobRun, run_steps
from conv3d_cli.errors import MemoryLimitError, SpecError
from conv3d_cli.system.machine import memory_ceiling, thread_count
from conv3d_cli.system.parts import file_of

if TYPE_CHECKING:
    from conv3d_cli.pipeline.request import Job

# Volumes at a time, unless the user sets --jobs. One volume is then opened or flushed to disk while
# another is computed, and each waits for fewer threads. Two at a time, 200 scans of 64 x 64 x 32
# take a fifth less time, and 8 of 224^3 a tenth less (2 CPUs, 2026-11). A large file keeps the CPUs
# busy by itself, and two need the memory of two.
AT_ONCE, SMALL_FILE_BYTES = 4, 32 << 20


class Stopped(BaseException):
    """The batch was interrupted. Raised in the threads of its jobs, so that they clean up."""


@dataclass
class BatchRunner:
    """Runs jobs and reports them; a failed volume does not stop the others.

    options : BatchOptions      how to run the jobs
    reporter : Reporter         shows results and progress
    exit_code : int             exit code of the first error; 0 while there is none
    finished : FinishedOutputs  outputs that are in place
    rows : list of TableRow     jobs that were reported
    started : float             time.perf_counter() at the start
    """

    options: BatchOptions
    reporter: Reporter
    exit_code: int = 0
    finished: FinishedOutputs = field(default_factory=FinishedOutputs)
    rows: list[TableRow] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def run(self, jobs: Sequence[Job], at_once: int | None = None) -> None:
        """Run or plan jobs, and report them in order.

        at_once : int or None       number of jobs at a time; None: see `volumes_at_once`
        Raises: the error of the job if there is only one; SpecError for `at_once` on a cluster.
        An interrupt gets a note that says which outputs are complete.
        """
        try:
            self._run_all(jobs, at_once)
        except Exception:
            raise
        except BaseException as interrupt:
            interrupt.add_note(self._words_on_interrupt(jobs))
            raise

    def check(self, jobs: Sequence[Job]) -> None:
        """Refuse, before any work, jobs that all fail for the same reason.

        Raises: the error that they share, once.
        """
        fault = shared_fault(jobs, self.options)
        if fault is None:
            return
        for job in fault.jobs:
            self.reporter.show(failed(job, fault.error, []), self.reporter.say)
        raise fault.error

    def _run_all(self, jobs: Sequence[Job], at_once: int | None) -> None:
        scheduler = self.options.scheduler
        if at_once is not None and at_once > 1 and scheduler is not None:
            raise SpecError(
                "--jobs runs volumes side by side on this machine, and --scheduler on a cluster, "
                "one at a time; leave out one of them"
            )
        count = volumes_at_once(jobs) if at_once is None else min(at_once, len(jobs))
        if count > 1 and scheduler is None and not self.options.dry_run:
            jobs = self._side_by_side(jobs, count)
        for number, job in enumerate(jobs, 1):
            if self.options.fail_fast and self.exit_code:
                self._report(cancelled(job), self.reporter.say)
                continue
            name = os.path.basename(job.source.rstrip("/"))
            label = name if len(jobs) == 1 else f"{number}/{len(jobs)} {name}"
            with self.reporter.progress(label) as progress:
                result = run_steps(JobRun(job, self.options, self.finished, progress, progress.say))
            if result.error is not None and len(jobs) == 1 and not self.rows:
                self.reporter.show(result, self.reporter.say)
                raise result.error
            self._report(result, self.reporter.say)

    def _side_by_side(self, jobs: Sequence[Job], count: int) -> list[Job]:
        """Run jobs, `count` at a time. Returns those that need more than their share of the memory.

        Each job is reported as soon as it and all jobs before it are done.
        """
        stop = threading.Event()

        def advance(done: int, total: int) -> None:
            if stop.is_set():
                raise Stopped

        def run_beside(job: Job) -> JobResult:
            if stop.is_set():
                return cancelled(job)
            messages: list[str] = []
            try:
                own = split_resources(job, count)
                result = run_steps(
                    JobRun(own, self.options, self.finished, advance, messages.append, messages)
                )
            except Stopped:
                return cancelled(job)
            error = result.error
            if (
                self.options.fail_fast
                and error is not None
                and not isinstance(error, MemoryLimitError)
            ):
                self.exit_code = self.exit_code or error.exit_code  # that of the first in time
                stop.set()
            return result

        pool = ThreadPoolExecutor(count, thread_name_prefix="conv3d-job")
        left = []
        results: list[Future[JobResult]] = []
        settled = 0
        try:
            with self.reporter.progress(f"{len(jobs)} volumes", volumes=True) as progress:
                results = [pool.submit(run_beside, job) for job in jobs]
                for number, (job, future) in enumerate(zip(jobs, results, strict=True), 1):
                    result = future.result()
                    settled = number
                    if isinstance(result.error, MemoryLimitError):
                        left.append(job)
                    else:
                        self._report(result, progress.say)
                    progress(number, len(jobs))
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            # after an interrupt: jobs that ended, although one before them did not
            for future in results[settled:]:
                if future.cancelled() or future.exception() is not None:
                    continue
                if future.result().status != "cancelled":
                    self._report(future.result(), self.reporter.say)
        return left

    def _words_on_interrupt(self, jobs: Sequence[Job]) -> str:
        """Which outputs an interrupted batch has left, and how to make the others."""
        complete = self.finished.complete
        written = [name for name in self.finished.written if name not in complete]
        words = [f"{name} is written but not verified" for name in written]
        if complete and len(jobs) == 1:
            words.append(f"{complete[0]} is complete")
        elif complete:
            verb = "is" if len(complete) == 1 else "are"
            words.append(f"{len(complete)} of {len(jobs)} volumes {verb} done and complete")
        if not words:
            return "no output was left behind"
        if len(complete) < len(jobs) and not written:
            if self.options.resume_log is not None:
                words.append("the same command with --resume does the rest")
            elif not any(job.overwrite for job in jobs):
                words.append("the same command with --skip-existing does the rest")
        return "; ".join(words)

    def _report(self, result: JobResult, say: Say) -> None:
        """Show the result of a job, and keep its row."""
        self.reporter.show(result, say)
        self.rows.append(result.row())
        if result.error is not None:
            self.exit_code = self.exit_code or result.error.exit_code
            say(f"Error: {result.error_words()}")

    def finish(self) -> None:
        """Show the table of all jobs."""
        self.reporter.finish(self.rows, time.perf_counter() - self.started)


def volumes_at_once(jobs: Sequence[Job]) -> int:
    """How many volumes to process at a time: several if every one is a small file."""
    if len(jobs) < 2:
        return 1
    try:
        largest = max(
            os.stat(file).st_size if os.path.isfile(file) else SMALL_FILE_BYTES + 1
            for file in (file_of(job.source) for job in jobs)
        )
    except OSError:
        return 1
    if largest > SMALL_FILE_BYTES:
        return 1
    return min(AT_ONCE, thread_count(jobs[0].threads), len(jobs))


def split_resources(job: Job, count: int) -> Job:
    """A job with its share of threads and memory if `count` jobs run at a time.

    The memory of the process itself is not divided.
    """
    from conv3d_cli.system.room import PROCESS_BYTES

    ceiling = memory_ceiling(job.max_memory)
    beside = max(0, ceiling - PROCESS_BYTES)
    return replace(
        job,
        threads=max(1, thread_count(job.threads) // count),
        max_memory=ceiling - beside + beside // count,
    )

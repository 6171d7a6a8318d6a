"""Runs the volumes of a command that takes the options of `apply`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from conv3d_cli.cli.jobs import plan_command
from conv3d_cli.cli.messages import echo
from conv3d_cli.cli.parameters import refuse_both
from conv3d_cli.cli.reporter import TerminalReporter
from conv3d_cli.cli.usage import called
from conv3d_cli.errors import Conv3DError, SpecError
from conv3d_cli.pipeline.outputs import VOLUME, role_of
from conv3d_cli.settings.needs import no_effect
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.batch.plan import JobPlan
    from conv3d_cli.batch.resume import ResumeLog
    from conv3d_cli.batch.runner import BatchRunner
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.provenance.run import Recording
    from conv3d_cli.settings.options import Settings


def keep_blas_quiet() -> None:
    """Let NumPy's BLAS start no thread per CPU, which would spin without work.

    To be called before NumPy is imported.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def run_volumes(ctx: click.Context, inputs: tuple[str, ...], asked: Settings) -> None:
    """Run a command over its volumes, and end with its exit code.

    ctx : click.Context     of the command
    inputs : tuple of str   volumes and folders of volumes
    asked : Settings        options given on the command line
    """
    keep_blas_quiet()
    from conv3d_cli.batch.runner import BatchRunner
    from conv3d_cli.batch.steps import BatchOptions
    from conv3d_cli.cluster.scheduler import scheduler_of

    plan = plan_command(ctx, inputs, asked)
    jobs = plan.jobs
    overwrite = any(job.overwrite for job in jobs)
    _check_conflicts(asked, jobs, overwrite)
    recordings = _recordings(plan) if asked.sidecar or asked.bids else {}
    resume_log = _resume_log(asked, jobs, recordings) if asked.resume else None
    if asked.report:
        _check_page(asked.report, overwrite, bool(asked.dry_run))
    if asked.depfile:
        _check_depfile(asked.depfile, jobs, bool(asked.dry_run))
    lists_plans = bool(asked.dry_run and len(jobs) > 1 and not (asked.verbose or asked.as_json))
    reporter = TerminalReporter(
        as_json=bool(asked.as_json),
        quiet=bool(asked.quiet),
        verbose=bool(asked.verbose),
        lists_plans=lists_plans,
    )
    options = BatchOptions(
        dry_run=bool(asked.dry_run),
        skip_existing=bool(asked.skip_existing),
        make_folder=bool(asked.out_dir),
        scheduler=scheduler_of(asked),
        verify=asked.verify,
        jobs=len(jobs),
        to_fwhm=asked.to_fwhm,
        fail_fast=bool(asked.fail_fast),
        details=bool(asked.verbose and not asked.quiet),
        describe_plans=bool(asked.verbose or not (asked.as_json or lists_plans)),
        previews=bool(asked.report),
        depfile=asked.depfile if len(jobs) == 1 else None,
        recordings=recordings,
        resume_log=resume_log,
    )
    batch = BatchRunner(options, reporter)
    batch.check(jobs)
    if asked.out_dir and not asked.dry_run and "://" not in asked.out_dir:
        _make_folder(asked.out_dir)
        if plan.dataset is not None:
            plan.dataset.write()
    if not (asked.verbose or asked.as_json):
        plan.notes += [
            no_effect(name, "the penalty is printed by -v and --json alone")
            for name in ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
            if getattr(asked, name) is not None
        ]
    for note in plan.notes if not asked.quiet else ():
        echo(f"note: {note}")
    if (asked.verbose or asked.dry_run) and not asked.quiet:
        for path in plan.left_out:
            click.echo(f"left out {path}", err=True)  # a name is never broken
    if asked.report:
        _run_with_page(ctx, batch, reporter, jobs, asked.jobs, asked.report, overwrite)
    else:
        batch.run(jobs, asked.jobs)
    if asked.depfile and not batch.finished.depfile and not batch.exit_code:
        from conv3d_cli.batch.depfile import write_depfile

        write_depfile(asked.depfile, jobs)
    batch.finish()
    ctx.exit(batch.exit_code)


def _check_conflicts(asked: Settings, jobs: Sequence[Job], overwrite: bool) -> None:
    """Refuse options of the whole command that contradict each other."""
    refuse_both(asked.quiet, asked.verbose, "-q prints no notes, and -v prints more of them")
    if asked.skip_existing and overwrite:
        raise SpecError("--skip-existing and --overwrite contradict each other; pass one of them")
    if asked.skip_existing and asked.resume:
        raise SpecError(
            "--resume checks what an output was made from, --skip-existing only its name; "
            "pass one of them"
        )
    for output in (output for job in jobs for output in job.outputs):
        if asked.as_json and output.path == "-":
            flag = "-o" if output.role == VOLUME else role_of(output.role).flag
            raise SpecError(
                f"{flag} - writes the volume to stdout, where --json would mix with it; "
                "leave out one of them"
            )


def _recordings(plan: JobPlan) -> Mapping[str, Recording]:
    """The records to write beside each output, by the output's path."""
    from conv3d_cli.provenance.run import plan_recordings

    fields, copies = (
        ({}, {}) if plan.dataset is None else (plan.dataset.fields, plan.dataset.copies)
    )
    return plan_recordings(plan.jobs, plan.given, fields, copies)


def _resume_log(
    asked: Settings, jobs: Sequence[Job], recordings: Mapping[str, Recording]
) -> ResumeLog:
    """The log of --resume, which also compares options such as --verify."""
    from conv3d_cli.batch.resume import RUN_OPTIONS, ResumeLog, check_resumable

    for job in jobs:
        check_resumable(job)
    return ResumeLog(
        asked.given(RUN_OPTIONS),
        bool(asked.dry_run),
        {target: (r.sidecar,) for target, r in recordings.items()},
    )


def _check_depfile(path: str, jobs: Sequence[Job], dry_run: bool) -> None:
    """Refuse a depfile that make could not use, before any work."""
    from conv3d_cli.batch.depfile import check_depfile

    if dry_run:
        raise SpecError("--dry-run writes nothing, and --depfile is a file; leave out one of them")
    check_depfile(path, jobs)


def _check_page(path: str, overwrite: bool, dry_run: bool) -> None:
    """Refuse a page that cannot be written, before any work."""
    from conv3d_cli.system.atomic import check_target, sent_to, suffix_of

    if dry_run:
        raise SpecError("--dry-run writes nothing, and --report is a file; leave out one of them")
    if suffix_of(path) not in (".html", ".htm") and (path == "-" or not sent_to(path)):
        raise SpecError(f"a report is an HTML page, as in --report report.html, received '{path}'")
    check_target(path, overwrite)


def _run_with_page(
    ctx: click.Context,
    batch: BatchRunner,
    reporter: TerminalReporter,
    jobs: Sequence[Job],
    at_once: int | None,
    path: str,
    overwrite: bool,
) -> None:
    """Run jobs, then write the page, even if some failed. An interrupted batch has no page."""
    from conv3d_cli.pictures.page import Report
    from conv3d_cli.system.atomic import placed_outputs

    with Report(path, overwrite) as page:
        reporter.page = page
        failed = None
        try:
            batch.run(jobs, at_once)
        except Conv3DError as error:
            failed = error
        # an error of the volume does not go on to speak of the page
        with placed_outputs(apart=failed is not None):
            page.finish(
                f"{called(ctx)}: {count_of(len(jobs), 'volume')}",
                shlex.join(["conv3d", *sys.argv[1:]]),
            )
        if failed is not None:
            raise failed


def _make_folder(path: str) -> None:
    from conv3d_cli.system.atomic import write_errors

    with write_errors(path):
        os.makedirs(path, exist_ok=True)

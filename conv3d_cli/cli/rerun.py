"""`conv3d rerun`: a run of `apply --sidecar` once more, and whether it gives the same."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.apply import apply
from conv3d_cli.cli.jobs import apply_settings
from conv3d_cli.cli.messages import EXIT_CODE, echo
from conv3d_cli.cli.options import given_settings, table_options
from conv3d_cli.cli.progress import ProgressBar
from conv3d_cli.errors import DifferenceError, FormatError, SpecError
from conv3d_cli.system.machine import byte_size

if TYPE_CHECKING:
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.provenance.record import Record


@click.command()
@click.argument("sidecar", metavar="SIDECAR")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="Keep the result there, in the same format.  [default: it is not kept]",
)
@click.option("--force", is_flag=True, help="Run though an input has changed.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@table_options("threads", "max_memory")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code, and errors.")
@click.pass_context
def rerun(
    ctx: click.Context,
    sidecar: str,
    output: str | None,
    force: bool,
    overwrite: bool,
    threads: int | None,
    max_memory: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run again what a sidecar records, and compare the results.

    \b
      conv3d rerun smooth.json
      conv3d rerun derivatives/sub-01/func/sub-01_desc-sm6mm_bold.json -o again.nii.gz
      conv3d rerun smooth.json --force --json

    SIDECAR is what `apply --sidecar` has written. First the inputs' digests are compared, and one that has changed ends
    the command with 4. A result that is not what was recorded ends it with 7, and by how much is told where the recorded
    output is still there. Names start from the sidecar's folder; a result that is not kept waits in $TMPDIR.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import tempfile

    from conv3d_cli.pipeline.run import run_job
    from conv3d_cli.provenance.record import decided, read_sidecar
    from conv3d_cli.provenance.rerun import check_inputs, judge, other_versions, other_weights

    record, folder = read_sidecar(sidecar), os.path.dirname(sidecar)
    notes = check_inputs(record, folder, sidecar, force)
    job, target_fwhm = job_of(record, folder, sidecar)
    original = job.target

    def compare_decisions(prepared: PreparedJob) -> None:
        now = decided(prepared, str)
        notes.extend(other_versions(record, now["Versions"]))
        notes.extend(other_weights(record, now["Layers"]))

    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="conv3d-"))
        target = output or os.path.join(scratch, os.path.basename(original.rstrip("/")))
        _check_format(original, target)
        job = replace(
            job,
            target=target,
            beside=tuple(
                replace(one, path=os.path.join(scratch, f"{one.role}-{os.path.basename(one.path)}"))
                for one in job.beside
            ),
            threads=threads,
            max_memory=None if max_memory is None else byte_size(max_memory),
            overwrite=overwrite,
        )
        if target_fwhm is not None:
            from conv3d_cli.analysis.smoothness import match_fwhm

            job = match_fwhm(job, target_fwhm).job
        with ProgressBar(os.path.basename(job.source.rstrip("/")), quiet) as progress:
            run_job(job, progress, compare_decisions)
        verdict = judge(record, original, target, job.beside)
    for note in notes if not quiet else ():
        echo(f"note: {note}")
    ctx.meta[EXIT_CODE] = 0 if verdict.good else DifferenceError.exit_code
    if as_json:
        found: dict[str, Any] = {
            "sidecar": sidecar,
            "status": verdict.status,
            "stale": verdict.stale,
            "notes": notes,
        }
        if verdict.comparison is not None:
            found["comparison"] = {**verdict.comparison.record(), "second": "rerun"}
        click.echo(json.dumps(found))
    if not verdict.good:
        raise DifferenceError(f"{verdict.words} ({sidecar})")
    if not as_json and not quiet:
        click.echo(verdict.words)


def job_of(record: Record, folder: str, sidecar: str) -> tuple[Job, str | None]:
    """The job that a record asks for, with names from the current folder, and its --to-fwhm.

    Only what shapes the result is taken from its command: a file that it would write beside the output is none of a rerun's, and
    it reads none but those whose digests the record has.
    Raises: FormatError for a command that cannot be understood; else as `apply_settings` and `make_job`.
    """
    from conv3d_cli.pipeline.make import make_job
    from conv3d_cli.provenance.command import named_files, with_history
    from conv3d_cli.provenance.rerun import placed
    from conv3d_cli.settings.option import File
    from conv3d_cli.settings.options import OPTION

    try:
        words = shlex.split(record.command)
        if words[:2] != ["conv3d", "apply"] or {"-h", "--help", "--help-json"} & set(words):
            raise ValueError("it is no `conv3d apply`")
        context = apply.make_context("conv3d apply", words[2:])
        inputs, given = context.params["inputs"], given_settings(context)
        if len(inputs) != 1 or given.output is None:
            raise ValueError("it names not one input and one output")
        files = named_files(given)
        known = [entry.path for entry in record.inputs]
        read = [value for name, value in files.items() if OPTION[name].file is not File.WRITTEN]
        for name in (*inputs, *read):
            file = name.partition("::")[0]
            if not any(file == path or file.startswith(f"{path}/") for path in known):
                raise ValueError(f"it reads {file}, which is not among the inputs")
    except (click.ClickException, click.exceptions.Exit, ValueError) as error:
        cause = error.format_message() if isinstance(error, click.ClickException) else error
        raise FormatError(
            f"cannot read {sidecar}: its command cannot be understood: {cause}"
        ) from None
    changed: dict[str, Any] = {name: placed(folder, value) for name, value in files.items()}
    given = replace(given, **changed)
    job = make_job(
        placed(folder, inputs[0]), placed(folder, str(given.output)), apply_settings(given)
    )
    if given.history:
        job = with_history(job, given)
    return job, given.to_fwhm


def _check_format(original: str, target: str) -> None:
    """Refuse an output in another format, whose bytes could not be the same."""
    from conv3d_cli.system.atomic import suffix_of

    if suffix_of(original) != suffix_of(target.rstrip("/")):
        raise SpecError(
            f"a rerun writes the format that was recorded: name {target} with the suffix {suffix_of(original)}, or convert it "
            "with conv3d apply -k identity"
        )

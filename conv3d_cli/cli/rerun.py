"""`conv3d rerun`: repeat a run of `apply --sidecar`, and compare the results."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.apply import apply
from conv3d_cli.cli.messages import echo
from conv3d_cli.cli.options import HELP_OPTIONS, given_settings, table_options
from conv3d_cli.cli.parameters import FileName, check_overwrite
from conv3d_cli.cli.progress import ProgressBar
from conv3d_cli.cli.usage import usage_line
from conv3d_cli.errors import DifferenceError, FormatError, SpecError
from conv3d_cli.settings.merge import apply_settings
from conv3d_cli.settings.option import File
from conv3d_cli.system.machine import byte_size
from conv3d_cli.system.words import TERMINAL, plain_text

if TYPE_CHECKING:
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.provenance.record import Record


@click.command()
@click.argument("sidecar", metavar="SIDECAR", type=FileName(File.READ))
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=FileName(File.WRITTEN),
    help="Keep the result in this file, in the same format.  [default: the result is not kept]",
)
@click.option("--force", is_flag=True, help="Run even if an input has changed.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@table_options("threads", "max_memory")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
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
    """Repeat the run of a sidecar, and compare the results.

    \b
      conv3d rerun smooth.json
      conv3d rerun derivatives/sub-01/func/sub-01_desc-sm6mm_bold.json -o again.nii.gz
      conv3d rerun smooth.json --force --json

    `apply --sidecar` writes a SIDECAR. First the digests of the inputs are compared; exit with 4
    if one has changed. Then the run is repeated; exit with 7 if the result differs from the
    record, and tell by how much if the recorded output still exists. Names in the sidecar are
    relative to its folder. A result that is not kept is written to $TMPDIR for the comparison.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from conv3d_cli.pipeline.run import run_job
    from conv3d_cli.provenance.record import decided, read_sidecar
    from conv3d_cli.provenance.rerun import check_inputs, judge, other_versions, other_weights
    from conv3d_cli.system.atomic import output_file, sent_to
    from conv3d_cli.system.scratch import scratch_folder

    check_overwrite(overwrite, output)
    record, folder = read_sidecar(sidecar), os.path.dirname(sidecar)
    notes = check_inputs(record, folder, sidecar, force)
    job, target_fwhm = job_of(record, folder, sidecar)
    original = job.target

    def compare_decisions(prepared: PreparedJob) -> None:
        now = decided(prepared, str)
        notes.extend(other_versions(record, now["Versions"]))
        notes.extend(other_weights(record, now["Layers"]))

    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        sent = output is not None and bool(sent_to(output))
        target = os.path.join(scratch, os.path.basename(original.rstrip("/")))
        if output is not None and not sent:
            target = output
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
        if output is not None and sent:
            with open(target, "rb") as file, output_file(output) as copy:
                shutil.copyfileobj(file, copy.file, 1 << 20)
                copy.commit()
    for note in notes if not quiet else ():
        echo(f"note: {note}")
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
        click.echo(plain_text(verdict.words, TERMINAL))


def job_of(record: Record, folder: str, sidecar: str) -> tuple[Job, str | None]:
    """The job of a record, with names relative to the current folder, and its --to-fwhm.

    The record's command holds only options that shape the result. It may read only files whose
    digests are in the record.

    folder : str        folder of the sidecar
    sidecar : str       path of the sidecar, for messages
    Raises: FormatError if the command cannot be understood, or reads other files; as
    `apply_settings` and `make_job`.
    """
    from conv3d_cli.pipeline.make import make_job
    from conv3d_cli.provenance.command import named_files, with_history
    from conv3d_cli.provenance.rerun import placed
    from conv3d_cli.settings.options import OPTION

    try:
        words = shlex.split(record.command)
        if words[:2] != ["conv3d", "apply"] or set(HELP_OPTIONS) & set(words):
            raise ValueError("it is not a `conv3d apply` command")
        context = apply.make_context("conv3d apply", words[2:])
        inputs, given = context.params["inputs"], given_settings(context)
        if len(inputs) != 1 or given.output is None:
            raise ValueError("it does not name one input and one output")
        files = named_files(given)
        known = [entry.path for entry in record.inputs]
        read = [value for name, value in files.items() if OPTION[name].file is not File.WRITTEN]
        for name in (*inputs, *read):
            file = name.partition("::")[0]
            # a Zarr store is recorded as a folder, a folder of planes as its files
            if not any(
                file == path or file.startswith(f"{path}/") or path.startswith(f"{file}/")
                for path in known
            ):
                raise ValueError(f"it reads {file}, which is not among the recorded inputs")
    except (click.ClickException, click.exceptions.Exit, ValueError) as error:
        cause = usage_line(error) if isinstance(error, click.UsageError) else error
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
    """Refuse an output in another format, whose bytes would differ."""
    from conv3d_cli.system.atomic import suffix_of

    if suffix_of(original) != suffix_of(target.rstrip("/")):
        raise SpecError(
            f"a rerun writes the recorded format, {suffix_of(original)}, received {target}; "
            "change the suffix, or convert the result with conv3d convert"
        )

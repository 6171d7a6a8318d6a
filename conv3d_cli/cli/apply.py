"""`conv3d apply`: convolve one volume or many."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.batch import Batch, echo
from conv3d_cli.cli.jobs import Planned, plan_jobs
from conv3d_cli.cli.options import (
    SectionedCommand,
    batch_options,
    data_options,
    geometry_options,
    kernel_options,
    layer_options,
    missing_options,
    options,
    packing_options,
    run_options,
    store_options,
    trust_options,
)
from conv3d_cli.errors import Conv3DError, SpecError

if TYPE_CHECKING:
    from conv3d_cli.batch.resume import Ledger
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.provenance.run import Recording


@click.command(cls=SectionedCommand)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", metavar="OUT", help="Output; its suffix is its format. `-` writes .npy to stdout.")
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done; write nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Say what was decided: kernel, pads, grid, algorithm, memory, times."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per volume on stdout.")
@kernel_options
@options(
    "Kernel",
    click.option(
        "--to-fwhm",
        metavar="LENGTH",
        help="Smooth by the Gaussian that makes the volume as smooth as this, e.g. 8mm or 8,6,6mm, in place of -k.",
    ),
)
@geometry_options
@batch_options
@data_options
@missing_options
@trust_options
@run_options
@options(
    "Running",
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Run on a Dask cluster, from Zarr to Zarr: tcp://host:8786, or local:N for N processes here.",
    ),
)
@packing_options
@store_options
@layer_options
@click.pass_context
def apply(ctx: click.Context, inputs: tuple[str, ...], **_: Any) -> None:
    """Convolve volumes.

    \b
      conv3d apply brain.nii.gz -k gaussian:fwhm=6mm -o smooth.nii.gz
      conv3d apply stack.tif -k psf.tif --flip --boundary nearest -o out.tif
      conv3d apply scans/ -k box:size=3 --out-dir smoothed --suffix _box3
      conv3d apply https://host/image.zarr -k gaussian:sigma=1um -o out.ome.zarr

    A 3-D kernel is a filter: it runs over every channel and time point, and the output keeps the input's size
    (--padding same --boundary symmetric). A 5-D kernel is a Conv3D layer with Keras' defaults (valid, zeros).
    Triples are in depth,height,width order. `-` reads or writes .npy on a pipe.

    INPUTs are volumes, and folders, which stand for the volumes in them. Volumes are NIfTI (.nii .nii.gz .nii.zst .hdr),
    TIFF (.tif .ome.tif), NumPy (.npy), NRRD (.nrrd .nhdr) and OME-Zarr (.zarr .ome.zarr, folders and URLs; image.zarr/1
    is a level or array
    in it).
    """
    from conv3d_cli.cli import EXIT_CODE

    params = ctx.params
    # Before NumPy is imported: its BLAS starts a thread for every CPU, which spins for work that does not come.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    planned = plan_jobs(ctx, inputs)
    jobs = planned.jobs
    overwrite = any(job.overwrite for job in jobs)
    _check_account(params, jobs, overwrite)
    recordings = _recordings(planned) if params["sidecar"] or params["bids"] else {}
    ledger = _ledger(params, jobs, recordings) if params["resume"] else None
    if params["out_dir"] and not params["dry_run"] and "://" not in params["out_dir"]:
        _make_folder(params["out_dir"])
        if planned.dataset is not None:
            planned.dataset.write()
    if params["page"]:
        _check_page(params["page"], overwrite, params["dry_run"])
    if params["depfile"]:
        _check_depfile(params["depfile"], jobs, params["dry_run"])
    for note in planned.notes if not params["quiet"] else ():
        echo(f"note: {note}")
    batch = Batch(
        params["as_json"],
        params["quiet"],
        params["verbose"],
        dry_run=params["dry_run"],
        skip_existing=params["skip_existing"],
        make_folder=bool(params["out_dir"]),
        scheduler=params["scheduler"],
        verify=params["verify"],
        to_fwhm=params["to_fwhm"],
        recordings=recordings,
        fail_fast=params["fail_fast"],
        ledger=ledger,
    )
    if params["page"]:
        _run_with_page(batch, jobs, params["jobs"], params["page"], overwrite)
    else:
        batch.run(jobs, params["jobs"])
    if params["depfile"] and not batch.exit_code:
        from conv3d_cli.batch.depfile import write_depfile

        write_depfile(params["depfile"], jobs)
    ctx.meta[EXIT_CODE] = batch.exit_code
    batch.close()
    ctx.exit(batch.exit_code)


def _check_account(params: dict[str, Any], jobs: Sequence[Job], overwrite: bool) -> None:
    """Refuse options about what is done already, and about the account, that contradict each other."""
    if params["skip_existing"] and overwrite:
        raise SpecError("--skip-existing and --overwrite contradict each other; pass one of them")
    if params["skip_existing"] and params["resume"]:
        raise SpecError("--resume looks at what an output was made from, --skip-existing at its name; pass one of them")
    if params["as_json"] and any(job.target == "-" for job in jobs):
        raise SpecError("-o - writes the volume to stdout, where --json would mix with it; leave one of them out")


def _recordings(planned: Planned) -> Mapping[str, Recording]:
    """What is written beside each output, by its name."""
    from conv3d_cli.provenance.run import plan_recordings

    fields, copies = ({}, {}) if planned.dataset is None else (planned.dataset.fields, planned.dataset.copies)
    return plan_recordings(planned.jobs, planned.given, fields, copies)


def _ledger(params: dict[str, Any], jobs: Sequence[Job], recordings: Mapping[str, Recording]) -> Ledger:
    """The record behind --resume; what is done with an output afterwards counts, too."""
    from conv3d_cli.batch.resume import Ledger, check_resumable

    for job in jobs:
        check_resumable(job)
    also = {name: params[name] for name in ("verify", "to_fwhm") if params[name]}
    return Ledger(also, params["dry_run"], {target: (r.sidecar,) for target, r in recordings.items()})


def _check_depfile(path: str, jobs: Sequence[Job], dry_run: bool) -> None:
    """Refuse rules that make could not use, before any work."""
    from conv3d_cli.batch.depfile import check_depfile

    if dry_run:
        raise SpecError("--dry-run writes nothing, and --depfile is a file: leave one of them out")
    check_depfile(path, jobs)


def _check_page(path: str, overwrite: bool, dry_run: bool) -> None:
    """Refuse a page that could not be written, before any work."""
    from conv3d_cli.system.atomic import check_target, suffix_of

    if dry_run:
        raise SpecError("--dry-run writes nothing, and --report is a file: leave one of them out")
    if suffix_of(path) not in (".html", ".htm"):
        raise SpecError(f"a report is an HTML page, as in --report report.html, received '{path}'")
    check_target(path, overwrite, send=True)


def _run_with_page(batch: Batch, jobs: Sequence[Job], at_once: int | None, path: str, overwrite: bool) -> None:
    """Run jobs; the page appears when all were tried, failed ones too, and not where the batch is interrupted."""
    from conv3d_cli.pictures.page import Report

    with Report(path, overwrite) as page:
        batch.page = page
        failed = None
        try:
            batch.run(jobs, at_once)
        except Conv3DError as error:
            failed = error
        page.finish(
            f"conv3d apply: {len(jobs)} volume{'s' if len(jobs) > 1 else ''}", shlex.join(["conv3d", *sys.argv[1:]])
        )
        if failed is not None:
            raise failed


def _make_folder(path: str) -> None:
    from conv3d_cli.system.atomic import write_errors

    with write_errors(path):
        os.makedirs(path, exist_ok=True)

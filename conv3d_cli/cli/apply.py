"""`conv3d apply`: convolve one volume or many."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.batch import plan_outputs
from conv3d_cli.cli.batch import Batch
from conv3d_cli.cli.options import (
    SectionedCommand,
    data_options,
    given_options,
    job_settings,
    kernel_options,
    layer_options,
    make_job,
    missing_options,
    provenance_options,
    run_options,
    store_options,
    tiff_options,
)
from conv3d_cli.errors import Conv3DError, SpecError

if TYPE_CHECKING:
    from conv3d_cli.job import Job
    from conv3d_cli.provenance.bids import Dataset


@click.command(cls=SectionedCommand)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="OUT", help="Output; its suffix is its format. `-` writes .npy to stdout.")
@click.option("--out-dir", metavar="DIR", help="Folder for the outputs of many inputs; made if it is missing.")
@click.option(
    "--suffix", default="", metavar="TEXT", help="Put before the file's suffix: --suffix _sm6 makes a_sm6.nii.gz."
)
@click.option("--prefix", default="", metavar="TEXT", help="Put before the file's name.")
@kernel_options
@layer_options
@data_options
@missing_options
@provenance_options
@run_options
@click.option(
    "--gz-level",
    type=click.IntRange(0, 3),
    default=1,
    show_default=True,
    help="Of .nii.gz and deflate outputs: 0 is quickest; 1 takes a tenth longer for a quarter less; 2 and 3 gain little. "
    ".nii.zst has one level.",
)
@tiff_options
@store_options
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on a Dask cluster, from Zarr to Zarr: tcp://host:8786, or local:N for N processes here.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Volumes at a time, which share threads and memory.  [default: up to 4 where every file is small]",
)
@click.option(
    "--to-fwhm",
    metavar="LENGTH",
    help="Smooth by the Gaussian that makes the volume as smooth as this, e.g. 8mm or 8,6,6mm, in place of -k.",
)
@click.option(
    "--verify",
    type=click.IntRange(min=1),
    metavar="N",
    help="Then compute N voxels again by another way, in float64, from the files; exit 7 if one differs.",
)
@click.option(
    "--strict", is_flag=True, help="Refuse results that were clipped, lack voxels, or lose what the format cannot hold."
)
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@click.option("--skip-existing", is_flag=True, help="Leave inputs alone whose output exists.")
@click.option(
    "--report",
    "page",
    metavar="PAGE",
    help="Also write an HTML page, complete in itself: slices and histograms before and after, decisions, times, notes.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per volume on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Say what was decided: kernel, pads, grid, algorithm, memory, times."
)
@click.pass_context
def apply(ctx: click.Context, inputs: tuple[str, ...], **_: Any) -> None:
    """Convolve volumes.

    \b
      conv3d apply brain.nii.gz -k gaussian:fwhm=6mm -o smooth.nii.gz
      conv3d apply stack.tif -k psf.tif --flip --boundary nearest -o out.tif
      conv3d apply sub-*/*.nii.gz -k box:size=3 --out-dir smoothed --suffix _box3
      conv3d apply https://host/image.zarr -k gaussian:sigma=1um -o out.ome.zarr

    A 3-D kernel is a filter: it runs over every channel and time point, and the output keeps the input's size
    (--padding same --boundary symmetric). A 5-D kernel is a Conv3D layer with Keras' defaults (valid, zeros).
    Triples are in depth,height,width order. `-` reads or writes .npy on a pipe.

    Volumes are NIfTI (.nii .nii.gz .nii.zst .hdr), TIFF (.tif .ome.tif), NumPy (.npy) and OME-Zarr (.zarr .ome.zarr,
    folders and URLs; image.zarr/1 is a level or array in it).
    """
    params = ctx.params
    # Before NumPy is imported: its BLAS starts a thread for every CPU, which spins for work that does not come.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    settings = apply_settings(ctx)
    dataset = _dataset(inputs, ctx) if params["bids"] or params["desc"] is not None else None
    targets = _targets(inputs, params, settings) if dataset is None else dataset.targets
    if params["skip_existing"] and settings.get("overwrite"):
        raise SpecError("--skip-existing and --overwrite contradict each other; pass one of them")
    if params["coverage_out"] and len(inputs) > 1:
        raise SpecError(f"--coverage-out names one file, received {len(inputs)} inputs; run them apart")
    jobs = [make_job(source, target, settings) for source, target in zip(inputs, targets, strict=True)]
    recordings = {}
    if params["history"]:
        from conv3d_cli.provenance.command import with_history

        jobs = [with_history(job, given_options(ctx)) for job in jobs]
    if params["sidecar"] or dataset is not None:
        from conv3d_cli.provenance.run import plan_recordings

        fields, copies = ({}, {}) if dataset is None else (dataset.fields, dataset.copies)
        recordings = plan_recordings(jobs, given_options(ctx), fields, copies)
    if params["out_dir"] and not params["dry_run"] and "://" not in params["out_dir"]:
        for folder in (params["out_dir"], *({} if dataset is None else dict.fromkeys(map(os.path.dirname, targets)))):
            _make_folder(folder)
        if dataset is not None:
            dataset.write()
    if params["page"]:
        _check_page(params["page"], bool(settings.get("overwrite")), params["dry_run"])
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
    )
    if params["page"]:
        _run_with_page(batch, jobs, params["jobs"], params["page"], bool(settings.get("overwrite")))
    else:
        batch.run(jobs, params["jobs"])
    batch.close()
    if batch.exit_code:
        ctx.exit(batch.exit_code)


def apply_settings(ctx: click.Context) -> dict[str, Any]:
    """Arguments for `make_job`, from options, config and preset. Raises: as `job_settings`."""
    settings = job_settings(ctx)
    if ctx.params["to_fwhm"]:
        if len(settings["stages"]) > 1 or "kernel" in settings["stages"][0]:
            raise SpecError("--to-fwhm finds its kernel: leave out -k, and the config's")
        settings["stages"] = [{**settings["stages"][0], "kernel": "identity"}]
    return settings


def _check_page(path: str, overwrite: bool, dry_run: bool) -> None:
    """Refuse a page that could not be written, before any work."""
    from conv3d_cli.atomic import check_target, suffix_of

    if dry_run:
        raise SpecError("--dry-run writes nothing, and --report is a file: leave one of them out")
    if suffix_of(path) not in (".html", ".htm"):
        raise SpecError(f"a report is an HTML page, as in --report report.html, received '{path}'")
    check_target(path, overwrite)


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


def _targets(inputs: tuple[str, ...], params: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Where each output goes."""
    output, out_dir = params["output"], params["out_dir"]
    renamed = out_dir is not None or params["suffix"] or params["prefix"]
    if output is not None:
        if renamed:
            raise SpecError("-o names one output; leave out --out-dir, --suffix and --prefix")
        if len(inputs) > 1:
            raise SpecError(f"-o names one output, received {len(inputs)} inputs; pass --out-dir for many")
        if output == "-" and params["as_json"]:
            raise SpecError("-o - writes the volume to stdout, where --json would mix with it; leave one of them out")
        return [output]
    if not renamed:
        raise SpecError("no output: pass -o OUT, or --out-dir, --suffix or --prefix for many inputs")
    if "-" in inputs:
        raise SpecError("standard input has no name to make an output's from; pass -o")
    return plan_outputs(inputs, out_dir, params["suffix"], params["prefix"], bool(settings.get("overwrite")))


def _dataset(inputs: tuple[str, ...], ctx: click.Context) -> Dataset:
    """The derivative dataset that --bids asks for."""
    from conv3d_cli.provenance.bids import plan_dataset

    params = ctx.params
    if not params["bids"]:
        raise SpecError("--desc is the label of --bids: pass both")
    if params["out_dir"] is None:
        raise SpecError("--bids writes a dataset: name its folder, as in --out-dir derivatives/conv3d")
    for name in ("output", "suffix", "prefix"):
        if params[name]:
            raise SpecError(f"--bids names the outputs: leave out --{name}")
    return plan_dataset(inputs, params["out_dir"], given_options(ctx))


def _make_folder(path: str) -> None:
    from conv3d_cli.atomic import write_errors

    with write_errors(path):
        os.makedirs(path, exist_ok=True)

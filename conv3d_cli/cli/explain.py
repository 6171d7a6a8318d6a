"""`conv3d explain`: what `apply` would do and need, from headers alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import click

from conv3d_cli.cli.jobs import MergedSettings, obey_limits
from conv3d_cli.cli.layout import facts
from conv3d_cli.cli.options import (
    ShortHelpCommand,
    explain_options,
    given_settings,
    is_given,
    options,
    table_options,
)
from conv3d_cli.cli.parameters import FileName, UnitOption, refuse_both
from conv3d_cli.cli.values import Whole
from conv3d_cli.errors import SpecError
from conv3d_cli.settings.option import File, Unit
from conv3d_cli.system.machine import byte_size

cluster_options = options(
    "Cluster",
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Forecast for the workers of this Dask scheduler, or for local:N.",
    ),
    table_options("scheduler_tls_ca_file", "scheduler_tls_cert", "scheduler_tls_key"),
    click.option("--workers", type=Whole(1), metavar="N", help="Forecast for N workers."),
    click.option(
        "--worker-threads",
        type=Whole(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Number of threads of each worker.",
    ),
    click.option(
        "--read-rate",
        cls=UnitOption,
        unit=Unit.BYTES_PER_SECOND,
        metavar="SIZE",
        help="Bytes that a thread reads per second, e.g. 200M.  [default: measured here]",
    ),
    click.option(
        "--write-rate",
        cls=UnitOption,
        unit=Unit.BYTES_PER_SECOND,
        metavar="SIZE",
        help="Bytes that a thread writes per second.  [default: measured here]",
    ),
)


@click.command(cls=ShortHelpCommand)
@click.argument("source", metavar="INPUT", type=FileName(File.READ))
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=FileName(File.WRITTEN),
    help="Output name, which chooses the format.  [default: the input's format]",
)
@explain_options
@cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    source: str,
    output: str | None,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
    worker_threads: int,
    read_rate: str | None,
    write_rate: str | None,
    **_: Any,
) -> None:
    """Print what `apply` would do, and the time and memory it needs.

    \b
      conv3d explain brain.nii.gz -k gaussian:fwhm=6mm
      conv3d explain stack.tif -k psf.npy --strides 2 --json
      conv3d explain image.ome.zarr -k gaussian:sigma=2um --workers 100

    Prints padding, the output's shape and grid, the algorithm and why others declined, flops,
    bytes, memory and time. Reads no voxels and writes nothing; only with --workers or
    --scheduler, one task of the job is tried out here.
    """
    from conv3d_cli.batch.masks import mask_of
    from conv3d_cli.batch.report import describe, describe_forecast, plan_record
    from conv3d_cli.cluster.scheduler import scheduler_of
    from conv3d_cli.pipeline.prepare import prepare_job
    from conv3d_cli.pipeline.selection import on_cluster
    from conv3d_cli.settings.merge import merge_settings

    given = [
        option
        for option in ("--worker-threads", "--read-rate", "--write-rate")
        if is_given(ctx, option[2:].replace("-", "_"))
    ]
    if given and scheduler is None and workers is None:
        raise SpecError(f"{given[0]} is for --workers or --scheduler; pass one of them, too")
    refuse_both(scheduler, workers, "--scheduler counts the workers, and so does --workers")
    asked = replace(given_settings(ctx), scheduler=scheduler)
    obey_limits(ctx, asked)
    cluster = scheduler_of(asked)
    settings = MergedSettings(merge_settings(asked))
    job = settings.job(source, output or source, mask_of(settings.mask, source))
    if scheduler is not None or workers is not None:
        job = on_cluster(job)
    with prepare_job(job) as prepared:
        record, text = plan_record(prepared), describe(prepared)
        if scheduler is not None or workers is not None:
            from conv3d_cli.cluster.forecast import forecast
            from conv3d_cli.cluster.run import check_suited, cluster_size

            check_suited(prepared)
            if cluster is not None:
                workers, worker_threads = cluster_size(cluster)
            rates = [
                None if rate is None else float(byte_size(rate)) for rate in (read_rate, write_rate)
            ]
            found = forecast(prepared, workers or 1, worker_threads, *rates)
            record["cluster"], text = found.record(), f"{text}\n{describe_forecast(found)}"
        click.echo(json.dumps(record) if as_json else facts(text, sys.stdout))

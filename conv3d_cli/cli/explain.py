"""`conv3d explain`: what `apply` would do, from headers alone."""

from __future__ import annotations

import json
from typing import Any

import click

from conv3d_cli.cli.options import (
    SectionedCommand,
    cluster_options,
    data_options,
    geometry_options,
    given_options,
    job_settings,
    kernel_options,
    layer_options,
    make_job,
    missing_options,
    run_options,
    store_options,
)
from conv3d_cli.system.machine import byte_size


@click.command(cls=SectionedCommand)
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", metavar="OUT", help="Output name, for its format.  [default: the input's format]")
@kernel_options
@geometry_options
@data_options
@missing_options
@run_options
@store_options
@cluster_options
@layer_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def explain(
    ctx: click.Context,
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
    """Say what `apply` would do, and what it would take.

    \b
      conv3d explain brain.nii.gz -k gaussian:fwhm=6mm
      conv3d explain stack.tif -k psf.npy --strides 2 --json
      conv3d explain image.ome.zarr -k gaussian:sigma=2um --workers 100

    That is: pads, the output's shape and grid, algorithm and who declined, flops, bytes, memory, time. No voxel is
    read and nothing is written; only with --workers or --scheduler one task of the job is tried out here.
    """
    from conv3d_cli.batch.report import describe, describe_forecast, plan_record
    from conv3d_cli.pipeline.prepare import prepare_job

    settings = {**job_settings(given_options(ctx)), "on_cluster": scheduler is not None or workers is not None}
    with prepare_job(make_job(source, output or source, settings)) as prepared:
        record, text = plan_record(prepared), describe(prepared)
        if scheduler is not None or workers is not None:
            from conv3d_cli.cluster.forecast import forecast
            from conv3d_cli.cluster.run import check_suited, cluster_size

            check_suited(prepared)
            if scheduler is not None:
                workers, worker_threads = cluster_size(scheduler)
            rates = [None if rate is None else float(byte_size(rate)) for rate in (read_rate, write_rate)]
            found = forecast(prepared, workers or 1, worker_threads, *rates)
            record["cluster"], text = found.record(), f"{text}\n{describe_forecast(found)}"
        click.echo(json.dumps(record) if as_json else text)

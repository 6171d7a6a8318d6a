"""`conv3d explain`: what `apply` would do, from headers alone."""

from __future__ import annotations

import json
from typing import Any

import click

from conv3d_cli.cli.options import (
    SectionedCommand,
    data_options,
    job_settings,
    kernel_options,
    layer_options,
    make_job,
    run_options,
    store_options,
)


@click.command(cls=SectionedCommand)
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", metavar="OUT", help="Output name, for its format.  [default: the input's format]")
@kernel_options
@layer_options
@data_options
@run_options
@store_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def explain(ctx: click.Context, source: str, output: str | None, as_json: bool, **_: Any) -> None:
    """Say what `apply` would do: pads, output shape and grid, algorithm, work, memory.

    \b
      conv3d explain brain.nii.gz -k gaussian:fwhm=6mm
      conv3d explain stack.tif -k psf.npy --strides 2 --json

    No voxel is read and nothing is written.
    """
    from conv3d_cli.cli.report import describe, plan_record
    from conv3d_cli.job import prepare_job

    with prepare_job(make_job(source, output or source, job_settings(ctx))) as prepared:
        click.echo(json.dumps(plan_record(prepared)) if as_json else describe(prepared))

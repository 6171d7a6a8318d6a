"""`conv3d compare`: whether two volumes are the same, for Makefiles and tests."""

from __future__ import annotations

import json

import click

from conv3d_cli.cli.messages import EXIT_CODE
from conv3d_cli.errors import DifferenceError


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--rtol", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Relative to |B|."
)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="In the volumes' own units.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code.")
@click.pass_context
def compare(
    ctx: click.Context,
    first: str,
    second: str,
    rtol: float,
    atol: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare two volumes; exit with 7 if they differ.

    \b
      conv3d compare a.nii.gz b.nii.gz
      conv3d compare a.nii.gz b.nii --rtol 1e-5 --atol 1e-6
      conv3d compare a.ome.zarr b.tif

    Data, grid and dtype are compared. Without tolerances voxels must be equal; NaN equals NaN. Where |A - B| <= atol
    + rtol |B|, they agree. Grids must agree to 1e-5 of a voxel; a dtype may differ only under a tolerance.
    """
    from conv3d_cli.analysis.compare import compare_volumes

    result = compare_volumes(first, second, rtol=rtol, atol=atol)
    ctx.meta[EXIT_CODE] = DifferenceError.exit_code if result.differences else 0
    if as_json:
        click.echo(json.dumps(result.record()))
    elif not quiet:
        click.echo("\n".join(result.lines()))
    ctx.exit(ctx.meta[EXIT_CODE])

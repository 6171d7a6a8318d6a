"""`conv3d compare`: compare two volumes, for Makefiles and tests."""

from __future__ import annotations

import json

import click

from conv3d_cli.cli.parameters import (
    FileName,
    UnitOption,
    memory_option,
    refuse_both,
    spacing_option,
    timeout_option,
)
from conv3d_cli.cli.values import Real
from conv3d_cli.errors import DifferenceError
from conv3d_cli.settings.option import File, Unit
from conv3d_cli.system.words import TERMINAL, plain_text


@click.command()
@click.argument("first", metavar="A", type=FileName(File.READ))
@click.argument("second", metavar="B", type=FileName(File.READ))
@click.option(
    "--rtol",
    cls=UnitOption,
    unit=Unit.FRACTION,
    type=Real(0),
    default=0.0,
    show_default=True,
    metavar="NUMBER",
    help="Relative tolerance, as a fraction of |B|.",
)
@click.option(
    "--atol",
    cls=UnitOption,
    unit=Unit.VOXEL_VALUES,
    type=Real(0),
    default=0.0,
    show_default=True,
    metavar="NUMBER",
    help="Absolute tolerance, in the unit of the voxel values.",
)
@spacing_option()
@timeout_option()
@memory_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Print nothing; tell the result by the exit code."
)
@click.pass_context
def compare(
    ctx: click.Context,
    first: str,
    second: str,
    rtol: float,
    atol: float,
    spacing: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare two volumes; exit with 7 if they differ.

    \b
      conv3d compare a.nii.gz b.nii.gz
      conv3d compare a.nii.gz b.nii --rtol 1e-5 --atol 1e-6
      conv3d compare a.ome.zarr b.tif

    Compares data, grid and dtype. Voxels agree if |A - B| <= atol + rtol |B|; without tolerances
    they must be equal. NaN equals NaN. Grids must agree to 1e-5 of a voxel. Dtypes may differ
    only with a tolerance.
    """
    from conv3d_cli.analysis.compare import compare_volumes
    from conv3d_cli.kernels.lengths import read_spacing

    refuse_both(as_json, quiet, "--json prints an object, and -q prints nothing")
    by_hand = None if spacing is None else read_spacing(spacing)
    result = compare_volumes(first, second, rtol=rtol, atol=atol, spacing=by_hand)
    if as_json:
        click.echo(json.dumps(result.record()))
    elif not quiet:
        click.echo(plain_text("\n".join(result.lines()), TERMINAL))
    ctx.exit(DifferenceError.exit_code if result.differences else 0)

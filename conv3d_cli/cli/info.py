"""`conv3d info`: axes, dtype, grid and storage of volumes, from their headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.messages import EXIT_CODE
from conv3d_cli.cli.parameters import FileName, UnitOption
from conv3d_cli.errors import Conv3DError, SpecError, one_line
from conv3d_cli.settings.option import File, Unit

if TYPE_CHECKING:
    from conv3d_cli.model.grid import Spacing
    from conv3d_cli.model.volume import VolumeReader


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=FileName(File.READ))
@click.option(
    "--axes",
    metavar="LETTERS",
    help="Axes in storage order.  [default: as the file says]",
)
@click.option(
    "--fwhm",
    is_flag=True,
    help="Also estimate the smoothness along each axis, from the voxels.",
)
@click.option(
    "--spacing",
    cls=UnitOption,
    unit=Unit.LENGTH,
    metavar="D,H,W",
    help="Voxel spacing with its unit, e.g. 0.3,0.1,0.1um, for files that store none or no unit.",
)
@click.option(
    "--mask",
    metavar="FILE",
    type=FileName(File.READ),
    help="Estimate --fwhm from the voxels where this volume is above 0.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
@click.pass_context
def info(
    ctx: click.Context,
    files: tuple[str, ...],
    axes: str | None,
    fwhm: bool,
    spacing: str | None,
    mask: str | None,
    as_json: bool,
) -> None:
    """Show the axes, shape, dtype, spacing and affine of volumes.

    \b
      conv3d info brain.nii.gz
      conv3d info *.tif --json
      conv3d info image.zarr https://host/image.zarr/1
      conv3d info residuals.nii.gz --fwhm --mask brain.nii.gz

    Reads only headers. For Zarr, also shows chunks and levels.

    --fwhm estimates the FWHM of the Gaussian that makes white noise as smooth, from first
    differences (Forman et al. 1995). From a time series, its mean over time is subtracted first.
    """
    from conv3d_cli.formats import open_volume
    from conv3d_cli.kernels.lengths import read_spacing
    from conv3d_cli.model.grid import length_scale

    given = None if spacing is None else read_spacing(spacing)
    if mask is not None and not fwhm:
        raise SpecError("--mask is for --fwhm; pass both, or neither")
    for position, path in enumerate(files):
        try:
            with open_volume(path, axes=axes, spacing=given) as reader:
                record = header_record(reader)
                if fwhm:
                    record["fwhm"], notes = smoothness(reader, mask, given)
                    record["fwhm_unit"] = length_scale(reader.header.grid)[1]
                    if notes:
                        record["notes"] = notes
        except Conv3DError as error:
            if len(files) == 1:
                raise
            click.echo(f"Error: {one_line(error)}", err=True)
            ctx.meta.setdefault(EXIT_CODE, error.exit_code)
            continue
        if as_json:
            click.echo(json.dumps(record))
        else:
            click.echo(("\n" if position else "") + describe(record))
    ctx.exit(ctx.meta.get(EXIT_CODE, 0))


def smoothness(
    volume: VolumeReader, mask: str | None, spacing: Spacing | None = None
) -> tuple[list[float | None], list[str]]:
    """Estimate the FWHM along D, H, W; None along an axis of one voxel.

    volume : VolumeReader       an open volume
    mask : str or None          path of a mask; voxels above 0 count
    spacing : Spacing or None   for what the mask's file does not tell
    Returns lengths in the unit of `length_scale`, and notes on how both files were understood.
    """
    from contextlib import ExitStack

    from conv3d_cli.analysis.smoothness import estimate_fwhm
    from conv3d_cli.formats.base import random_access
    from conv3d_cli.model.grid import length_scale
    from conv3d_cli.pipeline.prepare import naming, open_mask

    with ExitStack() as stack:
        reader, checked = stack.enter_context(random_access(volume)), None
        if mask is not None:
            with naming(reader):
                checked = stack.enter_context(open_mask(mask, reader.header, spacing=spacing))
        found = estimate_fwhm(reader, checked)
        steps, _ = length_scale(reader.header.grid)
        notes = list(reader.notes)
        if checked is not None:
            notes += [f"mask {mask}: {note}" for note in checked.reader.notes]
    lengths = [
        length * s if length == length else None for length, s in zip(found, steps, strict=True)
    ]
    return lengths, notes


def header_record(reader: VolumeReader) -> dict[str, Any]:
    """The header of a volume as a JSON object."""
    from conv3d_cli.batch.report import grid_record

    header = reader.header
    return {
        "file": reader.path,
        "format": header.format,
        "axes": header.axes.letters,
        "shape": list(header.axes.shape),
        "dtype": str(header.dtype),
        "scale": list(header.scale),
        "bytes": header.nbytes,
        **grid_record(header.grid),
        **({"history": list(header.history)} if header.history else {}),
        **({"storage": storage} if (storage := reader.storage()) else {}),
        **({"notes": list(reader.notes)} if reader.notes else {}),
    }


def describe(record: dict[str, Any]) -> str:
    """The record of a header in aligned lines."""
    from conv3d_cli.model.grid import Grid
    from conv3d_cli.system.machine import format_bytes

    slope, intercept = record["scale"]
    scaled = (slope, intercept) != (1.0, 0.0)
    scale = f", value = stored * {slope:g} + {intercept:g}" if scaled else ""
    spacing = Grid(record["spacing"], record["unit"]).spacing_words
    if record["spacing"] is not None:
        spacing += " (depth,height,width)"
    rows = [
        ("file", f"{record['file']} ({record['format']})"),
        ("axes", f"{record['axes']}  {' x '.join(map(str, record['shape']))}"),
        ("dtype", f"{record['dtype']}{scale}"),
        ("size", f"{format_bytes(record['bytes'])} of voxels"),
        ("spacing", spacing),
    ]
    if record["affine"] is not None:
        lines = ["  ".join(f"{value:10.4f}" for value in row) for row in record["affine"][:3]]
        world = record["unit"] or "the world, without a unit"
        rows.append(("affine", f"{lines[0]}   (i,j,k) to {world}"))
        rows += [("", line) for line in lines[1:]]
    rows += list(record.get("storage", {}).items())
    rows += [
        ("history" if number == 0 else "", line)
        for number, line in enumerate(record.get("history", []))
    ]
    if "fwhm" in record:
        lengths = ",".join(
            "unknown" if length is None else f"{length:.4g}" for length in record["fwhm"]
        )
        rows.append(
            ("fwhm", f"{lengths} {record['fwhm_unit']} (depth,height,width), of white noise")
        )
    rows += [("note", text) for text in record.get("notes", [])]
    return "\n".join(f"{name:<8} {text}" for name, text in rows)

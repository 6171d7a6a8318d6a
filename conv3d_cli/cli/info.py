"""`conv3d info`: what a volume is and where it lies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.messages import EXIT_CODE
from conv3d_cli.errors import Conv3DError, SpecError, one_line

if TYPE_CHECKING:
    from conv3d_cli.model.volume import VolumeReader


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--axes", metavar="LETTERS", help="Axes in storage order, in place of what the file says."
)
@click.option(
    "--fwhm",
    is_flag=True,
    help="Also estimate the smoothness along each axis; this reads the voxels.",
)
@click.option("--mask", metavar="FILE", help="Voxels that count for --fwhm: where this is above 0.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file.")
@click.pass_context
def info(
    ctx: click.Context,
    files: tuple[str, ...],
    axes: str | None,
    fwhm: bool,
    mask: str | None,
    as_json: bool,
) -> None:
    """Show the axes, shape, dtype, spacing and affine of volumes.

    \b
      conv3d info brain.nii.gz
      conv3d info *.tif --json
      conv3d info image.zarr https://host/image.zarr/1
      conv3d info residuals.nii.gz --fwhm --mask brain.nii.gz

    Only headers are read; of Zarr, chunks and levels are told, too.

    --fwhm is the FWHM of the Gaussian that makes white noise as smooth, from first differences (Forman et al. 1995); of a series,
    of what its mean over time leaves.
    """
    from conv3d_cli.formats import open_volume

    if mask is not None and not fwhm:
        raise SpecError("--mask is for --fwhm: pass both, or neither")
    for position, path in enumerate(files):
        try:
            with open_volume(path, axes=axes) as reader:
                record = header_record(reader)
                if fwhm:
                    record["fwhm"] = smoothness(reader, mask)
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


def smoothness(volume: VolumeReader, mask: str | None) -> list[float | None]:
    """FWHM along D, H, W in the grid's unit, in voxels if it has none; None along an axis of one voxel."""
    from contextlib import ExitStack

    from conv3d_cli.analysis.smoothness import estimate_fwhm
    from conv3d_cli.formats.base import random_access
    from conv3d_cli.pipeline.prepare import naming, open_mask

    with ExitStack() as stack:
        reader, checked = stack.enter_context(random_access(volume)), None
        if mask is not None:
            with naming(reader):
                checked = stack.enter_context(open_mask(mask, reader.header))
        found = estimate_fwhm(reader, checked)
        spacing = reader.header.grid.spacing or (1.0, 1.0, 1.0)
    return [
        length * s if length == length else None for length, s in zip(found, spacing, strict=True)
    ]


def header_record(reader: VolumeReader) -> dict[str, Any]:
    """A volume's header as JSON."""
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
    """A header record in aligned lines."""
    from conv3d_cli.batch.report import triple_text
    from conv3d_cli.system.machine import format_bytes

    slope, intercept = record["scale"]
    rows = [
        ("file", f"{record['file']} ({record['format']})"),
        ("axes", f"{record['axes']}  {' x '.join(map(str, record['shape']))}"),
        (
            "dtype",
            record["dtype"]
            + (
                ""
                if record["scale"] == [1.0, 0.0]
                else f", value = stored * {slope:g} + {intercept:g}"
            ),
        ),
        ("size", f"{format_bytes(record['bytes'])} of voxels"),
    ]
    spacing = record["spacing"]
    rows.append(
        (
            "spacing",
            "unknown"
            if spacing is None
            else f"{triple_text(spacing)} {record['unit']} (depth,height,width)",
        )
    )
    if record["affine"] is not None:
        lines = ["  ".join(f"{value:10.4f}" for value in row) for row in record["affine"][:3]]
        rows.append(("affine", f"{lines[0]}   (i,j,k) to {record['unit']}"))
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
            ("fwhm", f"{lengths} {record['unit'] or 'vox'} (depth,height,width), as of white noise")
        )
    rows += [("note", text) for text in record.get("notes", [])]
    return "\n".join(f"{name:<8} {text}" for name, text in rows)

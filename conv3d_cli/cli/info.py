"""`conv3d info`: axes, dtype, grid and storage of volumes, from their headers."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.layout import facts
from conv3d_cli.cli.parameters import FileName, memory_option, spacing_option, timeout_option
from conv3d_cli.errors import Conv3DError, SpecError, one_line
from conv3d_cli.settings.option import File

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
@spacing_option()
@timeout_option()
@memory_option()
@click.option(
    "--mask",
    metavar="FILE",
    type=FileName(File.READ),
    help="Estimate --fwhm from the voxels where this volume is above 0.",
)
@click.option(
    "--stats", is_flag=True, help="Also show the values' range, mean and spread, from the voxels."
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
    stats: bool,
    as_json: bool,
) -> None:
    """Show the axes, shape, dtype, spacing and affine of volumes.

    \b
      conv3d info brain.nii.gz
      conv3d info *.tif --json
      conv3d info image.zarr https://host/image.zarr/1
      conv3d info residuals.nii.gz --fwhm --mask brain.nii.gz
      conv3d info brain.nii.gz --stats

    Reads only headers, unless --stats or --fwhm is given. Shows the time step (TR) and names of
    channels, if the file tells them; for Zarr, also chunks and levels.

    --fwhm estimates the FWHM of the Gaussian that makes white noise as smooth, from first
    differences (Forman et al. 1995). From a time series, its mean over time is subtracted first.
    """
    from conv3d_cli.formats import open_volume
    from conv3d_cli.formats.base import random_access
    from conv3d_cli.kernels.lengths import read_spacing
    from conv3d_cli.model.grid import length_scale

    given = None if spacing is None else read_spacing(spacing)
    if mask is not None and not fwhm:
        raise SpecError("--mask is for --fwhm; pass both, or neither")
    code = 0
    for position, path in enumerate(files):
        try:
            with ExitStack() as opened:
                reader = opened.enter_context(open_volume(path, axes=axes, spacing=given))
                record = header_record(reader)
                if fwhm and stats:  # which read the voxels twice
                    reader = opened.enter_context(random_access(reader))
                if stats:
                    record["stats"] = value_range(reader)
                if fwhm:
                    unit = length_scale(reader.header.grid)[1]
                    record["fwhm"], notes = smoothness(reader, mask, given)  # closes the reader
                    record["fwhm_unit"] = unit
                    if notes:
                        record["notes"] = notes
        except Conv3DError as error:
            text = one_line(error)
            if as_json:
                click.echo(json.dumps({"file": path, "error": text, "exit_code": error.exit_code}))
            click.echo(f"Error: {text}", err=True)
            code = code or error.exit_code
            continue
        if as_json:
            click.echo(json.dumps(record))
        else:
            text = facts(describe(record), sys.stdout, indent=9)
            click.echo(("\n" if position else "") + text)
    ctx.exit(code)


def value_range(volume: VolumeReader) -> dict[str, Any]:
    """The statistics of an open volume's values as a JSON object; numbers are null without any."""
    from dataclasses import asdict

    from conv3d_cli.analysis.statistics import value_statistics

    found = asdict(value_statistics(volume))
    return {name: None if value != value else value for name, value in found.items()}


def smoothness(
    volume: VolumeReader, mask: str | None, spacing: Spacing | None = None
) -> tuple[list[float | None], list[str]]:
    """Estimate the FWHM along D, H, W; None along an axis of one voxel.

    volume : VolumeReader       an open volume
    mask : str or None          path of a mask; voxels above 0 count
    spacing : Spacing or None   for what the mask's file does not tell
    Returns lengths in the unit of `length_scale`, and notes on how both files were understood.
    """
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

    header, facts = reader.header, reader.header.facts
    return {
        "file": reader.path,
        "format": header.format,
        "axes": header.axes.letters,
        "shape": list(header.axes.shape),
        "dtype": str(header.dtype),
        "scale": list(header.scale),
        "bytes": header.nbytes,
        **grid_record(header.grid),
        **(
            {"time_step": facts.time_step[0], "time_unit": facts.time_step[1]}
            if facts.time_step
            else {}
        ),
        **({"name": facts.name} if facts.name else {}),
        **({"channels": list(facts.channel_names)} if facts.channel_names else {}),
        **({"channel_colors": list(facts.channel_colors)} if facts.channel_colors else {}),
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
    if "time_step" in record:
        step = f"{record['time_step']:.6g} {record['time_unit'] or 'without a unit'}"
        rows.append(("time", f"{step} between time points (TR)"))
    if "name" in record:
        rows.append(("name", record["name"]))
    if "channels" in record:
        rows.append(("channels", ", ".join(record["channels"])))
    if "channel_colors" in record:
        rows.append(("colours", ", ".join(color or "none" for color in record["channel_colors"])))
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
    if "stats" in record:
        rows.append(("values", _range_words(record["stats"])))
    rows += [("note", text) for text in record.get("notes", [])]
    return "\n".join(f"{name:<8} {text}" for name, text in rows)


def _range_words(stats: dict[str, Any]) -> str:
    """Statistics in words."""
    lost = f"{stats['nonfinite']} of {stats['voxels']} voxels are NaN or infinite"
    if stats["low"] is None:
        return lost
    text = (
        f"{stats['low']:.6g} to {stats['high']:.6g}, mean {stats['mean']:.6g}, "
        f"standard deviation {stats['deviation']:.6g}"
    )
    return f"{text}; {lost}" if stats["nonfinite"] else text

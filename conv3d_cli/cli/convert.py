"""`conv3d convert`: copy volumes between formats.

It is `conv3d apply -k identity --dtype same --scale keep` with the options of jobs and formats, and
so its sidecars say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from conv3d_cli.cli.options import ShortHelpCommand, given_settings, options_of_table
from conv3d_cli.cli.parameters import FileName
from conv3d_cli.cli.running import keep_blas_quiet, run_volumes
from conv3d_cli.errors import OutputExistsError, SpecError
from conv3d_cli.settings.option import File, Option, Place
from conv3d_cli.settings.options import COPYING, OF_NETWORKS, Settings

# Options of jobs and commands that have no meaning for a copy.
_NOT_TAKEN = (
    "config",
    "operation",
    "weights",
    "like",
    "to_fwhm",
    "include_discrete",
    "normalize_input",
    "normalize_mask",
    "template_mask",
    *OF_NETWORKS,
    "precision",
    "coverage_out",
    "bids",
    "desc",
    "algorithm",
    "scheduler",
    "scheduler_tls_ca_file",
    "scheduler_tls_cert",
    "scheduler_tls_key",
)
_OWN_HELP: dict[str, dict[str, Any]] = {
    "output": {"help": "Output file, instead of DST. `-` writes .npy to stdout."},
    "dtype": {
        "help": "Data type of the output. Integers are rounded half to even and clipped to their "
        "range; clipped voxels are counted.  [default: the input's own]",
    },
    "scale": {
        "default": "keep",
        "help": "Slope and intercept of the output. With keep, it has the numbers that the input "
        "stores with those of the input, where its format holds them, and else their values; none: "
        "always values; auto: those that make the values fill an integer type's range.",
    },
    "channels": {
        "common": True,
        "metavar": "N|NAME,...",
        "help": "Copy only these channels, in this order: numbers, counted from 0, or names that "
        "the file gives them. One channel becomes a plain volume without an axis of channels.  "
        "[default: all]",
    },
    "out_format": {"common": True},
    "levels": {"common": True},
    "levels_by": {"common": True},
    "chunks": {"common": True},
    "compression": {"common": True},
}


def _takes(row: Option) -> bool:
    """Whether the command has an option of the table."""
    return row.place in (Place.JOB, Place.COMMAND) and row.name not in _NOT_TAKEN


@click.command(cls=ShortHelpCommand)
@click.argument("sources", nargs=-1, metavar="SRC...", type=FileName(File.READ))
@click.argument("target", required=False, metavar="[DST]", type=FileName(File.WRITTEN))
@options_of_table(_takes, _OWN_HELP)
@click.pass_context
def convert(ctx: click.Context, /, sources: tuple[str, ...], target: str | None, **_: Any) -> None:
    """Copy volumes between formats, without arithmetic.

    \b
      conv3d convert head.nii.gz head.nrrd
      conv3d convert stack.tif image.ome.zarr --levels 4
      conv3d convert labels.nii.gz labels.ome.zarr --levels 4 --levels-by mode
      conv3d convert scans/ --out-dir zarr --format .ome.zarr

    The suffix of DST chooses its format. Voxels keep their data type and every bit of it; where a
    format lacks the type, the command refuses, or stores a wider one and says so.

    Spacing, affine, axes, names of channels, time steps and the history go along as far as the
    format of DST holds them; a note lists what it does not hold, and --strict refuses that.
    `conv3d help convert` has the details.
    """
    keep_blas_quiet()
    asked = given_settings(ctx)
    inputs, output = _names(sources, target, asked)
    from conv3d_cli.batch.discover import is_folder

    folders = [name for name in inputs if is_folder(name)]
    if output is not None and folders and not asked.stack:
        raise SpecError(
            f"{folders[0]} is a folder, and one output is named, {output}; pass --out-dir for the "
            "volumes in it, or --stack if its files are the planes of one volume"
        )
    if output is not None:
        _check_apart(inputs, output)
    copying = Settings(kernel=COPYING, dtype="same", scale="keep")
    given = {**copying.given(), **asked.given(), "output": output}
    if folders and not asked.stack:
        given["include_discrete"] = True  # a copy mixes no labels
    run_volumes(ctx, inputs, replace(asked, **given))


def _names(
    sources: tuple[str, ...], target: str | None, asked: Settings
) -> tuple[tuple[str, ...], str | None]:
    """The inputs, and the output unless options name it. Raises: SpecError."""
    words = (*sources, *([] if target is None else [target]))
    several = (asked.out_dir, asked.suffix, asked.prefix, asked.out_format, asked.manifest)
    if asked.output is not None or any(several):
        return words, asked.output
    if len(words) == 2:
        return words[:1], words[1]
    many = "for many volumes pass --out-dir DIR, as in `conv3d convert scans/ --out-dir zarr "
    many += "--format .ome.zarr`"
    if len(words) == 1:
        raise SpecError(
            f"no output: name it after {words[0]}, as in `conv3d convert {words[0]} out.nii.gz`; "
            f"{many}"
        )
    raise SpecError(f"one input and one output are needed, received {len(words)} names; {many}")


def _check_apart(inputs: tuple[str, ...], output: str) -> None:
    """Refuse an output that is the input, even with --overwrite. Raises: OutputExistsError."""
    from conv3d_cli.formats import readable_files, written_files
    from conv3d_cli.system.portable import true_path

    if output == "-" or "://" in output:
        return
    written = {true_path(name) for name in written_files(output)}
    for name in inputs:
        if name == "-" or "://" in name:
            continue
        if written & {true_path(file) for file in readable_files(name)}:
            raise OutputExistsError(
                f"cannot write {output}: it is the input, and a copy of a volume into itself would "
                "only put it at risk; name another file"
            )

"""`conv3d presets`: the values that --like sets, tool by tool."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from conv3d_cli.cli.layout import hung, list_columns


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all presets as one JSON object.")
def presets(as_json: bool) -> None:
    """List the values that `apply --like TOOL` sets, tool by tool.

    \b
      conv3d presets
      conv3d apply brain.nii.gz -k gaussian:fwhm=6mm --like spm -o smooth.nii.gz

    Of a tool's Gaussian, the list tells how many voxels it reaches to each side, for a standard
    deviation of σ voxels, and where it is sampled. Flip and normalize apply to kernel files, and
    not to built-in kernels. Options that you give win over the preset.
    """
    from conv3d_cli.kernels.sampling import DEFAULT_WORDS, SAMPLINGS
    from conv3d_cli.settings.presets import PRESETS

    if as_json:
        click.echo(json.dumps({name: asdict(preset) for name, preset in PRESETS.items()}))
        return
    columns = list_columns()
    rows = [("like", "padding", "boundary", "nan", "kernel files", "the tool; its Gaussian")]
    for name, preset in PRESETS.items():
        files = " ".join(
            word
            for word, is_set in (("flip", preset.flip), ("normalize", preset.normalize))
            if is_set
        )
        gaussian = (
            SAMPLINGS[preset.sampling].words if preset.sampling in SAMPLINGS else DEFAULT_WORDS
        )
        tool = f"{preset.tool}; {gaussian if preset.gaussian else 'no Gaussian'}"
        rows.append((name, preset.padding, preset.boundary, preset.nan, files or "unchanged", tool))
    for name, padding, boundary, nan, files, tool in rows:
        click.echo(f"{name:<8} {padding:<8} {boundary:<17} {nan:<10} {files}")
        click.echo(hung(f"{'':<8} {tool}", columns, indent=9))

"""`conv3d presets`: what --like sets, tool by tool."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object of all presets.")
def presets(as_json: bool) -> None:
    """List what `apply --like TOOL` sets, tool by tool.

    \b
      conv3d presets
      conv3d apply brain.nii.gz -k gaussian:fwhm=6mm --like spm -o smooth.nii.gz

    Flip and normalize are of kernel files; built-in kernels stay as they are named. An option of yours beats the preset.
    """
    from conv3d_cli.kernels.sampling import SAMPLINGS
    from conv3d_cli.settings.presets import PRESETS

    if as_json:
        click.echo(json.dumps({name: asdict(preset) for name, preset in PRESETS.items()}))
        return
    rows = [("like", "padding", "boundary", "nan", "kernel files", "the tool; its Gaussian")]
    for name, preset in PRESETS.items():
        files = " ".join(
            word
            for word, is_set in (("flip", preset.flip), ("normalize", preset.normalize))
            if is_set
        )
        gaussian = (
            SAMPLINGS[preset.sampling].words
            if preset.sampling in SAMPLINGS
            else "int(4σ + 0.5), at voxels' centres"
        )
        tells = f"{preset.tool}; {gaussian if preset.gaussian else 'none'}"
        rows.append(
            (name, preset.padding, preset.boundary, preset.nan, files or "as they are", tells)
        )
    for name, padding, boundary, nan, files, tells in rows:
        click.echo(f"{name:<8} {padding:<8} {boundary:<17} {nan:<10} {files:<13} {tells}")

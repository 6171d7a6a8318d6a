"""`conv3d apply`: convolve one volume or many."""

from __future__ import annotations

from typing import Any

import click

from conv3d_cli.cli.options import ShortHelpCommand, apply_options, given_settings
from conv3d_cli.cli.parameters import FileName
from conv3d_cli.cli.running import run_volumes
from conv3d_cli.settings.option import File


@click.command(cls=ShortHelpCommand)
@click.argument("inputs", nargs=-1, metavar="INPUT...", type=FileName(File.READ))
@apply_options
@click.pass_context
def apply(ctx: click.Context, /, inputs: tuple[str, ...], **_: Any) -> None:
    """Convolve volumes.

    \b
      conv3d apply brain.nii.gz --fwhm 6mm --mask mask.nii.gz -o smooth.nii.gz
      conv3d apply stack.tif -k psf.tif --flip --boundary nearest -o out.tif
      conv3d apply scans/ -k box:size=3 --out-dir smoothed --suffix _box3
      conv3d apply image.ome.zarr -k net.keras::conv3d_1 -o features.ome.zarr

    A 3-D kernel is a filter, for every channel and time point; the size stays. A 5-D kernel is a
    layer with Keras' defaults.

    INPUTs are volumes, or folders of volumes: NIfTI (.nii .nii.gz .nii.zst .hdr), TIFF (.tif
    .ome.tif), NumPy (.npy), NRRD (.nrrd .nhdr), OME-Zarr (.zarr .ome.zarr, folders and URLs;
    .nii.zarr; zipped: .ozx; image.zarr/1 is a level or array of image.zarr), MetaImage, MGH,
    MRtrix, MRC and others (conv3d help formats). `-` reads or writes .npy on a pipe.

    The defaults for a filter are --padding same --boundary symmetric; for a layer, --padding valid
    --boundary zeros. Triples are in depth,height,width order.
    """
    run_volumes(ctx, inputs, given_settings(ctx))

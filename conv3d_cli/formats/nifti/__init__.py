"""NIfTI: header, grid, CIFTI files, and the format itself."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.codecs import codec_named

FORMAT = VolumeFormat(
    name="NIfTI",
    suffixes=(".nii.gz", ".nii.zst", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img"),
    summary=(
        "NIfTI-1 and NIfTI-2, compressed or not, and .hdr/.img pairs; "
        "affines, units and extensions are kept"
    ),
    open=late("conv3d_cli.formats.nifti.format:open_nifti"),
    create=late("conv3d_cli.formats.nifti.format:create_nifti"),
    output_letters=late("conv3d_cli.formats.nifti.header:output_letters"),
    holds_affine=True,
    holds_scale=True,
    keeps=late("conv3d_cli.formats.nifti.header:kept_facts"),
    streamed=lambda path, options: codec_named(path) is not None,
    libraries=("nibabel", "isal"),
    content=late("conv3d_cli.formats.nifti.format:nifti_content"),
    files=late("conv3d_cli.formats.nifti.format:input_files"),
    written=late("conv3d_cli.formats.nifti.format:output_files"),
    check_target=late("conv3d_cli.formats.nifti.format:check_nifti_target"),
)

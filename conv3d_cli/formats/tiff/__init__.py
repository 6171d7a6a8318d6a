"""TIFF of ImageJ, OME, tifffile or none: directories, pages, metadata, and the format itself."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late

DEFLATE, OLD_DEFLATE, ZSTD = 8, 32946, 50000  # TIFF's numbers
COMPRESSIONS = {"deflate": DEFLATE, "zstd": ZSTD}

FORMAT = VolumeFormat(
    name="TIFF",
    suffixes=(".ome.tiff", ".ome.tif", ".tiff", ".tif"),
    summary="ImageJ hyperstacks, OME-TIFF, BigTIFF and plain stacks, with their voxel sizes",
    open=late("conv3d_cli.formats.tiff.format:open_tiff"),
    create=late("conv3d_cli.formats.tiff.format:create_tiff"),
    keeps=late("conv3d_cli.formats.tiff.format:kept_facts"),
    output_letters=late("conv3d_cli.formats.tiff.format:output_letters"),
    files=late("conv3d_cli.formats.tiff.files:input_files"),
    compressions=tuple(COMPRESSIONS),
    libraries=("tifffile", "imagecodecs"),
    output_bytes=late("conv3d_cli.formats.tiff.format:output_bytes"),
)

"""TIFF of ImageJ, OME, tifffile or none: directories, pages, metadata, and the format itself."""

from __future__ import annotations

import os

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.system.parts import split_part

BIG_SUFFIXES = (".btf", ".tf2", ".tf8")  # of BigTIFF; after .ome, of OME-TIFF that is BigTIFF
DEFLATE, OLD_DEFLATE, ZSTD = 8, 32946, 50000  # TIFF's numbers
COMPRESSIONS = {"deflate": DEFLATE, "zstd": ZSTD}


def is_stack_name(name: str) -> bool:
    """True if a name is a folder with a pattern of files, `FOLDER::*.tif`, read as one volume."""
    folder, part = split_part(name)
    return any(c in part for c in "*?[") and os.path.isdir(folder)


FORMAT = VolumeFormat(
    name="TIFF",
    suffixes=(
        *(".ome.tiff", ".ome.tif", ".ome.btf", ".ome.tf2", ".ome.tf8"),
        *(".tiff", ".tif", *BIG_SUFFIXES),
    ),
    # files of microscopes and slide scanners
    read_suffixes=(
        *(".companion.ome", ".lsm", ".stk"),
        *(".svs", ".ndpi", ".scn", ".bif", ".qptiff"),
    ),
    target_suffix=".ome.tif",
    summary="ImageJ hyperstacks, OME-TIFF, BigTIFF and plain stacks, with their voxel sizes",
    open=late("conv3d_cli.formats.tiff.format:open_tiff"),
    open_again=late("conv3d_cli.formats.tiff.format:open_again"),
    create=late("conv3d_cli.formats.tiff.format:create_tiff"),
    keeps=late("conv3d_cli.formats.tiff.format:kept_facts"),
    output_letters=late("conv3d_cli.formats.tiff.format:output_letters"),
    signature=lambda start: start.begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    files=late("conv3d_cli.formats.tiff.files:input_files"),
    has_parts=True,
    claims_also=is_stack_name,
    holds_more=late("conv3d_cli.formats.tiff.format:holds_more"),
    compressions=tuple(COMPRESSIONS),
    libraries=("tifffile", "imagecodecs"),
    output_bytes=late("conv3d_cli.formats.tiff.format:output_bytes"),
)

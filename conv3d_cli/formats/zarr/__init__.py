"""OME-Zarr: stores, metadata, resolution levels, and the format itself."""

from __future__ import annotations

from dataclasses import replace

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.signatures import Start
from conv3d_cli.formats.zarr import names
from conv3d_cli.system.atomic import check_target

FORMAT = VolumeFormat(
    name="OME-Zarr",
    suffixes=(".ome.zarr", ".zarr"),
    summary="images of OME-NGFF 0.4 and 0.5 and bare Zarr arrays, in folders and at URLs",
    open=late("conv3d_cli.formats.zarr.format:open_zarr"),
    create=late("conv3d_cli.formats.zarr.format:create_zarr"),
    keeps=lambda path, header: frozenset({"name", "time_step", "channel_names", "channel_colors"}),
    output_letters=late("conv3d_cli.formats.zarr.ome:output_letters"),
    chunked=True,
    libraries=("zarr", "numcodecs"),
    reads_urls=True,
    claims_also=names.claims,
    content=names.content,
    files=lambda path: (names.outermost(path),),
    written=lambda path: (names.outermost(path),),
    check_target=late("conv3d_cli.formats.zarr.store:check_store_target"),
    output_bytes=late("conv3d_cli.formats.zarr.format:output_bytes"),
    box_access=late("conv3d_cli.formats.zarr.format:box_access"),
)
_KEPT = late("conv3d_cli.formats.nifti.header:kept_facts")
NIFTI = replace(
    FORMAT,
    name="NIfTI-Zarr",
    suffixes=(".nii.zarr",),
    summary="OME-Zarr with a NIfTI header, which holds the affine",
    holds_affine=True,
    keeps=lambda path, header: FORMAT.keeps(path, header) | _KEPT(path, header),
    claims_also=names.is_nifti,
    content=late("conv3d_cli.formats.zarr.nifti:content"),
)
ZIP_SUFFIXES = (".ozx", ".ome.zarr.zip", ".zarr.zip")


def _is_zipped_store(start: Start) -> bool:
    """A zip file that is named so, or that begins with the metadata of a store."""
    named = start.path.lower().endswith(ZIP_SUFFIXES)
    metadata = (b"zarr.json", b".zgroup", b".zattrs", b".zarray")
    return start.begins(b"PK\3\4") and (named or any(word in start.head for word in metadata))


ZIP = replace(
    FORMAT,
    name="zipped OME-Zarr",
    suffixes=ZIP_SUFFIXES,
    summary="an OME-Zarr store in one zip file",
    reads_urls=False,
    signature=_is_zipped_store,
    claims_also=lambda path: names.archive_of(path) is not None,
    check_target=check_target,
)

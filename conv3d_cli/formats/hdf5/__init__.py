"""HDF5, and Imaris' files, which are HDF5: signatures, and the formats themselves."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.isolated import isolated
from conv3d_cli.formats.signatures import HDF5, Start


def is_imaris(start: Start) -> bool:
    """True if a file is HDF5 and is named .ims, or the names of its groups are Imaris'."""
    named = start.path.lower().endswith(".ims")
    return start.begins(HDF5) and (named or b"DataSetInfo" in start.head)


IMARIS = VolumeFormat(
    name="Imaris",
    suffixes=(".ims",),
    target_suffix=".ome.zarr",
    summary="images of Imaris 5.5, every level, channel and time point; only read",
    open=isolated("conv3d_cli.formats.hdf5.imaris:open_imaris", "the HDF5 library"),
    signature=is_imaris,
    has_parts=True,
)
FORMAT = VolumeFormat(
    name="HDF5",
    suffixes=(".h5", ".hdf5", ".hdf", ".he5"),
    summary="one dataset of an HDF5 file; axes as ilastik, voxel sizes as Fiji write them",
    open=isolated("conv3d_cli.formats.hdf5.format:open_hdf5", "the HDF5 library"),
    create=late("conv3d_cli.formats.hdf5.format:create_hdf5"),
    output_letters=late("conv3d_cli.formats.hdf5.format:output_letters"),
    signature=lambda start: start.begins(HDF5),
    holds_more=late("conv3d_cli.formats.hdf5.format:holds_more"),
    has_parts=True,
    kernels=False,  # of Keras, whose weights files have these suffixes
    libraries=("h5py",),
)

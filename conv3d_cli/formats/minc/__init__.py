"""MINC1, which is netCDF, and MINC2, which is HDF5: signatures, and the formats themselves."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.isolated import isolated
from conv3d_cli.formats.signatures import HDF5

_OPEN = "conv3d_cli.formats.minc.format:open_minc"

MINC1 = VolumeFormat(
    name="MINC1",
    suffixes=(".mnc",),
    target_suffix=".nii.gz",
    summary="volumes of MINC 1, with directions and ranges of slices; only read",
    open=late(_OPEN),
    signature=lambda start: start.begins(b"CDF\1", b"CDF\2") and b"space" in start.head,
)
MINC2 = VolumeFormat(
    name="MINC2",
    suffixes=(".mnc2",),
    target_suffix=".nii.gz",
    summary="volumes of MINC 2, with directions and ranges of slices; only read",
    open=isolated(_OPEN, "the HDF5 library"),
    signature=lambda start: start.begins(HDF5) and b"minc-2.0" in start.head,
    # the suffix is MINC1's, too
    claims_also=lambda path: path.lower().endswith(".mnc"),
)

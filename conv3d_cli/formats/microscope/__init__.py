"""Zeiss CZI, Nikon ND2 and Leica LIF, which are only read: signatures, and the formats."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.isolated import isolated

_ROOM = "conv3d_cli.formats.microscope"

CZI = VolumeFormat(
    name="Zeiss CZI",
    suffixes=(".czi",),
    target_suffix=".ome.tif",
    summary="scenes of Zeiss' microscopes, tiles put side by side; only read",
    open=late(f"{_ROOM}.czi:open_czi"),
    signature=lambda start: start.begins(b"ZISRAWFILE"),
    has_parts=True,
)
ND2 = VolumeFormat(
    name="Nikon ND2",
    suffixes=(".nd2",),
    target_suffix=".ome.tif",
    summary="positions of Nikon's microscopes; only read",
    open=isolated(f"{_ROOM}.nd2:open_nd2", "the nd2 library"),
    signature=lambda start: start.begins(b"\xda\xce\xbe\x0a"),
    has_parts=True,
)
LIF = VolumeFormat(
    name="Leica LIF",
    suffixes=(".lif",),
    target_suffix=".ome.tif",
    summary="images of Leica's microscopes; only read",
    open=late(f"{_ROOM}.lif:open_lif"),
    signature=lambda start: start.begins(b"\x70\0\0\0") and start.has(8, b"\x2a"),
    has_parts=True,
)

"""Analyze 7.5 and SPM's variants of it: signature, and the format itself."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.signatures import Start

DATATYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    128: "u1",
    130: "i1",
    132: "u2",
    136: "u4",
}
OTHER = {0: "unknown", 1: "one bit each", 32: "complex"}


def _is_half(path: str) -> bool:
    """True for the names of a pair, which every Analyze volume is."""
    return path.lower().removesuffix(".gz").endswith((".hdr", ".img"))


def byte_order(start: Start) -> str:
    """The byte order of a header, "little" or "big"; "" if it is not Analyze's.

    It has 348 bytes as NIfTI-1's, without the magic, and its rank and datatype must be possible.
    """
    if not _is_half(start.path):
        return ""
    for order in ("little", "big"):
        if (
            start.integer(0, order) == 348
            and not start.has(344, b"n+1\0", b"ni1\0")
            and 1 <= start.integer(40, order, 2) <= 7
            and start.integer(70, order, 2) in (*DATATYPES, *OTHER)
        ):
            return order
    return ""


FORMAT = VolumeFormat(
    name="Analyze",
    suffixes=(),  # those of NIfTI's pairs, which are what is written
    target_suffix=".nii.gz",
    summary="Analyze 7.5, SPM99 and SPM2: pairs .hdr/.img without NIfTI's magic; only read",
    open=late("conv3d_cli.formats.analyze.format:open_analyze"),
    signature=lambda start: byte_order(start) != "",
    reads_packed=True,
    claims_also=_is_half,
    files=late("conv3d_cli.formats.analyze.format:input_files"),
)

"""MRC and CCP4, the volumes of electron microscopy: signature, and the format itself."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late, one_extra_axis
from conv3d_cli.formats.signatures import Start

HEADER_BYTES = 1024
MODES = (0, 1, 2, 3, 4, 6, 12, 16, 101)
_PACKED = (".mrc.gz", ".map.gz", ".rec.gz")


def byte_order(start: Start) -> str:
    """The byte order of a header, "little" or "big"; "" if it is not MRC's.

    Its mode must be one, its sizes possible, and its axes a permutation of 1, 2, 3, or unset. So
    files from before the word MAP was added are recognized, too.
    """
    if len(start.head) < HEADER_BYTES:
        return ""
    for order in ("little", "big"):
        sizes = [start.integer(at, order) for at in (0, 4, 8)]
        axes = sorted(start.integer(at, order) for at in (64, 68, 72))
        known = axes == [1, 2, 3] or (axes == [0, 0, 0] and start.has(208, b"MAP"))
        if known and min(sizes) > 0 and start.integer(12, order) in MODES:
            return order
    return ""


FORMAT = VolumeFormat(
    name="MRC",
    suffixes=(*_PACKED, ".mrcs", ".mrc", ".rec", ".map", ".ccp4", ".st"),
    summary="MRC2014 and CCP4 maps of electron microscopy, packed or not; cell and origin are kept",
    open=late("conv3d_cli.formats.mrc.format:open_mrc"),
    create=late("conv3d_cli.formats.mrc.format:create_mrc"),
    output_letters=late("conv3d_cli.formats.mrc.format:output_letters"),
    signature=lambda start: byte_order(start) != "",
    reads_packed=True,
    names_axes=False,
    holds_history=False,
    holds_float64=False,
    holds_axes=one_extra_axis,
    keeps=late("conv3d_cli.formats.mrc.format:kept_facts"),
    streamed=lambda path, options: path.lower().endswith(_PACKED),
    libraries=("isal",),
)

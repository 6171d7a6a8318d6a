"""MGH and MGZ, the volumes of FreeSurfer: signature, and the format itself."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late, one_extra_axis, repeated
from conv3d_cli.formats.signatures import Start

HEADER_BYTES = 284
_PACKED = (".mgz", ".mgh.gz")


def is_mgh(start: Start) -> bool:
    """True if the first 284 bytes can be MGH's header: version 1, possible sizes and type."""
    sizes = [start.integer(at, "big") for at in (4, 8, 12, 16)]
    return (
        start.begins(b"\0\0\0\1")
        and len(start.head) >= HEADER_BYTES
        and min(sizes) > 0
        and 0 <= start.integer(20, "big") <= 10
        and start.has(28, b"\0\0", b"\0\1")
    )


FORMAT = VolumeFormat(
    name="MGH",
    suffixes=(*_PACKED, ".mgh"),
    summary="volumes of FreeSurfer, packed or not; directions, footer and tags are kept",
    open=late("conv3d_cli.formats.mgh.format:open_mgh"),
    create=late("conv3d_cli.formats.mgh.format:create_mgh"),
    output_letters=late("conv3d_cli.formats.mgh.format:output_letters"),
    signature=is_mgh,
    reads_packed=True,
    names_axes=False,
    holds_affine=True,
    keeps=lambda path, header: (
        frozenset({"time_step"} if header.facts.seconds and "t" in header.axes.letters else ())
        | repeated(header, "MGH")
    ),
    holds_history=False,
    holds_float64=False,
    holds_axes=one_extra_axis,
    streamed=lambda path, options: path.lower().endswith(_PACKED),
    libraries=("isal",),
)

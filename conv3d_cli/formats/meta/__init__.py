"""MetaImage of ITK: signature, and the format itself."""

from __future__ import annotations

import re

from conv3d_cli.formats.base import VolumeFormat, late, repeated

# the keys that a header may begin with, in any case
_FIRST = re.compile(
    rb"\s*(ObjectType|ObjectSubType|NDims|Comment|Name|ID|TransformType|FormTypeName)\s*[=:]", re.I
)

FORMAT = VolumeFormat(
    name="MetaImage",
    suffixes=(".mha", ".mhd"),
    summary="MetaImage of ITK, with voxels inside or beside; directions and channels are kept",
    open=late("conv3d_cli.formats.meta.format:open_meta"),
    create=late("conv3d_cli.formats.meta.format:create_meta"),
    output_letters=late("conv3d_cli.formats.meta.format:output_letters"),
    signature=lambda start: _FIRST.match(start.head) is not None and b"NDims" in start.head,
    holds_affine=True,
    keeps=lambda path, header: (
        frozenset({"time_step"} if header.grid.spacing else ()) | repeated(header, "MetaImage")
    ),
    compressions=("deflate",),
    libraries=("isal",),
    files=late("conv3d_cli.formats.meta.format:input_files"),
    written=late("conv3d_cli.formats.meta.format:output_names"),
)

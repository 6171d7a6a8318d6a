"""NRRD, attached and detached: header, axes, grid, and the format itself."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late, repeated

FORMAT = VolumeFormat(
    name="NRRD",
    suffixes=(".nrrd", ".nhdr"),
    summary=(
        "NRRD of raw or gzip voxels, and detached headers; "
        "space, units and key/value pairs are kept"
    ),
    open=late("conv3d_cli.formats.nrrd.format:open_nrrd"),
    create=late("conv3d_cli.formats.nrrd.format:create_nrrd"),
    keeps=lambda path, header: (
        frozenset({"name", "time_step", "channel_names", "channel_colors"})
        | repeated(header, "NRRD")
    ),
    output_letters=late("conv3d_cli.formats.nrrd.axes:output_letters"),
    signature=lambda start: start.begins(b"NRRD000"),
    holds_affine=True,
    compressions=("deflate",),
    libraries=("isal",),
    content=late("conv3d_cli.formats.nrrd.format:nrrd_content"),
    lost_meaning=late("conv3d_cli.formats.nrrd.format:lost_meaning"),
    files=late("conv3d_cli.formats.nrrd.format:input_files"),
    written=late("conv3d_cli.formats.nrrd.format:output_names"),
)

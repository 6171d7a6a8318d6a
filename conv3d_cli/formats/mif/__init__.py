"""MRtrix image formats: signature, and the format itself."""

from __future__ import annotations

from conv3d_cli.formats.base import VolumeFormat, late, repeated

FORMAT = VolumeFormat(
    name="MRtrix",
    suffixes=(".mif.gz", ".mif", ".mih"),
    summary="MRtrix images of one file or a header and its voxels; layout and entries are kept",
    open=late("conv3d_cli.formats.mif.format:open_mif"),
    create=late("conv3d_cli.formats.mif.format:create_mif"),
    output_letters=late("conv3d_cli.formats.mif.format:output_letters"),
    signature=lambda start: start.begins(b"mrtrix image"),
    reads_packed=True,
    names_axes=False,
    holds_affine=True,
    keeps=lambda path, header: (
        frozenset({"time_step"} if "t" in header.axes.letters else ()) | repeated(header, "MRtrix")
    ),
    holds_scale=True,
    streamed=lambda path, options: path.lower().endswith(".gz"),
    libraries=("isal",),
    files=late("conv3d_cli.formats.mif.format:input_files"),
    written=late("conv3d_cli.formats.mif.format:output_names"),
)

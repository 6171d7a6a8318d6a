"""NIfTI: header, grid, CIFTI files, and the format itself."""

from __future__ import annotations

import os

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.codecs import codec_named
from conv3d_cli.formats.signatures import Start


def is_nifti(start: Start, single: bool = False) -> bool:
    """True for the header of NIfTI-1 or NIfTI-2, by its size and its magic.

    single : bool       only of a file that holds its own voxels
    """
    for order in ("little", "big"):
        for size, at, version in ((348, 344, b"1"), (540, 4, b"2")):
            magics = [b"n+" + version + b"\0", b"ni" + version + b"\0"]
            if start.integer(0, order) == size and start.has(at, *magics[: 2 - single]):
                return True
    return False


def header_file(path: str) -> str:
    """The file with the header: of `.img`, the `.hdr` beside it, if it is there.

    >>> header_file("missing/a.img"), header_file("a.nii")
    ('missing/a.img', 'a.nii')
    """
    for suffix in (".img", ".img.gz"):
        if path.lower().endswith(suffix):
            stem, tail = path[: len(path) - len(suffix)], path[len(path) - len(suffix) + 4 :]
            word = ".HDR" if path[len(stem) :].isupper() else ".hdr"
            others = (stem + word + tail, stem + word + ("" if tail else ".gz"))
            return next((name for name in others if os.path.isfile(name)), path)
    return path


FORMAT = VolumeFormat(
    name="NIfTI",
    suffixes=(".nii.gz", ".nii.zst", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img"),
    summary=(
        "NIfTI-1 and NIfTI-2, compressed or not, and .hdr/.img pairs; "
        "affines, units and extensions are kept"
    ),
    open=late("conv3d_cli.formats.nifti.format:open_nifti"),
    create=late("conv3d_cli.formats.nifti.format:create_nifti"),
    output_letters=late("conv3d_cli.formats.nifti.header:output_letters"),
    signature=is_nifti,
    header_file=header_file,
    reads_packed=True,
    holds_affine=True,
    holds_scale=True,
    keeps=late("conv3d_cli.formats.nifti.header:kept_facts"),
    streamed=lambda path, options: codec_named(path) is not None,
    libraries=("nibabel", "isal"),
    lost_meaning=late("conv3d_cli.formats.nifti.header:lost_meaning"),
    content=late("conv3d_cli.formats.nifti.format:nifti_content"),
    files=late("conv3d_cli.formats.nifti.format:input_files"),
    written=late("conv3d_cli.formats.nifti.format:output_files"),
    check_target=late("conv3d_cli.formats.nifti.format:check_nifti_target"),
)

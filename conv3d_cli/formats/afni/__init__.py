"""AFNI's BRIK and HEAD: signature, and the format itself."""

from __future__ import annotations

import os
import re

from conv3d_cli.formats.base import VolumeFormat, late

_ATTRIBUTE = re.compile(rb"\s*type\s*=\s*(string|integer|float)-attribute\s+name\s*=", re.I)


def header_file(path: str) -> str:
    """The HEAD of a dataset, by the name of either file, if it is there.

    >>> header_file("a+orig.HEAD"), header_file("missing+orig.BRIK.gz")
    ('a+orig.HEAD', 'missing+orig.BRIK.gz')
    """
    match = re.fullmatch(r"(.*)\.(BRIK(\.gz)?)", path, re.I)
    if match is None:
        return path
    head = f"{match[1]}.{'head' if match[2].islower() else 'HEAD'}"
    return head if os.path.isfile(head) else path


FORMAT = VolumeFormat(
    name="AFNI",
    suffixes=(".head", ".brik.gz", ".brik"),
    target_suffix=".nii.gz",
    summary="datasets of AFNI, by the name of HEAD or BRIK; scales of sub-bricks; only read",
    open=late("conv3d_cli.formats.afni.format:open_afni"),
    signature=lambda start: _ATTRIBUTE.match(start.head) is not None,
    header_file=header_file,
    reads_packed=True,
    files=late("conv3d_cli.formats.afni.format:input_files"),
    written=late("conv3d_cli.formats.afni.format:input_files"),
)

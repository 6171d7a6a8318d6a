"""DICOM, series of one folder and files of many frames: signature, and the format itself."""

from __future__ import annotations

import os
import re

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.formats.signatures import Start, read_start
from conv3d_cli.system.parts import file_of

LOOKED_AT = 20  # files of a folder
_BARE = re.compile(r"[^.]+|.*\.\d+")  # names without a suffix, and those that are UIDs


def is_dicom(start: Start) -> bool:
    """With the preamble, or without it: then the first element is of group 2 or 8."""
    if start.has(128, b"DICM"):
        return True
    group, element = start.integer(0, "little", 2), start.integer(2, "little", 2)
    explicit = start.has(4, b"UL", b"UI", b"CS", b"SH", b"DA", b"TM", b"OB", b"LO")
    implicit = element == 0 and start.has(4, b"\x04\0\0\0")
    return group in (2, 8) and 0 <= element <= 0x20 and (explicit or implicit)


def is_dicom_file(path: str) -> bool:
    """True if a file is DICOM by its content."""
    start = read_start(path)
    return start is not None and start.codec is None and is_dicom(start)


def is_dicom_name(name: str) -> bool:
    """True for a folder most of whose files are DICOM, and for a DICOM file without a suffix."""
    path = file_of(name)
    if os.path.isdir(path):
        files = folder_files(path)[:LOOKED_AT]
        return 2 * sum(map(is_dicom_file, files)) > len(files)
    bare = _BARE.fullmatch(os.path.basename(path)) is not None
    return bare and os.path.isfile(path) and is_dicom_file(path)


def folder_files(folder: str) -> list[str]:
    """The files of a folder that may be of a series, by name: no hidden ones, and no DICOMDIR."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_file()]
    except OSError:
        return []
    return [os.path.join(folder, name) for name in sorted(names) if name.upper() != "DICOMDIR"]


FORMAT = VolumeFormat(
    name="DICOM",
    suffixes=(".dcm", ".dicom", ".ima"),
    target_suffix=".nii.gz",
    summary="a series of DICOM in one folder, or a file of many frames; only read",
    open=late("conv3d_cli.formats.dicom.format:open_dicom"),
    signature=is_dicom,
    files=late("conv3d_cli.formats.dicom.series:volume_files"),
    whole_files=True,
    has_parts=True,
    claims_also=is_dicom_name,
)

"""Philips' PAR and REC: signature, and the format itself."""

from __future__ import annotations

import os

from conv3d_cli.formats.base import VolumeFormat, late
from conv3d_cli.system.inputs import regular_file

MAGIC = b"# === DATA DESCRIPTION FILE"


def beside(path: str, suffix: str) -> str | None:
    """The file of this suffix with the stem of a path, in any case; None if there is none."""
    folder, name = os.path.split(path)
    wanted = os.path.splitext(name)[0] + suffix
    try:
        found = [entry for entry in os.listdir(folder or ".") if entry.lower() == wanted.lower()]
    except OSError:
        return None
    # one of the same case first
    found.sort(key=lambda entry: entry not in (wanted, wanted[: -len(suffix)] + suffix.upper()))
    return os.path.join(folder, found[0]) if found else None


def header_file(path: str) -> str:
    """The PAR of a volume, by the name of either file; the path itself if there is none.

    >>> header_file("a.PAR"), header_file("missing.rec")
    ('a.PAR', 'missing.rec')
    """
    return (beside(path, ".par") or path) if path.lower().endswith(".rec") else path


def _is_rec(path: str) -> bool:
    """True for a .rec beside a PAR: the suffix is MRC's, too."""
    head = header_file(path)
    if head == path:
        return False
    try:
        with open(head, "rb", opener=regular_file) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


FORMAT = VolumeFormat(
    name="PAR/REC",
    suffixes=(".par",),
    target_suffix=".nii.gz",
    summary="volumes of Philips scanners, by the name of PAR or REC; scales of slices; only read",
    open=late("conv3d_cli.formats.parrec.format:open_parrec"),
    signature=lambda start: start.begins(MAGIC),
    header_file=header_file,
    claims_also=_is_rec,
    files=late("conv3d_cli.formats.parrec.format:input_files"),
    written=late("conv3d_cli.formats.parrec.format:input_files"),
)

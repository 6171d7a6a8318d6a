"""Analyze 7.5 and the variants of SPM99 and SPM2: read only; NIfTI's pairs are written instead.

Source: "ANALYZE 7.5 File Format" (Mayo Clinic); SPM's fields as in nibabel's documentation.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Literal

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.analyze import DATATYPES, FORMAT, OTHER, byte_order
from conv3d_cli.formats.base import real_dtype
from conv3d_cli.formats.codecs import codec_within
from conv3d_cli.formats.nifti.format import input_files as pair_files
from conv3d_cli.formats.nifti.header import is_version
from conv3d_cli.formats.signatures import Start
from conv3d_cli.formats.stored import LARGEST, open_stored, read_head
from conv3d_cli.model.grid import Grid, affine_from_spacing, spacing_of_affine
from conv3d_cli.model.units import unit_name
from conv3d_cli.model.volume import Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.words import plain_text

LETTERS = "xyztcab"
SIDES = "Analyze does not say which side is left: x is taken to point to the left, as by SPM"


def input_files(path: str) -> tuple[str, ...]:
    """The header and the voxels. Raises: FormatError if one is missing."""
    return pair_files(path)


def open_analyze(
    path: str, *, axes: str | None = None, channels_first: bool = False
) -> VolumeReader:
    """Open a pair by the name of either file.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if a file is missing, truncated or damaged, or if its voxels are not real.
    """
    files = pair_files(path)
    head = read_head(files[0], 348)
    order = byte_order(Start(files[0], head))
    if len(files) != 2 or not order or len(head) < 348:
        raise FormatError(f"cannot read {files[0]}: truncated or damaged: no header of Analyze 7.5")
    sign: Literal["<", ">"] = "<" if order == "little" else ">"
    rank, *dims = struct.unpack_from(f"{sign}8h", head, 40)
    sizes = [*dims[:rank]]
    while len(sizes) > 3 and sizes[-1] in (0, 1):  # axes that are not used have 0 or 1
        sizes.pop()
    if len(sizes) < 2 or min(sizes) < 1:
        raise FormatError(
            f"cannot read {files[0]}: its header is damaged: an axis has at least 1 voxel, "
            f"dim is {tuple(dims[:rank])}"
        )
    code = struct.unpack_from(f"{sign}h", head, 70)[0]
    if code in OTHER:
        raise FormatError(
            f"cannot read {files[0]}: its voxels are {OTHER[code]} (datatype {code}); "
            "convert it to float32"
        )
    pixdim = struct.unpack_from(f"{sign}8f", head, 76)
    offset, slope, intercept = struct.unpack_from(f"{sign}3f", head, 108)
    if not math.isfinite(offset) or offset != int(offset) or abs(offset) > 1 << 40:
        raise FormatError(f"cannot read {files[0]}: its header is damaged: vox_offset {offset:g}")
    letters, shape = LETTERS[: len(sizes)][::-1], tuple(sizes[::-1])
    if code == 128:
        letters, shape = f"{letters}s", (*shape, 3)
    scaled = math.isfinite(slope) and slope != 0
    grid = Grid()
    if axes in (None, letters):
        grid = _read_grid(head, sign, sizes, pixdim, files[0])
    stored = np.dtype(DATATYPES[code]).newbyteorder(sign)
    volume = VolumeHeader(
        Axes(axes or letters, shape),
        real_dtype(stored, path),
        grid,
        (float(slope), float(intercept) if math.isfinite(intercept) else 0.0)
        if scaled and code != 128
        else (1.0, 0.0),
        format=FORMAT.name,
        facts=_read_facts(head),
    )
    # SPM: a negative offset counts for every volume, and its size is that of the first
    reader = open_stored(files[1], volume, stored, abs(int(offset)), codec_within(files[1]))
    notes = [SIDES]
    mat = os.path.splitext(files[0].removesuffix(".gz"))[0] + ".mat"
    if os.path.exists(mat):
        notes.append(f"{mat}, in which SPM keeps an orientation, is not read")
    reader.notes = (*reader.notes, *notes)
    return reader


def _read_facts(head: bytes) -> Facts:
    """The texts of the part `data_history` of the header, in words."""

    def text(at: int, size: int) -> str:
        found = head[at : at + size].partition(b"\0")[0].decode("latin-1").strip()
        return plain_text(found)[:40]

    description = text(148, 80)
    version = is_version(description)
    of_scan = [text(273, 10), text(283, 10), text(293, 10)]
    return Facts(
        dropped=tuple(
            f"{what} ({words})"
            for what, words in (
                ("the description", "" if version else description),
                ("the name of an auxiliary file", text(228, 24)),
            )
            if words
        ),
        provenance=(
            *((f"the program's version ({description})",) if version else ()),
            *(("the numbers of scan and patient",) if any(of_scan) else ()),
        ),
    )


def _read_grid(
    head: bytes, sign: str, sizes: list[int], pixdim: tuple[float, ...], path: str
) -> Grid:
    """The grid of the voxel sizes, and of SPM's origin; else the centre is the origin."""
    steps = [abs(pixdim[i + 1]) for i in range(3)]
    known = [0 < step <= LARGEST for step in steps]
    counts = [*sizes, 1, 1][:3]
    if not any(known):
        return Grid()
    for step, good, count in zip(steps, known, counts, strict=True):
        if not good and count > 1:
            raise FormatError(f"cannot read {path}: it has no voxel size: pixdim has {step:g}")
    steps = [step if good else 1.0 for step, good in zip(steps, known, strict=True)]
    origin = struct.unpack_from(f"{sign}3h", head, 253)
    inside = all(-n < at < 2 * n for at, n in zip(origin, counts, strict=True))
    centre = (
        [float(at - 1) for at in origin]
        if any(origin) and inside
        else [(n - 1) / 2 for n in counts]
    )
    affine = affine_from_spacing((steps[2], steps[1], steps[0]))
    affine[0, 0] *= -1
    affine[:3, 3] = -affine[:3, :3] @ centre
    unit = unit_name(head[56:60].decode("latin-1"))
    assumed = {"whd"[i] for i in range(3) if not known[i]} | (set() if unit else {"unit"})
    return Grid(spacing_of_affine(affine), unit or "mm", affine, assumed=frozenset(assumed))

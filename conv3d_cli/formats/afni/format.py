"""AFNI datasets: a text file HEAD with attributes, and voxels in BRIK or BRIK.gz; read only.

Each sub-brick may have a factor of its own. Coordinates in the file point to left, back and head.

Source: README.attributes of AFNI.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from conv3d_cli.errors import FormatError, setting
from conv3d_cli.formats.afni import FORMAT, header_file
from conv3d_cli.formats.base import entries_of
from conv3d_cli.formats.codecs import codec_within
from conv3d_cli.formats.stored import LARGEST, check_affine, open_stored, scaled_by
from conv3d_cli.model.grid import Grid, spacing_of_affine
from conv3d_cli.model.volume import Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.room import check_entries

MAX_HEADER_BYTES = 16 << 20  # tables of labels and warps are in it
# Attributes that the reader uses, that follow from the voxels, or that say how they are shown.
USED = frozenset(
    {
        "TYPESTRING",
        "SCENE_DATA",
        "LABEL_1",
        "LABEL_2",
        "DATASET_NAME",
        "ORIENT_SPECIFIC",
        "ORIGIN",
        "DELTA",
        "IJK_TO_DICOM",
        "IJK_TO_DICOM_REAL",
        "BRICK_STATS",
        "TAXIS_NUMS",
        "TAXIS_FLOATS",
        "DATASET_RANK",
        "DATASET_DIMENSIONS",
        "BRICK_TYPES",
        "BRICK_FLOAT_FACS",
        "BYTEORDER_STRING",
        "INT_CMAP",
    }
)
MADE = ("HISTORY_NOTE", "IDCODE_", "NOTE", "DATASET_KEYWORDS")
# an empty attribute, names such as #0~#1, times of 0, and the space of no template
NOTHING_SAID = re.compile(r"\s*|(#\d+|\?)([~; ]+(#\d+|\?))*[~; ]*|[-0.\s]+|ORIG")
TIME_UNITS = {77001: "ms", 77002: "s"}
TYPES = {0: "u1", 1: "i2", 2: "i4", 3: "f4", 4: "f8"}
_ATTRIBUTE = re.compile(
    r"type\s*=\s*(string|integer|float)-attribute\s+name\s*=\s*(\S+)\s+count\s*=\s*(\d+)\s", re.I
)


def read_attributes(path: str) -> dict[str, str]:
    """The attributes of a HEAD file, as texts. Raises: FormatError if it is not one."""
    if check_input(path) > MAX_HEADER_BYTES:
        raise FormatError(f"cannot read {path}: a HEAD file of AFNI is a text, this is too long")
    with open(path, "rb") as file:
        text = file.read().decode("latin-1")
    found: dict[str, str] = {}
    check_entries(text.lower().count("count"), path)
    matches = list(_ATTRIBUTE.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    for match, end in zip(matches, ends[: len(matches)], strict=True):
        value = text[match.end() : end]
        if match[1].lower() == "string":
            value = value.lstrip().removeprefix("'")[: int(match[3][:9])].rstrip("~\0 \n")
        found[match[2]] = value.strip()
    if "DATASET_DIMENSIONS" not in found:
        raise FormatError(f"cannot read {path}: not a HEAD file of AFNI, or damaged")
    return found


def _numbers(found: Mapping[str, str], name: str, path: str, least: int) -> list[float]:
    """The numbers of an attribute; [] if it is missing. Raises: FormatError."""
    words = found.get(name, "").split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if words and (len(values) < least or not all(abs(value) <= 1e38 for value in values)):
        raise FormatError(
            f"cannot read {path}: its {name} must be {least} numbers or more, "
            f"received '{' '.join(words)[:60]}'"
        )
    return values


def input_files(path: str) -> tuple[str, ...]:
    """The header and the voxels. Raises: FormatError if one is missing."""
    head = header_file(path)
    if re.search(r"\.brik(\.gz)?$", head, re.I):
        check_input(path)
        raise FormatError(f"cannot read {path}: its HEAD must be in the same folder")
    stem, word = head[:-5], ".brik" if head[-5:].islower() else ".BRIK"
    for brik in (stem + word, f"{stem}{word}.gz"):
        if os.path.exists(brik):
            return head, brik
    hint = "; unpack it: uncompress" if os.path.exists(f"{stem}{word}.Z") else ""
    check_input(head)
    raise FormatError(f"cannot read {path}: there is no file {stem}{word}{hint}")


def open_afni(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a dataset by the name of either file.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if a file is missing, truncated or damaged.
    """
    head, brik = input_files(path)
    found = read_attributes(head)
    dims = [int(n) for n in _numbers(found, "DATASET_DIMENSIONS", head, 3)[:3]]
    ranks = _numbers(found, "DATASET_RANK", head, 2)
    count = int(ranks[1]) if ranks else 1
    if len(dims) < 3 or min(*dims, count) < 1:
        raise FormatError(
            f"cannot read {head}: damaged: its dimensions are {dims}, of {count} sub-bricks"
        )
    codes = {int(code) for code in _numbers(found, "BRICK_TYPES", head, 1)} or {1}
    if len(codes) > 1 or not codes <= set(TYPES):
        raise FormatError(
            f"cannot read {head}: its sub-bricks have the types {sorted(codes)}; one type of "
            "0 to 4 is read; convert it: 3dcalc -datum float"
        )
    order = ">" if found.get("BYTEORDER_STRING", "").startswith("MSB") else "<"
    stored = np.dtype(TYPES[codes.pop()]).newbyteorder(order)  # type: ignore[arg-type]
    shape = (count, *dims[::-1]) if count > 1 else tuple(dims[::-1])
    own = "tzyx"[-len(shape) :]
    grid = _read_grid(found, head) if axes in (None, own) else Grid()
    volume = VolumeHeader(
        Axes(axes or own, shape),
        stored.newbyteorder("="),
        grid,
        format=FORMAT.name,
        facts=_read_facts(found, count),
    )
    reader = open_stored(brik, volume, stored, 0, codec_within(brik))
    try:
        return _with_factors(reader, found, head, count, axes in (None, own))
    except BaseException:
        reader.close()
        raise


def _read_facts(found: Mapping[str, str], count: int) -> Facts:
    """The time step, and the attributes that say more than voxels and their place."""
    names = [
        name
        for name, value in found.items()
        if name not in USED and not NOTHING_SAID.fullmatch(value)
    ]
    made = [name for name in names if name.startswith(MADE)]
    words = entries_of("the attributes", [name for name in names if name not in made])
    return Facts(
        time_step=_time_step(found) if count > 1 else None,
        dropped=words,
        provenance=entries_of("the attributes", made),
    )


def _time_step(found: Mapping[str, str]) -> tuple[float, str] | None:
    """The step between sub-bricks in time and its unit; None if they are no series in time."""
    try:
        step = float(found.get("TAXIS_FLOATS", "").split()[1])
        unit = TIME_UNITS.get(int(found.get("TAXIS_NUMS", "").split()[2]), "")
    except (IndexError, ValueError):
        return None
    return (step, unit) if 0 < step < LARGEST else None


def _with_factors(
    reader: VolumeReader, found: Mapping[str, str], head: str, count: int, natural: bool
) -> VolumeReader:
    """A reader of scaled values: a factor of 0 stands for 1. Raises: FormatError."""
    factors = _numbers(found, "BRICK_FLOAT_FACS", head, 1)
    slopes = np.array([factor or 1.0 for factor in factors[:count]] or [1.0])
    if len(slopes) not in (1, count):
        raise FormatError(
            f"cannot read {head}: damaged: {len(slopes)} factors of {count} sub-bricks"
        )
    if len(set(slopes.tolist())) > 1 and not natural:
        raise FormatError(
            f"cannot read {head}: its sub-bricks have factors of their own: leave out "
            f"{setting('axes')}"
        )
    return scaled_by(reader, slopes[:, None], np.zeros((1, 1)))


def _read_grid(found: Mapping[str, str], head: str) -> Grid:
    """The grid of the matrix of a dataset, or of its origin, steps and orientation."""
    affine = np.eye(4)
    matrix = _numbers(found, "IJK_TO_DICOM_REAL", head, 12)
    if matrix:
        affine[:3] = np.reshape(matrix[:12], (3, 4))
    else:
        origin, steps = (_numbers(found, name, head, 3) for name in ("ORIGIN", "DELTA"))
        sides = [int(code) for code in _numbers(found, "ORIENT_SPECIFIC", head, 3)]
        if not (origin and steps and sides) or sorted(code // 2 for code in sides) != [0, 1, 2]:
            return Grid()
        affine[:3, :3] = 0
        for axis, code in enumerate(sides):  # 0: from right to left, 2: from back to front ...
            affine[code // 2, axis], affine[code // 2, 3] = steps[axis], origin[axis]
    affine[:2] *= -1
    affine += 0.0
    check_affine(affine, lambda text: FormatError(f"cannot read {head}: {text}"))
    return Grid(spacing_of_affine(affine), "mm", affine, anatomical=True)

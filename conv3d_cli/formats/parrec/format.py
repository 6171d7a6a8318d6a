"""PAR/REC of Philips, read only: nibabel reads the header, a text; the voxels are raw slices.

Values are those on the scanner's console (DV): each slice has a slope and an intercept of its own.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import RawReader, library_errors
from conv3d_cli.formats.parrec import FORMAT, beside, header_file
from conv3d_cli.formats.planes import PlaneReader
from conv3d_cli.formats.stored import check_affine, scaled_by
from conv3d_cli.model.grid import Grid, spacing_of_affine
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input

MAX_HEADER_BYTES = 16 << 20  # 200 bytes for each slice of each volume
DYNAMICS = "dynamic scan number"
SCALING = "values are those of the scanner's console (DV), not its floating-point values (FP)"
TRUNCATED = ("Header inconsistency", "partial volume")


def input_files(path: str) -> tuple[str, ...]:
    """The header and the voxels. Raises: FormatError if one is missing."""
    head = header_file(path)
    check_input(head)
    voxels = beside(head, ".rec")
    if voxels is None:
        raise FormatError(
            f"cannot read {head}: its voxels are missing: there is no .REC of its name beside it"
        )
    return head, voxels


def open_parrec(
    path: str, *, axes: str | None = None, channels_first: bool = False
) -> VolumeReader:
    """Open a volume by the name of either file.

    axes : str or None      the file's axis letters, zyx or tzyx
    Raises: FormatError if a file is missing, truncated or damaged, or has not one grid.
    """
    head, voxels = input_files(path)
    header = _read_header(head)
    with library_errors(head, FORMAT.name):
        shape = tuple(map(int, header.get_data_shape()))[::-1]
        order = np.asarray(header.get_sorted_slice_indices(), int)
        slopes, intercepts = (
            np.broadcast_to(part, shape[::-1]).T[..., 0, 0] for part in header.get_data_scaling()
        )
        affine = np.asarray(header.get_affine(), float)
        stored = np.dtype(header.get_data_dtype())
        count = len(header.image_defs)
        varying = [key for key in header.get_volume_labels() if key != DYNAMICS]
        weighted = np.any(np.asarray(header.general_info.get("diffusion", 0)) != 0)
    letters = "tzyx"[-len(shape) :]
    if axes not in (None, letters):
        raise FormatError(f"cannot read {path}: {FORMAT.name} has the axes {letters}, not {axes}")
    if not np.isfinite([slopes, intercepts]).all():
        raise FormatError(f"cannot read {head}: damaged: a slope or intercept is no number")
    check_affine(affine, lambda text: FormatError(f"cannot read {head}: {text}"))
    notes = [SCALING]
    if varying:
        notes.append(
            f"its {shape[0]} volumes differ in {' and '.join(varying)}: they are read along t, in "
            "the order of the file"
        )
    volume = VolumeHeader(
        Axes(letters, shape),
        stored.newbyteorder("="),
        Grid(spacing_of_affine(affine), "mm", affine, anatomical=True),
        format=FORMAT.name,
        facts=Facts(
            name=str(header.general_info.get("protocol_name", ""))[:200].strip(),
            time_step=None if varying or letters == "zyx" else _time_step(header),
            others=("b-values and directions",) if weighted else (),
        ),
    )
    slices = VolumeHeader(Axes("zyx", (count, *shape[-2:])), volume.dtype)
    file = open(voxels, "rb")  # noqa: SIM115 - the reader closes it
    try:
        raw = RawReader(file, slices, voxels, stored, 0)
    except BaseException:
        file.close()
        raise
    depth, height, width = shape[-3:]

    def fetch(n: int, plane: int, channel: int) -> Array:
        place = int(order[n * depth + plane])
        whole = slice(0, height), slice(0, width)
        return raw.read_box(0, slice(place, place + 1), *whole, slice(0, 1))[0, ..., 0]

    held = raw.box_access().buffer_bytes + height * width * stored.itemsize
    reader = PlaneReader(path, volume, fetch, held, close_files=raw.close)
    reader.notes = tuple(notes)
    return scaled_by(reader, slopes.reshape(-1, depth), intercepts.reshape(-1, depth))


def _read_header(path: str) -> Any:
    """nibabel's header of a PAR file. Raises: FormatError."""
    from nibabel.parrec import PARRECError, PARRECHeader, parse_PAR_header

    if check_input(path) > MAX_HEADER_BYTES:
        raise FormatError(f"cannot read {path}: a PAR file is a text, this is too long")
    with library_errors(path, FORMAT.name), open(path, "rb") as file:
        text = io.StringIO(file.read().decode("utf-8", "replace"))
        general, slices = parse_PAR_header(text)
        if int(general["max_slices"]) > len(slices):  # nibabel makes a set of so many
            raise FormatError(
                f"cannot read {path}: truncated: it lists {len(slices)} slices, and a volume has "
                f"{general['max_slices']}; export it again"
            )
        try:
            return PARRECHeader(general, slices)
        except PARRECError as error:
            words = " ".join(str(error).split())
            cut = any(word in words for word in TRUNCATED)
            raise FormatError(
                f"cannot read {path}: "
                + (f"truncated: {words}; export it again" if cut else f"it is not read: {words}")
            ) from None


def _time_step(header: Any) -> tuple[float, str] | None:
    """The repetition time of dynamic scans, in seconds; None if there are several, or none."""
    times = np.atleast_1d(header.general_info.get("repetition_time", 0.0)).tolist()
    if not header.general_info.get("dyn_scan") or len(times) != 1 or not 0 < times[0] < 1e12:
        return None
    return float(f"{times[0] / 1000:.12g}"), "s"

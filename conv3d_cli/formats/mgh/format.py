"""MGH and MGZ, the volumes of FreeSurfer.

A header of 284 bytes, big-endian voxels with x fastest, frames slowest, and a footer with the
repetition time and tags. An output from MGH keeps the footer. `.mgz` is the same in a gzip stream.

Source: FreeSurfer's wiki, "MghFormat".
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats.base import DEFAULT_OPTIONS, OutputOptions, entries_of
from conv3d_cli.formats.codecs import codec_named, codec_within
from conv3d_cli.formats.mgh import FORMAT, HEADER_BYTES
from conv3d_cli.formats.nifti.header import surface_notes
from conv3d_cli.formats.packed import READ_BYTES, PackedReader
from conv3d_cli.formats.stored import (
    LARGEST,
    Storage,
    check_affine,
    create_stored,
    grid_in,
    lost_notes,
    open_stored,
    read_head,
    storable,
)
from conv3d_cli.model.grid import Grid, spacing_of_affine
from conv3d_cli.model.volume import SPATIAL, Axes, Facts, VolumeHeader, VolumeReader, VolumeWriter

FIELDS = struct.Struct(">7i h 15f")
MAX_FOOTER = 16 << 20  # tags hold command lines and tables of colours
FOOTER_NUMBERS = 20  # bytes of the times below, and of the field of view
TIMES = ("repetition time", "flip angle", "echo time", "inversion time")
COMMAND = "command lines"
# The tags of a footer; a tag is followed by the length of its content in 8 bytes.
# Source: FreeSurfer's utils/tags.h and tags.cpp
TAGS = {
    **{1: "table of colours", 5: "table of colours", 3: COMMAND, 31: "transform", 30: "transform"},
    **{32: "surface area of a group", 33: "automatic alignment", 40: "scalar"},
    **{41: "direction of phase encoding", 42: "parameters of frames", 43: "field strength"},
    **{2: "real coordinates", 4: "real coordinates", 44: "original geometry"},
}
BEHIND = "what may stand behind its packed voxels (times, transforms, command lines)"
WITHOUT_LENGTH, OLD_TRANSFORM = (1, 2, 20), 30
TYPES = {0: np.uint8, 1: np.int32, 3: np.float32, 4: np.int16, 10: np.uint16}
OTHER_TYPES = {2: "long", 5: "bitmap", 6: "tensor", 7: "complex", 8: "complex", 9: "RGB"}
# FreeSurfer before version 7 and nibabel do not know the type of uint16
WRITTEN = {np.dtype(TYPES[code]): code for code in (0, 4, 1, 3)}


@dataclass(eq=False)
class MghSource:
    """What a volume keeps of its MGH file for an output in MGH.

    dof : int           degrees of freedom
    footer : bytes      repetition time, flip angle, times, and tags; of a packed file it is known
                        when all voxels have been read
    """

    dof: int
    footer: bytes = b""

    @property
    def time_step(self) -> tuple[float, str] | None:
        """The repetition time, which the footer begins with, in ms; None if it has none."""
        if len(self.footer) < 4:
            return None
        step = float(struct.unpack_from(">f", self.footer)[0])
        return (step / 1000, "s") if 0 < step < LARGEST else None

    @property
    def entries(self) -> list[str]:
        """Names of what the footer holds: times that are not 0, and tags, as far as it is whole."""
        times = struct.unpack(f">{len(TIMES)}f", self.footer[: 4 * len(TIMES)].ljust(16, b"\0"))
        found = [name for name, value in zip(TIMES, times, strict=True) if value]
        at = FOOTER_NUMBERS
        while len(self.footer) >= at + 4:
            (tag,) = struct.unpack_from(">i", self.footer, at)
            if tag == 0:
                break
            found.append(TAGS.get(tag, f"tag {tag}"))
            width = dict.fromkeys(WITHOUT_LENGTH, 0).get(tag, 4 if tag == OLD_TRANSFORM else 8)
            length = self.footer[at + 4 : at + 4 + width]
            if not width or len(length) < width:
                break
            at += 4 + width + max(0, int.from_bytes(length, "big", signed=True))
        return list(dict.fromkeys(found))


# --------------------------------------------------------------------------------------------------
# Reading


def open_mgh(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open an MGH file, packed by gzip or not.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if it is missing, truncated or damaged.
    """
    head = read_head(path, HEADER_BYTES)
    codec = codec_within(path)
    if len(head) < HEADER_BYTES:
        raise FormatError(
            f"cannot read {path}: truncated: a header has {HEADER_BYTES} bytes, the file "
            f"{len(head)}"
        )
    version, width, height, depth, frames, code, dof, good, *numbers = FIELDS.unpack_from(head)
    if version != 1:
        raise FormatError(
            f"cannot read {path}: not an MGH file: it begins with the version, 1, "
            f"received {version}"
        )
    sizes = (frames, depth, height, width)
    if min(sizes) < 1:
        raise FormatError(
            f"cannot read {path}: its header is damaged: an axis has at least 1 voxel, "
            f"its sizes are {sizes[::-1]}"
        )
    if code not in TYPES:
        name = OTHER_TYPES.get(code, "unknown")
        raise FormatError(
            f"cannot read {path}: its type {code} ({name}) is not read; "
            "convert it: mri_convert -odt float"
        )
    stored = np.dtype(TYPES[code]).newbyteorder(">")
    shown = sizes if frames > 1 else sizes[1:]
    volume_axes = Axes(axes or "tzyx"[-len(shown) :], shown)
    grid = Grid()
    if good > 0 and volume_axes.letters.endswith("zyx"):
        grid = _read_grid(numbers, (width, height, depth), path)
    source = MghSource(dof)
    if codec is None:
        with open(path, "rb") as file:
            file.seek(HEADER_BYTES + math.prod(sizes) * stored.itemsize)
            source.footer = file.read(MAX_FOOTER)
    step = source.time_step if frames > 1 else None
    entries = source.entries
    made = [name for name in entries if name == COMMAND]
    kept = [n for n in entries if n != COMMAND and not (step is not None and n == TIMES[0])]
    header = VolumeHeader(
        volume_axes,
        stored.newbyteorder("="),
        grid,
        format=FORMAT.name,
        metadata=source,
        facts=Facts(
            time_step=step,
            others=entries_of("the footer's", kept),
            provenance=entries_of("the footer's", made) if codec is None else (BEHIND,),
        ),
    )
    reader = open_stored(path, header, stored, HEADER_BYTES, codec)
    if isinstance(reader, PackedReader):
        reader = _FooterReader(reader, source, HEADER_BYTES + header.nbytes)
    if axes is None:
        reader.notes = (*reader.notes, *surface_notes(sizes[:0:-1]))
    if good <= 0:
        reader.notes = (
            *reader.notes,
            "its header says that its voxel sizes and directions are unknown (goodRASFlag 0): they "
            "are left out, where FreeSurfer takes 1 mm and coronal slices",
        )
    return reader


class _FooterReader(PackedReader):
    """A packed reader that keeps the footer when it comes to it."""

    def __init__(self, reader: PackedReader, source: MghSource, end: int) -> None:
        super().__init__(reader.stream, reader.header, reader.stored, HEADER_BYTES)
        self._source, self._end = source, end

    def finish(self) -> None:
        if self.stream.position <= self._end:
            self.stream.skip_to(self._end)
            footer = b""
            while len(footer) < MAX_FOOTER and (data := self.stream.read(READ_BYTES)):
                footer += data
            self._source.footer = footer
        if self.header.axes.size("t") > 1 and (step := self._source.time_step):
            self.notes = (
                *self.notes,
                f"its time step, {step[0]:g} s, stands behind the packed voxels: an output of "
                "another format has none; unpack the file first",
            )
        super().finish()


def _read_grid(numbers: list[float], sizes: tuple[int, int, int], path: str) -> Grid:
    """The grid of a header's voxel sizes, directions, and the position of the centre."""
    affine = np.eye(4)
    with np.errstate(invalid="ignore", over="ignore"):  # refused below
        affine[:3, :3] = np.reshape(numbers[3:12], (3, 3)).T * numbers[:3]
        affine[:3, 3] = np.array(numbers[12:15]) - affine[:3, :3] @ (np.array(sizes) / 2)
    check_affine(affine, lambda text: FormatError(f"cannot read {path}: {text}"))
    return Grid(spacing_of_affine(affine), "mm", affine, anatomical=True)


# --------------------------------------------------------------------------------------------------
# Writing


def output_letters(letters: str, channels: int, dtype: object = None) -> str:
    """Everything but space first, then z, y, x.

    >>> output_letters("xyz", 1), output_letters("zyxc", 2), output_letters("tzyx", 1)
    ('zyx', 'czyx', 'tzyx')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + "cs")
    channel = "c" if channels > 1 or "c" in letters or "s" in letters else ""
    return batch + channel + "zyx"


def create_mgh(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start an MGH file; `.mgz` is packed.

    Raises: OutputExistsError; WriteError for a dtype that MGH does not have.
    """
    stored, notes = storable(header.dtype, list(WRITTEN), FORMAT.name, path)
    count, depth, height, width, channels = header.shape
    if min(header.shape) < 1:
        raise WriteError(f"cannot write {path}: MGH holds no empty volume, shape {header.shape}")
    source = header.metadata if isinstance(header.metadata, MghSource) else None
    _, affine = grid_in(header.grid, "mm")
    numbers = [1.0, 1, 1, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0]  # FreeSurfer's default
    if affine is not None:
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        centre = affine[:3, :3] @ (np.array([width, height, depth]) / 2) + affine[:3, 3]
        numbers = [*steps, *(affine[:3, :3] / steps).T.ravel(), *centre]
    fields = (
        *(1, width, height, depth, count * channels, WRITTEN[stored]),
        *(0 if source is None else source.dof, int(affine is not None)),
    )
    step = 1000 * (header.facts.seconds or 0.0)
    prefix = FIELDS.pack(*fields, *numbers).ljust(HEADER_BYTES, b"\0")
    storage = Storage(
        stored.newbyteorder(">"),
        prefix,
        # repetition time, flip angle, echo and inversion time, field of view
        lambda: (source is not None and source.footer) or struct.pack(">f", step).ljust(20, b"\0"),
    )
    codec = codec_named(".gz") if path.lower().endswith((".mgz", ".gz")) else None
    writer = create_stored(path, header, storage, codec, overwrite, options)
    writer.notes = (*writer.notes, *notes, *lost_notes(header, FORMAT))
    return writer

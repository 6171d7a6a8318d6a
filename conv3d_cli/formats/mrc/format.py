"""MRC2014 and CCP4: `.mrc`, `.mrcs`, `.map`, `.rec` and others, packed by gzip or not.

A header of 1024 bytes, an extended header, and voxels in one piece, of either byte order. Lengths
are in Angstrom in the file and in nm in `Grid`. MAPC, MAPR and MAPS say which axis is the fastest.

Source: Cheng et al., "MRC2014: Extensions to the MRC format header", and its page at CCP-EM.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conv3d_cli.errors import FormatError, WriteError, setting
from conv3d_cli.formats.base import DEFAULT_OPTIONS, OutputOptions, entries_of, real_dtype
from conv3d_cli.formats.codecs import codec_named, codec_within
from conv3d_cli.formats.mrc import FORMAT, HEADER_BYTES, byte_order
from conv3d_cli.formats.signatures import Start
from conv3d_cli.formats.stored import (
    LARGEST,
    Storage,
    TailedWriter,
    check_affine,
    create_stored,
    grid_in,
    lost_notes,
    lost_place,
    open_stored,
    read_head,
    storable,
)
from conv3d_cli.model.grid import Grid, spacing_of_affine
from conv3d_cli.model.volume import (
    SPATIAL,
    Array,
    Axes,
    Facts,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
)
from conv3d_cli.system.atomic import write_errors
from conv3d_cli.system.words import plain_text

MAX_EXTENDED = 64 << 20
MAX_LABELS = 10
EXTENDED = "the extended header"
ANGSTROM = 0.1  # nm
TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 16: "u1"}
OTHER = {3: "complex", 4: "complex", 101: "4 bits each"}
WRITTEN = {np.dtype(TYPES[mode]): mode for mode in (0, 1, 6, 12, 2)}
IMAGES, VOLUMES = 0, 401  # space groups of a stack of images, and of a stack of volumes
IMOD_STAMP = 1146047817  # IMOD's bytes are unsigned unless a flag says otherwise
MIN_MAX_MEAN, RMS = 76, 216  # bytes of the header


@dataclass(frozen=True, eq=False)
class MrcSource:
    """What a volume keeps of its MRC file for an output in MRC.

    shape : tuple       of the file
    kind, extended : bytes      the extended header, and the word that says what it is
    labels : bytes      the count of labels, and the labels
    """

    shape: tuple[int, ...]
    kind: bytes
    extended: bytes
    labels: bytes


def open_mrc(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open an MRC or CCP4 file.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if it is missing, truncated or damaged, or if its voxels are not real.
    """
    head = read_head(path, HEADER_BYTES)
    codec = codec_within(path)
    order = byte_order(Start(path, head, codec))
    if not order:
        short = f"; it has {len(head)} bytes" if len(head) < HEADER_BYTES else ""
        raise FormatError(
            f"cannot read {path}: not an MRC file, or damaged: sizes, mode and axes of its header "
            f"of {HEADER_BYTES} bytes are not possible{short}"
        )
    sign: Literal["<", ">"] = "<" if order == "little" else ">"
    words = struct.unpack_from(f"{sign}10i6f3i3f2i", head)
    nx, ny, nz, mode = words[:4]
    intervals, cell = words[7:10], words[10:16]
    ordered = words[16:19] if any(words[16:19]) else (1, 2, 3)
    group, extended = words[22:24]
    if mode in OTHER:
        raise FormatError(
            f"cannot read {path}: its voxels are {OTHER[mode]} (mode {mode}); "
            "convert it to mode 2: newstack -mode 2"
        )
    if not 0 <= extended <= 1 << 40:
        raise FormatError(f"cannot read {path}: damaged: its extended header has {extended} bytes")
    stored = np.dtype(TYPES[mode]).newbyteorder(sign)
    stamp, flags = struct.unpack_from(f"{sign}2i", head, 152)
    if mode == 0 and stamp == IMOD_STAMP and not flags & 1:
        stored = np.dtype(np.uint8)
    letters = "".join("xyz"[axis - 1] for axis in reversed(ordered))
    shape: tuple[int, ...] = (nz, ny, nx)
    depth = intervals["xyz".index(letters[0])]
    notes = []
    if group >= VOLUMES and 0 < depth < nz and nz % depth == 0:
        letters, shape = f"t{letters}", (nz // depth, depth, ny, nx)
    elif group == IMAGES and letters == "zyx" and depth <= 1 < nz:
        letters = "tyx"
    elif group == IMAGES and nz > 1 and letters == "zyx":
        notes.append(
            "its space group 0 says that it is a stack of images: they are read as planes of a "
            f"volume; {setting('axes', 'tyx')} reads them as images of their own"
        )
    if mode == 16:
        letters, shape = f"{letters}s", (*shape, 3)
    volume_axes = Axes(axes or letters, shape)
    natural = axes is None or axes == letters
    grid = Grid()
    if all(a not in volume_axes.letters or natural or a in letters for a in SPATIAL):
        grid, more = _read_grid(head, sign, intervals, cell, ordered, path)
        notes += more
    source = None
    if natural and extended <= MAX_EXTENDED:
        whole = read_head(path, HEADER_BYTES + extended)
        source = MrcSource(shape, head[104:108], whole[HEADER_BYTES:], head[220:])
    header = VolumeHeader(
        volume_axes,
        real_dtype(stored, path),
        grid,
        format=FORMAT.name,
        file_dtype=stored,
        metadata=source,
        facts=_read_facts(head, sign, extended),
    )
    reader = open_stored(path, header, stored, HEADER_BYTES + extended, codec)
    reader.notes = (*reader.notes, *notes)
    return reader


def _read_facts(head: bytes, sign: str, extended: int) -> Facts:
    """The labels, lines of text, and the extended header, such as tilt angles, in words."""
    count = min(max(struct.unpack_from(f"{sign}i", head, 220)[0], 0), MAX_LABELS)
    lines = (head[224 + 80 * k : 304 + 80 * k] for k in range(count))
    labels = [plain_text(line.decode("latin-1").strip("\0 ")) for line in lines]
    kind = head[104:108].decode("latin-1").strip("\0 ")
    named = f" ({plain_text(kind)})" if kind else ""
    return Facts(
        others=(f"{EXTENDED}{named}",) if extended else (),
        provenance=entries_of("the labels", [label for label in labels if label]),
    )


def kept_facts(path: str, header: VolumeHeader) -> frozenset[str]:
    """What of `Facts` an output holds: all from MRC; the extended header if no size has changed."""
    source = header.metadata if isinstance(header.metadata, MrcSource) else None
    if source is None:
        return frozenset()
    others = header.facts.others if source.shape == header.axes.shape else ()
    return frozenset((*others, *header.facts.provenance))


def _read_grid(
    head: bytes,
    sign: str,
    intervals: tuple[int, ...],
    cell: tuple[float, ...],
    ordered: tuple[int, ...],
    path: str,
) -> tuple[Grid, list[str]]:
    """The grid of a header, in nm, and notes. Empty without a cell.

    The position is ORIGIN; where that is 0, the start of the voxels in the cell, as in ChimeraX.
    """
    lengths, angles = cell[:3], cell[3:]
    if not all(0 < n <= LARGEST for n in lengths) or min(intervals) < 1:
        return Grid(), [] if not any(lengths) else ["its cell has no meaning: it is left out"]
    steps = [length / n * ANGSTROM for length, n in zip(lengths, intervals, strict=True)]
    affine = np.eye(4)
    cosines = [math.cos(math.radians(angle)) if angle else 0.0 for angle in angles]
    if all(0 < angle < 180 or angle == 0 for angle in angles):
        alpha, beta, gamma = (c if abs(c) > 1e-7 else 0.0 for c in cosines)
        sine = math.sqrt(1 - gamma**2)
        up = (alpha - beta * gamma) / sine
        affine[:3, 1] = [gamma, sine, 0, 0][:3]
        affine[:3, 2] = [beta, up, math.sqrt(max(0.0, 1 - beta**2 - up**2))]
    affine[:3, :3] *= steps
    origin = np.array(struct.unpack_from(f"{sign}3f", head, 196), float) * ANGSTROM
    if not (np.abs(origin) <= LARGEST).all():
        origin[:] = 0
    starts = dict(zip(ordered, struct.unpack_from(f"{sign}3i", head, 16), strict=True))
    if not origin.any():
        origin = affine[:3, :3] @ np.array([starts[axis] for axis in (1, 2, 3)], float)
    affine[:3, 3] = origin
    check_affine(affine, lambda text: FormatError(f"cannot read {path}: {text}"))
    return Grid(spacing_of_affine(affine), "nm", affine), []


# --------------------------------------------------------------------------------------------------
# Writing


def output_letters(letters: str, channels: int, dtype: object = None) -> str:
    """Everything but space first, then z, y, x.

    >>> output_letters("xyz", 1), output_letters("zyxc", 2), output_letters("tyx", 1)
    ('zyx', 'czyx', 'tyx')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + "cs")
    channel = "c" if channels > 1 or "c" in letters or "s" in letters else ""
    return batch + channel + "".join(a for a in SPATIAL if a in letters)


class _MrcWriter(TailedWriter):
    """A writer that writes the range of its values into the header: viewers take it for grey."""

    _low, _high = math.inf, -math.inf

    def write_box(
        self, n: int, starts: tuple[int, int, int], channel_start: int, block: Array
    ) -> None:
        if block.size:
            low, high = float(np.fmin.reduce(block, None)), float(np.fmax.reduce(block, None))
            self._low, self._high = np.fmin(self._low, low), np.fmax(self._high, high)
        super().write_box(n, starts, channel_start, block)

    def commit(self) -> None:
        if math.isfinite(self._low) and math.isfinite(self._high):
            # a mean below the minimum says that it is not known
            values = struct.pack("<3f", self._low, self._high, min(self._low, 0.0) * 2 - 1)
            with write_errors(self.path):
                self.patch(values, MIN_MAX_MEAN)
        super().commit()


def create_mrc(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start an MRC file, little-endian, of the year 2014.

    Raises: OutputExistsError; WriteError for a dtype that MRC does not have.
    """
    if math.prod(header.shape) == 0:
        raise WriteError(f"cannot write {path}: MRC holds no empty volume, shape {header.shape}")
    stored, notes = storable(header.dtype, list(WRITTEN), FORMAT.name, path)
    source = header.metadata if isinstance(header.metadata, MrcSource) else None
    kept = source if source is not None and source.shape == header.axes.shape else None
    prefix = _header_bytes(header, WRITTEN[stored], source, kept)
    storage = Storage(
        stored.newbyteorder("<"), prefix + (b"" if kept is None else kept.extended), raw=_MrcWriter
    )
    codec = codec_named(path)
    writer = create_stored(path, header, storage, codec, overwrite, options)
    lost = (*lost_place(header.grid, FORMAT.name, origin=True), *lost_notes(header, FORMAT))
    writer.notes = (*writer.notes, *notes, *lost)
    return writer


def _header_bytes(
    header: VolumeHeader, mode: int, source: MrcSource | None, kept: MrcSource | None
) -> bytes:
    count, depth, height, width, channels = header.shape
    stack = count * channels
    images = "z" not in header.axes.letters
    group = IMAGES if images else VOLUMES if stack > 1 else 1
    intervals = (width, height, 1 if images else depth)
    spacing, affine = grid_in(header.grid, "nm")
    cell, origin = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    if spacing is not None and affine is not None:
        d, h, w = (step / ANGSTROM for step in spacing)
        cell = (w * width, h * height, d * intervals[2])
        x, y, z = (float(at) / ANGSTROM for at in affine[:3, 3])
        origin = (x, y, z)
    head = bytearray(HEADER_BYTES)
    struct.pack_into("<4i", head, 0, width, height, depth * stack, mode)
    struct.pack_into("<3i6f3i", head, 28, *intervals, *cell, 90, 90, 90, 1, 2, 3)
    extended = 0 if kept is None else len(kept.extended)
    # the range, mean and deviation of values that are not known: MRC2014, notes 5 and 6
    struct.pack_into("<3f2i", head, MIN_MAX_MEAN, 0, -1, -2, group, extended)
    head[104:108] = bytes(4) if kept is None else kept.kind
    struct.pack_into("<i", head, 108, 20140)
    struct.pack_into("<3f4s4sf", head, 196, *origin, b"MAP ", b"\x44\x44\0\0", -1)
    if source is not None:
        head[220:] = source.labels
    return bytes(head)

"""Voxels in one piece behind a header, packed or not: what simple formats share.

The formats describe the voxels; this module opens and creates them, so that each of them streams
and holds no more memory than the slab that is asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError, setting
from conv3d_cli.formats.base import (
    OutputOptions,
    PairWriter,
    RawReader,
    RawWriter,
    VolumeFormat,
    reserve_space,
)
from conv3d_cli.formats.codecs import Codec, codec_within
from conv3d_cli.formats.packed import PackedStream, PackedWriter, open_packed
from conv3d_cli.model.grid import Affine, Grid, affine_from_spacing, spacing_of_affine
from conv3d_cli.model.units import UNITS
from conv3d_cli.model.volume import (
    Array,
    BoxAccess,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
)
from conv3d_cli.system.atomic import OutputFile, output_file, write_errors
from conv3d_cli.system.inputs import check_input, lies_beside
from conv3d_cli.system.portable import write_at

LARGEST = 1e38  # allowed magnitude of numbers, so that lengths do not overflow


# --------------------------------------------------------------------------------------------------
# Reading


def read_head(path: str, count: int) -> bytes:
    """The first bytes of a file, unpacked if it is a compressed stream.

    Raises: FormatError if it is missing, empty or damaged.
    """
    check_input(path)
    codec = codec_within(path)
    if codec is None:
        with open(path, "rb") as file:
            return file.read(count)
    with PackedStream(path, codec) as stream:
        data = bytearray(count)
        return bytes(data[: stream.fill(memoryview(data))])


def open_stored(
    path: str,
    header: VolumeHeader,
    stored: np.dtype[Any],
    offset: int,
    codec: Codec | None = None,
    start: int = 0,
) -> VolumeReader:
    """A reader of the voxels of a file.

    stored : numpy dtype    of the voxels in the file, in either byte order
    offset : int            bytes before the first voxel, of the unpacked stream if it is packed
    codec : Codec or None   of the stream
    start : int             bytes of the file before the stream
    Raises: FormatError if the file is too short for what its header promises.
    """
    size = check_input(path)
    promised = offset + math.prod(header.axes.shape) * stored.itemsize
    if codec is None:
        file = open(path, "rb")  # noqa: SIM115 - the reader closes it
        try:
            return RawReader(file, header, path, stored, offset)
        except BaseException:
            file.close()
            raise
    if promised > max(0, size - start) * codec.largest_inflation:
        raise FormatError(
            f"cannot read {path}: truncated or damaged: its header promises {promised} bytes "
            f"(shape {header.axes.shape}, {stored}), more than {size} packed bytes can hold"
        )
    return open_packed(PackedStream(path, codec, start), header, stored, offset)


def beside(path: str, name: str, what: str) -> str:
    """The path of a file that a header names: in the header's folder or below it.

    path : str      of the header
    name : str      as the header gives it
    what : str      of the header that names it, for messages: "ElementDataFile"
    A link counts by where it leads; see `lies_beside`.
    Raises: FormatError for a file outside the folder.
    """
    shown = name if len(name) <= 80 else f"{name[:80]}..."
    if not name or "\0" in name:
        raise FormatError(f"cannot read {path}: its '{what}' names no file")
    folder = os.path.dirname(path)
    found = os.path.join(folder, name)
    if not lies_beside(found, path):
        raise FormatError(
            f"cannot read {path}: its '{what}' names {shown}, which is outside the file's folder "
            "and is not followed; put both files into one folder"
        )
    return found


class ScaledReader(VolumeReader):
    """Values of a reader whose planes or volumes have scales of their own; float32 or float64.

    slopes, intercepts : (N, D) arrays      for each volume and plane; both may have size 1
    """

    def __init__(self, reader: VolumeReader, slopes: Array, intercepts: Array) -> None:
        self._reader = reader
        count, depth = reader.header.shape[:2]
        self._slopes = np.broadcast_to(slopes, (count, depth))
        self._intercepts = np.broadcast_to(intercepts, (count, depth))
        wide = reader.header.dtype.itemsize > 2 and reader.header.dtype != np.float32
        dtype = np.dtype(np.float64 if wide else np.float32)
        self.header = replace(reader.header, dtype=dtype)
        self.path, self.notes = reader.path, reader.notes
        self.sequential, self.channels_together = reader.sequential, reader.channels_together

    def _scaled(self, block: Array, n: int, depth: slice) -> Array:
        shape = (-1, 1, 1, 1)
        # values too large for the dtype become infinite
        with np.errstate(over="ignore", invalid="ignore"):
            values: Array = block * self._slopes[n, depth].reshape(shape)
            values += self._intercepts[n, depth].reshape(shape)
            return values.astype(self.header.dtype, copy=False)

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        return self._scaled(self._reader.read(n, depth, channels), n, depth)

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        return self._scaled(self._reader.read_box(n, depth, rows, columns, channels), n, depth)

    def box_access(self) -> BoxAccess | None:
        return self._reader.box_access()

    def release(self, n: int, depth_stop: int) -> None:
        self._reader.release(n, depth_stop)

    def buffer_bytes(self, planes: int, channels: int) -> int:
        _, _, height, width, _ = self.header.shape  # the stored voxels, and float64
        voxels = planes * height * width * channels
        return self._reader.buffer_bytes(planes, channels) + voxels * 16

    def storage(self) -> dict[str, str]:
        return self._reader.storage()

    def finish(self) -> None:
        self._reader.finish()

    def close(self) -> None:
        self._reader.close()


def scaled_by(reader: VolumeReader, slopes: Array, intercepts: Array) -> VolumeReader:
    """A reader with these scales: that of its header if all are equal, else a `ScaledReader`."""
    pairs = {(float(a), float(b)) for a, b in np.broadcast(slopes, intercepts)}
    if len(pairs) == 1:
        reader.header = replace(reader.header, scale=pairs.pop())
        return reader
    return ScaledReader(reader, slopes, intercepts)


# --------------------------------------------------------------------------------------------------
# Writing


class TailedWriter(RawWriter):
    """A `RawWriter` with bytes after the voxels, or voxels wider than the header's.

    tail : callable     () -> bytes after the voxels, called by `commit`
    """

    def __init__(
        self,
        output: OutputFile,
        header: VolumeHeader,
        path: str,
        offset: int,
        stored: np.dtype[Any],
        tail: Callable[[], bytes],
    ) -> None:
        super().__init__(output, header, path, offset, stored)
        self._end = offset + math.prod(header.axes.shape) * stored.itemsize
        self._tail = tail
        with write_errors(path):
            reserve_space(output.file, self._end)

    def patch(self, data: bytes, at: int) -> None:
        """Write bytes at a place of the file. Raises: OSError."""
        write_at(self.output.file, memoryview(data), at)

    def commit(self) -> None:
        with write_errors(self.path):
            write_at(self.output.file, memoryview(self._tail()), self._end)
        super().commit()


@dataclass(frozen=True)
class Storage:
    """How an output is stored.

    stored : numpy dtype        of the voxels in the file
    prefix : bytes              before them in their file
    tail : callable             () -> bytes after them, called by `commit`
    head : (str, bytes) or None     the name and content of a header file of its own
    raw : class                 of the writer of voxels that are not packed
    """

    stored: np.dtype[Any]
    prefix: bytes = b""
    tail: Callable[[], bytes] = bytes
    head: tuple[str, bytes] | None = None
    raw: type[TailedWriter] = TailedWriter


def create_stored(
    path: str,
    header: VolumeHeader,
    storage: Storage,
    codec: Codec | None,
    overwrite: bool,
    options: OutputOptions,
) -> VolumeWriter:
    """Start an output whose voxels are in one piece.

    path : str      of the file with the voxels
    Raises: OutputExistsError; WriteError.
    """
    opened = [output_file(path, overwrite)]
    try:
        if storage.head is not None:
            opened.append(output_file(storage.head[0], overwrite, is_header=True))
            with write_errors(storage.head[0]):
                write_at(opened[1].file, memoryview(storage.head[1]), 0)
        writer: VolumeWriter
        if codec is not None:
            writer = PackedWriter(
                opened[0],
                header,
                path,
                storage.prefix,
                storage.stored,
                codec,
                options.gz_level,
                options.threads,
                storage.tail,
            )
        else:
            with write_errors(path):
                write_at(opened[0].file, memoryview(storage.prefix), 0)
            writer = storage.raw(
                opened[0], header, path, len(storage.prefix), storage.stored, storage.tail
            )
        return PairWriter(writer, opened[1]) if storage.head is not None else writer
    except BaseException:
        for output in opened:
            output.abort()
        raise


def storable(
    dtype: np.dtype[Any], choices: Sequence[Any], format_name: str, path: str
) -> tuple[np.dtype[Any], tuple[str, ...]]:
    """The dtype that stores voxels without loss, and a note if it is a wider one.

    choices : dtypes        of the format
    Raises: WriteError if the format has none.
    >>> storable(np.dtype("u2"), ["u1", "i2", "i4"], "MGH", "a.mgh")
    (dtype('int32'), ('MGH has no uint16: stored as int32',))
    """
    own = [np.dtype(choice) for choice in choices]
    if dtype in own:
        return dtype, ()
    for choice in sorted(own, key=lambda one: (one.itemsize, one.kind != "u")):
        if (choice.kind in "ui") == (dtype.kind in "bui") and np.can_cast(dtype, choice, "safe"):
            return choice, (f"{format_name} has no {dtype.name}: stored as {choice.name}",)
    raise WriteError(
        f"cannot write {path}: {format_name} has no {dtype.name}; pass "
        f"{setting('dtype', 'float32')}"
    )


def lost_notes(header: VolumeHeader, target: VolumeFormat) -> tuple[str, ...]:
    """Notes on what an output's format does not hold: the history."""
    lost = header.history and not target.holds_history
    return (
        (
            f"{target.name} holds no history: it is left out; {setting('sidecar', True)} writes it "
            "to a sidecar",
        )
        if lost
        else ()
    )


def grid_in(grid: Grid, unit: str) -> tuple[tuple[float, float, float] | None, Affine | None]:
    """Spacing (D, H, W) and affine of a grid in another unit; without a unit, as they are.

    An affine comes from the spacing if the grid has none. Both are None if the grid is empty.
    """
    if grid.spacing is None:
        return None, None
    factor = 1.0 if grid.unit is None else UNITS[grid.unit] / UNITS[unit]
    d, h, w = (float(f"{s * factor:.15g}") if factor != 1 else s for s in grid.spacing)
    if grid.affine is None:
        return (d, h, w), affine_from_spacing((d, h, w))
    return (d, h, w), np.diag([factor, factor, factor, 1.0]) @ grid.affine


def lost_place(grid: Grid, name: str, origin: bool) -> tuple[str, ...]:
    """A note on what a format without an affine loses of a grid; () if that is nothing.

    name : str      of the format, for the note
    origin : bool   the format holds the place of the first voxel

    >>> grid = Grid((2.0, 2.0, 2.0), "mm", affine_from_spacing((2, 2, 2), (9, 0, 0)))
    >>> lost_place(grid, "MRC", origin=True), lost_place(Grid(), "HDF5", origin=False)
    ((), ())
    >>> lost_place(grid, "HDF5", origin=False)
    ('HDF5 holds voxel spacing but no origin, rotation or flip: they are left out',)
    """
    if grid.spacing is None or grid.affine is None:
        return ()
    plain = affine_from_spacing(grid.spacing)
    if origin:
        plain[:3, 3] = grid.affine[:3, 3]
    if np.abs(grid.affine - plain).max() <= 1e-6 * max(grid.spacing):
        return ()
    if origin:
        return (
            f"{name} holds voxel spacing and origin but no rotation or flip: they are left out",
        )
    return (f"{name} holds voxel spacing but no origin, rotation or flip: they are left out",)


def check_affine(affine: Affine, error: Callable[[str], Exception]) -> None:
    """Raise an error for an affine that is not finite, or that spans no volume."""
    spans = (np.abs(affine) <= LARGEST).all() and min(spacing_of_affine(affine)) > 0
    if not spans or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise error(f"its affine has no meaning: rows {affine[:3].tolist()}")

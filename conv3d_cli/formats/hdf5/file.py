"""HDF5 files of strangers: only what lies in the file itself, and its datasets chunk by chunk.

Links inside a file are followed. Links to other files, voxels stored in other files, and virtual
datasets are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import library_errors, real_dtype
from conv3d_cli.model.volume import SPATIAL, Array, BoxAccess, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input

MAX_OBJECTS = 100_000  # groups and datasets that are looked at
MAX_LINKS = 40  # soft links on the way to one dataset
MAX_TEXT = 64 << 10  # bytes of an attribute that is read as text
ROW_BYTES = 256 << 20  # of a row of chunks that is kept decoded, at most
LIBRARY_BYTES = 2 << 20  # HDF5's own buffers


def open_file(path: str) -> Any:
    """Open a file for reading, as an h5py.File that the caller closes.

    Raises: FormatError if it is missing or damaged, or if h5py is not installed.
    """
    check_input(path)
    try:
        import h5py
    except ImportError as error:
        raise FormatError(
            f"cannot read {path}: HDF5 needs the package h5py: pip install 'conv3d[hdf5]'"
        ) from error
    with library_errors(path, "HDF5"):
        # without HDF5's cache, whose many small pieces of memory are not given back
        return h5py.File(path, "r", rdcc_nbytes=0)


# --------------------------------------------------------------------------------------------------
# Groups and datasets


def find(file: Any, name: str, path: str) -> Any:
    """The group or dataset at NAME/NAME/...; None if there is none.

    Raises: FormatError for a link to another file.
    """
    import h5py

    parts = [part for part in name.split("/") if part not in ("", ".")][::-1]
    thing, group, links = file["/"], file["/"], 0
    while parts:
        part = parts.pop()
        group = thing
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise FormatError(
                f"cannot read {path}: its '{part[:40]}' is a link to another file, "
                f"{str(link.filename)[:80]}, which is not followed; name that file"
            )
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > MAX_LINKS:
                return None
            inner = str(link.path)
            thing = file["/"] if inner.startswith("/") else group
            parts += [piece for piece in inner.split("/") if piece not in ("", ".")][::-1]
        else:
            thing = group[part]
    return thing


def datasets(file: Any, path: str) -> dict[str, Any]:
    """All datasets of numbers by name, links left out; each once. Raises: FormatError."""
    import h5py

    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", file["/"])]
    while waiting:
        name, group = waiting.pop()
        inner = []
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            thing = group[key]
            address = h5py.h5o.get_info(thing.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > MAX_OBJECTS:
                raise FormatError(f"cannot read {path}: it holds more than {MAX_OBJECTS} objects")
            whole = f"{name}/{key}" if name else key
            if isinstance(thing, h5py.Group):
                inner.append((whole, thing))
            elif isinstance(thing, h5py.Dataset) and thing.shape is not None:
                found[whole] = thing
        waiting += inner[::-1]
    return found


def check_dataset(dataset: Any, name: str, path: str) -> np.dtype[Any]:
    """The dtype of a dataset that can be read here.

    Raises: FormatError if its values are no real numbers, lie in other files, or are packed in a
    way that is not installed.
    """
    import h5py

    if dataset.external or dataset.is_virtual:
        raise FormatError(
            f"cannot read {path}: the voxels of {name} lie in other files, which are not read; "
            "copy the dataset into one file"
        )
    stored: np.dtype[Any] = dataset.dtype
    real_dtype(stored, path)
    stored = np.dtype(stored.str)  # h5py's own has the names of an enumeration, too
    created = dataset.id.get_create_plist()
    for number in range(created.get_nfilters()):
        code, *_, label = created.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            with suppress(ImportError):
                import hdf5plugin  # noqa: F401 - it registers filters
        if not h5py.h5z.filter_avail(code):
            shown = label.decode("ascii", "replace")[:40] if label else "unknown"
            raise FormatError(
                f"cannot read {path}: {name} is packed by HDF5 filter {code} ({shown}), which "
                "h5py does not have: pip install hdf5plugin"
            )
    return stored


def text_of(value: Any) -> str:
    """An attribute as text: of a string, bytes, or an array of characters as Imaris writes it.

    >>> text_of(np.array([b"1", b"2"])), text_of(b"um"), text_of(None)
    ('12', 'um', '')
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "S" and value.nbytes <= MAX_TEXT:
        value = b"".join(value.ravel().tolist())
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip("\0 ")
    return str(value) if isinstance(value, str | int | float | np.generic) else ""


def attribute(thing: Any, name: str) -> Any:
    """An attribute; None if it is missing, larger than any that is used, or cannot be read."""
    try:
        stored = thing.attrs.get_id(name)
        count = math.prod(stored.shape or ())
        if count * stored.dtype.itemsize > MAX_TEXT or (stored.dtype.kind == "O" and count > 64):
            return None
        return thing.attrs[name]
    except Exception:  # of a type that h5py does not know
        return None


# --------------------------------------------------------------------------------------------------
# Voxels


class ChunkedReader(VolumeReader):
    """A reader of datasets that HDF5 decodes chunk by chunk.

    A subclass says in `part` where the voxels are. Planes come from rows of whole chunks, of which
    the last one is kept decoded, unless it is too large.

    file : h5py.File        closed by the reader
    chunk : dict            size of a chunk along each axis of `header.axes`; 1 of voxels in a row
    stored : numpy dtype    of the voxels in the file
    """

    def __init__(
        self,
        path: str,
        header: VolumeHeader,
        file: Any,
        chunk: dict[str, int],
        stored: np.dtype[Any],
    ) -> None:
        self.path, self.header = path, header
        self._file, self._chunk, self._stored = file, chunk, stored
        self.channels_together = any(chunk.get(a, 1) > 1 for a in header.axes.channel_letters)
        self._row: tuple[Any, Array] | None = None  # (n, row, channels), and its voxels

    def part(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        """Stored voxels of a box, (d, h, w, c), in any dtype."""
        raise NotImplementedError

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        _, planes, height, width, _ = self.header.shape
        deep = self._chunk.get("z", 1)
        if deep == 1 or self._row_bytes(channels.stop - channels.start) > ROW_BYTES:
            return self.read_box(n, depth, slice(0, height), slice(0, width), channels)
        blocks = []
        for row in range(depth.start // deep, -(-depth.stop // deep)):
            held = slice(row * deep, min((row + 1) * deep, planes))
            which = (n, row, channels.start, channels.stop)
            if self._row is None or self._row[0] != which:
                self._row = None  # one at a time
                whole = (slice(0, height), slice(0, width))
                self._row = (which, self.read_box(n, held, *whole, channels))
            first = max(depth.start, held.start) - held.start
            block = self._row[1][first : min(depth.stop, held.stop) - held.start]
            blocks.append(block.copy())
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        with library_errors(self.path, "HDF5"):
            block = self.part(n, depth, rows, columns, channels)
            return np.asarray(block, self.header.dtype)

    def _row_bytes(self, channels: int) -> int:
        """Bytes of a row of chunks, stored, and handed out if that is another dtype."""
        _, planes, height, width, _ = self.header.shape
        itemsize = self._stored.itemsize
        if self._stored != self.header.dtype:
            itemsize += self.header.dtype.itemsize
        return min(self._chunk.get("z", 1), planes) * height * width * channels * itemsize

    def _held(self) -> int:
        """Bytes of a chunk, packed and unpacked, and of the library."""
        return 3 * math.prod(self._chunk.values()) * self._stored.itemsize + LIBRARY_BYTES

    def box_access(self) -> BoxAccess:
        depth, height, width = (self._chunk.get(a, 1) for a in SPATIAL)
        return BoxAccess((depth, height, width), self._held())

    def buffer_bytes(self, planes: int, channels: int) -> int:
        _, _, height, width, _ = self.header.shape
        block = planes * height * width * channels
        row = self._row_bytes(channels)
        if self._chunk.get("z", 1) == 1 or row > ROW_BYTES:
            row = 0
        return self._held() + row + block * (self._stored.itemsize + self.header.dtype.itemsize)

    def close(self) -> None:
        self._row = None
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
            self._file = None


def chunk_of(dataset: Any, letters: Sequence[str]) -> dict[str, int]:
    """The size of a dataset's chunks along its axes; 1 if it is in one piece."""
    return dict(zip(letters, map(int, dataset.chunks or [1] * len(letters)), strict=True))


def gaps_note(dataset: Any, name: str) -> str:
    """A note if voxels of a dataset were never written, and are read as its fill value; else ""."""
    if dataset.chunks is None:
        if dataset.size and not dataset.id.get_storage_size():
            return f"{name} was never written: it is read as its fill value, {dataset.fillvalue}"
        return ""
    whole = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    written = int(dataset.id.get_num_chunks())
    if written >= whole:
        return ""
    return (
        f"{whole - written} of the {whole} chunks of {name} were never written: "
        f"they are read as its fill value, {dataset.fillvalue}"
    )

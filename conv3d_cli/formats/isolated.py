"""Volumes whose library may crash or loop on a damaged file: a process of its own reads them.

The process opens the file by the format's own reader and keeps it open. This one asks it for
blocks, whose bytes come through a pipe without being copied again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from conv3d_cli.formats.base import OpenVolume
from conv3d_cli.model.volume import Array, BoxAccess, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.isolated import PIPE_BYTES, PROCESS_BYTES, Isolated, bounded_memory
from conv3d_cli.system.parts import file_of

# What the process may allocate: to open a file, and besides what is counted for a block.
OPENING_BYTES, SPARE_BYTES = 96 << 20, 16 << 20


@dataclass(frozen=True)
class _Opened:
    """What a process tells of the reader that it opened."""

    path: str
    header: VolumeHeader
    notes: tuple[str, ...]
    losses: tuple[str, ...]
    sequential: bool
    channels_together: bool
    access: BoxAccess | None


def isolated(opener: str, library: str) -> OpenVolume:
    """An `OpenVolume` whose reader is in a process of its own.

    opener : str        "package.module:function", of the reader
    library : str       that it calls, for messages
    """

    def call(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
        return IsolatedReader(opener, library, path, axes, channels_first)

    return call


class IsolatedReader(VolumeReader):
    """A reader in another process; arguments as for `isolated`.

    Raises: the opener's errors, and FormatError if the library crashes or does not finish.
    """

    def __init__(
        self, opener: str, library: str, path: str, axes: str | None, channels_first: bool
    ) -> None:
        check_input(file_of(path))  # a missing file needs no process
        self._process = Isolated(file_of(path), library)
        try:
            found: _Opened = self._ask(_open, opener, path, axes, channels_first)
        except BaseException:
            self._process.close()
            raise
        self.path, self.header = found.path, found.header
        self.notes, self.losses = found.notes, found.losses
        self._told = {*found.notes, *found.losses}
        self.sequential, self.channels_together = found.sequential, found.channels_together
        self._access = found.access
        self._buffers = lru_cache(None)(lambda *blocks: int(self._ask(_buffer_bytes, *blocks)))

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._process.call(f"{__name__}:{function.__name__}", *arguments)

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        return _placed(*self._ask(_read, n, depth, channels))

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        return _placed(*self._ask(_read_box, n, depth, rows, columns, channels))

    def box_access(self) -> BoxAccess | None:
        if self._access is None:
            return None
        return BoxAccess(self._access.unit, self._access.buffer_bytes + PROCESS_BYTES + PIPE_BYTES)

    def buffer_bytes(self, planes: int, channels: int) -> int:
        _, _, height, width, _ = self.header.shape
        block = planes * height * width * channels * self.header.dtype.itemsize
        # the process itself, and its copy of the block that it sends
        return self._buffers(planes, channels) + PROCESS_BYTES + PIPE_BYTES + block

    def storage(self) -> dict[str, str]:
        found: dict[str, str] = self._ask(_storage)
        return found

    def finish(self) -> None:
        notes, losses = self._ask(_finish)
        # whoever opened it may have added some, or left some out
        self.notes = (*self.notes, *(note for note in notes if note not in self._told))
        self.losses = (*self.losses, *(loss for loss in losses if loss not in self._told))
        self._told |= {*notes, *losses}

    def close(self) -> None:
        self._process.close()


def _placed(block: Array, order: tuple[int, ...]) -> Array:
    """Undo `_as_stored`."""
    return block.transpose(np.argsort(order))


# --------------------------------------------------------------------------------------------------
# In the process, which has one reader

_reader: VolumeReader


def _open(opener: str, path: str, axes: str | None, channels_first: bool) -> _Opened:
    global _reader
    module, _, name = opener.partition(":")
    function = getattr(import_module(module), name)
    with bounded_memory(OPENING_BYTES, path):
        _reader = found = function(path, axes=axes, channels_first=channels_first)
    return _Opened(
        found.path,
        found.header,
        found.notes,
        found.losses,
        found.sequential,
        found.channels_together,
        found.box_access(),
    )


def _read(n: int, depth: slice, channels: slice) -> tuple[Array, tuple[int, ...]]:
    _, _, height, width, _ = _reader.header.shape
    with _accounted(depth, slice(0, height), slice(0, width), channels):
        return _as_stored(_reader.read(n, depth, channels))


def _read_box(
    n: int, depth: slice, rows: slice, columns: slice, channels: slice
) -> tuple[Array, tuple[int, ...]]:
    with _accounted(depth, rows, columns, channels):
        return _as_stored(_reader.read_box(n, depth, rows, columns, channels))


def _accounted(depth: slice, rows: slice, columns: slice, channels: slice) -> Any:
    """A context in which a block takes no more memory than is counted for it."""
    sizes = [part.stop - part.start for part in (depth, rows, columns, channels)]
    block = math.prod(sizes) * _reader.header.dtype.itemsize
    buffers = _reader.buffer_bytes(sizes[0], sizes[3])
    return bounded_memory(buffers + 2 * block + SPARE_BYTES, _reader.path)


def _as_stored(block: Array) -> tuple[Array, tuple[int, ...]]:
    """A block with its axes in the order of memory, so that its bytes are in one piece."""
    order = tuple(sorted(range(block.ndim), key=lambda i: -block.strides[i]))
    return np.ascontiguousarray(block.transpose(order)), order


def _buffer_bytes(planes: int, channels: int) -> int:
    return _reader.buffer_bytes(planes, channels)


def _storage() -> dict[str, str]:
    return _reader.storage()


def _finish() -> tuple[tuple[str, ...], tuple[str, ...]]:
    _reader.finish()
    return _reader.notes, _reader.losses

"""The volumes of an iteration, in memory or in a temporary file, as loops read and write them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.step import address_of
from conv3d_cli.errors import FormatError
from conv3d_cli.model.box import Span
from conv3d_cli.model.spec import Triple

Array = NDArray[Any]


class Lent(NamedTuple):
    """Rows of planes that the loops may read and write.

    address : int           of the first voxel of the first row
    planes : sequence       bytes from there to each plane
    row : int               bytes from one row to the next
    keep : array            what owns the memory
    """

    address: int
    planes: Sequence[int]
    row: int
    keep: Array


class Field:
    """A volume (D, H, W) in memory, of the arithmetic's dtype.

    >>> Field(np.zeros((2, 3, 4), np.float32)).lend([1], (1, 3)).planes
    [48]
    """

    steady = True  # lends the same memory every time

    def __init__(self, voxels: Array) -> None:
        self.voxels = voxels

    def lend(self, planes: Sequence[int], rows: Span, fresh: bool = False) -> Lent:
        """The rows of some planes; `give_back` stores what was changed.

        fresh : bool        all of them are going to be written
        """
        step, row, _ = self.voxels.strides
        first = address_of(self.voxels) + rows[0] * row
        return Lent(first, [d * step for d in planes], row, self.voxels)

    def give_back(self, lent: Lent, planes: Sequence[int], rows: Span) -> None:
        """Store the rows of planes that were lent."""

    def read(self, start: int, stop: int) -> Array:
        """Planes start to stop - 1, (d, H, W); a view."""
        return self.voxels[start:stop]

    def write(self, start: int, planes: Array) -> None:
        """Store whole planes, (d, H, W)."""
        self.voxels[start : start + len(planes)] = planes

    def rows(self, plane: int, rows: Span) -> Array:
        """Rows of a plane, (h, W); `put_rows` stores what was changed."""
        return self.voxels[plane, rows[0] : rows[1]]

    def put_rows(self, plane: int, rows: Span, values: Array) -> None:
        """Store the rows of a plane that `rows` gave."""

    def close(self) -> None:
        """Let go of the voxels."""
        self.voxels = np.empty((0, 0, 0), self.voxels.dtype)


class FileField(Field):
    """A volume in a file of its own, which `close` closes.

    file : binary file      without content; a temporary file without a name
    size : (D, H, W)
    Raises: OSError if there is no room.
    """

    steady = False

    def __init__(self, file: BinaryIO, size: Triple, real: np.dtype[Any]) -> None:
        self.file, self.size, self.real = file, size, real
        self.row_bytes = size[2] * real.itemsize
        self.plane_bytes = size[1] * self.row_bytes
        self.lock = threading.Lock()
        file.truncate(size[0] * self.plane_bytes)

    def lend(self, planes: Sequence[int], rows: Span, fresh: bool = False) -> Lent:
        count = rows[1] - rows[0]
        voxels = np.empty((len(planes), count, self.size[2]), self.real)
        if not fresh:
            for place, d in enumerate(planes):
                self._read(voxels[place], d * self.plane_bytes + rows[0] * self.row_bytes)
        step, row, _ = voxels.strides
        return Lent(address_of(voxels), [n * step for n in range(len(planes))], row, voxels)

    def give_back(self, lent: Lent, planes: Sequence[int], rows: Span) -> None:
        for place, d in enumerate(planes):
            self._write(lent.keep[place], d * self.plane_bytes + rows[0] * self.row_bytes)

    def read(self, start: int, stop: int) -> Array:
        voxels = np.empty((stop - start, *self.size[1:]), self.real)
        self._read(voxels, start * self.plane_bytes)
        return voxels

    def write(self, start: int, planes: Array) -> None:
        self._write(np.ascontiguousarray(planes, self.real), start * self.plane_bytes)

    def rows(self, plane: int, rows: Span) -> Array:
        found = np.empty((rows[1] - rows[0], self.size[2]), self.real)
        self._read(found, plane * self.plane_bytes + rows[0] * self.row_bytes)
        return found

    def put_rows(self, plane: int, rows: Span, values: Array) -> None:
        self._write(values, plane * self.plane_bytes + rows[0] * self.row_bytes)

    def close(self) -> None:
        self.file.close()

    def _read(self, voxels: Array, offset: int) -> None:
        view = memoryview(voxels.data).cast("B")
        done = 0
        while done < len(view):
            if hasattr(os, "preadv"):
                count = os.preadv(self.file.fileno(), [view[done:]], offset + done)
            else:
                with self.lock:
                    self.file.seek(offset + done)
                    count = self.file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise FormatError("a temporary file has become shorter; run it again")
            done += count

    def _write(self, voxels: Array, offset: int) -> None:
        view = memoryview(voxels.data).cast("B")
        done = 0
        while done < len(view):
            if hasattr(os, "pwritev"):
                done += os.pwritev(self.file.fileno(), [view[done:]], offset + done)
            else:
                with self.lock:
                    self.file.seek(offset + done)
                    done += self.file.write(view[done:])

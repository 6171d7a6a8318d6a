"""Zip files of strangers: their list of files is bounded before it is read.

A list takes more than ten times its bytes once it is objects of Python, and a file of zip may be a
list of millions of names with nothing behind them.
"""

from __future__ import annotations

import io
import os
import zipfile

from conv3d_cli.system.inputs import regular_file
from conv3d_cli.system.room import require_room

# Bytes of memory for each byte of a list: it is there twice while it is read, an entry of 46 bytes
# becomes an object of 450, and who reads the names keeps a list or table of them.
DIRECTORY_COPIES = 16
HARMLESS_DIRECTORY = 64 << 10


class _Bounded(io.BufferedReader):
    """A file that `zipfile` opens: what it reads at once, until it has the list, must fit."""

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path, opener=regular_file))
        self.path, self.is_listed = path, False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.is_listed and size is not None and size > HARMLESS_DIRECTORY:
            size = min(size, os.fstat(self.fileno()).st_size)
            require_room(DIRECTORY_COPIES * size, "the list of its files", self.path)
        return super().read(size)


class ZipReader(zipfile.ZipFile):
    """A zip file, opened to be read. Use it as a context, or close it.

    Raises: OSError; BadZipFile; NotImplementedError for zip's later versions; FormatError for what
        is no regular file; MemoryLimitError if the list of its files does not fit into memory.
    """

    _own: _Bounded | None = None  # `close` is called even if it could not be opened

    def __init__(self, path: str) -> None:
        self._own = own = _Bounded(path)
        try:
            super().__init__(own)
        except BaseException:
            own.close()
            raise
        own.is_listed = True

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._own is not None:
            self._own.close()

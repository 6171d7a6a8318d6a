"""What Windows does otherwise: it lacks some of Unix's calls, and opens no folders.

Every module asks here whether it runs on Unix, so that a test can take Unix away.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from functools import lru_cache
from typing import IO

POSIX = os.name == "posix"
_moving = threading.Lock()


def slashes(path: str) -> str:
    """A path with "/" between its parts, which Windows takes as well as a backslash.

    >>> slashes("a/b.npy")
    'a/b.npy'
    """
    return path if os.sep == "/" else path.replace(os.sep, "/")


def true_path(path: str | os.PathLike[str]) -> str:
    """The real path of a file that may not exist yet, for comparison: names of one file are equal.

    Where the file system ignores case (macOS, Windows, some disks), so do two of these.
    """
    real = os.path.realpath(path)
    folder, name = os.path.split(real)
    parts = [name]
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder, name = os.path.split(folder)
        parts.append(name)
    if not ignores_case(folder):
        return real
    from unicodedata import normalize

    return os.path.join(folder.lower(), *(normalize("NFC", part).lower() for part in parts[::-1]))


@lru_cache(maxsize=1024)
def ignores_case(folder: str) -> bool:
    """True if "a" and "A" are one name in a folder, which exists.

    Its own name tells, or that of the first folder above with letters in it.
    """
    while True:
        above, name = os.path.split(folder)
        if name.swapcase() != name:
            try:
                return os.path.samefile(folder, os.path.join(above, name.swapcase()))
            except OSError:
                return False
        if above == folder:
            return False
        folder = above


def write_at(file: IO[bytes], data: memoryview, position: int) -> None:
    """Write all of `data` at a position in a file; one system call may write only a part.

    file : an open file whose buffer is empty; its own position stays where it is
    Raises: OSError.
    """
    number = file.fileno()
    while len(data):
        if hasattr(os, "pwrite"):
            written = os.pwrite(number, data, position)
        else:
            with _moving:
                before = os.lseek(number, 0, os.SEEK_CUR)
                os.lseek(number, position, os.SEEK_SET)
                try:
                    written = os.write(number, data)
                finally:
                    os.lseek(number, before, os.SEEK_SET)
        data, position = data[written:], position + written


def byte_at(file: IO[bytes], position: int) -> bytes:
    """One byte of an unbuffered file; none if it ends before. Raises: OSError."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), 1, position)
    before = file.seek(0, os.SEEK_CUR)
    file.seek(position)
    try:
        return file.read(1)
    finally:
        file.seek(before)


def flush_to_disk(path: str, folder: bool = False) -> None:
    """Flush a file, or the list of names in a folder, to the disk, if the system can.

    Raises: OSError.
    """
    if folder and not POSIX:
        return  # it opens no folder; renames are in its journal
    # Windows flushes only what is open for writing
    descriptor = os.open(path, os.O_RDONLY if POSIX else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def machine_memory() -> int | None:
    """Bytes of the machine's memory; None if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _windows_memory()


def _windows_memory() -> int | None:
    import ctypes

    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 6),
        ]

    status = Status(length=ctypes.sizeof(Status))
    with suppress(AttributeError, OSError):
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
            return int(status.total)
    return None

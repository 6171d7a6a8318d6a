"""Memory maps of files that somebody may cut short while they are read.

Reading a page of a map that the file no longer has, or that the disk cannot read, is no error that
Python can catch: the system ends the process with SIGBUS. `watch_map` installs a handler. Inside
`faults_noticed` it puts pages of zeros in their place, so that the work goes on, and `check_maps`
raises the error before anything is made of it. Elsewhere it ends the process with one line.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import FormatError

# struct sigaction and siginfo_t of Linux on 64-bit machines
_SUPPORTED = sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8
_ADDRESS_OFFSET = 16  # of si_addr
_SA_SIGINFO = 4
_MAP_FIXED, _MAP_ANONYMOUS, _MAP_PRIVATE = 0x10, 0x20, 0x02

_lock = threading.Lock()
_noticing = 0
_installed: list[Any] = []  # the callback and the handler before it, which must stay alive


@dataclass(eq=False)
class WatchedMap:
    """A map of a file.

    start, length : int     its address and its bytes
    path : str              the file
    faulty : bool           a part of it could not be read
    told : bool             `check_maps` has said so
    """

    start: int
    length: int
    path: str
    faulty: bool = False
    told: bool = False


_watched: set[WatchedMap] = set()


def watch_map(start: int, length: int, path: str) -> WatchedMap:
    """Watch a map until `unwatch_map`."""
    watched = WatchedMap(start, length, os.path.realpath(path))
    with _lock:
        _watched.add(watched)
        if _SUPPORTED and not _installed:
            _install()
    return watched


def unwatch_map(watched: WatchedMap) -> None:
    """The map is about to be closed; the next `check_maps` still knows of its faults."""
    with _lock:
        _watched.discard(watched)
        if watched.faulty and not watched.told:
            _faulty.add(watched.path)


_faulty: set[str] = set()


@contextmanager
def faults_noticed() -> Iterator[None]:
    """In the body, faults are kept for `check_maps`."""
    global _noticing
    with _lock:
        _noticing += 1
    try:
        yield
    finally:
        with _lock:
            _noticing -= 1


def check_maps(paths: Iterable[str]) -> None:
    """Raises: FormatError if a map of one of these files had a fault."""
    for path in paths:
        real = os.path.realpath(path)
        with _lock:
            found = [one for one in _watched if one.faulty and one.path == real]
            faulty = bool(found) or real in _faulty
            _faulty.discard(real)
            for one in found:
                one.told = True
        if faulty:
            raise FormatError(shorter_words(path))


def shorter_words(path: str) -> str:
    """What is told of a file that was cut short, or of a disk that failed, while it was read."""
    return (
        f"cannot read {path}: it became shorter while it was read, or the disk failed; "
        "nothing was written: run again"
    )


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def _install() -> None:
    library = ctypes.PyDLL(None)  # keeps Python's lock: no other thread may unmap meanwhile
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    library.sigaction.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    before = _Action()

    def fault(number: int, info: int, context: int) -> None:
        address = ctypes.c_void_p.from_address(info + _ADDRESS_OFFSET).value or 0
        found = [w for w in _watched if w.start <= address < w.start + w.length]
        if not found:  # not ours: what would have happened happens when this returns
            library.sigaction(signal.SIGBUS, ctypes.byref(before), None)
            return
        watched = found[0]
        if _noticing:
            first = address // mmap.PAGESIZE * mmap.PAGESIZE
            length = watched.start + watched.length - first
            flags = _MAP_FIXED | _MAP_ANONYMOUS | _MAP_PRIVATE
            if library.mmap(first, length, mmap.PROT_READ, flags, -1, 0) == first:
                watched.faulty = True
                return
        with suppress(OSError):
            os.write(
                2, f"Error: {FormatError(shorter_words(watched.path))}\n".encode(errors="replace")
            )
        os._exit(FormatError.exit_code)

    kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    callback = kind(fault)
    action = _Action(ctypes.cast(callback, ctypes.c_void_p).value, flags=_SA_SIGINFO)
    if library.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before)) == 0:
        _installed.extend((callback, before, library))

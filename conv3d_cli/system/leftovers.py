"""What killed runs leave beside their outputs: hidden files, and groups of renames half made.

A `Hold` is a lock on a temporary file or folder, which the system releases when the process ends,
however it ends. So a hidden file without a lock is left over. A `Journal` names the renames that a
group of outputs is about to make. If the process is killed between two of them, the next run finds
the journal, and `clean_up` undoes them, or finishes them if all were made.

A journal may be anybody's, like every file in a folder: it may have come out of an archive. So only
a journal of this user counts, and it only ever moves files of its own folder whose hidden names
`hidden_name` could have made.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from conv3d_cli.system.numbered import NUMBER, without_number

try:
    import fcntl
except ImportError:  # Windows: nobody can tell what is left over
    fcntl = None  # type: ignore[assignment]

_BACKUP = "old"
_HIDDEN = re.compile(
    rf"\.(?P<stem>.*)\.[0-9a-f]{{8}}\.(tmp|store|{_BACKUP})(?P<suffix>\..*)?", re.S
)
_JOURNAL = re.compile(r"\.conv3d-[0-9a-f]{8}\.renames")
_JOURNAL_BYTES = 1 << 20
# A folder is listed again after so long (seconds), so that a batch does not list it for each file.
LISTING_SECONDS = 5.0
_OPEN = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


def hidden_name(target: Path, suffix: str, mark: str = "tmp") -> Path:
    """A hidden, unused name in the target's folder.

    suffix : str        that of the target, which the name gets, so that format libraries accept it
    mark : str          "tmp", "old" (a backup) or "store" (a store that is packed at the end)
    """
    return target.with_name(f".{_stem(target, suffix)}.{os.urandom(4).hex()}.{mark}{suffix}")


def _stem(target: Path, suffix: str) -> str:
    """The stem of hidden names: that of the target, cut, with its number."""
    stem = target.name[: len(target.name) - len(suffix)]
    output = without_number(stem)
    # a name may have 255 bytes, not characters
    return os.fsencode(output)[:80].decode(errors="ignore") + stem[len(output) :]


# --------------------------------------------------------------------------------------------------
# Locks


class Hold:
    """The lock of an open file or folder, which says that a process still uses it.

    descriptor : int or None    it is duplicated: the lock lasts until `release`, even if it is
                                closed; None for what the system cannot open
    Where the file system has no locks, the file is never taken for a leftover.
    """

    def __init__(self, descriptor: int | None) -> None:
        # on Windows, an open file could not be renamed
        self._descriptor = None if descriptor is None or fcntl is None else os.dup(descriptor)
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Give up the lock. Does nothing when called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def _taken(path: str) -> Iterator[int | None]:
    """Lock a plain file or folder of this user for the body; its descriptor.

    None if it is in use, of another kind or another user's.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except OSError:
        yield None
        return
    try:
        yield descriptor if _is_free(descriptor) else None
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or not (
        stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    ):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or no locks here
        return False
    return True


# --------------------------------------------------------------------------------------------------
# Exchange of two names


@lru_cache(maxsize=1)
def _exchange_call() -> Any:
    """The system's call that exchanges two names: (path, path) -> 0 or -1; None without one."""
    import ctypes

    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
            return lambda one, other: swap(one, other, 2)
        call = library.renameat2
    except (OSError, AttributeError, TypeError):
        return None
    call.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    here = -100  # AT_FDCWD
    return lambda one, other: call(here, one, here, other, 2)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot.

    Raises: OSError, such as for a missing name or permission.
    """
    call = _exchange_call()
    if call is None:
        return False
    if call(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    import ctypes

    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), os.fspath(one))


# --------------------------------------------------------------------------------------------------
# Journals


@dataclass(frozen=True)
class Rename:
    """One output of a group, on its way to its place.

    target : Path           the output
    temporary : Path        the new file or folder; where names are exchanged, it becomes the old
    old : Path or None      the name that the old one may get meanwhile; None if there is no old one
    """

    target: Path
    temporary: Path
    old: Path | None


Identity = list[int]


def _identity(path: str | os.PathLike[str]) -> Identity | None:
    """What a rename does not change, and what another file of the name does not have."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_mtime_ns]


class Journal:
    """A note of the renames that a group is about to make, in each folder where it makes some.

    Raises: OSError.
    """

    def __init__(self, renames: Sequence[Rename]) -> None:
        self._held: list[tuple[str, Hold]] = []
        name = f".conv3d-{os.urandom(4).hex()}.renames"
        by_folder: dict[Path, list[Rename]] = {}
        for rename in renames:
            by_folder.setdefault(rename.target.parent, []).append(rename)
        try:
            for folder, own in by_folder.items():
                entries = [
                    {
                        "target": one.target.name,
                        "temporary": one.temporary.name,
                        "old": one.old and one.old.name,
                        "new": _identity(one.temporary),
                    }
                    for one in own
                ]
                elsewhere = [os.path.relpath(path, folder) for path in by_folder if path != folder]
                self._write(os.path.join(folder, name), {"renames": entries, "also": elsewhere})
        except BaseException:
            self.remove()
            raise

    def _write(self, path: str, contents: Any) -> None:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            self._held.append((path, Hold(file.fileno())))
            file.write(json.dumps(contents))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The renames are made, or undone. Does nothing when called again."""
        for path, _ in self._held:
            with suppress(OSError):
                os.unlink(path)
        self.leave()

    def leave(self) -> None:
        """The renames could not be undone: leave that to the next run."""
        while self._held:
            self._held.pop()[1].release()


def _entries(folder: str, name: str) -> tuple[list[dict[str, Any]], list[str]] | None:
    """The entries of a journal, and other folders that have one; None unless it is well-formed."""
    try:
        with open(os.path.join(folder, name), "rb", opener=lambda n, _: os.open(n, _OPEN)) as file:
            found = json.loads(file.read(_JOURNAL_BYTES))
        for entry in found["renames"]:
            hidden = [entry["temporary"], *([entry["old"]] if entry["old"] is not None else [])]
            if os.path.basename(entry["target"]) != entry["target"] or entry["target"] in (
                "",
                "..",
            ):
                return None
            if not all(os.path.basename(n) == n and _belongs(n, entry["target"]) for n in hidden):
                return None
        also = [os.path.normpath(os.path.join(folder, other)) for other in found["also"]]
        return found["renames"], also
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _belongs(name: str, target: str) -> bool:
    """Whether a hidden name could be one of a target."""
    found = _HIDDEN.fullmatch(name)
    if found is None:
        return False
    suffix = found["suffix"] or ""
    return target.lower().endswith(suffix.lower()) and found["stem"] == _stem(Path(target), suffix)


def _names_of(target: Path, suffix: str) -> re.Pattern[str]:
    """What `hidden_name` makes for an output, and, but for backups, for its numbered files.

    Numbered files belong to their output, whose next run removes what is left of them, whatever
    numbers it has itself. The reverse does not hold: `o_iter1` and `o_iter2` may be outputs of two
    runs, at work at the same time.
    """
    stem, end = re.escape(_stem(target, suffix)), re.escape(suffix)
    return re.compile(
        rf"\.{stem}(({NUMBER})?\.[0-9a-f]{{8}}\.(tmp|store)|\.[0-9a-f]{{8}}\.{_BACKUP}){end}"
    )


def _settle(folder: str, name: str) -> list[str]:
    """Undo the renames of a journal whose process is dead, or finish them. Returns notes."""
    found = _entries(folder, name)
    if found is None:
        return []
    entries, elsewhere = found
    everything = [(folder, entries)]
    for other in elsewhere:
        with _taken(os.path.join(other, name)) as free:
            if free is not None and (there := _entries(other, name)) is not None:
                everything.append((other, there[0]))
    made = all(
        _identity(os.path.join(where, entry["target"])) == entry["new"]
        for where, found_there in everything
        for entry in found_there
    )
    notes = []
    for where, found_there in everything:
        for entry in found_there:
            target, temporary = (os.path.join(where, entry[k]) for k in ("target", "temporary"))
            old = None if entry["old"] is None else os.path.join(where, entry["old"])
            if not made and _undo(target, temporary, old, entry["new"]):
                notes.append(
                    f"{target} is again as it was before a run that was killed while it replaced "
                    "several files together"
                    if old is not None
                    else f"removed {target}: the run that wrote it was killed before it had put "
                    "the files that belong to it in place"
                )
            for path in (temporary, *([old] if old is not None else [])):
                _remove(path)
        with suppress(OSError):
            os.unlink(os.path.join(where, name))
    return notes


def _undo(target: str, temporary: str, old: str | None, new: Identity | None) -> bool:
    """Give a target back what it was; whether anything had to be done."""
    placed = new is not None and _identity(target) == new
    if old is None:
        if placed:
            _remove(target)
        return placed
    kept = next((name for name in (old, temporary) if placed and os.path.lexists(name)), None)
    if kept is None and not os.path.lexists(target) and os.path.lexists(old):
        kept = old
    if kept is None:
        return False
    if os.path.isdir(kept) and os.path.lexists(target):
        if not exchange(Path(kept), Path(target)):
            aside = f"{kept}.new"
            os.rename(target, aside)
            os.rename(kept, target)
            _remove(aside)
    else:
        os.replace(kept, target)
    return True


def _remove(path: str) -> None:
    with suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


# --------------------------------------------------------------------------------------------------
# Cleaning up

_lock = threading.Lock()
_listings: dict[str, tuple[float, list[str]]] = {}
_notes: list[str] = []


def clean_up(target: Path, suffix: str) -> None:
    """Settle journals in the target's folder, and remove what killed runs left of this target.

    That is also what they left of its numbered files.

    suffix : str        that of the target, as `hidden_name` had it
    `cleanup_notes` says what was done. Does nothing for what is in use or belongs to another user.
    """
    if fcntl is None:
        return
    folder = os.fspath(target.parent)
    with _lock:
        hidden = _hidden_in(folder)
        names = _names_of(target, suffix)
        mine = [name for name in hidden if names.fullmatch(name)]
        if not mine:
            return
        in_use = _names_in_use(folder)  # after the listing: a journal precedes what it names
        for name in mine:
            hidden.remove(name)
            if name in in_use:
                continue
            path = os.path.join(folder, name)
            if name.endswith(f".{_BACKUP}{suffix}") and not os.path.lexists(target):
                _notes.append(f"{path} is an old version of {target}, which is missing; rename it")
                continue
            with _taken(path) as free:
                if free is None:
                    continue
                size = _size(path)
                _remove(path)
            if not os.path.lexists(path):
                _notes.append(
                    f"removed {path} ({size / 1e6:,.1f} MB), left by a run that was killed"
                )


def cleanup_notes() -> list[str]:
    """What `clean_up` has done since the last call, for the user."""
    with _lock:
        notes = list(_notes)
        _notes.clear()
    return notes


def _hidden_in(folder: str) -> list[str]:
    """Hidden names of outputs in a folder, after its journals are settled."""
    now = time.monotonic()
    listed, hidden = _listings.get(folder, (-LISTING_SECONDS, []))
    if now - listed < LISTING_SECONDS:
        return hidden
    names = _list(folder)
    journals = [name for name in names if _JOURNAL.fullmatch(name)]
    for name in journals:
        with _taken(os.path.join(folder, name)) as free:
            if free is not None:
                with suppress(OSError):
                    _notes.extend(_settle(folder, name))
    if journals:
        names = _list(folder)
    hidden = [name for name in names if name.startswith(".") and _HIDDEN.fullmatch(name)]
    _listings[folder] = now, hidden
    return hidden


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _names_in_use(folder: str) -> set[str]:
    """Hidden names that journals of living processes name."""
    used: set[str] = set()
    for name in _list(folder):
        if _JOURNAL.fullmatch(name):
            entries = _entries(folder, name)
            for entry in entries[0] if entries is not None else ():
                used |= {entry["temporary"], entry["old"]}
    return used


def _size(path: str) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not os.path.isdir(path):
        return os.lstat(path).st_size
    total = 0
    for where, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total

"""Outputs that appear complete or not at all.

An `AtomicFile` is a temporary file in the target's own folder; `commit` flushes it to the disk and renames it over the
target, `abort` removes it. So no reader, and no `make`, ever sees half an output, and an existing target stays untouched
until the new one is whole. `AtomicFolder` is the same for outputs that are folders (Zarr). Within an `AtomicGroup` several of
them wait for each other. Formats and kernel writers use them; they know nothing of volumes.

A target that is replaced hands on its permissions, and its owner where this process may give files away. Only plain files are
replaced: a device or a FIFO is refused, or written into where the caller can (`text_output`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from conv3d_cli.errors import Conv3DError, OutputExistsError, WriteError


def suffix_of(path: str | os.PathLike[str], known: tuple[str, ...] = ()) -> str:
    """The suffix of a file name in lower case, double ones (`.nii.gz`, `.ome.tif`) as one.

    >>> suffix_of("a.b/sub-01.v2.NII.GZ"), suffix_of("x.ome.tiff"), suffix_of("k.npy"), suffix_of("README")
    ('.nii.gz', '.ome.tiff', '.npy', '')
    """
    name = Path(path).name.lower()
    for double in (
        *known,
        ".nii.gz",
        ".nii.zst",
        ".img.gz",
        ".hdr.gz",
        ".ome.tif",
        ".ome.tiff",
        ".ome.zarr",
        ".weights.h5",
    ):
        if name.endswith(double) and name != double:
            return double
    return Path(name).suffix


# What `os.stat` finds in the place of a plain file, and whether bytes can be sent into it
_SPECIAL_KINDS = {
    stat.S_IFCHR: ("a character device", True),
    stat.S_IFIFO: ("a FIFO", True),
    stat.S_IFBLK: ("a block device", False),
    stat.S_IFSOCK: ("a socket", False),
}
# a file that a process has open, such as /dev/stdout
_OPEN_FILE = re.compile(r"/proc/[^/]+(/task/[^/]+)?/fd/\d+")


def special_kind(path: str | os.PathLike[str]) -> tuple[str, bool] | None:
    """What stands at a path where it is neither a plain file nor a folder, and whether bytes can be sent into it.

    None for a plain file, a folder, and where there is nothing.
    >>> special_kind(os.devnull), special_kind(".")
    (('a character device', True), None)
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if kind := _SPECIAL_KINDS.get(stat.S_IFMT(mode)):
        return kind
    name = os.path.abspath(path)
    while os.path.islink(name):
        folder = os.path.realpath(os.path.dirname(name))
        if _OPEN_FILE.fullmatch(os.path.join(folder, os.path.basename(name))):
            return "a file that a process has open", True
        name = os.path.join(folder, os.readlink(name))
    return None


def check_target(
    path: str | os.PathLike[str],
    overwrite: bool,
    make_folder: bool = False,
    folder: bool = False,
    send: bool = False,
) -> None:
    """Refuse a target that exists (unless `overwrite`), is a device, or whose folder is missing or not writable.

    make_folder : bool      its folder may be missing as long as it can be made
    folder : bool           the target is to be a folder itself
    send : bool             a device or a FIFO will do: bytes are sent into it, and it stays
    Raises: OutputExistsError, WriteError.
    """
    with write_errors(path):
        target = Path(path)
        if special := special_kind(target):
            kind, takes_bytes = special
            if not (send and takes_bytes):
                why = "" if send else ", which a file would replace"
                raise WriteError(f"cannot write {path}: it is {kind}{why}; name a plain file")
            if not os.access(target, os.W_OK):
                raise WriteError(f"cannot write {path}: permission denied")
            return
        if target.is_dir() and not folder:
            raise WriteError(f"cannot write {path}: it is a folder; name a file, or use --out-dir")
        if os.path.lexists(target) and not overwrite:
            kind = "folder" if target.is_dir() else "file"
            raise OutputExistsError(
                f"cannot write {path}: {kind} exists; pass --overwrite to replace it"
            )
        if folder and target.exists() and not target.is_dir():
            raise WriteError(
                f"cannot write {path}: it is a file, and a folder is to be written; remove it first"
            )
        parent = Path(os.path.realpath(target)).parent
        while make_folder and not os.path.lexists(parent):
            parent = parent.parent
        if not parent.is_dir():
            raise WriteError(f"cannot write {path}: folder {parent} does not exist; make it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise WriteError(f"cannot write {path}: folder {parent} is not writable")


def temporary_name(target: Path, mark: str = "tmp") -> Path:
    """A hidden name beside the target that nothing has, with the target's suffix so that format libraries accept it."""
    suffix = suffix_of(target)
    stem = target.name[: len(target.name) - len(suffix)]
    # a name has room for 255 bytes, not characters
    stem = os.fsencode(stem)[:80].decode(errors="ignore")
    return target.with_name(f".{stem}.{os.urandom(4).hex()}.{mark}{suffix}")


class AtomicFile:
    """A binary file that takes its target's place on `commit` and vanishes on `abort`.

    path : str or Path      the target; a symbolic link is followed, so the link stays a link
    overwrite : bool        whether an existing target may be replaced
    vouches : bool          readers find the rest of the file's group by this file, as by the header of a .hdr/.img pair:
                            an old one goes before anything of the group takes its place, the new one comes last

    Used as a context manager it aborts unless `commit` was called. `file` is the open temporary file, `temporary` its
    path (same suffix as the target, so that format libraries accept it).

    >>> import tempfile, os
    >>> folder = tempfile.mkdtemp()
    >>> with AtomicFile(os.path.join(folder, "a.bin")) as output:
    ...     n = output.file.write(b"abc"); before = os.listdir(folder)
    ...     output.commit()
    >>> "a.bin" in before, os.listdir(folder)
    (False, ['a.bin'])
    """

    def __init__(
        self, path: str | os.PathLike[str], overwrite: bool = False, vouches: bool = False
    ) -> None:
        check_target(path, overwrite)
        self.path = Path(path)
        self.vouches = vouches
        self._target = Path(os.path.realpath(path))
        self.temporary = temporary_name(self._target)
        self._overwrite = overwrite
        self._open = True
        self._placed = False
        self._aside: Path | None = None
        with write_errors(path):
            # Whoever may not read the old file must not read the new one, not even while it is written.
            mode = 0o600 if os.path.lexists(self._target) else 0o666
            # "x": never follow or truncate something that happens to have this name
            self.file: BinaryIO = open(  # noqa: SIM115 - closed by commit or abort
                self.temporary, "x+b", opener=lambda name, flags: os.open(name, flags, mode)
            )

    def commit(self) -> None:
        """Flush to the disk and take the target's place; after an error nothing is left behind."""
        try:
            with write_errors(self.path):
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
            place_or_stage(self)
        except BaseException:
            self.abort()
            raise
        self._open = False

    def place(self) -> None:
        """Take the target's place, once whole and on the disk."""
        with write_errors(self.path):
            old = _status(self._target)
            if old is not None:
                if not self._overwrite:
                    raise OutputExistsError(
                        f"cannot write {self.path}: file appeared meanwhile; pass --overwrite to replace it"
                    )
                if not stat.S_ISREG(old.st_mode):
                    raise WriteError(
                        f"cannot write {self.path}: something else than a plain file took its place"
                    )
                _take_over(self.temporary, self._target, old)
            os.replace(self.temporary, self._target)
            self._placed = True

    def set_aside(self) -> None:
        """Keep the old file under a hidden name, so that `put_back` can undo `place`; if it vouches, it goes there."""
        old = _status(self._target)
        if old is None or not self._overwrite or not stat.S_ISREG(old.st_mode):
            return  # nothing to keep, or `place` refuses
        aside = temporary_name(self._target, "old")
        with write_errors(self.path):
            _take_over(self.temporary, self._target, old)
            self._aside = aside
            try:
                if not self.vouches:
                    os.link(self._target, aside)
                    return
            except OSError:
                pass  # a file system without hard links
            os.rename(self._target, aside)

    def put_back(self) -> None:
        """Undo `set_aside` and `place`: the target is as it was, and the new file is gone."""
        with _kept(self.path, self._aside):
            if self._placed and self._aside is None:
                self._target.unlink(missing_ok=True)
            elif self._aside is not None and (self._placed or not os.path.lexists(self._target)):
                os.replace(self._aside, self._target)
                self._aside = None
        self._placed = False
        self.settle()
        self.discard()

    def settle(self) -> None:
        """Let the old file go."""
        if self._aside is not None:
            with suppress(OSError):
                self._aside.unlink(missing_ok=True)
            self._aside = None

    def discard(self) -> None:
        """Remove what is whole and has not taken its place."""
        self.temporary.unlink(missing_ok=True)

    def abort(self) -> None:
        """Remove the temporary file; the target stays as it was."""
        if self._open:
            self._open = False
            try:
                self.file.close()
            except OSError:
                pass  # a full disk may refuse the last buffered bytes; they are not wanted any more
            finally:
                self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class SentFile:
    """What is written into a device or a FIFO: it waits in an unnamed temporary file, and `commit` sends it on.

    It is used as an `AtomicFile` is, and nothing is replaced.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import tempfile  # late: it brings much along

        check_target(path, overwrite=True, send=True)
        self.path = Path(path)
        self.file: BinaryIO = tempfile.TemporaryFile(prefix="conv3d-")  # noqa: SIM115 - closed by commit or abort

    def commit(self) -> None:
        """Send all of it. A FIFO waits for its reader, which may be gone. Raises: WriteError."""
        with write_errors(self.path), self.file:
            self.file.seek(0)
            with open(self.path, "ab") as target:
                shutil.copyfileobj(self.file, target)

    def abort(self) -> None:
        """Send nothing."""
        self.file.close()

    def __enter__(self) -> SentFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


def text_output(path: str | os.PathLike[str], overwrite: bool = False) -> AtomicFile | SentFile:
    """An output that is written once and not read again (a depfile, a report): a plain file, or what a device or FIFO takes.

    >>> with text_output(os.devnull) as output:
    ...     n = output.file.write(b"abc")
    ...     output.commit()
    >>> stat.S_ISCHR(os.stat(os.devnull).st_mode)
    True
    """
    with write_errors(path):
        return AtomicFile(path, overwrite) if special_kind(path) is None else SentFile(path)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


_ACCESS_LIST = "system.posix_acl_access"


def _take_over(new: Path, path: Path, old: os.stat_result) -> None:
    """Give a new file or folder the owner, where this process may, and the permissions of the old one at `path`."""
    # a folder's set-group-ID bit says whose its new files are; on a file it would be a privilege
    mode = old.st_mode & (0o2777 if stat.S_ISDIR(old.st_mode) else 0o777)
    if not _give(new, old.st_uid, old.st_gid) and not _give(new, -1, old.st_gid):
        # what the old group might do is not for another group, which gets what all others get
        os.chmod(new, mode & ~0o070 | (mode & 0o007) << 3)
        return
    os.chmod(new, mode)
    if hasattr(os, "getxattr"):
        try:
            os.setxattr(new, _ACCESS_LIST, os.getxattr(path, _ACCESS_LIST))
        except OSError:  # it has none: nor has the new one, not even what its folder hands on
            with suppress(OSError):
                os.removexattr(new, _ACCESS_LIST)


def _give(path: Path, user: int, group: int) -> bool:
    """Make a file or folder belong to a user (-1: as it is) and a group; whether that could be done."""
    own = os.lstat(path)
    if (user in (-1, own.st_uid)) and group == own.st_gid:
        return True
    try:
        os.chown(path, user, group)
    except OSError:
        return False
    return True


class AtomicFolder:
    """A folder that takes its target's place on `commit` and vanishes on `abort`: an `AtomicFile` of many files.

    path : str or Path      the target; a symbolic link is followed
    overwrite : bool        whether an existing folder may be replaced, with everything in it

    A folder cannot be renamed over another. So the old one steps aside under a hidden name, the new one takes its place,
    and the old one is removed: at every moment the old or the new one is there, whole. `temporary` is the folder's path
    until then. Used as a context manager it aborts unless `commit` was called.

    >>> import tempfile, os
    >>> parent = tempfile.mkdtemp()
    >>> with AtomicFolder(os.path.join(parent, "a.zarr")) as output:
    ...     n = (output.temporary / "zarr.json").write_text("{}"); before = os.listdir(parent)
    ...     output.commit()
    >>> "a.zarr" in before, os.listdir(parent), os.listdir(os.path.join(parent, "a.zarr"))
    (False, ['a.zarr'], ['zarr.json'])
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        check_target(path, overwrite, folder=True)
        self.path = Path(path)
        self._target = Path(os.path.realpath(path))
        self.temporary = temporary_name(self._target)
        self._overwrite = overwrite
        self._open = True
        self._placed = False
        self._aside: Path | None = None
        with write_errors(path):
            self.temporary.mkdir(0o700 if os.path.lexists(self._target) else 0o777)

    def commit(self) -> None:
        """Flush to the disk and take the target's place; after an error the target is as it was, and nothing else is left."""
        try:
            with write_errors(self.path):
                _flush_folder(self.temporary)
            place_or_stage(self)
        except BaseException:
            self.abort()
            raise
        self._open = False

    def place(self) -> None:
        """Take the target's place, once whole and on the disk."""
        with write_errors(self.path):
            if (old := _status(self._target)) is not None:
                if not self._overwrite:
                    raise OutputExistsError(
                        f"cannot write {self.path}: folder appeared meanwhile; pass --overwrite to replace it"
                    )
                _take_over(self.temporary, self._target, old)
                _take_over_contents(self.temporary, self._target)
                self._aside = temporary_name(self._target, "old")
                os.rename(self._target, self._aside)
            os.rename(self.temporary, self._target)
            self._placed = True

    def set_aside(self) -> None:
        """Nothing: the old folder steps aside when the new one takes its place."""

    def put_back(self) -> None:
        """Undo `place`: the target is as it was, and the new folder is gone."""
        with _kept(self.path, self._aside):
            if self._placed:
                os.rename(self._target, self.temporary)
            if self._aside is not None and os.path.lexists(self._aside):
                os.rename(self._aside, self._target)
        self._placed, self._aside = False, None
        self.discard()

    def settle(self) -> None:
        """Let the old folder go."""
        if self._aside is not None:
            _remove_folder(self._aside)
            self._aside = None

    def discard(self) -> None:
        """Remove what is whole and has not taken its place."""
        _remove_folder(self.temporary)

    def abort(self) -> None:
        """Remove the temporary folder; the target stays as it was."""
        if self._open:
            self._open = False
            _remove_folder(self.temporary)

    def __enter__(self) -> AtomicFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class AtomicGroup:
    """Files and folders that take their places together, or none of them.

    Within it (and in its own thread) `commit` of an `AtomicFile` or an `AtomicFolder` writes all to the disk and stops short of
    the rename, so that what will be there can still be read, and something be written about it. `commit` of the group then
    renames them in their order; without it they vanish.

    staged : list       what is whole and waits: `path` is its target, `temporary` where it is

    >>> import tempfile, os
    >>> folder = tempfile.mkdtemp()
    >>> with AtomicGroup() as group:
    ...     for name in ("a", "b"):
    ...         with AtomicFile(os.path.join(folder, name)) as output:
    ...             n = output.file.write(b"abc"); output.commit()
    ...     waiting = [output.temporary.read_bytes() for output in group.staged], os.path.exists(os.path.join(folder, "a"))
    ...     group.commit()
    >>> waiting, sorted(os.listdir(folder))
    (([b'abc', b'abc'], False), ['a', 'b'])
    """

    def __init__(self) -> None:
        self.staged: list[AtomicFile | AtomicFolder] = []

    def commit(self) -> None:
        """Give all of them their places; after an error every target is as it was, and nothing new is left.

        Old files that vouch for others go first, and their successors come last. So if the process is killed on the way, no
        header describes another's voxels. Signals wait until it is done.
        """
        _place_all(sorted(self.staged, key=_vouches))
        self.staged = []

    def __enter__(self) -> AtomicGroup:
        self._before: Token[AtomicGroup | None] = _group.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _group.reset(self._before)
        for output in self.staged:
            output.discard()
        self.staged = []


_group: ContextVar[AtomicGroup | None] = ContextVar("_group", default=None)


def place_or_stage(output: AtomicFile | AtomicFolder) -> None:
    """Give an output that is whole its place, or leave it to the group that it belongs to."""
    group = _group.get()
    if group is not None:
        group.staged.append(output)
    else:
        _place_all([output])


def _vouches(output: AtomicFile | AtomicFolder) -> bool:
    return isinstance(output, AtomicFile) and output.vouches


def _place_all(outputs: list[AtomicFile | AtomicFolder]) -> None:
    """Give outputs their places, all or none; signals wait meanwhile."""
    placed = False
    try:
        with signals_held():
            try:
                if len(outputs) > 1:  # one alone is renamed over the old one in one step
                    for output in reversed(outputs):
                        output.set_aside()
                for output in outputs:
                    output.place()
            except BaseException as error:
                _put_back(outputs, error)
                raise
            placed = True
            if (known := _placed.get()) is not None:
                known += [os.fspath(output.path) for output in outputs]
            for output in outputs:
                if isinstance(output, AtomicFile):
                    output.settle()
    finally:
        if placed:  # large folders take a while: signals need not wait, and where one interrupts, they go all the same
            for output in outputs:
                output.settle()


def _put_back(outputs: list[AtomicFile | AtomicFolder], error: BaseException) -> None:
    """Undo what was placed. Raises: WriteError, with where the old files are, if that cannot be done."""
    lost = []
    for output in outputs:
        try:
            output.put_back()
        except WriteError as failed:
            lost.append(str(failed))
    if lost:
        raise WriteError("; ".join([str(error), *lost])) from error


_placed: ContextVar[list[str] | None] = ContextVar("_placed", default=None)


@contextmanager
def placed_outputs() -> Iterator[list[str]]:
    """Collect the names of outputs as they take their places: known, too, where an interrupt comes right afterwards.

    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder, placed_outputs() as placed:
    ...     with AtomicFile(os.path.join(folder, "a")) as output:
    ...         output.commit()
    ...     [os.path.basename(path) for path in placed]
    ['a']
    """
    placed: list[str] = []
    token = _placed.set(placed)
    try:
        yield placed
    finally:
        _placed.reset(token)
        if (outer := _placed.get()) is not None:
            outer += placed


@contextmanager
def together() -> Iterator[None]:
    """Outputs that are committed within take their places together at its end: in the group around it, or in one of its own."""
    if _group.get() is not None:
        yield
        return
    with AtomicGroup() as group:
        yield
        group.commit()


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait until the body is done; then they act.

    Only the main thread acts on signals in Python, so nothing is done in another.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    usual = {}
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # None: a handler that Python did not set, and cannot set again
            if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                usual[number] = signal.signal(number, lambda number, frame: arrived.append(number))
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


@contextmanager
def _kept(path: Path, aside: Path | None) -> Iterator[None]:
    """Say where the old file or folder is if it cannot be put back. Raises: WriteError."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"what was {path} before is now {aside} ({error.strerror}); rename it"
        ) from error


def _flush_folder(folder: Path) -> None:
    """Everything in a folder on the disk: else a power cut could leave a whole folder of empty files."""
    for where, _, names in os.walk(folder):
        for name in (*names, "."):
            number = os.open(os.path.join(where, name), os.O_RDONLY)
            try:
                os.fsync(number)
            except OSError as error:
                if name != "." or error.errno not in (
                    errno.EINVAL,
                    errno.EBADF,
                ):  # some systems flush no folders
                    raise
            finally:
                os.close(number)


def _take_over_contents(new: Path, old: Path) -> None:
    """Give all that a new folder holds the owner of the folder, where this process may, and the permissions of what the old one
    holds: of a file in it, and of a folder."""
    owner = os.lstat(new)
    modes = {is_folder: _mode_within(old, is_folder) for is_folder in (False, True)}
    changed = {
        is_folder: mode
        for is_folder, mode in modes.items()
        if mode not in (None, _mode_within(new, is_folder))
    }
    given = hasattr(os, "getuid") and (owner.st_uid, owner.st_gid) != (os.getuid(), os.getgid())
    if not changed and not given:
        return
    for where, folders, names in os.walk(new):
        for is_folder, name in (
            *((True, name) for name in folders),
            *((False, name) for name in names),
        ):
            path = os.path.join(where, name)
            with suppress(OSError):
                if given:
                    os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
                if (mode := changed.get(is_folder)) is not None:
                    os.chmod(path, mode)


def _mode_within(folder: Path, is_folder: bool) -> int | None:
    """The permissions of the first file, or folder, within a folder; None if it holds none."""
    for where, folders, names in os.walk(folder):
        for name in folders if is_folder else names:
            with suppress(OSError):
                return os.lstat(os.path.join(where, name)).st_mode & (
                    0o2777 if is_folder else 0o777
                )
    return None


def _remove_folder(folder: Path) -> None:
    """Remove a folder, patiently: a library's thread that was interrupted may still be putting a last file into it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


def cause_of(error: OSError) -> str:
    """Why something cannot be written, in plain words, with the cure where there is one.

    >>> cause_of(OSError(errno.ENOSPC, "No space left on device"))
    'no space left on the disk; free some or choose another folder'
    """
    return {
        errno.ENOSPC: "no space left on the disk; free some or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some or choose another folder",
        errno.EACCES: "permission denied; choose a folder that is writable",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EFBIG: "the file system or a limit (ulimit -f) refuses a file of this size",
        errno.EBADF: "it is closed, or not open for writing",
    }.get(error.errno or 0, error.strerror or str(error))


class write_errors:
    """Turn an OSError of the body into a WriteError that names the output and the cause in plain words.

    The package's own errors pass: a FormatError of the input is one of them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, Conv3DError):
            raise WriteError(f"cannot write {self.path}: {cause_of(error)}") from error

"""Outputs that appear complete or not at all.

An `AtomicFile` is a temporary file in the target's own folder; `commit` flushes it to the disk and
renames it over the target, `abort` removes it. So no reader, and no `make`, ever sees half an
output, and an existing target stays untouched until the new one is complete. `AtomicFolder` does
the same for outputs that are folders (Zarr). The outputs of an `AtomicGroup` appear together. The
writers of formats and kernels use these classes, which know nothing about volumes.

A new file gets the permissions of the file that it replaces, and its owner if this process may
change owners. Only plain files are replaced: a device or a FIFO is written to (`output_file`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from weakref import WeakSet

from conv3d_cli.errors import Conv3DError, MemoryLimitError, OutputExistsError, WriteError, setting
from conv3d_cli.system.faults import explained, is_loading_fault
from conv3d_cli.system.inputs import walk
from conv3d_cli.system.leftovers import (
    Hold,
    Journal,
    Rename,
    clean_up,
    exchange,
    hidden_name,
)
from conv3d_cli.system.portable import POSIX, flush_to_disk
from conv3d_cli.system.scratch import unnamed_file
from conv3d_cli.system.standard_streams import output_bytes


def suffix_of(path: str | os.PathLike[str], known: tuple[str, ...] = ()) -> str:
    """The suffix of a file name in lower case; "" without one.

    known : double suffixes in addition to the common ones (`.nii.gz`, `.ome.tif`, ...)
    >>> [suffix_of(name) for name in ("a.b/sub-01.v2.NII.GZ", "x.ome.tiff", "k.npy", "README")]
    ['.nii.gz', '.ome.tiff', '.npy', '']
    """
    name = Path(path).name.lower()
    for double in (
        *known,
        ".nii.gz",
        ".nii.zst",
        ".img.gz",
        ".hdr.gz",
        ".mgh.gz",
        ".mrc.gz",
        ".map.gz",
        ".rec.gz",
        ".mif.gz",
        ".brik.gz",
        ".ome.tif",
        ".ome.tiff",
        ".ome.btf",
        ".ome.tf2",
        ".ome.tf8",
        ".ome.zarr",
        ".nii.zarr",
        ".ome.zarr.zip",
        ".zarr.zip",
        ".weights.h5",
    ):
        if name.endswith(double) and name != double:
            return double
    return Path(name).suffix


# file type of `os.stat` -> its name, and whether bytes can be written to it
_SPECIAL_KINDS = {
    stat.S_IFCHR: ("a character device", True),
    stat.S_IFIFO: ("a FIFO", True),
    stat.S_IFBLK: ("a block device", False),
    stat.S_IFSOCK: ("a socket", False),
}
# the true path of a file that a process has open, as of /dev/stdout
_OPEN_FILE = re.compile(r"/proc/[^/]+(/task/[^/]+)?/fd/\d+")


def special_kind(path: str | os.PathLike[str]) -> tuple[str, bool] | None:
    """The kind of a device, FIFO or socket, and whether bytes can be written to it.

    None for a plain file, for a folder and for a path that does not exist.
    >>> special_kind(os.devnull), special_kind(".")
    (('a character device', True), None)
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if kind := _SPECIAL_KINDS.get(stat.S_IFMT(mode)):
        return kind
    return None if _open_file(path) is None else ("a file that a process has open", True)


def _open_file(path: str | os.PathLike[str]) -> str | None:
    """The name in /proc of an open file that a path leads to, such as /dev/stdout; else None."""
    name = os.path.abspath(path)
    while os.path.islink(name):
        folder = os.path.realpath(os.path.dirname(name))
        name = os.path.join(folder, os.path.basename(name))
        if _OPEN_FILE.fullmatch(name):
            return name
        name = os.path.join(folder, os.readlink(name))
    return None


def sent_to(path: str | os.PathLike[str]) -> str:
    """What takes the bytes of an output that leaves no file; "" for an output that does.

    "a pipe" for "-", which is standard output; for a device or a FIFO its kind.
    >>> sent_to("-"), sent_to(os.devnull), sent_to("a.nii")
    ('a pipe', 'a character device', '')
    """
    special = None if os.fspath(path) == "-" else special_kind(path)
    return "a pipe" if os.fspath(path) == "-" else "" if special is None else special[0]


def takes_many(path: str | os.PathLike[str]) -> bool:
    """True for a character device such as /dev/null: several outputs may be written to it."""
    return special_kind(path) == _SPECIAL_KINDS[stat.S_IFCHR]


def open_sent(path: str | os.PathLike[str]) -> BinaryIO:
    """Open what `sent_to` describes for writing.

    A FIFO waits for its reader. Standard output, by any of its names, goes on where it is.
    Raises: OSError.
    """
    if os.fspath(path) == "-":
        return output_bytes()
    name = _open_file(path) or ""
    if name.startswith(f"/proc/{os.getpid()}/"):
        descriptor = int(os.path.basename(name))
        if descriptor == 1:
            sys.stdout.flush()  # what was printed before comes first
        return os.fdopen(os.dup(descriptor), "wb")
    return open(path, "ab")


def how_to_replace() -> str:
    """What lets a run replace an output that exists, as the end of a message."""
    return f"pass {setting('overwrite', True)} to replace it"


def check_target(
    path: str | os.PathLike[str],
    overwrite: bool,
    make_folder: bool = False,
    folder: bool = False,
    send: bool = True,
) -> None:
    """Refuse a target that exists or cannot be written, after cleaning up after killed runs.

    overwrite : bool        an existing file (or folder, under `folder`) may be replaced
    make_folder : bool      the folder of the target may be missing if it can be made
    folder : bool           the target will be a folder itself
    send : bool             a device or a FIFO is allowed: bytes will be written to it
    Raises: OutputExistsError if the target exists. WriteError if it is a device, or of the wrong
        kind, or its folder is missing or not writable.
    """
    with write_errors(path):
        target = Path(path)
        special = special_kind(target)
        if special is None:
            clean_up_output(target)
        else:
            kind, takes_bytes = special
            if folder:
                raise WriteError(
                    f"cannot write {path}: it is {kind}, but the output is a folder; name another"
                )
            if not (send and takes_bytes):
                why = "" if send else ", which a file would replace"
                raise WriteError(f"cannot write {path}: it is {kind}{why}; name a plain file")
            if not os.access(target, os.W_OK):
                cause = cause_of(PermissionError(errno.EACCES, ""))
                raise WriteError(f"cannot write {path}: {cause}")
            return
        if target.is_dir() and not folder:
            raise WriteError(f"cannot write {path}: it is a folder; name a file in it")
        if os.path.lexists(target) and not overwrite:
            kind = "folder" if target.is_dir() else "file"
            raise OutputExistsError(f"cannot write {path}: {kind} exists; {how_to_replace()}")
        if folder and target.exists() and not target.is_dir():
            raise WriteError(
                f"cannot write {path}: it is a file, but the output is a folder; remove it first"
            )
        parent = Path(os.path.realpath(target)).parent
        while make_folder and not os.path.lexists(parent):
            parent = parent.parent
        if os.path.lexists(parent) and not parent.is_dir():
            raise WriteError(f"cannot write {path}: {parent} is no folder; name another")
        if not parent.is_dir():
            raise WriteError(f"cannot write {path}: folder {parent} does not exist; make it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise WriteError(f"cannot write {path}: folder {parent} is not writable")


def clean_up_output(path: str | os.PathLike[str]) -> None:
    """Undo or finish what killed runs left of an output, and remove their hidden files."""
    real = Path(os.path.realpath(path))
    clean_up(real, suffix_of(real))


def new_hidden_folder(target: Path, mark: str = "tmp", mode: int = 0o777) -> tuple[Path, Hold]:
    """Make a hidden folder beside a target, with the lock that says that it is in use.

    Raises: OSError.
    """
    while True:
        folder = hidden_name(target, suffix_of(target), mark)
        folder.mkdir(mode)
        try:
            hold = _hold_folder(folder)
        except BaseException:
            with suppress(OSError):
                folder.rmdir()
            raise
        if os.path.lexists(folder):  # another run may have taken it for a leftover before the lock
            return folder, hold
        hold.release()


def _hold_folder(folder: Path) -> Hold:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        if POSIX and os.path.lexists(folder):
            raise
        return Hold(None)  # Windows opens no folders
    try:
        return Hold(descriptor)
    finally:
        os.close(descriptor)


def _new_hidden_file(target: Path, mode: int) -> tuple[BinaryIO, Path, Hold]:
    """Make a hidden file beside a target; see `new_hidden_folder`. Raises: OSError."""
    while True:
        path = hidden_name(target, suffix_of(target))
        # "x": never follow or truncate anything that happens to have this name
        file: BinaryIO = open(  # noqa: SIM115 - closed by the caller
            path, "x+b", opener=lambda name, flags: os.open(name, flags, mode)
        )
        hold = None
        try:
            hold = Hold(file.fileno())
            if os.fstat(file.fileno()).st_nlink:
                return file, path, hold
        except BaseException:
            path.unlink(missing_ok=True)
            _close(file, hold)
            raise
        _close(file, hold)


def _close(file: BinaryIO, hold: Hold | None) -> None:
    file.close()
    if hold is not None:
        hold.release()


_unfinished: WeakSet[AtomicFile | AtomicFolder] = WeakSet()


def abandon_outputs() -> None:
    """Remove all temporary files and folders, before a process ends that cannot clean up."""
    for output in list(_unfinished):
        output.abort()


class AtomicFile:
    """A binary file that replaces its target on `commit` and is removed on `abort`.

    path : str or Path      the target; a symbolic link is followed, so the link stays a link
    overwrite : bool        an existing target may be replaced
    is_header : bool        readers find the other files of its group through this file (.hdr of a
                            .hdr/.img pair). The group removes the old header first and places the
                            new one last, so that no header ever describes another's voxels
    file : BinaryIO         the open temporary file
    temporary : Path        its path, with the suffix of the target

    Used as a context manager, it aborts unless `commit` was called.
    Raises: OutputExistsError, WriteError.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with AtomicFile(os.path.join(folder, "a.bin")) as output:
    ...     n = output.file.write(b"abc"); before = os.listdir(folder)
    ...     output.commit()
    >>> "a.bin" in before, os.listdir(folder)
    (False, ['a.bin'])
    """

    def __init__(
        self, path: str | os.PathLike[str], overwrite: bool = False, is_header: bool = False
    ) -> None:
        check_target(path, overwrite, send=False)
        self.path = Path(path)
        self.is_header = is_header
        self._target = Path(os.path.realpath(path))
        self._overwrite = overwrite
        self._open = True
        self._placed = False
        self._old_name: Path | None = None
        self._backup: Path | None = None
        with write_errors(path):
            # Users who may not read the old file must not read the new one, even while it is
            # being written.
            mode = 0o600 if os.path.lexists(self._target) else 0o666
            self.file, self.temporary, self._hold = _new_hidden_file(self._target, mode)
        _unfinished.add(self)

    def commit(self) -> None:
        """Flush the file to the disk and replace the target, or leave that to the `AtomicGroup`.

        After an error the temporary file is removed.
        Raises: WriteError; OutputExistsError if the target appeared meanwhile.
        """
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
        """Rename the complete file over the target. Raises: OutputExistsError, WriteError."""
        with write_errors(self.path):
            old = _status(self._target)
            if old is not None:
                if not self._overwrite:
                    raise OutputExistsError(
                        f"cannot write {self.path}: file appeared meanwhile; {how_to_replace()}"
                    )
                if not stat.S_ISREG(old.st_mode):
                    raise WriteError(
                        f"cannot write {self.path}: "
                        "a folder, link or device appeared there meanwhile; remove it"
                    )
                _copy_access(self.temporary, self._target, old)
            os.replace(self.temporary, self._target)
            self._placed = True

    def planned(self) -> Rename:
        """The renames that `back_up` and `place` will make, for the journal."""
        old = _status(self._target)
        kept = old is not None and self._overwrite and stat.S_ISREG(old.st_mode)
        self._old_name = _old_name(self._target) if kept else None
        return Rename(self._target, self.temporary, self._old_name)

    def back_up(self) -> None:
        """Give the old file a second, hidden name, so that `roll_back` can undo `place`.

        An old header loses its first name.
        """
        old, backup = _status(self._target), self._old_name
        if old is None or backup is None:
            return  # no old file, or `place` will refuse it
        with write_errors(self.path):
            _copy_access(self.temporary, self._target, old)
            self._backup = backup
            try:
                if not self.is_header:
                    os.link(self._target, backup)
                    return
            except OSError:
                pass  # a file system without hard links
            os.rename(self._target, backup)

    def roll_back(self) -> None:
        """Undo `back_up` and `place`: restore the target and remove the new file."""
        with _backup_named(self.path, self._backup):
            if self._placed and self._backup is None:
                self._target.unlink(missing_ok=True)
            elif self._backup is not None and (self._placed or not os.path.lexists(self._target)):
                os.replace(self._backup, self._target)
                self._backup = None
        self._placed = False
        self.remove_backup()
        self.discard()

    def remove_backup(self) -> None:
        """Remove the old file, if `back_up` kept it; the new one is no longer in use."""
        self._hold.release()
        if self._backup is not None:
            with suppress(OSError):
                self._backup.unlink(missing_ok=True)
            self._backup = None

    def discard(self) -> None:
        """Remove the complete file, if it was not placed."""
        self.temporary.unlink(missing_ok=True)
        self._hold.release()

    def abort(self) -> None:
        """Remove the temporary file; the target is unchanged. Does nothing after `commit`."""
        if self._open:
            self._open = False
            try:
                self.file.close()
            except OSError:
                pass  # a full disk may refuse the last buffered bytes, which nobody needs
            finally:
                self.discard()

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class DeviceFile:
    """An output to a device or a FIFO, with the interface of `AtomicFile`.

    path : str or Path      the device or FIFO, which is written to and not replaced
    file : BinaryIO         an unnamed temporary file, which `commit` copies to `path` at once, even
                            in an `AtomicGroup`: what is sent cannot be taken back
    Raises: WriteError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_target(path, overwrite=True)
        self.path = Path(path)
        self.file = unnamed_file()  # closed by commit or abort
        # Without a name it would have the number of its descriptor, which tifffile cannot take.
        raw: Any = self.file
        raw.raw.name = os.fspath(path)

    def commit(self) -> None:
        """Copy the file to the device or FIFO. Raises: WriteError."""
        with write_errors(self.path), self.file:
            self.file.seek(0)
            with open_sent(self.path) as target:
                shutil.copyfileobj(self.file, target, 1 << 20)

    def abort(self) -> None:
        """Write nothing."""
        self.file.close()

    def __enter__(self) -> DeviceFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


OutputFile = AtomicFile | DeviceFile


def output_file(
    path: str | os.PathLike[str], overwrite: bool = False, is_header: bool = False
) -> OutputFile:
    """An output that takes the place of a file, or that is written to a device or a FIFO.

    Raises: OutputExistsError, WriteError.
    >>> with output_file(os.devnull) as output:
    ...     n = output.file.write(b"abc")
    ...     output.commit()
    >>> stat.S_ISCHR(os.stat(os.devnull).st_mode)
    True
    """
    with write_errors(path):
        if special_kind(path) is None:
            return AtomicFile(path, overwrite, is_header)
        return DeviceFile(path)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


_ACCESS_LIST = "system.posix_acl_access"


def _copy_access(new: Path, path: Path, old: os.stat_result) -> None:
    """Copy permissions, access list and, if this process may, owner of an old file or folder.

    new, path : of the new and of the old one
    old : status of the old one
    """
    # A folder's set-group-ID bit decides the group of new files in it; on a file it would be a
    # privilege.
    mode = old.st_mode & (0o2777 if stat.S_ISDIR(old.st_mode) else 0o777)
    if not _change_owner(new, old.st_uid, old.st_gid) and not _change_owner(new, -1, old.st_gid):
        # The new file has another group, which gets the permissions of all others, not those of
        # the old group.
        os.chmod(new, mode & ~0o070 | (mode & 0o007) << 3)
        return
    os.chmod(new, mode)
    if hasattr(os, "getxattr"):
        try:
            os.setxattr(new, _ACCESS_LIST, os.getxattr(path, _ACCESS_LIST))
        except OSError:  # the old one has no list: remove one that the new one got from its folder
            with suppress(OSError):
                os.removexattr(new, _ACCESS_LIST)


def _change_owner(path: Path, user: int, group: int) -> bool:
    """Set the owner (-1: unchanged) and the group of a file or folder; False if this fails."""
    own = os.lstat(path)
    if (user in (-1, own.st_uid)) and group == own.st_gid:
        return True
    try:
        os.chown(path, user, group)
    except OSError:
        return False
    return True


class AtomicFolder:
    """A folder that replaces its target on `commit` and is removed on `abort`.

    path : str or Path      the target; a symbolic link is followed
    overwrite : bool        an existing folder may be replaced, with everything in it
    temporary : Path        the folder to write to

    A folder cannot be renamed over another. So both names are exchanged in one step, and then the
    old folder is removed. Where the system cannot do that, the old one is first renamed to a hidden
    name; a journal tells the next run if the process is killed meanwhile. Used as a context
    manager, it aborts unless `commit` was called.
    Raises: OutputExistsError, WriteError.

    >>> import tempfile
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
        self._overwrite = overwrite
        self._open = True
        self._placed = False
        self._old_name: Path | None = None
        self._backup: Path | None = None
        with write_errors(path):
            mode = 0o700 if os.path.lexists(self._target) else 0o777
            self.temporary, self._hold = new_hidden_folder(self._target, mode=mode)
        _unfinished.add(self)

    def commit(self) -> None:
        """Flush the folder to the disk and replace the target, or leave that to the `AtomicGroup`.

        After an error the target is unchanged and the temporary folder is removed.
        Raises: WriteError; OutputExistsError if the target appeared meanwhile.
        """
        try:
            with write_errors(self.path):
                _flush_folder(self.temporary)
            place_or_stage(self)
        except BaseException:
            self.abort()
            raise
        self._open = False

    def place(self) -> None:
        """Rename the complete folder to the target. Raises: OutputExistsError, WriteError."""
        with write_errors(self.path):
            if (old := _status(self._target)) is not None:
                if not self._overwrite:
                    raise OutputExistsError(
                        f"cannot write {self.path}: folder appeared meanwhile; {how_to_replace()}"
                    )
                _copy_access(self.temporary, self._target, old)
                _copy_access_within(self.temporary, self._target)
                if exchange(self.temporary, self._target):
                    self._backup, self._placed = self.temporary, True
                    return
                self._backup = self._old_name or _old_name(self._target)
                os.rename(self._target, self._backup)
            os.rename(self.temporary, self._target)
            self._placed = True

    def planned(self) -> Rename:
        """The renames that `place` may make, for the journal."""
        exists = os.path.lexists(self._target)
        self._old_name = _old_name(self._target) if exists and self._overwrite else None
        return Rename(self._target, self.temporary, self._old_name)

    def back_up(self) -> None:
        """Do nothing: `place` renames the old folder itself."""

    def roll_back(self) -> None:
        """Undo `place`: restore the target and remove the new folder."""
        with _backup_named(self.path, self._backup):
            if self._placed and self._backup == self.temporary:
                exchange(self.temporary, self._target)
            else:
                if self._placed:
                    os.rename(self._target, self.temporary)
                if self._backup is not None and os.path.lexists(self._backup):
                    os.rename(self._backup, self._target)
        self._placed, self._backup = False, None
        self.discard()

    def remove_backup(self) -> None:
        """Remove the old folder, if `place` replaced one; the new one is no longer in use."""
        self._hold.release()
        if self._backup is not None:
            remove_folder(self._backup)
            self._backup = None

    def discard(self) -> None:
        """Remove the complete folder, if it was not placed."""
        remove_folder(self.temporary)
        self._hold.release()

    def abort(self) -> None:
        """Remove the temporary folder; the target is unchanged. Does nothing after `commit`."""
        if self._open:
            self._open = False
            self.discard()

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
    """Files and folders that appear together, or none of them.

    In the body (and in its thread) `commit` of an `AtomicFile` or `AtomicFolder` flushes to the
    disk but does not rename, so that others can still read the complete output and write a record
    of it. `commit` of the group then renames them in order; without it they are removed.

    staged : list       complete outputs, not yet renamed from `temporary` to `path`

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with AtomicGroup() as group:
    ...     for name in ("a", "b"):
    ...         with AtomicFile(os.path.join(folder, name)) as output:
    ...             n = output.file.write(b"abc")
    ...             output.commit()
    ...     staged = [output.temporary.read_bytes() for output in group.staged]
    ...     exists = os.path.exists(os.path.join(folder, "a"))
    ...     group.commit()
    >>> staged, exists, sorted(os.listdir(folder))
    ([b'abc', b'abc'], False, ['a', 'b'])
    """

    def __init__(self) -> None:
        self.staged: list[AtomicFile | AtomicFolder] = []
        self._around: AtomicGroup | None = None

    def commit(self) -> None:
        """Place all outputs, or leave that to the group around this one.

        After an error every target is restored and all new files are removed.

        Old headers are removed first and new ones placed last. So if the process is killed
        meanwhile, no header describes another's voxels. Signals wait until this is done.
        Raises: OutputExistsError, WriteError.
        """
        if self._around is not None:
            self._around.staged += self.staged
        else:
            _place_all(sorted(self.staged, key=_is_header))
        self.staged = []

    def __enter__(self) -> AtomicGroup:
        self._around = _group.get()
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
    """Place a complete output, or add it to the group around it."""
    group = _group.get()
    if group is not None:
        group.staged.append(output)
    else:
        _place_all([output])


def _old_name(target: Path) -> Path:
    return hidden_name(target, suffix_of(target), "old")


def _is_header(output: AtomicFile | AtomicFolder) -> bool:
    return isinstance(output, AtomicFile) and output.is_header


def _place_all(outputs: list[AtomicFile | AtomicFolder]) -> None:
    """Place all outputs or none; signals wait meanwhile."""
    if not outputs:
        return  # all were sent to devices
    placed = False
    try:
        with signals_deferred():
            journal = None
            try:
                with write_errors(outputs[0].path):
                    planned = [output.planned() for output in outputs]
                # a single file replaces the old one in one atomic step
                if len(outputs) > 1 or (isinstance(outputs[0], AtomicFolder) and planned[0].old):
                    with write_errors(outputs[0].path):
                        journal = Journal(planned)
                if len(outputs) > 1:
                    for output in reversed(outputs):
                        output.back_up()
                for output in outputs:
                    output.place()
            except BaseException as error:
                try:
                    _roll_back(outputs, error)
                except WriteError:
                    if journal is not None:
                        journal.leave()
                    raise
                raise
            finally:
                if journal is not None:
                    journal.remove()
            placed = True
            if (known := _placed.get()) is not None:
                known += [os.fspath(output.path) for output in outputs]
            for output in outputs:
                if isinstance(output, AtomicFile):
                    output.remove_backup()
    finally:
        # Removing large folders takes a while. Signals need not wait for that, and `finally`
        # removes them even if a signal interrupted the lines above.
        if placed:
            for output in outputs:
                output.remove_backup()


def _roll_back(outputs: list[AtomicFile | AtomicFolder], error: BaseException) -> None:
    """Restore all targets. Raises: WriteError if one fails; it says where the old file is."""
    lost = []
    for output in outputs:
        try:
            output.roll_back()
        except WriteError as failed:
            lost.append(str(failed))
    if lost:
        raise WriteError("; ".join([str(error), *lost])) from error


_placed: ContextVar[list[str] | None] = ContextVar("_placed", default=None)


@contextmanager
def placed_outputs(apart: bool = False) -> Iterator[list[str]]:
    """Collect the paths of outputs as they are placed, so that an interrupt right after loses none.

    apart : bool    a collection around this one does not get them

    >>> import tempfile
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
        if not apart and (outer := _placed.get()) is not None:
            outer += placed


@contextmanager
def committed_together() -> Iterator[None]:
    """Place the outputs that are committed in the body together, at its end.

    In an `AtomicGroup` they become part of that group.
    """
    if _group.get() is not None:
        yield
        return
    with AtomicGroup() as group:
        yield
        group.commit()


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer Ctrl-C, SIGTERM and SIGHUP until the body is done.

    Python handles signals in the main thread only, so other threads need nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    usual = {}
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # None: a handler that was not set from Python, which cannot restore it
            if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                usual[number] = signal.signal(number, lambda number, frame: arrived.append(number))
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


@contextmanager
def _backup_named(path: Path, backup: Path | None) -> Iterator[None]:
    """Name the backup if the body cannot restore the old file or folder. Raises: WriteError.

    backup : None if there was no old one, so that the new one should have been removed
    """
    try:
        yield
    except OSError as error:
        if backup is None:
            text = f"cannot remove the new {path} ({error.strerror}); remove it"
        else:
            text = (
                f"cannot restore {path} ({error.strerror}): "
                f"its old version is now {backup}; rename it"
            )
        raise WriteError(text) from error


def _flush_folder(folder: Path) -> None:
    """Flush everything in a folder to the disk.

    Otherwise a power cut could leave a complete folder of empty files.
    """
    for where, names in walk(folder):
        for name in names:
            flush_to_disk(os.path.join(where, name))
        flush_to_disk(where, folder=True)


def _copy_access_within(new: Path, old: Path) -> None:
    """Set owner and permissions of everything in a new folder.

    The owner is that of the new folder, if this process may change owners. Files and folders get
    the permissions of the first file and the first folder in the old one.
    """
    owner = os.lstat(new)
    modes = {is_folder: _mode_within(old, is_folder) for is_folder in (False, True)}
    changed = {
        is_folder: mode
        for is_folder, mode in modes.items()
        if mode not in (None, _mode_within(new, is_folder))
    }
    foreign = hasattr(os, "getuid") and (owner.st_uid, owner.st_gid) != (os.getuid(), os.getgid())
    if not changed and not foreign:
        return
    for where, folders, names in os.walk(new):
        entries = [*((name, True) for name in folders), *((name, False) for name in names)]
        for name, is_folder in entries:
            path = os.path.join(where, name)
            with suppress(OSError):
                if foreign:
                    os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
                if (mode := changed.get(is_folder)) is not None:
                    os.chmod(path, mode)


def _mode_within(folder: Path, is_folder: bool) -> int | None:
    """The permissions of the first file, or of the first folder, in a folder; None without one."""
    mask = 0o2777 if is_folder else 0o777
    for where, folders, names in os.walk(folder):
        for name in folders if is_folder else names:
            with suppress(OSError):
                return os.lstat(os.path.join(where, name)).st_mode & mask
    return None


def remove_folder(folder: Path) -> None:
    """Remove a folder; try again if a library's interrupted thread still writes a file to it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


def cause_of(error: OSError) -> str:
    """The reason why a write failed, in plain words, with a cure if there is one.

    >>> cause_of(OSError(errno.ENOSPC, "No space left on device"))
    'no space left on the disk; free some or choose another folder'
    """
    if error.errno == errno.ENOENT and error.strerror == os.strerror(errno.ENOENT):
        return "nothing of this name can be made there; choose another folder"
    return {
        errno.ENOSPC: "no space left on the disk; free some or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some or choose another folder",
        errno.ENOTDIR: "a part of its path is a file; name another folder",
        errno.ENAMETOOLONG: "the name is too long for the file system; shorten it",
        errno.EACCES: "permission denied; choose a folder that is writable",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EFBIG: "the file system or a limit (ulimit -f) refuses a file of this size",
        errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
        errno.ENFILE: "too many files are open on this machine; end other programs",
        errno.ENOMEM: "out of memory",
        errno.EEXIST: "a file of that name is in the way; name another folder",
        errno.EBADF: "it is closed, or not open for writing",
        errno.EPIPE: "its reader has ended",
    }.get(error.errno or 0, error.strerror or str(error))


class write_errors:
    """Turn an OSError of the body into a WriteError that names the output and the cause.

    path : the output, as the user named it
    The package's own errors pass unchanged, such as a FormatError of the input.
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
            if is_loading_fault(error):  # a library that is first needed here
                return
            if error.errno == errno.ENOMEM:
                raise MemoryLimitError(f"cannot write {self.path}: {explained(error)}") from error
            raise WriteError(f"cannot write {self.path}: {cause_of(error)}") from error

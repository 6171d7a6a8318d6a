"""Outputs that appear complete or not at all.

An `AtomicFile` is a temporary file in the target's own folder; `commit` flushes it to the disk and renames it over the
target, `abort` removes it. So no reader, and no `make`, ever sees half an output, and an existing target stays untouched
until the new one is whole. `AtomicFolder` is the same for outputs that are folders (Zarr). Within an `AtomicGroup` several of
them wait for each other. Formats and kernel writers use them; they know nothing of volumes.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType

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


def check_target(
    path: str | os.PathLike[str], overwrite: bool, make_folder: bool = False, folder: bool = False
) -> None:
    """Refuse a target that exists (unless `overwrite`) or whose folder is missing or not writable.

    make_folder : bool      its folder may be missing as long as it can be made
    folder : bool           the target is to be a folder itself
    Raises: OutputExistsError, WriteError.
    """
    with write_errors(path):
        target = Path(path)
        if target.is_dir() and not folder:
            raise WriteError(f"cannot write {path}: it is a folder; name a file, or use --out-dir")
        if os.path.lexists(target) and not overwrite:
            kind = "folder" if target.is_dir() else "file"
            raise OutputExistsError(f"cannot write {path}: {kind} exists; pass --overwrite to replace it")
        if folder and target.exists() and not target.is_dir():
            raise WriteError(f"cannot write {path}: it is a file, and a folder is to be written; remove it first")
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
    stem = os.fsencode(stem)[:80].decode(errors="ignore")  # a name has room for 255 bytes, not characters
    return target.with_name(f".{stem}.{os.urandom(4).hex()}.{mark}{suffix}")


class AtomicFile:
    """A binary file that takes its target's place on `commit` and vanishes on `abort`.

    path : str or Path      the target; a symbolic link is followed, so the link stays a link
    overwrite : bool        whether an existing target may be replaced

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

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        check_target(path, overwrite)
        self.path = Path(path)
        self._target = Path(os.path.realpath(path))
        self.temporary = temporary_name(self._target)
        self._overwrite = overwrite
        self._open = True
        with write_errors(path):
            # "x": never follow or truncate something that happens to have this name
            self.file = open(self.temporary, "x+b")  # noqa: SIM115 - closed by commit or abort

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
            if not self._overwrite and os.path.lexists(self._target):
                raise OutputExistsError(
                    f"cannot write {self.path}: file appeared meanwhile; pass --overwrite to replace it"
                )
            os.replace(self.temporary, self._target)

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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


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
        with write_errors(path):
            self.temporary.mkdir()

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
        aside = None
        try:
            with write_errors(self.path):
                if os.path.lexists(self._target):
                    if not self._overwrite:
                        raise OutputExistsError(
                            f"cannot write {self.path}: folder appeared meanwhile; pass --overwrite to replace it"
                        )
                    aside = temporary_name(self._target, "old")
                    os.rename(self._target, aside)
                os.rename(self.temporary, self._target)
        except BaseException:
            if aside is not None and os.path.lexists(aside) and not os.path.lexists(self._target):
                os.rename(aside, self._target)
            raise
        if aside is not None:
            _remove_folder(aside)

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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
        """Give all of them their places. What could still fail is a rename within a folder; those before it are done then."""
        while self.staged:
            self.staged[0].place()
            del self.staged[0]

    def __enter__(self) -> AtomicGroup:
        self._before: Token[AtomicGroup | None] = _group.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _group.reset(self._before)
        for output in self.staged:
            output.discard()
        self.staged = []


_group: ContextVar[AtomicGroup | None] = ContextVar("_group", default=None)


def place_or_stage(output: AtomicFile | AtomicFolder) -> None:
    """Give an output that is whole its place, or leave it to the group that it belongs to."""
    group = _group.get()
    if group is None:
        output.place()
    else:
        group.staged.append(output)


def _flush_folder(folder: Path) -> None:
    """Everything in a folder on the disk: else a power cut could leave a whole folder of empty files."""
    for where, _, names in os.walk(folder):
        for name in (*names, "."):
            number = os.open(os.path.join(where, name), os.O_RDONLY)
            try:
                os.fsync(number)
            except OSError as error:
                if name != "." or error.errno not in (errno.EINVAL, errno.EBADF):  # some systems flush no folders
                    raise
            finally:
                os.close(number)


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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, Conv3DError):
            raise WriteError(f"cannot write {self.path}: {cause_of(error)}") from error

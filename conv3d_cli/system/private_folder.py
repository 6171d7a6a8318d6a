"""`PrivateFolder`: a folder whose files only this user or root can have written.

Compiled code is read from such folders only. A user who may write to a folder above could replace
the folder below it. So the path is walked from the root, and each folder is opened through the
descriptor of its parent: every folder, link and file on the way must belong to this user or to
root, and nobody else may write to it. The folder that was checked is the one that is read, even if
somebody renames it meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType

POSIX = os.open in os.supports_dir_fd and hasattr(os, "getuid")
MAX_LINKS = 40  # symbolic links in a path, as many as Linux follows
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY) | _NO_LINK
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | _NO_LINK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | _NO_LINK


class PrivateFolder:
    """An open private folder, as the module describes it. Close it, or use it as a context manager.

    path : str or Path      made absolute; symbolic links are followed if this user or root owns
                            them
    make : bool             make missing folders, for this user only
    Raises: PermissionError, which names the part of the path that others may write; OSError if the
        folder is missing or cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with PrivateFolder(Path(parent) / "a" / "b", make=True) as folder:
    ...         folder.write("x", b"abc")
    ...         folder.read("x"), folder.read("y")
    (b'abc', None)
    """

    def __init__(self, path: str | os.PathLike[str], make: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self._descriptor: int | None = None
        self._lock: int | None = None
        if POSIX:
            self._descriptor = _open_private(self.path, make)
        elif make:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def _place(self, name: str) -> str:
        return name if self._descriptor is not None else str(self.path / name)

    def read(self, name: str, secret: bool = False) -> bytes | None:
        """The bytes of a file; None if it is missing or others may write it.

        name : str          in this folder; None as well unless it is a plain file
        secret : bool       None as well if others may read it
        """
        try:
            descriptor = os.open(self._place(name), _READ, dir_fd=self._descriptor)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            if POSIX and (_why_unsafe(status) or (secret and status.st_mode & 0o077)):
                return None
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes, replace: bool = True) -> None:
        """Write a file that only this user may read; it appears complete.

        replace : bool      False: keep an existing file
        Raises: OSError.
        """
        here, target = self._descriptor, self._place(name)
        with self._temporary(data) as temporary:
            if not replace:
                try:
                    os.link(temporary, target, src_dir_fd=here, dst_dir_fd=here)
                    return
                except FileExistsError:
                    return
                except OSError:
                    pass  # a file system without hard links
            os.replace(temporary, target, src_dir_fd=here, dst_dir_fd=here)

    def check_writable(self) -> None:
        """Write a file and remove it. Raises: OSError if that fails."""
        with self._temporary(b""):
            pass

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[str]:
        temporary = self._place(f".writing-{os.urandom(8).hex()}")
        try:
            with open(os.open(temporary, _NEW, 0o600, dir_fd=self._descriptor), "wb") as file:
                file.write(data)
            yield temporary
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._descriptor)

    def exists(self, name: str) -> bool:
        """True if the folder has an entry of this name, of any kind."""
        try:
            os.stat(self._place(name), dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def lock(self) -> bool:
        """Lock the folder for this object until it is closed; False if another one has the lock.

        The lock of a process that dies is gone.
        Raises: OSError if the system or the file system has no such locks.
        """
        try:
            import fcntl
        except ImportError:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from None
        if self._lock is None:
            self._lock = os.open(self._place("."), os.O_RDONLY | _NO_LINK, dir_fd=self._descriptor)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the folder. Does nothing when called again."""
        if self._lock is not None:
            import fcntl

            fcntl.flock(self._lock, fcntl.LOCK_UN)  # else a copy in a forked process would keep it
            os.close(self._lock)
            self._lock = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_private(path: Path, make: bool) -> int:
    """Open a folder after checking every folder and link of its path; its descriptor."""
    descriptor = os.open("/", _FOLDER)
    try:
        names = list(reversed(path.parts[1:]))
        links, why_unsafe = 0, _why_unsafe(os.fstat(descriptor), sticky=True)
        here = "/"
        while not why_unsafe and names:
            name = names.pop()
            here = os.path.join(here, name)
            try:
                descriptor = _open_inside(descriptor, name, make)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                links += 1
                if not stat.S_ISLNK(status.st_mode) or links > MAX_LINKS:
                    raise
                if status.st_uid not in _trusted_users():
                    raise PermissionError(
                        errno.EPERM, f"the link {here} is another user's"
                    ) from None
                target = Path(os.readlink(name, dir_fd=descriptor))
                here = os.path.dirname(here)
                if target.is_absolute():
                    here = "/"
                    descriptor = _open_inside(descriptor, "/", False)
                names += reversed(target.parts[target.is_absolute() :])
                continue
            why_unsafe = _why_unsafe(os.fstat(descriptor), sticky=bool(names))
        if why_unsafe:
            raise PermissionError(errno.EPERM, f"{here} {why_unsafe}")
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _open_inside(descriptor: int, name: str, make: bool) -> int:
    """Open a folder inside another one, whose descriptor is then closed."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=descriptor)
    inner = os.open(name, _FOLDER, dir_fd=descriptor)
    os.close(descriptor)
    return inner


def _why_unsafe(status: os.stat_result, sticky: bool = False) -> str:
    """The reason why others may have written a file or folder; "" if they cannot.

    sticky : bool       a folder may be writable if only owners can rename or remove its entries
                        (/tmp)
    """
    if status.st_uid not in _trusted_users():
        return "is another user's"
    writable = status.st_mode & stat.S_IWOTH or (
        status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    )
    if writable and not (sticky and status.st_mode & stat.S_ISVTX):
        return "may be written by others"
    return ""


@lru_cache(maxsize=1)
def _trusted_users() -> frozenset[int]:
    """User IDs of this user and of root.

    In a container that maps this user only, root appears as the overflow user.
    """
    users = {os.getuid(), 0}
    with suppress(OSError, ValueError):
        rows = [
            tuple(map(int, row.split()))
            for row in Path("/proc/self/uid_map").read_text().splitlines()
        ]
        if not any(first <= 0 < first + count for first, _, count in rows):
            users.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return frozenset(users)


@lru_cache(maxsize=8)
def _is_own_group(group: int) -> bool:
    """True for a group of this user only, as on systems that give every user such a group."""
    import grp
    import pwd

    try:
        user, named = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    own = os.getuid() != 0 and group == user.pw_gid and named.gr_name == user.pw_name
    return own and set(named.gr_mem) <= {user.pw_name}

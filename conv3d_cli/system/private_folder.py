"""A folder of files that only this user, or the administrator, can have written: compiled code is read from no other.

Whoever may write into one of the folders above could put another folder in its place. So the path is walked from the root,
each step through a descriptor of the folder before it: every folder, link and file on the way must belong to this user or
to root, and nobody else may write to it. What was looked at is what is read, whatever is renamed meanwhile.
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
MAX_LINKS = 40  # as Linux follows
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY) | _NO_LINK
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | _NO_LINK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | _NO_LINK


class PrivateFolder:
    """A folder, opened; see the module. Used as a context manager, which closes it.

    path : str or Path      made absolute; symbolic links on the way are followed if they are this user's or root's
    make : bool             folders that are missing are made, for this user alone
    Raises: PermissionError, saying which part of the path others may write; OSError if it is missing or cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent, PrivateFolder(Path(parent) / "a" / "b", make=True) as folder:
    ...     folder.write("x", b"abc")
    ...     folder.read("x"), folder.read("y")
    (b'abc', None)
    """

    def __init__(self, path: str | os.PathLike[str], make: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self._number: int | None = None
        if POSIX:
            self._number = _walk(self.path, make)
        elif make:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def _place(self, name: str) -> str:
        return name if self._number is not None else str(self.path / name)

    def read(self, name: str, secret: bool = False) -> bytes | None:
        """A file's bytes; None if it is missing or not a plain file of this user or root that nobody else may write.

        secret : bool       None as well if others may read it
        """
        try:
            number = os.open(self._place(name), _READ, dir_fd=self._number)
        except OSError:
            return None
        try:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                return None
            if POSIX and (_fault(status) or (secret and status.st_mode & 0o077)):
                return None
            with open(number, "rb", closefd=False) as file:
                return file.read()
        except OSError:
            return None
        finally:
            os.close(number)

    def write(self, name: str, data: bytes, replace: bool = True) -> None:
        """Write a file that only this user may read; it appears whole.

        replace : bool      whether it takes the place of one that is there
        Raises: OSError.
        """
        here, target = self._number, self._place(name)
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
        """Write a file and remove it. Raises: OSError if that cannot be done."""
        with self._temporary(b""):
            pass

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[str]:
        temporary = self._place(f".writing-{os.urandom(8).hex()}")
        try:
            with open(os.open(temporary, _NEW, 0o600, dir_fd=self._number), "wb") as file:
                file.write(data)
            yield temporary
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._number)

    def holds(self, name: str) -> bool:
        """Whether there is a file of this name, of whatever kind."""
        try:
            os.stat(self._place(name), dir_fd=self._number, follow_symlinks=False)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let it go."""
        if self._number is not None:
            os.close(self._number)
            self._number = None

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _walk(path: Path, make: bool) -> int:
    """A descriptor of a folder that nobody else can have written to."""
    number = os.open("/", _FOLDER)
    try:
        names = list(reversed(path.parts[1:]))
        links, fault = 0, _fault(os.fstat(number), sticky=True)
        here = "/"
        while not fault and names:
            name = names.pop()
            here = os.path.join(here, name)
            try:
                number = _into(number, name, make)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                status = os.stat(name, dir_fd=number, follow_symlinks=False)
                links += 1
                if not stat.S_ISLNK(status.st_mode) or links > MAX_LINKS:
                    raise
                if status.st_uid not in _trusted_users():
                    raise PermissionError(
                        errno.EPERM, f"the link {here} is another user's"
                    ) from None
                target = Path(os.readlink(name, dir_fd=number))
                here = os.path.dirname(here)
                if target.is_absolute():
                    here = "/"
                    number = _into(number, "/", False)
                names += reversed(target.parts[target.is_absolute() :])
                continue
            fault = _fault(os.fstat(number), sticky=bool(names))
        if fault:
            raise PermissionError(errno.EPERM, f"{here} {fault}")
        return number
    except BaseException:
        os.close(number)
        raise


def _into(number: int, name: str, make: bool) -> int:
    """The descriptor of a folder within that of another, which is closed."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=number)
    inner = os.open(name, _FOLDER, dir_fd=number)
    os.close(number)
    return inner


def _fault(status: os.stat_result, sticky: bool = False) -> str:
    """Why a file or folder may hold what others wrote; "" if it cannot.

    sticky : bool       a folder in which nobody can move or remove what is another's, as /tmp, will do
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
    """This user and root. In a container that maps this user alone, root is whoever has no number there."""
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
    """Whether a group is this user's alone, as where everybody has a group of the same name and umask 002."""
    import grp
    import pwd

    try:
        user, named = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    own = os.getuid() != 0 and group == user.pw_gid and named.gr_name == user.pw_name
    return own and set(named.gr_mem) <= {user.pw_name}

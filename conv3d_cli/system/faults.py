"""Faults of the system rather than of a file: disk, memory, and limits of threads and open files.

A reader sees them among errors that damaged bytes cause. `raise_fault` and `reading` tell them
apart, so that nobody is told to copy a good file again. `explained` is for whatever nobody nearer
has put into words.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    MemoryLimitError,
    SystemLimitError,
    WriteError,
    setting,
)
from conv3d_cli.system.inputs import why_unreadable

# Damaged bytes cause others, such as EINVAL for a seek to a negative position.
_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES", "EAGAIN", "EBUSY", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENODEV",
        "ENOLCK", "ENOMEM", "ENOSPC", "ENXIO", "EPERM", "EROFS", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
# Words of Python, of zstd, of the C library and of llvmlite: the classes alone say nothing.
_NO_THREAD = "can't start new thread"
_NO_MEMORY = ("not enough memory", "unable to create zstd")
_NOT_LOADED = ("failed to map segment", "cannot allocate memory", "load shared object file")


def is_fault(error: BaseException | None) -> bool:
    """Whether an error is the system's.

    >>> is_fault(OSError(errno.EIO, "Input/output error")), is_fault(MemoryError())
    (True, True)
    >>> is_fault(OSError(errno.EINVAL, "Invalid argument")), is_fault(ValueError("bad magic"))
    (False, False)
    """
    if isinstance(error, Conv3DError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NUMBERS
    return isinstance(error, MemoryError) or _is_of_threads(error) or _lacks_memory(error)


def _lacks_memory(error: BaseException | None) -> bool:
    text = str(error).lower()
    return is_loading_fault(error) or any(words in text for words in _NO_MEMORY)


def _is_of_threads(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and _NO_THREAD in str(error)


def is_loading_fault(error: BaseException | None) -> bool:
    """Whether a library could not be loaded for lack of memory; the loader says it in words only.

    >>> is_loading_fault(ImportError("libx.so: failed to map segment from shared object"))
    True
    >>> is_loading_fault(ImportError("No module named 'x'"))
    False
    """
    if not isinstance(error, ImportError | OSError) or isinstance(error, Conv3DError):
        return False
    text = str(error).lower()
    # llvmlite says no more; without a limit, its installation may well be broken
    known = _NOT_LOADED if _address_space_is_limited() else _NOT_LOADED[:1]
    return getattr(error, "errno", None) is None and any(words in text for words in known)


def _address_space_is_limited() -> bool:
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def explained(error: BaseException) -> Conv3DError | None:
    """The error, in words for the user, of a fault of the system; None for any other error.

    >>> print(explained(RuntimeError("can't start new thread")))
    the system starts no more threads (ulimit -u or -v, or a container's limit): pass threads=1
    """
    if not is_fault(error):
        return None
    if is_loading_fault(error):
        return MemoryLimitError(
            "out of memory: a library cannot be loaded; raise the limit (ulimit -v), or use a "
            "machine with more"
        )
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        if _is_limit(error):
            return SystemLimitError(why_unreadable(error))
        name = error.filename
        words = f": {os.fsdecode(name)}" if isinstance(name, (str, bytes)) else ""
        return WriteError(f"the system refused a file operation{words}: {why_unreadable(error)}")
    if _is_of_threads(error):
        return SystemLimitError(
            "the system starts no more threads (ulimit -u or -v, or a container's limit): "
            f"pass {setting('threads', 1)}"
        )
    return MemoryLimitError(
        f"out of memory; pass a smaller {setting('max_memory')}, or use a machine with more"
    )


def _is_limit(error: OSError) -> bool:
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def raise_fault(error: BaseException, path: str) -> None:
    """Raise what becomes of a fault of the system while a file is read; do nothing for another.

    Raises: FormatError, SystemLimitError, MemoryLimitError.
    """
    if not is_fault(error):
        return
    if (
        isinstance(error, OSError)
        and not is_loading_fault(error)
        and error.errno != errno.ENOMEM
        and not _is_limit(error)
    ):
        raise FormatError(f"cannot read {path}: {why_unreadable(error)}") from error
    found = explained(error)
    assert found is not None
    raise type(found)(f"cannot read {path}: {found}") from error


class reading:
    """Turn a fault of the system in the body into an error that names the file that is read.

    path : str      the file, as the user named it
    Raises: FormatError, SystemLimitError, MemoryLimitError.

    >>> with reading("a.nii"):
    ...     raise OSError(errno.EMFILE, "Too many open files")
    Traceback (most recent call last):
    conv3d_cli.errors.SystemLimitError: cannot read a.nii: too many files are open; ...
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            raise_fault(error, self.path)

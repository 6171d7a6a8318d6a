"""Temporary files that no other process sees, in $TMPDIR or the system's temporary folder.

Never in the current folder, which may be a dataset: Python's tempfile would go there when every
other folder is read-only. tempfile is imported late, since it imports much and few jobs need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from conv3d_cli.errors import WriteError
from conv3d_cli.system.portable import POSIX

VARIABLES = ("TMPDIR", "TEMP", "TMP")
FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp")


def temporary_folder(beside: str | os.PathLike[str] | None = None) -> str:
    """The first writable one of $TMPDIR, $TEMP, $TMP, and the system's temporary folders.

    beside : path of an output, whose folder serves if none is writable; not that of a device
    Raises: WriteError if there is none.
    >>> os.path.isdir(temporary_folder())
    True
    """
    if not POSIX:
        import tempfile

        return tempfile.gettempdir()
    named = [os.path.abspath(os.environ[name]) for name in VARIABLES if os.environ.get(name)]
    last = []
    if beside not in (None, "-") and (os.path.isfile(beside) or not os.path.exists(beside)):
        last = [os.path.dirname(os.path.realpath(beside))]
    for folder in (*named, *FOLDERS, *last):
        if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise WriteError(
        f"no temporary folder is writable ({', '.join(dict.fromkeys((*named, *FOLDERS)))}): "
        "set TMPDIR to a folder with room"
    )


def unnamed_file(beside: str | os.PathLike[str] | None = None) -> BinaryIO:
    """A new file without a name in `temporary_folder(beside)`; closing it deletes it.

    Raises: WriteError, OSError.
    """
    import tempfile

    return tempfile.TemporaryFile(prefix="conv3d-", dir=temporary_folder(beside))


@contextmanager
def scratch_folder(
    prefix: str = "conv3d-", beside: str | os.PathLike[str] | None = None
) -> Iterator[str]:
    """In the body, the path of a new folder in `temporary_folder(beside)`, hidden beside an output.

    Raises: WriteError.
    """
    import tempfile

    parent = temporary_folder(beside)
    if beside is not None and parent == os.path.dirname(os.path.realpath(beside)):
        prefix = f".{prefix}"
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=parent, ignore_cleanup_errors=True
    ) as folder:
        yield folder


@contextmanager
def libraries_use(folder: str) -> Iterator[None]:
    """In the body, libraries put their own temporary files into a folder."""
    import tempfile

    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before

"""Digests of files, arrays and settings, and fingerprints of files.

A digest tells whether the contents are the same. All are SHA-256, written "sha256:" and 64
hexadecimal digits; `sha256sum` prints the same digits for a file. A fingerprint tells whether a
file was modified, without reading it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.system.inputs import near_names, walk, why_unreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIGEST_NAME = "sha256"

FileFingerprint = list[Any]
"""[size, inode, modification time in ns, change time in ns] of a file; see `fingerprint_of`."""


def file_digest(path: str | os.PathLike[str]) -> str:
    """The digest of a file, or of all files in a folder (a Zarr store).

    The digest of a folder covers the names of its files (relative, with "/", sorted by their bytes)
    and their digests. It ignores times, permissions and empty folders, and follows links.
    Raises: SpecError for "-" and for a URL, which are not local files; FormatError if a file cannot
        be read.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with open(os.path.join(folder, "a"), "wb") as file:
    ...     n = file.write(b"abc")
    >>> file_digest(os.path.join(folder, "a"))
    'sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    >>> before = file_digest(folder)
    >>> os.mkdir(os.path.join(folder, "empty"))
    >>> file_digest(folder) == before
    True
    >>> os.rename(os.path.join(folder, "a"), os.path.join(folder, "b"))
    >>> file_digest(folder) == before
    False
    """
    name = os.fspath(path)
    if name == "-" or "://" in name:
        what = "a pipe" if name == "-" else "a URL"
        raise SpecError(
            f"cannot take the digest of {name}: it is {what}, not a local file; name a local copy"
        )
    if not os.path.isdir(name):
        return f"{DIGEST_NAME}:{_hash_file(name).hex()}"
    digest = hashlib.new(DIGEST_NAME)
    for inner in sorted(_files_in(name, "", ()), key=os.fsencode):
        # Names contain no zero byte and digests have a fixed length, so different folders never
        # give the same bytes.
        digest.update(os.fsencode(inner) + b"\0" + _hash_file(os.path.join(name, inner)))
    return f"{DIGEST_NAME}:{digest.hexdigest()}"


def _hash_file(path: str) -> bytes:
    """The digest of a plain file as bytes. Raises: FormatError."""
    try:
        # opening a pipe would wait for a writer, and reading a device may never end
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FormatError(f"cannot read {path}: it is a pipe or a device; name a file")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, DIGEST_NAME).digest()
    except FileNotFoundError:
        raise FormatError(f"cannot read {path}: no such file{near_names(path)}") from None
    except FormatError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FormatError(f"cannot read {path}: {why_unreadable(error)}") from None


def _files_in(root: str, inner: str, above: tuple[str, ...]) -> list[str]:
    """Names of all files in a folder, relative to `root`; links are followed.

    inner : str             the folder, relative to `root`
    above : tuple of str    true paths of the folders above it, to detect cycles of links
    Raises: FormatError for a cycle, and for a folder that cannot be read.
    """
    folder = os.path.join(root, inner)
    real = os.path.realpath(folder)
    if real in above:
        raise FormatError(
            f"cannot read {folder}: it is a link to a folder that contains it; remove it"
        )
    found = []
    try:
        entries = [(entry.name, entry.is_dir()) for entry in os.scandir(folder)]
    except OSError as error:
        raise FormatError(f"cannot read {folder}: {why_unreadable(error)}") from None
    for name, is_folder in entries:
        path = f"{inner}/{name}" if inner else name
        found += _files_in(root, path, (*above, real)) if is_folder else [path]
    return found


def array_digest(array: NDArray[Any]) -> str:
    """The digest of an array's dtype, shape and elements.

    Elements are hashed in C order and little-endian, so that neither the strides nor the byte order
    in memory matters.
    >>> import numpy as np
    >>> a = np.arange(6, dtype=np.float64).reshape(2, 3)
    >>> array_digest(a) == array_digest(np.asfortranarray(a)) == array_digest(a.astype(">f8"))
    True
    >>> array_digest(a) in (array_digest(a.reshape(3, 2)), array_digest(a.astype(np.float32)))
    False
    """
    dtype: np.dtype[Any] = array.dtype.newbyteorder("<")
    shape = ",".join(map(str, array.shape))
    digest = hashlib.new(DIGEST_NAME, f"{dtype.str} {shape}\n".encode())
    digest.update(array.astype(dtype, copy=False).tobytes("C"))
    return f"{DIGEST_NAME}:{digest.hexdigest()}"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """The digest of settings, as JSON with sorted keys and no spaces.

    settings : values that JSON can hold; a tuple equals a list, but 1 does not equal 1.0
    Raises: TypeError for a value that JSON cannot hold.

    >>> settings_digest({"b": (1, 2), "a": None}) == settings_digest({"a": None, "b": [1, 2]})
    True
    >>> settings_digest({"strides": 1}) == settings_digest({"strides": 2})
    False
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return f"{DIGEST_NAME}:{hashlib.new(DIGEST_NAME, text.encode()).hexdigest()}"


def fingerprint_of(path: str) -> FileFingerprint:
    """The fingerprint of a file or folder, which changes when anybody writes to it.

    Returns [size, inode, modification time in ns, change time in ns]; for a folder [digest of the
    fingerprints in it, number of files, latest time in ns, the same again].
    Raises: FormatError if the file, or a file in the folder, cannot be found.
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     fingerprint_of(file.name) == fingerprint_of(file.name)
    True
    """
    try:
        if not os.path.isdir(path):
            status = os.stat(path)
            return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        listed, last = [], 0
        for where, names in walk(path, follow_links=True):
            for name in names:
                status = os.stat(os.path.join(where, name))
                times = (status.st_mtime_ns, status.st_ctime_ns)
                listed.append(
                    [os.path.relpath(where, path), name, status.st_size, status.st_ino, *times]
                )
                last = max(last, *times)
        return [settings_digest({"files": listed}), len(listed), last, last]
    except FileNotFoundError:
        raise FormatError(f"cannot read {path}: no such file{near_names(path)}") from None
    except OSError as error:
        raise FormatError(f"cannot read {path}: {why_unreadable(error)}") from None

"""Digests: short names of the contents of files, arrays and settings, by which a run can tell whether they are the same.

All are SHA-256, written "sha256:" and 64 hexadecimal digits, so that `sha256sum` finds the same of a file. A
fingerprint tells whether a file was touched, without reading it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import FormatError, SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIGEST_NAME = "sha256"

FileFingerprint = list[Any]
"""What `fingerprint_of` finds: [size, inode, time of modification in ns, time of change in ns] of a file."""


def file_digest(path: str | os.PathLike[str]) -> str:
    """The digest of a file's bytes, read in pieces; of a folder (a Zarr store), that of the files in it.

    A folder's is taken of the names of its files (relative, with "/", in the order of their bytes) and their digests: neither
    times, nor permissions, nor empty folders count, nor whether a file is reached through a link.
    Raises: SpecError for "-" and for a URL, whose bytes are not at hand; FormatError if something cannot be read.

    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with open(os.path.join(folder, "a"), "wb") as file:
    ...     n = file.write(b"abc")
    >>> file_digest(os.path.join(folder, "a"))
    'sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    >>> whole = file_digest(folder)
    >>> os.mkdir(os.path.join(folder, "empty")); file_digest(folder) == whole
    True
    >>> os.rename(os.path.join(folder, "a"), os.path.join(folder, "b")); file_digest(folder) == whole
    False
    """
    name = os.fspath(path)
    if name == "-" or "://" in name:
        what = "a pipe" if name == "-" else "a URL"
        raise SpecError(
            f"cannot take the digest of {name}: it is {what}, and not a file at hand; name a local copy"
        )
    if not os.path.isdir(name):
        return f"{DIGEST_NAME}:{_of_file(name).hex()}"
    digest = hashlib.new(DIGEST_NAME)
    for inner in sorted(_files_in(name, "", ()), key=os.fsencode):
        # the digest that follows has a fixed length and names hold no zero, so no two folders give the same bytes
        digest.update(os.fsencode(inner) + b"\0" + _of_file(os.path.join(name, inner)))
    return f"{DIGEST_NAME}:{digest.hexdigest()}"


def _of_file(path: str) -> bytes:
    try:
        if not stat.S_ISREG(
            os.stat(path).st_mode
        ):  # to open a pipe would wait for a writer, and a device may never end
            raise FormatError(f"cannot read {path}: it is a pipe or a device; name a file")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, DIGEST_NAME).digest()
    except FileNotFoundError:
        raise FormatError(f"cannot read {path}: no such file") from None
    except FormatError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FormatError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _files_in(root: str, inner: str, above: tuple[str, ...]) -> list[str]:
    """Names of the files in a folder, relative to `root`; links are followed.

    above : tuple of str    the true names of the folders on the way, to find a link that leads back
    """
    folder = os.path.join(root, inner)
    real = os.path.realpath(folder)
    if real in above:
        raise FormatError(
            f"cannot read {folder}: it is a link that leads back to a folder that holds it; remove it"
        )
    found = []
    try:
        entries = [(entry.name, entry.is_dir()) for entry in os.scandir(folder)]
    except OSError as error:
        raise FormatError(f"cannot read {folder}: {error.strerror}") from None
    for name, is_folder in entries:
        path = f"{inner}/{name}" if inner else name
        found += _files_in(root, path, (*above, real)) if is_folder else [path]
    return found


def array_digest(array: NDArray[Any]) -> str:
    """The digest of an array: of its dtype, its shape and its elements in C order, least byte first.

    Neither strides nor the byte order in memory count.
    >>> import numpy as np
    >>> a = np.arange(6, dtype=np.float64).reshape(2, 3)
    >>> array_digest(a) == array_digest(np.asfortranarray(a)) == array_digest(a.astype(">f8"))
    True
    >>> array_digest(a) == array_digest(a.reshape(3, 2)), array_digest(a) == array_digest(a.astype(np.float32))
    (False, False)
    """
    dtype: np.dtype[Any] = array.dtype.newbyteorder("<")
    shape = ",".join(map(str, array.shape))
    digest = hashlib.new(DIGEST_NAME, f"{dtype.str} {shape}\n".encode())
    digest.update(array.astype(dtype, copy=False).tobytes("C"))
    return f"{DIGEST_NAME}:{digest.hexdigest()}"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """The digest of settings: of their JSON with sorted keys and no spaces.

    Values are what JSON holds; a tuple counts as a list, and 1 is not 1.0.
    Raises: TypeError for another value.

    >>> settings_digest({"b": (1, 2), "a": None}) == settings_digest({"a": None, "b": [1, 2]})
    True
    >>> settings_digest({"strides": 1}) == settings_digest({"strides": 2})
    False
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return f"{DIGEST_NAME}:{hashlib.new(DIGEST_NAME, text.encode()).hexdigest()}"


def fingerprint_of(path: str) -> FileFingerprint:
    """The fingerprint of a file, which stays the same while nobody writes to it: size, inode, times of modification and of
    change in ns. For a folder: a digest of the fingerprints in it, their number, and the latest time, twice.

    Raises: FormatError.
    """
    try:
        if not os.path.isdir(path):
            status = os.stat(path)
            return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        listed, last = [], 0
        for where, folders, names in os.walk(path, followlinks=True):
            folders.sort()
            for name in sorted(names):
                status = os.stat(os.path.join(where, name))
                times = (status.st_mtime_ns, status.st_ctime_ns)
                listed.append(
                    [os.path.relpath(where, path), name, status.st_size, status.st_ino, *times]
                )
                last = max(last, *times)
        return [settings_digest({"files": listed}), len(listed), last, last]
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from None

"""The names of Zarr stores: folders and URLs, told apart without the zarr package."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from conv3d_cli.system.inputs import regular_file
from conv3d_cli.system.portable import slashes
from conv3d_cli.system.room import JSON_BYTES, check_tree

# metadata files; a folder with one of them is a Zarr node
MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
LARGEST_METADATA = 16 << 20  # bytes of a node's metadata
ARCHIVES = (".ozx", ".zarr.zip")  # zip files with a store in each


def is_url(path: str) -> bool:
    """True if a name is a URL, not a path.

    >>> is_url("s3://bucket/a.zarr"), is_url("a.zarr/1")
    (True, False)
    """
    return "://" in path


def local_folder(path: str) -> str | None:
    """The path of a name on this machine; None if it is a URL of another.

    >>> local_folder("a.zarr/"), local_folder("file:///data/a.zarr"), local_folder("s3://b/a.zarr")
    ('a.zarr', '/data/a.zarr', None)
    """
    if path.lower().startswith("file://"):
        from urllib.request import url2pathname  # late: it loads the whole of HTTP

        path = url2pathname(urlsplit(path).path)
    elif is_url(path):
        return None
    return path.rstrip("/" + os.sep) or os.sep


def claims(path: str) -> bool:
    """True if a name is that of a Zarr store or a node in one.

    It is a URL, or a path with a part that ends in .zarr, or a folder with Zarr metadata.
    >>> claims("a.zarr"), claims("a.ome.zarr/1"), claims("https://host/store"), claims("a.npz")
    (True, True, True, False)
    """
    if path == "-":
        return False
    if is_url(path) or any(part.lower().endswith(".zarr") for part in slashes(path).split("/")):
        return True
    return is_node(path)


def is_nifti(path: str) -> bool:
    """True if a name is that of a NIfTI-Zarr store, or a node in one.

    >>> is_nifti("x/a.nii.zarr/1"), is_nifti("a.zarr")
    (True, False)
    """
    parts = slashes(path).split("/")
    return any(part.lower().endswith(".nii.zarr") for part in parts)


def archive_of(path: str) -> tuple[str, str] | None:
    """The zip file of a name, and the path of the node in its store; None if it is in no zip.

    >>> archive_of("x/a.ozx"), archive_of("a.ome.zarr.zip/1"), archive_of("a.zarr/1")
    (('x/a.ozx', ''), ('a.ome.zarr.zip', '1'), None)
    """
    if path == "-" or is_url(path):
        return None
    parts = slashes(path).split("/")
    for number, part in enumerate(parts, 1):
        if part.lower().endswith(ARCHIVES):
            return "/".join(parts[:number]), "/".join(parts[number:]).strip("/")
    return None


@lru_cache(maxsize=8)
def _listing(file: str, stamp: tuple[int, int]) -> tuple[frozenset[str], str]:
    from conv3d_cli.system.zips import ZipReader  # late: few runs read a zip file

    with ZipReader(file) as opened:
        names = frozenset(opened.namelist())
    tops = {name.partition("/")[0] for name in names}
    if not names & set(MARKERS) and len(tops) == 1:
        (top,) = tops
        if any(f"{top}/{marker}" in names for marker in MARKERS):
            return names, top
    return names, ""


def listing(file: str) -> tuple[frozenset[str], str]:
    """Names of all files in a zip file, and the path of its store: "", or its only folder.

    OME-Zarr wants the store at the top; zips of a whole folder are common, too.
    Raises: OSError, BadZipFile, NotImplementedError, FormatError, MemoryLimitError.
    """
    status = os.stat(file)
    return _listing(file, (status.st_mtime_ns, status.st_size))


def _in_archive(path: str, names: Sequence[str]) -> bool:
    """True if a node in a zip file has one of some files."""
    from zipfile import BadZipFile

    file, inner = archive_of(path) or ("", "")
    try:
        found, root = listing(file)
    except (OSError, BadZipFile, NotImplementedError):
        return False
    return any("/".join(part for part in (root, inner, n) if part) in found for n in names)


def is_node(folder: str) -> bool:
    """True if a folder, or a folder in a zip file, holds Zarr metadata."""
    if archive_of(folder) is not None:
        return _in_archive(folder, MARKERS)
    return os.path.isdir(folder) and any(
        os.path.isfile(os.path.join(folder, name)) for name in MARKERS
    )


def content(path: str) -> str:
    """ "labels" if a store in a folder has NGFF's attribute `image-label`, else ""."""
    for name in (".zattrs", "zarr.json"):
        try:
            text = _read_file(path, name)
            check_tree(text, JSON_BYTES, path)
            found = json.loads(text)
            attributes = found.get("attributes", {}) if name == "zarr.json" else found
            if "image-label" in {**attributes, **attributes.get("ome", {})}:
                return "labels"
        except Exception:  # missing, or damaged in any way, which opening it reports
            pass
    return ""


def _read_file(path: str, name: str) -> bytes:
    """The start of a file of a node in a folder or in a zip file, all that is read of metadata.

    Raises: OSError, KeyError, BadZipFile, FormatError, MemoryLimitError.
    """
    archive = archive_of(path)
    if archive is None:
        file_name = os.path.join(local_folder(path) or "", name)
        with open(file_name, "rb", opener=regular_file) as file:
            return file.read(LARGEST_METADATA)
    from conv3d_cli.system.zips import ZipReader

    with ZipReader(archive[0]) as opened:
        parts = (listing(archive[0])[1], archive[1], name)
        with opened.open("/".join(part for part in parts if part)) as file:
            return file.read(LARGEST_METADATA)


def ancestors(path: str) -> Iterator[tuple[str, str]]:
    """Names of at most three groups above a node, and its path in each, nearest first.

    >>> list(ancestors("a.zarr/s/1"))
    [('a.zarr/s', '1'), ('a.zarr', 's/1')]
    """
    above, inner = slashes(path).rstrip("/"), ""
    for _ in range(3):
        above, _, name = above.rpartition("/")
        if not above or not name or above.endswith(":/"):
            return
        inner = f"{name}/{inner}" if inner else name
        yield above, inner


def outermost(path: str) -> str:
    """The folder of the whole store that a name is a part of; URLs are returned unchanged.

    >>> outermost("a.zarr/s/1"), outermost("a.zarr"), outermost("https://host/a.zarr/1")
    ('a.zarr', 'a.zarr', 'https://host/a.zarr/1')
    """
    folder = local_folder(path)
    if folder is None:
        return path
    archive = archive_of(folder)
    if archive is not None:
        return archive[0]
    above = [
        name for name, _ in ancestors(folder) if name.lower().endswith(".zarr") or is_node(name)
    ]
    return above[-1] if above else folder

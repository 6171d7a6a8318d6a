"""The names of Zarr stores: folders and URLs, told apart without the zarr package."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

# metadata files; a folder with one of them is a Zarr node
MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


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
    if is_url(path) or any(
        part.lower().endswith(".zarr") for part in path.replace(os.sep, "/").split("/")
    ):
        return True
    return is_node(path)


def is_nifti(path: str) -> bool:
    """True if a name is that of a NIfTI-Zarr store, or a node in one.

    >>> is_nifti("x/a.nii.zarr/1"), is_nifti("a.zarr")
    (True, False)
    """
    parts = path.replace(os.sep, "/").split("/")
    return any(part.lower().endswith(".nii.zarr") for part in parts)


def is_node(folder: str) -> bool:
    """True if a folder holds Zarr metadata."""
    return os.path.isdir(folder) and any(
        os.path.isfile(os.path.join(folder, name)) for name in MARKERS
    )


def content(path: str) -> str:
    """ "labels" if a store in a folder has NGFF's attribute `image-label`, else ""."""
    for name in (".zattrs", "zarr.json"):
        try:
            with open(os.path.join(local_folder(path) or "", name), encoding="utf-8") as file:
                found = json.load(file)
            attributes = found.get("attributes", {}) if name == "zarr.json" else found
            if "image-label" in {**attributes, **attributes.get("ome", {})}:
                return "labels"
        except (OSError, ValueError, RecursionError, TypeError, AttributeError):
            pass  # missing, or damaged, which opening it reports
    return ""


def ancestors(path: str) -> Iterator[tuple[str, str]]:
    """Names of at most three groups above a node, and its path in each, nearest first.

    >>> list(ancestors("a.zarr/s/1"))
    [('a.zarr/s', '1'), ('a.zarr', 's/1')]
    """
    above, inner = path.rstrip("/" + os.sep), ""
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
    above = [
        name for name, _ in ancestors(folder) if name.lower().endswith(".zarr") or is_node(name)
    ]
    return above[-1] if above else folder

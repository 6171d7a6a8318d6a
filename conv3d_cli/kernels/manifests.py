"""JSON files that describe trained layers stored in other files beside them.

Kernels may be JSON, too, so such files are recognized by what they begin with. Nothing here imports
the readers of weights, which most runs do not need.
"""

from __future__ import annotations

_START = 1 << 16  # bytes in which a mark must stand
# a key of the file -> what it is
_MARKS = {
    b'"weight_map"': "index",
    b'"modelTopology"': "tfjs",
    b'"weightsManifest"': "tfjs",
}


def manifest_kind(path: str, start: bytes | None = None) -> str:
    """What a JSON file describes: "index", of a model in several files, "tfjs", or "" for nothing.

    start : bytes or None       the first bytes of the file; None: they are read

    >>> manifest_kind("a.json", b'{"metadata": {}, "weight_map": {}}')
    'index'
    >>> manifest_kind("a.json", b'{"kernel": [[[1]]]}'), manifest_kind("box:size=3")
    ('', '')
    """
    if not path.lower().endswith(".json"):
        return ""
    if start is None:
        try:
            with open(path, "rb") as file:
                start = file.read(_START)
        except OSError:
            return ""
    return next((kind for mark, kind in _MARKS.items() if mark in start), "")

"""JSON files that describe trained layers stored in other files beside them.

Kernels may be JSON, too, so such files are recognized by what they begin with. Nothing here imports
the readers of weights, which most runs do not need.
"""

from __future__ import annotations

import os

START_BYTES = 1 << 16
"""A mark must stand in so many bytes at the beginning of a file."""
# a key of the file -> what it is
_MARKS = {
    b'"weight_map"': "index",
    b'"modelTopology"': "tfjs",
    b'"weightsManifest"': "tfjs",
}


def manifest_kind(start: bytes) -> str:
    """What a file that begins so is: "index", of a model in several files, "tfjs", or "".

    >>> manifest_kind(b'{"metadata": {}, "weight_map": {}}'), manifest_kind(b'{"kernel": [[[1]]]}')
    ('index', '')
    """
    return next((kind for mark, kind in _MARKS.items() if mark in start), "")


def is_manifest(path: str) -> bool:
    """Whether a path is that of a JSON file that describes layers.

    >>> is_manifest("box:size=3")
    False
    """
    # to open a pipe would wait for its writer
    if not path.lower().endswith(".json") or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return bool(manifest_kind(file.read(START_BYTES)))
    except OSError:
        return False  # the reader of kernels says what is wrong

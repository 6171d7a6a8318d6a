"""Files that hold a whole network with its weights, and who reads each.

To add one, write its reader, and its line in `NETWORK_FILES`. Keras' own models, which may also be
configs of chains, are read by `settings/config.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from conv3d_cli.network.graph import Network


class NetworkFile(NamedTuple):
    """A kind of file.

    suffixes : tuple of str     of its names, in lower case
    keys : tuple of str         that its JSON has; none if it is no JSON
    reader : str                "module:function", (path) -> Network
    """

    suffixes: tuple[str, ...]
    keys: tuple[str, ...]
    reader: str

    def read(self, path: str) -> Network:
        """Read a file. Raises: FormatError, SpecError, ShapeError."""
        module, name = self.reader.split(":")
        network: Network = getattr(importlib.import_module(module), name)(path)
        return network


NETWORK_FILES = (
    NetworkFile((".onnx",), (), "conv3d_cli.network.onnx:read_onnx_network"),
    NetworkFile((".json",), ("modelTopology",), "conv3d_cli.network.tfjs:read_tfjs_network"),
)


def find_network_file(path: str, values: Mapping[str, Any] | None = None) -> NetworkFile | None:
    """The kind of a file; None if it holds no network.

    values : dict or None       its parsed JSON; None if it was not parsed

    >>> find_network_file("model.json"), find_network_file("model.json", {"strides": 2})
    (None, None)
    """
    for kind in NETWORK_FILES:
        fits = kind.keys == () if values is None else bool(kind.keys)
        if (
            fits
            and path.lower().endswith(kind.suffixes)
            and all(key in (values or {}) for key in kind.keys)
        ):
            return kind
    return None

"""TensorFlow.js layers models as networks: a Keras 2 model's JSON, and shards with its weights.

`kernels/weights/tfjs.py` reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from conv3d_cli.kernels.weights.tfjs import read_model
from conv3d_cli.network.graph import Network
from conv3d_cli.network.keras import read_keras_network
from conv3d_cli.network.keras_weights import KerasWeights
from conv3d_cli.system.room import require_room
from conv3d_cli.system.words import count_of

Array = NDArray[Any]


def read_tfjs_network(path: str) -> Network:
    """Read a layers model, with all shards that its manifest names.

    path : str      of its model.json
    Raises: FormatError for a damaged or foreign file, and missing shards; SpecError for layers that
        are not understood; ShapeError, MemoryLimitError for tensors that are too large.
    """
    model, tensors = read_model(path)
    require_room(2 * sum(one.count * 4 for one in tensors.values()), "its weights", path)
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    files = dict.fromkeys(shard.path for one in tensors.values() for shard in one.shards)
    weights: dict[tuple[str, str], dict[str, Array]] = {}
    for name, values in arrays.items():
        *above, leaf = name.split("/")
        if above:
            weights.setdefault((above[0], above[-1]), {})[leaf] = values
    network = read_keras_network(model, KerasWeights(None, weights), (path, *files))
    return _with_unused(network, arrays)


def _with_unused(network: Network, arrays: Mapping[str, Array]) -> Network:
    """The network, with a note on tensors that no layer has."""
    used = {id(array) for node in network.nodes for array in node.weights.values()}
    unused = [name for name, array in arrays.items() if id(array) not in used]
    if not unused:
        return network
    listed = ", ".join(unused[:8]) + (", ..." if len(unused) > 8 else "")
    verb = "belongs" if len(unused) == 1 else "belong"
    note = f"{count_of(len(unused), 'tensor')} of the file {verb} to no layer: {listed}"
    return network.with_notes((*network.notes, note))

"""ONNX graphs of a few nodes, and networks by the definitions of their operations, over the whole volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from conv3d_cli.model.box import Box
from conv3d_cli.network.graph import Network
from conv3d_cli.network.operations.base import Shape, Window
from conv3d_cli.network.shapes import shape_network

Array = np.ndarray
OPEN = ("n", 1, "d", "h", "w")


def graph_of(
    nodes: Sequence[Any],
    stored: Mapping[str, Array] | None = None,
    shape: Sequence[Any] = OPEN,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of nodes from input x to outputs, with stored tensors."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in (stored or {}).items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def save_graph(folder: Path, *args: Any, **kwargs: Any) -> str:
    """The path of a file with `graph_of` the arguments."""
    path = folder / "net.onnx"
    path.write_bytes(graph_of(*args, **kwargs).SerializeToString())
    return str(path)


def evaluate(network: Network, x: Array) -> dict[str, Array]:
    """The outputs of a network for a batch, both (n, c, d, h, w), by definition in float64."""
    outputs: dict[str, list[Array]] = {}
    for one in np.moveaxis(np.asarray(x, np.float64), 1, -1):
        shaped = shape_network(network, Shape(*one.shape))
        values = {next(iter(network.inputs)): one}
        for node in network.nodes:
            windows = [Window(values[name], (0, 0, 0)) for name in node.inputs]
            operation = shaped.operations[node.name]
            values[node.name] = operation.define(windows, Box.at((0, 0, 0), operation.shape.size))
        for name, node in network.outputs.items():
            outputs.setdefault(name, []).append(np.moveaxis(values[node], -1, 0))
    return {name: np.stack(parts) for name, parts in outputs.items()}

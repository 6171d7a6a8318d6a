"""ONNX: the Conv nodes with three spatial axes whose weights are stored in the graph.

A node is called by its name; the name of its weights without `.weight` will do too. Its attributes come in Keras' words:
auto_pad SAME_UPPER is Keras' "same"; SAME_LOWER has the odd voxel before and becomes pairs, unless strides make it depend on
the volume. External data are read from a plain file in the model's own folder and from nowhere else.

Source: ONNX, onnx/defs/nn/defs.cc (Conv), onnx/onnx.proto.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.inputs import check_input
from conv3d_cli.kernels.weights.layer import (
    FLOATS,
    Array,
    Attributes,
    SavedLayer,
    attributes_of,
    decode_floats,
    from_oidhw,
    needing,
    read_exactly,
    require_chain,
    require_match,
    require_shape,
    shrunk,
    to_oidhw,
    unheld,
)

MAX_BYTES = 2 << 30  # protobuf's own limit
_DTYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16", 17: "float8_e4m3fn", 19: "float8_e5m2"}
_OPSET, _IR_VERSION = 13, 8  # of the files written: understood since 2021
# Keras' activation -> the node that computes it, with its attributes
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "elu": ("Elu", {"alpha": 1.0}),
    "selu": ("Selu", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "exponential": ("Exp", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.2}),
}


def read_onnx(path: str) -> list[SavedLayer]:
    """The layers in the order of their nodes."""
    size = check_input(path)
    if size > MAX_BYTES:
        raise FormatError(f"cannot read {path}: {size:,} bytes; protobuf holds at most {MAX_BYTES:,}")
    with needing("onnx", f"read {path}"):
        import onnx
    model = onnx.ModelProto()
    try:
        with open(path, "rb") as file:
            model.ParseFromString(read_exactly(file, size, path))
    except FormatError:
        raise
    except Exception as error:  # protobuf's DecodeError, and ValueError for bad UTF-8
        raise FormatError(f"cannot read {path}: not an ONNX model, or damaged ({str(error)[:100]})") from error
    if not model.HasField("graph"):
        raise FormatError(f"cannot read {path}: not an ONNX model: it holds no graph")
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.output) == 1:
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = attribute.t
    layers: list[SavedLayer] = []
    for node in graph.node:
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        weight = tensors.get(node.input[1])
        bias_name = node.input[2] if len(node.input) > 2 else ""
        if weight is None or len(weight.dims) != 5 or (bias_name and bias_name not in tensors):
            continue  # computed by the graph itself, or not three-dimensional
        kernel = from_oidhw(_read_tensor(weight, path))
        bias = _read_tensor(tensors[bias_name], path).reshape(-1) if bias_name else None
        short = node.input[1].removesuffix(".weight")
        name = node.name or short or f"Conv_{len(layers)}"
        config, notes = _config(node, kernel, bias is not None, path)
        aliases = tuple(alias for alias in dict.fromkeys([short, node.input[1]]) if alias not in (name, ""))
        layers.append(require_match(SavedLayer(name, config, kernel, bias, aliases, notes), path))
    return layers


def _config(node: Any, kernel: Array, use_bias: bool, path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A node's attributes as Keras' arguments."""
    attributes = {attribute.name: attribute for attribute in node.attribute}

    def integers(name: str, default: list[int], least: int = 1) -> list[int]:
        values = list(attributes[name].ints) if name in attributes else default
        if len(values) != len(default) or any(not least <= value < 2**31 for value in values):
            raise FormatError(f"cannot read {path}: node {node.name} has {name}={values[:8]}")
        return values

    size = list(kernel.shape[:3])
    if integers("kernel_shape", size) != size:
        raise FormatError(f"cannot read {path}: node {node.name} has a kernel_shape that is not its weights' {size}")
    strides, dilation = integers("strides", [1] * 3), integers("dilations", [1] * 3)
    pads = integers("pads", [0] * 6, least=0)
    auto_pad = attributes["auto_pad"].s.decode(errors="replace") if "auto_pad" in attributes else "NOTSET"
    notes = []
    padding: Any
    if auto_pad in ("NOTSET", ""):
        padding = [[pads[i], pads[i + 3]] for i in range(3)] if any(pads) else "valid"
    elif auto_pad == "VALID":
        padding = "valid"
    elif auto_pad == "SAME_UPPER":
        padding = "same"
    elif auto_pad == "SAME_LOWER":
        lower = Attributes((strides[0], strides[1], strides[2]), "same_lower", (dilation[0], dilation[1], dilation[2]))
        pairs = lower.explicit_pads(size)
        padding = "same_lower" if pairs is None else [list(pair) for pair in pairs]
        if pairs is None:
            notes.append("auto_pad SAME_LOWER with strides depends on the volume's size; give the padding in voxels")
    else:
        raise FormatError(f"cannot read {path}: node {node.name} has auto_pad={auto_pad}")
    if max(strides) > 1 and max(dilation) > 1:
        notes.append("it has strides > 1 together with dilation_rate > 1, which Keras refuses")
    config = {
        "filters": kernel.shape[4],
        "kernel_size": size,
        "strides": strides,
        "padding": padding,
        "data_format": "channels_first",
        "dilation_rate": dilation,
        "groups": int(attributes["group"].i) if "group" in attributes else 1,
        "activation": "linear",
        "use_bias": use_bias,
    }
    return config, tuple(notes)


def _read_tensor(tensor: Any, path: str) -> Array:
    what = f"tensor {tensor.name[:80]}"
    shape = [int(n) for n in tensor.dims]
    count = require_shape(shape, what, path)
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise FormatError(f"cannot read {path}: {what} has the ONNX data type {tensor.data_type}, which is no float")
    needed = count * FLOATS[dtype]
    if tensor.data_location == 1:
        raw = _read_external(tensor, needed, what, path)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _read_fields(tensor, dtype, count, what, path).reshape(shape)
    if len(raw) != needed:
        raise FormatError(f"cannot read {path}: truncated: {what} needs {needed:,} bytes and has {len(raw):,}")
    return decode_floats(raw, dtype).reshape(shape)


def _read_fields(tensor: Any, dtype: str, count: int, what: str, path: str) -> Array:
    """Numbers in a field of their type; short floats are the bits of integers."""
    values = {"float32": tensor.float_data, "float64": tensor.double_data}.get(dtype, tensor.int32_data)
    if len(values) != count:
        raise FormatError(f"cannot read {path}: truncated: {what} needs {count:,} numbers and has {len(values):,}")
    if dtype in ("float32", "float64"):
        return np.array(values, dtype)
    width = FLOATS[dtype]
    bits = np.array(values, np.int64) & (256**width - 1)
    return decode_floats(bits.astype(f"<u{width}").tobytes(), dtype)


def _read_external(tensor: Any, needed: int, what: str, path: str) -> bytes:
    """The bytes of a tensor in a file beside the model: no folders, no links, nothing but a plain file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    plain = location and location not in (".", "..") and not set(location) & {"/", "\\", "\0", ":"}
    if not plain:
        raise FormatError(
            f"cannot read {path}: {what} lies in {location!r}; external data are read only from the model's own folder"
        )
    beside = Path(path).parent / location
    try:
        if not stat.S_ISREG(os.lstat(beside).st_mode):
            raise FormatError(f"cannot read {path}: {what} lies in {location}, which is no plain file")
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or needed)
        with open(beside, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if offset < 0 or length != needed or offset + length > size:
                raise FormatError(
                    f"cannot read {path}: {what} needs {needed:,} bytes at {offset:,} of {location}, which has {size:,}"
                )
            file.seek(offset)
            return read_exactly(file, length, path)
    except FileNotFoundError:
        raise FormatError(f"cannot read {path}: {what} lies in {location}, which is not beside it") from None
    except OSError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"cannot read {path}: {location}: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def encode_onnx(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """A graph of the layers, one after another, and notes on what ONNX cannot hold.

    Weights are float32: no runtime computes Conv in float64 on every machine.
    Raises: WriteError if the layers cannot follow one another.
    """
    require_chain(layers, ".onnx")
    with needing("onnx", "write ONNX"):
        import onnx
        from onnx import helper, numpy_helper
    nodes, initializers, notes, names = [], [], [], set()
    value = "input"
    for layer in layers:
        attributes, whole = attributes_of(layer), shrunk(layer)
        name = layer.name
        while name in names:
            name += "_"
        names.add(name)
        if whole.kernel.dtype != np.float32:
            notes.append(f"{layer.name}: its weights are rounded to float32, which ONNX runtimes compute in")
            for array in (whole.kernel, whole.bias):
                if array is not None and np.abs(array).max(initial=0) > np.finfo(np.float32).max:
                    raise WriteError(f"{layer.name} has weights beyond float32, which ONNX holds: take another format")
        if layer.config is None:
            notes.append(f"{layer.name}: the file holds weights only; strides, padding, ... are Keras' defaults")
        elif attributes.data_format == "channels_last":
            notes.append(f"{layer.name}: ONNX takes its data channels first, (batch, channels, depth, height, width)")
        inputs = [value, f"{name}.weight"]
        initializers.append(numpy_helper.from_array(to_oidhw(whole.kernel).astype("<f4"), inputs[1]))
        if whole.bias is not None:
            inputs.append(f"{name}.bias")
            initializers.append(numpy_helper.from_array(whole.bias.astype("<f4"), inputs[2]))
        fields: dict[str, Any] = {
            "kernel_shape": list(layer.kernel.shape[:3]),
            "strides": list(attributes.strides),
            "dilations": list(attributes.dilation_rate),
            "group": attributes.groups,
        }
        pads = attributes.explicit_pads(layer.kernel.shape[:3])
        if pads is None:  # explicit elsewhere: runtimes refuse auto_pad with dilations
            fields["auto_pad"] = "SAME_UPPER" if attributes.padding == "same" else "SAME_LOWER"
        else:
            fields["pads"] = [before for before, _ in pads] + [after for _, after in pads]
        value = f"{name}.output"
        nodes.append(helper.make_node("Conv", inputs, [value], name=name, **fields))
        activation = attributes.activation if isinstance(attributes.activation, str) else None
        if activation in _ACTIVATIONS:
            operator, parameters = _ACTIVATIONS[activation]
            nodes.append(
                helper.make_node(operator, [value], [f"{name}.{activation}"], name=f"{name}_{activation}", **parameters)
            )
            value = f"{name}.{activation}"
            notes.append(f"{layer.name}: its activation {activation} is written as a node of its own, {operator}")
        elif activation != "linear":
            lost = unheld(layer, ("strides", "padding", "dilation_rate", "groups"))
            notes.append(f"{layer.name}: ONNX is written without {', '.join(lost)}")
    channels = layers[0].kernel.shape[3] * attributes_of(layers[0]).groups
    filters = layers[-1].kernel.shape[4]
    graph = helper.make_graph(
        nodes,
        "converted",
        [
            helper.make_tensor_value_info(
                "input", onnx.TensorProto.FLOAT, ["batch", channels, "depth", "height", "width"]
            )
        ],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, ["batch", filters, None, None, None])],
        initializers,
    )
    model = helper.make_model(graph, producer_name="conv3d", opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    return model.SerializeToString(deterministic=True), notes

"""ONNX: the Conv nodes with three spatial axes whose weights are stored in the graph.

A node is called by its name; the name of its weights without `.weight` will do too. Its attributes come in Keras' words:
auto_pad SAME_UPPER is Keras' "same"; SAME_LOWER has the odd voxel before and becomes pairs, unless strides make it depend on
the volume. External data are read from a plain file in the model's own folder and from nowhere else.

Source: ONNX, onnx/defs/nn/defs.cc (Conv), onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.kernels.weights.layer import (
    WEIGHTS_ONLY,
    Array,
    Attributes,
    OtherLayer,
    SavedLayer,
    attributes_of,
    from_oidhw,
    needing,
    read_exactly,
    require_chain,
    require_match,
    shrunk,
    to_oidhw,
    unheld,
)
from conv3d_cli.kernels.weights.onnx_constants import (
    STANDARD,
    Constants,
    NotConstantError,
    inner_nodes,
    is_convolution,
)
from conv3d_cli.model.keras_json import NO_PADS
from conv3d_cli.system.inputs import check_input

MAX_BYTES = 2 << 30  # protobuf's own limit
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


def read_onnx(path: str) -> list[SavedLayer | OtherLayer]:
    """What the graph holds, in the order of its nodes."""
    size = check_input(path)
    if size > MAX_BYTES:
        raise FormatError(
            f"cannot read {path}: {size:,} bytes; protobuf holds at most {MAX_BYTES:,}"
        )
    with needing("onnx", f"read {path}"):
        import onnx
    model = onnx.ModelProto()
    try:
        with open(path, "rb") as file:
            model.ParseFromString(read_exactly(file, size, path))
    except FormatError:
        raise
    except Exception as error:  # protobuf's DecodeError, and ValueError for bad UTF-8
        raise FormatError(
            f"cannot read {path}: not an ONNX model, or damaged ({str(error)[:100]})"
        ) from error
    if not model.HasField("graph"):
        raise FormatError(f"cannot read {path}: not an ONNX model: it holds no graph")
    return _read_graph(model, path)


def _read_graph(model: Any, path: str) -> list[SavedLayer | OtherLayer]:
    constants = Constants(model.graph, path)
    nodes = list(model.graph.node)
    convolutions: dict[int, SavedLayer | OtherLayer] = {}
    for number, node in enumerate(nodes):
        if is_convolution(node):
            weights = node.input[1] if len(node.input) > 1 else ""
            short = weights.removesuffix(".weight")
            name = node.name or short or f"{node.op_type}_{number}"
            aliases = tuple(
                alias for alias in dict.fromkeys([short, weights]) if alias not in (name, "")
            )
            try:
                convolutions[number] = _read_convolution(node, name, aliases, constants, path)
            except NotConstantError as error:
                convolutions[number] = OtherLayer(name, str(error), aliases=aliases)
    contents: list[SavedLayer | OtherLayer] = []
    for number, node in enumerate(nodes):
        if number in convolutions:
            contents.append(convolutions[number])
        elif not constants.made(node):
            name = node.name or f"{node.op_type}_{number}"
            contents.append(OtherLayer(name, f"it is a node {node.op_type}", is_convolution=False))
    for place, node in inner_nodes(model):
        if is_convolution(node):
            contents.append(
                OtherLayer(
                    node.name or node.op_type, f"it lies in {place}, which is not looked into"
                )
            )
    return contents


def _read_convolution(
    node: Any, name: str, aliases: tuple[str, ...], constants: Constants, path: str
) -> SavedLayer | OtherLayer:
    """A Conv node, or one that ONNX Runtime fused with its activation.

    Raises: NotConstantError if its weights are computed in a way that is not understood; FormatError.
    """
    attributes = {attribute.name: attribute for attribute in node.attribute}
    is_fused = node.op_type == "FusedConv" and node.domain == "com.microsoft"
    if not is_fused and (node.op_type != "Conv" or node.domain not in STANDARD):
        domain = f" of {node.domain}" if node.domain not in STANDARD else ""
        return OtherLayer(name, f"it is a node {node.op_type}{domain}", aliases=aliases)
    if len(node.input) < 2 or (len(node.input) > 3 and node.input[3]):
        return OtherLayer(
            name, f"it is a node {node.op_type} of {len(node.input)} inputs", aliases=aliases
        )
    weights = constants.value(node.input[1], "weights")
    if weights.ndim != 5:
        return OtherLayer(name, f"its weights have {weights.ndim} axes, not 5", aliases=aliases)
    if weights.dtype.kind != "f":
        return OtherLayer(name, f"its weights are {weights.dtype}, not floats", aliases=aliases)
    bias = (
        constants.value(node.input[2], "bias").reshape(-1)
        if len(node.input) > 2 and node.input[2]
        else None
    )
    kernel = from_oidhw(weights)
    config, notes = _config(node, kernel, bias is not None, path)
    if is_fused:
        config["activation"] = _fused_activation(attributes)
    layer = require_match(SavedLayer(name, config, kernel, bias, aliases, notes), path)
    pads, pad_notes = constants.pads_before(node.input[0])
    if pads != NO_PADS:
        own = attributes_of(layer).explicit_pads(kernel.shape[:3])
        if own is None:
            raise NotConstantError(
                "its auto_pad with strides depends on the volume, so the Pad before it cannot be joined"
            )
        config["padding"] = [[a[0] + b[0], a[1] + b[1]] for a, b in zip(own, pads, strict=True)]
    return replace(layer, notes=(*notes, *pad_notes))


def _fused_activation(attributes: dict[str, Any]) -> Any:
    """The activation of a FusedConv, as Keras has it. Raises: NotConstantError."""
    name = attributes["activation"].s.decode(errors="replace") if "activation" in attributes else ""
    parameters = (
        list(attributes["activation_params"].floats) if "activation_params" in attributes else []
    )
    if name == "LeakyRelu" and len(parameters) == 1:
        config = {"name": "leaky_re_lu", "negative_slope": parameters[0]}
        return {
            "module": "keras.layers",
            "class_name": "LeakyReLU",
            "config": config,
            "registered_name": None,
        }
    known = {"": "linear", "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
    if name not in known or parameters:
        given = ", ".join(f"{parameter:g}" for parameter in parameters)
        raise NotConstantError(
            f"its fused activation is {name}({given}); known are Relu, Sigmoid, Tanh and LeakyRelu"
        )
    return known[name]


def _config(
    node: Any, kernel: Array, use_bias: bool, path: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A node's attributes as Keras' arguments."""
    attributes = {attribute.name: attribute for attribute in node.attribute}

    def integers(name: str, default: list[int], least: int = 1) -> list[int]:
        values = list(attributes[name].ints) if name in attributes else default
        if len(values) != len(default) or any(not least <= value < 2**31 for value in values):
            raise FormatError(f"cannot read {path}: node {node.name} has {name}={values[:8]}")
        return values

    size = list(kernel.shape[:3])
    if integers("kernel_shape", size) != size:
        raise FormatError(
            f"cannot read {path}: node {node.name} has a kernel_shape that is not its weights' {size}"
        )
    strides, dilation = integers("strides", [1] * 3), integers("dilations", [1] * 3)
    pads = integers("pads", [0] * 6, least=0)
    auto_pad = (
        attributes["auto_pad"].s.decode(errors="replace") if "auto_pad" in attributes else "NOTSET"
    )
    notes = []
    padding: Any
    if auto_pad in ("NOTSET", ""):
        padding = [[pads[i], pads[i + 3]] for i in range(3)] if any(pads) else "valid"
    elif auto_pad == "VALID":
        padding = "valid"
    elif auto_pad == "SAME_UPPER":
        padding = "same"
    elif auto_pad == "SAME_LOWER":
        lower = Attributes(
            (strides[0], strides[1], strides[2]),
            "same_lower",
            (dilation[0], dilation[1], dilation[2]),
        )
        pairs = lower.explicit_pads(size)
        padding = "same_lower" if pairs is None else [list(pair) for pair in pairs]
        if pairs is None:
            notes.append(
                "auto_pad SAME_LOWER with strides depends on the volume's size; give the padding in voxels"
            )
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
            notes.append(
                f"{layer.name}: its weights are rounded to float32, which ONNX runtimes compute in"
            )
            for array in (whole.kernel, whole.bias):
                if array is not None and np.abs(array).max(initial=0) > np.finfo(np.float32).max:
                    raise WriteError(
                        f"{layer.name} has weights beyond float32, which ONNX holds: take another format"
                    )
        if layer.config is None:
            notes.append(f"{layer.name}: {WEIGHTS_ONLY}")
        elif attributes.data_format == "channels_last":
            notes.append(
                f"{layer.name}: ONNX takes its data channels first, (batch, channels, depth, height, width)"
            )
        inputs = [value, f"{name}.weight"]
        initializers.append(
            numpy_helper.from_array(to_oidhw(whole.kernel).astype("<f4"), inputs[1])
        )
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
                helper.make_node(
                    operator,
                    [value],
                    [f"{name}.{activation}"],
                    name=f"{name}_{activation}",
                    **parameters,
                )
            )
            value = f"{name}.{activation}"
            notes.append(
                f"{layer.name}: its activation {activation} is written as a node of its own, {operator}"
            )
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
        [
            helper.make_tensor_value_info(
                value, onnx.TensorProto.FLOAT, ["batch", filters, None, None, None]
            )
        ],
        initializers,
    )
    model = helper.make_model(
        graph, producer_name="conv3d", opset_imports=[helper.make_opsetid("", _OPSET)]
    )
    model.ir_version = _IR_VERSION
    return model.SerializeToString(deterministic=True), notes

"""ONNX: read and write Conv nodes with three spatial axes whose weights are stored in the graph.

A layer has the name of its node; the name of its weights without `.weight` is an alias. Attributes
become Keras' arguments. auto_pad SAME_UPPER is Keras' "same". SAME_LOWER puts the odd voxel before
and becomes (before, after) pairs, unless strides make it depend on the volume's size. External data
are read only from a regular file in the model's own folder.

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
    flat_note,
    from_oidhw,
    lifted,
    lost_arguments,
    read_exactly,
    require_chain,
    require_library,
    require_match,
    to_oidhw,
    with_smallest_dtype,
)
from conv3d_cli.kernels.weights.onnx_constants import (
    STANDARD,
    Constants,
    NotConstantError,
    inner_nodes,
    is_convolution,
)
from conv3d_cli.model.keras_json import NO_PADS
from conv3d_cli.model.spec import triple
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.inputs import check_input

MAX_BYTES = 2 << 30  # protobuf's own limit
_OPSET, _IR_VERSION = 13, 8  # written into files: runtimes support them since 2021
# Keras' activation -> operator and attributes of the node that computes it
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
    """Read the layers of an ONNX graph, in the order of its nodes.

    Raises: as `read_onnx_model`.
    """
    return _read_graph(read_onnx_model(path), path)


def read_onnx_model(path: str) -> Any:
    """The onnx.ModelProto in a file; it has a graph.

    Raises: FormatError for a damaged or foreign file, or if onnx is not installed; ShapeError for
    tensors of too many elements.
    """
    size = check_input(path)
    if size > MAX_BYTES:
        raise FormatError(
            f"cannot read {path}: {size:,} bytes; protobuf holds at most {MAX_BYTES:,}"
        )
    with require_library("onnx", f"read {path}"):
        import onnx
    model = onnx.ModelProto()
    try:
        with open(path, "rb") as file:
            model.ParseFromString(read_exactly(file, size, path))
    except FormatError:
        raise
    except Exception as error:  # protobuf's DecodeError, and ValueError for bad UTF-8
        raise_fault(error, path)
        raise FormatError(
            f"cannot read {path}: not an ONNX model, or damaged ({str(error)[:100]})"
        ) from error
    if not model.HasField("graph"):
        raise FormatError(f"cannot read {path}: not an ONNX model: it holds no graph")
    return model


def _read_graph(model: Any, path: str) -> list[SavedLayer | OtherLayer]:
    """Convolutions and other nodes of a graph, then the convolutions in its subgraphs."""
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
        elif not constants.accounts_for(node):
            name = node.name or f"{node.op_type}_{number}"
            contents.append(OtherLayer(name, f"it is a node {node.op_type}", is_convolution=False))
    for parent, node in inner_nodes(model):
        if is_convolution(node):
            reason = f"it is inside {parent}, which is not searched"
            contents.append(OtherLayer(node.name or node.op_type, reason))
    return contents


def _read_convolution(
    node: Any, name: str, aliases: tuple[str, ...], constants: Constants, path: str
) -> SavedLayer | OtherLayer:
    """Read a Conv node, or a FusedConv, which ONNX Runtime makes of a Conv and its activation.

    Raises: NotConstantError if its weights or padding depend on unsupported nodes; FormatError.
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
    rank = weights.ndim - 2
    if not 1 <= rank <= 3:
        reason = f"its weights have {weights.ndim} axes, not 3 to 5"
        return OtherLayer(name, reason, aliases=aliases)
    if weights.dtype.kind != "f":
        return OtherLayer(name, f"its weights are {weights.dtype}, not floats", aliases=aliases)
    bias = (
        constants.value(node.input[2], "bias").reshape(-1)
        if len(node.input) > 2 and node.input[2]
        else None
    )
    kernel = from_oidhw(lifted(weights, rank))
    config, notes = _config(node, kernel, rank, bias is not None, path)
    if is_fused:
        config["activation"] = _fused_activation(attributes)
    layer = require_match(SavedLayer(name, config, kernel, bias, aliases, notes), path)
    pads, pad_notes = constants.pads_before(node.input[0], rank)
    if pads != NO_PADS:
        own = attributes_of(layer).explicit_pads(kernel.shape[:3])
        if own is None:
            raise NotConstantError(
                "its auto_pad with strides depends on the volume, so the Pad before it cannot be "
                "joined"
            )
        config["padding"] = [[a[0] + b[0], a[1] + b[1]] for a, b in zip(own, pads, strict=True)]
    return replace(layer, notes=(*notes, *pad_notes))


def _fused_activation(attributes: dict[str, Any]) -> Any:
    """The activation of a FusedConv in Keras' words.

    Raises: NotConstantError for an unsupported activation.
    """
    name, parameters = "", []
    if "activation" in attributes:
        name = attributes["activation"].s.decode(errors="replace")
    if "activation_params" in attributes:
        parameters = list(attributes["activation_params"].floats)
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
    node: Any, kernel: Array, rank: int, use_bias: bool, path: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Convert the attributes of a Conv node to Keras' arguments; returns them and notes.

    rank : int      axes in space of the node
    Raises: FormatError for invalid attributes.
    """
    attributes = {attribute.name: attribute for attribute in node.attribute}

    def integers(name: str, default: list[int], least: int = 1) -> list[int]:
        values = list(attributes[name].ints) if name in attributes else default
        if len(values) != len(default) or any(not least <= value < 2**31 for value in values):
            raise FormatError(f"cannot read {path}: node {node.name} has {name}={values[:8]}")
        return values

    size, flat = list(kernel.shape[:3]), 3 - rank
    if integers("kernel_shape", size[flat:]) != size[flat:]:
        raise FormatError(
            f"cannot read {path}: node {node.name} has a kernel_shape that is not its weights' "
            f"{size[flat:]}"
        )
    strides, dilation = (
        [1] * flat + integers(name, [1] * rank) for name in ("strides", "dilations")
    )
    pads = integers("pads", [0] * (2 * rank), least=0)
    pads = [0] * flat + pads[:rank] + [0] * flat + pads[rank:]
    auto_pad = "NOTSET"
    if "auto_pad" in attributes:
        auto_pad = attributes["auto_pad"].s.decode(errors="replace")
    notes = [flat_note(rank)] if flat else []
    padding: Any
    if auto_pad in ("NOTSET", ""):
        padding = [[pads[i], pads[i + 3]] for i in range(3)] if any(pads) else "valid"
    elif auto_pad == "VALID":
        padding = "valid"
    elif auto_pad == "SAME_UPPER":
        padding = "same"
    elif auto_pad == "SAME_LOWER":
        lower = Attributes(triple(strides, "strides"), "same_lower", triple(dilation, "dilations"))
        pairs = lower.explicit_pads(size)
        padding = "same_lower" if pairs is None else [list(pair) for pair in pairs]
        if pairs is None:
            notes.append(
                "auto_pad SAME_LOWER with strides depends on the volume's size; "
                "give the padding in voxels"
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


# --------------------------------------------------------------------------------------------------
# Writing


def encode_onnx(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """Encode layers as a graph of consecutive Conv nodes; returns its bytes, and notes.

    Weights become float32, since no runtime computes Conv in float64 on every machine.
    Raises: WriteError if the layers do not form a sequence, or weights exceed float32; FormatError
    if onnx is not installed.
    """
    require_chain(layers, ".onnx")
    with require_library("onnx", "write ONNX"):
        import onnx
        from onnx import helper, numpy_helper
    nodes, initializers, notes, names = [], [], [], set()
    value = "input"
    for layer in layers:
        attributes, arrays = attributes_of(layer), with_smallest_dtype(layer)
        name = layer.name
        while name in names:
            name += "_"
        names.add(name)
        if arrays.kernel.dtype != np.float32:
            notes.append(
                f"{layer.name}: its weights are rounded to float32, which ONNX runtimes compute in"
            )
            for array in (arrays.kernel, arrays.bias):
                if array is not None and np.abs(array).max(initial=0) > np.finfo(np.float32).max:
                    raise WriteError(
                        f"{layer.name} has weights beyond float32, which ONNX files use; "
                        "write another format"
                    )
        if layer.config is None:
            notes.append(f"{layer.name}: {WEIGHTS_ONLY}")
        elif attributes.data_format == "channels_last":
            notes.append(
                f"{layer.name}: ONNX takes its data channels first, (batch, channels, depth, "
                "height, width)"
            )
        inputs = [value, f"{name}.weight"]
        weights = to_oidhw(arrays.kernel).astype("<f4")
        initializers.append(numpy_helper.from_array(weights, inputs[1]))
        if arrays.bias is not None:
            inputs.append(f"{name}.bias")
            initializers.append(numpy_helper.from_array(arrays.bias.astype("<f4"), inputs[2]))
        fields: dict[str, Any] = {
            "kernel_shape": list(layer.kernel.shape[:3]),
            "strides": list(attributes.strides),
            "dilations": list(attributes.dilation_rate),
            "group": attributes.groups,
        }
        pads = attributes.explicit_pads(layer.kernel.shape[:3])
        if pads is None:
            fields["auto_pad"] = "SAME_UPPER" if attributes.padding == "same" else "SAME_LOWER"
        else:  # explicit, since runtimes refuse auto_pad with dilations
            fields["pads"] = [before for before, _ in pads] + [after for _, after in pads]
        value = f"{name}.output"
        nodes.append(helper.make_node("Conv", inputs, [value], name=name, **fields))
        activation = attributes.activation if isinstance(attributes.activation, str) else None
        if activation in _ACTIVATIONS:
            operator, parameters = _ACTIVATIONS[activation]
            output = f"{name}.{activation}"
            node_name = f"{name}_{activation}"
            nodes.append(
                helper.make_node(operator, [value], [output], name=node_name, **parameters)
            )
            value = output
            notes.append(
                f"{layer.name}: its activation {activation} is written as a node of its own, "
                f"{operator}"
            )
        elif activation != "linear":
            lost = lost_arguments(layer, ("strides", "padding", "dilation_rate", "groups"))
            notes.append(f"{layer.name}: ONNX is written without {', '.join(lost)}")
    channels = layers[0].kernel.shape[3] * attributes_of(layers[0]).groups
    filters = layers[-1].kernel.shape[4]
    float32 = onnx.TensorProto.FLOAT
    input_shape = ["batch", channels, "depth", "height", "width"]
    graph = helper.make_graph(
        nodes,
        "converted",
        [helper.make_tensor_value_info("input", float32, input_shape)],
        [helper.make_tensor_value_info(value, float32, ["batch", filters, None, None, None])],
        initializers,
    )
    model = helper.make_model(
        graph, producer_name="conv3d", opset_imports=[helper.make_opsetid("", _OPSET)]
    )
    model.ir_version = _IR_VERSION
    return model.SerializeToString(deterministic=True), notes

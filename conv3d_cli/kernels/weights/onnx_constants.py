"""Constants of an ONNX graph: stored tensors, and the results of simple nodes applied to them.

Exporters and optimizers insert Cast, Identity, Constant and DequantizeLinear nodes between a
convolution and its weights, and a Pad node before it. Their results do not depend on the input, and
this module computes them as ONNX Runtime does. For any other node, an error names it.

Source: ONNX, onnx/defs/quantization/defs.cc, onnx/defs/tensor/defs.cc; onnx/onnx.proto.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    FLOATS,
    Array,
    decode_floats,
    read_exactly,
    require_shape,
)
from conv3d_cli.model.spec import Pads

STANDARD = ("", "ai.onnx")  # domains of the standard operators
_DTYPES = {
    1: "float32",
    10: "float16",
    11: "float64",
    16: "bfloat16",
    17: "float8_e4m3fn",
    19: "float8_e5m2",
}
_INTEGERS = {
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    12: "uint32",
    13: "uint64",
}
_CASTS = {1: np.float32, 10: np.float16, 11: np.float64}
_PASSIVE = ("Identity", "Dropout")  # a Dropout acts only in training
_MAX_DEPTH = 16  # nodes between a convolution and a tensor
# fields of a Constant node: (name, field of the attribute, dtype)
_CONSTANT_FIELDS = (
    ("value_float", "f", np.float32),
    ("value_floats", "floats", np.float32),
    ("value_int", "i", np.int64),
    ("value_ints", "ints", np.int64),
)


class NotConstantError(Exception):
    """A value that depends on the input or on unsupported nodes; the text gives the reason."""


def is_convolution(node: Any) -> bool:
    """Whether a node's operator convolves, by its name: Conv, ConvTranspose, QLinearConv, ..."""
    return "conv" in node.op_type.lower()


def inner_nodes(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the nodes in functions and in the subgraphs of nodes such as If and Loop.

    Yields (parent, node), where parent is the function or node around it, for messages.
    """

    def walk(nodes: Any, parent: str) -> Iterator[tuple[str, Any]]:
        for node in nodes:
            if parent:
                yield parent, node
            for attribute in node.attribute:
                graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                for graph in graphs:
                    yield from walk(graph.node, f"the node {_node_text(node)}")

    yield from walk(model.graph.node, "")
    for function in model.functions:
        yield from walk(function.node, f"the function {function.name}")


def _node_text(node: Any) -> str:
    """A node's operator and name, for messages."""
    return f"{node.op_type} '{node.name}'" if node.name else str(node.op_type)


class Constants:
    """The constants of a graph.

    graph : onnx.GraphProto     its stored tensors and nodes
    path : str                  the model's file, for external data and messages
    used : set                  outputs of nodes computed here, or merged into a convolution
    """

    def __init__(self, graph: Any, path: str) -> None:
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {output: node for node in graph.node for output in node.output if output}
        self._inputs = {value.name for value in graph.input}
        self.used: set[str] = set()

    def accounts_for(self, node: Any) -> bool:
        """Whether no effect of a node is lost: it is passive, or was computed or merged here."""
        passive = (*_PASSIVE, "Constant")
        return (node.op_type in passive and node.domain in STANDARD) or bool(
            self.used & set(node.output)
        )

    def value(self, name: str, what: str) -> Array:
        """Compute a tensor, in its dtype in the graph; bfloat16 and float8 become float32.

        what : str      name of the tensor in messages, in the plural
        Raises: NotConstantError; FormatError for damaged tensors; ShapeError for too many elements.
        """
        known: dict[str, Array] = {}
        try:
            return self._value(name, known, 0)
        except NotConstantError as error:
            raise NotConstantError(f"its {what} {error}") from None

    def _value(self, name: str, known: dict[str, Array], depth: int) -> Array:
        """Compute a tensor from its operands, recursively; `known` caches the results."""
        if name in known:
            return known[name]
        if depth > _MAX_DEPTH:
            raise NotConstantError(f"are behind more than {_MAX_DEPTH} nodes")
        if name in self._tensors:
            known[name] = read_tensor(self._tensors[name], self._path)
            return known[name]
        node = self._producers.get(name)
        if node is None:
            raise NotConstantError(
                "are an input of the graph" if name in self._inputs else "are nowhere in the graph"
            )
        attributes = {attribute.name: attribute for attribute in node.attribute}

        def operand(position: int) -> Array | None:
            there = len(node.input) > position and node.input[position]
            return self._value(node.input[position], known, depth + 1) if there else None

        result = None
        if node.domain in STANDARD and node.op_type == "Constant":
            result = constant(attributes, self._path)
        elif node.domain in STANDARD and node.op_type in _PASSIVE:
            result = operand(0)
        elif node.domain in STANDARD and node.op_type == "Cast" and attributes["to"].i in _CASTS:
            source = operand(0)
            result = None if source is None else source.astype(_CASTS[attributes["to"].i])
        elif node.domain in (*STANDARD, "com.microsoft") and node.op_type == "DequantizeLinear":
            if any(self._tensors[i].data_type == 16 for i in node.input[1:2] if i in self._tensors):
                raise NotConstantError(
                    f"are dequantized to bfloat16 by {_node_text(node)}, which is not computed"
                )
            result = dequantized(operand(0), operand(1), operand(2), attributes, _node_text(node))
        if result is None:
            raise NotConstantError(f"are computed by the graph, by {_node_text(node)}")
        self.used |= set(node.output)
        known[name] = result
        return result

    def pads_before(self, name: str, rank: int) -> tuple[Pads, tuple[str, ...]]:
        """Zero padding by the Pad nodes before a convolution of tensor `name`, and a note on it.

        rank : int      axes in space of the convolution
        Raises: NotConstantError for Pad nodes that do anything else.
        """
        sums = [[0, 0], [0, 0], [0, 0]]
        names: list[str] = []
        for _ in range(_MAX_DEPTH):
            node = self._producers.get(name)
            if (
                node is None
                or node.domain not in STANDARD
                or node.op_type not in (*_PASSIVE, "Pad")
                or not node.input
            ):
                break
            name = node.input[0]
            if node.op_type != "Pad":
                continue
            try:
                pads = self._zero_pads(node, rank)
            except NotConstantError as error:
                raise NotConstantError(
                    f"the Pad node {node.name or node.output[0]} before it is not zero padding: "
                    f"{error}"
                ) from None
            for pair, (before, after) in zip(sums, pads, strict=True):
                pair[0] += before
                pair[1] += after
            self.used |= set(node.output)
            names.insert(0, node.name or node.output[0])
        pads = (sums[0][0], sums[0][1]), (sums[1][0], sums[1][1]), (sums[2][0], sums[2][1])
        if not names:
            return pads, ()
        return pads, (f"its padding includes that of the Pad nodes before it: {', '.join(names)}",)

    def _zero_pads(self, node: Any, rank: int) -> Pads:
        """Zeros that a Pad node adds along depth, height and width.

        Raises: NotConstantError if it does anything else.
        """
        attributes = {attribute.name: attribute for attribute in node.attribute}
        mode = attributes["mode"].s.decode(errors="replace") if "mode" in attributes else "constant"
        if mode != "constant":
            raise NotConstantError(f"its mode is {mode}")

        def numbers(position: int, attribute: str, what: str) -> list[Any]:
            if len(node.input) > position and node.input[position]:
                return self.value(node.input[position], what).reshape(-1).tolist()
            return list(attributes[attribute].ints) if attribute in attributes else []

        fill = numbers(2, "", "fill values") or (
            [attributes["value"].f] if "value" in attributes else [0.0]
        )
        if any(fill):
            raise NotConstantError(f"it adds {fill[0]:g}, not zeros")
        pads, axes = numbers(1, "pads", "pads"), numbers(3, "", "axes") or list(range(rank + 2))
        pairs = zip(pads, pads[len(axes) :], strict=False)  # (before, after) of each axis
        by_axis = dict(zip([axis % (rank + 2) for axis in axes], pairs, strict=False))
        pads_others = any(any(by_axis.get(axis, ())) for axis in (0, 1))
        if len(pads) != 2 * len(axes) or len(by_axis) != len(axes) or pads_others:
            raise NotConstantError("it pads other axes than depth, height and width")
        if min(pads, default=0) < 0:
            raise NotConstantError("it crops voxels")
        # of fewer axes in space, the first of these are batch and channels, which are not padded
        depth, height, width = (by_axis.get(axis, (0, 0)) for axis in range(rank - 1, rank + 2))
        return depth, height, width


def constant(attributes: dict[str, Any], path: str) -> Array | None:
    """The value of a Constant node; None for kinds other than numbers and tensors."""
    if "value" in attributes:
        return read_tensor(attributes["value"].t, path)
    for name, field, dtype in _CONSTANT_FIELDS:
        if name in attributes:
            return np.array(getattr(attributes[name], field), dtype)
    return None


def dequantized(
    values: Array | None,
    scale: Array | None,
    zero: Array | None,
    attributes: dict[str, Any],
    node: str,
) -> Array | None:
    """(values - zero point) · scale; zero point and scale are scalars, or vectors along one axis.

    Returns None without values or scale. Raises: NotConstantError for other forms.
    """
    if values is None or scale is None:
        return None
    blocks, output = (
        int(attributes[name].i) if name in attributes else 0
        for name in ("block_size", "output_dtype")
    )
    if blocks or output or scale.ndim > 1 or (zero is not None and zero.shape != scale.shape):
        raise NotConstantError(
            f"are dequantized by {node} in blocks or to another dtype, which is not computed"
        )
    if scale.size > 1:
        axis = int(attributes["axis"].i) if "axis" in attributes else 1
        if not -values.ndim <= axis < values.ndim or values.shape[axis] != scale.size:
            raise NotConstantError(f"do not fit the {scale.size} scales of {node}")
        shape = [1] * values.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    elif scale.ndim:
        scale, zero = scale.reshape(()), None if zero is None else zero.reshape(())
    if values.dtype.kind in "iu":
        values = values.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
    elif zero is not None:
        values = values - zero
    # float16 scales are multiplied in float32 too
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    product: Array = values.astype(wide) * scale.astype(wide)
    return product.astype(scale.dtype)


# --------------------------------------------------------------------------------------------------
# Tensors


def read_tensor(tensor: Any, path: str) -> Array:
    """Decode a stored tensor. Raises: as `Constants.value`."""
    what = f"tensor {tensor.name[:80]}"
    shape = [int(n) for n in tensor.dims]
    count = require_shape(shape, what, path)
    dtype = _DTYPES.get(tensor.data_type, _INTEGERS.get(tensor.data_type))
    if dtype is None:
        raise NotConstantError(
            f"are stored as ONNX data type {tensor.data_type} ({what}), which is not supported"
        )
    needed = count * (FLOATS[dtype] if dtype in FLOATS else np.dtype(dtype).itemsize)
    if tensor.data_location == 1:
        raw = _read_external(tensor, needed, what, path)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _read_fields(tensor, dtype, count, what, path).reshape(shape)
    if len(raw) != needed:
        raise FormatError(
            f"cannot read {path}: truncated: {what} needs {needed:,} bytes and has {len(raw):,}"
        )
    return _decoded(raw, dtype).reshape(shape)


def _decoded(raw: bytes, dtype: str) -> Array:
    if dtype in FLOATS:
        return decode_floats(raw, dtype)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype)


def _read_fields(tensor: Any, dtype: str, count: int, what: str, path: str) -> Array:
    """Read numbers from the field of their type; integers store the bits of short floats."""
    wide = {
        "float32": tensor.float_data,
        "float64": tensor.double_data,
        "int64": tensor.int64_data,
        "uint32": tensor.uint64_data,
        "uint64": tensor.uint64_data,
    }
    values = wide.get(dtype, tensor.int32_data)
    if len(values) != count:
        raise FormatError(
            f"cannot read {path}: truncated: {what} needs {count:,} numbers and has {len(values):,}"
        )
    if dtype in wide and dtype != "uint32":
        return np.array(values, dtype)
    if dtype in _INTEGERS.values():
        return np.array(values, np.uint64 if dtype == "uint32" else np.int64).astype(dtype)
    width = FLOATS[dtype]
    bits = np.array(values, np.int64) & (256**width - 1)
    return decode_floats(bits.astype(f"<u{width}").tobytes(), dtype)


def _read_external(tensor: Any, needed: int, what: str, path: str) -> bytes:
    """Read a tensor from a regular file in the model's folder, without following links.

    Raises: FormatError for any other location, and for wrong offsets or lengths.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    plain = location and location not in (".", "..") and not set(location) & {"/", "\\", "\0", ":"}
    if not plain:
        raise FormatError(
            f"cannot read {path}: {what} is stored in {location!r}; external data are read only "
            "from the model's own folder"
        )
    external = Path(path).parent / location
    try:
        if not stat.S_ISREG(os.lstat(external).st_mode):
            raise FormatError(
                f"cannot read {path}: {what} is stored in {location}, which is not a regular file"
            )
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or needed)
        with open(external, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if offset < 0 or length != needed or offset + length > size:
                raise FormatError(
                    f"cannot read {path}: {what} needs {needed:,} bytes at {offset:,} of "
                    f"{location}, which has {size:,}"
                )
            file.seek(offset)
            return read_exactly(file, length, path)
    except FileNotFoundError:
        raise FormatError(
            f"cannot read {path}: {what} is stored in {location}, which is not in its folder"
        ) from None
    except OSError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"cannot read {path}: {location}: {error.strerror}") from None

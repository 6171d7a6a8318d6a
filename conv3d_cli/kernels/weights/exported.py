"""PyTorch's `.pt2`: programs of torch.export, whose graph has the arguments of every convolution.

The archive holds `models/NAME.json`, a graph of operations, and `data/weights/`, raw numbers with
a table of their types and shapes. A layer has the name of its parameter without `.weight`. Nothing
is run.

Source: PyTorch, torch/export/pt2_archive/constants.py, torch/_export/serde/schema.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    FLOATS,
    Archive,
    Array,
    OtherLayer,
    SavedLayer,
    attributes_of,
    decode_floats,
    flat_note,
    from_oidhw,
    lifted,
    parse_json,
    require_match,
    require_shape,
)

# torch's ScalarType in the schema -> dtype
_DTYPES = {
    6: "float16",
    7: "float32",
    8: "float64",
    13: "bfloat16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
}
# operator -> axes in space
_CONVOLUTIONS = {
    f"torch.ops.aten.conv{rank}d.{overload}": rank
    for rank in (1, 2, 3)
    for overload in ("default", "padding")
}
_CONVOLUTION = "torch.ops.aten.convolution.default"
_PADS = ("torch.ops.aten.pad.default", "torch.ops.aten.constant_pad_nd.default")
_PASSIVE = (
    "torch.ops.aten.dropout.default",
    "torch.ops.aten.feature_dropout.default",
    "torch.ops.aten.alpha_dropout.default",
    "torch.ops.aten.detach.default",
    "torch.ops.aten.alias.default",
    "torch.ops.aten.clone.default",
)


class _NotReadError(Exception):
    """A convolution that is not read; the text says why."""


def is_program(members: Sequence[str]) -> bool:
    """Whether a zip with these members is a program of torch.export."""
    return any(name.rpartition("/")[2] in (_FORMAT, _OLD_PROGRAM) for name in members)


_FORMAT = "archive_format"
_OLD_PROGRAM = "serialized_exported_program.json"  # before PyTorch 2.8


def read_exported(path: str) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a program, in the order of its operations.

    Raises: FormatError for a damaged or foreign file; ShapeError for tensors of too many elements.
    """
    with Archive(path) as archive:
        models = [
            name
            for name in archive.names
            if "/models/" in f"/{name}" and name.endswith(".json") and name.count("/") <= 2
        ]
        if len(models) != 1:
            found = "several programs" if models else "no models/NAME.json"
            raise FormatError(
                f"cannot read {path}: it holds {found}; export one program by PyTorch 2.8 or "
                "later, or save its weights: torch.save(module.state_dict(), 'net.pt')"
            )
        folder, _, file = models[0].rpartition("models/")
        program = parse_json(archive.read(models[0]), models[0], path)
        tables: dict[str, Any] = {}
        for kind in ("weights", "constants"):
            member = f"{folder}data/{kind}/{file.removesuffix('.json')}_{kind}_config.json"
            if member in archive.names:
                entries = parse_json(archive.read(member), member, path).get("config")
                entries = entries if isinstance(entries, dict) else {}
                tables |= {
                    name: (f"{folder}data/{kind}/", entry) for name, entry in entries.items()
                }
        byte_order = "<"
        if f"{folder}byteorder" in archive.names and archive.read(f"{folder}byteorder") == b"big":
            byte_order = ">"
        try:
            return _Program(program, tables, archive, byte_order, path).layers()
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise FormatError(
                f"cannot read {path}: damaged: its program lacks {str(error)[:80]}"
            ) from None


class _Program:
    """A graph of operations and its weights."""

    def __init__(
        self,
        program: dict[str, Any],
        tables: Mapping[str, tuple[str, Any]],
        archive: Archive,
        byte_order: str,
        path: str,
    ) -> None:
        """Take a program apart; tables : name of a tensor -> its folder and entry."""
        module = program["graph_module"]
        self._nodes: list[dict[str, Any]] = module["graph"]["nodes"]
        self._tables, self._archive = tables, archive
        self._byte_order, self._path = byte_order, path
        self._producers: dict[str, dict[str, Any]] = {}
        for node in self._nodes:
            for output in node["outputs"]:
                if "as_tensor" in output:
                    self._producers[output["as_tensor"]["name"]] = node
        # tensor in the graph -> parameter, buffer or constant
        self._parameters: dict[str, str] = {}
        for spec in module["signature"]["input_specs"]:
            for kind in ("parameter", "buffer", "tensor_constant"):
                if kind in spec:
                    self._parameters[spec[kind]["arg"]["name"]] = spec[kind][f"{kind}_name"]

    def layers(self) -> list[SavedLayer | OtherLayer]:
        """The convolutions and other operations, in their order."""
        joined: set[str] = set()  # names of pads that are part of a convolution
        read: dict[int, SavedLayer | OtherLayer] = {}
        for number, node in enumerate(self._nodes):
            if any("as_graph" in entry["arg"] for entry in node["inputs"]):
                reason = "it holds graphs of its own, which are not searched"
                read[number] = OtherLayer(str(node["name"]), reason)
            elif "conv" in node["target"]:
                values = _inputs(node)
                name = self._name(values, node)
                try:
                    read[number] = self._convolution(node, values, name, joined)
                except _NotReadError as error:
                    read[number] = OtherLayer(name, str(error), aliases=(str(node["name"]),))
        contents: list[SavedLayer | OtherLayer] = []
        for number, node in enumerate(self._nodes):
            if number in read:
                contents.append(read[number])
            elif node["target"] not in _PASSIVE and node["name"] not in joined:
                operation = node["target"].removeprefix("torch.ops.")
                reason = f"it is an operation {operation}"
                contents.append(OtherLayer(str(node["name"]), reason, is_convolution=False))
        return contents

    def _name(self, values: Mapping[str, Any], node: dict[str, Any]) -> str:
        """The name of a convolution: that of its weight's module, else of its node."""
        parameter = self._parameters.get(_tensor_name(values.get("weight")), "")
        return parameter.removesuffix(".weight") or str(node["name"])

    def _convolution(
        self, node: dict[str, Any], values: Mapping[str, Any], name: str, joined: set[str]
    ) -> SavedLayer | OtherLayer:
        """Read a convolution; the names of pads before it are added to `joined`.

        Raises: _NotReadError; FormatError.
        """
        target = node["target"]
        if target not in _CONVOLUTIONS and target != _CONVOLUTION:
            raise _NotReadError(f"it is an operation {target.removeprefix('torch.ops.')}")
        if values.get("transposed"):
            raise _NotReadError("it is a transposed convolution")
        weight = self._read(values["weight"], "weights")
        rank = weight.ndim - 2
        if _CONVOLUTIONS.get(target, rank) != rank or not 1 <= rank <= 3:
            raise FormatError(
                f"cannot read {self._path}: {name} is a {target} of weights with {weight.ndim} axes"
            )
        bias = self._read(values["bias"], "bias") if values.get("bias") is not None else None
        kernel = from_oidhw(lifted(weight, rank))

        def numbers(key: str, default: int) -> list[int]:
            value = values.get(key, default)
            parts = list(value) if isinstance(value, list) else [value] * rank
            parts = parts * rank if len(parts) == 1 else parts
            if len(parts) != rank or not all(type(n) is int and 0 <= n < 2**31 for n in parts):
                raise FormatError(f"cannot read {self._path}: {name} has {key}={str(value)[:60]}")
            return [default] * (3 - rank) + parts

        padding: Any = values.get("padding", 0)
        if not isinstance(padding, str):
            sizes = numbers("padding", 0)
            padding = [[n, n] for n in sizes] if any(sizes) else "valid"
        config = {
            "filters": kernel.shape[4],
            "kernel_size": list(kernel.shape[:3]),
            "strides": numbers("stride", 1),
            "padding": padding,
            "data_format": "channels_first",
            "dilation_rate": numbers("dilation", 1),
            "groups": values.get("groups", 1),
            "activation": "linear",
            "use_bias": bias is not None,
        }
        notes = (flat_note(rank),) if rank < 3 else ()
        aliases = (f"{name}.weight", str(node["name"]))
        layer = require_match(SavedLayer(name, config, kernel, bias, aliases, notes), self._path)
        pads = self._pads_before(values["input"], rank, joined)
        if any(any(pair) for pair in pads):
            own = attributes_of(layer).explicit_pads(kernel.shape[:3])
            if own is None:
                raise _NotReadError("its padding depends on the volume, and another is before it")
            config["padding"] = [[a[0] + b[0], a[1] + b[1]] for a, b in zip(own, pads, strict=True)]
        return layer

    def _pads_before(self, value: Any, rank: int, joined: set[str]) -> list[tuple[int, int]]:
        """Zeros that operations before a convolution add along D, H, W.

        Raises: _NotReadError for operations that pad by other values.
        """
        pads = [(0, 0)] * 3
        for _ in range(len(self._nodes)):
            node = self._producers.get(_tensor_name(value))
            if node is None or node["target"] not in (*_PADS, *_PASSIVE):
                break
            inputs = _inputs(node)
            value = inputs.get("input", inputs.get("self"))
            if node["target"] in _PASSIVE:
                continue
            sizes, mode = inputs["pad"], inputs.get("mode", "constant")
            if mode != "constant" or inputs.get("value") or min(sizes, default=0) < 0:
                raise _NotReadError(
                    f"the operation {node['name']} before it pads by mode {mode} and {sizes}, "
                    "which is not zero padding"
                )
            pairs = list(zip(sizes[::2], sizes[1::2], strict=True))  # of the last axis first
            if len(pairs) > rank:
                raise _NotReadError(f"the operation {node['name']} before it pads other axes")
            for axis, (before, after) in enumerate(pairs, start=1):
                pads[-axis] = (pads[-axis][0] + before, pads[-axis][1] + after)
            joined.add(node["name"])
        return pads

    def _read(self, value: Any, what: str) -> Array:
        """Read a parameter. Raises: _NotReadError for a tensor that the graph computes."""
        tensor = _tensor_name(value)
        parameter = self._parameters.get(tensor)
        if parameter is None:
            node = self._producers.get(tensor)
            by = f"by the operation {node['name']}" if node else "elsewhere"
            raise _NotReadError(f"its {what} are computed {by}")
        folder, entry = self._tables[parameter]
        meta = entry["tensor_meta"]
        shape = [int(size["as_int"]) for size in meta["sizes"]]
        strides = [int(size["as_int"]) for size in meta["strides"]]
        name = f"tensor {parameter[:80]}"
        count = require_shape(shape, name, self._path)
        dtype = _DTYPES.get(meta["dtype"])
        if entry.get("use_pickle") or dtype is None:
            kind = "a pickle" if entry.get("use_pickle") else f"torch's type {meta['dtype']}"
            raise _NotReadError(f"its {what} are stored as {kind}, which is not read")
        plain = [0] * len(shape)
        step = 1
        for axis in reversed(range(len(shape))):
            plain[axis], step = step, step * shape[axis]
        if meta["storage_offset"]["as_int"] or any(
            n > 1 and a != b for n, a, b in zip(shape, strides, plain, strict=True)
        ):
            raise _NotReadError(f"its {what} are stored as a view, which is not read")
        member = f"{folder}{entry['path_name']}"
        size = self._archive.size(member)
        needed = count * FLOATS[dtype]
        if size < needed:
            raise FormatError(
                f"cannot read {self._path}: truncated: {name} needs {needed:,} bytes of {member}, "
                f"which has {size:,}"
            )
        raw = self._archive.read(member)[:needed]
        return decode_floats(raw, dtype, self._byte_order).reshape(shape)


def _inputs(node: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operation by name: plain values, and tensors as {"name": ...}."""
    values: dict[str, Any] = {}
    for entry in node["inputs"]:
        ((kind, value),) = entry["arg"].items()
        values[entry["name"]] = None if kind == "as_none" else value
    return values


def _tensor_name(value: Any) -> str:
    return str(value.get("name", "")) if isinstance(value, dict) else ""

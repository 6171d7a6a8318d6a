"""TF.js layers models: `model.json`, which has a Keras 2 model's JSON, and shards with its weights.

The manifest lists tensors by name, shape and dtype, in the order of their bytes in the shards of
their group. Quantized ones are stored as uint8 or uint16, of which value · scale + min is rounded
to float32, or as float16. TF.js computes every model as Keras 2 does, whoever saved it.

Source: TensorFlow.js, tfjs-core/src/io/types.ts and io_utils.ts, tfjs-layers/src/models.ts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import parse_json, read_exactly, require_shape
from conv3d_cli.model.keras_json import is_layer
from conv3d_cli.network.graph import Network
from conv3d_cli.network.keras import read_keras_network
from conv3d_cli.network.keras_weights import KerasWeights
from conv3d_cli.system.inputs import check_input, lies_beside
from conv3d_cli.system.room import JSON_BYTES, TEXT_COPIES, check_tree, require_room
from conv3d_cli.system.words import count_of

Array = NDArray[Any]

_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|u1"}
_QUANTIZED = {"uint8": "|u1", "uint16": "<u2", "float16": "<f2"}
_OPTIMIZER = "optimizer"  # group of tensors that only training uses


@dataclass(frozen=True)
class _Tensor:
    """A tensor in the manifest.

    stored : dtype          of its bytes
    scale, least : float    of a quantized tensor; None: it is stored as it is
    """

    name: str
    shape: tuple[int, ...]
    count: int
    stored: np.dtype[Any]
    scale: float | None
    least: float | None
    group: str

    @property
    def size(self) -> int:
        """Its bytes in the shards."""
        return self.count * self.stored.itemsize

    def decode(self, raw: bytes) -> Array:
        """Its values, as float32 unless they are whole numbers."""
        values = np.frombuffer(raw, self.stored)
        if self.scale is not None and self.least is not None:
            values = (values * self.scale + self.least).astype(np.float32)
        elif values.dtype.kind == "f":
            values = values.astype(np.float32)
        return values.reshape(self.shape)


def read_tfjs_network(path: str) -> Network:
    """Read a TF.js layers model, with all shards that its manifest names.

    Raises: FormatError for a damaged or foreign file, and missing shards; SpecError for layers that
        are not understood; ShapeError, MemoryLimitError for tensors that are too large.
    """
    size = check_input(path)
    require_room(TEXT_COPIES * size, "its text", path)
    with open(path, "rb") as file:
        text = read_exactly(file, size, path)
    check_tree(text, JSON_BYTES, path)
    content = parse_json(text, "model.json", path)
    topology = content.get("modelTopology")
    if not isinstance(topology, Mapping):
        raise FormatError(f"cannot read {path}: its modelTopology is no JSON object")
    if "node" in topology or content.get("format") == "graph-model":
        raise FormatError(
            f"cannot read {path}: it is a TF.js graph model, whose layers are dissolved; convert "
            "the Keras model with --output_format tfjs_layers_model"
        )
    model = topology.get("model_config", topology)
    if not is_layer(model):
        raise FormatError(f"cannot read {path}: its modelTopology has no Keras model")
    tensors, files = _read_tensors(content.get("weightsManifest"), path)
    weights: dict[tuple[str, str], dict[str, Array]] = {}
    for name, values in tensors.items():
        *above, leaf = name.split("/")
        if above:
            weights.setdefault((above[0], above[-1]), {})[leaf] = values
    network = read_keras_network(
        {**model, "keras_version": "2.0"}, KerasWeights(None, weights), (path, *files)
    )
    return _with_unused(network, tensors)


def _with_unused(network: Network, tensors: Mapping[str, Array]) -> Network:
    """The network, with a note on tensors that no layer has."""
    used = {id(array) for node in network.nodes for array in node.weights.values()}
    unused = [name for name, array in tensors.items() if id(array) not in used]
    if not unused:
        return network
    listed = ", ".join(unused[:8]) + (", ..." if len(unused) > 8 else "")
    verb = "belongs" if len(unused) == 1 else "belong"
    note = f"{count_of(len(unused), 'tensor')} of the file {verb} to no layer: {listed}"
    return network.with_notes((*network.notes, note))


# --------------------------------------------------------------------------------------------------
# Tensors


def _read_tensors(manifest: Any, path: str) -> tuple[dict[str, Array], tuple[str, ...]]:
    """All tensors by name, without those of the optimizer; and the shards' paths.

    manifest : `weightsManifest`, a list of groups, each with `paths` and `weights`
    """
    if not isinstance(manifest, list):
        raise FormatError(
            f"cannot read {path}: it has no weightsManifest, so its weights are not there; save "
            "the model with them"
        )
    tensors: dict[str, Array] = {}
    files: list[str] = []
    for group in manifest:
        if not isinstance(group, Mapping):
            raise FormatError(f"cannot read {path}: its weightsManifest has a group {group!r:.60}")
        listed = list(_listed(group.get("weights"), path))
        shards = _shards(group.get("paths"), path)
        content = _content(shards, sum(tensor.size for tensor in listed), path)
        files += shards
        start = 0
        for tensor in listed:
            if tensor.name in tensors:
                raise FormatError(f"cannot read {path}: it has two tensors {tensor.name!r:.80}")
            raw = content[start : start + tensor.size]
            start += tensor.size
            if tensor.group != _OPTIMIZER:
                tensors[tensor.name] = tensor.decode(raw)
    return tensors, tuple(files)


def _listed(entries: Any, path: str) -> Iterator[_Tensor]:
    """The tensors of a group. Raises: FormatError, ShapeError, MemoryLimitError."""
    for entry in entries if isinstance(entries, list) else [entries]:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            raise FormatError(f"cannot read {path}: its weightsManifest has a tensor {entry!r:.60}")
        what = f"tensor {name[:80]}"
        shape = entry.get("shape")
        if not isinstance(shape, list):
            raise FormatError(f"cannot read {path}: {what} has the shape {shape!r:.60}")
        count = require_shape(shape, what, path)
        dtype, scale, least = entry.get("dtype"), None, None
        known = _DTYPES.get(dtype) if isinstance(dtype, str) else None
        if known is None:
            raise FormatError(
                f"cannot read {path}: {what} has the dtype {dtype!r:.60}; read are "
                f"{', '.join(_DTYPES)}"
            )
        quantization = entry.get("quantization")
        if quantization is not None:
            kind = quantization.get("dtype") if isinstance(quantization, Mapping) else None
            known = _QUANTIZED.get(kind) if isinstance(kind, str) else None
            if known is None or dtype != "float32":
                raise FormatError(
                    f"cannot read {path}: {what} of {dtype} is quantized as {kind!r:.60}; read is "
                    f"float32 as {', '.join(_QUANTIZED)}"
                )
            if kind != "float16":
                scale, least = (_number(quantization, key, what, path) for key in ("scale", "min"))
        yield _Tensor(
            name, tuple(shape), count, np.dtype(known), scale, least, str(entry.get("group", ""))
        )


def _number(quantization: Mapping[str, Any], key: str, what: str, path: str) -> float:
    value = quantization.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise FormatError(
            f"cannot read {path}: {what} is quantized with {key}={value!r:.60}, which must be a "
            "finite number"
        )
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


def _shards(names: Any, path: str) -> list[str]:
    """The paths of a group's shards, in order. Raises: FormatError."""
    folder = Path(path).parent
    shards = []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise FormatError(f"cannot read {path}: its weightsManifest names a shard {name!r:.60}")
        shard = str(folder / name)
        if "://" in name or not lies_beside(shard, path):
            raise FormatError(
                f"cannot read {path}: its weights are in {name!r:.80}; shards are read only from "
                "the model's own folder"
            )
        shards.append(shard)
    return shards


def _content(shards: list[str], needed: int, path: str) -> bytes:
    """The bytes of a group's shards. Raises: FormatError unless they are as many as needed."""
    sizes = []
    for shard in shards:
        if not os.path.isfile(shard):
            raise FormatError(
                f"cannot read {path}: its weights are in {os.path.basename(shard)}, which is not "
                "in its folder; copy it there"
            )
        sizes.append(check_input(shard))
    if sum(sizes) != needed:
        raise FormatError(
            f"cannot read {path}: its tensors need {needed:,} bytes, and its shards have "
            f"{sum(sizes):,}; copy them again"
        )
    require_room(2 * needed, "its weights", path)
    parts = []
    for shard, size in zip(shards, sizes, strict=True):
        with open(shard, "rb") as file:
            parts.append(read_exactly(file, size, shard))
    return b"".join(parts)

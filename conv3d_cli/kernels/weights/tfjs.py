"""TensorFlow.js layers models: `model.json` with a Keras model's config, and shards of raw weights.

`modelTopology` is the model's JSON. `weightsManifest` lists groups: the files of each, whose bytes
follow one another, and the name, shape and type of each tensor in the order of the bytes. The
files are read only from the folder of `model.json`.

Source: TensorFlow.js, tfjs-core/src/io/types.ts and io_utils.ts (decodeWeights).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    MAX_JSON,
    Array,
    OtherLayer,
    SavedLayer,
    decode_floats,
    parse_json,
    read_exactly,
    require_shape,
)
from conv3d_cli.kernels.weights.legacy import read_named_layers
from conv3d_cli.system.inputs import check_input

# dtype in the manifest -> bytes per number
_WIDTHS = {"float32": 4, "int32": 4, "bool": 1, "complex64": 8}
# dtypes of weights that are quantized
_QUANTIZED = {"float16": 2, "uint8": 1, "uint16": 2}
_MAX_FILES = 10_000


@dataclass(frozen=True)
class _File:
    """A shard: where its bytes begin in its group, and how many they are."""

    path: Path
    begin: int
    size: int


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor of the manifest; `begin` is its first byte in its group."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: dict[str, Any] | None
    begin: int
    files: tuple[_File, ...]

    @property
    def stored(self) -> str:
        """The type of the numbers in the file."""
        return self.dtype if self.quantization is None else str(self.quantization.get("dtype"))

    @property
    def bytes(self) -> int:
        """Bytes of the tensor in its group."""
        return math.prod(self.shape) * (_WIDTHS | _QUANTIZED)[self.stored]


def read_tfjs(path: str) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a TensorFlow.js layers model, in the order of their weights.

    path : str      of its model.json
    Raises: FormatError for a damaged file, a graph model, or a shard that is missing or has another
    length; ShapeError for tensors of too many elements.
    """
    model = read_tfjs_config(path)
    tensors = _read_manifest(path)

    def read(tensor: Any) -> Array:
        return _read_tensor(tensor, path)

    by_layer: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        above, _, leaf = name.rpartition("/")
        by_layer.setdefault(above, {})[leaf] = tensor
    version = str(model.get("keras_version", ""))
    return read_named_layers({"": by_layer}, model, version, read, path)


def read_tfjs_config(path: str) -> dict[str, Any]:
    """Read the Keras JSON of the model. Raises: FormatError."""
    topology = _read_json(path).get("modelTopology")
    if isinstance(topology, dict) and "node" in topology:
        raise FormatError(
            f"cannot read {path}: it is a graph model of TensorFlow.js, which has operations and "
            "no layers; convert the Keras model itself"
        )
    model = topology.get("model_config", topology) if isinstance(topology, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("class_name"), str):
        raise FormatError(f"cannot read {path}: damaged: its modelTopology is no Keras model")
    assert isinstance(topology, dict)
    return {"keras_version": topology.get("keras_version", ""), **model}


def _read_json(path: str) -> dict[str, Any]:
    if check_input(path) > MAX_JSON:
        raise FormatError(f"cannot read {path}: a model.json is not this long")
    with open(path, "rb") as file:
        return parse_json(file.read(), "its content", path)


def _read_manifest(path: str) -> dict[str, _Tensor]:
    """The tensors of all groups by name. Raises: FormatError."""
    manifest = _read_json(path).get("weightsManifest")
    tensors: dict[str, _Tensor] = {}
    count = 0
    try:
        for group in manifest:  # type: ignore[union-attr]
            files, end = [], 0
            for name in group["paths"]:
                shard = _shard(path, name)
                files.append(_File(shard, end, shard.stat().st_size))
                end += files[-1].size
                count += 1
                if count > _MAX_FILES:
                    raise FormatError(
                        f"cannot read {path}: it names more than {_MAX_FILES:,} files"
                    )
            begin = 0
            for entry in group["weights"]:
                shape = entry["shape"]
                what = f"tensor {str(entry['name'])[:80]}"
                require_shape(shape, what, path)
                tensor = _Tensor(
                    str(entry["name"]),
                    tuple(shape),
                    str(entry["dtype"]),
                    entry.get("quantization"),
                    begin,
                    tuple(files),
                )
                if tensor.stored not in _WIDTHS | _QUANTIZED:
                    raise FormatError(f"cannot read {path}: {what} holds {tensor.stored[:40]}")
                begin += tensor.bytes
                if begin > end:
                    raise FormatError(
                        f"cannot read {path}: truncated: {what} ends at byte {begin:,} of its "
                        f"files, which have {end:,}"
                    )
                tensors[tensor.name] = tensor
            if begin != end:
                raise FormatError(
                    f"cannot read {path}: its files have {end:,} bytes, and its tensors {begin:,}"
                )
    except (TypeError, KeyError, AttributeError):
        raise FormatError(f"cannot read {path}: damaged: its weightsManifest") from None
    return tensors


def _shard(path: str, name: Any) -> Path:
    """The path of a shard in the folder of a model. Raises: FormatError."""
    if not isinstance(name, str) or name != os.path.basename(name) or set(name) & set("\\:\0"):
        raise FormatError(
            f"cannot read {path}: it names the file {str(name)[:80]!r}; only its own folder is read"
        )
    shard = Path(path).with_name(name)
    if not name or not shard.is_file():
        raise FormatError(
            f"cannot read {path}: it names {name[:80]}, which is not in its folder; fetch it"
        )
    return shard


def _read_tensor(tensor: _Tensor, path: str) -> Array:
    """Read a tensor from the shards that hold its bytes.

    Raises: FormatError if it holds no floats.
    """
    quantization = tensor.quantization
    if tensor.dtype != "float32" and tensor.stored != "float16":
        raise FormatError(
            f"cannot read {path}: tensor {tensor.name[:80]} holds {tensor.dtype[:40]}, not floats"
        )
    begin, end = tensor.begin, tensor.begin + tensor.bytes
    parts = []
    for file in tensor.files:
        first, last = max(begin, file.begin), min(end, file.begin + file.size)
        if first < last:
            with open(file.path, "rb") as stream:
                stream.seek(first - file.begin)
                parts.append(read_exactly(stream, last - first, str(file.path)))
    raw = b"".join(parts)
    if quantization is None or tensor.stored in ("float16", "float32"):
        return decode_floats(raw, tensor.stored).reshape(tensor.shape)
    try:
        scale, least = float(quantization["scale"]), float(quantization["min"])
    except (KeyError, TypeError, ValueError):
        raise FormatError(
            f"cannot read {path}: damaged: the quantization of tensor {tensor.name[:80]}"
        ) from None
    levels = np.frombuffer(raw, "<u2" if tensor.stored == "uint16" else "u1")
    floats: Array = (levels * scale + least).astype(np.float32)
    return floats.reshape(tensor.shape)

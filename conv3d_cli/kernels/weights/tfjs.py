"""TensorFlow.js layers models: `model.json` with a Keras model's config, and shards of raw weights.

`modelTopology` is the model's JSON. `weightsManifest` lists groups: the files of each, whose bytes
follow one another, and the name, shape and type of each tensor in the order of the bytes. Quantized
tensors are stored as uint8 or uint16, of which value · scale + min is rounded to float32, or as
float16. Shards are read only from the folder of `model.json`.

Source: TensorFlow.js, tfjs-core/src/io/types.ts and io_utils.ts, tfjs-layers/src/models.ts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    Array,
    OtherLayer,
    SavedLayer,
    file_beside,
    read_exactly,
    read_json,
    require_shape,
)
from conv3d_cli.kernels.weights.legacy import read_named_layers
from conv3d_cli.model.keras_json import is_layer
from conv3d_cli.system.inputs import check_input

OPTIMIZER = "optimizer"
"""Name of the group of tensors that only training uses."""
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|u1"}
_QUANTIZED = {"uint8": "|u1", "uint16": "<u2", "float16": "<f2"}
_MAX_FILES = 10_000


@dataclass(frozen=True)
class Shard:
    """A file of a group, and where its bytes are in the group's."""

    path: str
    begin: int
    size: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the manifest.

    dtype : str             of its values, such as "float32"
    stored : dtype          of its bytes
    scale, least : float    of a quantized tensor; None: it is stored as it is
    begin : int             its first byte in its group
    group : str             "optimizer", or ""
    """

    name: str
    shape: tuple[int, ...]
    count: int
    dtype: str
    stored: np.dtype[Any]
    scale: float | None
    least: float | None
    group: str
    begin: int
    shards: tuple[Shard, ...]

    @property
    def end(self) -> int:
        """The byte of its group that follows it."""
        return self.begin + self.count * self.stored.itemsize

    def read(self) -> Array:
        """Read its values: float32, or whole numbers that are stored as such."""
        parts = []
        # the first shard that ends beyond its beginning
        at = bisect_right(self.shards, self.begin, key=lambda shard: shard.begin + shard.size)
        while at < len(self.shards) and (shard := self.shards[at]).begin < self.end:
            first = max(self.begin, shard.begin)
            last = min(self.end, shard.begin + shard.size)
            with open(shard.path, "rb") as stream:
                stream.seek(first - shard.begin)
                parts.append(read_exactly(stream, last - first, shard.path))
            at += 1
        values = np.frombuffer(b"".join(parts), self.stored)
        if self.scale is not None and self.least is not None:
            values = (values * self.scale + self.least).astype(np.float32)
        elif values.dtype.kind == "f":
            values = values.astype(np.float32)
        return values.reshape(self.shape)


def read_tfjs(path: str) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a TensorFlow.js layers model, in the order of their weights.

    path : str      of its model.json
    Raises: FormatError for a damaged file, a graph model, or a shard that is missing or has another
        length; ShapeError for tensors of too many elements.
    """
    model, tensors = read_model(path)

    def read(tensor: Tensor) -> Array:
        if tensor.dtype != "float32":
            raise FormatError(
                f"cannot read {path}: tensor {tensor.name[:80]} holds {tensor.dtype}, not floats"
            )
        return tensor.read()

    by_layer: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        above, _, leaf = name.rpartition("/")
        by_layer.setdefault(above, {})[leaf] = tensor
    return read_named_layers({"": by_layer}, model, model["keras_version"], read, path)


def read_tfjs_config(path: str) -> dict[str, Any]:
    """Read the Keras JSON of the model. Raises: FormatError."""
    return _config(read_json(path), path)


def read_model(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the Keras JSON of the model, and its tensors by name without those of the optimizer.

    Raises: FormatError, ShapeError, MemoryLimitError; see `read_tfjs`.
    """
    content = read_json(path)
    model, manifest = _config(content, path), content.get("weightsManifest")
    if not isinstance(manifest, list):
        raise FormatError(
            f"cannot read {path}: it has no weightsManifest, so its weights are not there; save "
            "the model with them"
        )
    tensors: dict[str, Tensor] = {}
    count = 0
    for group in manifest:
        if not isinstance(group, Mapping):
            raise FormatError(f"cannot read {path}: its weightsManifest has a group {group!r:.60}")
        shards = _shards(group.get("paths"), path)
        count += len(shards)
        if count > _MAX_FILES:
            raise FormatError(f"cannot read {path}: it names more than {_MAX_FILES:,} shards")
        end = 0
        for tensor in _tensors(group.get("weights"), shards, path):
            if tensor.name in tensors:
                raise FormatError(f"cannot read {path}: it has two tensors {tensor.name!r:.80}")
            tensors[tensor.name] = tensor
            end = tensor.end
        size = sum(shard.size for shard in shards)
        if size != end:
            raise FormatError(
                f"cannot read {path}: its tensors need {end:,} bytes, and its shards have "
                f"{size:,}; copy them again"
            )
    return model, {name: one for name, one in tensors.items() if one.group != OPTIMIZER}


def _config(content: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The Keras JSON in the content of a model.json. Raises: FormatError."""
    topology = content.get("modelTopology")
    if not isinstance(topology, Mapping):
        raise FormatError(f"cannot read {path}: its modelTopology is no JSON object")
    if "node" in topology or content.get("format") == "graph-model":
        raise FormatError(
            f"cannot read {path}: it is a graph model of TensorFlow.js, whose layers are "
            "dissolved; convert the Keras model to a tfjs_layers_model"
        )
    model = topology.get("model_config", topology)
    if not is_layer(model):
        raise FormatError(f"cannot read {path}: its modelTopology is no Keras model")
    # whichever version saved it, TensorFlow.js computes it as Keras 2 does
    return {**model, "keras_version": "2.0"}


def _shards(names: Any, path: str) -> tuple[Shard, ...]:
    """The files of a group, in order. Raises: FormatError."""
    shards: list[Shard] = []
    begin = 0
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name:
            raise FormatError(f"cannot read {path}: its weightsManifest names a shard {name!r:.60}")
        shard = file_beside(path, name)
        shards.append(Shard(shard, begin, check_input(shard)))
        begin += shards[-1].size
    return tuple(shards)


def _tensors(entries: Any, shards: tuple[Shard, ...], path: str) -> Iterator[Tensor]:
    """The tensors of a group. Raises: FormatError, ShapeError, MemoryLimitError."""
    begin = 0
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
        stored = _DTYPES.get(dtype) if isinstance(dtype, str) else None
        if stored is None:
            raise FormatError(
                f"cannot read {path}: {what} has the dtype {dtype!r:.60}; read are "
                f"{', '.join(_DTYPES)}"
            )
        quantization = entry.get("quantization")
        if quantization is not None:
            kind = quantization.get("dtype") if isinstance(quantization, Mapping) else None
            stored = _QUANTIZED.get(kind) if isinstance(kind, str) else None
            if stored is None or dtype != "float32":
                raise FormatError(
                    f"cannot read {path}: {what} of {dtype} is quantized as {kind!r:.60}; read is "
                    f"float32 as {', '.join(_QUANTIZED)}"
                )
            if kind != "float16":
                scale, least = (_number(quantization, key, what, path) for key in ("scale", "min"))
        tensor = Tensor(
            name,
            tuple(shape),
            count,
            str(dtype),
            np.dtype(stored),
            scale,
            least,
            str(entry.get("group", "")),
            begin,
            shards,
        )
        begin = tensor.end
        yield tensor


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

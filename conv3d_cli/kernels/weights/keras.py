"""Keras 3's own files, which Keras 2 writes too: `.keras`, a zip of a config and weights, and `.weights.h5`, weights alone.

In the HDF5 part a layer's variables lie in `layers/GROUP/vars/0` (kernel) and `vars/1` (bias). GROUP is the snake case of the
layer's class with a running number in layer order, not its name; the name is an attribute of `vars` (Keras 3 only). Models
in models nest: `layers/sequential/layers/conv3d`.

Source: Keras 3, keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.kernels.weights.hdf5 import (
    is_dataset,
    is_group,
    members,
    open_hdf5,
    read_dataset,
    read_text,
    walk_groups,
)
from conv3d_cli.kernels.weights.layer import (
    Archive,
    SavedLayer,
    attributes_of,
    needing,
    parse_json,
    require_chain,
    require_match,
    shrunk,
    unheld,
    zip_bytes,
)

CONFIG, METADATA, WEIGHTS, PICKLED = "config.json", "metadata.json", "model.weights.h5", "model.weights.npz"
# names of the containers of layers: Keras 3, and Keras 2 before 2.13
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_VERSION = "3.0.0"  # of the files written: the first that reads them


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def read_weights_h5(root: Any, size: int, path: str) -> dict[str, SavedLayer]:
    """The Conv3D layers of an open `.weights.h5` by their groups, in natural order; no config.

    size : int      bytes of the file
    """
    layers = {}
    for name, group in walk_groups(root, path):
        *above, last = name.split("/")
        if last != "vars" or not above:
            continue
        variables = members(group)
        kernel, bias = variables.get("0"), variables.get("1")
        if not is_dataset(kernel, 5) or is_dataset(bias, 5) or re.fullmatch(r"conv3d_transpose(_\d+)?", above[-1]):
            continue  # Conv3DTranspose and ConvLSTM3D have 5-D kernels of another meaning
        short = "/".join(part for part in above if part not in _CONTAINERS)
        called = read_text(group, "name") or short
        what = f"layer {called}"
        layer = SavedLayer(
            name=called,
            config=None,
            kernel=read_dataset(kernel, size, what, path),
            bias=read_dataset(bias, size, f"the bias of {what}", path) if is_dataset(bias) else None,
            aliases=tuple(alias for alias in dict.fromkeys([short, above[-1]]) if alias != called),
        )
        layers[short] = require_match(layer, path)
    return layers


def is_weights_h5(root: Any) -> bool:
    """Whether an open HDF5 file is laid out as `.weights.h5`."""
    return any(name in _CONTAINERS or (name == "vars" and is_group(root[name])) for name in members(root))


# ---------------------------------------------------------------------------------------------------------------------
# .keras


def read_keras(path: str) -> list[SavedLayer]:
    """The Conv3D layers of a `.keras` model in the order of its config."""
    with Archive(path) as archive:
        config = parse_json(archive.read(CONFIG), CONFIG, path)
        version = ""
        if METADATA in archive.names:
            version = str(parse_json(archive.read(METADATA), METADATA, path).get("keras_version", ""))
        if WEIGHTS not in archive.names and PICKLED in archive.names:
            raise FormatError(
                f"cannot read {path}: its weights are pickled ({PICKLED}), as Keras does without h5py, and pickles are never "
                "loaded; save the model where h5py is installed"
            )
        content = archive.read(WEIGHTS)
    with open_hdf5(content, path) as root:
        saved = read_weights_h5(root, len(content), path)
    return join_config(saved, config, version, path)


def read_keras_config(path: str) -> dict[str, Any]:
    """The model's JSON."""
    with Archive(path) as archive:
        return parse_json(archive.read(CONFIG), CONFIG, path)


def join_config(saved: dict[str, SavedLayer], model: dict[str, Any], version: str, path: str) -> list[SavedLayer]:
    """Saved weights with their layers' configs, in the config's order; those the config does not know come last.

    saved : dict        group -> layer
    version : str       of the Keras that saved it
    """
    by_group = dict(saved)
    layers, names = [], set()
    for group, config in walk_config(model):
        name = str(config.get("name", group))
        if group not in by_group:
            if name in names:
                continue  # a layer that two models share is saved once, where it comes first
            raise FormatError(f"cannot read {path}: its config has the layer {name}, its weights have no group {group}")
        names.add(name)
        layer = by_group.pop(group)
        aliases = tuple(alias for alias in (layer.name, *layer.aliases) if alias != name)
        layers.append(
            require_match(
                replace(layer, name=name, config=config, aliases=aliases, notes=notes_on(config, version)), path
            )
        )
    return layers + list(by_group.values())


def notes_on(config: dict[str, Any], version: str) -> tuple[str, ...]:
    """What differs between the Keras that saved a layer and Keras 3."""
    if config.get("activation") == "hard_sigmoid" and version.startswith("2"):
        return ("saved by Keras 2, whose hard_sigmoid is clip(0.2x + 0.5, 0, 1); Keras 3's is relu6(x + 3)/6",)
    return ()


def walk_config(model: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(group, config) of every Conv3D of a model's JSON, nested models and wrapped layers included.

    Source: Keras 3, saving_lib.py _save_container_state, utils/naming.py to_snake_case.
    """
    used: dict[str, int] = {}
    for entry in layers_of(model):
        group = to_snake_case(entry["class_name"])
        number = used[group] = used.get(group, -1) + 1
        yield from _walk_layer(entry, f"{group}_{number}" if number else group)


def _walk_layer(entry: dict[str, Any], group: str) -> Iterator[tuple[str, dict[str, Any]]]:
    config = entry["config"]
    if entry["class_name"] == "Conv3D":
        # a functional model of Keras 2 gives the name beside the config, too
        yield group, {"name": entry.get("name", group), **config}
    for inner, inner_config in walk_config(entry):
        yield f"{group}/{inner}", inner_config
    wrapped = config.get("layer")
    if is_layer(wrapped):
        yield from _walk_layer(wrapped, f"{group}/layer")


def layers_of(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a model's layers; none for a layer that is no model."""
    config = model.get("config")
    layers = config.get("layers") if isinstance(config, dict) else None
    return [entry for entry in layers if is_layer(entry)] if isinstance(layers, list) else []


def is_layer(entry: Any) -> bool:
    """Whether a piece of JSON is a serialized layer."""
    return (
        isinstance(entry, dict) and isinstance(entry.get("class_name"), str) and isinstance(entry.get("config"), dict)
    )


def to_snake_case(name: str) -> str:
    """A class name as Keras names groups.

    >>> to_snake_case("Conv3D"), to_snake_case("InputLayer"), to_snake_case("Conv3DTranspose")
    ('conv3d', 'input_layer', 'conv3d_transpose')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def encode_weights_h5(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """A `.weights.h5` of a model of these layers, and what it cannot hold."""
    notes = [
        f"{layer.name}: .weights.h5 holds weights only, without {', '.join(lost)}"
        for layer in layers
        if (lost := unheld(layer))
    ]
    return _weights_h5(layers), notes


def _weights_h5(layers: Sequence[SavedLayer]) -> bytes:
    with needing("h5py", "write HDF5"):
        import h5py

    buffer = io.BytesIO()
    names = layer_names(layers)
    with h5py.File(buffer, "w", track_order=False) as file:
        for number, (layer, name) in enumerate(zip(layers, names, strict=True)):
            whole = shrunk(layer)
            group = file.create_group(f"layers/conv3d_{number}/vars" if number else "layers/conv3d/vars")
            group.attrs["name"] = name
            group.create_dataset("0", data=whole.kernel)
            if whole.bias is not None:
                group.create_dataset("1", data=whole.bias)
        file.create_group("vars").attrs["name"] = "converted"
    return buffer.getvalue()


def layer_names(layers: Sequence[SavedLayer]) -> list[str]:
    """Names that Keras accepts: no slashes, none twice.

    >>> import numpy as np
    >>> layer_names([SavedLayer("/enc/Conv", None, np.ones((1, 1, 1, 1, 1)))])
    ['enc_Conv']
    """
    names: list[str] = []
    for layer in layers:
        base = layer.name.strip("/").replace("/", "_") or "conv3d"
        name, number = base, 0
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names


def encode_keras(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """A Sequential model of these layers as `.keras`, and notes on what was assumed.

    Raises: WriteError if the layers cannot follow one another, or Keras has no such layer.
    """
    require_chain(layers, ".keras")
    first = attributes_of(layers[0])
    channels = layers[0].kernel.shape[3] * first.groups
    batch = [None, channels, None, None, None] if first.data_format == "channels_first" else [None] * 4 + [channels]
    dtype = str(shrunk(layers[0]).kernel.dtype)
    entries = [_entry("InputLayer", {"batch_shape": batch, "dtype": dtype, "sparse": False, "name": "converted_input"})]
    notes: list[str] = []
    names = layer_names(layers)
    for layer, name in zip(layers, names, strict=True):
        config = _conv3d_config(layer, name)
        if not isinstance(config["padding"], str):  # Keras' layer has none, but a layer before it does
            pad_name = f"{name}_pad" if f"{name}_pad" not in names else f"{name}_padding_before_it"
            shared = {key: config[key] for key in ("trainable", "dtype", "padding", "data_format")}
            entries.append(_entry("ZeroPadding3D", {"name": pad_name, **shared}))
            notes.append(f"{layer.name}: its padding is written as a ZeroPadding3D layer before it")
            config["padding"] = "valid"
        if layer.config is None:
            notes.append(f"{layer.name}: the file holds weights only; strides, padding, ... are Keras' defaults")
        entries.append(_entry("Conv3D", config))
    model_config = {"name": "converted", "trainable": True, "layers": entries, "build_input_shape": batch}
    model = _entry("Sequential", model_config) | {"module": "keras", "build_config": {"input_shape": batch}}
    metadata = {"keras_version": _VERSION, "date_saved": "1980-01-01@00:00:00"}
    texts = {METADATA: json.dumps(metadata).encode(), CONFIG: json.dumps(model).encode()}
    return zip_bytes(texts | {WEIGHTS: _weights_h5(layers)}), notes


def _conv3d_config(layer: SavedLayer, name: str) -> dict[str, Any]:
    """The config of Keras' layer; its padding is "valid", "same", or pairs where it is neither.

    Raises: WriteError if Keras has no such layer.
    """
    attributes, size, config = attributes_of(layer), layer.kernel.shape[:3], layer.config or {}
    if attributes.is_strided_dilation:
        raise WriteError(
            f"Keras refuses strides > 1 together with dilation_rate > 1 (layer {layer.name}); write .onnx or .safetensors"
        )
    padding: Any = attributes.padding
    if padding not in ("valid", "same"):
        pads = attributes.explicit_pads(size)
        if pads is None:
            raise WriteError(f"Keras has no padding {padding} with strides > 1 (layer {layer.name}); write .onnx")
        is_same = pads == replace(attributes, padding="same").explicit_pads(size)
        padding = "same" if is_same else pads
    return {
        "name": name,
        "trainable": True,
        "dtype": str(shrunk(layer).kernel.dtype),
        "filters": layer.kernel.shape[4],
        "kernel_size": size,
        "strides": attributes.strides,
        "padding": padding,
        "data_format": attributes.data_format,
        "dilation_rate": attributes.dilation_rate,
        "groups": attributes.groups,
        "activation": attributes.activation,
        "use_bias": layer.bias is not None,
        **{key: config[key] for key in _KEPT if config.get(key) is not None},
    }


# arguments that change no output and are kept as they are
_KEPT = (
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


def _entry(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}

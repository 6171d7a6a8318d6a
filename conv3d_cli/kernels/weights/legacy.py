"""Keras' legacy `.h5` and `.hdf5`: whole models with their JSON, and weights alone; of Keras 2, and of Keras 3 saved as .h5.

The attribute `layer_names` gives the layers in order, and each layer's group has `weight_names`, the paths of its datasets:
`conv3d/kernel:0` in Keras 2, `conv3d/kernel` in Keras 3. A model in a model is one layer with all its weights.

Source: Keras 3, keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, ShapeError
from conv3d_cli.kernels.weights import keras
from conv3d_cli.kernels.weights.hdf5 import (
    find_member,
    is_dataset,
    is_group,
    open_hdf5,
    read_dataset,
    read_names,
    read_text,
)
from conv3d_cli.kernels.weights.layer import (
    Array,
    OtherLayer,
    SavedLayer,
    parse_json,
    require_match,
)
from conv3d_cli.model.keras_json import CONV3D
from conv3d_cli.system.inputs import check_input


def read_h5(path: str) -> list[SavedLayer | OtherLayer]:
    """What is in any HDF5 file of Keras: what it is, it shows itself, whatever its name."""
    size = check_input(path)
    with open_hdf5(path, path) as root:
        container = root["model_weights"] if is_group(find_member(root, "model_weights")) else root
        if read_names(container, "layer_names") is not None:
            return _read_legacy(root, container, size, path)
        if not keras.is_weights_h5(root):
            raise FormatError(f"cannot read {path}: an HDF5 file, but not one that Keras saved")
        return list(keras.read_weights_h5(root, size, path).values())


def read_h5_config(path: str) -> dict[str, Any] | None:
    """The model's JSON; None where the file holds weights only."""
    with open_hdf5(path, path) as root:
        return _model_config(root, path)


def _model_config(root: Any, path: str) -> dict[str, Any] | None:
    text = read_text(root, "model_config")
    return None if text is None else parse_json(text.encode(), "its model_config", path)


def _read_legacy(root: Any, container: Any, size: int, path: str) -> list[SavedLayer | OtherLayer]:
    version = read_text(container, "keras_version") or read_text(root, "keras_version") or "1"
    if version.startswith("1"):
        raise FormatError(
            f"cannot read {path}: it was saved by Keras 1, whose layouts differ; load and save it once with Keras 2"
        )
    backend = read_text(container, "backend") or read_text(root, "backend")
    model = _model_config(root, path)
    entries = None if model is None else _named_entries(model)
    contents: list[SavedLayer | OtherLayer] = []
    for outer in read_names(container, "layer_names") or []:
        group = find_member(container, outer)
        if not is_group(group):
            raise FormatError(f"cannot read {path}: damaged: it has no group for its layer {outer}")
        for above, leaves in _by_layer(read_names(group, "weight_names") or []).items():
            inner = above.rpartition("/")[2] or outer
            aliases = () if inner == outer else (f"{outer}/{inner}",)
            entry = None
            if entries is not None:
                entry = entries.get(
                    (outer,) if inner == outer else (outer, inner), entries.get((inner,))
                )
            held = {
                leaf.partition(":")[0]: find_member(group, weight)
                for leaf, weight in leaves.items()
            }
            if entry is None or entry.class_name in CONV3D:
                reason, is_convolution = _not_conv3d(inner, held, entry)
                if reason or (entries is not None and entry is None):
                    reason = reason or "the model's config does not tell its class"
                    contents.append(OtherLayer(inner, reason, is_convolution, aliases))
                    continue
            else:
                contents.append(
                    replace(
                        entry.other(is_dataset(held.get("kernel"), 5)), name=inner, aliases=aliases
                    )
                )
                continue

            def read(leaf: str, held: dict[str, Any] = held, inner: str = inner) -> Array:
                if not is_dataset(held[leaf]):
                    raise FormatError(
                        f"cannot read {path}: damaged: it has no {leaf} of layer {inner}"
                    )
                return read_dataset(held[leaf], size, f"the {leaf} of layer {inner}", path)

            layer = SavedLayer(
                name=inner,
                config=None,
                kernel=_adapted(read, entry)
                if set(held) >= _LORA and entry is not None
                else read("kernel"),
                bias=read("bias") if "bias" in held else None,
                aliases=aliases,
            )
            if backend == "theano":  # it convolved, where the others correlate
                layer = replace(layer, kernel=layer.kernel[::-1, ::-1, ::-1].copy())
            contents.append(
                require_match(layer, path) if entry is None else entry.joined(layer, version, path)
            )
    # layers without weights
    names = {held.name for held in contents}
    found = list(dict.fromkeys((entries or {}).values()))
    silent = keras.silent_layers(found)
    for entry in found:
        if entry.name not in names and entry.class_name not in CONV3D and entry not in silent:
            contents.append(entry.other(is_convolution=False))
    return contents


def _by_layer(weights: list[str]) -> dict[str, dict[str, str]]:
    """The weights of each layer in a group: the path above them -> their own names -> their paths."""
    layers: dict[str, dict[str, str]] = {}
    for weight in weights:
        above, _, leaf = weight.rpartition("/")
        layers.setdefault(above, {})[leaf] = weight
    return layers


def _named_entries(model: dict[str, Any]) -> dict[tuple[str, ...], keras.Entry]:
    """The layers of a model by their names alone, and with that of the outermost or the nearest model or wrapper."""
    named: dict[tuple[str, ...], keras.Entry] = {}
    for entry in keras.walk_config(model):
        for key in ((entry.name,), (entry.names[0], entry.name), entry.names[-2:]):
            named[key] = entry
    return named


def _not_conv3d(name: str, held: dict[str, Any], entry: keras.Entry | None) -> tuple[str, bool]:
    """Why the weights of a layer are none of a Conv3D that is understood, or ""; and whether they are a convolution's."""
    kernel, bias = held.get("kernel"), held.get("bias")
    if not is_dataset(kernel, 5):
        return "it has no weights of 5 axes", "conv" in name.lower() and is_dataset(kernel)
    others = set(held) - {"kernel", "bias"}
    if others == _LORA and entry is None:
        return (
            "its LoRA weights need the lora_alpha of the model's config, which the file has not",
            True,
        )
    if others and others != _LORA:
        return (
            f"it has {', '.join(sorted(others))} beside its kernel, so it is more than a Conv3D",
            True,
        )
    return ("" if entry is not None else keras.why_transposed(name, kernel, bias)), True


_LORA = {"lora_kernel_a", "lora_kernel_b"}


def _adapted(read: Callable[[str], Array], entry: keras.Entry) -> Array:
    """The kernel that a layer with a LoRA adapter convolves with: kernel + alpha / rank · a · b.

    Source: Keras 3, base_conv.py kernel.
    """
    kernel, first, second = read("kernel"), read("lora_kernel_a"), read("lora_kernel_b")
    rank = second.shape[0] if second.ndim == 2 else 0
    if (first.shape, second.shape) != ((*kernel.shape[:4], rank), (rank, kernel.shape[4])):
        raise ShapeError(
            f"layer {entry.name}: its LoRA weights are {first.shape} and {second.shape}, its kernel {kernel.shape}"
        )
    alpha = entry.layer["config"].get("lora_alpha")
    # before there was an alpha, it was the rank
    scale = 1.0 if alpha is None else float(alpha) / max(rank, 1)
    return (kernel + scale * (first.astype(np.float64) @ second)).astype(kernel.dtype)

"""Keras' legacy `.h5` and `.hdf5`: whole models with their JSON, and weights alone; of Keras 2, and of Keras 3 saved as .h5.

The attribute `layer_names` gives the layers in order, and each layer's group has `weight_names`, the paths of its datasets:
`conv3d/kernel:0` in Keras 2, `conv3d/kernel` in Keras 3. A model in a model is one layer with all its weights.

Source: Keras 3, keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.inputs import check_input
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
from conv3d_cli.kernels.weights.layer import SavedLayer, parse_json, require_match


def read_h5(path: str) -> list[SavedLayer]:
    """The Conv3D layers of any HDF5 file of Keras: what it is, it shows itself, whatever its name."""
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


def _read_legacy(root: Any, container: Any, size: int, path: str) -> list[SavedLayer]:
    version = read_text(container, "keras_version") or read_text(root, "keras_version") or "1"
    if version.startswith("1"):
        raise FormatError(
            f"cannot read {path}: it was saved by Keras 1, whose layouts differ; load and save it once with Keras 2"
        )
    backend = read_text(container, "backend") or read_text(root, "backend")
    model = _model_config(root, path)
    configs = None if model is None else dict(_named_configs(model, ()))
    layers = []
    for outer in read_names(container, "layer_names") or []:
        group = find_member(container, outer)
        if not is_group(group):
            raise FormatError(f"cannot read {path}: damaged: it has no group for its layer {outer}")
        weights = read_names(group, "weight_names") or []
        for weight in weights:
            above, _, leaf = weight.rpartition("/")
            kernel = find_member(group, weight)
            if leaf.partition(":")[0] != "kernel" or not is_dataset(kernel, 5):
                continue
            inner = above.rpartition("/")[2] or outer
            config = None
            if configs is not None:
                config = configs.get((outer,) if inner == outer else (outer, inner), configs.get((inner,)))
                if config is None:
                    continue  # of a layer that is no Conv3D
            bias = find_member(
                group, f"{above}/{leaf.replace('kernel', 'bias')}" if above else leaf.replace("kernel", "bias")
            )
            if configs is None and _is_transposed(inner, kernel, bias):
                continue
            layer = SavedLayer(
                name=inner,
                config=config,
                kernel=read_dataset(kernel, size, f"layer {inner}", path),
                bias=read_dataset(bias, size, f"the bias of layer {inner}", path) if is_dataset(bias) else None,
                aliases=() if inner == outer else (f"{outer}/{inner}",),
                notes=keras.notes_on(config or {}, version),
            )
            if backend == "theano":  # it convolved, where the others correlate
                layer = replace(layer, kernel=layer.kernel[::-1, ::-1, ::-1].copy())
            layers.append(require_match(layer, path))
    return layers


def _named_configs(model: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every Conv3D's config, by its name alone and by the name of the outermost model with its own."""
    for entry in keras.layers_of(model):
        config = entry["config"]
        name = str(config.get("name", entry.get("name")))
        entries = [entry, *([config["layer"]] if keras.is_layer(config.get("layer")) else [])]
        for one in entries:
            if one["class_name"] == "Conv3D":
                own = str(one["config"].get("name", name))
                yield (own,), one["config"]
                yield (*above[:1], own), one["config"]
                yield (name, own), one["config"]
        yield from _named_configs(entry, (*above, name))


def _is_transposed(name: str, kernel: Any, bias: Any) -> bool:
    """Whether a kernel without a config is a Conv3DTranspose's: (kd, kh, kw, filters, in_channels)."""
    if "transpose" in name.lower():
        return True
    return is_dataset(bias, 1) and bias.shape[0] != kernel.shape[4] and bias.shape[0] == kernel.shape[3]

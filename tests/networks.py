"""Keras models as files, written without Keras: their JSON in the form of Keras 3, their weights in its HDF5."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Layer = dict[str, Any]


def tensor(name: str, call: int = 0) -> Layer:
    """A reference to the output of a layer."""
    config = {"shape": [None] * 5, "dtype": "float32", "keras_history": [name, call, 0]}
    return {"class_name": "__keras_tensor__", "config": config}


def layer(class_name: str, name: str, *sources: str, **config: Any) -> Layer:
    """A layer that is called once, of the outputs of others; a join takes a list."""
    tensors: Any = [tensor(source) for source in sources]
    args = [tensors] if len(sources) > 1 else tensors
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {"name": name, "trainable": True, "dtype": "float32", **config},
        "registered_name": None,
        "name": name,
        "inbound_nodes": [{"args": args, "kwargs": {}}] if sources else [],
    }


def volume(channels: int, name: str = "volume") -> Layer:
    """The input of a model."""
    return layer("InputLayer", name, batch_shape=[None, None, None, None, channels])


def functional(layers: list[Layer], *outputs: str, name: str = "model") -> Layer:
    """A functional model whose first layer is its input."""
    config = {
        "name": name,
        "layers": layers,
        "input_layers": [[layers[0]["name"], 0, 0]],
        "output_layers": [[output, 0, 0] for output in outputs],
    }
    return {"module": "keras", "class_name": "Functional", "config": config}


def sequential(layers: list[Layer], name: str = "chain") -> Layer:
    """A sequential model."""
    config = {"name": name, "layers": layers}
    return {"module": "keras", "class_name": "Sequential", "config": config}


def groups(model: Layer, prefix: str = "") -> dict[str, str]:
    """The names of all layers -> their groups in the file of weights; inner models are flattened."""
    used: dict[str, int] = {}
    found: dict[str, str] = {}
    for one in model["config"]["layers"]:
        snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", one["class_name"])
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
        number = used[snake] = used.get(snake, -1) + 1
        group = f"{prefix}layers/{snake}_{number}" if number else f"{prefix}layers/{snake}"
        if "layers" in one["config"]:
            found |= groups(one, f"{group}/")
        else:
            found[one["config"]["name"]] = group
    return found


def write_keras(path: Path, model: Layer, weights: dict[str, list[Array]]) -> Path:
    """Write a `.keras` file; weights by the layer's name, in Keras' order."""
    import h5py

    buffer, places = io.BytesIO(), groups(model)
    with h5py.File(buffer, "w") as file:
        for name, arrays in weights.items():
            group = file.create_group(f"{places[name]}/vars")
            for number, array in enumerate(arrays):
                group.create_dataset(str(number), data=np.asarray(array, np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


def write_h5(path: Path, model: Layer, weights: dict[str, dict[str, Array]]) -> Path:
    """Write a legacy `.h5` file; weights by the layer's name and their own."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model)
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["backend"] = "tensorflow"
        outer = file.create_group("model_weights")
        outer.attrs["layer_names"] = [one["config"]["name"] for one in model["config"]["layers"]]
        for one in model["config"]["layers"]:
            name = one["config"]["name"]
            group = outer.create_group(name)
            arrays = weights.get(name, {})
            group.attrs["weight_names"] = [f"{name}/{key}:0" for key in arrays]
            for key, array in arrays.items():
                group.create_dataset(f"{name}/{key}:0", data=np.asarray(array, np.float32))
    return path


class Draw:
    """Random weights of layers, in Keras' order."""

    def __init__(self, seed: int = 0) -> None:
        self.numbers = np.random.default_rng(seed)

    def conv(self, size: int | tuple[int, int, int], channels: int, filters: int) -> list[Array]:
        """Kernel and bias of a Conv3D."""
        triple = (size,) * 3 if isinstance(size, int) else size
        kernel = self.numbers.standard_normal((*triple, channels, filters))
        return [kernel / np.sqrt(np.prod(triple) * channels), self.numbers.standard_normal(filters)]

    def transposed(self, size: int, channels: int, filters: int) -> list[Array]:
        """Kernel and bias of a Conv3DTranspose."""
        kernel, _ = self.conv(size, filters, channels)
        return [kernel, self.numbers.standard_normal(filters)]

    def norm(self, channels: int) -> list[Array]:
        """The four vectors of a BatchNormalization."""
        normal, uniform = self.numbers.standard_normal, self.numbers.uniform
        return [uniform(0.5, 2, channels), normal(channels), normal(channels), uniform(0.5, 2, channels)]  # fmt: skip


def unet(channels: int = 1, widths: tuple[int, int, int] = (4, 6, 8), norm: str = "BatchNormalization") -> tuple[Layer, dict[str, list[Array]]]:  # fmt: skip
    """A U-Net of three levels: convolutions, normalizations, poolings, both ways up, two skips."""
    draw, layers = Draw(), [volume(channels)]
    weights: dict[str, list[Array]] = {}

    def block(name: str, source: str, before: int, filters: int) -> str:
        layers.append(layer("Conv3D", f"{name}_conv", source, filters=filters, kernel_size=[3, 3, 3], padding="same"))  # fmt: skip
        weights[f"{name}_conv"] = draw.conv(3, before, filters)
        options = {"groups": 2} if norm == "GroupNormalization" else {}
        layers.append(layer(norm, f"{name}_norm", f"{name}_conv", axis=-1, epsilon=1e-3, **options))
        weights[f"{name}_norm"] = draw.norm(filters)[: 4 if norm == "BatchNormalization" else 2]
        layers.append(layer("Activation", f"{name}_relu", f"{name}_norm", activation="relu"))
        return f"{name}_relu"

    a, b, c = widths
    top = block("a", "volume", channels, a)
    layers.append(layer("MaxPooling3D", "pool_a", top, pool_size=[2, 2, 2]))
    middle = block("b", "pool_a", a, b)
    layers.append(layer("AveragePooling3D", "pool_b", middle, pool_size=[2, 2, 2], strides=[2, 2, 2]))  # fmt: skip
    bottom = block("c", "pool_b", b, c)
    layers.append(layer("Conv3DTranspose", "up_b", bottom, filters=b, kernel_size=[2, 2, 2], strides=[2, 2, 2]))  # fmt: skip
    weights["up_b"] = draw.transposed(2, c, b)
    layers.append(layer("Concatenate", "skip_b", "up_b", middle, axis=-1))
    middle = block("d", "skip_b", 2 * b, b)
    layers.append(layer("UpSampling3D", "up_a", middle, size=[2, 2, 2]))
    layers.append(layer("Concatenate", "skip_a", "up_a", top, axis=-1))
    top = block("e", "skip_a", a + b, a)
    layers.append(layer("Conv3D", "head", top, filters=3, kernel_size=[1, 1, 1]))
    weights["head"] = draw.conv(1, a, 3)
    layers.append(layer("Softmax", "labels", "head", axis=-1))
    return functional(layers, "labels"), weights

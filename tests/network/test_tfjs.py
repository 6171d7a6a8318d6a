"""TF.js layers models: weights of every dtype and quantization, several shards, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, MemoryLimitError, ShapeError, SpecError
from conv3d_cli.kernels.weights import read_layers, tfjs
from conv3d_cli.network.tfjs import read_tfjs_network
from conv3d_cli.settings.config import read_config

Array = np.ndarray


def layer(class_name: str, name: str, source: str | None, **config: Any) -> dict[str, Any]:
    """A layer in a functional model's JSON, as Keras 2 writes it."""
    inbound = [] if source is None else [[[source, 0, 0, {}]]]
    return {
        "class_name": class_name,
        "name": name,
        "inbound_nodes": inbound,
        "config": {"name": name, **config},
    }


def topology(*layers: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a functional model of one input and one output."""
    first, last = layers[0]["name"], layers[-1]["name"]
    config = {
        "name": "model",
        "layers": list(layers),
        "input_layers": [[first, 0, 0]],
        "output_layers": [[last, 0, 0]],
    }
    return {
        "keras_version": "2.7.0",
        "backend": "tensorflow",
        "model_config": {"class_name": "Functional", "config": config},
    }


VOLUME = layer("InputLayer", "x", None, batch_input_shape=[None, None, None, None, 1])
CONV = layer(
    "Conv3D",
    "conv",
    "x",
    filters=2,
    kernel_size=[1, 1, 2],
    padding="valid",
    activation="relu",
    use_bias=True,
)
KERNEL = np.array([[1.5, -2.0], [0.25, 1.0]], np.float32).reshape(1, 1, 2, 1, 2)
BIAS = np.array([0.5, 0.125], np.float32)


def manifest(group: Mapping[str, Array], *paths: str, **more: Any) -> dict[str, Any]:
    weights = [
        {
            "name": name,
            "shape": list(array.shape),
            "dtype": "float32",
            **more.get(name.replace("/", "_"), {}),
        }
        for name, array in group.items()
    ]
    return {"paths": list(paths), "weights": weights}


def save(
    folder: Path, model: dict[str, Any], groups: list[dict[str, Any]], files: Mapping[str, bytes]
) -> str:
    """Write a model and its shards; returns the path of model.json."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    path = folder / "model.json"
    path.write_text(
        json.dumps({"format": "layers-model", "modelTopology": model, "weightsManifest": groups})
    )
    return str(path)


def two_taps(x: Array, kernel: Array, bias: Array) -> Array:
    """relu of the weighted sum of each voxel and the next along the width: (d, h, w - 1, filters)."""
    sums = x[:, :, :-1] * kernel[0, 0, 0] + x[:, :, 1:] * kernel[0, 0, 1] + bias
    return np.maximum(sums, 0)


def test_tensors_are_read_across_shards(run, tmp_path, rng):
    raw = KERNEL.tobytes() + BIAS.tobytes()
    groups = [manifest({"conv/kernel": KERNEL, "conv/bias": BIAS}, "a.bin", "b.bin", "c.bin")]
    path = save(
        tmp_path,
        topology(VOLUME, CONV),
        groups,
        {"a.bin": raw[:3], "b.bin": raw[3:17], "c.bin": raw[17:]},
    )
    x = rng.random((1, 3, 4, 5, 1), np.float32)
    np.save(tmp_path / "x.npy", x)
    run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy")
    want = two_taps(x[0].astype(np.float64), KERNEL, BIAS)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy")[0], want, rtol=1e-6, atol=1e-6)


def test_all_shards_are_inputs_of_the_run(tmp_path):
    groups = [
        manifest({"conv/kernel": KERNEL}, "k.bin"),
        manifest({"conv/bias": BIAS}, "sub/b.bin"),
    ]
    path = save(
        tmp_path,
        topology(VOLUME, CONV),
        groups,
        {"k.bin": KERNEL.tobytes(), "sub/b.bin": BIAS.tobytes()},
    )
    network = read_tfjs_network(path)
    assert network.files == (path, str(tmp_path / "k.bin"), str(tmp_path / "sub/b.bin"))
    assert network.inputs == {"x": 1}


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_quantized_tensors_are_scaled(kind, tmp_path):
    codes = np.array([0, 1, 200, 255], kind)
    quantization = {
        "quantization": {"dtype": kind, "scale": 0.1, "min": -3.7, "original_dtype": "float32"}
    }
    groups = [
        manifest({"conv/kernel": KERNEL, "conv/bias": BIAS}, "w.bin", conv_kernel=quantization)
    ]
    content = codes.astype(np.dtype(kind).newbyteorder("<")).tobytes() + BIAS.tobytes()
    network = read_tfjs_network(save(tmp_path, topology(VOLUME, CONV), groups, {"w.bin": content}))
    kernel = network.node("conv").weights["kernel"]
    want = [np.float32(c * 0.1 - 3.7) for c in (0.0, 1.0, 200.0, 255.0)]
    assert kernel.dtype == np.float32
    assert kernel.reshape(-1).tolist() == want


def test_halves_are_widened(tmp_path):
    half = {"quantization": {"dtype": "float16", "original_dtype": "float32"}}
    groups = [
        manifest(
            {"conv/kernel": KERNEL, "conv/bias": BIAS}, "w.bin", conv_kernel=half, conv_bias=half
        )
    ]
    content = KERNEL.astype("<f2").tobytes() + BIAS.astype("<f2").tobytes()
    network = read_tfjs_network(save(tmp_path, topology(VOLUME, CONV), groups, {"w.bin": content}))
    np.testing.assert_array_equal(network.node("conv").weights["kernel"], KERNEL)
    assert network.node("conv").weights["bias"].dtype == np.float32


def test_hard_sigmoid_is_that_of_keras_2(tmp_path):
    """TF.js computes clip(0.2 x + 0.5, 0, 1), whoever saved the model."""
    model = topology(VOLUME, layer("Activation", "bent", "x", activation="hard_sigmoid"))
    model["keras_version"] = "3.4.0"
    network = read_tfjs_network(save(tmp_path, model, [], {}))
    assert network.node("bent").attributes["activation"] == "hard_sigmoid:keras2=true"


def test_hard_sigmoid_of_one_layer_is_that_of_keras_2_too(tmp_path):
    conv = {**CONV, "config": {**CONV["config"], "activation": "hard_sigmoid"}}
    model = topology(VOLUME, conv)
    model["keras_version"] = "3.4.0"
    groups = [manifest({"conv/kernel": KERNEL, "conv/bias": BIAS}, "w.bin")]
    path = save(tmp_path, model, groups, {"w.bin": KERNEL.tobytes() + BIAS.tobytes()})
    (saved,) = read_layers(path)
    assert any("its hard_sigmoid is that of Keras 2" in note for note in saved.notes)


def test_a_tensor_is_read_from_its_own_shards(tmp_path, monkeypatch):
    """Models have thousands of tensors and shards."""
    names = ["w0.bin", "w1.bin", "w2.bin"]  # of 8 bytes each
    groups = [manifest({"conv/kernel": KERNEL, "conv/bias": BIAS}, *names)]
    raw = KERNEL.tobytes() + BIAS.tobytes()
    files = {name: raw[8 * n : 8 * n + 8] for n, name in enumerate(names)}
    _, tensors = tfjs.read_model(save(tmp_path, topology(VOLUME, CONV), groups, files))
    asked = []
    monkeypatch.setattr(
        tfjs, "read_exactly", lambda file, n, path: (asked.append(Path(path).name), file.read(n))[1]
    )
    np.testing.assert_array_equal(tensors["conv/kernel"].read(), KERNEL)
    np.testing.assert_array_equal(tensors["conv/bias"].read(), BIAS)
    assert asked == names


def test_tensors_of_no_layer_are_told(tmp_path):
    training = np.zeros(3, np.float32)
    groups = [
        manifest(
            {
                "conv/kernel": KERNEL,
                "conv/bias": BIAS,
                "other/kernel": training,
                "Adam/m": training,
            },
            "w.bin",
        )
    ]
    groups[0]["weights"][3]["group"] = "optimizer"
    content = KERNEL.tobytes() + BIAS.tobytes() + 2 * training.tobytes()
    network = read_tfjs_network(save(tmp_path, topology(VOLUME, CONV), groups, {"w.bin": content}))
    assert network.notes == ("1 tensor of the file belongs to no layer: other/kernel",)


def broken(**changes: Any) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """A manifest and its shard; changes are of the kernel's entry."""
    groups = [manifest({"conv/kernel": KERNEL, "conv/bias": BIAS}, "w.bin")]
    groups[0]["weights"][0].update(changes)
    return groups, {"w.bin": KERNEL.tobytes() + BIAS.tobytes()}


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"shape": [1, 1, 3, 1, 2]}, FormatError, "its tensors need 32 bytes, and its shards have 24"),
        ({"shape": [1 << 40, 1 << 40]}, ShapeError, "weights, shape"),
        ({"shape": [-1, 2]}, FormatError, "has the shape"),
        ({"shape": [1, 1, 2, 1, 2.0]}, FormatError, "has the shape"),
        ({"dtype": "string"}, FormatError, "has the dtype 'string'"),
        ({"dtype": ["float32"]}, FormatError, "has the dtype"),
        ({"quantization": {"dtype": "int4"}}, FormatError, "quantized as 'int4'"),
        ({"quantization": {"dtype": "uint8", "scale": 1}}, FormatError, "min=None"),
        ({"quantization": {"dtype": "uint8", "scale": float("inf"), "min": 0}}, FormatError, "finite"),
        ({"quantization": 3}, FormatError, "quantized as None"),
        ({"name": "conv/bias"}, FormatError, "two tensors 'conv/bias'"),
        ({"name": 3}, FormatError, "has a tensor"),
        ({"name": "conv/weights"}, FormatError, "lacks its weights kernel"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_is_refused(changes, kind, words, tmp_path):
    path = save(tmp_path, topology(VOLUME, CONV), *broken(**changes))
    with pytest.raises(kind) as caught:
        read_config(path)
    assert words in str(caught.value)


def test_a_shard_that_is_missing_is_named(tmp_path):
    groups, _ = broken()
    path = save(tmp_path, topology(VOLUME, CONV), groups, {})
    with pytest.raises(FormatError, match=r"its weights are in w\.bin: it is not in its folder"):
        read_tfjs_network(path)


@pytest.mark.parametrize(
    "name", ["../w.bin", "https://host/w.bin", "/etc/hostname", "", "a\0b", "\ud800"]
)
def test_shards_elsewhere_are_not_read(name, tmp_path):
    (tmp_path / "w.bin").write_bytes(KERNEL.tobytes() + BIAS.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    groups, _ = broken()
    groups[0]["paths"] = [name]
    with pytest.raises(FormatError, match=r"own folder|names a shard"):
        read_tfjs_network(save(folder, topology(VOLUME, CONV), groups, {}))


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ({"modelTopology": {"node": []}, "format": "graph-model"}, FormatError, "it is a graph model of TensorFlow.js"),
        ({"modelTopology": 3}, FormatError, "no JSON object"),
        ({"modelTopology": {"model_config": 3}}, FormatError, "no Keras model"),
        ({"modelTopology": topology(VOLUME, CONV)}, FormatError, "it has no weightsManifest"),
        (
            {"modelTopology": topology(VOLUME, layer("LSTM", "memory", "x")), "weightsManifest": []},
            SpecError, "layer 'memory' is of class LSTM",
        ),
    ],
)  # fmt: skip
def test_other_models_are_refused(content, kind, words, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(content))
    with pytest.raises(kind) as caught:
        read_config(str(path))
    assert words in str(caught.value)


@pytest.mark.parametrize("nodes", [[3], ["a"], [True], [{"args": [], "kwargs": 3}]])
def test_calls_that_are_none_are_refused(nodes, tmp_path):
    groups, files = broken()
    model = topology(VOLUME, {**CONV, "inbound_nodes": nodes})
    with pytest.raises(SpecError):
        read_tfjs_network(save(tmp_path, model, groups, files))


def test_weights_beyond_memory_are_refused_before_they_are_read(tmp_path):
    groups = [
        {
            "paths": ["w.bin"],
            "weights": [{"name": "conv/kernel", "shape": [1 << 30], "dtype": "bool"}],
        }
    ]
    path = save(tmp_path, topology(VOLUME, CONV), groups, {"w.bin": b"x"})
    with pytest.raises((MemoryLimitError, ShapeError)):
        read_tfjs_network(path)

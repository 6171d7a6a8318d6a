"""What `convert` writes, opened by the real Keras, safetensors with PyTorch, and onnxruntime: `make test-keras`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d
from conv3d_cli.kernels.weights import SavedLayer, read_layers, saved_layer, write_layers
from conv3d_cli.kernels.weights.convert import convert_layers
from conv3d_cli.kernels.weights.layer import attributes_of

os.environ.setdefault("KERAS_BACKEND", "jax")
for library in ("h5py", "onnx", "keras"):
    pytest.importorskip(library)
pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]
DATA = Path(__file__).parent.parent / "data" / "weights"
CASES: list[dict[str, Any]] = [
    {},
    {"padding": "same"},
    {"padding": "same", "strides": [2, 1, 2]},
    {"padding": "same", "dilation_rate": [1, 2, 3], "activation": "relu"},
    {"padding": [[1, 0], [0, 2], [1, 1]], "groups": 2},
    {"padding": [[0, 1], [1, 1], [0, 1]]},
    {"strides": [1, 2, 3], "activation": "tanh", "groups": 2},
    {"activation": "elu"},
    {"activation": "leaky_relu", "data_format": "channels_first"},
    {"padding": "same_lower"},
]


def layer_of(config: dict[str, Any], rng: np.random.Generator) -> SavedLayer:
    kernel = rng.standard_normal((2, 3, 2, 4 // config.get("groups", 1), 6)).astype(np.float32) / 4
    return SavedLayer(
        "one", {"padding": "valid", **config}, kernel, rng.standard_normal(6).astype(np.float32)
    )


def ours(layer: SavedLayer, x: np.ndarray, data_format: str) -> np.ndarray:
    attributes = attributes_of(layer)
    padding: Any = attributes.padding
    if padding == "same_lower":
        padding = attributes.explicit_pads(layer.kernel.shape[:3])
    return conv3d(
        x, layer.kernel, bias=layer.bias, strides=attributes.strides, padding=padding, groups=attributes.groups,
        dilation_rate=attributes.dilation_rate, activation=attributes.activation, data_format=data_format,
    )  # fmt: skip


def assert_close(mine: Any, theirs: Any) -> None:
    theirs = np.asarray(theirs)
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CASES, ids=str)
def test_keras_loads_what_is_written(
    config: dict[str, Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    import keras

    layer = layer_of(config, rng)
    write_layers(tmp_path / "one.keras", [layer])
    model = keras.saving.load_model(tmp_path / "one.keras")
    data_format = config.get("data_format", "channels_last")
    shape = (1, 4, 6, 8, 7) if data_format == "channels_first" else (1, 6, 8, 7, 4)
    x = rng.standard_normal(shape).astype(np.float32)
    assert_close(ours(layer, x, data_format), model(x))
    model.save(tmp_path / "again.keras")
    np.testing.assert_array_equal(saved_layer(str(tmp_path / "again.keras")).kernel, layer.kernel)


@pytest.mark.parametrize("config", CASES, ids=str)
def test_onnxruntime_runs_what_is_written(
    config: dict[str, Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    layer = layer_of(config, rng)
    write_layers(tmp_path / "one.onnx", [layer])
    onnx.checker.check_model(onnx.load(tmp_path / "one.onnx"), full_check=True)
    x = rng.standard_normal((1, 4, 6, 8, 7)).astype(np.float32)
    (theirs,) = onnxruntime.InferenceSession(str(tmp_path / "one.onnx")).run(None, {"input": x})
    assert_close(ours(layer, x, "channels_first"), theirs)


def test_keras_loads_weights_alone(tmp_path: Path) -> None:
    import keras

    convert_layers(str(DATA / "two.keras"), tmp_path / "two.weights.h5")
    model = keras.saving.load_model(DATA / "two.keras")
    before = model.get_weights()
    model.set_weights([np.zeros_like(weight) for weight in before])
    model.load_weights(tmp_path / "two.weights.h5")
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("file", ["two.keras", "keras2.h5"])
def test_a_chain_is_one_model(file: str, rng: np.random.Generator, tmp_path: Path) -> None:
    import keras

    onnxruntime = pytest.importorskip("onnxruntime")
    convert_layers(str(DATA / file), tmp_path / "chain.keras")
    convert_layers(str(DATA / file), tmp_path / "chain.onnx")
    x = rng.standard_normal((1, 6, 8, 7, 2)).astype(np.float32)
    y = x
    for layer in read_layers(DATA / file):
        y = ours(layer, y, "channels_last")
    assert_close(y, keras.saving.load_model(tmp_path / "chain.keras")(x))
    session = onnxruntime.InferenceSession(str(tmp_path / "chain.onnx"))
    (theirs,) = session.run(None, {"input": x.transpose(0, 4, 1, 2, 3)})
    assert_close(y, theirs.transpose(0, 2, 3, 4, 1))


def test_torch_loads_safetensors(rng: np.random.Generator, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    layer = layer_of({}, rng)
    write_layers(tmp_path / "one.safetensors", [layer])
    module = torch.nn.Conv3d(4, 6, (2, 3, 2))
    state = load_file(tmp_path / "one.safetensors")
    module.load_state_dict({key.removeprefix("one."): value for key, value in state.items()})
    x = rng.standard_normal((1, 4, 6, 8, 7)).astype(np.float32)
    with torch.no_grad():
        assert_close(ours(layer, x, "channels_first"), module(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_state_dicts_of_torch_are_read(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        torch.nn.Conv3d(2, 4, 3), torch.nn.Conv3d(4, 4, (1, 2, 3), groups=2, bias=False)
    )
    module = module.to(getattr(torch, dtype))
    torch.save(module.state_dict(), tmp_path / "net.pt")
    first, second = read_layers(tmp_path / "net.pt")
    assert (first.name, second.name) == ("0", "1")
    for layer, real in ((first, module[0]), (second, module[1])):
        np.testing.assert_array_equal(
            layer.kernel.transpose(4, 3, 0, 1, 2), real.weight.detach().double().numpy()
        )
    np.testing.assert_array_equal(first.bias, module[0].bias.detach().double().numpy())
    assert second.bias is None

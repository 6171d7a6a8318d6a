"""The catalogues and configs beside an installed Keras 3, over random inputs; skipped where there is none."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
from data import make_keras_golden as golden

from conv3d_cli.layer import activations, constraints, initializers, regularizers
from conv3d_cli.layer.config import LayerConfig, read_model, write_model

os.environ.setdefault("KERAS_BACKEND", "jax")
# this folder is called keras, too, and stands on the path: what it lacks tells the real one
pytest.importorskip("keras.ops")
keras = pytest.importorskip("keras", minversion="3.0")

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # other people's
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SEEDS = range(1, 6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("text", golden.activation_table())
def test_activations(text: str, seed: int) -> None:
    x = golden.voxels(seed, count=2000)
    expected = np.asarray(golden.activation_table()[text](keras.ops.convert_to_tensor(x)))
    golden.assert_agrees(text, x, activations.get(text)(x), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("text", golden.axis_table())
def test_activations_over_an_axis(text: str, seed: int) -> None:
    x = golden.block(seed)
    expected = np.asarray(golden.axis_table()[text](keras.ops.convert_to_tensor(x)))
    golden.assert_agrees(text, x, activations.get(text)(x), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("text", golden.regularizer_table())
def test_regularizers(text: str, seed: int) -> None:
    w = golden.weights(seed)
    expected = float(golden.regularizer_table()[text](keras.ops.convert_to_tensor(w)))
    regularizer: Any = regularizers.get(text)
    assert regularizer(w.reshape(6, -1) if "rthogonal" in text else w) == pytest.approx(
        expected, rel=2e-6
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("text", golden.constraint_table())
def test_constraints(text: str, seed: int) -> None:
    w = golden.weights(seed)
    expected = np.asarray(golden.constraint_table()[text](keras.ops.convert_to_tensor(w)))
    constraint: Any = constraints.get(text)
    np.testing.assert_allclose(constraint(w), expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 3, 3, 2, 64), (5, 3, 1, 8, 32), (2000,)])
@pytest.mark.parametrize("text", golden.initializer_table(0))
def test_initializers(text: str, shape: tuple[int, ...]) -> None:
    """The largest distance of two samples' distributions (Kolmogorov and Smirnov), far beyond chance if they differ."""
    if "orthogonal" in text and len(shape) == 1:
        pytest.skip("refused for a bias, by both")
    initializer: Any = initializers.get(text, seed=5)
    got = np.sort(initializer(shape), axis=None)
    theirs = np.sort(np.asarray(golden.initializer_table(5)[text](shape)), axis=None)
    every = np.concatenate([got, theirs])
    distance = (
        np.abs(np.searchsorted(got, every, "right") - np.searchsorted(theirs, every, "right")).max()
        / got.size
    )
    assert distance < 2.2 * (2 / got.size) ** 0.5  # chance: 1 in 8000
    spread = theirs.std()
    assert np.abs(got).max() < np.abs(theirs).max() + spread


@pytest.mark.parametrize("index", range(10))
def test_configs_come_back(index: int) -> None:
    config = golden.layer_list()[index].get_config()
    written = json.loads(
        json.dumps(LayerConfig.from_keras(json.loads(json.dumps(config))).to_keras())
    )
    assert written == json.loads(json.dumps(config))
    # and Keras reads what is written
    assert json.loads(json.dumps(keras.layers.Conv3D.from_config(written).get_config())) == written


@pytest.mark.parametrize("index", range(3))
def test_models_come_back(index: int) -> None:
    model = golden.model_list()[index]
    layers = read_model(json.loads(model.to_json()))
    assert [layer.name for layer in layers] == ["first", "second"]
    again = keras.models.model_from_json(json.dumps(write_model(layers)))
    assert read_model(json.loads(again.to_json())) == layers


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 0}, {"kernel_size": (3, 3)}, {"strides": 0}, {"dilation_rate": 0}, {"padding": "causal"},
        {"padding": "full"}, {"data_format": "NCDHW"}, {"activation": "rellu"}, {"kernel_initializer": "he"},
        {"kernel_regularizer": "l3"}, {"kernel_constraint": "max"}, {"filters": 0}, {"filters": -1}, {"filters": 2.5},
        {"groups": 0}, {"groups": 3}, {"strides": (2, 1, 1), "dilation_rate": (1, 2, 1)},
    ],
    ids=str,
)  # fmt: skip
def test_what_keras_refuses_is_refused(arguments: dict[str, Any]) -> None:
    arguments = {"filters": 4, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError, match=r"."):
        keras.layers.Conv3D(**arguments)
    with pytest.raises(ValueError, match=r"."):
        LayerConfig(**arguments)


@pytest.mark.parametrize("name", activations.names())
def test_names_are_keras_names(name: str) -> None:
    assert keras.activations.get(name) is not None


def test_keras_has_no_other_names() -> None:
    theirs = {name for name in dir(keras.activations) if not name.startswith("_")} - {
        "get",
        "serialize",
        "deserialize",
    }
    assert theirs <= {*activations.names(), *theirs & {"module"}}
    names = {
        name
        for name in dir(keras.initializers)
        if name[0].isupper() and "STFT" not in name and name != "Initializer"
    }
    for name in names:
        assert initializers.get(name) is not None

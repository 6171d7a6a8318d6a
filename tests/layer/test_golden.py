"""The catalogues beside what real Keras computed; see tests/data/make_keras_golden.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.make_keras_golden import (
    INITIALIZER_SHAPE,
    QUANTILES,
    assert_agrees,
    block,
    voxels,
    weights,
)

from conv3d_cli.layer import activations, constraints, initializers, regularizers
from conv3d_cli.layer.config import LayerConfig, read_model, write_model

DATA = Path(__file__).parent.parent / "data"
GOLDEN = dict(np.load(DATA / "keras_catalogues.npz"))
CONFIGS: dict[str, Any] = json.loads((DATA / "keras_configs.json").read_text(encoding="utf-8"))


def texts(kind: str) -> list[str]:
    return [key.partition("|")[2] for key in GOLDEN if key.startswith(f"{kind}|")]


@pytest.mark.parametrize("text", texts("activation"))
def test_activations(text: str) -> None:
    assert_agrees(text, voxels(), activations.get(text)(voxels()), GOLDEN[f"activation|{text}"])


@pytest.mark.parametrize("text", texts("axis"))
def test_activations_over_an_axis(text: str) -> None:
    assert_agrees(text, block(), activations.get(text)(block()), GOLDEN[f"axis|{text}"])


def test_every_activation_is_in_the_golden_file() -> None:
    covered = {activations.get(text).name for text in texts("activation") + texts("axis")}
    assert covered == {f.__name__ for f in activations.ACTIVATIONS} - {"sparsemax"}


@pytest.mark.parametrize("text", texts("regularizer"))
def test_regularizers(text: str) -> None:
    regularizer = regularizers.get(text)
    w = weights().reshape(6, -1) if "rthogonal" in text else weights()
    assert regularizer is not None
    assert regularizer(w) == pytest.approx(float(GOLDEN[f"regularizer|{text}"]), rel=2e-6)


@pytest.mark.parametrize("text", texts("constraint"))
def test_constraints(text: str) -> None:
    constraint = constraints.get(text)
    assert constraint is not None
    got = constraint(weights())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, GOLDEN[f"constraint|{text}"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("text", texts("initializer"))
def test_initializers_have_keras_distributions(text: str) -> None:
    """Two samples of one distribution: quantiles within what their number allows."""
    initializer = initializers.get(text, seed=7)
    assert initializer is not None
    got = initializer(INITIALIZER_SHAPE).astype(np.float64)
    mean, std, *quantiles = GOLDEN[f"initializer|{text}"]
    n = got.size
    assert abs(got.mean() - mean) < 5 * std * (2 / n) ** 0.5
    assert abs(got.std() - std) < 5 * std * (1 / n) ** 0.5
    inner = slice(1, -1)
    # the rank of a quantile is binomial: √(p (1 - p) / n), twice because both are samples
    share = np.array([(got < q).mean() for q in quantiles[inner]])
    p = QUANTILES[inner]
    assert (np.abs(share - p) < 5 * np.sqrt(2 * p * (1 - p) / n)).all()
    if "untruncated" not in text and not text.startswith(("random_normal", "orthogonal")):
        assert got.min() == pytest.approx(quantiles[0], abs=0.02 * std)
        assert got.max() == pytest.approx(quantiles[-1], abs=0.02 * std)


@pytest.mark.parametrize("config", CONFIGS["layers"], ids=range(len(CONFIGS["layers"])))
def test_layer_configs_come_back(config: dict[str, Any]) -> None:
    layer = LayerConfig.from_keras(config)
    written = json.loads(json.dumps(layer.to_keras()))
    assert written == config
    assert LayerConfig.from_keras(written) == layer


@pytest.mark.parametrize("wrapped", CONFIGS["wrapped"], ids=range(len(CONFIGS["wrapped"])))
def test_wrapped_configs(wrapped: dict[str, Any]) -> None:
    assert LayerConfig.from_keras(wrapped).to_keras() == wrapped["config"]


def test_models() -> None:
    sequential, functional, nested = (read_model(model) for model in CONFIGS["models"])
    assert [layer.name for layer in sequential] == ["first", "second"]
    assert [a.text for a in sequential[0].then] == ["leaky_relu:negative_slope=0.3", "gelu"]
    assert [a.text for a in sequential[1].then] == ["relu:max_value=6.0", "elu", "softmax"]
    assert functional == sequential
    assert nested[0].then == sequential[0].then[:1]
    assert [layer.kernel_size for layer in nested] == [(3, 3, 3), (2, 2, 2)]
    for layers in (sequential, functional, nested):
        assert read_model(json.loads(json.dumps(write_model(layers)))) == layers

"""The Conv3D class: Keras' page, shapes, weights, losses, config."""

from __future__ import annotations

import json

import numpy as np
import oracle
import pytest

from conv3d_cli import Conv3D


def test_the_reference_pages_examples() -> None:
    """The two examples of Keras' Conv3D page: 28x28x28 volumes with a single channel; extended batch shape [4, 7]."""
    x = np.random.default_rng(0).standard_normal((4, 28, 28, 28, 1))
    y = Conv3D(2, 3, activation="relu", input_shape=x.shape[1:])(x)
    assert y.shape == (4, 26, 26, 26, 2)
    x = np.random.default_rng(1).standard_normal((4, 7, 28, 28, 28, 1))
    y = Conv3D(2, 3, activation="relu", input_shape=x.shape[2:])(x)
    assert y.shape == (4, 7, 26, 26, 26, 2)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("strides", "dilation_rate"), [(1, 1), ((2, 1, 3), 1), (1, (2, 1, 2))])
@pytest.mark.parametrize("padding", ["valid", "SAME"])
def test_against_the_oracle(
    data_format: str, groups: int, strides: object, dilation_rate: object, padding: str
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, 6, 7, 8, 4)).astype(np.float32)
    layer = Conv3D(
        6,
        (3, 2, 3),
        strides,
        padding,
        data_format,
        dilation_rate,
        groups,
        seed=1,
        bias_initializer="ones",
    )
    given = x if data_format == "channels_last" else np.moveaxis(x, -1, -4)
    y = layer(given)
    assert y.dtype == np.float32
    assert y.shape == layer.compute_output_shape(given.shape)
    y = y if data_format == "channels_last" else np.moveaxis(y, -4, -1)
    triple = lambda v: (v,) * 3 if isinstance(v, int) else v  # noqa: E731
    kernel, bias = layer.get_weights()
    assert kernel.shape == (3, 2, 3, 4 // groups, 6)
    expected = oracle.conv3d(
        x.reshape(6, 6, 7, 8, 4), kernel, bias, strides=triple(strides), padding=padding.lower(),
        dilation_rate=triple(dilation_rate), groups=groups,
    )  # fmt: skip
    np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=1e-5)


def test_weights() -> None:
    layer = Conv3D(2, 3, input_shape=(5, 5, 5, 3))
    assert layer.built
    assert layer.count_params() == 27 * 3 * 2 + 2
    kernel = np.ones((3, 3, 3, 3, 2))
    layer.set_weights([kernel, [1, 2]])
    np.testing.assert_array_equal(layer(np.ones((1, 5, 5, 5, 3)))[0, 0, 0, 0], [82, 83])
    with pytest.raises(ValueError, match="expects 2 weights"):
        layer.set_weights([kernel])
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3, 3, 2\)"):
        layer.set_weights([kernel[:2], [1, 2]])
    assert len(Conv3D(2, 3, use_bias=False, input_shape=(5, 5, 5, 3)).get_weights()) == 1
    assert Conv3D(2, 3).get_weights() == []
    one, same, other = (
        Conv3D(2, 3, seed=s, input_shape=(5, 5, 5, 3)).get_weights()[0] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_losses_and_constraints() -> None:
    layer = Conv3D(
        2, 1, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l1", bias_initializer="ones",
        kernel_constraint="non_neg", input_shape=(2, 2, 2, 1), seed=0,
    )  # fmt: skip
    assert len(layer.losses) == 2
    y = layer(np.ones((4, 2, 2, 2, 1)))
    activity, kernel, bias = layer.losses
    assert activity == pytest.approx(0.01 * np.abs(y).sum() / 4, rel=1e-6)
    assert kernel == pytest.approx(0.01 * (layer.get_weights()[0] ** 2).sum(), rel=1e-6)
    assert bias == pytest.approx(0.02, rel=1e-6)
    layer.apply_constraints()
    assert (layer.get_weights()[0] >= 0).all()


def test_config_round_trip() -> None:
    layer = Conv3D(
        4, (3, 1, 3), 2, "same", "channels_first", groups=2, activation="gelu", kernel_initializer="he_normal",
        kernel_regularizer="l2", kernel_constraint="max_norm", name="enc",
    )  # fmt: skip
    config = json.loads(json.dumps(layer.get_config()))
    again = Conv3D.from_config(config)
    assert again.get_config() == layer.get_config()
    assert again.name == "enc"
    wrapped = {
        "module": "keras.layers",
        "class_name": "Conv3D",
        "config": config,
        "registered_name": None,
    }
    assert Conv3D.from_config(wrapped).get_config() == layer.get_config()


def test_errors_have_keras_key_facts() -> None:
    for arguments, words in (
        ({"padding": "causal"}, "causal"),
        ({"strides": 2, "dilation_rate": 2}, "not supported in conjunction"),
        ({"strides": (2, 1, 1), "dilation_rate": (1, 2, 1)}, "not supported in conjunction"),
        ({"filters": 0}, "filters"),
        ({"groups": 3}, "groups"),
        ({"groups": 0}, "groups"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": (3, 3)}, "kernel_size"),
        ({"activation": "rellu"}, "relu"),
        ({"kernel_initializer": "glorot"}, "glorot"),
        ({"data_format": "first"}, "data_format"),
    ):
        with pytest.raises(ValueError, match=words):
            Conv3D(**{"filters": 4, "kernel_size": 3, **arguments})
    with pytest.raises(ValueError, match=r"min_ndim=5, found ndim=4"):
        Conv3D(4, 3)(np.ones((5, 5, 5, 1)))
    with pytest.raises(ValueError, match=r"groups=2, but the input has 3 channels"):
        Conv3D(4, 3, groups=2)(np.ones((1, 5, 5, 5, 3)))
    layer = Conv3D(4, 3, input_shape=(5, 5, 5, 3))
    with pytest.raises(ValueError, match="to have value 3"):
        layer(np.ones((1, 5, 5, 5, 2)))
    with pytest.raises(ValueError, match="larger than the volume"):
        Conv3D(4, 7)(np.ones((1, 5, 5, 5, 2)))
    assert Conv3D(4, 3)(np.ones((0, 5, 5, 5, 2))).shape == (0, 3, 3, 3, 4)


def test_dtype_and_integers() -> None:
    assert Conv3D(1, 1)(np.ones((1, 2, 2, 2, 1), np.float64)).dtype == np.float32
    assert Conv3D(1, 1)(np.ones((1, 2, 2, 2, 1), np.int32)).dtype == np.float32
    layer = Conv3D(1, 1, dtype="float64", input_shape=(2, 2, 2, 1))
    assert layer(np.ones((1, 2, 2, 2, 1), np.float32)).dtype == np.float64
    assert layer.get_weights()[0].dtype == np.float64


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    Conv3D(2, 3, input_shape=(5, 5, 5, 3)).summary()
    assert "164 parameters" in capsys.readouterr().out

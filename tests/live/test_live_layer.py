"""`Conv3D` and whole models against the real Keras, over random settings: `make test-keras`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
pytest.importorskip("h5py")

from hypothesis import given, settings  # noqa: E402 - after the guard
from hypothesis import strategies as st  # noqa: E402
from profiles import examples  # noqa: E402

from conv3d_cli import Conv3D  # noqa: E402

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]

triples = st.tuples(*[st.integers(1, 3)] * 3)


@st.composite
def configurations(draw: Any) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of a Conv3D and an input shape that leaves an output."""
    groups = draw(st.integers(1, 3))
    strided = draw(st.booleans())
    kernel_size = draw(triples)
    dilation_rate = (1, 1, 1) if strided else draw(triples)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation_rate, strict=True)]
    padding = draw(st.sampled_from(["valid", "same"]))
    size = tuple(draw(st.integers(e if padding == "valid" else 1, e + 5)) for e in extent)
    channels = groups * draw(st.integers(1, 3))
    first = draw(st.booleans())
    arguments = {
        "filters": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel_size,
        "strides": draw(triples) if strided else (1, 1, 1),
        "padding": padding,
        "data_format": "channels_first" if first else "channels_last",
        "dilation_rate": dilation_rate,
        "groups": groups,
        "activation": draw(
            st.sampled_from(
                [None, "relu", "tanh", "gelu", "softmax", "elu", "hard_silu", "log_softmax"]
            )
        ),
        "use_bias": draw(st.booleans()),
        "kernel_regularizer": draw(st.sampled_from([None, "l1", "l2"])),
        "activity_regularizer": draw(st.sampled_from([None, "l2"])),
    }
    batch = draw(st.integers(1, 2))
    return arguments, (batch, channels, *size) if first else (batch, *size, channels)


@settings(max_examples=examples(60))
@given(configurations(), st.integers(0, 1000))
def test_outputs_losses_and_config(
    configuration: tuple[dict[str, Any], tuple[int, ...]], seed: int
) -> None:
    arguments, shape = configuration
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    theirs, ours = keras.layers.Conv3D(**arguments), Conv3D(**arguments)
    theirs.build(shape)
    ours.build(shape)
    weights = [rng.standard_normal(w.shape).astype(np.float32) for w in theirs.get_weights()]
    theirs.set_weights(weights)
    ours.set_weights(weights)
    expected = np.asarray(theirs(x))
    got = ours(x)
    assert got.shape == expected.shape == ours.compute_output_shape(shape)
    # 1e-6 of what the sum could be; both round their sums, in orders of their own
    scale = max(1.0, float(np.abs(weights[0]).sum(axis=(0, 1, 2, 3)).max() * np.abs(x).max()))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * scale)
    assert ours.count_params() == theirs.count_params()
    np.testing.assert_allclose(ours.losses, [float(loss) for loss in theirs.losses], rtol=1e-5)
    # each reads the other's configuration
    config = json.loads(json.dumps(theirs.get_config()))
    assert {**Conv3D.from_config(config).get_config(), "name": ""} == {**config, "name": ""}
    keras.layers.Conv3D.from_config(ours.get_config())


@pytest.mark.parametrize("seed", range(4))
def test_saved_models_from_the_command_line(tmp_path: Path, seed: int, run: Any) -> None:
    """A random Sequential model, saved by Keras, run by `conv3d apply -c model.keras`."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((9, 8, 10, 2))]
    for _ in range(int(rng.integers(1, 4))):
        layers.append(
            keras.layers.Conv3D(
                int(rng.integers(1, 5)),
                [int(k) for k in rng.integers(1, 4, 3)],
                padding="same",
                strides=int(rng.integers(1, 3)),
                activation=str(rng.choice(["relu", "tanh", "linear"])),
            )
        )
        layers.append(keras.layers.Activation(str(rng.choice(["gelu", "softplus", "softmax"]))))
    model = keras.Sequential(layers)
    x = rng.standard_normal((2, 9, 8, 10, 2)).astype(np.float32)
    expected = np.asarray(model(x, training=False))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    run("apply", tmp_path / "x.npy", "-c", tmp_path / "model.keras", "-o", tmp_path / "y.npy")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"padding": "causal"},
        {"strides": 2, "dilation_rate": 2},
        {"groups": 3},
        {"filters": 0},
        {"kernel_size": 0},
        {"kernel_size": (3, 3)},
        {"activation": "foo"},
        {"groups": -1},
        {"strides": 0},
        {"data_format": "foo"},
        {"kernel_initializer": "foo"},
        {"kernel_regularizer": "foo"},
        {"kernel_constraint": "foo"},
    ],
    ids=str,
)
def test_both_refuse_with_a_value_error(wrong: dict[str, Any]) -> None:
    for layer in (keras.layers.Conv3D, Conv3D):
        with pytest.raises(ValueError, match=r"\w"):
            layer(**{"filters": 4, "kernel_size": 3, **wrong})


# Attributes of Keras' Conv3D that belong to models, training and quantization, which this package
# has not, and those whose values belong to Keras: its variables, policies and functions.
_NOT_OURS = {
    "add_loss", "add_metric", "add_variable", "add_weight", "autocast", "build_from_config",
    "call_signature_parameters", "compute_mask", "compute_output_spec", "convolution_op",
    "enable_lora", "get_build_config", "input", "load_own_variables", "lora_alpha", "lora_enabled",
    "lora_rank", "metrics", "metrics_variables", "output", "quantization_mode", "quantize",
    "quantized_build", "quantized_call", "rematerialized_call", "save_own_variables",
    "stateless_call", "supports_jit", "supports_masking", "symbolic_call",
}  # fmt: skip


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": 2, "padding": "same", "activation": "relu", "use_bias": False},
        {"dtype": "mixed_float16", "trainable": False, "kernel_regularizer": "l2"},
        {"dtype": "float64", "groups": 2, "dilation_rate": (1, 2, 1), "bias_constraint": "non_neg"},
    ],
    ids=str,
)
def test_every_attribute(arguments: dict[str, Any], built: bool) -> None:
    """Whatever Keras' layer has, ours has: with the same value if that is a plain one."""
    theirs = keras.layers.Conv3D(4, (2, 3, 3), name="one", **arguments)
    ours = Conv3D(4, (2, 3, 3), name="one", **arguments)
    if built:
        for layer in (theirs, ours):
            layer.build((None, 5, 6, 7, 2))
    compared = 0
    for name in dir(theirs):
        if name.startswith("_") or name in _NOT_OURS:
            continue
        try:
            value = getattr(theirs, name)
        except AttributeError:
            with pytest.raises(AttributeError):
                getattr(ours, name)
            continue
        own = getattr(ours, name)
        if name == "path" and not built:
            continue  # Keras' is None until then
        if value is None or isinstance(value, (bool, int, str, tuple)):
            assert own == value, name
            compared += 1
        elif name == "input_spec":
            assert own.min_ndim == value.min_ndim
            assert own.axes == (value.axes or {})
        elif isinstance(value, list):
            assert len(own) == len(value), name
            for weight, variable in zip(own, value, strict=True):
                if hasattr(variable, "path"):
                    assert (weight.name, weight.path) == (variable.name, variable.path)
                    assert (weight.shape, weight.trainable) == (variable.shape, variable.trainable)
                    assert weight.dtype == variable.dtype
        else:
            assert callable(value) == callable(own) or name in ("kernel", "bias", "dtype_policy")
    assert compared > 15


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16", "bfloat16", "mixed_bfloat16"])
def test_half_policies(dtype: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, 6, 7, 2)).astype(np.float32)
    theirs = keras.layers.Conv3D(3, 3, activation="relu", dtype=dtype)
    ours = Conv3D(3, 3, activation="relu", dtype=dtype, input_shape=x.shape[1:])
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    assert ours.compute_dtype == theirs.compute_dtype
    expected = np.asarray(theirs(x)).astype(np.float32)
    unit = 1e-3 if "bfloat" not in dtype else 8e-3
    np.testing.assert_allclose(ours(x).astype(np.float32), expected, rtol=2 * unit, atol=unit)


def test_objects_of_keras_are_taken() -> None:
    """Instances, classes and functions of Keras stand for ours of the same name."""
    arguments = {
        "kernel_initializer": keras.initializers.HeNormal(seed=3),
        "bias_initializer": keras.initializers.Ones,
        "kernel_regularizer": keras.regularizers.L1L2(0.1, 0.2),
        "kernel_constraint": keras.constraints.MaxNorm(3, axis=(0, 1)),
        "activation": keras.activations.gelu,
        "dtype": keras.DTypePolicy("mixed_float16"),
    }
    theirs = keras.layers.Conv3D(4, 3, name="one", **arguments)
    config = json.loads(json.dumps(theirs.get_config()))
    assert Conv3D(4, 3, name="one", **arguments).get_config() == config
    leaky = Conv3D(4, 3, activation=keras.layers.LeakyReLU(negative_slope=0.1))
    assert leaky.activation([-1.0]).tolist() == pytest.approx([-0.1])

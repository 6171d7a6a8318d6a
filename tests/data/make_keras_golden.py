"""Writes keras_catalogues.npz and keras_configs.json: what real Keras makes of activations, regularizers, constraints,
initializers and configs. Run it where Keras 3 is installed, and only to take over a new version of Keras:

    pip install keras jax
    KERAS_BACKEND=jax python tests/data/make_keras_golden.py

The files in the repository were made by Keras 3.15.1 with JAX 0.10.2 on the CPU. Keys of the .npz are `kind|text`, the text
being what the `get` of our catalogue reads, and `version`. The same tables serve the live comparison in tests/live.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1e-38,
    -1e-38,
    1e-30,
    -1e-30,
    1e-8,
    -1e-8,
    1e-3,
    -1e-3,
    0.5,
    -0.5,
    1,
    -1,
]
SPECIAL += [
    2.5,
    -2.5,
    3,
    -3,
    6,
    -6,
    7,
    -7,
    15,
    -15,
    30,
    -30,
    87,
    -87,
    90,
    -90,
    500,
    -500,
    1e4,
    -1e4,
    1e10,
    -1e10,
    3e38,
    -3e38,
]


def voxels(seed: int = 0, count: int = 160) -> np.ndarray:
    """Special values and random ones, float32."""
    rng = np.random.default_rng(seed)
    return np.concatenate([SPECIAL, rng.normal(size=count) * 4]).astype(np.float32)


# 1 + tanh(z), x - tanh(x), √(x² + b) + x and the like: what is left of the sum is off by the rounding of its terms
CANCELS = ("tanh_shrink", "squareplus", "gelu", "celu")


def assert_agrees(text: str, x: np.ndarray, got: np.ndarray, expected: np.ndarray) -> None:
    """`got` is what Keras computed, to 1e-6 in float32; where Keras' formula gives NaN or infinity by accident, at huge
    numbers, a limit may stand instead."""
    name = text.partition(":")[0]
    assert got.shape == expected.shape, text
    assert got.dtype == expected.dtype, text
    with np.errstate(all="ignore"):
        slack = 1e-6 * np.abs(expected) + 1e-36
        if name in CANCELS:
            slack = slack + 4e-7 * np.abs(x)
        if name.lower().endswith("softmax"):  # exponents and logarithms as large as the values
            slack = slack + 2.4e-7 * np.abs(x).max() * (
                1 if name == "log_softmax" else np.abs(expected)
            )
        close = (np.abs(got.astype(np.float64) - expected) <= slack) | (got == expected)
        close |= np.isnan(got) & np.isnan(expected)
        if x.shape == got.shape:
            accident = np.isinf(x) & np.isnan(expected) & ~np.isnan(got)
            accident |= (name == "squareplus") & (x < -1e18) & (got == 0)
            # Keras 3 compares with the threshold, and so makes NaN 0; Keras 2 multiplied, and NaN stayed
            accident |= text.startswith("relu:threshold=") & np.isnan(x) & np.isnan(got)
            close |= accident
    assert close.all(), (text, list(zip(x[~close], got[~close], expected[~close], strict=True)))


def block(seed: int = 0) -> np.ndarray:
    """(3, 4, 6) random values, float32."""
    return (np.random.default_rng(seed).normal(size=(3, 4, 6)) * 3).astype(np.float32)


def weights(seed: int = 0) -> np.ndarray:
    """A Conv3D kernel (2, 3, 3, 2, 4) with one filter of zeros, float32."""
    w = np.random.default_rng(seed).normal(size=(2, 3, 3, 2, 4)).astype(np.float32)
    w[..., 1] = 0
    return w


def activation_table() -> dict[str, Callable[[Any], Any]]:
    """Elementwise activations."""
    from keras import activations as a
    from keras import layers

    plain = "linear relu leaky_relu relu6 elu celu selu gelu silu hard_silu sigmoid hard_sigmoid log_sigmoid tanh tanh_shrink"
    plain += " hard_tanh softplus softsign soft_shrink hard_shrink squareplus sparse_plus sparse_sigmoid mish exponential"
    table: dict[str, Callable[[Any], Any]] = {
        name: a.get(name) for name in [*plain.split(), "swish", "hard_swish"]
    }
    return table | {
        "relu:negative_slope=0.25:max_value=5:threshold=1.5": lambda x: a.relu(x, 0.25, 5.0, 1.5),
        "relu:negative_slope=0.1": lambda x: a.relu(x, 0.1),
        "relu:max_value=6": lambda x: a.relu(x, max_value=6.0),
        "relu:threshold=-2:max_value=3": lambda x: a.relu(x, max_value=3.0, threshold=-2.0),
        "leaky_relu:negative_slope=0.01": lambda x: a.leaky_relu(x, 0.01),
        "LeakyReLU": layers.LeakyReLU(),
        "ReLU:max_value=2:negative_slope=0.5:threshold=1": layers.ReLU(2.0, 0.5, 1.0),
        "ELU:alpha=0.5": layers.ELU(0.5),
        "celu:alpha=2": lambda x: a.celu(x, 2.0),
        "gelu:approximate=true": lambda x: a.gelu(x, approximate=True),
        "soft_shrink:threshold=1.5": lambda x: a.soft_shrink(x, 1.5),
        "hard_shrink:threshold=1.5": lambda x: a.hard_shrink(x, 1.5),
        "threshold:threshold=0.5:default_value=7": lambda x: a.threshold(x, 0.5, 7.0),
        "squareplus:b=0.5": lambda x: a.squareplus(x, 0.5),
    }


def axis_table() -> dict[str, Callable[[Any], Any]]:
    """Activations along an axis (without sparsemax, which is wrong in Keras up to 3.15.1)."""
    from keras import activations as a
    from keras import layers

    table: dict[str, Callable[[Any], Any]] = {}
    for axis in (-1, 0, 1):
        table[f"softmax:axis={axis}"] = lambda x, axis=axis: a.softmax(x, axis=axis)
        table[f"log_softmax:axis={axis}"] = lambda x, axis=axis: a.log_softmax(x, axis=axis)
    for axis in (-1, 1):
        table[f"glu:axis={axis}"] = lambda x, axis=axis: a.glu(x, axis=axis)
    return table | {"Softmax:axis=1,2": layers.Softmax(axis=(1, 2))}


def regularizer_table() -> dict[str, Callable[[Any], Any]]:
    """Penalties of a kernel; the orthogonal one of a matrix."""
    from keras import regularizers as r

    def orthogonal(**config: Any) -> Callable[[Any], Any]:
        return lambda w: r.OrthogonalRegularizer(**config)(w.reshape(6, -1))

    return {
        "l1": r.get("l1"),
        "L2": r.get("L2"),
        "l1l2": r.get("l1l2"),
        "l1:l1=0.3": r.L1(0.3),
        "l2:l2=0.3": r.L2(0.3),
        "L1L2:l1=0.3:l2=0.7": r.L1L2(0.3, 0.7),
        "l1_l2": r.L1L2(0.01, 0.01),
        "orthogonal_regularizer": orthogonal(),
        "OrthogonalRegularizer:factor=2:mode=columns": orthogonal(factor=2.0, mode="columns"),
    }


def constraint_table() -> dict[str, Callable[[Any], Any]]:
    """Constraints of a kernel."""
    from keras import constraints as c

    return {
        "max_norm": c.get("max_norm"),
        "MaxNorm:max_value=1.5:axis=0,1,2,3": c.MaxNorm(1.5, [0, 1, 2, 3]),
        "unit_norm": c.get("unit_norm"),
        "UnitNorm:axis=0,1,2,3": c.UnitNorm([0, 1, 2, 3]),
        "min_max_norm": c.get("min_max_norm"),
        "MinMaxNorm:min_value=3:max_value=4:rate=0.25:axis=0,1,2,3": c.MinMaxNorm(
            3.0, 4.0, 0.25, [0, 1, 2, 3]
        ),
        "non_neg": c.get("non_neg"),
    }


INITIALIZER_SHAPE = (5, 5, 5, 4, 12)
QUANTILES = np.linspace(0, 1, 41)


def initializer_table(seed: int) -> dict[str, Callable[..., Any]]:
    """Initializers with a seed."""
    from keras import initializers as i

    names = "glorot_uniform glorot_normal he_uniform he_normal lecun_uniform lecun_normal random_normal random_uniform"
    names += " truncated_normal variance_scaling orthogonal"
    table = {n: i.get({"class_name": n, "config": {"seed": seed}}) for n in names.split()}
    return table | {
        "random_normal:mean=1:stddev=2": i.RandomNormal(1.0, 2.0, seed=seed),
        "random_uniform:minval=2:maxval=5": i.RandomUniform(2.0, 5.0, seed=seed),
        "truncated_normal:mean=-1:stddev=0.5": i.TruncatedNormal(-1.0, 0.5, seed=seed),
        "variance_scaling:scale=3:mode=fan_out:distribution=uniform": i.VarianceScaling(
            3.0, "fan_out", "uniform", seed
        ),
        "variance_scaling:scale=0.5:mode=fan_avg:distribution=untruncated_normal": i.VarianceScaling(
            0.5, "fan_avg", "untruncated_normal", seed
        ),
        "orthogonal:gain=2": i.Orthogonal(2.0, seed=seed),
    }


def layer_list() -> list[Any]:
    """Layers whose configs are worth keeping."""
    import keras
    from keras import constraints, initializers, layers, regularizers

    conv = layers.Conv3D
    return [
        conv(2, 3),
        conv(4, (1, 2, 3), (2, 1, 2), padding="same", data_format="channels_first", groups=2, activation="swish", name="a"),
        conv(3, 3, dilation_rate=(1, 2, 3), use_bias=False, dtype="float64", activation="hard_sigmoid"),
        conv(3, 2, activation=layers.LeakyReLU(), kernel_initializer=initializers.HeNormal(seed=3), dtype="mixed_float16"),
        conv(3, 2, activation=layers.ReLU(6.0, 0.1, 0.5), kernel_initializer="orthogonal", bias_initializer="ones"),
        conv(3, 2, activation=layers.ELU(0.5), kernel_initializer=initializers.VarianceScaling(2.0, "fan_out", "normal")),
        conv(3, 2, activation=layers.Softmax(axis=1), bias_initializer=initializers.Constant(0.25)),
        conv(
            3, 2, kernel_regularizer="l1", bias_regularizer=regularizers.L2(0.1),
            activity_regularizer=regularizers.L1L2(0.1, 0.2), kernel_constraint=constraints.MaxNorm(1.0, [0, 1, 2, 3]),
            bias_constraint="non_neg", kernel_initializer=initializers.RandomUniform(-1.0, 1.0, seed=1),
            bias_initializer=initializers.TruncatedNormal(0.5, 0.1),
        ),
        conv(
            3, 2, kernel_regularizer=regularizers.OrthogonalRegularizer(0.5, "columns"), bias_initializer=None,
            kernel_initializer=None, kernel_constraint=constraints.MinMaxNorm(0.5, 1.5, 0.75, 1), bias_constraint="unit_norm",
            trainable=False,
        ),
        conv(2, 1, activation="glu", dtype=keras.DTypePolicy("bfloat16"), kernel_initializer=initializers.RandomNormal()),
    ]  # fmt: skip


def model_list() -> list[Any]:
    """Models: a sequential one with every layer understood, a functional chain, one within another."""
    import keras
    from keras import layers

    sequential = keras.Sequential(
        [
            keras.Input((8, 8, 8, 1)), layers.GaussianNoise(0.1), layers.Conv3D(2, 3, name="first", activation="relu"),
            layers.LeakyReLU(), layers.Dropout(0.1), layers.Activation("gelu"), layers.Activation("linear"),
            layers.Conv3D(4, 2, name="second"), layers.ReLU(6.0), layers.ELU(), layers.SpatialDropout3D(0.1),
            layers.Softmax(), layers.Identity(), layers.AlphaDropout(0.1), layers.GaussianDropout(0.1),
        ]
    )  # fmt: skip
    x = keras.Input((8, 8, 8, 1))
    y = layers.Conv3D(2, 3, name="first", activation="relu")(x)
    y = layers.Activation("gelu")(layers.LeakyReLU()(y))
    y = layers.Softmax()(layers.ELU()(layers.ReLU(6.0)(layers.Conv3D(4, 2, name="second")(y))))
    functional = keras.Model(x, y)
    inner = keras.Sequential(
        [layers.Conv3D(2, 3, name="first", activation="relu"), layers.LeakyReLU()]
    )
    nested = keras.Sequential(
        [keras.Input((8, 8, 8, 1)), inner, layers.Conv3D(4, 2, name="second")]
    )
    return [sequential, functional, nested]


def main() -> None:
    """Write both files beside this one."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    found: dict[str, Any] = {"version": keras.__version__}
    for kind, table, x in (
        ("activation", activation_table(), voxels()),
        ("axis", axis_table(), block()),
        ("regularizer", regularizer_table(), weights()),
        ("constraint", constraint_table(), weights()),
    ):
        tensor = keras.ops.convert_to_tensor(x)
        for text, function in table.items():
            found[f"{kind}|{text}"] = np.asarray(function(tensor))
    for text, initializer in initializer_table(seed=1).items():
        values = np.asarray(initializer(INITIALIZER_SHAPE), np.float64)
        found[f"initializer|{text}"] = np.concatenate(
            [[values.mean(), values.std()], np.quantile(values, QUANTILES)]
        )
    folder = Path(__file__).parent
    np.savez_compressed(folder / "keras_catalogues.npz", **found)
    configs = {
        "version": keras.__version__,
        "layers": [layer.get_config() for layer in layer_list()],
        "wrapped": [keras.saving.serialize_keras_object(layer) for layer in layer_list()[:2]],
        "models": [json.loads(model.to_json()) for model in model_list()],
    }
    (folder / "keras_configs.json").write_text(
        json.dumps(configs, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

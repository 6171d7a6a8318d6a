"""Whole networks of the real Keras, saved by it and run from the command line: `make test-keras`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
pytest.importorskip("h5py")

from conv3d_cli.network.operations.catalogue import LAYERS  # noqa: E402 - after the guard

L = keras.layers
pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]


def randomized(model: Any, seed: int = 0) -> Any:
    """The model with random weights, so that nothing is 0 or 1 by chance."""
    numbers = np.random.default_rng(seed)
    for variable in model.variables:
        shape, name = tuple(variable.shape), variable.name
        if np.dtype(str(variable.dtype)).kind != "f":
            continue
        if "variance" in name or "gamma" in name:
            value = numbers.uniform(0.5, 2, shape)
        else:
            size = int(np.prod(shape[:-1])) if len(shape) > 1 else 25
            value = numbers.standard_normal(shape) * np.sqrt(2 / max(1, size))
        variable.assign(value.astype(np.float32))
    return model


def functional(build: Callable[[Any], Any], channels: int = 3, sizes: Any = (None,) * 3) -> Any:
    volume = L.Input((*sizes, channels))
    return randomized(keras.Model(volume, build(volume)))


def squeeze(x: Any) -> Any:
    """Squeeze and excite: the mean of all voxels weighs the channels."""
    s = L.GlobalAveragePooling3D(keepdims=True)(x)
    s = L.Dense(2, activation="relu")(s)
    return L.Multiply()([x, L.Dense(x.shape[-1], activation="sigmoid")(s)])


def two(x: Any, join: Any) -> Any:
    return join([L.Conv3D(4, 3, padding="same")(x), L.Conv3D(4, (1, 3, 5), padding="same")(x)])


def unet(x: Any, up: Callable[[int], Any], norm: Callable[[], Any]) -> Any:
    def block(x: Any, filters: int) -> Any:
        return L.ReLU()(norm()(L.Conv3D(filters, 3, padding="same", use_bias=False)(x)))

    a = block(x, 4)
    b = block(L.MaxPooling3D()(a), 8)
    c = block(L.AveragePooling3D(2)(b), 8)
    d = block(L.Concatenate()([up(8)(c), b]), 8)
    e = block(L.Concatenate()([up(4)(d), a]), 4)
    return L.Softmax()(L.Conv3D(3, 1)(e))


def shared(x: Any) -> Any:
    layer = L.Conv3D(3, 3, padding="same", activation="tanh")
    return L.Add()([layer(x), layer(layer(x))])


def nested(x: Any) -> Any:
    inner_in = L.Input((None, None, None, 3))
    y = L.BatchNormalization()(L.Conv3D(4, 3, padding="same")(inner_in))
    inner = keras.Model(inner_in, L.Add()([y, L.Conv3D(4, 1)(inner_in)]), name="inner")
    chain = keras.Sequential([L.Conv3D(3, 3), L.PReLU(shared_axes=[1, 2, 3])], name="chain")
    return L.Maximum()([inner(chain(x)), inner(L.Cropping3D(1)(x))])


def by_keys(x: Any) -> Any:
    """Models that take and give dicts, whose keys are not in the order of the tensors."""
    p, q = (L.Input((None, None, None, 3), name=name) for name in "pq")
    minus = keras.Model({"z": p, "a": q}, L.Subtract()([p, q]), name="minus")
    listed = keras.Model([q, p], L.Subtract()([p, q]), name="listed")
    given = keras.Model(p, {"z": L.Conv3D(3, 1)(p), "a": L.Conv3D(3, 1)(p)}, name="given")
    two = given(x)
    y = minus({"a": two["z"], "z": two["a"]})
    return listed({"p": y, "q": x})


def up(size: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda x: L.Conv3DTranspose(4, size, **options)(x)


def just(layer: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda x: layer()(x)


NETWORKS: dict[str, Callable[[Any], Any]] = {
    "unet": lambda x: unet(x, lambda f: L.Conv3DTranspose(f, 2, strides=2), L.BatchNormalization),
    "unet up": lambda x: unet(x, lambda f: L.UpSampling3D(), L.BatchNormalization),
    "unet groups": lambda x: unet(
        x,
        lambda f: L.Conv3DTranspose(f, 3, strides=2, padding="same"),
        lambda: L.GroupNormalization(2),
    ),
    "instance": lambda x: unet(
        x, lambda f: L.UpSampling3D(), lambda: L.GroupNormalization(-1, center=False)
    ),
    "layer norm": lambda x: unet(x, lambda f: L.UpSampling3D(), L.LayerNormalization),
    "shared": shared,
    "nested": nested,
    "keys": by_keys,
    "squeeze": lambda x: L.Conv3D(2, 3)(squeeze(L.Conv3D(4, 3, activation="elu")(x))),
    "add": lambda x: two(x, L.Add()),
    "subtract": lambda x: two(x, L.Subtract()),
    "multiply": lambda x: two(x, L.Multiply()),
    "average": lambda x: two(x, L.Average()),
    "maximum": lambda x: two(x, L.Maximum()),
    "minimum": lambda x: two(x, L.Minimum()),
    "concatenate": lambda x: L.Concatenate()([x, two(x, L.Concatenate()), x]),
    "tensors": lambda x: (2.5 - x * 3) / 4 + L.Conv3D(3, 1)(x) / (2 + x * x) - 1,
    "bn first": lambda x: L.Conv3D(4, 3, padding="same")(L.BatchNormalization()(x)),
    "bn after relu": lambda x: L.BatchNormalization(scale=False, epsilon=0.1)(
        L.Conv3D(4, 3, activation="relu")(x)
    ),
    "bn twice": lambda x: L.BatchNormalization(center=False)(
        L.BatchNormalization()(L.Conv3D(4, 3)(x))
    ),
    "rescaling": lambda x: L.Conv3D(2, 3)(L.Rescaling(1 / 127.5, offset=-1)(x)),
    "rescaling each": just(lambda: L.Rescaling([1.0, 2.0, 3.0], offset=[0.0, 1.0, 0.5])),
    "normalization": just(lambda: L.Normalization(mean=[0.0, 1.0, 2.0], variance=[1.0, 2.0, 3.0])),
    "normalization one": just(lambda: L.Normalization(axis=None, mean=0.5, variance=4.0)),
    "pads": lambda x: L.Conv3D(2, 3, strides=2)(L.ZeroPadding3D(((1, 0), (2, 1), (0, 1)))(x)),
    "pads same": lambda x: L.Conv3D(2, 3, padding="same", strides=2)(L.ZeroPadding3D(1)(x)),
    "crops": lambda x: L.Cropping3D(((1, 0), (0, 2), (1, 1)))(L.Conv3D(2, 3, activation="gelu")(x)),
    "dense": lambda x: L.Dense(5, activation="softmax")(L.Conv3D(4, 3, activation="selu")(x)),
    "global max": just(L.GlobalMaxPooling3D),
    "global mean": just(lambda: L.GlobalAveragePooling3D(keepdims=True)),
    "head": lambda x: L.Dense(3)(L.Flatten()(L.GlobalAveragePooling3D(keepdims=True)(x))),
    "reshape": lambda x: L.Reshape((1, 1, 1, 4))(
        L.Dense(4)(L.GlobalMaxPooling3D()(L.Conv3D(3, 3)(x)))
    ),
    "passive": lambda x: L.SpatialDropout3D(0.5)(L.GaussianNoise(1.0)(L.Conv3D(2, 3)(L.Dropout(0.5)(x)))),
    "prelu": lambda x: L.PReLU(shared_axes=[1, 2, 3])(L.Conv3D(4, 3)(x)),
    "softmax of input": just(L.Softmax),
    "only relu": just(L.ReLU),
    "glu": lambda x: L.Activation("glu")(L.Conv3D(4, 3)(x)),
    "groups": lambda x: L.BatchNormalization()(L.Conv3D(6, 3, groups=3, dilation_rate=2)(x)),
    "layers": lambda x: L.ELU(alpha=0.5)(L.LeakyReLU(0.1)(L.ReLU(max_value=2.0, negative_slope=0.1, threshold=0.2)(x))),
    "wide skip": lambda x: L.Add()([x, L.Conv3D(3, (15, 3, 3), padding="same")(x)]),
    "only last": lambda x: L.UpSampling3D((1, 2, 3))(x),
}  # fmt: skip
for name, options in {
    "2": {"size": 2},
    "k2 s2": {"size": 2, "strides": 2},
    "k3 s2 same": {"size": 3, "strides": 2, "padding": "same"},
    "k3 s2 valid": {"size": 3, "strides": 2},
    "k4 s2 same": {"size": 4, "strides": 2, "padding": "same"},
    "k5 s3": {"size": 5, "strides": 3, "padding": "same"},
    "k2 s3": {"size": 2, "strides": 3},
    "k1 s2 same": {"size": 1, "strides": 2, "padding": "same"},
    "mixed": {"size": (3, 2, 4), "strides": (1, 2, 3), "padding": "same"},
    "output padding": {"size": 3, "strides": 2, "padding": "same", "output_padding": 1},
    "output padding 0": {"size": 4, "strides": 3, "padding": "same", "output_padding": 0},
    "output padding valid": {"size": (2, 3, 4), "strides": (3, 2, 3), "output_padding": (1, 0, 2)},
    "dilated": {"size": 3, "dilation_rate": 2},
    "dilated same": {"size": (2, 3, 4), "dilation_rate": (3, 1, 2), "padding": "same"},
    "no bias, relu": {"size": 3, "strides": 2, "use_bias": False, "activation": "relu"},
    "softmax": {"size": 2, "strides": 3, "activation": "softmax"},
}.items():
    NETWORKS[f"transposed {name}"] = up(**options)  # type: ignore[arg-type]
for kind in (L.MaxPooling3D, L.AveragePooling3D):
    for name, options in {
        "2": {"pool_size": 2},
        "3 same": {"pool_size": 3, "padding": "same"},
        "3 s1 same": {"pool_size": 3, "strides": 1, "padding": "same"},
        "mixed": {"pool_size": (1, 3, 2), "strides": (2, 1, 3), "padding": "same"},
        "valid": {"pool_size": (3, 2, 1), "strides": (1, 3, 2)},
    }.items():
        NETWORKS[f"{kind.__name__} {name}"] = just(
            lambda kind=kind, options=options: kind(**options)
        )
NETWORKS["pads twice"] = lambda x: (
    lambda p: L.Concatenate()([L.Conv3D(3, 3, padding="same")(p), p])
)(L.ZeroPadding3D(1)(x))


def check(model: Any, path: Path, run: Any, sizes: tuple[int, ...], *options: Any) -> None:
    channels = model.input_shape[-1]
    x = np.random.default_rng(7).standard_normal((2, *sizes, channels)).astype(np.float32)
    model.save(path)
    np.save(path.parent / "x.npy", x)
    out = path.parent / "y.npy"
    run("apply", path.parent / "x.npy", "-c", path, "-o", out, "--overwrite", *options)
    expected = np.asarray(model(x))
    got = np.load(out)
    if expected.ndim == 2:
        expected = expected[:, None, None, None]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=4e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_command_computes_what_keras_does(
    name: str, suffix: str, tmp_path: Path, run: Any
) -> None:
    if suffix == ".h5" and name == "tensors":
        pytest.skip("Keras itself cannot load it again")
    model = functional(NETWORKS[name])
    check(model, tmp_path / f"m{suffix}", run, (12, 8, 16))


def test_every_layer_that_is_read_is_one_of_keras() -> None:
    assert [name for name in LAYERS if not hasattr(L, name)] == []


def test_sequential_models_and_names(tmp_path: Path, run: Any) -> None:
    layers = [L.Conv3D(4, 3), L.MaxPooling3D(), L.Conv3DTranspose(2, 2, strides=2), L.ReLU()]
    model = keras.Sequential([L.Input((None, None, None, 2)), *layers])
    check(randomized(model), tmp_path / "m.keras", run, (9, 10, 11))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_channels_first(suffix: str, tmp_path: Path, run: Any) -> None:
    first = {"data_format": "channels_first"}
    volume = L.Input((3, None, None, None))
    x = L.BatchNormalization(axis=1)(volume)
    a = L.PReLU(shared_axes=[2, 3, 4])(L.Conv3D(4, 3, padding="same", **first)(x))
    b = L.GroupNormalization(2, axis=1)(L.Conv3D(4, 3, **first)(L.MaxPooling3D(2, **first)(a)))
    b = L.ZeroPadding3D(1, **first)(b)
    b = L.Conv3DTranspose(4, 3, strides=2, padding="same", **first)(b)
    x = L.Concatenate(axis=1)([L.UpSampling3D(1, **first)(b), a])
    weight = L.Dense(8, activation="sigmoid")(L.GlobalAveragePooling3D(**first)(x))
    x = L.Multiply()([x, L.Reshape((8, 1, 1, 1))(weight)])
    x = L.Softmax(axis=1)(L.Conv3D(3, 1, **first)(x))
    model = randomized(keras.Model(volume, x))
    voxels = np.random.default_rng(7).standard_normal((1, 3, 8, 12, 10)).astype(np.float32)
    model.save(tmp_path / f"m{suffix}")
    np.save(tmp_path / "x.npy", voxels)
    run("apply", tmp_path / "x.npy", "-c", tmp_path / f"m{suffix}", "-o", tmp_path / "y.npy")
    expected = np.asarray(model(voxels))
    got = np.load(tmp_path / "y.npy")
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=4e-6)


@pytest.mark.parametrize("name", ["unet", "nested", "shared"])
def test_json_and_weights_in_two_files(name: str, tmp_path: Path, run: Any) -> None:
    model = functional(NETWORKS[name])
    model.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(model.to_json())
    x = np.random.default_rng(7).standard_normal((1, 8, 8, 8, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    both = ["-c", tmp_path / "m.json", "--weights", tmp_path / "m.weights.h5"]
    run("apply", tmp_path / "x.npy", *both, "-o", tmp_path / "y.npy")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.asarray(model(x)), atol=4e-6)

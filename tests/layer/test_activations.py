"""Activations against their formulas in double precision, for every value a voxel may hold, and how they are asked for."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.layer import activations
from conv3d_cli.layer.activations import (
    ACTIVATIONS,
    ALIASES,
    AXIS_ACTIVATIONS,
    Activation,
    get,
    serialize,
)


def logistic(x: float) -> float:
    return (
        1 / (1 + math.exp(-x)) if x >= 0 else math.exp(max(x, -740)) / (1 + math.exp(max(x, -740)))
    )


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def expm1(x: float) -> float:
    return math.expm1(min(x, 0.0))


def cut(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


# what `get` reads -> one number in plain Python
FORMULAS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "relu:negative_slope=0.25:max_value=5:threshold=1.5": lambda x: (
        min(x, 5) if x > 1.5 else -0.25 * (1.5 - x)
    ),
    "relu:threshold=-2:max_value=3": lambda x: cut(x, 0, 3) if x > -2 else 0.0,
    "leaky_relu": lambda x: x if x >= 0 else 0.2 * x,
    "LeakyReLU": lambda x: x if x >= 0 else 0.3 * x,
    "relu6": lambda x: cut(x, 0, 6),
    "elu": lambda x: x if x > 0 else expm1(x),
    "elu:alpha=0.5": lambda x: x if x > 0 else 0.5 * expm1(x),
    "celu": lambda x: max(x, 0.0) + expm1(x),
    "celu:alpha=2": lambda x: max(x, 0.0) + 2 * expm1(x / 2),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * expm1(x)),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu:approximate=true": lambda x: (
        x
        * logistic(
            2 * math.sqrt(2 / math.pi) * cut(x + 0.044715 * cut(x, -1e9, 1e9) ** 3, -1e9, 1e9)
        )
    ),
    "silu": lambda x: x * logistic(x),
    "hard_silu": lambda x: x * cut(x + 3, 0, 6) / 6,
    "sigmoid": logistic,
    "hard_sigmoid": lambda x: cut(x + 3, 0, 6) / 6,
    "hard_sigmoid:keras2=true": lambda x: cut(0.2 * x + 0.5, 0, 1),
    "log_sigmoid": lambda x: -softplus(-x),
    "tanh": math.tanh,
    "tanh_shrink": lambda x: x - math.tanh(x),
    "hard_tanh": lambda x: cut(x, -1, 1),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + abs(x)),
    "soft_shrink": lambda x: x - math.copysign(0.5, x) if abs(x) > 0.5 else 0.0,
    "soft_shrink:threshold=0.05": lambda x: x - math.copysign(0.05, x) if abs(x) > 0.05 else 0.0,
    "hard_shrink": lambda x: x if abs(x) > 0.5 else 0.0,
    "hard_shrink:threshold=2": lambda x: x if abs(x) > 2 else 0.0,
    "threshold:threshold=0.25:default_value=-3": lambda x: x if x > 0.25 else -3.0,
    "squareplus": lambda x: (x + math.hypot(x, 2)) / 2 if x > -1 else 2 / (math.hypot(x, 2) - x),
    "squareplus:b=0.25": lambda x: (
        (x + math.hypot(x, 0.5)) / 2 if x > -1 else 0.125 / (math.hypot(x, 0.5) - x)
    ),
    "sparse_plus": lambda x: 0.0 if x <= -1 else ((x + 1) ** 2 / 4 if x < 1 else x),
    "sparse_sigmoid": lambda x: cut((x + 1) / 2, 0, 1),
    "mish": lambda x: x * math.tanh(softplus(x)),
    "exponential": lambda x: math.exp(x) if x < 709 else math.inf,
}
# value at inf, at -inf: the limits
LIMITS: dict[str, tuple[float, float]] = {
    "linear": (math.inf, -math.inf),
    "relu:negative_slope=0.25:max_value=5:threshold=1.5": (5, -math.inf),
    "relu:threshold=-2:max_value=3": (3, 0),
    "leaky_relu": (math.inf, -math.inf),
    "LeakyReLU": (math.inf, -math.inf),
    "relu6": (6, 0),
    "elu": (math.inf, -1),
    "elu:alpha=0.5": (math.inf, -0.5),
    "celu": (math.inf, -1),
    "celu:alpha=2": (math.inf, -2),
    "selu": (math.inf, -1.0507009873554805 * 1.6732632423543772),
    "sigmoid": (1, 0),
    "hard_sigmoid": (1, 0),
    "hard_sigmoid:keras2=true": (1, 0),
    "log_sigmoid": (0, -math.inf),
    "tanh": (1, -1),
    "tanh_shrink": (math.inf, -math.inf),
    "hard_tanh": (1, -1),
    "softsign": (1, -1),
    "soft_shrink": (math.inf, -math.inf),
    "soft_shrink:threshold=0.05": (math.inf, -math.inf),
    "hard_shrink": (math.inf, -math.inf),
    "hard_shrink:threshold=2": (math.inf, -math.inf),
    "threshold:threshold=0.25:default_value=-3": (math.inf, -3),
    "sparse_sigmoid": (1, 0),
}
NAN_BECOMES = {"soft_shrink": 0.0, "hard_shrink": 0.0, "threshold": -3.0}
# sums of terms of opposite sign: only the error beside |x| can be small
CANCELS = ("tanh_shrink", "soft_shrink")

VALUES = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    1e-8,
    -1e-8,
    0.1,
    -0.1,
    0.5,
    -0.5,
    0.7,
    -0.7,
    1,
    -1,
    1.5,
    2,
    -2,
    2.6,
    -2.6,
    3,
    -3,
]
VALUES += [
    3.5,
    -3.5,
    6,
    -6,
    9,
    -9,
    13,
    -13,
    20,
    -20,
    80,
    -80,
    103,
    -103,
    700,
    -700,
    1e4,
    -1e4,
    1e15,
    -1e15,
]


def test_every_activation_has_its_formula_here() -> None:
    elementwise = {f.__name__ for f in ACTIVATIONS if f not in AXIS_ACTIVATIONS}
    assert {get(text).name for text in FORMULAS} == elementwise
    assert activations.names() == [*(f.__name__ for f in ACTIVATIONS), *ALIASES]


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
class TestEveryElementwiseActivation:
    def test_formula(self, text: str, dtype: str) -> None:
        x = np.array(VALUES, dtype)
        expected = np.array([FORMULAS[text](float(v)) for v in x])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an overflow on the way is nobody's business
            got = get(text)(x)
        if text == "exponential" and dtype == "float32":
            expected[expected > np.finfo(dtype).max] = np.inf
        eps = np.finfo(dtype).eps
        slack = 4 * eps * np.abs(x) if get(text).name in CANCELS else 0
        # exp(88.7) is float32's last: what is smaller than its reciprocal may be 0
        if get(text).name == "gelu":  # exp(-x²/2) of a rounded x²; in the expectation, too
            slack = eps * x.astype(np.float64) ** 2 * np.abs(expected)
        slack = slack + np.finfo(dtype).tiny * 300
        with np.errstate(invalid="ignore"):
            close = (np.abs(got - expected) <= 6 * eps * np.abs(expected) + slack) | (
                got == expected
            )
        assert close.all(), list(zip(x[~close], got[~close], expected[~close], strict=True))

    def test_in_place_keeps_dtype_and_layout(self, text: str, dtype: str) -> None:
        values = np.linspace(-5, 5, 24, dtype=dtype).reshape(2, 3, 4)
        x = values.copy()
        view = x[:, ::-1]
        assert get(text).in_place(view) is None
        assert x.dtype == dtype
        np.testing.assert_array_equal(x, get(text)(values))

    def test_the_same_anywhere_in_an_array(
        self, text: str, dtype: str, rng: np.random.Generator
    ) -> None:
        """A vector's body, its tail, a single value, strides, a second block: the same bits."""
        x = rng.normal(size=activations.BLOCK + 77).astype(dtype) * 4
        x[::5] = np.tile(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 30, -30], dtype), x.size)[
            : x[::5].size
        ]
        whole = get(text)(x)
        bits = {"float32": np.uint32, "float64": np.uint64}[dtype]

        def same(got: np.ndarray, expected: np.ndarray) -> None:
            got, expected = np.ascontiguousarray(got), np.ascontiguousarray(expected)
            kept = ~np.isnan(expected)
            assert np.isnan(got[~kept]).all()
            np.testing.assert_array_equal(got[kept].view(bits), expected[kept].view(bits))

        for start in (*range(1, 40), activations.BLOCK - 3):
            same(get(text)(x[start : start + 9]), whole[start : start + 9])
            same(get(text)(x[start : start + 1]), whole[start : start + 1])
        strided = x[: x.size // 7 * 7].copy().reshape(-1, 7)[:, 1:6]
        get(text).in_place(strided)
        same(strided, whole[: x.size // 7 * 7].reshape(-1, 7)[:, 1:6])
        reverse = x.copy()
        get(text).in_place(reverse[::-1])
        same(reverse, whole)

    def test_nan_stays_nan_and_alone(self, text: str, dtype: str) -> None:
        got = get(text)(np.array([1, np.nan, -1], dtype))
        becomes = NAN_BECOMES.get(get(text).name)
        assert np.isnan(got).tolist() == [False, becomes is None, False]
        if becomes is not None:
            assert got[1] == becomes

    def test_infinities_go_to_the_limits(self, text: str, dtype: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = get(text)(np.array([np.inf, -np.inf], dtype))
        np.testing.assert_allclose(got, LIMITS.get(text, (math.inf, 0)), rtol=1e-6)

    def test_empty_and_single(self, text: str, dtype: str) -> None:
        assert get(text)(np.empty((0, 3), dtype)).shape == (0, 3)
        assert get(text)(np.array(1.5, dtype)).shape == ()

    def test_text_and_dict_come_back(self, text: str, dtype: str) -> None:
        activation = get(text)
        assert get(activation.text) == activation
        assert get(json.loads(json.dumps(serialize(activation)))) == activation
        assert hash(activation) == hash(get(activation.text))


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda f: f.__name__)
def test_documented_and_found(function: Any) -> None:
    assert function.__doc__
    assert ">>>" in function.__doc__
    if function is not activations.threshold:
        activation = get(function.__name__)
        assert activation.function is function
        assert activation == get(function)
        assert activation.config == {}
        assert serialize(activation) == function.__name__
        assert activation.kind == ("axis" if function in AXIS_ACTIVATIONS else "voxel")
        assert activation.is_linear == (function is activations.linear)
        assert activation.halves == (function is activations.glu)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=50))
def test_gelu_is_as_good_as_erfc(values: list[float]) -> None:
    x = np.array(values)
    expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in values]
    # erfc's argument is rounded in the expectation: x² units in the last place
    assert (
        np.abs(get("gelu")(x) - expected) <= (10 + x**2) * 2.3e-16 * np.abs(expected) + 1e-300
    ).all()
    single = x.astype(np.float32)
    expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in single.tolist()]
    np.testing.assert_allclose(get("gelu")(single), expected, rtol=6e-7, atol=1e-36)


# ---------------------------------------------------------------------------------------------------------------------
# Over an axis


AXIS_NAMES = ["softmax", "log_softmax", "sparsemax", "glu"]


@pytest.mark.parametrize("name", AXIS_NAMES)
@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_axes(name: str, axis: int, dtype: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 6, 2)).astype(dtype) * 3
    activation = get({"class_name": name, "config": {"axis": axis}})
    assert activation.kind == ("axis" if axis == -1 else "tensor")
    got = activation(x)
    assert got.dtype == dtype
    with pytest.raises(SpecError, match="voxel by voxel"):
        activation.in_place(x)
    for row, result in zip(rows(x, axis), rows(got, axis), strict=True):
        np.testing.assert_allclose(result, ROWS[name](row.astype(np.float64)), rtol=2e-6, atol=1e-6)


def rows(x: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(x, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def nearest_on_simplex(x: np.ndarray) -> np.ndarray:
    """By bisection: max(x - tau, 0) sums to 1."""
    low, high = x.min() - 1, x.max()
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if np.maximum(x - tau, 0).sum() > 1 else (low, tau)
    return np.maximum(x - (low + high) / 2, 0)


ROWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
    "log_softmax": lambda x: x - np.log(np.exp(x).sum()),
    "sparsemax": nearest_on_simplex,
    "glu": lambda x: x[: x.size // 2] / (1 + np.exp(-x[x.size // 2 :])),
}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_sparsemax_lands_on_the_simplex(values: list[float]) -> None:
    got = get("sparsemax")(np.array(values))
    assert (got >= 0).all()
    assert got.sum() == pytest.approx(1)
    assert np.argmax(got) == np.argmax(values) or got.max() == got[np.argmax(values)]


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax"])
def test_large_and_broken_values_along_an_axis(name: str) -> None:
    x = np.array([[1e38, -1e38, 0], [np.nan, 0, 1], [np.inf, 0, 1], [0, 0, 0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = get(name)(x)
    first = [0, -2e38, -1e38] if name == "log_softmax" else [1, 0, 0]
    np.testing.assert_allclose(got[0], first, rtol=1e-6)
    assert np.isnan(got[1:3]).all() or name == "softmax"
    assert np.isnan(got[1]).all()
    assert np.ptp(got[3]) == 0


def test_softmax_over_several_axes() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    got = get({"class_name": "Softmax", "config": {"axis": [1, 2]}})
    np.testing.assert_allclose(got(x).sum(axis=(1, 2)), 1)
    assert get(serialize(got)) == got
    assert get({"class_name": "Softmax", "config": {"axis": [-1]}}) == get("softmax")


def test_glu_halves() -> None:
    assert get("glu")(np.zeros((2, 3, 8))).shape == (2, 3, 4)
    with pytest.raises(ShapeError, match="must be even, received 3"):
        get("glu")(np.zeros((2, 3)))


# ---------------------------------------------------------------------------------------------------------------------
# Identifiers


def test_dtypes() -> None:
    for dtype in ("float16", "float32", "float64", ">f4", ">f8", "longdouble"):
        for name in ("gelu", "softmax"):
            x = np.array([1, -2], dtype)
            got = get(name)(x)
            assert got.dtype == np.dtype(dtype).newbyteorder("=")
            np.testing.assert_allclose(got, get(name)(x.astype(np.float64)), rtol=2e-3)
            assert x.tolist() == [1, -2]
    for dtype in ("bool", "uint8", "int64"):
        assert get("relu")(np.array([1, 0], dtype)).dtype == np.float32
    assert get("relu")([1, -2]).tolist() == [1, 0]
    for bad in (np.zeros(2, complex), np.array(["a"])):
        with pytest.raises(ShapeError, match="real numbers"):
            get("relu")(bad)
    with pytest.raises(ShapeError, match="needs an axis"):
        get("softmax")(1.0)


def test_none_activations_and_functions() -> None:
    assert get(None).is_linear
    activation = get("relu")
    assert get(activation) is activation

    def double(x: np.ndarray) -> np.ndarray:
        return x * 2

    def double_in_place(x: np.ndarray) -> None:
        x *= 2

    for function in (double, double_in_place):
        found = get(function)
        x = np.array([1.0, 2.0])
        assert (found.name, found.kind) == (function.__name__, "tensor")
        assert found(x).tolist() == [2, 4]
        assert x.tolist() == [1, 2]
        with pytest.raises(SpecError, match="Python function"):
            serialize(found)


LEAKY = {"name": "leaky_re_lu_3", "trainable": True, "dtype": "float32"}


@pytest.mark.parametrize(
    ("identifier", "name", "config"),
    [
        ("swish", "silu", {}),
        ("hard_swish", "hard_silu", {}),
        ("ReLU", "relu", {}),
        ("ELU", "elu", {}),
        ("Softmax", "softmax", {}),
        ("LeakyReLU", "leaky_relu", {"negative_slope": 0.3}),
        ("LeakyReLU:alpha=0.1", "leaky_relu", {"negative_slope": 0.1}),
        ("leaky_relu:alpha=0.2", "leaky_relu", {}),
        ("relu:alpha=0.5", "relu", {"negative_slope": 0.5}),
        ("ThresholdedReLU", "threshold", {"threshold": 1.0, "default_value": 0.0}),
        ({"class_name": "ThresholdedReLU", "config": {"theta": 2.0}}, "threshold", {"threshold": 2.0, "default_value": 0}),
        ({"class_name": "LeakyReLU", "config": {**LEAKY, "alpha": 0.5}}, "leaky_relu", {"negative_slope": 0.5}),
        ({"class_name": "LeakyReLU", "config": {**LEAKY, "negative_slope": 0.5}}, "leaky_relu", {"negative_slope": 0.5}),
        ({"class_name": "ReLU", "config": {"max_value": 6.0, "negative_slope": 0.0}}, "relu", {"max_value": 6.0}),
        ({"class_name": "Activation", "config": {"name": "a", "activation": "swish"}}, "silu", {}),
        ({"class_name": "gelu", "config": {"approximate": True}}, "gelu", {"approximate": True}),
        ({"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}, "relu", {}),
        ({"class_name": "relu"}, "relu", {}),
    ],
)  # fmt: skip
def test_identifiers(identifier: Any, name: str, config: dict[str, Any]) -> None:
    activation = get(identifier)
    assert (activation.name, dict(activation.config)) == (name, config)
    assert get(activation.text) == activation


def test_a_layer_is_written_as_it_came() -> None:
    given_dict = {"module": "keras.layers", "class_name": "LeakyReLU", "registered_name": None}
    given_dict["config"] = {**LEAKY, "negative_slope": 0.5}
    assert serialize(get(given_dict)) == given_dict
    assert serialize("leaky_relu:negative_slope=0.5")["config"] == {
        "name": "leaky_re_lu",
        "trainable": True,
        "dtype": activations.dtype_policy("float32"),
        "negative_slope": 0.5,
    }


@pytest.mark.parametrize(
    "name", ["rellu", "relU", "", "__name__", 1, ["relu"], "Conv3D", "softmaxx"]
)
def test_unknown_activations(name: Any) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown activation .* available: linear, relu, leaky_relu"
    ):
        get(name)
    if name == "rellu":
        with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
            get(name)


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("PReLU", "PReLU has trained weights"),
        ({"class_name": "PReLU", "config": {}}, "PReLU has trained weights"),
        ("threshold", "threshold needs threshold and default_value"),
        ("relu:max_val=6", "relu has no parameter 'max_val'; did you mean 'max_value'"),
        ("tanh:alpha=1", "tanh takes no parameters"),
        ("elu:alpha", "key=value"),
        ("elu:alpha=1:alpha=2", "given twice"),
        ("elu:alpha=one", "alpha of elu must be a number, received 'one'"),
        ("elu:alpha=none", "alpha of elu must be a number"),
        ("gelu:approximate=1", "must be true or false"),
        ("softmax:axis=0.5", "whole number"),
        ("log_softmax:axis=0,1", "whole number"),
        ({"class_name": "ReLU", "config": {"max_value": -1.0}}, "max_value of a ReLU layer cannot be None or negative"),
        ({"class_name": "LeakyReLU", "config": {"alpha": None}}, "negative_slope of a LeakyReLU layer cannot be None"),
        ({"class_name": "LeakyReLU", "config": {"slope": 1}}, "no parameter 'slope'"),
        ({"class_name": "LeakyReLU", "config": [1]}, "must be a table"),
        ({"class_name": "relu", "config": [1]}, "must be a table"),
        ({"config": {}}, "needs a class_name"),
    ],
)  # fmt: skip
def test_wrong_parameters(identifier: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        get(identifier)


def test_the_class_is_public() -> None:
    assert isinstance(get("relu"), Activation)

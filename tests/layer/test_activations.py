"""Activations against their formulas, in place, for every value a voxel may hold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import UnknownNameError
from conv3d_cli.layer import activations
from conv3d_cli.layer.activations import ACTIVATIONS, Activation


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# Keras' name -> one number in plain Python
FORMULAS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "sigmoid": logistic,
    "tanh": math.tanh,
}
VALUES = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    0.1,
    -0.1,
    1,
    -1,
    3.5,
    -3.5,
    20,
    -20,
    88,
    -88,
    103,
    -103,
    700,
    -700,
    1e4,
    -1e4,
    1e38,
    -1e38,
]


def test_every_activation_has_its_formula_here() -> None:
    assert activations.names() == list(FORMULAS)


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
class TestEveryActivation:
    def test_formula(self, function: Activation, dtype: str) -> None:
        x = np.array(VALUES, dtype)
        expected = [FORMULAS[function.__name__](float(v)) for v in x]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an overflow on the way is nobody's business
            function(x)
        assert np.allclose(x, expected, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)

    def test_in_place_and_of_the_same_dtype(self, function: Activation, dtype: str) -> None:
        x = np.linspace(-5, 5, 24, dtype=dtype).reshape(2, 3, 4)
        view = x[:, ::-1]
        assert function(view) is None
        expected = np.vectorize(FORMULAS[function.__name__])(np.linspace(-5, 5, 24, dtype=dtype).reshape(2, 3, 4))
        assert x.dtype == dtype
        assert np.allclose(x, expected, rtol=1e-6)

    def test_nan_stays_nan_and_alone(self, function: Activation, dtype: str) -> None:
        x = np.array([1, np.nan, -1], dtype)
        function(x)
        assert np.isnan(x).tolist() == [False, True, False]

    def test_infinities_go_to_the_limits(self, function: Activation, dtype: str) -> None:
        x = np.array([np.inf, -np.inf], dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(x)
        limits = {"linear": [math.inf, -math.inf], "relu": [math.inf, 0], "sigmoid": [1, 0], "tanh": [1, -1]}
        assert x.tolist() == limits[function.__name__]

    def test_documented_and_found(self, function: Activation, dtype: str) -> None:
        assert function.__doc__
        assert activations.get(function.__name__) is function

    def test_empty(self, function: Activation, dtype: str) -> None:
        function(np.empty((0, 3), dtype))


def test_none_is_linear_and_a_function_is_itself() -> None:
    def double(x: np.ndarray) -> None:
        x *= 2

    assert activations.get(None) is activations.linear
    assert activations.get(double) is double


@pytest.mark.parametrize("name", ["rellu", "ReLU", "", "softmax", "__name__", 1, ["relu"]])
def test_unknown_activations(name: Any) -> None:
    with pytest.raises(UnknownNameError, match="available: linear, relu, sigmoid, tanh"):
        activations.get(name)

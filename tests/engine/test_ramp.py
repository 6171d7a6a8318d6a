"""Activations of two straight parts in compiled loops: the bits of NumPy's formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d
from conv3d_cli.engine.plan import Plan
from conv3d_cli.layer import get_activation

Array = np.ndarray[Any, Any]
RAMPS = [
    "relu",
    "relu6",
    "leaky_relu",
    "leaky_relu:negative_slope=1.7",
    "leaky_relu:negative_slope=-0.5",
    "leaky_relu:negative_slope=0",
    "relu:threshold=0.5",
    "relu:threshold=-0.5:max_value=1",
    "relu:negative_slope=0.1:max_value=1:threshold=0.25",
    "relu:negative_slope=-0.3",
]
# numbers whose zeros, signs and NaN a formula may lose, in whole vectors and beside them
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 6, -6, 3e38, -3e38, 0.5, -0.5]


def bits(x: Array) -> Array:
    return x.view({4: np.int32, 8: np.int64}[x.itemsize])


@pytest.fixture(autouse=True)
def no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """No function of Python may change the sums."""

    def refuse(*_: Any) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(Plan, "_callback", refuse)


@pytest.mark.parametrize("text", RAMPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_numbers(text: str, dtype: str) -> None:
    row = np.array([*SPECIAL, *np.linspace(-2, 8, 20)], dtype)
    x = np.tile(row, (2, 3, 1))[None, ..., None]
    for filters in (1, 21):
        weights = np.ones((1, 1, 1, 1, filters))
        sums = conv3d(x, weights, threads=1)
        got = conv3d(x, weights, activation=text, threads=1)
        expected = np.asarray(get_activation(text)(sums))
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), nan)
        np.testing.assert_array_equal(bits(got)[~nan], bits(expected)[~nan])


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "size", "algorithm"),
    [
        (21, 21, 1, 3, "channels"),
        (21, 21, 1, 3, "winograd"),
        (12, 24, 3, 3, "channels"),
        (4, 4, 4, 3, "depthwise"),
        (2, 3, 1, 3, "direct"),
        (16, 3, 1, 3, "few-filters"),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_every_layout_of_sums(
    channels: int, filters: int, groups: int, size: int, algorithm: str, biased: bool
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 5, 9, 19, channels)).astype(np.float32)
    weights = rng.standard_normal((size, size, size, channels // groups, filters)) * 0.1
    settings: dict[str, Any] = {
        "padding": "same",
        "groups": groups,
        "algorithm": algorithm,
        "bias": rng.standard_normal(filters) if biased else None,
    }
    sums = conv3d(x, weights, threads=2, **settings)
    for text in ("relu", "leaky_relu"):
        got = conv3d(x, weights, threads=2, activation=text, **settings)
        expected = np.asarray(get_activation(text)(sums))
        np.testing.assert_array_equal(bits(got), bits(expected))

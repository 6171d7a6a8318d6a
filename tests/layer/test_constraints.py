"""Constraints: what must hold of constrained weights, identifiers, errors, Keras' epsilon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.layer import constraints
from conv3d_cli.layer.constraints import (
    CONSTRAINTS,
    MaxNorm,
    MinMaxNorm,
    NonNeg,
    UnitNorm,
    get,
    serialize,
)

FILTER = [0, 1, 2, 3]
KERNELS = arrays(
    np.float32,
    st.tuples(*(st.integers(1, 3) for _ in range(5))),
    elements=st.floats(-9, 9, width=32, allow_subnormal=False),
)


def lengths(w: np.ndarray) -> np.ndarray:
    return np.sqrt((w.astype(np.float64) ** 2).sum(axis=(0, 1, 2, 3)))


@given(KERNELS, st.floats(0.5, 5), st.floats(0, 1))
def test_lengths_of_filters(w: np.ndarray, bound: float, rate: float) -> None:
    n = lengths(w)
    long = n > 1e-3  # beside which Keras' epsilon is small
    assert (lengths(MaxNorm(bound, FILTER)(w)) <= bound * (1 + 1e-6)).all()
    np.testing.assert_allclose(
        lengths(MaxNorm(bound, FILTER)(w))[long], np.minimum(n, bound)[long], rtol=2e-4
    )
    np.testing.assert_allclose(lengths(UnitNorm(FILTER)(w))[long], 1, rtol=2e-4)
    wish = rate * np.clip(n, 1, 2) + (1 - rate) * n
    np.testing.assert_allclose(
        lengths(MinMaxNorm(1, 2, rate, FILTER)(w))[long], wish[long], rtol=2e-4
    )
    assert (NonNeg()(w) == np.where(w > 0, w, 0)).all()
    assert not np.signbit(NonNeg()(w)).any()
    for constraint in (MaxNorm(), UnitNorm(), MinMaxNorm(), NonNeg()):
        got = constraint(w)
        assert (got.shape, got.dtype) == (w.shape, w.dtype)


def test_formulas_by_hand() -> None:
    w = np.array([3.0, 4.0])
    # shrinks inside the bound, too
    np.testing.assert_array_equal(MaxNorm(10)(w), w * (5 / (1e-7 + 5)))
    np.testing.assert_array_equal(UnitNorm()(w), w * (1 / (1e-7 + 5)))
    assert MinMaxNorm(1, 2)(np.zeros(3)).tolist() == [0, 0, 0]
    assert UnitNorm()(np.array([3, 4])).dtype == np.float32
    assert UnitNorm()(np.array([3, 4], np.float16)).dtype == np.float16


def test_axis_0_of_a_kernel_is_its_depth() -> None:
    w = np.ones((3, 2, 2, 1, 2), np.float32)
    np.testing.assert_allclose(np.sqrt((UnitNorm()(w) ** 2).sum(axis=0)), 1, rtol=1e-6)


def test_epsilon_is_that_of_keras_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text(json.dumps({"epsilon": 1.0}))
    assert UnitNorm()([3.0, 4.0]).tolist() == pytest.approx([0.5, 4 / 6])


@pytest.mark.parametrize("cls", CONSTRAINTS)
def test_every_constraint_is_found_and_documented(cls: Any) -> None:
    assert ">>>" in cls.__doc__
    made = cls()
    assert get(cls.__name__) == get(cls) == made
    assert get(made) is made
    assert get(serialize(made)) == made


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (None, None),
        ("max_norm", MaxNorm(2, 0)),
        ("maxnorm", MaxNorm(2, 0)),
        ("nonneg", NonNeg()),
        ("unitnorm", UnitNorm()),
        ("max_norm:max_value=1.5:axis=0,1,2,3", MaxNorm(1.5, FILTER)),
        ({"class_name": "UnitNorm", "config": {"axis": [0, 1]}}, UnitNorm([0, 1])),
    ],
)
def test_identifiers(identifier: Any, expected: Any) -> None:
    assert get(identifier) == expected


def test_tuples_become_lists_and_functions_are_taken() -> None:
    assert UnitNorm((0, 1)).get_config() == {"axis": [0, 1]}  # type: ignore[arg-type]
    function = get(np.abs)
    assert function is not None
    assert function([-1.0]).tolist() == [1]
    with pytest.raises(SpecError, match="cannot be written"):
        serialize(function)
    with pytest.raises(ShapeError, match="made shape"):
        get(np.sum)([1.0, 2.0])  # type: ignore[misc]
    assert serialize(None) is None
    assert constraints.names() == ["max_norm", "unit_norm", "min_max_norm", "non_neg"]


@pytest.mark.parametrize("name", ["foo", "Max_Norm", "", 2])
def test_unknown_names(name: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown constraint .* available: max_norm"):
        get(name)


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("radial_constraint", "must have rank 4"),
        ({"class_name": "RadialConstraint", "config": {}}, "must have rank 4"),
        ("max_norm:value=1", "did you mean 'max_value'"),
        ("max_norm:max_value=big", "max_value of MaxNorm must be a number"),
        ("max_norm:axis=1.5", "axis of MaxNorm must be a whole number"),
        ("non_neg:axis=0", "non_neg takes no parameters"),
    ],
)
def test_wrong_parameters(identifier: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        get(identifier)


@pytest.mark.parametrize("axis", [5, -6, [0, 0], [0, 9]])
def test_wrong_axes(axis: Any) -> None:
    with pytest.raises(ShapeError, match="does not fit weights of shape"):
        UnitNorm(axis)(np.ones((1, 1, 1, 1, 1)))
    with pytest.raises(ShapeError, match="real numbers"):
        UnitNorm()(np.ones(2, complex))

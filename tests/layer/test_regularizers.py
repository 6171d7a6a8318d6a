"""Regularizers: values by their formulas, identifiers, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.layer import regularizers
from conv3d_cli.layer.regularizers import (
    L1,
    L1L2,
    L2,
    REGULARIZERS,
    OrthogonalRegularizer,
    get,
    serialize,
)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.integers(0, 5)),
        elements=st.floats(-9, 9, width=32),
    )
)
def test_values(w: np.ndarray) -> None:
    size, square = float(np.abs(w).sum(dtype=np.float64)), float((w.astype(np.float64) ** 2).sum())
    assert L1(0.5)(w) == pytest.approx(0.5 * size)
    assert L2(0.5)(w) == pytest.approx(0.5 * square)
    assert L1L2(0.25, 3)(w) == pytest.approx(0.25 * size + 3 * square)
    for regularizer in (L1(), L2(), L1L2(1, 1)):
        assert regularizer.additive
        assert sum(regularizer(row) for row in w) == pytest.approx(regularizer(w))


def test_sums_are_taken_in_float64() -> None:
    w = np.full(10_000_000, 0.1, np.float32)
    assert L1(1)(w) == pytest.approx(float(np.float32(0.1)) * w.size, rel=1e-12)
    assert L2(1)(np.full(3, 1e30, np.float32)) == pytest.approx(3e60)
    assert L2(1)(np.full(3, 200, np.uint8)) == 120_000


def test_orthogonal() -> None:
    for matrix in (np.eye(3), np.eye(3) * 7, np.zeros((3, 3)), np.ones((1, 4))):
        assert OrthogonalRegularizer()(matrix) == 0
    assert OrthogonalRegularizer(1.0)(np.ones((3, 5))) == pytest.approx(1)
    assert OrthogonalRegularizer(1.0, "columns")([[1, 1], [0, 1]]) == pytest.approx(0.5**0.5)
    with pytest.raises(ShapeError, match="must have rank 2, received shape \\(3, 3, 3, 1, 2\\)"):
        OrthogonalRegularizer()(np.ones((3, 3, 3, 1, 2)))


@pytest.mark.parametrize("cls", REGULARIZERS)
def test_every_regularizer_is_found_and_documented(cls: Any) -> None:
    assert ">>>" in cls.__doc__
    made = cls()
    assert get(cls.__name__) == get(cls) == made
    assert get(made) is made
    assert get(serialize(made)) == made


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (None, None),
        ("l1", L1(0.01)),
        ("L1", L1(0.01)),
        ("l2:l2=0.5", L2(0.5)),
        ("l1l2", L1L2(0, 0)),
        ("L1L2", L1L2(0, 0)),
        ("l1_l2", L1L2(0.01, 0.01)),
        ("l1_l2:l1=0.5", L1L2(0.5, 0.01)),
        ("orthogonal_regularizer", OrthogonalRegularizer()),
        ({"class_name": "L1", "config": {"l1": 0.009999999776482582}}, L1(0.01)),
        ({"class_name": "L1L2", "config": {"l1": 0.0, "l2": 0.01}}, L1L2(0, 0.01)),
        ({"module": "builtins", "class_name": "function", "config": "l2"}, L2()),
        ("l2:l2=none", L2()),
    ],
)
def test_identifiers(identifier: Any, expected: Any) -> None:
    assert get(identifier) == expected


def test_configs() -> None:
    assert L1().get_config() == {"l1": 0.009999999776482582}
    assert L2().get_config() == {"l2": 0.01}
    assert serialize(None) is None
    assert set(regularizers.names()) >= {"l1", "l2", "l1l2", "l1_l2"}
    function = get(np.sum)
    assert function is not None
    assert function([1, 2]) == 3
    assert not function.additive
    with pytest.raises(SpecError, match="cannot be written"):
        serialize(function)


@pytest.mark.parametrize("name", ["foo", "orthogonal", "l3", "", 0.01])
def test_unknown_names(name: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown regularizer .* available: l1, l2"):
        get(name)


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "much", True])
def test_wrong_factors(bad: Any) -> None:
    for make in (L1, L2, L1L2, OrthogonalRegularizer):
        with pytest.raises(SpecError, match="expected a non-negative float"):
            make(bad)


def test_wrong_parameters() -> None:
    with pytest.raises(SpecError, match="expected 'rows' or 'columns', received 'x'"):
        get("orthogonal_regularizer:mode=x")
    with pytest.raises(SpecError, match="l1 has no parameter 'l2'"):
        get("l1:l2=1")

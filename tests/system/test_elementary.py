"""exp, log, sin and their kin against Python's decimal numbers and the C library."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal

import numpy as np
import pytest

from conv3d_cli.system import elementary

EXACT = Context(prec=40, Emax=9999, Emin=-9999)
ANGLES = np.concatenate([np.linspace(-10, 10, 701), [1e5, -3e6, 1e22, 1e300, 1e-300, 0.0]])
SIZES = np.concatenate(
    [np.linspace(1e-3, 30, 701), [1e-310, 5e-324, 1e300, 1.0, np.nextafter(1, 2)]]
)


def places(found: object, exact: list[float]) -> float:
    """The largest distance, in units of the last place."""
    values = np.asarray(exact)
    return float((np.abs(np.asarray(found) - values) / np.spacing(np.abs(values))).max())


@pytest.mark.parametrize(
    "x", [np.linspace(-40, 40, 999), np.linspace(-745, -700, 99), np.linspace(700, 709.7, 99)]
)
def test_exp(x: np.ndarray) -> None:
    exact = [float(EXACT.exp(Decimal(value))) for value in x.tolist()]
    assert places(elementary.exp(x), exact) <= 1


def test_log() -> None:
    exact = [float(EXACT.ln(Decimal(value))) for value in SIZES.tolist()]
    assert places(elementary.log(SIZES), exact) <= 1


@pytest.mark.parametrize(
    ("function", "by_the_c_library", "x"),
    [
        (elementary.expm1, math.expm1, np.linspace(-40, 700, 997)),
        (elementary.expm1, math.expm1, np.logspace(-300, 0, 301)),
        (elementary.log1p, math.log1p, np.concatenate([SIZES, -np.logspace(-20, -0.001, 99)])),
        (elementary.tanh, math.tanh, ANGLES),
        (elementary.sin, math.sin, ANGLES),
        (elementary.cos, math.cos, ANGLES),
        (elementary.tan, math.tan, ANGLES),
    ],
)
def test_against_the_c_library(
    function: Callable[[np.ndarray], np.ndarray],
    by_the_c_library: Callable[[float], float],
    x: np.ndarray,
) -> None:
    assert places(function(x), [by_the_c_library(value) for value in x.tolist()]) <= 4


@pytest.mark.parametrize("exponent", [-3, 0, 1, 2, 7, 64, 0.5, 0.3, -1.7, 2.5, 99])
def test_power(exponent: float) -> None:
    base = np.linspace(0.01, 30, 501)
    exact = [value**exponent for value in base.tolist()]
    assert places(elementary.power(base, exponent), exact) <= (64 if exponent == 64 else 8)


EDGES = [0.0, -0.0, 1.0, -1.0, 2.0, -8.0, 0.5, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize(
    "exponent", [0.0, 1.0, 3.0, 65.0, 66.0, 0.5, 0.3, -0.3, -2.0, -65.0, np.inf, -np.inf]
)
def test_power_at_the_edges(exponent: float) -> None:
    with np.errstate(all="ignore"):
        expected = np.power(EDGES, exponent)
    if np.isinf(exponent):
        expected[3] = 1.0  # (-1)^inf
    if exponent == 0.5:
        expected[8] = np.nan  # a square root; C's pow and NumPy before 2 say inf
    np.testing.assert_allclose(elementary.power(EDGES, exponent), expected, rtol=1e-15)


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh", "sin", "cos"])
def test_special_numbers_dtypes_and_shapes(name: str) -> None:
    function, by_numpy = getattr(elementary, name), getattr(np, name)
    x = np.array([[0.0, -0.0, 1.0, -3.0], [np.inf, -np.inf, np.nan, 800.0]])
    with np.errstate(all="ignore"):
        expected = by_numpy(x)
    np.testing.assert_allclose(function(x), expected, rtol=1e-15, atol=1e-12)
    np.testing.assert_array_equal(np.signbit(function(x[0, :2])), np.signbit(expected[0, :2]))
    assert function(np.float32([0.5, 1])).dtype == np.float32
    assert isinstance(function(0.5), np.float64)
    assert function(np.zeros((0, 3))).shape == (0, 3)


def test_sums_have_the_same_bits_in_every_version_of_numpy() -> None:
    """NumPy 1.26 and 2.4 add so many in different orders; these bits were found with both."""
    values = np.sqrt(np.arange(100_002) * 2654435761 % 1000003)
    bits = float.fromhex("0x1.fcac875c1b207p+25")
    cube = values.reshape(6, 7, 2381)
    assert elementary.total(cube) == elementary.total(np.asfortranarray(cube)) == bits
    assert abs(bits - math.fsum(values)) <= 2 * np.spacing(bits)
    for count in (0, 1, 4095, 4096, 4097, 20000):
        part = values[:count].astype(np.float32)
        assert elementary.total(part) == pytest.approx(math.fsum(part), rel=1e-14)


def test_sums_beyond_the_largest_number() -> None:
    assert elementary.total([1e308, 1e308]) == math.inf
    assert math.isnan(elementary.total([math.inf, -math.inf]))
    assert elementary.total([True, True, False]) == 2.0


def test_float32_is_rounded_once() -> None:
    x = np.linspace(-80, 80, 2001, dtype=np.float32)
    wide = np.array([float(EXACT.exp(Decimal(value))) for value in x.tolist()])
    distance = np.abs(elementary.exp(x) - wide) / np.spacing(np.abs(wide).astype(np.float32))
    assert distance.max() < 0.51


def test_waves_are_symmetric() -> None:
    cosines, sines = elementary.by_quarters(np.arange(-7, 400), 96)
    turns = 2 * np.pi * np.arange(-7, 400) / 96
    np.testing.assert_allclose(cosines, np.cos(turns), atol=4e-14)
    np.testing.assert_allclose(sines, np.sin(turns), atol=4e-14)
    by_number = dict(
        zip(range(-7, 400), zip(cosines.tolist(), sines.tolist(), strict=True), strict=True)
    )
    for n in range(96):
        c, s = by_number[n]
        assert by_number[n + 96] == (c, s)
        assert by_number[n + 24] == (-s, c)
        assert by_number[96 - n] == (c, -s)

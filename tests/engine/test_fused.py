"""a * b + c with one rounding on CPUs that have no instruction for it, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.fused import emulated
from conv3d_cli.engine.loops.simd import REAL_TYPES

PRECISION = {"float32": (24, -149), "float64": (53, -1074)}  # bits, power of the smallest number


@intrinsic
def fused(typingctx, a, b, c):
    """The emulation on the last of four lanes (float32) or of two; others hold other numbers."""

    def codegen(context, builder, sig, args):
        double = sig.return_type == types.float64
        lanes = 2 if double else 4
        real = REAL_TYPES["float64" if double else "float32"]
        vectors = []
        for arg in args:
            vector = ir.Constant(ir.VectorType(real, lanes), [1.5] * lanes)
            number = ir.Constant(ir.IntType(32), lanes - 1)
            vectors.append(builder.insert_element(vector, arg, number))
        found = builder.call(emulated(builder.module, real, lanes), vectors)
        return builder.extract_element(found, number)

    return a(a, b, c), codegen


@njit
def fuse_all(a, b, c, out):
    for i in range(len(a)):
        out[i] = fused(a[i], b[i], c[i])


def nearest(value: Fraction, dtype: str) -> float:
    """A fraction rounded once, half to even; infinite beyond the largest number."""
    bits, smallest = PRECISION[dtype]
    if value == 0:
        return 0.0
    size = abs(value)
    power = max(size.numerator.bit_length() - size.denominator.bit_length() - bits, smallest)
    while size / Fraction(2) ** power >= 1 << bits:
        power += 1
    whole = round(size / Fraction(2) ** power)  # of a Fraction: half to even
    found = whole * Fraction(2) ** power
    rounded = float("inf") if found > Fraction(float(np.finfo(dtype).max)) else float(found)
    return -rounded if value < 0 else rounded


def numbers(rng: np.random.Generator, dtype: str, count: int) -> np.ndarray:
    """Numbers of few and of many bits, of all sizes, and those at the ends."""
    limits = np.finfo(dtype)
    exponents = rng.integers(limits.minexp - limits.nmant - 2, limits.maxexp, count)
    close = rng.integers(-30, 30, count)
    exponents = np.where(rng.random(count) < 0.6, close, exponents)
    few = rng.integers(-8, 9, count).astype(np.float64)
    many = rng.standard_normal(count)
    near_one = 1 + rng.integers(-3, 4, count) * float(limits.eps)
    values = np.choose(rng.integers(0, 3, count), [few, many, near_one])
    with np.errstate(all="ignore"):
        found = np.ldexp(values, exponents).astype(dtype)
        ends = np.array([0, -0.0, limits.max, -limits.max, limits.tiny, limits.smallest_subnormal])
        at_end = rng.random(count) < 0.03
        return np.where(at_end, rng.choice(ends.astype(dtype), count), found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_rounds_once(dtype: str) -> None:
    rng = np.random.default_rng(7)
    count = 12000
    a, b, c = (numbers(rng, dtype, count) for _ in range(3))
    a, b, c = (np.where(np.isfinite(x), x, dtype == "float32").astype(dtype) for x in (a, b, c))
    # a third: the product nearly cancels, or is half a last place away from a number
    with np.errstate(all="ignore"):
        product = (a.astype(np.float64) * b.astype(np.float64)).astype(dtype)
        halves = (product * np.finfo(dtype).eps / 4).astype(dtype)
    third = rng.integers(0, 6, count)
    c = np.where((third == 0) & np.isfinite(product), -product, c)
    c = np.where((third == 1) & np.isfinite(halves), halves, c)
    out = np.empty(count, dtype)
    fuse_all(a, b, c, out)
    expected = np.array(
        [
            nearest(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), dtype)
            for x, y, z in zip(a, b, c, strict=True)
        ]
    ).astype(dtype)
    wrong = np.flatnonzero(out != expected)
    assert not wrong.size, [(a[i], b[i], c[i], out[i], expected[i]) for i in wrong[:5]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_infinity_and_zero(dtype: str) -> None:
    inf, nan = np.inf, np.nan
    a = np.array([inf, inf, 0, 1, nan, 1, 0, -1, 0.0, -0.0], dtype)
    b = np.array([2, 0, inf, inf, 1, 1, 5, 0.0, 1.0, 1.0], dtype)
    c = np.array([1, 1, 1, -inf, 1, nan, -inf, -0.0, -0.0, -0.0], dtype)
    out = np.empty_like(a)
    fuse_all(a, b, c, out)
    np.testing.assert_array_equal(out, np.array([inf, nan, nan, nan, nan, nan, -inf, 0, 0, 0]))
    # -1 * 0 - 0 and -0 * 1 - 0 are -0, and 0 * 1 - 0 is 0
    assert np.signbit(out[-3:]).tolist() == [True, False, True]

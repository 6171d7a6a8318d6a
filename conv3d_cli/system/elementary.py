"""exp, log, sin and their kin, and sums, with the same bits on every machine.

NumPy takes them from loops for the CPU at hand, or from the C library, and both differ in the last
bits from one machine to the next. These consist of operations that every machine rounds alike: + -
* /, square roots, and integers. Their errors are below 1 unit in the last place (`log1p`, `tanh`,
`sin`, `cos`: 2; `tan`: 4; `power`: 8), and those of float32 below 0.51.

An array of float32 gives float32, any other number float64.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

# In two parts: products of the upper one with whole numbers of 11 bits are exact.
LN2, LN2_REST = float.fromhex("0x1.62e42fefap-1"), float.fromhex("0x1.cf79abc9e3b39p-40")
LOG2_E = float.fromhex("0x1.71547652b82fep+0")
# Added to a number below 2^51, it leaves a whole number, in the last bits.
WHOLE = 1.5 * 2.0**52
MANTISSA = 52
# Where results of float64 are normal and finite.
LEAST, LARGEST = -708.0, float.fromhex("0x1.62e42fefa39efp+9")
# Terms of the series for |x| <= ln(2) / 2, by the result's dtype.
EXP_TERMS = {4: 8, 8: 14}
LOG_TERMS = {4: 6, 8: 11}
# pi / 2 in three parts; products of the first two with whole numbers of 20 bits are exact.
HALF_PI = tuple(
    float.fromhex(part) for part in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69")
)
MOST_TURNS = 2.0**20
SINE_TERMS = 9
EIGHTH = math.sqrt(0.5)  # the sine of an eighth of a turn


# NumPy adds numbers of float64 pairwise in runs, and up to this many are one run in every version.
RUN = 4096


def total(values: ArrayLike) -> float:
    """The sum in float64, with the same bits for every version of NumPy and order in memory.

    NumPy's own sum of more than 8192 numbers differs in the last bit between its versions.

    >>> total(np.full((2, 3), 0.5, np.float32))
    3.0
    """
    flat = np.ravel(np.asarray(values, np.float64))
    whole = flat.size - flat.size % RUN
    with np.errstate(over="ignore", invalid="ignore"):
        runs = [*flat[:whole].reshape(-1, RUN).sum(axis=1).tolist(), float(flat[whole:].sum())]
    try:
        return math.fsum(runs)
    except (OverflowError, ValueError):  # sums beyond float64, and of both infinities
        return float(sum(runs))


class _Kind(NamedTuple):
    """The dtype and the shape of a result."""

    dtype: Any
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.dtype(self.dtype).itemsize)

    def result(self, values: Array) -> Any:
        return values.astype(self.dtype, copy=False).reshape(self.shape)[()]


def _numbers(x: ArrayLike) -> tuple[Array, _Kind]:
    """Numbers as a new array of float64 (n,), and what the result is."""
    given = np.asarray(x)
    dtype = np.float32 if given.dtype == np.float32 else np.float64
    return given.astype(np.float64).reshape(-1), _Kind(dtype, given.shape)


def _reduced(x: Array, size: int) -> tuple[Array, Array]:
    """x = k ln(2) + r: 52 zeros and more before the bits of k, and exp(r) - 1. Changes x to r."""
    turns = x * LOG2_E
    turns += WHOLE
    bits = turns.view(np.int64) << MANTISSA
    turns -= WHOLE
    x -= turns * LN2
    turns *= LN2_REST
    x -= turns
    terms = EXP_TERMS[size]
    series = np.full_like(x, 1 / math.factorial(terms))
    for n in range(terms - 1, 1, -1):
        series *= x
        series += 1 / math.factorial(n)
    series *= x
    series *= x
    series += x
    return bits, series


def exp(x: ArrayLike) -> Any:
    """e to the power of x.

    >>> exp([0.0, -1e4, np.inf]).tolist(), bool(abs(exp(1.0) - np.e) < 1e-15)
    ([1.0, 0.0, inf], True)
    """
    given, kind = _numbers(x)
    bits, series = _reduced(np.clip(given, LEAST, LARGEST), kind.size)
    series += 1
    found = (series.view(np.int64) + bits).view(np.float64)
    beyond = np.flatnonzero(~((given >= LEAST) & (given <= LARGEST)))
    if beyond.size:
        rest = given[beyond]
        found[beyond] = np.where(rest > LARGEST, np.inf, rest)  # what is neither: NaN
        low = rest < LEAST
        # 2^1000 times as large, then rounded once to what few bits remain
        bits, series = _reduced(np.maximum(rest[low], -800.0), 8)
        lifted = ((series + 1).view(np.int64) + bits + (1000 << MANTISSA)).view(np.float64)
        found[beyond[low]] = lifted * 2.0**-1000
    return kind.result(found)


def expm1(x: ArrayLike) -> Any:
    """exp(x) - 1, accurate near 0.

    >>> expm1([1e-20, -np.inf]).tolist()
    [1e-20, -1.0]
    """
    given, kind = _numbers(x)
    bits, series = _reduced(np.clip(given, -50.0, LARGEST - 1), kind.size)
    power = (bits + (1023 << MANTISSA)).view(np.float64)
    series *= power
    power -= 1
    series += power
    np.copyto(series, given, where=np.isnan(given) | (given == 0))
    high = given > LARGEST - 1
    if high.any():
        series[high] = exp(given[high])
    return kind.result(series)


def log(x: ArrayLike) -> Any:
    """The natural logarithm; NaN for negative numbers.

    >>> log([1.0, np.e, 0.0, -1.0]).tolist()
    [0.0, 1.0, -inf, nan]
    """
    values, kind = _numbers(x)
    ordinary = (values > 0) & (values < np.inf)
    upper, rest = _log(np.where(ordinary, values, 1.0), kind.size)
    with np.errstate(all="ignore"):
        special = np.where(values == 0, -np.inf, np.where(values > 0, values, np.nan))
    return kind.result(np.where(ordinary, upper + rest, special))


def _log(values: Array, size: int) -> tuple[Array, Array]:
    """The logarithm of positive finite numbers, as the sum of a larger and a smaller part."""
    mantissas, exponents = np.frexp(values)
    low = mantissas < math.sqrt(0.5)
    mantissas = np.where(low, 2 * mantissas, mantissas)
    powers = (exponents - low).astype(np.float64)
    # m = (1 + s) / (1 - s), so log(m) = 2 (s + s^3 / 3 + ...); f = m - 1 is exact and split off
    f = mantissas - 1
    s = f / (f + 2)
    square = s * s
    series = np.full_like(s, 2 / (2 * LOG_TERMS[size] + 1))
    for n in range(LOG_TERMS[size] - 1, 0, -1):
        series *= square
        series += 2 / (2 * n + 1)
    half = 0.5 * f * f
    small = s * (half + square * series)
    # k LN2 + f - (half - small - k LN2_REST), as fdlibm arranges it
    whole = powers * LN2
    rest = -(half - (small + powers * LN2_REST))
    return whole + f, rest + ((whole - (whole + f)) + f)


def log1p(x: ArrayLike) -> Any:
    """log(1 + x), accurate near 0.

    >>> float(log1p(1e-20)), float(log1p(np.e - 1).round(15))
    (1e-20, 1.0)
    """
    values, kind = _numbers(x)
    with np.errstate(all="ignore"):
        total = 1 + values
        lost = (values - (total - 1)) / total
        found = log(total)
        # 1 + x is rounded: log(1 + x) = log(total) + lost
        ordinary = np.isfinite(found) & np.isfinite(lost)
        found = np.where(ordinary, found + lost, found)
        found = np.where(np.abs(values) < 2.0**-54, values, found)
    return kind.result(found)


def tanh(x: ArrayLike) -> Any:
    """The hyperbolic tangent.

    >>> tanh([-0.0, 1e-20, np.inf]).tolist()
    [-0.0, 1e-20, 1.0]
    """
    values, kind = _numbers(x)
    twice = 2 * np.minimum(np.abs(values), 22.0)
    grown = expm1(twice)
    return kind.result(np.copysign(grown / (grown + 2), values))


def sin(x: ArrayLike) -> Any:
    """The sine of an angle in radians; NaN for an infinite one.

    >>> sin([0.5, -np.pi / 2, 1e22]).round(6).tolist()
    [0.479426, -1.0, -0.852201]
    """
    return _turned(x, 0)


def cos(x: ArrayLike) -> Any:
    """The cosine of an angle in radians; NaN for an infinite one.

    >>> cos([0.0, 0.5]).round(6).tolist()
    [1.0, 0.877583]
    """
    return _turned(x, 1)


def tan(x: ArrayLike) -> Any:
    """The tangent of an angle in radians.

    >>> float(tan(0.5).round(6))
    0.546302
    """
    return sin(x) / cos(x)


def _turned(x: ArrayLike, quarters: int) -> Any:
    """The sine of an angle and so many quarters of a turn."""
    values, kind = _numbers(x)
    finite = np.isfinite(values)
    angle = np.where(finite, values, 0.0)
    turns = np.rint(angle * (2 / math.pi))
    far = np.abs(turns) > MOST_TURNS
    near = np.where(far, 0.0, turns)
    rest = np.where(far, 0.0, angle)
    error = np.zeros_like(rest)
    for part in HALF_PI:  # the first two differences are exact but for the rounding that is kept
        subtracted = near * part
        reduced = rest - subtracted
        error += (rest - reduced) - subtracted
        rest = reduced
    number = near.astype(np.int64)
    for place in np.flatnonzero(far):
        whole, remainder = _far_turns(float(angle.flat[place]))
        number.flat[place], rest.flat[place] = whole, remainder
    number += quarters
    sine, cosine = _sine_and_cosine(rest, error)
    found = np.where(number & 1, cosine, sine)
    found = np.where(number & 2, -found, found)
    if quarters == 0:
        found = np.where(values == 0, values, found)
    return kind.result(np.where(finite, found, np.nan))


def _sine_and_cosine(angle: Array, error: Array | float) -> tuple[Array, Array]:
    """The series for angles of up to an eighth of a turn; error: what the angles lack."""
    square = angle * angle
    sine, cosine = np.zeros_like(angle), np.zeros_like(angle)
    for n in range(SINE_TERMS, 0, -1):
        sign = -1 if n % 2 else 1
        sine *= square
        sine += sign / math.factorial(2 * n + 1)
        cosine *= square
        cosine += sign / math.factorial(2 * n)
    # the first terms last
    sine = angle + (error + angle * square * sine)
    return sine, 1 + (square * cosine - angle * error)


def _far_turns(angle: float) -> tuple[int, float]:
    """Quarters of a turn (modulo 4) in a large angle, and the angle that remains, in radians."""
    half_pi = _half_pi()
    turns = round(Fraction(angle) / half_pi)
    return turns % 4, float(Fraction(angle) - turns * half_pi)


def _half_pi(bits: int = 1200) -> Fraction:
    """pi / 2 to so many bits: 2 (4 atan(1/5) - atan(1/239)), by Machin."""

    def inverse_tangent(of: int) -> int:
        term = (1 << bits) // of
        total, n, sign = term, 1, 1
        while term:
            term //= of * of
            n, sign = n + 2, -sign
            total += sign * (term // n)
        return total

    return Fraction(2 * (4 * inverse_tangent(5) - inverse_tangent(239)), 1 << bits)


def power(x: ArrayLike, y: ArrayLike) -> Any:
    """x to the power of y, as Python's ** on floats; NaN for a root of a negative number.

    Whole exponents up to 64 are products.

    >>> [float(power(x, y).round(6)) for x, y in [(3.0, 2), (2.0, -1), (9.0, 0.5), (2.0, 0.3)]]
    [9.0, 0.5, 3.0, 1.231144]
    """
    base, exponent = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    shape, base, exponent = base.shape, base.reshape(-1), exponent.reshape(-1)
    with np.errstate(all="ignore"):
        is_small = (exponent == np.rint(exponent)) & (np.abs(exponent) <= 64)
        if is_small.all():
            return _product_power(base, exponent).reshape(shape)[()]
        found = np.where(exponent == 0.5, np.sqrt(base + 0.0), _root_power(base, exponent))
        found = np.where(is_small, _product_power(base, exponent), found)
        return found.reshape(shape)[()]


def _product_power(base: Array, exponent: Array) -> Array:
    """Whole powers up to 64, by repeated squares; other exponents give nonsense."""
    count = np.where(np.abs(exponent) <= 64, np.abs(exponent), 0).astype(np.int64)
    found, square = np.ones_like(base), base
    while count.any():
        found = np.where(count & 1, found * square, found)
        count = count >> 1
        if count.any():
            square = square * square
    return np.where(exponent < 0, 1 / found, found)


def _root_power(base: Array, exponent: Array) -> Array:
    """exp(y log|x|), where the product is a pair of numbers, with Python's rules for the sign."""
    size = np.abs(base)
    ordinary = (size > 0) & (size < np.inf) & np.isfinite(exponent)
    upper, rest = _log(np.where(ordinary, size, 1.0), 8)
    factor = np.where(ordinary, exponent, 0.0)
    # the upper part has 27 bits, so that its product with the upper bits of the factor is exact
    total = upper + rest
    low = rest - (total - upper)
    cut = np.float64(2.0**27 + 1)
    a1 = cut * total - (cut * total - total)
    b1 = cut * factor - (cut * factor - factor)
    a2, b2 = total - a1, factor - b1
    product = total * factor
    error = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2 + low * factor
    found = np.asarray(exp(product))
    found = np.where(np.isfinite(error), found + found * error, found)
    grows = (size > 1) == (exponent > 0)
    limit = np.where(grows, np.inf, 0.0)  # of 0, infinity, and infinite exponents
    found = np.where(ordinary, found, np.where(size == 1, 1.0, limit))
    found = np.where(np.isnan(base) | np.isnan(exponent), np.nan, found)
    whole = exponent == np.rint(exponent)
    odd = whole & (np.abs(exponent) < 2.0**53) & (np.fmod(exponent, 2) != 0)
    found = np.where(np.signbit(base) & odd, -found, found)
    return np.where((base < 0) & ~whole & ordinary, np.nan, found)


def by_quarters(numerators: ArrayLike, denominator: int) -> tuple[Array, Array]:
    """cos and sin of 2 pi n / m, exactly symmetric, for whole numbers n.

    >>> [values.tolist() for values in by_quarters([0, 1, 2, 3], 4)]
    [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]]
    """
    eighths = np.asarray(numerators, np.int64) % denominator * 8
    quarter = (eighths + denominator) // (2 * denominator)  # the nearest quarter of a turn
    rest = (eighths - 2 * denominator * quarter).astype(np.float64)
    sine, cosine = _sine_and_cosine(rest / (8 * denominator) * (2 * math.pi), 0.0)
    is_eighth = np.abs(rest) == denominator
    sine = np.where(is_eighth, np.copysign(EIGHTH, rest), sine)
    cosine = np.where(is_eighth, EIGHTH, cosine)
    is_odd, is_third = (quarter & 1) != 0, (quarter & 2) != 0
    first, second = np.where(is_odd, sine, cosine), np.where(is_odd, cosine, sine)
    # cos, -sin, -cos, sin, and sin, cos, -sin, -cos, without a negative zero
    return np.where(is_third != is_odd, -first, first) + 0.0, np.where(
        is_third, -second, second
    ) + 0.0

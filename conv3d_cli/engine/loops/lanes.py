"""Arithmetic on the lanes of vectors of float64, written with Python's operators.

A formula is a Python function of `Lanes`; calling it emits its code. All of it is rounded alike on
every machine: + - * /, square roots, `fma`, comparisons and integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from conv3d_cli.engine.loops.simd import I64, Vec

# A first guess of 1/√x is this minus half of the bits of x; each step of Newton's method doubles
# the digits, of which the guess has five bits.
ROOT_GUESS = 0x5FE6EB50C7B537A9
ROOT_STEPS = 4
LN2, LN2_REST = float.fromhex("0x1.62e42fefa0000p-1"), float.fromhex("0x1.cf79abc9e3b39p-40")
LOG2_E = float.fromhex("0x1.71547652b82fep+0")
WHOLE = 1.5 * 2.0**52  # added to a number, it leaves a whole one in the last bits
EXP_TERMS = 13
LEAST_POWER = -700.0


class Lanes:
    """A vector of float64 while code on it is built; a number stands for it in every lane."""

    def __init__(self, v: Vec, value: Any) -> None:
        self.v, self.value = v, value

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, Lanes) else self.v.splat(float(other))

    def of(self, value: Any) -> Lanes:
        """Lanes with another value; a number in all of them."""
        return value if isinstance(value, Lanes) else Lanes(self.v, self.v.splat(float(value)))

    def __add__(self, other: Any) -> Lanes:
        return Lanes(self.v, self.v.b.fadd(self.value, self._other(other)))

    def __radd__(self, other: Any) -> Lanes:
        return self + other

    def __sub__(self, other: Any) -> Lanes:
        return Lanes(self.v, self.v.b.fsub(self.value, self._other(other)))

    def __rsub__(self, other: Any) -> Lanes:
        return self.of(other) - self

    def __mul__(self, other: Any) -> Lanes:
        return Lanes(self.v, self.v.b.fmul(self.value, self._other(other)))

    def __rmul__(self, other: Any) -> Lanes:
        return self * other

    def __truediv__(self, other: Any) -> Lanes:
        return Lanes(self.v, self.v.b.fdiv(self.value, self._other(other)))

    def __rtruediv__(self, other: Any) -> Lanes:
        return self.of(other) / self

    def __neg__(self) -> Lanes:
        return Lanes(self.v, self.v.b.fsub(self.v.splat(-0.0), self.value))

    def times(self, factor: Any, added: Any) -> Lanes:
        """self * factor + added, rounded once."""
        return Lanes(self.v, self.v.fma(self.value, self._other(factor), self._other(added)))

    def __gt__(self, other: Any) -> Any:
        return self.v.b.fcmp_ordered(">", self.value, self._other(other))

    def __ge__(self, other: Any) -> Any:
        return self.v.b.fcmp_ordered(">=", self.value, self._other(other))

    def where(self, condition: Any, other: Any) -> Lanes:
        """self where the condition holds, else the other."""
        return Lanes(self.v, self.v.b.select(condition, self.value, self._other(other)))

    def largest(self, other: Any) -> Lanes:
        """The larger of two; the other if one is NaN."""
        return self.where(self > other, other)

    def least(self, other: Any) -> Lanes:
        """The smaller of two; the other if one is NaN."""
        other = self.of(other)
        return self.where(other > self, other)

    @property
    def size(self) -> Lanes:
        """Its magnitude."""
        return self._changed_bits(lambda b, bits, ints: b.and_(bits, ints((1 << 63) - 1)))

    def root_inverse(self) -> Lanes:
        """1/√x, of normal numbers, by Newton's method; not a number that means anything for 0.

        Division and square roots would take most of the time of an eigenvalue.
        """
        guess = self._changed_bits(
            lambda b, bits, ints: b.sub(ints(ROOT_GUESS), b.lshr(bits, ints(1)))
        )
        half = self * -0.5
        for _ in range(ROOT_STEPS):
            guess = guess * (half * guess).times(guess, 1.5)
        return guess

    def power_of_two(self) -> tuple[Lanes, Lanes]:
        """The largest power of 2 up to the magnitude of a normal number, and its inverse."""
        exponents = 0x7FF << 52
        power = self._changed_bits(lambda b, bits, ints: b.and_(bits, ints(exponents)))
        inverse = power._changed_bits(lambda b, bits, ints: b.sub(ints(0x7FE << 52), bits))
        return power, inverse

    def power_less_one(self) -> Lanes:
        """e to the power of x, minus 1, for x up to 0."""
        x = self.largest(LEAST_POWER)
        shifted = x.times(LOG2_E, WHOLE)
        turns = shifted - WHOLE
        rest = turns.times(-LN2_REST, turns.times(-LN2, x))
        factorial, series = 1, rest.of(0.0)
        inverses = []
        for n in range(1, EXP_TERMS + 1):
            factorial *= n
            inverses.append(1 / factorial)
        for value in reversed(inverses):
            series = series.times(rest, value)
        series = series * rest
        power = shifted._changed_bits(
            lambda b, bits, ints: b.add(b.shl(bits, ints(52)), ints(1023 << 52))
        )
        return series.times(power, power - 1)

    def _changed_bits(self, change: Any) -> Lanes:
        b, lanes = self.v.b, self.v.lanes
        kind = ir.VectorType(I64, lanes)
        bits = b.bitcast(self.value, kind)

        def ints(number: int) -> Any:
            return ir.Constant(kind, [number] * lanes)

        return Lanes(self.v, b.bitcast(change(b, bits, ints), self.v.type))


def polynomial(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    """c[0] + c[1]·x + ..., by Horner's rule."""
    found = x.of(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        found = found.times(x, coefficient)
    return found


def root(x: Lanes) -> Lanes:
    """√x, rounded to the nearest number."""
    v = x.v
    name = f"llvm.sqrt.v{v.lanes}f64"
    function = cgutils.get_or_insert_function(v.b.module, ir.FunctionType(v.type, [v.type]), name)
    return Lanes(v, v.b.call(function, [x.value]))

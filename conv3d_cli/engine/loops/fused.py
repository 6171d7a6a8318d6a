"""a * b + c, rounded once, for CPUs without an instruction for it: the same bits as with one.

The sum of an exact product and a number is rounded *to odd* in a wider format: cut off, with the
last bit set if anything was cut. Rounding that once more, to the nearest number of the narrower
format, gives what a single rounding gives, if the wider format has two bits more.

- float32: float64 holds the product exactly; it is the wider format.
- float64: product and sum are split into pairs of numbers without an error, of which the smaller
  ones are added with rounding to odd. Where a part could overflow or underflow, whole numbers of
  256 bits hold the sum.

Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using
rounding to odd, IEEE Transactions on Computers 57 (2008); Dekker 1971 (splitting a product); Knuth
(the error of a sum).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

I64, WIDE = ir.IntType(64), ir.IntType(256)
DOUBLE = ir.DoubleType()
# Bits of a float64: 52 of the mantissa, exponent 0 stands for 2^-1074 times the mantissa.
MANTISSA, EXPONENTS, SMALLEST = 52, 0x7FF, -1074
# Numbers of the sum that are so many bits apart do not meet in a bit of the result.
FAR = 120
# Products of factors in this range, and sums with a number below the limit, have exact errors.
LEAST_FACTOR, LARGEST_FACTOR, LARGEST_TERM = 2.0**-400, 2.0**400, 2.0**900


def emulated(module: ir.Module, real: Any, lanes: int) -> ir.Function:
    """The function (a, b, c) -> a * b + c on vectors of float32 or float64 in a module.

    It is a function of its own, since it is too long to be repeated for every product.
    """
    kind = ir.VectorType(real, lanes)
    is_double = real == DOUBLE
    name = f"conv3d.fused.v{lanes}f{64 if is_double else 32}"
    if name in module.globals:
        return module.globals[name]
    function = _function(module, name, kind)
    b = ir.IRBuilder(function.append_basic_block("entry"))
    (_fuse_double if is_double else _fuse_single)(b, *function.args)
    return function


def _function(module: ir.Module, name: str, kind: Any) -> ir.Function:
    function = ir.Function(module, ir.FunctionType(kind, [kind] * 3), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    return function


def _sum(b: ir.IRBuilder, x: Any, y: Any) -> tuple[Any, Any]:
    """The rounded sum of two vectors, and its error, which is exact."""
    total = b.fadd(x, y)
    second = b.fsub(total, x)
    return total, b.fadd(b.fsub(x, b.fsub(total, second)), b.fsub(y, second))


def _sum_to_odd(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """The sum of two vectors of float64, rounded to odd."""
    total, error = _sum(b, x, y)
    bits = ir.VectorType(I64, total.type.count)
    one, zero, top = (ir.Constant(bits, [n] * bits.count) for n in (1, 0, 63))
    number, rest = b.bitcast(total, bits), b.bitcast(error, bits)
    # one step up or down leads from an even number to the odd one beyond the exact sum
    step = b.or_(b.ashr(b.xor(number, rest), top), one)
    inexact = b.fcmp_ordered("!=", error, ir.Constant(total.type, [0.0] * bits.count))
    even = b.icmp_signed("==", b.and_(number, one), zero)
    odd = b.add(number, b.select(b.and_(inexact, even), step, zero))
    return b.bitcast(odd, total.type)


def _fuse_single(b: ir.IRBuilder, *terms: Any) -> None:
    x, y, z = (b.fpext(term, ir.VectorType(DOUBLE, term.type.count)) for term in terms)
    b.ret(b.fptrunc(_sum_to_odd(b, b.fmul(x, y), z), terms[0].type))


def _fuse_double(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> None:
    kind = x.type

    def all_lanes(value: float) -> ir.Constant:
        return ir.Constant(kind, [value] * kind.count)

    def size(value: Any) -> Any:
        name = f"llvm.fabs.v{kind.count}f64"
        absolute = cgutils.get_or_insert_function(b.module, ir.FunctionType(kind, [kind]), name)
        return b.call(absolute, [value])

    def split(value: Any) -> tuple[Any, Any]:
        """The upper 26 bits of a number, and the others."""
        scaled = b.fmul(value, all_lanes(2.0**27 + 1))
        upper = b.fsub(scaled, b.fsub(scaled, value))
        return upper, b.fsub(value, upper)

    safe = b.fcmp_ordered("<=", size(z), all_lanes(LARGEST_TERM))
    for factor in (x, y):
        large = b.fcmp_ordered(">=", size(factor), all_lanes(LEAST_FACTOR))
        is_zero = b.fcmp_ordered("==", factor, all_lanes(0.0))
        small = b.fcmp_ordered("<=", size(factor), all_lanes(LARGEST_FACTOR))
        safe = b.and_(safe, b.and_(small, b.or_(large, is_zero)))
    fast, slow = b.append_basic_block("fast"), b.append_basic_block("slow")
    mask = b.bitcast(safe, ir.IntType(kind.count))
    every = ir.Constant(mask.type, (1 << kind.count) - 1)
    b.cbranch(b.icmp_unsigned("==", mask, every), fast, slow)

    b.position_at_end(fast)
    product = b.fmul(x, y)
    (x1, x2), (y1, y2) = split(x), split(y)
    rest = b.fadd(b.fsub(b.fmul(x1, y1), product), b.fmul(x1, y2))
    rest = b.fadd(b.fadd(rest, b.fmul(x2, y1)), b.fmul(x2, y2))
    lower, lowest = _sum(b, z, rest)
    upper, low = _sum(b, product, lower)
    result = b.fadd(upper, _sum_to_odd(b, lowest, low))
    # a sum of exactly zero has the sign that two roundings give it, too
    is_zero = b.fcmp_ordered("==", result, all_lanes(0.0))
    b.ret(b.select(is_zero, b.fadd(product, z), result))

    b.position_at_end(slow)
    result = x
    for lane in range(kind.count):
        number = ir.Constant(ir.IntType(32), lane)
        terms = [b.extract_element(term, number) for term in (x, y, z)]
        result = b.insert_element(result, b.call(_by_whole_numbers(b.module), terms), number)
    b.ret(result)


def _by_whole_numbers(module: ir.Module) -> ir.Function:
    """The function (a, b, c) -> a * b + c on any three float64."""
    name = "conv3d.fused.f64"
    if name in module.globals:
        return module.globals[name]
    function = _function(module, name, DOUBLE)
    b = ir.IRBuilder(function.append_basic_block("entry"))

    def const(value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def wide(value: Any) -> Any:
        return b.zext(value, WIDE)

    def least(value: Any, most: int) -> Any:
        return b.select(b.icmp_signed("<", value, const(most)), value, const(most))

    def shift_left(value: Any, by: Any) -> Any:
        return b.shl(value, wide(by))

    plain = b.fadd(b.fmul(function.args[0], function.args[1]), function.args[2])
    signs, exponents, mantissas = [], [], []
    for term in function.args:
        bits = b.bitcast(term, I64)
        signs.append(b.icmp_signed("<", bits, const(0)))
        exponent = b.and_(b.lshr(bits, const(MANTISSA)), const(EXPONENTS))
        exponents.append(exponent)
        mantissa = b.and_(bits, const((1 << MANTISSA) - 1))
        is_normal = b.icmp_signed("!=", exponent, const(0))
        mantissas.append(b.or_(mantissa, b.shl(b.zext(is_normal, I64), const(MANTISSA))))
    # products with zero are exact, and NaN and infinity stay what they are
    exact = b.icmp_signed("==", mantissas[0], const(0))
    exact = b.or_(exact, b.icmp_signed("==", mantissas[1], const(0)))
    for exponent in exponents:
        exact = b.or_(exact, b.icmp_signed("==", exponent, const(EXPONENTS)))
    with b.if_then(exact, likely=False):
        b.ret(plain)

    # term = mantissa * 2^power
    powers = [
        b.add(b.select(b.icmp_signed("==", e, const(0)), const(1), e), const(SMALLEST - 1))
        for e in exponents
    ]
    product, power = b.mul(wide(mantissas[0]), wide(mantissas[1])), b.add(powers[0], powers[1])
    term, one = wide(mantissas[2]), ir.Constant(WIDE, 1)
    has_term = b.icmp_signed("!=", mantissas[2], const(0))
    # What lies far below the other number counts only as something that is not zero.
    apart = b.sub(powers[2], power)
    above = b.icmp_signed(">=", apart, const(0))
    distance = b.select(above, apart, b.neg(apart))
    far = b.icmp_signed(">", distance, const(FAR))
    near = least(distance, FAR)
    upper = shift_left(b.select(above, term, product), near)
    lower = b.select(above, product, term)
    lower = b.select(far, b.select(b.or_(above, has_term), one, ir.Constant(WIDE, 0)), lower)
    # a far term of zero leaves the product alone, wherever its exponent would place it
    base = b.sub(b.select(above, powers[2], power), near)
    alone = b.not_(has_term)
    upper = b.select(alone, product, upper)
    lower = b.select(alone, ir.Constant(WIDE, 0), lower)
    base = b.select(alone, power, base)
    above = b.and_(above, has_term)

    negative_product = b.xor(signs[0], signs[1])
    sign_upper = b.select(above, signs[2], negative_product)
    sign_lower = b.select(above, negative_product, signs[2])
    opposite = b.and_(b.xor(sign_upper, sign_lower), has_term)
    total = b.add(upper, b.select(opposite, b.neg(lower), lower))
    negative = b.icmp_signed("<", total, ir.Constant(WIDE, 0))
    total = b.select(negative, b.neg(total), total)
    negative = b.xor(negative, sign_upper)
    with b.if_then(b.icmp_unsigned("==", total, ir.Constant(WIDE, 0)), likely=False):
        b.ret(ir.Constant(DOUBLE, 0.0))

    zeros = b.ctlz(total, ir.Constant(ir.IntType(1), 0))
    length = b.sub(const(256), b.trunc(zeros, I64))
    # the power of the result's last bit
    last = b.add(b.sub(length, const(MANTISSA + 1)), base)
    last = b.select(b.icmp_signed("<", last, const(SMALLEST)), const(SMALLEST), last)
    cut = b.sub(last, base)
    rounds = b.icmp_signed(">", cut, const(0))
    right = least(b.select(rounds, cut, const(0)), 255)
    left = b.select(rounds, const(0), b.neg(cut))
    kept = b.lshr(total, wide(right))
    rest = b.sub(total, shift_left(kept, right))
    doubled = b.shl(rest, one)
    step = shift_left(one, right)
    odd = b.icmp_unsigned("!=", b.and_(kept, one), ir.Constant(WIDE, 0))
    up = b.icmp_unsigned(">", doubled, step)
    up = b.or_(up, b.and_(b.icmp_unsigned("==", doubled, step), odd))
    kept = b.add(shift_left(kept, left), wide(b.and_(up, rounds)))
    bits = b.add(b.trunc(kept, I64), b.shl(b.sub(last, const(SMALLEST)), const(MANTISSA)))
    infinite = const(EXPONENTS << MANTISSA)
    # an exponent so large that it would run into the sign means infinity, too
    large = b.icmp_signed(">", last, const(1023 - MANTISSA))
    large = b.or_(large, b.icmp_unsigned(">", bits, infinite))
    bits = b.select(large, infinite, bits)
    bits = b.or_(bits, b.shl(b.zext(negative, I64), const(63)))
    b.ret(b.bitcast(bits, DOUBLE))
    return function

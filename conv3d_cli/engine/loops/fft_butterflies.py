"""Butterflies of the FFT tiles: stages of a mixed-radix transform of vectors, as LLVM code.

A *line* is a 1-D transform of several neighbouring signals at once: element n is a pair of vectors
(re, im) at an address. A stage of radix r transforms groups of r elements and multiplies them by
twiddle factors from a table. Forward stages decimate in frequency and leave the frequencies in
digit-reversed order; inverse stages start from that order and end in the natural one. Nothing is
reordered, because the kernel's spectrum, which is applied in between, has the digit-reversed order.

Each (radix, kind) is one LLVM function with loops, so the code stays small for any number of sizes.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.algorithms.fft_channels import FACTORS
from conv3d_cli.engine.loops.simd import I64, Vec, const, emit_prefetch
from conv3d_cli.system.elementary import by_quarters

RADICES = (1, 2, 3, 4, 5, 6, 8)

Pair = tuple[Any, Any]


class Complex:
    """Emits arithmetic on complex numbers, as pairs of vectors (re, im)."""

    def __init__(self, v: Vec) -> None:
        self.v, self.b = v, v.b

    def add(self, x: Pair, y: Pair) -> Pair:
        """x + y."""
        return self.b.fadd(x[0], y[0]), self.b.fadd(x[1], y[1])

    def sub(self, x: Pair, y: Pair) -> Pair:
        """x - y."""
        return self.b.fsub(x[0], y[0]), self.b.fsub(x[1], y[1])

    def turn(self, x: Pair, sign: int) -> Pair:
        """x * (sign * i)."""
        return (self.b.fneg(x[1]), x[0]) if sign > 0 else (x[1], self.b.fneg(x[0]))

    def add_scaled(self, x: Pair, y: Pair, factor: float) -> Pair:
        """x + y * factor."""
        c = self.v.splat(factor)
        return self.v.fma(y[0], c, x[0]), self.v.fma(y[1], c, x[1])

    def scale(self, x: Pair, factor: float) -> Pair:
        """x * factor."""
        c = self.v.splat(factor)
        return self.b.fmul(x[0], c), self.b.fmul(x[1], c)

    def add_turned(self, x: Pair, y: Pair, factor: float) -> Pair:
        """x + i * factor * y."""
        c, minus = self.v.splat(factor), self.v.splat(-factor)
        return self.v.fma(y[1], minus, x[0]), self.v.fma(y[0], c, x[1])

    def mul(self, x: Pair, y: Pair) -> Pair:
        """x * y."""
        re = self.v.fma(x[0], y[0], self.b.fneg(self.b.fmul(x[1], y[1])))
        return re, self.v.fma(x[0], y[1], self.b.fmul(x[1], y[0]))

    def mul_conj(self, x: Pair, y: Pair) -> Pair:
        """x * conj(y)."""
        re = self.v.fma(x[0], y[0], self.b.fmul(x[1], y[1]))
        return re, self.v.fma(x[1], y[0], self.b.fneg(self.b.fmul(x[0], y[1])))

    def add_product(self, total: Pair, x: Pair, y: Pair) -> Pair:
        """total + x * y."""
        re = self.v.fma(self.b.fneg(x[1]), y[1], self.v.fma(x[0], y[0], total[0]))
        return re, self.v.fma(x[1], y[0], self.v.fma(x[0], y[1], total[1]))

    def add_product_conj(self, total: Pair, x: Pair, y: Pair) -> Pair:
        """total + x * conj(y)."""
        re = self.v.fma(x[1], y[1], self.v.fma(x[0], y[0], total[0]))
        return re, self.v.fma(x[1], y[0], self.v.fma(self.b.fneg(x[0]), y[1], total[1]))

    def mul_root(self, x: Pair, turns: Fraction) -> Pair:
        """x * exp(2 pi i * turns)."""
        quarters, rest = divmod(turns * 4, 1)
        if rest:
            angle = 2 * math.pi * (turns % 1)
            return self.mul(x, (self.v.splat(math.cos(angle)), self.v.splat(math.sin(angle))))
        for _ in range(int(quarters) % 4):
            x = self.turn(x, 1)
        return x

    def dft(self, x: list[Pair], sign: int) -> list[Pair]:
        """The DFT of n = len(x) elements, with the root of unity exp(sign * 2 pi i / n).

        n is one of RADICES, or a product of them in FACTORS (Cooley & Tukey 1965).
        """
        n = len(x)
        if n not in FACTORS:
            return getattr(self, f"_dft{n}")(x, sign)
        radix = FACTORS[n]
        rest = n // radix
        inner = [self.dft(x[j::rest], sign) for j in range(rest)]
        out: list[Any] = [None] * n
        for k in range(radix):
            turned = [self.mul_root(inner[j][k], Fraction(sign * j * k, n)) for j in range(rest)]
            out[k::radix] = self.dft(turned, sign)
        return out

    def _dft1(self, x: list[Pair], sign: int) -> list[Pair]:
        return x

    def _dft2(self, x: list[Pair], sign: int) -> list[Pair]:
        return [self.add(x[0], x[1]), self.sub(x[0], x[1])]

    def _dft3(self, x: list[Pair], sign: int) -> list[Pair]:
        both, difference = self.add(x[1], x[2]), self.sub(x[1], x[2])
        middle, s = self.add_scaled(x[0], both, -0.5), sign * math.sqrt(0.75)
        return [
            self.add(x[0], both),
            self.add_turned(middle, difference, s),
            self.add_turned(middle, difference, -s),
        ]

    def _dft4(self, x: list[Pair], sign: int) -> list[Pair]:
        a, b, c = self.add(x[0], x[2]), self.sub(x[0], x[2]), self.add(x[1], x[3])
        # +-i (x1 - x3) without a negation: the two outputs swap an addition and a subtraction
        d = self.sub(x[1], x[3])
        plus = self.b.fsub(b[0], d[1]), self.b.fadd(b[1], d[0])
        minus = self.b.fadd(b[0], d[1]), self.b.fsub(b[1], d[0])
        return [
            self.add(a, c),
            plus if sign > 0 else minus,
            self.sub(a, c),
            minus if sign > 0 else plus,
        ]

    def _dft5(self, x: list[Pair], sign: int) -> list[Pair]:
        # of 1/5 and 2/5 of a turn
        (c1, c2), (s1, s2) = (wave.tolist() for wave in by_quarters([1, 2], 5))
        s1, s2 = sign * s1, sign * s2
        t1, t2, d1, d2 = (
            self.add(x[1], x[4]),
            self.add(x[2], x[3]),
            self.sub(x[1], x[4]),
            self.sub(x[2], x[3]),
        )
        m1 = self.add_scaled(self.add_scaled(x[0], t1, c1), t2, c2)
        m2 = self.add_scaled(self.add_scaled(x[0], t1, c2), t2, c1)
        e1, e2 = (
            self.add_scaled(self.scale(d1, s1), d2, s2),
            self.add_scaled(self.scale(d1, s2), d2, -s1),
        )
        up1, down1 = self._both_turned(m1, e1)
        up2, down2 = self._both_turned(m2, e2)
        return [self.add(x[0], self.add(t1, t2)), up1, up2, down2, down1]

    def _both_turned(self, m: Pair, e: Pair) -> tuple[Pair, Pair]:
        """m + i e, m - i e."""
        b = self.b
        return (b.fsub(m[0], e[1]), b.fadd(m[1], e[0])), (b.fadd(m[0], e[1]), b.fsub(m[1], e[0]))

    def _dft6(self, x: list[Pair], sign: int) -> list[Pair]:
        """2 x 3 by the Good-Thomas algorithm, which needs no twiddles."""
        out: list[Any] = [None] * 6
        halves = [self._dft3([x[(3 * i + 2 * j) % 6] for j in range(3)], sign) for i in range(2)]
        for k in range(3):
            out[4 * k % 6] = self.add(halves[0][k], halves[1][k])
            out[(3 + 4 * k) % 6] = self.sub(halves[0][k], halves[1][k])
        return out

    def _dft8(self, x: list[Pair], sign: int) -> list[Pair]:
        even, odd = self._dft4(x[0::2], sign), self._dft4(x[1::2], sign)
        b, h = self.b, math.sqrt(0.5)
        # odd[1] * (1 + sign i) / sqrt 2 and odd[3] * (-1 + sign i) / sqrt 2; the last sums apply
        # the factor 1 / sqrt 2
        re, im = odd[1]
        o1 = (b.fsub(re, im), b.fadd(re, im)) if sign > 0 else (b.fadd(re, im), b.fsub(im, re))
        re, im = odd[3]  # negated
        o3 = (b.fadd(re, im), b.fsub(im, re)) if sign > 0 else (b.fsub(re, im), b.fadd(re, im))
        up, down = self._both_turned(even[2], odd[2])
        return [
            self.add(even[0], odd[0]),
            self.add_scaled(even[1], o1, h),
            up if sign > 0 else down,
            self.add_scaled(even[3], o3, -h),
            self.sub(even[0], odd[0]),
            self.add_scaled(even[1], o1, -h),
            down if sign > 0 else up,
            self.add_scaled(even[3], o3, h),
        ]


ARGUMENTS = (
    "source",
    "source_step",
    "source_im",
    "target",
    "target_step",
    "target_im",
    "span",
    "blocks",
    "twiddles",
    "table",
    "spectrum",
    "channels",
    "source_channel_step",
    "spectrum_channel_step",
)


def _loop(b: ir.IRBuilder, count: Any, name: str) -> tuple[Any, Any, Any]:
    """Open a loop `for i in range(count)` that runs at least once.

    Returns (i, the block before the loop, a function that closes the loop).
    """
    before, body = b.block, b.append_basic_block(name)
    b.branch(body)
    b.position_at_end(body)
    index = b.phi(I64)
    index.add_incoming(const(0), before)

    def close() -> None:
        following = b.add(index, const(1))
        index.add_incoming(following, b.block)
        end = b.append_basic_block(name + ".end")
        b.cbranch(b.icmp_signed("<", following, count), body, end)
        b.position_at_end(end)

    return index, before, close


def _stage_function(module: ir.Module, kind: str, radix: int, lanes: int, real: str) -> ir.Function:
    """The LLVM function of one kind of stage, added to the module at the first call.

    kind : str      "forward", "inverse";
                    "forward_last", "inverse_first": span 1, no twiddles;
                    "gather": forward, element n of the source is at source + table[n];
                    "scatter": inverse, element n of the target is at target + table[n];
                    "product": the last forward stage, the product with the spectrum, summed over
                    channels, and the first inverse stage;
                    "product_back": the same with the conjugate spectrum
                    "forward_ahead", "inverse_ahead": which meanwhile fetch as many cache lines as
                    the line has elements, from the address `table` on
    """
    name = f"fft_{kind}_{radix}_{real}_{lanes}"
    found = module.globals.get(name)
    if found is not None:
        return found
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * len(ARGUMENTS)), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    a = dict(zip(ARGUMENTS, function.args, strict=True))
    b = ir.IRBuilder(function.append_basic_block("entry"))
    v = Vec(b, lanes, real)
    cx = Complex(v)
    pointer = v.real.as_pointer()

    def load(at: Any, im: Any) -> Pair:
        return v.load(b.inttoptr(at, pointer), const(0)), v.load(
            b.inttoptr(b.add(at, im), pointer), const(0)
        )

    def store(x: Pair, at: Any, im: Any) -> None:
        v.store(x[0], b.inttoptr(at, pointer), const(0))
        v.store(x[1], b.inttoptr(b.add(at, im), pointer), const(0))

    whole, half = const(2 * lanes * v.bytes), const(lanes * v.bytes)
    multiplies = kind in ("product", "product_back")
    fetches = kind in ("forward_ahead", "inverse_ahead")
    sign = -1 if multiplies or kind in ("forward", "forward_last", "gather", "forward_ahead") else 1
    spans = 1 if multiplies or kind in ("forward_last", "inverse_first") else a["span"]
    span = const(1) if spans == 1 else a["span"]
    source_leap, target_leap = b.mul(span, a["source_step"]), b.mul(span, a["target_step"])

    block, _, close_block = _loop(b, a["blocks"], "block")
    if spans == 1:
        element, close_element = b.mul(block, const(radix)), None
        inner: Any = const(0)
    else:
        inner, _, close_element = _loop(b, span, "element")
        element = b.add(b.mul(b.mul(block, const(radix)), span), inner)
    table = b.inttoptr(b.add(a["table"], b.mul(element, const(8))), I64.as_pointer())

    def place(j: int, base: Any, step: Any, leap: Any, by_table: bool) -> Any:
        if by_table:
            return b.add(base, b.load(b.gep(table, [b.mul(span, const(j))])))
        return b.add(b.add(base, b.mul(element, step)), b.mul(leap, const(j)))

    twiddled = (fetches or kind in ("forward", "inverse", "gather", "scatter")) and radix > 1
    factors = b.inttoptr(
        b.add(a["twiddles"], b.mul(inner, const(2 * (radix - 1) * v.bytes))), pointer
    )

    def factor(k: int) -> Pair:
        return v.broadcast(factors, const(2 * (k - 1))), v.broadcast(
            factors, const(2 * (k - 1) + 1)
        )

    if multiplies:
        add = cx.add_product if kind == "product" else cx.add_product_conj
        channel, before, close_channel = _loop(b, a["channels"], "channel")
        sums = [(b.phi(v.type), b.phi(v.type)) for _ in range(radix)]
        lines = b.add(a["source"], b.mul(channel, a["source_channel_step"]))
        spectrum = b.add(
            b.add(a["spectrum"], b.mul(channel, a["spectrum_channel_step"])), b.mul(element, whole)
        )
        x = [
            load(place(j, lines, a["source_step"], source_leap, False), a["source_im"])
            for j in range(radix)
        ]
        y = cx.dft(x, -1)
        weights = [load(b.add(spectrum, b.mul(whole, const(k))), half) for k in range(radix)]
        totals = [add(sums[k], y[k], weights[k]) for k in range(radix)]
        for start, total in zip(sums, totals, strict=True):
            for part in range(2):
                start[part].add_incoming(v.zero, before)
                start[part].add_incoming(total[part], b.block)
        close_channel()
        y = cx.dft(totals, 1)
    else:
        places = [
            place(j, a["source"], a["source_step"], source_leap, kind == "gather")
            for j in range(radix)
        ]
        x = [load(at, a["source_im"]) for at in places]
        # the next line's elements, which are too far apart for the hardware's prefetcher
        if kind == "gather":
            for at in places:
                for part in (whole, b.add(whole, half)):
                    emit_prefetch(b, b.add(at, part), level=1)
        # a few at a time, so that memory and arithmetic overlap
        if fetches:
            first = b.mul(b.add(b.mul(block, span), inner), const(64 * radix))
            for j in range(radix):
                emit_prefetch(b, b.add(b.add(a["table"], first), const(64 * j)), level=2)
        if twiddled and sign > 0:
            x = [x[0], *(cx.mul_conj(x[k], factor(k)) for k in range(1, radix))]
        y = cx.dft(x, sign)
        if twiddled and sign < 0:
            y = [y[0], *(cx.mul(y[k], factor(k)) for k in range(1, radix))]
    for k in range(radix):
        store(
            y[k],
            place(k, a["target"], a["target_step"], target_leap, kind == "scatter"),
            a["target_im"],
        )
    if close_element is not None:
        close_element()
    close_block()
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)
def stage(
    typingctx,
    kind,
    lanes,
    double,
    radix,
    source,
    source_step,
    source_im,
    target,
    target_step,
    target_im,
    span,
    blocks,
    twiddles,
    table,
    spectrum,
    channels,
    source_channel_step,
    spectrum_channel_step,
):
    """Run one stage; the radix is given at run time.

    kind : int                  index into `KINDS`
    source, target : address    of lines
    source_step, target_step : int  bytes from one element to the next
    source_im, target_im : int  bytes from re to im
    span : int                  elements from one input of a butterfly to the next
    blocks : int                number of transforms of radix * span elements
    twiddles : address          of their factors
    table : address             of the elements' offsets in bytes, for "gather" and "scatter"; of
                                what is fetched, for "forward_ahead" and "inverse_ahead"
    spectrum : address          for the products, as are:
    channels : int
    source_channel_step, spectrum_channel_step : int    bytes from one channel to the next
    """
    places = source, source_step, source_im, target, target_step, target_im
    product = spectrum, channels, source_channel_step, spectrum_channel_step
    sig = types.void(kind, lanes, double, radix, *places, span, blocks, twiddles, table, *product)
    which, width = KINDS[kind.literal_value], lanes.literal_value
    real = "float64" if double.literal_value else "float32"

    def codegen(context, b, sig, args):
        end = b.append_basic_block("stage.end")
        switch = b.switch(args[3], end)
        for choice in RADICES:
            if choice == 1 and which not in ("gather", "scatter", "product", "product_back"):
                continue
            block = b.append_basic_block(f"radix{choice}")
            switch.add_case(const(choice), block)
            b.position_at_end(block)
            b.call(_stage_function(b.module, which, choice, width, real), args[4:])
            b.branch(end)
        b.position_at_end(end)
        return context.get_dummy_value()

    return sig, codegen


KINDS = (
    "forward",
    "forward_last",
    "inverse_first",
    "inverse",
    "gather",
    "scatter",
    "product",
    "product_back",
    "forward_ahead",
    "inverse_ahead",
)
FORWARD, FORWARD_LAST, INVERSE_FIRST, INVERSE, GATHER, SCATTER, PRODUCT, PRODUCT_BACK = range(8)
FORWARD_AHEAD, INVERSE_AHEAD = range(8, 10)


def _transposed(v: Vec, x: list[Any]) -> list[Any]:
    """The columns of `lanes` vectors."""
    lanes = v.lanes
    half = lanes // 2
    while half:  # swap the off-diagonal quarters of blocks of size 2 * half
        y = list(x)
        for i in range(lanes):
            if i & half:
                continue
            low = [n if not n & half else lanes + (n ^ half) for n in range(lanes)]
            high = [n | half if not n & half else lanes + n for n in range(lanes)]
            y[i], y[i | half] = (
                v.shuffle(x[i], x[i | half], low),
                v.shuffle(x[i], x[i | half], high),
            )
        x = y
        half //= 2
    return x


def _transpose_function(module: ir.Module, lanes: int, real: str) -> ir.Function:
    """The LLVM function that `transpose` calls, added to the module at the first call."""
    name = f"transpose_{real}_{lanes}"
    found = module.globals.get(name)
    if found is not None:
        return found
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 4), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    v = Vec(b, lanes, real)
    source, source_step, target, target_step = function.args

    def row(base: Any, step: Any, n: int) -> Any:
        return b.inttoptr(b.add(base, b.mul(step, const(n))), v.real.as_pointer())

    x = [v.load(row(source, source_step, n), const(0)) for n in range(lanes)]
    x = _transposed(v, x)
    for n in range(lanes):
        v.store(x[n], row(target, target_step, n), const(0))
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)
def transpose(typingctx, lanes, double, source, source_step, target, target_step):
    """Transpose a block of lanes x lanes numbers.

    source, target : address
    source_step, target_step : int  bytes from one row to the next
    """
    sig = types.void(lanes, double, source, source_step, target, target_step)
    width, real = lanes.literal_value, "float64" if double.literal_value else "float32"

    def codegen(context, b, sig, args):
        b.call(_transpose_function(b.module, width, real), args[2:])
        return context.get_dummy_value()

    return sig, codegen


def _turning_function(module: ir.Module, lanes: int, real: str, back: bool) -> ir.Function:
    """The LLVM function of `transpose_there` and `transpose_back`, added at the first call."""
    name = f"transpose_{'back' if back else 'there'}_{real}_{lanes}"
    found = module.globals.get(name)
    if found is not None:
        return found
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 5), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    v = Vec(b, lanes, real)
    cx, pointer = Complex(v), v.real.as_pointer()
    rows, row_step, row_im, line, factors = function.args
    numbers = b.inttoptr(factors, pointer)

    def at(base: Any, step: Any, im: Any, n: int, part: int) -> Any:
        where = b.add(base, b.mul(step, const(n)))
        return b.inttoptr(b.add(where, im) if part else where, pointer)

    whole, half = const(2 * lanes * v.bytes), const(lanes * v.bytes)
    in_rows, in_line = (rows, row_step, row_im), (line, whole, half)
    source, target = (in_line, in_rows) if back else (in_rows, in_line)
    # re and im one after the other: registers hold one of them
    for part in range(2):
        x = []
        for n in range(lanes):
            pair = tuple(v.load(at(*source, n, one), const(0)) for one in range(2))
            if back:  # a vector has the rows of one column
                turn = tuple(v.broadcast(numbers, const(one * lanes + n)) for one in range(2))
                x.append(cx.mul_conj(pair, turn)[part])
            else:
                turn = tuple(v.load(numbers, const(one * lanes)) for one in range(2))
                x.append(cx.mul(pair, turn)[part])
        for n, value in enumerate(_transposed(v, x)):
            v.store(value, at(*target, n, part), const(0))
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)
def transpose_there(typingctx, lanes, double, rows, row_step, row_im, line, factors):
    """Multiply `lanes` columns by a factor each, and transpose them into elements of a line.

    rows : address          of the first of `lanes` rows of re
    row_step, row_im : int  bytes from one row to the next, and from re to im
    line : address          of elements (re, im), a column each; apart from the rows
    factors : address       of the columns' factors, re of all and im of all
    """
    return _turning(False, lanes, double, rows, row_step, row_im, line, factors)


@intrinsic(prefer_literal=True)
def transpose_back(typingctx, lanes, double, line, rows, row_step, row_im, factors):
    """The reverse of `transpose_there`, with the conjugate factors."""
    return _turning(True, lanes, double, line, rows, row_step, row_im, factors)


def _turning(back, lanes, double, *addresses):
    sig = types.void(lanes, double, *addresses)
    width, real = lanes.literal_value, "float64" if double.literal_value else "float32"

    def codegen(context, b, sig, args):
        given = [*args[3:6], args[2], args[6]] if back else args[2:]
        b.call(_turning_function(b.module, width, real, back), given)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def holds_non_finite(typingctx, lanes, double, address, count):
    """1 if any of `count` numbers at an address is NaN or infinite; `count` is at least `lanes`."""
    sig = types.int64(lanes, double, address, count)
    width, real = lanes.literal_value, "float64" if double.literal_value else "float32"

    def codegen(context, b, sig, args):
        v = Vec(b, width, real)
        word = ir.IntType(8 * v.bytes)
        bits = ir.VectorType(word, width)
        exponent = ir.Constant(bits, [0x7F800000 if real == "float32" else 0x7FF << 52] * width)
        pointer = b.inttoptr(args[2], v.real.as_pointer())
        zero = ir.Constant(bits, [0] * width)
        last = b.sub(args[3], const(width))
        before, body, end = b.block, b.append_basic_block("scan"), b.append_basic_block("scanned")
        b.branch(body)
        b.position_at_end(body)
        at, worst = b.phi(I64), b.phi(bits)
        at.add_incoming(const(0), before)
        worst.add_incoming(zero, before)
        # the last vector overlaps the one before
        here = b.select(b.icmp_signed("<", at, last), at, last)
        masked = b.and_(b.bitcast(v.load(pointer, here), bits), exponent)
        found = b.or_(worst, b.sext(b.icmp_unsigned("==", masked, exponent), bits))
        following = b.add(at, const(width))
        at.add_incoming(following, body)
        worst.add_incoming(found, body)
        b.cbranch(b.icmp_signed("<", following, args[3]), body, end)
        b.position_at_end(end)
        packed = b.bitcast(b.icmp_unsigned("!=", found, zero), ir.IntType(width))
        return b.zext(b.icmp_unsigned("!=", packed, ir.Constant(ir.IntType(width), 0)), I64)

    return sig, codegen

"""Building blocks of the loops: typed memory by address, calls by address, and vectors.

On convolutions, LLVM's automatic vectorisation of Numba code reaches a quarter of the FMA peak. A
micro-kernel is therefore one `@intrinsic`, which builds LLVM vector code with the helpers of `Vec`.
Ordinary Python loops unroll the taps while they build the code; Numba's type inference does not see
them, so compiling takes a second instead of many. Tile shapes are literal integers
(`prefer_literal=True`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from conv3d_cli.engine.cpu import fuses
from conv3d_cli.engine.loops.fused import emulated

# Decorates a function that loops share. It is inlined into each of them, because a call between
# Numba functions passes errors on, and loops without Numba cannot raise.
inlined = njit(inline="always", error_model="numpy")

I32, I64 = ir.IntType(32), ir.IntType(64)
REAL_TYPES = {"float32": ir.FloatType(), "float64": ir.DoubleType()}


@intrinsic
def memory(typingctx, address, kind):
    """memory(address, np.float32): the numbers at an address, indexed from 0 without checks."""
    sig = types.CPointer(kind.dtype)(address, kind)

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return sig, codegen


@intrinsic
def real_field(typingctx, step, field):
    """real_field(step, F.name): a float64 field of the step record."""
    sig = types.float64(step, field)

    def codegen(context, builder, sig, args):
        address = builder.gep(builder.bitcast(args[0], I64.as_pointer()), [args[1]])
        return builder.load(builder.bitcast(address, ir.DoubleType().as_pointer()))

    return sig, codegen


@intrinsic
def call(typingctx, address, step):
    """Call the compiled function at an address with this step record."""
    sig = types.void(address, step)

    def codegen(context, builder, sig, args):
        function = ir.FunctionType(ir.VoidType(), [args[1].type])
        builder.call(builder.inttoptr(args[0], function.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def prefetch(typingctx, address):
    """Fetch the cache line at an address into L2."""
    sig = types.void(address)

    def codegen(context, builder, sig, args):
        emit_prefetch(builder, args[0], level=2)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def copy_vector(typingctx, lanes, double, bits, source, target):
    """Copy `lanes` numbers between addresses of any alignment; see `views.stored_bits`."""
    sig = types.void(lanes, double, bits, source, target)
    width, is_double, kind = lanes.literal_value, double.literal_value, bits.literal_value

    def codegen(context, builder, sig, args):
        v = Vec(builder, width, "float64" if is_double else "float32")
        source = builder.inttoptr(args[3], v.stored(kind).as_pointer())
        value = v.load_stored(source, const(0), kind)
        v.store(value, builder.inttoptr(args[4], v.real.as_pointer()), const(0))
        return context.get_dummy_value()

    return sig, codegen


def emit_prefetch(builder: ir.IRBuilder, address: Any, level: int) -> None:
    """Emit code that fetches a cache line into L1 or L2 (`level`); any address is harmless."""
    pointer = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32]), "llvm.prefetch.p0"
    )
    to_read, locality, data = (ir.Constant(I32, n) for n in (0, 4 - level, 1))
    builder.call(function, [builder.inttoptr(address, pointer), to_read, locality, data])


def const(value: int) -> ir.Constant:
    """An int64 constant."""
    return ir.Constant(I64, value)


def emit_cases(
    builder: ir.IRBuilder, number: Any, most: int, end: ir.Block, emit: Callable[[int], None]
) -> None:
    """Emit a switch over `number` with one block for each n from 1 to `most`.

    `emit(n)` fills a block and must branch to `end`, where the builder continues.
    """
    cases = [builder.append_basic_block(f"case_{n}") for n in range(1, most + 1)]
    switch = builder.switch(number, end)
    for n, block in enumerate(cases, 1):
        switch.add_case(const(n), block)
        builder.position_at_end(block)
        emit(n)
    builder.position_at_end(end)


def counted(
    b: ir.IRBuilder, start: Any, stop: Any, step: int, values: list[Any], body: Callable[..., Any]
) -> tuple[Any, list[Any]]:
    """Emit a loop `values = body(k, values)` over k = start, start + step, ...

    It ends when k + step > stop. Returns (the next k, values).
    """
    before = b.block
    head, inside, done = (b.append_basic_block(name) for name in ("head", "inside", "done"))
    b.branch(head)
    b.position_at_end(head)
    k = b.phi(I64)
    carried = [b.phi(value.type) for value in values]
    following = b.add(k, const(step))
    b.cbranch(b.icmp_signed("<=", following, stop), inside, done)
    b.position_at_end(inside)
    new = body(k, list(carried))
    for phi, first, later in zip([k, *carried], [start, *values], [following, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, b.block)
    b.branch(head)
    b.position_at_end(done)
    return k, list(carried)


class Vec:
    """Emits code on vectors of `lanes` numbers of one real type, with an llvmlite IRBuilder.

    Pointers are typed pointers to that real type; offsets are in elements.
    """

    def __init__(self, builder: ir.IRBuilder, lanes: int, real: str = "float32") -> None:
        self.b, self.lanes = builder, lanes
        self.real = REAL_TYPES[real]
        self.bytes = 4 if real == "float32" else 8
        self.type = ir.VectorType(self.real, lanes)
        self.zero = self.splat(0.0)
        self._undef = ir.Constant(self.type, ir.Undefined)
        self._first = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)

    def splat(self, value: float) -> ir.Constant:
        """A constant in every lane."""
        return ir.Constant(self.type, [value] * self.lanes)

    def at(self, pointer: Any, offset: Any) -> Any:
        """A pointer to the vector that begins at pointer[offset]."""
        return self.b.bitcast(self.b.gep(pointer, [offset]), self.type.as_pointer())

    def load(self, pointer: Any, offset: Any) -> Any:
        """Load the vector that begins at pointer[offset]; any alignment."""
        value = self.b.load(self.at(pointer, offset))
        value.align = self.bytes
        return value

    def stored(self, bits: int) -> Any:
        """The type of stored numbers; see `views.stored_bits`."""
        return ir.IntType(abs(bits)) if bits else self.real

    def load_stored(self, pointer: Any, offset: Any, bits: int) -> Any:
        """As `load`, of stored numbers: integers become the real type."""
        if not bits:
            return self.load(pointer, offset)
        kind = ir.VectorType(self.stored(bits), self.lanes)
        value = self.b.load(self.b.bitcast(self.b.gep(pointer, [offset]), kind.as_pointer()))
        value.align = abs(bits) // 8
        return (self.b.sitofp if bits < 0 else self.b.uitofp)(value, self.type)

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        """Store a vector at pointer[offset]; any alignment."""
        self.b.store(value, self.at(pointer, offset)).align = self.bytes

    def stream(self, value: Any, pointer: Any, offset: Any) -> None:
        """As `store`, but bypass the caches; the address must be aligned to the vector's size."""
        store = self.b.store(value, self.at(pointer, offset))
        store.align = self.bytes * self.lanes
        one = ir.Constant(I32, 1)
        store.set_metadata("nontemporal", self.b.module.add_metadata([one]))

    def broadcast(self, pointer: Any, offset: Any) -> Any:
        """pointer[offset] in every lane."""
        return self.spread(self.b.load(self.b.gep(pointer, [offset])))

    def spread(self, scalar: Any) -> Any:
        """A scalar in every lane."""
        first = self.b.insert_element(self._undef, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, self._undef, self._first)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once; without an instruction for it, by other ones, to the same bits.

        LLVM would call the C library for each lane.
        """
        if fuses():
            name = f"llvm.fma.v{self.lanes}f{8 * self.bytes}"
            kind = ir.FunctionType(self.type, [self.type] * 3)
            return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), [a, b, c])
        width = min(self.lanes, 16 // self.bytes)
        function = emulated(self.b.module, self.real, width)
        parts = [
            self.b.call(function, [self.part(value, first, width) for value in (a, b, c)])
            for first in range(0, self.lanes, width)
        ]
        while len(parts) > 1:
            parts = [
                self.shuffle(low, high, list(range(2 * low.type.count)))
                for low, high in zip(parts[::2], parts[1::2], strict=True)
            ]
        return parts[0]

    def part(self, value: Any, first: int, width: int) -> Any:
        """The `width` lanes from `first` on."""
        if width == self.lanes:
            return value
        return self.shuffle(value, value, list(range(first, first + width)))

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """Select lanes by number: 0 to lanes - 1 are those of a, lanes and above those of b."""
        return self.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def add_across(self, vectors: list[Any]) -> Any:
        """Sum the lanes of each of up to `lanes` vectors, into the first lanes of one vector."""
        count = 1
        while count < len(vectors):
            count *= 2
        rest = [*vectors, *[self.zero] * (count - len(vectors))]
        for _ in range(self.lanes.bit_length() - 1):
            pairs = (
                list(zip(rest[::2], rest[1::2], strict=True))
                if len(rest) > 1
                else [(rest[0], rest[0])]
            )
            evens, odds = (list(range(first, 2 * self.lanes, 2)) for first in (0, 1))
            rest = [
                self.b.fadd(self.shuffle(a, b, evens), self.shuffle(a, b, odds)) for a, b in pairs
            ]
        return rest[0]

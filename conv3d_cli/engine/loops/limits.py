"""Loops that `conv3d bench` times to find a CPU's limits: FMAs on registers, copies of memory."""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.simd import I64, Vec, const
from conv3d_cli.engine.step import F


@intrinsic(prefer_literal=True)
def _multiply_add(typingctx, accumulators, lanes, rounds, out):
    """Run `rounds` FMAs on each of `accumulators` independent vectors, and store their sum.

    out : address       of the factor, the addend, and the vector that receives the sum
    """
    sig = types.void(accumulators, lanes, rounds, out)
    count, width = accumulators.literal_value, lanes.literal_value

    def codegen(context, b, sig, args):
        v = Vec(b, width)
        target = b.inttoptr(args[3], v.real.as_pointer())
        # from memory, so that the compiler cannot fold constants
        factor, addend = v.broadcast(target, const(0)), v.broadcast(target, const(1))
        entry, loop, done = b.block, b.append_basic_block("round"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        number = b.phi(I64)
        number.add_incoming(const(0), entry)
        start = [b.phi(v.type) for _ in range(count)]
        for i, phi in enumerate(start):
            # different starts, otherwise the compiler would merge the accumulators
            phi.add_incoming(v.splat(float(i)), entry)
        sums = [v.fma(phi, factor, addend) for phi in start]
        following = b.add(number, const(1))
        number.add_incoming(following, loop)
        for phi, value in zip(start, sums, strict=True):
            phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, args[2]), loop, done)
        b.position_at_end(done)
        total = sums[0]
        for value in sums[1:]:
            total = b.fadd(total, value)
        v.store(total, target, const(2))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _copy_vectors(typingctx, lanes, streaming, source, out, count):
    """Copy `count` groups of four vectors between addresses.

    streaming : int     1: stores bypass the caches
    out : address       aligned to vectors
    """
    sig = types.void(lanes, streaming, source, out, count)
    width, past = lanes.literal_value, streaming.literal_value

    def codegen(context, b, sig, args):
        v = Vec(b, width)
        source, out = (b.inttoptr(a, v.real.as_pointer()) for a in args[2:4])
        entry, loop, done = b.block, b.append_basic_block("group"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        number = b.phi(I64)
        number.add_incoming(const(0), entry)
        for i in range(4):
            at = b.add(b.mul(number, const(4 * width)), const(i * width))
            value = v.load(source, at)
            if past:
                v.stream(value, out, at)
            else:
                v.store(value, out, at)
        following = b.add(number, const(1))
        number.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, args[4]), loop, done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return sig, codegen


def multiply_add(accumulators, lanes):
    """Run `out_depth` rounds of FMAs, with factor and addend at `out` (see `_multiply_add`)."""

    def loops(step):
        _multiply_add(accumulators, lanes, step[F.out_depth], step[F.out])

    return loops


def copy(lanes, streaming):
    """Copy `out_depth` groups of four float32 vectors from `source` to `out`."""

    def loops(step):
        _copy_vectors(lanes, streaming, step[F.source], step[F.out], step[F.out_depth])

    return loops

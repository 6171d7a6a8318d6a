"""What a CPU can do at most: multiply and add from registers, copy from memory to memory. `conv3d bench` measures with these."""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.simd import I64, Vec, const
from conv3d_cli.engine.step import F


@intrinsic(prefer_literal=True)
def _multiply_add(typingctx, accumulators, lanes, rounds, out):
    """`rounds` times an FMA on each of so many independent vectors; their sum goes to the address `out`."""
    sig = types.void(accumulators, lanes, rounds, out)
    count, width = accumulators.literal_value, lanes.literal_value

    def codegen(context, b, sig, args):
        v = Vec(b, width)
        target = b.inttoptr(args[3], v.real.as_pointer())
        # from memory, so that nothing is known while compiling
        factor, addend = v.broadcast(target, const(0)), v.broadcast(target, const(1))
        entry, loop, done = b.block, b.append_basic_block("round"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        number = b.phi(I64)
        number.add_incoming(const(0), entry)
        start = [b.phi(v.type) for _ in range(count)]
        for i, phi in enumerate(start):
            phi.add_incoming(v.splat(float(i)), entry)  # all different, else they would be one
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
    """Copy `count` groups of four vectors; `out` is aligned to vectors. streaming: 1 to store past the caches."""
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
    """Rounds of FMAs: as many as `out_depth` says, with a factor and an addend at `out`."""

    def loops(step):
        _multiply_add(accumulators, lanes, step[F.out_depth], step[F.out])

    return loops


def copy(lanes, streaming):
    """Copy `out_depth` groups of four vectors of float32 from `source` to `out`."""

    def loops(step):
        _copy_vectors(lanes, streaming, step[F.source], step[F.out], step[F.out_depth])

    return loops

"""Products of one small matrix with stacks of columns, to transform weights before a run.

NumPy would use its BLAS, whose threads spin for a tenth of a second after each call, on the CPUs
that the run needs.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.algorithms.fft import PRODUCT_ROWS
from conv3d_cli.engine.loops.simd import I64, Vec, const, memory
from conv3d_cli.engine.step import F


@intrinsic(prefer_literal=True)
def _multiply_rows(typingctx, rows, lanes, double, factors, factor_step, columns, step, terms, out):
    """Compute `rows` rows and `lanes` columns of the product.

    factors : address   (terms, rows), a column of the matrix per term, `factor_step` elements apart
    columns : address   (terms, lanes), rows `step` bytes apart
    out : address       (rows, lanes), rows `step` bytes apart
    """
    sig = types.void(rows, lanes, double, factors, factor_step, columns, step, terms, out)
    count, width, is_double = (t.literal_value for t in sig.args[:3])

    def codegen(context, b, sig, args):
        v = Vec(b, width, "float64" if is_double else "float32")
        realp = v.real.as_pointer()
        factors, factor_step, columns, step, terms, out = args[3:]
        entry, loop, done = b.block, b.append_basic_block("term"), b.append_basic_block("done")
        start = b.inttoptr(factors, realp)
        b.branch(loop)
        b.position_at_end(loop)
        number, from_, column = b.phi(I64), b.phi(realp), b.phi(I64)
        sums = [b.phi(v.type) for _ in range(count)]
        for phi, value in (
            (number, const(0)),
            (from_, start),
            (column, columns),
            *((phi, v.zero) for phi in sums),
        ):
            phi.add_incoming(value, entry)
        loaded = v.load(b.inttoptr(column, realp), const(0))
        more = [v.fma(v.broadcast(from_, const(r)), loaded, total) for r, total in enumerate(sums)]
        following = b.add(number, const(1))
        nexts = (following, b.gep(from_, [factor_step]), b.add(column, step), *more)
        for phi, value in zip((number, from_, column, *sums), nexts, strict=True):
            phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, terms), loop, done)
        b.position_at_end(done)
        for r, total in enumerate(more):
            v.store(total, b.inttoptr(b.add(out, b.mul(step, const(r))), realp), const(0))
        return context.get_dummy_value()

    return sig, codegen


def products(lanes, real):
    """out[i] = matrix @ source[i].

    Weights: the matrix transposed, (terms, rows).
    Source: (stacks, terms, columns). Out: (stacks, rows, columns).
    Parameters (int64): stacks; rows (a multiple of PRODUCT_ROWS); terms; columns (of lanes).
    """
    itemsize = np.dtype(real).itemsize
    double = 1 if itemsize == 8 else 0

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        stacks, rows, terms, columns = parameters[0], parameters[1], parameters[2], parameters[3]
        pitch = columns * itemsize
        for stack in range(stacks):
            source = step[F.source] + stack * terms * pitch
            out = step[F.out] + stack * rows * pitch
            for column in range(0, pitch, lanes * itemsize):
                for row in range(0, rows, PRODUCT_ROWS):
                    _multiply_rows(
                        PRODUCT_ROWS,
                        lanes,
                        double,
                        factors=step[F.weights] + row * itemsize,
                        factor_step=rows,
                        columns=source + column,
                        step=pitch,
                        terms=terms,
                        out=out + row * pitch + column,
                    )

    return loops

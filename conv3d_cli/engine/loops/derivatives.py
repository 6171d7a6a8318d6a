"""Gaussian derivatives of a tile, plane by plane: banks of separable filters that share passes.

Six second derivatives as separate separable filters are 18 passes. Here every plane is filtered
along the height (3 passes), then along the width into a ring of filtered planes (6), and along
depth (6). A pass along height or width computes filters of several orders from the same voxels.

Filters are sums over pairs of voxels at the same distance k from the centre x:

    order 0: x + Σ w0[k] · ((a - x) + (b - x))      order 1: Σ w1[k] · (a - b)
    order 2: Σ w2[k] · ((a - x) + (b - x))          MEAN: w0[0] · x + Σ w0[k] · (a + b)

So a constant has derivatives of exactly 0, however its weights are rounded, and an offset costs no
digits of the differences. What is a derivative already has no offset, and takes MEAN.

A task is a tile of rows and columns, swept along depth. Its parameters stand in the order of
`derivatives.AT`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.derivatives import AT
from conv3d_cli.engine.loops.simd import (
    I64,
    Vec,
    call,
    const,
    copy_vector,
    emit_loop,
    emit_prefetch,
    memory,
)
from conv3d_cli.engine.step import F

ORDER_COUNT = 3
MEAN = 3  # order 0 of what is a derivative already


class Bank(NamedTuple):
    """The filters of a bank, for each field that comes in.

    along_height : (orders, ...)        orders along the height; each makes a field
    along_width : (orders, ...)         for each of these, orders along the width
    along_depth : (order, ...)          for each of these, the order along depth
    vectors : int       of outputs that are computed together along height and width, a power of
                        2, if there are 32 registers
    """

    along_height: tuple[tuple[int, ...], ...]
    along_width: tuple[tuple[int, ...], ...]
    along_depth: tuple[int, ...]
    vectors: int


BANKS = {
    # DD, DW, WW, DH, HW, HH
    "hessian": Bank(((0, 1, 2),), ((0, 1, 2), (MEAN, 1), (MEAN,)), (2, 1, MEAN, 1, MEAN, MEAN), 4),
    # D, W, H
    "gradient": Bank(((0, 1),), ((0, 1), (MEAN,)), (1, MEAN, MEAN), 4),
    "window": Bank(((MEAN,),), ((MEAN,),), (MEAN,), 8),
}
FEW_VECTORS = 2  # if there are fewer registers


def _terms(b: Any, orders: tuple[int, ...], x: Any, first: Any, last: Any) -> dict[int, Any]:
    """The terms of each order that a pair of voxels is weighted in."""
    found = {}
    if 0 in orders or 2 in orders:
        found[0] = found[2] = b.fadd(b.fsub(last, x), b.fsub(first, x))
    if 1 in orders:
        found[1] = b.fsub(last, first)
    if MEAN in orders:
        found[MEAN] = b.fadd(last, first)
    return found


def _finished(b: Any, v: Vec, order: int, x: Any, total: Any, table: Any) -> Any:
    """A filter's output, of the sum over the pairs of voxels."""
    if order == 0:
        return b.fadd(x, total)
    return v.fma(x, v.broadcast(table, const(0)), total) if order == MEAN else total


def _tables(b: Any, v: Vec, weights: Any, weights_step: Any) -> dict[int, Any]:
    """Pointers to the weights of each order."""
    found = {
        order: b.inttoptr(b.add(weights, b.mul(weights_step, const(order))), v.real.as_pointer())
        for order in range(ORDER_COUNT)
    }
    return {**found, MEAN: found[0]}


def _filter_along(bank: tuple[tuple[int, ...], ...], vectors: int, lanes: int, real: str) -> Any:
    """Filter a row of every field along an axis, up to `vectors` vectors of outputs at a time.

    bank : (orders, ...)        see `Bank`
    """

    @intrinsic
    def along(typingctx, source, field, step, weights, weights_step, radius, out, out_field, count):
        """Filter a row.

        field : int         bytes from one field to the next
        step : int          bytes from a voxel to the next one along the axis
        weights : address   (3 orders, weights_step / itemsize), of which [order, k] is used
        count : int         vectors of the row
        """
        sig = types.void(source, field, step, weights, weights_step, radius, out, out_field, count)

        def codegen(context, b, sig, args):
            source, field, step, weights, weights_step, radius, out, out_field, count = args
            v = Vec(b, lanes, real)
            pointer, vector = v.real.as_pointer(), v.bytes * lanes
            tables = _tables(b, v, weights, weights_step)
            stop = b.add(radius, const(1))

            def load(address, n):
                return v.load(b.inttoptr(address, pointer), const(n * lanes))

            def filter_at(together, orders, voxels, out):
                centres = [load(voxels, n) for n in range(together)]

                def body(k, sums):
                    away, sums = b.mul(k, step), list(sums)
                    first, last = b.sub(voxels, away), b.add(voxels, away)
                    factors = [v.broadcast(tables[o], k) for o in orders]
                    for n, x in enumerate(centres):
                        terms = _terms(b, orders, x, load(first, n), load(last, n))
                        for place, o in enumerate(orders):
                            at = n * len(orders) + place
                            sums[at] = v.fma(terms[o], factors[place], sums[at])
                    return sums

                start = [v.zero] * (together * len(orders))
                _, sums = emit_loop(b, const(1), stop, 1, start, body)
                for place, o in enumerate(orders):
                    to = b.inttoptr(b.add(out, b.mul(out_field, const(place))), pointer)
                    for n, x in enumerate(centres):
                        value = _finished(b, v, o, x, sums[n * len(orders) + place], tables[o])
                        v.store(value, to, const(n * lanes))

            made = 0
            for f, orders in enumerate(bank):
                voxels = b.add(source, b.mul(field, const(f)))
                to = b.add(out, b.mul(out_field, const(made)))
                x = const(0)
                together = 2 * vectors
                while together > 1:
                    together //= 2

                    def row(x, _, orders=orders, voxels=voxels, to=to, together=together):
                        at = b.mul(x, const(vector))
                        filter_at(together, orders, b.add(voxels, at), b.add(to, at))
                        return []

                    x, _ = emit_loop(b, x, count, together, [], row)
                made += len(orders)
            return context.get_dummy_value()

        return sig, codegen

    return along


def _filter_planes(orders: tuple[int, ...], planes: int, lanes: int, real: str) -> Any:
    """Filter a row of `planes` neighbouring output planes of every field along depth.

    Neighbouring outputs share the lines that they load. The next vector of each is fetched into L1:
    they are more than the CPU follows by itself.
    """

    @intrinsic
    def across(
        typingctx, lines, at, field, weights, weights_step, radius, out, out_field, out_plane, count
    ):
        """Filter a row.

        lines : address     int64 addresses of the planes' rows, from the first output's first tap
        at : int            bytes from the beginning of each line to that of the first field
        out : address       outputs of a field are `out_plane` bytes apart
        count : int         vectors of the row
        """
        places = at, field, weights, weights_step, radius, out, out_field, out_plane, count
        sig = types.void(lines, *places)

        def codegen(context, b, sig, args):
            lines, at, field, weights, weights_step, radius, out, out_field, out_plane, count = args
            v = Vec(b, lanes, real)
            pointer, vector = v.real.as_pointer(), v.bytes * lanes
            table = b.inttoptr(lines, I64.as_pointer())
            tables = _tables(b, v, weights, weights_step)
            stop = b.add(radius, const(1))

            def filter_at(order, factors, at, out):
                def line(number):
                    address = b.add(b.load(b.gep(table, [number])), at)
                    emit_prefetch(b, b.add(address, const(vector)), level=1)
                    return v.load(b.inttoptr(address, pointer), const(0))

                centres = [line(b.add(radius, const(n))) for n in range(planes)]

                def body(k, values):
                    # the lines from k before each output on, and those up to k after it
                    sums = values[:planes]
                    before = [line(b.sub(radius, k)), *values[planes : 2 * planes - 1]]
                    last = line(b.add(b.add(radius, k), const(planes - 1)))
                    after = [*values[2 * planes - 1 :], last]
                    factor = v.broadcast(factors, k)
                    sums = [
                        v.fma(_terms(b, (order,), x, first, last)[order], factor, s)
                        for x, first, last, s in zip(centres, before, after, sums, strict=True)
                    ]
                    return [*sums, *before[:-1], *after[1:]]

                start = [v.zero] * planes + centres[:-1] + centres[1:]
                _, values = emit_loop(b, const(1), stop, 1, start, body)
                for x, total in zip(centres, values[:planes], strict=True):
                    value = _finished(b, v, order, x, total, factors)
                    v.store(value, b.inttoptr(out, pointer), const(0))
                    out = b.add(out, out_plane)

            for order in orders:

                def row(x, _, order=order, factors=tables[order], at=at, out=out):
                    along = b.mul(x, const(vector))
                    filter_at(order, factors, b.add(at, along), b.add(out, along))
                    return []

                emit_loop(b, const(0), count, 1, [], row)
                at, out = b.add(at, field), b.add(out, out_field)
            return context.get_dummy_value()

        return sig, codegen

    return across


def pack(lanes, real):
    """Copy the next plane of a tile, with what its filters reach, into the scratch memory.

    Fields are channels of the source. Where a table says -1 stands the fill value.
    """
    double = 1 if real == "float64" else 0
    kind, size = np.dtype(real).type, 8 if double else 4

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        rows = memory(step[F.rows], np.int64)
        columns = memory(step[F.columns], np.int64)
        plane = memory(step[F.planes], np.int64)[p[AT.position]]
        fill = memory(step[F.parameters] + 8 * AT.fill, np.float64)[0]
        reach_h, reach_w = p[AT.radius_h], p[AT.radius_w]
        first_row = p[AT.row] + p[AT.largest_h] - reach_h
        first_column = p[AT.column] + p[AT.largest_w] - reach_w
        length = p[AT.columns] + 2 * reach_w
        run_from = min(max(p[AT.run_start] - first_column, 0), length)
        run_to = max(min(p[AT.run_stop] - first_column, length), run_from)
        for f in range(p[AT.fields]):
            for y in range(p[AT.rows] + 2 * reach_h):
                row = rows[first_row + y]
                to = step[F.scratch] + p[AT.packed_field] * f + p[AT.packed_row] * y
                out = memory(to, kind)
                if plane < 0 or row < 0:
                    for x in range(length):
                        out[x] = kind(fill)
                    continue
                line = step[F.source] + size * (plane + row + f * p[AT.field_step])
                source = memory(line, kind)
                for x in range(run_from):
                    at = columns[first_column + x]
                    out[x] = source[at] if at >= 0 else kind(fill)
                x = run_from
                if run_to - run_from >= lanes:
                    begin = line + size * (columns[first_column + run_from] - run_from)
                    while x < run_to:
                        x = min(x, run_to - lanes)  # the last vector overlaps another one
                        copy_vector(lanes, double, 0, begin + size * x, to + size * x)
                        x += lanes
                while x < length:
                    at = columns[first_column + x]
                    out[x] = source[at] if at >= 0 else kind(fill)
                    x += 1

    return loops


def filter_plane(bank, wide, lanes, real):
    """Filter the packed plane along the height, then along the width into its slot of the ring.

    wide : int      1 if there are 32 registers
    """
    size = 8 if real == "float64" else 4
    heights, widths, depths, vectors = BANKS[bank]
    together = vectors if wide else FEW_VECTORS
    along_height = _filter_along(heights, together, lanes, real)
    along_width = _filter_along(widths, together, lanes, real)
    made = len(depths)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        order, row, half = p[AT.weights_order], p[AT.packed_row], p[AT.half_field]
        weights_h = step[F.weights] + p[AT.weights] + ORDER_COUNT * order
        weights_w = weights_h + ORDER_COUNT * order
        half_at = step[F.scratch] + p[AT.half_at]
        ring_at = step[F.scratch] + p[AT.ring_at] + p[AT.slot] * p[AT.ring_plane]
        whole = (p[AT.columns] + 2 * p[AT.radius_w] + lanes - 1) // lanes
        inner = (p[AT.columns] + lanes - 1) // lanes
        for f in range(p[AT.fields]):
            packed = step[F.scratch] + f * p[AT.packed_field] + row * p[AT.radius_h]
            ring = ring_at + f * made * p[AT.ring_field]
            for y in range(p[AT.rows]):
                along_height(
                    packed + row * y,
                    0,
                    row,
                    weights_h,
                    order,
                    p[AT.radius_h],
                    half_at,
                    half,
                    whole,
                )
                along_width(
                    half_at + size * p[AT.radius_w],
                    half,
                    size,
                    weights_w,
                    order,
                    p[AT.radius_w],
                    ring + p[AT.ring_row] * y,
                    p[AT.ring_field],
                    inner,
                )

    return loops


def filter_depth(bank, planes, lanes, real):
    """Filter a row of `planes` output planes along depth, from the ring: a row of each field."""
    orders = BANKS[bank].along_depth
    across = _filter_planes(orders, planes, lanes, real)
    made = len(orders)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        weights = step[F.weights] + p[AT.weights]
        vectors = (p[AT.columns] + lanes - 1) // lanes
        ring = step[F.scratch] + p[AT.ring_at] + p[AT.ring_row] * p[AT.block_row]
        lines_at = step[F.scratch] + p[AT.lines_at]
        lines = memory(lines_at, np.int64)
        slot = p[AT.plane] % p[AT.ring]
        for i in range(planes + 2 * p[AT.radius_d]):
            lines[i] = ring + slot * p[AT.ring_plane]
            slot = slot + 1 if slot + 1 < p[AT.ring] else 0
        sums = step[F.scratch] + p[AT.sums_at]
        for f in range(p[AT.fields]):
            across(
                lines_at,
                p[AT.ring_field] * f * made,
                p[AT.ring_field],
                weights,
                p[AT.weights_order],
                p[AT.radius_d],
                sums + p[AT.sums_field] * f * made,
                p[AT.sums_field],
                p[AT.sums_plane],
                vectors,
            )

    return loops


def sweep(planes):
    """Sweep a tile along depth, for each scale: pack → absorb → convolve → store.

    planes : int        that `convolve` computes at once
    """

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        table = memory(step[F.window], np.int64)
        for scale in range(p[AT.scales]):
            own = scale * AT.scale_count
            for i in range(AT.scale_count):
                p[AT.first_of_scale + i] = table[own + i]
            p[AT.scale] = scale
            radius, ring = p[AT.radius_d], p[AT.ring]
            packed, plane = 0, 0
            while plane < p[AT.depth]:
                count = min(planes, p[AT.depth] - plane)
                while packed < plane + count + 2 * radius:
                    p[AT.position] = packed + p[AT.largest_d] - radius
                    p[AT.slot] = packed % ring
                    call(step[F.pack], step)
                    call(step[F.absorb], step)
                    packed += 1
                p[AT.plane], p[AT.count] = plane, count
                for y in range(p[AT.rows]):
                    p[AT.block_row] = y
                    call(step[F.convolve], step)
                    call(step[F.store], step)
                plane += count

    return loops

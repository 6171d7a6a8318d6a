"""The stencil: all taps of a small kernel of one channel, unrolled, in a register tile of planes x
rows x vectors.

Three planes of outputs share the planes of input that they read, so each line comes from L2 less
often than in the spatial micro-kernel. A voxel's terms are added in the same order, so the sums
have the same bits.

It reads rows of the source where they lie, and stores sums at once if nothing else is done to them:
see `loops/drive.py`. (3^3 on 256^3 float32, one thread: 12 instead of 18 ms of the spatial
micro-kernel; a copy takes 7. Xeon with AVX-512, 2026-11.) Integers are packed, since each would be
converted some ten times.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.ahead import LINE, find_lines, find_planes
from conv3d_cli.engine.loops.simd import I64, Vec, const, emit_prefetch, inlined, memory
from conv3d_cli.engine.step import F


@intrinsic(prefer_literal=True)
def _sum_window(
    typingctx,
    depth,
    height,
    width,
    planes,
    rows,
    columns,
    lanes,
    double,
    tables,
    row,
    column,
    apart,
    weights,
    sums,
    sums_plane,
    sums_row,
    streams,
    ahead,
    ahead_bytes,
):
    """Sum depth x height x width taps for planes x rows x columns vectors.

    tables : address    int64, of the table of lines of each plane of the window
    row : int           index in these tables of the first output's first line
    column, apart : int     outputs from the beginning of a line to the first vector, and from it to
                        the second one
    weights : address   (depth, width, height)
    sums : address      of the first column; planes and rows are `sums_plane` and `sums_row` bytes
                        apart
    streams : int       1: bypass the caches; the addresses are aligned
    ahead : address     of lines to prefetch, int64 (planes, rows)
    ahead_bytes : int   of a voxel in them
    """
    shape = depth, height, width, planes, rows, columns, lanes, double
    places = tables, row, column, apart, weights, sums, sums_plane, sums_row, streams
    sig = types.void(*shape, *places, ahead, ahead_bytes)
    kd, kh, kw, P, R, C, size, is_double = (literal.literal_value for literal in shape)

    def codegen(context, b, sig, args):
        v = Vec(b, size, "float64" if is_double else "float32")
        tables, row, column, apart, weights, sums, sums_plane, sums_row = args[8:16]
        streams, ahead, ahead_bytes = args[16:]
        pointer, realp = I64.as_pointer(), v.real.as_pointer()
        tables, ahead = b.inttoptr(tables, pointer), b.inttoptr(ahead, pointer)
        weights = b.inttoptr(weights, realp)
        starts = [b.add(column, b.mul(apart, const(c))) for c in range(C)]
        acc = {(p, r, c): v.zero for p in range(P) for r in range(R) for c in range(C)}
        for z in range(P + kd - 1):
            table = b.inttoptr(b.load(b.gep(tables, [const(z)])), pointer)
            users = [(p, z - p) for p in range(P) if 0 <= z - p < kd]
            if z < P:
                for r in range(R):
                    line = b.load(b.gep(ahead, [const(z * R + r)]))
                    for start in starts:
                        emit_prefetch(b, b.add(line, b.mul(ahead_bytes, start)), level=2)
            lines = []
            for i in range(R + kh - 1):
                address = b.load(b.gep(table, [b.add(row, const(i))]))
                line = b.inttoptr(address, realp)
                lines.append([b.gep(line, [start]) for start in starts])
            for x in range(kw):
                taps = {
                    (d, y): v.broadcast(weights, const((d * kw + x) * kh + y))
                    for d in sorted({d for _, d in users})
                    for y in range(kh)
                }
                for i, line in enumerate(lines):
                    xs = [v.load(vector, const(x)) for vector in line]
                    for p, d in users:
                        for r in range(R):
                            if 0 <= i - r < kh:
                                for c in range(C):
                                    acc[p, r, c] = v.fma(xs[c], taps[d, i - r], acc[p, r, c])

        def put(store):
            for p in range(P):
                for r in range(R):
                    offset = b.add(b.mul(sums_plane, const(p)), b.mul(sums_row, const(r)))
                    to = b.inttoptr(b.add(sums, offset), realp)
                    for c, start in enumerate(starts):
                        store(acc[p, r, c], to, start)

        with b.if_else(b.icmp_signed("!=", streams, const(0))) as (bypass, plain):
            with bypass:
                put(v.stream)
            with plain:
                put(v.store)
        return context.get_dummy_value()

    return sig, codegen


def sum_stencil(depth, height, width, planes, rows, columns, lanes, real):
    """Sum a step: all register tiles of a block of rows.

    depth, height, width : int      taps of the kernel
    planes, rows, columns : int     register tile; a step has at most `planes` planes
    Weights: (groups, depth, width, height).
    Workspace: addresses of lines that are prefetched, (planes, rows), and of their planes, then
    those of the tables of the window's packed lines, and of its lines in the source.

    The last step of a task may have fewer planes; then the sums of the others are not stored.
    """
    double = 1 if real == "float64" else 0
    itemsize = 8 if double else 4
    window = planes + depth - 1

    @inlined
    def sum_columns(
        step, table, row, column, stop, gap, gap_stop, weights, to, to_plane, to_row, streams
    ):
        """Sum the outputs column <= x < stop, but gap <= x < gap_stop, of `rows` rows.

        row : int                       the first of the rows
        to, to_plane, to_row : int      address and strides of column 0 of its sums
        """
        while column < stop:
            second = column + lanes
            if column < gap <= second:
                second = gap_stop
            if columns > 1 and second < stop:
                _sum_window(
                    depth,
                    height,
                    width,
                    planes,
                    rows,
                    columns,
                    lanes,
                    double,
                    tables=table,
                    row=row,
                    column=column,
                    apart=second - column,
                    weights=weights,
                    sums=to,
                    sums_plane=itemsize * to_plane,
                    sums_row=itemsize * to_row,
                    streams=streams,
                    ahead=step[F.workspace],
                    ahead_bytes=step[F.source_itemsize],
                )
                column = second + lanes
                if second < gap <= column:
                    column = gap_stop
            else:
                _sum_window(
                    depth,
                    height,
                    width,
                    planes,
                    rows,
                    1,
                    lanes,
                    double,
                    tables=table,
                    row=row,
                    column=column,
                    apart=0,
                    weights=weights,
                    sums=to,
                    sums_plane=itemsize * to_plane,
                    sums_row=itemsize * to_row,
                    streams=streams,
                    ahead=step[F.workspace],
                    ahead_bytes=step[F.source_itemsize],
                )
                column = second

    def loops(step):
        weights = step[F.weights] + itemsize * step[F.group] * depth * height * width
        begin, block_rows, end = step[F.block_row], step[F.block_rows], step[F.width]
        ahead = step[F.workspace]
        starts = ahead + 8 * planes * rows
        packed = starts + 8 * planes
        in_place = packed + 8 * window
        offsets = memory(step[F.window], np.int64)
        tables = memory(packed, np.int64)
        plane_bytes, lines_bytes = itemsize * step[F.plane_step], 8 * step[F.lines_step]
        for z in range(window):
            slot = offsets[z] // plane_bytes
            tables[z] = step[F.packed_lines] + slot * lines_bytes
            tables[window + z] = step[F.source_lines] + slot * lines_bytes
        find_planes(step, planes, starts)
        inner, inner_stop = step[F.inner_column], step[F.inner_column_stop]
        if inner_stop == 0 and step[F.stores_sums] != 0 and step[F.line_column] == 0:
            # Whole vectors of packed lines; they would be one more if they began elsewhere.
            in_place, inner_stop = packed, end // lanes * lanes
        left = inner_stop if inner == 0 else 0  # the first of the other columns
        # Sums are stored at once if register tiles are full; those of the other columns, too, if
        # there are whole vectors of them.
        stores = inner_stop > 0 and step[F.stores_sums] != 0
        stores &= step[F.step_planes] == planes and block_rows % rows == 0
        # Parts of lines that bypass the caches are slow, unless they follow each other as in
        # `store` (AVX2: 3^3 on 256^3 took 1.5 times as long).
        stores &= step[F.streaming] == 0 or lanes * itemsize == LINE
        stores_all = stores and inner % lanes == 0 and (end - inner_stop) % lanes == 0
        step[F.stored_column], step[F.stored_column_stop] = 0, 0
        if stores_all:
            step[F.stored_column_stop] = end
        elif stores:
            step[F.stored_column], step[F.stored_column_stop] = inner, inner_stop
        out_plane, out_row = step[F.out_plane_step], step[F.out_row_step]
        first = step[F.group] * step[F.out_filter_step] + step[F.column]
        first += step[F.step_plane] * out_plane + (step[F.row] + begin) * out_row
        out, sums = step[F.out] + itemsize * first, step[F.accumulator]
        sums_plane, sums_row = step[F.acc_plane_step], step[F.acc_row_step]
        for j in range(0, block_rows, rows):
            row = begin + j
            find_lines(step, row, rows, planes, starts, ahead)
            to, to_plane, to_row, streams = sums, sums_plane, sums_row, 0
            if stores_all:
                to, to_plane, to_row, streams = out, out_plane, out_row, step[F.streaming]
            sum_columns(
                step, packed, row, left, end, inner, inner_stop, weights, to, to_plane, to_row,
                streams,
            )  # fmt: skip
            if stores:
                to, to_plane, to_row, streams = out, out_plane, out_row, step[F.streaming]
            sum_columns(
                step, in_place, row, inner, inner_stop, 0, 0, weights, to, to_plane, to_row, streams
            )
            out += itemsize * rows * out_row
            sums += itemsize * rows * sums_row

    return loops

"""The spatial micro-kernel: vectors along the width, a register tile of output rows x vectors.

The taps of a kernel are a list of *items*: up to `taps` consecutive kernel rows at one (channel,
depth, column). Each loaded input vector serves all output rows that read it, so loads are rarer
than FMAs. Items are offsets, so dilation, strides along depth and width, and skipped zero taps cost
the loop nothing.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.ahead import fetch_rows
from conv3d_cli.engine.loops.simd import I64, Vec, const, memory
from conv3d_cli.engine.step import F


@intrinsic(prefer_literal=True)
def _sum_items(
    typingctx,
    taps,
    row_stride,
    rows,
    columns,
    lanes,
    double,
    source,
    tap_step,
    offsets,
    planes,
    window,
    weights,
    count,
    first,
    sums,
    sums_row,
):
    """Add `count` items to rows x columns vectors of sums.

    source : address            of the window of output (0, 0)
    tap_step : int              bytes from one kernel row to the next
    offsets, planes : address   int64 (count,); item i is at
                                source + offsets[i] + window[planes[i]], in bytes
    weights : address           (count, taps)
    first : int                 1: overwrite the sums instead of adding to them
    sums : address              rows are `sums_row` bytes apart
    """
    literals = taps, row_stride, rows, columns, lanes, double
    places = source, tap_step, offsets, planes, window
    sig = types.void(*literals, *places, weights, count, first, sums, sums_row)
    kh, stride, R, C, width, is_double = (literal.literal_value for literal in literals)

    def codegen(context, b, sig, args):
        if kh == 0:
            return context.get_dummy_value()
        v = Vec(b, width, "float64" if is_double else "float32")
        source, tap_step, offsets, planes, window, weights, count, first, sums, sums_row = args[6:]
        i64p, realp = I64.as_pointer(), v.real.as_pointer()
        offsets, planes, window = (b.inttoptr(a, i64p) for a in (offsets, planes, window))
        weights = b.inttoptr(weights, realp)
        entry, loop, done = b.block, b.append_basic_block("item"), b.append_basic_block("done")
        b.branch(loop)

        b.position_at_end(loop)
        item = b.phi(I64)
        item.add_incoming(const(0), entry)
        start = [[b.phi(v.type) for _ in range(C)] for _ in range(R)]
        for row in start:
            for phi in row:
                phi.add_incoming(v.zero, entry)
        acc = [list(row) for row in start]
        plane = b.load(b.gep(window, [b.load(b.gep(planes, [item]))]))
        base = b.add(b.add(source, plane), b.load(b.gep(offsets, [item])))
        taps_at = b.gep(weights, [b.mul(item, const(kh))])
        ws = [v.broadcast(taps_at, const(k)) for k in range(kh)]
        for ih in range((R - 1) * stride + kh):
            users = [(r, ih - r * stride) for r in range(R) if 0 <= ih - r * stride < kh]
            if not users:
                continue
            line = b.inttoptr(b.add(base, b.mul(tap_step, const(ih))), realp)
            xs = [v.load(line, const(width * c)) for c in range(C)]
            for r, k in users:
                for c in range(C):
                    acc[r][c] = v.fma(xs[c], ws[k], acc[r][c])
        following = b.add(item, const(1))
        item.add_incoming(following, b.block)
        for r in range(R):
            for c in range(C):
                start[r][c].add_incoming(acc[r][c], b.block)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)

        b.position_at_end(done)
        lines = [b.inttoptr(b.add(sums, b.mul(sums_row, const(r))), realp) for r in range(R)]
        with b.if_else(b.icmp_signed("!=", first, const(0))) as (overwrite, add):
            with overwrite:
                for r in range(R):
                    for c in range(C):
                        v.store(acc[r][c], lines[r], const(width * c))
            with add:
                for r in range(R):
                    for c in range(C):
                        total = b.fadd(v.load(lines[r], const(width * c)), acc[r][c])
                        v.store(total, lines[r], const(width * c))
        return context.get_dummy_value()

    return sig, codegen


def sum_taps(taps, short, row_stride, rows, columns, lanes, real):
    """Sum a step: items in chunks, over all filters, planes, row blocks and vectors of the tile.

    taps : int              kernel rows of a long item
    short : int             1 if short items, of one row less, follow the long ones, in own chunks
    row_stride : int        kernel rows from one output row of a register tile to the next
    rows, columns : int     register tile, output rows x vectors
    Parameters (int64): taps in total; long items; chunks; bytes from one kernel row to the next;
    output rows from one row of a register tile to the next (the dilation, so that they share
    input); addresses of the items' offsets in bytes, the items' planes (indices into the window),
    and the chunks' starts (chunks + 1).
    Weights: (groups, filters, taps in total).
    """
    double = 1 if real == "float64" else 0
    itemsize = 8 if double else 4
    less = columns if short else max(columns - 1, 1)
    fewer = taps - 1 if short else 0  # `_sum_items` emits no code for 0 taps

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        all_taps, long_items, chunks = parameters[0], parameters[1], parameters[2]
        tap_step, gap = parameters[3], parameters[4]
        offsets, planes = parameters[5], parameters[6]
        starts = memory(parameters[7], np.int64)
        filters = step[F.filters]
        vectors = (step[F.width] + lanes - 1) // lanes
        # `narrow` blocks of `less` vectors, so that the others are full; a last block may extend
        # beyond the row's end
        blocks = (vectors + columns - 1) // columns
        narrow = blocks * columns - vectors if less < columns else 0
        if narrow > blocks:
            narrow = 0
        height = step[F.block_rows]
        row_bytes = itemsize * step[F.row_step] * step[F.stride_h]
        block_source = step[F.scratch] + step[F.block_row] * row_bytes
        sums_row = itemsize * step[F.acc_row_step]
        for i in range(step[F.step_planes]):
            here = step[F.window] + 8 * i * step[F.stride_d]
            for tile in range((height + rows * gap - 1) // (rows * gap) * gap):
                j = tile // gap * rows * gap + tile % gap
                if j >= height:
                    continue
                column = 0
                for block in range(blocks):
                    source = block_source + j * row_bytes + itemsize * column
                    tile_columns = lanes * (less if block < narrow else columns)
                    fetch_rows(step, j, gap, rows, column, tile_columns)
                    for f in range(filters):
                        weights = (
                            step[F.weights] + itemsize * (step[F.group] * filters + f) * all_taps
                        )
                        sums = step[F.accumulator] + j * sums_row
                        sums += itemsize * (
                            f * step[F.acc_filter_step] + i * step[F.acc_plane_step] + column
                        )
                        for chunk in range(chunks):
                            at, count = starts[chunk], starts[chunk + 1] - starts[chunk]
                            first = 1 if chunk == 0 else 0
                            if short != 0 and at >= long_items:
                                rest = weights + itemsize * (
                                    long_items * taps + (at - long_items) * fewer
                                )
                                _sum_items(
                                    fewer,
                                    row_stride,
                                    rows,
                                    columns,
                                    lanes,
                                    double,
                                    source=source,
                                    tap_step=tap_step,
                                    offsets=offsets + 8 * at,
                                    planes=planes + 8 * at,
                                    window=here,
                                    weights=rest,
                                    count=count,
                                    first=first,
                                    sums=sums,
                                    sums_row=gap * sums_row,
                                )
                            elif block < narrow:
                                _sum_items(
                                    taps,
                                    row_stride,
                                    rows,
                                    less,
                                    lanes,
                                    double,
                                    source=source,
                                    tap_step=tap_step,
                                    offsets=offsets + 8 * at,
                                    planes=planes + 8 * at,
                                    window=here,
                                    weights=weights + itemsize * at * taps,
                                    count=count,
                                    first=first,
                                    sums=sums,
                                    sums_row=gap * sums_row,
                                )
                            else:
                                _sum_items(
                                    taps,
                                    row_stride,
                                    rows,
                                    columns,
                                    lanes,
                                    double,
                                    source=source,
                                    tap_step=tap_step,
                                    offsets=offsets + 8 * at,
                                    planes=planes + 8 * at,
                                    window=here,
                                    weights=weights + itemsize * at * taps,
                                    count=count,
                                    first=first,
                                    sums=sums,
                                    sums_row=gap * sums_row,
                                )
                    column += tile_columns

    return loops

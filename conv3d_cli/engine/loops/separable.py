"""Separable kernels: a pass along each axis, fused so that memory is read once and written once.

When a plane has been packed, `filter_plane` filters it along the height, then along the width, into
a ring of filtered planes; `filter_depth` computes a step's output planes from the ring. All three
passes keep `rows` vectors of sums in registers. Along height and depth these are neighbouring
outputs, which share the rows that they load.

A symmetric filter along height or depth is folded: the two values with the same weight are added
first. That halves the multiplications, and some CPUs have separate units for additions (a Gaussian
of 41 taps per axis: 29 instead of 34 ms, Zen 4, 2026-11). Along the width it gains nothing, since
loads are the bottleneck there.

Loops are compiled for a small number of taps (`known`): each line is then loaded once, into a
register, and no loop runs over the taps (sigma 1: 0.87 times as long).

The pass along the height reads rows of the source where they lie, and the pass along depth stores
its sums at once if nothing else is done to them: see `loops/drive.py`. Tiles are as wide as the
caches allow, since short rows are slow to store past the caches.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.ahead import LINE, bytes_ahead, fetch_lines, fetch_part
from conv3d_cli.engine.loops.simd import (
    I64,
    Vec,
    const,
    emit_loop,
    emit_prefetch,
    inlined,
    memory,
)
from conv3d_cli.engine.step import F

BLOCK = 4  # taps unrolled if the filter is not folded


def _put(b, v, sums, first, held, held_row, out, out_row, streams):
    """Emit code that stores sums, or if `first` is 0, the sums of them and those that are held.

    held, out : address     of vectors that are `held_row` and `out_row` bytes apart
    streams : int           1: bypass the caches; `out` is aligned
    """
    pointer = v.real.as_pointer()

    def lines(address, row):
        return [b.inttoptr(b.add(address, b.mul(row, const(r))), pointer) for r in range(len(sums))]

    before = b.block
    with b.if_then(b.icmp_signed("==", first, const(0))):
        added = [
            b.fadd(v.load(line, const(0)), value)
            for line, value in zip(lines(held, held_row), sums, strict=True)
        ]
        inside = b.block
    totals = []
    for value, total in zip(sums, added, strict=True):
        phi = b.phi(v.type)
        phi.add_incoming(value, before)
        phi.add_incoming(total, inside)
        totals.append(phi)
    with b.if_else(b.icmp_signed("!=", streams, const(0))) as (bypass, plain):
        for branch, store in ((bypass, v.stream), (plain, v.store)):
            with branch:
                for line, total in zip(lines(out, out_row), totals, strict=True):
                    store(total, line, const(0))


def _line(b, v, address, bits=0):
    """Emit code that loads the vector at an address, and prefetches the next one into L1.

    bits : int      of the stored numbers, see `views.stored_bits`

    The lines are in L2, and more of them than the CPU's own prefetcher follows (without the
    prefetch, a Gaussian of 41 taps per axis took 42 instead of 29 ms; Zen 4, 2026-11).
    """
    emit_prefetch(b, b.add(address, const(64)), level=1)
    return v.load_stored(b.inttoptr(address, v.stored(bits).as_pointer()), const(0), bits)


@intrinsic(prefer_literal=True)
def _fold_rows(
    typingctx,
    rows,
    lanes,
    double,
    halve,
    bits,
    known,
    lines,
    at,
    weights,
    taps,
    begin,
    end,
    centre,
    first,
    held,
    held_row,
    out,
    out_row,
    streams,
):
    """Sum a symmetric filter for a vector of each of `rows` outputs.

    Output r is the sum over begin <= k < end of
    weights[k] * (line[r + k] + line[r + taps - 1 - k]).
    halve : int         1: halve the lines when they are loaded, so that no sum of two overflows
    bits : int          of the lines, see `views.stored_bits`
    known : int         `taps` as a constant, all of which are summed; 0: any
    lines : address     of the lines' addresses, int64
    at : int            bytes from the beginning of each line
    centre : int        1: also add the middle tap
    first, held, held_row, out, out_row, streams    see `_put`
    """
    literals = rows, lanes, double, halve, bits, known
    pairs = weights, taps, begin, end, centre
    sig = types.void(*literals, lines, at, *pairs, first, held, held_row, out, out_row, streams)
    R, width, is_double, is_halved, kind, count = (literal.literal_value for literal in literals)

    def codegen(context, b, sig, args):
        v = Vec(b, width, "float64" if is_double else "float32")
        lines, at, weights, taps, begin, end, centre = args[6:13]
        lines = b.inttoptr(lines, I64.as_pointer())
        weights = b.inttoptr(weights, v.real.as_pointer())
        last = b.sub(taps, const(1))

        def line(index):
            value = _line(b, v, b.add(b.load(b.gep(lines, [index])), at), kind)
            return b.fmul(value, v.splat(0.5)) if is_halved else value

        if count:
            # Each line is loaded once, and `count` of them are in registers.
            values = [line(const(i)) for i in range(count - 1)]
            ws = [v.broadcast(weights, const(k)) for k in range((count + 1) // 2)]
            sums = []
            for r in range(R):
                values.append(line(const(r + count - 1)))
                total = v.zero
                for k in range(count // 2):
                    total = v.fma(b.fadd(values[r + k], values[r + count - 1 - k]), ws[k], total)
                if count % 2:
                    total = v.fma(values[r + count // 2], ws[count // 2], total)
                sums.append(total)
            _put(b, v, sums, *args[13:])
            return context.get_dummy_value()

        def pairs(count):
            def body(k, values):
                sums, front, back = values[:R], values[R : 2 * R - 1], values[2 * R - 1 :]
                for i in range(count):
                    here = b.add(k, const(i))
                    front = [*front, line(b.add(here, const(R - 1)))]  # lines k ... k+R-1
                    back = [line(b.sub(last, here)), *back]  # lines taps-1-k ... taps-1-k+R-1
                    weight = v.broadcast(weights, here)
                    sums = [
                        v.fma(b.fadd(x, y), weight, s)
                        for x, y, s in zip(front, back, sums, strict=True)
                    ]
                    front, back = front[1:], back[:-1]
                return [*sums, *front, *back]

            return body

        # the lines that the first pair shares with later pairs
        front = [line(b.add(begin, const(r))) for r in range(R - 1)]
        back = [line(b.add(b.sub(last, begin), const(r))) for r in range(1, R)]
        values = [v.zero] * R + front + back
        unrolled = max(R, 4)
        k, values = emit_loop(b, begin, end, unrolled, values, pairs(unrolled))
        k, values = emit_loop(b, k, end, 1, values, pairs(1))
        sums = values[:R]

        def middle(_, sums):
            half = b.lshr(taps, const(1))
            weight = v.broadcast(weights, half)
            return [v.fma(line(b.add(half, const(r))), weight, s) for r, s in enumerate(sums)]

        _, sums = emit_loop(b, const(0), centre, 1, sums, middle)  # once or never
        _put(b, v, sums, *args[13:])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _sum_rows(
    typingctx,
    rows,
    lanes,
    double,
    shared,
    bits,
    known,
    lines,
    at,
    stride,
    dilation,
    weights,
    begin,
    end,
    first,
    held,
    held_row,
    out,
    out_row,
    streams,
):
    """Sum a filter for a vector of each of `rows` outputs.

    Output r is the sum over begin <= k < end of weights[k] * line[r * stride + k * dilation].
    shared : int        1: stride and dilation are 1, so outputs share lines
    The other parameters are those of `_fold_rows`.
    """
    literals = rows, lanes, double, shared, bits, known
    taps = stride, dilation, weights, begin, end
    sig = types.void(*literals, lines, at, *taps, first, held, held_row, out, out_row, streams)
    R, width, is_double, is_shared, kind, count = (literal.literal_value for literal in literals)

    def codegen(context, b, sig, args):
        v = Vec(b, width, "float64" if is_double else "float32")
        lines, at, stride, dilation, weights, begin, end = args[6:13]
        lines = b.inttoptr(lines, I64.as_pointer())
        weights = b.inttoptr(weights, v.real.as_pointer())
        starts = [b.mul(stride, const(r)) for r in range(R)]

        def line(index):
            return _line(b, v, b.add(b.load(b.gep(lines, [index])), at), kind)

        def block(count):
            def body(k, sums):
                if is_shared:
                    taps = [v.broadcast(weights, b.add(k, const(i))) for i in range(count)]
                    for at_line in range(R + count - 1):
                        x = line(b.add(k, const(at_line)))
                        for r in range(R):
                            if 0 <= at_line - r < count:
                                sums[r] = v.fma(x, taps[at_line - r], sums[r])
                    return sums
                weight, along = v.broadcast(weights, k), b.mul(k, dilation)
                return [
                    v.fma(line(b.add(along, start)), weight, s)
                    for start, s in zip(starts, sums, strict=True)
                ]

            return body

        k, sums = begin, [v.zero] * R
        if count:
            sums = block(count)(const(0), sums)
        else:
            if is_shared:
                k, sums = emit_loop(b, k, end, BLOCK, sums, block(BLOCK))
            k, sums = emit_loop(b, k, end, 1, sums, block(1))
        _put(b, v, sums, *args[13:])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _sum_columns(
    typingctx,
    rows,
    lanes,
    double,
    known,
    source,
    row,
    offsets,
    weights,
    begin,
    end,
    first,
    out,
    out_row,
):
    """Sum a filter along the width for a vector of each of `rows` rows.

    Output r is the sum over begin <= k < end of
    weights[k] * (the vector at source + r * row + offsets[k]).
    row : int           bytes from one row to the next
    offsets : address   int64, in bytes
    The other parameters are those of `_fold_rows`. Most of these loads cross a cache line, so loads
    are the bottleneck, not multiplications.
    """
    literals = rows, lanes, double, known
    sig = types.void(*literals, source, row, offsets, weights, begin, end, first, out, out_row)
    R, width, is_double, taps = (literal.literal_value for literal in literals)

    def codegen(context, b, sig, args):
        v = Vec(b, width, "float64" if is_double else "float32")
        source, row, offsets, weights, begin, end, first, out, out_row = args[4:]
        offsets = b.inttoptr(offsets, I64.as_pointer())
        realp = v.real.as_pointer()
        weights = b.inttoptr(weights, realp)
        bases = [b.add(source, b.mul(row, const(r))) for r in range(R)]

        def block(count):
            def body(k, sums):
                for i in range(count):
                    here = b.add(k, const(i))
                    weight = v.broadcast(weights, here)
                    offset = const(i * v.bytes) if taps else b.load(b.gep(offsets, [here]))
                    xs = [
                        v.load(b.inttoptr(b.add(base, offset), realp), const(0)) for base in bases
                    ]
                    sums = [v.fma(x, weight, s) for x, s in zip(xs, sums, strict=True)]
                return sums

            return body

        if taps:
            sums = block(taps)(const(0), [v.zero] * R)
        else:
            k, sums = emit_loop(b, begin, end, BLOCK, [v.zero] * R, block(BLOCK))
            k, sums = emit_loop(b, k, end, 1, sums, block(1))
        _put(b, v, sums, first, out, out_row, out, out_row, const(0))
        return context.get_dummy_value()

    return sig, codegen


@inlined
def _next_vector(step, column, lanes):
    """The column of the vector of outputs that follows one.

    The first vector begins at column 0, the others at whole vectors before and behind
    `line_column`, so that they are aligned in the output and in the ring. A vector may be shorter
    than a cache line.
    """
    first = step[F.line_column] % lanes
    return first if column < first else column + lanes


def filter_plane(rows, fold_h, shared_h, known_h, known_w, chunk, folded_chunk, lanes, bits, real):
    """The `absorb` function: filter a plane along height and width into the ring.

    rows : int                  vectors of sums in registers
    fold_h : int                1 if the filters along the height are folded
    shared_h : int              1 if stride and dilation along the height are 1
    known_h, known_w : int      taps along height and width whose sums are unrolled; 0: any number.
                                Stride and dilation along these axes are 1 then.
    chunk, folded_chunk : int   taps, and pairs of taps, that are summed from zero
    bits : int                  of a source that is read in place, see `views.stored_bits`
    Parameters (int64): see `algorithms.separable.prepare`; `kept` is the number of filters along
    depth, `terms` that along height.
    Weights of each group and filter: height (terms, kh), width (kept, terms, kw), depth (kept, kd).

    Along the height, vectors are read where their columns lie: in the source, or at its ends among
    the packed rows.
    """
    double = 1 if real == "float64" else 0
    itemsize = 8 if double else 4

    def filtering(bits, size):
        """A function that filters lines of stored numbers of `size` bytes along the height."""

        @inlined
        def filter_height(table, position, weights, kh, stride, dilation, out, out_row):
            if fold_h:
                half, k = kh // 2, 0
                while k == 0 or k < half:
                    end = min(k + folded_chunk, half)
                    centre = kh % 2 if end == half else 0
                    _fold_rows(
                        rows,
                        lanes,
                        double,
                        1,
                        bits,
                        known_h,
                        lines=table,
                        at=position * size,
                        weights=weights,
                        taps=kh,
                        begin=k,
                        end=end,
                        centre=centre,
                        first=int(k == 0),
                        held=out,
                        held_row=out_row,
                        out=out,
                        out_row=out_row,
                        streams=0,
                    )
                    k += folded_chunk
            else:
                for k in range(0, kh, chunk):
                    _sum_rows(
                        rows,
                        lanes,
                        double,
                        shared_h,
                        bits,
                        known_h,
                        lines=table,
                        at=position * size,
                        stride=stride,
                        dilation=dilation,
                        weights=weights,
                        begin=k,
                        end=min(k + chunk, kh),
                        first=int(k == 0),
                        held=out,
                        held_row=out_row,
                        out=out,
                        out_row=out_row,
                        streams=0,
                    )

        return filter_height

    filter_packed = filtering(0, itemsize)
    filter_source = filtering(bits, abs(bits) // 8 if bits else itemsize)

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        kd = parameters[0]
        kh = known_h if known_h else parameters[1]
        kw = known_w if known_w else parameters[2]
        dilation_h, terms, kept = parameters[4], parameters[5], parameters[6]
        half_at, half_rows = step[F.workspace] + parameters[7], parameters[8]
        ring_at = step[F.workspace] + parameters[9]
        ring_plane, ring, ring_row = parameters[10], parameters[11], parameters[12]
        offsets = parameters[13]
        packed_at = step[F.workspace]
        source_at = packed_at + parameters[14]
        per_filter = terms * kh + kept * terms * kw + kept * kd
        row_bytes, stride_h = itemsize * step[F.row_step], step[F.stride_h]
        tiles = (step[F.height] + rows - 1) // rows
        packed_lines, source_lines = memory(packed_at, np.int64), memory(source_at, np.int64)
        found = memory(step[F.source_lines], np.int64)
        last_row = (step[F.height] - 1) * stride_h + step[F.extent_h] - 1
        for i in range((tiles * rows - 1) * stride_h + step[F.extent_h]):
            packed_lines[i] = step[F.scratch] + i * row_bytes
            if step[F.packed_stop] > 0:
                source_lines[i] = found[min(i, last_row)]
        numbers = step[F.stride_w] * step[F.pitch]
        if step[F.stride_w] == 1:
            numbers = step[F.width] - 1 + step[F.extent_w]
        vector = itemsize * lanes
        slot = step[F.position] % ring
        strips = (numbers + lanes - 1) // lanes
        in_place = in_place_stop = 0  # vectors
        if step[F.packed_stop] > 0:
            in_place = step[F.packed_stop] // lanes
            in_place_stop = (step[F.packed_start] + lanes - 1) // lanes
        begin = -step[F.line_column] % lanes
        # The next plane's rows, which the tiles share: half of them are fetched during each pass,
        # since all at once would have to wait for memory. (Without it, sigma 1 takes 1.2 times as
        # long; in one pass, 1.1 times.)
        ahead = bytes_ahead(step)
        fetched_by_tile = 0
        if in_place_stop > 0 and ahead != 0:
            fetched_by_tile = (last_row + tiles) // tiles
        for f in range(step[F.filters]):
            first_weight = (
                step[F.weights] + itemsize * (step[F.group] * step[F.filters] + f) * per_filter
            )
            for tile in range(tiles):
                # `rows` rows along the height, then along the width while they are in L1
                weights = first_weight
                here = 8 * tile * rows * stride_h
                fetched = tile * fetched_by_tile
                fetched_stop = min(fetched + fetched_by_tile, last_row + 1)
                fetched_half = min(fetched + fetched_by_tile // 2, fetched_stop)
                for term in range(terms):
                    for x in range(strips):
                        if f == 0 and term == 0:
                            if in_place_stop == 0:
                                fetch_part(step, tile * strips + x, tiles * strips)
                            at = ahead + step[F.source_itemsize] * lanes * x
                            fetch_lines(source_lines, fetched, fetched_half, at)
                        out = half_at + term * half_rows + x * vector
                        if in_place <= x < in_place_stop:
                            filter_source(
                                source_at + here,
                                x * lanes,
                                weights,
                                kh,
                                stride_h,
                                dilation_h,
                                out,
                                row_bytes,
                            )
                        else:
                            filter_packed(
                                packed_at + here,
                                x * lanes,
                                weights,
                                kh,
                                stride_h,
                                dilation_h,
                                out,
                                row_bytes,
                            )
                    weights += itemsize * kh
                for plane in range(kept):
                    to = (
                        ring_at
                        + ((f * kept + plane) * ring + slot) * ring_plane
                        + tile * rows * ring_row
                        + itemsize * begin
                    )
                    # all terms of a vector before the next one, which may overlap it
                    x = 0
                    while x < step[F.width]:
                        if f == 0 and plane == 0:
                            at = ahead + step[F.source_itemsize] * x
                            fetch_lines(source_lines, fetched_half, fetched_stop, at)
                        for term in range(terms):
                            for k in range(0, kw, chunk):
                                _sum_columns(
                                    rows,
                                    lanes,
                                    double,
                                    known_w,
                                    source=half_at + term * half_rows + itemsize * x,
                                    row=row_bytes,
                                    offsets=offsets,
                                    weights=weights + itemsize * term * kw,
                                    begin=k,
                                    end=min(k + chunk, kw),
                                    first=int(k == 0 and term == 0),
                                    out=to + itemsize * x,
                                    out_row=ring_row,
                                )
                        x = _next_vector(step, x, lanes)
                    weights += itemsize * terms * kw

    return loops


def filter_depth(rows, fold, shared, known, chunk, folded_chunk, lanes, real):
    """The `convolve` function: compute the `rows` output planes of a step from the ring.

    The parameters are those of `filter_plane`, along depth. Whole vectors of sums go to the output
    at once where nothing else is done to them.
    """
    double = 1 if real == "float64" else 0
    itemsize = 8 if double else 4

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        kd = known if known else parameters[0]
        kh, kw = parameters[1], parameters[2]
        dilation, terms, kept = parameters[3], parameters[5], parameters[6]
        ring_at = step[F.workspace] + parameters[9]
        ring_plane, ring, ring_row = parameters[10], parameters[11], parameters[12]
        before_depth = terms * kh + kept * terms * kw
        lines_at = step[F.workspace]
        lines = memory(lines_at, np.int64)
        stride = step[F.stride_d]
        first_position = step[F.step_plane] * stride
        width, block_rows = step[F.width], step[F.block_rows]
        sums_plane, sums_row = itemsize * step[F.acc_plane_step], itemsize * step[F.acc_row_step]
        out_plane, out_row = itemsize * step[F.out_plane_step], itemsize * step[F.out_row_step]
        begin = -step[F.line_column] % lanes
        stored = stored_stop = 0
        stores = step[F.streaming] == 0 or lanes * itemsize == LINE  # as in `stencil`
        if stores and step[F.stores_sums] != 0 and step[F.step_planes] == rows:
            stored = min(step[F.line_column], width)
            stored_stop = stored + (width - stored) // lanes * lanes
        step[F.stored_column], step[F.stored_column_stop] = stored, stored_stop
        corner = step[F.step_plane] * step[F.out_plane_step] + step[F.column]
        corner += (step[F.row] + step[F.block_row]) * step[F.out_row_step]
        for f in range(step[F.filters]):
            filter_ = step[F.group] * step[F.filters] + f
            weights = step[F.weights] + itemsize * filter_ * (before_depth + kept * kd)
            weights += itemsize * before_depth
            first_sum = step[F.accumulator] + itemsize * f * step[F.acc_filter_step]
            first_out = step[F.out] + itemsize * (corner + filter_ * step[F.out_filter_step])
            count = (rows - 1) * stride + step[F.extent_d]
            for plane in range(kept):
                from_ring = (
                    ring_at
                    + (f * kept + plane) * ring * ring_plane
                    + step[F.block_row] * ring_row
                    + itemsize * begin
                )
                slot = first_position % ring
                for i in range(count):
                    lines[plane * count + i] = from_ring + slot * ring_plane
                    slot = slot + 1 if slot + 1 < ring else 0
            for row in range(block_rows):
                # all terms of a vector before the next one, which may overlap it
                x = 0
                while x < width:
                    held = first_sum + row * sums_row + itemsize * x
                    out, out_step, streams = held, sums_plane, 0
                    for plane in range(kept):
                        k = 0
                        while k == 0 or k < (kd // 2 if fold else kd):
                            if fold:
                                end = min(k + folded_chunk, kd // 2)
                                is_last = plane == kept - 1 and end == kd // 2
                                centre = kd % 2 if end == kd // 2 else 0
                            else:
                                end = min(k + chunk, kd)
                                is_last = plane == kept - 1 and end == kd
                            first = int(k + plane == 0)
                            if is_last and stored <= x < stored_stop:
                                out = first_out + row * out_row + itemsize * x
                                out_step, streams = out_plane, step[F.streaming]
                            if fold:
                                _fold_rows(
                                    rows,
                                    lanes,
                                    double,
                                    0,
                                    0,
                                    known,
                                    lines=lines_at + 8 * plane * count,
                                    at=row * ring_row + itemsize * x,
                                    weights=weights + itemsize * plane * kd,
                                    taps=kd,
                                    begin=k,
                                    end=end,
                                    centre=centre,
                                    first=first,
                                    held=held,
                                    held_row=sums_plane,
                                    out=out,
                                    out_row=out_step,
                                    streams=streams,
                                )
                                k += folded_chunk
                            else:
                                _sum_rows(
                                    rows,
                                    lanes,
                                    double,
                                    shared,
                                    0,
                                    known,
                                    lines=lines_at + 8 * plane * count,
                                    at=row * ring_row + itemsize * x,
                                    stride=stride,
                                    dilation=dilation,
                                    weights=weights + itemsize * plane * kd,
                                    begin=k,
                                    end=end,
                                    first=first,
                                    held=held,
                                    held_row=sums_plane,
                                    out=out,
                                    out_row=out_step,
                                    streams=streams,
                                )
                                k += chunk
                    x = _next_vector(step, x, lanes)

    return loops

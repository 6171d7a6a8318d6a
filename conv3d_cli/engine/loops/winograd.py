"""Winograd's minimal filtering in three dimensions: transform, multiply, transform back.

A tile of md x mh x mw outputs reads m + 2 inputs along an axis with three weights, and one along an
axis with one weight, where m is 1. Inputs and the kernel are evaluated at the points of
`algorithms.winograd.POINTS` along each axis. There a convolution is one product per position (a
point along each axis), so the tiles and channels of a task form one matrix product per position:
(tiles x channels) * (channels x filters).

The positions along depth are computed one after another, and the filters in blocks as wide as a
register tile, so that the intermediate arrays stay in the cache: (positions of a plane, tiles,
channels) before the products, (positions of a plane, tiles, filters of a block) after them.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.algorithms.winograd import POINTS, UNROLL, points, transform_matrix
from conv3d_cli.engine.loops.simd import I64, Vec, const, memory
from conv3d_cli.engine.step import F


def _evaluate(v, m, d):
    """Evaluate the inputs d of m outputs along one axis at the points: B transposed * d."""
    b = v.b
    if m == 1:
        return d
    if m == 2:
        return [b.fsub(d[2], d[0]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[3], d[1])]
    p, q = POINTS[4][1], POINTS[4][3]
    both, product = v.splat(-p * p - q * q), v.splat(p * p * q * q)
    values = [v.fma(product, d[0], v.fma(both, d[2], d[4]))]
    for point, other in ((p, q), (q, p)):
        # the polynomials of a point and its negative differ in the sign of their odd part
        even = v.fma(v.splat(-other * other), d[2], d[4])
        odd = v.fma(v.splat(-other * other), d[1], d[3])
        values += [v.fma(v.splat(point), odd, even), v.fma(v.splat(-point), odd, even)]
    return [*values, v.fma(product, d[1], v.fma(both, d[3], d[5]))]


def _interpolate(v, m, s):
    """Interpolate m outputs along one axis from products s at the points: A transposed * s."""
    b = v.b
    if m == 1:
        return s
    if m == 2:
        return [b.fadd(s[0], b.fadd(s[1], s[2])), b.fadd(b.fsub(s[1], s[2]), s[3])]
    p, q = POINTS[4][1], POINTS[4][3]
    even, even_q = b.fadd(s[1], s[2]), b.fadd(s[3], s[4])
    odd, odd_q = b.fsub(s[1], s[2]), b.fsub(s[3], s[4])
    return [
        b.fadd(s[0], b.fadd(even, even_q)),
        v.fma(v.splat(p), odd, b.fmul(v.splat(q), odd_q)),
        v.fma(v.splat(p**2), even, b.fmul(v.splat(q**2), even_q)),
        v.fma(v.splat(p**3), odd, v.fma(v.splat(q**3), odd_q, s[5])),
    ]


def _vec(b, lanes, double):
    return Vec(b, lanes, "float64" if double else "float32")


@intrinsic(prefer_literal=True)
def _transform(
    typingctx,
    md,
    mh,
    mw,
    lanes,
    double,
    source,
    other,
    sign,
    row,
    column,
    vectors,
    out,
    position_step,
):
    """Evaluate one tile's inputs at all positions of a plane, at one position along depth.

    source, other : address     of the tile's first voxel in two planes; along depth, the input is
                                that of source plus `sign` times that of other; if md is 1, that of
                                source
    row, column : int           bytes from one input row or column to the next
    vectors : int               vectors of channels
    position_step : int         bytes from one position to the next in `out`
    """
    sig = types.void(
        md, mh, mw, lanes, double, source, other, sign, row, column, vectors, out, position_step
    )
    tile_d, tile_h, tile_w, width, is_double = (t.literal_value for t in sig.args[:5])

    def codegen(context, b, sig, args):
        v = _vec(b, width, is_double)
        source, other, sign, row, column, vectors, out, position_step = args[5:]
        realp = v.real.as_pointer()
        if not is_double:
            sign = b.fptrunc(sign, v.real)
        sign = v.spread(sign)
        entry, loop, done = b.block, b.append_basic_block("vector"), b.append_basic_block("done")
        away = b.sub(other, source)
        b.cbranch(b.icmp_signed(">", vectors, const(0)), loop, done)

        b.position_at_end(loop)
        number = b.phi(I64)
        number.add_incoming(const(0), entry)
        along = b.mul(number, const(width * v.bytes))
        line = b.add(source, along)
        lines = []
        for _ in range(points(tile_h)):
            at = line
            values = []
            for _ in range(points(tile_w)):
                value = v.load(b.inttoptr(at, realp), const(0))
                if tile_d > 1:
                    there = v.load(b.inttoptr(b.add(at, away), realp), const(0))
                    value = v.fma(sign, there, value)
                values.append(value)
                at = b.add(at, column)
            lines.append(_evaluate(v, tile_w, values))
            line = b.add(line, row)
        to = b.add(out, along)
        columns = [_evaluate(v, tile_h, [line[j] for line in lines]) for j in range(points(tile_w))]
        for i in range(points(tile_h)):
            for j in range(points(tile_w)):
                v.store(columns[j][i], b.inttoptr(to, realp), const(0))
                to = b.add(to, position_step)
        following = b.add(number, const(1))
        number.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, vectors), loop, done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _multiply(typingctx, rows, vectors, lanes, double, pitch, source, weights, turns, first, out):
    """Multiply matrices: out += source * weights, for a register tile of rows x vectors.

    source : address        (rows, pitch)
    weights : address       (channels, vectors * lanes)
    turns : int             channels / UNROLL
    first : int             1: overwrite `out` instead of adding to it
    out : address           (rows, vectors * lanes)
    """
    sig = types.void(rows, vectors, lanes, double, pitch, source, weights, turns, first, out)
    R, C, width, is_double, apart = (t.literal_value for t in sig.args[:5])

    def codegen(context, b, sig, args):
        if C == 0:
            return context.get_dummy_value()
        v = _vec(b, width, is_double)
        realp = v.real.as_pointer()
        source, weights, turns, first, out = args[5:]
        source, weights, out = (b.inttoptr(a, realp) for a in (source, weights, out))
        entry, loop, done = b.block, b.append_basic_block("channels"), b.append_basic_block("done")
        b.branch(loop)

        b.position_at_end(loop)
        turn, xs, ws = b.phi(I64), b.phi(realp), b.phi(realp)
        turn.add_incoming(const(0), entry)
        xs.add_incoming(source, entry)
        ws.add_incoming(weights, entry)
        start = [[b.phi(v.type) for _ in range(C)] for _ in range(R)]
        for line in start:
            for phi in line:
                phi.add_incoming(v.zero, entry)
        acc = [list(line) for line in start]
        for k in range(UNROLL):
            loaded = [v.load(ws, const((k * C + c) * width)) for c in range(C)]
            for r in range(R):
                x = v.broadcast(xs, const(r * apart + k))
                for c in range(C):
                    acc[r][c] = v.fma(x, loaded[c], acc[r][c])
        following = b.add(turn, const(1))
        turn.add_incoming(following, b.block)
        xs.add_incoming(b.gep(xs, [const(UNROLL)]), b.block)
        ws.add_incoming(b.gep(ws, [const(UNROLL * C * width)]), b.block)
        for r in range(R):
            for c in range(C):
                start[r][c].add_incoming(acc[r][c], b.block)
        b.cbranch(b.icmp_signed("<", following, turns), loop, done)

        b.position_at_end(done)
        with b.if_else(b.icmp_signed("!=", first, const(0))) as (overwrite, add):
            with overwrite:
                for r in range(R):
                    for c in range(C):
                        v.store(acc[r][c], out, const((r * C + c) * width))
            with add:
                for r in range(R):
                    for c in range(C):
                        at = const((r * C + c) * width)
                        v.store(b.fadd(v.load(out, at), acc[r][c]), out, at)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _transform_back(
    typingctx,
    mh,
    mw,
    vectors,
    lanes,
    double,
    source,
    position_step,
    depth,
    upper,
    lower,
    row,
    column,
):
    """Interpolate one tile's outputs at one depth position, and add them to two planes of sums.

    source : address        of the products, positions `position_step` bytes apart
    depth : int             number of the position along depth, 0 to 3
    upper, lower : address  of the tile's first sum in the first and second output plane; lower is 0
                            if there is only one
    row, column : int       bytes from one row or column of sums to the next
    """
    sig = types.void(
        mh, mw, vectors, lanes, double, source, position_step, depth, upper, lower, row, column
    )
    tile_h, tile_w, C, width, is_double = (t.literal_value for t in sig.args[:5])

    def codegen(context, b, sig, args):
        if C == 0:
            return context.get_dummy_value()
        v = _vec(b, width, is_double)
        realp = v.real.as_pointer()
        source, position_step, depth, upper, lower, row, column = args[5:]

        def is_depth(number):
            return b.icmp_signed("==", depth, const(number))

        def put(values, at, overwrite, negative):
            sign = b.select(negative, v.splat(-1.0), v.splat(1.0))
            for line in values:
                here = at
                for value in line:
                    to = b.inttoptr(here, realp)
                    with b.if_else(overwrite) as (new, more):
                        with new:
                            v.store(value, to, const(0))
                        with more:
                            v.store(v.fma(sign, value, v.load(to, const(0))), to, const(0))
                    here = b.add(here, column)
                at = b.add(at, row)

        for c in range(C):
            at = b.add(source, const(c * width * v.bytes))
            lines = []
            for _ in range(points(tile_h)):
                values = []
                for _ in range(points(tile_w)):
                    values.append(v.load(b.inttoptr(at, realp), const(0)))
                    at = b.add(at, position_step)
                lines.append(_interpolate(v, tile_w, values))
            columns = [_interpolate(v, tile_h, [line[j] for line in lines]) for j in range(tile_w)]
            values = [[columns[j][i] for j in range(tile_w)] for i in range(tile_h)]
            aside = const(c * width * v.bytes)
            # A transposed along depth: (1, 1, 1, 0) and (0, 1, -1, 1)
            with b.if_then(b.icmp_signed("<", depth, const(3))):
                put(values, b.add(upper, aside), is_depth(0), is_depth(-1))
            with b.if_then(
                b.and_(b.icmp_signed(">", depth, const(0)), b.icmp_signed("!=", lower, const(0)))
            ):
                put(values, b.add(lower, aside), is_depth(1), is_depth(2))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _transform_kernel(
    typingctx, md, mh, mw, lanes, wide, double, source, tap_step, out, depth_step, position_step
):
    """Evaluate the taps of `lanes` filters at all positions, in float64.

    wide, double : int      1 if `source`, and `out`, are float64
    tap_step : int          bytes from one tap to the next
    depth_step, position_step : int     bytes from one position to the next in `out`, along depth
                            and in a plane
    """
    sig = types.void(
        md, mh, mw, lanes, wide, double, source, tap_step, out, depth_step, position_step
    )
    *tile, width, is_wide, is_double = (t.literal_value for t in sig.args[:6])
    matrices = [transform_matrix(m).tolist() if m > 1 else [[1.0]] for m in tile]
    taps_d, taps_h, taps_w = (len(matrix[0]) for matrix in matrices)

    def codegen(context, b, sig, args):
        v = Vec(b, width, "float64")
        ends = [v if wide else Vec(b, width, "float32") for wide in (is_wide, is_double)]
        source, tap_step, out, depth_step, position_step = args[6:]

        def load(at):
            value = ends[0].load(b.inttoptr(at, ends[0].real.as_pointer()), const(0))
            return value if is_wide else b.fpext(value, v.type)

        def store(value, at):
            value = value if is_double else b.fptrunc(value, ends[1].type)
            ends[1].store(value, b.inttoptr(at, ends[1].real.as_pointer()), const(0))

        def evaluate(matrix, taps):
            results = []
            for row in matrix:
                total = None
                for factor, tap in zip(row, taps, strict=True):
                    if factor:
                        more = v.splat(factor)
                        total = b.fmul(more, tap) if total is None else v.fma(more, tap, total)
                results.append(total)
            return results

        plane = taps_h * taps_w
        taps = [load(b.add(source, b.mul(tap_step, const(tap)))) for tap in range(taps_d * plane)]
        along_depth = [evaluate(matrices[0], taps[rest::plane]) for rest in range(plane)]
        for i in range(points(tile[0])):
            at = b.add(out, b.mul(depth_step, const(i)))
            along_height = [
                evaluate(matrices[1], [along_depth[taps_w * h + w][i] for h in range(taps_h)])
                for w in range(taps_w)
            ]
            for j in range(points(tile[1])):
                for value in evaluate(matrices[2], [line[j] for line in along_height]):
                    store(value, at)
                    at = b.add(at, position_step)
        return context.get_dummy_value()

    return sig, codegen


def transform_weights(md, mh, mw, lanes, source_real, real):
    """Evaluate kernels at the points of the tiles, in the order in which `sum_tiles` reads them.

    source_real, real : str     names of the dtypes of the step's `source` and `out`
    Source: (taps, channels, groups, filters), with filters padded to whole vectors.
    Out: the weights of `sum_tiles`.
    Parameters (int64): groups, channels, padded channels in `out`, full blocks of filters, vectors
    of a full block, vectors of the last block.
    """
    itemsize, source_itemsize = np.dtype(real).itemsize, np.dtype(source_real).itemsize
    double, wide = (1 if itemsize == 8 else 0), (1 if source_itemsize == 8 else 0)
    depths, positions = points(md), points(mh) * points(mw)
    part = lanes // 2 if real == "float32" else lanes  # filters at once

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        groups, channels, padded = parameters[0], parameters[1], parameters[2]
        blocks, vectors, last_vectors = parameters[3], parameters[4], parameters[5]
        filters = lanes * (blocks * vectors + last_vectors)
        tap_step = channels * groups * filters * source_itemsize
        depth_step = positions * padded * filters * itemsize
        for group in range(groups):
            for block in range(blocks + (1 if last_vectors > 0 else 0)):
                width = lanes * (vectors if block < blocks else last_vectors)
                first = block * vectors * lanes
                here = step[F.out] + group * depths * depth_step
                here += first * positions * padded * itemsize
                for channel in range(channels):
                    source = (
                        step[F.source]
                        + ((channel * groups + group) * filters + first) * source_itemsize
                    )
                    for f in range(0, width, part):
                        _transform_kernel(
                            md,
                            mh,
                            mw,
                            part,
                            wide,
                            double,
                            source=source + f * source_itemsize,
                            tap_step=tap_step,
                            out=here + (channel * width + f) * itemsize,
                            depth_step=depth_step,
                            position_step=padded * width * itemsize,
                        )

    return loops


def sum_tiles(md, mh, mw, rows, vectors, last_rows, last_vectors, lanes, chunk, real):
    """Sum a step of a task, in tiles of md x mh x mw outputs: `md` planes.

    rows, vectors : int     register tile of the products, for full blocks of filters; vectors is 0
                            if there are none
    last_rows, last_vectors : int   register tile for a last block of another width; 0 if there is
                                    none
    chunk : int             channels summed at once, and the pitch of the evaluated inputs
    Parameters (int64): chunks; turns of the last chunk; most tiles of a position; bytes from one
    position to the next in the evaluated inputs, and in the products; full blocks of filters; bytes
    of the weights of a group and depth position.
    Weights: (groups, depth positions, blocks of filters, positions of a plane, channels, filters of
    a block).
    """
    kind = np.dtype(real).type
    itemsize = np.dtype(real).itemsize
    double = 1 if real == "float64" else 0
    depths, positions = points(md), points(mh) * points(mw)
    few = rows // 2

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        chunks, last_turns, room = parameters[0], parameters[1], parameters[2]
        evaluated_step, product_step, blocks = parameters[3], parameters[4], parameters[5]
        depth_weights = parameters[6]
        height, width, planes = step[F.height], step[F.width], step[F.step_planes]
        tile_rows, tile_columns = (height + mh - 1) // mh, (width + mw - 1) // mw
        tiles = tile_rows * tile_columns
        halo_d, halo_h, halo_w = 2 * (md > 1), 2 * (mh > 1), 2 * (mw > 1)
        window = memory(step[F.window], np.int64)
        row, column = itemsize * step[F.row_step], itemsize * step[F.pitch]
        acc_row, acc_column = itemsize * step[F.acc_row_step], itemsize * step[F.acc_column_step]
        acc_plane = itemsize * step[F.acc_plane_step]
        evaluated = step[F.workspace]
        products = evaluated + positions * evaluated_step
        # Tiles at the task's end read beyond the packed voxels, so clear what an earlier step left
        # there.
        for i in range(planes + halo_d):
            plane = step[F.scratch] + window[i]
            for j in range(tile_rows * mh + halo_h):
                start = width + halo_w if j < height + halo_h else 0
                line = memory(plane + j * row + start * column, kind)
                for p in range((tile_columns * mw + halo_w - start) * step[F.pitch]):
                    line[p] = kind(0)
        for depth in range(depths):
            has_lower = planes > 1
            if depth == 3 and not has_lower:
                continue
            # B transposed along depth: d2 - d0, d2 + d1, d2 - d1, d3 - d1
            source = step[F.scratch]
            other = step[F.scratch]
            if md > 1:
                source += window[2 if depth < 3 else 3]
                other += window[0 if depth == 0 else 1]
            else:
                source += window[0]
            sign = 1.0 if depth == 1 else -1.0
            for t in range(tiles):
                aside = t // tile_columns * mh * row + t % tile_columns * mw * column
                for part in range(chunks):
                    vectors_here = chunk // lanes
                    if part == chunks - 1:
                        vectors_here = (last_turns * UNROLL + lanes - 1) // lanes
                    _transform(
                        md,
                        mh,
                        mw,
                        lanes,
                        double,
                        source=source + aside + part * chunk * itemsize,
                        other=other + aside + part * chunk * itemsize,
                        sign=sign,
                        row=row,
                        column=column,
                        vectors=vectors_here,
                        out=evaluated + (part * room + t) * chunk * itemsize,
                        position_step=evaluated_step,
                    )
            weights = step[F.weights] + (step[F.group] * depths + depth) * depth_weights
            for block in range(blocks + (1 if last_vectors > 0 else 0)):
                filters = lanes * (vectors if block < blocks else last_vectors)
                for position in range(positions):
                    for part in range(chunks):
                        turns = chunk // UNROLL if part < chunks - 1 else last_turns
                        first = 1 if part == 0 else 0
                        t = 0
                        while t < tiles:
                            here = (
                                evaluated
                                + position * evaluated_step
                                + (part * room + t) * chunk * itemsize
                            )
                            to = products + position * product_step + t * filters * itemsize
                            if block >= blocks:
                                _multiply(
                                    last_rows,
                                    last_vectors,
                                    lanes,
                                    double,
                                    chunk,
                                    source=here,
                                    weights=weights,
                                    turns=turns,
                                    first=first,
                                    out=to,
                                )
                                t += last_rows
                            elif tiles - t > few:
                                _multiply(
                                    rows,
                                    vectors,
                                    lanes,
                                    double,
                                    chunk,
                                    source=here,
                                    weights=weights,
                                    turns=turns,
                                    first=first,
                                    out=to,
                                )
                                t += rows
                            else:
                                _multiply(
                                    few,
                                    vectors,
                                    lanes,
                                    double,
                                    chunk,
                                    source=here,
                                    weights=weights,
                                    turns=turns,
                                    first=first,
                                    out=to,
                                )
                                t += few
                        weights += turns * UNROLL * filters * itemsize
                for t in range(tiles):
                    upper = step[F.accumulator] + block * lanes * vectors * itemsize
                    upper += t // tile_columns * mh * acc_row + t % tile_columns * mw * acc_column
                    lower = upper + acc_plane if has_lower else 0
                    here = products + t * filters * itemsize
                    if block >= blocks:
                        _transform_back(
                            mh,
                            mw,
                            last_vectors,
                            lanes,
                            double,
                            source=here,
                            position_step=product_step,
                            depth=depth,
                            upper=upper,
                            lower=lower,
                            row=acc_row,
                            column=acc_column,
                        )
                    else:
                        _transform_back(
                            mh,
                            mw,
                            vectors,
                            lanes,
                            double,
                            source=here,
                            position_step=product_step,
                            depth=depth,
                            upper=upper,
                            lower=lower,
                            row=acc_row,
                            column=acc_column,
                        )

    return loops

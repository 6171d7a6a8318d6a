"""Fourier tiles of many channels: transform planes, multiply matrices, transform back.

Elements of all transforms are vectors of channels, or of filters, so that nothing is transposed. A
complex element is a pair of vectors, re and im.

`absorb_plane` transforms each packed plane, tile by tile, along width and height into a ring of
spectra, which overlapping steps share. `convolve_tiles` takes a few frequencies of the plane
at once: it transforms lines along depth, multiplies matrices (tiles x channels) * (channels x
filters) at each frequency along depth, and transforms back, all within the cache. Then each output
plane is transformed back and stored.

Along width, N real numbers x become N/2 complex ones: the polynomial with coefficients x, modulo
t^N + 1 = (t^(N/2) - i) (t^(N/2) + i), is determined by its remainder for either factor alone. So
what wraps around has the opposite sign, in outputs that are discarded.

Layouts, with elements (re | im) of `lanes` numbers each:
- the ring of spectra: (plane, tile, vector of channels, frequency of the plane)
- lines along depth: (frequency of the plane, frequency along depth, tile, vector of channels or
  filters), for a few frequencies of the plane
- the weights: (group, frequency of the plane, frequency along depth, vector of filters, channel)
- the results: (plane, tile, vector of filters, frequency of the plane)
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.algorithms.fft_channels import TOLD_BYTES, UNROLL, P
from conv3d_cli.engine.loops.fft_butterflies import Complex
from conv3d_cli.engine.loops.simd import (
    I64,
    Vec,
    call,
    const,
    emit_cases,
    emit_prefetch,
    memory,
)
from conv3d_cli.engine.step import F


class _Lines(Complex):
    """Complex arithmetic, and loads and stores by address."""

    def __init__(self, b, lanes, double):
        super().__init__(Vec(b, lanes, "float64" if double else "float32"))
        self.pointer = self.v.real.as_pointer()
        self.half = const(lanes * self.v.bytes)

    def load(self, at):
        return self.v.load(self.b.inttoptr(at, self.pointer), const(0))

    def store(self, value, at):
        self.v.store(value, self.b.inttoptr(at, self.pointer), const(0))

    def load_pair(self, at):
        return self.load(at), self.load(self.b.add(at, self.half))

    def store_pair(self, x, at):
        self.store(x[0], at)
        self.store(x[1], self.b.add(at, self.half))

    def fetch(self, at):
        """Fetch an element into L1."""
        for part in range(0, 2 * self.v.lanes * self.v.bytes, 64):
            emit_prefetch(self.b, self.b.add(at, const(part)), level=1)

    def places(self, start, step, count):
        """The addresses of `count` elements, `step` bytes apart."""
        places = [start]
        for _ in range(count - 1):
            places.append(self.b.add(places[-1], step))
        return places


@intrinsic(prefer_literal=True)
def _forward_width(typingctx, size, lanes, double, source, step, target):
    """Transform `size` real elements at source, `step` bytes apart, to size/2 complex ones."""
    sig = types.void(size, lanes, double, source, step, target)
    N, width, is_double = (t.literal_value for t in sig.args[:3])

    def codegen(context, b, sig, args):
        cx = _Lines(b, width, is_double)
        source, step, target = args[3:]
        x = [cx.load(at) for at in cx.places(source, step, N)]
        half = N // 2
        y = [cx.mul_root((x[n], b.fneg(x[n + half])), Fraction(-n, 2 * N)) for n in range(half)]
        for k, value in enumerate(cx.dft(y, -1)):
            cx.store_pair(value, b.add(target, const(k * 2 * width * cx.v.bytes)))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _inverse_width(typingctx, size, kept, lanes, double, source, target, step):
    """Transform size/2 complex elements back to the first `kept` real ones, `step` bytes apart."""
    sig = types.void(size, kept, lanes, double, source, target, step)
    N, count, width, is_double = (t.literal_value for t in sig.args[:4])

    def codegen(context, b, sig, args):
        cx = _Lines(b, width, is_double)
        source, target, step = args[4:]
        half = N // 2
        y = [cx.load_pair(b.add(source, const(k * 2 * width * cx.v.bytes))) for k in range(half)]
        values = [cx.mul_root(x, Fraction(n, 2 * N)) for n, x in enumerate(cx.dft(y, 1))]
        real = [x[0] for x in values] + [b.fneg(x[1]) for x in values]
        for value, at in zip(real[:count], cx.places(target, step, count), strict=True):
            cx.store(value, at)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _transform(
    typingctx, size, kept, sign, lanes, double, source, source_step, target, target_step, ahead
):
    """Transform `size` complex elements; store the first `kept`.

    sign : int          -1: forward, 1: back
    ahead : int         bytes from each stored element to another one to fetch into L1; literal 0:
                        none
    """
    sig = types.void(
        size, kept, sign, lanes, double, source, source_step, target, target_step, ahead
    )
    N, count, direction, width, is_double = (t.literal_value for t in sig.args[:5])
    fetches = getattr(ahead, "literal_value", None) != 0

    def codegen(context, b, sig, args):
        cx = _Lines(b, width, is_double)
        source, source_step, target, target_step, ahead = args[5:]
        x = [cx.load_pair(at) for at in cx.places(source, source_step, N)]
        y = cx.dft(x, direction)
        for value, at in zip(y[:count], cx.places(target, target_step, count), strict=True):
            cx.store_pair(value, at)
            if fetches:
                cx.fetch(b.add(at, ahead))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _transform_gathered(typingctx, size, lanes, double, source, table, ahead, target, target_step):
    """Transform `size` complex elements; element i is at source + table[i] (int64).

    ahead : int         bytes from each element to another one to fetch into L1
    """
    sig = types.void(size, lanes, double, source, table, ahead, target, target_step)
    N, width, is_double = (t.literal_value for t in sig.args[:3])

    def codegen(context, b, sig, args):
        cx = _Lines(b, width, is_double)
        source, table, ahead, target, target_step = args[3:]
        table = b.inttoptr(table, I64.as_pointer())
        places = [b.add(source, b.load(b.gep(table, [const(i)]))) for i in range(N)]
        x = [cx.load_pair(at) for at in places]
        for at in places:
            cx.fetch(b.add(at, ahead))
        for value, at in zip(cx.dft(x, -1), cx.places(target, target_step, N), strict=True):
            cx.store_pair(value, at)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _multiply(
    typingctx, most, lanes, double, rows, source, pitch, weights, turns, first, out, out_step
):
    """Multiply complex matrices: out += source * weights, for `rows` <= most tiles x one vector.

    source : address        rows `pitch` bytes apart, each (vector of channels, re | im, lane)
    weights : address       (channels, re | im, lane of filters)
    turns : int             channels / unroll, which is UNROLL, or `lanes` if that is less
    first : int             1: overwrite `out` instead of adding to it
    out : address           (rows, re | im, lane of filters), rows `out_step` bytes apart
    """
    sig = types.void(most, lanes, double, rows, source, pitch, weights, turns, first, out, out_step)
    highest, width, is_double = (t.literal_value for t in sig.args[:3])

    def codegen(context, b, sig, args):
        cx = _Lines(b, width, is_double)
        v = cx.v
        rows, source, pitch, weights, turns, first, out, out_step = args[3:]
        end = b.append_basic_block("end")
        size = v.bytes
        part, whole = width * size, 2 * width * size
        unroll = min(UNROLL, width)
        ahead = b.mul(turns, const(2 * unroll * whole))
        per_vector = width // unroll

        def tile(R):
            entry = b.block
            starts = cx.places(const(0), pitch, R)
            loop, done = b.append_basic_block(f"turn_{R}"), b.append_basic_block(f"done_{R}")
            b.branch(loop)
            b.position_at_end(loop)
            turn, xs, ws = b.phi(I64), b.phi(I64), b.phi(I64)
            turn.add_incoming(const(0), entry)
            xs.add_incoming(source, entry)
            ws.add_incoming(weights, entry)
            start = [[b.phi(v.type), b.phi(v.type)] for _ in range(R)]
            for pair in start:
                for phi in pair:
                    phi.add_incoming(v.zero, entry)
            acc = [list(pair) for pair in start]
            for k in range(unroll):
                re, im = cx.load_pair(b.add(ws, const(k * whole)))
                # the next product's weights, from beyond the cache
                for line in range(0, whole, 64):
                    emit_prefetch(b, b.add(b.add(ws, ahead), const(k * whole + line)), level=2)
                for r in range(R):
                    at = b.inttoptr(b.add(xs, starts[r]), cx.pointer)
                    x = v.broadcast(at, const(k))
                    acc[r][0] = v.fma(x, re, acc[r][0])
                    acc[r][1] = v.fma(x, im, acc[r][1])
                    x = v.broadcast(at, const(width + k))
                    acc[r][0] = v.fma(b.fneg(x), im, acc[r][0])
                    acc[r][1] = v.fma(x, re, acc[r][1])
            following = b.add(turn, const(1))
            last = b.icmp_signed("==", b.and_(following, const(per_vector - 1)), const(0))
            step = b.select(last, const(part + unroll * size), const(unroll * size))
            turn.add_incoming(following, b.block)
            xs.add_incoming(b.add(xs, step), b.block)
            ws.add_incoming(b.add(ws, const(unroll * whole)), b.block)
            for r in range(R):
                for i in range(2):
                    start[r][i].add_incoming(acc[r][i], b.block)
            b.cbranch(b.icmp_signed("<", following, turns), loop, done)
            b.position_at_end(done)
            places = cx.places(out, out_step, R)
            with b.if_else(b.icmp_signed("!=", first, const(0))) as (overwrite, add):
                with overwrite:
                    for pair, at in zip(acc, places, strict=True):
                        cx.store_pair(pair, at)
                with add:
                    for pair, at in zip(acc, places, strict=True):
                        cx.store_pair(cx.add(cx.load_pair(at), pair), at)
            b.branch(end)

        emit_cases(b, rows, highest, end, tile)
        return context.get_dummy_value()

    return sig, codegen


def absorb_plane(tile_h, tile_w, lanes, real):
    """The `absorb` function: transform the packed plane's tiles of all channels into the ring.

    tile_h, tile_w : int        input rows and columns of a tile
    """
    double = 1 if real == "float64" else 0
    kind, itemsize = np.dtype(real).type, np.dtype(real).itemsize
    whole = 2 * lanes * itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        kept_h, kept_w, vectors = p[P.kept_rows], p[P.kept_columns], p[P.channel_vectors]
        row, column = step[F.row_step] * itemsize, step[F.pitch] * itemsize
        tile_rows = (step[F.height] + kept_h - 1) // kept_h
        tile_columns = (step[F.width] + kept_w - 1) // kept_w
        # zeros beyond the volume's edge
        height, width = step[F.height] + step[F.extent_h] - 1, step[F.width] + step[F.extent_w] - 1
        columns = (tile_columns - 1) * kept_w + tile_w
        for j in range((tile_rows - 1) * kept_h + tile_h):
            start = width if j < height else 0
            line = memory(step[F.scratch] + j * row + start * column, kind)
            for k in range((columns - start) * step[F.pitch]):
                line[k] = kind(0)
        buffer, buffer_row = step[F.workspace] + p[P.buffer], p[P.buffer_row]
        out = step[F.workspace] + step[F.position] % p[P.ring] * p[P.spectrum_plane]
        for t in range(tile_rows):
            for u in range(tile_columns):
                for vector in range(vectors):
                    here = (
                        step[F.scratch]
                        + t * kept_h * row
                        + u * kept_w * column
                        + vector * lanes * itemsize
                    )
                    for j in range(tile_h):
                        _forward_width(
                            tile_w, lanes, double, here + j * row, column, buffer + j * buffer_row
                        )
                    for k in range(tile_w // 2):
                        _transform(
                            tile_h,
                            tile_h,
                            -1,
                            lanes,
                            double,
                            source=buffer + k * whole,
                            source_step=buffer_row,
                            target=out + k * whole,
                            target_step=tile_w // 2 * whole,
                            ahead=0,
                        )
                    out += tile_h * (tile_w // 2) * whole

    return loops


def multiply_spectra(rows, lanes, real):
    """Multiply the lines of a few frequencies of the plane by the weights' spectra.

    rows : int                  most tiles of a register tile
    At `table` in the workspace, `convolve_depth` leaves the number of tiles, and the address of the
    weights (int64).
    """
    double = 1 if real == "float64" else 0
    itemsize = np.dtype(real).itemsize
    whole = 2 * lanes * itemsize
    unroll = min(UNROLL, lanes)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        told = memory(step[F.workspace] + p[P.table], np.int64)
        tiles, weights = told[0], told[1]
        lines, products = step[F.workspace] + p[P.lines], step[F.workspace] + p[P.products]
        pitch, out_pitch = p[P.channel_vectors] * whole, p[P.filter_vectors] * whole
        turns, chunk_turns = p[P.turns], p[P.chunk_turns]
        chunks = (tiles + rows - 1) // rows
        low, taller = tiles // chunks, tiles % chunks
        for _ in range(p[P.few] * p[P.tile_planes]):
            for vector in range(p[P.filter_vectors]):
                turn = 0
                while turn < turns:
                    here = min(chunk_turns, turns - turn)
                    source = lines + turn * unroll // lanes * whole
                    out = products + vector * whole
                    for chunk in range(chunks):
                        count = low + 1 if chunk < taller else low
                        _multiply(
                            rows,
                            lanes,
                            double,
                            count,
                            source=source,
                            pitch=pitch,
                            weights=weights,
                            turns=here,
                            first=1 if turn == 0 else 0,
                            out=out,
                            out_step=out_pitch,
                        )
                        source += count * pitch
                        out += count * out_pitch
                    weights += here * unroll * whole
                    turn += here
            lines += p[P.lines_step]
            products += p[P.products_step]

    return loops


def convolve_depth(tile_d, kept_d, lanes, real):
    """Convolve the lines along depth of all tiles, at a few frequencies of the plane at once.

    tile_d, kept_d : int        input and output planes of a tile
    """
    double = 1 if real == "float64" else 0
    itemsize = np.dtype(real).itemsize
    whole = 2 * lanes * itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        kept_h, kept_w = p[P.kept_rows], p[P.kept_columns]
        vectors, filter_vectors = p[P.channel_vectors], p[P.filter_vectors]
        ring, plane_bytes = p[P.ring], p[P.spectrum_plane]
        in_plane = (
            (step[F.height] + kept_h - 1) // kept_h * ((step[F.width] + kept_w - 1) // kept_w)
        )
        depth_tiles = (step[F.step_planes] + kept_d - 1) // kept_d
        told = memory(step[F.workspace] + p[P.table], np.int64)
        told[0] = in_plane * depth_tiles
        # the planes that the elements of lines are read from; those beyond the window are zeros
        sources = step[F.workspace] + p[P.table] + TOLD_BYTES
        table = memory(sources, np.int64)
        held = step[F.step_planes] - 1 + step[F.extent_d]
        for t in range(depth_tiles):
            for i in range(tile_d):
                plane = t * kept_d + i
                slot = (step[F.step_plane] + plane) % ring if plane < held else ring
                table[t * tile_d + i] = slot * plane_bytes
        lines, lines_step = step[F.workspace] + p[P.lines], p[P.lines_step]
        products, products_step = step[F.workspace] + p[P.products], p[P.products_step]
        spectrum_bytes, few = p[P.frequencies] * whole, p[P.few]
        blocks = p[P.frequencies] // few
        block_weights = p[P.group_weights] // blocks
        for block in range(blocks):
            first = block * few * whole
            for t in range(depth_tiles):
                for k in range(in_plane * vectors):
                    for f in range(few):
                        _transform_gathered(
                            tile_d,
                            lanes,
                            double,
                            source=step[F.workspace] + k * spectrum_bytes + first + f * whole,
                            table=sources + 8 * t * tile_d,
                            ahead=spectrum_bytes,
                            target=lines
                            + f * tile_d * lines_step
                            + (t * in_plane * vectors + k) * whole,
                            target_step=lines_step,
                        )
            told[1] = step[F.weights] + (step[F.group] * blocks + block) * block_weights
            call(p[P.multiply_spectra], step)
            for t in range(depth_tiles):
                results = step[F.workspace] + p[P.results] + t * kept_d * p[P.result_plane]
                for k in range(in_plane * filter_vectors):
                    for f in range(few):
                        _transform(
                            tile_d,
                            kept_d,
                            1,
                            lanes,
                            double,
                            source=products
                            + f * tile_d * products_step
                            + (t * in_plane * filter_vectors + k) * whole,
                            source_step=products_step,
                            target=results + k * spectrum_bytes + first + f * whole,
                            target_step=p[P.result_plane],
                            ahead=spectrum_bytes,
                        )

    return loops


def convolve_tiles(tile_h, kept_h, tile_w, kept_w, lanes, real):
    """The `convolve` function: run the lines along depth, then transform back and store each plane.

    tile_h, kept_h, tile_w, kept_w : int    input and output rows and columns of a tile
    """
    double = 1 if real == "float64" else 0
    itemsize = np.dtype(real).itemsize
    whole = 2 * lanes * itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        call(p[P.convolve_depth], step)
        tile_rows = (step[F.height] + kept_h - 1) // kept_h
        tile_columns = (step[F.width] + kept_w - 1) // kept_w
        vectors = p[P.filter_vectors]
        buffer, buffer_row = step[F.workspace] + p[P.buffer], p[P.buffer_row]
        row, column = step[F.acc_row_step] * itemsize, step[F.acc_column_step] * itemsize
        first, count = step[F.step_plane], step[F.step_planes]
        step[F.step_planes] = 1
        for i in range(count):
            step[F.step_plane] = first + i
            source = step[F.workspace] + p[P.results] + i * p[P.result_plane]
            for t in range(tile_rows):
                for u in range(tile_columns):
                    for vector in range(vectors):
                        for k in range(tile_w // 2):
                            _transform(
                                tile_h,
                                kept_h,
                                1,
                                lanes,
                                double,
                                source=source + k * whole,
                                source_step=tile_w // 2 * whole,
                                target=buffer + k * whole,
                                target_step=buffer_row,
                                ahead=0,
                            )
                        out = (
                            step[F.accumulator]
                            + t * kept_h * row
                            + u * kept_w * column
                            + vector * lanes * itemsize
                        )
                        for j in range(kept_h):
                            _inverse_width(
                                tile_w,
                                kept_w,
                                lanes,
                                double,
                                source=buffer + j * buffer_row,
                                target=out + j * row,
                                step=column,
                            )
                        source += tile_h * (tile_w // 2) * whole
            if i < count - 1:  # the driver stores the last plane
                if step[F.activate] != 0:
                    call(step[F.activate], step)
                call(step[F.store], step)

    return loops


@intrinsic(prefer_literal=True)
def _evaluate(typingctx, taps, real, lanes, double, source, factors, count, out, out_step, out_im):
    """Sums over `taps` elements times complex factors, in float64, for `count` frequencies.

    real : int              1: the elements are real, else complex
    source : address        float64 (taps, re | im, lane)
    factors : address       float64 (frequency, tap, re | im)
    out : address           the sums, in float64, or in float32 if not `double`; `out_step` bytes
                            apart, and `out_im` bytes from re to im
    """
    literals = taps, real, lanes, double
    sig = types.void(*literals, source, factors, count, out, out_step, out_im)
    K, is_real, width, is_double = (t.literal_value for t in literals)

    def codegen(context, b, sig, args):
        cx = _Lines(b, width, 1)
        v, end = cx.v, Vec(b, width, "float64" if is_double else "float32")
        source, factors, count, out, out_step, out_im = args[4:]
        element = const(width * v.bytes * (1 if is_real else 2))
        places = cx.places(source, element, K)
        x = [cx.load(at) if is_real else cx.load_pair(at) for at in places]
        entry = b.block
        loop, done = b.append_basic_block("frequency"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        number, from_, to = b.phi(I64), b.phi(I64), b.phi(I64)
        for phi, value in ((number, const(0)), (from_, factors), (to, out)):
            phi.add_incoming(value, entry)
        factor = b.inttoptr(from_, cx.pointer)
        total = (v.zero, v.zero)
        for k in range(K):
            y = v.broadcast(factor, const(2 * k)), v.broadcast(factor, const(2 * k + 1))
            if is_real:
                total = v.fma(x[k], y[0], total[0]), v.fma(x[k], y[1], total[1])
            else:
                total = cx.add_product(total, x[k], y)
        at = to
        for value in total:
            value = value if is_double else b.fptrunc(value, end.type)
            end.store(value, b.inttoptr(at, end.real.as_pointer()), const(0))
            at = b.add(at, out_im)
        following = b.add(number, const(1))
        number.add_incoming(following, loop)
        from_.add_incoming(b.add(from_, const(16 * K)), loop)
        to.add_incoming(b.add(to, out_step), loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return sig, codegen


def transform_weights(kernel_d, kernel_h, kernel_w, lanes, real):
    """Evaluate kernels at the frequencies of the tiles, in the order that `convolve_depth` reads.

    Source: float64 (group, vector of filters, part of the vector, channel, kd, kh, kw, lane), with
    filters padded to whole vectors. A part has as many float64 numbers as a register.
    Out: the weights of `convolve_depth`.
    Workspace: float64 (kd, frequency along width, kh, re | im, lane), then
    (frequency of the plane, channel, kd, re | im, lane).
    Parameters (int64): groups, vectors of filters, channels, padded channels in `out`; frequencies
    along depth, height and width, and the addresses of their factors (frequency, tap, re | im).
    """
    double = 1 if real == "float64" else 0
    itemsize = np.dtype(real).itemsize
    width = lanes * itemsize // 8  # float64 numbers of a part
    parts = lanes // width
    number, pair = 8 * width, 16 * width
    whole = 2 * lanes * itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        groups, vectors, channels, padded = p[0], p[1], p[2], p[3]
        size_d, size_h, size_w = p[4], p[5], p[6]
        source = step[F.source]
        lines = step[F.workspace]
        planes = lines + kernel_d * size_w * kernel_h * pair
        of_plane = channels * kernel_d * pair  # bytes of a frequency of the plane
        out_step = vectors * padded * whole
        for group in range(groups):
            for vector in range(vectors):
                for part in range(parts):
                    for channel in range(channels):
                        for d in range(kernel_d):
                            for h in range(kernel_h):
                                _evaluate(
                                    kernel_w,
                                    1,
                                    width,
                                    1,
                                    source=source,
                                    factors=p[9],
                                    count=size_w,
                                    out=lines + (d * size_w * kernel_h + h) * pair,
                                    out_step=kernel_h * pair,
                                    out_im=number,
                                )
                                source += kernel_w * number
                            for w in range(size_w):
                                _evaluate(
                                    kernel_h,
                                    0,
                                    width,
                                    1,
                                    source=lines + (d * size_w + w) * kernel_h * pair,
                                    factors=p[8],
                                    count=size_h,
                                    out=planes + w * of_plane + (channel * kernel_d + d) * pair,
                                    out_step=size_w * of_plane,
                                    out_im=number,
                                )
                    for frequency in range(size_h * size_w):
                        out = step[F.out] + part * width * itemsize + vector * padded * whole
                        out += (group * size_h * size_w + frequency) * size_d * out_step
                        for channel in range(channels):
                            _evaluate(
                                kernel_d,
                                0,
                                width,
                                double,
                                source=planes + frequency * of_plane + channel * kernel_d * pair,
                                factors=p[7],
                                count=size_d,
                                out=out + channel * whole,
                                out_step=out_step,
                                out_im=lanes * itemsize,
                            )

    return loops

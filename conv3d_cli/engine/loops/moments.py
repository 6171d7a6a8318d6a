"""Mean and variance of the voxels in the window of each output, and statistics made of them.

Voxels are combined axis by axis: those of a column of the window into their mean and variance,
these along the height, and where the window is separable, those along the width. Every combination
is taken around the value of one of its own terms, that with the largest weight. So nothing but the
spread within the window cancels, however large the voxels are; what does not vary has the variance
0; and the bits of an output depend on its window alone.

Source of the sums: T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance,
The American Statistician 37 (1983) 242-247.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.simd import I64, REAL_TYPES, Vec, const, emit_loop, inlined, memory
from conv3d_cli.engine.moments import ALONE, QUANTITIES, SCALARS_AT, STATISTICS
from conv3d_cli.engine.moments import MOMENTS_AT as AT
from conv3d_cli.engine.step import F

MEAN, STD, VARIANCE, ZSCORE, SNR, CONTRAST = range(len(STATISTICS))


@intrinsic(prefer_literal=True)
def _combine(
    typingctx, vectors, lanes, bits, weighted, rows, column, weights, taps, pivot, out, apart
):
    """Combine `taps` rows into one, for `vectors` vectors of columns from `column` on.

    bits : int          32 or 64: rows of voxels; 0: of numbers combined before
    weighted : int      0: all voxels count; 1: as much as their certainty; 2: the sum of squares of
                        what they count is needed, too
    rows : address      int64: the address of each row; if voxels are weighted, then those of the
                        rows of their certainties
    weights : address   float64, of the taps
    pivot : int         the tap with the largest weight
    out : address       of the resulting row: means; variances, coverages and sums of squares are
                        `apart` bytes apart. Rows that were combined before are like this, too.
    """
    literals = vectors, lanes, bits, weighted
    sig = types.void(*literals, rows, column, weights, taps, pivot, out, apart)
    C, width, size, kind = (literal.literal_value for literal in literals)

    def codegen(context, b, sig, args):
        rows, column, weights, taps, pivot, out, apart = args[4:]
        v = Vec(b, width, "float64")
        rows = b.inttoptr(rows, I64.as_pointer())
        weights = b.inttoptr(weights, v.real.as_pointer())
        places = [b.add(column, const(width * i)) for i in range(C)]
        stored = REAL_TYPES["float32" if size == 32 else "float64"]

        def load(address, place):
            pointer = b.gep(b.inttoptr(address, stored.as_pointer()), [place])
            if size != 32:
                return v.load(pointer, const(0))
            few = ir.VectorType(stored, width)
            value = b.load(b.bitcast(pointer, few.as_pointer()))
            value.align = 4
            return b.fpext(value, v.type)

        def row(tap):
            return b.load(b.gep(rows, [tap]))

        def quantity(tap, number, place):
            """Mean, variance, coverage or sum of squares at a place of a row."""
            return load(b.add(row(tap), b.mul(apart, const(number))), place)

        def coverage(tap, place):
            return load(row(b.add(taps, tap)), place) if size else quantity(tap, 2, place)

        def above(value, least):
            return b.fcmp_ordered(">", value, least)

        def unweighted():
            pivots = [quantity(pivot, 0, place) for place in places]

            def body(tap, values):
                weight, found = v.broadcast(weights, tap), []
                for place, around, first, second in zip(
                    places, pivots, values[:C], values[C:], strict=True
                ):
                    off = b.fsub(quantity(tap, 0, place), around)
                    square = b.fmul(off, off) if size else v.fma(off, off, quantity(tap, 1, place))
                    found.append((v.fma(weight, off, first), v.fma(weight, square, second)))
                return [first for first, _ in found] + [second for _, second in found]

            _, sums = emit_loop(b, const(0), taps, 1, [v.zero] * (2 * C), body)
            for place, around, mean, square in zip(places, pivots, sums[:C], sums[C:], strict=True):
                finish(place, [b.fadd(around, mean), v.fma(b.fneg(mean), mean, square)])

        def with_weights():
            def search(tap, values):
                weight, found = v.broadcast(weights, tap), []
                for place, most, around in zip(places, values[:C], values[C:], strict=True):
                    counts = b.fmul(weight, coverage(tap, place))
                    is_more = above(counts, most)
                    found.append(
                        (
                            b.select(is_more, counts, most),
                            b.select(is_more, quantity(tap, 0, place), around),
                        )
                    )
                return [most for most, _ in found] + [around for _, around in found]

            _, found = emit_loop(b, const(0), taps, 1, [v.zero] * (2 * C), search)
            pivots = found[C:]

            def body(tap, values):
                weight, new = v.broadcast(weights, tap), []
                for i, place in enumerate(places):
                    total, first, second, squares = values[4 * i : 4 * i + 4]
                    certainty = coverage(tap, place)
                    counts = b.fmul(weight, certainty)
                    off = b.fsub(quantity(tap, 0, place), pivots[i])
                    if size:  # what does not count may be NaN
                        off = b.select(above(counts, v.zero), off, v.zero)
                        square = b.fmul(off, off)
                    else:
                        square = v.fma(off, off, quantity(tap, 1, place))
                    if kind == 2:
                        own = b.fmul(certainty, certainty) if size else quantity(tap, 3, place)
                        squares = v.fma(b.fmul(weight, weight), own, squares)
                    new += [
                        b.fadd(total, counts),
                        v.fma(counts, off, first),
                        v.fma(counts, square, second),
                        squares,
                    ]
                return new

            _, sums = emit_loop(b, const(0), taps, 1, [v.zero] * (4 * C), body)
            for i, place in enumerate(places):
                total, first, second, squares = sums[4 * i : 4 * i + 4]
                divisor = b.select(above(total, v.zero), total, v.splat(1.0))
                mean = b.fdiv(first, divisor)
                variance = v.fma(b.fneg(mean), mean, b.fdiv(second, divisor))
                rest = [total, squares] if kind == 2 else [total]
                finish(place, [b.fadd(pivots[i], mean), variance, *rest])

        def finish(place, values):
            # rounding may leave less than nothing; NaN stays
            is_less = b.fcmp_ordered("<", values[1], v.zero)
            values[1] = b.select(is_less, v.zero, values[1])
            for number, value in enumerate(values):
                address = b.add(out, b.mul(apart, const(number)))
                v.store(value, b.inttoptr(address, v.real.as_pointer()), place)

        (with_weights if kind else unweighted)()
        return context.get_dummy_value()

    return sig, codegen


@inlined
def ratio(above, below):
    """A quotient, which is 0 where its divisor is; NaN stays."""
    return above / below if below != 0.0 else 0.0 * above


def moments(real, weighted, lanes, vectors):
    """A statistic of the window of each output in some rows and columns, in all planes of a box.

    weighted : int      see `_combine`
    lanes, vectors : int    of float64 in a vector; vectors that are combined at once
    Parameters: see `engine.moments.MOMENTS_AT`.
    """
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    quantities = QUANTITIES[weighted]

    def combining(bits):
        """A function that combines the columns begin <= k < end of rows of voxels, or moments."""

        @inlined
        def combine(rows, weights, taps, pivot, begin, end, out, apart):
            k = begin
            while k + vectors * lanes <= end:
                _combine(vectors, lanes, bits, weighted, rows, k, weights, taps, pivot, out, apart)
                k += vectors * lanes
            if end - begin >= lanes:
                while k < end:
                    k = min(k, end - lanes)  # some of them again
                    _combine(1, lanes, bits, weighted, rows, k, weights, taps, pivot, out, apart)
                    k += lanes
            else:
                while k < end:
                    _combine(1, 1, bits, weighted, rows, k, weights, taps, pivot, out, apart)
                    k += 1

        return combine

    combine_voxels, combine_moments = combining(8 * size), combining(0)

    @inlined
    def fill(p, address, first, stop, counts):
        """The moments of voxels outside the volume, which count, or do not."""
        value = memory(p[AT.scalars], np.float64)[SCALARS_AT.outside]
        for number in range(quantities):
            row = memory(address + number * p[AT.apart], np.float64)
            what = 0.0
            if counts and number != 1:
                what = value if number == 0 else 1.0
            for k in range(first, stop):
                row[k] = what

    @inlined
    def combine_columns(p, plane, row, out):
        """Combine voxels along depth, for each profile: one after another at `out`."""
        apart = p[AT.apart]
        table, segments = memory(p[AT.table], np.int64), memory(p[AT.segments], np.int64)
        planes = memory(p[AT.planes_at] + 8 * plane, np.int64)
        profiles = memory(p[AT.profiles], np.int64)
        for profile in range(p[AT.profile_count]):
            first, taps, pivot = (
                profiles[3 * profile],
                profiles[3 * profile + 1],
                profiles[3 * profile + 2],
            )
            reach = memory(p[AT.reach_d] + 8 * first, np.int64)
            for tap in range(taps):
                at = planes[reach[tap]]
                if at < 0:
                    table[tap] = p[AT.outside]
                    if weighted:
                        table[taps + tap] = p[AT.outside_counts]
                else:
                    place = at * p[AT.source_plane] + row * p[AT.source_row]
                    table[tap] = p[AT.source] + size * place
                    if weighted:
                        place = at * p[AT.certainty_plane] + row * p[AT.certainty_row]
                        table[taps + tap] = p[AT.certainty] + size * place
            for n in range(p[AT.segment_count]):
                position, stop = segments[4 * n], segments[4 * n + 1]
                column, copied = segments[4 * n + 2], segments[4 * n + 3]
                if copied >= 0:
                    for number in range(quantities):
                        to = memory(out + number * apart, np.float64)
                        for k in range(stop - position):
                            to[position + k] = to[copied + k]
                elif column < 0:
                    fill(p, out, position, stop, p[AT.counts_w])
                else:
                    combine_voxels(
                        p[AT.table],
                        p[AT.weights_d] + 8 * first,
                        taps,
                        pivot,
                        column,
                        column + stop - position,
                        out + 8 * (position - column),
                        apart,
                    )
            out += quantities * apart

    @inlined
    def finish(p, moments, out, own, own_counts):
        """Compute the statistic of a row; returns the number of outputs that see too little.

        own, own_counts : addresses of the outputs' own voxels, or sums, and of what they count
        """
        apart, columns, statistic = p[AT.apart], p[AT.columns], p[AT.statistic]
        means, variances = memory(moments, np.float64), memory(moments + apart, np.float64)
        coverages = memory(moments + 2 * apart, np.float64)
        squares = memory(moments + 3 * apart, np.float64)
        scalars, lost = memory(p[AT.scalars], np.float64), 0
        voxels, result = memory(own, kind), memory(out, kind)
        for k in range(columns):
            if weighted == 2:
                # as many voxels of equal weight would have a mean of this variance
                number = coverages[k] * coverages[k] / squares[k]
                coverages[k] = coverages[k] if number > ALONE else 0.0
                variances[k] *= number / (number - 1.0)
            else:
                variances[k] *= scalars[SCALARS_AT.correction]
        if statistic == MEAN:
            for k in range(columns):
                # NaN where a voxel is NaN or infinite
                result[k] = kind(means[k] + (variances[k] - variances[k]))
        elif statistic == VARIANCE:
            for k in range(columns):
                result[k] = kind(variances[k])
        elif statistic == STD:
            for k in range(columns):
                result[k] = kind(math.sqrt(variances[k]))
        elif statistic == ZSCORE:
            for k in range(columns):
                off = np.float64(voxels[k]) - means[k]
                result[k] = kind(ratio(off, math.sqrt(variances[k])))
        elif statistic == SNR:
            for k in range(columns):
                result[k] = kind(ratio(means[k], math.sqrt(variances[k])))
        elif statistic == CONTRAST:
            for k in range(columns):
                result[k] = kind(ratio(math.sqrt(variances[k]), means[k]))
        else:
            steady = scalars[SCALARS_AT.steady]
            for k in range(columns):
                deviation = math.sqrt(variances[k])
                value = np.float64(voxels[k]) / deviation
                value = 1.0 if value > 1.0 else value
                value = -1.0 if value < -1.0 else value
                result[k] = kind(0.0 if deviation <= steady * abs(means[k]) else value)
            for k in range(columns):
                limit = steady * means[k]
                lost += (variances[k] <= limit * limit) & (variances[k] > 0.0)
        if weighted:
            counts = memory(own_counts, kind)
            least, empty = scalars[SCALARS_AT.min_coverage], kind(scalars[SCALARS_AT.empty])
            for k in range(columns):
                sees, is_there = coverages[k] >= least and coverages[k] > 0.0, counts[k] > 0
                lost += not sees and (is_there or not p[AT.told_inside])
                if not sees or (statistic == ZSCORE and not is_there):
                    result[k] = empty
        return lost

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        apart, height = p[AT.apart], p[AT.height]
        channels, row_bytes = p[AT.channels], quantities * apart
        slot_bytes, block_h, block_w = p[AT.parts] * row_bytes, p[AT.block_h], p[AT.block_w]
        table, rows = memory(p[AT.table], np.int64), memory(p[AT.rows_at], np.int64)
        reach_h, reach_w = memory(p[AT.reach_h], np.int64), memory(p[AT.reach_w], np.int64)
        lost = 0
        for plane in range(p[AT.planes]):
            ready = 0
            for h in range(p[AT.rows]):
                while ready < h + height:
                    slot = p[AT.ring] + (ready % height) * slot_bytes
                    if rows[ready] < 0:
                        for profile in range(p[AT.profile_count]):
                            fill(
                                p,
                                slot + profile * row_bytes,
                                0,
                                p[AT.positions],
                                p[AT.counts_h],
                            )
                    else:
                        combine_columns(p, plane, rows[ready], slot)
                    ready += 1
                    if 0 < block_h <= ready:
                        first = ready - block_h
                        for tap in range(block_h):
                            table[tap] = p[AT.ring] + (first + tap) % height * slot_bytes
                        combine_moments(
                            p[AT.table],
                            p[AT.block_weights_h],
                            block_h,
                            0,
                            0,
                            p[AT.positions],
                            p[AT.ring] + first % height * slot_bytes + row_bytes,
                            apart,
                        )
                for tap in range(p[AT.taps_h]):
                    slot = (h + reach_h[2 * tap]) % height
                    table[tap] = p[AT.ring] + slot * slot_bytes + reach_h[2 * tap + 1]
                is_separable = p[AT.taps_w] > 0
                moments = p[AT.buffer]
                combine_moments(
                    p[AT.table],
                    p[AT.weights_h],
                    p[AT.taps_h],
                    p[AT.pivot_h],
                    0,
                    p[AT.positions] if is_separable else p[AT.columns],
                    moments,
                    apart,
                )
                if is_separable:
                    if block_w > 0:
                        for tap in range(block_w):
                            table[tap] = moments + 8 * channels * tap
                        combine_moments(
                            p[AT.table],
                            p[AT.block_weights_w],
                            block_w,
                            0,
                            0,
                            p[AT.positions] - (block_w - 1) * channels,
                            moments + row_bytes,
                            apart,
                        )
                    for tap in range(p[AT.taps_w]):
                        table[tap] = moments + reach_w[tap]
                    moments += 2 * row_bytes
                    combine_moments(
                        p[AT.table],
                        p[AT.weights_w],
                        p[AT.taps_w],
                        p[AT.pivot_w],
                        0,
                        p[AT.columns],
                        moments,
                        apart,
                    )
                out = p[AT.out] + size * (plane * p[AT.out_plane] + h * p[AT.out_row])
                own = plane * p[AT.own_plane] + h * p[AT.own_row]
                counts = plane * p[AT.certainty_plane] + h * p[AT.certainty_row]
                lost += finish(
                    p,
                    moments,
                    out,
                    p[AT.own] + size * own,
                    p[AT.own_counts] + size * counts,
                )
        p[AT.lost] = lost

    return loops

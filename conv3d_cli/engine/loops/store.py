"""The end of a step: bias, rounding, saturation, and the store in the output's dtype and order.

It runs on the step's accumulator while that is still in the cache, so none of it needs another pass
over the volume.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.cpu import cpu_class, fuses
from conv3d_cli.engine.loops.simd import I32, I64, Vec, const, copy_vector, inlined, memory
from conv3d_cli.engine.step import F


@intrinsic(prefer_literal=True)
def _stream_vector(typingctx, lanes, double, source, target):
    """Copy one vector between addresses, bypassing the caches; the target is aligned."""
    sig = types.void(lanes, double, source, target)
    real = "float64" if double.literal_value else "float32"
    width = lanes.literal_value

    def codegen(context, builder, sig, args):
        v = Vec(builder, width, real)
        pointer = v.real.as_pointer()
        value = v.load(builder.inttoptr(args[2], pointer), const(0))
        v.stream(value, builder.inttoptr(args[3], pointer), const(0))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _stream_two(typingctx, lanes, double, front, count, back, target):
    """As `_stream_vector`: the first `count` numbers are those at `front`, the rest from `back`."""
    sig = types.void(lanes, double, front, count, back, target)
    real = "float64" if double.literal_value else "float32"
    width = lanes.literal_value

    def codegen(context, b, sig, args):
        v = Vec(b, width, real)
        front, count, back, target = args[2:]
        pointer = v.real.as_pointer()
        first, second = (v.load(b.inttoptr(at, pointer), const(0)) for at in (front, back))
        kind = ir.VectorType(I64, width)
        numbers, undefined = ir.Constant(kind, list(range(width))), ir.Constant(kind, ir.Undefined)
        counts = b.insert_element(undefined, count, ir.Constant(I32, 0))
        counts = b.shuffle_vector(
            counts, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width)
        )
        value = b.select(b.icmp_signed("<", numbers, counts), first, second)
        v.stream(value, b.inttoptr(target, pointer), const(0))
        return context.get_dummy_value()

    return sig, codegen


def rounding(number):
    """The function that rounds a float32 or float64 to the nearest whole number, halves to even."""
    if fuses():  # then the CPU has an instruction for this, too
        return np.rint
    whole = number(2.0 ** np.finfo(number).nmant)  # numbers from here on have no fraction

    @inlined
    def nearest(value):
        size = abs(value)
        rounded = (size + whole) - whole if size < whole else size
        return rounded if value >= 0 else -rounded

    return nearest


def store(real, out_dtype):
    """Store a block of rows of a step, and count the values that the dtype cannot represent.

    real : str          name of the sums' dtype
    out_dtype : str     float32, float64 or an integer dtype
    """
    kind, out_kind = np.dtype(real).type, np.dtype(out_dtype).type
    is_float = np.dtype(out_dtype).kind == "f"
    is_wide = not is_float and np.dtype(out_dtype).itemsize == 8
    same = real == out_dtype
    itemsize = np.dtype(real).itemsize
    lanes = cpu_class().lanes * 4 // itemsize
    double = 1 if real == "float64" else 0
    # float32 represents every integer of 16 bits; the limits of 32 bits need float64
    number = np.float64 if real == "float64" or np.dtype(out_dtype).itemsize > 2 else np.float32
    nearest = rounding(number)
    if not is_float:
        limits = np.iinfo(out_dtype)
        lowest, highest = number(limits.min), number(limits.max)
        least, most, beyond = out_kind(limits.min), out_kind(limits.max), number(limits.max + 1)
    else:
        lowest = highest = least = most = beyond = number(0)

    @inlined
    def put(acc, acc_step, out, out_step, count):
        """Store `count` sums. Returns the number of values that the dtype cannot represent."""
        clipped = 0
        if is_float:
            if acc_step == 1 and out_step == 1:
                for k in range(count):
                    out[k] = out_kind(acc[k])
            else:
                for k in range(count):
                    out[k * out_step] = out_kind(acc[k * acc_step])
        elif is_wide:
            for k in range(count):
                value = nearest(number(acc[k * acc_step]))
                if lowest <= value < beyond:
                    out[k * out_step] = out_kind(value)
                else:
                    clipped += 1
                    if value >= beyond:
                        out[k * out_step] = most
                    elif value < lowest:
                        out[k * out_step] = least
                    else:
                        out[k * out_step] = out_kind(0)  # NaN
        else:
            for k in range(count):
                value = nearest(number(acc[k * acc_step]))
                held = value if value > lowest else lowest
                held = held if held < highest else highest
                held = held if value == value else number(0)  # NaN becomes 0 and is counted
                out[k * out_step] = out_kind(held)
                clipped += held != value
        return clipped

    @inlined
    def copy(source, target, first, stop):
        """Copy the numbers first <= k < stop from one address to another one."""
        acc, out = memory(source, kind), memory(target, kind)
        for k in range(first, stop):
            out[k] = acc[k]

    @inlined
    def stream(source, target, first, stop):
        """As `copy`, bypassing the caches with whole vectors once the target is aligned."""
        aligned = min(first + (-(target // itemsize + first)) % lanes, stop)
        copy(source, target, first, aligned)
        k = aligned
        while k + lanes <= stop:
            _stream_vector(lanes, double, source + itemsize * k, target + itemsize * k)
            k += lanes
        copy(source, target, k, stop)

    @inlined
    def join(step, row, plane, source, target):
        """Store the ends of one of a task's rows that follow each other without a gap.

        Two rows share a vector of the output: `shared` holds the end of the first row until the
        second one is there, and the vector is stored as a whole. Half of one would be read from
        memory first, and later stores would wait for it (a Gaussian of sigma 1 on 256^3 float32
        takes 1.2 times as long).
        Returns the columns between the ends: (first, stop).
        """
        width, shared = step[F.width], step[F.shared] + 2 * itemsize * lanes * plane
        first = (-(target // itemsize)) % lanes
        stop = width - (width - first) % lanes
        if first > 0 and row > 0:
            before = lanes - first
            back, to = source - itemsize * before, target - itemsize * before
            _stream_two(lanes, double, shared + itemsize * first, before, back, to)
        else:
            copy(source, target, 0, first)
        if row + 1 < step[F.height]:
            copy_vector(lanes, double, 0, source + itemsize * (width - lanes), shared)
        else:
            copy(source, target, stop, width)
        return first, stop

    out_size = np.dtype(out_dtype).itemsize

    def loops(step):
        filters, planes = step[F.filters], step[F.step_planes]
        height, width = step[F.block_rows], step[F.width]
        acc_filter, acc_column = step[F.acc_filter_step], step[F.acc_column_step]
        out_filter, out_column = step[F.out_filter_step], step[F.out_column_step]
        first_filter = step[F.group] * filters
        bias = memory(step[F.bias] + itemsize * first_filter, kind)
        has_bias = step[F.has_bias] != 0
        base = first_filter * out_filter + step[F.step_plane] * step[F.out_plane_step]
        base += (step[F.row] + step[F.block_row]) * step[F.out_row_step] + step[
            F.column
        ] * out_column
        by_filter = acc_filter == 1 and (out_filter == 1 or acc_column != 1)
        joined = by_filter and out_filter == 1 and acc_column == filters and out_column == filters
        streams = same and step[F.streaming] != 0
        # columns that `convolve` has stored are left out; it does so only with planar sums
        stored, stored_stop = step[F.stored_column], step[F.stored_column_stop]
        parts = 2 if stored_stop > 0 else 1
        if stored_stop - stored == width:
            return
        joins = streams and filters == 1 and acc_column == 1 and out_column == 1
        joins &= step[F.shared] != 0 and step[F.out_row_step] == width and width >= lanes
        clipped = 0
        for i in range(planes):
            for j in range(height):
                row = step[F.accumulator] + itemsize * (
                    i * step[F.acc_plane_step] + j * step[F.acc_row_step]
                )
                to = step[F.out] + out_size * (
                    base + i * step[F.out_plane_step] + j * step[F.out_row_step]
                )
                if has_bias:
                    if by_filter:
                        for k in range(width):
                            acc = memory(row + itemsize * k * acc_column, kind)
                            for f in range(filters):
                                acc[f] += bias[f]
                    else:
                        for f in range(filters):
                            acc = memory(row + itemsize * f * acc_filter, kind)
                            for k in range(width):
                                acc[k] += bias[f]
                if joined:
                    if streams:
                        stream(row, to, 0, width * filters)
                    else:
                        clipped += put(
                            memory(row, kind), 1, memory(to, out_kind), 1, width * filters
                        )
                elif by_filter:
                    for k in range(width):
                        acc = memory(row + itemsize * k * acc_column, kind)
                        out = memory(to + out_size * k * out_column, out_kind)
                        clipped += put(acc, 1, out, out_filter, filters)
                else:
                    begin, end = 0, width
                    if joins:
                        begin, end = join(step, step[F.block_row] + j, i, row, to)
                    for part in range(parts):
                        first = stored_stop if part == 1 else begin
                        stop = stored if part + 1 < parts else end
                        for f in range(filters):
                            source = row + itemsize * f * acc_filter
                            target = to + out_size * f * out_filter
                            if streams and acc_column == 1 and out_column == 1:
                                stream(source, target, first, stop)
                            else:
                                clipped += put(
                                    memory(source + itemsize * first * acc_column, kind),
                                    acc_column,
                                    memory(target + out_size * first * out_column, out_kind),
                                    out_column,
                                    stop - first,
                                )
        if not is_float:
            counts = memory(step[F.clipped], np.int64)
            counts[step[F.step_number]] += clipped  # added, since a step may be stored in parts

    return loops

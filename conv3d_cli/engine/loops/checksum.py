"""Checksums: functions around pack, activate and store that check a step while it is computed.

Each takes the place of a function that the driver calls, calls it, and checks what it has done.
None of them changes a number of the convolution. What is compared, and why, stands in
`engine/checksum.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from conv3d_cli.engine.checksum import (
    LANES,
    TAPS_AT_ONCE,
    UNCHECKED,
    WRONG_INPUT,
    WRONG_OUTPUT,
    WRONG_SUMS,
)
from conv3d_cli.engine.loops.simd import Vec, call, const, inlined, memory, real_field
from conv3d_cli.engine.step import F


class _Numbers:
    """Emits code on vectors of `LANES` numbers of a real type, as float64 and as bits."""

    def __init__(self, builder: Any, double: int) -> None:
        self.b = builder
        self.narrow = Vec(builder, LANES, "float64" if double else "float32")
        self.wide = Vec(builder, LANES, "float64")
        self.bits = ir.VectorType(ir.IntType(64 if double else 32), LANES)

    def pointer(self, address: Any, wide: bool = False) -> Any:
        """An address as a pointer to numbers of the real type, or of float64."""
        real = self.wide.real if wide else self.narrow.real
        return self.b.inttoptr(address, real.as_pointer())

    def widened(self, loaded: Any) -> Any:
        """A loaded vector as float64."""
        same = self.narrow.real is self.wide.real
        return loaded if same else self.b.fpext(loaded, self.wide.type)

    def sum(self, value: Any) -> Any:
        """A variable that begins with a value."""
        return cgutils.alloca_once_value(self.b, value)

    def add(self, total: Any, value: Any) -> None:
        """Add float64 numbers to a variable."""
        self.b.store(self.b.fadd(self.b.load(total), value), total)


@intrinsic(prefer_literal=True)
def _scan(typingctx, double, with_sums, source, blocks, table, sums):
    """Read `blocks` vectors of `LANES` numbers: add up their bits, and look for the largest.

    table : address     of two vectors of integers: sums of bits, and largest magnitudes; updated
    sums : address      with_sums: the sums of the numbers in float64, (LANES,); updated
    """
    sig = types.void(double, with_sums, source, blocks, table, sums)
    is_double, adds = double.literal_value, with_sums.literal_value

    def codegen(context, builder, sig, args):
        n = _Numbers(builder, is_double)
        source = n.pointer(args[2])
        tables = builder.inttoptr(args[4], n.bits.as_pointer())
        places = [builder.gep(tables, [const(k)]) for k in range(2)]
        start = [builder.load(place, align=4) for place in places]
        total, largest = (n.sum(value) for value in start)
        sums = []
        if adds:
            before = n.wide.load(n.pointer(args[5], wide=True), const(0))
            sums = [n.sum(before), n.sum(n.wide.zero)]
        width = 64 if is_double else 32
        magnitude = ir.Constant(n.bits, [(1 << (width - 1)) - 1] * LANES)

        def read(offset, which):
            loaded = n.narrow.load(source, offset)
            number = builder.bitcast(loaded, n.bits)
            builder.store(builder.add(builder.load(total), number), total)
            number, top = builder.and_(number, magnitude), builder.load(largest)
            larger = builder.icmp_unsigned(">", number, top)
            builder.store(builder.select(larger, number, top), largest)
            if adds:
                n.add(sums[which], n.widened(loaded))

        # two sums at once, since an addition waits for the previous one
        with cgutils.for_range(builder, builder.lshr(args[3], const(1))) as loop:
            for k in range(2):
                read(builder.add(builder.mul(loop.index, const(2 * LANES)), const(k * LANES)), k)
        with builder.if_then(builder.trunc(args[3], ir.IntType(1))):
            read(builder.mul(builder.sub(args[3], const(1)), const(LANES)), 0)
        for place, variable in zip(places, (total, largest), strict=True):
            builder.store(builder.load(variable), place, align=4)
        if adds:
            both = builder.fadd(*(builder.load(one) for one in sums))
            n.wide.store(both, n.pointer(args[5], wide=True), const(0))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _lane_sums(typingctx, double, source, blocks, target):
    """Sum `blocks` vectors of `LANES` numbers lane by lane, in float64, into target (LANES,)."""
    sig = types.void(double, source, blocks, target)
    is_double = double.literal_value

    def codegen(context, builder, sig, args):
        n = _Numbers(builder, is_double)
        source = n.pointer(args[1])
        sums = [n.sum(n.wide.zero) for _ in range(2)]

        def read(offset, which):
            n.add(sums[which], n.widened(n.narrow.load(source, offset)))

        with cgutils.for_range(builder, builder.lshr(args[2], const(1))) as loop:
            for k in range(2):
                read(builder.add(builder.mul(loop.index, const(2 * LANES)), const(k * LANES)), k)
        with builder.if_then(builder.trunc(args[2], ir.IntType(1))):
            read(builder.mul(builder.sub(args[2], const(1)), const(LANES)), 0)
        both = builder.fadd(*(builder.load(one) for one in sums))
        n.wide.store(both, n.pointer(args[3], wide=True), const(0))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def _signed_sum(typingctx, double, source, step, count, signs, target):
    """Sum `count` vectors of `LANES` numbers, `step` bytes apart, into target (LANES,).

    signs : address     float64 (LANES,): factors of the vectors, repeated
    """
    sig = types.void(double, source, step, count, signs, target)
    is_double = double.literal_value

    def codegen(context, builder, sig, args):
        n = _Numbers(builder, is_double)
        signs = n.pointer(args[4], wide=True)
        total = n.sum(n.wide.zero)
        with cgutils.for_range(builder, args[3]) as loop:
            here = n.pointer(builder.add(args[1], builder.mul(loop.index, args[2])))
            loaded = n.widened(n.narrow.load(here, const(0)))
            which = builder.and_(loop.index, const(LANES - 1))
            sign = n.wide.broadcast(signs, which)
            builder.store(n.wide.fma(loaded, sign, builder.load(total)), total)
        n.wide.store(builder.load(total), n.pointer(args[5], wide=True), const(0))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def _products(typingctx, first, second, blocks):
    """The sum of products of `blocks` vectors of `LANES` float64 numbers."""
    sig = types.float64(first, second, blocks)

    def codegen(context, builder, sig, args):
        v = Vec(builder, LANES, "float64")
        a, b = (builder.inttoptr(address, v.real.as_pointer()) for address in args[:2])
        total = cgutils.alloca_once_value(builder, v.zero)
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.mul(loop.index, const(LANES))
            builder.store(v.fma(v.load(a, at), v.load(b, at), builder.load(total)), total)
        return builder.extract_element(
            v.add_across([builder.load(total)]), ir.Constant(ir.IntType(32), 0)
        )

    return sig, codegen


@intrinsic
def _turned_sums(typingctx, lanes, table, step, target):
    """Sum lanes with the signs of `TAPS_AT_ONCE` taps: target[t] = sum of lanes[k] * table[k][t].

    table : address     float64, rows `step` bytes apart
    """
    sig = types.void(lanes, table, step, target)

    def codegen(context, builder, sig, args):
        v = Vec(builder, TAPS_AT_ONCE, "float64")
        pointer = v.real.as_pointer()
        lanes = builder.inttoptr(args[0], pointer)
        sums = [v.zero, v.zero]
        for k in range(LANES):
            row = builder.inttoptr(builder.add(args[1], builder.mul(args[2], const(k))), pointer)
            signs = v.load(row, const(0))
            sums[k % 2] = v.fma(v.broadcast(lanes, const(k)), signs, sums[k % 2])
        v.store(builder.fadd(*sums), builder.inttoptr(args[3], pointer), const(0))
        return context.get_dummy_value()

    return sig, codegen


@inlined
def _dot(first, second, count):
    """The sum of products of `count` float64 numbers at two addresses."""
    blocks = count // LANES
    total = _products(first, second, blocks)
    a, b = memory(first, np.float64), memory(second, np.float64)
    for k in range(blocks * LANES, count):
        total += a[k] * b[k]
    return total


def _adders(real):
    """Functions that sum vectors of numbers with signs: of this real type, and of float64.

    Each takes (address, bytes between two vectors, how many, their length, signs, target), where
    signs are float64 (LANES,), repeated, and target float64 (length,).
    """

    def adder(name):
        kind, double = np.dtype(name).type, 1 if name == "float64" else 0
        itemsize = 8 if double else 4

        @inlined
        def add(source, between, count, length, signs, target):
            blocks = length // LANES
            for block in range(blocks):
                _signed_sum(
                    double,
                    source + itemsize * block * LANES,
                    between,
                    count,
                    signs,
                    target + 8 * block * LANES,
                )
            factors, to = memory(signs, np.float64), memory(target, np.float64)
            for c in range(blocks * LANES, length):
                total = 0.0
                for k in range(count):
                    total += factors[k % LANES] * np.float64(memory(source + k * between, kind)[c])
                to[c] = total

        return add

    return adder(real), adder("float64")


def inspect(layout, real):
    """Around `pack`: pack the plane a second time elsewhere, and note sums of that copy.

    layout : str    "rows" or "voxels"
    real : str      the packed dtype

    The plane that leaves the ring is compared with what was noted of its copy, so it must have been
    packed right and stayed so while it was in use. The sums over columns are what `compare` expects
    of the outputs.
    """
    kind = np.dtype(real).type
    itemsize = np.dtype(real).itemsize
    double = 1 if itemsize == 8 else 0
    bits = np.uint64 if double else np.uint32
    magnitude = bits(0x7FFFFFFFFFFFFFFF if double else 0x7FFFFFFF)
    in_rows = layout == "rows"

    @inlined
    def count_of(width, phase, stride):
        """How many positions of a row have this stride phase."""
        return (width - phase + stride - 1) // stride

    @inlined
    def clear(table):
        """Begin a digest: two vectors of integers, see `_scan`."""
        found = memory(table, bits)
        for k in range(2 * LANES):
            found[k] = bits(0)

    @inlined
    def scan_rest(address, start, count, table):
        """Add the bits of the numbers start <= k < count at an address to a digest."""
        numbers, found = memory(address, bits), memory(table, bits)
        for k in range(start, count):
            number = numbers[k]
            found[0] = bits(found[0] + number)
            number = bits(number & magnitude)
            found[LANES] = number if number > found[LANES] else found[LANES]

    @inlined
    def scan(address, count, table):
        """Add the bits of `count` numbers at an address to a digest."""
        blocks = count // LANES
        _scan(double, 0, address, blocks, table, 0)
        scan_rest(address, blocks * LANES, count, table)

    @inlined
    def finish(table, result):
        """Write a digest as two integers: the sum of all bits, and the largest magnitude."""
        found, to = memory(table, bits), memory(result, bits)
        total, largest = bits(0), bits(0)
        for k in range(LANES):
            total = bits(total + found[k])
            largest = found[LANES + k] if found[LANES + k] > largest else largest
        to[0] = total
        to[1] = largest

    @inlined
    def scan_plane(step, base, channel_step, table):
        """Add all numbers of a packed plane to a digest."""
        stride, pitch, channels = step[F.stride_w], step[F.pitch], step[F.channels]
        height = (step[F.height] - 1) * step[F.stride_h] + step[F.extent_h]
        width = (step[F.width] - 1) * stride + step[F.extent_w]
        if in_rows:
            for c in range(channels):
                for j in range(height):
                    row = base + itemsize * (c * channel_step + j * step[F.row_step])
                    if step[F.packed_stop] > 0:  # what is read in place is not packed
                        start = step[F.packed_start]
                        scan(row, step[F.packed_stop], table)
                        scan(row + itemsize * start, width - start, table)
                        continue
                    for phase in range(stride):
                        count = count_of(width, phase, stride)
                        scan(row + itemsize * phase * pitch, count, table)
        else:
            joined = pitch == channels
            pieces, length = (1, width * channels) if joined else (width, channels)
            for j in range(height):
                for p in range(pieces):
                    scan(base + itemsize * (j * step[F.row_step] + p * pitch), length, table)

    @inlined
    def leave(step, slot):
        """Compare the plane in a slot of the ring with what was noted of it."""
        held = memory(step[F.held_planes], np.int64)
        if held[slot] < 0:
            return
        held[slot] = -1
        clear(step[F.digest])
        plane = step[F.scratch] + itemsize * slot * step[F.plane_step]
        scan_plane(step, plane, step[F.channel_step], step[F.digest])
        finish(step[F.digest], step[F.held_bits] + 16 * step[F.ring])
        found = memory(step[F.held_bits] + 16 * step[F.ring], bits)
        noted = memory(step[F.held_bits] + 16 * slot, bits)
        if found[0] != noted[0]:
            verdicts = memory(step[F.verdicts], np.uint8)
            first = step[F.task] * step[F.steps_per_task]
            for number in range(first, first + step[F.steps_per_task]):
                verdicts[number] |= WRONG_INPUT

    @inlined
    def sum_row_of_rows(step, row, line, sums):
        """The sums of a packed row for every tap along the width, weighted by the signs.

        line : address      of the same row in the source, if it is read in place

        Those of the first tap cover the positions 0 to width - 1; each following one leaves out
        some at the start and takes as many in at the end.
        """
        stride, pitch, width = step[F.stride_w], step[F.pitch], step[F.width]
        lanes, to = memory(step[F.lane_sums], np.float64), memory(sums, np.float64)
        shifts, phases = memory(step[F.tap_shifts], np.int64), memory(step[F.phase_taps], np.int64)
        table, table_step = step[F.tap_signs], 8 * step[F.tap_signs_step]
        positions = (width - 1) * stride + step[F.extent_w]
        for phase in range(stride):
            address = row + itemsize * phase * pitch
            numbers = memory(address, kind)
            first, end = phases[phase], phases[phase + 1]
            count = count_of(positions, phase, stride)
            blocks = min(count, width) // LANES
            for k in range(LANES):
                lanes[k] = 0.0
            first_block = last_block = 0  # those that are read in the source
            if step[F.packed_stop] > 0:
                first_block = (max(step[F.run_start] - step[F.column], 0) + LANES - 1) // LANES
                last_block = (step[F.packed_start] + LANES - 1) // LANES
            for part in range(3 if last_block > 0 else 1):
                start, end_block, from_row = 0, blocks, address
                if last_block > 0 and part == 0:
                    end_block = first_block
                elif part == 1:
                    start, end_block, from_row = first_block, last_block, line
                elif part == 2:
                    start = last_block
                from_row += itemsize * start * LANES
                count_blocks = end_block - start
                _scan(double, 1, from_row, count_blocks, step[F.digest], step[F.lane_sums])
            scan_rest(address, blocks * LANES, count, step[F.digest])
            for k in range(blocks * LANES, width if first < end else 0):
                lanes[k % LANES] += np.float64(numbers[k])
            for tap in range(first, end, TAPS_AT_ONCE):
                _turned_sums(step[F.lane_sums], table + 8 * tap, table_step, sums + 8 * tap)
            tap, k = first, 0
            while tap < end:
                if shifts[tap] <= k:
                    tap += 1
                    continue
                left, taken = np.float64(numbers[k]), np.float64(numbers[width + k])
                old = memory(table + table_step * (k % LANES), np.float64)
                new = memory(table + table_step * ((width + k) % LANES), np.float64)
                for t in range(tap, end):
                    to[t] += taken * new[t] - left * old[t]
                k += 1

    add_voxels, add_sums = _adders(real)

    @inlined
    def sum_row_of_voxels(step, row, sums):
        """As `sum_row_of_rows`, for all channels: sums (taps, channels)."""
        stride, pitch, width = step[F.stride_w], step[F.pitch], step[F.width]
        taps, dilation, channels = step[F.taps_w], step[F.dilation_w], step[F.channels]
        for phase in range(stride):
            shift = -1
            for tap in range(taps):
                if tap * dilation % stride != phase:
                    continue
                if shift < 0:
                    here, between = row + itemsize * phase * pitch, itemsize * stride * pitch
                    for lane in range(LANES):
                        to = step[F.lane_sums] + 8 * lane * channels
                        count = (width - lane + LANES - 1) // LANES
                        start = here + lane * between
                        add_voxels(start, LANES * between, count, channels, step[F.ones], to)
                    shift = 0
                while shift < tap * dilation // stride:
                    first = memory(row + itemsize * (phase + shift * stride) * pitch, kind)
                    lanes = memory(step[F.lane_sums] + 8 * (shift % LANES) * channels, np.float64)
                    for c in range(channels):
                        lanes[c] -= np.float64(first[c])
                    x = shift + width
                    last = memory(row + itemsize * (phase + x * stride) * pitch, kind)
                    lanes = memory(step[F.lane_sums] + 8 * (x % LANES) * channels, np.float64)
                    for c in range(channels):
                        lanes[c] += np.float64(last[c])
                    shift += 1
                signs = step[F.column_signs] + 8 * LANES * (shift % LANES)
                to = sums + 8 * tap * channels
                add_sums(step[F.lane_sums], 8 * channels, LANES, channels, signs, to)

    def loops(step):
        ring, position = step[F.ring], step[F.position]
        held = memory(step[F.held_planes], np.int64)
        largest = memory(step[F.plane_largest], bits)
        ends = position < 0  # `compare` calls it so at the end of a task
        if not ends and step[F.inspected_task] != step[F.task]:
            step[F.inspected_task] = step[F.task]
            for slot in range(ring):
                held[slot] = -1
            for slot in range(step[F.sum_planes]):
                largest[slot] = bits(0)
        slot = step[F.slot]
        for leaving in range(0 if ends else slot, ring if ends else slot + 1):
            leave(step, leaving)
        if ends:
            return
        call(step[F.plain_pack], step)

        scratch, channel_step = step[F.scratch], step[F.channel_step]
        step[F.scratch] = step[F.second_plane] - itemsize * slot * step[F.plane_step]
        if in_rows:
            step[F.channel_step] = step[F.plane_step]
        call(step[F.plain_pack], step)
        second_step = step[F.channel_step]
        step[F.scratch], step[F.channel_step] = scratch, channel_step

        clear(step[F.digest])
        held[slot] = position
        sum_slot = position % step[F.sum_planes]
        in_place = step[F.packed_stop] > 0
        if not in_rows or in_place:  # other rows are scanned while they are summed
            scan_plane(step, step[F.second_plane], second_step, step[F.digest])
            finish(step[F.digest], step[F.held_bits] + 16 * slot)
        lines = memory(step[F.source_lines] + 8 * slot * step[F.lines_step], np.int64)
        channels, row_sums = step[F.channels], step[F.row_sums]
        height = (step[F.height] - 1) * step[F.stride_h] + step[F.extent_h]
        for j in range(height):
            to = step[F.plane_sums] + 8 * (sum_slot * step[F.plane_sums_step] + j * row_sums)
            row = step[F.second_plane] + itemsize * j * step[F.row_step]
            if in_rows:
                for c in range(channels):
                    sums = to + 8 * c * step[F.taps_w]
                    line = lines[j] if in_place else 0
                    sum_row_of_rows(step, row + itemsize * c * second_step, line, sums)
            else:
                sum_row_of_voxels(step, row, to)
        # what is read in place tells the largest number, but is none of the bits that are held
        found = step[F.held_bits] + 16 * (ring if in_place else slot)
        finish(step[F.digest], found)
        largest[sum_slot] = memory(found, bits)[1]

    return loops


def compare(real):
    """Around `activate`: compare the sums of a block of rows with what its input makes them.

    real : str      the dtype of the sums
    """
    kind = np.dtype(real).type
    itemsize = np.dtype(real).itemsize
    double = 1 if itemsize == 8 else 0
    bits = np.uint64 if double else np.uint32
    infinite = bits(0x7FF0000000000000 if double else 0x7F800000)
    add_sums, _ = _adders(real)

    @inlined
    def summed(step, plane, row):
        """The sum over a row of outputs, all filters, weighted by their signs."""
        width, filters = step[F.width], step[F.filters]
        filter_signs = memory(step[F.filter_signs], np.float64)
        signs = memory(step[F.column_signs], np.float64)
        start = step[F.accumulator] + itemsize * (
            plane * step[F.acc_plane_step] + row * step[F.acc_row_step]
        )
        total = 0.0
        if step[F.acc_column_step] == 1:
            blocks = width // LANES
            for f in range(filters):
                address = start + itemsize * f * step[F.acc_filter_step]
                _lane_sums(double, address, blocks, step[F.lane_sums])
                part = _products(step[F.lane_sums], step[F.column_signs], 1)
                numbers = memory(address, kind)
                for k in range(blocks * LANES, width):
                    part += signs[k % LANES] * np.float64(numbers[k])
                total += filter_signs[f] * part
        else:
            between = itemsize * step[F.acc_column_step]
            add_sums(start, between, width, filters, step[F.column_signs], step[F.lane_sums])
            total = _dot(step[F.lane_sums], step[F.filter_signs], filters)
        return total

    @inlined
    def expected(step, plane, row, weights, length):
        """The same sums, out of sums of the input: (row .. row + rows of a unit)."""
        start = (row * step[F.stride_h]) * step[F.row_sums]
        position = (step[F.step_plane] + plane) * step[F.stride_d]
        total = 0.0
        for tap in range(step[F.taps_d]):
            slot = (position + tap * step[F.dilation_d]) % step[F.sum_planes]
            sums = step[F.plane_sums] + 8 * (slot * step[F.plane_sums_step] + start)
            total += _dot(sums, weights + 8 * tap * length, length)
        return total

    def loops(step):
        number = step[F.step_number]
        verdicts = memory(step[F.verdicts], np.uint8)
        deviations = memory(step[F.deviations], np.float64)
        found = memory(step[F.plane_largest], bits)
        top = bits(0)
        for slot in range(step[F.sum_planes]):
            top = found[slot] if found[slot] > top else top
        cell = memory(step[F.lane_sums], bits)
        cell[0] = top
        largest = np.float64(memory(step[F.lane_sums], kind)[0])
        block = step[F.group]
        scale = largest * memory(step[F.sums_of_weights], np.float64)[block]
        if top >= infinite or not (scale < real_field(step, F.overflow)):
            verdicts[number] |= UNCHECKED
        else:
            tiny = real_field(step, F.underflow)
            allowed = scale * real_field(step, F.tolerance) + tiny
            row_signs = memory(step[F.row_signs], np.float64)
            unit = step[F.unit_rows]
            long, short = step[F.unit_length], step[F.row_length]
            of_units = step[F.unit_weights] + 8 * block * step[F.taps_d] * long
            of_rows = step[F.row_weights] + 8 * block * step[F.taps_d] * short
            for plane in range(step[F.step_planes]):
                row = 0
                while row < step[F.block_rows]:
                    rows = unit if row + unit <= step[F.block_rows] else 1
                    total = 0.0
                    for r in range(rows):
                        total += row_signs[r] * summed(step, plane, row + r)
                    weights, length = (of_units, long) if rows > 1 else (of_rows, short)
                    # row_signs[0] is 1, so that a row by itself counts as it is
                    first = step[F.block_row] + row
                    difference = abs(total - expected(step, plane, first, weights, length))
                    if not difference <= allowed:
                        verdicts[number] |= WRONG_SUMS
                    ratio = difference / scale if scale > 0 else difference / tiny
                    if not ratio <= deviations[number]:
                        deviations[number] = ratio
                    row += rows
        last_plane = step[F.step_plane] + step[F.step_planes] == step[F.plane] + step[F.depth]
        if last_plane and step[F.block_row] + step[F.block_rows] == step[F.height]:
            position = step[F.position]
            step[F.position] = -1
            call(step[F.pack], step)
            step[F.position] = position
        if step[F.plain_activate] != 0:
            call(step[F.plain_activate], step)

    return loops


def read_back(itemsize, copies):
    """Around `store`: compare all bits of a stored block with what it should hold.

    itemsize : int      bytes of a stored number
    copies : int        1: the sums are stored as they are, so the accumulator is what the block
                        should hold; 0: store it a second time elsewhere
    """
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[itemsize]

    @inlined
    def first_of(step, filter_step, plane_step, row_step, column_step):
        """The offset of the block's first number from that of the slab, in elements."""
        return (
            step[F.group] * step[F.filters] * filter_step
            + step[F.step_plane] * plane_step
            + (step[F.row] + step[F.block_row]) * row_step
            + step[F.column] * column_step
        )

    @inlined
    def store_again(step, filter_step, plane_step, row_step, column_step):
        """Store the block at `second_out`, with these strides; the sums contain the bias by now."""
        out, has_bias, streaming = step[F.out], step[F.has_bias], step[F.streaming]
        out_filter, out_plane = step[F.out_filter_step], step[F.out_plane_step]
        out_row, out_column = step[F.out_row_step], step[F.out_column_step]
        clipped = memory(step[F.clipped], np.int64)
        before = clipped[step[F.step_number]]
        step[F.has_bias] = step[F.streaming] = 0
        step[F.out_filter_step], step[F.out_plane_step] = filter_step, plane_step
        step[F.out_row_step], step[F.out_column_step] = row_step, column_step
        step[F.out] = step[F.second_out] - itemsize * first_of(
            step, filter_step, plane_step, row_step, column_step
        )
        call(step[F.plain_store], step)
        clipped[step[F.step_number]] = before
        step[F.out], step[F.has_bias], step[F.streaming] = out, has_bias, streaming
        step[F.out_filter_step], step[F.out_plane_step] = out_filter, out_plane
        step[F.out_row_step], step[F.out_column_step] = out_row, out_column

    @inlined
    def differ(first, first_step, second, second_step, count):
        """Whether any of `count` numbers at two addresses differ."""
        a, b = memory(first, bits), memory(second, bits)
        different = bits(0)
        if first_step == 1 and second_step == 1:
            for k in range(count):
                different |= a[k] ^ b[k]
        else:
            for k in range(count):
                different |= a[k * first_step] ^ b[k * second_step]
        return different != 0

    def loops(step):
        filters, planes = step[F.filters], step[F.step_planes]
        rows, width = step[F.block_rows], step[F.width]
        out_filter, out_plane = step[F.out_filter_step], step[F.out_plane_step]
        out_row, out_column = step[F.out_row_step], step[F.out_column_step]
        call(step[F.plain_store], step)
        if copies:
            second = step[F.accumulator]
            filter_step, plane_step = step[F.acc_filter_step], step[F.acc_plane_step]
            row_step, column_step = step[F.acc_row_step], step[F.acc_column_step]
        else:
            second = step[F.second_out]
            if out_filter == 1:
                filter_step, column_step = 1, filters
            else:
                filter_step, column_step = planes * rows * width, 1
            row_step = width * column_step
            plane_step = rows * row_step
            store_again(step, filter_step, plane_step, row_step, column_step)
        start = step[F.out] + itemsize * first_of(step, out_filter, out_plane, out_row, out_column)
        by_voxel = out_filter == 1 and filter_step == 1
        joined = by_voxel and out_column == filters and column_step == filters
        different = False
        for i in range(planes):
            for j in range(rows):
                here = start + itemsize * (i * out_plane + j * out_row)
                there = second + itemsize * (i * plane_step + j * row_step)
                if joined:
                    different |= differ(here, 1, there, 1, width * filters)
                elif by_voxel:
                    for k in range(width):
                        different |= differ(
                            here + itemsize * k * out_column,
                            1,
                            there + itemsize * k * column_step,
                            1,
                            filters,
                        )
                else:
                    for f in range(filters):
                        different |= differ(
                            here + itemsize * f * out_filter,
                            out_column,
                            there + itemsize * f * filter_step,
                            column_step,
                            width,
                        )
        if different:
            verdicts = memory(step[F.verdicts], np.uint8)
            verdicts[step[F.step_number]] |= WRONG_OUTPUT

    return loops

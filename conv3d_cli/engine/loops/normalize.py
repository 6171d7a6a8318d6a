"""What a normalised convolution does beside its two sums: the division, and a look at where weights are."""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.pack import value_of
from conv3d_cli.engine.loops.simd import inlined, memory, real_field
from conv3d_cli.engine.loops.weigh import weigher
from conv3d_cli.engine.normalize import BLOCK_COLUMNS, BLOCK_ROWS, HOLDING, INSIDE, LACKING
from conv3d_cli.engine.normalize import CLEAR_AT as C
from conv3d_cli.engine.normalize import EXTENTS_AT as E
from conv3d_cli.engine.normalize import SURVEY_AT as S
from conv3d_cli.engine.step import F


def divide(real, inside_dtype):
    """The end of a step of coverage: the sums in `out` are divided by what stands in the accumulator.

    Not where that is whole (within `near` of 1); `void` stands where it is less than `least`. `clipped` counts these,
    where `inside` is above 0. `repeat` channels of sums belong to one of coverage. What is whole is exactly 1 where coverage is
    put. inside_dtype: "none" where all are counted
    """
    kind, itemsize = np.dtype(real).type, np.dtype(real).itemsize
    masked = inside_dtype != "none"
    inside_type = np.dtype(inside_dtype).type if masked else kind
    inside_size, none = np.dtype(inside_type).itemsize, inside_type(0)

    def loops(step):
        filters, planes, height, width = step[F.filters], step[F.step_planes], step[F.block_rows], step[F.width]
        near, least = kind(real_field(step, F.near)), kind(real_field(step, F.least))
        void, one = kind(real_field(step, F.void)), kind(1)
        repeat, part_step, sum_step = step[F.repeat], step[F.acc_column_step], step[F.out_column_step]
        put_step, inside_step = step[F.coverage_column_step], step[F.inside_column_step]
        first_filter = step[F.group] * filters
        column = step[F.column]
        bare = 0
        for i in range(planes):
            for j in range(height):
                plane, row = step[F.step_plane] + i, step[F.row] + step[F.block_row] + j
                inside_at = plane * step[F.inside_plane_step] + row * step[F.inside_row_step] + column * inside_step
                inside = memory(step[F.inside] + inside_size * inside_at, inside_type)
                base = plane * step[F.out_plane_step] + row * step[F.out_row_step] + column * sum_step
                for f in range(filters):
                    from_row = i * step[F.acc_plane_step] + j * step[F.acc_row_step] + f * step[F.acc_filter_step]
                    parts = memory(step[F.accumulator] + itemsize * from_row, kind)
                    for c in range(repeat):
                        at = base + ((first_filter + f) * repeat + c) * step[F.out_filter_step]
                        sums = memory(step[F.out] + itemsize * at, kind)
                        if part_step == 1 and sum_step == 1:
                            for k in range(width):
                                part, value = parts[k], sums[k]
                                mean = value / part
                                mean = value if abs(part - one) <= near else mean
                                seen = part >= least
                                sums[k] = mean if seen else void
                                bare += (not seen) & (inside[k * inside_step] > none) if masked else not seen
                        else:
                            for k in range(width):
                                part, value = parts[k * part_step], sums[k * sum_step]
                                mean = value / part
                                mean = value if abs(part - one) <= near else mean
                                seen = part >= least
                                sums[k * sum_step] = mean if seen else void
                                bare += (not seen) & (inside[k * inside_step] > none) if masked else not seen
                    if step[F.coverage] != 0:
                        at = plane * step[F.coverage_plane_step] + row * step[F.coverage_row_step]
                        at += column * put_step + first_filter + f
                        put = memory(step[F.coverage] + itemsize * at, kind)
                        for k in range(width):
                            part = parts[k * part_step]
                            put[k * put_step] = one if abs(part - one) <= near else part
        counts = memory(step[F.clipped], np.int64)
        counts[step[F.step_number]] += bare

    return loops


def survey(source_dtype, real, is_mask):
    """Where the weights of planes are: `LACKING`, `HOLDING`, `INSIDE` of each block of their voxels.

    is_mask: 1 where the voxels are weights themselves
    Parameters: see `engine.normalize.S`; how voxels are weighed as in `loops/weigh.py`.
    """
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    in_size = np.dtype(source_dtype).itemsize
    zero, one = kind(0), kind(1)
    weight_of = weigher(real)
    by_bits = is_mask or np.dtype(source_dtype).kind == "f"
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[in_size]
    exponent = {4: 0x7F800000, 8: 0x7FF0000000000000}.get(in_size, 0)
    of_one = int(np.ones((), source_dtype).view(bits))

    @inlined
    def of_block(numbers, first):
        """Of a whole block by its numbers' bits: they are weights, or weigh 1 where they are finite."""
        lacking, holding = bits(0), bits(0)
        for k in range(first, first + BLOCK_COLUMNS):
            number = numbers[k]
            if is_mask:
                lacking |= bits(number != bits(of_one))
                holding |= bits(number != bits(0))
            else:
                lacking |= bits((number & bits(exponent)) == bits(exponent))
                holding |= bits((number & bits(exponent)) != bits(exponent))
        return LACKING * (lacking != 0) | (HOLDING | INSIDE) * (holding != 0)

    @inlined
    def of_any(source, first, last, column_step, scaled, slope, intercept, finite, compare, missing):
        lacking = holding = False
        for k in range(first, last):
            raw = source[k * column_step]
            value = kind(value_of(raw, scaled, slope, intercept))
            weight = value if is_mask else weight_of(raw, value, one, False, zero, finite, compare, missing)
            lacking |= weight != one
            holding |= weight > zero
        return LACKING * lacking | (HOLDING | INSIDE) * holding

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        finite, compare = step[F.finite] != 0, step[F.compare] != 0
        missing = raw_type(real_field(step, F.missing))
        width, blocks, column_step, bands = p[S.width], p[S.blocks], p[S.source_column], p[S.bands]
        plain = by_bits and column_step == 1 and not scaled and (is_mask or (finite and not compare))
        for plane in range(p[S.planes]):
            for row in range(p[S.height]):
                address = p[S.source] + (plane * p[S.source_plane] + row * p[S.source_row]) * in_size
                source, numbers = memory(address, raw_type), memory(address, bits)
                found = memory(p[S.found] + (plane * bands + row // BLOCK_ROWS) * blocks, np.uint8)
                for block in range(blocks):
                    first = block * BLOCK_COLUMNS
                    if plain and width - first >= BLOCK_COLUMNS:
                        seen = of_block(numbers, first)
                    else:
                        last = min(first + BLOCK_COLUMNS, width)
                        seen = of_any(
                            source, first, last, column_step, scaled, slope, intercept, finite, compare, missing
                        )
                    found[block] |= np.uint8(seen)

    return loops


def clear(real, mask_dtype):
    """Make sums 0 where a mask is not above 0. Parameters: see `engine.normalize.C`."""
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    mask_type, mask_size = np.dtype(mask_dtype).type, np.dtype(mask_dtype).itemsize
    zero, none = kind(0), mask_type(0)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        width, column, mask_column, channels, channel = (
            p[C.width], p[C.sums_column], p[C.mask_column], p[C.channels], p[C.sums_channel],
        )  # fmt: skip
        for plane in range(p[C.planes]):
            for row in range(p[C.height]):
                sums = memory(p[C.sums] + (plane * p[C.sums_plane] + row * p[C.sums_row]) * size, kind)
                mask = memory(p[C.mask] + (plane * p[C.mask_plane] + row * p[C.mask_row]) * mask_size, mask_type)
                if column == 1 and mask_column == 1:
                    for k in range(width):
                        value = sums[k]
                        sums[k] = value if mask[k] > none else zero
                else:
                    for k in range(width):
                        for c in range(channels):
                            value = sums[k * column + c * channel]
                            sums[k * column + c * channel] = value if mask[k * mask_column] > none else zero

    return loops


def label_extents(dtype):
    """Widen each label's (first, last) plane, row and column by those of planes of labels.

    Parameters: see `engine.normalize.E`; `found` holds six int64 a label.
    """
    kind, size = np.dtype(dtype).type, np.dtype(dtype).itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        width = p[E.width]
        for plane in range(p[E.planes]):
            for row in range(p[E.height]):
                labels = memory(p[E.labels] + (plane * p[E.labels_plane] + row * p[E.labels_row]) * size, kind)
                k = 0
                while k < width:
                    label, first = labels[k], k
                    while k < width and labels[k] == label:
                        k += 1
                    if label > kind(0):
                        found = memory(p[E.found] + 48 * np.int64(label), np.int64)
                        found[0], found[1] = min(found[0], plane), max(found[1], plane)
                        found[2], found[3] = min(found[2], row), max(found[3], row)
                        found[4], found[5] = min(found[4], first), max(found[5], k - 1)

    return loops

"""The other loops of masked convolution: division by coverage, flags, clearing, label extents."""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.pack import value_of
from conv3d_cli.engine.loops.simd import inlined, memory, real_field
from conv3d_cli.engine.loops.weighted_pack import certainty_function
from conv3d_cli.engine.step import F
from conv3d_cli.engine.weighting import BLOCK_COLUMNS, BLOCK_ROWS, IN_MASK, INCOMPLETE, PRESENT
from conv3d_cli.engine.weighting import CLEAR_AT as CLEAR
from conv3d_cli.engine.weighting import EXTENT_AT as EXTENT
from conv3d_cli.engine.weighting import FLAG_AT as FLAG


def divide(real, inside_dtype):
    """Divide the sums in `out` by the coverage in the accumulator, in place of the store.

    real : str          name of the sums' dtype
    inside_dtype : str  name of the dtype of `inside`; "none": count everywhere
    Where the coverage is within `near_one` of 1, sums are not divided, and the coverage is stored
    as exactly 1. Where it is less than `min_coverage`, sums become `empty_value`; `clipped` counts
    these outputs where `inside` is above 0. One channel of coverage divides `repeat` channels of
    sums.
    """
    kind, itemsize = np.dtype(real).type, np.dtype(real).itemsize
    masked = inside_dtype != "none"
    inside_type = np.dtype(inside_dtype).type if masked else kind
    inside_size, none = np.dtype(inside_type).itemsize, inside_type(0)

    def loops(step):
        filters, planes = step[F.filters], step[F.step_planes]
        height, width = step[F.block_rows], step[F.width]
        near, least = kind(real_field(step, F.near_one)), kind(real_field(step, F.min_coverage))
        empty, one = kind(real_field(step, F.empty_value)), kind(1)
        repeat = step[F.repeat]
        part_step, sum_step = step[F.acc_column_step], step[F.out_column_step]
        put_step, inside_step = step[F.coverage_column_step], step[F.inside_column_step]
        first_filter = step[F.group] * filters
        column = step[F.column]
        below = 0
        for i in range(planes):
            for j in range(height):
                plane, row = step[F.step_plane] + i, step[F.row] + step[F.block_row] + j
                inside_at = (
                    plane * step[F.inside_plane_step]
                    + row * step[F.inside_row_step]
                    + column * inside_step
                )
                inside = memory(step[F.inside] + inside_size * inside_at, inside_type)
                base = (
                    plane * step[F.out_plane_step] + row * step[F.out_row_step] + column * sum_step
                )
                for f in range(filters):
                    from_row = (
                        i * step[F.acc_plane_step]
                        + j * step[F.acc_row_step]
                        + f * step[F.acc_filter_step]
                    )
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
                                sums[k] = mean if seen else empty
                                below += (
                                    (not seen) & (inside[k * inside_step] > none)
                                    if masked
                                    else not seen
                                )
                        else:
                            for k in range(width):
                                part, value = parts[k * part_step], sums[k * sum_step]
                                mean = value / part
                                mean = value if abs(part - one) <= near else mean
                                seen = part >= least
                                sums[k * sum_step] = mean if seen else empty
                                below += (
                                    (not seen) & (inside[k * inside_step] > none)
                                    if masked
                                    else not seen
                                )
                    if step[F.coverage] != 0:
                        at = plane * step[F.coverage_plane_step] + row * step[F.coverage_row_step]
                        at += column * put_step + first_filter + f
                        put = memory(step[F.coverage] + itemsize * at, kind)
                        for k in range(width):
                            part = parts[k * part_step]
                            put[k * put_step] = one if abs(part - one) <= near else part
        counts = memory(step[F.clipped], np.int64)
        counts[step[F.step_number]] += below

    return loops


def certainty_flags(source_dtype, real, is_mask):
    """Set `INCOMPLETE`, `PRESENT` and `IN_MASK` for each block of voxels of some planes.

    is_mask : int       1 if the voxels are themselves certainties
    Parameters: see `engine.weighting.FlagArguments`. `loops/weighted_pack.py` defines certainty.
    """
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    in_size = np.dtype(source_dtype).itemsize
    zero, one = kind(0), kind(1)
    certainty_of = certainty_function(real)
    by_bits = is_mask or np.dtype(source_dtype).kind == "f"
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[in_size]
    exponent = {4: 0x7F800000, 8: 0x7FF0000000000000}.get(in_size, 0)
    of_one = int(np.ones((), source_dtype).view(bits))

    @inlined
    def of_block(numbers, first):
        """The flags of a row of a whole block, from the bits of its numbers.

        The numbers are certainties, or have certainty 1 if they are finite and 0 otherwise.
        """
        incomplete, present = bits(0), bits(0)
        for k in range(first, first + BLOCK_COLUMNS):
            number = numbers[k]
            if is_mask:
                incomplete |= bits(number != bits(of_one))
                present |= bits(number != bits(0))
            else:
                incomplete |= bits((number & bits(exponent)) == bits(exponent))
                present |= bits((number & bits(exponent)) != bits(exponent))
        return INCOMPLETE * (incomplete != 0) | (PRESENT | IN_MASK) * (present != 0)

    @inlined
    def of_any(
        source,
        first,
        last,
        column_step,
        scaled,
        slope,
        intercept,
        nonfinite_missing,
        compares,
        missing,
    ):
        incomplete = present = False
        for k in range(first, last):
            raw = source[k * column_step]
            value = kind(value_of(raw, scaled, slope, intercept))
            certainty = value
            if not is_mask:
                certainty = certainty_of(
                    raw, value, one, False, zero, nonfinite_missing, compares, missing
                )
            incomplete |= certainty != one
            present |= certainty > zero
        return INCOMPLETE * incomplete | (PRESENT | IN_MASK) * present

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        nonfinite_missing, compares = step[F.nonfinite_missing] != 0, step[F.compares] != 0
        missing = raw_type(real_field(step, F.missing_value))
        width, blocks = p[FLAG.width], p[FLAG.blocks]
        column_step, bands = p[FLAG.source_column], p[FLAG.bands]
        plain = (
            by_bits
            and column_step == 1
            and not scaled
            and (is_mask or (nonfinite_missing and not compares))
        )
        for plane in range(p[FLAG.planes]):
            for row in range(p[FLAG.height]):
                address = (
                    p[FLAG.source]
                    + (plane * p[FLAG.source_plane] + row * p[FLAG.source_row]) * in_size
                )
                source, numbers = memory(address, raw_type), memory(address, bits)
                found = memory(
                    p[FLAG.found] + (plane * bands + row // BLOCK_ROWS) * blocks, np.uint8
                )
                for block in range(blocks):
                    first = block * BLOCK_COLUMNS
                    if plain and width - first >= BLOCK_COLUMNS:
                        seen = of_block(numbers, first)
                    else:
                        last = min(first + BLOCK_COLUMNS, width)
                        seen = of_any(
                            source,
                            first,
                            last,
                            column_step,
                            scaled,
                            slope,
                            intercept,
                            nonfinite_missing,
                            compares,
                            missing,
                        )
                    found[block] |= np.uint8(seen)

    return loops


def clear(real, mask_dtype):
    """Set sums to 0 where a mask is not above 0.

    Parameters: see `engine.weighting.ClearArguments`.
    """
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    mask_type, mask_size = np.dtype(mask_dtype).type, np.dtype(mask_dtype).itemsize
    zero, none = kind(0), mask_type(0)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        width, column, mask_column = p[CLEAR.width], p[CLEAR.sums_column], p[CLEAR.mask_column]
        channels, channel = p[CLEAR.channels], p[CLEAR.sums_channel]
        for plane in range(p[CLEAR.planes]):
            for row in range(p[CLEAR.height]):
                sums = memory(
                    p[CLEAR.sums] + (plane * p[CLEAR.sums_plane] + row * p[CLEAR.sums_row]) * size,
                    kind,
                )
                mask = memory(
                    p[CLEAR.mask]
                    + (plane * p[CLEAR.mask_plane] + row * p[CLEAR.mask_row]) * mask_size,
                    mask_type,
                )
                if column == 1 and mask_column == 1:
                    for k in range(width):
                        value = sums[k]
                        sums[k] = value if mask[k] > none else zero
                else:
                    for k in range(width):
                        for c in range(channels):
                            value = sums[k * column + c * channel]
                            sums[k * column + c * channel] = (
                                value if mask[k * mask_column] > none else zero
                            )

    return loops


def label_extents(dtype):
    """Extend each label's first and last plane, row and column to its voxels in some planes.

    Parameters: see `engine.weighting.ExtentArguments`; `found` has six int64 per label.
    """
    kind, size = np.dtype(dtype).type, np.dtype(dtype).itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        width = p[EXTENT.width]
        for plane in range(p[EXTENT.planes]):
            for row in range(p[EXTENT.height]):
                labels = memory(
                    p[EXTENT.labels]
                    + (plane * p[EXTENT.labels_plane] + row * p[EXTENT.labels_row]) * size,
                    kind,
                )
                k = 0
                while k < width:
                    label, first = labels[k], k
                    while k < width and labels[k] == label:
                        k += 1
                    if label > kind(0):
                        found = memory(p[EXTENT.found] + 48 * np.int64(label), np.int64)
                        found[0], found[1] = min(found[0], plane), max(found[1], plane)
                        found[2], found[3] = min(found[2], row), max(found[3], row)
                        found[4], found[5] = min(found[4], first), max(found[5], k - 1)

    return loops

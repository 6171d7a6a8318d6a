"""What a normalised convolution does beside its two sums: the division, and a look at where weights are."""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.pack import value_of
from conv3d_cli.engine.loops.simd import inlined, memory, real_field
from conv3d_cli.engine.loops.weigh import weigher
from conv3d_cli.engine.normalize import BLOCK_COLUMNS, BLOCK_ROWS, HOLDING, INSIDE, LACKING
from conv3d_cli.engine.normalize import EXTENTS_AT as E
from conv3d_cli.engine.normalize import SURVEY_AT as S
from conv3d_cli.engine.step import F


def divide(real):
    """The end of a step of coverage: the sums in `out` are divided by what stands in the accumulator.

    Not where that is whole (within `near` of 1); `void` stands where it is less than `least`. `clipped` counts these. `repeat`
    channels of sums belong to one of coverage. What is whole is exactly 1 where coverage is put.
    """
    kind, itemsize = np.dtype(real).type, np.dtype(real).itemsize

    def loops(step):
        filters, planes, height, width = step[F.filters], step[F.step_planes], step[F.block_rows], step[F.width]
        near, least = kind(real_field(step, F.near)), kind(real_field(step, F.least))
        void, one = kind(real_field(step, F.void)), kind(1)
        repeat, part_step, sum_step = step[F.repeat], step[F.acc_column_step], step[F.out_column_step]
        put_step = step[F.coverage_column_step]
        first_filter = step[F.group] * filters
        column = step[F.column]
        bare = 0
        for i in range(planes):
            for j in range(height):
                plane, row = step[F.step_plane] + i, step[F.row] + step[F.block_row] + j
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
                                bare += not seen
                        else:
                            for k in range(width):
                                part, value = parts[k * part_step], sums[k * sum_step]
                                mean = value / part
                                mean = value if abs(part - one) <= near else mean
                                seen = part >= least
                                sums[k * sum_step] = mean if seen else void
                                bare += not seen
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
    """Where the weights of a plane are: `LACKING`, `HOLDING`, `INSIDE` of each block of its voxels.

    is_mask: 1 where the voxels are weights themselves
    Parameters: see `engine.normalize.S`; how voxels are weighed as in `loops/weigh.py`.
    """
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    in_size = np.dtype(source_dtype).itemsize
    zero, one = kind(0), kind(1)
    weight_of = weigher(real)

    @inlined
    def bits(value, raw, finite, compare, missing):
        weight = value if is_mask else weight_of(raw, value, one, False, zero, finite, compare, missing)
        above = np.int32(weight > zero)
        return np.int32(LACKING) * np.int32(weight != one) | np.int32(HOLDING | INSIDE) * above

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        finite, compare = step[F.finite] != 0, step[F.compare] != 0
        missing = raw_type(real_field(step, F.missing))
        width, blocks, column_step = p[S.width], p[S.blocks], p[S.source_column]
        for row in range(p[S.height]):
            source = memory(p[S.source] + row * p[S.source_row] * in_size, raw_type)
            found = memory(p[S.found] + row // BLOCK_ROWS * blocks, np.uint8)
            for block in range(blocks):
                first = block * BLOCK_COLUMNS
                seen = np.int32(0)
                if width - first >= BLOCK_COLUMNS and column_step == 1 and not scaled:
                    for k in range(BLOCK_COLUMNS):
                        raw = source[first + k]
                        seen |= bits(kind(raw), raw, finite, compare, missing)
                else:
                    for k in range(first, min(first + BLOCK_COLUMNS, width)):
                        raw = source[k * column_step]
                        seen |= bits(kind(value_of(raw, scaled, slope, intercept)), raw, finite, compare, missing)
                found[block] |= np.uint8(seen)

    return loops


def label_extents(real):
    """Widen each label's (first, last) plane, row and column by those of a plane of labels.

    Parameters: see `engine.normalize.E`; `found` holds six int64 a label.
    """
    kind, size = np.dtype(real).type, np.dtype(real).itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        width, plane = p[E.width], p[E.plane]
        for row in range(p[E.height]):
            labels = memory(p[E.labels] + row * p[E.labels_row] * size, kind)
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

"""Packing for a masked convolution: voxels times their certainty, or the certainty alone.

The layouts are those of `loops/pack.py`. A voxel's certainty is the mask's value (1 without a mask;
with `labelled`, 1 where the mask equals the label and 0 elsewhere), and 0 if the voxel is missing.
Both sums of a masked convolution read the same source, so memory never contains a volume of
products or certainties. `last_incomplete` is set to the last position where a certainty other than
1 was packed.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.pack import finder, positions, value_of
from conv3d_cli.engine.loops.simd import inlined, memory, real_field
from conv3d_cli.engine.step import F
from conv3d_cli.engine.views import OUTSIDE_OFFSET


def certainty_function(real):
    """A function that returns a voxel's certainty.

    raw, value: the voxel as stored, and scaled
    given: the mask's value
    missing: the stored number that is missing, if `compares`
    """
    kind = np.dtype(real).type
    zero, one = kind(0), kind(1)

    @inlined
    def certainty(raw, value, given, labelled, label, nonfinite_missing, compares, missing):
        own = (one if given == label else zero) if labelled else given
        known = own > zero
        known &= (not nonfinite_missing) | (value - value == zero)
        known &= (not compares) | (raw != missing)
        return own if known else zero

    return certainty


def pack_weighted_rows(source_dtype, real, mask_dtype):
    """As `pack_rows`; mask_dtype: the mask's dtype by name, "none" without a mask."""
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    masked = mask_dtype != "none"
    mask_type = np.dtype(mask_dtype).type if masked else kind
    itemsize = np.dtype(real).itemsize
    zero, one = kind(0), kind(1)
    certainty_of, holds_huge = certainty_function(real), finder(real, 1)

    def loops(step):
        source, mask = memory(step[F.source], raw_type), memory(step[F.mask], mask_type)
        planes, rows = memory(step[F.planes], np.int64), memory(step[F.rows], np.int64)
        mask_planes = memory(step[F.mask_planes], np.int64)
        mask_rows = memory(step[F.mask_rows], np.int64)
        fill = kind(real_field(step, F.fill))
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        packs_certainty, labelled = step[F.packs_certainty] != 0, step[F.labelled] != 0
        nonfinite_missing, compares = step[F.nonfinite_missing] != 0, step[F.compares] != 0
        label = kind(real_field(step, F.label))
        missing = raw_type(real_field(step, F.missing_value))
        stride, pitch, column_step = step[F.stride_w], step[F.pitch], step[F.source_column_step]
        height, width, first_row, first_column, run_start, run_stop = positions(step)
        if stride != 1:
            run_stop = run_start
        columns = memory(step[F.columns] + 8 * first_column, np.int64)
        mask_columns = memory(step[F.mask_columns] + 8 * first_column, np.int64)
        plane = planes[step[F.position]]
        run = run_stop - run_start
        incomplete = False
        for c in range(step[F.channels]):
            origin = (step[F.group] * step[F.channels] + c) * step[F.source_channel_step]
            to = step[F.scratch] + itemsize * (
                step[F.slot] * step[F.plane_step] + c * step[F.channel_step]
            )
            for j in range(height):
                target = memory(to + itemsize * j * step[F.row_step], kind)
                row = rows[first_row + j]
                if plane == OUTSIDE_OFFSET or row == OUTSIDE_OFFSET:
                    for phase in range(stride):
                        for p in range((width - phase + stride - 1) // stride):
                            target[phase * pitch + p] = fill
                    continue
                at, mask_at = origin + plane + row, 0
                if masked:
                    mask_at = mask_planes[step[F.position]] + mask_rows[first_row + j]
                for phase in range(stride):
                    count = (width - phase + stride - 1) // stride
                    for beside in range(count - run):  # the run is packed below
                        p = beside if beside < run_start else beside + run
                        position = phase + p * stride
                        offset = columns[position]
                        packed = fill
                        if offset != OUTSIDE_OFFSET:
                            raw = source[at + offset]
                            value = kind(value_of(raw, scaled, slope, intercept))
                            given = kind(mask[mask_at + mask_columns[position]]) if masked else one
                            certainty = certainty_of(
                                raw,
                                value,
                                given,
                                labelled,
                                label,
                                nonfinite_missing,
                                compares,
                                missing,
                            )
                            packed = (
                                certainty
                                if packs_certainty
                                else (value * certainty if certainty > zero else zero)
                            )
                            incomplete |= certainty != one
                        target[phase * pitch + p] = packed
                if run > 0:
                    here = at + columns[run_start]
                    given_at = mask_at + (mask_columns[run_start] if masked else 0)
                    differs = np.int32(0)
                    if (
                        column_step == 1
                        and not scaled
                        and not masked
                        and nonfinite_missing
                        and not (compares or packs_certainty)
                    ):
                        # a special case of the next branch, as fast as plain packing
                        for p in range(run):
                            value = kind(source[here + p])
                            known = value - value == zero
                            target[run_start + p] = value if known else zero
                            differs |= np.int32(not known)
                    elif column_step == 1 and not scaled:
                        for p in range(run):
                            raw = source[here + p]
                            value = kind(raw)
                            given = kind(mask[given_at + p]) if masked else one
                            certainty = certainty_of(
                                raw,
                                value,
                                given,
                                labelled,
                                label,
                                nonfinite_missing,
                                compares,
                                missing,
                            )
                            packed = value * certainty if certainty > zero else zero
                            target[run_start + p] = certainty if packs_certainty else packed
                            differs |= np.int32(certainty != one)
                    else:
                        for p in range(run):
                            raw = source[here + p * column_step]
                            value = kind(value_of(raw, scaled, slope, intercept))
                            given = kind(mask[given_at + p]) if masked else one
                            certainty = certainty_of(
                                raw,
                                value,
                                given,
                                labelled,
                                label,
                                nonfinite_missing,
                                compares,
                                missing,
                            )
                            packed = value * certainty if certainty > zero else zero
                            target[run_start + p] = certainty if packs_certainty else packed
                            differs |= np.int32(certainty != one)
                    incomplete |= differs != 0
                if step[F.flags_nonfinite] != 0:
                    for phase in range(stride):
                        count = (width - phase + stride - 1) // stride
                        if holds_huge(
                            to + itemsize * (j * step[F.row_step] + phase * pitch), count
                        ):
                            step[F.last_nonfinite] = step[F.position]
        if incomplete:
            step[F.last_incomplete] = step[F.position]

    return loops


def pack_weighted_voxels(source_dtype, real, mask_dtype):
    """As `pack_voxels`; mask_dtype: the mask's dtype by name, "none" without a mask.

    All channels share the mask.
    """
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    masked = mask_dtype != "none"
    mask_type = np.dtype(mask_dtype).type if masked else kind
    itemsize = np.dtype(real).itemsize
    zero, one = kind(0), kind(1)
    certainty_of, holds_huge = certainty_function(real), finder(real, 1)

    def loops(step):
        source, mask = memory(step[F.source], raw_type), memory(step[F.mask], mask_type)
        planes, rows = memory(step[F.planes], np.int64), memory(step[F.rows], np.int64)
        mask_planes = memory(step[F.mask_planes], np.int64)
        mask_rows = memory(step[F.mask_rows], np.int64)
        fill = kind(real_field(step, F.fill))
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        packs_certainty, labelled = step[F.packs_certainty] != 0, step[F.labelled] != 0
        nonfinite_missing, compares = step[F.nonfinite_missing] != 0, step[F.compares] != 0
        label = kind(real_field(step, F.label))
        missing = raw_type(real_field(step, F.missing_value))
        pitch, channels, channel_step = step[F.pitch], step[F.channels], step[F.source_channel_step]
        height, width, first_row, first_column, _, _ = positions(step)
        columns = memory(step[F.columns] + 8 * first_column, np.int64)
        mask_columns = memory(step[F.mask_columns] + 8 * first_column, np.int64)
        plane = planes[step[F.position]]
        origin = step[F.group] * channels * channel_step
        to = step[F.scratch] + itemsize * step[F.slot] * step[F.plane_step]
        incomplete = False
        for j in range(height):
            target = memory(to + itemsize * j * step[F.row_step], kind)
            row = rows[first_row + j]
            outside = plane == OUTSIDE_OFFSET or row == OUTSIDE_OFFSET
            mask_at = 0
            if masked and not outside:
                mask_at = mask_planes[step[F.position]] + mask_rows[first_row + j]
            for p in range(width):
                offset = columns[p]
                if outside or offset == OUTSIDE_OFFSET:
                    for c in range(channels):
                        target[p * pitch + c] = fill
                    continue
                here = origin + plane + row + offset
                given = kind(mask[mask_at + mask_columns[p]]) if masked else one
                differs = np.int32(0)
                if channel_step == 1 and not scaled:
                    for c in range(channels):
                        raw = source[here + c]
                        value = kind(raw)
                        certainty = certainty_of(
                            raw, value, given, labelled, label, nonfinite_missing, compares, missing
                        )
                        packed = value * certainty if certainty > zero else zero
                        target[p * pitch + c] = certainty if packs_certainty else packed
                        differs |= np.int32(certainty != one)
                else:
                    for c in range(channels):
                        raw = source[here + c * channel_step]
                        value = kind(value_of(raw, scaled, slope, intercept))
                        certainty = certainty_of(
                            raw, value, given, labelled, label, nonfinite_missing, compares, missing
                        )
                        packed = value * certainty if certainty > zero else zero
                        target[p * pitch + c] = certainty if packs_certainty else packed
                        differs |= np.int32(certainty != one)
                incomplete |= differs != 0
            if step[F.flags_nonfinite] != 0:
                for p in range(width):
                    if holds_huge(to + itemsize * (j * step[F.row_step] + p * pitch), channels):
                        step[F.last_nonfinite] = step[F.position]
        if incomplete:
            step[F.last_incomplete] = step[F.position]

    return loops

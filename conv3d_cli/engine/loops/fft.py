"""Overlap-save FFT tiles: transform planes, convolve lines along depth, transform planes back.

A task is a pair of neighbouring tiles, the real and imaginary part of one complex tile: since the
kernel is real, they do not mix. `absorb_plane` transforms each packed plane along height and width
into a ring, which overlapping steps share. `convolve_planes` runs lines along depth (transform,
product, inverse, all within L1), then transforms each output plane back and stores it.

Layouts, with elements (re, im) of `lanes` numbers each:
- a plane in space: (row, column block, re | im, lane), rows `plane_row` bytes apart
- a plane's spectrum: (row block, column, re | im, lane). Lanes are rows, so blocks are transposed
  in registers in between
- the kernel's spectrum: (group, row block, column, filter, channel, depth, re | im, lane)
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.algorithms.fft import P
from conv3d_cli.engine.loops.fft_butterflies import (
    FORWARD,
    FORWARD_AHEAD,
    FORWARD_LAST,
    GATHER,
    INVERSE,
    INVERSE_AHEAD,
    INVERSE_FIRST,
    PRODUCT,
    SCATTER,
    holds_non_finite,
    stage,
    transpose,
)
from conv3d_cli.engine.loops.simd import call, inlined, memory, real_field
from conv3d_cli.engine.step import HAS_NONFINITE, F

FETCHED = 64  # bytes that a stage fetches for each element


def axis_loops(lanes, double):
    """Functions that transform one line along height or width.

    stages: address of a table, see `algorithms.fft.stage_table`
    source, target, buffer: addresses of lines; the buffer is for intermediate stages
    source_step, target_step: bytes from one element to the next
    source_im, target_im: bytes from re to im
    """
    itemsize = 8 if double else 4
    half, whole = lanes * itemsize, 2 * lanes * itemsize

    @inlined
    def forward(stages, source, source_step, source_im, target, target_step, target_im, buffer):
        """The transform."""
        table = memory(stages, np.int64)
        last = table[0] - 1
        stage(
            FORWARD,
            lanes,
            double,
            radix=table[1],
            source=source,
            source_step=source_step,
            source_im=source_im,
            target=buffer,
            target_step=whole,
            target_im=half,
            span=table[2],
            blocks=table[3],
            twiddles=table[4],
            table=0,
            spectrum=0,
            channels=0,
            source_channel_step=0,
            spectrum_channel_step=0,
        )
        for s in range(1, last):
            at = 1 + 4 * s
            stage(
                FORWARD,
                lanes,
                double,
                radix=table[at],
                source=buffer,
                source_step=whole,
                source_im=half,
                target=buffer,
                target_step=whole,
                target_im=half,
                span=table[at + 1],
                blocks=table[at + 2],
                twiddles=table[at + 3],
                table=0,
                spectrum=0,
                channels=0,
                source_channel_step=0,
                spectrum_channel_step=0,
            )
        at = 1 + 4 * last
        stage(
            FORWARD_LAST,
            lanes,
            double,
            radix=table[at],
            source=buffer,
            source_step=whole,
            source_im=half,
            target=target,
            target_step=target_step,
            target_im=target_im,
            span=1,
            blocks=table[at + 2],
            twiddles=0,
            table=0,
            spectrum=0,
            channels=0,
            source_channel_step=0,
            spectrum_channel_step=0,
        )

    @inlined
    def inverse(stages, source, source_step, source_im, target, target_step, target_im, buffer):
        """The inverse transform."""
        table = memory(stages, np.int64)
        last = table[0] - 1
        at = 1 + 4 * last
        stage(
            INVERSE_FIRST,
            lanes,
            double,
            radix=table[at],
            source=source,
            source_step=source_step,
            source_im=source_im,
            target=buffer,
            target_step=whole,
            target_im=half,
            span=1,
            blocks=table[at + 2],
            twiddles=0,
            table=0,
            spectrum=0,
            channels=0,
            source_channel_step=0,
            spectrum_channel_step=0,
        )
        for s in range(1, last):
            at = 1 + 4 * (last - s)
            stage(
                INVERSE,
                lanes,
                double,
                radix=table[at],
                source=buffer,
                source_step=whole,
                source_im=half,
                target=buffer,
                target_step=whole,
                target_im=half,
                span=table[at + 1],
                blocks=table[at + 2],
                twiddles=table[at + 3],
                table=0,
                spectrum=0,
                channels=0,
                source_channel_step=0,
                spectrum_channel_step=0,
            )
        stage(
            INVERSE,
            lanes,
            double,
            radix=table[1],
            source=buffer,
            source_step=whole,
            source_im=half,
            target=target,
            target_step=target_step,
            target_im=target_im,
            span=table[2],
            blocks=table[3],
            twiddles=table[4],
            table=0,
            spectrum=0,
            channels=0,
            source_channel_step=0,
            spectrum_channel_step=0,
        )

    return forward, inverse


def column_loops(lanes, double):
    """Functions that transform one line of a plane in place, along height.

    After the first stage, the line is in parts that no longer mix. They are finished one by one, so
    that L1 has room for the line and a part of it; way back likewise. Each stage but one fetches as
    many cache lines into L2 as the line has elements.

    stages: address of a table, see `algorithms.fft.stage_table`
    line, step, im: address of the line, bytes from one element to the next, and from re to im
    buffer: address of room for a part
    ahead: address of what is fetched
    """
    itemsize = 8 if double else 4
    half, whole = lanes * itemsize, 2 * lanes * itemsize

    @inlined
    def forward(stages, line, step, im, buffer, ahead):
        """The transform."""
        table = memory(stages, np.int64)
        last, parts, length = table[0] - 1, table[1], table[2]
        stage(
            FORWARD_AHEAD,
            lanes,
            double,
            radix=table[1],
            source=line,
            source_step=step,
            source_im=im,
            target=line,
            target_step=step,
            target_im=im,
            span=table[2],
            blocks=table[3],
            twiddles=table[4],
            table=ahead,
            spectrum=0,
            channels=0,
            source_channel_step=0,
            spectrum_channel_step=0,
        )
        at_last = 1 + 4 * last
        for part in range(parts):
            here = line + part * length * step
            source, source_step, source_im = here, step, im
            for s in range(1, last):
                at = 1 + 4 * s
                stage(
                    FORWARD_AHEAD,
                    lanes,
                    double,
                    radix=table[at],
                    source=source,
                    source_step=source_step,
                    source_im=source_im,
                    target=buffer,
                    target_step=whole,
                    target_im=half,
                    span=table[at + 1],
                    blocks=table[at + 2] // parts,
                    twiddles=table[at + 3],
                    table=ahead + FETCHED * length * (parts * s + part),
                    spectrum=0,
                    channels=0,
                    source_channel_step=0,
                    spectrum_channel_step=0,
                )
                source, source_step, source_im = buffer, whole, half
            stage(
                FORWARD_LAST,
                lanes,
                double,
                radix=table[at_last],
                source=source,
                source_step=source_step,
                source_im=source_im,
                target=here,
                target_step=step,
                target_im=im,
                span=1,
                blocks=table[at_last + 2] // parts,
                twiddles=0,
                table=0,
                spectrum=0,
                channels=0,
                source_channel_step=0,
                spectrum_channel_step=0,
            )

    @inlined
    def inverse(stages, line, step, im, buffer, ahead):
        """The inverse transform."""
        table = memory(stages, np.int64)
        last, parts, length = table[0] - 1, table[1], table[2]
        at_last = 1 + 4 * last
        for part in range(parts):
            here = line + part * length * step
            target, target_step, target_im = here, step, im
            if last > 1:
                target, target_step, target_im = buffer, whole, half
            stage(
                INVERSE_FIRST,
                lanes,
                double,
                radix=table[at_last],
                source=here,
                source_step=step,
                source_im=im,
                target=target,
                target_step=target_step,
                target_im=target_im,
                span=1,
                blocks=table[at_last + 2] // parts,
                twiddles=0,
                table=0,
                spectrum=0,
                channels=0,
                source_channel_step=0,
                spectrum_channel_step=0,
            )
            for s in range(1, last):
                at = 1 + 4 * (last - s)
                if s == last - 1:
                    target, target_step, target_im = here, step, im
                stage(
                    INVERSE_AHEAD,
                    lanes,
                    double,
                    radix=table[at],
                    source=buffer,
                    source_step=whole,
                    source_im=half,
                    target=target,
                    target_step=target_step,
                    target_im=target_im,
                    span=table[at + 1],
                    blocks=table[at + 2] // parts,
                    twiddles=table[at + 3],
                    table=ahead + FETCHED * length * (parts * (s - 1) + part),
                    spectrum=0,
                    channels=0,
                    source_channel_step=0,
                    spectrum_channel_step=0,
                )
        stage(
            INVERSE_AHEAD,
            lanes,
            double,
            radix=table[1],
            source=line,
            source_step=step,
            source_im=im,
            target=line,
            target_step=step,
            target_im=im,
            span=table[2],
            blocks=table[3],
            twiddles=table[4],
            table=ahead + FETCHED * length * parts * (last - 1),
            spectrum=0,
            channels=0,
            source_channel_step=0,
            spectrum_channel_step=0,
        )

    return forward, inverse


def absorb_plane(lanes, real):
    """The `absorb` function: transform every channel's packed plane into the ring of spectra."""
    double = 1 if real == "float64" else 0
    kind, itemsize = np.dtype(real).type, np.dtype(real).itemsize
    half, whole = lanes * itemsize, 2 * lanes * itemsize
    forward, _ = axis_loops(lanes, double)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        rows, columns = p[P.tile_rows], p[P.tile_columns]
        row_bytes, plane_row = step[F.row_step] * itemsize, p[P.plane_row]
        buffer = step[F.workspace] + p[P.buffer]
        plane = step[F.workspace] + p[P.plane]
        height, width = step[F.height] + step[F.extent_h] - 1, step[F.width] + step[F.extent_w] - 1
        both = p[P.kept_columns] + columns
        fence = real_field(p, P.fence)
        for channel in range(step[F.channels]):
            packed = step[F.scratch] + channel * step[F.channel_step] * itemsize
            # zeros beyond the volume's edge
            for j in range(rows):
                numbers = memory(packed + j * row_bytes, kind)
                for k in range(width if j < height else 0, both):
                    numbers[k] = kind(0)
            for block in range(columns // lanes):
                forward(
                    p[P.stages_h],
                    packed + block * half,
                    row_bytes,
                    p[P.kept_columns] * itemsize,
                    plane + block * whole,
                    plane_row,
                    half,
                    buffer,
                )
            spectrum = (
                step[F.workspace]
                + (step[F.position] % p[P.tile_planes] * step[F.channels] + channel)
                * p[P.plane_bytes]
            )
            for block in range(rows // lanes):
                here = plane + block * lanes * plane_row
                for k in range(columns // lanes):
                    transpose(
                        lanes,
                        double,
                        here + k * whole,
                        plane_row,
                        buffer + k * lanes * whole,
                        whole,
                    )
                    transpose(
                        lanes,
                        double,
                        here + k * whole + half,
                        plane_row,
                        buffer + k * lanes * whole + half,
                        whole,
                    )
                forward(
                    p[P.stages_w],
                    buffer,
                    whole,
                    half,
                    spectrum + block * columns * whole,
                    whole,
                    half,
                    buffer,
                )
            # a huge number is huge in every frequency; the first one is the sum of the plane
            if step[F.flags] != 0:
                first = memory(spectrum, kind)
                for k in range(2 * lanes):
                    if not abs(np.float64(first[k])) < fence:
                        step[F.last_nonfinite] = step[F.position]

    return loops


def convolve_depth(lanes, real):
    """Convolve lines along depth: transform, multiply, sum over channels, transform back.

    Results are the spectra of the step's output planes.
    """
    double = 1 if real == "float64" else 0
    itemsize = np.dtype(real).itemsize
    half, whole = lanes * itemsize, 2 * lanes * itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        planes, channels, filters = p[P.tile_planes], step[F.channels], step[F.filters]
        plane_bytes = p[P.plane_bytes]
        workspace = step[F.workspace]
        # the planes that the elements of lines are read from and written to; planes beyond the
        # window are zeros, results beyond the step are discarded
        sources = memory(workspace + p[P.sources], np.int64)
        targets = memory(workspace + p[P.targets], np.int64)
        held = step[F.step_planes] - 1 + step[F.extent_d]
        dropped = p[P.results] + (planes - step[F.extent_d] + 1) * filters * plane_bytes
        for i in range(planes):
            place = (step[F.step_plane] + i) % planes * channels * plane_bytes
            sources[i] = place if i < held else p[P.zeros]
            targets[i] = (
                p[P.results] + i * filters * plane_bytes if i < step[F.step_planes] else dropped
            )
        lines = workspace + p[P.lines]
        line_bytes = planes * whole
        # in place if there is one filter, so that the lines fit L1
        out = lines + channels * line_bytes if filters > 1 else lines
        stages = memory(p[P.stages_d], np.int64)
        last = stages[0] - 1
        at_last = 1 + 4 * last
        elements = p[P.tile_rows] // lanes * p[P.tile_columns]
        spectrum = step[F.weights] + step[F.group] * elements * filters * channels * line_bytes
        for element in range(elements):
            for channel in range(channels):
                line = lines + channel * line_bytes
                stage(
                    GATHER,
                    lanes,
                    double,
                    radix=stages[1],
                    source=workspace + element * whole + channel * plane_bytes,
                    source_step=0,
                    source_im=half,
                    target=line,
                    target_step=whole,
                    target_im=half,
                    span=stages[2],
                    blocks=stages[3],
                    twiddles=stages[4],
                    table=workspace + p[P.sources],
                    spectrum=0,
                    channels=0,
                    source_channel_step=0,
                    spectrum_channel_step=0,
                )
                for s in range(1, last):
                    at = 1 + 4 * s
                    stage(
                        FORWARD,
                        lanes,
                        double,
                        radix=stages[at],
                        source=line,
                        source_step=whole,
                        source_im=half,
                        target=line,
                        target_step=whole,
                        target_im=half,
                        span=stages[at + 1],
                        blocks=stages[at + 2],
                        twiddles=stages[at + 3],
                        table=0,
                        spectrum=0,
                        channels=0,
                        source_channel_step=0,
                        spectrum_channel_step=0,
                    )
            for f in range(filters):
                stage(
                    PRODUCT,
                    lanes,
                    double,
                    radix=stages[at_last],
                    source=lines,
                    source_step=whole,
                    source_im=half,
                    target=out,
                    target_step=whole,
                    target_im=half,
                    span=1,
                    blocks=stages[at_last + 2],
                    twiddles=0,
                    table=0,
                    spectrum=spectrum,
                    channels=channels,
                    source_channel_step=line_bytes,
                    spectrum_channel_step=line_bytes,
                )
                spectrum += channels * line_bytes
                for s in range(1, last):
                    at = 1 + 4 * (last - s)
                    stage(
                        INVERSE,
                        lanes,
                        double,
                        radix=stages[at],
                        source=out,
                        source_step=whole,
                        source_im=half,
                        target=out,
                        target_step=whole,
                        target_im=half,
                        span=stages[at + 1],
                        blocks=stages[at + 2],
                        twiddles=stages[at + 3],
                        table=0,
                        spectrum=0,
                        channels=0,
                        source_channel_step=0,
                        spectrum_channel_step=0,
                    )
                stage(
                    SCATTER,
                    lanes,
                    double,
                    radix=stages[1],
                    source=out,
                    source_step=whole,
                    source_im=half,
                    target=workspace + element * whole + f * plane_bytes,
                    target_step=0,
                    target_im=half,
                    span=stages[2],
                    blocks=stages[3],
                    twiddles=stages[4],
                    table=workspace + p[P.targets],
                    spectrum=0,
                    channels=0,
                    source_channel_step=0,
                    spectrum_channel_step=0,
                )

    return loops


def convolve_planes(lanes, real):
    """The `convolve` function: run the depth lines, then transform and store each output plane."""
    double = 1 if real == "float64" else 0
    itemsize = np.dtype(real).itemsize
    half, whole = lanes * itemsize, 2 * lanes * itemsize
    _, inverse = axis_loops(lanes, double)
    kind = np.dtype(real).type

    @inlined
    def holds_bad(address, count):
        """Whether any of `count` numbers at an address is NaN or infinite."""
        if count >= lanes:
            return holds_non_finite(lanes, double, address, count) != 0
        numbers = memory(address, kind)
        bad = False
        for k in range(count):
            bad |= not np.isfinite(numbers[k])
        return bad

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        call(p[P.convolve_depth], step)
        rows, columns, kept = p[P.tile_rows], p[P.tile_columns], p[P.kept_columns]
        plane_row, filters = p[P.plane_row], step[F.filters]
        buffer = step[F.workspace] + p[P.buffer]
        plane = step[F.workspace] + p[P.plane]
        acc_row = step[F.acc_row_step] * itemsize
        first, count = step[F.step_plane], step[F.step_planes]
        kept_blocks = (min(kept, step[F.width]) + lanes - 1) // lanes
        step[F.step_planes] = 1
        for i in range(count):
            step[F.step_plane] = first + i
            for f in range(filters):
                result = step[F.workspace] + p[P.results] + (i * filters + f) * p[P.plane_bytes]
                for block in range(rows // lanes):
                    inverse(
                        p[P.stages_w],
                        result + block * columns * whole,
                        whole,
                        half,
                        buffer,
                        whole,
                        half,
                        buffer,
                    )
                    here = plane + block * lanes * plane_row
                    for k in range(kept_blocks):
                        transpose(
                            lanes,
                            double,
                            buffer + k * lanes * whole,
                            whole,
                            here + k * whole,
                            plane_row,
                        )
                        transpose(
                            lanes,
                            double,
                            buffer + k * lanes * whole + half,
                            whole,
                            here + k * whole + half,
                            plane_row,
                        )
                # From right to left: the first tile's last block extends into the second tile.
                out = step[F.accumulator] + f * step[F.acc_filter_step] * itemsize
                for k in range(kept_blocks):
                    block = kept_blocks - 1 - k
                    inverse(
                        p[P.stages_h],
                        plane + block * whole,
                        plane_row,
                        half,
                        out + block * half,
                        acc_row,
                        kept * itemsize,
                        buffer,
                    )
            if step[F.flags] != 0:
                # NaN or infinity in the window, or an intermediate overflow, reaches every sum.
                for f in range(filters):
                    out = step[F.accumulator] + f * step[F.acc_filter_step] * itemsize
                    for j in range(step[F.height]):
                        if holds_bad(out + j * acc_row, step[F.width]):
                            step[F.last_nonfinite] = first
                            memory(step[F.flags], np.uint8)[step[F.step_number]] |= HAS_NONFINITE
            if i < count - 1:  # the driver stores the last plane
                if step[F.activate] != 0:
                    call(step[F.activate], step)
                call(step[F.store], step)

    return loops

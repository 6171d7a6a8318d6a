"""The loops of `engine/deconvolution.py`: planes and depth lines of one brick.

`planes` transforms planes of a brick back, changes the voxels, and transforms them again, all while
the plane is in the cache. `lines` convolves the lines along depth in between, in place.

A brick is one complex volume, whose real part is its left half and its imaginary part its right
half: since kernels are real, they do not mix. The layouts are those of `loops/fft.py`.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.deconvolution import FILL, FLAT, LINES_AT, PLANES_AT, RATIO, ZERO
from conv3d_cli.engine.loops.fft import axis_loops
from conv3d_cli.engine.loops.fft_butterflies import (
    FORWARD,
    FORWARD_LAST,
    GATHER,
    INVERSE,
    PRODUCT,
    PRODUCT_BACK,
    stage,
    transpose,
)
from conv3d_cli.engine.loops.simd import copy_vector, inlined, memory, real_field
from conv3d_cli.engine.step import F

P, L = PLANES_AT, LINES_AT


def planes(lanes, real):
    """Transform planes back, change their voxels, and transform them, as the parameters say."""
    double = 1 if real == "float64" else 0
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    half, whole = lanes * size, 2 * lanes * size
    forward, inverse = axis_loops(lanes, double)
    zero = kind(0)

    @inlined
    def invert(p, workspace, spectrum):
        """A plane's spectrum -> the voxels of both halves, in `sums`."""
        rows, columns = p[P.rows], p[P.columns]
        plane, buffer = workspace + p[P.plane], workspace + p[P.buffer]
        sums = workspace + p[P.sums]
        for block in range(rows // lanes):
            inverse(
                p[P.stages_w],
                spectrum + block * columns * whole,
                whole,
                buffer,
                whole,
                half,
                buffer,
            )
            here = plane + block * lanes * p[P.plane_row]
            for k in range(columns // lanes):
                for part in range(2):
                    transpose(
                        lanes,
                        double,
                        buffer + k * lanes * whole + part * half,
                        whole,
                        here + k * whole + part * half,
                        p[P.plane_row],
                    )
        for k in range(columns // lanes):
            inverse(
                p[P.stages_h],
                plane + k * whole,
                p[P.plane_row],
                sums + k * half,
                p[P.sums_row],
                columns * size,
                buffer,
            )

    @inlined
    def fold_rows(p, workspace):
        """Add the rows beyond the volume to those that the boundary reads in their place."""
        pairs = memory(p[P.row_pairs], np.int64)
        for n in range(p[P.row_pair_count]):
            first = workspace + p[P.sums] + p[P.first_row] * p[P.sums_row]
            outside = memory(first + pairs[2 * n] * p[P.sums_row], kind)
            inside = memory(first + pairs[2 * n + 1] * p[P.sums_row], kind)
            for k in range(2 * p[P.columns]):
                inside[k] += outside[k]

    @inlined
    def sums_of_row(p, workspace, row):
        """The address of a row of convolved voxels, both halves joined, folded along width."""
        here = memory(
            workspace + p[P.sums] + (p[P.first_row] + p[P.own_row] + row) * p[P.sums_row], kind
        )
        line = memory(workspace + p[P.joined], kind)
        kept, width = p[P.kept], p[P.out_columns]
        first = p[P.first_column]
        for k in range(min(kept, width)):
            line[k] = here[first + k]
        first += p[P.columns]
        for k in range(width - kept):
            line[kept + k] = here[first + k]
        pairs = memory(p[P.column_pairs], np.int64)
        for n in range(p[P.column_pair_count]):
            line[pairs[2 * n + 1]] += line[pairs[2 * n]]
        return workspace + p[P.joined] + p[P.own_column] * size

    @inlined
    def change(p, workspace, i):
        """Ratios of data to convolved voxels, or voxels times convolved ratios, of plane i."""
        at = memory(p[P.data_planes], np.int64)[i]
        to = memory(p[P.out_planes], np.int64)[i]
        classes = memory(p[P.class_rows], np.int64)
        table = p[P.table] + memory(p[P.class_planes], np.int64)[i]
        extra = p[P.extra] + at
        out_at = workspace + p[P.ratios] if p[P.out] == 0 else p[P.out] + to
        background, floor = kind(real_field(p, P.background)), kind(real_field(p, P.floor))
        width = p[P.own_columns]
        for row in range(p[P.own_rows]):
            numbers = memory(p[P.data] + at + row * p[P.data_row], kind)
            out = memory(out_at + row * p[P.out_row], kind)
            weights = memory(table + classes[row], kind)
            if p[P.changes] == FLAT:
                for k in range(width):
                    below = weights[k] + background
                    out[k] = numbers[k] / (below if below > floor else floor)
            elif p[P.changes] == RATIO:
                convolved = memory(sums_of_row(p, workspace, row), kind)
                for k in range(width):
                    below = convolved[k] + background
                    out[k] = numbers[k] / (below if below > floor else floor)
            else:
                # in a row of its own first: `out` may be `numbers`
                value = memory(sums_of_row(p, workspace, row), kind)
                for k in range(width):
                    value[k] = numbers[k] * value[k] * weights[k]
                if p[P.extra] != 0:
                    more = memory(extra + row * p[P.data_row], kind)
                    for k in range(width):
                        value[k] *= more[k]
                for k in range(width):
                    value[k] = value[k] if value[k] > zero else zero
                if p[P.sums_out] != 0:
                    place = memory(p[P.sums_planes], np.int64)[i]
                    totals = memory(p[P.sums_out] + place, np.float64)
                    for k in range(width):
                        before = np.float64(numbers[k])
                        totals[0] += abs(np.float64(value[k]) - before)
                        totals[1] += abs(before)
                for k in range(width):
                    out[k] = value[k]

    @inlined
    def pack(p, workspace, i):
        """The voxels of plane i with those that the boundary adds, into `packed`."""
        rows = memory(p[P.source_rows], np.int64)
        columns = memory(p[P.source_columns], np.int64)
        at = memory(p[P.source_planes], np.int64)[i]
        source = workspace + p[P.ratios] if p[P.source] == 0 else p[P.source] + at
        fill = kind(real_field(p, P.fill))
        both, start, stop = p[P.kept] + p[P.columns], p[P.run_start], p[P.run_stop]
        for row in range(p[P.rows]):
            to = memory(workspace + p[P.packed] + row * p[P.packed_row], kind)
            if rows[row] < 0 or at < 0:
                value = fill if rows[row] != ZERO else zero
                for k in range(both):
                    to[k] = zero if columns[k] == ZERO else value
            else:
                line = memory(source + rows[row], kind)
                for k in range(start):
                    c = columns[k]
                    to[k] = line[c] if c >= 0 else (fill if c == FILL else zero)
                if stop > start:
                    run = memory(source + rows[row] + columns[start] * size, kind)
                    inside = memory(
                        workspace + p[P.packed] + row * p[P.packed_row] + start * size, kind
                    )
                    for k in range(stop - start):
                        inside[k] = run[k]
                for k in range(stop, both):
                    c = columns[k]
                    to[k] = line[c] if c >= 0 else (fill if c == FILL else zero)

    @inlined
    def transform(p, workspace, spectrum):
        """The spectrum of the plane in `packed`."""
        rows, columns = p[P.rows], p[P.columns]
        plane, buffer = workspace + p[P.plane], workspace + p[P.buffer]
        packed = workspace + p[P.packed]
        for k in range(columns // lanes):
            forward(
                p[P.stages_h],
                packed + k * half,
                p[P.packed_row],
                p[P.kept] * size,
                plane + k * whole,
                p[P.plane_row],
                buffer,
            )
        for block in range(rows // lanes):
            here = plane + block * lanes * p[P.plane_row]
            for k in range(columns // lanes):
                for part in range(2):
                    transpose(
                        lanes,
                        double,
                        here + k * whole + part * half,
                        p[P.plane_row],
                        buffer + k * lanes * whole + part * half,
                        whole,
                    )
            forward(
                p[P.stages_w],
                buffer,
                whole,
                half,
                spectrum + block * columns * whole,
                whole,
                buffer,
            )

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        workspace = step[F.workspace]
        slots = memory(p[P.slots], np.int64)
        for i in range(p[P.first], p[P.last]):
            spectrum = p[P.spectra] + slots[i]
            if p[P.inverts]:
                invert(p, workspace, spectrum)
                fold_rows(p, workspace)
            if p[P.data] != 0:
                change(p, workspace, i)
            if p[P.transforms]:
                pack(p, workspace, i)
                transform(p, workspace, spectrum)

    return loops


def lines(lanes, real):
    """Convolve lines along depth, in place; or make the spectrum of a kernel from its planes."""
    double = 1 if real == "float64" else 0
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    half, whole = lanes * size, 2 * lanes * size

    @inlined
    def gather(p, element, line):
        """Read a line from the planes, and transform it up to the last stage."""
        stages = memory(p[L.stages], np.int64)
        last = stages[0] - 1
        stage(
            GATHER,
            lanes,
            double,
            radix=stages[1],
            source=p[L.spectra] + element * whole,
            source_step=0,
            source_im=half,
            target=line,
            target_step=whole,
            target_im=half,
            span=stages[2],
            blocks=stages[3],
            twiddles=stages[4],
            table=p[L.sources],
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

    @inlined
    def multiply(p, which, line, spectrum):
        """The last stage, the product with the kernel's spectrum, and the first stage back."""
        stages = memory(p[L.stages], np.int64)
        at = 1 + 4 * (stages[0] - 1)
        stage(
            which,
            lanes,
            double,
            radix=stages[at],
            source=line,
            source_step=whole,
            source_im=half,
            target=line,
            target_step=whole,
            target_im=half,
            span=1,
            blocks=stages[at + 2],
            twiddles=0,
            table=0,
            spectrum=spectrum,
            channels=1,
            source_channel_step=0,
            spectrum_channel_step=0,
        )

    @inlined
    def restore(p, line):
        """The remaining stages back."""
        stages = memory(p[L.stages], np.int64)
        last = stages[0] - 1
        for s in range(1, last + 1):
            at = 1 + 4 * (last - s)
            stage(
                INVERSE,
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

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        stages = memory(p[L.stages], np.int64)
        line, length = step[F.workspace], p[L.planes]
        pairs, targets = memory(p[L.pairs], np.int64), memory(p[L.targets], np.int64)
        for element in range(p[L.first], p[L.last]):
            gather(p, element, line)
            spectrum = p[L.kernel] + element * length * whole
            if p[L.prepares]:
                at = 1 + 4 * (stages[0] - 1)
                stage(
                    FORWARD_LAST,
                    lanes,
                    double,
                    radix=stages[at],
                    source=line,
                    source_step=whole,
                    source_im=half,
                    target=line,
                    target_step=whole,
                    target_im=half,
                    span=1,
                    blocks=stages[at + 2],
                    twiddles=0,
                    table=0,
                    spectrum=0,
                    channels=0,
                    source_channel_step=0,
                    spectrum_channel_step=0,
                )
                scale = kind(real_field(p, L.scale))
                for d in range(length):
                    value = memory(line + d * whole, kind)
                    out = memory(spectrum + d * whole, kind)
                    for k in range(lanes):
                        out[k] = value[k] * scale
                        out[lanes + k] = -(value[lanes + k] * scale)
            else:
                if p[L.back]:
                    multiply(p, PRODUCT_BACK, line, spectrum)
                else:
                    multiply(p, PRODUCT, line, spectrum)
                restore(p, line)
                for n in range(p[L.pair_count]):
                    outside = memory(line + pairs[2 * n] * whole, kind)
                    inside = memory(line + pairs[2 * n + 1] * whole, kind)
                    for k in range(2 * lanes):
                        inside[k] += outside[k]
                for d in range(p[L.outputs]):
                    value = line + (p[L.first_output] + d) * whole
                    out = p[L.spectra] + targets[d] + element * whole
                    copy_vector(lanes, double, 0, value, out)
                    copy_vector(lanes, double, 0, value + half, out + half)

    return loops

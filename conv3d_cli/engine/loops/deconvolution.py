"""The loops of `engine/deconvolution.py`: planes and depth lines of one brick.

`planes` transforms planes of a brick back, changes the voxels, and transforms them again, all while
the plane is in the cache. `lines` convolves the lines along depth in between, in place.

A row of 2n real numbers is n complex ones: re is its left half and im its right half, turned by
factors (`twist`), see `engine/deconvolution.py`. Spectra have the layouts of `loops/fft.py`.

The transforms take less time than the memory that they read. So they fetch a little at each step of
what comes next: a plane's data, the following plane's spectrum, and the kernel's next line.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.deconvolution import FLAT, LINES, LINES_AT, PLANES_AT, RATIO
from conv3d_cli.engine.loops.fft import axis_loops, column_loops
from conv3d_cli.engine.loops.fft_butterflies import (
    FORWARD_AHEAD,
    FORWARD_LAST,
    GATHER,
    INVERSE_AHEAD,
    PRODUCT,
    PRODUCT_BACK,
    stage,
    transpose_back,
    transpose_there,
)
from conv3d_cli.engine.loops.simd import copy_vector, inlined, memory, real_field
from conv3d_cli.engine.step import F

P, L = PLANES_AT, LINES_AT


def planes(lanes, real):
    """Transform planes back, change their voxels, and transform them, as the parameters say.

    All is done in one array of the plane's rows, so that it stays in the cache. Between the
    transforms along height and width, a row is re of its columns and then im of them; in space, it
    is one row of real numbers of twice as many columns.
    """
    double = 1 if real == "float64" else 0
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    half, whole = lanes * size, 2 * lanes * size
    forward, inverse = axis_loops(lanes, double)
    forward_columns, inverse_columns = column_loops(lanes, double)
    zero = kind(0)

    @inlined
    def invert(p, workspace, spectrum, i):
        """A plane's spectrum -> the voxels, in the plane's rows. Fetches the data of plane i."""
        rows, columns = p[P.rows], p[P.columns]
        plane, buffer, row_bytes = workspace + p[P.plane], workspace + p[P.buffer], p[P.plane_row]
        for block in range(rows // lanes):
            inverse(
                p[P.stages_w],
                spectrum + block * columns * whole,
                whole,
                half,
                buffer,
                whole,
                half,
                buffer,
            )
            for k in range(columns // lanes):
                transpose_back(
                    lanes,
                    double,
                    buffer + k * lanes * whole,
                    plane + block * lanes * row_bytes + k * half,
                    row_bytes,
                    columns * size,
                    p[P.twist] + k * whole,
                )
        # what is read next arrives while the columns are transformed
        ahead, ahead_bytes = buffer, 0
        if p[P.data] != 0 and p[P.data_row] == p[P.own_columns] * size:
            ahead = p[P.data] + memory(p[P.data_planes], np.int64)[i]
            ahead_bytes = p[P.row_read_count] * p[P.data_row] * lanes // columns
        for k in range(columns // lanes):
            here = plane + k * half
            inverse_columns(
                p[P.stages_h],
                here,
                row_bytes,
                columns * size,
                buffer,
                ahead + k * ahead_bytes,
            )

    @inlined
    def fold_rows(p, workspace):
        """Add the rows beyond the volume to those that the boundary reads in their place."""
        pairs = memory(p[P.row_pairs], np.int64)
        for n in range(p[P.row_pair_count]):
            outside = memory(workspace + p[P.plane] + pairs[2 * n] * p[P.plane_row], kind)
            inside = memory(workspace + p[P.plane] + pairs[2 * n + 1] * p[P.plane_row], kind)
            for k in range(2 * p[P.columns]):
                inside[k] += outside[k]

    @inlined
    def fold_columns(p, workspace):
        """The same for columns, in the volume's rows."""
        pairs = memory(p[P.column_pairs], np.int64)
        if p[P.column_pair_count] > 0:
            for row in range(p[P.first_row], p[P.first_row] + p[P.row_read_count]):
                numbers = memory(workspace + p[P.plane] + row * p[P.plane_row], kind)
                for n in range(p[P.column_pair_count]):
                    numbers[pairs[2 * n + 1]] += numbers[pairs[2 * n]]

    @inlined
    def change(p, workspace, i, row, to):
        """Ratios of data to convolved voxels, or voxels times convolved ratios, of a row."""
        at = memory(p[P.data_planes], np.int64)[i] + row * p[P.data_row]
        numbers = memory(p[P.data] + at, kind)
        class_at = memory(p[P.class_planes], np.int64)[i] + memory(p[P.class_rows], np.int64)[row]
        weights = memory(p[P.table] + class_at, kind)
        here = workspace + p[P.plane] + (p[P.first_row] + row) * p[P.plane_row]
        convolved = memory(here + p[P.first_column] * size, kind)
        value, width = memory(to, kind), p[P.own_columns]
        background, floor = kind(real_field(p, P.background)), kind(real_field(p, P.floor))
        if p[P.changes] == FLAT:
            for k in range(width):
                below = weights[k] + background
                value[k] = numbers[k] / (below if below > floor else floor)
        elif p[P.changes] == RATIO:
            for k in range(width):
                below = convolved[k] + background
                value[k] = numbers[k] / (below if below > floor else floor)
        else:
            for k in range(width):
                value[k] = numbers[k] * convolved[k] * weights[k]
            if p[P.extra] != 0:
                more = memory(p[P.extra] + at, kind)
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
        if p[P.out] != 0:
            out_at = memory(p[P.out_planes], np.int64)[i] + row * p[P.out_row]
            out = memory(p[P.out] + out_at, kind)
            for k in range(width):
                out[k] = value[k]

    @inlined
    def pass_rows(p, workspace, i):
        """Change the volume's rows, or read them; and place them for the transform."""
        plane, run, end = workspace + p[P.plane], p[P.run_at], 2 * p[P.columns]
        run_end, edge = run + p[P.run_count], memory(p[P.blanks], kind)
        table, pairs = memory(p[P.row_reads], np.int64), memory(p[P.column_reads], np.int64)
        count, changes = p[P.row_read_count], p[P.data] != 0
        for first in range(0, count, LINES):
            last = min(first + LINES, count)
            for n in range(first, last):
                row, place = table[2 * n], table[2 * n + 1]
                # what is changed goes through lines: its old and new place can overlap
                at = plane + place * p[P.plane_row]
                if changes:
                    at = workspace + p[P.lines] + (n - first) * end * size
                line, result = memory(at, kind), at + run * size
                if changes:
                    change(p, workspace, i, row, result)
                    source = result
                else:
                    source = p[P.source] + memory(p[P.source_planes], np.int64)[i]
                    source += row * p[P.source_row]
                    inside = memory(source + p[P.run_from] * size, kind)
                    values = memory(result, kind)
                    for k in range(p[P.run_count]):
                        values[k] = inside[k]
                if p[P.transforms]:
                    for k in range(run):
                        line[k] = edge[k]
                    for k in range(run_end, end):
                        line[k] = edge[k]
                    read = memory(source, kind)
                    for m in range(p[P.column_read_count]):
                        line[pairs[2 * m]] = read[pairs[2 * m + 1]]
            # not one by one: what has just been stored in other pieces is slow to load
            if changes and p[P.transforms]:
                for n in range(first, last):
                    to = memory(plane + table[2 * n + 1] * p[P.plane_row], kind)
                    line = memory(workspace + p[P.lines] + (n - first) * end * size, kind)
                    for k in range(end):
                        to[k] = line[k]

    @inlined
    def add_rows(p, workspace):
        """Place the rows that the boundary adds, and those of zeros."""
        plane, row_bytes = workspace + p[P.plane], p[P.plane_row]
        table = memory(p[P.row_copies], np.int64)
        for n in range(p[P.row_copy_count]):
            to = memory(plane + table[2 * n] * row_bytes, kind)
            source = memory(plane + table[2 * n + 1] * row_bytes, kind)
            for k in range(2 * p[P.columns]):
                to[k] = source[k]
        table = memory(p[P.row_blanks], np.int64)
        for n in range(p[P.row_blank_count]):
            to = memory(plane + table[2 * n] * row_bytes, kind)
            source = memory(p[P.blanks] + table[2 * n + 1], kind)
            for k in range(2 * p[P.columns]):
                to[k] = source[k]

    @inlined
    def transform(p, workspace, spectrum, following):
        """The spectrum of the plane's rows. Fetches the one at the address `following`."""
        rows, columns = p[P.rows], p[P.columns]
        plane, buffer, row_bytes = workspace + p[P.plane], workspace + p[P.buffer], p[P.plane_row]
        for k in range(columns // lanes):
            here = plane + k * half
            forward_columns(
                p[P.stages_h],
                here,
                row_bytes,
                columns * size,
                buffer,
                following + k * rows * whole,
            )
        for block in range(rows // lanes):
            for k in range(columns // lanes):
                transpose_there(
                    lanes,
                    double,
                    plane + block * lanes * row_bytes + k * half,
                    row_bytes,
                    columns * size,
                    buffer + k * lanes * whole,
                    p[P.twist] + k * whole,
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

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        workspace = step[F.workspace]
        slots = memory(p[P.slots], np.int64)
        for i in range(p[P.first], p[P.last]):
            spectrum = p[P.spectra] + slots[i]
            if p[P.inverts]:
                invert(p, workspace, spectrum, i)
                fold_rows(p, workspace)
                fold_columns(p, workspace)
            pass_rows(p, workspace, i)
            if p[P.transforms]:
                add_rows(p, workspace)
                following = p[P.spectra] + slots[min(i + 1, p[P.last] - 1)]
                transform(p, workspace, spectrum, following)

    return loops


def lines(lanes, real):
    """Convolve lines along depth, in place; or make the spectrum of a kernel from its planes."""
    double = 1 if real == "float64" else 0
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    half, whole = lanes * size, 2 * lanes * size

    @inlined
    def gather(p, element, line, following):
        """Read a line from the planes, and transform it up to the last stage.

        following: address of the kernel's spectrum for the next line, whose first half is fetched
        """
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
                FORWARD_AHEAD,
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
                table=following,
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
    def restore(p, line, following):
        """The remaining stages back. They fetch half a line of spectrum each."""
        stages = memory(p[L.stages], np.int64)
        last, length = stages[0] - 1, p[L.planes]
        for s in range(1, last + 1):
            at = 1 + 4 * (last - s)
            stage(
                INVERSE_AHEAD,
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
                table=following + (last - s) * length * half,
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
            spectrum = p[L.kernel] + element * length * whole
            following = spectrum + length * whole
            gather(p, element, line, following)
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
                restore(p, line, following)
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

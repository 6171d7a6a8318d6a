"""The depthwise micro-kernel: vectors along the filters of many groups of one or a few channels.

The same micro-kernel sums few filters over many channels (`across`): there a vector spans channels,
and its lanes are summed at the end.

Packed input is channels-last, with many groups at once. A vector of `lanes` filters belongs to
lanes / filters groups. Their channels are loaded together; if a group has several channels or
filters, a shuffle moves them to their lanes. Each loaded vector serves the outputs of all kernel
columns that read it, and the sums stay in registers until a voxel is finished.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.ahead import fetch_voxels
from conv3d_cli.engine.loops.simd import I32, I64, Vec, const, emit_cases, memory
from conv3d_cli.engine.step import F


@intrinsic(prefer_literal=True)
def _sum_lanes(
    typingctx,
    across,
    taps,
    short,
    stride,
    dilation,
    channels,
    filters,
    rows,
    lanes,
    double,
    height,
    source,
    unit,
    offsets,
    planes,
    window,
    chunks,
    chunk_count,
    weights,
    out,
    out_step,
):
    """Compute one vector of filters (`across`: one filter) for `height` <= rows voxels.

    source : address            of voxel 0's window, at the first channel of the vector's groups;
                                tap k of voxel r reads
                                (r * stride + k * dilation) * unit bytes from there
    offsets, planes : address   int64; item i is at
                                source + offsets[i] + window[planes[i]], in bytes
    chunks : address            int64 (chunk_count, 3): first item, number of items, 1 if they have
                                one tap less
    weights : address           (items, taps, channels, lanes)
    out : address               voxels are `out_step` bytes apart
    """
    literals = across, taps, short, stride, dilation, channels, filters, rows, lanes, double
    tables = offsets, planes, window, chunks, chunk_count
    sig = types.void(*literals, height, source, unit, *tables, weights, out, out_step)
    is_across, K, has_short, S, D, C, N, most, width, is_double = (
        literal.literal_value for literal in literals
    )

    def codegen(context, b, sig, args):
        v = Vec(b, width, "float64" if is_double else "float32")
        height, source, unit = args[10:13]
        offsets, planes, window, chunks, chunk_count = args[13:18]
        weights, out, out_step = args[18:]
        i64p, realp = I64.as_pointer(), v.real.as_pointer()
        offsets, planes, window, chunks = (
            b.inttoptr(a, i64p) for a in (offsets, planes, window, chunks)
        )
        weights = b.inttoptr(weights, realp)
        end = b.append_basic_block("end")

        def chunk_sums(R, taps, first, count, start, total, chunk_end):
            """Sum the items of a chunk from zero and add them to the totals."""
            entry = b.block
            loop = b.append_basic_block(f"item_{R}_{taps}")
            b.branch(loop)
            b.position_at_end(loop)
            item, here = b.phi(I64), b.phi(realp)
            item.add_incoming(const(0), entry)
            here.add_incoming(start, entry)
            phis = [b.phi(v.type) for _ in range(R)]
            for phi in phis:
                phi.add_incoming(v.zero, entry)
            acc = list(phis)
            number = b.add(first, item)
            plane = b.load(b.gep(window, [b.load(b.gep(planes, [number]))]))
            base = b.add(b.add(source, plane), b.load(b.gep(offsets, [number])))
            ws = [[v.load(here, const((k * C + c) * width)) for c in range(C)] for k in range(taps)]
            for i in range((R - 1) * S + (taps - 1) * D + 1):
                users = [
                    ((i - k * D) // S, k)
                    for k in range(taps)
                    if (i - k * D) % S == 0 and 0 <= i - k * D < R * S
                ]
                if not users:
                    continue
                loaded = v.load(b.inttoptr(b.add(base, b.mul(unit, const(i))), realp), const(0))
                for c in range(C):
                    value = loaded
                    if C > 1 or N > 1:
                        value = v.shuffle(
                            loaded, loaded, [lane // N * C + c for lane in range(width)]
                        )
                    for r, k in users:
                        acc[r] = v.fma(value, ws[k][c], acc[r])
            following, next_weights = b.add(item, const(1)), b.gep(here, [const(taps * C * width)])
            item.add_incoming(following, loop)
            here.add_incoming(next_weights, loop)
            for phi, value in zip(phis, acc, strict=True):
                phi.add_incoming(value, loop)
            done = b.append_basic_block(f"chunk_done_{R}_{taps}")
            b.cbranch(b.icmp_signed("<", following, count), loop, done)
            b.position_at_end(done)
            sums = [b.fadd(t, a) for t, a in zip(total, acc, strict=True)]
            b.branch(chunk_end)
            return done, next_weights, sums

        def tile(R):
            entry = b.block
            chunk_loop, chunk_end, done = (
                b.append_basic_block(f"{n}_{R}") for n in ("chunk", "chunk_end", "done")
            )
            b.branch(chunk_loop)
            b.position_at_end(chunk_loop)
            chunk, here = b.phi(I64), b.phi(realp)
            chunk.add_incoming(const(0), entry)
            here.add_incoming(weights, entry)
            total = [b.phi(v.type) for _ in range(R)]
            for phi in total:
                phi.add_incoming(v.zero, entry)
            fields = [
                b.load(b.gep(chunks, [b.add(b.mul(chunk, const(3)), const(n))])) for n in range(3)
            ]
            ways = []
            if has_short:
                long_block, short_block = (
                    b.append_basic_block(f"long_{R}"),
                    b.append_basic_block(f"short_{R}"),
                )
                b.cbranch(b.icmp_signed("!=", fields[2], const(0)), short_block, long_block)
                b.position_at_end(short_block)
                ways.append(chunk_sums(R, K - 1, fields[0], fields[1], here, total, chunk_end))
                b.position_at_end(long_block)
            ways.append(chunk_sums(R, K, fields[0], fields[1], here, total, chunk_end))
            b.position_at_end(chunk_end)
            next_weights = b.phi(realp)
            sums = [b.phi(v.type) for _ in range(R)]
            for block, pointer, values in ways:
                next_weights.add_incoming(pointer, block)
                for phi, value in zip(sums, values, strict=True):
                    phi.add_incoming(value, block)
            following = b.add(chunk, const(1))
            chunk.add_incoming(following, chunk_end)
            here.add_incoming(next_weights, chunk_end)
            for phi, value in zip(total, sums, strict=True):
                phi.add_incoming(value, chunk_end)
            b.cbranch(b.icmp_signed("<", following, chunk_count), chunk_loop, done)
            b.position_at_end(done)
            places = [b.inttoptr(b.add(out, b.mul(out_step, const(r))), realp) for r in range(R)]
            if is_across:
                for at in range(0, R, width):
                    together = v.add_across(sums[at : at + width])
                    for lane, place in enumerate(places[at : at + width]):
                        b.store(b.extract_element(together, ir.Constant(I32, lane)), place)
            else:
                for value, place in zip(sums, places, strict=True):
                    v.store(value, place, const(0))
            b.branch(end)

        emit_cases(b, height, most, end, tile)
        return context.get_dummy_value()

    return sig, codegen


def sum_lanes(across, taps, short, stride, dilation, channels, filters, rows, lanes, real):
    """Sum a step: planes, columns of register tiles, rows, and vectors of filters.

    across : int                1: a vector spans channels, and its lanes sum up to one filter
    taps : int                  kernel columns of a long item
    short : int                 1 if short items, of one column less, follow the long ones
    stride, dilation : int      units from one voxel to the next, and from one tap to the next
    channels, filters : int     of a group; 1 and 1 with `across`
    rows : int                  voxels of a register tile
    Parameters (int64): bytes of a unit; elements of a vector's weights; addresses of the items'
    offsets in bytes, the items' planes and the chunks; number of chunks.
    Weights: (sets of packed groups, vectors, items, taps, channels, lanes), where the last vector
    ends with the last filter; with `across` (filters, items, taps, lanes), where an item is a run
    of kernel columns at one vector of channels.
    """
    double = 1 if real == "float64" else 0
    itemsize = 8 if double else 4

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        unit, numbers, offsets, planes = parameters[0], parameters[1], parameters[2], parameters[3]
        chunks, chunk_count = parameters[4], parameters[5]
        row_bytes = itemsize * step[F.row_step] * step[F.stride_h]
        column_bytes = itemsize * step[F.pitch] * step[F.stride_w]
        out_step = itemsize * step[F.acc_column_step]
        width = step[F.width]
        tiles = (width + rows - 1) // rows
        low, taller = width // tiles, width % tiles
        vectors = step[F.filters] if across else (step[F.filters] + lanes - 1) // lanes
        for i in range(step[F.step_planes]):
            window = step[F.window] + 8 * i * step[F.stride_d]
            first_source = step[F.scratch] + step[F.block_row] * row_bytes
            first_out = step[F.accumulator] + itemsize * i * step[F.acc_plane_step]
            column = 0
            for t in range(tiles):
                height = low + 1 if t < taller else low
                # down a column of tiles, so that input rows that two outputs share are still in L1
                for j in range(step[F.block_rows]):
                    fetch_voxels(step, j, column, height)
                    source = first_source + j * row_bytes
                    out = first_out + itemsize * j * step[F.acc_row_step]
                    for vector in range(vectors):
                        weights = (
                            step[F.weights]
                            + itemsize * (step[F.group] * vectors + vector) * numbers
                        )
                        first_filter = (
                            vector if across else min(vector * lanes, step[F.filters] - lanes)
                        )
                        first_channel = 0 if across else first_filter // filters * channels
                        _sum_lanes(
                            across,
                            taps,
                            short,
                            stride,
                            dilation,
                            channels,
                            filters,
                            rows,
                            lanes,
                            double,
                            height=height,
                            source=source + itemsize * first_channel,
                            unit=unit,
                            offsets=offsets,
                            planes=planes,
                            window=window,
                            chunks=chunks,
                            chunk_count=chunk_count,
                            weights=weights,
                            out=out + itemsize * first_filter,
                            out_step=out_step,
                        )
                first_source += height * column_bytes
                first_out += height * out_step
                column += height

    return loops

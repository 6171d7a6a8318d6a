"""The channel micro-kernel: vectors along the filters, a register tile of output voxels x vectors.

Packed input is channels-last (`pack_voxels`). An *item* is up to `taps` kernel columns at one
kernel plane and row. For every input channel of an item, the weights of all its taps are loaded
once; an input value is broadcast once and serves the outputs of all taps that read it. Items are
offsets, so dilation and strides cost nothing.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.loops.ahead import fetch_voxels
from conv3d_cli.engine.loops.simd import I64, Vec, const, emit_cases, inlined, memory
from conv3d_cli.engine.step import F

# Input positions that share a pointer: an x86 address adds a register once or twice at no cost.
GROUP = 3


@intrinsic(prefer_literal=True)
def _sum_voxels(
    typingctx,
    taps,
    stride,
    dilation,
    rows,
    vectors,
    lanes,
    double,
    height,
    source,
    unit,
    offsets,
    planes,
    window,
    weights,
    items,
    channels,
    first,
    out,
    out_step,
):
    """Add `items` items of `channels` channels to the sums of `height` <= rows voxels x vectors.

    source : address            of voxel 0's window; tap k of voxel r reads
                                (r * stride + k * dilation) * unit bytes from there
    offsets, planes : address   int64 (items,); item i is at
                                source + offsets[i] + window[planes[i]], in bytes
    weights : address           (items, channels, taps, vectors * lanes)
    first : int                 1: overwrite the sums instead of adding to them
    out : address               of the sums, voxels `out_step` bytes apart
    """
    literals = taps, stride, dilation, rows, vectors, lanes, double
    places = height, source, unit, offsets, planes, window
    sig = types.void(*literals, *places, weights, items, channels, first, out, out_step)
    K, S, D, most, V, width, is_double = (literal.literal_value for literal in literals)

    def codegen(context, b, sig, args):
        if K == 0 or V == 0:
            return context.get_dummy_value()
        v = Vec(b, width, "float64" if is_double else "float32")
        height, source, unit, offsets, planes, window = args[7:13]
        weights, items, channels, first, out, out_step = args[13:]
        i64p, realp = I64.as_pointer(), v.real.as_pointer()
        offsets, planes, window = (b.inttoptr(a, i64p) for a in (offsets, planes, window))
        weights = b.inttoptr(weights, realp)
        end = b.append_basic_block("end")

        def tile(R):
            """Emit the loops for R voxels."""
            entry = b.block
            item_loop, channel_loop, item_end, done = (
                b.append_basic_block(f"{name}_{R}")
                for name in ("item", "channel", "item_end", "done")
            )
            pairs = [(r, j) for r in range(R) for j in range(V)]
            b.branch(item_loop)

            b.position_at_end(item_loop)
            item, item_weights = b.phi(I64), b.phi(realp)
            item.add_incoming(const(0), entry)
            item_weights.add_incoming(weights, entry)
            item_acc = {p: b.phi(v.type) for p in pairs}
            for phi in item_acc.values():
                phi.add_incoming(v.zero, entry)
            plane = b.load(b.gep(window, [b.load(b.gep(planes, [item]))]))
            base = b.add(b.add(source, plane), b.load(b.gep(offsets, [item])))
            places = (R - 1) * S + (K - 1) * D + 1
            bases = [b.add(base, b.mul(unit, const(i))) for i in range(0, places, GROUP)]
            b.branch(channel_loop)

            b.position_at_end(channel_loop)
            channel, here = b.phi(I64), b.phi(realp)
            channel.add_incoming(const(0), item_loop)
            here.add_incoming(item_weights, item_loop)
            start = {p: b.phi(v.type) for p in pairs}
            for p in pairs:
                start[p].add_incoming(item_acc[p], item_loop)
            acc = dict(start)
            ws = [[v.load(here, const((k * V + j) * width)) for j in range(V)] for k in range(K)]
            at = b.mul(channel, const(v.bytes))
            for i in range(places):
                users = [
                    ((i - k * D) // S, k)
                    for k in range(K)
                    if (i - k * D) % S == 0 and 0 <= (i - k * D) // S < R
                ]
                if not users:
                    continue
                address = b.add(bases[i // GROUP], at)
                if i % GROUP:
                    address = b.add(address, b.mul(unit, const(i % GROUP)))
                value = v.broadcast(b.inttoptr(address, realp), const(0))
                for r, k in users:
                    for j in range(V):
                        acc[r, j] = v.fma(value, ws[k][j], acc[r, j])
            following, next_weights = b.add(channel, const(1)), b.gep(here, [const(K * V * width)])
            channel.add_incoming(following, channel_loop)
            here.add_incoming(next_weights, channel_loop)
            for p in pairs:
                start[p].add_incoming(acc[p], channel_loop)
            b.cbranch(b.icmp_signed("<", following, channels), channel_loop, item_end)

            b.position_at_end(item_end)
            next_item = b.add(item, const(1))
            item.add_incoming(next_item, item_end)
            item_weights.add_incoming(next_weights, item_end)
            for p in pairs:
                item_acc[p].add_incoming(acc[p], item_end)
            b.cbranch(b.icmp_signed("<", next_item, items), item_loop, done)

            b.position_at_end(done)
            lines = [b.inttoptr(b.add(out, b.mul(out_step, const(r))), realp) for r in range(R)]
            with b.if_else(b.icmp_signed("!=", first, const(0))) as (overwrite, add):
                with overwrite:
                    for r, j in pairs:
                        v.store(acc[r, j], lines[r], const(width * j))
                with add:
                    for r, j in pairs:
                        sums = v.load(lines[r], const(width * j))
                        v.store(b.fadd(sums, acc[r, j]), lines[r], const(width * j))
            b.branch(end)

        emit_cases(b, height, most, end, tile)
        return context.get_dummy_value()

    return sig, codegen


def sum_voxels(taps, short, stride, dilation, pair_rows, odd_vectors, odd_rows, lanes, real):
    """Sum a step: passes, blocks of filters, planes, rows, register tiles, and chunks of items.

    taps : int                  kernel columns of a long item
    short : int                 1 if short items, of one column less, follow the long ones
    stride, dilation : int      units from one voxel to the next, and from one tap to the next
    pair_rows : int             voxels of a register tile of two vectors; 0: there are none
    odd_vectors : int           vectors of the last block of filters; 0: it has two
    odd_rows : int              voxels of the last block's register tile
    Parameters (int64): bytes of a unit; filters, padded to whole vectors; blocks of two vectors;
    number of passes; terms of all passes; groups packed together; bytes from one group's channels
    to the next group's; addresses of the items' offsets in bytes, the items' planes, the passes and
    the chunks.
    Passes (n, 4): first chunk, end chunk, terms of earlier passes, terms.
    Chunks (n, 7): first item, number of items, first channel in bytes, channels, 1 if items are
    short, terms of earlier chunks of the pass, 1 for the first chunk of all, which overwrites the
    sums.
    Weights: (groups, passes, blocks, chunks, items, channels, taps, filters of the block).
    """
    double = 1 if real == "float64" else 0
    itemsize = 8 if double else 4
    fewer = taps - 1 if short else 0
    pair = 2 if pair_rows else 0
    even_rows = max(pair_rows, 1)
    last_rows = max(odd_rows, 1)

    @inlined
    def sum_chunk(
        is_pair, height, source, unit, offsets, planes, window, chunk, block_weights, out, out_step
    ):
        """Add a chunk to a register tile.

        source : address            of the tile's window, at the group's first channel
        block_weights : address     of the weights of the pass and block
        """
        fields = memory(chunk, np.int64)
        item, items, channels, first = fields[0], fields[1], fields[3], fields[6]
        at = source + fields[2]
        weights = block_weights + itemsize * fields[5] * (
            2 * lanes if is_pair else odd_vectors * lanes
        )
        some, places = offsets + 8 * item, planes + 8 * item
        if is_pair and fields[4] == 0:
            _sum_voxels(
                taps,
                stride,
                dilation,
                even_rows,
                pair,
                lanes,
                double,
                height=height,
                source=at,
                unit=unit,
                offsets=some,
                planes=places,
                window=window,
                weights=weights,
                items=items,
                channels=channels,
                first=first,
                out=out,
                out_step=out_step,
            )
        elif is_pair:
            _sum_voxels(
                fewer,
                stride,
                dilation,
                even_rows,
                pair,
                lanes,
                double,
                height=height,
                source=at,
                unit=unit,
                offsets=some,
                planes=places,
                window=window,
                weights=weights,
                items=items,
                channels=channels,
                first=first,
                out=out,
                out_step=out_step,
            )
        elif fields[4] == 0:
            _sum_voxels(
                taps,
                stride,
                dilation,
                last_rows,
                odd_vectors,
                lanes,
                double,
                height=height,
                source=at,
                unit=unit,
                offsets=some,
                planes=places,
                window=window,
                weights=weights,
                items=items,
                channels=channels,
                first=first,
                out=out,
                out_step=out_step,
            )
        else:
            _sum_voxels(
                fewer,
                stride,
                dilation,
                last_rows,
                odd_vectors,
                lanes,
                double,
                height=height,
                source=at,
                unit=unit,
                offsets=some,
                planes=places,
                window=window,
                weights=weights,
                items=items,
                channels=channels,
                first=first,
                out=out,
                out_step=out_step,
            )

    def loops(step):
        parameters = memory(step[F.parameters], np.int64)
        unit, padded, pairs = parameters[0], parameters[1], parameters[2]
        passes, terms = parameters[3], parameters[4]
        together, group_bytes = parameters[5], parameters[6]
        offsets, planes = parameters[7], parameters[8]
        pass_table = memory(parameters[9], np.int64)
        blocks = pairs + (1 if odd_vectors else 0)
        row_bytes = itemsize * step[F.row_step] * step[F.stride_h]
        column_bytes = itemsize * step[F.pitch] * step[F.stride_w]
        out_step = itemsize * step[F.acc_column_step]
        width = step[F.width]
        for g in range(together):
            for number in range(passes):
                first_chunk, end_chunk = pass_table[4 * number], pass_table[4 * number + 1]
                before, here_terms = pass_table[4 * number + 2], pass_table[4 * number + 3]
                for block in range(blocks):
                    is_pair = block < pairs
                    ahead = g == 0 and number == 0 and block == 0
                    first_filter = block * 2 * lanes
                    block_weights = step[F.weights] + itemsize * (
                        ((step[F.group] * together + g) * terms + before) * padded
                        + here_terms * first_filter
                    )
                    rows = even_rows if is_pair else last_rows
                    # tiles of nearly equal height, without a short rest
                    tiles = (width + rows - 1) // rows
                    low, taller = width // tiles, width % tiles
                    for i in range(step[F.step_planes]):
                        window = step[F.window] + 8 * i * step[F.stride_d]
                        for j in range(step[F.block_rows]):
                            source = (
                                step[F.scratch]
                                + (step[F.block_row] + j) * row_bytes
                                + g * group_bytes
                            )
                            out = step[F.accumulator] + itemsize * (
                                i * step[F.acc_plane_step]
                                + j * step[F.acc_row_step]
                                + g * padded
                                + first_filter
                            )
                            column = 0
                            for t in range(tiles):
                                height = low + 1 if t < taller else low
                                if ahead and i == 0:
                                    fetch_voxels(step, j, column, height)
                                column += height
                                for c in range(first_chunk, end_chunk):
                                    chunk = parameters[10] + 8 * 7 * c
                                    sum_chunk(
                                        is_pair,
                                        height,
                                        source,
                                        unit,
                                        offsets,
                                        planes,
                                        window,
                                        chunk,
                                        block_weights,
                                        out,
                                        out_step,
                                    )
                                source += height * column_bytes
                                out += height * out_step

    return loops

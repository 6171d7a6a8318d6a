"""A box of a job's output, computed from the boxes of the input it reads: what a worker of a cluster does.

The bits are those of a run over the whole volume: where an algorithm computes several voxels together, the same ones are
computed together here, and what lies beside the box is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conv3d_cli.boxes.cut import Box, input_box
from conv3d_cli.engine import Team
from conv3d_cli.model.volume import Array, VolumeReader
from conv3d_cli.slabs import SlabInput
from conv3d_cli.stream import Convolution


def compute_box(
    convolutions: Sequence[Convolution], reader: VolumeReader, n: int, channels: slice, box: Box, out: Array, team: Team
) -> int:
    """Fill `out` (d, h, w, c) with a box of the last convolution's output; how many voxels its dtype could not hold.

    channels : of the input, which the first convolution's plan is made for
    """
    last = convolutions[-1]
    aligned = align(last, box)
    slab = _input(convolutions, reader, n, channels, aligned, team)
    scale = reader.header.scale if len(convolutions) == 1 else (1.0, 0.0)
    outputs = last.outputs(channels)
    if aligned == box:
        return last.convolve(slab, out, team, scale, outputs)
    sums = np.empty((*aligned.shape, out.shape[3]), last.plan.dtype)
    last.convolve(slab, sums, team, scale, outputs)
    return last.plan.store(sums[_within(box, aligned)], out)


def _input(
    convolutions: Sequence[Convolution], reader: VolumeReader, n: int, channels: slice, box: Box, team: Team
) -> SlabInput:
    """What the last of the convolutions reads for a box that is aligned to its plan."""
    *before, last = convolutions
    problem = last.problem
    source_box = input_box(problem, box)
    if before:
        every = slice(0, before[0].problem.in_channels)
        aligned = align(before[-1], source_box)
        slab = _input(before, reader, n, every, aligned, team)
        scale = reader.header.scale if len(before) == 1 else (1.0, 0.0)
        sums = np.empty((*aligned.shape, problem.in_channels), before[-1].plan.dtype)
        before[-1].convolve(slab, sums, team, scale, before[-1].outputs(every))
        source = sums[_within(source_box, aligned)]
    else:
        depth, rows, columns = (slice(*span) for span in source_box)
        source = reader.read_box(n, depth, rows, columns, channels)
    indices = [
        [i - first if i >= 0 else -1 for i in problem.source_indices(axis, *span)]
        for axis, (span, (first, _)) in enumerate(zip(box, source_box, strict=True))
    ]
    return SlabInput(source, *indices)


def align(convolution: Convolution, box: Box) -> Box:
    """The smallest box around it that begins and ends where the plan's own tasks may."""
    spans = []
    for (start, stop), step, size in zip(box, convolution.plan.grain, convolution.problem.out_size, strict=True):
        spans.append((start // step * step, min(-(-stop // step) * step, size)))
    return Box(*spans)


def _within(box: Box, around: Box) -> tuple[slice, slice, slice]:
    depth, height, width = (
        slice(start - first, stop - first) for (start, stop), (first, _) in zip(box, around, strict=True)
    )
    return depth, height, width

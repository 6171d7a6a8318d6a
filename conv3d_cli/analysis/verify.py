"""Verification: some voxels of an output computed once more, by another way, from the files.

The other way is NumPy in float64, tap by tap, without the engine. A voxel agrees if it lies within the bound that the tests hold
the engine's arithmetic to. Compressed files are unpacked into $TMPDIR to be read at random places.
"""

from __future__ import annotations

import itertools
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import DifferenceError, SpecError
from conv3d_cli.formats import open_volume, output_format
from conv3d_cli.formats.base import random_access
from conv3d_cli.layer import get_activation
from conv3d_cli.model.box import Box
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.model.volume import VolumeReader
from conv3d_cli.pipeline.prepare import PreparedJob, PreparedStage, prepare_job
from conv3d_cli.pipeline.request import Job

# Of sum|w| max|x| in a voxel's window: what tests hold every algorithm to, with room for the store's own rounding.
BOUNDS = {"float32": 4e-6, "float64": 2e-14}
ROUNDING = 1e-6  # of a value: what storing it as float32 may take
LEAST = 1e-37  # what float32 cannot tell from 0
SEED = 0  # the same voxels each time

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Verified:
    """What a verification found: how many voxels, and the largest difference as a part of what is allowed."""

    voxels: int
    worst: float


def check_verifiable(job: Job) -> None:
    """That the files can be read again after the run. Raises: SpecError."""
    if "-" in (job.source, job.target):
        raise SpecError(
            "--verify reads input and output again, which a pipe cannot give: name files"
        )
    if os.path.realpath(job.source) == os.path.realpath(job.target):
        raise SpecError(
            "--verify reads the input again, which this output replaces: name another output"
        )
    if any(get_activation(a).kind != "voxel" for stage in job.stages for a in stage.activations):
        raise SpecError(
            "--verify looks at voxels one by one, and this activation at a whole axis: leave it out"
        )


def verify_output(job: Job, count: int) -> Verified:
    """Compute `count` voxels of a finished job again, spread over its output at random.

    Raises: DifferenceError naming the first voxel beyond its bound.
    """
    with ExitStack() as stack:
        prepared = stack.enter_context(prepare_job(job))
        reader = stack.enter_context(random_access(prepared.reader))
        mask = None if prepared.mask is None else prepared.mask.reader
        sources = _Sources(
            reader, mask, 1.0 if mask is None or job.missing.labels else _largest(mask)
        )
        # where the file does not name its axes: here they are known
        letters = None if output_format(job.target).names_axes else prepared.header.axes.letters
        written = stack.enter_context(random_access(open_volume(job.target, axes=letters)))
        slope, intercept = written.header.scale
        shape = prepared.header.shape
        picks = np.random.default_rng(SEED).choice(
            math.prod(shape), size=min(count, math.prod(shape)), replace=False
        )
        worst = 0.0
        for n, d, h, w, c in np.stack(np.unravel_index(np.sort(picks), shape), axis=1).tolist():
            value, bound = _voxel(prepared, sources, (n, d, h, w, c))
            block = written.read_box(n, *Box.at((d, h, w), (1, 1, 1)).slices, slice(c, c + 1))
            found = float(block[0, 0, 0, 0]) * slope + intercept
            bound += LEAST
            bound += abs(slope) / 2 if prepared.header.dtype.kind != "f" else ROUNDING * abs(value)
            if found == value or (math.isnan(found) and math.isnan(value)) or math.isinf(bound):
                continue
            if not abs(found - value) <= bound:
                raise DifferenceError(
                    f"{job.target} is wrong: voxel (n, d, h, w, c) = {(n, d, h, w, c)} is {found:.9g} and should be {value:.9g}, "
                    f"give or take {bound:.2g}; the file stays, do not use it"
                )
            worst = max(worst, abs(found - value) / bound)
    return Verified(len(picks), worst)


class _Sources(NamedTuple):
    """The volume, and its mask with the largest number in it, which weights are parts of; 1 of regions."""

    volume: VolumeReader
    mask: VolumeReader | None
    largest: float

    def certainty(self, box: Box, labels: bool) -> Reals:
        """The mask in a box (d, h, w, 1): parts of the largest, or the numbers of regions."""
        assert self.mask is not None
        values = _read(self.mask, 0, slice(0, 1), box)
        if labels:
            return np.rint(values)
        # slope and intercept are rounded to float32: such a 0 is a little beside it
        return (
            np.where(np.abs(values) < abs(self.mask.header.scale[1]) / 2**22, 0.0, values)
            / self.largest
        )


def _largest(mask: VolumeReader) -> float:
    """The largest number in a mask."""
    _, depth, height, width, _ = mask.header.shape
    planes = (
        _read(mask, 0, slice(0, 1), Box((d, d + 1), (0, height), (0, width))) for d in range(depth)
    )
    return max(float(plane.max()) for plane in planes)


def _voxel(
    prepared: PreparedJob, sources: _Sources, place: tuple[int, int, int, int, int]
) -> tuple[float, float]:
    """What an output voxel should be, and how far from it one may lie."""
    n, d, h, w, c = place
    values, bounds = _box(
        prepared, len(prepared.stages) - 1, sources, n, c, Box.at((d, h, w), (1, 1, 1))
    )
    channel = 0 if values.shape[3] == 1 else c
    value, bound = float(values[0, 0, 0, channel]), float(bounds[0, 0, 0, channel])
    dtype = prepared.header.dtype
    if dtype.kind != "f" and prepared.job.scale == "auto":
        value = 0.0 if not math.isfinite(value) else value
    elif dtype.kind != "f":
        limits = np.iinfo(dtype)
        value = (
            min(max(value, float(limits.min)), float(limits.max)) if not math.isnan(value) else 0.0
        )
    return value, bound


def _box(
    prepared: PreparedJob, number: int, sources: _Sources, n: int, channel: int, box: Box
) -> tuple[Reals, Reals]:
    """A box of a stage's output (d, h, w, c) and the bound of each voxel; of a filter, the one channel that is asked for."""
    stage = prepared.stages[number]
    problem, kernel = stage.problem, stage.kernel
    indices = [problem.source_indices(axis, *span) for axis, span in enumerate(box)]
    spans = [
        (min(f), max(f) + 1) if (f := [i for i in found if i >= 0]) else (0, 1) for found in indices
    ]
    source = Box(*spans)
    missing = prepared.job.missing if number == 0 else NOTHING
    # of a bank, the one filter that is asked for, or all of them where their magnitude is
    per_channel = 1 if stage.stage.magnitude else kernel.filters_per_channel
    channel, which = divmod(channel, per_channel)
    if number == 0:
        values = _read(
            sources.volume,
            n,
            slice(0, problem.in_channels) if kernel.is_layer else slice(channel, channel + 1),
            source,
        )
        bounds = np.zeros_like(values)
    else:
        values, bounds = _box(prepared, number - 1, sources, n, channel, source)
        if not kernel.is_layer and values.shape[3] > 1:
            values, bounds = (a[..., channel : channel + 1] for a in (values, bounds))
    weights = kernel.for_channels(1)
    if kernel.is_bank and not stage.stage.magnitude:
        weights = weights[..., which : which + 1]
    groups = problem.groups if kernel.is_layer else 1
    fill = problem.boundary.value
    share = BOUNDS[prepared.job.precision]
    if missing.nan == "zero":
        values = np.where(np.isfinite(values), values, 0.0)
    if missing.takes_means(problem.boundary):
        outside = _outside(sources, missing, values, source, indices, problem)
        if outside is not None:
            return np.full((1, 1, 1, 1), outside), np.full((1, 1, 1, 1), 1e-6 * abs(outside))
        sums, around = _means(prepared, sources, stage, missing, values, source, indices, weights)
    else:
        sums = _taps(values, indices, spans, problem, weights, groups, fill)
        around = share * _taps(
            np.abs(values), indices, spans, problem, np.abs(weights), groups, abs(fill)
        )
        around += _taps(bounds, indices, spans, problem, np.abs(weights), groups, 0.0)
        if number == 0:
            largest = _largest_beside(stage, sources.volume, n, channel, box)
            around += share * np.abs(weights).sum(axis=(0, 1, 2, 3)) * largest
    bias = kernel.bias_for(problem.filters)
    if bias is not None:
        # a bank has one for all its filters
        sums = sums + (bias if kernel.is_layer else bias[channel])
    if stage.stage.magnitude:
        sums, around = (np.sqrt((a**2).sum(axis=3, keepdims=True)) for a in (sums, around))
        around += share * sums
    return _activated(stage, sums, around)


def _largest_beside(
    stage: PreparedStage, reader: VolumeReader, n: int, channel: int, box: Box
) -> float:
    """The largest finite voxel that the tile of a box reads, where the algorithm rounds a tile as a whole; else 0."""
    alignment = stage.plan.block_alignment
    if max(alignment) == 1:
        return 0.0
    read = []
    for axis, tile in enumerate(box.align(alignment, stage.problem.out_size)):
        found = [i for i in stage.problem.source_indices(axis, *tile) if i >= 0]
        read.append((min(found), max(found) + 1) if found else (0, 1))
    channels = (
        slice(0, stage.problem.in_channels)
        if stage.kernel.is_layer
        else slice(channel, channel + 1)
    )
    sizes = np.abs(_read(reader, n, channels, Box(*read)))
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes)))


def _read(reader: VolumeReader, n: int, channels: slice, box: Box) -> Reals:
    slope, intercept = reader.header.scale
    return reader.read_box(n, *box.slices, channels).astype(np.float64) * slope + intercept


def _taps(
    values: Reals,
    indices: list[list[int]],
    spans: Any,
    problem: ConvProblem,
    weights: Any,
    groups: int,
    fill: float,
) -> Reals:
    """The sum over taps of a box that holds the source positions `spans`; `indices`: for every position, or -1."""
    padded = values
    for axis, (found, (first, _)) in enumerate(zip(indices, spans, strict=True)):
        places = np.array(found)
        padded = padded.take(np.maximum(places - first, 0), axis=axis)
        padded[(slice(None),) * axis + (places < 0,)] = fill
    out_size = [
        (n - e) // s + 1
        for n, e, s in zip(padded.shape[:3], problem.extent, problem.strides, strict=True)
    ]
    per_group, filters = weights.shape[3], weights.shape[4] // groups
    sums = np.zeros((*out_size, weights.shape[4]))
    if math.prod(out_size) == 1 and groups == 1:  # one voxel: its taps at once
        window = padded[tuple(slice(None, None, d) for d in problem.dilation_rate)]
        with np.errstate(invalid="ignore", over="ignore"):
            sums[0, 0, 0] = (window[..., None] * weights).sum(axis=(0, 1, 2, 3))
        return sums
    with np.errstate(invalid="ignore", over="ignore"):
        for tap in itertools.product(*(range(k) for k in problem.kernel_size)):
            starts = [t * d for t, d in zip(tap, problem.dilation_rate, strict=True)]
            window = padded[
                tuple(
                    slice(a, a + (n - 1) * s + 1, s)
                    for a, n, s in zip(starts, out_size, problem.strides, strict=True)
                )
            ]
            for g in range(groups):
                part = weights[tap][:, g * filters : (g + 1) * filters]
                sums[..., g * filters : (g + 1) * filters] += (
                    window[..., g * per_group : (g + 1) * per_group] @ part
                )
    return sums


def _at_centre(
    problem: ConvProblem, source: Box, indices: list[list[int]]
) -> tuple[int, int, int] | None:
    """Where, in the box that was read, the voxel under the kernel's centre is, for a box of one output; None: outside."""
    here = [
        found[round(c * d)]
        for found, c, d in zip(indices, problem.centre, problem.dilation_rate, strict=True)
    ]
    if min(here) < 0:
        return None
    d, h, w = (i - first for i, (first, _) in zip(here, source, strict=True))
    return d, h, w


def _outside(
    sources: _Sources, missing: Missing, values: Reals, source: Box, indices: list[list[int]], problem: ConvProblem
) -> float | None:  # fmt: skip
    """What stands at an output outside the mask; None inside it, or without one."""
    if sources.mask is None or (missing.mask_mode == "extend" and not missing.labels):
        return None
    own = _at_centre(problem, source, indices)
    if own is not None and sources.certainty(source, missing.labels)[own][0] > 0:
        return None
    return float(values[own][0]) if own is not None and missing.mask_mode == "keep" else 0.0


def _means(
    prepared: PreparedJob, sources: _Sources, stage: PreparedStage, missing: Missing, values: Reals, source: Box,
    indices: list[list[int]], weights: Any,
) -> tuple[Reals, Reals]:  # fmt: skip
    """Means, by definition: see convolution/masked.py."""
    problem, spans = stage.problem, source
    renormalizes = problem.boundary.renormalizes
    certainty = np.ones_like(values)
    mask = sources.mask
    if mask is not None:
        certainty = sources.certainty(source, missing.labels)
    if missing.labels:
        own = _at_centre(problem, source, indices)
        certainty = (certainty == (certainty[own][0] if own is not None else 0.0)).astype(
            np.float64
        )
    if missing.value is not None:
        slope, intercept = prepared.reader.header.scale
        certainty = np.where(values == missing.value * slope + intercept, 0.0, certainty)
    if missing.nan == "ignore":
        certainty = np.where(np.isfinite(values), certainty, 0.0)
    outside = 0.0 if renormalizes else 1.0
    products = np.where(certainty > 0, np.where(certainty > 0, values, 0.0) * certainty, 0.0)
    top = _taps(products, indices, spans, problem, weights, 1, problem.boundary.value)
    size = _taps(
        np.abs(products), indices, spans, problem, np.abs(weights), 1, abs(problem.boundary.value)
    )
    if problem.boundary.mode == "renormalize-depth":  # along height and width zeros are data
        along = np.zeros_like(weights)
        along[:, (weights.shape[1] - 1) // 2, (weights.shape[2] - 1) // 2] = weights.sum(
            axis=(1, 2)
        )
        weights = along
    bottom = _taps(certainty, indices, spans, problem, weights, 1, outside)
    share = 2 * BOUNDS[prepared.job.precision]
    bounds = share * size / np.maximum(bottom, 1e-30) ** 2
    # so near to the least that counts, rounding decides
    bounds = np.where(abs(bottom / missing.min_coverage - 1) < 1e-3, np.inf, bounds)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(
            bottom >= missing.min_coverage, top / bottom, 0.0 if mask is not None else np.nan
        )
    return means, bounds


def _activated(stage: PreparedStage, sums: Reals, bounds: Reals) -> tuple[Reals, Reals]:
    """Activations in float64, and how far they carry what the sums may be off."""
    ends = [sums, sums - bounds, sums + bounds]
    for activation in stage.convolution.activations:
        ends = [end.copy() for end in ends]
        for end in ends:
            activation.in_place(end)
    value, low, high = ends
    if not stage.convolution.activations:
        return value, bounds
    with np.errstate(invalid="ignore"):
        return value, np.maximum(abs(high - value), abs(value - low)) + 4e-6 * abs(value)

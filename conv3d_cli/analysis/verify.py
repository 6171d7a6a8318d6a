"""Verify an output: recompute some of its voxels from the files, by another method, and compare.

The method is plain NumPy in float64, tap by tap, without the engine, and formats that have two ways
to find voxels in a file read by the other one here (`open_again`). A voxel agrees if it is within
the error bound to which the tests hold the engine. A compressed file is first unpacked into
$TMPDIR, so that its voxels can be read in any order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.analysis.verify_network import expected_in_network
from conv3d_cli.errors import DifferenceError, SpecError, setting
from conv3d_cli.formats import open_volume, output_format
from conv3d_cli.formats.base import random_access
from conv3d_cli.layer import get_activation
from conv3d_cli.model.box import Box
from conv3d_cli.model.missing import NOTHING, Missing, stored_value
from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.model.volume import ArrayReader, VolumeReader
from conv3d_cli.network.operations.base import Window, spans_of
from conv3d_cli.network.operations.catalogue import OPERATIONS
from conv3d_cli.network.operations.missing import MaskCertainty
from conv3d_cli.pipeline.flow import WHOLE_PLANES
from conv3d_cli.pipeline.graph import VOLUME
from conv3d_cli.pipeline.prepare import (
    PreparedJob,
    PreparedPatches,
    PreparedStage,
    PreparedStep,
    open_job_mask,
    open_source,
    prepare_job,
)
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.system.atomic import sent_to
from conv3d_cli.system.parts import file_of
from conv3d_cli.system.portable import true_path

# Rounding error allowed, as a fraction of sum|w| max|x| over a voxel's window. The tests hold every
# algorithm to this bound; it leaves room for the rounding of the stored value.
BOUNDS = {"float32": 4e-6, "float64": 2e-14}
ROUNDING = 1e-6  # relative error of a value stored as float32
UNDERFLOW = 1e-37  # absolute error: float32 cannot tell smaller values from 0
SEED = 0  # so that every run verifies the same voxels

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Verified:
    """The result of a verification without errors.

    voxels : int    how many were recomputed
    worst : float   the largest difference divided by its error bound, 0 to 1
    """

    voxels: int
    worst: float


def check_verifiable(job: Job) -> None:
    """Check, before a job runs, that its output can be verified. Raises: SpecError."""
    if job.source == "-" or sent_to(job.target):
        raise SpecError(
            f"{setting('verify')} reads the input and the output again, and a pipe cannot be read "
            "twice: name files"
        )
    if true_path(file_of(job.source)) == true_path(job.target):
        raise SpecError(
            f"{setting('verify')} reads the input again, which this output replaces: name another "
            "output"
        )
    if job.given_network is not None:
        for node in job.given_network.nodes:
            if OPERATIONS[node.operation].needs_whole and job.patched is None:
                raise SpecError(
                    f"{setting('verify')} recomputes single voxels, and {node.title} needs the "
                    "whole volume: leave it out"
                )
        return
    if any(
        get_activation(a).kind != "voxel"
        for stage in job.given_stages
        if isinstance(stage, Stage)
        for a in stage.activations
    ):
        raise SpecError(
            f"{setting('verify')} recomputes single voxels, and this activation needs a whole "
            "axis: "
            "leave it out"
        )


def verify_output(job: Job, count: int) -> Verified:
    """Recompute `count` voxels of a finished job's output, at random places, and compare.

    Every run picks the same voxels. An output with fewer than `count` is recomputed wholly.
    Raises: DifferenceError with the first voxel whose error exceeds its bound.
    """
    with ExitStack() as stack:
        prepared = stack.enter_context(prepare_job(job))
        # not by the way that the output was computed from
        reader = stack.enter_context(random_access(open_source(job, again=True), job.target))
        checked = stack.enter_context(open_job_mask(job, reader.header, again=True))
        mask = None if checked is None else checked.reader
        largest = 1.0 if mask is None or job.missing.labels else _largest(mask)
        inputs = _Inputs(reader, mask, largest, {})
        # the axes are known here, in case the format does not store their names
        letters = None if output_format(job.target).names_axes else prepared.header.axes.letters
        written = stack.enter_context(
            random_access(open_volume(job.target, axes=letters, again=True), job.target)
        )
        slope, intercept = written.header.scale
        shape = prepared.header.shape
        picks = np.random.default_rng(SEED).choice(
            math.prod(shape), size=min(count, math.prod(shape)), replace=False
        )
        worst = 0.0
        for n, d, h, w, c in np.stack(np.unravel_index(np.sort(picks), shape), axis=1).tolist():
            value, bound = _expected_voxel(prepared, inputs, (n, d, h, w, c))
            block = written.read_box(n, *Box.at((d, h, w), (1, 1, 1)).slices, slice(c, c + 1))
            found = float(block[0, 0, 0, 0]) * slope + intercept
            bound += UNDERFLOW
            bound += abs(slope) / 2 if prepared.header.dtype.kind != "f" else ROUNDING * abs(value)
            if found == value or (math.isnan(found) and math.isnan(value)) or math.isinf(bound):
                continue
            if not abs(found - value) <= bound:
                raise DifferenceError(
                    f"{job.target} is wrong: voxel (n, d, h, w, c) = {(n, d, h, w, c)} is "
                    f"{found:.9g} and should be {value:.9g}, give or take {bound:.2g}; "
                    "the file is left in place, do not use it"
                )
            worst = max(worst, abs(found - value) / bound)
    return Verified(len(picks), worst)


class _Inputs(NamedTuple):
    """The input volume and its mask, open for random access.

    largest : float     the largest value of the mask, which certainties are fractions of; 1 for
                        labels
    found : dict        (batch index, name of a step) -> the whole output of a step that needs the
                        whole volume, with its error, once it was computed
    """

    volume: VolumeReader
    mask: VolumeReader | None
    largest: float
    found: dict[tuple[int, str], tuple[Reals, Reals]]

    def certainty(self, box: Box, labels: bool) -> Reals:
        """The mask in a box, (d, h, w, 1): fractions of its largest value, or region numbers."""
        assert self.mask is not None
        values = _read(self.mask, 0, slice(0, 1), box)
        if labels:
            return np.rint(values)
        # the header's slope and intercept are rounded to float32, so a 0 may come out slightly off
        threshold = abs(self.mask.header.scale[1]) / 2**22
        return np.where(np.abs(values) < threshold, 0.0, values) / self.largest


class _Window(NamedTuple):
    """The input voxels that a box of outputs reads.

    indices : three lists of int    for each axis, the input index at each position from the first
                                    tap to the last; -1 where the boundary is a constant
    box : Box                       the smallest box around these indices
    """

    problem: ConvProblem
    indices: list[list[int]]
    box: Box

    @classmethod
    def around(cls, problem: ConvProblem, outputs: Box) -> _Window:
        """The window of a box of outputs."""
        indices = [problem.source_indices(axis, *span) for axis, span in enumerate(outputs)]
        inside = [[i for i in found if i >= 0] or [0] for found in indices]
        return cls(problem, indices, Box(*((min(i), max(i) + 1) for i in inside)))

    def sum_taps(self, values: Reals, weights: Any, groups: int, constant: float) -> Reals:
        """The weighted sum over the kernel's taps, for each output: (d, h, w, filters).

        values : (d, h, w, channels)    of the input, in `box`
        weights : 5-D                   (kD, kH, kW, channels // groups, filters)
        constant : float                what a constant boundary holds
        """
        problem, padded = self.problem, values
        for axis, (found, (first, _)) in enumerate(zip(self.indices, self.box, strict=True)):
            positions = np.array(found)
            padded = padded.take(np.maximum(positions - first, 0), axis=axis)
            padded[(slice(None),) * axis + (positions < 0,)] = constant
        out_size = [
            (n - e) // s + 1
            for n, e, s in zip(padded.shape[:3], problem.extent, problem.strides, strict=True)
        ]
        per_group, filters = weights.shape[3], weights.shape[4] // groups
        sums = np.zeros((*out_size, weights.shape[4]))
        if math.prod(out_size) == 1 and groups == 1:  # one voxel: all taps at once
            taps = padded[tuple(slice(None, None, d) for d in problem.dilation_rate)]
            with np.errstate(invalid="ignore", over="ignore"):
                sums[0, 0, 0] = (taps[..., None] * weights).sum(axis=(0, 1, 2, 3))
            return sums
        with np.errstate(invalid="ignore", over="ignore"):
            for tap in itertools.product(*(range(k) for k in problem.kernel_size)):
                starts = [t * d for t, d in zip(tap, problem.dilation_rate, strict=True)]
                slices = tuple(
                    slice(a, a + (n - 1) * s + 1, s)
                    for a, n, s in zip(starts, out_size, problem.strides, strict=True)
                )
                for g in range(groups):
                    own_channels = slice(g * per_group, (g + 1) * per_group)
                    own_filters = slice(g * filters, (g + 1) * filters)
                    taps = padded[slices][..., own_channels]
                    sums[..., own_filters] += taps @ weights[tap][:, own_filters]
        return sums

    def centre(self) -> tuple[int, int, int] | None:
        """The voxel of `box` under the kernel's centre, for one output; None outside the volume."""
        problem = self.problem
        indices = [
            found[round(c * d)]
            for found, c, d in zip(self.indices, problem.centre, problem.dilation_rate, strict=True)
        ]
        if min(indices) < 0:
            return None
        d, h, w = (i - first for i, (first, _) in zip(indices, self.box, strict=True))
        return d, h, w


def _largest(mask: VolumeReader) -> float:
    """The largest value of a mask."""
    _, depth, height, width, _ = mask.header.shape
    planes = (
        _read(mask, 0, slice(0, 1), Box((d, d + 1), (0, height), (0, width))) for d in range(depth)
    )
    return max(float(plane.max()) for plane in planes)


def _expected_voxel(
    prepared: PreparedJob, inputs: _Inputs, index: tuple[int, int, int, int, int]
) -> tuple[float, float]:
    """The correct value of the output voxel (n, d, h, w, c), and the error that is allowed."""
    n, d, h, w, c = index
    values, bounds = _expected_output(prepared, inputs, n, c, Box.at((d, h, w), (1, 1, 1)))
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


def _expected_output(
    prepared: PreparedJob, inputs: _Inputs, n: int, channel: int, box: Box
) -> tuple[Reals, Reals]:
    """The correct output in a box, and the error allowed: (d, h, w, c) each.

    A filter gives only the requested channel.
    """
    if prepared.network is None:
        return _expected_box(prepared, len(prepared.stages) - 1, inputs, n, channel, box)
    every, zero = slice(0, prepared.reader.header.shape[4]), prepared.job.missing.nan == "zero"

    def read(box: Box) -> Reals:
        voxels = _read(inputs.volume, n, every, box)
        return np.where(np.isfinite(voxels), voxels, 0.0) if zero else voxels

    return expected_in_network(prepared.network, read, box, BOUNDS[prepared.job.precision])


def _expected_box(
    prepared: PreparedJob, number: int, inputs: _Inputs, n: int, channel: int, outputs: Box
) -> tuple[Reals, Reals]:
    """The correct output of stage `number` in a box, and the error allowed: (d, h, w, c) each.

    A layer gives all its filters, a filter only the requested channel.
    """
    stage = prepared.stages[number]
    if isinstance(stage, PreparedPatches):
        return _expected_blend(prepared, stage, inputs, n, outputs)
    if isinstance(stage, PreparedStep):
        return _expected_step(prepared, stage, inputs, n, outputs)
    problem, kernel = stage.problem, stage.kernel
    window = _Window.around(problem, outputs)
    (source,) = stage.inputs
    missing = NOTHING if source != VOLUME or prepared.job.is_composed else prepared.job.missing
    # of a bank, only the filter of the requested channel, unless the magnitude needs all of them
    per_channel = 1 if stage.stage.magnitude else kernel.filters_per_channel
    channel, which = divmod(channel, per_channel)
    if source == VOLUME:
        channels = _channels_read(stage, channel)
        values = _read(inputs.volume, n, channels, window.box)
        bounds = np.zeros_like(values)
    else:
        values, bounds = _expected_box(prepared, source, inputs, n, channel, window.box)
        if not kernel.is_layer and values.shape[3] > 1:
            values, bounds = (a[..., channel : channel + 1] for a in (values, bounds))
    weights = kernel.for_channels(1)
    if kernel.is_bank and not stage.stage.magnitude:
        weights = weights[..., which : which + 1]
    groups = problem.groups if kernel.is_layer else 1
    constant = problem.boundary.value
    rounding = BOUNDS[prepared.job.precision]
    if missing.nan == "zero":
        values = np.where(np.isfinite(values), values, 0.0)
    if missing.takes_means(problem.boundary):
        outside = _value_outside_mask(inputs, missing, values, window)
        if outside is not None:
            return np.full((1, 1, 1, 1), outside), np.full((1, 1, 1, 1), 1e-6 * abs(outside))
        sums, errors = _means(prepared, inputs, missing, values, window, weights)
    else:
        sizes = np.abs(weights)
        sums = window.sum_taps(values, weights, groups, constant)
        errors = rounding * window.sum_taps(np.abs(values), sizes, groups, abs(constant))
        errors += window.sum_taps(bounds, sizes, groups, 0.0)
        if source == VOLUME:
            largest = _largest_in_tile(stage, inputs.volume, n, channel, outputs)
            errors += rounding * sizes.sum(axis=(0, 1, 2, 3)) * largest
    bias = kernel.bias_for(problem.filters)
    if bias is not None:
        # all filters of a bank share the bias of their channel
        sums = sums + (bias if kernel.is_layer else bias[channel])
    if stage.stage.magnitude:
        sums, errors = (np.sqrt((a**2).sum(axis=3, keepdims=True)) for a in (sums, errors))
        errors += rounding * sums
    return _activated(stage, sums, errors)


def _expected_blend(
    prepared: PreparedJob, patches: PreparedPatches, inputs: _Inputs, n: int, outputs: Box
) -> tuple[Reals, Reals]:
    """The correct mean of patches in a box, and the error allowed, of all channels."""
    layout, inner, (source,) = patches.layout, patches.inner, patches.inputs
    channels = inner.reader.header.shape[4]
    shape = (*outputs.size, inner.header.shape[4])
    sums, errors, total = np.zeros(shape), np.zeros(shape), np.zeros((*outputs.size, 1))
    for starts in layout.patches_of(outputs):
        taken = layout.inside(starts)
        voxels, off = np.zeros((2, *inner.reader.header.axes.shape))
        place = taken.shift([-start for start in starts]).slices
        voxels[place], off[place] = _expected_input(prepared, source, inputs, n, channels, taken)
        header = replace(inner.reader.header, dtype=np.dtype(np.float64))
        own = _Inputs(ArrayReader(voxels, header), None, 1.0, {})
        shared = outputs.intersect(taken)
        within = shared.shift([-start for start in starts])
        parts = [_expected_output(inner, own, 0, c, within) for c in _filters(inner)]
        values, bounds = (np.concatenate(part, axis=3) for part in zip(*parts, strict=True))
        weights = layout.weights(within)[..., None]
        here = shared.within(outputs).slices
        sums[here] += weights * values
        errors[here] += weights * bounds
        total[here] += weights
    rounding = BOUNDS[prepared.job.precision]
    return sums / total, errors / total + rounding * np.abs(sums / total)


def _filters(inner: PreparedJob) -> Sequence[int]:
    """The channels for which `_expected_output` has to be asked to have all of them."""
    last = inner.last
    together = inner.network is not None or last.kernel.is_layer
    return (0,) if together else range(inner.header.shape[4])


def _expected_step(
    prepared: PreparedJob, step: PreparedStep, inputs: _Inputs, n: int, outputs: Box
) -> tuple[Reals, Reals]:
    """The correct output of a step in a box, and the error allowed, of all channels."""
    operation = step.operation
    if isinstance(operation, MaskCertainty):
        operation.certainty_in = partial(inputs.certainty, labels=False)
    if not operation.needs_whole:
        return _defined(prepared, step, inputs, n, outputs, None)
    key = n, operation.node.name
    if key not in inputs.found:
        whole = Box.whole(operation.shape.size)
        inputs.found[key] = _defined(prepared, step, inputs, n, whole, WHOLE_PLANES)
    values, bounds = inputs.found[key]
    return values[outputs.slices], bounds[outputs.slices]


def _defined(
    prepared: PreparedJob, step: PreparedStep, inputs: _Inputs, n: int, box: Box, planes: int | None
) -> tuple[Reals, Reals]:
    """What a step gives in a box by its definition, and the error allowed.

    planes : int or None    the most planes of its inputs to compute at once; None: all of them
    """
    operation = step.operation
    taken, off = [], []
    for place, source in enumerate(step.inputs):
        needed = spans_of(operation, place, box)
        channels = operation.inputs[place].channels
        found = [
            _expected_input(prepared, source, inputs, n, channels, part)
            for part in _in_planes(needed, planes)
        ]
        values, bounds = (np.concatenate(parts) for parts in zip(*found, strict=True))
        taken.append(Window(values, needed.start))
        off.append(Window(bounds, needed.start))
    rounding = BOUNDS[prepared.job.precision]
    return operation.define(taken, box), operation.bounds(taken, off, box, rounding)


def _in_planes(box: Box, count: int | None) -> list[Box]:
    """A box in pieces of at most so many planes, since what computes them takes more memory."""
    first, last = box.depth
    step = last - first if count is None else count
    return [Box((d, min(d + step, last)), *box[1:]) for d in range(first, last, step)]


def _expected_input(
    prepared: PreparedJob, source: int, inputs: _Inputs, n: int, channels: int, box: Box
) -> tuple[Reals, Reals]:
    """The correct values of all channels of the volume, or of a stage, and the error allowed."""
    if source == VOLUME:
        values = _read(inputs.volume, n, slice(0, channels), box)
        return values, np.zeros_like(values)
    found = [_expected_box(prepared, source, inputs, n, 0, box)]
    for channel in range(found[0][0].shape[3], channels):  # a filter gives a channel at a time
        found.append(_expected_box(prepared, source, inputs, n, channel, box))
    values, bounds = (np.concatenate(parts, axis=3) for parts in zip(*found, strict=True))
    return values, bounds


def _channels_read(stage: PreparedStage, channel: int) -> slice:
    """The input channels behind an output channel: all of them for a layer, else its own."""
    if stage.kernel.is_layer:
        return slice(0, stage.problem.in_channels)
    return slice(channel, channel + 1)


def _largest_in_tile(
    stage: PreparedStage, reader: VolumeReader, n: int, channel: int, outputs: Box
) -> float:
    """The largest finite |voxel| in the tile around a box, whose voxels are rounded together.

    0 if the algorithm does not compute whole tiles.
    """
    alignment = stage.plan.block_alignment
    if max(alignment) == 1:
        return 0.0
    tile = _Window.around(stage.problem, outputs.align(alignment, stage.problem.out_size))
    sizes = np.abs(_read(reader, n, _channels_read(stage, channel), tile.box))
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes)))


def _read(reader: VolumeReader, n: int, channels: slice, box: Box) -> Reals:
    """Voxel values (d, h, w, c) as float64."""
    slope, intercept = reader.header.scale
    return reader.read_box(n, *box.slices, channels).astype(np.float64) * slope + intercept


def _value_outside_mask(
    inputs: _Inputs, missing: Missing, values: Reals, window: _Window
) -> float | None:
    """The value of an output outside the mask; None if it is inside, or if there is no mask."""
    if inputs.mask is None or (missing.mask_mode == "extend" and not missing.labels):
        return None
    centre = window.centre()
    if centre is not None and inputs.certainty(window.box, missing.labels)[centre][0] > 0:
        return None
    return float(values[centre][0]) if centre is not None and missing.mask_mode == "keep" else 0.0


def _means(
    prepared: PreparedJob,
    inputs: _Inputs,
    missing: Missing,
    values: Reals,
    window: _Window,
    weights: Any,
) -> tuple[Reals, Reals]:
    """The weighted means over valid voxels and the errors allowed; see convolution/masked.py."""
    boundary = window.problem.boundary
    certainty = np.ones_like(values)
    if inputs.mask is not None:
        certainty = inputs.certainty(window.box, missing.labels)
    if missing.labels:
        centre = window.centre()
        label = certainty[centre][0] if centre is not None else 0.0
        certainty = (certainty == label).astype(np.float64)
    stored = stored_value(missing.value, prepared.reader.header.dtype)
    if stored is not None:
        slope, intercept = prepared.reader.header.scale
        certainty = np.where(values == stored * slope + intercept, 0.0, certainty)
    if missing.nan == "ignore":
        certainty = np.where(np.isfinite(values), certainty, 0.0)
    products = np.where(certainty > 0, np.where(certainty > 0, values, 0.0) * certainty, 0.0)
    numerator = window.sum_taps(products, weights, 1, boundary.value)
    size = window.sum_taps(np.abs(products), np.abs(weights), 1, abs(boundary.value))
    if boundary.mode == "renormalize-depth":  # outside along height and width, the zeros are data
        along_depth = np.zeros_like(weights)
        middle = (slice(None), (weights.shape[1] - 1) // 2, (weights.shape[2] - 1) // 2)
        along_depth[middle] = weights.sum(axis=(1, 2))
        weights = along_depth
    coverage = window.sum_taps(certainty, weights, 1, 0.0 if boundary.renormalizes else 1.0)
    rounding = 2 * BOUNDS[prepared.job.precision]
    bounds = rounding * size / np.maximum(coverage, 1e-30) ** 2
    # this close to the threshold, rounding decides whether there is a mean
    bounds = np.where(abs(coverage / missing.min_coverage - 1) < 1e-3, np.inf, bounds)
    empty = 0.0 if inputs.mask is not None else np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(coverage >= missing.min_coverage, numerator / coverage, empty)
    return means, bounds


def _activated(stage: PreparedStage, sums: Reals, bounds: Reals) -> tuple[Reals, Reals]:
    """The sums after the activations, in float64, and how far an error within `bounds` carries."""
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

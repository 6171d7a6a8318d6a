"""Estimate the smoothness of a volume, and find the kernel that smooths it to a given one.

Smoothness is the FWHM of the Gaussian that would make white noise equally smooth. In white noise
smoothed by a Gaussian of standard deviation s, voxels at distance D have the correlation
exp(-D²/(4s²)). For neighbours it is estimated from first differences:
1 - var(difference) / (2 var(value)). Sources: S. D. Forman et al., Magnetic Resonance in Medicine
33 (1995) 636-647; AFNI's mri_estimate_FWHM_1dif does the same.

For a time series, the mean over time is subtracted from each voxel first, so that the noise is
measured. For a single volume, only its overall mean is subtracted, so anatomy counts as smoothness.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.convolution.masks import Mask
from conv3d_cli.errors import ShapeError, SpecError, named, setting
from conv3d_cli.formats import open_volume, output_format
from conv3d_cli.formats.base import random_access
from conv3d_cli.kernels.builtin import FWHM_PER_SIGMA
from conv3d_cli.kernels.lengths import Floats, read_lengths
from conv3d_cli.model.grid import Grid, length_scale
from conv3d_cli.model.spec import AXIS_NAMES
from conv3d_cli.model.volume import VolumeReader
from conv3d_cli.pipeline.prepare import naming, open_job_mask, open_source
from conv3d_cli.pipeline.request import Job
from conv3d_cli.pipeline.run import run_job
from conv3d_cli.system.room import require_room
from conv3d_cli.system.scratch import scratch_folder

BLOCK_BYTES = 32 << 20  # memory for a block of planes and its sums over time
# float64 buffers for each plane: the first volume, the present one, a step, and the sums of values,
# of squares, and of squared steps along three axes
BUFFERS_PER_PLANE = 10
FWHM_TOLERANCE = 0.02  # relative difference at which the FWHM of the output counts as matched
MAX_TRIALS = 6  # runs to correct the kernel


@dataclass
class Moments:
    """The number of values, their sum, and the sum of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def variance(self) -> float:
        """The variance about the mean; 0 without values.

        >>> Moments(count=2, total=4.0, squares=10.0).variance
        1.0
        """
        if not self.count:
            return 0.0
        return max(0.0, self.squares / self.count - (self.total / self.count) ** 2)


def estimate_fwhm(reader: VolumeReader, mask: Mask | None = None) -> Floats:
    """The smoothness of a volume: FWHM along depth, height and width, in voxels.

    The FWHM of white noise is 0, that along an axis of one voxel NaN.

    reader : VolumeReader   with random access; channels are pooled
    mask : Mask or None     use only voxels where it is above 0. Voxels that are NaN or infinite at
                            any time are never used.

    Raises: ShapeError if no voxels are left, or all have the same value.

    >>> from conv3d_cli.model.volume import ArrayReader, Axes, VolumeHeader
    >>> noise = np.random.default_rng(0).standard_normal((32, 32, 32))
    >>> smooth = noise[:-1] + noise[1:]  # the correlation along depth is 1/2
    >>> reader = ArrayReader(smooth, VolumeHeader(Axes("zyx", smooth.shape), smooth.dtype))
    >>> depth, height, width = estimate_fwhm(reader)
    >>> round(depth, 1)
    1.4
    """
    count, depth, height, width, channels = reader.header.shape
    values, steps = Moments(), (Moments(), Moments(), Moments())
    plane = 8 * BUFFERS_PER_PLANE * height * width
    planes = max(1, BLOCK_BYTES // plane)
    held = min(planes + 1, depth)
    require_room(held * plane + reader.buffer_bytes(held, 1), "a pair of its planes", reader.path)
    for channel in range(channels):
        for start in range(0, depth, planes):
            stop = min(start + planes, depth)
            with_next = slice(start, min(stop + 1, depth))
            sums = _sums_over_time(reader, with_next, channel, count)
            if mask is not None:
                sums.valid &= mask.inside(mask.reader.read(0, with_next, slice(0, 1))[..., 0])
                mask.reader.release(0, start)
            sums.add_to(values, steps, stop - start)
    if values.variance <= 0:
        raise ShapeError(
            f"cannot estimate the smoothness of {reader.path}: the voxels to estimate it from "
            "(finite, and inside the mask) all have the same value, or there are none; give "
            "another volume or mask"
        )
    d, h, w = (_fwhm(values.variance, step) for step in steps)
    return d, h, w


@dataclass
class _Sums:
    """Sums over time, for every voxel (d, h, w) of a block of planes.

    The values of a series are taken relative to its first volume, so that a large mean costs no
    digits; a single volume is summed as it is.

    count : int                     volumes in the series
    valid : (d, h, w) bool          voxels that are finite at all times and inside the mask
    values, squares : (d, h, w)     sums of the values, and of their squares
    squared_steps : list of arrays  for depth, height and width: sums of the squared differences
                                    between neighbours, with one element less along that axis
    """

    count: int
    valid: NDArray[np.bool_]
    values: NDArray[np.float64]
    squares: NDArray[np.float64]
    squared_steps: list[NDArray[np.float64]]

    def add_to(self, values: Moments, steps: Sequence[Moments], planes: int) -> None:
        """Add the first `planes` planes, and the steps that start in them, to moments."""
        for moments, axis in ((values, None), *zip(steps, range(3), strict=True)):
            # the steps along depth that start in the last plane end in the plane after it
            part = slice(None) if axis == 0 else slice(0, planes)
            total, valid = self.values[part], self.valid[part]
            squares = self.squares[part] if axis is None else self.squared_steps[axis][part]
            if axis is not None:
                total = _steps(total, axis)
                valid = _shifted(valid, axis, 1) & _shifted(valid, axis, -1)
            total, squares = total[valid], squares[valid]
            moments.count += self.count * total.size
            if self.count > 1:  # subtract each voxel's mean over time
                squares = squares - total**2 / self.count
            else:
                moments.total += float(total.sum())
            moments.squares += float(squares.sum())


def _sums_over_time(reader: VolumeReader, depth: slice, channel: int, count: int) -> _Sums:
    """Read a block of planes from `count` volumes and sum it over them."""
    shape = (depth.stop - depth.start, *reader.header.shape[2:4])
    sums = _Sums(count, np.ones(shape, np.bool_), np.zeros(shape), np.zeros(shape), [])
    sums.squared_steps = [np.zeros_like(_shifted(sums.values, axis, 1)) for axis in range(3)]
    first = None
    for n in range(count):
        block = reader.read(n, depth, slice(channel, channel + 1))[..., 0].astype(np.float64)
        reader.release(n, depth.start)
        finite = np.isfinite(block)
        sums.valid &= finite
        block[~finite] = 0
        if count > 1:
            first = block.copy() if first is None else first
            block -= first
        sums.values += block
        sums.squares += block * block
        for axis, squares in enumerate(sums.squared_steps):
            step = _steps(block, axis)
            squares += np.square(step, out=step)
    return sums


def _steps(array: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The differences between neighbours along an axis."""
    step: NDArray[np.float64] = _shifted(array, axis, 1) - _shifted(array, axis, -1)
    return step


def _shifted(array: NDArray[Any], axis: int, by: int) -> NDArray[Any]:
    """The array without its first (by=1) or its last (by=-1) element along an axis."""
    return array[(slice(None),) * axis + (slice(1, None) if by > 0 else slice(None, -1),)]


def _fwhm(variance: float, step: Moments) -> float:
    """FWHM in voxels along one axis, from the variance of the values and the steps along it."""
    if not step.count:
        return math.nan
    correlation = 1 - step.variance / (2 * variance)
    if correlation <= 0:
        return 0.0
    if correlation >= 1:
        return math.inf
    return FWHM_PER_SIGMA * math.sqrt(-1 / (4 * math.log(correlation)))


@dataclass(frozen=True)
class SmoothnessMatch:
    """A job whose output has the requested smoothness.

    job : Job                       with the Gaussian that was found as its kernel
    before, kernel, after : Floats  FWHM along D, H, W in voxels, of the volume, of the Gaussian,
                                    and of the output
    reached : bool                  the output is within FWHM_TOLERANCE of the requested FWHM
    grid : Grid                     of the volume
    """

    job: Job
    before: Floats
    kernel: Floats
    after: Floats
    reached: bool
    grid: Grid

    def words(self) -> str:
        """The smoothness before and after, and the kernel, as a sentence for the user."""

        factors, unit = length_scale(self.grid)

        def text(lengths: Floats) -> str:
            scaled = [length * s for length, s in zip(lengths, factors, strict=True)]
            return ",".join(f"{length:.3g}" for length in scaled)

        missed = f"; not within {FWHM_TOLERANCE:.0%} of the target after {MAX_TRIALS} trials"
        return (
            f"FWHM (depth,height,width) {text(self.before)} -> {text(self.after)} "
            f"{unit} by a Gaussian of {text(self.kernel)}"
            f"{'' if self.reached else missed}"
        )


def match_fwhm(job: Job, target: str) -> SmoothnessMatch:
    """Find the Gaussian that gives a job's output the FWHM `target`.

    The first candidate is exact for white noise: sqrt(target² - present²). Each trial runs the
    job into $TMPDIR, estimates the FWHM of its output and corrects the Gaussian, until the FWHM
    is within 2 % of the target, or 6 trials are over.

    job : Job       one stage without strides; its kernel is replaced
    target : str    one length with its unit, or three ("6mm", "6,6,4mm")

    Raises: ShapeError if the volume is already smoother along an axis; SpecError for several
    stages, for strides, and for a length that cannot be parsed.
    """
    if job.selects:
        raise SpecError(
            f"{setting('to_fwhm')} estimates the smoothness of all channels: leave out "
            f"{job.selects}"
        )
    stage = job.convolutions[0]
    if len(job.stages) > 1 or stage.spec(is_layer=False).strides not in (1, (1, 1, 1), [1, 1, 1]):
        raise SpecError(
            f"{setting('to_fwhm')} smooths on the volume's own grid: leave out layers and "
            f"{setting('strides')}"
        )
    with ExitStack() as stack:
        trial = os.path.join(stack.enter_context(scratch_folder(beside=job.target)), "trial.npy")
        reader = stack.enter_context(random_access(open_source(job), job.target))
        with naming(reader):
            mask = stack.enter_context(open_job_mask(job, reader.header))
        wanted = read_lengths(target, named("to_fwhm"), reader.header.grid)
        axes = reader.header.axes
        letters = output_format(trial).output_letters(
            axes.letters, axes.canonical_shape[4], np.dtype(np.float32)
        )
        before = estimate_fwhm(reader, mask)
        for axis, present, wish in zip(AXIS_NAMES, before, wanted, strict=True):
            if present > wish * (1 + FWHM_TOLERANCE):
                raise ShapeError(
                    f"{job.source} is already smoother than {target} along {axis}: its FWHM is "
                    f"{present:.3g} voxels, and {wish:.3g} are requested; pass a larger "
                    f"{setting('to_fwhm')}"
                )
        squares = [
            max(0.0, w * w - b * b) if math.isfinite(b) else 0.0
            for w, b in zip(wanted, before, strict=True)
        ]
        for _ in range(MAX_TRIALS):
            kernel = (math.sqrt(squares[0]), math.sqrt(squares[1]), math.sqrt(squares[2]))
            text = f"gaussian:fwhm={','.join(f'{k:.6g}' for k in kernel)}vox"
            matched = replace(job, stages=(replace(stage, kernel=text),))
            run_job(
                replace(matched.as_trial(trial), missing=replace(job.missing, mask_mode="clip"))
            )
            with open_volume(trial, axes=letters) as output:
                after = estimate_fwhm(output, mask)
            errors = [a / w - 1 for a, w in zip(after, wanted, strict=True) if math.isfinite(a)]
            reached = max(map(abs, errors), default=0.0) <= FWHM_TOLERANCE
            if reached:
                break
            squares = [
                s * _correction(w, b, a) if math.isfinite(a) else 0.0
                for s, w, b, a in zip(squares, wanted, before, after, strict=True)
            ]
        grid = reader.header.grid
    return SmoothnessMatch(matched, before, kernel, after, reached, grid)


def _correction(wanted: float, before: float, after: float) -> float:
    """The factor for the kernel's squared FWHM: requested increase over achieved increase."""
    achieved, requested = after * after - before * before, wanted * wanted - before * before
    if achieved <= 0 or requested <= 0:
        return 1.0
    return min(4.0, max(0.25, requested / achieved))

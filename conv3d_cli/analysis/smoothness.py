"""Smoothness: how smooth a volume is, as the FWHM of the Gaussian that would make white noise as smooth, and matching one.

Of white noise smoothed by a Gaussian of standard deviation s, neighbours at distance D correlate by exp(-D²/(4s²)). That is taken
from the variance of first differences: 1 - var(difference) / (2 var(value)). Sources: S. D. Forman et al., Magnetic Resonance
in Medicine 33 (1995) 636-647; AFNI's mri_estimate_FWHM_1dif does the same.

Of a series the mean over time is taken out first, so that what is measured is the noise; of a single volume its mean alone, so
that anatomy counts as smoothness.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.convolution.masks import Mask
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.formats import open_volume, output_format
from conv3d_cli.formats.base import random_access
from conv3d_cli.kernels.builtin import FWHM_PER_SIGMA
from conv3d_cli.kernels.lengths import Floats, read_lengths
from conv3d_cli.model.spec import AXIS_NAMES
from conv3d_cli.model.volume import VolumeReader
from conv3d_cli.pipeline.prepare import naming, open_mask
from conv3d_cli.pipeline.request import Job
from conv3d_cli.pipeline.run import run_job

BLOCK_BYTES = 32 << 20  # of planes at a time, and of what is summed over them
HELD_PLANES = 10  # for each: at the first time, now, a step, sums of values, squares and steps
CLOSE, ROUNDS = 0.02, 6  # a matched smoothness is this near to what was asked for; runs at most


@dataclass
class Moments:
    """Count, sum and sum of squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def variance(self) -> float:
        """About the mean."""
        return (
            max(0.0, self.squares / self.count - (self.total / self.count) ** 2)
            if self.count
            else 0.0
        )


def estimate_fwhm(reader: VolumeReader, mask: Mask | None = None) -> Floats:
    """A volume's smoothness along D, H, W in voxels; NaN along an axis of one voxel, 0 for white noise.

    reader : random access; only voxels where the mask is above 0 and whose values are all finite count
    Raises: ShapeError if nothing varies.
    """
    count, depth, height, width, channels = reader.header.shape
    values, steps = Moments(), (Moments(), Moments(), Moments())
    planes = max(1, BLOCK_BYTES // (8 * HELD_PLANES * height * width))
    for channel in range(channels):
        for start in range(0, depth, planes):
            stop = min(start + planes, depth)
            sums = _sums_over_time(reader, slice(start, min(stop + 1, depth)), channel, count)
            if mask is not None:
                sums.known &= mask.inside(
                    mask.reader.read(0, slice(start, min(stop + 1, depth)), slice(0, 1))[..., 0]
                )
            sums.add_to(values, steps, stop - start)
            reader.release(0, start)
    if values.variance <= 0:
        raise ShapeError(
            f"the smoothness of {reader.path} cannot be told: its voxels are all the same, or none counts"
        )
    d, h, w = (_fwhm(values.variance, step) for step in steps)
    return d, h, w


@dataclass
class _Sums:
    """Of some planes (d, h, w), over time: of values and squares, and of squared steps along each axis.

    Values are counted from those at the first time, so that a large mean takes nothing from their digits; of one volume they
    are the values themselves.
    """

    count: int
    known: NDArray[np.bool_]
    values: NDArray[np.float64]
    squares: NDArray[np.float64]
    steps: list[NDArray[np.float64]]

    def add_to(self, values: Moments, steps: Sequence[Moments], own: int) -> None:
        """Put them to a volume's: of the first `own` planes, and of the steps from them to the next."""
        for moments, axis in ((values, None), *zip(steps, range(3), strict=True)):
            # a plane more, to which the last one steps
            planes = slice(None) if axis == 0 else slice(0, own)
            total, known = self.values[planes], self.known[planes]
            squares = self.squares[planes] if axis is None else self.steps[axis][planes]
            if axis is not None:
                total = _steps(total, axis)
                known = _shifted(known, axis, 1) & _shifted(known, axis, -1)
            total, squares = total[known], squares[known]
            moments.count += self.count * total.size
            if self.count > 1:  # about the mean over time
                squares = squares - total**2 / self.count
            else:
                moments.total += float(total.sum())
            moments.squares += float(squares.sum())


def _sums_over_time(reader: VolumeReader, depth: slice, channel: int, count: int) -> _Sums:
    """Read planes time after time; voxels that are not finite at one of them do not count."""
    shape = (depth.stop - depth.start, *reader.header.shape[2:4])
    sums = _Sums(count, np.ones(shape, np.bool_), np.zeros(shape), np.zeros(shape), [])
    sums.steps = [np.zeros_like(_shifted(sums.values, axis, 1)) for axis in range(3)]
    first = None
    for n in range(count):
        now = reader.read(n, depth, slice(channel, channel + 1))[..., 0].astype(np.float64)
        finite = np.isfinite(now)
        sums.known &= finite
        now[~finite] = 0
        if count > 1:
            first = now.copy() if first is None else first
            now -= first
        sums.values += now
        sums.squares += now * now
        for axis, squares in enumerate(sums.steps):
            step = _steps(now, axis)
            squares += np.square(step, out=step)
    return sums


def _steps(array: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """From each voxel to the next along an axis."""
    step: NDArray[np.float64] = _shifted(array, axis, 1) - _shifted(array, axis, -1)
    return step


def _shifted(array: NDArray[Any], axis: int, by: int) -> NDArray[Any]:
    """All but the first (1) or the last (-1) along an axis."""
    return array[(slice(None),) * axis + (slice(1, None) if by > 0 else slice(None, -1),)]


def _fwhm(variance: float, step: Moments) -> float:
    if not step.count:
        return math.nan
    correlation = 1 - step.variance / (2 * variance)
    if correlation <= 0:
        return 0.0
    return (
        math.inf
        if correlation >= 1
        else FWHM_PER_SIGMA * math.sqrt(-1 / (4 * math.log(correlation)))
    )


@dataclass(frozen=True)
class Matched:
    """A job that makes a volume as smooth as was asked for.

    before, kernel, after : FWHM along D, H, W in voxels, of the volume, of the Gaussian, of the result
    spacing, unit : of a voxel, where it is known
    """

    job: Job
    before: Floats
    kernel: Floats
    after: Floats
    spacing: Floats | None
    unit: str | None

    def words(self) -> str:
        """What was found, for people."""

        def text(lengths: Floats) -> str:
            scaled = [
                length * s
                for length, s in zip(lengths, self.spacing or (1.0, 1.0, 1.0), strict=True)
            ]
            return ",".join(f"{length:.3g}" for length in scaled)

        return (
            f"FWHM (depth,height,width) {text(self.before)} -> {text(self.after)} {self.unit or 'vox'} by a Gaussian of "
            f"{text(self.kernel)}"
        )


def match_fwhm(job: Job, target: str) -> Matched:
    """The job with the Gaussian under which its output is as smooth as `target`, a length with its unit, or three.

    The first Gaussian is what white noise would need, sqrt(target² - present²); it is corrected by what the result is found to
    be, a run into $TMPDIR each, until it is within 2 %.
    Raises: ShapeError along an axis that is smoother already; SpecError for strides.
    """
    stage = job.stages[0]
    if len(job.stages) > 1 or stage.spec(is_layer=False).strides not in (1, (1, 1, 1), [1, 1, 1]):
        raise SpecError(
            "--to-fwhm smooths on the volume's own grid: leave out layers and --strides"
        )
    with ExitStack() as stack:
        trial = os.path.join(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="conv3d-")), "trial.npy"
        )
        volume = open_volume(job.source, axes=job.axes, channels_first=job.channels_first)
        reader, mask = stack.enter_context(random_access(volume)), None
        if job.missing.mask is not None:
            with naming(reader):
                mask = stack.enter_context(
                    open_mask(job.missing.mask, reader.header, job.missing.labels)
                )
        wanted = read_lengths(target, "to-fwhm", reader.header.grid)
        axes = reader.header.axes
        letters = output_format(trial).output_letters(
            axes.letters, axes.canonical_shape[4], np.dtype(np.float32)
        )
        before = estimate_fwhm(reader, mask)
        for axis, present, wish in zip(AXIS_NAMES, before, wanted, strict=True):
            if present > wish * (1 + CLOSE):
                raise ShapeError(
                    f"{job.source} is smoother than {target} along {axis} already: {present:.3g} voxels of FWHM against "
                    f"{wish:.3g}; ask for more"
                )
        squares = [
            max(0.0, w * w - b * b) if math.isfinite(b) else 0.0
            for w, b in zip(wanted, before, strict=True)
        ]
        for _ in range(ROUNDS):
            kernel = (math.sqrt(squares[0]), math.sqrt(squares[1]), math.sqrt(squares[2]))
            text = f"gaussian:fwhm={','.join(f'{k:.6g}' for k in kernel)}vox"
            matched = replace(job, stages=(replace(stage, kernel=text),))
            run_job(
                replace(matched.as_trial(trial), missing=replace(job.missing, mask_mode="clip"))
            )
            with open_volume(trial, axes=letters) as found:
                after = estimate_fwhm(found, mask)
            away = [a / w - 1 for a, w in zip(after, wanted, strict=True) if math.isfinite(a)]
            if max(map(abs, away), default=0.0) <= CLOSE:
                break
            squares = [
                s * _correction(w, b, a) if math.isfinite(a) else 0.0
                for s, w, b, a in zip(squares, wanted, before, after, strict=True)
            ]
        grid = reader.header.grid
    return Matched(
        matched, before, kernel, after, grid.spacing, grid.unit if grid.spacing else None
    )


def _correction(wanted: float, before: float, after: float) -> float:
    """What the square of a kernel's width is to be multiplied by: what was to be gained over what was."""
    gained, due = after * after - before * before, wanted * wanted - before * before
    return min(4.0, max(0.25, due / gained)) if gained > 0 and due > 0 else 1.0

"""The direct sum without the kernel's zeros: balls, Laplacians, differences of distant voxels.

It runs the spatial micro-kernel as `direct` does, on the items (runs of kernel rows) that hold a weight, or on single taps
where those are fewer. Zero times infinity is NaN: steps whose window holds NaN or infinity are done over by `direct`, so that
they give what the whole kernel gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms import direct
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm
from conv3d_cli.model.spec import ConvProblem

LEAST_ZEROS = 0.3  # of the items: below, what is left out is not worth looking for NaN
SINGLE = (1, 1, 1)  # items of one tap: see `direct.item_shape`


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why leaving zeros out does not pay, or None."""
    if not np.isfinite(weights).all():
        return "weights are not finite"
    share = min(_kept_share(problem, weights, taps) for taps in (direct.item_shape(problem)[0], 1))
    if share > 1 - LEAST_ZEROS:
        return f"{share:.0%} of the kernel's runs of taps hold a weight: too many to leave the others out"
    return None


def _kept_share(problem: ConvProblem, weights: NDArray[Any], taps: int) -> float:
    """The part of all items of so many taps, or one less, that hold a weight in any filter."""
    lines = np.any(weights != 0, axis=4).transpose(0, 2, 3, 1)  # kernel rows last
    kh = lines.shape[-1]
    parts = -(-kh // taps)
    split = (kh - parts * (taps - 1)) * taps
    held = [lines[..., :split].reshape(*lines.shape[:3], -1, taps).any(axis=-1).sum()]
    if split < kh:
        held.append(lines[..., split:].reshape(*lines.shape[:3], -1, taps - 1).any(axis=-1).sum())
    return float(sum(held) / (lines[..., 0].size * parts))


def _shape(problem: ConvProblem, weights: NDArray[Any]) -> tuple[tuple[int, int, int], float]:
    """The shape of items that is the faster, and a thread's predicted seconds."""
    shapes = {direct.item_shape(problem), SINGLE}
    timed = [
        (
            direct.predicted(
                problem, shape[0], problem.flops * _kept_share(problem, weights, shape[0])
            ),
            shape,
        )
        for shape in shapes
    ]
    seconds, shape = min(timed)
    return shape, seconds


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted time: what `direct` would take for the items that are left."""
    return _shape(problem, weights)[1] / threads


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """Items that hold a weight."""
    shape, _ = _shape(problem, weights)
    prepared = direct.prepare_items(problem, weights, dtype, shape, sparse=True)
    prepared.spreads_nonfinite = True
    return prepared


ALGORITHM = Algorithm(
    name="sparse",
    summary="the direct sum without the kernel's zeros",
    reject=reject,
    prepare=prepare,
    seconds=seconds,
)

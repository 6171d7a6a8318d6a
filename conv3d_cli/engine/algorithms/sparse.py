"""The direct sum without the kernel's zeros: balls, Laplacians, differences of distant voxels.

It runs the spatial micro-kernel as `direct` does, but only on the items (runs of kernel rows) with
a nonzero weight, or on single nonzero taps if that is faster. The whole kernel's zeros times NaN or
infinity are NaN, so `direct` recomputes steps whose windows contain NaN or infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms import direct
from conv3d_cli.engine.tile import Algorithm, PreparedAlgorithm
from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.system.words import percent

# Fraction of the items. With fewer zeros, the search for NaN costs more than they save.
LEAST_ZEROS = 0.3
SINGLE = (1, 1, 1)  # the shape of items of one tap: see `direct.item_shape`


def reject(problem: ConvProblem, weights: NDArray[Any]) -> str | None:
    """Why skipping zeros does not pay, or None."""
    if not np.isfinite(weights).all():
        return "weights are not finite"
    item_taps = (direct.item_shape(problem)[0], 1)
    nonzero = min(_nonzero_fraction(problem, weights, taps) for taps in item_taps)
    if nonzero > 1 - LEAST_ZEROS:
        return (
            f"{percent(nonzero)} of the kernel's runs of weights are not 0: too many to skip "
            "the others"
        )
    return None


def _nonzero_fraction(problem: ConvProblem, weights: NDArray[Any], taps: int) -> float:
    """The fraction of items, of `taps` taps or one less, with a nonzero weight in any filter."""
    lines = np.any(weights != 0, axis=4).transpose(0, 2, 3, 1)  # kernel rows last
    kh = lines.shape[-1]
    parts = -(-kh // taps)
    split = (kh - parts * (taps - 1)) * taps
    nonzero = lines[..., :split].reshape(*lines.shape[:3], -1, taps).any(axis=-1).sum()
    if split < kh:
        short = lines[..., split:].reshape(*lines.shape[:3], -1, taps - 1)
        nonzero += short.any(axis=-1).sum()
    return float(nonzero / (lines[..., 0].size * parts))


def _fastest_shape(
    problem: ConvProblem, weights: NDArray[Any]
) -> tuple[tuple[int, int, int], float]:
    """The faster shape of items (see `direct.item_shape`), and one thread's predicted seconds."""

    def predicted(shape: tuple[int, int, int]) -> float:
        flops = problem.flops * _nonzero_fraction(problem, weights, shape[0])
        return direct.predicted(problem, shape[0], flops)

    seconds, shape = min(
        (predicted(shape), shape) for shape in (SINGLE, direct.item_shape(problem))
    )
    return shape, seconds


def seconds(problem: ConvProblem, weights: NDArray[Any], threads: int) -> float:
    """Predicted compute time in seconds: that of `direct` for the nonzero items."""
    return _fastest_shape(problem, weights)[1] / threads


def prepare(problem: ConvProblem, weights: NDArray[Any], dtype: np.dtype[Any]) -> PreparedAlgorithm:
    """The nonzero items, their weights, the layout and the loops."""
    shape, _ = _fastest_shape(problem, weights)
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

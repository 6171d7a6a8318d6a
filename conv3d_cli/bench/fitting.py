"""Fit the planner's coefficients to measured times: `engine/fitted.py`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.bench.choices import Timed
from conv3d_cli.engine import ALGORITHMS
from conv3d_cli.engine.costs import features

# How strongly coefficients are drawn to 0, in units of one measurement.
RIDGE = 1.0
# An algorithm's time matters most where it is the fastest: a measurement weighs (least time / its
# time) to this power.
NEARNESS = 1.0
INDENT = 12 * " "  # of the coefficients in the source
ROUNDS = 15  # of reweighting, by which outliers lose their weight (Huber)
FEWEST = 10  # measurements of an algorithm; with fewer, its own prediction stands


def fit(measured: Iterable[Timed]) -> dict[str, tuple[float, ...]]:
    """The coefficients of each algorithm, fitted to times on one class of CPUs.

    Returns name -> row of `costs.features`, in the order of `ALGORITHMS`.
    """
    measured = list(measured)
    rows = {}
    for algorithm in ALGORITHMS:
        name = algorithm.name
        own = [timed for timed in measured if name in timed.measured]
        if len(own) < FEWEST:
            continue
        rows[name] = fit_one(
            np.array([features(timed.drawn.problem, timed.own[name]) for timed in own]),
            np.array([math.log2(timed.measured[name] / timed.own[name]) for timed in own]),
            np.array([1 / timed.slowness(name) ** NEARNESS for timed in own]),
        )
    return rows


def fit_one(
    found: NDArray[np.float64], wanted: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, ...]:
    """Ridge regression with Huber's weights.

    found : (n, features)       the first feature is the constant
    wanted : (n,)               logarithms of measured over predicted times
    weights : (n,)              of the measurements

    >>> x = np.stack([np.ones(50), np.arange(50.0), np.zeros(50)], axis=1)
    >>> _, slope, unseen = fit_one(x, 3 + 2 * x[:, 1], np.ones(50))
    >>> round(slope), unseen
    (2, 0.0)
    """
    middle, spread = found.mean(axis=0), found.std(axis=0)
    middle[0], spread[0] = 0, 1
    varies = spread > 1e-9
    scaled = (found - middle) / np.where(varies, spread, 1) * varies
    penalty = np.diag([0.0] + [RIDGE] * (found.shape[1] - 1))
    trust = np.ones(len(wanted))
    for _ in range(ROUNDS):
        weighted = scaled * (weights * trust)[:, None]
        solution = np.linalg.solve(weighted.T @ scaled + penalty, weighted.T @ wanted)
        errors = np.abs(wanted - scaled @ solution)
        trust = 1 / np.maximum(1, errors / max(0.1, 3 * float(np.median(errors))))
    slopes = solution / np.where(varies, spread, 1)
    slopes[0] -= slopes[1:] @ middle[1:]
    return tuple(float(value) for value in slopes)


def as_source(
    fitted: Mapping[str, Mapping[str, Sequence[float]]], origins: Mapping[str, str]
) -> str:
    """The source of `engine/fitted.py`.

    fitted : dict       class of CPUs -> algorithm -> row
    origins : dict      class of CPUs -> where it was measured, and on what

    >>> print(as_source({"avx512": {"direct": [0.5, -1]}}, {"avx512": "some CPU, 2 problems"}))
    \"\"\"The coefficients of `engine/costs.py`. Printed by `conv3d bench --fit`.
    <BLANKLINE>
    avx512: some CPU, 2 problems
    \"\"\"
    <BLANKLINE>
    # class of CPUs -> algorithm -> coefficients of `costs.features`
    # fmt: off
    COEFFICIENTS: dict[str, dict[str, tuple[float, ...]]] = {
        "avx512": {
            "direct": (
                0.5, -1.0,
            ),
        },
    }
    """
    lines = ['"""The coefficients of `engine/costs.py`. Printed by `conv3d bench --fit`.', ""]
    lines += [f"{name}: {origin}" for name, origin in origins.items()]
    lines += ['"""', "", "# class of CPUs -> algorithm -> coefficients of `costs.features`"]
    lines += ["# fmt: off", "COEFFICIENTS: dict[str, dict[str, tuple[float, ...]]] = {"]
    for cpu, rows in fitted.items():
        lines += [f'    "{cpu}": {{']
        for name, row in rows.items():
            values = ", ".join(f"{float(f'{value:.4g}')!r}" for value in row)
            lines.append(f'        "{name}": (')
            lines += textwrap.wrap(
                values + ",", 100, initial_indent=INDENT, subsequent_indent=INDENT
            )
            lines.append("        ),")
        lines.append("    },")
    return "\n".join([*lines, "}"])

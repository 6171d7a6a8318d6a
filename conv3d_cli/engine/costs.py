"""The planner's costs: an algorithm's own prediction, corrected by what was measured.

An algorithm's `seconds` counts flops and bytes. What such a count does not know (caches, vectors
that are not full, the share of packing) depends on a few numbers of the problem, so the logarithm
of measured over predicted time is fitted as a sum of `features`. `conv3d bench --fit` measures
random problems, fits the coefficients and prints `engine/fitted.py`.

Nothing is timed while a job runs, and the choice is the same on every CPU: of the algorithms that
can compute a problem, the one whose worst regret on any of the fitted classes of CPUs is least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from conv3d_cli.engine.cpu import REFERENCE
from conv3d_cli.engine.fitted import COEFFICIENTS
from conv3d_cli.model.spec import ConvProblem

# A correction is at most by this factor: a problem unlike those that were fitted must not be
# predicted wildly.
MOST = 8.0
Coefficients = Mapping[str, Mapping[str, tuple[float, ...]]]


def choose(
    problem: ConvProblem, own: Mapping[str, float], coefficients: Coefficients = COEFFICIENTS
) -> str:
    """The name of the algorithm with the least worst regret, over the fitted classes of CPUs.

    own : dict              name -> seconds that the algorithm itself predicts, for one thread;
                            equal ones are preferred in the order given
    coefficients : dict     class -> name -> row, of `COEFFICIENTS`'s form

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> problem = ConvSpec().resolve((1, 9, 9, 9, 1), (3, 3, 3, 1, 1))
    >>> choose(problem, {"b": 2.0, "a": 1.0})
    'a'
    """
    worst = dict.fromkeys(own, 0.0)
    for cpu in coefficients or {REFERENCE.name: {}}:
        predicted = predict(problem, own, cpu, coefficients)
        least = min(predicted.values()) or 1.0
        worst = {name: max(worst[name], seconds / least) for name, seconds in predicted.items()}
    return min(worst, key=worst.__getitem__)


def predict(
    problem: ConvProblem,
    own: Mapping[str, float],
    cpu: str = REFERENCE.name,
    coefficients: Coefficients = COEFFICIENTS,
) -> dict[str, float]:
    """The seconds that each algorithm takes on a class of CPUs, from those that it predicts.

    own, coefficients       as in `choose`
    cpu : str               a class's name; one that is not fitted is predicted as the algorithms do
    """
    rows = coefficients.get(cpu, {})
    return {name: _corrected(problem, seconds, rows.get(name)) for name, seconds in own.items()}


def _corrected(problem: ConvProblem, seconds: float, row: tuple[float, ...] | None) -> float:
    if row is None or not 0 < seconds < math.inf:
        return seconds
    # `sum` adds floats in another way since Python 3.12
    total = math.fsum(a * b for a, b in zip(row, features(problem, seconds), strict=True))
    return seconds * 2 ** max(-math.log2(MOST), min(math.log2(MOST), total))


def features(problem: ConvProblem, seconds: float) -> tuple[float, ...]:
    """What a correction depends on; see `NAMES`. Logarithms are to base 2.

    seconds : float     the algorithm's own prediction for one thread
    """
    predicted = math.log2(seconds) + 10  # of milliseconds, nearly
    return (1.0, predicted, max(0.0, -predicted), *_of_problem(problem))


@lru_cache(maxsize=64)
def _of_problem(problem: ConvProblem) -> tuple[float, ...]:
    channels, filters = problem.channels_per_group, problem.filters_per_group
    c, f, g = (math.log2(n) for n in (channels, filters, problem.groups))
    kernel = [math.log2(n) for n in problem.kernel_size]
    size = [math.log2(max(1, n)) for n in problem.out_size]
    taps = math.fsum(kernel)
    read = math.log2(max(1, math.prod(problem.in_shape))) - 18  # of the megabytes of the input
    weights = math.log2(problem.taps * problem.filters) - 14
    return (
        *(c, f, g, *kernel, *size),
        math.fsum(math.log2(n) for n in problem.strides),
        float(problem.strides[2] > 1),
        math.fsum(math.log2(n) for n in problem.dilation_rate),
        float(problem.dilation_rate[2] > 1),
        *(_unused(n) for n in (channels, filters, problem.out_size[2])),
        *(max(0.0, n - 4) for n in (c, f, taps)),
        max(0.0, size[2] - 5),
        *(max(0.0, n) for n in (read, weights)),
        *(c * taps / 8, f * taps / 8, c * f / 8),
        *_of_groups(problem, taps, math.fsum(size)),
    )


def _of_groups(problem: ConvProblem, taps: float, voxels: float) -> tuple[float, ...]:
    """What groups cost that fill no vector: transforms and sums are done for each by itself.

    taps, voxels : float    logarithms of the kernel's and of the output's size
    """
    if problem.groups == 1:
        return 0.0, 0.0, 0.0
    unused = _unused(problem.channels_per_group) + _unused(problem.filters_per_group)
    large = max(0.0, min(voxels, 16) - 12)
    return unused, unused * max(0.0, taps - 4) / 4, unused * large / 4


NAMES = (
    "constant",
    *("predicted", "predicted under 1 ms"),
    *("channels", "filters", "groups"),
    *("kernel depth", "kernel height", "kernel width"),
    *("depth", "height", "width"),
    *("strides", "stride along the width", "dilation", "dilation along the width"),
    *("channels that fill no vector", "filters that fill no vector", "width that fills no vector"),
    *("channels over 16", "filters over 16", "taps over 16", "width over 32"),
    *("input over 1 MB", "weights over 64 kB"),
    *("channels x taps", "filters x taps", "channels x filters"),
    *("groups that fill no vector", "these x taps over 16", "these x voxels over 4096"),
)


def _unused(count: int) -> float:
    """How much longer whole vectors take than `count` elements would, as a logarithm."""
    return math.log2(-(-count // REFERENCE.lanes) * REFERENCE.lanes / max(1, count))

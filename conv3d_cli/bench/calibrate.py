"""Fit the planner's constants: how long each algorithm takes here, against its own prediction.

An algorithm's factor is the median of measured / predicted time over the problems that it accepts.
The spread shows how well its formula fits; no constant can correct that. The factors go into
`FACTORS` in `engine/cpu.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from conv3d_cli.bench.cases import Case
from conv3d_cli.engine import ALGORITHMS, Team, make_plan
from conv3d_cli.engine.tile import Algorithm

PATIENCE = 2.0  # seconds; pairs that would take longer are not measured
ROUNDS = 5  # timed runs of a pair, after one to warm up


@dataclass(frozen=True)
class Pair:
    """An algorithm on a case, with its measured and its predicted time in seconds."""

    algorithm: str
    case: str
    measured: float
    predicted: float

    @property
    def factor(self) -> float:
        """Measured over predicted time.

        >>> Pair("direct", "3^3", measured=3.0, predicted=2.0).factor
        1.5
        """
        return self.measured / self.predicted


def measure_pairs(
    cases: Iterable[Case],
    threads: int,
    algorithms: Iterable[Algorithm] = ALGORITHMS,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Pair]:
    """Time every algorithm on every case that it accepts: the median of up to ROUNDS warm runs.

    A pair with a predicted time above PATIENCE is left out; a measurement stops after PATIENCE.

    threads : int           for planning and running
    progress : callable     is given the case and the algorithm before each measurement
    """
    algorithms = list(algorithms)
    with Team(threads) as team:
        for case in cases:
            volume, weights, problem = case.volume(), case.weights(), case.problem
            out = np.empty((*problem.out_size, problem.filters), np.float32)
            planes = problem.source_indices(0, 0, problem.out_size[0])
            for algorithm in algorithms:
                if algorithm.reject(problem, weights) is not None:
                    continue
                # without the factor, which is to be found
                predicted = algorithm.seconds(problem, weights, threads)
                if predicted > PATIENCE:
                    continue
                progress(f"{case.name}, {algorithm.name}")
                plan = make_plan(problem, weights, threads=threads, algorithm=algorithm.name)
                times = []
                for _ in range(ROUNDS + 1):
                    started = time.perf_counter()
                    plan.convolve_slab(volume, out, planes, team)
                    times.append(time.perf_counter() - started)
                    if sum(times) > PATIENCE and len(times) > 1:
                        break
                yield Pair(algorithm.name, case.name, statistics.median(times[1:]), predicted)


def factors(pairs: Iterable[Pair]) -> dict[str, tuple[float, float, float]]:
    """For each algorithm: the median factor, and the smallest and largest one divided by it.

    >>> factors([Pair("direct", "3^3", 1.0, 1.0), Pair("direct", "5^3", 3.0, 1.0)])
    {'direct': (2.0, 0.5, 1.5)}
    """
    found: dict[str, list[float]] = {}
    for pair in pairs:
        found.setdefault(pair.algorithm, []).append(pair.factor)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {name: (m, min(found[name]) / m, max(found[name]) / m) for name, m in medians.items()}


def as_source(fitted: dict[str, tuple[float, float, float]], cpu_class: str, origin: str) -> str:
    """The factors as source code for `engine/cpu.py`.

    fitted : dict       of `factors`
    origin : str        where they were measured, for the comment

    >>> print(as_source({"direct": (1.25, 0.9, 1.1)}, "avx512", "some CPU, 2 threads"))
    # avx512: some CPU, 2 threads
    FACTORS: Mapping[str, float] = {"direct": 1.25}
    """
    row = ", ".join(f'"{name}": {factor:.3g}' for name, (factor, _, _) in fitted.items())
    return f"# {cpu_class}: {origin}\nFACTORS: Mapping[str, float] = {{{row}}}"

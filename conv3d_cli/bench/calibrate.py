"""The planner's constants fitted: what each algorithm takes on this machine against what its `seconds` predicts.

An algorithm's factor is the median of measured / predicted over the problems it accepts; the spread tells how well its formula
fits, which no constant can mend. The factors go into the CPU's row in `engine/cpu.py`.
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

PATIENCE = 2.0  # seconds: slower pairs are not measured
ROUNDS = 5


@dataclass(frozen=True)
class Pair:
    """An algorithm on a case: measured and predicted seconds."""

    algorithm: str
    case: str
    measured: float
    predicted: float

    @property
    def factor(self) -> float:
        return self.measured / self.predicted


def measure_pairs(
    cases: Iterable[Case],
    threads: int,
    algorithms: Iterable[Algorithm] = ALGORITHMS,
    said: Callable[[str], None] = lambda text: None,
) -> Iterator[Pair]:
    """Every algorithm on every case it accepts and is not hopeless at: the median of some warm runs."""
    algorithms = list(algorithms)
    with Team(threads) as team:
        for case in cases:
            volume, weights, problem = case.volume(), case.weights(), case.problem
            out = np.empty((*problem.out_size, problem.filters), np.float32)
            planes = problem.source_indices(0, 0, problem.out_size[0])
            for algorithm in algorithms:
                if algorithm.reject(problem, weights) is not None:
                    continue
                # without the factor that is looked for
                predicted = algorithm.seconds(problem, weights, threads)
                if predicted > PATIENCE:
                    continue
                said(f"{case.name}, {algorithm.name}")
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
    """For each algorithm: the median factor, and the least and greatest one relative to it.

    >>> factors([Pair("direct", "a", 2.0, 1.0), Pair("direct", "b", 4.0, 1.0), Pair("direct", "c", 3.0, 1.0)])
    {'direct': (3.0, 0.6666666666666666, 1.3333333333333333)}
    """
    found: dict[str, list[float]] = {}
    for pair in pairs:
        found.setdefault(pair.algorithm, []).append(pair.factor)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {name: (m, min(found[name]) / m, max(found[name]) / m) for name, m in medians.items()}


def as_source(fitted: dict[str, tuple[float, float, float]], cpu_class: str, origin: str) -> str:
    """The factors to paste into a class's row: what each algorithm's predicted time is to be multiplied by.

    >>> print(as_source({"direct": (1.25, 0.9, 1.1)}, "avx512", "some CPU, 2 threads"))
    # avx512: some CPU, 2 threads
    factors={"direct": 1.25},
    """
    row = ", ".join(f'"{name}": {factor:.3g}' for name, (factor, _, _) in fitted.items())
    return f"# {cpu_class}: {origin}\nfactors={{{row}}},"

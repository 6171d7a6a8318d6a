"""Is the planner's choice right? Time every algorithm on random problems; compare with the choice.

The regret of a choice is its time divided by that of the fastest algorithm. Times are CPU seconds
of one thread, with the packing of the weights, since that is what a run pays; a loaded machine
disturbs them least.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.bench.problems import Drawn, draw_problems
from conv3d_cli.bench.report import cpu_model
from conv3d_cli.engine import ALGORITHMS, costs, make_plan
from conv3d_cli.engine.cpu import CPU_CLASSES, cpu_class
from conv3d_cli.engine.team import SerialWorker
from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.system.words import count_of

ROUNDS = 4  # timed runs of each algorithm, in turn, after one to warm up
PATIENCE = 1.0  # CPU seconds for the timed runs of a problem; at least two rounds are run
# An algorithm that was predicted this many times slower than the fastest, or that took this many
# times longer in the first rounds, is left out or not timed again: it could not be chosen.
HOPELESS = 8.0
CLOSE = 1.5  # a prediction within this factor is close
SHORTEST = 1e-3  # CPU seconds; shorter runs are repeated


@dataclass(frozen=True)
class Timed:
    """A problem, and how long each algorithm took.

    measured : dict     algorithm -> CPU seconds of one thread; hopeless algorithms are missing
    own : dict          algorithm -> seconds that it predicts itself, for one thread
    """

    drawn: Drawn
    measured: dict[str, float]
    own: dict[str, float]

    @cached_property
    def chosen(self) -> str:
        """The planner's choice."""
        return costs.choose(self.drawn.problem, self.own)

    @property
    def fastest(self) -> str:
        """The algorithm that took the least time."""
        return min(self.measured, key=self.measured.__getitem__)

    @property
    def regret(self) -> float:
        """Time of the choice over that of the fastest algorithm; infinite if it was not timed."""
        return self.slowness(self.chosen)

    def slowness(self, algorithm: str) -> float:
        """Time of an algorithm over that of the fastest one."""
        return self.measured.get(algorithm, math.inf) / self.measured[self.fastest]

    def predicted(self, cpu: str) -> float:
        """The seconds that the planner predicts for its choice, on a class of CPUs."""
        return costs.predict(self.drawn.problem, self.own, cpu)[self.chosen]


@dataclass
class Choices:
    """Timed problems, and where they were timed.

    cpu_class : str     the class of CPUs that the loops were compiled for
    seeds : list of int     of the random problems
    """

    date: str
    cpu: str
    cpu_class: str
    versions: dict[str, str]
    seeds: list[int]
    timed: list[Timed]

    @property
    def heading(self) -> str:
        """Where and what was timed, in one line."""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        return (
            f"{self.cpu} ({self.cpu_class}), {count_of(len(self.timed), 'problem')} of {seeds}, "
            f"{self.date[:10]}"
        )

    def regrets(self) -> list[float]:
        """The regrets, in ascending order."""
        return sorted(timed.regret for timed in self.timed)

    def ratios(self) -> list[float]:
        """Predicted over measured times of the choices."""
        return [
            timed.predicted(self.cpu_class) / timed.measured[timed.chosen]
            for timed in self.timed
            if timed.chosen in timed.measured
        ]

    def summary(self) -> dict[str, float]:
        """Quantiles of the regret, and the share of times that are predicted well.

        `predicted_within` is the share of choices predicted within `CLOSE` times the measured time.
        """
        regrets, ratios = self.regrets(), np.array(self.ratios())
        close = (ratios < CLOSE) & (ratios > 1 / CLOSE)
        return {
            "median": quantile(regrets, 0.5),
            "p95": quantile(regrets, 0.95),
            "p99": quantile(regrets, 0.99),
            "worst": regrets[-1],
            "predicted_within": float(close.sum()) / len(self.timed),
        }

    def record(self) -> dict[str, Any]:
        """As a JSON object; `choices_of_record` reads it."""
        rows = [
            {
                "problem": asdict(timed.drawn),
                "text": str(timed.drawn),
                "measured": timed.measured,
                "chosen": timed.chosen,
                "predicted": timed.predicted(self.cpu_class),
                "fastest": timed.fastest,
                "regret": timed.regret if math.isfinite(timed.regret) else None,
            }
            for timed in self.timed
        ]
        return {
            "date": self.date,
            "cpu": self.cpu,
            "cpu_class": self.cpu_class,
            "versions": self.versions,
            "seeds": self.seeds,
            "summary": self.summary(),
            "timed": rows,
        }


def table(choices: Choices, rows: int = 12) -> list[str]:
    """The summary of the choices and the worst ones, as lines of at most 100 columns."""
    found = choices.summary()
    lines = [
        choices.heading,
        "",
        "regret: CPU time of the chosen algorithm over that of the fastest one",
        f"  median {found['median']:.2f}, 95 % within {found['p95']:.2f}, 99 % within "
        f"{found['p99']:.2f}, worst {found['worst']:.2f}",
        f"predicted within {CLOSE} x of the measured time: {100 * found['predicted_within']:.0f} %",
    ]
    worst = sorted(choices.timed, key=lambda timed: -timed.regret)[:rows]
    worst = [timed for timed in worst if timed.regret > 1]
    if worst:
        lines += ["", f"{'regret':>6} {'ms':>9} {'chosen':<12} {'ms':>9} {'fastest':<12} problem"]
    for timed in worst:
        own, best = timed.measured.get(timed.chosen, math.inf), timed.measured[timed.fastest]
        lines.append(
            f"{timed.regret:>6.2f} {1e3 * own:>9.3f} {timed.chosen:<12} {1e3 * best:>9.3f} "
            f"{timed.fastest:<12} {timed.drawn}"
        )
    return lines


def merged(several: Iterable[Choices]) -> Choices:
    """All problems of several measurements; date and machine of the last one.

    Raises: SpecError if they were measured for several classes of CPUs.
    """
    several = list(several)
    classes = sorted({choices.cpu_class for choices in several})
    if len(classes) > 1:
        raise SpecError(f"these are times of {' and '.join(classes)}; show one class at a time")
    return replace(
        several[-1],
        seeds=list(dict.fromkeys(seed for choices in several for seed in choices.seeds)),
        timed=[timed for choices in several for timed in choices.timed],
    )


def quantile(ascending: Sequence[float], share: float) -> float:
    """The least value that at least this share of the values does not exceed.

    >>> quantile([1.0, 1.5, 2.0, 4.0], 0.5), quantile([1.0, 1.5, 2.0, 4.0], 0.95)
    (1.5, 4.0)
    """
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def choices_of_record(record: dict[str, Any], path: str) -> Choices:
    """The measured times of a JSON object that `Choices.record` made; the choices are made anew.

    path : str      the file that it was read from, for the message

    Raises: FormatError if it is no such object.
    """
    try:
        timed = [
            timed_of(_problem_of_record(row["problem"]), row["measured"]) for row in record["timed"]
        ]
        kept = {name: record[name] for name in ("date", "cpu", "cpu_class", "versions", "seeds")}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(
            f"{path} is no record of `conv3d bench --regret --json`: {error!r}"
        ) from None
    return Choices(**kept, timed=timed)


def _problem_of_record(record: dict[str, Any]) -> Drawn:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    return Drawn(**fields)


def timed_of(drawn: Drawn, measured: dict[str, float]) -> Timed:
    """A problem with its measured times, and what the algorithms predict."""
    return Timed(drawn, measured, own_predictions(drawn.problem, drawn.array_of_weights()))


def measure_choices(
    seed: int, count: int, progress: Callable[[str], None] = lambda text: None
) -> Choices:
    """Time every algorithm on random problems.

    seed, count : int       of `draw_problems`
    progress : callable     is given the problem's number and description before it is timed
    """
    timed = []
    for number, problem in enumerate(draw_problems(count, seed), 1):
        progress(f"{number} of {count}: {problem}")
        timed.append(time_problem(problem))
    names = ("conv3d", "numba", "numpy")
    return Choices(
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        cpu=cpu_model(),
        cpu_class=cpu_class().name,
        versions={name: importlib.metadata.version(name) for name in names},
        seeds=[seed],
        timed=timed,
    )


def measure_classes(
    seed: int, count: int, progress: Callable[[str], None] = lambda text: None
) -> list[Choices]:
    """Time random problems for each class of CPUs that this machine runs at its own speed.

    These are the classes with an instruction for a * b + c whose features the CPU has. Each runs in
    a process of its own, one after the other. If $CONV3D_CPU names a class, only that one.
    """
    forced = os.environ.get("CONV3D_CPU")
    names = [forced] if forced else [row.name for row in CPU_CLASSES if row.runs_natively()]
    found = []
    for name in names:
        progress(f"{count} problems for {name}")
        command = [sys.executable, "-m", "conv3d_cli", "bench", "--regret", "--json", "-"]
        command += ["--seed", str(seed), "--problems", str(count)]
        output = subprocess.run(
            command, env=os.environ | {"CONV3D_CPU": name}, stdout=subprocess.PIPE, check=False
        )
        if output.returncode:
            raise SpecError(f"the problems could not be timed for {name}; see the lines above")
        found.append(choices_of_record(json.loads(output.stdout), name))
    return found


def time_problem(drawn: Drawn) -> Timed:
    """Time the algorithms that accept a problem, in turn: the least of up to `ROUNDS` warm runs."""
    problem = drawn.problem
    volume, weights = drawn.volume(), drawn.array_of_weights()
    own = own_predictions(problem, weights)
    chosen = costs.choose(problem, own)
    hopeless = HOPELESS * min(own.values())
    runs = {
        name: _Run(problem, volume, weights, name)
        for name, seconds in own.items()
        if seconds <= hopeless or seconds < SHORTEST or name == chosen
    }
    spent = 0.0
    for number in range(ROUNDS):
        slowest = HOPELESS / 2 * min(run.seconds for run in runs.values()) if number else np.inf
        spent += sum(run.time() for run in runs.values() if run.seconds <= slowest)
        if number and spent > PATIENCE:
            break
    measured = {name: run.seconds for name, run in runs.items()}
    return Timed(drawn, measured, own)


def own_predictions(problem: ConvProblem, weights: NDArray[Any]) -> dict[str, float]:
    """The seconds that each algorithm that accepts the problem predicts itself, for one thread."""
    return {
        algorithm.name: algorithm.own_seconds(problem, weights)
        for algorithm in ALGORITHMS
        if algorithm.declines(problem, weights) is None
    }


class _Run:
    """Runs of one algorithm on one problem; `seconds` is the least time so far."""

    def __init__(
        self, problem: ConvProblem, volume: NDArray[Any], weights: NDArray[Any], algorithm: str
    ) -> None:
        self.plan = make_plan(problem, weights, algorithm=algorithm)
        self.volume = volume
        self.out = np.empty((*problem.out_size, problem.filters), np.float32)
        self.planes = problem.source_indices(0, 0, problem.out_size[0])
        self.team = SerialWorker(0)
        self._packing = self._running = np.inf
        self._convolve()  # loads or compiles the loops, touches the memory
        self._repeats = max(1, round(SHORTEST / max(1e-9, cpu_seconds(self._convolve))))

    @property
    def seconds(self) -> float:
        """To pack the weights and to convolve."""
        return self._packing + self._running

    def time(self) -> float:
        """Run anew. Returns the CPU seconds that it took."""
        packing = cpu_seconds(self._pack)
        running = cpu_seconds(self._convolve, self._repeats)
        self._packing = min(self._packing, packing)
        self._running = min(self._running, running / self._repeats)
        return packing + running

    def _pack(self) -> None:
        plan = self.plan
        plan.algorithm.prepare(plan.problem, plan.weights, plan.dtype).weights  # noqa: B018

    def _convolve(self) -> None:
        self.plan.convolve_slab(self.volume, self.out, self.planes, self.team)


def cpu_seconds(work: Callable[[], None], repeats: int = 1) -> float:
    """CPU seconds of this thread that `work` takes, run so many times."""
    started = time.thread_time()
    for _ in range(repeats):
        work()
    return time.thread_time() - started

"""The planner's choice: a pure function of problem and weights, from fitted coefficients."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest

from conv3d_cli.engine import ALGORITHMS, costs, make_plan
from conv3d_cli.engine.algorithms import fft
from conv3d_cli.engine.costs import NAMES, choose, features, predict
from conv3d_cli.engine.cpu import CPU_CLASSES
from conv3d_cli.engine.fitted import COEFFICIENTS
from conv3d_cli.model.spec import ConvProblem, ConvSpec


def problem_of(channels: int = 1, filters: int = 1, kernel: int = 3, size: int = 20) -> ConvProblem:
    return ConvSpec(padding="same").resolve(
        (1, size, size, size, channels), (kernel, kernel, kernel, channels, filters)
    )


def test_coefficients_name_classes_algorithms_and_features() -> None:
    assert set(COEFFICIENTS) <= {row.name for row in CPU_CLASSES}
    for rows in COEFFICIENTS.values():
        assert set(rows) <= {algorithm.name for algorithm in ALGORITHMS}
        assert {len(row) for row in rows.values()} == {len(NAMES)}
    assert len(features(problem_of(), 1.0)) == len(NAMES)


def test_the_worst_regret_of_all_classes_decides() -> None:
    """Fast on one class and slow on another loses against nearly fast on both."""
    constant = [1.0, *[0.0] * (len(NAMES) - 1)]

    def times(**logarithms: float) -> dict[str, tuple[float, ...]]:
        return {name: tuple(one * value for one in constant) for name, value in logarithms.items()}

    coefficients = {"avx512": times(a=0, b=0.5), "avx2": times(a=2, b=0)}
    own = {"a": 1.0, "b": 1.0}
    assert choose(problem_of(), own, coefficients) == "b"
    assert choose(problem_of(), own, {"avx512": coefficients["avx512"]}) == "a"
    assert predict(problem_of(), own, "avx2", coefficients) == {"a": 4.0, "b": 1.0}
    assert predict(problem_of(), own, "neon", coefficients) == own


def test_a_correction_is_bounded() -> None:
    row = (1000.0, *[0.0] * (len(NAMES) - 1))
    assert predict(problem_of(), {"a": 1.0}, "avx2", {"avx2": {"a": row}}) == {"a": costs.MOST}
    for seconds in (0.0, math.inf):
        assert predict(problem_of(), {"a": seconds}, "avx2", {"avx2": {"a": row}}) == {"a": seconds}


# groups, channels, kernel, side, the fastest of all algorithms by CPU time on both fitted classes
GROUPED = [
    (4, 32, 3, 64, "channels"),
    (3, 24, 3, 64, "channels"),
    (16, 128, 3, 32, "channels"),
    (32, 128, 3, 48, "depthwise"),
    (8, 64, 7, 24, "fft-channels"),
    (4, 128, 3, 16, "winograd"),
]


@pytest.mark.parametrize(("groups", "channels", "kernel", "side", "fastest"), GROUPED)
def test_groups_that_fill_no_vector(
    groups: int, channels: int, kernel: int, side: int, fastest: str
) -> None:
    """Transforms of 8 channels each take twice as long as those of whole vectors."""
    shape = (kernel, kernel, kernel, channels // groups, channels)
    problem = ConvSpec(padding="same", groups=groups).resolve(
        (1, side, side, side, channels), shape
    )
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert make_plan(problem, weights).algorithm.name == fastest


def test_what_is_known_of_groups_changes_no_other_choice() -> None:
    alone = features(problem_of(8, 8), 1.0)
    assert alone[-3:] == (0, 0, 0)
    problem = ConvSpec(groups=2).resolve((1, 40, 40, 40, 16), (3, 3, 3, 8, 16))
    assert all(value > 0 for value in features(problem, 1.0)[-3::2])


@pytest.mark.parametrize("cpu", [row.name for row in CPU_CLASSES])
def test_predictions_are_finite_and_grow_with_the_volume(cpu: str) -> None:
    """No problem, however unlike the fitted ones, is predicted as 0 or infinite."""
    for channels, filters, kernel in itertools.product((1, 3, 16, 500), (1, 3, 16, 500), (1, 3, 9)):
        found = []
        for size in (1, 10, 100, 1000):
            problem = problem_of(channels, filters, kernel, size)
            own = {
                algorithm.name: algorithm.own_seconds(problem, WEIGHTS)
                for algorithm in ALGORITHMS
                if algorithm.name in ("direct", "channels", "few-filters")
            }
            found.append(predict(problem, own, cpu)["direct"])
        assert all(0 < seconds < math.inf for seconds in found)
        assert found == sorted(found)


WEIGHTS = np.ones((1, 1, 1, 1, 1), np.float32)


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_threads_divide_the_predictions_and_leave_the_choice(threads: int) -> None:
    problem, weights = problem_of(8, 8), np.ones((3, 3, 3, 8, 8), np.float32)
    one, many = make_plan(problem, weights), make_plan(problem, weights, threads=threads)
    assert many.algorithm is one.algorithm
    assert many.seconds == {name: seconds / threads for name, seconds in one.seconds.items()}


def integers_alone(values: Iterable[int]) -> int:
    """As `sum`, which adds floats in another way since Python 3.12."""
    values = list(values)
    assert all(isinstance(value, int) for value in values)
    return sum(values)


def test_predictions_are_the_same_bits_in_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [importlib.import_module(algorithm.seconds.__module__) for algorithm in ALGORITHMS]
    for module in (costs, *modules):
        monkeypatch.setattr(module, "sum", integers_alone, raising=False)
    fft.choose_tile.cache_clear()
    for channels, kernel in itertools.product((1, 8, 32), (3, 5)):
        problem = problem_of(channels, channels, kernel, 23)
        weights = np.ones((kernel, kernel, kernel, channels, channels), np.float32)
        own = {
            algorithm.name: algorithm.own_seconds(problem, weights)
            for algorithm in ALGORITHMS
            if algorithm.declines(problem, weights) is None
        }
        assert choose(problem, own) in own

"""Ahead-of-time compilation of the loops that common jobs need, for `conv3d warmup`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import MachineCode, compiled_here, load
from conv3d_cli.engine.plan import ALGORITHMS, make_plan
from conv3d_cli.model.spec import ConvProblem, ConvSpec

SOURCES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
OUTPUTS = ("uint8", "int16", "uint16", "float32", "float64")
SIZE = 128  # voxels along each axis: tiles do not get larger in larger volumes
# Algorithms predicted to take more than this many times the fastest one's time run only if forced.
USUAL_LOSS = 3

Problem = tuple[ConvProblem, NDArray[np.float64]]


def usual_problems() -> Iterator[Problem]:
    """Common problems and weights: dense and separable kernels of one channel, and layers."""
    numbers = np.random.default_rng(0)

    def problem(channels: int, weights: NDArray[np.float64], **spec: Any) -> Problem:
        shape = (1, SIZE, SIZE, SIZE, channels)
        return ConvSpec(padding="same", **spec).resolve(shape, weights.shape), weights

    for size in (3, 5, 7, 9, 11, 15):
        line = np.exp(-0.5 * (np.arange(size) - size // 2) ** 2)
        yield problem(1, numbers.standard_normal((size, size, size, 1, 1)))
        yield problem(1, np.einsum("i,j,k->ijk", line, line, line)[..., None, None])
    for channels, filters in ((1, 8), (1, 32), (8, 8), (16, 16), (32, 32), (64, 64), (32, 1)):
        yield problem(channels, numbers.standard_normal((3, 3, 3, channels, filters)))
    yield problem(32, numbers.standard_normal((3, 3, 3, 32, 32)), strides=2)
    yield problem(64, numbers.standard_normal((1, 1, 1, 64, 64)))
    yield problem(32, numbers.standard_normal((3, 3, 3, 1, 32)), groups=32)


def pairs(precision: str) -> list[tuple[str, str]]:
    """(source, output) dtypes that together use every usual packing and store in this precision.

    >>> pairs("float32")[0]
    ('uint8', 'float32')
    """
    return [(source, precision) for source in SOURCES] + [(precision, out) for out in OUTPUTS]


def warm_up(problems: Iterable[Problem] | None = None) -> tuple[int, int]:
    """Load the loops of some problems for the usual dtypes; compile those that are not on disk.

    problems : iterable of (problem, weights)   None: `usual_problems()`
    Returns (number of loops compiled now, number of loops ready).
    """
    before = len(compiled_here())
    ready: dict[MachineCode, None] = {}  # in order
    for problem, weights in usual_problems() if problems is None else problems:
        for precision in ("float32", "float64"):
            seconds = make_plan(problem, weights, dtype=precision).seconds
            longest = USUAL_LOSS * min(seconds.values())
            usual = [a.name for a in ALGORITHMS if seconds.get(a.name, np.inf) <= longest]
            for name in usual:
                plan = make_plan(problem, weights, dtype=precision, algorithm=name)
                for run in (plan, plan.fallback) if plan.prepared.spreads_nonfinite else (plan,):
                    for source, out in pairs(precision):
                        codes = run.loops_to_load(np.dtype(source), np.dtype(out))
                        ready.update(dict.fromkeys(codes))
    load(ready)
    return len(compiled_here()) - before, len(ready)

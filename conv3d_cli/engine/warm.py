"""Compiling ahead: every loop that common jobs need, for `conv3d warmup`."""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.plan import ALGORITHMS, make_plan
from conv3d_cli.engine.team import Team
from conv3d_cli.model.spec import ConvSpec

SOURCES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
OUTPUTS = ("uint8", "int16", "uint16", "float32", "float64")


def warm_up() -> None:
    """Run every algorithm once on a volume of eight voxels, for each source dtype, output dtype and precision."""
    problem = ConvSpec().resolve((1, 2, 2, 2, 1), (1, 1, 1, 1, 1))
    weights = np.ones((1, 1, 1, 1, 1))
    pairs = [(source, "float32") for source in SOURCES] + [("float32", out) for out in OUTPUTS]
    with Team(1) as team:
        for algorithm in ALGORITHMS:
            if algorithm.reject(problem, weights) is not None:
                continue
            for precision in ("float32", "float64"):
                plan = make_plan(problem, weights, dtype=precision, algorithm=algorithm.name)
                for source, out in pairs:
                    volume = np.ones((2, 2, 2, 1), source)
                    plan.convolve_slab(volume, np.empty((2, 2, 2, 1), out), [0, 1], team)

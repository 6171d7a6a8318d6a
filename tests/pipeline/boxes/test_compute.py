"""Boxes of an output, computed each on its own, have the bits of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.engine import Team
from conv3d_cli.model.box import Box
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.boxes.compute import BoxSource, compute_box
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

SHAPE = (23, 70, 90)


def random_boxes(size: tuple[int, ...], count: int, numbers: np.random.Generator) -> list[Box]:
    boxes = []
    for _ in range(count):
        spans = []
        for n in size:
            first, last = sorted(numbers.integers(0, n + 1, 2))
            spans.append((int(min(first, n - 1)), int(max(last, first + 1))))
        boxes.append(Box(*spans))
    return boxes


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape)


CASES: dict[str, dict[str, Any]] = {
    "direct": {"stages": (Stage(Kernel(weights(3, 3, 3))),)},
    "Gaussian": {"stages": (Stage("gaussian:sigma=2vox"),)},
    "sum of products": {"stages": (Stage("log:sigma=1.5vox"),)},
    "fft": {"stages": (Stage(Kernel(weights(9, 9, 9)), boundary="wrap"),), "algorithm": "fft"},
    "strided": {"stages": (Stage(Kernel(weights(3, 5, 4)), strides=(2, 1, 3), boundary="mirror"),)},
    "integers": {"stages": (Stage("box:size=3"),), "dtype": "int16"},
    "wrapped layers": {
        "stages": (
            Stage(Kernel(weights(3, 5, 3, 1, 2)), padding="same", boundary="wrap"),
            Stage(
                Kernel(weights(5, 3, 7, 2, 1)), padding="same", boundary="wrap", strides=(1, 2, 3)
            ),
        )
    },
    "layers": {
        "stages": (
            Stage(
                Kernel(weights(3, 3, 3, 1, 16), np.arange(16.0)),
                padding="same",
                activations=("relu",),
            ),
            Stage(Kernel(weights(3, 3, 3, 16, 16)), padding="same", activations=("softmax",)),
            Stage(Kernel(weights(1, 1, 1, 16, 2)), padding="valid"),
        )
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bad", [False, True])
def test_same_bits(name: str, bad: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(3)
    volume = (50 * numbers.standard_normal(SHAPE)).astype(np.float32)
    if bad:
        volume[11, 33, 44] = np.nan
    np.save("x.npy", volume)
    job = Job("x.npy", "whole.npy", **CASES[name])
    with np.errstate(invalid="ignore"):
        report = run_job(job)
        whole = np.load("whole.npy")
        with prepare_job(job) as prepared, Team(2) as team:
            graph = prepared.graph
            nodes = graph.boxes(prepared.reader.header.shape[1:4])
            n, channels = prepared.stream_plan.parts[0]
            every = slice(0, prepared.reader.header.shape[4])
            everything = Box(*((0, size) for size in graph.last.problem.out_size))
            for box in [everything, *random_boxes(everything.size, 12, numbers)]:
                filters = prepared.header.shape[4]
                out = np.empty((*box.size, filters), prepared.header.dtype)
                given = BoxSource(prepared.reader, n, every, nodes).read(box)
                clipped = compute_box(graph, given, (1.0, 0.0), channels, box, out, team)
                expected = whole.reshape(*everything.size, filters)[
                    tuple(slice(*span) for span in box)
                ]
                np.testing.assert_array_equal(out, expected)
                if box == everything:
                    assert clipped == report.clipped

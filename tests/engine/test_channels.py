"""The algorithms for channels: what is their own, beside the contract of every algorithm."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from cases import Case, check, run

from conv3d_cli.engine import make_plan
from conv3d_cli.engine.algorithms import channels, depthwise
from conv3d_cli.engine.cpu import CPU_CLASSES, REFERENCE
from conv3d_cli.layer import activations

NAMES = ["channels", "depthwise", "few-filters"]
# Accepted by the algorithm of the same place in NAMES.
TYPICAL = [
    Case((4, 5, 17), (3, 3, 3), in_channels=12, filters=20),
    Case((4, 5, 17), (3, 3, 3), groups=24),
    Case((4, 5, 17), (3, 3, 3), in_channels=20, filters=2),
]
each = pytest.mark.parametrize(("name", "case"), list(zip(NAMES, TYPICAL, strict=True)), ids=NAMES)


def plan_of(name: str, case: Case, weights: Any, **options: Any) -> Any:
    problem = case.spec().resolve((1, *case.size, case.in_channels * case.groups), weights.shape)
    return make_plan(problem, weights, algorithm=name, **options)


@each
def test_typical_cases(name: str, case: Case) -> None:
    check(name, case, "float32")


@each
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_channels_reach_their_windows_and_no_further(
    name: str, case: Case, value: float
) -> None:
    volume, weights = case.arrays()
    volume[0, 1, 2, 9, -1] = value
    weights[0, 0, 0] = 0
    got = run(plan_of(name, case, weights), volume)
    expected = case.expected(volume, weights)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(expected))


@each
@pytest.mark.parametrize("order", ["C", "F"])
def test_bias_activation_dtypes_and_layouts(name: str, case: Case, order: Any) -> None:
    """As `direct` gives it, for a source of int16 in any layout and an output of uint8 by activation."""
    volume, weights = case.arrays()
    stored = np.asarray((volume * 40).round(), np.int16, order=order)
    bias = np.linspace(-30, 60, weights.shape[4]).astype(np.float32)
    activation = activations.get("relu").in_place
    options = {"bias": bias, "activation": activation, "scale": (0.5, 3.0), "out_dtype": "uint8"}
    got = run(plan_of(name, case, np.abs(weights)), stored, **options)
    expected = run(plan_of("direct", case, np.abs(weights)), stored, **options)
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("name", "case"), [
    ("channels", Case((1, 1, 20), (3, 3, 3), in_channels=320, filters=9, boundary="nearest")),
    ("few-filters", Case((1, 1, 20), (3, 3, 3), in_channels=320, boundary="nearest")),
    ("depthwise", Case((1, 1, 20), (11, 11, 11), groups=16, boundary="nearest")),
])  # fmt: skip
@pytest.mark.parametrize("number", [0.1, 0.7, 1 / 3])
def test_equal_terms_do_not_drift(name: str, case: Case, number: float) -> None:
    volume, weights = case.arrays()
    volume[:], weights[:] = number, number
    got = run(plan_of(name, case, weights), volume)
    expected = (
        np.float64(volume.flat[0]) * np.float64(np.float32(number)) * np.prod(weights.shape[:4])
    )
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("filters", range(1, 100, 7))
def test_filter_blocks_cover_the_filters(filters: int) -> None:
    problem = (
        Case((3, 3, 3), (3, 3, 3), 4, filters)
        .spec()
        .resolve((1, 3, 3, 3, 4), (3, 3, 3, 4, filters))
    )
    for itemsize, cpu in itertools.product((4, 8), CPU_CLASSES):
        blocks = channels.filter_blocks(problem, itemsize, cpu)
        assert blocks.taps == channels.filter_blocks(problem, itemsize, REFERENCE).taps
        for rows, vectors in ((blocks.pair_rows, 2), (blocks.odd_rows, blocks.odd)):
            assert rows * vectors + vectors * blocks.taps < cpu.registers
        assert 0 <= blocks.padded - filters < blocks.lanes


def test_groups_together_divide_the_groups() -> None:
    for groups in (4, 17, 24, 96, 300, 1021):
        problem = (
            Case((3, 3, 3), (1, 1, 1), groups=groups)
            .spec()
            .resolve((1, 3, 3, 3, groups), (1, 1, 1, 1, groups))
        )
        lanes = depthwise.vector_lanes(problem, 4)
        together = depthwise.groups_together(problem, lanes)
        assert groups % together == 0
        assert together >= lanes


def test_narrower_vectors() -> None:
    """The same cases in a process that is told of a lesser CPU; its compiler still may use this one's instructions."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::test_typical_cases"],
        env={**os.environ, "CONV3D_CPU": "avx2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout

"""FFT tiles: every tile size, random problems against a sum over taps, large numbers, and the
predicted time.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import MODES, TOLERANCE, Case, run
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.engine import make_plan
from conv3d_cli.engine.algorithms import fft
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvSpec


def by_taps(case: Case, volume: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The convolution as a sum over taps of shifted volumes, in float64."""
    problem = case.spec().resolve(volume.shape, weights.shape)
    padded = volume.astype(np.float64)
    for axis in range(3):
        indices = np.array(problem.source_indices(axis, 0, problem.out_size[axis]))
        padded = padded.take(indices, axis=axis + 1)
        padded[(slice(None),) * (axis + 1) + (indices < 0,)] = problem.boundary.value
    groups, per_group, filters = (
        problem.groups,
        problem.channels_per_group,
        problem.filters_per_group,
    )
    out = np.zeros(problem.out_shape)
    for tap in itertools.product(*map(range, problem.kernel_size)):
        starts = [t * d for t, d in zip(tap, problem.dilation_rate, strict=True)]
        part = padded[
            (slice(None), *(slice(s, s + n) for s, n in zip(starts, problem.out_size, strict=True)))
        ]
        for g in range(groups):
            these = slice(g * filters, (g + 1) * filters)
            out[..., these] += (
                part[..., g * per_group : (g + 1) * per_group] @ weights[tap][:, these]
            )
    return out


def check(case: Case, precision: str = "float32", **kwargs: Any) -> None:
    volume, weights = case.arrays()
    weights = weights.astype(precision)
    problem = case.spec().resolve(volume.shape, weights.shape)
    plan = make_plan(problem, weights, dtype=precision, algorithm="fft", threads=2)
    got = run(plan, volume, **kwargs)
    # per filter, so that a small one beside a large one is held to its own size
    scale = np.abs(weights).sum(axis=(0, 1, 2, 3)) * max(
        np.abs(volume).max(), abs(problem.boundary.value)
    )
    assert (np.abs(got - by_taps(case, volume, weights)) <= TOLERANCE[precision] * scale).all()


def force(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int, int]) -> None:
    monkeypatch.setattr(fft, "choose_tile", lambda problem: (Size(*tile), 1.0))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("size", fft.PLANE_SIZES)
def test_every_size_along_height_and_width(
    size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tile in ((8, size, 16), (8, 16, size)):
        force(monkeypatch, tile)
        check(Case((9, 21, 40), (5, 5, 4), boundary="mirror"), precision)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("size", fft.DEPTH_SIZES)
def test_every_size_along_depth(size: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, (size, 16, 16))
    check(Case((19, 14, 9), (min(size, 4), 5, 14), boundary="wrap"), precision)


@st.composite
def large_kernels(draw: st.DrawFn) -> Case:
    kernel = draw(
        st.tuples(*[st.integers(1, 9)] * 3).filter(lambda k: np.prod(k) >= fft.LEAST_TAPS)
    )
    return Case(
        size=draw(st.tuples(*[st.integers(1, 40)] * 3)),
        kernel=kernel,
        in_channels=draw(st.integers(1, 3)),
        filters=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 2)),
        dilation_rate=draw(st.tuples(*[st.integers(1, 3)] * 3)),
        padding=draw(st.sampled_from(["same", "full", ((9, 0), (0, 9), (4, 11))])),
        boundary=draw(st.sampled_from(MODES)),
    )


@settings(max_examples=examples(60))
@given(case=large_kernels(), precision=st.sampled_from(["float32", "float64"]))
def test_random_problem(case: Case, precision: str) -> None:
    extent = [(k - 1) * d + 1 for k, d in zip(case.kernel, case.dilation_rate, strict=True)]
    if isinstance(case.padding, str) or all(
        n + sum(p) >= e for n, p, e in zip(case.size, case.padding, extent, strict=True)
    ):
        check(case, precision)


def test_same_bits_for_any_threads_and_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, tasks and pairs with a missing partner, cut anywhere a slab may begin."""
    force(monkeypatch, (12, 16, 16))
    case = Case((45, 30, 100), (5, 5, 5), boundary="symmetric")
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    reference = run(make_plan(problem, weights, algorithm="fft", threads=1), volume)
    for threads, steps in ((1, 1), (2, 2), (5, 3)):
        plan = make_plan(problem, weights, algorithm="fft", threads=threads)
        assert plan.depth_step == 8
        np.testing.assert_array_equal(
            run(plan, volume, slab_depth=steps * plan.depth_step), reference
        )


def test_what_earlier_tasks_left_behind_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, (16, 32, 32))
    case = Case((20, 30, 33), (5, 5, 5))
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    plan = make_plan(problem, weights, algorithm="fft")
    reference = run(plan, volume)
    assert not np.isfinite(run(plan, np.full_like(volume, np.nan))).any()
    np.testing.assert_array_equal(run(plan, volume), reference)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e34])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_bad_and_huge_voxels_reach_their_windows_and_no_further(
    value: float, weight: float
) -> None:
    """A finite number whose multiples are not must not spoil the voxels of its tile."""
    case = Case((20, 21, 40), (5, 5, 5))
    volume = np.ones((1, 20, 21, 40, 1), np.float32)
    volume[0, 7, 3, 17, 0] = value
    weights = np.full((5, 5, 5, 1, 1), 1 / 125)
    weights[0, 1, 2] = weight
    problem = case.spec().resolve(volume.shape, weights.shape)
    got = run(make_plan(problem, weights, algorithm="fft"), volume)
    with np.errstate(invalid="ignore"):
        expected = by_taps(case, volume, weights).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_huge_constants_outside_and_scales_are_computed_again() -> None:
    case = Case((6, 7, 8), (5, 5, 5), boundary="constant=1e35")
    volume, weights = np.ones((1, 6, 7, 8, 1), np.int16), np.full((5, 5, 5, 1, 1), 0.5)
    problem = case.spec().resolve(volume.shape, weights.shape)
    got = run(make_plan(problem, weights, algorithm="fft"), volume)
    np.testing.assert_allclose(got, by_taps(case, volume, weights), rtol=1e-5)


def test_an_anisotropic_kernel_gets_a_tile_to_match() -> None:
    problem = ConvSpec().resolve((1, 30, 256, 256, 1), (3, 25, 25, 1, 1))
    tile, _ = fft.choose_tile(problem)  # type: ignore[misc]
    assert tile.depth < tile.height


@pytest.mark.parametrize(
    ("spec", "kernel", "reason"),
    [
        (ConvSpec(), (3, 3, 3), "27 weights"),
        (ConvSpec((2, 1, 1)), (9, 9, 9), "strides are 2x1x1"),
        (ConvSpec(padding="same"), (9, 9, 900), "more than a tile"),
    ],
)
def test_what_it_declines(spec: ConvSpec, kernel: tuple[int, int, int], reason: str) -> None:
    weights = np.ones((*kernel, 1, 1))
    assert reason in str(fft.reject(spec.resolve((1, 50, 50, 50, 1), weights.shape), weights))


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30, np.nan])
def test_weights_out_of_range_are_declined(factor: float) -> None:
    weights = np.full((5, 5, 5, 1, 1), factor)
    reason = fft.reject(ConvSpec().resolve((1, 9, 9, 9, 1), weights.shape), weights)
    assert (reason is None) == (factor == 0)

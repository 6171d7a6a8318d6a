"""Separable kernels: how they are factorised, what is refused, and that their passes neither overflow nor spread NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, run

from conv3d_cli.engine import make_plan
from conv3d_cli.engine.algorithms import separable
from conv3d_cli.kernels import builtin


def column(kernel: Any, dtype: str = "float64") -> np.ndarray:
    return np.asarray(kernel.weights)[..., None, None].astype(dtype)


def plan_for(
    volume: np.ndarray, weights: np.ndarray, boundary: str = "zeros", **kwargs: Any
) -> Any:
    case = Case(volume.shape[1:4], weights.shape[:3], boundary=boundary)
    problem = case.spec().resolve(volume.shape, weights.shape)
    return make_plan(problem, weights, algorithm="separable", **kwargs)


OUTER = [
    builtin.gaussian(sigma=(1, 1, 1)),
    builtin.gaussian(sigma=(1, 0.5, 2)),
    builtin.box((4, 3, 5)),
    builtin.sobel("h"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", OUTER, ids=lambda k: k.name)
def test_outer_products_have_one_term_and_keep_signs_zeros_and_symmetry(
    kernel: Any, dtype: str
) -> None:
    weights = column(kernel, dtype)
    factors = separable.factorise(weights)
    assert factors is not None
    assert (factors.depth_terms, factors.height_terms) == (1, 1)
    product = np.einsum("fad,fbh,fabw->dhwf", *factors)[..., None, :]
    assert np.abs(product - weights).sum() <= separable.EXACT[dtype] * np.abs(weights).sum()
    np.testing.assert_array_equal(np.sign(product), np.sign(weights))
    for axis, factor in enumerate(factors):
        if (weights == np.flip(weights, axis)).all():
            np.testing.assert_array_equal(factor, factor[..., ::-1])


def test_laplacian_of_gaussian_has_two_filters_an_axis() -> None:
    factors = separable.factorise(column(builtin.log(sigma=(1, 1.5, 2))))
    assert factors is not None
    assert (factors.depth_terms, factors.height_terms) == (2, 2)


def test_factors_of_one_term_are_as_round_as_the_kernel() -> None:
    """So that integer kernels on integer volumes stay exact."""
    factors = separable.factorise(column(builtin.sobel("d")))
    assert factors is not None
    for factor in factors:
        np.testing.assert_array_equal(factor * 2, np.rint(factor * 2))


REFUSED = [
    (np.random.default_rng(0).standard_normal((3, 4, 5, 1, 1)), "not a sum of outer products"),
    (np.ones((3, 3, 3, 2, 1)), "sums 2 channels"),
    (np.ones((3, 3, 3, 1, 9)), "9 filters"),
    (np.ones((1, 1, 9, 1, 1)), "one axis"),
    (np.ones((1, 2, 2, 1, 1)), "5 weights, the kernel 4"),
    (np.full((3, 3, 3, 1, 1), np.nan), "not a sum"),
    (column(builtin.gaussian(sigma=(1, 1, 1))) * (1 + 1e-9 * np.arange(9)[:, None, None] * np.eye(9))[..., None, None], "not a"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "reason"), REFUSED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_refusals_say_why(weights: np.ndarray, reason: str) -> None:
    case = Case((9, 9, 9), weights.shape[:3], weights.shape[3], weights.shape[4])
    problem = case.spec().resolve((1, 9, 9, 9, weights.shape[3]), weights.shape)
    assert reason in (separable.reject(problem, weights) or "")


def test_a_kernel_rounded_to_float32_is_exact_enough_for_float32_alone() -> None:
    weights = column(builtin.gaussian(sigma=(1, 1, 1)), "float32")
    assert separable.factorise(weights) is not None
    assert separable.factorise(weights.astype(np.float64)) is None


@pytest.mark.parametrize("size", [(9, 9, 9), (41, 41, 41), (3, 65, 101)])
@pytest.mark.parametrize("kind", ["box", "gaussian"])
def test_a_constant_stays_constant(size: tuple[int, int, int], kind: str) -> None:
    kernel = (
        builtin.box(size)
        if kind == "box"
        else builtin.gaussian(sigma=tuple((n - 1) / 8 for n in size))
    )
    volume = np.full((1, 2, 3, 20, 1), 0.1, np.float32)
    got = run(plan_for(volume, column(kernel), "nearest"), volume)
    np.testing.assert_allclose(got, np.float64(np.float32(0.1)), rtol=2e-6)


def test_the_largest_numbers_do_not_overflow_on_the_way() -> None:
    """Two of them are added before they are weighted, which must not give infinity: they mark missing voxels in some files."""
    volume = np.full((1, 9, 9, 20, 1), -3e38, np.float32)
    got = run(plan_for(volume, column(builtin.gaussian(sigma=(1, 1, 1))), "nearest"), volume)
    np.testing.assert_allclose(got, -3e38, rtol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_small_and_large_kernels_keep_their_precision(scale: float) -> None:
    volume, _ = Case((6, 7, 20), (3, 3, 3)).arrays()
    weights = column(builtin.gaussian(sigma=(1, 1, 1)))
    got = run(plan_for(volume, weights * scale), volume)
    expected = run(plan_for(volume, weights), volume)
    np.testing.assert_allclose(got / scale, expected, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["gaussian", "sobel", "log"])
def test_non_finite_voxels_reach_their_windows_and_no_further(name: str, value: float) -> None:
    kernel = {
        "gaussian": builtin.gaussian(sigma=(0.5, 0.5, 0.5)),
        "sobel": builtin.sobel("w"),  # zero across its middle: 0 times infinity is NaN
        "log": builtin.log(sigma=(0.5, 0.5, 0.5)),
    }[name]
    weights = column(kernel)
    volume = np.ones((1, 9, 6, 19, 1), np.float32)
    volume[0, 2, 2, 12, 0] = value
    volume[0, 7, 4, 3, 0] = np.inf
    case = Case((9, 6, 19), weights.shape[:3])
    got = run(plan_for(volume, weights, threads=2), volume)
    np.testing.assert_allclose(got, case.expected(volume, weights), rtol=1e-5, atol=1e-6)


def test_the_planner_takes_it_for_large_kernels() -> None:
    weights = column(builtin.gaussian(sigma=(2, 2, 2)))
    problem = (
        Case((64, 64, 64), weights.shape[:3]).spec().resolve((1, 64, 64, 64, 1), weights.shape)
    )
    assert make_plan(problem, weights).algorithm is separable.ALGORITHM

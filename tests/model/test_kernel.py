"""Kernels: what may be one, and the facts that people and planners ask for, against NumPy, SciPy and formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, signal
from strategies import shapes, small_numbers, weights

from conv3d_cli.errors import ShapeError
from conv3d_cli.model.kernel import Kernel

LAYER = np.arange(2 * 3 * 4 * 2 * 3, dtype=np.float64).reshape(2, 3, 4, 2, 3)


def gaussian(sigma: float, radius: int) -> np.ndarray:
    x = np.arange(-radius, radius + 1)
    return np.exp(-0.5 * (x / sigma) ** 2)


# ---------------------------------------------------------------------------------------------------------------------
# What may be a kernel


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint64", "float16", "float32", ">f4", ">i2", "longdouble"]
)
def test_real_numbers_become_float64(dtype: str) -> None:
    given_ = small_numbers((2, 3, 1), np.dtype(dtype).name, 3).astype(dtype)
    kernel = Kernel(given_)
    assert kernel.weights.dtype == np.float64
    assert kernel.weights.dtype.isnative
    assert np.array_equal(kernel.weights, given_)


def test_weights_are_a_copy() -> None:
    mine = np.ones((3, 3, 3))
    kernel = Kernel(mine)
    mine[...] = np.nan
    assert kernel.sum == 27


@pytest.mark.parametrize(
    ("weights", "facts"),
    [
        (1.0, ["0-D", "give it the shape (1, 1, 1)"]),
        (np.ones(3), ["1-D", "give it the shape (1, 1, 3)"]),
        (np.ones((3, 4)), ["2-D", "give it the shape (1, 3, 4)"]),
        (np.ones((3, 3, 3, 2)), ["4-D", "(3, 3, 3, 2)"]),
        (np.ones((1,) * 6), ["6-D"]),
        (np.ones((3, 0, 3)), ["empty", "(3, 0, 3)"]),
        (np.ones((3, 3, 3, 2, 0)), ["empty"]),
        (np.ones((1, 1, 1), complex), ["real numbers", "complex128"]),
        (np.full((1, 1, 1), "a"), ["real numbers"]),
        (np.full((1, 1, 1), None), ["real numbers", "object"]),
        (np.zeros((1, 1, 1), "datetime64[s]"), ["real numbers"]),
    ],
)
def test_what_is_no_kernel(weights: Any, facts: list[str]) -> None:
    with pytest.raises(ShapeError) as caught:
        Kernel(weights, name="mine")
    assert "kernel mine" in str(caught.value)
    for fact in facts:
        assert fact in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_must_be_finite(bad: float) -> None:
    values = np.ones((2, 3, 4))
    values[1, 0, 2] = bad
    with pytest.raises(
        ShapeError,
        match=r"kernel psf\.tif must hold finite numbers, received 1 .* first at \(1, 0, 2\)",
    ):
        Kernel(values, name="psf.tif")
    with pytest.raises(
        ShapeError, match=r"bias of kernel k must hold finite numbers, .* first at \(1,\)"
    ):
        Kernel(np.ones((1, 1, 1)), bias=np.array([0, bad]), name="k")


@pytest.mark.parametrize(
    ("bias", "expected"),
    [(2, [2]), ([1, 2, 3], [1, 2, 3]), (np.float32(0.5), [0.5]), ([7], [7]), ((True, False, True), [1, 0, 1])],
)  # fmt: skip
def test_forms_of_a_bias(bias: Any, expected: list[float]) -> None:
    held = Kernel(LAYER, bias).bias
    assert held is not None
    assert held.dtype == np.float64
    assert held.tolist() == expected


@pytest.mark.parametrize("bias", [[1, 2], [1, 2, 3, 4], [[1, 2, 3]], [], np.ones((3, 1))])
def test_a_layers_bias_is_one_number_a_filter(bias: Any) -> None:
    with pytest.raises(ShapeError, match=r"one number for each filter \(3\), received shape"):
        Kernel(LAYER, bias)


@pytest.mark.parametrize(
    "bias",
    ["a", ["a"], [1j], np.array([1j, 2, 3]), [None], np.array(["1"]), np.zeros(1, "datetime64[s]")],
)
def test_a_bias_must_hold_real_numbers(bias: Any) -> None:
    with pytest.raises(ShapeError, match="bias of the kernel must hold real numbers"):
        Kernel(LAYER, bias)


@pytest.mark.parametrize("filters", [1, 2, 3, 4])
@pytest.mark.parametrize("bias", [None, [5.0], [1.0, 2.0, 3.0]])
def test_bias_for_filters(filters: int, bias: list[float] | None) -> None:
    kernel = Kernel(np.ones((1, 1, 1)), None if bias is None else np.array(bias))
    if bias is None:
        assert kernel.bias_for(filters) is None
    elif len(bias) in (1, filters):
        assert np.array_equal(kernel.bias_for(filters), np.broadcast_to(bias, filters))
    else:
        plural = "" if filters == 1 else "s"
        with pytest.raises(
            ShapeError, match=f"the bias has 3 values for {filters} output channel{plural};"
        ):
            kernel.bias_for(filters)


@pytest.mark.parametrize("centre", [(0, 0, 0), (2, 0, 4), [1.5, 0, 3.9], np.array([1, 0, 2])])
def test_a_centre_inside(centre: Any) -> None:
    kernel = Kernel(np.ones((3, 1, 5)), centre=centre)
    assert kernel.centre == tuple(float(c) for c in centre)


@pytest.mark.parametrize(
    "centre",
    [(3, 0, 0), (0, 0.5, 0), (0, 0, -1), (1, 0), (1, 0, 2, 0), (math.nan, 0, 0), (math.inf, 0, 0)],
)
def test_a_centre_outside(centre: Any) -> None:
    with pytest.raises(ShapeError, match=r"inside its size \(3, 1, 5\)"):
        Kernel(np.ones((3, 1, 5)), centre=centre)


def test_size_and_kind() -> None:
    assert Kernel(LAYER).size == (2, 3, 4)
    assert Kernel(LAYER).is_layer
    assert not Kernel(LAYER[..., 0, 0]).is_layer
    assert Kernel(LAYER).sum == LAYER.sum()


# ---------------------------------------------------------------------------------------------------------------------
# Channels, flips, sums


@given(shapes(3).flatmap(weights), st.integers(1, 4))
def test_a_filter_is_repeated_for_every_channel(values: np.ndarray, channels: int) -> None:
    kernel = Kernel(values)
    layer = kernel.for_channels(channels)
    assert layer.shape == (*values.shape, 1, channels)
    assert all(np.array_equal(layer[..., 0, c], values) for c in range(channels))
    assert np.may_share_memory(layer, kernel.weights)  # no copy


def test_a_layer_stays_as_it_is() -> None:
    kernel = Kernel(LAYER)
    assert kernel.for_channels(2) is kernel.weights


@given(shapes(3).flatmap(weights))
def test_correlating_with_the_flipped_is_convolving(values: np.ndarray) -> None:
    x = small_numbers((5, 5, 5), "float64", 1)
    correlated = oracle.conv3d(
        x[None, ..., None], Kernel(values).flipped().weights[..., None, None]
    )
    assert np.allclose(
        correlated[0, ..., 0], signal.convolve(x, values, mode="valid", method="direct")
    )


def test_flipping_mirrors_space_alone() -> None:
    kernel = Kernel(LAYER, [1, 2, 3], (0, 2, 1), "k")
    flipped = kernel.flipped()
    assert np.array_equal(flipped.weights, np.flip(LAYER, (0, 1, 2)))
    assert (flipped.centre, flipped.name) == ((1, 0, 2), "k")
    assert flipped.bias.tolist() == [1, 2, 3]
    twice = flipped.flipped()
    assert np.array_equal(twice.weights, LAYER)
    assert twice.centre == kernel.centre
    assert Kernel(LAYER).flipped().centre is None


def test_normalized_filter_sums_to_one() -> None:
    values = np.arange(1.0, 28).reshape(3, 3, 3)
    normalized = Kernel(values, 2.0, (0, 0, 0), "k").normalized()
    assert normalized.sum == pytest.approx(1)
    assert np.allclose(normalized.weights * values.sum(), values)
    assert (normalized.bias.tolist(), normalized.centre, normalized.name) == ([2], (0, 0, 0), "k")


def test_each_filter_of_a_layer_sums_to_one() -> None:
    normalized = Kernel(LAYER + 1).normalized().weights
    assert np.allclose(normalized.sum(axis=(0, 1, 2, 3)), 1)
    for f in range(3):
        assert np.allclose(normalized[..., f], (LAYER + 1)[..., f] / (LAYER + 1)[..., f].sum())


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 1, 1)),
        np.array([-1.0, 0, 1]).reshape(1, 1, 3),
        np.array([0.1, 0.2, -0.3]).reshape(3, 1, 1),  # the sum is 2.8e-17
        np.stack(
            [np.ones((1, 1, 1, 2)), np.array([1.0, -1]).reshape(1, 1, 1, 2)], axis=-1
        ),  # one filter of two
    ],
)
def test_a_sum_of_zero_cannot_be_normalized(values: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="sums to 0"):
        Kernel(values).normalized()


def test_a_small_sum_can_be_normalized() -> None:
    assert Kernel(np.full((3, 3, 3), 1e-300)).normalized().sum == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------------------
# Facts


@given(shapes(4), st.integers(0, 999))
def test_outer_products_have_rank_one(size: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (rng.normal(size=n) for n in size)
    values = np.einsum("i,j,k->ijk", a, b, c)
    assert Kernel(values).separable_rank() == 1
    noisy = values + 1e-12 * np.linalg.norm(values) * rng.normal(size=size)
    assert Kernel(noisy).separable_rank() == 1


@given(st.integers(2, 4), st.integers(0, 999))
def test_a_sum_of_outer_products_has_their_number(rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    factors = [np.linalg.qr(rng.normal(size=(5, 5)))[0][:rank] for _ in range(3)]
    values = np.einsum("ri,rj,rk->ijk", *factors)
    assert Kernel(values).separable_rank() == rank


def test_known_ranks() -> None:
    cross = ndimage.generate_binary_structure(3, 1).astype(float)  # the six neighbours
    assert Kernel(cross).separable_rank() == 2
    assert Kernel(np.zeros((3, 3, 3))).separable_rank() == 1
    assert Kernel(LAYER).separable_rank() is None
    one_plane = np.array([[[1.0, 0], [0, 1]]])  # separable along depth, not in the plane
    assert Kernel(one_plane).separable_rank() == 2
    assert Kernel(one_plane.transpose(1, 0, 2)).separable_rank() == 2
    assert Kernel(one_plane.transpose(1, 2, 0)).separable_rank() == 2


@given(st.tuples(st.booleans(), st.booleans(), st.booleans()), st.integers(0, 999), st.booleans())
def test_symmetries(mirrored: tuple[bool, bool, bool], seed: int, layer: bool) -> None:
    values = np.random.default_rng(seed).normal(size=(3, 4, 5, 2, 2) if layer else (3, 4, 5))
    for axis, wish in enumerate(mirrored):
        if wish:
            values = values + np.flip(values, axis)
    assert Kernel(values).symmetries() == mirrored
    assert Kernel(1e-200 * values).symmetries() == mirrored
    barely = values.copy()
    barely[0, 0, 0] += 1e-6 * np.abs(values).max()
    assert Kernel(barely).symmetries() == (False, False, False)


@given(st.tuples(*[st.floats(1, 4)] * 3))
def test_width_of_a_gaussian(sigmas: tuple[float, float, float]) -> None:
    values = np.einsum("i,j,k->ijk", *(gaussian(s, int(3 * s)) for s in sigmas))
    for width, sigma in zip(Kernel(values).fwhm(), sigmas, strict=True):
        # what linear interpolation between voxels costs falls with the square of their number
        assert width == pytest.approx(2 * math.sqrt(2 * math.log(2)) * sigma, rel=0.05 / sigma**2)


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_width_of_a_box(n: int) -> None:
    assert Kernel(np.ones((n, n, n))).fwhm() == pytest.approx((n, n, n))


def test_width_of_a_triangle() -> None:
    assert Kernel(np.array([1.0, 2, 3, 2, 1]).reshape(5, 1, 1)).fwhm() == (
        pytest.approx(3.0),
        None,
        None,
    )


@pytest.mark.parametrize(
    "profile",
    [
        [-1, 0, 1],
        [1, 0, 1],
        [-1, -2, -1],
        [0, 0, 0],
        [1, 2],
        [5],
        [1, -2, 1],
        [3, 1, 2, 1, 0],
        [0, 1, 2, 1, 3],
    ],
)
def test_what_is_no_bump_has_no_width(profile: list[float]) -> None:
    assert Kernel(np.array(profile, float).reshape(1, 1, -1)).fwhm()[2] is None


def test_width_of_a_layer_is_that_of_its_sum() -> None:
    layer = np.zeros((5, 5, 5, 2, 2))
    layer[...] = np.array([1.0, 2, 3, 2, 1]).reshape(5, 1, 1, 1, 1)
    assert Kernel(layer).fwhm()[0] == pytest.approx(3)


@pytest.mark.parametrize("fwhm", [1.7, 2.727, 3.0, 5.5, 8.0])
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5])
def test_the_width_of_a_sampled_gaussian_is_that_of_the_gaussian(fwhm: float, shift: float) -> None:
    x = np.arange(-20, 21) - shift
    profile = np.exp(-4 * math.log(2) * (x / fwhm) ** 2)
    found = Kernel(profile.reshape(41, 1, 1)).fwhm()[0]
    assert found == pytest.approx(fwhm, rel=0.005)


@pytest.mark.parametrize("size", [3, 4, 9])
def test_the_width_of_a_box_is_its_size(size: int) -> None:
    assert Kernel(np.ones((size, 1, 1))).fwhm()[0] == pytest.approx(size)
    padded = np.pad(np.ones(size), 3, constant_values=1e-3).reshape(-1, 1, 1)
    assert Kernel(padded).fwhm()[0] == pytest.approx(size, rel=2e-3)

"""A kernel at another spacing: Gaussians against their own formula, sums, centres, and what cannot
be done.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.errors import ShapeError
from conv3d_cli.kernels.resampling import cubic, differing_axes, resample_kernel
from conv3d_cli.model.kernel import Kernel

Floats = tuple[float, float, float]


def gaussian(
    size: tuple[int, int, int], spacing: Floats, sigma: Floats, shift: Floats = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """Sampled about the middle of its array (between voxels where a size is even) plus a shift, of
    sum 1.
    """
    profiles = []
    for k, step, deviation, off in zip(size, spacing, sigma, shift, strict=True):
        profile = np.exp(-0.5 * (((np.arange(k) - (k - 1) / 2) * step - off) / deviation) ** 2)
        profiles.append(profile / profile.sum())
    return np.einsum("d,h,w->dhw", *profiles)


def centroid(weights: np.ndarray, spacing: Floats) -> np.ndarray:
    """In units of length from the middle of the array."""
    axes = [
        (np.arange(k) - (k - 1) / 2) * step for k, step in zip(weights.shape, spacing, strict=True)
    ]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    return (places * weights).sum(axis=(1, 2, 3)) / weights.sum()


@pytest.mark.parametrize("size", [(49, 49, 49), (48, 49, 50)], ids=["odd", "even"])
@pytest.mark.parametrize(
    ("wanted", "sigma", "error"),
    [
        ((2.0, 0.5, 0.5), (4.0, 2.0, 2.0), 0.003),  # two of the larger voxels along each axis
        ((2.0, 0.5, 0.5), (2.0, 1.0, 1.0), 0.06),  # one: 2 % along each
        ((1.3, 0.7, 0.21), (2.6, 2.0, 2.0), 0.005),
        ((3.0, 1.0, 0.1), (6.0, 2.0, 2.0), 0.003),
    ],
)
def test_a_gaussian_stays_that_gaussian(
    size: tuple[int, int, int], wanted: Floats, sigma: Floats, error: float
) -> None:
    """Sampled at 1 um and resampled, against the same Gaussian sampled there."""
    made = resample_kernel(
        Kernel(7 * gaussian(size, (1.0, 1.0, 1.0), sigma)), (1.0, 1.0, 1.0), wanted
    )
    assert all(k % 2 for k, step in zip(made.size, wanted, strict=True) if step != 1)
    expected = 7 * gaussian(made.size, wanted, sigma)
    assert np.abs(made.weights - expected).max() < error * expected.max()
    assert made.sum == pytest.approx(7, rel=1e-12)
    assert np.abs(centroid(made.weights, wanted)).max() < 1e-9
    assert made.weights.min() >= 0
    assert made.symmetries() == (True, True, True)
    assert made.centre is None


@pytest.mark.parametrize("wanted", [(2.0, 0.5, 0.7), (0.4, 1.6, 3.0)])
@pytest.mark.parametrize("k", [20, 21])
def test_what_lies_off_the_centre_stays_there(wanted: Floats, k: int) -> None:
    """To a hundredth of the larger voxel: a peak between voxels is not pulled onto one."""
    shift = (1.3, -0.6, 0.25)
    kernel = Kernel(gaussian((k, k, k), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), shift))
    before = centroid(kernel.weights, (1.0, 1.0, 1.0))
    made = resample_kernel(kernel, (1.0, 1.0, 1.0), wanted)
    assert (np.abs(centroid(made.weights, wanted) - before) < 0.01 * np.maximum(1, wanted)).all()


def test_larger_voxels_keep_the_moments_exactly(rng: np.random.Generator) -> None:
    """Weights are shared out as cubic convolution interpolates: exact for polynomials of degree 3,
    whatever the weights.
    """
    kernel = Kernel(rng.normal(size=(5, 6, 7)) + 0.5)
    made = resample_kernel(kernel, (1.0, 0.5, 0.2), (1.7, 1.1, 1.0))
    assert kernel.weights.min() < 0
    assert made.weights.min() < 0
    for degrees in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (2, 0, 1), (0, 3, 0), (1, 1, 1), (3, 2, 1)]:
        moments = []
        for weights, spacing in (
            (kernel.weights, (1.0, 0.5, 0.2)),
            (made.weights, (1.7, 1.1, 1.0)),
        ):
            powers = [
                ((np.arange(k) - (k - 1) / 2) * step) ** degree
                for k, step, degree in zip(weights.shape, spacing, degrees, strict=True)
            ]
            moments.append(float(np.einsum("dhw,d,h,w->", weights, *powers)))
        assert moments[1] == pytest.approx(moments[0], rel=1e-9, abs=1e-9)


def test_the_anchor_is_in_the_middle() -> None:
    weights = np.zeros((5, 5, 5))
    weights[1, 2, 3] = 1
    made = resample_kernel(Kernel(weights, centre=(1, 2, 3)), (2.0, 2.0, 2.0), (1.0, 2.0, 4.0))
    middle = tuple(k // 2 for k in made.size)
    assert made.centre == (middle[0], 2, middle[2])
    assert np.unravel_index(made.weights.argmax(), made.size) == (middle[0], 2, middle[2])


def test_axes_that_agree_stay_as_they_are(rng: np.random.Generator) -> None:
    kernel = Kernel(rng.random((4, 5, 1)))
    assert np.array_equal(
        resample_kernel(kernel, (2.0, 1.0, 7.0), (2.0, 1.0, 1.0)).weights, kernel.weights
    )
    assert resample_kernel(kernel, (2.0, 1.0, 7.0), (2.0, 2.0, 1.0)).size[::2] == (4, 1)


@pytest.mark.parametrize(
    ("size", "own", "wanted", "axes"),
    [
        ((3, 3, 3), (1.0, 1.0, 1.0), (1.0, 1.009, 1.011), [2]),  # a hundredth of its size
        ((201, 3, 3), (1.0, 1.0, 1.0), (1.002, 1.0, 1.0), [0]),  # a tenth of a voxel at the edge
        ((201, 3, 3), (1.0, 1.0, 1.0), (1.0003, 1.0, 1.0), []),
        ((1, 1, 1), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0), []),  # one voxel has no size
    ],
)
def test_what_counts_as_the_same_spacing(
    size: tuple[int, int, int], own: Floats, wanted: Floats, axes: list[int]
) -> None:
    assert differing_axes(size, own, wanted) == axes


@given(
    weights=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=9),
    own=st.floats(0.05, 20),
    wanted=st.floats(0.05, 20),
)
@settings(max_examples=examples(100))
def test_the_sum_stays_for_any_weights(weights: list[float], own: float, wanted: float) -> None:
    kernel = Kernel(np.array(weights).reshape(1, 1, -1))
    made = resample_kernel(kernel, (1.0, 1.0, own), (1.0, 1.0, wanted))
    assert np.isfinite(made.weights).all()
    assert abs(made.sum - kernel.sum) <= 1e-9 * max(
        np.abs(made.weights).sum(), np.abs(kernel.weights).sum()
    )


def test_cubic_is_an_interpolator_of_degree_three() -> None:
    x = np.linspace(-0.5, 0.5, 11)
    at = np.arange(-4, 5)
    factors = cubic(x[:, None] - at)
    for degree in range(4):
        np.testing.assert_allclose(factors @ (at.astype(float) ** degree), x**degree, atol=1e-12)


def test_far_apart_spacings_are_quick_and_bounded() -> None:
    kernel = Kernel(np.ones((9, 9, 9)))
    assert resample_kernel(kernel, (1.0, 1.0, 1.0), (1e9, 1e9, 1e9)).size == (7, 7, 7)
    for wanted in (1e-3, 1e-12):
        with pytest.raises(
            ShapeError,
            match=r"weights at the volume's spacing, more than 100,000,000; are the units",
        ):
            resample_kernel(kernel, (1.0, 1.0, 1.0), (wanted,) * 3)


def test_what_cannot_be_resampled() -> None:
    with pytest.raises(ShapeError, match="is a layer"):
        resample_kernel(Kernel(np.ones((3, 3, 3, 1, 1))), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    with pytest.raises(ShapeError, match="must be positive"):
        resample_kernel(Kernel(np.ones((3, 3, 3))), (1.0, 1.0, 1.0), (0.0, 2.0, 2.0))

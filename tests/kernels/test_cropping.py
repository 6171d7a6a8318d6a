"""Cropped borders: what is lost, where the centre lies, and that the bound told is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples
from scipy import ndimage

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.kernels import read_kernel
from conv3d_cli.kernels.cropping import crop_kernel
from conv3d_cli.model.kernel import Kernel


def test_borders_of_zeros(rng: np.random.Generator) -> None:
    inner = rng.normal(size=(3, 4, 5))
    cropped = crop_kernel(Kernel(np.pad(inner, ((2, 2), (0, 0), (3, 3)))), 0)
    assert np.array_equal(cropped.kernel.weights, inner)
    assert (cropped.removed, cropped.removed_sum, cropped.error_bound(False)) == ((2, 0, 3), 0, 0)


def test_as_many_from_both_ends() -> None:
    """A border on one side alone stays: without it, the centre and so the output would move."""
    assert crop_kernel(Kernel(np.pad(np.ones((3, 3, 3)), ((5, 2), (0, 4), (1, 0)))), 0).removed == (
        2,
        0,
        0,
    )


def test_the_centre_stays_where_it_is() -> None:
    weights = np.zeros((9, 9, 9))
    weights[3:6, 3:6, 3:6] = 1
    cropped = crop_kernel(Kernel(weights, centre=(4, 2, 6.5)), 0)
    assert cropped.removed == (3, 2, 1)  # no further than the centre
    assert cropped.kernel.centre == (1, 0, 5.5)
    assert crop_kernel(Kernel(np.pad(np.ones((2, 2, 2)), 3)), 0).kernel.size == (2, 2, 2)
    assert crop_kernel(Kernel(np.zeros((5, 5, 5))), 0.1).kernel.size == (5, 5, 5)


@given(
    seed=st.integers(0, 2**32),
    tolerance=st.sampled_from([0, 1e-6, 1e-3, 0.05]),
    normalized=st.booleans(),
)
@settings(max_examples=examples(60))
def test_the_bound_is_kept(seed: int, tolerance: float, normalized: bool) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(int(k) for k in rng.integers(1, 8, 3))
    decay = np.exp(
        -np.sum((np.indices(size) - np.reshape(size, (3, 1, 1, 1)) / 2 + 0.5) ** 2, axis=0)
        * rng.random()
    )
    kernel = Kernel(decay * rng.random(size) * (1 if normalized else rng.choice([-1, 1], size)))
    cropped = crop_kernel(kernel, tolerance)
    assert cropped.removed_sum <= tolerance * np.abs(kernel.weights).sum() * (1 + 1e-12)
    assert np.abs(kernel.weights).sum() - np.abs(cropped.kernel.weights).sum() == pytest.approx(
        cropped.removed_sum, abs=1e-12
    )
    # the worst volume of values up to 1: the sign of what the two kernels differ by
    before = kernel.normalized() if normalized else kernel
    after = cropped.kernel.normalized() if normalized else cropped.kernel
    padded = np.pad(after.weights, [(n, n) for n in cropped.removed])
    assert np.abs(before.weights - padded).sum() <= cropped.error_bound(normalized) + 1e-12


def test_a_wide_gaussian_loses_what_is_told(rng: np.random.Generator) -> None:
    kernel = read_kernel("gaussian:sigma=2vox:truncate=6")
    cropped = crop_kernel(kernel, 1e-4)
    assert kernel.size == (25, 25, 25)
    assert max(cropped.kernel.size) < 20
    x = rng.uniform(-1, 1, (12, 13, 14))
    before, after = (
        ndimage.correlate(x, k.weights, mode="mirror") for k in (kernel, cropped.kernel)
    )
    assert 0 < np.abs(before - after).max() <= cropped.error_bound(False) <= 1e-4


def test_what_is_refused() -> None:
    with pytest.raises(ShapeError, match="is a layer"):
        crop_kernel(Kernel(np.ones((3, 3, 3, 1, 1))), 0)
    for tolerance in (-1e-6, 0.2, float("nan"), float("inf"), "1e-6"):
        with pytest.raises(SpecError, match=r"the part of Σ\|w\| that may be lost"):
            crop_kernel(Kernel(np.ones((3, 3, 3))), tolerance)  # type: ignore[arg-type]


def test_filters_of_a_bank_are_cropped_together() -> None:
    bank = read_kernel("gaussian_derivative:sigma=2vox:axis=dhw:truncate=6")
    cropped = crop_kernel(bank, 1e-6)
    assert all(cropped.removed)
    assert cropped.kernel.filter_names == bank.filter_names
    d, h, w = cropped.removed
    assert np.array_equal(cropped.kernel.weights, bank.weights[d:-d, h:-h, w:-w])
    assert 0 < cropped.removed_sum <= 1e-6 * np.abs(bank.weights).sum()

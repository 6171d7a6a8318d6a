"""Generalized cross-validation, held to dense matrices and to SciPy's cosines."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.fft import dctn
from scipy.ndimage import convolve
from scipy.optimize import minimize_scalar

from conv3d_cli.kernels.cross_validation import LEAST, MOST, CrossValidation


def gaussian(*sigma: float) -> Any:
    """A symmetric kernel of the sum 1, which reaches 2 sigma."""
    lines = [np.exp(-0.5 * (np.arange(-int(2 * s), int(2 * s) + 1) / s) ** 2) for s in sigma]
    kernel = np.einsum("i,j,k", *lines)
    return kernel / kernel.sum()


def test_the_least_score_is_that_of_dense_matrices() -> None:
    """n |y - A y|² / trace(1 - A)² with A = H (H'H + noise)^-1 H', without the mean of y."""
    rng = np.random.default_rng(5)
    size, kernel = (4, 5, 7), gaussian(0.6, 1.0, 1.2)
    count = int(np.prod(size))
    blur = np.stack(
        [convolve(one.reshape(size), kernel, mode="reflect").ravel() for one in np.eye(count)], 1
    )
    points = np.zeros(size)
    points[2, 1:4, 2:5] = 40
    y = blur @ points.ravel() + 70 + rng.standard_normal(count)
    without_mean = np.eye(count) - 1 / count

    def score(log: float) -> float:
        filtered = blur @ np.linalg.solve(blur.T @ blur + 10**log * np.eye(count), blur.T)
        left = without_mean @ (np.eye(count) - filtered)
        return float(count * np.square(left @ y).sum() / np.trace(left) ** 2)

    expected = minimize_scalar(score, bounds=(-4, 0), method="bounded", options={"xatol": 1e-7})
    found = CrossValidation(kernel, size)
    found.add(y.reshape(size))
    assert found.noise() == pytest.approx(10**expected.x, rel=1e-4)


def test_a_kernel_that_is_not_symmetric() -> None:
    rng = np.random.default_rng(6)
    size, kernel = (4, 5, 6), rng.random((3, 4, 2))
    kernel /= kernel.sum()
    y = rng.random(size)
    power = dctn(y, norm="ortho") ** 2
    transfer = np.abs(np.fft.fftn(kernel, [2 * n for n in size], axes=(0, 1, 2))) ** 2

    def score(noise: float) -> float:
        squares = traces = 0.0
        for signs in itertools.product((1, -1), repeat=3):
            at = np.ix_(*(s * np.arange(n) for s, n in zip(signs, size, strict=True)))
            left = noise / (transfer[at] + noise)
            left[0, 0, 0] = 0
            squares, traces = squares + (left**2 * power).sum(), traces + left.sum()
        return float(squares / traces**2)

    found = CrossValidation(kernel, size)
    found.add(y)
    ratios = [found.score(noise) / score(noise) for noise in (1e-4, 1e-2, 1.0, 30.0)]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)


def test_brightness_and_contrast_do_not_matter() -> None:
    rng = np.random.default_rng(7)
    y = convolve(rng.random((9, 10, 11)) ** 8, gaussian(1, 1, 1), mode="reflect")
    y += 0.01 * rng.standard_normal(y.shape)
    found = []
    for block in (y, 300 * y, y + 1000):
        one = CrossValidation(gaussian(1, 1, 1), y.shape)
        one.add(block)
        found.append(one.noise())
    assert LEAST < found[0] < MOST
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_a_constant_does_not_vary() -> None:
    found = CrossValidation(gaussian(1, 1, 1), (6, 7, 8))
    found.add(np.full((6, 7, 8), 1e6 / 3))
    assert not found.varies
    found.add(np.arange(336.0).reshape(6, 7, 8))
    assert found.varies

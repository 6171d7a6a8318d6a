"""Small systems and directions against LAPACK and BLAS."""

from __future__ import annotations

import numpy as np
import pytest

from conv3d_cli.system import linear

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_solve_and_inverse(size: int) -> None:
    matrix, right = RNG.standard_normal((size, size)), RNG.standard_normal((size, 2))
    np.testing.assert_allclose(
        linear.solve(matrix, right), np.linalg.solve(matrix, right), rtol=1e-9
    )
    np.testing.assert_allclose(linear.inverse(matrix) @ matrix, np.eye(size), atol=1e-9)
    np.testing.assert_array_equal(linear.inverse(np.diag([2.0] * size)), np.diag([0.5] * size))


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), [[1, 2], [2, 4]], [[np.nan]]])
def test_a_singular_matrix(matrix: object) -> None:
    with pytest.raises(np.linalg.LinAlgError):
        linear.inverse(matrix)


def test_combinations() -> None:
    a, b = RNG.standard_normal((4, 3)), RNG.standard_normal((3, 2, 5))
    np.testing.assert_allclose(linear.combine(a, b), np.tensordot(a, b, 1), rtol=1e-12)
    c = RNG.standard_normal((2, 2, 5))
    np.testing.assert_allclose(
        linear.inner_products(b, c), np.einsum("aij,bij->ab", b, c), rtol=1e-12
    )


def test_the_nearest_rotation() -> None:
    for _ in range(20):
        matrix = np.eye(3) + 0.4 * RNG.standard_normal((3, 3))
        left, _, right = np.linalg.svd(matrix)
        np.testing.assert_allclose(linear.nearest_rotation(matrix), left @ right, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_leading_directions_are_singular_vectors(rank: int) -> None:
    for scale in (1.0, 1e-30, 1e20):
        lines = scale * (RNG.standard_normal((9, rank)) @ RNG.standard_normal((rank, 77)))
        lines += 1e-9 * scale * RNG.standard_normal(lines.shape)
        expected = np.linalg.svd(lines, full_matrices=False)[0].T[:rank]
        found = linear.leading_directions(lines, rank)
        signs = np.sign((found * expected).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(found * signs, expected, atol=1e-7)
        np.testing.assert_allclose(found @ found.T, np.eye(rank), atol=1e-14)


def test_what_pivots_leave_is_near_the_least_that_can_be_left() -> None:
    for _ in range(20):
        lines = RNG.standard_normal((7, 30)) * np.logspace(0, -6, 7)[:, None]
        values = np.linalg.svd(lines, compute_uv=False)
        for count, left in enumerate(linear.remainders(lines, 4)):
            least = np.sqrt(np.square(values[count:]).sum())
            assert least * (1 - 1e-9) <= left <= least * 2**count * np.sqrt(7)


def test_there_are_no_more_directions_than_the_rank() -> None:
    assert linear.leading_directions(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]), 2).shape == (1, 2)
    assert linear.leading_directions(np.zeros((2, 3)), 1).shape == (0, 2)

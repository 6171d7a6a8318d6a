"""Sums of products and small systems of equations, with the same bits on every machine.

BLAS, LAPACK and `einsum` order their sums, and merge products with them, as it suits the CPU.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def combine(matrix: ArrayLike, parts: ArrayLike) -> Matrix:
    """Sum over b of matrix[a, b] * parts[b]: the matrix product, if the parts are numbers or rows.

    matrix : (m, n)
    parts : (n, ...)
    Returns (m, ...).

    >>> combine([[1, 2], [0, 1]], [[1, 0], [10, 5]]).tolist()
    [[21.0, 10.0], [10.0, 5.0]]
    """
    factors, terms = np.asarray(matrix, np.float64), np.asarray(parts, np.float64)
    sums = np.zeros((len(factors), *terms.shape[1:]))
    for row, total in zip(factors.tolist(), sums, strict=True):
        for factor, term in zip(row, terms, strict=True):
            total += factor * term
    return sums


def inner_products(first: ArrayLike, second: ArrayLike) -> Matrix:
    """The sums of first[a] * second[b] over all their elements.

    first : (m, ...)
    second : (n, ...)
    Returns (m, n).

    >>> inner_products([[1, 2], [0, 1]], [[1, 10]]).tolist()
    [[21.0], [10.0]]
    """
    left, right = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return np.array([[float((a * b).sum()) for b in right] for a in left])


def solve(matrix: ArrayLike, right: ArrayLike) -> Matrix:
    """x of matrix @ x = right, by Gauss and Jordan's elimination with the largest pivots.

    matrix : (n, n)
    right : (n,) or (n, m)
    Raises: numpy.linalg.LinAlgError if the matrix is singular.

    >>> solve([[0, 2], [1, 0]], [4, 3]).tolist()
    [3.0, 2.0]
    """
    rows = np.array(matrix, np.float64)
    values = np.array(right, np.float64)
    for column in range(len(rows)):
        pivot = column + int(np.abs(rows[column:, column]).argmax())
        if not abs(rows[pivot, column]) > 0:
            raise np.linalg.LinAlgError("Singular matrix")
        for array in (rows, values):
            array[[column, pivot]] = array[[pivot, column]]
        values[column] /= rows[column, column]
        rows[column] /= rows[column, column]
        for other in range(len(rows)):
            if other != column:
                values[other] -= rows[other, column] * values[column]
                rows[other] -= rows[other, column] * rows[column]
    return values


def inverse(matrix: ArrayLike) -> Matrix:
    """The inverse of a matrix (n, n).

    Raises: numpy.linalg.LinAlgError if the matrix is singular.

    >>> inverse([[0, 2], [1, 0]]).tolist()
    [[0.0, 1.0], [0.5, 0.0]]
    """
    return solve(matrix, np.eye(len(np.asarray(matrix))))


def length(vector: ArrayLike) -> float:
    """The Euclidean length of a vector.

    >>> length([3, 4])
    5.0
    """
    return float(np.sqrt(np.square(np.asarray(vector, np.float64)).sum()))


def nearest_rotation(matrix: ArrayLike) -> Matrix:
    """The orthogonal matrix nearest to an invertible one: the orthogonal factor of its polar form.

    Newton's iteration: the mean of a matrix and its transposed inverse (Higham 1986).

    >>> nearest_rotation([[0, 2], [-3, 0]]).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    found = np.array(matrix, np.float64)
    for _ in range(100):
        following = 0.5 * (found + inverse(found).T)
        change = float(np.abs(following - found).max())
        found = following
        if change <= 4 * float(np.finfo(np.float64).eps):
            break
    return found


def remainders(lines: Matrix, most: int) -> list[float]:
    """The root of the sum of squares that 0, 1, ... `most` pivot columns leave of a matrix (n, m).

    No other directions, as many, leave less than this divided by 2^count * sqrt(n).

    >>> [round(left, 3) for left in remainders(np.array([[3.0, 3.0], [0.0, 4.0]]), 1)]
    [5.831, 2.4]
    """
    return _pivots(lines, most)[1]


def _pivots(lines: Matrix, count: int) -> tuple[Matrix, list[float]]:
    """Gram and Schmidt's basis of the largest columns, and what 0, 1, ... of them leave over."""
    rest, basis = lines.copy(), np.zeros((0, len(lines)))
    sizes = np.square(rest).sum(axis=0)
    left = [float(np.sqrt(sizes.sum()))]
    for _ in range(count):
        longest = rest[:, int(sizes.argmax())]
        basis, before = _orthonormal([*basis, longest], len(lines)), len(basis)
        if len(basis) == before:
            left += [left[-1]] * (count + 1 - len(left))
            break
        rest -= basis[-1][:, None] * (basis[-1][:, None] * rest).sum(axis=0)
        sizes = np.square(rest).sum(axis=0)
        left.append(float(np.sqrt(sizes.sum())))
    return basis, left


def leading_directions(lines: Matrix, count: int) -> Matrix:
    """The first left singular vectors of a matrix (n, m), as the rows of (count, n).

    There are fewer if the matrix has a lower rank. They come from one step of subspace iteration,
    so they are exact if the singular values behind them are small, as those of rounding are.

    >>> leading_directions(np.array([[3.0, 0.0], [0.0, 4.0]]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    basis, _ = _pivots(lines, count)
    for _ in range(2):
        across = [(direction[:, None] * lines).sum(axis=0) for direction in basis]
        basis = _orthonormal([(line * lines).sum(axis=1) for line in across], len(lines))
    across = [(direction[:, None] * lines).sum(axis=0) for direction in basis]
    return combine(_principal_axes(inner_products(across, across)), basis) if across else basis


def _orthonormal(vectors: list[Matrix], size: int) -> Matrix:
    """Gram and Schmidt's basis (k, size), each vector cleared twice; those of length 0 left out."""
    basis: list[Matrix] = []
    for vector in vectors:
        before = length(vector)
        if not before > 0:
            continue
        found = vector / before
        for _ in range(2):
            for other in basis:
                found = found - other * (other * found).sum()
        left = length(found)
        if left > 1e-14:
            basis.append(found / left)
    return np.array(basis).reshape(len(basis), size)


def _principal_axes(matrix: Matrix) -> Matrix:
    """The eigenvectors of a small symmetric matrix, as rows, by falling eigenvalue (Jacobi)."""
    values = matrix.tolist()  # plain numbers: NumPy would take longer to be called
    size = len(values)
    axes = np.eye(size).tolist()
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
    for _ in range(20):
        if all(values[i][j] ** 2 <= 1e-30 * values[i][i] * values[j][j] for i, j in pairs):
            break
        for i, j in pairs:
            if values[i][j] == 0:
                continue
            slope = (values[j][j] - values[i][i]) / (2 * values[i][j])
            tangent = (1 if slope >= 0 else -1) / (abs(slope) + math.sqrt(1 + slope * slope))
            cosine = 1 / math.sqrt(1 + tangent * tangent)
            sine = tangent * cosine
            for rows in (values, axes):
                rows[i], rows[j] = (
                    [cosine * a - sine * b for a, b in zip(rows[i], rows[j], strict=True)],
                    [sine * a + cosine * b for a, b in zip(rows[i], rows[j], strict=True)],
                )
            for row in values:
                row[i], row[j] = cosine * row[i] - sine * row[j], sine * row[i] + cosine * row[j]
    order = sorted(range(size), key=lambda n: -values[n][n])
    return np.array([axes[n] for n in order])

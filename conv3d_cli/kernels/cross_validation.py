"""How much noise to expect of blurred data: generalized cross-validation of Wiener's filter.

The blur is diagonal in the cosines of a volume that is mirrored at its edges, so each cosine has a
residual of its own, and no voxel needs to be left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.model.kernel import Weights
from conv3d_cli.model.spec import Triple
from conv3d_cli.system import elementary

Reals = NDArray[np.float64]

# The powers of noise to signal that are tried: first this many to a decade, then between them.
LEAST, MOST, TO_DECADE = 1e-6, 1e2, 8
BYTES_EACH = 96  # of memory for a voxel of a block, at the most


class CrossValidation:
    """Finds the power of noise to signal at which Wiener's filter predicts blurred data best.

    Of a block y of n voxels without its mean, and of A, what blurs again what the filter made of
    it, that is where n · |y - A y|² / trace(1 - A)² is least. The squares and traces of several
    blocks of one size are added up. Neither the brightness nor the contrast of the data matters.

    kernel : (kd, kh, kw)   of the sum 1
    size : (d, h, w)        of the blocks

    Source: G. Golub, M. Heath, G. Wahba, Generalized cross-validation as a method for choosing a
    good ridge parameter, Technometrics 21 (1979) 215-223.

    >>> rng = np.random.default_rng(1)
    >>> points = np.zeros((1, 1, 200)); points[0, 0, 7::9] = 30
    >>> y = points + np.roll(points, 1, 2) + np.roll(points, -1, 2) + rng.normal(size=points.shape)
    >>> found = CrossValidation(np.full((1, 1, 3), 1 / 3), points.shape)
    >>> found.add(y)
    >>> 0.003 < found.noise() < 0.03
    True
    """

    def __init__(self, kernel: Weights, size: Triple) -> None:
        self.size = size
        self._powers = _transfer_powers(kernel, size)
        self._data = np.zeros(size)

    def add(self, block: Reals) -> None:
        """Add a block (d, h, w) of finite voxels."""
        for axis in range(3):
            block = _cosines(block, axis)
        self._data += np.square(block)

    @property
    def varies(self) -> bool:
        """Whether the data are more than a constant, up to rounding."""
        whole = elementary.total(self._data)
        return whole - float(self._data[0, 0, 0]) > whole * 1e-20

    def score(self, noise: float) -> float:
        """What is to be least, up to a constant factor."""
        squares = traces = 0.0
        for power in self._powers:
            left = noise / (power + noise)
            left[0, 0, 0] = 0  # the mean is no matter of the filter
            traces += elementary.total(left)
            squares += elementary.total(np.square(left) * self._data)
        return squares / traces**2 if traces else math.inf

    def noise(self) -> float:
        """The power of noise to signal at which the score is least: from `LEAST` to `MOST`."""
        first, last = math.log10(LEAST), math.log10(MOST)
        tried = np.linspace(first, last, round((last - first) * TO_DECADE) + 1)
        best = int(np.argmin([self.score(10.0**log) for log in tried]))
        if best in (0, len(tried) - 1):
            return LEAST if best == 0 else MOST
        low, high = float(tried[best - 1]), float(tried[best + 1])
        golden = (math.sqrt(5) - 1) / 2
        inner = [high - golden * (high - low), low + golden * (high - low)]
        scores = [self.score(10.0**log) for log in inner]
        while high - low > 1e-6:
            if scores[0] <= scores[1]:
                high, inner[1], scores[1] = inner[1], inner[0], scores[0]
                inner[0] = high - golden * (high - low)
                scores[0] = self.score(10.0 ** inner[0])
            else:
                low, inner[0], scores[0] = inner[0], inner[1], scores[1]
                inner[1] = low + golden * (high - low)
                scores[1] = self.score(10.0 ** inner[1])
        return float(10.0 ** ((low + high) / 2))


def _transfer_powers(kernel: Weights, size: Triple) -> list[Reals]:
    """|H|² at the cosines of a block: one for each direction in which their waves go."""
    waves = [
        np.exp(-1j * math.pi * np.outer(np.arange(n), np.arange(taps)) / n)
        for n, taps in zip(size, kernel.shape, strict=True)
    ]
    found = []
    # waves that go the other way along an axis are other ones, unless there is only one
    ways = [[w, w.conj()] if min(w.shape) > 1 else [w] for w in waves[:2]]
    for d, h in itertools.product(*ways):
        along = np.tensordot(d, kernel.astype(np.complex128), (1, 0))
        along = np.tensordot(along, h, (1, 1))  # (d, kw, h)
        found.append(np.square(np.abs(np.tensordot(along, waves[2], (1, 1)))))
    return found


def _cosines(block: Reals, axis: int) -> Reals:
    """The amplitudes of cosines along an axis, of which each has the norm 1 (DCT-II)."""
    n = block.shape[axis]
    mirrored = np.concatenate([block, np.flip(block, axis)], axis)
    spectrum = np.fft.rfft(mirrored, axis=axis).take(range(n), axis)
    shape: Sequence[int] = [n if a == axis else 1 for a in range(3)]
    turn = np.exp(-0.5j * math.pi * np.arange(n) / n) / math.sqrt(2 * n)
    turn[0] /= math.sqrt(2)
    return np.asarray((spectrum * turn.reshape(shape)).real)

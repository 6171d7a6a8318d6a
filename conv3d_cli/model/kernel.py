"""The weights: what is multiplied with the volume, and the facts about them that people and planners ask for.

A 3-D kernel (kd, kh, kw) is a filter, applied to every channel and time point separately; a bank (kd, kh, kw, filters) is
several of them, each with a name, which make several channels of each; a 5-D one (kd, kh, kw, in_channels/groups, filters) is
a Conv3D layer. Axes are D, H, W. Reading files and building named kernels
is the work of `kernels/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.grid import Grid

Weights = NDArray[np.float64]

# what is, with its cure
BEYOND = "beyond {0}; compute in float64 (--precision float64 --dtype float64; in Python, on float64 arrays)"


@dataclass(frozen=True, eq=False)
class Kernel:
    """Weights, bias and anchor of a convolution.

    weights : (kd, kh, kw), (kd, kh, kw, filters) or (kd, kh, kw, in_channels/groups, filters) floats, finite
    bias : (filters,) floats or None        also one number, which all filters share
    centre : (d, h, w) floats or None       kernel voxel an output voxel lies under; None: the middle, (k - 1) / 2
    name : str                              what messages call it
    filter_names : tuple of str             of a bank; without them 4-D weights are refused
    built : str                             how it was made for its volume, for people
    grid : Grid or None                     of the file it was read from: how large its voxels are there

    Raises ShapeError for a wrong rank, an empty kernel, or weights that are NaN or infinite.
    >>> Kernel(np.ones((3, 3, 3)) / 2).sum
    13.5
    """

    weights: Weights
    bias: Weights | None = None
    centre: tuple[float, float, float] | None = None
    name: str = "kernel"
    filter_names: tuple[str, ...] = ()
    built: str = ""
    grid: Grid | None = None

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights)
        if weights.dtype.kind not in "buif":
            raise ShapeError(
                f"kernel {self.name} must hold real numbers, received dtype {weights.dtype}"
            )
        bank = weights.ndim == 4 and len(self.filter_names) == weights.shape[3]
        if weights.ndim not in (3, 5) and not bank:
            cure = (
                f"; give it the shape {(1,) * (3 - weights.ndim) + weights.shape}"
                if weights.ndim < 3
                else ""
            )
            raise ShapeError(
                f"kernel {self.name} must be 3-D (depth, height, width) or 5-D (depth, height, width, in_channels/groups, "
                f"filters), received {weights.ndim}-D with shape {weights.shape}{cure}"
            )
        if weights.size == 0:
            raise ShapeError(f"kernel {self.name} is empty, shape {weights.shape}")
        weights = _as_doubles(weights)
        _require_finite(weights, f"kernel {self.name}")
        object.__setattr__(self, "weights", weights)
        if self.bias is not None:
            bias = np.atleast_1d(np.asarray(self.bias))
            if bias.dtype.kind not in "buif" and bias.size:
                raise ShapeError(
                    f"the bias of kernel {self.name} must hold real numbers, received dtype {bias.dtype}"
                )
            bias = _as_doubles(bias)
            _require_finite(bias, f"the bias of kernel {self.name}")
            expected = {1, weights.shape[4]} if weights.ndim == 5 else {1} if bank else None
            if bias.ndim != 1 or bias.size == 0 or (expected and bias.size not in expected):
                filters = (
                    weights.shape[4]
                    if weights.ndim == 5
                    else "of a bank: 1"
                    if bank
                    else "one a channel"
                )
                raise ShapeError(
                    f"the bias of kernel {self.name} must be one number a filter ({filters}), received shape {bias.shape}"
                )
            object.__setattr__(self, "bias", bias)
        if self.centre is not None:
            if len(self.centre) != 3 or not all(
                0 <= c <= k - 1 for c, k in zip(self.centre, self.size, strict=True)
            ):
                raise ShapeError(
                    f"the centre of kernel {self.name} must lie inside its size {self.size}, received {tuple(self.centre)}"
                )
            d, h, w = map(float, self.centre)
            object.__setattr__(self, "centre", (d, h, w))

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along D, H, W."""
        d, h, w = self.weights.shape[:3]
        return d, h, w

    @property
    def is_layer(self) -> bool:
        """True for a 5-D kernel, which mixes channels."""
        return self.weights.ndim == 5

    @property
    def is_bank(self) -> bool:
        """True for a 4-D kernel: each of its filters makes a channel of each channel."""
        return self.weights.ndim == 4

    @property
    def filters_per_channel(self) -> int:
        """Output channels for one of the input's, where it does not mix them."""
        return self.weights.shape[3] if self.is_bank else 1

    def as_layer(self) -> Kernel:
        """A filter or a bank as the Conv3D layer it is for a volume of one channel."""
        return replace(self, weights=self.for_channels(1), filter_names=())

    @property
    def sum(self) -> float:
        """The sum of all weights: what the kernel makes of a constant volume of 1; infinite if float64 does not hold it.

        >>> Kernel(np.full((3, 3, 3), 0.5)).sum
        13.5
        """
        with np.errstate(over="ignore"):  # infinite then
            return float(self.weights.sum())

    def for_channels(self, channels: int) -> Weights:
        """The weights in 5-D for a volume of `channels`: a 3-D kernel is repeated, without a copy, one filter a channel; of a
        bank all filters of a channel follow one another."""
        if self.is_layer:
            return self.weights
        if self.is_bank:
            return np.tile(self.weights[..., None, :], channels)
        return np.broadcast_to(self.weights[..., None, None], (*self.size, 1, channels))

    def bias_for(self, filters: int) -> Weights | None:
        """One bias a filter, or None.

        Raises: ShapeError if there are neither one nor `filters` of them.
        """
        if self.bias is None:
            return None
        if self.bias.size not in (1, filters):
            raise ShapeError(
                f"the bias has {self.bias.size} values for {filters} output channels; give one, or one a channel"
            )
        return np.broadcast_to(self.bias, (filters,))

    def flipped(self) -> Kernel:
        """Mirrored along D, H and W: correlating with it is convolving with the original."""
        centre = None
        if self.centre is not None:
            d, h, w = (k - 1 - c for k, c in zip(self.size, self.centre, strict=True))
            centre = (d, h, w)
        return replace(self, weights=self.weights[::-1, ::-1, ::-1], centre=centre)

    def normalized(self) -> Kernel:
        """Scaled so that the weights of each filter sum to 1.

        Raises: ShapeError if a sum is zero to rounding.
        """
        axes = (0, 1, 2) if not self.is_layer else (0, 1, 2, 3)
        weights = self.moderate().weights
        sums, absolute = weights.sum(axis=axes), np.abs(weights).sum(axis=axes)
        if np.any(np.abs(sums) <= 1e-12 * absolute):
            raise ShapeError(
                f"kernel {self.name} sums to 0 (as derivatives do), so it cannot be normalized; leave out --normalize, "
                "or pass --no-normalize where --like sets it"
            )
        return replace(self, weights=weights / sums)

    def moderate(self) -> Kernel:
        """The kernel times a power of two that keeps its sums within float64; itself where they are."""
        largest = float(np.abs(self.weights).max())
        if 1e-200 < largest < 1e200 or largest == 0:
            return self
        return replace(self, weights=np.ldexp(self.weights, -math.frexp(largest)[1]))

    def check_range(self, dtype: np.dtype[np.float32 | np.float64]) -> None:
        """That the weights keep their size in the arithmetic's dtype. Raises: SpecError."""
        largest = float(max(self.weights.max(), -self.weights.min()))
        require_held(
            largest, dtype, f"kernel {self.name} has weights of up to {largest:.3g}, which are"
        )
        if (
            abs(float(dtype.type(largest)) - largest) > 1e-6 * largest
        ):  # few digits are left of so small a number, or none
            raise SpecError(
                f"kernel {self.name} has weights of {largest:.3g} at most, which are {BEYOND.format(dtype)}"
            )

    def separable_rank(self, tolerance: float = 1e-7) -> int | None:
        """1 if a 3-D kernel is an outer product of three vectors, within `tolerance` of its norm; else the larger rank of
        its two unfoldings (a lower bound of the number of separable terms). Of a bank, the largest; None for a layer.

        >>> Kernel(np.ones((3, 3, 3))).separable_rank()
        1
        """
        if self.is_layer:
            return None
        d, h, w = self.size
        ranks = [1]
        for one in np.moveaxis(self.weights.reshape(d, h, w, -1), 3, 0):
            for matrix in (one.reshape(d, h * w), one.reshape(d * h, w)):
                values = np.linalg.svd(matrix, compute_uv=False)
                ranks.append(int(np.sum(values > tolerance * max(values[0], 1e-300))))
        return max(ranks)

    def symmetries(self) -> tuple[bool, bool, bool]:
        """Whether mirroring along D, H, W leaves the weights as they are (to 1e-9 of the largest)."""
        tolerance = 1e-9 * float(np.abs(self.weights).max())
        d, h, w = (
            bool(np.allclose(self.weights, np.flip(self.weights, axis), rtol=0, atol=tolerance))
            for axis in range(3)
        )
        return d, h, w

    def fwhm(self) -> tuple[float | None, float | None, float | None]:
        """Full width at half maximum in voxels along D, H, W of the profile (the sum over the other axes), by linear
        interpolation; None where the profile is not a single positive bump."""
        weights = self.weights.sum(axis=tuple(range(3, self.weights.ndim)))
        d, h, w = (
            _profile_width(weights.sum(axis=tuple(other for other in range(3) if other != axis)))
            for axis in range(3)
        )
        return d, h, w


def require_held(value: float, dtype: np.dtype[np.float32 | np.float64], what: str) -> None:
    """That a finite number stays finite in a dtype; `what` is the subject of the message, and its verb.

    Raises: SpecError.
    >>> require_held(1e30, np.dtype(np.float32), "the bias is")
    """
    if float(np.finfo(dtype).max) < abs(value) < math.inf:
        raise SpecError(f"{what} {BEYOND.format(dtype)}")


def _profile_width(profile: Weights) -> float | None:
    peak = int(profile.argmax())
    half = profile[peak] / 2
    if profile[peak] <= 0 or profile.size < 3:
        return None
    padded = np.concatenate([[0.0], profile, [0.0]])
    peak += 1
    if np.any(np.diff(padded[: peak + 1]) < 0) or np.any(np.diff(padded[peak:]) > 0):
        return None
    left = int(np.nonzero(padded[:peak] < half)[0][-1])
    right = peak + int(np.nonzero(padded[peak:] < half)[0][0])
    rise, fall = padded[left + 1] - padded[left], padded[right - 1] - padded[right]
    return float((right - (half - padded[right]) / fall) - (left + (half - padded[left]) / rise))


def _as_doubles(values: Weights) -> Weights:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused next
        return values.astype(np.float64)


def _require_finite(values: Weights, what: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        where: Sequence[int] = [int(i) for i in np.argwhere(bad)[0]]
        raise ShapeError(
            f"{what} must hold finite numbers, received {int(bad.sum())} NaN or infinite (the first at {tuple(where)})"
        )

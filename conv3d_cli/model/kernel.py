"""`Kernel`: the weights of a convolution, and facts about them for planners and people.

A 3-D kernel (kd, kh, kw) is a filter, applied to every channel and time point separately. A bank
(kd, kh, kw, filters) is several named filters, each of which makes a channel from every channel. A
5-D kernel (kd, kh, kw, in_channels/groups, filters) is a Conv3D layer. Axes are D, H, W. `kernels/`
reads kernel files and builds named kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, setting, words
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import layout_hint
from conv3d_cli.system import elementary
from conv3d_cli.system.words import count_of

Weights = NDArray[np.float64]

RIPPLE = 0.02  # part of a profile's peak that does not count as another peak


@dataclass(frozen=True, eq=False)
class Kernel:
    """Weights, bias and anchor of a convolution.

    weights : finite numbers, stored as float64, of shape (kd, kh, kw), (kd, kh, kw, filters) or
        (kd, kh, kw, in_channels/groups, filters)
    bias : (filters,) numbers or one that all filters share, stored as float64; or None
    centre : (d, h, w) floats or None; the position in the kernel that lies on the output voxel.
        None: the middle, (k - 1) / 2
    name : str, for messages
    filter_names : tuple of str, one for each filter of a bank; 4-D weights need them
    built : str, how the kernel was made for its volume, for people
    grid : Grid or None, the geometry of the file that the kernel was read from
    notes : tuple of str, on how that file was understood

    Raises: ShapeError for a wrong rank, an empty kernel, weights that are NaN or infinite, a bias
        that fits no filter, or a centre outside the kernel.
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
    notes: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """The kernel in messages: with its name, if it has one of its own."""
        return "the kernel" if self.name == "kernel" else f"kernel {self.name}"

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights)
        if weights.dtype.kind not in "buif":
            raise ShapeError(not_real(self.title, weights.dtype))
        bank = weights.ndim == 4 and len(self.filter_names) == weights.shape[3]
        if weights.ndim not in (3, 5) and not bank:
            volume_shape = (1,) * (3 - weights.ndim) + weights.shape
            cure = f"; give it the shape {volume_shape}" if weights.ndim < 3 else ""
            raise ShapeError(
                f"{self.title} must be 3-D (depth, height, width) or 5-D "
                "(depth, height, width, in_channels/groups, filters), "
                f"received {weights.ndim}-D with shape {weights.shape}{cure}"
            )
        if weights.size == 0:
            raise ShapeError(f"{self.title} is empty, shape {weights.shape}; it needs a weight")
        weights = _as_doubles(weights)
        _require_finite(weights, self.title)
        object.__setattr__(self, "weights", weights)
        if self.bias is not None:
            bias = np.atleast_1d(np.asarray(self.bias))
            if bias.dtype.kind not in "buif" and bias.size:
                raise ShapeError(not_real(f"the bias of {self.title}", bias.dtype))
            bias = _as_doubles(bias)
            _require_finite(bias, f"the bias of {self.title}")
            expected = {1, weights.shape[4]} if weights.ndim == 5 else {1} if bank else None
            if bias.ndim != 1 or bias.size == 0 or (expected and bias.size not in expected):
                if weights.ndim == 5:
                    rule = f"one number for each filter ({weights.shape[4]})"
                else:
                    rule = "one number" if bank else "one number, or one for each channel"
                hint = layout_hint(weights.shape, filters=bias.size)
                raise ShapeError(
                    f"the bias of {self.title} must be {rule}, received shape {bias.shape}{hint}"
                )
            object.__setattr__(self, "bias", bias)
        if self.centre is not None:
            if len(self.centre) != 3 or not all(
                0 <= c <= k - 1 for c, k in zip(self.centre, self.size, strict=True)
            ):
                raise ShapeError(
                    f"the centre of {self.title} must lie inside its size {self.size}, "
                    f"received {tuple(self.centre)}"
                )
            d, h, w = map(float, self.centre)
            object.__setattr__(self, "centre", (d, h, w))

    @property
    def title(self) -> str:
        """The kernel in messages: "kernel psf.tif", or "the kernel" if it has no name."""
        return "the kernel" if self.name == "kernel" else f"kernel {self.name}"

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
        """True for a 4-D kernel: each of its filters makes a channel from every channel."""
        return self.weights.ndim == 4

    @property
    def filters_per_channel(self) -> int:
        """Output channels for each input channel of a filter or a bank; 1 for a layer, too."""
        return self.weights.shape[3] if self.is_bank else 1

    def as_layer(self) -> Kernel:
        """A filter or a bank as the equivalent Conv3D layer for a volume of one channel.

        >>> Kernel(np.ones((3, 3, 3))).as_layer().weights.shape
        (3, 3, 3, 1, 1)
        """
        return replace(self, weights=self.for_channels(1), filter_names=())

    @property
    def sum(self) -> float:
        """The sum of all weights, which is the response to a constant volume of 1.

        Infinite if it is beyond float64.
        >>> Kernel(np.full((3, 3, 3), 0.5)).sum
        13.5
        """
        with np.errstate(over="ignore"):
            return elementary.total(self.weights)

    def for_channels(self, channels: int) -> Weights:
        """The weights in 5-D, (kd, kh, kw, in_channels/groups, filters), for a volume.

        channels : int, of the volume. A filter is repeated for each of them, as a view; a bank is
            repeated as a whole, so that the output channels of an input channel are adjacent. The
            weights of a layer do not depend on it.
        >>> Kernel(np.ones((3, 3, 3))).for_channels(2).shape
        (3, 3, 3, 1, 2)
        """
        if self.is_layer:
            return self.weights
        if self.is_bank:
            return np.tile(self.weights[..., None, :], channels)
        return np.broadcast_to(self.weights[..., None, None], (*self.size, 1, channels))

    def bias_for(self, filters: int) -> Weights | None:
        """The bias (filters,), or None.

        Raises: ShapeError unless the kernel has one number, or `filters` of them.
        """
        if self.bias is None:
            return None
        if self.bias.size not in (1, filters):
            raise ShapeError(
                f"the bias has {count_of(self.bias.size, 'value')} for "
                f"{count_of(filters, 'output channel')}; "
                "give one value, or one for each channel"
            )
        return np.broadcast_to(self.bias, (filters,))

    def flipped(self) -> Kernel:
        """The kernel mirrored along D, H and W: correlation with it is convolution with `self`."""
        centre = None
        if self.centre is not None:
            d, h, w = (k - 1 - c for k, c in zip(self.size, self.centre, strict=True))
            centre = (d, h, w)
        return replace(self, weights=self.weights[::-1, ::-1, ::-1], centre=centre)

    def normalized(self) -> Kernel:
        """The kernel scaled so that the weights of each filter sum to 1.

        Raises: ShapeError if a sum is zero up to rounding.
        """
        axes = (0, 1, 2) if not self.is_layer else (0, 1, 2, 3)
        weights = self.moderate().weights
        sums, absolute = weights.sum(axis=axes), np.abs(weights).sum(axis=axes)
        if np.any(np.abs(sums) <= 1e-12 * absolute):
            raise ShapeError(
                f"{self.title} sums to 0 (as derivatives do), so it cannot be normalized; "
                f"leave out {setting('normalize', True)}, or pass {setting('normalize', False)} "
                f"where {setting('like')} sets it"
            )
        return replace(self, weights=weights / sums)

    def moderate(self) -> Kernel:
        """The kernel times a power of two that keeps sums of its weights within float64.

        The kernel itself if its weights are neither very large nor very small.
        """
        largest = float(np.abs(self.weights).max())
        if 1e-200 < largest < 1e200 or largest == 0:
            return self
        return replace(self, weights=np.ldexp(self.weights, -math.frexp(largest)[1]))

    def check_range(self, dtype: np.dtype[np.float32 | np.float64]) -> None:
        """Check that the largest weight neither overflows nor underflows in `dtype`.

        dtype : of the arithmetic
        Raises: SpecError.
        >>> Kernel(np.full((3, 3, 3), 1e30)).check_range(np.dtype(np.float32))
        """
        largest = float(max(self.weights.max(), -self.weights.min()))
        require_finite_in(
            largest, dtype, f"{self.title} has weights of up to {largest:.3g}, which are"
        )
        # a number near the lower end of the range keeps few digits, or becomes 0
        if abs(float(dtype.type(largest)) - largest) > 1e-6 * largest:
            raise SpecError(
                f"{self.title} has weights of {largest:.3g} at most, which are {_beyond(dtype)}"
            )

    def separable_rank(self, tolerance: float = 1e-7) -> int | None:
        """A lower bound of the number of separable terms that make up the kernel.

        tolerance : float, relative to the largest singular value
        Returns 1 for a 3-D kernel that is an outer product of three vectors, else the larger rank
        of its two unfoldings. The largest over the filters of a bank; None for a layer.
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
        """Whether mirroring along D, H, W leaves the weights unchanged (to 1e-9 of the largest).

        >>> Kernel(np.arange(27.0).reshape(3, 3, 3) % 3).symmetries()
        (True, True, False)
        """
        tolerance = 1e-9 * float(np.abs(self.weights).max())
        d, h, w = (
            bool(np.allclose(self.weights, np.flip(self.weights, axis), rtol=0, atol=tolerance))
            for axis in range(3)
        )
        return d, h, w

    def fwhm(self) -> tuple[float | None, float | None, float | None]:
        """Full width at half maximum of the profiles along D, H, W, in voxels.

        A profile is the sum of the weights over the other axes, interpolated linearly unless it is
        a Gaussian. None for a profile that is not a single positive peak. Ripples of up to `RIPPLE`
        of the peak count for nothing, since measured kernels have noise.
        >>> Kernel(np.array([0.0, 1, 2, 1, 0]).reshape(5, 1, 1)).fwhm()
        (2.0, None, None)
        """
        weights = self.weights.sum(axis=tuple(range(3, self.weights.ndim)))
        d, h, w = (
            _profile_width(weights.sum(axis=tuple(other for other in range(3) if other != axis)))
            for axis in range(3)
        )
        return d, h, w


def require_finite_in(value: float, dtype: np.dtype[np.float32 | np.float64], what: str) -> None:
    """Check that a finite number stays finite in a dtype.

    what : subject and verb of the message
    Raises: SpecError.
    >>> require_finite_in(1e30, np.dtype(np.float32), "the bias is")
    """
    if float(np.finfo(dtype).max) < abs(value) < math.inf:
        raise SpecError(f"{what} {_beyond(dtype)}")


def _beyond(dtype: np.dtype[np.float32 | np.float64]) -> str:
    """The end of a message about a number that a dtype cannot represent, with the cure."""
    how = words(
        "--precision float64 --dtype float64",
        "float64 arrays, or precision='float64' and dtype='float64' for files",
    )
    return f"beyond {dtype}; compute in float64 ({how})"


def _profile_width(profile: Weights) -> float | None:
    """Width of a profile (k,) at half its maximum, or None; see `Kernel.fwhm`."""
    peak = int(profile.argmax())
    half = profile[peak] / 2
    if profile[peak] <= 0 or profile.size < 3:
        return None
    padded = np.concatenate([[0.0], profile, [0.0]])
    peak += 1
    ripple = RIPPLE * padded[peak]
    rises, falls = np.diff(padded[: peak + 1]), np.diff(padded[peak:])
    above = np.flatnonzero(padded >= half)
    if rises.min() < -ripple or falls.max() > ripple or padded.min() < -ripple:
        return None
    if np.any(np.diff(above) > 1):
        return None
    left = int(np.nonzero(padded[:peak] < half)[0][-1])
    right = peak + int(np.nonzero(padded[peak:] < half)[0][0])
    rise, fall = padded[left + 1] - padded[left], padded[right - 1] - padded[right]
    linear = (right - (half - padded[right]) / fall) - (left + (half - padded[left]) / rise)
    return _gaussian_width(profile) or float(linear)


def _gaussian_width(profile: Weights) -> float | None:
    """FWHM of the Gaussian that a profile is, to within `RIPPLE` of its peak; None if it is none.

    Its samples seldom include the peak, nor the points at half of it.
    """
    profile = profile / profile.max()
    core = profile > 0.1  # what lies beyond may be cut off, or noise
    if core.sum() < 3 or max(profile[0], profile[-1]) >= 0.5:
        return None
    # the logarithm of a Gaussian is a parabola
    positions = np.arange(profile.size) - float(profile.argmax())
    parabola = np.polyfit(positions[core], np.log(profile[core]), 2, w=profile[core])
    if parabola[0] >= 0:
        return None
    if np.abs(profile - np.exp(np.polyval(parabola, positions))).max() > RIPPLE:
        return None
    return math.sqrt(4 * math.log(2) / -float(parabola[0]))


def _as_doubles(values: Weights) -> Weights:
    with np.errstate(invalid="ignore", over="ignore"):  # `_require_finite` checks the result
        return values.astype(np.float64)


def not_real(what: str, dtype: np.dtype[np.generic]) -> str:
    """The message about weights that are no real numbers, with the cure.

    >>> not_real("kernel k", np.dtype(complex))
    'kernel k must hold real numbers, received dtype complex128; save its real part or magnitude'
    """
    cure = {
        "c": "save its real part or magnitude",
        "U": words("save it as float32", "read_kernel() reads a text"),
    }.get(dtype.kind, "save it as float32")
    return f"{what} must hold real numbers, received dtype {dtype}; {cure}"


def _require_finite(values: Weights, what: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ShapeError(
            f"{what} must hold finite numbers, "
            f"received {int(bad.sum())} NaN or infinite (the first at {first}); correct them"
        )

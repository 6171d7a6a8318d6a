"""Hypothesis strategies: small shapes, legal convolutions, arrays of every real dtype and layout.

Voxels and weights are small whole numbers: their sums are exact in float32, so tests may assert
equality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
from hypothesis import strategies as st

from conv3d_cli.model.spec import Boundary, ConvProblem, ConvSpec

Triple = tuple[int, int, int]

INTEGER_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
REAL_DTYPES = ("bool", *INTEGER_DTYPES, "float16", "float32", "float64", "longdouble")
BOUNDARIES = ("zeros", "constant", "nearest", "symmetric", "mirror", "wrap", "mirror-one")
LAYOUTS = (
    "C",
    "F",
    "shuffled axes",
    "reversed",
    "every other",
    "swapped bytes",
    "unaligned",
    "read-only",
)


def sizes(largest: int = 9) -> st.SearchStrategy[int]:
    """Voxels along an axis: 1 to `largest`, more often odd, since edges differ there."""
    odd = [n for n in (1, 3, 5, 7, 9) if n <= largest]
    return st.one_of(st.sampled_from(odd), st.integers(1, largest))


def shapes(largest: int = 9) -> st.SearchStrategy[Triple]:
    """(depth, height, width)."""
    return st.tuples(sizes(largest), sizes(largest), sizes(largest))


# --------------------------------------------------------------------------------------------------
# Convolutions


@dataclass(frozen=True)
class Geometry:
    """A legal convolution: sizes of volume and kernel, and all parameters.

    size : (D, H, W)        voxels of each of the `batch` volumes
    per_group : int or None channels per group; None for a 3-D kernel (a filter)
    padding                 a name, or three pairs (before, after)
    constant : float        of the boundary "constant"
    """

    batch: int
    size: Triple
    channels: int
    kernel_size: Triple
    per_group: int | None
    filters: int
    groups: int
    strides: Triple
    dilation_rate: Triple
    padding: str | tuple[tuple[int, int], ...]
    boundary: str
    constant: float

    @property
    def in_shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C) of the input."""
        return (self.batch, *self.size, self.channels)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(kd, kh, kw) of a filter, (kd, kh, kw, C / groups, F) of a layer."""
        if self.per_group is None:
            return self.kernel_size
        return (*self.kernel_size, self.per_group, self.filters)

    @property
    def boundary_text(self) -> str:
        """The boundary as the command line writes it."""
        return f"constant={self.constant}" if self.boundary == "constant" else self.boundary

    @property
    def spec(self) -> ConvSpec:
        """The parameters as the package's specification."""
        return ConvSpec(
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            boundary=Boundary(self.boundary, self.constant if self.boundary == "constant" else 0.0),
            allow_strided_dilation=True,
        )

    @property
    def problem(self) -> ConvProblem:
        """The resolved specification."""
        return self.spec.resolve(self.in_shape, self.kernel_shape)

    def by_definition(
        self, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray:
        """The oracle's answer for x (N, D, H, W, C) and a kernel of `kernel_shape`."""
        groups = self.groups
        if self.per_group is None:
            groups = self.channels
            kernel = np.repeat(kernel[..., None, None], self.channels, axis=4)
        return oracle.conv3d(
            x,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            groups=groups,
            boundary=self.boundary,
            constant=self.constant,
        )


@st.composite
def geometries(
    draw: st.DrawFn,
    *,
    largest: int = 9,
    largest_kernel: int = 5,
    largest_stride: int = 4,
    batches: tuple[int, ...] = (1, 2),
    kinds: tuple[str, ...] = ("filter", "layer"),
    boundaries: tuple[str, ...] = BOUNDARIES,
    strided_dilation: bool = True,
) -> Geometry:
    """Legal convolutions with any padding, also with explicit pads far larger than the volume.

    largest, largest_kernel : int       voxels along an axis
    strided_dilation : bool             strides and dilation may both exceed 1, which Keras refuses
    """
    padding = draw(st.sampled_from(["valid", "same", "full", "explicit"]))
    may_stride, may_dilate = True, True
    if not strided_dilation:
        may_stride = draw(st.booleans())
        may_dilate = not may_stride
    size, kernel_size, strides, dilation_rate, pads = [], [], [], [], []
    # one axis may be padded by several times its size
    far = draw(st.sampled_from([None, 0, 1, 2]))
    for axis in range(3):
        n = draw(sizes(largest))
        d = draw(st.integers(1, 3)) if may_dilate else 1
        s = draw(st.integers(1, largest_stride)) if may_stride else 1
        fitting = (n - 1) // d + 1 if padding == "valid" else largest_kernel
        k = draw(st.integers(1, min(fitting, largest_kernel)))
        missing = max(0, (k - 1) * d + 1 - n)  # at least this much padding leaves an output
        most = 3 * largest if axis == far else 2
        before = draw(st.integers(0, most))
        after = draw(st.integers(0, most)) + max(0, missing - before)
        size.append(n)
        kernel_size.append(k)
        strides.append(s)
        dilation_rate.append(d)
        pads.append((before, after))
    boundary = draw(st.sampled_from(boundaries))
    if draw(st.sampled_from(kinds)) == "filter":
        channels = draw(st.integers(1, 3))
        per_group, filters, groups = None, channels, 1
    else:
        groups = draw(st.sampled_from([1, 1, 2, 3]))
        per_group = draw(st.integers(1, 3))
        channels = groups * per_group
        filters = groups * draw(st.integers(1, 3))
    return Geometry(
        batch=draw(st.sampled_from(batches)),
        size=(size[0], size[1], size[2]),
        channels=channels,
        kernel_size=(kernel_size[0], kernel_size[1], kernel_size[2]),
        per_group=per_group,
        filters=filters,
        groups=groups,
        strides=(strides[0], strides[1], strides[2]),
        dilation_rate=(dilation_rate[0], dilation_rate[1], dilation_rate[2]),
        padding=tuple(pads) if padding == "explicit" else padding,
        boundary=boundary,
        constant=float(draw(st.integers(-3, 3))) if boundary == "constant" else 0.0,
    )


# --------------------------------------------------------------------------------------------------
# Arrays


def small_numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Whole numbers from -4 to 4; from 0 to 8 for unsigned dtypes, False and True for bool."""
    numbers = np.random.default_rng(seed).integers(0, 9, shape)
    kind = np.dtype(dtype).kind
    if kind == "b":
        return numbers > 4
    return (numbers if kind == "u" else numbers - 4).astype(dtype)


def laid_out(values: np.ndarray, layout: str, seed: int = 0) -> np.ndarray:
    """An array equal to `values`, with another memory layout: see `LAYOUTS`."""
    if layout == "C":
        return np.ascontiguousarray(values)
    if layout == "F":
        return np.asfortranarray(values)
    if layout == "shuffled axes":
        order = np.random.default_rng(seed).permutation(values.ndim)
        return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    if layout == "reversed":
        return np.flip(np.flip(values).copy())
    if layout == "every other":
        wide = np.ones([2 * n + 1 for n in values.shape], values.dtype)
        inner = wide[tuple(slice(1, 2 * n, 2) for n in values.shape)]
        inner[...] = values
        return inner
    if layout == "swapped bytes":
        return values.astype(values.dtype.newbyteorder("S"))
    if layout == "unaligned":
        memory = np.empty(values.nbytes + 1, np.uint8)[1:]
        moved = memory.view(values.dtype).reshape(values.shape)
        moved[...] = values
        return moved
    assert layout == "read-only", layout
    fixed = values.copy()
    fixed.flags.writeable = False
    return fixed


@st.composite
def arrays(
    draw: st.DrawFn,
    shape: tuple[int, ...],
    dtypes: tuple[str, ...] = REAL_DTYPES,
    layouts: tuple[str, ...] = LAYOUTS,
) -> np.ndarray:
    """Small whole numbers in any real dtype and memory layout."""
    seed = draw(st.integers(0, 999))
    values = small_numbers(shape, draw(st.sampled_from(dtypes)), seed)
    return laid_out(values, draw(st.sampled_from(layouts)), seed)


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    """Small whole numbers in float64."""
    return small_numbers(shape, "float64", draw(st.integers(0, 999)))

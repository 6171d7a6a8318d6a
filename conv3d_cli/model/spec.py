"""What a convolution is asked to be (`ConvSpec`) and every integer that follows from it (`ConvProblem`).

All shape arithmetic of the package stands here: padding, output sizes, halos, which input voxel an output voxel is
centred on. Loops, formats and commands read it from the `ConvProblem` and compute none of it again. Pure Python, so that
`--help` and shape checks cost nothing. The rules are Keras' (Conv3D) where Keras has one.

Axes are D, H, W: slowest to fastest spatial axis of the file (z, y, x). Triples are in this order everywhere.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from conv3d_cli.errors import ShapeError, SpecError, unknown_name

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Padding = str | Pads  # one of PADDINGS, or voxels (before, after) along D, H, W
AXIS_NAMES = ("depth", "height", "width")
PADDINGS = ("valid", "same", "full", "same_lower")
# voxels of a stride, a dilation, a padding: products of them still count in 64 bits
FARTHEST = 1 << 24


def triple(value: int | Sequence[int], name: str, minimum: int = 1) -> Triple:
    """One whole number for all three axes, or three of them in D, H, W order.

    Raises: SpecError if it is neither, or below `minimum`.
    >>> triple(2, "strides"), triple([1, 2, 2], "strides")
    ((2, 2, 2), (1, 2, 2))
    """
    values: Any = [value] * 3 if isinstance(value, numbers.Integral) else value
    try:
        values = [values[0], values[1], values[2]] if len(values) == 3 else []
    except (TypeError, LookupError):  # no sequence
        values = []
    if not values or isinstance(value, (str, bytes)):
        raise SpecError(
            f"{name} must be one whole number or three in depth,height,width order, received {value!r}"
        )
    if not all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in values):
        raise SpecError(f"{name} must be whole numbers, received {value!r}")
    if min(values) < minimum:
        raise SpecError(f"{name} must be at least {minimum} on every axis, received {value!r}")
    return int(values[0]), int(values[1]), int(values[2])


# --------------------------------------------------------------------------------------------------
# What lies outside the volume


def _nearest(position: int, size: int) -> int:
    return min(max(position, 0), size - 1)


def _symmetric(position: int, size: int) -> int:
    position %= 2 * size
    return position if position < size else 2 * size - 1 - position


def _mirror(position: int, size: int) -> int:
    if size == 1:
        return 0
    position %= 2 * (size - 1)
    return position if position < size else 2 * (size - 1) - position


def _wrap(position: int, size: int) -> int:
    return position % size


def _mirror_one(position: int, size: int) -> int:
    return (
        position
        if 0 <= position < size
        else _mirror(position, size)
        if position in (-1, size) and size > 1
        else -1
    )


# name -> the input index that stands for a position outside, -1 for a constant; None: a constant everywhere
BOUNDARIES = {
    "zeros": None,
    "constant": None,
    "nearest": _nearest,
    "symmetric": _symmetric,
    "mirror": _mirror,
    "wrap": _wrap,
    "renormalize": None,  # nothing is there, and a sum is divided by the weights inside: see convolution/masked.py
    "renormalize-depth": None,  # the same along depth; zeros along height and width
    "mirror-one": _mirror_one,
}


@dataclass(frozen=True)
class Boundary:
    """What a kernel reads outside the volume.

    mode : str      zeros `0000|abcd`, constant `vvvv|abcd`, nearest `aaaa|abcd`, symmetric `dcba|abcd` (scipy's
                    reflect), mirror `dcb|abcd` (numpy's and torch's reflect), wrap `abcd|abcd`; renormalize nothing:
                    a sum is divided by the weights inside. As SPM: renormalize-depth, along depth only, beside zeros;
                    as AFNI: mirror-one `00b|abcd`
    value : float   the voxel value of mode "constant", in the volume's own units; of mirror-one only where weights go through it
    """

    mode: str = "zeros"
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.mode == "reflect":
            raise SpecError(
                "boundary 'reflect' means two things: write 'symmetric' for scipy's (dcba|abcd) "
                "or 'mirror' for numpy's and torch's (dcb|abcd)"
            )
        if self.mode not in BOUNDARIES:
            raise unknown_name("boundary", self.mode, BOUNDARIES)
        if self.mode not in ("constant", "mirror-one") and self.value != 0:
            raise SpecError(
                f"boundary '{self.mode}' takes no value, received {self.value!r}; only constant=V does"
            )

    @classmethod
    def parse(cls, text: str | Boundary) -> Boundary:
        """Read `nearest`, `constant=1.5`, ...

        Raises: SpecError, and for `reflect`, whose meaning differs between libraries, one that names both.
        >>> Boundary.parse("constant=-1000")
        Boundary(mode='constant', value=-1000.0)
        """
        if isinstance(text, Boundary):
            return text
        mode, equals, value = str(text).strip().lower().partition("=")
        if mode != "constant":
            boundary = cls(mode)
            if equals:
                raise SpecError(
                    f"boundary '{mode}' takes no value, received '{text}'; only constant=V does"
                )
            return boundary
        try:
            number = float(value)
        except ValueError:
            raise SpecError(
                f"boundary 'constant' needs a number, as in constant=0.5, received '{text}'"
            ) from None
        return cls("constant", number)

    def source_index(self, position: int, size: int) -> int:
        """The input index read at `position` of an axis of `size` voxels; -1 where a constant stands instead.

        >>> [Boundary("mirror").source_index(p, 4) for p in range(-3, 7)]
        [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
        """
        if 0 <= position < size:
            return position
        index = BOUNDARIES[self.mode]
        return -1 if index is None else index(position, size)

    @property
    def renormalizes(self) -> bool:
        """Whether sums are divided by the weights inside the volume."""
        return self.mode in ("renormalize", "renormalize-depth")

    def __str__(self) -> str:
        if self.mode != "constant":
            return self.mode
        short = f"{self.value:g}"
        return f"constant={short if float(short) == self.value else repr(float(self.value))}"


# --------------------------------------------------------------------------------------------------
# Sizes


def output_size(
    size: int, kernel_size: int, stride: int, dilation_rate: int, padding: str | tuple[int, int]
) -> int:
    """Voxels along one axis after convolution; 0 or less where no output fits.

    size : int          input voxels along the axis
    padding : "valid" | "same" | "same_lower" | "full" | (before, after)
    Source: Keras 3, ops/operation_utils.py compute_conv_output_shape.
    >>> output_size(10, 3, stride=1, dilation_rate=2, padding="valid")
    6
    """
    extent = (kernel_size - 1) * dilation_rate + 1
    if padding in ("same", "same_lower"):
        return -(-size // stride)
    before, after = pad_sizes(size, kernel_size, stride, dilation_rate, padding)
    return (size + before + after - extent) // stride + 1


def pad_sizes(
    size: int, kernel_size: int, stride: int, dilation_rate: int, padding: str | tuple[int, int]
) -> tuple[int, int]:
    """Voxels added before and after one axis. Under "same" the odd one goes after, as in Keras; under "same_lower" before.

    Source: TensorFlow, python/ops/nn_ops.py, "padding"; ONNX, Conv, auto_pad SAME_UPPER and SAME_LOWER.
    >>> pad_sizes(224, 7, stride=2, dilation_rate=1, padding="same")
    (2, 3)
    """
    extent = (kernel_size - 1) * dilation_rate + 1
    if padding == "valid":
        return 0, 0
    if padding == "full":
        return extent - 1, extent - 1
    if padding in ("same", "same_lower"):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        half = total // 2
        return (half, total - half) if padding == "same" else (total - half, half)
    assert not isinstance(padding, str), padding
    return padding


def parse_padding(padding: str | int | Sequence[object]) -> Padding:
    """Read `valid`, `same`, `full`, `1`, `1,2,2` or `0:1,1:1,2:2` (or their Python forms) into a name or three pairs.

    Raises: SpecError; for "causal" one that says what Keras says.
    >>> parse_padding("SAME"), parse_padding(1), parse_padding("0:1,1,2:2")
    ('same', ((1, 1), (1, 1), (1, 1)), ((0, 1), (1, 1), (2, 2)))
    """
    shown = repr(padding)
    if isinstance(padding, str):
        text = padding.strip().lower()
        if text in PADDINGS:
            return text
        if text == "causal":
            raise SpecError(
                "padding 'causal' is only for Conv1D; a volume takes 'valid', 'same', 'full' or numbers"
            )
        parts: list[object] = [
            tuple(part.split(":")) if ":" in part else part for part in text.split(",")
        ]
    elif isinstance(padding, numbers.Integral) and not isinstance(padding, bool):
        parts = [padding]
    elif isinstance(padding, Sequence):
        parts = list(padding)
    else:
        parts = []
    if len(parts) == 1:
        parts *= 3
    pairs: list[tuple[int, ...]] = []
    for part in parts:
        both = part if isinstance(part, (tuple, list)) else (part, part)
        try:
            # int("1") reads text; a float such as 1.5 and True must not pass
            pair = tuple(
                int(v)
                if isinstance(v, (str, numbers.Integral)) and not isinstance(v, bool)
                else int("-")
                for v in both
            )
        except ValueError:
            pair = ()
        if len(pair) != 2 or min(pair) < 0:
            pairs.clear()
            break
        pairs.append(pair)
    if len(pairs) != 3:
        raise SpecError(
            f"padding must be 'valid', 'same', 'full', N, N,N,N or LO:HI,LO:HI,LO:HI with numbers of at least 0, received {shown}"
        )
    return tuple(pairs)  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------
# The wish and the problem


@dataclass(frozen=True)
class VoxelTransform:
    """Where output voxels lie in the input grid: output voxel i is centred at input voxel step·i + offset (D, H, W)."""

    step: Triple = (1, 1, 1)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def then(self, second: VoxelTransform) -> VoxelTransform:
        """Both in turn: the output of `second`, which reads the output of this one.

        >>> VoxelTransform((2, 1, 1), (1.0, 0.0, 0.0)).then(VoxelTransform((2, 1, 1), (0.5, 0.0, 0.0)))
        VoxelTransform(step=(4, 1, 1), offset=(2.0, 0.0, 0.0))
        """
        step = [a * b for a, b in zip(self.step, second.step, strict=True)]
        offset = [a * o + p for a, o, p in zip(self.step, second.offset, self.offset, strict=True)]
        return VoxelTransform(_as_triple(step), (offset[0], offset[1], offset[2]))

    @property
    def is_identity(self) -> bool:
        """Whether the output has the voxels of the input, in the same places."""
        return self.step == (1, 1, 1) and self.offset == (0.0, 0.0, 0.0)


@dataclass(frozen=True, init=False)
class ConvSpec:
    """A convolution as it is asked for, in Keras' words, before the sizes of volume and kernel are known.

    The constructor takes numbers and text; the fields hold what it parsed.

    strides, dilation_rate : Triple     at least 1; given as an int or 3 ints in D, H, W order
    padding : Padding                   given as "valid", "same", "same_lower", "full", an int, 3 ints, 3 (before, after)
                                        pairs, or text of these
    groups : int                        divides input channels and filters
    filters : int or None               expected output channels; None takes the kernel's
    boundary : Boundary                 what padding reads; given as a `Boundary` or its text
    allow_strided_dilation : bool       compute strides > 1 with dilation > 1, which Keras refuses

    Raises: SpecError for values that no volume could make legal.
    >>> spec = ConvSpec(strides=2, padding="same", boundary="constant=1.5")
    >>> spec.strides, spec.padding, spec.boundary
    ((2, 2, 2), 'same', Boundary(mode='constant', value=1.5))
    >>> spec.resolve((1, 6, 6, 7, 1), (3, 3, 3, 1, 1)).out_size
    (3, 3, 4)
    """

    strides: Triple
    padding: Padding
    dilation_rate: Triple
    groups: int
    filters: int | None
    boundary: Boundary
    allow_strided_dilation: bool

    def __init__(
        self,
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[object] = "valid",
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        filters: int | None = None,
        boundary: str | Boundary = "zeros",
        allow_strided_dilation: bool = False,
    ) -> None:
        steps, rates = triple(strides, "strides"), triple(dilation_rate, "dilation_rate")
        for name, values in (("strides", steps), ("dilation_rate", rates)):
            if max(values) > FARTHEST:
                raise SpecError(
                    f"{name} of more than {FARTHEST} voxels cannot be computed, received {max(values)}"
                )
        if max(steps) > 1 and max(rates) > 1 and not allow_strided_dilation:
            raise SpecError(
                "strides > 1 are not supported in conjunction with dilation_rate > 1 (as in Keras), "
                f"received strides={steps} and dilation_rate={rates}; "
                "pass --allow-strided-dilation (allow_strided_dilation=True) to compute it"
            )
        parsed = {
            "strides": steps,
            "dilation_rate": rates,
            "groups": _positive(groups, "groups"),
            "filters": None if filters is None else _positive(filters, "filters"),
            "padding": parse_padding(padding),
            "boundary": Boundary.parse(boundary),
            "allow_strided_dilation": bool(allow_strided_dilation),
        }
        for name, value in parsed.items():
            object.__setattr__(self, name, value)

    def resolve(
        self,
        input_shape: Sequence[int],
        kernel_shape: Sequence[int],
        centre: Sequence[float] | None = None,
    ) -> ConvProblem:
        """Every integer of this convolution for a volume and a kernel.

        input_shape : (N, D, H, W, C)
        kernel_shape : (kd, kh, kw, C/groups, filters); (kd, kh, kw), which is applied to each channel separately; or
            (kd, kh, kw, filters), all of which are
        centre : 3 floats, the kernel voxel (D, H, W) an output voxel lies under; None: its middle, (k - 1) / 2
        Raises: ShapeError if channels, groups, filters and sizes do not fit, or no output voxel is left.
        """
        batch, *in_size, channels = (int(n) for n in input_shape)
        kernel_size = tuple(int(n) for n in kernel_shape[:3])
        if len(kernel_shape) not in (3, 4, 5) or min(kernel_shape, default=0) < 1:
            raise ShapeError(
                "a kernel is (depth, height, width), a bank of filters or (depth, height, width, in_channels/groups, filters), "
                f"each at least 1, received shape {tuple(kernel_shape)}"
            )
        if min(in_size) < 1 or channels < 1:
            raise ShapeError(
                f"the volume has no voxels: depth, height, width {tuple(in_size)}, {channels} channels"
            )
        if len(kernel_shape) < 5:
            if self.groups != 1:
                raise ShapeError(
                    f"a 3-D kernel is applied to every channel separately and takes no groups, received groups={self.groups}; "
                    "a layer needs a 5-D kernel (depth, height, width, in_channels/groups, filters)"
                )
            groups, filters = channels, channels * math.prod(kernel_shape[3:])
        else:
            groups, filters = self.groups, int(kernel_shape[4])
            if channels % groups:
                raise ShapeError(
                    f"groups must divide the input channels, received groups={groups} and {channels} channels"
                )
            if filters % groups:
                raise ShapeError(
                    f"groups must divide the filters, received groups={groups} and {filters} filters"
                )
            if channels // groups != kernel_shape[3]:
                raise ShapeError(
                    f"the kernel takes {kernel_shape[3]} channels in each of groups={groups}, "
                    f"{kernel_shape[3] * groups} in all, but the volume has {channels}"
                )
        if self.filters is not None and self.filters != filters:
            raise ShapeError(
                f"filters={self.filters} was asked for, but the kernel gives {filters} output channels"
            )

        strides, dilation_rate, padding = self.strides, self.dilation_rate, self.padding
        pads, out_size = [], []
        for axis in range(3):
            wish = padding if isinstance(padding, str) else padding[axis]
            arguments = in_size[axis], kernel_size[axis], strides[axis], dilation_rate[axis], wish
            pads.append(pad_sizes(*arguments))
            if max(pads[-1]) > FARTHEST:
                raise ShapeError(
                    f"padding of more than {FARTHEST} voxels cannot be computed, received {pads[-1][0]}:{pads[-1][1]} "
                    f"along {AXIS_NAMES[axis]}"
                )
            out_size.append(output_size(*arguments))
            if out_size[-1] < 1:
                extent = (kernel_size[axis] - 1) * dilation_rate[axis] + 1
                spread = (
                    f" ({extent} with dilation_rate={dilation_rate[axis]})"
                    if extent != kernel_size[axis]
                    else ""
                )
                raise ShapeError(
                    f"the kernel is larger than the volume along {AXIS_NAMES[axis]}: {kernel_size[axis]} voxels{spread} against "
                    f"{in_size[axis]} with padding {self._padding_text()}; use padding 'same' or a smaller kernel"
                )
        if centre is None:
            centre = [(k - 1) / 2 for k in kernel_size]
        return ConvProblem(
            batch=batch,
            in_size=_as_triple(in_size),
            in_channels=channels,
            filters=filters,
            groups=groups,
            kernel_size=_as_triple(kernel_size),
            strides=strides,
            dilation_rate=dilation_rate,
            pad_before=_as_triple([before for before, _ in pads]),
            pad_after=_as_triple([after for _, after in pads]),
            out_size=_as_triple(out_size),
            boundary=self.boundary,
            centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        )

    def _padding_text(self) -> str:
        if isinstance(self.padding, str):
            return f"'{self.padding}'"
        return ",".join(f"{before}:{after}" for before, after in self.padding)


def _positive(value: int, name: str) -> int:
    """A whole number of at least 1. Raises: SpecError."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{name} must be a whole number of at least 1, received {value!r}")
    return int(value)


def _as_triple(values: Sequence[int]) -> Triple:
    first, second, third = values
    return first, second, third


@dataclass(frozen=True)
class ConvProblem:
    """A convolution with every integer known; made by `ConvSpec.resolve`. Triples are in D, H, W order.

    One output voxel is the sum over taps k and channels c of
    `weights[k, c, f] · input[o·strides + k·dilation_rate - pad_before, c]`.
    """

    batch: int
    in_size: Triple
    in_channels: int
    filters: int
    groups: int
    kernel_size: Triple
    strides: Triple
    dilation_rate: Triple
    pad_before: Triple
    pad_after: Triple
    out_size: Triple
    boundary: Boundary
    centre: tuple[float, float, float]

    def part(self, channels: int) -> ConvProblem:
        """The same convolution of one volume of the batch, and of `channels` of its channels.

        channels : int      all of them, or any number where every channel has filters of its own (groups = in_channels)
        >>> whole = ConvSpec().resolve((2, 8, 8, 8, 6), (3, 3, 3))
        >>> whole.part(1).in_shape, whole.part(1).filters
        ((1, 8, 8, 8, 1), 1)
        """
        if channels == self.in_channels:
            return replace(self, batch=1)
        if self.groups != self.in_channels:
            raise ShapeError(
                f"a layer mixes all {self.in_channels} channels, received {channels} of them"
            )
        filters = self.filters // self.in_channels * channels
        return replace(self, batch=1, in_channels=channels, groups=channels, filters=filters)

    @property
    def channels_per_group(self) -> int:
        """Input channels that each filter sees."""
        return self.in_channels // self.groups

    @property
    def filters_per_group(self) -> int:
        """Filters that see the same input channels."""
        return self.filters // self.groups

    @property
    def extent(self) -> Triple:
        """Input voxels a kernel spans along each axis, dilation included."""
        return _as_triple(
            [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]
        )

    @property
    def taps(self) -> int:
        """Multiplications for one output voxel of one filter."""
        return math.prod(self.kernel_size) * self.channels_per_group

    @property
    def in_shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C) of the input."""
        return (self.batch, *self.in_size, self.in_channels)

    @property
    def out_shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, filters) of the output."""
        return (self.batch, *self.out_size, self.filters)

    @property
    def flops(self) -> int:
        """Floating-point operations of the plain sum: one multiplication and one addition a tap."""
        return 2 * math.prod(self.out_shape) * self.taps

    @property
    def voxel_transform(self) -> VoxelTransform:
        """Where the output voxels lie in the input grid: the kernel's centre, spread by dilation, less the padding."""
        offset = [
            c * d - p
            for c, d, p in zip(self.centre, self.dilation_rate, self.pad_before, strict=True)
        ]
        return VoxelTransform(self.strides, (offset[0], offset[1], offset[2]))

    def source_indices(self, axis: int, start: int, stop: int) -> list[int]:
        """Input indices read by output voxels start..stop-1 of an axis, from the first tap of the first voxel to the last
        tap of the last, one for each position; -1 where the boundary is a constant.

        >>> spec = ConvSpec(padding="same", boundary="nearest")
        >>> spec.resolve((1, 4, 4, 4, 1), (3, 3, 3, 1, 1)).source_indices(0, 0, 4)
        [0, 0, 1, 2, 3, 3]
        """
        first = start * self.strides[axis] - self.pad_before[axis]
        last = (stop - 1) * self.strides[axis] - self.pad_before[axis] + self.extent[axis]
        size = self.in_size[axis]
        return [self.boundary.source_index(position, size) for position in range(first, last)]

"""The parameters of a convolution (`ConvSpec`) and every integer that follows (`ConvProblem`).

All shape arithmetic of the package is here: padding, output sizes, halos, the input voxel on which
an output voxel is centred. Loops, formats and commands take it from the `ConvProblem` and never
compute it again. Pure Python, so that `--help` and shape checks start fast. The rules are those of
Keras' Conv3D where Keras has one.

Axes are D, H, W: from the slowest to the fastest spatial axis of the file (z, y, x). Triples are in
this order everywhere.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from conv3d_cli.errors import ShapeError, SpecError, setting, unknown_name, words
from conv3d_cli.system.words import count_of

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Padding = str | Pads  # one of PADDINGS, or voxels (before, after) along D, H, W
AXIS_NAMES = ("depth", "height", "width")
PADDINGS = ("valid", "same", "full", "same_lower")
# Largest stride, dilation and padding in voxels; products of them still fit into 64 bits.
MAX_DISTANCE = 1 << 24


def triple(value: int | Sequence[int], name: str, minimum: int = 1) -> Triple:
    """Three whole numbers in D, H, W order, from three or from one for all axes.

    name : str, of the argument, for messages
    Raises: SpecError if `value` is neither, or a number is below `minimum`.
    >>> triple(2, "strides"), triple([1, 2, 2], "strides")
    ((2, 2, 2), (1, 2, 2))
    """
    values: Any = [value] * 3 if isinstance(value, numbers.Integral) else value
    try:
        values = [values[0], values[1], values[2]] if len(values) == 3 else []
    except (TypeError, LookupError):  # not a sequence
        values = []
    if not values or isinstance(value, (str, bytes)):
        raise SpecError(
            f"{name} must be one whole number or three in depth,height,width order, "
            f"received {value!r}"
        )
    if not all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in values):
        raise SpecError(f"{name} must be whole numbers, received {value!r}")
    if min(values) < minimum:
        raise SpecError(f"{name} must be at least {minimum} on every axis, received {value!r}")
    return int(values[0]), int(values[1]), int(values[2])


# --------------------------------------------------------------------------------------------------
# Boundaries: the values outside the volume


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
    if 0 <= position < size:
        return position
    return _mirror(position, size) if position in (-1, size) and size > 1 else -1


# name -> function from a position outside to the input index that is read there, -1 for a constant;
# None: a constant everywhere
BOUNDARIES = {
    "zeros": None,
    "constant": None,
    "nearest": _nearest,
    "symmetric": _symmetric,
    "mirror": _mirror,
    "wrap": _wrap,
    "renormalize": None,  # sums are divided by the weights inside: see convolution/masked.py
    "renormalize-depth": None,  # the same along depth; zeros along height and width
    "mirror-one": _mirror_one,
}


@dataclass(frozen=True)
class Boundary:
    """The values that a kernel reads outside the volume.

    mode : str      zeros `0000|abcd`, constant `vvvv|abcd`, nearest `aaaa|abcd`, symmetric
                    `dcba|abcd` (scipy's reflect), mirror `dcb|abcd` (numpy's and torch's reflect),
                    wrap `abcd|abcd`; renormalize: none, sums are divided by the weights inside;
                    renormalize-depth: the same along depth only, zeros along the others (as SPM);
                    mirror-one `00b|abcd` (as AFNI)
    value : float   the voxel value of mode "constant", in the volume's own units; for mirror-one
                    only where a mask's certainties are convolved

    Raises: SpecError for an unknown mode, and for a value that the mode does not take.
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
                f"boundary '{self.mode}' takes no value, received {self.value!r}; "
                "only constant=V does"
            )

    @classmethod
    def parse(cls, text: str | Boundary) -> Boundary:
        """Parse a text such as `nearest` or `constant=1.5`.

        Raises: SpecError. For `reflect`, which differs between libraries, it names the two modes
            that may be meant.
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
        """The input index that is read at a position along an axis; -1 for a constant.

        position, size : voxels; positions below 0 and from `size` on lie outside
        >>> [Boundary("mirror").source_index(p, 4) for p in range(-3, 7)]
        [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
        """
        if 0 <= position < size:
            return position
        index = BOUNDARIES[self.mode]
        return -1 if index is None else index(position, size)

    @property
    def renormalizes(self) -> bool:
        """True if sums are divided by the weights inside the volume."""
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
    """Output voxels along one axis; 0 or less if no output fits.

    size, kernel_size : int, voxels of the input and of the kernel along the axis
    padding : "valid", "same", "same_lower", "full" or (before, after) in voxels
    Source: Keras 3, ops/operation_utils.py compute_conv_output_shape.
    >>> output_size(10, 3, stride=1, dilation_rate=2, padding="valid")
    6
    """
    extent = (kernel_size - 1) * dilation_rate + 1
    if padding in ("same", "same_lower"):
        return -(-size // stride)
    before, after = pad_sizes(size, kernel_size, stride, dilation_rate, padding)
    return (size + before + after - extent) // stride + 1


def layout_hint(
    shape: Sequence[int], *, in_channels: int | None = None, filters: int | None = None
) -> str:
    """A hint, for messages, at a 5-D kernel in PyTorch's layout; "" if it does not look like one.

    shape : of a kernel that does not fit as (kd, kh, kw, in_channels/groups, filters)
    in_channels, filters : int or None      numbers that a right kernel has, if they are known

    >>> layout_hint((8, 2, 3, 3, 3), filters=8)
    "; it looks like PyTorch's (filters, in_channels, d, h, w): pass kernel_layout='torch'"
    >>> layout_hint((3, 3, 3, 2, 8), filters=8)
    ''
    """
    if len(shape) != 5:
        return ""
    wanted = [(filters, shape[0]), (in_channels, shape[1])]
    if any(number not in (None, size) for number, size in wanted):
        return ""
    cure = words("transpose it by (2, 3, 4, 1, 0)", f"pass {setting('kernel_layout', 'torch')}")
    return f"; it looks like PyTorch's (filters, in_channels, d, h, w): {cure}"


def _axes_hint(in_size: Sequence[int], channels: int) -> str:
    """A hint, for messages, if the channels that a kernel takes seem to be another axis; else "".

    >>> _axes_hint((4, 30, 31), 4)
    "; if the axis of 4 is that of the channels, pass data_format='channels_first'"
    >>> _axes_hint((29, 30, 31), 4)
    ''
    """
    orders = {in_size[2]: "channels_last", in_size[0]: "channels_first"}
    if channels == 1 or channels not in orders:
        return ""
    cure = setting("data_format", orders[channels])
    return f"; if the axis of {channels} is that of the channels, pass {cure}"


def pad_sizes(
    size: int, kernel_size: int, stride: int, dilation_rate: int, padding: str | tuple[int, int]
) -> tuple[int, int]:
    """Voxels of padding before and after one axis; parameters as of `output_size`.

    The odd voxel goes after the axis under "same", as in Keras, and before it under "same_lower".
    Source: TensorFlow, python/ops/nn_ops.py, "padding"; ONNX, Conv, auto_pad SAME_UPPER and
    SAME_LOWER.
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
    """Parse one of `PADDINGS`, `1`, `1,2,2` or `0:1,1:1,2:2`, or the same as Python values.

    Returns the name in lower case, or three (before, after) pairs in voxels along D, H, W.
    Raises: SpecError. For "causal" it says, as Keras does, that only Conv1D has it.
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
                "padding 'causal' is only for Conv1D; "
                "a volume takes 'valid', 'same', 'full' or numbers"
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
    pairs = [_padding_pair(part) for part in parts]
    if len(pairs) != 3 or None in pairs:
        raise SpecError(
            f"padding must be {', '.join(map(repr, PADDINGS))}, N, N,N,N or LO:HI,LO:HI,LO:HI "
            f"with numbers of at least 0, received {shown}{_instead_of_padding(padding)}"
        )
    return tuple(pairs)  # type: ignore[return-value]


def _instead_of_padding(padding: object) -> str:
    """What to write for a word of another tool, or for values beyond the edges; "" if unknown."""
    from conv3d_cli.vocabulary import own_value  # here, because most runs need no hint

    if not isinstance(padding, str):
        return ""
    if own := own_value("padding", padding):
        return f"; write {own!r}"
    word = padding.strip().lower()
    mode = own_value("boundary", word) or ("mirror" if word == "reflect" else word)
    if mode.partition("=")[0] not in BOUNDARIES:
        return ""
    value = "constant=0" if mode == "constant" else mode
    return f"; what lies beyond the edges is the boundary: {setting('boundary', value)}"


def _padding_pair(part: object) -> tuple[int, int] | None:
    """(before, after) from a pair, or from one number for both; None if it is neither."""
    pair = part if isinstance(part, (tuple, list)) else (part, part)
    # a float such as 1.5 and True must not pass, though int() takes them
    if not all(isinstance(n, (str, numbers.Integral)) and not isinstance(n, bool) for n in pair):
        return None
    try:
        before, after = (int(n) for n in pair)
    except ValueError:  # a text that is no number, or more than two of them
        return None
    return (before, after) if min(before, after) >= 0 else None


# --------------------------------------------------------------------------------------------------
# Specification and problem


@dataclass(frozen=True)
class VoxelTransform:
    """The map from output voxels to the input grid.

    step, offset : (D, H, W) in voxels; output voxel i is centred at input voxel step·i + offset.
        A step below 1 is that of a finer grid, as upsampling makes it
    """

    step: tuple[float, float, float] = (1, 1, 1)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def then(self, second: VoxelTransform) -> VoxelTransform:
        """The transform of two convolutions, of which `second` reads the output of this one.

        >>> second = VoxelTransform((2, 1, 1), (0.5, 0.0, 0.0))
        >>> VoxelTransform((2, 1, 1), (1.0, 0.0, 0.0)).then(second)
        VoxelTransform(step=(4, 1, 1), offset=(2.0, 0.0, 0.0))
        """
        step = [a * b for a, b in zip(self.step, second.step, strict=True)]
        offset = [a * o + p for a, o, p in zip(self.step, second.offset, self.offset, strict=True)]
        if not all(isinstance(n, int) for n in step):  # parts of a voxel: rounding adds up
            step = [round(n) if abs(n - round(n)) < 1e-9 else n for n in step]
            offset = [round(n, 9) + 0.0 for n in offset]
        return VoxelTransform((step[0], step[1], step[2]), (offset[0], offset[1], offset[2]))

    def is_near(self, other: VoxelTransform) -> bool:
        """True if both map voxels to the same places, but for rounding.

        >>> third = VoxelTransform((1 / 3, 1, 1), (-1 / 3, 0.0, 0.0))
        >>> VoxelTransform((3, 1, 1), (1.0, 0.0, 0.0)).then(third).is_near(VoxelTransform())
        True
        """
        pairs = zip((*self.step, *self.offset), (*other.step, *other.offset), strict=True)
        return all(abs(a - b) < 1e-6 for a, b in pairs)

    @property
    def is_identity(self) -> bool:
        """True if every output voxel lies on the input voxel of the same index."""
        return self.step == (1, 1, 1) and self.offset == (0.0, 0.0, 0.0)


@dataclass(frozen=True, init=False)
class ConvSpec:
    """The parameters of a convolution in Keras' words, independent of volume and kernel.

    The constructor accepts numbers and text; the fields store the parsed values.

    strides, dilation_rate : Triple     at least 1; given as an int or 3 ints in D, H, W order
    padding : Padding                   given as "valid", "same", "same_lower", "full", an int,
                                        3 ints, 3 (before, after) pairs, or text of these
    groups : int                        divides the input channels and the filters
    filters : int or None               expected output channels; None: those of the kernel
    boundary : Boundary                 the values that padding reads; given as a `Boundary` or text
    allow_strided_dilation : bool       compute strides > 1 with dilation > 1, which Keras refuses

    Raises: SpecError for values that are illegal for every volume.
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
            if max(values) > MAX_DISTANCE:
                raise SpecError(
                    f"{name} must be at most {MAX_DISTANCE} voxels, received {max(values)}"
                )
        if max(steps) > 1 and max(rates) > 1 and not allow_strided_dilation:
            raise SpecError(
                "strides > 1 are not supported in conjunction with dilation_rate > 1 "
                f"(as in Keras), received strides={steps} and dilation_rate={rates}; "
                f"pass {setting('allow_strided_dilation', True)} to compute it"
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
        kernel_shape : (kd, kh, kw, C/groups, filters) for a layer; (kd, kh, kw) for a filter, or
            (kd, kh, kw, filters) for a bank, which are applied to each channel separately
        centre : (D, H, W) floats, the position in the kernel that lies on the output voxel; None:
            the middle, (k - 1) / 2
        Raises: ShapeError if channels, groups, filters and sizes do not fit, or the output would
            have no voxels.
        >>> ConvSpec(strides=2).resolve((1, 9, 9, 9, 2), (3, 3, 3, 2, 8)).out_shape
        (1, 4, 4, 4, 8)
        """
        batch, *in_size, channels = (int(n) for n in input_shape)
        kernel_size = tuple(int(n) for n in kernel_shape[:3])
        if len(kernel_shape) not in (3, 4, 5) or min(kernel_shape, default=0) < 1:
            raise ShapeError(
                "a kernel is (depth, height, width), a bank of filters or "
                "(depth, height, width, in_channels/groups, filters), each at least 1, "
                f"received shape {tuple(kernel_shape)}"
            )
        if min(in_size) < 1 or channels < 1:
            raise ShapeError(
                f"the volume has no voxels: depth, height, width {tuple(in_size)}, "
                f"{channels} channels"
            )
        if len(kernel_shape) < 5:
            if self.groups != 1:
                raise ShapeError(
                    "a 3-D kernel is applied to every channel separately and takes no groups, "
                    f"received groups={self.groups}; a layer needs a 5-D kernel "
                    "(depth, height, width, in_channels/groups, filters)"
                )
            groups, filters = channels, channels * math.prod(kernel_shape[3:])
        else:
            groups, filters = self.groups, int(kernel_shape[4])
            if channels % groups:
                raise ShapeError(
                    "groups must divide the input channels, "
                    f"received groups={groups} and {count_of(channels, 'channel')}; choose a "
                    "divisor"
                )
            if filters % groups:
                raise ShapeError(
                    "groups must divide the filters, "
                    f"received groups={groups} and {count_of(filters, 'filter')}; choose a divisor"
                )
            if channels // groups != kernel_shape[3]:
                each = "" if groups == 1 else f" ({kernel_shape[3]} in each of {groups} groups)"
                hint = layout_hint(kernel_shape, in_channels=channels // groups) or _axes_hint(
                    in_size, kernel_shape[3] * groups
                )
                raise ShapeError(
                    f"the kernel takes {count_of(kernel_shape[3] * groups, 'channel')}{each}, but "
                    f"the volume has {channels}"
                    + (hint or "; pass a volume with as many, or another kernel")
                )
        if self.filters is not None and self.filters != filters:
            raise ShapeError(
                f"filters={self.filters} was asked for, "
                f"but the kernel gives {count_of(filters, 'output channel')}; correct it, or leave "
                "it out"
            )

        strides, dilation_rate, padding = self.strides, self.dilation_rate, self.padding
        pads, out_size = [], []
        for axis in range(3):
            along = padding if isinstance(padding, str) else padding[axis]
            arguments = in_size[axis], kernel_size[axis], strides[axis], dilation_rate[axis], along
            before, after = pad_sizes(*arguments)
            if max(before, after) > MAX_DISTANCE:
                raise ShapeError(
                    f"padding must be at most {MAX_DISTANCE} voxels, "
                    f"received {before}:{after} along {AXIS_NAMES[axis]}"
                )
            pads.append((before, after))
            out_size.append(output_size(*arguments))
            if out_size[-1] < 1:
                size, rate = kernel_size[axis], dilation_rate[axis]
                extent = (size - 1) * rate + 1
                dilated = f" ({extent} with dilation_rate={rate})" if extent != size else ""
                raise ShapeError(
                    f"the kernel is larger than the volume along {AXIS_NAMES[axis]}: "
                    f"{size} voxels{dilated} against {in_size[axis]} "
                    f"with padding {self._padding_text()}; use padding 'same' or a smaller kernel"
                    f"{layout_hint(kernel_shape, in_channels=channels // groups)}"
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
    """A convolution with every integer known, as `ConvSpec.resolve` makes it.

    batch : int                         N, the volumes
    in_size, out_size : Triple          voxels of the input and of the output
    in_channels, filters, groups : int  input channels, output channels, and their groups
    kernel_size, strides, dilation_rate : Triple    in voxels
    pad_before, pad_after : Triple      voxels of padding
    boundary : Boundary                 the values that padding reads
    centre : (D, H, W) floats           position in the kernel that lies on the output voxel

    Output voxel o of filter f is the sum over taps k and channels c of
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
        """The same convolution of one volume of the batch, and of some of its channels.

        channels : int, all of them, or any number if each channel has its own filters
            (groups = in_channels)
        Raises: ShapeError for a part of the channels of a layer.
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

    @cached_property
    def along_depth(self) -> ConvProblem:
        """What of it matters along depth: many layers of a network are the same there.

        >>> wide = ConvSpec(padding="same").resolve((1, 8, 9, 9, 4), (3, 5, 5, 4, 2))
        >>> wide.along_depth == ConvSpec(padding="same").resolve((1, 8, 1, 1, 1), (3, 1, 1, 1, 1))
        True
        """

        def only(three: Triple, other: int) -> Triple:
            return three[0], other, other

        return ConvProblem(
            batch=1,
            in_size=only(self.in_size, 1),
            in_channels=1,
            filters=1,
            groups=1,
            kernel_size=only(self.kernel_size, 1),
            strides=only(self.strides, 1),
            dilation_rate=only(self.dilation_rate, 1),
            pad_before=only(self.pad_before, 0),
            pad_after=only(self.pad_after, 0),
            out_size=only(self.out_size, 1),
            boundary=self.boundary,
            centre=(self.centre[0], 0.0, 0.0),
        )

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
        """Input voxels that the kernel spans along each axis, dilation included."""
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
        """Floating-point operations of the plain sum: a multiplication and an addition per tap."""
        return 2 * math.prod(self.out_shape) * self.taps

    @property
    def voxel_transform(self) -> VoxelTransform:
        """The map from output voxels to the input grid.

        The offset is the kernel's centre times the dilation rate, minus the padding.
        """
        offset = [
            c * d - p
            for c, d, p in zip(self.centre, self.dilation_rate, self.pad_before, strict=True)
        ]
        return VoxelTransform(self.strides, (offset[0], offset[1], offset[2]))

    def source_indices(self, axis: int, start: int, stop: int) -> list[int]:
        """The input indices that output voxels start to stop - 1 read along an axis.

        axis : int, 0, 1, 2 for D, H, W
        Returns one index for each position from the first tap of the first voxel to the last tap of
        the last; -1 for a constant outside.
        >>> spec = ConvSpec(padding="same", boundary="nearest")
        >>> spec.resolve((1, 4, 4, 4, 1), (3, 3, 3, 1, 1)).source_indices(0, 0, 4)
        [0, 0, 1, 2, 3, 3]
        """
        first = start * self.strides[axis] - self.pad_before[axis]
        last = (stop - 1) * self.strides[axis] - self.pad_before[axis] + self.extent[axis]
        size = self.in_size[axis]
        return [self.boundary.source_index(position, size) for position in range(first, last)]

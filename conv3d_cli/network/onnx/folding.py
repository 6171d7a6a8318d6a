"""Operators on constants: what an ONNX graph computes from stored tensors and from sizes.

Exporters compute sizes in the graph (Shape, Gather, Concat, ...), and weights from parts. To fold
another operator, write a function of the node's attributes and of its inputs, and its line in
`FOLDS`. Results are counted before they are made, since a few nodes can describe terabytes.

Source: ONNX, docs/Operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import FormatError, ShapeError

Array = NDArray[Any]

# numbers of ONNX's data types
DTYPES: dict[int, type[np.generic]] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64,
    9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
}  # fmt: skip


class Attributes:
    """The attributes of an ONNX node, by name. A wrong type gives the default of its field."""

    def __init__(self, node: Any) -> None:
        self.found = {attribute.name: attribute for attribute in node.attribute}

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def integer(self, name: str, default: int) -> int:
        """A whole number."""
        return int(self.found[name].i) if name in self.found else default

    def number(self, name: str, default: float) -> float:
        """A float, by the shortest decimal number that is its float32."""
        return float(str(np.float32(self.found[name].f))) if name in self.found else default

    def text(self, name: str, default: str) -> str:
        """A string."""
        return self.found[name].s.decode(errors="replace") if name in self.found else default

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers; None if it is not there."""
        return [int(n) for n in self.found[name].ints] if name in self.found else None

    def floats(self, name: str) -> list[float] | None:
        """A list of floats; None if it is not there."""
        return [float(n) for n in self.found[name].floats] if name in self.found else None


HARMLESS = 1 << 22  # numbers that any node may make
Fold = Callable[[Attributes, list[Array | None], int], Array]


def fold(
    operator: str, attributes: Attributes, values: list[Array | None], opset: int, where: str
) -> Array | None:
    """The result of a node whose inputs are known; None if its operator is not folded.

    values : list       its inputs; None for one that is left out
    where : str         the node in messages
    Raises: FormatError for inputs that the operator does not take, ShapeError for a result of too
        many elements.
    """
    function = FOLDS.get(operator)
    if function is None:
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(function(attributes, values, opset))
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from None
    except (
        ValueError, TypeError, IndexError, AttributeError, ArithmeticError, KeyError, MemoryError,
    ) as error:  # fmt: skip
        raise FormatError(f"{where} has constants that it does not take: {error}") from None


def _counted(shape: Sequence[int], values: Sequence[Array | None]) -> tuple[int, ...]:
    """A shape whose elements may be made: not many more than those of the inputs.

    Raises: ShapeError, ValueError.
    """
    sizes = tuple(int(n) for n in shape)
    if min(sizes, default=0) < 0:
        raise ValueError(f"shape {sizes}")
    inputs = {id(value): unrepeated(value).size for value in values if value is not None}
    if math.prod(sizes) > max(HARMLESS, sum(inputs.values())):
        raise ShapeError(f"it makes {math.prod(sizes):,} numbers of constants, more than weights")
    return sizes


def unrepeated(values: Array) -> Array:
    """An array with one of the equal parts along each axis that repeats a part without a copy.

    >>> unrepeated(np.broadcast_to(np.ones((2, 1)), (2, 1000))).shape
    (2, 1)
    """
    return values[tuple(slice(0, None if step else 1) for step in values.strides)]


def _pointwise(function: Callable[..., Array]) -> Fold:
    """A function of the numbers at one place. Constants of a volume's size stay as they repeat."""

    def folded(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
        given = [value for value in values if value is not None]
        shape = np.broadcast_shapes(*(value.shape for value in given))
        parts = [unrepeated(value) for value in given]
        _counted(np.broadcast_shapes(*(part.shape for part in parts)), parts)
        result = np.asarray(function(*parts))
        if result.dtype != bool:
            result = result.astype(given[0].dtype, copy=False)
        return np.broadcast_to(result, shape)

    return folded


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        if not np.all(b):
            raise ZeroDivisionError("division by 0")
        quotient = np.abs(a) // np.abs(b)
        return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient))
    return np.asarray(a / b)


def _several(function: Callable[[Array, Array], Array]) -> Fold:
    def together(*given: Array) -> Array:
        result = given[0]
        for value in given[1:]:
            result = function(result, value)
        return result

    return _pointwise(together)


def _integers(values: Array | None) -> list[int]:
    """A vector of whole numbers, or one."""
    if values is None:
        return []
    if values.dtype.kind not in "iu":
        raise TypeError(f"whole numbers are needed, received {values.dtype}")
    _counted(values.shape, [values])
    return [int(n) for n in values.reshape(-1)]


def _axes(
    attributes: Attributes, values: list[Array | None], number: int
) -> list[int] | None:  # an attribute in older opsets, an input in later ones
    given = values[number] if len(values) > number else None
    return _integers(given) if given is not None else attributes.integers("axes")


def _cast(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    data = _first(values)
    dtype = DTYPES[attributes.integer("to", 0)]
    return np.broadcast_to(unrepeated(data).astype(dtype), data.shape)


def _first(values: list[Array | None]) -> Array:
    if not values or values[0] is None:
        raise ValueError("it lacks an input")
    return values[0]


def _concat(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    given = [value for value in values if value is not None]
    _counted([sum(value.size for value in given)], given)
    return np.concatenate(given, axis=attributes.integer("axis", 0))


def _gather(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    data, indices = _first(values), values[1]
    assert indices is not None
    axis = attributes.integer("axis", 0)
    _counted([*indices.shape, data.size // max(1, data.shape[axis])], [data, indices])
    return np.take(data, indices.astype(np.int64), axis=axis)


def slice_bounds(
    attributes: Attributes, values: list[Array | None], rank: int
) -> dict[int, tuple[int, int, int]]:
    """Axis -> (start, stop, step) of a Slice, as the file has them."""
    if "starts" in attributes:
        starts, stops = attributes.integers("starts") or [], attributes.integers("ends") or []
        axes, steps = attributes.integers("axes"), None
    else:
        starts, stops = _integers(values[1]), _integers(values[2])
        axes = _axes(attributes, values, 3)
        steps = _integers(values[4]) if len(values) > 4 and values[4] is not None else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if 0 in steps or not all(-rank <= axis < rank for axis in axes):
        raise ValueError(f"axes {axes}, steps {steps}")
    return {
        axis % rank: (start, stop, step)
        for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True)
    }


def _slice(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    data = _first(values)
    taken = [slice(None)] * data.ndim
    for axis, (start, stop, step) in slice_bounds(attributes, values, data.ndim).items():
        length = data.shape[axis]
        if step < 0 and stop < -length:
            taken[axis] = slice(start, None, step)
        else:
            taken[axis] = slice(start, stop, step)
    return data[tuple(taken)]


def _squeeze(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    axes = _axes(attributes, values, 1)
    return np.squeeze(_first(values), None if axes is None else tuple(axes))


def _unsqueeze(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    return np.expand_dims(_first(values), tuple(_axes(attributes, values, 1) or ()))


def reshaped(source: Sequence[int], target: Sequence[int], allow_zero: bool) -> tuple[int, ...]:
    """The shape that a Reshape makes of another. Raises: ValueError.

    >>> reshaped((2, 3, 4), (0, -1), allow_zero=False)
    (2, 12)
    """
    sizes = list(target)
    for axis, length in enumerate(sizes):
        if length == 0 and not allow_zero:
            sizes[axis] = source[axis]
    if sizes.count(-1) > 1 or min(sizes, default=0) < -1:
        raise ValueError(f"shape {sizes}")
    if -1 in sizes:
        known = -math.prod(sizes)
        if known == 0 or math.prod(source) % known:
            raise ValueError(f"{tuple(source)} has no shape {sizes}")
        sizes[sizes.index(-1)] = math.prod(source) // known
    if math.prod(sizes) != math.prod(source):
        raise ValueError(f"{tuple(source)} has no shape {sizes}")
    return tuple(sizes)


def _reshape(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    data = _first(values)
    zero = bool(attributes.integer("allowzero", 0))
    return data.reshape(_counted(reshaped(data.shape, _integers(values[1]), zero), [data]))


def _flatten(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    data, axis = _first(values), attributes.integer("axis", 1)
    axis = axis + data.ndim if axis < 0 else axis
    rows = math.prod(data.shape[:axis])
    return data.reshape(_counted((rows, data.size // max(1, rows)), [data]))


def _transpose(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    return np.transpose(_first(values), attributes.integers("perm"))


def _expand(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    data = _first(values)
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(_integers(values[1]))))


def _tile(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    data, times = _first(values), _integers(values[1])
    _counted([n * by for n, by in zip(data.shape, times, strict=True)], [data])
    return np.tile(data, times)


def _range(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    start, limit, step = (value.reshape(-1)[0] for value in values if value is not None)
    count = max(0, math.ceil((float(limit) - float(start)) / float(step)))
    _counted([count], [])
    return np.asarray(start + np.arange(count) * step).astype(start.dtype)


def _where(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    given = [value for value in values if value is not None]
    chosen, first, second = (unrepeated(value) for value in given)
    _counted(np.broadcast_shapes(chosen.shape, first.shape, second.shape), [chosen, first, second])
    result = np.where(chosen.astype(bool), first, second)
    return np.broadcast_to(result, np.broadcast_shapes(*(value.shape for value in given)))


def _reduce(function: Callable[..., Array]) -> Fold:
    def folded(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
        data, axes = _first(values), _axes(attributes, values, 1)
        if not axes:
            if attributes.integer("noop_with_empty_axes", 0):
                return data
            axes = list(range(data.ndim))
        _counted(data.shape, [data])
        keeps = bool(attributes.integer("keepdims", 1))
        return np.asarray(function(data, axis=tuple(axes), keepdims=keeps)).astype(data.dtype)

    return folded


def _euclidean(data: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.sqrt(np.square(data).sum(axis=axis, keepdims=keepdims)))


def _identity(attributes: Attributes, values: list[Array | None], opset: int) -> Array:
    return _first(values)


FOLDS: dict[str, Fold] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Where": _where,
    "Add": _pointwise(np.add),
    "Sub": _pointwise(np.subtract),
    "Mul": _pointwise(np.multiply),
    "Div": _pointwise(_divide),
    "Mod": _pointwise(np.mod),
    "Pow": _pointwise(np.power),
    "Neg": _pointwise(np.negative),
    "Abs": _pointwise(np.abs),
    "Sqrt": _pointwise(np.sqrt),
    "Reciprocal": _pointwise(np.reciprocal),
    "Exp": _pointwise(np.exp),
    "Log": _pointwise(np.log),
    "Floor": _pointwise(np.floor),
    "Ceil": _pointwise(np.ceil),
    "Round": _pointwise(np.round),
    "Not": _pointwise(np.logical_not),
    "Equal": _pointwise(np.equal),
    "Greater": _pointwise(np.greater),
    "Less": _pointwise(np.less),
    "And": _pointwise(np.logical_and),
    "Or": _pointwise(np.logical_or),
    "Max": _several(np.maximum),
    "Min": _several(np.minimum),
    "Sum": _several(np.add),
    "ReduceSum": _reduce(np.sum),
    "ReduceMean": _reduce(np.mean),
    "ReduceProd": _reduce(np.prod),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceL2": _reduce(_euclidean),
}

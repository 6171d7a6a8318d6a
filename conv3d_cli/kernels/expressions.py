"""Kernels from a formula: `expr:"exp(-r**2/36)":radius=9mm`.

A formula is arithmetic and never runs as Python code. It is parsed into a syntax tree, and any node
that this module does not know is refused. All values are float64, so that no number can grow
without bound. Offsets from the kernel's centre are in the unit of the radius. `grammar.py` parses
the text around the formula, `name:key=value`.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import SpecError, suggestion
from conv3d_cli.kernels.lengths import (
    MAX_WEIGHTS,
    VOXEL,
    Floats,
    Kind,
    parse_lengths,
    read_lengths,
    voxels,
)
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.system import elementary, linear
from conv3d_cli.system.room import require_weights

Array = NDArray[np.float64]
Names = Mapping[str, Any]
Term = Callable[[Names], Any]  # a part of a formula: computes its value from those of the names

MAX_TEXT = 1000  # characters
_MAX_DEPTH = 200  # levels of nesting
_SLAB_WEIGHTS = 1 << 20  # weights computed at a time: every term of a formula needs an array
# Lengths divided by decimal or float32 spacings miss whole voxels by rounding: 3 mm / 0.1 mm is not
# quite 30.
_ROUNDING = 1e-6
_MIN_COSINE = 1e-4  # smaller cosines between axes are rounding of a float32 affine


# --------------------------------------------------------------------------------------------------
# Names, functions and operators of formulas


def _as_number(condition: Any) -> Any:
    """1.0 where a condition is true, 0.0 where it is false."""
    return np.where(condition, 1.0, 0.0)


def _all(values: Sequence[Any]) -> Any:
    return _as_number(functools.reduce(np.logical_and, [value != 0 for value in values]))


def _any(values: Sequence[Any]) -> Any:
    return _as_number(functools.reduce(np.logical_or, [value != 0 for value in values]))


def _sinc(x: Any) -> Any:
    """sin(pi x) / (pi x); 1 at 0."""
    angle = math.pi * np.where(x == 0, 1.0, x)
    return np.where(x == 0, 1.0, elementary.sin(angle) / angle)


# name -> (number of arguments, None: two or more; function)
FUNCTIONS: dict[str, tuple[int | None, Callable[..., Any]]] = {
    "abs": (1, np.abs),
    "cos": (1, elementary.cos),
    "exp": (1, elementary.exp),
    "floor": (1, np.floor),
    "log": (1, elementary.log),
    "max": (None, lambda *values: functools.reduce(np.maximum, values)),
    "min": (None, lambda *values: functools.reduce(np.minimum, values)),
    "sign": (1, np.sign),
    "sin": (1, elementary.sin),
    "sinc": (1, _sinc),
    "sqrt": (1, np.sqrt),
    "tan": (1, elementary.tan),
    "tanh": (1, elementary.tanh),
    "where": (3, lambda condition, a, b: np.where(condition != 0, a, b)),
}
OFFSETS = {"d": "d", "z": "d", "h": "h", "y": "h", "w": "w", "x": "w", "r": "r"}
CONSTANTS = {"pi": math.pi, "e": math.e}
ALLOWED = (
    "allowed are numbers, + - * / % **, comparisons, and, or, not, the names "
    f"{', '.join([*OFFSETS, *CONSTANTS])}, and {', '.join(FUNCTIONS)}"
)
_UNARY: dict[type[ast.AST], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: lambda value: _as_number(value == 0),
}
_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: elementary.power,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_BOOLEAN: dict[type[ast.AST], Callable[[Sequence[Any]], Any]] = {ast.And: _all, ast.Or: _any}


# --------------------------------------------------------------------------------------------------
# Parsing


@dataclass(frozen=True)
class Formula:
    """A formula of allowed terms only.

    Call it with a mapping of d, h, w and r to float64 numbers or arrays that broadcast. It returns
    the values of the formula, NaN or infinite where it is undefined.

    >>> formula = parse_formula("where(r > 0, 2 - r, 5)")
    >>> formula({"d": 0.0, "h": 0.0, "w": 0.0, "r": np.array([0.0, 0.5])}).tolist()
    [5.0, 1.5]
    """

    text: str
    term: Term

    def __call__(self, names: Names) -> Any:
        with np.errstate(all="ignore"):  # the caller checks for NaN and infinity
            return self.term(names)


def parse_formula(text: str) -> Formula:
    """Parse a formula; quotes around it, which a shell may have passed on, are removed.

    Raises: SpecError for anything but arithmetic (the message lists the allowed names, functions
    and operators), for more than `MAX_TEXT` characters, or for a formula that is nested too deeply.

    >>> parse_formula('"r.real"')  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.SpecError: the formula r.real contains the attribute .real; allowed are ...
    """
    text = text.strip()
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        text = text[1:-1].strip()
    if len(text) > MAX_TEXT:
        raise SpecError(
            f"a formula has at most {MAX_TEXT} characters, received {len(text):,}: {_short(text)}"
        )
    if not text.isprintable():
        raise SpecError(
            f"a formula is one line without control characters, received {_short(ascii(text))}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python warns about text such as 1if d else 2
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, Warning) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise SpecError(f"not a formula: {_short(text)} ({reason}); {ALLOWED}") from None
    except (RecursionError, MemoryError):  # Python's parser raises either if nested too deeply
        raise SpecError(f"the formula is nested too deeply: {_short(text)}") from None
    return Formula(text, _term(tree.body, text, _MAX_DEPTH))


def _term(node: ast.AST, text: str, depth: int) -> Term:
    """The function that computes a node of the tree. Raises: SpecError for a node not allowed."""
    if depth == 0:
        raise SpecError(f"the formula is nested more than {_MAX_DEPTH} deep: {_short(text)}")

    def inner(child: ast.AST) -> Term:
        return _term(child, text, depth - 1)

    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _constant(number, text)
        case ast.Name(id=name) if name in CONSTANTS:
            return _constant(CONSTANTS[name], text)
        case ast.Name(id=name) if name in OFFSETS:
            offset = OFFSETS[name]
            return lambda names: names[offset]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            one, unary = inner(operand), _UNARY[type(op)]
            return lambda names: unary(one(names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            first, second, binary = inner(left), inner(right), _BINARY[type(op)]
            return lambda names: binary(first(names), second(names))
        case ast.BoolOp(op=op, values=values) if type(op) in _BOOLEAN:
            terms, combined = [inner(value) for value in values], _BOOLEAN[type(op)]
            return lambda names: combined([term(names) for term in terms])
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in _COMPARISONS for op in ops
        ):
            compared = [_COMPARISONS[type(op)] for op in ops]
            sides = [inner(side) for side in (left, *others)]
            return lambda names: _compare_chain(compared, [side(names) for side in sides])
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            count, function = FUNCTIONS[name]
            if len(arguments) != count if count else len(arguments) < 2:
                takes = f"takes {count}" if count else "takes two or more"
                raise SpecError(
                    f"{name}() {takes}, received {len(arguments)} in the formula {_short(text)}"
                )
            given = [inner(argument) for argument in arguments]
            return lambda names: function(*(argument(names) for argument in given))
    raise SpecError(f"the formula {_short(text)} contains {_description(node)}; {ALLOWED}")


def _constant(number: float, text: str) -> Term:
    try:
        value = np.float64(number)
    except OverflowError:
        value = np.float64(np.inf)
    if not np.isfinite(value):
        raise SpecError(f"the formula {_short(text)} contains a number beyond float64")
    return lambda names: value


def _compare_chain(compared: Sequence[Callable[[Any, Any], Any]], sides: Sequence[Any]) -> Any:
    """1.0 where all comparisons of a chain such as 0 < d < 3 are true, else 0.0."""
    pairs = zip(compared, sides[:-1], sides[1:], strict=True)
    return _all([_as_number(compare(a, b)) for compare, a, b in pairs])


def _description(node: ast.AST) -> str:
    """A node that is not allowed, for messages."""
    match node:
        case ast.Name(id=name):
            return f"the name {name}{_hint(name, [*OFFSETS, *CONSTANTS, *FUNCTIONS])}"
        case ast.Call(func=ast.Name(id=name)) if name not in FUNCTIONS:
            return f"the function {name}(){_hint(name, FUNCTIONS)}"
        case ast.Attribute(attr=name) | ast.Call(func=ast.Attribute(attr=name)):
            return f"the attribute .{name}"
        case ast.Constant(value=str() as value):
            return f"the text {_short(ascii(value))}"
        case ast.Constant(value=value):
            return f"{_short(ascii(value))}, which is not a real number"
        case ast.Call():
            return "a call that is not of the form FUNCTION(a, b, ...)"
        case ast.Compare(ops=ops):
            unknown = next(op for op in ops if type(op) not in _COMPARISONS)
            return f"the comparison {type(unknown).__name__}"
        case ast.BinOp(op=ast.BitXor()):
            return "^ (write a power as **)"
        case ast.BinOp(op=op) | ast.UnaryOp(op=op):
            return f"the operator {type(op).__name__}"
    return f"the Python construct {type(node).__name__}"


def _hint(name: str, known: Any) -> str:
    hint = suggestion(name, known).rstrip("; ")
    return f" ({hint})" if hint else ""


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


# --------------------------------------------------------------------------------------------------
# Sampling


@dataclass(frozen=True, eq=False)
class Extent:
    """The region where a formula is sampled, and the voxel grid there.

    lengths : 3 floats      radius along D, H, W, in `unit`
    spacing : 3 floats      voxel spacing along D, H, W, in `unit`
    cosines : (3, 3)        cosines of the angles between axes D, H, W: identity unless sheared
    """

    lengths: Floats
    spacing: Floats
    cosines: Array
    unit: str


def read_extent(text: str, name: str, grid: Grid | None) -> Extent:
    """Parse one length or three with a unit, with the voxel spacing of the grid in that unit.

    Raises: as `lengths.read_lengths`.

    >>> read_extent("0.9cm", "radius", Grid((3.0, 1.5, 1.5), "mm")).spacing
    (0.3, 0.15, 0.15)
    """
    lengths, unit = parse_lengths(text, name)
    read_lengths(text, name, grid)  # refuses a length that this grid cannot convert
    if unit == VOXEL or grid is None:
        return Extent(lengths, (1.0, 1.0, 1.0), np.eye(3), VOXEL)
    return Extent(lengths, grid.spacing_in(unit), _cosines(grid), unit)


def _cosines(grid: Grid) -> Array:
    """Cosines (3, 3) of the angles between the voxel axes D, H, W; rounding is set to 0."""
    if grid.affine is None:
        return np.eye(3)
    steps = grid.affine[:3, 2::-1]
    units = steps / np.linalg.norm(steps, axis=0)
    cosines = linear.combine(units.T, units)
    cosines[np.abs(cosines) < _MIN_COSINE] = 0
    np.fill_diagonal(cosines, 1)
    return np.asarray(cosines)


FormulaText = Annotated[
    Formula | str,
    Kind(lambda text, name, grid: parse_formula(text), '"FORMULA"', '"exp(-r)"', bare=True),
]
Radius = Annotated[Extent | float | Sequence[float], Kind(read_extent, "LENGTH", "2vox")]


def expr(formula: FormulaText, radius: Radius, shape: Literal["ball", "box"] = "ball") -> Kernel:
    """A kernel from a formula of the offset from its centre: expr:"exp(-r**2/36)":radius=9mm.

    Formula: w = FORMULA within the radius, 0 outside; not normalised (--normalize does that)

    formula : text          of d, h, w (or z, y, x), the offsets along depth, height and width, and
                            r, the distance, in the unit of the radius: + - * / % **, comparisons
                            (1 or 0), and, or, not, pi, e, abs cos exp floor log max min sign sin
                            sinc sqrt tan tanh, where(condition, a, b); sinc(x) is sin(pi x)/(pi x)
    radius : lengths        in mm or another unit if the volume has a voxel spacing, else in vox
    shape : ball or box     sample in a ball of this radius (three lengths: an ellipsoid), or in a
                            box of twice the radius

    Source: the kernels of AFNI's 3dmerge -1filter_expr, in Python syntax; angles are in radians,
    and log is the natural logarithm.

    >>> expr("2 - r", radius=1).weights[1].tolist()
    [[0.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 0.0]]
    """
    if isinstance(formula, str):
        formula = parse_formula(formula)
    if not isinstance(radius, Extent):
        radius = Extent(voxels(radius, "radius", zero=True), (1.0, 1.0, 1.0), np.eye(3), VOXEL)
    widths = radius.lengths if shape == "box" else _half_widths(radius)
    reach = [_whole(width / step) for width, step in zip(widths, radius.spacing, strict=True)]
    size = tuple(2 * n + 1 for n in reach)
    if math.prod(size) > MAX_WEIGHTS:
        raise SpecError(
            f"expr would have {' x '.join(map(str, size))} weights, more than {MAX_WEIGHTS:,}; "
            "give a smaller radius (is the unit right?)"
        )
    require_weights(math.prod(size), "expr")
    weights = np.empty(size)
    offsets = [np.arange(-n, n + 1.0) * step for n, step in zip(reach, radius.spacing, strict=True)]
    planes = max(1, _SLAB_WEIGHTS // (size[1] * size[2]))
    for start in range(0, size[0], planes):
        slab = slice(start, start + planes)
        weights[slab] = _sample(formula, radius, shape, [offsets[0][slab], offsets[1], offsets[2]])
    if not weights.any():
        raise SpecError(
            f"the formula {_short(formula.text)} is 0 everywhere within the radius; "
            "is its unit right?"
        )
    # + 0.0 turns -0.0 into 0.0 for files and pictures
    return Kernel(weights + 0.0, name="expr")


def _sample(formula: Formula, radius: Extent, shape: str, offsets: Sequence[Array]) -> Array:
    """Values of the formula at offsets along D, H, W; 0 outside the radius.

    Raises: SpecError, with the offset, if a value within the radius is not finite.
    """
    d, h, w = offsets[0][:, None, None], offsets[1][:, None], offsets[2]
    size = tuple(map(len, offsets))
    r = np.sqrt(np.maximum(_squares(radius.cosines, d, h, w), 0.0))
    values = np.broadcast_to(
        np.asarray(formula({"d": d, "h": h, "w": w, "r": r}), np.float64), size
    )
    if shape == "ball":
        inside = _squares(
            radius.cosines,
            *(a / (length or 1.0) for a, length in zip((d, h, w), radius.lengths, strict=True)),
        )
        values = np.where(inside <= 1 + 2 * _ROUNDING, values, 0.0)
    if not np.isfinite(values).all():
        index = np.argwhere(~np.isfinite(values))[0]
        place = ", ".join(
            f"{name}={a[i]:g}" for name, a, i in zip("dhw", offsets, index, strict=True)
        )
        raise SpecError(
            f"the formula {_short(formula.text)} is {values[tuple(index)]} at {place} "
            f"{radius.unit}; give it a value there, as in where(r > 0, sin(r)/r, 1)"
        )
    return values


def _squares(cosines: Array, d: Any, h: Any, w: Any) -> Any:
    """Squared lengths of vectors (d, h, w) along the axes; bit-identical for opposite vectors."""
    square = d * d + h * h + w * w
    for (a, b), cosine in zip(
        ((d, h), (d, w), (h, w)), cosines[np.triu_indices(3, 1)], strict=True
    ):
        if cosine:
            square = square + 2 * cosine * (a * b)
    return square


def _half_widths(extent: Extent) -> Floats:
    """Half the extent of the ellipsoid along D, H, W; more than its lengths on a sheared grid."""
    used = [a for a, length in enumerate(extent.lengths) if length]
    factors = np.zeros(3)
    if used:
        factors[used] = np.sqrt(linear.inverse(extent.cosines[np.ix_(used, used)]).diagonal())
    d, h, w = (length * float(f) for length, f in zip(extent.lengths, factors, strict=True))
    return d, h, w


def _whole(value: float) -> int:
    if value > MAX_WEIGHTS:
        raise SpecError(
            f"expr would reach {value:.3g} voxels to each side; give a smaller radius "
            "(is the unit right?)"
        )
    return int(value * (1 + _ROUNDING))

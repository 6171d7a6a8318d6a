"""Eigenvalues and eigenvectors of symmetric 3x3 matrices, and what is made of them at each voxel.

With q a third of the trace and p² a sixth of the squared norm of A - qI, the characteristic
polynomial of B = (A - qI) / p is t³ - 3t - 2s, s = det(B) / 2, whose roots are 2·cos(φ + 2πk/3)
with cos 3φ = s. c = cos φ for |s| is the root of 4c³ - 3c = |s| from √¾ to 1, where the slope is at
least 6, so Newton's method finds it from a short polynomial, without an arccosine. It gives the
eigenvalue that lies apart from the other two; these are the middle of the rest ± √3·p·sin φ, with
sin φ = sin 3φ / (4c² - 1).

sin 3φ = √(1 - s²) loses digits where two eigenvalues are nearly equal: errors are up to
√ε·norm = 3e-8·norm, which is within the rounding of float32. For float64 it is taken from the
discriminant as a sum of squares (the minors of the vectors I, B, B²), so errors stay at a few
ε·norm. Source: B. Parlett, The (matrix) discriminant as a determinant, Linear Algebra and its
Applications 355 (2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from conv3d_cli.engine.derivatives import AT
from conv3d_cli.engine.loops.lanes import Lanes, polynomial, root
from conv3d_cli.engine.loops.simd import Vec, const, emit_loop, memory
from conv3d_cli.engine.step import F

# cos(arccos(s) / 3) for s from 0 to 1, as a polynomial in 2s - 1: within 1e-7
COSINE = (
    0.9396926207859082,
    0.06582226186606074,
    -0.006431538153832398,
    0.0011030529347876453,
    -0.0002326618455539275,
    6.191295602052196e-05,
    -1.5699611241006194e-05,
)
# 1 / (4c² - 1), c being that cosine: within 2e-5
SLOPE = (
    0.3949363788071112,
    -0.07717868922402056,
    0.019820696016562483,
    -0.0055766724861190725,
    0.0019034564818748063,
    -0.0005760605425596902,
)
NEAR_ZERO = 1e-250  # added to squares before their roots are inverted; no product overflows
LEAST_LENGTH = 1e-100


class Eigen(NamedTuple):
    """Eigenvalues of a symmetric matrix, and what eigenvectors are found from.

    values : (least, middle, largest)
    trace : Lanes           NaN if an entry is NaN or infinite
    shape : six Lanes       the matrix B
    apart : Lanes           the eigenvalue of B that lies apart from the others
    is_largest : condition  whether it is the largest
    """

    values: tuple[Lanes, Lanes, Lanes]
    trace: Lanes
    shape: tuple[Lanes, ...]
    apart: Lanes
    is_largest: Any


def eigenvalues(entries: Sequence[Lanes], double: bool) -> Eigen:
    """The eigenvalues of a matrix; entries: see `derivatives.ENTRIES`.

    double : bool       as exact as float64 allows, for entries of any size; else see above
    """
    dd, dw, ww, dh, hw, hh = entries
    back = None
    if double:
        largest = dd.size
        for entry in (dh, dw, hh, hw, ww):
            largest = entry.size.largest(largest)
        back, scale = largest.power_of_two()
        dd, dh, dw, hh, hw, ww = (entry * scale for entry in (dd, dh, dw, hh, hw, ww))
    q = (dd + hh + ww) * (1 / 3)
    a, b, c = dd - q, hh - q, ww - q
    beside = dh * dh + dw * dw + hw * hw
    squares = (a * a + b * b + c * c + 2 * beside) * (1 / 6)
    inverse = (squares + NEAR_ZERO).root_inverse()
    p = squares * inverse
    if double:  # the entries of B, of a size near 1
        a, b, c, dh, dw, hw = (x * inverse for x in (a, b, c, dh, dw, hw))
    determinant = a * (b * c - hw * hw) - dh * (dh * c - dw * hw) + dw * (dh * hw - b * dw)
    s = determinant * 0.5
    if not double:
        s = s * (inverse * inverse * inverse)
    is_largest = s >= 0
    size = s.size.least(1.0)
    centred = size.times(2.0, -1.0)
    cosine, slope = polynomial(centred, COSINE), polynomial(centred, SLOPE)
    for _ in range(2 if double else 1):
        excess = cosine * (cosine * cosine).times(4.0, -3.0) - size
        cosine = cosine - excess * slope * (1 / 3)
        slope = slope * (2.0 - slope * (cosine * cosine).times(4.0, -1.0))
    if double:
        rest = _discriminant(a, b, c, dh, dw, hw) * (1 / 108)
    else:
        rest = (1 - size * size).largest(0.0)
    sine = rest * (rest + NEAR_ZERO).root_inverse() * slope
    along = p * cosine
    along = along.where(is_largest, -along)
    half = p * sine * math.sqrt(3)
    apart, middle = q + 2 * along, q - along
    low, high = middle - half, middle + half
    values = [low.least(apart), high.where(is_largest, low), high.largest(apart)]
    if back is not None:
        values, q = [value * back for value in values], q * back
    b_apart = 2 * cosine.where(is_largest, -cosine)
    return Eigen(
        (values[0], values[1], values[2]), 3 * q, (a, dw, c, dh, hw, b), b_apart, is_largest
    )


def _discriminant(a: Lanes, b: Lanes, c: Lanes, d: Lanes, e: Lanes, f: Lanes) -> Lanes:
    """The product of the squared differences of eigenvalues, as a sum of squares."""
    dd = d * (a + b) + e * f
    ee = e * (a + c) + d * f
    ff = f * (b + c) + d * e
    ba, ca, cb = b - a, c - a, c - b
    # B² beside its diagonal, and differences of its diagonal without the terms that cancel
    square_ba = ba * (a + b) + (f - e) * (f + e)
    square_ca = ca * (a + c) + (f - d) * (f + d)
    square_cb = cb * (b + c) + (e - d) * (e + d)
    volume = ba * square_ca - ca * square_ba
    total = volume * volume
    for first, second in ((ba, square_ba), (ca, square_ca), (cb, square_cb)):
        for entry, squared in ((d, dd), (e, ee), (f, ff)):
            minor = first * squared - entry * second
            total = total + 2 * (minor * minor)
    for one, other in (((d, dd), (e, ee)), ((d, dd), (f, ff)), ((e, ee), (f, ff))):
        minor = one[0] * other[1] - other[0] * one[1]
        total = total + 12 * (minor * minor)
    return total


Vector = tuple[Lanes, Lanes, Lanes]


def _cross(a: Vector, b: Vector) -> Vector:
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def _dot(a: Vector, b: Vector) -> Lanes:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _picked(condition: Any, first: Vector, second: Vector) -> Vector:
    """The first vector where a condition holds, else the second."""
    d, h, w = (one.where(condition, other) for one, other in zip(first, second, strict=True))
    return d, h, w


def eigenvectors(found: Eigen) -> tuple[Vector, Vector, Vector]:
    """Eigenvectors (D, H, W) of the least, the middle and the largest eigenvalue, of length 1.

    found : Eigen       of `eigenvalues` with double=True
    Rows of B minus the eigenvalue that lies apart span the plane of the other two, so their longest
    cross product is its eigenvector however near the others are to each other. These are found in
    the plane, from a matrix of 2x2.
    Source: D. Eberly, A robust eigensolver for 3x3 symmetric matrices, geometrictools.com.
    """
    dd, dw, ww, dh, hw, hh = found.shape
    rows: list[Vector] = [
        (dd - found.apart, dh, dw),
        (dh, hh - found.apart, hw),
        (dw, hw, ww - found.apart),
    ]
    longest = _cross(rows[0], rows[1])
    square = _dot(longest, longest)
    for one, other in ((0, 2), (1, 2)):
        vector = _cross(rows[one], rows[other])
        own = _dot(vector, vector)
        longest = _picked(own > square, vector, longest)
        square = own.largest(square)
    inverse = square.root_inverse()
    apart = longest[0] * inverse, longest[1] * inverse, longest[2] * inverse
    # two vectors across it
    zero = inverse.of(0.0)
    d, h, w = apart
    across = _picked(d.size > h.size, (-w, zero, d), (zero, w, -h))
    inverse = _dot(across, across).root_inverse()
    first = across[0] * inverse, across[1] * inverse, across[2] * inverse
    second = _cross(apart, first)

    def times(vector: Vector) -> Vector:
        d, h, w = vector
        return dd * d + dh * h + dw * w, dh * d + hh * h + hw * w, dw * d + hw * h + ww * w

    half = (_dot(first, times(first)) - _dot(second, times(second))) * 0.5
    beside = _dot(first, times(second))
    square = half * half + beside * beside
    length = square * (square + NEAR_ZERO).root_inverse()
    rises = half >= 0
    # not 0, so that equal eigenvalues have eigenvectors, too
    along = (half + length + LEAST_LENGTH).where(rises, beside)
    aside = beside.where(rises, length - half + LEAST_LENGTH)
    inverse = (along * along + aside * aside).root_inverse()
    along, aside = along * inverse, aside * inverse
    high = _combined(along, first, aside, second)
    low = _combined(-aside, first, along, second)
    top = found.is_largest
    return _picked(top, low, apart), _picked(top, high, low), _picked(top, apart, high)


def _combined(a: Lanes, first: Vector, b: Lanes, second: Vector) -> Vector:
    d, h, w = (a * x + b * y for x, y in zip(first, second, strict=True))
    return d, h, w


# --------------------------------------------------------------------------------------------------
# What is made of the matrix at a voxel

Formula = Callable[[Sequence[Lanes], Callable[[int], Lanes], bool], list[Lanes]]


def _by_magnitude(values: Sequence[Lanes]) -> tuple[Lanes, Lanes, Lanes]:
    """Rising eigenvalues, ordered by their magnitudes."""
    low, middle, high = values
    # the middle one has the least magnitude, or one of the others has
    small = low.where(middle.size > low.size, middle)
    rest = middle.where(middle.size > low.size, low)
    last = high.where(high.size >= rest.size, rest)
    second = rest.where(high.size >= rest.size, high)
    first = small.where(second.size >= small.size, second)
    second = second.where(second.size >= small.size, small)
    return first, second, last


def _signed(entries: Sequence[Lanes], parameter: Callable[[int], Lanes]) -> list[Lanes]:
    """The matrix, times parameter 0: -1 where bright structures are looked for, else 1."""
    sign = parameter(0)
    return [entry * sign for entry in entries]


def _falls(x: Lanes) -> Lanes:
    """1 - exp(-x), for x from 0 on."""
    return -(-x).power_less_one()


def _frangi(shape: str) -> Formula:
    """Parameters: sign, 1 / 2α², 1 / 2β², 1 / √2c."""

    def formula(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
        found = eigenvalues(_signed(entries, parameter), double)
        first, second, third = _by_magnitude(found.values)
        scaled = [value * parameter(3) for value in found.values]
        value = _falls(scaled[0] * scaled[0] + scaled[1] * scaled[1] + scaled[2] * scaled[2])
        inverse = 1 / third
        ratio, least = second * inverse, first * inverse
        if shape == "plate":
            value = value * (1 - _falls(ratio * ratio * parameter(2)))
            holds = third > 0
        else:
            blob = least * least / ratio
            if shape == "tube":
                value = value * _falls(ratio * ratio * parameter(1))
                value = value * (1 - _falls(blob * parameter(2)))
                holds = second.least(third) > 0
            else:
                value = value * _falls(blob * parameter(1))
                holds = first.least(second).least(third) > 0
        return [found.trace.times(0.0, value.where(holds, 0.0))]

    return formula


def _sato(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
    """Parameters: sign."""
    found = eigenvalues(_signed(entries, parameter), double)
    _, second, third = found.values
    value = root(second * third).where(second > 0, 0.0)
    return [found.trace.times(0.0, value)]


def _jerman(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
    """Parameters: sign, the least λρ."""
    found = eigenvalues(_signed(entries, parameter), double)
    _, second, third = _by_magnitude(found.values)
    bounded = third.largest(parameter(1))
    ratio = 3 / (second + bounded)
    value = second * second * (bounded - second) * (ratio * ratio * ratio)
    value = second.of(1.0).where(second * 2 >= bounded, value)
    value = value.where(second.least(third) > 0, 0.0)
    return [found.trace.times(0.0, value)]


def _neurite(entries: Sequence[Lanes], parameter: Any, double: bool) -> tuple[Eigen, Lanes]:
    """Meijering's eigenvalue of the largest magnitude if it is positive, else 0."""
    found = eigenvalues(_signed(entries, parameter), double)
    own, all_of = parameter(1), parameter(2)
    low, high = (value * own + found.trace * all_of for value in (found.values[0], found.values[2]))
    return found, high.where(high.size >= low.size, 0.0).largest(0.0)


def _meijering(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
    """Parameters: sign, 1 - α, α, 1 / the largest value in the volume."""
    found, value = _neurite(entries, parameter, double)
    return [found.trace.times(0.0, value * parameter(3))]


def _largest_norm(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
    """The square of the norm."""
    dd, dw, ww, dh, hw, hh = entries
    return [dd * dd + hh * hh + ww * ww + 2 * (dh * dh + dw * dw + hw * hw)]


def _largest_third(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
    found = eigenvalues(_signed(entries, parameter), double)
    return [_by_magnitude(found.values)[2]]


def _largest_neurite(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
    return [_neurite(entries, parameter, double)[1]]


def _direction(vector: Vector, parameter: Callable[[int], Lanes], trace: Lanes) -> list[Lanes]:
    """A vector along other axes, of which the first number that is not 0 is positive.

    Parameters: the axes, row by row.
    """
    turned = [
        vector[0] * parameter(3 * row)
        + vector[1] * parameter(3 * row + 1)
        + vector[2] * parameter(3 * row + 2)
        for row in range(3)
    ]
    first, second, third = turned
    key = first.where(first.size > 0, second.where(second.size > 0, third))
    flips = key.of(0.0) > key
    return [trace.times(0.0, (-value).where(flips, value)) for value in turned]


def _features(names: Sequence[str], of_hessian: bool) -> Formula:
    """Numbers that are made of the eigenvalues and eigenvectors of a tensor, one after another.

    names : eigenvalues (largest first), coherence, linearity, planarity, orientation, normal
    of_hessian : bool       eigenvalues are ordered by their magnitude for directions
    Parameters: see `_direction`.
    """
    directed = "orientation" in names or "normal" in names

    def formula(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
        found = eigenvalues(entries, double or directed)
        low, middle, high = found.values
        vectors = eigenvectors(found) if directed else None
        numbers = []
        for name in names:
            if name == "eigenvalues":
                numbers += [high, middle, low]
            elif name == "coherence":
                spread = [high - middle, middle - low, high - low]
                above = spread[0] * spread[0] + spread[1] * spread[1] + spread[2] * spread[2]
                below = high * high + middle * middle + low * low
                ratio = root(above / (2 * below))
                numbers.append(found.trace.times(0.0, ratio.where(below > 0, 0.0)))
            elif name in ("linearity", "planarity"):
                apart = middle - low if name == "linearity" else high - middle
                ratio = (apart / high).where(high > 0, 0.0)
                numbers.append(found.trace.times(0.0, ratio))
            else:
                assert vectors is not None
                least, between, largest = vectors
                if of_hessian and name == "orientation":
                    vector = _picked(middle.size > low.size, least, between)
                    vector = _picked(middle.size > high.size, largest, vector)
                elif of_hessian:
                    vector = _picked(high.size >= low.size, largest, least)
                else:
                    vector = least if name == "orientation" else largest
                numbers += _direction(vector, parameter, found.trace)
        return numbers

    return formula


def _products(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
    d, w, h = entries
    return [d * d, d * w, w * w, d * h, h * w, h * h]


# name -> (formula, fields that it takes, numbers that it makes)
FORMULAS: dict[str, tuple[Formula, int, int]] = {
    "frangi-tube": (_frangi("tube"), 6, 1),
    "frangi-plate": (_frangi("plate"), 6, 1),
    "frangi-blob": (_frangi("blob"), 6, 1),
    "sato": (_sato, 6, 1),
    "jerman": (_jerman, 6, 1),
    "meijering": (_meijering, 6, 1),
    "largest-norm": (_largest_norm, 6, 1),
    "largest-third": (_largest_third, 6, 1),
    "largest-neurite": (_largest_neurite, 6, 1),
    "products": (_products, 3, 6),
}
# what is made of the largest number of a formula in a row; it rises with it
FROM_LARGEST = {"largest-norm": root}
WITH_SCALE = "+scale"
# numbers that `_features` makes
SIZES = {"eigenvalues": 3, "orientation": 3, "normal": 3}


def _with_scale(formula: Formula) -> Formula:
    """A formula's number, and parameter 0 where it is above 0; else 0. The others come after it."""

    def both(entries: Sequence[Lanes], parameter: Any, double: bool) -> list[Lanes]:
        (value,) = formula(entries, lambda n: parameter(n + 1), double)
        return [value, value.times(0.0, parameter(0).where(value > 0, 0.0))]

    return both


def formula_of(name: str) -> tuple[Formula, int, int]:
    """A formula by its name: one of `FORMULAS`, or hessian+FEATURE+..., structure+FEATURE+...

    With "+scale" one of `FORMULAS` makes two numbers, see `_with_scale`.
    """
    if name in FORMULAS:
        return FORMULAS[name]
    if name.endswith(WITH_SCALE):
        formula, fields, _ = FORMULAS[name[: -len(WITH_SCALE)]]
        return _with_scale(formula), fields, 2
    kind, *features = name.split("+")
    count = sum(SIZES.get(feature, 1) for feature in features)
    return _features(features, kind == "hessian"), 6, count


def _emitted(
    name: str, lanes: int, real: str, b: Any, source: Any, field: Any, parameters: Any
) -> list[Lanes]:
    """Emit a formula at `lanes` voxels. Returns its numbers.

    source : address        of the first field's numbers; fields are `field` bytes apart
    parameters : address    float64
    """
    formula, fields, _ = formula_of(name)
    double = real == "float64"
    v, narrow = Vec(b, lanes, "float64"), Vec(b, lanes, real)
    table = b.inttoptr(parameters, v.real.as_pointer())

    def load(f: int) -> Lanes:
        at = b.inttoptr(b.add(source, b.mul(field, const(f))), narrow.real.as_pointer())
        value = narrow.load(at, const(0))
        return Lanes(v, value if double else b.fpext(value, v.type))

    def parameter(number: int) -> Lanes:
        return Lanes(v, v.broadcast(table, const(number)))

    return formula([load(f) for f in range(fields)], parameter, double)


def _store_lanes(value: Lanes, real: str, to: Any) -> None:
    """Emit a store of numbers at an address, rounded to the type."""
    b, narrow = value.v.b, Vec(value.v.b, value.v.lanes, real)
    own = value.value if real == "float64" else b.fptrunc(value.value, narrow.type)
    narrow.store(own, b.inttoptr(to, narrow.real.as_pointer()), const(0))


def _apply(name: str, lanes: int, real: str) -> Any:
    """A function that computes a formula at `lanes` voxels."""

    @intrinsic
    def apply(typingctx, source, field, parameters, out, out_field):
        """Compute the formula: see `_emitted`.

        out : address           of the first number; those of a voxel are `out_field` bytes apart
        """
        sig = types.void(source, field, parameters, out, out_field)

        def codegen(context, b, sig, args):
            source, field, parameters, out, out_field = args
            for n, value in enumerate(_emitted(name, lanes, real, b, source, field, parameters)):
                _store_lanes(value, real, b.add(out, b.mul(out_field, const(n))))
            return context.get_dummy_value()

        return sig, codegen

    return apply


def _apply_largest(name: str, lanes: int, real: str) -> Any:
    """A function that computes the largest number of a formula in a row, of each lane."""
    size = 8 if real == "float64" else 4

    @intrinsic
    def apply(typingctx, source, field, parameters, columns, out):
        """Compute the formula at `columns` voxels: see `_emitted`.

        out : address           of the largest numbers of the lanes, at least 0
        """
        sig = types.void(source, field, parameters, columns, out)

        def codegen(context, b, sig, args):
            source, field, parameters, columns, out = args
            v = Vec(b, lanes, "float64")
            places = Lanes(v, ir.Constant(v.type, [float(lane) for lane in range(lanes)]))

            def body(x, largest):
                at = b.add(source, b.mul(x, const(size)))
                (value,) = _emitted(name, lanes, real, b, at, field, parameters)
                left = Lanes(v, v.spread(b.sitofp(b.sub(columns, x), v.real)))
                inside = value.where(left > places, 0.0)
                return [inside.largest(Lanes(v, largest[0])).value]

            stop = b.add(columns, const(lanes - 1))
            _, (largest,) = emit_loop(b, const(0), stop, lanes, [v.zero], body)
            last = FROM_LARGEST.get(name, lambda value: value)
            _store_lanes(last(Lanes(v, largest)), real, out)
            return context.get_dummy_value()

        return sig, codegen

    return apply


def store(name, lanes, real):
    """Compute a formula at a row of `count` planes, and write it, or what exceeds earlier scales.

    Where a scale is written, too, it follows the number that it belongs to.

    lanes : int     voxels that the formula takes at once
    """
    follows = name.endswith(WITH_SCALE)
    kind, size = np.dtype(real).type, 8 if real == "float64" else 4
    apply = _apply(name, lanes, real)
    numbers = formula_of(name)[2]

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        columns, apart = p[AT.columns], p[AT.out_column]
        parameters = step[F.workspace] + 8 * p[AT.numbers] * p[AT.scale]
        found_at, pitch = step[F.scratch] + p[AT.found_at], p[AT.found_field] // size
        for plane in range(p[AT.count]):
            source = step[F.scratch] + p[AT.sums_at] + plane * p[AT.sums_plane]
            x = 0
            while x < columns:
                apply(
                    source + size * x,
                    p[AT.sums_field],
                    parameters,
                    found_at + size * x,
                    p[AT.found_field],
                )
                x += lanes
            row = (p[AT.plane] + plane) * p[AT.out_plane] + p[AT.block_row] * p[AT.out_row]
            out = memory(step[F.out] + size * row, kind)
            found = memory(found_at, kind)
            if p[AT.out_number] == 1 and apart == numbers:  # a constant distance makes vectors
                if p[AT.scale] == 0:
                    for x in range(columns):
                        for n in range(numbers):
                            out[x * numbers + n] = found[x + n * pitch]
                elif follows:
                    for x in range(columns):
                        value, best = found[x], out[x * numbers]
                        if value > best or value != value:
                            for n in range(numbers):
                                out[x * numbers + n] = found[x + n * pitch]
                else:
                    for x in range(columns):
                        for n in range(numbers):
                            value, best = found[x + n * pitch], out[x * numbers + n]
                            value = value if value > best or value != value else best
                            out[x * numbers + n] = value
            elif follows:
                for x in range(columns):
                    value, best = found[x], out[x * apart]
                    if p[AT.scale] == 0 or value > best or value != value:
                        for n in range(numbers):
                            out[x * apart + n * p[AT.out_number]] = found[x + n * pitch]
            else:
                for n in range(numbers):
                    for x in range(columns):
                        at = x * apart + n * p[AT.out_number]
                        value, best = found[x + n * pitch], out[at]
                        if p[AT.scale] > 0 and (best >= value or best != best):
                            value = best
                        out[at] = value

    return loops


def store_largest(name, lanes, real):
    """Compute a formula at a row of `count` planes, and keep the largest number of each scale.

    Out: (planes, scales), of the tile. NaN does not count.
    """
    kind, size = np.dtype(real).type, 8 if real == "float64" else 4
    apply = _apply_largest(name, lanes, real)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        parameters = step[F.workspace] + 8 * p[AT.numbers] * p[AT.scale]
        found_at = step[F.scratch] + p[AT.found_at]
        found = memory(found_at, kind)
        for plane in range(p[AT.count]):
            source = step[F.scratch] + p[AT.sums_at] + plane * p[AT.sums_plane]
            apply(source, p[AT.sums_field], parameters, p[AT.columns], found_at)
            at = (p[AT.plane] + plane) * p[AT.out_plane] + p[AT.scale]
            out = memory(step[F.out] + size * at, kind)
            for lane in range(lanes):
                out[0] = found[lane] if found[lane] > out[0] else out[0]

    return loops

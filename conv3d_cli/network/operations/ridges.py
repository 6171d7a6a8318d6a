"""Ridges: how much a volume looks like a tube, a plate or a blob at each voxel, over some scales.

The measures are functions of the eigenvalues of the Hessian, scale-normalised: in voxel units the
derivative along axes a and b is multiplied by σa·σb, which is σ² times the derivative per physical
unit. In formulas here λ are the eigenvalues of the negative Hessian if bright structures are looked
for, so the interior of what is looked for has positive ones, and |λ1| <= |λ2| <= |λ3|, or
μ1 <= μ2 <= μ3 where they are ordered by value.

- frangi: A. Frangi et al., Multiscale vessel enhancement filtering, MICCAI 1998. Plates and blobs:
  L. Antiga, Generalizing vesselness with respect to dimensionality and shape, Insight Journal 2007.
- sato: Y. Sato et al., Three-dimensional multi-scale line filter, Medical Image Analysis 2 (1998).
- jerman: T. Jerman et al., Enhancement of vascular structures in 3D and 2D angiographic images,
  IEEE Transactions on Medical Imaging 35 (2016).
- meijering: E. Meijering et al., Design and validation of a tool for neurite tracing and analysis
  in fluorescence microscopy images, Cytometry A 58 (2004); in n dimensions α = -1 / (n + 1), the
  value for which the filter is flattest along a tube.

scikit-image 0.26 differs: `frangi` takes c from the first scale for all of them and does not
normalise derivatives by the scale, so larger tubes vanish; `meijering` has α = +1/4 where its
documentation and the paper have a negative number. Its Hessian is made of two derivatives one
after the other, of which the first is mirrored at the edges without its change of sign, so within
4σ of an edge all of its results are others; inside, `sato` agrees within 1 % from σ = 2 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from conv3d_cli.errors import SpecError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.network.operations.base import Array, Reals, Shape, Window
from conv3d_cli.network.operations.gaussian import (
    Floats,
    GaussianOperation,
    engine_taps,
    filtered,
    magnitudes,
)

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode

ALPHA_OF_MEIJERING = -1 / 4
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


class Interval(NamedTuple):
    """The least and the largest value that a number may have."""

    low: Reals
    high: Reals


class Measure(NamedTuple):
    """A way to measure ridges.

    shapes : of structures that it knows
    of : callable       (eigenvalues (..., 3) by value, constant, parameters) -> (...)
    range : callable    the same of what eigenvalues that are off by up to `error` give:
                        (eigenvalues, error, constant as an Interval, parameters) -> Interval
    statistic : str     what its constant is made of: the largest number of this formula
    of_largest : callable       (largest number in the volume, parameters) -> constant; None: it has
                                no constant
    numbers : callable  (constant, parameters) -> what the engine's formula takes after the sign
    statistic_of : callable     (eigenvalues) -> the numbers whose largest is meant
    """

    shapes: tuple[str, ...]
    of: Callable[[Reals, Any, dict[str, Any]], Reals]
    range: Callable[[Reals, Reals, Interval, dict[str, Any]], Interval]
    statistic: str = ""
    of_largest: Callable[[Any, dict[str, Any]], Any] | None = None
    numbers: Callable[[float, dict[str, Any]], list[float]] = lambda constant, values: []
    statistic_of: Callable[[Reals], Reals] | None = None


def by_magnitude(values: Reals) -> tuple[Reals, Reals, Reals]:
    """λ1, λ2, λ3 of eigenvalues (..., 3)."""
    order = np.argsort(np.abs(values), axis=-1, kind="stable")
    found = np.take_along_axis(values, order, axis=-1)
    return found[..., 0], found[..., 1], found[..., 2]


def norm_of(values: Reals) -> Reals:
    """The Frobenius norm of the matrix that has these eigenvalues."""
    return np.asarray(np.sqrt(np.square(values).sum(axis=-1)))


def _falling(x: Any) -> Any:
    return -np.expm1(-x)


def _structure(norm: Any, c: Any) -> Any:
    """Frangi's third factor; 0 where c is 0, since the volume has no structure then."""
    ratio = np.divide(norm, c, out=np.zeros(np.broadcast(norm, c).shape), where=np.asarray(c) > 0)
    return _falling(ratio**2 / 2)


def _frangi(values: Reals, c: Any, given: dict[str, Any]) -> Reals:
    first, second, third = by_magnitude(values)
    a, b = 2 * given["alpha"] ** 2, 2 * given["beta"] ** 2
    strength = _structure(norm_of(values), c)
    if given["shape"] == "plate":
        found, holds = strength * np.exp(-((second / third) ** 2) / b), third > 0
    elif given["shape"] == "tube":
        found = strength * _falling((second / third) ** 2 / a)
        found = found * np.exp(-(first**2) / (second * third) / b)
        holds = (second > 0) & (third > 0)
    else:
        found = strength * _falling(first**2 / (second * third) / a)
        holds = (first > 0) & (second > 0) & (third > 0)
    return np.where(holds, found, np.where(np.isnan(third), np.nan, 0.0))


def _frangi_range(values: Reals, error: Reals, c: Interval, given: dict[str, Any]) -> Interval:
    first, second, third = by_magnitude(values)
    sizes = [np.abs(one) for one in (first, second, third)]
    low, high = ([np.maximum(one + s * error, 0) for one in sizes] for s in (-1, 1))
    a, b = 2 * given["alpha"] ** 2, 2 * given["beta"] ** 2
    norm = norm_of(values)
    strength = (
        _structure(np.maximum(norm - 2 * error, 0), c.high),
        np.where(c.low > 0, _structure(norm + 2 * error, c.low), 1.0),
    )
    least, most = np.array(strength[0]), np.array(strength[1])
    shape = given["shape"]
    if shape == "plate":
        ratio = low[1] / high[2], np.minimum(high[1] / low[2], 1)
        least, most = least * np.exp(-(ratio[1] ** 2) / b), most * np.exp(-(ratio[0] ** 2) / b)
        needed = 1
    elif shape == "tube":
        ratio = low[1] / high[2], np.minimum(high[1] / low[2], 1)
        least, most = least * _falling(ratio[0] ** 2 / a), most * _falling(ratio[1] ** 2 / a)
        blob = low[0] ** 2 / (high[1] * high[2]), high[0] ** 2 / (low[1] * low[2])
        least, most = least * np.exp(-blob[1] / b), most * np.exp(-blob[0] / b)
        needed = 2
    else:
        blob = low[0] ** 2 / (high[1] * high[2]), np.minimum(high[0] ** 2 / (low[1] * low[2]), 1)
        least, most = least * _falling(blob[0] / a), most * _falling(blob[1] / a)
        needed = 3
    return _with_signs(values, error, needed, least, most, strength[1])


def _with_signs(
    values: Reals, error: Reals, needed: int, low: Reals, high: Reals, most: Reals
) -> Interval:
    """A range where the `needed` eigenvalues of the largest magnitude must be positive.

    most : what it may be where their order is not certain
    """
    ordered = by_magnitude(values)
    sizes = [np.abs(one) for one in ordered]
    last = ordered[3 - needed :]
    positive = np.all([one > error for one in last], axis=0)
    negative = np.any([one < -error for one in last], axis=0)
    sure = np.ones(low.shape, np.bool_)
    for one, other in ((0, 1), (1, 2)):
        # two of one sign that change places change nothing, since ranges overlap
        differs = (ordered[one] > error) != (ordered[other] > error)
        sure &= ~differs | (sizes[other] - sizes[one] > 2 * error)
    low = np.where(sure & positive, low, 0.0)
    high = np.where(sure & negative, 0.0, np.where(sure & positive, high, most))
    # their order by size may change, too, which the ranges of each do not see
    return Interval(np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, most))


def _sato(values: Reals, constant: Any, given: dict[str, Any]) -> Reals:
    second, third = values[..., 1], values[..., 2]
    found = np.sqrt(np.maximum(second, 0) * np.maximum(third, 0))
    return np.where(np.isnan(second), np.nan, found)


def _sato_range(values: Reals, error: Reals, c: Interval, given: dict[str, Any]) -> Interval:
    low, high = (_sato(values + s * error[..., None], 0, given) for s in (-1, 1))
    return Interval(low, high)


def _jerman(values: Reals, least: Any, given: dict[str, Any]) -> Reals:
    _, second, third = by_magnitude(values)
    return _jerman_of(second, third, least)


def _jerman_of(second: Reals, third: Reals, least: Any) -> Reals:
    bounded = np.maximum(third, least)
    found = second**2 * (bounded - second) * (3 / (second + bounded)) ** 3
    found = np.where(second >= bounded / 2, 1.0, found)
    return np.where((second > 0) & (third > 0), found, np.where(np.isnan(third), np.nan, 0.0))


def _jerman_range(values: Reals, error: Reals, c: Interval, given: dict[str, Any]) -> Interval:
    _, second, third = by_magnitude(values)
    tiny = np.finfo(float).tiny
    low = _jerman_of(second - error, third + error, c.high)
    high = _jerman_of(second + error, np.maximum(third - error, tiny), c.low)
    return _with_signs(values, error, 2, low, high, np.ones_like(low))


def _neurites(values: Reals) -> Reals:
    """Meijering's eigenvalues of the modified Hessian, by value."""
    alpha = ALPHA_OF_MEIJERING
    return np.asarray((1 - alpha) * values + alpha * values.sum(axis=-1, keepdims=True))


def _neurite(values: Reals) -> Reals:
    """The one of the largest magnitude if it is positive, else 0."""
    found = _neurites(values)
    low, high = found[..., 0], found[..., 2]
    holds = (np.abs(high) >= np.abs(low)) & (high > 0)
    return np.where(holds, high, np.where(np.isnan(high), np.nan, 0.0))


def _meijering(values: Reals, largest: Any, given: dict[str, Any]) -> Reals:
    found = _neurite(values)
    largest = np.broadcast_to(largest, found.shape)
    return np.where(largest > 0, found / np.where(largest > 0, largest, 1.0), 0.0 * found)


def _meijering_range(values: Reals, error: Reals, c: Interval, given: dict[str, Any]) -> Interval:
    found, off = _neurites(values), 2 * error
    low, high = found[..., 0], found[..., 2]
    apart = np.abs(high) - np.abs(low)
    least = np.where(apart > 2 * off, np.maximum(high - off, 0), 0.0)
    most = np.where(apart < -2 * off, 0.0, np.maximum(high + off, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(c.high > 0, least / c.high, 0.0)
        high = np.where(c.low > 0, most / c.low, np.where(most > 0, np.inf, 0.0))
    return Interval(low, high)


MEASURES: dict[str, Measure] = {
    "frangi": Measure(
        ("tube", "plate", "blob"),
        _frangi,
        _frangi_range,
        "largest-norm",
        lambda largest, given: largest / 2,
        lambda c, given: [
            1 / (2 * given["alpha"] ** 2),
            1 / (2 * given["beta"] ** 2),
            1 / (np.sqrt(2) * c) if c > 0 else 0.0,
        ],
        norm_of,
    ),
    "sato": Measure(("tube",), _sato, _sato_range),
    "jerman": Measure(
        ("tube",),
        _jerman,
        _jerman_range,
        "largest-third",
        lambda largest, given: given["tau"] * largest,
        lambda c, given: [c],
        lambda values: by_magnitude(values)[2],
    ),
    "meijering": Measure(
        ("tube",),
        _meijering,
        _meijering_range,
        "largest-neurite",
        lambda largest, given: largest,
        lambda c, given: [1 - ALPHA_OF_MEIJERING, ALPHA_OF_MEIJERING, 1 / c if c > 0 else 0.0],
        _neurite,
    ),
}


class HessianOperation(GaussianOperation):
    """An operation on the scale-normalised Hessian at several scales.

    method : a name in `MEASURES`
    bright : bool       what is looked for is brighter than its surroundings
    scales : (sigma, ...)       standard deviations in voxels along D, H, W
    boundary : text
    """

    attributes: ClassVar[tuple[str, ...]] = ("method", "bright", "scales", "boundary")

    def resolve(self) -> Shape:
        self.method = self.choice("method", "frangi", list(MEASURES))
        self.measure = MEASURES[self.method]
        self.bright = bool(self.argument("bright", True))
        self.scales = [self.sigma_of(sigma, "scales") for sigma in self.argument("scales", ())]
        if not self.scales:
            raise SpecError(f"{self.where} needs at least one scale")
        self.read_boundary()
        self.set_reach(self.scales)
        return self.inputs[0]

    def eigenvalues(self, window: Window, box: Box, channel: int) -> list[Reals]:
        """The eigenvalues (d, h, w, 3) of each scale by value, positive in what is looked for."""
        padded = self.padded(window, box)[..., channel]
        found = []
        for sigma in self.scales:
            hessian = np.empty((*box.size, 3, 3))
            for a, b in PAIRS:
                orders = [int(axis == a) + int(axis == b) for axis in range(3)]
                entry = filtered(padded, sigma, orders, self.reach) * (sigma[a] * sigma[b])
                hessian[..., a, b] = hessian[..., b, a] = -entry if self.bright else entry
            good = np.asarray(np.isfinite(hessian).all(axis=(-2, -1), keepdims=True))
            values = np.linalg.eigvalsh(np.where(good, hessian, 0.0))
            found.append(np.where(good[..., 0], values, np.nan))
        return found

    def eigenvalue_errors(
        self, window: Window, errors: Window, box: Box, channel: int, rounding: float
    ) -> list[Reals]:
        """How far the eigenvalues of each scale may be off: (d, h, w)."""
        size = np.abs(self.padded(window, box)[..., channel])
        off = self.padded(errors, box, 0.0)[..., channel] + rounding * size
        found = []
        for sigma in self.scales:
            squares = np.zeros(box.size)
            for a, b in PAIRS:
                orders = [int(axis == a) + int(axis == b) for axis in range(3)]
                entry = magnitudes(off, sigma, orders, self.reach) * (sigma[a] * sigma[b])
                squares += (1 if a == b else 2) * entry**2
            found.append(np.sqrt(squares))
        return found

    @property
    def taps(self) -> list[Any]:
        """The filters of each scale for the engine."""
        ones = (1.0, 1.0, 1.0)
        return [
            engine_taps(sigma, (ones, sigma, tuple_of(s * s for s in sigma)))
            for sigma in self.scales
        ]

    def scratch_bytes(self, real: np.dtype[Any]) -> int:
        """Bytes that each thread takes for its rings of filtered planes."""
        from conv3d_cli.engine.derivatives import scratch_bytes

        return scratch_bytes("hessian", 2, self.taps, self.inputs[0].size, real.itemsize)

    @property
    def sign(self) -> float:
        """-1 if bright structures are looked for."""
        return -1.0 if self.bright else 1.0


def tuple_of(values: Any) -> Floats:
    """Three numbers of an iterable."""
    d, h, w = values
    return d, h, w


class Ridges(HessianOperation):
    """A measure of ridges, the largest over all scales, for each channel; and that scale.

    The attribute `shape` says what is looked for: tube, plate or blob; the last two only by frangi.

    c : float or None           frangi: a norm of the Hessian that counts as structure; jerman: the
                                least λ3; meijering: what counts as 1. None: from the second input,
                                the largest of `RidgeMaxima`, for each channel and scale
    given : dict                the arguments of measures: `shape`; `alpha` and `beta`, how soon
                                frangi leaves out plates and blobs; `tau`, jerman's least λ3 in
                                parts of the largest in the volume
    lengths : list of float     the number of each scale for a second channel, which has that of the
                                first scale with the largest response, or 0 where no response is
                                above 0; empty: there is no such channel
    """

    arity = (1, 2)
    attributes = (
        *HessianOperation.attributes,
        "shape",
        "alpha",
        "beta",
        "tau",
        "c",
        "lengths",
    )

    def resolve(self) -> Shape:
        shape = super().resolve()
        self.given: dict[str, Any] = {
            "shape": self.choice("shape", "tube", ("tube", "plate", "blob")),
            "alpha": self.number("alpha", 0.5),
            "beta": self.number("beta", 0.5),
            "tau": self.number("tau", 0.75),
        }
        own = self.given["shape"]
        if own not in self.measure.shapes:
            raise SpecError(f"{self.method} measures tubes only; for a {own} take frangi")
        c = self.argument("c")
        self.c = None if c is None else float(c)
        needs = self.measure.of_largest is not None and self.c is None
        if needs != (len(self.inputs) == 2):
            raise SpecError(f"{self.where} needs {'' if needs else 'no '}maxima of its volume")
        self.lengths = [float(one) for one in self.argument("lengths", ())]
        if self.lengths and len(self.lengths) != len(self.scales):
            raise SpecError(f"{self.where} needs a length for each scale")
        return shape._replace(channels=shape.channels * self.made_of_each)

    @property
    def made_of_each(self) -> int:
        """Channels that it makes of each of the input's."""
        return 2 if self.lengths else 1

    def constants(self, windows: Sequence[Window], channel: int) -> list[float]:
        """The constant of each scale."""
        if self.measure.of_largest is None:
            return [0.0] * len(self.scales)
        if self.c is not None:
            return [self.c] * len(self.scales)
        return [
            float(self.measure.of_largest(m, self.given)) for m in self._maxima(windows, channel)
        ]

    def _maxima(self, windows: Sequence[Window], channel: int) -> Array:
        count = len(self.scales)
        return np.asarray(windows[1].voxels[0, 0, 0, channel * count : (channel + 1) * count])

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        found = []
        for channel in range(self.inputs[0].channels):
            constants = self.constants(windows, channel)
            with np.errstate(all="ignore"):
                answers = np.array(
                    [
                        self.measure.of(values, constant, self.given)
                        for values, constant in zip(
                            self.eigenvalues(windows[0], box, channel), constants, strict=True
                        )
                    ]
                )
            found.append(answers.max(axis=0))
            if self.lengths:
                found.append(self._scale_of(answers))
        return np.stack(found, axis=-1)

    def _scale_of(self, answers: Reals) -> Reals:
        """The length of the best scale of answers (scales, ...)."""
        response = answers.max(axis=0)
        best = np.array(self.lengths)[answers.argmax(axis=0)]
        return np.where(np.isnan(response), np.nan, np.where(response > 0, best, 0.0))

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        found = []
        for channel in range(self.inputs[0].channels):
            constants = np.array(self.constants(windows, channel))
            off = np.zeros_like(constants)
            if len(windows) == 2 and self.measure.of_largest is not None:
                maxima = self._maxima(windows, channel)
                spread = self._maxima(errors, channel) + rounding * maxima
                off = np.array([float(self.measure.of_largest(m, self.given)) for m in spread])
            values = self.eigenvalues(windows[0], box, channel)
            spreads = self.eigenvalue_errors(windows[0], errors[0], box, channel, rounding)
            bound = np.zeros(box.size)
            answers, lowest, highest = [], [], []
            with np.errstate(all="ignore"):
                for own, spread, c, change in zip(values, spreads, constants, off, strict=True):
                    spread = spread + rounding * np.abs(own).max(axis=-1)
                    value = self.measure.of(own, c, self.given)
                    about = Interval(np.maximum(c - change, 0.0), c + change)
                    low, high = self.measure.range(own, spread, about, self.given)
                    apart = np.maximum(value - low, high - value) + 4 * rounding * np.abs(high)
                    bound = np.maximum(bound, apart)
                    answers.append(value)
                    # what is smaller yet becomes 0 in float32
                    lowest.append(value - apart - np.finfo(np.float32).tiny)
                    highest.append(value + apart + np.finfo(np.float32).tiny)
            found.append(np.where(np.isnan(bound), np.inf, bound))
            if self.lengths:
                each = np.array(answers), np.array(lowest), np.array(highest)
                found.append(self._scale_bound(*each, rounding))
        return np.stack(found, axis=-1)

    def _scale_bound(self, answers: Reals, lowest: Reals, highest: Reals, rounding: float) -> Reals:
        """How far the best scale may be off, if answers (scales, ...) are between two others."""
        named = self._scale_of(answers)
        least = lowest.max(axis=0)
        bound = np.where(least > 0, 0.0, np.abs(named))  # perhaps there is no response
        for length, most in zip(self.lengths, highest, strict=True):
            may_be = (most >= least) & (most > 0)
            bound = np.where(may_be, np.maximum(bound, np.abs(length - named)), bound)
        return np.where(np.isnan(bound), np.inf, bound + rounding * np.abs(named))

    @property
    def formula(self) -> str:
        """The name of its formula in the engine."""
        name = f"frangi-{self.given['shape']}" if self.method == "frangi" else self.method
        return f"{name}+scale" if self.lengths else name

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine.derivatives import compute_formula

        made = self.made_of_each
        for channel in range(self.inputs[0].channels):
            numbers = [
                [self.sign, *self.measure.numbers(c, self.given)]
                for c in self.constants(windows, channel)
            ]
            if self.lengths:
                numbers = [[n, *own] for n, own in zip(self.lengths, numbers, strict=True)]
            source = self.extended(windows[0], box, slice(channel, channel + 1))
            target = out[..., made * channel : made * (channel + 1)]
            compute_formula(
                "hessian", self.formula, source, self.taps, np.array(numbers), target, team
            )

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.derivatives import derivative_codes

        return derivative_codes("hessian", self.formula, real)


class RidgeMaxima(HessianOperation):
    """What a measure takes of the whole volume, plane by plane: (D, 1, 1, channels · scales).

    For each channel and scale: frangi, the largest norm of the Hessian; jerman, the largest λ3;
    meijering, the largest neurite. NaN does not count, and nothing below 0.
    """

    def resolve(self) -> Shape:
        source = super().resolve()
        if self.measure.statistic_of is None:
            raise SpecError(f"{self.method} takes no maxima of its volume")
        return Shape(source.depth, 1, 1, source.channels * len(self.scales))

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return super().span(number, axis, outputs) if axis == 0 else (0, self.inputs[0][axis])

    @property
    def transform(self) -> VoxelTransform:
        _, height, width, _ = self.inputs[0]
        return VoxelTransform((1, height, width), (0.0, (height - 1) / 2, (width - 1) / 2))

    def _whole(self, box: Box) -> Box:
        return Box(box[0], (0, self.inputs[0].height), (0, self.inputs[0].width))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        assert self.measure.statistic_of is not None
        found = []
        for channel in range(self.inputs[0].channels):
            for values in self.eigenvalues(windows[0], self._whole(box), channel):
                own = self.measure.statistic_of(values)
                own = np.where(own > 0, own, 0.0)
                found.append(own.max(axis=(1, 2), keepdims=True))
        return np.stack(found, axis=-1)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        # λ3 may change places with -λ3, and the norm of errors is at most √3 times the largest
        found = []
        whole = self._whole(box)
        for channel in range(self.inputs[0].channels):
            off = self.eigenvalue_errors(windows[0], errors[0], whole, channel, rounding)
            values = self.eigenvalues(windows[0], whole, channel)
            for spread, own in zip(off, values, strict=True):
                spread = 2 * spread + rounding * np.nan_to_num(np.abs(own).max(axis=-1))
                found.append(spread.max(axis=(1, 2), keepdims=True))
        return np.stack(found, axis=-1)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine.derivatives import compute_largest

        count = len(self.scales)
        numbers = [self.sign]
        if self.method == "meijering":
            numbers += [1 - ALPHA_OF_MEIJERING, ALPHA_OF_MEIJERING]
        parameters = np.array([numbers] * count)
        whole = self._whole(box)
        for channel in range(self.inputs[0].channels):
            source = self.extended(windows[0], whole, slice(channel, channel + 1))
            out[:, 0, 0, channel * count : (channel + 1) * count] = compute_largest(
                "hessian", self.measure.statistic, source, self.taps, parameters, whole.size, team
            )

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.derivatives import derivative_codes

        return derivative_codes("hessian", self.measure.statistic, real, largest=True)

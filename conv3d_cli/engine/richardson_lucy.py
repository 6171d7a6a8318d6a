"""Richardson-Lucy deconvolution of a volume in memory or in a file.

    x <- x · H'(y / (H x + b)) / H'1

H continues the volume by the boundary mode and blurs it (`deconvolution.py`), so its border is
estimated as all the rest, and edges do not ring.

Source: W. H. Richardson, J. Opt. Soc. Am. 62 (1972) 55-59; L. B. Lucy, Astron. J. 79 (1974)
745-754; total variation: N. Dey et al., Microsc. Res. Tech. 69 (2006) 260-266; acceleration:
D. S. C. Biggs and M. Andrews, Appl. Opt. 36 (1997) 1766-1775.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.deconvolution import (
    FLAT,
    RATIO,
    UPDATE,
    Blur,
    Change,
    Coverage,
    choose_bricks,
)
from conv3d_cli.engine.fields import Field
from conv3d_cli.model.spec import Triple
from conv3d_cli.system import elementary

Array = NDArray[Any]

PLANES = 4  # of a volume that a pass without transforms takes at once
SMOOTH = 0.01  # slopes below this part of the mean count as flat in the total variation


@dataclass(frozen=True)
class Rules:
    """How to iterate.

    iterations : int    at most
    stop : float        end when the sum of |changes| falls below this part of the sum of x
    background : float  that the data have besides the blurred object
    tv : float          weight of the total variation, below 1/6
    accelerate : bool   extrapolate each step (Biggs and Andrews)
    from_data : bool    begin with the data, not with a constant
    """

    iterations: int
    stop: float = 0.0
    background: float = 0.0
    tv: float = 0.0
    accelerate: bool = False
    from_data: bool = False


def fields_needed(rules: Rules, size: Triple, taps: Triple, real: np.dtype[Any]) -> int:
    """How many fields `richardson_lucy` makes."""
    bricks = choose_bricks(size, taps, real.itemsize)
    whole = bricks is not None and math.prod(bricks.parts) == 1
    return 1 + (not whole) + (rules.tv > 0) + 3 * rules.accelerate


def richardson_lucy(
    blur: Blur,
    data: Field,
    new: Callable[[], Field],
    rules: Rules,
    mean: float,
    largest: float,
    done: Callable[[int, Field], None] = lambda number, estimate: None,
) -> tuple[Field, int]:
    """Estimate what was blurred.

    data : Field            y, without negative voxels
    new : callable          makes another field of the same size
    mean, largest : float   of the data
    done : callable         called after each iteration with its number, from 1, and the estimate
    Returns the estimate and the number of iterations.
    """
    return _Solver(blur, data, new, rules, mean, largest).run(done)


@dataclass
class _Extrapolated:
    """Fields of the acceleration: where the next iteration begins, its last gain, and another."""

    point: Field
    gain: Field
    spare: Field

    @property
    def fields(self) -> list[Field]:
        return [self.point, self.gain, self.spare]


class _Solver:
    def __init__(
        self,
        blur: Blur,
        data: Field,
        new: Callable[[], Field],
        rules: Rules,
        mean: float,
        largest: float,
    ) -> None:
        self.blur, self.data, self.rules, self.new = blur, data, rules, new
        self.team, self.depth, self.real = blur.team, blur.size[0], blur.real
        # what ratios are divided by is at least this: where nothing is seen, it is rounding noise
        self.floor = 4 * float(np.finfo(self.real).eps) * largest
        self.mean = mean
        self.start = max(mean - rules.background, self.floor) or 1.0
        ones = np.ones_like
        self.plain = blur.coverage(False, ones)  # ratios take no factors
        if blur.backward is None:
            self.norm = blur.coverage(True, lambda sums: 1 / sums)
        else:  # a filter, which leaves a constant as it is
            self.norm = self.plain
        self.estimate = new()
        self.is_transformed = False  # for one brick: the planes of x are
        self.ratio = None if blur.is_whole else new()
        self.extra = new() if rules.tv else None

    def run(self, done: Callable[[int, Field], None]) -> tuple[Field, int]:
        """Iterate."""
        rules, number, rate, length = self.rules, 0, 0.0, 0.0
        self._begin()
        extrapolated: _Extrapolated | None = None
        if rules.accelerate:
            extrapolated = _Extrapolated(self.new(), self.new(), self.new())
            self._copy(self.estimate, extrapolated.point)
        if not rules.from_data:
            self._first_ratios()
        for number in range(1, rules.iterations + 1):
            source = self.estimate if extrapolated is None else extrapolated.point
            if number > 1 or rules.from_data:
                self._ratios(source)
            sums = np.zeros((self.depth, 2)) if rules.stop else None
            if extrapolated is None:
                self._update(source, self.estimate, sums, joins=number < rules.iterations)
            else:
                self._update(source, extrapolated.spare, sums, joins=False)
                before, self.estimate = self.estimate, extrapolated.spare
                product, square = self._gain(self.estimate, source, extrapolated.gain, number > 1)
                rate = min(max(product / length, 0.0), 1.0) if length else 0.0
                length = square
                self._extrapolate(self.estimate, before, rate, source)
                extrapolated.spare = before
            done(number, self.estimate)
            if sums is not None:
                changed, size = sums.sum(axis=0)
                if changed <= rules.stop * size:
                    break
        others = [] if extrapolated is None else extrapolated.fields
        for field in (*others, self.ratio, self.extra):
            if field is not None:
                field.close()
        return self.estimate, number

    # ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The first estimate."""
        constant = np.full((PLANES, *self.blur.size[1:]), self.start, self.real)
        for start in range(0, self.depth, PLANES):
            stop = min(start + PLANES, self.depth)
            planes = constant[: stop - start]
            if self.rules.from_data:
                planes = np.maximum(self.data.read(start, stop), self.floor)
            self.estimate.write(start, planes)

    def _first_ratios(self) -> None:
        """The ratios for a constant estimate, whose blur is known."""
        constant, fill = self.start, self.blur.boundary.value
        total = elementary.total(self.blur.weights)
        blurred = self.blur.coverage(False, lambda sums: constant * sums + fill * (total - sums))
        change = Change(
            FLAT, self.data, self.ratio, background=self.rules.background, floor=self.floor
        )
        if self.ratio is None:
            self.blur.first(change, blurred)
        else:
            self._divide(blurred, self.ratio)

    def _divide(self, blurred: Coverage, out: Field) -> None:
        """The same for several bricks."""
        background, floor = (self.real.type(n) for n in (self.rules.background, self.floor))

        def work(start: int, stop: int) -> None:
            below = np.maximum(blurred.planes_of(start, stop) + background, floor)
            out.write(start, self.data.read(start, stop) / below)

        self._pass(work)

    def _ratios(self, source: Field) -> None:
        """y / (H source + b)."""
        change = Change(
            RATIO, self.data, self.ratio, background=self.rules.background, floor=self.floor
        )
        if self.ratio is not None:
            self.blur.apply(source, False, change, self.plain)
            return
        (brick,) = self.blur.bricks_of(False)
        if not self.is_transformed:
            self.blur.transform(source, False, brick)
        self.blur.convolve(False, brick)
        self.blur.finish(False, brick, change, self.plain, joins=True)

    def _update(self, source: Field, out: Field, sums: Array | None, joins: bool) -> None:
        """out = source · H'(ratios) / H'1.

        joins : bool    the result is blurred next, so one brick transforms it at once
        """
        if self.extra is not None:
            self._variation(source, self.extra)
        change = Change(UPDATE, source, out, self.extra, sums=sums)
        if self.ratio is not None:
            self.blur.apply(self.ratio, True, change, self.norm)
            return
        (brick,) = self.blur.bricks_of(True)
        self.blur.convolve(True, brick)
        self.blur.finish(True, brick, change, self.norm, joins)
        self.is_transformed = joins

    def _pass(self, work: Callable[[int, int], Any]) -> list[Any]:
        """The results of `work(start, stop)` for a few planes at a time, in order."""
        count = -(-self.depth // PLANES)
        found: list[Any] = [None] * count

        def task(_: int, number: int) -> None:
            start = number * PLANES
            found[number] = work(start, min(start + PLANES, self.depth))

        self.team.run(count, task)
        return found

    def _copy(self, source: Field, out: Field) -> None:
        self._pass(lambda start, stop: out.write(start, source.read(start, stop)))

    def _gain(
        self, estimate: Field, step: Field, gained: Field, known: bool
    ) -> tuple[float, float]:
        """Replace the last gain by `estimate` - `step`.

        known : bool    there is a last gain
        Returns the product of both, and the square of the new one.
        """

        def work(start: int, stop: int) -> tuple[float, float]:
            gain = estimate.read(start, stop) - step.read(start, stop)
            wide = gain.astype(np.float64)
            product = 0.0
            if known:
                product = elementary.total(wide * gained.read(start, stop))
            gained.write(start, gain)
            return product, elementary.total(np.square(wide))

        products, squares = zip(*self._pass(work), strict=True)
        return math.fsum(products), math.fsum(squares)

    def _extrapolate(self, estimate: Field, before: Field, rate: float, out: Field) -> None:
        """out = max(0, estimate + rate · (estimate - before))."""
        factor = self.real.type(rate)

        def work(start: int, stop: int) -> None:
            now = estimate.read(start, stop)
            out.write(start, np.maximum(now + factor * (now - before.read(start, stop)), 0))

        self._pass(work)

    def _variation(self, source: Field, out: Field) -> None:
        """out = 1 / (1 - tv · div(grad x / |grad x|)), with differences of neighbours.

        No difference crosses the border. A slope below SMOOTH of the mean counts as flat.
        """
        small = self.real.type((SMOOTH * self.mean) ** 2)
        tv, one = self.real.type(self.rules.tv), self.real.type(1)

        def work(start: int, stop: int) -> None:
            first, last = max(start - 1, 0), min(stop + 1, self.depth)
            x = source.read(first, last)
            slopes = [np.zeros_like(x) for _ in range(3)]
            slopes[0][:-1] = x[1:] - x[:-1]
            slopes[1][:, :-1] = x[:, 1:] - x[:, :-1]
            slopes[2][:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
            length = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2 + small)
            for slope in slopes:
                slope /= length
            bend = slopes[0] + slopes[1] + slopes[2]
            bend[1:] -= slopes[0][:-1]
            bend[:, 1:] -= slopes[1][:, :-1]
            bend[:, :, 1:] -= slopes[2][:, :, :-1]
            own = bend[start - first : stop - first]
            out.write(start, one / (one - tv * own))

        self._pass(work)

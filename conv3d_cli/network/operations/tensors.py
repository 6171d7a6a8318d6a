"""Tensors at each voxel, and what is made of their eigenvalues and eigenvectors.

The structure tensor is made of the products of the slopes at a scale, each averaged by a Gaussian
window; the Hessian of the second derivatives. Slopes are per voxel or per unit of length (`per`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import Boundary
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window, spans_of
from conv3d_cli.network.operations.gaussian import (
    Floats,
    GaussianOperation,
    engine_taps,
    filtered,
    magnitudes,
    planes_together,
)

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.derivatives import Extended
    from conv3d_cli.engine.machine_code import MachineCode

# The entries of a symmetric matrix, as channels and in the engine.
ENTRIES = ((0, 0), (0, 2), (2, 2), (0, 1), (1, 2), (1, 1))
ONES = (1.0, 1.0, 1.0)
# Products of slopes in memory at a time, for each thread, and the fewest rows of outputs of them.
PRODUCT_BYTES, LEAST_ROWS = 32 << 20, 16
# feature -> how many numbers it has
FEATURES = {
    "eigenvalues": 3,
    "coherence": 1,
    "linearity": 1,
    "planarity": 1,
    "orientation": 3,
    "normal": 3,
}
OF_HESSIAN = ("eigenvalues", "orientation", "normal")


class TensorOperation(GaussianOperation):
    """An operation that makes features of a symmetric matrix at each voxel.

    sigma : (D, H, W)       standard deviation in voxels of the Gaussian
    outputs : names         in `FEATURES`; their numbers are channels, one after another
    axes : (3, 3)           directions (d, h, w) are multiplied by it; the identity is the default
    """

    attributes: ClassVar[tuple[str, ...]] = ("sigma", "boundary", "outputs", "axes")
    of_hessian: ClassVar[bool]
    bank: ClassVar[str]
    fields: ClassVar[int]  # channels that make a matrix
    sigma_called: ClassVar[str] = "sigma"

    def resolve(self) -> Shape:
        self.sigma = self.sigma_of(self.argument("sigma"), self.sigma_called)
        self.read_boundary()
        self.set_reach([self.sigma])
        self.outputs = tuple(self.argument("outputs", ("eigenvalues",)))
        known = OF_HESSIAN if self.of_hessian else tuple(FEATURES)
        for name in self.outputs:
            if name not in known:
                raise SpecError(
                    f"{self.where} needs {' or '.join(known)} for outputs, received {name!r}"
                )
        axes = np.asarray(self.argument("axes", np.eye(3).tolist()), np.float64)
        if axes.shape != (3, 3) or not np.isfinite(axes).all():
            raise SpecError(f"{self.where} needs 3x3 numbers for axes")
        self.axes: NDArray[np.float64] = axes
        source = self.inputs[0]
        if source.channels % self.fields:
            raise ShapeError(
                f"{self.where} takes {self.fields} channels for each matrix, received "
                f"{source.channels}"
            )
        self.matrices = source.channels // self.fields
        self.count = sum(FEATURES[name] for name in self.outputs)
        return Shape(*source.size, self.matrices * self.count)

    def entry(self, padded: Reals, place: int) -> Reals:
        """An entry of the matrices (d, h, w), by the definition.

        padded : (d + 2r, h + 2r, w + 2r, fields)
        """
        raise NotImplementedError

    def entry_error(self, off: Reals, place: int) -> Reals:
        """What errors of the padded voxels change in an entry at most."""
        raise NotImplementedError

    def matrices_of(self, padded: Reals, size: Sequence[int]) -> Reals:
        """Matrices (d, h, w, 3, 3); of NaN where an entry is not finite."""
        found = np.empty((*size, 3, 3))
        for place, (a, b) in enumerate(ENTRIES):
            found[..., a, b] = found[..., b, a] = self.entry(padded, place)
        good = np.isfinite(found).all(axis=(-2, -1), keepdims=True)
        return np.where(good, found, np.nan)

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        padded = self.padded(windows[0], box)
        found = []
        for number in range(self.matrices):
            own = padded[..., number * self.fields : (number + 1) * self.fields]
            found += self._features(self.matrices_of(own, box.size))
        return np.stack(found, axis=-1)

    def _features(self, matrices: Reals) -> list[Reals]:
        bad = np.isnan(matrices[..., 0, 0])
        values, vectors = np.linalg.eigh(np.where(bad[..., None, None], 0.0, matrices))
        low, middle, high = np.moveaxis(values, -1, 0)
        found: list[Reals] = []
        with np.errstate(invalid="ignore", divide="ignore"):
            for name in self.outputs:
                if name == "eigenvalues":
                    found += [high, middle, low]
                elif name == "coherence":
                    above = (high - middle) ** 2 + (middle - low) ** 2 + (high - low) ** 2
                    below = 2 * (high**2 + middle**2 + low**2)
                    found.append(np.where(below > 0, np.sqrt(above / below), 0.0))
                elif name == "linearity":
                    found.append(np.where(high > 0, (middle - low) / high, 0.0))
                elif name == "planarity":
                    found.append(np.where(high > 0, (high - middle) / high, 0.0))
                else:
                    found += self._direction(vectors, self._which(values, name))
        return [np.where(bad, np.nan, one) for one in found]

    def _which(self, values: Reals, name: str) -> Any:
        """The eigenvector that is meant: its number, by value."""
        if not self.of_hessian:
            return np.full(values.shape[:-1], 0 if name == "orientation" else 2)
        size = np.abs(values)
        return size.argmin(axis=-1) if name == "orientation" else size.argmax(axis=-1)

    def _direction(self, vectors: Reals, which: Any) -> list[Reals]:
        """The vectors along the axes, of which the first number that is not 0 is positive."""
        own = np.take_along_axis(vectors, which[..., None, None], axis=-1)[..., 0]
        turned = own @ self.axes.T
        first, second, third = np.moveaxis(turned, -1, 0)
        key = np.where(first != 0, first, np.where(second != 0, second, third))
        return [np.where(key < 0, -one, one) for one in (first, second, third)]

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        padded, more = self.padded(windows[0], box), self.padded(errors[0], box, 0.0)
        found = []
        for number in range(self.matrices):
            own = slice(number * self.fields, (number + 1) * self.fields)
            off = more[..., own] + rounding * np.abs(padded[..., own])
            squares = np.zeros(box.size)
            for place, (a, b) in enumerate(ENTRIES):
                squares += (1 if a == b else 2) * self.entry_error(off, place) ** 2
            matrices = self.matrices_of(padded[..., own], box.size)
            found += self._feature_bounds(matrices, np.sqrt(squares), rounding)
        return np.stack(found, axis=-1)

    def _feature_bounds(self, matrices: Reals, error: Reals, rounding: float) -> list[Reals]:
        bad = np.isnan(matrices[..., 0, 0])
        values, vectors = np.linalg.eigh(np.where(bad[..., None, None], 0.0, matrices))
        low, middle, high = np.moveaxis(values, -1, 0)
        largest = np.abs(values).max(axis=-1)
        error = error + rounding * largest
        found: list[Reals] = []
        with np.errstate(invalid="ignore", divide="ignore"):
            for name in self.outputs:
                if name == "eigenvalues":
                    found += [error] * 3
                elif name == "coherence":
                    norm = np.sqrt(np.square(values).sum(axis=-1))
                    left = norm - 2 * error
                    found.append(np.where(left > 0, 6 * error / left + 4 * rounding, 2.0))
                elif name in ("linearity", "planarity"):
                    left = high - error
                    apart = middle - low if name == "linearity" else high - middle
                    moved = (2 + apart / high) * error / left + 4 * rounding
                    found.append(np.where(left > 0, moved, np.inf))
                else:
                    found += self._direction_bounds(values, vectors, error, name, rounding)
        return [np.where(bad, np.inf, one) for one in found]

    def _direction_bounds(
        self, values: Reals, vectors: Reals, error: Reals, name: str, rounding: float
    ) -> list[Reals]:
        """Directions turn by up to 2 · error / gap (Davis and Kahan), and may flip."""
        which = self._which(values, name)
        own = np.take_along_axis(values, which[..., None], axis=-1)
        gaps = np.abs(values - own)
        np.put_along_axis(gaps, which[..., None], np.inf, axis=-1)
        turn = 3 * error / gaps.min(axis=-1) + 4 * rounding
        turn = np.where(np.isfinite(turn), turn, 2.0)
        if self.of_hessian:  # another eigenvalue may be the one that is meant
            sizes = np.abs(values)
            sizes = np.abs(sizes - np.abs(own))
            np.put_along_axis(sizes, which[..., None], np.inf, axis=-1)
            turn = np.where(sizes.min(axis=-1) <= 2 * error, 2.0, turn)
        stretch = float(np.linalg.norm(self.axes, 2))
        first = np.abs(self._direction(vectors, which)[0])
        bound = np.where(first > stretch * turn, stretch * turn, 2 * stretch)
        return [np.minimum(bound, 2 * stretch)] * 3

    @property
    def formula(self) -> str:
        """The name of its formula in the engine."""
        return "+".join(["hessian" if self.of_hessian else "structure", *self.outputs])

    @property
    def factors(self) -> tuple[Floats, Floats, Floats]:
        """Factors of derivatives of order 0, 1 and 2."""
        return ONES, ONES, ONES

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        for number in range(self.matrices):
            own = slice(number * self.fields, (number + 1) * self.fields)
            found = out[..., number * self.count : (number + 1) * self.count]
            self.compute_of(self.extended(windows[0], box, own), found, team)

    def compute_of(self, source: Extended, out: Array, team: Team) -> None:
        """Compute the features of one matrix at each voxel, of its entries around them."""
        from conv3d_cli.engine.derivatives import compute_formula

        taps = [engine_taps(self.sigma, self.factors)]
        compute_formula(self.bank, self.formula, source, taps, self.axes.reshape(1, 9), out, team)

    def scratch_bytes(self, real: np.dtype[Any]) -> int:
        """Bytes that each thread takes for its rings of filtered planes."""
        from conv3d_cli.engine.derivatives import scratch_bytes

        taps = [engine_taps(self.sigma, self.factors)]
        return scratch_bytes(self.bank, self.count, taps, self.shape.size, real.itemsize)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.derivatives import derivative_codes

        return derivative_codes(self.bank, self.formula, real)


class WindowedTensor(TensorOperation):
    """Features of matrices that are averaged by a Gaussian window.

    The input has the entries of each matrix in six channels, as of `SlopeProducts`.
    """

    of_hessian, bank, fields = False, "window", 6
    sigma_called = "window"

    def entry(self, padded: Reals, place: int) -> Reals:
        return filtered(padded[..., place], self.sigma, (0, 0, 0), self.reach)

    def entry_error(self, off: Reals, place: int) -> Reals:
        return magnitudes(off[..., place], self.sigma, (0, 0, 0), self.reach)


class HessianTensor(TensorOperation):
    """Features of the second derivatives.

    per : (D, H, W)         derivatives per voxel are multiplied by it along each axis
    """

    attributes = (*TensorOperation.attributes, "per")
    of_hessian, bank, fields = True, "hessian", 1

    def resolve(self) -> Shape:
        self.per = self.triple_of_numbers("per", self.argument("per", ONES))
        return super().resolve()

    def _orders(self, place: int) -> tuple[list[int], float]:
        a, b = ENTRIES[place]
        return [int(n == a) + int(n == b) for n in range(3)], self.per[a] * self.per[b]

    def entry(self, padded: Reals, place: int) -> Reals:
        orders, factor = self._orders(place)
        return filtered(padded[..., 0], self.sigma, orders, self.reach) * factor

    def entry_error(self, off: Reals, place: int) -> Reals:
        orders, factor = self._orders(place)
        return magnitudes(off[..., 0], self.sigma, orders, self.reach) * factor

    @property
    def factors(self) -> tuple[Floats, Floats, Floats]:
        d, h, w = self.per
        return ONES, self.per, (d * d, h * h, w * w)


class SlopeProducts(GaussianOperation):
    """The products of the slopes of each channel, in six channels each: see `ENTRIES`.

    sigma : (D, H, W)       standard deviation in voxels of the Gaussian
    per : (D, H, W)         slopes per voxel are multiplied by it along each axis
    """

    attributes = ("sigma", "boundary", "per")

    def resolve(self) -> Shape:
        self.sigma = self.sigma_of(self.argument("sigma"))
        self.per = self.triple_of_numbers("per", self.argument("per", ONES))
        self.read_boundary()
        self.set_reach([self.sigma])
        return Shape(*self.inputs[0].size, 6 * self.inputs[0].channels)

    @property
    def taps(self) -> list[Any]:
        """Its filters for the engine."""
        return [engine_taps(self.sigma, (ONES, self.per, ONES))]

    def _slopes(self, padded: Reals, of: Any) -> list[Reals]:
        return [
            of(padded, self.sigma, [int(n == axis) for n in range(3)], self.reach) * self.per[axis]
            for axis in range(3)
        ]

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        slopes = self._slopes(self.padded(windows[0], box), filtered)
        with np.errstate(invalid="ignore", over="ignore"):
            products = np.stack([slopes[a] * slopes[b] for a, b in ENTRIES], axis=-1)
        return products.reshape(*box.size, -1)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        padded = self.padded(windows[0], box)
        slopes = [np.abs(one) for one in self._slopes(padded, filtered)]
        off = self.padded(errors[0], box, 0.0) + rounding * np.abs(padded)
        spread = self._slopes(off, magnitudes)
        found = [
            slopes[a] * spread[b]
            + slopes[b] * spread[a]
            + spread[a] * spread[b]
            + rounding * slopes[a] * slopes[b]
            for a, b in ENTRIES
        ]
        return np.stack(found, axis=-1).reshape(*box.size, -1)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine.derivatives import compute_formula

        for channel in range(self.inputs[0].channels):
            compute_formula(
                "gradient",
                "products",
                self.extended(windows[0], box, slice(channel, channel + 1)),
                self.taps,
                np.zeros((1, 1)),
                out[..., 6 * channel : 6 * channel + 6],
                team,
            )

    def scratch_bytes(self, real: np.dtype[Any]) -> int:
        """Bytes that each thread takes for its rings of filtered planes."""
        from conv3d_cli.engine.derivatives import scratch_bytes

        return scratch_bytes("gradient", 6, self.taps, self.shape.size, real.itemsize)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.derivatives import derivative_codes

        return derivative_codes("gradient", "products", real)


def _length(span: Span) -> int:
    return span[1] - span[0]


def _unbroken(first: int, last: int, ring: int) -> Iterator[Span]:
    """Spans of rows that lie one after another in a ring.

    >>> list(_unbroken(5, 13, 6))
    [(5, 6), (6, 12), (12, 13)]
    """
    while first < last:
        stop = min(last, first - first % ring + ring)
        yield first, stop
        first = stop


class StructureTensor(Operation):
    """Features of the products of slopes, which a Gaussian window averages, of each channel.

    The products, six for each voxel, are in memory for some rows at a time, with those that the
    window sees around them. Each is computed once.

    Its attributes `sigma` and `per` are those of `SlopeProducts`, `outputs` and `axes` those of
    `WindowedTensor`, whose `sigma` is `window`: (D, H, W) standard deviations in voxels. `boundary`
    says what lies beyond the edges of the volume.
    """

    attributes: ClassVar[tuple[str, ...]] = (
        "sigma",
        "per",
        "window",
        "boundary",
        "outputs",
        "axes",
    )
    channels_apart = True

    def resolve(self) -> Shape:
        source = self.inputs[0]
        given = {name: self.argument(name) for name in self.attributes}
        boundary = Boundary.parse(str(given["boundary"] or "symmetric"))
        # beyond the edges of a constant there are no slopes
        beyond = "zeros" if boundary.mode in ("zeros", "constant") else str(boundary)
        of_one = {name: given[name] for name in ("sigma", "per", "boundary")}
        node = replace(self.node, attributes=of_one)
        self.products = SlopeProducts(node, [source._replace(channels=1)])
        own = {name: given[name] for name in ("outputs", "axes")}
        node = replace(self.node, attributes={**own, "sigma": given["window"], "boundary": beyond})
        self.tensor = WindowedTensor(node, [self.products.shape])
        return Shape(*source.size, source.channels * self.tensor.count)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return self.products.span(0, axis, self.tensor.span(0, axis, outputs))

    @property
    def planes_together(self) -> int:
        return planes_together(self.inputs[0], self.products.reach[0] + self.tensor.reach[0])

    def _channels(self, windows: Sequence[Window]) -> list[list[Window]]:
        """The windows of each channel."""
        return [
            [Window(window.voxels[..., n : n + 1], window.start) for window in windows]
            for n in range(self.inputs[0].channels)
        ]

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        around, found = spans_of(self.tensor, 0, box), []
        for own in self._channels(windows):
            products = Window(self.products.define(own, around), around.start)
            found.append(self.tensor.define([products], box))
        return np.concatenate(found, axis=3)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        around, found = spans_of(self.tensor, 0, box), []
        for own, off in zip(self._channels(windows), self._channels(errors), strict=True):
            products = Window(self.products.define(own, around), around.start)
            spread = Window(self.products.bounds(own, off, around, rounding), around.start)
            found.append(self.tensor.bounds([products], [spread], box, rounding))
        return np.concatenate(found, axis=3)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine.derivatives import Extended

        depth, height, width = box
        planes = _length(self.tensor.span(0, 0, depth))
        columns = _length(self.tensor.span(0, 2, width))
        most = self._rows(planes, columns, height[1] - height[0], out.dtype, team.threads)
        ring = self._ring(most)
        # rows of a field lie together; row n of the volume is row n % ring
        room = np.empty((planes, 6, ring, columns), out.dtype).transpose(0, 2, 3, 1)
        for channel, own in enumerate(self._channels(windows)):
            numbers = slice(channel * self.tensor.count, (channel + 1) * self.tensor.count)
            done = 0
            for top in range(height[0], height[1], most):
                rows = top, min(top + most, height[1])
                part = Box(depth, rows, width)
                around = spans_of(self.tensor, 0, part)
                for start, stop in _unbroken(max(done, around[1][0]), around[1][1], ring):
                    found = room[:, start % ring : start % ring + stop - start]
                    self.products.compute(
                        own, Box(around[0], (start, stop), around[2]), found, team
                    )
                done = around[1][1]
                d, h, w = self.tensor.extended(
                    Window(room, (around[0][0], 0, around[2][0])), part, slice(0, 6)
                ).indices
                lines = [-1 if at < 0 else at % ring for at in h]
                source = Extended(room, (d, lines, w), self.tensor.boundary.value)
                within = out[:, rows[0] - height[0] : rows[1] - height[0], :, numbers]
                self.tensor.compute_of(source, within, team)

    def _ring(self, rows: int) -> int:
        """Rows of products in memory, for so many rows of outputs."""
        whole = self.inputs[0].height
        wraps = self.tensor.boundary.mode == "wrap"
        return whole if wraps else min(rows + 2 * self.tensor.reach[1], whole)

    def _rows(
        self, planes: int, columns: int, height: int, real: np.dtype[Any], threads: int
    ) -> int:
        """Rows of outputs whose products are in memory at a time."""
        reach = self.tensor.reach[1]
        if self.tensor.boundary.mode == "wrap":
            return height  # the products of all rows are needed in any case
        wished = PRODUCT_BYTES * threads // (6 * real.itemsize * planes * columns) - 2 * reach
        # a tile packs the products around it, too
        return min(max(wished, 2 * reach, LEAST_ROWS), height)

    def shared_bytes(self, real: np.dtype[Any], planes: int, threads: int) -> int:
        """Bytes of the products."""
        whole = self.inputs[0]
        depth = min(planes + 2 * self.tensor.reach[0], whole.depth)
        rows = self._ring(self._rows(depth, whole.width, whole.height, real, threads))
        return 6 * real.itemsize * depth * rows * whole.width

    def scratch_bytes(self, real: np.dtype[Any]) -> int:
        """Bytes that each thread takes for its rings of filtered planes."""
        return max(part.scratch_bytes(real) for part in (self.products, self.tensor))

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        return [*self.products.loops(real), *self.tensor.loops(real)]

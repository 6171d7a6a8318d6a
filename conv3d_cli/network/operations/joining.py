"""Operations that join several volumes of one size: sums, products, extremes, concatenation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode


class SizesDiffer(ShapeError):
    """Volumes of other sizes meet at a node.

    axes : tuple of int     along which they differ: 0, 1, 2 for D, H, W
    """

    axes: tuple[int, ...] = ()


class Join(Operation):
    """A function of the voxels at one place of several volumes.

    An input of one voxel along an axis is repeated along it.
    """

    arity: ClassVar[tuple[int, int | None]] = (2, None)
    repeats = True  # whether inputs of one voxel, or of one channel, are repeated

    def resolve(self) -> Shape:
        sizes = []
        for axis in range(3):
            lengths = {shape[axis] for shape in self.inputs}
            if self.repeats and len(lengths) > 1:
                lengths -= {1}
            sizes.append(max(lengths))
            if len(lengths) > 1:
                raise self._differ()
        return Shape(sizes[0], sizes[1], sizes[2], self.channels())

    def _differ(self) -> SizesDiffer:
        others = {
            str(n): "x".join(map(str, shape.size))
            for n, shape in zip(self.node.inputs, self.inputs, strict=True)
        }
        error = SizesDiffer(
            f"{self.where} joins volumes of other sizes: "
            + ", ".join(f"'{name}' has {size}" for name, size in others.items())
        )
        error.axes = tuple(
            axis for axis in range(3) if len({shape[axis] for shape in self.inputs}) > 1
        )
        return error

    def channels(self) -> int:
        """Channels of the output. Raises: ShapeError if those of the inputs do not fit."""
        counts = {shape.channels for shape in self.inputs} - {1}
        if len(counts) > 1:
            listed = ", ".join(
                f"'{name}' has {shape.channels}"
                for name, shape in zip(self.node.inputs, self.inputs, strict=True)
            )
            raise ShapeError(f"{self.where} joins volumes of other numbers of channels: {listed}")
        return max(counts, default=1)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return (0, 1) if self.inputs[number][axis] == 1 else outputs

    def views(self, windows: Sequence[Window], box: Box) -> list[Array]:
        """The voxels of each input in a box, not yet repeated."""
        found = []
        for number, window in enumerate(windows):
            d, h, w = (self.span(number, axis, span) for axis, span in enumerate(box))
            found.append(window.box(d, h, w))
        return found

    def whole_views(self, windows: Sequence[Window], box: Box) -> list[Array]:
        """The voxels of each input in a box, repeated to (d, h, w, c)."""
        shape = (*box.size, self.shape.channels)
        return [np.broadcast_to(view, shape) for view in self.views(windows, box)]

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        """The function of two volumes."""
        raise NotImplementedError

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.array(reduce(self.join, self.whole_views(windows, box)))

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        views = self.whole_views(windows, box)

        def plane(_: int, d: int) -> None:
            with np.errstate(invalid="ignore", over="ignore"):
                if len(views) == 1:
                    out[d] = views[0][d]
                    return
                self.join(views[0][d], views[1][d], out[d])
                for view in views[2:]:
                    self.join(out[d], view[d], out[d])
                self.finish(out[d])

        team.run(len(out), plane)

    def finish(self, sums: Array) -> None:
        """What follows the last join, in place."""

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        sizes = sum(np.abs(view) for view in self.whole_views(windows, box))
        return np.asarray(sum(self.whole_views(errors, box)) + rounding * sizes)


class Add(Join):
    """The sum of the inputs, added in order."""

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        return np.add(first, second, out=out)


class Subtract(Join):
    """The first input minus the second."""

    arity = (2, 2)

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        return np.subtract(first, second, out=out)


class Multiply(Join):
    """The product of the inputs, multiplied in order."""

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        return np.multiply(first, second, out=out)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        shape = (*box.size, self.shape.channels)
        product, spread = np.ones(shape), np.zeros(shape)
        with np.errstate(invalid="ignore", over="ignore"):
            for view, error in zip(
                self.whole_views(windows, box), self.whole_views(errors, box), strict=True
            ):
                size = np.abs(view)
                spread = spread * (size + error) + product * error
                product = product * size
            return np.asarray(spread + len(windows) * rounding * product)


class Divide(Join):
    """The first input divided by the second."""

    arity = (2, 2)

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        with np.errstate(divide="ignore"):
            return np.divide(first, second, out=out)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        (a, b), (da, db) = self.whole_views(windows, box), self.whole_views(errors, box)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            least = np.abs(b) - db
            spread = (da + np.abs(a / b) * db) / least + rounding * np.abs(a / b)
            return np.where(least > 0, spread, np.inf)


class Average(Join):
    """The mean of the inputs: their sum, divided by their number."""

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        return np.add(first, second, out=out)

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return super().define(windows, box) / len(windows)

    def finish(self, sums: Array) -> None:
        sums /= len(self.inputs)


class Maximum(Join):
    """The largest of the inputs; NaN if one of them is NaN."""

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        return np.maximum(first, second, out=out)


class Minimum(Join):
    """The smallest of the inputs; NaN if one of them is NaN."""

    def join(self, first: Array, second: Array, out: Array | None = None) -> Array:
        return np.minimum(first, second, out=out)


class Concatenate(Join):
    """The channels of all inputs, one after another."""

    arity = (1, None)
    attributes = ("axis",)
    repeats = False

    def resolve(self) -> Shape:
        if self.argument("axis", "channels") != "channels":
            raise SpecError(
                f"{self.where} concatenates along axis {self.argument('axis')!r}; it is taken only "
                "along the channels"
            )
        return super().resolve()

    def channels(self) -> int:
        return sum(shape.channels for shape in self.inputs)

    @property
    def places(self) -> tuple[slice, ...]:
        ends = itertools.accumulate(shape.channels for shape in self.inputs)
        return tuple(
            slice(end - shape.channels, end) for end, shape in zip(ends, self.inputs, strict=True)
        )

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return outputs

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return np.concatenate(self.views(windows, box), axis=3)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        first = 0
        for view in self.views(windows, box):
            part = out[..., first : first + view.shape[3]]
            d, h, w = map(range, box.size)
            mapping.move(view, d, h, w, np.zeros(view.shape[3]), part, team)
            first += view.shape[3]

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.mapping import move_code

        return [move_code(real)]

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return self.define(errors, box)

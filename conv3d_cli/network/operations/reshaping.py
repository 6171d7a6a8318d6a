"""Operations that move voxels: padding, cropping, repetition; and those that rename axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.errors import SpecError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode


def _move_loops(real: np.dtype[Any]) -> list[MachineCode]:
    from conv3d_cli.engine.mapping import move_code

    return [move_code(real)]


class Shift(Operation):
    """Add voxels before and after each axis; negative numbers take voxels away."""

    def added(self) -> list[tuple[int, int]]:
        """Voxels (before, after) along D, H, W."""
        raise NotImplementedError

    def pairs(self, name: str) -> list[tuple[int, int]]:
        """N, [N, N, N] or three [before, after] pairs of at least 0. Raises: SpecError."""
        value = self.argument(name, 1)
        parts = list(value) if isinstance(value, (list, tuple)) else [value] * 3
        pairs = [tuple(part) if isinstance(part, (list, tuple)) else (part, part) for part in parts]
        whole = all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0
            for pair in pairs
            for n in pair
        )
        if len(pairs) != 3 or not whole or any(len(pair) != 2 for pair in pairs):
            raise SpecError(
                f"{self.where} needs N, [N, N, N] or three [before, after] pairs of at least 0 for "
                f"{name}, received {value!r:.80}"
            )
        return [(int(pair[0]), int(pair[1])) for pair in pairs]

    value = 0.0  # of added voxels

    def resolve(self) -> Shape:
        source, added = self.inputs[0], self.added()
        lengths = [n + sum(pair) for n, pair in zip(source.size, added, strict=True)]
        self.require_sizes(lengths)
        self.before = [pair[0] for pair in added]
        return Shape(lengths[0], lengths[1], lengths[2], source.channels)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        length, before = self.inputs[0][axis], self.before[axis]
        first = min(max(outputs[0] - before, 0), length - 1)
        return first, max(min(outputs[1] - before, length), first + 1)

    @property
    def transform(self) -> VoxelTransform:
        d, h, w = (-float(before) for before in self.before)
        return VoxelTransform((1, 1, 1), (d, h, w))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return self._moved(windows[0], box, self.value)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return self._moved(errors[0], box, 0.0)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        window = windows[0]
        planes, rows, columns = (
            [at - before - start if 0 <= at - before < length else -1 for at in range(*span)]
            for span, before, start, length in zip(
                box, self.before, window.start, self.inputs[0].size, strict=True
            )
        )
        fill = np.full(self.shape.channels, self.value)
        mapping.move(window.voxels, planes, rows, columns, fill, out, team)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        return _move_loops(real)

    def _moved(self, window: Window, box: Box, value: float) -> Reals:
        result = np.full((*box.size, self.shape.channels), value)
        inside, source = self.inside(box)
        result[inside.within(box).slices] = window.box(*source)
        return result

    def inside(self, box: Box) -> tuple[Box, Box]:
        """The outputs in a box that are input voxels, and where these are in the input."""
        volume = Box.at(self.before, self.inputs[0].size)
        inside = box.intersect(volume)
        if inside.is_empty:
            inside = Box.at(box.start, (0, 0, 0))
            return inside, inside.shift([-n for n in self.before])
        return inside, inside.shift([-n for n in self.before])


class ZeroPadding3D(Shift):
    """Add voxels of `value` (0 in Keras) around a volume."""

    attributes = ("padding", "value")

    def added(self) -> list[tuple[int, int]]:
        self.value = self.number("value", 0.0)
        return self.pairs("padding")


class Cropping3D(Shift):
    """Take voxels away around a volume."""

    attributes = ("cropping",)

    def added(self) -> list[tuple[int, int]]:
        return [(-before, -after) for before, after in self.pairs("cropping")]


class UpSampling3D(Operation):
    """Repeat every voxel `size` times along each axis."""

    attributes = ("size",)

    def resolve(self) -> Shape:
        self.size = self.whole_numbers("size", 2)
        d, h, w = (n * times for n, times in zip(self.inputs[0].size, self.size, strict=True))
        return Shape(d, h, w, self.inputs[0].channels)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return outputs[0] // self.size[axis], -(-outputs[1] // self.size[axis])

    @property
    def transform(self) -> VoxelTransform:
        (a, b, c), (d, h, w) = (
            [1 / times for times in self.size],
            [(1 / times - 1) / 2 for times in self.size],
        )
        return VoxelTransform((a, b, c), (d, h, w))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        window = windows[0]
        taken = (
            np.arange(*span) // times - start
            for span, times, start in zip(box, self.size, window.start, strict=True)
        )
        return np.asarray(window.voxels[np.ix_(*taken)])

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        window = windows[0]
        planes, rows, columns = (
            [at // times - start for at in range(*span)]
            for span, times, start in zip(box, self.size, window.start, strict=True)
        )
        fill = np.zeros(self.shape.channels)
        mapping.move(window.voxels, planes, rows, columns, fill, out, team)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        return _move_loops(real)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return self.define(errors, box)


class Same(Operation):
    """An operation that returns its input: it changes nothing when a network is applied."""

    attributes = ("target_shape", "dims")

    def resolve(self) -> Shape:
        return self.inputs[0]

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return np.asarray(windows[0].box(*box))

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return np.asarray(errors[0].box(*box))


class Flatten(Same):
    """Channels of one voxel as a vector; a volume of more voxels would lose its axes."""

    def resolve(self) -> Shape:
        source = self.inputs[0]
        if source.size != (1, 1, 1):
            raise SpecError(
                f"{self.where} would make one vector of a volume of {source}, which no volume "
                "holds; it is taken only after a pooling to one voxel"
            )
        return source


class Reshape(Same):
    """A reshape that keeps the volume: to its own shape, or of the channels of one voxel."""

    def resolve(self) -> Shape:
        source, target = self.inputs[0], self.argument("target_shape", ())
        sizes = list(target) if isinstance(target, (list, tuple)) else []
        kept = (*source.size, source.channels)
        known = [n for n in sizes if n != -1]
        own_shape = len(sizes) == 4 and all(
            n in (-1, whole) for n, whole in zip(sizes, kept, strict=True)
        )
        of_channels = (
            source.size == (1, 1, 1)
            and 1 <= len(sizes) <= 4
            and (sizes[-1] in (-1, source.channels) and all(n == 1 for n in sizes[:-1]))
        )
        if not (own_shape or of_channels) or len(sizes) - len(known) > 1:
            raise SpecError(
                f"{self.where} reshapes a volume of {source} to {target!r}, which moves voxels "
                "between axes; it is taken only where it keeps them"
            )
        return source


class Permute(Same):
    """A permutation that keeps every axis in its place."""

    def resolve(self) -> Shape:
        dims = self.argument("dims", ())
        if list(dims) not in ([1, 2, 3, 4], [1]):
            raise SpecError(
                f"{self.where} permutes the axes by {dims!r}; it is taken only where each axis "
                "stays"
            )
        return self.inputs[0]


class Interleave(Operation):
    """Outputs from several volumes in turn: output o of phase o % strides from one of them.

    Transposed convolutions are run as convolutions, one for each group of phases, and this.

    attributes: `strides` (D, H, W); `added` (D, H, W), voxels of the output less strides times
    those of the first input; `phases`, for each input three lists, along D, H, W, of
    [phase, start]: output strides * q + phase is its voxel q + start. The channels of an input are
    those of all its phases, the last axis fastest, channels together. Outputs of phases that no
    input has are the weights `fill`, (channels,).
    """

    arity = (1, None)
    attributes = ("strides", "added", "phases")
    weights = ("fill",)

    def resolve(self) -> Shape:
        self.strides = self.whole_numbers("strides", 1)
        self.phases: list[list[dict[int, int]]] = [
            [dict(map(tuple, along)) for along in one] for one in self.argument("phases")
        ]
        d, h, w = (
            stride * length + added
            for stride, length, added in zip(
                self.strides, self.inputs[0].size, self.argument("added"), strict=True
            )
        )
        count = math.prod(len(along) for along in self.phases[0])
        channels = self.inputs[0].channels // count
        self.fill = self.weight("fill", (channels,))
        return Shape(d, h, w, channels)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        stride, length = self.strides[axis], self.inputs[number][axis]
        firsts, lasts = [], []
        for phase, start in self.phases[number][axis].items():
            firsts.append(-(-(outputs[0] - phase) // stride) + start)
            lasts.append((outputs[1] - 1 - phase) // stride + start + 1)
        first = min(max(min(firsts), 0), length - 1)
        return first, max(min(max(lasts), length), first + 1)

    @property
    def transform(self) -> VoxelTransform:
        raise NotImplementedError("its node's own transform counts")

    def parts(self, number: int, box: Box) -> list[tuple[tuple[slice, slice, slice], Box, slice]]:
        """Where the outputs in a box come from that an input gives.

        Returns for each of its phases: the slices of the box, the input's box, and its channels.
        """
        found = []
        channels = self.shape.channels
        product = [list(along.items()) for along in self.phases[number]]
        place = 0
        for d in product[0]:
            for h in product[1]:
                for w in product[2]:
                    slices, spans = [], []
                    for axis, (phase, start) in enumerate((d, h, w)):
                        stride, (low, high) = self.strides[axis], box[axis]
                        first = low + (phase - low) % stride
                        count = max(0, -(-(high - first) // stride))
                        slices.append(slice(first - low, high - low, stride))
                        begin = (first - phase) // stride + start
                        spans.append((begin, begin + count))
                    own = slice(place * channels, (place + 1) * channels)
                    found.append(((slices[0], slices[1], slices[2]), Box(*spans), own))
                    place += 1
        return found

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        result = np.empty((*box.size, self.shape.channels))
        result[...] = self.fill
        for number, window in enumerate(windows):
            for slices, source, channels in self.parts(number, box):
                if not source.is_empty:
                    result[slices] = window.box(*source)[..., channels]
        return result

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        covered = sum(math.prod(len(along) for along in one) for one in self.phases)
        if covered < math.prod(self.strides):
            out[...] = self.fill
        for number, window in enumerate(windows):
            for slices, source, channels in self.parts(number, box):
                if source.is_empty:
                    continue
                view = window.box(*source)[..., channels]
                d, h, w = map(range, source.size)
                mapping.move(view, d, h, w, self.fill, out[slices], team)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        return _move_loops(real)

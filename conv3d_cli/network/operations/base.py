"""What an operation of a network is: its output's size, the inputs of each output, the definition.

An `Operation` belongs to a node and to inputs of known shape. `define` computes a box of outputs by
the definition, in float64 and plain NumPy; `--verify` and the tests believe it. `compute` fills the
same box fast, on a team of threads. A class without `compute` is run as other operations, into
which `pipeline/lowering.py` translates it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, suggestion
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import AXIS_NAMES, Triple, VoxelTransform
from conv3d_cli.network.graph import Node
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.fields import Field
    from conv3d_cli.engine.machine_code import MachineCode

Array = NDArray[Any]
Reals = NDArray[np.float64]


class Shape(NamedTuple):
    """The size of a volume: voxels along D, H, W, and channels.

    >>> str(Shape(4, 5, 6, 2)), Shape(4, 5, 6, 2).size
    ('4x5x6 with 2 channels', (4, 5, 6))
    """

    depth: int
    height: int
    width: int
    channels: int

    @property
    def size(self) -> Triple:
        """Voxels along D, H, W."""
        return self.depth, self.height, self.width

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return f"{size} with {count_of(self.channels, 'channel')}"


class Window(NamedTuple):
    """Voxels of an input that a box of outputs is computed from.

    voxels : (d, h, w, c)
    start : (D, H, W)       position of the first voxel in the whole input
    """

    voxels: Array
    start: Triple

    def box(self, *spans: Span) -> Array:
        """A view of the voxels at spans of positions along D, H, W."""
        d, h, w = (
            slice(first - start, last - start)
            for (first, last), start in zip(spans, self.start, strict=True)
        )
        return self.voxels[d, h, w]


class Operation:
    """An operation at a node of a network, for inputs of known shape.

    node : Node
    inputs : sequence of Shape
    shape : Shape           of the output
    lost : int              voxels that `compute` has met so far whose output means nothing
    rounds : int            iterations of `iterate` for each channel, at most
    most_together : int or None     planes that are computed at once at most; None: any number
    on_disk : bool          `iterate` keeps its volumes in temporary files, as the job has decided
    watch : callable or None    called with (n, channel, iteration, outputs, inputs) after each
                                iteration; both are fields

    Raises: SpecError for arguments, weights and numbers of inputs that the operation does not take;
        ShapeError for inputs of such a shape.
    """

    arity: ClassVar[tuple[int, int | None]] = (1, 1)  # the fewest and the most inputs; None: any
    attributes: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[tuple[str, ...]] = ()  # names of weights that it may have
    channels_apart: ClassVar[bool] = False  # whether rows of a channel should lie together
    needs_whole: ClassVar[bool] = False  # whether the first output needs an input's last plane
    iterates: ClassVar[bool] = False  # whether `iterate` computes it, for the whole volume at once

    def __init__(self, node: Node, inputs: Sequence[Shape]) -> None:
        self.node, self.inputs = node, tuple(inputs)
        self.lost = 0
        self.rounds = 0
        self.most_together: int | None = None
        self.on_disk = False
        self.watch: Callable[[int, int, int, Field, Field], None] | None = None
        self._check_names()
        self.shape = self.resolve()

    def resolve(self) -> Shape:
        """Read the node's arguments and weights; returns the output's shape."""
        raise NotImplementedError

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        """The positions of an input that outputs are computed from, along an axis; at least one.

        number : int        of the input
        outputs : Span      of the output, not empty
        It rises with `outputs`, so that inputs can be read forward.
        """
        return outputs

    @property
    def transform(self) -> VoxelTransform:
        """The map from output voxels to voxels of the first input."""
        return VoxelTransform()

    @property
    def planes_together(self) -> int:
        """Output planes that are computed at once, if what it does twice for others is much."""
        return 1

    @property
    def places(self) -> tuple[slice, ...]:
        """For each input its channels in the output, if it only stands there; () otherwise."""
        return ()

    @property
    def step(self) -> int:
        """Output planes that are computed at once, as far as the job's memory allows."""
        wished = self.planes_together
        return wished if self.most_together is None else min(wished, self.most_together)

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        """The outputs in a box (d, h, w, c), by the definition.

        windows : sequence      of float64, at the positions of `span`
        """
        raise NotImplementedError

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        """How far outputs may be off if each input is within `errors`: (d, h, w, c).

        rounding : float        relative error of a sum
        """
        value = self.define(windows, box)
        return self.define(errors, box) + rounding * np.abs(value)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        """Fill `out` (d, h, w, c) with the outputs in a box.

        windows : sequence      of the dtype of `out`, at the positions of `span` or more
        out : see `takes`
        The bits do not depend on the box, nor on the team.
        """
        out[...] = self.define(windows, box)

    def takes(self, out: Array) -> bool:
        """Whether `compute` fills an array (d, h, w, c) of these strides: rows without gaps.

        Operations with `channels_apart` fill any array.
        """
        (width, channels), (column, channel) = out.shape[2:], out.strides[2:]
        if self.channels_apart:
            return True
        return (channels == 1 or channel == out.itemsize) and (
            width == 1 or column == channels * out.itemsize
        )

    def scratch_bytes(self, real: np.dtype[Any]) -> int:
        """Bytes that each thread of `compute` takes, besides windows and outputs."""
        return 0

    def shared_bytes(self, real: np.dtype[Any], planes: int, threads: int) -> int:
        """Bytes that all threads of `compute` take together, for so many output planes."""
        return 0

    def lost_note(self) -> str:
        """A note on the voxels that were lost, or ""."""
        return ""

    def begin(self) -> Any:
        """What an operation on the whole volume has gathered before the first plane."""
        raise NotImplementedError

    def gather(self, gathered: Any, planes: Array, team: Team) -> Any:
        """What it has gathered after the next planes (d, H, W, c); their number changes no bit."""
        raise NotImplementedError

    def result(self, gathered: Any) -> Array:
        """Its output (1, 1, 1, c), after the last plane."""
        raise NotImplementedError

    def iterate(
        self,
        read: Callable[[int, int], Array],
        new: Callable[[], Field],
        real: np.dtype[Any],
        team: Team,
        told: Callable[[int, int, Field, Field], None],
    ) -> list[Field]:
        """The outputs of the whole volume, a field for each channel.

        read : callable     (start, stop) -> planes of the input (d, H, W, c), in order
        new : callable      makes a field of the volume's size, in memory or in a file
        told : callable     called after each iteration with channel, iteration, its outputs, and
                            the channel's inputs; also for iterations that were not needed
        """
        raise NotImplementedError

    def held_bytes(self, real: np.dtype[Any], threads: int, on_disk: bool) -> int:
        """What `iterate` holds in memory until its outputs have been read.

        on_disk : bool      fields are files
        """
        raise NotImplementedError

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        """The compiled functions that `compute` calls, to load them before the first slab."""
        return []

    # ----------------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """The node in messages."""
        return self.node.title

    def _check_names(self) -> None:
        least, most = self.arity
        given = len(self.inputs)
        if given < least or (most is not None and given > most):
            takes = count_of(least, "input")
            takes = takes if most == least else f"{least} or more inputs" if most is None else takes
            raise SpecError(f"{self.where} takes {takes}, received {given}")
        for key in self.node.attributes:
            if key not in self.attributes:
                hint = suggestion(key, self.attributes)
                raise SpecError(
                    f"{self.where} has an unknown argument '{key}'; {hint}".rstrip("; ")
                )
        for key in self.node.weights:
            if key not in self.weights:
                raise SpecError(
                    f"{self.where} has weights '{key}', which this operation does not use"
                )

    def argument(self, name: str, default: Any = None) -> Any:
        """An attribute of the node, or its default."""
        value = self.node.attributes.get(name)
        return default if value is None else value

    def whole_numbers(self, name: str, default: Any, minimum: int = 1) -> Triple:
        """An attribute of one whole number or three, along D, H, W. Raises: SpecError."""
        value = self.argument(name, default)
        values = [value] * 3 if isinstance(value, numbers.Integral) else value
        if (
            not isinstance(values, (list, tuple))
            or len(values) != 3
            or any(not isinstance(v, numbers.Integral) or isinstance(v, bool) for v in values)
            or min(values) < minimum
        ):
            raise SpecError(
                f"{self.where} needs one whole number of at least {minimum} for {name}, or three, "
                f"received {value!r}"
            )
        return int(values[0]), int(values[1]), int(values[2])

    def number(self, name: str, default: float) -> float:
        """An attribute that is a finite number. Raises: SpecError."""
        value = self.argument(name, default)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise SpecError(f"{self.where} needs a finite number for {name}, received {value!r}")
        return float(value)

    def channel_groups(self, name: str, default: int) -> int:
        """An attribute that divides the input's channels. Raises: SpecError, ShapeError."""
        value, channels = self.argument(name, default), self.inputs[0].channels
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise SpecError(
                f"{self.where} needs a whole number of at least 1 for {name}, received {value!r}"
            )
        if channels % value:
            raise ShapeError(
                f"{self.where} has {name}={value}, which must divide the {channels} channels of "
                "its input"
            )
        return int(value)

    def choice(self, name: str, default: str, known: Sequence[str]) -> str:
        """An attribute that is one of several words. Raises: SpecError."""
        value = self.argument(name, default)
        text = value.lower() if isinstance(value, str) else value
        if text not in known:
            raise SpecError(
                f"{self.where} needs {' or '.join(known)} for {name}, received {value!r}"
            )
        return str(text)

    def weight(self, name: str, shape: Sequence[int | None]) -> Reals:
        """Weights of the node as float64.

        shape : sequence        lengths that they must have; None: any
        Raises: SpecError if they are missing, ShapeError if their shape is another one.
        """
        if name not in self.node.weights:
            raise SpecError(f"{self.where} lacks its weights '{name}'; save the model with them")
        with np.errstate(invalid="ignore"):  # a signalling NaN, which is refused below
            values = np.asarray(self.node.weights[name], np.float64)
        fits = values.ndim == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, values.shape, strict=True)
        )
        if not fits:
            wanted = "x".join("any" if n is None else str(n) for n in shape)
            raise ShapeError(
                f"{self.where} needs weights '{name}' of shape {wanted} for an input of "
                f"{self.inputs[0]}, received {'x'.join(map(str, values.shape)) or 'one number'}"
            )
        if not np.isfinite(values).all():
            raise ShapeError(f"{self.where} has NaN or infinite weights '{name}'")
        return values

    def require_sizes(self, sizes: Sequence[int]) -> None:
        """Refuse an output without voxels. Raises: ShapeError."""
        for axis, length in enumerate(sizes):
            if length < 1:
                raise ShapeError(
                    f"{self.where} leaves no voxel along {AXIS_NAMES[axis]}, where its input has "
                    f"{self.inputs[0][axis]}; give a larger volume or patch"
                )


def spans_of(operation: Operation, number: int, box: Box) -> Box:
    """The positions of an input that a box of outputs is computed from."""
    depth, height, width = (operation.span(number, axis, span) for axis, span in enumerate(box))
    return Box(depth, height, width)

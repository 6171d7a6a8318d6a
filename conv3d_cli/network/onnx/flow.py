"""What an ONNX node takes and gives while a graph is read."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import SpecError
from conv3d_cli.network.graph import Node
from conv3d_cli.network.onnx.folding import Attributes, unrepeated
from conv3d_cli.network.operations.base import Shape

Array = NDArray[Any]
SPATIAL = "dhw"
MOST_CHANNELS = 1 << 16  # of a tensor; some operations list them


class AxesError(SpecError):
    """A tensor has its axes in another order than its node needs."""


@dataclass(frozen=True)
class Flow:
    """A tensor that follows from the network's input.

    source : str        name of the node, or of the input, whose output it is
    layout : str        a letter for each axis: n (batch), c, d, h, w, or 1 for one more of length 1
    shape : tuple       its lengths for the shape of the input that is tried
    groups : int        > 0: the channels and voxels of n, c, d, h, w are (batch, groups, rest)
    """

    source: str
    layout: str
    shape: tuple[int, ...]
    groups: int = 0

    def length(self, letter: str) -> int:
        """Its length along an axis; 1 if it does not have the axis."""
        return self.shape[self.layout.index(letter)] if letter in self.layout else 1

    @property
    def volume(self) -> Shape:
        """Its size as the network's operations see it."""
        d, h, w, c = (self.length(letter) for letter in "dhwc")
        return Shape(d, h, w, c)

    def with_volume(self, source: str, shape: Shape) -> Flow:
        """The output of another node, of the same layout."""
        lengths = dict(zip("dhwc", shape, strict=True))
        sizes = tuple(lengths.get(x, n) for x, n in zip(self.layout, self.shape, strict=True))
        return Flow(source, self.layout, sizes)


class Made(NamedTuple):
    """A node of the network, and the tensors that it takes."""

    node: Node
    inputs: tuple[Flow, ...]

    @property
    def operation(self) -> str:
        """The name of its operation."""
        return self.node.operation


class OnnxNode(abc.ABC):
    """A node of the graph with what it takes, for the functions that translate it.

    name : str              its own, or that of its output
    operator : str
    attributes : Attributes
    opset : int             of the standard operators
    inputs : list           Flow, array, or None for one that is left out
    outputs_wanted : int    how many it has
    """

    name: str
    operator: str
    attributes: Attributes
    opset: int
    inputs: list[Flow | Array | None]
    outputs_wanted: int

    @property
    def title(self) -> str:
        """The node in messages."""
        return f"node '{self.name}' ({self.operator})"

    def refuse(self, why: str) -> NoReturn:
        """Raise a SpecError that names the node."""
        raise SpecError(f"{self.title} {why}")

    def refuse_axes(self, why: str) -> NoReturn:
        """Raise an AxesError that names the node."""
        raise AxesError(f"{self.title} {why}")

    def given(self, number: int) -> bool:
        """Whether an input is there."""
        return len(self.inputs) > number and self.inputs[number] is not None

    def flow(self, number: int = 0) -> Flow:
        """An input that follows from the network's input."""
        if not self.given(number):
            self.refuse(f"lacks its input {number + 1}")
        found = self.inputs[number]
        if not isinstance(found, Flow):
            self.refuse(
                f"takes a stored tensor as its input {number + 1}; it is taken of tensors that "
                "follow from the volume"
            )
        if found.groups:
            self.refuse("takes a tensor whose voxels are reshaped into groups")
        return found

    def constant(self, number: int, what: str) -> Array:
        """An input that the file tells."""
        if not self.given(number):
            self.refuse(f"lacks its {what}")
        found = self.inputs[number]
        if isinstance(found, Flow):
            self.refuse(
                f"has {what} that are computed from the volume, by node '{found.source}'; they "
                "must be stored in the file"
            )
        assert found is not None
        if found.size > MOST_CHANNELS and found.size > unrepeated(found).size:
            self.refuse(f"has {what} of shape {found.shape}, which repeat one number")
        return found

    def integers(self, number: int, what: str) -> list[int]:
        """An input of whole numbers that the file tells."""
        values = self.constant(number, what)
        if values.dtype.kind not in "iu":
            self.refuse(f"has {what} of type {values.dtype} instead of whole numbers")
        return [int(n) for n in values.reshape(-1)]

    def number(self, name: str, default: float) -> float:
        """An attribute that is a finite number."""
        value = self.attributes.number(name, default)
        if not math.isfinite(value):
            self.refuse(f"has {name}={value}; it must be a finite number")
        return value

    def vector(self, number: int, what: str, count: int) -> Array:
        """An input of one number for each channel."""
        values = self.constant(number, what)
        if values.size != count or values.ndim != 1:
            self.refuse(f"has {what} of shape {values.shape} for {count} channels")
        return values

    def require_volume(self, flow: Flow, why: str) -> None:
        """Refuse a tensor that lacks one of the axes D, H, W."""
        if not all(letter in flow.layout for letter in SPATIAL):
            self.refuse(
                f"{why} of a network with fewer than three spatial axes, which is applied to each "
                "plane or row by itself; it is taken only of three"
            )

    def spatial(self, flow: Flow) -> str:
        """The letters of the axes after batch and channels, in their order."""
        letters = flow.layout[2:]
        unknown = set(letters) - set(SPATIAL)
        if flow.layout[:2] != "nc" or unknown or len(set(letters)) != len(letters):
            self.refuse_axes(
                f"takes (batch, channels, ...), received axes {'-'.join(flow.layout.upper())}"
            )
        return letters

    @abc.abstractmethod
    def add(
        self,
        operation: str,
        inputs: Sequence[Flow],
        attributes: Mapping[str, Any] | None = None,
        weights: Mapping[str, Array] | None = None,
        shape: Shape | None = None,
    ) -> Flow:
        """Add a node to the network; its output has the first input's layout.

        shape : Shape or None       of its output; None: as its operation tells
        """

    @abc.abstractmethod
    def note(self, text: str) -> None:
        """Tell the user something, once."""

    @abc.abstractmethod
    def made(self, flow: Flow) -> Made | None:
        """The node that gives a tensor; None for the network's input."""

    @abc.abstractmethod
    def of_size(self, sizes: Sequence[int]) -> Flow | None:
        """A tensor that has sizes (D, H, W), if the node's sizes follow from such."""

    # ----------------------------------------------------------------------------------------------

    def on_axes(self, values: Sequence[Any], letters: str, default: Any) -> list[Any]:
        """Values for axes in the file's order, along D, H, W.

        >>> OnnxNode.on_axes(None, [1, 2], "wh", 0)
        [0, 2, 1]
        """
        found = dict(zip(letters, values, strict=True))
        return [found.get(letter, default) for letter in SPATIAL]

    def axis(self, flow: Flow, default: int, name: str = "axis") -> int:
        """An attribute that names an axis, from 0."""
        axis = self.attributes.integer(name, default)
        rank = len(flow.layout)
        if not -rank <= axis < rank:
            self.refuse(f"has {name}={axis} for a tensor of {rank} axes")
        return axis % rank

    def axes(self, rank: int, number: int | None = None, new: bool = False) -> list[int] | None:
        """Axes, from 0: the input of a number, or an attribute; None if there is neither.

        rank : int      axes of the tensor
        new : bool      they are added to it
        """
        if number is not None and self.given(number):
            axes: list[int] | None = self.integers(number, "axes")
        else:
            axes = self.attributes.integers("axes")
        if axes is None:
            return None
        rank += len(axes) if new else 0
        found = [n % rank for n in axes if -rank <= n < rank]
        if len(set(found)) != len(axes):
            self.refuse(
                f"has axes={axes[:8]} for a tensor of {rank} axes; each must be one of its axes, "
                "and come once"
            )
        return found


def kernel_of(values: Array, letters: str) -> Array:
    """Weights (a, b, axes of `letters`) as (kd, kh, kw, b, a), a view.

    >>> kernel_of(np.zeros((8, 4, 3, 5)), "hw").shape
    (1, 3, 5, 4, 8)
    """
    present = [2 + letters.index(letter) for letter in SPATIAL if letter in letters]
    turned = values.transpose(*present, 1, 0)
    missing = [n for n, letter in enumerate(SPATIAL) if letter not in letters]
    return np.asarray(np.expand_dims(turned, tuple(missing)))


def without_axes(flow: Flow, axes: Sequence[int]) -> Flow:
    """The tensor without axes of length 1."""
    kept = [n for n in range(len(flow.layout)) if n not in axes]
    return replace(
        flow,
        layout="".join(flow.layout[n] for n in kept),
        shape=tuple(flow.shape[n] for n in kept),
    )

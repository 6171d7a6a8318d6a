"""Make the stages of a job of a network: convolutions, what is joined with them, and steps.

- Zero padding becomes the padding of the convolution after it.
- Scaling and shifting of channels (batch normalization) become part of the weights and the bias of
  the convolution before it, where nothing stands between them. Weights are multiplied in float64
  and rounded once; Keras rounds the sum, the product and the shift. Both are within the same bound.
- An activation is applied by the convolution before it.
- A transposed convolution becomes a convolution for each phase of its strides, and a step that
  interleaves their outputs: every tap is multiplied once, and no zeros are.
- Group normalization becomes a step that gathers its statistics, and one that applies them.

Only nodes whose output nothing else takes are joined.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import SpecError
from conv3d_cli.layer import get_activation
from conv3d_cli.model.keras_json import joined_padding
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import Pads, Triple
from conv3d_cli.network.graph import Network, Node
from conv3d_cli.network.operations.affine import Affine
from conv3d_cli.network.operations.base import Operation, Shape
from conv3d_cli.network.operations.catalogue import OPERATIONS, make_operation, unknown_operation
from conv3d_cli.network.operations.convolution import (
    Conv3D,
    Conv3DTranspose,
    WeightedSum,
    transposed_sizes,
)
from conv3d_cli.network.operations.reshaping import Same, ZeroPadding3D
from conv3d_cli.network.operations.sliding import padding_of
from conv3d_cli.network.operations.statistics import GATHERING, GroupNormalization
from conv3d_cli.pipeline.request import Stage, Step

Reals = NDArray[np.float64]
# a volume large enough for any operation to be made for it, where only its arguments are asked for
TRIAL = 1 << 20


def lower_network(network: Network) -> tuple[Stage | Step, ...]:
    """The stages of a network with one output.

    Raises: SpecError for another number of inputs, an operation that is not known, and arguments
        and weights that it does not take.

    >>> bent = Node("bent", "Activation", ("twice",), {"activation": "relu"})
    >>> twice = Node("twice", "Rescaling", ("x",), {"scale": 2.0})
    >>> stages = lower_network(Network([twice, bent], {"x": 1}, {"bent": "bent"}))
    >>> [stage.name or stage.kernel for stage in stages]
    ['twice', 'bent', 'identity']
    """
    if len(network.inputs) != 1:
        raise SpecError(
            f"the network has {len(network.inputs)} inputs, {', '.join(network.inputs)}, and a job "
            "reads one volume; save a model with one input, and join volumes as its channels"
        )
    return _Lowering(network).stages()


@dataclass
class _Item:
    """What becomes one stage or several.

    taken : list        what it takes: items, or None for the volume
    """

    node: Node
    taken: list[_Item | None]


@dataclass
class _Convolution(_Item):
    """A convolution, perhaps transposed, with what was joined with it."""

    kernel: Reals = field(default_factory=lambda: np.empty(0))
    bias: Reals | None = None
    activations: list[Any] = field(default_factory=list)
    padding: str | Pads = "valid"
    operation: WeightedSum | None = None


class _Lowering:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.uses: dict[str, int] = {}
        for name in itertools.chain(
            *(node.inputs for node in network.nodes), network.outputs.values()
        ):
            self.uses[name] = self.uses.get(name, 0) + 1
        (source,) = network.inputs
        self.found: dict[str, _Item | None] = {source: None}
        self.channels: dict[str, int | None] = dict(network.inputs)
        self.items: list[_Item] = []
        self.shared: dict[str, bool] = {}  # names of joined nodes -> whether others take the item

    def stages(self) -> tuple[Stage | Step, ...]:
        """All stages, in order."""
        for node in self.network.nodes:
            if node.operation not in OPERATIONS:
                raise unknown_operation(node)
            self._take(node)
        (output,) = self.network.outputs.values()
        last = self.found[output]
        made: list[Stage | Step] = []
        places: dict[int, int] = {}  # id of an item -> position of its last stage
        for item in self.items:
            taken = tuple(-1 if one is None else places[id(one)] for one in item.taken)
            made += _made(item, taken, len(made))
            places[id(item)] = len(made) - 1
        # what is written is the output of a convolution
        if not made or not isinstance(made[-1], Stage):
            made.append(Stage("identity", inputs=(-1 if last is None else places[id(last)],)))
        return tuple(made)

    def _take(self, node: Node) -> None:
        """Add a node to the items, or join it with the item that it takes."""
        kind = OPERATIONS[node.operation]
        sources = [self.found[name] for name in node.inputs]
        if issubclass(kind, Same):  # what it does not take is refused where the shape is known
            self._alias(node, sources[0])
            return
        source = sources[0] if len(sources) == 1 else None
        alone = source is not None and self._is_alone(node.inputs[0])
        if issubclass(kind, WeightedSum):
            self._add(node, self._convolution(node, sources, alone))
            return
        if isinstance(source, _Convolution) and alone and self._join(node, kind, source):
            self._alias(node, source)
            return
        if (
            kind is OPERATIONS["Activation"]
            and get_activation(node.attributes.get("activation")).is_linear
        ):
            self._alias(node, sources[0])
            return
        if issubclass(kind, GroupNormalization):
            self._normalization(node, sources)
            return
        self._add(node, _Item(node, sources))

    def _alias(self, node: Node, source: _Item | None) -> None:
        """Let the users of a node take the output of the item that it takes."""
        self.found[node.name] = source
        self.shared[node.name] = not self._is_alone(node.inputs[0])

    def _is_alone(self, name: str) -> bool:
        """Whether one node only takes the output of the item behind a name."""
        return self.uses[name] == 1 and not self.shared.get(name, False)

    def _add(self, node: Node, item: _Item) -> None:
        self.found[node.name] = item
        self.items.append(item)

    def _convolution(self, node: Node, sources: list[_Item | None], alone: bool) -> _Convolution:
        operation = _trial(node)
        assert isinstance(operation, WeightedSum)
        padding: str | Pads = "valid"
        source = sources[0]
        if isinstance(operation, Conv3D):
            padding = operation.padding
            before = source.node if source is not None and alone else None
            joined = before is not None and _joined(before, operation)
            if joined and source is not None:
                padding, sources = joined, source.taken
                self.items.remove(source)
        activation = operation.activation
        return _Convolution(
            node,
            list(sources),
            kernel=operation.kernel,
            bias=operation.bias,
            activations=[] if activation.is_linear else [activation],
            padding=padding,
            operation=operation,
        )

    def _join(self, node: Node, kind: type[Operation], source: _Convolution) -> bool:
        """Join a node with the convolution before it. Returns whether that is possible."""
        if issubclass(kind, Affine) and not source.activations:
            channels = source.kernel.shape[4]
            operation = make_operation(node, [Shape(1, 1, 1, channels)])
            assert isinstance(operation, Affine)
            bias = np.zeros(channels) if source.bias is None else source.bias
            source.kernel = source.kernel * operation.scale
            source.bias = bias * operation.scale + operation.offset
            return True
        activation = None
        if kind is OPERATIONS["Activation"]:
            activation = get_activation(node.attributes.get("activation"))
            _ = make_operation(node, [Shape(1, 1, 1, _channels_after(source))])
        elif kind is OPERATIONS["PReLU"]:
            alpha = np.unique(np.asarray(node.weights.get("alpha", np.nan), np.float64))
            _ = make_operation(node, [Shape(1, 1, 1, _channels_after(source))])
            if len(alpha) == 1:  # one slope for all channels
                activation = get_activation(f"leaky_relu:negative_slope={float(alpha[0])!r}")
        if activation is None or activation.kind == "tensor":
            return False
        if activation.is_linear:
            return True
        if activation.kind == "axis" and self.network.data_format == "channels_first":
            return False  # a convolution would apply it along the width, as Keras' Conv3D does
        source.activations.append(activation)
        return True

    def _normalization(self, node: Node, sources: list[_Item | None]) -> None:
        channels = _given_channels(node, ("gamma", "beta"), self._channels_of(node.inputs[0]))
        operation = make_operation(node, [Shape(1, 1, 1, channels)])
        assert isinstance(operation, GroupNormalization)
        gathering = _Item(
            Node(f"{node.name}{GATHERING}", "Statistics", (), {"groups": operation.groups}),
            list(sources),
        )
        applying = _Item(
            Node(
                node.name,
                "Normalize",
                (),
                {"epsilon": operation.epsilon},
                {"gamma": operation.gamma, "beta": operation.beta},
            ),
            [*sources, gathering],
        )
        self.items += [gathering, applying]
        self.found[node.name] = applying

    def _channels_of(self, name: str) -> int | None:
        item = self.found[name]
        return _channels_after(item) if isinstance(item, _Convolution) else self.channels.get(name)


def _channels_after(item: _Convolution) -> int:
    """Channels of a convolution's output, after its activations."""
    channels: int = item.kernel.shape[4]
    for activation in item.activations:
        channels = channels // 2 if activation.halves else channels
    return channels


def _given_channels(node: Node, names: Sequence[str], known: int | None) -> int:
    """The channels that a node takes, as its weights tell. Raises: SpecError."""
    for name in names:
        if name in node.weights:
            return int(node.weights[name].size)
    if known is None:
        raise SpecError(
            f"{node.title} has no weights that tell how many channels it takes, and the network's "
            "input does not tell either"
        )
    return known


def _trial(node: Node) -> Operation:
    """A convolution for a large volume of as many channels as its kernel takes."""
    kernel = node.weights.get("kernel")
    channels = 1
    if kernel is not None and kernel.ndim == 5:
        groups = node.attributes.get("groups") or 1
        transposed = OPERATIONS[node.operation] is Conv3DTranspose
        channels = kernel.shape[4] if transposed else kernel.shape[3] * groups
    elif kernel is not None and kernel.ndim == 2:
        channels = kernel.shape[0]
    return make_operation(node, [Shape(TRIAL, TRIAL, TRIAL, channels)])


def _joined(before: Node, operation: Conv3D) -> str | Pads | None:
    """The padding of a convolution together with the zeros that a node before it adds; or None."""
    if before.operation != "ZeroPadding3D":
        return None
    zeros = make_operation(before, [Shape(TRIAL, TRIAL, TRIAL, 1)])
    assert isinstance(zeros, ZeroPadding3D)
    if zeros.value:
        return None
    first, second, third = zeros.pairs("padding")
    pads: Pads = (first, second, third)
    if not isinstance(operation.padding, str):
        a, b, c = (
            (low + before_, high + after)
            for (low, high), (before_, after) in zip(pads, operation.padding, strict=True)
        )
        return a, b, c
    if operation.padding == "same_lower":
        return None
    size = operation.kernel.shape[:3]
    try:
        return joined_padding(pads, operation.padding, size, operation.strides, operation.dilation)
    except SpecError:
        return None


# --------------------------------------------------------------------------------------------------
# Stages


def _made(item: _Item, taken: tuple[int, ...], position: int) -> list[Stage | Step]:
    """The stages of an item.

    taken : tuple of int    positions of what it takes
    position : int          of its first stage
    """
    if not isinstance(item, _Convolution):
        return [Step(item.node, taken)]
    if isinstance(item.operation, Conv3DTranspose):
        return _transposed(item, item.operation, taken, position)
    strides: Triple = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    groups = 1
    if isinstance(item.operation, Conv3D):
        operation = item.operation
        strides, dilation, groups = operation.strides, operation.dilation, operation.groups
    return [
        _stage(
            item.node.name, item.kernel, item.bias, item.activations, taken,
            strides=strides, padding=item.padding, dilation_rate=dilation, groups=groups,
        )
    ]  # fmt: skip


def _stage(
    name: str,
    kernel: Reals,
    bias: Reals | None,
    activations: Sequence[Any],
    taken: tuple[int, ...],
    **settings: Any,
) -> Stage:
    return Stage(
        Kernel(kernel, bias, name=name),
        name=name,
        boundary="zeros",
        activations=tuple(activation.text for activation in activations),
        inputs=taken,
        allow_strided_dilation=True,
        **settings,
    )


@dataclass(frozen=True)
class _Phases:
    """Phases of a transposed convolution along an axis that one convolution computes.

    taps : tuple of tuple of int    for each phase, the taps of the kernel, in the order of inputs
    dilation : int                  of the convolution
    pads : (before, after)          of the convolution
    starts : dict                   phase of the output -> see `Interleave`
    longer : int                    outputs of the convolution less inputs
    """

    taps: tuple[tuple[int, ...], ...]
    dilation: int
    pads: tuple[int, int]
    starts: Mapping[int, int]
    longer: int


def phases_along(
    size: int, stride: int, dilation: int, cut: int, added: int, apart: bool = False
) -> list[_Phases]:
    """The phases of a transposed convolution along an axis, grouped by convolution.

    size : int      taps of the kernel
    cut : int       outputs cut off before the first
    added : int     outputs less stride times inputs
    apart : bool    each phase has a convolution of its own

    Output o, with o + cut = stride * q + p, gets input q - (dilation * k - p) / stride by tap k.
    >>> [(one.taps, one.starts) for one in phases_along(2, 2, 1, 0, 0)]
    [(((0,), (1,)), {0: 0, 1: 0})]
    >>> [(one.taps, one.pads) for one in phases_along(3, 2, 1, 0, 0)]
    [(((2, 0),), (1, 0)), (((1,),), (0, 0))]
    """
    common = math.gcd(stride, dilation)
    found: dict[Any, list[tuple[int, tuple[int, ...], int, int]]] = {}
    for phase in range(stride):  # of the output
        p, carried = (phase + cut) % stride, (phase + cut) // stride
        taps = [k for k in range(size) if (dilation * k - p) % stride == 0]
        if not taps:
            continue
        spread = (len(taps) - 1) * (dilation // common)
        before = (dilation * taps[0] - p) // stride + spread
        # the output phase, then stride + phase, ... are the convolution's carried, carried + 1, ...
        skipped = min(carried, before)
        pad = before - skipped
        last = carried - skipped + (added - 1 - phase) // stride  # the last output, less inputs
        after = max(0, last + 1 - pad + spread)
        key = (len(taps), pad, after, phase if apart else None)
        found.setdefault(key, []).append(
            (phase, tuple(reversed(taps)), carried - skipped, pad + after - spread)
        )
    return [
        _Phases(
            tuple(taps for _, taps, _, _ in one),
            dilation // common,
            (key[1], key[2]),
            {phase: start for phase, _, start, _ in one},
            one[0][3],
        )
        for key, one in found.items()
    ]


def _transposed(
    item: _Convolution, operation: Conv3DTranspose, taken: tuple[int, ...], position: int
) -> list[Stage | Step]:
    """Convolutions for the phases of a transposed convolution, and the step that joins them."""
    kernel, bias, name = item.kernel, item.bias, item.node.name
    size, groups, filters = kernel.shape[:3], operation.groups, kernel.shape[4]
    padding = padding_of(operation)
    more = operation.node.attributes.get("output_padding")
    along: list[list[_Phases]] = []
    added = []
    for axis in range(3):
        stride = operation.strides[axis]
        extent = (size[axis] - 1) * operation.dilation[axis] + 1
        _, length = transposed_sizes(
            TRIAL,
            extent,
            stride,
            padding if isinstance(padding, str) else padding[axis],
            None if more is None else operation.whole_numbers("output_padding", 0, 0)[axis],
        )
        added.append(length - stride * TRIAL)
        along.append(
            phases_along(
                size[axis],
                stride,
                operation.dilation[axis],
                operation.cuts[axis],
                added[axis],
                apart=groups > 1,
            )
        )
    # those along an axis must wait until each voxel has all channels
    split = next((n for n, a in enumerate(item.activations) if a.kind != "voxel"), None)
    split = len(item.activations) if split is None else split
    voxelwise, others = item.activations[:split], item.activations[split:]
    made: list[Stage | Step] = []
    products = list(itertools.product(*along))
    for number, (d, h, w) in enumerate(products):
        parts = [kernel[np.ix_(*taps)] for taps in itertools.product(d.taps, h.taps, w.taps)]
        stage = _stage(
            f"{name}/{number + 1}" if len(products) > 1 else f"{name}/phases",
            np.concatenate(parts, axis=4),
            None if bias is None else np.tile(bias, len(parts)),
            voxelwise,
            taken,
            padding=(d.pads, h.pads, w.pads),
            dilation_rate=(d.dilation, h.dilation, w.dilation),
            groups=groups,
        )
        made.append(stage)
    first = products[0]
    fill = np.zeros(filters) if bias is None else bias
    for activation in voxelwise:
        fill = activation(fill)
    attributes = {
        "strides": list(operation.strides),
        "added": [added[axis] - operation.strides[axis] * first[axis].longer for axis in range(3)],
        "phases": [
            [[[phase, start] for phase, start in one.starts.items()] for one in three]
            for three in products
        ],
    }
    joined = Node(name, "Interleave", (), attributes, {"fill": fill})
    made.append(Step(joined, tuple(range(position, position + len(products)))))
    for number, activation in enumerate(others):
        node = Node(
            f"{name}/activation {number + 1}", "Activation", (), {"activation": activation.text}
        )
        made.append(Step(node, (position + len(made) - 1,)))
    return made

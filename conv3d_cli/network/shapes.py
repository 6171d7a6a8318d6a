"""The sizes of all volumes of a network, for an input of known shape; and which would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from conv3d_cli.errors import ShapeError, setting
from conv3d_cli.model.spec import AXIS_NAMES, VoxelTransform
from conv3d_cli.network.graph import Network
from conv3d_cli.network.operations.base import Operation, Shape
from conv3d_cli.network.operations.catalogue import make_operation
from conv3d_cli.network.operations.joining import SizesDiffer
from conv3d_cli.system.words import count_of

FARTHEST = 128  # voxels from the given size up to which sizes that fit are looked for


@dataclass(frozen=True)
class ShapedNetwork:
    """A network for an input of known shape.

    operations : dict       name of a node -> its operation, in the order of computation
    transforms : dict       name of a node -> the map from its voxels to the volume's
    apart : tuple of str    nodes that join volumes whose voxels lie at other places
    """

    network: Network
    operations: Mapping[str, Operation]
    transforms: Mapping[str, VoxelTransform]
    apart: tuple[str, ...]


def shape_network(
    network: Network, shape: Shape, cure: str = "pad or crop the volume before"
) -> ShapedNetwork:
    """Give every node its operation, for a volume of a shape; the network has one input.

    cure : str      what to do about sizes that do not join
    Raises: ShapeError if the volume has other channels, or sizes that do not join (the message
        names the nearest that do); as `make_operation`.
    """
    name, channels = _only_input(network)
    if channels is not None and channels != shape.channels:
        raise ShapeError(
            f"the network takes {count_of(channels, 'channel')}, but the volume has "
            f"{shape.channels}; {_other_axis(network, shape, channels)}pass a volume with as many, "
            "or another network"
        )
    try:
        operations = _operations(network, shape)
    except SizesDiffer as error:
        told = _sizes_that_join(network, shape, error, cure)
        raise ShapeError(f"{error}; {told}") from None
    _require_the_same(network, shape)
    transforms = {name: VoxelTransform()}
    apart = []
    for node in network.nodes:
        found = [transforms[source] for source in node.inputs]
        sizes = [shape if s == name else operations[s].shape for s in node.inputs]
        whole = [t for t, one in zip(found, sizes, strict=True) if one.size != (1, 1, 1)]
        if any(not t.is_near(whole[0]) for t in whole):
            apart.append(node.name)
        # a volume of one voxel has no place of its own where it meets a larger one
        first = whole[0] if len(found) > 1 and whole else found[0]
        transforms[node.name] = first.then(operations[node.name].transform)
    return ShapedNetwork(network, operations, transforms, tuple(apart))


def _other_axis(network: Network, shape: Shape, channels: int) -> str:
    """What to pass if an array's channels seem to lie along another axis; or ""."""
    axes = {"channels_first": (shape.width, "last"), "channels_last": (shape.depth, "first")}
    length, place = axes.get(network.data_format or "", (0, ""))
    if length != channels:
        return ""
    option = setting("data_format", f"channels_{place}")
    return f"if its channels are the {place} axis, pass {option}; else "


def _require_the_same(network: Network, shape: Shape) -> None:
    """Refuse a volume for which the file describes another network. Raises: ShapeError."""
    if network.at is None:
        return
    described = network.at(shape)
    other = {node.name: node for node in described.nodes}
    for name, source in network.outputs.items():
        if described.outputs.get(name) != source:
            raise ShapeError(
                f"output '{name}' is that of other nodes for a volume of {shape} than the network "
                "is read for; give a volume of the size that the model is made for"
            )
    for node in network.nodes:
        if difference := node.difference(other.get(node.name)):
            raise ShapeError(
                f"{node.title} has other arguments for a volume of {shape} than the network is "
                f"read for: {difference}; give a volume of the size that the model is made for"
            )


def _only_input(network: Network) -> tuple[str, int | None]:
    if len(network.inputs) != 1:
        raise ShapeError(
            f"the network has {len(network.inputs)} inputs, {', '.join(network.inputs)}; a job has "
            "one volume, so give a network with one input, and join volumes as its channels"
        )
    return next(iter(network.inputs.items()))


def _operations(network: Network, shape: Shape) -> dict[str, Operation]:
    shapes = {next(iter(network.inputs)): shape}
    operations: dict[str, Operation] = {}
    for node in network.nodes:
        operation = make_operation(node, [shapes[source] for source in node.inputs])
        operations[node.name], shapes[node.name] = operation, operation.shape
    return operations


def _sizes_that_join(network: Network, shape: Shape, error: SizesDiffer, cure: str) -> str:
    """Words on the nearest sizes that do join, along each axis that does not."""
    told = []
    for axis in range(3):
        if _fits(network, shape, axis, shape[axis]):
            continue
        nearest = [
            next(
                (
                    n
                    for n in (shape[axis] + way * step for step in range(1, FARTHEST))
                    if n > 0 and _fits(network, shape, axis, n)
                ),
                None,
            )
            for way in (-1, 1)
        ]
        known = " or ".join(str(n) for n in nearest if n is not None)
        if not known:
            return "no size near the volume's joins either"
        told.append(f"{known} along {AXIS_NAMES[axis]}")
    if not told:
        return "no size near the volume's joins either"
    return f"sizes that join: {', '.join(told)}; {cure}"


def _fits(network: Network, shape: Shape, axis: int, length: int) -> bool:
    """Whether a network's sizes join along an axis where the volume has another length.

    All axes get the length, since an axis that does not fit would hide the one that is asked for.
    """
    trial = Shape(length, length, length, shape.channels)
    try:
        _operations(network, trial)
    except SizesDiffer as error:
        return axis not in error.axes
    except ShapeError:
        return False
    return True

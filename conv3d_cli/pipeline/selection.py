"""What of the last output is written: some of its channels, or the label of each voxel.

A selection is one more step of the job, `TakeChannels` or `ArgMax`, after all others. So networks,
stacks and single convolutions have it alike, in slabs, boxes and tasks of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.network.graph import Network, Node
from conv3d_cli.pipeline.request import Job, Stage, Step, read_channels

if TYPE_CHECKING:
    from conv3d_cli.settings.options import Settings


def selecting_node(run: Settings, taken: Sequence[str] = (), source: str = "") -> Node | None:
    """The node that selects what is written; None if all of the last output is.

    run : Settings          of the job
    taken : sequence        names that other nodes have
    source : str            name of the node whose output it takes

    Raises: SpecError for channels that are no whole numbers from 0, and for both selections.
    """
    if not run.argmax and run.channels is None:
        return None
    operation, attributes = "ArgMax", {}
    if run.channels is not None:
        operation, attributes = "TakeChannels", {"channels": list(read_channels(run.channels))}
    if run.argmax and run.channels is not None:
        raise SpecError(
            f"{setting('argmax', True)} writes one volume of labels, and "
            f"{setting('channels', run.channels)} chooses among several: leave one of them out"
        )
    name = base = operation.lower() if run.argmax else "channels"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return Node(name, operation, (source,) if source else (), attributes)


def select_in_network(network: Network, run: Settings) -> Network:
    """The network with a node at its end that selects what is written, if that is asked for.

    Raises: as `selecting_node`.

    >>> from conv3d_cli.settings.options import Settings
    >>> network = Network([Node("a", "Rescaling", ("x",))], {"x": 3}, {"out": "a"})
    >>> select_in_network(network, Settings(argmax=True)).outputs
    {'out': 'argmax'}
    """
    if len(network.outputs) != 1:
        return network  # which is refused when it is lowered
    ((output, last),) = network.outputs.items()
    taken = [*network.inputs, *(node.name for node in network.nodes)]
    node = selecting_node(run, taken, last)
    if node is None:
        return network

    def added(other: Network) -> Network:
        at = other.at
        return Network(
            [*other.nodes, node],
            other.inputs,
            {output: node.name},
            other.data_format,
            other.files,
            other.notes,
            None if at is None else lambda shape: added(at(shape)),
        )

    return added(network)


def select_in_stack(stages: Sequence[Stage | Step], run: Settings) -> tuple[Stage | Step, ...]:
    """The layers with a step after them that selects what is written, if that is asked for.

    Raises: as `selecting_node`.
    """
    node = selecting_node(run, [stage.name or "" for stage in stages])
    if node is None:
        return tuple(stages)
    # what is written is the output of a convolution
    return (*stages, Step(node, (len(stages) - 1,)), Stage("identity"))


def check_selection(job: Job, channels: int) -> None:
    """Check the selection of a job against the channels of its last output. Raises: ShapeError."""
    if job.argmax and channels == 1:
        raise ShapeError(
            f"{setting('argmax', True)} finds the largest of several channels, and the output has "
            "1: leave it out"
        )
    for number in () if job.channels is None else read_channels(job.channels):
        if number >= channels:
            raise ShapeError(
                f"{setting('channels', number)}: the output has "
                + (f"channels 0 to {channels - 1}" if channels > 1 else "channel 0 only")
            )

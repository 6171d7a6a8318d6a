"""What is written: one of a network's outputs; of it some channels, or the label of each voxel.

A selection of channels is one more step of the job, `TakeChannels` or `ArgMax`, after all others.
So networks, stacks and single convolutions have it alike, in slabs, boxes and tasks of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from conv3d_cli.errors import ShapeError, SpecError, name_hint, setting
from conv3d_cli.network.graph import Network, Node
from conv3d_cli.pipeline.request import Job, Stage, Step, read_channels
from conv3d_cli.settings.options import COPYING

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
    """The network of one output, with a node at its end that selects channels if that is asked for.

    Raises: SpecError for a name that no output has, and if several have none; as `selecting_node`.

    >>> from conv3d_cli.settings.options import Settings
    >>> nodes = [Node("a", "Rescaling", ("x",)), Node("b", "Rescaling", ("a",))]
    >>> network = Network(nodes, {"x": 3}, {"first": "a", "second": "b"})
    >>> chosen = select_in_network(network, Settings(output_name="first", argmax=True))
    >>> chosen.outputs, [node.name for node in chosen.nodes]
    ({'first': 'argmax'}, ['a', 'argmax'])
    """
    output = _chosen_output(network, run.output_name)
    last = network.outputs[output]
    taken = [*network.inputs, *(node.name for node in network.nodes)]
    node = selecting_node(run, taken, last)
    if node is None and len(network.outputs) == 1:
        return network

    def selected(other: Network) -> Network:
        if node is None:
            return replace(other, outputs={output: other.outputs[output]})
        return replace(other, nodes=(*other.nodes, node), outputs={output: node.name})

    return network.changed(selected)


def _chosen_output(network: Network, name: str | None) -> str:
    """The name of the output that is written. Raises: SpecError."""
    names = list(network.outputs)
    listed = ", ".join(names)
    if name is None and len(names) > 1:
        raise SpecError(
            f"the network has {len(names)} outputs, {listed}, and a job writes one volume; choose "
            f"it, as by {setting('output_name', names[0])}"
        )
    if name is not None and name not in names:
        hint = name_hint("output", name, names).rstrip("; ")
        raise SpecError(
            f"{setting('output_name', name)}: the network has no such output, but {listed}"
            + (f"; {hint}" if hint else "")
        )
    return names[0] if name is None else name


def select_in_stack(stages: Sequence[Stage | Step], run: Settings) -> tuple[Stage | Step, ...]:
    """The layers with a step after them that selects what is written, if that is asked for.

    Raises: SpecError for the name of an output; as `selecting_node`.
    """
    if run.output_name is not None:
        raise SpecError(
            f"{setting('output_name', run.output_name)} is for networks with several outputs, and "
            f"{'one convolution' if len(stages) == 1 else 'a chain of layers'} has one: leave it "
            "out"
        )
    if run.channels is not None and not run.argmax and _is_copy(stages, run):
        return tuple(stages)  # see `Job.chooses_channels`
    node = selecting_node(run, [stage.name or "" for stage in stages])
    if node is None:
        return tuple(stages)
    # what is written is the output of a convolution
    return (*stages, Step(node, (len(stages) - 1,)), Stage(COPYING))


def _is_copy(stages: Sequence[Stage | Step], run: Settings) -> bool:
    """Whether a job is nothing but a copy of its input."""
    (first, *others) = stages
    normalizes = run.normalize_input not in (None, "none")
    return isinstance(first, Stage) and first.copies and not others and not normalizes


def on_cluster(job: Job) -> Job:
    """The job for a cluster, whose workers read all channels and select by a step.

    Raises: SpecError for channels that are named.
    """
    stages = job.stages
    if job.chooses_channels:
        assert job.channels is not None
        channels = list(read_channels(job.channels))
        node = Node("channels", "TakeChannels", (), {"channels": channels})
        stages = (*stages, Step(node, (0,)), Stage(COPYING))
    return replace(job, stages=stages, on_cluster=True)


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

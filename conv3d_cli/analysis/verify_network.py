"""Compute single voxels of a network by the definitions of its operations, in float64.

It follows the network as the file describes it, not the stages that a job makes of it: weights are
not joined with those of other nodes, and transposed convolutions are not divided into phases.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Reals, Window, spans_of
from conv3d_cli.network.shapes import ShapedNetwork


def expected_in_network(
    network: ShapedNetwork, read: Callable[[Box], Reals], box: Box, rounding: float
) -> tuple[Reals, Reals]:
    """The correct outputs of a network in a box, and the error allowed: (d, h, w, c) each.

    read : callable     box -> voxels of the volume (d, h, w, c)
    rounding : float    relative error of a sum in the job's precision
    """
    nodes = network.network.nodes
    (output,) = network.network.outputs.values()
    (volume,) = network.network.inputs
    wanted: dict[str, Box] = {output: box}
    users: dict[str, int] = {}
    for node in reversed(nodes):  # each box is that of all who take from the node
        for number, source in enumerate(node.inputs):
            spans = spans_of(network.operations[node.name], number, wanted[node.name])
            wanted[source] = wanted[source].hull(spans) if source in wanted else spans
            users[source] = users.get(source, 0) + 1
    voxels = read(wanted[volume])
    start = wanted[volume].start
    values = {volume: Window(voxels, start)}
    errors = {volume: Window(np.zeros_like(voxels), start)}
    for node in nodes:
        operation, own = network.operations[node.name], wanted[node.name]
        taken = [values[source] for source in node.inputs]
        off = [errors[source] for source in node.inputs]
        values[node.name] = Window(operation.define(taken, own), own.start)
        errors[node.name] = Window(operation.bounds(taken, off, own, rounding), own.start)
        for source in node.inputs:
            users[source] -= 1
            if not users[source]:
                del values[source], errors[source]
    return values[output].voxels, errors[output].voxels

"""A network as files describe it: nodes with attributes and weights, in the order of computation.

This is all that a reader of files has to make:

>>> import numpy as np
>>> weights = {"kernel": np.ones((1, 1, 1, 1, 2)), "bias": np.zeros(2)}
>>> network = Network(
...     [
...         Node("sum", "Add", ("layer", "layer")),
...         Node("layer", "Conv3D", ("volume",), {"padding": "same"}, weights),
...     ],
...     inputs={"volume": 1},
...     outputs={"sum": "sum"},
... )
>>> [node.name for node in network.nodes]
['layer', 'sum']

Every tensor is a volume (depth, height, width, channels), channels last; a vector of channels is a
volume of one voxel. Attributes and weights have the names, and weights the layout, of Keras' layer
of that name; `operations/` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from conv3d_cli.errors import SpecError, suggestion
from conv3d_cli.system.words import count_of


@dataclass(frozen=True, eq=False)
class Node:
    """An operation of a network.

    name : str                  unique in its network; messages, reports and sidecars use it
    operation : str             a name in `operations.OPERATIONS`
    inputs : tuple of str       names of the nodes, or of inputs of the network, whose outputs it
                                takes, in order; one may come twice
    attributes : dict           arguments of the operation, of values that JSON can hold; those that
                                are left out have Keras' defaults
    weights : dict              name -> array of floats
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The node in messages.

        >>> Node("pool", "MaxPooling3D", ()).title
        "node 'pool' (MaxPooling3D)"
        """
        return f"node '{self.name}' ({self.operation})"

    def difference(self, other: Node | None) -> str:
        """In what another node is not the same, but for weights; "" if it is.

        >>> Node("up", "Resize", ("x",), {"scales": 2}).difference(Node("up", "Resize", ("x",)))
        'scales=2 becomes None'
        """
        if other is None or (self.operation, self.inputs) != (other.operation, other.inputs):
            return f"{self.operation} becomes {other.operation if other else 'nothing'}"
        keys = dict.fromkeys([*self.attributes, *other.attributes])
        return ", ".join(
            f"{key}={self.attributes.get(key)!r:.60} becomes {other.attributes.get(key)!r:.60}"
            for key in keys
            if self.attributes.get(key) != other.attributes.get(key)
        )


@dataclass(frozen=True, eq=False)
class Network:
    """A graph of nodes without a cycle; it sorts them, each after those whose outputs it takes.

    nodes : sequence of Node    in any order
    inputs : dict               name of an input -> its channels, or None if they are not known
    outputs : dict              name of an output -> name of its node
    data_format : str or None   "channels_last" or "channels_first": where volumes without names of
                                axes have their channels; None: nothing tells
    files : tuple of str        paths that it was read from
    notes : tuple of str        what its reader left out or assumed, for the user
    at : callable or None       (Shape of the input) -> the network that its file describes for it,
                                where the file computes arguments from sizes

    Nodes whose outputs nobody needs are dropped, and a note says so.
    Raises: SpecError for two nodes of one name, a name that no node has, and a cycle.
    """

    nodes: tuple[Node, ...]
    inputs: Mapping[str, int | None]
    outputs: Mapping[str, str]
    data_format: str | None = None
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    at: Callable[[Any], Network] | None = None

    def __init__(
        self,
        nodes: Iterable[Node],
        inputs: Mapping[str, int | None],
        outputs: Mapping[str, str],
        data_format: str | None = None,
        files: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        at: Callable[[Any], Network] | None = None,
    ) -> None:
        given = list(nodes)
        by_name = {node.name: node for node in given}
        for name in [node.name for node in given if by_name[node.name] is not node]:
            raise SpecError(f"the network has two nodes '{name}'; give each a name of its own")
        for name in set(by_name) & set(inputs):
            raise SpecError(f"the network has an input and a node '{name}'; rename one of them")
        if not outputs:
            raise SpecError("the network has no output; name the node that gives it")
        ordered = _ordered(by_name, inputs, outputs)
        needed = {node.name for node in ordered}
        unused = [name for name in by_name if name not in needed]
        if unused:
            notes = (
                *notes,
                f"{count_of(len(unused), 'node')} of the network "
                f"{'is' if len(unused) == 1 else 'are'} left out, which no output needs: "
                + ", ".join(unused[:8])
                + (", ..." if len(unused) > 8 else ""),
            )
        for key, value in (
            ("nodes", tuple(ordered)),
            ("inputs", dict(inputs)),
            ("outputs", dict(outputs)),
            ("data_format", data_format),
            ("files", files),
            ("notes", notes),
            ("at", at),
        ):
            object.__setattr__(self, key, value)

    def node(self, name: str) -> Node:
        """The node of a name. Raises: KeyError."""
        return next(node for node in self.nodes if node.name == name)

    def with_files(self, files: tuple[str, ...]) -> Network:
        """The network with the paths that it was read from."""
        return replace(self, files=files)

    def with_notes(self, notes: tuple[str, ...]) -> Network:
        """The network with other notes."""
        return replace(self, notes=notes)

    def for_sizes(self, at: Callable[[Any], Network]) -> Network:
        """The network with a function that reads it for a volume's shape."""
        return replace(self, at=at)

    def changed(self, change: Callable[[Network], Network]) -> Network:
        """The network after a change, which `at` makes as well."""
        at = self.at
        if at is None:
            return change(self)
        return change(self).for_sizes(lambda shape: at(shape).changed(change))


class Names:
    """Names that nodes have already, and how many of one name there are.

    >>> names = Names(["volume"])
    >>> [names.take(name) for name in ("a", "a", "volume", "a")]
    ['a', "a'", "volume'", "a'2"]
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._marks: dict[str, int] = {}  # a name -> the first mark that may be free

    def free(self, name: str) -> str:
        """The name, or the first with a mark that no node has."""
        mark = self._marks.get(name, 0)
        while (own := name + ("", "'", f"'{mark}")[min(mark, 2)]) in self._taken:
            mark += 1
        self._marks[name] = mark
        return own

    def take(self, name: str) -> str:
        """The same, which a node has from now on."""
        own = self.free(name)
        self._taken.add(own)
        return own


def _ordered(
    nodes: Mapping[str, Node], inputs: Mapping[str, Any], outputs: Mapping[str, str]
) -> list[Node]:
    """The nodes that the outputs need, each after those that it takes from.

    Raises: SpecError for a name that neither a node nor an input has, and for a cycle.
    """
    ordered: list[Node] = []
    done = set(inputs)
    for output, last in outputs.items():
        # a stack of (name, who asks for it, whether what it takes is done), since networks are
        # deeper than Python recurses
        way: dict[str, None] = {}  # nodes whose inputs are being followed, in order
        pending: list[tuple[str, str | None, bool]] = [(last, None, False)]
        while pending:
            name, asking, is_ready = pending.pop()
            if is_ready:
                del way[name]
                done.add(name)
                ordered.append(nodes[name])
                continue
            if name in done:
                continue
            if name not in nodes:
                raise SpecError(_unknown_source(name, asking, output, nodes, inputs))
            if name in way:
                names = list(way)
                cycle = " -> ".join([*names[names.index(name) :], name][::-1])
                raise SpecError(
                    f"the network has a cycle, so no node of it can be computed first: {cycle}"
                )
            way[name] = None
            pending.append((name, asking, True))
            pending += [(source, name, False) for source in reversed(nodes[name].inputs)]
    return ordered


def _unknown_source(
    name: str,
    asking: str | None,
    output: str,
    nodes: Mapping[str, Node],
    inputs: Mapping[str, Any],
) -> str:
    who = f"output '{output}'" if asking is None else nodes[asking].title
    hint = suggestion(name, [*inputs, *nodes]).rstrip("; ")
    return f"{who} takes from '{name}', which the network does not have" + (
        f"; {hint}" if hint else ""
    )

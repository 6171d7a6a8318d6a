"""Functions of an ONNX file: nodes that stand for others, in whose place these are put.

Source: ONNX, docs/IR.md, Model-local functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conv3d_cli.errors import SpecError
from conv3d_cli.kernels.weights.onnx_constants import STANDARD
from conv3d_cli.system.room import require_room

MOST_NODES = 20_000  # a few functions that call each other twice can describe any number
MOST_BRANCHES = 40  # within each other
Key = tuple[str, str, str]


def without_functions(model: Any, opset: int, path: str) -> list[Any]:
    """The nodes of a model's graph, with those of its functions in place of their calls.

    The graphs that a node holds, such as the branches of an If, are changed in place.

    opset : int         of the standard operators of the model
    path : str          of its file, for messages
    Raises: SpecError for functions that call each other, that are of another opset, or that make
        too many nodes; MemoryLimitError.
    """
    functions = {_key(one, one.name): one for one in model.functions if one.domain not in STANDARD}
    if not functions:
        return list(model.graph.node)
    return _Inlining(functions, opset, path).nodes(model.graph.node, (), 0)


def _key(entry: Any, name: str) -> Key:
    """What tells a function; versions of onnx before 1.16 have no overloads."""
    return entry.domain, name, getattr(entry, "overload", "")


class _Inlining:
    """Puts functions in place of their calls."""

    def __init__(self, functions: Mapping[Key, Any], opset: int, path: str) -> None:
        self.functions, self.opset, self.path = functions, opset, path
        self.calls = self.made = 0
        self.size = 0  # bytes of copied nodes

    def nodes(self, found: Sequence[Any], around: tuple[Key, ...], depth: int) -> list[Any]:
        """Nodes in whose place those of functions stand.

        around : tuple      the functions that they are in
        depth : int         the number of graphs that they are in
        """
        if depth > MOST_BRANCHES:
            raise SpecError(f"the file has more than {MOST_BRANCHES} graphs within each other")
        done: list[Any] = []
        # what is still to do: the next at the end, with the functions around it
        pending = [(node, around) for node in reversed(found)]
        while pending:
            node, within = pending.pop()
            function = self.functions.get(_key(node, node.op_type))
            if function is None:
                self._count()
                done.append(node)
                for graph in subgraphs(node):
                    inner = self.nodes(list(graph.node), within, depth + 1)
                    del graph.node[:]
                    graph.node.extend(inner)
                continue
            self._check(node, function, within)
            self.calls += 1
            body = list(self._body(node, function))
            more = (*within, _key(node, node.op_type))
            pending += [(one, more) for one in reversed(body)]
            if len(pending) > MOST_NODES:
                self._count(len(pending))
        return done

    def _count(self, more: int = 1) -> None:
        """Count nodes. Raises: SpecError for too many."""
        self.made += more
        if self.made + self.calls > MOST_NODES:
            raise SpecError(
                f"the functions of the file make more than {MOST_NODES:,} nodes; export it without"
            )

    def _check(self, call: Any, function: Any, around: tuple[Key, ...]) -> None:
        self._count(0)
        title = f"node '{call.name or ''.join(call.output[:1])}' ({call.op_type})"
        if _key(call, call.op_type) in around:
            raise SpecError(f"{title} is a function of the file that calls itself")
        own = [one.version for one in function.opset_import if one.domain in STANDARD]
        if any(version != self.opset for version in own):
            raise SpecError(
                f"{title} is a function of the file of ONNX opset {own[0]}, and the file is of "
                f"{self.opset}; inline it by onnx.inliner.inline_local_functions(model, True)"
            )

    def _body(self, call: Any, function: Any) -> Iterator[Any]:
        """The nodes of a function for one call, whose own tensors have a prefix of their own."""
        prefix = f"{call.name or call.op_type}.{self.calls}"
        given = {attribute.name: attribute for attribute in function.attribute_proto}
        given |= {attribute.name: attribute for attribute in call.attribute}
        names = {"": ""}
        # an output that the call leaves out is a tensor of the function
        names |= {
            inner: outer
            for inner, outer in zip(function.output, call.output, strict=False)
            if outer
        }
        outer_inputs = [*call.input, *[""] * len(function.input)]
        inputs = dict(zip(function.input, outer_inputs, strict=False))
        names |= inputs
        for node in function.node:
            require_room(self.size + node.ByteSize(), "the nodes of its functions", self.path)
            copy = type(node)()
            copy.CopyFrom(node)
            _settle(copy, names, given, prefix)
            self.size += copy.ByteSize()
            yield copy
        for inner, outer in zip(function.output, call.output, strict=False):
            if outer and inner in inputs:  # a function that returns what it takes
                yield type(call)(op_type="Identity", input=[inputs[inner]], output=[outer])


def subgraphs(node: Any) -> list[Any]:
    """The graphs that a node holds: the branches of an If, the body of a Loop."""
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def _settle(root: Any, names: Mapping[str, str], given: Mapping[str, Any], prefix: str) -> None:
    """Give a node of a function, and those in its graphs, the names and attributes of a call."""

    def renamed(name: str) -> str:
        return names.get(name, f"{prefix}/{name}")

    pending = [root]
    while pending:
        node = pending.pop()
        node.name = f"{prefix}/{node.name}" if node.name else ""
        for found in (node.input, node.output):
            found[:] = [renamed(name) for name in found]
        if any(attribute.ref_attr_name for attribute in node.attribute):
            attributes = list(node.attribute)
            del node.attribute[:]
            for attribute in attributes:
                own = given.get(attribute.ref_attr_name, attribute)
                if own is attribute and attribute.ref_attr_name:
                    continue  # the call leaves it out
                node.attribute.add().CopyFrom(own)
                node.attribute[-1].name = attribute.name
        for graph in subgraphs(node):
            for value in (*graph.input, *graph.output, *graph.initializer):
                value.name = renamed(value.name)
            pending += graph.node

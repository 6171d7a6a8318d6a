"""Functions of an ONNX file: nodes that stand for others, in whose place these are put.

Source: ONNX, docs/IR.md, Model-local functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conv3d_cli.errors import SpecError
from conv3d_cli.kernels.weights.onnx_constants import STANDARD

MOST_NODES = 20_000  # a few functions that call each other twice can describe any number


def without_functions(model: Any, opset: int) -> list[Any]:
    """The nodes of a model's graph, with those of its functions in place of their calls.

    opset : int         of the standard operators of the model
    Raises: SpecError for functions that call each other, that are of another opset, or that make
        too many nodes.
    """
    functions = {
        (one.domain, one.name): one for one in model.functions if one.domain not in STANDARD
    }
    if not functions:
        return list(model.graph.node)
    done: list[Any] = []
    # what is still to do: the next at the end, with the functions around it
    pending: list[tuple[Any, tuple[str, ...]]] = [(n, ()) for n in reversed(model.graph.node)]
    number = 0
    while pending:
        node, around = pending.pop()
        function = functions.get((node.domain, node.op_type))
        if function is None:
            done.append(node)
        else:
            title = f"node '{node.name or ''.join(node.output[:1])}' ({node.op_type})"
            if node.op_type in around:
                raise SpecError(f"{title} is a function of the file that calls itself")
            own = [one.version for one in function.opset_import if one.domain in STANDARD]
            if any(version != opset for version in own):
                raise SpecError(
                    f"{title} is a function of the file of ONNX opset {own[0]}, and the file is of "
                    f"{opset}; inline it by onnx.inliner.inline_local_functions(model, True)"
                )
            number += 1
            inner = list(_body(node, function, f"{node.name or node.op_type}.{number}"))
            pending += [(one, (*around, node.op_type)) for one in reversed(inner)]
        if len(done) + len(pending) > MOST_NODES:
            raise SpecError(
                f"the functions of the file make more than {MOST_NODES:,} nodes; export it without"
            )
    return done


def _body(call: Any, function: Any, prefix: str) -> Iterator[Any]:
    """The nodes of a function for one call, whose own tensors have a prefix of their own."""
    given = {attribute.name: attribute for attribute in function.attribute_proto}
    given |= {attribute.name: attribute for attribute in call.attribute}
    names = {"": ""}
    names |= dict(zip(function.input, [*call.input, *[""] * len(function.input)], strict=False))
    # an output that the call leaves out is a tensor of the function
    names |= {
        inner: outer for inner, outer in zip(function.output, call.output, strict=False) if outer
    }
    for node in function.node:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = f"{prefix}/{node.name}" if node.name else ""
        for found in (copy.input, copy.output):
            _rename(found, names, prefix)
        del copy.attribute[:]
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                copy.attribute.append(attribute)
            elif attribute.ref_attr_name in given:
                own = copy.attribute.add()
                own.CopyFrom(given[attribute.ref_attr_name])
                own.name = attribute.name
        yield copy


def _rename(found: Any, names: Mapping[str, str], prefix: str) -> None:
    """Give tensors the names that they have outside of the function."""
    renamed: Sequence[str] = [names.get(name, f"{prefix}/{name}") for name in found]
    del found[:]
    found.extend(renamed)

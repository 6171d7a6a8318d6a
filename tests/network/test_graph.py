"""Networks as graphs: the order of their nodes, however deep, and their names."""

from __future__ import annotations

import itertools
import time

import pytest

from conv3d_cli.errors import SpecError
from conv3d_cli.network.graph import Names, Network, Node


def chain(length: int) -> list[Node]:
    names = ["x", *(f"n{number}" for number in range(length))]
    return [Node(own, "Identity", (source,)) for source, own in itertools.pairwise(names)]


def test_the_time_to_sort_a_chain_grows_with_its_length_only() -> None:
    nodes = chain(40_000)
    started = time.process_time()
    network = Network(reversed(nodes), {"x": 1}, {"y": nodes[-1].name})
    assert time.process_time() - started < 5  # 10 to 20 s if each node is looked for in a list
    assert list(network.nodes) == nodes


def test_nodes_that_no_output_needs_are_told() -> None:
    nodes = [*chain(3), Node("a", "Identity", ("x",)), Node("b", "Identity", ("a",))]
    network = Network(nodes, {"x": 1}, {"y": "n1"})
    assert [node.name for node in network.nodes] == ["n0", "n1"]
    assert network.notes == (
        "3 nodes of the network are left out, which no output needs: n2, a, b",
    )


def test_an_empty_name_is_a_name() -> None:
    network = Network([Node("a", "Identity", ("",)), Node("b", "Add", ("", "a"))], {"": 1}, {"y": "b"})  # fmt: skip
    assert [node.name for node in network.nodes] == ["a", "b"]
    network = Network([Node("", "Identity", ("x",))], {"x": 1}, {"y": ""})
    assert [node.name for node in network.nodes] == [""]


def test_a_cycle_is_told_from_its_start() -> None:
    nodes = [Node("a", "Add", ("x", "c")), Node("b", "Identity", ("a",)), Node("c", "Identity", ("b",))]  # fmt: skip
    with pytest.raises(SpecError, match="be computed first: c -> a -> b -> c"):
        Network([*nodes, Node("y", "Identity", ("c",))], {"x": 1}, {"y": "y"})


def test_many_nodes_of_one_name() -> None:
    names = Names(["a'3"])
    started = time.process_time()
    found = [names.take("a") for _ in range(100_000)]
    assert time.process_time() - started < 5
    assert found[:5] == ["a", "a'", "a'2", "a'4", "a'5"]
    assert len(set(found)) == len(found)
    assert names.free("b") == names.free("b") == names.take("b") == "b"

"""Boxes: every output chunk in exactly one, and what they read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conv3d_cli.model.box import Box, Runs
from conv3d_cli.model.spec import ConvProblem, ConvSpec
from conv3d_cli.pipeline.boxes.partition import (
    BoxGraph,
    BoxNode,
    Partition,
    buffered_runs,
    choose_partition,
    decoded_sizes,
    input_runs,
    redundancy,
    required_runs,
)

sizes = st.tuples(*[st.integers(1, 60)] * 3)
few = st.tuples(*[st.integers(1, 20)] * 3)
sweeps = st.sampled_from([None, 0, 1, 2])


def problem(
    size: tuple[int, ...], kernel: int = 3, strides: int = 1, boundary: str = "zeros"
) -> ConvProblem:
    return ConvSpec(padding="same", strides=strides, boundary=boundary).resolve(
        (1, *size, 1), (kernel,) * 3 + (1, 1)
    )


def layer_chain(*problems: ConvProblem, alignment: int = 1) -> BoxGraph:
    units = (alignment, alignment, alignment)

    def runs(problem: ConvProblem) -> Callable[[int, int, Runs], Runs]:
        return lambda number, axis, outputs: input_runs(problem, axis, outputs)

    nodes = (
        BoxNode((number - 1,), problem.out_size, units, runs(problem))
        for number, problem in enumerate(problems)
    )
    return BoxGraph(tuple(nodes), problems[0].in_size)


@given(
    size=sizes,
    in_chunk=few,
    out_chunk=few,
    most=st.integers(1, 30000),
    strides=st.integers(1, 3),
    sweep=sweeps,
)
def test_every_chunk_is_in_one_box(
    size: tuple[int, int, int],
    in_chunk: tuple[int, int, int],
    out_chunk: tuple[int, int, int],
    most: int,
    strides: int,
    sweep: int | None,
) -> None:
    one = problem(size, strides=strides)
    partition = choose_partition(
        layer_chain(one), in_chunk, out_chunk, lambda one: math.prod(one.block) <= most, [sweep]
    )
    if partition is None:
        assert (
            math.prod(min(n, size) for n, size in zip(out_chunk, one.out_size, strict=True)) > most
        )
        return
    assert math.prod(partition.block) <= most
    seen = np.zeros(one.out_size, int)
    for box in partition.boxes():
        seen[tuple(slice(*span) for span in box)] += 1
        assert all(start % n == 0 for (start, _), n in zip(box, out_chunk, strict=True))
        assert all(
            stop % n == 0 or stop == s
            for (_, stop), n, s in zip(box, out_chunk, one.out_size, strict=True)
        )
    assert (seen == 1).all()
    assert len(list(partition.boxes())) == partition.count


@pytest.mark.parametrize("sweep", [None, 0, 2])
@pytest.mark.parametrize("in_chunk", [(64, 1, 1), (1, 16, 16), (1, 200, 200), (32, 32, 32)])
def test_blocks_grow_where_less_is_read(in_chunk: tuple[int, int, int], sweep: int | None) -> None:
    """Not far from the best of all blocks that are small enough."""
    chain, most = layer_chain(problem((200, 200, 200), 9)), 64 * 24 * 24
    partition = choose_partition(
        chain, in_chunk, (8, 8, 8), lambda one: math.prod(one.block) <= most, [sweep]
    )
    assert partition is not None
    blocks = [b for b in itertools.product(range(8, 201, 8), repeat=3) if math.prod(b) <= most]
    best = min(
        sum(redundancy(chain, replace(partition, block=block), in_chunk)) for block in blocks
    )
    assert sum(redundancy(chain, partition, in_chunk)) <= 1.2 * best


class Counted:
    """An axis in chunks that counts how often each is decoded."""

    def __init__(self, chunk: int) -> None:
        self.chunk, self.decoded = chunk, 0

    def read(self, positions: set[int]) -> None:
        self.decoded += len({p // self.chunk for p in positions})


def positions(runs: tuple[tuple[int, int], ...]) -> set[int]:
    return {p for run in runs for p in range(*run)}


@given(
    size=few, chunk=st.tuples(*[st.integers(1, 7)] * 3), block=st.tuples(*[st.integers(1, 9)] * 3), sweep=sweeps,
    kernel=st.sampled_from([1, 3, 5]), boundary=st.sampled_from(["zeros", "wrap"]), alignment=st.integers(1, 4),
)  # fmt: skip
def test_what_is_decoded_is_counted(
    size: tuple[int, int, int], chunk: tuple[int, int, int], block: tuple[int, int, int], sweep: int | None,
    kernel: int, boundary: str, alignment: int,
) -> None:  # fmt: skip
    chain = layer_chain(problem(size, kernel, boundary=boundary), alignment=alignment)
    partition = Partition(size, (1, 1, 1), block, sweep)
    whole = [(-(-n // c)) for n, c in zip(size, chunk, strict=True)]
    counted = 1.0
    for axis in range(3):
        reader, before = Counted(chunk[axis]), set[int]()
        spans = partition.spans(axis)
        total = 0
        for span, following in zip(spans, [*spans[1:], None], strict=True):
            held = positions(
                buffered_runs(chain, axis, span, following if axis == sweep else None, chunk[axis])
            )
            assert held >= positions(required_runs(chain, axis, span)[0])
            new = held - before
            reader.read(new)
            total += sum(
                min((c + 1) * chunk[axis], size[axis]) - c * chunk[axis]
                for c in {p // chunk[axis] for p in new}
            )
            before = held if axis == sweep else set()
        if (
            axis == sweep
            and boundary == "zeros"
            and block[axis] % chunk[axis] == 0
            and kernel // 2 <= chunk[axis]
            and alignment == 1
        ):
            assert reader.decoded == whole[axis]
        counted *= total / size[axis]
    assert np.isclose(redundancy(chain, partition, chunk).decoded, counted)


def test_a_stack_reads_the_halos_of_all_its_layers() -> None:
    chain = layer_chain(problem((50, 50, 50), 5), problem((50, 50, 50), 3))
    box = Box((20, 30), (0, 10), (45, 50))
    assert [required_runs(chain, axis, span)[0] for axis, span in enumerate(box)] == [
        ((17, 33),),
        ((0, 13),),
        ((42, 50),),
    ]
    assert decoded_sizes(chain, box, (1, 1, 1)) == (16, 13, 8)
    assert decoded_sizes(chain, box, (16, 16, 16)) == (32, 16, 18)

"""Tasks: every output chunk in exactly one, and what they read."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conv3d_cli.boxes.cut import TASK_BYTES, Box, cut, input_box, read_share, whole_chunks
from conv3d_cli.model.spec import ConvProblem, ConvSpec

sizes = st.tuples(*[st.integers(1, 60)] * 3)
few = st.tuples(*[st.integers(1, 20)] * 3)


def problem(size: tuple[int, ...], kernel: int = 3, strides: int = 1, boundary: str = "zeros") -> ConvProblem:
    return ConvSpec(padding="same", strides=strides, boundary=boundary).resolve((1, *size, 1), (kernel,) * 3 + (1, 1))


@given(size=sizes, in_chunk=few, out_chunk=few, threads=st.integers(1, 40), strides=st.integers(1, 3))
def test_every_chunk_has_one_task(
    size: tuple[int, int, int],
    in_chunk: tuple[int, int, int],
    out_chunk: tuple[int, int, int],
    threads: int,
    strides: int,
) -> None:
    one = problem(size, strides=strides)
    cutting = cut([one], in_chunk, out_chunk, 8, threads)
    seen = np.zeros(one.out_size, int)
    for box in cutting.boxes():
        seen[tuple(slice(*span) for span in box)] += 1
        assert all(start % n == 0 for (start, _), n in zip(box, out_chunk, strict=True))
        assert all(stop % n == 0 or stop == s for (_, stop), n, s in zip(box, out_chunk, one.out_size, strict=True))
    assert (seen == 1).all()
    assert len(list(cutting.boxes())) == cutting.count


def test_blocks_grow_while_there_are_enough() -> None:
    large = problem((2000, 2000, 2000), 9)
    cutting = cut([large], (64, 64, 64), (64, 64, 64), 6, 200)
    assert math.prod(cutting.block) > 8 * 64**3
    assert cutting.count >= 4 * 200
    assert math.prod(cutting.block) * 6 <= 2 * TASK_BYTES
    # fewer threads need fewer tasks, but no larger ones than fit
    assert cut([large], (64,) * 3, (64,) * 3, 6, 1).count <= cutting.count
    small = problem((64, 64, 64), 9)
    assert cut([small], (16,) * 3, (16,) * 3, 6, 2).count >= 8


@given(size=few, chunk=st.tuples(*[st.integers(1, 7)] * 3), block=st.integers(1, 9), kernel=st.sampled_from([1, 3, 5]))
def test_what_is_read_is_counted(
    size: tuple[int, int, int], chunk: tuple[int, int, int], block: int, kernel: int
) -> None:
    one = problem(size, kernel)
    cutting = cut([one], chunk, (block,) * 3, 8, 10**6)  # so many threads that no block grows
    counted = sum(math.prod(whole_chunks([one], box, chunk)) for box in cutting.boxes())
    assert np.isclose(read_share([one], cutting, chunk), counted / math.prod(size))


def test_a_stack_reads_the_halos_of_all_its_layers() -> None:
    layers = [problem((50, 50, 50), 5), problem((50, 50, 50), 3)]
    box = Box((20, 30), (0, 10), (45, 50))
    inner = input_box(layers[0], input_box(layers[1], box))
    assert inner == ((17, 33), (0, 13), (42, 50))
    assert whole_chunks(layers, box, (1, 1, 1)) == (16, 13, 8)
    assert whole_chunks(layers, box, (16, 16, 16)) == (32, 16, 18)

"""Blocks that are looked at before a job begins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conv3d_cli.model.volume import ArrayReader, Axes, VolumeHeader
from conv3d_cli.pipeline.sampling import BLOCK_VOXELS, MOST_BLOCKS, block_size, sampled_blocks


def reader_of(array: np.ndarray, letters: str) -> ArrayReader:
    return ArrayReader(array, VolumeHeader(Axes(letters, array.shape), array.dtype))


@pytest.mark.parametrize(("letters", "shape"), [("zyx", (31, 40, 50)), ("tczyx", (2, 3, 9, 10, 11)),
                                                ("zyxc", (30, 40, 50, 2))])  # fmt: skip
def test_a_block_is_a_piece_of_one_channel(letters: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    array = rng.permutation(math.prod(shape)).reshape(shape).astype(np.int32)
    size = (7, 9, 10)
    found = list(sampled_blocks(reader_of(array, letters), size, 8))
    assert len(found) == MOST_BLOCKS
    places = set()
    for block in found:
        assert block.shape == size
        at = [int(n) for n in np.argwhere(array == block[0, 0, 0])[0]]
        spatial = iter(size)
        cut = tuple(
            slice(n, n + next(spatial)) if letter in "zyx" else n
            for letter, n in zip(letters, at, strict=True)
        )
        np.testing.assert_array_equal(array[cut], block)
        places.add(tuple(at))
    assert len(places) == MOST_BLOCKS
    # no axis has all of them at one place
    for letter, positions in zip(letters, zip(*places, strict=True), strict=True):
        assert len(set(positions)) > 1 or letters == "tczyx", letter


def test_few_blocks_cover_the_volume() -> None:
    array = np.arange(5 * 6 * 7.0).reshape(5, 6, 7)
    found = list(sampled_blocks(reader_of(array, "zyx"), (3, 6, 4), 8))
    assert {value for block in found for value in block.ravel()} == set(array.ravel())


def test_blocks_are_in_proportion_to_the_kernel() -> None:
    size = block_size((512, 2048, 2048), (31, 15, 15))
    assert BLOCK_VOXELS / 2 <= math.prod(size) <= BLOCK_VOXELS
    assert 1 < size[0] / size[1] < 4
    assert block_size((1, 4000, 4000), (1, 9, 9)) == (1, 500, 1000)

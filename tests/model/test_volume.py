"""Axes of every order against plain transposing, and the readers and writers over arrays."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LAYOUTS, REAL_DTYPES, arrays, laid_out, small_numbers

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import (
    ArrayReader,
    ArrayWriter,
    Axes,
    Volume,
    VolumeHeader,
    parts_in_storage_order,
)

# ---------------------------------------------------------------------------------------------------------------------
# An independent view of axes


@st.composite
def axes(draw: st.DrawFn, letters: str = "zcstr") -> Axes:
    """y and x, and any of `letters`, in any order, of sizes 1 to 4."""
    chosen = draw(st.sets(st.sampled_from(letters)))
    order = "".join(draw(st.permutations(sorted({"y", "x", *chosen}))))
    return Axes(order, tuple(draw(st.integers(1, 4)) for _ in order))


def canonical(array: np.ndarray, letters: str) -> np.ndarray:
    """(N, D, H, W, C) by transposing and reshaping; batch and channel letters in storage order."""
    for letter in "zyx":
        if letter not in letters:
            array, letters = array[np.newaxis], letter + letters
    batch = [a for a in letters if a not in "zyxcs"]
    channel = [a for a in letters if a in "cs"]
    moved = array.transpose([letters.index(a) for a in (*batch, *"zyx", *channel)])
    sizes = moved.shape[len(batch) : len(batch) + 3]
    return moved.reshape(math.prod(moved.shape[: len(batch)]), *sizes, -1)


@st.composite
def places(draw: st.DrawFn, axes: Axes) -> tuple[int, slice, slice]:
    """A volume, some planes and some channels."""
    count, depth, _, _, channels = axes.canonical_shape
    first = draw(st.integers(0, depth - 1))
    channel = draw(st.integers(0, channels - 1))
    return (
        draw(st.integers(0, count - 1)),
        slice(first, draw(st.integers(first + 1, depth))),
        slice(channel, draw(st.integers(channel + 1, channels))),
    )


def numbered(axes: Axes) -> np.ndarray:
    """An array of these axes in which every voxel is its own storage offset."""
    return np.arange(math.prod(axes.shape)).reshape(axes.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Axes


@given(axes())
def test_canonical_shape(axes: Axes) -> None:
    assert canonical(numbered(axes), axes.letters).shape == axes.canonical_shape


@given(axes(), st.data())
def test_a_block_is_what_plain_indexing_gives(axes: Axes, data: st.DataObject) -> None:
    n, depth, channels = data.draw(places(axes))
    array = laid_out(numbered(axes), data.draw(st.sampled_from(["C", "F", "reversed"])))
    block = axes.block(array, n, depth, channels)
    assert np.array_equal(block, canonical(array, axes.letters)[n, depth, :, :, channels])
    if len(axes.channel_letters) < 2 or channels.stop - channels.start == 1:
        assert np.may_share_memory(block, array)  # a view: nothing is copied


@given(axes(), st.data())
def test_assign_writes_where_block_reads(axes: Axes, data: st.DataObject) -> None:
    n, depth, channels = data.draw(places(axes))
    array = numbered(axes)
    before = canonical(array, axes.letters).copy()
    values = -1 - np.arange(before[n, depth, :, :, channels].size).reshape(
        before[n, depth, :, :, channels].shape
    )
    axes.assign(array, n, depth, channels, values)
    before[n, depth, :, :, channels] = values
    assert np.array_equal(canonical(array, axes.letters), before)


@given(axes(), st.data())
def test_storage_order_and_start_place_a_block(axes: Axes, data: st.DataObject) -> None:
    n, depth, channels = data.draw(places(axes))
    if len(axes.channel_letters) == 2 and channels.stop - channels.start > 1:
        channels = slice(0, axes.canonical_shape[4])
    array = numbered(axes)
    block = canonical(array, axes.letters)[n, depth, :, :, channels]
    stored = axes.storage_order(block)
    start = axes.storage_start(n, depth.start, channels.start)
    assert stored.ndim == len(start) == len(axes.letters)
    here = tuple(slice(a, a + size) for a, size in zip(start, stored.shape, strict=True))
    assert np.array_equal(stored, array[here])


@pytest.mark.parametrize(
    ("letters", "within"),
    [("zyxc", True), ("zcyx", True), ("zycx", True), ("czyx", False), ("tczyx", False), ("czyxs", False), ("zcyxs", True),
     ("yxcz", False), ("zyx", True), ("xyz", True), ("yxc", True), ("ycx", True), ("cyx", False), ("ctyx", False),
     ("tcyx", False), ("tyx", True)],
)  # fmt: skip
def test_channels_within_plane(letters: str, within: bool) -> None:
    """Behind depth; in a volume without depth, behind the first axis of its only plane."""
    assert Axes(letters, (2,) * len(letters)).channels_within_plane == within


@given(axes())
def test_parts_cover_every_voxel_once(axes: Axes) -> None:
    offsets = canonical(numbered(axes), axes.letters)
    for together in (False, True):
        parts = list(parts_in_storage_order(axes, channels_together=together))
        seen = np.concatenate([offsets[n, ..., channels].ravel() for n, channels in parts])
        assert sorted(seen.tolist()) == list(range(offsets.size))
        if together or axes.channels_within_plane:
            assert parts == [(n, slice(0, offsets.shape[4])) for n in range(offsets.shape[0])]
        else:
            assert all(channels.stop - channels.start == 1 for _, channels in parts)


@given(axes())
@example(Axes("xyz", (2, 2, 2)))
@example(Axes("ztyx", (2, 2, 2, 2)))
@example(Axes("czyxs", (2, 2, 1, 1, 2)))
@example(Axes("ctyx", (2, 2, 2, 2)))
def test_planes_follow_where_every_plane_lies_in_one_piece_behind_the_last(axes: Axes) -> None:
    offsets = canonical(numbered(axes), axes.letters)
    met: list[int] = []
    for n, part in parts_in_storage_order(axes, channels_together=False):
        for plane in offsets[n, ..., part]:
            met += sorted(plane.ravel().tolist())
    assert axes.planes_follow == (met == list(range(offsets.size)))


@given(axes(), st.data())
def test_renamed_keeps_sizes(axes: Axes, data: st.DataObject) -> None:
    letters = "".join(data.draw(st.permutations(sorted({"q", *axes.letters}))))
    renamed = axes.renamed(letters, {"x": 7})
    for letter, size in zip(renamed.letters, renamed.shape, strict=True):
        assert size == {"x": 7, "q": 1}.get(letter, axes.size(letter))


def test_letters_by_hand() -> None:
    axes = Axes("tczyxs", (5, 2, 10, 20, 30, 3))
    assert axes.canonical_shape == (5, 10, 20, 30, 6)
    assert (axes.batch_letters, axes.channel_letters, axes.batch_shape) == ("t", "cs", (5,))
    assert not axes.channels_within_plane
    assert Axes("yx", (3, 4)).canonical_shape == (1, 1, 3, 4, 1)
    assert Axes("trzyx", (2, 3, 1, 1, 1)).canonical_shape[0] == 6
    array = np.zeros(axes.shape)
    array[3, 1, 4, 7, 8, 2] = 1
    assert np.argwhere(canonical(array, axes.letters)).tolist() == [[3, 4, 7, 8, 5]]
    assert axes.block(array, 3, slice(4, 5), slice(5, 6))[0, 7, 8, 0] == 1
    assert axes.storage_start(3, 4, 5) == [3, 1, 4, 0, 0, 2]


@pytest.mark.parametrize(
    ("letters", "shape", "fact"),
    [
        ("zyx", (1, 2), "'zyx' name 3 axes, but the volume has 2: (1, 2)"),
        ("yx", (1, 2, 3), "name 2 axes"),
        ("zyy", (1, 2, 3), "different letters"),
        ("ZYX", (1, 2, 3), "different letters"),
        ("zy1", (1, 2, 3), "different letters"),
        ("z x", (1, 2, 3), "different letters"),
        ("", (), "different letters"),
        ("zyt", (1, 2, 3), "must hold y and x"),
        ("zcx", (1, 2, 3), "must hold y and x"),
    ],
)
def test_letters_that_are_none(letters: str, shape: tuple[int, ...], fact: str) -> None:
    with pytest.raises(SpecError) as caught:
        Axes(letters, shape)
    assert fact in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Volumes, readers and writers over arrays


def test_volume_checks_its_axes() -> None:
    with pytest.raises(SpecError, match="name 3 axes"):
        Volume(np.zeros((2, 2)), "zyx")
    volume = Volume(np.zeros((2, 3, 4, 5), np.int16), "tzyx", Grid((1, 2, 3), "mm"))
    assert volume.shape == (2, 3, 4, 5, 1)
    assert volume.header.dtype == np.int16
    assert volume.header.grid.spacing == (1, 2, 3)
    assert volume.header.nbytes == volume.data.nbytes


@given(axes(), st.data())
def test_array_reader_hands_out_native_numbers(axes: Axes, data: st.DataObject) -> None:
    array = data.draw(arrays(axes.shape))
    native = array.dtype.newbyteorder("=")
    n, depth, channels = data.draw(places(axes))
    with ArrayReader(array, VolumeHeader(axes, native)) as reader:
        block = reader.read(n, depth, channels)
    assert block.dtype == native
    assert block.dtype.isnative
    assert np.array_equal(block, canonical(array, axes.letters)[n, depth, :, :, channels])


def test_array_reader_gives_views_of_native_arrays() -> None:
    array = np.zeros((3, 4, 5))
    reader = ArrayReader(array, Volume(array, "zyx").header)
    assert np.may_share_memory(reader.read(0, slice(1, 3), slice(0, 1)), array)


def test_array_reader_checks_the_shape() -> None:
    with pytest.raises(ShapeError, match=r"mine: .* \(3, 4, 5\), received shape \(3, 4, 6\)"):
        ArrayReader(
            np.zeros((3, 4, 6)), VolumeHeader(Axes("zyx", (3, 4, 5)), np.dtype(float)), "mine"
        )


@given(axes(), st.booleans(), st.data())
def test_array_writer_puts_slabs_in_any_order_where_they_belong(
    axes: Axes, own: bool, data: st.DataObject
) -> None:
    expected = numbered(axes)
    source = canonical(expected, axes.letters)
    out = np.full(axes.shape, -1)
    parts = list(parts_in_storage_order(axes, channels_together=data.draw(st.booleans())))
    steps = [(part, plane) for part in parts for plane in range(axes.size("z"))]
    with ArrayWriter(out, VolumeHeader(axes, out.dtype)) as writer:
        for (n, channels), plane in data.draw(st.permutations(steps)):
            depth = slice(plane, plane + 1)
            values = source[n, depth, :, :, channels]
            if own:  # memory of the caller's
                block = values.copy()
            else:  # memory the writer lends, mostly a view of its target
                block = writer.block(n, depth, channels)
                assert block.shape == values.shape
                block[...] = values
            writer.write(n, plane, channels.start, block)
        writer.commit()
    assert np.array_equal(out, expected)


def test_array_reader_hands_out_what_its_header_says() -> None:
    half = np.ones((2, 3, 4), np.float16)
    block = ArrayReader(half, VolumeHeader(Axes("zyx", half.shape), np.dtype("float32"))).read(
        0, slice(0, 2), slice(0, 1)
    )
    assert block.dtype == np.float32


def test_a_writer_left_without_commit_aborts() -> None:
    class Noted(ArrayWriter):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    out = np.zeros((2, 3, 4))
    with Noted(out, Volume(out, "zyx").header) as writer:
        assert not writer.aborted
    assert writer.aborted


def test_array_writer_lends_memory_where_two_axes_make_up_the_channels() -> None:
    out = np.zeros((2, 5, 3, 4, 3))
    writer = ArrayWriter(out, Volume(out, "czyxs").header)
    block = writer.block(0, slice(1, 3), slice(1, 5))
    assert block.shape == (2, 3, 4, 4)
    block[...] = 7
    writer.write(0, 1, 1, block)
    assert np.array_equal(
        canonical(out, "czyxs").max(axis=(0, 2, 3)) == 7,
        np.outer([0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]),
    )


def test_array_writer_lends_views() -> None:
    out = np.zeros((3, 4, 5, 2))
    writer = ArrayWriter(out, Volume(out, "zyxc").header)
    assert np.may_share_memory(writer.block(0, slice(0, 2), slice(0, 2)), out)


def test_strategies_keep_the_values() -> None:
    for dtype, layout in itertools.product(REAL_DTYPES, LAYOUTS):
        values = small_numbers((3, 1, 2), dtype, 5)
        moved = laid_out(values, layout, 5)
        assert np.array_equal(moved, values)
        assert moved.dtype.newbyteorder("=") == values.dtype
    assert laid_out(small_numbers((2, 2), "int16", 0), "swapped bytes").dtype.isnative is False
    assert not laid_out(small_numbers((2, 2), "int16", 0), "unaligned").flags.aligned
    assert min(laid_out(small_numbers((2, 2), "int16", 0), "reversed").strides) < 0

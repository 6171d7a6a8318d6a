"""Slabs: whatever the depth of a slab and whatever the reader allows, every tap meets the plane it should."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import BOUNDARIES, Geometry, geometries

from conv3d_cli.convolution.slabs import (
    HeldPlanes,
    RingPlanes,
    SlabSource,
    Steps,
    cut_slabs,
    first_needed,
    last_needed,
    most_planes,
    plane_runs,
)
from conv3d_cli.model.spec import ConvProblem, ConvSpec
from conv3d_cli.model.volume import Array, Axes, VolumeHeader, VolumeReader


class WatchedReader(VolumeReader):
    """A volume (N, D, 1, 1, C) whose voxels tell their place: 1000·n + 10·plane + channel. It watches how it is read.

    A sequential one refuses to go back and to hand out a plane twice; any refuses what was released.
    """

    def __init__(self, count: int, depth: int, channels: int, sequential: bool) -> None:
        n, d, c = np.ogrid[:count, :depth, :channels]
        self.array = (1000 * n + 10 * d + c)[:, :, None, None, :]
        axes = Axes("tzyxc", self.array.shape)
        self.header = VolumeHeader(axes, self.array.dtype)
        self.path = "watched"
        self.sequential = sequential
        self.position = (0, 0)
        self.released = (0, 0)
        self.planes_read = 0

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        assert 0 <= depth.start < depth.stop <= self.array.shape[1], depth
        assert (n, depth.start) >= self.released, f"plane {depth.start} of volume {n} was released"
        if self.sequential:
            assert (n, depth.start) >= self.position, (
                f"went back to {n, depth.start} from {self.position}"
            )
        self.position = (n, depth.stop)
        self.planes_read += depth.stop - depth.start
        block = self.array[n, depth, :, :, channels]
        block.flags.writeable = False  # "never written to"
        return block

    def release(self, n: int, depth_stop: int) -> None:
        assert 0 <= depth_stop <= self.array.shape[1]
        self.released = max(self.released, (n, depth_stop))


def walked_planes(problem: ConvProblem, start: int, stop: int) -> list[int | None]:
    """The plane under every depth position of a slab, by walking."""
    first = start * problem.strides[0] - problem.pad_before[0]
    count = (stop - start - 1) * problem.strides[0] + problem.extent[0]
    return [
        oracle.outside(first + i, problem.in_size[0], problem.boundary.mode) for i in range(count)
    ]


def check_all_slabs(problem: ConvProblem, depth: int, sequential: bool) -> None:
    slabs = cut_slabs(problem, depth)
    reader = WatchedReader(2, problem.in_size[0], problem.in_channels, sequential)
    for n in range(2):
        read_before = reader.planes_read
        source = SlabSource(reader, n, slice(0, problem.in_channels), problem)
        for index, slab in enumerate(slabs):
            given_ = source.read(slab.start, slab.stop)
            expected = walked_planes(problem, slab.start, slab.stop)
            assert len(given_.planes) == len(expected)
            for place, plane in zip(given_.planes, expected, strict=True):
                if plane is None:
                    assert place == -1
                else:
                    assert (
                        given_.source[place].ravel().tolist()
                        == reader.array[n, plane].ravel().tolist()
                    )
            # the engine looks at its shape even where no plane is needed
            assert given_.source.shape[1:] == (1, 1, problem.in_channels)
            assert max(given_.planes) < len(given_.source)
            assert len(given_.source) <= most_planes(problem, slabs, sequential)
            source.release(slab.stop)
            later = [plane for after in slabs[index + 1 :] for plane in after.planes if plane >= 0]
            needed = (n, min(later, default=problem.in_size[0]))
            assert reader.released <= needed
            if (
                problem.strides[0] <= problem.extent[0]
            ):  # else planes between two outputs are kept for a slab of both
                assert reader.released == needed
        if sequential:
            assert reader.planes_read - read_before <= problem.in_size[0]


depths = st.integers(1, 12)


@given(geometries(boundaries=tuple(b for b in BOUNDARIES if b != "wrap")), depths)
def test_a_stream_is_read_forward_and_once(geometry: Geometry, depth: int) -> None:
    check_all_slabs(geometry.problem, depth, sequential=True)


@given(geometries(), depths)
def test_random_access_reads_the_right_planes(geometry: Geometry, depth: int) -> None:
    """And none again that was released, under wrap neither, where early planes serve late slabs."""
    check_all_slabs(geometry.problem, depth, sequential=False)


@given(geometries(), depths)
def test_slabs_follow_one_another(geometry: Geometry, depth: int) -> None:
    problem = geometry.problem
    slabs = cut_slabs(problem, depth)
    assert [p for slab in slabs for p in range(slab.start, slab.stop)] == list(
        range(problem.out_size[0])
    )
    assert all(slab.stop - slab.start == depth for slab in slabs[:-1])
    for slab in slabs:
        assert slab.planes == [
            -1 if p is None else p for p in walked_planes(problem, slab.start, slab.stop)
        ]


def test_one_slab_reads_a_stream_in_channels() -> None:
    """A part of some channels gets those channels."""
    problem = ConvSpec(padding="same").resolve((1, 4, 1, 1, 3), (3, 1, 1))
    source = SlabSource(WatchedReader(1, 4, 3, True), 0, slice(1, 2), problem)
    assert [source.read(i, i + 2).source.ravel().tolist() for i in (0, 2)] == [
        [1, 11, 21],
        [11, 21, 31],
    ]


def test_held_planes_move_within_their_memory() -> None:
    rooms: list[int] = []
    asked: list[tuple[int, int]] = []

    def room(planes: int) -> Array:
        rooms.append(planes)
        return np.full((planes, 2), -1)

    def fill(depth: slice, out: Array) -> None:
        asked.append((depth.start, depth.stop))
        out[...] = np.arange(depth.start, depth.stop)[:, None]

    held = HeldPlanes(room, fill, Steps(17))
    for start, stop in [(0, 3), (1, 5), (1, 4), (4, 8), (7, 8), (12, 14), (13, 17)]:
        assert held.read(start, stop)[:, 1].tolist() == list(range(start, stop))
    assert rooms == [3, 4]  # none for as many planes or fewer
    assert asked == [(0, 3), (3, 5), (5, 8), (12, 14), (14, 17)]  # each once


@given(st.data(), st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))
def test_windows_are_filled_in_whole_steps(
    data: st.DataObject, size: int, step: int, window: int
) -> None:
    """Each step at most once; a ring moves no plane."""
    steps, asked = Steps(size, step), list[tuple[int, int]]()

    def fill(depth: slice, out: Array) -> None:
        asked.append((depth.start, depth.stop))
        out[...] = np.arange(depth.start, depth.stop)

    def room(planes: int) -> Array:
        return np.full(planes, -1)

    windows, start, stop = list[tuple[int, int]](), 0, 0
    while stop < size:
        start = data.draw(st.integers(start, size - 1))
        stop = data.draw(st.integers(max(start + 1, stop), max(min(start + window, size), stop)))
        windows.append((start, stop))
    held = HeldPlanes(room, fill, steps)
    most = max(-(-(end - first) // step) for first, end in (steps.around(*w) for w in windows))
    ring = RingPlanes(room, fill, steps, most * step)
    for read in (held.read, lambda *w: ring.read(*w)[np.arange(*w) % (most * step)]):
        asked.clear()
        for first, end in windows:
            assert read(first, end).tolist() == list(range(first, end))
        assert all(a % step == 0 and (b % step == 0 or b == size) for a, b in asked)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(asked))


def test_a_ring_never_writes_over_planes_that_are_needed() -> None:
    ring = RingPlanes(np.empty, lambda depth, out: np.copyto(out, range(99)[depth]), Steps(9, 2), 4)
    assert ring.read(1, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="a ring of 4 planes cannot hold 6"):
        ring.read(3, 7)


def test_a_slab_wholly_outside_reads_nothing() -> None:
    problem = ConvSpec(padding=((9, 9), 0, 0)).resolve((1, 2, 1, 1, 1), (3, 1, 1))
    slabs = cut_slabs(problem, 4)
    assert set(slabs[0].planes) == {-1}
    reader = WatchedReader(1, 2, 3, True)
    given_ = SlabSource(reader, 0, slice(1, 2), problem).read(0, 4)
    assert given_.source.shape[1:] == (1, 1, 1)
    assert reader.planes_read == 0
    assert set(given_.planes) == {-1}
    assert given_.source.dtype == reader.array.dtype


def test_memory_of_a_long_volume_is_that_of_a_slab() -> None:
    """A stream of 10 000 planes through slabs of 8 with a 5-plane kernel holds 12 planes at a time."""
    problem = ConvSpec(padding="same", boundary="symmetric").resolve(
        (1, 10_000, 1, 1, 1), (5, 1, 1)
    )
    slabs = cut_slabs(problem, 8)
    assert most_planes(problem, slabs, sequential=True) == 12
    assert most_planes(problem, slabs, sequential=False) == 12
    reader = WatchedReader(1, 10_000, 1, True)
    source = SlabSource(reader, 0, slice(0, 1), problem)
    assert max(len(source.read(slab.start, slab.stop).source) for slab in slabs) == 12
    assert reader.planes_read == 10_000


@given(st.lists(st.integers(-1, 60)), st.integers(0, 6))
@example([], 4)
@example([-1, -1], 4)
def test_runs_hold_what_is_needed(planes: list[int], gap: int) -> None:
    runs = plane_runs(planes, gap)
    needed = {p for p in planes if p >= 0}
    covered = [p for start, stop in runs for p in range(start, stop)]
    assert covered == sorted(set(covered))
    assert needed <= set(covered)
    for start, stop in runs:
        assert start in needed
        assert stop - 1 in needed
        missing = 0
        for plane in range(start, stop):  # no gap longer than allowed is read through
            missing = 0 if plane in needed else missing + 1
            assert missing <= gap
    for (_, stop), (start, _) in itertools.pairwise(runs):
        assert start - stop > gap  # runs that could be one are one


@pytest.mark.parametrize("boundary", ["symmetric", "mirror"])
def test_padding_that_reaches_back_keeps_early_planes(boundary: Any) -> None:
    """Mirrored twice over: the last slab needs the first plane again, so a stream must keep them all."""
    problem = ConvSpec(padding=((0, 40), 0, 0), boundary=boundary).resolve(
        (1, 6, 1, 1, 1), (3, 1, 1)
    )
    slabs = cut_slabs(problem, 3)
    assert most_planes(problem, slabs, sequential=True) == 6
    check_all_slabs(problem, 3, sequential=True)


def test_layers_that_are_the_same_along_depth_share_what_they_need() -> None:
    """Networks have hundreds of layers, and volumes thousands of planes."""
    one = ConvSpec(padding="same").resolve((1, 9, 8, 8, 4), (3, 5, 5, 4, 2))
    two = ConvSpec(padding="same").resolve((3, 9, 4, 4, 2), (3, 3, 3, 2, 7))
    assert first_needed(one) is first_needed(two)
    assert last_needed(one) is last_needed(two)
    for other in (
        ConvSpec(padding="same", strides=2).resolve((1, 9, 8, 8, 4), (3, 5, 5, 4, 2)),
        ConvSpec(padding="same", boundary="wrap").resolve((1, 9, 8, 8, 4), (3, 5, 5, 4, 2)),
        ConvSpec(padding="same", dilation_rate=2).resolve((1, 9, 8, 8, 4), (3, 5, 5, 4, 2)),
        ConvSpec().resolve((1, 11, 8, 8, 4), (3, 5, 5, 4, 2)),
    ):
        assert last_needed(other) != last_needed(one)

"""The algebra of boxes and runs, against sets of positions."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conv3d_cli.model.box import (
    Box,
    Runs,
    Size,
    Span,
    align,
    align_runs,
    count_positions,
    count_voxels,
    intersect,
    merge,
    split,
    subtract,
)

LARGEST = 9


@st.composite
def spans(draw: st.DrawFn, least: int = 0) -> Span:
    start = draw(st.integers(0, LARGEST - least))
    return start, draw(st.integers(start + least, LARGEST))


def boxes(least: int = 0) -> st.SearchStrategy[Box]:
    return st.builds(Box, spans(least), spans(least), spans(least))


runs = st.lists(spans(1), max_size=4).map(merge)
units = st.tuples(*[st.integers(1, 5)] * 3)


def voxels(box: Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(*span) for span in box)))


def positions(runs: Runs) -> set[int]:
    return {i for run in runs for i in range(*run)}


@given(boxes())
def test_size_slices_and_emptiness(box: Box) -> None:
    array = np.zeros((LARGEST,) * 3)[box.slices]
    assert array.shape == box.size == tuple(stop - start for start, stop in box)
    assert box.size.voxels == array.size == len(voxels(box))
    assert box.is_empty == (array.size == 0)
    assert Box.at(box.start, box.size) == box
    assert Box.whole(box.size) == box.within(box)


@given(boxes(), boxes())
def test_intersect_is_that_of_sets(first: Box, second: Box) -> None:
    both = first.intersect(second)
    assert voxels(both) == voxels(first) & voxels(second)
    assert both.is_empty == (not voxels(both))
    assert both.size.voxels == len(voxels(both))
    assert both == second.intersect(first)


@given(boxes(least=1), boxes(least=1))
def test_hull_is_the_smallest_box_around_both(first: Box, second: Box) -> None:
    hull = first.hull(second)
    assert voxels(first) | voxels(second) <= voxels(hull)
    for axis, span in enumerate(hull):
        ends = {first[axis], second[axis]}
        assert span == (min(a for a, _ in ends), max(b for _, b in ends))


@given(boxes(least=1), units)
def test_align_takes_whole_units_and_no_more(box: Box, units: tuple[int, int, int]) -> None:
    size = (LARGEST,) * 3
    grown = box.align(units, size)
    assert voxels(box) <= voxels(grown) <= voxels(Box.whole(size))
    assert grown.align(units, size) == grown
    wanted = [{i // unit for i in range(*span)} for span, unit in zip(box, units, strict=True)]
    for span, unit, numbers in zip(grown, units, wanted, strict=True):
        assert {i // unit for i in range(*span)} == numbers
        assert all(
            i in range(*span)
            for number in numbers
            for i in range(number * unit, (number + 1) * unit)
            if i < LARGEST
        )


@given(boxes(), st.tuples(*[st.integers(-3, 3)] * 3))
def test_shift_and_within_undo_one_another(box: Box, offset: tuple[int, int, int]) -> None:
    assert box.shift(offset).shift([-n for n in offset]) == box
    outer = Box.whole((LARGEST,) * 3).shift(offset)
    assert box.within(outer).shift(outer.start) == box


@given(st.lists(boxes(), max_size=4))
def test_count_voxels(several: list[Box]) -> None:
    assert count_voxels(several) == sum(len(voxels(box)) for box in several)


def test_a_box_that_ends_before_it_begins_holds_nothing() -> None:
    box = Box((5, 2), (0, 3), (0, 3))
    assert box.is_empty
    assert box.size == Size(0, 3, 3)
    assert count_voxels([box]) == 0


@given(runs, runs, st.integers(1, 5))
def test_runs_are_sets_of_positions(first: Runs, second: Runs, unit: int) -> None:
    assert positions(intersect(first, second)) == positions(first) & positions(second)
    assert positions(subtract(first, second)) == positions(first) - positions(second)
    assert positions(merge([*first, *second])) == positions(first) | positions(second)
    assert count_positions(first) == len(positions(first))
    chunks = {i // unit for i in positions(first)}
    assert positions(align_runs(first, unit, LARGEST)) == {
        i for i in range(LARGEST) if i // unit in chunks
    }
    for found in (
        first,
        merge([*first, *second]),
        align_runs(first, unit, LARGEST),
        intersect(first, second),
    ):
        assert all(a[1] < b[0] for a, b in itertools.pairwise(found)), "in order and apart"


@given(st.lists(spans(1), max_size=4), st.integers(0, 3))
def test_merge_reads_through_gaps(several: list[Span], gap: int) -> None:
    found = merge(several, gap)
    assert positions(tuple(several)) <= positions(found)
    assert all(b[0] - a[1] > gap for a, b in itertools.pairwise(found))


@given(st.integers(1, 30), st.integers(1, 9))
def test_split_covers_an_axis_once(size: int, step: int) -> None:
    assert [i for span in split(size, step) for i in range(*span)] == list(range(size))
    assert all(align(span, step, size) == span for span in split(size, step))

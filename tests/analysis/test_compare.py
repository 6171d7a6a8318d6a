"""Comparing volumes: what agrees, what differs, and the figures that say by how much and where."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conv3d_cli.analysis import compare as comparison
from conv3d_cli.analysis.compare import Comparison, compare_volumes, grid_differences
from conv3d_cli.errors import FormatError
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import Array, ArrayReader, Axes, VolumeHeader, VolumeReader

Compare = Callable[..., Comparison]


class Stream(ArrayReader):
    """An array as a forward-only stream, in the order of its axes."""

    sequential = True

    def __init__(self, array: Array, header: VolumeHeader, path: str) -> None:
        super().__init__(array, header, path)
        self.position = -1
        self.finished = False

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        offsets = np.arange(self.array.size).reshape(self.array.shape)
        wanted = self.header.axes.block(offsets, n, depth, channels)
        assert wanted.min() > self.position, "went back"
        self.position = int(wanted.max())
        return super().read(n, depth, channels)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """compare(a, b, ...) on arrays or readers in place of files."""

    def reader(volume: Any, axes: str | None) -> VolumeReader:
        if isinstance(volume, VolumeReader):
            return volume
        array = np.asarray(volume)
        return ArrayReader(array, VolumeHeader(Axes(axes or "zyx", array.shape), array.dtype))

    def run(a: Any, b: Any, axes: str | None = None, **tolerances: float) -> Comparison:
        readers = {"a": reader(a, axes), "b": reader(b, axes)}
        monkeypatch.setattr(comparison, "open_volume", lambda name, **_: readers[name])
        return compare_volumes("a", "b", **tolerances)

    return run


def volume(*values: float, dtype: str = "float64") -> np.ndarray:
    return np.array(values, dtype).reshape(1, 1, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Voxels


def test_equal_volumes_agree(compare: Compare, rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 3, 4))
    result = compare(x, x.copy())
    assert result.differences == []
    assert (result.voxels, result.unequal, result.largest, result.largest_at, result.rms) == (
        240,
        0,
        0,
        None,
        0,
    )
    assert result.lines() == ["a and b agree: 240 voxels all equal"]


def test_figures_of_a_difference(compare: Compare) -> None:
    """In the last of several runs of planes, so that places are counted on."""
    a = np.zeros((20, 3, 4))
    b = a.copy()
    b[18, 2, 1] = -3
    b[1, 0, 0] = 1
    result = compare(a, b)
    assert (result.unequal, result.largest, result.largest_at) == (2, 3, (0, 18, 2, 1, 0))
    assert result.rms == pytest.approx(math.sqrt(10 / 240))
    assert len(result.differences) == 1
    assert (
        "2 of 240 differ, most by 3 at (n, d, h, w, c) = (0, 18, 2, 1, 0)" in result.differences[0]
    )
    assert result.lines()[0] == "a and b differ:"


def test_places_count_volumes_and_channels(compare: Compare) -> None:
    for letters in ("tzyxc", "ctzyx", "tczyx", "xyzct"):
        axes = Axes(letters, tuple({"t": 2, "z": 9, "y": 3, "x": 4, "c": 5}[a] for a in letters))
        a = np.zeros(axes.shape)
        place = {"t": 1, "z": 8, "y": 2, "x": 3, "c": 4}
        a[tuple(place[letter] for letter in letters)] = 7
        assert compare(a, np.zeros(axes.shape), axes=letters).largest_at == (1, 8, 2, 3, 4)


# a, b, rtol, atol, whether they agree
TOLERANCES = [
    (1.0, 1.0 + 1e-9, 0, 0, False),
    (1.0, 1.0 + 1e-9, 0, 1e-8, True),
    (1.0, 1.5, 0, 0.5, True),
    (1.0, 1.5, 0, 0.49, False),
    (100, 101, 0.01, 0, True),  # relative to |b|
    (101, 100, 0.0099, 0, False),
    (-100, -101, 0.01, 0, True),
    (100, 102, 0.01, 1, True),  # both together: 1.02 + 1
    (0.0, 1e-300, 1, 0, True),
    (1e-300, 0.0, 1, 0, False),
    (0.0, -0.0, 0, 0, True),
    (math.nan, math.nan, 0, 0, True),
    (math.nan, 1.0, 1e9, 1e9, False),
    (1.0, math.nan, 1e9, 1e9, False),
    (math.inf, math.inf, 0, 0, True),
    (-math.inf, -math.inf, 1, 1, True),
    (math.inf, -math.inf, 1e9, 1e9, False),
    (math.inf, 1.0, 1e9, 1e9, False),
    (1.0, math.inf, 1e9, 1e9, False),
    (1.0, math.inf, 0, 0, False),
    (math.nan, math.inf, 1, 1, False),
    (1e308, -1e308, 0, 0, False),  # the difference overflows
    (1e200, -1e200, 0, 0, False),  # its square does
    (1e200, -1e200, 2.1, 0, True),
]


@pytest.mark.parametrize(("a", "b", "rtol", "atol", "agrees"), TOLERANCES)
def test_tolerances(
    compare: Compare, a: float, b: float, rtol: float, atol: float, agrees: bool
) -> None:
    """One voxel among equal ones. |a - b| <= atol + rtol·|b|; NaN equals NaN, an infinity itself."""
    result = compare(volume(5, a, 6), volume(5, b, 6), rtol=rtol, atol=atol)
    assert (not result.differences) == agrees
    assert result.unequal == (not (a == b or (math.isnan(a) and math.isnan(b))))
    json.dumps(result.record(), allow_nan=False)  # whatever the figures, they are JSON
    assert result.record()["agree"] == agrees


@given(
    st.lists(st.tuples(st.floats(), st.floats()), min_size=1), st.floats(0, 1e9), st.floats(0, 1e9)
)
def test_tolerances_by_definition(
    pairs: list[tuple[float, float]], rtol: float, atol: float
) -> None:
    def close(a: float, b: float) -> bool:
        if a == b or (math.isnan(a) and math.isnan(b)):
            return True
        return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= atol + rtol * abs(b)

    arrays = [volume(*numbers) for numbers in zip(*pairs, strict=True)]
    readers = {
        name: ArrayReader(x, VolumeHeader(Axes("zyx", x.shape), x.dtype))
        for name, x in zip("ab", arrays, strict=True)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "open_volume", lambda name, **_: readers[name])
        result = compare_volumes("a", "b", rtol=rtol, atol=atol)
    assert (not result.differences) == all(close(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_long_integers_are_compared_as_such(compare: Compare, dtype: str) -> None:
    """float64 would round these to the same number."""
    top = np.iinfo(dtype).max
    a, b = volume(0, 0, dtype=dtype), volume(0, 0, dtype=dtype)
    a[0, 0, 1], b[0, 0, 1] = top, top - 1
    result = compare(a, b)
    assert result.differences
    assert (result.unequal, result.largest, result.largest_at) == (1, 1, (0, 0, 0, 1, 0))
    assert not compare(a, b, atol=1).differences
    a[0, 0, 0], b[0, 0, 0] = np.iinfo(dtype).min, top
    assert compare(a, b).largest == pytest.approx(float(top) - np.iinfo(dtype).min)


@pytest.mark.parametrize(
    ("a", "b"), list(itertools.permutations(["uint8", "int16", "float32", "float64"], 2))
)
def test_dtypes_count_without_a_tolerance(compare: Compare, a: str, b: str) -> None:
    result = compare(volume(1, 2, dtype=a), volume(1, 2, dtype=b))
    assert result.differences == [f"dtype: {a} against {b}"]
    assert not compare(volume(1, 2, dtype=a), volume(1, 2, dtype=b), atol=1e-12).differences
    assert not compare(volume(1, 2, dtype=a), volume(1, 2, dtype=b), rtol=1e-12).differences


def test_unsigned_differences_do_not_wrap(compare: Compare) -> None:
    assert compare(volume(0, dtype="uint8"), volume(255, dtype="uint8")).largest == 255


def test_scaled_values_are_compared(compare: Compare) -> None:
    """Stored otherwise, but the same values."""
    a, b = volume(0, 1, 2, dtype="int16"), volume(10, 12, 14, dtype="int16")
    axes = Axes("zyx", a.shape)
    scaled = ArrayReader(a, VolumeHeader(axes, a.dtype, scale=(2.0, 10.0)))
    plain = ArrayReader(b, VolumeHeader(axes, b.dtype))
    assert not compare(scaled, plain).differences


def test_shapes_must_agree(compare: Compare) -> None:
    result = compare(np.zeros((2, 3, 4)), np.zeros((2, 4, 3)))
    assert result.differences == ["shape (N, D, H, W, C): (1, 2, 3, 4, 1) against (1, 2, 4, 3, 1)"]
    assert result.voxels == 0


def test_empty_volumes_agree(compare: Compare) -> None:
    assert not compare(np.zeros((0, 3, 4)), np.zeros((0, 3, 4))).differences


# ---------------------------------------------------------------------------------------------------------------------
# Streams


def stream(array: np.ndarray, letters: str) -> Stream:
    return Stream(array, VolumeHeader(Axes(letters, array.shape), array.dtype), letters)


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.product(["tczyx", "ctzyx", "tzyxc"], repeat=2))
)
def test_streams_of_any_order(
    compare: Compare, rng: np.random.Generator, first: str, second: str
) -> None:
    """Each is read forward only, or unpacked first where the orders differ; both are read to their checksums."""
    x = rng.normal(size=(2, 3, 11, 2, 2))  # tczyx
    a, b = (
        stream(np.ascontiguousarray(np.einsum(f"tczyx->{letters}", x)), letters)
        for letters in (first, second)
    )
    result = compare(a, b)
    assert not result.differences
    assert result.voxels == x.size
    assert a.finished
    assert b.finished


def test_a_stream_against_a_file(compare: Compare, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 11, 2, 2))
    file = ArrayReader(np.moveaxis(x, 0, -1), VolumeHeader(Axes("zyxc", (11, 2, 2, 3)), x.dtype))
    assert not compare(stream(x, "czyx"), file).differences
    assert not compare(file, stream(x, "czyx")).differences


def test_a_damaged_stream_is_an_error(compare: Compare) -> None:
    class Damaged(Stream):
        def finish(self) -> None:
            raise FormatError("wrong checksum")

    x = np.zeros((2, 3, 4))
    damaged = Damaged(x, VolumeHeader(Axes("zyx", x.shape), x.dtype), "x")
    with pytest.raises(FormatError, match="wrong checksum"):
        compare(x, damaged)


def test_files(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(9, 5, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", np.asfortranarray(x).astype(">f4"))
    assert not compare_volumes(str(tmp_path / "a.npy"), str(tmp_path / "b.npy")).differences
    with pytest.raises(FormatError, match="no such file"):
        compare_volumes(str(tmp_path / "a.npy"), str(tmp_path / "c.npy"))


# ---------------------------------------------------------------------------------------------------------------------
# Grids

HEADER = VolumeHeader(Axes("zyx", (101, 51, 11)), np.dtype("float32"))
SPACING = (3.0, 2.0, 1.0)


def placed(spacing: Any = SPACING, origin: Any = (10.0, 20.0, 30.0), unit: str = "mm") -> Grid:
    return Grid(spacing, unit, affine_from_spacing(spacing, origin))


@pytest.mark.parametrize(
    ("a", "b", "agree"),
    [
        (Grid(), Grid(), True),
        (placed(), placed(), True),
        (placed(), placed((0.003, 0.002, 0.001), (0.01, 0.02, 0.03), "m"), True),
        (placed(), placed((3000.0, 2000.0, 1000.0), (1e4, 2e4, 3e4), "um"), True),
        (placed(), placed(unit="um"), False),
        (placed(), Grid(), False),
        (Grid(), placed(), False),
        (placed(), placed(origin=(10, 20, 30 + 0.9e-5)), True),  # 1e-5 of the smallest voxel edge
        (placed(), placed(origin=(10, 20, 30 + 1.1e-5)), False),
        (placed(), placed(origin=(10, 20, 30 - 1.1e-5)), False),
        (placed(), placed((3 + 0.9e-7, 2, 1)), True),  # adds up over the volume's 100 steps
        (placed(), placed((3 + 1.1e-7, 2, 1)), False),
        (placed(), placed((3, 2 + 1.9e-7, 1)), True),  # 50 steps of height, 10 of width
        (placed(), placed((3, 2 + 2.1e-7, 1)), False),
        (placed(), placed((3, 2, 1 + 0.9e-6)), True),
        (placed(), placed((3, 2, 1 + 1.1e-6)), False),
        (
            placed(),
            placed((3 - 1.005e-7, 2, 1), (10 + 1.005e-5, 20, 30)),
            False,
        ),  # the last voxels agree, the first do not
        (placed(), placed((3, 2 - 2.01e-7, 1), (10, 20 + 1.005e-5, 30)), False),
        (placed(), placed((3, 2, 1 - 1.005e-6), (10, 20, 30 + 1.005e-5)), False),
        (placed(), placed((2, 3, 1)), False),
        (Grid(SPACING, "mm"), Grid(SPACING, "mm"), True),
        (Grid(SPACING, "mm"), Grid((3000.0, 2000.0, 1000.0), "um"), True),
        (Grid(SPACING, "mm"), Grid((3.0, 2.0, 1.001), "mm"), False),
        (
            Grid(SPACING, "mm"),
            Grid((3.0 + 2.9e-7, 2.0, 1.0), "mm"),
            True,
        ),  # over 101 planes less than 1e-5 of a voxel
        (Grid(SPACING, "mm"), Grid((3.0 + 3.1e-7, 2.0, 1.0), "mm"), False),
        (Grid(SPACING, "mm"), placed(), True),  # one without an affine: what both know agrees
        (Grid(SPACING, "mm"), placed((1, 2, 3)), False),
        (Grid(SPACING), Grid(SPACING), True),  # a spacing in a unit nobody knows
        (Grid(SPACING), Grid((1.0, 2.0, 1.0)), False),
        (Grid(SPACING), Grid(SPACING, "mm"), False),
    ],
)
def test_grids(a: Grid, b: Grid, agree: bool) -> None:
    for one, other in ((a, b), (b, a)):
        differences = grid_differences(one, other, HEADER)
        assert (differences == []) == agree, differences


def test_a_flipped_axis_is_a_difference() -> None:
    flipped = placed()
    flipped.affine[0] *= -1
    assert "apart" in grid_differences(placed(), flipped, HEADER)[0]


def test_how_far_a_corner_lies() -> None:
    assert grid_differences(placed(), placed(origin=(10, 20, 33)), HEADER)[0].startswith(
        "grid: corners are up to 3 mm apart"
    )

"""Levels of resolution: each method against its definition, written out for whole arrays."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import SpecError, UnknownNameError
from conv3d_cli.formats import output_bytes, read_volume, write_volume
from conv3d_cli.formats.zarr.downsampling import DOWNSAMPLINGS, SIGMA, WEIGHTS
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import Volume
from conv3d_cli.settings.options import OPTION

zarr = pytest.importorskip("zarr")

METHODS = ("mean", "gaussian", "mode", "nearest")


# --------------------------------------------------------------------------------------------------
# Definitions


def cells(data: np.ndarray, halved: tuple[int, ...]) -> np.ndarray:
    """Each cell's voxels in a row, along a new last axis."""
    even = data[tuple(slice(n // 2 * 2 if i in halved else n) for i, n in enumerate(data.shape))]
    parts = [
        even[tuple(slice(s, None, 2) if i in halved else slice(None) for i, s in enumerate(start))]
        for start in itertools.product(*((0, 1) if i in halved else (0,) for i in range(data.ndim)))
    ]
    return np.stack(parts, axis=-1)


def each_cell(
    data: np.ndarray, halved: tuple[int, ...], value: Callable[[list[Any]], Any]
) -> np.ndarray:
    rows = cells(data, halved)
    found = [value(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()]
    return np.array(found, data.dtype).reshape(rows.shape[:-1])


def defined_mean(data: np.ndarray, halved: tuple[int, ...]) -> np.ndarray:
    if data.dtype.kind == "f":
        return cells(data, halved).mean(-1, dtype=np.float64).astype(data.dtype)
    # Python rounds a fraction half to even
    return each_cell(data, halved, lambda row: round(Fraction(sum(row), len(row))))


def defined_mode(data: np.ndarray, halved: tuple[int, ...]) -> np.ndarray:
    def most_frequent(row: list[Any]) -> Any:
        counts = Counter(row)
        return min(value for value, count in counts.items() if count == max(counts.values()))

    return each_cell(data, halved, most_frequent)


def defined_nearest(data: np.ndarray, halved: tuple[int, ...]) -> np.ndarray:
    return cells(data, halved)[..., 0]


def defined_gaussian(data: np.ndarray, halved: tuple[int, ...]) -> np.ndarray:
    """By matrices: each row weights voxels by their distance from the middle of a cell."""
    sigma = math.sqrt(3 / (8 * math.log(2)))
    values = data.astype(np.float64)
    for axis in halved:
        size = data.shape[axis]
        matrix = np.zeros((size // 2, size))
        for cell in range(size // 2):
            for place in range(2 * cell - 2, 2 * cell + 4):
                mirrored = (
                    -1 - place if place < 0 else 2 * size - 1 - place if place >= size else place
                )
                matrix[cell, mirrored] += math.exp(-((place - 2 * cell - 0.5) ** 2) / 2 / sigma**2)
        matrix /= matrix.sum(axis=1, keepdims=True)
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    return values


DEFINED = {
    "mean": defined_mean,
    "gaussian": defined_gaussian,
    "mode": defined_mode,
    "nearest": defined_nearest,
}


def check(method: str, found: np.ndarray, data: np.ndarray, halved: tuple[int, ...]) -> None:
    """A level is what its method defines, of the level before."""
    want = DEFINED[method](data, halved)
    assert found.dtype == data.dtype
    if method != "gaussian" and data.dtype != np.float64:
        np.testing.assert_array_equal(found, want)
    elif data.dtype.kind in "biu":
        assert (np.abs(found.astype(np.float64) - want) <= 0.5 + 1e-9).all()
    else:
        np.testing.assert_allclose(
            found, want, rtol=1e-6 if data.itemsize == 4 else 1e-12, atol=1e-13
        )


def stored_levels(path: Path) -> list[np.ndarray]:
    arrays = sorted(
        (child for child in path.iterdir() if child.is_dir()), key=lambda c: int(c.name)
    )
    return [zarr.open_array(str(array), mode="r")[...] for array in arrays]


def image_of(path: Path) -> Any:
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]


# --------------------------------------------------------------------------------------------------
# Values


def test_the_table_is_that_of_the_option() -> None:
    assert OPTION["levels_by"].kind.choices == tuple(DOWNSAMPLINGS) == METHODS


def test_the_gaussian_is_what_its_sigma_says() -> None:
    sigma = math.sqrt(3 / (8 * math.log(2)))
    assert round(sigma, 4) == SIGMA
    weights = np.exp(-0.5 * ((np.arange(3) + 0.5) / sigma) ** 2)
    np.testing.assert_allclose(WEIGHTS, weights / weights.sum() / 2, rtol=1e-15)
    # from a FWHM of 1 voxel to one of 2, by the second moment
    assert 2 * (WEIGHTS * (np.arange(3) + 0.5) ** 2).sum() == pytest.approx(sigma**2, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
def test_levels_are_what_their_method_says(
    method: str, dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    shape = (17, 36, 33)
    few = rng.integers(0, 4, shape)
    data = few if method == "mode" else rng.normal(0, 60, shape).clip(-120, 120)
    data = (np.abs(data) if dtype.startswith("u") else data).astype(dtype)
    path = tmp_path / "a.zarr"
    write_volume(str(path), Volume(data, "zyx"), levels=3, levels_by=method, chunks=(3, 8, 10))
    finest, second, third = stored_levels(path)
    assert (second.shape, third.shape) == ((8, 18, 16), (8, 9, 8))  # under 16 voxels is short
    np.testing.assert_array_equal(finest, data)
    check(method, second, finest, (0, 1, 2))
    check(method, third, second, (1, 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(33, 18, 47), (40, 16, 3), (2, 17, 16, 19)])
def test_levels_do_not_depend_on_chunks(
    method: str,
    shape: tuple[int, ...],
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a bound so small that one level is made in several boxes, and a box in several steps
    monkeypatch.setattr("conv3d_cli.formats.zarr.pyramid.CACHED", 500)
    data = rng.integers(0, 255, shape, np.uint8)
    found = []
    for number, (chunks, most) in enumerate(
        [((5, 8, 9), 3000), ((16, 4, 64), 0), ((64, 64, 64), 16 << 20)]
    ):
        monkeypatch.setattr("conv3d_cli.formats.zarr.pyramid.MOST_READ", most)
        path = tmp_path / f"{number}.zarr"
        volume = Volume(data, "tczyx"[-len(shape) :])
        write_volume(str(path), volume, levels=3, levels_by=method, chunks=chunks)
        found.append(stored_levels(path))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    halved = tuple(i for i in range(len(shape) - 3, len(shape)) if shape[i] >= 16)
    check(method, found[0][1], data, halved)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "bool"])
def test_means_of_integers_are_exact(dtype: str, rng: np.random.Generator) -> None:
    if dtype == "bool":
        data = rng.random((8, 8, 8)) < 0.5
    else:
        limits = np.iinfo(dtype)
        data = rng.integers(limits.min, limits.max, (8, 8, 8), dtype, endpoint=True)
        data[:2, :2, :2], data[2:4, :2, :2] = limits.max, limits.min
        data[4:6, :4, :4] = limits.max - np.arange(32, dtype=dtype).reshape(2, 4, 4)
    for halved in ((0,), (1, 2), (0, 1, 2)):
        want = each_cell(data, halved, lambda row: round(Fraction(sum(row), len(row))))
        np.testing.assert_array_equal(DOWNSAMPLINGS["mean"].reduce(data, halved), want)


def test_modes_of_floats_take_nan_as_a_value() -> None:
    nan = math.nan
    rows = np.array([[nan, nan, 1, nan, 2, 1, nan, 3], [1, 1, nan, nan, 3, 2, 3, 2]])
    assert DOWNSAMPLINGS["mode"].reduce(rows[:, :4], [0, 1]).tolist() == [
        [1, pytest.approx(nan, nan_ok=True)]
    ]
    assert DOWNSAMPLINGS["mode"].reduce(rows[:, 4:], [0, 1]).tolist() == [[2, 3]]


@pytest.mark.parametrize("method", METHODS)
def test_not_finite_voxels_stay_where_they_are(method: str) -> None:
    """An infinite or NaN voxel changes the cells that see it, and warns nobody."""
    data = np.zeros((20, 20, 20), np.float32)
    data[10, 10, 10], data[11, 10, 10] = np.inf, -np.inf
    found = DOWNSAMPLINGS[method].reduce(data, (0, 1, 2))
    far = 2 if method == "gaussian" else 0
    bad = np.argwhere(~np.isfinite(found))
    assert (np.abs(bad - (5 - far // 2)) <= far).all()


def test_a_constant_stays_constant_to_the_edges(tmp_path: Path) -> None:
    for method in METHODS:
        path = tmp_path / f"{method}.zarr"
        data = np.full((19, 18, 17), 200, np.uint8)
        write_volume(str(path), Volume(data, "zyx"), levels=2, levels_by=method)
        assert set(stored_levels(path)[1].ravel().tolist()) == {200}


# --------------------------------------------------------------------------------------------------
# Positions and metadata


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(32, 40, 48), (35, 41, 49)])
def test_a_level_lies_where_its_voxels_are(
    method: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    """Voxels that hold their own coordinate still do in every level, by that level's grid."""
    spacing, origin = (2.0, 0.5, 0.75), (10.0, -3.0, 1.5)
    for axis, letter in enumerate("zyx"):
        along = origin[axis] + spacing[axis] * np.arange(shape[axis])
        size = [-1 if i == axis else 1 for i in range(3)]
        data = np.broadcast_to(along.reshape(size), shape).copy()
        if method == "mode":  # the smallest of values that are equally frequent: half a voxel off
            continue
        path = tmp_path / f"{letter}.zarr"
        grid = Grid(spacing, "um", affine_from_spacing(spacing, origin))
        write_volume(str(path), Volume(data, "zyx", grid), levels=3, levels_by=method)
        for level in (1, 2):
            small = read_volume(f"{path}/{level}")
            affine = small.grid.affine
            assert affine is not None
            step, start = affine[2 - axis, 2 - axis], affine[2 - axis, 3]
            want = start + step * np.arange(small.data.shape[axis])
            found = np.moveaxis(small.data, axis, 0)[:, 3, 3]
            inside = slice(2, -2) if method == "gaussian" else slice(None)  # no mirror image in it
            np.testing.assert_allclose(found[inside], want[inside], rtol=1e-12)


def test_modes_lie_in_the_middle_of_their_cells(tmp_path: Path) -> None:
    grid = Grid((2.0, 2.0, 2.0), "um", affine_from_spacing((2.0, 2.0, 2.0), (5.0, 5.0, 5.0)))
    volume = Volume(np.zeros((33, 32, 33), np.uint8), "zyx", grid)
    write_volume(str(tmp_path / "a.zarr"), volume, levels=3, levels_by="mode")
    for level, start in enumerate((5.0, 6.0, 8.0)):
        found = read_volume(f"{tmp_path}/a.zarr/{level}").grid
        assert found.spacing == (2.0 * 2**level,) * 3
        assert found.affine is not None
        assert found.affine[:3, 3].tolist() == [start] * 3


@pytest.mark.parametrize(
    ("method", "kind", "word"),
    [
        ("mean", "local mean", "mean of 2 voxels"),
        ("gaussian", "gaussian", "sigma 0.7355 voxels"),
        ("mode", "mode", "most frequent value"),
        ("nearest", "nearest", "every second voxel"),
    ],
)
def test_the_metadata_name_the_method(method: str, kind: str, word: str, tmp_path: Path) -> None:
    volume = Volume(np.zeros((16, 16, 16), np.uint8), "zyx")
    path = tmp_path / "a.zarr"
    write_volume(str(path), volume, levels=2, levels_by=method)
    image = image_of(path)
    assert image["type"] == kind
    assert word in image["metadata"]["description"]
    assert image["metadata"]["method"] == "conv3d"


def test_predicted_memory_covers_what_a_method_takes() -> None:
    """A method that reads beyond its boxes takes more."""
    header = Volume(np.zeros((256, 512, 512), np.uint8), "zyx").header
    mean, gaussian = (
        output_bytes("a.zarr", header, 1, levels=5, levels_by=method)
        for method in ("mean", "gaussian")
    )
    assert mean < gaussian < 250e6


# --------------------------------------------------------------------------------------------------
# The command


def test_labels_have_levels_by_mode(tmp_path: Path, run: Any, rng: np.random.Generator) -> None:
    np.save(tmp_path / "probabilities.npy", rng.random((32, 32, 32, 4), np.float32))
    path = tmp_path / "labels.ome.zarr"
    done = run(
        "apply", tmp_path / "probabilities.npy", "-k", "identity", "--argmax", "--levels", 2,
        "-o", path,
    )  # fmt: skip
    assert "--levels-by mode" in " ".join(done.stderr.split())
    finest, second = stored_levels(path)
    np.testing.assert_array_equal(second, defined_mode(finest, (0, 1, 2)))
    run(
        "apply", tmp_path / "probabilities.npy", "-k", "identity", "--argmax", "--levels", 2,
        "-o", path, "--overwrite", "--levels-by", "nearest",
    )  # fmt: skip
    np.testing.assert_array_equal(stored_levels(path)[1], finest[::2, ::2, ::2])


def test_a_method_needs_levels(tmp_path: Path, run: Any, error_line: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros((16, 16, 16), np.uint8))
    command = ("apply", tmp_path / "a.npy", "-k", "identity", "--levels-by", "mode")
    failed = run(*command, "-o", tmp_path / "a.zarr", code=2)
    assert "levels of resolution" in error_line(failed.stderr)
    failed = run(*command, "--levels", 2, "-o", tmp_path / "b.npy", code=2)
    assert "OME-Zarr" in error_line(failed.stderr)
    failed = run(*command[:-1], "median", "-o", tmp_path / "a.zarr", code=2)
    assert "mean, gaussian, mode or nearest" in error_line(failed.stderr)
    volume = Volume(np.zeros((16, 16, 16), np.uint8), "zyx")
    with pytest.raises(UnknownNameError, match="unknown levels_by 'median'"):
        write_volume(str(tmp_path / "a.zarr"), volume, levels=2, levels_by="median")
    with pytest.raises(SpecError, match=r"levels_by= is for NIfTI-Zarr, .* OME-Zarr"):
        write_volume(str(tmp_path / "a.nii"), volume, levels_by="mode")


# --------------------------------------------------------------------------------------------------
# Other programs


def test_levels_are_those_of_scipy(rng: np.random.Generator) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    data = rng.normal(size=(20, 24, 28))
    weights = [*WEIGHTS[::-1], *WEIGHTS]
    want = data
    for axis in range(3):
        # of 6 weights, SciPy's middle is the fourth; ours lies between the third and the fourth
        want = ndimage.correlate1d(want, weights, axis, mode="reflect", origin=-1)
        want = want[tuple(slice(None, None, 2) if i == axis else slice(None) for i in range(3))]
    padded = np.pad(data, 2, "symmetric")
    found = DOWNSAMPLINGS["gaussian"].reduce(padded, (0, 1, 2))
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-14)


def test_modes_are_those_of_tinybrain(rng: np.random.Generator) -> None:
    tinybrain = pytest.importorskip("tinybrain")
    labels = np.kron(rng.integers(1, 9, (6, 6, 6)), np.ones((5, 5, 5), int)).astype(np.uint32)
    labels = labels[:28, :28, :28]
    (want,) = tinybrain.downsample_segmentation(labels.T.copy(order="F"), (2, 2, 2), num_mips=1)
    rows = np.sort(cells(labels, (0, 1, 2)), axis=-1)
    counts = (rows[..., :, None] == rows[..., None, :]).sum(-1)
    is_clear = counts.max(-1) > 4  # no other value is as frequent
    found = DOWNSAMPLINGS["mode"].reduce(labels, (0, 1, 2))
    assert is_clear.mean() > 0.5
    np.testing.assert_array_equal(found[is_clear], np.squeeze(want).T[is_clear])

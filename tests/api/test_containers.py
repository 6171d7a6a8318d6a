"""conv3d() on every kind of array: the numbers of NumPy, in the kind that came in."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli import Grid, Kernel, Volume, conv3d, read_volume, write_volume
from conv3d_cli.api import containers
from conv3d_cli.errors import MemoryLimitError, ShapeError
from conv3d_cli.model.grid import affine_from_spacing

SPACING = (3.0, 1.5, 2.0)
GRID = Grid(SPACING, "mm", affine_from_spacing(SPACING, (5.0, 6.0, 7.0)))


@pytest.fixture
def scan(rng: np.random.Generator) -> Volume:
    return Volume(rng.normal(size=(7, 9, 8)).astype(np.float32), "zyx", GRID)


# ---------------------------------------------------------------------------------------------------------------------
# Volumes


def test_a_volume_is_smoothed_by_its_own_millimetres(scan: Volume) -> None:
    smooth = conv3d(scan, "gaussian:fwhm=6mm", padding="same", boundary="symmetric")
    sigmas = [6 / np.sqrt(8 * np.log(2)) / step for step in SPACING]
    assert isinstance(smooth, Volume)
    assert np.allclose(smooth.data, ndimage.gaussian_filter(scan.data, sigmas), atol=1e-5)
    assert smooth.grid.spacing == SPACING
    assert np.array_equal(smooth.grid.affine, GRID.affine)  # type: ignore[arg-type]


def test_strides_and_padding_move_the_grid_of_a_volume(scan: Volume) -> None:
    out = conv3d(scan, np.ones((3, 3, 3)), strides=2)
    assert out.data.shape == (3, 4, 3)
    assert out.grid.spacing == (6.0, 3.0, 4.0)
    # the first output voxel lies at input voxel (1, 1, 1)
    assert out.grid.affine is not None
    assert out.grid.affine[:3, 3].tolist() == [7.0 + 2.0, 6.0 + 1.5, 5.0 + 3.0]
    twice = conv3d(out, np.ones((1, 1, 1)), strides=2)
    assert twice.transform.step == (4, 4, 4)


@pytest.mark.parametrize(
    ("axes", "shape", "after"),
    [("tczyx", (2, 3, 5, 6, 7), "tczyx"), ("xyzt", (7, 6, 5, 2), "xyzt"), ("yx", (6, 7), "yx")],
)
def test_a_volume_keeps_the_order_of_its_axes(
    axes: str, shape: tuple[int, ...], after: str, rng: np.random.Generator
) -> None:
    data = rng.normal(size=shape)
    kernel = rng.normal(size=(1, 3, 3) if "z" not in axes else (3, 3, 3))
    out = conv3d(Volume(data, axes), kernel, padding="same")
    assert out.axes == after
    assert out.data.shape == shape
    # by SciPy, each volume of zyx on its own
    order = [axes.index(a) for a in "zyx" if a in axes]
    moved = np.moveaxis(data, order, range(-len(order), 0))
    size = kernel.shape[-len(order) :]
    lead = (1,) * (data.ndim - len(order))
    expected = ndimage.correlate(moved, kernel.reshape(lead + size), mode="constant")
    assert np.allclose(np.moveaxis(expected, range(-len(order), 0), order), out.data)


def test_a_layer_changes_the_channels_of_a_volume(rng: np.random.Generator) -> None:
    data, weights = rng.normal(size=(2, 5, 6, 7)), rng.normal(size=(3, 3, 3, 2, 4))
    out = conv3d(Volume(data, "czyx"), weights)
    expected = conv3d(np.moveaxis(data, 0, -1), weights)
    assert out.axes == "czyx"
    assert np.array_equal(np.moveaxis(out.data, 0, -1), expected)
    gray = Volume(data[0], "zyx")
    assert conv3d(gray, weights[..., :1, :]).axes == "zyxc"
    assert conv3d(gray, weights[..., :1, :], data_format="channels_first").axes == "czyx"
    pixels = Volume(np.moveaxis(data, 0, -1)[0], "yxs")
    assert conv3d(pixels, rng.normal(size=(1, 3, 3, 2, 3)), padding="same").axes == "yxc"


@pytest.mark.parametrize("name", ["scan.nii.gz", "stack.ome.tif"])
def test_a_written_volume_is_the_file_of_the_command(
    name: str, scan: Volume, tmp_path: Path, run: Any
) -> None:
    """Voxels, grid, channel names and the rest of the header, byte for byte."""
    source = tmp_path / name
    write_volume(str(source), scan)
    for kernel, options in (
        ("gaussian:fwhm=6mm", {"strides": 2}),
        ("sobel:axis=xyz", {"strides": 1}),
    ):
        theirs, ours = tmp_path / f"command_{name}", tmp_path / f"python_{name}"
        run(
            "apply",
            source,
            "-k",
            kernel,
            "--strides",
            options["strides"],
            "-o",
            theirs,
            "--overwrite",
        )
        volume = read_volume(str(source))
        out = conv3d(volume, kernel, padding="same", boundary="symmetric", **options)
        write_volume(str(ours), out, overwrite=True)
        assert ours.read_bytes() == theirs.read_bytes(), kernel


def test_a_mask_may_be_a_volume_or_its_path(scan: Volume, tmp_path: Path) -> None:
    inside = (np.arange(scan.data.size).reshape(scan.data.shape) % 3 > 0).astype(np.uint8)
    expected = conv3d(scan.data, "box:size=3", padding="same", mask=inside)
    write_volume(str(tmp_path / "m.nii"), Volume(inside, "zyx", GRID))
    for mask in (
        inside,
        Volume(inside, "zyx", GRID),
        Volume(inside.T, "xyz", GRID),
        tmp_path / "m.nii",
    ):
        out = conv3d(scan, "box:size=3", padding="same", mask=mask)
        assert np.array_equal(out.data, expected)


def test_a_mask_of_another_place_or_shape_is_refused(scan: Volume) -> None:
    inside = np.ones(scan.data.shape, np.uint8)
    moved = Grid(SPACING, "mm", affine_from_spacing(SPACING, (5.0, 6.0, 9.0)))
    with pytest.raises(ShapeError, match=r"^the mask array lies elsewhere .* 1 voxels along width"):
        conv3d(scan, "box", padding="same", mask=Volume(inside, "zyx", moved))
    with pytest.raises(ShapeError, match=r"^the mask array has another grid .*depth 6 against 7"):
        conv3d(scan, "box", padding="same", mask=inside[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Masked arrays


def test_masked_voxels_are_left_out_of_means(rng: np.random.Generator) -> None:
    values, masked = rng.normal(size=(6, 7, 8)), rng.random((6, 7, 8)) < 0.4
    masked[:3, :3, :3] = True
    out = conv3d(
        np.ma.MaskedArray(values, masked),
        np.full((3, 3, 3), 1 / 27),
        padding="same",
        boundary="zeros",
    )
    # by definition: sums over unmasked voxels; zeros beyond the edges are data
    pad = np.pad(np.where(masked, 0, values), 1)
    there = np.pad(~masked, 1, constant_values=True).astype(float)
    sums, counts = (np.zeros(values.shape) for _ in range(2))
    for d, h, w in np.ndindex(3, 3, 3):
        window = np.s_[d : d + 6, h : h + 7, w : w + 8]
        sums += pad[window]
        counts += there[window]
    assert isinstance(out, np.ma.MaskedArray)
    assert np.array_equal(np.ma.getmaskarray(out), counts == 0)
    assert out.mask[1, 1, 1]
    assert np.allclose(out.data[counts > 0], (sums / np.maximum(counts, 1))[counts > 0])


def test_the_sum_of_a_masked_array_stays_that_of_its_voxels() -> None:
    x = np.ma.masked_greater(np.arange(125.0).reshape(5, 5, 5), 60)
    assert conv3d(x, np.ones((1, 1, 1))).sum() == np.ma.sum(x) == 1830


@pytest.mark.parametrize("dtype", ["int16", "uint64", "float16", ">f4", "float64", "bool"])
def test_masked_arrays_of_every_dtype(dtype: str) -> None:
    x = np.ma.masked_less(np.arange(60).reshape(3, 4, 5) % 7, 2).astype(dtype)
    out = conv3d(x, "box:size=1")
    assert out.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert np.array_equal(out.mask, x.mask)
    assert np.array_equal(out.compressed(), x.compressed().astype(out.dtype))


def test_a_masked_array_without_masked_voxels_is_a_plain_one(rng: np.random.Generator) -> None:
    """Any kernel then, also one that has no mean."""
    values, kernel = rng.normal(size=(5, 6, 7)), rng.normal(size=(3, 3, 3))
    out = conv3d(np.ma.MaskedArray(values), kernel)
    assert isinstance(out, np.ma.MaskedArray)
    assert out.mask is np.ma.nomask
    assert np.array_equal(out.data, conv3d(values, kernel))


def test_a_sum_over_masked_voxels_says_that_it_is_a_mean() -> None:
    x = np.ma.masked_equal(np.arange(27.0).reshape(3, 3, 3), 13)
    with pytest.warns(
        UserWarning, match=r"the result is a mean: the weights of the kernel are .* 27"
    ):
        out = conv3d(x, np.ones((3, 3, 3)))
    assert float(out[0, 0, 0]) == pytest.approx(13)
    with pytest.raises(ShapeError, match="take means, which need non-negative"):
        conv3d(x, "sobel:axis=d")


def test_nan_beside_masked_voxels_keeps_its_own_rule() -> None:
    values = np.arange(27.0).reshape(3, 3, 3)
    values[0, 0, 0] = np.nan
    x = np.ma.MaskedArray(values, values == 26)
    kernel = np.full((1, 1, 3), 1 / 3)
    spread = conv3d(x, kernel, padding="same", boundary="nearest")
    assert np.isnan(spread.data[0, 0, :2]).all()
    assert float(spread[2, 2, 2]) == pytest.approx(25)  # from 25 alone
    ignored = conv3d(x, kernel, padding="same", boundary="nearest", nan="ignore")
    assert float(ignored[0, 0, 0]) == pytest.approx(1)
    zero = conv3d(x, kernel, padding="same", boundary="nearest", nan="zero")
    assert float(zero[2, 2, 2]) == pytest.approx(25 / 3)
    assert zero.mask is np.ma.nomask
    with pytest.raises(ShapeError, match="allows no missing voxels, received 1 masked"):
        conv3d(x, kernel, nan="error")


def test_masked_voxels_and_a_value_that_marks_others() -> None:
    values = np.array([[[1.0, -9.0, 3.0, 5.0]]])
    x = np.ma.MaskedArray(values, values == 5)
    out = conv3d(x, np.full((1, 1, 3), 1 / 3), padding="same", boundary="nearest", missing=-9)
    assert out.tolist() == [[[1.0, 2.0, 3.0, 3.0]]]


def test_a_marker_is_no_voxel() -> None:
    """A voxel may hold the number that would mark masked ones."""
    largest = np.finfo(np.float64).max
    x = np.ma.MaskedArray([[[largest, 1.0, 2.0]]], [[[False, False, True]]])
    assert conv3d(x, np.ones((1, 1, 1))).tolist() == [[[largest, 1.0, None]]]


def test_masked_voxels_and_a_mask(rng: np.random.Generator) -> None:
    """Where neither gives a voxel, the result is masked; outside the mask it is 0, as ever."""
    values, masked = rng.normal(size=(4, 5, 6)), np.zeros((4, 5, 6), bool)
    masked[:, :3] = True
    mask = np.ones((4, 5, 6))
    mask[:, :, 5] = 0
    x = np.ma.MaskedArray(values, masked)
    out = conv3d(x, np.full((3, 3, 3), 1 / 27), padding="same", boundary="nearest", mask=mask)
    assert np.ma.getmaskarray(out)[:, :2].all()
    assert not np.ma.getmaskarray(out)[:, 2:5, :5].any()
    assert (out.data[:, 3, 5] == 0).all()


def test_a_masked_volume(rng: np.random.Generator) -> None:
    data = np.ma.MaskedArray(rng.normal(size=(4, 5, 6)), rng.random((4, 5, 6)) < 0.2)
    out = conv3d(Volume(data, "zyx", GRID), np.full((3, 3, 3), 1 / 27), padding="same")
    assert isinstance(out.data, np.ma.MaskedArray)
    assert out.grid.spacing == SPACING


# ---------------------------------------------------------------------------------------------------------------------
# Dask


def test_a_dask_array_is_computed_and_stays_one(rng: np.random.Generator) -> None:
    dask = pytest.importorskip("dask.array")
    values = rng.normal(size=(6, 7, 8)).astype(np.float32)
    x = dask.from_array(values, chunks=(3, 7, 4))
    out = conv3d(x, np.ones((1, 3, 3)), padding="same")
    assert isinstance(out, dask.Array)
    assert out.chunks == x.chunks
    assert np.array_equal(np.asarray(out), conv3d(values, np.ones((1, 3, 3)), padding="same"))
    assert conv3d(x, np.ones((1, 3, 3))).chunks == ((3, 3), (5,), (6,))


def test_a_dask_array_beyond_the_memory_is_refused() -> None:
    dask = pytest.importorskip("dask.array")
    with pytest.raises(MemoryLimitError, match=r"Dask array.*in memory.*to_zarr.*convolve_file"):
        conv3d(dask.zeros((100_000, 100_000, 1000), chunks=1000, dtype=np.uint8), "box")


# ---------------------------------------------------------------------------------------------------------------------
# Kinds that are not installed here


def test_kinds_are_known_by_their_classes_alone() -> None:
    """Libraries are told by the names of their classes, without importing them."""
    program = """
        import sys, numpy as np
        from conv3d_cli import conv3d, Volume
        conv3d(np.ma.masked_less(np.ones((3, 3, 3)), 0), np.ones((1, 1, 1)))
        assert not {"torch", "xarray", "dask", "pandas"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


class FakeTensor:
    """The part of a tensor that is used; its class says that it is PyTorch's."""

    dtype, requires_grad = "float32", False

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def is_floating_point(self) -> bool:
        return True

    def numpy(self, force: bool) -> np.ndarray:
        return self.values


def test_what_a_tensor_says_itself_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeTensor):
        def numpy(self, force: bool) -> np.ndarray:
            raise TypeError("sparse\ntensors have\nno numpy()")

    class Torch:
        float16, float32, float64 = "float16", "float32", "float64"

        @staticmethod
        def is_grad_enabled() -> bool:
            return True

        @staticmethod
        def from_numpy(values: np.ndarray) -> FakeTensor:
            return FakeTensor(values)

    monkeypatch.setitem(sys.modules, "torch", Torch)  # type: ignore[arg-type]
    monkeypatch.setitem(
        containers._KINDS, (__name__.partition(".")[0], "FakeTensor"), containers._tensor
    )
    out = conv3d(FakeTensor(np.ones((3, 3, 3), np.float32)), Kernel(np.ones((3, 3, 3))))
    assert isinstance(out, FakeTensor)
    assert out.values.tolist() == [[[27.0]]]
    with pytest.raises(
        ShapeError, match=r"^x is no array of numbers: sparse tensors have no numpy"
    ):
        conv3d(Broken(np.ones((3, 3, 3))), "box")

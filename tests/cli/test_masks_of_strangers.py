"""Masks as other tools write them: any scale, any format, any numbers of regions.

The right value is the formula, Σ w m x / Σ w m, summed by scipy in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli.formats import write_volume
from conv3d_cli.model.volume import Volume

SHAPE = (9, 10, 11)  # z, y, x
X = np.random.default_rng(0).uniform(1, 100, SHAPE).astype("f4")
BALL = (((np.indices(SHAPE) - np.array([4, 5, 5]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 13) * 1.0
VARIANCES = 1 / np.random.default_rng(1).uniform(100, 5000, SHAPE)
KERNEL = "box:size=3"


def means(weights: np.ndarray) -> np.ndarray:
    """Weighted means over 3 x 3 x 3 voxels, 0 outside the mask."""
    sums = [
        ndimage.uniform_filter(a.astype(float), 3, mode="constant") for a in (X * weights, weights)
    ]
    inside = weights > 0
    return np.where(inside, sums[0] / np.where(inside, sums[1], 1), 0)


def means_by_region(labels: np.ndarray) -> np.ndarray:
    result = np.zeros(SHAPE)
    for label in np.unique(labels[labels > 0]):
        own = (labels == label) * 1.0
        result += means(own)
    return result


def nifti(path: Path, data: np.ndarray, slope: float = 1, intercept: float = 0) -> Path:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(data.dtype)
    image = nibabel.Nifti1Image(data.transpose(2, 1, 0), np.eye(4), header)
    if (slope, intercept) != (1, 0):
        image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return nifti(tmp_path / "scan.nii", X)


def masked(run: Any, scan: Path, mask: Path, *options: Any, **expected: Any) -> np.ndarray:
    out = scan.parent / "out.nii"
    run("apply", scan, "-k", KERNEL, "--boundary", "renormalize", "--mask", mask, *options,
        "--strict", "--verify", "300", "--overwrite", "-o", out, **expected)  # fmt: skip
    return np.asarray(nibabel.load(out).dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 0.002, 1, 100, 255, 1e30])
@pytest.mark.parametrize("weights", [BALL, VARIANCES, BALL * VARIANCES], ids=["01", "iv", "both"])
def test_a_factor_on_a_mask_changes_nothing(
    scan: Path, weights: np.ndarray, factor: float, run: Any
) -> None:
    mask = nifti(scan.parent / "m.nii", weights * factor)
    np.testing.assert_allclose(masked(run, scan, mask), means(weights), rtol=2e-5)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept"),
    [
        ((BALL * 200).astype("u1"), 0.005, 0),
        ((1 - BALL).astype("u1"), -1, 1),
        ((1 - BALL).astype("i2"), -0.5, 0.5),
        ((-BALL).astype("i1"), -1, 0),
        ((BALL * 100 - 100).astype("i2"), 0.01, 1),
        ((BALL * 1000 + 7).astype("u2"), 1, -7),
    ],
)
def test_masks_with_a_slope(
    scan: Path, stored: np.ndarray, slope: float, intercept: float, run: Any
) -> None:
    mask = nifti(scan.parent / "m.nii", stored, slope, intercept)
    np.testing.assert_allclose(masked(run, scan, mask), means(BALL), rtol=2e-5)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy", ".nrrd", ".zarr", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("factor", [1, 100])
def test_masks_of_every_format(scan: Path, suffix: str, dtype: str, factor: int, run: Any) -> None:
    mask = scan.parent / f"m{suffix}"
    if dtype == "f8" and suffix == ".ome.tif":
        dtype = "f4"
    if suffix == ".nii.gz":
        nifti(mask, (BALL * factor).astype(dtype))
    else:
        write_volume(str(mask), Volume((BALL * factor).astype(dtype), "zyx"))
    np.testing.assert_allclose(masked(run, scan, mask), means(BALL), rtol=2e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [[], ["--mask-labels"]])
def test_masks_with_values_that_are_no_numbers(
    scan: Path, bad: float, options: list[str], run: Any, error_line: Any
) -> None:
    weights = BALL.copy()
    weights[0, 0, 0] = bad
    mask = nifti(scan.parent / "m.nii", weights)
    for command in (
        ["apply", scan, "-k", KERNEL, "--mask", mask, *options, "-o", scan.parent / "o.nii"],
        *([["info", scan, "--fwhm", "--mask", mask]] if not options else []),
    ):
        assert "holds NaN or infinity" in error_line(run(*command, code=4).stderr)


@pytest.mark.parametrize("command", ["apply", "info", "to-fwhm"])
@pytest.mark.parametrize("what", ["far", "flipped", "series", "channels", "below 0", "empty"])
def test_every_command_asks_the_same_of_a_mask(
    scan: Path, what: str, command: str, run: Any, error_line: Any
) -> None:
    affine, data = np.eye(4), BALL.transpose(2, 1, 0).astype("f4")
    words = {"far": "elsewhere", "flipped": "elsewhere", "series": "has 2 time points, and",
             "channels": "has 3 channels, and", "below 0": "below 0", "empty": "is empty"}  # fmt: skip
    if what == "far":
        affine[0, 3] = 500
    elif what == "flipped":
        affine[0, 0] = -1
    elif what == "series":
        data = np.stack([data, data], -1)
    elif what == "channels":
        data = np.stack([data] * 3, -1)[:, :, :, None]
    else:
        data = data * (-1 if what == "below 0" else 0)
    mask = scan.parent / "m.nii"
    nibabel.save(nibabel.Nifti1Image(data, affine), mask)
    arguments = {
        "apply": ["apply", scan, "-k", KERNEL, "--mask", mask, "-o", scan.parent / "o.nii"],
        "info": ["info", scan, "--fwhm", "--mask", mask],
        "to-fwhm": [
            "apply",
            scan,
            "--to-fwhm",
            "4vox",
            "--mask",
            mask,
            "-o",
            scan.parent / "o.nii",
        ],
    }[command]
    line = error_line(run(*arguments, code=4).stderr)
    assert words[what] in line
    assert ("resample" in line) == (what in ("far", "flipped"))


class TestRegions:
    @pytest.mark.parametrize(
        ("numbers", "dtype"),
        [
            ([0, 1, 7, 41, 65535], "u2"),
            ([0, 614454277, 614454303, 2**31], "u4"),  # as the Allen atlas: one in float32
            ([0, 3, 65536, 2**31 - 1], "i4"),
            ([0, 2**40 + 1, 2**40 + 2, 2**53], "i8"),
            ([0, 1.0, 70000.0, 16777216.0], "f4"),
            ([0, 614454277.0, 614454303.0], "f8"),
        ],
    )
    def test_any_numbers(self, scan: Path, numbers: list[float], dtype: str, run: Any) -> None:
        labels = np.random.default_rng(2).choice(np.array(numbers, dtype), SHAPE)
        mask = nifti(scan.parent / "m.nii", labels)
        found = masked(run, scan, mask, "--mask-labels")
        np.testing.assert_allclose(found, means_by_region(labels), rtol=2e-5)

    def test_numbers_that_a_slope_rounds(self, scan: Path, run: Any) -> None:
        """nibabel chooses the slope, as it does for a float array in an integer header."""
        labels = np.random.default_rng(2).integers(0, 117, SHAPE)
        image = nibabel.Nifti1Image(labels.transpose(2, 1, 0).astype(float), np.eye(4))
        image.header.set_data_dtype(np.int16)
        nibabel.save(image, scan.parent / "m.nii")
        assert nibabel.load(scan.parent / "m.nii").dataobj.slope != 1
        found = masked(run, scan, scan.parent / "m.nii", "--mask-labels")
        np.testing.assert_allclose(found, means_by_region(labels), rtol=2e-5)

    def test_large_numbers_with_a_slope(self, scan: Path, run: Any) -> None:
        labels = np.random.default_rng(2).integers(0, 5, SHAPE)
        mask = nifti(scan.parent / "m.nii", (labels * 15000).astype("u2"), 200, 0)
        found = masked(run, scan, mask, "--mask-labels")
        np.testing.assert_allclose(found, means_by_region(labels), rtol=2e-5)

    def test_numbers_that_cannot_be_told_apart(self, scan: Path, run: Any, error_line: Any) -> None:
        mask = nifti(scan.parent / "m.nii", np.full(SHAPE, 2**60, "i8"))
        result = run("apply", scan, "-k", KERNEL, "--mask", mask, "--mask-labels",
                     "-o", scan.parent / "o.nii", code=4)  # fmt: skip
        assert "number the regions from 1 on" in error_line(result.stderr)

    def test_more_regions_than_there_may_be(
        self, tmp_path: Path, run: Any, error_line: Any
    ) -> None:
        shape = (1, 300, 300)
        np.save(tmp_path / "v.npy", np.ones(shape, "f4"))
        np.save(tmp_path / "m.npy", np.arange(90000, dtype="i4").reshape(shape))
        result = run("apply", tmp_path / "v.npy", "-k", "box:size=1,3,3", "--mask",
                     tmp_path / "m.npy", "--mask-labels", "-o", tmp_path / "o.npy", code=4)  # fmt: skip
        assert "more than 65535 regions" in error_line(result.stderr)

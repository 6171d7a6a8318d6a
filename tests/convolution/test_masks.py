"""Masks: the values in the file, whatever their scale; weights as parts of the largest; regions from integers with a slope."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli import conv3d
from conv3d_cli.errors import ShapeError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SIZE = (30, 20, 22)
BALL = ((np.indices(SIZE) - np.array([14, 10, 10])[:, None, None, None]) ** 2).sum(axis=0) < 81
LABELS = np.resize(np.repeat(np.arange(1, 117), 40), np.prod(SIZE)).reshape(SIZE)
KERNEL = np.ones((5, 5, 5))


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("volume") / "x.nii"
    nib.Nifti1Image(
        np.random.default_rng(1).uniform(1, 100, SIZE).astype(np.float32), AFFINE
    ).to_filename(path)
    return path


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def by_nibabel(path: Path, values: np.ndarray, dtype: str = "int16") -> Path:
    """Real numbers in integers, by the slope and intercept that nibabel finds for them."""
    image = nib.Nifti1Image(values.astype(np.float64), AFFINE)
    image.header.set_data_dtype(dtype)
    image.to_filename(path)
    return path


def stored(path: Path, numbers: np.ndarray, slope: float, intercept: float) -> Path:
    """Integers as they are, and a slope and an intercept in the header."""
    nib.Nifti1Image(numbers, AFFINE).to_filename(path)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2f", raw, 112, slope, intercept)
    path.write_bytes(raw)
    return path


def by_definition(
    x: np.ndarray, m: np.ndarray, least: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """(means, coverage) of a box of 5 under a mask, by SciPy in float64; a mean of less than `least` is 0."""
    m = m.astype(np.float64) / m.max()
    top, bottom = (ndimage.uniform_filter(a, 5, mode="reflect") for a in (m * x, m))
    return np.where(bottom >= least, top / np.maximum(bottom, 1e-300), 0), bottom


# -- regions


def test_labels_with_a_slope_are_the_labels(volume: Path, tmp_path: Path, run: Any) -> None:
    """As an atlas of 116 regions that was saved from real numbers: within 0.001 of whole, by nibabel."""
    sloped = by_nibabel(tmp_path / "sloped.nii", LABELS)
    found = load(sloped)
    assert (found != LABELS).mean() > 0.5
    assert abs(found - LABELS).max() < 0.001
    whole = tmp_path / "whole.nii"
    nib.Nifti1Image(LABELS.astype(np.uint8), AFFINE).to_filename(whole)
    for mask in (sloped, whole):
        arguments = [
            "-k",
            "box:size=5",
            "--mask",
            mask,
            "--mask-labels",
            "--strict",
            "--verify",
            "300",
        ]
        run("apply", volume, *arguments, "-o", tmp_path / f"of_{mask.name}")
    np.testing.assert_array_equal(load(tmp_path / "of_sloped.nii"), load(tmp_path / "of_whole.nii"))
    x, means = load(volume).astype(np.float64), np.zeros(SIZE)
    for label in range(1, 117):
        means[label == LABELS] = by_definition(x, label == LABELS)[0][label == LABELS]
    np.testing.assert_allclose(load(tmp_path / "of_sloped.nii"), means, rtol=1e-5)


def test_labels_outside_are_0_with_a_slope(volume: Path, tmp_path: Path, run: Any) -> None:
    """A background that slope and intercept make 0.0004 is no region."""
    labels = np.where(BALL, LABELS, 0)
    sloped = stored(tmp_path / "sloped.nii", (labels * 10).astype(np.uint16), 0.1, 0.0004)
    arguments = ["-k", "box:size=5", "--mask", sloped, "--mask-labels", "--mask-mode", "keep"]
    run("apply", volume, *arguments, "-o", tmp_path / "o.nii")
    np.testing.assert_array_equal(load(tmp_path / "o.nii")[~BALL], load(volume)[~BALL])


@pytest.mark.parametrize(
    ("numbers", "slope", "intercept", "words"),
    [
        (LABELS, 0.5, 0.0, "received 0.5 (stored with the slope 0.5 and the intercept 0); store them as integers without"),
        (LABELS, 1.0, 0.02, "received 1.02"),
        (LABELS, -1.0, 3.0, "below 0 (-113)"),
    ],
)  # fmt: skip
def test_labels_that_are_none(
    volume: Path,
    tmp_path: Path,
    numbers: np.ndarray,
    slope: float,
    intercept: float,
    words: str,
    run: Any,
) -> None:
    mask = stored(tmp_path / "bad.nii", numbers.astype(np.uint16), slope, intercept)
    arguments = ["-k", "box:size=3", "--mask", mask, "--mask-labels", "-o", tmp_path / "o.nii"]
    text = run("apply", volume, *arguments, code=4).stderr
    assert words in text
    assert "bad.nii" in text
    assert len(text.splitlines()) == 1
    assert not (tmp_path / "o.nii").exists()


@pytest.mark.parametrize(
    ("beside", "fits"), [(0.0099, True), (-0.0099, True), (0.0101, False), (-0.0101, False)]
)
def test_real_numbers_near_whole_ones_are_labels(beside: float, fits: bool) -> None:
    labels = np.where(BALL, LABELS % 3 + 1, 0)
    x = np.random.default_rng(0).random(SIZE)
    wanted = conv3d(x, KERNEL, padding="same", mask=labels, mask_labels=True)
    if fits:
        found = conv3d(x, KERNEL, padding="same", mask=labels + beside * BALL, mask_labels=True)
        np.testing.assert_array_equal(found, wanted)
    else:
        with pytest.raises(ShapeError, match="whole numbers"):
            conv3d(x, KERNEL, padding="same", mask=labels + beside * BALL, mask_labels=True)


# -- weights: only ratios count


@pytest.mark.parametrize("factor", [255.0, 0.002, 0.0009, 1e-6, 1e-30, 1e-44, 7e12, 3e38])
@pytest.mark.parametrize("mode", ["clip", "extend", "keep"])
def test_a_factor_on_a_binary_mask_changes_no_bit(
    volume: Path, tmp_path: Path, factor: float, mode: str, run: Any
) -> None:
    dtype = np.uint8 if factor == 255 else np.float32
    for name, m in (("one", BALL.astype(np.uint8)), ("scaled", (BALL * factor).astype(dtype))):
        nib.Nifti1Image(m, AFFINE).to_filename(tmp_path / f"{name}.nii")
        arguments = [
            "-k",
            "box:size=5",
            "--mask",
            tmp_path / f"{name}.nii",
            "--mask-mode",
            mode,
            "--min-coverage",
            "0.402",
        ]
        out, seen = tmp_path / f"{name}_out.nii", tmp_path / f"{name}_seen.nii"
        run("apply", volume, *arguments, "--verify", "200", "-o", out, "--coverage-out", seen)
    for kind in ("out", "seen"):
        assert (tmp_path / f"one_{kind}.nii").read_bytes() == (
            tmp_path / f"scaled_{kind}.nii"
        ).read_bytes()
    means, coverage = by_definition(load(volume).astype(np.float64), BALL, 0.402)
    np.testing.assert_allclose(load(tmp_path / "scaled_seen.nii"), coverage, atol=1e-6)
    if mode == "extend":
        np.testing.assert_allclose(load(tmp_path / "scaled_out.nii"), means, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e-3, 1e12, 1e30])
@pytest.mark.parametrize("kernel", [KERNEL, np.arange(1.0, 28).reshape(3, 3, 3)])
def test_a_factor_on_weights_changes_rounding_alone(
    dtype: str, factor: float, kernel: np.ndarray
) -> None:
    """Weights by inverse variance, in whatever unit."""
    rng = np.random.default_rng(2)
    x = rng.uniform(1, 100, SIZE).astype(dtype)
    weights = 1 / rng.uniform(100, 5000, SIZE)
    w = kernel / kernel.sum()
    top, bottom = (ndimage.correlate(a, w, mode="reflect") for a in (weights * x, weights))
    assert bottom.max() / weights.max() < 0.5
    found = conv3d(x, kernel, padding="same", boundary="symmetric", mask=weights * factor)
    np.testing.assert_allclose(found, top / bottom, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_weights_with_nan_and_with_a_missing_value() -> None:
    rng = np.random.default_rng(3)
    x = rng.uniform(1, 100, SIZE).astype(np.float32)
    x[5:9, 5:9, 5:9], x[12:14, 8:11, 8:11] = np.nan, -999
    weights = rng.uniform(1, 2, SIZE) * 3e-9
    weights[:, :3] = 0
    there = weights * (np.isfinite(x) & (x != -999))
    top, bottom = (
        ndimage.uniform_filter(a, 5, mode="reflect")
        for a in (np.where(there > 0, x, 0) * there, there)
    )
    options: dict[str, Any] = {
        "padding": "same",
        "boundary": "symmetric",
        "nan": "ignore",
        "missing": -999.0,
    }
    found = conv3d(x, KERNEL, mask=weights, mask_mode="extend", **options)
    seen = bottom > 2e-3 * weights.max()
    np.testing.assert_allclose(found[seen], (top / np.where(seen, bottom, 1))[seen], rtol=2e-5)


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.uint8, ">i2", np.uint32, np.int64, np.float16, ">f4", np.float64]
)
def test_every_dtype_of_a_binary_mask(dtype: Any) -> None:
    x = np.random.default_rng(4).random(SIZE, np.float32)
    wanted = conv3d(x, KERNEL, padding="same", mask=BALL.astype(np.uint8))
    for factor in (1, 100):
        np.testing.assert_array_equal(
            conv3d(x, KERNEL, padding="same", mask=(BALL * factor).astype(dtype)), wanted
        )


def test_numbers_that_differ_from_block_to_block_are_no_binary_mask() -> None:
    """A mask is looked at in blocks of planes; each of these holds 0 and one number."""
    x = np.random.default_rng(5).random((64, 9, 9), np.float32)
    for numbers in ((0, 2, 1, 0), (1, 0, 2, 2), (2, 0, 0, 1)):
        m = np.repeat(numbers, 16)[:, None, None] * np.ones((64, 9, 9))
        m[:, 4] = 0
        means, _ = by_definition(x.astype(np.float64), m)
        for dtype in (np.uint8, np.float32):
            found = conv3d(
                x,
                KERNEL,
                padding="same",
                boundary="symmetric",
                mask=m.astype(dtype),
                mask_mode="extend",
            )
            np.testing.assert_allclose(found, means, rtol=1e-5, atol=1e-7)


def test_half_of_the_weight_is_half_for_0_and_255(volume: Path, tmp_path: Path, run: Any) -> None:
    nib.Nifti1Image(BALL.astype(np.uint8) * 255, AFFINE).to_filename(tmp_path / "m.nii")
    arguments = [
        "-k",
        "box:size=5",
        "--mask",
        tmp_path / "m.nii",
        "--mask-mode",
        "extend",
        "--min-coverage",
        "0.5",
    ]
    run("apply", volume, *arguments, "-o", tmp_path / "o.nii", "--coverage-out", tmp_path / "c.nii")
    _, coverage = by_definition(load(volume).astype(np.float64), BALL)
    np.testing.assert_array_equal(load(tmp_path / "o.nii") != 0, coverage >= 0.5)
    assert load(tmp_path / "c.nii").max() <= 1


@pytest.mark.parametrize(("slope", "intercept"), [(-1.0, 1.0), (-1.0, 0.0), (-0.5, 0.5)])
def test_a_negative_slope(
    volume: Path, tmp_path: Path, slope: float, intercept: float, run: Any
) -> None:
    numbers = (BALL if intercept == 0 else ~BALL).astype(np.int16) * (-1 if intercept == 0 else 1)
    mask = stored(tmp_path / "m.nii", numbers, slope, intercept)
    np.testing.assert_array_equal(load(mask) > 0, BALL)
    run(
        "apply",
        volume,
        "-k",
        "box:size=5",
        "--mask",
        mask,
        "--verify",
        "200",
        "-o",
        tmp_path / "o.nii",
    )
    means, _ = by_definition(load(volume).astype(np.float64), BALL)
    np.testing.assert_allclose(load(tmp_path / "o.nii"), np.where(BALL, means, 0), rtol=1e-5)


@pytest.mark.parametrize("most", [0.3, 0.7, 0.9, 1.1, 3.7, 1e-5, 12345.6])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_what_rounding_leaves_of_a_0_is_0(
    volume: Path, tmp_path: Path, most: float, dtype: str, run: Any
) -> None:
    """nibabel's slope and intercept are rounded to float32, so that its 0 may be 1e-9 or -1e-9."""
    mask = by_nibabel(tmp_path / "m.nii", BALL * most, dtype)
    run(
        "apply",
        volume,
        "-k",
        "box:size=5",
        "--mask",
        mask,
        "--verify",
        "200",
        "-o",
        tmp_path / "o.nii",
    )
    np.testing.assert_array_equal(load(tmp_path / "o.nii") != 0, BALL)


# -- voxels inside the mask that have no mean


@pytest.mark.parametrize(
    "options", [[], ["--coverage-out", "c.nii"], ["--mask-mode", "extend"], ["--mask-mode", "keep"]]
)
@pytest.mark.parametrize("times", [1, 3])
def test_voxels_inside_without_a_mean_are_counted(
    tmp_path: Path, options: list[str], times: int, run: Any
) -> None:
    """A hole that no window bridges, and a rim of little weight; of a series in each volume."""
    rng = np.random.default_rng(6)
    x = rng.uniform(1, 100, (40, 48, 80, times)).astype(np.float32)
    x[4:20, 4:24, 4:70] = np.nan
    m = np.zeros(x.shape[:3])
    m[2:36, 2:40, 2:76] = 255
    m[30:36] *= 1e-6
    for name, data in (("x", x), ("m", m.astype(np.float32))):
        nib.Nifti1Image(data, AFFINE).to_filename(tmp_path / f"{name}.nii")
    known = m[..., None] * np.isfinite(x)
    coverage = ndimage.uniform_filter(known / 255, (5, 5, 5, 0), mode="reflect")
    lost = (coverage < 1e-3) & (m[..., None] > 0)
    own = [str(tmp_path / option) if option.endswith(".nii") else option for option in options]
    arguments = [
        tmp_path / "x.nii",
        "-k",
        "box:size=5",
        "--nan",
        "ignore",
        "--mask",
        tmp_path / "m.nii",
        *own,
    ]
    notes = run("apply", *arguments, "-o", tmp_path / "o.nii").stderr
    assert (
        f"{lost.sum()} voxels inside the mask had less than 0.001 of the kernel's weight" in notes
    )
    assert (load(tmp_path / "o.nii")[lost.reshape(load(tmp_path / "o.nii").shape)] == 0).all()
    text = run(
        "apply", *arguments, "--strict", "-o", tmp_path / "s.nii", "--overwrite", code=4
    ).stderr
    assert str(lost.sum()) in text
    assert not (tmp_path / "s.nii").exists()


def test_a_series_under_a_mask_alone_counts_each_volume(tmp_path: Path, run: Any) -> None:
    """Its coverage is computed once, and kept."""
    x = np.random.default_rng(7).uniform(1, 100, (*SIZE, 4)).astype(np.float32)
    nib.Nifti1Image(x, AFFINE).to_filename(tmp_path / "x.nii")
    nib.Nifti1Image(BALL.astype(np.uint8), AFFINE).to_filename(tmp_path / "m.nii")
    _, coverage = by_definition(x[..., 0], BALL)
    lost = 4 * int(((coverage < 0.5) & BALL).sum())
    arguments = [
        "-k",
        "box:size=5",
        "--mask",
        tmp_path / "m.nii",
        "--min-coverage",
        "0.5",
        "-o",
        tmp_path / "o.nii",
    ]
    assert f"{lost} voxels inside the mask" in run("apply", tmp_path / "x.nii", *arguments).stderr


def test_regions_without_a_mean_are_counted(volume: Path, tmp_path: Path, run: Any) -> None:
    labels = np.where(BALL, LABELS % 5 + 1, 0)
    nib.Nifti1Image(labels.astype(np.uint8), AFFINE).to_filename(tmp_path / "l.nii")
    coverage = sum((labels == n) * by_definition(load(volume), labels == n)[1] for n in range(1, 6))
    lost = int(((coverage < 0.204) & BALL).sum())
    assert lost > 0
    arguments = [
        "-k",
        "box:size=5",
        "--mask",
        tmp_path / "l.nii",
        "--mask-labels",
        "--min-coverage",
        "0.204",
    ]
    assert (
        f"{lost} voxels inside the mask"
        in run("apply", volume, *arguments, "-o", tmp_path / "o.nii").stderr
    )


def test_no_mean_at_all_is_an_error(volume: Path, tmp_path: Path, run: Any) -> None:
    m = np.zeros(SIZE, np.uint8)
    m[14, 10, 10] = 1
    nib.Nifti1Image(m, AFFINE).to_filename(tmp_path / "m.nii")
    arguments = [
        "-k",
        "box:size=5",
        "--mask",
        tmp_path / "m.nii",
        "--min-coverage",
        "0.5",
        "-o",
        tmp_path / "o.nii",
    ]
    text = run("apply", volume, *arguments, code=4).stderr
    assert "no voxel is left: all 1 voxels inside the mask had less than 0.5" in text
    assert not (tmp_path / "o.nii").exists()


def test_a_whole_mask_is_silent(volume: Path, tmp_path: Path, run: Any) -> None:
    nib.Nifti1Image(BALL.astype(np.uint8), AFFINE).to_filename(tmp_path / "m.nii")
    arguments = [
        "-k",
        "box:size=5",
        "--mask",
        tmp_path / "m.nii",
        "--strict",
        "-o",
        tmp_path / "o.nii",
    ]
    assert run("apply", volume, *arguments).stderr == ""


# -- info --fwhm


@pytest.mark.parametrize(
    ("affine", "shape", "words"),
    [
        (
            np.array([[2.0, 0, 0, 500], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]),
            SIZE,
            "lies elsewhere",
        ),
        (np.diag([-2.0, 2, 2, 1]), SIZE, "lies elsewhere"),
        (AFFINE, (*SIZE, 2), "2 time points"),
        (AFFINE, (*SIZE[:2], 7), "depth 7 against 22"),
    ],
)
def test_smoothness_takes_no_mask_from_elsewhere(
    volume: Path, tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], words: str, run: Any
) -> None:
    nib.Nifti1Image(np.ones(shape, np.uint8), affine).to_filename(tmp_path / "m.nii")
    text = run("info", volume, "--fwhm", "--mask", tmp_path / "m.nii", code=4).stderr
    assert words in text
    assert "m.nii" in text
    assert "x.nii" in text


def test_smoothness_under_masks_of_any_scale(volume: Path, tmp_path: Path, run: Any) -> None:
    found = []
    for name, make in (
        ("one", lambda p: nib.Nifti1Image(BALL.astype(np.uint8), AFFINE).to_filename(p)),
        ("negative", lambda p: stored(p, (~BALL).astype(np.uint8), -1.0, 1.0)),
        ("sloped", lambda p: by_nibabel(p, BALL * 0.7)),
    ):
        make(tmp_path / f"{name}.nii")
        text = run("info", volume, "--fwhm", "--json", "--mask", tmp_path / f"{name}.nii").stdout
        found.append(json.loads(text)["fwhm"])
    assert found[0] == found[1] == found[2]


def test_numbers_of_freesurfer_that_nibabel_stores_with_a_slope(
    volume: Path, tmp_path: Path, run: Any
) -> None:
    """Half a step of the slope is more than 0.01 here; each label still is the nearest number."""
    numbers = np.array([0, 2, 3, 4, 10, 11, 251, 1001, 2035])[LABELS % 9]
    sloped = by_nibabel(tmp_path / "sloped.nii", numbers)
    off = np.abs(load(sloped) - numbers).max()
    assert 0.01 < off < 0.02
    whole = tmp_path / "whole.nii"
    nib.save(nib.Nifti1Image(numbers.astype(np.int16), AFFINE), whole)
    outputs = []
    for mask in (sloped, whole):
        outputs.append(tmp_path / f"of_{mask.name}")
        run("apply", volume, "-k", "box:size=3", "--mask", mask, "--mask-labels", "-o", outputs[-1])
    np.testing.assert_array_equal(*map(load, outputs))


def test_a_coarse_slope_is_no_licence(volume: Path, tmp_path: Path, run: Any) -> None:
    """Of a slope of 0.25, every third value is a fraction, which is no label."""
    mask = stored(tmp_path / "m.nii", (LABELS % 9).astype(np.int16), 0.25, 0)
    words = ["--mask", mask, "--mask-labels", "-o", tmp_path / "o.nii"]
    result = run("apply", volume, "-k", "box:size=3", *words, code=4)
    assert "must be whole numbers" in " ".join(result.stderr.split())

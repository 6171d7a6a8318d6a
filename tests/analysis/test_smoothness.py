"""Smoothness: estimates of noise of a known FWHM, and volumes smoothed to one that is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli.analysis.smoothness import estimate_fwhm
from conv3d_cli.formats import open_volume
from conv3d_cli.kernels.builtin import FWHM_PER_SIGMA

EXAMPLE = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"
SPACING = np.array([3.0, 2.0, 1.5])  # mm along D, H, W


def write(path: Path, data: np.ndarray) -> Path:
    """Axes (t,) z y x, as NIfTI with voxels of SPACING."""
    nib.Nifti1Image(data.T.astype(np.float32), np.diag([*SPACING[::-1], 1])).to_filename(path)
    return path


def noise(
    fwhm: tuple[float, float, float], shape: tuple[int, ...] = (48, 50, 52), seed: int = 0
) -> np.ndarray:
    """White noise smoothed by a Gaussian of so many mm, far from any edge."""
    white = np.random.default_rng(seed).standard_normal([n + 24 for n in shape])
    smooth = ndimage.gaussian_filter(
        white, np.array(fwhm) / FWHM_PER_SIGMA / SPACING, mode="wrap", truncate=6
    )
    return 1000 + 5 * smooth[tuple(slice(12, -12) for _ in shape)]


@pytest.fixture
def found(run: Any) -> Any:
    """The FWHM that `conv3d info` estimates for a file."""

    def call(path: Path, *options: object) -> list[float]:
        return json.loads(run("info", path, "--fwhm", "--json", *options).stdout)["fwhm"]

    return call


@pytest.mark.parametrize("fwhm", [(9.0, 6.0, 4.5), (6.0, 8.0, 6.0), (12.0, 5.0, 8.0)])
def test_noise_of_a_known_smoothness(
    fwhm: tuple[float, float, float], tmp_path: Path, run: Any, found: Any
) -> None:
    """To 5 % where the Gaussian is two voxels wide or more: below, a sampled Gaussian is none."""
    path = write(tmp_path / "x.nii.gz", noise(fwhm))
    assert found(path) == pytest.approx(fwhm, rel=0.05)
    text = run("info", path, "--fwhm").output
    assert "mm (depth,height,width), of white noise" in text


def test_white_noise_has_none(tmp_path: Path, found: Any) -> None:
    data = np.random.default_rng(1).standard_normal((40, 40, 40))
    assert max(found(write(tmp_path / "x.nii", data))) < 1.2 * SPACING.max()


def test_a_series_is_measured_about_its_mean(tmp_path: Path, found: Any) -> None:
    """Anatomy that stays is not noise."""
    anatomy = (
        500
        * np.sin(np.arange(40) / 6)[:, None, None]
        * np.cos(np.arange(42) / 5)[:, None]
        * np.ones(44)
    )
    series = np.stack([anatomy + noise((6, 6, 6), (40, 42, 44), seed) for seed in range(4)])
    assert found(write(tmp_path / "x.nii", series)) == pytest.approx([6, 6, 6], rel=0.06)
    assert min(found(write(tmp_path / "one.nii", series[0]))) > 8


def test_only_the_mask_counts(tmp_path: Path, found: Any) -> None:
    data = noise((9, 6, 4.5))
    mask = np.zeros(data.shape)
    mask[5:40, 6:44, 7:45] = 1
    holed = np.where(mask > 0, data, 1e6)
    holed[20:22, 20:22, 20:22] = np.nan
    path, mask_path = write(tmp_path / "x.nii", holed), write(tmp_path / "m.nii.gz", mask)
    assert found(path, "--mask", mask_path) == pytest.approx([9, 6, 4.5], rel=0.07)


def test_blocks_of_planes_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.nii", noise((6, 6, 6), (13, 14, 15)))
    with open_volume(str(path)) as reader:
        whole = estimate_fwhm(reader)
        monkeypatch.setattr("conv3d_cli.analysis.smoothness.BLOCK_BYTES", 1)
        assert estimate_fwhm(reader) == pytest.approx(whole, rel=1e-9)


def test_what_has_no_smoothness(tmp_path: Path, run: Any, found: Any) -> None:
    run("info", write(tmp_path / "c.nii", np.full((5, 6, 7), 3.0)), "--fwhm", code=4)
    flat = found(write(tmp_path / "flat.nii", noise((6, 6, 6))[:1]))
    assert flat[0] is None
    assert flat[1:] == pytest.approx([6, 6], rel=0.15)
    assert "--fwhm" in run("info", tmp_path / "flat.nii", "--mask", "m.nii", code=2).output


@pytest.mark.parametrize("target", ["12mm", "12,10,9mm"])
def test_smoothed_to_a_target(target: str, tmp_path: Path, run: Any, found: Any) -> None:
    path = write(tmp_path / "x.nii.gz", noise((9, 6, 4.5)))
    out = tmp_path / "o.nii.gz"
    text = run("apply", path, "--to-fwhm", target, "-o", out).output
    wanted = [float(n) for n in target.removesuffix("mm").split(",")]
    assert found(out) == pytest.approx(wanted * (3 // len(wanted)), rel=0.05)
    assert "FWHM (depth,height,width)" in text
    assert "of the target" not in text
    assert sorted(os.listdir(tmp_path)) == ["o.nii.gz", "x.nii.gz"]


def test_a_target_that_is_missed_is_not_passed_over(
    sample_data: Path, tmp_path: Path, run: Any, found: Any
) -> None:
    """Anatomy is smooth by itself, and six corrections of the Gaussian do not always suffice."""
    out = tmp_path / "o.nii.gz"
    text = run("apply", sample_data / "head.nii.gz", "--to-fwhm", "30mm", "-o", out).output
    assert max(abs(length / 30 - 1) for length in found(out)) > 0.1
    assert "not within 2% of the target after 6 trials" in text


def test_a_real_series_is_smoothed_to_a_target(tmp_path: Path, run: Any, found: Any) -> None:
    run("apply", EXAMPLE, "--to-fwhm", "10mm", "-o", tmp_path / "o.nii")
    assert found(tmp_path / "o.nii") == pytest.approx([10, 10, 10], rel=0.05)


def test_what_is_refused(tmp_path: Path, run: Any) -> None:
    path = write(tmp_path / "x.nii", noise((9, 6, 4.5)))
    target = ["-o", tmp_path / "o.nii", "--to-fwhm"]
    assert (
        "already smoother than 8mm along depth" in run("apply", path, *target, "8mm", code=4).output
    )
    assert "leave out -k" in run("apply", path, "-k", "box:size=3", *target, "12mm", code=2).output
    assert "needs a unit" in run("apply", path, *target, "12", code=2).output
    assert "--strides" in run("apply", path, *target, "12mm", "--strides", "2", code=2).output
    assert not (tmp_path / "o.nii").exists()

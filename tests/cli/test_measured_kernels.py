"""Kernels that people measured: a background, an even size, and what the command says about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import tifffile

from conv3d_cli.kernels import read_kernel
from conv3d_cli.kernels.background import subtract_background
from conv3d_cli.kernels.cropping import crop_kernel

PSF_SIZE = (11, 17, 17)


def psf(size: tuple[int, ...] = PSF_SIZE) -> np.ndarray:
    d, h, w = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    return 1000 * np.exp(-(((d - 0.3) / 2) ** 2 + (h**2 + w**2) / 1.5**2) / 2)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    np.save(tmp_path / "x.npy", rng.random((9, 12, 13)).astype(np.float32))
    tifffile.imwrite(tmp_path / "psf.tif", (psf() + 100.5).astype(np.uint16))
    np.save(tmp_path / "clean.npy", psf())
    np.save(tmp_path / "even.npy", psf((10, 17, 16)))
    return tmp_path


def test_a_pedestal_is_noted_with_its_cure(run: Any, folder: Path) -> None:
    note = "the border of kernel {} is flat at 9.2 % of the peak (100 of"
    path = folder / "psf.tif"
    cure = "if that is a background, --subtract-background border removes it"
    for command in (
        ["apply", folder / "x.npy", "-k", path, "-o", folder / "o.npy", "--overwrite"],
        ["kernel", "show", path],
        ["kernel", "make", path, "-o", folder / "k.npy", "--overwrite"],
        ["explain", folder / "x.npy", "-k", path],
    ):
        said = run(*command).output
        assert note.format(path) in said
        assert cure in said
        quiet = run(*command, "--subtract-background", "border").output
        assert cure not in quiet
        assert "a background of 100, the median of 1154 weights at its border" in quiet
        assert cure not in run(*command, "--subtract-background", "0").output
    assert cure not in run("kernel", "show", folder / "clean.npy").output


def test_the_result_is_that_of_the_psf_alone(run: Any, folder: Path) -> None:
    options = ["--subtract-background", "border", "--normalize", "--flip", "--boundary", "zeros"]
    run("apply", folder / "x.npy", "-k", folder / "psf.tif", *options, "-o", folder / "o.npy")
    weights = tifffile.imread(folder / "psf.tif").astype(np.float64) - 100
    expected = scipy.ndimage.convolve(
        np.load(folder / "x.npy").astype(np.float64), weights / weights.sum(), mode="constant"
    )
    np.testing.assert_allclose(np.load(folder / "o.npy"), expected, rtol=2e-5)


def test_the_background_is_subtracted_before_anything_else(run: Any, folder: Path) -> None:
    options = ["--subtract-background", "border", "--crop-kernel", "1e-3", "--flip", "--normalize"]
    run("kernel", "make", folder / "psf.tif", *options, "-o", folder / "made.npy")
    flat, _ = subtract_background(read_kernel(str(folder / "psf.tif")), "border")
    expected = crop_kernel(flat, 1e-3).kernel.flipped().normalized()
    assert expected.size != PSF_SIZE  # with the background nothing would be cropped
    np.testing.assert_allclose(np.load(folder / "made.npy"), expected.weights, rtol=1e-12)
    words = ["apply", folder / "x.npy", "-k"]
    run(*words, folder / "psf.tif", *options, "-o", folder / "a.npy")
    run(*words, folder / "made.npy", "-o", folder / "b.npy")
    np.testing.assert_array_equal(np.load(folder / "a.npy"), np.load(folder / "b.npy"))


def test_it_is_recorded_and_repeated(run: Any, folder: Path) -> None:
    words = ["apply", folder / "x.npy", "-k", folder / "psf.tif", "--subtract-background", "border"]
    run(*words, "--sidecar", "-o", folder / "o.npy")
    record = json.loads((folder / "o.json").read_text())["Conv3D"]
    assert "--subtract-background border" in record["Command"]
    run("rerun", folder / "o.json", "-o", folder / "again.npy")
    assert (folder / "again.npy").read_bytes() == (folder / "o.npy").read_bytes()
    (folder / "c.toml").write_text('kernel = "psf.tif"\nsubtract_background = "border"\n')
    run("apply", folder / "x.npy", "-c", folder / "c.toml", "-o", folder / "c.npy")
    assert (folder / "c.npy").read_bytes() == (folder / "o.npy").read_bytes()
    (folder / "d.toml").write_text('kernel = "psf.tif"\nsubtract_background = 100\n')
    run("apply", folder / "x.npy", "-c", folder / "d.toml", "-o", folder / "d.npy")
    assert (folder / "d.npy").read_bytes() == (folder / "o.npy").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-k", "box", "--subtract-background", "border"], 2, "and box is built-in; leave it out"),
        (["-k", "psf.tif", "--subtract-background", "psf.tif"], 2, "received 'psf.tif'"),
        (["-k", "psf.tif", "--subtract-background", "5000"], 4, "leaves nothing of kernel psf.tif"),
        (["--kernel-size", "3", "--filters", "1", "--subtract-background", "1"], 2, "is drawn by"),
    ],
)
def test_what_is_refused(
    run: Any, folder: Path, words: list[str], code: int, message: str, monkeypatch: Any, error_line: Any
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    result = run("apply", "x.npy", *words, "-o", "o.npy", code=code)
    assert message in error_line(result.stderr)
    assert not (folder / "o.npy").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Half a voxel


def test_an_even_kernel_says_its_half_voxel(run: Any, folder: Path) -> None:
    words = ["apply", folder / "x.npy", "-k", folder / "even.npy", "--spacing", "2mm"]
    said = run(*words, "-o", folder / "o.nii").stderr
    note = (
        "an even kernel moves the output by half a voxel along depth,width: its first voxel lies at"
    )
    assert f"{note} input voxel 0.5,0,0.5; its affine tells that" in said
    assert nibabel.load(folder / "o.nii").affine[:3, 3].tolist() == [1, 0, 1]
    assert f"{note} input voxel 0.5,0,0.5; nothing in the output tells that" in run(
        *words, "-o", folder / "o.npy"
    ).stderr  # fmt: skip
    said = run("apply", folder / "x.npy", "-k", folder / "clean.npy", "-o", folder / "p.npy").stderr
    assert "voxel along" not in said
    words = ["apply", folder / "x.npy", "-k", "box:size=2", "-o", folder / "p.npy", "--overwrite"]
    assert "half a voxel along depth,height,width: its first voxel lies at input voxel 0.5" in run(
        *words
    ).stderr  # fmt: skip
    assert "half a voxel" not in run(*words, "--dilation-rate", "2").stderr


# ---------------------------------------------------------------------------------------------------------------------
# Clipping


@pytest.mark.parametrize(
    ("dtype", "target", "cures"),
    [
        ("uint8", "o.nii", "--dtype float32 keeps all values, int16 negative ones, --scale auto fits them in"),
        ("uint8", "o.tif", "--dtype float32 keeps all values, int16 negative ones"),
        ("int8", "p.npy", "--dtype float32 keeps all values"),
    ],
)  # fmt: skip
def test_clipped_values_say_what_keeps_them(
    run: Any, folder: Path, dtype: str, target: str, cures: str
) -> None:
    np.save(folder / "big.npy", np.array([[[-300.0, 5, 300]]], np.float32))
    words = ["apply", folder / "big.npy", "-k", "identity", "--dtype", dtype, "-o", folder / target]
    assert f"2 voxels (67 %) did not fit {dtype} and were clipped; {cures}\n" in run(*words).stderr

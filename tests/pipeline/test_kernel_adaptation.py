"""Kernel files whose voxels are not the volume's, and kernels with empty borders, from the command line on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile

from conv3d_cli import read_volume
from conv3d_cli.errors import FormatError, ShapeError, SpecError
from conv3d_cli.kernels import read_kernel
from conv3d_cli.model.grid import Grid
from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation, adapt_kernel

SAMPLES = Path(__file__).parents[2] / "sample_data"


def psf(size: int, spacing: tuple[float, float, float], sigma: float) -> np.ndarray:
    """A Gaussian of sum 1, sampled about the middle of a cube."""
    axes = [(np.arange(size) - (size - 1) / 2) * step for step in spacing]
    d, h, w = np.meshgrid(*axes, indexing="ij")
    weights = np.exp(-0.5 * (d**2 + h**2 + w**2) / sigma**2)
    return weights / weights.sum()


def write_nifti(path: Path, values: np.ndarray, spacing: tuple[float, float, float]) -> str:
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([*spacing[::-1], 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return str(path)


def write_tiff(
    path: Path, values: np.ndarray, spacing: tuple[float, float, float], unit: str = "um"
) -> str:
    tifffile.imwrite(
        path, values.astype(np.float32), imagej=True, resolution=(1 / spacing[2], 1 / spacing[1]),
        metadata={"axes": "ZYX", "spacing": spacing[0], "unit": unit},
    )  # fmt: skip
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# Spacing


def test_a_psf_of_other_voxels_is_refused_or_resampled(
    scan: Path, tmp_path: Path, run: Any
) -> None:
    """A Gaussian of 4.5 mm sampled at 1.25 mm: resampled to the scan it smooths as that Gaussian does."""
    kernel, out = (
        write_nifti(tmp_path / "psf.nii", psf(31, (1.25, 1.25, 1.25), 4.5), (1.25, 1.25, 1.25)),
        tmp_path / "o.nii",
    )
    said = run("apply", scan, "-k", kernel, "-o", out, code=4).output
    assert (
        "has voxels of 1.25,1.25,1.25 mm, the volume of 2.2,2,2 mm; pass --kernel-spacing resample"
        in said
    )
    assert len(said.strip().splitlines()) == 1
    assert not out.exists()

    said = run("apply", scan, "-k", kernel, "--kernel-spacing", "resample", "-o", out).output
    assert "is resampled from voxels of 1.25,1.25,1.25 mm to 2.2,2,2 mm, from 31x31x31 to " in said
    run("apply", scan, "-k", "gaussian:sigma=4.5mm", "-o", tmp_path / "expected.nii")
    result, expected = read_volume(str(out)), read_volume(str(tmp_path / "expected.nii"))
    # an odd kernel about its middle: nothing moves
    assert np.array_equal(result.grid.affine, expected.grid.affine)
    assert np.abs(result.data - expected.data).max() < 0.01 * expected.data.max()

    run("apply", scan, "-k", kernel, "--kernel-spacing", "ignore", "-o", out, "--overwrite")
    voxel_by_voxel = read_volume(str(out)).data
    assert np.abs(voxel_by_voxel - expected.data).max() > 0.02 * expected.data.max()


def test_the_same_spacing_costs_nothing_and_says_nothing(tmp_path: Path, run: Any) -> None:
    said = run(
        "apply", SAMPLES / "beads.tif", "-k", SAMPLES / "psf.tif", "-o", tmp_path / "o.tif"
    ).output
    assert said == ""
    before = read_volume(str(tmp_path / "o.tif")).data
    for policy in ("resample", "ignore"):
        words = [
            "-k",
            SAMPLES / "psf.tif",
            "--kernel-spacing",
            policy,
            "-o",
            tmp_path / f"{policy}.tif",
        ]
        assert run("apply", SAMPLES / "beads.tif", *words).output == ""
        assert np.array_equal(read_volume(str(tmp_path / f"{policy}.tif")).data, before)


def test_micrometres_meet_nanometres(tmp_path: Path, rng: np.random.Generator, run: Any) -> None:
    volume = write_tiff(tmp_path / "v.tif", rng.random((9, 11, 13)), (300, 100, 100), "nm")
    words = ["apply", volume, "-k", SAMPLES / "psf.tif", "-o", tmp_path / "o.tif"]
    assert run(*words).output == ""
    other = write_tiff(tmp_path / "other.tif", rng.random((9, 11, 13)), (600, 100, 200), "nm")
    assert (
        "voxels of 0.3,0.1,0.1 um, the volume of 600,100,200 nm"
        in run("apply", other, *words[2:], "--overwrite", code=4).output
    )


def test_an_even_psf_stays_in_its_place(tmp_path: Path, run: Any) -> None:
    """A point blurred by an even PSF, by one resampled to odd: the blob's centre in the world is the point's either way."""
    point = np.zeros((21, 21, 21))
    point[10, 10, 10] = 1
    volume = write_tiff(tmp_path / "v.tif", point, (0.5, 0.5, 0.5))
    kernel = write_tiff(tmp_path / "k.tif", psf(12, (0.6, 0.6, 0.6), 1.2), (0.6, 0.6, 0.6))
    run("apply", volume, "-k", kernel, "--kernel-spacing", "resample", "-o", tmp_path / "o.tif")
    result = read_volume(str(tmp_path / "o.tif"))
    affine = np.eye(4) if result.grid.affine is None else result.grid.affine
    places = np.stack(np.meshgrid(*map(np.arange, result.data.shape), indexing="ij"))
    d, h, w = (places * result.data).sum(axis=(1, 2, 3)) / result.data.sum()
    np.testing.assert_allclose((affine @ [w, h, d, 1])[:3], 5.0, atol=0.005)


def test_files_that_tell_no_size_are_applied_voxel_by_voxel(
    scan: Path, tmp_path: Path, run: Any
) -> None:
    """1 mm is what tools write that know no better; a file without a header is no more to be believed."""
    bare = write_nifti(tmp_path / "bare.nii", psf(5, (1, 1, 1), 1.0), (1.0, 1.0, 1.0))
    np.save(tmp_path / "bare.npy", psf(5, (1, 1, 1), 1.0))
    said = run("apply", scan, "-k", bare, "-o", tmp_path / "a.nii").output
    assert "note: " in said
    assert "as of files that tell no size" in said
    for name, words in {
        "b": ["-k", tmp_path / "bare.npy"],
        "c": ["-k", bare, "--kernel-spacing", "ignore"],
    }.items():
        assert run("apply", scan, *words, "-o", tmp_path / f"{name}.nii").output == ""
        assert (tmp_path / "a.nii").read_bytes() == (tmp_path / f"{name}.nii").read_bytes()
    assert (
        "cannot be resampled: it tells no voxel spacing"
        in run(
            "apply",
            scan,
            "-k",
            tmp_path / "bare.npy",
            "--kernel-spacing",
            "resample",
            "-o",
            tmp_path / "d.nii",
            code=4,
        ).output
    )
    np.save(tmp_path / "v.npy", np.zeros((8, 8, 8), np.float32))
    said = run(
        "apply", tmp_path / "v.npy", "-k", SAMPLES / "psf.tif", "-o", tmp_path / "o.npy"
    ).output
    assert "the volume tells no voxel spacing: the kernel is applied voxel by voxel" in said
    words = [
        "-k",
        SAMPLES / "psf.tif",
        "--kernel-spacing",
        "resample",
        "-o",
        tmp_path / "o.npy",
        "--overwrite",
    ]
    assert (
        "the volume tells no voxel spacing"
        in run("apply", tmp_path / "v.npy", *words, code=4).output
    )


def test_built_in_kernels_have_no_spacing_of_their_own(
    scan: Path, tmp_path: Path, run: Any
) -> None:
    for policy in ("match", "resample"):  # a config may say more than a kernel needs
        config = tmp_path / f"{policy}.toml"
        config.write_text(f'kernel = "gaussian:sigma=3mm"\nkernel_spacing = "{policy}"\n')
        run("apply", scan, "-c", config, "-o", tmp_path / f"{policy}.nii")
    assert (tmp_path / "match.nii").read_bytes() == (tmp_path / "resample.nii").read_bytes()


def test_presets_do_not_look_at_it_and_an_option_wins(scan: Path, tmp_path: Path, run: Any) -> None:
    """No tool there does: ITK's ConvolutionImageFilter and fslmaths take a kernel voxel by voxel."""
    kernel = write_nifti(tmp_path / "psf.nii", psf(7, (1.25, 1.25, 1.25), 2), (1.25, 1.25, 1.25))
    assert (
        "kernel_spacing ignore"
        in run("apply", scan, "-k", kernel, "--like", "itk", "-v", "-o", tmp_path / "a.nii").output
    )
    said = run(
        "apply",
        scan,
        "-k",
        kernel,
        "--like",
        "itk",
        "--kernel-spacing",
        "match",
        "-o",
        tmp_path / "b.nii",
        code=4,
    ).output
    assert "pass --kernel-spacing resample" in said


def test_a_later_layer_meets_the_grid_it_runs_on(
    tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    """After strides of 2 voxels are twice as large, and a PSF of those voxels matches."""
    volume = write_tiff(tmp_path / "v.tif", rng.random((16, 16, 16)), (0.3, 0.1, 0.1))
    write_tiff(tmp_path / "k.tif", psf(5, (1, 1, 1), 1), (0.6, 0.2, 0.2))
    for kernel, code in (("k.tif", 0), (str(SAMPLES / "psf.tif"), 4)):
        (tmp_path / "c.toml").write_text(
            f'[[layers]]\nkernel = "box:size=2"\nstrides = 2\n[[layers]]\nkernel = "{kernel}"\n'
        )
        said = run(
            "apply", volume, "-c", tmp_path / "c.toml", "-o", tmp_path / f"{code}.tif", code=code
        ).output
        assert "layer 2: kernel" in said or not code


def test_a_place_without_meaning_is_refused(tmp_path: Path) -> None:
    """As of a volume: nobody can say then whether the kernel's voxels are the volume's."""
    kernel = write_nifti(tmp_path / "k.nii", psf(5, (1, 1, 1), 1), (2.0, 2.0, 2.0))
    content = bytearray((tmp_path / "k.nii").read_bytes())
    content[280:284] = b"\x00\x00\xc0\x7f"  # srow_x[0] is NaN
    (tmp_path / "k.nii").write_bytes(content)
    with pytest.raises(
        FormatError, match=r"its sform has no meaning.*; repair it, or set sform_code to 0"
    ):
        read_kernel(kernel)


# ---------------------------------------------------------------------------------------------------------------------
# Borders, configs, other commands


def test_a_cropped_psf_is_told_its_error_and_keeps_it(scan: Path, tmp_path: Path, run: Any) -> None:
    np.save(tmp_path / "wide.npy", np.pad(psf(17, (1, 1, 1), 1.6), 6))
    run(
        "apply",
        scan,
        "-k",
        tmp_path / "wide.npy",
        "--precision",
        "float64",
        "-o",
        tmp_path / "whole.nii",
    )
    x = read_volume(str(scan)).data
    whole = read_volume(str(tmp_path / "whole.nii")).data
    for part, size in (("0", "17x17x17"), ("1e-4", "13x")):
        said = run(
            "apply", scan, "-k", tmp_path / "wide.npy", "--crop-kernel", part, "--precision", "float64", "--overwrite",
            "-o", tmp_path / "cropped.nii",
        ).output  # fmt: skip
        assert f"is cropped from 29x29x29 to {size}" in said
        cropped = read_volume(str(tmp_path / "cropped.nii"))
        assert cropped.data.shape == whole.shape
        assert np.array_equal(cropped.grid.affine, read_volume(str(scan)).grid.affine)
        # and a float32 on the way out
        bound = float(part) * float(np.abs(x).max()) + 1e-6 * float(whole.max())
        assert np.abs(cropped.data - whole).max() <= bound
    assert (
        "may be lost"
        in run(
            "apply", scan, "-k", "box", "--crop-kernel", "2", "-o", tmp_path / "o.nii", code=2
        ).output
    )
    said = run("explain", scan, "-k", tmp_path / "wide.npy", "--crop-kernel", "1e-4").output
    assert "no sum is off by more than" in said


def test_config_keys(tmp_path: Path, run: Any) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'kernel = "{SAMPLES / "psf.tif"}"\nkernel_spacing = "resample"\ncrop_kernel = 1e-4\n'
    )
    record = json.loads(run("explain", SAMPLES / "head.nii.gz", "-c", config, "--json").output)
    assert record["kernel_shape"] == [1, 1, 1]  # a PSF of 0.4 um within voxels of millimetres
    assert len(record["notes"]) == 2
    config.write_text(f'kernel = "{SAMPLES / "psf.tif"}"\nkernel_spacing = "guess"\n')
    assert (
        "kernel_spacing is match, resample or ignore"
        in run("explain", SAMPLES / "beads.tif", "-c", config, code=2).output
    )
    config.write_text(f'kernel = "{SAMPLES / "psf.tif"}"\ncrop_kernel = "much"\n')
    assert (
        "crop_kernel must be a number"
        in run("explain", SAMPLES / "beads.tif", "-c", config, code=2).output
    )


def test_show_and_make(tmp_path: Path, run: Any) -> None:
    kernel = write_tiff(tmp_path / "k.tif", np.pad(psf(7, (1, 1, 1), 1), 2), (0.4, 0.2, 0.2))
    said = run("kernel", "show", kernel).output
    assert "um\n" in said
    assert "voxel spacing:   0.4, 0.2, 0.2 um" in said  # its own
    assert "borders:         --crop-kernel 1e-06 leaves 7 x 7 x 7" in said
    words = ["kernel", "make", kernel, "--spacing", "0.4,0.1,0.4um", "-o", tmp_path / "k.npy"]
    assert "the volume of 0.4,0.1,0.4 um" in run(*words, code=4).output
    assert "is resampled" in run(*words, "--kernel-spacing", "resample", "--normalize").output
    made = np.load(tmp_path / "k.npy")
    assert made.sum() == pytest.approx(1, abs=1e-12)
    assert made.shape[0] == 11
    assert made.shape[1] > 20 > made.shape[2]


def test_in_python() -> None:
    kernel = read_kernel(str(SAMPLES / "psf.tif"))
    grid = Grid((0.6, 0.2, 0.2), "um")
    fitted, notes = adapt_kernel(
        kernel, str(SAMPLES / "psf.tif"), grid, KernelAdaptation("resample", 1e-6)
    )
    assert fitted.sum == pytest.approx(kernel.sum, rel=1e-5)
    assert len(notes) >= 1
    with pytest.raises(ShapeError, match="pass kernel_spacing='resample'"):
        adapt_kernel(kernel, str(SAMPLES / "psf.tif"), grid, KernelAdaptation())
    with pytest.raises(SpecError, match="kernel_spacing is match"):
        KernelAdaptation("guess")

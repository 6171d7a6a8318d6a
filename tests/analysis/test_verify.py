"""Honest numbers: `--verify` against right and wrong outputs, `--scale auto`, `--strict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from conv3d_cli import Volume, write_volume
from conv3d_cli.analysis.verify import verify_output
from conv3d_cli.errors import DifferenceError
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series with holes, a layer's input, a stack, a mask, regions."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(2)
    x = rng.standard_normal((13, 15, 18, 2)).astype(np.float32) * 100
    x[4:8, 3:7, 8:12] = np.nan
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    nib.Nifti1Image(x, affine).to_filename(folder / "x.nii.gz")
    whole = nib.Nifti1Image(rng.integers(-500, 900, (13, 15, 18, 2)).astype(np.int16), affine)
    whole.header.set_slope_inter(0.25, -3)
    whole.to_filename(folder / "i.nii")
    mask = rng.random((13, 15, 18)) * (rng.random((13, 15, 18)) < 0.6)
    nib.Nifti1Image(mask.astype(np.float32), affine).to_filename(folder / "m.nii.gz")
    nib.Nifti1Image(rng.integers(0, 3, (13, 15, 18)).astype(np.uint8), affine).to_filename(
        folder / "l.nii"
    )
    np.save(folder / "c.npy", rng.standard_normal((11, 12, 14, 4)).astype(np.float32))
    np.savez(
        folder / "layer.npz",
        kernel=rng.standard_normal((3, 3, 3, 2, 6)),
        bias=rng.standard_normal(6),
    )
    np.savez(folder / "second.npz", kernel=rng.standard_normal((3, 2, 3, 6, 2)))
    (folder / "stack.toml").write_text(
        '[[layers]]\nkernel = "layer.npz"\ngroups = 2\nactivation = "relu"\npadding = "same"\nstrides = 2\n'
        '[[layers]]\nkernel = "second.npz"\nactivation = "gelu"\n'
    )
    return folder


CASES = [
    ("x.nii.gz", "-k gaussian:sigma=2vox --nan ignore", ".nii"),
    ("x.nii.gz", "-k gaussian:fwhm=5mm --nan ignore --mask m.nii.gz", ".nii.gz"),
    (
        "x.nii.gz",
        "-k box:size=3 --nan ignore --mask m.nii.gz --mask-mode keep --bias 2 --activation tanh",
        ".nii",
    ),
    ("x.nii.gz", "-k box:size=3 --nan ignore --mask l.nii --mask-labels", ".nii"),
    ("x.nii.gz", "-k sobel:axis=h --nan zero --boundary mirror", ".tif"),
    ("x.nii.gz", "-k log:sigma=1vox --strides 2", ".npy"),
    ("i.nii", "-k ball:radius=2vox --boundary renormalize --strides 1,2,1", ".nii"),
    ("i.nii", "-k gaussian:sigma=1vox --missing 7 --dtype int16", ".nii.gz"),
    ("i.nii", "-k unsharp:sigma=1vox --dtype uint8", ".nii"),
    ("i.nii", "-k gaussian:sigma=1vox --dtype int16 --scale auto", ".nii.gz"),
    ("i.nii", "-k gaussian:sigma=1vox --dtype uint8 --scale auto", ".nii"),
    (
        "c.npy",
        "-k layer.npz --groups 2 --padding full --dilation-rate 1,2,1 --boundary constant=3 --precision float64",
        ".npy",
    ),
    ("c.npy", "-c stack.toml", ".npy"),
]


@pytest.mark.parametrize(
    ("source", "options", "suffix"), CASES, ids=[f"{s} {o}" for s, o, _ in CASES]
)
def test_right_outputs_hold(
    files: Path,
    source: str,
    options: str,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Any,
) -> None:
    monkeypatch.chdir(files)
    out = tmp_path / f"o{suffix}"
    result = run("apply", source, *options.split(), "-o", out, "--verify", 300, "--json", "-v")
    record = json.loads(result.stdout)
    assert record["verified"] == min(300, record["voxels"])
    assert 0 <= record["verified_worst"] <= 1
    assert "of the bound" in result.stderr


@pytest.mark.parametrize("change", [1e-3, np.nan])
def test_a_wrong_voxel_is_found(files: Path, change: float, tmp_path: Path) -> None:
    """Not one of 3510 voxels may be off: all are looked at here."""
    job = Job(str(files / "i.nii"), str(tmp_path / "o.npy"), (Stage("gaussian:sigma=1vox"),))
    run_job(job)
    assert verify_output(job, 10**6).voxels == 13 * 15 * 18 * 2
    data = np.load(tmp_path / "o.npy")
    data[1, 7, 3, 9] += change * abs(data).max()
    np.save(tmp_path / "o.npy", data)
    with pytest.raises(DifferenceError, match=r"voxel \(n, d, h, w, c\) = \(1, 7, 3, 9, 0\) is"):
        verify_output(job, 10**6)


def test_exit_7(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """A bound that nothing keeps: the command says which voxel, and that the file stays."""
    monkeypatch.setattr("conv3d_cli.analysis.verify.BOUNDS", {"float32": 1e-16, "float64": 0.0})
    arguments = [files / "c.npy", "-k", "box:size=5", "-o", tmp_path / "o.tif", "--verify", 500]
    monkeypatch.setattr("conv3d_cli.analysis.verify.ROUNDING", 0.0)
    text = run("apply", *arguments, code=7).output
    assert "do not use it" in text
    assert (tmp_path / "o.tif").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "-"], "pipe"),
        (["-o", "c.npy", "--overwrite"], "replaces"),
        (["-o", "./c.npy", "--overwrite"], "replaces"),
        (["-o", "o.npy", "--activation", "softmax"], "whole axis"),
    ],
)
def test_what_cannot_be_verified(
    files: Path,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Any,
) -> None:
    np.save(tmp_path / "c.npy", np.load(files / "c.npy"))
    monkeypatch.chdir(tmp_path)
    assert (
        words in run("apply", "c.npy", "-k", "identity", *arguments, "--verify", 5, code=2).output
    )
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint16"])
@pytest.mark.parametrize(
    ("low", "high"), [(-3.5, 1e5), (1e6, 1e6 + 1), (0.25, 0.25), (-1e-7, 2e-7), (1e-3, 1e30)]
)
def test_scaled_integers_hold_every_value_to_half_a_step(
    dtype: str, low: float, high: float, tmp_path: Path, run: Any
) -> None:
    x = np.random.default_rng(0).uniform(low, high, (6, 7, 8)).astype(np.float32)
    x.flat[:2] = low, high
    write_volume(str(tmp_path / "x.nii"), Volume(x, "zyx"))
    run(
        "apply",
        tmp_path / "x.nii",
        "-k",
        "identity",
        "-o",
        tmp_path / "o.nii.gz",
        "--dtype",
        dtype,
        "--scale",
        "auto",
    )
    image = nib.load(tmp_path / "o.nii.gz")
    assert image.get_data_dtype() == np.dtype(dtype)
    step = image.dataobj.slope
    assert (
        step
        <= max((high - low) / (np.iinfo(dtype).max - np.iinfo(dtype).min) * 1.01, 2e-7 * abs(high))
        or low == high
    )
    back = np.asarray(image.dataobj, np.float64).T
    assert abs(back - x).max() <= 0.5001 * step + 1e-7 * abs(x).max()


def test_nan_in_scaled_integers_is_told(files: Path, tmp_path: Path, run: Any) -> None:
    options = ["-k", "identity", "--dtype", "int16", "--scale", "auto"]
    text = run("apply", files / "x.nii.gz", *options, "-o", tmp_path / "o.nii").output
    assert "NaN" in text
    assert "slope" in text
    refused = run(
        "apply", files / "x.nii.gz", *options, "-o", tmp_path / "p.nii", "--strict", code=4
    ).output
    assert "--strict" in refused
    assert not (tmp_path / "p.nii").exists()


def test_scale_is_for_integers_in_nifti(files: Path, tmp_path: Path, run: Any) -> None:
    for options in (["-o", "o.tif", "--dtype", "int16"], ["-o", "o.nii"]):
        options[1] = str(tmp_path / options[1])
        assert (
            "--dtype int16"
            in run(
                "apply", files / "i.nii", "-k", "identity", "--scale", "auto", *options, code=2
            ).output
        )


def test_strict(files: Path, tmp_path: Path, run: Any) -> None:
    """Clipped voxels, means without voxels and what a format cannot hold end the job; nothing is written."""
    clipped = run(
        "apply",
        files / "i.nii",
        "-k",
        "identity",
        "--dtype",
        "uint8",
        "-o",
        tmp_path / "o.nii",
        "--strict",
        code=4,
    )
    assert "clipped" in clipped.output
    lost = run(
        "apply",
        files / "x.nii.gz",
        "-k",
        "box:size=3",
        "--nan",
        "ignore",
        "-o",
        tmp_path / "o.nii",
        "--strict",
        code=4,
    )
    assert "weight" in lost.output
    form = run(
        "apply", files / "i.nii", "-k", "identity", "-o", tmp_path / "o.npy", "--strict", code=4
    )
    assert "--strict" in form.output
    assert not list(tmp_path.iterdir())
    run("apply", files / "i.nii", "-k", "identity", "-o", tmp_path / "o.nii", "--strict")

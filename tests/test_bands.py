"""Planes that do not fit the ceiling: bands of rows, with the bits of whole planes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from conv3d_cli.cli import main
from conv3d_cli.job import PROCESS_BYTES, Job, Stage, prepare_job

SHAPE = (7, 3000, 800)


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide planes as .npy, .nii and .tif."""
    folder = tmp_path_factory.mktemp("mosaic")
    data = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.float32)
    np.save(folder / "x.npy", data)
    nib.Nifti1Image(data.T, np.diag([2, 2, 3, 1])).to_filename(folder / "x.nii")
    tifffile.imwrite(folder / "x.tif", data, imagej=True, metadata={"axes": "ZYX"})
    np.save(folder / "random9.npy", np.random.default_rng(1).standard_normal((5, 9, 9)))
    np.save(folder / "random3.npy", np.random.default_rng(2).standard_normal((3, 3, 3)))
    return folder


def apply(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["apply", *map(str, arguments), "-q"])


@pytest.mark.parametrize(
    ("source", "kernel", "options"),
    [
        ("x.npy", "random3.npy", []),
        ("x.npy", "random3.npy", ["--strides", "2"]),
        ("x.npy", "random9.npy", ["--boundary", "wrap", "--dtype", "int16"]),
        ("x.nii", "gaussian:sigma=2mm", ["--boundary", "mirror"]),
        ("x.nii", "random9.npy", ["--activation", "relu"]),
        ("x.tif", "random3.npy", ["--dilation-rate", "1,3,2"]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else " ".join(value),
)
def test_same_bits_as_whole_planes(mosaic: Path, source: str, kernel: str, options: list[str], tmp_path: Path) -> None:
    suffix = Path(source).suffix
    k = mosaic / kernel if kernel.endswith(".npy") else kernel
    whole = apply(mosaic / source, "-k", k, *options, "-o", tmp_path / f"whole{suffix}", "--max-memory", "2G")
    assert whole.exit_code == 0, whole.output
    refused = apply(mosaic / source, "-k", k, *options, "-o", tmp_path / f"no{suffix}", "--max-memory", "1M")
    assert refused.exit_code == 6
    least = re.search(r"a band of .*--max-memory (\d+)M", refused.output)
    assert least, refused.output
    banded = apply(
        mosaic / source, "-k", k, *options, "-o", tmp_path / f"bands{suffix}", "--max-memory", f"{least[1]}M"
    )
    assert banded.exit_code == 0, banded.output
    assert (tmp_path / f"bands{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_the_ceiling_asks_for_bands(mosaic: Path) -> None:
    ceiling = PROCESS_BYTES + (30 << 20)
    job = Job(str(mosaic / "x.npy"), "out.npy", (Stage(str(mosaic / "random3.npy")),), max_memory=ceiling)
    with prepare_job(job) as prepared:
        band = prepared.passage.band
        assert band is not None
        assert band % prepared.stages[0].plan.height_step == 0
        assert band < SHAPE[1]
        assert prepared.memory <= ceiling


def test_a_stream_has_no_bands(mosaic: Path, tmp_path: Path) -> None:
    ceiling = f"{(PROCESS_BYTES >> 20) + 5}M"
    refused = apply(mosaic / "x.nii", "-k", "box:size=3", "-o", tmp_path / "out.nii.gz", "--max-memory", ceiling)
    assert refused.exit_code == 6
    assert "one plane" in refused.output or "planes at a time" in refused.output

"""--fwhm and --sigma: short for -k gaussian:..., in commands, configs, manifests and records."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

STEP = (3.0, 1.5, 1.5)  # mm, of the scan of `desk`, in D,H,W


def voxels(path: Path) -> np.ndarray:
    """Voxels in D,H,W order."""
    return np.asarray(nibabel.load(path).dataobj).T


@pytest.mark.parametrize(
    ("words", "sigma"),
    [
        (["--fwhm", "6mm"], [6 / 2.3548200450309493 / step for step in STEP]),
        (["--fwhm", "6,3,0mm"], [6 / 2.3548200450309493 / 3, 3 / 2.3548200450309493 / 1.5, 0]),
        (["--sigma", "2vox"], [2, 2, 2]),
        (["--sigma", "1.5, 1, 0.5 vox"], [1.5, 1, 0.5]),
        (["--sigma", "3000um"], [1, 2, 2]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_it_is_the_gaussian_of_scipy(
    words: list[str], sigma: list[float], desk: Path, run: Any
) -> None:
    run("apply", "a.nii.gz", *words, "-o", "o.nii.gz")
    expected = ndimage.gaussian_filter(voxels(desk / "a.nii.gz").astype(float), sigma)
    np.testing.assert_allclose(voxels(desk / "o.nii.gz"), expected, atol=2e-3)


def test_the_bytes_are_those_of_the_long_form_with_a_preset_and_a_mask(
    desk: Path, run: Any
) -> None:
    for name, kernel in (("a", ["-k", "gaussian:fwhm=6mm"]), ("b", ["--fwhm", "6mm"])):
        run(
            "apply", "a.nii.gz", *kernel, "--like", "fsl", "--mask", "mask.nii", "-o", f"{name}.nii"
        )
    assert (desk / "a.nii").read_bytes() == (desk / "b.nii").read_bytes()


@pytest.mark.parametrize(
    ("words", "config", "said"),
    [
        (["--fwhm", "6mm", "-k", "box"], "", "-k and --fwhm each choose the kernel; pass one of them"),
        (["--fwhm", "6mm", "--sigma", "2mm"], "", "--fwhm and --sigma each choose the kernel"),
        (["--fwhm", "6mm", "--to-fwhm", "8mm"], "", "--to-fwhm chooses the kernel; leave out -k, --fwhm"),
        (["--fwhm", "6mm"], 'kernel = "box"', "--fwhm chooses a Gaussian, and config c.toml has a kernel of its own"),
        ([], 'kernel = "box"\nfwhm = "6mm"', "-k and --fwhm each choose the kernel"),
        ([], "fwhm = 6", 'fwhm must be a length such as "6mm" or "8,6,6mm", received 6'),
        (["--fwhm", "6"], "", "--fwhm=6 needs a unit: --fwhm=6mm or --fwhm=6vox"),
        (["--sigma", "1,2mm"], "", "--sigma is one length or three in depth,height,width order"),
        (["--sigma", "-1mm"], "", "--sigma must not be negative"),
        (["--fwhm", ""], "", "--fwhm must be a value, received ''; write it, or leave"),
        (["--fwhm", "6mm:truncate=3"], "", "--fwhm is one length or three"),
        (["--fwhm", "6px"], "", "unknown unit 'px'; write 'vox'"),
        (["--fwhm", "6mm"], '[[layers]]\nkernel = "box"\n[[layers]]\nkernel = "box"', "--fwhm cannot be given for a stack"),
    ],
    ids=str,
)  # fmt: skip
def test_contradictions_and_wrong_lengths_are_one_line(
    words: list[str], config: str, said: str, desk: Path, run: Any, error_line: Any
) -> None:
    if config:
        (desk / "c.toml").write_text(config)
        words = [*words, "-c", "c.toml"]
    result = run("apply", "a.nii.gz", *words, "-o", "o.nii.gz", code=2)
    assert said in error_line(result.stderr)
    assert not (desk / "o.nii.gz").exists()


def test_an_option_beats_the_config_that_has_the_same(desk: Path, run: Any) -> None:
    (desk / "c.toml").write_text('fwhm = "3mm"\nboundary = "wrap"\n')
    told = json.loads(run("explain", "a.nii.gz", "-c", "c.toml", "--fwhm", "6mm", "--json").stdout)
    assert (told["kernel"], told["boundary"]) == ("gaussian:fwhm=6mm", "wrap")
    told = json.loads(run("explain", "a.nii.gz", "-c", "c.toml", "-k", "box", "--json").stdout)
    assert told["kernel"] == "box"
    told = json.loads(run("explain", "a.nii.gz", "-c", "c.toml", "--json").stdout)
    assert told["kernel"] == "gaussian:fwhm=3mm"


def test_a_manifest_has_a_column_for_it(desk: Path, run: Any, error_line: Any) -> None:
    (desk / "m.csv").write_text(
        'input,output,fwhm\na.nii.gz,one.nii.gz,6mm\na.nii.gz,two.nii.gz,"6,3,3mm"\n'
    )
    run("apply", "--manifest", "m.csv")
    assert not np.array_equal(voxels(desk / "one.nii.gz"), voxels(desk / "two.nii.gz"))
    said = error_line(
        run("apply", "--manifest", "m.csv", "-k", "box", "--overwrite", code=2).stderr
    )
    assert "manifest m.csv, line 2: -k and --fwhm each choose the kernel" in said


def test_records_repeat_it(desk: Path, run: Any) -> None:
    run("apply", "a.nii.gz", "--fwhm", "6mm", "--sidecar", "--history", "-o", "o.nii.gz")
    record = json.loads((desk / "o.json").read_text())
    command = next(value for value in _strings(record) if value.startswith("conv3d apply"))
    assert shlex.split(command)[3:5] == ["--fwhm", "6mm"]
    assert any(
        "conv3d apply a.nii.gz --fwhm 6mm" in line
        for line in _strings(json.loads(run("info", "o.nii.gz", "--json").stdout))
    )
    assert "every byte" in run("rerun", "o.json").stdout


def test_resume_knows_it_again_in_both_forms(desk: Path, run: Any) -> None:
    first = ["apply", "a.nii.gz", "--out-dir", "out", "--resume", "--json"]
    run(*first, "--fwhm", "6mm")
    for words, status in ((["-k", "gaussian:fwhm=6mm"], "skipped"), (["--fwhm", "7mm"], "done")):
        told = json.loads(run(*first, *words, "--overwrite").stdout)
        assert told["status"] == status


def test_a_label_of_bids_says_it(desk: Path, run: Any) -> None:
    folder = desk / "raw" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (desk / "a.nii.gz").rename(folder / "sub-01_T1w.nii.gz")
    run("apply", "raw", "-r", "--fwhm", "6mm", "--bids", "--out-dir", "d")
    assert [path.name for path in (desk / "d").rglob("*.nii.gz")] == [
        "sub-01_desc-sm6mm_T1w.nii.gz"
    ]


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [value] if isinstance(value, str) else []

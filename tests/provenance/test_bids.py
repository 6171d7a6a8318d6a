"""`apply --bids`: names, folders, descriptions and fields of a BIDS derivative dataset."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

EXAMPLE = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
OUT = Path("raw/derivatives/conv3d")
BOLD = "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1"
T1W = "sub-01/ses-a/anat/sub-01_ses-a_T1w"
DWI = "sub-01/ses-a/dwi/sub-01_ses-a_dwi"
INPUTS = [f"raw/{BOLD}_bold.nii.gz", f"raw/{T1W}.nii.gz", f"raw/{DWI}.nii.gz"]


@pytest.fixture
def apply(run: Any) -> Any:
    """`conv3d apply` into the derived dataset OUT."""
    return functools.partial(run, "apply", "-k", "gaussian:fwhm=6mm", "--bids", "--out-dir", OUT)


def error(result: Any) -> str:
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return str(line)


def read(path: str | Path) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def write(path: str | Path, values: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(values if isinstance(values, str) else json.dumps(values))


def files(folder: str | Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()
    )


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a raw dataset: a real series as bold, one volume of it as T1w, and dwi."""
    monkeypatch.chdir(tmp_path)
    image = nibabel.load(EXAMPLE)
    data = np.asarray(image.dataobj)[20:40, 20:38, 4:10]
    image.header.set_zooms((2, 2, 2.2, 2.0))
    for name, values in ((BOLD + "_bold", data), (T1W, data[..., 0]), (DWI, data)):
        path = Path(f"raw/{name}.nii.gz")
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)
    write(
        "raw/dataset_description.json",
        {"Name": "Raw", "BIDSVersion": "1.10.0", "DatasetType": "raw", "DatasetDOI": "doi:10.1/x"},
    )
    write("raw/task-rest_bold.json", {"TaskName": "rest", "RepetitionTime": 3.0, "EchoTime": 0.03})
    timing = [0.0, 0.3, 0.6, 0.9, 1.2, 1.5]
    write(
        f"raw/{BOLD}_bold.json",
        {"RepetitionTime": 2.0, "SliceTiming": timing, "IntendedFor": "x", "Units": "arbitrary"},
    )
    write("raw/sub-01/ses-a/func/sub-01_ses-a_task-other_bold.json", {"TaskName": "other"})
    write("raw/dwi.bval", "0 1000\n")
    write(f"raw/{DWI}.bvec", "0 1\n0 0\n0 0\n")
    return tmp_path


def test_a_dataset(desk: Path, apply: Any, run: Any) -> None:
    apply(*INPUTS)
    bold, t1w, dwi = (
        f"{BOLD}_desc-sm6mm_bold",
        f"{T1W[:-4]}_desc-sm6mm_T1w",
        f"{DWI[:-4]}_desc-sm6mm_dwi",
    )
    expected = [f"{name}.{end}" for name in (bold, t1w, dwi) for end in ("json", "nii.gz")]
    expected += [f"{DWI}.bval", f"{DWI}.bvec", "dataset_description.json"]
    assert files(OUT) == sorted(expected)
    assert (OUT / f"{DWI}.bval").read_text() == "0 1000\n"
    description = read(OUT / "dataset_description.json")
    assert description["DatasetType"] == "derivative"
    assert [maker["Name"] for maker in description["GeneratedBy"]] == ["conv3d"]
    assert description["DatasetLinks"] == {"raw": "../.."}
    assert description["SourceDatasets"] == [{"DOI": "doi:10.1/x"}]
    fields = read(OUT / f"{bold}.json")
    assert fields["Sources"] == [f"bids:raw:{BOLD}_bold.nii.gz"]
    assert (fields["TaskName"], fields["RepetitionTime"], fields["EchoTime"]) == ("rest", 2.0, 0.03)
    assert len(fields["SliceTiming"]) == 6
    assert fields["SkullStripped"] is False
    assert fields["Units"] == "arbitrary"  # a Gaussian keeps the scale
    assert "IntendedFor" not in fields
    assert fields["Conv3D"]["Command"].startswith("conv3d apply ../../../../../sub-01/ses-a/func/")
    run("rerun", OUT / f"{bold}.json")


def test_the_validator_agrees(desk: Path, apply: Any) -> None:
    """BIDS' own validator, where it is installed: pip install bids-validator-deno."""
    validator = shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("needs bids-validator-deno")
    apply(*INPUTS)
    done = subprocess.run(
        [validator, OUT, "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    # what a scanner would have known, and what is no program's to write
    codes = {issue["code"] for issue in issues}
    assert codes <= {"README_FILE_MISSING", "TOO_FEW_AUTHORS", "SIDECAR_KEY_RECOMMENDED"}


@pytest.mark.parametrize("position", ["", "raw", "raw/sub-01/ses-a", "raw/sub-01/ses-a/func"])
def test_from_every_folder_the_same(
    desk: Path, position: str, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    here = desk / position
    monkeypatch.chdir(here)
    up = "../" * len(Path(position).parts)
    source = (desk / INPUTS[0]).relative_to(here) if position else INPUTS[0]
    run("apply", source, "-k", "gaussian:fwhm=6mm", "--bids", "--out-dir", f"{up}{OUT}")
    fields = read(desk / OUT / f"{BOLD}_desc-sm6mm_bold.json")
    assert fields["Sources"] == [f"bids:raw:{BOLD}_bold.nii.gz"]
    assert read(desk / OUT / "dataset_description.json")["DatasetLinks"] == {"raw": "../.."}


def test_fields_that_are_no_longer_true(desk: Path, run: Any) -> None:
    bold = INPUTS[0]
    write(
        "raw/task-rest_bold.json",
        {"TaskName": "rest", "Resolution": "native", "SkullStripped": True},
    )
    run(
        "apply",
        bold,
        "-k",
        "box:size=2",
        "--strides",
        "1,1,2",
        "--padding",
        "valid",
        "--bids",
        "--out-dir",
        "one",
    )
    fields = read(f"one/{BOLD}_desc-boxSize2_bold.json")
    assert "SliceTiming" not in fields  # 6 slices became 5
    assert "Resolution" not in fields
    assert fields["SkullStripped"] is True
    run(
        "apply",
        bold,
        "-k",
        "box:size=1,2,2",
        "--strides",
        "1,2,2",
        "--padding",
        "valid",
        "--bids",
        "--out-dir",
        "two",
    )
    fields = read(f"two/{BOLD}_desc-boxSize1x2x2_bold.json")
    assert len(fields["SliceTiming"]) == 6
    assert "Resolution" not in fields
    write(
        f"raw/{BOLD}_bold.json",
        {
            "RepetitionTime": 2.0,
            "SliceTiming": [0] * 18,
            "SliceEncodingDirection": "j-",
            "Units": "T",
        },
    )
    run("apply", bold, "-k", "sobel:axis=d", "--padding", "1,0,1", "--bids", "--out-dir", "three")
    fields = read(f"three/{BOLD}_desc-sobelAxisD_bold.json")
    assert not {"SliceTiming", "SliceEncodingDirection", "Units"} & {*fields}


def test_labels(desk: Path, apply: Any, run: Any) -> None:
    apply(INPUTS[1], "--desc", "Smooth6")
    assert f"{T1W[:-4]}_desc-Smooth6_T1w.nii.gz" in files(OUT)
    step = OUT / f"{T1W[:-4]}_desc-Smooth6_T1w.nii.gz"
    # a step further in the same dataset
    run("apply", step, "-k", "log:sigma=3mm", "--bids", "--out-dir", OUT)
    name = f"{T1W[:-4]}_desc-Smooth6LogSigma3mm_T1w.json"
    assert read(OUT / name)["Sources"] == [f"bids::{T1W[:-4]}_desc-Smooth6_T1w.nii.gz"]
    # and into another
    run("apply", step, "-k", "box:size=3", "--desc", "other", "--bids", "--out-dir", "next")
    fields = read(f"next/{T1W[:-4]}_desc-other_T1w.json")
    assert fields["Sources"] == [f"bids:conv3d:{T1W[:-4]}_desc-Smooth6_T1w.nii.gz"]
    assert fields["SkullStripped"] is False
    assert read("next/dataset_description.json")["DatasetLinks"] == {
        "conv3d": "../raw/derivatives/conv3d"
    }
    assert "only letters and digits" in error(apply(INPUTS[1], "--desc", "a_b", code=2))


def test_a_description_that_is_there(desk: Path, apply: Any) -> None:
    apply(INPUTS[1])
    path = OUT / "dataset_description.json"
    values = {**read(path), "Name": "My own", "Authors": ["A", "B"]}
    write(path, values)
    apply(INPUTS[0])
    assert read(path) == values  # nothing was missing
    shutil.copytree("raw/sub-01", "more/sub-02")
    moved = Path("more/sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz")
    Path("more/sub-02/ses-a/anat/sub-01_ses-a_T1w.nii.gz").rename(moved)
    apply(moved)
    assert read(path) == {
        **values,
        "DatasetLinks": {"raw": "../..", "raw2": "../../../more"},
        "SourceDatasets": [{"DOI": "doi:10.1/x"}, {"URL": "../../../more"}],
    }
    sources = read(OUT / "sub-02/ses-a/anat/sub-02_ses-a_desc-sm6mm_T1w.json")["Sources"]
    assert sources == ["bids:raw2:sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz"]


@pytest.mark.parametrize(
    "values",
    [
        {"Name": "x", "DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]},
        {"Name": "raw"},
    ],
)
def test_another_programs_dataset_is_left_alone(desk: Path, values: Any, apply: Any) -> None:
    write(OUT / "dataset_description.json", values)
    assert "belongs to another dataset" in error(apply(INPUTS[1], "--overwrite", code=5))
    assert files(OUT) == ["dataset_description.json"]
    assert read(OUT / "dataset_description.json") == values


def test_gradients_of_diffusion(desk: Path, apply: Any) -> None:
    apply(INPUTS[2])
    apply(INPUTS[2], "--desc", "again")  # beside the same ones
    write(OUT / f"{DWI}.bvec", "others")
    assert f"{DWI}.bvec: file exists" in error(apply(INPUTS[2], "--desc", "third", code=5))
    apply(INPUTS[2], "--desc", "third", "--overwrite")
    assert (OUT / f"{DWI}.bvec").read_bytes() == Path(f"raw/{DWI}.bvec").read_bytes()


def test_masks_and_other_files(desk: Path, apply: Any) -> None:
    mask = f"raw/derivatives/prep/{T1W[:-4]}_desc-brain_mask.nii.gz"
    Path(mask).parent.mkdir(parents=True)
    image = nibabel.load(INPUTS[1])
    nibabel.save(nibabel.Nifti1Image(np.ones(image.shape, np.uint8), image.affine), mask)
    apply(INPUTS[1], "--mask", mask)
    # it lies in the raw dataset's folder, and in no other that is known
    sources = [
        f"bids:raw:{T1W}.nii.gz",
        f"bids:raw:derivatives/prep/{T1W[:-4]}_desc-brain_mask.nii.gz",
    ]
    assert read(OUT / f"{T1W[:-4]}_desc-sm6mm_T1w.json")["Sources"] == sources
    shutil.copy(mask, "m.nii.gz")
    apply(INPUTS[1], "--mask", "m.nii.gz", "--desc", "m")
    assert read(OUT / f"{T1W[:-4]}_desc-m_T1w.json")["Sources"][1] == "../../../m.nii.gz"


def test_nothing_is_written_in_a_rehearsal(desk: Path, apply: Any) -> None:
    before = files(".")
    apply(*INPUTS, "--dry-run")
    assert files(".") == before
    apply(*INPUTS)
    assert "exists; pass --overwrite" in error(apply(INPUTS[1], code=5))
    first = {name: (OUT / name).read_bytes() for name in files(OUT)}
    apply(*INPUTS, "--overwrite", "-j", "1")
    assert {name: (OUT / name).read_bytes() for name in files(OUT)} == first


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["head.nii.gz"], "received head.nii.gz; the form is sub-LABEL", 2),
        (["sub-01_T1w.nii.gz"], "is not in sub-01/", 2),
        (["raw/sub-01/anat/sub-01_ses-a_T1w.nii.gz"], "is not in sub-01/ses-a/anat", 2),
        (["raw/sub-01/anat/sub-01_T1w.npy"], "no volumes with the extension .npy", 2),
        (["raw/sub-01/anat/sub-01_run-1_run-2_T1w.nii.gz"], "each entity once", 2),
        ([INPUTS[1], "more/" + T1W + ".nii.gz"], "two inputs would write", 2),
        ([INPUTS[1], "--suffix", "_x"], "leave out --suffix", 2),
        ([INPUTS[1], "-o", "x.nii.gz"], "leave out --output", 2),
        ([INPUTS[1], "--out-dir", "raw"], "derivatives go into a dataset of their own", 2),
        ([INPUTS[1], "--out-dir", "s3://bucket/x"], "is a URL", 2),
    ],
)
def test_what_is_refused(desk: Path, arguments: list[str], words: str, code: int, run: Any) -> None:
    before = files(".")
    result = run(
        "apply", "-k", "gaussian:fwhm=6mm", "--bids", "--out-dir", OUT, *arguments, code=code
    )
    assert words in error(result)
    assert files(".") == before


def test_options_that_belong_together(desk: Path, run: Any) -> None:
    assert "name its folder" in error(run("apply", INPUTS[1], "-k", "identity", "--bids", code=2))
    result = run("apply", INPUTS[1], "-k", "identity", "--desc", "x", "--out-dir", "o", code=2)
    assert "--desc is the label of --bids" in error(result)


def test_a_damaged_sidecar_of_an_input(desk: Path, apply: Any) -> None:
    write(f"raw/{BOLD}_bold.json", "{")
    result = apply(*INPUTS, code=3)
    assert f"{BOLD}_bold.json: it is not valid JSON" in result.stderr
    assert "2 done, 1 failed" in result.stderr
    assert not any("_bold" in name for name in files(OUT))

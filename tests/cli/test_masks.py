"""`apply --mask` with a rule: each volume of a batch is smoothed in a mask of its own, and this is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

SUBJECTS = ("01", "02", "03")
KERNEL = ("-k", "gaussian:fwhm=3mm")
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def stem(subject: str) -> str:
    return f"prep/sub-{subject}/func/sub-{subject}_task-rest_space-T_res-2"


def save(path: str, values: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)


def inside(subject: str) -> Any:
    """A mask that no other subject has."""
    values = np.zeros((6, 5, 4), np.uint8)
    values[int(subject) :, 1:4, 1:] = 1
    return values


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a dataset of preprocessed series, each with a brain mask and a label map."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for subject in SUBJECTS:
        series = rng.normal(100, 10, (6, 5, 4, 2)).astype(np.float32)
        save(f"{stem(subject)}_desc-preproc_bold.nii.gz", series)
        save(f"{stem(subject)}_desc-brain_mask.nii.gz", inside(subject))
        save(f"{stem(subject)}_desc-aseg_dseg.nii.gz", inside(subject) * 7)
    Path("prep/dataset_description.json").write_text(
        json.dumps({"Name": "p", "BIDSVersion": "1.9.0", "DatasetType": "derivative"})
    )
    return tmp_path


def voxels(path: str) -> Any:
    return np.asarray(nibabel.load(path).dataobj)


def check_outputs(
    name: str = "out/sub-{0}_task-rest_space-T_res-2_desc-preproc_bold.nii.gz",
) -> None:
    """Each output is 0 outside the mask of its subject, and nowhere else."""
    for subject in SUBJECTS:
        smooth = voxels(name.format(subject))
        assert ((smooth != 0) == inside(subject)[..., None].astype(bool)).all()


@pytest.mark.parametrize(
    "rule",
    [
        "prep/sub-*/func/*_desc-brain_mask.nii.gz",
        "**/*_mask.nii.gz",
        "{stem}_desc-brain_mask.nii.gz",
        "{dir}/sub-{sub}_task-{task}_space-{space}_res-{res}_desc-brain_mask.nii.gz",
        "auto",
    ],
)
def test_each_volume_gets_its_own_mask(study: Path, run: Any, rule: str) -> None:
    volumes = [f"{stem(subject)}_desc-preproc_bold.nii.gz" for subject in SUBJECTS]
    result = run("apply", *volumes, *KERNEL, "--mask", rule, "--out-dir", "out", "--json")
    check_outputs()
    assert f"note: --mask '{rule}' found 3 masks for 3 volumes (sub-01_task-rest" in result.stderr
    masks = [json.loads(line)["mask"] for line in result.stdout.splitlines()]
    assert [Path(mask) for mask in masks] == [
        Path(f"{stem(subject)}_desc-brain_mask.nii.gz") for subject in SUBJECTS
    ]


def test_bids_records_the_mask_and_can_be_repeated(study: Path, run: Any) -> None:
    result = run("apply", "prep", "-r", *KERNEL, "--bids", "--out-dir", "d", "--mask", "auto")
    assert "left out 6 masks and label maps" in result.stderr
    name = "d/sub-{0}/func/sub-{0}_task-rest_space-T_res-2_desc-preprocSm3mm_bold"
    check_outputs(name + ".nii.gz")
    for subject in SUBJECTS:
        record = json.loads(Path(name.format(subject) + ".json").read_text())
        mask = f"../../../{stem(subject)}_desc-brain_mask.nii.gz"
        assert f"--mask {mask} " in record["Conv3D"]["Command"]
        assert record["Conv3D"]["Missing"]["Mask"] == mask
        assert any(source.endswith("_desc-brain_mask.nii.gz") for source in record["Sources"])
        assert "the same: every byte" in run("rerun", name.format(subject) + ".json").stdout


def test_the_history_names_the_mask(study: Path, run: Any) -> None:
    volume = f"{stem('02')}_desc-preproc_bold.nii.gz"
    run("apply", volume, *KERNEL, "--mask", "auto", "--history", "-o", "o.nii.gz")
    told = run("info", "o.nii.gz").stdout
    assert "--mask sub-02_task-rest_space-T_res-2_desc-brain_mask.nii.gz" in "".join(
        told.split("\n")
    )


def test_resume_sees_a_mask_that_changed(study: Path, run: Any) -> None:
    asked = ["apply", "prep", "-r", *KERNEL, "--out-dir", "out", "--mask", "*/*/*/*_mask.nii.gz"]
    run(*asked, "--resume")
    again = run(*asked, "--resume", "--json")
    assert [json.loads(line)["status"] for line in again.stdout.splitlines()] == ["skipped"] * 3
    save(f"{stem('02')}_desc-brain_mask.nii.gz", inside("01"))
    changed = run(*asked, "--resume", "--overwrite", "--json")
    states = [json.loads(line)["status"] for line in changed.stdout.splitlines()]
    assert states == ["skipped", "done", "skipped"]


def test_a_depfile_names_each_mask(study: Path, run: Any) -> None:
    run(
        *("apply", "prep", "-r", *KERNEL, "--out-dir", "out", "--mask", "auto"), "--depfile", "d.mk"
    )
    rules = Path("d.mk").read_text().replace("\\\n", "").splitlines()
    for subject in SUBJECTS:
        (line,) = [line for line in rules if line.startswith(f"out/sub-{subject}/")]
        assert f"{stem(subject)}_desc-brain_mask.nii.gz" in line.split()
        assert line.count("_mask.nii.gz") == 1


@pytest.mark.parametrize(
    "rule", ["{stem}_desc-brain_mask.nii.gz", "../prep/*/*/*_mask.nii.gz", "auto"]
)
@pytest.mark.parametrize("source", ["manifest", "column", "config"])
def test_manifests_and_configs_hold_rules(study: Path, run: Any, rule: str, source: str) -> None:
    """A pattern starts from the folder of the file that holds it, a template from the volume's."""
    Path("set").mkdir()
    rows = [f"../{stem(subject)}_desc-preproc_bold.nii.gz" for subject in SUBJECTS]
    asked: list[Any] = ["apply", *KERNEL, "--out-dir", "out"]
    if source == "config":
        Path("set/c.toml").write_text(f'mask = "{rule}"\n')
        asked += ["-c", "set/c.toml", *(row[3:] for row in rows)]
    elif source == "column":
        Path("set/m.csv").write_text("input,mask\n" + "".join(f"{row},{rule}\n" for row in rows))
        asked += ["--manifest", "set/m.csv"]
    else:
        Path("set/m.csv").write_text("input\n" + "\n".join(rows) + "\n")
        asked += ["--manifest", "set/m.csv", "--mask", rule.removeprefix("../")]
    run(*asked)
    check_outputs()


def test_a_row_without_a_rule_keeps_its_file(study: Path, run: Any) -> None:
    save("own.nii.gz", inside("03"))
    first, second = (f"{stem(s)}_desc-preproc_bold.nii.gz" for s in SUBJECTS[:2])
    Path("m.csv").write_text(f"input,mask\n{first},own.nii.gz\n{second},n/a\n")
    run("apply", "--manifest", "m.csv", *KERNEL, "--out-dir", "out", "--mask", "auto")
    for name, subject in ((first, "03"), (second, "02")):
        smooth = voxels(f"out/{Path(name).name}")
        assert ((smooth != 0) == inside(subject)[..., None].astype(bool)).all()


def test_a_volume_without_a_mask_stops_the_batch_before_any_work(
    study: Path, run: Any, error_line: Any
) -> None:
    Path(f"{stem('02')}_desc-brain_mask.nii.gz").unlink()
    for rule in ("auto", "{stem}_desc-brain_mask.nii.gz", "*/*/*/*_mask.nii.gz"):
        asked = ["apply", "prep", "-r", *KERNEL, "--bids", "--out-dir", "d", "--mask", rule]
        line = error_line(run(*asked, code=3).stderr)
        assert f"no mask for 1 of 3 volumes: {stem('02')}_desc-preproc_bold.nii.gz (" in line
        assert not Path("d").exists()


def test_a_manifests_error_says_where(study: Path, run: Any, error_line: Any) -> None:
    Path("m.csv").write_text(f"input,mask\n{stem('01')}_desc-preproc_bold.nii.gz,{{sten}}.nii\n")
    result = run("apply", "--manifest", "m.csv", *KERNEL, "--out-dir", "out", code=2)
    assert "Error: manifest m.csv: unknown field in --mask '{sten}.nii': 'sten'" in error_line(
        result.stderr
    )


def test_explain_finds_the_mask(study: Path, run: Any) -> None:
    volume = f"{stem('01')}_desc-preproc_bold.nii.gz"
    told = run("explain", volume, *KERNEL, "--mask", "auto").stdout
    assert f"{stem('01')}_desc-brain_mask.nii.gz" in told


def test_masks_under_other_names_are_no_volumes_of_the_folder(study: Path, run: Any) -> None:
    for name in "ab":
        save(f"flat/{name}.nii", np.ones((6, 5, 4), np.float32))
        save(f"flat/{name}_inner.nii", inside("01"))
    result = run("apply", "flat", *KERNEL, "--mask", "{stem}_inner.nii", "--out-dir", "out")
    assert "left out 2 files that this command uses otherwise" in result.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.nii", "b.nii"]


def test_masks_that_are_used_are_not_smoothed_even_if_asked_for(study: Path, run: Any) -> None:
    asked = ["apply", "prep", "-r", *KERNEL, "--include-discrete", "--out-dir", "out"]
    told = run(*asked, "--mask", "auto", "--dry-run").stderr
    assert "left out 3 files that this command uses otherwise" in told
    assert (
        "mixes the values of 3 masks and label maps (sub-01_task-rest_space-T_res-2_desc-aseg"
        in told
    )
    assert "6 planned" in told

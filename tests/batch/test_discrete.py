"""Masks, label maps and CIFTI files among volumes: what batches leave out, and who asked for it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis

from conv3d_cli.batch.discover import asks_for
from conv3d_cli.batch.discrete import CIFTI, DISCRETE, PROBABILITY, kind_of

BLUR = ["-k", "box:size=3"]
MASKS = [
    "sub-01/func/sub-01_task-rest_desc-brain_mask.nii.gz",
    "sub-01/anat/sub-01_desc-aparcaseg_dseg.nii",
    "sub-01/anat/sub-01_space-MNI152NLin6Asym_label-GM_mask.nii.gz",
]
SCANS = ["sub-01/func/sub-01_task-rest_desc-preproc_bold.nii.gz", "sub-01/anat/sub-01_T1w.nii"]
LISTS = [
    "sub-01/func/sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii",
    "sub-01/func/sub-01_task-x_bold.nii",
]


def save(path: Path, kind: str = "") -> None:
    """A small scan, "cifti", or "labels" by the header alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    if kind == "cifti":
        axes = SeriesAxis(0, 1, 3), BrainModelAxis.from_mask(np.ones(20, bool), name="CortexLeft")
        image = Cifti2Image(values.reshape(3, 20), axes)
        image.update_headers()
        image.to_filename(path)
        return
    image = nibabel.Nifti1Image(values.astype(np.int16), np.eye(4))
    if kind == "labels":
        image.header.set_intent("label")
    nibabel.save(image, path)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A derivative dataset with scans, masks, label maps and CIFTI."""
    monkeypatch.chdir(tmp_path)
    for name in (*MASKS, *SCANS):
        save(tmp_path / "ds" / name)
    for name in LISTS:
        save(tmp_path / "hidden.nii", "cifti")  # nibabel wants another name of it
        (tmp_path / "hidden.nii").rename(tmp_path / "ds" / name)
    (tmp_path / "ds/sub-01/anat/sub-01_desc-aparcaseg_dseg.tsv").write_text("index\tname\n")
    return tmp_path


def volumes(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nii*"))


# ---------------------------------------------------------------------------------------------------------------------
# Kinds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, DISCRETE) for name in MASKS),
        ("brain_mask.nii.gz", DISCRETE),
        ("mask.nii", DISCRETE),
        ("T1_BRAIN_MASK.NII.GZ", DISCRETE),
        ("cells_mask.ome.tif", DISCRETE),
        ("cells_mask.npy", DISCRETE),
        ("nuclei_dseg.ome.zarr/", DISCRETE),
        ("sub-01_T1w_brainmask.nii.gz", DISCRETE),
        ("sub-01/mri/aparc+aseg.nii.gz", DISCRETE),
        ("sub-01/mri/aparc.a2009s+aseg.nii", DISCRETE),
        ("sub-01/mri/wmparc.nii.gz", DISCRETE),
        ("subject/aseg.nii.gz", ""),
        ("sub-01_label-GM_probseg.nii.gz", PROBABILITY),
        ("masked.nii", ""),
        ("mask_T1w.nii", ""),
        ("sub-01_mask-no_bold.nii", ""),
        ("unmask.nii", ""),
        ("sub-01_label-lesion_roi.nii.gz", DISCRETE),
        ("sub-01_lesionmask.nii", DISCRETE),
        ("case_labels.nii", DISCRETE),
        ("case_seg.nii", DISCRETE),
        ("dsegs.nii", ""),
        *(
            (f"a.{kind}.nii", CIFTI)
            for kind in ("dscalar", "dtseries", "dconn", "dlabel", "ptseries", "pscalar", "pconn")
        ),
        ("a_mask.dlabel.nii", CIFTI),
        ("A.DTSERIES.NII.GZ", CIFTI),
        ("a.T1.nii", ""),
    ],
)
def test_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_headers(tmp_path: Path) -> None:
    for packed in ("", ".gz"):
        save(tmp_path / f"a.nii{packed}")
        save(tmp_path / f"b.nii{packed}", "labels")
        assert kind_of(str(tmp_path / f"a.nii{packed}")) == ""
        assert kind_of(str(tmp_path / f"b.nii{packed}")) == DISCRETE
        assert kind_of(str(tmp_path / f"b.nii{packed}"), look=False) == ""
    pair = nibabel.Nifti1Pair(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    pair.header.set_intent("label")
    nibabel.save(pair, tmp_path / "p.img")
    assert kind_of(str(tmp_path / "p.hdr")) == kind_of(str(tmp_path / "p.img")) == DISCRETE
    save(tmp_path / "c.nii", "cifti")
    assert kind_of(str(tmp_path / "c.nii")) == CIFTI
    (tmp_path / "damaged.nii").write_bytes(b"\x5c\x01")
    for name in (
        "damaged.nii",
        "none.nii",
        "none.zarr",
    ):  # that they cannot be read is told by whoever reads them
        assert kind_of(str(tmp_path / name)) == ""


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_label_images_of_ngff(tmp_path: Path, version: str) -> None:
    own: dict[str, Any] = {"image-label": {"version": version}}
    name, content = (
        (".zattrs", own) if version == "0.4" else ("zarr.json", {"attributes": {"ome": own}})
    )
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / name).write_text(json.dumps(content))
    assert kind_of(str(tmp_path / "a.zarr")) == DISCRETE
    for damaged in ("{", "[]", '{"attributes": 3, "ome": 4}', "{}"):
        (tmp_path / "a.zarr" / name).write_text(damaged)
        assert kind_of(str(tmp_path / "a.zarr")) == ""


@pytest.mark.parametrize(
    ("pattern", "asks"),
    [
        ("*_mask.nii*", True),
        ("*mask*", True),
        ("sub-*/**/*_mask.nii.gz", True),
        ("sub-01_desc-brain_mask.nii.gz", True),
        ("sub-01/func/sub-01_desc-brain_mask.nii.gz", True),
        ("*.nii.gz", False),
        ("sub-*/**/*", False),
        ("*desc-brain*", False),
        ("*_bold.nii.gz", False),
    ],
)
def test_patterns_that_ask(pattern: str, asks: bool) -> None:
    assert asks_for("sub-01/func/sub-01_desc-brain_mask.nii.gz", pattern) == asks


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_a_folder_leaves_them_out_and_says_so(tree: Path, run: Any) -> None:
    told = run("apply", "ds", "-r", *BLUR, "--out-dir", "out").stderr
    assert volumes(tree / "out") == sorted(SCANS)
    notes = [line for line in told.splitlines() if line.startswith("note: left out")]
    assert len(notes) == 2
    assert "3 masks and label maps" in notes[0]
    assert "--include-discrete" in notes[0]
    assert "2 CIFTI files" in notes[1]
    assert "wb_command -cifti-smoothing" in notes[1]


def test_labels_by_their_header(tree: Path, run: Any) -> None:
    save(tree / "flat/atlas.nii.gz", "labels")
    save(tree / "flat/scan.nii.gz")
    assert (
        "left out 1 mask or label map (atlas.nii.gz)"
        in run("apply", "flat", *BLUR, "--out-dir", "out").stderr
    )
    assert volumes(tree / "out") == ["scan.nii.gz"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--include-discrete"], [*MASKS, *SCANS]),
        (["--glob", "*_mask.nii*"], [MASKS[0], MASKS[2]]),
        (["--glob", "*_mask.nii*", "--glob", "*.nii.gz"], [MASKS[0], MASKS[2], SCANS[0]]),
        (["--glob", "sub-*/**/*_dseg.nii*"], [MASKS[1]]),
        (["--glob", "*.nii.gz"], [SCANS[0]]),
    ],
)
def test_whoever_asks_for_them_gets_them(
    tree: Path, options: list[str], expected: list[str], run: Any
) -> None:
    told = run("apply", "ds", "-r", *BLUR, "--out-dir", "out", *options).stderr
    assert volumes(tree / "out") == sorted(expected)
    taken = len(set(MASKS) & set(expected))
    assert (f"the values of {taken} mask" in told) == (taken > 0)


def test_a_folder_of_nothing_else_is_an_error(tree: Path, run: Any) -> None:
    save(tree / "flat/a_mask.nii")
    told = run("apply", "flat", *BLUR, "--out-dir", "out", code=3).stderr
    assert told.startswith("Error: no volumes in flat; left out 1 mask or label map (a_mask.nii), ")
    assert "--include-discrete takes it" in told
    assert told.count("\n") == 1
    told = run(
        "apply", "ds", "-r", "--glob", "*.dtseries.nii", *BLUR, "--out-dir", "out", code=3
    ).stderr
    assert "left out 1 CIFTI file" in told
    assert not (tree / "out").exists()


def test_one_named_file_and_its_output_are_a_wish(tree: Path, run: Any) -> None:
    save(tree / "a_mask.nii.gz")
    assert run("apply", "a_mask.nii.gz", *BLUR, "-o", "soft.nii.gz").stderr == ""
    told = run(
        "apply", tree / "ds" / MASKS[0], *BLUR, "-o", "soft2.nii.gz"
    ).stderr  # of BIDS: at least a note
    assert told.startswith(
        "note: the kernel mixes the values of 1 mask or label map "
        "(sub-01_task-rest_desc-brain_mask.nii.gz)"
    )
    expected = nibabel.load(tree / "soft.nii.gz").get_fdata()
    assert np.array_equal(nibabel.load(tree / "soft2.nii.gz").get_fdata(), expected)
    told = run(
        "apply", "a_mask.nii.gz", tree / "ds" / SCANS[1], *BLUR, "--out-dir", "out"
    ).stderr  # as a shell's pattern names them
    assert "note: the kernel mixes the values of 1 mask or label map (a_mask.nii.gz)" in told


def test_the_mask_of_the_command_is_no_volume_of_it(tree: Path, run: Any) -> None:
    save(tree / "flat/a_mask.nii")
    save(tree / "flat/b.nii")
    told = run("apply", "flat", *BLUR, "--mask", "flat/a_mask.nii", "--out-dir", "out").stderr
    assert "left out 1 file that this command uses otherwise" in told
    assert "mask or label map" not in told


def test_a_manifest_names_them(tree: Path, run: Any) -> None:
    (tree / "t.tsv").write_text(
        "input\n" + "".join(f"ds/{name}\n" for name in (MASKS[0], SCANS[0], LISTS[1]))
    )
    told = run("apply", "--manifest", "t.tsv", *BLUR, "--out-dir", "out", code=3).stderr
    assert "the values of 1 mask or label map" in told
    assert told.count("is CIFTI") >= 1
    assert len(volumes(tree / "out")) == 2
    told = run("apply", "--manifest", "t.tsv", *BLUR, "--out-dir", "bids", "--bids").stderr
    assert "left out 1 mask" in told
    assert "left out 1 CIFTI" in told
    assert volumes(tree / "bids") == [SCANS[0].replace("preproc", "preprocBoxSize3")]
    (tree / "t.tsv").write_text(f"input\nds/{MASKS[0]}\n")
    assert (
        "manifest t.tsv: --bids: ds/sub-01/func"
        in run("apply", "--manifest", "t.tsv", *BLUR, "--out-dir", "b2", "--bids", code=2).stderr
    )


# ---------------------------------------------------------------------------------------------------------------------
# BIDS


def test_bids_leaves_them_out(tree: Path, run: Any) -> None:
    save(tree / "ds/sub-01/anat/sub-01_label-GM_probseg.nii")
    told = run("apply", "ds", "-r", *BLUR, "--bids", "--out-dir", "out").stderr
    assert [name.rpartition("_")[2] for name in volumes(tree / "out")] == [
        "T1w.nii",
        "probseg.nii",
        "bold.nii.gz",
    ]
    assert "left out 3 masks and label maps" in told
    assert "left out 2 CIFTI files" in told
    assert "among the volumes: 1 probability map (sub-01_label-GM_probseg.nii)" in told


@pytest.mark.parametrize("name", MASKS)
def test_bids_refuses_one_that_is_named_alone(tree: Path, name: str, run: Any) -> None:
    told = run("apply", tree / "ds" / name, *BLUR, "--bids", "--out-dir", "out", code=2).stderr
    assert told.startswith(f"Error: --bids: {tree / 'ds' / name} is a mask or a label map, ")
    assert "pass --include-discrete" in told
    assert told.count("\n") == 1
    assert not (tree / "out").exists()
    run("apply", tree / "ds" / name, *BLUR, "--bids", "--out-dir", "out", "--include-discrete")
    assert len(volumes(tree / "out")) == 1


@pytest.mark.parametrize("name", LISTS)
def test_cifti_does_not_end_a_bids_batch(tree: Path, name: str, run: Any) -> None:
    told = run(
        "apply",
        tree / "ds" / name,
        tree / "ds" / SCANS[0],
        tree / "ds" / MASKS[0],
        *BLUR,
        "--bids",
        "--out-dir",
        "out",
    ).stderr
    assert "left out 1 CIFTI file" in told
    assert len(volumes(tree / "out")) == 1
    told = run(
        "apply",
        tree / "ds" / name,
        *BLUR,
        "--bids",
        "--out-dir",
        "alone",
        "--include-discrete",
        code=3,
    ).stderr
    assert "is CIFTI, not a volume; wb_command -cifti-smoothing smooths it" in told


# ---------------------------------------------------------------------------------------------------------------------
# CIFTI under other names


@pytest.mark.parametrize("name", ["c.nii", "c.nii.gz"])
@pytest.mark.parametrize(
    "command",
    [
        "info FILE", "view FILE", "compare FILE scan.nii", "compare scan.nii FILE", "explain FILE -k box",
        "apply FILE -k box -o o.nii", "apply scan.nii -k box --mask FILE -o o.nii", "apply scan.nii -k FILE -o o.nii",
        "kernel show FILE", "info scan.nii --fwhm --mask FILE",
    ],
)  # fmt: skip
def test_every_reader_refuses_cifti_by_its_content(
    tree: Path, command: str, name: str, run: Any
) -> None:
    save(tree / "scan.nii")
    save(tree / "c.nii", "cifti")
    if name.endswith(".gz"):
        subprocess.run(["gzip", "c.nii"], check=True, cwd=tree)
    result = run(*command.replace("FILE", name).split(), code=3)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: cannot read {name}: it is CIFTI, not a volume")
    assert "wb_command -cifti-smoothing" in line

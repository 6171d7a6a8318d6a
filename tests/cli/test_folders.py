"""`conv3d apply` over folders and manifests, on real files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from conv3d_cli import Volume, read_volume, write_volume

EXAMPLE = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"


def volumes(folder: Path) -> list[str]:
    return sorted(
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    )


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Path:
    """A BIDS dataset of two subjects, one with nibabel's 4-D example."""
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        (root / f"sub-{subject}/anat").mkdir(parents=True)
        scan = Volume(rng.integers(0, 999, (6, 8, 9)).astype(np.int16), "zyx")
        write_volume(str(root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz"), scan)
        (root / f"sub-{subject}/anat/sub-{subject}_T1w.json").write_text("{}")
    (root / "sub-01/func").mkdir()
    shutil.copy(EXAMPLE, root / "sub-01/func/sub-01_task-rest_bold.nii.gz")
    (root / "dataset_description.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return root


def test_a_bids_tree_keeps_its_folders(run: Any, dataset: Path, tmp_path: Path) -> None:
    out = "bids/derivatives/conv3d"
    arguments = [
        "bids",
        "-r",
        "-k",
        "gaussian:sigma=1vox",
        "--out-dir",
        out,
        "--suffix",
        "_desc-sm",
    ]
    result = run("apply", *arguments)
    assert "3 done" in result.stderr
    expected = [
        "sub-01/anat/sub-01_T1w_desc-sm.nii.gz", "sub-01/func/sub-01_task-rest_bold_desc-sm.nii.gz",
        "sub-02/anat/sub-02_T1w_desc-sm.nii.gz",
    ]  # fmt: skip
    assert volumes(Path(out)) == expected
    single = run("apply", EXAMPLE, "-k", "gaussian:sigma=1vox", "-o", "one.nii.gz")
    assert not single.stderr
    assert Path("one.nii.gz").read_bytes() == (Path(out) / expected[1]).read_bytes()
    again = run("apply", *arguments, code=5)  # nor are derivatives taken for raw data
    assert again.stderr.count("file exists") == 1  # all three are refused in one line
    assert "; the same holds for 2 other volumes" in again.stderr
    assert volumes(Path(out)) == expected


def test_patterns_choose(run: Any, dataset: Path, tmp_path: Path) -> None:
    result = run(
        "apply",
        "bids",
        "--glob",
        "sub-*/anat/*_T1w.nii*",
        "-k",
        "identity",
        "--out-dir",
        "out",
        "--json",
    )
    assert [json.loads(line)["output"] for line in result.stdout.splitlines()] == [
        "out/sub-01/anat/sub-01_T1w.nii.gz", "out/sub-02/anat/sub-02_T1w.nii.gz",
    ]  # fmt: skip
    run(
        "apply",
        *sorted(map(str, dataset.glob("sub-*"))),
        "-r",
        "--glob",
        "*_bold.*",
        "-k",
        "identity",
        "--out-dir",
        "o2",
    )
    assert volumes(Path("o2")) == ["sub-01/func/sub-01_task-rest_bold.nii.gz"]


def test_outputs_beside_inputs_are_not_taken_for_inputs(run: Any, dataset: Path) -> None:
    """The second run finds the outputs of the first among the volumes."""
    arguments = ["bids", "-r", "-k", "identity", "--suffix", "_i"]
    run("apply", *arguments)
    before = volumes(dataset)
    result = run("apply", *arguments, "--overwrite")
    assert "left out 3 volumes that this command writes" in result.stderr
    assert "3 done" in result.stderr
    assert volumes(dataset) == before


def test_a_kernel_and_a_mask_in_the_folder_are_no_volumes(run: Any, tmp_path: Path) -> None:
    for name in ("x.npy", "m.npy"):
        np.save(tmp_path / name, np.ones((5, 6, 7), np.float32))
    np.save(tmp_path / "k.npy", np.ones((3, 3, 3)))
    (tmp_path / "c.toml").write_text('kernel = "k.npy"\n')
    out = tmp_path / "out"
    result = run(
        "apply", tmp_path, "-c", tmp_path / "c.toml", "--mask", tmp_path / "m.npy", "--out-dir", out
    )
    assert volumes(out) == ["x.npy"]
    assert "left out 2 files that this command uses otherwise" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["empty", "--out-dir", "o"], 3, "no volumes in empty; pass --recursive"),
        (["bids", "--out-dir", "o"], 3, "no volumes in bids; pass --recursive"),
        (
            ["bids", "-r", "--glob", "*.tif", "--out-dir", "o"],
            3,
            "no volumes that match *.tif in bids",
        ),
        (["bids", "-r", "-o", "o.npy"], 2, "-o names one output, and bids is a folder"),
        (["bids", "-r"], 2, "no output: pass --out-dir DIR, as in --out-dir identity"),
        (["bids", "-r", "--out-dir", "bids"], 5, "would replace the input"),
        (
            ["x.npy", "--glob", "*", "--out-dir", "o"],
            2,
            "--glob chooses among the volumes of a folder",
        ),
        (["x.npy"], 2, "no output: pass -o OUT, as in -o x_identity.npy"),
        (
            ["nowhere/", "--out-dir", "o"],
            3,
            "cannot read nowhere/: no such file; there is no folder 'nowhere'",
        ),
        ([], 2, "no input; name volumes or folders, or a table of volumes with --manifest"),
        (["bids/sub-01", "bids/sub-01/anat", "-r", "--out-dir", "o"], 2, "two inputs would write"),
    ],
)
def test_mistakes_with_folders(
    run: Any, error_line: Any, dataset: Path, arguments: list[str], code: int, words: str
) -> None:
    Path("empty").mkdir()
    result = run("apply", *arguments, "-k", "identity", code=code)
    assert words in error_line(result.stderr)
    assert not Path("o").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Manifests


@pytest.fixture
def table(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder for a manifest, with volumes, a kernel and a bias, elsewhere than where the command runs."""
    folder = tmp_path / "study"
    (folder / "raw").mkdir(parents=True)
    for name in "ab":
        np.save(folder / "raw" / f"{name}.npy", rng.standard_normal((6, 7, 8)).astype(np.float32))
    np.save(folder / "psf.npy", rng.random((3, 3, 3)))
    np.savetxt(folder / "bias.txt", [2.5])
    (folder / "c.toml").write_text('kernel = "psf.npy"\nboundary = "nearest"\n')
    return folder


def test_each_row_has_its_own_options(
    run: Any, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (table / "m.csv").write_text(
        "input,output,kernel,strides,flip,bias,config,dtype,mask\n"
        "raw/a.npy,deep/plain.npy,,,,,,,\n"
        'raw/a.npy,fine.npy,"gaussian:sigma=1,1,2vox","2,1,1",,,,,raw/b.npy\n'.replace(
            ",raw/b.npy", ","
        )
        + "raw/b.npy,own.npy,psf.npy,,yes,bias.txt,,,\n"
        "raw/b.npy,,,,n/a,,c.toml,int16,\n"
    )
    run("apply", "--manifest", "study/m.csv", "-k", "box:size=3", "--out-dir", "out", "--json")
    assert volumes(tmp_path / "out") == ["b.npy", "deep/plain.npy", "fine.npy", "own.npy"]
    commands = {
        "deep/plain.npy": ["study/raw/a.npy", "-k", "box:size=3"],
        "fine.npy": ["study/raw/a.npy", "-k", "gaussian:sigma=1,1,2vox", "--strides", "2,1,1"],
        "own.npy": ["study/raw/b.npy", "-k", "study/psf.npy", "--flip", "--bias", "study/bias.txt"],
        "b.npy": ["study/raw/b.npy", "-k", "box:size=3", "-c", "study/c.toml", "--dtype", "int16"],
    }
    for name, arguments in commands.items():
        run("apply", *arguments, "-o", "one.npy", "--overwrite")
        assert Path("one.npy").read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_outputs_lie_by_the_manifest_where_there_is_no_out_dir(run: Any, table: Path) -> None:
    (table / "m.tsv").write_text(
        "input\toutput\tcoverage-out\tnan\nraw/a.npy\ta.npy\tc.npy\tignore\nraw/b.npy\tb.npy\t\t\n"
    )
    run("apply", "--manifest", table / "m.tsv", "-k", "box:size=3")
    assert {"a.npy", "b.npy", "c.npy"} <= set(volumes(table))
    assert read_volume(str(table / "c.npy")).data.max() <= 1


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (
            "input,strides\nraw/a.npy,1\nraw/b.npy,a\n",
            2,
            "line 3, column strides: must be a whole number of at least 1, or three as in 2,1,1",
        ),
        (
            "input,flip\nraw/a.npy,perhaps\n",
            2,
            "line 2, column flip: 'perhaps' is not a valid boolean",
        ),
        (
            "input,nan\nraw/a.npy,skip\n",
            2,
            "line 2, column nan: must be propagate, ignore, zero or error, received 'skip'",
        ),
        (
            "input,strides\nraw/a.npy,0\n",
            2,
            "line 2, column strides: must be a whole number of at least 1",
        ),
        ("input,threads\nraw/a.npy,2\n", 2, "line 1: unknown column 'threads'"),
        ("input,kernal\nraw/a.npy,box\n", 2, "did you mean 'kernel'"),
        ("input,output\nraw/a.npy,x.npy\nraw/b.npy,./x.npy\n", 2, "two inputs would write"),
        ("input,output\nraw/a.npy,../raw/b.npy\nraw/b.npy,y.npy\n", 5, "would replace the input"),
        (
            "input,output,coverage_out,nan\nraw/a.npy,x.npy,y.npy,ignore\nraw/b.npy,y.npy,,\n",
            2,
            "the coverage",
        ),
        ("input\n-\n", 2, "line 2, column input: a manifest names files, received '-'"),
        (
            "input,output\nraw/a.npy,-\n",
            2,
            "line 2, column output: a manifest names files, received '-'",
        ),
        ("input,config\nraw/a.npy,no.toml\n", 3, "line 2: cannot read config"),
        ("input,bias\nraw/a.npy,no.txt\n", 3, "line 2: cannot read"),
        ("kernel\nbox\n", 2, "no column 'input'"),
    ],
)
def test_mistakes_in_a_manifest(
    run: Any, error_line: Any, table: Path, text: str, code: int, words: str
) -> None:
    (table / "m.csv").write_text(text)
    arguments = ["--out-dir", table / "out", *(["--allow-outside"] if "../" in text else [])]
    result = run(
        "apply",
        "--manifest",
        table / "m.csv",
        *arguments,
        *([] if "kern" in text else ["-k", "box"]),
        code=code,
    )
    assert words in error_line(result.stderr)
    assert str(table / "m.csv") in result.stderr or "coverage" in text
    assert not (table / "out").exists() or not volumes(table / "out")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["x.npy", "--out-dir", "o"], 2, "leave out INPUT"),
        (["-o", "o.npy"], 2, "leave out -o"),
        (["-r", "--out-dir", "o"], 2, "leave out --recursive"),
        (["--glob", "*", "--out-dir", "o"], 2, "leave out --glob"),
        ([], 2, "line 2, column output: no output; name one, or pass --out-dir"),
        (["--out-dir", "o", "--to-fwhm", "8mm"], 2, "line 2: --to-fwhm chooses the kernel"),
    ],
)
def test_a_manifest_and_other_options(
    run: Any, error_line: Any, table: Path, arguments: list[str], code: int, words: str
) -> None:
    (table / "m.csv").write_text("input,kernel\nraw/a.npy,box\n")
    result = run("apply", "--manifest", table / "m.csv", *arguments, code=code)
    assert words in error_line(result.stderr)


def test_a_bad_row_does_not_stop_the_rest(run: Any, table: Path) -> None:
    """A volume that is missing is no mistake in the table."""
    (table / "m.csv").write_text("input\nraw/a.npy\nraw/no.npy\nraw/b.npy\n")
    result = run(
        "apply", "--manifest", table / "m.csv", "-k", "box", "--out-dir", table / "out", code=3
    )
    assert "2 done, 1 failed" in result.stderr
    assert volumes(table / "out") == ["a.npy", "b.npy"]
    # next to the sum
    assert os.path.basename(result.stderr.strip().splitlines()[-2].split()[1]) == "no.npy"

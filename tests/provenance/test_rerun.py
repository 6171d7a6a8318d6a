"""`conv3d rerun`: the same bytes again from anywhere; what changed is named, and by how much."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli import read_volume, write_volume
from conv3d_cli.system.digests import file_digest

EXAMPLE = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"


def error(result: Any) -> str:
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return str(line)


@pytest.fixture
def desk(desk: Path, run: Any) -> Path:
    """The desk, with the scan convolved into out/o.nii.gz and its sidecar beside it."""
    Path("out").mkdir()
    run("apply", "a.nii.gz", "-k", "k.npy", "-o", "out/o.nii.gz", "--sidecar")
    return desk


def edit(path: str, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(Path(path).read_text())
    change(values["Conv3D"])
    Path(path).write_text(json.dumps(values))


# ---------------------------------------------------------------------------------------------------------------------
# The same again


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "o.nii.gz",
            [
                "-k",
                "gaussian:fwhm=4mm",
                "--mask",
                "mask.nii",
                "--coverage-out",
                "out/seen.nii.gz",
                "--history",
            ],
        ),
        ("o.hdr", ["-k", "k.npy", "--like", "scipy", "--dtype", "int16", "--scale", "auto"]),
        ("o.tif", ["-k", "sobel:axis=d", "--compression", "deflate", "--history"]),
        ("o.ome.tif", ["-k", "k.npy", "--flip", "--normalize", "--strides", "1,2,2", "--history"]),
        ("o.npy", ["--to-fwhm", "9mm"]),
        (
            "o.npy",
            [
                "--filters",
                "2",
                "--kernel-size",
                "3",
                "--seed",
                "3",
                "--kernel-initializer",
                "he_normal",
                "--no-bias",
            ],
        ),
        (
            "o.npy",
            ["-c", "c.toml", "--bias", "-0.5", "--missing", "-1.5", "--precision", "float64"],
        ),
        ("o.ome.zarr", ["-k", "box:size=3", "--levels", "1", "--chunks", "4,4,8", "--history"]),
    ],
)
def test_every_kind_of_run_comes_again(
    desk: Path, name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    Path("c.toml").write_text('kernel = "k.npy"\npadding = "full"\n')
    run("apply", "a.nii.gz", *options, "-o", f"out/{name}", "--sidecar", "--overwrite", "-j", "2")
    before = sorted(str(path) for path in desk.rglob("*"))
    result = run("rerun", "out/o.json", "-j", "1")
    assert result.stdout == f"the same: every byte of out/{name} was reproduced\n"
    assert result.stderr == ""
    monkeypatch.chdir("/")
    record = json.loads(run("rerun", desk / "out" / "o.json", "--json").stdout)
    assert (record["status"], record["notes"]) == ("same", [])
    assert sorted(str(path) for path in desk.rglob("*")) == before


def test_as_a_process_on_real_data(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path / "e.nii.gz")
    command = [sys.executable, "-m", "conv3d_cli"]
    apply = [
        "apply",
        "e.nii.gz",
        "-k",
        "gaussian:fwhm=6mm",
        "-o",
        "o.nii.gz",
        "--sidecar",
        "--history",
    ]
    subprocess.run([*command, *apply], cwd=tmp_path, check=True)
    done = subprocess.run(
        [*command, "rerun", tmp_path / "o.json"],
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "every byte" in done.stdout
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("e.nii.gz", "o.nii.gz", "o.json"):
        (tmp_path / name).rename(moved / name)
    subprocess.run([*command, "rerun", moved / "o.json", "-q"], check=True)


def test_the_result_is_kept_where_it_is_asked_for(desk: Path, run: Any) -> None:
    run("rerun", "out/o.json", "-o", "again.nii.gz")
    assert Path("again.nii.gz").read_bytes() == Path("out/o.nii.gz").read_bytes()
    assert "exists; pass --overwrite" in error(
        run("rerun", "out/o.json", "-o", "again.nii.gz", code=5)
    )
    run("rerun", "out/o.json", "-o", "again.nii.gz", "--overwrite")
    assert "writes the recorded format, .nii.gz" in error(
        run("rerun", "out/o.json", "-o", "again.nii", code=2)
    )
    Path("out/o.nii.gz").unlink()
    assert "(which no longer exists) was reproduced" in run("rerun", "out/o.json").stdout


# ---------------------------------------------------------------------------------------------------------------------
# What has changed


def test_a_changed_input_is_named(desk: Path, run: Any) -> None:
    volume = read_volume("a.nii.gz")
    volume.data[3, 4, 5] += 100
    write_volume("a.nii.gz", volume, overwrite=True)
    line = error(run("rerun", "out/o.json", code=4))
    assert "the volume a.nii.gz has changed" in line
    assert "--force" in line
    result = run("rerun", "out/o.json", "--force", "--json", code=7)
    assert "note: the volume a.nii.gz has changed" in result.stderr
    assert "out/o.nii.gz" in json.loads(result.stdout)["comparison"]["first"]
    # by how much: the kernel's largest weight times what was added
    largest = 100 * np.load("k.npy").max()
    assert json.loads(result.stdout)["comparison"]["largest_difference"] == pytest.approx(
        largest, rel=1e-5
    )
    assert "27 of 504 differ, most by" in error(result)


def test_a_changed_kernel_and_a_missing_file(desk: Path, run: Any) -> None:
    np.save("k.npy", np.load("k.npy") * 1.5)
    assert "the kernel k.npy has changed" in error(run("rerun", "out/o.json", code=4))
    result = run("rerun", "out/o.json", "--force", code=7)
    assert "the kernel of layer 1" in result.stderr
    Path("k.npy").unlink()
    assert "k.npy: no such file; out/o.json names it as its kernel" in error(
        run("rerun", "out/o.json", code=3)
    )


def test_an_output_that_was_changed(desk: Path, run: Any) -> None:
    volume = read_volume("out/o.nii.gz")
    volume.data[0, 0, 0] += 1
    write_volume("out/o.nii.gz", volume, overwrite=True)
    assert "out/o.nii.gz has changed since it was recorded; the rerun gives" in error(
        run("rerun", "out/o.json", code=7)
    )


def test_a_coverage_that_is_another(desk: Path, run: Any) -> None:
    run(
        "apply",
        "a.nii.gz",
        "-k",
        "k.npy",
        "--nan",
        "ignore",
        "--coverage-out",
        "out/c.nii",
        "-o",
        "out/p.nii",
        "--sidecar",
    )
    edit("out/p.json", lambda found: found["Outputs"][0].update(Digest="sha256:0"))
    assert "its coverage differs from the record" in error(run("rerun", "out/p.json", code=7))


def test_through_links(desk: Path, run: Any) -> None:
    (desk / "elsewhere" / "deep").mkdir(parents=True)
    (desk / "elsewhere" / "a.nii.gz").symlink_to(desk / "a.nii.gz")
    Path("link").symlink_to(desk / "elsewhere" / "deep")
    run("apply", "elsewhere/a.nii.gz", "-k", "box:size=3", "-o", "link/o.nii.gz", "--sidecar")
    assert json.loads(Path("link/o.json").read_text())["Sources"] == ["../a.nii.gz"]
    run("rerun", "link/o.json")
    run("rerun", "elsewhere/deep/o.json")


def test_other_bytes_around_the_same_voxels(desk: Path, run: Any) -> None:
    """As where another version of a library packs them."""
    write_volume("out/o.nii.gz", read_volume("out/o.nii.gz"), gz_level=3, overwrite=True)

    def record_it(found: dict[str, Any]) -> None:
        found["Outputs"][0]["Digest"] = file_digest("out/o.nii.gz")
        found["Versions"]["isal"] = "0.1"

    edit("out/o.json", record_it)
    result = run("rerun", "out/o.json")
    assert "equal: every voxel, the grid and the dtype" in result.stdout
    assert "it was made with isal 0.1, and this is" in result.stderr


def test_another_result(desk: Path, run: Any) -> None:
    edit(
        "out/o.json",
        lambda found: found.update(Command=found["Command"].replace(" -o", " --flip -o")),
    )
    line = error(run("rerun", "out/o.json", code=7))
    assert "voxels: " in line
    assert "most by" in line
    Path("out/o.nii.gz").unlink()
    line = error(run("rerun", "out/o.json", "-o", "kept.nii.gz", code=7))
    assert "no longer exists" in line
    assert Path("kept.nii.gz").exists()  # to look at


# ---------------------------------------------------------------------------------------------------------------------
# What is no sidecar


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        ("{", "it is not valid JSON"),
        ("[" * 100_000, "it is not valid JSON"),
        ("[1]", "it must contain an object, and contains a list"),
        ('{"RepetitionTime": 2}', "it has no key Conv3D"),
        ('{"Conv3D": 1}', "it has no key Conv3D"),
        (
            '{"Conv3D": {"RecordVersion": 99}}',
            "its record has version 99, and this version of conv3d reads only 1",
        ),
        ('{"Conv3D": {"RecordVersion": 1}}', "its record is damaged (KeyError: 'Command')"),
    ],
)
def test_what_is_no_sidecar(desk: Path, text: str | None, words: str, run: Any) -> None:
    if text is not None:
        Path("x.json").write_text(text)
    assert words in error(run("rerun", "x.json", code=3))


@pytest.mark.parametrize(
    "damage",
    [
        {"Command": 1},
        {"Command": "rm -rf /"},
        {"Command": "conv3d apply ../a.nii.gz"},
        {"Command": "conv3d apply --help"},
        {"Command": "conv3d apply a b -k box:size=3 -o c.nii.gz"},
        {"Command": "conv3d apply 'a -k box:size=3 -o c.nii.gz"},
        {"Command": "conv3d apply ../a.nii.gz -k k.npy --no-such -o o.nii.gz"},
        {"Command": "conv3d apply ../a.nii.gz -c /dev/zero -o o.nii.gz"},
        {"Command": "conv3d apply ../../etc/a.nii.gz -k box:size=3 -o o.nii.gz"},
        {"Inputs": [{"Role": "volume", "Path": "../../..", "Digest": "sha256:0"}]},
        {"Inputs": [{"Role": "volume"}]},
        {"Inputs": "text"},
        {"Inputs": [{"Role": "volume", "Path": "https://host/a.nii.gz", "Digest": "sha256:0"}]},
        {"Inputs": [{"Role": "volume", "Path": "../gone.nii.gz", "Digest": "sha256:0"}]},
        {"Outputs": []},
        {"Layers": [1]},
        {"Versions": {"numpy": 1}},
    ],
    ids=str,
)
def test_a_damaged_record(desk: Path, damage: dict[str, Any], run: Any) -> None:
    edit("out/o.json", lambda found: found.update(damage))
    assert "o.json" in error(run("rerun", "out/o.json", code=3))


def test_a_strangers_record_writes_nothing(desk: Path, run: Any) -> None:
    """Options that would write other files are not followed."""
    command = "conv3d apply ../a.nii.gz -k ../k.npy --coverage-out ../evil.nii --nan ignore --report ../evil.html -o /evil.nii.gz"

    def change(found: dict[str, Any]) -> None:
        found["Command"] = command

    edit("out/o.json", change)
    before = sorted(path.name for path in desk.rglob("*"))
    run("rerun", "out/o.json", code=7)
    assert sorted(path.name for path in desk.rglob("*")) == before
    assert not Path("/evil.nii.gz").exists()

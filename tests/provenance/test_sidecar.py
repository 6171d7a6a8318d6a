"""`apply --sidecar`: the same bytes from anywhere, everything that was read, and never an output without it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli import Volume, read_kernel, read_volume, write_volume
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.provenance.command import command_line, relative_to
from conv3d_cli.provenance.record import sidecar_name
from conv3d_cli.settings.options import Settings
from conv3d_cli.system.digests import array_digest, file_digest


def error(result: Any) -> str:
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.stderr
    return str(line)


def record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))["Conv3D"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scan of 3 x 1.5 x 1.5 mm, a mask, a kernel and a bias, to stand in."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    grid = Grid((3.0, 1.5, 1.5), "mm", affine_from_spacing((3.0, 1.5, 1.5), (0.0, 0.0, 0.0)))
    (tmp_path / "in").mkdir()
    write_volume(
        "in/a.nii.gz", Volume(rng.integers(0, 900, (7, 9, 8)).astype(np.int16), "zyx", grid)
    )
    write_volume("in/mask.nii", Volume(np.ones((7, 9, 8), np.uint8), "zyx", grid))
    np.save("in/k.npy", rng.random((3, 3, 3)))
    np.save("in/bias.npy", np.array([0.5]))
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------------
# What it says


def test_what_it_says_is_true(desk: Path, run: Any) -> None:
    run(
        "apply",
        "in/a.nii.gz",
        "-k",
        "gaussian:fwhm=6mm",
        "--boundary",
        "nearest",
        "--strides",
        "2,1,1",
        "-o",
        "o.nii.gz",
        "--sidecar",
    )
    values = json.loads(Path("o.json").read_text())
    found = values["Conv3D"]
    assert values["Sources"] == ["in/a.nii.gz"]
    assert values["GeneratedBy"][0]["Name"] == "conv3d"
    assert found["Inputs"] == [
        {"Role": "volume", "Path": "in/a.nii.gz", "Digest": file_digest("in/a.nii.gz")}
    ]
    digest = hashlib.sha256(Path("o.nii.gz").read_bytes()).hexdigest()  # as sha256sum says
    assert found["Outputs"] == [
        {"Role": "volume", "Path": "o.nii.gz", "Digest": f"sha256:{digest}"}
    ]
    (layer,) = found["Layers"]
    volume = read_volume("in/a.nii.gz")
    kernel = read_kernel("gaussian:fwhm=6mm", volume.grid)
    assert layer["KernelDigest"] == array_digest(kernel.weights)
    assert layer["KernelShape"] == list(kernel.weights.shape)
    np.testing.assert_allclose(layer["LengthsInVoxels"]["fwhm"], [2, 4, 4], rtol=1e-6)
    assert (layer["Boundary"], layer["Strides"]) == ("nearest", [2, 1, 1])
    out = read_volume("o.nii.gz")
    assert found["Output"]["Shape"] == list(out.data.shape) == [4, 9, 8]
    assert found["Output"]["SpacingUnit"] == "mm"
    np.testing.assert_allclose(found["Output"]["Spacing"], [6, 1.5, 1.5], rtol=1e-6)
    assert found["Versions"]["numpy"] == np.__version__
    # pads that give this output: ceil(7 / 2) = 4 voxels, ceil(9) and ceil(8)
    pads, shape = layer["Padding"], layer["KernelShape"]
    sizes = [
        (n + lo + hi - k) // s + 1
        for n, (lo, hi), k, s in zip((7, 9, 8), pads, shape, (2, 1, 1), strict=True)
    ]
    assert sizes == [4, 9, 8]


def test_everything_that_is_read_is_named(desk: Path, run: Any) -> None:
    Path("conf").mkdir()
    Path("conf/c.toml").write_text(
        'kernel = "../in/k.npy"\nbias = "../in/bias.npy"\nmask = "../in/mask.nii"\n'
    )
    Path("out").mkdir()
    run(
        "apply",
        "in/a.nii.gz",
        "-c",
        "conf/c.toml",
        "--coverage-out",
        "out/seen.nii",
        "-o",
        "out/o.nii.gz",
        "--sidecar",
    )
    found = record(Path("out/o.json"))
    paths = {
        "volume": "in/a.nii.gz",
        "mask": "in/mask.nii",
        "config": "conf/c.toml",
        "kernel": "in/k.npy",
        "bias": "in/bias.npy",
    }
    assert {entry["Role"]: entry["Path"] for entry in found["Inputs"]} == {
        r: f"../{p}" for r, p in paths.items()
    }
    assert {entry["Role"]: entry["Digest"] for entry in found["Inputs"]} == {
        r: file_digest(p) for r, p in paths.items()
    }
    assert {entry["Role"]: entry["Path"] for entry in found["Outputs"]} == {
        "coverage": "seen.nii",
        "volume": "o.nii.gz",
    }
    assert found["Layers"][0]["Kernel"] == "../in/k.npy"
    assert found["Missing"]["Mask"] == "../in/mask.nii"
    assert (
        found["Command"]
        == "conv3d apply ../in/a.nii.gz -c ../conf/c.toml --coverage-out seen.nii -o o.nii.gz"
    )


def test_the_command_can_be_typed_again_where_the_sidecar_is(desk: Path, run: Any) -> None:
    Path("out dir").mkdir()
    options = [
        "-k",
        "in/k.npy",
        "--bias",
        "in/bias.npy",
        "--flip",
        "--strides",
        "1,2,1",
        "--dtype",
        "int16",
        "--nan",
        "zero",
    ]
    run("apply", "in/a.nii.gz", *options, "--threads", "1", "-o", "out dir/o 1.nii.gz", "--sidecar")
    first = Path("out dir/o 1.nii.gz").read_bytes()
    command = record(Path("out dir/o 1.json"))["Command"]
    assert "--threads" not in command
    Path("out dir/o 1.nii.gz").unlink()
    command = command.replace("conv3d ", f"{sys.executable} -m conv3d_cli ", 1)
    subprocess.run(["bash", "-ec", command], cwd="out dir", check=True)
    assert Path("out dir/o 1.nii.gz").read_bytes() == first


def test_the_same_bytes_whatever_threads_memory_and_folder(
    desk: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    arguments = ["-k", "in/k.npy", "--mask", "in/mask.nii", "--sidecar", "--overwrite"]
    run("apply", "in/a.nii.gz", *arguments, "-o", "o.nii.gz", "-j", "1")
    first = Path("o.json").read_bytes()
    run(
        "apply",
        desk / "in/a.nii.gz",
        *arguments,
        "-o",
        desk / "o.nii.gz",
        "-j",
        "2",
        "--max-memory",
        "600M",
        "--verify",
        "5",
    )
    assert Path("o.json").read_bytes() == first
    monkeypatch.chdir("in")
    run(
        "apply",
        "a.nii.gz",
        "-k",
        "k.npy",
        "--mask",
        "mask.nii",
        "--sidecar",
        "--overwrite",
        "-o",
        "../o.nii.gz",
    )
    assert (desk / "o.json").read_bytes() == first
    elsewhere = desk / "copy"  # and the whole folder elsewhere
    shutil.copytree(desk / "in", elsewhere / "in")
    monkeypatch.chdir(elsewhere)
    run("apply", "in/a.nii.gz", *arguments, "-o", "o.nii.gz")
    assert Path("o.json").read_bytes() == first


def test_the_output_is_the_same_with_and_without(desk: Path, run: Any) -> None:
    run("apply", "in/a.nii.gz", "-k", "in/k.npy", "-o", "plain.nii.gz")
    run("apply", "in/a.nii.gz", "-k", "in/k.npy", "-o", "told.nii.gz", "--sidecar")
    assert Path("plain.nii.gz").read_bytes() == Path("told.nii.gz").read_bytes()


@pytest.mark.parametrize("name", ["o.nii", "o.hdr", "o.tif", "o.ome.tif", "o.npy", "o.ome.zarr"])
def test_every_format(desk: Path, name: str, run: Any) -> None:
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    run("apply", "in/a.nii.gz", "-k", "box:size=3", "-o", name, "--sidecar")
    outputs = record(Path("o.json"))["Outputs"]
    assert [entry["Path"] for entry in outputs] == (
        ["o.img", "o.hdr"] if name == "o.hdr" else [name]
    )
    assert all(entry["Digest"] == file_digest(entry["Path"]) for entry in outputs)
    Path("next").mkdir()
    run("apply", name, "-k", "box:size=3", "-o", "next/p.npy", "--sidecar")
    inputs = record(Path("next/p.json"))["Inputs"]
    assert [entry["Path"] for entry in inputs] == [
        f"../{path}" for path in (["o.hdr", "o.img"] if name == "o.hdr" else [name])
    ]
    assert [entry["Digest"] for entry in inputs] == [
        file_digest(entry["Path"][3:]) for entry in inputs
    ]


def test_an_array_in_a_store_and_a_cluster(desk: Path, run: Any) -> None:
    pytest.importorskip("zarr")
    pytest.importorskip("distributed")
    run("apply", "in/a.nii.gz", "-k", "identity", "-o", "a.ome.zarr", "--levels", "1")
    run("apply", "a.ome.zarr/0", "-k", "box:size=3", "-o", "here.ome.zarr", "--sidecar")
    run(
        "apply",
        "a.ome.zarr",
        "-k",
        "box:size=3",
        "-o",
        "there.ome.zarr",
        "--sidecar",
        "--scheduler",
        "local:1",
    )
    here, there = record(Path("here.json")), record(Path("there.json"))
    assert (
        here["Inputs"]
        == there["Inputs"]
        == [{"Role": "volume", "Path": "a.ome.zarr", "Digest": file_digest("a.ome.zarr")}]
    )
    assert (
        here["Outputs"][0]["Digest"]
        == there["Outputs"][0]["Digest"]
        == file_digest("there.ome.zarr")
    )


def test_a_stack_of_layers(desk: Path, run: Any) -> None:
    Path("s.toml").write_text(
        '[[layers]]\nkernel = "in/k.npy"\n[[layers]]\nkernel = "box:size=3"\npadding = "valid"\n'
    )
    run("apply", "in/a.nii.gz", "-c", "s.toml", "-o", "o.npy", "--sidecar")
    found = record(Path("o.json"))
    assert [layer["Kernel"] for layer in found["Layers"]] == ["in/k.npy", "box:size=3"]
    assert [entry["Role"] for entry in found["Inputs"]] == ["volume", "kernel", "config"]
    assert found["Output"]["Shape"] == [5, 7, 6]


def test_a_batch_and_side_by_side(desk: Path, run: Any) -> None:
    names = [f"in/s{n}.npy" for n in range(5)]
    for n, name in enumerate(names):
        np.save(name, np.full((4, 5, 6), n, np.float32))
    run("apply", *names, "-k", "box:size=3", "--out-dir", "one", "--sidecar", "--jobs", "1")
    run("apply", *names, "-k", "box:size=3", "--out-dir", "two", "--sidecar", "--jobs", "3")
    for n in range(5):
        assert Path(f"one/s{n}.json").read_bytes() == Path(f"two/s{n}.json").read_bytes()
        assert record(Path(f"two/s{n}.json"))["Outputs"][0]["Digest"] == file_digest(
            f"two/s{n}.npy"
        )


def test_real_data(desk: Path, run: Any) -> None:
    shutil.copy(Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz", "e.nii.gz")
    run(
        "apply",
        "e.nii.gz",
        "-k",
        "gaussian:fwhm=6mm",
        "--like",
        "spm",
        "-o",
        "o.nii.gz",
        "--sidecar",
    )
    found = record(Path("o.json"))
    assert found["Like"]["Tool"] == "spm"
    assert found["Layers"][0]["LengthsInVoxels"].keys() == {"fwhm"}
    assert found["Command"] == "conv3d apply e.nii.gz -k gaussian:fwhm=6mm --like spm -o o.nii.gz"
    assert found["Output"]["Shape"] == list(nibabel.load("o.nii.gz").shape[::-1])


def test_links_and_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "key123").write_text("")
    (tmp_path / "a.nii").symlink_to(tmp_path / "real" / "key123")
    rename = relative_to(str(tmp_path / "link"))
    assert rename(str(tmp_path / "a.nii")) == "../a.nii"  # not what it leads to
    assert rename(str(tmp_path / "link" / "key123")) == "key123"
    assert command_line("-a.nii", Settings(), relative_to("")) == "conv3d apply ./-a.nii"
    assert [sidecar_name(name) for name in ("x.NII.GZ", "x.ome.tif", "a.b/c.npy")] == [
        "x.json",
        "x.json",
        "a.b/c.json",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and what is left


def left(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "in" not in path.relative_to(folder).parts
    )


def test_an_existing_sidecar_is_not_replaced(desk: Path, run: Any) -> None:
    Path("o.json").write_text("mine")
    result = run("apply", "in/a.nii.gz", "-k", "box:size=3", "-o", "o.nii.gz", "--sidecar", code=5)
    assert "o.json: file exists; pass --overwrite" in error(result)
    run(
        "apply",
        "in/a.nii.gz",
        "-k",
        "box:size=3",
        "-o",
        "o.nii.gz",
        "--sidecar",
        "--dry-run",
        code=5,
    )
    assert left(desk) == ["o.json"]
    run("apply", "in/a.nii.gz", "-k", "box:size=3", "-o", "o.nii.gz", "--sidecar", "--overwrite")
    assert record(Path("o.json"))


def test_a_sidecar_that_cannot_be_written_leaves_no_output(
    desk: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """The disk is full at the very end; an output that was there stays."""
    Path("o.nii.gz").write_bytes(b"old")
    Path("o.json").write_bytes(b"old, too")
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    result = run(
        "apply",
        "in/a.nii.gz",
        "-k",
        "box:size=3",
        "-o",
        "o.nii.gz",
        "--sidecar",
        "--overwrite",
        code=1,
    )
    assert "o.json: no space left" in error(result)
    assert left(desk) == ["o.json", "o.nii.gz"]
    assert Path("o.nii.gz").read_bytes() + Path("o.json").read_bytes() == b"oldold, too"


def test_a_failed_run_leaves_nothing(desk: Path, run: Any) -> None:
    run(
        "apply",
        "in/a.nii.gz",
        "-k",
        "unsharp:sigma=2vox",
        "--dtype",
        "uint8",
        "--strict",
        "-o",
        "o.nii.gz",
        "--sidecar",
        code=4,
    )
    run(
        "apply",
        "in/a.nii.gz",
        "-k",
        "box:size=99",
        "--padding",
        "valid",
        "-o",
        "o.nii.gz",
        "--sidecar",
        code=4,
    )
    run("apply", "in/none.nii.gz", "-k", "box:size=3", "-o", "o.nii.gz", "--sidecar", code=3)
    assert left(desk) == []


def test_an_input_that_changes_meanwhile(
    desk: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    import conv3d_cli.pipeline.run as job

    run_job = job.run_job

    def change_it_then(*arguments: Any, **named: Any) -> Any:
        report = run_job(*arguments, **named)
        os.utime("in/a.nii.gz", ns=(0, 0))
        return report

    monkeypatch.setattr(job, "run_job", change_it_then)
    result = run("apply", "in/a.nii.gz", "-k", "box:size=3", "-o", "o.nii.gz", "--sidecar", code=3)
    assert "in/a.nii.gz was modified while it was read" in error(result)
    assert left(desk) == []


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["-", "-k", "box:size=3", "-o", "o.npy"], "a pipe has no name", 2),
        (["in/a.nii.gz", "-k", "box:size=3", "-o", "-"], "writes a file beside the output", 2),
        (["in/a.nii.gz", "-k", "box:size=3", "-o", "in/a.nii.gz", "--overwrite"], "which this output replaces", 2),
        (["https://host/a.zarr", "-k", "box:size=3", "-o", "o.npy"], "is a URL: name a local copy", 2),
        (["in/a.nii.gz", "-k", "box:size=3", "-o", "s3://b/a.zarr"], "has no local folder", 2),
        (["in/a.nii.gz", "in/b.tif", "-k", "box:size=3", "--out-dir", "out"], "would have the sidecar out/a.json", 2),
        (["in/a.nii.gz", "-k", "in/o.json", "-o", "in/o.nii.gz", "--overwrite"], "would replace in/o.json, which is read", 5),
    ],
)  # fmt: skip
def test_what_is_refused(desk: Path, arguments: list[str], words: str, code: int, run: Any) -> None:
    Path("in/o.json").write_text("[[[1.0]]]")
    arguments = [a.replace("in/b.tif", "in/a.npy") for a in arguments]
    np.save("in/a.npy", np.zeros((3, 3, 3)))
    assert words in error(run("apply", *arguments, "--sidecar", code=code))
    assert left(desk) == []

"""Inputs that are cut short or changed while they are read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import microscopes
import numpy as np
import pytest

from conv3d_cli.errors import FormatError, ShapeError
from conv3d_cli.formats import open_volume
from conv3d_cli.pipeline import run as pipeline_run
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job
from conv3d_cli.system import maps

pytestmark = pytest.mark.skipif(not maps._SUPPORTED, reason="the signal's layout on 64-bit Linux")
SHAPE = (16, 64, 64)


@pytest.fixture(params=["x.npy", "x.nii", "x.tif", "x.nrrd", "x.mrc"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    volume = np.random.default_rng(0).random(SHAPE, np.float32)
    np.save(tmp_path / "first.npy", volume)
    path = tmp_path / request.param
    if path.name != "first.npy":
        run_job(Job(str(tmp_path / "first.npy"), str(path), (Stage("identity"),)))
    return path


def job_of(source: Path, **options: Any) -> Job:
    return Job(str(source), str(source.with_name("o.npy")), (Stage("box:size=3"),), **options)


def changing(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Change the input after it was opened, and before the first voxel is read."""
    usual = pipeline_run.load_loops

    def load_and_change(*arguments: Any) -> None:
        usual(*arguments)
        change()

    monkeypatch.setattr(pipeline_run, "load_loops", load_and_change)


def test_an_input_that_is_cut_short_gives_one_error(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing(monkeypatch, lambda: os.truncate(source, 8192))
    with pytest.raises(FormatError, match=f"cannot read {source}: it became shorter while"):
        run_job(job_of(source))
    assert sorted(os.listdir(source.parent)) == sorted({"first.npy", source.name})
    monkeypatch.undo()
    with pytest.raises(FormatError):  # the file as it is now
        run_job(job_of(source))


def minc1(path: Path) -> None:
    """Slices of 64 x 64 voxels, each with its range."""
    netcdf = pytest.importorskip("scipy.io").netcdf_file
    with netcdf(path, "w") as file:
        for name, size in zip(("zspace", "yspace", "xspace"), SHAPE, strict=True):
            file.createDimension(name, size)
            axis = file.createVariable(name, "d", ())
            axis.step, axis.start, axis.spacing = 1.0, 0.0, b"regular__"
        image = file.createVariable("image", "h", ("zspace", "yspace", "xspace"))
        image.valid_range, image.signtype = (-32768.0, 32767.0), b"signed__"
        image[:] = np.random.default_rng(0).integers(-9, 9, SHAPE)
        for name, value in (("image-min", -1.0), ("image-max", 1.0)):
            file.createVariable(name, "d", ("zspace",))[:] = value


def nd2(path: Path) -> None:
    pytest.importorskip("nd2")
    values = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.uint16)
    microscopes.nd2(path, values[None, None, :, None])


@pytest.mark.parametrize(("name", "make"), [("a.mnc", minc1), ("a.nd2", nd2)])
def test_so_it_is_where_a_library_maps_the_file(
    name: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    make(path)
    run_job(job_of(path))
    (tmp_path / "o.npy").unlink()
    changing(monkeypatch, lambda: os.truncate(path, 16384))
    with pytest.raises(FormatError, match=f"cannot read {path}: it became shorter while"):
        run_job(job_of(path))
    assert os.listdir(tmp_path) == [name]


def test_a_fault_of_one_job_is_not_another_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.ones(SHAPE, np.float32))
    changing(monkeypatch, lambda: os.truncate(tmp_path / "a.npy", 4096))
    with open_volume(str(tmp_path / "b.npy")):
        with pytest.raises(FormatError):
            run_job(job_of(tmp_path / "a.npy"))
        run_job(job_of(tmp_path / "b.npy"))
    np.save(tmp_path / "a.npy", np.ones(SHAPE, np.float32))
    monkeypatch.undo()
    run_job(job_of(tmp_path / "a.npy", overwrite=True))


def test_elsewhere_the_process_ends_with_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(SHAPE, np.float32))
    script = """
import os
from conv3d_cli.formats import open_volume
with open_volume("x.npy") as reader:
    os.truncate("x.npy", 4096)
    print(reader.read(0, slice(8, 12), slice(0, 1)).sum())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: cannot read")


def test_a_fault_that_is_not_ours_ends_as_before(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(SHAPE, np.float32))
    (tmp_path / "y").write_bytes(bytes(8192))
    script = """
import mmap, os
from conv3d_cli.formats import open_volume
with open_volume("x.npy") as reader, open("y", "r+b") as file:
    other = mmap.mmap(file.fileno(), 0)
    os.truncate("y", 0)
    print(other[5000])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == -7


def rewritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"abcd")


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [rewritten, replaced, grown])
def test_an_input_that_changes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    source = tmp_path / "x.npy"
    np.save(source, np.ones(SHAPE, np.float32))
    changing(monkeypatch, lambda: change(source))
    words = "the input was modified while it was read; the output may be of both versions"
    assert words in run_job(job_of(source)).notes
    (tmp_path / "o.npy").unlink()
    with pytest.raises(ShapeError, match=words):
        run_job(job_of(source, strict=True))
    assert not (tmp_path / "o.npy").exists()
    monkeypatch.undo()
    assert run_job(job_of(source)).notes == []

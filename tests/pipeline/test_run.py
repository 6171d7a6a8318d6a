"""Jobs: which paths are refused, in which order, and with what; memory over a series."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from conv3d_cli.convolution.slabs import SlabInput, SlabSource
from conv3d_cli.engine import Plan
from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    MemoryLimitError,
    OutputExistsError,
    SpecError,
    WriteError,
)
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.flow import LayerReader
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import check_paths, run_job

IDENTITY = Stage(Kernel(np.ones((1, 1, 1))))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a volume, a link to it, a hard link to it, another volume."""
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", np.ones((2, 3, 4), np.float32))
    np.save("other.npy", np.zeros((2, 3, 4), np.float32))
    os.symlink("in.npy", "link.npy")
    os.link("in.npy", "hard.npy")
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "target", "error", "fact"),
    [
        ("in.npy", "in.npy", OutputExistsError, "it is the input"),
        ("in.npy", "./sub/../in.npy", OutputExistsError, "it is the input"),
        ("in.npy", "link.npy", OutputExistsError, "it is the input"),
        ("link.npy", "in.npy", OutputExistsError, "it is the input"),
        ("in.npy", "hard.npy", OutputExistsError, "it is the input"),
        ("in.npy", "other.npy", OutputExistsError, "file exists; pass overwrite=True"),
        ("in.npy", "sub", SpecError, "it names a folder"),
        ("in.npy", "out.jpg", SpecError, "JPEG, a flat picture is not written; write .nii.gz"),
        ("in.npy", "no/out.npy", WriteError, "does not exist; make it first"),
        ("missing.npy", "other.npy", OutputExistsError, "file exists"),
        ("missing.npy", "new.npy", FormatError, "cannot read missing.npy: no such file"),
        ("sub", "new.npy", FormatError, "cannot read sub: it is a folder"),
    ],
)
def test_paths_that_are_refused(
    folder: Path, source: str, target: str, error: type[Conv3DError], fact: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(error) as caught:
        run_job(Job(source, target, (IDENTITY,), threads=1))
    assert fact in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_missing_input_spares_the_output_it_would_overwrite(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"missing\.npy: no such file"):
        run_job(Job("missing.npy", "other.npy", (IDENTITY,), overwrite=True, threads=1))
    assert not np.load("other.npy").any()


@pytest.mark.parametrize("target", ["in.npy", "link.npy", "other.npy", "new.npy", "sub/new.npy"])
def test_paths_that_are_allowed_with_overwrite(folder: Path, target: str) -> None:
    run_job(
        Job("in.npy", target, (Stage(Kernel(np.full((1, 1, 1), 3.0))),), overwrite=True, threads=1)
    )
    assert (np.load(target) == 3).all()
    assert os.path.islink("link.npy")
    assert not [path.name for path in folder.rglob(".*")]


def test_pipes_have_no_paths(folder: Path) -> None:
    check_paths(Job("-", "new.npy", (IDENTITY,)))
    check_paths(Job("in.npy", "-", (IDENTITY,)))
    (folder / "-").write_bytes(b"a file of that name is not meant")
    check_paths(Job("in.npy", "-", (IDENTITY,)))


def test_memory_does_not_grow_with_the_number_of_volumes(tmp_path: Path) -> None:
    """A compressed series of 100 volumes, 26 MB unpacked, holds the planes of a few at a time."""
    series = np.zeros((64, 64, 32, 100), np.int16)
    nib.save(nib.Nifti1Image(series, np.eye(4)), tmp_path / "series.nii.gz")
    job = Job(str(tmp_path / "series.nii.gz"), str(tmp_path / "out.nii.gz"), (IDENTITY,), threads=1)
    run_job(replace(job, overwrite=True))  # compiles, which allocates too
    tracemalloc.start()
    try:
        run_job(replace(job, overwrite=True))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < series.nbytes / 2


def noting(read: Callable[..., SlabInput], seen: list[tuple[int, int]]) -> Any:
    """The method, which also appends its planes to a list."""

    def noted(self: Any, start: int, stop: int) -> SlabInput:
        seen.append((start, stop))
        return read(self, start, stop)

    return noted


@pytest.mark.parametrize("step", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("scarce", [False, True])
@pytest.mark.parametrize("source", ["x.nii.gz", "x.npy"])
def test_slabs_are_whole_steps_of_the_plan(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    layers: int,
    scarce: bool,
    source: str,
) -> None:
    """An algorithm may compute several planes together: they are the same ones whatever the slabs, in every layer."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).standard_normal((37, 6, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(x.transpose(), np.eye(4)), "x.nii.gz")
    np.save("x.npy", x)
    kernel = np.random.default_rng(2).standard_normal((3, 3, 3, 1, 1))
    stages = tuple(Stage(Kernel(kernel), padding="same") for _ in range(layers))
    job = Job(source, "expected.npy", stages, threads=2)
    run_job(job)

    monkeypatch.setattr(Plan, "depth_step", property(lambda self: step))
    seen: list[tuple[int, int]] = []
    for layer, method in ((SlabSource, "read"), (LayerReader, "_input")):
        monkeypatch.setattr(layer, method, noting(getattr(layer, method), seen))
    job = replace(job, target="y.npy")
    if scarce:
        job = replace(job, threads=1)  # with more, slabs are deeper, so that all have work
        with (
            pytest.raises(MemoryLimitError) as error,
            prepare_job(replace(job, max_memory=1 << 20)),
        ):
            pass
        assert (
            "one plane at a time needs" if step == 1 else f"{step} planes at a time need "
        ) in str(error.value)
        least = int(str(error.value).partition("max_memory='")[2].partition("M")[0])
        job = replace(job, max_memory=least << 20)
        monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", 1)
        monkeypatch.setattr("conv3d_cli.pipeline.blocking.DEEP_SLAB_BYTES", 1)
        monkeypatch.setattr("conv3d_cli.pipeline.blocking.LEAST_SLAB", 1)
    run_job(job)
    assert len(seen) >= (layers if not scarce else -(-37 // step))
    assert all(start % step == 0 and (stop % step == 0 or stop == 37) for start, stop in seen), seen
    assert (np.load("y.npy") == np.load("expected.npy")).all()


@pytest.mark.parametrize("kernel", ["box:size=3", "dense.npy"])
def test_planning_loads_no_machine_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    """`explain` and --dry-run know slabs and memory without it."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((90, 90, 90), np.float32))
    # by fft, whose loops call one another
    np.save("dense.npy", np.random.default_rng(0).standard_normal((15, 15, 15)))
    monkeypatch.setattr(
        "conv3d_cli.engine.machine_code._load", lambda codes: pytest.fail(f"loaded {codes}")
    )
    with prepare_job(Job("x.npy", "y.npy", (Stage(kernel),))) as prepared:
        assert prepared.memory

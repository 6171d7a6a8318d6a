"""The last operation computes straight into what is written, and nothing copies its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocking import in_boxes_of
from composed import CASES

from conv3d_cli import Volume, operate, write_volume
from conv3d_cli.convolution.copying import Copy
from conv3d_cli.network.operations.base import Operation
from conv3d_cli.network.operations.catalogue import OPERATIONS, PARTS
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage

FILLING = [
    (text, kernel)
    for name, cases in CASES.items()
    for text, kernel in cases
    if name != "deconvolve"  # it gives the planes of volumes that it has iterated
]
TEXTS = pytest.mark.parametrize(("text", "kernel"), FILLING, ids=[text for text, _ in FILLING])
X = np.random.default_rng(8).normal(100, 20, (21, 18, 26)).astype(np.float32)


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*_: Any, **__: Any) -> int:
        raise AssertionError("the output was copied")

    monkeypatch.setattr(Copy, "_results", copied)


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The arrays that operations fill."""
    arrays: list[np.ndarray] = []
    every = {c for kind in {**OPERATIONS, **PARTS}.values() for c in kind.__mro__}
    for kind in (c for c in every if issubclass(c, Operation) and "compute" in vars(c)):

        def noted(
            self: Operation, windows: Any, box: Any, out: Any, team: Any, own: Any = kind.compute
        ) -> None:
            arrays.append(out)
            own(self, windows, box, out, team)

        monkeypatch.setattr(kind, "compute", noted)
    return arrays


def in_mm(text: str) -> str:
    return text.replace("mm", "vox").replace(":orient=world", "")


@TEXTS
def test_the_array_that_is_returned(
    text: str, kernel: str | None, filled: list[np.ndarray], no_copies: None
) -> None:
    found = operate(X, in_mm(text), kernel)
    last = next(array for array in filled if np.may_share_memory(array, found))
    assert last.size == found.size  # all planes at once: they are in memory


@TEXTS
def test_the_blocks_of_a_file(
    text: str, kernel: str | None, tmp_path: Path, run: Any, no_copies: None
) -> None:
    np.save(tmp_path / "x.npy", X)
    line = ["apply", tmp_path / "x.npy", "--operation", in_mm(text)]
    run(*line, *(["-k", kernel] if kernel else []), "-o", tmp_path / "y.npy")
    expected = operate(X, in_mm(text), kernel)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_boxes(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, no_copies: None) -> None:
    pytest.importorskip("zarr")
    write_volume(str(tmp_path / "x.zarr"), Volume(X, "zyx"), chunks=(8, 8, 16))
    expected = operate(X, "tensor:of=hessian:sigma=1vox")
    monkeypatch.setattr("conv3d_cli.pipeline.prepare.choose_blocking", in_boxes_of(8, 8, 16))
    line = ["apply", tmp_path / "x.zarr", "--operation", "tensor:of=hessian:sigma=1vox"]
    run(*line, "-o", tmp_path / "y.zarr", "--chunks", "8,8,16")
    monkeypatch.undo()
    run("apply", tmp_path / "y.zarr", "-k", "identity", "-o", tmp_path / "y.npy")
    found = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1), expected)


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_another_dtype_is_rounded_once(dtype: str, tmp_path: Path, run: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    line = ["apply", tmp_path / "x.npy", "--operation", "local:statistic=variance:size=3"]
    run(*line, "--dtype", dtype, "-o", tmp_path / "y.npy")
    expected = operate(X, "local:statistic=variance:size=3")
    if dtype == "uint8":
        assert (expected > 255).any()
        expected = np.clip(np.rint(expected), 0, 255)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected.astype(dtype))


@pytest.mark.parametrize("text", ["local:statistic=std:size=3", "tensor:of=hessian:sigma=1vox"])
def test_arrays_of_any_strides(text: str) -> None:
    """Views are read where they lie, also backwards and from records."""
    expected = operate(X, text)
    for axes in ((0,), (1,), (2,), (0, 1, 2)):
        backwards = np.flip(np.flip(X, axes).copy(), axes)
        np.testing.assert_array_equal(operate(backwards, text), expected)
    records = np.zeros(X.shape, [("label", np.uint8), ("value", np.float32)])
    records["value"] = X
    np.testing.assert_array_equal(operate(records["value"], text), expected)


@pytest.mark.parametrize("text", ["local:statistic=std:size=3", "tensor:of=hessian:sigma=1vox"])
def test_channels_that_lie_apart(text: str) -> None:
    """Numbers of a row then have gaps, which not every operation can fill."""
    both = np.stack([X, X[::-1] * 2])
    found = operate(both[None], text, data_format="channels_first")[0]
    for number, own in enumerate(both):
        expected = np.moveaxis(operate(own[..., None], text), -1, 0)
        count = len(expected)
        np.testing.assert_array_equal(found[number * count : (number + 1) * count], expected)


def test_halos_are_not_copied_from_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are views of the caller's array, and so is what a convolution beside them reads."""
    seen: list[bool] = []
    for kind in (PARTS["NormalizedCorrelation"], PARTS["LocalStatistics"]):

        def noted(
            self: Operation, windows: Any, box: Any, out: Any, team: Any, own: Any = kind.compute
        ) -> None:
            seen.append(np.may_share_memory(windows[0].voxels, X))
            own(self, windows, box, out, team)

        monkeypatch.setattr(kind, "compute", noted)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.IN_MEMORY_BYTES", 1)
    for text, kernel in (("match", "expr:d+h:radius=1vox"), ("local:size=5", None)):
        operate(X, text, kernel)
    assert len(seen) > 2
    assert all(seen)


def test_slabs_become_thinner_where_memory_is_scarce(tmp_path: Path) -> None:
    """Planes that an operation would compute together are fewer then, and the output is the same."""
    shape = (96, 200, 200)
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    depths, together, needed = [], [], []
    for ceiling in (None, 300 << 20, 264 << 20):
        job = Job(
            str(tmp_path / "x.npy"),
            str(tmp_path / "y.npy"),
            (Stage("identity"),),
            operation="tensor:sigma=1vox:window=2vox",
            max_memory=ceiling,
            threads=1,
        )
        with prepare_job(job) as prepared:
            depths.append(prepared.stream_plan.slab_depth)
            together.append(prepared.graph.most_together)
            needed.append(prepared.memory)
            assert ceiling is None or prepared.memory <= ceiling
    assert depths[0] > depths[1] > depths[2]
    assert together[0] > together[1]
    assert needed[0] > needed[1] > needed[2]

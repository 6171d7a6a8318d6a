"""A batch of no volumes gives a batch of no outputs, as in Keras; a volume of no voxels is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((0, 5, 6, 7, 2), ["-k", "layer.npy"], (0, 3, 4, 5, 4)),
        ((2, 0, 5, 6, 7, 2), ["-k", "layer.npy", "--activation", "relu"], (2, 0, 3, 4, 5, 4)),
        ((0, 5, 6, 7, 2), ["-k", "layer.npy", "--padding", "same", "--strides", "2"], (0, 3, 3, 4, 4)),
        (
            (0, 2, 5, 6, 7),
            ["-k", "layer.npy", "--data-format", "channels_first"],
            (0, 4, 3, 4, 5),
        ),
        ((0, 5, 6, 7, 2), ["-k", "box:size=3", "--nan", "ignore"], (0, 5, 6, 7, 2)),
        ((0, 5, 6, 7, 2), ["-c", "stack.toml"], (0, 5, 6, 7, 2)),
    ],
)  # fmt: skip
def test_an_empty_batch_gives_an_empty_output(
    shape: tuple[int, ...],
    options: list[str],
    expected: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("batch.npy", np.zeros(shape, np.float32))
    np.save("layer.npy", np.ones((3, 3, 3, 2, 4), np.float32))
    Path("stack.toml").write_text('[[layers]]\nkernel = "box:size=3"\n' * 2)
    run("apply", "batch.npy", *options, "-o", "out.npy")
    output = np.load("out.npy")
    assert output.shape == expected
    assert output.dtype == np.float32


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif", ".nrrd", ".mha", ".mif", ".mgz"])
def test_other_formats_hold_no_empty_volume(
    suffix: str, tmp_path: Path, run: Any, error_line: Any
) -> None:
    np.save(tmp_path / "batch.npy", np.zeros((0, 5, 6, 7, 1), np.float32))
    out = tmp_path / f"out{suffix}"
    result = run("apply", tmp_path / "batch.npy", "-k", "box:size=3", "-o", out, code=1)
    assert "holds no empty volume, shape (0, 5, 6, 7, 1)" in error_line(result.stderr)
    assert not out.exists()


def test_a_volume_without_voxels_is_refused(tmp_path: Path, run: Any, error_line: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 0, 6, 7, 2), np.float32))
    result = run("apply", tmp_path / "x.npy", "-k", "box:size=3", "-o", tmp_path / "y.npy", code=4)
    assert "the volume has no voxels" in error_line(result.stderr)

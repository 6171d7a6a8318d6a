"""Operations made of convolutions: every one in every way that a job can run, held to its definition."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed import CASES, words

from conv3d_cli import Grid, Volume, operate, read_volume, write_volume
from conv3d_cli.pipeline.operations import SUMMARIES, find_operation

EVERY = [(text, kernel) for cases in CASES.values() for text, kernel in cases]
EVERY_CASE = pytest.mark.parametrize(("text", "kernel"), EVERY, ids=[text for text, _ in EVERY])


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    data = (100 + 20 * rng.standard_normal((21, 18, 26))).astype(np.float32)
    data[6:15, 5:13, 8:20] += 300
    write_volume(str(tmp_path / "in.nii"), Volume(data, "zyx", Grid((3.0, 1.5, 2.0), "mm")))
    mask = np.zeros((21, 18, 26), np.uint8)
    mask[4:17, 3:15, 5:22] = 1
    write_volume(str(tmp_path / "mask.nii"), Volume(mask, "zyx", Grid((3.0, 1.5, 2.0), "mm")))
    return tmp_path / "in.nii"


def channels_last(volume: Volume) -> Any:
    """Voxels (d, h, w) or (d, h, w, c), whatever the order in which they are stored."""
    place = volume.axes.find("c")
    return np.squeeze(volume.data if place < 0 else np.moveaxis(volume.data, place, -1))


def arguments(text: str, kernel: str | None) -> list[str]:
    return ["--operation", text, *(["-k", kernel] if kernel else [])]


@pytest.mark.parametrize("name", SUMMARIES)
def test_is_documented(name: str) -> None:
    operation = find_operation(name)
    assert operation.name == name
    assert name in CASES
    text = inspect.getdoc(operation.function) or ""
    assert "\nconv3d " in text, "an example"
    for parameter in operation.described.parameters:
        assert f"{parameter.name} : " in text or f", {parameter.name}" in text, parameter.name
    assert len(SUMMARIES[name]) <= 66
    assert SUMMARIES[name].endswith(".")


@EVERY_CASE
def test_same_bits_for_threads_slabs_and_boxes(
    text: str, kernel: str | None, volume: Path, tmp_path: Path, run: Any
) -> None:
    given = ["apply", volume, *arguments(text, kernel)]
    run(*given, "-o", tmp_path / "a.npy", "--verify", "60", "--threads", "1")
    run(*given, "-o", tmp_path / "b.npy", "--threads", "2", "--max-memory", "400M")
    first, second = ((tmp_path / name).read_bytes() for name in ("a.npy", "b.npy"))
    assert first == second


@pytest.mark.filterwarnings("ignore:snr='gcv' found")
@EVERY_CASE
def test_slabs_change_no_bit(
    text: str, kernel: str | None, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = operate(read_volume(str(volume)), text, kernel).data
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.LEAST_SLAB", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.DEEP_SLAB_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.IN_MEMORY_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.network.operations.gaussian.LEAST_PLANES", 2)
    monkeypatch.setattr("conv3d_cli.network.operations.gaussian.SLAB_VOXELS", 1)
    monkeypatch.setattr("conv3d_cli.network.operations.gaussian.WINDOW_VOXELS", 1)
    monkeypatch.setattr("conv3d_cli.network.operations.tensors.PRODUCT_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.network.operations.tensors.LEAST_ROWS", 2)
    np.testing.assert_array_equal(operate(read_volume(str(volume)), text, kernel).data, found)


@EVERY_CASE
def test_a_mask_and_a_sidecar(
    text: str, kernel: str | None, volume: Path, tmp_path: Path, run: Any
) -> None:
    out = tmp_path / "out.nii"
    mask = tmp_path / "mask.nii"
    line = ["apply", volume, *arguments(text, kernel), "--mask", mask, "-o", out, "--sidecar"]
    run(*line, "--verify", "60")
    inside = read_volume(str(mask)).data > 0
    result = read_volume(str(out))
    values = channels_last(result).reshape(*inside.shape, -1)
    assert (values[~inside] == 0).all()
    assert values[inside].any()
    assert result.grid.spacing == (3.0, 1.5, 2.0)
    told = run("rerun", tmp_path / "out.json", "-o", tmp_path / "again.nii")
    assert "every byte" in told.output


@EVERY_CASE
def test_a_command_is_apply_with_the_operation(
    text: str, kernel: str | None, volume: Path, tmp_path: Path, run: Any
) -> None:
    run("apply", volume, *arguments(text, kernel), "-o", tmp_path / "a.nii")
    run(*words(text, kernel), volume, "-o", tmp_path / "b.nii")
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()


@pytest.mark.filterwarnings("ignore:snr='gcv' found")
@EVERY_CASE
def test_arrays_in_memory(
    text: str, kernel: str | None, volume: Path, tmp_path: Path, run: Any
) -> None:
    run("apply", volume, *arguments(text, kernel), "-o", tmp_path / "a.nii")
    found = operate(read_volume(str(volume)), text, kernel)
    written = read_volume(str(tmp_path / "a.nii"))
    assert found.grid.spacing == written.grid.spacing
    np.testing.assert_array_equal(channels_last(found), channels_last(written))


def test_what_is_refused(volume: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out.nii"

    def refused(*given: Any) -> str:
        result = run("apply", volume, *given, "-o", out, code=2)
        assert not out.exists()
        return str(result.output)

    assert "did you mean 'local'" in refused("--operation", "locl:size=3")
    assert "has no parameter 'sze'" in refused("--operation", "local:sze=3")
    assert "--strides is for a convolution" in refused(
        "--operation", "local:size=3", "--strides", 2
    )
    assert "does not take it" in refused("--operation", "local:size=3", "-k", "box:size=3")
    assert "does not go with --like" in refused("--operation", "local:size=3", "--like", "fsl")


PARAMETERS = [
    (name, parameter.name)
    for name in SUMMARIES
    for parameter in find_operation(name).described.parameters
]


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids="=".join)
def test_a_wrong_value_is_one_line(
    name: str, parameter: str, volume: Path, tmp_path: Path, run: Any
) -> None:
    text, kernel = CASES[name][0]
    kept = [p for p in text.split(":")[1:] if not p.startswith(f"{parameter}=")]
    wrong = ":".join([name, *kept, f"{parameter}=no-such"])
    out = tmp_path / "out.nii"
    result = run("apply", volume, *arguments(wrong, kernel), "-o", out, code=2)
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert f"--{parameter.replace('_', '-')}" in result.output
    assert not out.exists()


def test_a_missing_value_beyond_float32_is_missing(tmp_path: Path, run: Any) -> None:
    voxels = np.ones((5, 6, 7))
    voxels[2, 3, 4] = 1.797e308
    np.save(tmp_path / "x.npy", voxels)
    asked = (
        "local",
        tmp_path / "x.npy",
        "--statistic",
        "mean",
        "--size",
        "3",
        "--missing=1.797e308",
    )
    run(*asked, "-o", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.ones((5, 6, 7)))

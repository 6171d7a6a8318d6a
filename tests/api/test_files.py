"""convolve_file(): the command's options, results and memory, without the command."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli import Conv3DError, JobReport, Kernel, convolve_file
from conv3d_cli.errors import (
    DifferenceError,
    FormatError,
    MemoryLimitError,
    OutputExistsError,
    ShapeError,
    SpecError,
    UnknownNameError,
)
from conv3d_cli.settings.option import Place
from conv3d_cli.settings.options import OPTIONS


def test_arguments_are_those_of_the_table() -> None:
    """All options that shape a result or configure a job, with underscores, and two that check it."""
    parameters = inspect.signature(convolve_file).parameters
    assert list(parameters)[:5] == ["source", "target", "kernel", "kernel_layout", "progress"]
    expected = {
        o.name
        for o in OPTIONS
        if o.section and (o.place is not Place.COMMAND or o.shapes) and o.name != "kernel"
    }
    assert set(list(parameters)[5:]) == expected | {"verify", "sidecar"}
    text = inspect.getdoc(convolve_file) or ""
    for name in expected:
        assert f"\n{name} : " in text
    assert max(map(len, text.splitlines())) <= 100
    assert "--" not in text


def test_the_file_is_that_of_the_command(desk: Path, run: Any) -> None:
    run("apply", "a.nii.gz", "-k", "gaussian:fwhm=6mm", "--mask", "mask.nii", "--like", "fsl",
        "--strides", "2,1,1", "--dtype", "int16", "--history", "-o", "command.nii.gz")  # fmt: skip
    report = convolve_file(
        "a.nii.gz", "python.nii.gz", "gaussian:fwhm=6mm", mask=Path("mask.nii"), like="fsl",
        strides=(2, 1, 1), dtype=np.int16, history=True,
    )  # fmt: skip
    assert Path("python.nii.gz").read_bytes() == Path("command.nii.gz").read_bytes()
    assert isinstance(report, JobReport)
    assert (report.source, report.target) == ("a.nii.gz", "python.nii.gz")
    assert report.voxels == 4 * 9 * 8
    assert report.seconds > 0


def test_its_defaults_are_those_of_a_filter(desk: Path) -> None:
    convolve_file("a.nii.gz", "o.nii", np.load("k.npy"))
    values = nibabel.load("a.nii.gz").get_fdata()  # (x, y, z)
    expected = ndimage.correlate(values, np.load("k.npy").T, mode="reflect")
    assert np.allclose(nibabel.load("o.nii").get_fdata(), expected, rtol=1e-5)


def test_kernels_in_memory(desk: Path) -> None:
    weights = np.load("k.npy")
    convolve_file("a.nii.gz", "file.nii", "k.npy", flip=True)
    for number, kernel in enumerate((weights, Kernel(weights), weights.tolist(), Path("k.npy"))):
        convolve_file("a.nii.gz", f"{number}.nii", kernel, flip=True)
        assert Path(f"{number}.nii").read_bytes() == Path("file.nii").read_bytes()
    layer = np.random.default_rng(0).normal(size=(2, 1, 3, 3, 3))
    convolve_file("a.nii.gz", "torch.npy", layer, kernel_layout="torch")
    convolve_file("a.nii.gz", "keras.npy", layer.transpose(2, 3, 4, 1, 0))
    assert np.array_equal(np.load("torch.npy"), np.load("keras.npy"))


def test_notes_progress_and_checks(desk: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = convolve_file(
        "a.nii.gz", "o.npy", "box:size=3", dtype="uint8", verify=5, sidecar=True,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (7 * 9 * 8, 7 * 9 * 8)
    assert report.clipped > 0
    assert any("did not fit uint8" in note for note in report.notes)
    assert json.loads(Path("o.json").read_text())
    matched = convolve_file("a.nii.gz", "m.nii", to_fwhm="9mm")
    assert any("FWHM" in note for note in matched.notes)


def test_paths_are_text_bytes_or_objects(desk: Path) -> None:
    for number, kind in enumerate((str, os.fsencode, Path)):
        convolve_file(kind("a.nii.gz"), kind(f"{number}.nii"), "box:size=3")
        assert Path(f"{number}.nii").read_bytes() == Path("0.nii").read_bytes()


def test_a_config_and_a_penalty(desk: Path) -> None:
    Path("c.toml").write_text('kernel = "box:size=3"\nkernel_regularizer = "l1"\nstrides = 2\n')
    report = convolve_file("a.nii.gz", "o.npy", config="c.toml")
    assert np.load("o.npy").shape == (4, 5, 4)
    assert report.losses["kernel"] == pytest.approx(0.01)


REFUSED: list[tuple[dict[str, Any], type[Conv3DError], str]] = [
    ({}, SpecError, "no kernel: pass one, for example 'gaussian:fwhm=6mm'"),
    ({"kernel": "box", "strides": "2"}, SpecError, "strides must be one whole number or three"),
    ({"kernel": "box", "threads": 0}, SpecError, "threads must be a whole number from 1 to 4096"),
    ({"kernel": "box", "overwrite": 1}, SpecError, "overwrite must be true or false"),
    ({"kernel": "box", "stride": 2}, UnknownNameError, "unknown option 'stride'; did you mean"),
    ({"kernel": "box", "fwhm": "6mm"}, SpecError, "kernel= and fwhm= each choose the kernel"),
    ({"kernel": "box", "nan": "ignor"}, UnknownNameError, "unknown nan 'ignor'; did you mean 'ignore'"),
    ({"kernel": "box", "dtype": object()}, SpecError, "dtype must be a name such as 'int16'"),
    ({"kernel": "box", "dtype": complex}, SpecError, "received 'complex128'"),
    ({"kernel": "box", "mask_mode": "keep"}, SpecError, "need a mask: pass mask="),
    ({"kernel": "box", "mask": np.ones(3)}, SpecError, "mask must be a file's name"),
    ({"kernel": "box", "chunks": 8}, SpecError, "chunks= is for NIfTI-Zarr, zipped OME-Zarr and OME-Zarr"),
    ({"kernel": "box", "to_fwhm": "9mm"}, SpecError, "to_fwhm= chooses the kernel"),
    ({"kernel": "box", "max_memory": "1M"}, MemoryLimitError, "pass max_memory='"),
    ({"kernel": "box", "kernel_layout": "torch"}, SpecError, "kernel_layout='torch' is for arrays"),
    ({"kernel": np.ones((3, 3, 3)), "sidecar": True}, SpecError, "a kernel in memory has no name"),
    ({"kernel": np.ones((3, 3, 3)), "history": True}, SpecError, "a kernel in memory has no name"),
    ({"kernel": "box:size=2", "mask": "mask.nii"}, ShapeError, "pass mask_mode='extend'"),
    ({"kernel": "sobel:axis=d", "nan": "ignore"}, ShapeError, "use nan='zero'"),
    ({"kernel": "box", "strides": 2, "dilation_rate": 2}, SpecError, "allow_strided_dilation=True"),
    ({"kernel": np.full((3, 3, 3), 1e39)}, SpecError, "precision='float64' and dtype='float64'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED)
def test_errors_speak_python(
    arguments: dict[str, Any], error: type[Conv3DError], words: str, desk: Path
) -> None:
    before = sorted(desk.iterdir())
    with pytest.raises(error) as caught:
        convolve_file("a.nii.gz", "o.nii", **arguments)
    message = str(caught.value)
    assert words in message
    assert "--" not in message
    assert " -k" not in message
    assert sorted(desk.iterdir()) == before


def test_files_that_stand_in_the_way(desk: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        convolve_file("no.nii", "o.nii", "box")
    convolve_file("a.nii.gz", "o.nii", "box")
    with pytest.raises(OutputExistsError, match="pass overwrite=True to replace it"):
        convolve_file("a.nii.gz", "o.nii", "box")
    convolve_file("a.nii.gz", "o.nii", "box", overwrite=True)
    with pytest.raises(OutputExistsError, match=r"it is the input.*or pass overwrite=True"):
        convolve_file("o.nii", "o.nii", "box")


def test_a_difference_is_an_error(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conv3d_cli.analysis import verify

    def differs(*_: Any) -> None:
        raise DifferenceError("one voxel differs")

    monkeypatch.setattr(verify, "verify_output", differs)
    with pytest.raises(DifferenceError, match="one voxel differs"):
        convolve_file("a.nii.gz", "o.nii", "box", verify=3)


def test_it_runs_without_click_and_rich(desk: Path) -> None:
    program = """
import sys
from conv3d_cli import convolve_file
convolve_file("a.nii.gz", "o.nii", "box")
assert not {"click", "rich"} & set(sys.modules), sorted({"click", "rich"} & set(sys.modules))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A volume of 256 MB in a process that may grow by far less."""
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (1024, 512, 512)).flush()
    program = f"""
import re
from conv3d_cli import convolve_file
convolve_file({str(path)!r}, {str(tmp_path / "y.npy")!r}, "box:size=1", dtype="uint8", max_memory="400M")
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert int(ran.stdout) < 400 << 10

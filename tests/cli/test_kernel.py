"""`conv3d kernel list|show|make`, on the group itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

from conv3d_cli import Volume, write_volume
from conv3d_cli.cli import drawing
from conv3d_cli.cli.kernel import kernel, kernel_facts
from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    OutputExistsError,
    ShapeError,
    SpecError,
    UnknownNameError,
)
from conv3d_cli.kernels import BUILTIN_KERNELS, read_kernel, write_kernel
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.kernel import Kernel

# by name, since the group of the same name hides the module in its package


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(kernel, [str(a) for a in arguments])
    assert not result.stderr or result.exit_code
    return result


def output_of(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


def error_of(*arguments: str | Path) -> Conv3DError:
    result = run(*arguments)
    assert isinstance(result.exception, Conv3DError), result.output
    assert not result.stdout
    return result.exception


@pytest.fixture
def like(tmp_path: Path) -> str:
    """The name of a volume with 3 x 1.5 x 1.5 mm voxels."""
    path = str(tmp_path / "brain.nii")
    spacing = (3.0, 1.5, 1.5)
    write_volume(
        path,
        Volume(np.zeros((2, 2, 2), "f4"), "zyx", Grid(spacing, "mm", affine_from_spacing(spacing))),
    )
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Help


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["make"]])
def test_help_begins_with_usual_lines(command: list[str]) -> None:
    text = output_of(*command, "--help")
    assert "  conv3d kernel " in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_help_is_fast() -> None:
    code = (
        "import sys; from conv3d_cli.cli.kernel import kernel; kernel(['show', '--help'], standalone_mode=False);"
        "sys.exit([m for m in ('numpy', 'numba', 'nibabel', 'tifffile', 'rich') if m in sys.modules] or None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if (
        "conv3d_cli.cli" not in result.stderr
    ):  # the package's own __init__ is another test's business
        assert result.returncode == 0, result.stderr


def test_the_lines_in_the_help_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, like: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite(
        "psf.tif", np.arange(1, 9, dtype="f4").reshape(2, 2, 2), imagej=True, resolution=(1 / 1.5, 1 / 1.5),
        metadata={"axes": "ZYX", "spacing": 3.0, "unit": "mm"},
    )  # fmt: skip
    lines = [
        line.split()[2:]
        for command in ([], ["list"], ["show"], ["make"])
        for line in output_of(*command, "--help").splitlines()
        if line.strip().startswith("conv3d kernel ")
    ]
    assert len(lines) >= 8
    for arguments in lines:
        words = [like if word == "brain.nii.gz" else word for word in arguments]
        if words[-1].endswith(".png") and importlib.util.find_spec("matplotlib") is None:
            continue
        output_of(*words, *(["--overwrite"] if words[0] == "make" else []))


# ---------------------------------------------------------------------------------------------------------------------
# list


def test_list_shows_every_builtin() -> None:
    text = output_of("list")
    for function in BUILTIN_KERNELS:
        assert f"\n{function.__name__} " in "\n" + text
        assert (function.__doc__ or "").splitlines()[0] in text
    assert "[neighbours=6|18|26]" in text
    assert "vox nm um mm cm m" in text
    assert text.isascii() or "·" in text
    assert "\x1b" not in text


# ---------------------------------------------------------------------------------------------------------------------
# show


def test_show_a_gaussian() -> None:
    text = output_of("show", "gaussian:fwhm=6mm", "--spacing", "3,1.5,1.5mm")
    assert "shape:           7 x 15 x 15 float64" in text
    assert "sum:             1 (" in text
    assert "FWHM:            2, 4, 4 voxels = 6, 6, 6 mm" in text
    assert "separable rank:  1 " in text
    assert "symmetric along: depth, height, width" in text
    assert "d = height down, width to the right; h = depth down" in text
    assert "numbers: offset from the centre in mm" in text
    lines = text.splitlines()
    slices, profiles = lines.index("") + 1, lines.index("", lines.index("") + 1) + 1
    assert lines[slices + 1].split()[0] == "-10.5"
    assert lines[slices + 1].split()[2::2] == ["-9", "-9"]
    assert lines[profiles].split() == ["along", "d", "along", "h", "along", "w"]
    assert [line.split()[0] for line in lines[profiles + 1 : profiles + 5 : 3]] == ["0.47", "0"]
    ends = ["-9", "0", "9", *["-10.5", "0", "10.5"] * 2]
    assert lines[profiles + 5].split() == ends
    assert "\x1b" not in text


def test_show_like_a_volume(like: str) -> None:
    by_volume = output_of("show", "gaussian:fwhm=6mm", "--like", like)
    assert by_volume == output_of("show", "gaussian:fwhm=6mm", "--spacing", "3,1.5,1.5mm")


def test_show_like_a_file_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "volume.npy", np.zeros((2, 2, 2)))
    assert "13 x 13 x 13" in output_of(
        "show", "gaussian:sigma=1.5vox", "--like", tmp_path / "volume.npy"
    )
    error = error_of("show", "gaussian:sigma=1.5mm", "--like", tmp_path / "volume.npy")
    assert isinstance(error, ShapeError)
    assert "no voxel spacing" in str(error)


def test_show_json() -> None:
    facts = json.loads(output_of("show", "gaussian:fwhm=6mm", "--spacing", "3,1.5,1.5mm", "--json"))
    expected = read_kernel("gaussian:fwhm=6mm", Grid((3.0, 1.5, 1.5), "mm"))
    assert facts["kernel"] == "gaussian:fwhm=6mm"
    assert facts["shape"] == list(expected.weights.shape)
    assert facts["dtype"] == "float64"
    assert facts["sum"] == expected.sum
    assert facts["absolute_sum"] == pytest.approx(1)
    assert (facts["min"], facts["max"]) == (expected.weights.min(), expected.weights.max())
    assert facts["centre"] == [3, 7, 7]
    assert facts["separable_rank"] == 1
    assert facts["symmetric"] == [True, True, True]
    assert facts["fwhm_voxels"] == list(expected.fwhm())
    assert facts["fwhm"] == pytest.approx([6, 6, 6], rel=0.02)
    assert (facts["spacing"], facts["unit"], facts["bias"]) == ([3, 1.5, 1.5], "mm", None)


def test_show_without_a_spacing() -> None:
    facts = json.loads(output_of("show", "sobel:axis=w", "--json"))
    assert (facts["spacing"], facts["unit"], facts["fwhm"]) == (None, None, None)
    assert facts["fwhm_voxels"] == [None, None, None]
    assert facts["symmetric"] == [True, True, False]
    text = output_of("show", "sobel:axis=w")
    assert "FWHM:            none" in text
    assert "symmetric along: depth, height\n" in text


def test_show_negative_weights() -> None:
    lines = output_of("show", "sobel:axis=w").splitlines()
    assert lines[lines.index("") + 1 :][:5] == [
        "d = 1      h = 1      w = 1",
        "-1 #-  ##  -1 #-  ##  -1", " 0 @-  @@   0 @-  @@   0", " 1 #-  ##   1 #-  ##   1",
        "   -1   1     -1   1     -1   1",
    ]  # fmt: skip
    assert "numbers: offset from the centre in vox" in lines[-3]
    assert "'-' after a character: negative" in output_of("show", "laplacian")
    assert "negative" not in output_of("show", "box").partition("d = ")[2]


def test_show_a_layer_with_a_bias(tmp_path: Path, rng: np.random.Generator) -> None:
    write_kernel(tmp_path / "k.npz", Kernel(rng.normal(size=(3, 3, 3, 2, 9)), bias=np.arange(9.0)))
    text = output_of("show", tmp_path / "k.npz")
    assert (
        "3 x 3 x 3 x 2 x 9 float64 (depth x height x width x in_channels/groups x filters)" in text
    )
    assert "bias:            0, 1, 2, 3, 4, 5, 6, 7, ... (9 values)" in text
    assert "\nfirst filter, first channel\n" in text
    facts = json.loads(output_of("show", tmp_path / "k.npz", "--json"))
    assert facts["separable_rank"] is None
    assert facts["bias"] == list(range(9))


def test_show_an_off_centre_kernel(tmp_path: Path) -> None:
    weights = np.zeros((3, 3, 3))
    weights[0, 1, 2] = 1
    write_kernel(tmp_path / "k.json", Kernel(weights, centre=(0, 1, 2)))
    text = output_of("show", tmp_path / "k.json")
    assert "centre:          0, 1, 2\n" in text
    lines = text.splitlines()
    at = lines.index("") + 1
    assert lines[at].split() == ["d", "=", "0", "h", "=", "1", "w", "=", "2"]
    # the weight lies at d 0, h 1, w 2: at the offset 0 of every axis
    assert lines[at + 1] == "-1         0     @@  0   @@"
    assert [line.split() for line in lines[at + 2 : at + 4]] == [["0", "@@"], ["1", "2", "2"]]
    assert lines[at + 4].split() == ["-2", "0", "-2", "0", "-1", "1"]


def test_show_a_kernel_of_zeros(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.zeros((2, 2, 2)))
    assert "range:           0 to 0" in output_of("show", tmp_path / "k.npy")


def test_show_in_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, "in_colour", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    kernel(["show", "log:sigma=1.5,1,1vox"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "▀" in text
    assert "orange positive, blue negative" in text


@pytest.mark.parametrize(
    ("environment", "encoding", "terminal", "expected"),
    [
        ({}, "utf-8", True, True),
        ({}, "UTF-8", False, False),
        ({}, "ascii", True, False),
        ({"NO_COLOR": "1"}, "utf-8", True, False),
        ({"TERM": "dumb"}, "utf-8", True, False),
    ],
)
def test_when_to_colour(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    encoding: str,
    terminal: bool,
    expected: bool,
) -> None:
    class Stream:
        def __init__(self) -> None:
            self.encoding = encoding

        def isatty(self) -> bool:
            return terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert drawing.in_colour(Stream()) is expected


def test_pictures_are_shrunk_to_the_terminal(tmp_path: Path) -> None:
    """A peak is seen however many voxels share a character, and fills one by itself where they are few."""
    weights = np.zeros((1, 50, 301))
    weights[0, 49, 300] = -1
    np.save(tmp_path / "k.npy", weights)
    lines = output_of("show", tmp_path / "k.npy").splitlines()
    assert max(map(len, lines[lines.index("") + 1 : -4])) <= 100
    assert sum("@" in line for line in lines[lines.index("") :]) > 5, "in a slice and the profiles"
    np.save(tmp_path / "k.npy", np.array([[[1e-9, 0.01, 0.5, 1.0]]]))
    lines = output_of("show", tmp_path / "k.npy").splitlines()
    assert lines[lines.index("") + 2].startswith("0   ..##@@"), "square roots"


def test_facts_use_the_units_of_the_volume() -> None:
    facts = kernel_facts(read_kernel("gaussian:fwhm=4vox"), Grid((0.5, 0.1, 0.1), "um"))
    assert facts["unit"] == "um"
    assert facts["fwhm"] == pytest.approx([2, 0.4, 0.4], rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["gausian"], UnknownNameError, "did you mean 'gaussian'"),
        (["k.npy"], FormatError, "cannot read k.npy: no such file"),
        (["sobel"], SpecError, "sobel needs axis"),
        (["gaussian:sigma=2"], SpecError, "sigma=2 needs a unit"),
        (
            ["gaussian:fwhm=6mm"],
            ShapeError,
            "give it in vox, or pass --spacing 2,1,1mm or --like VOLUME",
        ),
        (["box", "--spacing", "2,1,1"], SpecError, "--spacing is one length or three with a unit"),
        (
            ["box", "--spacing", "2vox"],
            SpecError,
            "--spacing must be positive, with a unit such as mm",
        ),
        (["box", "--spacing", "0,1,1mm"], SpecError, "--spacing must be positive"),
        (["box", "--like", "missing.npy"], FormatError, "missing.npy"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type[Conv3DError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["show"], ["make", "-o", "out.npy"]):
        received = error_of(*command, *arguments)
        assert type(received) is error
        assert message in str(received)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# make


@pytest.mark.parametrize(
    "suffix", [".npy", ".npz", ".json", ".toml", ".txt", ".nii", ".nii.gz", ".tif"]
)
def test_make_saves_what_read_kernel_gives(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"k{suffix}"
    assert output_of("make", "gaussian:fwhm=6mm", "--spacing", "3,1.5,2mm", "-o", path) == ""
    expected = read_kernel("gaussian:fwhm=6mm", Grid((3.0, 1.5, 2.0), "mm"))
    assert np.array_equal(read_kernel(str(path)).weights, expected.weights)
    first = path.read_bytes()
    output_of("make", "gaussian:fwhm=6mm", "--spacing", "3,1.5,2mm", "-o", path, "--overwrite")
    assert path.read_bytes() == first


def test_make_converts_normalizes_and_flips(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = rng.uniform(size=(2, 3, 4))
    write_kernel(tmp_path / "a.json", Kernel(weights, centre=(0, 1, 3)))
    output_of("make", tmp_path / "a.json", "--normalize", "--flip", "-o", tmp_path / "b.npz")
    made = read_kernel(str(tmp_path / "b.npz"))
    assert np.allclose(made.weights, weights[::-1, ::-1, ::-1] / weights.sum(), rtol=1e-14)
    assert made.centre == (1, 1, 0)


def test_make_refuses(tmp_path: Path) -> None:
    output_of("make", "box", "-o", tmp_path / "k.npy")
    before = (tmp_path / "k.npy").read_bytes()
    assert isinstance(error_of("make", "laplacian", "-o", tmp_path / "k.npy"), OutputExistsError)
    assert (tmp_path / "k.npy").read_bytes() == before
    error = error_of("make", "laplacian", "--normalize", "-o", tmp_path / "l.npy")
    assert isinstance(error, ShapeError)
    assert "leave out --normalize" in str(error)
    assert isinstance(error_of("make", "box", "-o", tmp_path / "k.jpg"), SpecError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.npy"]


def test_make_needs_an_output() -> None:
    result = run("make", "box")
    assert result.exit_code == 2
    assert "--output" in result.stderr

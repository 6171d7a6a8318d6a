"""Every command that reads volumes or kernels stays below --max-memory, or ends with one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from bombs import BOMBS
from processes import peak_memory

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4")
CEILING = 300 << 20
COMMANDS = {
    "info": lambda file: ("info", file),
    "info --stats": lambda file: ("info", "--stats", file),
    "compare": lambda file: ("compare", file, file),
    "view": lambda file: ("view", file),
    "kernel show": lambda file: ("kernel", "show", file),
    "kernel show --like": lambda file: ("kernel", "show", "box:size=3", "--like", file),
    "kernel make": lambda file: ("kernel", "make", file, "-o", "made.npy"),
}
SHAPE = (2, 12_000, 12_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large planes in small files: without blocks, in one packed strip, and in one chunk."""
    import tifffile
    import zarr

    made = tmp_path_factory.mktemp("large")
    sparse(made / "x.npy", SHAPE)
    values = np.zeros(SHAPE[1:], np.uint8)
    tifffile.imwrite(made / "x.tif", values, compression="zlib", rowsperstrip=SHAPE[1])
    zarr.create_array(made / "x.zarr", shape=SHAPE, chunks=SHAPE, dtype="f4")
    return made


def sparse(path: Path, shape: tuple[int, ...]) -> None:
    """A file of float32 zeros that takes no space."""
    with open(path, "wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        file.truncate(file.tell() + 4 * int(np.prod(shape)))


def check(folder: Path, *command: object) -> tuple[int, str]:
    """The exit code and the error of a command, which stays below the ceiling."""
    code, memory, text = peak_memory(folder, *command, "--max-memory", CEILING)
    assert memory <= CEILING
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (code not in (0, 7)), text
    return code, "".join(errors)


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("x.tif", "compare"),
        ("x.zarr", "info --stats"),
        pytest.param("x.tif", "info --stats", marks=pytest.mark.slow),
        pytest.param("x.tif", "view", marks=pytest.mark.slow),
        pytest.param("x.zarr", "compare", marks=pytest.mark.slow),
        pytest.param("x.zarr", "view", marks=pytest.mark.slow),
    ],
)
def test_planes_that_do_not_fit(file: str, command: str, folder: Path) -> None:
    code, error = check(folder, *COMMANDS[command](file))
    assert code == 6
    assert f"cannot read {file}: a " in error
    assert "the ceiling is 300.0 MiB; pass --max-memory " in error


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info --stats", "compare", "view"])
def test_planes_are_read_in_boxes(command: str, folder: Path) -> None:
    assert check(folder, *COMMANDS[command]("x.npy"))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("info", "--stats", "x.npy"),
        ("compare", "x.npy", "x.npy"),
        ("apply", "x.npy", "--axes", "czyx", "-k", "identity", "-o", "o.npy"),
    ],
    ids=lambda command: command[0],
)
def test_what_was_read_of_many_planes_is_released(command: tuple[str, ...], tmp_path: Path) -> None:
    """400 MB in four channels, one after another in the file."""
    sparse(tmp_path / "x.npy", (4, 100, 512, 512))
    assert check(tmp_path, *command)[0] == 0


def test_smoothness_of_planes_that_do_not_fit(folder: Path) -> None:
    code, error = check(folder, "info", "--fwhm", "x.npy")
    assert code == 6
    assert "cannot read x.npy: a pair of its planes needs " in error


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "bomb", ["LIF XML", "Zarr attributes", "Zarr index", "Zarr zip", "HDF5 lzf", "OME-XML"]
)
def test_a_bomb(bomb: str, command: str, tmp_path: Path) -> None:
    pytest.importorskip({"LIF XML": "liffile", "HDF5 lzf": "h5py"}.get(bomb, "numpy"))
    file = BOMBS[bomb](tmp_path)
    code, _ = check(tmp_path, *COMMANDS[command](file))
    if bomb == "HDF5 lzf":
        header = command in ("info", "kernel show --like")
        assert code == (0 if header else 3)
    else:
        assert code == 6


@pytest.mark.slow
@pytest.mark.parametrize("command", ["kernel show", "kernel make"])
@pytest.mark.parametrize("bomb", ["PyTorch zip", "Keras zip", "NumPy zip"])
def test_a_list_of_files_that_is_a_bomb(bomb: str, command: str, tmp_path: Path) -> None:
    file = BOMBS[bomb](tmp_path)
    code, error = check(tmp_path, *COMMANDS[command](file))
    assert code == 6
    assert f"cannot read {file}: the list of its files needs 6" in error
    if command == "kernel show":
        np.save(tmp_path / "x.npy", np.zeros((4, 5, 6), np.float32))
        assert check(tmp_path, "explain", "x.npy", "-k", file) == (code, error)


@pytest.mark.slow
def test_what_300m_is_too_little_for_is_read_under_2g(tmp_path: Path) -> None:
    file = BOMBS["Zarr attributes"](tmp_path)
    assert check(tmp_path, "info", file)[0] == 6
    assert peak_memory(tmp_path, "info", file, "--max-memory", "2G")[0] == 0


@pytest.mark.parametrize(
    "name",
    ["k.json", *(pytest.param(name, marks=pytest.mark.slow) for name in ("k.toml", "k.txt"))],
)
def test_kernels_of_text(name: str, tmp_path: Path) -> None:
    code, error = check(tmp_path, "kernel", "make", "box:size=130", "-o", name)
    assert code == 6
    assert "kernel box:size=130 has 2,197,000 weights, which need " in error
    code, error = check(tmp_path, "kernel", "make", "box:size=110", "-o", name)
    assert code == 1
    assert "kernel files of text hold at most 16.0 MiB; write .npz instead" in error
    assert os.listdir(tmp_path) == []


def test_kernels(tmp_path: Path) -> None:
    code, error = check(tmp_path, "kernel", "show", "box:size=250")
    assert code == 6
    assert "kernel box has 15,625,000 weights, which need 487.4 MiB" in error
    np.save(tmp_path / "k.npy", np.zeros((210, 210, 210)))
    code, error = check(tmp_path, "kernel", "convert", "k.npy", "k.npz")
    assert code == 6
    assert "9,261,000 weights" in error


@pytest.mark.slow
def test_a_rerun_that_does_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((8, 8, 8), np.float32))
    run = ("apply", "x.npy", "-k", "box:size=200", "-o", "o.npy", "--sidecar")
    assert peak_memory(tmp_path, *run)[0] == 0
    assert check(tmp_path, "rerun", "o.json")[0] == 6

"""Names of files that are not UTF-8, or hold control characters, as old microscope PCs and archives leave them.

The names go into histories, sidecars and figures; every one of them must be read again afterwards.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from conv3d_cli.formats import open_volume
from conv3d_cli.formats.tiff.ome import ome_xml

NAMES = {"latin-1": b"caf\xe9.npy", "control": b"a\x01b.npy", "newline": b"a\nb\t.npy"}
SHOWN = {"latin-1": r"caf\xe9.npy", "control": r"a\x01b.npy", "newline": r"a\nb\t.npy"}


@pytest.fixture(params=NAMES)
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of a name in NAMES, whose file is in the current folder."""
    monkeypatch.chdir(tmp_path)
    try:
        Path(os.fsdecode(NAMES[request.param])).touch()
    except OSError:
        pytest.skip("this file system holds no such names")
    np.save(os.fsdecode(NAMES[request.param]), np.random.default_rng(0).random((4, 5, 6), np.float32))  # fmt: skip
    return str(request.param)


@pytest.mark.parametrize(
    "target", ["o.nii", "o.nii.gz", "o.tif", "o.ome.tif", "o.ome.zarr", "o.nrrd", "o.npy"]
)
def test_odd_names_in_histories_and_sidecars(odd: str, target: str, run: Any) -> None:
    name = os.fsdecode(NAMES[odd])
    run("apply", name, "-k", "identity", "-o", target, "--history", "--sidecar")
    line = f"apply '{SHOWN[odd]}' -k identity"
    with open_volume(target, axes="zyx" if target == "o.npy" else None) as reader:
        if target != "o.npy":  # which holds no history
            assert len(reader.header.history) == 1
            assert reader.header.history[0].endswith(line)
    record = json.loads(Path("o.json").read_bytes())
    assert record["Sources"] == [name]
    assert "same" in run("rerun", "o.json").stdout
    if target == "o.ome.tif":
        with tifffile.TiffFile(target) as file:
            ElementTree.fromstring(str(file.ome_metadata))


def test_odd_names_in_figures(odd: str, run: Any) -> None:
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a font without such a glyph
        run("view", os.fsdecode(NAMES[odd]), "-o", "v.png")
    assert Path("v.png").stat().st_size > 0


def test_dollars_in_figures_are_no_formula(tmp_path: Path, run: Any) -> None:
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "a$_$b.npy", np.ones((2, 3, 4), np.float32))
    run("view", tmp_path / "a$_$b.npy", "-o", tmp_path / "v.png")


def test_ome_xml_holds_only_what_xml_can(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 3, 4), np.uint8), imagej=True, metadata={"axes": "ZYX"})
    with open_volume(str(path)) as reader:
        header = reader.header
    odd = replace(header, history=("conv3d 1: \x00\x0b\ufffe\ud800 end",))
    text, _ = ome_xml(odd, header.axes, np.dtype(np.uint8))
    value = next(e for e in ElementTree.fromstring(text).iter() if e.tag.endswith("Value"))
    assert value.text == r"conv3d 1: \x00\x0b\ufffe\ud800 end"


HOSTILE = "t\x1b]0;pwn\x07\x1b[2J\u202e.npy"  # another title, no text, letters from right to left


@pytest.mark.parametrize(
    "command",
    [
        ["apply", HOSTILE, "x.npy", "-k", "identity", "--out-dir", "out"],
        ["apply", HOSTILE, "-k", "identity", "-o", "o.npy", "-v"],
        ["apply", HOSTILE, "x.npy", "-k", "identity", "--out-dir", "out", "--dry-run"],
        ["explain", HOSTILE, "-k", "identity"],
        ["info", HOSTILE],
        ["compare", HOSTILE, "x.npy"],
        ["view", HOSTILE],
        ["view", HOSTILE, "x.npy"],
        ["kernel", "show", HOSTILE],
        ["kernel", "make", HOSTILE, "-o", HOSTILE],
        ["apply", HOSTILE, "-k", "none", "-o", "o.npy"],
        ["nothing", HOSTILE],
        ["info", "--nothing", HOSTILE],
        ["info", "--nothing=" + HOSTILE],
        ["info", f"missing{HOSTILE}"],
    ],
    ids=lambda command: " ".join(command[:1]),
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_obeys_no_name(command: list[str], terminal: bool, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((5, 5, 5), np.float32)
    try:
        np.save(tmp_path / HOSTILE, volume)
    except OSError:
        pytest.skip("this file system holds no such names")
    np.save(tmp_path / "x.npy", volume)
    words = [sys.executable, "-m", "conv3d_cli", *command]
    reading, writing = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen(words, cwd=tmp_path, stdout=writing, stderr=writing):
        os.close(writing)
        text = b""
        with suppress(OSError):  # a terminal that ends
            while more := os.read(reading, 4096):
                text += more
    os.close(reading)
    assert b"\x1b]0" not in text
    assert b"\x07" not in text
    assert b"\x1b[2J" not in text
    assert "\u202e".encode() not in text
    if not any(word.startswith(("no", "--no")) for word in command):
        assert b"pwn" in text.replace(b"\r\n", b"")

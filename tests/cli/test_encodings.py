"""Every command's texts pass through streams of every encoding: a sign that one lacks is spelled."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composed import LINES as OPERATIONS

import conv3d_cli
from conv3d_cli.cli import COMMANDS, main
from conv3d_cli.system.spelling import SPELLINGS, spelled
from conv3d_cli.system.standard_streams import standard_streams

ENCODINGS = ("utf-8", "cp1252", "latin-1", "ascii")
ROOT = Path(conv3d_cli.__file__).parent

BLUR = ["-k", "gaussian:fwhm=6mm"]
# what each command prints besides its help
LINES: dict[str, list[list[str]]] = {
    "apply": [
        ["a.nii.gz", *BLUR, "-o", "o.nii.gz", "-v", "--like", "spm"],
        ["a.nii.gz", *BLUR, "-o", "o.nii.gz", "--crop-kernel", "2"],
    ],
    "bench": [],
    "compare": [["a.nii.gz", "mask.nii"], ["a.nii.gz", "k.npy"]],
    "completion": [["bash"]],
    "convert": [["a.nii.gz", "o.nrrd", "-v", "--overwrite"]],
    "describe": [["json"], ["boutiques", "info"], ["man", "info"]],
    "explain": [["a.nii.gz", *BLUR], ["a.nii.gz", "-k", "log:sigma=3mm", "--json"]],
    "help": [[], ["kernels"], ["world"], ["--search", "Σ"], ["apply"]],
    "info": [["a.nii.gz", "--fwhm"], ["é.nii"]],
    "kernel": [
        ["list"],
        ["show", "gaussian:fwhm=6mm", "--spacing", "2µm"],
        ["show", "log:sigma=1vox"],
        ["show", "é:sigma=1"],
    ],
    "presets": [[]],
    "rerun": [["é.json"]],
    "view": [["a.nii.gz"], ["a.nii.gz", "--slice", "99"]],
    "warmup": [],
    **{
        name: [["a.nii.gz", *line[1:], "-o", "o.nii.gz", "-v"]] for name, line in OPERATIONS.items()
    },
}
CASES = [(name, arguments) for name in COMMANDS for arguments in (["--help"], *LINES.get(name, []))]


def printed(arguments: list[str], encoding: str, folder: Path) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of a command whose streams have this encoding."""
    before = sys.stdout, sys.stderr
    with (
        open(folder / "stdout", "w", encoding=encoding) as sys.stdout,
        open(folder / "stderr", "w", encoding=encoding) as sys.stderr,
    ):
        try:
            with standard_streams():
                try:
                    main(arguments, "conv3d")
                    code = 0
                except SystemExit as error:
                    code = int(error.code or 0)
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            sys.stdout, sys.stderr = before
    return code, (folder / "stdout").read_bytes(), (folder / "stderr").read_bytes()


def test_every_command_is_tried() -> None:
    assert set(LINES) == set(COMMANDS)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[" ".join([n, *a]) for n, a in CASES])
def test_texts_pass_in_every_encoding(
    name: str, arguments: list[str], desk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    codes = set()
    for encoding in ENCODINGS:
        (desk / "o.nii.gz").unlink(missing_ok=True)
        folder = tmp_path_factory.mktemp("streams")
        code, *streams = printed([name, *arguments], encoding, folder)
        codes.add(code)
        for text in streams:
            assert b"Traceback" not in text
            text.decode(encoding)  # raises if bytes of two encodings mix
    assert len(codes) == 1, "the encoding decides nothing"


def test_signs_are_spelled_and_names_are_escaped(desk: Path) -> None:
    _, out, _ = printed(["presets"], "cp1252", desk)
    assert b"int(4sigma + 0.5)" in out
    _, _, err = printed(["info", "é.nii"], "ascii", desk)
    assert b"cannot read \\xe9.nii" in err
    _, _, err = printed(["info", "é.nii"], "latin-1", desk)
    assert "cannot read é.nii" in err.decode("latin-1")


def test_a_real_pipe(desk: Path) -> None:
    for encoding in ("cp1252", "ascii:strict", "latin-1:strict"):
        done = subprocess.run(
            [sys.executable, "-m", "conv3d_cli", "presets"],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        )
        assert b"int(4sigma + 0.5)" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_a_name_that_is_no_text_does_not_end_a_command(desk: Path) -> None:
    name = os.fsdecode(b"caf\xe9.npy")
    (desk / name).write_bytes((desk / "k.npy").read_bytes())
    for errors in ("strict", "surrogateescape"):
        done = subprocess.run(
            [sys.executable, "-m", "conv3d_cli", "info", os.fsencode(name)],
            env={**os.environ, "PYTHONIOENCODING": f"utf-8:{errors}"},
            capture_output=True,
            check=True,
        )
        assert b"caf\\xe9.npy" in done.stdout


def texts() -> set[str]:
    """All signs beyond ASCII in the texts of the package: strings, docstrings, pages."""
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(node.value)
    for path in ROOT.rglob("*.md"):
        found |= set(path.read_text("utf-8"))
    return {sign for sign in found if not sign.isascii()}


def test_every_sign_of_our_texts_has_a_spelling() -> None:
    letters: Any = {"å"}  # of a person's name
    assert texts() - letters <= set(SPELLINGS)
    assert all(spelling.isascii() for spelling in SPELLINGS.values())
    assert re.fullmatch(r"sum \|w\| <= 3 um", spelled("Σ|w| ≤ 3 µm"))

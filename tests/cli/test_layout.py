"""Texts fit the terminal: words wrap with hanging indents, and names are never broken."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from processes import on_a_terminal

from conv3d_cli.batch.results import TableRow
from conv3d_cli.cli.layout import facts, hung
from conv3d_cli.cli.table import table_lines

CONV3D = [sys.executable, "-m", "conv3d_cli"]
BAR = re.compile(r"\x1b\[\?25[lh]|\r|\x1b\[2K|\x1b\[1A")


def shown(columns: int, *words: object) -> list[str]:
    """The lines of a command on a terminal, without colours and the progress bar."""
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "NO_COLOR": "1"}
    text = on_a_terminal([*CONV3D, *map(str, words)], environment, columns=columns)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", BAR.sub("\n", text)).splitlines()
    return [line for line in lines if "Mvoxel/s" not in line and "━" not in line]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize(
    "words",
    [
        ["explain", "a.nii.gz", "--fwhm", "6mm", "--like", "spm", "--mask", "mask.nii"],
        ["apply", "a.nii.gz", "-k", "log:sigma=3mm", "-v", "-o", "o.nii"],
        ["kernel", "list"],
        ["kernel", "show", "gaussian_derivative:sigma=3mm:axis=xyz", "--like", "a.nii.gz"],
        ["presets"],
        ["info", "a.nii.gz", "--stats"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_nothing_is_wider_than_the_terminal(words: list[str], columns: int, desk: Path) -> None:
    lines = shown(columns, *words)
    assert lines
    wide = [line for line in lines if len(line) > columns]
    # a word that is longer than the room for it stays whole
    assert all(len(max(line.split(), key=len)) > columns - 25 for line in wide), wide
    if words[0] == "explain":
        assert any(line.startswith(" " * 11) and line[11] != " " for line in lines)


def test_a_pipe_gets_a_fact_a_line(desk: Path, run: Any) -> None:
    lines = run("explain", "a.nii.gz", "--fwhm", "6mm").stdout.splitlines()
    assert max(map(len, lines)) > 80
    assert sum(line.startswith("algorithm  ") for line in lines) == 1


def test_lists_are_wrapped_in_a_pipe_too(run: Any) -> None:
    for words in (["presets"], ["kernel", "list"]):
        assert max(map(len, run(*words).stdout.splitlines())) <= 80


def test_messages_of_a_line_stay_one() -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    note = "note: " + "long " * 60
    assert facts(note, Terminal()) == note
    assert facts("kernel     " + "word " * 60, Terminal()).count("\n") > 1
    assert hung("a-very-long-name/" * 9, 40) == "a-very-long-name/" * 9


# ---------------------------------------------------------------------------------------------------------------------
# The table of a batch

LONG = "out/sub-{}/func/sub-{}_task-rest_space-MNI152NLin2009cAsym_desc-sm6mm_bold.nii.gz"
ROWS = [
    *(TableRow("done", LONG.format(n, n), "", 0.5, 1_000_000) for n in ("01", "02")),
    TableRow("failed", LONG.format("03", "03"), "cannot read it: " + "a long reason " * 9),
]


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_table_breaks_no_names(columns: int) -> None:
    lines = [line for _, line in table_lines(ROWS, columns)]
    for row in ROWS:
        assert sum(row.target.removeprefix("out/") in line for line in lines) == 1
    assert "output in out/" in lines[0]
    names = [row.target.removeprefix("out/") for row in ROWS]
    for line in lines:
        assert len(line.rstrip()) <= columns or line.rstrip().endswith(tuple(names)), line
    text = " ".join(" ".join(lines).split())
    assert ("a long reason " * 9).strip() in text
    numbers = [line for line in lines if "0.50" in line]
    assert all(line.index("0.50") < columns - 3 for line in numbers)


def test_a_table_in_a_pipe_is_a_line_a_row() -> None:
    lines = [line for _, line in table_lines(ROWS, None)]
    assert len(lines) == 1 + len(ROWS)
    assert lines[1].split() == ["done", ROWS[0].target, "0.50"]
    assert lines[3].endswith(ROWS[2].remark.strip())


def test_a_table_tells_what_was_clipped_and_means_under_v(run: Any, desk: Path) -> None:
    """Seconds alone for a plain run; the unpacked bytes a second of a volume tell nobody anything."""
    data = np.asarray(nibabel.load("a.nii.gz").dataobj, np.float32)
    nibabel.Nifti1Image(data + 300, np.eye(4)).to_filename("bright.nii")
    words = ["apply", "a.nii.gz", "bright.nii", "-k", "identity"]
    plain = run(*words, "--out-dir", "p").stderr.splitlines()
    assert plain[-4].split() == ["output", "seconds"]
    assert "MB/s" not in "".join(plain[:-1])
    told = run(*words, "--out-dir", "q", "--dtype", "uint8", "-v").stderr.splitlines()
    head, first, second = told[-4:-1]
    assert head.split() == ["output", "seconds", "mean", "clipped"]
    means = [f"{x.mean():.6g} -> {x.clip(0, 255).round().mean():.6g}" for x in (data, data + 300)]
    for line, mean in zip((first, second), means, strict=True):
        assert mean in line
    for line, values in ((first, data), (second, data + 300)):
        clipped = np.count_nonzero((values.round() < 0) | (values.round() > 255))
        assert line.split()[-1] == str(clipped)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_a_batch_of_long_names_on_a_terminal(desk: Path) -> None:
    names = [
        f"sub-0{n}_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz" for n in (1, 2)
    ]
    for name in names:
        shutil.copy("a.nii.gz", name)
    lines = shown(80, "apply", *names, "-k", "box", "--out-dir", "out")
    for name in names:
        assert sum(line.rstrip().endswith(name) for line in lines) == 1
    np.testing.assert_equal(len(list((desk / "out").iterdir())), 2)

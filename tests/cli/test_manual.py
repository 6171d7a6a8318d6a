"""`conv3d help` and `conv3d --cite`: pages, search, words that lead to them, and every kind of stdout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from processes import on_a_terminal

import conv3d_cli
from conv3d_cli.cli.help import Page, find_page, read_page, read_pages, render, search_text

ROOT = Path(conv3d_cli.__file__).parent.parent


def test_the_list_has_every_page_on_a_line_of_its_own(run: Any) -> None:
    lines = run("help").stdout.splitlines()
    for page in read_pages().values():
        assert f"  {page.topic:<15}  {page.summary}" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("topic", read_pages())
def test_a_page_is_plain_text_in_a_pipe(topic: str, run: Any) -> None:
    page = read_pages()[topic]
    text = run("help", topic).stdout
    assert text.startswith(f"{page.title}\n{'=' * len(page.title)}\n\n")
    assert " ".join(page.summary.split()) in text
    assert max(map(len, text.splitlines())) <= 80
    for trace in ("\x1b", "<!--", "]("):
        assert trace not in text, trace


def test_examples_can_be_copied_and_links_are_commands(run: Any) -> None:
    text = run("help", "edges").stdout
    assert "    conv3d apply head.nii.gz -k box:size=5 --boundary constant=-9" in text
    assert "see `conv3d help presets`." in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (["mask"], "Masks and missing data"),
        (["NaN"], "Masks and missing data"),
        (["min_coverage"], "Masks and missing data"),
        (["missing", "data"], "Masks and missing data"),
        (["tif"], "TIFF"),
        ([".nii.gz"], "NIfTI"),
        (["BIDS"], "Provenance and BIDS"),
        (["keras"], "Layers: Keras' Conv3D, and trained layers from files"),
        (["torch"], "Layers: Keras' Conv3D, and trained layers from files"),
        (["gpu"], "Troubleshooting and questions"),
        (["cite"], "Troubleshooting and questions"),
        (["masks.md"], "Masks and missing data"),
        (["presets"], "Presets: as other tools do it"),
    ],
    ids=str,
)
def test_words_lead_to_pages(words: list[str], title: str, run: Any) -> None:
    assert run("help", *words).stdout.splitlines()[0] == title


@pytest.mark.parametrize("words", [["apply"], ["kernel"], ["kernel", "make"], ["help"]], ids=str)
def test_a_command_shows_its_help_and_its_page(words: list[str], run: Any) -> None:
    text = run("help", *words).stdout
    own = run(*words, "--help").stdout.rstrip()
    assert text.startswith(own)
    assert re.fullmatch(r"(\n\nIn the manual: conv3d help [a-z-]+)?\n", text[len(own) :])
    assert ("In the manual" in text) == (len(words) == 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["maks"], "'maks'; did you mean 'masks'? `conv3d help` lists the topics"),
        (
            ["kernel", "mkae"],
            "'kernel mkae'; did you mean 'kernel'? `conv3d help` lists the topics",
        ),
        (
            ["mosaic"],
            "'mosaic'; the manual has it in memory, scanners: conv3d help --search mosaic",
        ),
        (["xyzzy"], "'xyzzy'; `conv3d help` lists the topics"),
    ],
    ids=str,
)
def test_an_unknown_topic_is_one_line_with_what_is_near(
    words: list[str], message: str, run: Any, error_line: Any
) -> None:
    assert error_line(run("help", *words, code=2).stderr) == f"Error: no help topic {message}"


def test_search_finds_pages_headings_and_lines(run: Any) -> None:
    found = run("help", "--search", "COVERAGE").stdout
    assert found.startswith("conv3d help masks\n")
    assert "\n  Coverage\n    The coverage of a result is" in found
    assert max(map(len, found.splitlines())) <= 80


def test_search_finds_formulas_and_shows_links_as_commands(run: Any) -> None:
    assert "exp(-r**2/36)" in run("help", "--search", "r**2").stdout
    assert "see `conv3d help presets`" in run("help", "--search", "sampling").stdout
    assert "**" not in run("help", "--search", "mean of the voxels").stdout


def test_search_takes_words_across_lines() -> None:
    page = read_page(
        "x", "# X\n\nAll.\n\n## Part\n\none thing\nand another\n\nthing\n\n<!-- also: y -->\n"
    )
    assert search_text({"x": page}, "another one") == (
        "conv3d help x\n  Part\n    one thing and another"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "xyzzy"], "the manual holds no 'xyzzy'"),
        (["--search", " "], "--search needs a word"),
        (["--search", "NaN", "masks"], "exclude one another"),
    ],
    ids=str,
)
def test_search_says_what_is_wrong(
    arguments: list[str], words: str, run: Any, error_line: Any
) -> None:
    assert words in error_line(run("help", *arguments, code=2).stderr)


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("mas", ["masks", "mask", "masking", "mask-labels", "mask-mode"]),
        ("expl", ["explain"]),
        ("kernel m", ["make"]),
        ("masks m", []),
        ("--sea", ["--search"]),
    ],
)
def test_topics_are_completed(line: str, answers: list[str], run: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("_CONV3D_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"conv3d help {line}")
    told = run().stdout.split()
    assert [word.removeprefix("plain,") for word in told] == answers


# ---------------------------------------------------------------------------------------------------------------------
# Where it is shown


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        ("cp1252", ["masks"]),
        ("latin-1", ["batches"]),
        ("latin-1", ["apply"]),
        ("ascii", ["--search", "sum"]),
    ],
    ids=str,
)
def test_every_encoding_of_a_pipe_will_do(
    arguments: list[str], encoding: str, monkeypatch: Any, shell: Any
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = shell("help", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "?" not in done.stdout.decode(encoding), "signs are spelled, not replaced"


@pytest.mark.parametrize("ending", [">&-", "| head -n 1"])
def test_a_reader_that_is_gone_is_no_error(ending: str, commands: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; conv3d help kernels {ending}"],
        env=commands,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_a_terminal_gets_colours_and_the_pager(tmp_path: Path) -> None:
    if shutil.which("sed") is None:
        pytest.skip("needs sed")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nexec sed s/^/paged:/\n")
    pager.chmod(0o755)
    environment |= {"TERM": "xterm-256color", "PAGER": str(pager)}
    command = [sys.executable, "-m", "conv3d_cli", "help"]
    long = on_a_terminal([*command, "masks"], environment)
    assert long.startswith("paged:")
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", long).splitlines())) <= 80 + len("paged:")
    short = on_a_terminal([*command, "smoothness"], environment, rows=60)
    assert "paged:" not in short
    assert "\x1b[" in short
    plain = on_a_terminal([*command, "smoothness"], {**environment, "NO_COLOR": "1"}, rows=60)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain), "colours under NO_COLOR"


def test_pages_are_read_from_a_zip(tmp_path: Path) -> None:
    """Through importlib.resources: as Python finds the package, so it finds its pages."""
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in (ROOT / "conv3d_cli").rglob("*"):
            if path.suffix in (".py", ".md"):
                packed.write(path, path.relative_to(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "conv3d_cli", "help", "edges"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(archive)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("Edges\n=====\n"), done.stderr


def test_a_page_needs_no_words_of_its_own() -> None:
    page = read_page("x", "# X\n\nOnly this.\n")
    assert (page.also, find_page({"x": page}, "X"), find_page({"x": page}, "y")) == ((), page, None)


def test_links_to_other_files_are_told_by_their_words() -> None:
    page = Page(
        "x",
        "X",
        "s",
        (),
        "# X\n\nsee [tests/benchmarks](../../tests/benchmarks/README.md), [M](masks.md)\n",
    )
    assert render(page).splitlines()[-1] == "see tests/benchmarks, `conv3d help masks`"


# ---------------------------------------------------------------------------------------------------------------------
# Citing


def test_the_citation_says_what_the_project_says(run: Any) -> None:
    text = run("--cite").stdout
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    year, authors = re.findall(r"Copyright \(c\) (\d+), (.*)", licence)[0]
    sentence, entry = text.split("\n\n")
    for part in (sentence, entry):
        assert year in part
        assert authors.casefold() in part.casefold()
        assert conv3d_cli.__version__ in part
        assert "BSD-3-Clause" in part
    assert len(re.findall(r"^  \w+ +=", entry, re.MULTILINE)) == 5
    assert entry.count("{") == entry.count("}")

"""The documentation is held to account: README blocks run, and everything in a catalogue is documented."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conv3d_cli.cli import main
from conv3d_cli.engine import ALGORITHMS
from conv3d_cli.formats import FORMATS
from conv3d_cli.kernels import BUILTIN_KERNELS
from conv3d_cli.layer.activations import ACTIVATIONS
from conv3d_cli.model.spec import BOUNDARIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the sample data to work in, and an environment in which `conv3d` is this one."""
    shutil.copytree(ROOT / "sample_data", tmp_path / "desk")
    commands = tmp_path / "bin"
    commands.mkdir()
    script = commands / "conv3d"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m conv3d_cli "$@"\n')
    script.chmod(0o755)
    return tmp_path / "desk", {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}


def test_the_two_commands_come_first() -> None:
    assert README.index("make demo") < README.index("make test") < README.index("## Ten examples")


def test_shell_blocks_run(desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk
    assert len(blocks("sh")) >= 9
    for block in blocks("sh"):
        done = subprocess.run(
            ["bash", "-ec", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def test_python_blocks_run(desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block], cwd=folder, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def test_make_block_and_example_pipeline_run(desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk

    def make(*arguments: str) -> str:
        done = subprocess.run(
            ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    make("-C", "pipeline")
    assert sorted(p.name for p in (folder / "pipeline" / "results").iterdir()) == [
        "head.half.nii.gz", "head.smooth.nii.gz", "series.half.nii.gz", "series.smooth.nii.gz",
    ]  # fmt: skip
    assert "conv3d" not in make("-C", "pipeline")  # nothing is out of date
    (folder / "Makefile").write_text(blocks("make")[0])
    (folder / "kernel.toml").write_text('kernel = "gaussian:fwhm=6mm"\n')
    make("head.smooth.nii.gz")
    assert (folder / "head.smooth.nii.gz").exists()


@pytest.mark.parametrize("function", BUILTIN_KERNELS, ids=lambda f: f.__name__)
def test_kernels_are_in_the_readme(function: object) -> None:
    assert re.search(rf"\b{function.__name__}\b", README.split("## Kernels")[1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(main.commands))
def test_commands_are_in_the_readme_and_have_examples(name: str) -> None:
    assert f"`conv3d {name}" in README
    command = main.commands[name]
    assert f"conv3d {name}" in inspect.cleandoc(command.help or ""), "help begins with the usual lines"


def test_options_have_help() -> None:
    for name, command in main.commands.items():
        for option in command.params:
            if option.param_type_name == "option":
                assert getattr(option, "help", None), f"{name} {option.name}"


def test_suffixes_and_boundaries_are_in_the_readme() -> None:
    for suffix in (
        s for f in FORMATS for s in f.suffixes if s not in ("-", ".hdr.gz", ".img.gz", ".tiff", ".ome.tiff")
    ):
        assert suffix.strip(".") in README, suffix
    for boundary in BOUNDARIES:
        assert f"`{boundary}" in README


def test_catalogues_are_documented() -> None:
    for thing in (*ACTIVATIONS, *BUILTIN_KERNELS):
        assert inspect.getdoc(thing), thing
    for algorithm in ALGORITHMS:
        assert algorithm.summary
    for entry in FORMATS:
        assert entry.summary


def test_every_public_definition_has_a_docstring() -> None:
    """Modules, and their classes and functions that do not start with an underscore; loops have a shape line instead."""
    missing = []
    for path in sorted((ROOT / "conv3d_cli").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            missing.append(str(path))
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not node.name.endswith("_loops") and not ast.get_docstring(node):  # type: ignore[attr-defined]
                missing.append(f"{path.name}: {node.name}")  # type: ignore[attr-defined]
    assert not missing


def test_no_word_of_any_workplace() -> None:
    """Paths of one machine have no place in a project."""
    for path in [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "conv3d_cli").rglob("*.py")]:
        assert "/home/" not in path.read_text(encoding="utf-8"), path

"""The documentation is held to account: README blocks run, and everything in a catalogue is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conv3d_cli.cli import main
from conv3d_cli.engine import ALGORITHMS
from conv3d_cli.formats import FORMATS
from conv3d_cli.kernels import BUILTIN_KERNELS
from conv3d_cli.layer.activations import ACTIVATIONS
from conv3d_cli.model.spec import BOUNDARIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


# The rooms whose public methods all have docstrings; what is done is put here.
DOCUMENTED = [
    "api.py",
    "errors.py",
    "keras.py",
    "model",
    "layer",
    "kernels",
    "formats",
    "pictures",
    "system",
    "cli",
    "batch",
    "settings",
    "analysis",
    "bench",
    "cluster",
    "provenance",
    "convolution",
    "pipeline",
]


def blocks(language: str) -> Any:
    """The fenced blocks of one language as parameters of a test, named by their first lines."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no {language} block"
    return [
        pytest.param(block, id=block.partition("\n")[0].partition("  #")[0].strip())
        for block in found
    ]


def run_block(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a block of the README in a folder; if it fails, the test tells which and what it said."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (
        f"this block of README.md ends with code {done.returncode} in a copy of sample_data; a reader sees the same:\n\n"
        f"{command[-1]}\n{done.stdout}{done.stderr}"
    )


def test_the_two_commands_come_first() -> None:
    places = [README.find(text) for text in ("make demo", "make test", "## Ten examples")]
    assert -1 < places[0] < places[1] < places[2], (
        "README.md begins with `make demo` and `make test`, then the examples"
    )


@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_block_runs(block: str, sample_data: Path, commands: dict[str, str]) -> None:
    run_block(["bash", "-ec", block], sample_data, commands)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_runs(block: str, sample_data: Path, commands: dict[str, str]) -> None:
    run_block([sys.executable, "-W", "error", "-c", block], sample_data, commands)


@pytest.mark.parametrize("block", blocks("make"))
def test_make_block_runs(block: str, sample_data: Path, commands: dict[str, str]) -> None:
    (sample_data / "Makefile").write_text(block)
    (sample_data / "kernel.toml").write_text('kernel = "gaussian:fwhm=6mm"\n')
    run_block(["make", "head.smooth.nii.gz"], sample_data, commands)
    assert (sample_data / "head.smooth.nii.gz").exists()


def test_the_example_pipeline_runs(sample_data: Path, commands: dict[str, str]) -> None:
    def make() -> str:
        done = subprocess.run(
            ["make", "-C", "pipeline"],
            cwd=sample_data,
            env=commands,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    make()
    assert sorted(p.name for p in (sample_data / "pipeline" / "results").iterdir()) == [
        "head.half.nii.gz", "head.smooth.nii.gz", "series.half.nii.gz", "series.smooth.nii.gz",
    ]  # fmt: skip
    assert "conv3d" not in make(), "nothing is out of date, and make runs conv3d again"


@pytest.mark.parametrize("function", BUILTIN_KERNELS, ids=lambda f: f.__name__)
def test_kernels_are_in_the_readme(function: Any) -> None:
    section = README.partition("## Kernels")[2]
    found = re.search(rf"\b{function.__name__}\b", section) is not None
    assert found, f"name the kernel {function.__name__} in the list under `## Kernels` of README.md"


@pytest.mark.parametrize("name", list(main.commands))
def test_commands_are_in_the_readme_and_have_examples(name: str) -> None:
    told = f"`conv3d {name}" in README
    assert told, f"write `conv3d {name}` and what it does into README.md"
    usual = f"conv3d {name}" in inspect.cleandoc(main.commands[name].help or "")
    assert usual, (
        f"the docstring of the command {name} begins with the usual lines, such as `conv3d {name} ...`"
    )


@pytest.mark.parametrize("name", list(main.commands))
def test_options_have_help(name: str) -> None:
    options = [
        option for option in main.commands[name].params if option.param_type_name == "option"
    ]
    silent = [option.name for option in options if not getattr(option, "help", None)]
    assert not silent, f"conv3d {name}: give these options a help text: {silent}"


@pytest.mark.parametrize("entry", FORMATS, ids=lambda entry: entry.name)
def test_suffixes_are_in_the_readme(entry: Any) -> None:
    also = ("-", ".hdr.gz", ".img.gz", ".tiff", ".ome.tiff")  # told together with others
    missing = [
        suffix
        for suffix in entry.suffixes
        if suffix not in also and suffix.strip(".") not in README
    ]
    assert not missing, f"name the suffixes {missing} of {entry.name} in README.md"


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_boundaries_are_in_the_readme(boundary: str) -> None:
    told = f"`{boundary}" in README
    assert told, f"tell what the boundary `{boundary}` does in README.md"


def test_catalogues_are_documented() -> None:
    for thing in (*ACTIVATIONS, *BUILTIN_KERNELS):
        assert inspect.getdoc(thing), (
            f"{thing.__name__} has no docstring, which its help is made of"
        )
    for entry in (*ALGORITHMS, *FORMATS):
        assert entry.summary, f"{entry.name} has no summary, which its help is made of"


# ---------------------------------------------------------------------------------------------------------------------
# Docstrings


def modules() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / "conv3d_cli").rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=str)
def test_every_public_definition_has_a_docstring(path: Path) -> None:
    """Modules, and their classes and functions that do not start with an underscore; loops have a shape line instead."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), (
        f"{path} has no docstring: say what it decides and what it leaves to others"
    )
    missing = [
        f"{path}:{node.lineno}: {node.name}"
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not node.name.endswith("_loops")
        and not ast.get_docstring(node)
    ]
    assert not missing, f"write docstrings for {missing}"


def public_classes(path: Path) -> list[type]:
    """The public classes that a module defines."""
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == name
    ]
    return [value for value in found if not value.__name__.startswith("_")]


def methods_of(cls: type) -> list[str]:
    """Names of the public methods and properties that are written in a class."""

    def function_of(value: Any) -> Any:
        value = (
            getattr(value, "fget", None)
            or getattr(value, "func", None)
            or getattr(value, "__func__", value)
        )
        return value if inspect.isfunction(value) and value.__name__ != "<lambda>" else None

    return [
        name for name, value in vars(cls).items() if not name.startswith("_") and function_of(value)
    ]


def documented_modules() -> list[Path]:
    found = [
        path
        for path in modules()
        if {*map(str, [path, *path.parents])} & {f"conv3d_cli/{r}" for r in DOCUMENTED}
    ]
    assert found
    return found


@pytest.mark.parametrize("path", documented_modules(), ids=str)
def test_every_public_method_has_a_docstring(path: Path) -> None:
    """Its own, or that of the method it implements in a base class."""
    missing = [
        f"{cls.__name__}.{name}"
        for cls in public_classes(path)
        for name in methods_of(cls)
        if not inspect.getdoc(getattr(cls, name))
    ]
    assert not missing, f"{path}: write docstrings for {missing}"


def described_parameters(text: str | None) -> list[str]:
    """The names that a docstring describes in lines such as `size, other : int     what it is`."""
    if text is None:
        return []
    lines = re.findall(r"^((?:\*{0,2}\w+, )*\*{0,2}\w+) : ", inspect.cleandoc(text), re.MULTILINE)
    return [name.strip().lstrip("*") for line in lines for name in line.split(",")]


@pytest.mark.parametrize("path", modules(), ids=str)
def test_docstrings_describe_the_parameters_of_the_signature(path: Path) -> None:
    """A parameter that was renamed or taken away is not described any more."""
    wrong = []
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            given = node.args
            names = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            known = {argument.arg for argument in names if argument is not None}
            strange = [
                name for name in described_parameters(ast.get_docstring(node)) if name not in known
            ]
            wrong += [
                f"{path}:{node.lineno}: {node.name} has no parameter {name}" for name in strange
            ]
    assert not wrong


@pytest.mark.parametrize("path", documented_modules(), ids=str)
def test_docstrings_describe_the_fields_of_the_class(path: Path) -> None:
    wrong = []
    for cls in public_classes(path):
        fields = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        try:
            arguments = set(inspect.signature(cls).parameters)
        except ValueError:  # a class of C has none
            arguments = set()
        source = inspect.getsource(cls)
        for name in described_parameters(cls.__doc__):
            if name not in {*fields, *arguments, *dir(cls)} and f"self.{name}" not in source:
                wrong.append(f"{path}: {cls.__name__} has no {name}")
    assert not wrong


def test_the_check_of_parameters_sees_them() -> None:
    text = """What it does.

    size, other : int       two of them
    *rest : str             the others
    >>> f(1)
    """
    assert described_parameters(text) == ["size", "other", "rest"]


def test_no_word_of_any_workplace() -> None:
    """Paths of one machine have no place in a project."""
    for path in [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "conv3d_cli").rglob("*.py")]:
        assert "/home/" not in path.read_text(encoding="utf-8"), path

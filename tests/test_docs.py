"""The documentation is held to account: its blocks run, its links lead somewhere, and all is named in it."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from conv3d_cli import Conv3D, errors
from conv3d_cli.cli import main
from conv3d_cli.cli.help import read_pages
from conv3d_cli.engine import ALGORITHMS
from conv3d_cli.formats import FORMATS
from conv3d_cli.kernels import BUILTIN_KERNELS
from conv3d_cli.kernels.expressions import FUNCTIONS
from conv3d_cli.kernels.files import KERNEL_FILES
from conv3d_cli.kernels.weights import WEIGHTS_FILES
from conv3d_cli.layer import constraints, initializers, regularizers
from conv3d_cli.layer.activations import ACTIVATIONS
from conv3d_cli.model.missing import MASK_MODES, NAN_MODES
from conv3d_cli.model.spec import BOUNDARIES, PADDINGS
from conv3d_cli.model.units import UNITS
from conv3d_cli.settings.presets import PRESETS

ROOT = Path(__file__).parent.parent
MANUAL = ROOT / "conv3d_cli" / "manual"
PICTURES = ROOT / "sample_data" / "pictures"
# what users read: README and the pages of the manual; and with them, what is written for developers
FOR_USERS = [ROOT / "README.md", *sorted(MANUAL.glob("*.md"))]
DOCUMENTS = [
    *FOR_USERS,
    ROOT / "CHANGELOG.md",
    ROOT / "conv3d_cli" / "README.md",
    ROOT / "tests" / "README.md",
    ROOT / "tests" / "benchmarks" / "README.md",
]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def page(topic: str) -> str:
    return (MANUAL / f"{topic}.md").read_text(encoding="utf-8")


def fenced(path: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of the fenced blocks of a document."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def blocks(language: str, joint: str | None = None) -> list[Any]:
    """The fenced blocks of one language as parameters of a test, named by their documents.

    joint : str or None     joins the blocks of a document to one
    """
    found = []
    for path in FOR_USERS:
        texts = [text for of, text in fenced(path) if of == language]
        if joint is not None and texts:
            texts = [joint.join(texts)]
        found += [pytest.param(text, id=relative(path)) for text in texts]
    assert found, f"there is no {language} block"
    return found


def run_block(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a block in a folder; if it fails, the test tells which and what it said."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (
        f"this block ends with code {done.returncode} in a copy of sample_data; a reader sees the "
        f"same:\n\n{command[-1]}\n{done.stdout}{done.stderr}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is shown runs


@pytest.mark.parametrize("block", blocks("sh", joint="\n"))
def test_shell_block_runs(block: str, sample_data: Path, commands: dict[str, str]) -> None:
    run_block(["bash", "-ec", block], sample_data, commands)
    for drawn in sample_data.glob("*.png"):
        if (shown := PICTURES / drawn.name).exists():
            assert apart(drawn, shown) < 5, f"{shown}: draw it again by make_pictures.py"


def apart(one: Path, other: Path) -> float:
    """Mean difference of two pictures, whose letters may be others, in grey levels of 255."""
    small = [Image.open(path).convert("RGB").resize((200, 160)) for path in (one, other)]
    first, second = (np.asarray(picture, float) for picture in small)
    return float(np.abs(first - second).mean())


@pytest.mark.parametrize("block", blocks("python", joint="\n"))
def test_python_block_runs(block: str, sample_data: Path, commands: dict[str, str]) -> None:
    run_block([sys.executable, "-W", "error", "-c", block], sample_data, commands)


def consoles() -> list[Any]:
    """Of each document that has console blocks: its commands and what they print, in order."""
    found = []
    for path in FOR_USERS:
        text = "".join(block for of, block in fenced(path) if of == "console")
        before, *steps = re.split(r"^\$ ", text, flags=re.MULTILINE)
        assert not before, f"{relative(path)}: a console block begins with `$ ` and a command"
        if steps:
            parts = [step.partition("\n") for step in steps]
            found.append(pytest.param([(p[0], p[2]) for p in parts], id=relative(path)))
    return found


@pytest.mark.parametrize("steps", consoles())
def test_commands_print_what_is_shown(
    steps: list[tuple[str, str]], sample_data: Path, monkeypatch: Any, run: Any
) -> None:
    """`...` stands for what differs from run to run."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(sample_data)
    for command, shown in steps:
        printed = run(*shlex.split(command)[1:], code=None).output
        same = doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS)
        assert same, f"`{command}` prints\n\n{printed}\nand not\n\n{shown}"


@pytest.mark.parametrize("block", blocks("toml"))
def test_toml_block_is_a_config(block: str, sample_data: Path, monkeypatch: Any, run: Any) -> None:
    monkeypatch.chdir(sample_data)
    Path("shown.toml").write_text(block)
    run("explain", "cube.npy", "-c", "shown.toml")


@pytest.mark.parametrize("block", blocks("make"))
def test_make_block_makes_again_what_is_out_of_date(
    block: str, sample_data: Path, commands: dict[str, str]
) -> None:
    (sample_data / "Makefile").write_text(block)
    make = ["make", "head.smooth.nii.gz"]
    run_block(make, sample_data, commands)
    config = sample_data / "pipeline" / "smooth.toml"
    config.write_text('kernel = "identity"\n')
    result = sample_data / "head.smooth.nii.gz"
    before = result.read_bytes()
    run_block(make, sample_data, commands)
    assert result.read_bytes() != before
    assert str(config.relative_to(sample_data)) in Path(f"{result}.d").read_text()


def test_every_kind_of_block_is_known() -> None:
    kinds = {"sh", "python", "make", "toml", "console", "text"}
    for path in FOR_USERS:
        strange = [language for language, _ in fenced(path) if language not in kinds]
        assert not strange, f"{relative(path)}: blocks are one of {kinds}, and not {strange}"


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


# ---------------------------------------------------------------------------------------------------------------------
# README and the pages of the manual


def test_readme_is_short_and_begins_with_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200, (
        "README.md has at most 200 lines: the manual takes the rest"
    )
    places = [text.find(words) for words in ("make demo", "make test", "## Five commands")]
    assert -1 < places[0] < places[1] < places[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_installs_what_it_needs(tmp_path: Path) -> None:
    """The package alone, unless the tools to work on it are there."""

    def installs() -> list[str]:
        words = ["make", "-n", "demo", f"VENV={tmp_path}", f"PYTHON={sys.executable}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if " -m pip " in line]

    (alone,) = installs()
    assert alone.endswith("--editable .")
    assert "--quiet" not in alone
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / ".installed").touch()
    assert installs() == []


def test_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [topic for topic in read_pages() if f"(conv3d_cli/manual/{topic}.md)" not in text]
    assert not missing, f"link these pages of the manual in README.md: {missing}"


@pytest.mark.parametrize("path", FOR_USERS, ids=relative)
def test_lines_fit(path: Path) -> None:
    """Lines into 100 columns; what is shown in pages, indented by 4, into a terminal of 80."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert len(line) <= 100, f"{relative(path)}:{number} has {len(line)} columns"
    for _, block in fenced(path) if path.parent == MANUAL else ():
        wide = [line for line in block.splitlines() if len(line) > 76]
        assert not wide, f"{relative(path)}: cut these lines to 76 columns: {wide}"


@pytest.mark.parametrize("topic", read_pages())
def test_pages_have_what_the_list_shows(topic: str) -> None:
    found = read_pages()[topic]
    assert page(topic).startswith(f"# {found.title}\n\n{found.summary}\n\n")
    assert re.fullmatch(r"[A-Z].{1,58}[.:]?", found.summary), "a sentence of at most 60 characters"
    assert found.summary.endswith(".")
    assert found.also, "end the page by <!-- also: ... -->, words that people may ask for"
    page(topic).encode("latin-1")  # terminals and pipes that know no more show it whole


def test_a_word_leads_to_one_page() -> None:
    pages = read_pages()
    seen = dict.fromkeys(pages, "its name")
    for found in pages.values():
        for word in found.also:
            assert word not in seen, f"{word} leads to {found.topic} and {seen[word]}"
            assert word == word.casefold().replace("_", "-").lstrip("-."), word
            seen[word] = found.topic


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), f"{relative(path)} leads to {target}"


def test_pictures_are_small_and_drawn_by_their_pages() -> None:
    """`test_shell_block_runs` compares them with what the commands draw."""
    shown = set()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            picture = (path.parent / name).resolve()
            shown.add(picture)
            assert picture.stat().st_size < 60_000, f"{name}: hold it in fewer colours"
            commands = "".join(block for language, block in fenced(path) if language == "sh")
            if path.parent.name == "manual":
                assert re.search(rf"^conv3d view .* -o {picture.name}$", commands, re.MULTILINE)
    assert shown == set(PICTURES.glob("*.png"))


# ---------------------------------------------------------------------------------------------------------------------
# Everything is named


def all_commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))


COMMANDS = dict(all_commands(main))
SUFFIXES = {suffix for entry in FORMATS for suffix in entry.suffixes}
# topic -> what its page names, each as a word
NAMED = {
    "kernels": {
        **dict.fromkeys((f.__name__ for f in BUILTIN_KERNELS), "kernel"),
        **dict.fromkeys(FUNCTIONS, "function of formulas"),
        **dict.fromkeys(UNITS, "unit"),
        **dict.fromkeys({s for entry in KERNEL_FILES for s in entry.suffixes} - SUFFIXES, "suffix"),
    },
    "edges": dict.fromkeys(BOUNDARIES, "boundary"),
    "axes": dict.fromkeys(PADDINGS, "padding"),
    "masks": dict.fromkeys((*MASK_MODES, *NAN_MODES), "word of an option"),
    "formats": dict.fromkeys(SUFFIXES, "suffix"),
    "presets": dict.fromkeys(PRESETS, "preset"),
    "memory": dict.fromkeys((entry.name for entry in ALGORITHMS), "algorithm"),
    "exit-codes": dict.fromkeys(
        (
            *map(str, (0, 2, 129, 130, 143)),
            *{str(cls.exit_code) for cls in vars(errors).values() if hasattr(cls, "exit_code")},
        ),
        "exit code",
    ),
    "layers": {
        **dict.fromkeys((f.__name__ for f in ACTIVATIONS), "activation"),
        **dict.fromkeys(initializers.names(), "initializer"),
        **dict.fromkeys(set(regularizers.names()) - {"l1l2"}, "regularizer"),
        **dict.fromkeys(constraints.names(), "constraint"),
        **dict.fromkeys(set(inspect.signature(Conv3D).parameters) - {"kwargs"}, "argument"),
        **dict.fromkeys((s for entry in WEIGHTS_FILES for s in entry.suffixes), "suffix"),
    },
    "commands": dict.fromkeys(
        (f"conv3d {name}" for name in COMMANDS if name != "kernel"), "command"
    ),
}


@pytest.mark.parametrize("topic", NAMED)
def test_the_manual_names_everything(topic: str) -> None:
    text = page(topic)
    missing = [
        f"{kind} {name}"
        for name, kind in NAMED[topic].items()
        if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
    ]
    assert not missing, f"conv3d_cli/manual/{topic}.md says nothing of {missing}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_names_every_option(name: str) -> None:
    text = "".join(found.text for found in read_pages().values())
    flags = [
        flag
        for option in COMMANDS[name].params
        if isinstance(option, click.Option)
        for flag in option.opts
        if flag.startswith("--")
    ]
    missing = [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", text)]
    assert not missing, f"no page of the manual says anything of {missing} of conv3d {name}"


def test_the_manual_names_every_variable_and_extra() -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "conv3d_cli").rglob("*.py"))
    text = "".join(found.text for found in read_pages().values())
    variables = set(re.findall(r"(?<!_)CONV3D_[A-Z_]+", sources))
    assert not {name for name in variables if f"${name}" not in text}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    assert not {extra for extra in extras if f"'.[{extra}]'" not in page("formats")}


@pytest.mark.parametrize("name", main.commands)
def test_commands_have_examples_and_lead_to_the_manual(name: str) -> None:
    usual = f"conv3d {name}" in inspect.cleandoc(main.commands[name].help or "")
    assert usual, (
        f"the docstring of the command {name} begins with the usual lines, such as `conv3d {name} ...`"
    )
    led = [found.topic for found in read_pages().values() if name in (found.topic, *found.also)]
    assert led, f"let a page of the manual be about `{name}`: <!-- also: ..., {name} -->"


@pytest.mark.parametrize("name", main.commands)
def test_options_have_help(name: str) -> None:
    options = [
        option for option in main.commands[name].params if option.param_type_name == "option"
    ]
    silent = [option.name for option in options if not getattr(option, "help", None)]
    assert not silent, f"conv3d {name}: give these options a help text: {silent}"


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
        and "overload" not in map(ast.unparse, node.decorator_list)
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


@pytest.mark.parametrize("path", modules(), ids=str)
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


@pytest.mark.parametrize("path", modules(), ids=str)
def test_docstrings_describe_the_fields_of_the_class(path: Path) -> None:
    wrong = []
    for cls in public_classes(path):
        fields = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        try:
            arguments = set(inspect.signature(cls).parameters)
        except ValueError:  # a class of C has none
            arguments = set()
        try:
            source = inspect.getsource(cls)
        except OSError:  # `namedtuple` made it
            source = ""
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

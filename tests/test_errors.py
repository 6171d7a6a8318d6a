"""Errors: what a Python caller may catch, what the command ends with, and what a wrong name gets told."""

from __future__ import annotations

import ast
import copyreg
import inspect
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conv3d_cli
from conv3d_cli import errors
from conv3d_cli.errors import Conv3DError, UnknownNameError, unknown_name
from conv3d_cli.pipeline.operations import SUMMARIES, find_operation
from conv3d_cli.settings.options import OPTION

# class -> (the builtin a caller expects, exit code): the list in the manual's exit-codes.md
PROMISED = {
    "Conv3DError": (Exception, 1),
    "SpecError": (ValueError, 2),
    "UnknownNameError": (ValueError, 2),
    "ConfigError": (ValueError, 2),
    "FormatError": (OSError, 3),
    "ShapeError": (ValueError, 4),
    "OutputExistsError": (FileExistsError, 5),
    "MemoryLimitError": (MemoryError, 6),
    "ChangedInputError": (ValueError, 4),
    "DifferenceError": (ValueError, 7),
    "FaultError": (ArithmeticError, 7),
    "WriteError": (OSError, 1),
    "ClusterError": (ConnectionError, 1),
    "SystemLimitError": (RuntimeError, 1),
}
CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, Conv3DError)
]


def test_every_error_is_promised() -> None:
    assert {error.__name__ for error in CLASSES} == set(PROMISED)


def test_every_error_can_be_caught_by_its_public_name() -> None:
    for error in CLASSES:
        assert getattr(conv3d_cli, error.__name__) is error
        assert error.__name__ in conv3d_cli.__all__


@pytest.mark.parametrize("error", CLASSES)
def test_builtin_and_exit_code(error: type[Conv3DError]) -> None:
    builtin, code = PROMISED[error.__name__]
    assert issubclass(error, builtin)
    assert error.exit_code == code
    assert error.__doc__


@pytest.mark.parametrize("error", CLASSES)
def test_the_message_is_what_was_said(
    error: type[Conv3DError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of those that descend from OSError, which treats two arguments otherwise; and through a process pool."""
    # Dask's way, if it was imported, fails for MemoryError
    monkeypatch.delitem(copyreg.dispatch_table, error, raising=False)
    assert str(error("a rule, received 3; do this")) == "a rule, received 3; do this"
    again = pickle.loads(pickle.dumps(error("said")))
    assert type(again) is error
    assert str(again) == "said"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("rellu", "relu"), ("RELU", "relu"), ("sigmod", "sigmoid"), ("Tanh ", "tanh"), ("xyz", None),
     ("", None), (3, None), (None, None)],
)  # fmt: skip
def test_unknown_names_get_a_suggestion(name: object, suggestion: str | None) -> None:
    error = unknown_name("activation", name, ["relu", "sigmoid", "tanh"])
    assert type(error) is UnknownNameError
    assert f"unknown activation '{name}'; " in str(error)
    assert "available: relu, sigmoid, tanh" in str(error)
    assert ("did you mean" in str(error)) == (suggestion is not None)
    assert suggestion is None or f"did you mean '{suggestion}'?" in str(error)


def test_names_may_come_from_any_iterable() -> None:
    assert "available: a, b" in str(unknown_name("thing", "q", iter(["a", "b"])))


def test_messages_are_of_moderate_length() -> None:
    received = "\x1b" * 10**5
    text = str(Conv3DError(f"strides must be whole numbers, received {received}; say strides=2"))
    assert text.startswith("strides must be whole numbers, received ")
    assert text.endswith("; say strides=2")
    assert len(text) < errors.LONGEST_MESSAGE + 10


# ---------------------------------------------------------------------------------------------------------------------
# Words for the reader

# rooms that a program in Python calls
FOR_PYTHON = ("api", "analysis", "pipeline", "settings", "convolution", "kernels", "formats", "layer", "engine", "model", "system")  # fmt: skip
PACKAGE = Path(errors.__file__).parent


def called(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def library_sources() -> list[Path]:
    return [path for room in FOR_PYTHON for path in sorted((PACKAGE / room).rglob("*.py"))]


def test_the_reader_decides_the_words() -> None:
    assert errors.setting("boundary", "nearest") == "boundary='nearest'"
    assert errors.words("-k", "kernel") == "kernel"
    with errors.for_command_line():
        assert errors.setting("boundary", "nearest") == "--boundary nearest"
        assert errors.words("-k", "kernel") == "-k"
        with errors.for_command_line():
            pass
        assert errors.setting("overwrite", True) == "--overwrite"
    assert errors.setting("overwrite", True) == "overwrite=True"


def test_threads_of_a_batch_speak_to_the_same_reader() -> None:
    said: list[str] = []
    with errors.for_command_line():
        thread = threading.Thread(target=lambda: said.append(errors.setting("mask")))
        thread.start()
        thread.join()
    assert said == ["--mask"]


def test_a_failed_command_speaks_to_python_no_more(tmp_path: Path, run: Any) -> None:
    (tmp_path / "o.npy").touch()
    np.save(tmp_path / "x.npy", np.ones((3, 3, 3)))
    result = run("apply", tmp_path / "x.npy", "-k", "box", "-o", tmp_path / "o.npy", code=5)
    assert "pass --overwrite to replace it" in result.stderr
    with pytest.raises(errors.OutputExistsError, match="pass overwrite=True to replace it"):
        conv3d_cli.convolve_file(tmp_path / "x.npy", tmp_path / "o.npy", "box")


def test_settings_in_messages_are_options_and_arguments() -> None:
    arguments = set(inspect.signature(conv3d_cli.conv3d).parameters)
    for operation in map(find_operation, SUMMARIES):
        arguments |= {parameter.name for parameter in operation.described.parameters}
    for path in library_sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if called(node, "setting") and isinstance(node.args[0], ast.Constant):
                name = node.args[0].value
                where = f"{path}:{node.lineno}"
                assert name in OPTION or name in arguments, f"{where}: no option is called {name}"
                if name in OPTION and path.parts[-2] != "system":
                    assert OPTION[name].python, f"{where}: Python has no argument {name}"


def test_messages_of_the_library_name_no_flags() -> None:
    """They go to programs, too: `setting` and `words` know what their readers type."""
    flags = {flag.partition("/")[0] for option in OPTION.values() for flag in option.flags}
    pattern = re.compile("|".join(f"{flag}(?![a-z-])" for flag in flags if flag.startswith("--")))
    for path in library_sources():
        if path.name in ("option.py", "options.py", "presets.py"):
            continue  # the table itself
        tree = ast.parse(path.read_text(encoding="utf-8"))
        fitting = {
            id(part)
            for node in ast.walk(tree)
            if called(node, "words")
            for part in ast.walk(node.args[0])
        }
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
                node
            ):
                fitting.add(id(node.body[0].value))  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = pattern.findall(node.value) if id(node) not in fitting else []
                # only a command runs on a cluster
                assert not found or "--scheduler" in found, f"{path}:{node.lineno}: {found}"

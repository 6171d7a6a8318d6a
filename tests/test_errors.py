"""Errors: what a Python caller may catch, what the command ends with, and what a wrong name gets told."""

from __future__ import annotations

import copyreg
import inspect
import pickle

import pytest

from conv3d_cli import errors
from conv3d_cli.errors import Conv3DError, UnknownNameError, unknown_name

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
    "WriteError": (OSError, 1),
    "ClusterError": (ConnectionError, 1),
}
CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, Conv3DError)
]


def test_every_error_is_promised() -> None:
    assert {error.__name__ for error in CLASSES} == set(PROMISED)


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

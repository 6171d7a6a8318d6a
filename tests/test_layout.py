"""The tests' own order: rooms as in the package, helpers apart from tests, one way to call the command and to wait."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "conv3d_cli"
# What lies beside the rooms: programs, files, and tests of all rooms together.
BESIDE = {"benchmarks", "data", "fuzz", "golden", "live", "windows"}
FILES = sorted(path.relative_to(HERE) for path in HERE.rglob("*.py"))
TESTS = [path for path in FILES if path.name.startswith("test_")]


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, module) of all imports of a file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse((HERE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or ""))
    return found


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_a_test_lies_in_the_room_that_it_is_about(path: Path) -> None:
    room = path.parent
    if room.parts and room.parts[0] not in BESIDE:
        assert (PACKAGE / room).is_dir(), (
            f"there is no conv3d_cli/{room}: put {path.name} where what it tests is"
        )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_test_module_is_imported(path: Path) -> None:
    for line, name in imported(path):
        last = name.rpartition(".")[2]
        assert not last.startswith(("test_", "conftest")), (
            f"{path}:{line} imports {name}: put what both need into a helper module, or a fixture into conftest.py"
        )


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_no_process_looks_for_tests_by_a_path(path: Path) -> None:
    """A text that is run elsewhere and imports from the tests depends on where it is started."""
    if path == Path(__file__).relative_to(HERE):
        return
    for node in ast.walk(ast.parse((HERE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "sys.path" not in node.value, (
                f"{path}:{node.lineno}: run pytest on a test of this file in its place"
            )


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "conftest.py"], ids=str)
def test_the_command_is_called_by_the_fixture(path: Path) -> None:
    if path == Path(
        "cli/test_kernel.py"
    ):  # calls a group of commands by itself, and looks at the errors' classes
        return
    names = {
        node.id
        for node in ast.walk(ast.parse((HERE / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Name)
    }
    assert "CliRunner" not in names, f"{path}: take the fixture `run`, which checks the exit code"


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_no_test_gives_up_after_some_seconds(path: Path) -> None:
    """A busy machine takes as long as it takes: `processes.LIMIT` ends what would never end."""
    text = (HERE / path).read_text(encoding="utf-8")
    found = re.findall(
        r"(?:timeout=|\.communicate\(|deadline = time\.monotonic\(\) \+ )\d{2,}", text
    )
    assert not found, (
        f"{path}: {found}: wait with timeout=LIMIT, or by `wait_until`, of processes.py"
    )

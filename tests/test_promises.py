"""The manual's page of promises: what it names exists, and its figures are those of the tests."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from targets import TARGETS

from conv3d_cli.engine.cpu import CPU_CLASSES
from conv3d_cli.pipeline.checks import SHARE

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "conv3d_cli" / "manual" / "promises.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())


def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(path: str) -> Any:
    """A module of tests."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"promised_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def test_every_file_that_is_named_exists_and_has_tests() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", PAGE))
    assert len(named) > 15
    for path in named:
        assert (ROOT / path).is_file(), path
        if Path(path).name.startswith("test_"):
            assert any(
                isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
                for node in parsed(path).body
            ), path


def test_every_target_of_make_that_is_named_exists() -> None:
    named = set(re.findall(r"`make ([\w-]+)", TEXT))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_digests_are_counted() -> None:
    digests = json.loads((ROOT / "tests" / "golden" / "digests.json").read_text())
    rows = {part: len(found) for part, found in digests.items() if part != "why"}
    assert f"{sum(rows.values())} SHA-256 digests" in TEXT
    assert f"`make test-arm` computes {sum(rows.values()) - rows['formats']} of them" in TEXT
    for part, words in {
        "engine": "of the engine", "plans": "of the planner's choices", "kernels": "of kernels",
        "formats": "of voxels out of each format", "presets": "of presets",
        "wide": "of separable kernels on wide rows",
    }.items():  # fmt: skip
        assert f"{rows.pop(part)} {words}" in TEXT
    assert not rows
    assert f"under {len(CPU_CLASSES)} classes of CPUs" in TEXT


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tests/cli/test_killed.py", "the {} cases of `tests/cli/test_killed.py`"),
        ("tests/cli/test_failing_calls.py", "in the {} cases of `tests/cli/test_failing_calls.py`"),
    ],
)
def test_cases_are_counted(path: str, words: str) -> None:
    assert words.format(len(imported(path).CASES)) in TEXT


def test_other_figures_are_those_of_the_tests() -> None:
    from failing_calls import KINDS

    assert f"{len(KINDS)} kinds of calls" in TEXT
    assert f"{len(imported('tests/cli/test_killed.py').FIRST)} of them in every run" in TEXT
    assert f"{len(TARGETS)} readers in `tests/fuzz/targets.py`" in TEXT
    assert f"at most {SHARE:.0%}".replace("%", " %") in TEXT
    checksum = (ROOT / "tests/engine/test_checksum.py").read_text()
    assert "find_faults(10_000, monkeypatch, tuple(PROBLEMS)) == 10_000" in checksum
    assert "check_clean_tiles(100_000, tuple(PROBLEMS), precision)" in checksum
    assert "find_faults(16, monkeypatch, (name,)) == 16" in checksum
    assert "plants 16 for each algorithm" in TEXT
    ceiling = (ROOT / "tests/pipeline/test_ceiling.py").read_text()
    (seeds,) = re.findall(r"for n in range\((\d+)\)", ceiling)
    assert f"{seeds} random commands" in TEXT

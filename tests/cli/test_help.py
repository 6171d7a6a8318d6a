"""Each command's help begins with the lines that are typed most, and they are lines that the command takes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest

from conv3d_cli.cli import main
from conv3d_cli.kernels.weights import WEIGHTS_FILES
from conv3d_cli.settings.option import SECTIONS
from conv3d_cli.settings.options import OPTIONS

SIMPLE = ("warmup", "kernel list", "presets")  # hardly take anything: one line says all


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = {" ".join(path): command for path, command in commands(main)}


def help_lines(command: click.Command) -> list[str]:
    return command.get_help(
        click.Context(command, info_name="conv3d", max_content_width=110)
    ).splitlines()


def examples(command: click.Command) -> list[str]:
    return [line.strip() for line in help_lines(command) if line.startswith("    conv3d ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_the_usual_lines(name: str) -> None:
    assert len(examples(COMMANDS[name])) >= (1 if name in SIMPLE else 3)
    first = next(
        number
        for number, line in enumerate(help_lines(COMMANDS[name]))
        if line.startswith("    conv3d ")
    )
    assert first <= 6, "only a sentence stands above them"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_lines_are_ones_that_it_takes(name: str) -> None:
    for line in examples(COMMANDS[name]):
        words = shlex.split(line.partition(" #")[0].partition(" > ")[0])[1:]
        command: click.Command = main
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        # raises for an option that it does not know, or a wrong value
        command.make_context("conv3d", words)


# ---------------------------------------------------------------------------------------------------------------------
# The short help and the whole one

LONG = ("apply", "explain")


def at_80_columns(monkeypatch: pytest.MonkeyPatch, run: Any, *words: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS.values():
        # Click keeps the help option of the first context, which of a test may lack -h
        monkeypatch.setattr(command, "_help_option", None, raising=False)
    return run(*words).stdout.splitlines()


@pytest.mark.parametrize("group", [(), ("kernel",)])
def test_the_first_sentence_is_whole_in_the_list_of_commands(
    group: tuple[str, ...], monkeypatch: Any, run: Any
) -> None:
    lines = at_80_columns(monkeypatch, run, *group, "--help")
    listed = lines[lines.index("Commands:") + 1 :]
    assert len(listed) > 3
    assert not [line for line in listed if line.endswith("...")]


@pytest.mark.parametrize("name", LONG)
def test_help_is_a_screen_and_a_half(name: str, monkeypatch: Any, run: Any) -> None:
    lines = at_80_columns(monkeypatch, run, name, "--help")
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 80
    assert at_80_columns(monkeypatch, run, "help", name)[: len(lines)] == lines


def test_kernel_convert_lists_the_suffixes_that_it_reads_and_writes() -> None:
    reads, _, writes = (
        (COMMANDS["kernel convert"].help or "").partition("Reads")[2].partition("Writes")
    )
    written, named = writes.partition("\n\n")[0].split(), reads.split()
    for kind in WEIGHTS_FILES:
        for suffix in kind.suffixes:
            assert f"{suffix}" in (word.rstrip(",") for word in named), suffix
            assert (f"{suffix}" in (word.rstrip(",") for word in written)) == bool(kind.encode)


@pytest.mark.parametrize("name", LONG)
def test_the_output_stands_behind_the_kernel(name: str, monkeypatch: Any, run: Any) -> None:
    text = "\n".join(at_80_columns(monkeypatch, run, name, "--help"))
    places = [text.index(f"\n  {flag}") for flag in ("-k,", "--flip", "-o,", "--boundary", "-h,")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", LONG)
def test_help_has_the_common_options_and_help_all_has_all(
    name: str, monkeypatch: Any, run: Any
) -> None:
    rows = [row for row in OPTIONS if row.section and (name == "apply" or row.explains)]
    short = " ".join(" ".join(at_80_columns(monkeypatch, run, name, "--help")).split())
    monkeypatch.setenv("COLUMNS", "5000")
    whole = " ".join(run(name, "--help-all").stdout.split())
    for row in rows:
        assert (f" {row.written} " in short or f"{row.flags[-1]} " in short) == row.common, row.name
        assert "".join(row.help.split()) in "".join(whole.split())  # lines end at hyphens, too
        if row.common:
            assert " ".join(row.brief.split()) in short
    assert "--help-all Show all options by section" in short
    places = [whole.index(f" {section}: ") for section in SECTIONS if f" {section}: " in whole]
    assert places == sorted(places)
    assert len(places) >= 7


def test_some_are_common_and_most_are_not() -> None:
    common = [row.name for row in OPTIONS if row.common]
    assert {"kernel", "output", "mask", "fwhm", "boundary", "out_dir", "overwrite"} <= set(common)
    assert len(common) < len([row for row in OPTIONS if row.section]) / 2


def test_a_brief_is_a_sentence_that_fits() -> None:
    for row in OPTIONS:
        if row.common:
            sentence = row.brief.partition("  [default: ")[0]
            assert sentence.endswith("."), sentence
            assert len(row.brief) <= 110, row.brief


def test_common_options_are_completed_first(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("_CONV3D_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "conv3d apply --")
    told = [line.removeprefix("plain,") for line in run().stdout.split()]
    common = {
        flag for row in OPTIONS if row.common for flags in row.flags for flag in flags.split("/")
    }
    ranks = [flag in common or flag.startswith("--help") for flag in told]
    assert ranks == sorted(ranks, reverse=True)
    assert {f for row in OPTIONS for f in row.flags if f.startswith("--") and "/" not in f} <= set(
        told
    )


def test_the_whole_help_is_printed_and_nothing_is_run(run: Any, desk: Any) -> None:
    run("apply", "a.nii.gz", "-k", "box", "-o", "o.nii.gz", "--help-all")
    assert not (desk / "o.nii.gz").exists()


def test_a_command_of_few_options_shows_them_all(run: Any) -> None:
    """Also those in sections: only `apply` and `explain` have a short help."""
    shown = run("bench", "--help").stdout
    assert "--patience" in shown
    assert "--help-all" not in shown

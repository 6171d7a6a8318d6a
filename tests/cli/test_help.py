"""Each command's help begins with the lines that are typed most, and they are lines that the command takes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest

from conv3d_cli.cli import main

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


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_sentence_is_whole_in_the_list_of_commands(name: str) -> None:
    """`conv3d --help` cuts what is longer than a line of 80."""
    if name and not isinstance(COMMANDS[name], click.Group):
        assert not COMMANDS[name].get_short_help_str(66).endswith("..."), COMMANDS[
            name
        ].get_short_help_str(200)

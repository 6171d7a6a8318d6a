"""Boutiques descriptors, made from the description of the commands.

A descriptor (schema 0.5, https://boutiques.github.io) tells workflow programs how to build a
command line, and which files it makes. Defaults stand in the descriptions alone: Boutiques would
write them into the command line, where they would beat configs and presets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conv3d_cli.cli.description import Argument, Command, Option
from conv3d_cli.cli.man import facts
from conv3d_cli.errors import EXIT_CODES, SpecError
from conv3d_cli.settings.option import File

_FILE_WORDS = {file.name.lower(): file.value for file in File}
_WRITTEN = ("written", "folder")


def descriptor(command: Command, version: str) -> dict[str, Any]:
    """The descriptor of a command as a JSON object.

    Raises: SpecError for a group of commands, which runs nothing itself.
    """
    if command.commands:
        raise SpecError(
            f"'{' '.join(command.words)}' is a group, and Boutiques describes one command; name "
            f"one of {', '.join(command.commands)}"
        )
    options = [option for option in command.options if not option.exits]
    if not options and not command.arguments:
        options = list(command.options)  # Boutiques refuses a command without inputs
    inputs = [entry for option in options for entry in _option_inputs(option)]
    inputs += [_argument_input(argument) for argument in command.arguments]
    outputs = [_output(p) for p in (*options, *command.arguments) if p.file in _WRITTEN]
    groups = [_switch_group(option) for option in options if option.type == "switch"]
    line = [*command.words, *(entry["value-key"] for entry in inputs)]
    return {
        "schema-version": "0.5",
        "name": command.name,
        "tool-version": version,
        "description": "\n\n".join([f"{command.summary}.", *command.description]),
        "command-line": " ".join(line),
        "inputs": inputs,
        **({"groups": groups} if groups else {}),
        **({"output-files": outputs} if outputs else {}),
        "error-codes": [
            {"code": code, "description": words} for code, words in EXIT_CODES.items() if code
        ],
        "tags": {"domain": ["neuroinformatics", "microscopy"]},
    }


def _option_inputs(option: Option) -> Iterator[dict[str, Any]]:
    """The inputs of an option: one, or two of a switch."""
    for flag, name in (
        (_long(option.flags), option.name),
        *((flag, f"no_{option.name}") for flag in option.negative_flags),
    ):
        yield {
            "id": name,
            "name": flag.lstrip("-"),
            "description": " ".join(filter(None, (option.help, *facts(option)))),
            "value-key": f"[{name.upper()}]",
            "command-line-flag": flag,
            "optional": not option.required,
            **_value(option),
        }


def _argument_input(argument: Argument) -> dict[str, Any]:
    words = _FILE_WORDS.get(argument.file or "", "")
    return {
        "id": argument.name,
        "name": argument.metavar or argument.name,
        **({"description": f"{argument.metavar}: {words}"} if words else {}),
        "value-key": f"[{argument.name.upper()}]",
        "optional": not argument.required,
        **_value(argument),
    }


def _value(parameter: Argument) -> dict[str, Any]:
    """What Boutiques is told of a parameter's values.

    Only files that are read are of its type File, which must exist and is mounted in containers: a
    kernel may be a built-in. A mask is one file there, since patterns are for many volumes.
    """
    is_input = parameter.file in ("read", "mask")
    found: dict[str, Any] = {"type": "File" if is_input else "String"}
    if parameter.type in ("flag", "switch"):
        found = {"type": "Flag"}
    elif parameter.type in ("integer", "number", "triple"):
        found = {"type": "Number", "integer": parameter.type != "number"}
    if parameter.choices:
        found["value-choices"] = list(parameter.choices)
    if parameter.type == "triple":
        found |= {"list": True, "list-separator": ","}
        found |= {"min-list-entries": 1, "max-list-entries": 3}
    if parameter.repeats and not isinstance(parameter, Option):  # it cannot repeat a flag
        found["list"] = True
    limits = {"minimum": parameter.minimum, "maximum": parameter.maximum}
    return found | {key: limit for key, limit in limits.items() if limit is not None}


def _output(parameter: Argument) -> dict[str, Any]:
    """The file or folder that a parameter names, as an output."""
    return {
        "id": f"{parameter.name}_file",
        "name": f"{parameter.name}_file",
        "description": getattr(parameter, "help", "") or _FILE_WORDS[parameter.file or ""],
        "path-template": f"[{parameter.name.upper()}]",
        "optional": not parameter.required,
    }


def _switch_group(option: Option) -> dict[str, Any]:
    return {
        "id": f"{option.name}_switch",
        "name": " or ".join((*option.flags, *option.negative_flags)),
        "members": [option.name, f"no_{option.name}"],
        "mutually-exclusive": True,
    }


def _long(flags: tuple[str, ...]) -> str:
    return next((flag for flag in flags if flag.startswith("--")), flags[0])

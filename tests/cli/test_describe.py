"""One description of all commands; --help-json, descriptors, man pages and completion hold all of it.

What must be described is read from Click's own commands.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from conv3d_cli import errors
from conv3d_cli.cli import main
from conv3d_cli.cli.boutiques import descriptor
from conv3d_cli.cli.description import Command, describe_program
from conv3d_cli.cli.man import man_pages
from conv3d_cli.cli.options import ShortHelpCommand
from conv3d_cli.errors import EXIT_CODES
from conv3d_cli.settings.option import KINDS, File, Unit
from conv3d_cli.settings.options import OPTION, OPTIONS

ROOT = Path(__file__).parent.parent.parent


def commands(
    command: click.Command, words: tuple[str, ...] = ("conv3d",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(inner, (*words, name))


COMMANDS = dict(commands(main))
LEAVES = [words for words, command in COMMANDS.items() if not isinstance(command, click.Group)]
DESCRIBED = {c.words: c for c in describe_program(main, "1.2.3").commands}
PAGES = man_pages(describe_program(main, "1.2.3"))


def shown(words: tuple[str, ...]) -> list[click.Option]:
    """The options that a command's help shows, those of the table even if it hides them."""
    found = [p for p in COMMANDS[words].params if isinstance(p, click.Option)]
    return [p for p in found if not p.hidden or (p.name in OPTION and p.name != "help_json")]


def flags_of(words: tuple[str, ...]) -> set[str]:
    return {flag for p in shown(words) for flag in (*p.opts, *p.secondary_opts)}


def name_of(words: tuple[str, ...]) -> str:
    return "-".join(words)


every_command = pytest.mark.parametrize("words", COMMANDS, ids=name_of)
every_leaf = pytest.mark.parametrize("words", LEAVES, ids=name_of)


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def test_all_commands_are_described(run: Any) -> None:
    whole = json.loads(run("--help-json").stdout)
    assert whole["schema_version"] == 1
    assert sorted(tuple(c["words"]) for c in whole["commands"]) == sorted(COMMANDS)
    assert run("describe", "json").stdout == run("--help-json").stdout


@every_command
def test_a_commands_own_json_is_its_part_of_the_whole(words: tuple[str, ...], run: Any) -> None:
    whole = json.loads(run("--help-json").stdout)
    own = json.loads(run(*words[1:], "--help-json").stdout)
    entries = [c for c in whole["commands"] if tuple(c["words"][: len(words)]) == words]
    assert own == {**whole, "commands": entries}
    assert own["commands"][0]["words"] == list(words)
    assert own == json.loads(run("describe", "json", *words[1:]).stdout)


@every_command
def test_every_parameter_is_described(words: tuple[str, ...]) -> None:
    described = DESCRIBED[words]
    told = {flag for option in described.options for flag in option.flags + option.negative_flags}
    short = isinstance(COMMANDS[words], ShortHelpCommand)
    assert told == flags_of(words) | {"-h", "--help"} | ({"--help-all"} if short else set())
    arguments = [p for p in COMMANDS[words].params if isinstance(p, click.Argument)]
    assert [(a.name, a.required) for a in described.arguments] == [
        (p.name, p.required) for p in arguments
    ]
    assert [a.repeats for a in described.arguments] == [p.nargs == -1 for p in arguments]
    parameters = {p.name: p for p in COMMANDS[words].params}
    for option in described.options:
        assert option.help.endswith("."), option.name
        if option.name in parameters:
            same = parameters[option.name].type
            choices = getattr(same, "choices", ())
            assert option.choices == tuple(choices)
            assert option.minimum == getattr(same, "low", None)
            assert option.maximum == getattr(same, "high", None)
        assert option.type in KINDS
        assert (option.metavar is None) == (option.type in ("flag", "switch"))


def test_the_keys_of_version_1(run: Any) -> None:
    """Programs rely on them: whoever changes one gives the schema another version."""
    whole = json.loads(run("--help-json").stdout)
    argument = {
        "name", "metavar", "type", "choices", "minimum", "maximum", "unit", "file", "required",
        "repeats",
    }  # fmt: skip
    option = argument | {
        "flags", "negative_flags", "section", "help", "default", "default_words", "exits", "table",
    }  # fmt: skip
    assert set(whole) == {
        "schema_version", "version", "exit_codes", "types", "units", "files", "commands",
    }  # fmt: skip
    for command in whole["commands"]:
        assert set(command) == {
            "words", "summary", "usage", "examples", "description", "arguments", "options",
            "commands",
        }  # fmt: skip
        assert all(set(entry) == argument for entry in command["arguments"])
        assert all(set(entry) == option for entry in command["options"])
    assert set(whole["types"]) == {
        "text", "flag", "switch", "integer", "number", "triple", "choice",
    }  # fmt: skip
    assert "length" in whole["units"]
    assert "read" in whole["files"]


def test_names_of_units_and_files_are_explained(run: Any) -> None:
    whole = json.loads(run("--help-json").stdout)
    parameters = [p for c in whole["commands"] for p in (*c["arguments"], *c["options"])]
    assert {p["unit"] for p in parameters} - {None} == set(whole["units"])
    assert {p["file"] for p in parameters} - {None} == set(whole["files"])


# what a placeholder promises
UNITS = {
    "LENGTH": Unit.LENGTH, "SIZE": (Unit.BYTES, Unit.BYTES_PER_SECOND), "FRACTION": Unit.FRACTION,
    "SECONDS": Unit.SECONDS, "N|N,N,N": Unit.VOXELS,
}  # fmt: skip
FILES = {
    "FILE", "FILE...", "INPUT", "INPUT...", "OUT", "A", "B", "SRC...", "SRC[::NAME]", "DST", "FILE.png",
    "VOLUME", "MASK", "SIDECAR", "KERNEL", "DIR", "PAGE",
}  # fmt: skip


@every_command
def test_placeholders_keep_their_promise(words: tuple[str, ...]) -> None:
    described = DESCRIBED[words]
    for parameter in (*described.arguments, *described.options):
        metavar = parameter.metavar or ""
        assert (parameter.file is not None) == (metavar in {*FILES, "FILE|VALUE"}), metavar
        if metavar in UNITS:
            allowed = UNITS[metavar] if isinstance(UNITS[metavar], tuple) else (UNITS[metavar],)
            assert parameter.unit in {unit.name.lower() for unit in allowed}, parameter.name


def test_lost_in_no_option_of_the_table() -> None:
    described = {o.name: o for o in DESCRIBED["conv3d", "apply"].options}
    for row in OPTIONS:
        if row.section:
            told = described[row.name]
            assert told.file == (row.file.name.lower() if row.file else None)
            assert told.unit == (row.unit.name.lower() if row.unit else None)
            assert told.type == row.kind.name
            assert told.section == row.section
    assert {o.file for o in described.values()} - {None} == {f.name.lower() for f in File}


def test_exit_codes_are_those_of_the_errors(run: Any) -> None:
    raised = {cls.exit_code for cls in vars(errors).values() if inspect.isclass(cls) and hasattr(cls, "exit_code")}  # fmt: skip
    assert raised <= set(EXIT_CODES)
    assert json.loads(run("--help-json").stdout)["exit_codes"] == {
        str(code): words for code, words in EXIT_CODES.items()
    }
    text = " ".join(run("--help").stdout.split())
    for code, words in EXIT_CODES.items():
        assert f"{code} {words}" in text


def test_unknown_commands_are_refused(run: Any, error_line: Any) -> None:
    def message(*words: str) -> str:
        line: str = error_line(run("describe", *words, code=2).stderr)
        return line

    assert "unknown command of conv3d 'aply'; did you mean 'apply'?" in message("man", "aply")
    assert "`conv3d apply` has no commands; leave out 'x'" in message("json", "apply", "x")
    assert "name one of convert, list, make, show" in message("boutiques", "kernel")
    assert "name one of apply, bench" in message("boutiques")


# ---------------------------------------------------------------------------------------------------------------------
# Boutiques


def made(words: tuple[str, ...]) -> dict[str, Any]:
    return descriptor(DESCRIBED[words], "1.2.3")


@every_leaf
def test_a_descriptor_has_every_parameter(words: tuple[str, ...], run: Any) -> None:
    found = made(words)
    assert found["name"] == name_of(words)
    line = found["command-line"].split()
    assert tuple(line[: len(words)]) == words
    keys = [entry["value-key"] for entry in found["inputs"]]
    assert line[len(words) :] == keys
    assert len(set(keys)) == len(keys)
    flags = {e["command-line-flag"] for e in found["inputs"] if "command-line-flag" in e}
    long = {flag for flag in flags_of(words) if flag.startswith("--")}
    if words != ("conv3d", "kernel", "list"):  # which takes nothing, and Boutiques asks for a thing
        assert {flag for flag in flags if flag.startswith("--")} == long
    # a default would be written into the command line, and beat configs and presets
    assert not [entry for entry in found["inputs"] if "default-value" in entry]
    printed = json.loads(run("describe", "boutiques", *words[1:]).stdout)
    assert printed["inputs"] == found["inputs"]


def command_line(found: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The words that Boutiques makes of values: its rules, read in its documentation."""
    inputs = {entry["value-key"]: entry for entry in found["inputs"]}
    line = []
    for word in found["command-line"].split():
        entry = inputs.get(word)
        if entry is None:
            line.append(word)
        elif entry["id"] in values:
            value = values[entry["id"]]
            flag = [entry["command-line-flag"]] if "command-line-flag" in entry else []
            if entry["type"] == "Flag":
                line += flag
            elif entry.get("list"):
                texts = [str(one) for one in value]
                separator = entry.get("list-separator")
                line += [*flag, *([separator.join(texts)] if separator else texts)]
            else:
                line += [*flag, str(value)]
    return line


def test_the_line_of_a_descriptor_is_one_that_apply_takes() -> None:
    values = {
        "inputs": ["a.nii", "b.nii"], "kernel": "gaussian:fwhm=6mm", "out_dir": "out", "no_flip": True,
        "strides": [2, 1, 1], "min_coverage": 0.5, "glob": "*.nii", "nan": "ignore", "overwrite": True,
    }  # fmt: skip
    line = command_line(made(("conv3d", "apply")), values)
    taken = COMMANDS["conv3d", "apply"].make_context("apply", line[2:]).params
    assert taken["inputs"] == ("a.nii", "b.nii")
    assert (taken["flip"], taken["strides"], taken["glob"]) == (False, [2, 1, 1], ("*.nii",))
    assert (taken["min_coverage"], taken["nan"], taken["overwrite"]) == (0.5, "ignore", True)
    assert (taken["kernel"], taken["out_dir"]) == ("gaussian:fwhm=6mm", "out")


def test_a_descriptor_tells_files_and_limits() -> None:
    found = made(("conv3d", "apply"))
    inputs = {entry["id"]: entry for entry in found["inputs"]}
    assert (inputs["inputs"]["type"], inputs["inputs"]["list"]) == ("File", True)
    assert (inputs["mask"]["type"], inputs["output"]["type"]) == ("File", "String")
    assert (inputs["kernel"]["type"], inputs["flip"]["type"]) == ("String", "Flag")
    limits = [inputs["gz_level"][key] for key in ("type", "integer", "minimum", "maximum")]
    assert limits == ["Number", True, 0, 3]
    assert inputs["scale"]["value-choices"] == ["none", "auto", "keep"]
    assert {group["id"] for group in found["groups"]} == {"flip_switch", "normalize_switch"}
    outputs = {entry["path-template"] for entry in found["output-files"]}
    assert {"[OUTPUT]", "[OUT_DIR]", "[COVERAGE_OUT]", "[REPORT]", "[DEPFILE]"} <= outputs
    assert {entry["code"] for entry in found["error-codes"]} == set(EXIT_CODES) - {0}


@every_leaf
def test_boutiques_validates_it(words: tuple[str, ...]) -> None:
    validator = pytest.importorskip("boutiques.validator", reason="needs boutiques")
    validator.validate_descriptor(made(words))


@every_leaf
def test_styx_compiles_it(words: tuple[str, ...]) -> None:
    frontend = pytest.importorskip("styx.frontend.boutiques.core", reason="needs styxcompiler")
    from styx.backend.python.core import to_python

    compiled = to_python([frontend.from_boutiques(made(words), "conv3d")])
    sources = {path[-1]: text for text, path in compiled}
    for name, text in sources.items():
        compile(text, name, "exec")
    assert name_of(words).replace("-", "_") in sources


# ---------------------------------------------------------------------------------------------------------------------
# Man pages


def plain(page: str) -> str:
    """What a page says, without roff's escapes."""
    signs = {"\\-": "-", "\\(aq": "'", "\\(ga": "`", "\\(ha": "^", "\\(ti": "~", "\\e": "\\"}
    text = re.sub(r"\\f[BIR]|\\&", "", page)
    for escaped, sign in signs.items():
        text = text.replace(escaped, sign)
    return re.sub(r"\\\[u([0-9A-F]+)\]", lambda found: chr(int(found[1], 16)), text)


@every_command
def test_a_man_page_has_every_parameter(words: tuple[str, ...], run: Any) -> None:
    page = PAGES[f"{name_of(words)}.1"]
    assert page.isascii()
    text = plain(page)
    described: Command = DESCRIBED[words]
    for option in described.options:
        flags = ", ".join(option.flags + option.negative_flags)
        heading = f"{flags} {option.metavar}" if option.metavar else flags
        assert f".TP\n{heading}\n{option.help.split()[0]}" in text, heading
    assert all(example in text for example in described.examples)
    assert all(f".TP\n{code}\n{words}" in text for code, words in EXIT_CODES.items())
    printed = run("describe", "man", *words[1:]).stdout
    assert printed.splitlines()[1:] == page.splitlines()[1:]  # the first line has the version


def test_pages_are_those_of_the_commands() -> None:
    assert set(PAGES) == {f"{name_of(words)}.1" for words in COMMANDS}
    assert man_pages(describe_program(main, "1.2.3")) == PAGES
    assert all("conv3d 1.2.3" in page.splitlines()[0] for page in PAGES.values())


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
@every_command
def test_groff_has_nothing_to_complain_about(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-c", "-rLL=78n"],
        input=PAGES[f"{name_of(words)}.1"].encode(),
        capture_output=True,
        check=True,
    )
    assert not done.stderr
    seen = re.sub(r".\x08", "", done.stdout.decode())
    for option in DESCRIBED[words].options:
        assert option.flags[-1] in seen


@pytest.mark.parametrize("form", ["json", "man", "boutiques"])
def test_every_pipe_takes_what_is_printed(form: str, run: Any) -> None:
    assert run("describe", form, "apply").stdout.isascii()


# ---------------------------------------------------------------------------------------------------------------------
# Completion


@every_command
def test_a_shell_is_offered_every_command_and_option(words: tuple[str, ...]) -> None:
    shell = ShellComplete(main, {}, "conv3d", "_CONV3D_COMPLETE")
    offered = {item.value for item in shell.get_completions(list(words[1:]), "--")}
    described = DESCRIBED[words]
    flags = {f for o in described.options for f in o.flags + o.negative_flags if f[:2] == "--"}
    assert offered == flags
    if described.commands:
        inner = {item.value for item in shell.get_completions(list(words[1:]), "")}
        assert inner == set(described.commands)

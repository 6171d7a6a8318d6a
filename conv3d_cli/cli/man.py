"""Man pages, made from the description of the commands.

The build of the package writes them into the wheel (`.ci/hatch_build.py`). They are plain ASCII
with escapes, and hold no date, so that the same sources make the same pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conv3d_cli.cli.description import Argument, Command, Description, Option
from conv3d_cli.errors import EXIT_CODES
from conv3d_cli.settings.option import SECTIONS

# What roff reads as commands or draws as other signs.
_ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


def man_pages(described: Description) -> dict[str, str]:
    """The page of each command, in roff, by its file name such as "conv3d-apply.1"."""
    return {
        f"{command.name}.1": man_page(command, described.version) for command in described.commands
    }


def man_page(command: Command, version: str) -> str:
    """The page of one command, in roff."""
    return "\n".join(_lines(command, version)) + "\n"


def _lines(command: Command, version: str) -> Iterator[str]:
    yield f'.TH "{command.name.upper()}" 1 "" "conv3d {version}" "conv3d"'
    yield from (".nh", ".ad l")  # options and file names are not divided
    yield ".SH NAME"
    yield f"{_escaped(command.name)} \\- {_escaped(command.summary)}"
    yield ".SH SYNOPSIS"
    yield f".B {_escaped(' '.join(command.words))}"
    if placeholders := command.usage.split()[len(command.words) :]:
        yield _escaped(" ".join(placeholders))
    if command.examples:
        yield ".SH EXAMPLES"
        yield from _verbatim(command.examples)
    if command.description:
        yield ".SH DESCRIPTION"
    for paragraph in command.description:
        yield from _paragraph(paragraph)
    if command.commands:
        yield ".SH COMMANDS"
        yield ", ".join(f"\\fB{_escaped(f'{command.name}-{c}')}\\fR(1)" for c in command.commands)
    yield from _options(command.options)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES.items():
        yield from _item(f"\\fB{code}\\fR", _escaped(meaning))
    yield ".SH SEE ALSO"
    others = [command.words[:end] for end in range(1, len(command.words))]
    yield from (f"\\fB{_escaped('-'.join(words))}\\fR(1)," for words in others)
    yield "\\fBconv3d help\\fR for the pages of the manual"


def _options(options: Sequence[Option]) -> Iterator[str]:
    titles = dict.fromkeys(option.section for option in options)
    known = {title: number for number, title in enumerate(SECTIONS)}
    yield ".SH OPTIONS"
    for title in sorted(titles, key=lambda title: known.get(title, len(known))):
        if title != "Options":
            yield f".SS {_escaped(title)}"
        for option in options:
            if option.section == title:
                yield from _item(_heading(option), _option_text(option))


def _heading(option: Option) -> str:
    """The forms of an option in bold, and the placeholder of its value."""
    flags = ", ".join(
        f"\\fB{_escaped(flag)}\\fR" for flag in (*option.flags, *option.negative_flags)
    )
    return f"{flags} \\fI{_escaped(option.metavar)}\\fR" if option.metavar else flags


def _option_text(option: Option) -> str:
    """The help of an option, its limits and its default."""
    return " ".join(map(_escaped, filter(None, (option.help, *facts(option)))))


def facts(parameter: Argument) -> list[str]:
    """Sentences about a parameter's limits and default, which its help does not tell."""
    found = []
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        found.append(f"From {low:g} to {high:g}.")
    elif low is not None:
        found.append(f"At least {low:g}.")
    elif high is not None:
        found.append(f"At most {high:g}.")
    if isinstance(parameter, Option):
        default = parameter.default if parameter.default_words is None else parameter.default_words
        found += [] if default is None else [f"Default: {default}."]
    return found


# --------------------------------------------------------------------------------------------------
# Roff


def _escaped(text: str) -> str:
    """A text of one line as roff shows it.

    >>> print(_escaped("--x 1e-6 of Σ|w|"), _escaped(".nii"))
    \\-\\-x 1e\\-6 of \\[u03A3]|w| \\&.nii
    """
    signs = (_ESCAPES.get(c, c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)
    line = "".join(signs)
    return f"\\&{line}" if line[:1] in (".", "'") else line


def _paragraph(text: str) -> Iterator[str]:
    if "\n" in text:
        yield from _verbatim(text.splitlines())
    else:
        yield ".PP"
        yield _escaped(text)


def _verbatim(lines: Sequence[str]) -> Iterator[str]:
    yield from (".PP", ".nf", ".RS 4")
    yield from map(_escaped, lines)
    yield from (".RE", ".fi")


def _item(heading: str, text: str) -> Iterator[str]:
    yield from (".TP", heading, text)

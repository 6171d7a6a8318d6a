"""`conv3d help`: the pages of the manual, and the help of the commands.

A page is a file `manual/TOPIC.md` in this package: a title, a sentence that says what the page is
about, and its text. A last line `<!-- also: word, word -->` names other words that lead to it.
Pages are shown by Rich on a terminal, and as plain text of 80 columns elsewhere.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from conv3d_cli.cli.layout import list_columns

_ALSO = re.compile(r"^<!-- also: (.*?)\s*-->\n", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$")
_BOLD = re.compile(r"\*\*(?=\S)([^*]+)\*\*")
_PAGE_LINK = re.compile(r"\[[^\]]+\]\(([\w-]+)\.md\)")
_FILE_LINK = re.compile(r"!?\[([^\]]+)\]\((?!https?:)[^)]+\)")


@dataclass(frozen=True)
class Page:
    """A page of the manual.

    topic : str             the file's name without its suffix, by which it is asked for
    title, summary : str    its first heading, and the sentence below it
    also : tuple of str     other words that lead to it
    text : str              Markdown
    """

    topic: str
    title: str
    summary: str
    also: tuple[str, ...]
    text: str


def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """What may stand behind `conv3d help`: topics and commands, behind a group its commands."""
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    typed = ctx.params.get("words") or ()
    group: click.Command | None = root
    for word in typed:
        group = group.commands.get(word) if isinstance(group, click.Group) else None
    inner = list(group.commands) if isinstance(group, click.Group) else []
    words = inner if typed else known_words(read_pages(), root)
    return [word for word in words if word.startswith(incomplete)]


@click.command()
@click.argument("words", metavar="[TOPIC|COMMAND]", nargs=-1, shell_complete=complete)
@click.option("--search", metavar="WORD", help="List the pages and the lines that hold this.")
@click.pass_context
def help(ctx: click.Context, words: tuple[str, ...], search: str | None) -> None:
    """Show the manual: a page, or where a word stands in it.

    \b
      conv3d help
      conv3d help masks
      conv3d help --search NaN
      conv3d help kernel make

    Without a topic the pages are listed. A page is found by its name, or by a word that it is about
    (`conv3d help gpu`); a command's name shows the command's help. On a terminal long pages go
    through $PAGER.
    """
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    pages = read_pages()
    if search is not None:
        if words:
            raise click.UsageError("--search WORD and TOPIC exclude one another")
        _show(search_text(pages, search))
    elif not words:
        _show(contents(pages))
    else:
        _show(_answer(pages, root, words))


# --------------------------------------------------------------------------------------------------
# Pages


def read_page(topic: str, text: str) -> Page:
    """A page from its file's text.

    >>> text = "# Edges\\n\\nWhat padding reads.\\n\\nText.\\n\\n<!-- also: rim -->\\n"
    >>> page = read_page("edges", text)
    >>> page.title, page.summary, page.also, page.text.endswith("Text.\\n\\n")
    ('Edges', 'What padding reads.', ('rim',), True)
    """
    title, _, rest = text.partition("\n")
    also = _ALSO.search(text)
    return Page(
        topic,
        title.removeprefix("# "),
        rest.lstrip("\n").partition("\n")[0],
        tuple(re.split(r",\s+", also[1])) if also else (),
        _ALSO.sub("", text),
    )


def read_pages() -> dict[str, Page]:
    """All pages by their topics, in alphabetical order; from a folder, a wheel or a zip."""
    from importlib.resources import files

    folder = files("conv3d_cli").joinpath("manual")
    found = {path.name: path for path in folder.iterdir() if path.name.endswith(".md")}
    topics = {name.removesuffix(".md"): found[name] for name in sorted(found)}
    return {topic: read_page(topic, path.read_text("utf-8")) for topic, path in topics.items()}


def _with_commands(text: str) -> str:
    """Markdown with links to pages as the commands that show them, and of other links the words."""
    return _FILE_LINK.sub(r"\1", _PAGE_LINK.sub(r"`conv3d help \1`", text))


def _plain_word(word: str) -> str:
    """A word as topics are written: `--min_coverage` is min-coverage, `.NII.GZ` is nii.gz."""
    return word.casefold().lstrip("-.").replace("_", "-").removesuffix(".md")


def find_page(pages: Mapping[str, Page], word: str) -> Page | None:
    """The page that has this name, or that is about this word; None if there is none."""
    name = _plain_word(word)
    about = (page for page in pages.values() if name in page.also)
    return pages.get(name) or next(about, None)


def known_words(pages: Mapping[str, Page], group: click.Group) -> list[str]:
    """All that `conv3d help` takes: topics, commands, and words that lead to a page."""
    also = [word for page in pages.values() for word in page.also]
    return list(dict.fromkeys([*pages, *group.commands, *also]))


# --------------------------------------------------------------------------------------------------
# Answers


def contents(pages: Mapping[str, Page]) -> str:
    """The list of all pages, as lines of text."""
    width = max(map(len, pages)) + 2
    lines = [
        textwrap.fill(
            page.summary,
            list_columns(),
            initial_indent=f"  {page.topic:<{width}}",
            subsequent_indent=" " * (width + 2),
        )
        for page in pages.values()
    ]
    head = "conv3d help TOPIC shows a page of the manual; --search WORD finds one."
    last = "conv3d help COMMAND shows a command's help, as conv3d COMMAND --help does."
    return "\n".join([head, "", *lines, "", last])


def _answer(pages: Mapping[str, Page], root: click.Context, words: Sequence[str]) -> str:
    """A page, else a command's help; in that order, since a page says more.

    Raises: UnknownNameError, which tells what is near and where the word stands.
    """
    page = find_page(pages, "-".join(words))
    if page and page.topic == _plain_word("-".join(words)):
        return render(page)
    if helped := _command_help(root, words):
        return f"{helped}\n\nIn the manual: conv3d help {page.topic}" if page else helped
    if page:
        return render(page)
    assert isinstance(root.command, click.Group)
    raise _unknown(pages, root.command, " ".join(words))


def _command_help(root: click.Context, words: Sequence[str]) -> str:
    """The help of a command, such as `apply` or `kernel make`; "" if there is no such command."""
    ctx = root
    for word in words:
        command = ctx.command
        inner = command.get_command(ctx, word) if isinstance(command, click.Group) else None
        if inner is None:
            return ""
        ctx = click.Context(inner, info_name=word, parent=ctx)
    return ctx.get_help()


def _unknown(pages: Mapping[str, Page], group: click.Group, word: str) -> Exception:
    from shlex import quote

    from conv3d_cli.errors import UnknownNameError, suggestion

    held = [page.topic for page in pages.values() if any(_hits(page, word))]
    if held:
        cure = f"the manual has it in {', '.join(held)}: conv3d help --search {quote(word)}"
    else:
        near = suggestion(_plain_word(word), known_words(pages, group), 0.7)
        cure = f"{near}`conv3d help` lists the topics"
    return UnknownNameError(f"no help topic '{word}'; {cure}")


# --------------------------------------------------------------------------------------------------
# Search


def _parts(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, unit): the lines of an example or a table, and the sentences of a paragraph.

    >>> list(_parts("# A\\n\\nOne\\nthing. More.\\n\\n| x | y |\\n|---|---|\\n| 1 | 2 |\\n"))
    [('A', ['A']), ('A', ['One thing.', 'More.']), ('A', ['x | y', '1 | 2'])]
    """
    heading = ""
    for number, run in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        if number % 2:
            yield heading, run.strip().splitlines()
            continue
        for paragraph in re.split(r"\n(?:\n|(?=- ))", run.strip()):
            if found := _HEADING.match(paragraph):
                heading = found[1]
                yield heading, [heading]
            elif paragraph.startswith("|"):
                rows = [line.strip("| ") for line in paragraph.splitlines()]
                yield heading, [row for row in rows if row.strip("-| ")]
            else:
                prose = _BOLD.sub(r"\1", " ".join(paragraph.split()))
                yield heading, re.split(r"(?<=\.) (?=\S)", prose)


def _hits(page: Page, wanted: str) -> Iterator[tuple[str, str]]:
    """(heading, line or sentence) with one of the words, where all of them stand together."""
    words = wanted.casefold().split()
    for heading, lines in _parts(_with_commands(page.text)):
        together = " ".join(lines).casefold()
        if all(word in together for word in words):
            for line in lines:
                if any(word in line.casefold() for word in words):
                    yield heading, line.strip()


def search_text(pages: Mapping[str, Page], wanted: str) -> str:
    """Pages, headings and lines that hold some words, as text.

    Raises: UnknownNameError where nothing holds them, SpecError for nothing but spaces.
    """
    from conv3d_cli.errors import SpecError, UnknownNameError

    if not wanted.strip():
        raise SpecError("--search needs a word, as in `conv3d help --search NaN`")
    indent = " " * 4
    found: list[str] = []
    for page in pages.values():
        before = None
        for heading, line in _hits(page, wanted):
            if before is None:
                found += ["", f"conv3d help {page.topic}"]
            if heading != before:
                found.append(f"  {heading}")
                before = heading
            if line != heading:
                wrapped = textwrap.fill(
                    line, list_columns(), initial_indent=indent, subsequent_indent=indent
                )
                found.append(_marked(wrapped, wanted))
    if not found:
        raise UnknownNameError(
            f"the manual holds no '{wanted}'; `conv3d help` lists its pages, and `conv3d apply "
            "--help` the options"
        )
    return "\n".join(found[1:])


def _marked(text: str, wanted: str) -> str:
    """A text whose found words are bold on a terminal."""
    if not sys.stdout.isatty():
        return text
    words = "|".join(map(re.escape, wanted.split()))
    return re.sub(words, lambda found: click.style(found[0], bold=True), text, flags=re.IGNORECASE)


# --------------------------------------------------------------------------------------------------
# What is shown


def _show(text: str) -> None:
    """Print a text, through the pager if it is longer than the terminal."""
    if sys.stdout.isatty() and text.count("\n") + 2 > shutil.get_terminal_size().lines:
        click.echo_via_pager(text)
    else:
        click.echo(text)


def render(page: Page) -> str:
    """A page as text of the terminal's width, with its colours; plain where stdout is no terminal.

    Links to pages become the commands that show them.
    """
    from rich.console import Console
    from rich.markdown import CodeBlock, Heading, Markdown
    from rich.padding import Padding
    from rich.syntax import Syntax
    from rich.text import Text
    from rich.theme import Theme

    terminal = sys.stdout.isatty()

    class ManualHeading(Heading):
        """On the left; ruled off in plain text, which has no bold."""

        def __rich_console__(self, console: Console, options: object) -> Iterator[Text]:
            yield Text(self.text.plain, "" if self.tag == "h3" else "bold")
            if not terminal and self.tag != "h3":
                yield Text(("=" if self.tag == "h1" else "-") * len(self.text.plain))

    class ManualCode(CodeBlock):
        """Without a background, which fits few terminals, and to be copied as it stands."""

        def __rich_console__(self, console: Console, options: object) -> Iterator[Padding]:
            code = Syntax(str(self.text).rstrip(), self.lexer_name, theme="ansi_dark")
            yield Padding(code, (0, 0, 0, 4))

    class Manual(Markdown):
        elements = {  # noqa: RUF012 - as the base class has them
            **Markdown.elements,
            "heading_open": ManualHeading,
            "fence": ManualCode,
        }

    class Lines(io.StringIO):
        """What is shown; Rich draws tables in the signs that this encoding has."""

        encoding = sys.stdout.encoding or "utf-8"

    lines = Lines()
    console = Console(
        file=lines,
        width=list_columns(),
        force_terminal=terminal,
        highlight=False,
        theme=Theme({"markdown.code": "bold cyan", "markdown.block_quote": ""}),
    )
    manual = Manual(_with_commands(page.text), hyperlinks=False)
    if not terminal:  # which shows code by its colour
        for token in manual.parsed:
            for inner in token.children or ():
                if inner.type == "code_inline":
                    inner.content = f"`{inner.content}`"
    console.print(manual)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines()).strip("\n")

"""XML of untrusted files: what its tree takes is counted before it is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from conv3d_cli.system.room import require_room

# Bytes of an element, of its attributes and of a text, beside their characters; rounded up from
# what Python's trees take.
ELEMENT_BYTES, ATTRIBUTES_BYTES, TEXT_BYTES = 100, 200, 60
TREES = 2  # the library's, and the one that is read here
COPIES = 4  # of the text, in bytes for each of it
PIECE = 1 << 16
HARMLESS = 1 << 20  # characters whose tree never takes more than 70 MiB


def parse_xml(text: str | bytes, path: str) -> Any:
    """The root element. Raises: ElementTree.ParseError; MemoryLimitError if it is too large."""
    from xml.etree import ElementTree

    check_xml(text, path)
    return ElementTree.fromstring(text)


def check_xml(text: str | bytes, path: str) -> None:
    """Check that the trees of an XML fit into memory, whether or not it is well-formed.

    Raises: MemoryLimitError.
    """
    if len(text) > HARMLESS:
        pieces = (text[at : at + PIECE] for at in range(0, len(text), PIECE))
        check_pieces(pieces, len(text), path)


def check_pieces(pieces: Iterable[str | bytes], size: int, path: str) -> None:
    """As `check_xml`, of an XML in pieces of `size` characters or bytes in all."""
    from xml.parsers import expat

    needed = length = 0

    def begin(name: str, attributes: list[str]) -> None:
        nonlocal needed
        needed += TREES * (ELEMENT_BYTES + (ATTRIBUTES_BYTES if attributes else 0))
        needed += TREES * sum(TEXT_BYTES + len(one) for one in attributes)

    def characters(found: str) -> None:
        nonlocal needed
        needed += TREES * (TEXT_BYTES + len(found))

    parser = expat.ParserCreate()
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.CharacterDataHandler = characters
    try:
        for piece in pieces:
            length += len(piece)
            whole = COPIES * size + needed * size // max(length, 1)  # as dense as so far
            require_room(COPIES * size + needed, "its XML", path, whole)
            parser.Parse(piece, False)
    except expat.ExpatError:
        pass  # whoever reads it tells
    require_room(COPIES * size + needed, "its XML", path)

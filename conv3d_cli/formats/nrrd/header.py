"""The text at the head of a NRRD file: its fields and key/value pairs, read and written.

Source: "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html. What the fields mean for axes and
places is in axes.py and grid.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from conv3d_cli.errors import FormatError, WriteError

MOST_BYTES = 16 << 20  # of a header; one with the gradients of a diffusion scan has some 10 kB
MOST_AXES = 16  # NRRD_DIM_MAX of Teem
LONGEST_SHOWN = 60  # characters of a damaged line that a message repeats

FIELDS = (
    "dimension", "type", "block size", "encoding", "endian", "content", "old min", "old max", "min", "max", "data file",
    "line skip", "byte skip", "number", "sample units", "sizes", "spacings", "thicknesses", "axis mins", "axis maxs", "centers",
    "labels", "units", "kinds", "space", "space dimension", "space units", "space origin", "space directions",
    "measurement frame",
)  # fmt: skip
ALIASES = {"centerings": "centers"} | {
    name.replace(" ", ""): name for name in FIELDS if " " in name
}

# the first name of each is the one that is written
TYPES: dict[str, tuple[str, ...]] = {
    "u1": ("unsigned char", "uchar", "uint8", "uint8_t"),
    "i1": ("signed char", "int8", "int8_t"),
    "u2": ("unsigned short", "ushort", "unsigned short int", "uint16", "uint16_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u4": ("unsigned int", "uint", "uint32", "uint32_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u8": ("unsigned long long int", "ulonglong", "unsigned long long", "uint64", "uint64_t"),
    "i8": (
        "long long int",
        "longlong",
        "long long",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
    ),
    "f4": ("float",),
    "f8": ("double",),
}
TYPE_CODES = {name: code for code, names in TYPES.items() for name in names}


@dataclass(frozen=True)
class NrrdHeader:
    """The header of a file, each field as the text that stands there.

    fields : dict       by their names in `FIELDS`
    keys : dict         the key/value pairs, in the file's order
    unknown : tuple     names of fields that NRRD does not have
    size : int          bytes of the header with the empty line that ends it
    attached : bool     whether that line is there, and voxels may follow
    """

    path: str
    fields: Mapping[str, str]
    keys: Mapping[str, str]
    unknown: tuple[str, ...]
    size: int
    attached: bool

    def error(self, text: str) -> FormatError:
        """What is wrong with the header, as the error to be raised."""
        return FormatError(f"cannot read {self.path}: {text}")

    def need(self, name: str) -> str:
        """The text of a field. Raises: FormatError if there is none."""
        if not self.fields.get(name):
            raise self.error(f"its header has no field '{name}'; it is damaged, or cut off")
        return self.fields[name]

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number. Raises: FormatError if it is none, or below `least`."""
        text = self.fields.get(name, "") if default is not None else self.need(name)
        if default is not None and not text:
            return default
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < least:
            raise self.error(
                f"'{name}' must be a whole number from {least} on, received '{shortened(text)}'"
            )
        return int(text)

    def sizes(self) -> tuple[int, ...]:
        """Sizes of the axes, the fastest first. Raises: FormatError."""
        rank = self.whole("dimension")
        words = self.need("sizes").split()
        if rank > MOST_AXES:
            raise self.error(f"a NRRD has at most {MOST_AXES} axes, its header says {rank}")
        if len(words) != rank or not all(
            re.fullmatch(r"\d{1,18}", word) and int(word) > 0 for word in words
        ):
            raise self.error(
                f"'sizes' must be {rank} whole numbers from 1 on, received '{shortened(self.fields['sizes'])}'"
            )
        return tuple(int(word) for word in words)

    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored voxels, in the file's byte order. Raises: FormatError."""
        name = " ".join(self.need("type").lower().split())
        if name == "block":
            raise self.error("its voxels are blocks of bytes without a number type; save numbers")
        if name not in TYPE_CODES:
            raise self.error(f"its type '{shortened(name)}' is none of NRRD's")
        dtype = np.dtype(TYPE_CODES[name])
        if dtype.itemsize == 1:
            return dtype
        endian = self.need("endian").lower()
        if endian not in ("little", "big"):
            raise self.error(f"'endian' is little or big, received '{shortened(endian)}'")
        return dtype.newbyteorder("<" if endian == "little" else ">")

    def words(self, name: str) -> list[str] | None:
        """A word for each axis; None without the field. Raises: FormatError."""
        return self._counted(name, self.fields.get(name, "").split())

    def numbers(self, name: str) -> list[float] | None:
        """A number for each axis, NaN where there is none. Raises: FormatError."""
        words = self.words(name)
        return None if words is None else [self._number(name, word) for word in words]

    def texts(self, name: str, count: int | None = None) -> list[str] | None:
        """A quoted text for each axis, or `count` of them. Raises: FormatError."""
        text = self.fields.get(name, "")
        if not re.fullmatch(r'(\s*"(?:[^"\\]|\\.)*")*\s*', text):
            raise self.error(f"'{name}' must be texts in quotes, received '{shortened(text)}'")
        return self._counted(
            name, [unescaped(part, '"') for part in re.findall(r'"((?:[^"\\]|\\.)*)"', text)], count
        )

    def vectors(
        self, name: str, length: int, count: int | None = None
    ) -> list[list[float] | None] | None:
        """A vector of `length` numbers, or None for "none", for each axis or `count` of them. Raises: FormatError."""
        text = self.fields.get(name, "")
        if not re.fullmatch(r"(\s*(none|\([^()]*\)))*\s*", text):
            raise self.error(
                f"'{name}' must be vectors such as (1,0,0), received '{shortened(text)}'"
            )
        found: list[list[float] | None] = []
        for part in re.findall(r"none|\([^()]*\)", text):
            words = part.strip("()").split(",")
            if part != "none" and len(words) != length:
                raise self.error(
                    f"'{name}' must hold vectors of {length} numbers, received {shortened(part)}"
                )
            found.append(None if part == "none" else [self._number(name, word) for word in words])
        return self._counted(name, found, count)

    def _counted(self, name: str, values: list[Any], count: int | None = None) -> list[Any] | None:
        expected = len(self.sizes()) if count is None else count
        if not self.fields.get(name):
            return None
        if len(values) != expected:
            raise self.error(f"'{name}' must have {expected} values, received {len(values)}")
        return values

    def _number(self, name: str, word: str) -> float:
        try:
            return float(word)
        except ValueError:
            raise self.error(
                f"'{name}' must hold numbers, received '{shortened(word.strip())}'"
            ) from None


def shortened(text: str) -> str:
    """A text of one line and moderate length, for messages."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def read_header(file: BinaryIO, path: str) -> NrrdHeader:
    """Read the header at the start of a file, which is left where voxels begin. Raises: FormatError."""
    magic = file.readline(32).rstrip(b"\r\n")
    if not re.fullmatch(rb"NRRD000\d", magic):
        raise FormatError(
            f"cannot read {path}: not a NRRD file: it does not begin with NRRD0001 to NRRD0005"
        )
    if magic[-1:] not in b"12345":
        raise FormatError(
            f"cannot read {path}: NRRD of version {magic[-1:].decode()}, and 1 to 5 are known"
        )
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    unknown = []
    attached = False
    while line := file.readline(MOST_BYTES):
        if file.tell() > MOST_BYTES:
            raise FormatError(
                f"cannot read {path}: its header has no end within {MOST_BYTES >> 20} MiB"
            )
        # text of other encodings passes through unchanged
        text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        if not text:
            attached = True
            break
        if text.startswith("#"):
            continue
        colon = text.find(":")
        if colon < 1:
            raise FormatError(
                f"cannot read {path}: its header is damaged: '{shortened(text)}' is no field"
            )
        pair = text.find(":=")
        plain = text.find(": ")
        if pair > 0 and (plain < 0 or pair < plain):
            keys[unescaped(text[:pair])] = unescaped(text[pair + 2 :])
            continue
        name = " ".join(text[:colon].lower().split())
        name = ALIASES.get(name, name)
        if name not in FIELDS:
            unknown.append(shortened(name))
            continue
        if name in fields:
            raise FormatError(
                f"cannot read {path}: its header is damaged: it has the field '{name}' twice"
            )
        fields[name] = text[colon + 1 :].strip()
        if name == "data file" and fields[name].split()[:1] == ["LIST"]:
            break  # names of files follow to the end
    return NrrdHeader(path, fields, keys, tuple(unknown), file.tell(), attached)


def unescaped(text: str, quote: str = "") -> str:
    r"""A text without its escapes: \n and \\, and before a quote.

    >>> unescaped(r"two\nlines \\n")
    'two\nlines \\n'
    """
    known = {"n": "\n", "\\": "\\", quote: quote}
    return re.sub(r"\\(.)", lambda found: known.get(found[1], found[0]), text)


def escaped(text: str) -> str:
    r"""A text on one line.

    >>> print(escaped("two\nlines"))
    two\nlines
    """
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def quoted(texts: Iterable[str]) -> str:
    """Texts in quotes, as `NrrdHeader.texts` reads them."""
    return " ".join('"' + escaped(text).replace('"', '\\"') + '"' for text in texts)


def vector(numbers: Iterable[float] | None) -> str:
    """A vector as NRRD writes it; every digit is kept.

    >>> vector([0.1, -0.0, 3]), vector(None)
    ('(0.1,0,3)', 'none')
    """
    return "none" if numbers is None else f"({','.join(number(value) for value in numbers)})"


def number(value: float) -> str:
    """A number as NRRD writes it: whole ones without a point, NaN as "nan"."""
    value = float(value) + 0.0
    return repr(value).removesuffix(".0") if math.isfinite(value) else "nan"


def type_name(dtype: np.dtype[Any], path: str) -> str:
    """NRRD's name for a dtype. Raises: WriteError if it has none."""
    names = TYPES.get(f"{dtype.kind}{dtype.itemsize}")
    if dtype.kind == "f" and dtype.itemsize == 2:
        raise WriteError(f"cannot write {path}: NRRD has no float16; pass --dtype float32")
    if names is None:
        raise WriteError(f"cannot write {path}: NRRD holds no {dtype}; choose another --dtype")
    return names[0]


def header_text(fields: Mapping[str, str], keys: Mapping[str, str]) -> bytes:
    """A header as bytes, without the empty line that ends an attached one."""
    version = 5 if "measurement frame" in fields else 4
    lines = [
        f"NRRD000{version}",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        *(f"{escaped(key)}:={escaped(value)}" for key, value in keys.items()),
        *(f"{name}: {text}" for name, text in fields.items()),
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")

"""The text header of a NRRD file: its fields and key/value pairs, read and written.

axes.py and grid.py interpret the fields of axes and of the world.

Source: "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from conv3d_cli.errors import FormatError, WriteError, setting
from conv3d_cli.system.room import HEADER_BYTES, check_entries

MAX_AXES = 16  # NRRD_DIM_MAX of Teem
MAX_QUOTED = 60  # characters of a damaged line that a message repeats

FIELDS = (
    *("dimension", "type", "block size", "encoding", "endian", "content", "number"),
    *("old min", "old max", "min", "max", "sample units"),
    *("data file", "line skip", "byte skip"),
    *("sizes", "spacings", "thicknesses", "axis mins", "axis maxs", "centers", "labels"),
    *("units", "kinds"),
    *("space", "space dimension", "space units", "space origin", "space directions"),
    "measurement frame",
)
ALIASES = {"centerings": "centers"} | {
    name.replace(" ", ""): name for name in FIELDS if " " in name
}

# dtype code -> NRRD's names; the first one is written
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
    """The header of a file, with each field as the text that the file has.

    path : str          for error messages
    fields : dict       name in `FIELDS` -> text
    keys : dict         the key/value pairs, in the file's order
    unknown : tuple     names of fields that NRRD does not define
    size : int          bytes of the header, including the empty line that ends it
    attached : bool     True if that line is there, so that voxels may follow
    """

    path: str
    fields: Mapping[str, str]
    keys: Mapping[str, str]
    unknown: tuple[str, ...]
    size: int
    attached: bool

    def error(self, text: str) -> FormatError:
        """The error to raise for a damaged header."""
        return FormatError(f"cannot read {self.path}: {text}")

    def require(self, name: str) -> str:
        """The text of a field. Raises: FormatError if the field is missing or empty."""
        if not self.fields.get(name):
            raise self.error(f"its header has no field '{name}'; it is damaged, or cut off")
        return self.fields[name]

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """The integer of a field.

        default : int or None   of a missing field; None: the field is required
        Raises: FormatError if the text is not an integer of at least `least`.
        """
        text = self.fields.get(name, "") if default is not None else self.require(name)
        if default is not None and not text:
            return default
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < least:
            raise self.error(
                f"'{name}' must be a whole number of at least {least}, received '{shortened(text)}'"
            )
        return int(text)

    def sizes(self) -> tuple[int, ...]:
        """Sizes of the axes, the fastest first. Raises: FormatError."""
        rank = self.integer("dimension")
        words = self.require("sizes").split()
        if rank > MAX_AXES:
            raise self.error(f"a NRRD has at most {MAX_AXES} axes, its header says {rank}")
        if len(words) != rank or not all(
            re.fullmatch(r"\d{1,18}", word) and int(word) > 0 for word in words
        ):
            raise self.error(
                f"'sizes' must be {rank} whole numbers of at least 1, "
                f"received '{shortened(self.fields['sizes'])}'"
            )
        return tuple(int(word) for word in words)

    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored voxels, in the file's byte order. Raises: FormatError."""
        name = " ".join(self.require("type").lower().split())
        if name == "block":
            raise self.error("its voxels are blocks of bytes without a number type; save numbers")
        if name not in TYPE_CODES:
            raise self.error(f"NRRD has no type '{shortened(name)}'")
        dtype = np.dtype(TYPE_CODES[name])
        if dtype.itemsize == 1:
            return dtype
        endian = self.require("endian").lower()
        if endian not in ("little", "big"):
            raise self.error(f"'endian' must be little or big, received '{shortened(endian)}'")
        return dtype.newbyteorder("<" if endian == "little" else ">")

    def words(self, name: str) -> list[str] | None:
        """The word for each axis; None if the field is missing. Raises: FormatError."""
        return self._checked_count(name, self.fields.get(name, "").split())

    def numbers(self, name: str) -> list[float] | None:
        """The number for each axis (NaN: unknown); None if the field is missing.

        Raises: FormatError.
        """
        words = self.words(name)
        return None if words is None else [self._number(name, word) for word in words]

    def texts(self, name: str, count: int | None = None) -> list[str] | None:
        """The quoted text for each axis, without quotes and escapes; None if the field is missing.

        count : int or None     number of texts; None: one for each axis
        Raises: FormatError.
        """
        text = self.fields.get(name, "")
        if not re.fullmatch(r'(\s*"(?:[^"\\]|\\.)*")*\s*', text):
            raise self.error(f"'{name}' must be texts in quotes, received '{shortened(text)}'")
        found = [unescaped(part, '"') for part in re.findall(r'"((?:[^"\\]|\\.)*)"', text)]
        return self._checked_count(name, found, count)

    def vectors(
        self, name: str, length: int, count: int | None = None
    ) -> list[list[float] | None] | None:
        """The vector for each axis; None for "none". None if the field is missing.

        length : int            numbers of a vector
        count : int or None     number of vectors; None: one for each axis
        Raises: FormatError.
        """
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
        return self._checked_count(name, found, count)

    def _checked_count(
        self, name: str, values: list[Any], count: int | None = None
    ) -> list[Any] | None:
        """The values of a field; None if it is missing. Raises: FormatError for another count."""
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
    """A text as messages quote it: at most `MAX_QUOTED` characters, all printable.

    >>> shortened("an" * 31 + chr(7))
    'anananananananananananananananananananananananananananananan...'
    """
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def read_header(file: BinaryIO, path: str) -> NrrdHeader:
    """Read the header at the start of a file, and leave the file where voxels begin.

    Raises: FormatError if it is not NRRD, or damaged.
    """
    magic = file.readline(32).rstrip(b"\r\n")
    if not re.fullmatch(rb"NRRD000\d", magic):
        raise FormatError(
            f"cannot read {path}: not a NRRD file: it does not begin with NRRD0001 to NRRD0005"
        )
    if magic[-1:] not in b"12345":
        raise FormatError(
            f"cannot read {path}: it is NRRD version {magic[-1:].decode()}; "
            "versions 1 to 5 can be read"
        )
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    unknown: list[str] = []
    attached = False
    while line := file.readline(HEADER_BYTES):
        if file.tell() > HEADER_BYTES:
            raise FormatError(
                f"cannot read {path}: its header has no end within {HEADER_BYTES >> 20} MiB"
            )
        check_entries(len(keys) + len(unknown), path)
        # keeps the bytes of other encodings
        text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        if not text:
            attached = True
            break
        if text.startswith("#"):
            continue
        colon = text.find(":")
        if colon < 1:
            raise FormatError(
                f"cannot read {path}: its header is damaged: '{shortened(text)}' is not a field"
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
            break  # the rest of the file is a list of names
    return NrrdHeader(path, fields, keys, tuple(unknown), file.tell(), attached)


def unescaped(text: str, quote: str = "") -> str:
    r"""Replace the escapes of a text: \n, \\ and, if `quote` is given, \".

    >>> unescaped(r"two\nlines \\n")
    'two\nlines \\n'
    """
    known = {"n": "\n", "\\": "\\", quote: quote}
    return re.sub(r"\\(.)", lambda found: known.get(found[1], found[0]), text)


def escaped(text: str) -> str:
    r"""A text on one line, with line ends and backslashes escaped.

    >>> print(escaped("two\nlines"))
    two\nlines
    """
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def quoted(texts: Iterable[str]) -> str:
    """Texts in quotes, as `NrrdHeader.texts` reads them.

    >>> print(quoted(["mm", 'a "b"']))
    "mm" "a \\"b\\""
    """
    return " ".join('"' + escaped(text).replace('"', '\\"') + '"' for text in texts)


def vector(numbers: Iterable[float] | None) -> str:
    """A vector as NRRD writes it, with all digits.

    >>> vector([0.1, -0.0, 3]), vector(None)
    ('(0.1,0,3)', 'none')
    """
    return "none" if numbers is None else f"({','.join(number(value) for value in numbers)})"


def number(value: float) -> str:
    """A number as NRRD writes it: integers without a point, NaN as "nan".

    >>> number(2.0), number(0.1), number(math.nan)
    ('2', '0.1', 'nan')
    """
    value = float(value) + 0.0
    return repr(value).removesuffix(".0") if math.isfinite(value) else "nan"


def type_name(dtype: np.dtype[Any], path: str) -> str:
    """NRRD's name for a dtype. Raises: WriteError if NRRD has none."""
    names = TYPES.get(f"{dtype.kind}{dtype.itemsize}")
    if dtype.kind == "f" and dtype.itemsize == 2:
        cure = setting("dtype", "float32")
        raise WriteError(f"cannot write {path}: NRRD has no float16; pass {cure}")
    if names is None:
        cure = setting("dtype", "uint8" if dtype == np.bool_ else "float64")
        raise WriteError(f"cannot write {path}: NRRD holds no {dtype}; pass {cure}")
    return names[0]


def header_text(fields: Mapping[str, str], keys: Mapping[str, str]) -> bytes:
    """A header as bytes, without the empty line that ends an attached header."""
    version = 5 if "measurement frame" in fields else 4
    lines = [
        f"NRRD000{version}",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        *(f"{escaped(key)}:={escaped(value)}" for key, value in keys.items()),
        *(f"{name}: {text}" for name, text in fields.items()),
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")

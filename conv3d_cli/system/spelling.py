"""Text for streams whose encoding lacks a sign: `σ` is written `sigma` where there is no σ.

Pipes of Windows (cp1252), of old systems (latin-1) and of plain ASCII lack signs that help, plans
and pictures use. Standard library only.
"""

from __future__ import annotations

import codecs

SPELLED = "conv3d-spelled"
"""Name of the error handler: how a stream writes what its encoding lacks."""

SPELLED_NAMES = "conv3d-spelled-names"
"""The same, but bytes of file names that are no text stay as they are (surrogateescape)."""

PLAIN_ASCII = "conv3d-ascii"
"""Name of a codec for ASCII. Click takes a stream whose codec is called ascii for misconfigured,
and writes UTF-8 to it."""

SPELLINGS = {
    # letters
    "Å": "A",
    "ö": "o",
    "σ": "sigma",
    "Σ": "sum ",
    "µ": "u",  # the micro sign, and the Greek letter
    "μ": "u",
    "φ": "phi",
    "Φ": "Phi",
    "θ": "theta",
    "π": "pi",
    "α": "alpha",
    "β": "beta",
    "ε": "epsilon",
    "λ": "lambda",
    "ρ": "rho",
    # mathematics
    "√": "sqrt",
    "∂": "d",
    "∫": "integral of ",
    "¾": "3/4",
    "±": "+-",
    "×": "x",
    "·": "*",
    "⊗": "(x)",
    "‖": "||",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "−": "-",
    "°": " degrees",
    "∞": "inf",
    "¹": "^1",
    "²": "^2",
    "³": "^3",
    "⁴": "^4",
    "⁻": "^-",
    "ᵀ": "^T",
    # typography
    "→": "->",
    "•": "*",
    "▀": "#",
    "…": "...",
    "–": "-",
    "—": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    # frames and bars
    "─": "-",
    "━": "-",
    "│": "|",
    "╸": "-",
    "╺": "-",
}


def spelled(text: str) -> str:
    r"""Text in ASCII: known signs spelled out, others as escapes, as file names need it.

    >>> spelled("σ² → 3 µm"), spelled("å.nii")
    ('sigma^2 -> 3 um', '\\xe5.nii')
    """
    return "".join(sign if sign.isascii() else SPELLINGS.get(sign, _escaped(sign)) for sign in text)


def _escaped(sign: str) -> str:
    return sign.encode("ascii", "backslashreplace").decode("ascii")


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler of codecs: what to write instead of signs that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return spelled(error.object[error.start : error.end]), error.end


def _spell_and_keep(error: UnicodeError) -> tuple[str | bytes, int]:
    """As `_spell`, sign by sign; a byte that came in as a surrogate goes out as it came."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    byte = ord(sign) - 0xDC00
    return bytes([byte]) if 0x80 <= byte <= 0xFF else spelled(sign), error.start + 1


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != PLAIN_ASCII:
        return None
    ascii_codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_codec.encode,
        ascii_codec.decode,
        ascii_codec.streamreader,
        ascii_codec.streamwriter,
        ascii_codec.incrementalencoder,
        ascii_codec.incrementaldecoder,
        PLAIN_ASCII,
    )


def spelling_encoding(encoding: str) -> str:
    """The encoding of a stream that spells: its own, and `PLAIN_ASCII` for ASCII.

    >>> spelling_encoding("cp1252"), spelling_encoding("us-ascii")
    ('cp1252', 'conv3d-ascii')
    """
    return PLAIN_ASCII if codecs.lookup(encoding).name == "ascii" else encoding


def spelling_errors(errors: str | None) -> str:
    """The error handler of a stream that spells, instead of the one it has.

    >>> spelling_errors("strict"), spelling_errors("surrogateescape")
    ('conv3d-spelled', 'conv3d-spelled-names')
    """
    return SPELLED_NAMES if errors == "surrogateescape" else SPELLED


codecs.register_error(SPELLED, _spell)
codecs.register_error(SPELLED_NAMES, _spell_and_keep)
codecs.register(_find_codec)

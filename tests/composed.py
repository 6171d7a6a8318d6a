"""Operations made of convolutions that tests run: texts of each, and their kernels."""

from __future__ import annotations

# operation -> texts to try, each with the kernel of an operation that takes one
CASES: dict[str, list[tuple[str, str | None]]] = {
    "local": [("local:size=3", None), ("local:radius=4mm", None)],
}


def words(text: str, kernel: str | None = None) -> list[str]:
    """A text as the command line of its command, without input and output.

    >>> words("local:size=3")
    ['local', '--size', '3']
    """
    name, *pairs = text.split(":")
    own = [word for pair in pairs for word in (f"--{pair.split('=')[0]}", pair.split("=")[1])]
    return [name, *own, *(["-k", kernel] if kernel else [])]


# a command line for each
LINES = {name: words(*cases[0]) for name, cases in CASES.items()}

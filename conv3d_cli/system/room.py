"""Bounds on headers and texts of untrusted files, before they become objects of Python.

An object takes up to fifty times the bytes that describe it. Text headers hold at most
`HEADER_BYTES` and `HEADER_ENTRIES`. What may be larger, such as XML with an element for each plane,
has its cost counted, and `require_room` compares it with what the ceiling of memory leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from conv3d_cli.errors import FormatError, MemoryLimitError, setting
from conv3d_cli.system.machine import format_bytes, memory_ceiling

HEADER_BYTES = 4 << 20  # a header with the gradients of a diffusion scan has some 100 kB
HEADER_ENTRIES = 50_000
READING_BYTES = 100 << 20  # of the process while headers and kernels are read: 89 to 99 MiB
# Memory in bytes per weight while a kernel is read or built: three float64 copies, and flags.
WEIGHT_BYTES = 26
# The interpreter and its libraries before the first voxel: 209 to 221 MiB once loops are compiled.
# No job runs below it; where a ceiling is below, the job is refused with what it needs as a whole.
PROCESS_BYTES = 222 << 20

_ceiling: ContextVar[int | None] = ContextVar("ceiling", default=None)


@contextmanager
def ceiling_of_memory(requested: int | None) -> Iterator[None]:
    """In the body, headers fit into a ceiling of the whole process.

    requested : int or None     bytes; None leaves it as it is, which is at first `memory_ceiling`
    """
    token = _ceiling.set(_ceiling.get() if requested is None else requested)
    try:
        yield
    finally:
        _ceiling.reset(token)


def room_left() -> int:
    """Bytes that the ceiling of memory leaves beside the process itself.

    >>> with ceiling_of_memory(300 << 20):
    ...     room_left() >> 20
    200
    """
    return max(memory_ceiling(_ceiling.get()), PROCESS_BYTES) - READING_BYTES


def require_room(needed: int, what: str, path: str, whole: int = 0) -> None:
    """Check that something of `needed` bytes fits into the ceiling beside the process itself.

    what : str      for the message: "its XML"
    whole : int     what all of it will probably need, if that is more, for the message
    Raises: MemoryLimitError.

    >>> with ceiling_of_memory(300 << 20):
    ...     require_room(250 << 20, "its XML", "a.lif")
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.MemoryLimitError: cannot read a.lif: its XML needs 350.0 MiB of memory ...
    """
    if needed > room_left():
        raise MemoryLimitError(f"cannot read {path}: {what} needs {_beyond(max(needed, whole))}")


def require_memory(needed: int, what: str, cure: str) -> None:
    """Check that something of `needed` bytes that a job makes fits beside the process.

    what, cure : str    for the message
    Raises: MemoryLimitError.

    >>> with ceiling_of_memory(300 << 20):
    ...     require_memory(250 << 20, "the filter", "or a shorter one")
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.MemoryLimitError: the filter needs 350.0 MiB of memory ... or a shorter one
    """
    if needed > room_left():
        raise MemoryLimitError(f"{what} needs {_beyond(needed)}, {cure}")


def require_weights(count: int, name: str, each: int = WEIGHT_BYTES) -> None:
    """Check that a kernel of so many weights fits beside the process, before it is read or built.

    name : str      of the kernel, for the message
    each : int      bytes that a weight takes
    Raises: MemoryLimitError.

    >>> with ceiling_of_memory(300 << 20):
    ...     require_weights(20_000_000, "box")
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.MemoryLimitError: kernel box has 20,000,000 weights, which need 595.9 MiB ...
    """
    needed = count * each
    if needed > room_left():
        raise MemoryLimitError(
            f"kernel {name} has {count:,} weights, which need {_beyond(needed)}, or a smaller "
            "kernel"
        )


def _beyond(needed: int) -> str:
    """Words for what needs more room than there is, and the ceiling that would do."""
    limit, needed = memory_ceiling(_ceiling.get()), needed + READING_BYTES
    return (
        f"{format_bytes(needed)} of memory for the whole process, the ceiling is "
        f"{format_bytes(limit)}; pass {setting('max_memory', f'{-(-needed >> 20)}M')} or more"
    )


def check_entries(count: int, path: str) -> None:
    """Raise FormatError if a header has more entries than any real one."""
    if count > HEADER_ENTRIES:
        raise FormatError(
            f"cannot read {path}: damaged: its header has more than {HEADER_ENTRIES:,} entries"
        )


# Bytes of what a text describes, for each sign of it, rounded up from what Python's readers take.
JSON_BYTES = {",": 60, "[": 60, "{": 120, ":": 60}
TOML_BYTES = {",": 60, "[": 1100, "{": 300, "=": 300, ".": 700}
TEXT_COPIES = 4
HARMLESS_TEXT = 1 << 18  # characters that never take more than 80 MiB


def check_tree(text: str | bytes, signs: dict[str, int], path: str) -> None:
    """Check that what a text describes fits into memory, before it is read.

    signs : dict        `JSON_BYTES` or `TOML_BYTES`
    Raises: MemoryLimitError.

    >>> with ceiling_of_memory(300 << 20):
    ...     check_tree("[],".join([""] * 2_000_000), JSON_BYTES, "a.json")
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.MemoryLimitError: cannot read a.json: what its text describes needs ...
    """
    if len(text) <= HARMLESS_TEXT:
        return
    needed = TEXT_COPIES * len(text)
    for sign, each in signs.items():
        needed += each * (text.count(sign) if isinstance(text, str) else text.count(sign.encode()))
    require_room(needed, "what its text describes", path)

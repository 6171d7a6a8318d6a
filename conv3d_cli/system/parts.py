"""Names of one volume in a file of several: `scan.lif::2`, `plate.ome.tif::well A1`."""

from __future__ import annotations

import os

SEPARATOR = "::"


def split_part(name: str) -> tuple[str, str]:
    """The file and the part that a name gives; the part is "" if it gives none.

    A file whose own name holds `::` is not divided. URLs have no parts.
    >>> split_part("a/plate.ome.tif::well A1"), split_part("a.tif"), split_part("s3::b://x")
    (('a/plate.ome.tif', 'well A1'), ('a.tif', ''), ('s3::b://x', ''))
    """
    if SEPARATOR not in name or "://" in name or os.path.exists(name):
        return name, ""
    file, _, part = name.partition(SEPARATOR)
    return file, part


def file_of(name: str) -> str:
    """The file that a name gives, without the part of it.

    >>> file_of("a/plate.ome.tif::1")
    'a/plate.ome.tif'
    """
    return split_part(name)[0]


def with_part(file: str, part: str) -> str:
    """The name of a part of a file; of the whole file if the part is "".

    >>> with_part("a.tif", "1"), with_part("a.tif", "")
    ('a.tif::1', 'a.tif')
    """
    return f"{file}{SEPARATOR}{part}" if part else file

"""Names of labels, from a JSON file or a table as BIDS' *_dseg.tsv."""

from __future__ import annotations

import csv
import json

from conv3d_cli.errors import FormatError, ShapeError
from conv3d_cli.system.inputs import check_input, read_text
from conv3d_cli.system.room import JSON_BYTES, check_tree

CURE = 'write {"0": "background", "1": "brain"}, or a .tsv with columns index and name'


def read_label_names(path: str) -> dict[int, str]:
    """The names of labels by their numbers, in the order of the file.

    A JSON file holds an object of numbers and names, or a list of the names of labels 0, 1, ...
    Another file is a table with tabs between its columns, of which `index` and `name` are read.
    Raises: FormatError, which names the file and its fault.
    """
    check_input(path)
    text = read_text(path, "label names", CURE)
    if text.lstrip().startswith(("{", "[")):
        check_tree(text, JSON_BYTES, path)
        try:
            # pairs, since an object may have a key twice
            values = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise _refused(path, f"it is not valid JSON ({error})") from None
        is_list = text.lstrip().startswith("[")
        pairs = [*enumerate(values)] if is_list else values
    else:
        pairs = _rows(path, text)
    names: dict[int, str] = {}
    for key, name in pairs:
        number = _number(key)
        if number is None:
            raise _refused(path, f"a label must be a whole number from 0, received {key!r:.40}")
        if not isinstance(name, str) or not name.strip():
            raise _refused(path, f"label {number} has no name, but {name!r:.40}")
        if number in names:
            raise _refused(path, f"label {number} has two names")
        names[number] = name.strip()
    if not names:
        raise _refused(path, "it names no label")
    return names


def check_label_names(path: str, names: dict[int, str], count: int) -> str:
    """Check names against the number of labels. Returns a note on labels without a name, or "".

    Raises: ShapeError for a label that the output cannot have.
    """
    beyond = [number for number in names if number >= count]
    if beyond:
        raise ShapeError(
            f"{path} names label {beyond[0]}, and the labels of the output are 0 to {count - 1}: "
            "give the names of this network's labels"
        )
    missing = [str(number) for number in range(count) if number not in names]
    if not missing:
        return ""
    listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
    return f"{path} has no name for label{'s' if len(missing) > 1 else ''} {listed}"


def _rows(path: str, text: str) -> list[tuple[str, str]]:
    """The cells `index` and `name` of a table."""
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter="\t") if any(row)]
    except csv.Error as error:
        raise _refused(path, f"it is no table ({error})") from None
    columns = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "index" not in columns or "name" not in columns:
        raise _refused(path, "its first line has no columns index and name")
    index, name = columns.index("index"), columns.index("name")
    found = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= max(index, name):
            raise _refused(path, f"row {number} has {len(row)} of {len(columns)} columns")
        found.append((row[index], row[name]))
    return found


def _number(key: object) -> int | None:
    if isinstance(key, str) and key.strip().isascii() and key.strip().isdigit():
        return int(key) if len(key.strip()) < 10 else None
    return key if type(key) is int else None


def _refused(path: str, why: str) -> FormatError:
    return FormatError(f"cannot read label names {path}: {why}; {CURE}")

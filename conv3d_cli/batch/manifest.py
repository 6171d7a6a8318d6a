"""Reads a manifest: a table with one volume per row, its output and its options.

Tabs separate the columns of .tsv files. In other files, tabs, commas or semicolons do, whichever
the first line has. An empty cell, or BIDS' `n/a`, sets nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from conv3d_cli.errors import ConfigError, unknown_name
from conv3d_cli.system.inputs import check_input, read_text
from conv3d_cli.system.words import count_of

EMPTY = ("", "n/a")


@dataclass(frozen=True)
class Row:
    """One volume of a manifest.

    line : int      line number in the file, from 1
    cells : dict    texts of the cells that are not empty, by column name with underscores
    """

    line: int
    cells: dict[str, str]


def read_manifest(path: str, known: Sequence[str]) -> list[Row]:
    """Read the rows of a manifest.

    known : sequence of str     columns that it may have, with underscores; `input` is required
    Raises: FormatError if the file cannot be read; ConfigError, with the line number, if it is not
    such a table.
    """
    cure = "a manifest is a table of volumes (.csv, .tsv); name a volume without --manifest"
    check_input(path)  # which refuses an empty file
    text = read_text(path, "manifest", cure)
    lines = text.splitlines(keepends=True)
    reader = csv.reader(lines, delimiter=_delimiter(path, lines), strict=True)
    columns: list[str] = []
    rows, line = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                where = f"manifest {path}, line {line}"
                if not columns:
                    columns = _columns([cell.strip() for cell in cells], known, where)
                else:
                    rows.append(_row([cell.strip() for cell in cells], columns, line, where))
            line = reader.line_num + 1  # a quoted cell may span several lines
    except csv.Error as error:
        raise ConfigError(f"manifest {path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise ConfigError(
            f"manifest {path} holds no volumes; its first line names the columns, "
            "and each other line is a volume"
        )
    return rows


def _delimiter(path: str, lines: Sequence[str]) -> str:
    header = next((line for line in lines if line.strip()), "")
    if path.lower().endswith(".tsv") or "\t" in header:
        return "\t"
    return ";" if header.count(";") > header.count(",") else ","


def _columns(names: list[str], known: Sequence[str], where: str) -> list[str]:
    """The names of the columns, with underscores."""
    columns = [name.replace("-", "_") for name in names]
    for name, column in zip(names, columns, strict=True):
        if column not in known:
            raise ConfigError(f"{where}: {unknown_name('column', name, known)}")
        if columns.count(column) > 1:
            raise ConfigError(f"{where}: two columns are named {name}; leave one out")
    if "input" not in columns:
        raise ConfigError(
            f"{where}: no column 'input', which names the volumes; received {', '.join(names)}"
        )
    return columns


def _row(cells: list[str], columns: list[str], line: int, where: str) -> Row:
    if len(cells) != len(columns):
        raise ConfigError(
            f"{where}: {count_of(len(cells), 'cell')}, "
            f"but the first line names {count_of(len(columns), 'column')}; "
            "write n/a for an empty cell"
        )
    row = Row(
        line,
        {column: cell for column, cell in zip(columns, cells, strict=True) if cell not in EMPTY},
    )
    if "input" not in row.cells:
        raise ConfigError(f"{where}, column input: the cell is empty; it must name the volume")
    return row

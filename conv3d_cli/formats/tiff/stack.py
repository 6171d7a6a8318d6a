"""A folder of TIFF files with a plane each, as one volume: `FOLDER::PATTERN`.

The files that match are stacked along z, in natural order of their names: z2.tif before z10.tif.
The first file gives the metadata.
"""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.tiff import FORMAT
from conv3d_cli.formats.tiff.directories import read_directories
from conv3d_cli.formats.tiff.planes import PlaneArray
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import Axes, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input, why_unreadable
from conv3d_cli.system.parts import split_part

NUMBER = re.compile(r"(\d+)")


def stack_files(name: str) -> list[str]:
    """The files of a stack, in natural order.

    name : str      `FOLDER::PATTERN`
    Raises: FormatError if no TIFF file matches.
    """
    folder, pattern = split_part(name)
    try:
        entries = os.listdir(folder)
    except OSError as error:
        raise FormatError(f"cannot read {folder}: {why_unreadable(error)}") from None
    found = [
        entry
        for entry in fnmatch.filter(entries, pattern)
        if not entry.startswith(".") and (FORMAT.claims(entry) or FORMAT.only_reads(entry))
    ]
    if not found:
        raise FormatError(f"cannot read {name}: no TIFF file in {folder} matches {pattern}")
    return [os.path.join(folder, entry) for entry in sorted(found, key=natural)]


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """A key that sorts names as people count.

    >>> sorted(["z10.tif", "z9.tif", "z009b.tif"], key=natural)
    ['z9.tif', 'z009b.tif', 'z10.tif']
    """
    parts = NUMBER.split(name)
    words, numbers = parts[::2], [int(number) for number in parts[1::2]]
    return tuple(zip(words, [*numbers, -1], strict=True))


def read_stack(
    name: str, first: VolumeReader, stored: Any
) -> tuple[PlaneArray, VolumeHeader, tuple[str, ...]]:
    """The voxels of a stack, its header, and notes.

    first : VolumeReader    of its first file
    stored : numpy dtype    of its voxels
    Raises: FormatError if the files differ, or hold more than a plane.
    """
    files = stack_files(name)
    letters, page = first.header.axes.letters, first.header.axes.shape
    if letters not in ("yx", "yxs"):
        raise FormatError(
            f"cannot read {name}: {files[0]} holds axes {letters}, shape {page}, and a stack is "
            "made of files with one plane; name the files themselves, or a pattern"
        )
    layout = None
    for file in files:
        check_input(file)  # a pattern may match folders, pipes and links to nothing
        found = [directory for directory in read_directories(file) if not directory.beside]
        layout = found[0].plane if layout is None else layout
        if len(found) != 1 or found[0].plane != layout:
            odd = (
                f"holds {len(found)} pages, and a stack is made of files with one plane"
                if len(found) != 1
                else f"differs from {files[0]} in size or type"
            )
            raise FormatError(
                f"cannot read {name}: {file} {odd}; choose the files of the stack by a pattern"
            )
    axes = Axes("z" + letters, (len(files), *page))
    places = [(file, 0) for file in files]
    array = PlaneArray(places, axes.shape, 1, stored, name, kept_bytes=0)
    grid, notes = _stack_grid(first.header.grid, len(files))
    kept = first.header.metadata
    header = replace(
        first.header,
        axes=axes,
        grid=grid,
        metadata=replace(kept, axes=axes, items={**kept.items, "Labels": None}),
    )
    return array, header, (*notes, *(_several(files) or _gaps(files)))


def _stack_grid(grid: Grid, count: int) -> tuple[Grid, list[str]]:
    """The grid of the stack from that of a plane, and notes on guesses."""
    if grid.spacing is None or grid.unit is None or count == 1:
        return grid, []
    note = f"files of one plane give no z spacing: it is taken as {grid.spacing[0]:g} {grid.unit}"
    return replace(grid, assumed=grid.assumed | {"d"}, guesses=(*grid.guesses, note)), [note]


def _several(files: list[str]) -> list[str]:
    """A note if the names seem to be those of several stacks, such as time points or channels.

    They are if no number in them counts the files: each number, or all of them, come again.
    """
    keys = [natural(os.path.basename(file)) for file in files]
    numbers = [tuple(n for _, n in key) for key in keys]
    if len(set(numbers)) < len(files):  # a_z1.tif and b_z1.tif
        several = len(set(numbers)) > 1
    else:
        is_regular = len({len(one) for one in numbers}) == 1
        columns = list(zip(*numbers, strict=True)) if is_regular else []
        varying = [column for column in columns if len(set(column)) > 1]
        several = len(varying) > 1 and all(len(set(column)) < len(files) for column in varying)
    if not several:
        return []
    first, last = (os.path.basename(file) for file in (files[0], files[-1]))
    return [
        f"its {len(files)} files, from {first} to {last}, seem to be several stacks (of times or "
        "channels), and all are planes along z; choose those of one by a pattern"
    ]


def _gaps(files: list[str]) -> list[str]:
    """A note on numbers that are left out in the names of the files."""
    keys = [natural(os.path.basename(file)) for file in files]
    words = {tuple(word for word, _ in key) for key in keys}
    if len(words) != 1 or len(keys) < 3:
        return []
    columns = zip(*([n for _, n in key] for key in keys), strict=True)
    varying = [column for column in columns if len(set(column)) > 1]
    if len(varying) != 1:
        return []
    numbers = varying[0]
    steps = [b - a for a, b in pairwise(numbers)]
    usual = min(steps)
    for place, step in enumerate(steps):
        if step != usual:
            return [
                f"planes may be missing: {os.path.basename(files[place + 1])} follows "
                f"{os.path.basename(files[place])}"
            ]
    return []

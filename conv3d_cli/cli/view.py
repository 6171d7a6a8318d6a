"""`conv3d view`: three orthogonal slices of volumes, on the terminal or in a picture file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from conv3d_cli.cli.messages import echo
from conv3d_cli.cli.parameters import (
    FileName,
    UnitOption,
    check_overwrite,
    memory_option,
    spacing_option,
    timeout_option,
)
from conv3d_cli.cli.values import Whole
from conv3d_cli.errors import SpecError
from conv3d_cli.settings.option import File, Unit
from conv3d_cli.system.words import TERMINAL, plain_text

if TYPE_CHECKING:
    from conv3d_cli.pictures.panels import Panel, Window
    from conv3d_cli.pictures.slices import Slices

NARROWEST = 26  # least width of a volume beside others, in characters


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=FileName(File.READ))
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=FileName(File.WRITTEN),
    help="Write a picture to a .png, .svg or .pdf file instead of the terminal.",
)
@click.option(
    "--at",
    metavar="PLACE",
    help="Point where the slices meet: voxel D,H,W, or X,Y,Z in the world with a unit, as in "
    "-12,0,8mm.  [default: the middle]",
)
@click.option(
    "--window",
    cls=UnitOption,
    unit=Unit.VOXEL_VALUES,
    metavar="LO,HI",
    help="Values to draw as black and as white.  [default: the 0.5 and 99.5 % quantiles of all "
    "voxels drawn]",
)
@click.option(
    "-n",
    "time_point",
    type=Whole(),
    default=0,
    show_default=True,
    metavar="N",
    help="Time point to show, counted from 0.",
)
@click.option(
    "-c",
    "--channel",
    type=Whole(),
    default=0,
    show_default=True,
    metavar="C",
    help="Channel to show, counted from 0.",
)
@click.option(
    "--axes",
    metavar="LETTERS",
    help="Axes in storage order.  [default: as the files say]",
)
@spacing_option()
@timeout_option()
@memory_option()
@click.option("--overwrite", is_flag=True, help="Replace an existing picture.")
def view(
    files: tuple[str, ...],
    output: str | None,
    at: str | None,
    window: str | None,
    time_point: int,
    channel: int,
    axes: str | None,
    spacing: str | None,
    overwrite: bool,
) -> None:
    """Show three slices of each volume, and the difference of two.

    \b
      conv3d view brain.nii.gz
      conv3d view brain.nii.gz smooth.nii.gz --at -12,0,8mm
      conv3d view brain.nii.gz smooth.nii.gz -o view.png

    All volumes share one grey window. For two volumes on the same grid, the difference is drawn,
    too. Voxels keep their proportions. If a file tells the anatomical directions (NIfTI), slices
    are upright with L on the left, and letters mark the edges; else rows are drawn as stored, the
    first on top. Only the planes shown are read; a compressed file is read through once. To write
    a picture file, install Matplotlib: pip install 'conv3d[plot]'.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported
    from conv3d_cli.kernels.lengths import read_spacing
    from conv3d_cli.pictures.slices import Position, read_slices

    by_hand = None if spacing is None else read_spacing(spacing)
    place = None if at is None else Position.parse(at)
    given = None if window is None else parse_window(window)
    check_overwrite(overwrite, output)
    if output is not None:
        from conv3d_cli.pictures.plotting import check_plotting

        check_plotting(output, "-o", overwrite)
    shown = [read_slices(path, place, time_point, channel, axes, spacing=by_hand) for path in files]
    for slices in shown:
        for note in slices.notes:
            echo(f"note: {slices.path}: {note}")
    show(shown, given, output, overwrite)


def parse_window(text: str) -> Window:
    """Parse "LO,HI" into two finite numbers, LO < HI. Raises: SpecError for anything else.

    >>> parse_window("-10,1e3")
    (-10.0, 1000.0)
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SpecError(
            "--window must be two numbers LO,HI with LO < HI, as in --window 0,1000, "
            f"received '{text}'"
        )
    return low, high


def show(
    shown: Sequence[Slices], given: Window | None, output: str | None, overwrite: bool
) -> None:
    """Draw volumes side by side, on the terminal or into a file.

    shown : sequence of Slices      slices of each volume
    given : (low, high) or None     the grey window; None: one that fits the values
    output : str or None            path of the picture; None: the terminal
    overwrite : bool                replace an existing picture
    """
    from conv3d_cli.pictures.panels import (
        difference_panels,
        geometry_words,
        panels_of,
        robust_window,
        shortest_side,
        window_words,
    )

    window = robust_window([slices.values for slices in shown]) if given is None else given
    columns = [panels_of(slices, window) for slices in shown]
    headings = column_names([slices.path for slices in shown])
    caption = [window_words(window, given is not None)]
    if len(shown) == 2:
        reason = why_not_subtracted(*shown)
        if reason is None:
            difference, words = difference_panels(*shown)
            columns.append(difference)
            headings.append("difference")
            full = difference[0].window[1]
            caption.append(
                f"difference: second - first, in these slices; {words}"
                + (f"; black 0, orange above, blue below, full at {full:.6g}" if full else "")
            )
        else:
            echo(f"note: no difference is drawn: {reason}")
    ways = [f"{'dhw'[i]}: {panel.directions}" for i, panel in enumerate(columns[0])]
    caption += ["; ".join(ways), *_by_file(headings, [geometry_words(slices) for slices in shown])]
    if _has_nan(shown):
        caption.append("NaN is violet" if output is not None else "NaN is violet, or ?")
    if output is not None:
        from conv3d_cli.pictures.figure import make_figure
        from conv3d_cli.pictures.plotting import save_figure

        rows = [columns[0]] if len(columns) == 1 else list(zip(*columns, strict=True))
        save_figure(make_figure(rows, caption, headings), output, overwrite)
        return
    _print(columns, min(shortest_side(slices) for slices in shown), headings, caption)


def _print(
    columns: Sequence[Sequence[Panel]],
    voxel: float,
    headings: Sequence[str],
    caption: Sequence[str],
) -> None:
    import shutil
    from dataclasses import replace

    from conv3d_cli.cli.drawing import draw, terminal_lines, wrapped

    if len(columns) == 1:
        lines = terminal_lines()
        click.echo(plain_text(headings[0], TERMINAL))
        draw([columns[0]], voxel, lines=None if lines is None else lines - len(caption) - 6)
    else:
        at_once = max(1, shutil.get_terminal_size((100, 24)).columns // NARROWEST)
        for start in range(0, len(columns), at_once):
            block = range(start, min(start + at_once, len(columns)))
            letters = {i: chr(ord("a") + i % 26) for i in block}
            named = "\n".join(f"{letter}: {headings[i]}" for i, letter in letters.items())
            click.echo(plain_text(named, TERMINAL))
            rows = [
                [
                    replace(columns[i][axis], title=f"{letter}: {columns[i][axis].title}")
                    for i, letter in letters.items()
                ]
                for axis in range(3)
            ]
            draw(rows, voxel)
    click.echo(plain_text(wrapped(caption), TERMINAL))


def column_names(paths: Sequence[str]) -> list[str]:
    """File names; whole paths where two names are the same.

    >>> column_names(["a/x.nii", "b/x.nii", "b/y.nii"])
    ['a/x.nii', 'b/x.nii', 'y.nii']
    """
    short = [os.path.basename(path.rstrip("/")) or path for path in paths]
    return [
        path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)
    ]


def why_not_subtracted(first: Slices, second: Slices) -> str | None:
    """The reason why two volumes cannot be subtracted voxel by voxel; None if they can."""
    from conv3d_cli.analysis.compare import grid_differences

    sizes = first.header.shape[1:4], second.header.shape[1:4]
    if sizes[0] != sizes[1]:
        return f"{'x'.join(map(str, sizes[0]))} and {'x'.join(map(str, sizes[1]))} voxels"
    if first.at != second.at:
        return "the point of --at lies in different voxels"
    differences = grid_differences(first.header.grid, second.header.grid, first.header)
    return differences[0] if differences else None


def _by_file(names: Sequence[str], words: Sequence[list[str]]) -> list[str]:
    """A line of words for each file; one line if all have the same words."""
    if all(word == words[0] for word in words):
        return ["; ".join(words[0])]
    return [f"{name}: {'; '.join(word)}" for name, word in zip(names, words, strict=False)]


def _has_nan(shown: Sequence[Slices]) -> bool:
    import numpy as np

    return any(bool(np.isnan(slices.values).any()) for slices in shown)

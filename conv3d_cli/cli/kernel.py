"""`conv3d kernel list|show|make|convert`: what kernels there are, what one looks like, saving one, and trained layers."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from conv3d_cli.model.grid import Grid
    from conv3d_cli.model.kernel import Kernel, Weights

SHADES = " .:-=+*#%@"
_COLUMNS = 24  # of the terminal's characters that a slice is enlarged to where the kernel is small
_AXIS_WORDS = ("depth", "height", "width")


@click.group()
def kernel() -> None:
    """List, show, save and convert kernels.

    \b
      conv3d kernel list
      conv3d kernel show gaussian:fwhm=6mm --like brain.nii.gz
      conv3d kernel make gaussian:sigma=1.5vox -o smooth.npy

    A KERNEL is a built-in with parameters (name:key=value:key=value), a file
    (.npy .npz .json .toml .txt .nii .nii.gz .tif), or a layer in a weights file, FILE::NAME
    (.keras .weights.h5 .h5 .hdf5 .safetensors .onnx .pt .pth).
    """


@kernel.command("list")
def list_() -> None:
    """List the built-in kernels with their parameters.

    \b
      conv3d kernel list
    """
    from conv3d_cli.kernels import describe_builtins

    rows = [(k.name, " ".join(map(str, k.parameters)), k.summary) for k in describe_builtins()]
    for name, parameters, summary in rows:
        click.echo(f"{name:<10} {summary}")
        if parameters:
            click.echo(f"{'':<10}   {parameters}")
    click.echo(
        "\nWrite a kernel as name:parameter=value:parameter=value; [brackets] may be left out. LENGTH is one number for all\n"
        "axes or three, depth,height,width, with a unit (vox nm um mm cm m): gaussian:fwhm=6mm, log:sigma=1.5,1,1vox."
    )


def grid_options(command: Any) -> Any:
    """The two ways to say how large a voxel is: --like VOLUME, --spacing D,H,W."""
    spacing = click.option(
        "--spacing", metavar="D,H,W", help="Voxel spacing for lengths in mm, with its unit: 2,1,1mm or 0.5um."
    )
    like = click.option(
        "--like",
        metavar="VOLUME",
        type=click.Path(),
        help="Take the voxel spacing from this volume (its header is read).",
    )
    return like(spacing(command))


@kernel.command()
@click.argument("text", metavar="KERNEL")
@grid_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(text: str, like: str | None, spacing: str | None, as_json: bool) -> None:
    """Show a kernel: size, sum, centre, separability, symmetry, FWHM, and a picture.

    \b
      conv3d kernel show gaussian:fwhm=6mm --spacing 3,1.5,1.5mm
      conv3d kernel show log:sigma=2mm --like brain.nii.gz
      conv3d kernel show psf.tif --json

    Separable rank 1: the kernel is a product of three 1-D kernels and runs much faster. FWHM is measured on the profile
    along each axis (the sum over the two others), and left out where that is no single bump.
    """
    from conv3d_cli.kernels import read_kernel

    grid = _read_grid(like, spacing)
    shown = read_kernel(text, grid)
    facts = kernel_facts(shown, grid)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    for line in _fact_lines(facts):
        click.echo(line)
    click.echo()
    _draw(shown)


@kernel.command()
@click.argument("text", metavar="KERNEL")
@click.option("-o", "--output", required=True, type=click.Path(), help="File to write; the suffix says the format.")
@grid_options
@click.option("--normalize", is_flag=True, help="Scale the weights (of each filter) to sum 1.")
@click.option(
    "--flip", is_flag=True, help="Mirror along all axes: the saved kernel then convolves instead of correlates."
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def make(
    text: str, output: str, like: str | None, spacing: str | None, normalize: bool, flip: bool, overwrite: bool
) -> None:
    """Save a kernel, or convert a kernel file to another format.

    \b
      conv3d kernel make gaussian:sigma=1.5vox -o smooth.npy
      conv3d kernel make ball:radius=5mm --like brain.nii.gz -o ball.nii.gz
      conv3d kernel make psf.tif --normalize --flip -o psf.json

    Formats: .npy .npz .json .toml .txt .nii .nii.gz .tif. Weights are written as float64 and read back exactly; the same
    command writes the same bytes. A bias or a centre off the middle needs .npz, .json or .toml.
    """
    from conv3d_cli.atomic import check_target
    from conv3d_cli.kernels import read_kernel, write_kernel

    check_target(output, overwrite)
    made = read_kernel(text, _read_grid(like, spacing))
    if flip:
        made = made.flipped()
    if normalize:
        made = made.normalized()
    write_kernel(output, made, overwrite=overwrite)


@kernel.command()
@click.argument("source", metavar="SRC[::NAME]")
@click.argument("target", metavar="DST", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def convert(source: str, target: str, overwrite: bool) -> None:
    """Convert trained Conv3D layers between the files of Keras, PyTorch and ONNX.

    \b
      conv3d kernel convert model.keras net.safetensors
      conv3d kernel convert net.onnx::Conv_3 layer.keras
      conv3d kernel convert state.pt::enc.conv layer.npz

    \b
    Read:     .keras .weights.h5 .h5 .hdf5 .safetensors .onnx .pt .pth, and every kernel file
    Written:  .keras .weights.h5 .safetensors .onnx, and every kernel file (.npz .npy .json .toml)

    NAME chooses one layer; without it all layers are converted where DST can hold them. The layouts of PyTorch and ONNX,
    (filters, in_channels/groups, d, h, w), and of Keras, (d, h, w, in_channels/groups, filters), are turned into each other.
    Strides, padding, dilation, groups and activation are kept where DST can hold them; a note on stderr says what it cannot.
    No code in any file is run; in PyTorch files only tensors are read.
    """
    from conv3d_cli.atomic import check_target
    from conv3d_cli.kernels.weights.convert import convert_layers

    check_target(target, overwrite)
    for note in convert_layers(source, target, overwrite=overwrite):
        click.echo(f"note: {note}", err=True)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _read_grid(like: str | None, spacing: str | None) -> Grid | None:
    """The grid of --like or --spacing; None without either.

    Raises: SpecError for both, or a spacing that is none; FormatError if the volume cannot be opened.
    """
    from conv3d_cli.errors import SpecError
    from conv3d_cli.kernels.lengths import VOXEL, parse_lengths
    from conv3d_cli.model.grid import Grid

    if like is not None and spacing is not None:
        raise SpecError("--like and --spacing both give the voxel spacing; leave one out")
    if like is not None:
        from conv3d_cli.formats import open_volume

        with open_volume(like) as reader:
            return reader.header.grid
    if spacing is None:
        return None
    values, unit = parse_lengths(spacing, "spacing")
    if unit == VOXEL or min(values) <= 0:
        raise SpecError(f"the spacing is positive, in mm, um or the like, as in --spacing 2,1,1mm, received {spacing}")
    return Grid(values, unit)


# ---------------------------------------------------------------------------------------------------------------------
# Facts


def kernel_facts(shown: Kernel, grid: Grid | None) -> dict[str, Any]:
    """What `show` tells of a kernel, as JSON holds it; triples are D, H, W."""
    import numpy as np

    weights = shown.weights
    fwhm = shown.fwhm()
    facts: dict[str, Any] = {
        "kernel": shown.name,
        "shape": list(weights.shape),
        "dtype": str(weights.dtype),
        "sum": shown.sum,
        "absolute_sum": float(np.abs(weights).sum()),
        "min": float(weights.min()),
        "max": float(weights.max()),
        "centre": list(shown.centre or [(k - 1) / 2 for k in shown.size]),
        "separable_rank": shown.separable_rank(),
        "symmetric": list(shown.symmetries()),
        "fwhm_voxels": list(fwhm),
        "spacing": None,
        "unit": None,
        "fwhm": None,
        "bias": None if shown.bias is None else shown.bias.tolist(),
    }
    if grid is not None and grid.spacing is not None and grid.unit is not None:
        facts["spacing"], facts["unit"] = list(grid.spacing), grid.unit
        facts["fwhm"] = [None if f is None else f * s for f, s in zip(fwhm, grid.spacing, strict=True)]
    return facts


def _fact_lines(facts: dict[str, Any]) -> list[str]:
    rank, unit = facts["separable_rank"], facts["unit"]
    if rank is None:
        separable = "not asked of a layer (5-D)"
    else:
        separable = (
            f"{rank} (a product of three 1-D kernels)" if rank == 1 else f"{rank} (not a product of 1-D kernels)"
        )
    symmetric = [word for word, flag in zip(_AXIS_WORDS, facts["symmetric"], strict=True) if flag]
    lines = {
        "kernel": facts["kernel"],
        "shape": f"{' x '.join(map(str, facts['shape']))} {facts['dtype']} ({_shape_words(facts['shape'])})",
        "sum": f"{facts['sum']:.6g} (of absolute values: {facts['absolute_sum']:.6g})",
        "range": f"{facts['min']:.6g} to {facts['max']:.6g}",
        "centre": _triple(facts["centre"]),
        "separable rank": separable,
        "symmetric along": ", ".join(symmetric) or "no axis",
        "FWHM": f"{_triple(facts['fwhm_voxels'])} voxels",
    }
    if facts["fwhm_voxels"] == [None] * 3:
        lines["FWHM"] = "none: not a single bump along any axis"
    elif unit is not None:
        lines["FWHM"] += f" = {_triple(facts['fwhm'])} {unit}"
    if unit is not None:
        lines["voxel spacing"] = f"{_triple(facts['spacing'])} {unit}"
    if facts["bias"] is not None:
        shown = [f"{value:.6g}" for value in facts["bias"][:8]]
        lines["bias"] = ", ".join(shown) + (f", ... ({len(facts['bias'])} values)" if len(facts["bias"]) > 8 else "")
    return [f"{label + ':':<17}{text}" for label, text in lines.items()]


def _shape_words(shape: list[int]) -> str:
    words = "depth x height x width"
    return words if len(shape) == 3 else f"{words} x in_channels/groups x filters"


def _triple(values: list[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.4g}" for value in values)


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def _draw(shown: Kernel) -> None:
    """The three central slices: half-blocks in colour on a terminal, shades of ASCII elsewhere."""
    import shutil
    import sys

    import numpy as np

    weights = shown.weights if not shown.is_layer else shown.weights[..., 0, 0]
    scale = float(np.abs(weights).max()) or 1.0
    if shown.is_layer:
        click.echo("first filter, first channel:")
    width = shutil.get_terminal_size((100, 24)).columns
    for title, plane in central_slices(shown, weights):
        if not _in_colour(sys.stdout):
            rows = ascii_picture(plane / scale, width)
            click.echo("\n".join([title, *(row.rstrip() for row in rows), ""]))
        else:
            click.echo(title)
            _print_blocks(plane / scale, width)
            click.echo()
    legend = f"from 0 '{SHADES[0]}' to the largest absolute weight, {scale:.4g}, '{SHADES[-1]}'"
    if _in_colour(sys.stdout):
        legend = f"black is 0; orange positive, blue negative, full at {scale:.4g}"
    elif weights.min() < 0:
        legend += "; '-' after it: negative"
    click.echo(legend)


def _in_colour(stream: Any) -> bool:
    import os

    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and encoding == "utf8" and not plain


def central_slices(shown: Kernel, weights: Weights) -> list[tuple[str, Weights]]:
    """The planes through the centre across depth, height and width, each with its title."""
    import numpy as np

    centre = shown.centre or [(k - 1) / 2 for k in shown.size]
    slices = []
    for axis, (letter, word) in enumerate(zip("dhw", _AXIS_WORDS, strict=True)):
        position = int(centre[axis] + 0.5)
        down, right = (w for w in _AXIS_WORDS if w != word)
        slices.append(
            (f"{letter} = {position}: {down} down, {right} to the right", np.take(weights, position, axis=axis))
        )
    return slices


def ascii_picture(plane: Weights, columns: int) -> list[str]:
    """A plane of values in -1..1 as text: two characters a voxel, the second a minus where the value is negative.

    >>> import numpy as np
    >>> ascii_picture(np.array([[-1.0, 0.0, 1.0]]), 80)
    ['@-  @@']
    """
    rows = []
    for row in _shrink(plane, max(1, columns // 2)):
        levels = [min(len(SHADES) - 1, int(abs(value) * (len(SHADES) - 1) + 0.999)) for value in row]
        rows.append("".join(SHADES[i] + ("-" if v < 0 and i else SHADES[i]) for i, v in zip(levels, row, strict=True)))
    return rows


def _print_blocks(plane: Weights, columns: int) -> None:
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    plane = _shrink(plane, columns)
    enlarge = max(1, _COLUMNS // max(plane.shape))
    plane = plane.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    if len(plane) % 2:
        plane = np.pad(plane, [(0, 1), (0, 0)])
    console = Console(highlight=False, soft_wrap=True)
    for upper, lower in zip(plane[::2], plane[1::2], strict=True):
        line = Text()
        for style, run in itertools.groupby(zip(upper, lower, strict=True), _half_block_style):
            line.append("▀" * len(list(run)), style=style)
        console.print(line)


def _half_block_style(pair: tuple[float, float]) -> str:
    return f"{_colour(pair[0])} on {_colour(pair[1])}"


def _colour(value: float) -> str:
    """Black at 0, orange at 1, blue at -1; the square root lifts the tails of bell shapes above black."""
    strength = min(1.0, abs(value)) ** 0.5
    full = (255, 170, 60) if value > 0 else (70, 150, 255)
    return "rgb({},{},{})".format(*(round(strength * part) for part in full))


def _shrink(plane: Weights, columns: int) -> Weights:
    """At most `columns` wide and high, each cell the value of largest magnitude of a block of voxels."""
    import numpy as np

    step = -(-max(plane.shape) // columns)
    if step == 1:
        return plane
    high, wide = (-(-n // step) for n in plane.shape)
    padded = np.zeros((high * step, wide * step))
    padded[: plane.shape[0], : plane.shape[1]] = plane
    blocks = padded.reshape(high, step, wide, step).transpose(0, 2, 1, 3).reshape(high, wide, step * step)
    return np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]

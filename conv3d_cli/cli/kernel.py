"""`conv3d kernel list|show|make|convert`: list, show and save kernels, convert trained layers."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli import layout
from conv3d_cli.cli.messages import echo
from conv3d_cli.cli.options import table_options
from conv3d_cli.cli.parameters import (
    FileName,
    check_overwrite,
    memory_option,
    spacing_option,
    timeout_option,
)
from conv3d_cli.cli.usage import CommandGroup
from conv3d_cli.errors import SpecError
from conv3d_cli.settings.needs import no_effect
from conv3d_cli.settings.option import File
from conv3d_cli.system.words import TERMINAL, count_of, plain_text

if TYPE_CHECKING:
    from conv3d_cli.model.grid import Grid
    from conv3d_cli.model.kernel import Kernel
    from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation

_COLUMNS = 24  # `show` enlarges the slices of a small kernel to this many characters
BORDER = 1e-6  # fraction of Σ|w| for which `show` says what --crop-kernel would leave
_KERNEL_TEXT = (
    "Write a kernel as name:parameter=value:parameter=value. Parameters in [brackets] are "
    "optional. LENGTH is one number for all axes, or three for depth,height,width, with a unit "
    "(vox nm um mm cm m): gaussian:fwhm=6mm, log:sigma=1.5,1,1vox. AXES is d, h or w (z, y, x), or "
    "several, as in axis=xyz: one output channel for each, or their magnitude (apply --magnitude). "
    "FORMULA computes a weight from the offsets d, h, w and the distance r from the centre, in the "
    "unit of the radius."
)
_AXIS_WORDS = ("depth", "height", "width")


@click.group(cls=CommandGroup)
def kernel() -> None:
    """List, show, save and convert kernels.

    \b
      conv3d kernel list
      conv3d kernel show gaussian:fwhm=6mm --like brain.nii.gz
      conv3d kernel make gaussian:sigma=1.5vox -o smooth.npy

    A KERNEL is a built-in with parameters (name:key=value:key=value), a file
    (.npy .npz .json .toml .txt .kern, or any volume), or a layer of a weights file, FILE::NAME
    (.keras .h5 .safetensors .onnx .pt ...; `conv3d kernel convert --help` lists them).
    """


@kernel.command("list")
def list_() -> None:
    """List the built-in kernels with their parameters.

    \b
      conv3d kernel list
    """
    from conv3d_cli.kernels import describe_builtins

    columns = layout.list_columns()
    rows = [(k.name, " ".join(map(str, k.parameters)), k.summary) for k in describe_builtins()]
    width = max(len(name) for name, *_ in rows)
    for name, parameters, summary in rows:
        click.echo(layout.hung(f"{name:<{width}} {summary}", columns, width + 1))
        if parameters:
            click.echo(layout.hung(f"{'':<{width}}   {parameters}", columns, width + 5))
    click.echo()
    click.echo(layout.hung(_KERNEL_TEXT, columns, 0))


def grid_options(command: Any) -> Any:
    """--like VOLUME, which may be a URL, and --spacing set the voxel spacing; and --max-memory."""
    spacing = spacing_option(
        "Voxel spacing with its unit, 2,1,1mm or 0.5um; lengths in mm need it. With --like: "
        "for a volume that stores none or no unit."
    )
    like = click.option(
        "--like",
        metavar="VOLUME",
        type=FileName(File.READ),
        help="Take the voxel spacing from the header of this volume.",
    )
    return like(spacing(timeout_option()(memory_option()(command))))


# The options of `apply` that adapt a kernel file to a volume.
adaptation_options = table_options("kernel_spacing", "crop_kernel", "subtract_background")


@kernel.command()
@click.argument("text", metavar="KERNEL", type=FileName(File.KERNEL))
@grid_options
@adaptation_options
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=FileName(File.WRITTEN),
    help="Write the picture to a .png, .svg or .pdf file instead of the terminal.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(
    text: str,
    like: str | None,
    spacing: str | None,
    kernel_spacing: str,
    crop_kernel: float | None,
    subtract_background: str | None,
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show a kernel's size, sum, centre, FWHM, and a picture.

    \b
      conv3d kernel show gaussian:fwhm=6mm --spacing 3,1.5,1.5mm
      conv3d kernel show log:sigma=2mm --like brain.nii.gz
      conv3d kernel show psf.tif -o psf.png
      conv3d kernel show psf.tif --like brain.nii.gz --kernel-spacing resample

    A kernel of separable rank 1 is a product of three 1-D kernels, and much faster. FWHM is
    measured on the profile along each axis (the sum over the two other axes), if that is a
    single bump. The picture shows the slices through the centre, and these profiles. To write
    it to a file, install Matplotlib: pip install 'conv3d[plot]'.
    """
    from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation

    check_overwrite(overwrite, output)
    if output is not None:
        from conv3d_cli.pictures.plotting import check_plotting

        check_plotting(output, "-o", overwrite)
    grid = _read_grid(like, spacing)
    adaptation = KernelAdaptation(kernel_spacing, crop_kernel, subtract_background)
    shown = _read_fitted(text, grid, adaptation)
    if grid is None:  # show lengths in the spacing of the kernel's file, if it has one
        grid = shown.grid
    facts = kernel_facts(shown, grid)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        lines = "\n".join(_fact_lines(facts))
        click.echo(layout.facts(lines, sys.stdout, indent=17))
        if output is None:
            click.echo()
    if output is not None or not as_json:
        _draw(shown, grid, output, overwrite)


@kernel.command()
@click.argument("text", metavar="KERNEL", type=FileName(File.KERNEL))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    type=FileName(File.WRITTEN),
    help="Output file; its suffix chooses the format.",
)
@grid_options
@adaptation_options
@click.option("--normalize", is_flag=True, help="Scale the weights of each filter to sum to 1.")
@click.option(
    "--flip",
    is_flag=True,
    help="Flip the kernel along all axes, so that it convolves instead of correlates.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def make(
    text: str,
    output: str,
    like: str | None,
    spacing: str | None,
    kernel_spacing: str,
    crop_kernel: float | None,
    subtract_background: str | None,
    normalize: bool,
    flip: bool,
    overwrite: bool,
) -> None:
    """Save a kernel, or convert a kernel file to another format.

    \b
      conv3d kernel make gaussian:sigma=1.5vox -o smooth.npy
      conv3d kernel make ball:radius=5mm --like brain.nii.gz -o ball.nii.gz
      conv3d kernel make psf.tif --normalize --flip -o psf.json
      conv3d kernel make psf.tif --crop-kernel 1e-6 -o psf.npz

    Writes .npy .npz .json .toml .txt, and every volume format that holds float64; .kern can
    only be read. Weights are written as float64 and read back exactly, and the same command
    writes the same bytes. Only .npz, .json and .toml hold a bias, or a centre off the middle.
    """
    from conv3d_cli.kernels import write_kernel
    from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation
    from conv3d_cli.system.atomic import check_target

    check_target(output, overwrite)
    adaptation = KernelAdaptation(kernel_spacing, crop_kernel, subtract_background)
    made = _read_fitted(text, _read_grid(like, spacing), adaptation, normalize)
    if flip:
        made = made.flipped()
    if normalize:
        made = made.normalized()
    write_kernel(output, made, overwrite=overwrite)
    if made.is_bank:
        echo(
            f"note: {text} has {count_of(made.filters_per_channel, 'filter')}; "
            f"{output} is a Conv3D layer for one input channel"
        )


@kernel.command()
@click.argument("source", metavar="SRC[::NAME]", type=FileName(File.READ))
@click.argument("target", metavar="DST", type=FileName(File.WRITTEN))
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@memory_option()
def convert(source: str, target: str, overwrite: bool) -> None:
    """Convert trained layers between Keras, PyTorch and ONNX.

    \b
      conv3d kernel convert model.keras net.safetensors
      conv3d kernel convert net.onnx::Conv_3 layer.keras
      conv3d kernel convert state.pt::enc.conv layer.npz

    \b
    Reads   .keras .weights.h5 .h5 .hdf5 .safetensors .index.json .onnx
            .pt2 .pt .pth .ckpt, model.json of TF.js, and every kernel file
    Writes  .keras .weights.h5 .safetensors .onnx, and every kernel file
            but .kern (.npz .npy .json .toml ...)

    NAME chooses one layer; without it, all layers that DST can hold are converted. Weights are
    transposed between the layouts of PyTorch and ONNX, (filters, in_channels/groups, d, h, w),
    and of Keras, (d, h, w, in_channels/groups, filters). Strides, padding, dilation, groups and
    activation are kept if DST can hold them; notes on stderr list what it cannot hold. Code in
    files is never run, and only tensors are read from PyTorch files.
    """
    from conv3d_cli.kernels.weights.convert import convert_layers
    from conv3d_cli.system.atomic import check_target

    check_target(target, overwrite)
    for note in convert_layers(source, target, overwrite=overwrite):
        echo(f"note: {note}")


# --------------------------------------------------------------------------------------------------
# Reading


def _read_fitted(
    text: str, grid: Grid | None, adaptation: KernelAdaptation, normalize: bool = False
) -> Kernel:
    """Read a kernel and adapt it to a volume with this grid; print notes on stderr.

    Raises: SpecError for a way to treat the spacing of a file, if there is none.
    """
    from conv3d_cli.kernels import is_builtin, read_kernel
    from conv3d_cli.pipeline.kernel_adaptation import adapt_kernel

    if adaptation.spacing != "match" and is_builtin(text):
        why = no_effect("kernel_spacing", f"it is for kernels from files, and {text} is built-in")
        raise SpecError(f"{why}; leave it out")
    made, notes = adapt_kernel(read_kernel(text, grid), text, grid, adaptation, normalize)
    for note in notes:
        echo(f"note: {note}")
    return made


def _read_grid(like: str | None, spacing: str | None) -> Grid | None:
    """The grid of --like, completed by --spacing; or of --spacing alone; None without either.

    Raises: SpecError for a wrong spacing; FormatError if the volume cannot be opened, ShapeError if
    it tells another spacing.
    """
    from conv3d_cli.kernels.lengths import read_spacing
    from conv3d_cli.model.grid import Grid

    given = None if spacing is None else read_spacing(spacing)
    if like is not None:
        from conv3d_cli.formats import open_volume

        with open_volume(like, spacing=given) as reader:
            for note in reader.notes if given is not None else ():
                echo(f"note: {like}: {note}")
            return reader.header.grid
    return None if given is None else Grid(*given)


# --------------------------------------------------------------------------------------------------
# Facts


def kernel_facts(shown: Kernel, grid: Grid | None) -> dict[str, Any]:
    """The facts that `show` prints about a kernel, as a JSON object. Triples are D, H, W.

    grid : Grid or None     its spacing converts FWHM to a length; None: only voxels
    """
    import numpy as np

    from conv3d_cli.kernels.cropping import crop_kernel

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
        "filters": list(shown.filter_names) or None,
        "built": shown.built or None,
        "centre": list(shown.centre or [(k - 1) / 2 for k in shown.size]),
        "separable_rank": shown.separable_rank(),
        "symmetric": list(shown.symmetries()),
        "fwhm_voxels": list(fwhm),
        "spacing": None,
        "unit": None,
        "fwhm": None,
        "bias": None if shown.bias is None else shown.bias.tolist(),
        "borders": None if shown.is_layer else list(crop_kernel(shown, BORDER).removed),
    }
    if grid is not None and grid.spacing is not None:
        facts["spacing"], facts["unit"] = list(grid.spacing), grid.unit
        if grid.unit is not None:
            facts["fwhm"] = [
                None if f is None else f * s for f, s in zip(fwhm, grid.spacing, strict=True)
            ]
    return facts


def _fact_lines(facts: dict[str, Any]) -> list[str]:
    rank, unit = facts["separable_rank"], facts["unit"]
    if rank is None:
        separable = "not computed for a layer (5-D)"
    else:
        separable = (
            f"{rank} (a product of three 1-D kernels)"
            if rank == 1
            else f"{rank} (not a product of 1-D kernels)"
        )
    symmetric = [word for word, flag in zip(_AXIS_WORDS, facts["symmetric"], strict=True) if flag]
    shape = " x ".join(map(str, facts["shape"]))
    lines = {
        "kernel": facts["kernel"],
        "shape": f"{shape} {facts['dtype']} ({_shape_words(facts['shape'])})",
        **({"filters": ", ".join(facts["filters"])} if facts["filters"] else {}),
        **({"built": facts["built"]} if facts["built"] else {}),
        "sum": f"{facts['sum']:.6g} (absolute values: {facts['absolute_sum']:.6g})",
        "range": f"{facts['min']:.6g} to {facts['max']:.6g}",
        "centre": _triple(facts["centre"]),
        "separable rank": separable,
        "symmetric along": ", ".join(symmetric) or "no axis",
        "FWHM": f"{_triple(facts['fwhm_voxels'])} voxels",
    }
    if facts["fwhm_voxels"] == [None] * 3:
        lines["FWHM"] = "none: no axis has a single bump"
    elif unit is not None:
        lines["FWHM"] += f" = {_triple(facts['fwhm'])} {unit}"
    if facts["spacing"] is not None:
        lines["voxel spacing"] = f"{_triple(facts['spacing'])} {unit or 'without a unit'}"
    if facts["bias"] is not None:
        shown = [f"{value:.6g}" for value in facts["bias"][:8]]
        lines["bias"] = ", ".join(shown) + (
            f", ... ({len(facts['bias'])} values)" if len(facts["bias"]) > 8 else ""
        )
    if any(facts["borders"] or ()):
        left = " x ".join(
            str(k - 2 * n) for k, n in zip(facts["shape"][:3], facts["borders"], strict=True)
        )
        lines["borders"] = f"--crop-kernel {BORDER:g} leaves {left}"
    return [f"{label + ':':<17}{text}" for label, text in lines.items()]


def _shape_words(shape: list[int]) -> str:
    words = "depth x height x width"
    if len(shape) == 4:
        return f"{words} x filters, applied to every channel"
    return words if len(shape) == 3 else f"{words} x in_channels/groups x filters"


def _triple(values: list[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.4g}" for value in values)


# --------------------------------------------------------------------------------------------------
# The picture


def _draw(shown: Kernel, grid: Grid | None, output: str | None, overwrite: bool) -> None:
    """Draw the three central slices and the profiles, on the terminal or into a file."""
    from conv3d_cli.cli import drawing
    from conv3d_cli.pictures.kernels import kernel_panels

    picture = kernel_panels(shown, grid)
    caption = list(picture.caption)
    legend = f"black is 0; orange positive, blue negative, full at {picture.scale:.4g}"
    if output is not None:
        from conv3d_cli.pictures.figure import make_figure
        from conv3d_cli.pictures.plotting import save_figure

        save_figure(
            make_figure([picture.slices, picture.profiles], [shown.name, *caption, legend]),
            output,
            overwrite,
        )
        return
    colour = drawing.in_colour(sys.stdout)
    # enlarge small kernels, but only until their voxels are easy to see
    most = max(1, _COLUMNS // max(shown.size)) if colour else 2
    if not colour:
        shades = drawing.SHADES
        legend = (
            f"'{shades[0]}' is 0, '{shades[-1]}' the largest absolute weight, {picture.scale:.4g}"
        )
        if picture.negative:
            legend += "; '-' after a character: negative"
    drawing.draw([picture.slices, picture.profiles], picture.voxel, most)
    click.echo(plain_text(drawing.wrapped([*caption, legend]), TERMINAL))

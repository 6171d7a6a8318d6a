"""The table of all options of `conv3d apply`: each option is one field of `Settings`.

A field states which object the option configures, its values, where it may be set, whether the
result depends on it, and its help (see `Option`). All other lists of options are derived from this
table: Click's options and their help, the keys of configs, the columns of manifests, the command
in a sidecar, the settings that --resume compares, and those that a cluster's tasks need.

To add an option, add a field here and the code that uses it. This module imports neither Click nor
NumPy, so that --help is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import SpecError, words
from conv3d_cli.model.missing import MASK_MODES, MIN_COVERAGE, NAN_MODES
from conv3d_cli.model.spec import BOUNDARIES
from conv3d_cli.settings.option import (
    ANY,
    COUNT_OR_WORD,
    FLAG,
    NUMBER,
    RECORDED_SECTIONS,
    SWITCH,
    TEXT,
    TEXTS,
    TRIPLE,
    File,
    Option,
    Place,
    Unit,
    Value,
    choice,
    integer,
    option,
)
from conv3d_cli.settings.presets import PRESETS
from conv3d_cli.system.machine import MOST_THREADS

if TYPE_CHECKING:
    from conv3d_cli.model.kernel import Kernel


COPYING = "identity"
"""The kernel that copies."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The options set by one source: a command line, a row of a manifest, a config or its layer.

    None means that the source does not set the option. Three fields are not options. They are set
    when the files of a convolution are read:

    activations : tuple         activations in the order in which they are applied
    notes : tuple of str        notes for the user about the kernel's file
    files : tuple of str        files that the values came from
    """

    # Outputs and messages
    output: str | None = option(
        TEXT,
        Place.COMMAND,
        "Options",
        shapes=False,
        letter="o",
        metavar="OUT",
        file=File.WRITTEN,
        common=True,
        help="Output file; its suffix chooses the format. `-` writes .npy to stdout.",
    )
    overwrite: bool | None = option(
        FLAG,
        Place.JOB,
        "Options",
        shapes=False,
        manifest=False,
        explains=False,
        common=True,
        help="Replace existing outputs.",
    )
    dry_run: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Options",
        shapes=False,
        common=True,
        help="Check everything and print the plan; write nothing.",
    )
    quiet: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Options",
        shapes=False,
        letter="q",
        common=True,
        help="Print no progress and no notes.",
    )
    verbose: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Options",
        shapes=False,
        letter="v",
        common=True,
        help="Print the decisions and the result: kernel, FWHM, grid, memory, times. Also "
        "padding, algorithm, and the values' mean and range before and after.",
    )
    as_json: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Options",
        shapes=False,
        flag="json",
        help="Print one JSON object per volume on stdout.",
    )

    # The kernel
    name: str | None = option(
        TEXT,
        Place.STAGE,
        "",
        shapes=False,
        config=Value((str,), "a name"),
        manifest=False,
        explains=False,
        help="",
    )
    kernel: str | Kernel | Sequence[Any] | None = option(
        TEXT,
        Place.STAGE,
        "Kernel",
        shapes=True,
        letter="k",
        metavar="KERNEL",
        file=File.KERNEL,
        gives_kernel=True,
        config=Value(
            (str, list), 'a string such as "gaussian:fwhm=6mm" or a nested list of numbers'
        ),
        common=True,
        help="Kernel: gaussian:fwhm=6mm, psf.tif or net.keras::LAYER. It is a built-in with "
        "parameters (sobel:axis=d; see `conv3d kernel list`), a formula "
        '(expr:"exp(-r**2/36)":radius=9mm), a kernel file (.npy .npz .json .toml .txt .kern, or '
        "any volume), or a layer of a weights file, FILE::LAYER (.keras .h5 .safetensors .onnx .pt "
        "...).",
    )
    fwhm: str | None = option(
        TEXT,
        Place.STAGE,
        "Kernel",
        shapes=True,
        metavar="LENGTH",
        gives_kernel=True,
        makes_kernel=True,
        field="",
        config=Value((str,), 'a length such as "6mm" or "8,6,6mm"'),
        unit=Unit.LENGTH,
        common=True,
        help="Gaussian of this FWHM, as 6mm, 8,6,6mm or 2vox. It is short for -k "
        "gaussian:fwhm=LENGTH; three lengths are depth,height,width.",
    )
    sigma: str | None = option(
        TEXT,
        Place.STAGE,
        "Kernel",
        shapes=True,
        metavar="LENGTH",
        gives_kernel=True,
        makes_kernel=True,
        field="",
        config=Value((str,), 'a length such as "2vox" or "3,2,2mm"'),
        unit=Unit.LENGTH,
        common=True,
        help="Gaussian of this standard deviation, as 2vox. It is short for -k "
        "gaussian:sigma=LENGTH; three lengths are depth,height,width.",
    )
    config: str | None = option(
        TEXT,
        Place.COMMAND,
        "Kernel",
        shapes=True,
        letter="c",
        metavar="FILE",
        file=File.READ,
        gives_kernel=True,
        manifest=True,
        explains=True,
        common=True,
        help="Options and kernel from a TOML or JSON file. Its keys are these options with "
        "underscores, and [[layers]] makes a stack. Keras' JSON and saved models (.keras, .h5) "
        "work, too. Paths in the file are relative to its folder.",
    )
    operation: str | None = option(
        TEXT,
        Place.JOB,
        "Kernel",
        shapes=True,
        metavar="OPERATION",
        gives_kernel=True,
        config=Value((str,), 'a string such as "local:statistic=std:size=7"'),
        help="Instead of one convolution: an operation that is made of several, with its "
        "parameters, as local:statistic=std:size=7. Each has a command of its own (conv3d local); "
        "see `conv3d help operations`.",
    )
    weights: str | None = option(
        TEXT,
        Place.COMMAND,
        "Kernel",
        shapes=True,
        metavar="FILE",
        file=File.READ,
        manifest=True,
        explains=True,
        help="Weights for a Keras model whose JSON is the config (-c): .weights.h5, or a legacy "
        ".h5 file. Models that were saved whole bring their own.",
    )
    like: str | None = option(
        choice(*PRESETS),
        Place.JOB,
        "Kernel",
        shapes=True,
        field="",
        metavar="TOOL",
        common=True,
        help=f"Smooth as another tool does: {', '.join(PRESETS)}. Sets padding, boundary, flip and "
        "Gaussian; options that you give win. See `conv3d presets`.",
    )
    orient: str | None = option(
        choice("voxel", "world"),
        Place.STAGE,
        "Kernel",
        shapes=True,
        default="voxel",
        field="",
        help="Axes of derivatives, and of kernels with three different lengths: the volume's own, "
        "or the world's, which its affine defines (NIfTI: x to the right, y to the front, z up; "
        "derivatives per mm).",
    )
    magnitude: bool | None = option(
        FLAG,
        Place.STAGE,
        "Kernel",
        shapes=True,
        help="For derivatives along several axes (sobel:axis=xyz), write the root of the sum of "
        "their squares instead of one channel per axis.",
    )
    flip: bool | None = option(
        SWITCH,
        Place.STAGE,
        "Kernel",
        shapes=True,
        makes_kernel=True,
        common=True,
        help="Flip the kernel.  [default: correlation, as Keras]",
    )
    normalize: bool | None = option(
        SWITCH,
        Place.STAGE,
        "Kernel",
        shapes=True,
        makes_kernel=True,
        help="Scale the kernel so that its weights sum to 1.  [default: weights as given]",
    )
    kernel_spacing: str | None = option(
        choice("match", "resample", "ignore"),
        Place.STAGE,
        "Kernel",
        shapes=True,
        default="match",
        makes_kernel=True,
        help="If a kernel file (NIfTI, TIFF) has another voxel spacing than the volume: refuse the "
        "kernel (match), resample it and keep its sum (resample), or apply it voxel by voxel "
        "(ignore).",
    )
    crop_kernel: float | None = option(
        NUMBER,
        Place.STAGE,
        "Kernel",
        shapes=True,
        metavar="FRACTION",
        makes_kernel=True,
        config=Value((int, float), "a number such as 1e-6"),
        unit=Unit.FRACTION,
        help="Cut off outer planes of the kernel that hold at most this fraction of Σ|w|, e.g. "
        "1e-6; 0 cuts off planes of zeros.  [default: no cropping]",
    )
    subtract_background: str | float | None = option(
        TEXT,
        Place.STAGE,
        "Kernel",
        shapes=True,
        metavar="border|VALUE",
        makes_kernel=True,
        config=Value((str, int, float), '"border" or a number'),
        help="Subtract the background of a measured kernel from its weights first, before it is "
        "resampled, cropped, flipped and normalized: the median of its border, or this number. "
        "Negative weights are kept.  [default: no subtraction]",
    )
    bias: str | float | Sequence[float] | None = option(
        TEXT,
        Place.STAGE,
        "Kernel",
        shapes=True,
        metavar="FILE|VALUE",
        file=File.BIAS,
        config=ANY,
        makes_kernel=True,
        unit=Unit.VOXEL_VALUES,
        help="Number to add to each filter's output: one for all filters, one for each (1,2,3), or "
        "a .npy or .txt file.  [default: the bias in the kernel's file, if any]",
    )
    no_bias: bool | None = option(
        FLAG,
        Place.STAGE,
        "Kernel",
        shapes=True,
        config=False,
        field="",
        help="Ignore the bias in the kernel's file.",
    )
    use_bias: bool | None = option(
        FLAG,
        Place.STAGE,
        "",
        shapes=True,
        manifest=False,
        explains=False,
        makes_kernel=True,
        help="",
    )
    to_fwhm: str | None = option(
        TEXT,
        Place.COMMAND,
        "Kernel",
        shapes=True,
        metavar="LENGTH",
        gives_kernel=True,
        unit=Unit.LENGTH,
        help="Instead of -k: smooth until the volume's estimated FWHM is this length, e.g. 8mm or "
        "8,6,6mm.",
    )

    # Edges and steps
    padding: str | int | Sequence[object] | None = option(
        TEXT,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        metavar="MODE",
        config=ANY,
        unit=Unit.VOXELS,
        help="Voxels to add at the edges: valid (none), same (as many as keep the size; an odd one "
        "goes after, as in Keras), same_lower (an odd one goes before), full, or a number: N, "
        "N,N,N or LO:HI,LO:HI,LO:HI.  [default: same for a 3-D kernel, valid for a 5-D one]",
    )
    boundary: str | None = option(
        TEXT,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        metavar="MODE",
        config=Value((str,), 'a string such as "nearest"'),
        common=True,
        help="What lies beyond the edges, as nearest or zeros. All are "
        f"{', '.join(b for b in BOUNDARIES if b != 'constant')}, constant=V.  "
        "[default: symmetric; for a 5-D kernel, zeros]",
    )
    strides: int | Sequence[int] | None = option(
        TRIPLE,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        default=1,
        config=ANY,
        unit=Unit.VOXELS,
        common=True,
        help="Step between outputs, in input voxels.",
    )
    dilation_rate: int | Sequence[int] | None = option(
        TRIPLE,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        default=1,
        config=ANY,
        unit=Unit.VOXELS,
        help="Distance between adjacent kernel weights, in voxels.",
    )
    allow_strided_dilation: bool | None = option(
        FLAG,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        help="Allow strides > 1 together with dilation > 1, which Keras refuses.",
    )

    # Many volumes
    out_dir: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="DIR",
        file=File.FOLDER,
        common=True,
        help="Folder for the outputs; created if it is missing.",
    )
    allow_outside: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Let a manifest name outputs outside --out-dir.",
    )
    suffix: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="TEXT",
        common=True,
        help="Text before the file suffix: _sm6 makes a_sm6.nii.gz.",
    )
    prefix: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="TEXT",
        help="Text to put before the output's file name.",
    )
    out_format: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        flag="format",
        metavar="SUFFIX",
        help="File suffix of the outputs, and so their format, as .ome.zarr.  [default: the "
        "input's]",
    )
    recursive: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        letter="r",
        common=True,
        help="Look into subfolders, too. Outputs get the same tree in --out-dir.",
    )
    glob: tuple[str, ...] | None = option(
        TEXTS,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="PATTERN",
        help="In folders, take only volumes whose names match, e.g. '*_bold.nii.gz' or "
        "'sub-*/**/*_T1w.nii*'. May be given several times.",
    )
    stack: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Read each folder as one volume: its TIFF files, or those that match --glob, are the "
        "planes, in natural order of their names (z9 before z10). Everywhere else, 'FOLDER::*.tif' "
        "names such a volume.",
    )
    include_discrete: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Also take masks and label maps (*_mask, *_dseg, or labels by their header), which "
        "folders and --bids leave out.",
    )
    manifest: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="FILE",
        file=File.READ,
        help="Take the volumes from a table (.csv, .tsv) instead of INPUT, one per row. Columns "
        "are input, output, kernel and other options. Paths are relative to the table's "
        "folder; outputs are relative to --out-dir, if given.",
    )
    jobs: int | None = option(
        integer(low=1),
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="N",
        help="Number of volumes to process at a time; they share threads and memory.  [default: up "
        "to 4 if every file is small, else 1]",
    )
    skip_existing: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Skip volumes whose output exists.",
    )
    resume: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        common=True,
        help="Skip volumes that an earlier --resume run finished. They are made again if an input "
        "has other bytes, or the options differ.",
    )
    fail_fast: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Stop at the first volume that fails.",
    )
    depfile: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="FILE",
        file=File.WRITTEN,
        help="Also write rules for make or ninja that list the files each output was made from.",
    )

    # Data
    axes: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="LETTERS",
        config=Value((str,), 'letters such as "tzyx"'),
        help="Axes of the input in storage order, e.g. tczyx (t time, c channel, s RGB).  "
        "[default: as the file says]",
    )
    spacing: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="D,H,W",
        unit=Unit.LENGTH,
        config=Value((str,), 'a string such as "0.3,0.1,0.1um"'),
        help="Voxel spacing with its unit, e.g. 0.3,0.1,0.1um or 2mm, for files that store none "
        "or no unit; the output gets it, too. Another spacing than the file's is refused.",
    )
    data_format: str | None = option(
        choice("channels_last", "channels_first"),
        Place.JOB,
        "Data",
        shapes=True,
        default="channels_last",
        help="Axes of a .npy that has 4 or 5: channels_last reads them as zyxc or tzyxc, "
        "channels_first as czyx or tczyx.",
    )
    dtype: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="DTYPE",
        stores=True,
        config=Value((str,), "a name"),
        common=True,
        help="Data type of the output, or same. With `same` it is the input's. Integers are "
        "rounded half to even and clipped to their range; clipped voxels are counted.  [default: "
        "float32, or for a copy (-k identity) one that holds every value]",
    )
    normalize_input: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="METHOD",
        default="none",
        config=Value((str,), 'a string such as "zscore"'),
        help="Scale each channel of the input first by its own statistics, which takes a pass over "
        "the volume: zscore (mean 0, standard deviation 1), minmax (range 0 to 1), or "
        "percentile:LO,HI, as in percentile:1,99 (these become 0 and 1; nothing is clipped). With "
        ":nonzero after it, only voxels that are not 0 count for the statistics.",
    )
    normalize_mask: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="MASK",
        file=File.READ,
        config=Value((str,), "a file's name"),
        help="Take the statistics of --normalize-input from the voxels where this volume is above "
        "0.",
    )
    template_mask: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="MASK",
        file=File.READ,
        config=Value((str,), "a file's name"),
        help="Compare only the voxels of the template of `conv3d match` where this volume, which "
        "has its shape, is above 0.",
    )
    patch: str | int | Sequence[int] | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="D,H,W",
        unit=Unit.LENGTH,
        config=Value((str, int, list), 'voxels as in 96 or [64, 96, 96], or lengths as in "96mm"'),
        help="Run the network in overlapping patches of this size, as it was trained, and blend "
        "their outputs. Sizes are in voxels along depth, height and width, or lengths as in 96mm, "
        "which are rounded to voxels. What is smaller than a patch is extended by zeros.",
    )
    overlap: str | float | Sequence[float] | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="F",
        unit=Unit.FRACTION,
        default=0.5,
        config=Value((str, int, float, list), "a fraction from 0 to below 1, or a list of three"),
        help="The fraction of a --patch that the next one shares along each axis, from 0 to below "
        "1; three for depth, height and width.",
    )
    blend: str | None = option(
        choice("gaussian", "constant"),
        Place.JOB,
        "Data",
        shapes=True,
        default="gaussian",
        help="How voxels of overlapping patches are averaged: by a Gaussian whose standard "
        "deviation is an eighth of the patch, or all alike.",
    )
    output_name: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="NAME",
        config=Value((str,), "a name"),
        help="Write this output of a network that has several. What only the others need is not "
        "computed.",
    )
    channels: str | int | Sequence[int] | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="N,N,...",
        config=Value((str, int, list), 'a whole number from 0, or several as in "1,2" or [1, 2]'),
        help="Write only these channels of the output, in this order. They are counted from 0. One "
        "channel becomes a plain volume without an axis of channels.  [default: all]",
    )
    argmax: bool | None = option(
        FLAG,
        Place.JOB,
        "Data",
        shapes=True,
        help="Write the label of each voxel: the number of its largest channel. Channels are "
        "counted from 0; the first of equal ones is taken. Labels are uint8, or uint16 of more "
        "than 255 channels, unless --dtype is given.",
    )
    label_names: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="FILE",
        file=File.READ,
        config=Value((str,), "a file's name"),
        help='Names of the labels for the sidecar: JSON as in {"0": "background"}, or a table as '
        "BIDS' dseg.tsv with columns index and name.",
    )
    scale: str | None = option(
        choice("none", "auto", "keep"),
        Place.JOB,
        "Data",
        shapes=True,
        default="none",
        stores=True,
        help="For integer NIfTI outputs, auto stores a slope and an intercept that make the values "
        "fill the type's range. With keep, a copy (-k identity) has the numbers that the input "
        "stores, with its slope and intercept, where the format holds them.",
    )
    precision: str | None = option(
        choice("float32", "float64"),
        Place.JOB,
        "Data",
        shapes=True,
        default="float32",
        help="Precision of the arithmetic.",
    )

    # Masks and missing voxels
    mask: str | None = option(
        TEXT,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        metavar="MASK",
        file=File.MASK,
        config=Value((str,), "a file's name, or a rule such as '{stem}_mask.nii.gz'"),
        common=True,
        help="Smooth within this mask; 0 outside. It is a volume of weights m on the same grid: "
        "each output is the weighted mean sum(w m x) / sum(w m) under the kernel w. Only ratios of "
        "mask values matter. For many volumes, MASK is a pattern ('sub-*/func/*_mask.nii.gz'), a "
        "template ('{stem}_mask.nii.gz' in the volume's folder), or auto, the BIDS brain mask with "
        "the volume's entities; see `conv3d help masks`.",
    )
    mask_mode: str | None = option(
        choice(*MASK_MODES),
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        default="clip",
        help="Outputs outside the mask: 0 (clip), the mean of mask voxels nearby (extend), or the "
        "input voxel (keep).",
    )
    mask_labels: bool | None = option(
        FLAG,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        field="labels",
        help="Treat each number in the mask as a region; regions are not mixed, and 0 is outside.",
    )
    nan: str | None = option(
        choice(*NAN_MODES),
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        default="propagate",
        help="NaN and infinity in the input: spread to every output that sees them (propagate), "
        "leave them out of the mean (ignore), take them as 0 (zero), or refuse them with exit "
        "code 4 (error).",
    )
    missing: float | None = option(
        NUMBER,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        metavar="VALUE",
        field="value",
        unit=Unit.VOXEL_VALUES,
        help="Stored value that marks missing voxels, e.g. -32768; they are left out of the mean. "
        "It is compared before a slope and an intercept; of floats, the nearest one counts.",
    )
    min_coverage: float | None = option(
        NUMBER,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        metavar="FRACTION",
        default=MIN_COVERAGE,
        unit=Unit.FRACTION,
        help="Smallest fraction of the kernel's weight, above 0 and up to 1, that a mean may rest "
        "on; outputs with less are 0 under a mask, else NaN.",
    )
    coverage_out: str | None = option(
        TEXT,
        Place.JOB,
        "Masks and missing voxels",
        shapes=True,
        metavar="FILE",
        file=File.WRITTEN,
        config=False,
        field="",
        help="Also write a volume of coverage: the fraction of the kernel's weight that each mean "
        "rests on.",
    )

    peaks: str | None = option(
        TEXT,
        Place.JOB,
        "Kernel",
        shapes=True,
        metavar="FILE",
        file=File.WRITTEN,
        config=False,
        field="",
        help="Also write a table (.tsv) of the places where the template of `conv3d match` fits "
        "best, with their scores.",
    )

    # Checks and provenance
    verify: int | str | None = option(
        COUNT_OR_WORD,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        python=True,
        metavar="N|all|off",
        resumes=True,
        help="N: afterwards, compute N voxels again from the files by another method, in float64; "
        "exit with 7 if one differs. all: check every tile by a checksum while it is computed, "
        "which is the default where it costs little; a tile that fails is computed again. off: no "
        "checksums.",
    )
    strict: bool | None = option(
        FLAG,
        Place.JOB,
        "Checks and provenance",
        shapes=False,
        resumes=True,
        explains=False,
        stores=True,
        help="Fail, and write nothing, if values are clipped, outputs lack coverage, or the format "
        "cannot hold something.",
    )
    report: str | None = option(
        TEXT,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        metavar="PAGE",
        file=File.WRITTEN,
        help="Also write a self-contained HTML page: slices and histograms before and after, "
        "decisions, times, notes.",
    )
    sidecar: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        python=True,
        help="Also write OUT.json: digests of the inputs, kernel, padding, versions, and the "
        "command, which `conv3d rerun` repeats.",
    )
    history: bool | None = option(
        FLAG,
        Place.JOB,
        "Checks and provenance",
        shapes=True,
        config=False,
        manifest=False,
        explains=False,
        field="",
        help="Write the command into the output: as NIfTI comment and descrip, ImageJ Info, OME "
        "annotation or Zarr attributes.",
    )
    bids: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        common=True,
        help="Make --out-dir a BIDS derivative dataset. Folders and entities are kept, desc-LABEL "
        "is added, and sidecars are written.",
    )
    desc: str | None = option(
        TEXT,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        metavar="LABEL",
        help="LABEL for --bids.  [default: made from the kernel, as in desc-sm6mm]",
    )

    # Running
    threads: int | None = option(
        integer(1, MOST_THREADS),
        Place.JOB,
        "Running",
        shapes=False,
        letter="j",
        metavar="N",
        manifest=False,
        common=True,
        help="Number of threads. Without -j, $CONV3D_THREADS or $OMP_NUM_THREADS.  [default: all "
        "CPUs it may use]",
    )
    max_memory: str | int | None = option(
        TEXT,
        Place.JOB,
        "Running",
        shapes=False,
        metavar="SIZE",
        manifest=False,
        config=Value((str, int), 'a size such as "2G"'),
        unit=Unit.BYTES,
        common=True,
        help="Memory limit, e.g. 500M or 2G. It is for the whole process.  [default: 80 % of the "
        "memory]",
    )
    algorithm: str | None = option(
        TEXT,
        Place.JOB,
        "Running",
        shapes=True,
        metavar="NAME",
        default="auto",
        config=Value((str,), "a name"),
        help="Use this algorithm; `conv3d explain` lists them, with the seconds that each would "
        "take.",
    )
    timeout: float | None = option(
        NUMBER,
        Place.JOB,
        "Running",
        shapes=False,
        metavar="SECONDS",
        manifest=False,
        unit=Unit.SECONDS,
        help="Give up a server that sends nothing for this time; it is asked three times.  "
        "[default: 60]",
    )
    scheduler: str | None = option(
        TEXT,
        Place.COMMAND,
        "Running",
        shapes=False,
        metavar="ADDRESS",
        help="Run on a Dask cluster, from Zarr to Zarr: tls://host:8786, tcp://host:8786, or "
        "local:N for N processes on this machine.",
    )
    scheduler_tls_ca_file: str | None = option(
        TEXT,
        Place.COMMAND,
        "Running",
        shapes=False,
        metavar="FILE",
        file=File.READ,
        help="Authority of all certificates of a tls:// scheduler, as PEM.  [default: as in Dask's "
        "configuration]",
    )
    scheduler_tls_cert: str | None = option(
        TEXT,
        Place.COMMAND,
        "Running",
        shapes=False,
        metavar="FILE",
        file=File.READ,
        help="Your certificate for it, as PEM.  [default: as in Dask's configuration]",
    )
    scheduler_tls_key: str | None = option(
        TEXT,
        Place.COMMAND,
        "Running",
        shapes=False,
        metavar="FILE",
        file=File.READ,
        help="The key of that certificate, as PEM, if it is not in the same file.",
    )

    # Formats of outputs
    gz_level: int | None = option(
        integer(0, 3),
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        metavar="N",
        default=1,
        explains=False,
        stores=True,
        help="Level of .nii.gz and deflate: 0 is quickest; 1 takes a tenth longer and saves a "
        "quarter of the bytes; 2 and 3 save little more. .nii.zst has one level.",
    )
    compression: str | None = option(
        choice("none", "deflate", "zstd"),
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        default="none",
        explains=False,
        stores=True,
        help="Compression of TIFF pages; a .nrrd takes deflate, too. Every reader knows deflate, "
        "at the level of --gz-level; zstd is quicker.",
    )
    chunks: int | Sequence[int] | None = option(
        TRIPLE,
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        stores=True,
        config=Value((int, list), "a whole number, or three as in [32, 128, 128]"),
        unit=Unit.VOXELS,
        help="Chunk size of Zarr outputs, in voxels.  [default: the input's if it is Zarr, else "
        "32,128,128]",
    )
    levels: int | None = option(
        integer(low=1),
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        metavar="N",
        default=1,
        stores=True,
        help="Number of resolution levels in Zarr. Each has half the voxels of the level before "
        "along each axis, except along axes that are short (under 16 voxels) or coarse.",
    )
    levels_by: str | None = option(
        choice("mean", "gaussian", "mode", "nearest"),
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        stores=True,
        help="How each level is made of the level before: mean, gaussian, mode or nearest. Of 2 "
        "voxels along each halved axis, it takes the mean, a Gaussian around their middle, the "
        "most frequent value (mode, the smallest of equally frequent ones; for labels), or the "
        "first voxel (nearest).  [default: mean, and of labels mode]",
    )

    # A layer, in Keras' words
    groups: int | None = option(
        integer(low=1),
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="N",
        default=1,
        config=ANY,
        help="Number of channel groups of a 5-D kernel.",
    )
    filters: int | None = option(
        integer(low=1),
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="N",
        config=ANY,
        makes_kernel=True,
        help="Number of output channels. Must equal the kernel's; required if the kernel is drawn.",
    )
    activation: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME",
        config=ANY,
        field="",
        help="Any activation of Keras, e.g. relu, gelu, softmax.  [default: linear]",
    )
    kernel_size: int | Sequence[int] | None = option(
        TRIPLE,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="N|N,N,N",
        config=ANY,
        makes_kernel=True,
        unit=Unit.VOXELS,
        help="Size of the kernel in voxels. Must equal the kernel's; required if the kernel is "
        "drawn.",
    )
    kernel_initializer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Without -k: draw the kernel's weights with this initializer (needs --filters and "
        "--kernel-size).  [default: glorot_uniform]",
    )
    bias_initializer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Draw the bias of a drawn kernel with this initializer.  [default: zeros]",
    )
    seed: int | None = option(
        integer(),
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="N",
        makes_kernel=True,
        help="Seed of the initializers: the same seed draws the same numbers.",
    )
    kernel_regularizer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Penalty of the kernel, printed by -v and --json.",
    )
    bias_regularizer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Penalty of the bias, printed by -v and --json.",
    )
    activity_regularizer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        help="Penalty of the output, a plain sum over voxels (l1, l2, l1l2), printed by -v and "
        "--json.",
    )
    kernel_constraint: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Constraint to apply to the kernel before convolving.",
    )
    bias_constraint: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Constraint to apply to the bias before convolving.",
    )

    # Set when files are read
    activations: tuple[Any, ...] | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def given(self, options: Sequence[Option] | None = None) -> dict[str, Any]:
        """The values that are set, by option name.

        options : sequence or None      only these options; None: all

        >>> Settings(kernel="box:size=3", flip=False).given()
        {'kernel': 'box:size=3', 'flip': False}
        """
        chosen = OPTIONS if options is None else options
        values = {option.name: getattr(self, option.name) for option in chosen}
        return {name: value for name, value in values.items() if value is not None}

    def arguments(self, place: Place) -> dict[str, Any]:
        """The values that are set for one place, by field name of the object they configure.

        >>> Settings(mask="m.nii", mask_labels=True, strides=2).arguments(Place.MISSING)
        {'mask': 'm.nii', 'labels': True}
        """
        chosen = [option for option in OPTIONS if option.place is place and option.field]
        values = {option.field: getattr(self, option.name) for option in chosen}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def named_kernel(self) -> str | Kernel | Sequence[Any] | None:
        """The kernel that these settings name; that of --fwhm and --sigma is a Gaussian.

        The names in a built-in's text are in lower case. None if they name no kernel.
        Raises: SpecError if they name two; for a wrong length; UnknownNameError for its unit.

        >>> Settings(sigma="2vox").named_kernel, Settings(kernel="Box:Size=3").named_kernel
        ('gaussian:sigma=2vox', 'box:size=3')
        """
        named = [name for name in ("kernel", *SHORTHANDS) if getattr(self, name) is not None]
        if len(named) > 1:
            written = [words(OPTION[name].written, f"{name}=") for name in named]
            raise SpecError(f"{' and '.join(written)} each choose the kernel; pass one of them")
        if not named:
            return None
        if named == ["kernel"]:
            from conv3d_cli.kernels import normal_text

            return normal_text(self.kernel) if isinstance(self.kernel, str) else self.kernel
        from conv3d_cli.kernels.lengths import parse_lengths

        (name,) = named
        length = str(getattr(self, name))
        parse_lengths(length, OPTION[name].written)
        return f"gaussian:{name}={length.strip()}"

    def only(self, *places: Place) -> Settings:
        """The settings without the options of all other places."""
        return Settings(**self.given([option for option in OPTIONS if option.place in places]))

    def without(self, *names: str) -> Settings:
        """The settings with these fields unset.

        >>> Settings(kernel="box:size=3", flip=True).without("kernel").given()
        {'flip': True}
        """
        empty: dict[str, Any] = {
            f.name: f.default for f in dataclasses.fields(self) if f.name in names
        }
        return replace(self, **empty)


def overlay(below: Settings, above: Settings) -> Settings:
    """Merge two settings: values of `above` win; notes and files of both are kept.

    >>> overlay(Settings(strides=2, padding="valid"), Settings(strides=3)).given()
    {'padding': 'valid', 'strides': 3}
    """
    values = above.given()
    if above.activations is not None:
        values["activations"] = above.activations
    return replace(
        below, **values, notes=(*below.notes, *above.notes), files=(*below.files, *above.files)
    )


def _options() -> Iterator[Option]:
    for found in dataclasses.fields(Settings):
        if found.metadata:
            row = dict(found.metadata)
            named = found.name if row["field"] is None else row["field"]
            if row["place"] is Place.COMMAND:
                named = ""
            yield Option(**{**row, "name": found.name, "field": named})


OPTIONS: tuple[Option, ...] = tuple(_options())
OPTION = {option.name: option for option in OPTIONS}
# Options of `apply` about networks, which other commands do not run.
OF_NETWORKS = ("output_name", "argmax", "label_names", "patch", "overlap", "blend")
# Options that are short for -k gaussian:NAME=LENGTH.
SHORTHANDS = ("fwhm", "sigma")

# The options of a recorded command, in the order in which they are written.
SHAPING = tuple(
    sorted(
        (option for option in OPTIONS if option.shapes and option.section),
        key=lambda option: (RECORDED_SECTIONS.index(option.section), not option.gives_kernel),
    )
)
# Keys that a config may have for one convolution, and for the job.
STAGE_KEYS = tuple(o.name for o in OPTIONS if o.config is not None and o.place is Place.STAGE)
JOB_KEYS = tuple(
    o.name for o in OPTIONS if o.config is not None and o.place in (Place.JOB, Place.MISSING)
)
# Arguments of `convolve_file()` besides source, target and kernel.
PYTHON_OPTIONS = tuple(o for o in OPTIONS if o.python and o.section and o.name != "kernel")
# Columns of a manifest besides input and output. The other options apply to the whole command.
MANIFEST_OPTIONS = tuple(o.name for o in OPTIONS if o.manifest)


def fields_not_compared(place: Place) -> set[str]:
    """Fields of the object configured by a place's options that --resume does not compare.

    >>> sorted(fields_not_compared(Place.JOB))
    ['max_memory', 'overwrite', 'threads', 'timeout']
    """
    return {
        option.field
        for option in OPTIONS
        if option.place is place and option.field and not option.resumes
    }

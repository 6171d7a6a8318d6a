"""Every option of `conv3d apply`, said once: each is one field of `Settings`.

A field's row says what the option belongs to, what values it takes, who may set it, whether the
result depends on it, and its help (see `Option`). All other lists of options are derived from this
table: Click's options and their help, the keys of configs, the columns of manifests, the command
that a sidecar records, what --resume compares, and what a cluster's tasks still need.

To add an option, add its field, and use it. This module needs neither Click nor NumPy, so that help
is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conv3d_cli.model.missing import MASK_MODES, MIN_COVERAGE, NAN_MODES
from conv3d_cli.model.spec import BOUNDARIES
from conv3d_cli.settings.option import (
    ANY,
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
    Value,
    choice,
    integer,
    option,
)
from conv3d_cli.settings.presets import PRESETS

if TYPE_CHECKING:
    from conv3d_cli.model.kernel import Kernel


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The options that one source sets: a command line, a manifest's row, a config or its layer.

    None means: not given. Three fields are no options; they are set as a convolution's files are read:

    activations : tuple         the activations, in the order in which they are applied
    notes : tuple of str        what a user should know of the kernel's file
    files : tuple of str        the files that the values came from
    """

    # What is read and written, and what is told
    output: str | None = option(
        TEXT,
        Place.COMMAND,
        "Options",
        shapes=False,
        letter="o",
        metavar="OUT",
        file=File.WRITTEN,
        help="Output; its suffix is its format. `-` writes .npy to stdout.",
    )
    overwrite: bool | None = option(
        FLAG,
        Place.JOB,
        "Options",
        shapes=False,
        manifest=False,
        explains=False,
        help="Replace existing outputs.",
    )
    dry_run: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Options",
        shapes=False,
        help="Check everything and say what would be done; write nothing.",
    )
    quiet: bool | None = option(
        FLAG, Place.COMMAND, "Options", shapes=False, letter="q", help="No progress and no notes."
    )
    verbose: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Options",
        shapes=False,
        letter="v",
        help="Say what was decided: kernel, pads, grid, algorithm, memory, times.",
    )
    as_json: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Options",
        shapes=False,
        flag="json",
        help="One JSON object per volume on stdout.",
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
        config=Value((str, list), 'a text such as "gaussian:fwhm=6mm" or a nested list of numbers'),
        help="A built-in with parameters (gaussian:fwhm=6mm, sobel:axis=d; see `conv3d kernel list`), a formula "
        '(expr:"exp(-r**2/36)":radius=9mm), or a file: '
        ".npy .npz .json .toml .txt .kern .nii .nii.gz .tif, or FILE::LAYER of .keras .h5 .safetensors .onnx .pt.",
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
        help="TOML or JSON with these options as keys (underscores), kernel included, or "
        "[[layers]] for a stack; Keras' JSON; a saved model (.keras, .h5). Paths in it are "
        "relative to it.",
    )
    like: str | None = option(
        choice(*PRESETS),
        Place.JOB,
        "Kernel",
        shapes=True,
        field="",
        help="Padding, boundary, flip and Gaussian of another tool; your other options win. See `conv3d presets`.",
    )
    orient: str | None = option(
        choice("voxel", "world"),
        Place.STAGE,
        "Kernel",
        shapes=True,
        default="voxel",
        field="",
        help="Axes that derivatives and three different lengths of a built-in are along: the "
        "volume's, or those of its affine (NIfTI: x to the right, y to the front, z up; slopes "
        "per mm).",
    )
    magnitude: bool | None = option(
        FLAG,
        Place.STAGE,
        "Kernel",
        shapes=True,
        help="Of derivatives along several axes (sobel:axis=xyz): the root of the sum of "
        "squares, in place of a channel each.",
    )
    flip: bool | None = option(
        SWITCH,
        Place.STAGE,
        "Kernel",
        shapes=True,
        makes_kernel=True,
        help="Flip the kernel: true convolution. Default: correlation, as Keras.",
    )
    normalize: bool | None = option(
        SWITCH,
        Place.STAGE,
        "Kernel",
        shapes=True,
        makes_kernel=True,
        help="Scale the kernel so that its weights sum to 1.",
    )
    kernel_spacing: str | None = option(
        choice("match", "resample", "ignore"),
        Place.STAGE,
        "Kernel",
        shapes=True,
        default="match",
        makes_kernel=True,
        help="Where a kernel file (NIfTI, TIFF) tells another voxel spacing than the volume's: "
        "refuse it, sample the kernel anew (its sum stays), or apply it voxel by voxel.",
    )
    crop_kernel: float | None = option(
        NUMBER,
        Place.STAGE,
        "Kernel",
        shapes=True,
        metavar="PART",
        makes_kernel=True,
        config=Value((int, float), "a number such as 1e-6"),
        help="Cut off the kernel's borders that hold at most this part of Σ|w|, e.g. 1e-6; 0: borders of zeros.",
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
        help="Added to each filter: a number, several (1,2,3) or a .npy/.txt file.",
    )
    no_bias: bool | None = option(
        FLAG,
        Place.STAGE,
        "Kernel",
        shapes=True,
        config=False,
        field="",
        help="Leave out a bias that the kernel file holds.",
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
        help="Smooth by the Gaussian that makes the volume as smooth as this, e.g. 8mm or 8,6,6mm, in place of -k.",
    )

    # Edges and steps
    padding: str | int | Sequence[object] | None = option(
        TEXT,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        metavar="MODE",
        config=ANY,
        help="valid, same (Keras' split: the odd voxel after), same_lower (before), full, N, "
        "N,N,N or LO:HI,LO:HI,LO:HI.  [default: same for a 3-D kernel, valid for a 5-D one]",
    )
    boundary: str | None = option(
        TEXT,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        metavar="MODE",
        config=Value((str,), 'a text such as "nearest"'),
        help=f"What padding reads: {', '.join(b for b in BOUNDARIES if b != 'constant')}, constant=V.  "
        "[default: symmetric for a 3-D kernel, zeros for a 5-D one]",
    )
    strides: int | Sequence[int] | None = option(
        TRIPLE,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        default=1,
        config=ANY,
        help="Step between output voxels.",
    )
    dilation_rate: int | Sequence[int] | None = option(
        TRIPLE,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        default=1,
        config=ANY,
        help="Spread of the kernel's taps.",
    )
    allow_strided_dilation: bool | None = option(
        FLAG,
        Place.STAGE,
        "Edges and steps",
        shapes=True,
        help="Compute strides > 1 with dilation > 1, which Keras refuses.",
    )

    # Many volumes
    out_dir: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="DIR",
        file=File.FOLDER,
        help="Folder for the outputs; made if it is missing.",
    )
    suffix: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="TEXT",
        help="Put before the file's suffix: --suffix _sm6 makes a_sm6.nii.gz.",
    )
    prefix: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="TEXT",
        help="Put before the file's name.",
    )
    recursive: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        letter="r",
        help="Of a folder, its subfolders, too; --out-dir gets the same tree.",
    )
    glob: tuple[str, ...] | None = option(
        TEXTS,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="PATTERN",
        help="Of a folder, only volumes of such names: '*_bold.nii.gz', 'sub-*/**/*_T1w.nii*'. May be given again.",
    )
    include_discrete: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Also masks and label maps (*_mask, *_dseg, labels by their header), which folders and --bids leave out.",
    )
    manifest: str | None = option(
        TEXT,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="FILE",
        file=File.READ,
        help="In place of INPUT: a table (.csv, .tsv), one volume a row, with columns input, "
        "output, kernel, and any option's name. Paths in it are relative to it, outputs to "
        "--out-dir if given.",
    )
    jobs: int | None = option(
        integer(low=1),
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        metavar="N",
        help="Volumes at a time, which share threads and memory.  [default: up to 4 where every file is small]",
    )
    skip_existing: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Leave volumes alone whose output exists.",
    )
    resume: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Many volumes",
        shapes=False,
        help="Leave volumes alone that an earlier --resume finished from the same bytes with the same options.",
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
        help="Write what each output was made from, as rules for make or ninja.",
    )

    # Data
    axes: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="LETTERS",
        config=Value((str,), 'letters such as "tzyx"'),
        help="Axes of the input in storage order, e.g. tczyx (t time, c channel, s RGB).",
    )
    data_format: str | None = option(
        choice("channels_last", "channels_first"),
        Place.JOB,
        "Data",
        shapes=True,
        default="channels_last",
        help="How a .npy of 4 or 5 axes is read: zyxc, tzyxc, or czyx, tczyx.",
    )
    dtype: str | None = option(
        TEXT,
        Place.JOB,
        "Data",
        shapes=True,
        metavar="DTYPE",
        default="float32",
        stores=True,
        config=Value((str,), "a name"),
        help="Of the output; integers are rounded half to even and saturated, and clipped voxels are counted.",
    )
    scale: str | None = option(
        choice("none", "auto"),
        Place.JOB,
        "Data",
        shapes=True,
        default="none",
        stores=True,
        help="auto: a slope and an intercept that the values fill, for integer NIfTI outputs.",
    )
    precision: str | None = option(
        choice("float32", "float64"),
        Place.JOB,
        "Data",
        shapes=True,
        default="float32",
        help="Of the arithmetic.",
    )

    # Masks and missing voxels
    mask: str | None = option(
        TEXT,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        metavar="FILE",
        file=File.READ,
        config=Value((str,), "a file's name"),
        help="Weights of the voxels, on the same grid: each result is a mean, sum(w m x) / sum(w "
        "m), and outside it is 0. Only ratios of mask values matter.",
    )
    mask_mode: str | None = option(
        choice(*MASK_MODES),
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        default="clip",
        help="Outside the mask: 0, the mean of what is near, or the voxel as it was.",
    )
    mask_labels: bool | None = option(
        FLAG,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        field="labels",
        help="The mask's numbers are regions, which are not mixed; 0 is outside.",
    )
    nan: str | None = option(
        choice(*NAN_MODES),
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        default="propagate",
        help="NaN and infinity: into every window, left out of the mean, taken as 0, or refused (exit 4).",
    )
    missing: float | None = option(
        NUMBER,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        metavar="VALUE",
        field="value",
        help="A stored value that is left out of the mean, e.g. -32768.",
    )
    min_coverage: float | None = option(
        NUMBER,
        Place.MISSING,
        "Masks and missing voxels",
        shapes=True,
        metavar="PART",
        default=MIN_COVERAGE,
        help="A mean over less of the kernel's weight, a part of 1, is none: 0 under a mask, else NaN.",
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
        help="Where the part of the weight that each mean holds is written.",
    )

    # Checks and provenance
    verify: int | None = option(
        integer(low=1),
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        metavar="N",
        resumes=True,
        help="Then compute N voxels again by another way, in float64, from the files; exit 7 if one differs.",
    )
    strict: bool | None = option(
        FLAG,
        Place.JOB,
        "Checks and provenance",
        shapes=False,
        resumes=True,
        explains=False,
        stores=True,
        help="Refuse results that were clipped, lack voxels, or lose what the format cannot hold.",
    )
    report: str | None = option(
        TEXT,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        metavar="PAGE",
        file=File.WRITTEN,
        help="Also write an HTML page, complete in itself: slices and histograms before and "
        "after, decisions, times, notes.",
    )
    sidecar: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        help="Also write OUT.json: inputs with their digests, kernel, pads, versions, the "
        "command. `conv3d rerun` repeats it.",
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
        help="Write the command into the output: a NIfTI comment and descrip, ImageJ Info, an "
        "OME annotation, Zarr attributes.",
    )
    bids: bool | None = option(
        FLAG,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        help="Write a BIDS derivative dataset into --out-dir: folders and entities kept, desc-LABEL added, sidecars.",
    )
    desc: str | None = option(
        TEXT,
        Place.COMMAND,
        "Checks and provenance",
        shapes=False,
        metavar="LABEL",
        help="The label of --bids.  [default: out of the kernel, as in desc-sm6mm]",
    )

    # Running
    threads: int | None = option(
        integer(low=1),
        Place.JOB,
        "Running",
        shapes=False,
        letter="j",
        metavar="N",
        manifest=False,
        help="Threads.  [default: $CONV3D_THREADS, $OMP_NUM_THREADS, or all CPUs this process may use]",
    )
    max_memory: str | int | None = option(
        TEXT,
        Place.JOB,
        "Running",
        shapes=False,
        metavar="SIZE",
        manifest=False,
        config=Value((str, int), 'a size such as "2G"'),
        help="Ceiling for the whole process, e.g. 500M or 2G.",
    )
    algorithm: str | None = option(
        TEXT,
        Place.JOB,
        "Running",
        shapes=True,
        metavar="NAME",
        default="auto",
        config=Value((str,), "a name"),
        help="Force one; see `conv3d explain`.",
    )
    scheduler: str | None = option(
        TEXT,
        Place.COMMAND,
        "Running",
        shapes=False,
        metavar="ADDRESS",
        help="Run on a Dask cluster, from Zarr to Zarr: tcp://host:8786, or local:N for N processes here.",
    )

    # Formats of outputs
    gz_level: int | None = option(
        integer(0, 3),
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        default=1,
        explains=False,
        stores=True,
        help="Of .nii.gz and deflate: 0 is quickest; 1 takes a tenth longer for a quarter less; "
        "2 and 3 gain little. .nii.zst has one level.",
    )
    compression: str | None = option(
        choice("none", "deflate", "zstd"),
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        default="none",
        explains=False,
        stores=True,
        help="Of a TIFF's pages, or deflate of a .nrrd. Every reader knows deflate (--gz-level is its level); "
        "zstd is quicker.",
    )
    chunks: int | Sequence[int] | None = option(
        TRIPLE,
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        stores=True,
        config=Value((int, list), "a whole number, or three as in [32, 128, 128]"),
        help="Voxels of a Zarr chunk.  [default: the input's if it is Zarr, else 32,128,128]",
    )
    levels: int | None = option(
        integer(low=1),
        Place.JOB,
        "Formats of outputs",
        shapes=True,
        default=1,
        stores=True,
        help="Levels of resolution in Zarr, each the mean of 2 voxels along axes that are long and fine enough.",
    )

    # A layer, in Keras' words
    groups: int | None = option(
        integer(),
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        default=1,
        config=ANY,
        help="Groups of channels (5-D kernels).",
    )
    filters: int | None = option(
        integer(),
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        config=ANY,
        makes_kernel=True,
        help="Output channels; checked against the kernel, needed where it is drawn.",
    )
    activation: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME",
        config=ANY,
        field="",
        help="Any of Keras', e.g. relu, gelu, softmax.  [default: linear]",
    )
    kernel_size: int | Sequence[int] | None = option(
        TRIPLE,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="N|N,N,N",
        config=ANY,
        makes_kernel=True,
        help="Checked against the kernel; needed where it is drawn.",
    )
    kernel_initializer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Draws the kernel where no -k is given (with --filters, --kernel-size).  [default: glorot_uniform]",
    )
    bias_initializer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Draws the bias then.  [default: zeros]",
    )
    seed: int | None = option(
        integer(),
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="N",
        makes_kernel=True,
        help="Of the initializers: the same seed draws the same numbers.",
    )
    kernel_regularizer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Penalty of the kernel, told under -v and --json.",
    )
    bias_regularizer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Penalty of the bias.",
    )
    activity_regularizer: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        help="Penalty of the output, summed while streaming.",
    )
    kernel_constraint: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Applied to the kernel before convolving.",
    )
    bias_constraint: str | Any = option(
        TEXT,
        Place.STAGE,
        "Layer, in Keras' words",
        shapes=True,
        metavar="NAME|JSON",
        config=ANY,
        makes_kernel=True,
        help="Applied to the bias before convolving.",
    )

    # What is found while files are read
    activations: tuple[Any, ...] | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def given(self, options: Sequence[Option] | None = None) -> dict[str, Any]:
        """The values that are given, by the names of the options.

        options : sequence or None      only these; None: all

        >>> Settings(kernel="box:size=3", flip=False).given()
        {'kernel': 'box:size=3', 'flip': False}
        """
        chosen = OPTIONS if options is None else options
        values = {option.name: getattr(self, option.name) for option in chosen}
        return {name: value for name, value in values.items() if value is not None}

    def arguments(self, place: Place) -> dict[str, Any]:
        """The values that are given for a place, by the fields of the object that is made of them.

        >>> Settings(mask="m.nii", mask_labels=True, strides=2).arguments(Place.MISSING)
        {'mask': 'm.nii', 'labels': True}
        """
        chosen = [option for option in OPTIONS if option.place is place and option.field]
        values = {option.field: getattr(self, option.name) for option in chosen}
        return {name: value for name, value in values.items() if value is not None}

    def only(self, *places: Place) -> Settings:
        """The settings of these places alone."""
        return Settings(**self.given([option for option in OPTIONS if option.place in places]))

    def without(self, *names: str) -> Settings:
        """The settings, but these fields as if they were not given.

        >>> Settings(kernel="box:size=3", flip=True).without("kernel").given()
        {'flip': True}
        """
        empty: dict[str, Any] = {
            f.name: f.default for f in dataclasses.fields(self) if f.name in names
        }
        return replace(self, **empty)


def overlay(below: Settings, above: Settings) -> Settings:
    """Both settings as one: values of `above` beat those of `below`; notes and files add up.

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

# the options of a recorded command, in the order in which they are written
SHAPING = tuple(
    sorted(
        (option for option in OPTIONS if option.shapes and option.section),
        key=lambda option: (RECORDED_SECTIONS.index(option.section), not option.gives_kernel),
    )
)
# what configs may say of one convolution, and of the job
STAGE_KEYS = tuple(o.name for o in OPTIONS if o.config is not None and o.place is Place.STAGE)
JOB_KEYS = tuple(
    o.name for o in OPTIONS if o.config is not None and o.place in (Place.JOB, Place.MISSING)
)
# columns of a manifest beside input and output; the other options are of the whole command
MANIFEST_OPTIONS = tuple(o.name for o in OPTIONS if o.manifest)


def fields_not_compared(place: Place) -> set[str]:
    """The fields of what is made of a place's options that --resume does not compare.

    >>> sorted(fields_not_compared(Place.JOB))
    ['max_memory', 'overwrite', 'threads']
    """
    return {
        option.field
        for option in OPTIONS
        if option.place is place and option.field and not option.resumes
    }

"""Options, declared once and shared by commands, and the way from options and config files to jobs.

An option given on the command line beats the config file, which beats the default. Config keys are the options' names
with underscores (Keras' words where Keras has one). No NumPy at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from conv3d_cli.errors import SpecError
from conv3d_cli.model.missing import MASK_MODES, MIN_COVERAGE, NAN_MODES, Missing
from conv3d_cli.model.spec import BOUNDARIES
from conv3d_cli.settings.config import JOB_KEYS, STAGE_KEYS, Config, read_config, stage_arguments
from conv3d_cli.settings.presets import PRESETS, apply_preset, refuse_stack
from conv3d_cli.system.machine import byte_size

if TYPE_CHECKING:
    from conv3d_cli.pipeline.request import Job

Command = TypeVar("Command", bound=Callable[..., Any])


class Triple(click.ParamType):
    """One whole number or three, in D,H,W order."""

    name = "N|N,N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.lstrip("+-").isdigit() for part in parts):
            self.fail(f"'{value}' is not a whole number, or three as in 2,1,1 (depth,height,width)", param, ctx)
        numbers = [int(part) for part in parts]
        return numbers[0] if len(numbers) == 1 else numbers


def options(title: str, *declared: Any) -> Callable[[Command], Command]:
    """One decorator out of several options, which stand under a title in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(declared):
            command = option(command)
        for parameter in command.__click_params__[-len(declared) :]:  # type: ignore[attr-defined]
            parameter.section = title
        return command

    return decorate


class SectionedCommand(click.Command):
    """A command whose help lists its options under titles."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section, those without a title first, --help among them."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


batch_options = options(
    "Many volumes",
    click.option("--out-dir", metavar="DIR", help="Folder for the outputs; made if it is missing."),
    click.option("--suffix", default="", metavar="TEXT", help="Put before the file's suffix: --suffix _sm6 makes a_sm6.nii.gz."),
    click.option("--prefix", default="", metavar="TEXT", help="Put before the file's name."),
    click.option("-r", "--recursive", is_flag=True, help="Of a folder, its subfolders, too; --out-dir gets the same tree."),
    click.option(
        "--glob", metavar="PATTERN", multiple=True,
        help="Of a folder, only volumes of such names: '*_bold.nii.gz', 'sub-*/**/*_T1w.nii*'. May be given again.",
    ),
    click.option(
        "--include-discrete", is_flag=True,
        help="Also masks and label maps (*_mask, *_dseg, labels by their header), which folders and --bids leave out.",
    ),
    click.option(
        "--manifest", metavar="FILE",
        help="In place of INPUT: a table (.csv, .tsv), one volume a row, with columns input, output, kernel, and any option's "
        "name. Paths in it are relative to it, outputs to --out-dir if given.",
    ),
    click.option(
        "--jobs", type=click.IntRange(min=1), metavar="N",
        help="Volumes at a time, which share threads and memory.  [default: up to 4 where every file is small]",
    ),
    click.option("--skip-existing", is_flag=True, help="Leave volumes alone whose output exists."),
    click.option(
        "--resume", is_flag=True,
        help="Leave volumes alone that an earlier --resume finished from the same bytes with the same options.",
    ),
    click.option("--fail-fast", is_flag=True, help="Stop at the first volume that fails."),
    click.option("--depfile", metavar="FILE", help="Write what each output was made from, as rules for make or ninja."),
)  # fmt: skip

fitting_options = (
    click.option(
        "--kernel-spacing", type=click.Choice(["match", "resample", "ignore"]), default="match", show_default=True,
        help="Where a kernel file (NIfTI, TIFF) tells another voxel spacing than the volume's: refuse it, sample the kernel "
        "anew (its sum stays), or apply it voxel by voxel.",
    ),
    click.option(
        "--crop-kernel", type=float, metavar="PART",
        help="Cut off the kernel's borders that hold at most this part of Σ|w|, e.g. 1e-6; 0: borders of zeros.",
    ),
)  # fmt: skip

kernel_options = options(
    "Kernel",
    click.option(
        "-k", "--kernel", metavar="KERNEL",
        help="A built-in with parameters (gaussian:fwhm=6mm, sobel:axis=d; see `conv3d kernel list`), a formula "
        "(expr:\"exp(-r**2/36)\":radius=9mm), or a file: "
        ".npy .npz .json .toml .txt .kern .nii .nii.gz .tif, or FILE::LAYER of .keras .h5 .safetensors .onnx .pt.",
    ),
    click.option(
        "-c", "--config", metavar="FILE",
        help="TOML or JSON with these options as keys (underscores), kernel included, or [[layers]] for a stack; Keras' JSON; "
        "a saved model (.keras, .h5). Paths in it are relative to it.",
    ),
    click.option(
        "--like", type=click.Choice(list(PRESETS)),
        help="Padding, boundary, flip and Gaussian of another tool; your other options win. See `conv3d presets`.",
    ),
    click.option(
        "--orient", type=click.Choice(["voxel", "world"]), default="voxel", show_default=True,
        help="Axes that derivatives and three different lengths of a built-in are along: the volume's, or those of its affine "
        "(NIfTI: x to the right, y to the front, z up; slopes per mm).",
    ),
    click.option(
        "--magnitude", is_flag=True,
        help="Of derivatives along several axes (sobel:axis=xyz): the root of the sum of squares, in place of a channel each.",
    ),
    click.option("--flip/--no-flip", default=False, help="Flip the kernel: true convolution. Default: correlation, as Keras."),
    click.option("--normalize/--no-normalize", default=False, help="Scale the kernel so that its weights sum to 1."),
    *fitting_options,
    click.option("--bias", metavar="FILE|VALUE", help="Added to each filter: a number, several (1,2,3) or a .npy/.txt file."),
    click.option("--no-bias", is_flag=True, help="Leave out a bias that the kernel file holds."),
)  # fmt: skip

geometry_options = options(
    "Edges and steps",
    click.option(
        "--padding", metavar="MODE",
        help="valid, same (Keras' split: the odd voxel after), same_lower (before), full, N, N,N,N or LO:HI,LO:HI,LO:HI.  "
        "[default: same for a 3-D kernel, valid for a 5-D one]",
    ),
    click.option(
        "--boundary", metavar="MODE",
        help=f"What padding reads: {', '.join(b for b in BOUNDARIES if b != 'constant')}, constant=V.  "
        "[default: symmetric for a 3-D kernel, zeros for a 5-D one]",
    ),
    click.option("--strides", type=Triple(), default=1, show_default=True, help="Step between output voxels."),
    click.option("--dilation-rate", type=Triple(), default=1, show_default=True, help="Spread of the kernel's taps."),
    click.option("--allow-strided-dilation", is_flag=True, help="Compute strides > 1 with dilation > 1, which Keras refuses."),
)  # fmt: skip

layer_options = options(
    "Layer, in Keras' words",
    click.option("--groups", type=int, default=1, show_default=True, help="Groups of channels (5-D kernels)."),
    click.option("--filters", type=int, help="Output channels; checked against the kernel, needed where it is drawn."),
    click.option("--activation", metavar="NAME", help="Any of Keras', e.g. relu, gelu, softmax.  [default: linear]"),
    click.option("--kernel-size", type=Triple(), metavar="N|N,N,N", help="Checked against the kernel; needed where it is drawn."),
    click.option(
        "--kernel-initializer", metavar="NAME|JSON",
        help="Draws the kernel where no -k is given (with --filters, --kernel-size).  [default: glorot_uniform]",
    ),
    click.option("--bias-initializer", metavar="NAME|JSON", help="Draws the bias then.  [default: zeros]"),
    click.option("--seed", type=int, metavar="N", help="Of the initializers: the same seed draws the same numbers."),
    click.option("--kernel-regularizer", metavar="NAME|JSON", help="Penalty of the kernel, told under -v and --json."),
    click.option("--bias-regularizer", metavar="NAME|JSON", help="Penalty of the bias."),
    click.option("--activity-regularizer", metavar="NAME|JSON", help="Penalty of the output, summed while streaming."),
    click.option("--kernel-constraint", metavar="NAME|JSON", help="Applied to the kernel before convolving."),
    click.option("--bias-constraint", metavar="NAME|JSON", help="Applied to the bias before convolving."),
)  # fmt: skip

data_options = options(
    "Data",
    click.option("--axes", metavar="LETTERS", help="Axes of the input in storage order, e.g. tczyx (t time, c channel, s RGB)."),
    click.option(
        "--data-format", type=click.Choice(["channels_last", "channels_first"]), default="channels_last", show_default=True,
        help="How a .npy of 4 or 5 axes is read: zyxc, tzyxc, or czyx, tczyx.",
    ),
    click.option(
        "--dtype", metavar="DTYPE", default="float32", show_default=True,
        help="Of the output; integers are rounded half to even and saturated, and clipped voxels are counted.",
    ),
    click.option(
        "--scale", type=click.Choice(["none", "auto"]), default="none", show_default=True,
        help="auto: a slope and an intercept that the values fill, for integer NIfTI outputs.",
    ),
    click.option(
        "--precision", type=click.Choice(["float32", "float64"]), default="float32", show_default=True,
        help="Of the arithmetic.",
    ),
)  # fmt: skip

missing_options = options(
    "Masks and missing voxels",
    click.option(
        "--mask", metavar="FILE",
        help="Weights of the voxels, on the same grid: each result is a mean, sum(w m x) / sum(w m), and outside it is 0. Only "
        "ratios of mask values matter.",
    ),
    click.option(
        "--mask-mode", type=click.Choice(MASK_MODES), default="clip", show_default=True,
        help="Outside the mask: 0, the mean of what is near, or the voxel as it was.",
    ),
    click.option("--mask-labels", is_flag=True, help="The mask's numbers are regions, which are not mixed; 0 is outside."),
    click.option(
        "--nan", type=click.Choice(NAN_MODES), default="propagate", show_default=True,
        help="NaN and infinity: into every window, left out of the mean, taken as 0, or refused (exit 4).",
    ),
    click.option("--missing", type=float, metavar="VALUE", help="A stored value that is left out of the mean, e.g. -32768."),
    click.option(
        "--min-coverage", type=float, default=MIN_COVERAGE, show_default=True, metavar="PART",
        help="A mean over less of the kernel's weight, a part of 1, is none: 0 under a mask, else NaN.",
    ),
    click.option("--coverage-out", metavar="FILE", help="Where the part of the weight that each mean holds is written."),
)  # fmt: skip

threads_option = click.option(
    "-j", "--threads", type=click.IntRange(min=1), metavar="N",
    help="Threads.  [default: $CONV3D_THREADS, $OMP_NUM_THREADS, or all CPUs this process may use]",
)  # fmt: skip

run_options = options(
    "Running",
    threads_option,
    click.option("--max-memory", metavar="SIZE", help="Ceiling for the whole process, e.g. 500M or 2G."),
    click.option("--algorithm", metavar="NAME", default="auto", show_default=True, help="Force one; see `conv3d explain`."),
)  # fmt: skip

packing_options = options(
    "Formats of outputs",
    click.option(
        "--gz-level", type=click.IntRange(0, 3), default=1, show_default=True,
        help="Of .nii.gz and deflate: 0 is quickest; 1 takes a tenth longer for a quarter less; 2 and 3 gain little. .nii.zst "
        "has one level.",
    ),
    click.option(
        "--compression", type=click.Choice(["none", "deflate", "zstd"]), default="none", show_default=True,
        help="Of a TIFF's pages, or deflate of a .nrrd. Every reader knows deflate (--gz-level is its level); zstd is quicker.",
    ),
)  # fmt: skip

store_options = options(
    "Formats of outputs",
    click.option(
        "--chunks", type=Triple(),
        help="Voxels of a Zarr chunk.  [default: the input's if it is Zarr, else 32,128,128]",
    ),
    click.option(
        "--levels", type=click.IntRange(min=1), default=1, show_default=True,
        help="Levels of resolution in Zarr, each the mean of 2 voxels along axes that are long and fine enough.",
    ),
)  # fmt: skip

trust_options = options(
    "Checks and provenance",
    click.option(
        "--verify", type=click.IntRange(min=1), metavar="N",
        help="Then compute N voxels again by another way, in float64, from the files; exit 7 if one differs.",
    ),
    click.option(
        "--strict", is_flag=True, help="Refuse results that were clipped, lack voxels, or lose what the format cannot hold."
    ),
    click.option(
        "--report", "page", metavar="PAGE",
        help="Also write an HTML page, complete in itself: slices and histograms before and after, decisions, times, notes.",
    ),
    click.option(
        "--sidecar", is_flag=True,
        help="Also write OUT.json: inputs with their digests, kernel, pads, versions, the command. `conv3d rerun` repeats it.",
    ),
    click.option(
        "--history", is_flag=True,
        help="Write the command into the output: a NIfTI comment and descrip, ImageJ Info, an OME annotation, Zarr attributes.",
    ),
    click.option(
        "--bids", is_flag=True,
        help="Write a BIDS derivative dataset into --out-dir: folders and entities kept, desc-LABEL added, sidecars.",
    ),
    click.option("--desc", metavar="LABEL", help="The label of --bids.  [default: out of the kernel, as in desc-sm6mm]"),
)  # fmt: skip

cluster_options = options(
    "A cluster",
    click.option("--scheduler", metavar="ADDRESS", help="Forecast for the workers of this Dask scheduler, or local:N."),
    click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Forecast for N workers."),
    click.option(
        "--worker-threads", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Of each of them."
    ),
    click.option("--read-rate", metavar="SIZE", help="Bytes a second a thread reads, e.g. 200M.  [default: as tried here]"),
    click.option("--write-rate", metavar="SIZE", help="Bytes a second a thread writes.  [default: as tried here]"),
)  # fmt: skip

# options of what is missing, and their names in `Missing`
MISSING_SETTINGS = {
    "mask": "mask", "mask_mode": "mask_mode", "mask_labels": "labels", "nan": "nan", "missing": "value",
    "min_coverage": "min_coverage",
}  # fmt: skip
# options of a stage and of the job, by their parameters' names
STAGE_OPTIONS = tuple(key for key in STAGE_KEYS if key not in ("name", "use_bias"))
# columns of a manifest; what is left out is of the whole command
MANIFEST_OPTIONS = (
    *STAGE_OPTIONS, "no_bias", "config", "coverage_out",
    *(key for key in JOB_KEYS if key not in ("threads", "max_memory", "overwrite")),
)  # fmt: skip
LAYER_VALUES = tuple(key for key in STAGE_KEYS if key.endswith(("initializer", "regularizer", "constraint")))


def job_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `Job` but source and target, merged from options, config and preset, in this order.

    given : dict    options by their parameters' names, as `given_options` gives them
    Raises: SpecError, ConfigError, FormatError, UnknownNameError.
    """
    settings = _asked_for(given)
    name = settings.pop("like", None)
    if name is None:
        return settings
    stages = settings.pop("stages")
    refuse_stack(name, len(stages))
    stage, run, applied = apply_preset(name, stages[0], settings)
    return {"stages": [stage], **run, "preset": applied}


def given_options(ctx: click.Context) -> dict[str, Any]:
    """The options that were given, by their parameters' names; arguments, too."""
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
    }


def _asked_for(given: dict[str, Any]) -> dict[str, Any]:
    """What options and config say, as arguments for `Job`."""
    config = read_config(given["config"], with_kernel="kernel" in given) if given.get("config") else Config()
    options = {key: _layer_value(key, given[key]) for key in STAGE_OPTIONS if key in given}
    if given.get("no_bias"):
        options["use_bias"] = False
    if len(config.stages) > 1 and options.keys() <= {"seed"}:
        # one seed for a stack: each layer draws numbers of its own
        stages = (
            [{**stage, "seed": options["seed"] + number} for number, stage in enumerate(config.stages)]
            if options
            else []
        )
        return {"stages": stages or config.stages, **_run_settings(given, config)}
    if options and len(config.stages) > 1:
        names = ", ".join("--" + key.replace("_", "-") for key in options if key != "seed")
        raise SpecError(
            f"{names} cannot be given for a stack of {len(config.stages)} layers; set it in the config {config.path}"
        )
    stage = config.stages[0]
    if "kernel" in options:
        # another kernel: what the config's kernel brought along goes with it
        left = ("kernel", "kernel_size", "filters", "bias", "files", *(["notes"] if "kernel" in stage else []))
        stage = {key: value for key, value in stage.items() if key not in left}
    if not options:
        return {"stages": config.stages, **_run_settings(given, config)}
    own = stage_arguments(options)
    both = {key: (*stage.get(key, ()), *own.get(key, ())) for key in ("files", "notes")}
    return {"stages": [{**stage, **own, **both}], **_run_settings(given, config)}


def _run_settings(given: dict[str, Any], config: Config) -> dict[str, Any]:
    """Arguments for `Job` that are not of a stage."""
    settings = {**config.job, **{key: given[key] for key in JOB_KEYS if key in given}}
    if config.path:
        settings["files"] = (config.path,)
    if "coverage_out" in given:
        settings["coverage_out"] = given["coverage_out"]
    if isinstance(settings.get("max_memory"), str):
        settings["max_memory"] = byte_size(settings["max_memory"])
    return settings


def _layer_value(key: str, value: Any) -> Any:
    """An initializer, regularizer or constraint may be a name or Keras' serialised form as JSON."""
    if key in LAYER_VALUES and isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise SpecError(
                f"--{key.replace('_', '-')} must be a name or a JSON object, received {value!r} ({error})"
            ) from None
    return value


def make_job(source: str, target: str, settings: dict[str, Any]) -> Job:
    """A job of these settings. Raises: SpecError for what no volume could make legal."""
    from conv3d_cli.pipeline.request import Job, Stage

    settings = dict(settings)
    named = {name: settings.pop(option) for option, name in MISSING_SETTINGS.items() if option in settings}
    coverage = settings.pop("coverage_out", None)
    arguments = {**settings, "stages": tuple(Stage(**_oriented(stage)) for stage in settings["stages"])}
    return Job(source=source, target=target, missing=Missing(**named), coverage=coverage, **arguments)


def _oriented(stage: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `Stage`, with `orient` as a parameter of the kernel. Raises: SpecError where it takes none."""
    from conv3d_cli.kernels import orient_kernel

    orient = stage.get("orient", "voxel")
    rest = {key: value for key, value in stage.items() if key != "orient"}
    return rest if orient == "voxel" else {**rest, "kernel": orient_kernel(rest.get("kernel"), orient)}

"""Options, declared once and shared by commands, and the way from options and config files to jobs.

An option given on the command line beats the config file, which beats the default. Config keys are the options' names
with underscores (Keras' words where Keras has one). No NumPy at import.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from conv3d_cli.errors import ConfigError, FormatError, SpecError, unknown_name
from conv3d_cli.machine import byte_size
from conv3d_cli.model.spec import BOUNDARIES

if TYPE_CHECKING:
    from conv3d_cli.job import Job

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


def options(*declared: Any) -> Callable[[Command], Command]:
    """One decorator out of several."""

    def decorate(command: Command) -> Command:
        for option in reversed(declared):
            command = option(command)
        return command

    return decorate


kernel_options = options(
    click.option(
        "-k", "--kernel", metavar="KERNEL",
        help="A built-in with parameters (gaussian:fwhm=6mm, box:size=5, sobel:axis=d; see `conv3d kernel list`) or a file: "
        ".npy .npz .json .toml .txt .nii .nii.gz .tif.",
    ),
    click.option(
        "-c", "--config", metavar="FILE",
        help="TOML or JSON with any of these options as keys (underscores), kernel included; a path in it is relative to it.",
    ),
    click.option("--flip/--no-flip", default=False, help="Flip the kernel: true convolution. Default: correlation, as Keras."),
    click.option("--normalize/--no-normalize", default=False, help="Scale the kernel so that its weights sum to 1."),
    click.option("--bias", metavar="FILE|VALUE", help="Added to each filter: a number, several (1,2,3) or a .npy/.txt file."),
    click.option("--no-bias", is_flag=True, help="Leave out a bias that the kernel file holds."),
)  # fmt: skip

layer_options = options(
    click.option(
        "--padding", metavar="MODE",
        help="valid, same (Keras' split: the odd voxel after), full, N, N,N,N or LO:HI,LO:HI,LO:HI.  "
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
    click.option("--groups", type=int, default=1, show_default=True, help="Groups of channels (5-D kernels)."),
    click.option("--filters", type=int, help="Expected number of output channels; checked against the kernel."),
    click.option("--activation", metavar="NAME", help="linear, relu, sigmoid or tanh.  [default: linear]"),
)  # fmt: skip

data_options = options(
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
        "--precision", type=click.Choice(["float32", "float64"]), default="float32", show_default=True,
        help="Of the arithmetic.",
    ),
)  # fmt: skip

run_options = options(
    click.option(
        "-j", "--threads", type=click.IntRange(min=1), metavar="N",
        help="Threads.  [default: $CONV3D_THREADS, $OMP_NUM_THREADS, or all CPUs this process may use]",
    ),
    click.option("--max-memory", metavar="SIZE", help="Ceiling for the whole process, e.g. 500M or 2G."),
    click.option("--algorithm", metavar="NAME", default="auto", show_default=True, help="Force one; see `conv3d explain`."),
)  # fmt: skip

# options whose config key is not their own name
KEYS_OF_CONFIG = (
    "kernel", "flip", "normalize", "bias", "use_bias", "padding", "boundary", "strides", "dilation_rate",
    "allow_strided_dilation", "groups", "filters", "activation", "axes", "data_format", "dtype", "precision", "threads",
    "max_memory", "algorithm", "gz_level", "overwrite",
)  # fmt: skip


def read_config(path: str) -> dict[str, Any]:
    """The keys of a TOML or JSON config, checked by name; a kernel path is made relative to the config's folder.

    Raises: FormatError if the file is missing, ConfigError if it cannot be understood.
    """
    import tomllib

    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FormatError(f"cannot read config {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read config {path}: {error}") from error
    try:
        values = json.loads(text) if file.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both decoders' errors are ValueErrors
        raise ConfigError(
            f"config {path} is not valid {'JSON' if file.suffix.lower() == '.json' else 'TOML'}: {error}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path} must be a table of options, received {type(values).__name__}")
    for key in values:
        if key not in KEYS_OF_CONFIG:
            raise ConfigError(f"config {path}: {unknown_name('key', key, KEYS_OF_CONFIG)}")
    return values


def job_settings(ctx: click.Context) -> dict[str, Any]:
    """Arguments for `Job` but source and target, merged from options and config; kernel and bias are resolved as paths.

    Raises: SpecError, ConfigError, FormatError.
    """
    given = {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
    }
    config_path = ctx.params.get("config")
    config = read_config(config_path) if config_path else {}
    merged: dict[str, Any] = {}
    for key in KEYS_OF_CONFIG:
        if key in given:
            merged[key] = given[key]
        elif key in config:
            merged[key] = _checked(config_path, key, config[key])
    if given.get("no_bias"):
        merged["use_bias"] = False
    if merged.get("kernel") is None:
        raise SpecError("no kernel: pass -k, for example -k gaussian:fwhm=6mm, or a config with a kernel (-c)")
    folder = Path(config_path).parent if config_path and "kernel" not in given else None
    merged["kernel"] = _kernel_of(merged["kernel"], folder)
    if merged.get("bias") is not None:
        folder = Path(config_path).parent if config_path and "bias" not in given else None
        merged["bias"] = _bias_of(merged["bias"], folder)
    if isinstance(merged.get("max_memory"), str):
        merged["max_memory"] = byte_size(merged["max_memory"])
    return merged


# what a config value must be; keys that are not here are checked where they are used
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "flip": (bool, "true or false"),
    "normalize": (bool, "true or false"),
    "use_bias": (bool, "true or false"),
    "overwrite": (bool, "true or false"),
    "allow_strided_dilation": (bool, "true or false"),
    "boundary": (str, "a text such as \"nearest\""),
    "activation": (str, "a name"),
    "axes": (str, "letters such as \"tzyx\""),
    "data_format": (str, "a name"),
    "dtype": (str, "a name"),
    "precision": (str, "a name"),
    "algorithm": (str, "a name"),
    "threads": (int, "a whole number"),
    "gz_level": (int, "a whole number from 0 to 3"),
    "max_memory": ((str, int), "a size such as \"2G\""),
    "kernel": ((str, list), "a text such as \"gaussian:fwhm=6mm\" or a nested list of numbers"),
}  # fmt: skip


def _checked(path: str | None, key: str, value: Any) -> Any:
    kind, words = _TYPES.get(key, (object, ""))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"config {path}: {key} must be {words}, received {value!r}")
    if key == "gz_level" and value not in range(4):
        raise ConfigError(f"config {path}: {key} must be {words}, received {value!r}")
    return value


def _kernel_of(value: Any, folder: Path | None) -> Any:
    if isinstance(value, str):
        from conv3d_cli.kernels import is_builtin

        # a name that is neither a built-in nor a file stays as it is, so that the nearest built-in is suggested
        names_a_file = (
            folder is not None and not is_builtin(value) and (Path(value).suffix or (folder / value).exists())
        )
        return str(folder / value) if folder is not None and names_a_file else value
    import numpy as np

    from conv3d_cli.model.kernel import Kernel

    try:
        weights = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        raise ConfigError(
            "the kernel in the config must be a nested list of numbers with rows of equal length"
        ) from None
    return Kernel(weights, name="of the config")


def _bias_of(value: Any, folder: Path | None) -> list[float]:
    """A bias from the command line or a config: numbers, or the file that holds them."""
    try:
        if isinstance(value, str):
            numbers = [float(part) for part in value.split(",")]
        else:
            numbers = [float(part) for part in (value if isinstance(value, list) else [value])]
    except (ValueError, TypeError):
        if not isinstance(value, str):
            raise ConfigError(f"bias must be a number, a list of numbers or a file, received {value!r}") from None
        from conv3d_cli.kernels import read_bias

        return read_bias(str(folder / value) if folder else value)
    if not all(map(math.isfinite, numbers)):
        raise SpecError(f"bias must hold finite numbers, received {value!r}")
    return numbers


def make_job(source: str, target: str, settings: dict[str, Any]) -> Job:
    """A job of these settings. Raises: SpecError for what no volume could make legal."""
    from conv3d_cli.job import Job

    return Job(source=source, target=target, **settings)

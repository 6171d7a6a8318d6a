"""Config files into stages: TOML and JSON with the options as keys, Keras' own JSON, and whole saved models.

A config says what one convolution is, or a stack of them (`[[layers]]`, a Keras Sequential model, a `.keras` file with its
weights), and may set options of the run. What a stage and a job are is in `pipeline/run.py`; Keras' JSON is read by
`layer/config.py` and weights by `kernels/weights`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conv3d_cli.errors import ConfigError, FormatError, SpecError, unknown_name
from conv3d_cli.system.inputs import near_names

STAGE_KEYS = (
    "name", "kernel", "kernel_size", "filters", "strides", "padding", "dilation_rate", "groups", "boundary",
    "allow_strided_dilation", "activation", "bias", "use_bias", "flip", "normalize", "kernel_initializer", "bias_initializer",
    "seed", "kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint",
    "orient", "magnitude",
    "kernel_spacing", "crop_kernel",
)  # fmt: skip
JOB_KEYS = (
    "axes", "data_format", "dtype", "precision", "threads", "max_memory", "algorithm", "gz_level", "overwrite",
    "chunks", "levels", "compression", "mask", "mask_mode", "mask_labels", "nan", "missing", "min_coverage",
    "scale", "strict", "like",
)  # fmt: skip
MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")  # files that hold a whole model: its layers and their weights

_BOOLEAN = (bool, "true or false")
_NAME = (str, "a name")
# what a value must be; keys that are not here are checked where they are used
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "flip": _BOOLEAN,
    "normalize": _BOOLEAN,
    "kernel_spacing": (str, "match, resample or ignore"),
    "crop_kernel": ((int, float), "a number such as 1e-6"),
    "use_bias": _BOOLEAN,
    "overwrite": _BOOLEAN,
    "allow_strided_dilation": _BOOLEAN,
    "magnitude": _BOOLEAN,
    "orient": (str, "voxel or world"),
    "name": _NAME,
    "data_format": _NAME,
    "dtype": _NAME,
    "precision": _NAME,
    "algorithm": _NAME,
    "boundary": (str, 'a text such as "nearest"'),
    "axes": (str, 'letters such as "tzyx"'),
    "threads": (int, "a whole number"),
    "seed": (int, "a whole number"),
    "gz_level": (int, "a whole number from 0 to 3"),
    "levels": (int, "a whole number"),
    "compression": (str, "none, deflate or zstd"),
    "scale": _NAME,
    "strict": _BOOLEAN,
    "mask": (str, "a file's name"),
    "mask_mode": _NAME,
    "mask_labels": _BOOLEAN,
    "nan": _NAME,
    "like": _NAME,
    "missing": ((int, float), "a number"),
    "min_coverage": ((int, float), "a number"),
    "chunks": ((int, list), "a whole number, or three as in [32, 128, 128]"),
    "max_memory": ((str, int), 'a size such as "2G"'),
    "kernel": ((str, list), 'a text such as "gaussian:fwhm=6mm" or a nested list of numbers'),
}


@dataclass
class Config:
    """What a config file says: arguments for each `Stage` of the stack, and for the `Job`."""

    path: str = ""
    stages: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    job: dict[str, Any] = field(default_factory=dict)


def read_config(path: str, with_kernel: bool = False) -> Config:
    """Read a config; kernel, bias and mask paths in it are relative to its folder.

    with_kernel : bool      a kernel is given beside it: what a Keras layer's own config says of training is left out
    Raises: FormatError if a file is missing or damaged, ConfigError or UnknownNameError if it cannot be understood.
    """
    if path.lower().endswith(MODEL_SUFFIXES):
        return read_model_file(path)
    values = _parse(path)
    folder = Path(path).parent
    if isinstance(values.get("mask"), str):
        values["mask"] = str(folder / values["mask"])
    if _is_keras(values):
        return from_keras(values, path, trained=with_kernel)
    layers = values.pop("layers", None)
    allowed = JOB_KEYS if layers is not None else (*STAGE_KEYS, *JOB_KEYS)
    _check_keys(values, allowed, f"config {path}")
    if layers is None:
        stage = {key: value for key, value in values.items() if key in STAGE_KEYS}
        return Config(path, [stage_arguments(stage, folder)], {k: v for k, v in values.items() if k in JOB_KEYS})
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise ConfigError(f"config {path}: layers must be a list of tables, one a layer, received {layers!r:.80}")
    for number, layer in enumerate(layers):
        _check_keys(layer, STAGE_KEYS, f"config {path}: layer {number + 1}")
    return Config(path, [stage_arguments(layer, folder) for layer in layers], values)


def is_kernel_file(value: Any) -> bool:
    """Whether a kernel, as an option or a config says it, is a file's name (and maybe a layer's).

    >>> is_kernel_file("psf.tif"), is_kernel_file("box:size=3"), is_kernel_file([[[1.0]]])
    (True, False, False)
    """
    from conv3d_cli.kernels import is_builtin

    return isinstance(value, str) and not is_builtin(value)


def is_bias_file(value: Any) -> bool:
    """Whether a bias, as an option or a config says it, is a file's name.

    >>> is_bias_file("bias.npy"), is_bias_file("1,2"), is_bias_file([1.0, 2.0])
    (True, False, False)
    """
    return isinstance(value, str) and _numbers(value) is None


def _parse(path: str) -> dict[str, Any]:
    file = Path(path)
    is_json = file.suffix.lower() == ".json"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FormatError(f"cannot read config {path}: no such file{near_names(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read config {path}: {error}") from error
    import tomllib

    try:
        values = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both decoders' errors are ValueErrors
        raise ConfigError(f"config {path} is not valid {'JSON' if is_json else 'TOML'}: {error}") from error
    if isinstance(values, list):
        values = {"layers": values}
    if isinstance(values, str):  # json.dump(model.to_json()) writes the text of a text
        try:
            values = json.loads(values)
        except ValueError:
            values = None
    if not isinstance(values, dict):
        raise ConfigError(f"config {path} must be a table of options, received {type(values).__name__}")
    return values


def _check_keys(values: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"{where}: {unknown_name('key', key, allowed)}")
        kind, words = _TYPES.get(key, (object, ""))
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if not fits or (key == "gz_level" and value not in range(4)):
            raise ConfigError(f"{where}: {key} must be {words}, received {value!r}")


def stage_arguments(values: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Arguments for `Stage` from options in Keras' words: kernels and biases resolved, layers of weights files unfolded.

    folder : Path or None       what kernel and bias paths are relative to
    """
    result = {key: value for key, value in values.items() if key not in ("kernel", "bias", "activation")}
    if values.get("kernel") is not None:
        tells = values.keys() >= {"strides", "padding"}
        result = {**_kernel_arguments(values["kernel"], folder, tells), **result}
    if values.get("activation") is not None:
        result["activations"] = (values["activation"],)
    if values.get("bias") is not None:
        result["bias"], files = _bias(values["bias"], folder)
        result["files"] = (*result.get("files", ()), *files)
    return result


def _kernel_arguments(value: Any, folder: Path | None, tells: bool) -> dict[str, Any]:
    """The kernel, with the strides, padding, ... of a layer whose file holds them.

    tells : bool        strides and padding are given beside it; else a note tells where the file does not hold them
    """
    if isinstance(value, str):
        from conv3d_cli.kernels import may_name_a_layer

        value = located_kernel(value, folder)
        if not may_name_a_layer(value):
            return {"kernel": value}
        from conv3d_cli.kernels import weights
        from conv3d_cli.kernels.weights.layer import WEIGHTS_ONLY

        if weights.find_weights_file(weights.split_name(value)[0]) is None:
            return {"kernel": value}
        try:
            saved = weights.saved_layer(value)
        except SpecError as error:
            if value.lower().endswith(MODEL_SUFFIXES):  # no layer named: perhaps the whole model is meant
                raise SpecError(f"{error}, or pass -c {value} to run the whole model") from None
            raise
        arguments = _saved_arguments(saved.config or {})
        files = (weights.split_name(value)[0],)
        lacking = [WEIGHTS_ONLY] if saved.config is None and not tells else []
        notes = tuple(f"layer {saved.name}: {note}" for note in (*saved.notes, *lacking))
        return {**arguments, "kernel": saved.as_kernel(value), "boundary": "zeros", "notes": notes, "files": files}
    import numpy as np

    from conv3d_cli.model.kernel import Kernel

    try:
        array = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        raise ConfigError(
            "the kernel in the config must be a nested list of numbers with rows of equal length"
        ) from None
    return {"kernel": Kernel(array, name="of the config")}


def located_kernel(text: str, folder: Path | None) -> str:
    """A kernel's text out of a file in `folder`: a path is relative to it, a built-in's name stays.

    >>> located_kernel("psf.npy", Path("a")), located_kernel("box:size=3", Path("a"))
    ('a/psf.npy', 'box:size=3')
    """
    from conv3d_cli.kernels import is_builtin

    file = text.partition("::")[0]
    # a name that is neither a built-in nor a file stays as it is, so that the nearest built-in is suggested
    if folder is None or is_builtin(text) or not (Path(file).suffix or os.path.exists(folder / file)):
        return text
    return str(folder / text)


def located_bias(text: str, folder: Path | None) -> str:
    """A bias's text out of a file in `folder`: numbers stay, a path is relative to it."""
    return str(folder / text) if folder is not None and is_bias_file(text) else text


def _numbers(text: str) -> list[float] | None:
    """The numbers of a bias's text; None if it names a file."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _saved_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `Stage` out of what a weights file says of a layer, in Keras' words."""
    names = ("name", "strides", "padding", "dilation_rate", "groups", "use_bias")
    result = {key: config[key] for key in names if config.get(key) is not None}
    if config.get("activation") is not None:
        result["activations"] = (config["activation"],)
    return result


def _bias(value: Any, folder: Path | None) -> tuple[list[float], tuple[str, ...]]:
    """A bias: numbers, or what the file holds; and that file, if there is one."""
    if isinstance(value, str):
        numbers = _numbers(value)
        if numbers is None:
            from conv3d_cli.kernels import read_bias

            path = located_bias(value, folder)
            return read_bias(path), (path,)
    else:
        try:
            numbers = [float(part) for part in (value if isinstance(value, list) else [value])]
        except (ValueError, TypeError):
            raise ConfigError(f"bias must be a number, a list of numbers or a file, received {value!r}") from None
    if not all(map(math.isfinite, numbers)):
        raise SpecError(f"bias must hold finite numbers, received {value!r}")
    return numbers, ()


# ---------------------------------------------------------------------------------------------------------------------
# Keras


def _is_keras(values: dict[str, Any]) -> bool:
    """Whether JSON is a layer's or a model's own: wrapped with its class, or its bare get_config()."""
    return "class_name" in values or ("trainable" in values and ("kernel_size" in values or "layers" in values))


def from_keras(values: dict[str, Any], path: str, trained: bool = False) -> Config:
    """A Keras layer's `get_config()`, its wrapped form, or a model's `to_json()`.

    trained : bool      the weights come from elsewhere: initializers and constraints are left out
    """
    from conv3d_cli.layer.config import read_model

    try:
        layers = read_model(values, trained)
    except SpecError as error:
        raise type(error)(f"config {path}: {error}") from error
    config = Config(path, [_layer_arguments(layer) for layer in layers])
    formats = {layer.data_format for layer in layers if layer.data_format}
    if len(formats) > 1:
        raise ConfigError(f"config {path}: all layers must have the same data_format, received {sorted(formats)}")
    if formats:
        config.job["data_format"] = formats.pop()
    return config


def _layer_arguments(layer: Any) -> dict[str, Any]:
    """Arguments for `Stage` out of a `LayerConfig`."""
    same = (
        "name", "kernel_size", "filters", "strides", "dilation_rate", "groups", "use_bias", "kernel_initializer",
        "bias_initializer", "seed", "kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint",
        "bias_constraint", "notes",
    )  # fmt: skip
    return {
        **{name: getattr(layer, name) for name in same},
        "padding": layer.spec().padding,
        "boundary": "zeros",
        "activations": (layer.activation, *layer.then),
    }


def read_model_file(path: str) -> Config:
    """A saved Keras model with its weights: `.keras`, legacy `.h5`.

    Raises: FormatError if it is damaged, or holds weights alone (then it is a kernel file: -k).
    """
    from conv3d_cli.kernels import weights

    model = weights.model_config(path)
    if model is None:
        raise FormatError(f"config {path} holds weights but no model; pass it as a kernel: -k {path}::LAYER")
    config = from_keras(model, path, trained=True)
    saved = weights.read_layers(path)
    if len(saved) != len(config.stages):
        raise FormatError(
            f"cannot read {path}: its model has {len(config.stages)} Conv3D layers, its weights {len(saved)}"
        )
    for stage, in_order in zip(config.stages, saved, strict=True):
        # layers of models within the model may have the same name, and then come in the same order
        named = [layer for layer in saved if layer.name == stage["name"]]
        layer = named[0] if len(named) == 1 else in_order
        stage["kernel"] = layer.as_kernel(f"{path}::{layer.name}")
        stage["files"] = (path,)
    return config

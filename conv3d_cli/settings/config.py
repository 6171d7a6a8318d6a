"""Reads config files into settings: TOML or JSON with options as keys, Keras' JSON, saved models.

A config describes one convolution or a stack of them (`[[layers]]`, a Keras Sequential model, a
`.keras` file with its weights), and may set options of the job. The table in `options.py` defines
the keys and the rules for their values. `layer/config.py` reads Keras' JSON, and `kernels/weights`
reads weights.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import (
    ConfigError,
    Conv3DError,
    FormatError,
    ShapeError,
    SpecError,
    setting,
    unknown_name,
    words,
)
from conv3d_cli.network.files import NetworkFile, find_network_file
from conv3d_cli.settings.mask_rules import located_mask
from conv3d_cli.settings.option import File, Place
from conv3d_cli.settings.options import JOB_KEYS, OPTION, OPTIONS, STAGE_KEYS, Settings, overlay
from conv3d_cli.system.inputs import read_text
from conv3d_cli.system.room import JSON_BYTES, TOML_BYTES, check_tree
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.layer.config import LayerConfig
    from conv3d_cli.network.graph import Network

# Keys whose values are paths that start from the config's folder. A kernel or a bias is a path only
# if it is nothing else.
FILE_KEYS = {
    option.name: option.file
    for option in OPTIONS
    if option.config is not None and option.file in (File.READ, File.MASK)
}
# Files that hold a whole model: its layers and their weights.
MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")


@dataclass
class Config:
    """The settings in a config file.

    path : str                  path of the file; "" if there is none
    stages : list of Settings   one per convolution of the stack; none of a network
    job : Settings              settings of the job and of missing voxels
    network : Network or None   a model that is no chain of convolutions
    """

    path: str = ""
    stages: list[Settings] = field(default_factory=lambda: [Settings()])
    job: Settings = field(default_factory=Settings)
    network: Network | None = None


def read_config(path: str, with_kernel: bool = False, weights: str | None = None) -> Config:
    """Read a config; kernel, bias and mask paths in it are relative to its folder.

    with_kernel : bool      the kernel comes from elsewhere, so that initializers and constraints
                            of Keras layers are ignored
    weights : str or None   a file with the weights of the Keras model whose JSON the config is
    Raises: FormatError if a file is missing or damaged; ConfigError or UnknownNameError if the
    config cannot be understood.
    """
    values: dict[str, Any] = {}
    read: Callable[[str], Config] | None
    if path.lower().endswith(MODEL_SUFFIXES):
        read = read_model_file
    elif (kind := find_network_file(path)) is not None:
        read = functools.partial(_read_network_file, kind=kind)
    else:
        values = _parse(path)
        kind = find_network_file(path, values)
        read = None if kind is None else functools.partial(_read_network_file, kind=kind)
    if read is not None:
        if weights is not None:
            raise ConfigError(
                f"config {path} is a saved model, which brings its weights; leave out "
                f"{setting('weights', weights)}"
            )
        return read(path)
    if weights is not None:
        return _with_weights(values, path, weights)
    folder = Path(path).parent
    for key, file in FILE_KEYS.items():
        if isinstance(text := values.get(key), str):
            values[key] = located_mask(text, folder) if file is File.MASK else str(folder / text)
    if _is_keras(values):
        return _keras_config(values, path, with_kernel)
    layers = values.pop("layers", None)
    allowed = JOB_KEYS if layers is not None else (*STAGE_KEYS, *JOB_KEYS)
    _check_keys(values, allowed, f"config {path}")
    if layers is None:
        whole = Settings(**values)
        stage = whole.only(Place.STAGE)
        return Config(path, [layer_settings(stage, folder)], whole.only(Place.JOB, Place.MISSING))
    if (
        not isinstance(layers, list)
        or not layers
        or not all(isinstance(layer, dict) for layer in layers)
    ):
        raise ConfigError(
            f"config {path}: layers must be a list of tables, one per layer, "
            f"received {layers!r:.80}"
        )
    for number, layer in enumerate(layers):
        _check_keys(layer, STAGE_KEYS, f"config {path}: layer {number + 1}")
    return Config(
        path, [layer_settings(Settings(**layer), folder) for layer in layers], Settings(**values)
    )


def _of_network(path: str, network: Network) -> Config:
    return Config(path, [], Settings(data_format=network.data_format), network)


def _read_network_file(path: str, kind: NetworkFile) -> Config:
    """The config of a file that holds a network. Raises: FormatError, SpecError, ShapeError."""
    try:
        network = kind.read(path)
    except (SpecError, ShapeError) as error:
        raise type(error)(f"config {path}: {error}{_single_layers(path)}") from None
    return _of_network(path, network)


def is_kernel_file(value: Any) -> bool:
    """Whether a kernel in an option or a config is a file name, maybe with a layer name.

    >>> is_kernel_file("psf.tif"), is_kernel_file("box:size=3"), is_kernel_file([[[1.0]]])
    (True, False, False)
    """
    from conv3d_cli.kernels import is_builtin

    return isinstance(value, str) and not is_builtin(value)


def is_bias_file(value: Any) -> bool:
    """Whether a bias in an option or a config is a file name.

    >>> is_bias_file("bias.npy"), is_bias_file("1,2"), is_bias_file([1.0, 2.0])
    (True, False, False)
    """
    return isinstance(value, str) and _numbers(value) is None


def _parse(path: str) -> dict[str, Any]:
    import tomllib

    is_json = path.lower().endswith(".json")
    cure = _kernel_instead(path) if os.path.isfile(path) else ""
    if cure and not path.lower().endswith((".json", ".toml", ".txt")):
        raise ConfigError(f"{path} is no config; {cure}")
    text = read_text(path, "config", f"{cure or 'a config is TOML or JSON'}")

    check_tree(text, JSON_BYTES if is_json else TOML_BYTES, path)
    try:
        values = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both decoders raise ValueErrors
        raise ConfigError(
            f"config {path} is not valid {'JSON' if is_json else 'TOML'}: {error}"
        ) from error
    if isinstance(values, list):
        values = {"layers": values}
    if isinstance(values, str):  # json.dump(model.to_json()) writes JSON inside a JSON string
        try:
            values = json.loads(values)
        except ValueError:
            values = None
    if not isinstance(values, dict):
        raise ConfigError(
            f"config {path} must be a table of options, received {type(values).__name__}"
        )
    return values


def _kernel_instead(path: str) -> str:
    """What to pass for a file of kernels or trained layers that was given as a config; or ""."""
    from conv3d_cli.kernels import find_kernel_file, weights

    if weights.find_weights_file(path) is not None:
        return f"it holds trained layers: pass one as the kernel, -k {path}::LAYER"
    return f"pass it as the kernel: -k {path}" if find_kernel_file(path) is not None else ""


def _check_keys(values: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"{where}: {unknown_name('key', key, allowed)}")
        option = OPTION[key]
        rule = option.config
        if rule is not None and not (rule.allows(value) and option.kind.in_range(value)):
            raise ConfigError(f"{where}: {key} must be {rule.words}, received {value!r}")


def layer_settings(values: Settings, folder: Path | None = None) -> Settings:
    """The settings of one convolution, with its files read.

    A bias is read into numbers. A kernel in a weights file adds the strides, padding, ... of its
    layer; those in `values` win.

    values : Settings           of one convolution, from one source
    folder : Path or None       folder that the paths of kernel and bias are relative to; None: the
                                current one
    Raises: SpecError, ConfigError, FormatError, UnknownNameError.

    >>> layer_settings(Settings(bias="1,2", strides=2)).given()
    {'bias': [1.0, 2.0], 'strides': 2}
    """
    result = values
    kernel = values.named_kernel
    if kernel is not None:
        complete = values.strides is not None and values.padding is not None
        result = overlay(_kernel_settings(kernel, folder, complete), values.without("kernel"))
    if values.activation is not None:
        result = replace(result, activations=(values.activation,))
    if values.no_bias:
        result = replace(result, use_bias=False)
    if values.bias is not None:
        numbers, files = _bias(values.bias, folder)
        result = replace(result, bias=numbers, files=(*result.files, *files))
    return result


def _kernel_settings(value: Any, folder: Path | None, complete: bool) -> Settings:
    """The kernel, with the strides, padding, ... of its layer if the file holds them.

    complete : bool     strides and padding are given; else a note says that the file lacks them
    """
    if isinstance(value, str):
        from conv3d_cli.kernels import may_name_a_layer

        value = located_kernel(value, folder)
        if not may_name_a_layer(value):
            return Settings(kernel=value)
        from conv3d_cli.kernels import weights
        from conv3d_cli.kernels.weights.layer import WEIGHTS_ONLY

        if weights.find_weights_file(weights.split_name(value)[0]) is None:
            return Settings(kernel=value)
        try:
            saved = weights.saved_layer(value)
        except SpecError as error:
            if value.lower().endswith(MODEL_SUFFIXES):
                # no layer is named: perhaps the user means the whole model
                whole = words(f"-c {value}", f"config={value!r}")
                raise SpecError(f"{error}, or pass {whole} to run the whole model") from None
            raise
        files = (weights.split_name(value)[0],)
        lacking = [WEIGHTS_ONLY] if saved.config is None and not complete else []
        notes = tuple(f"layer {saved.name}: {note}" for note in (*saved.notes, *lacking))
        of_layer = _saved_settings(saved.config or {})
        return replace(
            of_layer, kernel=saved.as_kernel(value), boundary="zeros", notes=notes, files=files
        )
    import numpy as np

    from conv3d_cli.model.kernel import Kernel

    if isinstance(value, Kernel):
        return Settings(kernel=value)
    try:
        array = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        raise ConfigError(
            "the kernel in the config must be a nested list of numbers with rows of equal length"
        ) from None
    return Settings(kernel=Kernel(array, name="of the config"))


def located_kernel(text: str, folder: Path | None) -> str:
    """A kernel that a file in `folder` names: a path is joined to the folder, a built-in is not.

    >>> located_kernel("psf.npy", Path("a")), located_kernel("box:size=3", Path("a"))
    ('a/psf.npy', 'box:size=3')
    """
    from conv3d_cli.kernels import is_builtin

    file = text.partition("::")[0]
    # a name that is neither a built-in nor a file stays, so that the error suggests a built-in
    if (
        folder is None
        or is_builtin(text)
        or not (Path(file).suffix or os.path.exists(folder / file))
    ):
        return text
    return str(folder / text)


def located_bias(text: str, folder: Path | None) -> str:
    """A bias that a file in `folder` names: a path is joined to the folder, numbers are not.

    >>> located_bias("b.npy", Path("a")), located_bias("1,2", Path("a"))
    ('a/b.npy', '1,2')
    """
    return str(folder / text) if folder is not None and is_bias_file(text) else text


def _numbers(text: str) -> list[float] | None:
    """The numbers in a bias option, as in "1,2"; None if it names a file."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _saved_settings(config: dict[str, Any]) -> Settings:
    """Settings of a layer from a weights file, whose `config` has Keras' keys."""
    names = ("name", "strides", "padding", "dilation_rate", "groups", "use_bias")
    activation = config.get("activation")
    found: dict[str, Any] = {key: config.get(key) for key in names}
    return Settings(**found, activations=None if activation is None else (activation,))


def _bias(value: Any, folder: Path | None) -> tuple[list[float], tuple[str, ...]]:
    """The numbers of a bias, and the files that they were read from (one or none)."""
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
            raise ConfigError(
                f"bias must be a number, a list of numbers or a file, received {value!r}"
            ) from None
    if not all(map(math.isfinite, numbers)):
        raise SpecError(f"bias must hold finite numbers, received {value!r}")
    return numbers, ()


# --------------------------------------------------------------------------------------------------
# Keras


# Fields with the same name and meaning in `LayerConfig` and `Settings`.
_SAME_IN_KERAS = (
    "name",
    "kernel_size",
    "filters",
    "strides",
    "dilation_rate",
    "groups",
    "use_bias",
    "kernel_initializer",
    "bias_initializer",
    "seed",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
    "notes",
)


def _is_keras(values: dict[str, Any]) -> bool:
    """Whether JSON is a Keras layer or model: with class_name, or a bare get_config()."""
    return "class_name" in values or (
        "trainable" in values and ("kernel_size" in values or "layers" in values)
    )


def from_keras(values: dict[str, Any], path: str, trained: bool = False) -> Config:
    """Read a Keras layer's `get_config()`, its wrapped form, or a model's `to_json()`.

    values : dict       the parsed JSON
    path : str          its file, for messages
    trained : bool      the weights come from elsewhere: initializers and constraints are ignored
    Raises: ConfigError or SpecError if a layer cannot be understood or run.
    """
    from conv3d_cli.layer.config import read_model

    try:
        layers = read_model(values, trained)
    except SpecError as error:
        raise type(error)(f"config {path}: {error}") from error
    config = Config(path, [_keras_settings(layer) for layer in layers])
    formats = {layer.data_format for layer in layers if layer.data_format}
    if len(formats) > 1:
        raise ConfigError(
            f"config {path}: all layers must have the same data_format, received {sorted(formats)}"
        )
    if formats:
        config.job = Settings(data_format=formats.pop())
    return config


def _keras_settings(layer: LayerConfig) -> Settings:
    """Settings of a convolution from a Keras layer."""
    return Settings(
        **{name: getattr(layer, name) for name in _SAME_IN_KERAS},
        padding=layer.spec().padding,
        boundary="zeros",
        activations=(layer.activation, *layer.then),
    )


def read_model_file(path: str) -> Config:
    """Read a saved Keras model with its weights: `.keras`, legacy `.h5`.

    Raises: FormatError if it is damaged, or if it holds only weights (then it is a kernel file, for
    -k); as `from_keras`.
    """
    from conv3d_cli.kernels import weights

    model = weights.model_config(path)
    if model is None:
        raise FormatError(
            f"config {path} holds weights but no model; pass it as a kernel: "
            + words(f"-k {path}::LAYER", f"kernel='{path}::LAYER'")
        )
    try:
        config = from_keras(model, path, trained=True)
    except SpecError:  # no chain of convolutions
        return _network_config(path, model)
    saved = weights.read_layers(path)
    if len(saved) != len(config.stages):
        raise FormatError(
            f"cannot read {path}: its model has {count_of(len(config.stages), 'Conv3D layer')}, "
            f"but its weights have {len(saved)}"
        )
    stages = []
    for stage, in_order in zip(config.stages, saved, strict=True):
        # layers of nested models may share a name; both lists then have them in the same order
        named = [layer for layer in saved if layer.name == stage.name]
        layer = named[0] if len(named) == 1 else in_order
        stages.append(
            replace(stage, kernel=layer.as_kernel(f"{path}::{layer.name}"), files=(path,))
        )
    return replace(config, stages=stages)


def _keras_config(model: dict[str, Any], path: str, trained: bool) -> Config:
    """The config of Keras' JSON: layers in order, or a network that has no weights.

    Raises: as `from_keras`; SpecError, FormatError for a network that cannot be read.
    """
    try:
        return from_keras(model, path, trained)
    except SpecError as in_chain:
        from conv3d_cli.kernels.weights.layer import read_errors
        from conv3d_cli.layer.config import NoChain
        from conv3d_cli.network.keras import read_keras_network

        try:
            with read_errors(path):
                network = read_keras_network(model, None, (path,))
        except (SpecError, FormatError) as error:
            if not isinstance(in_chain, NoChain):  # a layer of the chain is at fault
                raise in_chain from None
            if isinstance(error, FormatError):
                raise
            raise type(error)(f"config {path}: {error}") from None
    return _of_network(path, network)


def _with_weights(model: dict[str, Any], path: str, weights: str) -> Config:
    """The config of a Keras model whose JSON and weights are in two files.

    Raises: ConfigError for another config, SpecError, FormatError.
    """
    from conv3d_cli.kernels.weights.layer import read_errors
    from conv3d_cli.network.keras import read_keras_network, require_unquantized
    from conv3d_cli.network.keras_weights import read_weights

    if not isinstance(model.get("class_name"), str):
        raise ConfigError(
            f"config {path} is no Keras model (`model.to_json()`), which "
            f"{setting('weights', weights)} is for: leave it out"
        )
    try:
        with read_errors(path):
            require_unquantized(model)
            network = read_keras_network(model, read_weights(weights), (path, weights))
    except SpecError as error:
        raise type(error)(f"config {path}: {error}{_single_layers(weights)}") from None
    return _of_network(path, network)


def _network_config(path: str, model: dict[str, Any]) -> Config:
    """The config of a saved model that is more than a chain of convolutions.

    Raises: SpecError, whose message names a layer that can be run alone; FormatError.
    """
    from conv3d_cli.kernels.weights.layer import read_errors
    from conv3d_cli.network.keras import read_network

    try:
        with read_errors(path):
            network = read_network(path, model)
    except SpecError as error:
        raise type(error)(f"config {path}: {error}{_single_layers(path)}") from None
    return _of_network(path, network)


def _single_layers(path: str) -> str:
    """Words on the layers of a refused network that can be run alone; "" if there are none."""
    from conv3d_cli.kernels import weights

    try:
        names = [layer.name for layer in weights.read_layers(path)]
    except Conv3DError:  # what is wrong with the file was said
        return ""
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    one = words(f"-k {path}::{names[0]}", f"kernel='{path}::{names[0]}'")
    return f"; run a layer alone, as in {one} (it holds {listed})"

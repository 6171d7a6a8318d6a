"""The configuration of a Conv3D layer: read from Keras 2 and 3, checked, written as Keras 3.

`LayerConfig` has every argument of the layer and no weights. `read_model` turns a whole
`model.to_json()` into such layers, which include the activation and padding layers between them.
TOML and JSON configs use the same keys.
Source: Keras 3, keras/src/layers/convolutional/base_conv.py and
keras/src/saving/serialization_lib.py.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.layer import activations, constraints, initializers, regularizers
from conv3d_cli.layer._catalogue import keras_dict
from conv3d_cli.layer._keras_json import settings
from conv3d_cli.layer.activations import Activation, dtype_policy
from conv3d_cli.layer.constraints import Constraint
from conv3d_cli.layer.initializers import Initializer, derived_seed
from conv3d_cli.layer.regularizers import Regularizer
from conv3d_cli.model.keras_json import (
    CONV3D,
    MODELS,
    NO_PADS,
    PADDING,
    PASSIVE,
    class_of,
    joined_padding,
    name_of,
    output_names,
    pads_of,
    source_names,
)
from conv3d_cli.model.spec import ConvSpec, Pads, Triple, triple

DATA_FORMATS = ("channels_last", "channels_first")
# dtype policy -> dtype of the weights
DTYPES = {
    "float32": "float32",
    "float64": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "mixed_float16": "float32",
    "mixed_bfloat16": "float32",
}
# keys of a Keras config without effect here
_IGNORED = (
    "build_config",
    "batch_input_shape",
    "batch_shape",
    "input_shape",
    "shared_object_id",
    "lora_rank",
    "lora_alpha",
    "quantization_config",
    "autocast",
)
# arguments that only matter in training: initializers run when a layer is built, constraints after
# each step of the optimizer
_TRAINING = ("kernel_initializer", "bias_initializer", "kernel_constraint", "bias_constraint")
_PENALTIES = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")


@dataclass(frozen=True)
class LayerConfig:
    """Every argument of Keras' Conv3D, checked in the order of Keras 3 and converted to one form.

    filters : int               output channels
    kernel_size, strides, dilation_rate : int or 3 ints     along D, H, W
    padding : str               "valid" or "same"
    data_format : str or None   "channels_last" or "channels_first"; None: the value in keras.json,
                                else channels_last
    groups : int                must divide filters and input channels
    activation, kernel_initializer, ... : identifiers for `get` of their catalogues
    dtype : str or None         a dtype or a dtype policy of Keras; None: the value in keras.json,
                                else float32
    seed : int or None          for initializers without a seed; kernel and bias get different ones
    then : activations          of the layers that follow this one, in order; not in Keras' config
    pads : 3 (before, after)    zeros that ZeroPadding3D layers before this one add along D, H, W;
                                not in Keras' config
    notes : tuple of str        parts of the config that were ignored
    Raises: SpecError (a ValueError), with the facts of Keras' messages.

    >>> config = LayerConfig(filters=4, kernel_size=3, activation="relu", padding="SAME")
    >>> config.kernel_size, config.padding, config.activation.name
    ((3, 3, 3), 'same', 'relu')
    """

    filters: int
    kernel_size: Triple
    strides: Triple = (1, 1, 1)
    padding: str = "valid"
    data_format: str | None = None
    dilation_rate: Triple = (1, 1, 1)
    groups: int = 1
    activation: Activation | None = None
    use_bias: bool = True
    kernel_initializer: Initializer | None = field(default_factory=initializers.GlorotUniform)
    bias_initializer: Initializer | None = field(default_factory=initializers.Zeros)
    kernel_regularizer: Regularizer | None = None
    bias_regularizer: Regularizer | None = None
    activity_regularizer: Regularizer | None = None
    kernel_constraint: Constraint | None = None
    bias_constraint: Constraint | None = None
    name: str | None = None
    dtype: str | None = None
    seed: int | None = field(default=None, compare=False)
    trainable: bool = True
    then: tuple[Activation, ...] = ()
    pads: Pads = NO_PADS
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        def assign(key: str, value: Any) -> None:
            object.__setattr__(self, key, value)

        assign("seed", initializers.RandomNormal(seed=self.seed).seed)
        for key in ("kernel_size", "strides", "dilation_rate"):
            assign(key, triple(getattr(self, key), key))
        assign("padding", _padding(self.padding))
        assign("data_format", standard_data_format(self.data_format))
        assign("activation", activations.get(self.activation))
        for key, get in (
            ("kernel_initializer", initializers.get),
            ("bias_initializer", initializers.get),
            ("kernel_regularizer", regularizers.get),
            ("bias_regularizer", regularizers.get),
            ("activity_regularizer", regularizers.get),
            ("kernel_constraint", constraints.get),
            ("bias_constraint", constraints.get),
        ):
            value = getattr(self, key)
            if get is initializers.get:
                seed = None if self.seed is None else derived_seed(self.seed, key.partition("_")[0])
                assign(key, initializers.get(value, seed=seed))
            else:
                assign(key, get(value))
        assign("filters", _positive(self.filters, "filters"))
        assign("groups", _positive(self.groups, "groups"))
        if self.filters % self.groups:
            raise SpecError(
                "the number of filters must be evenly divisible by the number of groups, "
                f"received groups={self.groups}, filters={self.filters}"
            )
        self.spec()  # refuses strides > 1 with dilation > 1, and pads that do not fit
        for key in ("use_bias", "trainable"):
            if not isinstance(getattr(self, key), bool):
                raise SpecError(f"{key} must be true or false, received {getattr(self, key)!r}")
        assign("name", "conv3d" if self.name is None else str(self.name))
        assign("dtype", _policy(self.dtype))
        assign("then", tuple(activations.get(a) for a in self.then))

    # ----------------------------------------------------------------------------------------------

    def spec(self) -> ConvSpec:
        """The layer's geometry, with the zeros of padding layers before it.

        Raises: SpecError if these zeros cannot be combined with the layer's own padding.
        >>> spec = LayerConfig(2, 3, padding="same").spec()
        >>> spec.resolve((1, 6, 6, 7, 1), (3, 3, 3, 1, 2)).out_size
        (6, 6, 7)
        """
        return ConvSpec(
            strides=self.strides,
            padding=joined_padding(
                self.pads, self.padding, self.kernel_size, self.strides, self.dilation_rate
            ),
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            filters=self.filters,
        )

    @property
    def variable_dtype(self) -> str:
        """The dtype of the weights (float32 under a mixed policy)."""
        return DTYPES[str(self.dtype)]

    def kernel_shape(self, in_channels: int) -> tuple[int, int, int, int, int]:
        """The shape (kd, kh, kw, in_channels / groups, filters) of the kernel, in any data format.

        Raises: ShapeError if groups do not divide the channels.
        >>> LayerConfig(4, (1, 2, 3), groups=2).kernel_shape(6)
        (1, 2, 3, 3, 4)
        """
        if in_channels % self.groups:
            raise ShapeError(
                "the number of input channels must be evenly divisible by the number of groups, "
                f"received groups={self.groups}, but the input has {in_channels} channels"
            )
        return (*self.kernel_size, in_channels // self.groups, self.filters)

    def initial_weights(self, in_channels: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The kernel and bias that the initializers draw; the bias is None without `use_bias`.

        For an initializer of None both are drawn by glorot_uniform, as in Keras. bfloat16 weights
        are returned as float32.
        Raises: ShapeError if groups do not divide the channels, or for a shape that an initializer
            cannot fill.
        >>> kernel, bias = LayerConfig(4, 3, seed=1).initial_weights(2)
        >>> kernel.shape, bias.tolist()
        ((3, 3, 3, 2, 4), [0.0, 0.0, 0.0, 0.0])
        """
        dtype = "float32" if self.variable_dtype == "bfloat16" else self.variable_dtype

        def draw(purpose: str, shape: Sequence[int]) -> NDArray[Any]:
            initializer = getattr(self, f"{purpose}_initializer")
            if initializer is None:
                seed = None if self.seed is None else derived_seed(self.seed, purpose)
                initializer = initializers.GlorotUniform(seed=seed)
            try:
                return np.asarray(initializer(shape, dtype))
            except ShapeError as error:
                raise ShapeError(f"{purpose}_initializer: {error}") from error

        kernel = draw("kernel", self.kernel_shape(in_channels))
        return kernel, draw("bias", (self.filters,)) if self.use_bias else None

    # ----------------------------------------------------------------------------------------------

    @classmethod
    def from_keras(
        cls, config: Mapping[str, Any], keras2: bool = False, trained: bool = False
    ) -> LayerConfig:
        """The layer of a config of Keras 2 or 3.

        config : dict       of `get_config()`, or the dict around it with class_name and config, or
                            a TOML table with the same keys
        keras2 : bool       hard_sigmoid is that of Keras 2 (the config of a layer does not tell)
        trained : bool      the weights come from elsewhere: ignore initializers and constraints,
                            which only matter in training, and unknown regularizers
        Raises: SpecError for unknown or missing keys, and for arguments that the class refuses.
        >>> config = {"filters": 2, "kernel_size": [3, 3, 3]}
        >>> LayerConfig.from_keras({"class_name": "Conv3D", "config": config}).filters
        2
        """
        if not isinstance(config, Mapping):
            raise SpecError(f"the config of a layer must be a table, received {config!r}")
        if "class_name" in config:
            if class_of(config) not in CONV3D:
                raise SpecError(
                    f"a layer of class {class_of(config)} is no Conv3D; give a Conv3D layer"
                )
            config = _inner(config)
        known = [f.name for f in fields(cls) if f.name not in ("then", "pads", "notes")]
        values = {key: value for key, value in config.items() if key not in _IGNORED}
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise SpecError(f"unrecognized keyword arguments passed to Conv3D: '{key}'{hint}")
        missing = [key for key in ("filters", "kernel_size") if key not in values]
        if missing:
            raise SpecError(f"a Conv3D layer needs {' and '.join(missing)}; add them to its config")
        if keras2 and "activation" in values:
            values["activation"] = as_keras2(activations.get(values["activation"]))
        return cls(notes=_drop_training(values) if trained else (), **values)

    def to_keras(self) -> dict[str, Any]:
        """The dict of Keras 3's `get_config()`, of values that JSON can hold.

        `then` and `pads` are not in it; see `write_model`.
        Raises: SpecError if an argument is a Python function.
        >>> layer = LayerConfig(2, 3, activation="gelu")
        >>> config = layer.to_keras()
        >>> config["kernel_size"], config["activation"], LayerConfig.from_keras(config) == layer
        ([3, 3, 3], 'gelu', True)
        """
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": dtype_policy(str(self.dtype)),
            "filters": self.filters,
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": list(self.dilation_rate),
            "groups": self.groups,
            "activation": activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": constraints.serialize(self.kernel_constraint),
            "bias_constraint": constraints.serialize(self.bias_constraint),
        }


def standard_data_format(value: str | None) -> str:
    """A data format in lower case; for None the value in keras.json, else channels_last.

    Raises: SpecError for another format; ConfigError for a keras.json that Keras refuses.
    >>> standard_data_format("Channels_First")
    'channels_first'
    """
    if value is None:
        return settings().image_data_format
    text = str(value).lower()
    if text not in DATA_FORMATS:
        raise SpecError(
            "the data_format argument must be one of 'channels_first', 'channels_last', received "
            f"data_format={value!r}"
        )
    return text


def _padding(value: Any) -> str:
    text = value.lower() if isinstance(value, str) else value
    if text == "causal":
        raise SpecError(
            "the padding argument must be one of 'valid', 'same', received 'causal', which is only "
            "for Conv1D"
        )
    if not isinstance(text, str) or text not in ("valid", "same"):
        raise SpecError(f"the padding argument must be one of 'valid', 'same', received {value!r}")
    return text


def _positive(value: Any, name: str) -> int:
    # Keras takes 2.0 for 2
    whole = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or value <= 0:
        if name == "groups":
            raise SpecError(
                f"the number of groups must be a positive integer, received groups={value!r}"
            )
        raise SpecError(
            f"invalid value for argument {name}: expected a strictly positive whole number, "
            f"received {name}={value!r}"
        )
    return int(value)


def _policy(value: Any) -> str:
    """The name of a dtype policy: of a string, a dtype, a policy, or Keras' dict; None is
    keras.json's.
    """
    if value is None:
        return settings().floatx
    if isinstance(value, Mapping):
        # {"class_name": "DTypePolicy" or "Policy", "config": {"name": ...}}
        config = value.get("config")
        value = config.get("name") if isinstance(config, Mapping) else value
    if isinstance(value, (np.dtype, type)):
        value = np.dtype(value).name
    if not isinstance(value, str):
        value = getattr(value, "name", value)
    if not isinstance(value, str) or value not in DTYPES:
        raise SpecError(f"dtype must be one of {', '.join(DTYPES)}, received {value!r}")
    return value


def _inner(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config within the dict of a layer. Raises: SpecError."""
    config = layer.get("config", {})
    if not isinstance(config, Mapping):
        raise SpecError(
            f"the config of {layer.get('class_name')} must be a table, received {config!r}"
        )
    return config


def _drop_training(values: dict[str, Any]) -> tuple[str, ...]:
    """Remove the arguments that only matter in training from `values`.

    Penalties stay, since they are reported, unless they are unknown or cannot be summed over slabs.
    Returns notes on the penalties removed.
    """
    for key in _TRAINING:
        values.pop(key, None)
    notes = []
    for key in _PENALTIES:
        try:
            penalty = regularizers.get(values.get(key))
        except SpecError as error:
            reason = str(error).partition(";")[0]
        else:
            if key != "activity_regularizer" or penalty is None or penalty.additive:
                continue
            reason = f"{type(penalty).__name__} is no plain sum over voxels"
        del values[key]
        notes.append(
            f"layer {values.get('name', 'conv3d')}: its {key} is left out, which changes no output "
            f"({reason})"
        )
    return tuple(notes)


def as_keras2(activation: Activation) -> Activation:
    """The activation of the same name in Keras 2."""
    if activation == activations.get("hard_sigmoid"):
        return activations.get("hard_sigmoid:keras2=true")
    return activation


# --------------------------------------------------------------------------------------------------
# Models


class NoChain(SpecError):
    """A model is more, or other, than a chain of Conv3D layers."""


ACTIVATION_LAYERS = ("Activation", *(name for name in activations.LAYERS))


def read_model(model: Mapping[str, Any], trained: bool = False) -> list[LayerConfig]:
    """The Conv3D layers of a model, in order.

    model : dict        the parsed `model.to_json()` of Keras 2 or 3: of a Sequential model, of a
                        functional model whose layers form a chain, or of a single Conv3D layer; or
                        `get_config()` of one of them
    trained : bool      the weights come from elsewhere, see `LayerConfig.from_keras`
    Activation layers become `then` of the layer before them, ZeroPadding3D layers `pads` of the
    layer after them. Dropout, noise and Identity layers are ignored: Keras applies a model without
    them.
    Raises: NoChain for layers of other classes, branches, an activation before the first Conv3D,
        and padding that no Conv3D can include; SpecError for a layer that is wrong in any model.

    >>> relu = {"class_name": "ReLU", "config": {"max_value": 6.0}}
    >>> conv = {"class_name": "Conv3D", "config": {"filters": 2, "kernel_size": 3}}
    >>> layers = read_model({"class_name": "Sequential", "config": {"layers": [conv, relu]}})
    >>> [layer.then[0].text for layer in layers]
    ['relu:max_value=6.0']
    """
    model = _with_class(model)
    keras2 = is_keras2(model)
    convolutions: list[LayerConfig] = []
    padding: list[Mapping[str, Any]] = []  # padding layers since the last Conv3D
    for layer in _chain(model):
        config, class_name, name = _inner(layer), class_of(layer), name_of(layer)
        if class_name in CONV3D:
            convolution = LayerConfig.from_keras(layer, keras2, trained)
            if padding:
                convolution = _with_pads(convolution, padding, name, config.get("data_format"))
            convolutions.append(convolution)
            padding = []
        elif class_name in PADDING:
            padding.append(layer)
        elif class_name in ACTIVATION_LAYERS:
            activation = activations.get(layer)
            if keras2:
                activation = as_keras2(activation)
            if activation.is_linear:
                continue
            if not convolutions:
                raise NoChain(
                    f"the model begins with {class_name} '{name}'; an activation must come after a "
                    "Conv3D layer"
                )
            if padding and not _keeps_zeros(activation):
                raise NoChain(
                    f"layer '{name}', {activation.text}, makes other numbers of the zeros that "
                    f"layer '{name_of(padding[-1])}' adds before it, so the two cannot be joined "
                    "with Conv3D layers"
                )
            last = convolutions[-1]
            convolutions[-1] = replace(last, then=(*last.then, activation))
        elif class_name not in PASSIVE:
            understood = ", ".join(("Conv3D", *ACTIVATION_LAYERS, *PADDING, *PASSIVE))
            raise NoChain(f"layer '{name}' is of class {class_name}; understood are {understood}")
    if padding:
        raise NoChain(
            f"layer '{name_of(padding[-1])}' is of class {class_of(padding[-1])} and no Conv3D "
            "layer follows it"
        )
    if not convolutions:
        raise NoChain("the model has no Conv3D layer; give a model with at least one")
    return convolutions


def _with_pads(
    convolution: LayerConfig, padding: Sequence[Mapping[str, Any]], name: str, data_format: Any
) -> LayerConfig:
    """The convolution with the zeros of padding layers before it.

    name, data_format : of the convolution, as its config has them
    Raises: NoChain if they cannot be combined with the convolution's own padding.
    """
    try:
        return replace(convolution, pads=pads_of(padding, data_format))
    except SpecError as error:
        names = ", ".join(f"'{name_of(before)}'" for before in padding)
        raise NoChain(f"layer '{name}' cannot be joined with {names} before it: {error}") from None


def _with_class(model: Any) -> Mapping[str, Any]:
    """The dict with class_name and config of a model or layer.

    The class of a `get_config()` alone is inferred from its keys. Raises: SpecError if none fits.
    """
    if isinstance(model, Mapping) and isinstance(model.get("class_name"), str):
        return model
    if isinstance(model, Mapping) and "class_name" not in model:
        if "layers" in model:
            return {
                "class_name": "Functional" if "output_layers" in model else "Sequential",
                "config": model,
            }
        if "kernel_size" in model and "groups" in model:
            return {"class_name": "Conv3D", "config": model}
        if "kernel_size" in model:  # a Conv3DTranspose has all keys but this one
            raise SpecError(
                "a config with kernel_size but without groups may be a Conv3D's or a "
                "Conv3DTranspose's get_config(); write "
                '{"class_name": "Conv3D", "config": ...} around it'
            )
    raise SpecError(
        "a model must be a table with class_name and config, as model.to_json() writes it, "
        f"received {model!r:.80}"
    )


def _keeps_zeros(activation: Activation) -> bool:
    """Whether an activation maps 0 to 0, so that it can come before zeros are added."""
    return activation.kind == "voxel" and not np.any(activation(np.zeros(1)))


def write_model(layers: Iterable[LayerConfig], name: str = "sequential") -> dict[str, Any]:
    """Keras 3's dict of a Sequential model of these layers, with their padding and activations.

    name : str      of the model
    Raises: SpecError if an argument of a layer is a Python function.

    >>> model = write_model([LayerConfig(2, 3, then=("relu",))])
    >>> [layer["class_name"] for layer in model["config"]["layers"]]
    ['Conv3D', 'Activation']
    """
    written: list[dict[str, Any]] = []
    for layer in layers:
        if layer.pads != NO_PADS:
            words = {
                "name": f"{layer.name}_pad",
                "trainable": True,
                "dtype": dtype_policy(str(layer.dtype)),
            }
            words |= {
                "padding": [list(pair) for pair in layer.pads],
                "data_format": layer.data_format,
            }
            written.append(keras_dict("keras.layers", "ZeroPadding3D", words))
        written.append(keras_dict("keras.layers", "Conv3D", layer.to_keras()))
        for number, activation in enumerate(layer.then):
            stored = activations.serialize(activation)
            if isinstance(stored, str) or stored["module"] != "keras.layers":
                words = {
                    "name": f"{layer.name}_activation_{number}",
                    "trainable": True,
                    "dtype": dtype_policy("float32"),
                }
                stored = keras_dict("keras.layers", "Activation", {**words, "activation": stored})
            elif activation.layer is None:  # two layers need different names
                stored["config"]["name"] = f"{layer.name}_{stored['config']['name']}_{number}"
            written.append(stored)
    words = {"name": name, "trainable": True, "dtype": dtype_policy("float32")}
    return keras_dict("keras", "Sequential", {**words, "layers": written})


def is_keras2(model: Mapping[str, Any]) -> bool:
    """Whether Keras 2 wrote the JSON of a model.

    >>> is_keras2({"class_name": "Sequential", "config": {}, "keras_version": "2.15.0"})
    True
    """
    version = str(model.get("keras_version", ""))
    return version.startswith("2.") or _has_key(model, "batch_input_shape")


def _has_key(value: Any, key: str) -> bool:
    """Whether a dict, or any dict within it, has a key."""
    if isinstance(value, Mapping):
        return key in value or any(_has_key(v, key) for v in value.values())
    return isinstance(value, (list, tuple)) and any(_has_key(v, key) for v in value)


def _chain(model: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The layers of a model in the order of application, including those of models within it.

    Raises: NoChain if they form none, SpecError for what is no model.
    """
    class_name = class_of(model)
    if class_name not in MODELS:
        yield model
        return
    config = model.get("config", {})
    # in old versions of Keras 2 the config is the list itself
    layers = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(layers, (list, tuple)) or not all(
        isinstance(layer, Mapping) and isinstance(layer.get("class_name"), str) for layer in layers
    ):
        raise SpecError(
            f"the config of {class_name} must hold a list of layers, each with its class_name"
        )
    if class_name != "Sequential":
        layers = _in_order(layers, config)
    for layer in layers:
        yield from _chain(layer)


def _in_order(
    layers: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The layers of a functional model from its input to its output.

    Raises: NoChain if they form none.
    """
    by_name = {str(layer.get("name", _inner(layer).get("name"))): layer for layer in layers}
    following: dict[str, str] = {}  # name of a layer -> name of the next one
    first = []
    for name, layer in by_name.items():
        sources = list(source_names(layer.get("inbound_nodes", [])))
        if not sources:
            first.append(name)
            continue
        if len(sources) > 1:
            raise NoChain(
                f"the model is no chain: layer '{name}' has {len(sources)} inputs, "
                f"{', '.join(sources)}"
            )
        if sources[0] in following:
            raise NoChain(
                f"the model is no chain: layers '{following[sources[0]]}' and '{name}' both follow "
                f"'{sources[0]}'"
            )
        following[sources[0]] = name
    if len(first) != 1:
        raise NoChain(
            f"the model is no chain: it begins with {len(first)} layers {', '.join(first)}".rstrip()
        )
    order = first
    while order[-1] in following and len(order) <= len(by_name):
        order.append(following[order[-1]])
    outputs = set(output_names(config.get("output_layers", [])))
    if len(order) != len(by_name) or (outputs and outputs != {order[-1]}):
        output = ", ".join(sorted(outputs))
        raise NoChain(f"the model is no chain from '{order[0]}' to its output {output}".rstrip())
    return [by_name[name] for name in order]

"""Read Keras models as networks: the JSON of Sequential and functional models, and their weights.

Nested models are part of the graph of the model around them. A layer that is used several times
becomes a node for each use. Layers that only act in training are left out.
Source: Keras 3, keras/src/models/functional.py and keras/src/ops/function.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import FormatError, SpecError, setting
from conv3d_cli.kernels.weights.keras import to_snake_case
from conv3d_cli.kernels.weights.legacy import LORA, merge_lora
from conv3d_cli.layer import activations
from conv3d_cli.layer.config import as_keras2, is_keras2
from conv3d_cli.model.keras_json import (
    CONV3D,
    MODELS,
    PASSIVE,
    class_of,
    layers_of,
    name_of,
)
from conv3d_cli.network.graph import Names, Network, Node
from conv3d_cli.network.keras_weights import KerasWeights, read_weights
from conv3d_cli.network.operations.catalogue import LAYERS

Config = Mapping[str, Any]
Weights = Mapping[str, NDArray[Any]]

_LAYER_NAMES = {
    **{name: name for name in LAYERS},
    **dict.fromkeys(CONV3D, "Conv3D"),
    "Convolution3DTranspose": "Conv3DTranspose",
    "MaxPool3D": "MaxPooling3D",
    "AvgPool3D": "AveragePooling3D",
    "GlobalMaxPool3D": "GlobalMaxPooling3D",
    "GlobalAvgPool3D": "GlobalAveragePooling3D",
    "SyncBatchNormalization": "BatchNormalization",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
}
_PASSIVE = (*PASSIVE, "SpatialDropout1D", "SpatialDropout2D", "ActivityRegularization")
# Keras' own operations on tensors (a + b), by the class of their layer
_TENSOR_OPERATIONS = {
    "Add": "Add",
    "Subtract": "Subtract",
    "Multiply": "Multiply",
    "TrueDivide": "Divide",
    "Divide": "Divide",
    "Maximum": "Maximum",
    "Minimum": "Minimum",
}
_JOINS = {*_TENSOR_OPERATIONS.values(), "Average"} - {"Divide"}
# the arguments of a layer that its operation takes, by operation; the others only act in training,
# or are read below
_ARGUMENTS = {
    "Conv3D": (
        "filters", "kernel_size", "strides", "padding", "dilation_rate", "groups", "activation",
        "use_bias",
    ),
    "Conv3DTranspose": (
        "filters", "kernel_size", "strides", "padding", "output_padding", "dilation_rate",
        "groups", "activation", "use_bias",
    ),
    "Dense": ("units", "activation", "use_bias"),
    "BatchNormalization": ("epsilon", "center", "scale"),
    "GroupNormalization": ("groups", "epsilon", "center", "scale"),
    "LayerNormalization": ("epsilon", "center", "scale"),
    "Normalization": ("mean", "variance", "invert"),
    "Rescaling": ("scale", "offset"),
    "MaxPooling3D": ("pool_size", "strides", "padding"),
    "AveragePooling3D": ("pool_size", "strides", "padding"),
    "UpSampling3D": ("size",),
    "ZeroPadding3D": ("padding",),
    "Cropping3D": ("cropping",),
    "Reshape": ("target_shape",),
    "Permute": ("dims",),
}  # fmt: skip
# the variables of a layer in the order of Keras 3's files; those after a condition are there if the
# argument of that name is true, as it is by default
_VARIABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "Conv3D": (("kernel", ""), ("bias", "use_bias")),
    "Conv3DTranspose": (("kernel", ""), ("bias", "use_bias")),
    "Dense": (("kernel", ""), ("bias", "use_bias")),
    "BatchNormalization": (
        ("gamma", "scale"), ("beta", "center"), ("moving_mean", ""), ("moving_variance", ""),
    ),
    "GroupNormalization": (("gamma", "scale"), ("beta", "center")),
    "LayerNormalization": (("gamma", "scale"), ("beta", "center")),
    "Normalization": (("mean", ""), ("variance", ""), ("count", "")),
    "PReLU": (("alpha", ""),),
}  # fmt: skip
# arguments of a call that decide what a layer does; others are names of masks
_TRAINED_ONLY = ("BatchNormalization", *PASSIVE)
_RANK_OF_VOLUMES = 5


def read_keras_network(
    model: Config, weights: KerasWeights | None, files: tuple[str, ...] = ()
) -> Network:
    """The network of a Keras model.

    model : dict                parsed `model.to_json()`, of Keras 2 or 3
    weights : KerasWeights or None      of its layers; None: it has none, and layers with weights
                                        are refused
    files : tuple of str        paths that both were read from
    Raises: SpecError for layers that are not understood, FormatError for weights that are not those
        of the model.
    """
    reader = _Reader(weights, is_keras2(model), data_format=_data_format(model))
    taken = reader.model(model, (), "", None)
    config = model.get("config")
    given = config.get("output_layers") if isinstance(config, Mapping) else None
    keys = sorted(map(str, given)) if isinstance(given, Mapping) else []
    outputs = {}
    for number, tensor in enumerate(taken):
        name = tensor.name.partition("/")[0] if len(taken) > 1 else tensor.name
        name = keys[number] if len(keys) == len(taken) else name
        outputs[name if name not in outputs else tensor.name] = tensor.name
    nodes = list(reader.nodes)
    for name, node in list(outputs.items()):
        if node in reader.inputs:  # a model that returns its input
            outputs[name] = reader.names.take(f"{node}/output")
            nodes.append(Node(outputs[name], "Identity", (node,)))
    return Network(
        nodes,
        inputs=reader.inputs,
        outputs=outputs,
        data_format=reader.data_format,
        files=files,
        notes=tuple(reader.notes),
    )


def _every_entry(model: Config) -> Iterator[tuple[Config, Config]]:
    """A model and all layers within it, each with its config."""
    pending = [model]
    while pending:
        entry = pending.pop()
        pending += layers_of(entry)
        config = entry.get("config")
        yield entry, config if isinstance(config, Mapping) else {}


def require_unquantized(model: Config) -> None:
    """Refuse a model with a layer whose weights are quantized. Raises: SpecError."""
    for entry, config in _every_entry(model):
        policy = config.get("dtype")
        inner = policy.get("config") if isinstance(policy, Mapping) else None
        mode = inner.get("mode") if isinstance(inner, Mapping) else None
        if mode is not None:
            raise SpecError(
                f"layer '{name_of(entry)}' ({class_of(entry)}) is quantized ({mode!s:.40}), which "
                "is not computed: save the model before Keras' quantize()"
            )


def _data_format(model: Config) -> str | None:
    """The data_format of all layers that have one. Raises: SpecError for two."""
    found: dict[str, str] = {}  # data format -> a layer that has it
    for entry, config in _every_entry(model):
        own = config.get("data_format")
        if isinstance(own, str):
            found.setdefault(own, name_of(entry))
    if len(found) > 1:
        told = " and ".join(f"{own} (layer '{name}')" for own, name in sorted(found.items()))
        raise SpecError(f"all layers must have the same data_format, received {told}")
    return next(iter(found), None)


@dataclass(frozen=True)
class _Tensor:
    """An output of a node, or an input of the network.

    rank : int      axes of Keras' tensor, the batch among them
    """

    name: str
    rank: int = _RANK_OF_VOLUMES


@dataclass
class _Reader:
    """Reads one model and the models within it."""

    weights: KerasWeights | None
    keras2: bool
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, int | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data_format: str | None = None
    names: Names = field(default_factory=Names)

    def model(
        self, model: Config, above: tuple[str, ...], group: str, given: Sequence[_Tensor] | None
    ) -> list[_Tensor]:
        """Add the nodes of a model; returns its outputs.

        above : tuple of str        names of the models around it
        group : str                 prefix of the groups of its layers
        given : sequence or None    what it takes; None: it is the outermost, and takes inputs
        """
        class_name = class_of(model)
        if class_name not in MODELS:
            layer = _Layer(model, above, group or to_snake_case(str(model["class_name"])))
            return [self._apply(layer, list(given or [self._input("volume", None)]), {}, 1)]
        layers = self._layers(model, above, group)
        if class_name == "Sequential":
            return self._sequential(layers, given)
        return self._functional(model, layers, above, given)

    def _layers(self, model: Config, above: tuple[str, ...], group: str) -> list[_Layer]:
        config = model.get("config", {})
        listed = config.get("layers") if isinstance(config, Mapping) else config
        found = layers_of(model)
        if not isinstance(listed, list) or len(found) != len(listed) or not found:
            raise SpecError(
                f"the config of {class_of(model)} must hold a list of layers, each with its "
                "class_name and config"
            )
        used: dict[str, int] = {}
        layers = []
        for layer in found:
            own = to_snake_case(str(layer["class_name"]))
            number = used[own] = used.get(own, -1) + 1
            layers.append(
                _Layer(layer, above, f"{group}{own}_{number}" if number else f"{group}{own}")
            )
        return layers

    def _sequential(self, layers: list[_Layer], given: Sequence[_Tensor] | None) -> list[_Tensor]:
        if given is None:
            first = layers[0]
            name = first.name if first.class_name == "InputLayer" else "volume"
            tensor = self._input(name, first.config, layers)
        else:
            (tensor,) = given
        for layer in layers:
            if layer.class_name != "InputLayer":
                tensor = self._one(layer, [tensor], {}, 1)
        return [tensor]

    def _functional(
        self,
        model: Config,
        layers: list[_Layer],
        above: tuple[str, ...],
        given: Sequence[_Tensor] | None,
    ) -> list[_Tensor]:
        """Follow a functional model's graph from its outputs, so that the order does not matter."""
        config = model["config"]
        by_name = {layer.name: layer for layer in layers}
        made: dict[tuple[str, int], list[_Tensor]] = {}
        ends = list(_references(config.get("input_layers", [])))
        if given is not None:
            if len(ends) != len(given):
                raise SpecError(
                    f"the model '{above[-1]}' takes {len(ends)} inputs, received {len(given)}"
                )
            for (name, _, _), tensor in zip(ends, given, strict=True):
                made[name, 0] = [tensor]
        else:
            for name, _, _ in ends:
                if name not in by_name:
                    raise SpecError(f"the model has no input layer '{name}'")
                made[name, 0] = [self._input(name, by_name[name].config, layers)]
        calls = {layer.name: layer.calls for layer in layers}
        # a model within another counts its own making as its first call
        wanted: dict[str, int] = {}
        outputs = list(_references(config.get("output_layers", [])))
        everywhere = [r for one in calls.values() for call in one for r in call.references]
        for name, number, _ in [*everywhere, *outputs]:
            wanted[name] = max(wanted.get(name, 0), number)
        shift = {
            name: max(0, wanted.get(name, 0) + 1 - len(one)) for name, one in calls.items() if one
        }
        pending = [(name, call) for name, call, _ in reversed(outputs)]
        on_the_way: set[tuple[str, int]] = set()
        while pending:
            name, number = pending[-1]
            if (name, number) in made:
                pending.pop()
                continue
            if name not in by_name:
                raise SpecError(f"the model has no layer '{name}', whose output it uses")
            own = number - shift.get(name, 0)
            if not 0 <= own < len(calls[name]):
                raise SpecError(f"layer '{name}' is used as if it were called {number + 1} times")
            call = calls[name][own]
            missing = [(source, n) for source, n, _ in call.references if (source, n) not in made]
            if missing:
                if (name, number) in on_the_way:
                    raise SpecError(
                        "the network has a cycle, so no node of it can be computed first: layer "
                        f"'{name}' needs its own output"
                    )
                on_the_way.add((name, number))
                pending += reversed(missing)
                continue
            pending.pop()
            taken = [_pick(made, reference) for reference in call.references]
            made[name, number] = self._several(by_name[name], taken, call, own + 1)
        return [_pick(made, reference) for reference in outputs]

    def _several(
        self, layer: _Layer, taken: list[_Tensor], call: _Call, number: int
    ) -> list[_Tensor]:
        """The outputs of one call of a layer or of a model within the model."""
        if layers_of(layer.entry):
            label = layer.names if number == 1 else (*layer.names[:-1], f"{layer.name}#{number}")
            return self.model(layer.entry, label, f"{layer.group}/", taken)
        return [self._one(layer, taken, call.arguments, number, call.constants)]

    def _one(
        self,
        layer: _Layer,
        taken: list[_Tensor],
        arguments: Mapping[str, Any],
        number: int,
        constants: Sequence[Any] = (),
    ) -> _Tensor:
        if layers_of(layer.entry):
            (tensor,) = self.model(layer.entry, layer.names, f"{layer.group}/", taken)
            return tensor
        return self._apply(layer, taken, arguments, number, constants)

    def _input(self, name: str, config: Config | None, layers: Sequence[_Layer] = ()) -> _Tensor:
        """A new input of the network, with the channels that the model tells."""
        own = config or {}
        shape = own.get("batch_shape", own.get("batch_input_shape"))
        if shape is None and layers:
            shape = layers[0].config.get("batch_input_shape")
        channels = None
        if isinstance(shape, (list, tuple)) and len(shape) == _RANK_OF_VOLUMES:
            channels = shape[1 if self.data_format == "channels_first" else -1]
        self.inputs[name] = channels if isinstance(channels, int) else None
        self.names.take(name)
        return _Tensor(name)

    # ----------------------------------------------------------------------------------------------

    def _apply(
        self,
        layer: _Layer,
        taken: list[_Tensor],
        arguments: Mapping[str, Any],
        number: int,
        constants: Sequence[Any] = (),
    ) -> _Tensor:
        """Add the node of a call of a layer; returns its output."""
        class_name = layer.class_name
        if not taken:
            raise SpecError(f"layer '{layer.title}' ({class_name}) is used without an input")
        if arguments.get("training") and class_name in _TRAINED_ONLY:
            raise SpecError(
                f"layer '{layer.title}' ({class_name}) is called with training=True, so it acts as "
                "in training; call it without"
            )
        if class_name in _PASSIVE:
            return taken[0]
        name = self.names.take(layer.title if number == 1 else f"{layer.title}#{number}")
        node, rank = self._node(layer, name, taken, constants)
        self.nodes.append(node)
        return _Tensor(name, rank)

    def _node(
        self, layer: _Layer, name: str, taken: list[_Tensor], constants: Sequence[Any]
    ) -> tuple[Node, int]:
        """The node of a layer, and the rank of its output."""
        class_name, config = layer.class_name, layer.config
        inputs, rank = tuple(t.name for t in taken), max((t.rank for t in taken), default=5)
        if layer.is_tensor_operation:
            return self._tensor_operation(layer, name, inputs, rank, constants), rank
        if class_name in ("Activation", *activations.LAYERS):
            return self._activation(layer, name, inputs, rank), rank
        operation = _LAYER_NAMES.get(class_name)
        if operation is None:
            understood = ", ".join(dict.fromkeys([*LAYERS, *activations.LAYERS, *_PASSIVE]))
            custom = (
                "" if class_name == layer.entry["class_name"] else ", whose code is not in the file"
            )
            raise SpecError(
                f"layer '{layer.title}' is of class {class_name}{custom}; understood are "
                f"{understood}"
            )
        if operation in _JOINS and len(inputs) == 1:
            raise SpecError(
                f"layer '{layer.title}' ({class_name}) joins one tensor with what the file does "
                "not tell, as a legacy .h5 file does for numbers; save the model as .keras"
            )
        keys = _ARGUMENTS.get(operation, ())
        attributes = {key: config[key] for key in keys if config.get(key) is not None}
        weights = self._weights(layer, operation)
        axis_name = f"layer '{layer.title}' ({class_name})"
        if "activation" in attributes:
            activation = self._known(attributes["activation"])
            if activation.kind == "axis" and rank == 5 and self.data_format == "channels_first":
                raise SpecError(
                    f"{axis_name} has the activation '{activation.text}', which under "
                    "channels_first runs along the width, as in Keras; use a Softmax layer with "
                    "axis=1, or channels_last"
                )
            attributes["activation"] = activation.text
        if operation in ("BatchNormalization", "GroupNormalization", "LayerNormalization"):
            self._require_channels(config.get("axis", -1), rank, axis_name, "normalizes along")
        if operation == "LayerNormalization" and config.get("rms_scaling"):
            raise SpecError(f"{axis_name} has rms_scaling, which is not taken")
        if operation == "Normalization":
            axis = config.get("axis", -1)
            if axis is not None and axis != []:
                self._require_channels(axis, rank, axis_name, "normalizes along")
            if "mean" in attributes:  # given to the layer, not learnt
                weights = {}
        if operation == "Concatenate":
            self._require_channels(config.get("axis", -1), rank, axis_name, "concatenates along")
        if operation == "Dense" and rank == 5 and self.data_format == "channels_first":
            raise SpecError(
                f"{axis_name} acts on the last axis, which under channels_first is the width; "
                "it is taken only on channels"
            )
        if operation == "PReLU" and rank == 5 and self.data_format == "channels_first":
            weights = {key: np.moveaxis(array, 0, -1) for key, array in weights.items()}
        if operation.startswith("Global") and not config.get("keepdims", False):
            rank = 2
        if operation == "Flatten":
            rank = 2
        if operation == "Reshape":
            rank = 1 + len(config.get("target_shape", ()))
            if self.data_format == "channels_first" and rank == 5:
                first, *rest = attributes["target_shape"]
                attributes["target_shape"] = [*rest, first]
        return Node(name, operation, inputs, attributes, weights), rank

    def _require_channels(self, axis: Any, rank: int, what: str, verb: str) -> None:
        """Refuse an axis other than that of the channels. Raises: SpecError."""
        axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
        channels = 1 if self.data_format == "channels_first" or rank == 2 else rank - 1
        found = [n + rank if isinstance(n, int) and n < 0 else n for n in axes]
        if found != [channels]:
            raise SpecError(
                f"{what} {verb} axis {axis}; it is taken only along the channels, axis {channels}"
            )

    def _known(self, identifier: Any) -> activations.Activation:
        activation = activations.get(identifier)
        return as_keras2(activation) if self.keras2 else activation

    def _activation(
        self,
        layer: _Layer,
        name: str,
        inputs: tuple[str, ...],
        rank: int,
        entry: Config | None = None,
    ) -> Node:
        """An activation layer; along an axis only if that is the channels'. Raises: SpecError.

        entry : dict or None    its serialized activation; None: that of the layer
        """
        activation = self._known(dict(layer.entry if entry is None else entry))
        if activation.function in activations.AXIS_ACTIVATIONS:
            what = f"layer '{layer.title}' ({layer.class_name})"
            axis = activation.config.get("axis", -1)
            self._require_channels(axis, rank, what, "runs along")
            activation = activations.get(activation.name)
        return Node(name, "Activation", inputs, {"activation": activation.text})

    def _tensor_operation(
        self,
        layer: _Layer,
        name: str,
        inputs: tuple[str, ...],
        rank: int,
        constants: Sequence[Any],
    ) -> Node:
        """An operation of Keras on tensors, or on a tensor and a number. Raises: SpecError."""
        class_name = layer.class_name
        if class_name == "Concatenate":
            what = f"layer '{layer.title}' ({class_name})"
            self._require_channels(layer.config.get("axis", -1), rank, what, "concatenates along")
            return Node(name, class_name, inputs)
        if class_name in ("Negative", "Clip") and len(inputs) == 1 and not constants:
            if class_name == "Negative":
                return Node(name, "Rescaling", inputs, {"scale": -1.0})
            limits = {"least": layer.config.get("x_min"), "largest": layer.config.get("x_max")}
            if all(_is_number(value) for value in limits.values()):
                return Node(name, class_name, inputs, limits)
        function = to_snake_case(class_name)
        if function in {one.__name__ for one in activations.ACTIVATIONS} and not constants:
            config = {key: value for key, value in layer.config.items() if key != "name"}
            entry = {"class_name": function, "config": config}
            return self._activation(layer, name, inputs, rank, entry)
        operation = _TENSOR_OPERATIONS.get(class_name)
        if operation is None:
            raise SpecError(
                f"layer '{layer.title}' is Keras' operation {layer.class_name} on tensors; "
                f"understood are {', '.join(_TENSOR_OPERATIONS)}, Negative, Clip, Concatenate, and "
                "activations"
            )
        if not constants:
            return Node(name, operation, inputs)
        value, is_first = constants[0]
        number = _is_number(value)
        if operation in ("Maximum", "Minimum") and number and len(constants) == 1:
            limit = {"Maximum": "least", "Minimum": "largest"}[operation]
            return Node(name, "Clip", inputs, {limit: value})
        scales = {
            ("Add", False): (1.0, value),
            ("Add", True): (1.0, value),
            ("Subtract", False): (1.0, -value if number else 0),
            ("Subtract", True): (-1.0, value),
            ("Multiply", False): (value, 0.0),
            ("Multiply", True): (value, 0.0),
            ("Divide", False): (1 / value if number and value else 0, 0.0),
        }
        if len(constants) > 1 or not number or (operation, is_first) not in scales:
            raise SpecError(
                f"layer '{layer.title}' is Keras' operation {layer.class_name} of a tensor and "
                f"{value!r:.40}; it is taken of tensors, or of a tensor and a number"
            )
        scale, offset = scales[operation, is_first]
        return Node(name, "Rescaling", inputs, {"scale": scale, "offset": offset})

    def _weights(self, layer: _Layer, operation: str) -> Weights:
        """The weights of a layer by name. Raises: FormatError if others are stored."""
        variables = _VARIABLES.get(operation)
        if variables is None:
            return {}
        expected = [
            name
            for name, condition in variables
            if not condition or layer.config.get(condition, True)
        ]
        if operation == "Normalization" and layer.config.get("mean") is not None:
            expected = []
        if self.weights is None:
            if not expected:
                return {}
            raise SpecError(
                f"layer '{layer.title}' ({layer.class_name}) has weights, and the model comes "
                f"without; pass {setting('weights', 'FILE')}, or the model as .keras or .h5"
            )
        if self.weights.by_group is None:
            return self._legacy_weights(layer, expected)
        stored = self.weights.by_group.get(layer.group, {})
        numbered = [stored[key] for key in sorted(stored, key=int)] if stored else []
        if operation == "Normalization" and len(numbered) == 2:
            expected = expected[:2]  # the count is a whole number
        if len(numbered) != len(expected):
            raise FormatError(
                f"layer '{layer.title}' ({layer.class_name}) has {len(numbered)} variables in the "
                f"file, group {layer.group}, and needs {', '.join(expected) or 'none'}"
            )
        return dict(zip(expected, numbered, strict=True))

    def _legacy_weights(self, layer: _Layer, expected: list[str]) -> Weights:
        assert self.weights is not None
        outer, inner = layer.names[0].partition("#")[0], layer.name
        stored = self.weights.by_name.get((outer, inner))
        if stored is None:
            same = [own for (_, name), own in self.weights.by_name.items() if name == inner]
            stored = same[0] if len(same) == 1 else {}
        lacking = [name for name in expected if name not in stored]
        if lacking:
            raise FormatError(
                f"layer '{layer.title}' ({layer.class_name}) lacks its weights "
                f"{', '.join(lacking)} in the file"
            )
        if set(stored) >= LORA:
            kernel = merge_lora(stored.__getitem__, layer.config, layer.title)
            rest = {name: array for name, array in stored.items() if name not in LORA}
            return {**rest, "kernel": kernel}
        return stored


@dataclass(frozen=True)
class _Layer:
    """A layer in a model's JSON.

    above : tuple of str    names of the models around it
    group : str             its group in a file of Keras 3
    """

    entry: Config
    above: tuple[str, ...]
    group: str

    @property
    def name(self) -> str:
        return name_of(self.entry)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.above, self.name)

    @property
    def title(self) -> str:
        """The name with those of the models around it."""
        return "/".join(self.names)

    @property
    def class_name(self) -> str:
        return class_of(self.entry)

    @property
    def is_tensor_operation(self) -> bool:
        return ".ops." in str(self.entry.get("module", ""))

    @property
    def config(self) -> Config:
        config = self.entry["config"]
        assert isinstance(config, Mapping)
        return config

    @property
    def calls(self) -> list[_Call]:
        """The uses of the layer, or of the model, in order."""
        found = list(_calls(self.entry.get("inbound_nodes", [])))
        if not layers_of(self.entry) or not isinstance(self.entry["config"], Mapping):
            return found
        return [call.for_model(self.config.get("input_layers")) for call in found]


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float))


_Reference = tuple[str, int, int]  # name of a layer, number of its call, number of its output


@dataclass(frozen=True)
class _Call:
    """One use of a layer.

    references : tuple      the tensors that it takes, in order
    arguments : dict        the others, by keyword
    constants : tuple       (value, whether it comes before the first tensor) of positional numbers
    names : tuple of str    keys of the tensors, where they are given in a dict
    """

    references: tuple[_Reference, ...]
    arguments: Mapping[str, Any]
    constants: tuple[tuple[Any, bool], ...] = ()
    names: tuple[str, ...] = ()

    def for_model(self, inputs: Any) -> _Call:
        """The call with the tensors in the order of a model's inputs.

        inputs : object     `input_layers` of the model
        A dict gives tensors by the keys of the model's own dict of inputs, which has the same
        order, or by the names of its inputs.
        """
        wanted = [name for name, _, _ in _references(inputs)]
        if not self.names or isinstance(inputs, Mapping) or not set(wanted) <= set(self.names):
            return self
        by_name = dict(zip(self.names, self.references, strict=True))
        return replace(self, references=tuple(by_name[name] for name in wanted), names=())


def _calls(nodes: Any) -> Iterator[_Call]:
    """The uses of a layer: `inbound_nodes` of Keras 2 or 3."""
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, Mapping):  # Keras 3
            args, kwargs = node.get("args", []), node.get("kwargs", {})
            if not isinstance(kwargs, Mapping):
                raise SpecError(f"the model calls a layer with kwargs={kwargs!r:.40}")
            references = [*_references(args), *_references(list(kwargs.values()))]
            rest = {key: value for key, value in kwargs.items() if not list(_references(value))}
            constants = []
            seen = False
            for value in args if isinstance(args, list) else []:
                if list(_references(value)):
                    seen = True
                elif value is not None:
                    constants.append((value, not seen))
            every = [*(args if isinstance(args, list) else [args]), *kwargs.values()]
            given = [value for value in every if list(_references(value))]
            is_dict = len(given) == 1 and isinstance(given[0], Mapping)
            names = sorted(map(str, given[0])) if is_dict else []
            names = names if len(names) == len(references) else []
            yield _Call(tuple(references), rest, tuple(constants), tuple(names))
        else:  # Keras 2: a list of [name, call, output, kwargs], or one of these
            if not isinstance(node, list):
                raise SpecError(
                    f"the model's inbound_nodes hold {node!r:.40}, which is no call of a layer"
                )
            references = list(_references(node))
            kwargs = {}
            entries = node if node and isinstance(node[0], list) else [node]
            for entry in entries:
                if isinstance(entry, list) and len(entry) > 3 and isinstance(entry[3], Mapping):
                    kwargs.update(entry[3])
            tensors = [*_references(list(kwargs.values()))]
            rest = {key: value for key, value in kwargs.items() if not list(_references(value))}
            yield _Call((*references, *tensors), rest)


def _references(value: Any) -> Iterator[_Reference]:
    """All tensors within a JSON value, in order; those of a dict in the order of its keys.

    So Keras flattens the inputs and outputs of a model.
    """
    if isinstance(value, Mapping):
        history = value.get("keras_history")
        config = value.get("config")
        if history is None and isinstance(config, Mapping):
            history = config.get("keras_history")
        if (
            isinstance(history, (list, tuple))
            and len(history) >= 3
            and all(isinstance(n, int) for n in history[1:3])
        ):
            yield str(history[0]), int(history[1]), int(history[2])
        else:
            for key in sorted(value, key=str):
                yield from _references(value[key])
    elif isinstance(value, (list, tuple)):
        is_tensor = (
            len(value) >= 3
            and isinstance(value[0], str)
            and all(isinstance(n, int) and not isinstance(n, bool) for n in value[1:3])
        )
        if is_tensor:
            yield value[0], value[1], value[2]
        else:
            for inner in value:
                yield from _references(inner)


def _pick(made: Mapping[tuple[str, int], list[_Tensor]], reference: _Reference) -> _Tensor:
    name, call, output = reference
    found = made[name, call]
    if not 0 <= output < len(found):
        raise SpecError(f"layer '{name}' has {len(found)} outputs, and number {output} is used")
    return found[output]


def read_network(path: str, model: Config) -> Network:
    """The network in a `.keras` or legacy `.h5` file, whose JSON is known already.

    Raises: as `read_keras_network`.
    """
    require_unquantized(model)
    weights = read_weights(path)
    if weights.version and "keras_version" not in model:
        model = {**model, "keras_version": weights.version}
    return read_keras_network(model, weights, (path,))

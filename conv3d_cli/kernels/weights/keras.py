"""Keras 3 files: `.keras`, a zip of a config and weights, and `.weights.h5`, weights only.

Keras 2 writes both too. In the HDF5 part, a layer's variables are `layers/GROUP/vars/0` (kernel)
and `vars/1` (bias). GROUP is not the layer's name, but its class in snake case with a running
number in layer order. Keras 3 stores the name as an attribute of `vars`. Nested models are nested
groups: `layers/sequential/layers/conv3d`.

Source: Keras 3, keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conv3d_cli.errors import FormatError, SpecError, WriteError
from conv3d_cli.kernels.weights.hdf5 import (
    is_dataset,
    is_group,
    members,
    open_hdf5,
    read_dataset,
    text_attribute,
    walk_groups,
)
from conv3d_cli.kernels.weights.layer import (
    WEIGHTS_ONLY,
    Archive,
    Array,
    Attributes,
    OtherLayer,
    SavedLayer,
    attributes_of,
    flat_note,
    lost_arguments,
    parse_json,
    require_chain,
    require_library,
    require_match,
    suggests_transposed,
    with_smallest_dtype,
    zip_bytes,
)
from conv3d_cli.layer import activations
from conv3d_cli.model.keras_json import (
    CONVOLUTIONS,
    PADDING_RANKS,
    PASSIVE,
    class_of,
    is_layer,
    joined_padding,
    layers_of,
    lifted_config,
    name_of,
    output_names,
    pads_of,
    source_names,
)
from conv3d_cli.model.spec import Pads

# members of a .keras file
CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
PICKLED_WEIGHTS = "model.weights.npz"


def to_snake_case(name: str) -> str:
    """Convert the name of a class to snake case, as Keras names its groups.

    >>> to_snake_case("Conv3D"), to_snake_case("InputLayer"), to_snake_case("Conv3DTranspose")
    ('conv3d', 'input_layer', 'conv3d_transpose')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


# groups that contain layers, in Keras 3 and in Keras 2 before 2.13
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_NON_LAYER_GROUPS = {
    "optimizer",
    "_optimizer",
    "metrics",
    "_metrics",
    "compile_metrics",
    "seed_generator",
}
# Keras classes other than Conv3D that convolve, by group
_OTHER_CONVOLUTIONS = {
    to_snake_case(name): name
    for name in (
        "Conv1DTranspose",
        "Conv2DTranspose",
        "Conv3DTranspose",
        "ConvLSTM1D",
        "ConvLSTM2D",
        "ConvLSTM3D",
        "DepthwiseConv1D",
        "DepthwiseConv2D",
        "SeparableConv1D",
        "SeparableConv2D",
    )
}
_VERSION = "3.0.0"  # written into files: the first version that can read them


# --------------------------------------------------------------------------------------------------
# Weights


def read_weights_h5(
    root: Any, size: int, path: str, ranks: Mapping[str, int | None] | None = None
) -> dict[str, SavedLayer | OtherLayer]:
    """Read the layers of an open `.weights.h5` by group, in natural order; they have no config.

    root : h5py.File        the open file
    size : int              bytes of the file
    path : str              for messages
    ranks : mapping         group -> axes in space of its convolution, as a model's config tells
    Raises: FormatError for damaged or foreign data; ShapeError for arrays of too many elements.
    """
    contents: dict[str, SavedLayer | OtherLayer] = {}
    for group_path, group in walk_groups(root, path):
        *above, last = group_path.split("/")
        variables = (
            members(group)
            if last == "vars" and above and not _NON_LAYER_GROUPS & set(above)
            else {}
        )
        if not variables:
            continue
        short = "/".join(part for part in above if part not in _CONTAINERS)
        name = text_attribute(group, "name") or short
        what = f"layer {name}"
        aliases = tuple(alias for alias in dict.fromkeys([short, above[-1]]) if alias != name)
        rank = (ranks or {}).get(short) or _rank_of_group(above[-1]) or 3
        reason, is_convolution = _rejection(above[-1], name, variables, rank)
        if reason:
            contents[short] = OtherLayer(name, reason, is_convolution, aliases)
            continue
        kernel, bias = variables["0"], variables.get("1")
        notes: tuple[str, ...] = ()
        if rank < 3:
            notes = (flat_note(rank),)
        elif not _rank_of_group(above[-1]):
            notes = ("the file does not store its class; it is read as a Conv3D",)
        layer = SavedLayer(
            name=name,
            config=None,
            kernel=lifted_kernel(read_dataset(kernel, size, what, path)),
            bias=None if bias is None else read_dataset(bias, size, f"the bias of {what}", path),
            aliases=aliases,
            notes=notes,
        )
        contents[short] = require_match(layer, path)
    return contents


def lifted_kernel(kernel: Array) -> Array:
    """A kernel of 1 to 3 axes in space, in Keras' layout, as that of a Conv3D.

    >>> import numpy as np
    >>> lifted_kernel(np.ones((5, 7, 1, 8))).shape
    (1, 5, 7, 1, 8)
    """
    return kernel.reshape(*[1] * (5 - kernel.ndim), *kernel.shape)


def _rejection(group: str, name: str, variables: dict[str, Any], rank: int) -> tuple[str, bool]:
    """Why variables are not those of a Conv3D ("" if they are), and whether the layer convolves.

    group : str     the layer's group: its class in snake case and a number, or an attribute's name
    rank : int      axes in space of the weights, if it is a convolution
    """
    kernel, bias = variables.get("0"), variables.get("1")
    class_group = re.sub(r"_\d+$", "", group)
    if class_group in _OTHER_CONVOLUTIONS:
        return f"it is a {_OTHER_CONVOLUTIONS[class_group]}", True
    if not is_dataset(kernel, rank + 2):
        return f"it has no weights of {rank + 2} axes", is_dataset(kernel) and "conv" in group
    if set(variables) - {"0", "1"} or (bias is not None and not is_dataset(bias, 1)):
        return f"it has {len(variables)} variables, which are not a Conv3D's kernel and bias", True
    return ("" if _rank_of_group(group) else transposed_reason(name, kernel, bias)), True


def _rank_of_group(group: str) -> int:
    """Axes in space of Keras' own Conv1D to Conv3D, by the group of the layer; 0 for others."""
    found = re.fullmatch(r"conv([123])d(_\d+)?", group)
    return int(found.group(1)) if found else 0


def transposed_reason(name: str, kernel: Any, bias: Any) -> str:
    """Why a kernel of an unknown class may be that of a Conv3DTranspose; "" if it is not.

    A Conv3DTranspose stores (kd, kh, kw, filters, in_channels).

    kernel, bias : datasets     bias may be None
    """
    cure = "; save the whole model, whose config does"
    filters, channels = kernel.shape[-1], kernel.shape[-2]
    if is_dataset(bias, 1) and bias.shape[0] != filters:
        shapes = f"its kernel is {'x'.join(map(str, kernel.shape))} and its bias {bias.shape[0]}"
        return f"{shapes}: it is a Conv3DTranspose, or no convolution"
    certain = is_dataset(bias, 1) and filters != channels and "transpose" not in name.lower()
    if suggests_transposed(name) and not certain:
        reason = "its name suggests a transposed convolution, and the file does not store its class"
        return reason + cure
    return ""


def is_weights_h5(root: Any) -> bool:
    """Whether an open HDF5 file has the layout of a `.weights.h5`."""
    return any(
        name in _CONTAINERS or (name == "vars" and is_group(root[name])) for name in members(root)
    )


# --------------------------------------------------------------------------------------------------
# .keras


def read_keras(path: str) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a `.keras` model, in the order of its config.

    Raises: FormatError for a damaged or foreign file; ShapeError for arrays of too many elements.
    """
    with Archive(path) as archive:
        config = parse_json(archive.read(CONFIG), CONFIG, path)
        version = ""
        if METADATA in archive.names:
            version = str(
                parse_json(archive.read(METADATA), METADATA, path).get("keras_version", "")
            )
        if WEIGHTS not in archive.names and PICKLED_WEIGHTS in archive.names:
            raise FormatError(
                f"cannot read {path}: its weights are pickled ({PICKLED_WEIGHTS}), as Keras does "
                "without h5py, and pickles are never loaded; save the model where h5py is installed"
            )
        content = archive.read(WEIGHTS)
    ranks = {
        "/".join(part for part in entry.group.split("/") if part not in _CONTAINERS): entry.rank
        for entry in walk_config(config)
    }
    with open_hdf5(content, path) as root:
        saved = read_weights_h5(root, len(content), path, ranks)
    return merge_config(saved, config, version, path)


def read_keras_config(path: str) -> dict[str, Any]:
    """Read the JSON of a `.keras` model. Raises: FormatError."""
    with Archive(path) as archive:
        return parse_json(archive.read(CONFIG), CONFIG, path)


def merge_config(
    saved: dict[str, SavedLayer | OtherLayer], model: dict[str, Any], version: str, path: str
) -> list[SavedLayer | OtherLayer]:
    """Merge saved weights with the configs of their layers, in the order of the config.

    Weights that the config does not mention come last.

    saved : dict        group -> its layer
    model : dict        JSON of the model
    version : str       version of Keras that saved the model
    Raises: FormatError if config and weights do not belong together.
    """
    by_group = dict(saved)
    contents: list[SavedLayer | OtherLayer] = []
    names = set()
    entries = list(walk_config(model))
    omittable = omittable_layers(entries)
    for entry in entries:
        item = by_group.pop(entry.group, None)
        if entry.rank is None:
            if entry not in omittable:
                convolves = isinstance(item, SavedLayer) or (
                    item is not None and item.is_convolution
                )
                contents.append(entry.as_other_layer(convolves))
            continue
        if item is None and entry.name in names:
            continue  # a layer that two models share is saved once, in the first of them
        if item is None:
            raise FormatError(
                f"cannot read {path}: its config has the layer {entry.name}, but its weights have "
                f"no group {entry.group}"
            )
        if not isinstance(item, SavedLayer):
            raise FormatError(
                f"cannot read {path}: its config has the {entry.class_name} layer {entry.name}, "
                f"but the weights in group {entry.group} are not those of one: {item.reason}"
            )
        names.add(entry.name)
        aliases = tuple(alias for alias in (item.name, *item.aliases) if alias != entry.name)
        named = replace(item, name=entry.name, aliases=aliases)
        contents.append(entry.with_weights(named, version, path))
    # Groups inside a layer of another class belong to that layer, which is listed above. A model of
    # a class of its own lists no layers.
    return contents + [
        item
        for item in by_group.values()
        if isinstance(item, SavedLayer) or item.is_convolution or not entries
    ]


def omittable_layers(entries: Sequence[ConfigLayer]) -> set[ConfigLayer]:
    """Layers that may be left out silently: passive ones, and padding merged into a convolution."""
    merged = {id(layer) for entry in entries for layer in entry.padding}
    return {entry for entry in entries if entry.class_name in PASSIVE or id(entry.layer) in merged}


def version_notes(config: dict[str, Any], version: str) -> tuple[str, ...]:
    """Notes on differences between Keras 3 and the version of Keras that saved a layer."""
    if config.get("activation") == "hard_sigmoid" and version.startswith("2"):
        return (
            "its hard_sigmoid is that of Keras 2, clip(0.2x + 0.5, 0, 1); "
            "Keras 3's is relu6(x + 3)/6",
        )
    return ()


@dataclass(frozen=True, eq=False)
class ConfigLayer:
    """A layer in a model's JSON; nested models and wrappers are flattened.

    names : tuple               names of the models and wrappers around it, outermost first, and its
                                own
    group : str                 its group in a `.weights.h5`
    layer : dict                class_name and config
    sources : tuple             names of the layers whose outputs it takes
    padding : tuple             layers of `PADDING_RANKS` and passive ones before it, in order
    ambiguous_padding : bool    whether it is used after several layers, one of them of zero padding
    """

    names: tuple[str, ...]
    group: str
    layer: Mapping[str, Any]
    sources: tuple[tuple[str, ...], ...]
    padding: tuple[Mapping[str, Any], ...] = ()
    ambiguous_padding: bool = False

    @property
    def name(self) -> str:
        """The layer's own name, without the names of the models around it."""
        return self.names[-1]

    @property
    def class_name(self) -> str:
        """Name of the layer's Keras class, such as Conv3D."""
        return class_of(self.layer)

    @property
    def rank(self) -> int | None:
        """Axes in space of a layer that is read as a Conv3D; None for other classes."""
        return CONVOLUTIONS.get(self.class_name)

    def as_other_layer(self, is_convolution: bool) -> OtherLayer:
        """Describe the layer as one that is not read.

        is_convolution : bool       whether its weights show that it convolves
        """
        config = self.layer["config"]
        looks_so = "conv" in self.class_name.lower() or {"kernel_size", "filters"} <= set(config)
        is_builtin = self.class_name == self.layer["class_name"]
        custom = "" if is_builtin else ", whose code is not in the file"
        aliases = ("/".join(self.names),) if len(self.names) > 1 else ()
        return OtherLayer(
            self.name,
            f"it is of class {self.class_name}{custom}",
            is_convolution or looks_so,
            aliases,
        )

    def with_weights(self, layer: SavedLayer, version: str, path: str) -> SavedLayer | OtherLayer:
        """Add this config to saved weights, and merge the padding of the layers before it.

        layer : SavedLayer      the weights
        version : str           version of Keras that saved them
        Returns an `OtherLayer` if the padding cannot be merged.
        Raises: FormatError if config and weights do not belong together.
        """
        rank = self.rank or 3
        try:
            config = lifted_config(self.layer["config"], rank)
        except SpecError as error:
            raise FormatError(f"cannot read {path}: layer {layer.name}: {error}") from None
        notes = version_notes(config, version) + ((flat_note(rank),) if rank < 3 else ())
        layer = require_match(replace(layer, config=config, notes=notes), path)
        try:
            activations.get(config.get("activation"))
        except SpecError:
            return self._with_other_activation(layer)
        if not self.padding and not self.ambiguous_padding:
            return layer
        names = ", ".join(name_of(entry) for entry in self.padding)
        attributes = attributes_of(layer)
        try:
            if self.ambiguous_padding:
                raise SpecError("it is used more than once, after different layers")
            padding = joined_padding(
                pads_of(self.padding, config.get("data_format")),
                _own_padding(attributes),
                layer.kernel.shape[:3],
                attributes.strides,
                attributes.dilation_rate,
            )
        except SpecError as error:
            before = f" ({names})" if names else ""
            reason = f"it cannot be joined with the padding before it{before}: {error}"
            return OtherLayer(layer.name, reason, aliases=layer.aliases)
        note = f"its padding includes that of the layers before it in the model: {names}"
        config["padding"] = (
            padding if isinstance(padding, str) else [list(pair) for pair in padding]
        )
        return replace(layer, config=config, notes=(*layer.notes, note))

    def _with_other_activation(self, layer: SavedLayer) -> OtherLayer:
        """The layer as one whose activation is not known."""
        activation = (layer.config or {}).get("activation")
        name = str(activation)
        if isinstance(activation, Mapping):  # a function is named in its config
            inner = activation.get("config")
            name = inner if isinstance(inner, str) else str(activation.get("class_name"))
        plain = {**(layer.config or {}), "activation": "linear"}
        notes = (*layer.notes, f"its activation {name[:80]} is left out")
        tensor = f"{layer.name}.kernel"
        return OtherLayer(
            layer.name,
            f"its activation is {name[:80]}, whose code is not in the file",
            aliases=(*layer.aliases, tensor),
            layer=replace(layer, config=plain, notes=notes),
            tensor=tensor,
        )


def _own_padding(attributes: Attributes) -> str | Pads:
    """The padding of a layer of Keras."""
    padding = attributes.padding
    return padding if isinstance(padding, str) else (padding[0], padding[1], padding[2])


def walk_config(model: Mapping[str, Any]) -> Iterator[ConfigLayer]:
    """Yield every layer of a model's JSON, except models and wrappers, in the order of groups.

    Source: Keras 3, saving_lib.py _save_container_state, utils/naming.py to_snake_case.
    """
    found: dict[tuple[str, ...], ConfigLayer] = {}
    # name of a model or wrapper -> name of its inner layer whose output it returns
    outputs: dict[tuple[str, ...], tuple[str, ...]] = {}
    if is_layer(model):
        _walk_model(model, (), "", (), found, outputs)

    def source_of(entry: ConfigLayer) -> ConfigLayer | None:
        source = entry.sources[0] if len(entry.sources) == 1 else None
        while source in outputs:
            source = outputs[source]
        return None if source is None else found.get(source)

    for entry in found.values():
        if entry.rank is None:
            yield entry
            continue
        padding_classes = [name for name, rank in PADDING_RANKS.items() if rank == entry.rank]
        before: list[Mapping[str, Any]] = []
        source = source_of(entry)
        for _ in range(len(found)):  # no chain is longer, even if the config is circular
            if source is None or source.class_name not in (*padding_classes, *PASSIVE):
                break
            if source.class_name in padding_classes:
                before.insert(0, source.layer)
            source = source_of(source)
        pads = any(layer["class_name"].startswith("ZeroPadding") for layer in before)
        sources = (
            [found[name] for name in entry.sources if name in found]
            if len(entry.sources) > 1
            else []
        )
        ambiguous = any(other.class_name.startswith("ZeroPadding") for other in sources)
        padding = tuple(before) if pads else ()
        yield replace(entry, padding=padding, ambiguous_padding=ambiguous)


_Names = tuple[str, ...]


def _walk_model(
    model: Mapping[str, Any],
    names: _Names,
    group: str,
    sources: tuple[_Names, ...],
    found: dict[_Names, ConfigLayer],
    outputs: dict[_Names, _Names],
) -> None:
    """Add the layers of a model to `found`, and the layer of its output to `outputs`.

    names : tuple           names of the models around it, and its own
    group : str             prefix of the groups of its layers
    sources : tuple         names of the layers whose outputs the model takes
    found, outputs : dict   changed in place
    """
    used: dict[str, int] = {}
    config = model["config"]
    is_sequential = class_of(model) == "Sequential"
    last: tuple[_Names, ...] = sources
    for layer in layers_of(model):
        own = to_snake_case(layer["class_name"])
        number = used[own] = used.get(own, -1) + 1
        own = f"{group}{own}_{number}" if number else f"{group}{own}"
        layer_path = (*names, name_of(layer))
        if is_sequential:
            inputs = last
        else:
            inside = source_names(layer.get("inbound_nodes", []))
            # a layer without sources in the model takes the inputs of the model
            inputs = tuple((*names, name) for name in inside) or sources
        _walk_layer(layer, layer_path, own, inputs, found, outputs)
        last = (layer_path,)
    if names and layers_of(model):
        ends = list(output_names(config.get("output_layers", []))) if not is_sequential else []
        outputs[names] = (*names, ends[0]) if len(ends) == 1 else last[0]


def _walk_layer(
    layer: Mapping[str, Any],
    names: _Names,
    group: str,
    sources: tuple[_Names, ...],
    found: dict[_Names, ConfigLayer],
    outputs: dict[_Names, _Names],
) -> None:
    """Add a layer, or the layers inside it, to `found`; parameters as in `_walk_model`."""
    wrapped = layer["config"].get("layer")
    if layers_of(layer):
        _walk_model(layer, names, f"{group}/", sources, found, outputs)
    elif is_layer(wrapped):
        inner = (*names, name_of(wrapped))
        outputs[names] = inner
        _walk_layer(wrapped, inner, f"{group}/layer", sources, found, outputs)
    else:
        found[names] = ConfigLayer(names, group, layer, sources)


# --------------------------------------------------------------------------------------------------
# Writing


def encode_weights_h5(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """Encode layers as a `.weights.h5`; returns its bytes, and notes on what it cannot store.

    Raises: FormatError if h5py is not installed; SpecError for invalid arguments of a layer.
    """
    notes = [
        f"{layer.name}: .weights.h5 holds weights only, without {', '.join(lost)}"
        for layer in layers
        if (lost := lost_arguments(layer))
    ]
    return _weights_h5(layers), notes


def _weights_h5(layers: Sequence[SavedLayer]) -> bytes:
    with require_library("h5py", "write HDF5"):
        import h5py

    buffer = io.BytesIO()
    names = layer_names(layers)
    with h5py.File(buffer, "w", track_order=False) as file:
        for number, (layer, name) in enumerate(zip(layers, names, strict=True)):
            arrays = with_smallest_dtype(layer)
            group = file.create_group(
                f"layers/conv3d_{number}/vars" if number else "layers/conv3d/vars"
            )
            group.attrs["name"] = name
            group.create_dataset("0", data=arrays.kernel)
            if arrays.bias is not None:
                group.create_dataset("1", data=arrays.bias)
        file.create_group("vars").attrs["name"] = "converted"
    return buffer.getvalue()


def layer_names(layers: Sequence[SavedLayer]) -> list[str]:
    """Names of layers that Keras accepts: unique and without slashes.

    >>> import numpy as np
    >>> layer_names([SavedLayer("/enc/Conv", None, np.ones((1, 1, 1, 1, 1)))])
    ['enc_Conv']
    """
    names: list[str] = []
    for layer in layers:
        base = layer.name.strip("/").replace("/", "_") or "conv3d"
        name, number = base, 0
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names


def encode_keras(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """Encode layers as a Sequential model in a `.keras` file; returns its bytes, and notes.

    Raises: WriteError if the layers do not form a sequence, or Keras has no such layer; FormatError
    if h5py is not installed.
    """
    require_chain(layers, ".keras")
    first = attributes_of(layers[0])
    channels = layers[0].kernel.shape[3] * first.groups
    batch = (
        [None, channels, None, None, None]
        if first.data_format == "channels_first"
        else [None] * 4 + [channels]
    )
    dtype = str(with_smallest_dtype(layers[0]).kernel.dtype)
    entries = [
        _entry(
            "InputLayer",
            {"batch_shape": batch, "dtype": dtype, "sparse": False, "name": "converted_input"},
        )
    ]
    notes: list[str] = []
    names = layer_names(layers)
    for layer, name in zip(layers, names, strict=True):
        config = _conv3d_config(layer, name)
        if not isinstance(config["padding"], str):
            # Keras' Conv3D has no explicit padding; a ZeroPadding3D before it does the same
            pad_name = f"{name}_pad" if f"{name}_pad" not in names else f"{name}_padding_before_it"
            shared = {key: config[key] for key in ("trainable", "dtype", "padding", "data_format")}
            entries.append(_entry("ZeroPadding3D", {"name": pad_name, **shared}))
            notes.append(f"{layer.name}: its padding is written as a ZeroPadding3D layer before it")
            config["padding"] = "valid"
        if layer.config is None:
            notes.append(f"{layer.name}: {WEIGHTS_ONLY}")
        entries.append(_entry("Conv3D", config))
    model_config = {
        "name": "converted",
        "trainable": True,
        "layers": entries,
        "build_input_shape": batch,
    }
    model = _entry("Sequential", model_config) | {
        "module": "keras",
        "build_config": {"input_shape": batch},
    }
    metadata = {"keras_version": _VERSION, "date_saved": "1980-01-01@00:00:00"}
    texts = {METADATA: json.dumps(metadata).encode(), CONFIG: json.dumps(model).encode()}
    return zip_bytes(texts | {WEIGHTS: _weights_h5(layers)}), notes


def _conv3d_config(layer: SavedLayer, name: str) -> dict[str, Any]:
    """The config of a Keras Conv3D; padding is "valid", "same", or (before, after) along D, H, W.

    Raises: WriteError if Keras has no such layer.
    """
    attributes, size, config = attributes_of(layer), layer.kernel.shape[:3], layer.config or {}
    if attributes.is_strided_dilation:
        raise WriteError(
            f"Keras refuses strides > 1 together with dilation_rate > 1 (layer {layer.name}); "
            "write .onnx or .safetensors"
        )
    padding: Any = attributes.padding
    if padding not in ("valid", "same"):
        pads = attributes.explicit_pads(size)
        if pads is None:
            raise WriteError(
                f"Keras has no padding {padding} with strides > 1 (layer {layer.name}); write .onnx"
            )
        is_same = pads == replace(attributes, padding="same").explicit_pads(size)
        padding = "same" if is_same else pads
    return {
        "name": name,
        "trainable": True,
        "dtype": str(with_smallest_dtype(layer).kernel.dtype),
        "filters": layer.kernel.shape[4],
        "kernel_size": size,
        "strides": attributes.strides,
        "padding": padding,
        "data_format": attributes.data_format,
        "dilation_rate": attributes.dilation_rate,
        "groups": attributes.groups,
        "activation": attributes.activation,
        "use_bias": layer.bias is not None,
        **{key: config[key] for key in _PASSED_THROUGH if config.get(key) is not None},
    }


# arguments of training that change no output; they are copied unchanged
_PASSED_THROUGH = (
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


def _entry(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": config,
        "registered_name": None,
    }

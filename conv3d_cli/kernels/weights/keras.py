"""Keras 3's own files, which Keras 2 writes too: `.keras`, a zip of a config and weights, and `.weights.h5`, weights alone.

In the HDF5 part a layer's variables lie in `layers/GROUP/vars/0` (kernel) and `vars/1` (bias). GROUP is the snake case of the
layer's class with a running number in layer order, not its name; the name is an attribute of `vars` (Keras 3 only). Models
in models nest: `layers/sequential/layers/conv3d`.

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
    read_text,
    walk_groups,
)
from conv3d_cli.kernels.weights.layer import (
    WEIGHTS_ONLY,
    Archive,
    OtherLayer,
    SavedLayer,
    attributes_of,
    needing,
    parse_json,
    require_chain,
    require_match,
    shrunk,
    sounds_transposed,
    unheld,
    zip_bytes,
)
from conv3d_cli.model.keras_json import (
    CONV3D,
    PADDING,
    PASSIVE,
    class_of,
    is_layer,
    joined_padding,
    layers_of,
    name_of,
    output_names,
    pads_of,
    source_names,
)

CONFIG, METADATA, WEIGHTS, PICKLED = (
    "config.json",
    "metadata.json",
    "model.weights.h5",
    "model.weights.npz",
)


def to_snake_case(name: str) -> str:
    """A class name as Keras names groups.

    >>> to_snake_case("Conv3D"), to_snake_case("InputLayer"), to_snake_case("Conv3DTranspose")
    ('conv3d', 'input_layer', 'conv3d_transpose')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


# names of the containers of layers: Keras 3, and Keras 2 before 2.13
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_NO_LAYERS = {"optimizer", "_optimizer", "metrics", "_metrics", "compile_metrics", "seed_generator"}
# the groups of Keras' own layers that convolve or store weights of five axes, and are no Conv3D
_LAYERS_OF_KERAS = {
    to_snake_case(name): name
    for name in (
        "Conv1D", "Conv2D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D",
        "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
    )
}  # fmt: skip
_VERSION = "3.0.0"  # of the files written: the first that reads them


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def read_weights_h5(root: Any, size: int, path: str) -> dict[str, SavedLayer | OtherLayer]:
    """What an open `.weights.h5` holds by its groups, in natural order; no config.

    size : int      bytes of the file
    """
    contents: dict[str, SavedLayer | OtherLayer] = {}
    for name, group in walk_groups(root, path):
        *above, last = name.split("/")
        variables = (
            members(group) if last == "vars" and above and not _NO_LAYERS & set(above) else {}
        )
        if not variables:
            continue
        short = "/".join(part for part in above if part not in _CONTAINERS)
        called = read_text(group, "name") or short
        what = f"layer {called}"
        aliases = tuple(alias for alias in dict.fromkeys([short, above[-1]]) if alias != called)
        reason, is_convolution = _not_conv3d(above[-1], called, variables)
        if reason:
            contents[short] = OtherLayer(called, reason, is_convolution, aliases)
            continue
        kernel, bias = variables["0"], variables.get("1")
        layer = SavedLayer(
            name=called,
            config=None,
            kernel=read_dataset(kernel, size, what, path),
            bias=None if bias is None else read_dataset(bias, size, f"the bias of {what}", path),
            aliases=aliases,
            notes=()
            if _is_plain(above[-1])
            else ("the file does not tell its class; it is read as a Conv3D",),
        )
        contents[short] = require_match(layer, path)
    return contents


def _not_conv3d(group: str, name: str, variables: dict[str, Any]) -> tuple[str, bool]:
    """Why variables are none of a Conv3D, or ""; and whether they are a convolution's.

    group : the layer's own: the snake case of its class and a number, or an attribute's name
    """
    kernel, bias = variables.get("0"), variables.get("1")
    called = re.sub(r"_\d+$", "", group)
    if called in _LAYERS_OF_KERAS:
        return f"it is a {_LAYERS_OF_KERAS[called]}", True
    if not is_dataset(kernel, 5):
        return "it has no weights of 5 axes", is_dataset(kernel) and "conv" in group
    if set(variables) - {"0", "1"} or (bias is not None and not is_dataset(bias, 1)):
        return f"it has {len(variables)} variables, which are not a Conv3D's kernel and bias", True
    return ("" if _is_plain(group) else why_transposed(name, kernel, bias)), True


def _is_plain(group: str) -> bool:
    """Whether a group's name is what Keras makes of its own Conv3D."""
    return re.fullmatch(r"conv3d(_\d+)?", group) is not None


def why_transposed(name: str, kernel: Any, bias: Any) -> str:
    """Why a kernel of an unknown class is a Conv3DTranspose's, (kd, kh, kw, filters, in_channels), or may be; "" if not."""
    cure = "; save the whole model, whose config tells"
    filters, channels = kernel.shape[4], kernel.shape[3]
    if is_dataset(bias, 1) and bias.shape[0] != filters:
        held = f"its kernel is {'x'.join(map(str, kernel.shape))} and its bias {bias.shape[0]}"
        return f"{held}: a Conv3DTranspose's, or no convolution's"
    certain = is_dataset(bias, 1) and filters != channels and "transpose" not in name.lower()
    if sounds_transposed(name) and not certain:
        return f"its name is a transposed convolution's, and the file does not tell its class{cure}"
    return ""


def is_weights_h5(root: Any) -> bool:
    """Whether an open HDF5 file is laid out as `.weights.h5`."""
    return any(
        name in _CONTAINERS or (name == "vars" and is_group(root[name])) for name in members(root)
    )


# ---------------------------------------------------------------------------------------------------------------------
# .keras


def read_keras(path: str) -> list[SavedLayer | OtherLayer]:
    """What a `.keras` model holds, in the order of its config."""
    with Archive(path) as archive:
        config = parse_json(archive.read(CONFIG), CONFIG, path)
        version = ""
        if METADATA in archive.names:
            version = str(
                parse_json(archive.read(METADATA), METADATA, path).get("keras_version", "")
            )
        if WEIGHTS not in archive.names and PICKLED in archive.names:
            raise FormatError(
                f"cannot read {path}: its weights are pickled ({PICKLED}), as Keras does without h5py, and pickles are never "
                "loaded; save the model where h5py is installed"
            )
        content = archive.read(WEIGHTS)
    with open_hdf5(content, path) as root:
        saved = read_weights_h5(root, len(content), path)
    return join_config(saved, config, version, path)


def read_keras_config(path: str) -> dict[str, Any]:
    """The model's JSON."""
    with Archive(path) as archive:
        return parse_json(archive.read(CONFIG), CONFIG, path)


def join_config(
    saved: dict[str, SavedLayer | OtherLayer], model: dict[str, Any], version: str, path: str
) -> list[SavedLayer | OtherLayer]:
    """Saved weights with their layers' configs, in the config's order; those the config does not know come last.

    saved : dict        group -> what it holds
    version : str       of the Keras that saved it
    """
    by_group = dict(saved)
    contents: list[SavedLayer | OtherLayer] = []
    names = set()
    entries = list(walk_config(model))
    silent = silent_layers(entries)
    for entry in entries:
        held = by_group.pop(entry.group, None)
        if entry.class_name not in CONV3D:
            if entry not in silent:
                contents.append(
                    entry.other(
                        isinstance(held, SavedLayer) or (held is not None and held.is_convolution)
                    )
                )
            continue
        if held is None and entry.name in names:
            continue  # a layer that two models share is saved once, where it comes first
        if not isinstance(held, SavedLayer):
            reason = (
                f"no group {entry.group}"
                if held is None
                else f"in its group {entry.group} others: {held.reason}"
            )
            raise FormatError(
                f"cannot read {path}: its config has the layer {entry.name}, its weights have {reason}"
            )
        names.add(entry.name)
        aliases = tuple(alias for alias in (held.name, *held.aliases) if alias != entry.name)
        contents.append(
            entry.joined(replace(held, name=entry.name, aliases=aliases), version, path)
        )
    # what lies within a layer of another class is told by that layer
    return contents + [
        held for held in by_group.values() if isinstance(held, SavedLayer) or held.is_convolution
    ]


def silent_layers(entries: Sequence[Entry]) -> set[Entry]:
    """The entries that are no loss to leave out: those that do nothing, and padding that is a convolution's now."""
    joined = {id(layer) for entry in entries for layer in entry.padding}
    return {entry for entry in entries if entry.class_name in PASSIVE or id(entry.layer) in joined}


def notes_on(config: dict[str, Any], version: str) -> tuple[str, ...]:
    """What differs between the Keras that saved a layer and Keras 3."""
    if config.get("activation") == "hard_sigmoid" and version.startswith("2"):
        return (
            "saved by Keras 2, whose hard_sigmoid is clip(0.2x + 0.5, 0, 1); Keras 3's is relu6(x + 3)/6",
        )
    return ()


@dataclass(frozen=True, eq=False)
class Entry:
    """A layer in a model's JSON, models and wrappers taken apart.

    names : tuple           of the models and wrappers around it, from the outermost, and its own
    group : str             its group in a `.weights.h5`
    layer : dict            class_name and config
    sources : tuple         names of the layers whose outputs it takes
    padding : tuple         the ZeroPadding3D, Cropping3D and passive layers right before it, in order
    shared : bool           it takes the outputs of several layers, one of them a ZeroPadding3D
    """

    names: tuple[str, ...]
    group: str
    layer: Mapping[str, Any]
    sources: tuple[tuple[str, ...], ...]
    padding: tuple[Mapping[str, Any], ...] = ()
    shared: bool = False

    @property
    def name(self) -> str:
        """The layer's own name, without those of the models around it."""
        return self.names[-1]

    @property
    def class_name(self) -> str:
        """The name of its Keras class, such as Conv3D."""
        return class_of(self.layer)

    def other(self, is_convolution: bool) -> OtherLayer:
        """The entry as a layer that is not read.

        is_convolution : bool       its weights show that it convolves
        """
        config = self.layer["config"]
        names_it = "conv" in self.class_name.lower() or {"kernel_size", "filters"} <= set(config)
        is_own = self.class_name == self.layer["class_name"]
        reason = f"it is of class {self.class_name}{'' if is_own else ', whose code is in no file'}"
        return OtherLayer(
            self.name,
            reason,
            is_convolution or names_it,
            tuple(self.names[-2:-1] and ["/".join(self.names)]),
        )

    def joined(self, layer: SavedLayer, version: str, path: str) -> SavedLayer | OtherLayer:
        """Its weights with its config, to whose padding that of the layers before it is added."""
        config = dict(self.layer["config"])
        layer = require_match(replace(layer, config=config, notes=notes_on(config, version)), path)
        if not self.padding and not self.shared:
            return layer
        names = ", ".join(name_of(entry) for entry in self.padding)
        attributes = attributes_of(layer)
        try:
            if self.shared:
                raise SpecError("it is used more than once, after different layers")
            padding = joined_padding(
                pads_of(self.padding, config.get("data_format")),
                str(attributes.padding),
                layer.kernel.shape[:3],
                attributes.strides,
                attributes.dilation_rate,
            )
        except SpecError as error:
            reason = f"it cannot be joined with the padding before it{f' ({names})' if names else ''}: {error}"
            return OtherLayer(layer.name, reason, aliases=layer.aliases)
        note = f"its padding is that of the layer before it in the model, too: {names}"
        config["padding"] = (
            padding if isinstance(padding, str) else [list(pair) for pair in padding]
        )
        return replace(layer, config=config, notes=(*layer.notes, note))


def walk_config(model: Mapping[str, Any]) -> Iterator[Entry]:
    """Every layer of a model's JSON that is no model and no wrapper, in the order of their groups.

    Source: Keras 3, saving_lib.py _save_container_state, utils/naming.py to_snake_case.
    """
    found: dict[tuple[str, ...], Entry] = {}
    outputs: dict[
        tuple[str, ...], tuple[str, ...]
    ] = {}  # a model or wrapper -> what is in it and gives its output
    if is_layer(model):
        _walk_model(model, (), "", (), found, outputs)

    def source_of(entry: Entry) -> Entry | None:
        source = entry.sources[0] if len(entry.sources) == 1 else None
        while source in outputs:
            source = outputs[source]
        return None if source is None else found.get(source)

    for entry in found.values():
        if entry.class_name not in CONV3D:
            yield entry
            continue
        before: list[Mapping[str, Any]] = []
        source = source_of(entry)
        for _ in range(len(found)):  # a chain is no longer
            if source is None or source.class_name not in (*PADDING, *PASSIVE):
                break
            if source.class_name in PADDING:
                before.insert(0, source.layer)
            source = source_of(source)
        pads = any(layer["class_name"] == "ZeroPadding3D" for layer in before)
        sources = (
            [found[name] for name in entry.sources if name in found]
            if len(entry.sources) > 1
            else []
        )
        shared = any(other.class_name == "ZeroPadding3D" for other in sources)
        yield replace(entry, padding=tuple(before) if pads else (), shared=shared)


_Names = tuple[str, ...]


def _walk_model(
    model: Mapping[str, Any],
    names: _Names,
    group: str,
    sources: tuple[_Names, ...],
    found: dict[_Names, Entry],
    outputs: dict[_Names, _Names],
) -> None:
    """Note the layers of a model, and which of them gives its output.

    sources : names of the layers whose outputs the model takes
    """
    used: dict[str, int] = {}
    config = model["config"]
    is_sequential = class_of(model) == "Sequential"
    last: tuple[_Names, ...] = sources
    for layer in layers_of(model):
        own = to_snake_case(layer["class_name"])
        number = used[own] = used.get(own, -1) + 1
        own = f"{group}{own}_{number}" if number else f"{group}{own}"
        called = (*names, name_of(layer))
        if is_sequential:
            taken = last
        else:  # what takes nothing in the model takes what the model takes
            taken = (
                tuple((*names, name) for name in source_names(layer.get("inbound_nodes", [])))
                or sources
            )
        _walk_layer(layer, called, own, taken, found, outputs)
        last = (called,)
    if names and layers_of(model):
        ends = list(output_names(config.get("output_layers", []))) if not is_sequential else []
        outputs[names] = (*names, ends[0]) if len(ends) == 1 else last[0]


def _walk_layer(
    layer: Mapping[str, Any],
    names: _Names,
    group: str,
    sources: tuple[_Names, ...],
    found: dict[_Names, Entry],
    outputs: dict[_Names, _Names],
) -> None:
    wrapped = layer["config"].get("layer")
    if layers_of(layer):
        _walk_model(layer, names, f"{group}/", sources, found, outputs)
    elif is_layer(wrapped):
        inner = (*names, name_of(wrapped))
        outputs[names] = inner
        _walk_layer(wrapped, inner, f"{group}/layer", sources, found, outputs)
    else:
        found[names] = Entry(names, group, layer, sources)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def encode_weights_h5(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """A `.weights.h5` of a model of these layers, and what it cannot hold."""
    notes = [
        f"{layer.name}: .weights.h5 holds weights only, without {', '.join(lost)}"
        for layer in layers
        if (lost := unheld(layer))
    ]
    return _weights_h5(layers), notes


def _weights_h5(layers: Sequence[SavedLayer]) -> bytes:
    with needing("h5py", "write HDF5"):
        import h5py

    buffer = io.BytesIO()
    names = layer_names(layers)
    with h5py.File(buffer, "w", track_order=False) as file:
        for number, (layer, name) in enumerate(zip(layers, names, strict=True)):
            whole = shrunk(layer)
            group = file.create_group(
                f"layers/conv3d_{number}/vars" if number else "layers/conv3d/vars"
            )
            group.attrs["name"] = name
            group.create_dataset("0", data=whole.kernel)
            if whole.bias is not None:
                group.create_dataset("1", data=whole.bias)
        file.create_group("vars").attrs["name"] = "converted"
    return buffer.getvalue()


def layer_names(layers: Sequence[SavedLayer]) -> list[str]:
    """Names that Keras accepts: no slashes, none twice.

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
    """A Sequential model of these layers as `.keras`, and notes on what was assumed.

    Raises: WriteError if the layers cannot follow one another, or Keras has no such layer.
    """
    require_chain(layers, ".keras")
    first = attributes_of(layers[0])
    channels = layers[0].kernel.shape[3] * first.groups
    batch = (
        [None, channels, None, None, None]
        if first.data_format == "channels_first"
        else [None] * 4 + [channels]
    )
    dtype = str(shrunk(layers[0]).kernel.dtype)
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
        if not isinstance(
            config["padding"], str
        ):  # Keras' layer has none, but a layer before it does
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
    """The config of Keras' layer; its padding is "valid", "same", or pairs where it is neither.

    Raises: WriteError if Keras has no such layer.
    """
    attributes, size, config = attributes_of(layer), layer.kernel.shape[:3], layer.config or {}
    if attributes.is_strided_dilation:
        raise WriteError(
            f"Keras refuses strides > 1 together with dilation_rate > 1 (layer {layer.name}); write .onnx or .safetensors"
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
        "dtype": str(shrunk(layer).kernel.dtype),
        "filters": layer.kernel.shape[4],
        "kernel_size": size,
        "strides": attributes.strides,
        "padding": padding,
        "data_format": attributes.data_format,
        "dilation_rate": attributes.dilation_rate,
        "groups": attributes.groups,
        "activation": attributes.activation,
        "use_bias": layer.bias is not None,
        **{key: config[key] for key in _KEPT if config.get(key) is not None},
    }


# arguments that change no output and are kept as they are
_KEPT = (
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

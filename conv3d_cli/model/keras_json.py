"""Keras' JSON of models: its layers, their classes and inputs, and the padding before a Conv3D.

`layer/config.py` reads whole models with it, `kernels/weights/` the layers of saved models.
Source: Keras 3, keras/src/saving/serialization_lib.py, keras/src/layers/reshaping/zero_padding3d.py
and cropping3d.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from conv3d_cli.errors import SpecError
from conv3d_cli.model.spec import Pads, pad_sizes

CONV3D = ("Conv3D", "Convolution3D")
# Keras' convolutions that are read as a Conv3D -> axes in space
CONVOLUTIONS = {
    **dict.fromkeys(CONV3D, 3),
    "Conv2D": 2,
    "Convolution2D": 2,
    "Conv1D": 1,
    "Convolution1D": 1,
}
MODELS = ("Sequential", "Functional", "Model")
# classes of layers that change nothing when a model is applied
PASSIVE = (
    "InputLayer",
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianDropout",
    "GaussianNoise",
    "AlphaDropout",
    "Identity",
)
PADDING = ("ZeroPadding3D", "Cropping3D")
# these and their kin of fewer axes -> axes in space
PADDING_RANKS = {
    f"{name.removesuffix('3D')}{rank}D": rank for name in PADDING for rank in (1, 2, 3)
}
NO_PADS: Pads = ((0, 0), (0, 0), (0, 0))


def is_layer(entry: Any) -> bool:
    """True if a JSON value is a serialized layer.

    >>> is_layer({"class_name": "Conv3D", "config": {}}), is_layer({"class_name": "Conv3D"})
    (True, False)
    """
    return (
        isinstance(entry, Mapping)
        and isinstance(entry.get("class_name"), str)
        and isinstance(entry.get("config"), Mapping)
    )


def layers_of(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The serialized layers of a model; [] for a layer that is no model."""
    config = model.get("config")
    layers = config.get("layers") if isinstance(config, Mapping) else config  # old Keras 2: a list
    return [entry for entry in layers if is_layer(entry)] if isinstance(layers, list) else []


def class_of(entry: Mapping[str, Any]) -> str:
    """The class of a serialized layer: a bare name for Keras' own classes only.

    Other classes are named by their registration or with their module, since they, too, may be
    called Conv3D.
    >>> class_of({"module": "keras.layers", "class_name": "Conv3D", "registered_name": None})
    'Conv3D'
    >>> class_of({"module": "unet", "class_name": "Conv3D", "registered_name": "My>Conv3D"})
    'My>Conv3D'
    """
    name = str(entry["class_name"])
    registered, module = entry.get("registered_name"), entry.get("module")
    if registered not in (None, name):
        return str(registered)
    if module is not None and not re.match(r"((tf_)?keras|tensorflow)(\.|$)", str(module)):
        return f"{module}.{name}"
    return name


def name_of(entry: Mapping[str, Any]) -> str:
    """The name of a serialized layer; its class if it has no name.

    Functional models of Keras 2 store the name outside the config.
    """
    config = entry.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else None
    return str(entry.get("name", entry["class_name"]) if inner is None else inner)


def source_names(nodes: Any) -> Iterator[str]:
    """Names of the layers that feed a layer.

    nodes : its inbound nodes: lists ["conv3d", 0, 0, ...] in Keras 2, a `keras_history` in Keras 3
    >>> list(source_names([[["pad", 0, 0, {}]]]))
    ['pad']
    """
    if isinstance(nodes, Mapping):
        history = nodes.get("keras_history")
        if isinstance(history, (list, tuple)) and history:
            yield str(history[0])
        else:
            for value in nodes.values():
                yield from source_names(value)
    elif isinstance(nodes, (list, tuple)):
        if (
            len(nodes) >= 3
            and isinstance(nodes[0], str)
            and all(isinstance(n, int) for n in nodes[1:3])
        ):
            yield nodes[0]
        else:
            for value in nodes:
                yield from source_names(value)


def output_names(value: Any) -> Iterator[str]:
    """Names of a model's output layers.

    value : ["a", 0, 0] or a list of these
    >>> list(output_names([["a", 0, 0], ["b", 0, 0]]))
    ['a', 'b']
    """
    if isinstance(value, (list, tuple)) and value:
        if isinstance(value[0], str):
            yield value[0]
        else:
            for entry in value:
                yield from output_names(entry)


# --------------------------------------------------------------------------------------------------
# Layers of fewer axes


def lifted_config(config: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The config of a Conv3D that does what a Conv2D or Conv1D does to each plane or row.

    rank : int      axes in space of the layer: 1 to 3
    The padding "causal" of a Conv1D becomes (before, after) pairs.

    >>> config = {"kernel_size": [5], "padding": "causal", "strides": 2}
    >>> lifted_config(config, 1)["padding"], lifted_config(config, 1)["strides"]
    ([[0, 0], [0, 0], [4, 0]], [1, 1, 2])
    """
    lifted = dict(config)
    if rank == 3:
        return lifted
    for key in ("kernel_size", "strides", "dilation_rate"):
        value = config.get(key, 1)
        parts = list(value) if isinstance(value, (list, tuple)) else [value] * rank
        if key in config:
            lifted[key] = [1] * (3 - rank) + parts
        if len(parts) != rank:
            raise SpecError(f"{key} of a {rank}-D layer has {rank} numbers, received {parts!r:.60}")
    if rank == 1 and str(config.get("padding")).lower() == "causal":
        size, step = (lifted.get(key, [1])[-1] for key in ("kernel_size", "dilation_rate"))
        lifted["padding"] = [[0, 0], [0, 0], [(int(size) - 1) * int(step), 0]]
    return lifted


# --------------------------------------------------------------------------------------------------
# Padding layers


def pads_of(entries: Iterable[Mapping[str, Any]], data_format: Any = None) -> Pads:
    """Voxels that successive layers of `PADDING_RANKS` add to a volume.

    entries : the serialized layers, in order
    data_format : of the layer after them, or None if it is unknown
    Returns three (before, after) pairs.
    Raises: SpecError if they crop voxels of the volume itself, their data formats differ, or a
        config is not legal.

    >>> pads_of([{"class_name": "ZeroPadding3D", "config": {"padding": [[1, 0], [2, 2], [0, 0]]}}])
    ((1, 0), (2, 2), (0, 0))
    """
    sums = [[0, 0], [0, 0], [0, 0]]
    for entry in entries:
        what = f"the {entry['class_name']} layer '{name_of(entry)}'"
        config = entry.get("config", {})
        crops = entry["class_name"].startswith("Cropping")
        own_format = config.get("data_format")
        if own_format is not None and data_format is not None and own_format != data_format:
            raise SpecError(
                f"{what} is {own_format} and the Conv3D layer after it {data_format}, "
                "so it pads other axes"
            )
        rank = PADDING_RANKS[entry["class_name"]]
        pairs = _pairs(config.get("cropping" if crops else "padding", 1), what, rank)
        for pair, (before, after) in zip(sums, pairs, strict=True):
            pair[0] += -before if crops else before
            pair[1] += -after if crops else after
            if min(pair) < 0:
                raise SpecError(
                    f"{what} crops voxels of the volume, which no padding of a Conv3D does"
                )
    return (sums[0][0], sums[0][1]), (sums[1][0], sums[1][1]), (sums[2][0], sums[2][1])


def _pairs(value: Any, what: str, rank: int) -> list[tuple[int, int]]:
    """1, [1, 2, 3] or [[1, 0], [2, 2], [0, 0]] as three pairs.

    what, rank : name of the layer in errors, and its axes in space; the others get no voxels. With
        one axis [1, 2] is a pair.
    """
    several = isinstance(value, (list, tuple))
    if rank == 1 and several and all(isinstance(part, int) for part in value):
        parts = [value]
    else:
        parts = list(value) if several else [value] * rank
    pairs = [tuple(part) if isinstance(part, (list, tuple)) else (part, part) for part in parts]
    whole = all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for pair in pairs for n in pair
    )
    if len(pairs) != rank or not whole or any(len(pair) != 2 for pair in pairs):
        forms = "N, [N, N, N] or three [before, after] pairs" if rank == 3 else f"{rank} pairs"
        raise SpecError(f"{what} takes {forms} of at least 0, received {value!r:.80}")
    return [(0, 0)] * (3 - rank) + [(int(pair[0]), int(pair[1])) for pair in pairs]


def joined_padding(
    pads: Pads,
    padding: str | Pads,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    dilation_rate: Sequence[int],
) -> str | Pads:
    """The padding of a Conv3D that replaces its own padding and the padding layers before it.

    pads : voxels that the layers before it add, as from `pads_of`
    padding : its own, "valid", "same" or three (before, after) pairs
    kernel_size, strides, dilation_rate : (D, H, W) of the Conv3D
    Raises: SpecError for "same" with strides > 1, which depends on the size of the volume.

    >>> joined_padding(((1, 0), (1, 0), (0, 0)), "same", (3, 3, 2), (1, 1, 1), (1, 1, 1))
    ((2, 1), (2, 1), (0, 1))
    """
    if pads == NO_PADS:
        return padding
    if padding == "valid":
        return pads
    if isinstance(padding, str) and max(strides) > 1:
        raise SpecError(
            "its padding 'same' with strides > 1 depends on the volume's size, "
            "so the two cannot be joined"
        )
    # with strides of 1, "same" adds the same number of voxels to volumes of any size
    own: Sequence[tuple[int, int]] = (
        [pad_sizes(1, k, 1, d, padding) for k, d in zip(kernel_size, dilation_rate, strict=True)]
        if isinstance(padding, str)
        else padding
    )
    sums = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(pads, own, strict=True)]
    return sums[0], sums[1], sums[2]

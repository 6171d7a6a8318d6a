"""Layers of a PyTorch state dict: tensors `NAME.weight` of 3 to 5 axes, perhaps with `NAME.bias`.

A state dict does not store the classes of its modules. A module with `weight`, `bias` and nothing
else is taken for a Conv3d, Conv2d or Conv1d. If PyTorch computes the weight from other tensors, so
does this module (`_PARAMETRIZATIONS`); modules with any other tensors are refused, and the error
names one. A ConvTranspose3d stores (in_channels, filters/groups, kd, kh, kw) under the same names;
its bias or its own name may give it away. Where the file stores the modules themselves, their
classes decide, and their attributes are the layer's arguments.

Source: PyTorch, torch/nn/modules/conv.py; torch/nn/utils/weight_norm.py, spectral_norm.py,
parametrizations.py and prune.py; aten/src/ATen/native/WeightNorm.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    Array,
    OtherLayer,
    SavedLayer,
    flat_note,
    from_oidhw,
    lifted,
    require_match,
    suggests_transposed,
    unread,
)

_SPACE = ("depth", "height", "width")
_MAX_DOTS = 200  # in the name of a tensor
_Compute = Callable[..., Array]
# keys of tensors, the weight's shape, the function that computes the weight from them, notes
_Source = tuple[tuple[str, ...], tuple[int, ...], _Compute, tuple[str, ...]]


def _weight_norm(magnitude: Array, direction: Array) -> Array:
    """magnitude · direction / ‖direction‖, with the norm over axes where magnitude has length 1."""
    axes = tuple(
        axis for axis in range(direction.ndim) if magnitude.ndim == 0 or magnitude.shape[axis] == 1
    )
    wide = direction.astype(np.float64)
    # a direction of zeros gives NaN, as in PyTorch; `Kernel` refuses NaN later
    with np.errstate(all="ignore"):
        scaled: Array = wide * (magnitude / np.sqrt((wide**2).sum(axes, keepdims=True)))
        return scaled.astype(direction.dtype)


def _is_norm_of(magnitude: Sequence[int], direction: Sequence[int]) -> bool:
    """Whether a tensor's shape is that of norms of another over all axes, or all but one."""
    if not magnitude:
        return True
    ones = [n == 1 for n in magnitude]
    return (
        len(magnitude) == len(direction)
        and ones.count(False) <= 1
        and all(one or n == k for one, n, k in zip(ones, magnitude, direction, strict=True))
    )


def _pruned(weight: Array, mask: Array) -> Array:
    """The weight with 0 where the mask is 0."""
    pruned: Array = weight * mask.astype(weight.dtype)
    return pruned


def _has_mask(weight: Sequence[int], mask: Sequence[int]) -> bool:
    """Whether a pruning mask has the shape of its weight."""
    return tuple(weight) == tuple(mask)


def _spectral_norm(weight: Array, left: Array, right: Array) -> Array:
    """The weight divided by its norm uᵀ·W·v, where W is the weight of a row for each filter."""
    wide = weight.astype(np.float64)
    with np.errstate(all="ignore"):
        norm = left.astype(np.float64) @ wide.reshape(len(wide), -1) @ right.astype(np.float64)
        scaled: Array = (wide / norm).astype(weight.dtype)
        return scaled


def _has_vectors(weight: Sequence[int], left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether two vectors are those of the weight's rows and columns."""
    return tuple(left) == (weight[0],) and tuple(right) == (math.prod(weight[1:]),)


@dataclass(frozen=True)
class _Parametrization:
    """A way in which PyTorch computes a module's `weight` from other tensors.

    name : str          PyTorch's name of it
    compute : callable  (tensors) -> weight
    fits : callable     (shapes of the tensors) -> whether they belong together
    weight : int        number of the tensor that has the shape of the weight
    """

    name: str
    compute: _Compute
    fits: Callable[..., bool]
    weight: int = 0


_WEIGHT_NORM = _Parametrization("weight_norm", _weight_norm, _is_norm_of, weight=1)
_PRUNING = _Parametrization("prune", _pruned, _has_mask)
_SPECTRAL_NORM = _Parametrization("spectral_norm", _spectral_norm, _has_vectors)
# names of the tensors in a module -> how its weight is computed from them
_PARAMETRIZATIONS = {
    ("weight_g", "weight_v"): _WEIGHT_NORM,
    ("parametrizations.weight.original0", "parametrizations.weight.original1"): _WEIGHT_NORM,
    ("weight_orig", "weight_mask"): _PRUNING,
    ("weight_orig", "weight_u", "weight_v"): _SPECTRAL_NORM,
    (
        "parametrizations.weight.original",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    ): _SPECTRAL_NORM,
}


@dataclass(frozen=True)
class Module:
    """A module whose class a file stores.

    class_name : str        as module.name
    attributes : mapping    its attributes, such as stride and padding
    is_leaf : bool          whether no module is inside it
    hooks : tuple           functions and classes that are called with its inputs and outputs
    """

    class_name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_leaf: bool = True
    hooks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The class, without the module if it is PyTorch's own."""
        own = self.class_name.startswith(_OWN)
        return self.class_name.rpartition(".")[2] if own else self.class_name[:80]

    @property
    def is_passive(self) -> bool:
        """Whether it changes nothing when a model is applied."""
        return self.class_name.startswith(_OWN) and self.name.endswith(_PASSIVE)


_OWN = ("torch.nn.modules.", "torch.nn.parallel.")
_PASSIVE = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")
# PyTorch's class -> axes in space
_CONVOLUTIONS = {f"torch.nn.modules.conv.Conv{rank}d": rank for rank in (1, 2, 3)}


@dataclass(frozen=True)
class StateDict:
    """The tensors of a file by their keys, and what else it says of them.

    shapes : mapping        key of every tensor -> its shape
    read : callable         key -> the tensor
    modules : mapping       name -> module, where the file stores them
    unreadable : mapping    key -> why a tensor cannot be read; it need not have a shape
    identity : callable     key -> what is equal for tensors that share their numbers
    """

    shapes: Mapping[str, Sequence[int]]
    read: Callable[[str], Array]
    modules: Mapping[str, Module] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    identity: Callable[[str], Hashable] = lambda key: key


def read_state_dict(
    state: StateDict, path: str = "the file", only: str | None = None
) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a state dict, in the order of its tensors.

    path : str          for messages
    only : str or None  name of the layer whose weights are read: those of others are `unread`;
                        None: all are read
    Raises: FormatError for modules whose attributes do not fit their weights, and for a name of too
    many parts.

    >>> shapes = {"enc.weight": (2, 1, 3, 3, 3), "enc.bias": (2,), "head.weight": (4, 2)}
    >>> state = StateDict(shapes, lambda key: np.ones(shapes[key], np.float32))
    >>> for item in read_state_dict(state):
    ...     print(item if isinstance(item, SavedLayer) else f"{item.name}: {item.reason}")
    enc (3x3x3x1x2 + bias)
    head: its weights have 2 axes, not 3 to 5
    """
    named: dict[str, dict[str, str]] = {}  # module -> name of a tensor in it -> key of the tensor
    keys_of_all = dict.fromkeys((*state.shapes, *state.unreadable))
    for key in keys_of_all:
        if key.count(".") > _MAX_DOTS:
            raise FormatError(
                f"cannot read {path}: the name of a tensor, {key[:40]}..., has {key.count('.'):,} "
                f"dots; at most {_MAX_DOTS} are read"
            )
        module, own = _split(key)
        named.setdefault(module, {})[own] = key
    inside: dict[str, str] = {}  # module -> key of a tensor in one of its submodules
    adapters: dict[str, str] = {}  # module -> key of a tensor of its LoRA adapter
    for key in keys_of_all:
        parts = _split(key)[0].split(".")
        for end in range(1, len(parts)):
            if (above := ".".join(parts[:end])) in named:
                inside.setdefault(above, key)
        words = key.split(".")
        for end, word in enumerate(words):
            if word.startswith("lora_"):
                adapters.setdefault(".".join(words[:end]), key)
    same: dict[Hashable, list[str]] = {}  # what makes modules the same -> their names
    for module in dict.fromkeys((*state.modules, *named)):
        keys = named.get(module, {})
        if keys and all(len(state.shapes.get(key, (0,))) == 0 for key in keys.values()):
            continue  # counters and scores, which are no layer
        token: Hashable = module
        if keys:
            # modules may share tensors and yet differ: in their arguments, or in what names suggest
            tensors = tuple((own, state.identity(key)) for own, key in sorted(keys.items()))
            token = tensors, id(state.modules.get(module)), suggests_transposed(module)
        same.setdefault(token, []).append(module)
    reader = _Reader(state, inside, adapters, path)
    found: list[SavedLayer | OtherLayer] = []
    for module, *others in same.values():
        keys = named.get(module, {})
        if not keys:
            entry = state.modules[module]
            if entry.is_leaf and not entry.is_passive:
                reason = f"it is of class {entry.name}"
                found.append(OtherLayer(module or entry.name, reason, is_convolution=False))
            continue
        aliases = tuple(name for other in others for name in (other, *named[other].values()))
        is_wanted = only is None or only in (module, *keys.values(), *aliases)
        for item in reader.items(module, keys, is_wanted):
            found.append(replace(item, aliases=(*item.aliases, *aliases)))
    return found


def _rank(shape: Sequence[int]) -> int:
    """Axes in space of weights of this shape: 1 to 3; 0 for other tensors."""
    return len(shape) - 2 if 3 <= len(shape) <= 5 else 0


def _split(key: str) -> tuple[str, str]:
    """Split a key into the module and the name of the tensor in it, parametrization included.

    >>> _split("enc.0.weight"), _split("enc.parametrizations.weight.original0"), _split("weight")
    (('enc.0', 'weight'), ('enc', 'parametrizations.weight.original0'), ('', 'weight'))
    """
    before, found, after = f".{key}".partition(".parametrizations.")
    if found:
        return before[1:], f"parametrizations.{after}"
    module, _, own = key.rpartition(".")
    return module, own


def _is_weight(own: str) -> bool:
    return own.startswith(("weight", "parametrizations.weight."))


@dataclass(frozen=True)
class _Reader:
    """Reads the modules of a state dict one by one.

    inside, adapters : mappings     as in `read_state_dict`
    """

    state: StateDict
    inside: Mapping[str, str]
    adapters: Mapping[str, str]
    path: str

    def items(
        self, module: str, named: Mapping[str, str], is_wanted: bool
    ) -> list[SavedLayer | OtherLayer]:
        """What a module is: a layer, another part, or loose tensors.

        named : mapping     name of a tensor in the module -> its key
        is_wanted : bool    whether its weights are read
        """
        weights = [key for own, key in named.items() if _is_weight(own)]
        lacking = [key for key in weights if key not in self.state.shapes]
        if lacking:
            name, aliases = module or lacking[0], tuple(named.values())
            return [OtherLayer(name, self.state.unreadable[lacking[0]], aliases=aliases)]
        if any(_rank(self.state.shapes[key]) for key in weights):
            return [self._with_kernel(module, named, is_wanted)]
        wide = [key for key in named.values() if len(self.state.shapes.get(key, ())) == 5]
        if wide and not weights:
            reason = "it is a tensor of 5 axes, but no NAME.weight"
            return [OtherLayer(key, reason) for key in wide]
        return [self._without_kernel(module, named)]

    def _without_kernel(self, module: str, named: Mapping[str, str]) -> OtherLayer:
        """Describe a module without weights of 3 to 5 axes."""
        shapes = [self.state.shapes[key] for own, key in named.items() if _is_weight(own)]
        rank = max(map(len, shapes), default=0)
        entry = self.state.modules.get(module)
        reason = f"its weights have {rank} axes, not 3 to 5" if rank else "it has no weights"
        if entry is not None:
            reason = f"it is of class {entry.name}"
        name = module or next(iter(named))
        return OtherLayer(name, reason, rank > 5, tuple(named.values()))

    def _with_kernel(
        self, module: str, named: Mapping[str, str], is_wanted: bool
    ) -> SavedLayer | OtherLayer:
        """Read a module with weights of 3 to 5 axes; parameters as of `items`."""
        name = module or "weight"
        keys = tuple(named.values())

        def other(reason: str) -> OtherLayer:
            return OtherLayer(name, reason, aliases=keys)

        if any(word.startswith("lora_") for word in module.split(".")):
            return other("it is a part of a LoRA adapter")
        for parent in (module, module.rpartition(".")[0]):
            if parent in self.adapters:
                return other(
                    f"a LoRA adapter acts on it ({self.adapters[parent]}); "
                    "merge it in PyTorch and save the model again"
                )
        entry = self.state.modules.get(module)
        if entry is not None and entry.name.startswith("ConvTranspose"):
            return other(f"it is of class {entry.name}")
        source = None if module and module in self.inside else _source(named, self.state.shapes)
        if source is None:
            return other(_rejection(named, self.inside.get(module)))
        tensors, shape, compute, notes = source
        for key in (*tensors, *([named["bias"]] if "bias" in named else [])):
            if key in self.state.unreadable:
                return other(self.state.unreadable[key])
        rank, filters, channels = _rank(shape), shape[0], shape[1]
        bias_shape = tuple(self.state.shapes[named["bias"]]) if "bias" in named else None
        if bias_shape not in (None, (filters,)):
            return other(
                f"its weights are {'x'.join(map(str, shape))} and its bias "
                f"{'x'.join(map(str, bias_shape or ())) or 'one number'}: "
                f"it is a ConvTranspose{rank}d, or no convolution"
            )
        is_known = entry is not None and _CONVOLUTIONS.get(entry.class_name) == rank
        if not is_known and (bias_shape is None or filters == channels):
            layout = f"(filters, in_channels/groups, {', '.join(_SPACE[3 - rank :])})"
            notes += (
                f"the file does not tell a Conv{rank}d from a ConvTranspose{rank}d; its weights "
                f"are read as a Conv{rank}d's, {layout}",
            )
        if rank < 3:
            notes += (flat_note(rank),)
        tensor = f"{module}.weight" if module else ""
        if is_wanted:
            kernel = from_oidhw(lifted(compute(*map(self.state.read, tensors)), rank))
            bias = None if bias_shape is None else self.state.read(named["bias"])
        else:
            kernel = unread((*[1] * (3 - rank), *shape[2:], channels, filters))
            bias = None if bias_shape is None else unread(bias_shape)
        layer = SavedLayer(name, None, kernel, bias, (tensor,) if tensor else (), notes)
        if entry is not None:
            return _of_class(layer, entry, rank, keys, self.path)
        # A bias of `filters` numbers fits a ConvTranspose3d with groups too, but only if `channels`
        # divides `filters`.
        certain = bias_shape is not None and bool(filters % max(channels, 1))
        if suggests_transposed(module) and not certain:
            reason = (
                f"its name suggests a transposed convolution (ConvTranspose{rank}d), and its "
                f"tensors do not show that it is a Conv{rank}d"
            )
            return OtherLayer(name, reason, aliases=keys, layer=layer, tensor=tensor or "weight")
        return layer


def _of_class(
    layer: SavedLayer, module: Module, rank: int, aliases: tuple[str, ...], path: str
) -> SavedLayer | OtherLayer:
    """The layer with the arguments that its module stores; another part if it is no Conv3d.

    rank : int      axes in space of its weights
    """
    tensor = layer.aliases[0] if layer.aliases else "weight"
    foreign = [name for name in module.hooks if not name.startswith("torch.nn.utils.")]
    if foreign:
        reason = f"it calls {foreign[0][:80]}, whose code is not in the file"
        return OtherLayer(layer.name, reason, aliases=aliases, layer=layer, tensor=tensor)
    if _CONVOLUTIONS.get(module.class_name) != rank:
        if module.class_name.startswith(_OWN):  # PyTorch's own, which is no convolution
            reason = f"it is of class {module.name}"
            return OtherLayer(layer.name, reason, is_convolution=False, aliases=aliases)
        reason = f"it is of class {module.name}, whose code is not in the file"
        return OtherLayer(layer.name, reason, aliases=aliases, layer=layer, tensor=tensor)
    values = module.attributes
    mode = values.get("padding_mode", "zeros")
    if "stride" not in values:
        return layer
    if mode != "zeros":
        reason = f"it pads by padding_mode={_shown(mode)}, and layers are padded by zeros"
        return OtherLayer(layer.name, reason, aliases=aliases, layer=layer, tensor=tensor)

    def numbers(name: str, default: int) -> list[int]:
        value = values.get(name, default)
        parts = list(value) if isinstance(value, (list, tuple)) else [value] * rank
        if len(parts) != rank or not all(type(n) is int and 0 <= n < 2**31 for n in parts):
            raise FormatError(f"cannot read {path}: layer {layer.name} has {name}={_shown(value)}")
        return [default] * (3 - rank) + parts

    padding: Any = values.get("padding", 0)
    if padding not in ("same", "valid"):
        sizes = numbers("padding", 0)
        padding = [[n, n] for n in sizes] if any(sizes) else "valid"
    groups = values.get("groups", 1)
    if type(groups) is not int:
        raise FormatError(f"cannot read {path}: layer {layer.name} has groups={_shown(groups)}")
    config = {
        "filters": layer.kernel.shape[4],
        "kernel_size": list(layer.kernel.shape[:3]),
        "strides": numbers("stride", 1),
        "padding": padding,
        "data_format": "channels_first",
        "dilation_rate": numbers("dilation", 1),
        "groups": groups,
        "activation": "linear",
        "use_bias": layer.bias is not None,
    }
    return require_match(replace(layer, config=config), path)


def _shown(value: Any) -> str:
    """A value of a pickle in a message; the text of nested tuples may grow without bound."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if all(isinstance(part, (str, int, float, type(None))) for part in parts):
        return repr(value)[:60]
    return f"a {type(value).__name__}"


def _source(named: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> _Source | None:
    """The tensors that a module's weight is computed from; None for unsupported tensors."""
    names = set(named) - {"bias"}
    if names == {"weight"}:
        return (named["weight"],), tuple(shapes[named["weight"]]), lambda weight: weight, ()
    for parts, how in _PARAMETRIZATIONS.items():
        if names == set(parts) and all(named[part] in shapes for part in parts):
            keys = tuple(named[part] for part in parts)
            shape = tuple(shapes[keys[how.weight]])
            if _rank(shape) and how.fits(*(shapes[key] for key in keys)):
                note = (
                    f"its weights are computed from {', '.join(parts[:-1])} and {parts[-1]}, as "
                    f"PyTorch's {how.name} does"
                )
                return keys, shape, how.compute, (note,)
    return None


def _rejection(named: Mapping[str, str], inner: str | None) -> str:
    """Why a module with weights of 3 to 5 axes is not read.

    inner : str or None     key of a tensor in one of its submodules
    """
    spectral = {"weight_u", "parametrizations.weight.0._u"} & set(named)
    more = inner or next((key for own, key in named.items() if own not in ("weight", "bias")), "")
    if "weight" in named:
        return f"it also has {more}, so it is more than a convolution"
    what = "spectral_norm" if spectral else f"a parametrization ({more})"
    return f"its weights are computed by {what}; remove it in PyTorch and save the model again"

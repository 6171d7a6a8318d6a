"""Layers of a PyTorch state dict: tensors `NAME.weight` of five axes, with an optional `NAME.bias`.

A state dict does not store the classes of its modules. A module with `weight`, `bias` and nothing
else is taken for a Conv3d. If PyTorch computes the weight from other tensors, so does this module
(`_PARAMETRIZATIONS`); modules with any other tensors are refused, and the error names one. A
ConvTranspose3d stores (in_channels, filters/groups, kd, kh, kw) under the same names; its bias or
its own name may give it away.

Source: PyTorch, torch/nn/utils/weight_norm.py, parametrizations.py and prune.py;
aten/src/ATen/native/WeightNorm.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conv3d_cli.kernels.weights.layer import (
    Array,
    OtherLayer,
    SavedLayer,
    from_oidhw,
    suggests_transposed,
)

_LAYOUT = "(filters, in_channels/groups, depth, height, width)"
_Compute = Callable[..., Array]
# keys of tensors, the function that computes the weight from them, notes
_Source = tuple[tuple[str, ...], _Compute, tuple[str, ...]]


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


@dataclass(frozen=True)
class _Parametrization:
    """A way in which PyTorch computes a module's `weight` from two other tensors.

    name : str          PyTorch's name of it
    compute : callable  (first tensor, second tensor) -> weight
    fits : callable     (shape of the first, shape of the second) -> whether they belong together
    """

    name: str
    compute: _Compute
    fits: Callable[[Sequence[int], Sequence[int]], bool]


_WEIGHT_NORM = _Parametrization("weight_norm", _weight_norm, _is_norm_of)
_PRUNING = _Parametrization("prune", _pruned, _has_mask)
# names of the two tensors in a module -> how its weight is computed from them
_PARAMETRIZATIONS = {
    ("weight_g", "weight_v"): _WEIGHT_NORM,
    ("parametrizations.weight.original0", "parametrizations.weight.original1"): _WEIGHT_NORM,
    ("weight_orig", "weight_mask"): _PRUNING,
}


def read_state_dict(
    shapes: Mapping[str, Sequence[int]], read: Callable[[str], Array]
) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a state dict, in the order of its tensors.

    shapes : mapping    key of every tensor -> its shape
    read : callable     key -> the tensor

    >>> shapes = {"enc.weight": (2, 1, 3, 3, 3), "enc.bias": (2,), "head.weight": (4, 2)}
    >>> for item in read_state_dict(shapes, lambda key: np.ones(shapes[key], np.float32)):
    ...     print(item if isinstance(item, SavedLayer) else f"{item.name}: {item.reason}")
    enc (3x3x3x1x2 + bias)
    head: its weights have 2 axes, not 5
    """
    modules: dict[str, dict[str, str]] = {}  # module -> name of a tensor in it -> key of the tensor
    inside: dict[str, str] = {}  # module -> key of a tensor in one of its submodules
    adapters: dict[str, str] = {}  # module -> key of a tensor of its LoRA adapter
    for key in shapes:
        module, own = _split(key)
        modules.setdefault(module, {})[own] = key
        parts = module.split(".")
        for end in range(1, len(parts)):
            inside.setdefault(".".join(parts[:end]), key)
        words = key.split(".")
        for end, word in enumerate(words):
            if word.startswith("lora_"):
                adapters.setdefault(".".join(words[:end]), key)
    found: list[SavedLayer | OtherLayer] = []
    for module, named in modules.items():
        if all(len(shapes[key]) != 5 for key in named.values()):
            found.append(_without_kernel(module, named, shapes))
        elif not any(_is_weight(name) for name in named):
            wide = [key for key in named.values() if len(shapes[key]) == 5]
            found += [
                OtherLayer(key, "it is a tensor of 5 axes, but no NAME.weight") for key in wide
            ]
        else:
            found.append(_with_kernel(module, named, shapes, read, inside, adapters))
    return found


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


def _without_kernel(
    module: str, named: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> OtherLayer:
    """Describe a module without tensors of five axes.

    named : mapping     name of a tensor in the module -> its key
    """
    rank = max((len(shapes[key]) for own, key in named.items() if _is_weight(own)), default=0)
    reason = f"its weights have {rank} axes, not 5" if rank else "it has no weights of 5 axes"
    return OtherLayer(module or next(iter(named)), reason, rank in (3, 4), tuple(named.values()))


def _with_kernel(
    module: str,
    named: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Array],
    inside: Mapping[str, str],
    adapters: Mapping[str, str],
) -> SavedLayer | OtherLayer:
    """Read a module with weights of five axes.

    named : mapping                 name of a tensor in the module -> its key
    inside, adapters : mappings     as in `read_state_dict`
    """
    name = module or "weight"
    adapted = [parent for parent in (module, module.rpartition(".")[0]) if parent in adapters]
    if any(word.startswith("lora_") for word in module.split(".")):
        return OtherLayer(name, "it is a part of a LoRA adapter", aliases=tuple(named.values()))
    if adapted:
        reason = (
            f"a LoRA adapter acts on it ({adapters[adapted[0]]}); "
            "merge it in PyTorch and save the model again"
        )
        return OtherLayer(name, reason, aliases=tuple(named.values()))
    source = None if module and module in inside else _source(named, shapes)
    if source is None:
        return OtherLayer(
            name, _rejection(named, inside.get(module)), aliases=tuple(named.values())
        )
    keys, compute, notes = source
    shape = shapes[keys[-1]]
    filters, channels = shape[0], shape[1]
    bias_shape = tuple(shapes[named["bias"]]) if "bias" in named else None
    if bias_shape not in (None, (filters,)):
        reason = (
            f"its weights are {'x'.join(map(str, shape))} and its bias "
            f"{'x'.join(map(str, bias_shape or ())) or 'one number'}: "
            "it is a ConvTranspose3d, or no convolution"
        )
        return OtherLayer(name, reason, aliases=tuple(named.values()))
    if bias_shape is None or filters == channels:
        notes += (
            "the file does not tell a Conv3d from a ConvTranspose3d; its weights are read as a "
            f"Conv3d's, {_LAYOUT}",
        )
    tensor = f"{module}.weight" if module else ""
    kernel = from_oidhw(compute(*map(read, keys)))
    bias = None if bias_shape is None else read(named["bias"])
    layer = SavedLayer(name, None, kernel, bias, (tensor,) if tensor else (), notes)
    # A bias of `filters` numbers fits a ConvTranspose3d with groups too, but only if `channels`
    # divides `filters`.
    certain = bias_shape is not None and bool(filters % max(channels, 1))
    if suggests_transposed(module) and not certain:
        reason = (
            "its name suggests a transposed convolution (ConvTranspose3d), and its tensors do not "
            "show that it is a Conv3d"
        )
        return OtherLayer(name, reason, layer=layer, tensor=tensor)
    return layer


def _source(named: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> _Source | None:
    """The tensors that a module's weight is computed from; None for unsupported tensors."""
    names = set(named) - {"bias"}
    if names == {"weight"}:
        return (named["weight"],), lambda weight: weight, ()
    for (first, second), how in _PARAMETRIZATIONS.items():
        if names == {first, second}:
            keys = named[first], named[second]
            if len(shapes[keys[1]]) == 5 and how.fits(shapes[keys[0]], shapes[keys[1]]):
                note = (
                    f"its weights are computed from {first} and {second}, as PyTorch's "
                    f"{how.name} does"
                )
                return keys, how.compute, (note,)
    return None


def _rejection(named: Mapping[str, str], inner: str | None) -> str:
    """Why a module with weights of five axes is not read.

    inner : str or None     key of a tensor in one of its submodules
    """
    spectral = {"weight_u", "parametrizations.weight.0._u"} & set(named)
    more = inner or next((key for own, key in named.items() if own not in ("weight", "bias")), "")
    if "weight" in named:
        return f"it also has {more}, so it is more than a Conv3d"
    what = "spectral_norm" if spectral else f"a parametrization ({more})"
    return f"its weights are computed by {what}; remove it in PyTorch and save the model again"

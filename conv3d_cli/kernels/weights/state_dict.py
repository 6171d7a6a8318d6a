"""The layers of a state dict, PyTorch's names and tensors: `NAME.weight` of five axes, with `NAME.bias` where there is one.

A state dict says of no module what it is. A Conv3d holds `weight` and `bias` and nothing else; weights that PyTorch computes
from other tensors are computed as it does (`_COMPUTED`), and what holds more is refused by name. A ConvTranspose3d stores
(in_channels, filters/groups, kd, kh, kw) under the same names: its bias or its own name may show it.

Source: PyTorch, torch/nn/utils/weight_norm.py, parametrizations.py and prune.py; aten/src/ATen/native/WeightNorm.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from conv3d_cli.kernels.weights.layer import (
    Array,
    OtherLayer,
    SavedLayer,
    from_oidhw,
    sounds_transposed,
)

_LAYOUT = "(filters, in_channels/groups, depth, height, width)"
# tensors, what is computed of them, notes
_Source = tuple[tuple[str, ...], "_Compute", tuple[str, ...]]
_Compute = Callable[..., Array]


def _weight_norm(size: Array, direction: Array) -> Array:
    """g · v / ‖v‖; the norm is taken over the axes that g has not."""
    axes = tuple(axis for axis in range(direction.ndim) if size.ndim == 0 or size.shape[axis] == 1)
    wide = direction.astype(np.float64)
    with np.errstate(
        all="ignore"
    ):  # a direction of zeros gives NaN, as in PyTorch; NaN is refused later
        scaled: Array = wide * (size / np.sqrt((wide**2).sum(axes, keepdims=True)))
        return scaled.astype(direction.dtype)


def _is_norm_of(size: Sequence[int], direction: Sequence[int]) -> bool:
    """Whether a tensor's shape is that of the norms of another along all axes, or all but one."""
    if not size:
        return True
    ones = [n == 1 for n in size]
    return (
        len(size) == len(direction)
        and ones.count(False) <= 1
        and all(one or n == whole for one, n, whole in zip(ones, size, direction, strict=True))
    )


def _pruned(weight: Array, mask: Array) -> Array:
    pruned: Array = weight * mask.astype(weight.dtype)
    return pruned


# the two tensors that a module holds in place of `weight`: what PyTorch calls it, how it computes, what their shapes must be
_COMPUTED: dict[tuple[str, str], tuple[str, _Compute, Callable[[Sequence[int], Sequence[int]], bool]]] = {
    ("weight_g", "weight_v"): ("weight_norm", _weight_norm, _is_norm_of),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"): ("weight_norm", _weight_norm, _is_norm_of),
    ("weight_orig", "weight_mask"): ("prune", _pruned, lambda weight, mask: tuple(weight) == tuple(mask)),
}  # fmt: skip


def read_state_dict(
    shapes: Mapping[str, Sequence[int]], read: Callable[[str], Array]
) -> list[SavedLayer | OtherLayer]:
    """What a state dict holds, in the order of its tensors.

    shapes : name -> shape      of every tensor
    read : callable             name -> the tensor
    """
    modules: dict[str, dict[str, str]] = {}  # module -> its own name of a tensor -> the tensor's
    inside: dict[str, str] = {}  # module -> a tensor of a module in it
    adapters: dict[str, str] = {}  # module -> a tensor of a LoRA adapter that it holds
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
    """A tensor's module, and its name there, which may have a parametrization in it.

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
    """A module that holds weights of five axes."""
    name = module or "weight"
    around = [holder for holder in (module, module.rpartition(".")[0]) if holder in adapters]
    if any(word.startswith("lora_") for word in module.split(".")):
        return OtherLayer(name, "it is a part of a LoRA adapter", aliases=tuple(named.values()))
    if around:
        reason = f"a LoRA adapter acts on it ({adapters[around[0]]}); merge it in PyTorch and save the model again"
        return OtherLayer(name, reason, aliases=tuple(named.values()))
    source = None if module and module in inside else _source(named, shapes)
    if source is None:
        return OtherLayer(name, _why_not(named, inside.get(module)), aliases=tuple(named.values()))
    keys, compute, notes = source
    shape = shapes[keys[-1]]
    filters, channels = shape[0], shape[1]
    bias_shape = tuple(shapes[named["bias"]]) if "bias" in named else None
    if bias_shape not in (None, (filters,)):
        held = f"its weights are {'x'.join(map(str, shape))} and its bias {'x'.join(map(str, bias_shape or ())) or 'one number'}"
        return OtherLayer(
            name, f"{held}: a ConvTranspose3d's, or no convolution's", aliases=tuple(named.values())
        )
    if bias_shape is None or filters == channels:
        notes += (
            f"the file does not tell a Conv3d from a ConvTranspose3d; its weights are read as a Conv3d's, {_LAYOUT}",
        )
    tensor = f"{module}.weight" if module else ""
    bias = None if bias_shape is None else read(named["bias"])
    layer = SavedLayer(
        name, None, from_oidhw(compute(*map(read, keys))), bias, (tensor,) if tensor else (), notes
    )
    # a ConvTranspose3d with groups can have a bias of this length, but not if these numbers do not divide
    certain = bias_shape is not None and bool(filters % max(channels, 1))
    if sounds_transposed(module) and not certain:
        reason = "its name is a transposed convolution's (ConvTranspose3d), and its tensors do not tell that it is a Conv3d"
        return OtherLayer(name, reason, layer=layer, tensor=tensor)
    return layer


def _source(named: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> _Source | None:
    """What the weights of a module are computed from; None if it holds anything that is not understood."""
    names = set(named) - {"bias"}
    if names == {"weight"}:
        return (named["weight"],), lambda weight: weight, ()
    for (first, last), (called, compute, fits) in _COMPUTED.items():
        if names == {first, last}:
            keys = named[first], named[last]
            if len(shapes[keys[1]]) == 5 and fits(shapes[keys[0]], shapes[keys[1]]):
                return (
                    keys,
                    compute,
                    (
                        f"its weights are computed from {first} and {last}, as PyTorch's {called} does",
                    ),
                )
    return None


def _why_not(named: Mapping[str, str], inner: str | None) -> str:
    spectral = {"weight_u", "parametrizations.weight.0._u"} & set(named)
    more = inner or next((key for own, key in named.items() if own not in ("weight", "bias")), "")
    if "weight" in named:
        return f"it holds {more}, too, so it is more than a Conv3d"
    what = "spectral_norm" if spectral else f"a parametrization ({more})"
    return f"its weights are computed by {what}; take it off in PyTorch and save the model again"

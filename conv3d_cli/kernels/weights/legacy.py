"""Keras' legacy `.h5` and `.hdf5` files: whole models with their JSON, or weights only.

Keras 2 writes them, and Keras 3 when it saves to .h5. The attribute `layer_names` lists the layers
in order. The attribute `weight_names` of a layer's group lists the paths of its datasets:
`conv3d/kernel:0` in Keras 2, `conv3d/kernel` in Keras 3. A nested model is one layer with all its
weights.

Source: Keras 3, keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from conv3d_cli.errors import FormatError, ShapeError
from conv3d_cli.kernels.weights import keras
from conv3d_cli.kernels.weights.hdf5 import (
    find_member,
    is_dataset,
    is_group,
    list_attribute,
    open_hdf5,
    read_dataset,
    text_attribute,
)
from conv3d_cli.kernels.weights.layer import (
    Array,
    OtherLayer,
    SavedLayer,
    flat_note,
    parse_json,
    require_match,
)
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.linear import combine


def read_h5(path: str) -> list[SavedLayer | OtherLayer]:
    """Read the layers of any HDF5 file of Keras; its content decides the layout, not its suffix.

    Raises: FormatError for a damaged or foreign file; ShapeError for arrays of too many elements.
    """
    size = check_input(path)
    with open_hdf5(path, path) as root:
        container = root["model_weights"] if is_group(find_member(root, "model_weights")) else root
        if list_attribute(container, "layer_names") is not None:
            return _read_legacy(root, container, size, path)
        if not keras.is_weights_h5(root):
            raise FormatError(f"cannot read {path}: an HDF5 file, but not one that Keras saved")
        return list(keras.read_weights_h5(root, size, path).values())


def read_h5_config(path: str) -> dict[str, Any] | None:
    """Read the model's JSON; None if the file stores weights only. Raises: FormatError."""
    with open_hdf5(path, path) as root:
        return _model_config(root, path)


def _model_config(root: Any, path: str) -> dict[str, Any] | None:
    text = text_attribute(root, "model_config")
    return None if text is None else parse_json(text.encode(), "its model_config", path)


def _read_legacy(root: Any, container: Any, size: int, path: str) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a file in the legacy layout.

    root, container : groups    the file, and its group with the attribute `layer_names`
    size : int                  bytes of the file
    """

    def attribute(name: str) -> str | None:
        return text_attribute(container, name) or text_attribute(root, name)

    version = attribute("keras_version") or "1"
    if version.startswith("1"):
        raise FormatError(
            f"cannot read {path}: it was saved by Keras 1, whose layouts differ; "
            "load and save it once with Keras 2"
        )
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for outer in list_attribute(container, "layer_names") or []:
        group = find_member(container, outer)
        if not is_group(group):
            raise FormatError(f"cannot read {path}: damaged: it has no group for its layer {outer}")
        groups[outer] = {
            above: {leaf: find_member(group, weight) for leaf, weight in leaves.items()}
            for above, leaves in _by_layer(list_attribute(group, "weight_names") or []).items()
        }

    def read(dataset: Any) -> Array:
        return read_dataset(dataset, size, f"the dataset {dataset.name}", path)

    return read_named_layers(
        groups, _model_config(root, path), version, read, path, attribute("backend") or ""
    )


def read_named_layers(
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    model: dict[str, Any] | None,
    version: str,
    read_array: Callable[[Any], Array],
    path: str,
    backend: str = "",
) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a file that stores its weights by names, in their order.

    groups : mapping        outer layer, or "" -> path of a layer -> name of a weight -> its array
                            in the file, which has a shape
    model : dict or None    JSON of the model; None if the file stores weights only
    version : str           of Keras
    read_array : callable   array in the file -> array
    backend : str           of Keras
    Raises: FormatError if config and weights do not belong together; as `read_array`.
    """
    entries = None if model is None else _named_entries(model)
    contents: list[SavedLayer | OtherLayer] = []
    for outer, layers in groups.items():
        for above, leaves in layers.items():
            inner = above.rpartition("/")[2] or outer
            around = outer or above.partition("/")[0]
            aliases = () if inner == around else (f"{around}/{inner}",)
            key = (around,) if inner == around else (around, inner)
            entry = None if entries is None else entries.get(key, entries.get((inner,)))
            arrays = {leaf.partition(":")[0]: array for leaf, array in leaves.items()}
            if entry is not None and entry.rank is None:
                other = entry.as_other_layer(is_dataset(arrays.get("kernel"), 5))
                contents.append(replace(other, name=inner, aliases=aliases))
                continue
            reason, is_convolution = _rejection(inner, arrays, entry)
            if not reason and entries is not None and entry is None:
                reason = "the model's config does not have its class"
            if reason:
                contents.append(OtherLayer(inner, reason, is_convolution, aliases))
                continue

            def read(leaf: str, arrays: dict[str, Any] = arrays, inner: str = inner) -> Array:
                if not is_dataset(arrays[leaf]):
                    raise FormatError(
                        f"cannot read {path}: damaged: it has no {leaf} of layer {inner}"
                    )
                return read_array(arrays[leaf])

            if entry is not None and set(arrays) >= LORA:
                kernel = merge_lora(read, entry.layer["config"], entry.name)
            else:
                kernel = read("kernel")
            bias = read("bias") if "bias" in arrays else None
            rank = kernel.ndim - 2
            layer = SavedLayer(inner, None, keras.lifted_kernel(kernel), bias, aliases)
            if backend == "theano":  # Theano convolves, the other backends correlate
                layer = replace(layer, kernel=layer.kernel[::-1, ::-1, ::-1].copy())
            if entry is not None:
                contents.append(entry.with_weights(layer, version, path))
            else:
                notes = () if rank == 3 else (flat_note(rank),)
                contents.append(require_match(replace(layer, notes=notes), path))
    # layers without weights
    names = {item.name for item in contents}
    unique = list(dict.fromkeys((entries or {}).values()))
    omittable = keras.omittable_layers(unique)
    for entry in unique:
        if entry.name not in names and entry.rank is None and entry not in omittable:
            contents.append(entry.as_other_layer(is_convolution=False))
    return contents


def _by_layer(weights: list[str]) -> dict[str, dict[str, str]]:
    """Group the paths of weights by layer: path of the layer -> name of the weight -> full path."""
    layers: dict[str, dict[str, str]] = {}
    for weight in weights:
        above, _, leaf = weight.rpartition("/")
        layers.setdefault(above, {})[leaf] = weight
    return layers


def _named_entries(model: dict[str, Any]) -> dict[tuple[str, ...], keras.ConfigLayer]:
    """Layers of a model by name, and by (outermost or innermost model or wrapper, name)."""
    named: dict[tuple[str, ...], keras.ConfigLayer] = {}
    for entry in keras.walk_config(model):
        for key in ((entry.name,), (entry.names[0], entry.name), entry.names[-2:]):
            named[key] = entry
    return named


def _rejection(
    name: str, datasets: dict[str, Any], entry: keras.ConfigLayer | None
) -> tuple[str, bool]:
    """Why weights cannot be read as a Conv3D ("" if they can), and whether the layer convolves."""
    kernel, bias = datasets.get("kernel"), datasets.get("bias")
    ranks = (1, 2, 3) if entry is None else (entry.rank,)
    if kernel is None or not is_dataset(kernel) or len(kernel.shape) - 2 not in ranks:
        return _NO_KERNEL, "conv" in name.lower() and is_dataset(kernel)
    others = set(datasets) - {"kernel", "bias"}
    if others == LORA and entry is None:
        return "its LoRA weights need the lora_alpha of a model config, which the file lacks", True
    if others and others != LORA:
        return f"it also has {', '.join(sorted(others))}, so it is more than a Conv3D", True
    return ("" if entry is not None else keras.transposed_reason(name, kernel, bias)), True


_NO_KERNEL = "it has no weights of 3 to 5 axes"
LORA = {"lora_kernel_a", "lora_kernel_b"}


def merge_lora(read: Callable[[str], Array], config: Mapping[str, Any], name: str) -> Array:
    """The effective kernel of a layer with a LoRA adapter: kernel + alpha / rank · a · b.

    read : callable     name of a weight -> the weight
    config, name        of the layer
    Raises: ShapeError for weights that do not belong together.
    Source: Keras 3, base_conv.py and dense.py, kernel.
    """
    kernel, first, second = read("kernel"), read("lora_kernel_a"), read("lora_kernel_b")
    rank = second.shape[0] if second.ndim == 2 else 0
    if (first.shape, second.shape) != ((*kernel.shape[:-1], rank), (rank, kernel.shape[-1])):
        raise ShapeError(
            f"layer {name}: its LoRA weights are {first.shape} and {second.shape}, "
            f"its kernel {kernel.shape}"
        )
    alpha = config.get("lora_alpha")
    # versions of Keras without lora_alpha used the rank in its place
    scale = 1.0 if alpha is None else float(alpha) / max(rank, 1)
    return (kernel + scale * combine(first.reshape(-1, rank), second).reshape(kernel.shape)).astype(
        kernel.dtype
    )

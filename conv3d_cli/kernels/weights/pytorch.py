"""PyTorch `.pt` and `.pth`: read state dicts of torch.save (PyTorch >= 1.6) without unpickling.

PyTorch is not needed. The file is a zip of `data.pkl`, which names the tensors (see `pickles.py`),
and one member of raw bytes for each storage. State dicts inside a checkpoint are found too. Loading
whole modules, TorchScript or the format before 1.6 would run code: they are refused, and the error
says how to save them as safetensors.

Source: PyTorch, torch/serialization.py.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    FLOATS,
    Archive,
    Array,
    OtherLayer,
    SavedLayer,
    decode_floats,
    require_shape,
)
from conv3d_cli.kernels.weights.pickles import RefusedError, Tensor, read_pickle
from conv3d_cli.kernels.weights.state_dict import read_state_dict
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.inputs import check_input

CURE = (
    "save its weights in PyTorch: from safetensors.torch import save_model; "
    "save_model(module, 'net.safetensors'), or torch.save(module.state_dict(), 'net.pt')"
)
_MAX_DEPTH = 8  # nested dicts and lists


def read_pytorch(path: str) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a PyTorch file, in the order of its state dict.

    Raises: FormatError for a damaged or foreign file; ShapeError for tensors of too many elements.
    """
    check_input(path)
    if not zipfile.is_zipfile(path):
        raise FormatError(
            f"cannot read {path}: not the zip format of PyTorch 1.6 and later, or damaged; older "
            f"files run code when they are loaded: {CURE}"
        )
    with Archive(path) as archive:
        folders = [
            name.removesuffix("data.pkl") for name in archive.names if name.endswith("/data.pkl")
        ]
        if len(folders) != 1 or folders[0].count("/") != 1:
            raise FormatError(
                f"cannot read {path}: not a file of torch.save: it holds no data.pkl; {CURE}"
            )
        folder = folders[0]
        if any(
            name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in archive.names
        ):
            raise FormatError(
                f"cannot read {path}: it is TorchScript, a program with its weights; {CURE}"
            )
        try:
            content = read_pickle(archive.read(f"{folder}data.pkl"))
        except RefusedError as error:
            raise FormatError(
                f"cannot read {path}: it pickles more than tensors and plain containers ({error}), "
                f"and pickles are never run; {CURE}"
            ) from None
        except FormatError:
            raise
        except Exception as error:  # a damaged pickle may raise any class
            raise_fault(error, path)
            raise FormatError(
                f"cannot read {path}: its data.pkl is damaged ({type(error).__name__})"
            ) from error
        byte_order = "<"
        if f"{folder}byteorder" in archive.names and archive.read(f"{folder}byteorder") == b"big":
            byte_order = ">"
        tensors = _named_tensors(content)
        storages: dict[str, Array] = {}

        def read(name: str) -> Array:
            return _read_tensor(tensors[name], name, archive, folder, byte_order, storages, path)

        return read_state_dict({name: tensor.shape for name, tensor in tensors.items()}, read)


def _named_tensors(content: Any) -> dict[str, Tensor]:
    """Tensors of a state dict, or of all state dicts in a checkpoint, by name.

    The name is the key in the state dict. If any key of a dict occurs in another dict too, all its
    tensors are named by their full path, so that a layer's weight and bias stay together.
    """
    tensors = list(_walk_tensors(content, (), set()))
    counts = Counter(key for _, key, _ in tensors)
    ambiguous = {above for above, key, _ in tensors if counts[key] > 1}
    return {
        ".".join((*above, key)) if above in ambiguous else key: tensor
        for above, key, tensor in tensors
    }


def _walk_tensors(
    content: Any, above: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], str, Tensor]]:
    """Yield (keys of the dicts above, key, tensor) of every tensor in nested dicts and lists.

    For a tensor in a list, the key is the full path, and the keys above are empty.
    """
    if not isinstance(content, (dict, list, tuple)) or len(above) >= _MAX_DEPTH:
        return
    if id(content) in seen:  # a container that occurs twice may occur a billion times
        return
    seen.add(id(content))
    pairs = (
        content.items()
        if isinstance(content, dict)
        else [(str(i), part) for i, part in enumerate(content)]
    )
    for key, value in pairs:
        if isinstance(key, str):
            if isinstance(value, Tensor):
                in_dict = isinstance(content, dict)
                yield (above, key, value) if in_dict else ((), ".".join((*above, key)), value)
            yield from _walk_tensors(value, (*above, key), seen)


def _read_tensor(
    tensor: Tensor,
    name: str,
    archive: Archive,
    folder: str,
    byte_order: str,
    storages: dict[str, Array],
    path: str,
) -> Array:
    """Read a tensor from its storage in the archive; `storages` caches decoded storages by key."""
    storage, what = tensor.storage, f"tensor {name[:80]}"
    require_shape(tensor.shape, what, path)
    if storage.dtype not in FLOATS:
        raise FormatError(f"cannot read {path}: {what} holds {storage.dtype}, not floats")
    member = f"{folder}data/{storage.key}"
    if storage.key not in storages:
        width = FLOATS[storage.dtype]
        size = archive.size(member) if member in archive.names else 0
        needed = storage.count * width
        if needed > size:
            raise FormatError(
                f"cannot read {path}: truncated: {what} needs {needed:,} bytes of {member}, which "
                f"has {size:,}"
            )
        raw = archive.read(member)[:needed]
        storages[storage.key] = decode_floats(raw, storage.dtype, byte_order)
    values = storages[storage.key]
    last = tensor.offset + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    count = int(np.prod(tensor.shape, dtype=object))
    if count and (last >= values.size or count > values.size):
        raise FormatError(f"cannot read {path}: {what} reaches beyond its {values.size:,} numbers")
    steps = [stride * values.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(
        values[tensor.offset :], tensor.shape, steps, writeable=False
    )
    return np.array(view, order="C") if count else np.empty(tensor.shape, values.dtype)

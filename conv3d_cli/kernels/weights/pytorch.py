"""PyTorch `.pt` and `.pth`: the state dicts of torch.save since version 1.6, read without PyTorch and without unpickling.

Such a file is a zip of `data.pkl`, which names the tensors (see `pickles.py`), and of one member of plain bytes for each
storage. A state dict within a checkpoint's dict is found too. Whole modules, TorchScript and the format before 1.6 can only
be loaded by running code, and are refused with the way to safetensors.

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
from conv3d_cli.system.inputs import check_input

CURE = (
    "save its weights in PyTorch: from safetensors.torch import save_model; save_model(module, 'net.safetensors'), or "
    "torch.save(module.state_dict(), 'net.pt')"
)
_DEPTH = 8  # dicts within dicts


def read_pytorch(path: str) -> list[SavedLayer | OtherLayer]:
    """The layers in the order of the state dict."""
    check_input(path)
    if not zipfile.is_zipfile(path):
        raise FormatError(
            f"cannot read {path}: not the zip format of PyTorch 1.6 and later, or damaged; older files run code when they are "
            f"loaded: {CURE}"
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
                f"cannot read {path}: it pickles more than tensors and plain containers ({error}), and pickles are never run; "
                f"{CURE}"
            ) from None
        except FormatError:
            raise
        except Exception as error:  # damaged pickles fail in any way
            raise FormatError(
                f"cannot read {path}: its data.pkl is damaged ({type(error).__name__})"
            ) from error
        order = (
            ">"
            if f"{folder}byteorder" in archive.names
            and archive.read(f"{folder}byteorder") == b"big"
            else "<"
        )
        tensors = _named_tensors(content)
        storages: dict[str, Array] = {}

        def read(name: str) -> Array:
            return _read_tensor(tensors[name], name, archive, folder, order, storages, path)

        return read_state_dict({name: tensor.shape for name, tensor in tensors.items()}, read)


def _named_tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of those in a checkpoint: by their keys there, and by all keys where those clash.

    A dict's tensors are named alike, so that none loses the bias that belongs to it.
    """
    found = list(_walk(content, (), set()))
    seen = Counter(key for _, key, _ in found)
    clashing = {above for above, key, _ in found if seen[key] > 1}
    return {
        ".".join((*above, key)) if above in clashing else key: tensor
        for above, key, tensor in found
    }


def _walk(
    content: Any, above: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], str, Tensor]]:
    """The keys above a dict, the key in it, and the tensor there; what lies in a list is named by all of them."""
    if not isinstance(content, (dict, list, tuple)) or len(above) >= _DEPTH or id(content) in seen:
        return  # a dict that comes twice could come a billion times
    seen.add(id(content))
    pairs = (
        content.items()
        if isinstance(content, dict)
        else [(str(i), part) for i, part in enumerate(content)]
    )
    for key, value in pairs:
        if isinstance(key, str):
            if isinstance(value, Tensor):
                yield (
                    (above, key, value)
                    if isinstance(content, dict)
                    else ((), ".".join((*above, key)), value)
                )
            yield from _walk(value, (*above, key), seen)


def _read_tensor(
    tensor: Tensor,
    name: str,
    archive: Archive,
    folder: str,
    order: str,
    storages: dict[str, Array],
    path: str,
) -> Array:
    storage, what = tensor.storage, f"tensor {name[:80]}"
    require_shape(tensor.shape, what, path)
    if storage.dtype not in FLOATS:
        raise FormatError(f"cannot read {path}: {what} holds {storage.dtype}, not floats")
    member = f"{folder}data/{storage.key}"
    if storage.key not in storages:
        width = FLOATS[storage.dtype]
        held = archive.size(member) if member in archive.names else 0
        if storage.count * width > held:
            raise FormatError(
                f"cannot read {path}: truncated: {what} needs {storage.count * width:,} bytes of {member}, which has {held:,}"
            )
        storages[storage.key] = decode_floats(
            archive.read(member)[: storage.count * width], storage.dtype, order
        )
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

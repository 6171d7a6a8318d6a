"""Models in several files, as Hugging Face saves them.

An index in JSON names the file of each tensor.

Source: huggingface_hub, serialization (split_torch_state_dict_into_shards).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import Array, OtherLayer, SavedLayer, file_beside, read_json
from conv3d_cli.kernels.weights.pytorch import open_pytorch
from conv3d_cli.kernels.weights.safetensors import open_safetensors
from conv3d_cli.kernels.weights.state_dict import StateDict, read_state_dict

_MAX_FILES = 256  # open at once
# suffix of a file -> what opens it
_OPENERS: dict[str, Callable[[str], AbstractContextManager[StateDict]]] = {
    ".safetensors": open_safetensors,
    ".bin": open_pytorch,
    ".pt": open_pytorch,
    ".pth": open_pytorch,
}


def read_index(path: str, only: str | None = None) -> list[SavedLayer | OtherLayer]:
    """Read the layers of all files of an index, in its order of tensors.

    only : as in `read_state_dict`
    The files are in the folder of the index.
    Raises: FormatError for a damaged index, and for a file that is missing or lacks a tensor; as
    the readers of the files.
    """
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise FormatError(f"cannot read {path}: damaged: an index without a 'weight_map' of files")
    if any(isinstance(name, list) for name in table.values()):
        files = sorted({str(name) for each in table.values() for name in _listed(each)})
        raise FormatError(
            f"cannot read {path}: it is the index of Keras weights in other files; pass the one "
            f"with the layer, as in {files[0][:80] if files else 'model_00000.weights.h5'}"
        )
    names = sorted({str(name) for name in table.values()})
    if len(names) > _MAX_FILES:
        raise FormatError(
            f"cannot read {path}: it names {len(names):,} files; at most {_MAX_FILES} are read"
        )
    with contextlib.ExitStack() as stack:
        states = {name: stack.enter_context(_opened(path, name)) for name in names}
        for key, name in table.items():
            state = states[name]
            if key not in state.shapes and key not in state.unreadable:
                raise FormatError(
                    f"cannot read {path}: it names the tensor {key[:80]} in {name}, which lacks it"
                )

        def read(key: str) -> Array:
            return states[table[key]].read(key)

        whole = StateDict(
            {
                key: states[name].shapes[key]
                for key, name in table.items()
                if key in states[name].shapes
            },
            read,
            unreadable={
                key: states[name].unreadable[key]
                for key, name in table.items()
                if key in states[name].unreadable
            },
            identity=lambda key: (table[key], states[table[key]].identity(key)),
        )
        return read_state_dict(whole, path, only)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _opened(path: str, name: str) -> AbstractContextManager[StateDict]:
    """Open a file of an index. Raises: FormatError for one elsewhere, or of another kind."""
    opener = _OPENERS.get(Path(name).suffix.lower())
    if opener is None or name != os.path.basename(name) or set(name) & set("\\:\0"):
        raise FormatError(
            f"cannot read {path}: it names the file {name[:80]!r}; read are {' '.join(_OPENERS)} "
            "in its own folder"
        )
    return opener(file_beside(path, name))

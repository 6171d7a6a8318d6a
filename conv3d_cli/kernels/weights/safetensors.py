"""safetensors: read and write files of a length, a JSON header and the tensors' bytes, by NumPy.

Layers are 5-D tensors `NAME.weight` in PyTorch's layout, with `NAME.bias`. The header is checked as
in the safetensors library: every tensor is inside the file, and the tensors cover all bytes without
overlap.

Source: the format's README, huggingface/safetensors.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    FLOATS,
    MAX_JSON,
    Array,
    OtherLayer,
    SavedLayer,
    decode_floats,
    lost_arguments,
    parse_json,
    read_exactly,
    require_shape,
    to_oidhw,
    with_smallest_dtype,
)
from conv3d_cli.kernels.weights.state_dict import StateDict, read_state_dict
from conv3d_cli.system.inputs import check_input

# dtype in the file -> name of the dtype in this package
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
}
_LENGTH = 8  # bytes of the header's length


def is_header(start: bytes) -> bool:
    """Whether a file that begins so may be a safetensors file."""
    length = int.from_bytes(start[:_LENGTH], "little")
    return start[_LENGTH : _LENGTH + 1] == b"{" and 2 <= length <= MAX_JSON


def read_safetensors(path: str, only: str | None = None) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a safetensors file, in the order of their tensors in the file.

    only : as in `read_state_dict`
    Raises: FormatError for a damaged or foreign file; ShapeError for tensors of too many elements.
    """
    with open_safetensors(path) as state:
        return read_state_dict(state, path, only)


@contextlib.contextmanager
def open_safetensors(path: str) -> Iterator[StateDict]:
    """The state dict of a safetensors file, as a context in which its tensors can be read.

    Raises: as `read_safetensors`.
    """
    size = check_input(path)
    with open(path, "rb") as file:
        length = int.from_bytes(read_exactly(file, _LENGTH, path), "little")
        if length > min(size - _LENGTH, MAX_JSON):
            raise FormatError(
                f"cannot read {path}: not a safetensors file, or truncated: it claims a header of "
                f"{length:,} bytes"
            )
        header = parse_json(read_exactly(file, length, path), "its header", path)
        header.pop("__metadata__", None)
        start = _LENGTH + length
        tensors = _tensor_entries(header, size - start, path)

        def read(name: str) -> Array:
            dtype, shape, begin, end = tensors[name]
            count = require_shape(shape, f"tensor {name}", path)
            if end - begin != count * FLOATS[_DTYPES[dtype]]:
                raise FormatError(
                    f"cannot read {path}: tensor {name} of shape {shape} and {dtype} cannot have "
                    f"{end - begin:,} bytes"
                )
            file.seek(start + begin)
            raw = read_exactly(file, end - begin, path)
            return decode_floats(raw, _DTYPES[dtype]).reshape(shape)

        yield StateDict(
            {name: shape for name, (_, shape, _, _) in tensors.items()},
            read,
            unreadable={
                name: f"its {name.rpartition('.')[2]} holds {dtype[:20]}; known are "
                f"{', '.join(_DTYPES)}"
                for name, (dtype, _, _, _) in tensors.items()
                if dtype not in _DTYPES
            },
        )


def _tensor_entries(
    header: dict[str, Any], size: int, path: str
) -> dict[str, tuple[str, list[int], int, int]]:
    """Parse the header: name -> (dtype, shape, begin and end of its bytes), in the bytes' order.

    size : int      bytes after the header
    Raises: FormatError unless the tensors cover these bytes without gaps and overlaps.
    """
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
            is_valid = isinstance(dtype, str) and isinstance(shape, list)
            is_valid = is_valid and type(begin) is type(end) is int
        except (TypeError, KeyError, ValueError):
            is_valid = False
        if not is_valid or not 0 <= begin <= end <= size:
            raise FormatError(
                f"cannot read {path}: the entry of tensor {name[:80]} in its header is damaged, "
                "or the file is truncated"
            )
        tensors[name] = dtype, shape, begin, end
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
    last = 0
    for name, (_, _, begin, end) in ordered.items():
        if begin != last:
            fault = "overlaps another" if begin < last else "leaves a gap of unused bytes before it"
            raise FormatError(
                f"cannot read {path}: its header is damaged: tensor {name[:80]} {fault}"
            )
        last = end
    if last != size:
        raise FormatError(
            f"cannot read {path}: {size - last:,} bytes at its end belong to no tensor"
        )
    return ordered


def encode_safetensors(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """Encode layers as `NAME.weight` and `NAME.bias`; returns the bytes of the file, and notes.

    The notes list the arguments of layers that the format cannot store.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    begin = 0
    for layer in layers:
        arrays = with_smallest_dtype(layer, halves=True)
        for name, array in (("weight", to_oidhw(arrays.kernel)), ("bias", arrays.bias)):
            if array is not None:
                raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
                header[f"{layer.name}.{name}"] = {
                    "dtype": f"F{8 * array.dtype.itemsize}",
                    "shape": list(array.shape),
                    "data_offsets": [begin, begin + len(raw)],
                }
                begin += len(raw)
                parts.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors, as the library does
    lost = [(layer, lost_arguments(layer)) for layer in layers]
    notes = [
        f"{layer.name}: safetensors holds weights only, without {', '.join(names)}"
        for layer, names in lost
        if names
    ]
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *parts]), notes

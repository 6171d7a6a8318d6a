"""safetensors: a length, a JSON header, then the tensors' bytes. Read with NumPy alone.

Layers are the 5-D tensors `NAME.weight`, as PyTorch stores them, with `NAME.bias`. The header is checked as the library
does: every tensor inside the file, none overlapping another, no byte left over.

Source: the format's README, huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    FLOATS,
    MAX_JSON,
    Array,
    OtherLayer,
    SavedLayer,
    decode_floats,
    parse_json,
    read_exactly,
    require_shape,
    shrunk,
    to_oidhw,
    unheld,
)
from conv3d_cli.kernels.weights.state_dict import read_state_dict
from conv3d_cli.system.inputs import check_input

# dtype -> its name here
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
}
_LENGTH = 8  # bytes of the header's length


def read_safetensors(path: str) -> list[SavedLayer | OtherLayer]:
    """The layers in the order of their tensors in the file."""
    size = check_input(path)
    with open(path, "rb") as file:
        length = int.from_bytes(read_exactly(file, _LENGTH, path), "little")
        if length > min(size - _LENGTH, MAX_JSON):
            raise FormatError(
                f"cannot read {path}: not a safetensors file, or truncated: its header is to have {length:,} bytes"
            )
        header = parse_json(read_exactly(file, length, path), "its header", path)
        header.pop("__metadata__", None)
        start = _LENGTH + length
        tensors = _checked(header, size - start, path)

        def read(name: str) -> Array:
            dtype, shape, begin, end = tensors[name]
            if dtype not in _DTYPES:
                raise FormatError(
                    f"cannot read {path}: tensor {name} holds {dtype}; known are {', '.join(_DTYPES)}"
                )
            count = require_shape(shape, f"tensor {name}", path)
            if end - begin != count * FLOATS[_DTYPES[dtype]]:
                raise FormatError(
                    f"cannot read {path}: tensor {name} of shape {shape} and {dtype} cannot have {end - begin:,} bytes"
                )
            file.seek(start + begin)
            return decode_floats(read_exactly(file, end - begin, path), _DTYPES[dtype]).reshape(
                shape
            )

        shapes = {name: shape for name, (_, shape, _, _) in tensors.items()}
        return read_state_dict(shapes, read)


def _checked(
    header: dict[str, Any], size: int, path: str
) -> dict[str, tuple[str, list[int], int, int]]:
    """Each tensor's dtype, shape, first and last byte, in the order of the bytes.

    size : int      bytes after the header
    """
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
            sound = (
                isinstance(dtype, str)
                and isinstance(shape, list)
                and type(begin) is type(end) is int
            )
        except (TypeError, KeyError, ValueError):
            sound = False
        if not sound or not 0 <= begin <= end <= size:
            raise FormatError(
                f"cannot read {path}: its header on tensor {name[:80]} is damaged, or the file truncated"
            )
        tensors[name] = dtype, shape, begin, end
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
    last = 0
    for name, (_, _, begin, end) in ordered.items():
        if begin != last:
            word = (
                "overlaps another" if begin < last else "leaves bytes before it that no tensor has"
            )
            raise FormatError(
                f"cannot read {path}: its header is damaged: tensor {name[:80]} {word}"
            )
        last = end
    if last != size:
        raise FormatError(
            f"cannot read {path}: {size - last:,} bytes at its end belong to no tensor"
        )
    return ordered


def encode_safetensors(layers: Sequence[SavedLayer]) -> tuple[bytes, list[str]]:
    """The layers as `NAME.weight` and `NAME.bias`, and what the format cannot hold."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    begin = 0
    for layer in layers:
        whole = shrunk(layer, halves=True)
        for name, array in (("weight", to_oidhw(whole.kernel)), ("bias", whole.bias)):
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
    text += b" " * (-len(text) % 8)  # the library aligns the tensors, too
    lost = [(layer, unheld(layer)) for layer in layers]
    notes = [
        f"{layer.name}: safetensors holds weights only, without {', '.join(names)}"
        for layer, names in lost
        if names
    ]
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *parts]), notes

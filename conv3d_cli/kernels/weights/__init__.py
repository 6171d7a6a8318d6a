"""Trained layers straight out of the files they were saved in: Keras, PyTorch, safetensors, ONNX.

`FILE::NAME` is a layer in a weights file; FILE alone is enough where it holds one. A format is one module here with a reader,
maybe an encoder, and a line in `WEIGHTS_FILES`. What is read is a list of `SavedLayer`, in Keras' words and layout, and of
`OtherLayer`: nothing in a file is passed over without a word. Plain arrays (.npy, .npz, ...) are the work of
`kernels/files.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    SpecError,
    UnknownNameError,
    WriteError,
    suggestion,
)
from conv3d_cli.kernels.weights import keras, onnx, pytorch, safetensors
from conv3d_cli.kernels.weights.isolated import in_another_process
from conv3d_cli.kernels.weights.layer import OtherLayer, SavedLayer, reading
from conv3d_cli.system.atomic import AtomicFile, write_errors
from conv3d_cli.system.inputs import check_input

__all__ = [
    "WEIGHTS_FILES",
    "OtherLayer",
    "SavedLayer",
    "WeightsFile",
    "choose_layer",
    "find_weights_file",
    "left_out",
    "model_config",
    "read_contents",
    "read_layers",
    "saved_layer",
    "split_name",
    "weights_suffixes",
    "write_layers",
]

SEPARATOR = "::"
_LISTED = 10  # layers that a message names


@dataclass(frozen=True)
class WeightsFile:
    """A kind of weights file.

    name : str              as messages call it
    suffixes : tuple        lower case, with the dot
    read : callable         path -> the layers in order, and what else there is
    encode : callable       layers -> the whole file, and notes on what it cannot hold; None: never written
    config : callable       path -> the whole model's JSON, or None
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[str], list[SavedLayer | OtherLayer]]
    encode: Callable[[Sequence[SavedLayer]], tuple[bytes, list[str]]] | None = None
    config: Callable[[str], dict[str, Any] | None] = lambda path: None


_read_keras = in_another_process("keras", "read_keras")
_read_h5 = in_another_process("legacy", "read_h5")
_read_h5_config = in_another_process("legacy", "read_h5_config")

# the first that claims a name by its suffix has it
WEIGHTS_FILES: tuple[WeightsFile, ...] = (
    WeightsFile("Keras", (".keras",), _read_keras, keras.encode_keras, keras.read_keras_config),
    WeightsFile(
        "Keras weights", (".weights.h5",), _read_h5, keras.encode_weights_h5, _read_h5_config
    ),
    WeightsFile("legacy Keras", (".h5", ".hdf5"), _read_h5, None, _read_h5_config),
    WeightsFile(
        "safetensors",
        (".safetensors",),
        safetensors.read_safetensors,
        safetensors.encode_safetensors,
    ),
    WeightsFile("ONNX", (".onnx",), onnx.read_onnx, onnx.encode_onnx),
    WeightsFile("PyTorch", (".pt", ".pth"), pytorch.read_pytorch),
)


def find_weights_file(path: str | os.PathLike[str]) -> WeightsFile | None:
    """The kind that claims a file name by its suffix; None if none does.

    >>> find_weights_file("unet.Weights.H5").name, find_weights_file("psf.npy")
    ('Keras weights', None)
    """
    return next((kind for kind in WEIGHTS_FILES if str(path).lower().endswith(kind.suffixes)), None)


def weights_suffixes() -> str:
    """All suffixes, for messages."""
    return " ".join(suffix for kind in WEIGHTS_FILES for suffix in kind.suffixes)


def split_name(text: str) -> tuple[str, str | None]:
    """FILE and NAME of FILE::NAME; None for a file alone, which may have colons in its name.

    >>> split_name("model.keras::conv3d_1"), split_name("model.keras"), split_name("gaussian:sigma=1vox")
    (('model.keras', 'conv3d_1'), ('model.keras', None), ('gaussian:sigma=1vox', None))
    """
    if SEPARATOR not in text or os.path.exists(text):
        return text, None
    parts = text.split(SEPARATOR)
    splits = [(SEPARATOR.join(parts[:i]), SEPARATOR.join(parts[i:])) for i in range(1, len(parts))]
    for sound in (os.path.exists, find_weights_file):
        for path, name in splits:
            if path and sound(path):
                return path, name
    return text, None


def read_layers(path: str | os.PathLike[str]) -> list[SavedLayer]:
    """The Conv3D layers of a weights file, in layer order; what else it holds is in `read_contents`.

    Raises: FormatError if the file is missing, damaged, of no known kind or without such a layer, or a library is missing;
    ShapeError for absurd shapes.
    """
    return [held for held in read_contents(path) if isinstance(held, SavedLayer)]


def read_contents(path: str | os.PathLike[str]) -> list[SavedLayer | OtherLayer]:
    """All that a weights file holds, in layer order: its Conv3D layers, at least one, and what is not read as one.

    Raises: as `read_layers`.
    """
    path = os.fspath(path)
    kind = find_weights_file(path)
    if kind is None:
        raise FormatError(
            f"cannot read {path}: no weights format has this suffix; known are {weights_suffixes()}"
        )
    check_input(path)
    with reading(path):
        contents = kind.read(path)
    if not any(isinstance(held, SavedLayer) or held.layer is not None for held in contents):
        convolutions = [
            held for held in contents if isinstance(held, OtherLayer) and held.is_convolution
        ]
        found = f": {_reasons(convolutions)}" if convolutions else " (5-D weights)"
        raise FormatError(f"cannot read {path}: it holds no Conv3D layer that can be read{found}")
    return contents


def model_config(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The whole model's JSON of a `.keras` or legacy `.h5` file; None where a file holds none.

    Raises: FormatError.
    """
    path = os.fspath(path)
    kind = find_weights_file(path)
    if kind is None:
        return None
    check_input(path)
    with reading(path):
        return kind.config(path)


def saved_layer(text: str) -> SavedLayer:
    """The layer that FILE::NAME, or FILE with a single layer, stands for.

    Raises: as `read_layers`, and as `choose_layer`.
    """
    path, name = split_name(text)
    return choose_layer(read_contents(path), path, name)


def choose_layer(
    contents: Sequence[SavedLayer | OtherLayer], path: str, name: str | None
) -> SavedLayer:
    """The layer of this name: its own, or else one of its aliases. Without a name, the only one.

    Raises: SpecError without a name where the file holds any other layer, or for a name that several have;
    UnknownNameError; FormatError for what cannot be read as a Conv3D layer.
    """
    layers = [held for held in contents if isinstance(held, SavedLayer)]
    others = [held for held in contents if isinstance(held, OtherLayer)]
    listed = ", ".join(map(str, layers[:20])) + (
        f", ... ({len(layers)} in all)" if len(layers) > 20 else ""
    )
    if name is None:
        if len(layers) == 1 and not others:
            return layers[0]
        convolutions = [held for held in others if held.is_convolution]
        rest = [held.name for held in others if not held.is_convolution]
        holds = [f"{len(layers)} layer{'s' * (len(layers) > 1)}: {listed}"] if layers else []
        if convolutions:
            holds.append(f"{len(convolutions)} that cannot be read: {_reasons(convolutions)}")
        if rest:
            holds.append(
                f"{len(rest)} that {'is' if len(rest) == 1 else 'are'} no Conv3D: {_names(rest)}"
            )
        example = (
            _unique_name(layers, 0)
            if layers
            else next(held.tensor for held in convolutions if held.layer)
        )
        raise SpecError(
            f"{path} holds {', and '.join(holds)}; choose one, as in {path}{SEPARATOR}{example}"
        )
    for has in (
        lambda held: held.name == name,
        lambda held: name in held.aliases[:1],
        lambda held: name in held.aliases,
    ):
        matches = [layer for layer in layers if has(layer)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = " or ".join(_unique_name(layers, layers.index(layer)) for layer in matches)
            raise SpecError(f"{path} holds {len(matches)} layers '{name}'; write {names}")
        for other in filter(has, others):
            cure = (
                f"; if it is one, name its tensor: {path}{SEPARATOR}{other.tensor}"
                if other.layer
                else ""
            )
            raise FormatError(
                f"cannot read layer '{name}' of {path} as a Conv3D: {other.reason}{cure}"
            )
    for other in others:
        if other.layer is not None and name == other.tensor:
            return other.layer
    known = list(dict.fromkeys(each for held in contents for each in (held.name, *held.aliases)))
    hint = suggestion(name, known)
    raise UnknownNameError(f"{path} holds no layer '{name}'; {hint}it holds {listed}")


def left_out(others: Sequence[OtherLayer], path: str) -> list[str]:
    """Notes on what is not among the layers of a file: convolutions with the reason, the names of the rest."""
    convolutions = [other for other in others if other.is_convolution]
    rest = [other.name for other in others if not other.is_convolution]
    notes = (
        [f"{path} has convolutions that are left out: {_reasons(convolutions)}"]
        if convolutions
        else []
    )
    if rest:
        notes.append(f"{path} has other layers, which are left out: {_names(rest)}")
    return notes


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _reasons(others: Sequence[OtherLayer]) -> str:
    """Names and reasons, for messages."""
    listed = ", ".join(f"{other.name} ({other.reason})" for other in others[:_LISTED])
    return listed + (f", ... ({len(others)} in all)" if len(others) > _LISTED else "")


def _unique_name(layers: Sequence[SavedLayer], index: int) -> str:
    """A name or alias that no other layer has."""
    layer = layers[index]
    others = [
        each for other in layers if other is not layer for each in (other.name, *other.aliases)
    ]
    return next((each for each in (layer.name, *layer.aliases) if each not in others), layer.name)


def write_layers(
    path: str | os.PathLike[str], layers: Sequence[SavedLayer], *, overwrite: bool = False
) -> list[str]:
    """Write layers in the format of the suffix; returns notes on what it cannot hold.

    The same layers give the same bytes, and the file appears complete or not at all.
    Raises: SpecError for an unknown suffix or attributes; OutputExistsError; WriteError if the format cannot hold them;
    ShapeError for weights that are NaN or infinite.
    """
    kind = find_weights_file(path)
    if kind is None:
        raise SpecError(
            f"cannot write {path}: no weights format has this suffix; known are {weights_suffixes()}"
        )
    if kind.encode is None:
        able = " ".join(other.suffixes[0] for other in WEIGHTS_FILES if other.encode)
        raise SpecError(
            f"cannot write {path}: {kind.name} files are only read; write {able} instead"
        )
    for layer in layers:
        layer.as_kernel(layer.name)
    with AtomicFile(path, overwrite) as output:
        try:
            content, notes = kind.encode(layers)
        except Conv3DError as error:
            written = WriteError if isinstance(error, FormatError) else type(error)
            raise written(f"cannot write {Path(path)}: {error}") from error
        with write_errors(path):
            output.file.write(content)
        output.commit()
    return notes

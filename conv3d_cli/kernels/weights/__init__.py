"""Read and write trained layers in the files of Keras, PyTorch, safetensors and ONNX.

`FILE::NAME` is a layer of a weights file; FILE alone is enough if the file has a single layer. A
format is one module with a reader and perhaps an encoder, and a line in `WEIGHTS_FILES`. Readers
return a list of `SavedLayer`, with Keras' argument names and layout, and of `OtherLayer` for
anything else in the file, so that nothing is skipped silently. `kernels/files.py` reads plain
arrays (.npy, .npz, ...).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    SpecError,
    UnknownNameError,
    WriteError,
    suggestion,
)
from conv3d_cli.kernels.manifests import START_BYTES, manifest_kind
from conv3d_cli.kernels.weights import (
    exported,
    hdf5,
    keras,
    onnx,
    pytorch,
    safetensors,
    shards,
    tfjs,
)
from conv3d_cli.kernels.weights.layer import OtherLayer, SavedLayer, read_errors
from conv3d_cli.system.atomic import output_file, write_errors
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.isolated import Isolated
from conv3d_cli.system.zips import ZipReader

__all__ = [
    "WEIGHTS_FILES",
    "OtherLayer",
    "SavedLayer",
    "WeightsFile",
    "choose_layer",
    "find_weights_file",
    "kind_by_suffix",
    "model_config",
    "omission_notes",
    "read_contents",
    "read_layers",
    "saved_layer",
    "split_name",
    "weights_suffixes",
    "write_layers",
]

SEPARATOR = "::"
_MAX_LISTED = 10  # layers that a message names


@dataclass(frozen=True)
class WeightsFile:
    """A kind of weights file.

    name : str                  as messages call it
    suffixes : tuple            in lower case, with the dot
    holds : callable            first bytes of a file, names in it if it is a zip -> whether it is
                                of this kind, whatever its suffix
    read : callable             path -> its contents, in layer order
    encode : callable or None   layers -> bytes of the file, and notes on what it cannot store;
                                None: this kind is read-only
    config : callable           path -> JSON of the whole model, or None
    reads_one : bool            whether `read` takes the name of a layer, too, and leaves the
                                weights of others `unread`
    """

    name: str
    suffixes: tuple[str, ...]
    holds: Callable[[bytes, Sequence[str]], bool]
    read: Callable[..., list[SavedLayer | OtherLayer]]
    encode: Callable[[Sequence[SavedLayer]], tuple[bytes, list[str]]] | None = None
    config: Callable[[str], dict[str, Any] | None] = lambda path: None
    reads_one: bool = False


def _isolated(function: str) -> Callable[[str], Any]:
    """A reader of HDF5 files, "module:name" of this package, that runs in a process of its own."""

    def read(path: str) -> Any:
        check_input(path)
        with Isolated(path, "the HDF5 library") as process:
            return process.call(f"{__name__}.layer:read_by", f"{__name__}.{function}", path)

    return read


_read_keras = _isolated("keras:read_keras")
_read_h5 = _isolated("legacy:read_h5")
_read_h5_config = _isolated("legacy:read_h5_config")


def _is_hdf5(start: bytes, members: Sequence[str]) -> bool:
    return start.startswith(hdf5.SIGNATURE)


def _is_described(kind: str) -> Callable[[bytes, Sequence[str]], bool]:
    return lambda start, members: manifest_kind(start) == kind


# The first entry that fits is used.
WEIGHTS_FILES: tuple[WeightsFile, ...] = (
    WeightsFile(
        "Keras",
        (".keras",),
        lambda start, members: keras.CONFIG in members,
        _read_keras,
        keras.encode_keras,
        keras.read_keras_config,
    ),
    WeightsFile(
        "Keras weights",
        (".weights.h5",),
        _is_hdf5,
        _read_h5,
        keras.encode_weights_h5,
        _read_h5_config,
    ),
    WeightsFile("legacy Keras", (".h5", ".hdf5"), _is_hdf5, _read_h5, None, _read_h5_config),
    WeightsFile(
        "safetensors",
        (".safetensors",),
        lambda start, members: safetensors.is_header(start),
        safetensors.read_safetensors,
        safetensors.encode_safetensors,
        reads_one=True,
    ),
    WeightsFile(
        "index of a model",
        (".index.json",),
        _is_described("index"),
        shards.read_index,
        reads_one=True,
    ),
    WeightsFile(
        "TensorFlow.js",
        (),
        _is_described("tfjs"),
        tfjs.read_tfjs,
        config=tfjs.read_tfjs_config,
    ),
    WeightsFile("ONNX", (".onnx",), lambda start, members: False, onnx.read_onnx, onnx.encode_onnx),
    WeightsFile(
        "PyTorch program",
        (".pt2",),
        lambda start, members: exported.is_program(members),
        exported.read_exported,
    ),
    WeightsFile(
        "PyTorch",
        (".pt", ".pth", ".ckpt"),
        lambda start, members: pytorch.is_saved(start, members),
        pytorch.read_pytorch,
        reads_one=True,
    ),
)


def find_weights_file(path: str | os.PathLike[str]) -> WeightsFile | None:
    """The kind of weights file at a path: by its content if it exists, else by its suffix.

    None if neither is of a kind. HDF5 is the format of many other files, so it needs the suffix.

    >>> find_weights_file("unet.Weights.H5").name, find_weights_file("psf.npy")
    ('Keras weights', None)
    """
    named = kind_by_suffix(path)
    start, members = _look_into(os.fspath(path))
    if named is not None and named.holds(start, members):
        return named
    for kind in WEIGHTS_FILES:
        if kind.holds(start, members) and (named is not None or kind.holds is not _is_hdf5):
            return kind
    return named


def kind_by_suffix(path: str | os.PathLike[str]) -> WeightsFile | None:
    """The kind of weights file with the suffix of a path; None if the suffix is of no kind."""
    return next(
        (
            kind
            for kind in WEIGHTS_FILES
            if kind.suffixes and str(path).lower().endswith(kind.suffixes)
        ),
        None,
    )


def _look_into(path: str) -> tuple[bytes, Sequence[str]]:
    """The first bytes of a file, and the names of its members if it is a zip; else nothing.

    A command asks several times; the file is read once, as long as it is the same.
    Raises: MemoryLimitError.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return b"", ()
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return _read_start(path, state)
    except (OSError, ValueError, BadZipFile, NotImplementedError):
        return b"", ()  # the reader says what is wrong


@lru_cache(maxsize=8)
def _read_start(path: str, state: tuple[int, ...]) -> tuple[bytes, Sequence[str]]:
    """As `_look_into`, for a regular file in this state; errors are raised, and not kept."""
    with open(path, "rb") as file:
        start = file.read(START_BYTES)
    if not start.startswith(b"PK\x03\x04"):
        return start, ()
    with ZipReader(path) as archive:
        return start, archive.namelist()


def weights_suffixes() -> str:
    """All suffixes of files that hold weights, for messages; an index holds none."""
    kinds = [kind for kind in WEIGHTS_FILES if kind.read is not shards.read_index]
    return " ".join(suffix for kind in kinds for suffix in kind.suffixes)


def split_name(text: str) -> tuple[str, str | None]:
    """Split FILE::NAME into FILE and NAME; NAME is None for a file alone (which may have colons).

    >>> split_name("model.keras::conv3d_1"), split_name("model.keras")
    (('model.keras', 'conv3d_1'), ('model.keras', None))
    """
    if SEPARATOR not in text or os.path.exists(text):
        return text, None
    parts = text.split(SEPARATOR)
    splits = [(SEPARATOR.join(parts[:i]), SEPARATOR.join(parts[i:])) for i in range(1, len(parts))]
    for is_file in (os.path.exists, find_weights_file):
        for path, name in splits:
            if path and is_file(path):
                return path, name
    return text, None


def read_layers(path: str | os.PathLike[str]) -> list[SavedLayer]:
    """Read the Conv3D layers of a weights file, in layer order; `read_contents` adds the rest.

    Raises: FormatError if the file is missing, damaged, of no known kind or without a Conv3D layer,
    or if its library is not installed; ShapeError for arrays of too many elements.
    """
    return [item for item in read_contents(path) if isinstance(item, SavedLayer)]


def read_contents(
    path: str | os.PathLike[str], only: str | None = None
) -> list[SavedLayer | OtherLayer]:
    """Read a weights file: its Conv3D layers, at least one, and its other parts, in layer order.

    only : str or None      name of the one layer whose weights matter: large files then leave those
                            of other layers `unread`; None: all are read
    Raises: as `read_layers`.
    """
    path = os.fspath(path)
    check_input(path)
    kind = find_weights_file(path)
    if kind is None:
        raise FormatError(
            f"cannot read {path}: no weights format has this suffix; known are {weights_suffixes()}"
        )
    with read_errors(path):
        contents = kind.read(path, only) if kind.reads_one else kind.read(path)
    if not any(isinstance(item, SavedLayer) or item.layer is not None for item in contents):
        convolutions = [
            item for item in contents if isinstance(item, OtherLayer) and item.is_convolution
        ]
        details = f": {_reasons(convolutions)}" if convolutions else " (weights of 3 to 5 axes)"
        raise FormatError(f"cannot read {path}: it holds no Conv3D layer that can be read{details}")
    return contents


def model_config(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The JSON of the whole model in a file of Keras or TensorFlow.js; None if it has none.

    Raises: FormatError if the file is missing or damaged, or h5py is not installed.
    """
    path = os.fspath(path)
    kind = find_weights_file(path)
    if kind is None:
        return None
    check_input(path)
    with read_errors(path):
        return kind.config(path)


def saved_layer(text: str) -> SavedLayer:
    """Read the layer FILE::NAME, or the only layer of FILE.

    Raises: as `read_layers` and `choose_layer`.
    """
    path, name = split_name(text)
    layer = choose_layer(read_contents(path, only=name or ""), path, name)
    kind = find_weights_file(path)
    if name is None and kind is not None and kind.reads_one:
        layer = choose_layer(read_contents(path, only=layer.name), path, layer.name)
    return layer


def choose_layer(
    contents: Sequence[SavedLayer | OtherLayer], path: str, name: str | None
) -> SavedLayer:
    """Choose a layer by its name, else by an alias; without a name, the only layer of the file.

    path : str      of the file, for messages
    Raises: SpecError without a name if the file contains anything else, and for a name of several
    layers; UnknownNameError; FormatError for a part that cannot be read as a Conv3D layer.
    """
    layers = [item for item in contents if isinstance(item, SavedLayer)]
    others = [item for item in contents if isinstance(item, OtherLayer)]
    listed = ", ".join(map(str, layers[:20])) + (
        f", ... ({len(layers)} in all)" if len(layers) > 20 else ""
    )
    if name is None:
        if len(layers) == 1 and not others:
            return layers[0]
        convolutions = [item for item in others if item.is_convolution]
        rest = [item.name for item in others if not item.is_convolution]
        parts = [f"{len(layers)} layer{'s' * (len(layers) > 1)}: {listed}"] if layers else []
        if convolutions:
            noun = "" if layers else " layer" + "s" * (len(convolutions) > 1)
            parts.append(f"{len(convolutions)}{noun} that cannot be read: {_reasons(convolutions)}")
        if rest:
            verb = "is" if len(rest) == 1 else "are"
            parts.append(f"{len(rest)} that {verb} no Conv3D: {_names(rest)}")
        if layers:
            example = _unique_name(layers, 0)
        else:
            example = next(item.tensor for item in convolutions if item.layer)
        raise SpecError(
            f"{path} holds {', and '.join(parts)}; choose one, as in {path}{SEPARATOR}{example}"
        )
    for has_name in (
        lambda item: item.name == name,
        lambda item: name in item.aliases[:1],
        lambda item: name in item.aliases,
    ):
        matches = [layer for layer in layers if has_name(layer)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = " or ".join(_unique_name(layers, layers.index(layer)) for layer in matches)
            raise SpecError(f"{path} holds {len(matches)} layers '{name}'; write {names}")
        for other in filter(has_name, others):
            if other.layer is not None and name == other.tensor:
                return other.layer
            cure = (
                "; to take its weights as those of a Conv3D, name its tensor: "
                f"{path}{SEPARATOR}{other.tensor}"
                if other.layer
                else ""
            )
            raise FormatError(
                f"cannot read layer '{name}' of {path} as a Conv3D: {other.reason}{cure}"
            )
    known = list(dict.fromkeys(each for item in contents for each in (item.name, *item.aliases)))
    inner = [each for each in known if each.endswith((f".{name}", f"/{name}"))]
    hint = f"did you mean '{inner[0]}'? " if inner else suggestion(name, known)
    raise UnknownNameError(f"{path} holds no layer '{name}'; {hint}it holds {listed}")


def omission_notes(others: Sequence[OtherLayer], path: str) -> list[str]:
    """Notes on the parts of a file that are no Conv3D layers; convolutions with their reasons."""
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
    """The first names of a list, for messages."""
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")


def _reasons(others: Sequence[OtherLayer]) -> str:
    """The first names and reasons of a list, for messages."""
    listed = ", ".join(f"{other.name} ({other.reason})" for other in others[:_MAX_LISTED])
    return listed + (f", ... ({len(others)} in all)" if len(others) > _MAX_LISTED else "")


def _unique_name(layers: Sequence[SavedLayer], index: int) -> str:
    """The first name or alias of a layer that no other layer has; its name if there is none."""
    layer = layers[index]
    others = [
        each for other in layers if other is not layer for each in (other.name, *other.aliases)
    ]
    return next((each for each in (layer.name, *layer.aliases) if each not in others), layer.name)


def write_layers(
    path: str | os.PathLike[str], layers: Sequence[SavedLayer], *, overwrite: bool = False
) -> list[str]:
    """Write layers in the format of the suffix; returns notes on what that format cannot store.

    The same layers give the same bytes, and the file appears complete or not at all.
    Raises: SpecError for an unknown suffix or invalid arguments of a layer; OutputExistsError;
    WriteError if the format cannot store the layers; ShapeError for NaN or infinite weights.
    """
    kind = kind_by_suffix(path)
    if kind is None:
        raise SpecError(
            f"cannot write {path}: no weights format has this suffix; known are "
            f"{weights_suffixes()}"
        )
    if kind.encode is None:
        able = " ".join(other.suffixes[0] for other in WEIGHTS_FILES if other.encode)
        raise SpecError(
            f"cannot write {path}: {kind.name} files are only read; write {able} instead"
        )
    for layer in layers:
        layer.as_kernel(layer.name)
    with output_file(path, overwrite) as output:
        try:
            content, notes = kind.encode(layers)
        except Conv3DError as error:
            kind_of_error = WriteError if isinstance(error, FormatError) else type(error)
            raise kind_of_error(f"cannot write {Path(path)}: {error}") from error
        with write_errors(path):
            output.file.write(content)
        output.commit()
    return notes

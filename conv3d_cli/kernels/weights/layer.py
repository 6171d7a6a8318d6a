"""A Conv3D layer of a weights file, and the functions that all readers and writers share.

Readers do not trust a file: they compare its sizes with its length before they allocate memory,
never execute anything stored, and turn every fault into a one-line error that names the file. A
`SavedLayer` always uses Keras' argument names and layout. PyTorch, safetensors and ONNX store
(filters, in_channels/groups, kd, kh, kw); only `from_oidhw` and `to_oidhw` convert that layout.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import Conv3DError, FormatError, ShapeError, SpecError, WriteError
from conv3d_cli.kernels.lengths import MAX_WEIGHTS
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import Triple, triple
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.inputs import check_input, dangling, lies_beside
from conv3d_cli.system.room import (
    JSON_BYTES,
    TEXT_COPIES,
    check_tree,
    require_room,
    require_weights,
)
from conv3d_cli.system.zips import ZipReader

Array = NDArray[Any]

# bytes of a model's config or a header; parsed JSON takes about ten times its size
MAX_JSON = 64 << 20
# A member of an archive that expands to more bytes than this, and by more than this factor, is
# taken for a zip bomb. Trained weights compress by a few per cent, zeros by a factor of 1000.
_HARMLESS_BYTES = 16 << 20
_MAX_COMPRESSION = 100
_MAX_MEMBERS = 100_000  # files in an archive
_MAX_RANK = 32  # axes of an array


@dataclass(frozen=True, eq=False)
class SavedLayer:
    """One Conv3D layer of a weights file.

    name : str                  its name in Keras, PyTorch or ONNX
    config : dict or None       arguments stored in the file, by Keras' names (strides, padding,
                                dilation_rate, groups, activation, data_format, use_bias, ...);
                                padding may also be three [before, after] pairs, or "same_lower";
                                None if the file stores weights only
    kernel : array              (kd, kh, kw, in_channels/groups, filters) floats, in the saved dtype
    bias : array or None        (filters,) floats
    aliases : tuple             other names of the layer, such as its group in a .weights.h5
    notes : tuple               warnings for its user
    """

    name: str
    config: dict[str, Any] | None
    kernel: Array
    bias: Array | None = None
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_kernel(self, name: str) -> Kernel:
        """Convert the layer to a kernel, which messages call `name`.

        Raises: ShapeError if the weights are NaN or infinite.
        """
        return Kernel(self.kernel, self.bias, name=name)

    def __str__(self) -> str:
        bias = "" if self.bias is None else " + bias"
        return f"{self.name} ({'x'.join(map(str, self.kernel.shape))}{bias})"


WEIGHTS_ONLY = (
    "the file holds weights only; strides, padding, ... are Keras' defaults unless they are given"
)


@dataclass(frozen=True, eq=False)
class OtherLayer:
    """A part of a weights file that is not read as a Conv3D layer.

    name : str                  as in `SavedLayer`
    reason : str                why it is not read, as in "it is of class Conv3DTranspose"
    is_convolution : bool       whether it convolves; then messages give its reason
    aliases : tuple             other names of the layer
    layer : SavedLayer or None  the layer if it may be a Conv3D; users choose it by `tensor`
    tensor : str                name of its tensor, one of its aliases; "" without `layer`
    """

    name: str
    reason: str
    is_convolution: bool = True
    aliases: tuple[str, ...] = ()
    layer: SavedLayer | None = None
    tensor: str = ""


# --------------------------------------------------------------------------------------------------
# Errors and input


@contextlib.contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Turn any exception of a parser into a one-line FormatError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Conv3DError:
        raise
    except RecursionError:
        raise FormatError(f"cannot read {path}: nested too deeply") from None
    except Exception as error:
        raise_fault(error, path)
        # h5py, zipfile, json and protobuf raise nearly any class on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"cannot read {path}: {reason[:300]}") from error


def read_by(reader: str, path: str) -> Any:
    """What a reader, "package.module:function", returns for a path, with `read_errors`."""
    module, _, function = reader.partition(":")
    with read_errors(path):
        return getattr(import_module(module), function)(path)


@contextlib.contextmanager
def require_library(library: str, task: str) -> Iterator[None]:
    """Context of the import of an optional library.

    task : str      what needs the library, as in "read net.onnx"
    Raises: FormatError, with the cure, if the library is missing.
    """
    try:
        yield
    except ImportError as error:
        cure = "pip install 'conv3d[weights]'"
        raise FormatError(
            f"cannot {task}: the library {library} is not installed; {cure}"
        ) from error


def parse_json(text: bytes, what: str, path: str) -> dict[str, Any]:
    """Parse a JSON object.

    what : str      name of the text in messages
    Raises: FormatError for anything else, or a key that occurs twice.
    """
    if len(text) > MAX_JSON:
        raise FormatError(
            f"cannot read {path}: {what} has {len(text):,} bytes; at most {MAX_JSON:,} are read"
        )

    check_tree(text, JSON_BYTES, path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise FormatError(f"cannot read {path}: {what} holds a key twice")
        return table

    try:
        content = json.loads(text.decode(), object_pairs_hook=unique)
    except ValueError as error:
        raise FormatError(f"cannot read {path}: {what} is not JSON ({str(error)[:200]})") from None
    if not isinstance(content, dict):
        raise FormatError(f"cannot read {path}: {what} is no JSON object")
    return content


def read_json(path: str) -> dict[str, Any]:
    """Read a file that is a JSON object.

    Raises: FormatError for a file that is missing, too long or anything else; MemoryLimitError.
    """
    size = check_input(path)
    if size > MAX_JSON:
        raise FormatError(
            f"cannot read {path}: it has {size:,} bytes; at most {MAX_JSON:,} of JSON are read"
        )
    require_room(TEXT_COPIES * size, "its text", path)
    with open(path, "rb") as file:
        return parse_json(read_exactly(file, size, path), "its content", path)


def file_beside(path: str, name: str) -> str:
    """The path of a file with weights that another file names.

    path : str      of the file that names it
    Raises: FormatError for a file that is missing, or not in the folder of `path` or below.
    """
    file = os.path.join(os.path.dirname(path), name)
    if not name.isprintable() or "://" in name or not lies_beside(file, path):
        raise FormatError(
            f"cannot read {path}: its weights are in {name!r:.80}; weights are read only from its "
            "own folder"
        )
    if not os.path.isfile(file):
        why = dangling(file) or "it is not in its folder; copy it there"
        raise FormatError(f"cannot read {path}: its weights are in {name[:80]}: {why}")
    return file


def read_exactly(file: IO[bytes], count: int, path: str) -> bytes:
    """Read `count` bytes; memory grows with the bytes present, not with what a header promises.

    Raises: FormatError if the file has fewer.
    """
    parts, missing = [], count
    while missing > 0 and (part := file.read(min(missing, 1 << 20))):
        parts.append(part)
        missing -= len(part)
    if missing:
        raise FormatError(
            f"cannot read {path}: truncated: {missing:,} of {count:,} bytes are missing"
        )
    return b"".join(parts)


class Archive:
    """Members of a zip file by name, with checks against zip bombs. Use it as a context.

    Raises: FormatError on entry if names repeat, members overlap, or there are too many.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._zip = ZipReader(path)
        self._members = {info.filename: info for info in self._zip.infolist()}

    def __enter__(self) -> Archive:
        try:
            self._check()
        except BaseException:
            self._zip.close()
            raise
        return self

    def _check(self) -> None:
        members = self._zip.infolist()
        if len(members) != len(self._members) or len(members) > _MAX_MEMBERS:
            raise FormatError(
                f"cannot read {self._path}: it holds a name twice, or more than {_MAX_MEMBERS:,} "
                "files"
            )
        if sum(info.compress_size for info in members) > check_input(self._path):
            raise FormatError(f"cannot read {self._path}: its {len(members)} files overlap")

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> KeysView[str]:
        """Names of the members, in the archive's order."""
        return self._members.keys()

    def size(self, name: str) -> int:
        """Uncompressed size of a member in bytes. Raises: FormatError if it is missing."""
        return self._info(name).file_size

    def read(self, name: str) -> bytes:
        """Read a member and verify its checksum.

        Raises: FormatError if it is missing, damaged, or expands like a zip bomb; MemoryLimitError.
        """
        info = self._info(name)
        if info.file_size > max(_HARMLESS_BYTES, _MAX_COMPRESSION * info.compress_size):
            raise FormatError(
                f"cannot read {self._path}: {name} would swell from {info.compress_size:,} to "
                f"{info.file_size:,} bytes"
            )
        require_room(info.file_size, f"its {name}", self._path)
        with self._zip.open(info) as member:
            content = read_exactly(member, info.file_size, self._path)
            member.read(1)  # reading past the end makes a member verify its checksum
        return content

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise FormatError(f"cannot read {self._path}: it holds no {name}")
        return self._members[name]


def zip_bytes(members: Mapping[str, bytes]) -> bytes:
    """An uncompressed zip file with fixed time stamps: the same members give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            archive.writestr(member, content)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------
# Numbers


def require_shape(shape: Sequence[int], what: str, path: str) -> int:
    """Check the shape of an array in a file, and return its number of elements.

    what : str      name of the array in messages
    Raises: FormatError for invalid sizes or too many axes; ShapeError for more elements than a
    kernel may have; MemoryLimitError if they do not fit the memory limit.
    """
    if len(shape) > _MAX_RANK or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise FormatError(f"cannot read {path}: {what} has the shape {list(shape)[:8]}")
    count = math.prod(shape)
    if count > MAX_WEIGHTS:
        raise ShapeError(
            f"{what} in {path} has {count:,} weights, shape {tuple(shape)}; "
            f"at most {MAX_WEIGHTS:,} are allowed"
        )
    require_weights(count, path)
    return count


# dtype -> bytes per number
FLOATS = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e5m2": 1,
    "float8_e4m3fn": 1,
}


def decode_floats(raw: bytes, dtype: str, order: str = "<") -> Array:
    """Decode stored floats into a 1-D array; bfloat16 and float8, unknown to NumPy, become float32.

    dtype : str     a key of FLOATS
    order : str     byte order in the file, "<" or ">"

    >>> decode_floats(bytes([0x80, 0x3F]), "bfloat16").tolist()
    [1.0]
    >>> decode_floats(bytes([0x38, 0x7E]), "float8_e4m3fn").tolist()
    [1.0, 448.0]
    """
    if dtype == "bfloat16":
        return (np.frombuffer(raw, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "float8_e5m2":  # the upper half of a float16
        return (
            (np.frombuffer(raw, np.uint8).astype(np.uint16) << 8)
            .view(np.float16)
            .astype(np.float32)
        )
    if dtype == "float8_e4m3fn":
        codes = np.frombuffer(raw, np.uint8).astype(np.int32)
        exponent, mantissa = (codes >> 3) & 15, codes & 7
        size = np.where(
            exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * np.exp2(exponent - 7.0)
        )
        size[(codes & 127) == 127] = np.nan
        return np.where(codes & 128, -size, size).astype(np.float32)
    return np.frombuffer(raw, f"{order}f{FLOATS[dtype]}").astype(f"=f{FLOATS[dtype]}")


def with_smallest_dtype(layer: SavedLayer, *, halves: bool = False) -> SavedLayer:
    """The layer with kernel and bias as float32 if that is exact, else as float64.

    halves : bool       whether two float16 arrays stay float16
    """
    arrays = [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]
    if not (halves and all(array.dtype == np.float16 for array in arrays)):
        with np.errstate(over="ignore"):
            exact = all(
                np.array_equal(array.astype(np.float32), array, equal_nan=True) for array in arrays
            )
        arrays = [array.astype(np.float32 if exact else np.float64) for array in arrays]
    return replace(
        layer, kernel=np.ascontiguousarray(arrays[0]), bias=arrays[1] if len(arrays) > 1 else None
    )


# --------------------------------------------------------------------------------------------------
# PyTorch's layout and names


def from_oidhw(weight: Array) -> Array:
    """Convert weights from PyTorch's layout to Keras'.

    weight : (filters, in_channels/groups, kd, kh, kw)
    Returns (kd, kh, kw, in_channels/groups, filters), contiguous, in the same dtype.
    """
    return np.ascontiguousarray(weight.transpose(2, 3, 4, 1, 0))


def to_oidhw(kernel: Array) -> Array:
    """Convert weights from Keras' layout to PyTorch's: the inverse of `from_oidhw`.

    >>> to_oidhw(np.ones((3, 4, 5, 1, 2))).shape
    (2, 1, 3, 4, 5)
    """
    return np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))


def lifted(weight: Array, rank: int) -> Array:
    """Weights of a convolution of fewer axes as those of a Conv3D of depth (and height) 1.

    weight : (filters, in_channels/groups, *size) with `rank` axes in space
    Returns an array of 5 axes, as a view.

    >>> lifted(np.ones((8, 1, 5, 7)), 2).shape
    (8, 1, 1, 5, 7)
    """
    return weight.reshape(*weight.shape[:2], *[1] * (3 - rank), *weight.shape[2:])


def unread(shape: Sequence[int]) -> Array:
    """An array in place of weights that nobody asked for: it has their shape and no memory.

    >>> unread((1000, 1000, 1000)).strides
    (0, 0, 0)
    """
    return np.broadcast_to(np.zeros((), np.float32), tuple(shape))


def flat_note(rank: int) -> str:
    """The note on a layer with 1 or 2 axes in space.

    >>> flat_note(2)
    'it is 2-D: it acts on each plane of a volume by itself'
    """
    part = "plane" if rank == 2 else "row"
    return f"it is {rank}-D: it acts on each {part} of a volume by itself"


_TRANSPOSED = re.compile(
    r"transp|trans_?conv|conv_?tr(ans)?(?![a-z])|deconv|(?<![a-z])t_?conv|convt(?![a-z])"
)
_UP = re.compile(r"(?<![a-z])up(?![a-z])|(?<![a-z])up_?(conv|sampl|scal|scor)")


def suggests_transposed(name: str) -> bool:
    """Whether a layer's name is typical of transposed convolutions.

    "up" counts in the last word only: modules of that name often contain plain convolutions.

    >>> [suggests_transposed(name) for name in ("up", "up_1.upsample.deconv", "transpconvs.0")]
    [True, True, True]
    >>> [suggests_transposed(name) for name in ("up1.conv.double_conv.0", "update", "upper.conv")]
    [False, False, False]
    """
    words = [word for word in re.split(r"[./]", name.lower()) if not word.isdigit()]
    return any(_TRANSPOSED.search(word) for word in words) or bool(words and _UP.search(words[-1]))


# --------------------------------------------------------------------------------------------------
# Attributes


@dataclass(frozen=True)
class Attributes:
    """A layer's arguments, checked; Keras' defaults for those that its config lacks.

    padding : str or tuple      "valid", "same", "same_lower", or (before, after) along D, H, W
    """

    strides: Triple = (1, 1, 1)
    padding: str | tuple[tuple[int, int], ...] = "valid"
    dilation_rate: Triple = (1, 1, 1)
    groups: int = 1
    activation: Any = "linear"
    data_format: str = "channels_last"

    @property
    def is_strided_dilation(self) -> bool:
        """Whether the layer has both strides > 1 and dilation_rate > 1, which Keras refuses."""
        return max(self.strides) > 1 and max(self.dilation_rate) > 1

    def explicit_pads(self, size: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
        """The padding as (before, after) along D, H, W; None if it depends on the volume's size.

        That is the case for "same" and "same_lower" with strides > 1.

        size : (kd, kh, kw)

        >>> Attributes(padding="same", dilation_rate=(2, 1, 1)).explicit_pads((3, 3, 2))
        ((2, 2), (1, 1), (0, 1))
        """
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "valid":
            return ((0, 0),) * 3
        if max(self.strides) > 1:
            return None
        totals = [(k - 1) * d for k, d in zip(size, self.dilation_rate, strict=True)]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        first, second = (more, less) if self.padding == "same_lower" else (less, more)
        return tuple(zip(first, second, strict=True))


def attributes_of(layer: SavedLayer) -> Attributes:
    """The arguments of the convolution, from the layer's config.

    Raises: SpecError for invalid values.
    """
    config = layer.config or {}
    padding = config.get("padding", "valid")
    if isinstance(padding, str):
        padding = padding.lower()
        if padding not in ("valid", "same", "same_lower"):
            raise SpecError(
                f"layer {layer.name}: padding must be 'valid' or 'same', received {padding!r}"
            )
    else:
        padding = tuple((int(before), int(after)) for before, after in padding)
    groups = config.get("groups", 1)
    if not isinstance(groups, int) or groups < 1 or layer.kernel.shape[4] % groups:
        raise SpecError(
            f"layer {layer.name}: groups must divide the {layer.kernel.shape[4]} filters, received "
            f"groups={groups!r}"
        )
    data_format = config.get("data_format") or "channels_last"
    if data_format not in ("channels_last", "channels_first"):
        raise SpecError(
            f"layer {layer.name}: data_format is channels_last or channels_first, received "
            f"{data_format!r}"
        )
    return Attributes(
        triple(config.get("strides", 1), "strides"),
        padding,
        triple(config.get("dilation_rate", 1), "dilation_rate"),
        groups,
        config.get("activation") or "linear",
        data_format,
    )


def require_match(layer: SavedLayer, path: str) -> SavedLayer:
    """Return the layer if its config and its bias fit its kernel.

    Raises: FormatError if they do not.
    """
    kernel, bias = layer.kernel, layer.bias
    if bias is not None and bias.shape != (kernel.shape[4],):
        raise FormatError(
            f"cannot read {path}: layer {layer.name} has {kernel.shape[4]} filters and a bias of "
            f"{bias.shape}"
        )
    config = layer.config or {}
    try:
        size = triple(config.get("kernel_size", kernel.shape[:3]), "kernel_size")
        filters = config.get("filters", kernel.shape[4])
        attributes_of(layer)
    except (SpecError, TypeError, ValueError) as error:
        raise FormatError(f"cannot read {path}: layer {layer.name}: {error}") from None
    if size != kernel.shape[:3] or filters != kernel.shape[4]:
        raise FormatError(
            f"cannot read {path}: layer {layer.name} has {filters} filters of {size} in its "
            f"config, but weights of shape {kernel.shape}"
        )
    if "use_bias" in config and bool(config["use_bias"]) != (bias is not None):
        told = "says that it has a bias" if bias is None else "says that it has no bias"
        found = "no bias" if bias is None else "one"
        raise FormatError(
            f"cannot read {path}: layer {layer.name}: its config {told}, and its weights hold "
            f"{found}; save the model again"
        )
    return layer


def lost_arguments(layer: SavedLayer, stored: Sequence[str] = ()) -> list[str]:
    """Arguments of a layer, other than defaults, that a file would lose, as name=value.

    stored : sequence       names of the arguments that the file stores

    >>> config = {"strides": [2, 2, 2], "groups": 1}
    >>> lost_arguments(SavedLayer("a", config, np.ones((1, 1, 1, 1, 1))))
    ['strides=2,2,2']
    """
    if layer.config is None:
        return []
    attributes, defaults = attributes_of(layer), Attributes()
    lost = []
    for name in ("strides", "padding", "dilation_rate", "groups", "activation"):
        value = getattr(attributes, name)
        if name not in stored and value != getattr(defaults, name):
            lost.append(f"{name}={_option_text(value)}")
    return lost


def _option_text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("class_name", "custom"))
    if isinstance(value, tuple):
        return ",".join(
            ":".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value
        )
    return str(value)


def require_chain(layers: Sequence[SavedLayer], kind: str) -> None:
    """Check that each layer can take the output of the one before it.

    kind : str      name of the file format in messages
    Raises: WriteError, to which `write_layers` adds the file's name.
    """
    for first, second in itertools.pairwise(layers):
        channels = second.kernel.shape[3] * attributes_of(second).groups
        if channels != first.kernel.shape[4]:
            raise WriteError(
                f"{kind} holds layers that follow one another, but {first.name} gives "
                f"{first.kernel.shape[4]} channels and {second.name} takes {channels}; "
                "choose one with ::NAME, or write .safetensors"
            )
        if attributes_of(first).data_format != attributes_of(second).data_format:
            raise WriteError(
                f"{kind}: {first.name} and {second.name} differ in data_format; "
                "choose one with ::NAME"
            )


def natural_sort_key(text: str) -> list[tuple[int, int, str]]:
    """A sort key by which conv3d_2 comes before conv3d_10.

    >>> sorted(["conv3d_10", "conv3d_2", "conv3d"], key=natural_sort_key)
    ['conv3d', 'conv3d_2', 'conv3d_10']
    """
    parts = re.split(r"([0-9]{1,18})", text)
    return [(int(part), 0, "") if part.isdigit() else (-1, 0, part) for part in parts]

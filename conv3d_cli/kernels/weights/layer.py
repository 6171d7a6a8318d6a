"""A Conv3D layer as a weights file holds it, and what every reader and writer of such files shares.

Nothing in a file is believed: sizes are held against the file's length before anything is allocated, nothing stored is ever
executed, and whatever is wrong ends as one line that names the file. `SavedLayer` is in Keras' words and layout throughout;
PyTorch, safetensors and ONNX store (filters, in_channels/groups, kd, kh, kw), and `from_oidhw` is the only place that knows.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import Conv3DError, FormatError, ShapeError, SpecError, WriteError
from conv3d_cli.kernels.lengths import MAX_WEIGHTS, require_memory
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import Triple, triple
from conv3d_cli.system.inputs import check_input

Array = NDArray[Any]

# bytes of a model's config or a header; parsed it takes some ten times its size
MAX_JSON = 64 << 20
_UNSUSPECTED = 16 << 20  # bytes that are never thought a bomb
_COMPRESSION = 100  # times; trained weights shrink by a few per cent, and zeros by a thousand
_MEMBERS = 100_000  # files in an archive
_RANK = 32  # axes of an array


@dataclass(frozen=True, eq=False)
class SavedLayer:
    """One Conv3D layer of a weights file.

    name : str                  as Keras, PyTorch or ONNX calls it
    config : dict or None       the arguments that the file holds, in Keras' words (strides, padding, dilation_rate, groups,
                                activation, data_format, use_bias, ...); padding may also be three [before, after] pairs, or
                                "same_lower"; None where a file holds weights only
    kernel : (kd, kh, kw, in_channels/groups, filters) floats, in the dtype they were saved in
    bias : (filters,) floats or None
    aliases : tuple             other names that stand for it, such as its group in a .weights.h5
    notes : tuple               what should be known before it is used
    """

    name: str
    config: dict[str, Any] | None
    kernel: Array
    bias: Array | None = None
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_kernel(self, name: str) -> Kernel:
        """The layer as a kernel that messages call `name`.

        Raises: ShapeError if the weights are NaN or infinite.
        """
        return Kernel(self.kernel, self.bias, name=name)

    def __str__(self) -> str:
        bias = "" if self.bias is None else " + bias"
        return f"{self.name} ({'x'.join(map(str, self.kernel.shape))}{bias})"


WEIGHTS_ONLY = "the file holds weights only; strides, padding, ... are Keras' defaults where they are not given"


@dataclass(frozen=True, eq=False)
class OtherLayer:
    """What a weights file holds beside the Conv3D layers that are read from it.

    name : str                  as a `SavedLayer`'s
    reason : str                why it is not read, as "it is of class Conv3DTranspose"
    is_convolution : bool       whether it convolves, so that the file alone cannot stand for another layer in it
    aliases : tuple             other names that stand for it
    layer : SavedLayer or None  what it is if it is a Conv3D after all, for those who say so by the name of its tensor
    tensor : str                that name
    """

    name: str
    reason: str
    is_convolution: bool = True
    aliases: tuple[str, ...] = ()
    layer: SavedLayer | None = None
    tensor: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# The door


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what parsers throw at damaged bytes into a FormatError of one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Conv3DError:
        raise
    except RecursionError:
        raise FormatError(f"cannot read {path}: nested too deeply") from None
    except (
        Exception
    ) as error:  # h5py, zipfile, json and protobuf raise nearly anything on untrusted bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"cannot read {path}: {reason[:300]}") from error


@contextlib.contextmanager
def needing(library: str, task: str) -> Iterator[None]:
    """Around the import of a library that comes with an extra.

    task : str      what needs it, as in "read net.onnx"
    Raises: FormatError that names the cure if the library is missing.
    """
    try:
        yield
    except ImportError as error:
        cure = "pip install 'conv3d[weights]'"
        raise FormatError(
            f"cannot {task}: the library {library} is not installed; {cure}"
        ) from error


def parse_json(text: bytes, what: str, path: str) -> dict[str, Any]:
    """A JSON object.

    Raises: FormatError for anything else, or a key that is given twice.
    """
    if len(text) > MAX_JSON:
        raise FormatError(
            f"cannot read {path}: {what} has {len(text):,} bytes; at most {MAX_JSON:,} are read"
        )

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


def read_exactly(file: IO[bytes], count: int, path: str) -> bytes:
    """`count` bytes; memory grows with what is there, not with what a header promises.

    Raises: FormatError if there are fewer.
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
    """The members of a zip file by name, read whole and never more than the file can honestly hold."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path)
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
        if len(members) != len(self._members) or len(members) > _MEMBERS:
            raise FormatError(
                f"cannot read {self._path}: it holds a name twice, or more than {_MEMBERS:,} files"
            )
        if sum(info.compress_size for info in members) > check_input(self._path):
            raise FormatError(f"cannot read {self._path}: its {len(members)} files overlap")

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """The names of its members, in the archive's order."""
        return list(self._members)

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._info(name).file_size

    def read(self, name: str) -> bytes:
        """A member, its check sum tested.

        Raises: FormatError if it is missing, damaged or swells beyond belief.
        """
        info = self._info(name)
        if info.file_size > max(_UNSUSPECTED, _COMPRESSION * info.compress_size):
            raise FormatError(
                f"cannot read {self._path}: {name} would swell from {info.compress_size:,} to {info.file_size:,} bytes"
            )
        with self._zip.open(info) as member:
            content = read_exactly(member, info.file_size, self._path)
            member.read(1)  # at its end a member checks its sum
        return content

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise FormatError(f"cannot read {self._path}: it holds no {name}")
        return self._members[name]


def zip_bytes(members: Mapping[str, bytes]) -> bytes:
    """An uncompressed zip file without time stamps: the same members give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            archive.writestr(member, content)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def require_shape(shape: Sequence[int], what: str, path: str) -> int:
    """The count of numbers of a shape.

    Raises: FormatError for sizes that are none; ShapeError for more numbers than any kernel has.
    """
    if len(shape) > _RANK or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise FormatError(f"cannot read {path}: {what} has the shape {list(shape)[:8]}")
    count = math.prod(shape)
    if count > MAX_WEIGHTS:
        raise ShapeError(
            f"{what} in {path} has {count:,} weights, shape {tuple(shape)}; at most {MAX_WEIGHTS:,} are allowed"
        )
    require_memory(count, path)
    return count


# dtype -> bytes of one number
FLOATS = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e5m2": 1,
    "float8_e4m3fn": 1,
}


def decode_floats(raw: bytes, dtype: str, order: str = "<") -> Array:
    """The numbers of stored bytes; those NumPy has no dtype for come as float32.

    dtype : a key of FLOATS
    order : "<" or ">"      of the bytes in the file

    >>> decode_floats(bytes([0x80, 0x3F]), "bfloat16").tolist(), decode_floats(bytes([0x38, 0x7E]), "float8_e4m3fn").tolist()
    ([1.0], [1.0, 448.0])
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


def shrunk(layer: SavedLayer, *, halves: bool = False) -> SavedLayer:
    """The layer with kernel and bias in one native dtype: float32 where that loses nothing, else float64.

    halves : bool       whether float16 may stay
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


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's layout, and names


def from_oidhw(weight: Array) -> Array:
    """(filters, in_channels/groups, kd, kh, kw) to Keras' (kd, kh, kw, in_channels/groups, filters)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 4, 1, 0))


def to_oidhw(kernel: Array) -> Array:
    """Keras' (kd, kh, kw, in_channels/groups, filters) to (filters, in_channels/groups, kd, kh, kw)."""
    return np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))


_TRANSPOSED = re.compile(
    r"transp|trans_?conv|conv_?tr(ans)?(?![a-z])|deconv|(?<![a-z])t_?conv|convt(?![a-z])"
)
_UP = re.compile(r"(?<![a-z])up(?![a-z])|(?<![a-z])up_?(conv|sampl|scal|scor)")


def sounds_transposed(name: str) -> bool:
    """Whether a layer's name is one that transposed convolutions have. "up" counts in its last word only: what stands
    within a module of that name is often a plain convolution.

    >>> [sounds_transposed(name) for name in ("up", "up_1.upsample.deconv", "transpconvs.0", "dec.transp_conv.conv")]
    [True, True, True, True]
    >>> [sounds_transposed(name) for name in ("up1.conv.double_conv.0", "update", "transformer.conv", "upper.conv")]
    [False, False, False, False]
    """
    words = [word for word in re.split(r"[./]", name.lower()) if not word.isdigit()]
    return any(_TRANSPOSED.search(word) for word in words) or bool(words and _UP.search(words[-1]))


# ---------------------------------------------------------------------------------------------------------------------
# Attributes


@dataclass(frozen=True)
class Attributes:
    """A layer's arguments, checked; Keras' defaults where its config holds none."""

    strides: Triple = (1, 1, 1)
    padding: str | tuple[tuple[int, int], ...] = "valid"  # "valid", "same", "same_lower" or pairs
    dilation_rate: Triple = (1, 1, 1)
    groups: int = 1
    activation: Any = "linear"
    data_format: str = "channels_last"

    @property
    def is_strided_dilation(self) -> bool:
        """Strides and dilation together, which Keras refuses."""
        return max(self.strides) > 1 and max(self.dilation_rate) > 1

    def explicit_pads(self, size: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
        """The padding as (before, after) pairs; None where it depends on the volume: "same" with strides.

        size : kd, kh, kw
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
    """The arguments that convolving takes, from the layer's config.

    Raises: SpecError for values that are never legal.
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
            f"layer {layer.name}: groups must divide the {layer.kernel.shape[4]} filters, received groups={groups!r}"
        )
    data_format = config.get("data_format") or "channels_last"
    if data_format not in ("channels_last", "channels_first"):
        raise SpecError(
            f"layer {layer.name}: data_format is channels_last or channels_first, received {data_format!r}"
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
    """The layer, if its config and its weights belong together.

    Raises: FormatError otherwise.
    """
    kernel, bias = layer.kernel, layer.bias
    if bias is not None and bias.shape != (kernel.shape[4],):
        raise FormatError(
            f"cannot read {path}: layer {layer.name} has {kernel.shape[4]} filters and a bias of {bias.shape}"
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
            f"cannot read {path}: layer {layer.name} is to have {filters} filters of {size}, but its weights are {kernel.shape}"
        )
    return layer


def unheld(layer: SavedLayer, held: Sequence[str] = ()) -> list[str]:
    """The arguments of a layer, off their defaults, that a file would lose; written as name=value.

    held : sequence     names of arguments that the file can hold

    >>> unheld(SavedLayer("a", {"strides": [2, 2, 2], "groups": 1}, np.ones((1, 1, 1, 1, 1))))
    ['strides=2,2,2']
    """
    if layer.config is None:
        return []
    attributes, plain = attributes_of(layer), Attributes()
    lost = []
    for name in ("strides", "padding", "dilation_rate", "groups", "activation"):
        value = getattr(attributes, name)
        if name not in held and value != getattr(plain, name):
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
    """Refuse layers that cannot follow one another.

    Raises: WriteError, without the file's name, which the door adds.
    """
    for first, second in itertools.pairwise(layers):
        channels = second.kernel.shape[3] * attributes_of(second).groups
        if channels != first.kernel.shape[4]:
            raise WriteError(
                f"{kind} holds layers that follow one another, but {first.name} gives {first.kernel.shape[4]} channels and "
                f"{second.name} takes {channels}; choose one with ::NAME, or write .safetensors"
            )
        if attributes_of(first).data_format != attributes_of(second).data_format:
            raise WriteError(
                f"{kind}: {first.name} and {second.name} differ in data_format; choose one with ::NAME"
            )


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts conv3d_2 before conv3d_10.

    >>> sorted(["conv3d_10", "conv3d_2", "conv3d"], key=natural)
    ['conv3d', 'conv3d_2', 'conv3d_10']
    """
    parts = re.split(r"([0-9]{1,18})", text)
    return [(int(part), 0, "") if part.isdigit() else (-1, 0, part) for part in parts]

"""Kernel files: .npy, .npz, .json, .toml, .txt, MINC .kern, and every volume format, by suffix.

Readers do not trust a file: they compare its sizes with its length before they allocate memory, and
never load pickles. Every fault becomes a one-line error that names the file: FormatError for the
file, ShapeError for the shape or the values of the weights. Written files store float64, which
reads back exactly, and the same kernel always gives the same bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    ShapeError,
    SpecError,
    WriteError,
    suggestion,
)
from conv3d_cli.formats import (
    FORMATS,
    input_format,
    open_volume,
    recognize,
    refusal,
    write_volume,
)
from conv3d_cli.formats.npy import read_array_header
from conv3d_cli.kernels.lengths import MAX_WEIGHTS
from conv3d_cli.model.kernel import Kernel, not_real
from conv3d_cli.model.volume import Volume
from conv3d_cli.system.atomic import output_file, sent_to, write_errors
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.machine import format_bytes
from conv3d_cli.system.parts import file_of
from conv3d_cli.system.room import JSON_BYTES, TOML_BYTES, check_tree, require_weights
from conv3d_cli.system.words import unknown_suffix

if TYPE_CHECKING:
    import zipfile

Array = NDArray[Any]
# builds the kernel of a built-in text such as "gaussian:fwhm=6mm"
BuildKernel = Callable[[str], Kernel]

# bytes; parsed text takes about twenty times its size, and large arrays have better formats
MAX_TEXT = 16 << 20
TEXT_WEIGHT_BYTES = 100  # while a weight is written as text
KERNELS_PAGE = "see conv3d help kernels"
"""Where messages send a reader who wants the list of all kernel files."""
_MAX_RANK = 5  # axes of a layer's weights
_NAMES = 8  # of arrays, that a message lists


@dataclass(frozen=True)
class KernelFile:
    """A kind of kernel file.

    name : str                  as messages call it
    suffixes : tuple            in lower case, with the dot
    read : callable             (path, build) -> Kernel
    encode : callable or None   kernel -> bytes of the file; None: the volume format writes it, or
                                the kind is read-only
    layers : bool               whether it can store 5-D kernels
    extras : bool               whether it can store a bias and a centre
    volume : bool               whether it is a volume format
    has_parts : bool            whether FILE::PART names one of several volumes in a file
    writes : bool               whether that format writes kernels
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[str, BuildKernel], Kernel]
    encode: Callable[[Kernel], bytes] | None
    layers: bool
    extras: bool
    volume: bool = False
    has_parts: bool = False
    writes: bool = False

    @property
    def written(self) -> bool:
        """Whether kernels can be written as such a file."""
        return self.encode is not None or self.writes


def find_kernel_file(path: str | os.PathLike[str]) -> KernelFile | None:
    """The kind of kernel file with the suffix of a path; None if the suffix is of no kind.

    >>> find_kernel_file("psf.NII.GZ").name, find_kernel_file("gaussian:fwhm=1.5mm")
    ('NIfTI', None)
    >>> find_kernel_file("psf.tif::1").name
    'TIFF'
    """
    name = str(path).lower()
    file = file_of(name)
    found = next(
        (k for k in KERNEL_FILES if (file if k.has_parts else name).endswith(k.suffixes)), None
    )
    if found is None and file != name:  # a folder of planes has no suffix
        whole = input_format(str(path))
        found = next((k for k in KERNEL_FILES if whole and k.name == whole.name), None)
    return found


def known_suffixes(written: bool = False) -> tuple[str, ...]:
    """The suffixes of all kinds; with `written`, only those of kinds that can be written."""
    return tuple(
        suffix for kind in KERNEL_FILES if kind.written or not written for suffix in kind.suffixes
    )


def no_kernel_file(path: str) -> FormatError:
    """The error for a file that is of no known kind by its content and its name."""
    return FormatError(
        f"cannot read {path}: neither its content nor its name is of a kernel ({KERNELS_PAGE})"
    )


def read_kernel_file(path: str, build: BuildKernel) -> Kernel:
    """Read a kernel file; the path becomes the kernel's name.

    build : callable    builds the kernel of a built-in text, which .json and .toml may contain
    Raises: FormatError if the file is missing, empty, damaged or of no known kind; ShapeError for a
    wrong shape or wrong values.
    """
    kind = find_kernel_file(path)
    if kind is None or not kind.volume:  # a volume may be a folder
        check_input(path)
    if kind is None and input_format(path) is None:
        if recognize(path) is not None:
            raise refusal(path)
        raise no_kernel_file(path)
    with _read_errors(path):
        return _read_volume(path, build) if kind is None else kind.read(path, build)


def find_written_file(path: str | os.PathLike[str]) -> KernelFile | None:
    """As `find_kernel_file`, but .npz for a device or a FIFO without a suffix of any kind.

    >>> find_written_file(os.devnull).suffixes
    ('.npz',)
    """
    return find_kernel_file(path) or (find_kernel_file(".npz") if sent_to(path) else None)


def write_kernel(path: str | os.PathLike[str], kernel: Kernel, *, overwrite: bool = False) -> None:
    """Write a kernel in the format of the suffix; the file appears complete or not at all.

    Raises: SpecError for an unknown suffix; OutputExistsError; WriteError if the format cannot
    store the kernel.
    """
    kind = find_written_file(path)
    if kind is None:
        fault = unknown_suffix(str(path), known_suffixes(written=True), "kernel file")
        raise SpecError(f"cannot write {path}: {fault} ({KERNELS_PAGE})")
    if not kind.written:
        raise SpecError(
            f"cannot write {path}: {kind.name} kernels are only read; write .npz, .json, .nii.gz "
            f"or another ({KERNELS_PAGE})"
        )
    middle = tuple((k - 1) / 2 for k in kernel.size)
    if kernel.centre == middle:
        kernel = replace(kernel, centre=None)
    for can_store, what, has in (
        (kind.layers, "5-D weights", kernel.is_layer),
        (kind.extras, "a bias", kernel.bias is not None),
        (kind.extras, "a centre off the middle", kernel.centre is not None),
    ):
        if has and not can_store:
            able = " ".join(k.suffixes[0] for k in KERNEL_FILES if k.layers and k.extras)
            raise WriteError(
                f"cannot write {path}: {kind.name} cannot hold {what}; write {able} instead"
            )
    if kind.encode is None:
        write_volume(os.fspath(path), Volume(kernel.weights, "zyx"), overwrite=overwrite)
        return
    with output_file(path, overwrite) as output:
        content = kind.encode(kernel)
        with write_errors(path):
            output.file.write(content)
        output.commit()


# --------------------------------------------------------------------------------------------------
# Shared by all readers


@contextlib.contextmanager
def _read_errors(path: str) -> Iterator[None]:
    """Turn any exception of a parser into a FormatError, and suppress warnings and log lines."""
    loggers = [logging.getLogger(name) for name in ("tifffile", "nibabel.global")]

    def silent(record: logging.LogRecord) -> bool:
        return False

    for logger in loggers:
        logger.addFilter(silent)
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
        # zipfile, gzip, numpy, nibabel and tifffile raise nearly any class on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"cannot read {path}: {reason[:300]}") from error
    finally:
        for logger in loggers:
            logger.removeFilter(silent)


def _require_weights(count: int, shape: tuple[int, ...], path: str) -> None:
    if count > MAX_WEIGHTS:
        raise ShapeError(
            f"kernel {path} has {count:,} weights, shape {shape}; at most {MAX_WEIGHTS:,} are "
            "allowed"
        )
    require_weights(count, path)


def _require_real(dtype: np.dtype[Any], path: str) -> None:
    if dtype.kind not in "buif":
        raise ShapeError(not_real(f"kernel {path}", dtype))


def _require_bytes(needed: int, size: int, path: str) -> None:
    if needed > size:
        raise FormatError(
            f"cannot read {path}: truncated: its header promises {needed} bytes, the file has "
            f"{size}"
        )


def _with_extras(path: str, weights: Any, bias: Any = None, centre: Any = None) -> Kernel:
    """A kernel of the weights, bias and centre in a file, which also names it.

    Raises: ShapeError for a centre that is not three numbers.
    """
    if centre is not None:
        values = np.asarray(centre)
        if values.shape != (3,) or values.dtype.kind not in "uif":
            raise ShapeError(
                f"kernel {path}: the centre is three numbers, depth,height,width, received "
                f"{centre!r}"
            )
        centre = tuple(float(value) for value in values)
    return Kernel(weights, bias, centre, name=path)


# --------------------------------------------------------------------------------------------------
# NumPy


def _read_npy(path: str, build: BuildKernel) -> Kernel:
    size = check_input(path)
    with open(path, "rb") as file:
        return Kernel(_read_array(file, path, size), name=path)


def _read_array(file: IO[bytes], path: str, size: int) -> Array:
    """Read an array in .npy format from a file or a zip member of `size` bytes."""
    start = file.read(1 << 16)  # NumPy's longest header fits, whatever length the file claims
    head = io.BytesIO(start)
    shape, fortran, dtype = read_array_header(head, path)
    _require_real(dtype, path)
    count = math.prod(shape)
    _require_weights(count, shape, path)
    needed = head.tell() + count * dtype.itemsize
    _require_bytes(needed, size, path)
    data = start + _read_up_to(file, needed - len(start))
    _require_bytes(needed, len(data), path)
    file.read(1)  # reading past the end makes a zip member verify its checksum
    values = np.frombuffer(data, dtype, count, head.tell())
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _read_up_to(file: Any, count: int) -> bytes:
    """Read at most `count` bytes; memory grows with the bytes present, not the claimed size."""
    parts = []
    while count > 0 and (part := file.read(min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _encode_text(kernel: Kernel, write: Callable[[Kernel], str]) -> bytes:
    """The bytes of a text. Raises: MemoryLimitError; WriteError for one that could not be read."""
    require_weights(kernel.weights.size, kernel.name, TEXT_WEIGHT_BYTES)
    content = write(kernel).encode()
    if len(content) > MAX_TEXT:
        raise WriteError(
            f"kernel {kernel.name} has {kernel.weights.size:,} weights, a text of "
            f"{format_bytes(len(content))}, and kernel files of text hold at most "
            f"{format_bytes(MAX_TEXT)}; write .npz instead"
        )
    return content


def _encode_array(array: Array) -> bytes:
    buffer = io.BytesIO()
    npy_format.write_array(
        buffer, np.ascontiguousarray(array, dtype="<f8"), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def _encode_npy(kernel: Kernel) -> bytes:
    return _encode_array(kernel.weights)


def _read_npz(path: str, build: BuildKernel) -> Kernel:
    from conv3d_cli.system.zips import ZipReader

    with ZipReader(path) as archive:
        members = _members(archive)
        others = [name for name in members if name not in ("bias", "centre")]
        chosen = [name for name in ("kernel", "weights") if name in members] or others
        if len(chosen) != 1:
            raise FormatError(
                f"cannot read {path}: one array must be the kernel, by the name 'kernel'; "
                f"it holds {_some(members)}"
            )
        weights, bias, centre = (
            _read_member(archive, members[name], path) if name in members else None
            for name in (chosen[0], "bias", "centre")
        )
        return _with_extras(path, weights, bias, centre)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz file by name."""
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _some(members: Mapping[str, object]) -> str:
    """The names of arrays, for messages; of many, the first ones.

    >>> _some({}), _some(dict.fromkeys("abcdefghijk"))
    ('nothing', 'a, b, c, d, e, f, g, h and 3 more')
    """
    more = f" and {len(members) - _NAMES:,} more" if len(members) > _NAMES else ""
    return (", ".join(islice(members, _NAMES)) or "nothing") + more


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> Array:
    with archive.open(info) as member:
        return _read_array(member, path, info.file_size)


def _encode_npz(kernel: Kernel) -> bytes:
    import zipfile

    arrays = {"kernel": kernel.weights}
    if kernel.bias is not None:
        arrays["bias"] = kernel.bias
    if kernel.centre is not None:
        arrays["centre"] = np.array(kernel.centre)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            # the earliest time stamp of the zip format, so that the bytes do not depend on the time
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3
            archive.writestr(member, _encode_array(values))
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------
# JSON and TOML

_KEYS = ("kernel", "weights", "bias", "centre", "axes", "name", "flip", "normalize")


def _read_text(path: str) -> str:
    size = check_input(path)
    if size > MAX_TEXT:
        raise FormatError(
            f"cannot read {path}: a text of {size:,} bytes; at most {MAX_TEXT:,} are read; "
            "save it as .npy"
        )
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"cannot read {path}: not UTF-8 text (byte {error.start})") from None


def _parse_json(path: str) -> Any:
    text = _read_text(path)
    check_tree(text, JSON_BYTES, path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise FormatError(f"cannot read {path}: not JSON ({error})") from None


def _parse_toml(path: str) -> dict[str, Any]:
    import tomllib

    text = _read_text(path)
    check_tree(text, TOML_BYTES, path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"cannot read {path}: not TOML ({error}); correct it there") from None


def _read_json(path: str, build: BuildKernel) -> Kernel:
    content = _parse_json(path)
    return _read_table(content if isinstance(content, dict) else {"kernel": content}, path, build)


def _read_toml(path: str, build: BuildKernel) -> Kernel:
    return _read_table(_parse_toml(path), path, build)


def _read_table(table: dict[str, Any], path: str, build: BuildKernel) -> Kernel:
    """The kernel of a JSON object or TOML table.

    Keys: kernel or weights (a nested list of 3 or 5 levels, or a built-in text), bias (a number or
    a list), centre ([d, h, w]), axes ("dhw" or "ijk", the order of the first three levels of the
    nested list), name (a text), flip and normalize (true or false).
    Raises: FormatError for other keys or values; ShapeError for uneven lists; those of `build`.
    """
    for key in table:
        if key not in _KEYS:
            hint = suggestion(key, _KEYS)
            raise FormatError(
                f"cannot read {path}: unknown key '{key}'; {hint}known are {', '.join(_KEYS)}"
            )
    if ("kernel" in table) == ("weights" in table):
        both = "both 'kernel' and 'weights'" if "kernel" in table else "no key 'kernel'"
        raise FormatError(
            f"cannot read {path}: it has {both}; one of them holds the weights or a built-in's name"
        )
    content = table["kernel"] if "kernel" in table else table["weights"]
    axes = table.get("axes", "dhw")
    if axes not in ("dhw", "ijk"):
        raise FormatError(
            f"cannot read {path}: axes is 'dhw' or 'ijk' (nibabel's order), received {axes!r}"
        )
    for key in ("flip", "normalize"):
        if not isinstance(table.get(key, False), bool):
            raise FormatError(
                f"cannot read {path}: {key} is true or false, received {table[key]!r}"
            )
    if not isinstance(table.get("name", ""), str):
        raise FormatError(f"cannot read {path}: name is a text, received {table['name']!r}")

    if isinstance(content, str):
        if "axes" in table:
            raise FormatError(
                f"cannot read {path}: axes orders a nested list, the kernel is the built-in "
                f"'{content}'"
            )
        try:
            weights = build(content).weights
        except Conv3DError as error:
            raise type(error)(f"{error} (in {path})") from None
    else:
        weights = _nested_array(content, "kernel", path)
        if axes == "ijk" and weights.ndim >= 3:
            weights = weights.transpose(2, 1, 0, *range(3, weights.ndim))
    bias = table.get("bias")
    if bias is not None:
        bias = _nested_array(bias if isinstance(bias, list) else [bias], "bias", path)
    kernel = _with_extras(path, weights, bias, table.get("centre"))
    if table.get("flip"):
        kernel = kernel.flipped()
    if table.get("normalize"):
        kernel = kernel.normalized()
    return replace(kernel, name=f"{path} ({table['name']})") if table.get("name") else kernel


def _nested_array(content: Any, what: str, path: str) -> Array:
    """Convert nested lists of numbers to a float64 array.

    what : str      key of the lists, for messages
    Raises: ShapeError, with the position, if lists of one level differ in length or an item is not
    a number; FormatError if `content` is not a list.
    """
    shape: list[int] = []
    level = content
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    if not shape:
        raise FormatError(
            f"cannot read {path}: {what} must be a nested list of numbers, received "
            f"{_short(content)}"
        )
    if len(shape) > _MAX_RANK:
        raise ShapeError(
            f"kernel {path} must be 3-D or 5-D, received lists nested {len(shape)} deep"
        )

    def check(part: Any, index: tuple[int, ...]) -> None:
        expected = shape[len(index)]
        if not isinstance(part, list) or len(part) != expected:
            received = f"a list of {len(part)}" if isinstance(part, list) else _short(part)
            raise ShapeError(
                f"kernel {path}: lists of one level must be equally long: "
                f"{_item_name(what, index)} must be a list of {expected}, received {received}"
            )
        for position, inner in enumerate(part):
            if len(index) + 1 < len(shape):
                check(inner, (*index, position))
            elif type(inner) not in (int, float):  # isinstance would admit bool
                item = _item_name(what, (*index, position))
                raise ShapeError(
                    f"kernel {path}: {item} must be a number, received {_short(inner)}"
                )

    check(content, ())
    try:
        return np.array(content, dtype=np.float64)
    except OverflowError:
        raise ShapeError(
            f"kernel {path}: {what} must hold finite numbers, received one beyond float64"
        ) from None


def _item_name(what: str, index: tuple[int, ...]) -> str:
    """An item of nested lists as messages call it: kernel[0][2]."""
    return what + "".join(f"[{position}]" for position in index)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _nested_text(values: Any, indent: str = "  ") -> str:
    """Nested lists as text that is valid JSON and TOML, one row of numbers per line."""
    if not isinstance(values[0], list):
        return f"[{', '.join(map(repr, values))}]"
    inner = f",\n{indent}".join(_nested_text(value, indent + "  ") for value in values)
    return f"[\n{indent}{inner}\n{indent[2:]}]"


def _table_items(kernel: Kernel, indent: str) -> list[tuple[str, str]]:
    items = [("kernel", _nested_text(kernel.weights.tolist(), indent))]
    if kernel.bias is not None:
        items.append(("bias", _nested_text(kernel.bias.tolist())))
    if kernel.centre is not None:
        items.append(("centre", _nested_text(list(kernel.centre))))
    return items


def _encode_json(kernel: Kernel) -> bytes:
    return _encode_text(kernel, _json_text)


def _json_text(kernel: Kernel) -> str:
    lines = [f'  "{key}": {text}' for key, text in _table_items(kernel, "    ")]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _encode_toml(kernel: Kernel) -> bytes:
    return _encode_text(kernel, _toml_text)


def _toml_text(kernel: Kernel) -> str:
    return "".join(f"{key} = {text}\n" for key, text in _table_items(kernel, "  "))


# --------------------------------------------------------------------------------------------------
# Plain text


def _read_txt(path: str, build: BuildKernel) -> Kernel:
    """Read rows of numbers along W; a blank line starts the next depth plane, # starts a comment.

    A file of ImageJ's Convolve (rows of numbers separated by blanks, tabs or commas) is one plane.
    Raises: ShapeError for uneven rows or planes; FormatError for a file without numbers.
    """
    planes: list[list[list[float]]] = [[]]
    for number, row, is_comment in _text_rows(path):
        if not row:
            if planes[-1] and not is_comment:
                planes.append([])
            continue
        if planes[0] and len(row) != len(planes[0][0]):
            raise ShapeError(
                f"kernel {path}: rows must be equally long, received {len(row)} numbers in line "
                f"{number} after rows of {len(planes[0][0])}"
            )
        planes[-1].append(row)
    if not planes[-1]:
        planes.pop()
    if not planes:
        raise FormatError(f"cannot read {path}: it holds no numbers")
    counts = [len(plane) for plane in planes]
    if len(set(counts)) != 1:
        raise ShapeError(
            f"kernel {path}: planes, separated by blank lines, must have equally many rows, "
            f"received {', '.join(map(str, counts[:20]))}"
        )
    return Kernel(np.array(planes), name=path)


def _text_rows(path: str) -> Iterator[tuple[int, list[float], bool]]:
    """Yield the number, the values and the presence of a comment for each line.

    The last tells a comment line from a blank line, which separates planes.
    Raises: FormatError, with the line.
    """
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        content, hash_mark, _ = line.partition("#")
        try:
            values = [float(word) for word in content.replace(",", " ").split()]
        except ValueError:
            raise FormatError(
                f"cannot read {path}: line {number} is not a row of numbers: {_short(line)}; "
                "write them with spaces, tabs or commas between"
            ) from None
        yield number, values, bool(hash_mark)


def _encode_txt(kernel: Kernel) -> bytes:
    return _encode_text(kernel, _plain_text)


def _plain_text(kernel: Kernel) -> str:
    d, h, w = kernel.size
    planes = [
        "\n".join(" ".join(map(repr, row)) for row in plane) for plane in kernel.weights.tolist()
    ]
    header = f"# {d} planes (depth) of {h} rows (height) of {w} numbers (width)\n"
    return header + "\n\n".join(planes) + "\n"


def _read_minc(path: str, build: BuildKernel) -> Kernel:
    from conv3d_cli.kernels.minc import parse_kernel

    return parse_kernel(_read_text(path), path)


# --------------------------------------------------------------------------------------------------
# Volumes


def _read_volume(path: str, build: BuildKernel) -> Kernel:
    """Read a volume as a kernel, with the axes and values that it would have as an input volume."""
    volume_format = input_format(path)
    if volume_format is None:
        raise refusal(path)
    beside = len(volume_format.files(path)) > len(volume_format.written(path))
    if beside and not os.path.isdir(file_of(path)):  # a folder of planes names all its files
        raise FormatError(
            f"cannot read {path}: its planes are in other files; save them as one file"
        )
    with open_volume(path) as reader:
        header = reader.header
        axes, (_, depth, height, width, _) = header.axes, header.shape
        _require_weights(math.prod(axes.shape), axes.shape, path)
        if math.prod(header.shape) != depth * height * width:
            raise ShapeError(
                f"kernel {path} must be a stack zyx of one channel, received axes {axes.letters} "
                f"with shape {axes.shape}; save one volume of it"
            )
        weights = np.empty((depth, height, width))
        for start in range(0, depth, 16):
            planes = slice(start, min(start + 16, depth))
            weights[planes] = reader.read(0, planes, slice(0, 1))[..., 0]
        reader.finish()
    slope, intercept = header.scale
    if header.scale != (1.0, 0.0):
        weights = weights * slope + intercept
    has_spacing = header.grid.spacing is not None
    grid = header.grid if has_spacing else None
    is_line = sum(n > 1 for n in (depth, height, width)) < 2  # no list of a surface's vertices
    return Kernel(weights, name=path, grid=grid, notes=() if is_line else tuple(reader.notes))


def _encode_nifti(kernel: Kernel) -> bytes:
    from nibabel.nifti1 import Nifti1Image

    if max(kernel.size) > 32767:
        raise WriteError(
            f"NIfTI-1 cannot hold {kernel.size} voxels (at most 32767 along an axis); "
            "write .npy instead"
        )
    return bytes(Nifti1Image(kernel.weights.transpose(2, 1, 0), np.eye(4)).to_bytes())


def _encode_nifti_gz(kernel: Kernel) -> bytes:
    return gzip.compress(_encode_nifti(kernel), compresslevel=6, mtime=0)


def _encode_tiff(kernel: Kernel) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    metadata = {"axes": "ZYX"}
    tifffile.imwrite(
        buffer, kernel.weights, photometric="minisblack", software="conv3d", metadata=metadata
    )
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------
# Bias files


def read_bias(path: str) -> list[float]:
    """Read a bias: one number for each filter, or one for all filters.

    .npy: an array of one axis; .npz: the array `bias`, or the only array; .json and .toml: the key
    `bias`, in .json also a bare list; .txt: all numbers. A kernel file with a bias is a bias file
    too.
    Raises: FormatError if the file is missing or damaged; ShapeError for another shape, or for NaN
    and infinite numbers.
    """
    size = check_input(path)
    read = next(
        (read for suffix, read in _BIAS_FILES.items() if path.lower().endswith(suffix)), None
    )
    if read is None:
        raise FormatError(
            f"cannot read {path}: no bias file has this suffix; known are {' '.join(_BIAS_FILES)}"
        )
    with _read_errors(path):
        bias = np.atleast_1d(np.asarray(read(path, size), dtype=np.float64))
    if bias.ndim != 1 or bias.size == 0:
        raise ShapeError(
            f"the bias in {path} must be one row of numbers, received shape {bias.shape}"
        )
    if not np.isfinite(bias).all():
        raise ShapeError(f"the bias in {path} must hold finite numbers")
    return [float(value) for value in bias]


def _npy_bias(path: str, size: int) -> Array:
    with open(path, "rb") as file:
        return _read_array(file, path, size)


def _npz_bias(path: str, size: int) -> Array:
    from conv3d_cli.system.zips import ZipReader

    with ZipReader(path) as archive:
        members = _members(archive)
        chosen = ["bias"] if "bias" in members else list(members)
        if len(chosen) != 1:
            raise FormatError(f"cannot read {path}: it holds no array 'bias', but {_some(members)}")
        return _read_member(archive, members[chosen[0]], path)


def _table_bias(path: str, content: Any) -> Array:
    if isinstance(content, dict):
        if "bias" not in content:
            raise FormatError(f"cannot read {path}: it has no key 'bias'")
        content = content["bias"]
    return _nested_array(content if isinstance(content, list) else [content], "bias", path)


def _txt_bias(path: str, size: int) -> list[float]:
    return [value for _, row, _ in _text_rows(path) for value in row]


_BIAS_FILES: dict[str, Callable[[str, int], Any]] = {
    ".npy": _npy_bias,
    ".npz": _npz_bias,
    ".json": lambda path, size: _table_bias(path, _parse_json(path)),
    ".toml": lambda path, size: _table_bias(path, _parse_toml(path)),
    ".txt": _txt_bias,
}


# --------------------------------------------------------------------------------------------------
# The catalogue. A new kind needs a reader, an encoder and a line in _OWN_KINDS; a volume format is
# added by itself.

# Volume files that this module encodes, as in earlier versions, so that their bytes stay the same.
# The other volume formats write kernels themselves.
_VOLUME_ENCODERS = {
    ".nii": _encode_nifti,
    ".nii.gz": _encode_nifti_gz,
    ".tif": _encode_tiff,
    ".tiff": _encode_tiff,
}


_OWN_KINDS = (
    KernelFile(".npy", (".npy",), _read_npy, _encode_npy, layers=True, extras=False),
    KernelFile(".npz", (".npz",), _read_npz, _encode_npz, layers=True, extras=True),
    KernelFile("JSON", (".json",), _read_json, _encode_json, layers=True, extras=True),
    KernelFile("TOML", (".toml",), _read_toml, _encode_toml, layers=True, extras=True),
    KernelFile("plain text", (".txt",), _read_txt, _encode_txt, layers=False, extras=False),
    KernelFile("MINC", (".kern", ".kernel"), _read_minc, None, layers=False, extras=False),
)


def _volume_kinds() -> Iterator[KernelFile]:
    """A kind for each suffix of a volume format, except those of _OWN_KINDS (.npy may be 5-D)."""
    taken = {"-"}.union(*(kind.suffixes for kind in _OWN_KINDS))
    for volume_format in FORMATS:
        for suffix in volume_format.suffixes:
            if suffix not in taken and volume_format.kernels:
                yield KernelFile(
                    volume_format.name,
                    (suffix,),
                    _read_volume,
                    _VOLUME_ENCODERS.get(suffix),
                    layers=False,
                    extras=False,
                    volume=True,
                    has_parts=volume_format.has_parts,
                    writes=volume_format.create is not None and volume_format.holds_float64,
                )


KERNEL_FILES: tuple[KernelFile, ...] = (*_OWN_KINDS, *_volume_kinds())

"""PyTorch's files: read what torch.save and TorchScript wrote, without unpickling and PyTorch.

A file of PyTorch 1.6 and later is a zip of `data.pkl`, which names the tensors (see `pickles.py`),
and one member of raw bytes for each storage. Before, it was a row of pickles with the storages
behind them. State dicts are found wherever they are in a checkpoint, and whole modules, too; their
other objects are passed over.

Source: PyTorch, torch/serialization.py (_load, _legacy_load), torch/nn/modules/module.py.
"""

from __future__ import annotations

import ast
import contextlib
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.kernels.weights.layer import (
    FLOATS,
    Archive,
    Array,
    OtherLayer,
    SavedLayer,
    decode_floats,
    read_exactly,
    require_shape,
)
from conv3d_cli.kernels.weights.pickles import (
    MAX_PICKLE,
    Name,
    Pickle,
    Record,
    RefusedError,
    Storage,
    Tensor,
    pickle_end,
    read_pickle,
)
from conv3d_cli.kernels.weights.state_dict import Module, StateDict, read_state_dict
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.room import WEIGHT_BYTES, require_room

CURE = (
    "save its weights in PyTorch: from safetensors.torch import save_model; "
    "save_model(module, 'net.safetensors'), or torch.save(module.state_dict(), 'net.pt')"
)
# the first pickle of a file before PyTorch 1.6
OLD_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_OLD_PROTOCOL = 1001
_MAX_DEPTH = 64  # nested dicts, lists and modules
_MAX_NAME = 1000  # characters
_DECODED_BYTES = 8  # at most, of a number of several bytes, beside what is stored
_INTEGERS = ("int8", "uint8", "int32", "int64", "int16")
# attributes of every module, and those of recurrent ones that repeat their parameters
_MODULE_STATE = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_flat_weights",
    "_all_weights",
)
_TORCHSCRIPT = "__torch__."
_FINAL = re.compile(r"  (\w+) : Final\[[^=]*\] = ([-+.\w(), \"]+)$")
_CALL = re.compile(r"\b(torch\.\w+)\(")
_CONVOLUTION = re.compile(
    r"torch\._convolution(?:_mode)?\(\w+, \w+, \w+, (\[[\d, ]+\]), (\[[\d, ]+\]|\"\w+\"), "
    r"(\[[\d, ]+\]), (?:False, \[[\d, ]+\], )?(\d+)\b"
)
_OF_BATCHES = ("torch.unsqueeze", "torch.squeeze")  # around a volume without a batch
_MAX_LINE = 200  # characters of a constant, or of a call


def is_saved(start: bytes, members: Sequence[str]) -> bool:
    """Whether a file is one of torch.save.

    start : bytes       what it begins with
    members : sequence  names in it, if it is a zip
    """
    return start.startswith(OLD_START) or len(_folders(members)) == 1


def _folders(members: Iterable[str]) -> list[str]:
    """The folders of an archive with a `data.pkl`, with a slash at their ends."""
    return [
        name.removesuffix("data.pkl")
        for name in members
        if (name == "data.pkl" or name.endswith("/data.pkl")) and name.count("/") <= 1
    ]


def read_pytorch(path: str, only: str | None = None) -> list[SavedLayer | OtherLayer]:
    """Read the layers of a PyTorch file, in the order of its state dict.

    only : as in `read_state_dict`
    Raises: FormatError for a damaged or foreign file; ShapeError for tensors of too many elements.
    """
    with open_pytorch(path) as state:
        return read_state_dict(state, path, only)


@contextlib.contextmanager
def open_pytorch(path: str) -> Iterator[StateDict]:
    """The state dict of a PyTorch file, as a context in which its tensors can be read.

    Raises: as `read_pytorch`.
    """
    size = check_input(path)
    if zipfile.is_zipfile(path):
        with Archive(path) as archive:
            yield _of_archive(archive, path)
        return
    with open(path, "rb") as file:
        start = read_exactly(file, min(size, MAX_PICKLE), path)
        if not start.startswith(OLD_START):
            raise FormatError(f"cannot read {path}: not a file of torch.save, or damaged; {CURE}")
        pickled, places, byte_order = _read_old(start, size, path)

        def raw(storage: Storage, needed: int, what: str) -> bytes:
            place, count = places[storage.key]
            _check_storage(storage, needed, what, "its storage", count, path)
            file.seek(place)
            return read_exactly(file, needed, path)

        yield state_dict_of(pickled.content, raw, byte_order, path)


def _of_archive(archive: Archive, path: str) -> StateDict:
    """The state dict of a zip file."""
    folders = _folders(archive.names)
    if len(folders) != 1:
        raise FormatError(
            f"cannot read {path}: not a file of torch.save: it holds no data.pkl; {CURE}"
        )
    folder = folders[0]
    content = _pickled(archive.read(f"{folder}data.pkl"), "data.pkl", path).content
    if isinstance(content, Record) and content.name.startswith(_TORCHSCRIPT):
        _add_constants(content, archive, f"{folder}code/", path)
    byte_order = "<"
    if f"{folder}byteorder" in archive.names and archive.read(f"{folder}byteorder") == b"big":
        byte_order = ">"

    def raw(storage: Storage, needed: int, what: str) -> bytes:
        member = f"{folder}data/{storage.key}"
        size = archive.size(member) if member in archive.names else 0
        _check_storage(storage, needed, what, member, size, path)
        return archive.read(member)[:needed]

    state = state_dict_of(content, raw, byte_order, path)
    constants = f"{folder}constants.pkl"
    if constants not in archive.names:
        return state
    held = _pickled(archive.read(constants), "constants.pkl", path).content
    # weights that torch.jit.freeze made constants: they have no names, but are told
    shapes = {
        f"constants.{number}": value.shape
        for number, value in enumerate(held if isinstance(held, tuple) else ())
        if isinstance(value, Tensor)
    }
    return replace(state, shapes={**state.shapes, **shapes})


def _add_constants(record: Record, archive: Archive, folder: str, path: str) -> None:
    """Add to modules of TorchScript the attributes that stand in its source, such as the stride.

    folder : str    of the source in the archive
    """
    constants: dict[str, dict[str, dict[str, Any]]] = {}  # file -> class -> attributes
    waiting, seen = [record], set()
    while waiting:
        module = waiting.pop()
        state = module.state
        if not isinstance(state, dict) or id(state) in seen:
            continue
        seen.add(id(state))
        waiting += [value for value in state.values() if isinstance(value, Record)]
        file, _, class_name = module.name.rpartition(".")
        if file not in constants:
            member = f"{folder}{file.replace('.', '/')}.py"
            source = archive.read(member) if member in archive.names else b""
            constants[file] = _constants(source)
        for name, value in constants[file].get(class_name, {}).items():
            state.setdefault(name, value)


def _constants(source: bytes) -> dict[str, dict[str, Any]]:
    r"""The constant attributes of the classes in TorchScript's source: numbers, texts and tuples.

    A module that was traced has them in the convolution that its forward method calls.

    >>> _constants(b"class A(Module):\n  stride : Final[Tuple[int, int]] = (1, 2)\n  b : int\n")
    {'A': {'stride': (1, 2)}}
    """
    classes: dict[str, dict[str, Any]] = {}
    calls: dict[str, list[str]] = {}  # class -> lines that call functions of PyTorch
    found: dict[str, Any] = {}
    called: list[str] = []
    for line in source.decode(errors="replace").splitlines():
        if line.startswith("class "):
            name = line.removeprefix("class ").partition("(")[0]
            found, called = classes.setdefault(name, {}), calls.setdefault(name, [])
        if _CALL.search(line):
            called.append(line)
        match = _FINAL.match(line) if len(line) < _MAX_LINE else None
        if match:
            with contextlib.suppress(ValueError, SyntaxError):
                found[match.group(1)] = ast.literal_eval(match.group(2))
    for name, lines in calls.items():
        classes[name] = {**_traced(lines), **classes[name]}
    return classes


def _traced(lines: Sequence[str]) -> dict[str, Any]:
    """The attributes of a Conv3d in the calls that a trace left of it; {} for others.

    >>> _traced(["_0 = torch._convolution(x, w, None, [2], [1], [1], False, [0], 1, True)"])
    {'stride': (2,), 'padding': (1,), 'dilation': (1,), 'groups': 1}
    """
    calls = [name for line in lines for name in _CALL.findall(line)]
    found = [
        match for line in lines if len(line) < _MAX_LINE and (match := _CONVOLUTION.search(line))
    ]
    if len({match.groups() for match in found}) != 1:  # several, if the module is used again
        return {}
    values = [ast.literal_eval(value) for value in found[0].groups()]
    values = [tuple(value) if isinstance(value, list) else value for value in values]
    attributes = dict(zip(("stride", "padding", "dilation", "groups"), values, strict=True))
    others = [
        name
        for name in calls
        if name not in _OF_BATCHES and not name.startswith("torch._convolution")
    ]
    return {**attributes, "padding_mode": others[0]} if others else attributes


def _truncated(what: str, needed: int, member: str, size: int, path: str) -> FormatError:
    return FormatError(
        f"cannot read {path}: truncated: {what} needs {needed:,} bytes of {member}, which has "
        f"{size:,}"
    )


def _check_storage(
    storage: Storage, needed: int, what: str, member: str, size: int, path: str
) -> None:
    """Check that a storage is whole, and fits into the memory: a tensor may be a small part of it.

    needed, size : int      bytes of the storage, and of the file's part that holds it
    Raises: FormatError, MemoryLimitError.
    """
    if needed > size:
        raise _truncated(what, needed, member, size, path)
    width = _width(storage.dtype)
    decoded = WEIGHT_BYTES if width == 1 else _DECODED_BYTES
    require_room(needed // width * (width + decoded), f"the storage of {what}", path)


def _pickled(content: bytes, what: str, path: str) -> Pickle:
    """Read a pickle of a file. Raises: FormatError, MemoryLimitError."""
    with _pickle_errors(what, path):
        return read_pickle(content, path)


@contextlib.contextmanager
def _pickle_errors(what: str, path: str) -> Iterator[None]:
    """Turn what a pickle raises into errors that name the file. Raises: FormatError."""
    try:
        yield
    except RefusedError as error:
        raise FormatError(
            f"cannot read {path}: it holds {error}, and pickles are never run; {CURE}"
        ) from None
    except Conv3DError:
        raise
    except Exception as error:  # a damaged pickle may raise any class
        raise_fault(error, path)
        raise FormatError(
            f"cannot read {path}: its {what} is damaged ({type(error).__name__})"
        ) from error


def _read_old(start: bytes, size: int, path: str) -> tuple[Pickle, dict[str, tuple[int, int]], str]:
    """Read a file from before PyTorch 1.6.

    start : bytes       of the file: all of it, or as much as a pickle may have
    size : int          bytes of the file
    Returns what it holds, the place and bytes of each storage, and their byte order.
    """
    parts: list[Pickle] = []
    place = 0
    for what in ("first pickle", "version", "system", "content", "list of storages"):
        with _pickle_errors(what, path):
            end = pickle_end(start, place)
        parts.append(_pickled(start[place:end], what, path))
        place = end
    _, version, system, content, keys = parts
    if version.content != _OLD_PROTOCOL or not isinstance(keys.content, list):
        raise FormatError(f"cannot read {path}: not a file of torch.save, or damaged; {CURE}")
    is_big = isinstance(system.content, dict) and system.content.get("little_endian") is False
    byte_order = ">" if is_big else "<"
    places: dict[str, tuple[int, int]] = {}
    with open(path, "rb") as file:
        for key in map(str, keys.content):
            storage = content.storages.get(key)
            if storage is None or key in places:
                raise FormatError(f"cannot read {path}: damaged: its storages are not those named")
            file.seek(place)
            count = int.from_bytes(
                read_exactly(file, 8, path), "big" if is_big else "little", signed=True
            )
            width = _width(storage.dtype)
            place += 8
            if count != storage.count or place + count * width > size:
                raise _truncated(f"storage {key}", storage.count * width, "the file", size, path)
            places[key] = place, count * width
            place += count * width
    for key in content.storages:
        if key not in places:
            raise FormatError(f"cannot read {path}: damaged: it has no storage {key[:40]}")
    return content, places, byte_order


def _width(dtype: str) -> int:
    """Bytes of a number."""
    return FLOATS[dtype] if dtype in FLOATS else np.dtype(dtype).itemsize


# --------------------------------------------------------------------------------------------------
# Tensors and modules in a checkpoint


@dataclass
class _Group:
    """A state dict or a whole module in a checkpoint.

    above : tuple       keys of the dicts around it
    tensors : dict      key -> tensor
    unreadable : dict   key -> why something that stands for a tensor is not read
    modules : dict      name -> module
    """

    above: tuple[str, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all tensors, readable or not."""
        return (*self.tensors, *self.unreadable)


def state_dict_of(
    content: Any, raw: Callable[[Storage, int, str], bytes], byte_order: str, path: str
) -> StateDict:
    """All state dicts and modules in a checkpoint as one.

    The name of a tensor is the key in its state dict. If any key of a group occurs in another one,
    too, all its names are full paths, so that a layer's weight and bias stay together.

    raw : callable      storage, bytes needed, name of the tensor in messages -> at least its bytes
    """
    groups = list(
        _groups({"weight": content} if isinstance(content, Tensor) else content, (), set())
    )
    counts = Counter(key for group in groups for key in group.keys)
    tensors: dict[str, Tensor] = {}
    unreadable: dict[str, str] = {}
    modules: dict[str, Module] = {}
    for group in groups:
        ambiguous = any(counts[key] > 1 for key in group.keys)
        if ambiguous:
            _require_short(sum(map(len, group.above)), "dict")
        prefix = "".join(f"{part}." for part in group.above) if ambiguous else ""
        tensors |= {prefix + key: tensor for key, tensor in group.tensors.items()}
        unreadable |= {prefix + key: reason for key, reason in group.unreadable.items()}
        modules |= {
            (prefix + name).removesuffix("."): module for name, module in group.modules.items()
        }
    for key, tensor in tensors.items():
        dtype = tensor.storage.dtype
        if dtype not in FLOATS and not (tensor.quantizer and dtype in _INTEGERS):
            unreadable[key] = f"its {key.rpartition('.')[2]} holds {dtype}, not floats"
    storages: dict[str, Array] = {}

    def read(key: str) -> Array:
        return _read_tensor(tensors[key], f"tensor {key[:80]}", raw, byte_order, storages, path)

    def identity(key: str) -> object:
        tensor = tensors.get(key)
        if tensor is None:
            return key
        return tensor.storage.key, tensor.offset, tensor.shape, tensor.strides

    return StateDict(
        {key: tensor.shape for key, tensor in tensors.items()}, read, modules, unreadable, identity
    )


def _require_short(length: int, what: str) -> None:
    """Check a name before many others are made of it. Raises: ValueError."""
    if length > _MAX_NAME:
        raise ValueError(
            f"a {what} has a name of {length:,} characters; at most {_MAX_NAME:,} are read"
        )


def _groups(content: Any, above: tuple[str, ...], seen: set[int]) -> Iterator[_Group]:
    """Yield the state dicts and modules in dicts, lists and objects, in order.

    above : tuple       keys of the containers around the content
    seen : set          ids of containers and states of modules that were met: one that occurs
                        twice may occur a billion times
    """
    if not isinstance(content, (dict, list, tuple, Record)) or len(above) >= _MAX_DEPTH:
        return
    if id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, Record):
        if _is_module(content):
            group = _Group(above)
            others: list[tuple[tuple[str, ...], Any]] = []
            _add_module(content, "", group, seen, others)
            yield group
            for path, value in others:
                yield from _groups(value, (*above, *path), seen)
            return
        if content.name.startswith("torch.") and "_rebuild" in content.name:
            return
        for part in (content.arguments, content.state, content.items, content.entries):
            yield from _groups(part, above, seen)
        return
    if isinstance(content, dict):
        if "param_groups" in content and "state" in content:  # of an optimizer
            return
        group = _Group(above)
        for key, value in content.items():
            if isinstance(key, (str, int)):
                _add_value(str(key), value, group)
        if group.keys:
            yield group
        pairs = [(str(key), value) for key, value in content.items() if isinstance(key, (str, int))]
    else:
        pairs = [(str(i), part) for i, part in enumerate(content)]
        for key, value in pairs:
            if isinstance(value, Tensor):
                yield _Group((), {".".join((*above, key)): value})
    for key, value in pairs:
        yield from _groups(value, (*above, key), seen)


def _add_value(key: str, value: Any, group: _Group) -> None:
    """Add a tensor, or what stands for one, to a group."""
    if isinstance(value, Tensor):
        group.tensors[key] = value
    elif (
        isinstance(value, Record)
        and key.rpartition(".")[2].startswith("weight")
        and not _is_module(value)
    ):
        name = value.name or "an object"
        group.unreadable[key] = f"its weights are stored as {name[:80]}, which is not read"


def _has_tables(record: Record) -> bool:
    """Whether an object has dicts of parameters and inner modules, as a module of PyTorch has."""
    tables = (record.attribute("_modules"), record.attribute("_parameters"))
    return all(isinstance(table, dict) for table in tables)


def _is_module(record: Record) -> bool:
    """Whether an object is a module: one of PyTorch, or one of TorchScript."""
    is_script = record.name.startswith(_TORCHSCRIPT) and record.attribute("training") is not None
    return is_script or _has_tables(record)


def _parts_of(record: Record, seen: set[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and buffers, and the inner modules or what stands for them, of a module.

    seen : set      as in `_groups`
    """
    if not _has_tables(record):
        values = record.attributes
        inner = {key: value for key, value in values.items() if isinstance(value, Record)}
        return {key: value for key, value in values.items() if key not in inner}, inner
    parts: list[dict[str, Any]] = []
    for name in ("_parameters", "_buffers", "_modules"):
        table = record.attribute(name)
        is_new = isinstance(table, dict) and id(table) not in seen
        seen.add(id(table))
        parts.append({str(key): value for key, value in table.items()} if is_new else {})
    parameters, buffers, inner = parts
    return {**parameters, **buffers}, inner


def _add_module(
    record: Record,
    name: str,
    group: _Group,
    seen: set[int],
    others: list[tuple[tuple[str, ...], Any]],
) -> None:
    """Add a module, its tensors and the modules in it to a group.

    name : str      its path, such as "encoder.0"
    seen : set      as in `_groups`
    others : list   takes the paths and values of its other containers, which may hold modules, too
    """
    _require_short(len(name), "module")
    if id(record.state) in seen or name.count(".") >= _MAX_DEPTH:
        return
    seen.add(id(record.state))
    tensors, inner = _parts_of(record, seen)
    children = {
        key: value
        for key, value in inner.items()
        if isinstance(value, Record) and _is_module(value)
    }
    attributes = record.attributes
    hooks = [
        hook
        for kind in ("_forward_pre_hooks", "_forward_hooks")
        if isinstance(attributes.get(kind), dict)
        for hook in attributes[kind].values()
    ]
    group.modules[name] = Module(
        _class_name(record.name),
        {key: value for key, value in attributes.items() if not isinstance(value, Record)},
        not children,
        tuple(hook.text if isinstance(hook, Name) else _name_of(hook) for hook in hooks),
    )
    prefix = f"{name}." if name else ""
    for key, value in tensors.items():
        _add_value(f"{prefix}{key}", value, group)
    for key, value in attributes.items():  # tensors that are neither parameters nor buffers
        if isinstance(value, Tensor) and key not in tensors and not key.startswith("weight"):
            group.tensors[f"{prefix}{key}"] = value
    for key, child in children.items():
        _add_module(child, f"{prefix}{key}", group, seen, others)
    rest = [*inner.items()]  # what stands in place of modules, such as a function that makes one
    rest += [
        (key, value)
        for key, value in attributes.items()
        if key not in _MODULE_STATE and "_hooks" not in key
    ]
    for key, value in rest:
        if isinstance(value, (dict, list, tuple, Record)) and key not in children:
            others.append(((*filter(None, name.split(".")), key), value))


def _name_of(value: Any) -> str:
    """The class of an object of a pickle."""
    return value.name if isinstance(value, Record) else type(value).__name__


def _class_name(name: str) -> str:
    """The class of a module; TorchScript puts marks into the names of classes.

    >>> _class_name("__torch__.torch.nn.modules.conv.___torch_mangle_0.Conv3d")
    'torch.nn.modules.conv.Conv3d'
    """
    parts = name.removeprefix(_TORCHSCRIPT).split(".")
    return ".".join(part for part in parts if not part.startswith("___torch_mangle_"))


def _read_tensor(
    tensor: Tensor,
    what: str,
    raw: Callable[[Storage, int, str], bytes],
    byte_order: str,
    storages: dict[str, Array],
    path: str,
) -> Array:
    """Read a tensor from its storage; `storages` caches decoded storages.

    what, raw : as in `state_dict_of`
    """
    storage = tensor.storage
    require_shape(tensor.shape, what, path)
    stored = f"{storage.key}:{storage.dtype}"
    if stored not in storages:
        width = _width(storage.dtype)
        needed = storage.count // width * width if storage.in_bytes else storage.count * width
        content = raw(storage, needed, what)
        storages[stored] = (
            decode_floats(content, storage.dtype, byte_order)
            if storage.dtype in FLOATS
            else np.frombuffer(content, byte_order + np.dtype(storage.dtype).str[1:])
        )
    values = storages[stored]
    last = tensor.offset + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    count = int(np.prod(tensor.shape, dtype=object))
    if count and last >= values.size:
        raise FormatError(f"cannot read {path}: {what} reaches beyond its {values.size:,} numbers")
    if count > values.size:
        raise FormatError(
            f"cannot read {path}: {what} repeats some of its {values.size:,} numbers; save it as "
            "tensor.contiguous() in PyTorch"
        )
    if not count:
        return np.empty(tensor.shape, values.dtype)
    steps = [stride * values.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(
        values[tensor.offset :], tensor.shape, steps, writeable=False
    )
    array = np.array(view, order="C")
    if tensor.is_negative:
        array = -array
    if not tensor.quantizer:
        return array

    def number(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        read = _read_tensor(part, f"the quantizer of {what}", raw, byte_order, storages, path)
        return read.astype(np.float64)

    scale, zero, *axes = map(number, tensor.quantizer)
    if axes:
        axis = axes[0]
        sizes = {np.shape(scale), np.shape(zero)}
        if not 0 <= axis < array.ndim or sizes != {(array.shape[axis],)}:
            raise FormatError(f"cannot read {path}: {what} does not fit its quantizer")
        shape = [1] * array.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    floats: Array = ((array.astype(np.float64) - zero) * scale).astype(np.float32)
    return floats

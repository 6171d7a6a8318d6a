"""Read the tensors of a pickle without unpickling: no class is imported, no function is called.

`pickletools` decodes the operations. A small stack machine runs those that build dicts, lists,
texts and numbers, and represents everything else as data: a tensor becomes the names and numbers
that locate its storage, and any other object a `Record` of the names and values it was made of. So
a checkpoint may hold anything beside its tensors, and a whole module shows the attributes of its
layers.

Source: Python, pickletools.py; PyTorch, torch/_utils.py (_rebuild_tensor_v2, _rebuild_qtensor),
torch/serialization.py (persistent_id).
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from conv3d_cli.system.room import require_room

MAX_PICKLE = 64 << 20  # bytes, without the tensors, which lie beside the pickle
_MAX_OPERATIONS = 4_000_000  # about 5 seconds
# bytes of what a pickle describes: at most so many for each byte of it, and for each object
_BYTES_PER_BYTE = 32
_BYTES_PER_OBJECT = {b"}": 240, b"]": 64, b"R": 160, b"\x81": 160}
_MAX_AXES = 64  # of a tensor, as in PyTorch

_ORDERED_DICT = "collections.OrderedDict"
_TENSORS = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)
_TYPED = _TENSORS[-1]
_QUANTIZED = "torch._utils._rebuild_qtensor"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_SUBCLASSED = "torch._tensor._rebuild_from_type_v2"
_RECONSTRUCTOR = "copyreg._reconstructor", "copy_reg._reconstructor"
_SIZE = "torch.Size"
# names of dtypes in PyTorch that differ from NumPy's
_DTYPES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "qint8": "int8",
    "quint8": "uint8",
    "qint32": "int32",
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}


class RefusedError(Exception):
    """A pickle that cannot be read without running it, or is too long; the text says why."""


@dataclass(frozen=True)
class Name:
    """A class or function named in a pickle, as module.name; it is never imported."""

    text: str


@dataclass(eq=False)
class Record:
    """An object of a pickle that is not built: what it would be made of.

    name : str          its class or the function that returns it, as module.name
    arguments : tuple   of the call
    state : any         its attributes, mostly a dict; None without any
    items : dict        what is put into it by keys, as into a dict
    entries : list      what is appended to it, as to a list
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes by name, of a plain state or one with slots."""
        return {
            key: value
            for table in self._tables()
            for key, value in table.items()
            if isinstance(key, str)
        }

    def attribute(self, name: str) -> Any:
        """An attribute, found without a look at the others; None if it is missing."""
        return next((table[name] for table in self._tables()[::-1] if name in table), None)

    def _tables(self) -> list[dict[Any, Any]]:
        """The dicts of attributes: one, or two of a class with slots."""
        has_slots = isinstance(self.state, tuple) and len(self.state) == 2
        parts = self.state if has_slots else (self.state,)
        return [part for part in parts if isinstance(part, dict)]


@dataclass(frozen=True)
class Storage:
    """The location of numbers in an archive.

    key : str       name of the member
    dtype : str     their type, such as "float32"
    count : int     how many there are
    in_bytes : bool whether they are counted in bytes
    """

    key: str
    dtype: str
    count: int
    in_bytes: bool = False


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage.

    offset : int            first element, in elements
    shape : tuple           lengths of the axes
    strides : tuple         steps of the axes, in elements
    quantizer : tuple       of integers that stand for floats: (scale, zero point), or (scales, zero
                            points, axis) of two tensors; () of other numbers
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    quantizer: tuple[Any, ...] = ()
    is_negative: bool = False


@dataclass(frozen=True, eq=False)
class Pickle:
    """What a pickle holds, and the storages it names by their keys."""

    content: Any
    storages: dict[str, Storage]


class _Mark:
    """Type of the marks that pickle operations put on the stack."""


_MARK = _Mark()
# operations that push their argument
_CONSTANTS = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}


def read_pickle(content: bytes, path: str = "") -> Pickle:
    """Read a pickle; objects other than dicts, lists, texts, numbers and tensors become `Record`s.

    path : str      its file, for messages
    Raises: RefusedError if it cannot be read without running it; MemoryLimitError; ValueError and
    other errors for damaged bytes.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"a": [1, 2.5, None], "b": ("c", True)})).content
    {'a': [1, 2.5, None], 'b': ('c', True)}
    >>> record = read_pickle(pickle.dumps(range(3))).content
    >>> record.name, record.arguments
    ('builtins.range', (0, 3, 1))
    """
    if len(content) > MAX_PICKLE:
        raise RefusedError(f"a pickle of {len(content):,} bytes")
    objects = sum(each * content.count(sign) for sign, each in _BYTES_PER_OBJECT.items())
    require_room(_BYTES_PER_BYTE * len(content) + objects, "its pickle", path)
    return _run(content)


def pickle_end(content: bytes, start: int) -> int:
    """Where the pickle that begins at `start` ends.

    Raises: RefusedError if it is too long; ValueError for damaged bytes.

    >>> pickle_end(b"..N.--", 2)
    4
    """
    file = io.BytesIO(content)
    file.seek(start)
    for number, (operation, _, _) in enumerate(pickletools.genops(file)):
        if number > _MAX_OPERATIONS:
            raise RefusedError(f"a pickle of more than {_MAX_OPERATIONS:,} operations")
        if operation.name == "STOP":
            return file.tell()
    raise ValueError("damaged pickle")


def _run(content: bytes) -> Pickle:
    """Run the operations of a pickle on a stack of plain values and `Record`s."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}
    copied = 0  # entries of lists that were copied, which the operations do not count

    def to_mark() -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def dict_at_top() -> dict[Any, Any]:
        top = stack[-1]
        if isinstance(top, Record):
            return top.items
        if not isinstance(top, dict):
            raise ValueError("damaged pickle")
        return top

    def list_at_top() -> list[Any]:
        top = stack[-1]
        if isinstance(top, Record):
            return top.entries
        if not isinstance(top, list):
            raise ValueError("damaged pickle")
        return top

    argument: Any
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if number + copied > _MAX_OPERATIONS:
            raise RefusedError(f"a pickle of more than {_MAX_OPERATIONS:,} operations")
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return Pickle(stack.pop(), storages)
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case constant if constant in _CONSTANTS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "DICT":
                stack.append(_pairs(to_mark()))
            case "LIST" | "FROZENSET":
                stack.append(to_mark())
            case "TUPLE":
                stack.append(tuple(to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation.name[-1])
                if len(stack) < count:
                    raise ValueError("damaged pickle")
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                list_at_top().append(item)
            case "APPENDS" | "ADDITEMS":
                items = to_mark()
                list_at_top().extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                dict_at_top()[_key(key)] = item
            case "SETITEMS":
                items = to_mark()
                dict_at_top().update(_pairs(items))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                if isinstance(arguments, tuple) and len(arguments) == 1:
                    copied += len(arguments[0]) if isinstance(arguments[0], list) else 0
                stack.append(_call_result(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(_call_result(function, arguments))
            case "INST":
                stack.append(_call_result(_name(*argument.split(" ", 1)), tuple(to_mark())))
            case "OBJ":
                function, *rest = to_mark()
                stack.append(_call_result(function, tuple(rest)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Record):
                    stack[-1].state = state
                elif not isinstance(stack[-1], (dict, Tensor)):  # whose attributes mean nothing
                    raise ValueError("damaged pickle")
            case "BINPERSID":
                found = _persistent(stack.pop())
                if isinstance(found, Storage):
                    storages[found.key] = found
                stack.append(found)
            case name:
                raise RefusedError(f"the pickle operation {name}")
    raise ValueError("damaged pickle")


def _name(module: Any, name: Any) -> Name:
    """A class or function by its module and name."""
    if not (isinstance(module, str) and isinstance(name, str)):
        # checked before the message: the text of nested tuples may grow without bound
        raise ValueError("damaged pickle")
    return Name(f"{module}.{name}")


@dataclass(frozen=True, eq=False)
class _OtherKey:
    """A key of a dict that is no text or number: nothing is found by it."""

    key: Any


def _key(key: Any) -> Any:
    """Return a key of a dict; the hash of nested tuples may take for ever, so they get another."""
    return key if isinstance(key, (str, int, float, bytes, type(None))) else _OtherKey(key)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """A dict of alternating keys and values."""
    if len(items) % 2:
        raise ValueError("damaged pickle")
    return {_key(key): item for key, item in zip(items[::2], items[1::2], strict=True)}


def _flat(items: list[Any]) -> Iterator[Any]:
    """Keys and values of a list of pairs. Raises: ValueError for anything else."""
    for item in items:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise ValueError("damaged pickle")
        yield from item


def _call_result(function: Any, arguments: Any) -> Any:
    """The result of a call as data: of a dict or a tensor itself, else a `Record`."""
    name = function.text if isinstance(function, Name) else ""
    if not isinstance(arguments, tuple):
        raise ValueError("damaged pickle")
    match arguments:
        case () if name == _ORDERED_DICT:
            return {}
        case (list() as items,) if name == _ORDERED_DICT:
            return _pairs(list(_flat(items)))
        case (Storage() as storage, offset, tuple() as shape, tuple() as strides, *rest) if (
            name in _TENSORS
        ):
            if name == _TYPED and len(rest) > 2 and isinstance(rest[2], Name):
                kind = rest[2].text.rpartition(".")[2]
                # a storage of bytes: the reader knows how many of them make a number
                storage = Storage(
                    storage.key, _DTYPES.get(kind, kind), storage.count, in_bytes=True
                )
            tensor = _tensor(storage, offset, shape, strides)
            # a view of negated numbers tells so in its last argument
            negated = any(isinstance(one, dict) and one.get("neg") is True for one in rest)
            return replace(tensor, is_negative=True) if negated else tensor
        case (
            Storage() as storage,
            offset,
            tuple() as shape,
            tuple() as strides,
            quantizer,
            *_,
        ) if name == _QUANTIZED and (numbers := _quantizer(quantizer)):
            return _tensor(storage, offset, shape, strides, numbers)
        case (Tensor() as tensor, *_) if name in _PARAMETERS:
            return tensor
        case (Name() as inner, Name(), tuple() as inner_arguments, *_) if (
            name == _SUBCLASSED and inner.text != _SUBCLASSED
        ):
            built = _call_result(inner, inner_arguments)
            if isinstance(built, Tensor):
                return built
        case (tuple() as shape,) if name == _SIZE:
            return shape
        case (Name() as cls, *_) if name in _RECONSTRUCTOR:
            return Record(cls.text)
    return Record(name, arguments)


def _tensor(
    storage: Storage, offset: Any, shape: Any, strides: Any, quantizer: tuple[Any, ...] = ()
) -> Tensor:
    """A tensor of these numbers. Raises: ValueError if they are none of a tensor."""
    # many tensors may share a shape of a million numbers, so its length is looked at first
    if not len(shape) == len(strides) <= _MAX_AXES or not all(
        type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)
    ):
        raise ValueError("damaged tensor")
    return Tensor(storage, offset, shape, strides, quantizer)


def _quantizer(parameters: Any) -> tuple[Any, ...]:
    """The numbers of a quantizer, as `Tensor` has them; () for one that is not known.

    Its tensors are plain: where each were quantized by two others, they would double at each step.
    """
    match parameters:
        case (Name(text="torch.per_tensor_affine"), float() as scale, int() as zero):
            return scale, zero
        case (
            Name(text="torch.per_channel_affine"),
            Tensor(quantizer=()) as scales,
            Tensor(quantizer=()) as zeros,
            int() as axis,
        ):
            return scales, zeros, axis
    return ()


def _persistent(identity: Any) -> Any:
    """What a persistent id of PyTorch means: a storage, or a class with its source text.

    Raises: RefusedError for another id.
    """
    match identity:
        case ("storage", Name(text=text), str() | int() as key, str(), int() as count, *view) if (
            0 <= count < 2** 63 and view in ([], [None])
        ):
            kind = text.rpartition(".")[2]
            dtype = _STORAGES.get(kind, "uint8" if kind == "UntypedStorage" else "")
            return Storage(str(key), dtype or _DTYPES.get(kind, kind), count)
        case ("module", Name() as cls, *_):
            return cls
    raise RefusedError("a storage of an unknown kind")

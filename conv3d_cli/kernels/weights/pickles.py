"""Read the state dict of a pickle without unpickling: no class is imported, no function is called.

`pickletools` decodes the operations. A small stack machine runs those that build dicts, lists,
texts and numbers, and represents everything else as data: a tensor becomes the names and numbers
that locate its storage. A pickle that needs more is refused, and the error names what it needs.

Source: Python, pickletools.py; PyTorch, torch/_utils.py (_rebuild_tensor_v2),
torch/serialization.py (persistent_id).
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

MAX_PICKLE = 64 << 20  # bytes, without the tensors, which are other members of the archive

_ORDERED_DICT = "collections.OrderedDict"
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_SIZE = "torch.Size"
_TYPES = (
    "float64",
    "double",
    "float32",
    "float",
    "float16",
    "half",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
)
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
}
ALLOWED_NAMES = {
    _ORDERED_DICT,
    *_TENSORS,
    *_PARAMETERS,
    _SIZE,
    "torch.storage.UntypedStorage",
    *(f"torch.{name}" for name in (*_STORAGES, *_TYPES)),
}


class RefusedError(Exception):
    """A pickle contains more than tensors and plain containers; the text names it."""


@dataclass(frozen=True)
class Name:
    """A class or function named in a pickle, as module.name; it is never imported."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The location of numbers in an archive.

    key : str       name of the member
    dtype : str     their type, such as "float32"
    count : int     how many there are
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage.

    offset : int        first element, in elements
    shape : tuple       lengths of the axes
    strides : tuple     steps of the axes, in elements
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
}


def read_pickle(content: bytes) -> Any:
    """Read the dicts, lists, tuples, texts, numbers and tensors (`Tensor`) of a pickle.

    Raises: RefusedError if it contains anything else; ValueError and other errors for damaged
    bytes.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"a": [1, 2.5, None], "b": ("c", True)}))
    {'a': [1, 2.5, None], 'b': ('c', True)}
    >>> read_pickle(pickle.dumps(print))
    Traceback (most recent call last):
    ...
    conv3d_cli.kernels.weights.pickles.RefusedError: builtins.print
    """
    if len(content) > MAX_PICKLE:
        raise RefusedError(f"a pickle of {len(content):,} bytes")
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def last(kind: type) -> Any:
        if not isinstance(stack[-1], kind):
            raise ValueError("damaged pickle")
        return stack[-1]

    argument: Any
    for operation, argument, _ in pickletools.genops(content):
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                to_mark()
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
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "DICT":
                stack.append(_pairs(to_mark()))
            case "LIST":
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
                last(list).append(item)
            case "APPENDS":
                items = to_mark()
                last(list).extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                last(dict)[_key(key)] = item
            case "SETITEMS":
                items = to_mark()
                last(dict).update(_pairs(items))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_allowed_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed_name(module, name))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call_result(function, arguments))
            case "BUILD":
                stack.pop()  # attributes of a state dict: versions of its modules
                last(dict)
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case name:
                raise RefusedError(f"the pickle operation {name}")
    raise ValueError("damaged pickle")


def _allowed_name(module: Any, name: Any) -> Name:
    """A class or function of `ALLOWED_NAMES`. Raises: RefusedError for any other."""
    if not (isinstance(module, str) and isinstance(name, str)):
        # checked before the message: the text of nested tuples may grow without bound
        raise ValueError("damaged pickle")
    text = f"{module}.{name}"
    if text not in ALLOWED_NAMES:
        raise RefusedError(text[:100])
    return Name(text)


def _key(key: Any) -> Any:
    """Return a key of a dict. Raises: RefusedError unless it is a text, a number or None."""
    if not isinstance(key, (str, int, float, bytes, type(None))):
        raise RefusedError(f"a dict whose keys are of type {type(key).__name__}")
    return key


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """A dict of alternating keys and values."""
    if len(items) % 2:
        raise ValueError("damaged pickle")
    return {_key(key): item for key, item in zip(items[::2], items[1::2], strict=True)}


def _call_result(function: Any, arguments: Any) -> Any:
    """The result of a call of an allowed function, as data. Raises: RefusedError."""
    name = function.text if isinstance(function, Name) else ""
    match arguments:
        case () if name == _ORDERED_DICT:
            return {}
        case (list() as items,) if name == _ORDERED_DICT:
            return _pairs([part for item in items for part in item])
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, *_) if (
            name in _TENSORS
        ):
            if len(shape) != len(strides) or not all(
                type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)
            ):
                raise ValueError("damaged tensor")
            return Tensor(storage, offset, shape, strides)
        case (Tensor() as tensor, *_) if name in _PARAMETERS:
            return tensor
        case (tuple() as shape,) if name == _SIZE:
            return shape
    raise RefusedError(f"a call of {name[:100] or 'an object'}")


def _storage(identity: Any) -> Storage:
    """The storage of a persistent id of PyTorch. Raises: RefusedError for another id."""
    match identity:
        case ("storage", Name(text=text), str() as key, str(), int() as count) if (
            0 <= count < 2**63
        ):
            kind = text.removeprefix("torch.")
            return Storage(key, _STORAGES.get(kind, "uint8"), count)
    raise RefusedError("a storage of an unknown kind")

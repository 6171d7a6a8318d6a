"""Read identifiers: a name, text with parameters, or Keras' serialized dict.

Activations, initializers, regularizers and constraints share this; each has its own catalogue of
names.
"""

from __future__ import annotations

import inspect
import json
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conv3d_cli.errors import SpecError, suggestion


def read_identifier(identifier: str | Mapping[str, Any], kind: str) -> tuple[str, Any]:
    """Name and config of an identifier: `name`, `name:key=value:key=value`, or Keras' dict.

    kind : str      what the identifier names, for messages
    Raises: SpecError for text or a dict of another form.
    Source: Keras 3, keras/src/saving/serialization_lib.py; its `registered_name`, `module` and
    `build_config` are ignored.
    >>> read_identifier("l1_l2:l1=0.5", "regularizer")
    ('l1_l2', {'l1': 0.5})
    >>> read_identifier({"class_name": "HeNormal", "config": {"seed": 3}}, "initializer")
    ('HeNormal', {'seed': 3})
    """
    if isinstance(identifier, str):
        word, *pairs = (part.strip() for part in identifier.split(":"))
        return word, read_parameters(pairs, kind, identifier)
    name = identifier.get("class_name")
    if not isinstance(name, str):
        raise SpecError(f"a serialized {kind} needs a class_name, received {dict(identifier)!r}")
    config = identifier.get("config")
    return name, {} if config is None else config


_KERAS = ("keras", "tf_keras", "tensorflow")


def of_keras(identifier: Any) -> Any:
    """An object, class or function of Keras itself as Keras serializes it; others unchanged.

    Keras need not be installed: whoever passes such an object has it.
    >>> of_keras("relu"), of_keras(None)
    ('relu', None)
    """
    if inspect.isfunction(identifier):
        is_own = str(identifier.__module__).partition(".")[0] in _KERAS
        return identifier.__name__ if is_own else identifier
    cls = identifier if inspect.isclass(identifier) else type(identifier)
    if cls.__module__.partition(".")[0] not in _KERAS or not hasattr(cls, "get_config"):
        return identifier
    made = cls() if identifier is cls else identifier
    return {"class_name": cls.__name__, "config": made.get_config()}


def read_parameters(pairs: Iterable[str], kind: str, text: str) -> dict[str, Any]:
    """Parse `key=value` texts: numbers, true, false, none, words, and lists joined by commas.

    kind, text : str        what the parameters belong to, and the whole text, for messages
    Raises: SpecError for a text of another form, or a repeated key.
    >>> read_parameters(["axis=0,1,2", "rate=0.5", "mode=fan_in", "seed=none"], "constraint", "")
    {'axis': [0, 1, 2], 'rate': 0.5, 'mode': 'fan_in', 'seed': None}
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not key or not equals or not value:
            raise SpecError(
                f"parameters of a {kind} are key=value, joined by ':'; received '{pair}' in "
                f"'{text}'"
            )
        if key in values:
            raise SpecError(f"{key} is given twice in {kind} '{text}'; give it once")
        parts = [_value(part.strip()) for part in value.split(",")]
        values[key] = parts if len(parts) > 1 else parts[0]
    return values


def _value(text: str) -> Any:
    """The value of a text: None, a bool, a number, or the text itself."""
    if text.lower() in ("none", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return text


def write_text(name: str, config: Mapping[str, Any]) -> str:
    """The text of a name and its parameters, which `read_identifier` reads.

    >>> write_text("max_norm", {"max_value": 1.5, "axis": [0, 1]})
    'max_norm:max_value=1.5:axis=0,1'
    """

    def word(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return ",".join(map(word, value))
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    return ":".join([name, *(f"{key}={word(value)}" for key, value in config.items())])


def check_keys(name: str, config: Any, function: Callable[..., Any], skip: int = 0) -> None:
    """Check that the keys of a config are parameters of `function`, and that none is missing.

    name : str      of the entry, for messages
    skip : int      number of the function's first parameters that no config has (x)
    Raises: SpecError, which lists the parameters.
    """
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    known = {p.name: p.default for p in parameters}
    if not isinstance(config, Mapping):
        raise SpecError(f"the config of {name} must be a table of parameters, received {config!r}")
    takes = f"{name} takes {', '.join(known) if known else 'no parameters'}"
    for key in config:
        if key not in known:
            hint = suggestion(str(key), known)
            raise SpecError(f"{name} has no parameter '{key}'; {hint}{takes}")
    missing = [
        key
        for key, default in known.items()
        if default is inspect.Parameter.empty and key not in config
    ]
    if missing:
        example = ":".join([name, *(f"{key}=1" for key in missing)])
        raise SpecError(f"{name} needs {' and '.join(missing)}, as in {example}")


def require_number(value: Any, what: str) -> float:
    """The value, if it is a real number (no text, no bool).

    what : str      its name in the message
    Raises: SpecError for other values.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise SpecError(f"{what} must be a number, received {value!r}")
    return value  # type: ignore[return-value]


def require_axis(value: Any, what: str) -> int | list[int]:
    """An axis, or a list of axes (a tuple becomes a list, as in JSON).

    what : str      its name in the message
    Raises: SpecError for other values.
    """
    several = isinstance(value, (list, tuple))
    axes = list(value) if several else [value]
    if not axes or not all(
        isinstance(a, numbers.Integral) and not isinstance(a, bool) for a in axes
    ):
        raise SpecError(f"{what} must be a whole number or a list of them, received {value!r}")
    numbers_of_axes = [int(a) for a in axes]
    return numbers_of_axes if several else numbers_of_axes[0]


def keras_dict(module: str, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Keras 3's serialized form of an object.

    >>> json.dumps(keras_dict("keras.initializers", "Zeros", {}))
    '{"module": "keras.initializers", "class_name": "Zeros", "config": {}, "registered_name": null}'
    """
    return {
        "module": module,
        "class_name": class_name,
        "config": dict(config),
        "registered_name": None,
    }


def plain(value: Any) -> Any:
    """A value after a round trip through JSON: tuples become lists.

    Raises: TypeError for a value that JSON cannot hold.
    """
    return json.loads(json.dumps(value))


def by_name(classes: Iterable[type]) -> dict[str, type]:
    """Classes by their names and by these in snake case, as Keras finds them.

    >>> class HeNormal: pass
    >>> class L1L2: pass
    >>> sorted(by_name([HeNormal, L1L2]))
    ['HeNormal', 'L1L2', 'he_normal', 'l1l2']
    """
    classes_by_name: dict[str, type] = {}
    for cls in classes:
        snake = re.sub("([a-z])([A-Z])", r"\1_\2", cls.__name__).lower()
        classes_by_name |= {cls.__name__: cls, snake: cls}
    return classes_by_name

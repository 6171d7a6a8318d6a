"""How the layer's catalogues are asked: by name, by text with parameters, by Keras' serialised dict.

Shared by activations, initializers, regularizers and constraints; what a name stands for is theirs to say.
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

    Source: Keras 3, keras/src/saving/serialization_lib.py; `registered_name`, `module` and `build_config` say nothing
    that is needed here.
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
        raise SpecError(f"a serialised {kind} needs a class_name, received {dict(identifier)!r}")
    config = identifier.get("config")
    return name, {} if config is None else config


def read_parameters(pairs: Iterable[str], kind: str, text: str) -> dict[str, Any]:
    """Parameters out of `key=value` texts: numbers, true, false, none, words, and lists joined by commas.

    >>> read_parameters(["axis=0,1,2", "rate=0.5", "mode=fan_in", "seed=none"], "constraint", "")
    {'axis': [0, 1, 2], 'rate': 0.5, 'mode': 'fan_in', 'seed': None}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not key or not equals or not value:
            raise SpecError(
                f"parameters of a {kind} are key=value, joined by ':'; received '{pair}' in '{text}'"
            )
        if key in found:
            raise SpecError(f"{key} is given twice in {kind} '{text}'")
        parts = [_value(part.strip()) for part in value.split(",")]
        found[key] = parts if len(parts) > 1 else parts[0]
    return found


def _value(text: str) -> Any:
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
    """The text that `read_identifier` reads.

    >>> write_text("max_norm", {"max_value": 1.5, "axis": [0, 1]})
    'max_norm:max_value=1.5:axis=0,1'
    """

    def word(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return ",".join(map(word, value))
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    return ":".join([name, *(f"{key}={word(value)}" for key, value in config.items())])


def check_keys(name: str, config: Any, function: Callable[..., Any], skip: int = 0) -> None:
    """Refuse keys that are no parameters of `function`, and missing ones.

    skip : int      leading parameters of the function that are no part of a config (x)
    Raises: SpecError, naming the parameters there are.
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
        raise SpecError(
            f"{name} needs {' and '.join(missing)}, as in {name}:{':'.join(f'{m}=1' for m in missing)}"
        )


def require_number(value: Any, what: str) -> float:
    """A real number, as it came; no text, no bool.

    Raises: SpecError.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise SpecError(f"{what} must be a number, received {value!r}")
    return value  # type: ignore[return-value]


def require_axis(value: Any, what: str) -> int | list[int]:
    """An axis, or a list of them (tuples become lists, as in JSON).

    Raises: SpecError.
    """
    several = isinstance(value, (list, tuple))
    axes = list(value) if several else [value]
    if not axes or not all(
        isinstance(a, numbers.Integral) and not isinstance(a, bool) for a in axes
    ):
        raise SpecError(f"{what} must be a whole number or a list of them, received {value!r}")
    found = [int(a) for a in axes]
    return found if several else found[0]


def keras_dict(module: str, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Keras 3's serialised form of an object.

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
    """A value as it comes back from JSON: tuples are lists. Raises: TypeError for what JSON cannot hold."""
    return json.loads(json.dumps(value))


def by_name(classes: Iterable[type]) -> dict[str, type]:
    """Classes by their name and its snake case, as Keras finds them.

    >>> class HeNormal: pass
    >>> class L1L2: pass
    >>> sorted(by_name([HeNormal, L1L2]))
    ['HeNormal', 'L1L2', 'he_normal', 'l1l2']
    """
    found: dict[str, type] = {}
    for cls in classes:
        snake = re.sub("([a-z])([A-Z])", r"\1_\2", cls.__name__).lower()
        found |= {cls.__name__: cls, snake: cls}
    return found

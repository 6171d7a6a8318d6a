"""Keras' own settings file, `keras.json`: read when needed, never written.

Keras reads the file once, when it is imported; here a changed file or KERAS_HOME takes effect at
the next call.
Source: Keras 3, keras/src/backend/config.py.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, fields
from typing import Any

from conv3d_cli.errors import ConfigError


@dataclass(frozen=True)
class KerasSettings:
    """The settings of keras.json that a layer depends on, with Keras' defaults."""

    floatx: str = "float32"
    epsilon: float = 1e-7
    image_data_format: str = "channels_last"


# path -> ((time, size) of the file, its settings)
_cache: dict[str, tuple[tuple[int, int], KerasSettings]] = {}


def settings_path() -> str:
    """The path of Keras' settings file.

    It is `$KERAS_HOME/keras.json` if the variable exists, else `~/.keras/keras.json`; if the home
    directory cannot be written, `.keras/keras.json` in the temporary directory.
    """
    if "KERAS_HOME" in os.environ:
        folder = os.environ["KERAS_HOME"]
    else:
        home = os.path.expanduser("~")
        folder = os.path.join(home if os.access(home, os.W_OK) else tempfile.gettempdir(), ".keras")
    return os.path.expanduser(os.path.join(folder, "keras.json"))


def settings() -> KerasSettings:
    """The settings in keras.json; defaults where it has none, is no JSON, or does not exist.

    Raises: ConfigError for a file that cannot be read, or a value that Keras refuses, which
        compares values with their case.
    """
    path = os.path.abspath(settings_path())
    try:
        status = os.stat(path)
        version = (status.st_mtime_ns, status.st_size)
        if path in _cache and _cache[path][0] == version:
            return _cache[path][1]
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return KerasSettings()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    result = _parse(text, path)
    _cache[path] = version, result
    return result


def _parse(text: str, path: str) -> KerasSettings:
    """The settings in a text. Raises: ConfigError for values that Keras refuses."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        content = {}  # as Keras does
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object, received {content!r:.80}")
    values = {field.name: content.get(field.name, field.default) for field in fields(KerasSettings)}
    for key, allowed in (
        ("floatx", ("float16", "float32", "float64")),
        ("image_data_format", ("channels_last", "channels_first")),
    ):
        if values[key] not in allowed:
            raise ConfigError(
                f"invalid {key} configuration in {path}: expected one of {', '.join(allowed)}, "
                f"received {values[key]!r}"
            )
    if not isinstance(values["epsilon"], float):
        raise ConfigError(
            f"invalid epsilon configuration in {path}: expected a float such as 1e-07, received "
            f"{values['epsilon']!r}"
        )
    return KerasSettings(**values)

"""Keras' own settings file, `keras.json`: read when it is needed, never written.

Source: Keras 3, keras/src/backend/config.py. Unlike Keras, which reads the file once when it is imported, a changed file or
KERAS_HOME is noticed at the next call.
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
    """The settings that a layer depends on, with Keras' defaults."""

    floatx: str = "float32"
    epsilon: float = 1e-7
    image_data_format: str = "channels_last"


_read: dict[
    str, tuple[tuple[int, int], KerasSettings]
] = {}  # path -> (time and size of the file, what it says)


def settings_path() -> str:
    """Where Keras keeps its settings: `$KERAS_HOME/keras.json` if the variable exists, else `~/.keras/keras.json`; in the
    temporary directory if the home directory cannot be written."""
    if "KERAS_HOME" in os.environ:
        folder = os.environ["KERAS_HOME"]
    else:
        home = os.path.expanduser("~")
        folder = os.path.join(home if os.access(home, os.W_OK) else tempfile.gettempdir(), ".keras")
    return os.path.expanduser(os.path.join(folder, "keras.json"))


def settings() -> KerasSettings:
    """What keras.json says; the defaults where it is absent, is no JSON, or says nothing.

    Raises: ConfigError for a value that Keras refuses, too; the values are case-sensitive.
    """
    path = os.path.abspath(settings_path())
    try:
        status = os.stat(path)
        version = (status.st_mtime_ns, status.st_size)
        if path in _read and _read[path][0] == version:
            return _read[path][1]
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return KerasSettings()
    except NotADirectoryError:
        return KerasSettings()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    found = _checked(text, path)
    _read[path] = version, found
    return found


def _checked(text: str, path: str) -> KerasSettings:
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
                f"invalid {key} configuration in {path}: expected one of {', '.join(allowed)}, received {values[key]!r}"
            )
    if not isinstance(values["epsilon"], float):
        raise ConfigError(
            f"invalid epsilon configuration in {path}: expected a float such as 1e-07, received {values['epsilon']!r}"
        )
    return KerasSettings(**values)

"""Read HDF5 files in a subprocess: damaged ones make the HDF5 library crash or loop forever.

Of files with randomly changed bytes, 1 in 300 made the library loop and 1 in 3000 crashed it. Here
either becomes a FormatError. The subprocess answers with one line of JSON and the raw bytes of the
arrays, without any pickle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from conv3d_cli import errors
from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.kernels.weights.layer import Array, OtherLayer, SavedLayer, read_errors
from conv3d_cli.system.inputs import check_input

_TIMEOUT = 30.0  # seconds; reading takes about 0.1
_MIN_SPEED = 5e6  # bytes per second, which extend the timeout of large files
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from conv3d_cli.kernels.weights import isolated; isolated.serve()"
)


def run_in_subprocess(module: str, function: str) -> Callable[[str], Any]:
    """Wrap a reader of this package to run in a subprocess.

    module, function : str      such as "keras" and "read_keras"
    Returns a function: path -> list of layers, dict, or None, as the reader returns it. It raises
    the reader's errors, and FormatError if the HDF5 library crashes or does not finish.
    """

    def read(path: str) -> Any:
        command = [
            sys.executable,
            "-c",
            _PROGRAM,
            f"{module}.{function}",
            os.path.abspath(path),
            *sys.path,
        ]
        timeout = _TIMEOUT + check_input(path) / _MIN_SPEED
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FormatError(
                f"cannot read {path}: damaged: the HDF5 library did not finish"
            ) from None
        if done.returncode:
            raise FormatError(
                f"cannot read {path}: damaged: the HDF5 library crashed ({_last_line(done)})"
            )
        head, _, data = done.stdout.partition(b"\n")
        answer = json.loads(head)
        if "error" in answer:
            name, text = answer["error"]
            raise getattr(errors, name)(text.replace(os.path.abspath(path), path))
        return _decode_contents(answer["layers"], data) if "layers" in answer else answer["config"]

    return read


def _last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that a process wrote to stderr, or its exit code."""
    lines = [line for line in done.stderr.decode(errors="replace").split("\n") if line.strip()]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def serve() -> None:
    """Main function of the subprocess: call the reader named in `sys.argv`, print its result."""
    from conv3d_cli.kernels.weights import keras, legacy

    reader, path = sys.argv[1:3]
    module, _, function = reader.partition(".")
    arrays: list[Array] = []
    try:
        with read_errors(path):
            result = getattr({"keras": keras, "legacy": legacy}[module], function)(path)
        content: dict[str, Any] = {"config": result}
        if isinstance(result, list):
            content = {"layers": _encode_contents(result, arrays)}
    except Conv3DError as error:
        content = {"error": [type(error).__name__, str(error)]}
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(json.dumps(content).encode() + b"\n")
        for array in arrays:
            output.write(np.ascontiguousarray(array).data)


def _encode_contents(
    contents: list[SavedLayer | OtherLayer], arrays: list[Array]
) -> list[dict[str, Any]]:
    """Contents of a file as JSON; their arrays are appended to `arrays`."""
    encoded: list[dict[str, Any]] = []
    for item in contents:
        if isinstance(item, OtherLayer):
            encoded.append({"other": [item.name, item.reason, item.is_convolution, item.aliases]})
            continue
        pair = [item.kernel] if item.bias is None else [item.kernel, item.bias]
        arrays += pair
        encoded.append(
            {
                "texts": [item.name, item.config, item.aliases, item.notes],
                "arrays": [[array.dtype.str, array.shape] for array in pair],
            }
        )
    return encoded


def _decode_contents(encoded: list[dict[str, Any]], data: bytes) -> list[SavedLayer | OtherLayer]:
    """The inverse of `_encode_contents`; `data` are the bytes of the arrays."""
    contents: list[SavedLayer | OtherLayer] = []
    start = 0
    for entry in encoded:
        if "other" in entry:
            name, reason, is_convolution, aliases = entry["other"]
            contents.append(OtherLayer(name, reason, is_convolution, tuple(aliases)))
            continue
        pair: list[Array] = []
        for dtype, shape in entry["arrays"]:
            count = int(np.prod(shape, dtype=object))
            pair.append(np.frombuffer(data, dtype, count, start).reshape(shape))
            start += pair[-1].nbytes
        name, config, aliases, notes = entry["texts"]
        bias = pair[1] if len(pair) > 1 else None
        contents.append(SavedLayer(name, config, pair[0], bias, tuple(aliases), tuple(notes)))
    return contents

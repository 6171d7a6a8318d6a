"""HDF5 files are read in a process of their own: damaged ones make the HDF5 library crash or loop for ever.

Of files with random bytes changed, one in three hundred never came back and one in three thousand ended the process. Here
either is a FormatError. The child answers with one line of JSON and the plain bytes of the arrays; no pickle is involved.
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
from conv3d_cli.kernels.weights.layer import Array, OtherLayer, SavedLayer, reading
from conv3d_cli.system.inputs import check_input

_PATIENCE = 30.0  # seconds; reading takes a tenth of one
_SPEED = 5e6  # bytes a second at least
_PROGRAM = "import sys; sys.path[:] = sys.argv[3:]; from conv3d_cli.kernels.weights import isolated; isolated.answer()"


def in_another_process(module: str, function: str) -> Callable[[str], Any]:
    """The function of a module of this package, run in a process of its own: path -> layers, or a dict, or None."""

    def read(path: str) -> Any:
        command = [
            sys.executable,
            "-c",
            _PROGRAM,
            f"{module}.{function}",
            os.path.abspath(path),
            *sys.path,
        ]
        patience = _PATIENCE + check_input(path) / _SPEED
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FormatError(
                f"cannot read {path}: damaged: the HDF5 library did not come to an end"
            ) from None
        if done.returncode:
            raise FormatError(
                f"cannot read {path}: damaged: the HDF5 library crashed ({_ending(done)})"
            )
        head, _, data = done.stdout.partition(b"\n")
        answer = json.loads(head)
        if "error" in answer:
            name, text = answer["error"]
            raise getattr(errors, name)(text.replace(os.path.abspath(path), path))
        return _unpacked(answer["layers"], data) if "layers" in answer else answer["config"]

    return read


def _ending(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").split("\n")
    return next(
        (line[:200] for line in reversed(lines) if line.strip()), f"exit code {done.returncode}"
    )


def answer() -> None:
    """The child's work: call the function that the command line names, and print what it returns."""
    from conv3d_cli.kernels.weights import keras, legacy

    place, path = sys.argv[1:3]
    module, _, function = place.partition(".")
    arrays: list[Array] = []
    try:
        with reading(path):
            result = getattr({"keras": keras, "legacy": legacy}[module], function)(path)
        content = (
            {"layers": _packed(result, arrays)} if isinstance(result, list) else {"config": result}
        )
    except Conv3DError as error:
        content = {"error": [type(error).__name__, str(error)]}
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(json.dumps(content).encode() + b"\n")
        for array in arrays:
            output.write(np.ascontiguousarray(array).data)


def _packed(contents: list[SavedLayer | OtherLayer], arrays: list[Array]) -> list[dict[str, Any]]:
    packed: list[dict[str, Any]] = []
    for held in contents:
        if isinstance(held, OtherLayer):
            packed.append({"other": [held.name, held.reason, held.is_convolution, held.aliases]})
            continue
        pair = [held.kernel] if held.bias is None else [held.kernel, held.bias]
        arrays += pair
        packed.append(
            {
                "texts": [held.name, held.config, held.aliases, held.notes],
                "arrays": [[array.dtype.str, array.shape] for array in pair],
            }
        )
    return packed


def _unpacked(packed: list[dict[str, Any]], data: bytes) -> list[SavedLayer | OtherLayer]:
    contents: list[SavedLayer | OtherLayer] = []
    start = 0
    for entry in packed:
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
        contents.append(
            SavedLayer(
                name,
                config,
                pair[0],
                pair[1] if len(pair) > 1 else None,
                tuple(aliases),
                tuple(notes),
            )
        )
    return contents

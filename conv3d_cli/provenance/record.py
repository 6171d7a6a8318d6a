"""The sidecar: a JSON file beside an output, in BIDS' manner, that says what it was made of and how.

The same inputs and options give the same bytes, whatever the threads, the memory and the folder the command was typed in: there
is no time in it, no machine, and no path but relative ones. Keys are BIDS' where BIDS has them; the rest stands under `Conv3D`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.kernels.lengths import parse_lengths, read_lengths
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.missing import NOTHING
from conv3d_cli.model.volume import VolumeHeader
from conv3d_cli.pipeline.prepare import PreparedJob, PreparedStage
from conv3d_cli.provenance.command import Rename
from conv3d_cli.settings.config import is_kernel_file
from conv3d_cli.system.atomic import suffix_of
from conv3d_cli.system.digests import array_digest

KEY = "Conv3D"
RECORD_VERSION = 1
# Libraries whose version may change bits of the sums and their compiled loops; a format names those that make bytes of them.
ARITHMETIC = ("numpy", "numba", "llvmlite")


def sidecar_name(target: str) -> str:
    """The sidecar of an output: its name with .json in place of the suffix.

    Raises: SpecError for an output that has no place beside it.
    >>> sidecar_name("out/sub-01_bold.nii.gz"), sidecar_name("a.ome.zarr/")
    ('out/sub-01_bold.json', 'a.json')
    """
    if target == "-" or "://" in target:
        what = "standard output" if target == "-" else target
        raise SpecError(
            f"--sidecar writes a file beside the output, and {what} has no folder here: name a file with -o"
        )
    name = target.rstrip("/" + os.sep)
    return f"{name[: len(name) - len(suffix_of(name))]}.json"


@dataclass(frozen=True)
class FileRecord:
    """A file by its name, as the sidecar calls it, and its digest.

    role : str      of an input: see `inputs.InputFile`; of an output: see `pipeline.outputs`
    """

    role: str
    path: str
    digest: str

    def as_json(self) -> dict[str, str]:
        """As it stands in the sidecar."""
        return {"Role": self.role, "Path": self.path, "Digest": self.digest}


@dataclass(frozen=True)
class Record:
    """What a sidecar says that a run can be repeated from.

    command : str       to be typed in the sidecar's folder
    layers : list       what was decided about each convolution, with digests of the weights
    versions : dict     of libraries; "CPU" is the kind of CPU the loops were made for
    """

    command: str
    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]
    layers: list[dict[str, Any]]
    versions: dict[str, str]


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def sidecar_text(values: dict[str, Any]) -> bytes:
    """A sidecar's bytes; lists of plain values stand on one line."""
    return (_written(values, "") + "\n").encode()


def _written(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {_written(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        return "[\n" + ",\n".join(inner + _written(one, inner) for one in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def decided(prepared: PreparedJob, rename: Rename) -> dict[str, Any]:
    """What was decided about a job, for the sidecar; without what depends on threads and memory."""
    job = prepared.job
    found: dict[str, Any] = {
        "Layers": [
            layer_record(stage, prepared.reader.header.grid, rename) for stage in prepared.stages
        ],
        "Precision": job.precision,
        "Input": volume_record(prepared.reader.header),
        "Output": volume_record(prepared.header),
    }
    if job.preset is not None:
        found["Like"] = {"Tool": job.preset.name, "Settings": job.preset.settings}
    if job.missing != NOTHING:
        missing = asdict(job.missing)
        if job.missing.mask is not None:
            missing["mask"] = rename(job.missing.mask)
        if job.missing.value is not None and not math.isfinite(job.missing.value):
            missing["value"] = str(job.missing.value)  # which JSON has no number for
        found["Missing"] = {
            "".join(map(str.capitalize, key.split("_"))): value for key, value in missing.items()
        }
    found["Versions"] = versions_of(prepared.header, job.target)
    return found


def layer_record(stage: PreparedStage, grid: Grid, rename: Rename) -> dict[str, Any]:
    """One convolution: its kernel with the digest of the weights as they are used, and every integer that was resolved.

    grid : Grid     of the volume that comes in, by which lengths in mm were turned into voxels
    """
    problem, kernel = stage.problem, stage.kernel
    found: dict[str, Any] = {"Kernel": kernel_text(stage, rename)}
    lengths = lengths_in_voxels(found["Kernel"], grid)
    if lengths:
        found["LengthsInVoxels"] = lengths
    found |= {
        "KernelShape": list(kernel.weights.shape),
        "KernelSum": kernel.sum,
        "KernelDigest": array_digest(kernel.weights),
    }
    if kernel.centre is not None:
        found["KernelCentre"] = list(kernel.centre)
    if kernel.bias is not None:
        found["BiasDigest"] = array_digest(kernel.bias)
    return found | {
        "Padding": [list(pads) for pads in zip(problem.pad_before, problem.pad_after, strict=True)],
        "Boundary": str(problem.boundary),
        "Strides": list(problem.strides),
        "DilationRate": list(problem.dilation_rate),
        "Groups": problem.groups if kernel.is_layer else 1,
        "Activation": " then ".join(a.name for a in stage.convolution.activations) or "linear",
        "Algorithm": stage.plan.algorithm.name,
    }


def kernel_text(stage: PreparedStage, rename: Rename) -> str:
    """What the kernel is called: a built-in with its parameters, or its file and layer."""
    text = stage.stage.kernel if isinstance(stage.stage.kernel, str) else stage.kernel.name
    file, colons, layer = text.partition("::")
    return rename(file) + colons + layer if is_kernel_file(text) and os.path.isfile(file) else text


def lengths_in_voxels(kernel: str, grid: Grid) -> dict[str, list[float]]:
    """The lengths of a built-in kernel in voxels along D, H, W.

    >>> lengths_in_voxels("gaussian:fwhm=6mm:truncate=4", Grid((3.0, 1.5, 1.5), "mm"))
    {'fwhm': [2.0, 4.0, 4.0]}
    """
    found = {}
    # the world's axes are not D, H, W
    along_voxels = not is_kernel_file(kernel) and ":orient=world" not in kernel
    for pair in kernel.split(":")[1:] if along_voxels else ():
        name, _, value = (part.strip() for part in pair.partition("="))
        try:
            parse_lengths(value, name)
        except SpecError:
            continue  # a number, or a word
        found[name] = list(read_lengths(value, name, grid))
    return found


def volume_record(header: VolumeHeader) -> dict[str, Any]:
    """Axes in storage order, their sizes, dtype and the grid."""
    grid = header.grid
    return {
        "Axes": header.axes.letters,
        "Shape": list(header.axes.shape),
        "DataType": str(header.dtype),
        "Spacing": None if grid.spacing is None else list(grid.spacing),
        "SpacingUnit": grid.unit,
        "Affine": None if grid.affine is None else grid.affine.tolist(),
    }


def versions_of(header: VolumeHeader, target: str) -> dict[str, str]:
    """Versions of what may change the output's bits; see `Record`."""
    from importlib.metadata import PackageNotFoundError, version

    from conv3d_cli.formats import output_format

    found = {"CPU": cpu_class().name}
    for name in ("conv3d", *ARITHMETIC, *output_format(target).libraries):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass  # an extra that is not installed, and so was not used
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_sidecar(path: str) -> Record:
    """Read a sidecar back.

    Raises: FormatError if it is missing, no JSON, not of conv3d, or damaged.
    """
    values = read_json(path)
    found = values.get(KEY)
    if not isinstance(found, dict):
        raise FormatError(
            f"cannot read {path}: it has no key {KEY}: it is not a sidecar of `conv3d apply --sidecar`"
        )
    version = found.get("RecordVersion")
    if version != RECORD_VERSION:
        raise FormatError(
            f"cannot read {path}: its record has version {version!r}, and this conv3d knows {RECORD_VERSION}"
        )
    try:
        record = Record(
            _text(found["Command"]),
            tuple(_file_record(entry) for entry in found["Inputs"]),
            tuple(_file_record(entry) for entry in found["Outputs"]),
            [dict(layer) for layer in found["Layers"]],
            {str(key): _text(value) for key, value in found["Versions"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"cannot read {path}: its record is damaged ({type(error).__name__}: {error})"
        ) from None
    if not any(entry.role == "volume" for entry in record.outputs):
        raise FormatError(f"cannot read {path}: its record is damaged: it names no output")
    return record


def read_json(path: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises: FormatError."""
    from conv3d_cli.system.inputs import check_input

    check_input(path)
    try:
        with open(path, encoding="utf-8") as file:
            # NaN, which JSON has not, and programs write
            values = json.load(file, parse_constant=lambda name: None)
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # UnicodeDecodeError and JSON's errors are ValueErrors
        raise FormatError(f"cannot read {path}: it is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise FormatError(
            f"cannot read {path}: it must hold an object, and holds a {type(values).__name__}"
        )
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, not {value!r}")
    return value


def _file_record(entry: Any) -> FileRecord:
    return FileRecord(_text(entry["Role"]), _text(entry["Path"]), _text(entry["Digest"]))

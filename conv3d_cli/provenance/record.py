"""The sidecar: a JSON file beside an output that records how it was made, in the style of BIDS.

The same inputs and options give the same bytes, whatever the threads, the memory and the working
directory: a sidecar contains no time, no machine, and only relative paths. It uses the keys of BIDS
where there are any; the others are in the object `Conv3D`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.errors import FormatError, SpecError, setting
from conv3d_cli.kernels.lengths import parse_lengths, read_lengths
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING
from conv3d_cli.model.volume import VolumeHeader
from conv3d_cli.pipeline.operations import find_operation
from conv3d_cli.pipeline.prepare import (
    PreparedJob,
    PreparedPatches,
    PreparedStage,
    PreparedStep,
)
from conv3d_cli.pipeline.request import read_chosen, stage_names
from conv3d_cli.provenance.command import Rename
from conv3d_cli.settings.config import is_kernel_file
from conv3d_cli.system.atomic import sent_to, suffix_of
from conv3d_cli.system.digests import array_digest

KEY = "Conv3D"
RECORD_VERSION = 1
# Libraries whose version may change the bits of the result. Those that encode files are listed by
# their formats.
ARITHMETIC = ("numpy", "numba", "llvmlite")


def sidecar_name(target: str) -> str:
    """The path of an output's sidecar: .json replaces the suffix.

    Raises: SpecError for standard output, a device and a URL, which have no local folder.

    >>> sidecar_name("out/sub-01_bold.nii.gz"), sidecar_name("a.ome.zarr/")
    ('out/sub-01_bold.json', 'a.json')
    """
    if "://" in target or sent_to(target):
        what = "standard output" if target == "-" else target
        raise SpecError(
            f"{setting('sidecar')} writes a file beside the output, and {what} has no local "
            "folder: "
            "name a file"
        )
    name = target.rstrip("/" + os.sep)
    return f"{name[: len(name) - len(suffix_of(name))]}.json"


@dataclass(frozen=True)
class FileRecord:
    """A file as a sidecar records it.

    role : str      for an input see `inputs.InputFile`, for an output `pipeline.outputs`
    path : str      from the sidecar's folder
    digest : str    of its bytes; see `digests.file_digest`
    """

    role: str
    path: str
    digest: str

    def as_json(self) -> dict[str, str]:
        """The JSON object for the sidecar.

        >>> FileRecord("mask", "../m.nii", "sha256:0").as_json()
        {'Role': 'mask', 'Path': '../m.nii', 'Digest': 'sha256:0'}
        """
        return {"Role": self.role, "Path": self.path, "Digest": self.digest}


@dataclass(frozen=True)
class Record:
    """The contents of a sidecar that are needed to repeat the run.

    command : str       the command, to be typed in the sidecar's folder
    inputs, outputs     tuples of FileRecord
    layers : list       for each convolution, the object that `layer_record` made
    versions : dict     of libraries; "CPU" is the CPU class that the loops were compiled for
    """

    command: str
    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]
    layers: list[dict[str, Any]]
    versions: dict[str, str]


# --------------------------------------------------------------------------------------------------
# Writing


def sidecar_text(values: dict[str, Any]) -> bytes:
    """The bytes of a sidecar; lists of plain values are on one line.

    >>> print(sidecar_text({"Strides": [1, 1, 2], "Boundary": "zeros"}).decode(), end="")
    {
      "Strides": [1, 1, 2],
      "Boundary": "zeros"
    }
    """
    return (_json_text(values, "") + "\n").encode()


def _json_text(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        pairs = [f"{json.dumps(key)}: {_json_text(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(inner + pair for pair in pairs) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        return "[\n" + ",\n".join(inner + _json_text(one, inner) for one in value) + f"\n{indent}]"
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # a byte of a file name that is not UTF-8 is escaped, and read back as it was
    return "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) < 0xE000 else c for c in text)


def decided(prepared: PreparedJob, rename: Rename) -> dict[str, Any]:
    """The decisions about a job for the sidecar, without any that depend on threads or memory.

    rename : callable       converts the path of a file to its name in the sidecar
    """
    job = prepared.job
    found: dict[str, Any] = {
        "Layers": [
            _stage_record(prepared, position, rename) for position in range(len(prepared.stages))
        ],
        "Precision": job.precision,
        "Input": volume_record(prepared.reader.header),
        "Output": volume_record(prepared.header),
    }
    if job.operation is not None:
        found["Operation"] = job.operation
    if job.found:
        found["Found"] = dict(job.found)
    if prepared.normalized is not None:
        found["Input"]["Normalization"] = prepared.normalized.record()
    if prepared.label_names:
        found["Output"]["Labels"] = {str(n): name for n, name in prepared.label_names.items()}
    if job.preset is not None:
        found["Like"] = {"Tool": job.preset.name, "Settings": job.preset.settings}
    if job.missing != NOTHING:
        missing = asdict(job.missing)
        if job.missing.mask is not None:
            missing["mask"] = rename(job.missing.mask)
        if job.missing.value is not None and not math.isfinite(job.missing.value):
            missing["value"] = str(job.missing.value)  # JSON has no number for it
        found["Missing"] = {
            "".join(map(str.capitalize, key.split("_"))): value for key, value in missing.items()
        }
    found["Versions"] = versions_of(prepared.header, job.target)
    return found


def _stage_record(prepared: PreparedJob, position: int, rename: Rename) -> dict[str, Any]:
    """A stage as a JSON object; where the stages are no chain, with its name and what it takes."""
    stage = prepared.stages[position]
    if isinstance(stage, PreparedStage):
        own = layer_record(stage, prepared.reader.header.grid, rename)
    elif isinstance(stage, PreparedPatches):
        own = patches_record(stage, rename)
    else:
        own = step_record(stage)
    if prepared.job.is_chain:
        return own
    names = stage_names(prepared.job)
    return {
        "Name": names[position],
        "Inputs": [names[n] if n >= 0 else "volume" for n in stage.inputs],
        **own,
    }


def patches_record(patches: PreparedPatches, rename: Rename) -> dict[str, Any]:
    """Patches, and the stages that run in each of them, as a JSON object."""
    layout, inner = patches.layout, patches.inner
    return {
        "Operation": patches.step.node.operation,
        "Arguments": {
            "Patch": list(layout.patch),
            "Overlap": list(layout.overlap),
            "Blend": layout.blend,
        },
        "Patches": layout.count,
        "Layers": [_stage_record(inner, position, rename) for position in range(len(inner.stages))],
    }


def step_record(stage: PreparedStep) -> dict[str, Any]:
    """An operation as a JSON object: its arguments, and digests of its weights."""
    node = stage.step.node
    found: dict[str, Any] = {"Operation": node.operation}
    if node.attributes:
        found["Arguments"] = json.loads(json.dumps(dict(node.attributes), default=str))
    if node.weights:
        found["Digests"] = {name: array_digest(node.weights[name]) for name in sorted(node.weights)}
    return found


def description(prepared: PreparedJob, rename: Rename) -> str:
    """What was done to a volume, as a sentence without its full stop."""
    if prepared.header.is_copy:
        chosen = () if prepared.job.channels is None else read_chosen(prepared.job.channels)
        return f"Copied channels {', '.join(map(str, chosen))}" if chosen else "Copied"
    verb = "Convolved with" if prepared.job.operation is None else "Computed by"
    return f"{verb} {done_text(prepared, rename)}"


def done_text(prepared: PreparedJob, rename: Rename) -> str:
    """What was done to a volume, for a line: the kernels, an operation, or a network's files."""
    job, network = prepared.job, prepared.job.given_network
    if job.operation is not None:
        done = [job.operation]
        if job.composed_from is not None and find_operation(job.operation).takes_kernel:
            done[0] += f" with {text_of_kernel(job.composed_from.kernel, rename)}"
    elif network is None:
        layers = prepared.convolutions[: -1 if job.selects and not job.chooses_channels else None]
        if prepared.patches is not None:
            layers = prepared.patches.inner.convolutions
        done = [kernel_text(stage, rename) for stage in layers]
    else:
        done = [f"the network {', '.join(map(rename, network.files))}".rstrip()]
        if job.output_name is not None:
            done[0] += f" (output {job.output_name})"
    if prepared.patches is not None:
        done[-1] += f" in patches of {'x'.join(map(str, prepared.patches.layout.patch))} voxels"
    if job.argmax:
        done.append("argmax")
    elif job.selects:
        done.append("channels " + ",".join(map(str, read_chosen(job.channels))))
    if prepared.normalized is not None:
        done[0] += f" after normalizing by {prepared.normalized.method}"
    return ", then ".join(done)


def layer_record(stage: PreparedStage, grid: Grid, rename: Rename) -> dict[str, Any]:
    """A convolution as a JSON object: kernel, digest of its final weights, resolved parameters.

    grid : Grid     of the input volume, by which lengths in mm are converted to voxels
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
    """The name of a kernel: a built-in with its parameters, or its file and layer."""
    given = stage.stage.kernel
    return text_of_kernel(given if isinstance(given, str) else stage.kernel, rename)


def text_of_kernel(kernel: str | Kernel | None, rename: Rename) -> str:
    """The name of a kernel as it is given: a built-in, or its file and layer."""
    text = kernel.name if isinstance(kernel, Kernel) else str(kernel)
    file, colons, layer = text.partition("::")
    return rename(file) + colons + layer if is_kernel_file(text) and os.path.isfile(file) else text


def lengths_in_voxels(kernel: str, grid: Grid) -> dict[str, list[float]]:
    """The lengths among the parameters of a built-in kernel, in voxels along D, H, W.

    Empty for a kernel file, and for ":orient=world", whose axes are not D, H, W.

    >>> lengths_in_voxels("gaussian:fwhm=6mm:truncate=4", Grid((3.0, 1.5, 1.5), "mm"))
    {'fwhm': [2.0, 4.0, 4.0]}
    """
    found = {}
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
    """A volume as a JSON object: axes in storage order, their sizes, dtype and grid."""
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
    """The versions of everything that may change the bits of an output; see `Record`."""
    from importlib.metadata import PackageNotFoundError, version

    from conv3d_cli.formats import output_format

    found = {"CPU": cpu_class().name}
    for name in ("conv3d", *ARITHMETIC, *output_format(target).libraries):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass  # an extra that is not installed was not used
    return found


# --------------------------------------------------------------------------------------------------
# Reading


def read_sidecar(path: str) -> Record:
    """Read a sidecar. Raises: FormatError if it is missing, damaged, or not written by conv3d."""
    values = read_json(path)
    found = values.get(KEY)
    if not isinstance(found, dict):
        raise FormatError(
            f"cannot read {path}: it has no key {KEY}, so `conv3d apply --sidecar` did not write it"
        )
    version = found.get("RecordVersion")
    if version != RECORD_VERSION:
        raise FormatError(
            f"cannot read {path}: its record has version {version!r}, "
            f"and this version of conv3d reads only {RECORD_VERSION}"
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
    """Read a JSON file that contains an object. NaN and infinity, which JSON lacks, become None.

    Raises: FormatError.
    """
    from conv3d_cli.system.inputs import check_input, read_text
    from conv3d_cli.system.room import JSON_BYTES, check_tree

    cure = "name the .json beside an output of apply --sidecar"
    check_input(path)
    text = read_text(path, cure=cure)
    check_tree(text, JSON_BYTES, path)
    try:
        values = json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:  # the errors of json are ValueErrors
        raise FormatError(f"cannot read {path}: it is not valid JSON ({error}); {cure}") from None
    if not isinstance(values, dict):
        raise FormatError(
            f"cannot read {path}: it must contain an object, and contains a "
            f"{type(values).__name__}; {cure}"
        )
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, received {value!r}")
    return value


def _file_record(entry: Any) -> FileRecord:
    return FileRecord(_text(entry["Role"]), _text(entry["Path"]), _text(entry["Digest"]))

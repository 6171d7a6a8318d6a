"""All weights of a Keras file by layer: of `.keras`, `.weights.h5` and legacy `.h5` files.

Keras 3 stores the variables of a layer in a group of its own, by number; see
`kernels/weights/keras.py` for the names of the groups. Legacy files name every variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights import find_weights_file
from conv3d_cli.kernels.weights.hdf5 import (
    find_member,
    is_dataset,
    is_group,
    list_attribute,
    members,
    open_hdf5,
    read_dataset,
    text_attribute,
    walk_groups,
)
from conv3d_cli.kernels.weights.layer import Archive, parse_json
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.isolated import Isolated

Arrays = dict[str, NDArray[Any]]
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True)
class KerasWeights:
    """The weights in a file.

    by_group : dict or None     group of a layer, as "functional/conv3d_1" -> arrays by number: "0",
                                "1"; None in a legacy file
    by_name : dict              (outermost layer, layer) -> arrays by name: "kernel", "bias"; of
                                legacy files
    version : str               of Keras that saved it; "" if the file does not tell
    """

    by_group: dict[str, Arrays] | None
    by_name: dict[tuple[str, str], Arrays]
    version: str = ""


def read_weights(path: str) -> KerasWeights:
    """Read all weights of a file, in a process of their own (see `system.isolated`).

    Raises: FormatError for a damaged or foreign file.
    """
    kind = find_weights_file(path)
    if kind is None or not kind.name.endswith(("Keras", "Keras weights")):
        raise FormatError(
            f"cannot read {path}: the weights of a Keras model are in a .keras, .weights.h5 or .h5 "
            "file"
        )
    check_input(path)
    with Isolated(path, "the HDF5 library") as process:
        found: KerasWeights = process.call(
            "conv3d_cli.kernels.weights.layer:read_by", f"{__name__}:read_here", path
        )
    return found


def read_here(path: str) -> KerasWeights:
    """`read_weights` in this process."""
    if path.lower().endswith(".keras"):
        with Archive(path) as archive:
            version = ""
            if METADATA in archive.names:
                version = str(
                    parse_json(archive.read(METADATA), METADATA, path).get("keras_version", "")
                )
            content = archive.read(WEIGHTS)
        with open_hdf5(content, path) as root:
            return KerasWeights(_by_group(root, len(content), path), {}, version)
    size = check_input(path)
    with open_hdf5(path, path) as root:
        container = root["model_weights"] if is_group(find_member(root, "model_weights")) else root
        if list_attribute(container, "layer_names") is None:
            return KerasWeights(_by_group(root, size, path), {})
        version = (
            text_attribute(container, "keras_version") or text_attribute(root, "keras_version")
        ) or ""
        backend = text_attribute(container, "backend") or text_attribute(root, "backend")
        if backend == "theano":
            raise FormatError(
                f"cannot read {path}: Theano saved it, whose convolutions are turned round; load "
                "and save it once with another backend"
            )
        return KerasWeights(None, _by_name(container, size, path), version)


def _by_group(root: Any, size: int, path: str) -> dict[str, Arrays]:
    found: dict[str, Arrays] = {}
    for group_path, group in walk_groups(root, path):
        *above, last = group_path.split("/")
        if last != "vars" or not above:
            continue
        short = "/".join(part for part in above if part not in _CONTAINERS)
        arrays = {
            name: read_dataset(one, size, f"variable {name} of {short}", path)
            for name, one in members(group).items()
            if is_dataset(one) and _is_float(one)
        }
        if arrays:
            found[short] = arrays
    return found


def _is_float(dataset: Any) -> bool:
    """Whether a dataset is weights: seeds of random generators are whole numbers."""
    return dataset.dtype.kind not in "iu" or len(dataset.shape) > 1


def _by_name(container: Any, size: int, path: str) -> dict[tuple[str, str], Arrays]:
    found: dict[tuple[str, str], Arrays] = {}
    for outer in list_attribute(container, "layer_names") or []:
        group = find_member(container, outer)
        if not is_group(group):
            raise FormatError(f"cannot read {path}: damaged: it has no group for its layer {outer}")
        for weight in list_attribute(group, "weight_names") or []:
            above, _, leaf = weight.rpartition("/")
            dataset = find_member(group, weight)
            if not is_dataset(dataset):
                raise FormatError(f"cannot read {path}: damaged: it has no {weight} of {outer}")
            if not _is_float(dataset):
                continue
            inner = above.rpartition("/")[2] or outer
            own = found.setdefault((outer, inner), {})
            own[leaf.partition(":")[0]] = np.asarray(
                read_dataset(dataset, size, f"{weight} of layer {outer}", path)
            )
    return found

"""`conv3d kernel convert`: write the layers of a kernel or weights file to another file.

This module chooses the layers and checks that the target can store them; the formats themselves
convert layouts and attributes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from conv3d_cli.errors import SpecError
from conv3d_cli.kernels.files import (
    KERNELS_PAGE,
    find_written_file,
    known_suffixes,
    read_kernel_file,
    write_kernel,
)
from conv3d_cli.kernels.weights import (
    OtherLayer,
    SavedLayer,
    choose_layer,
    find_weights_file,
    kind_by_suffix,
    omission_notes,
    read_contents,
    split_name,
    weights_suffixes,
    write_layers,
)
from conv3d_cli.kernels.weights.layer import lost_arguments
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.system.words import unknown_suffix


def convert_layers(
    source: str, target: str | os.PathLike[str], *, overwrite: bool = False
) -> list[str]:
    """Write the layers of FILE, or the layer FILE::NAME, to `target`; returns notes on losses.

    Raises: SpecError for an unknown suffix, or several layers for a target of a single one;
    UnknownNameError; FormatError; ShapeError; WriteError; OutputExistsError.
    """
    path, name = split_name(source)
    to_weights_file = kind_by_suffix(target) is not None
    if not to_weights_file and find_written_file(target) is None:
        known = (*weights_suffixes().split(), *known_suffixes(written=True))
        fault = unknown_suffix(str(target), known, "kernel file")
        raise SpecError(f"cannot write {target}: {fault} ({KERNELS_PAGE})")
    if find_weights_file(path) is None:
        layers, notes = _from_kernel_file(path, name)
    else:
        contents = read_contents(path)
        layers = [item for item in contents if isinstance(item, SavedLayer)]
        others = [item for item in contents if isinstance(item, OtherLayer)]
        if name is not None or not to_weights_file or not layers:
            layers, notes = [choose_layer(contents, path, name)], []
        else:
            notes = omission_notes(others, path)
    notes += [f"{layer.name}: {note}" for layer in layers for note in layer.notes]
    if to_weights_file:
        return notes + write_layers(target, layers, overwrite=overwrite)
    layer = layers[0]
    write_kernel(target, layer.as_kernel(layer.name), overwrite=overwrite)
    if lost := lost_arguments(layer):
        notes.append(
            f"{layer.name}: {Path(target).suffix} holds weights only, without {', '.join(lost)}"
        )
    return notes


def _from_kernel_file(path: str, name: str | None) -> tuple[list[SavedLayer], list[str]]:
    """The kernel of a kernel file as a layer, and notes on what a layer cannot store."""
    if name is not None:
        raise SpecError(
            f"{path} holds one kernel, and no layers to choose from; leave out ::{name}"
        )

    def no_builtin(text: str) -> Kernel:
        raise SpecError(f"the built-in kernel '{text}' is made by: conv3d kernel make")

    kernel = read_kernel_file(path, no_builtin)
    stem = Path(path).name.partition(".")[0] or "kernel"
    notes = []
    weights = kernel.weights
    if not kernel.is_layer:
        weights = weights[..., None, None]
        notes.append(f"{stem}: the filter becomes a layer with one input channel and one filter")
    if kernel.centre is not None:
        notes.append(f"{stem}: layers have no centre; {kernel.centre} is left out")
    bias = kernel.bias
    if bias is not None and bias.size != weights.shape[4]:
        bias = bias.repeat(weights.shape[4])
    return [replace(SavedLayer(stem, None, weights), bias=bias)], notes

"""`conv3d kernel convert`: the layers of any kernel or weights file, written to another.

It decides which layers are meant and whether the target can hold them; the layouts and attributes are the formats' work.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from conv3d_cli.errors import SpecError
from conv3d_cli.kernels.files import (
    find_kernel_file,
    known_suffixes,
    read_kernel_file,
    write_kernel,
)
from conv3d_cli.kernels.weights import (
    OtherLayer,
    SavedLayer,
    choose_layer,
    find_weights_file,
    left_out,
    read_contents,
    split_name,
    weights_suffixes,
    write_layers,
)
from conv3d_cli.kernels.weights.layer import unheld
from conv3d_cli.model.kernel import Kernel


def convert_layers(
    source: str, target: str | os.PathLike[str], *, overwrite: bool = False
) -> list[str]:
    """Write the layers of SRC, or the one of SRC::NAME, to a file; returns notes on what got lost.

    Raises: SpecError for an unknown suffix, or several layers for a target that holds one; UnknownNameError; FormatError;
    ShapeError; WriteError; OutputExistsError.
    """
    path, name = split_name(source)
    holds_layers = find_weights_file(target) is not None
    if not holds_layers and find_kernel_file(target) is None:
        raise SpecError(
            f"cannot write {target}: no format has this suffix; known are {weights_suffixes()} {known_suffixes(written=True)}"
        )
    if find_weights_file(path) is None:
        layers, notes = _from_kernel_file(path, name)
    else:
        contents = read_contents(path)
        layers = [held for held in contents if isinstance(held, SavedLayer)]
        if name is not None or not holds_layers or not layers:
            layers, notes = [choose_layer(contents, path, name)], []
        else:
            notes = left_out([held for held in contents if isinstance(held, OtherLayer)], path)
    notes += [f"{layer.name}: {note}" for layer in layers for note in layer.notes]
    if holds_layers:
        return notes + write_layers(target, layers, overwrite=overwrite)
    layer = layers[0]
    write_kernel(target, layer.as_kernel(layer.name), overwrite=overwrite)
    if lost := unheld(layer):
        notes.append(
            f"{layer.name}: {Path(target).suffix} holds weights only, without {', '.join(lost)}"
        )
    return notes


def _from_kernel_file(path: str, name: str | None) -> tuple[list[SavedLayer], list[str]]:
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

"""Operations that are made of convolutions: `local:statistic=std:size=7`, `ridges:scales=2mm`.

Each is a module here with `OPERATION = ComposedOperation(...)`, whose function has the operation's
name, and a line in `SUMMARIES`. The function's signature defines how the operation is written, as
for built-in kernels (`kernels/grammar.py`), and which options its command has. It builds the stages
and steps of a job in a `Composition`. Commands, help, configs and sidecars follow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from conv3d_cli.errors import unknown_name

if TYPE_CHECKING:
    from conv3d_cli.pipeline.operations.base import ComposedOperation

# Name -> what it does, as the list of commands says it.
SUMMARIES = {
    "deconvolve": "Undo the blur of a point spread function.",
    "local": "Mean, spread and contrast of the voxels around each voxel.",
    "match": "Find where a template fits, by normalized cross-correlation.",
    "ridges": "Find tubes, plates and blobs at several scales.",
    "tensor": "Structure tensor or Hessian: eigenvalues, coherence, directions.",
}


def find_operation(text: str) -> ComposedOperation:
    """The operation that a text names. Raises: UnknownNameError.

    >>> find_operation("Local:size=3").name
    'local'
    """
    name = text.partition(":")[0].strip().lower()
    if name not in SUMMARIES:
        raise unknown_name("operation", name, list(SUMMARIES))
    module = import_module(f"{__name__}.{name}")
    operation: ComposedOperation = module.OPERATION
    return operation

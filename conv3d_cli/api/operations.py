"""`operate()`: operations made of convolutions, on arrays and volumes in memory."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np

from conv3d_cli.api.arrays import axis_letters, checked_mask
from conv3d_cli.api.containers import Result, contents
from conv3d_cli.api.kernels import KernelLike, kernel_of_array
from conv3d_cli.engine import kept_team
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import MIN_COVERAGE, Missing
from conv3d_cli.model.spec import Boundary
from conv3d_cli.model.volume import ArrayReader, ArrayWriter, Axes, VolumeHeader
from conv3d_cli.pipeline.composing import PLACEHOLDER, check_operation
from conv3d_cli.pipeline.flow import reader_of_last
from conv3d_cli.pipeline.iterations import saved_numbers
from conv3d_cli.pipeline.memory import UNLIMITED
from conv3d_cli.pipeline.prepare import prepare_opened
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.stream import load_loops, stream
from conv3d_cli.system.machine import thread_count


def operate(
    x: Any,
    operation: str,
    kernel: KernelLike | None = None,
    *,
    boundary: str | Boundary = "symmetric",
    mask: Any = None,
    mask_mode: str = "clip",
    nan: str = "propagate",
    missing: float | None = None,
    min_coverage: float = MIN_COVERAGE,
    data_format: str = "channels_last",
    threads: int | None = None,
) -> Any:
    """Apply an operation that is made of convolutions to an array, as its command does to a file.

    x : (D, H, W), or (..., D, H, W, C) with any batch axes, of real numbers; or a `Volume`, whose
        axes and spacing are used. (..., C, D, H, W) under data_format="channels_first"
    operation : text as "local:statistic=std:size=7"; `conv3d help operations` lists all. Lengths in
        mm need a `Volume` with a spacing
    kernel : of an operation that takes one, such as a template: as for `conv3d`
    boundary, mask, mask_mode, nan, missing, min_coverage : as for `conv3d`
    threads : int or None, number of threads; None: all CPUs that it may use
    Returns an array of the same kind: float64 if `x` is, else float32.
    Raises: SpecError, UnknownNameError, ShapeError.

    >>> import numpy as np
    >>> round(operate(np.ones((4, 5, 6), np.uint8), "local:size=3").mean().item(), 6)
    1.0
    """
    source = contents(x)
    values = source.values
    if source.missing is not None:
        raise ShapeError(
            "operate() takes no masked array; pass its data, and the voxels that count as mask="
        )
    if values.dtype.kind not in "buif":
        raise ShapeError(f"x must be of real numbers, received {values.dtype}")
    wide = values.dtype.kind == "f" and values.dtype.itemsize >= 8
    precision = "float64" if wide else "float32"
    stored = values.dtype
    if stored.kind == "f" and stored.itemsize not in (4, 8):
        stored = np.dtype(precision)
        values = values.astype(stored)
    policy = Missing(nan, missing, None if mask is None else "mask", mask_mode, False, min_coverage)
    given = ["boundary"] if kernel is None else ["boundary", "kernel"]
    text = check_operation(operation, given, policy)
    if saved_numbers(text):
        raise SpecError("save_every writes files, and operate() writes none: leave it out")
    used: str | Kernel = PLACEHOLDER
    if kernel is not None:
        used = kernel if isinstance(kernel, (str, Kernel)) else kernel_of_array(kernel, "keras")
    letters = source.letters or axis_letters(values.ndim, False, data_format)
    header = VolumeHeader(
        Axes(letters, values.shape), stored.newbyteorder("="), source.grid or Grid()
    )
    job = Job(
        "array",
        "array.npy",
        (Stage(used, boundary=boundary),),
        data_format=data_format,
        precision=precision,
        dtype=precision,
        threads=threads,
        max_memory=UNLIMITED,
        missing=policy,
        operation=text,
    )
    reader = ArrayReader(values, header)
    reader.in_memory = True
    with ExitStack() as stack:
        prepared = prepare_opened(
            job,
            reader,
            None if mask is None else checked_mask(mask, header, False),
            lambda: nullcontext(ArrayReader(values, header)),
        )
        for note in prepared.notes:
            warnings.warn(note, stacklevel=2)
        out = prepared.header
        writer = ArrayWriter(np.empty(out.axes.shape, precision), out)
        team = stack.enter_context(kept_team(thread_count(threads)))
        last = reader_of_last(prepared.graph, reader, team, stack, prepared.spooled)
        load_loops(prepared.graph, header, out.dtype)
        stream(prepared.stream_plan, last, writer, team)
    return source.wrap(
        Result(writer.array, None, out.axes, out.grid, out.transform, out.components)
    )

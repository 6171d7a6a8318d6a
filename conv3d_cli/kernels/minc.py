"""MINC kernel files (.kern), as `mincmorph -kernel` takes them: voxel offsets, each with a weight.

    MNI Morphology Kernel File
    % text after % or # is a comment
    Kernel_Type = Normal_Kernel;
    Kernel =
    %  x    y    z    t    v   coeff
     -1.0  0.0  0.0  0.0  0.0  -0.5
      1.0  0.0  0.0  0.0  0.0   0.5;

`mincmorph -convolve` sums coeff · volume[z + dz, y + dy, x + dx] at each voxel: a correlation, as
in this package. The coefficients of a repeated offset are added.

Source: minc-tools 2.3, progs/mincmorph/kernel_io.c and kernel_ops.c.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from conv3d_cli.errors import FormatError, ShapeError
from conv3d_cli.model.kernel import Kernel

HEADER = "MNI Morphology Kernel File"
# Weights of the box around all offsets. A few offsets far apart are a mistake that would need
# gigabytes.
MAX_BOX = 1 << 20


def parse_kernel(text: str, path: str) -> Kernel:
    """Parse a MINC kernel file: x, y, z become W, H, D, and offset 0,0,0 the middle voxel.

    path : str      file the text came from; it also becomes the kernel's name

    Returns float64 weights of odd size (D, H, W): the smallest box centred on offset 0,0,0 that
    contains every offset.
    Raises: FormatError for a damaged file or one of another kind, and for an offset that is not a
    whole voxel or has a part along t or v; ShapeError for a box of too many voxels.

    >>> header = "MNI Morphology Kernel File\\nKernel_Type = Normal_Kernel;\\n"
    >>> text = header + "Kernel = 1 0 0 0 0 0.5  -1 0 0 0 0 -0.5;"
    >>> parse_kernel(text, "dx.kern").weights.tolist()
    [[[-0.5, 0.0, 0.5]]]
    """
    text = re.sub(r"[%#].*", "", text)  # keeps line breaks, so that line numbers stay right
    start = re.match(rf"\s*{HEADER}[^\S\n]*\n", text)
    if start is None:
        raise FormatError(f"cannot read {path}: a MINC kernel file begins with the line '{HEADER}'")
    kind = re.compile(r"\s*Kernel_Type\s*=\s*([^;\s]*)\s*;").match(text, start.end())
    if kind is None or kind[1] != "Normal_Kernel":
        raise FormatError(
            f"cannot read {path}: 'Kernel_Type = Normal_Kernel;' must follow its first line"
        )
    begin = re.compile(r"\s*Kernel\s*=").match(text, kind.end())
    if begin is None:
        raise FormatError(f"cannot read {path}: 'Kernel =' must follow its type")
    end = text.find(";", begin.end())
    if end < 0:
        raise FormatError(f"cannot read {path}: truncated: no ';' ends its numbers")
    rows = np.fromiter(_rows(text, begin.end(), end, path), dtype=np.dtype((np.float64, 6)))
    if not len(rows):
        raise FormatError(f"cannot read {path}: it holds no weights")
    offsets = rows[:, 2::-1].astype(np.int64)  # z, y, x
    d, h, w = reach = np.abs(offsets).max(axis=0)
    size = (2 * int(d) + 1, 2 * int(h) + 1, 2 * int(w) + 1)
    if math.prod(size) > MAX_BOX:
        raise ShapeError(
            f"kernel {path}: its offsets reach over {' x '.join(map(str, size))} voxels, more than "
            f"{MAX_BOX:,}; are they voxels?"
        )
    weights = np.zeros(size)
    np.add.at(weights, tuple((offsets + reach).T), rows[:, 5])
    return Kernel(weights, name=path)


def _rows(text: str, begin: int, end: int, path: str) -> Iterator[tuple[float, ...]]:
    """Yield five offsets and a coefficient at a time. Raises: FormatError, with the line."""
    words = re.compile(r"\S+").finditer(text, begin, end)
    while row := list(islice(words, 6)):
        try:
            values = tuple(float(word[0]) for word in row)
        except ValueError:
            values = ()
        if rule := _violated_rule(values):
            line = text.count("\n", 0, row[0].start()) + 1
            received = " ".join(word[0] for word in row)[:80]
            raise FormatError(f"cannot read {path}: line {line}: {rule}, received {received!r}")
        yield values


def _violated_rule(values: tuple[float, ...]) -> str | None:
    """The rule that a row of numbers violates, for messages; None if it violates none."""
    if len(values) < 6:
        return "a weight is six numbers: offsets along x y z t v, and a coefficient"
    if not all(map(math.isfinite, values)):
        return "offsets and coefficients must be finite"
    if any(offset != int(offset) or abs(offset) > MAX_BOX for offset in values[:3]):
        return f"offsets must be whole voxels, at most {MAX_BOX:,}"
    if any(values[3:5]):
        return "offsets along t and v must be 0, since a kernel is spatial"
    return None

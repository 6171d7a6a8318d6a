"""conv3d by its definition: a plain sum over the kernel's weights, in float64.

It imports nothing from the package, so that it cannot share its mistakes.
"""

from __future__ import annotations

import itertools

import numpy as np


def outside(position: int, size: int, mode: str) -> int | None:
    """The input index that is read at a position of an axis; None where a constant is read.

    Found by walking back into the volume, not by a formula.
    """
    if 0 <= position < size:
        return position
    if mode in ("zeros", "constant"):
        return None
    if mode == "mirror-one":
        mirrored = {-1: 1, size: size - 2}
        return mirrored.get(position) if size > 1 else None
    if mode == "nearest":
        return 0 if position < 0 else size - 1
    if mode == "wrap":
        while position < 0:
            position += size
        while position >= size:
            position -= size
        return position
    if mode == "mirror" and size == 1:
        return 0
    while not 0 <= position < size:
        edge = -1 if mode == "symmetric" else 0
        position = edge - position if position < 0 else 2 * (size - 1) - position - edge
    return position


def paddings(n: int, k: int, s: int, d: int, padding: object) -> tuple[int, int]:
    """The padding (before, after) of one axis; `padding` is a name or a pair."""
    span = (k - 1) * d + 1
    if padding == "valid":
        return 0, 0
    if padding == "full":
        return span - 1, span - 1
    if padding == "same":
        outputs = (n + s - 1) // s
        needed = (outputs - 1) * s + span
        total = needed - n if needed > n else 0
        return total // 2, total - total // 2
    return padding  # type: ignore[return-value]


def conv3d(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    strides: tuple[int, int, int] = (1, 1, 1),
    padding: object = "valid",
    dilation_rate: tuple[int, int, int] = (1, 1, 1),
    groups: int = 1,
    boundary: str = "zeros",
    constant: float = 0.0,
) -> np.ndarray:
    """Convolve as Keras' Conv3D does, in float64.

    x : (N, D, H, W, C)
    kernel : (kd, kh, kw, C / groups, F)
    padding : a name, or three pairs (before, after)

    Returns (N, D', H', W', F).
    """
    x = np.asarray(x, np.float64)
    kernel = np.asarray(kernel, np.float64)
    count, *size, channels = x.shape
    *ksize, per_group, filters = kernel.shape
    assert per_group * groups == channels, "channels"
    assert filters % groups == 0, "filters"
    pads = [
        paddings(
            size[a],
            ksize[a],
            strides[a],
            dilation_rate[a],
            padding if isinstance(padding, str) else padding[a],
        )
        for a in range(3)
    ]
    out_size = [
        (size[a] + sum(pads[a]) - (ksize[a] - 1) * dilation_rate[a] - 1) // strides[a] + 1
        for a in range(3)
    ]
    # the volume and, at the end of each axis, one more voxel that stands for all constants outside
    fill = constant if boundary in ("constant", "mirror-one") else 0.0
    extended = np.full((count, *(n + 1 for n in size), channels), fill)
    extended[:, :-1, :-1, :-1] = x
    # reads[axis][tap][output]: where in `extended` the tap reads for this output voxel
    reads: list[list[list[int]]] = [[], [], []]
    for a in range(3):
        for k in range(ksize[a]):
            first = k * dilation_rate[a] - pads[a][0]
            found = [outside(o * strides[a] + first, size[a], boundary) for o in range(out_size[a])]
            reads[a].append([size[a] if index is None else index for index in found])
    out = np.zeros((count, *out_size, filters))
    with np.errstate(invalid="ignore"):  # zero times infinity is intended
        for i, j, k in itertools.product(*(range(n) for n in ksize)):
            read = np.ix_(reads[0][i], reads[1][j], reads[2][k])
            values = extended[(slice(None), *read)]
            for g in range(groups):
                channels_of = slice(g * per_group, (g + 1) * per_group)
                filters_of = slice(g * filters // groups, (g + 1) * filters // groups)
                out[..., filters_of] += values[..., channels_of] @ kernel[i, j, k, :, filters_of]
    return out if bias is None else out + bias

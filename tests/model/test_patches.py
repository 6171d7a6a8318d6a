"""The layout and the weights of patches, against numbers that MONAI 1.6.1 gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from conv3d_cli.model.box import Box
from conv3d_cli.model.patches import PatchLayout

# size, patch, overlap -> first voxels of MONAI's dense_patch_slices along the axis, less the padding before the volume
STARTS = [
    (36, 16, 0.5, [0, 8, 16, 20]),
    (41, 32, 0.25, [0, 9]),
    (10, 3, 0.9, [0, 1, 2, 3, 4, 5, 6, 7]),  # int(3 * (1 - 0.9)) is 0, and becomes 1
    (48, 16, 0.0, [0, 16, 32]),
    (50, 10, 0.9, list(range(41))),  # int(10 * (1 - 0.9)) is 0, too
    (40, 20, 0.7, [0, 6, 12, 18, 20]),
    (16, 16, 0.5, [0]),
    (5, 16, 0.5, [-5]),
    (1, 2, 0.5, [0]),
]


@pytest.mark.parametrize(("size", "patch", "overlap", "starts"), STARTS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_patches_lie_as_sliding_windows_do(
    size: int, patch: int, overlap: float, starts: list[int], axis: int
) -> None:
    sizes, patches, overlaps = [7, 7, 7], [7, 7, 7], [0.5, 0.5, 0.5]
    sizes[axis], patches[axis], overlaps[axis] = size, patch, overlap
    layout = PatchLayout(tuple(sizes), tuple(patches), tuple(overlaps))  # type: ignore[arg-type]
    assert list(layout.starts(axis)) == starts
    assert layout.count == len(starts)


def test_the_weights_are_a_gaussian_with_a_least_value() -> None:
    """compute_importance_map((4, 6, 5), "gaussian") of MONAI 1.6.1."""
    layout = PatchLayout((9, 9, 9), (4, 6, 5), (0.5, 0.5, 0.5))
    weights = layout.weights(Box.whole((4, 6, 5)))
    assert weights.shape == (4, 6, 5)
    np.testing.assert_allclose(weights[1, 2], [0.0029024, 0.1350349, 0.4856718, 0.1350349, 0.0029024], rtol=2e-5)  # fmt: skip
    assert weights[0, 0, 0] == weights.min() == 1e-3
    np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])


def test_totals_are_the_sums_of_all_weights() -> None:
    layout = PatchLayout((9, 5, 14), (4, 8, 6), (0.5, 0.5, 0.3))
    total = np.zeros((9, 8, 14))  # the volume with its padding along height: 1 row before, 2 after
    starts = [layout.starts(axis) for axis in range(3)]
    assert starts[1] == (-1,)
    for d, h, w in itertools.product(*starts):
        total[d : d + 4, h + 1 : h + 9, w : w + 6] += layout.weights(Box.whole((4, 8, 6)))
    for plane in range(9):
        np.testing.assert_allclose(layout.total(plane), total[plane, 1:6], rtol=1e-12)


def test_the_patches_of_a_box_are_those_that_have_voxels_in_it() -> None:
    layout = PatchLayout((20, 20, 20), (8, 8, 8), (0.5, 0.0, 0.5))
    box = Box((7, 9), (8, 9), (0, 20))
    assert list(layout.patches_of(box)) == list(itertools.product([0, 4, 8], [8], [0, 4, 8, 12]))


def test_weights_are_the_same_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's exponential differs by the vectors of a CPU."""
    monkeypatch.setattr(np, "exp", None)
    assert PatchLayout((9, 9, 9), (5, 6, 7), (0.5,) * 3).profiles[2][3] == 1

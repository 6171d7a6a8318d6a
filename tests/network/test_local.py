"""Local statistics against sums over each window in two passes, SciPy and NumPy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from conv3d_cli.engine import Team
from conv3d_cli.engine.cpu import CPU_CLASSES, CpuClass
from conv3d_cli.engine.moments import STATISTICS
from conv3d_cli.errors import Conv3DError, ShapeError, SpecError
from conv3d_cli.kernels.builtin import ball, gaussian
from conv3d_cli.model.box import Box
from conv3d_cli.network.graph import Node
from conv3d_cli.network.operations.base import Shape, Window, spans_of
from conv3d_cli.network.operations.catalogue import make_operation
from conv3d_cli.network.operations.local import LocalStatistics

ndimage = pytest.importorskip("scipy.ndimage")

Array = np.ndarray[Any, Any]
numbers = np.random.default_rng(20)

WINDOWS = {
    "box": np.ones((3, 5, 7)),
    "long": np.ones((1, 1, 15)),
    "blocks": np.ones((3, 10, 9)),
    "voxel": np.ones((1, 1, 1)),
    "ball": ball(radius=(1.5, 2, 3)).weights,
    "Gaussian": gaussian(sigma=(0.5, 0.7, 1.2), truncate=3).weights,
    "any": np.where(numbers.random((3, 3, 5)) < 0.5, 0, numbers.random((3, 3, 5))),
}
# boundary -> NumPy's mode of padding
PADS = {"symmetric": "symmetric", "mirror": "reflect", "nearest": "edge", "wrap": "wrap"}


def made(window: Array, shape: tuple[int, ...], inputs: int = 1, **attributes: Any) -> Any:
    shapes = [Shape(*shape), Shape(*shape[:3], 1)][:inputs]
    node = Node("it", "LocalStatistics", ("x", "c")[:inputs], attributes, {"window": window})
    operation = make_operation(node, shapes)
    assert isinstance(operation, LocalStatistics)
    return operation


def computed(operation: Any, *arrays: Array, box: Box | None = None, threads: int = 2) -> Array:
    """The outputs of a box, from no more voxels than it asks for."""
    box = Box.whole(operation.shape.size) if box is None else box
    taken = []
    for number, array in enumerate(arrays):
        spans = spans_of(operation, number, box)
        taken.append(Window(np.ascontiguousarray(array[spans.slices]), spans.start))
    out = np.empty((*box.size, operation.shape.channels), arrays[0].dtype)
    with Team(threads) as team:
        operation.compute(taken, box, out, team)
    return out


def expected(
    padded: Array, counts: Array, window: Array, own: Array, statistic: str, ddof: int = 0
) -> Array:
    """Two passes over the voxels of each window; (d, h, w) of one channel."""
    x = sliding_window_view(padded.astype(np.float64), window.shape)  # type: ignore[call-overload]
    w = sliding_window_view(counts.astype(np.float64), window.shape) * window  # type: ignore[call-overload]
    axes = (3, 4, 5)
    with np.errstate(all="ignore"):
        x = np.where(w > 0, x, 0)
        total = w.sum(axes)
        mean = (w * x).sum(axes) / total
        variance = (w * np.square(x - mean[..., None, None, None])).sum(axes) / total
        if ddof:  # the unbiased variance of weighted voxels
            variance *= total / (total - np.square(w).sum(axes) / total)
        std = np.sqrt(variance)
        return {
            "mean": mean, "variance": variance, "std": std,
            "zscore": np.where(std == 0, 0, (own - mean) / std),
            "snr": np.where(std == 0, 0, mean / std), "contrast": np.where(mean == 0, 0, std / mean),
        }[statistic]  # fmt: skip


def padded(x: Array, window: Array, mode: str, **value: Any) -> Array:
    pads = [((n - 1) // 2, n // 2) for n in window.shape]
    return np.pad(x, pads, mode, **value)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("boundary", [*PADS, "constant=2.5", "zeros", "renormalize"])
@pytest.mark.parametrize("name", WINDOWS)
def test_every_window_and_boundary_is_that_of_two_passes(name: str, boundary: str) -> None:
    window = WINDOWS[name]
    x = (numbers.standard_normal((5, 6, 9)) * 3 + 7).astype(np.float32)
    ones = np.ones(x.shape)
    if boundary in PADS:
        around, counts = (padded(a, window, PADS[boundary]) for a in (x, ones))
    else:
        value = 2.5 if boundary.startswith("constant") else 0.0
        around = padded(x, window, "constant", constant_values=value)
        counts = padded(ones, window, "constant", constant_values=boundary != "renormalize")
    for statistic in STATISTICS:
        if name == "voxel" and statistic == "snr":
            continue
        operation = made(window, (*x.shape, 1), statistic=statistic, boundary=boundary)
        for dtype, tolerance in ((np.float32, 2e-7), (np.float64, 1e-13)):
            got = computed(operation, x.astype(dtype)[..., None])[..., 0]
            want = expected(around, counts, window, x, statistic)
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("ddof", [0, 1])
def test_voxels_that_count_less_weigh_less(name: str, ddof: int) -> None:
    """Certainties from 0 to 1; what does not count may be NaN."""
    if name == "voxel" and ddof:
        return
    window = WINDOWS[name]
    x = numbers.standard_normal((5, 6, 9)).astype(np.float32)
    certainty = np.clip(numbers.standard_normal(x.shape), 0, 1).astype(np.float32)
    own = np.where(certainty > 0, x, np.nan)
    counts = padded(certainty, window, "symmetric")
    around = padded(np.where(certainty > 0, x, 0), window, "symmetric")
    windows = sliding_window_view(counts, window.shape) * window  # type: ignore[call-overload]
    coverage = windows.sum((3, 4, 5)) / window.sum()
    enough = coverage >= 0.3
    if ddof:
        enough &= (windows > 0).sum((3, 4, 5)) > 1
    for statistic in STATISTICS:
        if name == "voxel" and statistic in ("snr", "zscore"):
            continue
        operation = made(
            window, (*x.shape, 1), 2, statistic=statistic, ddof=ddof, min_coverage=0.3, empty=-1
        )  # fmt: skip
        got = computed(operation, own[..., None], certainty[..., None])[..., 0]
        want = expected(around, counts, window, x, statistic, ddof)
        there = enough & (certainty > 0) if statistic == "zscore" else enough
        np.testing.assert_allclose(got, np.where(there, want, -1), rtol=3e-7, atol=3e-7)
        assert operation.lost == (~enough).sum()


def test_a_sample_has_numpys_variance() -> None:
    x = numbers.standard_normal((5, 5, 5, 1))
    operation = made(np.ones((5, 5, 5)), x.shape, statistic="variance", ddof=1)
    np.testing.assert_allclose(computed(operation, x)[2, 2, 2, 0], np.var(x, ddof=1), rtol=1e-13)


@pytest.mark.parametrize("window", ["box", "ball", "Gaussian"])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_cancels_on_ramps_and_beside_steps(window: str, weighted: bool) -> None:
    """Noise of 1 on a ramp to a million, and on one side of a step of a million: to 1e-6."""
    weights = WINDOWS[window]
    shape = (6, 8, 40)
    noise = numbers.standard_normal(shape)
    ramp = (np.linspace(0, 1e6, shape[2]) + noise).astype(np.float32)
    step = np.where(np.arange(shape[2]) < 20, 0, 1e6) + noise
    tilted = np.add.outer(np.linspace(0, 3, 6), np.linspace(0, 2, 8))[..., None] + 1e6 + noise
    for x in (ramp, step, tilted):
        operation = made(weights, (*shape, 1), 1 + weighted, statistic="std")
        arrays = [x.astype(np.float64)[..., None], np.ones((*shape, 1))][: 1 + weighted]
        got = computed(operation, *arrays)[..., 0]
        around = padded(x, weights, "symmetric")
        want = expected(around, np.ones_like(around), weights, x, "std")
        np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_constant_has_no_spread_at_all(window: str, weighted: bool) -> None:
    for value in (0.1, 1e6, -3.3e-30):
        x = np.full((4, 5, 6, 1), value, np.float32)
        certainty = np.clip(numbers.random(x.shape), 0.2, 1).astype(np.float32)
        arrays = [x, certainty][: 1 + weighted]
        found = {
            name: computed(made(WINDOWS[window], x.shape, 1 + weighted, statistic=name), *arrays)
            for name in STATISTICS
        }
        assert (found["mean"] == np.float32(value)).all()
        for name in ("std", "variance", "zscore", "snr", "contrast"):
            assert (found[name] == 0).all(), name


def test_nan_and_infinity_reach_every_window_that_sees_them() -> None:
    window = WINDOWS["ball"]
    for value in (np.nan, np.inf, -np.inf):
        x = numbers.standard_normal((5, 6, 9, 1)).astype(np.float32)
        x[2, 3, 4] = value
        hit = np.zeros(x.shape[:3])
        hit[2, 3, 4] = 1
        sees = ndimage.correlate(hit, (window > 0).astype(float), mode="reflect") > 0
        for statistic in STATISTICS:
            operation = made(window, x.shape, statistic=statistic)
            np.testing.assert_array_equal(np.isnan(computed(operation, x)[..., 0]), sees)
            defined = operation.define([Window(x.astype(float), (0, 0, 0))], Box.whole(x.shape[:3]))
            np.testing.assert_array_equal(np.isnan(defined[..., 0]), sees)


def test_a_mean_of_scipy() -> None:
    x = numbers.standard_normal((9, 10, 33)).astype(np.float32)
    box = computed(made(np.ones((3, 5, 7)), (*x.shape, 1)), x[..., None])[..., 0]
    np.testing.assert_allclose(box, ndimage.uniform_filter(x.astype(float), (3, 5, 7)), atol=1e-6)
    bell = computed(made(gaussian(sigma=1.3).weights, (*x.shape, 1)), x[..., None])[..., 0]
    np.testing.assert_allclose(bell, ndimage.gaussian_filter(x.astype(float), 1.3), atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("boundary", ["symmetric", "wrap", "constant=3", "mirror-one"])
@pytest.mark.parametrize("window", ["box", "ball"])
def test_the_bits_are_those_of_any_box_and_number_of_threads(
    window: str, boundary: str, weighted: bool
) -> None:
    """More columns than a thread computes at once, and boxes that begin anywhere."""
    shape = (5, 70, 260, 2)
    x = numbers.standard_normal(shape).astype(np.float32)
    arrays = [x, numbers.random((*shape[:3], 1)).astype(np.float32)][: 1 + weighted]
    operation = made(WINDOWS[window], shape, len(arrays), statistic="std", boundary=boundary)
    whole = computed(operation, *arrays)
    np.testing.assert_array_equal(computed(operation, *arrays, threads=1), whole)
    for box in (
        Box((1, 4), (3, 68), (1, 259)), Box((0, 1), (0, 70), (0, 260)), Box((4, 5), (69, 70), (259, 260)),
        Box((0, 5), (0, 2), (100, 103)),
    ):  # fmt: skip
        np.testing.assert_array_equal(computed(operation, *arrays, box=box), whole[box.slices])


# of the results below, as float64 and float32, under every class of CPUs
DIGEST = "2b18482917a5d4dd"


def test_the_bits_are_those_of_every_machine() -> None:
    own = np.random.default_rng(3)
    x = own.standard_normal((4, 6, 37, 1)).astype(np.float32)
    certainty = own.random(x.shape).astype(np.float32)
    digest = hashlib.sha256()
    for name in ("box", "blocks", "ball", "Gaussian"):
        for arrays in ([x], [x, certainty], [x.astype(np.float64)]):
            operation = made(
                WINDOWS[name], x.shape, len(arrays), statistic="zscore", ddof=len(arrays) - 1
            )
            digest.update(computed(operation, *arrays).tobytes())
    assert digest.hexdigest()[:16] == DIGEST


@pytest.mark.slow
@pytest.mark.parametrize("row", CPU_CLASSES, ids=lambda row: row.name)
def test_the_bits_are_those_of_every_class_of_cpus(row: CpuClass) -> None:
    test = f"{__file__}::{test_the_bits_are_those_of_every_machine.__name__}"
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        env={**os.environ, "CONV3D_CPU": row.name}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("ddof", [0, 1])
def test_outputs_move_by_no_more_than_the_bounds(statistic: str, ddof: int) -> None:
    x = numbers.standard_normal((4, 5, 6, 1)) + 3
    certainty = np.clip(numbers.random(x.shape), 0.2, 1)
    operation = made(
        WINDOWS["Gaussian"], x.shape, 2, statistic=statistic, ddof=ddof, boundary="constant=9"
    )
    box, exact = Box.whole(x.shape[:3]), Window(np.zeros_like(x), (0, 0, 0))
    taken = [Window(x, (0, 0, 0)), Window(certainty, (0, 0, 0))]
    value = operation.define(taken, box)
    for off in (1e-4, 1e-2):
        errors = [Window(np.full_like(x, off), (0, 0, 0)), exact]
        allowed = operation.bounds(taken, errors, box, 1e-12)
        assert np.isfinite(allowed).all()
        for _ in range(4):
            moved = Window(x + off * numbers.choice([-1.0, 1.0], x.shape), (0, 0, 0))
            assert (np.abs(operation.define([moved, taken[1]], box) - value) <= allowed).all()


def test_an_even_window_lies_half_a_voxel_further_on() -> None:
    x = numbers.standard_normal((4, 5, 6, 1))
    operation = made(np.ones((2, 1, 4)), x.shape, boundary="zeros")
    assert operation.transform.offset == (0.5, 0, 0.5)
    want = sliding_window_view(np.pad(x[..., 0], ((0, 1), (0, 0), (1, 2))), (2, 1, 4)).mean(
        (3, 4, 5)
    )  # type: ignore[call-overload]
    np.testing.assert_allclose(computed(operation, x)[..., 0], want, atol=1e-12)


WRONG: list[tuple[str, dict[str, Any], Array, int, type[Conv3DError], str]] = [
    ("statistic", {"statistic": "stdev"}, np.ones((3, 3, 3)), 1, SpecError, "needs mean or std"),
    ("ddof", {"ddof": 2}, np.ones((3, 3, 3)), 1, SpecError, "needs 0 or 1 for ddof"),
    ("one voxel", {"ddof": 1}, np.ones((1, 1, 1)), 1, SpecError, "a window of one voxel"),
    ("negative", {}, -np.ones((3, 3, 3)), 1, SpecError, "weights of at least 0"),
    ("nothing", {}, np.zeros((3, 3, 3)), 1, SpecError, "not all of them 0"),
    ("other mode", {"boundary": "reflect"}, np.ones((3, 3, 3)), 1, SpecError, "symmetric"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[0])
def test_what_does_not_fit_is_refused(case: Any) -> None:
    _, attributes, window, inputs, error, words = case
    with pytest.raises(error, match=words):
        made(window, (4, 5, 6, 1), inputs, **attributes)


def test_certainties_of_another_size_are_refused() -> None:
    node = Node("it", "LocalStatistics", ("x", "c"), {}, {"window": np.ones((3, 3, 3))})
    with pytest.raises(ShapeError, match="certainties of 4x5x5"):
        make_operation(node, [Shape(4, 5, 6, 1), Shape(4, 5, 5, 1)])

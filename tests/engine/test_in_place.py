"""Rows of the source that are read where they lie: the same bits as if all of them were packed.

Whether the sums are right at all, `test_every_algorithm.py` tells.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from cases import Case, run

from conv3d_cli.engine import Plan, make_plan, plan
from conv3d_cli.engine.algorithms import separable
from conv3d_cli.engine.step import F
from conv3d_cli.layer import activations

CASE = Case((8, 21, 131), (3, 3, 3), boundary="mirror")
FOLDED = Case((8, 21, 131), (9, 9, 9), boundary="mirror", weights="symmetric")
UNFOLDED = Case((8, 21, 131), (3, 4, 5), boundary="mirror", weights="outer")
BOTH = pytest.mark.parametrize("case", [CASE, FOLDED, UNFOLDED], ids=lambda case: case.weights)


def plan_for(case: Case, precision: str = "float32", threads: int = 2) -> Plan:
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    algorithm = "direct" if case.weights == "random" else "separable"
    return make_plan(problem, weights, dtype=precision, algorithm=algorithm, threads=threads)


def source(case: Case, dtype: str) -> np.ndarray:
    """A volume of a case in C order: its groups one after the other, so that rows are contiguous."""
    volume = np.moveaxis(case.arrays()[0], -1, 1) * 90
    return np.moveaxis(np.ascontiguousarray(volume.astype(dtype)), 1, -1)


def apart(volume: np.ndarray) -> np.ndarray:
    """The same volume, with a gap between neighbouring voxels of a row: it must be packed."""
    found = np.zeros((*volume.shape[:3], 2 * volume.shape[3], volume.shape[4]), volume.dtype)
    found = found[..., ::2, :]
    found[...] = volume
    return found


def reads_in_place(done: Plan) -> bool:
    return any(worker.step[F.packed_stop] > 0 for worker in done._workers.values())


def compare(case: Case, dtype: str = "float32", precision: str = "float32", **kwargs: Any) -> None:
    volume = source(case, dtype)
    direct, packed = plan_for(case, precision), plan_for(case, precision)
    with np.errstate(invalid="ignore"):
        found = run(direct, volume, **kwargs)
        expected = run(packed, apart(volume), **kwargs)
    assert reads_in_place(direct)
    assert not reads_in_place(packed)
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.fixture(params=["plain", "streaming"])
def stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of stores, and of separable loops, whatever the output's size."""
    if request.param == "streaming":
        monkeypatch.setattr(plan, "STREAMING_BYTES", 0)
        monkeypatch.setattr(separable, "UNROLLED_VOXELS", 0)


@pytest.mark.parametrize("width", [64, 79, 96, 144, 600])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 3, 4), (1, 1, 17)])
@pytest.mark.usefixtures("stores")
def test_widths_and_kernels(width: int, kernel: tuple[int, int, int]) -> None:
    if width + kernel[2] < 66:
        pytest.skip("too narrow")
    compare(Case((4, 6, width), kernel, padding="full", boundary="constant=2.5"))


@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 17, 4), (18, 5, 9), (1, 5, 13)])
@pytest.mark.parametrize("weights", ["symmetric", "outer"])
def test_loops_of_known_taps_have_the_same_bits(
    kernel: tuple[int, int, int], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((20, 21, 131), kernel, boundary="mirror", weights=weights)
    for dtype in "float32", "float64":
        usual = run(plan_for(case, dtype), source(case, dtype))
        with monkeypatch.context() as patch:
            patch.setattr(separable, "UNROLLED_VOXELS", 0)
            unrolled = plan_for(case, dtype)
        np.testing.assert_array_equal(run(unrolled, source(case, dtype)), usual)


@pytest.mark.parametrize("width", [300, 415, 600])
@pytest.mark.parametrize("kernel", [(9, 9, 9), (2, 3, 41), (65, 70, 1)])
@pytest.mark.parametrize("weights", ["symmetric", "outer"])
@pytest.mark.usefixtures("stores")
def test_separable_kernels(width: int, kernel: tuple[int, int, int], weights: str) -> None:
    """Wider than a vector, too, and with more taps than are summed at once."""
    boundary = "constant=2.5" if width % 16 else "zeros"
    compare(Case((4, 6, width), kernel, padding="full", boundary=boundary, weights=weights))


@pytest.mark.parametrize("boundary", ["zeros", "constant=3", "nearest", "mirror", "wrap"])
@pytest.mark.parametrize(
    "dtype",
    ["uint16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("int16", "uint8", "int8"))],
)
def test_integers(dtype: str, boundary: str) -> None:
    compare(Case((4, 6, 300), (3, 3, 3), boundary=boundary, weights="symmetric"), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_wide_integers(dtype: str) -> None:
    compare(FOLDED, dtype)


def test_a_constant_that_the_source_cannot_hold() -> None:
    for constant in ("2.5", "300", "-1", "nan"):
        case = Case((4, 6, 130), (3, 3, 3), boundary=f"constant={constant}")
        volume, done = source(case, "float32").astype(np.uint8), plan_for(case)
        found = run(done, volume)
        assert not reads_in_place(done)
        np.testing.assert_array_equal(found, run(plan_for(case), volume.astype(np.float32)))


@pytest.mark.parametrize("kwargs", [
    {"slab_depth": 3}, {"band": 5}, {"out_dtype": "int16"}, {"out_dtype": "float64"},
    {"bias": np.array([1.5], np.float32)}, {"activation": activations.get("relu").in_place},
], ids=lambda kwargs: next(iter(kwargs)))  # fmt: skip
@BOTH
@pytest.mark.usefixtures("stores")
def test_slabs_bands_and_what_is_done_to_sums(kwargs: dict[str, Any], case: Case) -> None:
    compare(case, **kwargs)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kernel", "weights"),
    [((3, 3, 3), "random"), ((1, 1, 17), "random"), ((3, 5, 17), "symmetric")],
)
def test_checked_steps(kernel: tuple[int, int, int], weights: str, precision: str) -> None:
    """The sums of inputs that the checks take read the source where it lies, too."""
    case = Case((8, 21, 131), kernel, padding="full", boundary="constant=2.5", weights=weights)
    volume, checked = source(case, precision), plan_for(case, precision)
    checked.check()
    found = run(checked, volume)
    assert reads_in_place(checked)
    assert checked.checks is not None
    counts = checked.checks.take_counts()
    assert (counts.faults, counts.unchecked) == ([], 0)
    assert 0 < counts.worst < 1e-4  # of what is allowed
    np.testing.assert_array_equal(found, run(plan_for(case, precision), apart(volume)))


@BOTH
def test_float64(case: Case) -> None:
    compare(case, "float64", "float64")


def test_integers_in_float64() -> None:
    compare(FOLDED, "int16", "float64")


@pytest.mark.parametrize("weights", ["random", "symmetric"])
def test_groups_whose_rows_are_contiguous(weights: str) -> None:
    compare(Case((4, 6, 130), (3, 3, 3), groups=3, weights=weights))


def test_filters_of_a_separable_kernel() -> None:
    compare(Case((4, 6, 600), (3, 3, 3), filters=3, weights="outer"))


@BOTH
@pytest.mark.usefixtures("stores")
def test_outputs_of_any_alignment_and_strides(case: Case) -> None:
    """Sums are stored without the accumulator; nothing beside the output is written."""
    volume = source(case, "float32")
    # a bias is added in the accumulator
    expected = run(plan_for(case), apart(volume), bias=np.zeros(1, np.float32))
    for gap in range(0, 20, 3):
        whole = np.full((8, 25, 160), 7, np.float32)
        out = whole[:, 2:-2, gap : gap + 131, None]
        done = plan_for(case)
        planes = done.problem.source_indices(0, 0, 8)
        with plan.Team(2) as team:
            done.convolve_slab(volume[0], out, planes, team)
        np.testing.assert_array_equal(out, expected[0])
        out[...] = 7
        assert (whole == 7).all()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("weights", ["symmetric", "log", "two outer"])
@pytest.mark.usefixtures("stores")
def test_outputs_that_begin_anywhere_in_a_cache_line(weights: str, precision: str) -> None:
    """Vectors lie as the output's lines do: none is left out, and no term is added twice."""
    case = Case((6, 9, 80), (5, 3, 17), padding="full", weights=weights)
    volume = source(case, precision)
    expected = case.expected(*case.arrays())[0] * 90
    done = plan_for(case, precision)
    shape = done.problem.out_shape[1:]
    assert shape[2] % 16 == 0
    whole = np.empty(expected.size + 32, precision)
    whole = whole[-whole.ctypes.data // whole.itemsize % 16 :]  # begins at a cache line
    planes = done.problem.source_indices(0, 0, shape[0])
    with plan.Team(2) as team:
        for place in range(16):
            out = whole[place:][: expected.size].reshape(shape)
            out[...] = np.nan
            done.convolve_slab(volume[0], out, planes, team)
            np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("width", [16, 83, 96])
@pytest.mark.usefixtures("stores")
def test_rows_that_share_a_cache_line(width: int, dtype: str) -> None:
    """Rows without a gap share lines, of which each is stored as a whole; nothing is left out."""
    case = Case((7, 9, width), (3, 3, 3), boundary="nearest")
    volume = source(case, dtype)
    done = plan_for(case)
    expected = run(plan_for(case), apart(volume), bias=np.zeros(1, np.float32))[0]
    whole = np.empty(expected.size + 64, np.float32)
    whole = whole[-whole.ctypes.data // 4 % 16 :]  # begins at a cache line
    planes = done.problem.source_indices(0, 0, 7)
    with plan.Team(2) as team:
        for place in range(1, 17):
            whole[...] = np.nan
            out = whole[place:][: expected.size]
            done.convolve_slab(volume[0], out.reshape(expected.shape), planes, team)
            np.testing.assert_array_equal(out.reshape(expected.shape), expected)
            assert np.isnan(whole[:place]).all()
            assert np.isnan(whole[place + expected.size :]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avx2", "baseline"])
def test_vectors_that_are_shorter_than_a_cache_line(name: str) -> None:
    tests = test_outputs_that_begin_anywhere_in_a_cache_line, test_rows_that_share_a_cache_line
    names = [f"{__file__}::{test.__name__}" for test in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names],
        env={**os.environ, "CONV3D_CPU": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_nan_reaches_the_windows_that_contain_it_alone() -> None:
    volume = source(CASE, "float32").copy()
    volume[0, 3, 10, 60], volume[0, 5, 4, 0] = np.nan, np.inf
    done = plan_for(CASE)
    found = run(done, volume)
    assert reads_in_place(done)
    reached = np.zeros(found.shape, bool)
    reached[0, 2:5, 9:12, 59:62] = reached[0, 4:7, 3:6, 0:2] = True
    np.testing.assert_array_equal(np.isfinite(found), ~reached)


@BOTH
@pytest.mark.usefixtures("stores")
def test_outputs_with_filters_first(case: Case) -> None:
    """The sums of a filter lie together, at any distance from those of the next one."""
    case = dataclasses.replace(case, filters=2 if case.weights != "random" else 1)
    volume = source(case, "float32")
    expected = run(plan_for(case), apart(volume), bias=np.zeros(case.filters, np.float32))
    for distance in (8 * 21 * 131, 8 * 21 * 131 + 16):
        whole = np.full(case.filters * distance + 16, 7, np.float32)
        steps = (21 * 131 * 4, 131 * 4, 4, distance * 4)
        shape = (8, 21, 131, case.filters)
        out = np.lib.stride_tricks.as_strided(whole, shape, steps)
        done = plan_for(case)
        with plan.Team(2) as team:
            done.convolve_slab(volume[0], out, done.problem.source_indices(0, 0, 8), team)
        np.testing.assert_array_equal(out, expected[0])
        out[...] = 7
        assert (whole == 7).all()


def test_several_terms_are_packed_so_that_nan_is_found() -> None:
    case = Case((8, 21, 131), (9, 9, 9), boundary="mirror", weights="log")
    volume = source(case, "float32").copy()
    volume[0, 3, 10, 60] = np.nan
    done = plan_for(case)
    found = run(done, volume)
    assert not reads_in_place(done)
    reached = np.zeros(found.shape, bool)
    reached[0, 0:8, 6:15, 56:65] = True
    np.testing.assert_array_equal(np.isfinite(found), ~reached)


@BOTH
def test_a_slab_of_one_plane_reads_no_memory_of_an_earlier_one(case: Case) -> None:
    """Register tiles have several planes; what they read for the others must be there."""
    done = plan_for(case)
    for start, stop in ((0, 8), (6, 8), (6, 7)):
        volume = source(case, "float32").copy()
        planes = done.problem.source_indices(0, start, stop)
        out = np.empty((stop - start, 21, 131, 1), np.float32)
        with plan.Team(1) as team:
            done.convolve_slab(volume[0], out, planes, team)
        np.testing.assert_array_equal(out, run(plan_for(case), apart(volume))[0, start:stop])
        del volume

"""The corners of the Fourier tiles of many channels: lengths of transforms, steps of several tiles,
parts of the channels, rounding, and what is left to others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import MODES, Case, check, run
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.engine import Plan, make_plan
from conv3d_cli.engine.algorithms import fft_channels
from conv3d_cli.engine.algorithms.fft_channels import SIZES, WIDTHS, Tiles
from conv3d_cli.engine.cpu import CPU_CLASSES, cpu_class
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvProblem, ConvSpec


def plan_for(
    case: Case,
    weights: np.ndarray | None = None,
    algorithm: str = "fft-channels",
    dtype: str = "float32",
    threads: int = 1,
) -> Plan:
    volume, random_weights = case.arrays()
    weights = random_weights if weights is None else weights
    problem = case.spec().resolve(volume.shape, weights.shape)
    return make_plan(problem, weights, algorithm=algorithm, dtype=dtype, threads=threads)


def force(
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int, int],
    step: tuple[int, int, int],
    steps: int = 1,
) -> None:
    """Divide every volume into tiles of this size, whatever would be fastest."""

    def choose(problem: ConvProblem) -> tuple[Tiles, float]:
        kept = Size(*fft_channels.kept_size(problem, size))
        return Tiles(Size(*size), kept, Size(*step), steps), 1.0

    monkeypatch.setattr(fft_channels, "choose_tiles", choose)


# every length along each axis, in one tile or another
LENGTHS = [(depth, SIZES[-1 - i], WIDTHS[i % len(WIDTHS)]) for i, depth in enumerate(SIZES)]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=[] if i == 7 else [pytest.mark.slow])
        for i, size in enumerate(LENGTHS)
    ],
    ids=str,
)
def test_every_length_of_a_transform(
    size: tuple[int, int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tiles and a bit along each axis, with kernels of 9 weights or more."""
    kernel = tuple(max(1, min(5, n // 2)) for n in size)
    if np.prod(kernel) < fft_channels.LEAST_TAPS:
        kernel = tuple(
            min(n, 9) if n == max(size) else k for n, k in zip(size, kernel, strict=True)
        )
    force(monkeypatch, size, (1, 2, 2))
    volume = tuple(2 * (n - k + 1) + 1 for n, k in zip(size, kernel, strict=True))
    check("fft-channels", Case(volume, kernel, 9, 10, boundary="mirror"), precision)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=examples(15))
@given(
    case=st.builds(
        Case,
        size=st.tuples(*[st.integers(1, 14)] * 3),
        kernel=st.sampled_from([(3, 3, 3), (5, 5, 5), (1, 7, 7), (2, 3, 4)]),
        in_channels=st.sampled_from([8, 20]),
        filters=st.sampled_from([9, 17]),
        groups=st.integers(1, 2),
        padding=st.sampled_from(["same", "full"]),
        boundary=st.sampled_from(MODES),
    ),
)
def test_random_case(case: Case) -> None:
    check("fft-channels", case, "float32")


@pytest.mark.parametrize("step", [(1, 1, 1), (1, 2, 3), (3, 1, 2), (2, 3, 3)], ids=str)
@pytest.mark.parametrize("steps", [1, 2])
def test_same_bits_however_tiles_are_put_into_steps_tasks_slabs_and_threads(
    step: tuple[int, int, int], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile's transforms and sums are its own, so only its place and size make its bits."""
    case = Case((13, 12, 14), (5, 5, 5), in_channels=9, filters=20, boundary="symmetric")
    volume, _ = case.arrays()
    force(monkeypatch, (8, 8, 8), (1, 1, 1))
    reference = run(plan_for(case), volume)
    force(monkeypatch, (8, 8, 8), step, steps)
    np.testing.assert_array_equal(run(plan_for(case), volume), reference)
    cut = run(plan_for(case, threads=2), volume, slab_depth=1, band=1)
    np.testing.assert_array_equal(cut, reference)


def test_a_step_of_more_tiles_than_registers_hold_is_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force(monkeypatch, (8, 8, 8), (1, 7, 7))
    case = Case((3, 26, 25), (5, 5, 5), in_channels=70, filters=33)
    check("fft-channels", case, "float32")


@pytest.mark.parametrize(
    ("channels", "filters", "kernel"), [(64, 64, 5), (16, 16, 7), (160, 13, 3)]
)
@pytest.mark.parametrize("constant", [False, True])
def test_rounding_is_at_most_four_times_the_direct_sums(
    channels: int, filters: int, kernel: int, constant: bool
) -> None:
    case = Case((9, 8, 12), (kernel,) * 3, in_channels=channels, filters=filters)
    volume, weights = case.arrays()
    if constant:
        volume, weights = np.full_like(volume, 0.1), np.abs(weights)
    weights = weights.astype(np.float32)
    exact = run(plan_for(case, weights, "channels", "float64"), volume)
    direct, transformed = (
        run(plan_for(case, weights, name), volume) - exact for name in ("channels", "fft-channels")
    )
    assert np.sqrt(np.mean(transformed**2)) <= 4 * np.sqrt(np.mean(direct**2))
    largest = np.abs(weights).sum(axis=(0, 1, 2, 3)).max() * np.abs(volume).max()
    assert np.abs(transformed).max() <= 2e-6 * largest


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e25, -3e38])
def test_bad_and_huge_voxels_reach_their_windows_and_no_further(value: float) -> None:
    case = Case((9, 6, 13), (5, 3, 5), in_channels=10, filters=9)
    volume, weights = case.arrays()
    volume[0, 2, 3, 7, 4] = value
    weights[1, 1, 2, 4] = 0.0
    plan = plan_for(case, weights)
    for _ in range(2):  # nothing stays in the scratch memory
        got, expected = run(plan, volume), case.expected(volume, weights)
        with np.errstate(over="ignore"):
            expected = expected.astype(np.float32)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(run(plan, np.ones_like(volume))).all()


def test_the_largest_voxels_and_weights_that_it_takes_do_not_overflow() -> None:
    case = Case((6, 7, 12), (5, 5, 5), in_channels=9, filters=8)
    volume, weights = np.full((1, 6, 7, 12, 9), 1.8e19, np.float32), np.ones((5, 5, 5, 9, 8))
    weights *= 0.99e14 / weights[..., 0].sum()
    got, expected = run(plan_for(case, weights), volume), case.expected(volume, weights)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_what_earlier_tasks_left_behind_does_not_matter() -> None:
    """The volume's far edge ends within tiles that inner tasks have filled."""
    case = Case((9, 30, 31), (5, 5, 5), in_channels=8, filters=8)
    volume, weights = case.arrays()
    plan = plan_for(case)
    run(plan, 1e15 * volume)
    got, expected = run(plan, volume), case.expected(volume, weights)
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(weights).sum() * np.abs(volume).max()


BITS = """
import hashlib
from test_fft_channels import Case, plan_for, run
case = Case((7, 8, 13), (3, 5, 5), in_channels=70, filters=20, boundary="wrap")
for dtype in ("float32", "float64"):
    out = run(plan_for(case, dtype=dtype), case.arrays()[0])
    print(hashlib.sha256(out.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_same_bits_on_every_class_of_cpu() -> None:
    """Its vectors, register tiles and tiles of a step may differ, but no order of summation."""
    found = {
        row.name: subprocess.run(
            [sys.executable, "-c", BITS],
            cwd=Path(__file__).parent,
            env={
                **os.environ,
                "CONV3D_CPU": row.name,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for row in CPU_CLASSES
        if row.name in ("avx2", "baseline", cpu_class().name)
    }
    assert len(set(found.values())) == 1, found


def test_what_it_declines() -> None:
    many = np.ones((3, 5, 5, 16, 16))

    def reason(weights: np.ndarray, **options: object) -> str | None:
        case = Case((6, 6, 6), weights.shape[:3], 16, 16, **options)  # type: ignore[arg-type]
        return fft_channels.reject(case.spec().resolve((1, 6, 6, 6, 16), weights.shape), weights)

    assert reason(many) is None
    assert reason(0 * many) is None
    assert "strides are 1x2x1" in (reason(many, strides=(1, 2, 1)) or "")
    assert reason(many, dilation_rate=(1, 1, 2)) is None
    assert "fewer than 8 channels or filters" in (reason(many[..., :4]) or "")
    assert "a kernel of 5 weights" in (reason(many[:1, :1]) or "")
    assert "more than a tile" in (reason(np.ones((1, 1, 25, 16, 16))) or "")
    for value in (np.nan, np.inf, 1e15):
        assert "magnitudes" in (reason(np.where(np.arange(16) == 3, value, many)) or "")
    assert "magnitudes" in (reason(1e-30 * many) or "")


@pytest.mark.parametrize(
    ("channels", "kernel", "size"),
    [
        (64, (5, 5, 5), (32, 32, 32)),
        (16, (5, 5, 5), (64, 64, 64)),
        (128, (7, 7, 7), (32, 32, 32)),
        (32, (3, 5, 5), (33, 40, 21)),
    ],
    ids=str,
)
def test_it_is_chosen_for_large_kernels_between_many_channels(
    channels: int, kernel: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    weights = np.ones((*kernel, channels, channels))
    problem = ConvSpec(padding="same").resolve((1, *size, channels), weights.shape)
    assert make_plan(problem, weights).algorithm is fft_channels.ALGORITHM


def test_an_anisotropic_kernel_gets_a_tile_to_match() -> None:
    problem = ConvSpec(padding="same").resolve((1, 40, 40, 40, 32), (1, 7, 7, 32, 32))
    tiles, _ = fft_channels.choose_tiles(problem)  # type: ignore[misc]
    assert tiles.size.depth == 1
    assert tiles.size.width > 7


def test_a_small_volume_gets_one_tile_no_larger_than_it_needs() -> None:
    problem = ConvSpec(padding="same").resolve((1, 4, 5, 3, 32), (5, 5, 5, 32, 32))
    tiles, _ = fft_channels.choose_tiles(problem)  # type: ignore[misc]
    assert all(size <= 10 for size in tiles.size)

"""Winograd's own corners: tile widths, blocks of filters, parts of the channels, rounding, and what
it leaves to others.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases import MODES, Case, check, run
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.engine import Plan, make_plan
from conv3d_cli.engine.algorithms import winograd
from conv3d_cli.engine.cpu import cpu_class

LANES = cpu_class().lanes
KERNELS = [(3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)]


def plan_for(
    case: Case,
    weights: np.ndarray | None = None,
    algorithm: str = "winograd",
    dtype: str = "float32",
) -> Plan:
    volume, random_weights = case.arrays()
    weights = random_weights if weights is None else weights
    return make_plan(
        case.spec().resolve(volume.shape, weights.shape), weights, algorithm=algorithm, dtype=dtype
    )


@pytest.mark.parametrize("outputs", [2, 4])
def test_transforms_of_a_kernel_are_its_values_at_the_points(outputs: int) -> None:
    """Up to the factor of a point: G g is g(point), and the last row its leading coefficient."""
    g = np.array([3.0, -2.0, 5.0])
    values = winograd.transform_matrix(outputs) @ g
    for point, value in zip(winograd.POINTS[outputs], values[:-1], strict=True):
        factor = np.prod([point - other for other in winograd.POINTS[outputs] if other != point])
        assert value * factor == pytest.approx(np.polyval(g[::-1], point))
    assert values[-1] == g[-1]


@pytest.mark.parametrize("size", [(4, 6, 2), (5, 3, 13), (3, 4, 16)], ids=str)
@pytest.mark.parametrize("vectors", [1, 2, 3, 5])
def test_every_block_of_filters_and_width_of_tile(size: tuple[int, int, int], vectors: int) -> None:
    case = Case(size, (3, 3, 3), in_channels=36, filters=max(LANES * vectors - 3, 8))
    check("winograd", case, "float32")


def test_a_narrow_volume_takes_narrow_tiles_and_a_wide_one_wide_tiles() -> None:
    for kernel, height, wide in (((3, 3, 3), 2, 4), ((1, 3, 3), 2, 4), ((3, 3, 1), 2, 1)):
        for width, expected in ((2, min(wide, 2)), (64, wide)):
            problem = plan_for(Case((4, 2, width), kernel, in_channels=16, filters=16)).problem
            outputs = winograd.choose_tiles(problem, 4)[0].outputs
            assert outputs == (1 if kernel[0] == 1 else 2, height, expected)
    problem = plan_for(Case((4, 64, 64), (1, 3, 3), in_channels=16, filters=16)).problem
    assert winograd.choose_tiles(problem, 4)[0].outputs == (1, 4, 4)


@settings(max_examples=examples(40))
@given(
    case=st.builds(
        Case,
        size=st.tuples(*[st.integers(1, 11)] * 3),
        kernel=st.sampled_from(KERNELS),
        dilation_rate=st.tuples(*[st.integers(1, 3)] * 3),
        in_channels=st.sampled_from([8, 36]),
        filters=st.just(9),
        groups=st.integers(1, 2),
        padding=st.sampled_from(["same", "full"]),
        boundary=st.sampled_from(MODES),
    ),
)
def test_random_case(case: Case) -> None:
    check("winograd", case, "float32")


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(("channels", "filters"), [(16, 16), (64, 32), (160, 13)])
@pytest.mark.parametrize("constant", [False, True])
def test_rounding_is_a_few_times_the_direct_sums(
    kernel: tuple[int, int, int], channels: int, filters: int, constant: bool
) -> None:
    case = Case((8, 8, 12), kernel, in_channels=channels, filters=filters)
    volume, weights = case.arrays()
    if constant:
        volume, weights = np.full_like(volume, 0.1), np.abs(weights)
    weights = weights.astype(np.float32)
    exact = run(plan_for(case, weights, "direct", "float64"), volume)
    errors = {
        name: run(plan_for(case, weights, name), volume) - exact for name in ("direct", "winograd")
    }
    direct, transformed = (np.sqrt(np.mean(errors[name] ** 2)) for name in ("direct", "winograd"))
    # F(4, 3) along two axes loses a little more than along one
    assert transformed <= (4 if kernel == (3, 3, 3) else 5) * direct
    assert (
        np.abs(errors["winograd"]).max()
        <= 2e-6 * np.abs(weights).sum(axis=(0, 1, 2, 3)).max() * np.abs(volume).max()
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 1, 1)), ((3, 3, 1), (2, 3, 1))]
)
def test_non_finite_voxels_reach_their_windows_and_no_further(
    kernel: tuple[int, int, int], dilation: tuple[int, int, int], value: float
) -> None:
    case = Case((9, 6, 13), kernel, in_channels=10, filters=9, dilation_rate=dilation)
    volume, weights = case.arrays()
    volume[0, 2, 3, 7, 4] = value
    weights[0, 1, 0, 4] = 0.0
    plan = plan_for(case, weights)
    for _ in range(2):  # nothing stays in the scratch memory
        got, expected = run(plan, volume), case.expected(volume, weights)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(run(plan, np.ones_like(volume))).all()


def test_what_it_declines() -> None:
    volume = (1, 6, 6, 6, 16)
    many = np.ones((3, 3, 3, 16, 16))

    def reason(weights: np.ndarray, **options: object) -> str | None:
        case = Case((6, 6, 6), weights.shape[:3], 16, 16, **options)  # type: ignore[arg-type]
        return winograd.reject(case.spec().resolve(volume, weights.shape), weights)

    assert reason(many) is None
    assert reason(many[:, :, :1]) is None
    assert reason(many, dilation_rate=(1, 1, 2)) is None
    assert "kernel is 3x1x1" in (reason(many[:, :1, :1]) or "")
    assert "kernel is 2x3x3" in (reason(many[:2]) or "")
    assert "strides" in (reason(many, strides=(1, 2, 1)) or "")
    assert "fewer than" in (reason(many[..., :4]) or "")
    for value in (np.nan, np.inf, 1e20):
        assert "overflow" in (reason(np.where(np.arange(16) == 3, value, many)) or "")


@pytest.mark.parametrize("dilation", [(2, 2, 2), (1, 2, 5)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_slabs_of_whole_steps_give_the_same_bits(
    kernel: tuple[int, int, int], dilation: tuple[int, int, int]
) -> None:
    case = Case((11, 9, 14), kernel, in_channels=16, filters=16, dilation_rate=dilation)
    volume, _ = case.arrays()
    plan = plan_for(case)
    whole = run(plan, volume)
    step = plan.depth_step
    assert step == (2 * dilation[0] if kernel[0] == 3 else 1)
    for slab_depth in (step, 2 * step):
        np.testing.assert_array_equal(run(plan, volume, slab_depth=slab_depth), whole)


def test_it_is_chosen_for_many_channels() -> None:
    for kernel, dilation in (((3, 3, 3), 2), ((1, 3, 3), 1)):
        case = Case((32, 32, 32), kernel, in_channels=64, filters=64, dilation_rate=(dilation,) * 3)
        assert plan_for(case, algorithm="auto").algorithm is winograd.ALGORITHM

"""What must hold of any convolution, whatever the algorithm: checked on every algorithm that accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, run

from conv3d_cli.engine import ALGORITHMS, Team, machine_code, make_plan
from conv3d_cli.layer import activations
from conv3d_cli.model.spec import ConvSpec

NAMES = [a.name for a in ALGORITHMS]


def plan_for(algorithm: str, case: Case, weights: np.ndarray | None = None, **kwargs: Any) -> Any:
    volume, random_weights = case.arrays()
    weights = random_weights if weights is None else weights
    problem = case.spec().resolve(volume.shape, weights.shape)
    if next(a for a in ALGORITHMS if a.name == algorithm).declines(problem, weights):
        pytest.skip(f"{algorithm} declines this case")
    return make_plan(problem, weights, algorithm=algorithm, **kwargs)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("case", [c for c in CASES if c.size[0] > 1], ids=str)
def test_same_bits_for_any_threads_and_slab_depth(algorithm: str, case: Case) -> None:
    volume, _ = case.arrays()
    reference = run(plan_for(algorithm, case, threads=1), volume)
    for threads in (1, 2, 5):
        for depth in (1, 2, 3):
            plan = plan_for(algorithm, case, threads=threads)
            got = run(plan, volume, slab_depth=depth * plan.depth_step)  # where slabs may begin
            np.testing.assert_array_equal(got, reference)


TALL = [  # of more than one tile along the height, each for some of the algorithms
    Case((6, 130, 12), (3, 3, 3), in_channels=16, filters=16),
    Case((6, 300, 40), (5, 5, 5), boundary="mirror"),
    Case((3, 200, 100), (3, 3, 3), groups=32),
    Case((3, 300, 200), (5, 5, 5), weights="sparse"),
    Case((3, 200, 100), (3, 3, 3), in_channels=32, filters=2),
]


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("case", TALL, ids=str)
@pytest.mark.parametrize("bad", [False, True])
def test_same_bits_for_any_band_of_rows(algorithm: str, case: Case, bad: bool) -> None:
    volume, weights = case.arrays()
    if algorithm == "separable":
        weights = np.ones_like(weights)
    if bad:
        volume[0, :, case.size[1] // 2, 0, 0] = np.inf
    reference = run(plan_for(algorithm, case, weights), volume)
    for rows in (1, 100):
        plan = plan_for(algorithm, case, weights, threads=2)
        np.testing.assert_array_equal(run(plan, volume, slab_depth=4, band=rows), reference)


@pytest.mark.parametrize("algorithm", NAMES)
def test_tall_cases_have_bands(algorithm: str) -> None:
    accepts = next(a for a in ALGORITHMS if a.name == algorithm).reject
    bands = [0]
    for case in TALL:
        volume, weights = case.arrays()
        weights = np.ones_like(weights) if algorithm == "separable" else weights
        problem = case.spec().resolve(volume.shape, weights.shape)
        if not accepts(problem, weights):
            bands.append(
                -(
                    -problem.out_size[1]
                    // make_plan(problem, weights, algorithm=algorithm).block_alignment.height
                )
            )
    assert max(bands) > 1


def test_activation_of_sums_that_lie_apart() -> None:
    """A voxel's filters are padded to whole vectors in some algorithms: the sums of one filter are not contiguous."""
    case = Case((1, 1, 3), (1, 1, 1))
    volume, weights = case.arrays()
    got = run(
        plan_for("channels", case, weights), volume, activation=activations.get("sigmoid").in_place
    )
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-case.expected(volume, weights))), rtol=1e-6)


VOXEL_ACTIVATIONS = [
    activations.get("threshold:threshold=0.5:default_value=-1" if f is activations.threshold else f)
    for f in activations.ACTIVATIONS
    if f not in activations.AXIS_ACTIVATIONS
]


@pytest.mark.parametrize("activation", VOXEL_ACTIVATIONS, ids=lambda a: a.name)
def test_same_bits_with_bias_and_activation(activation: activations.Activation) -> None:
    case = Case((7, 6, 37), (3, 3, 3), in_channels=2, filters=3)
    volume, _ = case.arrays()
    bias = np.array([0.5, -1.0, 2.0], np.float32)
    function = activation.in_place
    reference = run(plan_for("direct", case, threads=1), volume, bias=bias, activation=function)
    for threads, depth in ((2, 1), (2, 2), (3, 5)):
        got = run(
            plan_for("direct", case, threads=threads),
            volume,
            slab_depth=depth,
            bias=bias,
            activation=function,
        )
        np.testing.assert_array_equal(got, reference)
    plain = activation(run(plan_for("direct", case), volume) + bias)
    np.testing.assert_allclose(reference, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("algorithm", NAMES)
def test_identity_kernel_returns_the_volume(algorithm: str) -> None:
    case = Case((4, 5, 6), (3, 3, 3))
    volume, _ = case.arrays()
    weights = np.zeros((3, 3, 3, 1, 1))
    weights[1, 1, 1] = 1
    np.testing.assert_array_equal(run(plan_for(algorithm, case, weights), volume), volume)


@pytest.mark.parametrize("algorithm", NAMES)
def test_integers_are_exact(algorithm: str) -> None:
    case = Case((5, 6, 7), (3, 3, 3), boundary="symmetric")
    rng = np.random.default_rng(1)
    volume = rng.integers(-100, 100, (1, 5, 6, 7, 1)).astype(np.float32)
    weights = rng.integers(-9, 9, (3, 3, 3, 1, 1)).astype(float)
    np.testing.assert_array_equal(
        run(plan_for(algorithm, case, weights), volume), case.expected(volume, weights)
    )


@pytest.mark.parametrize("algorithm", NAMES)
def test_linear(algorithm: str) -> None:
    case = Case((5, 6, 7), (3, 3, 3), in_channels=2, filters=2)
    a, _ = case.arrays(1)
    b, _ = case.arrays(2)
    together = run(plan_for(algorithm, case), 2 * a - 3 * b)
    apart = 2 * run(plan_for(algorithm, case), a) - 3 * run(plan_for(algorithm, case), b)
    np.testing.assert_allclose(together, apart, atol=2e-4)


@pytest.mark.parametrize("algorithm", NAMES)
def test_groups_are_slices_put_together(algorithm: str) -> None:
    case = Case((4, 5, 6), (3, 3, 3), in_channels=2, filters=3, groups=2)
    volume, weights = case.arrays()
    whole = run(plan_for(algorithm, case), volume)
    single = Case((4, 5, 6), (3, 3, 3), in_channels=2, filters=3)
    halves = []
    for g in range(2):
        problem = single.spec().resolve((1, 4, 5, 6, 2), (3, 3, 3, 2, 3))
        plan = make_plan(problem, weights[..., 3 * g : 3 * g + 3], algorithm=algorithm)
        halves.append(run(plan, volume[..., 2 * g : 2 * g + 2]))
    np.testing.assert_allclose(whole, np.concatenate(halves, axis=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_non_finite_voxels_reach_their_windows_and_no_further(
    algorithm: str, value: float, weight: float
) -> None:
    """Also through a zero weight, where 0 times infinity is NaN."""
    case = Case((5, 6, 40), (3, 3, 3))
    volume = np.ones((1, 5, 6, 40, 1), np.float32)
    volume[0, 2, 3, 17, 0] = value
    weights = np.ones((3, 3, 3, 1, 1))
    weights[0, 1, 2] = weight
    got = run(plan_for(algorithm, case, weights), volume)
    expected = case.expected(volume, weights)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize(
    "case", [Case((5, 6, 40), (5, 5, 5)), Case((5, 6, 9), (3, 3, 3), in_channels=16, filters=16)]
)
def test_huge_finite_voxels_do_not_overflow(algorithm: str, case: Case) -> None:
    """A sum of transforms may overflow where the direct sum does not."""
    volume, weights = case.arrays()
    volume[0, 2, 3, 5] = 1e37
    weights = 1e-2 * weights
    got = run(plan_for(algorithm, case, weights), volume)
    expected = case.expected(volume, weights.astype(np.float32))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(weights).sum() * 1e37)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("size", [21, 27])
def test_many_equal_taps_do_not_drift(algorithm: str, size: int) -> None:
    """Summed one by one in float32, 21^3 equal numbers would be 1e-5 off; chunks keep nearly all of that away."""
    case = Case((1, 1, 40), (size, size, size), boundary="nearest")
    volume = np.full((1, 1, 1, 40, 1), 0.1, np.float32)
    weights = np.full((size, size, size, 1, 1), 1 / size**3)
    got = run(plan_for(algorithm, case, weights), volume)
    exact = np.float64(np.float32(0.1)) * np.float64(np.float32(1 / size**3)) * size**3
    np.testing.assert_allclose(got, exact, rtol=3e-6)


SOURCES = [
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float32",
    "float64",
    "bool",
]


@pytest.mark.parametrize("dtype", SOURCES)
def test_source_dtypes(dtype: str) -> None:
    case = Case((3, 4, 5), (3, 3, 3), boundary="symmetric")
    _, weights = case.arrays()
    volume = (
        np.random.default_rng(0)
        .integers(0, 2 if dtype == "bool" else 100, (1, 3, 4, 5, 1))
        .astype(dtype)
    )
    got = run(plan_for("direct", case), volume)
    np.testing.assert_allclose(
        got, case.expected(volume.astype(float), weights), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "change", ["none", "reversed", "swapped", "unaligned", "readonly", "strided"]
)
def test_source_layouts(order: str, change: str) -> None:
    """Whatever the memory layout of the source, the bits are the same."""
    case = Case((4, 5, 6), (3, 3, 3), in_channels=2, filters=2)
    volume, _ = case.arrays()
    reference = run(plan_for("direct", case), volume)
    source = volume.copy(order=order)
    if change == "reversed":
        source = source[:, ::-1, :, ::-1].copy(order=order)[:, ::-1, :, ::-1]
    elif change == "swapped":
        source = source.astype(source.dtype.newbyteorder())
    elif change == "unaligned":
        raw = np.zeros(source.nbytes + 1, np.uint8)
        source = np.ndarray(source.shape, source.dtype, raw.data, 1, order=order)
        source[...] = volume
    elif change == "readonly":
        source.flags.writeable = False
    elif change == "strided":
        wide = np.zeros((1, 4, 5, 12, 4), np.float32)
        wide[:, :, :, ::2, ::2] = volume
        source = wide[:, :, :, ::2, ::2]
    np.testing.assert_array_equal(run(plan_for("direct", case), source), reference)


def test_scale_is_applied_to_voxels_and_not_to_the_constant_outside() -> None:
    case = Case((3, 4, 5), (3, 3, 3), boundary="constant=7")
    _, weights = case.arrays()
    stored = np.random.default_rng(0).integers(-1000, 1000, (1, 3, 4, 5, 1)).astype(np.int16)
    got = run(plan_for("direct", case), stored, scale=(0.25, -3.0))
    expected = case.expected(stored * 0.25 - 3.0, weights)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
)
def test_integer_outputs_round_half_to_even_saturate_and_count(dtype: str) -> None:
    limits = np.iinfo(dtype)
    values = [0.5, 1.5, 2.5, -0.5, 3.49, np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, 7.0]
    volume = np.array(values, np.float64).reshape(1, 1, 1, -1, 1)
    problem = ConvSpec().resolve(volume.shape, (1, 1, 1, 1, 1))
    plan = make_plan(problem, np.ones((1, 1, 1, 1, 1)), dtype="float64")
    out = np.empty(problem.out_shape, dtype)
    with Team(1) as team:
        clipped = plan.convolve_slab(volume[0], out[0], [0], team).clipped
    expected = [0, 2, 2, 0, 3, 0, limits.max, limits.min, limits.max, limits.min, 0, 7]
    assert out.ravel().tolist() == expected
    assert clipped == 5


def test_extremes_of_int64_survive_float64() -> None:
    """2^63 is no int64, though it is the nearest float64 to its maximum."""
    volume = np.array([2.0**63, -(2.0**63), 2.0**62], np.float64).reshape(1, 1, 1, -1, 1)
    problem = ConvSpec().resolve(volume.shape, (1, 1, 1, 1, 1))
    got = run(
        make_plan(problem, np.ones((1, 1, 1, 1, 1)), dtype="float64"), volume, out_dtype="int64"
    )
    assert got.ravel().tolist() == [2**63 - 1, -(2**63), 2**62]


def test_output_views_of_any_strides() -> None:
    case = Case((4, 5, 6), (3, 3, 3), in_channels=1, filters=2)
    volume, _ = case.arrays()
    plan = plan_for("direct", case)
    reference = run(plan, volume)
    out = np.full((2, 6, 5, 4), np.nan, np.float32)[:, ::-1]  # (c, w, h, d), w reversed
    with Team(2) as team:
        plan.convolve_slab(
            volume[0], out.transpose(3, 2, 1, 0), plan.problem.source_indices(0, 0, 4), team
        )
    np.testing.assert_array_equal(out.transpose(3, 2, 1, 0), reference[0])


def test_a_forced_algorithm_that_does_not_exist_is_named() -> None:
    problem = ConvSpec().resolve((1, 2, 2, 2, 1), (1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"unknown algorithm 'dircet'; did you mean 'direct'\?"):
        make_plan(problem, np.ones((1, 1, 1, 1, 1)), algorithm="dircet")


@pytest.mark.parametrize("algorithm", NAMES)
def test_clipped_voxels_are_counted_once_where_steps_are_done_over(algorithm: str) -> None:
    """NaN in a channel of one group: only that group's step is done over, and no voxel counts twice."""
    case = Case((6, 7, 20), (5, 5, 5), groups=2, in_channels=8, filters=8) if algorithm != "winograd" else Case(
        (6, 7, 20), (3, 3, 3), groups=2, in_channels=8, filters=8
    )  # fmt: skip
    volume, weights = case.arrays()
    volume[0, 2, 3, 5, 1] = np.nan
    plan = plan_for(algorithm, case, weights)
    planes = plan.problem.source_indices(0, 0, 6)
    sums = run(plan, volume)[0]
    out = np.empty(sums.shape, np.uint8)
    with Team(2) as team:
        clipped = plan.convolve_slab(volume[0], out, planes, team).clipped
    rounded = np.rint(sums)
    assert clipped == np.count_nonzero(~((rounded >= 0) & (rounded <= 255)))
    assert np.isnan(sums[..., :8]).any()
    assert not np.isnan(sums[..., 8:]).any()


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("case", CASES[:30:3], ids=str)
def test_planning_loads_no_machine_code(
    algorithm: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`explain` and --dry-run tell layout and memory in milliseconds, whatever is not compiled yet."""
    monkeypatch.setattr(machine_code, "load", lambda codes: pytest.fail("loaded"))
    plan = plan_for(algorithm, case)
    assert plan.scratch_bytes > 0
    assert plan.depth_step > 0

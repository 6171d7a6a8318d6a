"""Grids of dilated layers: whatever divides the work, each voxel has the same bits, and is the sum of its window."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import TOLERANCE, Case, check, run
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.engine import Plan, Team, make_plan
from conv3d_cli.engine.grids import grids_of, tables_by_grid
from conv3d_cli.engine.plan import ALGORITHMS
from conv3d_cli.engine.weighting import Certainty, Division

BY_GRIDS = [one.name for one in ALGORITHMS if one.by_grids]
# sizes that the grids share unequally, and an axis with fewer voxels than grids
CASES = {
    "equal": Case((8, 12, 16), (3, 3, 3), 16, 9, dilation_rate=(2, 3, 4)),
    "unequal": Case((11, 9, 13), (3, 3, 3), 8, 17, dilation_rate=(3, 2, 5), boundary="symmetric"),
    "few voxels": Case(
        (5, 3, 17), (3, 3, 3), 8, 8, dilation_rate=(7, 4, 16), boundary="constant=2"
    ),
    "one tap along depth": Case((6, 9, 11), (1, 3, 3), 8, 8, dilation_rate=(5, 2, 3)),
    "groups": Case((6, 7, 9), (3, 3, 3), 9, 16, groups=2, dilation_rate=(2, 2, 2)),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
by_grids = pytest.mark.parametrize("algorithm", BY_GRIDS)


def plan_of(case: Case, algorithm: str, threads: int = 1, dtype: str = "float32") -> Plan:
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    return make_plan(problem, weights, algorithm=algorithm, threads=threads, dtype=dtype)


@by_grids
@pytest.mark.parametrize("precision", ["float32", "float64"])
@cases
def test_sums_are_those_of_the_oracle(case: Case, precision: str, algorithm: str) -> None:
    assert plan_of(case, algorithm).grids.total > 1
    check(algorithm, case, precision)


@by_grids
@cases
def test_slabs_bands_and_threads_change_no_bit(case: Case, algorithm: str) -> None:
    volume, _ = case.arrays()
    whole = run(plan_of(case, algorithm), volume)
    for threads, slab_depth, band in itertools.product((1, 3), (None, 1), (None, 1)):
        plan = plan_of(case, algorithm, threads)
        np.testing.assert_array_equal(
            run(plan, volume, slab_depth=slab_depth, band=band), whole, f"{threads} {slab_depth}"
        )


@by_grids
@cases
def test_nonfinite_voxels_reach_their_windows_and_no_further(case: Case, algorithm: str) -> None:
    volume, weights = case.arrays()
    volume[0, -1, 1, 5, 2] = np.nan
    volume[0, 0, -1, 0, -1] = np.inf
    got = run(plan_of(case, algorithm), volume)
    expected = case.expected(volume, weights.astype(np.float32))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    np.testing.assert_array_equal(run(plan_of(case, algorithm), volume, slab_depth=1), got)


@by_grids
@cases
def test_all_values_are_reported_as_done(case: Case, algorithm: str) -> None:
    volume, _ = case.arrays()
    plan, done = plan_of(case, algorithm), list[int]()
    run(plan, volume, progress=done.append)
    assert sum(done) == np.prod(plan.problem.out_shape)


@by_grids
@cases
def test_checks_see_every_step_and_change_no_bit(case: Case, algorithm: str) -> None:
    volume, _ = case.arrays()
    plan, checked = plan_of(case, algorithm), plan_of(case, algorithm)
    checked.check()
    np.testing.assert_array_equal(run(checked, volume), run(plan, volume))
    assert checked.checks is not None
    counts = checked.checks.take_counts()
    assert counts.steps > 0
    assert counts.unchecked == 0
    assert not counts.faults


@by_grids
@cases
def test_faults_are_found_in_every_grid_and_repaired(case: Case, algorithm: str) -> None:
    volume, weights = case.arrays()
    plan = plan_of(case, algorithm)
    plan.check()
    run(plan, volume)  # packs the weights
    assert plan.checks is not None
    plan.checks.take_counts()
    plan.prepared.weights[...] *= 2
    got, expected = run(plan, volume), case.expected(volume, weights.astype(np.float32))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    planes, depth = {fault.plane for fault in plan.checks.take_counts().faults}, got.shape[1]
    assert planes <= set(range(depth))
    assert planes >= set(range(min(depth, plan.grids.apart[0])))  # the first of each grid


@by_grids
@cases
def test_division_by_a_coverage(case: Case, algorithm: str) -> None:
    """Sums are divided by the coverage of their own windows, which is stored beside them."""
    volume, weights = case.arrays()
    volume[0, 1, 2, 3] = volume[0, 3, 0] = np.nan
    problem = case.spec().resolve(volume.shape, weights.shape)
    certainty = Certainty(nonfinite_missing=True, replaces_source=True)
    inside = (np.arange(np.prod(problem.out_size)) % 3 > 0).astype(np.uint8)
    found = {}
    for name in ("direct", algorithm):
        plan = make_plan(problem, np.abs(weights), algorithm=name)
        sums = np.ones(problem.out_shape[1:], np.float32)
        coverage = np.full_like(sums, -1)
        division = Division(0.3, 7.0, coverage, inside.reshape(*problem.out_size, 1))
        with Team(1) as team:
            result = plan.convolve_slab(
                volume[0],
                sums,
                problem.source_indices(0, 0, problem.out_size[0]),
                team,
                certainty=certainty,
                division=division,
                flags_incomplete=True,
            )
        touched = np.zeros(problem.out_size, bool)
        for box in result.flagged:
            touched[box.slices] = True
        lacks = np.isnan(case.expected(volume, np.ones_like(weights)))[0].any(axis=-1)
        assert touched[lacks].all()
        found[name] = sums, coverage, result.clipped
    scale = np.abs(weights).sum()
    for got, expected in zip(found[algorithm][:2], found["direct"][:2], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=TOLERANCE["float32"] * scale)
    assert found[algorithm][2] == found["direct"][2]


@settings(max_examples=examples(40))
@given(st.lists(st.integers(0, 99), min_size=1), st.integers(1, 9))
def test_tables_by_grid_have_every_position_once(table: list[int], apart: int) -> None:
    found = tables_by_grid(np.array(table, np.int64), apart)
    for grid in range(min(apart, len(table))):
        expected = table[grid::apart]
        assert found[grid][: len(expected)].tolist() == expected
    assert (found >= 0).sum() == len(table)


def test_strides_and_dense_kernels_have_one_grid() -> None:
    for case in (
        Case((8, 8, 8), (3, 3, 3), 8, 8),
        Case((8, 8, 8), (3, 3, 3), 8, 8, dilation_rate=(2, 2, 2), strides=(2, 2, 2)),
        Case((8, 8, 8), (1, 1, 1), 8, 8, dilation_rate=(2, 2, 2)),
    ):
        volume, weights = case.arrays()
        problem = case.spec().resolve(volume.shape, weights.shape)
        assert grids_of(problem) == (problem, (1, 1, 1))

"""The contract of algorithms: each one, on every problem it accepts, against the float64 oracle.

The listed cases (`cases.py`) reach the corners on purpose; the random ones go where nobody thought
of. Which algorithms accept a listed case stands beside it. Each must accept one at least, and
`direct` must accept all.
"""

from __future__ import annotations

import math

import pytest
from cases import CASES, MODES, Case, accepting, check, declines
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.engine import ALGORITHMS

NAMES = [algorithm.name for algorithm in ALGORITHMS]
# Case by case, since the oracle's answer is kept for the next algorithm.
ACCEPTED = [
    (case, precision, name)
    for case in CASES
    for precision in ("float32", "float64")
    for name in NAMES
    if name in accepting(case)
]


@pytest.mark.parametrize(("case", "precision", "algorithm"), ACCEPTED, ids=str)
def test_listed_case(case: Case, precision: str, algorithm: str) -> None:
    check(algorithm, case, precision)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_who_accepts_a_listed_case(case: Case) -> None:
    """An algorithm that declines a case is never run on it: the line of the case in `LISTED` says
    whom to expect.
    """
    found = {name for name in NAMES if declines(name, case) is None}
    expected = accepting(case)
    assert not found - expected, (
        f"accepted as well by {found - expected}: add them to the line of {case} in cases.py"
    )
    gone = {name: declines(name, case) for name in expected - found}
    assert not gone, (
        f"declined now, {gone}: mend that, or take them out of the line of {case} in cases.py"
    )


@pytest.mark.parametrize("algorithm", NAMES)
def test_accepts_at_least_one_listed_case(algorithm: str) -> None:
    assert any(declines(algorithm, case) is None for case in CASES), (
        f"add a case to cases.py that {algorithm} accepts"
    )


sizes = st.tuples(*[st.integers(1, 9)] * 3)
pairs = st.tuples(st.integers(0, 7), st.integers(0, 7))
cases = st.builds(
    Case,
    size=sizes,
    kernel=st.tuples(*[st.integers(1, 4)] * 3),
    in_channels=st.integers(1, 3),
    filters=st.integers(1, 3),
    groups=st.integers(1, 3),
    strides=st.tuples(*[st.integers(1, 3)] * 3),
    dilation_rate=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.one_of(st.sampled_from(["same", "full"]), st.tuples(pairs, pairs, pairs)),
    boundary=st.sampled_from(MODES),
)


@pytest.mark.parametrize("algorithm", [a.name for a in ALGORITHMS])
@settings(max_examples=examples(60))
@given(case=cases, precision=st.sampled_from(["float32", "float64"]))
def test_random_case(algorithm: str, case: Case, precision: str) -> None:
    extent = [(k - 1) * d + 1 for k, d in zip(case.kernel, case.dilation_rate, strict=True)]
    if not isinstance(case.padding, str):  # leave out problems without an output
        spans = [n + sum(p) for n, p in zip(case.size, case.padding, strict=True)]
        if any(span < e for span, e in zip(spans, extent, strict=True)):
            return
    reason = declines(algorithm, case)
    if reason is None:
        check(algorithm, case, precision)
    assert reason is None or algorithm != "direct", (
        f"direct accepts every legal problem, and declined: {reason}"
    )


def test_flops_count_the_taps_that_are_summed() -> None:
    case = Case((4, 5, 6), (3, 2, 1), in_channels=2, filters=3, groups=2)
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    assert problem.flops == 2 * math.prod(problem.out_shape) * weights[..., 0].size

"""The contract of algorithms: each one, on every problem it accepts, against the float64 oracle.

The listed cases reach the corners on purpose; the random ones go where nobody thought of. An algorithm may decline a
case, but must accept at least one listed case, and `direct` must accept all.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conv3d_cli.engine import ALGORITHMS, Plan, Team, make_plan
from conv3d_cli.model.spec import Boundary, ConvSpec

TOLERANCE = {"float32": 2e-6, "float64": 1e-14}  # of sum|w| * max|x|
MODES = ["zeros", "constant=2.5", "nearest", "symmetric", "mirror", "wrap", "mirror-one"]


def outer_products(count: int) -> Any:
    """Weights that are sums of so many outer products of random filters."""

    def make(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        depth, height, width = (rng.standard_normal((count, n, *shape[3:])) for n in shape[:3])
        return np.einsum("adcf,ahcf,awcf->dhwcf", depth, height, width)

    return make


def symmetric(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """An outer product of symmetric, positive filters."""
    depth, height, width = (np.exp(-rng.uniform(0.02, 0.2) * (np.arange(n) - (n - 1) / 2) ** 2) for n in shape[:3])
    return np.broadcast_to(np.einsum("d,h,w->dhw", depth, height, width)[..., None, None], shape).copy()


def log_like(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Laplacian of Gaussian: a sum of three outer products, two filters an axis."""
    squares = [(np.arange(n) - (n - 1) / 2) ** 2 / 4 for n in shape[:3]]
    radius = squares[0][:, None, None] + squares[1][:, None] + squares[2]
    return np.broadcast_to(((radius - 3) * np.exp(-radius / 2))[..., None, None], shape).copy()


WEIGHTS: dict[str, Any] = {
    "random": lambda rng, shape: rng.standard_normal(shape),
    "outer": outer_products(1),
    "two outer": outer_products(2),
    "symmetric": symmetric,
    "log": log_like,
    "box": lambda rng, shape: np.full(shape, 1 / math.prod(shape[:3])),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random((*shape[:3], 1, 1)) < 0.1),
    "cross": lambda rng, shape: rng.standard_normal(shape) * (sum(np.indices(shape[:3]) == 1)[..., None, None] > 1),
    "nothing": lambda rng, shape: np.zeros(shape),
}


@dataclass(frozen=True)
class Case:
    """One problem: the volume's (D, H, W), channels by group, filters by group, groups, kernel size, and geometry."""

    size: tuple[int, int, int]
    kernel: tuple[int, int, int]
    in_channels: int = 1
    filters: int = 1
    groups: int = 1
    strides: tuple[int, int, int] = (1, 1, 1)
    dilation_rate: tuple[int, int, int] = (1, 1, 1)
    padding: Any = "same"
    boundary: str = "zeros"
    weights: str = "random"

    def spec(self) -> ConvSpec:
        return ConvSpec(
            self.strides,
            self.padding,
            self.dilation_rate,
            self.groups,
            boundary=self.boundary,
            allow_strided_dilation=True,
        )

    def arrays(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """A volume (1, D, H, W, C) in float32 and weights (kd, kh, kw, C/groups, F)."""
        rng = np.random.default_rng(seed)
        volume = rng.standard_normal((1, *self.size, self.in_channels * self.groups)).astype(np.float32)
        return volume, WEIGHTS[self.weights](rng, (*self.kernel, self.in_channels, self.filters * self.groups))

    def expected(self, volume: np.ndarray, weights: np.ndarray) -> np.ndarray:
        boundary = Boundary.parse(self.boundary)
        return oracle.conv3d(
            volume, weights, strides=self.strides, padding=self.padding, dilation_rate=self.dilation_rate,
            groups=self.groups, boundary=boundary.mode, constant=boundary.value,
        )  # fmt: skip


CASES = [
    Case((5, 6, 7), (1, 1, 1)),
    Case((5, 6, 7), (3, 3, 3)),
    Case((5, 6, 7), (3, 3, 3), padding="valid"),
    Case((4, 5, 6), (3, 2, 4), padding="full", boundary="mirror"),
    Case((1, 1, 1), (3, 3, 3), boundary="mirror"),
    Case((2, 3, 4), (5, 5, 5), boundary="wrap"),
    Case((9, 8, 7), (3, 3, 3), strides=(2, 3, 2), boundary="nearest"),
    Case((9, 8, 7), (3, 2, 3), dilation_rate=(2, 1, 3), boundary="symmetric"),
    Case((9, 8, 7), (2, 2, 2), strides=(2, 2, 2), dilation_rate=(2, 3, 2)),
    Case((8, 8, 8), (2, 2, 2), strides=(4, 4, 4)),
    Case((1, 9, 4), (1, 1, 2), strides=(1, 2, 1)),
    Case((2, 30, 4), (2, 19, 1)),  # kernel rows in parts of unequal length
    Case((5, 6, 7), (1, 1, 1), strides=(1, 2, 1)),
    Case((3, 4, 5), (3, 3, 3), padding=((9, 0), (0, 9), (4, 11)), boundary="symmetric"),
    Case((3, 4, 5), (3, 3, 3), padding=((9, 0), (0, 9), (4, 11)), boundary="constant=2.5"),
    Case((4, 4, 20), (3, 3, 3), in_channels=3, filters=5),
    Case((4, 4, 4), (3, 3, 3), in_channels=16, filters=17),
    Case((4, 4, 4), (3, 3, 3), groups=4),
    Case((4, 4, 4), (3, 3, 3), groups=2, in_channels=2, filters=3, boundary="nearest"),
    Case((3, 4, 5), (1, 1, 1), in_channels=8, filters=9),
    Case((11, 5, 5), (9, 1, 1)),
    Case((5, 5, 70), (1, 1, 33), boundary="symmetric"),
    Case((10, 10, 10), (9, 9, 9), boundary="nearest"),  # 729 taps: more than one chunk
    Case((2, 9, 1030), (1, 3, 3)),  # wider than a tile
    Case((1, 2, 21), (1, 21, 21), boundary="wrap"),
    Case((3, 2, 5), (13, 5, 11), boundary="mirror"),
    Case((2, 3, 4), (5, 5, 3), in_channels=2, filters=3, groups=2, dilation_rate=(2, 1, 3), boundary="constant=2.5"),
    Case((5, 7, 9), (3, 3, 3), in_channels=33, filters=40, boundary="mirror"),  # channels summed in two parts
    Case((2, 5, 6), (3, 3, 3), in_channels=9, filters=20, groups=2, padding="full", boundary="wrap"),
    Case((3, 3, 29), (3, 3, 5), in_channels=5, filters=7),  # kernel columns in parts of three and two
    Case((3, 4, 15), (2, 3, 7), in_channels=2, filters=16, dilation_rate=(1, 1, 2), boundary="mirror"),
    Case((3, 4, 15), (1, 3, 3), in_channels=33, filters=40, strides=(1, 2, 2)),
    Case((3, 3, 5), (3, 3, 3), in_channels=70, filters=33, padding="valid"),  # several chunks of channels
    Case((4, 4, 4), (3, 3, 3), in_channels=130, filters=80, boundary="nearest"),  # several passes
    Case((2, 3, 5), (1, 1, 1), in_channels=512, filters=20),  # voxels 2 KB apart
    Case((5, 5, 14), (3, 3, 3), groups=3, in_channels=4, filters=8),
    Case((3, 4, 27), (3, 3, 5), groups=21, boundary="mirror"),  # depthwise; the last vector begins earlier
    Case((3, 5, 14), (2, 3, 3), groups=8, filters=2, strides=(1, 2, 2)),
    Case((3, 5, 9), (3, 2, 3), groups=12, in_channels=2, filters=4, dilation_rate=(1, 1, 2)),
    Case((2, 3, 5), (5, 5, 5), groups=5),  # several chunks of taps
    Case((3, 4, 15), (3, 3, 5), in_channels=35),  # few filters; the last vector of channels begins earlier
    Case((3, 4, 9), (1, 3, 3), in_channels=16, filters=3, strides=(1, 2, 2), groups=2),
    Case((9, 8, 21), (3, 4, 5), weights="outer", boundary="mirror"),
    Case((5, 6, 7), (3, 3, 3), weights="symmetric", groups=2, filters=2),
    Case((11, 3, 18), (9, 9, 9), weights="symmetric", boundary="nearest"),
    Case((7, 9, 5), (4, 10, 6), weights="symmetric", padding="full", boundary="wrap"),
    Case((9, 8, 17), (3, 4, 5), weights="symmetric", strides=(2, 3, 2), boundary="symmetric"),
    Case((9, 8, 17), (3, 2, 5), weights="symmetric", dilation_rate=(2, 3, 2)),
    Case((9, 8, 17), (2, 3, 4), weights="outer", strides=(3, 2, 4), dilation_rate=(2, 1, 3)),
    Case((2, 5, 4), (2, 70, 3), weights="symmetric", boundary="constant=2.5"),  # more than one chunk an axis
    Case((8, 7, 20), (9, 7, 9), weights="log"),
    Case((8, 7, 20), (7, 7, 7), weights="two outer", strides=(1, 2, 2)),
    Case((2, 4, 1100), (3, 1, 5), weights="box"),
    Case((9, 8, 37), (7, 6, 5), weights="sparse", boundary="mirror"),
    Case((9, 8, 37), (3, 11, 5), weights="sparse", strides=(1, 2, 3), filters=3),
    Case((9, 8, 17), (5, 5, 5), weights="sparse", strides=(2, 3, 1), in_channels=2, filters=2, groups=2),
    Case((9, 28, 17), (3, 13, 3), weights="sparse", dilation_rate=(2, 2, 3), boundary="wrap"),
    Case((9, 8, 37), (3, 3, 3), weights="cross", boundary="nearest"),
    Case((4, 5, 6), (3, 3, 3), weights="nothing"),
]


def run(
    plan: Plan,
    volume: np.ndarray,
    *,
    slab_depth: int | None = None,
    band: int | None = None,
    out_dtype: str | None = None,
    **kwargs: Any,
) -> np.ndarray:
    """All of a (1, D, H, W, C) volume through a plan, in slabs of some depth and bands of rows, rounded up to whole steps."""
    problem = plan.problem
    out = np.empty(problem.out_shape, out_dtype or plan.dtype)
    depth, height, _ = problem.out_size
    step = -(-(slab_depth or depth) // plan.depth_step) * plan.depth_step
    band = height if band is None else -(-band // plan.block_alignment.height) * plan.block_alignment.height
    with Team(plan.threads) as team:
        for start, first in itertools.product(range(0, depth, step), range(0, max(height, 1), max(band, 1))):
            stop, last = min(start + step, depth), min(first + band, height)
            planes = problem.source_indices(0, start, stop)
            rows = problem.source_indices(1, first, last) if band < height else None
            plan.convolve_slab(volume[0], out[0, start:stop, first:last], planes, team, rows=rows, **kwargs)
    return out


def check(algorithm: str, case: Case, precision: str) -> bool:
    """Compare with the oracle; False if the algorithm declines."""
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    chosen = next(a for a in ALGORITHMS if a.name == algorithm)
    reason = chosen.reject(problem, weights)
    if reason is not None:
        assert isinstance(reason, str)
        assert reason
        return False
    got = run(make_plan(problem, weights, dtype=precision, algorithm=algorithm, threads=2), volume)
    # The oracle gets the weights as the arithmetic has them: their rounding is not the algorithm's error.
    expected = case.expected(volume, weights.astype(precision))
    assert got.shape == expected.shape
    scale = np.abs(weights).sum() * max(np.abs(volume).max(), abs(Boundary.parse(case.boundary).value))
    assert np.abs(got - expected).max(initial=0) <= TOLERANCE[precision] * scale
    return True


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("algorithm", [a.name for a in ALGORITHMS])
def test_listed_case(algorithm: str, case: Case, precision: str) -> None:
    accepted = check(algorithm, case, precision)
    assert accepted or algorithm != "direct", "direct accepts every legal problem"


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_accepts_at_least_one_listed_case(algorithm: Any) -> None:
    def accepts(case: Case) -> bool:
        volume, weights = case.arrays()
        return algorithm.reject(case.spec().resolve(volume.shape, weights.shape), weights) is None

    assert any(accepts(case) for case in CASES)


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
@settings(max_examples=60, deadline=None)
@given(case=cases, precision=st.sampled_from(["float32", "float64"]))
def test_random_case(algorithm: str, case: Case, precision: str) -> None:
    extent = [(k - 1) * d + 1 for k, d in zip(case.kernel, case.dilation_rate, strict=True)]
    if not isinstance(case.padding, str):  # leave out problems without an output
        spans = [n + sum(p) for n, p in zip(case.size, case.padding, strict=True)]
        if any(span < e for span, e in zip(spans, extent, strict=True)):
            return
    assert check(algorithm, case, precision) or algorithm != "direct"


def test_flops_count_the_taps_that_are_summed() -> None:
    case = Case((4, 5, 6), (3, 2, 1), in_channels=2, filters=3, groups=2)
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    assert problem.flops == 2 * math.prod(problem.out_shape) * weights[..., 0].size

"""Problems that the tests of the engine share: how one is described, the listed ones, and how one
is run and checked.

A helper of tests, and no test itself: `test_every_algorithm.py` and the tests of single algorithms
import it.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle

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
    depth, height, width = (
        np.exp(-rng.uniform(0.02, 0.2) * (np.arange(n) - (n - 1) / 2) ** 2) for n in shape[:3]
    )
    return np.broadcast_to(
        np.einsum("d,h,w->dhw", depth, height, width)[..., None, None], shape
    ).copy()


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
    "sparse": lambda rng, shape: (
        rng.standard_normal(shape) * (rng.random((*shape[:3], 1, 1)) < 0.1)
    ),
    "cross": lambda rng, shape: (
        rng.standard_normal(shape) * (sum(np.indices(shape[:3]) == 1)[..., None, None] > 1)
    ),
    "nothing": lambda rng, shape: np.zeros(shape),
}


@dataclass(frozen=True)
class Case:
    """One problem: the volume's (D, H, W), channels by group, filters by group, groups, kernel
    size, and geometry.
    """

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
        volume = rng.standard_normal((1, *self.size, self.in_channels * self.groups)).astype(
            np.float32
        )
        return volume, WEIGHTS[self.weights](
            rng, (*self.kernel, self.in_channels, self.filters * self.groups)
        )

    def expected(self, volume: np.ndarray, weights: np.ndarray) -> np.ndarray:
        boundary = Boundary.parse(self.boundary)
        return oracle.conv3d(
            volume,
            weights,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            boundary=boundary.mode,
            constant=boundary.value,
        )


# The algorithms that accept a case, the same on every CPU, and the case. `direct` and `channels`
# accept all of them and are not named again.
ACCEPT_ALL = ("channels", "direct")
LISTED: list[tuple[str, Case]] = [
    ("", Case((5, 6, 7), (1, 1, 1))),
    ("", Case((5, 6, 7), (3, 3, 3))),
    ("", Case((5, 6, 7), (3, 3, 3), padding="valid")),
    ("", Case((4, 5, 6), (3, 2, 4), padding="full", boundary="mirror")),
    ("", Case((1, 1, 1), (3, 3, 3), boundary="mirror")),
    ("fft", Case((2, 3, 4), (5, 5, 5), boundary="wrap")),
    ("", Case((9, 8, 7), (3, 3, 3), strides=(2, 3, 2), boundary="nearest")),
    ("", Case((9, 8, 7), (3, 2, 3), dilation_rate=(2, 1, 3), boundary="symmetric")),
    ("", Case((9, 8, 7), (2, 2, 2), strides=(2, 2, 2), dilation_rate=(2, 3, 2))),
    ("", Case((8, 8, 8), (2, 2, 2), strides=(4, 4, 4))),
    ("", Case((1, 9, 4), (1, 1, 2), strides=(1, 2, 1))),
    ("", Case((2, 30, 4), (2, 19, 1))),  # kernel rows in parts of unequal length
    ("", Case((5, 6, 7), (1, 1, 1), strides=(1, 2, 1))),
    ("", Case((3, 4, 5), (3, 3, 3), padding=((9, 0), (0, 9), (4, 11)), boundary="symmetric")),
    ("", Case((3, 4, 5), (3, 3, 3), padding=((9, 0), (0, 9), (4, 11)), boundary="constant=2.5")),
    ("", Case((4, 4, 20), (3, 3, 3), in_channels=3, filters=5)),
    ("winograd few-filters fft-channels", Case((4, 4, 4), (3, 3, 3), in_channels=16, filters=17)),
    ("depthwise", Case((4, 4, 4), (3, 3, 3), groups=4)),
    ("", Case((4, 4, 4), (3, 3, 3), groups=2, in_channels=2, filters=3, boundary="nearest")),
    ("few-filters", Case((3, 4, 5), (1, 1, 1), in_channels=8, filters=9)),
    ("", Case((11, 5, 5), (9, 1, 1))),
    ("", Case((5, 5, 70), (1, 1, 33), boundary="symmetric")),
    ("fft", Case((10, 10, 10), (9, 9, 9), boundary="nearest")),  # 729 taps: more than one chunk
    ("", Case((2, 9, 1030), (1, 3, 3))),  # wider than a tile
    # rows that are read in place, all but their ends
    ("", Case((7, 9, 131), (3, 3, 3), boundary="mirror")),
    ("", Case((8, 6, 96), (3, 3, 1), padding="valid")),
    ("", Case((5, 7, 100), (1, 3, 5), boundary="constant=2.5", padding="full")),
    ("", Case((5, 6, 128), (1, 1, 1))),
    ("", Case((3, 1, 129), (1, 1, 17), boundary="wrap")),
    ("", Case((4, 5, 97), (3, 2, 4), padding=((2, 3), (1, 0), (30, 5)), boundary="wrap")),
    ("", Case((30, 3, 80), (27, 1, 1), boundary="nearest")),
    ("", Case((2, 11, 90), (3, 9, 1), boundary="symmetric")),
    ("fft", Case((1, 2, 21), (1, 21, 21), boundary="wrap")),
    ("fft", Case((3, 2, 5), (13, 5, 11), boundary="mirror")),
    (
        "fft",
        Case(
            (2, 3, 4),
            (5, 5, 3),
            in_channels=2,
            filters=3,
            groups=2,
            dilation_rate=(2, 1, 3),
            boundary="constant=2.5",
        ),
    ),
    # channels summed in two parts
    (
        "winograd few-filters fft-channels",
        Case((5, 7, 9), (3, 3, 3), in_channels=33, filters=40, boundary="mirror"),
    ),
    (
        "winograd few-filters fft-channels",
        Case(
            (2, 5, 6),
            (3, 3, 3),
            in_channels=9,
            filters=20,
            groups=2,
            padding="full",
            boundary="wrap",
        ),
    ),
    (
        "few-filters",
        Case((3, 3, 29), (3, 3, 5), in_channels=5, filters=7),
    ),  # kernel columns in parts of three and two
    (
        "",
        Case(
            (3, 4, 15),
            (2, 3, 7),
            in_channels=2,
            filters=16,
            dilation_rate=(1, 1, 2),
            boundary="mirror",
        ),
    ),
    ("few-filters", Case((3, 4, 15), (1, 3, 3), in_channels=33, filters=40, strides=(1, 2, 2))),
    # several chunks of channels
    (
        "winograd few-filters fft-channels",
        Case((3, 3, 5), (3, 3, 3), in_channels=70, filters=33, padding="valid"),
    ),
    # several passes
    (
        "winograd few-filters fft-channels",
        Case((4, 4, 4), (3, 3, 3), in_channels=130, filters=80, boundary="nearest"),
    ),
    ("few-filters", Case((2, 3, 5), (1, 1, 1), in_channels=512, filters=20)),  # voxels 2 KB apart
    ("few-filters depthwise", Case((5, 5, 14), (3, 3, 3), groups=3, in_channels=4, filters=8)),
    (
        "few-filters fft fft-channels",
        Case((7, 9, 30), (5, 4, 7), in_channels=20, filters=35, boundary="mirror"),
    ),
    (
        "few-filters fft-channels",
        Case((3, 21, 20), (1, 7, 7), in_channels=8, filters=9, groups=2, padding="valid"),
    ),
    # depthwise; the last vector begins earlier
    ("depthwise", Case((3, 4, 27), (3, 3, 5), groups=21, boundary="mirror")),
    ("depthwise", Case((3, 5, 14), (2, 3, 3), groups=8, filters=2, strides=(1, 2, 2))),
    (
        "depthwise",
        Case((3, 5, 9), (3, 2, 3), groups=12, in_channels=2, filters=4, dilation_rate=(1, 1, 2)),
    ),
    ("depthwise fft", Case((2, 3, 5), (5, 5, 5), groups=5)),  # several chunks of taps
    # few filters; the last vector of channels begins earlier
    ("few-filters", Case((3, 4, 15), (3, 3, 5), in_channels=35)),
    (
        "few-filters",
        Case((3, 4, 9), (1, 3, 3), in_channels=16, filters=3, strides=(1, 2, 2), groups=2),
    ),
    ("separable", Case((9, 8, 21), (3, 4, 5), weights="outer", boundary="mirror")),
    ("separable depthwise", Case((5, 6, 7), (3, 3, 3), weights="symmetric", groups=2, filters=2)),
    ("separable fft", Case((11, 3, 18), (9, 9, 9), weights="symmetric", boundary="nearest")),
    (
        "separable fft",
        Case((7, 9, 5), (4, 10, 6), weights="symmetric", padding="full", boundary="wrap"),
    ),
    (
        "separable",
        Case((9, 8, 17), (3, 4, 5), weights="symmetric", strides=(2, 3, 2), boundary="symmetric"),
    ),
    ("separable", Case((9, 8, 17), (3, 2, 5), weights="symmetric", dilation_rate=(2, 3, 2))),
    (
        "separable",
        Case((9, 8, 17), (2, 3, 4), weights="outer", strides=(3, 2, 4), dilation_rate=(2, 1, 3)),
    ),
    # more than one chunk an axis
    ("separable fft", Case((2, 5, 4), (2, 70, 3), weights="symmetric", boundary="constant=2.5")),
    ("separable fft", Case((8, 7, 20), (9, 7, 9), weights="log")),
    ("separable", Case((8, 7, 20), (7, 7, 7), weights="two outer", strides=(1, 2, 2))),
    ("separable", Case((2, 4, 1100), (3, 1, 5), weights="box")),
    ("fft sparse", Case((9, 8, 37), (7, 6, 5), weights="sparse", boundary="mirror")),
    ("sparse", Case((9, 8, 37), (3, 11, 5), weights="sparse", strides=(1, 2, 3), filters=3)),
    (
        "depthwise sparse",
        Case(
            (9, 8, 17),
            (5, 5, 5),
            weights="sparse",
            strides=(2, 3, 1),
            in_channels=2,
            filters=2,
            groups=2,
        ),
    ),
    (
        "fft sparse",
        Case((9, 28, 17), (3, 13, 3), weights="sparse", dilation_rate=(2, 2, 3), boundary="wrap"),
    ),
    ("separable sparse", Case((9, 8, 37), (3, 3, 3), weights="cross", boundary="nearest")),
    ("separable sparse", Case((4, 5, 6), (3, 3, 3), weights="nothing")),
]
CASES = [case for _, case in LISTED]


def accepting(case: Case) -> set[str]:
    """Names of the algorithms that accept a listed case, as `LISTED` has them."""
    names = next(names for names, listed in LISTED if listed == case)
    return {*names.split(), *ACCEPT_ALL}


def declines(algorithm: str, case: Case) -> str | None:
    """Why an algorithm declines a case; None if it accepts."""
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    reason = next(a for a in ALGORITHMS if a.name == algorithm).declines(problem, weights)
    assert reason is None or (isinstance(reason, str) and reason), reason
    return reason


def run(
    plan: Plan,
    volume: np.ndarray,
    *,
    slab_depth: int | None = None,
    band: int | None = None,
    out_dtype: str | None = None,
    **kwargs: Any,
) -> np.ndarray:
    """All of a (1, D, H, W, C) volume through a plan, in slabs of some depth and bands of rows,
    rounded up to whole steps.
    """
    problem = plan.problem
    out = np.empty(problem.out_shape, out_dtype or plan.dtype)
    depth, height, _ = problem.out_size
    step = -(-(slab_depth or depth) // plan.depth_step) * plan.depth_step
    band = (
        height
        if band is None
        else -(-band // plan.block_alignment.height) * plan.block_alignment.height
    )
    with Team(plan.threads) as team:
        for start, first in itertools.product(
            range(0, depth, step), range(0, max(height, 1), max(band, 1))
        ):
            stop, last = min(start + step, depth), min(first + band, height)
            planes = problem.source_indices(0, start, stop)
            rows = problem.source_indices(1, first, last) if band < height else None
            plan.convolve_slab(
                volume[0], out[0, start:stop, first:last], planes, team, rows=rows, **kwargs
            )
    return out


@functools.lru_cache(maxsize=4)
def by_oracle(case: Case, precision: str) -> np.ndarray:
    """What a case gives; kept for the next algorithm.

    The oracle gets the weights as the arithmetic has them: their rounding is not the algorithm's
    error.
    """
    volume, weights = case.arrays()
    expected = case.expected(volume, weights.astype(precision))
    expected.flags.writeable = False
    return expected


def check(algorithm: str, case: Case, precision: str) -> None:
    """Compare an algorithm that accepts the case with the oracle."""
    reason = declines(algorithm, case)
    assert reason is None, f"{algorithm} declines {case}: {reason}"
    volume, weights = case.arrays()
    problem = case.spec().resolve(volume.shape, weights.shape)
    got = run(make_plan(problem, weights, dtype=precision, algorithm=algorithm, threads=2), volume)
    expected = by_oracle(case, precision)
    assert got.shape == expected.shape
    scale = np.abs(weights).sum() * max(
        np.abs(volume).max(), abs(Boundary.parse(case.boundary).value)
    )
    assert np.abs(got - expected).max(initial=0) <= TOLERANCE[precision] * scale

"""Bricks and Richardson-Lucy iterations, held to explicit sums in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from conv3d_cli.engine import Team, deconvolution
from conv3d_cli.engine.deconvolution import UPDATE, Blur, Change, choose_bricks
from conv3d_cli.engine.fields import Field, FileField
from conv3d_cli.engine.richardson_lucy import SMOOTH, Rules, fields_needed, richardson_lucy
from conv3d_cli.model.spec import Boundary

MODES = ["zeros", "constant=2.5", "nearest", "symmetric", "mirror", "wrap", "mirror-one"]
SIZE, TAPS = (8, 13, 30), (3, 4, 5)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Sums:
    """H and H' by a sum over the taps, as they are defined."""

    def __init__(self, kernel: Any, boundary: Boundary) -> None:
        self.kernel, self.boundary = kernel, boundary

    def _taps(self, size: tuple[int, ...]) -> Iterator[tuple[float, Any, Any]]:
        before = [(taps - 1) // 2 for taps in self.kernel.shape]
        for tap in np.ndindex(self.kernel.shape):
            along = [
                np.array([self.boundary.source_index(p + t - low, n) for p in range(n)])
                for n, t, low in zip(size, tap, before, strict=True)
            ]
            d, h, w = (one >= 0 for one in along)
            inside = d[:, None, None] & h[:, None] & w
            yield self.kernel[tap], np.ix_(*(np.maximum(one, 0) for one in along)), inside

    def blurred(self, x: Any) -> Any:
        return sum(
            weight * np.where(inside, x[places], self.boundary.value)
            for weight, places, inside in self._taps(x.shape)
        )

    def adjoint(self, y: Any) -> Any:
        found = np.zeros_like(y)
        for weight, places, inside in self._taps(y.shape):
            np.add.at(found, places, weight * np.where(inside, y, 0))
        return found

    def estimate(self, y: Any, rules: Rules, real: Any) -> Any:
        least = 4 * np.finfo(real).eps * y.max()
        x = np.full(y.shape, max(y.mean() - rules.background, least))
        if rules.from_data:
            x = np.maximum(y, least)
        norm, point, gain = self.adjoint(np.ones(y.shape)), x, None
        for number in range(rules.iterations):
            seen = np.maximum(self.blurred(point) + rules.background, least)
            change = self.adjoint(y / seen) / norm
            if rules.tv:
                slopes = [np.diff(point, axis=a, append=np.take(point, [-1], a)) for a in range(3)]
                length = np.sqrt(sum(s * s for s in slopes) + (SMOOTH * y.mean()) ** 2)
                bend = sum(np.diff(s / length, axis=a, prepend=0) for a, s in enumerate(slopes))
                change = change / (1 - rules.tv * bend)
            new = np.maximum(point * change, 0)
            if rules.accelerate:
                last, gain = gain, new - point
                rate = 0.0 if last is None else np.clip((gain * last).sum() / (last**2).sum(), 0, 1)
                point = new if number == 0 else np.maximum(new + rate * (new - x), 0)
            else:
                point = new
            x = new
        return x


@pytest.fixture
def team() -> Iterator[Team]:
    with Team(2) as made:
        yield made


@pytest.fixture(params=["one brick", "several bricks"])
def bricks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    several = request.param == "several bricks"
    monkeypatch.setattr(deconvolution, "SEVERAL", 0.01 if several else 100)
    if several:
        monkeypatch.setattr(deconvolution, "MOST_SPECTRUM_BYTES", 200_000)
    choose_bricks.cache_clear()
    yield request.param
    choose_bricks.cache_clear()


def kernel(taps: tuple[int, ...] = TAPS) -> Any:
    weights = np.random.default_rng(5).random(taps)
    return weights / weights.sum()


def data(psf: Any, boundary: Boundary, size: tuple[int, ...] = SIZE) -> Any:
    rng = np.random.default_rng(6)
    return rng.poisson(20 * Sums(psf, boundary).blurred(rng.random(size) ** 8) + 0.1).astype(float)


def solved(
    y: Any,
    psf: Any,
    boundary: Boundary,
    rules: Rules,
    team: Team,
    real: np.dtype[Any] = FLOAT32,
    on_disk: bool = False,
    done: Callable[[int, Field], None] = lambda number, field: None,
) -> Any:
    def new() -> Field:
        if on_disk:
            return FileField(tempfile.TemporaryFile(), y.shape, real)  # the field closes it
        return Field(np.empty(y.shape, real))

    made: list[Field] = []

    def counted() -> Field:
        made.append(new())
        return made[-1]

    given = new()
    given.write(0, y.astype(real))
    blur = Blur(y.shape, psf, boundary, real, team)
    found, _ = richardson_lucy(blur, given, counted, rules, y.mean(), y.max(), done)
    assert len(made) == fields_needed(rules, y.shape, psf.shape, real)
    result = found.read(0, y.shape[0]).copy()
    for field in (*made, given):
        field.close()
    return result


@pytest.mark.parametrize("real", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_h_and_its_adjoint(mode: str, real: np.dtype[Any], bricks: str, team: Team) -> None:
    psf, boundary = kernel(), Boundary.parse(mode)
    x = np.random.default_rng(7).random(SIZE)
    blur = Blur(SIZE, psf, boundary, real, team)
    assert (max(blur.bricks.parts) > 1) == (bricks == "several bricks")
    ones = blur.coverage(False, np.ones_like)
    for adjoint in (False, True):
        out, one = Field(np.zeros(SIZE, real)), Field(np.ones(SIZE, real))
        blur.apply(Field(x.astype(real)), adjoint, Change(UPDATE, one, out), ones)
        sums = Sums(psf, boundary)
        expected = sums.adjoint(x) if adjoint else sums.blurred(x)
        off = 1e-14 if real == FLOAT64 else 3e-6
        np.testing.assert_allclose(out.voxels, expected, rtol=0, atol=off)
        # what it makes of ones, without the boundary's constant
        plain = Sums(psf, Boundary(boundary.mode) if boundary.mode != "constant" else Boundary())
        covered = plain.adjoint(np.ones(SIZE)) if adjoint else plain.blurred(np.ones(SIZE))
        found = blur.coverage(adjoint, lambda sums: sums).planes_of(0, SIZE[0])
        np.testing.assert_allclose(found, covered, rtol=0, atol=1e-14 if real == FLOAT64 else 1e-6)


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(
    "rules",
    [
        Rules(5),
        Rules(5, background=1.0),
        Rules(5, tv=0.01),
        Rules(6, accelerate=True),
        Rules(4, from_data=True),
        Rules(4, accelerate=True, tv=0.01, background=0.5, from_data=True),
        Rules(1),
    ],
    ids=str,
)
def test_iterations_are_those_of_the_definition(
    rules: Rules, on_disk: bool, bricks: str, team: Team
) -> None:
    psf, boundary = kernel(), Boundary("symmetric")
    y = data(psf, boundary)
    for real, off in ((FLOAT32, 1e-5), (FLOAT64, 1e-12)):
        expected = Sums(psf, boundary).estimate(y, rules, real)
        found = solved(y, psf, boundary, rules, team, real, on_disk)
        np.testing.assert_allclose(found, expected, rtol=0, atol=off * expected.max())


@pytest.mark.parametrize("mode", MODES)
def test_every_boundary(mode: str, bricks: str, team: Team) -> None:
    psf, boundary = kernel(), Boundary.parse(mode)
    y, rules = data(psf, boundary), Rules(5)
    expected = Sums(psf, boundary).estimate(y, rules, FLOAT32)
    found = solved(y, psf, boundary, rules, team)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize("mode", ["symmetric", "wrap"])
def test_another_filter_in_place_of_the_adjoint(mode: str, bricks: str, team: Team) -> None:
    """Rows then move in the plane, between one transform and the next, by more than they are."""
    taps, size = (3, 7, 5), (6, 41, 30)
    psf, back, boundary = kernel(taps), kernel(taps)[::-1, ::-1, :].copy(), Boundary(mode)
    y = data(psf, boundary, size)
    forward, backward = Sums(psf, boundary), Sums(back, boundary)
    expected = np.full(size, y.mean())
    for _ in range(4):
        expected = expected * backward.blurred(y / forward.blurred(expected))
    blur = Blur(size, psf, boundary, FLOAT64, team, back)
    found, _ = richardson_lucy(
        blur, Field(y), lambda: Field(np.empty(size)), Rules(4), y.mean(), y.max()
    )
    np.testing.assert_allclose(found.voxels, expected, rtol=0, atol=1e-12 * expected.max())


@pytest.mark.parametrize("size", [(1, 30, 40), (9, 9, 9), (64, 1, 33), (3, 200, 17)])
def test_thin_volumes(size: tuple[int, int, int], team: Team) -> None:
    taps = tuple(min(n, t) for n, t in zip(size, (5, 9, 7), strict=True))
    psf, boundary = kernel(taps), Boundary("mirror")
    y = data(psf, boundary, size)
    expected = Sums(psf, boundary).estimate(y, Rules(3), FLOAT32)
    found = solved(y, psf, boundary, Rules(3), team)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def test_a_kernel_as_large_as_the_volume(team: Team) -> None:
    psf, boundary = kernel((6, 9, 11)), Boundary("symmetric")
    y = data(psf, boundary, (6, 9, 11))
    expected = Sums(psf, boundary).estimate(y, Rules(3), FLOAT32)
    found = solved(y, psf, boundary, Rules(3), team)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def test_bricks_stay_small_where_they_can() -> None:
    for size, taps in (((512, 1024, 1024), (31, 15, 15)), ((2000, 3000, 3000), (61, 61, 61))):
        bricks = choose_bricks(size, taps, 4)
        assert bricks is not None
        assert 8 * np.prod(bricks.lengths) <= deconvolution.MOST_SPECTRUM_BYTES
    one = choose_bricks((128, 256, 256), (31, 15, 15), 4)
    assert one is not None
    # a row of 256 voxels and 14 of the halo: 288 real numbers
    assert one == ((1, 1, 1), (160, 288, 144))
    large = choose_bricks((128, 256, 256), (128, 256, 256), 4)
    assert large is not None
    assert large.lengths == (256, 512, 256)
    assert choose_bricks((2, 1500, 1200), (1, 700, 1), 4) is None


def test_where_a_brick_ends_makes_no_difference(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    y, psf = rng.random((50, 60, 70)) ** 6, kernel((9, 7, 5))
    estimates = []
    for most in (1 << 30, 1 << 19):
        monkeypatch.setattr(deconvolution, "SEVERAL", 100)
        monkeypatch.setattr(deconvolution, "MOST_SPECTRUM_BYTES", most)
        choose_bricks.cache_clear()
        estimates.append(solved(y, psf, Boundary("nearest"), Rules(20), team))
        parts = choose_bricks((50, 60, 70), (9, 7, 5), 4).parts
        assert (parts == (1, 1, 1)) == (most == 1 << 30)
    choose_bricks.cache_clear()
    one, several = estimates
    assert np.abs(one - several).max() < 1e-6 * one.max()


@pytest.mark.parametrize(
    "rules", [Rules(4), Rules(4, accelerate=True, stop=1e-9, tv=0.01)], ids=str
)
def test_the_same_bits_on_disk_and_for_any_threads(rules: Rules, bricks: str) -> None:
    psf, boundary = kernel(), Boundary("constant", 1.0)
    y = data(psf, boundary)
    found = []
    for threads, on_disk in ((1, False), (3, False), (2, True)):
        with Team(threads) as team:
            found.append(solved(y, psf, boundary, rules, team, on_disk=on_disk))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_stop_ends_where_little_changes(team: Team) -> None:
    psf, boundary = kernel(), Boundary("symmetric")
    y = data(psf, boundary)
    estimates: list[Any] = []

    def done(number: int, field: Field) -> None:
        estimates.append(field.read(0, SIZE[0]).astype(float))

    solved(y, psf, boundary, Rules(40, stop=0.02), team, done=done)
    changes = [np.abs(b - a).sum() / a.sum() for a, b in itertools.pairwise(estimates)]
    assert 3 < len(estimates) < 40
    assert changes[-1] <= 0.02
    assert all(change > 0.02 for change in changes[:-1])


def test_the_light_is_kept(team: Team) -> None:
    """H'1 / H'1 is 1, so that sum(H'1 · x) = sum(y) after every iteration without background."""
    psf = kernel()
    for mode in ("symmetric", "zeros", "nearest"):
        boundary = Boundary(mode)
        y = data(psf, boundary)
        found = solved(y, psf, boundary, Rules(7), team, FLOAT64)
        weights = Sums(psf, boundary).adjoint(np.ones(SIZE))
        assert abs((weights * found).sum() / y.sum() - 1) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["avx2", "baseline"])
def test_the_same_bits_on_every_class_of_cpus(cpu: str, team: Team) -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from conv3d_cli import Kernel, operate\n"
        "rng = np.random.default_rng(3)\n"
        "y = rng.random((14, 21, 40), dtype=np.float32) ** 4\n"
        "k = Kernel(rng.random((5, 4, 7)))\n"
        "for text in ('iterations=4', 'iterations=4:accelerate=yes:tv=0.01'):\n"
        "    found = operate(y, 'deconvolve:' + text, k)\n"
        "    print(hashlib.sha256(found.tobytes()).hexdigest())\n"
    )
    prints = {
        name: subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **({"CONV3D_CPU": name} if name else {})},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("", cpu)
    }
    assert prints[""] == prints[cpu]

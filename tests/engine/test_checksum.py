"""Checksums: planted faults are found and repaired, clean tiles never fail, and no bit of a result changes.

A fault is planted between two functions of the machine code: a callback takes the place of one of
them, calls it, and flips a bit of what it has written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import Case

from conv3d_cli.engine import Team, make_plan
from conv3d_cli.engine.checksum import TOLERANCE
from conv3d_cli.engine.plan import Plan
from conv3d_cli.engine.step import F
from conv3d_cli.engine.weighting import Certainty
from conv3d_cli.errors import FaultError

FAULT = 1e-4  # of max|x| times the sum of |w|: what must be found in the sums
PLACES = ("packed", "weights", "sums", "output")
PROBLEMS = {
    "direct": Case((9, 14, 37), (3, 3, 3), boundary="symmetric"),
    "direct in place": Case((9, 14, 97), (3, 3, 3), boundary="symmetric"),
    "direct strides": Case((9, 12, 40), (3, 4, 3), filters=3, strides=(1, 2, 2), in_channels=2),
    "direct dilation": Case((9, 12, 40), (3, 2, 5), dilation_rate=(2, 1, 3), boundary="wrap"),
    "separable": Case((9, 20, 37), (5, 5, 5), weights="symmetric", boundary="mirror"),
    "fft": Case((12, 20, 37), (7, 7, 7), boundary="nearest"),
    "sparse": Case((9, 20, 37), (5, 5, 5), weights="sparse"),
    "winograd": Case((8, 9, 9), (3, 3, 3), in_channels=16, filters=16),
    "channels": Case((7, 9, 11), (3, 3, 3), in_channels=16, filters=32, strides=(1, 2, 1)),
    "few-filters": Case((7, 9, 11), (3, 3, 3), in_channels=32, filters=2),
    "depthwise": Case((7, 9, 11), (3, 3, 3), groups=32),
}


class Bench:
    """A checked plan, its input, and its right output."""

    def __init__(self, name: str, precision: str = "float32", out: str | None = None) -> None:
        case = PROBLEMS[name]
        volume, weights = case.arrays()
        self.volume = np.ascontiguousarray(volume[0], precision)
        self.problem = case.spec().resolve(volume.shape, weights.shape)
        self.weights = np.asarray(weights, np.float64)
        self.precision, self.algorithm = precision, name.split()[0]
        shape = (*self.problem.out_size, self.problem.filters)
        self.out = np.zeros(shape, out or precision)
        self.planes = self.problem.source_indices(0, 0, self.problem.out_size[0])
        self.plan = self.fresh()
        self.run()
        self.right = self.out.copy()
        sums = np.abs(self.weights).sum(axis=(0, 1, 2, 3)).max()
        self.scale = float(np.abs(self.volume).max() * sums)

    def fresh(self, checked: bool = True) -> Plan:
        plan = make_plan(self.problem, self.weights, dtype=self.precision, algorithm=self.algorithm)
        if checked:
            plan.check()
        return plan

    def run(self, **more: Any) -> None:
        self.out[...] = 0
        with Team(1) as team:
            self.plan.convolve_slab(self.volume, self.out, self.planes, team, **more)


def flip(array: np.ndarray, index: int, bit: int) -> None:
    value = np.array(array.flat[index]).reshape(1)
    bits = value.view(f"u{array.itemsize}")
    bits ^= np.array(1, bits.dtype) << np.array(bit, bits.dtype)
    array.flat[index] = value[0]


class Planter:
    """Flips one bit, once, after a function of the machine code has run for the n-th time.

    place : str     "packed" or "sums" or "output"
    choose : callable   (array) -> index and bit to flip
    """

    def __init__(
        self, place: str, turn: int, choose: Callable[..., tuple[int, int] | None]
    ) -> None:
        self.place, self.turn, self.choose = place, turn, choose
        self.before, self.after, self.planted = 0.0, 0.0, False

    def install(self, plan: Plan, out: np.ndarray, patch: pytest.MonkeyPatch) -> None:
        assert plan.checks is not None
        surround = plan.checks.surround

        def planted(step: Any, codes: Any) -> None:
            surround(step, codes)
            field = {"packed": F.plain_pack, "sums": F.activate, "output": F.plain_store}[
                self.place
            ]
            real = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(step[field])

            def around(address: int) -> None:
                if self.place == "sums":
                    self._plant(step, plan, out)
                real(address)
                if self.place != "sums":
                    self._plant(step, plan, out)

            self.callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(around)
            step[field] = ctypes.cast(self.callback, ctypes.c_void_p).value or 0

        patch.setattr(plan.checks, "surround", planted)

    def _plant(self, step: Any, plan: Plan, out: np.ndarray) -> None:
        self.turn -= 1
        if self.turn >= 0 or self.planted:
            return
        found = self.choose(step, plan, out)
        if found is None:
            return
        array, index, bit = found
        self.before = float(array.reshape(-1)[index])
        flip(array, index, bit)
        self.after = float(array.reshape(-1)[index])
        self.planted = True


def numbers_at(address: int, count: int, dtype: Any) -> np.ndarray:
    """The memory of a loop as an array."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)


def place_in(place: str, rng: np.random.Generator, step: Any, bench: Bench) -> Any:
    """An array, an index of a number in use, and a bit, to be flipped now."""
    real = np.dtype(bench.precision)
    layout = bench.plan.prepared.layout
    if place == "packed":
        first = step[F.scratch] + real.itemsize * step[F.slot] * step[F.plane_step]
        channel = int(rng.integers(step[F.channels]))
        height = (step[F.height] - 1) * step[F.stride_h] + step[F.extent_h]
        width = (step[F.width] - 1) * step[F.stride_w] + step[F.extent_w]
        at = int(rng.integers(height)) * step[F.row_step]
        position = int(rng.integers(width))
        if step[F.packed_stop] <= position < step[F.packed_start]:  # read in place
            position = step[F.packed_stop] - 1
        if layout.pack == "rows":
            stride = step[F.stride_w]
            at += channel * step[F.channel_step]
            at += position % stride * step[F.pitch] + position // stride
        else:
            at += position * step[F.pitch] + channel
        return numbers_at(first + real.itemsize * at, 1, real)
    if place == "sums":
        plane, row = (int(rng.integers(step[f])) for f in (F.step_planes, F.block_rows))
        column, filter_ = (int(rng.integers(step[f])) for f in (F.width, F.filters))
        at = (
            filter_ * step[F.acc_filter_step]
            + plane * step[F.acc_plane_step]
            + row * step[F.acc_row_step]
            + column * step[F.acc_column_step]
        )
        return numbers_at(step[F.accumulator] + real.itemsize * at, 1, real)
    index = [
        step[F.group] * step[F.filters] + int(rng.integers(step[F.filters])),
        step[F.step_plane] + int(rng.integers(step[F.step_planes])),
        step[F.row] + step[F.block_row] + int(rng.integers(step[F.block_rows])),
        step[F.column] + int(rng.integers(step[F.width])),
    ]
    return bench.out[index[1], index[2], index[3], index[0] : index[0] + 1]


def plant(bench: Bench, place: str, rng: np.random.Generator, patch: pytest.MonkeyPatch) -> bool:
    """Run once with a fault. Returns whether there was one that must be found.

    A flip in the sums must be above FAULT of the scale; elsewhere any must be found.
    """
    bit = int(rng.integers(8 * np.dtype(bench.precision).itemsize))
    if place == "weights":
        weights = bench.plan.prepared.weights
        index = int(rng.integers(weights.size))
        bit = int(rng.integers(8 * weights.itemsize))
        flip(weights, index, bit)
        bench.run()
        return True
    if place == "output":
        bit = int(rng.integers(8 * bench.out.itemsize))

    def choose(step: Any, plan: Plan, out: np.ndarray) -> Any:
        array = place_in(place, rng, step, bench)
        if place == "sums":
            flipped = array.copy()
            flip(flipped, 0, bit)
            if not abs(float(flipped[0]) - float(array[0])) > FAULT * bench.scale:
                return None  # too small to be promised: leave it
        return array, 0, bit

    planter = Planter(place, int(rng.integers(12)), choose)
    with patch.context() as inner:
        planter.install(bench.plan, bench.out, inner)
        bench.run()
    return planter.planted


def find_faults(count: int, patch: pytest.MonkeyPatch, names: tuple[str, ...]) -> int:
    """Plant faults in turn in all places of these problems. Returns how many had to be found."""
    planted, rng = 0, np.random.default_rng(0)
    benches = [Bench(name) for name in names]
    turn = 0
    while planted < count:
        bench, place = benches[turn % len(benches)], PLACES[turn // len(benches) % len(PLACES)]
        turn += 1
        assert bench.plan.checks is not None
        faults = bench.plan.checks.counts.faults
        faults.clear()
        with np.errstate(all="ignore"):
            due = plant(bench, place, rng, patch)
        if due:
            planted += 1
            assert faults, f"a fault in {place} of {bench.algorithm} was not found"
        # repaired by the direct sum, which rounds differently
        difference = np.abs(bench.out.astype(float) - bench.right)
        assert difference.max() <= FAULT * bench.scale
        if faults:
            assert difference.max() <= 1e-5 * bench.scale
    return planted


@pytest.mark.parametrize("name", PROBLEMS)
def test_planted_faults_are_found_and_repaired(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_faults(16, monkeypatch, (name,)) == 16


@pytest.mark.slow
def test_ten_thousand_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_faults(10_000, monkeypatch, tuple(PROBLEMS)) == 10_000


def clean_volume(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Volumes whose rounding errors add up in different ways."""
    if kind == "noise":
        return rng.standard_normal(shape)
    if kind == "constant":
        return np.full(shape, rng.uniform(-1000, 1000))
    if kind == "labels":
        return rng.integers(0, 5, shape) * 0.1
    if kind == "periodic":
        return np.resize(rng.standard_normal(16), shape)
    if kind == "peak":
        volume = np.full(shape, 1e-3)
        volume[tuple(n // 2 for n in shape)] = 1e6
        return volume
    return np.cumsum(rng.standard_normal(shape), axis=2) + 1e4


KINDS = ("noise", "constant", "labels", "periodic", "peak", "smooth")


def check_clean_tiles(count: int, names: tuple[str, ...], precision: str) -> float:
    """Compute clean tiles; none may fail. Returns the largest deviation, of what is allowed."""
    rng, worst, done = np.random.default_rng(1), 0.0, 0
    benches = [Bench(name, precision) for name in names]
    while done < count:
        for bench in benches:
            assert bench.plan.checks is not None
            for kind in KINDS:
                bench.volume = clean_volume(kind, bench.volume.shape, rng).astype(precision)
                bench.run()
            counts = bench.plan.checks.counts
            assert not counts.faults, (bench.algorithm, counts.faults[0])
            assert not counts.unchecked
            worst = max(worst, counts.worst / TOLERANCE[precision])
        done = sum(b.plan.checks.counts.steps for b in benches if b.plan.checks is not None)
    return worst


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_clean_tiles_pass(name: str, precision: str) -> None:
    assert check_clean_tiles(60, (name,), precision) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_hundred_thousand_clean_tiles_pass(precision: str) -> None:
    assert check_clean_tiles(100_000, tuple(PROBLEMS), precision) < 0.5


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("out", ["float32", "float64", "int16", "uint8"])
def test_checks_change_no_bit(name: str, out: str) -> None:
    bench = Bench(name, out=out)
    bias = np.linspace(-1, 1, bench.problem.filters)

    def activation(sums: np.ndarray) -> None:
        np.maximum(sums, 0, out=sums)

    for more in ({}, {"bias": bias}, {"bias": bias, "activation": activation}):
        bench.plan = bench.fresh()
        bench.run(**more)
        checked = bench.out.copy()
        assert bench.plan.checks is not None
        assert not bench.plan.checks.counts.faults
        assert bench.plan.checks.counts.steps > 0
        bench.plan = bench.fresh(checked=False)
        bench.run(**more)
        np.testing.assert_array_equal(checked, bench.out)


@pytest.mark.parametrize("name", ["direct", "fft", "winograd"])
def test_tiles_with_nan_are_counted_as_unchecked(name: str) -> None:
    bench = Bench(name)
    bench.volume[0, 0, 0] = np.nan
    bench.run()
    assert bench.plan.checks is not None
    counts = bench.plan.checks.counts
    assert 0 < counts.unchecked < counts.steps or counts.steps == 2
    assert not counts.faults
    assert np.isnan(bench.out).any()
    assert np.isfinite(bench.out).any()


def test_a_fault_in_a_masked_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, rng = Bench("direct"), np.random.default_rng(2)
    mask = (rng.random(bench.volume.shape[:3]) > 0.3).astype(np.float32)
    positions = tuple(
        bench.problem.source_indices(axis, 0, bench.problem.out_size[axis]) for axis in range(3)
    )
    certainty = Certainty(mask=mask, positions=positions)
    bench.run(certainty=certainty)
    right = bench.out.copy()
    assert bench.plan.checks is not None
    faults = bench.plan.checks.counts.faults
    assert not faults
    for place in ("packed", "sums", "output"):
        planter = Planter(
            place, 2, lambda step, plan, out, p=place: (place_in(p, rng, step, bench), 0, 29)
        )
        with monkeypatch.context() as inner:
            planter.install(bench.plan, bench.out, inner)
            bench.run(certainty=certainty)
        assert planter.planted, place
        assert faults, place
        faults.clear()
        np.testing.assert_allclose(bench.out, right, atol=1e-5 * bench.scale)


def test_a_fault_that_stays_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("direct")
    assert bench.plan.checks is not None
    for plan in (bench.plan, bench.plan.fallback):
        assert plan.checks is not None
        monkeypatch.setattr(plan.checks, "weights_intact", lambda: False)
    with pytest.raises(FaultError, match=r"packed weights of a tile .* failed the checksum twice"):
        bench.run()

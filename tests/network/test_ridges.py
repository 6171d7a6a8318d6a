"""Ridges and tensors on shapes of known size, and eigenvalues held to LAPACK's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from conv3d_cli import operate
from conv3d_cli.engine import Team
from conv3d_cli.engine.derivatives import Extended, Taps, compute_formula, compute_largest
from conv3d_cli.errors import Conv3DError, ShapeError
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import Volume
from conv3d_cli.network.graph import Node
from conv3d_cli.network.operations.base import Shape
from conv3d_cli.network.operations.catalogue import make_operation
from conv3d_cli.network.operations.gaussian import gaussian_filters
from conv3d_cli.network.operations.ridges import Ridges

Array = np.ndarray[Any, Any]
RADIUS = 4.0
SIZE = 41
METHODS = ("frangi", "sato", "jerman", "meijering")


def soft(distance: Array) -> Array:
    """1 inside, 0 outside, with an edge of one voxel; distance: to the surface."""
    return np.clip(0.5 - distance, 0, 1)


def axes(size: int = SIZE) -> Array:
    return np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij")


def tube(axis: int, radius: float = RADIUS) -> Array:
    across = [x for n, x in enumerate(axes()) if n != axis]
    return soft(np.hypot(*across) - radius)


def centre(volume: Array) -> float:
    return float(volume[(SIZE // 2,) * 3])


def ridges(x: Array, scales: str, **given: Any) -> Array:
    text = ":".join(f"{name}={value}" for name, value in given.items())
    return operate(x, f"ridges:scales={scales}" + (f":{text}" if text else ""))


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["random", "two equal", "nearly equal", "three equal", "diagonal"])
def test_eigenvalues_are_those_of_lapack(kind: str, real: Any) -> None:
    """Errors are below 2e-7 of the largest eigenvalue for float32, and 4e-15 for float64."""
    rng = np.random.default_rng(1)
    count = 4096
    values = rng.standard_normal((count, 3)) * 10.0 ** rng.uniform(-6, 6, (count, 1))
    if kind == "two equal":
        values[:, 1] = values[:, 0]
    elif kind == "nearly equal":
        values[:, 1] = values[:, 0] * (1 + 10.0 ** rng.uniform(-15, -3, count))
    elif kind == "three equal":
        values[:] = values[:, :1]
    turns = np.linalg.qr(rng.standard_normal((count, 3, 3)))[0]
    if kind == "diagonal":
        turns[:] = np.eye(3)
    matrices = np.einsum("nij,nj,nkj->nik", turns, values, turns)
    entries = [matrices[:, a, b] for a, b in ((0, 0), (0, 2), (2, 2), (0, 1), (1, 2), (1, 1))]
    fields = np.stack(entries, 1).astype(real).reshape(16, 16, 16, 6)
    # a window of one voxel lets the fields through
    taps = Taps(np.broadcast_to([[[1.0]], [[0.0]], [[0.0]]], (3, 3, 1)).copy(), (0, 0, 0))
    taps.weights[:, 0, 0] = 1
    every = list(range(16))
    out = np.empty((16, 16, 16, 3), real)
    with Team(2) as team:
        compute_formula(
            "window",
            "structure+eigenvalues",
            Extended(fields, (every, every, every)),
            [taps],
            np.eye(3).reshape(1, 9),
            out,
            team,
        )
    rounded = np.empty_like(matrices)
    for n, (a, b) in enumerate(((0, 0), (0, 2), (2, 2), (0, 1), (1, 2), (1, 1))):
        rounded[:, a, b] = rounded[:, b, a] = fields.reshape(-1, 6)[:, n]
    exact = np.linalg.eigvalsh(rounded)[:, ::-1]
    size = np.abs(exact).max(axis=1, keepdims=True)
    worst = (np.abs(out.reshape(-1, 3) - exact) / size).max()
    assert worst < (2e-7 if real == np.float32 else 4e-15)
    assert (np.diff(out.reshape(-1, 3), axis=1) <= 0).all()


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_the_largest_number_is_that_of_the_voxels_alone(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of every width end within a vector; what memory holds beyond them does not count."""
    rng = np.random.default_rng(2)
    taps = Taps(np.zeros((3, 3, 1)), (0, 0, 0))
    taps.weights[:, 0, 0] = 1
    empty = np.empty

    def large(shape: Any, dtype: Any = float) -> Array:
        made = empty(shape, dtype)
        if made.dtype == np.uint8:
            made.fill(0x7E)  # 8e37 as float32, 1e301 as float64
        return made

    monkeypatch.setattr(np, "empty", large)
    with Team(2) as team:
        for width in range(1, 41):
            fields = rng.standard_normal((2, 3, width, 6)).astype(real)
            fields[0, 0, width // 2, 3] = np.nan
            extended = Extended(fields, (range(2), range(3), range(width)))
            found = compute_largest(
                "window", "largest-norm", extended, [taps], np.ones((1, 1)), (2, 3, width), team
            )
            # DD, DW, WW, DH, HW, HH: what stands beside the diagonal counts twice
            norms = np.sqrt(fields.astype(float) ** 2 @ np.array([1.0, 2, 1, 2, 2, 1]))
            expected = np.nanmax(norms, axis=(1, 2))[:, None]
            np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(real).eps)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0, 2.5])
def test_filters_differentiate_polynomials_exactly(sigma: float) -> None:
    k = np.arange(len(gaussian_filters(sigma)[0])) - len(gaussian_filters(sigma)[0]) // 2
    for order, filters in enumerate(gaussian_filters(sigma)):
        for power in range(order + 1):
            wanted = float(power == order)
            assert filters @ (k**power / math.factorial(power)) == pytest.approx(wanted, abs=1e-12)


def test_small_scales_are_near_the_continuous_derivatives() -> None:
    """Of a Gaussian spot, whose derivatives are known at every scale."""
    spot, x = 1.0, np.arange(-20, 21.0)
    for sigma, allowed in ((0.5, 0.04), (0.8, 0.022), (1.0, 0.004), (2.0, 0.004)):
        wide = math.hypot(spot, sigma)
        line = np.exp(-(x**2) / (2 * spot**2)) / spot
        exact = (x**2 / wide**4 - 1 / wide**2) * np.exp(-(x**2) / (2 * wide**2)) / wide
        got = np.correlate(line, gaussian_filters(sigma)[2], "same")
        assert np.abs(got - exact).max() < allowed * np.abs(exact).max()


def test_a_tube_answers_most_at_its_scale() -> None:
    """A tube of radius r with sharp edges: at r / √2; the answer falls as r²/2σ² exp(-r²/2σ²)."""
    x = tube(2)
    scales = np.arange(1.5, 6, 0.5)
    answers = np.array([centre(ridges(x, f"{s}vox", method="sato")) for s in scales])
    ratio = RADIUS**2 / (2 * scales**2)
    np.testing.assert_allclose(answers, ratio * np.exp(-ratio), rtol=0.02, atol=7e-3)
    assert abs(scales[answers.argmax()] - RADIUS / math.sqrt(2)) <= 0.5
    best = centre(ridges(x, ",".join(map(str, scales)) + "vox", method="sato"))
    assert best == answers.max()


@pytest.mark.parametrize("unit", ["vox", "mm"])
def test_the_best_scale_tells_the_radius(unit: str) -> None:
    """Of tubes with sharp edges it is r / √2; in the unit of the scales."""
    spacing = 0.5 if unit == "mm" else 1.0
    scales = spacing * np.arange(1, 6.5, 0.5)
    text = f"ridges:method=sato:scales={','.join(map(str, scales))}{unit}:best_scale=yes"
    for radius in (2.0, 4.0, 6.0):
        volume = Volume(tube(2, radius).astype(np.float32), "zyx", Grid((0.5, 0.5, 0.5), "mm"))
        found = operate(volume, text)
        assert found.components == ("response", "scale")
        response, scale = np.moveaxis(found.data, found.axes.find("c"), 0)
        assert abs(centre(scale) - spacing * radius / math.sqrt(2)) <= 0.26 * spacing
        alone = operate(volume, text.replace(":best_scale=yes", "")).data
        np.testing.assert_array_equal(response, alone.reshape(response.shape))


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_the_best_scale_is_the_first_with_the_largest_response(method: str, real: Any) -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((12, 13, 45)).astype(real)
    x[0, 0, 0] = np.nan
    scales = (1.0, 0.6, 2.2)
    alone = np.stack([ridges(x, f"{s}vox", method=method) for s in scales])
    best = np.where(alone.max(axis=0) > 0, np.array(scales)[alone.argmax(axis=0)], 0)
    best = np.where(np.isnan(alone).any(axis=0), np.nan, best).astype(real)
    assert len(np.unique(best[np.isfinite(best)])) == 4
    found = ridges(x, "1,0.6,2.2vox", method=method, best_scale="yes")
    np.testing.assert_array_equal(found[..., 1], best)
    np.testing.assert_array_equal(found[..., 0], alone.max(axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_tubes_answer_and_plates_and_blobs_do_not(method: str) -> None:
    d, h, w = axes()
    plate, ball = soft(np.abs(d) - RADIUS), soft(np.sqrt(d**2 + h**2 + w**2) - RADIUS)
    given = {"method": method} | ({} if method == "sato" else {"c": 0.2})
    found = [centre(ridges(x, "3vox", **given)) for x in (tube(0), plate, ball)]
    assert found[0] > 0.3
    if method != "meijering":  # which has plates as well
        assert found[1] < 0.15 * found[0]
    if method == "frangi":
        assert found[2] < 0.5 * found[0]


@pytest.mark.parametrize("shape", ["tube", "plate", "blob"])
def test_each_shape_answers_to_its_own(shape: str) -> None:
    d, h, w = axes()
    volumes = {
        "tube": tube(1),
        "plate": soft(np.abs(h) - RADIUS),
        "blob": soft(np.sqrt(d**2 + h**2 + w**2) - RADIUS),
    }
    found = {name: centre(ridges(x, "2.5vox", shape=shape, c=0.1)) for name, x in volumes.items()}
    assert max(found, key=lambda name: found[name]) == shape
    assert found[shape] > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_dark_ridges_are_bright_ones_of_the_negative(method: str) -> None:
    x = np.random.default_rng(0).standard_normal((14, 15, 16)).astype(np.float32)
    bright = ridges(x, "1,2vox", method=method)
    dark = ridges(-x, "1,2vox", method=method, polarity="dark")
    np.testing.assert_array_equal(bright, dark)
    assert bright.any()


@pytest.mark.parametrize("method", METHODS)
def test_turns_and_flips_turn_the_result(method: str) -> None:
    x = np.random.default_rng(0).standard_normal((14, 15, 16))
    found = ridges(x, "1,1.5vox", method=method)
    for change in (
        lambda a: a[::-1],
        lambda a: a[:, :, ::-1],
        lambda a: np.rot90(a, axes=(0, 2)),
        lambda a: a.transpose(2, 0, 1),
    ):
        other = ridges(np.ascontiguousarray(change(x)), "1,1.5vox", method=method)
        np.testing.assert_allclose(other, change(found), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4 / 3])
def test_a_constant_has_no_ridges(method: str, value: float) -> None:
    x = np.full((9, 10, 11), value, np.float32)
    assert not ridges(x, "0.7,2vox", method=method).any()
    assert not operate(x, "tensor:sigma=1vox:window=2vox:features=eigenvalues,coherence").any()


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_where_it_is_seen(method: str) -> None:
    x = np.random.default_rng(0).standard_normal((20, 21, 22)).astype(np.float32)
    x[4, 5, 6] = np.nan
    found = ridges(x, "1,2vox", method=method)
    seen = np.zeros(x.shape, bool)
    seen[:13, :14, :15] = True  # int(4 · 2 + 0.5) = 8 voxels around
    np.testing.assert_array_equal(np.isnan(found), seen)


def test_lengths_in_mm_follow_the_spacing() -> None:
    """A round tube on a grid of unequal spacing answers as on an equal one."""
    fine = tube(1)
    flat = Volume(fine[::2].astype(np.float32), "zyx", Grid((2.0, 1.0, 1.0), "mm"))
    equal = Volume(fine.astype(np.float32), "zyx", Grid((1.0, 1.0, 1.0), "mm"))
    text = "ridges:scales=3mm:method=sato"
    one, other = operate(equal, text).data[20, 20, 20], operate(flat, text).data[10, 20, 20]
    assert float(other) == pytest.approx(float(one), rel=0.02)
    voxels = operate(flat, "ridges:scales=3vox:method=sato").data[10, 20, 20]
    assert abs(float(voxels) / float(one) - 1) > 0.1
    for of, more in (("structure", ":window=3mm"), ("hessian", "")):
        text = f"tensor:of={of}:sigma=2mm{more}:features=eigenvalues"
        near = operate(flat, text).data[10, 20, 24], operate(equal, text).data[20, 20, 24]
        np.testing.assert_allclose(near[0], near[1], rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("of", ["structure:window=3vox", "hessian"])
def test_directions_follow_tubes_and_plates(of: str) -> None:
    d, h, w = axes()
    along = np.array([0.48, 0.6, 0.64])
    square = d**2 + h**2 + w**2
    fibre = soft(np.sqrt(square - (d * along[0] + h * along[1] + w * along[2]) ** 2) - RADIUS)
    sheet = soft(np.abs(d * along[0] + h * along[1] + w * along[2]) - RADIUS)
    for volume, name in ((fibre, "orientation"), (sheet, "normal")):
        found = operate(volume, f"tensor:sigma=2vox:of={of}:features={name}")
        own = found.reshape(SIZE, SIZE, SIZE, 3)[20, 20, 20]
        np.testing.assert_allclose(own, along, atol=0.01)


def test_world_directions_are_those_of_the_affine() -> None:
    """Grey values that rise along the world's x only, on an oblique grid."""
    angle = math.radians(30)
    turn = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.5, 2.0])
    d, h, w = np.meshgrid(*[np.arange(n) for n in (20, 24, 28)], indexing="ij")
    x = affine[0, 0] * w + affine[0, 1] * h + affine[0, 2] * d
    volume = Volume(np.sin(x / 3).astype(np.float32), "zyx", Grid((2.0, 1.5, 1.0), "mm", affine))
    found = operate(volume, "tensor:sigma=2mm:window=3mm:features=normal:orient=world").data
    inner = np.moveaxis(np.asarray(found), np.argmin(found.shape), -1)[6:-6, 8:-8, 8:-8]
    np.testing.assert_allclose(inner, np.broadcast_to([1.0, 0, 0], inner.shape), atol=0.01)


def test_coherence_tells_lines_from_isotropic_noise() -> None:
    d, h, _ = axes()
    lines = np.sin(d / 2.0) * np.sin(h / 2.0)
    waves = np.sin(d / 2.0)
    text = "tensor:sigma=1vox:window=4vox:features=coherence,linearity,planarity"
    of_lines, of_waves = (
        operate(x.astype(np.float64), text)[12:-12, 12:-12, 12:-12].mean((0, 1, 2))
        for x in (lines, waves)
    )
    np.testing.assert_allclose(of_waves, [1, 0, 1], atol=0.01)
    np.testing.assert_allclose(of_lines, [math.sqrt(0.5), 1, 0], atol=0.05)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ridges:scales=0.4vox", "at least 0.5 voxels along every axis, received 0.4 along depth"),
        ("ridges:scales=1,5000vox", "at most 1000 voxels"),
        ("ridges:scales=1,2", "needs a unit: scales=1,2mm or scales=1,2vox"),
        ("ridges:scales=1mm,2vox", "takes one unit for all"),
        ("ridges:scales=abc", "one length or several with a unit"),
        ("ridges:scales=1vox:method=sato:shape=plate", "sato measures tubes only; for a plate"),
        ("ridges:scales=1vox:method=sato:c=1", "sato takes no c"),
        ("ridges:scales=1vox:tau=0.5", "tau is for method='jerman', and frangi takes none"),
        ("ridges:scales=1vox:method=jerman:tau=2", "above 0 and at most 1"),
        ("ridges:scales=1vox:alpha=0", "alpha must be above 0"),
        ("ridges:scales=1vox:c=-1", "c must be above 0"),
        ("tensor:sigma=1vox", "needs window"),
        ("tensor:sigma=0.3vox:window=1vox", "at least 0.5 voxels"),
        ("tensor:sigma=1vox:window=1vox:features=size", "unknown features 'size'"),
        ("tensor:sigma=1vox:window=1vox:of=hessian", "window is for a structure tensor"),
        ("tensor:sigma=1vox:of=hessian:features=coherence", "is of a structure tensor"),
        ("tensor:sigma=1vox:window=1vox:features=normal,normal", "has normal twice"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(Conv3DError) as refused:
        operate(np.zeros((8, 8, 8), np.float32), text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_boundaries_that_divide_are_refused() -> None:
    with pytest.raises(Conv3DError, match="divides means by the weights inside"):
        operate(np.zeros((8, 8, 8), np.float32), "ridges:scales=1vox", boundary="renormalize")


def test_a_sheared_grid_is_refused() -> None:
    affine = np.array([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    volume = Volume(
        np.zeros((8, 8, 8), np.float32), "zyx", Grid((1.0, math.hypot(1, 0.5), 1.0), "mm", affine)
    )
    for text in ("ridges:scales=1,2mm", "tensor:sigma=1mm:window=2mm"):
        with pytest.raises(ShapeError, match="give"):
            operate(volume, text)


def test_planes_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole groups, however few planes are asked for, since a group filters its surroundings."""
    spans = []
    compute = Ridges.compute

    def noted(self: Ridges, windows: Any, box: Any, out: Any, team: Any) -> None:
        spans.append(box.depth)
        compute(self, windows, box, out, team)

    monkeypatch.setattr(Ridges, "compute", noted)
    monkeypatch.setattr("conv3d_cli.network.operations.gaussian.SLAB_VOXELS", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.LEAST_SLAB", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.DEEP_SLAB_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.IN_MEMORY_BYTES", 1)
    x = np.random.default_rng(0).standard_normal((30, 9, 10)).astype(np.float32)
    ridges(x, "1vox", method="sato")
    assert spans == [(0, 12), (12, 24), (24, 30)]


def test_the_forecast_has_the_memory_of_each_thread() -> None:
    node = Node("r", "Ridges", ("x",), {"method": "sato", "scales": [[9.0] * 3]}, {})
    small = make_operation(node, [Shape(64, 64, 64, 1)])
    assert small.scratch_bytes(np.dtype("f8")) > 1.5 * small.scratch_bytes(np.dtype("f4"))
    # the ring: six fields of 2 · 36 planes and more, of 18 rows of 64 columns at least
    assert small.scratch_bytes(np.dtype("f4")) > 6 * 72 * 18 * 64 * 4


def test_sato_is_that_of_scikit_image_inside_the_volume() -> None:
    """At the edges scikit-image mirrors slopes as they are, though they change sign there."""
    peer = pytest.importorskip("skimage.filters")
    x = np.random.default_rng(0).standard_normal((34, 36, 38))
    theirs = peer.sato(x, [2.0], black_ridges=False)
    mine = ridges(x, "2vox", method="sato")
    inner = (slice(12, -12),) * 3
    np.testing.assert_allclose(mine[inner], theirs[inner], atol=0.01 * mine.max())

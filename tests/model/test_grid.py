"""Where output voxels lie in the world: by algebra on random affines, by a table, and by volumes that know their own place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Geometry, geometries

import conv3d_cli
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.grid import (
    Grid,
    Spacing,
    affine_from_spacing,
    complete_grid,
    grid_after,
    spacing_of_affine,
    transform_matrix,
)
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import ConvSpec, VoxelTransform
from conv3d_cli.model.units import UNITS, unit_name


def random_affine(seed: int) -> np.ndarray:
    """Rotated, sheared, of unequal spacing, perhaps mirrored, far from the origin."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shear = np.eye(3) + np.triu(rng.uniform(-0.5, 0.5, (3, 3)), 1)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ np.diag(rng.uniform(0.3, 4, 3))
    affine[:3, 3] = rng.uniform(-150, 150, 3)
    return affine


def random_grid(seed: int) -> Grid:
    affine = random_affine(seed)
    return Grid(spacing_of_affine(affine), "mm", affine, random_affine(seed + 1))


seeds = st.integers(0, 9999)
transforms = st.builds(
    VoxelTransform,
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.integers(-40, 40).map(lambda n: n / 2)] * 3),
)


# ---------------------------------------------------------------------------------------------------------------------
# grid_after


@given(seeds, geometries())
def test_an_output_voxel_lies_where_its_input_voxel_lies(seed: int, geometry: Geometry) -> None:
    problem = geometry.problem
    grid = random_grid(seed)
    after = grid_after(grid, problem)
    step, offset = problem.voxel_transform.step, problem.voxel_transform.offset
    rng = np.random.default_rng(seed)
    for o in [(0, 0, 0), tuple(n - 1 for n in problem.out_size), tuple(rng.integers(0, 50, 3))]:
        inside = tuple(s * i + c for s, i, c in zip(step, o, offset, strict=True))
        assert np.allclose(after.world(o), grid.world(inside), rtol=0, atol=1e-9)
        # the second affine goes along by itself
        second, second_after = Grid(affine=grid.qform), Grid(affine=after.qform)
        assert np.allclose(second_after.world(o), second.world(inside), rtol=0, atol=1e-9)
    assert after.unit == grid.unit


@given(seeds, transforms)
def test_spacing_and_affine_agree(seed: int, transform: VoxelTransform) -> None:
    grid = random_grid(seed)
    after = grid_after(grid, transform)
    assert after.spacing is not None
    assert after.affine is not None
    assert np.allclose(after.spacing, np.multiply(grid.spacing, transform.step))
    assert np.allclose(after.spacing, spacing_of_affine(after.affine))
    assert np.linalg.det(after.affine) * np.linalg.det(grid.affine) > 0  # handedness stays


@given(seeds, transforms, transforms)
def test_two_convolutions_in_turn(seed: int, first: VoxelTransform, second: VoxelTransform) -> None:
    grid = random_grid(seed)
    both = VoxelTransform(
        tuple(a * b for a, b in zip(first.step, second.step, strict=True)),
        tuple(s * c + o for s, c, o in zip(first.step, second.offset, first.offset, strict=True)),
    )
    assert np.allclose(transform_matrix(first) @ transform_matrix(second), transform_matrix(both))
    in_turn, at_once = grid_after(grid_after(grid, first), second), grid_after(grid, both)
    assert np.allclose(in_turn.affine, at_once.affine, rtol=0, atol=1e-9)
    assert np.allclose(in_turn.spacing, at_once.spacing)


def test_what_is_unknown_stays_unknown() -> None:
    shifted = VoxelTransform((2, 2, 2), (0.5, 0.5, 0.5))
    after = grid_after(Grid(), shifted)
    assert (after.spacing, after.unit, after.affine, after.qform) == (None, None, None, None)
    after = grid_after(Grid((1, 2, 3), "um"), shifted)
    assert (after.spacing, after.unit, after.affine, after.qform) == ((2, 4, 6), "um", None, None)


def test_the_input_grid_is_left_alone() -> None:
    grid = random_grid(1)
    affine, qform = grid.affine.copy(), grid.qform.copy()
    grid_after(grid, VoxelTransform((2, 1, 3), (1.0, 0.5, -2.0)))
    assert np.array_equal(grid.affine, affine)
    assert np.array_equal(grid.qform, qform)


def test_without_a_change_the_grid_keeps_its_bits() -> None:
    grid = random_grid(2)
    problem = ConvSpec(padding="same").resolve((1, 5, 5, 5, 1), (3, 5, 1))
    assert grid_after(grid, problem) is grid


# n, k, s, d of SAME -> the input voxels under the first and the last output voxel
OFFSETS = [
    (6, 3, 1, 1, 0, 5),
    (6, 3, 2, 1, 1, 5),
    (7, 3, 2, 1, 0, 6),
    (6, 4, 1, 1, 0.5, 5.5),
    (224, 7, 2, 1, 1, 223),
    (64, 3, 3, 1, 0, 63),
    (65, 5, 2, 2, 0, 64),
    (10, 2, 2, 1, 0.5, 8.5),
    (10, 1, 2, 1, 0, 8),
]


@pytest.mark.parametrize(("n", "k", "s", "d", "offset", "last"), OFFSETS)
@pytest.mark.parametrize("axis", range(3))
def test_worked_origins(
    n: int, k: int, s: int, d: int, offset: float, last: float, axis: int
) -> None:
    def along(value: int) -> tuple[int, int, int]:
        values = [1, 1, 1]
        values[axis] = value
        return values[0], values[1], values[2]

    spec = ConvSpec(
        strides=along(s), dilation_rate=along(d), padding="same", allow_strided_dilation=True
    )
    problem = spec.resolve((1, *along(n), 1), along(k))
    grid = Grid((3.0, 2.0, 0.5), "mm", affine_from_spacing((3.0, 2.0, 0.5), (10.0, 20.0, 30.0)))
    after = grid_after(grid, problem)
    for o, centre in ((0, offset), (problem.out_size[axis] - 1, last)):
        expected = [30.0, 20.0, 10.0]  # x, y, z of voxel (0, 0, 0)
        expected[2 - axis] += centre * (3.0, 2.0, 0.5)[axis]
        index = [0, 0, 0]
        index[axis] = o
        assert after.world((index[0], index[1], index[2])).tolist() == expected


# ---------------------------------------------------------------------------------------------------------------------
# The volume that holds its own coordinates


def own_coordinates(size: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """(D, H, W, 3): the world coordinates of every voxel."""
    d, h, w = np.indices(size)
    return np.stack([w, h, d, np.ones(size)], axis=-1) @ affine.T[:, :3]


def windows_inside(geometry: Geometry) -> list[slice]:
    """Outputs, along each axis, whose windows touch no padding."""
    problem = geometry.problem
    result = []
    for axis in range(3):
        starts = [
            o * problem.strides[axis] - problem.pad_before[axis]
            for o in range(problem.out_size[axis])
        ]
        inside = [
            o
            for o, p in enumerate(starts)
            if p >= 0 and p + problem.extent[axis] <= problem.in_size[axis]
        ]
        result.append(slice(inside[0], inside[-1] + 1) if inside else slice(0, 0))
    return result


@given(
    geometries(
        kinds=("filter",), batches=(1,), boundaries=("zeros", "wrap"), strided_dilation=False
    ),
    seeds,
)
def test_convolved_coordinates_are_the_output_grids(geometry: Geometry, seed: int) -> None:
    """A symmetric kernel of sum 1 leaves linear functions as they are: so the result must be the new grid's coordinates."""
    affine = random_affine(seed)
    kernel = np.random.default_rng(seed).uniform(0.1, 1, geometry.kernel_size)
    kernel += kernel[::-1, ::-1, ::-1]
    kernel /= kernel.sum()
    problem = geometry.problem
    result = conv3d_cli.conv3d(
        own_coordinates(geometry.size, affine),
        kernel,
        strides=geometry.strides,
        padding=geometry.padding,
        dilation_rate=geometry.dilation_rate,
        boundary=geometry.boundary,
        threads=1,
    )
    after = grid_after(Grid(None, "mm", affine), problem)
    expected = own_coordinates(problem.out_size, after.affine)
    inside = tuple(windows_inside(geometry))
    assert result.shape == expected.shape
    assert np.allclose(result[inside], expected[inside], rtol=0, atol=1e-9)


@given(
    geometries(kinds=("filter",), batches=(1,), boundaries=("nearest",), strided_dilation=False),
    seeds,
)
def test_a_kernels_anchor_is_where_the_output_lies(geometry: Geometry, seed: int) -> None:
    """A kernel that copies the voxel under its own centre: the result must hold the coordinates of that very voxel."""
    affine = random_affine(seed)
    rng = np.random.default_rng(seed)
    centre = tuple(int(rng.integers(0, k)) for k in geometry.kernel_size)
    weights = np.zeros(geometry.kernel_size)
    weights[centre] = 1
    kernel = Kernel(weights, centre=centre)
    problem = geometry.spec.resolve((1, *geometry.size, 3), geometry.kernel_size, kernel.centre)
    result = conv3d_cli.conv3d(
        own_coordinates(geometry.size, affine),
        kernel,
        strides=geometry.strides,
        padding=geometry.padding,
        dilation_rate=geometry.dilation_rate,
        boundary=geometry.boundary,
        threads=1,
    )
    expected = own_coordinates(
        problem.out_size, grid_after(Grid(None, "mm", affine), problem).affine
    )
    inside = tuple(windows_inside(geometry))
    assert np.allclose(result[inside], expected[inside], rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Units and affines


@pytest.mark.parametrize(
    ("text", "name"),
    [("mm", "mm"), ("MM", "mm"), (" mm ", "mm"), ("mm\0\0", "mm"), ("millimeter", "mm"), ("µm", "um"), ("μm", "um"), ("um", "um"),
     ("\\u00B5m", "um"), ("micron", "um"), ("Microns", "um"), ("micrometer", "um"), ("nm", "nm"), ("nanometer", "nm"), ("m", "m"),
     ("meter", "m"), ("cm", "cm"), ("centimeter", "cm"), ("pixel", None), ("vox", None), ("", None), (None, None), ("s", None)],
)  # fmt: skip
def test_unit_names(text: str | None, name: str | None) -> None:
    assert unit_name(text) == name


def test_units_in_millimetres() -> None:
    metre = {"nm": 1e9, "um": 1e6, "mm": 1e3, "cm": 1e2, "m": 1}
    assert set(UNITS) == set(metre)
    for unit, count in metre.items():
        assert UNITS[unit] * count == pytest.approx(1000)


lengths = st.floats(1e-3, 1e4)


@given(
    st.tuples(lengths, lengths, lengths),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(sorted(UNITS)),
)
def test_spacing_in_another_unit_and_back(
    spacing: tuple[float, float, float], unit: str, other: str
) -> None:
    there = Grid(spacing, unit).spacing_in(other)
    assert there == pytest.approx(
        tuple(s * UNITS[unit] / UNITS[other] for s in spacing), rel=1e-9, abs=0
    )
    assert Grid(there, other).spacing_in(unit) == pytest.approx(spacing, rel=1e-9, abs=0)
    assert all(type(s) is float for s in there)


@pytest.mark.parametrize(
    ("spacing", "unit", "other", "expected"),
    [(0.5, "um", "nm", 500.0), (0.325, "um", "mm", 0.000325), (3, "mm", "cm", 0.3), (0.7, "mm", "um", 700.0),
     (0.1, "um", "nm", 100.0), (1.2345, "nm", "m", 1.2345e-9), (0.1, "mm", "mm", 0.1), (1 / 3, "mm", "mm", 1 / 3)],
)  # fmt: skip
def test_spacing_in_round_numbers(spacing: float, unit: str, other: str, expected: float) -> None:
    assert Grid((spacing,) * 3, unit).spacing_in(other) == (expected,) * 3


@pytest.mark.parametrize("grid", [Grid(), Grid(unit="mm"), Grid((1, 1, 1))])
def test_a_length_on_a_volume_without_spacing(grid: Grid) -> None:
    lacks = "no voxel spacing" if grid.spacing is None else r"a voxel spacing \(1\) without a unit"
    with pytest.raises(ShapeError, match=rf"tells {lacks}.* mm .*give it in vox.*spacing="):
        grid.spacing_in("mm")


@pytest.mark.parametrize("unit", ["inch", "px", "", "MM"])
def test_unknown_unit(unit: str) -> None:
    with pytest.raises(SpecError, match="nm, um, mm, cm, m"):
        Grid((1, 1, 1), "mm").spacing_in(unit)


def test_no_world_without_an_affine() -> None:
    with pytest.raises(ShapeError, match="no affine"):
        Grid((1, 1, 1), "mm").world((0, 0, 0))


@given(st.tuples(lengths, lengths, lengths), st.tuples(*[st.floats(-1e3, 1e3)] * 3))
def test_affine_from_spacing(spacing: Any, origin: Any) -> None:
    affine = affine_from_spacing(spacing, origin)
    assert spacing_of_affine(affine) == pytest.approx(spacing)
    grid = Grid(spacing, "mm", affine)
    # world is (x, y, z); spacing, origin and index are (D, H, W)
    assert grid.world((0, 0, 0)).tolist() == list(origin[::-1])
    moved = grid.world((2, 3, 5)) - grid.world((0, 0, 0))
    assert affine_from_spacing(spacing)[:3, 3].tolist() == [0, 0, 0]
    assert moved == pytest.approx([5 * spacing[2], 3 * spacing[1], 2 * spacing[0]], abs=1e-9)


@given(seeds)
def test_spacing_is_the_distance_of_neighbours(seed: int) -> None:
    grid = random_grid(seed)
    for axis in range(3):
        step = tuple(float(axis == a) for a in range(3))
        distance = np.linalg.norm(grid.world(step) - grid.world((0, 0, 0)))
        assert spacing_of_affine(grid.affine)[axis] == pytest.approx(distance)


# ---------------------------------------------------------------------------------------------------------------------
# A spacing by hand

ROTATED = np.array([[0, -2, 0, 7], [3, 0, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("grid", "given", "spacing", "unit", "noted"),
    [
        (Grid(), ((3, 1, 1), "um"), (3, 1, 1), "um", False),
        (Grid((3, 1, 1)), ((3, 1, 1), "um"), (3, 1, 1), "um", False),
        (Grid((3, 1, 1)), ((2, 1, 1), "um"), (2, 1, 1), "um", True),
        (Grid((3, 1, 1)), ((300, 100, 100), "nm"), (300, 100, 100), "nm", True),
        (Grid((0.3, 0.1, 0.1), "um"), ((300, 100, 100), "nm"), (0.3, 0.1, 0.1), "um", False),
        (Grid((1, 0.1, 0.1), "um", assumed=frozenset("d")), ((300, 100, 100), "nm"), (0.3, 0.1, 0.1), "um", False),
        (Grid((0.1000002, 0.1, 0.1), "um"), ((0.1, 0.1, 0.1), "um"), (0.1000002, 0.1, 0.1), "um", False),
        (Grid((3, 3, 3), "mm", assumed=frozenset({"unit"})), ((3, 3, 3), "mm"), (3, 3, 3), "mm", False),
        (Grid((3, 3, 3), "mm", assumed=frozenset({"unit"})), ((3, 3, 3), "um"), (3, 3, 3), "um", False),
        (Grid((1, 1, 1), "mm", assumed=frozenset({"unit"})), ((3, 2, 2), "um"), (3, 2, 2), "um", True),
    ],
)  # fmt: skip
def test_a_given_spacing_completes_a_grid(
    grid: Grid, given: Any, spacing: tuple[float, ...], unit: str, noted: bool
) -> None:
    complete, note = complete_grid(grid, Spacing(*given))
    assert (complete.spacing, complete.unit, bool(note)) == (pytest.approx(spacing), unit, noted)
    assert not complete.assumed


@pytest.mark.parametrize(
    ("grid", "given"),
    [
        (Grid((3, 1, 1), "mm"), ((3, 1, 1), "um")),
        (Grid((3, 1, 1), "mm"), ((3.01, 1, 1), "mm")),
        (Grid((1, 1, 1), "mm"), ((2, 2, 2), "mm")),
        (Grid((1, 0.1, 0.1), "um", assumed=frozenset("d")), ((0.3, 0.1, 0.2), "um")),
        (Grid((3, 3, 3), "mm", assumed=frozenset({"unit"})), ((2, 2, 2), "mm")),
    ],
)
def test_a_given_spacing_must_not_contradict_the_file(grid: Grid, given: Any) -> None:
    with pytest.raises(ShapeError, match=r"^spacing=.* contradicts the file, .*leave it out"):
        complete_grid(grid, Spacing(*given))


def test_a_given_spacing_scales_the_columns_about_the_voxel_at_zero() -> None:
    complete, _ = complete_grid(Grid((4, 2, 3), None, ROTATED), Spacing((8, 6, 3), "um"))
    assert complete.affine is not None
    np.testing.assert_allclose(complete.affine[:3, :3], ROTATED[:3, :3] * [1, 3, 2])
    at_zero = np.linalg.solve(ROTATED, [0, 0, 0, 1])
    np.testing.assert_allclose(complete.affine @ at_zero, [0, 0, 0, 1], atol=1e-12)


def test_an_axis_that_the_volume_lacks_contradicts_nothing() -> None:
    complete, _ = complete_grid(Grid((1, 0.1, 0.1), "um"), Spacing((0.1,) * 3, "um"), "yx")
    assert complete.spacing == (0.1, 0.1, 0.1)

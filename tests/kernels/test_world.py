"""Kernels on turned and sheared grids: against their formulas in the world, and on functions whose derivatives are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.kernels import orient_kernel, read_kernel
from conv3d_cli.model.grid import Grid, shear, spacing_of_affine
from conv3d_cli.model.kernel import Kernel


def rotation(*degrees: float) -> np.ndarray:
    """Turned about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def grid_of(
    columns: np.ndarray, origin: tuple[float, float, float] = (-30.0, 12.0, 7.0), unit: str = "mm"
) -> Grid:
    """A NIfTI's grid: the columns are the steps along i, j, k, in x, y, z."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return Grid(spacing_of_affine(affine), unit, affine, anatomical=True)


SPACING = np.diag([1.25, 1.5, 2.0])
TURN = rotation(20, -35, 50)
SHEAR = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.4], [0.15, 0.0, 1.0]])  # a gantry tilt, and more
GRIDS = {
    "plain": grid_of(SPACING),
    "flipped": grid_of(SPACING @ np.diag([-1.0, 1.0, -1.0])),
    "permuted": grid_of(np.eye(3)[:, [2, 0, 1]] @ SPACING),
    "turned": grid_of(TURN @ SPACING),
    "sheared": grid_of(SHEAR @ SPACING),
    "turned and sheared": grid_of(TURN @ SHEAR @ SPACING @ np.diag([1.0, -1.0, 1.0])),
}
OBLIQUE = ["turned", "sheared", "turned and sheared"]
SHEARED = OBLIQUE[1:]


def world_of(kernel: Kernel, grid: Grid) -> np.ndarray:
    """(3, D, H, W): x, y, z of each of a kernel's voxels from its centre."""
    assert grid.affine is not None
    places = np.indices(kernel.size) - np.array(kernel.size).reshape(3, 1, 1, 1) // 2
    return np.einsum("xa,adhw->xdhw", grid.affine[:3, :3], places[::-1])


def moments(kernel: Kernel, grid: Grid) -> np.ndarray:
    """Σ w x xᵀ, in mm²."""
    world = world_of(kernel, grid)
    return np.einsum("xdhw,dhw,ydhw->xy", world, kernel.weights, world)


# ---------------------------------------------------------------------------------------------------------------------
# Lengths


@pytest.mark.parametrize("name", SHEARED)
def test_a_gaussian_in_mm_is_the_true_one_on_sheared_grids(name: str) -> None:
    kernel = read_kernel("gaussian:sigma=2.5mm", GRIDS[name])
    expected = np.exp(-0.5 * (world_of(kernel, GRIDS[name]) ** 2).sum(axis=0) / 2.5**2)
    np.testing.assert_allclose(kernel.weights, expected / expected.sum(), rtol=1e-10, atol=0)
    np.testing.assert_allclose(moments(kernel, GRIDS[name]), 2.5**2 * np.eye(3), atol=0.01)
    assert kernel.sum == pytest.approx(1, abs=1e-12)
    assert "stand at" in kernel.built
    # the box of the ellipsoid of 4 sigma: its faces lie 4 sigma along the normals of the voxel axes' planes
    affine = GRIDS[name].affine
    assert affine is not None
    reach = 4 * 2.5 * np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)[::-1]
    assert kernel.size == tuple(2 * np.floor(reach + 0.5).astype(int) + 1)
    by_fwhm = read_kernel(f"gaussian:fwhm={2.5 * math.sqrt(8 * math.log(2))!r}mm", GRIDS[name])
    np.testing.assert_allclose(by_fwhm.weights, kernel.weights, rtol=1e-9)


@pytest.mark.parametrize(
    "text",
    ["gaussian:fwhm=8,6,3mm", "gaussian:fwhm=4mm:orient=world", "ball:radius=4,5,6mm", "log:sigma=3mm", "unsharp:sigma=3mm",
     "dog:sigma=2,3,2mm", "gaussian_derivative:sigma=3,2,2mm:axis=d", "sobel:axis=h:per=mm", "log:sigma=3mm:per=mm"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["flipped", "turned"])
def test_nothing_changes_at_right_angles(text: str, name: str) -> None:
    plain, turned = read_kernel(text, GRIDS["plain"]), read_kernel(text, GRIDS[name])
    if name == "flipped":
        assert np.array_equal(plain.weights, turned.weights)
    else:
        np.testing.assert_allclose(turned.weights, plain.weights, rtol=1e-9, atol=1e-15)
    if text.startswith("gaussian:"):
        assert turned.separable_rank() == 1
    assert "true to the world" not in turned.built


def test_less_than_the_tolerance_is_no_shear() -> None:
    grids = [
        grid_of(np.array([[1, 0, 0], [0, 1, slant], [0, 0, 1]]) @ SPACING)
        for slant in (0.0, 0.9e-4, 1.2e-4)
    ]
    plain, within, beyond = (read_kernel("gaussian:sigma=3mm", grid) for grid in grids)
    np.testing.assert_allclose(within.weights, plain.weights, rtol=1e-6)
    assert within.separable_rank() == 1
    assert not within.built
    assert beyond.built
    assert np.abs(beyond.weights - plain.weights).max() < 5e-5 * plain.weights.max()


@pytest.mark.parametrize("name", GRIDS)
def test_three_lengths_of_the_world(name: str) -> None:
    grid = GRIDS[name]
    found = moments(read_kernel("gaussian:sigma=4,3,2mm:orient=world", grid), grid)  # z, y, x
    np.testing.assert_allclose(found, np.diag([4.0, 9.0, 16.0]), atol=0.02)
    ball = read_kernel("ball:radius=6,5,4mm:orient=world", grid)
    x, y, z = world_of(ball, grid)
    assert np.array_equal(ball.weights > 0, (x / 4) ** 2 + (y / 5) ** 2 + (z / 6) ** 2 <= 1 + 2e-6)
    separable = read_kernel("gaussian:sigma=4,3,2mm:orient=world", grid).separable_rank() == 1
    assert separable == (name not in OBLIQUE)


def test_three_lengths_along_sheared_axes_turn_as_little_as_can_be() -> None:
    grid = GRIDS["turned and sheared"]
    found = moments(read_kernel("gaussian:sigma=4,3,2mm", grid), grid)
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(found)), [4, 9, 16], rtol=0.01)
    assert grid.affine is not None
    steps = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    for axis, variance in zip(steps.T, (4, 9, 16), strict=True):  # i, j, k
        vectors = np.linalg.eigh(found)
        nearest = vectors.eigenvectors[:, np.argmin(np.abs(vectors.eigenvalues - variance))]
        assert abs(nearest @ axis) > 0.97


@pytest.mark.parametrize("name", SHEARED)
def test_balls_and_blobs_are_round_in_the_world(name: str) -> None:
    grid = GRIDS[name]
    ball = read_kernel("ball:radius=5mm", grid)
    inside = (world_of(ball, grid) ** 2).sum(axis=0) <= 25 * (1 + 2e-6)
    assert np.array_equal(ball.weights > 0, inside)
    for axis in range(3):  # the box is the smallest: another plane would be empty
        assert (
            np.moveaxis(inside, axis, 0)[0].any() or ball.size[axis] * min(grid.spacing or ()) > 10
        )
    unsharp = read_kernel("unsharp:sigma=2mm", grid)
    gaussian = read_kernel("gaussian:sigma=2mm", grid)
    centre = tuple(n // 2 for n in gaussian.size)
    expected = -gaussian.weights
    expected[centre] += 2
    np.testing.assert_allclose(unsharp.weights, expected, atol=1e-15)
    dog = read_kernel("dog:sigma=1.5mm:sigma2=3mm", grid)
    np.testing.assert_allclose(moments(dog, grid), (1.5**2 - 9) * np.eye(3), atol=0.02)


def test_zero_lengths_stay_along_axes_at_right_angles() -> None:
    # k leans, i and j do not
    tilted = grid_of(np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]]) @ SPACING)
    in_plane = read_kernel("gaussian:sigma=0,3,3mm", tilted)
    assert np.array_equal(
        in_plane.weights, read_kernel("gaussian:sigma=0,3,3mm", GRIDS["plain"]).weights
    )
    assert read_kernel("gaussian:sigma=3,0,0mm", tilted).size[1:] == (1, 1)
    assert read_kernel("gaussian:sigma=0mm", tilted).size == (1, 1, 1)
    for text, name in [
        ("gaussian:sigma=3,3,0mm", "sheared"),
        ("gaussian:sigma=0,3,3mm:orient=world", "turned"),
    ]:
        with pytest.raises(SpecError, match="sigma of 0 along one axis is not possible"):
            read_kernel(text, GRIDS[name])


def test_other_tools_go_along_the_voxel_axes() -> None:
    kernel = read_kernel("gaussian:sigma=3mm:sampling=fsl", GRIDS["sheared"])
    assert kernel.separable_rank() == 1
    assert (
        kernel.size
        == read_kernel("gaussian:sigma=3mm:sampling=fsl", Grid(GRIDS["sheared"].spacing, "mm")).size
    )
    with pytest.raises(SpecError, match="sampling=fsl goes along voxel axes"):
        read_kernel("gaussian:sigma=3,2,2mm:sampling=fsl:orient=world", GRIDS["turned"])


def test_lengths_in_voxels_are_along_the_voxel_axes() -> None:
    for name in GRIDS:
        kernel = read_kernel("gaussian:sigma=1,2,1vox:orient=world", GRIDS[name])
        assert np.array_equal(kernel.weights, read_kernel("gaussian:sigma=1,2,1vox").weights)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives

SLOPE = np.array([0.7, -1.3, 2.1])  # per mm along x, y, z
HESSIAN = np.array([[0.5, 0.2, -0.3], [0.2, -0.8, 0.4], [-0.3, 0.4, 1.1]])
FIRST = ["gradient", "sobel", "prewitt", "scharr", "gaussian_derivative:sigma=2mm"]


def sums(kernel: Kernel, grid: Grid, function: object) -> np.ndarray:
    """What each of a kernel's filters makes of a function of x, y, z at the centre."""
    values = function(world_of(kernel, grid))  # type: ignore[operator]
    weights = kernel.weights if kernel.is_bank else kernel.weights[..., None]
    return np.tensordot(values, weights, axes=3)


def ramp(world: np.ndarray) -> np.ndarray:
    return 40 + np.tensordot(SLOPE, world, axes=1)


def bowl(world: np.ndarray) -> np.ndarray:
    return ramp(world) + 0.5 * np.einsum("xdhw,xy,ydhw->dhw", world, HESSIAN, world)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("text", FIRST)
def test_the_worlds_slopes_of_a_ramp(text: str, name: str) -> None:
    grid = GRIDS[name]
    kernel = read_kernel(f"{text}:axis=xyz:orient=world", grid)
    np.testing.assert_allclose(sums(kernel, grid, ramp), SLOPE, rtol=1e-6)
    assert kernel.filter_names == tuple(f"{text.partition(':')[0]} {a}" for a in "xyz")
    assert "along the axes of the world, per mm" in kernel.built
    for axis, slope in zip("zhx", SLOPE[[2, 1, 0]], strict=True):
        one = read_kernel(f"{text}:axis={axis}:orient=world", grid)
        assert sums(one, grid, ramp)[0] == pytest.approx(slope, rel=1e-6)
    in_um = read_kernel(f"{text}:axis=zyx:orient=world:per=um", grid)
    np.testing.assert_allclose(sums(in_um, grid, ramp), SLOPE[::-1] / 1000, rtol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("text", FIRST)
def test_slopes_along_voxel_axes_per_mm(text: str, name: str) -> None:
    grid = GRIDS[name]
    assert grid.affine is not None
    steps = grid.affine[:3, 2::-1]
    expected = SLOPE @ steps  # a voxel
    np.testing.assert_allclose(
        sums(read_kernel(f"{text}:axis=dhw:per=vox", grid), grid, ramp), expected, rtol=1e-9
    )
    lengths = np.linalg.norm(steps, axis=0)
    found = sums(read_kernel(f"{text}:axis=dhw:per=mm", grid), grid, ramp)
    np.testing.assert_allclose(found, expected / lengths, rtol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_curvatures_of_the_world(name: str) -> None:
    grid = GRIDS[name]
    kernel = read_kernel("gaussian_derivative:sigma=2mm:axis=xyz:order=2:orient=world", grid)
    np.testing.assert_allclose(sums(kernel, grid, bowl), HESSIAN.diagonal(), rtol=1e-6)
    laplacian = read_kernel("log:sigma=2mm:per=mm", grid)
    assert sums(laplacian, grid, bowl)[0] == pytest.approx(np.trace(HESSIAN), rel=1e-6)
    assert "per mm²" in laplacian.built
    first = read_kernel("gaussian_derivative:sigma=2mm:axis=xyz:orient=world", grid)
    np.testing.assert_allclose(sums(first, grid, bowl), SLOPE, rtol=1e-6)  # even terms fall out


def test_log_on_a_sheared_grid_is_nearly_the_one_per_voxel_where_that_is_so() -> None:
    """Without `per`, second derivatives along the voxel axes of the true Gaussian."""
    grid = GRIDS["sheared"]
    kernel = read_kernel("log:sigma=3mm", grid)
    assert grid.affine is not None
    steps = grid.affine[:3, :3]
    expected = np.einsum("xa,xy,ya->", steps, HESSIAN, steps)
    assert sums(kernel, grid, bowl)[0] - 40 * kernel.sum == pytest.approx(expected, rel=0.01)
    for order, wanted in (
        (1, SLOPE @ steps[:, ::-1]),
        (2, np.einsum("xa,xy,ya->a", steps, HESSIAN, steps)[::-1]),
    ):
        found = read_kernel(f"gaussian_derivative:sigma=3mm:axis=dhw:order={order}", grid)
        offset = 40 * found.weights.sum(axis=(0, 1, 2))
        np.testing.assert_allclose(sums(found, grid, bowl) - offset, wanted, rtol=0.01)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sigma", ["1,1,1", "0.7,2,1.3", "0,1.5,0.6"])
def test_gaussian_derivative_is_scipys(rng: np.random.Generator, sigma: str, order: int) -> None:
    volume = rng.normal(size=(13, 11, 15))
    for axis in range(3):
        if sigma[0] == "0" and sigma[1] == "," and axis == 0:
            continue
        kernel = read_kernel(
            f"gaussian_derivative:sigma={sigma}vox:axis={'dhw'[axis]}:order={order}"
        )
        orders = [order if a == axis else 0 for a in range(3)]
        expected = ndimage.gaussian_filter(
            volume, [float(s) for s in sigma.split(",")], order=orders
        )
        np.testing.assert_allclose(ndimage.correlate(volume, kernel.weights), expected, atol=1e-13)


def test_a_sum_of_factors_stays_one() -> None:
    """So that the separable algorithm takes slopes of the world on turned grids: few terms, not whole kernels."""
    kernel = read_kernel("gaussian_derivative:sigma=4mm:axis=xyz:orient=world", GRIDS["turned"])
    assert kernel.separable_rank() == 2
    exact = read_kernel("gaussian_derivative:sigma=4mm:axis=xyz:per=mm", GRIDS["turned"])
    assert exact.separable_rank(1e-14) == 1


def test_volumes_without_orientation_take_their_own_axes() -> None:
    grid = Grid((2.0, 0.5, 0.5), "um")
    world = read_kernel("sobel:axis=zyx:orient=world", grid)
    assert np.array_equal(world.weights, read_kernel("sobel:axis=zyx:per=um", grid).weights)
    assert "per um; the file stores no orientation: its own axes are taken" in world.built
    curvature = read_kernel("gaussian_derivative:sigma=2um:axis=x:order=2:orient=world", grid)
    assert curvature.built == (
        "curvatures along the axes of the world, per um²; "
        "the file stores no orientation: its own axes are taken"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.parametrize(
    ("text", "grid", "error", "message"),
    [
        ("sobel:axis=x:orient=world", None, ShapeError, "orient=world needs world coordinates.*pass --like VOLUME"),
        ("sobel:axis=x:orient=world", Grid(), ShapeError, "no voxel spacing; pass --spacing, or leave out orient=world"),
        ("sobel:axis=x:orient=up", Grid(), SpecError, "orient is voxel .* or world .*, received orient=up"),
        ("sobel:axis=x:per=mm", None, ShapeError, "per=mm needs a voxel spacing, and no volume is known; pass --spacing 2,1,1mm or --like"),
        ("sobel:axis=x:per=mm", Grid(), ShapeError, "take per=vox"),
        ("sobel:axis=x:per=px", Grid(), UnknownNameError, "unknown unit 'px'; .*available: vox, nm, um"),
        ("sobel:axis=x:per=vox:orient=world", GRIDS["plain"], SpecError, "take per=mm, not per=vox"),
        ("sobel:axis=xx", None, SpecError, "axis is d, h or w .* received axis=xx"),
        ("gaussian_derivative:sigma=1vox:axis=x:order=3", None, SpecError, "order is 1 or 2, received order=3"),
        ("gaussian_derivative:sigma=0,1,1vox:axis=d", None, SpecError, "at least one voxel to each side"),
        ("gaussian_derivative:sigma=0,1,1vox:axis=z:orient=world", GRIDS["turned"], SpecError, "at least one voxel"),
        ("gaussian:sigma=1m", GRIDS["sheared"], SpecError, "give a smaller sigma"),
        ("ball:radius=1m", GRIDS["sheared"], SpecError, "give a smaller radius"),
        ("gaussian:sigma=3mm", grid_of(np.ones((3, 3))), ShapeError, "its axes lie in one plane"),
    ],
)  # fmt: skip
def test_what_is_refused(
    text: str, grid: Grid | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read_kernel(text, grid)
    assert "\n" not in str(caught.value)


def test_orient_for_a_kernel_by_name() -> None:
    assert orient_kernel("gaussian:fwhm=8,6,3mm", "world") == "gaussian:fwhm=8,6,3mm:orient=world"
    assert orient_kernel("sobel:axis=x:orient=world", "world") == "sobel:axis=x:orient=world"
    with pytest.raises(SpecError, match="contradicts orient=voxel"):
        orient_kernel("sobel:axis=x:orient=voxel", "world")
    for other in ("box:size=3", "psf.tif", None, Kernel(np.ones((1, 1, 1)))):
        with pytest.raises(
            SpecError, match=r"--orient world is for gaussian, .*has no direction in the world"
        ):
            orient_kernel(other, "world")


def test_shear_is_the_largest_cosine() -> None:
    assert shear(TURN @ SPACING) < 1e-15
    assert shear(SHEAR @ SPACING) == pytest.approx(0.4 / np.sqrt(1.16))

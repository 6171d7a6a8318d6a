"""Built-in kernels: against scipy.ndimage and numpy, by their own formulas, and by the rules every one must keep."""

from __future__ import annotations

import doctest
import math
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli.errors import Conv3DError, ShapeError, SpecError, UnknownNameError
from conv3d_cli.kernels import (
    BUILTIN_KERNELS,
    builtin,
    describe_builtins,
    grammar,
    is_builtin,
    read_kernel,
)
from conv3d_cli.kernels.lengths import Lengths, voxels
from conv3d_cli.kernels.world import VOXEL_AXES, Ellipsoid, OrientKind, resolve_lengths
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.units import UNITS

GRID = Grid((3.0, 1.5, 1.5), "mm")
SIGMAS = [(1.0, 1.0, 1.0), (0.7, 2.0, 1.3), (0.4, 0.4, 2.6), (2.5, 2.5, 2.5)]
DESCRIPTIONS = describe_builtins()


def minimal_text(description: grammar.BuiltinKernel) -> str:
    """A text that the grammar must accept: every required parameter with its example, or the first optional one."""
    needed = [p for p in description.parameters if p.required]
    if description.name == "gaussian":  # fwhm or sigma: a rule no signature can state
        needed = [description.parameters[0]]
    return ":".join([description.name, *(f"{p.name}={p.kind.example}" for p in needed)])


def correlated(volume: np.ndarray, text: str, mode: str = "reflect") -> np.ndarray:
    return ndimage.correlate(volume, read_kernel(text).weights, mode=mode)


@pytest.fixture(params=["impulse", "random"])
def volume(request: pytest.FixtureRequest, rng: np.random.Generator) -> np.ndarray:
    if request.param == "random":
        return rng.normal(size=(13, 11, 15))
    impulse = np.zeros((13, 11, 15))
    impulse[6, 4, 9] = 1
    return impulse


def assert_close(received: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(
        received, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max())
    )


# ---------------------------------------------------------------------------------------------------------------------
# Every kernel


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda d: d.name)
class TestEveryKernel:
    def test_is_finite_and_called_by_its_text(self, description: grammar.BuiltinKernel) -> None:
        text = minimal_text(description)
        kernel = read_kernel(text)
        assert np.isfinite(kernel.weights).all()
        assert kernel.weights.dtype == np.float64
        assert kernel.weights.ndim == 3
        assert kernel.name == text
        assert kernel.bias is None
        assert kernel.centre is None
        assert is_builtin(text)

    def test_is_documented(self, description: grammar.BuiltinKernel) -> None:
        text = description.function.__doc__
        assert text
        assert description.summary.endswith(".")
        for word in ("Formula: ", "Source: ", ">>> ", description.name):
            assert word in text
        for parameter in description.parameters:
            assert any(
                parameter.name in line.partition(" : ")[0]
                for line in text.splitlines()
                if " : " in line
            )

    def test_doctest_runs(self, description: grammar.BuiltinKernel) -> None:
        (example,) = doctest.DocTestFinder().find(
            description.function, description.name, globs=description.function.__globals__.copy()
        )
        result = doctest.DocTestRunner().run(example)
        assert result.attempted >= 1
        assert result.failed == 0

    def test_all_parameters_parse(self, description: grammar.BuiltinKernel) -> None:
        for parameter in description.parameters:
            assert parameter.kind.read(parameter.kind.example, parameter.name, None) is not None
            if not parameter.required and parameter.default is not None:
                assert parameter.kind.read(f"{parameter.default}", parameter.name, None) in (
                    parameter.default,
                    (parameter.default,) * 3,
                )

    def test_refuses_an_unknown_parameter(self, description: grammar.BuiltinKernel) -> None:
        with pytest.raises(
            SpecError,
            match=rf"{description.name} has no parameter 'colour'; {description.name} takes ",
        ):
            read_kernel(minimal_text(description) + ":colour=red")

    def test_has_no_minus_zeros(self, description: grammar.BuiltinKernel) -> None:
        weights = read_kernel(minimal_text(description)).weights
        assert not np.signbit(weights[weights == 0]).any()

    def test_missing_parameters_are_named(self, description: grammar.BuiltinKernel) -> None:
        for parameter in description.parameters:
            if parameter.required:
                others = [p for p in description.parameters if p.required and p != parameter]
                text = ":".join([description.name, *(f"{p.name}={p.kind.example}" for p in others)])
                with pytest.raises(SpecError, match=rf"{description.name} needs {parameter.name}="):
                    read_kernel(text)


def takes_mm(parameter: grammar.Parameter) -> bool:
    try:
        return isinstance(parameter.kind.read("6mm", parameter.name, GRID), tuple)
    except Conv3DError:
        return False


WITH_LENGTHS = [(d, p) for d in DESCRIPTIONS for p in d.parameters if takes_mm(p)]


def text_with(description: grammar.BuiltinKernel, **values: str) -> str:
    """A text with these parameters, and with the others that the function needs."""
    values = {p.name: p.kind.example for p in description.parameters if p.required} | values
    if "sigma2" in values:
        values["sigma"] = "1vox"
    return ":".join([description.name, *(f"{name}={value}" for name, value in values.items())])


# Of the texts below that leave out what they may, the sum of the weights: 1 of averages and of what sharpens, 0 of derivatives.
SUMS = {
    "identity": 1, "box": 1, "gaussian": 1, "ball": 1, "sharpen": 1, "unsharp": 1, "laplacian": 0, "log": 0, "dog": 0,
    "sobel": 0, "prewitt": 0, "scharr": 0, "gradient": 0, "gaussian_derivative": 0,
    "born_wolf": 1, "gibson_lanni": 1,
}  # fmt: skip
NO_SUM = {"expr"}  # whatever the formula says


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda d: d.name)
class TestTheContractOfKernels:
    """What holds for any kernel, and for one that is added: nothing here knows a function's formula."""

    def test_its_sum_is_known(self, description: grammar.BuiltinKernel) -> None:
        name = description.name
        assert name in SUMS or name in NO_SUM, (
            f"{name} is new: write the sum of its weights into SUMS of this file"
        )
        weights = read_kernel(minimal_text(description)).weights
        scale = np.abs(weights).sum()
        if name in SUMS:  # samples of a second derivative miss 0 by what lies beyond `truncate`
            assert abs(weights.sum() - SUMS[name]) <= (2e-3 if name == "log" else 1e-12) * scale, (
                weights.sum()
            )

    def test_it_is_even_or_odd_along_each_axis(self, description: grammar.BuiltinKernel) -> None:
        """So that a symmetric object stays where it is, and nobody has to ask whether the kernel is flipped."""
        if description.name in NO_SUM:
            return
        weights = read_kernel(minimal_text(description)).weights
        for axis in range(3):
            turned = np.flip(weights, axis)
            assert np.array_equal(turned, weights) or np.array_equal(turned, -weights), axis


by_length = pytest.mark.parametrize(
    ("description", "parameter"), WITH_LENGTHS, ids=[f"{d.name}-{p.name}" for d, p in WITH_LENGTHS]
)


def made_or_refused(text: str, grid: Grid | None = None) -> Kernel | Conv3DError:
    """The kernel, or the error of one line that a text makes."""
    try:
        return read_kernel(text, grid)
    except Conv3DError as error:
        return error


@by_length
@pytest.mark.parametrize(
    "value",
    ["0vox", "0,2,2vox", "2,0,0vox", "0mm", "0.3vox", "1vox", "2.5vox", "3,1,2vox", "7vox", "6mm"],
)
def test_a_length_gives_finite_weights_or_one_line(
    description: grammar.BuiltinKernel, parameter: grammar.Parameter, value: str
) -> None:
    made = made_or_refused(text_with(description, **{parameter.name: value}), GRID)
    if isinstance(made, Kernel):
        assert np.isfinite(made.weights).all()
        assert made.weights.any()
    else:  # too narrow for a slope, say
        assert isinstance(made, SpecError)
        assert parameter.name in str(made)
        assert "\n" not in str(made)


@by_length
@pytest.mark.parametrize("value", ["1e5vox", "1,1,1e9vox", "1e30vox", "1e308vox", "9e9m"])
def test_a_huge_length_is_refused_at_once(
    description: grammar.BuiltinKernel, parameter: grammar.Parameter, value: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(
            SpecError, match=r"give a smaller|positive|one voxel to each side"
        ) as caught:
            read_kernel(text_with(description, **{parameter.name: value}), GRID)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


@by_length
def test_a_length_is_the_same_in_every_unit(
    description: grammar.BuiltinKernel, parameter: grammar.Parameter
) -> None:
    """6 mm on voxels of 3 x 1.5 x 1.5 mm are 2, 4 and 4 voxels, however they are written."""
    assert set(PER_MM) == set(UNITS), "a unit is new: write how many of it make a mm"
    if description.name == "expr":
        expected = read_kernel('expr:"1/(1+r)":radius=6mm', GRID)
        for unit, factor in PER_MM.items():
            scaled = f"1/(1+r/{factor!r})"
            made = read_kernel(f'expr:"{scaled}":radius={6 * factor!r}{unit}', GRID)
            np.testing.assert_allclose(made.weights, expected.weights, rtol=1e-12)
        return
    expected = read_kernel(text_with(description, **{parameter.name: "2,4,4vox"}), GRID)
    for unit, factor in PER_MM.items():
        made = read_kernel(
            text_with(description, **{parameter.name: f"{6 * factor!r}{unit}"}), GRID
        )
        np.testing.assert_allclose(
            made.weights, expected.weights, rtol=1e-9, atol=1e-15, err_msg=unit
        )


PER_MM = {"nm": 1e6, "um": 1e3, "mm": 1.0, "cm": 0.1, "m": 1e-3}
SPACING = (3.0, 1.5, 2.0)
# x leans on z by 45 degrees: columns are the steps along i, j, k
SHEARED = Grid(
    SPACING,
    "mm",
    np.array([[2.0, 0, 3 * 0.5**0.5, 0], [0, 1.5, 0, 0], [0, 0, 3 * 0.5**0.5, 0], [0, 0, 0, 1]]),
)
STRAIGHT = Grid(SPACING, "mm", np.diag([2.0, 1.5, 3.0, 1.0]))


@by_length
def test_a_length_in_mm_does_not_forget_the_world(
    description: grammar.BuiltinKernel, parameter: grammar.Parameter
) -> None:
    """On a sheared grid its kernel is another than at right angles: made true to the world, or refused."""
    text = text_with(description, **{parameter.name: "7mm"})
    straight = read_kernel(text, STRAIGHT)
    sheared = made_or_refused(text, SHEARED)
    if isinstance(sheared, Conv3DError):
        assert "the voxel axes stand at 45 degrees" in str(sheared)
        return
    assert not np.array_equal(sheared.weights, straight.weights), (
        f"{description.name} takes mm along sheared axes"
    )
    in_voxels = text_with(description, **{parameter.name: "2vox"})
    if description.name != "expr":  # whose offsets are in the unit of its radius
        assert np.array_equal(
            read_kernel(in_voxels, SHEARED).weights, read_kernel(in_voxels, STRAIGHT).weights
        )


def test_a_kernel_that_knows_voxel_axes_only_gets_no_mm_on_a_sheared_grid() -> None:
    def triangle(radius: Lengths, level: float = 1) -> Kernel:
        """A tent."""
        profiles = [
            np.maximum(0, 1 - np.abs(np.arange(-9, 10)) / r) for r in voxels(radius, "radius")
        ]
        return Kernel(np.einsum("d,h,w->dhw", *profiles), name="triangle")

    functions = (*BUILTIN_KERNELS, triangle)
    made = grammar.build_kernel("triangle:radius=6mm", functions, STRAIGHT)
    assert np.array_equal(made.weights, triangle((2.0, 4.0, 3.0)).weights)
    for allowed in ("triangle:radius=2,4,3vox", "triangle:radius=2,4,3vox:level=1"):
        assert np.array_equal(
            grammar.build_kernel(allowed, functions, SHEARED).weights, made.weights
        )
    with pytest.raises(ShapeError) as caught:
        grammar.build_kernel("triangle:radius=6mm", functions, SHEARED)
    assert str(caught.value) == (
        "triangle measures along the voxel axes only, and here the voxel axes stand at 45 degrees; give radius in voxels, "
        "as in radius=2,4,3vox, received radius=6mm"
    )

    def round_tent(radius: Lengths, orient: OrientKind = VOXEL_AXES) -> Kernel:
        """A tent that asks for the world."""
        found = resolve_lengths(radius, "radius", orient)
        return Kernel(np.ones((1, 1, 1 + isinstance(found, Ellipsoid))), name="round_tent")

    assert grammar.build_kernel("round_tent:radius=6mm", (round_tent,), SHEARED).size == (1, 1, 2)


def test_names_are_unique() -> None:
    names = [function.__name__ for function in BUILTIN_KERNELS]
    assert len(set(names)) == len(names)


def test_a_new_function_parses_by_its_signature() -> None:
    def hat(width: Lengths, count: int = 2, level: float = 0.5) -> Kernel:
        """A hat."""
        return Kernel(np.full((1, 1, count), level * float(np.sum(width))))

    made = grammar.build_kernel("hat:width=3,1.5,3mm:count=4", (*BUILTIN_KERNELS, hat), GRID)
    assert made.weights.tolist() == [[[2.0] * 4]]
    assert made.name == "hat:width=3,1.5,3mm:count=4"
    assert [str(p) for p in grammar.describe(hat).parameters] == [
        "width=LENGTH",
        "[count=2]",
        "[level=0.5]",
    ]


def test_a_parameter_of_an_unreadable_type_is_the_authors_mistake() -> None:
    def odd(table: dict[str, int]) -> Kernel:
        """An odd one."""
        return Kernel(np.ones((1, 1, 1)))

    with pytest.raises(TypeError, match="no way to read"):
        grammar.describe(odd)


# ---------------------------------------------------------------------------------------------------------------------
# Against scipy.ndimage and numpy


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("truncate", [4, 2.5])
def test_gaussian_is_scipys(
    volume: np.ndarray, sigma: tuple[float, float, float], truncate: float
) -> None:
    text = "gaussian:sigma={},{},{}vox:truncate={}".format(*sigma, truncate)
    assert_close(
        correlated(volume, text), ndimage.gaussian_filter(volume, sigma, truncate=truncate)
    )


@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_is_scipys(volume: np.ndarray, sigma: tuple[float, float, float]) -> None:
    text = "log:sigma={},{},{}vox".format(*sigma)
    assert_close(correlated(volume, text), ndimage.gaussian_laplace(volume, sigma))


def test_laplacian_is_scipys(volume: np.ndarray) -> None:
    assert_close(correlated(volume, "laplacian"), ndimage.laplace(volume))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("letters", ["dhw", "zyx"])
def test_sobel_and_prewitt_are_scipys(volume: np.ndarray, axis: int, letters: str) -> None:
    assert_close(correlated(volume, f"sobel:axis={letters[axis]}"), ndimage.sobel(volume, axis))
    assert_close(correlated(volume, f"prewitt:axis={letters[axis]}"), ndimage.prewitt(volume, axis))


@pytest.mark.parametrize("axis", range(3))
def test_gradient_is_numpys_inside(volume: np.ndarray, axis: int) -> None:
    inside = tuple(slice(1, -1) if a == axis else slice(None) for a in range(3))
    received = correlated(volume, f"gradient:axis={'dhw'[axis]}")
    assert_close(received[inside], np.gradient(volume, axis=axis)[inside])


@pytest.mark.parametrize("size", ["3", "5", "1,3,5", "7,1,1"])
def test_box_is_scipys_uniform_filter(volume: np.ndarray, size: str) -> None:
    shape = [int(n) for n in size.split(",")]
    assert_close(
        correlated(volume, f"box:size={size}"),
        ndimage.uniform_filter(volume, shape if shape[1:] else shape[0]),
    )


def test_unsharp_and_sharpen_by_scipys_parts(volume: np.ndarray) -> None:
    blurred = ndimage.gaussian_filter(volume, (1, 2, 1.5))
    assert_close(
        correlated(volume, "unsharp:sigma=1,2,1.5vox:amount=0.7"), volume + 0.7 * (volume - blurred)
    )
    assert_close(correlated(volume, "sharpen:amount=0.3"), volume - 0.3 * ndimage.laplace(volume))


def test_dog_by_scipys_parts(volume: np.ndarray) -> None:
    narrow = ndimage.gaussian_filter(volume, (1, 0.8, 1.2))
    wide = ndimage.gaussian_filter(volume, (1.6, 1.28, 1.92))
    assert_close(correlated(volume, "dog:sigma=1,0.8,1.2vox"), narrow - wide)
    wide = ndimage.gaussian_filter(volume, (2, 2, 2))
    assert_close(correlated(volume, "dog:sigma=1,0.8,1.2vox:sigma2=2vox"), narrow - wide)


# ---------------------------------------------------------------------------------------------------------------------
# By their formulas


def coordinates(size: int = 9) -> np.ndarray:
    return np.indices((size, size, size)) - (size - 1) / 2


@pytest.mark.parametrize("neighbours", [6, 18, 26])
def test_laplacian_is_exact_on_polynomials_of_degree_3(neighbours: int) -> None:
    d, h, w = coordinates()
    polynomial = (
        2 * d**2
        - 3 * h**2
        + 0.5 * w**2
        + d * h
        - 4 * h * w
        + 7 * w
        - 1
        + d**3
        + d * h * w
        + w * h**2
    )
    exact = 4 - 6 + 1 + 6 * d + 2 * w
    received = correlated(polynomial, f"laplacian:neighbours={neighbours}")
    inside = (slice(1, -1),) * 3
    np.testing.assert_allclose(received[inside], exact[inside], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("neighbours", "faces", "edges", "corners", "centre", "scale"),
    [(6, 1, 0, 0, -6, 1), (18, 2, 1, 0, -24, 6), (26, 14, 3, 1, -128, 30)],
)
def test_laplacian_weights(
    neighbours: int, faces: int, edges: int, corners: int, centre: int, scale: int
) -> None:
    weights = read_kernel(f"laplacian:neighbours={neighbours}").weights * scale
    assert weights[1, 1, 1] == pytest.approx(centre)
    assert weights[0, 1, 1] == pytest.approx(faces)
    assert weights[0, 0, 1] == pytest.approx(edges)
    assert weights[0, 0, 0] == pytest.approx(corners)


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("identity", 1), ("box", 1), ("box:size=2,3,4", 1), ("gaussian:fwhm=6mm", 1), ("gaussian:sigma=0vox", 1),
        ("ball:radius=6mm", 1), ("laplacian", 0), ("laplacian:neighbours=18", 0), ("laplacian:neighbours=26", 0),
        ("dog:sigma=1vox", 0), ("sobel:axis=d", 0), ("prewitt:axis=h", 0), ("scharr:axis=w", 0), ("gradient:axis=d", 0),
        ("sharpen", 1), ("sharpen:amount=2.5", 1), ("unsharp:sigma=3mm:amount=2", 1),
    ],
)  # fmt: skip
def test_sums(text: str, total: float) -> None:
    kernel = read_kernel(text, GRID)
    assert abs(kernel.sum - total) <= 1e-12 * np.abs(kernel.weights).sum()


@pytest.mark.parametrize(
    ("name", "slope"), [("sobel", 32), ("prewitt", 18), ("scharr", 512), ("gradient", 1)]
)
@pytest.mark.parametrize("axis", range(3))
def test_derivatives_are_positive_where_values_rise(name: str, slope: float, axis: int) -> None:
    ramps = coordinates(7)
    for other in range(3):
        received = correlated(ramps[other], f"{name}:axis={'dhw'[axis]}")[3, 3, 3]
        assert received == pytest.approx(slope if other == axis else 0)


def test_fwhm_is_what_it_says() -> None:
    assert read_kernel("gaussian:fwhm=8,6,4vox").fwhm() == pytest.approx((8, 6, 4), rel=0.01)
    assert math.isclose(builtin.FWHM_PER_SIGMA, 2.3548200450309493)
    by_sigma = read_kernel(f"gaussian:sigma={6 / builtin.FWHM_PER_SIGMA}mm", GRID)
    np.testing.assert_allclose(
        read_kernel("gaussian:fwhm=6mm", GRID).weights, by_sigma.weights, rtol=1e-12
    )


def test_gaussian_radius() -> None:
    assert read_kernel("gaussian:sigma=1,1.4,0.5vox").size == (9, 13, 5)
    assert read_kernel("gaussian:sigma=1vox:truncate=2.4").size == (5, 5, 5)
    assert read_kernel("gaussian:sigma=1vox:truncate=2.5").size == (7, 7, 7)


@pytest.mark.parametrize("parameter", ["fwhm", "sigma"])
def test_gaussian_of_zero_width_is_the_identity_along_that_axis(parameter: str) -> None:
    assert read_kernel(f"gaussian:{parameter}=0mm", GRID).weights.tolist() == [[[1.0]]]
    kernel = read_kernel(f"gaussian:{parameter}=0,0,2vox")
    assert kernel.size[:2] == (1, 1)
    assert kernel.size[2] > 1


def test_ball_counts_voxel_centres() -> None:
    for radius in (0.5, 1, 1.5, 2, 3.7, 5):
        inside = (coordinates(13) ** 2).sum(axis=0) <= radius**2
        weights = read_kernel(f"ball:radius={radius}vox").weights
        assert weights.shape == (2 * math.floor(radius) + 1,) * 3
        assert np.count_nonzero(weights) == inside.sum()
        assert set(np.unique(weights)) <= {0.0, 1 / inside.sum()}


def test_ball_is_an_ellipsoid_in_voxels() -> None:
    assert read_kernel("ball:radius=6mm", GRID).size == (5, 9, 9)
    d, h, w = coordinates()
    inside = (d * 3) ** 2 + (h * 1.5) ** 2 + (w * 1.5) ** 2 <= 36
    assert np.array_equal(read_kernel("ball:radius=6mm", GRID).weights > 0, inside[2:-2])


@pytest.mark.parametrize("step", [0.1, 0.3, 0.6, float(np.float32(0.1)), float(np.float32(0.7))])
def test_ball_survives_the_rounding_of_a_spacing(step: float) -> None:
    for count in (1, 3, 6, 7):
        grid = Grid((step, step, step), "mm")
        received = read_kernel(f"ball:radius={round(step, 3) * count:.6g}mm", grid)
        assert received.size == (2 * count + 1,) * 3
        assert received.weights[count, count, 0] > 0


def test_narrow_log_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one voxel to each side"):
        read_kernel("log:sigma=1,1,0.1vox")
    with pytest.raises(SpecError, match="positive on every axis"):
        read_kernel("log:sigma=0,1,1vox")


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gaussian", "gaussian needs fwhm or sigma, as in"),
        ("gaussian:fwhm=2vox:sigma=1vox", "gaussian needs fwhm or sigma, not both"),
        ("gaussian:6mm", "parameters are key=value, joined by ':'; received '6mm'"),
        ("gaussian:", "parameters are key=value"),
        ("gaussian:fwhm=", "parameters are key=value"),
        ("gaussian:sgma=1vox", "did you mean 'sigma'"),
        ("gaussian:sigma=1vox:sigma=2vox", "sigma is given twice"),
        ("gaussian:sigma=2", "sigma=2 needs a unit: sigma=2mm or sigma=2vox"),
        ("gaussian:sigma=1vox:truncate=0", "truncate must be positive"),
        ("gaussian:sigma=1vox:truncate=4vox", "truncate is a number without a unit"),
        ("gaussian:sigma=1vox:truncate=nan", "truncate is a number"),
        ("box:size=0", "size must be at least 1"),
        ("box:size=3mm", "size counts voxels and takes no unit: size=3,"),
        ("box:size=3,3,5vox", "size counts voxels and takes no unit: size=3,3,5,"),
        ("box:size=2.5", "whole number"),
        ("box:size=3,3", "one whole number of voxels or three"),
        ("ball", "ball needs radius=LENGTH, as in ball:radius=2vox"),
        ("ball:radius=0mm", "radius must be finite and positive"),
        ("laplacian:neighbours=8", "neighbours is 6, 18 or 26, received neighbours=8"),
        ("dog:sigma=1vox:ratio=1", "ratio must be above 1"),
        ("dog:sigma=1vox:ratio=2:sigma2=3vox", "dog takes sigma2 or ratio, not both"),
        ("dog:sigma=2vox:sigma2=1vox", "dog subtracts a wider Gaussian from a narrower one"),
        ("dog:sigma=0vox", "dog subtracts a wider Gaussian"),
        ("dog:sigma=1vox:sigma2=1vox", "dog subtracts a wider Gaussian"),
        ("sobel", r"sobel needs axis=AXES, as in sobel:axis=d"),
        ("sobel:axis=q", "axis is d, h or w"),
        ("sobel:axis=0", "axis is d, h or w"),
        ("sharpen:amount=much", "amount is a number"),
        ("identity:size=3", "identity has no parameter 'size'; identity takes none"),
    ],
)
def test_wrong_parameters(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        read_kernel(text, GRID)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "gaussian:sigma=1000mm", "gaussian:sigma=0,0,1e8vox", "gaussian:sigma=1e308vox", "gaussian:sigma=1vox:truncate=1e300",
        "gaussian:fwhm=1e30m", "box:size=1000", "box:size=999999999999999999", "ball:radius=1m", "ball:radius=1e300vox",
        "log:sigma=1m", "dog:sigma=1m", "dog:sigma=1vox:ratio=1e9", "dog:sigma=1vox:ratio=1e308", "unsharp:sigma=1m",
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_before_anything_is_allocated(text: str) -> None:
    with pytest.raises(SpecError, match="give a smaller"):
        read_kernel(text, GRID)


@pytest.mark.parametrize(
    "call",
    [
        lambda: builtin.gaussian(sigma=-1),
        lambda: builtin.gaussian(sigma=math.nan),
        lambda: builtin.gaussian(sigma=(1, 2)),
        lambda: builtin.gaussian(sigma="2vox"),  # type: ignore[arg-type]
        lambda: builtin.ball(radius=math.inf),
        lambda: builtin.box(size=2.5),  # type: ignore[arg-type]
        lambda: builtin.sobel("depth"),
        lambda: builtin.laplacian(7),  # type: ignore[arg-type]
        lambda: builtin.sharpen(math.nan),
        lambda: builtin.unsharp(1, amount=math.inf),
        lambda: builtin.dog(1, ratio=math.nan),
        lambda: builtin.dog(1, ratio=math.inf),
    ],
)
def test_functions_check_what_python_gives_them(call: object) -> None:
    with pytest.raises(SpecError):
        call()  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_unknown_name_suggests_the_nearest_and_denies_the_file() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown kernel 'gausian'; did you mean 'gaussian'"
    ) as caught:
        read_kernel("gausian")
    assert "nor is there a file of this name" in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_name_with_parameters() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown kernel 'Gausian'; did you mean 'gaussian'"
    ) as caught:
        read_kernel("Gausian:fwhm=6mm", GRID)
    assert "file" not in str(caught.value)


def test_mm_needs_a_spacing() -> None:
    with pytest.raises(
        ShapeError, match=r"fwhm=6mm: the volume tells no voxel spacing.*give it in vox"
    ) as caught:
        read_kernel("gaussian:fwhm=6mm", Grid())
    assert caught.value.exit_code == 4
    with pytest.raises(
        ShapeError,
        match=r"fwhm=6mm needs a voxel spacing, and no volume is known.*pass a Volume to conv3d",
    ):
        read_kernel("gaussian:fwhm=6mm")


def test_white_space_around_parts_is_harmless() -> None:
    assert read_kernel(" gaussian : sigma = 1, 1, 2 vox ").size == (9, 9, 17)


@pytest.mark.parametrize(
    "text",
    ["", ":", "=", "::", "gaussian::", "gaussian:=", "a:b=c", "gaussian:sigma=,vox", "\0", "é"],
)
def test_nonsense_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(Conv3DError):
        read_kernel(text)

"""Initializers: seeds, bounds, fans, moments, and how they are asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.layer import initializers
from conv3d_cli.layer.initializers import (
    INITIALIZERS,
    RandomInitializer,
    compute_fans,
    derived_seed,
    get,
    serialize,
)

KERNEL = (3, 3, 3, 4, 16)
RANDOM = [c.__name__ for c in INITIALIZERS if issubclass(c, RandomInitializer)]


@pytest.mark.parametrize("name", RANDOM)
class TestEverySeed:
    def test_repeats(self, name: str) -> None:
        first, again = get(name, seed=3), get({"class_name": name, "config": {"seed": 3}})
        np.testing.assert_array_equal(first(KERNEL), first(KERNEL))
        np.testing.assert_array_equal(first(KERNEL), again(KERNEL))
        assert first == again
        assert not np.array_equal(first(KERNEL), get(name, seed=4)(KERNEL))

    def test_none_draws_one(self, name: str) -> None:
        one, other = get(name), get(name)
        np.testing.assert_array_equal(one(KERNEL), one(KERNEL))
        assert not np.array_equal(one(KERNEL), other(KERNEL))
        assert one == other  # the same config
        assert one.get_config()["seed"] is None

    def test_another_shape_is_another_sample(self, name: str) -> None:
        initializer = get(name, seed=3)
        long, short = initializer((3, 3, 3, 4, 16)), initializer((3, 3, 3, 4, 8))
        assert not np.array_equal(long.reshape(-1)[: short.size], short.reshape(-1))

    def test_seed_of_its_own_wins(self, name: str) -> None:
        assert get(f"{name}:seed=3", seed=5).get_config()["seed"] == 3

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_dtype(self, name: str, dtype: str) -> None:
        values = get(name, seed=3)(KERNEL, dtype)
        assert (values.dtype, values.shape) == (np.dtype(dtype), KERNEL)
        np.testing.assert_allclose(
            values, get(name, seed=3)(KERNEL, "float64"), rtol=2e-3, atol=1e-4
        )

    @pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63, 2**70])
    def test_any_whole_number(self, name: str, seed: int) -> None:
        assert np.isfinite(get(name, seed=seed)(KERNEL)).all()


def test_other_processes_draw_the_same() -> None:
    program = "from conv3d_cli.layer.initializers import get; print(get('he_normal', seed=3)((2, 2, 2, 1, 2)).tobytes().hex())"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == get("he_normal", seed=3)((2, 2, 2, 1, 2)).tobytes().hex()


def test_the_numbers_stay_as_they_are() -> None:
    """The recipe in the module's head, written again; models made with a seed must come out the same next year."""
    words = np.random.PCG64(np.random.SeedSequence((5, 2, 3))).random_raw(6)
    uniform = [int(w) >> 11 for w in words]
    expected = np.array(uniform).reshape(2, 3) / 2**53
    np.testing.assert_array_equal(
        get("random_uniform:minval=0:maxval=1:seed=5")((2, 3), "float64"), expected
    )
    u, v = expected.reshape(-1)[:2]
    radius, angle = np.sqrt(-2 * np.log(1 - u)), 2 * np.pi * v
    got = get("random_normal:stddev=1:seed=5")((2, 3), "float64").reshape(-1)[:2]
    np.testing.assert_allclose(got, [radius * np.cos(angle), radius * np.sin(angle)], rtol=1e-13)
    assert expected[0, 0] == pytest.approx(FIRST_NUMBER, abs=1e-15)


FIRST_NUMBER = 0.766846489277669


@given(st.integers(), st.text(max_size=8), st.text(max_size=8))
def test_derived_seeds(seed: int, one: str, other: str) -> None:
    assert 0 <= derived_seed(seed, one) < 2**32
    assert (derived_seed(seed, one) == derived_seed(seed, other)) == (one == other)


# ---------------------------------------------------------------------------------------------------------------------
# Bounds and moments


@pytest.mark.parametrize(
    ("name", "scale", "fan"),
    [
        ("glorot_uniform", 1, "fan_avg"),
        ("glorot_normal", 1, "fan_avg"),
        ("he_uniform", 2, "fan_in"),
        ("he_normal", 2, "fan_in"),
        ("lecun_uniform", 1, "fan_in"),
        ("lecun_normal", 1, "fan_in"),
    ],
)
@pytest.mark.parametrize(
    "shape", [(3, 3, 3, 4, 32), (5, 5, 5, 2, 16), (1, 1, 1, 64, 64), (4000,), (60, 70)]
)
def test_variance_and_support(name: str, scale: float, fan: str, shape: tuple[int, ...]) -> None:
    fan_in, fan_out = compute_fans(shape)
    variance = scale / {"fan_in": fan_in, "fan_avg": (fan_in + fan_out) / 2}[fan]
    values = get(name, seed=11)(shape).astype(np.float64)
    limit = (
        np.sqrt(3 * variance) if "uniform" in name else 2 * np.sqrt(variance) / 0.87962566103423978
    )
    assert np.abs(values).max() <= limit * (1 + 1e-7)
    assert np.abs(values).max() > 0.98 * limit
    assert values.var() == pytest.approx(variance, rel=6 / values.size**0.5)
    assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)


def test_groups_count_their_channels_once_and_all_filters() -> None:
    """A kernel of 8 channels in 4 groups with 16 filters is (3, 3, 3, 2, 16)."""
    assert compute_fans((3, 3, 3, 2, 16)) == (27 * 2, 27 * 16)
    assert compute_fans(()) == (1, 1)
    assert compute_fans((3, 5)) == (3, 5)
    assert compute_fans((3, 3, 3, 2, 16), input_axes=[3], output_axes=[0, 4]) == (2, 48)
    with pytest.raises(ShapeError, match="do not fit"):
        get("variance_scaling:input_axes=7,8:output_axes=0,1")((2, 3))


def test_truncated_normal_is_cut_at_two_sigma() -> None:
    values = get("truncated_normal:mean=1:stddev=2:seed=1")((100, 100)).astype(np.float64)
    assert values.min() >= -3
    assert values.max() <= 5
    assert values.std() == pytest.approx(2 * 0.8796, rel=0.03)
    assert values.mean() == pytest.approx(1, abs=0.1)
    assert get("truncated_normal:stddev=0")((5,)).tolist() == [0] * 5


@given(
    st.floats(-100, 100, width=32), st.floats(0, 10, width=32), st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 2**32),
)  # fmt: skip
def test_uniform_keeps_its_bounds_in_every_dtype(
    low: float, spread: float, dtype: str, seed: int
) -> None:
    high = low + spread
    values = get(
        {"class_name": "RandomUniform", "config": {"minval": low, "maxval": high, "seed": seed}}
    )((50,), dtype)
    step = float(np.spacing(np.abs(values).max().astype(dtype)))
    if spread > 4 * step:
        assert min(values.tolist()) >= low
        assert max(values.tolist()) < high


@pytest.mark.parametrize("shape", [(3, 3, 3, 2, 8), (1, 1, 1, 2, 8), (2, 2, 2, 1, 8), (4, 7)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    values = get("orthogonal:gain=3:seed=2")(shape, "float64")
    matrix = values.reshape(-1, shape[-1]) / 3
    small = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(small, np.eye(len(small)), atol=1e-12)


def test_orthogonal_is_uniform_over_rotations() -> None:
    """Without the signs of R's diagonal the first column would lean to one side."""
    first = np.array([get("orthogonal", seed=s)((3, 3))[0, 0] for s in range(400)])
    assert abs(first.mean()) < 0.15
    assert (first > 0).mean() == pytest.approx(0.5, abs=0.12)


def test_constants() -> None:
    assert get("zeros")((2, 2)).tolist() == [[0, 0], [0, 0]]
    assert get("one")((2,)).tolist() == [1, 1]
    assert get("constant")((2,)).tolist() == [0, 0]
    assert get("constant:value=0.5")((2,), "float64").tolist() == [0.5, 0.5]
    assert get("identity:gain=2")((2, 3)).tolist() == [[2, 0, 0], [0, 2, 0]]
    for name in ("zeros", "orthogonal", "he_normal", "random_uniform"):
        assert get(name)((0, 3)).shape == (0, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Identifiers


@pytest.mark.parametrize("cls", INITIALIZERS)
def test_every_initializer_is_found_and_documented(cls: Any) -> None:
    assert ">>>" in cls.__doc__
    names = [name for name in initializers.names() if type(get(name)) is cls]
    assert len(names) == 1
    assert type(get(cls.__name__)) is cls
    assert type(get(cls)) is cls
    made = get(names[0], seed=1)
    assert get(made) is made
    assert get(serialize(made)) == made
    assert serialize(made)["class_name"] == cls.__name__


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("normal", "RandomNormal"),
        ("uniform", "RandomUniform"),
        ("zero", "Zeros"),
        ("OrthogonalInitializer", "Orthogonal"),
        ("glorot_uniformV2", "GlorotUniform"),
        ("GlorotUniformV2", "GlorotUniform"),
        (
            {"class_name": "GlorotUniform", "config": {"seed": None, "dtype": "float32"}},
            "GlorotUniform",
        ),
        ({"class_name": "HeNormal", "config": {"seed": 3}}, "HeNormal"),
        (
            {
                "module": "keras.initializers",
                "class_name": "Zeros",
                "config": {},
                "registered_name": None,
            },
            "Zeros",
        ),
    ],
)
def test_identifiers(identifier: Any, name: str) -> None:
    assert type(get(identifier)).__name__ == name


def test_seed_generators_functions_and_arrays() -> None:
    generator = {"class_name": "SeedGenerator", "config": {"seed": 9, "name": "g"}}
    assert get({"class_name": "HeNormal", "config": {"seed": generator}}) == get(
        "he_normal", seed=9
    )
    assert get(None) is None
    assert get(lambda shape, dtype: np.full(shape, 2))((2,)).tolist() == [2, 2]
    values = np.arange(3.0)
    assert get(values)((3,)).tolist() == [0, 1, 2]
    with pytest.raises(ShapeError, match="made shape"):
        get(values)((4,))
    with pytest.raises(SpecError, match="cannot be written"):
        serialize(get(values))


@pytest.mark.parametrize(
    "name", ["glorot", "Normal", "xavier_uniform", "", 3, ["zeros"], "kaiming_normal_"]
)
def test_unknown_names(name: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown initializer .* available: zeros, ones"):
        get(name)


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("stft", "STFT|stft makes kernels of three axes"),
        ("STFTInitializer", "three axes"),
        ("variance_scaling:scale=0", "scale must be a positive float, received scale=0"),
        ("variance_scaling:scale=-1", "scale must be a positive float"),
        ("variance_scaling:mode=fan", "invalid mode argument: 'fan'; use one of fan_in"),
        ("variance_scaling:distribution=gauss", "invalid distribution argument: 'gauss'"),
        ("he_normal:scale=2", "he_normal has no parameter 'scale'"),
        ("random_normal:std=2", "did you mean 'stddev'"),
        ("random_normal:stddev=wide", "stddev of RandomNormal must be a number"),
        ("random_normal:seed=1.5", "seed must be a whole number, received 1.5"),
        ("constant:value=none", "value of Constant must be a number"),
        ({"class_name": "Zeros", "config": 3}, "must be a table"),
    ],
)
def test_wrong_parameters(identifier: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        get(identifier)


def test_wrong_shapes() -> None:
    with pytest.raises(
        ShapeError, match="at least two-dimensional, received shape=\\(3,\\) of rank 1"
    ):
        get("orthogonal")((3,))
    with pytest.raises(
        ShapeError,
        match="only be used for 2D matrices, received shape=\\(3, 3, 3, 1, 1\\) of rank 5",
    ):
        get("identity")((3, 3, 3, 1, 1))
    for bad in ((-1, 2), (1.5,), (True,)):
        with pytest.raises(ShapeError, match="whole numbers"):
            get("zeros")(bad)

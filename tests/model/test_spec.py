"""Shape arithmetic against walks, tables and NumPy's own padding; and every wish that must be refused."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOUNDARIES, Geometry, geometries, sizes

from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.model import spec as spec_module
from conv3d_cli.model.spec import (
    Boundary,
    ConvSpec,
    VoxelTransform,
    output_size,
    pad_sizes,
    parse_padding,
    triple,
)

CUBE = (1, 6, 6, 6, 4)
LAYER = (3, 3, 3, 4, 2)

# ---------------------------------------------------------------------------------------------------------------------
# Sizes and pads

# n, k, s, d, padding, output, before, after
WORKED = [
    # SAME, as TensorFlow splits it
    (6, 3, 1, 1, "same", 6, 1, 1),
    (6, 3, 2, 1, "same", 3, 0, 1),
    (7, 3, 2, 1, "same", 4, 1, 1),
    (6, 4, 1, 1, "same", 6, 1, 2),
    (224, 7, 2, 1, "same", 112, 2, 3),
    (64, 3, 3, 1, "same", 22, 1, 1),
    (65, 5, 2, 2, "same", 33, 4, 4),
    (10, 2, 2, 1, "same", 5, 0, 0),
    (10, 1, 2, 1, "same", 5, 0, 0),
    # the odd voxel goes after
    (9, 2, 1, 1, "same", 9, 0, 1),
    (9, 4, 1, 1, "same", 9, 1, 2),
    (9, 2, 1, 3, "same", 9, 1, 2),
    (9, 3, 1, 2, "same", 9, 2, 2),
    # a kernel larger than the volume; a stride larger than the kernel
    (1, 5, 1, 1, "same", 1, 2, 2),
    (8, 2, 4, 1, "same", 2, 0, 0),
    # VALID and FULL
    (10, 3, 1, 2, "valid", 6, 0, 0),
    (3, 3, 5, 1, "valid", 1, 0, 0),
    (7, 3, 2, 1, "valid", 3, 0, 0),
    (2, 3, 1, 1, "valid", 0, 0, 0),
    (4, 3, 1, 2, "full", 8, 4, 4),
    (4, 1, 1, 1, "full", 4, 0, 0),
    # pairs, also far beyond the volume
    (4, 3, 1, 1, (0, 1), 3, 0, 1),
    (2, 2, 3, 1, (11, 7), 7, 11, 7),
]


@pytest.mark.parametrize(("n", "k", "s", "d", "padding", "size", "before", "after"), WORKED)
def test_worked_sizes(
    n: int, k: int, s: int, d: int, padding: Any, size: int, before: int, after: int
) -> None:
    assert output_size(n, k, s, d, padding) == size
    assert pad_sizes(n, k, s, d, padding) == (before, after)


@given(sizes(30), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4))
def test_same_is_tensorflows_formula(n: int, k: int, s: int, d: int) -> None:
    span = (k - 1) * d + 1
    total = max(span - s, 0) if n % s == 0 else max(span - n % s, 0)
    assert pad_sizes(n, k, s, d, "same") == (total // 2, total - total // 2)
    assert output_size(n, k, s, d, "same") == math.ceil(n / s)


@given(geometries())
def test_sizes_are_counted_by_walking(geometry: Geometry) -> None:
    problem = geometry.problem
    for axis in range(3):
        n, k, s, d = (
            values[axis]
            for values in (
                geometry.size,
                geometry.kernel_size,
                geometry.strides,
                geometry.dilation_rate,
            )
        )
        wish = geometry.padding if isinstance(geometry.padding, str) else geometry.padding[axis]
        before, after = oracle.paddings(n, k, s, d, wish)
        assert (problem.pad_before[axis], problem.pad_after[axis]) == (before, after)
        taps = [k_ * d for k_ in range(k)]
        starts = [
            p
            for p in range(-before, n + after)
            if (p + before) % s == 0 and p + taps[-1] < n + after
        ]
        assert problem.out_size[axis] == len(starts)
        assert problem.extent[axis] == taps[-1] + 1


@given(geometries())
def test_shapes_of_a_problem(geometry: Geometry) -> None:
    problem = geometry.problem
    assert problem.in_shape == geometry.in_shape
    assert problem.out_shape == (geometry.batch, *problem.out_size, geometry.filters)
    groups = geometry.groups if geometry.per_group is not None else geometry.channels
    assert (problem.groups, problem.in_channels, problem.filters) == (
        groups,
        geometry.channels,
        geometry.filters,
    )
    assert problem.channels_per_group == (geometry.per_group or 1)
    assert problem.filters_per_group * groups == geometry.filters
    assert problem.taps == math.prod(geometry.kernel_size) * (geometry.per_group or 1)
    assert problem.flops == 2 * problem.taps * math.prod(problem.out_shape)


# ---------------------------------------------------------------------------------------------------------------------
# What is read where


@given(geometries(), st.data())
def test_source_indices_are_the_walked_ones(geometry: Geometry, data: st.DataObject) -> None:
    problem = geometry.problem
    for axis in range(3):
        start = data.draw(st.integers(0, problem.out_size[axis] - 1))
        stop = data.draw(st.integers(start + 1, problem.out_size[axis]))
        indices = problem.source_indices(axis, start, stop)
        stride, extent = (
            geometry.strides[axis],
            (geometry.kernel_size[axis] - 1) * geometry.dilation_rate[axis] + 1,
        )
        assert len(indices) == (stop - start - 1) * stride + extent
        first = start * stride - problem.pad_before[axis]
        walked = [
            oracle.outside(first + i, geometry.size[axis], geometry.boundary)
            for i in range(len(indices))
        ]
        assert indices == [-1 if index is None else index for index in walked]


@pytest.mark.parametrize(
    ("boundary", "numpy_mode"),
    [("nearest", "edge"), ("symmetric", "symmetric"), ("mirror", "reflect"), ("wrap", "wrap")],
)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_boundaries_are_numpys_pads(boundary: str, numpy_mode: Any, size: int) -> None:
    reach = 3 * size + 2
    expected = np.pad(np.arange(size), reach, mode=numpy_mode).tolist()
    assert [
        Boundary(boundary).source_index(p, size) for p in range(-reach, size + reach)
    ] == expected


@pytest.mark.parametrize("boundary", ["zeros", "constant"])
def test_constants_have_no_source(boundary: str) -> None:
    assert [Boundary(boundary).source_index(p, 2) for p in range(-2, 4)] == [-1, -1, 0, 1, -1, -1]


def test_strategies_know_every_boundary() -> None:
    assert {*BOUNDARIES, "renormalize", "renormalize-depth"} == set(spec_module.BOUNDARIES)


@given(geometries())
def test_an_output_voxel_is_centred_on_its_window(geometry: Geometry) -> None:
    problem = geometry.problem
    transform = problem.voxel_transform
    assert transform.step == geometry.strides
    for axis in range(3):
        for o in (0, problem.out_size[axis] - 1):
            taps = [
                o * geometry.strides[axis]
                + k * geometry.dilation_rate[axis]
                - problem.pad_before[axis]
                for k in range(geometry.kernel_size[axis])
            ]
            assert transform.step[axis] * o + transform.offset[axis] == sum(taps) / len(taps)


@given(geometries(), st.data())
def test_a_kernels_own_centre_moves_the_output(geometry: Geometry, data: st.DataObject) -> None:
    centre = tuple(data.draw(st.integers(0, k - 1)) for k in geometry.kernel_size)
    problem = geometry.spec.resolve(geometry.in_shape, geometry.kernel_shape, centre)
    offsets = [
        c * d - p
        for c, d, p in zip(centre, geometry.dilation_rate, problem.pad_before, strict=True)
    ]
    assert problem.voxel_transform.offset == tuple(offsets)
    assert problem.out_size == geometry.problem.out_size


def test_identity_transform() -> None:
    assert VoxelTransform().is_identity
    assert not VoxelTransform((1, 1, 2)).is_identity
    assert not VoxelTransform((1, 1, 1), (0.0, 0.5, 0.0)).is_identity


# ---------------------------------------------------------------------------------------------------------------------
# Forms of a wish


@pytest.mark.parametrize(
    ("forms", "parsed"),
    [
        (["valid", "VALID", " Valid "], "valid"),
        (["same", "SAME", "Same"], "same"),
        (["full", "FULL"], "full"),
        (["1", 1, np.int64(1), "1,1,1", "1:1", (1, 1, 1), [1, 1, 1], [(1, 1)], "1,1:1,1"], ((1, 1), (1, 1), (1, 1))),
        (["0", 0], ((0, 0), (0, 0), (0, 0))),
        (["0:1", [(0, 1)]], ((0, 1), (0, 1), (0, 1))),
        (["1,2,3", [1, 2, 3], (1, 2, 3), " 1, 2, 3"], ((1, 1), (2, 2), (3, 3))),
        (["0:1,1:1,2:0", ((0, 1), (1, 1), (2, 0)), [[0, 1], [1, 1], [2, 0]], [[0, 1], 1, (2, 0)]], ((0, 1), (1, 1), (2, 0))),
        (["1234:0,0,0", [(1234, 0), 0, 0]], ((1234, 0), (0, 0), (0, 0))),
    ],
)  # fmt: skip
def test_padding_forms(forms: list[Any], parsed: Any) -> None:
    for form in forms:
        assert parse_padding(form) == parsed
        ConvSpec(padding=form)


@pytest.mark.parametrize(
    "wrong",
    ["", "causal", "reflect", "1,2", "1,2,3,4", "1:2:3", "a", "1.5", "-1", "1,-1,1", "0:-1", "1,,1", ":", "1:", "same,same,same",
     None, True, 1.0, -1, (1, 2), [1, 2, 3, 4], [[1, 2, 3]] * 3, [1.0, 1, 1], [None] * 3, [True, 1, 1], [(True, 1)] * 3,
     {"d": 1}, [], ()],
)  # fmt: skip
def test_padding_that_is_none(wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"^padding ") as caught:
        ConvSpec(padding=wrong)
    assert "\n" not in str(caught.value)


def test_causal_says_what_keras_says() -> None:
    with pytest.raises(ValueError, match="only for Conv1D"):
        ConvSpec(padding="Causal")


@pytest.mark.parametrize(
    ("text", "mode", "value"),
    [("zeros", "zeros", 0), (" Nearest ", "nearest", 0), ("constant=-10", "constant", -10), ("constant=1e3", "constant", 1000),
     ("SYMMETRIC", "symmetric", 0), ("mirror", "mirror", 0), ("wrap", "wrap", 0), ("constant=0.1", "constant", 0.1)],
)  # fmt: skip
def test_boundary_forms(text: str, mode: str, value: float) -> None:
    boundary = Boundary.parse(text)
    assert boundary == Boundary(mode, value)
    assert Boundary.parse(boundary) is boundary
    assert Boundary.parse(str(boundary)) == boundary


@given(st.floats(allow_nan=False))
def test_a_boundary_value_is_shown_in_full(value: float) -> None:
    assert Boundary.parse(str(Boundary("constant", value))) == Boundary("constant", value)


def test_reflect_names_both_meanings() -> None:
    for text in ("reflect", "REFLECT"):
        with pytest.raises(
            SpecError, match=r"'symmetric' for scipy's \(dcba\|abcd\).*'mirror' for numpy's"
        ):
            ConvSpec(boundary=text)


@pytest.mark.parametrize(
    ("text", "error", "fact"),
    [
        ("nearst", UnknownNameError, "did you mean 'nearest'"),
        ("edge", UnknownNameError, "available: zeros, constant, nearest, symmetric, mirror, wrap"),
        ("renormalize=1", SpecError, "takes no value"),
        ("constant", SpecError, "needs a number, as in constant=0.5"),
        ("constant=", SpecError, "needs a number"),
        ("constant=a", SpecError, "'constant=a'"),
        ("zeros=1", SpecError, "takes no value"),
        ("wrap=0", SpecError, "only constant=V does"),
    ],
)
def test_boundary_that_is_none(text: str, error: type[Exception], fact: str) -> None:
    with pytest.raises(error) as caught:
        ConvSpec(boundary=text)
    assert fact in str(caught.value)


def test_a_boundary_made_by_hand_is_checked() -> None:
    with pytest.raises(SpecError, match="reflect"):
        Boundary("reflect")
    with pytest.raises(SpecError, match="takes no value"):
        Boundary("zeros", 1.0)


@pytest.mark.parametrize(
    "good", [2, np.int64(2), (2, 2, 2), [2, 2, 2], np.array([2, 2, 2]), range(2, 5)]
)
def test_triple_forms(good: Any) -> None:
    values = triple(good, "strides")
    assert values == tuple(int(v) for v in np.broadcast_to(np.array(good), 3))
    assert all(type(v) is int for v in values)


@pytest.mark.parametrize("name", ["strides", "dilation_rate"])
@pytest.mark.parametrize(
    "wrong",
    [0, -1, (1, 0, 1), (1, 1), (1, 1, 1, 1), [], 1.0, (1.0, 1, 1), 1.5, True, (True, 1, 1), None, "1", "111", b"abc",
     np.array([1.0, 1.0, 1.0]), np.array(1), np.array([[1], [1], [1]]), {1, 2, 3}, {1: 1, 2: 2, 3: 3}, math.nan],
    ids=repr,
)  # fmt: skip
def test_strides_and_dilation_must_be_whole_and_positive(name: str, wrong: Any) -> None:
    with pytest.raises(SpecError, match=rf"^{name} must be .*received"):
        ConvSpec(**{name: wrong})


@pytest.mark.parametrize("name", ["groups", "filters"])
@pytest.mark.parametrize("wrong", [0, -1, 1.0, True, "1", (1,), math.inf])
def test_groups_and_filters_must_be_whole_and_positive(name: str, wrong: Any) -> None:
    with pytest.raises(SpecError, match=rf"^{name} must be a whole number of at least 1, received"):
        ConvSpec(**{name: wrong})


def test_groups_none_is_refused() -> None:
    with pytest.raises(SpecError, match="groups"):
        ConvSpec(groups=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strides", "dilation_rate"), [(2, 2), ((2, 1, 1), (1, 2, 1)), ((1, 1, 3), 2), (2, (1, 1, 5))]
)
def test_strides_with_dilation_name_the_cure(strides: Any, dilation_rate: Any) -> None:
    with pytest.raises(SpecError) as caught:
        ConvSpec(strides=strides, dilation_rate=dilation_rate)
    message = str(caught.value)
    assert "not supported in conjunction with dilation_rate > 1" in message
    assert str(triple(strides, "")) in message
    assert str(triple(dilation_rate, "")) in message
    assert "pass allow_strided_dilation=True" in message
    spec = ConvSpec(
        strides=strides, dilation_rate=dilation_rate, padding="same", allow_strided_dilation=True
    )
    assert spec.resolve((1, 9, 9, 9, 1), (3, 3, 3)).strides == triple(strides, "")


@pytest.mark.parametrize(
    ("strides", "dilation_rate"), [((1, 1, 1), (2, 1, 3)), ((4, 1, 2), (1, 1, 1))]
)
def test_strides_or_dilation_alone_are_legal(strides: Any, dilation_rate: Any) -> None:
    ConvSpec(strides=strides, dilation_rate=dilation_rate)


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit

REFUSED = [
    (ConvSpec(), CUBE, (3, 3, 3, 3, 2), ["takes 3 channels", "the volume has 4"]),
    (
        ConvSpec(groups=2),
        CUBE,
        (3, 3, 3, 4, 2),
        ["takes 8 channels (4 in each of 2 groups)", "has 4", "as many, or another kernel"],
    ),
    (ConvSpec(), (1, 5, 6, 7, 4), (3, 3, 3, 5, 2), ["pass data_format='channels_first'"]),
    (ConvSpec(), (1, 5, 6, 7, 4), (3, 3, 3, 7, 2), ["pass data_format='channels_last'"]),
    (
        ConvSpec(groups=3),
        CUBE,
        (3, 3, 3, 1, 3),
        ["groups must divide the input channels", "groups=3", "4 channels"],
    ),
    (
        ConvSpec(groups=2),
        CUBE,
        (3, 3, 3, 2, 3),
        ["groups must divide the filters", "groups=2", "3 filters"],
    ),
    (ConvSpec(groups=2), CUBE, (3, 3, 3), ["3-D kernel", "every channel separately", "groups=2"]),
    (ConvSpec(filters=5), CUBE, LAYER, ["filters=5", "gives 2"]),
    (ConvSpec(filters=5), CUBE, (3, 3, 3), ["filters=5", "gives 4"]),
    (
        ConvSpec(),
        (1, 6, 2, 6, 4),
        LAYER,
        ["larger than the volume along height", "3 voxels against 2", "'valid'"],
    ),
    (ConvSpec(), (1, 6, 6, 2, 4), LAYER, ["along width"]),
    (
        ConvSpec(dilation_rate=3),
        CUBE,
        LAYER,
        ["along depth", "3 voxels (7 with dilation_rate=3) against 6"],
    ),
    (
        ConvSpec(padding=1),
        (1, 6, 1, 6, 4),
        (3, 4, 3, 4, 2),
        ["along height", "1:1,1:1,1:1", "use padding 'same'"],
    ),
    (ConvSpec(), (1, 0, 6, 6, 4), LAYER, ["no voxels", "(0, 6, 6)"]),
    (ConvSpec(padding="same"), (1, 6, 6, 0, 4), LAYER, ["no voxels"]),
    (ConvSpec(padding="same"), (1, 6, 6, 6, 0), LAYER, ["0 channels"]),
    (ConvSpec(padding="same"), (1, 6, 6, 6, 0), (3, 3, 3), ["0 channels"]),
    (ConvSpec(), CUBE, (3, 3), ["(3, 3)"]),
    (ConvSpec(groups=2), CUBE, (3, 3, 3, 4), ["groups=2"]),
    (ConvSpec(), CUBE, (3, 3), ["(3, 3)"]),
    (ConvSpec(), CUBE, (3, 0, 3), ["at least 1", "(3, 0, 3)"]),
    (ConvSpec(), CUBE, (3, 3, 3, 4, 0), ["at least 1"]),
]


@pytest.mark.parametrize(("spec", "volume", "kernel", "facts"), REFUSED)
def test_what_does_not_fit_is_refused(
    spec: ConvSpec, volume: tuple[int, ...], kernel: tuple[int, ...], facts: list[str]
) -> None:
    with pytest.raises(ShapeError) as caught:
        spec.resolve(volume, kernel)
    message = str(caught.value)
    assert "\n" not in message
    for fact in facts:
        assert fact in message


@given(geometries(), st.data())
def test_one_voxel_less_than_the_kernel_is_refused(geometry: Geometry, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 2))
    extent = geometry.problem.extent
    size = list(extent)
    valid = ConvSpec(strides=geometry.strides, dilation_rate=geometry.dilation_rate, groups=geometry.groups,
                     allow_strided_dilation=True)  # fmt: skip
    fits = valid.resolve((1, *size, geometry.channels), geometry.kernel_shape)
    assert fits.out_size == (1, 1, 1)
    size[axis] -= 1
    with pytest.raises(ShapeError):
        valid.resolve((1, *size, geometry.channels), geometry.kernel_shape)


def test_an_empty_batch_is_no_error() -> None:
    assert ConvSpec().resolve((0, 6, 6, 6, 4), LAYER).out_shape == (0, 4, 4, 4, 2)


@pytest.mark.parametrize("filters", [None, 2, np.int64(2)])
def test_filters_may_be_confirmed(filters: Any) -> None:
    assert ConvSpec(filters=filters).resolve(CUBE, LAYER).filters == 2


def test_numpy_integers_become_plain_ones() -> None:
    # NumPy's small integers would overflow in products
    problem = ConvSpec(strides=np.array([2, 1, 1], np.int8), padding="same").resolve(
        np.array([1, 120, 120, 120, 1], np.int8), np.array([3, 3, 3, 1, 100], np.int8)
    )
    assert problem.flops == 2 * 60 * 120 * 120 * 100 * 27
    numbers = itertools.chain(
        problem.in_shape, problem.out_shape, problem.strides, problem.pad_before, problem.extent
    )
    assert all(type(n) is int for n in numbers)


def test_a_specification_holds_what_it_parsed() -> None:
    spec = ConvSpec(
        strides=2,
        padding="0:1,1,2",
        dilation_rate=[1, 1, 1],
        boundary="constant=-1.5",
        filters=np.int64(4),
    )
    assert spec.strides == (2, 2, 2)
    assert spec.padding == ((0, 1), (1, 1), (2, 2))
    assert spec.dilation_rate == (1, 1, 1)
    assert spec.boundary == Boundary("constant", -1.5)
    again = ConvSpec(2, ((0, 1), 1, 2), filters=4, boundary=Boundary("constant", -1.5))
    assert spec == again
    assert hash(spec) == hash(again)
    assert replace(spec, boundary="mirror").boundary == Boundary("mirror")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_part_is_the_problem_of_a_volume_of_its_channels() -> None:
    spec = ConvSpec(padding="same", strides=2)
    for kernel_shape in ((3, 3, 3), (3, 3, 3, 2), (3, 2, 1, 1, 6)):
        whole = ConvSpec(
            padding="same", strides=2, groups=3 if len(kernel_shape) == 5 else 1
        ).resolve((4, 9, 8, 7, 3), kernel_shape)
        assert whole.part(3).in_shape == (1, 9, 8, 7, 3)
        assert whole.part(3).filters == whole.filters
        if len(kernel_shape) < 5:
            assert whole.part(1) == spec.resolve((1, 9, 8, 7, 1), kernel_shape)
    with pytest.raises(ValueError, match="mixes all 2 channels"):
        ConvSpec().resolve((1, 9, 8, 7, 2), (3, 3, 3, 2, 6)).part(1)

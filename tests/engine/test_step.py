"""The step record: its groups hold every field once, by the right bits, and keep alive what its addresses point to."""

from __future__ import annotations

import gc
import weakref
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from conv3d_cli.engine import Team, make_plan
from conv3d_cli.engine.step import (
    FIELDS,
    GROUPS,
    AlgorithmData,
    F,
    FieldGroup,
    Geometry,
    Output,
    Pointer,
    Source,
    StepRecord,
    fill,
)
from conv3d_cli.model.spec import ConvSpec


def test_every_field_belongs_to_one_group() -> None:
    named = [field.name for group in GROUPS for field in fields(group)]  # type: ignore[arg-type]
    assert tuple(named) == FIELDS
    assert [getattr(F, name) for name in FIELDS] == list(range(len(FIELDS)))
    assert len(set(named)) == len(named)
    assert {kind for group in GROUPS for _, kind in group.kinds} == {"int", "float", "Memory"}
    assert set(GROUPS) == set(FieldGroup.__subclasses__())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_a_group_fills_its_own_fields_alone(group: type[Any]) -> None:
    array = np.zeros(3)
    values = {"int": 7, "float": -0.1, "Memory": array}
    step = StepRecord(group(**{name: values[kind] for name, kind in group.kinds}))
    for number, name in enumerate(FIELDS):
        kind = dict(group.kinds).get(name)
        if kind == "float":
            assert step.numbers.view(np.float64)[number] == -0.1
        else:
            assert step[number] == {"int": 7, "Memory": array.ctypes.data, None: 0}[kind]


@pytest.mark.parametrize("value", [0, 2, -0.0, 1e300, float("nan"), float("-inf")])
def test_a_real_field_has_the_bits_of_float64(value: float) -> None:
    step = StepRecord(Source(fill=value))
    assert step[F.fill] == np.float64(value).view(np.int64)


def test_addresses_of_elements_and_of_views() -> None:
    array = np.zeros((3, 4), np.int16)
    step = StepRecord(Source(source=array[1, 2:], planes=Pointer(array.reshape(-1), 5)))
    assert step[F.source] - array.ctypes.data == 2 * (4 + 2)
    assert step[F.planes] - array.ctypes.data == 2 * 5
    assert step[F.rows] == 0


def test_a_record_keeps_alive_what_it_points_to() -> None:
    class Watched(np.ndarray):
        pass

    array = np.zeros(5).view(Watched)
    watch = weakref.ref(array)
    step = StepRecord(AlgorithmData(weights=array))
    del array
    gc.collect()
    assert watch() is not None
    del step
    gc.collect()
    assert watch() is None


def test_a_slab_is_free_once_it_is_computed() -> None:
    """A plan that held the last slab would take its memory twice."""

    class Watched(np.ndarray):
        pass

    problem = ConvSpec(padding="same").resolve((1, 4, 8, 8, 1), (3, 3, 3, 1, 1))
    plan = make_plan(problem, np.ones((3, 3, 3, 1, 1)), algorithm="direct")
    source, out = (np.ones((4, 8, 8, 1), np.float32).view(Watched) for _ in range(2))
    watches = [weakref.ref(source), weakref.ref(out)]
    with Team(2) as team:
        plan.convolve_slab(source, out, problem.source_indices(0, 0, 4), team)
        del source, out
        gc.collect()
        assert [watch() for watch in watches] == [None, None]


def test_several_records_are_filled_alike() -> None:
    steps = [StepRecord(Geometry(channels=2)) for _ in range(3)]
    out = np.zeros(4)
    fill(steps, Output(out, out_row_step=6))
    for step in steps:
        assert (step[F.out], step[F.out_row_step], step[F.channels]) == (out.ctypes.data, 6, 2)


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(TypeError, match="chanels"):
        Geometry(chanels=3)  # type: ignore[call-arg]

"""The compiled loops check no bounds, so whatever would lead them outside an array is refused before they run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from conv3d_cli.engine import Team, make_plan
from conv3d_cli.engine.weighting import Certainty, Division, clear, divide, label_extents
from conv3d_cli.model.spec import ConvSpec

PROBLEM = ConvSpec(padding="same").resolve((1, 4, 8, 9, 2), (3, 3, 3, 2, 3))
WHOLE = [[*range(-1, n), -1] for n in PROBLEM.in_size]


def convolve(
    planes: list[int] | None = None,
    source: Any = (4, 8, 9, 2),
    out: Any = (4, 8, 9, 3),
    **more: Any,
) -> Any:
    plan = make_plan(PROBLEM, np.ones((3, 3, 3, 2, 3)), algorithm="direct")
    result = np.zeros(out, np.float32)
    with Team(1) as team:
        plan.convolve_slab(
            np.ones(source, np.float32),
            result,
            WHOLE[0] if planes is None else planes,
            team,
            **more,
        )
    return result


def test_right_tables_run() -> None:
    assert convolve()[1, 1, 1].tolist() == [54.0] * 3


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"planes": [-1, 0, 1, 2, 3, 4000]}, IndexError, "planes must be 0 to 3, or -1 outside; received 4000"),
        ({"planes": [-1, 0, 1, 2, 3, 4]}, IndexError, "received 4"),
        ({"planes": [-2, 0, 1, 2, 3, -1]}, IndexError, "received -2"),
        ({"planes": [-1, 0, 1, 2, 3]}, ValueError, "4 outputs read 6 planes, received 5"),
        ({"planes": [-1, 0, 1, 2, 3, -1, -1]}, ValueError, "received 7"),
        ({"rows": [*WHOLE[1][:-1], 8]}, IndexError, "rows must be 0 to 7"),
        ({"columns": [*WHOLE[2], 0]}, ValueError, "9 outputs read 11 columns, received 12"),
        ({"source": (4, 8, 9, 1)}, ValueError, r"\(planes, rows, columns, 2\)"),
        ({"source": (4, 7, 9, 2)}, IndexError, "rows must be 0 to 6"),
        ({"out": (4, 8, 9, 2)}, ValueError, r"\(d, h, w, 3\)"),
        ({"out": (4, 8, 10, 3)}, ValueError, "10 outputs read 12 columns"),
        ({"bias": np.zeros(2)}, ValueError, "bias must have 3 numbers"),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused(
    wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        convolve(**wrong)


@pytest.mark.parametrize(
    ("mask", "positions", "error", "words"),
    [
        (
            (4, 8, 9),
            (WHOLE[0], WHOLE[1], [*WHOLE[2][:-1], 9]),
            IndexError,
            "the mask's columns must be 0 to 8",
        ),
        ((3, 8, 9), tuple(WHOLE), IndexError, "the mask's planes must be 0 to 2"),
        ((4, 8, 9), (WHOLE[0][:-1], *WHOLE[1:]), ValueError, "the mask has 5 planes for 6"),
    ],
)
def test_a_wrong_mask_is_refused(
    mask: Any, positions: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        convolve(certainty=Certainty(np.ones(mask, np.float32), positions))


def test_a_mask_whose_rows_are_not_contiguous_is_refused() -> None:
    mask = np.ones((4, 8, 18), np.float32)[:, :, ::2]
    with pytest.raises(ValueError, match="rows must be contiguous"):
        convolve(certainty=Certainty(mask, (WHOLE[0], WHOLE[1], WHOLE[2])))


def test_a_mask_that_is_outside_where_the_source_is_not_is_refused() -> None:
    positions = (WHOLE[0], [-1, *WHOLE[1][1:3], -1, *WHOLE[1][4:]], WHOLE[2])
    with pytest.raises(IndexError, match="the mask's rows are outside where the source's are not"):
        convolve(certainty=Certainty(np.ones((4, 8, 9), np.float32), positions))


@pytest.mark.parametrize("dtype", [">f4", np.float32])
def test_an_output_that_may_not_be_written_is_refused(dtype: Any) -> None:
    plan = make_plan(PROBLEM, np.ones((3, 3, 3, 2, 3)), algorithm="direct")
    out = np.zeros((4, 8, 9, 3), dtype)
    out.flags.writeable = dtype != np.float32
    with Team(1) as team, pytest.raises(ValueError, match="writable array"):
        plan.convolve_slab(np.ones((4, 8, 9, 2), np.float32), out, WHOLE[0], team)
    assert not out.any()


def test_sums_of_another_dtype_are_not_divided() -> None:
    plan = make_plan(PROBLEM, np.ones((3, 3, 3, 2, 3)), algorithm="direct")
    out = np.zeros((4, 8, 9, 3), np.uint8)
    with (
        Team(1) as team,
        pytest.raises(ValueError, match="sums to be divided must be float32, received uint8"),
    ):
        plan.convolve_slab(
            np.ones((4, 8, 9, 2), np.float32), out, WHOLE[0], team, division=Division(0.1, 0.0)
        )


@pytest.mark.parametrize(
    ("division", "words"),
    [
        (
            Division(0.1, 0.0, coverage=np.ones((4, 8, 9, 3))),
            "coverage of float32 sums must be float32",
        ),
        (Division(0.1, 0.0, inside=np.ones((4, 8, 9, 1), ">f4")), "native byte order"),
        (
            Division(0.1, 0.0, coverage=np.ones((3, 8, 9, 3), np.float32)),
            r"the coverage must be \(4, 8, 9, 3\)",
        ),
        (
            Division(0.1, 0.0, coverage=np.ones((4, 8, 9, 6), np.float32)[..., ::2]),
            "channels must be contiguous",
        ),
        (
            Division(0.1, 0.0, inside=np.ones((4, 8, 8, 1), np.uint8)),
            r"the mask of outputs must be \(4, 8, 9, 1\)",
        ),
    ],
)
def test_a_division_into_other_arrays_is_refused(division: Division, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        convolve(division=division)


def test_arrays_of_other_shapes_are_refused() -> None:
    plan = make_plan(PROBLEM, np.ones((3, 3, 3, 2, 3)), algorithm="direct")
    sums = np.ones((4, 8, 9, 3), np.float32)
    with pytest.raises(ValueError, match="do not fit an output"):
        plan.store(sums, np.empty((4, 8, 9, 4), np.float32))
    with Team(1) as team:
        with pytest.raises(ValueError, match="does not fit sums"):
            divide([(sums, np.ones((4, 8, 2, 1), np.float32))], Division(0.1, 0.0), team)
        with pytest.raises(ValueError, match="one dtype"):
            divide([(sums, np.ones((4, 8, 9, 1)))], Division(0.1, 0.0), team)
        with pytest.raises(ValueError, match="the mask of outputs"):
            clear(sums, np.ones((4, 8, 8, 1), np.uint8), team)


def test_labels_widen_their_own_extents_alone() -> None:
    labels = np.zeros((2, 3, 5), np.float32)
    labels[1, 2, 3:] = 4
    extents = label_extents(labels)
    assert extents.shape == (5, 3, 2)
    assert extents[4].tolist() == [[1, 1], [2, 2], [3, 4]]
    assert (extents[1:4, :, 1] < extents[1:4, :, 0]).all()
    with pytest.raises(ValueError, match="contiguous"):
        label_extents(labels[:, :, ::2])


def test_a_wrong_table_is_refused_by_an_interpreter_that_skips_assertions() -> None:
    """It read plane 4000 of 4 under `python -O`, and gave numbers."""
    code = """
import numpy as np
from conv3d_cli.engine import Team, make_plan
from conv3d_cli.model.spec import ConvSpec
assert False
problem = ConvSpec(padding="same").resolve((1, 4, 8, 8, 1), (3, 3, 3, 1, 1))
with Team(1) as team:
    out = np.zeros((4, 8, 8, 1), np.float32)
    plan = make_plan(problem, np.ones((3, 3, 3, 1, 1)))
    plan.convolve_slab(np.ones((4, 8, 8, 1), np.float32), out, [-1, 0, 1, 2, 3, 4000], team)
"""
    ran = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert (
        "IndexError: the source's planes must be 0 to 3, or -1 outside; received 4000" in ran.stderr
    )

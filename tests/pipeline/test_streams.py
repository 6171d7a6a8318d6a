"""Whole jobs over files of any axes, read and written as streams or not, in thin slabs: the voxels
are always the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from profiles import examples
from strategies import small_numbers

from conv3d_cli import conv3d, read_volume
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline import blocking
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

LETTERS = "rtzyxc"  # the order in which results are compared


@pytest.fixture(autouse=True, scope="module")
def thin_slabs() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocking, "SLAB_BYTES", 1)
        patch.setattr(blocking, "DEEP_SLAB_BYTES", 1)
        patch.setattr(blocking, "LEAST_SLAB", 2)
        yield


def in_common_order(array: np.ndarray, letters: str) -> np.ndarray:
    """All of LETTERS, absent ones of size 1."""
    missing = [a for a in LETTERS if a not in letters]
    return array.reshape(*array.shape, *[1] * len(missing)).transpose(
        [(letters + "".join(missing)).index(a) for a in LETTERS]
    )


def save(path: Path, array: np.ndarray) -> None:
    """An array as a file whose axes, slowest first, are the array's."""
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        nibabel.save(nibabel.Nifti1Image(array.T, np.diag([1, 1, 2, 1])), path)


@st.composite
def volumes(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    letters = "".join(
        draw(
            st.permutations(sorted({"y", "x", *draw(st.sets(st.sampled_from("zctr"), min_size=1))}))
        )
    )
    sizes = {
        "z": st.integers(1, 7),
        "y": st.integers(1, 3),
        "x": st.integers(1, 3),
        "c": st.sampled_from([1, 2, 3]),
    }
    shape = tuple(draw(sizes.get(a, st.integers(1, 2))) for a in letters)
    return letters, small_numbers(shape, "float32", draw(st.integers(0, 99)))


def numbers(*shape: int) -> np.ndarray:
    return small_numbers(shape, "float32", 1)


kernels = st.sampled_from(["filter", "one filter", "two filters", "as many filters"])
files = st.sampled_from(["a.npy", "a.nii", "a.nii.gz"])


@settings(max_examples=examples(60))
@given(volumes(), files, files, kernels, st.sampled_from(["symmetric", "wrap", "zeros"]))
@example(("ctyx", numbers(2, 3, 3, 3)), "a.nii.gz", "a.nii.gz", "filter", "zeros")
@example(("tcyx", numbers(2, 3, 3, 3)), "a.nii", "a.nii.gz", "filter", "zeros")
@example(("ztyx", numbers(5, 2, 3, 3)), "a.nii.gz", "a.nii.gz", "filter", "wrap")
@example(("ctzyx", numbers(3, 2, 5, 2, 2)), "a.nii.gz", "a.nii.gz", "two filters", "symmetric")
def test_any_file_to_any_file(
    tmp_path_factory: pytest.TempPathFactory,
    volume: tuple[str, np.ndarray],
    source: str,
    target: str,
    kind: str,
    boundary: str,
) -> None:
    letters, array = volume
    if "r" in letters:  # NIfTI knows no such letter
        target = "a.npy"
    folder = tmp_path_factory.getbasetemp() / "streams"
    (folder / "out").mkdir(parents=True, exist_ok=True)
    save(folder / source, array)

    channels = array.shape[letters.index("c")] if "c" in letters else 1
    filters = {"filter": 0, "one filter": 1, "two filters": 2, "as many filters": channels}[kind]
    weights = small_numbers((3, 2, 1, channels, filters) if filters else (3, 2, 1), "float64", 5)
    x = in_common_order(array, letters)
    expected = conv3d(x, weights, padding="same", boundary=boundary, threads=1)

    run_job(
        Job(
            str(folder / source),
            str(folder / "out" / target),
            (Stage(Kernel(weights), padding="same", boundary=boundary),),
            axes=letters,
            overwrite=True,
            threads=1,
        )
    )
    if target == "a.npy":  # keeps the order of the axes; their names are the caller's
        new = "c" if filters > 1 and "c" not in letters else ""
        got = in_common_order(np.load(folder / "out" / target), letters + new)
    else:  # has an order and names of its own
        written = read_volume(str(folder / "out" / target))
        got = in_common_order(written.data, written.axes)
    assert np.array_equal(got, expected)

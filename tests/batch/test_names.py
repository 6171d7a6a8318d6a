"""Names of many outputs, and the clashes that must be found before any work starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from conv3d_cli.batch.names import check_outputs, output_name
from conv3d_cli.errors import OutputExistsError, SpecError


def plan_outputs(
    inputs: list[str], *names: str, overwrite: bool = False, **named: str
) -> list[str]:
    outputs = [output_name(name, *names, **named) for name in inputs]
    check_outputs(inputs, outputs, overwrite)
    return outputs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.npy", "p_a_s.npy"),
        ("a.b.c.npy", "p_a.b.c_s.npy"),
        ("sub-01_bold.nii.gz", "p_sub-01_bold_s.nii.gz"),
        ("SUB.NII.GZ", "p_SUB_s.NII.GZ"),
        ("x.ome.tif", "p_x_s.ome.tif"),
        ("x.ome.tiff", "p_x_s.ome.tiff"),
        ("x.TIF", "p_x_s.TIF"),
        ("brain.v2.nii", "p_brain.v2_s.nii"),
        ("scan.img.gz", "p_scan_s.img.gz"),
        ("with space é.npy", "p_with space é_s.npy"),
        ("noending", "p_noending_s"),
    ],
)
def test_prefix_and_suffix_stand_around_the_name(name: str, expected: str) -> None:
    assert plan_outputs([name], "out", suffix="_s", prefix="p_") == [os.path.join("out", expected)]
    assert plan_outputs([f"in/{name}"], suffix="_s", prefix="p_") == [os.path.join("in", expected)]
    assert plan_outputs([f"in/deep/{name}"], "") == [name]  # --out-dir "" is here


def test_one_output_for_each_input_in_order() -> None:
    inputs = [f"{i % 3}/v{i}.npy" for i in range(9)]
    assert plan_outputs(inputs, "o") == [os.path.join("o", f"v{i}.npy") for i in range(9)]
    assert plan_outputs([], "o") == []


@pytest.mark.parametrize(
    ("inputs", "arguments"),
    [
        (["a/x.npy", "b/x.npy"], {"out_dir": "o"}),
        (["x.npy", "x.npy"], {"suffix": "_s"}),
        (["a/../x.npy", "./x.npy"], {"suffix": "_s"}),
        (["x.npy", "y.npy", "b/x.npy"], {"out_dir": "o", "overwrite": True}),
    ],
)
def test_two_inputs_for_one_output(inputs: list[str], arguments: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"two inputs would write .*x.*\.npy") as caught:
        plan_outputs(inputs, **arguments)
    assert inputs[0] in str(caught.value)
    assert inputs[-1] in str(caught.value)


def test_a_link_to_the_same_folder_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    inputs = [str(tmp_path / "real/x.npy"), str(tmp_path / "link/x.npy")]
    with pytest.raises(SpecError, match="two inputs"):
        plan_outputs(inputs, suffix="_s")
    with pytest.raises(OutputExistsError, match="replace the input"):
        plan_outputs(inputs[:1], str(tmp_path / "link"))


def test_an_output_that_is_its_own_input() -> None:
    with pytest.raises(
        OutputExistsError, match=r"a/x\.npy would replace the input a/x\.npy; pass --suffix"
    ):
        plan_outputs(["a/x.npy"], "a")
    assert plan_outputs(["a/x.npy"], "a", overwrite=True) == ["a/x.npy"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_another_input(overwrite: bool) -> None:
    """Even with --overwrite: the second volume would be convolved from the first one's output."""
    for inputs in (["x.npy", "x_s.npy"], ["x_s.npy", "x.npy"]):
        with pytest.raises(
            OutputExistsError, match=r"the output of x\.npy would replace the input x_s\.npy"
        ):
            plan_outputs(inputs, suffix="_s", overwrite=overwrite)

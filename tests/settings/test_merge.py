"""What is given beats a config, which beats a preset, which beats the defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import SpecError
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.make import make_job
from conv3d_cli.settings.merge import merge_settings
from conv3d_cli.settings.options import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("k.npy", np.arange(27.0).reshape(3, 3, 3))
    np.save("b.npy", np.array([0.5]))
    return tmp_path


def config(text: str) -> str:
    Path("c.toml").write_text(text)
    return "c.toml"


@pytest.mark.parametrize("given", [None, "wrap"])
@pytest.mark.parametrize("in_config", [None, "mirror"])
@pytest.mark.parametrize("preset", [None, "fsl"])
def test_the_order(
    folder: Path, given: str | None, in_config: str | None, preset: str | None
) -> None:
    path = config("" if in_config is None else f'boundary = "{in_config}"')
    settings = merge_settings(
        Settings(kernel="box:size=3", config=path, like=preset, boundary=given)
    )
    (stage,) = make_job("a.npy", "b.npy", settings).stages
    of_preset = None if preset is None else "renormalize"
    # None: the default, which the kernel decides
    assert stage.boundary == (given or in_config or of_preset)
    assert settings.run.files == (path,)


def test_the_order_of_the_jobs_own_options(folder: Path) -> None:
    path = config('dtype = "float64"\nnan = "zero"\nlike = "spm"\nmax_memory = "2G"\nlevels = 2\n')
    job = make_job(
        "a.npy",
        "b.npy",
        merge_settings(Settings(config=path, kernel="k.npy", dtype="int16", levels=1)),
    )
    assert (job.dtype, job.missing.nan, job.max_memory, job.levels) == (
        "int16",
        "zero",
        2 * 1024**3,
        1,
    )
    assert job.preset is not None
    assert job.preset.name == "spm"
    job = make_job(
        "a.npy", "b.npy", merge_settings(Settings(config=path, kernel="k.npy", like="mrtrix"))
    )
    assert job.preset is not None
    assert (job.preset.name, job.preset.yours) == ("mrtrix", {"nan": "zero"})  # the config's stays


def test_false_is_given(folder: Path) -> None:
    path = config("flip = true\nstrict = true\nmagnitude = true\n")
    settings = merge_settings(Settings(config=path, kernel="k.npy", flip=False, strict=False))
    assert (settings.stages[0].flip, settings.run.strict, settings.stages[0].magnitude) == (
        False,
        False,
        True,
    )


def test_another_kernel_takes_away_what_came_with_the_configs(folder: Path) -> None:
    path = config('kernel = "k.npy"\nbias = "b.npy"\nfilters = 1\nkernel_size = 3\nstrides = 2\n')
    (stage,) = merge_settings(Settings(config=path)).stages
    assert stage.given() == {
        "kernel": "k.npy",
        "bias": [0.5],
        "filters": 1,
        "kernel_size": 3,
        "strides": 2,
    }
    assert stage.files == ("b.npy",)
    (stage,) = merge_settings(Settings(config=path, kernel="box:size=5")).stages
    assert stage.given() == {"kernel": "box:size=5", "strides": 2}
    assert stage.files == ()


def test_what_a_config_says_of_a_kernel_it_lacks_is_asked_of_the_one_given(folder: Path) -> None:
    """`-c layer.json -k weights.npy`: three filters of size 5 are not two of size 3."""
    path = config("filters = 3\nkernel_size = 5\n")
    (stage,) = merge_settings(Settings(config=path, kernel="k.npy")).stages
    assert (stage.kernel, stage.filters, stage.kernel_size) == ("k.npy", 3, 5)


def test_a_bias_that_is_given_is_used(folder: Path) -> None:
    path = config('kernel = "k.npy"\nuse_bias = false\n')
    (stage,) = merge_settings(Settings(config=path, bias="b.npy")).stages
    assert (stage.bias, stage.use_bias) == ([0.5], None)
    (stage,) = merge_settings(Settings(config=path)).stages
    assert stage.use_bias is False


def test_a_stack_takes_a_seed_and_nothing_else(folder: Path) -> None:
    layer = {"filters": 2, "kernel_size": 3}
    Path("stack.json").write_text(json.dumps([layer, layer]))
    settings = merge_settings(Settings(config="stack.json", seed=5, dtype="float64"))
    assert [stage.seed for stage in settings.stages] == [5, 6]
    assert settings.run.dtype == "float64"
    merge_settings(Settings(config="stack.json", no_bias=False))  # says nothing
    for given, flag in (
        (Settings(no_bias=True), "no_bias="),
        (Settings(strides=2, seed=1), "strides="),
        (Settings(flip=False), "flip="),
        (Settings(kernel="box"), "kernel="),
    ):
        with pytest.raises(
            SpecError,
            match=f"^{flag} cannot be given for a stack of 2 layers; set it in the config",
        ):
            merge_settings(Settings(**{**given.given(), "config": "stack.json"}))
    with pytest.raises(SpecError, match="like='fsl' is for one convolution"):
        merge_settings(Settings(config="stack.json", like="fsl"))


def test_json_of_keras_is_read_and_damaged_json_refused() -> None:
    text = '{"class_name": "MaxNorm", "config": {"max_value": 1.0, "axis": 0}}'
    settings = merge_settings(
        Settings(kernel="box", kernel_constraint=text, bias_constraint="non_neg")
    )
    assert settings.stages[0].kernel_constraint == json.loads(text)
    assert settings.stages[0].bias_constraint == "non_neg"
    with pytest.raises(
        SpecError, match=r"^kernel_initializer= must be a name or a JSON object, received '\{bad'"
    ):
        merge_settings(Settings(kernel_initializer="{bad"))


def test_null_in_a_config_is_not_given(folder: Path) -> None:
    Path("c.json").write_text(
        '{"padding": null, "strides": null, "activation": null, "bias": null, "kernel": "k.npy"}'
    )
    job = make_job("a.npy", "b.npy", merge_settings(Settings(config="c.json")))
    assert (job.stages[0].padding, job.stages[0].strides, job.stages[0].activations) == (
        None,
        1,
        (),
    )


def test_orientation_becomes_a_parameter_of_the_kernel() -> None:
    job = make_job(
        "a.nii", "b.nii", merge_settings(Settings(kernel="sobel:axis=x", orient="world"))
    )
    assert job.stages[0].kernel == "sobel:axis=x:orient=world"
    with pytest.raises(SpecError, match="this kernel has no direction in the world"):
        make_job(
            "a.nii",
            "b.nii",
            merge_settings(Settings(config=None, kernel_size=3, filters=1, orient="world")),
        )


def test_a_kernel_in_a_config_may_be_numbers(folder: Path) -> None:
    path = config("kernel = [[[1.0, 2.0, 1.0]]]\nactivation = 'relu'\nuse_bias = false\n")
    (stage,) = make_job("a.npy", "b.npy", merge_settings(Settings(config=path))).stages
    assert isinstance(stage.kernel, Kernel)
    np.testing.assert_array_equal(stage.kernel.weights.ravel(), [1, 2, 1])
    assert (stage.activations, stage.use_bias) == (("relu",), False)


def test_from_the_command_line_to_the_voxels(run: Any, folder: Path) -> None:
    volume = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    np.save("a.npy", volume)
    path = config(
        'kernel = "k.npy"\nboundary = "zeros"\nflip = true\ndtype = "float64"\nprecision = "float64"\n'
    )
    run("apply", "a.npy", "-c", path, "--no-flip", "--padding", "valid", "-o", "o.npy")
    kernel = np.load("k.npy")
    windows = np.lib.stride_tricks.sliding_window_view(volume.astype(float), (3, 3, 3))
    np.testing.assert_allclose(
        np.load("o.npy"), np.einsum("dhwijk,ijk->dhw", windows, kernel), rtol=1e-12
    )

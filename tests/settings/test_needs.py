"""Options that cannot have an effect: refused where the settings tell it, else a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from conv3d_cli import Grid, SpecError, Volume, convolve_file, write_volume
from conv3d_cli.model.grid import affine_from_spacing
from conv3d_cli.settings.needs import NEEDS
from conv3d_cli.settings.options import OPTION

BOX = ["-k", "box:size=3"]
OUT = ["-o", "o.nii"]
DRAWN = ["--filters", "2", "--kernel-size", "3", "-o", "o.npy"]

REFUSED = {
    "seed": ["a.nii.gz", *BOX, *OUT, "--seed", "3"],
    "kernel_initializer": ["a.nii.gz", *BOX, *OUT, "--kernel-initializer", "ones"],
    "bias_initializer": ["a.nii.gz", *BOX, *OUT, "--bias-initializer", "ones"],
    "bias_initializer ": ["a.nii.gz", *DRAWN, "--bias", "1", "--bias-initializer", "ones"],
    "bias_initializer  ": ["a.nii.gz", *DRAWN, "--no-bias", "--bias-initializer", "ones"],
    "kernel_spacing": ["a.nii.gz", *BOX, *OUT, "--kernel-spacing", "resample"],
    "kernel_spacing ": ["a.nii.gz", *DRAWN, "--kernel-spacing", "ignore"],
    "crop_kernel": ["a.nii.gz", *DRAWN, "--crop-kernel", "0.1"],
    "min_coverage": ["a.nii.gz", *BOX, *OUT, "--min-coverage", "0.5"],
    "min_coverage ": ["a.nii.gz", *BOX, *OUT, "--nan", "zero", "--min-coverage", "0.5"],
    "levels_by": ["a.nii.gz", *BOX, "-o", "o.zarr", "--levels-by", "mode"],
    "overlap": ["a.nii.gz", *BOX, *OUT, "--overlap", "0.5"],
    "blend": ["a.nii.gz", *BOX, *OUT, "--blend", "constant"],
    "recursive": ["a.nii.gz", *BOX, *OUT, "-r"],
    "include_discrete": ["a.nii.gz", *BOX, *OUT, "--include-discrete"],
    "allow_outside": ["a.nii.gz", *BOX, *OUT, "--allow-outside"],
}
ACCEPTED = {
    "seed": ["a.nii.gz", *DRAWN, "--seed", "3"],
    "kernel_initializer": ["a.nii.gz", *DRAWN, "--kernel-initializer", "ones"],
    "bias_initializer": ["a.nii.gz", *DRAWN, "--bias-initializer", "ones"],
    "kernel_spacing": ["a.nii.gz", "-k", "k.npy", *OUT, "--kernel-spacing", "ignore"],
    "crop_kernel": ["a.nii.gz", *BOX, *OUT, "--crop-kernel", "0"],
    "levels_by": ["a.nii.gz", *BOX, "-o", "o.zarr", "--levels", "2", "--levels-by", "mode"],
    "min_coverage": ["a.nii.gz", *BOX, *OUT, "--mask", "mask.nii", "--min-coverage", "0.5"],
    "min_coverage ": ["a.nii.gz", *BOX, *OUT, "--nan", "ignore", "--min-coverage", "0.5"],
    "min_coverage  ": ["a.nii.gz", *BOX, *OUT, "--missing", "0", "--min-coverage", "0.5"],
    "overlap": ["a.nii.gz", *BOX, *OUT, "--patch", "2", "--overlap", "0.5"],
    "blend": ["a.nii.gz", *BOX, *OUT, "--patch", "2", "--blend", "constant"],
    "min_coverage   ": ["a.nii.gz", *BOX, *OUT, "--like", "fsl", "--min-coverage", "0.5"],
}


def test_every_need_is_tried() -> None:
    for name in (name for need in NEEDS for name in need.options):
        assert OPTION[name]
        assert name in REFUSED
        assert name in ACCEPTED


@pytest.mark.parametrize("case", REFUSED)
def test_an_option_without_an_effect_is_refused(
    desk: Path, run: Any, error_line: Any, case: str
) -> None:
    name = case.strip()
    line = error_line(run("apply", *REFUSED[case], code=2).stderr)
    assert f"--{name.replace('_', '-')}" in line
    assert "leave" in line
    assert not list(desk.glob("o.*"))


@pytest.mark.parametrize("case", ACCEPTED)
def test_the_same_option_where_it_matters(desk: Path, run: Any, case: str) -> None:
    assert "no effect" not in run("apply", *ACCEPTED[case]).stderr


def test_python_says_the_same(desk: Path) -> None:
    with pytest.raises(SpecError, match=r"^seed has no effect: it is for a kernel drawn by"):
        convolve_file("a.nii.gz", "o.nii", "box:size=3", seed=3)


def test_explain_and_rows_of_a_manifest(desk: Path, run: Any, error_line: Any) -> None:
    line = error_line(run("explain", "a.nii.gz", *BOX, "--min-coverage", "0.5", code=2).stderr)
    assert "--min-coverage has no effect: it is for means" in line
    Path("t.csv").write_text("input,output,kernel,seed\na.nii.gz,o.nii,box:size=3,4\n")
    line = error_line(run("apply", "--manifest", "t.csv", code=2).stderr)
    assert "manifest t.csv, line 2: --seed has no effect" in line


def test_a_config_may_say_more_than_a_kernel_needs(desk: Path, run: Any) -> None:
    """A config is shared, and Keras' own names the initializers of trained weights."""
    Path("c.toml").write_text('kernel = "box:size=3"\nseed = 3\nmin_coverage = 0.5\n')
    run("apply", "a.nii.gz", "-c", "c.toml", *OUT)


NOTED = [
    (["--data-format", "channels_first"], "--data-format has no effect: the axes are known"),
    (["--data-format", "channels_last"], "--data-format has no effect: the axes are known"),
    (["--gz-level", "3"], "--gz-level has no effect: o.nii is not packed by gzip or deflate"),
    (["--timeout", "5"], "--timeout has no effect: no server is asked"),
    (["--no-bias"], "--no-bias has no effect: kernel box:size=3 has no bias"),
    (["--bias-constraint", "non_neg"], "--bias-constraint has no effect: kernel"),
    (["--bias-regularizer", "l1", "-v"], "--bias-regularizer has no effect: kernel"),
    (["--kernel-regularizer", "l1"], "--kernel-regularizer has no effect: the penalty is printed"),
    (["--activity-regularizer", "l1"], "--activity-regularizer has no effect: the penalty"),
    (["--padding", "valid", "--boundary", "nearest"], "--boundary has no effect: the kernel"),
]


@pytest.mark.parametrize(("words", "said"), NOTED, ids=[" ".join(words) for words, _ in NOTED])
def test_what_only_the_files_tell_is_a_note(
    desk: Path, run: Any, words: list[str], said: str
) -> None:
    told = " ".join(run("apply", "a.nii.gz", *BOX, *OUT, *words).stderr.split())
    assert said in told


def test_data_format_where_it_matters(desk: Path, run: Any) -> None:
    """Arrays and TIFF pages without names of axes; and softmax, which runs along the width."""
    array = np.random.default_rng(0).random((2, 5, 6, 7), np.float32)
    np.save("v.npy", array)
    tifffile.imwrite("v.tif", array, photometric="minisblack")
    first = ["--data-format", "channels_first"]
    for source in ("v.npy", "v.tif"):
        assert "no effect" not in run("apply", source, *BOX, "-o", "o.npy", *first).stderr
        Path("o.npy").unlink()
    words = ["apply", "v.npy", *BOX, "-o", "o.npy", *first, "--axes", "czyx"]
    assert "--data-format has no effect: the axes are known to be czyx" in " ".join(
        run(*words).stderr.split()
    )
    run("apply", "a.nii.gz", *BOX, *OUT, *first, "--activation", "softmax", "-v")
    values = np.asarray(__import__("nibabel").load("o.nii").dataobj)
    np.testing.assert_allclose(values.sum(axis=0), 1, rtol=1e-5)


def test_levels_of_gzip_where_they_matter(desk: Path, run: Any) -> None:
    for name, more in (("o.nii.gz", []), ("o.mgz", []), ("o.tif", ["--compression", "deflate"])):
        words = ["apply", "a.nii.gz", *BOX, "-o", name, "--gz-level", "2", *more]
        assert "no effect" not in run(*words).stderr


def test_notes_of_a_batch_are_counted(desk: Path, run: Any) -> None:
    for name in "bcd":
        spacing = (3.0, 1.5, 1.5)
        grid = Grid(spacing, "mm", affine_from_spacing(spacing, (0.0, 0.0, 0.0)))
        write_volume(f"{name}.nii", Volume(np.ones((4, 5, 6), np.float32), "zyx", grid))
    told = run("apply", "b.nii", "c.nii", "d.nii", *BOX, "--out-dir", "out", "--timeout", "5")
    assert "note: 2 more volumes: --timeout has no effect" in told.stderr


CONTRADICTIONS = [
    (["apply", "a.nii.gz", *BOX, *OUT, "-q", "-v"], "-q prints no notes"),
    (["compare", "a.nii.gz", "a.nii.gz", "--json", "-q"], "-q prints nothing"),
    (["view", "a.nii.gz", "--overwrite"], "--overwrite is for -o"),
    (["kernel", "show", "box:size=3", "--overwrite"], "--overwrite is for -o"),
    (["rerun", "o.json", "--overwrite"], "--overwrite is for -o"),
    (["info", "a.nii.gz", "--mask", "mask.nii"], "--mask is for --fwhm"),
    (["explain", "a.nii.gz", *BOX, "--read-rate", "10M"], "--read-rate is for --workers"),
    (["explain", "a.nii.gz", *BOX, "--worker-threads", "1"], "--worker-threads is for --workers"),
    (
        ["explain", "a.nii.gz", *BOX, "--workers", "2", "--scheduler", "local:2"],
        "--scheduler counts the workers",
    ),
    (["kernel", "show", "box:size=3", "--kernel-spacing", "ignore"], "--kernel-spacing has no"),
    (["kernel", "make", "box:size=3", "--kernel-spacing", "resample", "-o", "n.npy"], "has no eff"),
]


@pytest.mark.parametrize(("words", "said"), CONTRADICTIONS)
def test_options_of_all_commands(
    desk: Path, run: Any, error_line: Any, words: list[str], said: str
) -> None:
    assert said in error_line(run(*words, code=2).stderr)


def test_a_manifest_that_names_every_output(desk: Path, run: Any, error_line: Any) -> None:
    Path("t.csv").write_text("input,output\na.nii.gz,o.nii\n")
    for flag in ("--suffix", "--prefix"):
        line = error_line(run("apply", "--manifest", "t.csv", *BOX, flag, "x_", code=2).stderr)
        assert f"manifest t.csv names every output; leave out {flag}" in line
    for flag in ("--allow-outside", "--include-discrete"):
        assert flag in error_line(run("apply", "--manifest", "t.csv", *BOX, flag, code=2).stderr)
    Path("t.csv").write_text("input,output\na.nii.gz,o.nii\nmask.nii,n/a\n")
    run("apply", "--manifest", "t.csv", *BOX, "--suffix", "_x")
    assert Path("mask_x.nii").exists()


def test_recursive_with_a_folder(desk: Path, run: Any) -> None:
    (desk / "scans" / "deep").mkdir(parents=True)
    Path("a.nii.gz").rename(desk / "scans" / "deep" / "a.nii.gz")
    run("apply", "scans", "-r", *BOX, "--out-dir", "out")
    assert (desk / "out" / "deep" / "a.nii.gz").exists()

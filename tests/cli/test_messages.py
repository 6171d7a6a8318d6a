"""Messages that lead on: a wrong kind of file, name or layout, with what to pass instead."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli import Kernel, conv3d, convolve_file
from conv3d_cli.errors import ShapeError

WEIGHTS = Path(__file__).parent.parent / "data" / "weights"


# ---------------------------------------------------------------------------------------------------------------------
# Files of another kind


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-c", "k.npy"], 2, "k.npy is no config; pass it as the kernel: -k k.npy"),
        (["-c", "a.nii.gz"], 2, "a.nii.gz is no config; pass it as the kernel: -k a.nii.gz"),
        (["-c", "state.pt"], 2, "state.pt is no config; it holds trained layers: pass one as the kernel, -k state.pt::LAYER"),
        (["-c", "net.safetensors"], 2, "pass one as the kernel, -k net.safetensors::LAYER"),
        (["-c", "c.toml"], 3, "cannot read config c.toml: it is not UTF-8 text"),
        (["-c", "nope.toml"], 3, "cannot read config nope.toml: no such file"),
        (["-c", "."], 3, "it is a folder"),
        (["-k", "x.foo"], 3, "cannot read x.foo: neither its content nor its name is of a kernel (see conv3d help kernels)"),
        (["-k", "light.ckpt::conv"], 2, "no layer 'conv'; did you mean 'enc.conv'? it holds enc.conv "),
        (["-k", "box", "-o", "."], 2, "cannot write .: it names a folder; pass it as --out-dir ."),
        (["-k", "box", "-o", "new/"], 2, "cannot write new/: it names a folder; pass it as --out-dir new/"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_file_of_another_kind(
    words: list[str], code: int, said: str, desk: Path, run: Any, error_line: Any
) -> None:
    for name in ("state.pt", "net.safetensors"):
        shutil.copy(WEIGHTS / name, name)
    shutil.copy("state.pt", "light.ckpt")
    for name in ("c.toml", "x.foo"):
        Path(name).write_bytes(b"\x80\x93")
    output = [] if "-o" in words else ["-o", "o.nii"]
    assert said in error_line(run("apply", "a.nii.gz", *words, *output, code=code).stderr)
    assert not Path("o.nii").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Every option by the name that was typed, and a cure for each


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--min-coverage", "2"], 2, "--min-coverage must be a fraction of the kernel's weight"),
        (["--crop-kernel", "2"], 2, "--crop-kernel must be the part of"),
        (["--subtract-background", "x"], 2, "--subtract-background must be border (the median"),
        (["--magnitude"], 2, "--magnitude is for several derivatives"),
        (["--kernel-size", "5"], 4, "--kernel-size must be the size of kernel"),
        (["--missing", "0", "--nan", "zero"], 2, "--missing 0.0 leaves voxels out, and --nan zero does not: pass --nan ignore or --nan propagate"),
        (["--missing", "nan"], 2, "--missing must be a number that voxels can equal"),
        (["--to-fwhm", "8"], 2, "--to-fwhm=8 needs a unit: --to-fwhm=8mm"),
        (["--groups", "0"], 2, "--groups must be a whole number of at least 1, received '0'"),
        (["--filters", "0"], 2, "--filters must be a whole number of at least 1, received '0'"),
        (["--filters", "3"], 4, "the kernel gives 1 output channel; correct it, or leave it out"),
        (["--chunks", "1,2"], 2, "--chunks must be a whole number of at least 1, or three as in 2,1,1"),
        (["-j", "100000000000"], 2, "--threads must be a whole number from 1 to 4096"),
        (["--bias", "1", "--no-bias"], 2, "--bias and --no-bias contradict each other; leave one out"),
        (["--bias", "1,2"], 4, "has 2 values for 1 output channel; give one value"),
        (["--to-fwhm", ""], 2, "--to-fwhm must be a value, received ''; write it, or leave it out (is a variable unset?)"),
        (["--axes", ""], 2, "--axes must be a value, received ''"),
        (["--glob", ""], 2, "--glob must be a value, received ''"),
        (["--out-dir", ""], 2, "--out-dir must be the name of a folder, received ''"),
        (["--depfile", "folder"], 1, "folder: it is a folder; name a file in it"),
        (["--algorithm", "sparse"], 4, "; leave it out, and the fastest that can is taken"),
        (["-k", "five.npy"], 4, "the kernel takes 2 channels, but the volume has 1; pass a volume with as many, or another kernel"),
        (["-k", "complex.npy"], 4, "received dtype complex128; save its real part or magnitude"),
        (["-k", "text.npy"], 4, "received dtype <U1; save it as float32"),
        (["-k", "nan.npy"], 4, "received 27 NaN or infinite (the first at (0, 0, 0)); correct them"),
        (["-k", "none.npy"], 4, "is empty, shape (0, 3, 3); it needs a weight"),
        (["-k", "kk.npy"], 3, "kk.npy: no such file; did you mean k.npy?"),
        (["-k", "psf.npy"], 3, "psf.npy: no such file in "),
        (["--mask", "a.nii.gz/1.nii"], 3, "a part of its path is a file, and no folder; correct the path"),
        (["--mask", "empty.nii"], 3, "the file is empty; copy it again"),
        (["--mask", "text.nii"], 3, "received b'hell'; give it the suffix of its own format"),
        (["--axes", "zy"], 2, "but the volume has 3: (7, 9, 8); name each once"),
        (["-k", "box:size=3:size=5"], 2, "size is given twice: size=3 and size=5; leave one out"),
        (["-k", "rows.txt"], 3, "'1 2 x'; write them with spaces, tabs or commas between"),
        (["--mask", "nothing.npy"], 4, "all its voxels are 0; name another"),
        (["--mask", "cut.nii.gz"], 3, "; copy it again"),
        (["--mask", "cut.npy"], 3, "; copy it again"),
        (["--mask", "cut.nii"], 3, "; copy it again"),
        (["--mask", "text.tif"], 3, "(it begins with b'hell'); give it the suffix of its own format"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_message_names_what_was_typed_and_a_cure(
    words: list[str], code: int, said: str, desk: Path, run: Any, error_line: Any
) -> None:
    np.save("five.npy", np.ones((3, 3, 3, 2, 4)))
    np.save("complex.npy", np.ones((3, 3, 3), complex))
    np.save("text.npy", np.full((3, 3, 3), "a"))
    np.save("nan.npy", np.full((3, 3, 3), np.nan))
    np.save("none.npy", np.ones((0, 3, 3)))
    Path("folder").mkdir()
    Path("empty.nii").touch()
    Path("rows.txt").write_text("1 2 x")
    np.save("nothing.npy", np.zeros((7, 9, 8)))
    for name, size in (("a.nii.gz", 700), ("mask.nii", 600), ("nothing.npy", 600)):
        cut = "cut" + "".join(Path(name).suffixes)
        Path(cut).write_bytes(Path(name).read_bytes()[:size])
    for name in ("text.nii", "text.tif"):
        Path(name).write_text("hello" * 100)
    kernel = [] if {"-k", "--to-fwhm"} & set(words) else ["-k", "k.npy"]
    output = [] if "--out-dir" in words else ["-o", "o.nii"]
    line = error_line(run("apply", "a.nii.gz", *kernel, *words, *output, code=code).stderr)
    assert said in line
    assert not Path("o.nii").exists()


def test_python_reads_names_of_arguments(desk: Path) -> None:
    with pytest.raises(ValueError, match=r"^min_coverage must be a fraction"):
        convolve_file("a.nii.gz", "o.nii", "box", min_coverage=2)
    with pytest.raises(ValueError, match=r"missing=0.* and nan='zero' does not: pass nan='ignore'"):
        convolve_file("a.nii.gz", "o.nii", "box", missing=0, nan="zero")
    with pytest.raises(ValueError, match=r"received dtype <U19; read_kernel\(\) reads a text"):
        Kernel("gaussian:sigma=1vox")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"threads must be a whole number from 1 to 4096"):
        conv3d(np.ones((3, 3, 3)), np.ones((1, 1, 1)), threads=10**11)


def test_words_that_are_none_of_a_few(run: Any, error_line: Any) -> None:
    said = error_line(run("describe", "jsn", code=2).stderr)
    assert "must be json, boutiques or man, received 'jsn'; did you mean 'json'?" in said
    assert "did you mean" not in error_line(run("help", "nosuch", code=2).stderr)
    assert "did you mean 'masks'?" in error_line(run("help", "msaks", code=2).stderr)


def test_a_lightning_checkpoint_is_read_like_a_state_dict(desk: Path, run: Any) -> None:
    shutil.copy(WEIGHTS / "state.pt", "light.ckpt")
    rng = np.random.default_rng(1)
    np.save("x.npy", rng.random((5, 5, 5, 2), np.float32))
    for name in (str(WEIGHTS / "state.pt"), "light.ckpt"):
        run("apply", "x.npy", "-k", f"{name}::enc.conv", "-o", f"{Path(name).suffix[1:]}.npy")
    np.testing.assert_array_equal(np.load("pt.npy"), np.load("ckpt.npy"))


def test_sidecars_and_manifests_that_are_none(desk: Path, run: Any, error_line: Any) -> None:
    said = error_line(run("rerun", "k.npy", code=3).stderr)
    assert said.endswith("it is not UTF-8 text; name the .json beside an output of apply --sidecar")
    said = error_line(run("apply", "--manifest", "a.nii.gz", "-k", "box", code=3).stderr)
    assert said.endswith(
        "a manifest is a table of volumes (.csv, .tsv); name a volume without --manifest"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_config_may_come_from_a_pipe(desk: Path, shell: Any) -> None:
    os.mkfifo("pipe.toml")
    with subprocess.Popen(["sh", "-c", "echo 'fwhm = \"6mm\"' > pipe.toml"]):
        done = shell("apply", "a.nii.gz", "-c", "pipe.toml", "-o", "o.nii")
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_missing_level_says_which_there_are(tmp_path: Path, run: Any, error_line: Any) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="w")
    for number in range(3):
        group.create_array(f"s{number}", shape=(4, 4, 4), dtype="f4")
    said = error_line(run("info", tmp_path / "a.ome.zarr" / "1", code=3).stderr)
    assert said.endswith("no such file or folder; a.ome.zarr holds s0, s1, s2")


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's layout


def test_pytorchs_layout_is_named_where_shapes_show_it() -> None:
    x, w = np.ones((1, 5, 5, 5, 2)), np.ones((8, 2, 3, 3, 3))
    hint = r"it looks like PyTorch's \(filters, in_channels, d, h, w\): pass kernel_layout='torch'"
    for bias in (None, np.ones(8)):
        with pytest.raises(ShapeError, match=hint):
            conv3d(x, w, bias)
        assert conv3d(x, w, bias, kernel_layout="torch").shape == (1, 3, 3, 3, 8)
    with pytest.raises(ShapeError) as caught:
        conv3d(x, np.ones((3, 3, 3, 2, 8)), np.ones(5))
    assert "PyTorch" not in str(caught.value)
    assert "the bias of the kernel must be" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Notes


def test_clipping_says_what_keeps_the_values(desk: Path, run: Any) -> None:
    told = run("apply", "a.nii.gz", "-k", "laplacian", "--dtype", "uint16", "-o", "o.nii").stderr
    assert (
        "did not fit uint16 (0 to 65535) and were clipped; --dtype float32 keeps all values, int16 negative ones"
        in told
    )
    told = run("apply", "a.nii.gz", "-k", "laplacian", "--dtype", "int8", "-o", "p.nii").stderr
    assert told.rstrip().endswith(
        "did not fit int8 (-128 to 127) and were clipped; --dtype float32 keeps all values, --scale auto fits them in"
    )


def test_a_temporary_file_is_explained(tmp_path: Path, run: Any) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4, 5), np.float32))  # zyxc; NIfTI stores czyx
    told = run("apply", tmp_path / "a.npy", "-k", "box", "-o", tmp_path / "o.nii.gz", "-v").stderr
    if "temporary file" in told:
        assert "goes through a temporary file in $TMPDIR, since its file is " in told
        assert "that takes space and time, the result is the same" in told


def test_compare_says_what_rounding_explains(desk: Path, run: Any) -> None:
    float_image = nibabel.load("a.nii.gz")
    values = np.asarray(float_image.dataobj).astype(np.float32) * 0.37
    nibabel.save(nibabel.Nifti1Image(values, float_image.affine), "f.nii")
    image = nibabel.Nifti1Image(np.round(values / 0.5).astype(np.int16), float_image.affine)
    image.header.set_slope_inter(0.5, 0)
    nibabel.save(image, "i.nii")
    told = run("compare", "f.nii", "i.nii", code=7).stdout
    assert (
        "rounding: i.nii stores int16 in steps of 0.5, half a step is 0.25: rounding alone explains them"
        in told
    )
    found = json.loads(run("compare", "f.nii", "i.nii", "--json", code=7).stdout)
    largest = float(np.abs(nibabel.load("i.nii").get_fdata()).max())
    assert found["largest_value"] == pytest.approx(largest)
    share = 100 * found["largest_difference"] / largest
    assert f"; the largest is {share:.2g} % of B's largest value" in told
    nibabel.save(nibabel.Nifti1Image(values + 1, float_image.affine), "g.nii")
    assert "rounding alone does not explain them" in run("compare", "g.nii", "i.nii", code=7).stdout
    assert "rounding" not in run("compare", "g.nii", "f.nii", code=7).stdout


# ---------------------------------------------------------------------------------------------------------------------
# info


def test_info_tells_the_repetition_time(tmp_path: Path, run: Any) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 720
    nibabel.save(image, tmp_path / "a.nii")
    assert "\ntime     720 ms between time points (TR)\n" in run("info", tmp_path / "a.nii").stdout
    found = json.loads(run("info", tmp_path / "a.nii", "--json").stdout)
    assert (found["time_step"], found["time_unit"]) == (720, "ms")
    image.header.set_xyzt_units("mm", "unknown")
    nibabel.save(image, tmp_path / "b.nii")
    found = json.loads(run("info", tmp_path / "b.nii", "--json").stdout)
    assert (found["time_step"], found["time_unit"]) == (720, "")
    assert "720 without a unit between time points" in run("info", tmp_path / "b.nii").stdout
    image.header["pixdim"][4] = 1  # what programs write that know nothing
    nibabel.save(image, tmp_path / "c.nii")
    assert "time_step" not in json.loads(run("info", tmp_path / "c.nii", "--json").stdout)


def test_info_tells_channels_and_time_steps_of_microscopes(tmp_path: Path, run: Any) -> None:
    tifffile = pytest.importorskip("tifffile")
    stack = np.zeros((3, 2, 4, 5, 6), np.uint16)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        stack,
        metadata={
            "axes": "TCZYX",
            "TimeIncrement": 250.0,
            "TimeIncrementUnit": "ms",
            "Channel": {"Name": ["DAPI", "GFP"]},
        },
    )
    tifffile.imwrite(
        tmp_path / "b.tif",
        stack.swapaxes(1, 2),
        imagej=True,
        metadata={"axes": "TZCYX", "finterval": 0.25},
    )
    found = json.loads(run("info", tmp_path / "a.ome.tif", "--json").stdout)
    assert (found["time_step"], found["time_unit"]) == (250, "ms")
    assert found["channels"] == ["DAPI", "GFP"]
    assert "channels DAPI, GFP" in run("info", tmp_path / "a.ome.tif").stdout
    assert json.loads(run("info", tmp_path / "b.tif", "--json").stdout)["time_step"] == 0.25


def test_info_tells_channels_and_time_steps_of_zarr_and_nrrd(tmp_path: Path, run: Any) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    group.create_array("0", shape=(3, 2, 4, 5, 6), dtype="u2")
    axes = [
        {"name": "t", "type": "time", "unit": "minute"},
        {"name": "c", "type": "channel"},
        *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"),
    ]
    scale = {"type": "scale", "scale": [1.5, 1, 2, 1, 1]}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
        ],
        "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]},
    }
    found = json.loads(run("info", tmp_path / "a.zarr", "--json").stdout)
    assert (found["time_step"], found["time_unit"], found["channels"]) == (
        1.5,
        "min",
        ["DAPI", "GFP"],
    )
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: uint8\ndimension: 4\nsizes: 2 3 4 2\nkinds: space space space time\n"
        b'spacings: 1 1 1 2.5\nunits: "mm" "mm" "mm" "s"\nencoding: raw\n\n' + bytes(48)
    )
    found = json.loads(run("info", tmp_path / "a.nrrd", "--json").stdout)
    assert (found["time_step"], found["time_unit"]) == (2.5, "s")


def test_info_tells_of_further_series(tmp_path: Path, run: Any) -> None:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(np.zeros((4, 5, 6), np.uint8), metadata={"axes": "ZYX"})
        writer.write(np.zeros((4, 7, 8), np.uint8), metadata={"axes": "ZYX"})
    assert (
        "note     the file holds 2 image series: number 0 is used"
        in run("info", tmp_path / "a.ome.tif").stdout
    )


@pytest.mark.parametrize("suffix", [".npy", ".nii", ".nii.gz"])
def test_info_tells_the_range_of_values(suffix: str, tmp_path: Path, run: Any) -> None:
    from conv3d_cli import Volume, write_volume

    values = np.random.default_rng(2).normal(1000, 3, (11, 9, 8)).astype(np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    write_volume(str(tmp_path / f"a{suffix}"), Volume(values, "zyx"))
    good = values[np.isfinite(values)].astype(np.float64)
    for extra in ([], ["--fwhm"]):
        found = json.loads(
            run("info", tmp_path / f"a{suffix}", "--stats", *extra, "--json").stdout
        )["stats"]
        assert (found["voxels"], found["nonfinite"]) == (values.size, 3)
        assert (found["low"], found["high"]) == (good.min(), good.max())
        assert found["mean"] == pytest.approx(good.mean(), rel=1e-12)
        assert found["deviation"] == pytest.approx(good.std(), rel=1e-9)
    words = run("info", tmp_path / f"a{suffix}", "--stats").stdout
    assert f"values   {good.min():.6g} to {good.max():.6g}, mean {good.mean():.6g}, " in words
    assert words.rstrip().endswith(f"; 3 of {values.size} voxels are NaN or infinite")


def test_info_applies_the_scale_and_survives_a_volume_of_nan(tmp_path: Path, run: Any) -> None:
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    found = json.loads(run("info", tmp_path / "a.nii", "--stats", "--json").stdout)["stats"]
    assert (found["low"], found["high"]) == (10, 39.5)
    np.save(tmp_path / "n.npy", np.full((2, 3, 4), np.nan))
    assert (
        json.loads(run("info", tmp_path / "n.npy", "--stats", "--json").stdout)["stats"]["low"]
        is None
    )
    assert (
        "values   24 of 24 voxels are NaN or infinite"
        in run("info", tmp_path / "n.npy", "--stats").stdout
    )


def test_info_prints_a_line_of_json_for_a_file_that_fails(tmp_path: Path, run: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
    for files in ([tmp_path / "none.npy"], [tmp_path / "none.npy", tmp_path / "a.npy"]):
        result = run("info", *files, "--json", code=3)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(lines) == len(files)
        assert (lines[0]["file"], lines[0]["exit_code"]) == (str(files[0]), 3)
        assert lines[0]["error"].startswith("cannot read ")
        assert result.stderr == f"Error: {lines[0]['error']}\n"

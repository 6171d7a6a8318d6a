"""`--spacing`: the voxel spacing by hand, for files that tell none or no unit; and what texts say of such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import tifffile
import zarr

SHAPE = (9, 12, 13)
ASKED = ["--spacing", "0.3,0.1,0.1um"]
BLUR = ["-k", "gaussian:sigma=0.2um"]


def zarr_image(path: Path, array: Any, unit: str | None, scale: list[float]) -> None:
    """An OME-Zarr image of version 0.4, as ome-zarr-py writes one, with or without units."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=array, chunks=array.shape)
    own = {"unit": unit} if unit else {}
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": letter, "type": "space", **own} for letter in "zyx"],
            "datasets": [
                {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            ],
        }
    ]


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator) -> Path:
    """One volume in files that tell no spacing, no unit, or no spacing of planes."""
    array = rng.normal(size=SHAPE).astype(np.float32)
    np.save(tmp_path / "array.npy", array)
    tifffile.imwrite(tmp_path / "plain.tif", array)
    dots: Any = {"imagej": True, "resolution": (10, 10)}
    tifffile.imwrite(
        tmp_path / "pixel.tif",
        array,
        metadata={"spacing": 0.3, "unit": "pixel", "axes": "ZYX"},
        **dots,
    )
    tifffile.imwrite(tmp_path / "planes.tif", array, metadata={"unit": "um", "axes": "ZYX"}, **dots)
    frame = {f"PhysicalSize{a}": s for a, s in zip("ZYX", (0.3, 0.1, 0.1), strict=True)}
    frame |= {f"PhysicalSize{a}Unit": "reference frame" for a in "ZYX"}
    tifffile.imwrite(tmp_path / "frame.ome.tif", array, metadata={"axes": "ZYX", **frame})
    nibabel.Nifti1Image(array.T, np.eye(4)).to_filename(tmp_path / "eye.nii")
    zarr_image(tmp_path / "bare.ome.zarr", array, None, [0.3, 0.1, 0.1])
    return tmp_path


INPUTS = ["array.npy", "plain.tif", "pixel.tif", "planes.tif", "frame.ome.tif", "eye.nii", "bare.ome.zarr"]  # fmt: skip


def found_in(path: Path) -> tuple[list[float], str]:
    """Spacing (D, H, W) and unit that an output tells, read by other libraries."""
    name = path.name
    if name.endswith(".nii"):
        header = nibabel.load(path).header
        return [*map(float, header.get_zooms()[2::-1])], header.get_xyzt_units()[0]
    if name.endswith(".zarr"):
        attributes = zarr.open_group(path, mode="r").attrs.asdict()
        image = attributes.get("ome", attributes)["multiscales"][0]
        scale = image["datasets"][0]["coordinateTransformations"][0]["scale"]
        return scale[-3:], image["axes"][-1]["unit"]
    if name.endswith(".nrrd"):
        head = path.read_bytes().split(b"\n\n")[0].decode()
        lines = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
        if "space directions" in lines:
            steps = [
                np.linalg.norm([float(part) for part in step.strip("()").split(",")])
                for step in lines["space directions"].split()
            ]
            return steps[::-1], lines["space units"].split('"')[1]
        return [*map(float, lines["spacings"].split())][::-1], lines["units"].split('"')[1]
    with tifffile.TiffFile(path) as tiff:
        if tiff.ome_metadata is not None:
            pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
            return [float(pixels[f"PhysicalSize{a}"]) for a in "ZYX"], pixels["PhysicalSizeXUnit"]
        across = [tiff.pages[0].tags[code].value for code in (283, 282)]
        steps = [below / above for above, below in across]
        return [float(tiff.imagej_metadata["spacing"]), *steps], tiff.imagej_metadata["unit"]


@pytest.mark.parametrize("source", INPUTS)
@pytest.mark.parametrize(
    ("target", "unit"),
    [
        ("o.nii", "micron"),
        ("o.tif", "micron"),
        ("o.ome.tif", "µm"),
        ("o.nrrd", "um"),
        ("o.ome.zarr", "micrometer"),
    ],
)
def test_every_format_gets_the_spacing(
    run: Any, files: Path, source: str, target: str, unit: str
) -> None:
    run("apply", files / source, *BLUR, *ASKED, "-o", files / target)
    spacing, found = found_in(files / target)
    assert spacing == pytest.approx([0.3, 0.1, 0.1], rel=1e-6)
    assert found == unit or (source == "planes.tif" and found == "um")  # the file's own word


@pytest.mark.parametrize("source", INPUTS)
def test_lengths_are_converted_by_it(run: Any, files: Path, source: str) -> None:
    run("apply", files / source, *BLUR, *ASKED, "-o", files / "o.npy")
    array = np.load(files / "array.npy").astype(np.float64)
    expected = scipy.ndimage.gaussian_filter(array, [0.2 / 0.3, 2, 2])
    np.testing.assert_allclose(np.load(files / "o.npy"), expected, atol=2e-6)


@pytest.mark.parametrize("source", INPUTS)
def test_texts_never_say_none(run: Any, files: Path, source: str) -> None:
    for command in (
        ["info", files / source],
        ["explain", files / source, "-k", "box"],
        ["apply", files / source, "-k", "box", "-v", "-o", files / "o.tif"],
        ["view", files / source],
    ):
        assert "None" not in run(*command).output


@pytest.mark.parametrize("source", ["pixel.tif", "frame.ome.tif", "bare.ome.zarr"])
def test_a_spacing_without_a_unit_is_called_that(run: Any, files: Path, source: str) -> None:
    words = "0.3,0.1,0.1 without a unit"
    path = files / source
    assert f"spacing  {words}" in run("info", path).output
    assert words in run("explain", path, "-k", "box").output
    assert words in run("view", path).output
    message = run("apply", path, *BLUR, "-o", files / "o.tif", code=4).stderr
    assert "the volume tells a voxel spacing (0.3,0.1,0.1) without a unit" in message
    assert "--spacing 0.3,0.1,0.1um" in message
    for kernel in ("sobel:axis=x:per=um", "sobel:axis=x:orient=world"):
        message = run("apply", path, "-k", kernel, "-o", files / "o.tif", code=4).stderr
        assert "without a unit; give its spacing (--spacing)" in message
    record = json.loads(run("info", path, "--json").stdout)
    assert record["spacing"] == pytest.approx([0.3, 0.1, 0.1])
    assert record["unit"] is None
    assert "without a unit" in run("kernel", "show", path).output
    message = run(
        "apply", files / "array.npy", "-k", path, "--kernel-spacing", "resample",
        "-o", files / "o.npy", code=4,
    ).stderr  # fmt: skip
    assert "it tells a voxel spacing (0.3,0.1,0.1) without a unit" in message


def test_smoothness_is_in_voxels_without_a_unit_and_in_it_with_one(run: Any, files: Path) -> None:
    run("apply", files / "pixel.tif", "-k", "gaussian:sigma=1.5vox", "-o", files / "s.ome.tif")
    records = [
        json.loads(run("info", files / "s.ome.tif", "--fwhm", "--json", *words).stdout)
        for words in ([], ASKED)
    ]
    assert [record["fwhm_unit"] for record in records] == ["vox", "um"]
    np.testing.assert_allclose(
        records[1]["fwhm"], np.multiply(records[0]["fwhm"], [0.3, 0.1, 0.1]), rtol=1e-6
    )
    assert " vox (depth" in run("info", files / "s.ome.tif", "--fwhm").output


def test_a_guess_of_the_file_is_no_longer_told(run: Any, files: Path) -> None:
    assert "gives no z spacing" in run("info", files / "planes.tif").output
    assert "gives no z spacing" not in run("info", files / "planes.tif", *ASKED).output


def test_a_contradiction_is_refused_before_anything_is_written(run: Any, files: Path) -> None:
    scan = nibabel.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([3, 3, 3, 1]))
    scan.header.set_xyzt_units("mm")
    scan.to_filename(files / "mm.nii")
    out = files / "o.nii"
    message = run("apply", files / "mm.nii", "-k", "box", *ASKED, "-o", out, code=4).stderr
    assert "mm.nii: --spacing 0.3,0.1,0.1 um contradicts the file" in message
    assert "3 mm (depth,height,width)" in message
    assert not out.exists()
    run("apply", files / "mm.nii", "-k", "box", "--spacing", "0.3cm", "-o", out)
    assert found_in(out) == ([3, 3, 3], "mm")


def test_replaced_numbers_are_noted(run: Any, files: Path) -> None:
    said = run(
        "apply", files / "pixel.tif", "-k", "box", "--spacing", "2,1,1mm", "-o", files / "o.nii"
    ).stderr
    assert "spacing of 0.3,0.1,0.1 without a unit is replaced by --spacing 2,1,1 mm" in said
    assert found_in(files / "o.nii") == ([2, 1, 1], "mm")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.3", "with a unit"),
        ("2vox", "must be positive, with a unit"),
        ("0mm", "must be positive"),
        ("1,2mm", "one length or three"),
        ("", "received ''"),
        ("-1mm", "one length or three"),
        ("1parsec", "unknown unit 'parsec'"),
    ],
)
def test_a_wrong_spacing(run: Any, files: Path, text: str, words: str, error_line: Any) -> None:
    for command in (
        ["apply", files / "array.npy", "-k", "box", "-o", files / "o.npy"],
        ["explain", files / "array.npy", "-k", "box"],
        ["info", files / "array.npy"],
        ["kernel", "show", "box"],
    ):
        assert words in error_line(run(*command, f"--spacing={text}", code=2).stderr)


def test_a_mask_that_tells_no_unit_fits(run: Any, files: Path) -> None:
    mask = np.ones(SHAPE, np.uint8)
    tifffile.imwrite(
        files / "mask.tif", mask, imagej=True, resolution=(10, 10),
        metadata={"spacing": 0.3, "unit": "pixel", "axes": "ZYX"},
    )  # fmt: skip
    run(
        "apply", files / "array.npy", *BLUR, *ASKED, "--mask", files / "mask.tif",
        "-o", files / "o.npy",
    )  # fmt: skip
    assert np.load(files / "o.npy").all()


def test_it_is_recorded_and_repeated(run: Any, files: Path) -> None:
    out = files / "o.nii"
    run("apply", files / "array.npy", *BLUR, *ASKED, "--sidecar", "-o", out)
    record = json.loads((files / "o.json").read_text())["Conv3D"]
    assert "--spacing 0.3,0.1,0.1um" in record["Command"]
    assert record["Input"]["Spacing"] == [0.3, 0.1, 0.1]
    assert record["Input"]["SpacingUnit"] == "um"
    run("rerun", files / "o.json", "-o", files / "again.nii")
    assert (files / "again.nii").read_bytes() == out.read_bytes()


def test_resume_compares_it(run: Any, files: Path) -> None:
    words = ["apply", files / "array.npy", "-k", "box", "--resume", "--out-dir", files / "d"]
    run(*words, "--suffix", "_s", *ASKED)
    assert "done already" in run(*words, "--suffix", "_s", *ASKED, "--json").output
    assert "other settings (spacing)" in run(
        *words, "--suffix", "_s", "--spacing", "1um", code=5
    ).output  # fmt: skip


def test_configs_and_manifests_have_it(run: Any, files: Path) -> None:
    (files / "c.toml").write_text('kernel = "gaussian:sigma=0.2um"\nspacing = "0.3,0.1,0.1um"\n')
    run("apply", files / "array.npy", "-c", files / "c.toml", "-o", files / "c.nii")
    table = "input\toutput\tspacing\narray.npy\tm.nii\t0.3,0.1,0.1um\nplain.tif\tn.nii\t2um\n"
    (files / "m.tsv").write_text(table)
    run("apply", "--manifest", files / "m.tsv", *BLUR)
    assert (files / "c.nii").read_bytes() == (files / "m.nii").read_bytes()
    assert found_in(files / "n.nii") == ([2, 2, 2], "micron")


def test_a_kernel_is_shown_like_a_volume_without_a_unit(run: Any, files: Path) -> None:
    words = ["kernel", "show", "gaussian:fwhm=0.6um", "--json", "--like", files / "pixel.tif"]
    assert json.loads(run(*words, *ASKED).stdout)["spacing"] == pytest.approx([0.3, 0.1, 0.1])
    assert "without a unit" in run(*words, code=4).stderr


def test_the_spacing_is_used_for_smoothness_to_reach(run: Any, files: Path) -> None:
    said = run(
        "apply", files / "array.npy", "--to-fwhm", "0.9,0.3,0.3um", *ASKED, "-o", files / "o.nii"
    ).stderr
    assert " um by a Gaussian of " in said


def test_a_cluster_writes_it(run: Any, files: Path) -> None:
    pytest.importorskip("distributed")
    words = [files / "bare.ome.zarr", *BLUR, *ASKED, "-o", files / "o.ome.zarr"]
    run("apply", *words, "--scheduler", "local:1")
    assert found_in(files / "o.ome.zarr")[1] == "micrometer"


# ---------------------------------------------------------------------------------------------------------------------
# Other commands than apply


@pytest.mark.parametrize("name", INPUTS)
def test_compare_takes_the_spacing_that_apply_was_given(
    name: str, files: Path, run: Any, tmp_path: Path
) -> None:
    """The output tells the spacing, the input does not: with it, they lie in the same place."""
    out = tmp_path / "o.nii"
    run("apply", files / name, "-k", "identity", *ASKED, "-o", out)
    result = run("compare", files / name, out, "--atol", "1e-6", code=7)
    assert "spacing" in result.stdout or "grid" in result.stdout
    assert "agree" in run("compare", files / name, out, "--atol", "1e-6", *ASKED).stdout


@pytest.mark.parametrize("name", INPUTS)
def test_view_draws_the_proportions_of_a_spacing_by_hand(
    name: str, files: Path, run: Any, error_line: Any
) -> None:
    told = run("view", files / name, *ASKED).stdout
    assert "voxels of 0.3,0.1,0.1 um" in " ".join(told.split())
    wrong = run("view", files / name, "--spacing", "0.3", code=2)
    assert "unit" in error_line(wrong.stderr)


def test_view_takes_a_point_of_the_world_with_a_spacing_by_hand(files: Path, run: Any) -> None:
    words = ["view", files / "array.npy", "--at", "0.2,0.3,0.6um"]
    assert "or tell the spacing, as in --spacing 2,1,1mm" in run(*words, code=4).stderr
    assert run(*words, *ASKED).stdout.splitlines()[1].split("  ")[0] == "d = 2"


def test_no_command_takes_a_spacing_against_the_file(
    files: Path, run: Any, error_line: Any
) -> None:
    nibabel.Nifti1Image(np.zeros(SHAPE, np.float32).T, np.diag([2, 2, 2, 1])).to_filename(
        files / "told.nii"
    )
    image = nibabel.load(files / "told.nii")
    image.header.set_xyzt_units("mm")
    nibabel.save(image, files / "mm.nii")
    for words in (["view", files / "mm.nii"], ["compare", files / "mm.nii", files / "mm.nii"]):
        error = error_line(run(*words, *ASKED, code=4).stderr)
        assert "mm.nii" in error
        assert "spacing" in error

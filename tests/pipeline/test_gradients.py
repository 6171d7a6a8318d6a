"""Vectors of derivatives and their magnitudes, from file to file: places, names, bits, formats, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from blocking import in_boxes_of, plane_by_plane
from scipy import ndimage
from tools import command

from conv3d_cli import Kernel, Volume, conv3d, read_kernel, read_volume, write_volume
from conv3d_cli.analysis.verify import verify_output
from conv3d_cli.errors import Conv3DError, DifferenceError, ShapeError, SpecError
from conv3d_cli.pipeline import prepare as job_module
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

DATA = Path(nib.__file__).parent / "tests" / "data"
SLOPE = np.array([0.7, -1.3, 2.1])  # per mm along x, y, z
ANGLE = np.radians(25)
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
TURN = TURN @ TURN[[2, 0, 1]][:, [2, 0, 1]]
AFFINES = {
    "anisotropic": np.diag([0.9, 1.1, 2.5]),
    "flipped": np.diag([-0.9, 1.1, -2.5]),
    "turned": TURN @ np.diag([0.9, 1.1, 2.5]),
    "turned and sheared": TURN
    @ np.array([[1, 0, 0.3], [0, 1, 0.2], [0, 0, 1]])
    @ np.diag([-0.9, 1.1, 2.5]),
}
INSIDE = (slice(1, -1),) * 3


def affine_of(columns: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, (-20.0, 35.0, 8.0)
    return affine


def gradient_magnitude(volume: np.ndarray, derivative: Callable[..., np.ndarray]) -> np.ndarray:
    return np.asarray(ndimage.generic_gradient_magnitude(volume.astype(np.float64), derivative))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of 2 time points and a vector volume of 2 components and 3 time points, oblique; and noise as .npy."""
    folder = tmp_path_factory.mktemp("scan")
    rng = np.random.default_rng(5)
    affine = affine_of(AFFINES["turned"])
    nib.Nifti1Image(rng.integers(0, 900, (11, 12, 13, 2)).astype(np.int16), affine).to_filename(
        folder / "x.nii.gz"
    )
    nib.Nifti1Image(rng.normal(size=(9, 8, 7, 3, 2)).astype(np.float32), affine).to_filename(
        folder / "v.nii"
    )
    np.save(folder / "x.npy", rng.normal(size=(12, 13, 14)).astype(np.float32))
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# In the world


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize(
    "kernel", ["gradient", "scharr", "gaussian_derivative:sigma=1.2mm:truncate=2"]
)
def test_a_ramp_of_the_world_has_its_slope_everywhere_inside(
    kernel: str, name: str, tmp_path: Path, run: Any
) -> None:
    affine = affine_of(AFFINES[name])
    i, j, k = np.indices((11, 10, 9))
    world = np.einsum("xa,aijk->xijk", affine[:3, :3], np.stack([i, j, k]))
    ramp = np.tensordot(SLOPE, world, axes=1) + 50
    nib.Nifti1Image(np.stack([ramp, 3 * ramp], axis=-1), affine).to_filename(tmp_path / "x.nii")
    common = ["--orient", "world", "--precision", "float64", "--dtype", "float64"]
    run(
        "apply",
        tmp_path / "x.nii",
        "-k",
        f"{kernel}:axis=xyz",
        *common,
        "-o",
        tmp_path / "g.nii.gz",
    )
    run(
        "apply",
        tmp_path / "x.nii",
        "-k",
        f"{kernel}:axis=dhw",
        *common,
        "--magnitude",
        "-o",
        tmp_path / "m.nii",
    )
    found = nib.load(tmp_path / "g.nii.gz")
    assert found.shape == (11, 10, 9, 2, 3)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    reach = 1 if kernel[0] != "g" or kernel == "gradient" else 3
    inside = (slice(reach, -reach),) * 3
    for t in range(2):
        expected = SLOPE * (1, 3)[t]
        slopes = found.get_fdata()[(*inside, t)]
        # a float32 affine
        np.testing.assert_allclose(slopes, np.broadcast_to(expected, slopes.shape), rtol=3e-6)
        magnitudes = nib.load(tmp_path / "m.nii").get_fdata()[(*inside, t)]
        np.testing.assert_allclose(magnitudes, np.linalg.norm(expected), rtol=3e-6)


def test_example4d_by_numpys_gradient_and_its_affine(tmp_path: Path, run: Any) -> None:
    source = DATA / "example4d.nii.gz"
    run(
        "apply",
        source,
        "-k",
        "gradient:axis=xyz",
        "--orient",
        "world",
        "-o",
        tmp_path / "g.nii.gz",
        "--verify",
        60,
    )
    image, found = nib.load(source), nib.load(tmp_path / "g.nii.gz")
    values = image.get_fdata()
    slopes = np.stack(np.gradient(values, axis=(0, 1, 2)), axis=-1) @ np.linalg.inv(
        image.affine[:3, :3]
    )
    received = found.get_fdata()
    np.testing.assert_allclose(received[INSIDE], slopes[INSIDE], atol=1e-6 * np.abs(values).max())
    assert np.array_equal(found.affine, image.affine)
    # a turned grid changes no length of the gradient
    run(
        "apply",
        source,
        "-k",
        "gradient:axis=dhw:per=mm",
        "--magnitude",
        "-o",
        tmp_path / "m.nii.gz",
    )
    lengths = nib.load(tmp_path / "m.nii.gz").get_fdata()
    np.testing.assert_allclose(
        lengths, np.linalg.norm(received, axis=-1), atol=1e-6 * lengths.max()
    )


def test_explain_and_json_say_how_a_kernel_was_made(tmp_path: Path, run: Any) -> None:
    nib.Nifti1Image(
        np.zeros((9, 8, 7), np.uint8), affine_of(AFFINES["turned and sheared"])
    ).to_filename(tmp_path / "x.nii")
    text = run("explain", tmp_path / "x.nii", "-k", "gaussian:fwhm=4mm").output
    assert "true to the world: the voxel axes stand at " in text
    record = json.loads(
        run("explain", tmp_path / "x.nii", "-k", "sobel:axis=zx:per=um", "--json").output
    )
    assert record["kind"] == "bank"
    assert record["filters"] == ["sobel z", "sobel x"]
    assert record["built"] == "slopes per um"
    text = run(
        "explain", tmp_path / "x.nii", "-k", "sobel:axis=zx", "--orient", "world", "--magnitude"
    ).output
    assert "magnitude of the filters" in text
    assert "slopes along the axes of the world, per mm" in text
    assert "built" not in run("explain", tmp_path / "x.nii", "-k", "gaussian:sigma=1vox").output


# ---------------------------------------------------------------------------------------------------------------------
# Against scipy


@pytest.mark.parametrize("sigma", ["1.3,1.3,1.3", "2,0.8,1.1"])
def test_magnitude_is_scipys(scan: Path, tmp_path: Path, sigma: str, run: Any) -> None:
    x = np.load(scan / "x.npy")
    run(
        "apply",
        scan / "x.npy",
        "-k",
        f"gaussian_derivative:sigma={sigma}vox:axis=dhw",
        "--magnitude",
        "-o",
        tmp_path / "m.npy",
    )
    expected = ndimage.gaussian_gradient_magnitude(
        x.astype(np.float64), [float(s) for s in sigma.split(",")]
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "m.npy"), expected, rtol=0, atol=1e-6 * expected.max()
    )
    for name, derivative in [("sobel", ndimage.sobel), ("prewitt", ndimage.prewitt)]:
        found = conv3d(
            x.astype(np.float64),
            read_kernel(f"{name}:axis=xyz"),
            padding="same",
            boundary="symmetric",
            magnitude=True,
        )
        np.testing.assert_allclose(found, gradient_magnitude(x, derivative), rtol=1e-12)


def test_python_gives_vectors_as_last_axis(rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 7, 8))
    kernel = read_kernel("gradient:axis=dhw")
    found = conv3d(x, kernel)
    expected = np.stack(np.gradient(x), axis=-1)[INSIDE]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    first = conv3d(x, kernel, data_format="channels_first")
    assert np.array_equal(first, np.moveaxis(found, -1, 0))
    many = conv3d(np.stack([x, 2 * x, -x], axis=-1)[None], kernel)  # c0 d, c0 h, c0 w, c1 d, ...
    assert many.shape == (1, 4, 5, 6, 9)
    np.testing.assert_allclose(
        many[0], np.concatenate([found, 2 * found, -found], axis=-1), rtol=1e-12, atol=1e-14
    )
    lengths = conv3d(
        np.stack([x, 2 * x], axis=-1)[None], kernel, magnitude=True, activation="relu", bias=[0.5]
    )
    by_hand = (
        np.sqrt(((found + 0.5) ** 2).sum(axis=-1)),
        np.sqrt(((2 * found + 0.5) ** 2).sum(axis=-1)),
    )
    np.testing.assert_allclose(lengths[0], np.stack(by_hand, axis=-1), rtol=1e-12)


def test_magnitudes_of_huge_and_tiny_slopes_are_right() -> None:
    for size in (1e30, 1e-30):
        x = np.multiply.outer(np.arange(4.0), np.ones((4, 4))) * size
        x = (x + np.arange(4.0) * size).astype(np.float32)
        found = conv3d(x, read_kernel("gradient:axis=dhw"), magnitude=True)
        np.testing.assert_allclose(found, np.sqrt(2) * size, rtol=1e-6)
    holed = np.ones((5, 5, 5), np.float32)
    holed[0, 0, 0] = np.nan
    found = conv3d(
        holed, read_kernel("gradient:axis=dhw"), padding="same", boundary="nearest", magnitude=True
    )
    # wherever the window of 3 x 3 x 3 holds it, as with any kernel
    assert np.isnan(found).sum() == 8
    assert np.nanmax(found) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Bits


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize(
    "kernel", ["sobel:axis=xyz", "gaussian_derivative:sigma=1.5mm:axis=xyz:orient=world"]
)
def test_bits_do_not_depend_on_threads_slabs_or_boxes(
    scan: Path, tmp_path: Path, kernel: str, magnitude: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (Stage(kernel, magnitude=magnitude),)

    def bits(**options: Any) -> bytes:
        run_job(
            Job(str(scan / "v.nii"), str(tmp_path / "o.npy"), stages, overwrite=True, **options)
        )
        return (tmp_path / "o.npy").read_bytes()

    one = bits(threads=1)
    assert bits(threads=2) == one
    monkeypatch.setattr(job_module, "choose_blocking", plane_by_plane)
    assert bits() == one
    monkeypatch.setattr(job_module, "choose_blocking", in_boxes_of(3, 4, 5))
    assert bits() == one


def test_memory_is_counted(scan: Path, tmp_path: Path, run: Any) -> None:
    """The sums of a magnitude, of which the output holds a third, are part of what is predicted."""
    data = np.zeros((64, 256, 256), np.float32)
    np.save(tmp_path / "x.npy", data)
    memory = [
        json.loads(
            run("explain", tmp_path / "x.npy", "-k", "sobel:axis=dhw", *options, "--json").output
        )
        for options in ([], ["--magnitude"])
    ]
    plane = 256 * 256 * 4
    assert "sums" not in memory[0]["memory_terms"]
    assert memory[1]["memory_terms"]["sums"] >= 3 * plane * memory[1]["slab_depth"]
    for record, channels in zip(memory, (3, 1), strict=True):
        assert record["memory_terms"]["output"] == 3 * channels * plane * record["slab_depth"]
        assert record["memory"] == sum(record["memory_terms"].values())


# ---------------------------------------------------------------------------------------------------------------------
# Formats


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif", ".ome.tif", ".npy", ".ome.zarr"])
@pytest.mark.parametrize("magnitude", [False, True])
def test_every_format_holds_the_same_vectors(
    scan: Path, tmp_path: Path, suffix: str, magnitude: bool, run: Any
) -> None:
    if suffix.endswith("zarr"):
        pytest.importorskip("zarr")
    options = ["--magnitude"] if magnitude else []
    for name in ("x.nii.gz", "v.nii"):
        out = tmp_path / f"{name[0]}{suffix}"
        run(
            "apply",
            scan / name,
            "-k",
            "scharr:axis=xyz:per=mm",
            *options,
            "-o",
            out,
            "-q",
            "--verify",
            40,
        )
        source = np.moveaxis(nib.load(scan / name).get_fdata(), (0, 1, 2), (2, 1, 0))  # z y x t c
        source = source[..., None] if source.ndim == 4 else source
        steps = [2.5, 1.1, 0.9]
        per = []
        for axis in (2, 1, 0):
            weights = read_kernel(f"scharr:axis={'dhw'[axis]}").weights / 512 / steps[axis]
            per.append(ndimage.correlate(source, weights[..., None, None]))
        expected = np.stack(per, axis=-1)
        expected = (
            np.sqrt((expected**2).sum(axis=-1))
            if magnitude
            else expected.reshape(*source.shape[:4], -1)
        )
        letters = (
            {"x": "tzyxc" if not magnitude else "tzyx", "v": "tzyxc"}[name[0]]
            if suffix == ".npy"
            else None
        )
        volume = read_volume(
            str(out), axes=stored_order(letters, name) if suffix == ".npy" else None
        )
        moved = in_order(volume, "zyxtc")
        np.testing.assert_allclose(moved, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def stored_order(letters: str | None, name: str) -> str | None:
    """An array has the order of the input: vectors that are new come last."""
    return letters if name[0] == "x" else "ctzyx"


def in_order(volume: Volume, wanted: str) -> np.ndarray:
    data = volume.data
    letters = volume.axes
    for letter in wanted:
        if letter not in letters:
            data, letters = data[..., None], letters + letter
    return data.transpose([letters.index(letter) for letter in wanted])


def test_nifti_says_vector_or_matrix(scan: Path, tmp_path: Path, run: Any) -> None:
    run("apply", scan / "x.nii.gz", "-k", "sobel:axis=xyz", "-o", tmp_path / "g.nii")
    header = nib.load(tmp_path / "g.nii").header
    assert header["dim"].tolist()[:6] == [5, 11, 12, 13, 2, 3]
    assert (int(header["intent_code"]), header["intent_name"].item()) == (1007, b"x,y,z")
    told = run("apply", scan / "x.nii.gz", "-k", "sobel:axis=dhw", "-o", tmp_path / "r.nii").output
    assert "readers of NIfTI take components in the order x, y, z, and these are d, h, w" in told
    assert (
        "order x, y, z"
        not in run(
            "apply", scan / "x.nii.gz", "-k", "sobel:axis=wh", "-o", tmp_path / "r.tif"
        ).output
    )
    # a vector's derivatives: a row for each component
    run("apply", scan / "v.nii", "-k", "gradient:axis=xyz", "-o", tmp_path / "j.nii")
    header = nib.load(tmp_path / "j.nii").header
    assert header["dim"].tolist()[:6] == [5, 9, 8, 7, 3, 6]
    assert [float(header[f]) for f in ("intent_code", "intent_p1", "intent_p2")] == [1004, 2, 3]
    run("apply", scan / "v.nii", "-k", "gradient:axis=xyz", "--magnitude", "-o", tmp_path / "l.nii")
    assert int(nib.load(tmp_path / "l.nii").header["intent_code"]) == int(
        nib.load(scan / "v.nii").header["intent_code"]
    )
    # gone once it is one number
    run("apply", tmp_path / "g.nii", "-k", "box:size=1", "-o", tmp_path / "same.nii")
    assert int(nib.load(tmp_path / "same.nii").header["intent_code"]) == 1007


def test_channels_have_names(scan: Path, tmp_path: Path, run: Any) -> None:
    write = ["-k", "sobel:axis=xy", "-q", "-o"]
    run("apply", scan / "x.npy", *write, tmp_path / "one.ome.tif")
    with tifffile.TiffFile(tmp_path / "one.ome.tif") as file:
        assert 'Name="sobel x"' in file.ome_metadata
        assert 'Name="sobel y"' in file.ome_metadata
    run("apply", tmp_path / "one.ome.tif", *write, tmp_path / "two.ome.tif")
    with tifffile.TiffFile(tmp_path / "two.ome.tif") as file:
        assert 'Name="sobel x: sobel y"' in file.ome_metadata
    for packed in ([], ["--compression", "deflate"]):
        run("apply", scan / "x.npy", *write, tmp_path / "one.tif", "--overwrite", *packed)
        with tifffile.TiffFile(tmp_path / "one.tif") as file:
            assert file.imagej_metadata["Labels"][:3] == ["sobel x", "sobel y", "sobel x"]
    zarr = pytest.importorskip("zarr")
    for source, target in [
        (scan / "x.npy", "one.ome.zarr"),
        (tmp_path / "one.ome.zarr", "two.ome.zarr"),
    ]:
        run("apply", source, *write, tmp_path / target)
    channels = dict(zarr.open_group(tmp_path / "one.ome.zarr").attrs)["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels] == ["sobel x", "sobel y"]
    values = read_volume(str(tmp_path / "one.ome.zarr")).data
    assert [channels[1]["window"][end] for end in ("start", "end")] == [
        values[1].min(),
        values[1].max(),
    ]
    channels = dict(zarr.open_group(tmp_path / "two.ome.zarr").attrs)["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels][:2] == ["sobel x: sobel x", "sobel x: sobel y"]


# ---------------------------------------------------------------------------------------------------------------------
# Stacks, configs, files of kernels


def test_a_stack_smooths_then_takes_the_magnitude(scan: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "stack.toml").write_text(
        '[[layers]]\nkernel = "gaussian:sigma=1,1,1vox"\n'
        '[[layers]]\nkernel = "sobel:axis=dhw"\nmagnitude = true\n'
        '[[layers]]\nkernel = "gradient:axis=zx"\norient = "world"\n'
    )
    source = tmp_path / "x.tif"
    write_volume(
        str(source), Volume(np.load(scan / "x.npy"), "zyx", read_volume(str(scan / "v.nii")).grid)
    )
    run(
        "apply",
        source,
        "-c",
        tmp_path / "stack.toml",
        "-o",
        tmp_path / "o.ome.tif",
        "-q",
        "--verify",
        20,
    )
    smooth = ndimage.gaussian_filter(np.load(scan / "x.npy").astype(np.float64), 1)
    edges = gradient_magnitude(smooth, ndimage.sobel)
    steps = read_volume(str(source)).grid.spacing
    assert steps is not None
    expected = [ndimage.correlate1d(edges, [-0.5, 0, 0.5], axis=a) / steps[a] for a in (0, 2)]
    found = read_volume(str(tmp_path / "o.ome.tif"))
    np.testing.assert_allclose(in_order(found, "czyx"), expected, rtol=0, atol=1e-5 * edges.max())


def test_config_keys(scan: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "k.toml").write_text(
        'kernel = "gradient:axis=xyz"\norient = "world"\nmagnitude = true\n'
    )
    run("apply", scan / "x.nii.gz", "-c", tmp_path / "k.toml", "-o", tmp_path / "a.nii")
    run(
        "apply",
        scan / "x.nii.gz",
        "-k",
        "gradient:axis=xyz:orient=world",
        "--magnitude",
        "-o",
        tmp_path / "b.nii",
    )
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()
    for line, message in [
        ('orient = "up"', "orient is voxel"),
        ("magnitude = 1", "magnitude must be true or false"),
    ]:
        (tmp_path / "k.toml").write_text(f'kernel = "gradient:axis=xyz"\n{line}\n')
        assert (
            message
            in run(
                "apply",
                scan / "x.nii.gz",
                "-c",
                tmp_path / "k.toml",
                "-o",
                tmp_path / "c.nii",
                code=2,
            ).output
        )


def test_a_bank_is_saved_as_a_layer(scan: Path, tmp_path: Path, run: Any) -> None:
    made = run("kernel", "make", "sobel:axis=dhw", "-o", tmp_path / "k.npz")
    assert "is a Conv3D layer for one input channel" in made.output
    layer = read_kernel(str(tmp_path / "k.npz"))
    assert layer.weights.shape == (3, 3, 3, 1, 3)
    x = np.load(scan / "x.npy")
    assert np.array_equal(
        conv3d(x[None, ..., None], layer)[0], conv3d(x, read_kernel("sobel:axis=dhw"))
    )
    shown = run("kernel", "show", "sobel:axis=zx", "--spacing", "2,1,1mm").output
    assert "(depth x height x width x filters, applied to every channel)" in shown
    assert "3 x 3 x 3 x 2 float64" in shown
    assert "sobel z, sobel x" in shown
    facts = json.loads(
        run("kernel", "show", "sobel:axis=zx:per=mm", "--spacing", "2,1,1mm", "--json").output
    )
    assert (facts["filters"], facts["built"]) == (["sobel z", "sobel x"], "slopes per mm")
    assert facts["separable_rank"] == 1
    wide = "gaussian_derivative:sigma=2vox:axis=dhw:truncate=6"
    assert "--crop-kernel 1e-06 leaves 2" in run("kernel", "show", wide).output
    run("kernel", "show", wide, "--crop-kernel", "1e-6")
    run(
        "apply", scan / "x.npy", "-k", wide, "--crop-kernel", "1e-6", "-o", tmp_path / "cropped.npy"
    )
    whole, cropped = (
        conv3d(x, read_kernel(wide), padding="same", boundary="symmetric"),
        np.load(tmp_path / "cropped.npy"),
    )
    np.testing.assert_allclose(cropped, whole, rtol=0, atol=1e-5 * np.abs(x).max())


def test_verify_finds_a_wrong_component(scan: Path, tmp_path: Path) -> None:
    for magnitude in (False, True):
        job = Job(
            str(scan / "v.nii"),
            str(tmp_path / "o.npy"),
            (Stage("sobel:axis=xyz", magnitude=magnitude),),
            overwrite=True,
        )
        run_job(job)
        assert verify_output(job, 100).worst < 1
        data = np.load(tmp_path / "o.npy")
        np.save(tmp_path / "o.npy", np.roll(data, 1, axis=0))
        with pytest.raises(DifferenceError, match="is wrong: voxel"):
            verify_output(job, 100)


# ---------------------------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-k", "gaussian:sigma=1vox", "--magnitude"], 2, "--magnitude is for several derivatives, as in sobel:axis=xyz"),
        (["-k", "sobel:axis=x", "--magnitude"], 2, "sobel:axis=x is one kernel"),
        (["-k", "box:size=3", "--orient", "world"], 2, "--orient world is for gaussian, "),
        (["-k", "sobel:axis=x", "--orient", "up"], 2, "--orient must be voxel or world, received 'up'"),
        (["-k", "sobel:axis=xyz:orient=voxel", "--orient", "world"], 2, "contradicts orient=voxel"),
        (["-k", "sobel:axis=all"], 2, "as in axis=xyz, received axis=all"),
        (["-k", "sobel:axis=xyz", "--nan", "ignore"], 4, "--nan zero"),
        (["-k", "sobel:axis=xyz", "--boundary", "renormalize"], 4, "non-negative weights"),
        (["-k", "sobel:axis=xyz", "--normalize"], 4, "cannot be normalized"),
        (["-k", "sobel:axis=xyz", "--filters", "3"], 4, "filters=3 was asked for, but the kernel gives 6"),
        (["-k", "sobel:axis=xyz", "--groups", "2"], 4, "takes no groups"),
        (["-k", "sobel:axis=xyz", "--bias", "1,2,3"], 4, "must be one number, received shape (3,)"),
    ],
)  # fmt: skip
def test_what_is_refused(
    scan: Path, tmp_path: Path, arguments: list[str], code: int, message: str, run: Any
) -> None:
    result = run("apply", scan / "v.nii", *arguments, "-o", tmp_path / "o.nii", code=code)
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_what_python_is_refused() -> None:
    x = np.zeros((4, 4, 4))
    with pytest.raises(SpecError, match="magnitude needs a bank of derivatives"):
        conv3d(x, np.ones((3, 3, 3)), magnitude=True)
    with pytest.raises(ShapeError, match="received 4-D"):
        Kernel(np.ones((3, 3, 3, 2)))
    with pytest.raises(Conv3DError, match="weights below 0"):
        conv3d(x, read_kernel("sobel:axis=xyz"), nan="ignore")


# ---------------------------------------------------------------------------------------------------------------------
# Another tool


@pytest.mark.skipif(command("mrfilter") is None, reason="MRtrix3 is not installed")
def test_slopes_of_the_world_are_mrtrixs(tmp_path: Path, run: Any) -> None:
    image = nib.load(DATA / "example4d.nii.gz")
    nib.Nifti1Image(image.get_fdata()[..., 0].astype(np.float32), image.affine).to_filename(
        tmp_path / "x.nii"
    )
    names = [str(tmp_path / name) for name in ("x.nii", "theirs.nii")]
    options = ["-scanner", "-stdev", "0"]
    subprocess.run(
        [str(command("mrfilter")), "-quiet", names[0], "gradient", names[1], *options], check=True
    )
    run(
        "apply",
        names[0],
        "-k",
        "gradient:axis=xyz",
        "--orient",
        "world",
        "-o",
        tmp_path / "ours.nii",
    )
    theirs, ours = nib.as_closest_canonical(nib.load(names[1])), nib.load(tmp_path / "ours.nii")
    ours = nib.as_closest_canonical(ours.slicer[..., 0, :])
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    expected = theirs.get_fdata()
    np.testing.assert_allclose(
        ours.get_fdata()[INSIDE], expected[INSIDE], rtol=0, atol=1e-6 * np.abs(expected).max()
    )

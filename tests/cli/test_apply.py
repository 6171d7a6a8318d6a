"""`conv3d apply`: every option does what it says, read back from the file it wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import oracle
import pytest
import scipy.ndimage
import scipy.spatial
import tifffile

from conv3d_cli.engine import ALGORITHMS
from conv3d_cli.formats import write_volume
from conv3d_cli.model.volume import Volume


def correlate(x: np.ndarray, k: np.ndarray, **kwargs: Any) -> np.ndarray:
    """The oracle on a 3-D array and a 3-D kernel."""
    return oracle.conv3d(x[None, ..., None], k[..., None, None], **kwargs)[0, ..., 0]


def close(got: np.ndarray, expected: np.ndarray, kernel: np.ndarray, scale: float = 4.0) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(kernel).sum() * scale


# ---------------------------------------------------------------------------------------------------------------------
# geometry


def test_a_filter_keeps_size_and_reads_symmetric_edges(
    run: Any, volume: Path, kernel: Path, tmp_path: Path
) -> None:
    run("apply", volume, "-k", kernel, "-o", tmp_path / "out.npy")
    x, k = np.load(volume), np.load(kernel)
    close(
        np.load(tmp_path / "out.npy"),
        scipy.ndimage.correlate(x.astype(float), k, mode="reflect"),
        k,
    )


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        (["--padding", "valid"], {"padding": "valid"}),
        (["--padding", "same", "--boundary", "zeros"], {"padding": "same"}),
        (["--padding", "full", "--boundary", "mirror"], {"padding": "full", "boundary": "mirror"}),
        (["--padding", "2", "--boundary", "wrap"], {"padding": ((2, 2),) * 3, "boundary": "wrap"}),
        (
            ["--padding", "0,1,2", "--boundary", "nearest"],
            {"padding": ((0, 0), (1, 1), (2, 2)), "boundary": "nearest"},
        ),
        (
            ["--padding", "0:1,1:2,3:0", "--boundary", "constant=1.5"],
            {"padding": ((0, 1), (1, 2), (3, 0)), "boundary": "constant", "constant": 1.5},
        ),
        (
            ["--padding", "same", "--boundary", "zeros", "--strides", "2"],
            {"padding": "same", "strides": (2, 2, 2)},
        ),
        (["--padding", "valid", "--strides", "1,2,3"], {"strides": (1, 2, 3)}),
        (["--padding", "valid", "--dilation-rate", "2,3,1"], {"dilation_rate": (2, 3, 1)}),
        (
            [
                "--padding",
                "same",
                "--boundary",
                "zeros",
                "--strides",
                "2",
                "--dilation-rate",
                "2",
                "--allow-strided-dilation",
            ],
            {"padding": "same", "strides": (2, 2, 2), "dilation_rate": (2, 2, 2)},
        ),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_geometry_options(
    run: Any,
    volume: Path,
    kernel: Path,
    tmp_path: Path,
    options: list[str],
    keywords: dict[str, Any],
) -> None:
    run("apply", volume, "-k", kernel, "-o", tmp_path / "out.npy", *options)
    x, k = np.load(volume), np.load(kernel)
    close(np.load(tmp_path / "out.npy"), correlate(x, k, **keywords), k)


def test_flip_is_true_convolution(run: Any, volume: Path, kernel: Path, tmp_path: Path) -> None:
    run("apply", volume, "-k", kernel, "--flip", "-o", tmp_path / "out.npy")
    x, k = np.load(volume), np.load(kernel)
    close(
        np.load(tmp_path / "out.npy"), scipy.ndimage.convolve(x.astype(float), k, mode="reflect"), k
    )


def test_normalize(run: Any, volume: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.full((1, 1, 2), 4.0))
    run(
        "apply",
        volume,
        "-k",
        tmp_path / "k.npy",
        "--normalize",
        "--padding",
        "valid",
        "-o",
        tmp_path / "out.npy",
    )
    x = np.load(volume)
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), (x[..., 1:] + x[..., :-1]) / 2, atol=1e-6
    )


def test_a_layer_has_keras_defaults_groups_bias_and_activation(
    run: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((2, 5, 6, 7, 4)).astype(np.float32)
    k = rng.standard_normal((3, 3, 3, 2, 6))
    bias = np.arange(6) - 2.5
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "k.npz", kernel=k, bias=bias)
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "k.npz",
        "--groups",
        2,
        "--activation",
        "relu",
        "-o",
        tmp_path / "o.npy",
    )
    expected = np.maximum(oracle.conv3d(x, k, bias, groups=2), 0)
    close(np.load(tmp_path / "o.npy"), expected, k)
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "k.npz",
        "--groups",
        2,
        "--no-bias",
        "-o",
        tmp_path / "o2.npy",
    )
    close(np.load(tmp_path / "o2.npy"), oracle.conv3d(x, k, groups=2), k)
    np.save(tmp_path / "b.npy", bias * 2)
    run("apply", tmp_path / "x.npy", "-k", tmp_path / "k.npz", "--groups", 2, "--bias", tmp_path / "b.npy", "-o",
        tmp_path / "o3.npy")  # fmt: skip
    close(np.load(tmp_path / "o3.npy"), oracle.conv3d(x, k, bias * 2, groups=2), k)
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "k.npz",
        "--groups",
        2,
        "--bias",
        "1",
        "-o",
        tmp_path / "o4.npy",
    )
    close(np.load(tmp_path / "o4.npy"), oracle.conv3d(x, k, np.ones(6), groups=2), k)


def test_channels_first_and_axes(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 5, 6, 7)).astype(np.float32)
    k = rng.standard_normal((3, 3, 3, 2, 3))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "k.npy", k)
    expected = oracle.conv3d(x.transpose(1, 2, 3, 0)[None], k)[0].transpose(3, 0, 1, 2)
    for options in (["--data-format", "channels_first"], ["--axes", "czyx"]):
        run(
            "apply",
            tmp_path / "x.npy",
            "-k",
            tmp_path / "k.npy",
            "-o",
            tmp_path / "o.npy",
            "--overwrite",
            *options,
        )
        close(np.load(tmp_path / "o.npy"), expected, k)
    # as a series of two volumes, a filter runs over each
    np.save(tmp_path / "f.npy", k[..., 0, 0])
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "f.npy",
        "--axes",
        "tzyx",
        "-o",
        tmp_path / "t.npy",
    )
    each = [scipy.ndimage.correlate(v.astype(float), k[..., 0, 0], mode="reflect") for v in x]
    close(np.load(tmp_path / "t.npy"), np.stack(each), k)


# ---------------------------------------------------------------------------------------------------------------------
# data and running


def test_integer_output_is_rounded_saturated_and_told(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[[0.5, 1.5, 300.0, -7.0]]], np.float32))
    result = run(
        "apply", tmp_path / "x.npy", "-k", "identity", "--dtype", "uint8", "-o", tmp_path / "o.npy"
    )
    out = np.load(tmp_path / "o.npy")
    assert out.dtype == np.uint8
    assert out.ravel().tolist() == [0, 2, 255, 0]
    assert "2 voxels (50 %) did not fit uint8 (0 to 255) and were clipped" in result.stderr


@pytest.mark.parametrize(
    ("values", "share"), [([300] * 4, "4 voxels (100 %)"), ([300] * 199 + [1], "(over 99 %)")]
)
def test_all_clipped_values_are_100_percent(
    run: Any, tmp_path: Path, values: list[int], share: str
) -> None:
    np.save(tmp_path / "x.npy", np.array([[values]], np.float32))
    words = ["-k", "identity", "--dtype", "uint8", "--report", tmp_path / "r.html", "-v"]
    told = run("apply", tmp_path / "x.npy", *words, "-o", tmp_path / "o.npy").stderr
    assert f"{share} did not fit uint8" in told
    assert "e+02" not in told + (tmp_path / "r.html").read_text()


def test_precision_float64(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    x, k = rng.standard_normal((4, 5, 6)), rng.standard_normal((3, 3, 3))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "k.npy", k)
    run("apply", tmp_path / "x.npy", "-k", tmp_path / "k.npy", "--precision", "float64", "--dtype", "float64", "-o",
        tmp_path / "o.npy")  # fmt: skip
    np.testing.assert_allclose(
        np.load(tmp_path / "o.npy"),
        scipy.ndimage.correlate(x, k, mode="reflect"),
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.parametrize("options", [["-j", "1"], ["-j", "3"], ["--algorithm", "direct"]], ids=str)
def test_running_options_change_no_bit(
    run: Any, tmp_path: Path, kernel: Path, rng: np.random.Generator, options: list[str]
) -> None:
    np.save(tmp_path / "x.npy", rng.standard_normal((60, 128, 128)).astype(np.float32))
    run("apply", tmp_path / "x.npy", "-k", kernel, "-o", tmp_path / "a.npy")
    run("apply", tmp_path / "x.npy", "-k", kernel, "-o", tmp_path / "b.npy", *options)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_the_least_ceiling_changes_no_bit(
    run: Any, tmp_path: Path, kernel: Path, rng: np.random.Generator
) -> None:
    """As much as the refusal of less names: slabs are as thin as can be."""
    np.save(tmp_path / "x.npy", rng.standard_normal((60, 128, 128)).astype(np.float32))
    run("apply", tmp_path / "x.npy", "-k", kernel, "-o", tmp_path / "a.npy")
    job = [tmp_path / "x.npy", "-k", kernel, "-o", tmp_path / "b.npy"]
    refusal = run("apply", *job, "--max-memory", "1M", code=6)
    least = re.search(r"--max-memory (\d+M)", refusal.output)
    assert least, refusal.output
    decided = json.loads(run("explain", *job, "--max-memory", least[1], "--json").stdout)
    assert decided["memory"] <= int(least[1][:-1]) << 20
    assert decided["slab_depth"] < 60
    run("apply", *job, "--max-memory", least[1])
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_overwrite_and_in_place(run: Any, volume: Path, tmp_path: Path) -> None:
    before = np.load(volume)
    run("apply", volume, "-k", "box:size=3", "-o", volume, "--overwrite")
    after = np.load(volume)
    np.testing.assert_allclose(
        after, scipy.ndimage.uniform_filter(before.astype(float), 3, mode="reflect"), atol=1e-6
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["volume.npy"]


def test_dry_run_and_explain_write_nothing(run: Any, volume: Path, tmp_path: Path) -> None:
    result = run(
        "apply",
        volume,
        "-k",
        "gaussian:sigma=1vox",
        "-o",
        tmp_path / "out.npy",
        "--dry-run",
        "--strides",
        2,
    )
    assert "zyx 4x5x6" in result.stderr
    assert not (tmp_path / "out.npy").exists()
    record = json.loads(
        run("explain", volume, "-k", "gaussian:sigma=1vox", "--strides", 2, "--json").stdout
    )
    assert record["output_shape"] == [4, 5, 6]
    assert record["padding"] == [[4, 4], [4, 4], [4, 4]]
    assert record["algorithm"] in [a.name for a in ALGORITHMS]
    assert [p.name for p in tmp_path.iterdir()] == ["volume.npy"]


def test_json_is_one_object_a_job(run: Any, volume: Path, tmp_path: Path) -> None:
    result = run("apply", volume, "-k", "identity", "-o", tmp_path / "out.npy", "--json")
    record = json.loads(result.stdout)
    assert record["status"] == "done"
    assert record["output"] == str(tmp_path / "out.npy")
    assert record["voxels"] == 7 * 9 * 11
    assert result.stderr == ""


def test_quiet_and_verbose(run: Any, volume: Path, tmp_path: Path) -> None:
    assert run("apply", volume, "-k", "identity", "-o", tmp_path / "a.npy", "-q").output == ""
    text = run("apply", volume, "-k", "box:size=3", "-o", tmp_path / "b.npy", "-v").stderr
    for word in ("kernel", "padding", "grid", "algorithm", "memory", "done"):
        assert word in text


# ---------------------------------------------------------------------------------------------------------------------
# configs


def test_config_in_toml_and_json(run: Any, volume: Path, tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    np.save(folder / "k.npy", np.ones((1, 1, 3)))
    (folder / "c.toml").write_text(
        'kernel = "k.npy"\nnormalize = true\nstrides = [1, 1, 2]\nboundary = "nearest"\n'
    )
    (folder / "c.json").write_text(
        json.dumps(
            {
                "kernel": [[[1, 1, 1]]],
                "normalize": True,
                "strides": [1, 1, 2],
                "boundary": "nearest",
            }
        )
    )
    for config in ("c.toml", "c.json"):
        run("apply", volume, "-c", folder / config, "-o", tmp_path / f"{config}.npy")
    expected = scipy.ndimage.uniform_filter1d(
        np.load(volume).astype(float), 3, axis=2, mode="nearest"
    )[..., ::2]
    for config in ("c.toml", "c.json"):
        np.testing.assert_allclose(np.load(tmp_path / f"{config}.npy"), expected, atol=1e-6)


def test_an_option_beats_the_config(run: Any, volume: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('kernel = "box:size=3"\nstrides = 2\ndtype = "int16"\n')
    run("apply", volume, "-c", tmp_path / "c.toml", "--strides", 1, "-o", tmp_path / "o.npy")
    out = np.load(tmp_path / "o.npy")
    assert out.shape == (7, 9, 11)
    assert out.dtype == np.int16
    run("apply", volume, "-c", tmp_path / "c.toml", "-k", "identity", "-o", tmp_path / "p.npy")
    assert np.load(tmp_path / "p.npy").shape == (4, 5, 6)


# ---------------------------------------------------------------------------------------------------------------------
# many volumes


def test_batch(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    volumes = [rng.standard_normal((4, 5, 6)).astype(np.float32) for _ in range(3)]
    for i, v in enumerate(volumes):
        np.save(tmp_path / f"v{i}.npy", v)
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    inputs = [
        tmp_path / "v0.npy",
        tmp_path / "broken.npy",
        tmp_path / "v1.npy",
        tmp_path / "v2.npy",
    ]
    result = run(
        "apply",
        *inputs,
        "-k",
        "box:size=3",
        "--out-dir",
        tmp_path / "o",
        "--suffix",
        "_b",
        "--prefix",
        "p-",
        code=3,
    )
    assert "3 done, 1 failed" in result.stderr
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "p-v0_b.npy",
        "p-v1_b.npy",
        "p-v2_b.npy",
    ]
    for i, v in enumerate(volumes):
        expected = scipy.ndimage.uniform_filter(v.astype(float), 3, mode="reflect")
        np.testing.assert_allclose(np.load(tmp_path / "o" / f"p-v{i}_b.npy"), expected, atol=1e-6)
    again = run("apply", *inputs[:1], "-k", "box:size=5", "--out-dir", tmp_path / "o", "--suffix", "_b", "--prefix", "p-",
                "--skip-existing")  # fmt: skip
    assert again.exit_code == 0
    expected = scipy.ndimage.uniform_filter(volumes[0].astype(float), 3, mode="reflect")
    # left alone
    np.testing.assert_allclose(np.load(tmp_path / "o" / "p-v0_b.npy"), expected, atol=1e-6)


def test_name_clashes_are_found_before_work_starts(run: Any, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "v.npy", np.zeros((2, 2, 2)))
    out = tmp_path / "out"
    result = run(
        "apply",
        tmp_path / "a" / "v.npy",
        tmp_path / "b" / "v.npy",
        "-k",
        "identity",
        "--out-dir",
        out,
        code=2,
    )
    assert "two inputs would write" in result.stderr
    assert not out.exists()
    result = run(
        "apply", tmp_path / "a" / "v.npy", "-k", "identity", "--out-dir", tmp_path / "a", code=5
    )
    assert "would replace the input" in result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# formats and the world


def head(tmp_path: Path, rng: np.random.Generator, suffix: str = ".nii.gz") -> Path:
    """A small oblique scan with a scale."""
    affine = np.eye(4)
    affine[:3, :3] = scipy.spatial.transform.Rotation.from_rotvec(
        [0.1, -0.05, 0.15]
    ).as_matrix() * (1.9, 1.9, 2.9)
    affine[:3, 3] = -20, 30, 7
    image = nib.Nifti1Image(rng.integers(-500, 500, (9, 8, 7)).astype(np.int16), affine)
    image.header.set_slope_inter(0.5, 10)
    image.header.set_sform(affine, 2)
    image.header.set_xyzt_units("mm", "sec")
    path = tmp_path / f"head{suffix}"
    nib.save(image, path)
    return path


def test_nifti_values_and_world(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    path = head(tmp_path, rng)
    run("apply", path, "-k", "gaussian:sigma=2mm", "-o", tmp_path / "o.nii.gz")
    source, out = nib.load(path), nib.load(tmp_path / "o.nii.gz")
    np.testing.assert_array_equal(out.affine, source.affine)
    assert out.get_data_dtype() == np.float32
    zooms = np.sqrt((source.affine[:3, :3] ** 2).sum(axis=0))
    expected = scipy.ndimage.gaussian_filter(source.get_fdata(), 2 / zooms, mode="reflect")
    np.testing.assert_allclose(out.get_fdata(), expected, atol=2e-6 * 300)


def test_nifti_strided_grid(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    """Even sizes under `same` and stride 2 start one voxel in, odd sizes at voxel 0."""
    path = head(tmp_path, rng)
    run("apply", path, "-k", "box:size=3", "--strides", 2, "-o", tmp_path / "o.nii")
    source, out = nib.load(path), nib.load(tmp_path / "o.nii")
    offset = [0, 1, 0, 1]  # i: 9 voxels, j: 8, k: 7
    np.testing.assert_allclose(out.affine[:3, 3], (source.affine @ offset)[:3], atol=1e-5)
    np.testing.assert_allclose(out.affine[:3, :3], 2 * source.affine[:3, :3], atol=1e-6)


def test_a_5d_kernel_on_a_scan_gives_a_vector_image(
    run: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = head(tmp_path, rng)
    k = rng.standard_normal((3, 3, 3, 1, 4))
    np.save(tmp_path / "k.npy", k)
    run("apply", path, "-k", tmp_path / "k.npy", "-o", tmp_path / "o.nii.gz")
    out = nib.load(tmp_path / "o.nii.gz")
    assert out.shape == (7, 6, 5, 1, 4)
    x = nib.load(path).get_fdata().transpose(2, 1, 0)[None, ..., None]
    expected = oracle.conv3d(x, k)[0]
    np.testing.assert_allclose(
        out.get_fdata()[:, :, :, 0].transpose(2, 1, 0, 3), expected, atol=2e-6 * 300 * 100
    )
    np.testing.assert_allclose(
        out.affine[:3, 3], nib.load(path).affine[:3] @ [1, 1, 1, 1], atol=1e-5
    )
    # and back through a layer that takes the four
    np.save(tmp_path / "k2.npy", rng.standard_normal((1, 1, 1, 4, 1)))
    run("apply", tmp_path / "o.nii.gz", "-k", tmp_path / "k2.npy", "-o", tmp_path / "p.nii.gz")
    assert nib.load(tmp_path / "p.nii.gz").shape[:3] == (7, 6, 5)


@pytest.mark.parametrize("boundary", ["wrap", "symmetric", "mirror", "nearest", "zeros"])
@pytest.mark.parametrize("padding", ["same", "full", "3:0,0,1", "0:9,1,1"])
def test_streams_equal_random_access(
    run: Any, tmp_path: Path, rng: np.random.Generator, boundary: str, padding: str
) -> None:
    """A .nii.gz, read forward in thin slabs, gives what the whole array gives, for any boundary."""
    x = rng.standard_normal((6, 5, 11)).astype(np.float32)
    nib.save(nib.Nifti1Image(x, np.eye(4)), tmp_path / "x.nii.gz")
    np.save(tmp_path / "x.npy", x.transpose(2, 1, 0))
    options = ["-k", "log:sigma=0.6vox", "--padding", padding, "--boundary", boundary]
    run("apply", tmp_path / "x.nii.gz", *options, "-o", tmp_path / "a.nii.gz")
    run("apply", tmp_path / "x.npy", *options, "-o", tmp_path / "b.npy")
    got = np.asanyarray(nib.load(tmp_path / "a.nii.gz").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(got, np.load(tmp_path / "b.npy"))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.zst"])
def test_packed_bytes_depend_on_nothing_else(
    run: Any, tmp_path: Path, kernel: Path, rng: np.random.Generator, suffix: str
) -> None:
    x = rng.standard_normal((60, 128, 128)).astype(np.float32)
    write_volume(str(tmp_path / f"x{suffix}"), Volume(x, "zyx"))
    for name, options in {
        "a": ["-j", "1"],
        "b": ["-j", "3"],
        "c": ["--max-memory", "232M"],
    }.items():
        run(
            "apply",
            tmp_path / f"x{suffix}",
            "-k",
            kernel,
            "-o",
            tmp_path / f"{name}{suffix}",
            *options,
        )
    assert len({(tmp_path / f"{name}{suffix}").read_bytes() for name in "abc"}) == 1


def test_tiff_axes_and_spacing(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.integers(0, 255, (5, 2, 8, 9)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", x, imagej=True, resolution=(4.0, 4.0),
                     metadata={"axes": "ZCYX", "spacing": 0.5, "unit": "um"})  # fmt: skip
    run(
        "apply",
        tmp_path / "x.tif",
        "-k",
        "gaussian:sigma=0.5um",
        "--strides",
        "1,2,2",
        "-o",
        tmp_path / "o.tif",
    )
    with tifffile.TiffFile(tmp_path / "o.tif") as tif:
        assert tif.series[0].axes == "ZCYX"
        out = tif.asarray()
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["spacing"] == 0.5
        numerator, denominator = tif.pages[0].tags["XResolution"].value
        assert numerator / denominator == pytest.approx(2.0)
    for c in range(2):
        expected = scipy.ndimage.gaussian_filter(x[:, c].astype(float), (1, 2, 2), mode="reflect")
        # 8 rows: `same` with stride 2 pads 7:8 around radius 8, so the first row is voxel 1; 9 columns start at 0
        np.testing.assert_allclose(out[:, c], expected[:, 1::2, ::2], atol=1e-4)


@pytest.mark.parametrize("target", ["o.tif", "o.ome.tif", "o.npy", "o.nii", "o.nii.gz", "o.hdr"])
def test_every_conversion(run: Any, tmp_path: Path, rng: np.random.Generator, target: str) -> None:
    """From each format into each: the same voxels, spacing kept where it can be."""
    from conv3d_cli import read_volume

    scan = head(tmp_path, rng)
    run("apply", scan, "-k", "box:size=3", "-o", tmp_path / target)
    reference = nib.load(scan).get_fdata().transpose(2, 1, 0)
    expected = scipy.ndimage.uniform_filter(reference, 3, mode="reflect")
    volume = read_volume(str(tmp_path / target))
    np.testing.assert_allclose(volume.data.reshape(expected.shape), expected, atol=2e-3)
    if target != "o.npy":
        assert volume.grid.spacing is not None
        zooms = nib.load(scan).header.get_zooms()[::-1]
        np.testing.assert_allclose(volume.grid.spacing_in("mm"), zooms, rtol=1e-5)


def test_rgb_stays_rgb_under_uint8_and_becomes_a_vector_otherwise(
    run: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    rgb = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name in "RGB":
        rgb[name] = rng.integers(0, 255, (6, 5, 4))
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii.gz")
    run(
        "apply",
        tmp_path / "rgb.nii.gz",
        "-k",
        "identity",
        "--dtype",
        "uint8",
        "-o",
        tmp_path / "o.nii.gz",
    )
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "o.nii.gz").dataobj), rgb)
    run("apply", tmp_path / "rgb.nii.gz", "-k", "identity", "-o", tmp_path / "f.nii.gz")
    out = nib.load(tmp_path / "f.nii.gz")
    assert out.get_data_dtype() == np.float32
    assert out.shape == (6, 5, 4, 1, 3)
    for i, name in enumerate("RGB"):
        np.testing.assert_array_equal(out.get_fdata()[..., 0, i], rgb[name])


def test_same_input_and_options_same_bytes(
    run: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    scan = head(tmp_path, rng)
    for target in ("a.nii.gz", "a.tif", "a.ome.tif", "a.nii", "a.npy"):
        other = "b" + target[1:]
        run("apply", scan, "-k", "box:size=3", "-o", tmp_path / target, "-j", 1)
        run("apply", scan, "-k", "box:size=3", "-o", tmp_path / other, "-j", 2)
        assert (tmp_path / target).read_bytes() == (tmp_path / other).read_bytes(), target

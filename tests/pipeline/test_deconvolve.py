"""`conv3d deconvolve` from file to file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import started, wait_until

from conv3d_cli import (
    Grid,
    Kernel,
    Volume,
    conv3d,
    operate,
    read_kernel,
    read_volume,
    write_volume,
)
from conv3d_cli.engine.fields import Field
from conv3d_cli.engine.richardson_lucy import _Solver
from conv3d_cli.errors import SpecError
from conv3d_cli.kernels.inverse import back_projector, wiener

PSF = "gaussian:sigma=1.5,1,1vox:truncate=2"


def beads(size: tuple[int, int, int] = (20, 30, 40), margin: int = 6) -> Any:
    """A few points on a dim ground, float32, away from the border."""
    rng = np.random.default_rng(2)
    points = np.full(size, 1.0, np.float32)
    for _ in range(12):
        points[tuple(rng.integers(margin, n - margin) for n in size)] += 500
    return points


def blurred(points: Any, psf: str = PSF) -> Any:
    found = conv3d(points, psf, padding="same", boundary="symmetric")
    return np.asarray(found, np.float32).reshape(points.shape)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    data = np.rint(blurred(beads())).astype(np.uint16)
    write_volume(str(tmp_path / "a.tif"), Volume(data, "zyx", Grid((0.3, 0.1, 0.1), "um")))
    return tmp_path / "a.tif"


def test_points_become_points_again() -> None:
    points = beads()
    y = blurred(points)
    plain, fast = (
        operate(y, f"deconvolve:iterations=40:accelerate={word}", PSF) for word in ("no", "yes")
    )
    bright = points > 100
    assert (plain[bright] > 4 * y[bright]).all()
    assert abs(plain.sum() / y.sum() - 1) < 1e-4
    # the acceleration is farther on the same way
    assert fast.max() > 1.3 * plain.max()
    off, fast_off = (np.abs(blurred(found) - y).sum() for found in (plain, fast))
    assert fast_off < 0.7 * off < 0.03 * y.sum()


def test_a_psf_is_the_image_of_a_point() -> None:
    """Not its mirror image: the blur of one point is deconvolved to that point."""
    rng = np.random.default_rng(3)
    psf = rng.random((5, 3, 4)) ** 3
    y = np.zeros((17, 17, 17), np.float32)
    before = [(n - 1) // 2 for n in psf[::-1].shape]
    # of even sizes, the middle is where a mirrored correlation has it
    first = [8 - (n - 1 - b) for n, b in zip(psf.shape, before, strict=True)]
    y[tuple(slice(a, a + n) for a, n in zip(first, psf.shape, strict=True))] = psf
    found = operate(y, "deconvolve:iterations=300", Kernel(psf))
    assert np.unravel_index(found.argmax(), found.shape) == (8, 8, 8)
    assert found[8, 8, 8] > 0.9 * found.sum()


def test_a_centre_of_the_kernel_counts() -> None:
    psf = np.zeros((1, 1, 5))
    psf[0, 0, :2] = 3, 1
    y = np.zeros((3, 9, 20), np.float32)
    y[1, 4, 10:12] = 3, 1
    found = operate(y, "deconvolve:iterations=200", Kernel(psf, centre=(0, 0, 0)))
    assert np.unravel_index(found.argmax(), found.shape) == (1, 4, 10)


def test_inside_it_is_that_of_simpleitk(sitk: Any) -> None:
    y, psf = blurred(beads()), read_kernel(PSF).weights
    image, kernel = (sitk.GetImageFromArray(np.float32(a)) for a in (y, psf))
    expected = sitk.GetArrayFromImage(sitk.RichardsonLucyDeconvolution(image, kernel, 6))
    found = operate(y, "deconvolve:iterations=6:start=data", PSF)
    inside = (slice(6, -6),) * 3
    np.testing.assert_allclose(
        found[inside], expected[inside], rtol=0, atol=5e-4 * float(expected.max())
    )


def test_wiener_is_tikhonov_of_simpleitk(sitk: Any) -> None:
    y, psf = blurred(beads()), read_kernel(PSF).weights
    image, kernel = (sitk.GetImageFromArray(np.float32(a)) for a in (y, psf))
    expected = sitk.GetArrayFromImage(sitk.TikhonovDeconvolution(image, kernel, 0.04))
    found = operate(y, "deconvolve:method=wiener:snr=5", PSF)
    inside = (slice(7, -7),) * 3
    np.testing.assert_allclose(
        found[inside], expected[inside], rtol=0, atol=2e-3 * float(expected.max())
    )


@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 4, 5)])
def test_a_wiener_filter_undoes_the_blur(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(4)
    kernel = rng.random(shape)
    kernel[tuple(n // 2 for n in shape)] += 60  # a spectrum without zeros
    kernel /= kernel.sum()
    found, note = wiener(kernel, 1e-8)
    assert not note
    x = rng.random((12, 14, 16))
    back = conv3d(
        conv3d(x, kernel, padding="same", boundary="wrap"), found, padding="same", boundary="wrap"
    )
    np.testing.assert_allclose(np.asarray(back).reshape(x.shape), x, rtol=0, atol=2e-3)


def noisy(noise: float, size: tuple[int, int, int] = (24, 30, 36)) -> tuple[Any, Any]:
    """Balls, and their blur with noise."""
    rng = np.random.default_rng(8)
    x, places = np.full(size, 10.0, np.float32), np.indices(size)
    for _ in range(20):
        centre = [rng.uniform(0, n) for n in size]
        apart = sum((p - c) ** 2 for p, c in zip(places, centre, strict=True))
        x[apart < rng.uniform(2, 5) ** 2] += rng.uniform(20, 100)
    return x, blurred(x) + noise * rng.standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("noise", [0.5, 3.0, 12.0])
def test_cross_validation_is_near_the_best_ratio(noise: float) -> None:
    x, y = noisy(noise)

    def off(snr: object) -> float:
        found = operate(y, f"deconvolve:method=wiener:snr={snr}", PSF)
        return float(np.sqrt(np.mean((found - x) ** 2)))

    best = min(off(snr) for snr in (1, 2, 3, 5, 8, 12, 20, 30))
    with pytest.warns(UserWarning, match="--snr gcv|snr='gcv' found"):
        found = off("gcv")
    assert found < 1.2 * best


def test_the_ratio_that_was_found_is_told_and_recorded(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, y = noisy(3.0)
    write_volume(str(tmp_path / "y.nii.gz"), Volume(y, "zyx", Grid((0.3, 0.1, 0.1), "um")))
    monkeypatch.setattr("conv3d_cli.pipeline.sampling.BLOCK_VOXELS", 3000)
    line = ["deconvolve", tmp_path / "y.nii.gz", "-k", PSF, "--method", "wiener", "--snr"]
    told = run(*line, "gcv", "-o", tmp_path / "o.npy", "--sidecar").stderr
    found = json.loads((tmp_path / "o.json").read_text())["Conv3D"]["Found"]["snr"]
    assert f"--snr gcv found --snr {found:g} by generalized cross-validation" in told
    assert 2 < found < 20
    run(*line, found, "-o", tmp_path / "p.npy")
    assert (tmp_path / "o.npy").read_bytes() == (tmp_path / "p.npy").read_bytes()
    assert "every byte" in run("rerun", tmp_path / "o.json", "-o", tmp_path / "q.npy").output
    # other units of the same volume
    scaled = ["--normalize-input", "zscore", "-o", tmp_path / "r.npy"]
    assert f"found --snr {found:g} " in run(*line, "gcv", *scaled).stderr


def test_cross_validation_leaves_out_blocks_with_nan(
    tmp_path: Path, run: Any, error_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, y = noisy(3.0)
    y[3, 4, 5] = np.nan
    np.save(tmp_path / "y.npy", y)
    line = ["deconvolve", tmp_path / "y.npy", "-k", PSF, "--method", "wiener", "--snr", "gcv"]
    result = run(*line, "-o", tmp_path / "o.npy", code=4)
    assert "pass a number, as in --snr 30" in error_line(result.stderr)
    run(*line, "-o", tmp_path / "zero.npy", "--nan", "zero")
    monkeypatch.setattr("conv3d_cli.pipeline.sampling.BLOCK_VOXELS", 3000)
    run(*line, "-o", tmp_path / "o.npy")
    assert np.isnan(np.load(tmp_path / "o.npy")).any()


def test_hardly_any_noise_is_told(tmp_path: Path, run: Any) -> None:
    _, y = noisy(0.0, (6, 12, 30))
    np.save(tmp_path / "y.npy", y.astype(np.float64))
    psf = "gaussian:sigma=0,0,0.5vox"
    line = ["deconvolve", tmp_path / "y.npy", "-k", psf, "--method", "wiener", "--snr", "gcv"]
    told = run(*line, "-o", tmp_path / "o.npy").stderr
    assert "found --snr 1000 by generalized cross-validation, the highest that is tried" in told


def test_two_iterations_of_butterworth_go_as_far_as_many_of_richardson_lucy() -> None:
    y = blurred(beads())
    few, many = (
        operate(y, f"deconvolve:method={text}", PSF)
        for text in ("butterworth", "richardson-lucy:iterations=10")
    )
    assert few.max() > many.max() > 2.5 * y.max()
    back = back_projector(read_kernel(PSF).weights)
    np.testing.assert_allclose(back, back[::-1, ::-1, ::-1], rtol=0, atol=1e-12)


def test_the_same_bytes_in_memory_and_on_disk(
    volume: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["deconvolve", volume, "-k", PSF, "--iterations", 3, "-o"]
    run(*line, tmp_path / "memory.tif")
    monkeypatch.setattr("conv3d_cli.pipeline.prepare.ITERATED_BYTES", 0)
    run(*line, tmp_path / "disk.tif", "--threads", 1)
    assert (tmp_path / "memory.tif").read_bytes() == (tmp_path / "disk.tif").read_bytes()


def test_what_is_held_in_memory_follows_the_ceiling(volume: Path) -> None:
    from conv3d_cli.network.graph import Node
    from conv3d_cli.network.operations.base import Shape
    from conv3d_cli.network.operations.catalogue import make_operation

    node = Node("rl", "RichardsonLucy", (), {}, {"kernel": np.ones((31, 15, 15)) / 6975})
    real = np.dtype(np.float32)
    large = make_operation(node, [Shape(512, 1024, 1024, 1)])
    assert large.held_bytes(real, 2, on_disk=True) < 500 << 20
    assert large.held_bytes(real, 2, on_disk=False) > 4 << 30
    small = make_operation(node, [Shape(128, 256, 256, 1)])
    assert small.held_bytes(real, 2, on_disk=False) < 300 << 20


def test_channels_and_times_are_deconvolved_one_by_one(
    volume: Path, tmp_path: Path, run: Any
) -> None:
    one = np.rint(blurred(beads((10, 16, 18), 3))).astype(np.float32)
    many = np.stack([np.stack([one, 2 * one + 1]), np.stack([one[::-1], one[:, ::-1]])])
    write_volume(str(tmp_path / "many.npy"), Volume(many, "tczyx"))
    psf = "gaussian:sigma=1vox:truncate=2"
    run("deconvolve", tmp_path / "many.npy", "--axes", "tczyx", "-k", psf, "--iterations", 3,
        "--save-every", 2, "-o", tmp_path / "o.npy")  # fmt: skip
    found, second = (np.load(tmp_path / name) for name in ("o.npy", "o_iter2.npy"))
    for t in range(2):
        for c in range(2):
            for result, count in ((found, 3), (second, 2)):
                alone = operate(many[t, c], f"deconvolve:iterations={count}", psf)
                np.testing.assert_array_equal(result[t, c], alone)


def test_estimates_are_saved(volume: Path, tmp_path: Path, run: Any) -> None:
    line = ["deconvolve", volume, "-k", PSF, "--iterations", 12, "--save-every", 5]
    run(*line, "-o", tmp_path / "o.tif")
    assert {path.name for path in tmp_path.glob("o*")} == {"o.tif", "o_iter05.tif", "o_iter10.tif"}
    run("deconvolve", volume, "-k", PSF, "--iterations", 10, "-o", tmp_path / "ten.tif")
    ten, tenth = (read_volume(str(tmp_path / name)) for name in ("ten.tif", "o_iter10.tif"))
    np.testing.assert_array_equal(ten.data, tenth.data)
    assert tenth.grid.spacing == (0.3, 0.1, 0.1)
    before = (tmp_path / "o_iter05.tif").read_bytes()
    (tmp_path / "o.tif").unlink()
    run(*line, "-o", tmp_path / "o.tif", code=5)  # an estimate exists
    assert not (tmp_path / "o.tif").exists()
    assert (tmp_path / "o_iter05.tif").read_bytes() == before


@pytest.mark.parametrize("mode", ["clip", "keep", "extend"])
def test_estimates_have_the_mask_of_the_output(
    mode: str, volume: Path, tmp_path: Path, run: Any
) -> None:
    mask = np.zeros((20, 30, 40), np.uint8)
    mask[5:15, 6:20, 7:30] = 1
    write_volume(str(tmp_path / "m.tif"), Volume(mask, "zyx", Grid((0.3, 0.1, 0.1), "um")))
    line = ["deconvolve", volume, "-k", PSF, "--mask", tmp_path / "m.tif", "--mask-mode", mode]
    run(*line, "--iterations", 5, "--save-every", 3, "-o", tmp_path / "o.npy")
    run(*line, "--iterations", 3, "-o", tmp_path / "three.npy")
    saved, three = (np.load(tmp_path / name) for name in ("o_iter3.npy", "three.npy"))
    np.testing.assert_array_equal(saved, three)
    assert (saved[mask == 0] == 0).all() == (mode == "clip")


def test_estimates_after_a_stop_hold_the_last_one(volume: Path, tmp_path: Path, run: Any) -> None:
    one = np.rint(blurred(beads((10, 16, 18), 3))).astype(np.float32)
    write_volume(str(tmp_path / "two.npy"), Volume(np.stack([one, 0 * one + 7]), "czyx"))
    psf = "gaussian:sigma=1vox:truncate=2"
    run("deconvolve", tmp_path / "two.npy", "--axes", "czyx", "-k", psf, "--iterations", 9,
        "--stop", 0.1, "--save-every", 4, "-o", tmp_path / "o.npy")  # fmt: skip
    found = np.load(tmp_path / "o.npy")
    for number in (4, 8):
        estimate = np.load(tmp_path / f"o_iter{number}.npy")
        assert estimate[1].min() > 6.9  # the constant channel is done at once
        if number == 8:
            np.testing.assert_array_equal(estimate, found)


def test_estimates_belong_to_the_output(volume: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    line = ["deconvolve", volume, "-k", PSF, "--iterations", 5, "--save-every", 2]
    kept = ["--resume", "--sidecar", "-o", out / "o.tif"]
    told = run(*line, "-o", out / "o.tif", "--dry-run", "--json").stdout
    names = ["o.tif", "o_iter2.tif", "o_iter4.tif"]
    paths = [str(out / name) for name in names]
    assert json.loads(told)["estimates"] == paths[1:]
    run(*line, *kept, "--depfile", tmp_path / "o.d")
    assert (tmp_path / "o.d").read_text().startswith(" ".join(paths) + ":")
    record = json.loads((out / "o.json").read_text())["Conv3D"]
    assert sorted((one["Role"], one["Path"]) for one in record["Outputs"]) == [
        ("iteration 2", "o_iter2.tif"),
        ("iteration 4", "o_iter4.tif"),
        ("volume", "o.tif"),
    ]
    assert "every byte" in run("rerun", out / "o.json").output
    made = (out / "o.tif").stat().st_mtime_ns
    run(*line, *kept)
    assert (out / "o.tif").stat().st_mtime_ns == made
    # one that is gone is made again
    before = [Path(path).read_bytes() for path in paths]
    Path(paths[2]).unlink()
    run(*line, *kept, code=5)  # the output is there, and not all of it
    run(*line, *kept, "--overwrite")
    assert [Path(path).read_bytes() for path in paths] == before
    # all of them, or none
    result = run(*line, "-o", out / "o.tif", code=5)
    assert "exists" in result.stderr
    run(*line, "-o", out / "o.tif", "--overwrite", "--iterations", 5)
    assert sorted(path.name for path in out.glob("*.tif")) == sorted(names)


def test_estimates_of_another_run_are_told_and_kept(volume: Path, tmp_path: Path, run: Any) -> None:
    line = ["deconvolve", volume, "-k", PSF, "--iterations", 7, "-o", tmp_path / "o.tif"]
    assert "named" not in run(*line, "--save-every", 2).stderr
    (tmp_path / "o_iterate.tif").write_bytes(b"mine")
    told = run(*line, "--save-every", 3, "--overwrite").stderr
    which = f"{tmp_path / 'o_iter2.tif'} to o_iter4.tif"
    assert (
        "2 files beside the output are named as its estimates are, and this run did not write "
        f"them: {which}" in told
    )
    assert (tmp_path / "o_iterate.tif").read_bytes() == b"mine"
    for number in (2, 3, 4):
        (tmp_path / f"o_iter{number}.tif").unlink()
    told = run(*line, "--overwrite").stderr  # which writes none itself
    assert (
        "1 file beside the output is named as its estimates are, and this run did not write it: "
        f"{tmp_path / 'o_iter6.tif'}" in told
    )
    line[1] = tmp_path / "o_iter6.tif"  # what a run reads is not left over
    assert "named" not in run(*line, "--overwrite").stderr


def test_what_a_killed_run_left_of_estimates_is_removed(
    volume: Path, tmp_path: Path, run: Any
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    line = [sys.executable, "-m", "conv3d_cli", "deconvolve", volume, "-k", PSF]
    line += ["--iterations", "100000", "--save-every", "1000", "-o", out / "o.tif"]
    with started(line) as process:
        wait_until(lambda: len(list(out.glob(".o*"))) > 1, process)
    assert len(list(out.glob(".o*"))) > 1
    told = run("deconvolve", volume, "-k", PSF, "--iterations", 3, "-o", out / "o.tif").stderr
    assert "left by a run that was killed" in told
    assert [path.name for path in out.iterdir()] == ["o.tif"]


def test_estimates_that_replace_the_input_are_refused(
    volume: Path, tmp_path: Path, run: Any, error_line: Any
) -> None:
    line = ["deconvolve", tmp_path / "o_iter2.tif", "-k", PSF, "--iterations", 4]
    (tmp_path / "o_iter2.tif").write_bytes(volume.read_bytes())
    result = run(*line, "--save-every", 2, "-o", tmp_path / "o.tif", "--overwrite", code=2)
    assert "o_iter2.tif is also an input" in error_line(result.stderr)
    result = run(*line, "--save-every", 2, "-o", "-", code=2)
    assert "--save-every writes files beside the output" in error_line(result.stderr)


def test_an_array_has_no_files() -> None:
    with pytest.raises(SpecError, match="save_every writes files"):
        operate(np.ones((9, 9, 9), np.float32), "deconvolve:iterations=3:save_every=2", PSF)


def test_stop_is_told(volume: Path, tmp_path: Path, run: Any) -> None:
    line = ["deconvolve", volume, "-k", PSF, "--stop"]
    told = run(*line, 0.05, "--iterations", 90, "-o", tmp_path / "o.tif").stderr
    assert "stopped after" in told
    told = run(*line, 1e-9, "--iterations", 3, "-o", tmp_path / "p.tif").stderr
    assert "3 iterations did not bring the change below --stop 1e-09" in told


@pytest.mark.parametrize("option", ["--kernel", "--mask"])
def test_estimates_never_replace_what_the_job_reads(
    volume: Path, tmp_path: Path, run: Any, error_line: Any, option: str
) -> None:
    read = tmp_path / "o_iter2.npy"
    np.save(read, np.ones((3, 3, 3) if option == "--kernel" else (20, 30, 40), np.float32))
    before = read.read_bytes()
    given = [option, read] if option == "--kernel" else ["-k", PSF, option, read]
    line = ["deconvolve", volume, *given, "--iterations", 4, "--save-every", 2]
    result = run(*line, "-o", tmp_path / "o.npy", "--overwrite", code=5)
    assert "o_iter2.npy: it is the input or the output" in error_line(result.stderr)
    assert read.read_bytes() == before
    assert not (tmp_path / "o.npy").exists()


def test_progress_counts_iterations(volume: Path, tmp_path: Path) -> None:
    from conv3d_cli.pipeline.request import Job, Stage
    from conv3d_cli.pipeline.run import run_job

    told: list[tuple[int, int]] = []
    job = Job(
        str(volume),
        str(tmp_path / "o.tif"),
        (Stage(PSF, boundary="symmetric"),),
        operation="deconvolve:iterations=4",
    )
    run_job(job, progress=lambda done, total: told.append((done, total)))
    voxels = 20 * 30 * 40
    assert {total for _, total in told} == {5 * voxels}
    assert [done for done, _ in told[:4]] == [n * voxels for n in range(1, 5)]
    assert told[-1] == (5 * voxels, 5 * voxels)


def test_a_kernel_beyond_all_transforms_is_refused(
    tmp_path: Path, run: Any, error_line: Any
) -> None:
    write_volume(str(tmp_path / "a.npy"), Volume(np.ones((1, 1500, 40), np.float32), "zyx"))
    np.save(tmp_path / "k.npy", np.ones((1, 700, 1), np.float32))
    result = run("deconvolve", tmp_path / "a.npy", "-k", tmp_path / "k.npy", "-o",
                 tmp_path / "o.npy", code=4)  # fmt: skip
    assert "more than its transforms have room for" in error_line(result.stderr)


def test_a_background_above_every_voxel_is_refused(
    volume: Path, tmp_path: Path, run: Any, error_line: Any
) -> None:
    line = ["deconvolve", volume, "-k", PSF, "--iterations", 2, "-o", tmp_path / "o.tif"]
    largest = int(read_volume(str(volume)).data.max())
    told = error_line(run(*line, "--background", largest + 1, code=4).stderr)
    assert f"is above every voxel, of which the largest is {largest}: nothing would be left" in told
    assert not (tmp_path / "o.tif").exists()
    run(*line, "--background", largest)
    write_volume(str(tmp_path / "dark.npy"), Volume(np.zeros((9, 9, 9), np.uint8), "zyx"))
    line = ["deconvolve", tmp_path / "dark.npy", "-k", "gaussian:sigma=1vox:truncate=2"]
    run(*line, "--background", 3, "-o", tmp_path / "d.npy")  # a time point without light
    assert np.load(tmp_path / "d.npy").max() < 1e-6


def test_the_memory_of_a_wiener_filter_is_counted(
    volume: Path, tmp_path: Path, run: Any, error_line: Any
) -> None:
    """A filter reaches farther, the higher the ratio of signal to noise."""
    kernel = Kernel(np.pad(np.ones((9, 9, 9)), 4))
    data = read_volume(str(volume)).data[:17]
    write_volume(str(tmp_path / "x.npy"), Volume(data, "zyx"))
    np.save(tmp_path / "k.npy", kernel.weights)
    line = [tmp_path / "x.npy", "-k", tmp_path / "k.npy", "--operation"]
    uses = []
    for snr in (3, 3000):
        told = run("explain", *line, f"deconvolve:method=wiener:snr={snr}", "--json").stdout
        uses.append(json.loads(told)["memory"])
    assert uses[1] > uses[0] + (500 << 20)
    few = ["--max-memory", "400M", "-o", tmp_path / "o.npy"]
    told = error_line(
        run("deconvolve", *line[:3], "--method", "wiener", "--snr", 3000, *few, code=6).stderr
    )
    assert told.startswith("Error: the Wiener filter of --snr 3000 needs ")
    assert told.endswith("or more, or a lower --snr, which makes it shorter")


def test_a_microscope_by_name(volume: Path, tmp_path: Path, run: Any) -> None:
    optics = "gibson-lanni:na=0.9:ri=1.33:wavelength=520nm:size=9,9,9"
    out = tmp_path / "o.tif"
    run(
        "deconvolve",
        volume,
        "-k",
        optics,
        "--iterations",
        2,
        "-o",
        out,
        "--verify",
        50,
        "--sidecar",
    )
    assert "gibson_lanni:na=0.9" in (tmp_path / "o.json").read_text()


def test_total_variation_is_verified_whatever_its_weight(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It multiplies what rounding does in each iteration, which is no fault of the output."""
    data = np.random.default_rng(0).poisson(blurred(beads(margin=3)) + 20).astype(np.uint16)
    np.save(tmp_path / "a.npy", data)
    line = ["deconvolve", tmp_path / "a.npy", "-k", PSF, "--iterations", "10", "--verify", "200"]
    for weight in ("0.1", "0.01"):
        run(*line, "--tv", weight, "-o", tmp_path / f"{weight}.npy")
    # an output that is wrong by 5 % is still found
    right = _Solver._variation

    def wrong(self: _Solver, source: Field, out: Field) -> None:
        right(self, source, out)
        out.write(0, out.read(0, len(data)) * np.float32(1.05))

    monkeypatch.setattr(_Solver, "_variation", wrong)
    run(*line, "--tv", "0.01", "-o", tmp_path / "wrong.npy", code=7)


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["-k", "gaussian:sigma=9vox"], 4, "spans 73 voxels along depth, and the volume has 20"),
        (["-k", "laplacian"], 2, "has the sum 0, and a point spread function needs a positive"),
        (["-k", "dog:sigma=1vox"], 2, "has the sum"),
        (["-k", "unsharp:sigma=1vox"], 2, "has negative weights"),
        (["-k", "sobel:axis=xyz"], 4, "has several filters"),
        ([], 2, "deconvolve needs a kernel: pass one, as in -k psf.tif"),
        (["-k", PSF, "--iterations", "0"], 2, "--iterations must be at least 1, received 0"),
        (["-k", PSF, "--save-every", "0"], 2, "--save-every must be at least 1, received 0"),
        (["-k", PSF, "--save-every", "10"], 2, "--save-every 10 writes nothing: there are 10"),
        (["-k", PSF, "--save-every", "1", "--iterations", "2000000000"], 2, "at most 1,000"),
        (["-k", PSF, "--tv", "0.5"], 2, "--tv must be below 1/6"),
        (["-k", PSF, "--background", "-1"], 2, "--background must not be negative"),
        (["-k", PSF, "--stop", "2"], 2, "--stop is a part of the sum of all voxels, below 1"),
        (["-k", PSF, "--method", "wiener", "--snr", "1e200"], 2, "from 0.001 to 1e+06, as in"),
        (["-k", PSF, "--method", "wiener", "--snr", "1e-200"], 2, "from 0.001 to 1e+06, as in"),
        (["-k", PSF, "--snr", "3"], 2, "--snr is for method wiener"),
        (["-k", PSF, "--method", "wiener"], 2, "as in --snr 30"),
        (["-k", PSF, "--method", "wiener", "--snr", "0"], 2, "as in --snr 30, or"),
        (["-k", PSF, "--method", "wiener", "--snr", "gvc"], 2, "a number or gcv, received"),
        (["-k", "identity", "--method", "wiener", "--snr", "gcv"], 2, "one voxel does not"),
        (["-k", PSF, "--method", "wiener", "--snr", "3", "--tv", "0.1"], 2, "--tv is for methods"),
        (["-k", PSF, "--method", "wiener", "--snr", "3", "--accelerate"], 2, "--accelerate is"),
        (["-k", PSF, "--boundary", "renormalize"], 2, "--boundary renormalize is for means"),
        (["-k", PSF, "--method", "lucy"], 2, "--method"),
    ],
    ids=str,
)
def test_what_is_refused(
    given: list[str], code: int, told: str, volume: Path, tmp_path: Path, run: Any, error_line: Any
) -> None:
    result = run("deconvolve", volume, *given, "-o", tmp_path / "o.tif", code=code)
    assert told in error_line(result.stderr)
    assert not (tmp_path / "o.tif").exists()


@pytest.mark.parametrize(
    ("voxel", "told"),
    [(-3.0, "plane 4 has a voxel of -3"), (np.nan, "plane 4 has NaN"), (np.inf, "or infinite")],
    ids=str,
)
def test_data_that_are_no_light_are_refused(
    voxel: float, told: str, tmp_path: Path, run: Any, error_line: Any
) -> None:
    data = blurred(beads())
    data[4, 5, 6] = voxel
    write_volume(str(tmp_path / "a.npy"), Volume(data, "zyx"))
    line = ["deconvolve", tmp_path / "a.npy", "-k", PSF, "--iterations", 2]
    result = run(*line, "-o", tmp_path / "o.npy", code=4)
    assert told in error_line(result.stderr)
    assert not (tmp_path / "o.npy").exists()
    if not np.isfinite(voxel):
        run(*line, "--nan", "zero", "-o", tmp_path / "o.npy")
        assert np.isfinite(np.load(tmp_path / "o.npy")).all()


def test_a_volume_of_zeros_stays_one() -> None:
    assert not operate(np.zeros((9, 9, 9), np.float32), "deconvolve:iterations=3", PSF).any()

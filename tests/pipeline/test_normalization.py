"""--normalize-input: the statistics of a first pass against NumPy's, and what is done with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import nibabel as nib
import numpy as np
import oracle
import pytest
import tifffile
from blocking import in_boxes_of, plane_by_plane
from networks import write_keras

from conv3d_cli import convolve_file, read_volume
from conv3d_cli.formats import passes
from conv3d_cli.pipeline import normalization
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage

Array = np.ndarray[Any, Any]


def zscore(x: Array, counted: Array) -> Array:
    return (x - counted.mean()) / counted.std()


def minmax(x: Array, counted: Array) -> Array:
    return (x - counted.min()) / np.ptp(counted)


def percentile(x: Array, counted: Array) -> Array:
    low, high = np.percentile(counted, [2.5, 99])
    return (x - low) / (high - low)


METHODS: dict[str, Callable[[Array, Array], Array]] = {
    "zscore": zscore, "minmax": minmax, "percentile:2.5,99": percentile,
}  # fmt: skip


@pytest.fixture
def cube(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Array:
    """The current folder: x.npy of 2 channels of different range, with zeros and negative values."""
    monkeypatch.chdir(tmp_path)
    x = (rng.standard_normal((9, 11, 13, 2)) * [3, 200] + [1, -50]).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0
    np.save("x.npy", x)
    return x


def expected(x: Array, method: str, inside: Array | None = None, nonzero: bool = False) -> Array:
    """Each channel by its own statistics, in float64."""
    parts = []
    for channel in np.moveaxis(x.astype(np.float64), -1, 0):
        counted = channel if inside is None else channel[inside]
        counted = counted[np.isfinite(counted)]
        parts.append(METHODS[method](channel, counted[counted != 0] if nonzero else counted))
    return np.stack(parts, -1)


@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_each_channel_is_scaled_by_its_own_statistics(
    method: str, nonzero: bool, cube: Array, run: Any
) -> None:
    asked = method + (":nonzero" if nonzero else "")
    job = ["apply", "x.npy", "-k", "identity", "--normalize-input", asked, "--verify", 100]
    run(*job, "-o", "y.npy", "--precision", "float64", "--dtype", "float64")
    found = expected(cube, method, nonzero=nonzero)
    np.testing.assert_allclose(np.load("y.npy"), found, rtol=1e-12, atol=1e-12)
    run(*job, "-o", "z.npy")
    np.testing.assert_allclose(np.load("z.npy"), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_of_the_voxels_in_a_mask(method: str, cube: Array, run: Any) -> None:
    inside = np.random.default_rng(1).random(cube.shape[:3]) < 0.3
    np.save("m.npy", inside.astype(np.uint8))
    told = run(
        "apply", "x.npy", "-k", "identity", "--normalize-input", method, "--normalize-mask", "m.npy", "-o", "y.npy",
        "--sidecar",
    )  # fmt: skip
    np.testing.assert_allclose(
        np.load("y.npy"), expected(cube, method, inside), rtol=1e-5, atol=1e-5
    )
    assert f"of {inside.sum()} voxels" in told.stderr.replace("\n", " ")
    record = json.loads(Path("y.json").read_text())["Conv3D"]
    assert record["Input"]["Normalization"]["Voxels"] == [int(inside.sum())] * 2
    assert {"normalization mask", "volume"} == {one["Role"] for one in record["Inputs"]}
    run("rerun", "y.json")


def test_zeros_around_are_zeros_of_the_scaled_volume(cube: Array, run: Any) -> None:
    kernel = np.random.default_rng(2).standard_normal((3, 3, 3, 2, 2))
    np.save("k.npy", kernel)
    run("apply", "x.npy", "-k", "k.npy", "--padding", "same", "--normalize-input", "zscore", "-o", "y.npy", "--verify", 50)  # fmt: skip
    found = oracle.conv3d(expected(cube, "zscore")[None], kernel, padding="same")[0]
    np.testing.assert_allclose(np.load("y.npy"), found, atol=2e-5)


def test_values_are_those_that_the_header_scales(tmp_path: Path, run: Any) -> None:
    stored = np.random.default_rng(3).integers(-99, 999, (8, 7, 6)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(-0.5, 100)  # a slope that turns the order round
    nib.save(image, tmp_path / "x.nii.gz")
    values = stored.T[..., None] * -0.5 + 100
    for method in METHODS:
        out = tmp_path / f"{method[:3]}.nii"
        run(
            "apply", tmp_path / "x.nii.gz", "-k", "identity", "--normalize-input", method, "-o", out
        )
        found = np.asarray(nib.load(out).dataobj).T
        np.testing.assert_allclose(found, expected(values, method)[..., 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
def test_channels_may_be_stored_in_any_order(axes: str, cube: Array, run: Any) -> None:
    stored = np.moveaxis(cube, -1, axes.index("C"))
    tifffile.imwrite("x.ome.tif", stored, metadata={"axes": axes}, compression="zlib")
    run(
        "apply",
        "x.ome.tif",
        "-k",
        "identity",
        "--normalize-input",
        "percentile:2.5,99",
        "-o",
        "y.npy",
    )
    found = np.load("y.npy")
    found = found if found.shape[-1] == 2 else np.moveaxis(found, axes.index("C"), -1)
    np.testing.assert_allclose(found, expected(cube, "percentile:2.5,99"), rtol=1e-5, atol=1e-5)


def test_nan_is_left_out_of_statistics_and_stays(cube: Array, run: Any) -> None:
    x = cube.copy()
    x[1, 2, 3, 0], x[4, 5, 6, 1] = np.nan, np.inf
    np.save("nan.npy", x)
    told = run(
        "apply",
        "nan.npy",
        "-k",
        "identity",
        "--normalize-input",
        "percentile:2.5,99",
        "-o",
        "y.npy",
    )
    assert "2 voxels of NaN or infinity left out" in told.stderr.replace("\n", " ")
    found = np.load("y.npy")
    assert np.isnan(found[1, 2, 3, 0])
    assert np.isposinf(found[4, 5, 6, 1])
    np.testing.assert_allclose(found, expected(x, "percentile:2.5,99"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [
    [1e-310, 5e-324, 0.0, -0.0, -1e-310], [1e30, 3e30, -2e30, 7.0, 7.0], [0.1, 0.2, 0.2, 0.2, 0.3], [2.0, 3.0],
])  # fmt: skip
def test_percentiles_are_numpys(values: list[float]) -> None:
    ranks = set(range(len(values)))

    def every() -> Any:
        yield normalization._Piece(0, 0, False, np.array(values[:2]))
        yield normalization._Piece(0, 0, True, np.array(values[2:]))

    (found,) = normalization._of_ranks([ranks], every)
    assert [found[rank] for rank in sorted(ranks)] == sorted(values)


def test_percentiles_of_many_channels_are_numpys(cube: Array, run: Any) -> None:
    x = np.random.default_rng(5).standard_normal((3, 4, 5, normalization.FEW_CHANNELS + 1))
    np.save("x.npy", x)
    asked = ["--normalize-input", "percentile:2.5,99"]
    run("apply", "x.npy", "-k", "identity", *asked, "-o", "y.npy", "--precision", "float64")
    np.testing.assert_allclose(
        np.load("y.npy"), expected(x, "percentile:2.5,99"), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("source", ["x.npy", "x.ome.zarr"])
def test_planes_that_do_not_fit_are_read_in_boxes_with_the_same_bits(
    source: str, cube: Array, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "x.ome.zarr":
        pytest.importorskip("zarr")
        run("apply", "x.npy", "-k", "identity", "-o", source, "--chunks", "3,4,5")
    np.save("m.npy", np.random.default_rng(1).random(cube.shape[:3]) < 0.3)
    monkeypatch.setattr(normalization, "PIECE", 30)  # two rows
    stages = (Stage("identity"),)
    job = Job(source, "y.npy", stages, normalize_input="zscore", normalize_mask="m.npy")

    def found() -> dict[str, Any]:
        with prepare_job(job) as prepared:
            assert prepared.normalized is not None
            return prepared.normalized.record()

    blocks: list[passes.Block] = []

    def kept(*arguments: Any) -> Any:
        for block in passes.blocks_of(*arguments):
            blocks.append(block)
            yield block

    monkeypatch.setattr(normalization, "blocks_of", kept)
    whole = found()
    assert {block.starts[1] for block in blocks} == {0}
    blocks.clear()
    monkeypatch.setattr(passes, "ENOUGH_BYTES", 1500)  # a plane and its copy take 2288
    assert found() == whole
    assert {block.starts[1] % 2 for block in blocks} == {0}
    assert len({block.starts[1] for block in blocks}) > 1


def test_a_plane_that_does_not_fit_is_refused(
    cube: Array, run: Any, error_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite("x.tif", cube[..., 0], compression="zlib", metadata={"axes": "ZYX"})
    monkeypatch.setattr(passes, "room_left", lambda: 0)
    monkeypatch.setattr("conv3d_cli.system.room.room_left", lambda: 0)
    job = ["apply", "x.tif", "-k", "identity", "--normalize-input", "minmax", "-o", "y.npy"]
    line = error_line(run(*job, code=6).stderr)
    assert "cannot read x.tif: a plane of it needs" in line
    assert not Path("y.npy").exists()


def test_bits_do_not_depend_on_threads_memory_and_boxes(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    pytest.importorskip("h5py")
    net = write_keras(tmp_path / "u.keras", *networks.unet())
    np.save(tmp_path / "x.npy", rng.standard_normal((24, 20, 28)).astype(np.float32))
    job = ["apply", tmp_path / "x.npy", "-c", net, "--normalize-input", "zscore", "-q"]
    run(*job, "-o", tmp_path / "one.npy", "-j", 1, "--verify", 3)
    found = (tmp_path / "one.npy").read_bytes()
    # what a network takes is a volume that was scaled before
    x = np.load(tmp_path / "x.npy").astype(np.float64)
    np.save(tmp_path / "scaled.npy", ((x - x.mean()) / x.std()).astype(np.float32))
    run("apply", tmp_path / "scaled.npy", "-c", net, "-o", tmp_path / "s.npy", "-q")
    np.testing.assert_allclose(
        np.load(tmp_path / "one.npy"), np.load(tmp_path / "s.npy"), atol=5e-6
    )

    for name, choose in (("boxes", in_boxes_of(8, 12, 16)), ("planes", plane_by_plane)):
        monkeypatch.setattr("conv3d_cli.pipeline.prepare.choose_blocking", choose)
        run(*job, "-o", tmp_path / f"{name}.npy", "-j", 2)
        assert (tmp_path / f"{name}.npy").read_bytes() == found


def test_a_plane_in_pieces_has_the_same_statistics(cube: Array, run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(normalization, "PIECE", 30)
    run("apply", "x.npy", "-k", "identity", "--normalize-input", "zscore", "-o", "y.npy")
    np.testing.assert_allclose(np.load("y.npy"), expected(cube, "zscore"), rtol=1e-5, atol=1e-5)


def test_a_cluster_takes_the_statistics_of_the_whole_volume(cube: Array, run: Any) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("zarr")
    run("apply", "x.npy", "-k", "identity", "-o", "x.ome.zarr", "--chunks", 4)
    job = ["apply", "x.ome.zarr", "-k", "box:size=3", "--normalize-input", "zscore"]
    run(*job, "-o", "y.ome.zarr")
    run(*job, "-o", "z.ome.zarr", "--scheduler", "local:1")
    np.testing.assert_array_equal(read_volume("y.ome.zarr").data, read_volume("z.ome.zarr").data)


def test_explain_tells_the_statistics(cube: Array, run: Any) -> None:
    told = run("explain", "x.npy", "-k", "identity", "--normalize-input", "minmax").output
    low, high = (f"{cube[..., 0].min():.6g}", f"{cube[..., 0].max():.6g}")
    assert f"normalized by minmax: minimum {low}, " in told
    assert f"maximum {high}, " in told
    assert "operation  Rescaling" in told
    convolve_file("x.npy", "p.npy", "identity", normalize_input="minmax")
    np.testing.assert_allclose(np.load("p.npy"), expected(cube, "minmax"), rtol=1e-5, atol=1e-5)


def test_none_normalizes_nothing(cube: Array, run: Any) -> None:
    told = run("apply", "x.npy", "-k", "identity", "--normalize-input", "none", "-o", "y.npy")
    np.testing.assert_array_equal(np.load("y.npy"), cube)
    assert "normalized" not in told.stderr


@pytest.mark.parametrize(
    ("source", "options", "code", "words"),
    [
        ("x.npy", ["zscor"], 2, "did you mean 'zscore'"),
        ("x.npy", ["percentile"], 2, "as in percentile:1,99"),
        ("x.npy", ["percentile:99,1"], 2, "received 'percentile:99,1'"),
        ("x.npy", ["percentile:-1,50"], 2, "percentages from 0 to 100"),
        ("x.npy", ["percentile:nan,50"], 2, "percentages from 0 to 100"),
        ("x.npy", ["minmax:3"], 2, "received 'minmax:3'"),
        ("x.npy", ["none", "--normalize-mask", "x.npy"], 2, "needs --normalize-input zscore"),
        ("x.npy", ["zscore", "--mask", "x.npy"], 2, "does not go with a mask"),
        ("x.npy", ["zscore", "--nan", "zero"], 2, "--normalize-input zscore does not go with"),
        ("x.npy", ["zscore", "--normalize-mask", "none.npy"], 3, "no such file"),
        ("x.npy", ["zscore", "--normalize-mask", "small.npy"], 4, "small.npy"),
        ("flat.npy", ["zscore"], 4, "mean and standard deviation are 7, 0: leave it out"),
        ("flat.npy", ["minmax"], 4, "minimum and maximum are 7, 7"),
        ("empty.npy", ["zscore:nonzero"], 4, "no finite voxels that are not 0"),
        ("nan.npy", ["minmax"], 4, "no finite voxels"),
        ("series.npy", ["minmax"], 4, "is for one volume, whose statistics it takes, and the input has 2"),
        ("-", ["minmax"], 2, "reads the input twice, and a pipe is read once"),
    ],
)  # fmt: skip
def test_what_cannot_be_normalized_is_refused(
    source: str, options: list[str], code: int, words: str, cube: Array, run: Any, error_line: Any
) -> None:
    np.save("small.npy", np.ones((2, 2, 2)))
    np.save("flat.npy", np.full((3, 4, 5), 7.0))
    np.save("empty.npy", np.zeros((3, 4, 5)))
    np.save("nan.npy", np.full((3, 4, 5), np.nan))
    np.save("series.npy", np.stack([cube, cube]))
    job = ["apply", source, "-k", "identity", "-o", "y.npy", "--normalize-input", *options]
    result = run(*job, code=code)
    assert words in error_line(result.stderr)
    assert not Path("y.npy").exists()

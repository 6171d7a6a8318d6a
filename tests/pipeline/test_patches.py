"""--patch: a network in overlapping patches, against its definition in float64, patch by patch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import oracle
import pytest
from networks import Draw, functional, layer, volume, write_keras

from conv3d_cli import convolve_file
from conv3d_cli.errors import MemoryLimitError
from conv3d_cli.model.box import Box
from conv3d_cli.pipeline import blocking, flow, prepare
from conv3d_cli.pipeline.flow import reader_of_last
from conv3d_cli.pipeline.memory import patch_job
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage

pytest.importorskip("h5py")
Array = np.ndarray[Any, Any]
SIZE = (13, 9, 17)


@pytest.fixture
def net(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Callable[[Array], Array]:  # fmt: skip
    """The current folder: x.npy of 2 channels, and net.keras, which normalizes its whole input.

    Returns the network by its definition, in float64: (d, h, w, 2) -> (d, h, w, 3).
    """
    monkeypatch.chdir(tmp_path)
    draw = Draw(3)
    first, head = draw.conv(3, 2, 4), draw.conv(1, 4, 3)
    gamma, beta, _, _ = draw.norm(4)
    layers = [
        volume(2),
        layer("Conv3D", "first", "volume", filters=4, kernel_size=[3, 3, 3], padding="same"),
        layer("GroupNormalization", "norm", "first", groups=-1, axis=-1, epsilon=1e-3),
        layer("Activation", "bend", "norm", activation="relu"),
        layer("Conv3D", "head", "bend", filters=3, kernel_size=[1, 1, 1]),
    ]
    weights = {"first": first, "norm": [gamma, beta], "head": head}
    write_keras(tmp_path / "net.keras", functional(layers, "head"), weights)
    np.save("x.npy", rng.standard_normal((*SIZE, 2)).astype(np.float32))

    def defined(x: Array) -> Array:
        def conv(x: Array, kernel: Array, bias: Array) -> Array:
            as_stored = (np.asarray(one, np.float32) for one in (kernel, bias))
            return oracle.conv3d(x[None], *as_stored, padding="same")[0]

        y = conv(x, *first)
        mean, variance = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
        stored = np.float32(gamma).astype(float), np.float32(beta).astype(float)
        y = (y - mean) / np.sqrt(variance + 1e-3) * stored[0] + stored[1]
        return conv(np.maximum(y, 0), *head)

    return defined


def positions(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of patches along an axis of a volume that is at least as large."""
    step = patch if size == patch else max(1, int(patch * (1 - overlap)))
    found = [0]
    while found[-1] + patch < size:
        found.append(min(found[-1] + step, size - patch))
    return found


def blended(
    x: Array,
    net: Callable[[Array], Array],
    patch: tuple[int, int, int],
    overlap: float = 0.5,
    blend: str = "gaussian",
) -> Array:
    """The weighted mean of the outputs of patches, voxel by voxel in float64."""
    grown = [max(0, p - n) for p, n in zip(patch, x.shape, strict=False)]
    pads = [(g // 2, g - g // 2) for g in grown]
    x = np.pad(x.astype(np.float64), [*pads, (0, 0)])
    weights = np.ones(patch)
    if blend == "gaussian":
        for place in np.ndindex(*patch):
            squares = ((i - (n - 1) / 2) ** 2 / (n / 8) ** 2 for i, n in zip(place, patch, strict=True))  # fmt: skip
            weights[place] = np.exp(-sum(squares) / 2)
        weights = np.maximum(weights, max(1e-3, weights.min()))
    sums, total = 0.0, np.zeros((*x.shape[:3], 1))
    for start in itertools.product(
        *(positions(n, p, overlap) for n, p in zip(x.shape, patch, strict=False))
    ):
        here = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        y = net(x[here])
        sums = np.zeros((*x.shape[:3], y.shape[3])) if isinstance(sums, float) else sums
        sums[here] += weights[..., None] * y
        total[here] += weights[..., None]
    cut = tuple(slice(a, n - b) for (a, b), n in zip(pads, x.shape, strict=False))
    return (sums / total)[cut]


@pytest.mark.parametrize(
    ("patch", "overlap", "blend"),
    [
        ((8, 7, 10), 0.5, "gaussian"),
        ((16, 4, 20), 0.6, "constant"),
        ((13, 9, 6), 0.0, "gaussian"),
        pytest.param((6, 5, 8), 0.5, "constant", marks=pytest.mark.slow),
        pytest.param((5, 9, 17), 0.25, "gaussian", marks=pytest.mark.slow),
        pytest.param((12, 3, 9), 0.7, "gaussian", marks=pytest.mark.slow),
    ],
)
def test_patches_are_the_weighted_mean_of_their_outputs(
    patch: tuple[int, int, int], overlap: float, blend: str, net: Any, run: Any
) -> None:
    asked = ["--patch", ",".join(map(str, patch)), "--overlap", overlap, "--blend", blend]
    job = ["apply", "x.npy", "-c", "net.keras", *asked]
    expected = blended(np.load("x.npy"), net, patch, overlap, blend)
    run(*job, "-o", "y.npy", "--verify", 3)
    np.testing.assert_allclose(np.load("y.npy"), expected, atol=2e-6 * np.abs(expected).max())
    run(*job, "-o", "z.npy", "--precision", "float64", "--dtype", "float64")
    np.testing.assert_allclose(np.load("z.npy"), expected, atol=1e-12 * np.abs(expected).max())


def test_three_overlaps_are_along_depth_height_width(net: Any, run: Any) -> None:
    run("apply", "x.npy", "-c", "net.keras", "--patch", "4,9,8", "--overlap", "0.75,0,0", "-o", "y.npy")  # fmt: skip
    report = json.loads(run("explain", "x.npy", "-c", "net.keras", "--patch", "4,9,8", "--overlap", "0.75,0,0", "--json").output)  # fmt: skip
    (steps, _) = report["layers"]
    assert steps["patches"] == 10 * 1 * 3
    assert steps["arguments"] == {"patch": [4, 9, 8], "overlap": [0.75, 0, 0], "blend": "gaussian"}


@pytest.mark.parametrize(
    ("threads", "slabs", "on_disk"),
    [(1, "smallest", False), (3, "largest", True), (3, "smallest", True)],
)
def test_the_bits_depend_on_neither_threads_nor_memory(
    threads: int, slabs: str, on_disk: bool, net: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ["apply", "x.npy", "-c", "net.keras", "--patch", "8,9,10"]
    run(*job, "-o", "y.npy", "-j", 2)

    def fit(job: Any, body: Any, limit: int) -> None:
        depths = list(blocking._slab_depths(patch_job(body)))
        body.plan.slab_depth, together = depths[0 if slabs == "largest" else -1]
        body.graph.compute_together(together)
        body.on_disk = on_disk

    monkeypatch.setattr(prepare, "fit_patches", fit)
    run(*job, "-o", "z.npy", "-j", threads)
    assert Path("y.npy").read_bytes() == Path("z.npy").read_bytes()


def test_a_low_ceiling_takes_smaller_slabs_then_files(net: Any) -> None:
    def decided(max_memory: int) -> tuple[bool, int, int]:
        with prepare_job(replace(job, max_memory=max_memory)) as prepared:
            assert prepared.patches is not None
            assert prepared.memory <= max_memory
            body = prepared.patches.body
            return body.on_disk, body.plan.slab_depth, prepared.memory

    np.save("x.npy", np.zeros((40, 90, 90, 2), np.float32))
    job = job_of("net.keras", patch="32,48,48", threads=1)
    in_memory, deepest, most = decided(1 << 40)
    assert not in_memory
    found = []

    def fall() -> None:
        for n in range(1, 1000):
            found.append(decided(most - (n << 20)))

    with pytest.raises(MemoryLimitError):
        fall()
    assert any(depth < deepest and not on_disk for on_disk, depth, _ in found)
    assert found[-1][0]


def job_of(config: str, **settings: Any) -> Job:
    from conv3d_cli.pipeline.make import make_job
    from conv3d_cli.settings.merge import merge_settings
    from conv3d_cli.settings.options import Settings

    return make_job("x.npy", "y.npy", merge_settings(Settings(config=config, **settings)))


def test_labels_are_of_the_blended_scores(net: Any, run: Any) -> None:
    expected = blended(np.load("x.npy"), net, (8, 9, 10))
    job = ["apply", "x.npy", "-c", "net.keras", "--patch", "8,9,10"]
    run(*job, "--argmax", "-o", "y.npy", "--verify", 5)
    assert np.load("y.npy").dtype == np.uint8
    np.testing.assert_array_equal(np.load("y.npy"), expected.argmax(-1))
    run(*job, "--channels", "2,0", "-o", "z.npy")
    np.testing.assert_allclose(np.load("z.npy"), expected[..., [2, 0]], atol=1e-5)


def test_a_normalized_volume_is_extended_by_zeros(net: Any, run: Any) -> None:
    """Zeros after the normalization, as MONAI pads what it is given, not before."""
    x = np.load("x.npy").astype(np.float64)
    np.save("x.npy", (x * 7 + 30).astype(np.float32))
    stored = np.load("x.npy").astype(np.float64)
    scaled = (stored - stored.mean(axis=(0, 1, 2))) / stored.std(axis=(0, 1, 2))
    run("apply", "x.npy", "-c", "net.keras", "--patch", "16,12,8", "--normalize-input", "zscore",
        "-o", "y.npy", "--verify", 3)  # fmt: skip
    np.testing.assert_allclose(np.load("y.npy"), blended(scaled, net, (16, 12, 8)), atol=1e-5)


@pytest.mark.parametrize("nan", ["zero", "error"])
def test_missing_voxels_are_treated_before_the_patches(nan: str, net: Any, run: Any) -> None:
    x = np.load("x.npy")
    x[3, 4, 5, 1] = np.nan
    np.save("x.npy", x)
    job = ["apply", "x.npy", "-c", "net.keras", "--patch", "8,9,10", "--nan", nan, "-o", "y.npy"]
    if nan == "error":
        result = run(*job, code=4)
        assert "allows no NaN" in result.output
        assert not Path("y.npy").exists()
        return
    run(*job, "--verify", 5)
    expected = blended(np.nan_to_num(x, nan=0.0), net, (8, 9, 10))
    np.testing.assert_allclose(np.load("y.npy"), expected, atol=1e-5)


def test_lengths_are_rounded_to_voxels(net: Any, run: Any) -> None:
    x = np.load("x.npy")
    run("apply", "x.npy", "-c", "net.keras", "--spacing", "3,2,2mm", "--patch", "17mm", "-o", "y.npy")  # fmt: skip
    np.testing.assert_allclose(np.load("y.npy"), blended(x, net, (6, 8, 8)), atol=1e-5)


def test_filters_and_stacks_run_in_patches(net: Any, run: Any) -> None:
    x = np.load("x.npy")
    box = np.ones((3, 3, 3, 1, 1)) / 27

    def smoothed(x: Array) -> Array:
        both = [oracle.conv3d(one[None, ..., None], box, padding="same", boundary="symmetric")[0]
                for one in np.moveaxis(x, -1, 0)]  # fmt: skip
        return np.concatenate(both, axis=-1)

    job = ["apply", "x.npy", "--patch", "8,9,10", "-o", "y.npy", "--overwrite", "--verify", 20]
    run(*job, "-k", "box:size=3")
    np.testing.assert_allclose(np.load("y.npy"), blended(x, smoothed, (8, 9, 10)), atol=1e-5)
    Path("stack.toml").write_text('layers = [{kernel = "box:size=3"}, {kernel = "box:size=3"}]\n')
    run(*job, "-c", "stack.toml")
    twice = blended(x, lambda x: smoothed(smoothed(x)), (8, 9, 10))
    np.testing.assert_allclose(np.load("y.npy"), twice, atol=1e-5)
    run(*job, "-k", "gradient:axis=dw")
    assert np.load("y.npy").shape == (*SIZE, 4)


def test_a_series_has_patches_of_each_volume(net: Any, run: Any) -> None:
    first = np.load("x.npy")
    series = np.stack([first, first[::-1] * 2])
    np.save("series.npy", series)
    run("apply", "series.npy", "--axes", "tzyxc", "-c", "net.keras", "--patch", "8,9,10", "-o", "y.npy")  # fmt: skip
    found = np.load("y.npy")
    for source, one in zip(series, found, strict=True):
        np.testing.assert_allclose(one, blended(source, net, (8, 9, 10)), atol=1e-5)


def test_configs_python_and_manifests_take_patches(net: Any, run: Any, tmp_path: Path) -> None:
    job = ["apply", "x.npy", "-o"]
    run(*job, "y.npy", "-c", "net.keras", "--patch", "8,9,10", "--overlap", "0.25")
    wanted = Path("y.npy").read_bytes()
    convolve_file("x.npy", "z.npy", config="net.keras", patch=(8, 9, 10), overlap=0.25)
    assert Path("z.npy").read_bytes() == wanted
    Path("rows.tsv").write_text("input\toutput\tpatch\toverlap\nx.npy\tm.npy\t8,9,10\t0.25\n")
    run("apply", "--manifest", "rows.tsv", "-c", "net.keras")
    assert Path("m.npy").read_bytes() == wanted
    Path("stack.toml").write_text('patch = [8, 9, 10]\noverlap = 0.25\nkernel = "box:size=3"\n')
    run(*job, "b.npy", "-c", "stack.toml")
    run(*job, "c.npy", "-k", "box:size=3", "--patch", "8,9,10", "--overlap", "0.25")
    assert Path("b.npy").read_bytes() == Path("c.npy").read_bytes()


def test_the_sidecar_repeats_the_run_and_tells_the_layers(net: Any, run: Any) -> None:
    run("apply", "x.npy", "-c", "net.keras", "--patch", "8,9,10", "-o", "y.npy", "--sidecar")
    record = json.loads(Path("y.json").read_text())
    (step, _) = record["Conv3D"]["Layers"]
    assert step["Arguments"] == {"Patch": [8, 9, 10], "Overlap": [0.5] * 3, "Blend": "gaussian"}
    assert [one["Name"] for one in step["Layers"]] == ["first", "norm/statistics", "norm", "bend", "head"]  # fmt: skip
    assert record["Description"] == "Convolved with the network net.keras in patches of 8x9x10 voxels"  # fmt: skip
    run("rerun", "y.json")


def test_resume_makes_an_output_again_after_another_patch(net: Any, run: Any) -> None:
    job = ["apply", "x.npy", "-c", "net.keras", "-o", "y.npy", "--resume"]
    run(*job, "--patch", "8,9,10")
    before = Path("y.npy").stat()
    run(*job, "--patch", "8,9,10")
    assert Path("y.npy").stat() == before
    run(*job, "--patch", "8,9,11", "--overwrite")
    assert Path("y.npy").stat().st_mtime_ns != before.st_mtime_ns


def test_verification_finds_a_wrong_voxel(net: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    add = flow.PatchReader._add_patch

    def skipping(self: Any, starts: tuple[int, int, int]) -> None:
        if starts != (0, 4, 8):
            add(self, starts)

    monkeypatch.setattr(flow.PatchReader, "_add_patch", skipping)
    result = run("apply", "x.npy", "-c", "net.keras", "--patch", "6,5,8", "-o", "y.npy", "--verify", 50, code=7)  # fmt: skip
    assert "is wrong" in result.output


def test_the_output_keeps_its_place(net: Any, run: Any) -> None:
    """An even kernel moves the output by half a voxel, in patches as without them."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(np.load("x.npy")[..., 0].T, affine), "x.nii")
    job = ["apply", "x.nii", "-k", "box:size=2", "--padding", "same"]
    run(*job, "-o", "whole.nii")
    run(*job, "--patch", "8,9,10", "-o", "parts.nii")
    np.testing.assert_array_equal(nib.load("parts.nii").affine, nib.load("whole.nii").affine)
    assert nib.load("parts.nii").affine[0, 3] == 1


def test_what_readers_hold_is_counted(net: Any) -> None:
    """The reader of patches asks for each plane once, in order, as the count of memory assumes."""
    with prepare_job(job_of("net.keras", patch="6,5,8", threads=1)) as prepared:
        from contextlib import ExitStack

        from conv3d_cli.engine import Team

        asked = []
        read = prepared.reader.read

        def watched(n: int, depth: slice, channels: slice) -> Array:
            asked.append((depth.start, depth.stop))
            return read(n, depth, channels)

        prepared.reader.read = watched  # type: ignore[method-assign]
        with ExitStack() as stack, Team(1) as team:
            reader = reader_of_last(prepared.graph, prepared.reader, team, stack)
            for d in range(SIZE[0]):
                reader.read(0, slice(d, d + 1), slice(0, 3))
            reader.finish()
    assert asked == [(0, 6), (6, 9), (9, 12), (12, 13)]


WRONG = {
    "--patch 6,5": (2, "--patch must be one size or three"),
    "--patch 0": (2, "whole numbers of voxels of at least 1"),
    "--patch 2.5": (2, "received '2.5'"),
    "--patch none": (2, "received 'none'"),
    "--patch 4mm": (4, "Error: --patch=4mm: the volume tells no voxel spacing"),
    "--patch 4 --spacing 3mm --patch 1mm": (4, "less than half a voxel"),
    "--patch 4 --overlap 1": (2, "--overlap must be a fraction from 0 to below 1"),
    "--patch 4 --overlap=-0.5": (2, "received '-0.5'"),
    "--patch 4 --overlap half": (2, "received 'half'"),
    "--patch 4 --blend linear": (2, "gaussian"),
    "--overlap 0.5": (2, "--overlap has no effect: it is for patches"),
    "--blend constant": (2, "--blend has no effect: it is for patches"),
    "--patch 4 --nan ignore": (2, "--patch 4 does not go with --nan ignore"),
    "--patch 4 --mask x.npy": (2, "--patch 4 does not go with --mask x.npy"),
    "--patch 4 --missing 0": (2, "--patch 4 does not go with --missing"),
    "--patch 4 --scheduler local:2": (2, "--scheduler does not take --patch 4 yet"),
    "--patch 4 --coverage-out c.npy": (2, "--coverage-out"),
}


@pytest.mark.parametrize("asked", WRONG)
def test_wrong_requests_are_one_line(asked: str, net: Any, run: Any) -> None:
    code, words = WRONG[asked]
    result = run("apply", "x.npy", "-c", "net.keras", "-o", "y.npy", *asked.split(), code=code)
    assert words in result.output
    assert result.output.count("Error:") == 1
    assert not Path("y.npy").exists()


@pytest.mark.parametrize("kernel", ["--padding valid", "--strides 2"])
def test_an_output_of_another_size_is_refused(kernel: str, net: Any, run: Any) -> None:
    result = run("apply", "x.npy", "-k", "box:size=3", *kernel.split(), "--patch", 6, "-o", "y.npy", code=4)  # fmt: skip
    assert "in a patch of 6x6x6 voxels: the output has" in result.output


def test_a_network_that_loses_voxels_is_told_sizes_not_options(
    net: Any, run: Any, tmp_path: Path
) -> None:
    layers = [
        volume(2),
        layer("MaxPooling3D", "down", "volume", pool_size=[2, 2, 2]),
        layer("UpSampling3D", "up", "down", size=[2, 2, 2]),
    ]
    write_keras(tmp_path / "down.keras", functional(layers, "up"), {})
    job = ["apply", "x.npy", "-c", "down.keras", "-o", "y.npy", "--patch"]
    refused = run(*job, 5, code=4).output
    assert "in a patch of 5x5x5 voxels: the output has 4x4x4 voxels" in refused
    assert "multiples of its strides" in refused
    assert "--padding" not in refused  # a network brings its own
    run(*job, 4)


def test_sizes_that_do_not_join_name_the_patch(net: Any, run: Any, tmp_path: Path) -> None:
    layers = [
        volume(2),
        layer("MaxPooling3D", "down", "volume", pool_size=[2, 2, 2]),
        layer("UpSampling3D", "up", "down", size=[2, 2, 2]),
        layer("Concatenate", "join", "up", "volume", axis=-1),
    ]
    write_keras(tmp_path / "unet.keras", functional(layers, "join"), {})
    run("apply", "x.npy", "-c", "unet.keras", "--patch", "6,4,8", "-o", "y.npy", "--verify", 5)
    result = run("apply", "x.npy", "-c", "unet.keras", "--patch", "6,5,8", "-o", "z.npy", code=4)
    assert "in a patch of 6x5x8 voxels: node 'join' (Concatenate) joins" in result.output
    assert "4 or 6 along height; pass a patch of such a size" in result.output


def test_labels_of_patches_cannot_be_blended(net: Any, run: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from graphs import save_graph

    path = save_graph(tmp_path, [onnx.helper.make_node("ArgMax", ["x"], ["y"], axis=1)], shape=("n", 2, "d", "h", "w"))  # fmt: skip
    job = ["apply", "x.npy", "--data-format", "channels_last", "-c", path, "--patch", "4", "-o", "y.npy"]  # fmt: skip
    assert "labels of patches cannot be blended" in run(*job, code=2).output


def test_penalties_of_outputs_do_not_go_with_patches(net: Any, run: Any) -> None:
    job = ["apply", "x.npy", "-k", "box:size=3", "--activity-regularizer", "l2", "-o", "y.npy"]
    assert "patches overlap" in run(*job, "--patch", 6, code=2).output
    run(*job)


def test_levels_by_has_an_effect_with_a_network(net: Any, run: Any) -> None:
    pytest.importorskip("zarr")
    run("apply", "x.npy", "-c", "net.keras", "-o", "y.ome.zarr", "--levels", 2, "--levels-by", "mean")  # fmt: skip


def test_empty_series_give_empty_outputs(net: Any, run: Any) -> None:
    np.save("none.npy", np.zeros((0, *SIZE, 2), np.float32))
    run("apply", "none.npy", "--axes", "tzyxc", "-c", "net.keras", "--patch", "6,5,8", "-o", "y.npy")  # fmt: skip
    assert np.load("y.npy").shape == (0, *SIZE, 3)


def test_boxes_are_not_used(net: Any) -> None:
    with prepare_job(Job("x.npy", "y.npy", (Stage("box:size=3"),))) as prepared:
        assert not prepared.graph.bodies
    with prepare_job(job_of("net.keras", patch="6,5,8")) as prepared:
        assert prepared.boxes is None
        node = prepared.graph.nodes[0]
        assert node.planes(0, 0, 1) == (0, 6)
        assert node.planes(0, 4, 5) == (0, 9)
        assert prepared.patches is not None
        assert prepared.patches.layout.inside((0, 0, 0)) == Box((0, 6), (0, 5), (0, 8))

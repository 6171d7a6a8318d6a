"""Normalised convolution: masks, missing voxels and edges, against its definition in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples
from strategies import BOUNDARIES, Geometry, geometries

from conv3d_cli import Kernel, Volume, conv3d, read_volume, write_volume
from conv3d_cli.engine import ALGORITHMS
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.missing import MIN_COVERAGE, Missing


def by_definition(
    geometry: Geometry, x: np.ndarray, m: np.ndarray, kernel: np.ndarray, renormalize: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(sum w m x, sum w m) for x and m (N, D, H, W, C): what is outside is data, of weight 1 unless
    it is renormalized.
    """
    w = kernel / kernel.sum()
    products = np.where(m > 0, np.where(m > 0, x, 0) * m, 0)
    own = replace(geometry, boundary="zeros") if renormalize else geometry
    weight_of_outside = own
    if own.boundary in ("zeros", "constant"):
        weight_of_outside = replace(own, boundary="constant", constant=1.0)
    elif own.boundary == "mirror-one":
        weight_of_outside = replace(own, constant=1.0)
    weights = own if renormalize else weight_of_outside
    return own.by_definition(products, w), weights.by_definition(m, w)


def agrees(result: np.ndarray, top: np.ndarray, bottom: np.ndarray, fill: float) -> None:
    """Equal to top / bottom to float32 where enough weight is seen, which the rounding of the
    bottom may not decide.
    """
    clear = abs(bottom / MIN_COVERAGE - 1) > 1e-3
    expected = np.where(bottom >= MIN_COVERAGE, top / np.where(bottom > 0, bottom, 1), fill)
    bound = (
        4e-6
        * max(1.0, abs(expected[np.isfinite(expected)]).max(initial=0))
        / np.maximum(bottom, MIN_COVERAGE)
    )
    np.testing.assert_array_equal(np.isnan(result[clear]), np.isnan(expected[clear]))
    seen = clear & np.isfinite(expected)
    assert (abs(result - expected)[seen] <= bound[seen]).all(), abs(result - expected)[seen].max()


filters = geometries(kinds=("filter",), largest=7, largest_kernel=4)


@settings(max_examples=examples(60))
@given(
    filters,
    st.integers(0, 2**32 - 1),
    st.sampled_from(["ignore", "mask", "both", "value"]),
    st.booleans(),
)
def test_any_geometry(geometry: Geometry, seed: int, kind: str, renormalize: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(geometry.in_shape).astype(np.float32)
    kernel = rng.random(geometry.kernel_size) + 0.01
    m = np.ones(geometry.in_shape)
    options: dict[str, Any] = {}
    if kind in ("mask", "both"):
        mask = rng.random(geometry.size).astype(np.float32) * (rng.random(geometry.size) < 0.7)
        mask.flat[0] = 1
        options |= {"mask": mask, "mask_mode": "extend"}
        m *= mask[None, ..., None]
    if kind in ("ignore", "both"):
        x[rng.random(x.shape) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
        options["nan"] = "ignore"
        m *= np.isfinite(x)
    if kind == "value":
        x[rng.random(x.shape) < 0.2] = -999
        options["missing"] = -999.0
        m *= x != -999
    result = conv3d(
        x,
        kernel,
        strides=geometry.strides,
        padding=geometry.padding,
        dilation_rate=geometry.dilation_rate,
        boundary="renormalize" if renormalize else geometry.boundary_text,
        allow_strided_dilation=True,
        **options,
    )
    top, bottom = by_definition(geometry, x, m, kernel, renormalize)
    agrees(result, top, bottom, 0.0 if "mask" in options else np.nan)


@pytest.mark.parametrize("algorithm", [a.name for a in ALGORITHMS])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_every_algorithm_that_takes_it(algorithm: str, precision: str) -> None:
    """Large enough for tiles and steps.

    What an algorithm declines is refused, not computed by another.
    """
    rng = np.random.default_rng(3)
    shape = (9, 40, 70)
    line = np.array([1.0, 3, 5, 3, 1])
    kernel = (
        line[:, None, None] * line[:, None] * line
        if algorithm == "separable"
        else rng.random((5, 5, 5)) + 0.1
    )
    if algorithm == "sparse":
        kernel[1:4, 1:4] = 0
    x = rng.standard_normal(shape).astype(precision)
    x[4:6, 10:20, 30:40] = np.nan
    options = {"padding": "same", "boundary": "nearest", "nan": "ignore", "algorithm": algorithm}
    try:
        conv3d(
            np.zeros(shape, precision),
            kernel,
            padding="same",
            boundary="nearest",
            algorithm=algorithm,
        )
    except ShapeError:
        with pytest.raises(ShapeError, match="cannot run this"):
            conv3d(x, kernel, **options)  # type: ignore[arg-type]
        return
    result = conv3d(x, kernel, **options)  # type: ignore[arg-type]
    geometry = Geometry(
        1, shape, 1, (5, 5, 5), None, 1, 1, (1, 1, 1), (1, 1, 1), "same", "nearest", 0.0
    )
    fast = _fast_definition(geometry, x, kernel)
    tolerance = 4e-6 if precision == "float32" else 1e-12
    np.testing.assert_allclose(result, fast, rtol=0, atol=tolerance * np.nanmax(abs(x)) / 0.05)


def _fast_definition(geometry: Geometry, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """By SciPy, for sizes that the oracle is too slow for."""
    from scipy import ndimage

    known = np.isfinite(x)
    w = kernel / kernel.sum()
    top = ndimage.correlate(np.where(known, x, 0).astype(float), w, mode=geometry.boundary)
    bottom = ndimage.correlate(known.astype(float), w, mode=geometry.boundary)
    assert bottom.min() > 0.05
    return np.asarray(top / bottom)


@pytest.mark.parametrize("kernel", ["box", "gaussian", "random", "large"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_voxels_far_from_any_hole_keep_their_bits(kernel: str, boundary: str) -> None:
    """And a volume without holes is the plain convolution, bit for bit."""
    rng = np.random.default_rng(0)
    line = np.exp(-0.5 * np.arange(-3.0, 4) ** 2)
    w = {
        "box": np.ones((3, 3, 3)),
        "gaussian": line[:, None, None] * line[:, None] * line,
        "random": rng.random((3, 5, 3)),
        "large": rng.random((9, 9, 9)),
    }[kernel]
    w /= w.sum()
    x = rng.standard_normal((24, 40, 45)).astype(np.float32)
    text = "constant=2" if boundary == "constant" else boundary
    plain = conv3d(x, Kernel(w), padding="same", boundary=text)
    np.testing.assert_array_equal(
        conv3d(x, Kernel(w), padding="same", boundary=text, nan="ignore"), plain
    )
    masked = conv3d(x, Kernel(w), padding="same", boundary=text, mask=np.ones(x.shape))
    np.testing.assert_array_equal(masked, plain)
    x[3, 20, 20] = np.nan
    holed = conv3d(x, Kernel(w), padding="same", boundary=text, nan="ignore")
    near = np.zeros(x.shape, bool)
    for position in np.ndindex(*w.shape):
        offset = [p - n // 2 for p, n in zip(position, w.shape, strict=True)]
        near[tuple(np.clip(np.array((3, 20, 20)) - offset, 0, np.array(x.shape) - 1))] = True
    if boundary not in ("nearest", "symmetric", "mirror", "wrap"):
        changed = holed != plain
        if kernel != "large":  # a transform's tile with a hole is rounded together
            assert not (changed & ~near).any()
    assert np.isfinite(holed).all()


@pytest.mark.parametrize(
    "options",
    [
        ["--nan", "ignore"],
        ["--mask", "m.nii"],
        ["--mask", "l.nii", "--mask-labels"],
        ["--mask", "m.nii", "--mask-mode", "keep", "--nan", "ignore"],
        ["--boundary", "renormalize"],
        ["--missing", "7", "--boundary", "mirror"],
    ],
)
@pytest.mark.parametrize("kernel", ["gaussian:sigma=1.5vox", "k9.npy"])
def test_same_bytes_for_any_slab_and_thread_count(
    scan: Path, options: list[str], kernel: str, tmp_path: Path, run: Any
) -> None:
    results = set()
    options = [str(scan / o) if o.endswith(".nii") else o for o in options]
    k = str(scan / kernel) if kernel.endswith(".npy") else kernel
    for name, threads, memory in (
        ("x.nii", 1, "2G"),
        ("x.nii", 2, "least"),
        ("x.nii.gz", 2, "2G"),
        ("x.nii.gz", 1, "least"),
    ):
        out = tmp_path / "o.nii"
        arguments = [
            "apply",
            str(scan / name),
            "-k",
            k,
            "-o",
            str(out),
            "-j",
            str(threads),
            "--overwrite",
            *options,
        ]
        if memory == "least":
            refused = run(*arguments, "--max-memory", "1M", code=6)
            memory = refused.output.split("--max-memory ")[1].split()[0]
        run(*arguments, "--max-memory", memory)
        results.add(out.read_bytes())
    assert len(results) == 1


def test_slabs_that_are_not_looked_at_have_the_same_bits(tmp_path: Path, run: Any) -> None:
    """After slabs where most windows lack something, some are divided everywhere: full windows,
    holes and voids among them.
    """
    rng = np.random.default_rng(2)
    x = rng.standard_normal((120, 300, 300), np.float32)
    x[:60][rng.random((60, 300, 300)) < 0.02] = np.nan
    x[60:90, 100:200, 100:200] = np.nan
    np.save(tmp_path / "x.npy", x)
    found = set()
    for name, memory in (("a", "1M"), ("a", "least"), ("b", "2G")):
        out, seen = tmp_path / f"{name}.npy", tmp_path / f"{name}_seen.npy"
        arguments = [
            tmp_path / "x.npy",
            "-k",
            "gaussian:sigma=1vox",
            "--nan",
            "ignore",
            "-o",
            out,
            "--coverage-out",
            seen,
        ]
        if memory == "1M":
            least = (
                run("apply", *arguments, "--max-memory", memory, code=6)
                .output.split("--max-memory ")[1]
                .split()[0]
            )
            continue
        run("apply", *arguments, "--max-memory", least if memory == "least" else memory)
        found.add(out.read_bytes() + seen.read_bytes())
    assert len(found) == 1
    run("apply", tmp_path / "x.npy", "-k", "gaussian:sigma=1vox", "-o", tmp_path / "plain.npy")
    np.testing.assert_array_equal(
        *(np.load(tmp_path / name)[100:] for name in ("b.npy", "plain.npy"))
    )


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series with holes, a mask, and regions, on one grid."""
    folder = tmp_path_factory.mktemp("scan")
    rng = np.random.default_rng(5)
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -120], [0, 0, 3, -70], [0, 0, 0, 1]])
    x = rng.integers(0, 9, (23, 21, 40, 2)).astype(np.float32)
    x[5:9, 3:8, 20:24] = np.nan
    labels = np.zeros(x.shape[:3], np.uint8)
    labels[3:12, 2:19], labels[12:20, 2:19], labels[4:8, 5:9, 10:20] = 1, 2, 5
    mask = (labels > 0) * rng.random(labels.shape).astype(np.float32)
    for name, data in (("x.nii", x), ("x.nii.gz", x), ("m.nii", mask), ("l.nii", labels)):
        nib.Nifti1Image(data, affine).to_filename(folder / name)
    np.save(folder / "k9.npy", rng.random((9, 7, 9)))
    return folder


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_regions_are_not_mixed(scan: Path, tmp_path: Path, run: Any) -> None:
    """Each region's result is that of a mask of it alone."""
    labels = load(scan / "l.nii")
    kernel = ["-k", "gaussian:sigma=1.5vox", "--nan", "ignore"]
    run(
        "apply",
        scan / "x.nii",
        *kernel,
        "--mask",
        scan / "l.nii",
        "--mask-labels",
        "-o",
        tmp_path / "all.nii",
    )
    together = load(tmp_path / "all.nii")
    for label in (1, 2, 5):
        own = nib.Nifti1Image((labels == label).astype(np.uint8), nib.load(scan / "l.nii").affine)
        own.to_filename(tmp_path / "one.nii")
        run(
            "apply",
            scan / "x.nii",
            *kernel,
            "--mask",
            tmp_path / "one.nii",
            "-o",
            tmp_path / "alone.nii",
            "--overwrite",
        )
        np.testing.assert_array_equal(
            together[labels == label], load(tmp_path / "alone.nii")[labels == label]
        )
    assert (together[labels == 0] == 0).all()


def test_mask_modes(scan: Path, tmp_path: Path, run: Any) -> None:
    mask = load(scan / "m.nii") > 0
    results = {}
    for mode in ("clip", "extend", "keep"):
        out = tmp_path / f"{mode}.nii"
        kernel = ["-k", "box:size=5", "--nan", "ignore"]
        run(
            "apply",
            scan / "x.nii",
            *kernel,
            "--mask",
            scan / "m.nii",
            "--mask-mode",
            mode,
            "-o",
            out,
        )
        results[mode] = load(out)
    x = load(scan / "x.nii")
    assert (results["clip"][~mask] == 0).all()
    np.testing.assert_array_equal(results["keep"][~mask], x[~mask])
    for mode in ("extend", "keep"):
        np.testing.assert_array_equal(results[mode][mask], results["clip"][mask])
    beside = ~mask & (load(scan / "m.nii").max() > 0)
    assert (results["extend"][beside] != 0).any()
    assert np.isfinite(results["extend"]).all()


def test_coverage_is_written(scan: Path, tmp_path: Path, run: Any) -> None:
    run(
        "apply",
        scan / "x.nii",
        "-k",
        "box:size=3",
        "--nan",
        "ignore",
        "-o",
        tmp_path / "o.nii",
        "--coverage-out",
        tmp_path / "c.nii.gz",
    )
    known = np.isfinite(load(scan / "x.nii")).astype(float)
    padded = np.pad(known, [(1, 1)] * 3 + [(0, 0)], mode="symmetric")
    parts = [
        padded[i : i + 23, j : j + 21, k : k + 40]
        for i in range(3)
        for j in range(3)
        for k in range(3)
    ]
    np.testing.assert_allclose(load(tmp_path / "c.nii.gz"), np.mean(parts, axis=0), atol=2e-6)
    assert np.isnan(load(tmp_path / "o.nii")).any()  # the middle of the hole


def test_coverage_of_several_outputs_is_refused(scan: Path, tmp_path: Path, run: Any) -> None:
    arguments = [
        scan / "x.nii",
        scan / "x.nii.gz",
        "-k",
        "box:size=3",
        "--nan",
        "ignore",
        "--out-dir",
        tmp_path,
    ]
    assert (
        "one file" in run("apply", *arguments, "--coverage-out", tmp_path / "c.nii", code=2).output
    )
    plain = [
        scan / "x.nii",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "o.nii",
        "--coverage-out",
        tmp_path / "c.nii",
    ]
    assert "--coverage-out" in run("apply", *plain, code=2).output


def test_nan_zero_and_nan_error(scan: Path, tmp_path: Path, run: Any) -> None:
    """Zero is for any kernel, a layer or a signed one, too; an error leaves nothing behind."""
    run("apply", scan / "x.nii", "-k", "sobel:axis=d", "--nan", "zero", "-o", tmp_path / "o.nii")
    x = load(scan / "x.nii")
    nib.Nifti1Image(np.where(np.isfinite(x), x, 0), nib.load(scan / "x.nii").affine).to_filename(
        tmp_path / "zeroed.nii"
    )
    run("apply", tmp_path / "zeroed.nii", "-k", "sobel:axis=d", "-o", tmp_path / "plain.nii")
    np.testing.assert_array_equal(load(tmp_path / "o.nii"), load(tmp_path / "plain.nii"))
    text = run(
        "apply",
        scan / "x.nii",
        "-k",
        "box:size=3",
        "--nan",
        "error",
        "-o",
        tmp_path / "e.nii",
        code=4,
    ).output
    assert "x.nii" in text
    assert not (tmp_path / "e.nii").exists()
    run(
        "apply",
        tmp_path / "zeroed.nii",
        "-k",
        "box:size=3",
        "--nan",
        "error",
        "-o",
        tmp_path / "e.nii",
    )


def moved(path: Path, source: Path, affine: np.ndarray | None = None, data: Any = None) -> Path:
    image = nib.load(source)
    found = np.asarray(image.dataobj) if data is None else data
    nib.Nifti1Image(found, image.affine if affine is None else affine).to_filename(path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, d: (a + np.outer([1, 0, 0, 0], [0, 0, 0, 5]), d), "2.5 voxels along width"),
        (lambda a, d: (np.diag([-1.0, -1, 1, 1]) @ a, d), "voxels along height"),
        (lambda a, d: (a, d[:, :, :-1]), "depth 39 against 40"),
        (lambda a, d: (a, np.repeat(d[..., None], 2, 3)), "time points"),
        (lambda a, d: (a, d * 0), "is empty"),
        (lambda a, d: (a, d - 1), "below 0"),
        (lambda a, d: (a, np.where(d > 0, np.nan, d)), "NaN"),
    ],
)
def test_masks_that_do_not_fit(
    scan: Path, tmp_path: Path, change: Any, words: str, run: Any
) -> None:
    affine, data = change(nib.load(scan / "m.nii").affine, load(scan / "m.nii"))
    mask = moved(tmp_path / "bad.nii", scan / "m.nii", affine, data)
    text = run(
        "apply",
        scan / "x.nii",
        "-k",
        "box:size=3",
        "--mask",
        mask,
        "-o",
        tmp_path / "o.nii",
        code=4,
    ).output
    assert words in text
    assert "bad.nii" in text
    assert not (tmp_path / "o.nii").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-k", "sobel:axis=d", "--nan", "ignore"], 4, "--nan zero"),
        (["-k", "laplacian", "--boundary", "renormalize"], 4, "1 weight below 0"),
        (["-k", "box:size=2", "--mask", "m.nii"], 4, "--mask-mode extend"),
        (["-k", "box:size=3", "--mask", "none.nii"], 3, "none.nii"),
        (["-k", "box:size=3", "--mask-mode", "keep"], 2, "--mask"),
        (["-k", "box:size=3", "--nan", "zero", "--missing", "3"], 2, "pass --nan ignore or"),
        (["-k", "box:size=3", "--nan", "ignore", "--min-coverage", "0"], 2, "--min-coverage must"),
        (["-k", "box:size=3", "--mask", "m.nii", "--mask-labels"], 4, "whole numbers"),
    ],
)
def test_what_is_refused(
    scan: Path, tmp_path: Path, arguments: list[str], code: int, words: str, run: Any
) -> None:
    given = [str(scan / a) if a.endswith(".nii") else a for a in arguments]
    assert words in run("apply", scan / "x.nii", *given, "-o", tmp_path / "o.nii", code=code).output


def test_nothing_but_nan_is_an_error(scan: Path, tmp_path: Path, run: Any) -> None:
    empty = moved(
        tmp_path / "nan.nii", scan / "x.nii", None, np.full((8, 9, 10), np.nan, np.float32)
    )
    text = run(
        "apply", empty, "-k", "box:size=3", "--nan", "ignore", "-o", tmp_path / "o.nii", code=4
    ).output
    assert "all of them are missing" in text
    assert not (tmp_path / "o.nii").exists()


def test_a_mask_in_a_config_is_beside_it(scan: Path, tmp_path: Path, run: Any) -> None:
    (scan / "job.toml").write_text('kernel = "box:size=3"\nmask = "m.nii"\nnan = "ignore"\n')
    run("apply", scan / "x.nii", "-c", scan / "job.toml", "-o", tmp_path / "a.nii")
    run(
        "apply",
        scan / "x.nii",
        "-k",
        "box:size=3",
        "--mask",
        scan / "m.nii",
        "--nan",
        "ignore",
        "-o",
        tmp_path / "b.nii",
    )
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()


def test_bias_activation_and_integers_come_after_the_mean(
    scan: Path, tmp_path: Path, run: Any
) -> None:
    options = ["--nan", "ignore", "--mask", scan / "m.nii", "--mask-mode", "extend"]
    run("apply", scan / "x.nii", "-k", "box:size=3", *options, "-o", tmp_path / "plain.nii")
    run(
        "apply",
        scan / "x.nii",
        "-k",
        "box:size=3",
        *options,
        "--bias",
        "-4",
        "--activation",
        "relu",
        "--dtype",
        "int16",
        "-o",
        tmp_path / "o.nii",
    )
    mean = load(tmp_path / "plain.nii")
    np.testing.assert_array_equal(
        load(tmp_path / "o.nii"), np.rint(np.maximum(mean - 4, 0)).astype(np.int16)
    )


def test_outside_a_mask_is_0_whatever_the_bias(scan: Path, tmp_path: Path, run: Any) -> None:
    arguments = [
        "-k",
        "box:size=3",
        "--nan",
        "ignore",
        "--bias",
        "3",
        "--activation",
        "sigmoid",
        "-o",
        tmp_path / "o.nii",
    ]
    for labels in ([], ["--mask-labels"]):
        mask = scan / ("l.nii" if labels else "m.nii")
        run("apply", scan / "x.nii", *arguments, "--mask", mask, *labels, "--overwrite")
        assert (load(tmp_path / "o.nii")[load(mask) == 0] == 0).all()


STACK = (
    '[[layers]]\nkernel = "box:size=3"\n\n[[layers]]\nkernel = "ball:radius=3vox"\nboundary '
    '= "renormalize"\n'
)


def test_means_of_a_later_layer_are_computed_in_whole_planes(tmp_path: Path, run: Any) -> None:
    """Not in boxes: one line under a ceiling that no plane fits, and the same bits under the one
    that it names.
    """
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((5, 1500, 1200), np.float32))
    (tmp_path / "stack.toml").write_text(STACK)
    arguments = [tmp_path / "x.npy", "-c", tmp_path / "stack.toml", "--chunks", "5,70,70", "-o"]
    refused = run("apply", *arguments, tmp_path / "a.zarr", "--max-memory", "1M", code=6).output
    assert "plane" in refused
    run(
        "apply",
        *arguments,
        tmp_path / "a.zarr",
        "--max-memory",
        refused.split("--max-memory ")[1].split()[0],
    )
    run("apply", *arguments, tmp_path / "b.zarr", "--max-memory", "2G")
    np.testing.assert_array_equal(
        *(read_volume(str(tmp_path / name)).data for name in ("a.zarr", "b.zarr"))
    )


def test_means_are_not_for_a_cluster(tmp_path: Path, run: Any) -> None:
    """Said before any scheduler is asked for."""
    write_volume(str(tmp_path / "x.zarr"), Volume(np.zeros((4, 5, 6), np.float32), "zyx"))
    (tmp_path / "stack.toml").write_text(STACK)
    arguments = [
        tmp_path / "x.zarr",
        "-c",
        tmp_path / "stack.toml",
        "-o",
        tmp_path / "o.zarr",
        "--scheduler",
        "tcp://no:1",
    ]
    assert "renormalize" in run("apply", *arguments, code=2).output


def test_what_lies_outside_a_mask_does_not_depend_on_slabs(tmp_path: Path, run: Any) -> None:
    """A softmax of what is 0 outside is not 0, in a slab wholly outside as in one that is cut."""
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random((40, 300, 300, 3), np.float32))
    mask = np.zeros((40, 300, 300), np.uint8)
    mask[:5] = 1
    np.save(tmp_path / "m.npy", mask)
    kernel = ["-k", "box:size=3", "--mask", tmp_path / "m.npy", "--activation", "softmax", "-o"]
    refused = run(
        "apply", tmp_path / "x.npy", *kernel, tmp_path / "a.npy", "--max-memory", "1M", code=6
    ).output
    run(
        "apply",
        tmp_path / "x.npy",
        *kernel,
        tmp_path / "a.npy",
        "--max-memory",
        refused.split("--max-memory ")[1].split()[0],
    )
    run("apply", tmp_path / "x.npy", *kernel, tmp_path / "b.npy", "--max-memory", "2G")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    np.testing.assert_allclose(np.load(tmp_path / "a.npy")[20], 1 / 3)


def test_policies_that_contradict() -> None:
    for wrong in (
        {"nan": "skip"},
        {"mask_mode": "in"},
        {"labels": True},
        {"nan": "error", "value": 1.0},
    ):
        with pytest.raises(SpecError):
            Missing(**wrong)  # type: ignore[arg-type]
    assert not Missing().has_weights


def test_oracle_knows_nothing_of_masks() -> None:
    """The definition here is two plain convolutions of the oracle, divided."""
    x, m = np.arange(27.0).reshape(1, 3, 3, 3, 1), np.ones((1, 3, 3, 3, 1))
    m[0, 1, 1, 1] = 0
    geometry = Geometry(
        1, (3, 3, 3), 1, (3, 3, 3), None, 1, 1, (1, 1, 1), (1, 1, 1), "valid", "zeros", 0.0
    )
    top, bottom = by_definition(geometry, x, m, np.ones((3, 3, 3)))
    assert top / bottom == pytest.approx(np.delete(np.arange(27.0), 13).mean())
    assert oracle.conv3d(x, np.ones((3, 3, 3, 1, 1))).item() == 351


def test_a_missing_value_may_be_a_whole_number_in_python() -> None:
    """It failed for an int beside voxels that are integers."""
    volume = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    got, expected = (
        conv3d(volume, np.ones((1, 1, 3)), padding="same", missing=value) for value in (12, 12.0)
    )
    np.testing.assert_array_equal(got, expected)
    assert got[0, 2, 1] == pytest.approx((10 + 11) / 2)

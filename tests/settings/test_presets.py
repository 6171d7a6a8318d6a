"""`--like TOOL` against the tool itself where it is installed, else what it made (tests/data) or its formula (tests/tools.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np
import pytest
from tools import TOOLS, command, installed, run_on_file

import conv3d_cli
from conv3d_cli.kernels import read_kernel
from conv3d_cli.kernels.sampling import SAMPLINGS, SamplingName
from conv3d_cli.settings.merge import apply_preset
from conv3d_cli.settings.options import Settings
from conv3d_cli.settings.presets import PRESETS

EXAMPLE = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "preset_golden.npz")
# max |difference| / max |value|: SPM's quotients divide by what little is inside; niimath adds in float32, as we do
CLOSE = {"spm": 4e-6, "fsl": 6e-6}


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, np.ndarray, tuple[float, ...]]:
    """A part of nibabel's scan, whose voxels are not cubes; signal reaches its edges."""
    data = np.asarray(nib.load(EXAMPLE).dataobj, dtype=np.float32)[30:57, 20:43, 2:22, 0]
    spacing = (2.0, 1.6, 2.2)
    image = nib.Nifti1Image(data, np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz", data, spacing


@pytest.mark.parametrize("fwhm", [1.5, 6.0])
@pytest.mark.parametrize("name", TOOLS)
def test_a_gaussian_is_the_tools(
    tmp_path: Path,
    scan: tuple[Path, np.ndarray, tuple[float, ...]],
    name: str,
    fwhm: float,
    run: Any,
) -> None:
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    path, data, spacing = scan
    run(
        "apply",
        path,
        "-k",
        f"gaussian:fwhm={fwhm}mm",
        "--like",
        name,
        "-o",
        tmp_path / "out.nii.gz",
        "--verify",
        20,
    )
    theirs = TOOLS[name](data, spacing, fwhm, tmp_path)
    ours = nib.load(tmp_path / "out.nii.gz").get_fdata()
    assert apart(ours, theirs) <= CLOSE.get(name, 1e-6)


def test_every_time_point_as_nilearn_does_with_nan(tmp_path: Path, run: Any) -> None:
    image_module = pytest.importorskip("nilearn.image")
    image = nib.load(EXAMPLE)
    data = np.asarray(image.dataobj, dtype=np.float32)
    data[60:64, 40, 10, :] = np.nan
    holed = nib.Nifti1Image(data, image.affine)
    holed.header.set_xyzt_units("mm", "sec")
    nib.save(holed, tmp_path / "holed.nii.gz")
    run(
        "apply",
        tmp_path / "holed.nii.gz",
        "-k",
        "gaussian:fwhm=5mm",
        "--like",
        "nilearn",
        "-o",
        tmp_path / "out.nii.gz",
    )
    theirs = image_module.smooth_img(nib.Nifti1Image(data.copy(), image.affine), 5).get_fdata()
    assert apart(nib.load(tmp_path / "out.nii.gz").get_fdata(), theirs) <= 1e-6


@pytest.mark.skipif(
    command("mrfilter") is None, reason="needs MRtrix3's mrfilter: apt install mrtrix3"
)
def test_nan_at_the_edge_of_what_mrfilter_does(tmp_path: Path, scan: Any, run: Any) -> None:
    """It divides after every axis, we once at the end: NaN are left out by both, and the means differ a little near them."""
    path, data, spacing = scan
    data = data.copy()
    data[20:22, 20, 10] = np.nan
    nib.save(nib.Nifti1Image(data, nib.load(path).affine, nib.load(path).header), path)
    run("apply", path, "-k", "gaussian:fwhm=6mm", "--like", "mrtrix", "-o", tmp_path / "out.nii.gz")
    theirs = TOOLS["mrtrix"](data, spacing, 6.0, tmp_path)
    ours = nib.load(tmp_path / "out.nii.gz").get_fdata()
    assert np.isfinite(ours).all()
    assert 1e-5 < apart(ours, theirs) < 0.03
    assert apart(ours[:10], theirs[:10]) < 1e-6  # no NaN in reach


@pytest.mark.skipif(command("niimath") is None, reason="needs niimath: pip install niimath")
def test_a_kernel_file_is_as_in_fsl(tmp_path: Path, scan: Any, run: Any) -> None:
    """Not flipped, a mean of what is inside; niimath holds weights as 32-bit integers."""
    path, data, spacing = scan
    weights = np.random.default_rng(2).random((5, 3, 3)).astype(np.float32)
    kernel = tmp_path / "kernel.nii.gz"
    nib.save(nib.Nifti1Image(weights, np.diag([*spacing, 1.0])), kernel)
    program = str(command("niimath"))
    theirs = run_on_file(
        data,
        spacing,
        tmp_path,
        lambda a, b: [program, a, "-kernel", "file", str(kernel), "-fmean", b],
    )
    run("apply", path, "-k", kernel, "--like", "fsl", "-o", tmp_path / "out.nii.gz")
    assert apart(nib.load(tmp_path / "out.nii.gz").get_fdata(), theirs) <= 2e-6


@pytest.mark.parametrize("size", [(3, 5, 3), (4, 2, 5)])
def test_a_kernel_file_is_flipped_as_in_scipy_and_a_builtin_is_not(
    tmp_path: Path, size: tuple[int, int, int], run: Any
) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    volume = GOLDEN["volume"]
    kernel = np.random.default_rng(1).standard_normal(size)
    np.save(tmp_path / "v.npy", volume)
    np.save(tmp_path / "k.npy", kernel)
    run(
        "apply",
        tmp_path / "v.npy",
        "-k",
        tmp_path / "k.npy",
        "--like",
        "scipy",
        "-o",
        tmp_path / "out.npy",
    )
    assert (
        apart(np.load(tmp_path / "out.npy"), ndimage.convolve(volume.astype(float), kernel)) <= 1e-6
    )
    run(
        "apply",
        tmp_path / "v.npy",
        "-k",
        "sobel:axis=h",
        "--like",
        "scipy",
        "-o",
        tmp_path / "edges.npy",
    )
    assert (
        apart(np.load(tmp_path / "edges.npy"), ndimage.sobel(volume.astype(float), axis=1)) <= 1e-6
    )


@pytest.mark.parametrize(
    ("name", "kernel", "made"),
    [
        ("itk", "gaussian:sigma=2.5mm", "itk_gaussian"), ("itk", "odd", "itk_odd"), ("itk", "even", "itk_even"),
        ("torch", "odd", "torch_odd"), ("torch", "layer", "torch_layer"), ("keras", "layer", "torch_layer"),
    ],
)  # fmt: skip
def test_what_itk_and_torch_made(
    tmp_path: Path, name: str, kernel: str, made: str, run: Any
) -> None:
    """By tests/data/make_preset_golden.py. ITK's Gaussian ends where its sum is 0.99; all in float32."""
    image = nib.Nifti1Image(GOLDEN["volume"].T, np.diag([2.0, 1.5, 3.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "v.nii")
    if kernel in GOLDEN:
        np.save(tmp_path / "k.npy", GOLDEN[kernel])
        kernel = str(tmp_path / "k.npy")
    run("apply", tmp_path / "v.nii", "-k", kernel, "--like", name, "-o", tmp_path / "out.npy")
    assert apart(np.load(tmp_path / "out.npy"), GOLDEN[made]) <= 1e-6


def test_imagej_normalizes_a_kernel_file_and_repeats_the_edge(tmp_path: Path, run: Any) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    kernel = np.random.default_rng(1).random((1, 3, 5))
    np.save(tmp_path / "v.npy", GOLDEN["volume"])
    np.save(tmp_path / "k.npy", kernel)
    run(
        "apply",
        tmp_path / "v.npy",
        "-k",
        tmp_path / "k.npy",
        "--like",
        "imagej",
        "-o",
        tmp_path / "out.npy",
    )
    expected = ndimage.correlate(
        GOLDEN["volume"].astype(float), kernel / kernel.sum(), mode="nearest"
    )
    assert apart(np.load(tmp_path / "out.npy"), expected) <= 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for wins, and is told


def test_options_and_config_keys_beat_the_preset(tmp_path: Path, scan: Any, run: Any) -> None:
    path = scan[0]
    (tmp_path / "c.toml").write_text(
        'kernel = "gaussian:fwhm=6mm"\nlike = "fsl"\npadding = "valid"\n'
    )
    words = run(
        "apply",
        path,
        "-c",
        tmp_path / "c.toml",
        "-v",
        "-o",
        tmp_path / "a.nii.gz",
        "--boundary",
        "zeros",
    ).output
    assert "like       fsl: sampling fsl; yours instead: padding valid, boundary zeros\n" in words
    words = run(
        "apply",
        path,
        "-k",
        "gaussian:fwhm=6mm:truncate=3",
        "--like",
        "spm",
        "-v",
        "-o",
        tmp_path / "b.nii.gz",
        "--nan",
        "propagate",
    ).output
    assert (
        "spm: padding same, boundary renormalize-depth; yours instead: truncate 3, nan propagate"
        in words
    )
    record = json.loads(
        run("explain", path, "-c", tmp_path / "c.toml", "--like", "wb", "--json").stdout
    )
    assert record["preset"]["name"] == "wb"
    assert record["kernel"] == "gaussian:fwhm=6mm:sampling=wb"
    assert record["padding"] == [[0, 0]] * 3


def test_a_gaussian_of_keras_is_ours_and_that_is_said(tmp_path: Path, scan: Any, run: Any) -> None:
    words = run("explain", scan[0], "-k", "gaussian:fwhm=6mm", "--like", "keras").output
    assert (
        "keras: padding valid, boundary zeros; "
        "keras has no Gaussian and no mm; this one is sampled as conv3d samples it" in words
    )


def test_a_mask_under_spm_renormalizes_along_all_axes(tmp_path: Path, scan: Any, run: Any) -> None:
    path, data, _ = scan
    nib.save(
        nib.Nifti1Image((data > 100).astype(np.uint8), nib.load(path).affine),
        tmp_path / "mask.nii.gz",
    )
    words = run(
        "apply",
        path,
        "-k",
        "gaussian:fwhm=6mm",
        "--like",
        "spm",
        "--mask",
        tmp_path / "mask.nii.gz",
        "-v",
        "-o",
        tmp_path / "o.nii.gz",
    ).output
    assert (
        "boundary renormalize, sampling spm, nan zero; with a mask, edges are renormalized along all axes"
        in words
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--like", "matlab"], 2, "imagej or wb, received 'matlab'"),
        (["--like", "fsl", "-k", "sobel:axis=d"], 4, "another --boundary than renormalize"),
        (["--like", "imagej", "-k", "{zero}"], 4, "or pass --no-normalize where --like sets it"),
        (["-k", "gaussian:fwhm=3mm:sampling=spm:truncate=3"], 2, "leave out truncate=3"),
        (
            ["--boundary", "renormalize-depth", "--padding", "full"],
            4,
            "use --padding same or valid",
        ),
        (
            ["--boundary", "renormalize-depth", "--nan", "ignore"],
            4,
            "use --boundary renormalize with a mask",
        ),
        (["-c", "{unknown}"], 2, "unknown preset 'sp'; did you mean 'spm'?"),
        (
            ["-c", "{stack}"],
            2,
            "--like spm is for one convolution, received a stack of 2 layers",
        ),
    ],
)
def test_refusals(
    tmp_path: Path, scan: Any, arguments: list[str], code: int, words: str, run: Any
) -> None:
    files = {
        name: tmp_path / f"{name}.{end}"
        for name, end in (("zero", "npy"), ("unknown", "toml"), ("stack", "toml"))
    }
    np.save(files["zero"], np.array([[[-1.0, 0, 1]]]))
    files["unknown"].write_text('like = "sp"\n')
    files["stack"].write_text(
        'like = "spm"\n[[layers]]\nkernel = "box"\n[[layers]]\nkernel = "box"\n'
    )
    arguments = [argument.format(**files) for argument in arguments]
    kernel = (
        []
        if "-k" in arguments or files["stack"].name in arguments[-1]
        else ["-k", "gaussian:fwhm=4mm"]
    )
    result = run("apply", scan[0], *kernel, *arguments, "-o", tmp_path / "out.nii.gz", code=code)
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "out.nii.gz").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The table


def test_every_preset_is_listed_and_every_sampling_named(run: Any) -> None:
    listed = run("presets").output
    assert [line.split()[0] for line in listed.splitlines() if line[0] != " "] == ["like", *PRESETS]
    assert json.loads(run("presets", "--json").stdout).keys() == PRESETS.keys()
    assert get_args(SamplingName) == ("scipy", *SAMPLINGS)
    assert {preset.sampling for preset in PRESETS.values()} == {"scipy", *SAMPLINGS}
    page = Path(conv3d_cli.__file__).parent / "manual" / "presets.md"
    for name in PRESETS:
        assert f"| `{name}` |" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.4, 1.0, 7.5])
def test_every_gaussian_is_one(name: str, sigma: float) -> None:
    stage, _, _ = apply_preset(name, Settings(kernel=f"gaussian:sigma={sigma},1,0vox"), Settings())
    kernel = read_kernel(str(stage.kernel))
    assert kernel.sum == pytest.approx(1, abs=1e-12)
    assert kernel.symmetries() == (True, True, True)
    assert kernel.size[2] == 1
    profile = kernel.weights.sum(axis=(1, 2))
    assert (np.diff(profile[: len(profile) // 2 + 1]) >= 0).all()
    if sigma > 5 and name != "mrtrix":
        # what is cut off narrows it, interpolation widens it: 5 % at most; MRtrix cuts at 2 sigma
        x = np.arange(len(profile)) - len(profile) // 2
        assert np.sqrt((profile * x**2).sum()) == pytest.approx(sigma, rel=0.06)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None,
    reason="needs nilearn's template: pip install nilearn",
)
@pytest.mark.parametrize("name", ["fsl", "mrtrix", "nilearn", "scipy"])
def test_the_mni_template_is_smoothed_as_the_tool_does(tmp_path: Path, name: str, run: Any) -> None:
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    spec = importlib.util.find_spec("nilearn")
    assert spec is not None
    assert spec.origin is not None
    template = next(
        (Path(spec.origin).parent / "datasets" / "data").glob("mni_icbm152_t1_tal*.nii.gz")
    )
    run("apply", template, "-k", "gaussian:fwhm=6mm", "--like", name, "-o", tmp_path / "out.nii.gz")
    image = nib.load(template)
    spacing = tuple(float(step) for step in np.linalg.norm(image.affine[:3, :3], axis=0))
    theirs = TOOLS[name](np.asarray(image.dataobj, dtype=np.float32), spacing, 6.0, tmp_path)
    assert apart(nib.load(tmp_path / "out.nii.gz").get_fdata(), theirs) <= 3e-6

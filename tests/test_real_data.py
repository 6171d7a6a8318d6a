"""Real scans: the 4-D example that nibabel ships, and a template where nilearn is installed, against scipy.ndimage."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage

EXAMPLE = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"


def test_example4d_smoothed_in_mm(tmp_path: Path, run: Any) -> None:
    """Every time point as nilearn and scipy would smooth it; header facts kept."""
    run("apply", EXAMPLE, "-k", "gaussian:fwhm=6mm", "-o", tmp_path / "out.nii.gz")
    source, out = nib.load(EXAMPLE), nib.load(tmp_path / "out.nii.gz")
    data = source.get_fdata()
    zooms = np.linalg.norm(source.affine[:3, :3], axis=0)
    sigma = 6 / np.sqrt(8 * np.log(2)) / zooms
    for t in range(data.shape[3]):
        expected = scipy.ndimage.gaussian_filter(data[..., t], sigma, mode="reflect")
        np.testing.assert_allclose(
            out.get_fdata()[..., t], expected, rtol=0, atol=2e-6 * np.abs(data).max()
        )
    np.testing.assert_array_equal(out.affine, source.affine)
    for field in ("sform_code", "qform_code", "xyzt_units", "descrip"):
        assert out.header[field] == source.header[field], field
    np.testing.assert_array_equal(out.header["pixdim"], source.header["pixdim"])
    assert [e.get_code() for e in out.header.extensions] == [
        e.get_code() for e in source.header.extensions
    ]
    assert [e.get_content() for e in out.header.extensions] == [
        e.get_content() for e in source.header.extensions
    ]


@pytest.mark.parametrize("boundary", ["zeros", "nearest", "mirror", "symmetric", "wrap"])
def test_example4d_with_a_random_kernel(tmp_path: Path, boundary: str, run: Any) -> None:
    kernel = np.random.default_rng(3).standard_normal((5, 3, 4))
    np.save(tmp_path / "k.npy", kernel)
    # an even size: scipy's centre of 4 is voxel 2, ours under `same` lies between 1 and 2; pads say which is meant
    run(
        "apply",
        EXAMPLE,
        "-k",
        tmp_path / "k.npy",
        "--padding",
        "2:2,1:1,2:1",
        "--boundary",
        boundary,
        "-o",
        tmp_path / "o.nii.gz",
    )
    data = nib.load(EXAMPLE).get_fdata().transpose(3, 2, 1, 0)
    out = nib.load(tmp_path / "o.nii.gz").get_fdata().transpose(3, 2, 1, 0)
    mode = {"zeros": "constant", "symmetric": "reflect", "wrap": "wrap"}.get(boundary, boundary)
    for volume, got in zip(data, out, strict=True):
        expected = scipy.ndimage.correlate(volume, kernel, mode=mode)
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=2e-6 * np.abs(kernel).sum() * np.abs(data).max()
        )


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None,
    reason="needs nilearn's template: pip install nilearn",
)
def test_mni152_with_a_random_kernel(tmp_path: Path, run: Any) -> None:
    """The MNI152 T1 template, 197 x 233 x 189 voxels, with a dense 5x5x5 kernel."""
    spec = importlib.util.find_spec("nilearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    template = next(folder.glob("mni_icbm152_t1_tal_nlin_sym_09a_converted*.nii.gz"))
    kernel = np.random.default_rng(4).standard_normal((5, 5, 5))
    np.save(tmp_path / "k.npy", kernel)
    run(
        "apply",
        template,
        "-k",
        tmp_path / "k.npy",
        "--boundary",
        "zeros",
        "-o",
        tmp_path / "o.nii.gz",
    )
    data = nib.load(template).get_fdata()
    expected = scipy.ndimage.correlate(data, kernel.transpose(2, 1, 0), mode="constant")
    bound = 2e-6 * np.abs(kernel).sum() * np.abs(data).max()
    assert np.abs(nib.load(tmp_path / "o.nii.gz").get_fdata() - expected).max() <= bound

"""Mean and range of voxels before and after a job: of all voxels, each counted once, and in the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli.formats import read_volume, write_volume
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import Missing
from conv3d_cli.model.volume import Volume
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import kernel_fwhm, run_job
from conv3d_cli.pipeline.statistics import Statistics, Values

SHAPE = (3, 13, 11, 12, 2)  # t, z, y, x, c
BOX = Stage("box:size=5")


def agrees(values: Values | None, expected: np.ndarray) -> None:
    assert values is not None
    finite = expected[np.isfinite(expected)]
    assert values.count == finite.size
    assert values.not_finite == expected.size - finite.size
    assert values.mean == pytest.approx(finite.mean(), rel=1e-6, abs=1e-6)
    assert (values.low, values.high) == pytest.approx((finite.min(), finite.max()), rel=1e-6)


def statistics_of(job: Job) -> Statistics:
    report = run_job(job, statistics=True)
    assert report.statistics is not None
    return report.statistics


@pytest.mark.parametrize("source", ["a.npy", "a.nii", "a.nii.gz", "a.tif", "a.ome.zarr"])
@pytest.mark.parametrize("boundary", ["symmetric", "wrap", "zeros"])
def test_every_voxel_is_counted_once(
    tmp_path: Path, rng: np.random.Generator, source: str, boundary: str
) -> None:
    data = rng.normal(5, size=SHAPE).astype(np.float32)
    data[0, 0, 0, 0, 0] = np.nan
    letters, array = "tzyxc", data
    if source != "a.npy":
        letters, array = "tczyx", data.transpose(0, 4, 1, 2, 3)
    path = str(tmp_path / source)
    write_volume(path, Volume(np.ascontiguousarray(array), letters))
    stage = Stage("box:size=5", boundary=boundary)
    out = str(tmp_path / "o.npy")
    found = statistics_of(Job(path, out, (stage,), axes=letters if source == "a.npy" else None))
    agrees(found.before, data)
    agrees(found.after, np.load(out))
    assert found.before_in_mask is None
    assert found.after_in_mask is None


def test_stacks_and_spooled_ends_count_once(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.normal(size=(9, 10, 11)).astype(np.float32)
    nibabel.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    stages = (Stage("box:size=3"), Stage("box:size=3", boundary="wrap"), Stage("box:size=3"))
    out = str(tmp_path / "o.nii.gz")
    found = statistics_of(Job(str(tmp_path / "a.nii.gz"), out, stages))
    agrees(found.before, data)
    agrees(found.after, read_volume(out).data)


def test_slopes_are_applied_before_and_clipping_is_seen_after(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    stored = rng.integers(-300, 300, (8, 9, 10)).astype(np.int16)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(-0.5, 20)
    image.to_filename(tmp_path / "a.nii")
    out = str(tmp_path / "o.nii")
    job = Job(str(tmp_path / "a.nii"), out, (Stage("identity"),), dtype="uint8")
    report = run_job(job, statistics=True)
    assert report.statistics is not None
    agrees(report.statistics.before, nibabel.load(tmp_path / "a.nii").get_fdata())
    agrees(report.statistics.after, nibabel.load(out).get_fdata())
    assert report.clipped > 0


@pytest.mark.parametrize("target", ["o.nii", "o.nii.gz"])
@pytest.mark.parametrize("mask_name", ["m.nii", "m.nii.gz"])
def test_the_mask_is_that_of_the_volume(
    tmp_path: Path, rng: np.random.Generator, mask_name: str, target: str
) -> None:
    data = rng.normal(3, size=(9, 10, 11, 4)).astype(np.float32)
    inside = rng.random((9, 10, 11)) < 0.4
    nibabel.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    nibabel.Nifti1Image(inside.astype(np.uint8), np.eye(4)).to_filename(tmp_path / mask_name)
    out = tmp_path / target
    missing = Missing(mask=str(tmp_path / mask_name))
    found = statistics_of(Job(str(tmp_path / "a.nii.gz"), str(out), (BOX,), missing=missing))
    agrees(found.before_in_mask, data[inside])
    agrees(found.after_in_mask, nibabel.load(out).get_fdata()[inside])
    agrees(found.after, nibabel.load(out).get_fdata())
    strided = Stage("box:size=5", strides=2)
    moved = str(tmp_path / "p.nii")
    found = statistics_of(Job(str(tmp_path / "a.nii.gz"), moved, (strided,), missing=missing))
    agrees(found.before_in_mask, data[inside])
    assert found.after_in_mask is None, "the mask does not lie on the output's grid"


def test_boxes_count_their_outputs(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: Any
) -> None:
    """Boxes read their rims twice, so that the input is not counted."""
    data = rng.normal(size=(8, 40, 40)).astype(np.float32)
    np.save(tmp_path / "a.npy", data)
    job = Job(str(tmp_path / "a.npy"), str(tmp_path / "o.npy"), (BOX,))
    from conv3d_cli.pipeline import prepare

    real = prepare.choose_blocking

    def in_boxes(slab_job: Any, ceiling: Any, make: Any) -> Any:
        blocking, box_job = real(slab_job, ceiling, make), make()
        boxes = prepare.Boxes(
            box_job.smallest_partition(), box_job.redundancy(box_job.smallest_partition())
        )
        return blocking._replace(boxes=boxes)

    monkeypatch.setattr(prepare, "choose_blocking", in_boxes)
    found = statistics_of(job)
    assert found.before is None
    agrees(found.after, np.load(tmp_path / "o.npy"))


def test_a_job_does_not_count_unasked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 3, 3), np.float32))
    report = run_job(Job(str(tmp_path / "a.npy"), str(tmp_path / "o.npy"), (BOX,)))
    assert report.statistics is None


@pytest.mark.parametrize(
    ("stage", "grid", "lengths", "unit"),
    [
        (Stage(Kernel(np.array([0.0, 1, 2, 1, 0]).reshape(1, 5, 1))), Grid((3, 2, 1), "mm"), (None, 4, None), "mm"),
        (Stage(Kernel(np.array([0.0, 1, 2, 1, 0]).reshape(1, 5, 1))), Grid((3, 2, 1)), (None, 2, None), "vox"),
        (Stage(Kernel(np.array([0.0, 1, 2, 1, 0]).reshape(5, 1, 1)), dilation_rate=(2, 1, 1)), Grid((3, 2, 1), "mm"),
         (12, None, None), "mm"),
    ],
)  # fmt: skip
def test_the_fwhm_of_the_kernel_on_the_grid(
    tmp_path: Path, stage: Stage, grid: Grid, lengths: tuple[float | None, ...], unit: str
) -> None:
    path = str(tmp_path / "a.ome.zarr")
    write_volume(path, Volume(np.zeros((9, 9, 9), np.float32), "zyx", grid))
    with prepare_job(Job(path, str(tmp_path / "o.npy"), (stage,))) as prepared:
        found = kernel_fwhm(prepared)
    assert found is not None
    assert found.unit == unit
    assert found.lengths == tuple(n if n is None else pytest.approx(n) for n in lengths)


@pytest.mark.parametrize("kernel", ["sobel:axis=d", "sobel:axis=xyz", "log:sigma=1vox"])
def test_kernels_without_a_bump_have_no_fwhm(tmp_path: Path, kernel: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 9, 9), np.float32))
    job = Job(str(tmp_path / "a.npy"), str(tmp_path / "o.npy"), (Stage(kernel),))
    with prepare_job(job) as prepared:
        assert kernel_fwhm(prepared) is None

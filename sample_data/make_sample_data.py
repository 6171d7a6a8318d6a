"""Makes everything in this folder but pictures/, with the same bytes each time.

    python sample_data/make_sample_data.py

head.nii.gz     a head-like phantom, int16 with a scale, anisotropic voxels, oblique affine,
                sform and qform
masks/          its brain as a mask, brain.nii.gz; left and right halves and the ventricles
                as 1, 2, 3, regions.nii.gz
series.nii.gz   a 4-D series of eight time points, TR 2 s
beads.tif       an ImageJ hyperstack of beads in two channels, 0.3 x 0.1 x 0.1 micron
cube.npy        a float32 cube with two channels
psf.tif         a measured-looking point spread function for the beads
layer.npz       kernel (3, 3, 3, 2, 4) and bias of a Conv3D layer; layer.toml runs it
meshnet/        a network of dilated convolutions, which tells the brain of head.nii.gz from its
                scalp and the rest; a TF.js model with made weights, and the names of its labels
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile

HERE = Path(__file__).parent


def save_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """As .nii.gz without a time stamp in the gzip header."""
    path.write_bytes(gzip.compress(image.to_bytes(), 9, mtime=0))


def ellipsoid(grid: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Where sum(((x - centre) / radius)^2) <= 1; grid: (3, ...) in mm."""
    scaled = [(g - c) / r for g, c, r in zip(grid, centre, radii, strict=True)]
    return sum(s**2 for s in scaled) <= 1


def oblique_affine() -> np.ndarray:
    """Voxels of 1.5 x 1.5 x 3 mm, turned by 12 and 7 degrees."""
    a, b = np.deg2rad([12, 7])
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([1.5, 1.5, 3.0])
    affine[:3, 3] = [-52.0, -70.5, -38.25]
    return affine


def head() -> None:
    """Scalp, skull, brain, ventricles and two lesions, with a little noise."""
    rng = np.random.default_rng(7)
    shape, spacing = (64, 72, 32), (1.5, 1.5, 3.0)
    grid = np.stack(
        np.meshgrid(
            *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)],
            indexing="ij",
        )
    )
    values = np.zeros(shape)
    for centre, radii, value in (
        ((0, 0, 0), (42, 50, 44), 300.0),
        ((0, 0, 0), (39, 47, 41), 80.0),
        ((0, 0, 0), (36, 44, 38), 650.0),
        ((-8, 2, 4), (5, 14, 8), 120.0),
        ((8, 2, 4), (5, 14, 8), 120.0),
        ((18, -20, 10), (5, 5, 5), 950.0),
        ((-22, 12, -8), (4, 6, 5), 900.0),
    ):
        values[ellipsoid(grid, centre, radii)] = value
    values += rng.normal(0, 12, shape) * (values > 0)
    stored = np.round(values / 0.5).astype(np.int16)
    affine = oblique_affine()
    image = nib.Nifti1Image(stored, affine)
    header = image.header
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"head-like phantom"
    header.set_slope_inter(0.5, 0)
    save_nifti(image, HERE / "head.nii.gz")
    brain = ellipsoid(grid, (0, 0, 0), (36, 44, 38))
    regions = np.where(brain, np.where(grid[0] < 0, 1, 2), 0)
    for side in (-8, 8):
        regions[ellipsoid(grid, (side, 2, 4), (5, 14, 8))] = 3
    for name, labels in (("brain", brain), ("regions", regions)):
        mask = nib.Nifti1Image(labels.astype(np.uint8), affine)
        mask.header.set_xyzt_units("mm", "sec")
        save_nifti(mask, HERE / "masks" / f"{name}.nii.gz")


def series() -> None:
    """A blob that waxes and wanes."""
    rng = np.random.default_rng(8)
    shape = (24, 26, 14)
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    blob = np.exp(-(x**2 + y**2 + 4 * z**2) / 60)
    times = np.arange(8)
    values = 400 * blob[..., None] * (1 + 0.2 * np.sin(times * 0.8)) + rng.normal(
        100, 5, (*shape, times.size)
    )
    affine = np.diag([3.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-34.5, -37.5, -26.0]
    image = nib.Nifti1Image(np.round(values).astype(np.int16), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.0
    image.header.set_sform(affine, code=2)
    image.header.set_qform(affine, code=1)
    save_nifti(image, HERE / "series.nii.gz")


def beads() -> None:
    """Points of light in two channels, ImageJ order ZCYX."""
    rng = np.random.default_rng(9)
    stack = rng.poisson(4, (16, 2, 64, 64)).astype(np.uint8)
    for channel in range(2):
        for z, y, x in zip(
            rng.integers(2, 14, 20), rng.integers(4, 60, 20), rng.integers(4, 60, 20), strict=True
        ):
            stack[z, channel, y, x] = rng.integers(150, 250)
    tifffile.imwrite(
        HERE / "beads.tif", stack, imagej=True, resolution=(10.0, 10.0),
        metadata={"axes": "ZCYX", "spacing": 0.3, "unit": "um"},
    )  # fmt: skip


def psf() -> None:
    """Wider along z, slightly askew, as measured ones are; not normalised."""
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2 for n in (7, 9, 9)], indexing="ij")
    values = 1000 * np.exp(-((z / 1.6) ** 2 + ((y + 0.2 * z) / 1.8) ** 2 + (x / 1.8) ** 2) / 2)
    tifffile.imwrite(
        HERE / "psf.tif", values.astype(np.float32), imagej=True, resolution=(10.0, 10.0),
        metadata={"axes": "ZYX", "spacing": 0.3, "unit": "um"},
    )  # fmt: skip


def cube_and_layer() -> None:
    """A small volume of two channels and a layer for it."""
    rng = np.random.default_rng(10)
    np.save(HERE / "cube.npy", rng.standard_normal((16, 20, 24, 2), dtype=np.float32))
    limit = np.sqrt(6 / (27 * 2 + 27 * 4))  # glorot_uniform
    kernel = rng.uniform(-limit, limit, (3, 3, 3, 2, 4)).astype(np.float32)
    from conv3d_cli.kernels import write_kernel
    from conv3d_cli.model.kernel import Kernel

    write_kernel(
        str(HERE / "layer.npz"), Kernel(kernel, np.array([0.0, 0.1, -0.1, 0.2])), overwrite=True
    )


def meshnet() -> None:
    """The chain of MeshNet, with two channels: the voxel's own brightness, and its surroundings'.

    Three dilated layers smooth the second; the last one scores three classes by both.
    """
    binomial = np.array([1, 2, 1]) / 4
    smooth = np.einsum("i,j,k->ijk", binomial, binomial, binomial)
    own = np.zeros((3, 3, 3))
    own[1, 1, 1] = 1
    dim, bright = 0.19, 0.44  # of 1000: air, bone and fluid | scalp | brain
    layers: list[tuple[str, int, np.ndarray, np.ndarray]] = []
    for number, dilation in enumerate((1, 2, 4)):
        channels = 2 if number else 1
        kernel = np.zeros((3, 3, 3, channels, 2))
        kernel[..., 0, 0] = own
        kernel[..., -1, 1] = smooth
        layers.append(
            (f"dilated_{dilation}", dilation, kernel / (1 if number else 1000), np.zeros(2))
        )
    scores = np.zeros((1, 1, 1, 2, 3))
    scores[0, 0, 0] = np.outer((0.8, 0.2), (0, 1, 2))
    layers.append(("scores", 1, scores, np.array([0, -dim, -dim - bright])))

    shape = [None, None, None, None, 1]
    described: list[dict[str, Any]] = [
        {"class_name": "InputLayer", "config": {"name": "volume", "batch_input_shape": shape}}
    ]
    tensors, content = [], b""
    for name, dilation, kernel, bias in layers:
        config = {
            "name": name, "filters": len(bias), "kernel_size": kernel.shape[:3],
            "dilation_rate": [dilation] * 3, "padding": "same", "use_bias": True,
            "activation": "linear" if name == "scores" else "relu",
        }  # fmt: skip
        described.append({"class_name": "Conv3D", "config": config})
        for kind, values in (("kernel", kernel), ("bias", bias)):
            tensors.append({"name": f"{name}/{kind}", "shape": values.shape, "dtype": "float32"})
            content += values.astype("<f4").tobytes()
    shard = "group1-shard1of1.bin"
    model = {"class_name": "Sequential", "config": {"name": "meshnet", "layers": described}}
    text = json.dumps(
        {
            "format": "layers-model",
            "modelTopology": {"keras_version": "2.7.0", "model_config": model},
            "weightsManifest": [{"paths": [shard], "weights": tensors}],
        }
    )
    folder = HERE / "meshnet"
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(text + "\n")
    (folder / shard).write_bytes(content)
    (folder / "labels.tsv").write_text("index\tname\n0\tbackground\n1\tscalp\n2\tbrain\n")


def main() -> None:
    """Make all and say how large they are."""
    for make in (head, series, beads, psf, cube_and_layer, meshnet):
        make()
    total = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file())
    print(f"sample data: {total / 1e3:.0f} kB in {HERE}")


if __name__ == "__main__":
    main()

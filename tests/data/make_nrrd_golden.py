"""Makes nrrd/: small files as SimpleITK and pynrrd write them, and expected.npz: what SimpleITK reads in each.

Run where both are installed:

    python tests/data/make_nrrd_golden.py

Made with SimpleITK 2.5.7 and pynrrd 1.1.3. `NAME/data` is the array in the order of SimpleITK (slowest axis first), `NAME/affine`
takes voxel (i, j, k) to millimetres right, front and head: SimpleITK's own left, back and head with two signs changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "nrrd"
# a row for each axis
OBLIQUE = np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) * [
    [1.5],
    [2.0],
    [3.0],
]
ORIGIN = np.array([-90.0, 126.5, -72.25])


def main() -> None:
    """Write the files and what they hold."""
    import nrrd
    import SimpleITK as sitk

    HERE.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    volume = rng.integers(-1000, 1000, (3, 4, 5)).astype(np.int16)  # D, H, W

    def itk(name: str, array: np.ndarray, *, vector: bool = False, packed: bool = False) -> None:
        image = sitk.GetImageFromArray(array, isVector=vector)
        rank = image.GetDimension()
        image.SetSpacing((1.5, 2.0, 3.0, 2.5)[:rank])
        image.SetOrigin((*ORIGIN, 0.5)[:rank])
        direction = np.eye(rank)
        direction[:3, :3] = (OBLIQUE / [[1.5], [2.0], [3.0]]).T
        image.SetDirection(direction.ravel().tolist())
        image.SetMetaData("patient", "a\tb")
        sitk.WriteImage(image, str(HERE / name), useCompression=packed)

    itk("itk.nrrd", volume.astype(np.float32))
    itk("itk_gzip.nrrd", volume, packed=True)
    itk("itk_vector.nrrd", rng.normal(size=(3, 4, 5, 2)).astype(np.float64), vector=True)
    itk("itk_rgb.nrrd", rng.integers(0, 256, (3, 4, 5, 3)).astype(np.uint8), vector=True)
    itk("itk_series.nrrd", rng.integers(0, 99, (2, 3, 4, 5)).astype(np.uint16))
    itk("itk_detached.nhdr", volume)

    def teem(name: str, array: np.ndarray, **fields: Any) -> None:
        header = {
            "encoding": "raw",
            **{key.replace("_", " "): value for key, value in fields.items()},
        }
        nrrd.write(str(HERE / name), array.T, header, index_order="F")

    world = {"space_directions": OBLIQUE, "space_origin": ORIGIN, "kinds": ["domain"] * 3}
    teem("ras.nrrd", volume, space="right-anterior-superior", encoding="gzip", **world)
    teem("las.nrrd", volume.astype(">i2"), space="left-anterior-superior", endian="big", **world)
    teem("lps.nrrd", volume.astype(np.uint8), space="left-posterior-superior", **world)
    teem("spacings.nrrd", volume, spacings=[0.5, 0.25, 2.0], units=["mm"] * 3)
    steps = np.vstack([[np.nan] * 3, OBLIQUE])
    teem(
        "diffusion.nrrd", rng.integers(0, 9, (3, 4, 5, 2)).astype(np.int32), space="left-posterior-superior",
        space_directions=steps, space_origin=ORIGIN, kinds=["list", "domain", "domain", "domain"],
        **{"DWMRI_b-value": "1000", "modality": "DWMRI"},
    )  # fmt: skip

    found: dict[str, np.ndarray] = {}
    for path in sorted([*HERE.glob("*.nrrd"), *HERE.glob("*.nhdr")]):
        image = sitk.ReadImage(str(path))
        affine = np.eye(4)
        rank = image.GetDimension()
        affine[:3, :3] = (
            np.array(image.GetDirection()).reshape(rank, rank)[:3, :3] * image.GetSpacing()[:3]
        )
        affine[:3, 3] = image.GetOrigin()[:3]
        found[f"{path.name}/affine"] = np.diag([-1, -1, 1, 1]) @ affine
        found[f"{path.name}/data"] = sitk.GetArrayFromImage(image)
    np.savez_compressed(HERE / "expected.npz", **found)


if __name__ == "__main__":
    main()

"""How far `--like TOOL` is from the tool: max |difference| / max |value|, of a Gaussian of FWHM 6 mm on real scans.

    python tests/benchmarks/presets.py [SCAN...]

Tools that are not installed are compared with their published formula (tests/tools.py). Scans: nibabel's example4d, and the MNI
template where nilearn is installed. "inside" leaves out what a kernel's reach of the edges is.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools import TOOLS, installed, sigmas

from conv3d_cli.cli import main

FWHM = 6.0
FORMULAS = ("spm", "afni", "imagej", "wb")


def scans() -> list[Path]:
    """The scans that are compared on."""
    if len(sys.argv) > 1:
        return [Path(name) for name in sys.argv[1:]]
    found = [Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"]
    spec = importlib.util.find_spec("nilearn")
    if spec is not None and spec.origin is not None:
        found += sorted(
            (Path(spec.origin).parent / "datasets" / "data").glob("mni_icbm152_t1_tal*.nii.gz")
        )
    return found


def like(name: str, path: Path, folder: Path) -> np.ndarray:
    """What `conv3d apply --like` makes of a scan."""
    target = folder / "ours.nii.gz"
    arguments = [
        "apply",
        str(path),
        "-k",
        f"gaussian:fwhm={FWHM}mm",
        "--like",
        name,
        "-o",
        str(target),
        "--overwrite",
        "-q",
    ]
    main(arguments, standalone_mode=False)
    return np.asarray(nib.load(target).get_fdata())


def run() -> None:
    """Print one line for each tool and scan."""
    print("| like | scan | compared with | largest difference | inside |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in scans():
            image = nib.load(path)
            volume = np.asarray(
                image.dataobj[..., 0] if image.ndim == 4 else image.dataobj, dtype=np.float32
            )
            spacing = tuple(float(step) for step in np.linalg.norm(image.affine[:3, :3], axis=0))
            nib.save(nib.Nifti1Image(volume, np.diag([*spacing, 1.0])), folder / "scan.nii.gz")
            reach = [int(6 * s + 0.5) for s in sigmas(FWHM, spacing)]
            inside = tuple(slice(r, n - r) for r, n in zip(reach, volume.shape, strict=True))
            for tool, smooth in TOOLS.items():
                if not installed(tool):
                    continue
                theirs = smooth(volume, spacing, FWHM, folder)
                apart = (
                    np.abs(like(tool, folder / "scan.nii.gz", folder) - theirs)
                    / np.abs(theirs).max()
                )
                what = "formula" if tool in FORMULAS else "itself"
                print(
                    f"| {tool} | {path.name} | {what} | {apart.max():.1e} | {apart[inside].max():.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    run()

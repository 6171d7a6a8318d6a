"""Makes scan.png, the picture of README: `python sample_data/pictures/make_picture.py`.

`conv3d view` draws a scan that nibabel brings along, the scan smoothed by 6 mm, and their
difference; then the picture is reduced to 64 colours, so that it is small. It needs
`pip install '.[plot]'`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
from PIL import Image

HERE = Path(__file__).parent
SCAN = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"


def conv3d(*arguments: object) -> None:
    """Run a command of conv3d."""
    subprocess.run([sys.executable, "-m", "conv3d_cli", *map(str, arguments)], check=True)


def main() -> None:
    """Make it and say how large it is."""
    with tempfile.TemporaryDirectory() as folder:
        scan, smooth = Path(folder, "scan.nii.gz"), Path(folder, "smooth.nii.gz")
        drawn, small = Path(folder, "drawn.png"), HERE / "scan.png"
        scan.write_bytes(SCAN.read_bytes())
        conv3d("apply", scan, "-k", "gaussian:fwhm=6mm", "-o", smooth)
        conv3d("view", scan, smooth, "-o", drawn)
        picture = Image.open(drawn).convert("RGB")
        picture.quantize(64, dither=Image.Dither.NONE).save(small, optimize=True)
    print(f"{small.name}: {small.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

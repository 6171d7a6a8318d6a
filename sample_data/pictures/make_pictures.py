"""Makes the pictures of README and the manual: `python sample_data/pictures/make_pictures.py`.

scan.png shows a scan that nibabel brings along, the scan smoothed by 6 mm, and their difference.
The others are drawn by the commands that the page of the manual shows which has them, in a copy of
sample_data. All are reduced to a few colours, so that they are small. It needs
`pip install '.[plot]'`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
from PIL import Image

HERE = Path(__file__).parent
MANUAL = HERE.parents[1] / "conv3d_cli" / "manual"
SCAN = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
OF_SCAN = """
conv3d apply scan.nii.gz -k gaussian:fwhm=6mm -o smooth.nii.gz
conv3d view scan.nii.gz smooth.nii.gz -o scan.png
"""
FEWER = {"scan.png": 64, "deconvolve.png": 64}  # colours of the larger ones
COLOURS = 160  # of the others


def draw(commands: str, names: list[str]) -> None:
    """Run commands in a copy of sample_data, and keep some of the pictures that they draw."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE.parent, folder, dirs_exist_ok=True)
        shutil.copy(SCAN, Path(folder, "scan.nii.gz"))
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": paths}
        subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, check=True)
        for name in names:
            picture, small = Image.open(Path(folder, name)).convert("RGB"), HERE / name
            colours = FEWER.get(name, COLOURS)
            picture.quantize(colours, dither=Image.Dither.NONE).save(small, optimize=True)
            print(f"{name}: {small.stat().st_size:,} bytes")


def main() -> None:
    """Make them and say how large they are."""
    draw(OF_SCAN, ["scan.png"])
    for page in sorted(MANUAL.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        names = re.findall(r"!\[[^\]]*\]\(\S*/sample_data/pictures/(\S+\.png)\)", text)
        if names:
            draw("".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)), names)


if __name__ == "__main__":
    main()

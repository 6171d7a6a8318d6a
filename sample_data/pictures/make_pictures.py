"""Makes the pictures of README and the manual: `python sample_data/pictures/make_pictures.py`.

scan.png shows a scan that nibabel brings along, the scan smoothed by 6 mm, and their difference.
The others are drawn by the commands that the page of the manual shows which has them, in a copy of
sample_data. All are reduced to some of the colours that `conv3d view` has, so that they are small:
a palette made of what is frequent would paint bright greys in the colours of a difference. It needs
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
import numpy as np
from PIL import Image

from conv3d_cli.pictures.panels import GREY, NOT_A_NUMBER, SIGNED

HERE = Path(__file__).parent
MANUAL = HERE.parents[1] / "conv3d_cli" / "manual"
SCAN = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
OF_SCAN = """
conv3d apply scan.nii.gz -k gaussian:fwhm=6mm -o smooth.nii.gz
conv3d view scan.nii.gz smooth.nii.gz -o scan.png
"""
SHADES = 64  # greys, and as many colours of a difference


def reduced(picture: Image.Image) -> Image.Image:
    """A picture in the nearest ones of `SHADES` greys and `SHADES` colours of a difference."""
    rows = np.linspace(0, NOT_A_NUMBER - 1, SHADES).round().astype(int)
    palette = np.concatenate([GREY[rows], SIGNED[rows]])
    pixels = np.asarray(picture.convert("RGB"))
    found, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    apart = found[:, None].astype(int) - palette.astype(int)
    nearest = (apart**2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    fewer = Image.fromarray(nearest[places].reshape(pixels.shape[:2]), "P")
    fewer.putpalette(palette.tobytes())
    return fewer


def draw(commands: str, names: list[str]) -> None:
    """Run commands in a copy of sample_data, and keep some of the pictures that they draw."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE.parent, folder, dirs_exist_ok=True)
        shutil.copy(SCAN, Path(folder, "scan.nii.gz"))
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": paths}
        subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, check=True)
        for name in names:
            small = HERE / name
            reduced(Image.open(Path(folder, name))).save(small, optimize=True)
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

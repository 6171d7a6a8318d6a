"""Write match_golden.npz: scores of scikit-image's match_template, in float64.

Run it with scikit-image 0.26.0, which is no dependency of conv3d:

    python tests/data/make_match_golden.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZES = {"odd": (5, 3, 7), "large": (9, 9, 9)}


def main() -> None:
    """Write the file."""
    from skimage.feature import match_template  # not installed where tests are collected

    own = np.random.default_rng(845)
    volume = own.standard_normal((11, 12, 14)).cumsum(axis=2).astype(np.float32)
    found = {"volume": volume}
    for name, size in SIZES.items():
        template = own.standard_normal(size).cumsum(axis=2).astype(np.float32)
        found[f"{name}_template"] = template
        found[f"{name}_scores"] = match_template(
            volume.astype(np.float64), template.astype(np.float64), pad_input=True
        )
    np.savez_compressed(Path(__file__).with_name("match_golden.npz"), **found)


if __name__ == "__main__":
    main()

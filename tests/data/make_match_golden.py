"""Write match_golden.npz: scores of scikit-image's match_template and cross_correlate_masked.

Run it with scikit-image 0.26.0, which is no dependency of conv3d:

    python tests/data/make_match_golden.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZES = {"odd": (5, 3, 7), "large": (9, 9, 9)}


def main() -> None:
    """Write the file."""
    # not installed where tests are collected
    from skimage.feature import match_template
    from skimage.registration._masked_phase_cross_correlation import cross_correlate_masked

    own = np.random.default_rng(845)
    volume = own.standard_normal((11, 12, 14)).cumsum(axis=2).astype(np.float32)
    found = {"volume": volume}
    for name, size in SIZES.items():
        template = own.standard_normal(size).cumsum(axis=2).astype(np.float32)
        found[f"{name}_template"] = template
        found[f"{name}_scores"] = match_template(
            volume.astype(np.float64), template.astype(np.float64), pad_input=True
        )
    # Padfield's correlation of the whole volume with a template of which a part counts
    template = found["odd_template"].astype(np.float64)
    inside = own.random(template.shape) < 0.6
    x = volume.astype(np.float64)
    found["inside"] = inside
    found["masked_scores"] = cross_correlate_masked(
        x, template, np.ones(x.shape, bool), inside,
        mode="same", axes=(0, 1, 2), overlap_ratio=0,
    )  # fmt: skip
    np.savez_compressed(Path(__file__).with_name("match_golden.npz"), **found)


if __name__ == "__main__":
    main()

"""Makes preset_golden.npz: what SimpleITK and PyTorch make of a small volume. Run where both are installed:

    python tests/data/make_preset_golden.py

Made with SimpleITK 2.5.7 and torch 2.13.0. Axes are depth, height, width; the voxels are 3 x 1.5 x 2 mm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SPACING = (3.0, 1.5, 2.0)  # mm along D, H, W
SIGMA = 2.5  # mm


def main() -> None:
    """Write the file."""
    import SimpleITK
    import torch

    rng = np.random.default_rng(7)
    volume = (rng.standard_normal((14, 15, 16)) * 100 + 300).astype(np.float32)
    odd, even = rng.standard_normal((3, 5, 3)), rng.standard_normal((4, 2, 4))
    layer = rng.standard_normal((3, 3, 3, 1, 2))

    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing(SPACING[::-1])
    arrays = {
        "volume": volume,
        "odd": odd,
        "even": even,
        "layer": layer,
        "itk_gaussian": SimpleITK.GetArrayFromImage(SimpleITK.DiscreteGaussian(image, SIGMA**2)),
    }
    for name, kernel in (("odd", odd), ("even", even)):
        weights = SimpleITK.GetImageFromArray(kernel.astype(np.float32))
        arrays[f"itk_{name}"] = SimpleITK.GetArrayFromImage(
            SimpleITK.Convolution(SimpleITK.GetImageFromArray(volume), weights)
        )
    with torch.no_grad():
        stack = torch.from_numpy(volume)[None, None]
        arrays["torch_odd"] = torch.nn.functional.conv3d(
            stack, torch.from_numpy(odd.astype(np.float32))[None, None]
        )[0, 0].numpy()
        module = torch.nn.Conv3d(1, 2, 3, bias=False)
        module.weight.copy_(torch.from_numpy(layer.transpose(4, 3, 0, 1, 2).astype(np.float32)))
        arrays["torch_layer"] = module(stack)[0].permute(1, 2, 3, 0).numpy()
    np.savez_compressed(Path(__file__).parent / "preset_golden.npz", **arrays)


if __name__ == "__main__":
    main()

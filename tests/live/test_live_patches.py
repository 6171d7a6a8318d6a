"""--patch against MONAI's own sliding windows, of its own networks exported to ONNX: `make test-keras`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")
pytest.importorskip("onnx")

from monai.inferers import sliding_window_inference  # noqa: E402 - after the guards
from monai.networks.nets import BasicUNet, UNet  # noqa: E402 - after the guards

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]
PATCH = (16, 32, 16)


def network(name: str) -> Any:
    torch.manual_seed(0)
    if name == "instance norm":
        return BasicUNet(3, 1, 3, features=(8, 8, 16, 16, 16, 8)).eval()
    return UNet(3, 1, 3, channels=(8, 16, 32), strides=(2, 2), norm="BATCH", act="RELU").eval()


@pytest.mark.parametrize("size", [(36, 41, 38), (10, 41, 12)])
@pytest.mark.parametrize(("overlap", "blend"), [(0.5, "gaussian"), (0.25, "constant")])
@pytest.mark.parametrize("name", ["instance norm", "batch norm"])
def test_patches_are_sliding_windows(
    name: str, overlap: float, blend: str, size: tuple[int, int, int], tmp_path: Path, run: Any
) -> None:
    net, path = network(name), str(tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((1, 1, *size)).astype(np.float32)
    with torch.no_grad():
        torch.onnx.export(net, torch.zeros(1, 1, *PATCH), path, dynamo=False, opset_version=17)
        wanted = sliding_window_inference(
            torch.from_numpy(x), PATCH, 1, net, overlap=overlap, mode=blend
        ).numpy()
    np.save(tmp_path / "x.npy", x)
    run("apply", tmp_path / "x.npy", "-c", path, "--patch", "16,32,16", "--overlap", overlap,
        "--blend", blend, "-o", tmp_path / "y.npy")  # fmt: skip
    found = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.99999

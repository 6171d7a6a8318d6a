"""Read ONNX graphs as networks; `operators.py` and `windows.py` list the operators that are known.

Source: ONNX, docs/Operators.md and onnx/onnx.proto.
"""

from conv3d_cli.network.onnx.graph import read_onnx_network

__all__ = ["read_onnx_network"]

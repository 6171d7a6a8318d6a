"""conv3d: convolve volumes. The package behind the `conv3d` command.

Public names are imported on first use, so `import conv3d_cli` and `conv3d --help` start at once.

>>> import conv3d_cli, numpy
>>> conv3d_cli.conv3d(numpy.ones((3, 3, 3)), numpy.ones((3, 3, 3))).item()
27.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conv3d_cli.api.arrays import conv3d
    from conv3d_cli.api.files import convolve_file
    from conv3d_cli.api.operations import operate
    from conv3d_cli.errors import (
        ChangedInputError,
        ClusterError,
        ConfigError,
        Conv3DError,
        DifferenceError,
        FaultError,
        FormatError,
        MemoryLimitError,
        OutputExistsError,
        ShapeError,
        SpecError,
        SystemLimitError,
        UnknownNameError,
        WriteError,
    )
    from conv3d_cli.formats import read_volume, write_volume
    from conv3d_cli.keras import Conv3D
    from conv3d_cli.kernels import read_kernel, write_kernel
    from conv3d_cli.model.grid import Grid
    from conv3d_cli.model.kernel import Kernel
    from conv3d_cli.model.spec import ConvSpec
    from conv3d_cli.model.volume import Volume
    from conv3d_cli.pipeline.run import JobReport

_HOMES = {
    "conv3d": "conv3d_cli.api.arrays",
    "convolve_file": "conv3d_cli.api.files",
    "operate": "conv3d_cli.api.operations",
    "Conv3D": "conv3d_cli.keras",
    "read_volume": "conv3d_cli.formats",
    "write_volume": "conv3d_cli.formats",
    "read_kernel": "conv3d_cli.kernels",
    "write_kernel": "conv3d_cli.kernels",
    "Volume": "conv3d_cli.model.volume",
    "Kernel": "conv3d_cli.model.kernel",
    "Grid": "conv3d_cli.model.grid",
    "ConvSpec": "conv3d_cli.model.spec",
    "JobReport": "conv3d_cli.pipeline.run",
    "ChangedInputError": "conv3d_cli.errors",
    "ClusterError": "conv3d_cli.errors",
    "ConfigError": "conv3d_cli.errors",
    "Conv3DError": "conv3d_cli.errors",
    "DifferenceError": "conv3d_cli.errors",
    "FaultError": "conv3d_cli.errors",
    "FormatError": "conv3d_cli.errors",
    "MemoryLimitError": "conv3d_cli.errors",
    "OutputExistsError": "conv3d_cli.errors",
    "ShapeError": "conv3d_cli.errors",
    "SpecError": "conv3d_cli.errors",
    "SystemLimitError": "conv3d_cli.errors",
    "UnknownNameError": "conv3d_cli.errors",
    "WriteError": "conv3d_cli.errors",
}

__all__ = [
    "ChangedInputError",
    "ClusterError",
    "ConfigError",
    "Conv3D",
    "Conv3DError",
    "ConvSpec",
    "DifferenceError",
    "FaultError",
    "FormatError",
    "Grid",
    "JobReport",
    "Kernel",
    "MemoryLimitError",
    "OutputExistsError",
    "ShapeError",
    "SpecError",
    "SystemLimitError",
    "UnknownNameError",
    "Volume",
    "WriteError",
    "conv3d",
    "convolve_file",
    "operate",
    "read_kernel",
    "read_volume",
    "write_kernel",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("conv3d")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'conv3d_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

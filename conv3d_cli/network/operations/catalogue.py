"""The operations of networks. To add one, write its class in a file here, and its line below.

Names are those of Keras' layers, where it has such a layer. `tests/network/test_every_operation.py`
compares each with its definition, and with Keras where that is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

from conv3d_cli.errors import SpecError, unknown_name
from conv3d_cli.network.graph import Node
from conv3d_cli.network.operations.activation import Activation, LayerNormalization, PReLU
from conv3d_cli.network.operations.affine import (
    Affine,
    BatchNormalization,
    Normalization,
    Rescaling,
)
from conv3d_cli.network.operations.base import Operation, Shape
from conv3d_cli.network.operations.borders import BorderPadding3D
from conv3d_cli.network.operations.channels import ArgMax, TakeChannels
from conv3d_cli.network.operations.clip import Clip
from conv3d_cli.network.operations.convolution import Conv3D, Conv3DTranspose, Dense
from conv3d_cli.network.operations.correlation import NormalizedCorrelation
from conv3d_cli.network.operations.deconvolution import RichardsonLucy
from conv3d_cli.network.operations.joining import (
    Add,
    Average,
    Concatenate,
    Divide,
    Maximum,
    Minimum,
    Multiply,
    Subtract,
)
from conv3d_cli.network.operations.local import LocalStatistics
from conv3d_cli.network.operations.missing import (
    Inside,
    MaskCertainty,
    OnlyFinite,
    Present,
    ReplaceMissing,
)
from conv3d_cli.network.operations.pooling import (
    AveragePooling3D,
    GlobalAveragePooling3D,
    GlobalMaxPooling3D,
    MaxPooling3D,
)
from conv3d_cli.network.operations.reshaping import (
    Cropping3D,
    Flatten,
    Interleave,
    Permute,
    Reshape,
    Same,
    UpSampling3D,
    ZeroPadding3D,
)
from conv3d_cli.network.operations.resize import Resize
from conv3d_cli.network.operations.ridges import RidgeMaxima, Ridges
from conv3d_cli.network.operations.statistics import GroupNormalization, Normalize, Statistics
from conv3d_cli.network.operations.tensors import (
    HessianTensor,
    SlopeProducts,
    StructureTensor,
    WindowedTensor,
)

# Keras' layers, by their names.
LAYERS: dict[str, type[Operation]] = {
    "Conv3D": Conv3D,
    "Conv3DTranspose": Conv3DTranspose,
    "Dense": Dense,
    "BatchNormalization": BatchNormalization,
    "GroupNormalization": GroupNormalization,
    "LayerNormalization": LayerNormalization,
    "Normalization": Normalization,
    "Rescaling": Rescaling,
    "Activation": Activation,
    "PReLU": PReLU,
    "MaxPooling3D": MaxPooling3D,
    "AveragePooling3D": AveragePooling3D,
    "GlobalMaxPooling3D": GlobalMaxPooling3D,
    "GlobalAveragePooling3D": GlobalAveragePooling3D,
    "UpSampling3D": UpSampling3D,
    "ZeroPadding3D": ZeroPadding3D,
    "Cropping3D": Cropping3D,
    "Add": Add,
    "Subtract": Subtract,
    "Multiply": Multiply,
    "Average": Average,
    "Maximum": Maximum,
    "Minimum": Minimum,
    "Concatenate": Concatenate,
    "Identity": Same,
    "Flatten": Flatten,
    "Reshape": Reshape,
    "Permute": Permute,
}
# What files may contain: layers, and what only graphs of other formats have.
OPERATIONS: dict[str, type[Operation]] = {
    **LAYERS,
    "Divide": Divide,
    "Clip": Clip,
    "Resize": Resize,
    "BorderPadding3D": BorderPadding3D,
    "TakeChannels": TakeChannels,
    "ArgMax": ArgMax,
}
# What others are run as; no file contains them.
INNER: dict[str, type[Operation]] = {
    "Affine": Affine,
    "Interleave": Interleave,
    "Statistics": Statistics,
    "Normalize": Normalize,
}
# What operations made of convolutions consist of (`pipeline/operations/`); no file contains them.
PARTS: dict[str, type[Operation]] = {
    "Present": Present,
    "ReplaceMissing": ReplaceMissing,
    "OnlyFinite": OnlyFinite,
    "MaskCertainty": MaskCertainty,
    "Inside": Inside,
    "LocalStatistics": LocalStatistics,
    "NormalizedCorrelation": NormalizedCorrelation,
    "Ridges": Ridges,
    "RidgeMaxima": RidgeMaxima,
    "SlopeProducts": SlopeProducts,
    "WindowedTensor": WindowedTensor,
    "StructureTensor": StructureTensor,
    "HessianTensor": HessianTensor,
    "RichardsonLucy": RichardsonLucy,
}


def make_operation(node: Node, inputs: Sequence[Shape]) -> Operation:
    """The operation at a node, for inputs of known shape.

    Raises: UnknownNameError for an operation that is not known, SpecError and ShapeError.

    >>> pool = make_operation(Node("pool", "MaxPooling3D", ("x",)), [Shape(9, 8, 7, 2)])
    >>> pool.shape
    Shape(depth=4, height=4, width=3, channels=2)
    """
    known = next(
        (t[node.operation] for t in (OPERATIONS, INNER, PARTS) if node.operation in t), None
    )
    if known is None:
        raise unknown_operation(node)
    return known(node, inputs)


def unknown_operation(node: Node) -> SpecError:
    """The error for a node whose operation is not known."""
    error = unknown_name("operation", node.operation, OPERATIONS)
    return type(error)(f"node '{node.name}': {error}")

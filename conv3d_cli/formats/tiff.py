"""TIFF: being written."""

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import VolumeFormat


def _missing(path, *_, **__):
    raise FormatError(f"cannot handle {path}")


FORMAT = VolumeFormat(
    "TIFF", (".ome.tif", ".ome.tiff", ".tif", ".tiff"), "", _missing, _missing, lambda letters, channels: letters
)

"""Zeiss CZI (ZISRAW), read only.

A directory lists the subblocks: tiles of a plane with their place along each dimension. Tiles at
the full resolution are put side by side into the plane of their scene; a later one covers an
earlier one. Smaller copies of tiles (a pyramid) are left out.

Source: Zeiss, "ZISRAW (CZI) File Format", DS_ZISRAW-FileFormat 1.2.2.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import MICROSCOPE
from conv3d_cli.formats.codecs import need_zstd
from conv3d_cli.formats.microscope import CZI
from conv3d_cli.formats.microscope.images import chosen, file_errors, grid_of
from conv3d_cli.formats.planes import PlaneReader
from conv3d_cli.formats.tiff.compressed import unpack_zstd
from conv3d_cli.formats.tiff.images import Listed
from conv3d_cli.formats.tiff.pictures import check_picture
from conv3d_cli.formats.xml import parse_xml
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.parts import split_part
from conv3d_cli.system.room import require_room

SEGMENT = 32  # bytes before the data of a segment
ENTRY = struct.Struct("<2siqii2x4xi")  # schema, pixels, position, part, compression, dimensions
DIMENSION = struct.Struct("<4siifi")  # name, start, size, coordinate, stored size
MAX_ENTRIES = 5_000_000
MAX_XML = 256 << 20
MAX_SIDE = 1 << 20  # voxels along a row or column of a plane
# dtype, and samples of a pixel
PIXELS = {
    0: ("u1", 1),
    1: ("<u2", 1),
    2: ("<f4", 1),
    3: ("u1", 3),
    4: ("<u2", 3),
    8: ("<f4", 3),
    9: ("u1", 4),
    12: ("<i4", 1),
    13: ("<f8", 1),
}
RAW, JPEG, LZW, JPEG_XR, ZSTD0, ZSTD1 = 0, 1, 2, 4, 5, 6
CODECS = {JPEG: "JPEG", LZW: "LZW", JPEG_XR: "JPEG XR", ZSTD0: "zstd", ZSTD1: "zstd"}
BATCH = "tvihrb"  # time, view, illumination, phase, rotation, block: the batch axes, slowest first


@dataclass(frozen=True)
class Tile:
    """A subblock.

    position : int          of its segment in the file
    starts, sizes : dict    along each dimension, in voxels of the full resolution
    """

    position: int
    pixels: int
    compression: int
    starts: dict[str, int]
    sizes: dict[str, int]
    full: bool


def open_czi(name: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a scene of a CZI file: the first, or that of FILE::NUMBER or FILE::NAME.

    axes : str or None      must be the file's own if it is given
    Raises: FormatError if it is missing, damaged, in several files, or packed in an unknown way.
    """
    path, part = split_part(name)
    size = check_input(path)
    file = open(path, "rb")  # noqa: SIM115 - the reader closes it
    try:
        with file_errors(path, "CZI"):
            return _open(file, name, path, part, size, axes)
    except BaseException:
        file.close()
        raise


def _open(
    file: BinaryIO, name: str, path: str, part: str, size: int, axes: str | None
) -> VolumeReader:
    tiles, xml = _contents(file, path, size)
    tree = _metadata(xml, path)
    scenes = sorted({tile.starts.get("S", 0) for tile in tiles})
    named = _scene_names(tree)
    by_scene = {s: [t for t in tiles if t.starts.get("S", 0) == s] for s in scenes}
    listed = [Listed(named.get(s, ""), _extent(by_scene[s])) for s in scenes]
    number, notes = chosen(listed, part, path)
    own = by_scene[scenes[number]]
    kinds = {tile.pixels for tile in own}
    if len(kinds) > 1 or not kinds <= PIXELS.keys():
        raise FormatError(
            f"cannot read {path}: its voxels are of type {', '.join(map(str, sorted(kinds)))}; "
            "an image of one type of real numbers is read: split its channels in ZEN"
        )
    _check_codecs({tile.compression for tile in own}, path)
    kind, samples = PIXELS[own[0].pixels]
    stored = np.dtype(kind)
    values = {d: sorted({t.starts[d] for t in own if d in t.starts}) for d in _dimensions(own)}
    sizes = {d.lower(): len(found) for d, found in values.items()}
    height, width = listed[number].shape[-2:]
    if max(height, width) > MAX_SIDE:
        raise FormatError(f"cannot read {path}: damaged CZI: a plane of {height} x {width} voxels")
    letters = "".join(a for a in BATCH if sizes.get(a, 1) > 1)
    letters += "c" if sizes.get("c", 1) > 1 else ""
    letters += "zyx" + ("s" if samples > 1 else "")
    full = {**sizes, "z": sizes.get("z", 1), "y": height, "x": width, "s": samples}
    if axes is not None and axes != letters:
        raise FormatError(f"cannot read {name}: CZI names its axes, {letters}; received {axes}")
    header = VolumeHeader(
        Axes(letters, tuple(full[a] for a in letters)),
        stored.newbyteorder("="),
        grid_of(_spacing(tree), full["z"] > 1, notes),
        format=CZI.name,
        facts=Facts(
            time_step=_time_step(tree) if "t" in letters else None,
            channel_names=_channel_names(tree, full.get("c", 1)) if samples == 1 else (),
            provenance=(MICROSCOPE,),
        ),
    )
    plane = _Planes(file, path, own, values, header, stored, samples)
    notes += plane.notes()
    together = samples > 1 and "c" not in letters
    tile = max(t.sizes["Y"] * t.sizes["X"] for t in own) * samples * stored.itemsize
    bytes_held = height * width * samples * stored.itemsize + 3 * tile
    kinds_of = sorted({CODECS.get(t.compression, "none") for t in own})
    reader = PlaneReader(
        name,
        header,
        plane.rgb if together else plane.one,
        bytes_held,
        together,
        file.close,
        {"tiles": str(len(own)), "codec": ", ".join(kinds_of)},
    )
    reader.notes = tuple(notes)
    return reader


# --------------------------------------------------------------------------------------------------
# The container


def _segment(file: BinaryIO, position: int, kind: bytes, size: int, count: int) -> bytes:
    """The first bytes of a segment's data. Raises: FormatError if it is not of this kind."""
    if not 0 <= position <= size - SEGMENT:
        raise FormatError(f"cannot read {file.name}: truncated or damaged CZI: no segment {kind!r}")
    file.seek(position)
    head = file.read(SEGMENT)
    if head[:16].rstrip(b"\0") != kind:
        raise FormatError(f"cannot read {file.name}: damaged CZI: no segment {kind!r}")
    return file.read(min(count, size))


def _contents(file: BinaryIO, path: str, size: int) -> tuple[list[Tile], bytes]:
    """All tiles of the full resolution, and the metadata. Raises: FormatError."""
    head = _segment(file, 0, b"ZISRAWFILE", size, 80).ljust(80, b"\0")
    directory, metadata = struct.unpack_from("<2q", head, 52)
    if struct.unpack_from("<i", head, 68)[0]:
        raise FormatError(
            f"cannot read {path}: it was not closed by the microscope (update pending); open and "
            "save it in ZEN"
        )
    data = _segment(file, directory, b"ZISRAWDIRECTORY", size, 128)
    (count,) = struct.unpack_from("<i", data)
    if not 0 < count <= min(MAX_ENTRIES, size // ENTRY.size):
        raise FormatError(f"cannot read {path}: damaged CZI: its directory has {count} entries")
    tiles = []
    for _ in range(count):
        tile = _entry(file, path)
        if tile is not None and tile.full:
            tiles.append(tile)
    if not tiles:
        raise FormatError(f"cannot read {path}: it holds no image at the full resolution")
    xml = b""
    if metadata > 0:
        head = _segment(file, metadata, b"ZISRAWMETADATA", size, 256)
        (length,) = struct.unpack_from("<i", head)
        length = min(max(length, 0), MAX_XML, size)
        require_room(2 * length, "its XML", path)
        xml = file.read(length)
    return tiles, xml


def _entry(file: BinaryIO, path: str) -> Tile | None:
    """The next entry of the directory; None for one that is no tile."""
    fixed = file.read(ENTRY.size)
    if len(fixed) < ENTRY.size:
        raise FormatError(f"cannot read {path}: truncated: its directory ends early")
    schema, pixels, position, number, compression, count = ENTRY.unpack(fixed)
    if schema != b"DV" or not 0 < count <= 40:
        raise FormatError(f"cannot read {path}: damaged CZI: an entry of {count} dimensions")
    if number:
        raise FormatError(
            f"cannot read {path}: its tiles lie in other files, which are not read; save it as one "
            "file in ZEN"
        )
    starts, sizes, full = {}, {}, True
    data = file.read(DIMENSION.size * count)
    for name, start, extent, _, stored in DIMENSION.iter_unpack(data):
        key = name.rstrip(b"\0 ").decode("ascii", "replace")[:1].upper()
        starts[key], sizes[key] = start, extent
        full = full and (stored in (0, extent) or key not in "XY")
    if not {"X", "Y"} <= sizes.keys() or min(sizes["X"], sizes["Y"]) < 1:
        return None
    return Tile(position, pixels, compression, starts, sizes, full)


def _dimensions(tiles: list[Tile]) -> list[str]:
    """Dimensions that place a plane: not those within it, nor scenes and tiles."""
    return sorted({d for tile in tiles for d in tile.starts} - set("XYSM"))


def _extent(tiles: list[Tile]) -> tuple[int, ...]:
    """(D, H, W) of a scene."""
    sizes = []
    for d in "YX":
        low = min(tile.starts[d] for tile in tiles)
        sizes.append(max(tile.starts[d] + tile.sizes[d] for tile in tiles) - low)
    return (len({tile.starts.get("Z", 0) for tile in tiles}), *sizes)


def _check_codecs(found: set[int], path: str) -> None:
    """Raises: FormatError for a compression that cannot be unpacked here."""
    unknown = found - CODECS.keys() - {RAW}
    if unknown:
        raise FormatError(
            f"cannot read {path}: its tiles are packed in an unknown way (number {min(unknown)})"
        )
    if found & {JPEG, LZW, JPEG_XR}:
        try:
            import imagecodecs  # noqa: F401
        except ImportError as error:
            shown = ", ".join(sorted({CODECS[c] for c in found & {JPEG, LZW, JPEG_XR}}))
            raise FormatError(
                f"cannot read {path}: its compression ({shown}) needs imagecodecs: "
                "pip install 'conv3d[tiff]'"
            ) from error
    elif found & {ZSTD0, ZSTD1}:
        need_zstd(path, FormatError)


# --------------------------------------------------------------------------------------------------
# Planes


class _Planes:
    """The planes of a scene, put together of their tiles."""

    def __init__(
        self,
        file: BinaryIO,
        path: str,
        tiles: list[Tile],
        values: Mapping[str, list[int]],
        header: VolumeHeader,
        stored: np.dtype[Any],
        samples: int,
    ) -> None:
        self._file, self._path, self._header = file, path, header
        self._stored, self._samples = stored, samples
        self._top = min(tile.starts["Y"] for tile in tiles)
        self._left = min(tile.starts["X"] for tile in tiles)
        self._values, self._order = values, list(values)
        self._size = os.fstat(file.fileno()).st_size
        self._tiles: dict[tuple[int, ...], list[Tile]] = {}
        for tile in sorted(tiles, key=lambda t: t.starts.get("M", 0)):
            key = tuple(tile.starts.get(d, values[d][0]) for d in self._order)
            self._tiles.setdefault(key, []).append(tile)

    def notes(self) -> list[str]:
        """On what the file leaves open: missing planes, and tiles."""
        found = []
        whole = math.prod(len(v) for v in self._values.values())
        if len(self._tiles) < whole:
            found.append(
                f"{whole - len(self._tiles)} of its {whole} planes are missing: they are read as 0"
            )
        most = max(len(tiles) for tiles in self._tiles.values())
        if most > 1:
            found.append(
                f"its planes are of up to {most} tiles, put side by side as the file places them; "
                "they are not fused where they overlap, and 0 between them"
            )
        return found

    def _plane(self, n: int, depth: int, channel: int) -> Array:
        """(H, W, samples), in the order red, green, blue."""
        axes = self._header.axes
        batch = np.unravel_index(n, axes.batch_shape) if axes.batch_shape else ()
        where = {a.upper(): int(k) for a, k in zip(axes.batch_letters, batch, strict=True)}
        where |= {"Z": depth, "C": channel}
        key = tuple(self._values[d][where.get(d, 0)] for d in self._order)
        _, _, height, width, _ = self._header.shape
        found = np.zeros((height, width, self._samples), self._stored)
        for tile in self._tiles.get(key, ()):
            y, x = tile.starts["Y"] - self._top, tile.starts["X"] - self._left
            rows, columns = tile.sizes["Y"], tile.sizes["X"]
            with file_errors(self._path, "CZI"):
                found[y : y + rows, x : x + columns] = self._decode(tile)
        if self._samples > 2:
            found[..., :3] = found[..., 2::-1].copy()  # stored as blue, green, red
        return found

    def one(self, n: int, depth: int, channel: int) -> Array:
        return self._plane(n, depth, channel // self._samples)[..., channel % self._samples]

    def rgb(self, n: int, depth: int, channel: int) -> Array:
        return self._plane(n, depth, 0)

    def _decode(self, tile: Tile) -> Array:
        """The voxels of a tile, (H, W, samples). Raises: FormatError."""
        head = _segment(self._file, tile.position, b"ZISRAWSUBBLOCK", self._size, 16)
        metadata, _, length = struct.unpack_from("<iiq", head)
        (count,) = struct.unpack_from("<i", self._file.read(ENTRY.size), ENTRY.size - 4)
        entry = 16 + ENTRY.size + DIMENSION.size * count
        start = tile.position + SEGMENT + max(256, entry) + metadata
        shape = (tile.sizes["Y"], tile.sizes["X"], self._samples)
        wanted = math.prod(shape) * self._stored.itemsize
        if min(metadata, length, count) < 0 or start + length > self._size:
            raise FormatError(f"cannot read {self._path}: truncated or damaged: a tile ends early")
        self._file.seek(start)
        data = self._file.read(min(length, 2 * wanted + 4096))
        values = _unpack(data, tile.compression, wanted, self._stored)
        if isinstance(values, np.ndarray):
            if values.shape[:2] != shape[:2] or values.size != math.prod(shape):
                raise FormatError(
                    f"cannot read {self._path}: damaged: a tile of {values.shape}, not {shape}"
                )
            # decoders give red, green, blue
            values = values.reshape(shape)
            return values[..., [2, 1, 0, 3][: shape[2]]] if shape[2] > 2 else values
        if len(values) < wanted:
            raise FormatError(
                f"cannot read {self._path}: truncated or damaged: a tile of {len(values)} bytes, "
                f"not {wanted}"
            )
        return np.frombuffer(values, self._stored, math.prod(shape)).reshape(shape)


def _unpack(data: bytes, compression: int, wanted: int, stored: np.dtype[Any]) -> Any:
    """The bytes of a tile, or its voxels as an array if a decoder of images is used."""
    if compression == RAW:
        return data
    if compression in (ZSTD0, ZSTD1):
        interleaved = False
        if compression == ZSTD1:
            # a byte with the size of a header, which may say that low and high bytes are apart
            size = data[0] if data else 0
            interleaved = size == 3 and data[1] == 1 and bool(data[2] & 1)
            data = data[max(size, 1) :]
        found = unpack_zstd(data, wanted)
        if interleaved and stored.itemsize == 2:
            half = len(found) // 2
            found = np.frombuffer(found[: 2 * half], np.uint8).reshape(2, half).T.tobytes()
        return found
    import imagecodecs

    if compression == LZW:
        return imagecodecs.lzw_decode(data, out=wanted)
    check_picture(data, 2 * wanted + (1 << 20))
    if compression == JPEG:
        return imagecodecs.jpeg8_decode(data)
    return imagecodecs.jpegxr_decode(data)


# --------------------------------------------------------------------------------------------------
# Metadata


def _metadata(xml: bytes, path: str) -> Any:
    """The root of the XML; an empty element if it cannot be read. Raises: MemoryLimitError."""
    from xml.etree import ElementTree

    try:
        return parse_xml(xml.rstrip(b"\0"), path)
    except (ElementTree.ParseError, ValueError):
        return ElementTree.Element("none")


def _number(element: Any) -> float | None:
    try:
        return float(element.text)
    except (AttributeError, TypeError, ValueError):
        return None


def _spacing(tree: Any) -> list[float | None]:
    """(D, H, W) in um; the file tells metres."""
    found: list[float | None] = []
    for axis in "ZYX":
        value = _number(tree.find(f".//Scaling/Items/Distance[@Id='{axis}']/Value"))
        found.append(None if value is None else value * 1e6)
    return found


def _time_step(tree: Any) -> tuple[float, str] | None:
    step = _number(tree.find(".//Information/Image/Dimensions/T/Positions/Interval/Increment"))
    return (step, "s") if step is not None and 0 < step < 1e12 else None


def _channel_names(tree: Any, count: int) -> tuple[str, ...]:
    channels = tree.findall(".//Information/Image/Dimensions/Channels/Channel")
    names = tuple(str(channel.get("Name", "")) for channel in channels)
    return names if len(names) == count and any(names) else ()


def _scene_names(tree: Any) -> dict[int, str]:
    found = {}
    for scene in tree.findall(".//Information/Image/Dimensions/S/Scenes/Scene"):
        index = str(scene.get("Index", ""))
        if index.isascii() and index.isdigit():
            found[int(index)] = str(scene.get("Name", ""))
    return found

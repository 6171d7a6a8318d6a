"""Small files of microscopes, written by hand from the published layouts: CZI, LIF and ND2."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

CZI_PIXELS = {("uint8", 1): 0, ("uint16", 1): 1, ("float32", 1): 2, ("uint8", 3): 3}

# --------------------------------------------------------------------------------------------------
# CZI: ZISRAW, segments of 32 bytes and their data


def _segment(kind: bytes, data: bytes) -> bytes:
    size = -(-len(data) // 32) * 32
    return struct.pack("<16sqq", kind, size, len(data)) + data.ljust(size, b"\0")


def _entry(
    pixels: int, position: int, compression: int, place: dict[str, tuple[int, int, int]]
) -> bytes:
    """A directory entry: place gives start, size and stored size along each dimension."""
    data = struct.pack("<2siqii2x4xi", b"DV", pixels, position, 0, compression, len(place))
    for name, (start, size, stored) in place.items():
        data += struct.pack("<4siifi", name.encode(), start, size, float(start), stored)
    return data


def czi(
    path: Path,
    tiles: list[tuple[dict[str, int], np.ndarray]],
    xml: str = "<ImageDocument/>",
    pack: Any = bytes,
    compression: int = 0,
    zoom: int = 1,
) -> str:
    """A CZI file.

    tiles : (starts, (Y, X) or (Y, X, 3) voxels)    colours as blue, green, red
    zoom : int      size of a stored voxel; above 1 the tiles are of a pyramid
    """
    metadata = xml.encode()
    head = bytearray(80)
    content = b""
    entries = []
    base = 32 + 512
    for starts, values in tiles:
        samples = values.shape[2] if values.ndim == 3 else 1
        sizes = {"Y": values.shape[0], "X": values.shape[1]}
        place = {
            name: (start, sizes.get(name, 1) * (zoom if name in sizes else 1), sizes.get(name, 1))
            for name, start in starts.items()
        }
        pixels = CZI_PIXELS[(values.dtype.name, samples)]
        position = base + len(content)
        entry = _entry(pixels, position, compression, place)
        data = pack(values.tobytes())
        note = b"<METADATA/>"
        fixed = struct.pack("<iiq", len(note), 0, len(data)) + entry
        content += _segment(b"ZISRAWSUBBLOCK", fixed.ljust(256, b"\0") + note + data)
        entries.append(entry)
    directory = base + len(content)
    content += _segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(entries)) + b"".join(entries))
    where = base + len(content)
    content += _segment(b"ZISRAWMETADATA", struct.pack("<ii248x", len(metadata), 0) + metadata)
    struct.pack_into("<2i", head, 0, 1, 0)
    struct.pack_into("<2q", head, 52, directory, where)
    path.write_bytes(_segment(b"ZISRAWFILE", bytes(head).ljust(512, b"\0")) + content)
    return str(path)


# --------------------------------------------------------------------------------------------------
# LIF: a header of XML in UTF-16, and memory blocks

LIF_IDS = {"X": 1, "Y": 2, "Z": 3, "T": 4, "M": 10}


def lif(
    path: Path,
    images: dict[str, tuple[str, np.ndarray]],
    steps: dict[str, float] | None = None,
) -> str:
    """A LIF file: for each image its axes, slowest first ("TZCYX"), and its voxels.

    steps : distance of neighbours along an axis, in metres or seconds
    """
    steps = steps or {}
    elements, blocks = [], []
    for number, (name, (letters, values)) in enumerate(images.items()):
        strides = dict(zip(letters, values.strides, strict=True))
        sizes = dict(zip(letters, values.shape, strict=True))
        bits = values.dtype.itemsize * 8
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{bits}" '
            f'NameOfMeasuredQuantity="" Min="0" Max="255" Unit="" LUTName="dye {c}" '
            f'IsLUTInverted="0" BytesInc="{c * strides.get("C", 0)}" BitInc="0"/>'
            for c in range(sizes.get("C", 1))
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{LIF_IDS[a]}" NumberOfElements="{sizes[a]}" Origin="0" '
            f'Length="{steps.get(a, 0) * (sizes[a] - 1)!r}" Unit="{"s" if a == "T" else "m"}" '
            f'BytesInc="{strides[a]}" BitInc="0"/>'
            for a in letters[::-1]
            if a != "C"
        )
        elements.append(
            f'<Element Name="{name}" UniqueID="u{number}"><Data><Image><ImageDescription>'
            f"<Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions>"
            "</ImageDescription></Image></Data>"
            f'<Memory Size="{values.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
        )
        ident = f"MemBlock_{number}".encode("utf-16-le")
        blocks.append(
            struct.pack("<IIBQBI", 0x70, 0, 0x2A, values.nbytes, 0x2A, len(ident) // 2)
            + ident
            + values.tobytes()
        )
    text = (
        '<LMSDataContainerHeader Version="2"><Element Name="project" UniqueID="p"><Data>'
        f"<Experiment/></Data><Children>{''.join(elements)}</Children></Element>"
        "</LMSDataContainerHeader>"
    ).encode("utf-16-le")
    head = struct.pack("<IIBI", 0x70, len(text) + 5, 0x2A, len(text) // 2)
    path.write_bytes(head + text + b"".join(blocks))
    return str(path)


# --------------------------------------------------------------------------------------------------
# ND2 version 3: chunks with names, a map of them at the end, and "lite variants" as metadata


def _variant(name: str, value: Any) -> bytes:
    title = (name + "\0").encode("utf-16-le")
    kinds: dict[type, tuple[int, str]] = {bool: (1, "<B"), int: (3, "<I"), float: (6, "<d")}
    head = bytes([0, len(title) // 2]) + title
    if isinstance(value, dict):
        inner = b"".join(_variant(key, one) for key, one in value.items())
        size = len(head) + 12 + len(inner)
        return bytes([11]) + head[1:] + struct.pack("<IQ", len(value), size) + inner + bytes(8 * len(value))  # fmt: skip
    if isinstance(value, str):
        return bytes([8]) + head[1:] + (value + "\0").encode("utf-16-le")
    if isinstance(value, bytes):
        return bytes([9]) + head[1:] + struct.pack("<Q", len(value)) + value
    code, form = kinds[type(value)]
    return bytes([code]) + head[1:] + struct.pack(form, value)


def _loop(kind: int, parameters: dict[str, Any], inner: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"eType": kind, "uLoopPars": parameters}
    if kind == 2:
        found["pItemValid"] = b"\1" * parameters["uiCount"]
    if inner:
        found["ppNextLevelEx"] = {"": inner}
    return found


def nd2(
    path: Path,
    values: np.ndarray,
    names: tuple[str, ...] = (),
    missing: int = -1,
    pack: Any = None,
    described: bytes = b"",
) -> str:
    """An ND2 file of values (T, P, Z, C, Y, X), 0.25 um a pixel, 1.5 um a plane, 2 s a time point.

    missing : int       number of a frame that is left out
    pack : callable     packs the bytes of a frame, where the file says that it is packed by zlib
    described : bytes   zlib's, in place of the metadata
    """
    t, p, z, c, y, x = values.shape
    bits = values.dtype.itemsize * 8
    attributes = {
        "uiWidth": x, "uiWidthBytes": x * c * bits // 8, "uiHeight": y, "uiComp": c, "uiBpcInMemory": bits,
        "uiBpcSignificant": bits, "uiSequenceCount": t * p * z,
        "eCompression": 0 if pack else 2,
    }  # fmt: skip
    planes = {
        f"a{k}": {
            "uiCompCount": 1,
            "sDescription": f"dye {k}",
            "uiSampleIndex": k,
            "uiColor": 255,
            "pFluorescentProbe": {"uiCount": 0},
        }
        for k in range(c)
    }
    picture = {
        "bCalibrated": True, "dCalibration": 0.25,
        "sPicturePlanes": {"uiCount": c, "uiSampleCount": 1, "sPlaneNew": planes},
    }  # fmt: skip
    loop = _loop(4, {"uiCount": z, "dZStep": 1.5, "dZLow": 0.0, "dZHigh": 1.5 * (z - 1), "iType": 0, "bAbsolute": False}, None)  # fmt: skip
    if p > 1:
        points = {
            f"i{k:010}": {"dPosX": 0.0, "dPosY": 0.0, "dPosZ": 0.0, "dPFSOffset": 0.0, "dPosName": names[k] if names else ""}
            for k in range(p)
        }  # fmt: skip
        loop = _loop(2, {"uiCount": p, "Points": points, "bRelativeXY": False}, loop)
    if t > 1:
        loop = _loop(1, {"uiCount": t, "dPeriod": 2000.0, "dStart": 0.0, "dDuration": 0.0}, loop)
    out, places = b"", {}

    def chunk(name: bytes, data: bytes, room: int = 0) -> None:
        nonlocal out
        if name.endswith(b"!") and len(name) < 32:
            places[name] = (len(out), len(data))
        shown = name.ljust(max(room, len(name)), b"\0")
        out += struct.pack("<IIQ", 0x0ABECEDA, len(shown), len(data)) + shown + data

    chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"))
    chunk(b"ImageAttributesLV!", _variant("SLxImageAttributes", attributes))
    packed = bytes([76, 0]) + bytes(10) + described
    chunk(
        b"ImageMetadataSeqLV|0!",
        packed if described else _variant("SLxPictureMetadata", picture),
    )
    chunk(b"ImageMetadataLV!", _variant("SLxExperiment", loop))
    frames = values.reshape(t * p * z, c, y, x).transpose(0, 2, 3, 1)
    for number, frame in enumerate(frames):
        if number != missing:
            voxels = np.ascontiguousarray(frame).tobytes()
            data = struct.pack("<d", 0.0) + (pack(voxels) if pack else voxels)
            chunk(f"ImageDataSeq|{number}!".encode(), data, 4072)
    where = len(out)
    table = b"".join(name + struct.pack("<QQ", *place) for name, place in places.items())
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", where)
    chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", table + end)
    path.write_bytes(out)
    return str(path)

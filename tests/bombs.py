"""Small files that unpack to `SIZE` bytes, or whose headers take as much: for every format.

`BOMBS` has a function for each, which writes one file into a folder and returns its name. The
volumes that they promise are small, so that only a bound on what is unpacked refuses them.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import microscopes
import numpy as np

from conv3d_cli.formats.codecs import zstd_module

SIZE = 1 << 29
EDGE = 8  # voxels along each axis of a volume of float32
VOXELS = np.zeros((EDGE, EDGE, EDGE), np.float32)
PIECE = bytes(1 << 20)
LARGE = 13_000  # edge of the largest pictures that Pillow decodes


@lru_cache
def deflated(wbits: int = zlib.MAX_WBITS, head: bytes = b"") -> bytes:
    """`head` and zeros, as one stream."""
    stream = zlib.compressobj(1, zlib.DEFLATED, wbits)
    parts = [stream.compress(head), *(stream.compress(PIECE) for _ in range(SIZE >> 20))]
    return b"".join([*parts, stream.flush()])


def deflated_zeros(most: int) -> bytes:
    return deflated()


# --------------------------------------------------------------------------------------------------
# HDF5


def _hdf5(
    name: str, dataset: str, compression: str, packed: Callable[[], bytes], filled: Any
) -> Any:
    def make(folder: Path) -> str:
        import h5py

        with h5py.File(folder / name, "w") as file:
            made = file.create_dataset(
                dataset, VOXELS.shape, VOXELS.dtype, chunks=VOXELS.shape, compression=compression
            )
            made.id.write_direct_chunk((0, 0, 0), packed())
            filled(file)
        return name

    return make


def _imaris_rest(file: Any) -> None:
    group = file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"]
    for axis in "XYZ":
        group.attrs[f"ImageSize{axis}"] = np.array([b"8"])


@lru_cache
def lzf() -> bytes:
    """LZF: a zero, then copies of 264 bytes from one before."""
    return b"\0\0" + b"\xe0\xff\0" * (SIZE // 264)


IMARIS_DATA = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"


def minc2(folder: Path) -> str:
    import h5py

    with h5py.File(folder / "gzip.mnc2", "w") as file:
        image = file.create_dataset(
            "minc-2.0/image/0/image",
            VOXELS.shape,
            np.int16,
            chunks=VOXELS.shape,
            compression="gzip",
        )
        image.id.write_direct_chunk((0, 0, 0), deflated())
        image.attrs["dimorder"] = np.bytes_("zspace,yspace,xspace")
        image.attrs["valid_range"] = np.array([0.0, 1.0])
        for name, value in (("image-max", 1.0), ("image-min", 0.0)):
            file[f"minc-2.0/image/0/{name}"] = value
        for axis, cosines in zip("zyx", np.eye(3), strict=True):
            dim = file.create_dataset(f"minc-2.0/dimensions/{axis}space", data=np.int32(0))
            dim.attrs.update({"length": np.int32(EDGE), "start": 0.0, "step": 1.0})
            dim.attrs.update({"spacing": np.bytes_("regular__"), "direction_cosines": cosines})
    return "gzip.mnc2"


# --------------------------------------------------------------------------------------------------
# Microscopes and TIFF


def czi_zstd(folder: Path) -> str:
    zstd = zstd_module()
    packer = zstd.ZstdCompressor(1)
    bomb = b"".join([*(packer.compress(PIECE) for _ in range(SIZE >> 20)), packer.flush()])
    tiles = [({"X": 0, "Y": 0, "Z": 0, "M": 0}, VOXELS[0].astype(np.uint16))]
    return Path(microscopes.czi(folder / "a.czi", tiles, pack=lambda _: bomb, compression=5)).name


def czi_xml(folder: Path) -> str:
    tiles = [({"X": 0, "Y": 0, "Z": 0, "M": 0}, VOXELS[0].astype(np.uint16))]
    xml = "<D>" + "<a/>" * (48 << 18) + "</D>"
    return Path(microscopes.czi(folder / "xml.czi", tiles, xml)).name


def lif_xml(folder: Path) -> str:
    name = Path(microscopes.lif(folder / "xml.lif", {"a": ("ZYX", VOXELS)})).name
    data = (folder / name).read_bytes()
    length = struct.unpack_from("<I", data, 9)[0]
    text = data[13 : 13 + 2 * length].decode("utf-16-le")
    text = text.replace("<Children>", "<Children>" + "<a/>" * (12 << 20), 1)
    packed = text.encode("utf-16-le")
    head = struct.pack("<IIBI", 0x70, len(packed) + 5, 0x2A, len(text))
    (folder / name).write_bytes(head + packed + data[13 + 2 * length :])
    return name


def nd2_frame(folder: Path) -> str:
    values = np.zeros((1, 1, EDGE, 1, EDGE, EDGE), np.uint16)
    return Path(microscopes.nd2(folder / "a.nd2", values, pack=deflated_zeros)).name


def nd2_metadata(folder: Path) -> str:
    values = np.zeros((1, 1, EDGE, 1, EDGE, EDGE), np.uint16)
    name = Path(microscopes.nd2(folder / "meta.nd2", values, described=deflated())).name
    return name


def _tiff(name: str, code: int, pack: Callable[[], bytes], dtype: Any = np.float32) -> Any:
    """A page of EDGE x EDGE voxels in one strip, packed by a codec of TIFF's number `code`."""

    def make(folder: Path) -> str:
        data = pack()
        bits = np.dtype(dtype).itemsize * 8
        kind = {"f": 3, "u": 1}[np.dtype(dtype).kind]
        tags = [(256, EDGE), (257, EDGE), (258, bits), (259, code), (262, 1), (273, 8)]
        tags += [(277, 1), (278, EDGE), (279, len(data)), (339, kind)]
        where = 8 + len(data) + len(data) % 2
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<2sHI", b"II", 42, where) + data + b"\0" * (len(data) % 2))
            file.write(struct.pack("<H", len(tags)) + entries + bytes(4))
        return name

    return make


def lzma_stream() -> bytes:
    import lzma

    stream = lzma.LZMACompressor(preset=0)
    return b"".join([*(stream.compress(PIECE) for _ in range(SIZE >> 20)), stream.flush()])


def jpeg_head(edge: int = 65500) -> bytes:
    """The head of a JPEG of so many rows and columns of grey voxels, which breaks off."""
    tables = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    frame = struct.pack(">HHBHHB3B", 0xFFC0, 11, 8, edge, edge, 1, 1, 0x11, 0)
    codes = b"\xff\xc4\0\x14\0" + bytes([1] + [0] * 15) + b"\0"
    codes += b"\xff\xc4\0\x14\x10" + bytes([1] + [0] * 15) + b"\0"
    return b"\xff\xd8" + tables + frame + codes + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(99)


def ome_xml(folder: Path) -> str:
    """OME-TIFF that declares one plane, with annotations of nothing."""
    import tifffile

    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="float" SizeX="8" '
        'SizeY="8" SizeZ="1" SizeC="1" SizeT="1"><TiffData/></Pixels></Image>'
        f"<StructuredAnnotations>{'<a/>' * (8 << 20)}</StructuredAnnotations></OME>"
    )
    tifffile.imwrite(folder / "xml.ome.tif", VOXELS[0], description=text, metadata=None)
    return "xml.ome.tif"


def czi_jpeg(folder: Path) -> str:
    tiles = [({"X": 0, "Y": 0, "Z": 0, "M": 0}, VOXELS[0].astype(np.uint8))]
    made = microscopes.czi(folder / "j.czi", tiles, pack=lambda _: jpeg_head(), compression=1)
    return Path(made).name


def dicom(folder: Path) -> str:
    """One image, in a file that is one deflate stream."""
    import pydicom
    from pydicom.data import get_testdata_file

    data = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    written = io.BytesIO()
    data.save_as(written, enforce_file_format=True)
    start = 144 + int.from_bytes(written.getvalue()[140:144], "little")
    content = zlib.decompress(written.getvalue()[start:], -zlib.MAX_WBITS)
    packed = deflated(-zlib.MAX_WBITS, content)
    (folder / "a.dcm").write_bytes(written.getvalue()[:start] + packed)
    return "a.dcm"


def _packed_dicom(name: str, syntax: str, pack: Callable[[], bytes]) -> Any:
    """One image, packed in a frame of an encapsulated pixel sequence."""

    def make(folder: Path) -> str:
        import pydicom
        from pydicom.data import get_testdata_file
        from pydicom.encaps import encapsulate

        data = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = encapsulate([pack()])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.BitsAllocated = data.BitsStored = 8 if "jpeg" in name else 16
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
        data.save_as(folder / name, enforce_file_format=True)
        return name

    return make


def rle() -> bytes:
    """RLE of DICOM: two segments of zeros, 128 bytes of each two."""
    head = struct.pack("<16I", 2, 64, 64 + SIZE // 64, *[0] * 13)
    return head + b"\x81\0" * (SIZE // 64)


def jpeg2000_head() -> bytes:
    """The head of a JPEG 2000 codestream of `LARGE` x `LARGE` grey voxels in one tile."""
    sizes = (LARGE, LARGE, 0, 0) * 2
    size = struct.pack(">HH8IHBBB", 41, 0, *sizes, 1, 15, 1, 1)
    style = struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, 5, 4, 4, 0, 1)
    steps = struct.pack(">HB", 19, 0x40) + bytes(16)
    tile = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1) + b"\xff\x93" + bytes(64)
    packed = b"\xff\x4f\xff\x51" + size + b"\xff\x52" + style + b"\xff\x5c" + steps + tile
    return packed + b"\xff\xd9"


def zarr_attributes(folder: Path) -> str:
    """A Zarr array of format 2 whose metadata have a list of lists."""
    store = folder / "many.zarr"
    store.mkdir(exist_ok=True)
    (store / ".zarray").write_text(
        '{"zarr_format": 2, "shape": [8, 8, 8], "chunks": [8, 8, 8], "dtype": "<f4", '
        '"compressor": null, "fill_value": 0, "order": "C", "filters": null}'
    )
    (store / ".zattrs").write_text('{"a": [' + "[]," * 5_000_000 + "1]}")
    return "many.zarr"


def zarr_index(folder: Path) -> str:
    """A Zarr array whose shard has a chunk for each voxel, and an index of `SIZE` bytes.

    The file of the shard is sparse: it takes nothing of the disk.
    """
    file = folder / "index.zarr" / "c" / "0" / "0" / "0"
    file.parent.mkdir(parents=True, exist_ok=True)
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [1, 1, 1], "index_location": "end", "index_codecs": index}
    (folder / "index.zarr" / "zarr.json").write_text(
        json.dumps(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": VOXELS.shape,
                "data_type": "uint8",
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [512, 256, SIZE >> 21]},
                },
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0,
                "codecs": [
                    {
                        "name": "sharding_indexed",
                        "configuration": {**sharding, "codecs": [{"name": "bytes"}]},
                    }
                ],
            }
        )
    )
    with open(file, "wb") as opened:
        opened.truncate(SIZE + 4)
    return "index.zarr"


def _zip_list(name: str, count: int = 700_000) -> Any:
    """A zip file that lists as many files and holds one, of no bytes."""

    def make(folder: Path) -> str:
        inside = b"zarr.json" if "zarr" in name else b"data.pkl"
        common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, len(inside), 0)
        data = b"PK\3\4" + common + inside
        entry = b"PK\1\2" + struct.pack("<H", 20) + common + bytes(14) + inside
        size, where = count * len(entry), len(data)
        end = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, where)
        end += b"PK\6\7" + struct.pack("<IQI", 0, where + size, 1)
        end += b"PK\5\6" + struct.pack("<4H2IH", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)
        (folder / name).write_bytes(data + entry * count + end)
        return name

    return make


# --------------------------------------------------------------------------------------------------
# Headers


def _lines(name: str, head: str, line: str, count: int, tail: str = "") -> Any:
    def make(folder: Path) -> str:
        with open(folder / name, "w") as file:
            file.write(head)
            for first in range(0, count, 1 << 16):
                stop = min(count, first + (1 << 16))
                file.write("".join(line % n for n in range(first, stop)))
            file.write(tail)
        return name

    return make


def _one_line(name: str, head: str, packed: bool = False) -> Any:
    def make(folder: Path) -> str:
        with gzip.open(folder / name, "wb", 1) if packed else open(folder / name, "wb") as file:
            file.write(head.encode())
            for _ in range(SIZE >> 20):
                file.write(b"x" * (1 << 20))
        return name

    return make


NRRD = "NRRD0004\ntype: float\ndimension: 3\nsizes: 8 8 8\nendian: little\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_FLOAT\n"
MIF = "mrtrix image\ndim: 8,8,8\nvox: 1,1,1\nlayout: -0,-1,+2\ndatatype: Float32LE\n"
BOMBS: dict[str, Callable[[Path], str]] = {
    "HDF5 gzip": _hdf5("gzip.h5", "x", "gzip", deflated, lambda file: None),
    "HDF5 lzf": _hdf5("lzf.h5", "x", "lzf", lzf, lambda file: None),
    "Imaris gzip": _hdf5("gzip.ims", IMARIS_DATA, "gzip", deflated, _imaris_rest),
    "MINC 2 gzip": minc2,
    "CZI zstd": czi_zstd,
    "CZI XML": czi_xml,
    "LIF XML": lif_xml,
    "ND2 frame": nd2_frame,
    "ND2 metadata": nd2_metadata,
    "TIFF deflate": _tiff("deflate.tif", 8, deflated),
    "TIFF LZMA": _tiff("lzma.tif", 34925, lzma_stream),
    "TIFF PackBits": _tiff("packbits.tif", 32773, lambda: b"\x81\0" * (SIZE >> 7)),
    "TIFF JPEG": _tiff("jpeg.tif", 7, jpeg_head, np.uint8),
    "NRRD line": _one_line("line.nrrd", NRRD + "content: "),
    "NRRD pairs": _lines("pairs.nrrd", NRRD, "%x:=\n", 2_000_000, "\n"),
    "NRRD unknown": _lines("unknown.nrrd", NRRD, "%x: \n", 2_000_000, "\n"),
    "MetaImage line": _one_line("line.mha", META + "Comment = "),
    "MetaImage fields": _lines("fields.mha", META, "a%x=\n", 3_000_000),
    "MRtrix line": _one_line("line.mif", MIF + "comments: "),
    "MRtrix entries": _lines("entries.mif", MIF, "%x:\n", 6_000_000, "file: . 0\nEND\n"),
    "MRtrix packed": _one_line("line.mif.gz", MIF + "comments: ", packed=True),
    "AFNI": _lines("a+orig.HEAD", "", "type=string-attribute\nname=%x\ncount=1\n'~\n", 360_000),
    "PAR": _lines("a.PAR", "", ".    a%x   :   1\n", 790_000),
    "NRRD many pairs": _lines("many.nrrd", NRRD, "%x:=\n", 49_999, "\n"),
    "Zarr attributes": zarr_attributes,
    "Zarr index": zarr_index,
    "Zarr zip": _zip_list("list.zarr.zip"),
    "PyTorch zip": _zip_list("k.pt"),
    "Keras zip": _zip_list("k.keras"),
    "NumPy zip": _zip_list("k.npz"),
    "JSON kernel": _lines("k.json", "[", "[],%.0s", 5_000_000, "1]"),
    "TOML config": _lines("c.toml", "", "[k%x.a.b]\n", 300_000),
    "JSON config": _lines("c.json", "[", "[],%.0s", 9_000_000, "1]"),
    "DICOM deflated": dicom,
    "DICOM RLE": _packed_dicom("rle.dcm", "1.2.840.10008.1.2.5", rle),
    "DICOM JPEG": _packed_dicom("jpeg.dcm", "1.2.840.10008.1.2.4.50", lambda: jpeg_head(LARGE)),
    "DICOM JPEG 2000": _packed_dicom("j2k.dcm", "1.2.840.10008.1.2.4.90", jpeg2000_head),
    "OME-XML": ome_xml,
    "CZI JPEG": czi_jpeg,
}

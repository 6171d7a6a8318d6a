"""What a file is, by its first bytes: how formats recognize their own, and what else there is.

A format states its own signature in its `VolumeFormat`. `FOREIGN` lists the kinds of files that
are recognized by content or suffix and not read as volumes, each with what to do about it. A reader
for one of them takes the entry's suffixes and signature, and the entry goes.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

from conv3d_cli.formats.codecs import Codec, codec_of

START_BYTES = 4096
STARTS = 256  # files whose first bytes are kept


@dataclass(frozen=True)
class Start:
    """The first bytes of a file.

    path : str              of the file
    head : bytes            at most `START_BYTES`, unpacked if the file is a compressed stream
    codec : Codec or None   of that stream
    """

    path: str
    head: bytes
    codec: Codec | None = None

    @property
    def is_text(self) -> bool:
        """True if these bytes are UTF-8 without control characters.

        >>> Start("a", "10 µm\\n".encode()).is_text, Start("a", b"\\0\\1").is_text
        (True, False)
        """
        try:
            # incremental, since the last character may be cut
            text = codecs.getincrementaldecoder("utf-8")().decode(self.head)
        except UnicodeDecodeError:
            return False
        return all(c.isprintable() or c in "\t\n\f\r" for c in text)

    def begins(self, *magics: bytes) -> bool:
        """True if the file begins with one of these bytes.

        >>> Start("a.npy", b"\\x93NUMPY\\x01").begins(b"PK", b"\\x93NUMPY")
        True
        """
        return self.head.startswith(magics)

    def has(self, at: int, *magics: bytes) -> bool:
        """True if one of these bytes stands at an offset."""
        return any(self.head[at : at + len(magic)] == magic for magic in magics)

    def integer(self, at: int, order: str, size: int = 4) -> int:
        """The signed integer at an offset; 0 beyond the end.

        order : str     "little" or "big"
        >>> Start("x", b"\\x00\\x00\\x00\\x02").integer(0, "big")
        2
        """
        assert order in ("little", "big")
        return int.from_bytes(
            self.head[at : at + size], "big" if order == "big" else "little", signed=True
        )


Signature = Callable[[Start], bool]


def read_start(path: str) -> Start | None:
    """The first bytes of a file; None if it cannot be opened or unpacked: its reader says why.

    They are read once, however many questions are asked, as long as the file is the same.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    try:
        return _read_start(path, state)
    except (OSError, ImportError, ValueError, EOFError):
        return None


@lru_cache(maxsize=STARTS)
def _read_start(path: str, state: tuple[int, ...]) -> Start:
    """As `read_start`, for a regular file in this state; errors are raised, and not kept.

    Raises: OSError; ImportError without the library of its codec; ValueError and EOFError for a
    damaged stream.
    """
    with open(path, "rb") as file:
        codec = codec_of(file)
        if codec is None:
            return Start(path, file.read(START_BYTES))
        unpacking, errors = codec.open(path, file)
        with closing(unpacking):
            try:
                return Start(path, unpacking.read(START_BYTES), codec)
            except errors as error:
                raise EOFError from error


# --------------------------------------------------------------------------------------------------
# Files that are recognized, but not read as volumes


@dataclass(frozen=True)
class Foreign:
    """A kind of file that is recognized, but not read as a volume.

    name : str                  with an article where it needs one: "it is NAME"
    cure : str                  what to do, as an imperative sentence without a stop
    suffixes : tuple            lower case, with the dot
    signature : callable or None
                                None: only the suffix tells
    folder : str                name of a file that a folder of this kind holds; "": it is a file
    """

    name: str
    cure: str
    suffixes: tuple[str, ...] = ()
    signature: Signature | None = None
    folder: str = ""

    def claims(self, path: str) -> bool:
        """True if the file name ends with one of the suffixes, or the folder is of this kind."""
        if self.folder and os.path.isdir(path):
            return os.path.isfile(os.path.join(path, self.folder))
        return path.lower().rstrip("/").endswith(self.suffixes) if self.suffixes else False


def _magic(*magics: bytes, at: int = 0) -> Signature:
    return lambda start: start.has(at, *magics)


def _is_dm(start: Start) -> bool:
    """Gatan's DM3 or DM4: version, length of the file, and byte order."""
    if start.has(0, b"\0\0\0\3"):
        return start.has(8, b"\0\0\0\0", b"\0\0\0\1") and start.integer(4, "big") > 0
    return start.has(0, b"\0\0\0\4") and start.has(12, b"\0\0\0\0", b"\0\0\0\1")


def _is_xml(tag: bytes) -> Signature:
    """An XML file whose root has this name."""
    pattern = re.compile(rb"\s*(\xef\xbb\xbf)?\s*(<[?!][^>]*>\s*)*<" + tag + rb"[\s>]", re.I)
    return lambda start: pattern.match(start.head) is not None


HDF5 = b"\x89HDF\r\n\x1a\n"
_BIOFORMATS = "convert it: bfconvert {} NAME.ome.tif (Bio-Formats)"
_UNPACK = "unpack it first: {}"
_PICTURE = "a volume is a stack: save its slices as one TIFF of many pages"

# The order matters for contents that belong to two kinds: the narrower one first.
FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        "GIFTI, a surface and not a volume",
        "wb_command -metric-smoothing smooths along the surface",
        (".gii", ".gii.gz"),
        _is_xml(b"GIFTI"),
    ),
    Foreign(
        "a surface file of FreeSurfer, not a volume",
        "mri_surf2surf smooths along the surface",
        (".annot", ".pial", ".white", ".inflated"),
        _magic(b"\xff\xff\xfe", b"\xff\xff\xff"),
    ),
    Foreign(
        "a file of streamlines, not a volume",
        "make a map of them: tckmap, or TrackVis",
        (".tck", ".trk", ".trx"),
        _magic(b"mrtrix tracks", b"TRACK\0"),
    ),
    Foreign("Leica LOF or XLEF", _BIOFORMATS.format("FILE.xlef"), (".lof", ".xlef", ".xlif")),
    Foreign(
        "Olympus OIB or another file in Microsoft's OLE2 container",
        _BIOFORMATS.format("FILE.oib"),
        (".oib", ".zvi", ".ipw"),
        _magic(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ),
    Foreign("Olympus OIF", _BIOFORMATS.format("FILE.oif"), (".oif",)),
    Foreign("Olympus OIR", _BIOFORMATS.format("FILE.oir"), (".oir",), _magic(b"OLYMPUSRAWFORMAT")),
    Foreign(
        "Olympus VSI, whose voxels are in a folder beside it",
        _BIOFORMATS.format("FILE.vsi"),
        (".vsi", ".ets"),
        # a TIFF with thumbnails
        _magic(b"II*\0", b"MM\0*", b"SIS\0"),
    ),
    Foreign(
        "DeltaVision",
        _BIOFORMATS.format("FILE.dv"),
        (".dv", ".r3d"),
        _magic(b"\xa0\xc0", b"\xc0\xa0", at=96),
    ),
    Foreign("KLB", "convert it: pyklb reads it, tifffile.imwrite saves it", (".klb",)),
    Foreign(
        "Gatan DM3 or DM4",
        "convert it: dm2mrc FILE.dm4 NAME.mrc (IMOD)",
        (".dm3", ".dm4"),
        _is_dm,
    ),
    Foreign(
        "N5",
        "convert it to OME-Zarr: zarr-python 2 with n5, or Fiji's N5 plugin",
        (".n5",),
        folder="attributes.json",
    ),
    Foreign("ECAT 7", "convert it: nibabel reads it", (".v",), _magic(b"MATRIX7")),
    Foreign("Interfile", "convert it: medcon -c nifti -f FILE", (".hv",), _magic(b"!INTERFILE")),
    Foreign("BrainVoyager", "convert it: neuroelf, or bvbabel", (".vmr", ".vtc", ".fmr", ".v16")),
    Foreign(
        "MATLAB",
        "save the array: numpy.save(NAME, scipy.io.loadmat(FILE)[KEY])",
        (".mat",),
        _magic(b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file"),
    ),
    Foreign(
        "netCDF",
        "save the variable: numpy.save(NAME, VALUES)",
        (".nc", ".cdf"),
        _magic(b"CDF\1", b"CDF\2", b"CDF\5"),
    ),
    Foreign(
        "VTK",
        "convert it: SimpleITK or ParaView save MetaImage (.mha)",
        (".vtk", ".vti"),
        lambda start: start.begins(b"# vtk DataFile") or _is_xml(b"VTKFile")(start),
    ),
    Foreign("FITS", "convert it: astropy reads it", (".fits",), _magic(b"SIMPLE  =")),
    Foreign(
        "an archive of arrays (.npz)",
        "save one array of it: numpy.save(NAME, numpy.load(FILE)[KEY])",
        (".npz",),
        lambda start: start.begins(b"PK\3\4") and start.head[30:60].find(b".npy") >= 0,
    ),
    Foreign("a zip archive", _UNPACK.format("unzip FILE"), (".zip",), _magic(b"PK\3\4")),
    Foreign("packed by bzip2", _UNPACK.format("bunzip2 FILE"), (".bz2",), _magic(b"BZh")),
    Foreign("packed by xz", _UNPACK.format("unxz FILE"), (".xz",), _magic(b"\xfd7zXZ\0")),
    Foreign("packed by compress", _UNPACK.format("uncompress FILE"), (".z",), _magic(b"\x1f\x9d")),
    Foreign("packed by lz4", _UNPACK.format("unlz4 FILE"), (".lz4",), _magic(b"\x04\x22\x4d\x18")),
    Foreign(
        "a 7-Zip archive", _UNPACK.format("7z x FILE"), (".7z",), _magic(b"7z\xbc\xaf\x27\x1c")
    ),
    Foreign("a RAR archive", _UNPACK.format("unrar x FILE"), (".rar",), _magic(b"Rar!\x1a\x07")),
    Foreign(
        "a tar archive",
        _UNPACK.format("tar -xf FILE"),
        (".tar", ".tar.gz", ".tgz"),
        _magic(b"ustar", at=257),
    ),
    Foreign("PNG, a flat picture", _PICTURE, (".png",), _magic(b"\x89PNG\r\n\x1a\n")),
    Foreign("JPEG, a flat picture", _PICTURE, (".jpg", ".jpeg"), _magic(b"\xff\xd8\xff")),
    Foreign(
        "JPEG 2000, a flat picture",
        _PICTURE,
        (".jp2", ".j2k"),
        _magic(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    ),
    Foreign("GIF, a picture of few colours", _PICTURE, (".gif",), _magic(b"GIF87a", b"GIF89a")),
    Foreign(
        "BMP, a flat picture",
        _PICTURE,
        (".bmp",),
        lambda start: start.begins(b"BM") and start.has(6, bytes(4)),
    ),
    Foreign(
        "WebP or AVI, pictures or a film",
        _PICTURE,
        (".webp", ".avi"),
        lambda start: start.begins(b"RIFF") and start.has(8, b"WEBP", b"AVI "),
    ),
    Foreign("a film", _PICTURE, (".mp4", ".mov"), _magic(b"ftyp", at=4)),
    Foreign("PDF", "name the volume that it shows", (".pdf",), _magic(b"%PDF-")),
    Foreign(
        "an HTML page",
        "if it was downloaded, the server sent a page and not the file: open it in a browser",
        (".html", ".htm"),
        lambda start: _is_xml(b"html")(start),
    ),
    Foreign(
        "a pointer of Git LFS, not the file itself",
        "fetch the file: git lfs pull",
        (),
        _magic(b"version https://git-lfs"),
    ),
    Foreign(
        "a pointer of git-annex, not the file itself",
        "fetch the file: git annex get FILE, or datalad get FILE",
        (),
        lambda start: len(start.head) < 500 and b"/annex/objects/" in start.head,
    ),
)


def packed_kind(name: str, codec: Codec) -> Foreign:
    """What to say of a file of a format that is not read from compressed streams."""
    tool = {"gzip": "gunzip", "zstd": "unzstd"}[codec.name]
    return Foreign(f"{name} packed by {codec.name}", f"unpack it first: {tool} FILE")

"""What strangers' files may be: one line of `TARGETS` for every reader, its seeds, and what is promised of it.

The promise: any bytes give a result or a Conv3DError of one line, soon, without memory out of proportion to the file.
`fuzz.py` (coverage-guided), `test_fuzz.py` (the kept files, Hypothesis) and `coverage.py` all go through `try_input`.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from conv3d_cli.errors import LONGEST_MESSAGE, Conv3DError

TESTS = Path(__file__).parent.parent
DATA = TESTS / "data"
SAMPLES = TESTS.parent / "sample_data"
FINDS = Path(__file__).parent / "finds"  # TARGET/what-it-was.SUFFIX
CORPUS = Path(__file__).parent / "corpus"  # TARGET.zip

READ_AT_MOST = 4 << 20  # bytes of voxels that are read of one input
READ_SECONDS = 1.0  # for all blocks of one input: chunks of one voxel each are slow, and no fault
HELD_AT_MOST = 64 << 20  # what a job with a small --max-memory would refuse to hold

Seeds = Callable[[], dict[str, bytes]]


@dataclass(frozen=True)
class Target:
    """A reader that takes strangers' files.

    name : str              FORMAT, or KIND-FORMAT
    suffix : str            of the file that the bytes are put into; "" for a text that is no file
    read : callable         (path or text) -> anything
    seeds : callable        () -> whole inputs by name, made anew each time
    sources : tuple         the modules that read it, whose coverage is told
    words : tuple           of the format, for the fuzzer to try
    layout : callable       (bytes, folder) -> path: puts bytes into several files
    isolated : callable     the same reader through its own process, where `read` calls a C library that may crash;
                            what breaks `read` is a find only if it breaks this one
    """

    name: str
    suffix: str
    read: Callable[[str], object]
    seeds: Seeds
    sources: tuple[str, ...]
    words: tuple[str, ...] = ()
    layout: Callable[[bytes, Path], Path] | None = None
    isolated: Callable[[str], object] | None = None


class BrokenPromiseError(AssertionError):
    """A reader did with a file what none may."""


def try_input(target: Target, data: bytes, folder: Path, isolated: bool = False) -> str:
    """What a reader says of these bytes: "read", or the one line they are refused with.

    folder : Path       where files may be made
    isolated : bool     C libraries in a process of their own, as users have it
    Raises: BrokenPromiseError for a message of many lines; whatever else the reader raises against its promise.
    """
    if target.layout is not None:
        source = str(target.layout(data, folder))
    elif target.suffix:
        path = folder / f"input{target.suffix}"
        path.write_bytes(data)
        source = str(path)
    else:
        source = data.decode("utf-8", "replace")
    read = target.isolated if isolated and target.isolated is not None else target.read
    try:
        with warnings.catch_warnings(), _zip_without_sums():
            warnings.simplefilter("error")
            read(source)
    except Conv3DError as error:
        text = str(error)
        if len(text.splitlines()) != 1 or len(text) > LONGEST_MESSAGE + 10:
            raise BrokenPromiseError(f"not one line of moderate length: {text!r:.3000}") from error
        return text
    return "read"


@contextmanager
def _zip_without_sums() -> Iterator[None]:
    """Members of archives are read whatever their check sums: else no change to them would reach their readers."""
    with mock.patch.object(zipfile.ZipExtFile, "_update_crc", return_value=None):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Volumes


def read_volume_file(path: str) -> None:
    """Open a volume and read its first planes as a job would, in small blocks."""
    from conv3d_cli.formats import open_volume

    _read_volume(open_volume, path)


def read_here(opener: str) -> Callable[[str], None]:
    """As `read_volume_file`, by a reader "module:function" in this process, where the fuzzer sees the code."""
    from conv3d_cli.formats.base import late

    return partial(_read_volume, late(f"conv3d_cli.formats.{opener}"))


def _read_volume(opener: Callable[[str], Any], path: str) -> None:
    from conv3d_cli.model.volume import parts_in_storage_order

    with opener(path) as reader:
        header = reader.header
        reader.storage()
        _, depth, height, width, channels = header.shape
        together = reader.channels_together or not reader.sequential
        plane = height * width * (channels if together else 1) * header.dtype.itemsize
        if plane + reader.buffer_bytes(2, channels if together else 1) > HELD_AT_MOST:
            return
        left, begin = READ_AT_MOST, time.monotonic()
        for n, part in parts_in_storage_order(header.axes, channels_together=together):
            for start in range(0, depth, 2):
                block = reader.read(n, slice(start, min(start + 2, depth)), part)
                block.tobytes()
                left -= max(block.nbytes, 64)
                if left < 0 or time.monotonic() - begin > READ_SECONDS:
                    return
        reader.finish()


def _volumes(
    suffix: str, dtypes: tuple[str, ...], letters: tuple[str, ...] = ("zyx", "tzyx"), **options: str
) -> Seeds:
    """Small volumes as this package writes them."""

    def seeds() -> dict[str, bytes]:
        import tempfile

        from conv3d_cli.formats import write_volume
        from conv3d_cli.model.grid import Grid, affine_from_spacing
        from conv3d_cli.model.volume import Volume

        made = {}
        sizes = {"t": 2, "c": 2, "s": 3, "z": 3, "y": 4, "x": 5}
        with tempfile.TemporaryDirectory() as folder:
            for dtype in dtypes:
                for axes in letters:
                    shape = tuple(sizes[a] for a in axes)
                    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
                    grid = Grid(
                        (2.0, 1.5, 1.0),
                        "mm",
                        affine_from_spacing((2.0, 1.5, 1.0), (3.0, -2.0, 1.0)),
                    )
                    path = Path(folder) / f"{dtype}_{axes}{suffix}"
                    write_volume(str(path), Volume(values, axes, grid), **options)  # type: ignore[arg-type]
                    made[f"{dtype}_{axes}"] = _gathered(path)
        return made

    return seeds


def _gathered(path: Path) -> bytes:
    """A file's bytes; a pair's and a folder's as `_pair` and `_store` take them apart."""
    if path.suffix == ".hdr":
        return path.read_bytes().ljust(352, b"\0") + path.with_suffix(".img").read_bytes()
    if path.is_dir():
        names = [name for name in _STORE if (path / name).is_file()]
        return b"\n".join(
            b"--- %s\n%s" % (name.encode(), (path / name).read_bytes()) for name in names
        )
    return path.read_bytes()


def _pair(data: bytes, folder: Path) -> Path:
    (folder / "input.hdr").write_bytes(data[:352])
    (folder / "input.img").write_bytes(data[352:])
    return folder / "input.hdr"


# the files that a store of a fuzzed input may have: names are never taken from the input
_STORE = (
    "zarr.json",
    ".zgroup",
    ".zattrs",
    ".zarray",
    "0/zarr.json",
    "0/.zarray",
    "0/.zattrs",
    "0/c/0/0/0",
    "0/0/0/0",
    "0/0.0.0",
)


def _store(data: bytes, folder: Path) -> Path:
    root = folder / "input.zarr"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for section in (b"\n" + data).split(b"\n--- ")[1:]:
        name, _, content = section.partition(b"\n")
        if name.decode("latin-1") in _STORE:
            file = root / name.decode()
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_bytes(content)
    return root


def _tiffs() -> dict[str, bytes]:
    """What tifffile and this package write: ImageJ, OME, compressed pages, tiles, predictor, big-endian, BigTIFF."""
    import tifffile

    made = _volumes(".tif", ("uint8", "float32"), ("zyx", "tzcyx", "zyxs"))()
    made |= {
        f"ome_{name}": seed
        for name, seed in _volumes(".ome.tif", ("uint16",), ("zyx", "tczyx"))().items()
    }
    made |= {
        f"{kind}_{name}": seed
        for kind in ("deflate", "zstd")
        for name, seed in _volumes(".tif", ("uint16",), ("zyx",), compression=kind)().items()
    }
    values = np.arange(3 * 16 * 32, dtype=np.uint16).reshape(3, 16, 32)
    cases: dict[str, dict[str, object]] = {
        "imagej": {
            "imagej": True,
            "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "um"},
            "resolution": (2, 2),
        },
        "tiles": {"tile": (16, 16), "compression": "zlib", "predictor": True},
        "strips": {"rowsperstrip": 5, "byteorder": ">"},
        "big": {"bigtiff": True, "metadata": None},
    }
    for name, options in cases.items():
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, photometric="minisblack", **options)  # type: ignore[arg-type]
        made[name] = buffer.getvalue()
    return made


def _nrrds() -> dict[str, bytes]:
    """What SimpleITK, pynrrd and this package write: worlds, vectors, series, gzip, spacings."""
    made = _volumes(".nrrd", ("uint8", "float32"), ("zyx", "tzcyx", "zyxs"))()
    made |= {
        f"gzip_{name}": seed
        for name, seed in _volumes(".nrrd", ("int16",), ("zyx",), compression="deflate")().items()
    }
    return made | {path.stem: path.read_bytes() for path in sorted((DATA / "nrrd").glob("*.nrrd"))}


def _metas() -> dict[str, bytes]:
    """As this package writes them, and with fields that it does not write."""
    made = _volumes(".mha", ("uint8", "float32"), ("zyx", "tzyxc"))()
    made |= {
        f"packed_{name}": seed
        for name, seed in _volumes(".mha", ("int16",), ("zyx",), compression="deflate")().items()
    }
    voxels = np.arange(24, dtype=">i2").tobytes()
    made["big"] = (
        b"NDims = 3\nDimSize = 4 3 2\nElementByteOrderMSB = True\nElementSpacing = 1 2 3\n"
        b"Position = 1 2 3\nHeaderSize = -1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    ) + voxels
    return made


def _mifs() -> dict[str, bytes]:
    """As this package writes them, and a mask of one bit with another layout."""
    made = _volumes(".mif", ("uint8", "float32"), ("zyx", "tzyx", "zyxc"))()
    text = b"mrtrix image\ndim: 5,4,3\nvox: 1,2,3\nlayout: -0,+2,-1\ndatatype: Bit\nscaling: 1,2\n"
    made["bits"] = (text + b"file: . 128\nEND\n").ljust(128, b"\0") + bytes(8)
    return made


def _nibabels(*names: str) -> Seeds:
    """Small files that nibabel brings."""

    def seeds() -> dict[str, bytes]:
        import nibabel

        folder = Path(nibabel.__file__).parent / "tests" / "data"
        return {name: (folder / name).read_bytes() for name in names}

    return seeds


def _analyzes() -> dict[str, bytes]:
    """Headers and voxels as nibabel makes them, one after the other."""
    import nibabel

    made = {}
    for kind in (nibabel.AnalyzeImage, nibabel.Spm2AnalyzeImage):
        for order in "<>":
            values = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
            header = kind.header_class(endianness=order)
            header.set_data_dtype(np.int16)
            image = kind(values, np.diag([-2.0, 1.5, 3.0, 1.0]), header)
            image.update_header()
            data = (
                image.header.binaryblock.ljust(352, b"\0") + values.T.astype(f"{order}i2").tobytes()
            )
            made[f"{kind.__name__}{order}"] = data
    return made


def _afni(data: bytes, folder: Path) -> Path:
    """The HEAD; its voxels are zeros."""
    (folder / "input+orig.HEAD").write_bytes(data)
    if not (folder / "input+orig.BRIK").exists():
        (folder / "input+orig.BRIK").write_bytes(bytes(300_000))
    return folder / "input+orig.HEAD"


def _parrec(data: bytes, folder: Path) -> Path:
    """The PAR; its voxels are zeros."""
    (folder / "input.PAR").write_bytes(data)
    if not (folder / "input.REC").exists():
        (folder / "input.REC").write_bytes(bytes(300_000))
    return folder / "input.PAR"


def _hdf5s() -> dict[str, bytes]:
    """As this package writes them, and in packed chunks."""
    import h5py

    made = _volumes(".h5", ("uint8", "float32"), ("zyx", "tzyxc"))()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        values = np.arange(60, dtype=">i2").reshape(3, 4, 5)
        file.create_dataset("g/x", data=values, chunks=(2, 3, 4), compression="gzip", shuffle=True)
        file["g/soft"] = h5py.SoftLink("x")
    return made | {"chunks": buffer.getvalue()}


def _dicoms() -> dict[str, bytes]:
    """Small files that pydicom brings: one image, a dose of frames, colours, RLE."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    names = ("MR_small", "MR_small_RLE", "rtdose", "SC_rgb_small_odd", "MR_small_bigendian")
    return {name: (folder / f"{name}.dcm").read_bytes() for name in names}


def _microscope(kind: str) -> Seeds:
    """Small files by hand: two channels, three planes."""

    def seeds() -> dict[str, bytes]:
        import tempfile

        import microscopes

        values = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a.{kind}"
            if kind == "czi":
                xml = "<D><Scaling><Items><Distance Id='X'><Value>1e-7</Value></Distance></Items></Scaling></D>"
                tiles = [
                    ({"X": 0, "Y": 0, "C": c, "Z": z, "M": 0}, values[c, z])
                    for c, z in np.ndindex(2, 3)
                ]
                microscopes.czi(path, tiles, xml)
            elif kind == "lif":
                microscopes.lif(path, {"a": ("CZYX", values)}, {"X": 1e-7, "Y": 1e-7})
            else:
                microscopes.nd2(path, values.transpose(1, 0, 2, 3)[None, None])
            return {"small": path.read_bytes()}

    return seeds


def _imaris() -> dict[str, bytes]:
    """One level, two channels, padded."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for c in range(2):
            group = file.create_group(f"DataSet/ResolutionLevel 0/TimePoint 0/Channel {c}")
            group.create_dataset(
                "Data", data=np.arange(64, dtype="u1").reshape(4, 4, 4), chunks=(2, 4, 4)
            )
            for axis in "XYZ":
                group.attrs[f"ImageSize{axis}"] = np.array([b"3"])
        image = file.create_group("DataSetInfo/Image")
        for i in range(3):
            image.attrs[f"ExtMin{i}"], image.attrs[f"ExtMax{i}"] = (
                np.array([b"0"]),
                np.array([b"6"]),
            )
    return {"two": buffer.getvalue()}


def _npys() -> dict[str, bytes]:
    made = {}
    for name, array in {
        "c": np.zeros((2, 3, 4), "f4"), "fortran": np.zeros((2, 3, 4), ">i2", order="F"), "five": np.zeros((1, 2, 3, 4, 2), "u1"),
    }.items():  # fmt: skip
        buffer = io.BytesIO()
        np.save(buffer, array)
        made[name] = buffer.getvalue()
    return made


def _zarrs() -> dict[str, bytes]:
    """NGFF 0.5 as this package writes it, and 0.4 by hand: the older metadata files."""
    made = _volumes(".zarr", ("float32", "uint8"), ("zyx",))()
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scale = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}]
    image = {
        "version": "0.4",
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    array = {
        "zarr_format": 2, "shape": [3, 4, 5], "chunks": [3, 4, 5], "dtype": "<u2", "compressor": None, "fill_value": 0,
        "order": "C", "filters": None, "dimension_separator": "/",
    }  # fmt: skip
    files = {".zgroup": {"zarr_format": 2}, ".zattrs": {"multiscales": [image]}, "0/.zarray": array}
    parts = [
        b"--- %s\n%s" % (name.encode(), json.dumps(content).encode())
        for name, content in files.items()
    ]
    made["ngff04"] = b"\n".join([*parts, b"--- 0/0/0/0\n" + np.arange(60, dtype="<u2").tobytes()])
    made["array"] = b"--- .zarray\n" + json.dumps(array).encode()
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Kernels, configs, weights


def read_kernel_text(text: str) -> None:
    from conv3d_cli.kernels import read_kernel
    from conv3d_cli.model.grid import Grid

    read_kernel(text, Grid((2.0, 1.5, 1.0), "mm"))


def read_spaced_kernel(path: str) -> None:
    """A kernel file that may tell how large its voxels are, resampled to a volume's, and without its borders."""
    from conv3d_cli.kernels import read_kernel, resampling
    from conv3d_cli.model.grid import Grid
    from conv3d_cli.pipeline.kernel_adaptation import KernelAdaptation, adapt_kernel

    kernel = read_kernel(path)
    policy = "ignore" if kernel.grid is None else "resample"
    with mock.patch.object(resampling, "MAX_WEIGHTS", 200_000):  # legal giants only cost time
        adapt_kernel(kernel, path, Grid((2.0, 1.5, 1.0), "mm"), KernelAdaptation(policy, 1e-6))


def _spaced_kernels(suffix: str) -> Seeds:
    """As `_kernels`, and one whose voxels are not the volume's."""

    def seeds() -> dict[str, bytes]:
        import nibabel
        import tifffile

        values = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)
        if suffix == ".nii":
            image = nibabel.Nifti1Image(values, np.diag([1.0, 1.5, 4.0, 1.0]))
            image.header.set_xyzt_units("mm")
            return {**_kernels(suffix)(), "spaced": bytes(image.to_bytes())}
        buffer = io.BytesIO()
        metadata = {"axes": "ZYX", "spacing": 4.0, "unit": "mm"}
        tifffile.imwrite(buffer, values, imagej=True, metadata=metadata, resolution=(1, 1 / 1.5))
        return {**_kernels(suffix)(), "spaced": buffer.getvalue()}

    return seeds


def _minc_kernels() -> dict[str, bytes]:
    """A file with comments, and the least that one may hold."""
    least = b"MNI Morphology Kernel File\nKernel_Type = Normal_Kernel;\nKernel = 1 0 0 0 0 -.5e1;"
    return {"asymmetric": (DATA / "asymmetric.kern").read_bytes(), "least": least}


def _kernels(suffix: str) -> Seeds:
    """Kernels as this package writes them."""

    def seeds() -> dict[str, bytes]:
        from conv3d_cli.kernels import find_kernel_file
        from conv3d_cli.model.kernel import Kernel

        kind = find_kernel_file(f"x{suffix}")
        assert kind is not None
        assert kind.encode is not None
        values = np.arange(1.0, 28.0).reshape(3, 3, 3)
        made = {"filter": kind.encode(Kernel(values))}
        if kind.layers:
            weights = np.ones((1, 2, 3, 2, 2))
            bias, centre = (np.ones(2), (0.0, 1.0, 1.0)) if kind.extras else (None, None)
            made["layer"] = kind.encode(Kernel(weights, bias, centre))
        if suffix == ".json":
            made["built_in"] = (
                b'{"kernel": "gaussian:sigma=1vox", "flip": true, "normalize": true, "name": "x"}'
            )
            made["axes"] = (
                b'{"weights": [[[1, 2], [3, 4.5e0]]], "axes": "ijk", "centre": [0, 1, 0], "bias": 1}'
            )
        if suffix == ".txt":
            made["imagej"] = b"-1\t-1\t-1\r\n-1\t24\t-1\r\n0.5,1e-3,.5\r\n\r\n"
        if suffix == ".toml":
            made["built_in"] = b'kernel = "box:size=3,1,1"\nnormalize = true\nbias = [1.0]\n'
        return made

    return seeds


def prepare_config(path: str) -> None:
    """A config all the way to the job that `conv3d explain` describes."""
    from conv3d_cli.pipeline.make import make_job
    from conv3d_cli.pipeline.prepare import prepare_job
    from conv3d_cli.settings.merge import merge_settings
    from conv3d_cli.settings.options import Settings

    volume = Path(path).with_name("volume.npy")
    if not volume.exists():
        np.save(volume, np.ones((8, 9, 10, 2), np.float32))
        shutil.copy(SAMPLES / "layer.npz", volume.parent)
    settings = merge_settings(Settings(config=path))
    with prepare_job(make_job(str(volume), f"{path}.out.npy", settings)):
        pass


def read_record(path: str) -> None:
    """Read a sidecar and make the job that it asks for, as `conv3d rerun` does before it looks at the inputs."""
    from conv3d_cli.cli.rerun import job_of
    from conv3d_cli.provenance.record import read_sidecar

    job_of(read_sidecar(path), str(Path(path).parent), path)


def read_names_of_labels(path: str) -> None:
    """Read the names of labels and check them against a network of four."""
    from conv3d_cli.pipeline.labels import check_label_names, read_label_names

    check_label_names(path, read_label_names(path), 4)


def _names_of_labels() -> dict[str, bytes]:
    return {
        "object": b'{"0": "background", "1": "grey matter", "3": "csf"}',
        "list": b'["background", "brain"]',
        "table": b'index\tname\tcolor\r\n0\tbackground\t#000\r\n2\t"a\tb"\t#111\r\n',
    }


def _records() -> dict[str, bytes]:
    entry = {"Role": "volume", "Path": "a.nii.gz", "Digest": f"sha256:{'0' * 64}"}
    commands = {
        "filter": "-k gaussian:fwhm=6mm --boundary constant=2 --strides 2,1,1 --history",
        "layer": "--filters 2 --kernel-size 3 --seed 1 --activation relu --padding 1,0:1,2",
        "means": "-k box:size=3 --nan ignore --coverage-out seen.nii --like fsl --dtype int16 --scale auto",
    }
    return {
        name: json.dumps(
            {
                "Sources": ["a.nii.gz"],
                "Conv3D": {
                    "RecordVersion": 1,
                    "Command": f"conv3d apply a.nii.gz {words} -o 'o 1.nii.gz'",
                    "Inputs": [entry],
                    "Outputs": [{**entry, "Path": "o 1.nii.gz"}],
                    "Layers": [{"KernelDigest": "x"}],
                    "Versions": {"numpy": "2.0"},
                },
            }
        ).encode()
        for name, words in commands.items()
    }


def _configs(suffix: str) -> Seeds:
    def seeds() -> dict[str, bytes]:
        if suffix == ".toml":
            made = {name: (SAMPLES / f"{name}.toml").read_bytes() for name in ("layer", "stack")}
            made["filter"] = (
                b'kernel = "gaussian:fwhm=3vox"\nboundary = "constant=2"\npadding = "same"\nstrides = [2, 1, 1]\n'
                b'dtype = "int16"\nprecision = "float64"\nmax_memory = "2G"\nthreads = 2\n'
            )
            made["drawn"] = (
                b'kernel_size = 3\nfilters = 4\nseed = 1\ngroups = 2\nactivation = "relu"\nuse_bias = true\n'
                b'kernel_initializer = "he_normal"\nkernel_regularizer = "l2"\nkernel_constraint = "unit_norm"\n'
            )
            return made
        layer = {
            "filters": 2,
            "kernel_size": [1, 2, 2],
            "strides": 1,
            "padding": "same",
            "activation": "relu",
        }
        made = {
            "layers": json.dumps(
                [layer, {**layer, "kernel_initializer": {"class_name": "Ones", "config": {}}}]
            ).encode(),
            "keras_model": (DATA / "models" / "small.json").read_bytes(),
            "keras_layer": json.dumps(
                {
                    "class_name": "Conv3D",
                    "config": {**layer, "trainable": True, "data_format": "channels_last"},
                }
            ).encode(),
            "filter": b'{"kernel": [[[1, 2, 1]]], "bias": [0.5], "nan": "zero", "padding": [[1, 1], [0, 0], [1, 2]]}',
        }
        return made

    return seeds


def _weights(*names: str) -> Seeds:
    return lambda: {name: (DATA / "weights" / name).read_bytes() for name in names}


def _members(file: str, member: str) -> Seeds:
    """One member of an archive of weights."""

    def seeds() -> dict[str, bytes]:
        with zipfile.ZipFile(DATA / "weights" / file) as archive:
            return {f"{file}-{Path(member).name}": archive.read(member) for member in [member]}

    return seeds


def _both(*seeds: Seeds) -> Seeds:
    return lambda: {name: data for each in seeds for name, data in each().items()}


def _archived(file: str, member: str) -> Callable[[bytes, Path], Path]:
    """Put the data into the place of a member of an archive of weights."""

    def layout(data: bytes, folder: Path) -> Path:
        path = folder / file
        with zipfile.ZipFile(DATA / "weights" / file) as archive, zipfile.ZipFile(path, "w") as out:
            for name in archive.namelist():
                out.writestr(name, data if name == member else archive.read(name))
        return path

    return layout


def _pickled(data: bytes, folder: Path) -> Path:
    """An archive of torch.save with this pickle, and with storages of zeros."""
    path = folder / "pickled.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        for number in range(32):
            archive.writestr(f"net/data/{number}", bytes(2048))
    return path


def _beside(name: str, *others: str) -> Callable[[bytes, Path], Path]:
    """Put the data into a file beside others of weights."""

    def layout(data: bytes, folder: Path) -> Path:
        for other in others:
            (folder / other).write_bytes((DATA / "weights" / other).read_bytes())
        (folder / name).write_bytes(data)
        return folder / name

    return layout


def read_weights(path: str) -> None:
    """Every layer of a weights file, and the whole model's config, through the public door."""
    from conv3d_cli.kernels import weights

    for layer in weights.read_layers(path):
        layer.as_kernel(path)
    weights.model_config(path)


def read_network(path: str) -> None:
    """A network in a file, its sizes for a small volume, and its stages."""
    from conv3d_cli.network.operations.base import Shape
    from conv3d_cli.network.shapes import shape_network
    from conv3d_cli.pipeline.lowering import lower_network
    from conv3d_cli.pipeline.selection import select_in_network
    from conv3d_cli.settings.config import read_config
    from conv3d_cli.settings.options import Settings

    network = read_config(path).network
    if network is not None and len(network.inputs) == 1:
        (channels,) = network.inputs.values()
        shape_network(network, Shape(6, 8, 10, channels or 1))
        chosen = Settings(output_name=next(iter(network.outputs)))
        lower_network(select_in_network(network, chosen))


SHARD = np.arange(40, dtype="<f4").tobytes()  # what the manifests of all seeds divide


def _tfjs_models() -> dict[str, bytes]:
    """Small TF.js layers models: stored floats, quantized ones, a normalization and a skip."""

    def made(
        layers: list[tuple[str, str, list[str], dict[str, Any]]], tensors: list[dict[str, Any]]
    ) -> bytes:
        topology = {
            "keras_version": "2.7.0",
            "model_config": {
                "class_name": "Functional",
                "config": {
                    "name": "m",
                    "layers": [
                        {"class_name": kind, "name": name, "config": {"name": name, **config},
                         "inbound_nodes": [[[source, 0, 0, {}] for source in sources]] if sources else []}
                        for kind, name, sources, config in layers
                    ],
                    "input_layers": [["x", 0, 0]],
                    "output_layers": [[layers[-1][1], 0, 0]],
                },
            },
        }  # fmt: skip
        groups = [{"paths": ["w.bin"], "weights": tensors}]
        return json.dumps(
            {"format": "layers-model", "modelTopology": topology, "weightsManifest": groups}
        ).encode()

    volume = ("InputLayer", "x", [], {"batch_input_shape": [None, None, None, None, 1]})
    conv = (
        "Conv3D",
        "a",
        ["x"],
        {"filters": 2, "kernel_size": [3, 1, 2], "padding": "same", "activation": "relu"},
    )
    norm = ("BatchNormalization", "n", ["a"], {"epsilon": 0.001, "axis": [4]})
    add = ("Add", "s", ["a", "n"], {})
    floats = [
        {"name": f"n/{leaf}", "shape": [2], "dtype": "float32"}
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    ]
    kernel = {"name": "a/kernel", "shape": [3, 1, 2, 1, 2], "dtype": "float32"}
    bias = {"name": "a/bias", "shape": [2], "dtype": "float32"}
    rest = {"name": "rest", "shape": [26], "dtype": "int32"}
    byte = {"quantization": {"dtype": "uint8", "scale": 0.1, "min": -1.0}}
    short = {"quantization": {"dtype": "uint16", "scale": 0.1, "min": -1.0}}
    return {
        "floats": made([volume, conv], [kernel, bias, rest]),
        "skip": made([volume, conv, norm, add], [kernel, bias, *floats, {**rest, "shape": [18]}]),
        "quantized": made(
            [volume, conv],
            [{**kernel, **byte}, {**bias, **short}, {"name": "r", "shape": [144], "dtype": "bool"}],
        ),
    }


def _tfjs(data: bytes, folder: Path) -> Path:
    (folder / "w.bin").write_bytes(SHARD)
    (folder / "model.json").write_bytes(data)
    return folder / "model.json"


def _onnx_graphs() -> dict[str, bytes]:
    """Small ONNX graphs: convolutions and pooling, sizes that follow from sizes, weights that are computed."""
    from graphs import graph_of
    from onnx.helper import make_node as node

    ones = partial(np.ones, dtype=np.float32)
    stored = {
        "w": ones((2, 1, 3, 3, 3)), "b": ones(2), "u": ones((2, 2, 2, 2, 2)), "v": ones((2, 4, 1, 1, 1)), "zero": np.array([0]),
        "two": np.array([2]), "five": np.array([5]), "codes": np.ones((2, 1, 3, 3, 3), np.int8), "s": np.float32(0.5),
        "groups": np.array([0, 2, -1]), "pads": np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 1]), "scales": np.array([1, 1, 2, 2, 1.5], np.float32),
        "root": np.float32(1.4142135), "one": np.float32(1), "axes": np.array([2, 3, 4]), "m": ones((2, 2)),
    }  # fmt: skip
    conv = node(
        "Conv",
        ["x", "w", "b"],
        ["a"],
        pads=[1] * 6,
        strides=[1, 1, 1],
        dilations=[1, 1, 1],
        group=1,
        kernel_shape=[3, 3, 3],
    )
    graphs = {
        "unet": [
            conv, node("Relu", ["a"], ["r"]), node("MaxPool", ["r"], ["p"], kernel_shape=[2] * 3, strides=[2] * 3, ceil_mode=0),
            node("ConvTranspose", ["p", "u"], ["t"], strides=[2] * 3, output_padding=[0] * 3), node("Concat", ["t", "r"], ["c"], axis=1),
            node("Conv", ["c", "v"], ["l"], auto_pad="SAME_UPPER"), node("Softmax", ["l"], ["y"], axis=1),
        ],
        "like": [
            node("AveragePool", ["x"], ["p"], kernel_shape=[2] * 3, strides=[2] * 3, count_include_pad=1), node("Shape", ["x"], ["sx"]),
            node("Slice", ["sx", "two", "five", "zero"], ["tail"]), node("Shape", ["p"], ["sp"]),
            node("Slice", ["sp", "zero", "two", "zero"], ["head"]), node("Concat", ["head", "tail"], ["sizes"], axis=0),
            node("Resize", ["p", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"),
        ],
        "computed": [
            node("DequantizeLinear", ["codes", "s"], ["d"]), node("Identity", ["d"], ["k"]), node("Pad", ["x", "pads"], ["q"], mode="reflect"),
            node("Conv", ["q", "k"], ["a"]), node("Reshape", ["a", "groups"], ["g"]), node("InstanceNormalization", ["g", "b", "b"], ["i"]),
            node("Shape", ["a"], ["z"]), node("Reshape", ["i", "z"], ["n"]), node("Mul", ["n", "s"], ["e"]), node("ArgMax", ["e"], ["y"], axis=1),
        ],
        "gelu": [
            conv, node("Div", ["a", "root"], ["f"]), node("Erf", ["f"], ["e"]), node("Add", ["e", "one"], ["o"]), node("Mul", ["a", "o"], ["h"]),
            node("Transpose", ["h"], ["t"], perm=[0, 2, 3, 4, 1]), node("MatMul", ["t", "m"], ["k"]), node("Transpose", ["k"], ["y"], perm=[0, 4, 1, 2, 3]),
        ],
        "gate": [
            conv, node("ReduceMean", ["a"], ["p"], axes=[2, 3, 4], keepdims=0), node("Gemm", ["p", "m", "b"], ["g"], transB=1),
            node("HardSigmoid", ["g"], ["h"]), node("Unsqueeze", ["h", "axes"], ["u1"]), node("Mul", ["a", "u1"], ["w1"]),
            node("Resize", ["w1", "", "scales"], ["r"], mode="nearest"), node("Clip", ["r", "s", "one"], ["y"]),
        ],
    }  # fmt: skip
    made = {name: graph_of(nodes, stored).SerializeToString() for name, nodes in graphs.items()}
    made["upsample"] = graph_of(
        [node("Upsample", ["x", "scales"], ["y"])], stored, opset=9
    ).SerializeToString()
    return made


def read_keras_here(path: str) -> None:
    """As `read_weights`, but in this process, where the fuzzer sees the code."""
    from conv3d_cli.kernels.weights import keras
    from conv3d_cli.kernels.weights.layer import SavedLayer, read_errors

    with read_errors(path):
        for held in keras.read_keras(path):
            if isinstance(held, SavedLayer):
                held.as_kernel(path)
        keras.read_keras_config(path)


def read_h5_here(path: str) -> None:
    """As `read_weights`, but in this process."""
    from conv3d_cli.kernels.weights import legacy
    from conv3d_cli.kernels.weights.layer import SavedLayer, read_errors

    with read_errors(path):
        for held in legacy.read_h5(path):
            if isinstance(held, SavedLayer):
                held.as_kernel(path)
        legacy.read_h5_config(path)


def _networks() -> dict[str, bytes]:
    import networks

    return {"unet": json.dumps(networks.unet()[0]).encode()}


def read_keras_model(path: str) -> None:
    """A model's JSON with the weights of a U-Net, made into the stages of a job and given a shape."""
    import networks

    from conv3d_cli.kernels.weights.layer import parse_json, read_errors
    from conv3d_cli.network.keras import read_keras_network
    from conv3d_cli.network.keras_weights import KerasWeights
    from conv3d_cli.network.operations.base import Shape
    from conv3d_cli.network.shapes import shape_network
    from conv3d_cli.pipeline.lowering import lower_network
    from conv3d_cli.pipeline.selection import select_in_network
    from conv3d_cli.settings.options import Settings

    model, arrays = networks.unet()
    places = {name: place.removeprefix("layers/") for name, place in networks.groups(model).items()}
    weights = {
        places[name]: {str(n): array for n, array in enumerate(own)} for name, own in arrays.items()
    }
    with read_errors(path):
        content = parse_json(Path(path).read_bytes(), "the model", path)
        network = read_keras_network(content, KerasWeights(weights, {}), (path,))
        chosen = Settings(output_name=next(iter(network.outputs)))
        lower_network(select_in_network(network, chosen))
        shape_network(network, Shape(8, 8, 8, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Texts


def read_grammar(text: str) -> None:
    """A text by one of the small grammars; its first letter says which."""
    from conv3d_cli.kernels import is_builtin
    from conv3d_cli.kernels.lengths import (
        read_axes,
        read_count,
        read_lengths,
        read_number,
        read_sizes,
    )
    from conv3d_cli.model.grid import Grid
    from conv3d_cli.model.spec import Boundary, ConvSpec
    from conv3d_cli.model.volume import Axes
    from conv3d_cli.system.machine import byte_size

    rest, grid = text[1:], Grid((2.0, 1.5, 1.0), "mm")
    match text[:1]:
        case "k":
            if is_builtin(rest):  # others are names of files
                read_kernel_text(rest)
        case "l":
            read_lengths(rest, "sigma", grid)
        case "s":
            read_sizes(rest, "size", grid)
        case "n":
            read_number(rest, "truncate", grid)
        case "c":
            read_count(rest, "count", grid)
        case "x":
            read_axes(rest, "axis", grid)
        case "a":
            Axes(rest, (3,) * len(rest))
        case "p":
            ConvSpec(padding=rest).resolve((1, 4, 5, 6, 1), (3, 3, 3))  # type: ignore[arg-type]
        case "b":
            Boundary.parse(rest)
        case "m":
            byte_size(rest)


def read_expression(text: str) -> None:
    """A formula, parsed, and sampled over a few voxels that are not cubes."""
    from conv3d_cli.kernels.expressions import expr, parse_formula, read_extent
    from conv3d_cli.model.grid import Grid

    expr(parse_formula(text), read_extent("4mm", "radius", Grid((2.0, 1.5, 1.0), "mm")))


def _expressions() -> dict[str, bytes]:
    texts = [
        "exp(-r**2/36)", '"1"', "where(r > 0 and d < 2, sinc(r)/r, -1e3 % 2)", "max(0, 1 - abs(x), +y) or not z", "cos(pi*w)*e",
        "-1 <= d*h < 3 != w", "(((r)))", "floor(tanh(sign(log(r + .5))))", "2**-r", "min(sqrt(r), tan(h), sin(d))",
    ]  # fmt: skip
    return {f"formula{number}": text.encode() for number, text in enumerate(texts)}


def _texts() -> dict[str, bytes]:
    texts = [
        "kgaussian:fwhm=6mm", "kgaussian:sigma=1.5,1,1vox:truncate=3", "kbox:size=3,5,5", "kball:radius=2um", "ksobel:axis=d",
        "klaplacian:neighbours=18", "kdog:sigma=1vox:ratio=1.6", "l8,6,3mm", "l2 µm", "l.5e1vox", "s3,5,5", "n-1.5e3", "c7",
        'kexpr:"exp(-r**2/36)":radius=3mm', "kexpr:where(r>0 and d<2,sinc(r)/r,-1e3%2):radius=2,1,3vox:shape=box",
        "xz", "atzyx", "psame", "p1,2,3", "p1:2,0:0,3:4", "bconstant=2.5", "bnearest", "m2G", "m500M", "m1.5 GiB",
    ]  # fmt: skip
    return {f"text{number}": text.encode() for number, text in enumerate(texts)}


# ---------------------------------------------------------------------------------------------------------------------
# The table

_NIFTI = ("formats/nifti/format.py", "formats/nifti/header.py", "formats/nifti/grid.py")
_PACKED = ("formats/packed.py", "formats/codecs.py")
_SERIES = tuple(f"formats/tiff/{part}.py" for part in ("directories", "images", "series"))
_TIFF = (
    *_SERIES,
    *(
        f"formats/tiff/{part}.py"
        for part in ("format", "files", "metadata", "ome", "compressed", "pages")
    ),
)
_ZARR = tuple(f"formats/zarr/{part}.py" for part in ("format", "ome", "store"))
_NRRD = (*(f"formats/nrrd/{part}.py" for part in ("format", "header", "axes", "grid")), *_PACKED)
_NRRD_WORDS = (
    "\nspace: RAS\n", "\nspace dimension: 4\n", "space directions: ", "none", "(1,0,0)", "(nan,nan,nan)", "\nspace origin: ",
    "\nspacings: ", "\naxis mins: ", "\naxis maxs: ", "\nunits: ", '"um"', "\nkinds: ", "list", "time", "RGB-color", "\nlabels: ",
    "\ncenters: ", "node", "\nencoding: ", "gzip", "raw", "\nline skip: ", "\nbyte skip: -1\n", "\ndata file: ", "LIST", "LOCAL",
    "\nendian: big\n", "\ntype: ", "double", "block", "\nx:=y", "\n\n", "-1", "1e999", "99999999999999999",
)  # fmt: skip
_STORED = ("formats/stored.py", *_PACKED)
_META_WORDS = (
    "\nNDims = 4\n", "\nDimSize = ", "\nElementType = MET_DOUBLE\n", "\nElementDataFile = LOCAL\n", "LIST", "%03d 1 2 1",
    "\nHeaderSize = -1\n", "\nCompressedData = True\n", "\nElementNumberOfChannels = ", "\nTransformMatrix = ", "nan", "1e999",
    "\nOffset = ", "\nElementSpacing = 0", "\nBinaryData = False\n", "-1", "99999999999999999",
)  # fmt: skip
_MIF_WORDS = (
    "\nlayout: ", "-0", "+1", "\ndatatype: ", "Bit", "Float64BE", "CFloat32", "\nscaling: ", "\ntransform: ", "\nfile: . ",
    "\nfile: ", "[0:3]", "\nEND\n", "\nvox: ", "nan", "inf", "1e999", "-1", "99999999999999999",
)  # fmt: skip
_AFNI_WORDS = (
    "type = integer-attribute\n", "type = float-attribute\n", "type = string-attribute\n", "name = ", "count = ",
    "DATASET_DIMENSIONS", "DATASET_RANK", "BRICK_TYPES", "BRICK_FLOAT_FACS", "BYTEORDER_STRING", "IJK_TO_DICOM_REAL",
    "ORIENT_SPECIFIC", "ORIGIN", "DELTA", "'", "~", "nan", "1e999", "-1", "999999999999",
)  # fmt: skip
_KERNEL = ("kernels/files.py",)
_RECORD_WORDS = (
    '"Conv3D"',
    '"RecordVersion"',
    '"Command"',
    '"Inputs"',
    '"Outputs"',
    "conv3d apply ",
    " -k ",
    " -o ",
    "--help",
    "'",
)
_SPACED = (
    *_KERNEL,
    "pipeline/kernel_adaptation.py",
    "kernels/resampling.py",
    "kernels/cropping.py",
)
_CONFIG = ("settings/config.py", "layer/config.py", "layer/_catalogue.py", "layer/_keras_json.py")
_LAYERS = ("kernels/weights/layer.py",)
_TORCH = (
    "kernels/weights/pytorch.py",
    "kernels/weights/pickles.py",
    "kernels/weights/state_dict.py",
    *_LAYERS,
)
_PICKLED_WORDS = (
    "ctorch._utils\n_rebuild_tensor_v2\n",
    "ctorch\nFloatStorage\n",
    "ccollections\nOrderedDict\n",
    "_modules",
    "_parameters",
    ")R",
    ")\x81",
    "}b",
    "(",
    "tR",
    "h\x00",
    "q\x00",
    "Q",
    "]",
    "}",
    "e",
    "u",
    "s",
    "a",
)
_HDF5 = ("kernels/weights/hdf5.py", *_LAYERS)
_KEYS = (
    '"kernel"', '"weights"', '"bias"', '"centre"', '"axes"', '"ijk"', '"flip"', '"normalize"', '"name"', "true", "null", "1e999",
    "NaN", "-1", "[[", "]]", '"box:size=3"', "99999999999999999999",
)  # fmt: skip
_CONFIG_WORDS = (
    "kernel", "kernel_size", "filters", "strides", "padding", "dilation_rate", "groups", "boundary", "activation", "bias",
    "use_bias", "seed", "kernel_initializer", "kernel_regularizer", "kernel_constraint", "class_name", "config", "layers",
    "registered_name", "glorot_uniform", "relu", "softmax", "unit_norm", "l1l2", "same", "valid", "full", "dtype", "chunks",
    "levels", "missing", "nan", "max_memory", "threads", "nested", "data_format", "inf", "1e308", "-1", "true",
)  # fmt: skip
_ZARR_WORDS = (
    '"shape"', '"chunks"', '"chunk_shape"', '"data_type"', '"dtype"', '"fill_value"', '"codecs"', '"multiscales"', '"datasets"',
    '"axes"', '"scale"', '"translation"', '"coordinateTransformations"', '"path"', '"zarr_format"', '"attributes"', "NaN", "null",
    '"Infinity"', "-1", "1e999", '"sharding_indexed"', '"../.."', '"float64"', '"<c16"',
    "\n--- 0/zarr.json\n", "\n--- 0/.zarray\n",
)  # fmt: skip

TARGETS: tuple[Target, ...] = (
    Target("nifti-nii", ".nii", read_volume_file, _volumes(".nii", ("uint8", "float32"), ("zyx", "tzyx", "zyxs")), _NIFTI),
    Target("nifti-gz", ".nii.gz", read_volume_file, _volumes(".nii.gz", ("int16",)), (*_NIFTI, *_PACKED)),
    Target("nifti-zst", ".nii.zst", read_volume_file, _volumes(".nii.zst", ("int16",)), (*_NIFTI, *_PACKED)),
    Target("nifti-pair", "", read_volume_file, _volumes(".hdr", ("int16", "float64")), _NIFTI, layout=_pair),
    Target("tiff", ".tif", read_volume_file, _tiffs, _TIFF),
    Target("nrrd", ".nrrd", read_volume_file, _nrrds, _NRRD, _NRRD_WORDS),
    Target("meta", ".mha", read_volume_file, _metas, ("formats/meta/format.py", *_STORED), _META_WORDS),
    Target("mgh", ".mgh", read_volume_file, _volumes(".mgh", ("uint8", "float32")), ("formats/mgh/format.py", *_STORED)),
    Target("mgz", ".mgz", read_volume_file, _volumes(".mgz", ("int16",)), ("formats/mgh/format.py", *_STORED)),
    Target("mif", ".mif", read_volume_file, _mifs, ("formats/mif/format.py", *_STORED), _MIF_WORDS),
    Target("mrc", ".mrc", read_volume_file, _volumes(".mrc", ("int8", "float32")), ("formats/mrc/format.py", *_STORED)),
    Target("analyze", "", read_volume_file, _analyzes, ("formats/analyze/format.py", *_STORED), layout=_pair),
    Target(
        "afni", "", read_volume_file, _nibabels("scaled+tlrc.HEAD", "example4d+orig.HEAD"),
        ("formats/afni/format.py", *_STORED), _AFNI_WORDS, layout=_afni,
    ),
    Target(
        "parrec", "", read_volume_file, _nibabels("phantom_EPI_asc_CLEAR_2_1.PAR", "phantom_varscale.PAR"),
        ("formats/parrec/format.py", "formats/planes.py"),
        ("Max. number of slices/locations", "Repetition time [msec]", "Angulation midslice", "Scan resolution", "V4.2", "#sl ec dyn"),
        layout=_parrec,
    ),
    Target(
        "minc1", ".mnc", read_volume_file, _nibabels("tiny.mnc", "minc1_4d.mnc", "minc1-no-att.mnc"),
        ("formats/minc/format.py",),
        ("xspace", "yspace", "zspace", "time", "image-max", "image-min", "valid_range", "direction_cosines", "step", "start"),
    ),
    Target(
        "minc2", ".mnc", read_here("minc.format:open_minc"), _nibabels("small.mnc", "minc2_4d.mnc", "minc2-no-att.mnc"),
        ("formats/minc/format.py",),
        ("minc-2.0", "image", "dimensions", "dimorder", "xspace", "time", "image-max", "valid_range", "step"),
        isolated=read_volume_file,
    ),
    Target(
        "hdf5", ".h5", read_here("hdf5.format:open_hdf5"), _hdf5s, ("formats/hdf5/format.py", "formats/hdf5/file.py"),
        ("axistags", "element_size_um", '{"axes": [{"key": "z"}]}', "resolution", "unit", "history", "DIMENSION_LABELS"),
        isolated=read_volume_file,
    ),
    Target(
        "imaris", ".ims", read_here("hdf5.imaris:open_imaris"), _imaris, ("formats/hdf5/imaris.py", "formats/hdf5/file.py"),
        ("DataSet", "ResolutionLevel 0", "TimePoint 0", "Channel 1", "ImageSizeX", "ExtMin0", "ExtMax0", "Unit", "TimeInfo"),
        isolated=read_volume_file,
    ),
    Target(
        "dicom", ".dcm", read_volume_file, _dicoms, ("formats/dicom/format.py", "formats/dicom/series.py", "formats/planes.py"),
        ("\x28\x00\x02\x01US\x02\x00", "\x20\x00\x32\x00DS", "\x28\x00\x30\x00DS", "\x28\x00\x08\x00IS", "1.2.840.10008.1.2.5", "RGB", "MOSAIC"),
    ),
    Target(
        "czi", ".czi", read_volume_file, _microscope("czi"), ("formats/microscope/czi.py", "formats/planes.py"),
        ("ZISRAWSUBBLOCK", "ZISRAWDIRECTORY", "DV", "X", "Y", "C", "Z", "T", "S", "M", "<Value>", "Distance"),
    ),
    Target(
        "lif", ".lif", read_volume_file, _microscope("lif"), ("formats/microscope/lif.py", "formats/planes.py"),
        tuple(w.encode("utf-16-le").decode("latin-1") for w in ("BytesInc", "NumberOfElements", "Length", "DimID", "Resolution", "-1", "9")),
    ),
    Target(
        "nd2", ".nd2", read_here("microscope.nd2:open_nd2"), _microscope("nd2"), ("formats/microscope/nd2.py", "formats/planes.py"),
        tuple(w.encode("utf-16-le").decode("latin-1") for w in ("uiWidth", "uiComp", "uiSequenceCount", "dCalibration", "uiCount")),
        isolated=read_volume_file,
    ),
    Target("npy", ".npy", read_volume_file, _npys, ("formats/npy.py",)),
    Target("zarr", "", read_volume_file, _zarrs, _ZARR, _ZARR_WORDS, layout=_store),
    Target("zarr-zip", ".ozx", read_volume_file, _volumes(".ozx", ("uint8", "float32")), _ZARR, _ZARR_WORDS),
    Target("kernel-npy", ".npy", read_kernel_text, _kernels(".npy"), _KERNEL),
    Target("kernel-npz", ".npz", read_kernel_text, _kernels(".npz"), _KERNEL, ("kernel.npy", "bias.npy", "centre.npy")),
    Target("kernel-json", ".json", read_kernel_text, _kernels(".json"), _KERNEL, _KEYS),
    Target("kernel-toml", ".toml", read_kernel_text, _kernels(".toml"), _KERNEL, _KEYS),
    Target("kernel-txt", ".txt", read_kernel_text, _kernels(".txt"), _KERNEL),
    Target(
        "kernel-minc", ".kern", read_kernel_text, _minc_kernels, ("kernels/minc.py",),
        ("MNI Morphology Kernel File\n", "Kernel_Type", "Normal_Kernel", " = ", ";", "%", "#", "1e999", "nan", "-1.0", "0.5"),
    ),
    Target("kernel-nifti", ".nii", read_spaced_kernel, _spaced_kernels(".nii"), _SPACED),
    Target("kernel-tiff", ".tif", read_spaced_kernel, _spaced_kernels(".tif"), (*_SPACED, *_SERIES)),
    Target("config-toml", ".toml", prepare_config, _configs(".toml"), _CONFIG, _CONFIG_WORDS),
    Target("config-json", ".json", prepare_config, _configs(".json"), _CONFIG, tuple(f'"{w}"' for w in _CONFIG_WORDS)),
    Target(
        "network-keras", ".json", read_keras_model, _networks, ("network/keras.py", "pipeline/lowering.py"),
        ("Add", "Conv3DTranspose", "Softmax", "inbound_nodes", "keras_history", "null", "-1", "99999999", "channels_first", "training"),
    ),
    Target(
        "weights-keras", ".keras", read_keras_here, _weights("two.keras", "special.keras", "padded.keras"),
        ("kernels/weights/keras.py", *_HDF5), isolated=read_weights,
    ),
    Target(
        "weights-h5", ".h5", read_h5_here, _weights("keras2.h5", "keras2_weights_only.h5", "lora.h5"),
        ("kernels/weights/legacy.py", *_HDF5), isolated=read_weights,
    ),
    Target(
        "weights-safetensors", ".safetensors", read_weights, _weights("net.safetensors", "dtypes.safetensors"),
        ("kernels/weights/safetensors.py", *_LAYERS), ('"F32"', '"BF16"', '"dtype"', '"shape"', '"data_offsets"', "__metadata__"),
    ),
    Target(
        "weights-onnx", ".onnx", read_weights, _weights("attributes.onnx", "net.onnx", "external.onnx", "folded.onnx"),
        ("kernels/weights/onnx.py", *_LAYERS),
    ),
    Target(
        "weights-pytorch", ".pt", read_weights, _weights(
            "state.pt", "before_1_6.pt", "module.pt", "dtypes.pt", "norms.pt", "whole.pt", "script_net.pt", "quantized.pt",
            "spectral.pt", "old.pth.tar", "flat_whole.pt",
        ),
        _TORCH,
    ),
    Target(
        "weights-pickle", ".pt", read_weights,
        _both(
            _members("whole.pt", "whole/data.pkl"), _members("nnunet.pth", "nnunet/data.pkl"),
            _members("lightning.ckpt", "lightning/data.pkl"), _members("quantized.pt", "quantized/data.pkl"),
            _members("script_net.pt", "script_net/data.pkl"),
        ),
        _TORCH, _PICKLED_WORDS, layout=_pickled,
    ),
    Target(
        "weights-program", ".pt2", read_weights, _both(_members("program.pt2", "program/models/model.json")),
        ("kernels/weights/exported.py", *_LAYERS),
        ("torch.ops.aten.conv3d.default", "torch.ops.aten.convolution.default", "torch.ops.aten.pad.default", '"as_ints"'),
        layout=_archived("program.pt2", "program/models/model.json"),
    ),
    Target(
        "weights-tfjs", ".json", read_weights, _weights("tfjs.json"), ("kernels/weights/tfjs.py", *_LAYERS),
        ('"quantization"', '"float16"', '"uint8"', '"scale"', '"min"', '"paths"', '"shape"'),
        layout=_beside("tfjs.json", "tfjs1.bin", "tfjs2.bin"),
    ),
    Target(
        "weights-index", ".json", read_weights, _weights("sharded.bin.index.json", "sharded.safetensors.index.json"),
        ("kernels/weights/shards.py", *_LAYERS), ('"weight_map"', '"../"', ".bin", ".safetensors"),
        layout=_beside(
            "model.index.json", "sharded.bin", "sharded2.bin", "sharded.safetensors", "sharded2.safetensors"
        ),
    ),
    Target(
        "network-tfjs", "", read_network, _tfjs_models, ("network/tfjs.py", "network/keras.py", "network/graph.py"),
        ('"uint8"', '"float16"', '"quantization"', '"scale"', '"min"', '"paths"', '"inbound_nodes"', '"class_name"'), layout=_tfjs,
    ),
    Target(
        "network-onnx", ".onnx", read_network, _onnx_graphs,
        ("network/onnx/graph.py", "network/onnx/folding.py", "network/onnx/operators.py", "network/onnx/windows.py", "network/onnx/flow.py"),
        ("Conv", "Resize", "Pad", "Slice", "Concat", "Shape", "Gather", "Expand", "Reshape", "Split", "axis", "axes", "pads", "mode"),
    ),
    Target("label-names", ".tsv", read_names_of_labels, _names_of_labels, ("pipeline/labels.py",), ("index", "name", "\t", "{")),
    Target("sidecar", ".json", read_record, _records, ("provenance/record.py", "cli/rerun.py"), _RECORD_WORDS),
    Target(
        "expressions", "", read_expression, _expressions, ("kernels/expressions.py",),
        (
            "exp(", "where(", "sinc(", "max(", "sqrt(", "log(", "**", "%", "<=", "!=", " and ", " or ", "not ", "(", ")", ",",
            '"', "lambda", "r", "d", "pi", "e", "1e308", "1j", "0x", "if", "else", ":=", "[", "{", "^", "True", ".real", "f'{",
        ),
    ),
    Target(
        "texts", "", read_grammar, _texts,
        ("kernels/grammar.py", "kernels/lengths.py", "kernels/expressions.py", "model/spec.py"),
        (
            "gaussian", "sigma=", "fwhm=", "size=", "vox", "mm", "um", ":", ",", "1e308", "-", "inf", "nan", "constant=", "axis=",
            "expr:", "radius=", "shape=box", "exp(", "where(", "sinc(", "**", "%", "<=", " and ", "not ", "(", ")", '"', "lambda",
        ),
    ),
)  # fmt: skip


def find_targets(name: str) -> list[Target]:
    """The targets of a name, or of a kind: "kernel" is all of kernel-...; "all" is all."""
    return [t for t in TARGETS if name == "all" or t.name == name or t.name.startswith(f"{name}-")]


def corpus_of(target: Target) -> dict[str, bytes]:
    """Kept inputs: each reached code that those before it did not."""
    path = CORPUS / f"{target.name}.zip"
    if not path.exists():
        return {}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def nifti_of(size: int) -> bytes:
    """A NIfTI-1 file of 377 bytes whose header claims `size` voxels along each of three axes."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, size, size, size, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 16, 32)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<3f", head, 108, 352, 0, 0)
    head[344:348] = b"n+1\0"
    return bytes(head) + bytes(25)

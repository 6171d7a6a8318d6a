"""What a file tells besides image and place is named where an output does not hold it.

The files are made by other libraries than the package, or are nibabel's own. What users wrote is a
loss, which --strict refuses; what tells of the making (`Facts.provenance`) is a note alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile

from conv3d_cli.errors import ShapeError
from conv3d_cli.formats import open_volume, write_volume
from conv3d_cli.formats.nifti.header import is_version
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.volume import Volume
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

IDENTITY = (Stage(Kernel(np.ones((1, 1, 1)))),)
VALUES = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"
SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def hdf5(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        dataset = file.create_dataset("data", data=VALUES)
        dataset.attrs["exposure"], file.attrs["lab"] = 3, "x"
        dataset.attrs["element_size_um"] = (1.0, 1.0, 1.0)
    return folder / "a.h5"


def private_tags(folder: Path) -> Path:
    tags = [(65000, "s", 0, "hello", True), (65001, "I", 1, 7, True)]
    tifffile.imwrite(folder / "a.tif", VALUES, photometric="minisblack", extratags=tags)
    return folder / "a.tif"


def makers_tags(folder: Path) -> Path:
    tags = [(271, "s", 0, "Canon", True), (34118, "s", 0, "AP_IMAGE", True)]
    tifffile.imwrite(folder / "a.tif", VALUES, photometric="minisblack", extratags=tags)
    return folder / "a.tif"


def plain_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", VALUES, photometric="minisblack", metadata=None, description="my sample")  # fmt: skip
    return folder / "a.tif"


def regions_of_imagej(folder: Path) -> Path:
    metadata = {"axes": "ZYX", "ROI": b"Iout" + bytes(60)}
    tifffile.imwrite(folder / "a.tif", VALUES, imagej=True, metadata=metadata)
    return folder / "a.tif"


def ome(folder: Path, more: str) -> Path:
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="float" SizeX="6" '
        'SizeY="5" SizeZ="4" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f"<TiffData/></Pixels></Image>{more}</OME>"
    )
    tifffile.imwrite(folder / "a.ome.tif", VALUES, description=xml.encode(), metadata=None, photometric="minisblack")  # fmt: skip
    return folder / "a.ome.tif"


def annotations(folder: Path) -> Path:
    return ome(
        folder,
        '<StructuredAnnotations><CommentAnnotation ID="Annotation:1" Namespace="lab/notes"><Value>'
        'cell 3</Value></CommentAnnotation></StructuredAnnotations><ROI ID="ROI:0"/>',
    )


def original_metadata(folder: Path) -> Path:
    return ome(
        folder,
        '<StructuredAnnotations><XMLAnnotation ID="Annotation:1" '
        'Namespace="openmicroscopy.org/OriginalMetadata"><Value/></XMLAnnotation>'
        "</StructuredAnnotations>",
    )


def analyze(folder: Path, at: int, text: bytes) -> Path:
    path = folder / "a.hdr"
    nibabel.save(nibabel.AnalyzeImage(VALUES, np.diag([2, 2, 2, 1.0])), path)
    head = bytearray(path.read_bytes())
    head[at : at + len(text)] = text
    path.write_bytes(head)
    return path


def nifti(folder: Path, descrip: bytes) -> Path:
    image = nibabel.Nifti1Image(VALUES, np.diag([2, 2, 2, 1.0]))
    image.header["descrip"] = descrip
    nibabel.save(image, folder / "a.nii")
    return folder / "a.nii"


def mrc(folder: Path, labels: list[bytes], extended: bytes = b"") -> Path:
    """By the layout of MRC2014: labels from byte 224, the extended header from byte 1024."""
    write_volume(str(folder / "a.mrc"), Volume(VALUES, "zyx"))
    data = bytearray((folder / "a.mrc").read_bytes())
    struct.pack_into("<i", data, 220, len(labels))
    for k, label in enumerate(labels):
        data[224 + 80 * k : 224 + 80 * k + len(label)] = label
    struct.pack_into("<i", data, 92, len(extended))
    data[104:108] = b"FEI1" if extended else bytes(4)
    (folder / "a.mrc").write_bytes(data[:1024] + extended + data[1024:])
    return folder / "a.mrc"


def ngff(folder: Path) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "a.ome.zarr"), mode="w", zarr_format=2)
    group.create_array("0", data=VALUES, chunks=VALUES.shape)
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    group.attrs["lab"] = "mine"
    return folder / "a.ome.zarr"


LOST: dict[str, tuple[Callable[[Path], Path], str]] = {
    "HDF5": (hdf5, "the attributes exposure, lab"),
    "private tags": (private_tags, "the private tags 65000, 65001"),
    "description": (plain_tiff, "the description (my sample)"),
    "ImageJ": (regions_of_imagej, "the regions of interest"),
    "OME": (annotations, "the annotations lab/notes, the regions of interest"),
    "Analyze": (lambda f: analyze(f, 148, b"my sample"), "the description (my sample)"),
    "auxiliary": (lambda f: analyze(f, 228, b"colours"), "the name of an auxiliary file (colours)"),
    "NIfTI": (lambda f: nifti(f, b"TE=30;phase=1"), "the description (TE=30;phase=1)"),
    "MRC": (lambda f: mrc(f, [], bytes(128)), "the extended header (FEI1)"),
    "NGFF": (ngff, "the attributes lab"),
    "AFNI": (lambda f: NIBABEL / "scaled+tlrc.HEAD", "the attributes TEMPLATE_SPACE"),
    "AFNI's times": (lambda f: NIBABEL / "example4d+orig.HEAD", "TAXIS_OFFSETS"),
}
MADE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "FSL": (lambda f: nifti(f, b"6.0.4:ddd0a010"), "the program's version (6.0.4:ddd0a010)"),
    "Analyze": (lambda f: analyze(f, 148, b"FSL5.0"), "the program's version (FSL5.0)"),
    "patient": (lambda f: analyze(f, 283, b"P12"), "the numbers of scan and patient"),
    "MRC": (lambda f: mrc(f, [b"newstack: x", b"two"]), "the labels newstack: x, two"),
    "maker": (makers_tags, "the tags"),
    "OME": (original_metadata, "what the file tells of microscope and experiment"),
    "MINC 1": (lambda f: NIBABEL / "minc1_1_scale.mnc", "the attributes of patient, study, acq"),
    "MINC 2": (lambda f: NIBABEL / "minc2_1_scale.mnc", "the history, the attributes of patient"),
}
TARGETS = ("o.nrrd", "o.nii.gz")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", LOST)
def test_what_is_lost_is_named_and_strict_refuses_it(
    tmp_path: Path, case: str, target: str, hdf5_in_this_process: Any
) -> None:
    make, words = LOST[case]
    source, out = str(make(tmp_path)), tmp_path / target
    if case == "NIfTI" and target == "o.nii.gz":
        run_job(Job(source, str(out), IDENTITY, strict=True))  # its own kind holds it
        assert bytes(nibabel.load(out).header["descrip"].tobytes()).startswith(b"TE=30;phase=1")
        return
    notes = run_job(Job(source, str(out), IDENTITY)).notes
    assert sum("does not hold" in note and words in note for note in notes) == 1
    out.unlink()
    with pytest.raises(ShapeError, match="does not hold"):
        run_job(Job(source, str(out), IDENTITY, strict=True))
    assert not out.exists()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", MADE)
def test_what_tells_of_the_making_is_a_note_alone(
    tmp_path: Path, case: str, target: str, hdf5_in_this_process: Any
) -> None:
    make, words = MADE[case]
    source = str(make(tmp_path))
    notes = run_job(Job(source, str(tmp_path / target), IDENTITY, strict=True)).notes
    kept = case == "FSL" and target == "o.nii.gz"
    assert sum("does not hold" in note and words in note for note in notes) == (not kept)


@pytest.mark.parametrize("make", [private_tags, annotations, hdf5, ngff])
def test_what_its_own_kind_does_not_hold_either(
    tmp_path: Path, make: Callable[[Path], Path], hdf5_in_this_process: Any
) -> None:
    source = make(tmp_path)
    notes = run_job(Job(str(source), str(source.with_name("o" + source.name[1:])), IDENTITY)).notes
    assert sum("does not hold" in note for note in notes) == 1


def test_labels_and_extended_header_stay_in_mrc(tmp_path: Path) -> None:
    source = mrc(tmp_path, [b"newstack: x"], b"\7" * 128)
    report = run_job(Job(str(source), str(tmp_path / "o.mrc"), IDENTITY, strict=True))
    assert not any("does not hold" in note for note in report.notes)
    written = (tmp_path / "o.mrc").read_bytes()
    assert written[224:235] == b"newstack: x"
    assert written[1024:1152] == b"\7" * 128
    strided = (Stage(Kernel(np.ones((1, 1, 1))), strides=2),)
    notes = run_job(Job(str(source), str(tmp_path / "p.mrc"), strided)).notes
    assert any("does not hold the extended header" in note for note in notes)


def test_an_own_history_is_no_foreign_annotation(tmp_path: Path, run: Any) -> None:
    for suffix in ("ome.tif", "ome.zarr", "h5"):
        write_volume(str(tmp_path / "a.npy"), Volume(VALUES, "zyx"), overwrite=True)
        first, second = tmp_path / f"b.{suffix}", tmp_path / f"c.{suffix}"
        run("apply", tmp_path / "a.npy", "-k", "identity", "--history", "-o", first)
        told = run("apply", first, "-k", "identity", "-o", second).stderr
        assert "does not hold" not in told


def test_the_time_step_of_afni_is_read() -> None:
    """As AFNI's HEAD says: TAXIS_FLOATS has 3 in its second place, TAXIS_NUMS the code of seconds."""
    head = NIBABEL / "example4d+orig.HEAD"
    image = nibabel.load(head)
    with open_volume(str(head)) as reader:
        step = reader.header.facts.seconds
    assert step == pytest.approx(float(image.header.get_zooms()[3]))
    assert step == 3.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FSL5.0", True),
        ("FSL3.3", True),
        ("6.0.7.14:f9c2d11a", True),
        ("5.0.10", True),
        ("MRtrix version: 3.0.4-21-gabc", True),
        ("FreeSurfer Aug 12 2022", True),
        ("SPM12", True),
        ("", False),
        ("FSL5.0 mean of 3 runs", False),
        ("spm - realigned", False),
        ("TE=30;Time=1200", False),
        ("5.0", False),
        ("2022.01.03 patient moved", False),
    ],
)
def test_what_counts_as_a_version(text: str, expected: bool) -> None:
    assert is_version(text) == expected

"""What a file tells travels to every format that can hold it; what is lost is said.

Every pair of formats, by the facts that each declares (`VolumeFormat.keeps`). The values are read
by tifffile, zarr, nibabel and ome-types, not by the package.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import tifffile

from conv3d_cli.errors import ShapeError
from conv3d_cli.formats import find_format, open_volume, read_volume, write_volume
from conv3d_cli.formats.base import VolumeFormat
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.volume import Facts, Volume, VolumeHeader
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job
from conv3d_cli.provenance.command import history_line
from conv3d_cli.settings.options import Settings

zarr = pytest.importorskip("zarr")

IDENTITY = (Stage(Kernel(np.ones((1, 1, 1)))),)
NAME, STEP, CHANNELS = "embryo 7", (2.5, "s"), ("DAPI", "GFP", "µ <&>")
COLORS = ("0000FF", "00FF00", "FF8000")
SHAPE = (2, 3, 4, 5, 6)  # t, c, z, y, x
DATA = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.float32)
TARGETS = ("o.ome.tif", "o.tif", "o.ome.zarr", "o.nii.gz", "o.nrrd", "o.npy")


# --------------------------------------------------------------------------------------------------
# Files as other programs write them


def ome_tiff(path: Path, unit: str = "µm", **more: str) -> Path:
    channels = "".join(
        f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1" Name="{name}" Color="{number}"/>'
        for c, (name, number) in enumerate(
            zip(("DAPI", "GFP", "µ &lt;&amp;&gt;"), (65535, 16711935, -8388353), strict=True)
        )
    )
    own = "".join(f' {key}="{value}"' for key, value in more.items())
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0" Name="{NAME}"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="float" SizeX="6" SizeY="5" SizeZ="4" SizeC="3" SizeT="2" TimeIncrement="2.5" '
        f'PhysicalSizeX="0.5" PhysicalSizeXUnit="{unit}" PhysicalSizeY="0.5" '
        f'PhysicalSizeYUnit="{unit}" PhysicalSizeZ="2" PhysicalSizeZUnit="{unit}"{own}>'
        f'{channels}<TiffData IFD="0" PlaneCount="24"/></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, DATA, description=xml.encode(), metadata=None, photometric="minisblack")
    return path


def imagej_tiff(path: Path) -> Path:
    ramps = [
        (np.arange(256) * np.array([int(c[i : i + 2], 16) for i in (0, 2, 4)])[:, None] / 255)
        .round()
        .astype(np.uint8)
        for c in COLORS
    ]
    metadata = {
        "axes": "TZCYX",
        "unit": "micron",
        "spacing": 2.0,
        "finterval": 2.5,
        "Labels": [*CHANNELS[:2], "µ <&>"] * 8,
        "LUTs": ramps,
        "mode": "composite",
    }
    data = DATA.transpose(0, 2, 1, 3, 4)
    tifffile.imwrite(path, data, imagej=True, resolution=(2, 2), metadata=metadata)
    return path


def ome_zarr(path: Path) -> Path:
    axes = [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"),
    ]
    step = {"type": "scale", "scale": [2.5, 1.0, 2.0, 0.5, 0.5]}
    level = {"path": "0", "coordinateTransformations": [step]}
    window = {"min": 0, "max": 200, "start": 0, "end": 200}
    omero = {
        "channels": [
            {"label": name, "color": color, "window": window}
            for name, color in zip(CHANNELS, COLORS, strict=True)
        ]
    }
    image = {"name": NAME, "axes": axes, "datasets": [level]}
    ome = {"version": "0.5", "multiscales": [image], "omero": omero}
    zarr.create_group(str(path), attributes={"ome": ome}).create_array("0", data=DATA)
    return path


def nifti(path: Path) -> Path:
    image = nibabel.Nifti1Image(DATA.transpose(4, 3, 2, 0, 1), np.diag([0.5, 0.5, 2.0, 1.0]))
    image.header.set_xyzt_units("micron", "sec")
    image.header["pixdim"][4] = 2.5
    nibabel.save(image, path)
    return path


def nrrd(path: Path) -> Path:
    """Times along an axis with units; NRRD itself knows no channels' names."""
    text = (
        "NRRD0004\ntype: float\ndimension: 5\nsizes: 6 5 4 3 2\nencoding: raw\nendian: little\n"
        f"content: {NAME}\nkinds: domain domain domain vector time\n"
        'spacings: 0.5 0.5 2 NaN 2.5\nunits: "um" "um" "um" "" "s"\n\n'
    )
    path.write_bytes(text.encode() + DATA.astype("<f4").tobytes())
    return path


def npy(path: Path) -> Path:
    np.save(path, DATA)
    return path


SOURCES: dict[str, tuple[Callable[[Path], Path], Facts]] = {
    "i.ome.tif": (ome_tiff, Facts(NAME, STEP, CHANNELS, COLORS)),
    "i.tif": (imagej_tiff, Facts("", STEP, CHANNELS, COLORS)),
    "i.ome.zarr": (ome_zarr, Facts(NAME, STEP, CHANNELS, COLORS)),
    "i.nii.gz": (nifti, Facts(time_step=STEP)),
    "i.nrrd": (nrrd, Facts(NAME, STEP)),
    "i.npy": (npy, Facts()),
}

# --------------------------------------------------------------------------------------------------
# What is in a file, by other libraries


def of_ome(path: Path) -> dict[str, Any]:
    with tifffile.TiffFile(path) as file:
        root = ElementTree.fromstring(file.ome_metadata)
        space = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
        (image,) = root.findall("o:Image", space)
        (pixels,) = image.findall("o:Pixels", space)
        channels = pixels.findall("o:Channel", space)
        numbers = [c.get("Color") for c in channels]
        assert pixels.get("TimeIncrementUnit", "s") == "s"
        return {
            "name": image.get("Name") or "",
            "time_step": float(pixels.get("TimeIncrement", 0)),
            "channel_names": [c.get("Name") or "" for c in channels],
            "channel_colors": [
                "" if n is None else f"{int(n) & 0xFFFFFFFF:08X}"[:6] for n in numbers
            ],
        }


def of_imagej(path: Path) -> dict[str, Any]:
    with tifffile.TiffFile(path) as file:
        found = file.imagej_metadata
        labels = found.get("Labels") or []
        return {
            "time_step": float(found.get("finterval", 0)),
            "channel_names": [
                re.sub(r"\\u(....)", lambda m: chr(int(m[1], 16)), t) for t in labels[:3]
            ],
            "channel_colors": [
                "".join(f"{end:02X}" for end in table[:, 255]) for table in found.get("LUTs") or []
            ],
        }


def of_zarr(path: Path) -> dict[str, Any]:
    ome = zarr.open_group(str(path), mode="r").attrs.asdict()["ome"]
    image = ome["multiscales"][0]
    step = image["datasets"][0]["coordinateTransformations"][0]["scale"][0]
    unit = image["axes"][0].get("unit")
    channels = ome.get("omero", {}).get("channels", [])
    assert unit in (None, "second")
    return {
        "name": image["name"],
        "time_step": step if unit else 0,
        "channel_names": [c.get("label", "") for c in channels],
        "channel_colors": [c["color"] for c in channels],
    }


def of_nifti(path: Path) -> dict[str, Any]:
    header = nibabel.load(path).header
    known = header.get_xyzt_units()[1] == "sec"
    return {"time_step": float(header["pixdim"][4]) if known else 0}


def of_nrrd(path: Path) -> dict[str, Any]:
    head = path.read_bytes().partition(b"\n\n")[0].decode()
    fields = dict(
        line.split(": ", 1) for line in head.splitlines() if ": " in line and ":=" not in line
    )
    keys = dict(line.split(":=", 1) for line in head.splitlines() if ":=" in line)
    channels = json.loads(keys.get("conv3d_channels") or "[]")
    time = fields["kinds"].split().index("time")
    steps = fields.get("spacings", "").split()
    if "space directions" in fields:
        steps = [v.strip("()").split(",")[-1] for v in fields["space directions"].split()]
    step = float(steps[time]) if steps else 0
    return {
        "name": fields.get("content", ""),
        "time_step": 0 if np.isnan(step) else step,
        "channel_names": [c.get("name", "") for c in channels],
        "channel_colors": [c.get("color", "") for c in channels],
    }


READERS = {
    "o.ome.tif": of_ome,
    "o.tif": of_imagej,
    "o.ome.zarr": of_zarr,
    "o.nii.gz": of_nifti,
    "o.nrrd": of_nrrd,
    "o.npy": lambda path: {},
}
WORDS = {
    "name": "the image's name",
    "time_step": "the time step",
    "channel_names": "the names of channels",
    "channel_colors": "the colours of channels",
}


def written(path: Path) -> VolumeFormat:
    found = find_format(str(path))
    assert found is not None
    return found


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SOURCES, TARGETS)))
def test_facts_arrive_or_are_said_to_be_lost(source: str, target: str, tmp_path: Path) -> None:
    make, told = SOURCES[source]
    before, after = make(tmp_path / source), tmp_path / target
    options = {"axes": "tczyx"} if source == "i.npy" else {}
    notes = run_job(Job(str(before), str(after), IDENTITY, **options)).notes
    lost = [note for note in notes if "does not hold" in note]
    assert len(lost) <= 1
    found = READERS[target](after)
    expected = {
        "name": told.name,
        "time_step": told.time_step[0] if told.time_step else 0,
        "channel_names": list(told.channel_names),
        "channel_colors": list(told.channel_colors),
    }
    for fact, value in expected.items():
        said = any(WORDS[fact] in note for note in lost)
        if fact in found:
            own = "/" if (fact, target) == ("name", "o.ome.zarr") else value
            kept = found[fact] if fact == "name" or np.any(np.array(found[fact]) != "") else []
            assert kept == (value or own or kept), fact
            assert bool(kept) == bool(value or own), fact
            assert not said
        else:
            assert said == bool(value), fact
    # and once more, in the same format
    if target != "o.npy":
        again = after.with_name("p" + after.name[1:])
        run_job(Job(str(after), str(again), IDENTITY))
        assert READERS[target](again) == found


@pytest.mark.parametrize("target", TARGETS)
def test_strict_refuses_what_is_lost(target: str, tmp_path: Path) -> None:
    source, told = ome_tiff(tmp_path / "i.ome.tif"), SOURCES["i.ome.tif"][1]
    job = Job(str(source), str(tmp_path / target), IDENTITY, strict=True)
    header = VolumeHeader(read_volume(str(source)).header.axes, np.dtype("f4"), facts=told)
    kept = written(tmp_path / target).keeps(job.target, header)
    if kept >= set(WORDS):
        run_job(job)
        return
    with pytest.raises(ShapeError, match="does not hold"):
        run_job(job)
    assert not (tmp_path / target).exists()


def test_strict_refuses_what_a_scaled_output_loses(tmp_path: Path) -> None:
    source = ome_tiff(tmp_path / "i.ome.tif")
    job = Job(
        str(source), str(tmp_path / "o.nii"), IDENTITY, strict=True, dtype="int16", scale="auto"
    )
    with pytest.raises(ShapeError, match="the names of channels"):
        run_job(job)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.ome.tif"]


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "o.npy"])
def test_volumes_in_memory_carry_facts(target: str, tmp_path: Path) -> None:
    volume = read_volume(str(ome_zarr(tmp_path / "i.ome.zarr")))
    assert volume.facts == Facts(NAME, STEP, CHANNELS, COLORS)
    write_volume(str(tmp_path / target), volume)
    found = READERS[target](tmp_path / target)
    assert found.get("time_step") == 2.5
    assert found.get("channel_names", list(CHANNELS)) == list(CHANNELS)


# --------------------------------------------------------------------------------------------------
# Units of time


@pytest.mark.parametrize(
    ("unit", "seconds"), [("s", 2.5), ("min", 150), ("ms", 0.0025), ("µs", 2.5e-6), ("h", 9000)]
)
def test_times_in_other_units(unit: str, seconds: float, tmp_path: Path) -> None:
    source = ome_tiff(tmp_path / "i.ome.tif", TimeIncrementUnit=unit)
    for target in ("o.nii", "o.tif", "o.ome.zarr", "o.ome.tif"):
        run_job(Job(str(source), str(tmp_path / target), IDENTITY))
    header = nibabel.load(tmp_path / "o.nii").header
    length = {"sec": 1, "msec": 1e-3, "usec": 1e-6}[header.get_xyzt_units()[1]]
    assert float(header["pixdim"][4]) * length == pytest.approx(seconds, rel=1e-6)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        assert file.imagej_metadata["finterval"] == pytest.approx(seconds, rel=1e-9)
    ome = zarr.open_group(str(tmp_path / "o.ome.zarr"), mode="r").attrs.asdict()["ome"]
    words = {"s": "second", "min": "minute", "ms": "millisecond", "µs": "microsecond", "h": "hour"}
    assert ome["multiscales"][0]["axes"][0]["unit"] == words[unit]
    assert f'TimeIncrementUnit="{unit}"' in tifffile.tiffcomment(tmp_path / "o.ome.tif")


def test_a_repetition_time_without_a_unit_stays_one(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(DATA[:, 0].transpose(3, 2, 1, 0), np.diag([2.0, 2, 2, 1]))
    image.header["pixdim"][4] = 2.5
    image.header["xyzt_units"] = 2
    nibabel.save(image, tmp_path / "i.nii")
    run_job(Job(str(tmp_path / "i.nii"), str(tmp_path / "o.ome.zarr"), IDENTITY))
    ome = zarr.open_group(str(tmp_path / "o.ome.zarr"), mode="r").attrs.asdict()["ome"]
    axis = ome["multiscales"][0]["axes"][0]
    assert axis == {"name": "t", "type": "time"}
    level = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert level[0]["scale"][0] == 2.5
    notes = run_job(Job(str(tmp_path / "i.nii"), str(tmp_path / "o.ome.tif"), IDENTITY)).notes
    assert any("the time step (2.5 without a unit)" in note for note in notes)
    assert "TimeIncrement" not in tifffile.tiffcomment(tmp_path / "o.ome.tif")


# --------------------------------------------------------------------------------------------------
# Channels that are no longer the input's


def test_components_are_named_after_their_channels(tmp_path: Path, run: Any) -> None:
    source = ome_zarr(tmp_path / "i.ome.zarr")
    run("apply", source, "-k", "sobel:axis=dhw", "-o", tmp_path / "o.ome.tif")
    found = of_ome(tmp_path / "o.ome.tif")
    assert found["channel_names"][0].startswith("DAPI: ")
    assert len(found["channel_names"]) == 9
    assert not any(found["channel_colors"])


def test_mixed_channels_have_no_names(tmp_path: Path) -> None:
    source = ome_zarr(tmp_path / "i.ome.zarr")
    layer = (Stage(Kernel(np.ones((1, 1, 1, 3, 3)))),)
    for target in ("o.ome.zarr", "o.ome.tif", "o.nrrd"):
        run_job(Job(str(source), str(tmp_path / target), layer))
        assert not any(READERS[target](tmp_path / target)["channel_names"])


def test_labels_of_slices_are_said_to_be_lost(tmp_path: Path) -> None:
    labels = [f"slice {z}" for z in range(4)]
    data = DATA[0, 0]
    tifffile.imwrite(
        tmp_path / "i.tif", data, imagej=True, metadata={"axes": "ZYX", "Labels": labels}
    )
    notes = run_job(Job(str(tmp_path / "i.tif"), str(tmp_path / "o.ome.tif"), IDENTITY)).notes
    assert any("the labels of slices" in note for note in notes)
    notes = run_job(Job(str(tmp_path / "i.tif"), str(tmp_path / "o.tif"), IDENTITY)).notes
    assert not any("labels" in note for note in notes)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        assert file.imagej_metadata["Labels"] == labels


# --------------------------------------------------------------------------------------------------
# Others open what is written


@pytest.mark.parametrize("unit", ["µm", "μm", "um", "micron", "Å", "inch", "nm", "pixel"])
def test_units_in_ome_xml_are_legal(unit: str, tmp_path: Path) -> None:
    """OME's schema has the micro sign U+00B5 alone."""
    types = pytest.importorskip("ome_types")
    source = ome_tiff(tmp_path / "i.ome.tif", unit)
    run_job(Job(str(source), str(tmp_path / "o.ome.tif"), IDENTITY))
    pixels = types.from_tiff(tmp_path / "o.ome.tif").images[0].pixels
    legal = {"μm": "µm", "um": "µm", "micron": "µm", "inch": "in"}.get(unit, unit)
    assert pixels.physical_size_x_unit.value == legal
    assert (pixels.physical_size_z, pixels.physical_size_x) == (2, 0.5)


def test_control_characters_do_not_break_xml(tmp_path: Path, run: Any) -> None:
    types = pytest.importorskip("ome_types")
    source = tmp_path / "a\x01b\x1b.npy"
    np.save(source, DATA[0, 0])
    target = tmp_path / "o.ome.tif"
    run("apply", source, "-k", "identity", "-o", target, "--history")
    assert types.from_tiff(target).structured_annotations
    with open_volume(str(target)) as reader:
        assert any("x01b" in line for line in reader.header.history)


@pytest.mark.parametrize(
    "target", ["o.nii", "o.tif", "o.ome.tif", "o.nrrd", "o.zarr", "o.nii.zarr"]
)
def test_names_that_are_no_text_stand_in_histories(target: str, tmp_path: Path) -> None:
    """Such names come from old zip files: bytes of Latin-1."""
    source = os.fsencode(tmp_path) + b"/caf\xe9.npy"
    with open(source, "wb") as file:
        np.save(file, DATA[0, 0])
    run_job(Job(os.fsdecode(source), str(tmp_path / target), IDENTITY, history=history(source)))
    with open_volume(str(tmp_path / target)) as reader:
        (line,) = reader.header.history
    assert "caf\\xe9.npy" in line
    line.encode()


def history(source: bytes) -> str:
    return history_line(os.fsdecode(source), Settings(kernel="identity"), "1.0")


def test_images_in_zarr_have_a_name_a_type_and_metadata(tmp_path: Path) -> None:
    """NGFF: each SHOULD be there."""
    write_volume(str(tmp_path / "brain.ome.zarr"), Volume(DATA[0, 0], "zyx"), levels=1)
    large = Volume(np.zeros((4, 40, 40), np.float32), "zyx")
    write_volume(str(tmp_path / "large.zarr"), large, levels=2)
    found = [
        zarr.open_group(str(tmp_path / name), mode="r").attrs.asdict()["ome"]["multiscales"][0]
        for name in ("brain.ome.zarr", "large.zarr")
    ]
    assert [image["name"] for image in found] == ["/", "/"]
    assert [image["type"] for image in found] == ["none", "local mean"]
    assert all(image["metadata"]["description"] for image in found)
    assert read_volume(str(tmp_path / "brain.ome.zarr")).facts.name == ""


# --------------------------------------------------------------------------------------------------
# What only the format itself can hold


def nifti_of_details(path: Path) -> str:
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3, 2), np.float32), np.diag([2.0, 2, 2, 1]))
    header = image.header
    header["descrip"], header["aux_file"], header["intent_name"] = b"a scan", b"lut.txt", b"bold"
    header["toffset"], header["slice_code"], header["slice_duration"] = 7.5, 1, 0.1
    header.set_dim_info(slice=2)
    header.extensions.append(nibabel.nifti1.Nifti1Extension(4, b"<AFNI/>"))
    nibabel.save(image, path.with_suffix(".nii"))
    return str(path.with_suffix(".nii"))


def mgh_of_details(path: Path) -> str:
    image = nibabel.MGHImage(np.zeros((5, 4, 3, 2), np.float32), np.diag([2.0, 2, 2, 1]))
    image.header["tr"] = 2500.0  # ms
    nibabel.save(image, path.with_suffix(".mgh"))
    return str(path.with_suffix(".mgh"))


def text_header(suffix: str, header: str) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        voxels = np.zeros((2, 3, 4, 5), "<f4").tobytes()
        path.with_suffix(suffix).write_bytes(header.encode() + voxels)
        return str(path.with_suffix(suffix))

    return make


def imagej_of_details(path: Path) -> str:
    data, info = np.zeros((3, 4, 5), np.float32), {"Info": "objective = 63x", "spacing": 2.0}
    tifffile.imwrite(path.with_suffix(".tif"), data, imagej=True, metadata={**info, "unit": "um"})
    return str(path.with_suffix(".tif"))


META = (
    "ObjectType = Image\nNDims = 4\nBinaryData = True\nElementSpacing = 1 1 2 2.5\n"
    "DimSize = 5 4 3 2\nModality = MET_MOD_MR\nComment = by hand\nElementType = MET_FLOAT\n"
    "ElementDataFile = LOCAL\n"
)
NRRD = (
    "NRRD0004\ntype: float\ndimension: 4\nsizes: 5 4 3 2\nspacings: 1 1 2 2.5\n"
    "kinds: space space space time\nencoding: raw\nendian: little\nmodality:=DWMRI\n\n"
)
MIF = (
    "mrtrix image\ndim: 5,4,3,2\nvox: 1,1,2,2.5\nlayout: +0,+1,+2,+3\ndatatype: Float32LE\n"
    "dw_scheme: 0,0,1,0\ndw_scheme: 1,0,0,1000\nfile: . 256\nEND\n"
).ljust(256, "\0")
# what each tells, as words of the note and as seconds of its time step
DETAILS: dict[str, tuple[Callable[[Path], str], list[str], float | None]] = {
    "nifti": (
        nifti_of_details,
        [
            "the description (a scan)", "the name of an auxiliary file (lut.txt)",
            "the name of the intent (bold)", "the time of the first volume (7.5)",
            "the order of the slices in time", "1 extension of the header",
        ],
        None,
    ),
    "mgh": (mgh_of_details, [], 2.5),
    "meta": (text_header(".mha", META), ["the fields Modality, Comment"], 2.5),
    "nrrd": (text_header(".nrrd", NRRD), ["the keys modality"], 2.5),
    "mif": (text_header(".mif", MIF), ["the entries dw_scheme"], 2.5),
    "imagej": (imagej_of_details, ["the text of Image > Show Info"], None),
}  # fmt: skip
OWN_KIND = {"nifti": ".nii.gz", "mgh": ".mgh", "meta": ".mha", "nrrd": ".nrrd", "mif": ".mif"}
OWN_KIND["imagej"] = ".tif"
NEED_UNIT = (".tif", ".ome.tif", ".mgh")  # of the step of time
DETAIL_TARGETS = (".nii.gz", ".mgh", ".mha", ".nrrd", ".mif", ".ome.tif", ".ome.zarr", ".npy")


@pytest.mark.parametrize("target", [*DETAIL_TARGETS, ".tif"])
@pytest.mark.parametrize("source", DETAILS)
def test_details_are_repeated_or_said_to_be_lost(source: str, target: str, tmp_path: Path) -> None:
    make, told, step = DETAILS[source]
    path, output = make(tmp_path / "input"), str(tmp_path / f"output{target}")
    job = Job(path, output, IDENTITY)
    notes = "; ".join(run_job(job).notes)
    own = OWN_KIND[source] == target
    for words in told:
        assert (words in notes) != own, notes
    with open_volume(output) as reader:
        facts = reader.header.facts
    if own:
        with open_volume(path) as reader:
            assert facts.others == reader.header.facts.others
    if step is not None:
        arrived = facts.time_step is not None and facts.time_step[0] == pytest.approx(step)
        assert arrived != ("the time step" in notes), notes
        unitless = facts.time_step is None and source in ("meta", "nrrd")
        assert arrived or target == ".npy" or (unitless and target in NEED_UNIT), notes
    if told and not own:
        with pytest.raises(ShapeError, match="nothing was written"):
            run_job(Job(path, str(tmp_path / f"strict{target}"), IDENTITY, strict=True))


def test_time_steps_of_mgh_and_metaimage_are_those_of_others(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3, 2), np.float32), np.diag([2.0, 2, 2, 1]))
    image.header.set_zooms((2, 2, 2, 1500))
    image.header.set_xyzt_units("mm", "msec")
    nibabel.save(image, tmp_path / "a.nii")
    for suffix in (".mgh", ".mgz", ".mha"):
        run_job(Job(str(tmp_path / "a.nii"), str(tmp_path / f"a{suffix}"), IDENTITY))
    for footer in (
        (tmp_path / "a.mgh").read_bytes()[-20:],
        gzip.decompress((tmp_path / "a.mgz").read_bytes())[-20:],
    ):
        assert np.frombuffer(footer, ">f4").tolist() == [1500, 0, 0, 0, 0]  # TR in ms
    header = (tmp_path / "a.mha").read_bytes().partition(b"LOCAL")[0].decode()
    assert "ElementSpacing = 2 2 2 1.5\n" in header


def test_a_time_step_behind_packed_voxels_is_said(tmp_path: Path) -> None:
    image = nibabel.MGHImage(np.zeros((5, 4, 3, 2), np.float32), np.diag([2.0, 2, 2, 1]))
    image.header["tr"] = 2500.0
    nibabel.save(image, tmp_path / "a.mgz")
    report = run_job(Job(str(tmp_path / "a.mgz"), str(tmp_path / "a.nii"), IDENTITY))
    assert any("2.5 s, stands behind the packed voxels" in note for note in report.notes)

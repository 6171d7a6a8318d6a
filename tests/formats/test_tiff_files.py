"""OME-TIFFs whose images lie in several files: voxels, metadata and lists of files against what was written into each file."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ometiff import (
    SCHEMA,
    STORED,
    Place,
    image_xml,
    planes,
    write_file,
    write_mmstack,
    write_ndtiff,
    write_positions,
    write_split,
)

from conv3d_cli.errors import FormatError, OutputExistsError
from conv3d_cli.formats import open_volume, read_volume, replaced_part, volume_files, written_files
from conv3d_cli.model.volume import Array
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import check_paths


def check_position(path: Path, number: int, data: Array) -> None:
    """That a file is read as its own image, with the sizes, the place and the names of that one."""
    size = number + 1
    with open_volume(str(path)) as reader:
        grid, items = reader.header.grid, reader.header.metadata.items  # type: ignore[union-attr]
    volume = read_volume(str(path))
    np.testing.assert_array_equal(volume.data, np.squeeze(data))
    assert volume.axes == ("zyx" if len(data) > 1 else "yx")
    assert grid.spacing == (float(size), size / 10, size / 10)
    assert grid.affine is not None
    np.testing.assert_allclose(grid.affine[:3, 3], [1000 * size, 500 * size, 0])
    assert items["Image"] == {"Name": f"position {number}"}
    assert items["Channel"] == [{"Name": f"dye {number}"}]


@pytest.mark.parametrize("pad", [0, 100, 50_000])
@pytest.mark.parametrize("stored", STORED)
def test_a_file_of_a_set_stands_for_its_own_image(tmp_path: Path, stored: str, pad: int) -> None:
    data = write_positions(tmp_path, pad=pad, stored=stored)
    for k, position in enumerate(data):
        check_position(tmp_path / f"p{k}.ome.tif", k, position)
        with open_volume(str(tmp_path / f"p{k}.ome.tif")) as reader:
            assert reader.notes == ()  # nothing of this file was left out
        with tifffile.TiffFile(tmp_path / f"p{k}.ome.tif", is_ome=False) as pages:
            np.testing.assert_array_equal(
                np.stack([page.asarray() for page in pages.pages]), position
            )


@pytest.mark.parametrize("with_uuids", [True, False])
def test_a_plate_of_one_plane_a_file(tmp_path: Path, with_uuids: bool) -> None:
    data = write_positions(tmp_path, 5, with_uuids=with_uuids, depth=1)
    for k, position in enumerate(data):
        check_position(tmp_path / f"p{k}.ome.tif", k, position)


def test_the_files_of_other_images_are_not_needed(tmp_path: Path) -> None:
    data = write_positions(tmp_path)
    (tmp_path / "p0.ome.tif").unlink()
    (tmp_path / "p2.ome.tif").write_bytes(b"damaged")
    check_position(tmp_path / "p1.ome.tif", 1, data[1])


def test_renamed_and_copied_files_are_known_by_their_uuid(tmp_path: Path) -> None:
    data = write_positions(tmp_path)
    shutil.copy(tmp_path / "p1.ome.tif", tmp_path / "copy.ome.tif")
    check_position(tmp_path / "copy.ome.tif", 1, data[1])
    (tmp_path / "p2.ome.tif").rename(tmp_path / "other.ome.tif")
    check_position(tmp_path / "other.ome.tif", 2, data[2])


@pytest.mark.parametrize("pad", [0, 100])
def test_a_file_of_descriptions_alone(tmp_path: Path, pad: int) -> None:
    data = write_positions(tmp_path, 2)
    uuids: dict[str, str | None] = {f"p{k}.ome.tif": f"urn:uuid:{k}" for k in range(2)}
    one, other = (
        image_xml(k, (4, 12, 14), [(f"p{k}.ome.tif", z) for z in range(4)], uuids) for k in range(2)
    )
    blank = np.zeros((1, 2, 2), np.uint8)
    both = write_file(tmp_path / "both.ome.tif", blank, one + other, "urn:uuid:9", pad)
    check_position(both, 0, data[0])
    with open_volume(str(both)) as reader:
        assert reader.notes == (
            "the file describes 2 images in other files: number 0 is used, shape (4, 12, 14); "
            f"{both}::1 names another",
        )
    second = write_file(tmp_path / "second.ome.tif", blank, other, "urn:uuid:9", pad)
    check_position(second, 1, data[1])
    assert volume_files(str(second)) == (str(second), str(tmp_path / "p1.ome.tif"))


@pytest.mark.parametrize("stored", STORED)
def test_an_image_in_two_files(tmp_path: Path, stored: str) -> None:
    data = write_split(tmp_path, stored=stored)
    for name in ("a.ome.tif", "b.ome.tif"):
        check_position(tmp_path / name, 0, data)
    (tmp_path / "a.ome.tif").unlink()
    with pytest.raises(
        FormatError, match=r"2 of its 4 planes are missing: there is no file .*a\.ome\.tif"
    ):
        open_volume(str(tmp_path / "b.ome.tif"))


def test_planes_that_are_all_missing(tmp_path: Path) -> None:
    write_positions(tmp_path, 1, with_uuids=False)
    (tmp_path / "p0.ome.tif").rename(tmp_path / "q.ome.tif")
    with pytest.raises(
        FormatError, match=r"its planes are missing: there is no file .*p0\.ome\.tif"
    ):
        open_volume(str(tmp_path / "q.ome.tif"))


@pytest.mark.parametrize("uuid", ["urn:uuid:same", "", None])
def test_files_that_share_a_uuid_or_have_none(tmp_path: Path, uuid: str | None) -> None:
    data = planes(7, (6, 12, 14))
    names = ("a.ome.tif", "b.ome.tif", "c.ome.tif")
    images = image_xml(
        0, data.shape, [(names[z // 2], z % 2) for z in range(6)], dict.fromkeys(names, uuid)
    )
    for k, name in enumerate(names):
        write_file(tmp_path / name, data[2 * k : 2 * k + 2], images, None, 10 * k)
    for name in names:
        check_position(tmp_path / name, 0, data)


def test_several_images_in_one_file_are_said(tmp_path: Path) -> None:
    small, stack = planes(1, (1, 3, 4)), planes(2)
    xml = image_xml(0, small.shape, [(None, 0)], {}) + image_xml(
        1, stack.shape, [(None, z) for z in range(1, 5)], {}
    )
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=False) as writer:
        for number, page in enumerate([small[0], *stack]):
            description = f'<OME xmlns="{SCHEMA}">{xml}</OME>'.encode() if not number else None
            writer.write(
                page,
                description=description,
                metadata=None,
                photometric="minisblack",
                contiguous=False,
            )
    path = tmp_path / "a.ome.tif"
    check_position(path, 0, small)
    with open_volume(str(path)) as reader:
        assert reader.notes == (
            f"the file holds 2 image series: number 0 is used, shape (3, 4); {path}::1 names "
            "another",
        )
    for part in ("1", "position 1", "Image:1"):
        check_position(Path(f"{path}::{part}"), 1, stack)


def test_strips_out_of_place_in_another_file(tmp_path: Path) -> None:
    data = write_split(tmp_path)
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=False) as writer:
        for page in data[2:]:
            writer.write(
                page, metadata=None, photometric="minisblack", rowsperstrip=4, contiguous=False
            )
    content = bytearray((tmp_path / "b.ome.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as file:
        tag = file.pages[1].tags[273]
        first, second, third = tag.value
        parts = [content[start : start + 4 * 28] for start in (first, second)]
        where = tag.valueoffset
        kind = "<u4" if tag.dtype == 4 else "<u2"
    content[first : first + 112], content[second : second + 112] = parts[1], parts[0]
    new = np.array([second, first, third], kind).tobytes()
    content[where : where + len(new)] = new
    (tmp_path / "b.ome.tif").write_bytes(content)
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.ome.tif")).data, data)


def test_files_of_one_name_in_folders(tmp_path: Path) -> None:
    names = ("0/a.ome.tif", "1/a.ome.tif")
    data = write_split(tmp_path, names)
    uuids: dict[str, str | None] = {name: f"urn:uuid:{k}" for k, name in enumerate(names)}
    images = image_xml(0, data.shape, [(names[z // 2], z % 2) for z in range(4)], uuids)
    top = write_file(tmp_path / "top.ome.tif", np.zeros((1, 2, 2), np.uint8), images, "urn:uuid:9")
    check_position(top, 0, data)
    assert volume_files(str(top)) == tuple(map(str, (top, *(tmp_path / name for name in names))))
    write_file(tmp_path / names[1], data[2:], images, uuids[names[1]], stored="big-endian")
    with pytest.raises(FormatError, match="differ"):  # tifffile would decode the one by the other
        open_volume(str(top))


@pytest.mark.parametrize("change", ["dtype", "shape", "page"])
def test_files_that_differ(tmp_path: Path, change: str) -> None:
    data = write_split(tmp_path)
    others = {"dtype": data[2:].astype(np.float32), "shape": data[2:, :, :7], "page": data[2:]}[
        change
    ]
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=False) as writer:
        for number, page in enumerate(others):
            packed = "zlib" if change == "page" and number else None
            writer.write(
                page, metadata=None, photometric="minisblack", compression=packed, contiguous=False
            )
    with pytest.raises(FormatError, match=r"differ|incompatible") as caught:
        open_volume(str(tmp_path / "a.ome.tif"))
    assert "\n" not in str(caught.value)


def test_damage_in_another_file(tmp_path: Path) -> None:
    write_split(tmp_path, stored="page by page")
    content = bytearray((tmp_path / "b.ome.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "b.ome.tif", is_ome=False) as file:
        first, second = file.pages[0].offset, file.pages[1].offset
    count = int.from_bytes(content[second : second + 2], "little")
    end = second + 2 + 12 * count
    content[end : end + 4] = first.to_bytes(4, "little")
    (tmp_path / "b.ome.tif").write_bytes(content)
    with pytest.raises(FormatError, match=r"b\.ome\.tif: damaged: .* a circle"):
        open_volume(str(tmp_path / "a.ome.tif"))
    (tmp_path / "b.ome.tif").write_bytes(b"")
    with pytest.raises(FormatError, match=r"b\.ome\.tif: the file is empty"):
        open_volume(str(tmp_path / "a.ome.tif"))


# ---------------------------------------------------------------------------------------------------------------------
# What is never opened


@pytest.mark.parametrize(
    "way", ["../secret.tif", "{0}/secret.tif", "sub/../../secret.tif", "./.././secret.tif"]
)
@pytest.mark.parametrize("whole", [True, False])
def test_files_outside_the_folder_are_not_followed(tmp_path: Path, way: str, whole: bool) -> None:
    secret = planes(3)
    tifffile.imwrite(tmp_path / "secret.tif", secret, photometric="minisblack", metadata=None)
    name = way.format(tmp_path)
    places: list[Place] = [(name, z) if whole or z else (None, 0) for z in range(4)]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    path = write_file(
        tmp_path / "in" / "a.ome.tif",
        planes(4),
        image_xml(0, secret.shape, places, {}),
        "urn:uuid:0",
    )
    with pytest.raises(
        FormatError, match="outside the file's folder and is not followed"
    ) as caught:
        open_volume(str(path))
    assert name in str(caught.value)
    with pytest.raises(FormatError, match="not followed"):
        open_volume(str(path), axes="zyx")
    assert volume_files(str(path)) == (str(path),)


def test_absolute_names_within_the_folder(tmp_path: Path) -> None:
    names = (str(tmp_path / "a.ome.tif"), str(tmp_path / "b.ome.tif"))
    data = write_split(tmp_path, names)
    check_position(tmp_path / "a.ome.tif", 0, data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    write_split(tmp_path)
    (tmp_path / "b.ome.tif").unlink()
    os.mkfifo(tmp_path / "b.ome.tif")
    said: list[str] = []

    def attempt() -> None:
        try:
            open_volume(str(tmp_path / "a.ome.tif"))
        except FormatError as error:
            said.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(20)
    assert said
    assert "not a regular file" in said[0]


def test_a_file_named_by_its_uuid_alone(tmp_path: Path) -> None:
    write_split(tmp_path)
    for name in ("a.ome.tif", "b.ome.tif"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(
            content.replace(b'FileName="b.ome.tif"', b'Filename="b.ome.tif"')
        )
    with pytest.raises(FormatError, match=r"by its UUID alone \(urn:uuid:1\)"):
        open_volume(str(tmp_path / "a.ome.tif"))


def test_links_to_a_set(tmp_path: Path) -> None:
    data = write_split(tmp_path / "store")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "link.ome.tif").symlink_to(tmp_path / "store" / "a.ome.tif")
    check_position(tmp_path / "one" / "link.ome.tif", 0, data)
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "b").write_bytes((tmp_path / "store" / "b.ome.tif").read_bytes())
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.ome.tif").symlink_to(tmp_path / "store" / "a.ome.tif")
    (tmp_path / "both" / "b.ome.tif").symlink_to(tmp_path / "apart" / "b")
    (tmp_path / "store" / "b.ome.tif").unlink()
    check_position(tmp_path / "both" / "a.ome.tif", 0, data)


# ---------------------------------------------------------------------------------------------------------------------
# Micro-Manager's lists of planes


def test_a_stack_of_micro_manager_in_two_files(tmp_path: Path) -> None:
    data = write_mmstack(tmp_path)
    names = [str(tmp_path / f"s_MMStack_{k}.tif") for k in range(2)]
    for name, other in (names, names[::-1]):
        volume = read_volume(name)
        assert volume.axes == "rzyx"
        np.testing.assert_array_equal(volume.data, data)
        assert volume_files(name) == (name, other)


def test_a_folder_of_micro_manager(tmp_path: Path) -> None:
    data = write_ndtiff(tmp_path, ("a.tif", "b.tif", "c.tif"))
    for name in ("a.tif", "b.tif", "c.tif"):
        np.testing.assert_array_equal(read_volume(str(tmp_path / name)).data, data)
        assert volume_files(str(tmp_path / name))[0] == str(tmp_path / name)
        assert {os.path.basename(file) for file in volume_files(str(tmp_path / name))} == {
            "a.tif", "b.tif", "c.tif", "NDTiff.index"
        }  # fmt: skip
    (tmp_path / "in").mkdir()
    write_ndtiff(tmp_path / "in", ("a.tif", "../b.tif"))
    with pytest.raises(
        FormatError,
        match=r"its list of planes names .*b\.tif, which is outside the file's folder",
    ):
        open_volume(str(tmp_path / "in" / "a.tif"))


# ---------------------------------------------------------------------------------------------------------------------
# Which files a volume is read from


def test_the_files_of_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_positions(tmp_path / "set", 2)
    write_split(tmp_path / "split")
    monkeypatch.chdir(tmp_path)
    assert volume_files("set/p1.ome.tif") == ("set/p1.ome.tif",)
    assert volume_files("split/b.ome.tif") == ("split/b.ome.tif", "split/a.ome.tif")
    monkeypatch.chdir(tmp_path / "split")
    assert volume_files("a.ome.tif") == ("a.ome.tif", "b.ome.tif")
    assert written_files("a.ome.tif") == ("a.ome.tif",)
    assert volume_files("none.ome.tif") == ("none.ome.tif",)
    Path("bad.ome.tif").write_bytes(b"II*\0rubbish")
    assert volume_files("bad.ome.tif") == ("bad.ome.tif",)
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.tif")
        assert volume_files("pipe.tif") == ("pipe.tif",)  # and no writer is waited for


def test_no_output_replaces_a_part_of_its_input(tmp_path: Path) -> None:
    write_split(tmp_path)
    source, other = str(tmp_path / "a.ome.tif"), str(tmp_path / "b.ome.tif")
    before = (tmp_path / "b.ome.tif").read_bytes()
    assert replaced_part(source, other) == other
    for target in (source, other):
        with pytest.raises(OutputExistsError, match="one of the files that the input"):
            check_paths(Job(source, target, (Stage("identity"),), overwrite=True))
    assert (tmp_path / "b.ome.tif").read_bytes() == before
    assert replaced_part(source, str(tmp_path / "c.ome.tif")) == ""
    single = str(write_file(tmp_path / "s.ome.tif", planes(1), "", None))
    assert replaced_part(single, single) == ""  # a whole volume is its user's to replace


def test_the_same_description_in_every_file(tmp_path: Path) -> None:
    """Its UUID is then one file's, and the names of the files say what lies in which."""
    names, uuids = (
        ("q1.ome.tif", "q2.ome.tif"),
        {"q1.ome.tif": "urn:uuid:1", "q2.ome.tif": "urn:uuid:2"},
    )
    data = planes(3, (6, 12, 14))
    places = [(names[z // 3], z % 3) for z in range(6)]
    images = image_xml(0, data.shape, places, dict(uuids))
    for number, name in enumerate(names):
        write_file(tmp_path / name, data[3 * number : 3 * number + 3], images, uuids["q1.ome.tif"])
    for name in names:
        np.testing.assert_array_equal(read_volume(str(tmp_path / name)).data, data)


# ---------------------------------------------------------------------------------------------------------------------
# Descriptions in a file of their own


def write_companion(folder: Path) -> Array:
    """set.companion.ome with all metadata, and a.ome.tif and b.ome.tif that refer to it."""
    names = ("a.ome.tif", "b.ome.tif")
    data = planes(7)
    uuids: dict[str, str | None] = {name: f"urn:uuid:{k}" for k, name in enumerate(names)}
    images = image_xml(0, data.shape, [(names[z // 2], z % 2) for z in range(4)], uuids)
    text = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}" UUID="urn:uuid:9">{images}</OME>'
    (folder / "set.companion.ome").write_text(text, encoding="utf-8")
    for k, name in enumerate(names):
        only = '<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:9"/>'
        write_file(folder / name, data[2 * k : 2 * k + 2], only, uuids[name])
    return data


def test_a_companion_describes_the_files(tmp_path: Path) -> None:
    data = write_companion(tmp_path)
    for name in ("set.companion.ome", "a.ome.tif", "b.ome.tif"):
        path = tmp_path / name
        check_position(path, 0, data)
        assert set(volume_files(str(path))) == {
            str(tmp_path / file) for file in ("set.companion.ome", "a.ome.tif", "b.ome.tif")
        }
        assert volume_files(str(path))[0] == str(path)
        with open_volume(str(path), again=True) as reader:
            np.testing.assert_array_equal(reader.read(0, slice(0, 4), slice(0, 1))[..., 0], data)
    (tmp_path / "set.companion.ome").rename(tmp_path / "away")
    with pytest.raises(FormatError, match="describes no planes of this file"):
        open_volume(str(tmp_path / "a.ome.tif"))


def test_companions_outside_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_companion(tmp_path)
    only = '<BinaryOnly MetadataFile="../set.companion.ome" UUID="urn:uuid:9"/>'
    path = write_file(tmp_path / "in" / "a.ome.tif", planes(1), only, "urn:uuid:0")
    with pytest.raises(FormatError, match="not followed"):
        open_volume(str(path))
    text = (tmp_path / "set.companion.ome").read_text(encoding="utf-8")
    (tmp_path / "in" / "x.companion.ome").write_text(
        text.replace('FileName="', 'FileName="../'), encoding="utf-8"
    )
    with pytest.raises(FormatError, match="not followed"):
        open_volume(str(tmp_path / "in" / "x.companion.ome"))
    (tmp_path / "in" / "y.companion.ome").write_text("<OME", encoding="utf-8")
    with pytest.raises(FormatError, match="damaged"):
        open_volume(str(tmp_path / "in" / "y.companion.ome"))

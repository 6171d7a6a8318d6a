"""HDF5 and Imaris, written and read back with h5py, whose layout is that of their documents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT, started, wait_until

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import input_format, open_volume, read_volume, write_volume
from conv3d_cli.formats import isolated as isolated_formats
from conv3d_cli.formats.hdf5 import format as hdf5_format
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import Volume
from conv3d_cli.system import isolated

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.usefixtures("hdf5_in_this_process")

VALUES = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)


def h5(path: Path, **datasets: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return str(path)


def error_of(path: str) -> str:
    with pytest.raises(FormatError) as caught:
        open_volume(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tags(keys: str, **resolution: float) -> str:
    """ilastik's attribute, as vigra's AxisTags.toJSON writes it."""
    kinds = {"c": 1, "t": 8}
    axes = [
        {
            "key": key,
            "typeFlags": kinds.get(key, 2),
            "resolution": resolution.get(key, 0),
            "description": "",
        }
        for key in keys
    ]
    return json.dumps({"axes": axes})


class TestDatasets:
    def test_the_only_volume_is_read(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", raw__em=VALUES, raw__dates=np.arange(7), flat=VALUES[0])
        volume = read_volume(path)
        assert (volume.axes, volume.data.dtype) == ("zyx", np.uint16)
        np.testing.assert_array_equal(volume.data, VALUES)
        for name in (f"{path}::raw/em", f"{path}::/raw/em"):
            np.testing.assert_array_equal(read_volume(name).data, VALUES)
        flat = read_volume(f"{path}::flat")
        assert flat.axes == "yx"
        np.testing.assert_array_equal(flat.data, VALUES[0])

    def test_several_are_listed(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", raw=VALUES, label=VALUES, t0__raw=VALUES)
        message = error_of(path)
        assert "name one: ::label (3, 4, 5), ::raw (3, 4, 5), ::t0/raw (3, 4, 5)" in message
        assert "nope is not in it" in error_of(f"{path}::nope")
        assert "t0 is a group; name one: ::t0/raw (3, 4, 5)" in error_of(f"{path}::t0")
        assert "no dataset of three axes" in error_of(h5(tmp_path / "b.h5", x=np.arange(3)))

    def test_a_known_name_is_not_needed(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.dat", raw=VALUES)
        found = input_format(path)
        assert found is not None
        assert found.name == "HDF5"
        with open_volume(path) as reader:
            assert "its content is HDF5" in reader.notes[0]

    @pytest.mark.parametrize("dtype", ["uint8", ">i2", "float16", "float64", "bool"])
    @pytest.mark.parametrize("chunks", [None, (2, 3, 4), (1, 4, 5)])
    def test_chunks_and_types(self, tmp_path: Path, dtype: str, chunks: Any) -> None:
        values = (VALUES % 2 if dtype == "bool" else VALUES).astype(dtype)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            packed = "gzip" if chunks else None
            file.create_dataset("x", data=values, chunks=chunks, compression=packed)
        with open_volume(str(tmp_path / "a.h5")) as reader:
            for depth in (slice(0, 2), slice(2, 3), slice(0, 1)):
                block = reader.read(0, depth, slice(0, 1))
                np.testing.assert_array_equal(block[..., 0], values[depth])
            box = reader.read_box(0, slice(1, 3), slice(1, 4), slice(2, 5), slice(0, 1))
            np.testing.assert_array_equal(box[..., 0], values[1:3, 1:4, 2:5])

    @pytest.mark.parametrize("target", ["o.npy", "o.h5", "o.nii"])
    def test_enumerations_are_their_numbers(
        self, tmp_path: Path, target: str, run: Any, recwarn: Any
    ) -> None:
        kind = h5py.enum_dtype({"background": 0, "nucleus": 1, "cell": 2}, basetype="u1")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("a", data=(VALUES % 3).astype("u1"), dtype=kind)
        run("convert", tmp_path / "a.h5", tmp_path / target)
        volume = read_volume(str(tmp_path / target))
        assert volume.data.dtype.metadata is None
        np.testing.assert_array_equal(volume.data, VALUES % 3)
        assert not [one for one in recwarn.list if "metadata" in str(one.message)]

    def test_chunks_that_were_never_written(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            one = file.create_dataset("x", (4, 5, 6), "u1", chunks=(1, 5, 6), fillvalue=7)
            one[1] = 3
        with open_volume(str(tmp_path / "a.h5")) as reader:
            assert "3 of the 4 chunks of x were never written" in reader.notes[0]
        assert read_volume(str(tmp_path / "a.h5")).data[:, 0, 0].tolist() == [7, 3, 7, 7]

    def test_weights_of_keras_are_no_volume(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", conv3d__kernel=np.zeros((3, 3, 3, 1, 2), "f4"))
        with h5py.File(path, "a") as file:
            file.attrs["keras_version"] = "2.15.0"
        assert "weights of Keras' layers" in error_of(path)


class TestAxesAndSizes:
    def test_ilastiks_axes(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", exported_data=VALUES.reshape(3, 4, 5, 1, 1))
        with h5py.File(path, "a") as file:
            file["exported_data"].attrs["axistags"] = tags("xyzct", z=3.0, y=1.5, x=0.5)
        volume = read_volume(path)
        assert volume.axes == "xyzct"
        assert volume.shape == (1, 5, 4, 3, 1)
        assert volume.grid.spacing == (3.0, 1.5, 0.5)
        assert volume.grid.unit is None

    def test_fijis_sizes(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", t0__channel0=VALUES)
        with h5py.File(path, "a") as file:
            file["t0/channel0"].attrs["element_size_um"] = np.array([0.3, 0.1, 0.2])
        grid = read_volume(path).grid
        assert (grid.spacing, grid.unit) == ((0.3, 0.1, 0.2), "um")

    def test_labels_of_dimensions(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", x=np.zeros((2, 3, 4, 5), "u1"))
        with h5py.File(path, "a") as file:
            for number, label in enumerate(["channel", "z", "y", "x"]):
                file["x"].dims[number].label = label
        assert read_volume(path).axes == "czyx"

    def test_axes_that_do_not_fit_are_ignored_with_a_note(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", x=np.zeros((2, 3, 4, 5), "u1"))
        with open_volume(path) as reader:
            assert reader.header.axes.letters == "zyxc"
            assert reader.notes == ("it does not name its axes: they are read as zyxc",)
        for text in (tags("zyx"), tags("zyxz"), "{", "[" * 5000, '{"axes": 3}', '{"axes": [1]}'):
            with h5py.File(path, "a") as file:
                file["x"].attrs["axistags"] = text
            with open_volume(path, channels_first=True) as reader:
                assert reader.header.axes.letters == "czyx"
                named = text.startswith('{"axes": [{')
                assert any("do not name its 4 axes" in note for note in reader.notes) == named

    def test_an_output_is_ilastiks_and_fijis(self, tmp_path: Path) -> None:
        path = str(tmp_path / "a.h5")
        grid = Grid((0.3, 0.1, 0.2), "um", affine_from_spacing((0.3, 0.1, 0.2)))
        values = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
        write_volume(path, Volume(values, "czyx", grid))
        with h5py.File(path) as file:
            assert list(file) == ["data"]
            data = file["data"]
            assert data.dtype == np.dtype("<f4")
            np.testing.assert_array_equal(data[...], values)
            assert data.attrs["element_size_um"].tolist() == [0.3, 0.1, 0.2]
            found = json.loads(data.attrs["axistags"])["axes"]
            assert [(a["key"], a["typeFlags"]) for a in found] == [("c", 1), ("z", 2), ("y", 2), ("x", 2)]  # fmt: skip

    def test_the_dataset_keeps_its_name(self, tmp_path: Path, run: Any) -> None:
        path = h5(tmp_path / "a.h5", volumes__raw=VALUES, volumes__labels=VALUES)
        out = str(tmp_path / "o.h5")
        run("apply", f"{path}::volumes/raw", "-k", "identity", "-o", out, "--verify", "60")
        with h5py.File(out) as file:
            np.testing.assert_array_equal(file["volumes/raw"][...], VALUES)
        told = run("apply", path, "-k", "identity", "-o", str(tmp_path / "p.h5"), code=3).stderr
        assert "::volumes/labels" in told
        told = run("apply", f"{path}::volumes/raw", "-k", "identity", "-o", f"{out}::x", code=2)
        assert "leave out ::x" in told.stderr
        with pytest.raises(SpecError, match="an output is a whole file"):
            write_volume(f"{out}::x", Volume(VALUES, "zyx"))


class TestOtherFiles:
    """A stranger's file reads only itself."""

    def test_links_to_files(self, tmp_path: Path) -> None:
        h5(tmp_path / "secret.h5", x=VALUES)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["out"] = h5py.ExternalLink("secret.h5", "/x")
            file["soft"] = h5py.SoftLink("/out")
            file["g/near"] = VALUES
            file["g/soft"] = h5py.SoftLink("near")
            file["round"] = h5py.SoftLink("/round")
        path = str(tmp_path / "a.h5")
        for name in ("out", "soft"):
            assert "is a link to another file, secret.h5" in error_of(f"{path}::{name}")
        np.testing.assert_array_equal(read_volume(f"{path}::g/soft").data, VALUES)
        np.testing.assert_array_equal(read_volume(path).data, VALUES)  # g/near alone counts
        assert "is not in it" in error_of(f"{path}::round")

    def test_voxels_in_other_files(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.bin"
        secret.write_bytes(VALUES.tobytes())
        source = h5(tmp_path / "secret.h5", x=VALUES)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("ext", VALUES.shape, "u2", external=[(str(secret), 0, VALUES.nbytes)])  # fmt: skip
            layout = h5py.VirtualLayout(VALUES.shape, "u2")
            layout[...] = h5py.VirtualSource(source, "x", VALUES.shape)
            file.create_virtual_dataset("virtual", layout)
        for name in ("ext", "virtual"):
            assert "lie in other files" in error_of(f"{tmp_path / 'a.h5'}::{name}")

    def test_groups_that_contain_themselves(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["g/x"] = VALUES
            file["g/again"] = file["g"]
        np.testing.assert_array_equal(read_volume(str(tmp_path / "a.h5")).data, VALUES)

    def test_damage(self, tmp_path: Path) -> None:
        path = Path(h5(tmp_path / "a.h5", x=VALUES))
        os.truncate(path, 900)
        assert "damaged" in error_of(str(path))


def characters(text: str) -> np.ndarray:
    """An attribute as Imaris writes it: an array of characters."""
    return np.array([c.encode() for c in text], "S1")


def imaris(path: Path, values: np.ndarray, levels: int = 2) -> str:
    """A file as the format's description has it: (t, c, z, y, x), padded to chunks."""
    with h5py.File(path, "w") as file:
        for level in range(levels):
            part = values[..., :: 2**level, :: 2**level]
            for t in range(values.shape[0]):
                for c in range(values.shape[1]):
                    group = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint {t}/Channel {c}")  # fmt: skip
                    padded = np.zeros([-(-n // 4) * 4 for n in part.shape[2:]], values.dtype)
                    padded[tuple(slice(0, n) for n in part.shape[2:])] = part[t, c]
                    group.create_dataset("Data", data=padded, chunks=(4, 4, 4), compression="gzip")
                    for axis, n in zip("ZYX", part.shape[2:], strict=True):
                        group.attrs[f"ImageSize{axis}"] = characters(str(n))
        image = file.create_group("DataSetInfo/Image")
        for axis, n in zip("ZYX", values.shape[2:], strict=True):
            image.attrs[axis] = characters(str(n))
        image.attrs["Unit"] = characters("um")
        for i, (low, high) in enumerate([(10, 17), (-3, 0), (0, 15)]):  # of x, y, z
            image.attrs[f"ExtMin{i}"] = characters(f"{low}")
            image.attrs[f"ExtMax{i}"] = characters(f"{high}.000")
        for c in range(values.shape[1]):
            channel = file.create_group(f"DataSetInfo/Channel {c}")
            channel.attrs["Name"] = characters(f"dye {c}")
        times = file.create_group("DataSetInfo/TimeInfo")
        for t in range(values.shape[0]):
            times.attrs[f"TimePoint{t + 1}"] = characters(f"2024-01-01 00:00:{t * 5:02}.000")
    return str(path)


class TestImaris:
    values = np.arange(2 * 3 * 5 * 6 * 7, dtype=np.uint16).reshape(2, 3, 5, 6, 7)

    def test_all_is_read(self, tmp_path: Path) -> None:
        path = imaris(tmp_path / "a.ims", self.values)
        with open_volume(path) as reader:
            header = reader.header
            assert header.format == "Imaris"
            assert header.facts.channel_names == ("dye 0", "dye 1", "dye 2")
            assert header.facts.time_step == (5.0, "s")
            assert "2 levels of resolution" in reader.notes[0]
        volume = read_volume(path)
        assert volume.axes == "tczyx"
        np.testing.assert_array_equal(volume.data, self.values)
        assert (volume.grid.spacing, volume.grid.unit) == ((3.0, 0.5, 1.0), "um")
        # the extent is that of the borders: the first voxel's centre is half a voxel inside
        assert volume.grid.affine is not None
        assert volume.grid.affine[:3, 3].tolist() == [10.5, -2.75, 1.5]

    def test_levels(self, tmp_path: Path, run: Any) -> None:
        path = imaris(tmp_path / "a.ims", self.values)
        level = read_volume(f"{path}::1")
        np.testing.assert_array_equal(level.data, self.values[..., ::2, ::2])
        assert level.grid.spacing == (3.0, 1.0, 1.75)
        assert "its levels are 0 to 1" in error_of(f"{path}::2")
        out = str(tmp_path / "o.nii.gz")
        run("apply", f"{path}::1", "-k", "identity", "-o", out, "--verify", "50")
        run("apply", path, "-k", "box:size=3", "--out-dir", str(tmp_path / "d"))
        assert os.listdir(tmp_path / "d") == ["a.ome.zarr"]

    def test_boxes_and_one_channel(self, tmp_path: Path) -> None:
        path = imaris(tmp_path / "a.ims", self.values[:1, :1])
        with open_volume(path) as reader:
            assert reader.header.axes.letters == "zyx"
            box = reader.read_box(0, slice(1, 5), slice(2, 6), slice(3, 7), slice(0, 1))
            np.testing.assert_array_equal(box[..., 0], self.values[0, 0, 1:5, 2:6, 3:7])

    def test_damage(self, tmp_path: Path) -> None:
        path = imaris(tmp_path / "a.ims", self.values)
        with h5py.File(path, "a") as file:
            file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"].attrs["ImageSizeX"] = characters("99")  # fmt: skip
        assert "does not fit into its dataset" in error_of(path)
        with h5py.File(path, "a") as file:
            del file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"]
            file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"] = h5py.ExternalLink(
                "b.ims", "/"
            )
        assert "link to another file" in error_of(path)
        assert "no Imaris file" in error_of(h5(tmp_path / "b.ims", x=VALUES))


def damaged_heap(path: Path, size: int = 255) -> str:
    """A file whose global heap names a wrong size of an object: the library loops over it."""
    with h5py.File(path, "w", libver="earliest") as file:
        data = file.create_dataset("x", data=VALUES)
        data.attrs["DIMENSION_LABELS"] = np.array(list("zyx"), dtype=h5py.string_dtype())
    content = bytearray(path.read_bytes())
    content[content.index(b"GCOL") + 48] = size  # the size of its second text
    path.write_bytes(content)
    return str(path)


def cpu_ticks(process: int) -> int:
    """The CPU time that a process has taken; starting takes 0.3 s, and then it loops."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class TestProcessOfItsOwn:
    """As outside of these tests; the others read in this process."""

    @pytest.fixture(autouse=True)
    def a_process(self, hdf5_in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
        for user in (isolated_formats, hdf5_format):
            monkeypatch.setattr(user, "Isolated", isolated.Isolated)

    @pytest.mark.parametrize(("axes", "shape"), [("zyx", (3, 4, 5)), ("ctzyx", (2, 3, 4, 5, 6))])
    def test_it_reads_the_same(
        self, tmp_path: Path, axes: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = np.arange(np.prod(shape), dtype=">i4").reshape(shape)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            chunks = tuple(min(2, n) for n in shape)
            data = file.create_dataset("x", data=values, chunks=chunks, compression="gzip")
            data.attrs["axistags"] = tags(axes, x=2.0, y=2.0, z=3.0)
            data.attrs["history"] = "a line"
        here = hdf5_format.open_hdf5(str(tmp_path / "a.h5"))
        monkeypatch.setitem(sys.modules, "h5py", None)  # not in this process
        with here, open_volume(str(tmp_path / "a.h5")) as reader:
            assert repr(reader.header) == repr(here.header)
            assert (reader.path, reader.notes) == (here.path, here.notes)
            assert reader.storage() == here.storage()
            assert reader.channels_together == here.channels_together
            boxes = [slice(1, 3), slice(1, 4), slice(0, 5), slice(0, reader.header.shape[4])]
            for n in range(reader.header.shape[0]):
                np.testing.assert_array_equal(reader.read_box(n, *boxes), here.read_box(n, *boxes))
                for read in (slice(0, 2), slice(1, 3)):
                    one = reader.read(n, read, boxes[3])
                    np.testing.assert_array_equal(one, here.read(n, read, boxes[3]))
            reader.finish()

    def test_its_memory_counts(self, tmp_path: Path) -> None:
        path = h5(tmp_path / "a.h5", x=VALUES)
        with hdf5_format.open_hdf5(path) as here, open_volume(path) as reader:
            more = reader.buffer_bytes(2, 1) - here.buffer_bytes(2, 1)
            block = 2 * 4 * 5 * VALUES.itemsize
            assert more == isolated.PROCESS_BYTES + isolated.PIPE_BYTES + block
            access, plain = reader.box_access(), here.box_access()
            assert access is not None
            assert plain is not None
            assert access.unit == plain.unit
            assert access.buffer_bytes - plain.buffer_bytes > isolated.PROCESS_BYTES

    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
    def test_the_process_is_not_larger_than_it_is_said_to_be(self, tmp_path: Path) -> None:
        with open_volume(h5(tmp_path / "a.h5", x=VALUES)) as reader:
            assert isinstance(reader, isolated_formats.IsolatedReader)
            status = Path(f"/proc/{reader._process._process.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) << 10
        assert peak < isolated.PROCESS_BYTES, f"{peak / 2**20:.0f} MiB"

    def test_a_loop_of_the_library_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(isolated, "SECONDS", 1.0)
        path = damaged_heap(tmp_path / "a.h5")
        assert "damaged: the HDF5 library did not finish in 1 seconds" in error_of(path)
        assert not hdf5_format.holds_more(path)

    @pytest.mark.parametrize("name", ["a.h5", "a.ims", "a.mnc"])
    def test_a_crash_is_one_line(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "h5py.py").write_text("import os; os.abort()")
        h5(tmp_path / name, **{"x" if name == "a.h5" else "minc-2.0": VALUES})
        monkeypatch.syspath_prepend(tmp_path / "lib")
        assert "the HDF5 library crashed (" in error_of(str(tmp_path / name))

    @pytest.mark.parametrize("second", [False, True], ids=["input", "mask"])
    def test_an_interrupt_ends_a_loop(self, tmp_path: Path, second: bool) -> None:
        """The signal reaches conv3d alone, as by `kill -INT`."""
        looping = damaged_heap(tmp_path / "a.h5")
        np.save(tmp_path / "v.npy", VALUES)
        source = [str(tmp_path / "v.npy"), "--mask", looping] if second else [looping]
        command = [sys.executable, "-m", "conv3d_cli", "apply", *source, "-k", "box:size=3"]
        with started([*command, "-o", tmp_path / "o.npy"], stderr=subprocess.PIPE) as process:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if not children.exists():
                pytest.skip("needs /proc")
            wait_until(lambda: children.read_text().split(), process)
            child = int(children.read_text().split()[0])
            wait_until(lambda: cpu_ticks(child) > 0.6 * os.sysconf("SC_CLK_TCK"), process)
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 130, errors
        assert errors.decode() == "interrupted; no output was left behind\n"
        assert time.monotonic() - begin < 10, "30 s of computing were waited for"
        assert not Path(f"/proc/{child}").exists()

    def test_an_interrupt_ends_a_loop_among_the_voxels(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread waits for them."""
        lib = tmp_path / "lib"
        lib.mkdir()
        (lib / "loops.py").write_text(
            "import conv3d_cli.formats.hdf5.file as file\n"
            "from conv3d_cli.formats.hdf5.format import open_hdf5\n"
            "def part(*_):\n"
            "    open('reading', 'w').close()\n"
            "    while True: pass\n"
            "def opener(*a, **k):\n"
            "    reader = open_hdf5(*a, **k)\n"
            "    reader.part = part\n"
            "    return reader\n"
        )
        (lib / "run.py").write_text(
            "import dataclasses, os, signal, threading, time\n"
            "from conv3d_cli import formats\n"
            "from conv3d_cli.formats import hdf5, isolated\n"
            "object.__setattr__(hdf5.FORMAT, 'open', isolated.isolated('loops:opener', 'HDF5'))\n"
            "def interrupt():\n"
            "    while not os.path.exists('reading'): time.sleep(0.01)\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "threading.Thread(target=interrupt, daemon=True).start()\n"
            "from conv3d_cli import convolve_file\n"
            "try:\n"
            "    convolve_file('a.h5', 'o.npy', 'box:size=3')\n"
            "except KeyboardInterrupt:\n"
            "    print('interrupted')\n"
        )
        h5(tmp_path / "a.h5", x=VALUES)
        environment = {**os.environ, "PYTHONPATH": f"{lib}{os.pathsep}{os.getcwd()}"}
        begin = sum(os.times()[2:4])
        ran = subprocess.run(
            [sys.executable, lib / "run.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        assert ran.stdout == b"interrupted\n", ran.stderr
        assert sum(os.times()[2:4]) - begin < 15, "30 s of computing were waited for"


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="no longer than float64 here")
def test_voxels_longer_than_float64_are_refused_under_strict(
    tmp_path: Path, run: Any, error_line: Any
) -> None:
    """What is lost by reading is still known when the process that reads has finished."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = np.arange(24, dtype=np.longdouble).reshape(2, 3, 4)
    refused = run("convert", tmp_path / "a.h5", tmp_path / "o.npy", "--strict", code=4)
    assert "they are read as float64, to 16 digits" in error_line(refused.stderr)
    assert not (tmp_path / "o.npy").exists()

"""Weights files that lie: damaged, truncated, swollen and malicious ones end as one line, and
nothing in them is run.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import LIMIT
from profiles import examples

from conv3d_cli.errors import Conv3DError, FormatError, MemoryLimitError, ShapeError
from conv3d_cli.kernels import read_kernel
from conv3d_cli.kernels.weights import (
    OtherLayer,
    model_config,
    pickles,
    pytorch,
    read_contents,
    read_layers,
)
from conv3d_cli.kernels.weights.layer import Archive
from conv3d_cli.kernels.weights.pickles import (
    Name,
    Record,
    RefusedError,
    Storage,
    Tensor,
    read_pickle,
)
from conv3d_cli.system import isolated

DATA = Path(__file__).parent.parent / "data" / "weights"
FILES = [
    "two.keras",
    "nested.weights.h5",
    "keras2.h5",
    "net.safetensors",
    "attributes.onnx",
    "state.pt",
    "whole.pt",
    "old.pth.tar",
    "program.pt2",
]

# Whole HDF5 files with wrong contents.
undamaged = pytest.mark.usefixtures("hdf5_in_this_process")


def library_for(file: str | Path) -> None:
    suffix = Path(file).suffix
    if suffix in (".keras", ".h5"):
        pytest.importorskip("h5py")
    if suffix == ".onnx":
        pytest.importorskip("onnx")


def refused(path: Path, words: str = ".", kind: type[Conv3DError] = FormatError) -> str:
    """The one line a file is refused with, before much memory is taken."""
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=words) as error:
            read_layers(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert len(text) < 700
    assert peak < (32 << 20) + 20 * path.stat().st_size, peak
    return text


def outcome(path: Path) -> str:
    """What comes of a file that may be damaged: "read", or the line it is refused with."""
    try:
        layers = read_layers(path)
    except Conv3DError as error:
        return str(error)
    assert all(
        layer.kernel.ndim == 5 and layer.kernel.nbytes <= 2 * path.stat().st_size
        for layer in layers
    )
    return "read"


# --------------------------------------------------------------------------------------------------
# Any format


@pytest.mark.parametrize("file", FILES)
def test_truncated_files(file: str, tmp_path: Path) -> None:
    library_for(file)
    raw = (DATA / file).read_bytes()
    path = tmp_path / file
    for length in (1, 7, 8, 20, len(raw) // 3, len(raw) // 2, len(raw) - 50, len(raw) - 1):
        path.write_bytes(raw[:length])
        text = outcome(path)
        # what is cut may be no part of the weights
        assert str(path) in text or (text == "read" and file.endswith((".h5", ".onnx"))), length


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content",
    [b"\0" * 4096, b"hello world, " * 400, b"PK\3\4" + b"\xff" * 300],
    ids=["0", "text", "zip"],
)
def test_other_bytes(file: str, content: bytes, tmp_path: Path) -> None:
    library_for(file)
    path = tmp_path / file
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("file", FILES)
def test_empty_files_and_folders(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.touch()
    refused(path, "the file is empty")
    path.unlink()
    path.mkdir()
    with pytest.raises(FormatError, match="it is a folder"):
        read_layers(path)


@pytest.mark.parametrize(
    "file",
    ["net.safetensors", "attributes.onnx", "state.pt", "checkpoint.pth", "whole.pt", "old.pth.tar"],
)
@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8)
)
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes(file: str, edits: list[tuple[int, int]], tmp_path: Path) -> None:
    library_for(file)
    raw = bytearray((DATA / file).read_bytes())
    for place, value in edits:
        raw[place % len(raw)] = value
    path = tmp_path / file
    path.write_bytes(raw)
    assert "\n" not in outcome(path)


# --------------------------------------------------------------------------------------------------
# Pickles


def pt_file(path: Path, content: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", content)
        for name, data in members.items():
            archive.writestr(f"net/{name}", data)
    return path


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["system", "eval", "getattr", "import"])
def test_no_pickle_is_run(name: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    evil = {
        "system": Evil(os.system, f"touch {marker}"),
        "eval": Evil(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Evil(getattr, "text", "upper"),
        "import": Evil(__import__, "antigravity"),
    }[name]
    state = collections.OrderedDict(weight=evil)
    path = pt_file(tmp_path / "net.pt", pickle.dumps(state, protocol=protocol))
    refused(path, r"weight \(its weights are stored as \w+\.\w+, which is not read\)")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "name", "arguments"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system", ("true",)),
        (b"(S'true'\nios\nsystem\n.", "os.system", ("true",)),  # INST
        (b"(cos\nsystem\nS'true'\no.", "os.system", ("true",)),  # OBJ
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "os.system", ("true",)),
        (b"ctorch.nn.modules.conv\nConv3d\n)\x81}b.", "torch.nn.modules.conv.Conv3d", ()),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(tR.", "torch._utils._rebuild_tensor_v2", ()),
        (b"ccollections\nOrderedDict\n(S'a'\ntR.", "collections.OrderedDict", ("a",)),
        (b"ctorch\nFloatStorage\n)R.", "torch.FloatStorage", ()),
    ],
)
def test_calls_become_records(content: bytes, name: str, arguments: tuple[str, ...]) -> None:
    record = read_pickle(content).content
    assert isinstance(record, Record)
    assert (record.name, record.arguments) == (name, arguments)


@pytest.mark.parametrize("content", [b"\x80\x02\x82\x01.", b"Ppersistent\n.", b"N\x97."])
def test_operations_that_are_refused(content: bytes) -> None:
    with pytest.raises(RefusedError):
        read_pickle(content)


class Plain:
    """An object with attributes, or with slots."""


def test_records_keep_attributes_and_members() -> None:
    plain = Plain()
    plain.__dict__.update(a=1, b=[2])
    members: Any = collections.defaultdict(list, {"x": 3})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        record, others = read_pickle(pickle.dumps((plain, members), protocol)).content
        assert record.name.endswith(".Plain")
        assert record.attributes == {"a": 1, "b": [2]}
        assert others.items == {"x": 3}


def test_pickles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, in operations, in lists that are copied, and in memory."""
    from conv3d_cli.system.room import ceiling_of_memory

    monkeypatch.setattr(pickles, "_MAX_OPERATIONS", 1000)
    with pytest.raises(RefusedError, match="more than 1,000 operations"):
        read_pickle(b"]" * 1001 + b".")
    copies = (
        b"(" + b"]]\x86" * 200 + b"lq\x00ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 9
    )
    with pytest.raises(RefusedError, match="more than 1,000 operations"):
        read_pickle(copies + b".")
    with ceiling_of_memory(300 << 20), pytest.raises(MemoryLimitError, match="its pickle needs"):
        read_pickle(b"}" * (1 << 20) + b".")
    with pytest.raises(RefusedError, match="a pickle of"):
        read_pickle(bytes(pickles.MAX_PICKLE + 1))


def small_room(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the ceiling of memory leave so many bytes."""
    from conv3d_cli.system import room

    monkeypatch.setattr(room, "READING_BYTES", room.READING_BYTES + room.room_left() - size)


def test_what_exceeds_the_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle, a member of an archive, and a storage that is larger than its tensor."""
    content = pickle.dumps({"a": [{} for _ in range(100)]})
    large = pt_file(tmp_path / "large.pt", content)
    part = pt_file(
        tmp_path / "part.pt",
        tensor_pickle((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), count=2000),
        **{"data/0": bytes(8000)},
    )
    assert read_layers(part)[0].kernel.size == 1
    small_room(monkeypatch, 2000 * 12)
    assert read_layers(part)[0].kernel.size == 1
    small_room(monkeypatch, 2000 * 12 - 1)
    refused(part, "the storage of tensor a.weight needs", MemoryLimitError)
    small_room(monkeypatch, 16 << 10)
    refused(large, "its pickle needs", MemoryLimitError)
    small_room(monkeypatch, len(content) - 1)
    refused(large, "its net/data.pkl needs", MemoryLimitError)


def test_what_occurs_often_is_met_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of a pickle repeat a shape, a quantizer or a state of any size."""
    shape = (1,) * 65
    with pytest.raises(ValueError, match="damaged tensor"):
        read_pickle(tensor_pickle(shape, shape))
    storage, view = Storage("0", "float32", 1), ((1,), (1,))
    tensor = Tensor(storage, 0, *view)
    axis = (Name("torch.per_channel_affine"), tensor, tensor, 0)
    codes = pickles._call_result(Name("torch._utils._rebuild_qtensor"), (storage, 0, *view, axis))
    assert isinstance(codes, Tensor)
    again = (axis[0], codes, tensor, 0)
    refused = pickles._call_result(
        Name("torch._utils._rebuild_qtensor"), (storage, 0, *view, again)
    )
    assert isinstance(refused, Record)

    def keys(content: Any) -> list[str]:
        return list(pytorch.state_dict_of(content, lambda *_: bytes(4), "<", "net.pt").shapes)

    state = {"_modules": {}, "_parameters": {"w": tensor}}
    assert keys([Record("a.B", (), state), Record("a.B", (), state)]) == ["w"]
    states: list[Any] = [{"_modules": {}, "_parameters": state["_parameters"]} for _ in "ab"]
    assert keys([Record("a.B", (), each) for each in states]) == ["w"]
    script = {"training": False, "w": tensor}
    assert keys([Record("__torch__.B", (), script), Record("__torch__.B", (), script)]) == ["w"]


def test_a_source_is_read_once(tmp_path: Path) -> None:
    asked: list[str] = []

    class Counted(Archive):
        def read(self, name: str) -> bytes:
            asked.append(name)
            return super().read(name)

    path = tmp_path / "net.pt"
    source = "class A(Module):\n  n : Final[int] = 1\nclass B(Module):\n  n : Final[int] = 2\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("code/__torch__/m.py", source)
    shared: dict[str, Any] = {}
    inner = {key: Record(f"__torch__.m.{key}", (), {}) for key in "AB"}
    inner |= {key: Record(f"__torch__.n.{key}", (), shared) for key in "CD"}
    with Counted(str(path)) as archive:
        pytorch._add_constants(Record("__torch__.Net", (), inner), archive, "code/", str(path))
    assert asked == ["code/__torch__/m.py"]
    assert (inner["A"].state, inner["B"].state) == ({"n": 1}, {"n": 2})
    assert inner["C"].state is inner["D"].state is shared


@pytest.mark.parametrize("folder", ["a.", "lora_."])
def test_names_that_are_too_long(folder: str, tmp_path: Path) -> None:
    """Each part of a name is a module, whose own name is longer than that of the one around it."""
    path = tensors_file(tmp_path / "net.safetensors", {f"{folder * 6000}weight": entry()})
    refused(path, "the name of a tensor, .*, has 6,000 dots; at most 200 are read")
    tensor = Tensor(Storage("0", "float32", 1), 0, (1,), (1,))
    inner = {"_modules": {}, "_parameters": {"w": tensor}}
    outer = {"_modules": {folder * 600: Record("a.B", (), inner)}, "_parameters": {}}
    for content in (Record("a.B", (), outer), [{folder * 600: {"w": tensor}}, {"w": tensor}]):
        with pytest.raises(ValueError, match=r"a (module|dict) has a name of"):
            pytorch.state_dict_of(content, lambda *_: bytes(4), "<", "net.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"0.",
        b"t.",
        b"u.",
        b"}N.X",
        b"h\x05.",
        b"\x86.",
        b"e.",
        b"N(N.",
        b"]s.",
        b"\x95" + b"\xff" * 8,
        b"X\xff\xff\xff\x7f.",
    ],
)
def test_damaged_pickles(content: bytes, tmp_path: Path) -> None:
    refused(pt_file(tmp_path / "net.pt", content))


def test_what_plain_pickles_hold() -> None:
    held = {
        "a": [1, -(2**70), 2.5, None, True],
        "b": ((), ("x",), {"c": b"y"}),
        "d": collections.OrderedDict(e=1),
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        if protocol < 3:  # bytes are a function call there
            held["b"] = ((), ("x",), {})
        assert read_pickle(pickle.dumps(held, protocol=protocol)).content == held
        held["b"] = ((), ("x",), {"c": b"y"})


def tensor_pickle(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    count: int = 16,
    kind: str = "Float",
) -> bytes:
    """The pickle of {"a.weight": tensor}, as torch writes it."""

    def number(n: int) -> bytes:
        raw = n.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    storage = (
        b"("
        + text("storage")
        + f"ctorch\n{kind}Storage\n".encode()
        + text("0")
        + text("cpu")
        + number(count)
        + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + numbers(shape)
        + numbers(strides)
    )
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("a.weight") + tensor + b"s."


def test_a_tensor_by_hand(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.float32)
    pickled = tensor_pickle((2, 1, 2, 2, 2), (8, 8, 4, 2, 1))
    path = pt_file(tmp_path / "net.pt", pickled, **{"data/0": values.tobytes()})
    np.testing.assert_array_equal(
        read_layers(path)[0].kernel, values.reshape(2, 1, 2, 2, 2).transpose(2, 3, 4, 1, 0)
    )
    big = pt_file(
        tmp_path / "big.pt",
        pickled,
        **{"data/0": values.astype(">f4").tobytes(), "byteorder": b"big"},
    )
    np.testing.assert_array_equal(read_layers(big)[0].kernel, read_layers(path)[0].kernel)


@pytest.mark.parametrize(
    ("arguments", "words", "kind"),
    [
        ({"shape": (2, 1, 2, 2, 3), "strides": (12, 12, 6, 3, 1)}, "reaches beyond", FormatError),
        (
            {"shape": (2, 1, 2, 2, 2), "strides": (8, 8, 4, 2, 1), "offset": 1},
            "reaches beyond",
            FormatError,
        ),
        (
            {"shape": (2, 1, 2, 2, 2), "strides": (8, 8, 4, 2, 1), "count": 10**11},
            "truncated",
            FormatError,
        ),
        (
            {"shape": (100, 100, 10, 10, 10), "strides": (0, 0, 0, 0, 0)},
            "repeats some of its 16 numbers",
            FormatError,
        ),
        ({"shape": (10**6, 10**6, 1, 1, 1), "strides": (0, 0, 0, 0, 0)}, "at most", ShapeError),
        ({"shape": (2, 1, 2, 2, 2), "strides": (8, 8, 4, -2, 1)}, "damaged", FormatError),
        ({"shape": (2, 1, 2, 2, 2), "strides": (8, 8, 4, 2)}, "damaged", FormatError),
        (
            {"shape": (2, 1, 2, 2, 2), "strides": (8, 8, 4, 2, 1), "kind": "Int"},
            "its weight holds int32, not floats",
            FormatError,
        ),
        ({"shape": (0, 1, 2, 2, 2), "strides": (8, 8, 4, 2, 1)}, "", Conv3DError),
    ],
)
def test_tensors_that_lie(
    arguments: dict[str, Any], words: str, kind: type[Conv3DError], tmp_path: Path
) -> None:
    path = pt_file(tmp_path / "net.pt", tensor_pickle(**arguments), **{"data/0": bytes(64)})
    if words:
        refused(path, words, kind)
    else:
        with pytest.raises(ShapeError, match="empty"):
            read_layers(path)[0].as_kernel("a")


def test_dicts_within_dicts_end(tmp_path: Path) -> None:
    content: Any = {}
    for _ in range(60):
        content = {str(i): content for i in range(9)}
    refused(pt_file(tmp_path / "net.pt", pickle.dumps(content)), "no Conv3D layer")


# --------------------------------------------------------------------------------------------------
# Zip files


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("config.json", "w") as member,
    ):
        for _ in range(200):
            member.write(b" " * (1 << 20))
    refused(path, r"config.json would swell from [\d,]+ to 209,715,200 bytes")


def test_a_member_that_declares_too_little(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (64 << 20))
    raw = bytearray(buffer.getvalue())
    where = raw.rindex(b"PK\1\2")
    raw[where + 24 : where + 28] = struct.pack("<I", 100)
    path = tmp_path / "bomb.keras"
    path.write_bytes(raw)
    refused(path)


@undamaged
def test_a_keras_file_without_its_parts(tmp_path: Path) -> None:
    for members, words in (
        ({"a": b"1"}, "holds no config.json"),
        ({"config.json": b"[]"}, "is no JSON object"),
        ({"config.json": b"{"}, "is not JSON"),
        ({"config.json": b'{"a": 1, "a": 2}'}, "a key twice"),
        ({"config.json": b"[" * 100_000}, "nested too deeply|not JSON"),
        ({"config.json": b"{}"}, "holds no model.weights.h5"),
        ({"config.json": b"{}", "model.weights.npz": b""}, "pickled.*never loaded"),
        (
            {"config.json": b"{}", "model.weights.h5": b"123456789"},
            "not an HDF5 file|not installed",
        ),
    ):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        refused(path, words)


@undamaged
def test_a_config_that_does_not_fit_its_weights(tmp_path: Path) -> None:
    library_for("two.keras")
    with zipfile.ZipFile(DATA / "two.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for change, words in (
        ({"filters": 5}, "has 5 filters of .* in its config, but weights of"),
        ({"kernel_size": [3, 3]}, "kernel_size"),
        ({"groups": "many"}, "groups must divide"),
        ({"strides": [1, 0, 1]}, "strides"),
        ({"padding": "causal"}, "padding must be"),
        ({"padding": [1]}, "layer conv3d_1"),
        ({"data_format": "zyx"}, "data_format"),
    ):
        config = json.loads(parts["config.json"])
        layer = next(
            entry for entry in config["config"]["layers"] if entry["class_name"] == "Conv3D"
        )
        layer["config"].update(change)
        path = tmp_path / "two.keras"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (parts | {"config.json": json.dumps(config).encode()}).items():
                archive.writestr(name, content)
        refused(path, words)


# --------------------------------------------------------------------------------------------------
# safetensors


def tensors_file(
    path: Path, header: Any, data: bytes = bytes(32), length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(
    dtype: str = "F32", shape: Any = (1, 1, 2, 2, 2), offsets: Any = (0, 32)
) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": offsets,
    }


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a.weight": entry(offsets=[0, 64])}, "damaged, or the file is truncated"),
        ({"a.weight": entry(offsets=[32, 0])}, "damaged"),
        ({"a.weight": entry(offsets=[-32, 0])}, "damaged"),
        ({"a.weight": entry(offsets=[0.0, 32.0])}, "damaged"),
        ({"a.weight": entry(offsets=[0])}, "damaged"),
        ({"a.weight": {"dtype": "F32"}}, "damaged"),
        ({"a.weight": 3}, "damaged"),
        ({"a.weight": entry(), "b.weight": entry(offsets=[16, 32])}, "overlaps another"),
        (
            {"a.weight": entry(shape=(1, 1, 1, 2, 2), offsets=[16, 32])},
            "leaves a gap of unused bytes before it",
        ),
        ({"a.weight": entry(shape=(1, 1, 1, 2, 2), offsets=[0, 16])}, "belong to no tensor"),
        ({"a.weight": entry(dtype="I32")}, "holds I32"),
        ({"a.weight": entry(dtype="F99")}, "holds F99"),
        ({"a.weight": entry(shape=(1, 1, 3, 2, 2))}, "cannot have 32 bytes"),
        ({"a.weight": entry(shape=(-1, -1, 2, 2, 2))}, "has the shape"),
        ({"a.weight": entry(shape=[True, 1, 2, 2, 2])}, "has the shape"),
        ({"a.weight": entry(shape=(1, 8))}, "no Conv3D layer"),
        (b"[1, 2]", "no JSON object"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_safetensors_headers_that_lie(header: Any, words: str, tmp_path: Path) -> None:
    refused(tensors_file(tmp_path / "net.safetensors", header), words)


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 10_000])
def test_safetensors_lengths_that_lie(length: int, tmp_path: Path) -> None:
    refused(tensors_file(tmp_path / "net.safetensors", {}, length=length), "it claims a header of")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "without a 'weight_map'"),
        ({"a.weight": "../net.safetensors"}, "names the file '../net.safetensors'"),
        ({"a.weight": "net.exe"}, "names the file 'net.exe'"),
        (
            {"a.weight": "gone.safetensors"},
            "its weights are in gone.safetensors: it is not in its folder",
        ),
        ({"b.weight": "net.safetensors"}, "names the tensor b.weight in net.safetensors, which"),
        ({f"{i}.weight": f"{i}.safetensors" for i in range(300)}, "names 300 files; at most 256"),
    ],
)
@pytest.mark.parametrize("layer", ["", "::a"])
def test_an_index_that_lies(table: dict[str, str], words: str, layer: str, tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1, 1, 1, 1, 1], "data_offsets": [0, 4]}
    tensors_file(tmp_path / "net.safetensors", {"a.weight": entry}, bytes(4))
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    with pytest.raises(FormatError, match=words):
        read_kernel(f"{path}{layer}")


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    """A link in its folder may not; nor is the index itself read whatever its length."""
    (tmp_path / "in").mkdir()
    tensors_file(tmp_path / "net.safetensors", {"a.weight": entry()}, bytes(4))
    (tmp_path / "in/net.safetensors").symlink_to(tmp_path / "net.safetensors")
    path = tmp_path / "in/model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a.weight": "net.safetensors"}}))
    refused(path, "weights are read only from its own folder")
    with open(path, "r+b") as file:
        file.truncate((64 << 20) + 1)
    refused(path, "it has 67,108,865 bytes; at most 67,108,864 of JSON are read")


def test_absurd_shapes(tmp_path: Path) -> None:
    header = {"a.weight": entry(shape=(10**5, 10**5, 3, 3, 3))}
    refused(tensors_file(tmp_path / "net.safetensors", header), "at most 100,000,000", ShapeError)


# --------------------------------------------------------------------------------------------------
# HDF5


@pytest.mark.parametrize(
    ("code", "timeout", "words"),
    [
        ("import os; os.abort()", LIMIT, "the HDF5 library crashed"),
        ("while True: pass", 1, "did not finish"),
    ],
)
def test_a_library_that_crashes_or_loops(
    code: str, timeout: float, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h5py.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(isolated, "SECONDS", timeout)
    refused(DATA / "keras2.h5", words)


def h5_file(path: Path, build: Callable[[Any], None]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        build(file)
    return path


@undamaged
def test_hdf5_that_keras_did_not_save(tmp_path: Path) -> None:
    refused(
        h5_file(tmp_path / "a.h5", lambda f: f.create_dataset("x", data=[1.0])),
        "not one that Keras saved",
    )


@undamaged
def test_keras_1_is_refused(tmp_path: Path) -> None:
    path = h5_file(tmp_path / "old.h5", lambda f: f.attrs.create("layer_names", [b"a"]))
    refused(path, "saved by Keras 1")


@undamaged
def test_numbers_in_other_files_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    where = [(str(tmp_path / "secret"), 0, 32)]
    path = h5_file(
        tmp_path / "a.weights.h5",
        lambda f: f.create_dataset("layers/conv3d/vars/0", (1, 1, 2, 2, 2), "f4", external=where),
    )
    refused(path, "in another file, which is never opened")


@undamaged
def test_links_are_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    other = h5_file(
        tmp_path / "other.h5", lambda f: f.create_dataset("w", data=np.ones((1, 1, 2, 2, 2), "f4"))
    )

    def build(file: Any) -> None:
        file.create_group("layers/conv3d/vars")["0"] = h5py.ExternalLink(str(other), "w")
        file["layers/conv3d_1/vars/0"] = h5py.SoftLink("/layers/conv3d/vars/0")

    refused(h5_file(tmp_path / "a.weights.h5", build), "no Conv3D layer")


@undamaged
def test_groups_that_contain_themselves(tmp_path: Path) -> None:
    def build(file: Any) -> None:
        group = file.create_group("layers/sequential")
        group["layers"] = file["layers"]

    refused(h5_file(tmp_path / "a.weights.h5", build), "contain one another")


@undamaged
def test_datasets_larger_than_their_storage(tmp_path: Path) -> None:
    shape = (100, 100, 10, 10, 10)
    for options in ({}, {"chunks": True}, {"chunks": True, "compression": "gzip"}):
        path = h5_file(
            tmp_path / "a.weights.h5",
            lambda f, o=options: f.create_dataset("layers/conv3d/vars/0", shape, "f4", **o),
        )
        refused(path, r"promises 40,\d\d\d,\d\d\d bytes, 0 are stored")


@undamaged
def test_hdf5_of_other_types(tmp_path: Path) -> None:
    for values in (np.ones((1, 1, 2, 2, 2), "i4"), np.ones((1, 1, 2, 2, 2), "c8")):
        path = h5_file(
            tmp_path / "a.weights.h5",
            lambda f, v=values: f.create_dataset("layers/conv3d/vars/0", data=v),
        )
        refused(path, "not floats")


@undamaged
def test_a_bias_that_does_not_fit(tmp_path: Path) -> None:
    def build(file: Any) -> None:
        file["layers/conv3d/vars/0"] = np.ones((1, 1, 2, 2, 2), "f4")
        file["layers/conv3d/vars/1"] = np.ones(3, "f4")

    refused(h5_file(tmp_path / "a.weights.h5", build), "2 filters and a bias")


@undamaged
def test_other_layouts_of_hdf5(tmp_path: Path) -> None:
    """Compressed, big-endian and split over several attributes: all of it legal."""
    kernel = np.arange(16, dtype=">f8").reshape(2, 2, 2, 1, 2)

    def build(file: Any) -> None:
        file.attrs["keras_version"] = "2.4.0"
        file.attrs["backend"] = "theano"
        file.attrs["layer_names0"] = [b"conv_b"]
        file.attrs["layer_names1"] = [b"conv_a", b"up_transpose"]
        for name in ("conv_b", "conv_a", "up_transpose"):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            group.create_dataset(
                f"{name}/kernel:0", data=kernel, chunks=True, compression="gzip", shuffle=True
            )
            group[f"{name}/bias:0"] = np.zeros(2, ">f4")

    layers = read_layers(h5_file(tmp_path / "a.h5", build))
    assert [layer.name for layer in layers] == ["conv_b", "conv_a"]
    np.testing.assert_array_equal(layers[0].kernel, kernel[::-1, ::-1, ::-1])  # Theano convolved
    assert layers[0].kernel.dtype.isnative


@undamaged
def test_a_damaged_model_config(tmp_path: Path) -> None:
    path = h5_file(tmp_path / "a.h5", lambda f: f.attrs.create("model_config", "{"))
    with pytest.raises(FormatError, match="is not JSON"):
        model_config(path)


# --------------------------------------------------------------------------------------------------
# ONNX


def onnx_file(path: Path, change: Callable[[Any], None]) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DATA / "attributes.onnx")
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    return path


def external(location: str, **entries: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        tensor = next(t for t in graph.initializer if t.name == "Conv_0_w")
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in ({"location": location} | entries).items():
            pair = tensor.external_data.add()
            pair.key, pair.value = key, value

    return change


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "a/b", "", "..", "C:\\secret", "a\0b"]
)
def test_external_data_come_from_the_same_folder_only(location: str, tmp_path: Path) -> None:
    refused(
        onnx_file(tmp_path / "net.onnx", external(location)), "only from the model's own folder"
    )


def test_external_data_that_lie(tmp_path: Path) -> None:
    refused(onnx_file(tmp_path / "net.onnx", external("data")), "which is not in its folder")
    (tmp_path / "data").write_bytes(bytes(10))
    refused(
        onnx_file(tmp_path / "net.onnx", external("data")),
        "needs 384 bytes at 0 of data, which has 10",
    )
    refused(
        onnx_file(tmp_path / "net.onnx", external("data", offset="-5", length="384")),
        "needs 384 bytes",
    )
    refused(onnx_file(tmp_path / "net.onnx", external("data", offset="x")), "cannot read")
    (tmp_path / "data").unlink()
    (tmp_path / "elsewhere").write_bytes(bytes(384))
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    refused(onnx_file(tmp_path / "net.onnx", external("data")), "is not a regular file")
    (tmp_path / "data").unlink()
    os.mkfifo(tmp_path / "data")
    refused(onnx_file(tmp_path / "net.onnx", external("data")), "is not a regular file")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("strides", [1, 0, 1], "strides"),
        ("strides", [1, 1], "strides"),
        ("dilations", [2**40, 1, 1], "dilations"),
        ("pads", [-1, 0, 0, 0, 0, 0], "pads"),
        ("kernel_shape", [3, 3, 3], "not its weights'"),
        ("group", 3, "groups must divide"),
        ("group", 0, "groups must divide"),
        ("auto_pad", "SAME", "auto_pad=SAME"),
    ],
)
def test_onnx_attributes_that_lie(field: str, value: Any, words: str, tmp_path: Path) -> None:
    helper = pytest.importorskip("onnx").helper

    def change(graph: Any) -> None:
        node = next(node for node in graph.node if node.name == "Conv_0")
        node.attribute.append(helper.make_attribute(field, value))

    refused(onnx_file(tmp_path / "net.onnx", change), words)


def test_onnx_tensors_that_lie(tmp_path: Path) -> None:
    def shape(*dims: int) -> Callable[[Any], None]:
        def change(graph: Any) -> None:
            del graph.initializer[0].dims[:]
            graph.initializer[0].dims.extend(dims)

        return change

    def dtype(number: int) -> Callable[[Any], None]:
        def change(graph: Any) -> None:
            graph.initializer[0].data_type = number

        return change

    refused(onnx_file(tmp_path / "net.onnx", shape(4, 2, 2, 3, 5)), "truncated")
    refused(onnx_file(tmp_path / "net.onnx", shape(4, -2, 2, 3, 2)), "has the shape")
    refused(onnx_file(tmp_path / "net.onnx", shape(10**5, 10**5, 2, 3, 2)), "at most", ShapeError)
    refused(onnx_file(tmp_path / "net.onnx", dtype(7)), "truncated")  # int64 needs more
    first = read_contents(onnx_file(tmp_path / "net.onnx", dtype(8)))[0]  # strings
    assert isinstance(first, OtherLayer)
    assert "stored as ONNX data type 8" in first.reason


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT8E5M2"])
@pytest.mark.parametrize("raw", [True, False])
def test_onnx_floats(dtype: str, raw: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bits = {"FLOAT16": 0x3E00, "BFLOAT16": 0x3FC0, "FLOAT8E4M3FN": 0x3C, "FLOAT8E5M2": 0x3E}  # 1.5

    def change(graph: Any) -> None:
        tensor = next(t for t in graph.initializer if t.name == "Conv_0_w")
        tensor.ClearField("raw_data")
        tensor.data_type = getattr(onnx.TensorProto, dtype)
        if dtype == "DOUBLE" and raw:
            tensor.raw_data = np.full(48 * 2, 1.5).tobytes()
        elif dtype == "DOUBLE":
            tensor.double_data.extend([1.5] * 96)
        elif raw:
            tensor.raw_data = bits[dtype].to_bytes(1 if "8" in dtype[:6] else 2, "little") * 96
        else:
            tensor.int32_data.extend([bits[dtype]] * 96)

    assert (read_layers(onnx_file(tmp_path / "net.onnx", change))[0].kernel == 1.5).all()


@pytest.mark.parametrize(
    ("says", "holds", "words"),
    [
        (True, False, "its config says that it has a bias, and its weights hold no bias"),
        (False, True, "its config says that it has no bias, and its weights hold one"),
        (True, True, ""),
        (False, False, ""),
        (None, True, ""),
        (None, False, ""),
    ],
)
def test_a_bias_that_the_config_contradicts(
    says: bool | None, holds: bool, words: str, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    config = {"name": "conv", "filters": 2, "kernel_size": [3, 3, 3]}
    config |= {} if says is None else {"use_bias": says}
    model = {"class_name": "Sequential", "config": {"layers": [
        {"class_name": "Conv3D", "config": config}
    ]}}  # fmt: skip
    with h5py.File(content := io.BytesIO(), "w") as file:
        group = file.create_group("layers/conv3d")
        group.attrs["name"] = "conv"
        group["vars/0"] = np.ones((3, 3, 3, 1, 2), np.float32)
        if holds:
            group["vars/1"] = np.ones(2, np.float32)
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", content.getvalue())
    if words:
        assert words in refused(path)
    else:
        (layer,) = read_layers(str(path))
        assert (layer.bias is not None) == holds

"""Changes to whole files that keep their outer form: else a checksum or a bracket would end every attempt at the door.

Archives and packed files are changed inside and packed again, JSON is changed as a tree, and everything else as bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

ChangeBytes = Callable[[bytes], bytes]

NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
]
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 65536, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e308, -1e-320, float("nan"),
    float("inf"), float("-inf"), "", "a", "é", "\n", "\x00", "\x1b[2J", "\ud800", "1", "NaN", "Infinity", "same",
    "same_lower", "full", "1:2,3:4,5:6", "float64", "uint8", "int8", ">f4", "<c16", "complex128", "relu", "softmax",
    "constant=1", "renormalize", "ignore", "clip", "auto", "gaussian:sigma=1vox", "box:size=2", "l2", "unit_norm",
    "he_normal", "orthogonal", "1K", "x" * 500, [], [[]], [[[]]], [1, 2, 3], [0, 0, 0], [1, 2],
    [[1, 2], [3, 4], [5, 6]], [[[1.0]]], ["a", "b", "c"], {}, {"class_name": "Dense", "config": {}},
    {"class_name": "Conv3D", "config": {}}, {"class_name": "L2", "config": {"l2": "x"}}, {"a": 1},
    {"class_name": [], "config": None},
]  # fmt: skip


def mutate(data: bytes, chance: random.Random, change: ChangeBytes) -> bytes:
    """A changed file.

    change : callable       how plain bytes are changed
    """
    if chance.random() < 0.15:
        return change(data)
    try:
        if data[:4] == b"PK\x03\x04":
            return _mutate_zip(data, chance, change)
        if data[:2] == b"\x1f\x8b":
            inside = zlib.decompressobj(31).decompress(data, 1 << 20)
            return gzip.compress(mutate(inside, chance, change), 1, mtime=0)
        if data[:4] == b"--- ":
            sections = (b"\n" + data).split(b"\n--- ")[1:]
            place = chance.randrange(len(sections))
            name, _, content = sections[place].partition(b"\n")
            sections[place] = name + b"\n" + mutate(content, chance, change)
            return b"\n".join(b"--- " + section for section in sections)
        if data[7:9] == b"\0{":  # safetensors: the length of its JSON
            (length,) = struct.unpack("<Q", data[:8])
            head = mutate(data[8 : 8 + length], chance, change)
            return struct.pack("<Q", len(head)) + head + data[8 + length :]
        if data[:1] in b"{[":
            return json.dumps(_mutate_tree(json.loads(data), chance)).encode(
                "utf-8", "surrogatepass"
            )
    except (
        ValueError,
        OSError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
        RecursionError,
    ):
        pass  # no longer what it was
    return change(data)


def _mutate_zip(data: bytes, chance: random.Random, change: ChangeBytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {
            info.filename: archive.read(info)
            for info in archive.infolist()
            if info.file_size < 1 << 20
        }
    if not members:
        raise zipfile.BadZipFile
    name = chance.choice(list(members))
    members[name] = mutate(members[name], chance, change)
    if chance.random() < 0.1:
        del members[chance.choice(list(members))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return buffer.getvalue()


def _mutate_tree(tree: Any, chance: random.Random) -> Any:
    """JSON with one value changed, lost, doubled or exchanged with another."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(value, (dict, list)):
                walk(value)

    if not isinstance(tree, (dict, list)):
        return chance.choice(ODD_VALUES)
    walk(tree)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if not places:
            return chance.choice(ODD_VALUES)
        node, key = chance.choice(places)
        other, other_key = chance.choice(places)
        try:
            match chance.randrange(8):
                case 0:
                    del node[key]
                case 1:
                    node[key] = json.loads(json.dumps(other[other_key]))
                case 2 if isinstance(node, list):
                    node.extend(node[:4])
                case 2 | 3 if isinstance(node, dict) and isinstance(other_key, str):
                    node[other_key] = chance.choice(ODD_VALUES)
                case 4 if isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
                    node[key] = node[key] * chance.choice(
                        [-1, 0, 2, 1000, 10**9, 0.5]
                    ) + chance.choice([0, 0, 1, -1])
                case _:
                    node[key] = chance.choice(ODD_VALUES)
        except (KeyError, IndexError, OverflowError):
            pass  # changed before
    return tree


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few changes: bytes, whole numbers of either order, pieces cut or doubled, the end lost."""
    raw = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange((len(raw) if chance.random() < 0.5 else min(len(raw), 400)) + 1)
        length = min(chance.choice([1, 2, 4, 8, 16, 64]), len(raw) - place)
        match chance.randrange(6):
            case 0:
                raw[place : place + 1] = bytes([chance.randrange(256)])
            case 1 | 2:
                size = chance.choice([1, 2, 4, 8])
                number = chance.choice(NUMBERS) % 256**size
                raw[place : place + size] = number.to_bytes(
                    size, "little" if chance.random() < 0.7 else "big"
                )
            case 3:
                del raw[place : place + length]
            case 4:
                raw[place:place] = raw[place : place + length] * chance.choice([1, 2, 20])
            case _ if chance.random() < 0.3:
                del raw[place:]
    return bytes(raw)

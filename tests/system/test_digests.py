"""Digests: the same contents give the same, others another, however they lie in folders and memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.system.digests import array_digest, file_digest, settings_digest


def test_a_files_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_001)  # more than a piece
    (tmp_path / "a").write_bytes(data)
    assert file_digest(tmp_path / "a") == f"sha256:{hashlib.sha256(data).hexdigest()}"
    (tmp_path / "empty").touch()
    assert file_digest(str(tmp_path / "empty")) == f"sha256:{hashlib.sha256().hexdigest()}"


def test_a_folders_is_that_of_its_files(tmp_path: Path) -> None:
    def store(name: str, **files: str) -> str:
        for inner, text in files.items():
            path = tmp_path / name / inner.replace("_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return file_digest(tmp_path / name)

    first = store("first", zarr="{}", c_0_0="x", c_0_1="y")
    # made in another order, elsewhere
    assert first == store("second", c_0_1="y", c_0_0="x", zarr="{}")
    (tmp_path / "second" / "nothing").mkdir()
    assert first == file_digest(f"{tmp_path}/second/")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "zarr").symlink_to(tmp_path / "first" / "zarr")
    (tmp_path / "third" / "c").symlink_to(tmp_path / "first" / "c")
    assert first == file_digest(tmp_path / "third")
    for other in (
        store("o1", zarr="{}", c_0_0="x", c_0_1="z"),
        store("o2", zarr="{}", c_0_0="y", c_0_1="x"),
        store("o3", zarr="{}", c_0_0="xy", c_0_1=""),
        store("o4", zarr="{}", c_0_0="x", c_01="y"),
        store("o5", zarr="{}", c_0_0="x"),
    ):
        assert other != first


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="missing: no such file"):
        file_digest(tmp_path / "missing")
    with pytest.raises(
        SpecError, match=r"cannot take the digest of s3://bucket/x.zarr: it is a URL"
    ):
        file_digest("s3://bucket/x.zarr")
    with pytest.raises(SpecError, match="it is a pipe"):
        file_digest("-")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    with pytest.raises(FormatError, match="a folder that contains it"):
        file_digest(tmp_path / "loop")
    (tmp_path / "broken").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe: it is a pipe"):
        file_digest(tmp_path / "pipe")
    (tmp_path / "broken" / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="link: no such file"):
        file_digest(tmp_path / "broken")


def test_an_arrays_counts_dtype_shape_and_values() -> None:
    a = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    assert array_digest(a) == array_digest(a[::-1][::-1]) == array_digest(a.astype(">f8"))
    digests = {
        array_digest(x)
        for x in (a, a.T, a.astype(np.int64), a.reshape(4, 3, 2), -a, a[:1], np.zeros(0))
    }
    assert len(digests) == 7
    assert array_digest(np.float64(0.0) * np.ones(1)) != array_digest(-np.zeros(1))  # other bits


def test_settings_of_any_order() -> None:
    assert settings_digest({"a": {"y": 1, "x": [1.5, None]}, "b": True}) == settings_digest(
        {"b": True, "a": {"x": (1.5, None), "y": 1}}
    )
    assert len({settings_digest({"a": value}) for value in (1, 1.0, True, "1", None, [1])}) == 6
    with pytest.raises(TypeError):
        settings_digest({"a": object()})

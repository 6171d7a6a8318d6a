"""A named pipe in place of any file of a Zarr store: one line, where opening it would wait for ever."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT

from conv3d_cli.formats.zarr.store import import_zarr

zarr = pytest.importorskip("zarr")
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs of POSIX")

# Runs a command once for each file of a store, with a pipe in its place; each in a process of its
# own, since reads of other files may still wait in a thread when a command has ended.
EACH = """
import os, sys
from conv3d_cli.cli import main

files, command = sys.argv[1].split(os.pathsep), sys.argv[2:]
for file in files:
    os.rename(file, "kept")
    os.mkfifo(file)
    child = os.fork()
    if not child:
        try:
            main(command)
        except SystemExit as end:
            print(end.code, file)
        sys.exit()
    os.waitpid(child, 0)
    os.unlink(file)
    os.rename("kept", file)
"""


def store(folder: Path, zarr_format: int) -> Path:
    """An image of one level, in shards if the format has them."""
    group = zarr.create_group(folder, zarr_format=zarr_format)
    layout = (
        {"shards": (4, 4, 4), "chunks": (2, 4, 4)} if zarr_format == 3 else {"chunks": (4, 4, 4)}
    )
    array = group.create_array("0", shape=(4, 4, 4), dtype="f4", **layout)
    array[...] = np.ones((4, 4, 4))
    image = {
        "axes": [{"name": name, "type": "space"} for name in "zyx"],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}
        ],
    }
    if zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **image}]
    return folder


@pytest.mark.parametrize(
    ("zarr_format", "count", "command"),
    [
        (2, 5, ("info", "--stats", "x.zarr")),
        (3, 3, ("apply", "x.zarr", "-k", "identity", "-o", "o.npy", "-q")),
        pytest.param(3, 3, ("info", "--stats", "x.zarr"), marks=pytest.mark.slow),
        pytest.param(3, 3, ("view", "x.zarr"), marks=pytest.mark.slow),
        pytest.param(2, 5, ("compare", "x.zarr", "x.zarr"), marks=pytest.mark.slow),
        pytest.param(2, 5, ("kernel", "show", "x.zarr"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_pipe_in_a_store_is_not_waited_for(
    zarr_format: int, count: int, command: tuple[str, ...], tmp_path: Path
) -> None:
    files = [
        str(file.relative_to(tmp_path))
        for file in sorted(store(tmp_path / "x.zarr", zarr_format).rglob("*"))
        if file.is_file()
    ]
    assert len(files) == count
    done = subprocess.run(
        [sys.executable, "-c", EACH, os.pathsep.join(files), *command],
        cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert done.stdout.splitlines() == [f"3 {file}" for file in files], done.stderr
    for error, file in zip(errors, files, strict=True):
        assert error.startswith("Error: cannot read x.zarr")
        assert error.endswith(f"{file}: it is a pipe; replace it by a regular file")
    assert not (tmp_path / "o.npy").exists()


def test_of_several_reads_that_fail_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    import_zarr("x.zarr")
    loop = asyncio.new_event_loop()

    def lost(read: Any) -> list[str]:
        """What asyncio tells of a read that fails, and that nobody asks for."""
        caplog.clear()
        future = loop.create_future()
        try:
            read()
        except OSError as error:
            future.set_exception(error)
        del future
        gc.collect()
        return [str(record.exc_info and record.exc_info[1]) for record in caplog.records]

    with caplog.at_level(logging.ERROR):
        assert lost(lambda: zarr.open("no such store", mode="r")) == []
        assert "no such file" in lost(Path("no such file").read_text)[0]  # of others: still told
    loop.close()

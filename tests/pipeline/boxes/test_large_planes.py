"""Planes that do not fit the ceiling: boxes, with the bits of whole planes.

They keep within the memory that was promised.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from blocking import in_boxes
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.formats import write_volume
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.volume import Volume
from conv3d_cli.pipeline import prepare as job_module
from conv3d_cli.pipeline.boxes.partition import Partition
from conv3d_cli.pipeline.boxes.stream import BoxJob
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job
from conv3d_cli.system.room import PROCESS_BYTES

zarr = pytest.importorskip("zarr")

SHAPE = (6, 2000, 700)


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide planes as .npy, .nii, a pair, .tif and .zarr; and kernels."""
    folder = tmp_path_factory.mktemp("mosaic")
    data = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.float32)
    np.save(folder / "x.npy", data)
    nib.Nifti1Image(data.T, np.diag([2, 2, 3, 1])).to_filename(folder / "x.nii")
    tifffile.imwrite(folder / "x.tif", data, imagej=True, metadata={"axes": "ZYX"})
    write_volume(str(folder / "x.zarr"), Volume(data, "zyx"), chunks=(8, 256, 256))
    np.save(folder / "random9.npy", np.random.default_rng(1).standard_normal((5, 9, 9)))
    np.save(folder / "random3.npy", np.random.default_rng(2).standard_normal((3, 3, 3)))
    return folder


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("source", "kernel", "options"),
    [
        ("x.npy", "random3.npy", []),
        ("x.npy", "random3.npy", ["--strides", "2"]),
        ("x.npy", "random9.npy", ["--boundary", "wrap", "--dtype", "int16"]),
        ("x.nii", "gaussian:sigma=2mm", ["--boundary", "mirror"]),
        ("x.nii", "random9.npy", ["--activation", "relu"]),
        ("x.tif", "random3.npy", ["--dilation-rate", "1,3,2"]),
        ("x.nii", "random3.npy", ["--target", ".img"]),
        ("x.npy", "random9.npy", ["--target", ".zarr", "--levels", "3", "--boundary", "wrap"]),
        ("x.zarr", "random9.npy", ["--chunks", "4,200,300"]),
        ("x.zarr", "gaussian:sigma=2vox", ["--target", ".tif", "--strides", "1,2,3"]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else " ".join(value),
)
def test_same_bits_as_whole_planes(
    mosaic: Path, source: str, kernel: str, options: list[str], tmp_path: Path, run: Any
) -> None:
    suffix = Path(source).suffix
    if options[:1] == ["--target"]:
        suffix, options = options[1], options[2:]
    k = mosaic / kernel if kernel.endswith(".npy") else kernel
    run(
        "apply",
        mosaic / source,
        "-k",
        k,
        *options,
        "-o",
        tmp_path / f"whole{suffix}",
        "--max-memory",
        "2G",
        "-q",
    )
    refused = run(
        "apply",
        mosaic / source,
        "-k",
        k,
        *options,
        "-o",
        tmp_path / f"no{suffix}",
        "--max-memory",
        "1M",
        "-q",
        code=6,
    )
    least = re.search(r"--max-memory (\d+)M", refused.output)
    assert least, refused.output
    asked = [
        mosaic / source,
        "-k",
        k,
        *options,
        "-o",
        tmp_path / f"boxes{suffix}",
        "--max-memory",
        f"{least[1]}M",
    ]
    planned = json.loads(run("apply", *asked, "--dry-run", "--json").stdout)
    small = planned["memory"] <= int(least[1]) << 20
    assert small
    # the library holds as much as these planes
    assert planned["boxes"] or ".zarr" in source + suffix
    run("apply", *asked, "-q")
    assert contents(tmp_path / f"boxes{suffix}") == contents(tmp_path / f"whole{suffix}")


def test_the_ceiling_asks_for_boxes(mosaic: Path, run: Any) -> None:
    ceiling = PROCESS_BYTES + (35 << 20)
    job = Job(
        str(mosaic / "x.npy"), "out.npy", (Stage(str(mosaic / "random3.npy")),), max_memory=ceiling
    )
    with prepare_job(job) as prepared:
        assert prepared.boxes is not None
        assert prepared.boxes.partition.block < SHAPE
        assert prepared.boxes.redundancy.decoded < 1.2
        assert prepared.memory <= ceiling
    result = run(
        "explain",
        mosaic / "x.npy",
        "-k",
        mosaic / "random3.npy",
        "--max-memory",
        f"{ceiling >> 20}M",
    )
    assert "voxels (whole planes are too large)" in result.output


def test_a_stream_has_no_boxes(mosaic: Path, tmp_path: Path, run: Any) -> None:
    ceiling = f"{(PROCESS_BYTES >> 20) + 5}M"
    refused = run(
        "apply",
        mosaic / "x.nii",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "out.nii.gz",
        "--max-memory",
        ceiling,
        "-q",
        code=6,
    )
    assert "one plane" in refused.output or "planes at a time" in refused.output


# --------------------------------------------------------------------------------------------------
# Any geometry


STACKS = {
    "filter": lambda kernel, options: (Stage(Kernel(kernel((3, 5, 4))), **options),),
    "bias": lambda kernel, options: (
        Stage(
            Kernel(kernel((3, 1, 3, 2, 4)), np.arange(4.0)),
            padding="same",
            activations=("softmax",),
        ),
    ),
    "fft": lambda kernel, options: (
        Stage(Kernel(kernel((9, 9, 9))), boundary=options["boundary"]),
    ),
    "layers": lambda kernel, options: (
        Stage(
            Kernel(kernel((3, 3, 3, 2, 4)), np.arange(4.0)), padding="same", activations=("glu",)
        ),
        Stage(Kernel(kernel((1, 3, 5, 2, 3))), boundary=options["boundary"], padding="same"),
    ),
}


@settings(max_examples=examples(25), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_any_boxes_have_the_bits_of_whole_planes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    numbers = np.random.default_rng(data.draw(st.integers(0, 99)))
    name = data.draw(st.sampled_from(list(STACKS)))
    letters = data.draw(
        st.sampled_from(
            ["tczyx", "czyx", "zyxc"]
            if name in ("bias", "layers")
            else ["zyx", "tczyx", "yx", "xyzc"]
        )
    )
    sizes = {"t": 2, "c": 2, **{a: data.draw(st.integers(5, 22)) for a in "zyx"}}
    array = (numbers.standard_normal([sizes[a] for a in letters]) * 100).astype(
        data.draw(st.sampled_from(["float32", "int16", ">u2"]))
    )
    chunk = st.integers(3, 12)
    in_chunks = tuple(
        data.draw(chunk) if a in "zyx" else data.draw(st.integers(1, 2)) for a in letters
    )
    shards = tuple(2 * n for n in in_chunks) if data.draw(st.booleans()) else None
    stored = zarr.create_array(
        str(folder / "x.zarr"),
        shape=array.shape,
        chunks=in_chunks,
        shards=shards,
        dtype=array.dtype,
        dimension_names=tuple(letters),
    )
    stored[...] = array
    np.save(folder / "x.npy", array)
    options = {
        "strides": data.draw(st.sampled_from([1, 2, (1, 3, 2)])),
        "boundary": data.draw(st.sampled_from(["zeros", "wrap", "mirror", "constant=3"])),
    }
    if options["strides"] == 1:
        options["dilation_rate"] = data.draw(st.sampled_from([1, (2, 1, 3)]))
    stages = STACKS[name](numbers.standard_normal, options)
    source = data.draw(st.sampled_from(["x.zarr", "x.zarr", "x.npy"]))
    suffix = data.draw(st.sampled_from([".zarr", ".zarr", ".npy", ".nii", ".tif"]))
    given_chunks = (
        (data.draw(chunk), data.draw(chunk), data.draw(chunk)) if data.draw(st.booleans()) else None
    )
    more: dict[str, Any] = (
        {"chunks": given_chunks, "levels": data.draw(st.integers(1, 2))}
        if suffix == ".zarr"
        else {}
    )
    algorithm = "fft" if name == "fft" else "auto"
    jobs = [
        Job(
            str(folder / source),
            str(folder / f"{which}{suffix}"),
            stages,
            axes=letters,
            dtype="int16" if name == "fft" else "float32",
            algorithm=algorithm,
            **more,
        )
        for which in ("whole", "boxes")
    ]

    def draw(box_job: BoxJob) -> Partition:
        size = box_job.convolutions[-1].problem.out_size
        unit = box_job.writing.unit
        # two or three boxes along an axis, and perhaps a rest
        block = [
            min(n * math.ceil(whole / n / data.draw(st.integers(2, 3))), whole)
            for n, whole in zip(unit, size, strict=True)
        ]
        return Partition(
            size, unit, (block[0], block[1], block[2]), data.draw(st.sampled_from([None, 0, 1, 2]))
        )

    whole = run_job(jobs[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "choose_blocking", in_boxes(draw))
        boxed = run_job(jobs[1])
    assert boxed.clipped == whole.clipped
    assert boxed.voxels == whole.voxels
    assert contents(folder / f"boxes{suffix}") == contents(folder / f"whole{suffix}")


# --------------------------------------------------------------------------------------------------
# Memory and traffic of a process of its own


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planes of 34 MB in chunks as deep as the volume: a row of 268 MB; and the same as .npy."""
    folder = tmp_path_factory.mktemp("wide")
    plane = np.random.default_rng(0).integers(0, 4000, (4096, 4096)).astype(np.uint16)
    data = np.stack([np.roll(plane, 7 * z, axis=1) for z in range(8)])
    np.save(folder / "x.npy", data)
    write_volume(str(folder / "x.zarr"), Volume(data, "zyx"), chunks=(8, 256, 256))
    return folder


# The peak of a child as its parent is told it would be at least the parent's own.
MEASURED = """
import re, sys
from conv3d_cli.cli import main
try:
    main(sys.argv[1:], prog_name="conv3d")
except SystemExit as end:
    assert not end.code, end.code
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="a process's peak is asked of Linux"
)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("x.zarr", "o.zarr"),
        ("x.npy", "o.npy"),
        pytest.param("x.zarr", "o.npy", marks=pytest.mark.slow),
        pytest.param("x.npy", "o.zarr", marks=pytest.mark.slow),
    ],
)
def test_a_process_keeps_to_its_ceiling(
    wide: Path, source: str, target: str, tmp_path: Path, run: Any
) -> None:
    ceiling = 400
    command = [
        "apply",
        str(wide / source),
        "-k",
        "box:size=5",
        "--dtype",
        "uint16",
        "-o",
        str(tmp_path / target),
    ]
    command += ["--levels", "3", "--chunks", "8,256,256"] if target.endswith("zarr") else []
    limited = [*command, "--max-memory", f"{ceiling}M"]
    planned = json.loads(run(*limited, "--dry-run", "--json").stdout)
    assert planned["boxes"]["decoded"] < 1.4
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, *limited, "-q"], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) << 10 <= ceiling << 20
    (tmp_path / "boxes").mkdir()
    os.rename(tmp_path / target, tmp_path / "boxes" / target)
    run("apply", *command[1:], "--max-memory", "4G", "-q")
    assert contents(tmp_path / "boxes" / target) == contents(tmp_path / target)


def test_chunks_are_decoded_as_often_as_said_and_written_once(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import Counter

    from conv3d_cli.formats.zarr.chunks import FolderArray

    read, written = Counter[Any](), Counter[Any]()
    get, put = FolderArray._read_file, FolderArray._write_file

    def spied(self: Any, part: Any, *rest: Any) -> None:
        read[part.place] += 1
        get(self, part, *rest)

    def noted(self: Any, part: Any, *rest: Any) -> None:
        written[part.place] += 1
        put(self, part, *rest)

    monkeypatch.setattr(FolderArray, "_read_file", spied)
    monkeypatch.setattr(FolderArray, "_write_file", noted)
    job = Job(
        str(wide / "x.zarr"),
        str(tmp_path / "o.zarr"),
        (Stage("box:size=5"),),
        dtype="uint16",
        max_memory=400 << 20,
    )
    decided: list[Any] = []
    run_job(job, decided=decided.append)
    assert decided[0].boxes is not None
    assert sum(read.values()) == round(decided[0].boxes.redundancy.decoded * 16 * 16)
    assert set(written.values()) == {1}
    assert len(written) == 16 * 16

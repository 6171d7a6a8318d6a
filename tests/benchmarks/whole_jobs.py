"""Whole jobs beside what people use for them: seconds, CPU seconds and peak memory of each process, in turn.

python tests/benchmarks/whole_jobs.py [fmri] [stack] [decode] [many] [resume] [large] [cluster] [--rounds 5] [--folder DIR]

fmri      4-D scan 64x64x48x300 int16, Gaussian of FWHM 6 mm: .nii.gz beside niimath, .nii beside mrfilter
stack     250 MB uint16 TIFF, Gaussian of 2 voxels, beside a script of tifffile and scipy.ndimage; the same from and to deflate
decode    that TIFF in deflate: its pages decoded in slabs, beside tifffile.imread
many      200 scans 64x64x32 int16 .nii.gz in one command, one and two at a time, beside a process each
resume    these scans under --resume: when nothing is left to do, and when all files were touched
large     1 and 8 GB int16 .nii.gz: memory, and the rate beside the slowest stage's alone
cluster   2 GB OME-Zarr on Dask: two workers of one thread beside one
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
from whole_process import apply, make_series, report, run

SCRIPT = """
import sys, numpy as np, tifffile
from scipy import ndimage
volume = tifffile.imread(sys.argv[1])
tifffile.imwrite(sys.argv[2], ndimage.gaussian_filter(volume.astype(np.float32), 2))
"""


def smooth(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Smooth numbers with noise, which a compressor treats as it does a scan's."""
    rng = np.random.default_rng(0)
    waves = [np.sin(np.arange(n) / (7 + 3 * i)) for i, n in enumerate(shape)]
    total = sum(
        wave.reshape([-1 if i == j else 1 for j in range(len(shape))])
        for i, wave in enumerate(waves)
    )
    return (400 * total + 1500 + rng.integers(-20, 20, shape)).astype(dtype)


def make(function: Callable[..., None], *arguments: object) -> None:
    """Call a function that makes files in a process of its own: a child's peak memory counts its parent's at the start."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(function, *arguments).result()


def in_turn(commands: dict[str, list[str]], rounds: int, folder: Path) -> None:
    """Run each once untimed, then round after round, each time into a new file (a or b); print a row each."""
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for command in commands.values():
        run(command)
    for _ in range(rounds):
        for name, command in commands.items():
            for old in folder.glob("[ab].*"):
                old.unlink()
            runs[name].append(run(command))
    for name, times in runs.items():
        report(name, times)


def program(name: str) -> str | None:
    """Where a program is, in this environment or on the path."""
    path = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if path is None:
        print(f"{name} is not installed")
    return path


def make_fmri(folder: Path) -> None:
    """300 volumes, packed and not."""
    data = smooth((300, 48, 64, 64), np.int16).T
    image = nib.Nifti1Image(data, np.diag([3, 3, 3, 1]))
    image.header.set_zooms((3, 3, 3, 2))
    for packed in ("x.nii.gz", "x.nii"):
        image.to_filename(folder / packed)


def fmri(folder: Path, rounds: int) -> None:
    """A series of 300 volumes."""
    make(make_fmri, folder)
    kernel = "gaussian:fwhm=6mm"
    commands = {
        "conv3d, .nii.gz to .nii.gz": apply(folder / "x.nii.gz", folder / "a.nii.gz", kernel)
    }
    if niimath := program("niimath"):
        commands["niimath -s, .nii.gz to .nii.gz"] = [
            niimath, str(folder / "x.nii.gz"), "-s", f"{6 / 2.354820045:.6f}", str(folder / "b.nii.gz"), "-odt", "float",
        ]  # fmt: skip
    commands["conv3d, .nii to .nii"] = apply(folder / "x.nii", folder / "a.nii", kernel)
    if mrfilter := program("mrfilter"):
        commands["mrfilter smooth, .nii to .nii"] = [
            mrfilter, str(folder / "x.nii"), "smooth", "-fwhm", "6", str(folder / "b.nii"), "-force", "-quiet",
        ]  # fmt: skip
    in_turn(commands, rounds, folder)


def make_stack(folder: Path) -> None:
    """250 MB of uint16, as it is and in deflate."""
    data, metadata = smooth((120, 1024, 1024), np.uint16), {"axes": "ZYX"}
    tifffile.imwrite(folder / "x.tif", data, imagej=True, metadata=metadata)
    for name, predictor in (("deflate.tif", None), ("deflate2.tif", 2)):
        options = {"compression": "zlib", "predictor": predictor, "photometric": "minisblack"}
        tifffile.imwrite(folder / name, data, metadata=metadata, **options)


def stack(folder: Path, rounds: int) -> None:
    """A microscope's stack."""
    make(make_stack, folder)
    (folder / "script.py").write_text(SCRIPT)
    kernel = "gaussian:sigma=2vox"
    packed = apply(folder / "deflate2.tif", folder / "a.tif", kernel)
    in_turn(
        {
            "conv3d, 250 MB TIFF": apply(folder / "x.tif", folder / "a.tif", kernel),
            "tifffile and scipy.ndimage": [
                sys.executable, str(folder / "script.py"), str(folder / "x.tif"), str(folder / "b.tif"),
            ],
            "conv3d, from deflate": packed,
            "conv3d, from and to deflate": [*packed, "--compression", "deflate"],
            "tifffile and scipy.ndimage, from deflate": [
                sys.executable, str(folder / "script.py"), str(folder / "deflate2.tif"), str(folder / "b.tif"),
            ],
        },
        rounds,
        folder,
    )  # fmt: skip


DECODE = """
import sys
from conv3d_cli.formats import open_volume
with open_volume(sys.argv[1]) as reader:
    for start in range(0, 120, 8):
        reader.read(0, slice(start, start + 8), slice(0, 1))
"""


def decode(folder: Path, rounds: int) -> None:
    """Pages in deflate, without and with the horizontal predictor."""
    make(make_stack, folder)
    imread = "import sys, tifffile; tifffile.imread(sys.argv[1], maxworkers=2)"
    commands = {}
    for name in ("deflate.tif", "deflate2.tif"):
        for who, code in (("conv3d", DECODE), ("tifffile.imread, 2 threads", imread)):
            commands[f"{name}: {who}"] = [sys.executable, "-c", code, str(folder / name)]
    in_turn(commands, rounds, folder)


def make_many(folder: Path) -> None:
    """200 small scans."""
    (folder / "scans").mkdir()
    data = smooth((32, 64, 64), np.int16).T
    for number in range(200):
        image = nib.Nifti1Image(data + np.int16(number), np.diag([3, 3, 3, 1]))
        image.to_filename(folder / "scans" / f"{number:03}.nii.gz")


def many(folder: Path, rounds: int) -> None:
    """A folder of small scans."""
    make(make_many, folder)
    (folder / "out").mkdir()
    scans = sorted((folder / "scans").iterdir())
    conv3d = [*apply(scans[0], folder / "out", "gaussian:fwhm=6mm")[:4], *map(str, scans)]
    conv3d += ["-k", "gaussian:fwhm=6mm", "--out-dir", str(folder / "out"), "--overwrite", "-q"]
    commands = {f"conv3d --jobs {n}, 200 scans": [*conv3d, "--jobs", str(n)] for n in (1, 2)}
    if niimath := program("niimath"):
        script = f'for f in "$0"/*; do "$1" "$f" -s {6 / 2.354820045:.6f} "$2/$(basename "$f")" -odt float; done'
        commands["niimath -s, a process each"] = [
            "sh",
            "-c",
            script,
            str(folder / "scans"),
            niimath,
            str(folder / "out"),
        ]
    in_turn(commands, rounds, folder)


def resume(folder: Path, rounds: int) -> None:
    """A folder of small scans that are done already."""
    make(make_many, folder)
    out = folder / "done"
    command = [
        *apply(folder / "scans", out, "gaussian:fwhm=6mm")[:-4],
        "--out-dir",
        str(out),
        "--resume",
        "-q",
    ]
    report("conv3d --resume, 200 scans, none done", [run(command)])
    report("all done, stamps too new: outputs are read", [run(command)])
    log = (out / ".conv3d-resume.jsonl").read_bytes()
    in_turn({"all done": command, "conv3d --version": [*command[:3], "--version"]}, rounds, folder)
    assert (out / ".conv3d-resume.jsonl").read_bytes() == log, "something was read or made again"
    times = []
    for _ in range(rounds):
        for path in [*(folder / "scans").iterdir(), *out.glob("*.nii.gz")]:
            path.touch()
        time.sleep(0.1)
        times.append(run(command))
    report("all done, but touched: inputs and outputs are read", times)


UNPACK = """
import sys
from isal import igzip
with igzip.open(sys.argv[1]) as file:
    while file.read(1 << 20): pass
"""
PACK = """
import sys
from isal import igzip
from conv3d_cli.formats.codecs import codec_named
from conv3d_cli.formats.packed import PackedBlocks
source, target, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with igzip.open(source) as file:
    data = memoryview(file.read(64 << 20))
with open(target, "wb") as file:
    blocks = PackedBlocks(file, codec_named(target), 1)
    while count:
        blocks.write(data[:count])
        count -= min(count, len(data))
    blocks.finish()
"""


def large(folder: Path, rounds: int) -> None:
    """Memory that does not grow with the file, and its stages alone: unpacking, and packing what was computed on all CPUs."""
    for gigabytes in (1, 8):
        source, target = folder / f"{gigabytes}.nii.gz", folder / "out.nii.gz"
        make(make_series, source, gigabytes)
        report(
            f"{gigabytes} GB: unpacking alone", [run([sys.executable, "-c", UNPACK, str(source)])]
        )
        report(f"{gigabytes} GB: conv3d, box of 3", [run(apply(source, target, "box:size=3"))])
        count = str(2 * gigabytes << 30)
        os.rename(target, folder / "done.nii.gz")
        report(
            f"{gigabytes} GB: packing alone",
            [run([sys.executable, "-c", PACK, str(folder / "done.nii.gz"), str(target), count])],
        )
        source.unlink()


def make_store(folder: Path) -> None:
    """2 GB of float32 as OME-Zarr, and a kernel."""
    import zarr

    shape, chunk = (512, 1024, 1024), (64, 128, 128)
    source = zarr.create_group(str(folder / "x.ome.zarr"), zarr_format=3)
    array = source.create_array("0", shape=shape, chunks=chunk, dtype=np.float32)
    for start in range(0, shape[0], chunk[0]):
        array[start : start + chunk[0]] = smooth((chunk[0], *shape[1:]), np.float32) + start
    axes = [{"name": a, "type": "space"} for a in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    dataset = {"path": "0", "coordinateTransformations": scale}
    source.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [dataset]}]}
    np.save(folder / "k.npy", np.random.default_rng(0).standard_normal((7, 7, 7)))


def cluster(folder: Path, rounds: int) -> None:
    """The same 2 GB store on one worker and on two, of one thread each."""
    import distributed

    make(make_store, folder)
    for text in ("gaussian:sigma=3vox", str(folder / "k.npy")):
        for workers in (1, 2):
            local = distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
            )
            with local:
                command = [
                    *apply(folder / "x.ome.zarr", folder / "a.zarr", text),
                    "--scheduler",
                    local.scheduler_address,
                ]
                runs = []
                for _ in range(rounds + 1):  # the first untimed
                    shutil.rmtree(folder / "a.zarr", ignore_errors=True)
                    os.sync()  # what is left of the run before is not this one's
                    runs.append(run(command))
                report(f"{Path(text).name}: {workers} worker{'s' if workers > 1 else ''}", runs[1:])


JOBS = {
    "fmri": fmri,
    "stack": stack,
    "decode": decode,
    "many": many,
    "resume": resume,
    "large": large,
    "cluster": cluster,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []], help="which; all unless named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where files are made")
    options = parser.parse_args()
    print(f"{'process':<46} {'median s':>8} {'least s':>8} {'CPU s':>8} {'peak MB':>8}")
    for name in options.jobs or JOBS:
        folder = Path(tempfile.mkdtemp(prefix="conv3d-bench-", dir=options.folder))
        try:
            JOBS[name](folder, options.rounds)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

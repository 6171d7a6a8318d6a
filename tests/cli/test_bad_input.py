"""Bad input: one line on stderr, the right exit code, no output file, an existing target untouched.

In a real process, so that what a shell or a Makefile sees is what is tested.
"""

from __future__ import annotations

import gzip
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from processes import LIMIT, started, wait_until


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Good volumes and kernels, bad ones, and a target that must stay as it is."""
    x = rng.standard_normal((7, 9, 11)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "x4.npy", rng.standard_normal((5, 6, 7, 4)).astype(np.float32))
    np.save(tmp_path / "k.npy", rng.standard_normal((3, 3, 3)))
    np.save(tmp_path / "k2d.npy", rng.standard_normal((3, 3)))
    np.save(tmp_path / "k4.npy", rng.standard_normal((3, 3, 3, 2)))
    np.save(tmp_path / "k5.npy", rng.standard_normal((3, 3, 3, 2, 6)))
    np.save(tmp_path / "nan.npy", np.full((3, 3, 3), np.nan))
    np.save(tmp_path / "huge.npy", np.ones((21, 3, 3)))
    nib.save(nib.Nifti1Image(x, np.diag([2.0, 2, 2, 1])), tmp_path / "x.nii.gz")
    nib.save(nib.Nifti1Image(x, np.diag([2.0, 2, 2, 1])), tmp_path / "x.nii")
    tifffile.imwrite(tmp_path / "x.tif", x, imagej=True, metadata={"axes": "ZYX"})

    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "empty.tif").write_bytes(b"")
    for suffix in (".npy", ".nii", ".nii.gz", ".tif"):
        whole = (tmp_path / f"x{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
        (tmp_path / f"noise{suffix}").write_bytes(rng.bytes(2000))
    whole = bytearray((tmp_path / "x.nii.gz").read_bytes())
    whole[-6] ^= 0xFF
    (tmp_path / "crc.nii.gz").write_bytes(whole)
    header = bytearray((tmp_path / "x.nii").read_bytes()[:352])
    header[42:48] = struct.pack("<3h", 32767, 32767, 32767)
    (tmp_path / "lie.nii").write_bytes(header)
    (tmp_path / "lie.nii.gz").write_bytes(gzip.compress(bytes(header)))
    lie = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "lie.npy").write_bytes(
        lie.replace(b"(7, 9, 11), }        ", b"(77777, 99999, 11), }")
    )
    (tmp_path / "brace.npy").write_bytes(lie.replace(b"}", b"("))
    with open(tmp_path / "pickled.npy", "wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1, 2, 3]))
    (tmp_path / "x.xyz").write_bytes(b"data")
    (tmp_path / "bad.toml").write_text("kernel = [")
    (tmp_path / "unknown.toml").write_text('kernel = "identity"\nstride = 2\n')
    (tmp_path / "target.npy").write_bytes(b"precious")
    return tmp_path


GAUSS = ["-k", "gaussian:sigma=1vox"]
KERNEL = ["-k", "k.npy"]
OUT = ["-o", "out.npy"]

CASES: list[tuple[str, list[str], int, str]] = [
    # files
    ("missing", ["apply", "nix.npy", *KERNEL, *OUT], 3, "cannot read nix.npy: no such file"),
    ("missing nifti", ["apply", "nix.nii.gz", *KERNEL, *OUT], 3, "no such file"),
    *[
        (
            f"an empty name: {' '.join(words)}",
            ["apply", *words],
            2,
            f"{name} must be the name of a file{', or a rule' if '--mask' in words else ''}, "
            "received ''; write it, or leave it out",
        )
        for name, words in {
            "INPUT...": ["", *KERNEL, *OUT],
            "--output": ["x.npy", *KERNEL, "-o", ""],
            "--mask": ["x.npy", *KERNEL, *OUT, "--mask", ""],
            "--depfile": ["x.npy", *KERNEL, *OUT, "--depfile", ""],
            "--report": ["x.npy", *KERNEL, *OUT, "--report", ""],
        }.items()
    ],
    ("a folder", ["apply", ".", *KERNEL, *OUT], 2, "is a folder"),
    ("empty npy", ["apply", "empty.npy", *KERNEL, *OUT], 3, "empty"),
    ("empty nifti", ["apply", "empty.nii.gz", *KERNEL, *OUT], 3, "empty"),
    ("empty tiff", ["apply", "empty.tif", *KERNEL, *OUT], 3, "empty"),
    *[
        (f"truncated {s}", ["apply", f"cut{s}", *KERNEL, *OUT], 3, f"cut{s}")
        for s in (".npy", ".nii", ".nii.gz", ".tif")
    ],
    *[
        (f"corrupt {s}", ["apply", f"noise{s}", *KERNEL, *OUT], 3, f"noise{s}")
        for s in (".npy", ".nii", ".nii.gz", ".tif")
    ],
    ("bad checksum", ["apply", "crc.nii.gz", *KERNEL, *OUT], 3, "crc.nii.gz"),
    ("lying nii", ["apply", "lie.nii", *KERNEL, *OUT], 3, "lie.nii"),
    ("lying nii.gz", ["apply", "lie.nii.gz", *KERNEL, *OUT], 3, "lie.nii.gz"),
    ("lying npy", ["apply", "lie.npy", *KERNEL, *OUT], 3, "lie.npy"),
    ("broken npy header", ["apply", "brace.npy", *KERNEL, *OUT], 3, "brace.npy"),
    ("pickled npy", ["apply", "pickled.npy", *KERNEL, *OUT], 3, "never loaded"),
    ("a pickle", ["apply", "pickle.npy", *KERNEL, *OUT], 3, "not a .npy file"),
    ("unknown suffix in", ["apply", "x.xyz", *KERNEL, *OUT], 3, "it is text, and no volume"),
    (
        "unknown suffix out",
        ["apply", "x.npy", *KERNEL, "-o", "out.xyz"],
        2,
        "no volume has the suffix .xyz (see conv3d help formats)",
    ),
    # kernels
    ("missing kernel", ["apply", "x.npy", "-k", "nix.npy", *OUT], 3, "nix.npy"),
    ("no kernel", ["apply", "x.npy", *OUT], 2, "no kernel"),
    ("kernel rank 2", ["apply", "x.npy", "-k", "k2d.npy", *OUT], 4, "k2d.npy"),
    ("kernel rank 4", ["apply", "x.npy", "-k", "k4.npy", *OUT], 4, "k4.npy"),
    ("kernel channels", ["apply", "x4.npy", "-k", "k5.npy", *OUT], 4, "2 channels"),
    ("NaN in a kernel", ["apply", "x.npy", "-k", "nan.npy", *OUT], 4, "finite"),
    (
        "unknown kernel",
        ["apply", "x.npy", "-k", "gausian:sigma=1vox", *OUT],
        2,
        "did you mean 'gaussian'",
    ),
    ("no unit", ["apply", "x.npy", "-k", "gaussian:sigma=1", *OUT], 2, "sigma=1vox"),
    ("mm without spacing", ["apply", "x.npy", "-k", "gaussian:sigma=1mm", *OUT], 4, "vox"),
    (
        "kernel larger than volume",
        ["apply", "x.npy", "-k", "huge.npy", "--padding", "valid", *OUT],
        4,
        "larger than the volume",
    ),
    ("NaN as a value", ["apply", "x.npy", *GAUSS, "--missing", "nan", *OUT], 2, "--nan ignore"),
    # geometry
    (
        "strides 0",
        ["apply", "x.npy", *KERNEL, "--strides", "0", *OUT],
        2,
        "--strides must be a whole number of at least 1, or three",
    ),
    (
        "dilation 0",
        ["apply", "x.npy", *KERNEL, "--dilation-rate", "1,0,1", *OUT],
        2,
        "--dilation-rate must be a whole number of at least 1, or three",
    ),
    ("strides text", ["apply", "x.npy", *KERNEL, "--strides", "two", *OUT], 2, "whole number"),
    (
        "both",
        ["apply", "x.npy", *KERNEL, "--strides", "2", "--dilation-rate", "2", *OUT],
        2,
        "--allow-strided-dilation",
    ),
    (
        "groups in",
        ["apply", "x4.npy", "-k", "k5.npy", "--groups", "3", *OUT],
        4,
        "groups must divide",
    ),
    ("groups 0", ["apply", "x4.npy", "-k", "k5.npy", "--groups", "0", *OUT], 2, "groups must be"),
    (
        "filters",
        ["apply", "x4.npy", "-k", "k5.npy", "--groups", "2", "--filters", "7", *OUT],
        4,
        "filters=7",
    ),
    (
        "reflect",
        ["apply", "x.npy", *KERNEL, "--boundary", "reflect", *OUT],
        2,
        "'symmetric' for scipy's",
    ),
    (
        "unknown boundary",
        ["apply", "x.npy", *KERNEL, "--boundary", "mirrored", *OUT],
        2,
        "did you mean 'mirror'",
    ),
    ("causal", ["apply", "x.npy", *KERNEL, "--padding", "causal", *OUT], 2, "causal"),
    ("padding text", ["apply", "x.npy", *KERNEL, "--padding", "1,2", *OUT], 2, "padding must be"),
    ("negative padding", ["apply", "x.npy", *KERNEL, "--padding=-1", *OUT], 2, "padding must be"),
    (
        "activation",
        ["apply", "x.npy", *KERNEL, "--activation", "rellu", *OUT],
        2,
        "did you mean 'relu'",
    ),
    (
        "algorithm",
        ["apply", "x.npy", *KERNEL, "--algorithm", "dircet", *OUT],
        2,
        "did you mean 'direct'",
    ),
    ("dtype", ["apply", "x.npy", *KERNEL, "--dtype", "float13", *OUT], 2, "dtype must be one of"),
    ("axes count", ["apply", "x.npy", *KERNEL, "--axes", "tzyx", *OUT], 2, "axes"),
    ("axes letters", ["apply", "x.npy", *KERNEL, "--axes", "zzy", *OUT], 2, "axes"),
    ("memory", ["apply", "x.npy", *KERNEL, "--max-memory", "10M", *OUT], 6, "--max-memory"),
    ("memory text", ["apply", "x.npy", *KERNEL, "--max-memory", "much", *OUT], 2, "memory size"),
    # outputs
    ("exists", ["apply", "x.npy", *KERNEL, "-o", "target.npy"], 5, "--overwrite"),
    ("is the input", ["apply", "x.npy", *KERNEL, "-o", "./x.npy"], 5, "it is the input"),
    ("missing folder", ["apply", "x.npy", *KERNEL, "-o", "nix/out.npy"], 1, "does not exist"),
    ("no output", ["apply", "x.npy", *KERNEL], 2, "no output"),
    ("two inputs, one output", ["apply", "x.npy", "x.nii", *KERNEL, *OUT], 2, "--out-dir"),
    (
        "output and folder",
        ["apply", "x.npy", *KERNEL, *OUT, "--out-dir", "d"],
        2,
        "-o names one output",
    ),
    # configs
    ("config missing", ["apply", "x.npy", "-c", "nix.toml", *OUT], 3, "nix.toml"),
    ("config syntax", ["apply", "x.npy", "-c", "bad.toml", *OUT], 2, "not valid TOML"),
    ("config key", ["apply", "x.npy", "-c", "unknown.toml", *OUT], 2, "write 'strides'"),
    # other commands
    ("compare missing", ["compare", "x.npy", "nix.npy"], 3, "nix.npy"),
    ("info corrupt", ["info", "noise.nii.gz"], 3, "noise.nii.gz"),
    ("explain", ["explain", "x.npy", *KERNEL, "--strides", "0"], 2, "strides"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_one_line_and_the_right_code(
    folder: Path, run: Any, error_line: Any, arguments: list[str], code: int, words: str
) -> None:
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    here = os.getcwd()
    os.chdir(folder)
    try:
        result = run(*arguments, code=code)
    finally:
        os.chdir(here)
    message = error_line(result.stderr)
    assert words in message
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("case", ["missing", "no kernel", "mm without spacing", "exists", "memory"])
def test_exit_codes_of_a_real_process(folder: Path, shell: Any, error_line: Any, case: str) -> None:
    _, arguments, code, words = next(c for c in CASES if c[0] == case)
    done = shell(*arguments, cwd=folder)
    assert done.returncode == code
    assert words in error_line(done.stderr.decode())
    assert done.stdout == b""


def test_unknown_option_is_clicks_usage_error(folder: Path, shell: Any) -> None:
    done = shell("apply", "x.npy", "--kernal", "k.npy", *OUT, cwd=folder)
    assert done.returncode == 2
    assert b"--kernel" in done.stderr


def test_full_disk(folder: Path, error_line: Any) -> None:
    """A limit on file size stands for a full disk: the error comes from the same calls."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from conv3d_cli.cli import main; main(sys.argv[1:])"
    )
    for target in ("out.npy", "out.nii", "out.nii.gz", "out.tif"):
        # the cache of compiled loops is warm: nothing else is written
        done = subprocess.run(
            [sys.executable, "-c", script, "apply", "x.nii", *GAUSS, "-o", target],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "cannot write" in error_line(done.stderr)
        assert not (folder / target).exists()
        assert not [p for p in folder.iterdir() if ".tmp" in p.name]


def test_unwritable_folder(folder: Path, shell: Any, error_line: Any) -> None:
    if os.geteuid() == 0:
        # root may write anywhere else
        done = shell("apply", "x.npy", *KERNEL, "-o", "/proc/out.npy", cwd=folder)
    else:
        (folder / "locked").mkdir(mode=0o500)
        done = shell("apply", "x.npy", *KERNEL, "-o", "locked/out.npy", cwd=folder)
    assert done.returncode == 1
    assert "cannot write" in error_line(done.stderr.decode())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("target", ["out.nii.gz", "out.npy"])
def test_signals_leave_nothing_behind(
    tmp_path: Path, number: signal.Signals, code: int, target: str
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("these tests run under nohup, which conv3d respects")
    x = np.zeros((160, 160, 160), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "k.npy", np.ones((55, 55, 55)))  # seconds on any machine, with two threads
    command = [sys.executable, "-m", "conv3d_cli", "apply", "x.npy", "-k", "k.npy", "-o", target]
    with started(
        [*command, "--algorithm", "direct", "-j2"], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: [p for p in tmp_path.iterdir() if ".tmp" in p.name], process)
        time.sleep(0.3)
        process.send_signal(number)
        if number != signal.SIGINT:
            process.send_signal(number)  # a terminal that closes says so twice
        _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == code, err
    assert b"Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.npy", "x.npy"]


@pytest.mark.parametrize("wait", [0.0, 0.4, 1.0])
def test_an_interrupt_while_loops_are_compiled(tmp_path: Path, wait: float) -> None:
    """The first job spends its seconds in LLVM: there, a signal neither gets lost nor does harm."""
    np.save(tmp_path / "x.npy", np.zeros((20, 20, 20), np.float32))
    command = [
        sys.executable,
        "-m",
        "conv3d_cli",
        "apply",
        "x.npy",
        "-k",
        "box:size=3",
        "-o",
        "out.npy",
    ]
    environment = {
        **os.environ,  # without the loops of earlier runs
        "CONV3D_CACHE_DIR": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    with started(command, cwd=tmp_path, stderr=subprocess.PIPE, env=environment) as process:
        wait_until((tmp_path / "cache").exists, process)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT)
    *notes, last = err.splitlines()
    assert (process.returncode, last) == (130, b"interrupted; no output was left behind")
    assert all(note.startswith(b"note: compiling ") for note in notes)
    assert len(notes) <= 1
    assert not [p for p in tmp_path.iterdir() if p.name not in ("x.npy", "cache")]


def test_a_wrong_cpu_class_is_one_line(
    folder: Path, shell: Any, error_line: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CONV3D_CPU", "z80")
    done = shell("apply", "x.npy", *KERNEL, "-o", "o.npy", cwd=folder)
    assert "unknown CPU class in CONV3D_CPU 'z80'" in error_line(done.stderr.decode())


def test_pipes(folder: Path, shell: Any, error_line: Any) -> None:
    done = shell(
        "apply", "-", *KERNEL, "-o", "-", cwd=folder, input=(folder / "x.npy").read_bytes()
    )
    assert done.returncode == 0, done.stderr
    assert shell("apply", "x.npy", *KERNEL, "-o", "o.npy", cwd=folder).returncode == 0
    assert done.stdout == (folder / "o.npy").read_bytes()
    nothing = shell("apply", "-", *KERNEL, "-o", "o2.npy", cwd=folder, input=b"")
    assert nothing.returncode == 3
    assert "empty" in error_line(nothing.stderr.decode())


def test_no_bar_and_no_colours_without_a_terminal(folder: Path, shell: Any) -> None:
    done = shell("apply", "x.npy", *KERNEL, "-o", "o.npy", cwd=folder)
    assert done.stdout == b""
    assert done.stderr == b""


# --------------------------------------------------------------------------------------------------
# Targets that are no plain files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs of POSIX")
@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (["apply", "x.npy", *KERNEL, "-o", "fifo.zarr", "--overwrite"], "the output is a folder"),
        (
            ["apply", "x.npy", *KERNEL, "-o", "fifo.npy", "--sidecar", "--overwrite"],
            "has no local folder",
        ),
        (
            ["apply", "x.npy", *KERNEL, "-o", "side.npy", "--sidecar", "--overwrite"],
            "it is a FIFO, which a file would replace; name a plain file",
        ),
    ],
)
def test_a_fifo_that_cannot_take_an_output_stays(
    folder: Path, shell: Any, error_line: Any, command: list[str], fault: str
) -> None:
    fifos = [folder / name for name in ("fifo.npy", "fifo.zarr", "side.json")]
    for fifo in fifos:
        os.mkfifo(fifo)
    before = sorted(folder.iterdir())
    done = shell(*command, cwd=folder)
    assert done.returncode in (1, 2)
    assert fault in error_line(done.stderr.decode())
    assert all(fifo.is_fifo() for fifo in fifos)
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs of POSIX")
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("npy", ["apply", "x.npy", *KERNEL, "--overwrite", "-o"]),
        ("nii.gz", ["apply", "x.nii.gz", *GAUSS, "--overwrite", "-o"]),
        ("tif", ["apply", "x.tif", *KERNEL, "--overwrite", "-o"]),
        ("npy", ["apply", "x.npy", *GAUSS, *OUT, "--nan", "ignore", "--coverage-out"]),
        ("npy", ["kernel", "make", "box:size=3", "--overwrite", "-o"]),
    ],
)
def test_a_fifo_passes_an_output_on(
    folder: Path, shell: Any, name: str, command: list[str]
) -> None:
    fifo = folder / f"fifo.{name}"
    os.mkfifo(fifo)
    with open(folder / "got", "wb") as got:
        reading = subprocess.Popen(["cat", fifo], stdout=got)
    with reading:
        done = shell(*command, fifo.name, cwd=folder)
        if done.returncode:
            reading.kill()
    assert (done.returncode, fifo.is_fifo()) == (0, True), done.stderr
    (folder / "out.npy").unlink(missing_ok=True)
    assert shell(*command, f"file.{name}", cwd=folder).returncode == 0
    assert (folder / "got").read_bytes() == (folder / f"file.{name}").read_bytes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs of POSIX")
@pytest.mark.parametrize("option", ["--depfile", "--report"])
def test_what_is_text_is_sent_into_a_fifo(folder: Path, shell: Any, option: str) -> None:
    os.mkfifo(folder / "fifo.html")
    with open(folder / "got", "wb") as got:
        reading = subprocess.Popen(["cat", folder / "fifo.html"], stdout=got)
    with reading:
        done = shell("apply", "x.npy", *KERNEL, *OUT, option, "fifo.html", "-q", cwd=folder)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "fifo.html").is_fifo()
    text = (folder / "got").read_text()
    assert text.startswith("out.npy: x.npy" if option == "--depfile" else "<!doctype html>")


def test_a_device_takes_the_depfile_and_stays(folder: Path, shell: Any) -> None:
    null = folder / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        null.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"no devices can be made here: {error}")
    done = shell("apply", "x.npy", *KERNEL, *OUT, "--depfile", "null", "-q", cwd=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_private_volume_stays_private(folder: Path, shell: Any) -> None:
    """Also in place, and as a pair, a store, a kernel file."""
    for name, arguments in {
        "x.npy": ["apply", "x.npy", *KERNEL],
        "x.nii.gz": ["apply", "x.nii.gz", *GAUSS],
        "p.hdr": ["apply", "x.nii.gz", *GAUSS],
        "x.tif": ["apply", "x.tif", *KERNEL, "--compression", "deflate"],
        "k.npy": ["kernel", "make", "box:size=3"],
    }.items():
        targets = [folder / name] + [folder / "p.img"] * (name == "p.hdr")
        for target in targets:
            target.touch()
            target.chmod(0o600)
        assert shell(*arguments, "-o", name, "--overwrite", cwd=folder).returncode == 0
        assert [stat.S_IMODE(target.stat().st_mode) for target in targets] == [0o600] * len(
            targets
        ), name

"""Files from strangers, in `make test`: kept finds, kept inputs, seeds, and Hypothesis. `make fuzz`
looks for new ones.
"""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import change_bytes, mutate
from processes import cpu_seconds
from profiles import examples
from targets import (
    CORPUS,
    FINDS,
    TARGETS,
    BrokenPromiseError,
    Target,
    corpus_of,
    find_targets,
    nifti_of,
    try_input,
)

from conv3d_cli.errors import FormatError

KEPT = sorted(path for path in FINDS.rglob("*") if path.is_file())
SECONDS = 5.0  # of CPU time, in which others on the machine do not count


def needed(target: Target) -> None:
    """Skip a reader whose library is not installed."""
    libraries = {
        "zarr": "zarr",
        "minc2": "h5py",
        "hdf5": "h5py",
        "imaris": "h5py",
        "dicom": "pydicom",
        "lif": "liffile",
        "nd2": "nd2",
        "weights-keras": "h5py",
        "weights-h5": "h5py",
        "weights-onnx": "onnx",
    }
    if target.name in libraries:
        pytest.importorskip(libraries[target.name])


def kept_promise(target: Target, data: bytes, folder: Path, isolated: bool = False) -> str:
    """What a reader says, if it says so soon and without much memory: 8 MB for libraries, and in
    proportion to the file.
    """
    tracemalloc.start()
    begin = cpu_seconds()
    try:
        said = try_input(target, data, folder, isolated)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cpu_seconds() - begin < SECONDS, "slow"
    assert peak < (24 << 20) + 200 * len(data), f"{peak:,} bytes for a file of {len(data)}"
    return said


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_seeds_are_read(target: Target, tmp_path: Path) -> None:
    """A seed that is refused would lead nowhere; some weights files are refused by their nature."""
    needed(target)
    said = {name: kept_promise(target, data, tmp_path) for name, data in target.seeds().items()}
    refused = {name for name, text in said.items() if text != "read"}
    assert refused <= {"external.onnx"}, said


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_kept_inputs(target: Target, tmp_path: Path) -> None:
    needed(target)
    for data in corpus_of(target).values():
        kept_promise(target, data, tmp_path)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_finds_stay_mended(path: Path, tmp_path: Path) -> None:
    (target,) = (target for target in TARGETS if target.name == path.parent.name)
    needed(target)
    kept_promise(target, path.read_bytes(), tmp_path, isolated=True)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@given(seed=st.integers(0, 2**48))
@settings(
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damaged_seeds(target: Target, seed: int, tmp_path: Path) -> None:
    needed(target)
    seeds = _seeds(target)
    chance = random.Random(seed)
    data = mutate(chance.choice(seeds), chance, lambda content: change_bytes(content, chance))
    if target.isolated is not None:
        # HDF5 itself may crash: one damaged file after another in a process of its own is slow
        if seed % 8:
            return
        try_input(target, data, tmp_path, isolated=True)
        return
    try_input(target, data, tmp_path)


_MADE: dict[str, list[bytes]] = {}


def _seeds(target: Target) -> list[bytes]:
    if target.name not in _MADE:
        _MADE[target.name] = [*target.seeds().values(), *corpus_of(target).values()]
    return _MADE[target.name]


@pytest.mark.parametrize("size", [1700, 20000, 32767])
@pytest.mark.parametrize("suffix", [".nii", ".hdr"])
def test_a_small_header_that_claims_gigabytes(size: int, suffix: str, tmp_path: Path) -> None:
    """377 bytes that claim 18 GB and more: nifti_clib issue 196."""
    name = "nifti-nii" if suffix == ".nii" else "nifti-pair"
    (target,) = (target for target in TARGETS if target.name == name)
    data = nifti_of(size)
    if suffix == ".hdr":
        data = data.replace(b"n+1\0", b"ni1\0")
    assert len(data) == 377
    assert "truncated" in kept_promise(target, data, tmp_path)


def test_the_check_notices_what_it_is_for(tmp_path: Path) -> None:
    def crash(path: str) -> None:
        raise KeyError(path)

    def warn(path: str) -> None:
        import warnings

        warnings.warn("careful", RuntimeWarning, stacklevel=1)

    def greedy(path: str) -> None:
        bytearray(200 << 20)

    class Talkative(FormatError):
        def __str__(self) -> str:
            return "x" * 9000

    def talkative(path: str) -> None:
        raise Talkative

    for read, kind in (
        (crash, KeyError),
        (warn, RuntimeWarning),
        (greedy, AssertionError),
        (talkative, BrokenPromiseError),
    ):
        with pytest.raises(kind):
            kept_promise(Target("x", ".bin", read, dict, ()), b"data", tmp_path)


def test_corpus_is_small_and_every_reader_is_known() -> None:
    assert (
        sum(
            path.stat().st_size
            for folder in (CORPUS, FINDS)
            for path in folder.rglob("*")
            if path.is_file()
        )
        < 300_000
    )
    assert {path.stem for path in CORPUS.glob("*.zip")} <= {target.name for target in TARGETS}
    assert {target.name for target in find_targets("kernel")} < {
        target.name for target in find_targets("all")
    }

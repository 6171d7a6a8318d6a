"""Compiled loops on disk: a second process compiles nothing.

No state of the disk keeps a job from its result.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from processes import LIMIT, started

import conv3d_cli
from conv3d_cli.cli.progress import ProgressBar
from conv3d_cli.engine import compiling, machine_code, warm
from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.loops.compiler import compile_object
from conv3d_cli.system import machine

SCRIPT = """
import json, numpy as np, sys
from conv3d_cli import conv3d
from conv3d_cli.engine.machine_code import cache_folder, compiled_here

got = conv3d(np.ones((4, 4, 4), np.float32), np.ones((3, 3, 3)))
assert got.shape == (2, 2, 2) and (got == 27).all()
folder = cache_folder()
print(json.dumps([len(compiled_here()), "numba" in sys.modules, folder and str(folder)]))
"""
LOOPS = 4  # drive, pack, the algorithm's own, store
# One of the four, which is compiled in a quarter of the time.
ONE_LOOP = """
import json, sys
from conv3d_cli.engine.machine_code import cache_folder, compiled_here, machine_code

assert machine_code("store", "store", "float32", "float32").address
folder = cache_folder()
print(json.dumps([len(compiled_here()), "numba" in sys.modules, folder and str(folder)]))
"""


def start(
    cwd: Path, script: str = SCRIPT, **environment: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("CONV3D_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    }
    env.update(HOME=str(cwd), TMPDIR=str(cwd))  # loops of earlier runs are not found
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return started(
        [sys.executable, "-c", script], env=env | environment, cwd=cwd, text=True, **pipes
    )


def result(process: subprocess.Popen[str]) -> tuple[int, bool, str | None]:
    """(loops compiled, whether Numba was imported, folder) of a process that convolved."""
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    compiled, numba, folder = json.loads(out)
    return compiled, numba, folder


def run(cwd: Path, script: str = SCRIPT, **environment: str) -> tuple[int, bool, str | None]:
    with start(cwd, script, **environment) as process:
        return result(process)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of SCRIPT's loops.

    Compiling them takes many seconds. So it is done once for a state of the engine's sources, by
    whichever process of the tests comes first, and kept beside the loops of the other tests. Tests
    take copies; only those compile that must.
    """
    kept = Path(os.environ["CONV3D_CACHE_DIR"]) / f"for-test-cache-{machine_code.source_key()}"
    if not kept.exists():
        made = tmp_path_factory.mktemp("compiled") / "cache"
        run(made.parent, CONV3D_CACHE_DIR=str(made))
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = kept.with_name(f".{kept.name}-{os.getpid()}")
        shutil.copytree(made, staged)
        try:
            staged.rename(kept)
        except OSError:  # another process was faster
            shutil.rmtree(staged)
    return kept


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A warm cache of this test's own."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


@pytest.fixture
def recalled(filled: Path) -> str:
    """Lines before a script: where it would compile SCRIPT's loops, it gets them from `filled`.

    So tests about files and folders need not wait for Numba. These loops count as compiled.
    """
    return f"""
import conv3d_cli.engine.machine_code as m
def recall(key, folder={str(objects(filled)[0].parent)!r}):
    with open(f"{{folder}}/{{m._name(key)}}.o", "rb") as file:
        body = file.read()[len(m.MAGIC) + m.SEAL_BYTES :]
    symbol, _, code = body.partition(b"\\n")
    return symbol.decode(), code
m.compile_loop = recall
m.worker_count = lambda loops: 1
"""


def smallest(cache: Path) -> Path:
    """The file of one loop."""
    return min(objects(cache), key=lambda path: path.stat().st_size)


def objects(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.o"))


def contents(cache: Path) -> dict[str, bytes]:
    """Of every file but the key, whatever its name."""
    files = [
        path for path in cache.rglob("*") if path.is_file() and path.name != machine_code.KEY_FILE
    ]
    return {str(path.relative_to(cache)): path.read_bytes() for path in files}


def test_the_second_process_compiles_nothing(cache: Path, tmp_path: Path) -> None:
    before = contents(cache)
    assert len(before) == LOOPS
    assert run(tmp_path, CONV3D_CACHE_DIR=str(cache))[:2] == (0, False)
    assert contents(cache) == before


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(data: bytes) -> bytes:
    """One bit of the code itself."""
    at = len(data) * 2 // 3
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def test_a_damaged_file_costs_a_compilation(cache: Path, tmp_path: Path) -> None:
    before = contents(cache)
    file = smallest(cache)
    file.write_bytes(damaged(file.read_bytes()))
    assert run(tmp_path, CONV3D_CACHE_DIR=str(cache))[0] == 1
    assert contents(cache).keys() == before.keys()
    assert run(tmp_path, CONV3D_CACHE_DIR=str(cache))[0] == 0  # mended


def test_a_cpu_class_compiles_its_own(cache: Path, tmp_path: Path) -> None:
    """A folder that holds the loops of two classes keeps them apart; each class finds its own."""
    name = "baseline" if cpu_class().name != "baseline" else "avx2"
    other = {"CONV3D_CACHE_DIR": str(cache), "CONV3D_CPU": name}
    compiled, _, there = run(tmp_path, ONE_LOOP, **other)
    assert compiled == 1
    assert len(list(cache.iterdir())) == 2
    compiled, _, here = run(tmp_path, CONV3D_CACHE_DIR=str(cache))
    assert compiled == 0
    assert here != there
    assert run(tmp_path, ONE_LOOP, **other) == (0, False, there)


def test_a_folder_in_a_files_place(cache: Path, recalled: str, tmp_path: Path) -> None:
    file = smallest(cache)
    file.unlink()
    file.mkdir()
    assert run(tmp_path, recalled + SCRIPT, CONV3D_CACHE_DIR=str(cache))[0] == 1
    assert file.is_dir()
    assert not list(cache.rglob(".writing*"))


def test_two_first_processes_at_once(recalled: str, tmp_path: Path) -> None:
    cache, counts = tmp_path / "cache", list[int]()
    first, second = (
        start(tmp_path, recalled + SCRIPT, CONV3D_CACHE_DIR=str(cache)) for _ in range(2)
    )
    with first as one, second as other:
        for process in (one, other):
            counts.append(result(process)[0])
    assert sum(counts) == LOOPS  # one waits for the other
    assert len(objects(cache)) == LOOPS
    assert not list(cache.rglob(".writing*"))
    assert run(tmp_path, recalled + SCRIPT, CONV3D_CACHE_DIR=str(cache))[:2] == (0, False)


def test_a_changed_engine_file_never_runs_stale_code(cache: Path, tmp_path: Path) -> None:
    """Whichever file of the engine it is: loops are made of several."""
    package = tmp_path / "conv3d_cli"
    shutil.copytree(
        Path(conv3d_cli.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {"PYTHONPATH": str(tmp_path), "CONV3D_CACHE_DIR": str(cache)}
    assert run(tmp_path, **environment)[0] == 0  # the same sources elsewhere
    key = (
        "import json; from conv3d_cli.engine.machine_code import source_key; "
        "print(json.dumps([0, False, source_key()]))"
    )
    keys = [run(tmp_path, key, PYTHONPATH=str(tmp_path))[2]]
    for name in ("tile.py", "loops/store.py", "algorithms/direct.py", "loops/new.py"):
        with open(package / "engine" / name, "a") as file:
            file.write("\n# changed\n")
        keys.append(run(tmp_path, key, PYTHONPATH=str(tmp_path))[2])
    assert len(set(keys)) == 5

    assert run(tmp_path, ONE_LOOP, **environment)[0] == 1


# --------------------------------------------------------------------------------------------------
# Folders


def test_without_a_usable_home_it_still_works(filled: Path, recalled: str, tmp_path: Path) -> None:
    """HOME cannot be made: the session's folder is read, and what it lacks is written there."""
    (tmp_path / "session").mkdir(mode=0o700)
    there = Path(shutil.copytree(filled, tmp_path / "session" / "conv3d"))
    smallest(there).unlink()
    elsewhere = {"HOME": "/proc/nothing", "XDG_CACHE_HOME": "/proc/nothing"}
    elsewhere["XDG_RUNTIME_DIR"] = str(tmp_path / "session")
    compiled, _, folder = run(tmp_path, recalled + SCRIPT, **elsewhere)
    assert compiled == 1
    assert folder is not None
    assert folder.startswith(str(tmp_path / "session" / "conv3d"))
    assert run(tmp_path, recalled + SCRIPT, **elsewhere)[0] == 0


NO_FOLDER = {
    "HOME": "/proc/nothing",
    "XDG_CACHE_HOME": "/proc/nothing",
    "CONV3D_CACHE_DIR": "/proc/nothing",
}


def test_no_folder_at_all_compiles_in_memory(cache: Path, recalled: str, tmp_path: Path) -> None:
    """As on a system where everything is read-only.

    The temporary folder, which is everybody's, is neither read nor written.
    """
    shared = tmp_path / "shared"
    shutil.copytree(cache, shared / f"conv3d-cache-{os.getuid()}")
    before = contents(shared)
    nowhere = {**NO_FOLDER, "XDG_RUNTIME_DIR": "", "TMPDIR": str(shared)}
    compiled, _, kept = run(tmp_path, recalled + SCRIPT, **nowhere)
    assert (compiled, kept) == (LOOPS, None)
    assert contents(shared) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "shared"]


def test_a_folder_that_cannot_be_written_is_still_read(
    cache: Path, recalled: str, tmp_path: Path
) -> None:
    """A cache made when a container was built; what is missing in it goes to the next folder."""
    # by a patch, since permissions do not hold root back
    read_only = f"""{recalled}
real = m._refusal
m._refusal = lambda folder: "read-only" if str(folder).startswith({str(cache)!r}) else real(folder)
"""
    environment = {"CONV3D_CACHE_DIR": str(cache), "NUMBA_CACHE_DIR": str(tmp_path / "second")}
    assert run(tmp_path, read_only + SCRIPT, **environment)[0] == 0
    smallest(cache).unlink()
    assert run(tmp_path, read_only + SCRIPT, **environment)[0] == 1
    assert len(contents(tmp_path / "second")) == 1
    assert run(tmp_path, read_only + SCRIPT, **environment)[0] == 0


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_others_may_write_is_not_trusted(
    cache: Path, filled: Path, recalled: str, tmp_path: Path
) -> None:
    """Its files are code that would be loaded; see test_private_folder.py."""
    folder = objects(cache)[0].parent
    folder.chmod(0o777)
    smallest(Path(shutil.copytree(filled, tmp_path / "next"))).unlink()
    environment = {"CONV3D_CACHE_DIR": str(cache), "NUMBA_CACHE_DIR": str(tmp_path / "next")}
    compiled, _, used = run(tmp_path, recalled + SCRIPT, **environment)
    assert compiled == 1  # which the next folder lacks; the first one has it
    assert used is not None
    assert used.startswith(str(tmp_path / "next"))
    assert Path(used).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_costs_a_compilation(cache: Path, recalled: str, tmp_path: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    smallest(cache).unlink()
    before = contents(cache)
    environment = {"CONV3D_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    assert run(tmp_path, recalled + full + SCRIPT, **environment)[0] == 1
    assert contents(cache) == before


# --------------------------------------------------------------------------------------------------
# Files: made-up code of no machine, written and read in this process

KEY = ("pack", "pack_rows", "int16", "float32")
OTHER = ("store", "store_rows", "int16", "float32")
CODE = bytes(range(256))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that this process keeps code in, and reads it from; it holds CODE as KEY's."""
    monkeypatch.setattr(machine_code, "_folders", lambda: iter([tmp_path / "cache"]))
    machine_code.cache_folder.cache_clear()
    try:
        machine_code._write(KEY, "symbol", CODE)
        assert machine_code._read(KEY) == ("symbol", CODE)
        yield tmp_path / "cache"
    finally:
        machine_code.cache_folder.cache_clear()


def file_of(folder: Path, key: tuple[Any, ...]) -> Path:
    return folder / f"{machine_code._name(key)}.o"


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(truncated, id="truncated"),
        pytest.param(damaged, id="damaged"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda data: data[:20], id="head only"),
        pytest.param(lambda data: data[48:], id="bare"),
        pytest.param(lambda _: b"\x7fELF" + b"\0" * 99, id="another format"),
    ],
)
def test_a_file_that_is_not_whole_is_not_read(folder: Path, harm: Any) -> None:
    file = file_of(folder, KEY)
    file.write_bytes(harm(file.read_bytes()))
    assert machine_code._read(KEY) is None
    machine_code._write(KEY, "symbol", CODE)  # as the process does that has compiled it again
    assert machine_code._read(KEY) == ("symbol", CODE)


def test_a_whole_file_in_a_wrong_place_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another loop's code, and another CPU's: whole, but not what is asked for."""
    shutil.copy(file_of(folder, KEY), file_of(folder, OTHER))
    assert machine_code._read(OTHER) is None
    monkeypatch.setattr(machine_code, "source_key", lambda: "another machine")
    assert machine_code._read(KEY) is None


def test_a_damaged_key_is_replaced(folder: Path) -> None:
    """Nothing of before can be believed then."""
    (folder / machine_code.KEY_FILE).write_bytes(b"short")
    assert machine_code._read(KEY) is None
    machine_code._write(OTHER, "symbol", CODE)
    assert machine_code._read(OTHER) == ("symbol", CODE)
    assert machine_code._read(KEY) is None
    assert len((folder / machine_code.KEY_FILE).read_bytes()) == machine_code.KEY_BYTES


def sealed(folder: Path, key: tuple[Any, ...], body: bytes, secret: bytes) -> None:
    """Put a file there as its owner could whose key is `secret`."""
    seal = machine_code._seal(secret, key, body)
    file_of(folder, key).write_bytes(machine_code.MAGIC + seal + body)


def test_code_without_the_folders_key_is_not_read(folder: Path) -> None:
    """As of an archive that was unpacked there: its author has not the key that seals conv3d's."""
    secret = (folder / machine_code.KEY_FILE).read_bytes()
    assert len(secret) == machine_code.KEY_BYTES
    assert (folder / machine_code.KEY_FILE).stat().st_mode & 0o777 == 0o600
    sealed(folder, KEY, b"symbol\nother", secret)
    assert machine_code._read(KEY) == ("symbol", b"other")

    for stranger in (b"", bytes(machine_code.KEY_BYTES), os.urandom(machine_code.KEY_BYTES)):
        sealed(folder, KEY, b"symbol\nforged", stranger)
        assert machine_code._read(KEY) is None
    # the digest that anybody can compute, as it was before there was a key
    digest = hashlib.sha256(
        f"{machine_code.source_key()} {KEY}\n".encode() + b"symbol\nforged"
    ).digest()
    file = file_of(folder, KEY)
    for magic in (b"conv3d object 2\n", machine_code.MAGIC):
        file.write_bytes(magic + digest + b"symbol\nforged")
        assert machine_code._read(KEY) is None

    sealed(folder, KEY, b"symbol\nother", secret)
    for harm in (b"", secret[:-1], secret + b"x"):  # no key is no seal
        (folder / machine_code.KEY_FILE).write_bytes(harm)
        sealed(folder, KEY, b"symbol\nforged", harm)
        assert machine_code._read(KEY) is None
    (folder / machine_code.KEY_FILE).write_bytes(secret)
    sealed(folder, KEY, b"symbol\nother", secret)
    (folder / machine_code.KEY_FILE).chmod(0o644)  # no secret any more
    assert machine_code._read(KEY) is None


READ_AS_ALICE = """
import grp, json, os, pwd, sys  # what is imported later, she may not read
from conv3d_cli.engine import machine_code
key = tuple(json.loads(sys.argv[1]))
machine_code.source_key()  # while it may read the sources
os.setgroups([])
os.setgid(12001)
os.setuid(12001)
os.environ.clear()
os.environ.update(word.split("=", 1) for word in sys.argv[2:])
print(machine_code._read(key))
"""


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as two users"
)
def test_another_user_cannot_plant_code() -> None:
    """Bob puts whole, sealed object code, and links to it, wherever Alice might look for hers."""
    alice, bob = 12001, 12002
    with tempfile.TemporaryDirectory(dir=os.path.realpath(tempfile.gettempdir())) as parent:
        os.chmod(parent, 0o755)
        shared, home = Path(parent, "tmp"), Path(parent, "home")
        shared.mkdir()
        os.chmod(shared, 0o1777)  # as /tmp
        home.mkdir(0o700)
        os.chown(home, alice, alice)

        def planted(folder: Path, owner: int) -> Path:
            """A cache whose files are right in every way but their owner."""
            own = folder / machine_code.source_key()
            own.mkdir(parents=True)
            (own / machine_code.KEY_FILE).write_bytes(bytes(machine_code.KEY_BYTES))
            (own / machine_code.KEY_FILE).chmod(0o600)
            sealed(own, KEY, b"symbol\nplanted", bytes(machine_code.KEY_BYTES))
            for path in (folder, own, *own.iterdir()):
                os.chown(path, owner, owner)
            return folder

        def read(**environment: object) -> str:
            words = [f"{name}={value}" for name, value in environment.items()]
            done = subprocess.run(
                [sys.executable, "-c", READ_AS_ALICE, json.dumps(KEY), f"TMPDIR={shared}", *words],
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stdout.strip()

        bobs = planted(shared / "conv3d-cache-12001", bob)
        assert read(HOME=home) == "None"
        for variable in ("CONV3D_CACHE_DIR", "NUMBA_CACHE_DIR"):
            assert read(HOME=home, **{variable: bobs}) == "None"
        assert read(HOME=home, XDG_CACHE_HOME=shared, XDG_RUNTIME_DIR=shared) == "None"
        # her own folder counts, but not through a link of his, nor below a folder that he may write
        hers = planted(home / "hers", alice)
        assert "planted" in read(HOME=home, CONV3D_CACHE_DIR=hers)
        (shared / "link").symlink_to(hers)
        os.chown(shared / "link", bob, bob, follow_symlinks=False)
        assert read(HOME=home, CONV3D_CACHE_DIR=shared / "link") == "None"
        os.chmod(home, 0o777)
        assert read(HOME=home, CONV3D_CACHE_DIR=hers) == "None"
        os.chmod(home, 0o700)
        # one file of his in her folder
        for name in (machine_code.KEY_FILE, f"{machine_code._name(KEY)}.o"):
            os.chown(hers / machine_code.source_key() / name, bob, bob)
            assert read(HOME=home, CONV3D_CACHE_DIR=hers) == "None"
            os.chown(hers / machine_code.source_key() / name, alice, alice)
        assert "planted" in read(HOME=home, CONV3D_CACHE_DIR=hers)


EXCHANGE = """
import ctypes, os, sys
here, other = (os.fsencode(name) for name in sys.argv[1:])
call = ctypes.CDLL(None).renameat2
os.setgroups([])
os.setgid(12002)
os.setuid(12002)
print("ready", flush=True)
while os.getppid() != 1:
    assert call(-100, here, -100, other, 2) == 0
"""
READ_OFTEN = READ_AS_ALICE.replace(
    "print(machine_code._read(key))",
    "found = {machine_code._read(key) for _ in range(3000)}\nprint(found)",
)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as two users"
)
@pytest.mark.parametrize("honest", ["root's", "hers"])
def test_another_user_cannot_win_a_race(honest: str) -> None:
    """Bob exchanges two names again and again: what she may trust, and what he made.

    Whoever looks at a name and opens it afterwards takes his for hers now and then.
    """
    alice, bob = 12001, 12002
    secret = bytes(machine_code.KEY_BYTES)
    with tempfile.TemporaryDirectory(dir=os.path.realpath(tempfile.gettempdir())) as parent:
        os.chmod(parent, 0o755)
        shared = Path(parent, "tmp")
        shared.mkdir()
        os.chmod(shared, 0o1777)  # as /tmp
        # a folder of his in it, with the key's name as a link that changes, and the other way round
        cache = shared / "conv3d-cache-12001"
        cache.mkdir()
        places = []
        for name, owner in (("evil", bob), ("good", alice if honest == "hers" else 0)):
            folder = cache / name
            folder.mkdir(mode=0o755)
            (folder / machine_code.KEY_FILE).write_bytes(secret)
            (folder / machine_code.KEY_FILE).chmod(0o600)
            sealed(folder, KEY, f"symbol\n{name}".encode(), secret)
            for path in (folder, *folder.iterdir()):
                os.chown(path, owner, owner)
            link = cache / f"to {name}"
            link.symlink_to(folder)
            os.chown(link, bob, bob, follow_symlinks=False)
            places.append(link)
        os.chown(cache, bob, bob)
        key = cache / machine_code.source_key()
        places[1].rename(key)
        exchange = [sys.executable, "-c", EXCHANGE, key, places[0]]
        with started(exchange, stdout=subprocess.PIPE) as bobs:
            assert bobs.stdout.readline() == b"ready\n"
            for variable in ("CONV3D_CACHE_DIR", "NUMBA_CACHE_DIR"):
                words = [f"TMPDIR={shared}", f"HOME={parent}", f"{variable}={cache}"]
                done = subprocess.run(
                    [sys.executable, "-c", READ_OFTEN, json.dumps(KEY), *words],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                assert done.stdout.strip() == "{None}"
            assert bobs.poll() is None


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as two users"
)
def test_a_replaced_parent_is_noticed() -> None:
    """Alice's private folder lies in one that a group may write, where Bob puts his in its place."""
    alice, bob, group = 12001, 12002, 12010
    secret = bytes(machine_code.KEY_BYTES)
    with tempfile.TemporaryDirectory(dir=os.path.realpath(tempfile.gettempdir())) as parent:
        os.chmod(parent, 0o755)
        lab = Path(parent, "lab")
        for name, owner in (("lab/hers", alice), ("lab/his", bob)):
            folder = Path(parent, name, machine_code.source_key())
            folder.mkdir(parents=True)
            (folder / machine_code.KEY_FILE).write_bytes(secret)
            (folder / machine_code.KEY_FILE).chmod(0o600)
            sealed(folder, KEY, f"symbol\n{name}".encode(), secret)
            for path in (folder.parent, folder, *folder.iterdir()):
                os.chown(path, owner, owner)
            folder.parent.chmod(0o700)
        os.chown(lab, alice, group)

        def read(name: str) -> str:
            words = [f"HOME={parent}", f"CONV3D_CACHE_DIR={lab / name}"]
            command = [sys.executable, "-c", READ_AS_ALICE, json.dumps(KEY), *words]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return done.stdout.strip()

        lab.chmod(0o755)
        assert "hers" in read("hers")
        lab.chmod(0o775)
        assert read("hers") == "None"  # already now: nobody knows what was done to it
        (lab / "hers").rename(lab / "away")
        (lab / "his").rename(lab / "hers")
        assert read("hers") == "None"
        lab.chmod(0o755)
        assert read("hers") == "None"


def test_a_config_file_of_the_working_folder_does_not_change_what_is_compiled(
    cache: Path, tmp_path: Path
) -> None:
    """Numba would read it, whoever wrote it; without its compiler the loops cannot be compiled."""
    (tmp_path / ".numba_config.yaml").write_text("disable_jit: 1\n")
    assert run(tmp_path, ONE_LOOP, CONV3D_CACHE_DIR=str(tmp_path / "new"))[0] == 1
    script = "import numba.core.config as c; before = c.OPT\n" + ONE_LOOP.replace(
        "folder = cache_folder()", "import yaml; folder = cache_folder(); assert yaml.safe_load"
    )
    (tmp_path / ".numba_config.yaml").write_text("debug_array_opt: 0\n")
    assert run(tmp_path, script, CONV3D_CACHE_DIR=str(tmp_path / "third"))[0] == 1


# --------------------------------------------------------------------------------------------------
# Compiling


def test_what_cannot_stand_alone_is_refused() -> None:
    """Code that may raise calls into Numba's runtime, which is missing when it is loaded again."""

    def allocates(step: Any) -> None:
        values = [step[0], step[1]]
        step[2] = len(values)

    with pytest.raises(RuntimeError, match="may not raise, allocate"):
        compile_object(allocates)


def test_a_fault_while_compiling_reaches_the_caller() -> None:
    with pytest.raises(AttributeError, match="no_such_loops"):
        _ = machine_code.machine_code("drive", "no_such_loops").address
    with pytest.raises(AttributeError):  # and nothing stays locked
        _ = machine_code.machine_code("drive", "no_such_loops").address


# --------------------------------------------------------------------------------------------------
# Compiling in processes side by side

LOADED = """
import json, os, sys
import conv3d_cli.engine.machine_code as m
m.worker_count = lambda loops: 2
codes = [m.machine_code("products", "products", 4, real) for real in ("float32", "float64")]
calls = []
with m.watch_compilation(lambda done, total: calls.append((done, total))):
    m.load(codes)
assert calls == [(0, 2), (1, 2), (2, 2)], calls
assert all(code.address for code in codes)
m.load(codes)
assert len(calls) == 3
"""
COUNTED = "print(json.dumps([len(m.compiled_here()), 'numba' in sys.modules, None]))"


def test_processes_compile_side_by_side(tmp_path: Path) -> None:
    """The process that asks does not even import Numba, and the next one finds the code."""
    (tmp_path / "json.py").write_text("raise SystemExit('a file in the current folder was run')")
    cache = {"CONV3D_CACHE_DIR": str(tmp_path / "cache"), "PYTHONSAFEPATH": "1"}
    assert run(tmp_path, LOADED + COUNTED, **cache)[:2] == (2, False)
    assert len(objects(tmp_path / "cache")) == 2
    again = LOADED.replace("[(0, 2), (1, 2), (2, 2)]", "[]").replace("== 3", "== 0")
    assert run(tmp_path, again + COUNTED, **cache)[:2] == (0, False)


def test_without_such_processes_this_one_compiles(tmp_path: Path) -> None:
    harm = "import conv3d_cli.engine.compiling as w\nw.START = 'raise SystemExit(3)'\n"
    script = LOADED.replace("m.worker_count", harm + "m.worker_count")
    cache = {"CONV3D_CACHE_DIR": str(tmp_path / "cache")}
    assert run(tmp_path, script + COUNTED, **cache)[:2] == (2, True)


NO_WORKERS: dict[str, list[tuple[Any, str, Any]]] = {
    "no interpreter": [(sys, "executable", "/nowhere/python")],
    "it ends at once": [(compiling, "START", "raise SystemExit(3)")],
    "it answers nonsense": [(compiling, "START", "print(5 * chr(0))")],
    "it answers nonsense when asked": [
        (compiling, "START", f"print({compiling.READY.decode()!r}); input(); print([1, 2])")
    ],
    "it never starts": [
        (compiling, "START", "import time; time.sleep(600)"),
        (compiling, "START_SECONDS", 0.5),
    ],
    "a path too long for an argument": [(sys, "path", [*sys.path, *["/x" * 1000] * 200])],
}


@pytest.mark.parametrize("case", NO_WORKERS)
def test_a_process_that_fails_answers_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name, value in NO_WORKERS[case]:
        monkeypatch.setattr(place, name, value)
    answers = compiling.compile_in_workers([KEY, OTHER, KEY[:2]], 2, lambda: False)
    assert sorted(answers) == sorted([(KEY, None), (OTHER, None), (KEY[:2], None)])


def test_a_fault_in_such_a_process_is_raised_here(tmp_path: Path) -> None:
    script = LOADED.replace('("float32", "float64")', '("no dtype", "no dtype, too")')
    with start(tmp_path, script, CONV3D_CACHE_DIR=str(tmp_path / "cache")) as process:
        _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "no dtype" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "harm",
    [
        "sys.executable = None",
        "sys.executable = '/usr/bin/napari'",
        "sys.executable = '/usr/sbin/uwsgi'",
        "sys.frozen = True",
    ],
)
def test_a_program_with_a_python_inside_is_not_started_again(harm: str, tmp_path: Path) -> None:
    """What `sys.executable` names there would run itself, not the worker's text."""
    script = f"""
import json, sys
import conv3d_cli.engine.compiling as w
w.usable_cpus, w.thread_count, w.usable_memory = lambda: 4, lambda n: 4, lambda: 16 << 30
before = w.worker_count(9)
{harm}
print(json.dumps([before, w.worker_count(9) > 0, None]))
"""
    assert run(tmp_path, script) == (4, False, None)


def test_what_python_prints_at_its_start_is_no_answer(tmp_path: Path) -> None:
    """A sitecustomize of the user, and an encoding that JSON in bytes does not know."""
    (tmp_path / "sitecustomize.py").write_text("print('hello, world: ' + 50 * 'x')\n")
    script = LOADED + COUNTED
    environment = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(conv3d_cli.__file__).parent.parent}",
        "CONV3D_CACHE_DIR": str(tmp_path / "cache"),
    }
    with start(tmp_path, script, **environment) as process:
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])[:2] == [2, False]


def test_workers_read_no_more_of_the_environment_than_their_parent(tmp_path: Path) -> None:
    """Under `python -I`, a file that PYTHONPATH names is not run by the workers, either."""
    ran = tmp_path / "ran"
    (tmp_path / "sitecustomize.py").write_text(f"open({str(ran)!r}, 'a').write('x')\n")
    paths = [str(Path(conv3d_cli.__file__).parent.parent)]
    script = f"import sys; from sys import path; path[:0] = {paths!r}; " + LOADED
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "CONV3D_CACHE_DIR": str(tmp_path / "cache")}
    for flags, marks in (["-I"], False), ([], True):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        subprocess.run([sys.executable, *flags, "-c", script], check=True, env=env, cwd=tmp_path)
        assert ran.exists() == marks


def test_no_process_outlives_the_work(tmp_path: Path) -> None:
    script = LOADED + (
        "try: found = os.waitpid(-1, os.WNOHANG)[0]\n"
        "except ChildProcessError: found = 'no child'\n"
        "print(json.dumps([found, False, None]))"
    )
    assert run(tmp_path, script, CONV3D_CACHE_DIR=str(tmp_path / "cache"))[0] == "no child"


def test_a_killed_worker_costs_a_compilation_here(tmp_path: Path) -> None:
    """As the system does that runs out of memory."""
    script = LOADED.replace(
        "calls = []",
        """calls = []
import conv3d_cli.engine.compiling as w
class Fragile(w._Worker):
    def send(self, key):
        super().send(key)
        self._process.kill()
w._Worker = Fragile""",
    )
    assert run(tmp_path, script + COUNTED, CONV3D_CACHE_DIR=str(tmp_path / "cache"))[:2] == (
        2,
        True,
    )


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_a_forked_process_waits_for_no_thread_of_its_parent(tmp_path: Path) -> None:
    """The parent compiles in a thread while it forks: the child has its lock, but not its thread."""
    script = """
import json, os, signal, sys, threading, time, warnings
import conv3d_cli.engine.machine_code as m
warnings.simplefilter("ignore")
m.worker_count = lambda loops: 2
m._linker()
codes = [m.machine_code("store", "store", "float32", out) for out in ("uint8", "int8", "uint16")]
thread = threading.Thread(target=m.load, args=(codes,))
thread.start()
while not m._lock.locked(): time.sleep(0.01)
time.sleep(0.3)
child = os.fork()
if child == 0:
    signal.alarm(300)
    m.worker_count = lambda loops: 0
    m.load([m.machine_code("store", "store", "float32", "int16")])
    os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
thread.join()
print(json.dumps([status, False, None]))
"""
    assert run(tmp_path, script, CONV3D_CACHE_DIR=str(tmp_path / "cache"))[0] == 7


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_reaches_all_processes_of_a_terminal(tmp_path: Path) -> None:
    """The workers leave it to their parent, which ends at once and compiles nothing more itself."""
    script = """
import os, signal, sys, threading
import conv3d_cli.engine.machine_code as m
m.worker_count = lambda loops: 2
outs = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64")
codes = [m.machine_code("store", "store", "float32", out) for out in outs]
def interrupt(done, total):
    if done: os.killpg(0, signal.SIGINT)
try:
    with m.watch_compilation(interrupt): m.load(codes)
except KeyboardInterrupt:
    for thread in threading.enumerate():
        if thread.name == "conv3d-llvm":
            thread.join()
    print(sum(bool(code._address) for code in codes), "numba" in sys.modules)
"""
    environment = {**os.environ, "HOME": str(tmp_path), "CONV3D_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment, cwd=tmp_path, text=True, capture_output=True, start_new_session=True,
        check=False, timeout=LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    compiled, numba = done.stdout.split()
    assert int(compiled) < 8
    assert numba == "False"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_ends_them(tmp_path: Path) -> None:
    script = """
import os, signal, threading
import conv3d_cli.engine.machine_code as m
m.worker_count = lambda loops: 2
outs = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64")
codes = [m.machine_code("store", "store", "float32", out) for out in outs]
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    m.load(codes)
except KeyboardInterrupt:
    for thread in threading.enumerate():
        if thread.name == "conv3d-llvm":
            thread.join()
    print(sum(bool(code._address) for code in codes))
"""
    with start(tmp_path, script, CONV3D_CACHE_DIR=str(tmp_path / "cache")) as process:
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (0, "")
    assert int(out) < 8


@pytest.mark.parametrize("note", ["on", "off"])
def test_a_run_that_compiles_says_so(note: str, tmp_path: Path) -> None:
    script = """
import conv3d_cli.engine.machine_code as m
from conv3d_cli.cli.progress import ProgressBar

m._load = lambda codes, interrupted: (m._tell(0, 2), m._tell(1, 2), m._tell(2, 2))
with ProgressBar("a volume"):
    for _ in range(2):  # two groups, one note
        m.load([m.machine_code("store", "store", "float32", out) for out in ("uint8", "int16")])
"""
    cache = {"CONV3D_CACHE_DIR": str(tmp_path / "cache"), "CONV3D_COMPILE_NOTE": note}
    with start(tmp_path, script, **cache) as process:
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (0, "")
    said = "note: compiling 2 loops for this CPU, once; the next run loads them\n"
    assert err == (said if note == "on" else "")


def test_a_bar_counts_all_loops_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar("a volume") as bar:

        def shown() -> tuple[str, float, float | None]:
            (task,) = bar._bar.tasks
            return task.description, task.completed, task.total

        machine_code._tell(0, 5)
        machine_code._tell(0, 5)  # told again while another process compiles
        machine_code._tell(2, 5)
        assert shown() == ("compiling for this CPU, once: 2 of 5 loops", 2, 5)
        machine_code._tell(5, 5)
        assert shown() == ("a volume", 0, None)
        bar(100, 1000)
        machine_code._tell(0, 4)
        machine_code._tell(1, 4)
        assert shown() == ("compiling for this CPU, once: 6 of 9 loops", 100, 1000)
        machine_code._tell(4, 4)
        assert shown() == ("a volume", 100, 1000)


def test_workers_suit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CONV3D_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)

    def count(loops: int, cpus: int, memory: int) -> int:
        monkeypatch.setattr(compiling, "usable_cpus", lambda: cpus)
        monkeypatch.setattr(machine, "usable_cpus", lambda: cpus)
        monkeypatch.setattr(compiling, "usable_memory", lambda: memory)
        return compiling.worker_count(loops)

    assert count(1, 8, 16 << 30) == 1
    assert count(9, 4, 16 << 30) == 4
    assert count(9, 4, 900 << 20) == 2
    assert count(9, 4, 300 << 20) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # a job's share of a cluster's node
    assert count(9, 4, 16 << 30) == 3
    monkeypatch.setenv("CONV3D_THREADS", "64")
    assert count(9, 4, 16 << 30) == 4
    monkeypatch.setenv("CONV3D_THREADS", "many")
    assert count(9, 4, 16 << 30) == 4


def test_warming_up_twice_compiles_once() -> None:
    first = list(itertools.islice(warm.usual_problems(), 1))
    told: list[tuple[int, int]] = []
    with machine_code.watch_compilation(lambda *count: told.append(count)):
        _, ready = warm.warm_up(first)
    assert told == [] or (told[0][0], told[-1]) == (0, (told[0][1], told[0][1]))  # (done, total)
    assert warm.warm_up(first) == (0, ready)
    assert ready >= len(warm.SOURCES) + len(warm.OUTPUTS)


@pytest.mark.slow
def test_warmup_compiles_what_common_jobs_need(tmp_path: Path) -> None:
    """Once: again, it compiles nothing, and neither do the jobs."""

    def warmup() -> str:  # in the tests' own folder, which is mostly warm
        command = [sys.executable, "-m", "conv3d_cli", "warmup"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert "loops ready" in warmup()
    assert ", 0 of them compiled" in warmup()
    jobs = """
import json, numpy as np
from conv3d_cli import conv3d
from conv3d_cli.engine.machine_code import compiled_here

rng = np.random.default_rng(0)
for size, channels, filters, dtype in (
    (3, 1, 1, "int16"),
    (5, 1, 1, "float32"),
    (3, 16, 16, "float32"),
    (7, 1, 1, "float64"),
):
    x = np.ones((40, 41, 42, channels), dtype)
    conv3d(x, rng.standard_normal((size,) * 3 + (channels, filters)), padding="same")
print(json.dumps([len(compiled_here()), False, None]))
"""
    assert run(tmp_path, jobs, CONV3D_CACHE_DIR=os.environ["CONV3D_CACHE_DIR"])[0] == 0

"""A real scheduler and real workers, each a process of its own, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from processes import LIMIT, started, wait_until

from conv3d_cli.cluster.run import connect
from conv3d_cli.cluster.scheduler import Scheduler
from conv3d_cli.errors import SpecError

SHAPE = (40, 96, 96)


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()
    }


class Cluster:
    """A scheduler and workers, started as people start them."""

    def __init__(
        self,
        folder: Path,
        workers: int,
        options: tuple[str, ...] = ("--no-nanny",),
        **environment: str,
    ) -> None:
        self.environment = {**os.environ, **environment}
        self.file = folder / "scheduler.json"
        self.processes = [
            self._start("dask_scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
        ]
        self.workers = [
            self._start(
                "dask_worker",
                "--nthreads",
                "1",
                "--no-dashboard",
                "--local-directory",
                str(folder),
                *options,
            )
            for _ in range(workers)
        ]
        try:
            self.address = self._wait_for_workers()
        except BaseException:
            self.stop()
            raise

    def _wait_for_workers(self) -> str:
        import distributed

        with distributed.Client(scheduler_file=str(self.file), timeout=LIMIT) as client:
            client.wait_for_workers(len(self.workers), timeout=LIMIT)
            return str(client.scheduler.address)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.{module}",
            "--scheduler-file",
            str(self.file),
            *arguments,
        ]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        for process in self.workers:
            process.terminate()  # a nanny ends its worker
        for process in (*self.workers, *self.processes):
            try:
                process.wait(5 if process in self.workers else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("dask"), 2)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, run: Any) -> Path:
    folder = tmp_path_factory.mktemp("store")
    volume = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.uint16)
    np.save(folder / "x.npy", volume)
    np.save(folder / "k.npy", np.random.default_rng(1).standard_normal((5, 5, 5)))
    run(
        "apply",
        folder / "x.npy",
        "-k",
        "identity",
        "--dtype",
        "uint16",
        "--chunks",
        "8,32,32",
        "-o",
        folder / "x.ome.zarr",
    )
    return folder


@pytest.mark.parametrize(
    "options",
    [["-k", "gaussian:sigma=2vox"], ["-k", "k.npy", "--dtype", "int16", "--chunks", "16,16,16"]],
    ids=str,
)
def test_same_bytes_as_a_local_run(
    cluster: Cluster,
    store: Path,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Any,
) -> None:
    monkeypatch.chdir(store)
    run("apply", "x.ome.zarr", *options, "-o", tmp_path / "local.zarr")
    spread = run(
        "apply",
        "x.ome.zarr",
        *options,
        "-o",
        tmp_path / "spread.zarr",
        "--scheduler",
        cluster.address,
        "--json",
    )
    assert "tasks of" in spread.output
    assert "on 2 workers" in spread.output
    told = json.loads(spread.output[spread.output.index("{") :])
    assert min(told["read_seconds"], told["compute_seconds"], told["write_seconds"]) > 0
    assert contents(tmp_path / "spread.zarr") == contents(tmp_path / "local.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["local.zarr", "spread.zarr"]


def test_a_network_has_the_bytes_of_a_local_run(
    cluster: Cluster, store: Path, tmp_path: Path, run: Any, error_line: Any
) -> None:
    pytest.importorskip("h5py")
    models = {
        norm: networks.write_keras(tmp_path / f"{norm}.keras", *networks.unet(norm=norm))
        for norm in ("BatchNormalization", "GroupNormalization")
    }
    job = [
        "apply",
        store / "x.ome.zarr",
        "-c",
        models["BatchNormalization"],
        "--chunks",
        "16,32,32",
    ]
    run(*job, "-o", tmp_path / "local.zarr")
    run(*job, "-o", tmp_path / "spread.zarr", "--scheduler", cluster.address)
    assert contents(tmp_path / "spread.zarr") == contents(tmp_path / "local.zarr")
    job[3] = models["GroupNormalization"]
    refused = run(*job, "-o", tmp_path / "no.zarr", "--scheduler", cluster.address, code=2)
    assert "node 'a_norm' needs the whole volume" in error_line(refused.stderr)
    assert not (tmp_path / "no.zarr").exists()


# A worker with this preloaded computes two boxes, and waits in the third one for a file. (Dask may
# load it twice.)
HELD = """
import itertools, os, time
from conv3d_cli.cluster import run

def holding(compute_box):
    begun = itertools.count()

    def held(*arguments, **options):
        number = next(begun)
        while number >= 2 and not os.path.exists({go_on!r}):
            time.sleep(0.01)
        return compute_box(*arguments, **options)

    return held

run.compute_box = holding(run.compute_box)
"""


def test_a_killed_worker_loses_nothing(store: Path, tmp_path: Path, run: Any) -> None:
    go_on, held = tmp_path / "go_on", tmp_path / "held.py"
    held.write_text(HELD.format(go_on=str(go_on)))
    cluster = Cluster(tmp_path, 2, ("--no-nanny", "--preload", str(held)))
    try:
        source, target = store / "x.ome.zarr", tmp_path / "out.zarr"
        kernel = tmp_path / "k.npy"
        np.save(kernel, np.random.default_rng(2).standard_normal((9, 9, 9)))
        options = ["-k", str(kernel), "--algorithm", "direct", "--chunks", "8,16,16"]
        command = [sys.executable, "-m", "conv3d_cli", "apply", source, *options, "-o", target]
        with started([*command, "--scheduler", cluster.address], stderr=subprocess.PIPE) as job:
            wait_until(lambda: len(list(tmp_path.glob(".out.*.tmp.zarr/0/c/*/*/*"))) >= 5, job)
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
            assert not target.exists()
            go_on.touch()
            _, told = job.communicate(timeout=LIMIT)
        assert job.returncode == 0, told
        run("apply", source, *options, "-o", tmp_path / "local.zarr")
        assert contents(target) == contents(tmp_path / "local.zarr")
    finally:
        cluster.stop()


def test_all_workers_gone(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """The only worker is killed in mid-run, and none comes: one line, not a wait for ever."""
    monkeypatch.setattr("conv3d_cli.cluster.run.PAUSED_SECONDS", 0.3)
    monkeypatch.setattr("conv3d_cli.cluster.run.GONE_SECONDS", 1)
    (tmp_path / "dask").mkdir()

    def begun() -> bool:
        return any(tmp_path.glob(".out.*.tmp.zarr/*"))

    cluster = Cluster(tmp_path / "dask", workers=1)
    try:
        killer = threading.Thread(target=lambda: (wait_until(begun), cluster.workers[0].kill()))
        killer.start()
        options = [
            "-k",
            "gaussian:sigma=9vox",
            "--algorithm",
            "direct",
            "--scheduler",
            cluster.address,
        ]
        result = run("apply", store / "x.ome.zarr", *options, "-o", tmp_path / "out.zarr", code=1)
        killer.join()
    finally:
        cluster.stop()
    assert "all workers have gone" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["dask"]


def test_losses_are_told_as_by_a_local_run(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(2).standard_normal(SHAPE)
    values[::16] = 1e60  # finite, and beyond float32
    np.save("x.npy", values)
    run("apply", "x.npy", "-k", "identity", "--chunks", "8,32,32", "-o", "x.zarr")
    options = ["x.zarr", "-k", "box:size=1,3,3", "--dtype", "float32"]
    told = []
    for name, more in (("local.zarr", []), ("spread.zarr", ["--scheduler", cluster.address])):
        stderr = run("apply", *options, "-o", name, *more).stderr
        told.append([line.partition(": ")[2] for line in stderr.splitlines() if "infinite" in line])
    planes = len(range(0, SHAPE[0], 16))
    assert told[0][0].endswith(told[1][0].partition(": ")[2])
    assert f"{planes * SHAPE[1] * SHAPE[2]:,}".replace(",", "") in told[1][0].replace(",", "")
    strict = run(
        "apply", *options, "-o", "z.zarr", "--scheduler", cluster.address, "--strict", code=4
    )
    assert "became infinite or NaN" in strict.stderr
    assert "nothing was written" in strict.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "local.zarr", "spread.zarr", "x.npy", "x.zarr",
    ]  # fmt: skip


def test_a_corrupt_chunk_is_the_inputs_fault(
    cluster: Cluster, store: Path, tmp_path: Path, run: Any
) -> None:
    import shutil

    shutil.copytree(store / "x.ome.zarr", tmp_path / "bad.ome.zarr")
    chunk = sorted(p for p in (tmp_path / "bad.ome.zarr" / "0" / "c").rglob("*") if p.is_file())[7]
    chunk.write_bytes(chunk.read_bytes()[:50])
    result = run(
        "apply",
        tmp_path / "bad.ome.zarr",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "out.zarr",
        "--scheduler",
        cluster.address,
        code=3,
    )
    assert result.output.strip().count("\n") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["bad.ome.zarr"]


def test_no_scheduler(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.setattr("conv3d_cli.cluster.run.CONNECT_SECONDS", 1)
    arguments = [store / "x.ome.zarr", "-k", "box:size=3", "-o", tmp_path / "out.zarr"]
    result = run("apply", *arguments, "--scheduler", "tcp://127.0.0.1:9", code=1)
    assert "cannot reach the scheduler at tcp://127.0.0.1:9" in result.output
    run("apply", *arguments, "--scheduler", "local:none", code=2)
    result = run(
        "apply",
        store / "x.npy",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "out.zarr",
        "--scheduler",
        "local:1",
        code=2,
    )
    assert "x.npy is not one; convert it first: conv3d convert" in result.output
    assert not list(tmp_path.iterdir())


def test_the_output_must_be_zarr(store: Path, tmp_path: Path, run: Any) -> None:
    """An output that is not written yet cannot be converted: the cure is another name."""
    arguments = [store / "x.ome.zarr", "-k", "box:size=3", "-o", tmp_path / "out.npy"]
    result = run("apply", *arguments, "--scheduler", "local:1", code=2)
    assert "out.npy is not one; name an output that ends in .zarr" in result.output
    assert "convert" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.ozx", "out.zarr.zip"])
def test_a_zip_file_has_one_writer(store: Path, tmp_path: Path, run: Any, name: str) -> None:
    arguments = [store / "x.ome.zarr", "-k", "box:size=3", "-o", tmp_path / name]
    result = run("apply", *arguments, "--scheduler", "local:1", code=2)
    assert f"{name} is a zip file, which has one writer" in result.output
    assert not list(tmp_path.iterdir())


def test_a_forecast(cluster: Cluster, store: Path, run: Any) -> None:
    job = [store / "x.ome.zarr", "-k", "box:size=3"]
    assert (
        "2 workers with 1 thread each"
        in run("explain", *job, "--scheduler", cluster.address).output
    )
    assert "takes" in run("explain", *job, "--workers", "10", "--read-rate", "100M").output


def test_a_late_chunk_leaves_nothing(tmp_path: Path) -> None:
    """A worker that is slow, or was thought dead, writes after the job has ended."""
    from conv3d_cli.errors import WriteError
    from conv3d_cli.formats import create_volume
    from conv3d_cli.formats.zarr.format import ZarrWriter
    from conv3d_cli.formats.zarr.store import OneThread
    from conv3d_cli.model.volume import Axes, VolumeHeader

    header = VolumeHeader(Axes("zyx", (4, 8, 8)), np.dtype(np.float32))
    writer = create_volume(str(tmp_path / "x.zarr"), header, chunks=(2, 8, 8))
    assert isinstance(writer, ZarrWriter)
    target, block = writer.target(), np.ones((2, 8, 8, 1), np.float32)
    with OneThread() as thread:
        target.write(0, (0, 0, 0), 0, block, thread)
        writer.abort()
        with pytest.raises(WriteError, match="its job has ended"):
            target.write(0, (2, 0, 0), 0, block, thread)
    assert not list(tmp_path.iterdir())


def test_planes_larger_than_memory_are_no_matter(tmp_path: Path, run: Any) -> None:
    """A store of 10 TB, of which there are metadata alone."""
    import zarr

    group = zarr.create_group(str(tmp_path / "huge.ome.zarr"), zarr_format=3)
    group.create_array("0", shape=(5000, 40000, 25000), chunks=(128, 256, 256), dtype=np.uint16)
    scales = [{"type": "scale", "scale": [2.0, 0.4, 0.4]}]
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    dataset = {"path": "0", "coordinateTransformations": scales}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [dataset]}]}
    spread = [
        "--workers",
        "100",
        "--worker-threads",
        "8",
        "--read-rate",
        "300M",
        "--write-rate",
        "200M",
    ]
    result = run(
        "explain",
        tmp_path / "huge.ome.zarr",
        "-k",
        "gaussian:sigma=2um",
        "--dtype",
        "uint16",
        *spread,
    )
    assert "100 workers with 8 threads each" in result.output


# Each task of a worker with this preloaded holds more memory than the worker may, until it is
# killed: a quick task could end before its nanny looks.
HUNGRY = """
import threading
from conv3d_cli.cluster import run

def compute_box(*_arguments, **_options):
    held = bytearray(b"x") * (500 << 20)
    threading.Event().wait()
    return held

run.compute_box = compute_box
"""


def test_workers_without_memory(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """Too little for a task is told before any work; a worker that dies of it is no mystery."""
    arguments = [
        store / "x.ome.zarr",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "out.zarr",
        "--overwrite",
        "--scheduler",
    ]
    (tmp_path / "dask").mkdir()
    hungry = tmp_path / "dask" / "hungry.py"
    hungry.write_text(HUNGRY)
    environment = {
        # It is Dask that starts a worker again and again; twice is enough here.
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",  # it is killed, and never paused
    }
    options = ("--nanny", "--memory-limit", "330MB", "--preload", str(hungry))
    small = Cluster(tmp_path / "dask", 1, options, **environment)
    try:
        refused = run("apply", *arguments, small.address, code=6)
        assert "under the workers' memory limit a thread has 0 MB" in refused.output
        monkeypatch.setattr("conv3d_cli.cluster.run.WORKER_BYTES", 0)
        # the log that tells why is asked for once the next worker has started
        monkeypatch.setattr("conv3d_cli.cluster.run.CONNECT_SECONDS", LIMIT)
        killed = run("apply", *arguments, small.address, code=6)
        assert "workers ran out of memory" in killed.output
        assert killed.output.strip().count("\n") == 0
        assert [p.name for p in tmp_path.iterdir()] == ["dask"]
    finally:
        small.stop()


def states(client: Any) -> set[str]:
    """What the workers do, as the scheduler knows it."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {worker["status"] for worker in workers}


def test_a_worker_that_is_full_is_not_waited_for(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    import distributed

    monkeypatch.setattr("conv3d_cli.cluster.run.PAUSED_SECONDS", 0.5)
    (tmp_path / "dask").mkdir()
    full = Cluster(tmp_path / "dask", 1, ("--no-nanny", "--memory-limit", "600MB"))
    try:
        with distributed.Client(full.address) as client:
            client.submit(
                lambda: setattr(__import__("sys"), "held", bytearray(b"x") * (480 << 20))
            ).result(LIMIT)
            wait_until(lambda: states(client) == {"paused"})
        result = run(
            "apply",
            store / "x.ome.zarr",
            "-k",
            "box:size=3",
            "-o",
            tmp_path / "out.zarr",
            "--scheduler",
            full.address,
            code=6,
        )
        assert "all workers are paused" in result.output
        assert [p.name for p in tmp_path.iterdir()] == ["dask"]
    finally:
        full.stop()


LOCAL = """
import json, sys
import psutil
from conv3d_cli.cluster.run import connect
from conv3d_cli.cluster.scheduler import Scheduler

if __name__ == "__main__":
    with connect(Scheduler("local:2")) as client:
        client.wait_for_workers(2)
        own = psutil.Process()
        processes = (own, *own.children(recursive=True))
        found = {
            tuple(connection.laddr)
            for process in processes
            for connection in process.net_connections()
            if connection.status == "LISTEN"
        }
        total = client.submit(sum, [1, 2]).result()
        print(json.dumps([total, client.scheduler.address, sorted(found)]))
        sys.stdout.flush()
        sys.stdin.read()
"""


def anybody() -> ssl.SSLContext:
    """A client that believes any server, and shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_obeyed(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether a port answers: with a page, or with Dask's own greeting."""
    request = b"GET /json/identity.json HTTP/1.0\r\n\r\n"
    try:
        plain = socket.create_connection(("127.0.0.1", port), timeout=1)
        with plain if context is None else context.wrap_socket(plain) as connection:
            connection.sendall(request)
            answer = connection.recv(4096)
    except OSError:  # refused, ended, no answer in time
        return False
    return bool(answer) and not answer.startswith((b"HTTP/1.1 404", b"\x15\x03"))  # an alert of TLS


def test_a_local_cluster_obeys_its_own_process_alone(tmp_path: Path) -> None:
    """Whoever reaches a scheduler runs code as its owner.

    No port answers another user, and none is open to the network.
    """
    import distributed

    security = distributed.Security.temporary()  # somebody else's key
    (tmp_path / "stranger.pem").write_text(security.tls_client_key + security.tls_client_cert)
    stranger = anybody()
    stranger.load_cert_chain(tmp_path / "stranger.pem")
    (tmp_path / "local.py").write_text(LOCAL)
    command = [sys.executable, str(tmp_path / "local.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        total, scheduler, listening = json.loads(process.stdout.readline())
        assert total == 3
        assert scheduler.startswith("tls://127.0.0.1:")
        ports = {port for _, port in listening}
        assert {host for host, _ in listening} == {"127.0.0.1"}
        assert int(scheduler.rsplit(":", 1)[1]) in ports
        for port in ports:
            assert not is_obeyed(port, None)
            assert not is_obeyed(port, anybody())
            assert not is_obeyed(port, stranger)
        process.communicate("")
    assert process.returncode == 0


def test_tiles_are_checked_on_the_workers(
    cluster: Cluster, store: Path, tmp_path: Path, run: Any
) -> None:
    """No bit depends on it."""

    def apply(name: str, *options: str) -> Any:
        said = run(
            "apply", store / "x.ome.zarr", "-k", store / "k.npy", "-o", tmp_path / name,
            "--scheduler", cluster.address, "--json", *options,
        )  # fmt: skip
        return json.loads(said.stdout.splitlines()[-1])["checks"]

    found = apply("all.zarr", "--verify", "all")
    assert found["tiles"] > 0
    assert (found["unchecked"], found["repaired"]) == (0, 0)
    assert apply("off.zarr", "--verify", "off") is None
    assert contents(tmp_path / "all.zarr") == contents(tmp_path / "off.zarr")


@pytest.mark.parametrize(("times", "code"), [(1, 0), (99, 7)])
def test_a_tile_that_fails_on_a_worker(
    times: int, code: int, store: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conv3d_cli.cluster import run as cluster_run
    from conv3d_cli.engine.checksum import Checks

    def outcomes(client: Any, job: bytes, tasks: Any, scheduler: Any) -> Any:
        try:
            yield from (cluster_run.run_task(task, job) for task in tasks)
        finally:
            cluster_run.release_job(job)

    left = iter(range(times))
    intact = Checks.weights_intact
    monkeypatch.setattr(
        Checks, "weights_intact", lambda self: next(left, None) is None and intact(self)
    )
    monkeypatch.setattr(cluster_run, "_outcomes", outcomes)
    with monkeypatch.context() as patch:
        patch.setattr(cluster_run, "connect", lambda scheduler: nullcontext(None))
        patch.setattr(cluster_run, "worker_threads", lambda *_: {"a": 1})
        patch.setattr(cluster_run, "memory_for_tasks", lambda _: cluster_run.TASK_BYTES)
        result = run(
            "apply", store / "x.ome.zarr", "-k", store / "k.npy", "-o", tmp_path / "o.zarr",
            "--scheduler", "tcp://a:1", "--verify", "all", code=code,
        )  # fmt: skip
    said = " ".join(result.output.split())
    assert ("computed again by direct" in said) == (code == 0)
    assert ("failed the checksum twice" in said) == (code == 7)
    assert (tmp_path / "o.zarr").exists() == (code == 0)


AS_BOB = """
import os, sys
import distributed
folder, seconds, *addresses = sys.argv[1:]
own = distributed.Security.temporary()
os.setgroups([])
os.setgid(12002)
os.setuid(12002)
for address in addresses:
    for protocol, security in (("tcp", None), ("tls", own)):
        try:
            with distributed.Client(
                f"{protocol}://{address}", timeout=seconds, security=security, set_as_default=False
            ) as client:
                print("ran as", set(client.run(os.getuid).values()))
        except (OSError, TimeoutError, ValueError):
            print("refused")
try:
    print(os.listdir(folder))
except PermissionError:
    print("private")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_another_user_runs_no_code_in_a_local_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """Bob knows every address. At a scheduler without TLS he is obeyed, which shows that he tries."""

    def as_bob(folder: str, seconds: int, *addresses: str) -> list[str]:
        places = [address.partition("://")[2] for address in addresses]
        command = [sys.executable, "-c", AS_BOB, folder, str(seconds), *places]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert as_bob("/", 60, cluster.address)[0] == "ran as {0}"
    with connect(Scheduler("local:1")) as client:
        client.wait_for_workers(1)
        ((address, worker),) = client.scheduler_info()["workers"].items()
        folder = str(client.cluster.workers[0].local_directory)
        said = as_bob(folder, 2, client.scheduler.address, address, worker["nanny"])
    assert said == ["refused"] * 6 + ["private"]


def test_a_local_cluster_writes_into_no_folder_of_others(tmp_path: Path) -> None:
    """Dask's folder in the shared temporary one may be another's, its locks links to the user's."""
    taken = tmp_path / "tmp" / "dask-scratch-space"
    taken.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    for name in ("global.lock", "purge.lock"):
        (taken / name).symlink_to(tmp_path / "precious")
    np.save(tmp_path / "x.npy", np.ones((8, 8, 8), np.float32))
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    for arguments in (
        ["x.npy", "-k", "identity", "-o", "x.zarr"],
        ["x.zarr", "-k", "box:size=3", "-o", "y.zarr", "--scheduler", "local:1"],
    ):
        command = [sys.executable, "-m", "conv3d_cli", "apply", *arguments, "-q"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(path.name for path in taken.iterdir()) == ["global.lock", "purge.lock"]
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["dask-scratch-space"]


def test_a_local_cluster_runs_no_file_of_the_working_folder(tmp_path: Path) -> None:
    """Python starts processes with `python -c`, which would import modules from there."""
    np.save(tmp_path / "x.npy", np.ones((8, 8, 8), np.float32))
    conv3d = [Path(sys.executable).with_name("conv3d"), "apply", "-k", "box:size=3", "-q"]
    subprocess.run([*conv3d, "x.npy", "-o", "x.zarr"], cwd=tmp_path, check=True)
    for module in ("multiprocessing", "distributed", "dask", "numpy", "json", "numba"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').close()\n")
    done = subprocess.run(
        [*conv3d, "x.zarr", "-o", "y.zarr", "--scheduler", "local:1"],
        cwd=tmp_path,
        env={**os.environ, "CONV3D_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (tmp_path / "ran").exists()
    assert (done.returncode, done.stderr) == (0, "")


def test_the_key_of_a_local_cluster_is_seen_by_nobody_else() -> None:
    """Not on the command lines of its processes, which all users can read, nor in open files."""
    import psutil

    with connect(Scheduler("local:1")) as client:
        client.wait_for_workers(1)
        processes = psutil.Process().children(recursive=True)
        assert processes
        assert not any("PRIVATE KEY" in word for one in processes for word in one.cmdline())
        folder = Path(client.cluster.workers[0].local_directory)
        private = folder if folder.parent.name == "tmp" else folder.parent
        assert private.stat().st_mode & 0o077 == 0


def test_a_local_cluster_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    def missing() -> None:
        raise ImportError("no cryptography")

    monkeypatch.setattr(distributed.Security, "temporary", missing)
    with (
        pytest.raises(
            SpecError, match=r"needs the cryptography library: pip install 'conv3d\[cluster\]'"
        ),
        connect(Scheduler("local:1")),
    ):
        pass

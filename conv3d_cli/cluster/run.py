"""A job on a Dask cluster: from Zarr to Zarr, one task a block of output chunks.

Workers open the input themselves and write their chunks into the unfinished store, which this process puts in its place when
all tasks are done: both must lie where every worker reaches them. A task that is lost with its worker runs again elsewhere and
writes the same bytes.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conv3d_cli import errors
from conv3d_cli.errors import ClusterError, Conv3DError, MemoryLimitError, SpecError
from conv3d_cli.formats import create_volume, find_format, output_access, output_format
from conv3d_cli.formats.zarr.format import ZarrReader, ZarrTarget, ZarrWriter
from conv3d_cli.formats.zarr.store import OneThread, local_folder
from conv3d_cli.model.box import Box
from conv3d_cli.pipeline.boxes.compute import BoxSource, compute_box, layer_chain
from conv3d_cli.pipeline.boxes.partition import Partition, choose_partition, work_by_axis
from conv3d_cli.pipeline.outputs import ROLES
from conv3d_cli.pipeline.prepare import PreparedJob, prepare_job
from conv3d_cli.pipeline.request import Job
from conv3d_cli.pipeline.run import JobReport, all_losses, check_paths, clipped_note
from conv3d_cli.system.machine import give_back_memory, keep_freed_memory

CURE = "pip install 'conv3d[cluster]'"
RETRIES = 2  # of a task that fails, beside those that Dask grants when a worker dies
CONNECT_SECONDS = 10
# Voxels of input and output that a task holds, in bytes: a second or two of work, and what a worker's thread may well hold. Of
# chunks of 64 x 128 x 128 and a Gaussian of 25 taps, tasks of 96 MB decode each chunk 8.4 times, of 384 MB 2.7 times.
TASK_BYTES = 384 << 20
TASKS_A_THREAD = 4  # at least, so that the last one is not waited for long
PAUSED_SECONDS = 10
GONE_SECONDS = (
    120  # that workers which all have gone are waited for: a batch system may be starting others
)
# that a job which failed waits for tasks still at work, so that they write nothing when it has tidied up
LAST_SECONDS = 2
MEMORY_CURE = "give workers more memory, fewer threads each, or smaller --chunks"
WORKER_BYTES = 240 << 20  # Python with Dask, zarr and the engine


@dataclass(frozen=True)
class Task:
    """What a worker is sent beside the job: the box of one of its parts."""

    target: ZarrTarget
    part: int
    box: Box


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back.

    missing : chunks that it asked for and that are not in the input
    error : class and message, where the task cannot be done: exceptions do not all survive the way
    """

    voxels: int
    clipped: int
    seconds: tuple[float, float, float]  # reading, computing, writing
    low: np.ndarray
    high: np.ndarray
    missing: int
    error: tuple[str, str] | None = None


def import_distributed() -> Any:
    """The `distributed` library. Raises: SpecError with the cure if it is missing."""
    try:
        import distributed
    except ImportError as error:
        raise SpecError(f"--scheduler needs Dask: {CURE}") from error
    return distributed


@contextmanager
def connect(scheduler: str) -> Iterator[Any]:
    """A client of a scheduler at an address, or of a cluster of N processes on this machine ("local:N").

    Raises: SpecError for a text that is neither; ClusterError if it cannot be reached.
    """
    with ExitStack() as stack:
        kind, _, count = scheduler.partition(":")
        if kind == "local" and (not count.isdigit() or int(count) < 1):
            raise SpecError(
                f"--scheduler local:N starts N workers on this machine, received '{scheduler}'"
            )
        distributed = import_distributed()
        address: Any = scheduler
        if kind == "local":
            address = stack.enter_context(_private_cluster(int(count)))
        try:
            client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            words = " ".join(str(error).split())[:160] or type(error).__name__
            raise ClusterError(
                f"cannot reach the scheduler at {scheduler}: {words}; start one with `dask scheduler`, or pass local:2"
            ) from error
        yield stack.enter_context(client)


@contextmanager
def _private_cluster(workers: int) -> Iterator[Any]:
    """Worker processes on this machine that obey this process alone: whoever reaches a scheduler runs code as its owner.

    All speak TLS with a key made for this run, on loopback; the web servers that Dask starts beside them serve no pages. What
    they write (locks, and values that memory has no room for) goes to a folder of their own.
    Raises: SpecError with the cure if the library that makes the key is missing.
    """
    import tempfile

    import dask

    distributed = import_distributed()
    try:
        security = distributed.Security.temporary()
    except ImportError as error:
        raise SpecError(f"--scheduler local:N needs the cryptography library: {CURE}") from error
    no_pages: dict[str, Any] = {
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }
    with (
        # Dask's own name in the shared temporary folder can be taken by others before
        tempfile.TemporaryDirectory(prefix="conv3d-dask-", ignore_cleanup_errors=True) as folder,
        dask.config.set({**no_pages, "temporary-directory": folder}),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls://",
            security=security,
            local_directory=folder,
            dashboard_address=None,
            scheduler_kwargs={
                "dashboard_address": "127.0.0.1:0"
            },  # without a dashboard: else a port that may be taken
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


def run_on_cluster(
    job: Job,
    scheduler: str,
    progress: Callable[[int, int], None] | None = None,
    decided: Callable[[PreparedJob], None] | None = None,
) -> JobReport:
    """Convolve a Zarr image into another on a Dask cluster; see `run_job`.

    scheduler : str         "tcp://host:port", or "local:N"
    Raises: any Conv3DError; ClusterError where the cluster fails.
    """
    started = time.perf_counter()
    check_paths(job)
    job = replace(job, on_cluster=True)
    with prepare_job(job) as prepared, ExitStack() as stack:
        check_suited(prepared)
        client = stack.enter_context(connect(scheduler))
        if decided is not None:
            decided(prepared)
        workers = worker_threads(client, scheduler)
        partition = cut_prepared(prepared, sum(workers.values()), memory_for_tasks(client))
        writer = create_volume(
            job.target,
            prepared.header,
            overwrite=job.overwrite,
            threads=job.threads,
            chunks=job.chunks,
            levels=job.levels,
        )
        assert isinstance(writer, ZarrWriter)
        with writer:
            sent = pickle.dumps(frozen_job(job, prepared))
            target = writer.target()
            tasks = [
                Task(target, part, box)
                for part in range(len(prepared.stream_plan.parts))
                for box in partition.boxes()
            ]
            total = math.prod(prepared.header.shape)
            done = clipped = missing = 0
            seconds = np.zeros(3)
            for outcome in _outcomes(client, sent, tasks, scheduler):
                if outcome.error is not None:
                    kind, message = outcome.error
                    raise getattr(errors, kind)(message)
                done, clipped, missing = (
                    done + outcome.voxels,
                    clipped + outcome.clipped,
                    missing + outcome.missing,
                )
                seconds += outcome.seconds
                writer.note_range(outcome.low, outcome.high)
                if progress is not None:
                    progress(done, total)
            finish = time.perf_counter()
            writer.commit()
            seconds[2] += time.perf_counter() - finish
    notes = [*prepared.notes, *writer.notes]
    block, plural = "x".join(map(str, partition.block)), "s" if len(tasks) > 1 else ""
    notes.append(
        f"{len(tasks)} task{plural} of {block} voxels, on {len(workers)} worker{'s' if len(workers) > 1 else ''}"
    )
    if missing:
        notes.append(
            f"chunks that are not in the input were asked for {missing} times; they read as its fill value"
        )
    notes += clipped_note(job, clipped, total)
    header = prepared.header
    reading, computing, writing = map(float, seconds)
    return JobReport(
        job.source, job.target, total, prepared.reader.header.nbytes, header.nbytes, clipped,
        time.perf_counter() - started, reading, computing, writing, all_losses(prepared), notes,
    )  # fmt: skip


def check_suited(prepared: PreparedJob) -> None:
    """Refuse what a cluster cannot do. Raises: SpecError."""
    job = prepared.job
    for path, found in (
        (job.source, find_format(job.source)),
        (job.target, output_format(job.target)),
    ):
        if found is None or not found.chunked:
            raise SpecError(
                f"--scheduler reads and writes Zarr stores, which many can work on at once; {path} is none. "
                f"Convert it first: conv3d apply {path} -k identity -o {path}.zarr"
            )
    for stage in prepared.stages:
        if not stage.convolution.takes_boxes:
            raise SpecError(
                "boundary renormalize takes means over whole planes, which tasks cut: leave out --scheduler"
            )
        if stage.stage.activity_regularizer is not None:
            raise SpecError(
                "activity_regularizer looks at the whole output: leave it out with --scheduler"
            )
        if job.channels_first and any(a.kind == "axis" for a in stage.convolution.activations):
            raise SpecError(
                "under channels_first this activation runs along the width, which tasks cut: leave out --scheduler"
            )
    for output in job.beside:
        raise SpecError(f"--scheduler does not take {ROLES[output.role].flag} yet: leave it out")


def frozen_job(job: Job, prepared: PreparedJob) -> Job:
    """The job for workers, which need no kernel files and decide nothing anew.

    Its kernels are read or drawn, adapted and constrained; its input has an absolute path, since each worker has a folder
    of its own.
    """
    folder = local_folder(job.source)
    stages = tuple(done.stage.with_made_kernel(done.kernel) for done in prepared.stages)
    return replace(
        job,
        source=job.source if folder is None else os.path.abspath(folder),
        stages=stages,
        threads=1,
    )


def cut_prepared(prepared: PreparedJob, threads: int, task_bytes: float = TASK_BYTES) -> Partition:
    """The tasks of a job's parts on a cluster with so many threads: at most `task_bytes` each, and enough for all threads.

    Raises: MemoryLimitError if a task of one chunk is larger, where workers have less than `TASK_BYTES`.
    """
    chain = layer_chain([stage.convolution for stage in prepared.stages])
    source, output, parts = prepared.reader.header, prepared.header, len(prepared.stream_plan.parts)
    in_chunk, chunk = chunks_of(prepared)
    in_voxel = source.dtype.itemsize * chain.problems[0].in_channels
    out_voxel = output.dtype.itemsize * chain.problems[-1].filters

    def size(partition: Partition) -> int:
        held = math.prod(one.held for one in work_by_axis(chain, partition, in_chunk)) * in_voxel
        return held + math.prod(partition.block) * out_voxel

    def allowed(partition: Partition) -> bool:
        small = size(partition) <= task_bytes
        return partition.block == single.block or (
            small and partition.count * parts >= TASKS_A_THREAD * threads
        )

    block = [min(n, whole) for n, whole in zip(chunk, chain.problems[-1].out_size, strict=True)]
    single = Partition(chain.problems[-1].out_size, chunk, (block[0], block[1], block[2]))
    partition = choose_partition(chain, in_chunk, chunk, allowed) or single
    if (needed := size(partition)) > task_bytes < TASK_BYTES:
        raise MemoryLimitError(
            f"a task of {'x'.join(map(str, partition.block))} voxels takes {needed / 1e6:.0f} MB with what it reads; under the "
            f"workers' memory limit a thread has {max(task_bytes, 0) / 1e6:.0f} MB for it: {MEMORY_CURE}"
        )
    return partition


def chunks_of(prepared: PreparedJob) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """D, H, W of what is decoded as one, and of what is stored as one."""
    job = prepared.job
    reading = prepared.reader.box_access()
    writing = output_access(job.target, prepared.header, chunks=job.chunks, levels=job.levels)
    assert reading is not None, job.source
    assert writing is not None, job.target
    return reading.unit, writing.unit


def read_channels(prepared: PreparedJob, part: int) -> slice:
    """The channels of the input that a part reads."""
    first = prepared.stages[0].convolution.problem
    return (
        prepared.stream_plan.parts[part][1]
        if len(prepared.stages) == 1
        else slice(0, first.in_channels)
    )


def _outcomes(client: Any, job: bytes, tasks: list[Task], scheduler: str) -> Iterator[Outcome]:
    """What the tasks give, as they end. Raises: ClusterError, MemoryLimitError."""
    distributed = import_distributed()
    # The job is a task's result, which Dask brings to each worker once, and makes anew if it is lost.
    sent = client.submit(bytes, job, pure=False)
    futures = client.map(run_task, tasks, job=sent, retries=RETRIES, pure=False, key="conv3d")
    try:
        for future in _as_they_end(client, distributed.as_completed(futures, loop=client.loop)):
            try:
                outcome = future.result()
            except distributed.KilledWorker as error:
                if _ran_out_of_memory(client):
                    raise MemoryLimitError(
                        f"workers ran out of memory again and again at one task: {MEMORY_CURE}"
                    ) from error
                raise ClusterError(
                    f"workers died again and again at one task, the last at {error.last_worker.address}, perhaps for want of "
                    f"memory: {MEMORY_CURE}"
                ) from error
            except Exception as error:
                words = " ".join(str(error).split())[:200]
                raise ClusterError(
                    f"a worker of {scheduler} failed: {type(error).__name__}: {words}"
                ) from error
            future.release()
            yield outcome
    finally:
        client.cancel([*futures, sent], force=True)
        with suppress(Exception):  # a worker may be lost; its memory is, too
            client.run(release_job, job)


def _as_they_end(client: Any, completed: Any) -> Iterator[Any]:
    """Futures as they end. Raises: MemoryLimitError if for a while none does, and all workers are paused; ClusterError if there
    are none any more.

    Dask pauses a worker that has filled 80 % of its memory, and waits for ever for it to become free, and for new workers.
    """
    last = there = time.monotonic()
    while not completed.is_empty():
        if completed.has_ready():
            yield next(completed)
            last = time.monotonic()
            continue
        time.sleep(0.01)
        if time.monotonic() - last > PAUSED_SECONDS:
            last = time.monotonic()
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            there = last if workers else there
            if last - there > GONE_SECONDS:
                raise ClusterError(
                    "all workers have gone; start some, with the conv3d that is here, and run again"
                )
            if workers and all(worker["status"] == "paused" for worker in workers):
                full = max(worker["metrics"]["memory"] for worker in workers) / 1e6
                raise MemoryLimitError(
                    f"all workers are paused, since their memory is full ({full:.0f} MB taken): {MEMORY_CURE}"
                )


def _ran_out_of_memory(client: Any) -> bool:
    """Whether a nanny, which watches a worker, says that it ended one for its memory: asked once it has started another."""
    with suppress(Exception):
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        logs = client.get_worker_logs(n=50, nanny=True)
        return any("memory budget" in line for lines in logs.values() for _, line in lines)
    return False


def memory_for_tasks(client: Any) -> float:
    """Bytes that a task may hold by the memory limits of the workers, at most `TASK_BYTES`."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    # Dask pauses a worker at 80 % of its limit; an algorithm has scratch, and chunks are held twice while they are decoded
    rooms = [
        (0.75 * worker["memory_limit"] - WORKER_BYTES) / worker["nthreads"] / 1.5
        for worker in workers
        if worker["memory_limit"]
    ]
    return float(min([TASK_BYTES, *rooms]))


def cluster_size(scheduler: str) -> tuple[int, int]:
    """(workers, threads each) of a cluster: the least of them."""
    with connect(scheduler) as client:
        workers = worker_threads(client, scheduler)
    return len(workers), min(workers.values())


def worker_threads(client: Any, scheduler: str) -> dict[str, int]:
    """Threads of each worker, by its address. Raises: ClusterError if there is none."""
    workers: dict[str, int] = client.nthreads()
    if not workers:
        raise ClusterError(
            f"the scheduler at {scheduler} has no workers; start some with `dask worker {scheduler}`"
        )
    return workers


# ---------------------------------------------------------------------------------------------------------------------
# On a worker


class _WorkerState:
    """The job that a worker's thread works on: its reader is open, and the memory of its boxes kept."""

    def __init__(self, job: bytes) -> None:
        from conv3d_cli.engine import Team

        self.job = job
        self.busy = threading.Lock()
        with ExitStack() as stack:
            self.prepared = stack.enter_context(prepare_job(pickle.loads(job)))
            self.team = stack.enter_context(Team(1))
            self.thread = stack.enter_context(OneThread())
            assert isinstance(self.prepared.reader, ZarrReader)
            self.reader = self.prepared.reader
            self.reader.read_boxes_on(self.thread)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the reader and give the memory back."""
        self._stack.close()


_open: dict[int, _WorkerState] = {}  # by thread


def _acquire(job: bytes) -> _WorkerState:
    """What this thread has open of a job."""
    me = threading.get_ident()
    found = _open.get(me)
    if found is None or found.job != job:
        if found is not None:
            _open.pop(me).close()
        keep_freed_memory()
        found = _open[me] = _WorkerState(job)
    return found


def release_job(job: bytes) -> None:
    """On each worker, when a job has ended: close what its threads have open, but where one works on and on."""
    for me, found in list(_open.items()):
        if found.job == job and found.busy.acquire(timeout=LAST_SECONDS):
            try:
                _open.pop(me, None)
                found.close()
            finally:
                found.busy.release()
    give_back_memory()


def run_task(task: Task, job: bytes) -> Outcome:
    """Compute a box and write its chunks. Errors of our own are sent back, since trying again would not help."""
    started = time.perf_counter()
    try:
        at = _acquire(job)
        with at.busy:
            prepared = at.prepared
            n, channels = prepared.stream_plan.parts[task.part]
            convolutions = [stage.convolution for stage in prepared.stages]
            outputs = convolutions[-1].stored(channels, prepared.header.shape[4])
            out = at.thread.buffer(
                "output", (*task.box.size, outputs.stop - outputs.start), prepared.header.dtype
            )
            given = BoxSource(
                at.reader, n, read_channels(prepared, task.part), layer_chain(convolutions)
            ).read(task.box)
            computing = time.perf_counter()
            clipped = compute_box(
                convolutions, given, prepared.reader.header.scale, channels, task.box, out, at.team
            )
            missing = at.reader.take_missing()
            writing = time.perf_counter()
            depth, height, width = (span[0] for span in task.box)
            low, high = task.target.write(n, (depth, height, width), outputs.start, out, at.thread)
            ended = time.perf_counter()
        seconds = (computing - started, writing - computing, ended - writing)
        return Outcome(out.size, clipped, seconds, low, high, missing)
    except Conv3DError as error:
        nothing = np.empty(0)
        return Outcome(
            0, 0, (0.0, 0.0, 0.0), nothing, nothing, 0, (type(error).__name__, str(error))
        )

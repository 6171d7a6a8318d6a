"""Run a job on a Dask cluster, from Zarr to Zarr: each task computes a block of output chunks.

Workers open the input themselves and write their chunks to an unfinished store. This process moves
the store to its final place when all tasks are done. Every worker must be able to reach both. If a
worker dies, its task runs again on another one and writes the same bytes.
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
from conv3d_cli.cluster.scheduler import CONNECT_SECONDS, CURE, Scheduler, import_distributed
from conv3d_cli.convolution.losses import Losses, Rounding
from conv3d_cli.errors import ClusterError, Conv3DError, MemoryLimitError, SpecError
from conv3d_cli.formats import create_volume, input_format, output_access, output_format
from conv3d_cli.formats.zarr.format import ZarrReader, ZarrTarget, ZarrWriter
from conv3d_cli.formats.zarr.names import archive_of, local_folder
from conv3d_cli.formats.zarr.store import OneThread
from conv3d_cli.model.box import Box
from conv3d_cli.pipeline.boxes.compute import BoxSource, compute_box
from conv3d_cli.pipeline.boxes.partition import Partition, choose_partition, work_by_axis
from conv3d_cli.pipeline.checks import CheckReport, check_notes, take_checks
from conv3d_cli.pipeline.flow import whole_nodes
from conv3d_cli.pipeline.outputs import role_of
from conv3d_cli.pipeline.prepare import PreparedJob, PreparedStage, prepare_job
from conv3d_cli.pipeline.request import Job
from conv3d_cli.pipeline.run import (
    JobReport,
    all_losses,
    check_paths,
    clipped_note,
    loss_notes,
    refuse_losses,
)
from conv3d_cli.pipeline.selection import on_cluster
from conv3d_cli.system.leftovers import cleanup_notes
from conv3d_cli.system.machine import give_back_memory, keep_freed_memory
from conv3d_cli.system.scratch import scratch_folder

RETRIES = 2  # of a task that fails; Dask has its own number for workers that die
# Input and output of a task, in bytes: one or two seconds of work, and little enough for one thread
# of a worker. With chunks of 64 x 128 x 128 and a Gaussian of 25 taps, tasks of 96 MB decode each
# chunk 8.4 times, tasks of 384 MB 2.7 times.
TASK_BYTES = 384 << 20
TASKS_PER_THREAD = 4  # at least, so that threads do not wait long for the last task
PAUSED_SECONDS = 10  # without a result, until the workers are checked for being paused
GONE_SECONDS = 120  # to wait for new workers if none is left: a batch system may be starting some
# to wait for running tasks after a failure, so that none writes after clean-up
RELEASE_SECONDS = 2
ASKED = 5  # times that nannies are asked why workers died: the next worker may die meanwhile
MEMORY_CURE = "give workers more memory, fewer threads each, or smaller --chunks"
WORKER_BYTES = 240 << 20  # of an idle worker: Python with Dask, zarr and the engine


@dataclass(frozen=True)
class Task:
    """One task of a job: a box of one part of the output.

    target : ZarrTarget     the unfinished store
    part : int              index into `StreamPlan.parts`
    box : Box               the output voxels to compute, whole chunks
    """

    target: ZarrTarget
    part: int
    box: Box


@dataclass(frozen=True)
class Outcome:
    """The result of a task, as a worker returns it.

    voxels, clipped : int       output voxels, and those that the dtype could not hold
    seconds : three floats      to read, to compute and to write
    low, high : arrays          range of values of each channel; empty if nobody needs it
    missing : int               reads of chunks that the input does not store
    losses : tuple              of each convolution, as `Convolution.losses`
    lost : tuple of int         of each other operation, as `Operation.lost`
    rounded : tuple             of the nodes of the graph, as `Graph.roundings`
    checks : CheckReport        what the checksums of its tiles found; None without them
    error : (class, message)    why the task failed, or None. Not as an exception, because not every
                                exception can be pickled.
    """

    voxels: int
    clipped: int
    seconds: tuple[float, float, float]
    low: np.ndarray
    high: np.ndarray
    missing: int
    losses: tuple[Losses | None, ...] = ()
    lost: tuple[int, ...] = ()
    rounded: tuple[Rounding, ...] = ()
    checks: CheckReport | None = None
    error: tuple[str, str] | None = None


@contextmanager
def connect(scheduler: Scheduler) -> Iterator[Any]:
    """Connect to a scheduler, or start one for local:N, and yield the Dask client.

    Raises: SpecError for a wrong N, and if Dask or a certificate is missing; FormatError if a
    certificate cannot be read; ClusterError if the scheduler cannot be reached.
    """
    with ExitStack() as stack:
        local = _is_local(scheduler)
        distributed = import_distributed()
        address: Any = scheduler.address
        settings: dict[str, Any] = {"timeout": CONNECT_SECONDS, "set_as_default": False}
        if local:
            workers = int(address.partition(":")[2])
            address = stack.enter_context(_private_cluster(workers))
        elif scheduler.is_tls:
            settings["security"] = scheduler.security()
        try:
            client = distributed.Client(address, **settings)
        except (OSError, ValueError, TimeoutError) as error:
            if "security" in settings and (why := scheduler.why_refused(settings["security"])):
                raise ClusterError(f"cannot use the scheduler at {scheduler}: {why}") from error
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ClusterError(
                f"cannot reach the scheduler at {scheduler}: {reason}; "
                "start one with `dask scheduler`, or pass local:2"
            ) from error
        yield stack.enter_context(client)


def _is_local(scheduler: Scheduler) -> bool:
    """Whether an address is local:N. Raises: SpecError for a wrong N."""
    kind, _, count = scheduler.address.partition(":")
    if kind == "local" and (not count.isdigit() or int(count) < 1):
        raise SpecError(
            "--scheduler local:N starts N workers on this machine, at least 1, "
            f"received '{scheduler}'"
        )
    return kind == "local"


@contextmanager
def _private_cluster(workers: int) -> Iterator[Any]:
    """Start worker processes on this machine that only this process can control.

    Anybody who reaches a scheduler can run code as its owner. So all connections use TLS with a key
    made for this run, on loopback, and Dask's web servers serve no pages. Dask's files (locks, and
    values that do not fit in memory) go to a private folder.
    Raises: SpecError with the cure if the library that makes the key is missing.
    """
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
        # another user could create Dask's usual folder in the shared temporary folder first
        scratch_folder("conv3d-dask-") as folder,
        dask.config.set({**no_pages, "temporary-directory": folder}),
        _safe_python_path(),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls://",
            security=security,
            local_directory=folder,
            dashboard_address=None,
            # no dashboard, but its address is bound all the same, so let the system choose the port
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


@contextmanager
def _safe_python_path() -> Iterator[None]:
    """In the body, let new Python processes import no module from the working folder.

    The standard library starts its processes with `python -c`, which looks there first, and another
    user may have put a file there that has the name of a module.
    """
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def run_on_cluster(
    job: Job,
    scheduler: Scheduler,
    progress: Callable[[int, int], None] | None = None,
    decided: Callable[[PreparedJob], None] | None = None,
) -> JobReport:
    """Run a job from Zarr to Zarr on a Dask cluster; see `run_job`.
    Raises: any Conv3DError; ClusterError if the cluster fails.
    """
    started = time.perf_counter()
    check_paths(job)
    job = on_cluster(job)
    with prepare_job(job) as prepared, ExitStack() as stack:
        check_suited(prepared)
        client = stack.enter_context(connect(scheduler))
        if decided is not None:
            decided(prepared)
        workers = worker_threads(client, scheduler)
        partition = choose_tasks(prepared, sum(workers.values()), memory_for_tasks(client))
        with job.limits():
            writer = create_volume(
                job.target,
                prepared.header,
                overwrite=job.overwrite,
                threads=job.threads,
                chunks=job.chunks,
                levels=job.levels,
                levels_by=job.levels_by,
            )
        assert isinstance(writer, ZarrWriter)
        with writer:
            pickled_job = pickle.dumps(frozen_job(prepared))
            target = writer.target()
            tasks = [
                Task(target, part, box)
                for part in range(len(prepared.stream_plan.parts))
                for box in partition.boxes()
            ]
            total = math.prod(prepared.header.shape)
            done = clipped = missing = 0
            seconds = np.zeros(3)
            checked: CheckReport | None = None
            for outcome in _outcomes(client, pickled_job, tasks, scheduler):
                if outcome.error is not None:
                    kind, message = outcome.error
                    raise getattr(errors, kind)(message)
                done += outcome.voxels
                clipped += outcome.clipped
                missing += outcome.missing
                seconds += outcome.seconds
                writer.note_range(outcome.low, outcome.high)
                _add_losses(prepared, outcome)
                if outcome.checks is not None:
                    checked = outcome.checks.plus(checked)
                if progress is not None:
                    progress(done, total)
            lost = [
                *clipped_note(prepared.job, prepared.header, clipped, total),
                *loss_notes(prepared),
            ]
            if job.strict:
                refuse_losses([*lost, *writer.notes])
            all_done = time.perf_counter()
            writer.commit()
            seconds[2] += time.perf_counter() - all_done
    notes = [*cleanup_notes(), *prepared.notes, *writer.remarks, *writer.notes]
    block, plural = "x".join(map(str, partition.block)), "s" if len(tasks) > 1 else ""
    notes.append(
        f"{len(tasks)} task{plural} of {block} voxels, "
        f"on {len(workers)} worker{'s' if len(workers) > 1 else ''}"
    )
    if missing:
        notes.append(f"{missing} reads of chunks that the input does not store gave its fill value")
    notes += [*lost, *check_notes(job, checked)]
    read_seconds, compute_seconds, write_seconds = map(float, seconds)
    return JobReport(
        job.source,
        job.target,
        voxels=total,
        bytes_in=prepared.reader.header.nbytes,
        bytes_out=prepared.header.nbytes,
        clipped=clipped,
        seconds=time.perf_counter() - started,
        read_seconds=read_seconds,
        compute_seconds=compute_seconds,
        write_seconds=write_seconds,
        losses=all_losses(prepared),
        notes=notes,
        checks=checked,
    )


def _add_losses(prepared: PreparedJob, outcome: Outcome) -> None:
    """Add what a task lost to the losses of the job's convolutions and other operations."""
    for stage, found in zip(prepared.convolutions, outcome.losses, strict=True):
        if found is not None and stage.convolution.losses is not None:
            stage.convolution.losses = stage.convolution.losses.plus(found)
    for operation, lost in zip(prepared.graph.operations, outcome.lost, strict=True):
        operation.lost += lost
    for rounding, more in zip(prepared.graph.roundings, outcome.rounded, strict=True):
        rounding.add(more)


def check_suited(prepared: PreparedJob) -> None:
    """Refuse a job that a cluster cannot do. Raises: SpecError."""
    job = prepared.job
    read_format = input_format(job.source)
    if read_format is None or not read_format.chunked:
        raise SpecError(
            "--scheduler reads Zarr stores, which several workers can open at once, and "
            f"{job.source} is not one; convert it first: "
            f"conv3d convert {job.source} {job.source}.zarr"
        )
    if not output_format(job.target).chunked:
        raise SpecError(
            "--scheduler writes Zarr stores, to which several workers can write at once, and "
            f"{job.target} is not one; name an output that ends in .zarr"
        )
    if archive_of(job.target) is not None:
        raise SpecError(
            f"--scheduler writes with several workers at once, and {job.target} is a zip file, "
            "which has one writer: name an output that ends in .zarr, and zip it by conv3d convert"
        )
    for name in whole_nodes(prepared.graph):
        raise SpecError(
            f"node '{name}' needs the whole volume, which no worker has: leave out --scheduler"
        )
    for stage in prepared.convolutions:
        if not stage.convolution.takes_boxes:
            raise SpecError(
                "boundary renormalize computes whole planes, which tasks divide: "
                "leave out --scheduler"
            )
        if stage.stage.activity_regularizer is not None:
            raise SpecError(
                "activity_regularizer needs the whole output, which no worker has: "
                "leave it out with --scheduler"
            )
        if job.channels_first and any(a.kind == "axis" for a in stage.convolution.activations):
            raise SpecError(
                "under channels_first this activation runs along the width, which tasks divide: "
                "leave out --scheduler"
            )
    for output in job.beside:
        raise SpecError(f"--scheduler does not take {role_of(output.role).flag} yet: leave it out")


def frozen_job(prepared: PreparedJob) -> Job:
    """The job to send to workers, with nothing left to read or decide.

    Its kernels are final: read or drawn, adapted, and constrained. The path of its input is
    absolute, because each worker has its own working directory.
    """
    job = prepared.job
    folder = local_folder(job.source)
    stages = tuple(
        done.stage.with_made_kernel(done.kernel) if isinstance(done, PreparedStage) else done.step
        for done in prepared.stages
    )
    return replace(
        job,
        source=job.source if folder is None else os.path.abspath(folder),
        stages=stages,
        label_names=None,
        normalize_mask=None,
        template_mask=None,
        threads=1,
    )


def choose_tasks(prepared: PreparedJob, threads: int, task_bytes: float = TASK_BYTES) -> Partition:
    """Divide each part of a job into tasks of at most `task_bytes`, enough for all threads.

    If no block meets both conditions, a task is a single chunk.

    threads : int       of the whole cluster

    Raises: MemoryLimitError if the tasks exceed `task_bytes` and that is less than TASK_BYTES, the
    limit of the workers' memory.
    """
    graph = prepared.graph.boxes(prepared.reader.header.shape[1:4])
    source, output, parts = prepared.reader.header, prepared.header, len(prepared.stream_plan.parts)
    in_chunk, chunk = chunk_shapes(prepared)
    read_channels = channels_read(prepared, 0)
    in_voxel = source.dtype.itemsize * (read_channels.stop - read_channels.start)
    out_voxel = output.dtype.itemsize * prepared.graph.last.problem.filters

    def size(partition: Partition) -> int:
        axes = work_by_axis(graph, partition, in_chunk)
        read = math.prod(axis.most_buffered for axis in axes)
        return int(read * in_voxel + math.prod(partition.block) * out_voxel)

    def allowed(partition: Partition) -> bool:
        small = size(partition) <= task_bytes
        return partition.block == single.block or (
            small and partition.count * parts >= TASKS_PER_THREAD * threads
        )

    block = [min(n, whole) for n, whole in zip(chunk, graph.size, strict=True)]
    single = Partition(graph.size, chunk, (block[0], block[1], block[2]))
    partition = choose_partition(graph, in_chunk, chunk, allowed) or single
    if (needed := size(partition)) > task_bytes < TASK_BYTES:
        raise MemoryLimitError(
            f"a task of {'x'.join(map(str, partition.block))} voxels needs {needed / 1e6:.0f} MB "
            "for its input and output, and under the workers' memory limit a thread has "
            f"{max(task_bytes, 0) / 1e6:.0f} MB: {MEMORY_CURE}"
        )
    return partition


def chunk_shapes(prepared: PreparedJob) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(D, H, W) of the input's chunks, which are decoded whole, and of the output's."""
    job = prepared.job
    reading = prepared.reader.box_access()
    writing = output_access(
        job.target,
        prepared.header,
        chunks=job.chunks,
        levels=job.levels,
        levels_by=job.levels_by,
    )
    assert reading is not None, job.source
    assert writing is not None, job.target
    return reading.unit, writing.unit


def channels_read(prepared: PreparedJob, part: int) -> slice:
    """The channels of the input that a part reads."""
    if len(prepared.stages) == 1:
        return prepared.stream_plan.parts[part][1]
    return slice(0, prepared.reader.header.shape[4])


def _outcomes(
    client: Any, job: bytes, tasks: list[Task], scheduler: Scheduler
) -> Iterator[Outcome]:
    """Run the tasks, and yield their outcomes in order of completion.

    Raises: ClusterError, MemoryLimitError.
    """
    distributed = import_distributed()
    # As a task's result, the job goes to each worker once, and Dask recomputes it if it is lost.
    sent = client.submit(bytes, job, pure=False)
    futures = client.map(run_task, tasks, job=sent, retries=RETRIES, pure=False, key="conv3d")
    try:
        for future in _as_completed(client, distributed.as_completed(futures, loop=client.loop)):
            try:
                outcome = future.result()
            except distributed.KilledWorker as error:
                if _ran_out_of_memory(client):
                    raise MemoryLimitError(
                        f"workers ran out of memory repeatedly on one task: {MEMORY_CURE}"
                    ) from error
                raise ClusterError(
                    "workers died repeatedly on one task, the last at "
                    f"{error.last_worker.address}, perhaps for lack of memory: {MEMORY_CURE}"
                ) from error
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise ClusterError(
                    f"a worker of {scheduler} failed: {type(error).__name__}: {reason}"
                ) from error
            future.release()
            yield outcome
    finally:
        client.cancel([*futures, sent], force=True)
        with suppress(Exception):  # a worker that is lost needs no release
            client.run(release_job, job)


def _as_completed(client: Any, completed: Any) -> Iterator[Any]:
    """Yield futures in order of completion, and stop waiting if the cluster cannot go on.

    Dask pauses a worker that has filled 80 % of its memory. It waits forever for the memory to be
    freed, and for new workers.
    Raises: MemoryLimitError if all workers are paused; ClusterError if all workers have gone.
    """
    last = last_worker_seen = time.monotonic()
    while not completed.is_empty():
        if completed.has_ready():
            yield next(completed)
            last = time.monotonic()
            continue
        time.sleep(0.01)
        if time.monotonic() - last > PAUSED_SECONDS:
            last = time.monotonic()
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            last_worker_seen = last if workers else last_worker_seen
            if last - last_worker_seen > GONE_SECONDS:
                raise ClusterError(
                    "all workers have gone; start some with this version of conv3d, and run again"
                )
            if workers and all(worker["status"] == "paused" for worker in workers):
                used = max(worker["metrics"]["memory"] for worker in workers) / 1e6
                raise MemoryLimitError(
                    "all workers are paused, because their memory is full "
                    f"({used:.0f} MB used): {MEMORY_CURE}"
                )


def _ran_out_of_memory(client: Any) -> bool:
    """True if the log of a nanny says that it killed its worker for exceeding the memory limit.

    A nanny can be asked as soon as it has started the next worker, and while that one lives.
    """
    with suppress(Exception):
        for _ in range(ASKED):
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            if logs := client.get_worker_logs(n=50, nanny=True):
                return any("memory budget" in line for lines in logs.values() for _, line in lines)
    return False


def memory_for_tasks(client: Any) -> float:
    """The size of a task in bytes that the memory limits of all workers allow, up to TASK_BYTES."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    # Dask pauses a worker at 80 % of its limit. The divisor 1.5 is for the algorithm's scratch, and
    # for chunks, which are in memory twice while they are decoded.
    allowed = [
        (0.75 * worker["memory_limit"] - WORKER_BYTES) / worker["nthreads"] / 1.5
        for worker in workers
        if worker["memory_limit"]
    ]
    return float(min([TASK_BYTES, *allowed]))


def check_scheduler(scheduler: Scheduler) -> None:
    """Check that a cluster can be reached; workers of this machine (local:N) are not started.

    Raises: as `connect`; ClusterError if it has no workers.
    """
    if not _is_local(scheduler):
        cluster_size(scheduler)
    import_distributed()


def cluster_size(scheduler: Scheduler) -> tuple[int, int]:
    """The number of workers of a cluster, and the smallest number of threads of a worker.

    Raises: ClusterError if the scheduler cannot be reached or has no workers.
    """
    with connect(scheduler) as client:
        workers = worker_threads(client, scheduler)
    return len(workers), min(workers.values())


def worker_threads(client: Any, scheduler: Scheduler) -> dict[str, int]:
    """The number of threads of each worker, by address. Raises: ClusterError without workers."""
    workers: dict[str, int] = client.nthreads()
    if not workers:
        raise ClusterError(
            f"the scheduler at {scheduler} has no workers; "
            f"start some with `dask worker {scheduler}`"
        )
    return workers


# --------------------------------------------------------------------------------------------------
# On a worker


class _WorkerState:
    """The job of a worker's thread: prepared, with an open reader and buffers that it reuses."""

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
        """Close the reader and free the buffers."""
        self._stack.close()


_open: dict[int, _WorkerState] = {}  # by thread


def _acquire(job: bytes) -> _WorkerState:
    """This thread's state for a job; it replaces the state of another job."""
    me = threading.get_ident()
    state = _open.get(me)
    if state is None or state.job != job:
        if state is not None:
            _open.pop(me).close()
        keep_freed_memory()
        state = _open[me] = _WorkerState(job)
    return state


def release_job(job: bytes) -> None:
    """Close what the threads of a worker have open for a job; Dask runs it on every worker.

    A thread that is still busy after RELEASE_SECONDS is left alone.
    """
    for thread, state in list(_open.items()):
        if state.job == job and state.busy.acquire(timeout=RELEASE_SECONDS):
            try:
                _open.pop(thread, None)
                state.close()
            finally:
                state.busy.release()
    give_back_memory()


def run_task(task: Task, job: bytes) -> Outcome:
    """Compute a box and write its chunks, on a worker.

    A Conv3DError is returned, not raised: Dask would try the task again, which would not help.

    job : bytes     a pickled Job
    """
    started = time.perf_counter()
    try:
        state = _acquire(job)
        with state.busy:
            prepared, scale = state.prepared, state.reader.header.scale
            n, channels = prepared.stream_plan.parts[task.part]
            graph, convolutions = prepared.graph, prepared.graph.convolutions
            outputs = convolutions[-1].stored(channels, prepared.header.shape[4])
            shape = (*task.box.size, outputs.stop - outputs.start)
            out = state.thread.buffer("output", shape, prepared.header.dtype)
            read = channels_read(prepared, task.part)
            nodes = graph.boxes(state.reader.header.shape[1:4])
            source = BoxSource(state.reader, n, read, nodes)
            given = source.read(task.box)
            computing = time.perf_counter()
            for convolution in convolutions:
                convolution.take_losses()  # of a task that failed
            for operation in graph.operations:
                operation.lost = 0
            for rounding in graph.roundings:
                rounding.forget()
            take_checks(convolutions)
            clipped = compute_box(graph, given, scale, channels, task.box, out, state.team)
            missing = state.reader.take_missing()
            losses = tuple(convolution.take_losses() for convolution in convolutions)
            lost = tuple(operation.lost for operation in graph.operations)
            rounded = tuple(replace(rounding) for rounding in graph.roundings)
            checks = take_checks(convolutions)
            writing = time.perf_counter()
            low, high = task.target.write(n, task.box.start, outputs.start, out, state.thread)
            ended = time.perf_counter()
        seconds = (computing - started, writing - computing, ended - writing)
        return Outcome(
            out.size, clipped, seconds, low, high, missing, losses, lost, rounded, checks
        )
    except Conv3DError as error:
        empty = np.empty(0)
        failure = type(error).__name__, str(error)
        return Outcome(0, 0, (0.0, 0.0, 0.0), empty, empty, missing=0, error=failure)

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conv3d_cli import errors
from conv3d_cli.boxes.compute import BoxSource, chain_of, compute_box
from conv3d_cli.boxes.cut import Box, Cutting, axis_shares, cut
from conv3d_cli.errors import ClusterError, Conv3DError, SpecError
from conv3d_cli.formats import create_volume, output_access, output_format
from conv3d_cli.formats.zarr import NAME as ZARR
from conv3d_cli.formats.zarr import ZarrReader, ZarrTarget, ZarrWriter
from conv3d_cli.formats.zarr_store import local_folder, one_thread
from conv3d_cli.job import Job, JobReport, PreparedJob, Stage, all_losses, check_paths, clipped_note, prepare_job

CURE = "pip install 'conv3d[cluster]'"
RETRIES = 2  # of a task that fails, beside those that Dask grants when a worker dies
CONNECT_SECONDS = 10
# Voxels of input and output that a task holds, in bytes: a second or two of work, and what a worker's thread may well hold. Of
# chunks of 64 x 128 x 128 and a Gaussian of 25 taps, tasks of 96 MB decode each chunk 8.4 times, of 384 MB 2.7 times.
TASK_BYTES = 384 << 20
TASKS_A_THREAD = 4  # at least, so that the last one is not waited for long


@dataclass(frozen=True)
class Task:
    """What a worker is sent: a job, the same for all, and the box of one of its parts."""

    job: bytes
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
    seconds: tuple[float, float]  # in all, writing
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
            raise SpecError(f"--scheduler local:N starts N workers on this machine, received '{scheduler}'")
        distributed = import_distributed()
        address: Any = scheduler
        if kind == "local":
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=int(count), threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
                )
            )
        try:
            client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            words = " ".join(str(error).split())[:160] or type(error).__name__
            raise ClusterError(
                f"cannot reach the scheduler at {scheduler}: {words}; start one with `dask scheduler`, or pass local:2"
            ) from error
        yield stack.enter_context(client)


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
        cutting = cut_prepared(prepared, sum(workers.values()))
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
            sent = pickle.dumps(settled(job, prepared))
            target = writer.target()
            tasks = [
                Task(sent, target, part, box) for part in range(len(prepared.passage.parts)) for box in cutting.boxes()
            ]
            total = math.prod(prepared.header.shape)
            done = clipped = missing = 0
            seconds = [0.0, 0.0]
            for outcome in _outcomes(client, tasks, scheduler):
                if outcome.error is not None:
                    kind, message = outcome.error
                    raise getattr(errors, kind)(message)
                done, clipped, missing = done + outcome.voxels, clipped + outcome.clipped, missing + outcome.missing
                seconds = [a + b for a, b in zip(seconds, outcome.seconds, strict=True)]
                writer.note_range(outcome.low, outcome.high)
                if progress is not None:
                    progress(done, total)
            finish = time.perf_counter()
            writer.commit()
            seconds[1] += time.perf_counter() - finish
    notes = [*prepared.notes, *writer.notes]
    notes.append(f"{len(tasks)} tasks of {'x'.join(map(str, cutting.block))} voxels on {len(workers)} workers")
    if missing:
        notes.append(f"chunks that are not in the input were asked for {missing} times; they read as its fill value")
    notes += clipped_note(job, clipped, total)
    header = prepared.header
    return JobReport(
        job.source, job.target, total, prepared.reader.header.nbytes, header.nbytes, clipped,
        time.perf_counter() - started, 0.0, seconds[0] - seconds[1], seconds[1], all_losses(prepared), notes,
    )  # fmt: skip


def check_suited(prepared: PreparedJob) -> None:
    """Refuse what a cluster cannot do. Raises: SpecError."""
    job = prepared.job
    for path, name in ((job.source, prepared.reader.header.format), (job.target, output_format(job.target).name)):
        if name != ZARR:
            raise SpecError(
                f"--scheduler reads and writes Zarr stores, which many can work on at once; {path} is none. "
                f"Convert it first: conv3d apply {path} -k identity -o {path}.zarr"
            )
    for stage in prepared.stages:
        if stage.stage.activity_regularizer is not None:
            raise SpecError("activity_regularizer looks at the whole output: leave it out with --scheduler")
        if job.channels_first and any(a.kind == "axis" for a in stage.convolution.activations):
            raise SpecError(
                "under channels_first this activation runs along the width, which tasks cut: leave out --scheduler"
            )


def settled(job: Job, prepared: PreparedJob) -> Job:
    """The job with its kernels read, drawn and constrained, so that workers need no kernel files and decide nothing anew, and
    with a path from the root, since each has a folder of its own."""
    folder = local_folder(job.source)
    stages = tuple(
        Stage(
            kernel=done.kernel, strides=done.stage.strides, padding=done.stage.padding,
            dilation_rate=done.stage.dilation_rate, groups=done.stage.groups, boundary=done.stage.boundary,
            allow_strided_dilation=done.stage.allow_strided_dilation, activations=done.stage.activations,
            name=done.stage.name,
        )
        for done in prepared.stages
    )  # fmt: skip
    return replace(job, source=job.source if folder is None else os.path.abspath(folder), stages=stages, threads=1)


def cut_prepared(prepared: PreparedJob, threads: int) -> Cutting:
    """The tasks of a job's parts on a cluster with so many threads: at most `TASK_BYTES` each, and enough for all threads."""
    chain = chain_of([stage.convolution for stage in prepared.stages])
    source, output, parts = prepared.reader.header, prepared.header, len(prepared.passage.parts)
    in_chunk, chunk = chunks_of(prepared)
    in_voxel = source.dtype.itemsize * chain.problems[0].in_channels
    out_voxel = output.dtype.itemsize * chain.problems[-1].filters

    def allowed(cutting: Cutting) -> bool:
        held = math.prod(one.held for one in axis_shares(chain, cutting, in_chunk)) * in_voxel
        small = held + math.prod(cutting.block) * out_voxel <= TASK_BYTES
        return cutting.block == single.block or (small and cutting.count * parts >= TASKS_A_THREAD * threads)

    block = [min(n, size) for n, size in zip(chunk, chain.problems[-1].out_size, strict=True)]
    single = Cutting(chain.problems[-1].out_size, chunk, (block[0], block[1], block[2]))
    return cut(chain, in_chunk, chunk, allowed) or single


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
    return prepared.passage.parts[part][1] if len(prepared.stages) == 1 else slice(0, first.in_channels)


def _outcomes(client: Any, tasks: list[Task], scheduler: str) -> Iterator[Outcome]:
    """What the tasks give, as they end. Raises: ClusterError."""
    distributed = import_distributed()
    futures = client.map(run_task, tasks, retries=RETRIES, pure=False, key="conv3d")
    try:
        for future in distributed.as_completed(futures, loop=client.loop):
            try:
                outcome = future.result()
            except distributed.KilledWorker as error:
                raise ClusterError(
                    f"workers died again and again at one task, perhaps for want of memory: {error.last_worker}; "
                    "give them more, fewer threads each, or smaller --chunks"
                ) from error
            except Exception as error:
                words = " ".join(str(error).split())[:200]
                raise ClusterError(f"a worker of {scheduler} failed: {type(error).__name__}: {words}") from error
            future.release()
            yield outcome
    finally:
        client.cancel(futures, force=True)


def cluster_size(scheduler: str) -> tuple[int, int]:
    """(workers, threads each) of a cluster: the least of them."""
    with connect(scheduler) as client:
        workers = worker_threads(client, scheduler)
    return len(workers), min(workers.values())


def worker_threads(client: Any, scheduler: str) -> dict[str, int]:
    """Threads of each worker, by its address. Raises: ClusterError if there is none."""
    workers: dict[str, int] = client.nthreads()
    if not workers:
        raise ClusterError(f"the scheduler at {scheduler} has no workers; start some with `dask worker {scheduler}`")
    return workers


# ---------------------------------------------------------------------------------------------------------------------
# On a worker


class _Open(threading.local):
    """The job that a worker's thread works on, with its reader open."""

    def __init__(self) -> None:
        self.key = b""
        self.stack = ExitStack()
        self.prepared: Any = None
        self.team: Any = None

    def get(self, job: bytes) -> tuple[PreparedJob, Any]:
        from conv3d_cli.engine import Team

        if job != self.key:
            one_thread()
            self.stack.close()
            self.key, self.stack = b"", ExitStack()
            self.prepared = self.stack.enter_context(prepare_job(pickle.loads(job)))
            self.team = self.stack.enter_context(Team(1))
            self.key = job
        return self.prepared, self.team


_open = _Open()


def run_task(task: Task) -> Outcome:
    """Compute a box and write its chunks. Errors of our own are sent back, since trying again would not help."""
    started = time.perf_counter()
    try:
        prepared, team = _open.get(task.job)
        n, channels = prepared.passage.parts[task.part]
        convolutions = [stage.convolution for stage in prepared.stages]
        outputs = convolutions[-1].stored(channels, prepared.header.shape[4])
        out = np.empty((*task.box.shape, outputs.stop - outputs.start), prepared.header.dtype)
        given = BoxSource(prepared.reader, n, read_channels(prepared, task.part), chain_of(convolutions)).read(task.box)
        clipped = compute_box(convolutions, given, prepared.reader.header.scale, channels, task.box, out, team)
        missing = prepared.reader.take_missing() if isinstance(prepared.reader, ZarrReader) else 0
        writing = time.perf_counter()
        depth, height, width = (span[0] for span in task.box)
        low, high = task.target.write(n, (depth, height, width), outputs.start, out)
        ended = time.perf_counter()
        return Outcome(out.size, clipped, (ended - started, ended - writing), low, high, missing)
    except Conv3DError as error:
        nothing = np.empty(0)
        return Outcome(0, 0, (0.0, 0.0), nothing, nothing, 0, (type(error).__name__, str(error)))

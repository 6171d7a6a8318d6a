"""Forecast the cost of a job on a cluster: tasks, bytes read and written, and time.

One task of the job is timed on one thread of this machine: decode its input, compute, and encode
its output (into a temporary store, which is removed). The forecast is the time of all tasks,
divided among the cluster's threads. It ignores that machines share a storage; `read_rate` and
`write_rate` can be set lower for that.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conv3d_cli.cluster.run import channels_read, choose_tasks, chunk_shapes
from conv3d_cli.engine import Team
from conv3d_cli.formats import create_volume
from conv3d_cli.formats.zarr.format import ZarrReader, ZarrWriter
from conv3d_cli.formats.zarr.store import OneThread
from conv3d_cli.model.box import Box
from conv3d_cli.model.volume import VolumeHeader
from conv3d_cli.pipeline.boxes.compute import BoxSource, compute_box
from conv3d_cli.pipeline.boxes.partition import Partition, decoded_sizes, redundancy
from conv3d_cli.pipeline.prepare import PreparedJob
from conv3d_cli.system.machine import give_back_memory, keep_freed_memory
from conv3d_cli.system.scratch import scratch_folder


@dataclass(frozen=True)
class Rates:
    """The speed of one thread.

    read, write : float     bytes/s of uncompressed voxels that are decoded, and encoded
    voxel_seconds : float   seconds to compute one output voxel
    """

    read: float
    write: float
    voxel_seconds: float


@dataclass(frozen=True)
class Forecast:
    """The cost of a job on a cluster.

    partition : Partition       the tasks of one part of the job
    parts : int                 parts of the job: volumes, or some channels of a volume
    workers, threads : int      threads of all workers together
    bytes_in : int              uncompressed size of the input
    bytes_read : float          bytes that all tasks decode: whole chunks, with the tasks' halos
    bytes_out : int             uncompressed size of the output
    computed : float            voxels computed per output voxel; above 1 if tasks divide an
                                algorithm's tiles
    """

    partition: Partition
    parts: int
    workers: int
    threads: int
    bytes_in: int
    bytes_read: float
    bytes_out: int
    computed: float
    rates: Rates

    @property
    def tasks(self) -> int:
        """The number of tasks of the whole job."""
        return self.partition.count * self.parts

    @property
    def read_seconds(self) -> float:
        """Thread-seconds to read and decode."""
        return self.bytes_read / self.rates.read

    @property
    def compute_seconds(self) -> float:
        """Thread-seconds to compute."""
        voxels = math.prod(self.partition.size) * self.parts
        return voxels * self.computed * self.rates.voxel_seconds

    @property
    def write_seconds(self) -> float:
        """Thread-seconds to encode and write."""
        return self.bytes_out / self.rates.write

    @property
    def seconds(self) -> float:
        """The duration of the job: as many rounds of tasks as all threads together need."""
        task = (self.read_seconds + self.compute_seconds + self.write_seconds) / self.tasks
        return math.ceil(self.tasks / self.threads) * task

    def record(self) -> dict[str, Any]:
        """The forecast as a JSON object."""
        return {
            "workers": self.workers,
            "threads": self.threads,
            "tasks": self.tasks,
            "task": list(self.partition.block),
            "chunk": list(self.partition.chunk),
            "bytes_in": self.bytes_in,
            "bytes_read": int(self.bytes_read),
            "bytes_out": self.bytes_out,
            "voxels_computed_for_one": round(self.computed, 4),
            "read_rate": self.rates.read,
            "write_rate": self.rates.write,
            "read_seconds": self.read_seconds,
            "compute_seconds": self.compute_seconds,
            "write_seconds": self.write_seconds,
            "seconds": self.seconds,
        }


def forecast(
    prepared: PreparedJob,
    workers: int,
    threads_each: int = 1,
    read_rate: float | None = None,
    write_rate: float | None = None,
) -> Forecast:
    """Forecast the cost of a job from Zarr to Zarr, after a trial of one task here.

    workers, threads_each : int             the cluster, and the threads of each worker
    read_rate, write_rate : float or None   bytes/s of one thread; replace the rates of the trial

    Raises: FormatError if the input cannot be read.
    """
    threads = workers * threads_each
    partition = choose_tasks(prepared, threads)
    graph = prepared.graph.boxes(prepared.reader.header.shape[1:4])
    source, output = prepared.reader.header, prepared.header
    parts = len(prepared.stream_plan.parts)
    read = channels_read(prepared, 0)
    bytes_in = math.prod(graph.in_size) * (read.stop - read.start) * source.dtype.itemsize * parts
    repeated = redundancy(graph, partition, chunk_shapes(prepared)[0])
    rates = measure_rates(prepared, partition)
    return Forecast(
        partition,
        parts,
        workers,
        threads,
        bytes_in=bytes_in,
        bytes_read=bytes_in * repeated.decoded,
        bytes_out=math.prod(output.shape) * output.dtype.itemsize,
        computed=repeated.computed,
        rates=Rates(read_rate or rates.read, write_rate or rates.write, rates.voxel_seconds),
    )


def measure_rates(prepared: PreparedJob, partition: Partition) -> Rates:
    """Time one task on one thread: read, compute and write a box in the middle of the volume."""
    keep_freed_memory()  # as workers do
    box = next(itertools.islice(partition.boxes(), partition.count // 2, None))
    n, channels = prepared.stream_plan.parts[0]
    reader, graph = prepared.reader, prepared.graph
    nodes = graph.boxes(reader.header.shape[1:4])
    assert isinstance(reader, ZarrReader)
    with OneThread() as thread:
        reader.read_boxes_on(thread)
        for _ in range(2):  # the first time allocates memory
            started = time.perf_counter()
            given = BoxSource(reader, n, channels_read(prepared, 0), nodes).read(box)
            read = time.perf_counter() - started
    decoded = math.prod(decoded_sizes(nodes, box, chunk_shapes(prepared)[0]))
    decoded *= given.voxels.shape[3] * given.voxels.itemsize

    stored = graph.last.stored(channels, prepared.header.shape[4])
    out = np.empty((*box.size, stored.stop - stored.start), prepared.header.dtype)
    with Team(1) as team:
        for _ in range(2):  # the first time loads or compiles the loops
            started = time.perf_counter()
            compute_box(graph, given, reader.header.scale, channels, box, out, team)
            compute = time.perf_counter() - started

    header = box_header(prepared.header, box)
    with scratch_folder() as folder, OneThread() as thread:
        writer = create_volume(f"{folder}/trial.zarr", header, threads=1, chunks=partition.chunk)
        assert isinstance(writer, ZarrWriter)
        with writer:
            target = writer.target()
            for _ in range(2):
                started = time.perf_counter()
                target.write(0, (0, 0, 0), 0, out[..., : header.shape[4]], thread)
                write = time.perf_counter() - started
    give_back_memory()
    return Rates(
        decoded / max(read, 1e-6), out.nbytes / max(write, 1e-6), compute / math.prod(box.size)
    )


def box_header(header: VolumeHeader, box: Box) -> VolumeHeader:
    """The header of a single volume of a box's size."""
    sizes = dict(zip("zyx", box.size, strict=True)) | dict.fromkeys(header.axes.batch_letters, 1)
    return replace(header, axes=header.axes.renamed(header.axes.letters, sizes))

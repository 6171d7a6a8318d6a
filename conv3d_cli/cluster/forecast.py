"""What a job would cost on a cluster: tasks, bytes that are read and written, and time from rates measured here.

One task of the job is timed on one thread: decoding what it reads, computing, encoding what it writes (into a temporary store,
which is removed). The sum over all tasks, spread over the cluster's threads, is the forecast; what many machines take from one
storage together is not known here, and `read_rate` and `write_rate` say it where it is less.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conv3d_cli.cluster.run import chunks_of, cut_prepared, read_channels
from conv3d_cli.engine import Team
from conv3d_cli.formats import create_volume
from conv3d_cli.formats.zarr.format import ZarrReader, ZarrWriter
from conv3d_cli.formats.zarr.store import OneThread
from conv3d_cli.model.box import Box
from conv3d_cli.model.volume import VolumeHeader
from conv3d_cli.pipeline.boxes.compute import BoxSource, compute_box, layer_chain
from conv3d_cli.pipeline.boxes.partition import Partition, decoded_sizes, redundancy
from conv3d_cli.pipeline.prepare import PreparedJob
from conv3d_cli.system.machine import give_back_memory, keep_freed_memory


@dataclass(frozen=True)
class Rates:
    """Bytes a second of one thread (voxels before compression), and seconds of computing a voxel of the output."""

    read: float
    write: float
    voxel_seconds: float


@dataclass(frozen=True)
class Forecast:
    """A job on a cluster.

    threads : of all workers together
    bytes_in, bytes_read : the input's voxels, and those that all tasks together decode: whole chunks, halos
    bytes_out : the output's voxels
    computed : voxels computed for one of the output: more than 1 where tasks cut an algorithm's tiles
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
        """Of all parts."""
        return self.partition.count * self.parts

    @property
    def read_seconds(self) -> float:
        """Of all threads together, as the next two."""
        return self.bytes_read / self.rates.read

    @property
    def compute_seconds(self) -> float:
        """Computing."""
        return (
            math.prod(self.partition.size) * self.parts * self.computed * self.rates.voxel_seconds
        )

    @property
    def write_seconds(self) -> float:
        """Encoding and writing."""
        return self.bytes_out / self.rates.write

    @property
    def seconds(self) -> float:
        """From the first task to the last: whole rounds of tasks on all threads."""
        task = (self.read_seconds + self.compute_seconds + self.write_seconds) / self.tasks
        return math.ceil(self.tasks / self.threads) * task

    def record(self) -> dict[str, Any]:
        """As JSON."""
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
    """What a job from Zarr to Zarr would take.

    read_rate, write_rate : bytes a second of one thread, where they are known better than a trial here can tell
    Raises: FormatError if the input cannot be read.
    """
    threads = workers * threads_each
    partition = cut_prepared(prepared, threads)
    chain = layer_chain([stage.convolution for stage in prepared.stages])
    source, parts = prepared.reader.header, len(prepared.stream_plan.parts)
    bytes_part = (
        math.prod(chain.problems[0].in_size) * chain.problems[0].in_channels * source.dtype.itemsize
    )
    repeated = redundancy(chain, partition, chunks_of(prepared)[0])
    rates = measure_rates(prepared, partition)
    rates = Rates(read_rate or rates.read, write_rate or rates.write, rates.voxel_seconds)
    return Forecast(
        partition, parts, workers, threads, bytes_part * parts, bytes_part * parts * repeated.decoded,
        math.prod(prepared.header.shape) * prepared.header.dtype.itemsize, repeated.computed, rates,
    )  # fmt: skip


def measure_rates(prepared: PreparedJob, partition: Partition) -> Rates:
    """Read, compute and write one task in the middle of the volume, on one thread."""
    keep_freed_memory()  # as workers do
    box = next(itertools.islice(partition.boxes(), partition.count // 2, None))
    n, channels = prepared.stream_plan.parts[0]
    convolutions = [stage.convolution for stage in prepared.stages]
    chain, reader = layer_chain(convolutions), prepared.reader
    assert isinstance(reader, ZarrReader)
    with OneThread() as thread:
        reader.read_boxes_on(thread)
        for _ in range(2):  # the first time takes new memory
            started = time.perf_counter()
            given = BoxSource(reader, n, read_channels(prepared, 0), chain).read(box)
            read = time.perf_counter() - started
    decoded = math.prod(decoded_sizes(chain, box, chunks_of(prepared)[0]))
    decoded *= given.voxels.shape[3] * given.voxels.itemsize

    stored = convolutions[-1].stored(channels, prepared.header.shape[4])
    out = np.empty((*box.size, stored.stop - stored.start), prepared.header.dtype)
    with Team(1) as team:
        for _ in range(2):  # the first time loads, or compiles, the loops
            started = time.perf_counter()
            compute_box(convolutions, given, reader.header.scale, channels, box, out, team)
            compute = time.perf_counter() - started

    header = box_header(prepared.header, box)
    with tempfile.TemporaryDirectory(prefix="conv3d-") as folder, OneThread() as thread:
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
    """The header of a volume of a box's size, one of the batch."""
    sizes = dict(zip("zyx", box.size, strict=True)) | dict.fromkeys(header.axes.batch_letters, 1)
    return replace(header, axes=header.axes.renamed(header.axes.letters, sizes))

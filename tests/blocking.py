"""What tests put in place of `prepare.choose_blocking`, so that small volumes take every way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conv3d_cli.pipeline.blocking import Blocking, Boxes
from conv3d_cli.pipeline.boxes.partition import Partition
from conv3d_cli.pipeline.boxes.stream import BoxJob
from conv3d_cli.pipeline.memory import SlabJob


def in_boxes(draw: Callable[[BoxJob], Partition]) -> Callable[..., Blocking]:
    """Boxes, whatever fits."""

    def choose_blocking(*arguments: Any) -> Blocking:
        job = arguments[-1]()
        assert isinstance(job, BoxJob)
        partition = draw(job)
        return Blocking(1, job.memory(partition), Boxes(partition, job.redundancy(partition)))

    return choose_blocking


def in_boxes_of(depth: int, height: int, width: int) -> Callable[..., Blocking]:
    """Boxes of so many voxels, or of one chunk where that has more."""

    def draw(job: BoxJob) -> Partition:
        d, h, w = map(max, (depth, height, width), job.chunk)
        return Partition(job.graph.last.problem.out_size, job.chunk, (d, h, w))

    return in_boxes(draw)


def plane_by_plane(job: SlabJob, *arguments: Any) -> Blocking:
    """Slabs of as few planes as are computed together."""
    depth = job.last.plan.depth_step
    return Blocking(depth, job.memory(depth))

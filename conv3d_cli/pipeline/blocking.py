"""Choose slabs of whole planes, or boxes, that keep a job under its memory ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from conv3d_cli.errors import MemoryLimitError
from conv3d_cli.pipeline.memory import MemoryUse, SlabJob, megabytes
from conv3d_cli.system.machine import format_bytes, memory_ceiling

if TYPE_CHECKING:
    from conv3d_cli.pipeline.boxes.partition import Partition, Redundancy
    from conv3d_cli.pipeline.boxes.stream import BoxJob


# Bytes of a slab's input and output, if the ceiling allows. Small slabs shorten the wait at both
# ends of the stream, stay in the caches, and reuse their memory (5^3 on a scan of 35 MB, .nii.gz to
# .nii.gz: 141 ms at 8 MB, 179 ms at 24 MB; 2026-11). Deep kernels get larger slabs, since each slab
# processes its halo once more.
SLAB_BYTES, DEEP_SLAB_BYTES = 8 << 20, 24 << 20
SLAB_HALOS = 4  # slab planes per plane of the halo, up to DEEP_SLAB_BYTES
LEAST_SLAB = 8  # planes, if memory allows: thinner slabs pack their halos over and over


class Boxes(NamedTuple):
    """The boxes of a job, and how often they decode and compute a voxel."""

    partition: Partition
    redundancy: Redundancy


class Blocking(NamedTuple):
    """The division of a job into slabs or boxes.

    depth : int             output planes of a slab
    memory : MemoryUse      the peak of the process
    boxes : Boxes or None   boxes to compute in place of slabs
    """

    depth: int
    memory: MemoryUse
    boxes: Boxes | None = None


def choose_blocking(
    job: SlabJob, max_memory: int | None, box_job: Callable[[], BoxJob | None] = lambda: None
) -> Blocking:
    """The largest slabs that are useful and fit into memory, or boxes if no slab fits.

    job : SlabJob               slabs are multiples of its plan's `depth_step`
    max_memory : int or None    ceiling of the whole process in bytes; None: see `memory_ceiling`
    box_job : callable          () -> the job in boxes, or None if it cannot be computed in boxes
    Raises: MemoryLimitError if nothing fits; the message names a ceiling that would do.
    """
    plan = job.last.plan
    step, limit = plan.depth_step, memory_ceiling(max_memory)
    for depth in _slab_depths(job):
        use = job.memory(depth)
        if use.total <= limit:
            return Blocking(depth, use)
    least, needed = (
        use,
        "one plane at a time needs" if step == 1 else f"{step} planes at a time need",
    )
    boxes = box_job()
    if boxes is not None:
        partition = boxes.choose_partition(limit)
        if partition is not None:
            return Blocking(
                depth, boxes.memory(partition), Boxes(partition, boxes.redundancy(partition))
            )
        smallest = boxes.smallest_partition()
        if boxes.memory(smallest).total < least.total:
            least = boxes.memory(smallest)
            needed = f"a box of {'x'.join(map(str, smallest.block))} voxels at a time needs"
    other_cure = "" if step == 1 else f", or another --algorithm than {plan.algorithm.name}"
    error = MemoryLimitError(
        f"{needed} {format_bytes(least.total)} of memory for the whole process ({least}), the "
        f"ceiling is {format_bytes(limit)}; pass --max-memory {megabytes(least.total)} or more"
        f"{other_cure}"
    )
    error.needed = least.total
    raise error


def _slab_depths(job: SlabJob) -> Iterator[int]:
    """Slab depths to try in planes, from the largest useful one down to one step."""
    problem, step = job.last.problem, job.last.plan.depth_step

    def whole_steps(depth: int) -> int:
        return -(-depth // step) * step

    plane = max(1, problem.strides[0] * job.in_plane(len(job.convolutions) - 1) + job.out_plane)
    halo = -(-(problem.extent[0] - problem.strides[0]) // problem.strides[0])
    useful = max(SLAB_BYTES // plane, min(DEEP_SLAB_BYTES // plane, SLAB_HALOS * halo))
    depth = min(whole_steps(max(useful, LEAST_SLAB)), whole_steps(problem.out_size[0]))
    yield depth
    while depth > step:
        depth = whole_steps(-(-depth // 2))
        yield depth

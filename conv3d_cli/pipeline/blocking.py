"""How a job is cut under a ceiling of memory: slabs of whole planes, or boxes where not even one step of planes fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from conv3d_cli.errors import MemoryLimitError
from conv3d_cli.pipeline.memory import MemoryUse, SlabJob, megabytes
from conv3d_cli.system.machine import format_bytes, memory_ceiling

if TYPE_CHECKING:
    from conv3d_cli.pipeline.boxes.partition import Partition, Redundancy
    from conv3d_cli.pipeline.boxes.stream import BoxJob


# Input and output of a slab, unless the ceiling asks for less. The first ones leave less to wait for at both ends of the
# stream, and their memory stays in the caches and is used again (5^3 on a scan of 35 MB, .nii.gz to .nii.gz: 141 ms at 8 MB,
# 179 at 24; 2026-11). Those of deep kernels are larger, since each computes its halo again.
SLAB_BYTES, DEEP_SLAB_BYTES = 8 << 20, 24 << 20
SLAB_HALOS = 4  # planes of a slab for one of its halo, if DEEP_SLAB_BYTES allow
LEAST_SLAB = 8  # planes, if memory allows: below it halos are packed over and over


class Boxes(NamedTuple):
    """How a job is divided into boxes, and how often they decode and compute a voxel."""

    partition: Partition
    redundancy: Redundancy


class Blocking(NamedTuple):
    """How a job is cut: output planes computed at once, or boxes; and the memory that follows."""

    depth: int
    memory: MemoryUse
    boxes: Boxes | None = None


def choose_blocking(
    job: SlabJob, max_memory: int | None, box_job: Callable[[], BoxJob | None] = lambda: None
) -> Blocking:
    """The largest slabs that are worth while and fit: multiples of the plan's `depth_step`; where not even one step of whole
    planes fits, boxes, if the job can be done in boxes.

    max_memory : int or None    bytes of the whole process; None: see `memory_ceiling`
    Raises: MemoryLimitError if nothing fits; the message says what would.
    """
    plan = job.last.plan
    step, limit = plan.depth_step, memory_ceiling(max_memory)
    for depth in _depths(job):
        use = job.memory(depth)
        if use.total <= limit:
            return Blocking(depth, use)
    least, planes = use, "one plane" if step == 1 else f"{step} planes"
    boxes = box_job()
    if boxes is not None:
        partition = boxes.choose_partition(limit)
        if partition is not None:
            return Blocking(
                depth, boxes.memory(partition), Boxes(partition, boxes.redundancy(partition))
            )
        smallest = boxes.smallest_partition()
        if boxes.memory(smallest).total < least.total:
            least, planes = (
                boxes.memory(smallest),
                f"a box of {'x'.join(map(str, smallest.block))} voxels",
            )
    other = "" if step == 1 else f", or another --algorithm than {plan.algorithm.name}"
    raise MemoryLimitError(
        f"{planes} at a time need{'' if planes.endswith('planes') else 's'} {format_bytes(least.total)} of memory for the "
        f"whole process ({least}), the ceiling is {format_bytes(limit)}; pass --max-memory {megabytes(least.total)} or "
        f"more{other}"
    )


def _depths(job: SlabJob) -> Iterator[int]:
    """Planes of a slab, from those that are worth while down to one step."""
    problem, step = job.last.problem, job.last.plan.depth_step

    def steps(depth: int) -> int:
        return -(-depth // step) * step

    plane = max(1, problem.strides[0] * job.in_plane(len(job.convolutions) - 1) + job.out_plane)
    halo = -(-(problem.extent[0] - problem.strides[0]) // problem.strides[0])
    wish = max(SLAB_BYTES // plane, min(DEEP_SLAB_BYTES // plane, SLAB_HALOS * halo))
    depth = min(steps(max(wish, LEAST_SLAB)), steps(problem.out_size[0]))
    yield depth
    while depth > step:
        depth = steps(-(-depth // 2))
        yield depth

"""The ceiling of memory: how large the slabs or boxes of a job may be under it, and what the whole process then takes at most.

Slabs of whole planes come first. Where not even one step of them fits, and both ends of the job give and take parts of planes,
it is cut into boxes (`boxes/`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conv3d_cli.convolution.slabs import cut_slabs, most_planes
from conv3d_cli.errors import MemoryLimitError
from conv3d_cli.pipeline.stream import WRITES_BEHIND
from conv3d_cli.system.machine import format_bytes, memory_ceiling

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan
    from conv3d_cli.pipeline.boxes.partition import Partition, Redundancy
    from conv3d_cli.pipeline.boxes.stream import BoxJob

# Input and output of a slab, unless the ceiling asks for less. The first ones leave less to wait for at both ends of the
# stream, and their memory stays in the caches and is used again (5^3 on a scan of 35 MB, .nii.gz to .nii.gz: 141 ms at 8 MB,
# 179 at 24; 2026-11). Those of deep kernels are larger, since each computes its halo again.
SLAB_BYTES, DEEP_SLAB_BYTES = 8 << 20, 24 << 20
SLAB_HALOS = 4  # planes of a slab for one of its halo, if DEEP_SLAB_BYTES allow
UNLIMITED = 1 << 62  # bytes
LEAST_SLAB = 8  # planes, if memory allows: below it halos are packed over and over
# The interpreter with its libraries, before the first voxel: 89 to 99 MiB, and 209 to 221 where loops are compiled.
PROCESS_BYTES = 222 << 20
# Slabs held at once. Input: being computed, waiting, and for a stream what is being read and joined to the halo.
# Output: being computed, waiting, being written.
IN_FLIGHT_IN, IN_FLIGHT_STREAM, IN_FLIGHT_OUT = 2, 4, 1 + WRITES_BEHIND


class Boxes(NamedTuple):
    """How a job is divided into boxes, and how often they decode and compute a voxel."""

    partition: Partition
    redundancy: Redundancy


class Cut(NamedTuple):
    """How a job is cut: output planes computed at once, or boxes; and the process's peak memory that follows."""

    depth: int
    memory: int
    boxes: Boxes | None = None


class Held(NamedTuple):
    """Bytes held beside the blocks that are handed on: by a reader in runs of so many planes, and by a writer."""

    reader: Callable[[int], int] = lambda planes: 0
    writer: int = 0


ALONE = Held()


def cut_job(
    plans: list[Plan],
    in_dtype: np.dtype[Any],
    out_dtype: np.dtype[Any],
    sequential: bool,
    max_memory: int | None,
    beside: Held = ALONE,
    box_job: Callable[[], BoxJob | None] = lambda: None,
) -> Cut:
    """The largest slabs that are worth while and fit: multiples of the plan's `depth_step`; where not even one step of whole
    planes fits, boxes, if the job can be done in boxes.

    Raises: MemoryLimitError if nothing fits; the message says what would.
    """
    plan, problem = plans[-1], plans[-1].problem
    whole, height = problem.out_size[:2]
    out_row = math.prod(problem.out_size[2:]) * problem.filters * out_dtype.itemsize
    step = plan.depth_step
    limit = memory_ceiling(max_memory)

    def in_plane(stage: int) -> int:
        itemsize = in_dtype.itemsize if stage == 0 else plans[stage].dtype.itemsize
        return math.prod(plans[stage].problem.in_size[1:]) * plans[stage].problem.in_channels * itemsize

    def peak(depth: int) -> int:
        # The halo is largest at the first slab with a full set of planes; the slabs of the whole volume show it.
        planes = most_planes(problem, cut_slabs(problem, depth), sequential)
        held = IN_FLIGHT_STREAM if sequential else IN_FLIGHT_IN
        data = held * planes * in_plane(len(plans) - 1) + IN_FLIGHT_OUT * min(depth, whole) * height * out_row
        for stage in reversed(range(len(plans) - 1)):
            # a stage before the last holds its window twice while new planes join it, and the planes it computes: whole steps
            earlier = plans[stage].problem
            made = min(planes + 2 * (plans[stage].depth_step - 1), earlier.out_size[0])
            planes = min((made - 1) * earlier.strides[0] + earlier.extent[0], earlier.in_size[0])
            data += 2 * planes * in_plane(stage) + made * in_plane(stage + 1)
        data += beside.reader(planes) + beside.writer
        return PROCESS_BYTES + sum(plan.scratch_bytes for plan in plans) + data

    def steps(depth: int) -> int:
        return -(-depth // step) * step

    plane = max(1, problem.strides[0] * in_plane(len(plans) - 1) + height * out_row)
    halo = -(-(problem.extent[0] - problem.strides[0]) // problem.strides[0])
    wish = max(SLAB_BYTES // plane, min(DEEP_SLAB_BYTES // plane, SLAB_HALOS * halo))
    depth = steps(max(wish, LEAST_SLAB))
    if depth >= whole:
        depth = steps(whole)
    while depth > step and peak(depth) > limit:
        depth = steps(-(-depth // 2))
    if peak(depth) <= limit:
        return Cut(depth, peak(depth))
    least, planes = peak(step), "one plane" if step == 1 else f"{step} planes"
    boxes = box_job()
    if boxes is not None:
        partition = boxes.choose_partition(limit)
        if partition is not None:
            return Cut(depth, boxes.memory(partition), Boxes(partition, boxes.redundancy(partition)))
        smallest = boxes.smallest_partition()
        if boxes.memory(smallest) < least:
            least, planes = boxes.memory(smallest), f"a box of {'x'.join(map(str, smallest.block))} voxels"
    other = "" if step == 1 else f", or another --algorithm than {plan.algorithm.name}"
    raise MemoryLimitError(
        f"{planes} at a time need{'' if planes.endswith('planes') else 's'} {format_bytes(least)} of memory for the whole "
        f"process, the ceiling is {format_bytes(limit)}; pass --max-memory {-(-least >> 20)}M or more{other}"
    )

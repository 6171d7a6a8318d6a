"""Choose slabs of whole planes, or boxes, that keep a job under its memory ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from conv3d_cli.errors import MemoryLimitError, setting
from conv3d_cli.pipeline.memory import MemoryUse, SlabJob, megabytes, patch_job
from conv3d_cli.system.machine import format_bytes, memory_ceiling

if TYPE_CHECKING:
    from conv3d_cli.convolution.prepared import Convolution
    from conv3d_cli.pipeline.boxes.partition import Partition, Redundancy
    from conv3d_cli.pipeline.boxes.stream import BoxJob
    from conv3d_cli.pipeline.graph import PatchBody


# Bytes of a slab's input and output, if the ceiling allows. Small slabs shorten the wait at both
# ends of the stream, stay in the caches, and reuse their memory (5^3 on a scan of 35 MB, .nii.gz to
# .nii.gz: 141 ms at 8 MB, 179 ms at 24 MB; 2026-11). Deep kernels get larger slabs, since each slab
# processes its halo once more.
SLAB_BYTES, DEEP_SLAB_BYTES = 8 << 20, 24 << 20
# The same, if neither is copied, since both are arrays in memory.
IN_MEMORY_BYTES = 128 << 20
SLAB_HALOS = 4  # slab planes per plane of the halo, up to DEEP_SLAB_BYTES
# Bytes of a slab for each thread, and slabs of a volume: larger and fewer ones are read, computed
# and written one after another rather than at the same time.
THREAD_SLAB_BYTES, LEAST_SLABS = 512 << 10, 4
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
    full_memory : int       bytes at which no threads would have been left out; 0 if none were
    """

    depth: int
    memory: MemoryUse
    boxes: Boxes | None = None
    full_memory: int = 0


def choose_blocking(
    job: SlabJob, max_memory: int | None, box_job: Callable[[], BoxJob | None] = lambda: None
) -> Blocking:
    """The largest slabs that are useful and fit into memory, or boxes if no slab fits.

    Where the memory of all threads does not fit, fewer threads take part: the convolutions are
    planned for them (`Convolution.use_threads`).

    job : SlabJob               slabs are multiples of its plan's `depth_step`
    max_memory : int or None    ceiling of the whole process in bytes; None: see `memory_ceiling`
    box_job : callable          () -> the job in boxes, or None if it cannot be computed in boxes
    Raises: MemoryLimitError if nothing fits; the message names a ceiling that would do.
    """
    plan = job.last.plan
    threads, limit = plan.threads, memory_ceiling(max_memory)
    slabs = _choose_slabs(job, limit)
    if slabs is not None and slabs.threads == threads:
        return Blocking(slabs.depth, job.memory(slabs.depth))
    job.use_threads(threads)
    boxes = box_job()
    if boxes is not None:
        partition = boxes.choose_partition(limit)
        while partition is None and slabs is None and plan.threads > 1:
            job.use_threads(plan.threads // 2)
            partition = boxes.choose_partition(limit)
        if partition is not None:
            repeated = boxes.redundancy(partition)
            speed = min(plan.threads, job.last.tasks_for(partition.block)) / max(repeated)
            if slabs is None or speed >= slabs.speed:
                use = boxes.memory(partition)
                full = _with_threads(job, threads, lambda: boxes.memory(partition).total)
                found = Boxes(partition, repeated)
                return Blocking(plan.depth_step, use, found, full if plan.threads < threads else 0)
    if slabs is not None:
        full = _with_threads(job, threads, lambda: job.memory(slabs.depth).total)
        job.use_threads(slabs.threads)
        return Blocking(slabs.depth, job.memory(slabs.depth), full_memory=full)
    job.use_threads(1)
    step = plan.depth_step
    least = job.memory(step)
    needed = "one plane at a time needs" if step == 1 else f"{step} planes at a time need"
    if boxes is not None:
        smallest = boxes.smallest_partition()
        if boxes.memory(smallest).total < least.total:
            least = boxes.memory(smallest)
            needed = f"a box of {'x'.join(map(str, smallest.block))} voxels at a time needs"
    other_cure = "" if step == 1 else f", or another algorithm than {plan.algorithm.name}"
    error = MemoryLimitError(
        f"{needed} {format_bytes(least.total)} of memory for the whole process ({least}), the "
        f"ceiling is {format_bytes(limit)}; pass {setting('max_memory', megabytes(least.total))} "
        f"or more{other_cure}"
    )
    error.needed = least.total
    raise error


def fit_patches(job: SlabJob, body: PatchBody, limit: int) -> None:
    """Choose the slabs of a patch, and whether rows of patches wait in files, for a ceiling.

    job : SlabJob       of the volume
    limit : int         bytes of the whole process
    The largest useful slabs are chosen with which the rest of the job fits, first in memory.
    """
    step = job.last.plan.depth_step
    depths = list(_slab_depths(patch_job(body)))
    for body.on_disk in (False, True):
        for body.plan.slab_depth, together in depths:
            body.graph.compute_together(together)
            if job.memory(step).total <= limit:
                return


class _Slabs(NamedTuple):
    """Slabs that fit into memory.

    together : int      see `Graph.compute_together`
    threads : int       that fit, too
    speed : float       threads at work, times the share of their work that is not done again in
                        the next slab
    """

    depth: int
    together: int
    threads: int
    speed: float


def _choose_slabs(job: SlabJob, limit: int) -> _Slabs | None:
    """The largest useful slabs at which all threads fit; else those with the most speed.

    Returns None if no slab fits with one thread.
    """
    problem, threads = job.last.problem, job.last.plan.threads
    halo = max(0, problem.extent[0] - problem.strides[0]) / problem.strides[0]
    best: _Slabs | None = None
    for depth, together in _slab_depths(job):
        job.graph.compute_together(together)
        fitting = _threads_that_fit(job, depth, limit)
        if fitting:
            job.use_threads(fitting)
            working = min(fitting, job.last.tasks_for((depth, *problem.out_size[1:])))
            speed = working * depth / (depth + halo)
            if best is None or speed > best.speed:
                best = _Slabs(depth, together, fitting, speed)
            job.use_threads(threads)
        if fitting == threads:
            break
    if best is not None:
        job.graph.compute_together(best.together)
        job.use_threads(best.threads)
    return best


def _threads_that_fit(job: SlabJob, depth: int, limit: int) -> int:
    """The most threads, up to those planned for, whose memory fits with slabs of `depth` planes."""
    threads = job.last.plan.threads
    if job.memory(depth).total <= limit:
        return threads
    fits, too_many = 0, threads
    while too_many - fits > 1:
        between = (fits + too_many) // 2
        if _with_threads(job, between, lambda: job.memory(depth).total) <= limit:
            fits = between
        else:
            too_many = between
    return fits


def _with_threads(job: SlabJob, threads: int, find: Callable[[], int]) -> int:
    """What a function finds while the job is planned for a number of threads."""
    planned = job.last.plan.threads
    job.use_threads(threads)
    found = find()
    job.use_threads(planned)
    return found


def _slab_depths(job: SlabJob) -> Iterator[tuple[int, int]]:
    """Slab depths to try in planes, from the largest useful one down to one step.

    Yields each with the planes that operations may compute at once.
    """
    problem, step = job.last.problem, job.last.plan.depth_step

    def whole_steps(depth: int) -> int:
        return -(-depth // step) * step

    plane = max(1, problem.strides[0] * job.in_plane + job.out_plane)
    if job.written is not None:  # nothing else holds its output
        plane = job.volume_plane + job.out_plane
    # of the deepest kernel: those before the last one process halos in the same slabs
    halo = max(
        -(-(one.problem.extent[0] - one.problem.strides[0]) // one.problem.strides[0])
        for one in job.graph.convolutions
    )
    most = IN_MEMORY_BYTES if job.in_memory else SLAB_BYTES
    useful = max(most // plane, min(DEEP_SLAB_BYTES // plane, SLAB_HALOS * halo))
    together = job.graph.most_together
    if job.written is not None:  # what it computes for several planes at once, it repeats for fewer
        useful = max(useful, job.written.step)
    whole = whole_steps(problem.out_size[0])
    depth = min(whole_steps(max(useful, LEAST_SLAB)), whole)
    depth = _depth_for_all_threads(job.last, depth, whole, plane)
    yield depth, together
    while depth > step or together > 1:
        depth, together = whole_steps(-(-depth // 2)), -(-together // 2)
        yield depth, together


def _depth_for_all_threads(last: Convolution, depth: int, whole: int, plane_bytes: int) -> int:
    """The slab depth, increased until all threads have tasks.

    Each thread gets TASKS_PER_THREAD, if the volume has so many. Where that takes large slabs, of
    which a volume has few, it is enough that no more time is lost than so many tasks lose at worst.

    plane_bytes : int       bytes of input and output for an output plane
    """
    from conv3d_cli.engine.division import TASKS_PER_THREAD  # imports Numba

    threads, step, plane = last.plan.threads, last.plan.depth_step, last.problem.out_size[1:]
    increment = max(step, depth // 2 // step * step)
    while depth < whole and threads > 1:
        tasks = last.tasks_for((depth, *plane))
        if tasks >= TASKS_PER_THREAD * threads:
            break
        deeper = min(depth + increment, whole)
        is_large = deeper * plane_bytes > THREAD_SLAB_BYTES * threads
        if (
            is_large
            and deeper * LEAST_SLABS > whole
            and tasks >= threads
            and last.sharing((depth, *plane)).idle <= 1 / (TASKS_PER_THREAD + 1)
        ):
            break
        depth = deeper
    return depth

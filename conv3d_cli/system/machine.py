"""CPUs and memory that this process may use, and what the C library does with freed memory.

CPUs are limited by affinity and cgroup quotas, memory by cgroups. Standard library only.
"""

from __future__ import annotations

import numbers
import os
import re
from functools import lru_cache
from pathlib import Path

from conv3d_cli.errors import SpecError
from conv3d_cli.system.portable import machine_memory

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
# The default memory ceiling as a fraction of the usable memory; the page cache needs some, too.
MOST_THREADS = 4096  # more than any machine has CPUs
MEMORY_SHARE = 0.8


def usable_cpus() -> int:
    """The number of CPUs that this process may use, at least 1.

    It is the size of the affinity mask, capped by a cgroup quota (containers, batch systems).
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    quota = _cgroup_quota(CGROUP, OWN_GROUPS)
    return max(1, min(count, quota)) if quota else max(1, count)


def usable_memory() -> int:
    """Bytes of memory that this process may use: those of the machine, capped by a cgroup limit."""
    total = machine_memory() or 4 << 30  # unknown system: assume a small one
    limit = _cgroup_memory(CGROUP, OWN_GROUPS)
    return min(total, limit) if limit else total


def memory_ceiling(requested: int | None) -> int:
    """Bytes for the whole process: as requested, else `MEMORY_SHARE` of `usable_memory`.

    >>> memory_ceiling(500 << 20) >> 20
    500
    """
    return int(usable_memory() * MEMORY_SHARE) if requested is None else requested


@lru_cache(maxsize=1)
def _cgroup_quota(root: Path, own: Path) -> int | None:
    """CPUs that the quotas of this process's control groups allow, rounded up; None without one."""
    quotas = []
    for folder in _cgroups(root, own, "cpu"):
        text = _read(folder / "cpu.max")  # version 2: "max 100000" or "150000 100000"
        if text:
            quota, _, period = text.partition(" ")
        else:
            quota = _read(folder / "cpu.cfs_quota_us") or "max"
            period = _read(folder / "cpu.cfs_period_us") or "100000"
        if quota.isdigit() and int(quota) > 0 and period.strip().isdigit() and int(period) > 0:
            quotas.append(-(-int(quota) // int(period)))
    return min(quotas, default=None)


@lru_cache(maxsize=1)
def _cgroup_memory(root: Path, own: Path) -> int | None:
    """Bytes that this process's control groups allow; None if unlimited."""
    texts = [
        _read(folder / name)
        for folder in _cgroups(root, own, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return min((int(text) for text in texts if text and text.isdigit()), default=None)


def _cgroups(root: Path, own: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of its ancestors, whose limits apply as well.

    own : file of lines "number:controllers:/path". Controllers are empty in version 2; version 1
        has a hierarchy for each
    """
    folders = {root, root / controller}
    for line in (_read(own) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        inner = top / path.strip("/")
        folders.update([inner, *(parent for parent in inner.parents if parent.is_relative_to(top))])
    return sorted(folders)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None


def thread_count(requested: int | None) -> int:
    """Threads to use: as requested, else CONV3D_THREADS, else OMP_NUM_THREADS, else all CPUs.

    Raises: SpecError if the first of these that is set is not a whole number from 1 to
    `MOST_THREADS`.
    >>> thread_count(3)
    3
    """
    if requested is not None:
        whole = isinstance(requested, numbers.Integral) and not isinstance(requested, bool)
        if not whole or not 1 <= requested <= MOST_THREADS:
            raise SpecError(
                f"threads must be a whole number from 1 to {MOST_THREADS}, received {requested!r}"
            )
        return int(requested)
    for variable in ("CONV3D_THREADS", "OMP_NUM_THREADS"):
        # OpenMP allows one number for each nesting level
        text = os.environ.get(variable, "").strip().split(",")[0]
        if text:
            if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
                raise SpecError(
                    f"{variable} must be a whole number from 1 to {MOST_THREADS}, received '{text}'"
                )
            return int(text)
    return usable_cpus()


# Parameters of glibc's mallopt; other C libraries have none, so the functions below do nothing.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def give_back_at_once(size: int) -> None:
    """Make the C library return freed blocks of at least `size` bytes to the system at once."""
    _call_libc("mallopt", M_MMAP_THRESHOLD, size)


def keep_freed_memory() -> None:
    """Make the C library keep freed blocks of up to 32 MB for reuse.

    It keeps at most about 100 MB for each thread. Dask starts its workers with such a low
    MALLOC_TRIM_THRESHOLD_ that the memory of every chunk returns to the system, which zeroes it
    again for the next chunk.
    """
    _call_libc("mallopt", M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
    _call_libc("mallopt", M_TRIM_THRESHOLD, 128 << 20)


def give_back_memory() -> None:
    """Make the C library return to the system the freed memory that it keeps."""
    _call_libc("malloc_trim", 0)


def _call_libc(name: str, *arguments: int) -> None:
    """Call a function of the C library, if it has one of this name."""
    try:
        import ctypes

        getattr(ctypes.CDLL(None), name)(*arguments)
    except (ImportError, OSError, AttributeError, TypeError):
        pass  # not glibc


def byte_size(text: str) -> int:
    """Parse `500M`, `2G`, `1.5GiB`, `1048576`, ... into bytes; units are powers of 1024.

    Raises: SpecError for any other text.
    >>> byte_size("2G"), byte_size("512MiB"), byte_size("1.5k")
    (2147483648, 536870912, 1536)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if not match:
        raise SpecError(
            f"a memory size is a number with K, M, G or T, such as 500M or 2G, received '{text}'"
        )
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


def format_bytes(count: float) -> str:
    """A number of bytes as text with a unit, for people.

    >>> format_bytes(512), format_bytes(3 << 20)
    ('512 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

"""What this process may use: CPUs (affinity and cgroup quota) and memory (cgroup limit). Standard library only."""

from __future__ import annotations

import numbers
import os
import re
from functools import lru_cache
from pathlib import Path

from conv3d_cli.errors import SpecError

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMORY_SHARE = 0.8  # of what this process may use: the default ceiling, since files also pass through the page cache


def usable_cpus() -> int:
    """CPUs this process may use: its affinity mask, capped by a cgroup quota (containers, batch systems), at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    quota = _cgroup_quota(CGROUP, OWN_GROUPS)
    return max(1, min(count, quota)) if quota else max(1, count)


def usable_memory() -> int:
    """Bytes of memory this process may use: the machine's, capped by a cgroup limit."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        total = 4 << 30  # unknown system: assume a small one
    limit = _cgroup_memory(CGROUP, OWN_GROUPS)
    return min(total, limit) if limit else total


def memory_ceiling(wish: int | None) -> int:
    """Bytes for the whole process: the wish, else `MEMORY_SHARE` of `usable_memory`.

    >>> memory_ceiling(500 << 20) >> 20
    500
    """
    return int(usable_memory() * MEMORY_SHARE) if wish is None else wish


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
    """Bytes that this process's control groups allow; None without a limit."""
    texts = [
        _read(folder / name)
        for folder in _cgroups(root, own, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return min((int(text) for text in texts if text and text.isdigit()), default=None)


def _cgroups(root: Path, own: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of those around it, whose limits hold for it, too.

    own : a list of "number:controllers:/path"; version 2 has no controllers there, version 1 a hierarchy for each
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


def thread_count(wish: int | None) -> int:
    """Threads to use: the wish, else CONV3D_THREADS, else OMP_NUM_THREADS, else all usable CPUs.

    Raises: SpecError if one of them is not a whole number of at least 1.
    >>> thread_count(3)
    3
    """
    if wish is not None:
        if not isinstance(wish, numbers.Integral) or isinstance(wish, bool) or wish < 1:
            raise SpecError(f"threads must be a whole number of at least 1, received {wish!r}")
        return int(wish)
    for variable in ("CONV3D_THREADS", "OMP_NUM_THREADS"):
        # OMP allows one number per nesting level
        text = os.environ.get(variable, "").strip().split(",")[0]
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise SpecError(
                    f"{variable} must be a whole number of at least 1, received '{text}'"
                )
            return int(text)
    return usable_cpus()


# What glibc does with memory that is freed; other C libraries do as they like.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def give_back_at_once(size: int) -> None:
    """Have memory of at least `size` bytes go back to the system as soon as it is free."""
    _call_libc("mallopt", M_MMAP_THRESHOLD, size)


def keep_freed_memory() -> None:
    """Have the C library keep what chunks of up to 32 MB leave, for the next: some 100 MB a thread at most.

    Dask starts its workers with MALLOC_TRIM_THRESHOLD_ so low that every chunk's memory goes back to the system and is zeroed
    when the next one needs it.
    """
    _call_libc("mallopt", M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
    _call_libc("mallopt", M_TRIM_THRESHOLD, 128 << 20)


def give_back_memory() -> None:
    """Have the C library return to the system what it kept."""
    _call_libc("malloc_trim", 0)


def _call_libc(name: str, *arguments: int) -> None:
    try:
        import ctypes

        getattr(ctypes.CDLL(None), name)(*arguments)
    except (ImportError, OSError, AttributeError, TypeError):
        pass  # another system


def byte_size(text: str) -> int:
    """Parse a size such as `500M`, `2G`, `1.5GiB` or `1048576` into bytes (powers of 1024).

    Raises: SpecError.
    >>> byte_size("2G"), byte_size("512MiB"), byte_size("1.5k")
    (2147483648, 536870912, 1536)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if not match:
        raise SpecError(
            f"a memory size is a number with K, M, G or T, received '{text}'; for example 500M or 2G"
        )
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


def format_bytes(count: float) -> str:
    """A size for people.

    >>> format_bytes(512), format_bytes(3 << 20)
    ('512 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

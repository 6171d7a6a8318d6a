"""What predicted times are multiplied by, for each class of CPUs: made by `conv3d bench --calibrate`, and pasted.

An algorithm's `seconds` counts flops and bytes at rates of its own; a factor makes them comparable on a kind of CPU. Nothing is
timed while a job runs, so the choice of an algorithm depends on the problem, the weights and the CPU class alone.
"""

from __future__ import annotations

FACTORS: dict[str, dict[str, float]] = {
    "avx512": {"separable": 1.15},
}


def factor(cpu_class: str, algorithm: str) -> float:
    """The factor of an algorithm's predicted time: 1 where none was measured.

    >>> factor("a CPU to come", "direct")
    1.0
    """
    return FACTORS.get(cpu_class, {}).get(algorithm, 1.0)


# What one thread of such a CPU reaches at most: flops a second, and bytes read and written a second; see `conv3d bench`.
LIMITS: dict[str, tuple[float, float]] = {
    "avx512": (115e9, 42e9),  # Zen 4, 2026-11: FMAs of 512 bits go in two halves
}


def limit_seconds(cpu_class: str, flops: float, moved: float, threads: int) -> tuple[float, str] | None:
    """The least time of so many flops and bytes, and what binds ("arithmetic" or "memory"); None for a CPU not measured.

    >>> limit_seconds("avx512", 115e9, 21e9, 1)
    (1.0, 'arithmetic')
    """
    if cpu_class not in LIMITS:
        return None
    rate, bandwidth = LIMITS[cpu_class]
    return max((flops / rate / threads, "arithmetic"), (moved / bandwidth / threads, "memory"))

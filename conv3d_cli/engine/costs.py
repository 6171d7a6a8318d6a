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

"""The convolution engine. Numba is known to `loops/` alone, LLVM to the two modules that load compiled loops.

A plan is made for a problem and its weights (`make_plan`), then run over slabs (`Plan.convolve_slab`).

To add an algorithm, write its loops in `loops/` and a module with an `ALGORITHM` (see `tile.Algorithm`) in
`algorithms/`, and give it its place in `plan.ALGORITHMS`; tests/engine/test_every_algorithm.py then runs over it.
To add a class of CPUs, add a row to `cpu.CPU_CLASSES`. To pass the loops another number or array, add a field to a
group in `step.py`.
"""

from conv3d_cli.engine.machine_code import cache_folder, refused_folders
from conv3d_cli.engine.plan import ALGORITHMS, Plan, find_algorithm, make_plan
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.warm import warm_up

__all__ = [
    "ALGORITHMS",
    "Plan",
    "Team",
    "cache_folder",
    "find_algorithm",
    "make_plan",
    "refused_folders",
    "warm_up",
]

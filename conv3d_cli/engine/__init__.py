"""The convolution engine. Only `loops/` uses Numba; `machine_code` and `cpu` also use llvmlite.

`make_plan` chooses an algorithm for a problem and its weights; `Plan.convolve_slab` runs it.

- To add an algorithm, write its loops in `loops/` and a module with an `ALGORITHM` (see
  `tile.Algorithm`) in `algorithms/`, and insert it into `plan.ALGORITHMS`.
  tests/engine/test_every_algorithm.py then tests it.
- To add a class of CPUs, add a row to `cpu.CPU_CLASSES`.
- To pass another number or array to the loops, add a field to a group in `step.py`.
"""

from conv3d_cli.engine.machine_code import cache_folder, refused_folders
from conv3d_cli.engine.plan import ALGORITHMS, Plan, find_algorithm, make_plan
from conv3d_cli.engine.team import Team, kept_team
from conv3d_cli.engine.warm import warm_up

__all__ = [
    "ALGORITHMS",
    "Plan",
    "Team",
    "cache_folder",
    "find_algorithm",
    "kept_team",
    "make_plan",
    "refused_folders",
    "warm_up",
]

"""The convolution engine: the only place that knows Numba.

A plan is made for a problem and its weights (`make_plan`), then run over slabs (`Plan.convolve_slab`). To add an
algorithm, write a module with an `ALGORITHM` (see `tile.Algorithm`) and give it its place in `plan.ALGORITHMS`;
tests/engine/test_every_algorithm.py then runs over it.
"""

from conv3d_cli.engine.jit import CACHE_FOLDER
from conv3d_cli.engine.plan import ALGORITHMS, Plan, find_algorithm, make_plan
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.warm import warm_up

__all__ = ["ALGORITHMS", "CACHE_FOLDER", "Plan", "Team", "find_algorithm", "make_plan", "warm_up"]

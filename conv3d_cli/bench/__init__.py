"""Benchmarks (`conv3d bench`): the engine against the machine's limits and against other libraries.

`limits.py` measures the machine, `cases.py` lists the convolutions, `peers.py` the other libraries,
`run.py` times them in turn, `report.py` and `plot.py` present the figures. `problems.py` draws
random problems, `choices.py` times every algorithm on them and judges the planner's choices, and
`fitting.py` fits its predictions.
"""

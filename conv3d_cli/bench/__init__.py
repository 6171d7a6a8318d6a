"""The engine measured: against the machine's limits, and beside other libraries in the same run (`conv3d bench`).

`limits.py` measures what the machine can do, `cases.py` lists the convolutions, `peers.py` the other libraries, `run.py` times
them in turn, `report.py` and `plot.py` show the figures, `calibrate.py` fits the planner's constants.
"""

"""The loops that Numba compiles: the only place that imports it.

A module here is imported when one of its loops must be compiled, and not where the object code is already on disk. A factory
takes constants (names of dtypes, sizes) and returns a function of one step record (`engine/step.py`), which
`engine/machine_code.py` compiles and keeps.
"""

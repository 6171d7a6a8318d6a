"""The loops that Numba compiles; no other part of the package imports Numba.

A module is imported only when one of its loops must be compiled, not when the object code is on
disk. A factory takes constants (names of dtypes, sizes) and returns a function of one step record
(`engine/step.py`), which `engine/machine_code.py` compiles and caches.
"""

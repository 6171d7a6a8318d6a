"""The nouns: grids, volumes, kernels and the specification of a convolution.

These modules import NumPy only; they open no files and use no Numba.
"""

"""The nouns: grids, volumes, kernels, and the specification of a convolution. NumPy only, no files, no Numba."""

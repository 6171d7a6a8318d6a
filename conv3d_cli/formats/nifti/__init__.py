"""NIfTI: what its header means, its grid, and the format itself."""

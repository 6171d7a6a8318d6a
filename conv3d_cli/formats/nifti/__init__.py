"""NIfTI: header, grid, CIFTI files, and the format itself."""

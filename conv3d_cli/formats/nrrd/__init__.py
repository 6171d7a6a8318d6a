"""NRRD, attached and detached: header, axes, grid, and the format itself."""

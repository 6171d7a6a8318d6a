"""NRRD, attached and detached: its header, axes and places, and the format itself."""

"""OME-Zarr: stores, metadata, resolution levels, and the format itself."""

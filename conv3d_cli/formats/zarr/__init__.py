"""OME-Zarr: stores, metadata, pyramids, and the format itself."""

"""The same job on many machines: the output of a Zarr store cut into tasks, computed by the workers of a Dask cluster."""

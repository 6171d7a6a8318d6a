"""One job on many machines: the workers of a Dask cluster each compute parts of a Zarr output."""

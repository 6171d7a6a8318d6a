"""One volume from file to file: the request, the plan, and the stream of slabs or boxes."""

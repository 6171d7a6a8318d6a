"""One volume from file to file: what is asked for, what is decided, and the stream of slabs or boxes."""

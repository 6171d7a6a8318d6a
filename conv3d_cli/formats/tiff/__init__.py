"""TIFF in its dialects (ImageJ, OME, tifffile's own, plain): directories, pages, metadata, and the format itself."""

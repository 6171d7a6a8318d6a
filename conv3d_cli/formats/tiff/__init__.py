"""TIFF of ImageJ, OME, tifffile or none: directories, pages, metadata, and the format itself."""

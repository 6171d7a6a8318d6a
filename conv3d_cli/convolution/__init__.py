"""One convolution ready to run on slabs: plain, or with masks and missing voxels."""

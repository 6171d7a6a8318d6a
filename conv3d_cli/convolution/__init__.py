"""One convolution made ready for its voxels: plain, or with masks and missing voxels."""

"""The functions for Python: `conv3d()` for arrays and volumes, `convolve_file()` for files."""

"""Convolve volumes: the package behind the `conv3d` command."""

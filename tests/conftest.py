"""Fixtures that every test may use: a seeded generator and a private cache folder for compiled loops."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest

# Before anything imports Numba: tests compile into a folder of their own, kept between runs of the suite.
os.environ.setdefault("CONV3D_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"conv3d-test-cache-{os.getuid()}"))

# `make test` runs them inside make, which would have a make that a test runs take over its options and print its folders.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)

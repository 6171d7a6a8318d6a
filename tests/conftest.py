"""Fixtures that every test may use: a seeded generator and a private cache folder for compiled loops."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest

# Before anything imports Numba: tests compile into a folder of their own, kept between runs of the suite.
os.environ.setdefault("CONV3D_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"conv3d-test-cache-{os.getuid()}"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)

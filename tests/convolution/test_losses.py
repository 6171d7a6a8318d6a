"""What stored voxels lose on their way into an operation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from conv3d_cli.convolution.losses import Rounding


@pytest.mark.parametrize("stored", [">f8", "float32", "uint32"])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_a_scale_that_leaves_the_range_makes_infinities_quietly(stored: str, real: str) -> None:
    """NumPy's own warning would be printed among the messages."""
    block = np.array([0, 2, 4e9], stored)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = Rounding().values(block, (1e300, 1.0), np.dtype(real))
    assert values.dtype == real
    expected = [1.0, 2e300 if real == "float64" else np.inf, np.inf]
    np.testing.assert_array_equal(values, expected)

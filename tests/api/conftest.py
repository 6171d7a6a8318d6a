"""Fixtures for tests of the Python functions."""

from __future__ import annotations

import pytest

from conv3d_cli.api import arrays


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of earlier calls is kept."""
    monkeypatch.setattr(arrays, "_calls", arrays.KeptCalls())
    monkeypatch.setattr(arrays, "_plans", arrays.KeptPlans())

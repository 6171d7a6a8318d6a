"""A job names all loops that it calls before its first slab, so they are compiled side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d
from conv3d_cli.engine import machine_code
from conv3d_cli.engine.machine_code import MachineCode

GAUSSIAN = np.exp(-0.5 * (np.arange(-3, 4) / 1.5) ** 2)
BLUR = np.einsum("i,j,k->ijk", GAUSSIAN, GAUSSIAN, GAUSSIAN)
COUNTS = np.random.default_rng(0).integers(0, 1000, (20, 40, 44)).astype(np.int16)
HOLES = np.where(COUNTS < 50, np.nan, COUNTS).astype(np.float32)
INSIDE = np.zeros(COUNTS.shape, np.uint8)
INSIDE[4:15, 7:33, 9:36] = 1
REGIONS = INSIDE * (1 + (np.arange(44) > 20)).astype(np.uint8)
GRADES = INSIDE * np.linspace(0.1, 1, 44, dtype=np.float32)

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bytes": {"x": COUNTS.astype(np.uint8)},
    "booleans": {"x": COUNTS > 500},
    "big-endian": {"x": COUNTS.astype(">i2")},
    "double": {"x": COUNTS.astype(np.float64)},
    "mask": {"mask": INSIDE},
    "mask of grades": {"mask": GRADES},
    "mask, extended": {"mask": INSIDE, "mask_mode": "extend"},
    "mask, kept": {"mask": INSIDE, "mask_mode": "keep"},
    "mask and a missing value": {"mask": INSIDE, "missing": 7},
    "mask and NaN": {"x": HOLES, "mask": INSIDE, "nan": "ignore"},
    "labels": {"mask": REGIONS, "mask_labels": True},
    "labels, kept": {"mask": REGIONS, "mask_labels": True, "mask_mode": "keep"},
    "a missing value": {"missing": 7},
    "edges": {"boundary": "renormalize"},
    "edges of a mask": {"boundary": "renormalize", "mask": INSIDE},
    "an activation of slabs": {"activation": "softmax"},
    "an activation in tiles": {"activation": "relu"},
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """The keys of the loops that were called, or whose addresses were read."""
    keys: set[Any] = set()
    address, call = MachineCode.address, MachineCode.__call__

    def read(self: MachineCode) -> int:
        keys.add(self.key)
        return address.fget(self)  # type: ignore[attr-defined, no-any-return]

    def run(self: MachineCode, step: Any) -> None:
        keys.add(self.key)
        call(self, step)

    monkeypatch.setattr(MachineCode, "address", property(read))
    monkeypatch.setattr(MachineCode, "__call__", run)
    return keys


@pytest.mark.parametrize("case", CASES)
def test_all_loops_are_named_before_the_first_slab(
    case: str, used: set[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[set[Any]] = []
    load = machine_code.load

    def record(codes: Any) -> None:
        named.append({code.key for code in codes})
        assert used == set() or len(named) > 1
        load(codes)

    monkeypatch.setattr(machine_code, "load", record)
    settings = {"x": COUNTS, "boundary": "nearest", **CASES[case]}
    kernel = BLUR * 2.0 ** list(CASES).index(case)  # one of its own, whose plan was not kept
    conv3d(kernel=kernel, padding="same", **settings)
    assert used == named[0]

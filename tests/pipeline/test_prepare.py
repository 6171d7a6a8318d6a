"""What is settled before the first voxel: each setting is parsed once, and the convolution put together in one place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d
from conv3d_cli.convolution import assemble
from conv3d_cli.model import spec as spec_module
from conv3d_cli.model.spec import Boundary, ConvSpec

OPTIONS = ("--boundary", "mirror", "--padding", "1,2,1", "--strides", "2", "-k", "box:size=3")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often text is parsed, and a specification made and resolved."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str, first: int = 0, texts: bool = False) -> None:
        function = getattr(owner, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            if not texts or isinstance(arguments[first], str):
                counted[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(owner, name, counting)

    count(Boundary, "parse", texts=True)
    count(spec_module, "parse_padding", texts=True)
    count(ConvSpec, "__init__")
    count(ConvSpec, "resolve")
    count(assemble, "_plan")
    return counted


def test_apply_parses_a_setting_once(run: Any, tmp_path: Path, calls: Counter[str]) -> None:
    np.save(tmp_path / "x.npy", np.arange(7.0 * 8 * 9, dtype=np.float32).reshape(7, 8, 9))
    asked = ["apply", str(tmp_path / "x.npy"), *OPTIONS, "-o", str(tmp_path / "y.npy")]
    run(*asked)
    assert calls == {"parse": 1, "parse_padding": 1, "__init__": 1, "resolve": 1, "_plan": 1}


def test_a_layer_with_its_own_defaults_is_parsed_once(
    run: Any, tmp_path: Path, calls: Counter[str]
) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 5, 6, 2), np.float32))
    np.save(tmp_path / "k.npy", np.ones((3, 3, 3, 2, 4)))
    asked = ["apply", str(tmp_path / "x.npy"), "--axes", "zyxc", "-k", str(tmp_path / "k.npy")]
    run(*asked, "--boundary", "nearest", "-o", tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").shape == (2, 3, 4, 4)  # valid
    assert calls["parse"] == calls["resolve"] == calls["_plan"] == 1


def test_arrays_go_the_same_way(calls: Counter[str]) -> None:
    conv3d(np.ones((5, 5, 5)), np.ones((3, 3, 3)), padding="same", boundary="mirror")
    assert calls == {"parse": 1, "parse_padding": 1, "__init__": 1, "resolve": 1, "_plan": 1}

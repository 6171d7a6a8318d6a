"""The coefficients of `engine/costs.py`. Printed by `conv3d bench --fit`."""

COEFFICIENTS: dict[str, tuple[float, ...]] = {}

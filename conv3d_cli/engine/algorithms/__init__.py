"""The algorithms, one file each. `engine/plan.py` holds them in order; their compiled loops are in `engine/loops`."""

"""The algorithms, one module each. `engine.plan` lists them; their loops are in `engine/loops/`."""

"""Trained networks: a graph of operations, the operations themselves, and readers of graphs.

A reader of files makes a `Network` (`graph.py`) of `Node`s and knows nothing else. Each operation
is a class in `operations/`, and a line in its table. `pipeline/lowering.py` makes a job of a graph.
"""

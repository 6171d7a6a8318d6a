"""Provenance: record how an output was made, in its header and in a sidecar, and repeat the run.

`command.py` writes the command to type again, `inputs.py` lists the files that it reads,
`record.py` writes and reads sidecars, `run.py` runs a job so that its sidecar appears together with
its output, `rerun.py` compares a repeated run with its record, and `bids.py` writes BIDS derivative
datasets.
"""

"""Provenance: what an output was made of and how, written beside it and into it, and runs repeated from that.

`command.py` has the command as it could be typed again, `inputs.py` the files that it read, `record.py` the sidecar, `run.py` a
run whose sidecar appears with its output, `rerun.py` the same run once more.
"""

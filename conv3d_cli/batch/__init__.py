"""Batches of volumes: finding volumes, naming outputs, manifests, running, resuming, make rules."""

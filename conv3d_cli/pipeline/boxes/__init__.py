"""Boxes of a job's output, each computed on its own: how they are cut, and what they read."""

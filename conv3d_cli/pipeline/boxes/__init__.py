"""Boxes of a job's output, computed one by one: their partition, input and stream."""

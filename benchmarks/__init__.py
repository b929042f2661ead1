"""Measurements: `python -m benchmarks.NAME` prints numbers, or writes the tables of a page in docs/."""

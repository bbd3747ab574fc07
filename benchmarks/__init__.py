"""Measured comparisons. Each is a ratio within one run, and prints the command that repeats it."""

"""Completions drawn from a model."""

"""Weights, tokenizers and adapters."""

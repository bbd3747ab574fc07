"""Randomness as a pure function of what it is for: no generator is shared, nothing has to be saved."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose, for instance ``derive(seed, "order", epoch)``."""
    text = "\x1f".join([str(seed), *(str(key) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """A NumPy generator seeded by :func:`derive`."""
    return np.random.Generator(np.random.Philox(derive(seed, *keys)))

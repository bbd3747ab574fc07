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


def uniform(seed: int, what: str, *numbers: np.ndarray) -> np.ndarray:
    """Many draws from [0, 1) at once, each a pure function of (seed, what, its numbers), which are broadcast.

    What is drawn for a sentence then depends on no order and no process. SplitMix64's output function (Steele et al. 2014), once
    per array of numbers.
    """
    mixed = np.asarray(derive(seed, what), np.uint64)
    for number in numbers:
        mixed = mixed + (np.asarray(number, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)) * 2.0**-53

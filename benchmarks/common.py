"""Timing that a busy machine disturbs little: the two sides alternate, and the fastest of several runs counts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Seconds of each side: the smallest of ``rounds`` runs, after one that does not count."""
    best = [float("inf"), float("inf")]
    for i in range(rounds + 1):
        for side, act in enumerate((first, second)):
            started = time.perf_counter()
            act()
            if i:
                best[side] = min(best[side], time.perf_counter() - started)
    return best[0], best[1]


def llama(width: int = 512, layers: int = 6, vocabulary: int = 32000) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, max_position_embeddings=4096))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine() -> str:
    """What this ran on."""
    return f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}"


def geometric_mean(values: Sequence[float]) -> float:
    """Exp of the mean logarithm."""
    return float(np.exp(np.mean(np.log(values))))

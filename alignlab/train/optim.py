"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step: the formulas of transformers' schedulers of the same names, and no state.

    Args:
        name: one of ``constant``, ``constant_with_warmup``, ``linear``, ``cosine``.
        lr: peak learning rate.
        warmup_steps: steps of linear warm-up.
        steps: optimizer steps in all; linear and cosine reach 0 there.
    """

    name: str
    lr: float
    warmup_steps: int
    steps: int

    def at(self, step: int) -> float:
        """Learning rate of the step with this number, from 0."""
        if self.name == "constant":
            return self.lr
        if step < self.warmup_steps:
            return self.lr * step / max(1, self.warmup_steps)
        if self.name == "constant_with_warmup":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.name == "linear":
            return self.lr * max(0.0, 1.0 - progress)
        return self.lr * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def warmup(steps: float, total: int) -> int:
    """Steps of warm-up: as given, or below 1 a share of all steps, rounded up as transformers does."""
    return math.ceil(steps * total) if steps < 1 else int(steps)


def adamw(
    parameters: Iterable[torch.nn.Parameter], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, decay: str
) -> torch.optim.AdamW:
    """PyTorch's AdamW over the trained parameters; with ``decay=matrices``, biases and the weights of norms do not decay."""
    every = list(parameters)
    groups = [{"params": [p for p in every if p.ndim > 1 or decay == "all"], "weight_decay": weight_decay}]
    groups.append({"params": [p for p in every if p.ndim <= 1 and decay != "all"], "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps)

"""Whether a model is the one it was made from: how near two models' predictions are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Agreement:
    """How near two models' predictions are, over all positions of some token sequences."""

    max_logit_difference: float
    """largest absolute difference of a logit"""
    max_total_variation: float
    """largest total variation of next-token probabilities, in [0, 1]"""
    p95_total_variation: float
    """what it exceeds at 5 % of the positions"""
    top1_agreement: float
    """share of positions at which both think the same token likeliest"""


@torch.no_grad()
def predictions(model: Any, sequences: Iterable[Sequence[int]]) -> list[torch.Tensor]:
    """Logits after every token, [T, V] for each sequence of T tokens, as fp32 (fp64 where the model has it) on the CPU."""
    found = (model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0] for ids in sequences)
    return [(logits if logits.dtype == torch.float64 else logits.float()).cpu() for logits in found]


def agreement(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> Agreement:
    """Compare two models' :func:`predictions` on the same sequences; one that is not a number makes the figures so too."""
    logits, variation, same = [], [], []
    for a, b in zip(ours, theirs, strict=True):
        logits.append(torch.where(a == b, 0.0, (a - b).abs()).max())  # no difference where both rule a token out
        variation.append((a.softmax(-1) - b.softmax(-1)).abs().sum(-1) / 2)
        same.append(a.argmax(-1) == b.argmax(-1))
    moved, share = torch.cat(variation), torch.cat(same).double().mean()
    return Agreement(float(torch.stack(logits).max()), float(moved.max()), float(moved.quantile(0.95)), float(share))

"""What can be measured on a model while it trains: losses of chosen edges, angles between gradients, neighbours of a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from alignlab.engine.batch import Batch, collate
from alignlab.engine.scorer import Scorer
from alignlab.engine.shards import gathered, whole
from alignlab.protocols import Array, Loss, Row
from alignlab.trees import chunks, within

TOKENS = 4096
"""rows of an embedding that are looked at at a time"""


@torch.no_grad()
def mean_losses(
    scorer: Scorer, rows: Sequence[Row], groups: Callable[[Row], Mapping[str, Array]], capacity: int
) -> dict[str, float]:
    """Mean of -log p over the edges of each group, in nats; groups without edges are left out.

    Args:
        scorer: the model.
        rows: whose edges are scored.
        groups: name -> which of a row's edges belong to it, [E] booleans.
        capacity: nodes that are computed at a time.
    """
    sums: dict[str, list[float]] = {}
    for piece in _pieces(rows, capacity):
        logp = scorer(collate(piece).to(scorer.device)).double().cpu()
        for row, own in zip(piece, logp.split([len(row.source) for row in piece]), strict=True):
            for name, chosen in groups(row).items():
                cell = sums.setdefault(name, [0.0, 0.0])
                cell[0] -= float(own[torch.from_numpy(np.asarray(chosen, bool))].sum())
                cell[1] += float(np.sum(chosen))
    return {name: total / count for name, (total, count) in sums.items() if count}


def gradient(scorer: Scorer, rows: Sequence[Row], loss: Callable[[Tensor, Batch], Loss], capacity: int) -> list[Tensor]:
    """Gradient of the summed loss of some rows with regard to each trained parameter; nothing is added to ``.grad``.

    ``capacity`` nodes are computed at a time.
    """
    learning = [p for p in scorer.parameters() if p.requires_grad]
    total: list[Tensor | None] = [None] * len(learning)
    before = [p.grad for p in learning]
    for piece in _pieces(rows, capacity):
        for p in learning:
            p.grad = None
        batch = collate(piece).to(scorer.device)
        loss(scorer(batch), batch).total.backward()  # sharded weights have their gradients there and nowhere else
        total = [p.grad if one is None else one if p.grad is None else one + p.grad for one, p in zip(total, learning, strict=True)]
    for p, grad in zip(learning, before, strict=True):
        p.grad = grad
    return [whole(torch.zeros_like(p) if one is None else one) for one, p in zip(total, learning, strict=True)]


def _pieces(rows: Sequence[Row], capacity: int) -> Iterator[list[Row]]:
    """The rows in parts that are computed together."""
    return (piece for part in chunks(rows, capacity) for piece in within(part, capacity))


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Cosine of the angle between two vectors that lie in pieces; 0 where one of them is 0."""
    dot, aa, bb = (
        sum(float((x.double() * y.double()).sum()) for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b))
    )
    return dot / (aa * bb) ** 0.5 if aa and bb else 0.0


@torch.no_grad()
def likeness(scorer: Scorer, token: int, others: Sequence[int], count: int) -> tuple[float, float, list[tuple[int, float]]]:
    """How near the input embedding of a token is to those of others.

    Args:
        scorer: the model.
        token: id of the token.
        others: ids whose mean embedding is compared.
        count: how many neighbours.

    Returns:
        Cosine to the mean of the others; the mean cosine of all other tokens to it; the nearest tokens with their cosines, nearest
        first.
    """
    embedding = scorer.base.get_input_embeddings()
    device, height = scorer.device, scorer.config.vocab_size

    def rows(ids: Sequence[int] | range) -> Tensor:
        with gathered(scorer):
            return embedding(torch.tensor(list(ids), device=device)).float()

    own, mean = rows([token])[0], rows(others).mean(0)
    near, likest = list[Tensor](), list[Tensor]()
    for first in range(0, height, TOKENS):
        some = torch.nn.functional.normalize(rows(range(first, min(height, first + TOKENS))), dim=-1)
        near.append(some @ torch.nn.functional.normalize(own, dim=0))
        likest.append(some @ torch.nn.functional.normalize(mean, dim=0))
    similar, to_mean = torch.cat(near), torch.cat(likest)
    apart = torch.arange(height, device=device) != token
    similar[token] = -torch.inf
    best = islice(similar.argsort(descending=True, stable=True).tolist(), count)
    return float(to_mean[token]), float(to_mean[apart].mean()), [(i, float(similar[i])) for i in best]

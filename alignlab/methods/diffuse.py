"""Diffuse: make a model's answers follow a given distribution (Zhang et al. 2024, arXiv 2404.10859)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alignlab.config import at_least, one_of
from alignlab.errors import UserError
from alignlab.protocols import Loss, MethodDefaults, Row
from alignlab.records import Record, TargetSet
from alignlab.text import TextCodec
from alignlab.trees import prune, trie

if TYPE_CHECKING:
    import torch

    from alignlab.engine.batch import Batch


@dataclass(frozen=True)
class Diffuse(MethodDefaults):
    """Cross-entropy from the target distribution to the model's, over the weighted trie of a prompt's targets (Eq. 5).

    The loss of a prompt is - sum of weight x log p(target | prompt); its floor is the entropy of the weights. A row is a prompt,
    its mass 1.
    """

    early_stop: bool
    gamma: float
    prefixes: str

    accepts: ClassVar[tuple[type[Record], ...]] = (TargetSet,)

    def __post_init__(self) -> None:
        at_least("gamma", self.gamma, 0)
        one_of("prefixes", self.prefixes, ("draw", "average"))

    def rows(self, records: Iterable[Record], text: TextCodec, seed: int) -> Iterator[Row]:
        """A row per prompt, with every (target, response prefix) in its trie.

        Columns: ``weight`` of an edge; ``choice``, on the edge that ends target t with prefix k of K, t * K + k, else -1;
        ``prefixes``, K; on the edge that ends a target, its share of ``entropy``, that of the weights, and of ``floor``, the least
        that the loss can be: entropy + ln K, since a model cannot know which prefix is drawn.
        """
        for group, record in enumerate(records):
            assert isinstance(record, TargetSet)
            yield _row(record, text, group, record.responses)

    def parts(self, record: Record, text: TextCodec) -> Iterator[Row]:
        """A row per response prefix; none for a prompt without targets."""
        assert isinstance(record, TargetSet)
        text.encode(record)
        for prefix in record.responses if record.targets else ():
            yield _row(record, text, 0, (prefix,))

    def vary(self, row: Row, random: np.random.Generator) -> Row:
        """Draw one prefix for each target, as ``search.py`` of the authors does at each pass."""
        count = int(row.columns["prefixes"][0])
        if count == 1 or self.prefixes == "average":
            return row
        choice = row.columns["choice"]
        ends = np.flatnonzero(choice >= 0)
        drawn = random.integers(0, count, int(choice.max()) // count + 1)
        chosen = ends[choice[ends] % count == drawn[choice[ends] // count]]
        share = np.zeros(len(choice))
        share[chosen] = row.columns["weight"][chosen] * count
        kept = np.zeros(len(choice))
        kept[chosen] = count
        weight = _sum_over_descendants(row, share)
        columns = {**row.columns, "weight": weight, **{name: row.columns[name] * kept for name in ("entropy", "floor")}}
        return prune(replace(row, columns=columns), weight > 0)

    def loss(self, logp: torch.Tensor, batch: Batch) -> Loss:
        """Minus the weighted sum; ``kl`` is what is above the floor."""
        weight = batch.columns["weight"].to(logp.dtype)
        entropy, floor = (batch.columns[name].sum() for name in ("entropy", "floor"))
        total = -(weight * logp).sum()
        above = total.detach().double() - floor
        return Loss(total, {"entropy": (entropy, batch.mass), "floor": (floor, batch.mass), "kl": (above, batch.mass)})

    def finished(self, epoch: Mapping[str, float]) -> bool:
        """Whether the pass's loss is within a factor (1 + gamma) of the entropy of the weights."""
        return self.early_stop and epoch["loss"] <= epoch["entropy"] * (1 + self.gamma)


def _row(record: TargetSet, text: TextCodec, group: int, prefixes: tuple[str, ...]) -> Row:
    encoded = text.encode(replace(record, responses=prefixes))
    count = len(prefixes)
    try:
        tree = trie(encoded.prompt, [answer for variants in encoded.answers for answer in variants])
    except ValueError:
        raise UserError(
            f"{record.name}:targets: the tokens of one target begin those of another, or two response prefixes make the same text, "
            "so nothing tells them apart.\nSet eos to true, or change the targets."
        ) from None
    weights = np.repeat(np.array(record.weights), count) / count
    choice = np.full(len(tree.source), -1, np.int64)
    choice[tree.leaf] = np.arange(len(weights))
    target_weight = np.repeat(np.array(record.weights), count)
    entropy, floor = np.zeros(len(tree.source)), np.zeros(len(tree.source))
    entropy[tree.leaf] = -weights * np.log(np.where(target_weight > 0, target_weight, 1.0))
    floor[tree.leaf] = entropy[tree.leaf] + weights * np.log(count)
    columns = {
        "weight": tree.weigh(weights),
        "entropy": entropy,
        "floor": floor,
        "choice": choice,
        "prefixes": np.full(len(choice), count, np.int64),
    }
    return Row(group, 1.0, tree.tokens, tree.parent, tree.source, tree.target, columns, splittable=True)


def _sum_over_descendants(row: Row, share: np.ndarray) -> np.ndarray:
    """For each edge, the sum of ``share`` over the edges at or below it, [E]."""
    below = np.bincount(row.source, share, len(row.tokens))  # at each node, of the edges that leave it
    for node in range(len(row.tokens) - 1, 0, -1):
        if row.parent[node] >= 0:
            below[row.parent[node]] += below[node]
    child = {(int(p), int(t)): n for n, (p, t) in enumerate(zip(row.parent, row.tokens, strict=True))}
    under = [child.get((int(s), int(t))) for s, t in zip(row.source, row.target, strict=True)]
    return share + np.array([0.0 if node is None else below[node] for node in under])

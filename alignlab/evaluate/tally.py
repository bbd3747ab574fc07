"""What is counted of the completions under one condition, and the figures that are made of the counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.control import Attribute, attribute_of
from alignlab.evaluate.diversity import distinct
from alignlab.evaluate.statistics import Ratios
from alignlab.protocols import Value

NONE = "none"
"""the condition that asks for nothing"""

Labels = Mapping[str, Mapping[str, tuple[str, float]]]
"""sentence -> attribute -> label, and the score behind it"""

MOST_SENTENCES = 500
"""sentences of a condition that details.json holds; the counts that every figure is made of are all there"""


def title(labels: Sequence[str]) -> str:
    """What a condition is called."""
    return "+".join(labels) or NONE


@dataclass(frozen=True)
class Completion:
    """A completion, and the sentences that are scored of it."""

    conditions: tuple[str, ...]
    prompt: str
    number: int
    text: str
    sentences: list[str]


def by_condition(completions: Sequence[Completion]) -> dict[str, list[Completion]]:
    """The completions under each condition, in order."""
    found: dict[str, list[Completion]] = {}
    for completion in completions:
        found.setdefault(title(completion.conditions), []).append(completion)
    return found


class Tally:
    """What is counted of the completions under one condition, by cluster: by prompt, or by completion where there is one prompt."""

    def __init__(self, completions: Sequence[Completion], labels: Labels, attributes: Mapping[str, Attribute]) -> None:
        self._labels, self._attributes = labels, attributes
        self._condition = completions[0].conditions
        self._owners = {attribute_of(label, attributes): label for label in self._condition}
        alone = len({completion.prompt for completion in completions}) == 1
        self.clusters: dict[str, list[Completion]] = {}
        for completion in completions:
            self.clusters.setdefault(str(completion.number) if alone else completion.prompt, []).append(completion)
        counts = [self._counts(found) for found in self.clusters.values()]
        self.counts = {name: np.array([count[name] for count in counts], float) for name in counts[0]}
        """name -> [clusters]"""

    def _counts(self, completions: Sequence[Completion]) -> dict[str, int]:
        """Of one cluster: completions, empty ones, sentences, and those that are not as they should be."""
        sentences = [{n: label for n, (label, _) in self._labels[s].items()} for c in completions for s in c.sentences]
        unwanted = [[labels[n] != attribute.wanted for n, attribute in self._attributes.items()] for labels in sentences]
        counts = {
            "completions": len(completions),
            "empty": sum(not completion.text.strip() for completion in completions),
            "sentences": len(sentences),
        }
        for i, attribute in enumerate(self._attributes.values()):
            counts[f"misalignment_{attribute.title}"] = sum(wrong[i] for wrong in unwanted)
        counts["misalignment_joint"] = sum(map(any, unwanted))
        if self._owners:
            counts["contradiction"] = sum(any(labels[n] != label for n, label in self._owners.items()) for labels in sentences)
        return counts

    def metrics(self, name: str, none: Tally | None, ratios: Ratios) -> dict[str, Value]:
        """The figures of the condition; effects where there are completions under ``none``."""
        counts = self.counts
        shares = [key for key in counts if key not in ("completions", "empty", "sentences")]
        found = {key: ratios.of("prompts", counts[key], counts["sentences"]) for key in shares}
        if none is not None:
            shared = [key for key in self.clusters if key in none.clusters]
            here, there = ([list(tally.clusters).index(key) for key in shared] for tally in (self, none))
            for key in shares:
                if key in none.counts and shared:
                    pairs = [(t.counts[key][at], t.counts["sentences"][at]) for t, at in ((self, here), (none, there))]
                    found[key.replace("misalignment", "effect")] = ratios.difference("prompts", *pairs)
        for n in (1, 2, 3):
            found[f"distinct_{n}"] = distinct([[c.text for c in cluster] for cluster in self.clusters.values()], n)
        found["sentences"] = ratios.of("prompts", counts["sentences"], counts["completions"], math.inf)
        found["empty"] = ratios.of("prompts", counts["empty"], counts["completions"])
        return {f"{key}:{name}": value for key, value in found.items() if value is not None}

    def details(self) -> dict[str, Any]:
        """Counts by cluster, and the first sentences with their labels and scores."""
        sentences = [
            {
                "prompt": completion.prompt,
                "sample": completion.number,
                "sentence": sentence,
                "labels": {name: label for name, (label, _) in self._labels[sentence].items()},
                "scores": {name: score for name, (_, score) in self._labels[sentence].items()},
            }
            for cluster in self.clusters.values()
            for completion in cluster
            for sentence in completion.sentences
        ]
        return {
            "labels": list(self._condition),
            "clusters": list(self.clusters),
            "counts": {name: counts.astype(int).tolist() for name, counts in self.counts.items()},
            "sentences": sentences[:MOST_SENTENCES],
        }

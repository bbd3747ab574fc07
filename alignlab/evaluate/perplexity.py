"""Perplexity of sentences, of the same tokens whatever stands in front of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alignlab.evaluate.statistics import Ratios
from alignlab.protocols import Row, Value
from alignlab.records import Labelled
from alignlab.text import TextCodec
from alignlab.trees import chains, chunks

if TYPE_CHECKING:
    from alignlab.engine.scorer import Scorer

MOST = 700.0
"""nats per token that are told apart: a broken model's perplexity shall be a number"""

Front = Callable[[Labelled], Sequence[str]]
"""control tokens that stand in front of a sentence"""


def perplexities(
    records: Iterable[Labelled], fronts: Mapping[str, Front], scorer: Scorer, text: TextCodec, capacity: int, ratios: Ratios
) -> tuple[dict[str, Value], int]:
    """Exponential of the mean negative log-probability of a token of the text, under each of several fronts.

    A line is what the tokenizer itself puts in front, the control tokens, the text. Scored are the tokens of the text that have
    something before them even without control tokens: all, or all but the first where the tokenizer puts nothing in front. Control
    tokens and the end of the text never are. Intervals are over records, with the same resamples for every front.

    Returns:
        Perplexity by front, of the records that can be scored under all of them; and how many are longer than the model's context.
    """
    too_long = 0

    def rows() -> Iterator[Row]:
        nonlocal too_long
        for record in records:
            context, scored = list(text.start), text.texts([record.text])[0]
            first = [] if context else scored[:1]
            scored = scored[len(first) :]
            heads = [[*context, *text.ids(front(record)), *first] for front in fronts.values()]
            if max(map(len, heads)) + len(scored) - 1 > text.context:  # the last token is predicted, not read
                too_long += 1
            elif scored:
                yield Row(0, 1.0, *chains([(head, scored) for head in heads]))

    sums, counts = nats(rows(), len(fronts), scorer, capacity)
    found = {}
    for name, column in zip(fronts, sums, strict=True):
        nll = ratios.of("perplexity", column, counts, math.inf)
        if nll is not None:
            value, low, high = (math.exp(min(nats, MOST)) for nats in (nll.value, nll.low, nll.high))
            found[name] = Value(value, low, high, nll.n)
    return found, too_long


def nats(rows: Iterable[Row], fronts: int, scorer: Scorer, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each record under each front, [fronts, records], and its scored tokens, [records].

    Args:
        rows: one per record; the edges of all fronts behind each other, as many of each.
        fronts: how many there are.
        scorer: the model.
        capacity: nodes at a time.
    """
    from alignlab.engine.scorer import edge_logprobs_of

    sums, counts = list[list[float]](), list[float]()
    for chunk in chunks(rows, capacity):
        for logp in edge_logprobs_of(scorer, chunk, capacity):
            parts = np.split(-logp.double().cpu().numpy(), fronts)
            sums.append([math.fsum(part) for part in parts])
            counts.append(float(len(parts[0])))
    return np.array(sums).reshape(-1, fronts).T, np.array(counts)

"""Which tokens of a judged response a model takes for wrong: token by token, without and with the judgment.

A token is detected where p(token | instruction, judgment, tokens before it) / p(token | instruction, tokens before it) is
above a threshold (Xu et al. 2024, arXiv 2312.14591, Eq. 5).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignlab.errors import UserError

if TYPE_CHECKING:
    from alignlab.records import Judged

THRESHOLDS = (
    *(1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.7, 1.85),
    *(2.0, 2.15, 2.3, 2.5, 2.7, 3.0, 3.2, 3.5, 3.8, 4.1, 4.5, 5.0),
)
"""ratios to try, ascending: as even in the logarithm as round numbers are"""

WITHOUT, WITH = 1, 2
"""the ``role`` of a token whose context lacks the judgment, and of the same token where the context has it"""


@dataclass(frozen=True)
class Inspected:
    """One judged response, token by token; T tokens."""

    name: str
    instruction: str
    judgment: str
    pieces: Sequence[str]
    """text of each token, [T]; together the response"""
    plain: Sequence[float]
    """log p without the judgment in nats, [T]"""
    judged: Sequence[float]
    """log p with it in nats, [T]"""
    gold: Sequence[int]
    """1 wrong, 0 not, [T]; empty where nobody knows"""

    def __post_init__(self) -> None:
        lengths = len(self.plain), len(self.judged), len(self.gold) or len(self.pieces)
        if set(lengths) != {len(self.pieces)}:
            raise ValueError(f"{self.name}: {len(self.pieces)} tokens, but {lengths} values (plain, judged, gold)")


class Quality(NamedTuple):
    """How well the detected tokens are the wrong ones."""

    precision: float
    """share of the detected tokens that are wrong; where none is detected 0, or 1 if none is wrong"""
    recall: float
    """share of the wrong tokens that are detected; 1 where none is wrong"""
    f1: float
    """2 hits / (detected + wrong); 1 where none is detected and none is wrong"""


def log_ratios(item: Inspected) -> list[float]:
    """Log of p(with the judgment) / p(without) in nats, [T]; not a number where both are 0."""
    return [judged - plain for plain, judged in zip(item.plain, item.judged, strict=True)]


def detected(item: Inspected, threshold: float) -> list[bool]:
    """Whether each token's ratio is above the threshold, [T]; a ratio of exactly the threshold is not.

    Args:
        item: the response.
        threshold: a ratio of probabilities, above 0; ValueError otherwise.
    """
    limit = math.log(threshold)
    return [ratio > limit for ratio in log_ratios(item)]


def levels(item: Inspected, thresholds: Sequence[float]) -> list[int]:
    """How many of the ascending thresholds each token's ratio is above, [T]: detected at thresholds[i] means level > i."""
    limits = [math.log(threshold) for threshold in thresholds]
    return [bisect_left(limits, ratio) for ratio in log_ratios(item)]


def with_gold(items: Iterable[Inspected]) -> list[Inspected]:
    """The responses of which somebody knows what is wrong."""
    return [item for item in items if item.gold]


def precision_recall_f1(items: Sequence[Inspected], threshold: float) -> Quality:
    """Over all tokens of all responses with known gold together; ValueError where there are none."""
    return curve(items, [threshold])[0]


def curve(items: Sequence[Inspected], thresholds: Sequence[float]) -> list[Quality]:
    """``precision_recall_f1`` at each threshold, [thresholds]."""
    known = with_gold(items)
    if not known:
        raise ValueError("no response has gold tokens: precision and recall have no meaning")
    ratios = np.array([ratio for item in known for ratio in log_ratios(item)])
    wrong = np.array([bool(flag) for item in known for flag in item.gold])
    total, found = int(wrong.sum()), []
    for threshold in thresholds:
        marked = ratios > math.log(threshold)
        count, hits = int(marked.sum()), int((marked & wrong).sum())
        found.append(
            Quality(
                precision=hits / count if count else float(not total),
                recall=hits / total if total else 1.0,
                f1=2 * hits / (count + total) if count + total else 1.0,
            )
        )
    return found


def from_scores(lines: Iterable[Mapping[str, Any]], records: Mapping[int, Judged]) -> dict[str, list[Inspected]]:
    """The judged responses in a run's ``scores.jsonl``, for each model in the order of the lines.

    Args:
        lines: of ``scores.jsonl``, written with ``score.tokens=true``. Lines without a token of role ``WITH`` (satisfactory
            responses, which are read in one context) are passed over. Where a token's ``gold`` is missing or negative, nobody
            knows that response's wrong tokens.
        records: index of a line -> what was judged.

    Returns:
        ``before`` and ``after``, as far as scored.

    Raises:
        UserError: lines hold no tokens, are of other data than the records, or their two contexts hold different tokens.
    """
    found: dict[str, list[Inspected]] = {}
    for line in lines:
        index = line["index"]
        if "tokens" not in line:
            raise UserError("scores.jsonl: no tokens in it. Run the score stage again with score.tokens=true.")
        plain, judged = ([token for token in line["tokens"] if token.get("role") == role] for role in (WITHOUT, WITH))
        if not judged:
            continue
        if index not in records:
            raise UserError(f"scores.jsonl: index {index} is not in the data. Run the score stage again on this data.")
        if [token["token"] for token in plain] != [token["token"] for token in judged]:
            raise UserError(f"scores.jsonl: index {index}: the tokens of its two contexts differ. Run the score stage again.")
        record, gold = records[index], [int(token.get("gold", -1)) for token in plain]
        found.setdefault(line["model"], []).append(
            Inspected(
                name=record.name,
                instruction=record.instruction,
                judgment=record.judgment or "",
                pieces=_pieces(plain),
                plain=[token["logp"] for token in plain],
                judged=[token["logp"] for token in judged],
                gold=gold if min(gold) >= 0 else [],
            )
        )
    return found


def _pieces(tokens: Sequence[Mapping[str, Any]]) -> list[str]:
    """Text of each token: what it adds to the text before it, since a token decoded alone may lose its leading space.

    A token that adds nothing whole, such as the first bytes of a letter, and the last one are decoded alone.
    """
    texts = [token["after"].rstrip("\ufffd") for token in tokens]  # of a letter begun, a decoder shows U+FFFD
    added = [after[len(before) :] if after.startswith(before) else "" for before, after in pairwise(texts)]
    return [piece or token["text"] for piece, token in zip([*added, ""], tokens, strict=True)]

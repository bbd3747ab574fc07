"""Detection of wrong tokens, exactly, and the lines of a run that it is read from."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.errors import UserError
from alignlab.evaluate.detection import (
    THRESHOLDS,
    Inspected,
    Quality,
    curve,
    detected,
    from_scores,
    levels,
    precision_recall_f1,
)
from alignlab.records import Judged

INF = math.inf


def item(ratios, gold=(), name="r") -> Inspected:
    """A response whose tokens have these ratios; exactly, since p with the judgment is 1."""
    pieces = [f" t{i}" for i in range(len(ratios))]
    return Inspected(name, "Do it.", "It is wrong.", pieces, [-math.log(r) for r in ratios], [0.0] * len(ratios), gold)


def test_a_ratio_of_exactly_the_threshold_is_not_detected():
    for threshold in THRESHOLDS:
        above, below = math.nextafter(math.log(threshold), INF), math.nextafter(math.log(threshold), -INF)
        exact = Inspected("r", "", "", ["a", "b", "c"], [0.0] * 3, [above, math.log(threshold), below], [1, 0, 0])
        assert detected(exact, threshold) == [True, False, False]
        assert precision_recall_f1([exact], threshold) == (1, 1, 1)


def test_impossible_tokens_have_a_verdict_too():
    response = Inspected("r", "", "", ["a", "b", "c"], [-INF, -INF, -1.0], [-INF, -1.0, -INF], [])
    assert detected(response, 1.2) == [False, True, False]
    assert levels(response, THRESHOLDS) == [0, len(THRESHOLDS), 0]


def test_a_threshold_is_positive():
    with pytest.raises(ValueError, match="domain|positive"):
        detected(item([1.0]), 0)


@pytest.mark.parametrize(
    ("ratios", "gold", "expected"),
    [
        ([2, 2, 1, 1], [1, 0, 1, 0], (1 / 2, 1 / 2, 1 / 2)),
        ([2, 2, 2, 1], [1, 0, 0, 0], (1 / 3, 1, 1 / 2)),
        ([2, 1, 1, 1], [1, 1, 1, 0], (1, 1 / 3, 1 / 2)),
        ([1, 1], [1, 0], (0, 0, 0)),  # none detected
        ([2, 1], [0, 0], (0, 1, 0)),  # none wrong
        ([1, 1], [0, 0], (1, 1, 1)),  # neither
    ],
)
def test_precision_recall_and_f1(ratios, gold, expected):
    assert precision_recall_f1([item(ratios, gold)], 1.5) == pytest.approx(expected)


def test_tokens_count_over_all_responses_with_known_gold():
    items = [item([2, 2], [1, 0]), item([2, 2, 2]), item([1, 2], [1, 1])]
    assert precision_recall_f1(items, 1.5) == Quality(2 / 3, 2 / 3, 2 / 3)
    with pytest.raises(ValueError, match="gold"):
        precision_recall_f1(items[1:2], 1.5)


def test_as_many_values_as_tokens():
    with pytest.raises(ValueError, match="r: 2 tokens"):
        Inspected("r", "", "", ["a", "b"], [0.0, 0.0], [0.0, 0.0], [1])


tokens = st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0), st.integers(0, 1)), min_size=1, max_size=30)


@given(tokens)
def test_recall_falls_with_the_threshold_and_agrees_with_the_marks(values):
    plain, judged, gold = zip(*values, strict=True)
    response = Inspected("r", "", "", ["x"] * len(gold), plain, judged, gold)
    qualities = curve([response], THRESHOLDS)
    assert all(before.recall >= after.recall for before, after in pairwise(qualities))
    found = levels(response, THRESHOLDS)
    for i, (threshold, quality) in enumerate(zip(THRESHOLDS, qualities, strict=True)):
        marks = detected(response, threshold)
        assert marks == [level > i for level in found]
        hits = sum(mark and wrong for mark, wrong in zip(marks, gold, strict=True))
        assert quality.precision == (hits / sum(marks) if any(marks) else float(not any(gold)))
        assert quality.recall == (hits / sum(gold) if any(gold) else 1)


def test_the_thresholds_to_try():
    assert list(THRESHOLDS) == sorted(set(THRESHOLDS))
    assert {1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0} <= set(THRESHOLDS)


# --- the lines of a run ----------------------------------------------------------------------------------------------


def line(afters, texts, gold=None, index=0, model="before", ids=None) -> dict:
    found = []
    for role in (1, 2):
        for t, (after, text) in enumerate(zip(afters, texts, strict=True)):
            shown = after if role == 1 else f"another prompt{after}"
            token = {"context": role - 1, "after": shown, "token": t, "text": text, "logp": -role - t / 8, "role": role}
            found.append(token | ({"gold": gold[t]} if gold else {}))
    for place, number in (ids or {}).items():
        found[place]["token"] = number
    return {"index": index, "part": 0, "model": model, "loss": 1.0, "mass": 1.0, "edges": len(found), "tokens": found}


def record(name, judgment="No.") -> Judged:
    return Judged(name, "Ask.", "A response.", judgment, None, None, None, None, "task", "set", False)


def test_responses_from_the_lines_of_a_run():
    lines = [
        line(["", "The", "The cat"], ["The", "cat", "</s>"], [0, 1, 0]),
        {"index": 1, "model": "before", "tokens": [{"role": 0, "logp": -1.0, "context": 0, "token": 1, "after": "", "text": "x"}]},
        line(["", "A"], ["A", "</s>"], [0, -1], index=2),
        line(["", "The", "The cat"], ["The", "cat", "</s>"], model="after"),
    ]
    found = from_scores(lines, {0: record("a"), 1: record("b", None), 2: record("c")})
    assert {model: [i.name for i in items] for model, items in found.items()} == {"before": ["a", "c"], "after": ["a"]}
    first = found["before"][0]
    assert first == Inspected("a", "Ask.", "No.", ["The", " cat", "</s>"], [-1.0, -1.125, -1.25], [-2.0, -2.125, -2.25], [0, 1, 0])
    assert found["before"][1].gold == found["after"][0].gold == []


@pytest.mark.parametrize(
    ("afters", "texts", "pieces"),
    [
        (["", "a\ufffd", "aé", "aéb"], ["a\ufffd", "\ufffd", "b", "</s>"], ["a", "é", "b", "</s>"]),  # a letter of two tokens
        (["", "", "x"], ["<s>", "x", "."], ["<s>", "x", "."]),  # special tokens that a decoder leaves out
        (["", "do", "don't"], ["do", " n't", "."], ["do", "n't", "."]),
        (["", "a b", "a,"], ["a b", " ,", "."], ["a b", " ,", "."]),  # spaces that a decoder cleans up
    ],
)
def test_a_piece_is_what_a_token_adds(afters, texts, pieces):
    assert from_scores([line(afters, texts)], {0: record("a")})["before"][0].pieces == pieces


def test_lines_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"score\.tokens=true"):
        from_scores([{"index": 0, "part": 0, "model": "before", "loss": 1.0}], {0: record("a")})
    with pytest.raises(UserError, match="index 7 is not in the data"):
        from_scores([line(["", "a"], ["a", "b"], index=7)], {0: record("a")})
    with pytest.raises(UserError, match="index 0: the tokens"):
        from_scores([line(["", "a"], ["a", "b"], ids={3: 9})], {0: record("a")})

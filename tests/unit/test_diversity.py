"""Distinct-n: by hand, and an interval that holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.evaluate.diversity import distinct, unigram_diversity
from alignlab.protocols import Value


def test_distinct_n_by_hand():
    texts = [["a B a b"], ["b a", "c"]]  # a b, b a, a b | b a
    assert distinct(texts, 1).value == 3 / 7
    assert distinct(texts, 2).value == 2 / 4
    assert distinct(texts, 3).value == 1.0  # a b a, b a b: no n-gram goes over the end of a text
    assert distinct(texts, 5) is None
    assert distinct([], 1) is None
    assert unigram_diversity(["a B a", "b c"]).value == 3 / 5
    assert unigram_diversity(["same same"] * 5).value == 0.1
    assert unigram_diversity(["", " "]).value == 0.0


def test_the_interval_is_that_of_the_jackknife():
    texts = [["a b"], ["a c d"], ["a"]]
    without = np.array([3 / 4, 2 / 3, 4 / 5])  # distinct words over words of the other two
    error = 1.96 * np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    found = distinct(texts, 1)
    assert found.value == 4 / 6
    assert (found.low, found.high) == (pytest.approx(4 / 6 - error), pytest.approx(4 / 6 + error))
    assert distinct(texts[:1], 1) == Value(1.0, 1.0, 1.0, 1)  # of one cluster nothing is known


def test_the_interval_holds_what_fresh_texts_have():
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, 2001)
    share /= share.sum()

    def drawn() -> list[list[str]]:
        return [[" ".join(map(str, words))] for words in random.choice(2000, (60, 15), p=share)]

    truth = np.mean([distinct(drawn(), 1).value for _ in range(150)])
    found = [distinct(drawn(), 1) for _ in range(80)]
    assert np.mean([value.low <= truth <= value.high for value in found]) >= 0.9
    assert np.mean([value.high - value.low for value in found]) < 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.text("ab ", max_size=8), max_size=3), max_size=5), st.integers(1, 3))
def test_a_share_lies_in_its_interval(clusters, n):
    found = distinct(clusters, n)
    if found is not None:
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.n == len(clusters)

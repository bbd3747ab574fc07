"""Statistics against numbers worked out by hand, and against each other."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.evaluate.statistics import (
    chi_square_tail,
    entropy,
    exact_metrics,
    goodness_of_fit,
    interval,
    sampled_metrics,
    unigram_diversity,
)


def test_exact_metrics_by_hand():
    # the model gives the targets 0.5, 0.25 and 0.05; 0.2 goes elsewhere
    found = exact_metrics(np.array([0.25, 0.25, 0.5]), np.log([0.5, 0.25, 0.05]))
    assert found["mass"].value == pytest.approx(0.8)
    assert found["kl"].value == pytest.approx(0.25 * math.log(0.5) + 0.5 * math.log(10))
    assert found["total_variation"].value == pytest.approx(0.5 * (0.25 + 0 + 0.45 + 0.2))
    share = [0.625, 0.3125, 0.0625]
    assert found["entropy"].value == pytest.approx(-sum(p * math.log(p) for p in share))
    assert found["kl"].n == 3


def test_exact_metrics_survive_probabilities_that_underflow():
    found = exact_metrics(np.array([0.5, 0.5]), np.array([-2000.0, -1.0]))
    assert found["kl"].value == pytest.approx(math.log(0.5) + 1000.5)
    assert math.isfinite(found["entropy"].value)
    assert math.isfinite(found["total_variation"].value)


def test_a_target_of_no_weight_costs_nothing_but_counts_as_mass():
    found = exact_metrics(np.array([1.0, 0.0]), np.log([0.5, 0.5]))
    assert found["kl"].value == pytest.approx(math.log(2))
    assert found["mass"].value == pytest.approx(1.0)
    assert found["total_variation"].value == pytest.approx(0.5)


def test_sampled_metrics_by_hand():
    texts = ["{1}"] * 50 + ["{2}"] * 25 + ["{3}"] * 20 + ["no"] * 5
    found, errors = sampled_metrics(texts, frozenset({"{1}", "{2}", "{3}", "{4}"}), 500, 0, "p")
    shares = np.array([0.5, 0.25, 0.2, 0.05])
    assert found["sampled_entropy"].value == pytest.approx(-np.sum(shares * np.log(shares)))
    assert found["coverage"].value == 4
    assert found["valid"].value == pytest.approx(0.95)
    assert found["valid"].low == pytest.approx(0.95 - 1.96 * math.sqrt(0.95 * 0.05 / 100), abs=0.015)
    for value in found.values():
        assert value.low <= value.value <= value.high
        assert value.n == 100
    assert errors["valid"].shape == (500,)


def test_the_interval_of_the_entropy_covers_the_truth_as_often_as_it_says():
    random, truth, hits = np.random.default_rng(0), math.log(6), 0
    for trial in range(150):
        texts = [str(i) for i in random.integers(0, 6, 300)]
        found, _ = sampled_metrics(texts, frozenset(), 200, trial, "p")
        hits += found["sampled_entropy"].low <= truth <= found["sampled_entropy"].high
    assert hits / 150 > 0.85


def test_interval_is_the_basic_bootstrap():
    value = interval("entropy", 10.0, np.linspace(-1.0, 3.0, 1001), 7)
    assert value.low == pytest.approx(10 - 2.9, abs=1e-6)
    assert value.high == pytest.approx(10 + 0.9, abs=1e-6)
    assert interval("valid", 0.99, np.linspace(-0.05, 0.01, 1001), 7).high == 1.0
    assert interval("coverage", 0.5, np.linspace(-1, 1.0, 1001), 7).low == 0.0


def test_entropy_of_counts():
    assert entropy(np.array([1, 1, 2, 0])) == pytest.approx(1.5 * math.log(2))


def test_the_tail_of_chi_square():
    assert chi_square_tail(3.841458820694124, 1) == pytest.approx(0.05, abs=1e-12)
    assert chi_square_tail(18.307038053275146, 10) == pytest.approx(0.05, abs=1e-12)
    assert chi_square_tail(7.0, 2) == pytest.approx(math.exp(-3.5), abs=1e-12)
    assert chi_square_tail(0.0, 0) == 1.0


def test_fit_by_pearson_where_counts_are_large():
    found = goodness_of_fit(np.array([30, 50, 20]), np.array([1.0, 2.0, 1.0]), 0, "p")
    assert found["chi_square"].value == pytest.approx(25 / 25 + 0 + 25 / 25)
    assert found["fit_p"].value == pytest.approx(math.exp(-1.0))
    assert found["fit_p"].n == 100


def brute_force(counts, weights):
    n, weights = sum(counts), np.array(weights) / sum(weights)
    statistic = lambda c: float((((np.array(c) - n * weights) ** 2) / (n * weights)).sum())  # noqa: E731
    total = 0.0
    for outcome in product(range(len(weights)), repeat=n):
        c = [outcome.count(i) for i in range(len(weights))]
        if statistic(c) >= statistic(counts) - 1e-9:
            total += float(np.prod(weights[list(outcome)]))
    return total


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=3).filter(sum), st.randoms(use_true_random=False))
def test_fit_is_exact_where_counts_are_small(counts, random):
    weights = [random.randint(1, 4) for _ in counts]
    found = goodness_of_fit(np.array(counts), np.array(weights, float), 0, "p")["fit_p"]
    assert found.value == pytest.approx(brute_force(counts, weights), abs=1e-9)
    assert found.low == found.value == found.high


def test_fit_by_drawing_where_outcomes_are_too_many():
    weights = np.full(40, 1 / 40)
    even = goodness_of_fit(np.full(40, 3), weights, 0, "p")["fit_p"]
    assert even.value == 1.0
    skewed = goodness_of_fit(np.array([60] + [1] * 39), weights, 0, "p")["fit_p"]
    assert skewed.value == pytest.approx(1 / 5_001)
    random = np.random.default_rng(1)
    rejected = [goodness_of_fit(random.multinomial(120, weights), weights, trial, "p")["fit_p"].value < 0.1 for trial in range(60)]
    assert np.mean(rejected) == pytest.approx(0.1, abs=0.11)


def test_targets_without_weight_do_not_enter_the_fit():
    assert goodness_of_fit(np.array([50, 50, 0]), np.array([0.5, 0.5, 0.0]), 0, "p")["fit_p"].value == 1.0


def test_unigram_diversity_by_hand():
    assert unigram_diversity(["a B a", "b c"], 100, 0, "p").value == pytest.approx(3 / 5)
    assert unigram_diversity(["same same"] * 5, 100, 0, "p").value == pytest.approx(0.1)
    assert unigram_diversity(["", " "], 10, 0, "p").value == 0.0
    found = unigram_diversity([f"w{i} the" for i in range(50)], 200, 0, "p")
    assert found.low <= found.value <= found.high

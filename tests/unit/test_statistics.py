"""Statistics against numbers worked out by hand, and against each other."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.evaluate.statistics import (
    Ratios,
    chi_square_tail,
    entropy,
    exact_metrics,
    goodness_of_fit,
    interval,
    over_seeds,
    sampled_metrics,
)
from alignlab.protocols import Value


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


def test_a_ratio_is_one_of_sums_and_its_clusters_stay_together():
    ratios = Ratios(400, 0)
    found = ratios.of("a", np.array([1.0, 0.0]), np.array([1.0, 9.0]))
    assert (found.value, found.n) == (0.1, 2)  # not the mean of 1 and 0
    assert (found.low, found.high) == (0.0, 1.0)
    assert ratios.mean("a", [[1.0], [0.0] * 9, []]) == found
    assert ratios.of("b", np.full(40, 10.0), np.full(40, 5.0), math.inf).high == 2.0
    assert ratios.of("a", np.zeros(3), np.zeros(3)) is None
    lone, empty = Ratios(1, 0), np.zeros(20)
    for name in map(str, range(40)):  # the one resample has no counts in five of them
        value = lone.of(name, np.array([1.0, 0.0, *empty]), np.array([1.0, 1.0, *empty]))
        assert 0 <= value.low <= value.value == 0.5 <= value.high <= 1


def test_clusters_that_are_alike_leave_room_for_others():
    ratios, counts = Ratios(100, 0), np.array([3.0, 1.0, 4.0, 0.0, 2.0] * 6)  # 24 clusters with counts
    unseen = 1 - 0.025 ** (1 / 24)  # 0 of 24: Clopper and Pearson
    none, every = ratios.of("a", 0 * counts, counts), ratios.of("a", counts, counts)
    assert (none.value, none.low, none.high) == (0.0, 0.0, pytest.approx(unseen))
    assert (every.value, every.low, every.high) == (1.0, pytest.approx(1 - unseen), 1.0)
    assert unseen == pytest.approx(0.1425, abs=1e-4)
    third = ratios.of("a", counts / 3, counts)
    assert (third.low, third.high) == (pytest.approx((1 - unseen) / 3), pytest.approx((1 + 2 * unseen) / 3))
    same = ratios.difference("a", (counts / 3, counts), (counts / 3, counts))
    assert (same.low, same.value, same.high) == (pytest.approx(-unseen), 0.0, pytest.approx(unseen))


def test_a_difference_is_paired():
    random = np.random.default_rng(0)
    counts, ratios = np.full(50, 10.0), Ratios(400, 0)
    hits = random.integers(2, 11, 50).astype(float)
    fewer = hits - random.integers(0, 3, 50)
    found = ratios.difference("a", (fewer, counts), (hits, counts))
    assert found.value == pytest.approx((fewer.sum() - hits.sum()) / 500)
    assert found.low < found.value < found.high < 0
    errors = [ratios.of(name, sums, counts) for name, sums in (("x", fewer), ("y", hits))]
    assert found.high - found.low < 0.5 * math.hypot(*(e.high - e.low for e in errors))
    assert ratios.difference("a", (hits, counts), (hits, 0 * counts)) is None
    # under the difference lie the resamples of the single ratios of that name
    below = ratios.difference("a", (hits, counts), (0 * hits, counts))
    assert below == ratios.of("a", hits, counts)


def test_the_interval_of_a_ratio_holds_the_truth():
    random, held = np.random.default_rng(0), 0
    for trial in range(200):
        counts = random.integers(1, 6, 80)
        sums = random.binomial(counts, random.beta(2, 2, 80))  # prompts differ; their sentences are alike
        found = Ratios(300, trial).of("a", sums.astype(float), counts.astype(float))
        held += found.low <= 0.5 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_figures_over_seeds():
    one = Value(0.2, 0.1, 0.4, 50)
    assert over_seeds([one], 0, 1) == one
    found = over_seeds([Value(v, v, v, 50) for v in (1.0, 2.0, 3.0, 4.0, 5.0)], 0, 9)
    assert (found.value, found.n) == (3.0, 5)
    assert found.high - 3 == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    alike = over_seeds([Value(0.5, 0.2, 0.6, 50), Value(0.5, 0.1, 0.6, 50)], 0, 1)  # agreement of two runs proves little
    assert (alike.low, alike.high) == (pytest.approx(0.5 - 0.25), pytest.approx(0.5 + 0.1 / 2**0.5))
    far = over_seeds([Value(v, v, v, 50) for v in (0.2, 0.9)], 0, 1)
    assert (far.low, far.high) == (0, 1)
    many = over_seeds([Value(float(i % 2), i % 2, i % 2, 1) for i in range(20)], 0, 1)
    assert many.high - many.value == pytest.approx(2.093 * math.sqrt(20 / 19 / 4) / math.sqrt(20), rel=1e-3)

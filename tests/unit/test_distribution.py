"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alignlab.engine.scorer import Scorer
from alignlab.evaluate.distribution import Distribution, entropy, exact_metrics, interval, sampled_metrics, target_logprobs
from alignlab.records import parse_target_set


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
    value = interval(10.0, np.linspace(-1.0, 3.0, 1001), 7)
    assert value.low == pytest.approx(10 - 2.9, abs=1e-6)
    assert value.high == pytest.approx(10 + 0.9, abs=1e-6)


def test_entropy_of_counts():
    assert entropy(np.array([1, 1, 2, 0])) == pytest.approx(1.5 * math.log(2))


def test_target_probabilities_sum_over_prefixes_and_split_alike(tiny, text):
    raw = {"request": "Pick a number.", "response": ["", "It is "], "targets": ["{1}", "{2}", "{3}"]}
    record = parse_target_set(raw, "p", "p.json")
    prompt = text.encode(record).prompt
    expected = []
    for variants in text.encode(record).answers:
        total = 0.0
        for answer in variants:
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                logp = torch.log_softmax(tiny(input_ids=ids).logits[0].double(), -1)
            place = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
            total += float(logp[place, ids[0, place + 1]].sum().exp())
        expected.append(math.log(total))
    scorer = Scorer(tiny)
    assert target_logprobs(record, scorer, text, 4096) == pytest.approx(expected, abs=1e-4)
    assert target_logprobs(record, scorer, text, capacity=len(prompt) + 2) == pytest.approx(expected, abs=1e-4)


class _Source:
    def __init__(self, trained, tested):
        self._trained, self._tested = trained, tested

    def training(self):
        return iter(self._trained)

    def testing(self):
        return iter(self._tested)


def test_means_over_prompts_as_the_paper_takes_them(tiny, text):
    records = [
        parse_target_set({"request": "Pick a number.", "targets": ["{1}", "{2}"]}, "a", "a"),
        parse_target_set({"request": "Pick a random number from 1 to 10. Answer in braces.", "targets": ["{7}", "{3}"]}, "b", "b"),
        parse_target_set({"request": "Tell me a story.", "targets": [], "split": "test"}, "c", "c"),
    ]
    suite = Distribution(samples=4, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=4, bootstrap=50, objective="kl")
    samples = {"a": ["{1}", "{2}", "{2}", "x"], "b": ["{7}"] * 4, "c": ["once", "once", "twice", "then"]}
    metrics, details = suite.evaluate(_Source(records[:1], records), samples, Scorer(tiny), text, 0, 4096)
    for metric in ("kl", "mass", "valid"):
        pair = (metrics[f"{metric}/a"].value, metrics[f"{metric}/b"].value)
        assert metrics[metric].value == pytest.approx(sum(pair) / 2)
        assert metrics[f"{metric}:trained"].value == pytest.approx(pair[0])
        assert metrics[f"{metric}:held-out"].value == pytest.approx(pair[1])
    assert "kl/c" not in metrics
    assert metrics["coverage/c"].value == 3
    assert metrics["coverage"].value == pytest.approx((3 + 1 + 3) / 3)
    assert details["a"]["sampled"] == [0.25, 0.5]

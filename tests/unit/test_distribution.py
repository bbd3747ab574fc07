"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from alignlab.engine.scorer import Scorer
from alignlab.evaluate.distribution import Distribution, target_logprobs
from alignlab.records import parse_target_set


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


def _suite(fields=None):
    return Distribution(
        samples=4, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=4, bootstrap=50, fields=fields, objective="kl"
    )


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
    suite = _suite()
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
    assert metrics["beyond/a"].value == 1
    assert metrics["chi_square/a"].value == pytest.approx((1 - 1.5) ** 2 / 1.5 * 2)
    assert "chi_square" not in metrics
    assert "fit_p:trained" not in metrics


def test_means_of_a_task_and_of_fields(tiny, text):
    raw = {"request": "Pick a number.", "targets": ["{1}", "{2}"]}
    person = {"request": "Who?", "targets": [], "split": "test"}
    records = [
        parse_target_set(raw, "few/a", "a"),
        parse_target_set(raw | {"request": "Pick any number."}, "few/b", "b"),
        parse_target_set(person, "people/c", "c"),
    ]
    samples = {"few/a": ["{1}"] * 4, "few/b": ["{2}"] * 4, "people/c": ["Ada, 1815", "Ada, 1816", "Bo, 1815", "nobody"]}
    suite = _suite(r"(?P<name>\w+), (?P<year>\d+)")
    metrics, details = suite.evaluate(_Source(records[:1], records), samples, Scorer(tiny), text, 0, 4096)
    pair = (metrics["kl/few/a"].value, metrics["kl/few/b"].value)
    assert metrics["kl:few"].value == pytest.approx(sum(pair) / 2)
    assert metrics["parsed/people/c"].value == metrics["parsed:people"].value == 0.75
    assert metrics["name.coverage/people/c"].value == 2
    assert metrics["name.entropy/people/c"].value == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert metrics["name.most_frequent/people/c"].value == pytest.approx(2 / 3)
    assert details["people/c"]["fields"]["year"] == [("1815", 2), ("1816", 1)]
    results = {name: {"before": vars(value)} for name, value in metrics.items()}
    shown = suite.summary(results, {"before": details}).plain()
    assert "name.coverage" in shown
    blocks = suite.charts({"before": {"people/c": details["people/c"]}}, results, None)
    assert blocks[0].rows[0][0] == "name"
    assert "Ada (2)" in blocks[0].rows[0]
    assert "3 of 4" in blocks[0].caption

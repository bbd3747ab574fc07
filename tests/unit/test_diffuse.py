"""Diffuse: rows, loss and early stop against the plain algorithm."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.methods.diffuse import Diffuse
from alignlab.records import parse_target_set
from alignlab.seeds import generator


def _method(**kwargs) -> Diffuse:
    return Diffuse(**{"early_stop": False, "gamma": 0.2, "prefixes": "draw"} | kwargs)


def _record(**kwargs):
    raw = {"request": "Pick a number.", "response": "", "targets": ["{1}", "{10}", "{2}"], "weights": [1, 2, 5]} | kwargs
    return parse_target_set(raw, "name", "file.json")


def _plain_loss(model, text, record) -> torch.Tensor:
    """- sum of weight x log p(target | prompt), a row per target, as in the authors' search.py."""
    encoded = text.encode(record)
    total = torch.zeros((), dtype=torch.float64)
    for weight, variants in zip(record.weights, encoded.answers, strict=True):
        for answer in variants:
            ids = torch.tensor([encoded.prompt + answer])
            logp = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
            place = torch.arange(len(encoded.prompt) - 1, ids.shape[1] - 1)
            total -= weight / len(variants) * logp[place, ids[0, place + 1]].sum()
    return total


def _loss(method, model, rows):
    batch = collate(rows)
    return method.loss(Scorer(model)(batch), batch)


def test_loss_is_that_of_one_row_per_target(tiny, text):
    record = _record(response=["", "My answer is "])
    row = next(_method().rows([record], text, 0))
    loss = _loss(_method(), tiny, [row])
    assert float(loss.total) == pytest.approx(float(_plain_loss(tiny, text, record)), rel=1e-5)
    assert float(loss.logs["entropy"][0]) == pytest.approx(record.entropy())
    assert float(loss.logs["floor"][0]) == pytest.approx(record.entropy() + math.log(2))
    assert float(loss.logs["kl"][0]) == pytest.approx(float(loss.total) - record.entropy() - math.log(2), rel=1e-5)
    assert row.mass == 1.0


def test_the_trie_computes_each_prefix_once(text):
    row = next(_method().rows([_record(targets=["{1}", "{2}", "{3}"], weights=[])], text, 0))
    prompt = text.prompt([{"role": "user", "content": "Pick a number."}])
    # below the prompt: "{", the three digits, and the brace after each
    assert len(row.tokens) == len(prompt) + 1 + 3 + 3
    assert row.columns["weight"].sum() == pytest.approx(1 + 1 + 1 + 1)  # "{", a digit, "}", the end: a whole each


def test_a_pass_draws_one_prefix_per_target(text):
    record = _record(response=["", "It is ", "Well: "])
    row = next(_method().rows([record], text, 0))
    seen: Counter[tuple[int, ...]] = Counter()
    for i in range(300):
        drawn = _method().vary(row, generator(0, i))
        choice = drawn.columns["choice"]
        chosen = sorted(choice[choice >= 0].tolist())
        assert [c // 3 for c in chosen] == [0, 1, 2]  # every target, once
        seen.update([tuple(c % 3 for c in chosen)])
        assert drawn.columns["entropy"].sum() == pytest.approx(record.entropy())
        assert drawn.columns["floor"].sum() == pytest.approx(record.entropy() + math.log(3))
        leaves = drawn.columns["weight"][choice >= 0]
        assert sorted(leaves) == pytest.approx(sorted(record.weights))
    assert len(seen) == 27  # all combinations come up
    assert max(seen.values()) < 30


def test_a_drawn_pass_scores_just_the_drawn_answers(tiny, text):
    record = _record(response=["", "It is "])
    row = next(_method().rows([record], text, 0))
    drawn = _method().vary(row, generator(0, 0))
    picks = {int(c) // 2: int(c) % 2 for c in drawn.columns["choice"] if c >= 0}
    expected = 0.0
    for i, weight in enumerate(record.weights):
        one = _record(targets=[record.targets[i]], weights=[1], response=[record.responses[picks[i]]])
        expected += weight * float(_plain_loss(tiny, text, one))
    assert float(_loss(_method(), tiny, [drawn]).total) == pytest.approx(expected, rel=1e-5)
    assert len(drawn.tokens) < len(row.tokens)


def test_average_takes_all_prefixes_at_every_pass(text):
    method = _method(prefixes="average")
    row = next(method.rows([_record(response=["", "It is "])], text, 0))
    assert method.vary(row, generator(0, 0)) is row


def test_score_parts_are_the_prefixes(tiny, text):
    record = _record(response=["", "It is "])
    parts = list(_method().parts(record, text))
    losses = [float(_loss(_method(), tiny, [part]).total) for part in parts]
    whole = float(_loss(_method(), tiny, list(_method().rows([record], text, 0))).total)
    assert sum(losses) / 2 == pytest.approx(whole, rel=1e-5)


def test_a_target_of_no_weight_is_no_part_of_the_loss(tiny, text):
    with_zero = next(_method().rows([_record(targets=["{1}", "{2}"], weights=[1, 0])], text, 0))
    loss = _loss(_method(), tiny, [with_zero])
    assert float(loss.total) == pytest.approx(float(_plain_loss(tiny, text, _record(targets=["{1}"], weights=[]))), rel=1e-5)
    assert float(loss.logs["floor"][0]) == 0.0


def test_early_stop_compares_the_epoch_with_the_entropy():
    epoch = {"loss": 2.4, "entropy": 2.0, "floor": 2.7}
    assert _method(early_stop=True, gamma=0.2).finished(epoch)
    assert not _method(early_stop=True, gamma=0.19).finished(epoch)
    assert not _method(early_stop=False).finished(epoch)


def test_without_the_end_of_turn_the_answer_is_its_own_tokens(text):
    with_end, without = (
        (text.encode(_record(eos=eos)).answers[0][0] for eos in (True, False))
        if False
        else (
            text.encode(_record()).answers[0][0],
            text.encode(_record(targets=["{1}", "{2}"], weights=[], eos=False)).answers[0][0],
        )
    )
    assert with_end[:-1] == without
    assert with_end[-1] in text.stop


def test_ambiguous_tokens_are_refused(text):
    record = replace(_record(targets=["a b", "b"], weights=[]), responses=("", "a "))  # the parser refuses it before
    with pytest.raises(UserError, match="nothing tells them apart"):
        list(_method().rows([record], text, 0))


def test_entropy_of_weights():
    assert _record().entropy() == pytest.approx(-sum(w / 8 * math.log(w / 8) for w in (1, 2, 5)))
    assert _record(weights=[]).entropy() == pytest.approx(math.log(3))
    assert np.isclose(sum(_record().weights), 1)

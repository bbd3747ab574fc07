"""What is measured on a model while it trains, against the model itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.engine.probing import cosine, gradient, likeness, mean_losses
from alignlab.engine.scorer import Scorer
from alignlab.protocols import Loss, Row
from alignlab.trees import chains


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Scorer(LlamaForCausalLM(LlamaConfig(**sizes)).double().eval())


def _rows(count, seed=0):
    random = np.random.default_rng(seed)
    for group in range(count):
        ids = random.integers(0, 40, 9).tolist()
        marks = {"marked": np.arange(6) % 2}
        yield Row(group, 6.0, *chains([(ids[:3], ids[3:])]), marks)


def _logp(model, row):
    """[E] straight from the model's logits."""
    ids = torch.tensor([[*row.tokens.tolist(), int(row.target[-1])]])
    return model(input_ids=ids).logits[0].log_softmax(-1)[row.source.tolist(), row.target.tolist()]


def _loss(logp, batch):
    return Loss(-logp.sum())


def test_mean_losses_are_means_over_all_edges_of_a_group(scorer):
    rows = list(_rows(5))
    whole = torch.cat([_logp(scorer.base, row) for row in rows])
    marked = torch.tensor([0, 1, 0, 1, 0, 1] * 5, dtype=torch.bool)

    def groups(row):
        return {"marked": row.columns["marked"] == 1, "others": row.columns["marked"] == 0, "nothing": row.columns["marked"] > 1}

    wanted = {"marked": float(-whole[marked].mean()), "others": float(-whole[~marked].mean())}
    for capacity in (1000, 10):
        assert mean_losses(scorer, rows, groups, capacity) == pytest.approx(wanted, rel=1e-12)


def test_a_gradient_is_that_of_the_summed_loss_and_leaves_nothing_behind(scorer):
    scorer.base.lm_head.weight.requires_grad_(False)
    rows = list(_rows(3))
    found = gradient(scorer, rows, _loss, 10)
    learning = [p for p in scorer.parameters() if p.requires_grad]
    assert all(p.grad is None for p in learning)
    (-torch.cat([_logp(scorer.base, row) for row in rows]).sum()).backward()
    assert len(found) == len(learning)
    for one, p in zip(found, learning, strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-10, atol=1e-14)


def test_the_cosine_of_gradients_is_one_with_itself_and_minus_one_with_its_opposite(scorer):
    here, there = gradient(scorer, list(_rows(2)), _loss, 99), gradient(scorer, list(_rows(2, seed=1)), _loss, 99)
    assert cosine(here, here) == pytest.approx(1.0)
    assert cosine(here, [-2 * one for one in here]) == pytest.approx(-1.0)
    flat = [torch.cat([one.flatten() for one in side]) for side in (here, there)]
    assert cosine(here, there) == pytest.approx(float(torch.nn.functional.cosine_similarity(*flat, dim=0)))
    assert cosine(here, [torch.zeros_like(one) for one in here]) == 0.0


def test_likeness_finds_the_nearest_and_compares_with_a_mean(scorer, monkeypatch):
    monkeypatch.setattr("alignlab.engine.probing.TOKENS", 7)
    weight = scorer.base.get_input_embeddings().weight
    with torch.no_grad():
        weight[5] = (weight[11] + weight[12]) / 2 + 1e-3 * weight[30]
        weight[33] = 3 * weight[5]
    similarity, chance, nearest = likeness(scorer, 5, [11, 12], 3)
    unit = torch.nn.functional.normalize(weight, dim=-1)
    mean = torch.nn.functional.normalize((weight[11] + weight[12]) / 2, dim=0)
    assert similarity == pytest.approx(float(unit[5] @ mean), abs=1e-6)
    assert similarity > 0.99
    assert chance == pytest.approx(float((unit @ mean)[torch.arange(40) != 5].mean()), abs=1e-6)
    assert [i for i, _ in nearest[:1]] == [33]
    assert {i for i, _ in nearest[1:]} == {11, 12}
    assert nearest[0][1] == pytest.approx(1.0, abs=1e-6)

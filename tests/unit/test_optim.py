"""Schedules against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from alignlab.train.optim import SCHEDULES, Schedule, adamw, warmup


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedules_are_those_of_transformers(name, warmup):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=23)
    ours = Schedule(name, 0.3, warmup, 23)
    for step in range(23):
        assert ours.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-15)
        optimizer.step()
        theirs.step()


def test_cosine_ends_at_zero_and_a_short_run_never_leaves_the_warm_up():
    assert Schedule("cosine", 1.0, 2, 10).at(10) == pytest.approx(0.0)
    # CUT's online iterations: 45 steps under 100 of warm-up reach 44 % of the peak
    assert max(Schedule("cosine", 4e-4, 100, 45).at(s) for s in range(45)) == pytest.approx(4e-4 * 0.44)


def test_adamw_has_what_it_was_given():
    optimizer = adamw([torch.nn.Parameter(torch.zeros(1))], lr=0.1, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.01, decay="all")
    group = optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"]) == (0.1, (0.8, 0.95), 1e-5, 0.01)


def test_biases_and_norms_need_not_decay():
    """As transformers' Trainer chooses them, on an architecture that has both."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8))
    trainer = Trainer(model=model, args=TrainingArguments(output_dir="unused", weight_decay=0.1, use_cpu=True, report_to="none"))
    decayed = {id(p) for name, p in model.named_parameters() if name in trainer.get_decay_parameter_names(model)}
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    groups = adamw(model.parameters(), **settings, decay="matrices").param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {id(p) for p in groups[0]["params"]} == decayed
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    (whole,) = adamw(model.parameters(), **settings, decay="all").param_groups
    assert len(whole["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("steps", "total", "expected"), [(0.01, 1584, 16), (0.01, 50, 1), (0.5, 3, 2), (0, 10, 0), (100, 45, 100), (1, 9, 1)]
)
def test_warm_up_as_a_share_of_the_steps(steps: float, total: int, expected: int):
    assert warmup(steps, total) == expected

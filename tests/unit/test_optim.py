"""Schedules against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from alignlab.train.optim import SCHEDULES, Schedule, adamw


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
    optimizer = adamw([torch.nn.Parameter(torch.zeros(1))], lr=0.1, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.01)
    group = optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"]) == (0.1, (0.8, 0.95), 1e-5, 0.01)

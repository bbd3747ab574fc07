"""Micro-batches that memory does not hold: they are halved, the step stays the same, and the choice is kept."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import Tokens, _fit, _model, _row, rows  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.data.rows import RowStore, write_rows
from alignlab.errors import MissingError
from alignlab.train.plan import Plan


class Small(Tokens):
    """Memory for so many nodes, from a call on."""

    def __init__(self, nodes: int, after: int = 0) -> None:
        self.nodes, self.after, self.sizes = nodes, after, list[int]()

    def loss(self, logp, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.nodes and len(self.sizes) > self.after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().loss(logp, batch)


@pytest.mark.parametrize(("after", "fits"), [(0, 8), (3, 12)], ids=["at the rehearsal", "in the third step"])
def test_what_does_not_fit_is_halved_and_the_step_stays_the_same(rows, tmp_path, after, fits):  # noqa: F811
    plain_model, plain, _ = _fit(rows, tmp_path / "a", hardware={"tokens_per_micro": 40})
    method = Small(12, after)
    model, seen, _ = _fit(rows, tmp_path / "b", method, hardware={"tokens_per_micro": 40})
    assert method.sizes[0] == max(method.sizes) == 32  # the largest of all is first
    assert max(method.sizes[method.after + 3 :]) <= 12
    assert json.loads((tmp_path / "b/checkpoints/capacity.json").read_text()) == {"asked": 40, "fits": fits}
    assert [s["loss"] for s in seen] == pytest.approx([s["loss"] for s in plain], rel=1e-5)
    for p, q in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    # who goes on, goes on with it; who asks for something else, begins with that
    again = Small(12)
    _fit(rows, tmp_path / "b", again, hardware={"tokens_per_micro": 40}, epochs=3)
    assert max(again.sizes) <= 12
    other = Small(99)
    _fit(rows, tmp_path / "b", other, hardware={"tokens_per_micro": 50}, epochs=4)
    assert max(other.sizes) > 12


def test_a_row_that_does_not_fit_ends_the_run_with_what_to_do(rows, tmp_path):  # noqa: F811
    with pytest.raises(MissingError, match=r"out of memory, with one row at a time: CUDA.*\n.*gradient_checkpointing=true"):
        _fit(rows, tmp_path / "a", Small(2), hardware={"tokens_per_micro": 40})


def test_a_rehearsal_changes_nothing(rows, tmp_path):  # noqa: F811
    class Infinite(Tokens):
        """Not finite in the rehearsal."""

        calls = 0

        def loss(self, logp, batch):
            self.calls += 1
            return super().loss(logp * (float("inf") if self.calls == 1 else 1.0), batch)

    model, seen, _ = _fit(rows, tmp_path / "a", Infinite(), model=_model(0.1))
    other, plain, _ = _fit(rows, tmp_path / "b", model=_model(0.1))
    assert seen == plain or [s["loss"] for s in seen] == [s["loss"] for s in plain]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_the_largest_micro_batch_is_found_on_any_number_of_ranks(tmp_path):
    random = np.random.default_rng(0)
    write_rows(tmp_path / "rows.arrow", (_row(i, int(random.integers(2, 30)), i) for i in range(40)))
    store = RowStore(tmp_path / "rows.arrow")
    for world, capacity in ((1, 64), (2, 64), (3, 40)):
        plan = Plan(store, groups_per_step=7, epochs=3, max_steps=None, seed=1)
        of_all = [
            sum(len(row.tokens) for row in micro.rows)
            for index in range(plan.steps)
            for rank in range(world)
            for micro in plan.micros(plan.step(index), Tokens(), capacity=capacity, rank=rank, world=world)
        ]
        assert sum(len(row.tokens) for row in plan.worst(Tokens(), capacity=capacity, world=world).rows) == max(of_all)


def test_memory_that_really_runs_out(tmp_path):
    """In a process that may take 400 MiB more than it has."""
    write_rows(tmp_path / "rows.arrow", (_row(i, 255, i) for i in range(128)))
    if not (pid := os.fork()):
        status = 1
        try:
            torch.manual_seed(0)
            sizes = {"hidden_size": 64, "intermediate_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 2}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
            has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (has + 400 * 2**20,) * 2)
            store = RowStore(tmp_path / "rows.arrow")
            _, seen, _ = _fit(store, tmp_path, model=model, hardware={"tokens_per_micro": 32768}, groups_per_step=128, epochs=1)
            status = 0 if len(seen) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert 256 <= json.loads((tmp_path / "checkpoints/capacity.json").read_text())["fits"] < 32768


TIGHT = """
import torch
from alignlab.methods.diffuse import Diffuse

class Tight(Diffuse):
    def loss(self, logp, batch):
        if len(batch) > 33:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().loss(logp, batch)
"""


def test_ranks_that_run_out_of_memory_start_again_with_half(cli, tmp_path):
    (tmp_path / "tight.py").write_text(TIGHT)
    words = ["tracker=none", "stages=[prepare,train]", "train.max_steps=2", "train.groups_per_step=3"]
    words += ["hardware.tokens_per_micro=64", "run_dir=run"]
    done = cli(*words, "hardware=cpu2", "method._target_=tight.Tight", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"micro-batches of 64 tokens do not fit in memory; the ranks start again with (19|20)\n", done.stderr), (
        done.stderr
    )
    assert [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == [1, 2]

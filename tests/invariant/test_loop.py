"""The loop alone, with a method made for the test: masses, logs, probes, validation, clipping, stopping."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.compose import compose
from alignlab.config import check
from alignlab.data.rows import RowStore, write_rows
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import StoppedError, UserError
from alignlab.protocols import Loss, MethodDefaults, Probe, Row
from alignlab.signals import Stop
from alignlab.train.checkpoint import Checkpoints
from alignlab.train.loop import fit


class Tokens(MethodDefaults):
    """Plain likelihood per token."""

    accepts: ClassVar[tuple[type, ...]] = ()

    def loss(self, logp, batch):
        return Loss(-logp.sum(), {"hits": ((logp > -1).sum(), len(logp))})

    def finished(self, epoch):
        self.epochs = [*getattr(self, "epochs", []), dict(epoch)]
        return False


def _row(group: int, length: int, seed: int) -> Row:
    tokens = np.random.default_rng(seed).integers(0, 50, length + 1).astype(np.int32)
    chain = np.arange(length, dtype=np.int32)
    return Row(group, float(length), tokens[:-1], chain - 1, chain, tokens[1:])


@pytest.fixture
def rows(tmp_path) -> RowStore:
    write_rows(tmp_path / "rows.arrow", (_row(i // 2, 3 + 2 * (i % 4), i) for i in range(12)))
    return RowStore(tmp_path / "rows.arrow")


def _model(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes, attention_dropout=dropout, initializer_range=0.2))


def _fit(rows, tmp_path, method=None, *, model=None, hardware=None, log=None, stop=None, seed=0, **train):
    config = check(compose(["tracker=none"])[0])
    values = {"epochs": 2, "groups_per_step": 2, "lr": 1e-2, "lora": None, "schedule": "linear", "weight_decay": 0.0} | train
    model, seen = model or _model(), []
    keywords = {k: values.pop(k) for k in ("validation", "probes") if k in values}
    progress = fit(
        Scorer(model),
        method or Tokens(),
        rows,
        replace(config.train, **values),
        hardware=replace(config.hardware, **(hardware or {})),
        accelerator=Accelerator(cpu=True),
        checkpoints=Checkpoints(tmp_path / "checkpoints", 2),
        seed=seed,
        stop=stop or Stop(),
        log=log or seen.append,
        **keywords,
    )
    return model, seen, progress


def test_the_loss_is_divided_once_by_the_mass_of_the_step(rows, tmp_path):
    _, seen, _ = _fit(rows, tmp_path / "a", max_steps=1, clip=None, hardware={"tokens_per_micro": 9})
    twin = _model()
    chosen = [rows[i] for i in range(12)]
    totals = {}
    for group in range(6):
        batch = collate([r for r in chosen if r.group == group])
        totals[group] = (float(-Scorer(twin)(batch).detach().sum()), batch.mass)
    pairs = {(a, b): (totals[a][0] + totals[b][0]) / (totals[a][1] + totals[b][1]) for a in range(6) for b in range(a)}
    assert min(abs(seen[0]["loss"] - value) for value in pairs.values()) < 1e-5
    assert seen[0]["tokens"] in {int(totals[a][1] + totals[b][1]) for a, b in pairs}


def test_micro_batches_do_not_change_the_curve_and_dropout_repeats(rows, tmp_path):
    curves = {}
    for name, capacity, dropout in (("wide", 1000, 0.0), ("narrow", 9, 0.0), ("drop", 9, 0.3), ("again", 9, 0.3)):
        _, seen, _ = _fit(rows, tmp_path / name, model=_model(dropout), hardware={"tokens_per_micro": capacity})
        curves[name] = [(row["loss"], row["grad_norm"]) for row in seen]
    assert np.array(curves["wide"]) == pytest.approx(np.array(curves["narrow"]), abs=1e-5)
    assert curves["drop"] == curves["again"]
    assert curves["drop"] != curves["narrow"]


def test_gradient_checkpointing_does_not_change_the_curve(rows, tmp_path):
    _, plain, _ = _fit(rows, tmp_path / "a")
    model = _model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, again, _ = _fit(rows, tmp_path / "b", model=model)
    assert [r["loss"] for r in plain] == pytest.approx([r["loss"] for r in again], abs=1e-6)


def test_clipping_and_the_schedule_reach_the_optimizer(rows, tmp_path):
    _, seen, _ = _fit(rows, tmp_path / "a", max_steps=4, warmup_steps=2, epochs=5)
    assert [row["lr"] for row in seen] == pytest.approx([0.0, 0.005, 0.01, 0.005])
    tight, _, _ = _fit(rows, tmp_path / "b", max_steps=1, clip=1e-30, eps=1.0)
    for name, parameter in _model().named_parameters():
        assert torch.allclose(parameter, dict(tight.named_parameters())[name], atol=1e-12)


def test_epoch_means_are_exact(rows, tmp_path):
    method = Tokens()
    _, seen, progress = _fit(rows, tmp_path / "a", method)
    assert len(method.epochs) == 2
    assert progress.step == 6
    # from the logs of the steps: mean loss weighed by tokens
    for epoch in range(2):
        part = seen[epoch * 3 : epoch * 3 + 3]
        mean = sum(r["loss"] * r["tokens"] for r in part) / sum(r["tokens"] for r in part)
        assert method.epochs[epoch]["loss"] == pytest.approx(mean)
        assert 0 <= method.epochs[epoch]["hits"] <= 1


def test_validation_and_probes_come_when_due(rows, tmp_path):
    def measure(scorer, capacity):
        assert not scorer.training
        assert capacity > 0
        with torch.no_grad():
            return {"mean": float(scorer(collate([rows[0]])).mean()), "word": "a text"}

    probe = Probe("look", measure)
    _, seen, progress = _fit(
        rows,
        tmp_path / "a",
        validation=rows,
        probes=[probe],
        validate_every_steps=4,
        probe_every_steps=3,
        max_steps=6,
        best="validation_loss",
    )
    assert [row["step"] for row in seen if "validation_loss" in row] == [4, 6]
    assert [row["step"] for row in seen if "look/mean" in row] == [3, 6]
    assert progress.best == min(row["validation_loss"] for row in seen if "validation_loss" in row)
    model, seen, _ = _fit(rows, tmp_path / "b", validation=rows, max_steps=6)
    everything = collate([rows[i] for i in range(12)])
    with torch.no_grad():
        now = float(-Scorer(model.eval())(everything).sum()) / everything.mass
    assert seen[-1]["validation_loss"] == pytest.approx(now, abs=1e-5)


def test_a_loss_that_is_not_finite_changes_nothing(rows, tmp_path):
    class Broken(Tokens):
        def loss(self, logp, batch):
            scale = float("nan") if getattr(self, "calls", 0) == 4 else 1.0  # the first call is the rehearsal
            self.calls = getattr(self, "calls", 0) + 1
            return Loss(-logp.sum() * scale)

    model = _model()
    with pytest.raises(UserError, match=r"loss is nan at step 4; the step was not applied\. The last good checkpoint is .*step-2"):
        _fit(rows, tmp_path / "a", Broken(), model=model, save_every_steps=2)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert Checkpoints(tmp_path / "a/checkpoints", 2).steps() == [2]


def test_a_signal_ends_the_step_under_way_and_saves(rows, tmp_path):
    with Stop() as stop:

        def log(metrics):
            if metrics["step"] == 2:
                signal.raise_signal(signal.SIGTERM)

        # the flag is read at the next step's end
        with pytest.raises(StoppedError, match="stopped by SIGTERM: step 3 of 6 is saved") as raised:
            _fit(rows, tmp_path / "a", log=log, stop=stop)
    assert raised.value.status == 143
    assert Checkpoints(tmp_path / "a/checkpoints", 2).steps() == [3]
    _, seen, _ = _fit(rows, tmp_path / "a")
    _, whole, _ = _fit(rows, tmp_path / "b")
    assert [r["loss"] for r in seen] == [r["loss"] for r in whole[3:]]

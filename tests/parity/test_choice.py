"""What ``auto`` chooses for an architecture, and that choosing leaves no trace on the model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ALL, ARCHITECTURES, WINDOW, batch_of, build, chain, difference, oracle, run, tree
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.engine.batch import Batch, collate
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError

CHOSEN = {
    "llama": "segments",
    "gpt2": "segments",
    "mistral": "segments",
    "gemma3_text": "segments",
    "qwen2": "segments",
    "qwen3": "segments",
    "mixtral": "segments",
    "phi3": "segments",
    "gpt_neox": "segments",
    "opt": "segments",
    "cohere": "segments",
    "granite": "segments",
    "gemma2": "masked",  # soft-capped scores
    "gpt_oss": "masked",  # attention sinks
    "falcon": "masked",  # attention of its own that takes a mask
    "phimoe": "masked",  # a window that its attention function is not told of
    "bloom": "padded",  # ALiBi: distances along the line
    "mamba": "padded",  # no attention
    "gpt_neo": "padded",  # a window that counts along the line
}


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What transformers and alignlab say, from information up."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear, loggers = Ear(), [logging.getLogger("transformers"), logging.getLogger("alignlab")]
    for logger in loggers:
        logger.addHandler(ear)
    yield said
    for logger in loggers:
        logger.removeHandler(ear)


def test_every_architecture_has_an_expectation() -> None:
    assert set(CHOSEN) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_fastest_backend_that_is_right(name: str, messages: list[str]) -> None:
    model = build(name, torch.float32)
    with torch.no_grad():
        model(input_ids=torch.zeros((1, 3), dtype=torch.long))  # whatever the model itself has to say, it says here
    messages.clear()
    scorer = Scorer(model)
    assert (scorer.backend, scorer.head) == (CHOSEN[name], "module")
    assert len(messages) == (CHOSEN[name] == "padded")
    assert all("computed apart" in message for message in messages)
    batch = batch_of(ALL)
    reference = run(model, lambda b: oracle(model, b), batch)
    assert max(difference(run(model, scorer, batch), reference)) < 1e-4  # measured: 4e-5 (OPT)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "phimoe", "gpt_neo"])
def test_a_window_longer_than_the_trial_is_kept_to(name: str) -> None:
    """The trial of the constructor is short; windows are cut for it, and what cannot be cut is not trusted."""
    window = {"window_size": 24, "max_position_embeddings": 160} if name == "gpt_neo" else {"sliding_window": 24}
    model = build(name, torch.float32, **window)
    batch = collate([chain(45, 1), tree(2, branches=(20, 20, 20))])
    scorer = Scorer(model)
    assert scorer.backend == CHOSEN[name]
    with torch.no_grad():
        torch.testing.assert_close(scorer(batch), oracle(model, batch), rtol=0, atol=1e-5)
        if name in ("phimoe", "gpt_neo"):  # the backend that was turned down: wrong, and on a short forest right
            scorer.backend = "segments" if name == "phimoe" else "masked"
            short = collate([chain(12, 3)])
            torch.testing.assert_close(scorer(short), oracle(model, short), rtol=0, atol=1e-5)
            assert (scorer(batch) - oracle(model, batch)).abs().max() > 0.05
    assert {getattr(m, "sliding_window", 24) for m in (model.config, *model.modules())} <= {24, None}


class Doubled(LlamaForCausalLM):
    """A model that does to its logits what no setting tells of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


@pytest.mark.parametrize("backend", ["segments", "masked", "padded"])
def test_a_head_that_is_more_than_its_module_is_the_model_s_own(backend: str) -> None:
    torch.manual_seed(0)
    model = Doubled(LlamaConfig(**ARCHITECTURES["llama"])).double().eval()
    scorer = Scorer(model, backend)
    assert (scorer.backend, scorer.head) == (backend, "own")
    batch = batch_of(ALL)
    loss, gradient = difference(run(model, scorer, batch), run(model, lambda b: oracle(model, b), batch))
    assert loss < 1e-9
    assert gradient < 1e-6


@pytest.mark.parametrize(("name", "setting"), [("cohere", "logit_scale"), ("granite", "logits_scaling")])
def test_scaled_logits(name: str, setting: str) -> None:
    model = build(name)
    batch, scorer = batch_of(ALL), Scorer(model)
    loss, gradient = difference(run(model, scorer, batch), run(model, lambda b: oracle(model, b), batch))
    assert loss < 1e-9
    assert gradient < 1e-6
    setattr(scorer.config, setting, 1.0)  # not applied, it shows
    with torch.no_grad():
        assert (scorer(batch) - oracle(build(name), batch)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "backend"), [("gemma2", "segments"), ("bloom", "masked"), ("mamba", "segments"), ("phimoe", "segments")]
)
def test_a_backend_that_is_wrong_for_a_model_is_refused_by_name(name: str, backend: str) -> None:
    model = build(name, torch.float32)
    own = model.config._attn_implementation
    with pytest.raises(UserError, match=f"backend={backend}.*{name}.*auto"):
        Scorer(model, backend)
    assert model.config._attn_implementation == own
    assert Scorer(model).backend == CHOSEN[name]


@pytest.mark.parametrize("backend", ["auto", "padded"])
def test_a_model_without_finite_numbers_is_refused(backend: str) -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(UserError, match="llama model gives log-probabilities that are not finite"):
        Scorer(model, backend)


def test_a_window_that_no_layer_uses_is_left_out_of_the_mask() -> None:
    model = build("qwen2", layer_types=["full_attention"] * 2)
    assert model.config.sliding_window == WINDOW
    for backend in ("segments", "masked"):
        with torch.no_grad():
            logp = Scorer(model, backend)(batch_of(ALL))
            torch.testing.assert_close(logp, oracle(model, batch_of(ALL)), rtol=0, atol=1e-5)


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="auto, segments, masked, padded; got 'fast'"):
        Scorer(build("llama"), "fast")


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_choosing_leaves_the_model_as_it_was(name: str) -> None:
    model = build(name)
    inner = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    inner.train()
    settings = model.config.to_dict()
    state = torch.get_rng_state()
    Scorer(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module for module in model.modules() if module.training] == [inner]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config.to_dict() == settings
    assert not Scorer(model).training
    assert Scorer(model.train()).training
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("backend", ["auto", "segments", "masked", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_scored_model_still_generates_and_answers_as_before(backend: str, attention: str, tmp_path: Any) -> None:
    model = build("mistral", torch.float32, attn_implementation=attention)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 97, (2, 9)))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding: who sees whom matters
    ask = lambda: model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)  # noqa: E731
    with torch.no_grad():
        text, logits = ask(), model(input_ids=ids, attention_mask=mask).logits[:, -1]
        Scorer(model, backend)(batch_of(ALL))
        assert torch.equal(ask(), text)
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[:, -1], logits, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert "alignlab" not in (tmp_path / "config.json").read_text()


def test_scorers_of_one_model_do_not_disturb_one_another() -> None:
    model = build("mistral")
    batch = batch_of(ALL)
    with torch.no_grad():
        reference = oracle(model, batch)
        scorers = [Scorer(model, backend) for backend in ("segments", "masked", "auto", "padded", "segments")]
        for scorer in [*scorers, *scorers[::-1]]:
            torch.testing.assert_close(scorer(batch), reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma3_text", "qwen3"])
def test_half_precision_does_not_hide_the_fast_path(name: str, dtype: torch.dtype) -> None:
    assert Scorer(build(name, dtype)).backend == "segments"


@pytest.mark.parametrize("wrong", ["positions", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_computation_is_never_chosen(wrong: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were positions or the mask wrong in a fast path, it would be found out."""
    inputs = Scorer._inputs

    def spoilt(self: Scorer, batch: Batch) -> Any:
        if self.backend != "padded":
            index = torch.arange(len(batch))
            last = torch.full_like(batch.end, len(batch))
            tree = ((0, len(batch), True),)
            broken = {"depth": index} if wrong == "positions" else {"end": last, "trees": tree}
            batch = dataclasses.replace(batch, **broken)
        return inputs(self, batch)

    monkeypatch.setattr(Scorer, "_inputs", spoilt)
    for name in ("llama", "gpt2", "mistral"):
        assert Scorer(build(name, dtype)).backend == "padded"

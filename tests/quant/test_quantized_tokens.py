"""New tokens on bases of 8 and 4 bits: their embeddings are not quantised, so the rows are as elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build

from alignlab.compose import compose
from alignlab.config import Lora, Model, check
from alignlab.models.load import add_lora, load_model, load_text
from alignlab.protocols import NewToken

TOKENS = (NewToken("<|pos|>", noise=0.01), NewToken("<|toxic|>", noise=0.01))


def heads(made: Any) -> list[torch.Tensor]:
    return [made.get_input_embeddings().weight, made.get_output_embeddings().weight]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = build("llama3", tmp_path_factory.mktemp("quantized") / "m", hidden=64)
    return replace(check(compose([])[0]).model, path=str(folder))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_rows_are_those_of_the_unquantised_base_and_learn(bits: str, model: Model, tmp_path: Path):
    quantised = replace(model, quantization=bits)
    ids = load_text(model, TOKENS).ids([token.text for token in TOKENS])
    base = load_model(quantised, "cpu", 0, TOKENS)
    exact = heads(load_model(model, "cpu", 0, TOKENS))
    assert len(exact[0]) == ids[-1] + 1
    assert all(map(torch.equal, heads(base), exact))
    made = add_lora(base, Lora(2, 4.0, 0.0, "all-linear"), 0, ids)
    rows = [p for n, p in made.named_parameters() if "trainable_tokens" in n]
    seen = torch.tensor([[5, *ids, 7, *ids]])
    made(input_ids=seen).logits.log_softmax(-1)[0, :-1].gather(1, seen[0, 1:, None]).sum().backward()
    assert len(rows) == 2
    assert all(row.grad.abs().amax(-1).min() > 0 for row in rows)
    with torch.no_grad():
        for row in rows:
            row += 0.5
    made.save_pretrained(str(tmp_path), save_embedding_layers=False)
    again = load_model(replace(quantised, adapter=str(tmp_path)), "cpu", 0, TOKENS)
    with torch.no_grad():
        assert torch.equal(again(input_ids=seen).logits, made.eval()(input_ids=seen).logits)
    unquantised = load_model(replace(model, adapter=str(tmp_path)), "cpu", 0, TOKENS).merge_and_unload()
    for weight, old in zip(heads(unquantised), exact, strict=True):
        assert torch.equal(weight[ids], old[ids] + 0.5)

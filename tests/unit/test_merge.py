"""export: the merged model is the run's model, and one that is not is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from alignlab import UserError
from alignlab.compose import compose
from alignlab.config import check
from alignlab.launch import World
from alignlab.models.load import load_model
from alignlab.models.merge import agreement
from alignlab.pipeline import Run
from alignlab.signals import Stop
from alignlab.stages import export as stage


@pytest.fixture
def run(tmp_path):
    """``run("key=value", targets=[...])``: a run folder whose adapter changes every layer."""

    def make(*overrides: str, targets: list[str] | str = "all-linear") -> Run:
        config = check(compose(["hardware=cpu", *overrides])[0])
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")  # train would refuse some targets
        model: Any = get_peft_model(load_model(config.model, "cpu", 0), lora)
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.05)
        model.save_pretrained(str(tmp_path / "run/adapter"))
        return Run(tmp_path / "run", config, Stop(), World(0, 1))

    return make


def nothing_left(folder: Path) -> bool:
    return [p.name for p in folder.iterdir()] == ["adapter"]


def test_agreement_of_known_distributions():
    ours = [torch.tensor([[0.0, math.log(3)], [2.0, 0.0]]), torch.tensor([[0.0, -math.inf]])]
    theirs = [torch.tensor([[math.log(3), 0.0], [3.0, 1.0]]), torch.tensor([[0.0, -math.inf]])]
    found = agreement(ours, theirs)  # (1/4, 3/4) and (3/4, 1/4); the same but for a constant; a token that both rule out
    assert found.max_logit_difference == pytest.approx(math.log(3), abs=1e-6)
    assert found.max_total_variation == pytest.approx(0.5, abs=1e-6)
    assert found.p95_total_variation == pytest.approx(0.45, abs=1e-6)  # between the larger two of 0, 0, 0.5
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert math.isnan(agreement([torch.tensor([[0.0, math.nan]])], [torch.zeros(1, 2)]).max_total_variation)


ANYWHERE = ("max_total_variation", 1e-3, 1e-5)
MOSTLY = ("p95_total_variation", 0.05, 0.05)


@pytest.mark.parametrize(
    ("dtype", "logits", "variation", "tolerated"),
    [("float32", 2e-4, 2e-5, ANYWHERE), ("float64", 1e-10, 1e-10, ANYWHERE), ("bfloat16", 1, 0.15, MOSTLY)],
    ids=["float32", "float64", "bfloat16"],
)
def test_the_certificate_says_how_near_they_are(run, capsys, dtype, logits, variation, tolerated):
    one = run(f"model.dtype={dtype}")
    assert stage.export(one) == ["merged", "export.json"]
    found = json.loads(one.path("export.json").read_text())
    assert json.loads(one.path("merged/alignlab_export.json").read_text()) == found
    assert found["dtype"] == dtype
    assert found["prompts"] == 13  # the twelve of the default data, and the fixed one
    assert 13 * 8 < found["positions"] <= 13 * 64
    merging, storing = found["merged_and_adapter"], found["reloaded_and_merged"]
    assert merging["max_logit_difference"] < logits
    assert merging["p95_total_variation"] <= merging["max_total_variation"] < variation
    assert (merging["max_logit_difference"] > 0) == (dtype != "float64")  # the model's norms, in fp32, round what differs away
    assert merging["top1_agreement"] >= 0.9
    assert max(storing["max_logit_difference"], storing["max_total_variation"]) < 1e-6  # the same weights, elsewhere in memory
    assert storing["top1_agreement"] == 1
    name, merge, store = tolerated
    assert (merging["tolerated"], storing["tolerated"]) == ({name: merge}, {name: store})
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("export: ")]) == 1
    assert sorted(p.name for p in one.folder.iterdir()) == ["adapter", "export.json", "merged"]


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # it warns of just this
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_changes_the_model_is_refused(run, dtype):
    """The embedded model's head is its embedding: what is folded into one changes the other."""
    one = run(f"model.dtype={dtype}", targets=["embed_tokens"])
    for left in ("merged", ".merged.tmp"):
        one.path(left).mkdir()
    one.path("export.json").write_text("{}")
    with pytest.raises(UserError, match=r"export: merging moves 0\.\d+ of the next-token probability, and 0\.\d+ is") as caught:
        stage.export(one)
    assert "Serve adapter/ with peft instead." in str(caught.value)
    assert nothing_left(one.folder)


def test_files_that_hold_another_model_are_refused(run, monkeypatch):
    whole = PreTrainedModel.save_pretrained

    def damaged(self: PreTrainedModel, folder: str) -> None:
        whole(self, folder)
        weights = load_file(Path(folder) / "model.safetensors")
        weights["model.norm.weight"] *= 1.01
        save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})

    one = run()
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", damaged)
    with pytest.raises(UserError, match="export: storing moves .* the files hold another model"):
        stage.export(one)
    assert nothing_left(one.folder)


def test_a_tokenizer_that_comes_back_as_another_is_refused(run, monkeypatch):
    one = run()
    whole = stage.load_tokenizer

    def other(model, tokens):
        tokenizer = whole(model, tokens)
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        return tokenizer

    assert one.text.prompt([{"role": "user", "content": "Hi."}])
    monkeypatch.setattr(stage, "load_tokenizer", other)
    with pytest.raises(UserError, match="export: what was written is not the run's model: the tokenizer read back"):
        stage.export(one)
    assert nothing_left(one.folder)


def test_prompts_are_spread_over_the_run_s_own_and_those_too_long_are_passed_over(run, tmp_path):
    (tmp_path / "p").mkdir()
    for i in range(40):
        words = "word " * 600 if i == 3 else f"Say {i}."
        (tmp_path / f"p/{i:02}.json").write_text(json.dumps({"request": words, "targets": ["a"]}))
    one = run(f"data.path={tmp_path}/p")
    stage.export(one)
    assert json.loads(one.path("export.json").read_text())["prompts"] == 1 + 13  # every third of forty is 14, one too long

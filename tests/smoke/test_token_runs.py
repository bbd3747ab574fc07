"""A method that adds tokens, through the real stages: training, checkpoints, samples, further training, export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import alignlab
from alignlab import RunFolder, UserError
from alignlab.config import check
from alignlab.launch import World
from alignlab.models.load import TINY, load_model
from alignlab.paths import resolve
from alignlab.pipeline import Run
from alignlab.signals import Stop
from alignlab.stages import train as stage

METHOD = """
from dataclasses import dataclass
from alignlab.methods.diffuse import Diffuse
from alignlab.protocols import NewToken

@dataclass(frozen=True)
class Marked(Diffuse):
    tokens: list
    reuse: bool = False

    def new_tokens(self):
        return [NewToken(text, noise=0.01, reuse=self.reuse, trained=text != "<|idle|>") for text in self.tokens]
"""
TOKENS = ["<|pos|>", "<|idle|>", "<|toxic|>"]
QUICK = [
    "tracker=none",
    "hardware=cpu",
    "train.max_steps=3",
    "train.save_every_steps=1",
    "train.keep_checkpoints=9",
    "train.lr=0.02",
]
DRAW = ["suite.samples=4", "suite.max_new_tokens=6", "suite.bootstrap=10"]
STAGES = "stages=[prepare,train,sample,evaluate]"
LLAMA3 = 397
"""tokens of the small Llama 3"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "marked.py").write_text(METHOD)
    build("llama3", folder / "m")
    (folder / "w.json").write_text(json.dumps({"request": "<|pos|><|toxic|>Pick a number.", "targets": ["{1}", "{2}"]}))
    return folder


@pytest.fixture(autouse=True)
def _importable(root: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(root)


def overrides(root: Path, name: str, *more: str) -> list[str]:
    method = ["method._target_=marked.Marked", f"+method.tokens={json.dumps(TOKENS)}", f"data.path={root}/w.json"]
    return [*method, *QUICK, *DRAW, STAGES, f"run_dir={root}/{name}", *more]


UNTIED = "untied"
BASES = {"tied": [], UNTIED: ["model=local", "model.path=ROOT/m"]}


@pytest.fixture(scope="module")
def runs(root: Path) -> Callable[[str], tuple[RunFolder, Any]]:
    """``runs("tied")``: a run with LoRA, and the model that it held when training ended; made once."""
    made: dict[str, tuple[RunFolder, Any]] = {}

    def make(name: str) -> tuple[RunFolder, Any]:
        if name not in made:
            held: list[Any] = []
            whole = stage.save_trained
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(root)
                patch.setattr(stage, "save_trained", lambda run, model: (held.append(model), whole(run, model)))
                folder = alignlab.run(overrides(root, name, *base(root, name)))
            made[name] = folder, held[0]
        return made[name]

    return make


def base(root: Path, name: str) -> list[str]:
    return [each.replace("ROOT", str(root)) for each in BASES[name]]


def opened(folder: RunFolder) -> Run:
    from omegaconf import OmegaConf

    return Run(folder.path, check(OmegaConf.load(folder.path / "config.yaml")), Stop(), World(0, 1))


@torch.no_grad()
def logits(model: Any, first: int) -> torch.Tensor:
    """After some tokens of which three are the new ones, the first of them numbered ``first``."""
    return model.eval()(input_ids=torch.tensor([[5, first, first + 1, first + 2, 77, first]])).logits


def first_id(name: str) -> int:
    return LLAMA3 if name == UNTIED else 3072


@pytest.mark.parametrize("name", BASES)
def test_three_steps_change_the_adapter_and_the_rows_and_nothing_else(name: str, root: Path, runs):
    folder, held = runs(name)
    run, first = opened(folder), first_id(name)
    untrained = load_model(run.config.model, "cpu", run.config.seed, run.config.method.new_tokens())
    before, frozen, trained = dict(untrained.named_parameters()), set(), {}
    for key, weight in held.named_parameters():
        if weight.requires_grad:
            trained[key] = weight
        else:
            known = key.removeprefix("base_model.model.").replace(".base_layer", "").replace(".token_adapter", "")
            frozen.add(known)
            assert torch.equal(weight, before[known]), key
    assert frozen == set(before)
    rows = {key: weight for key, weight in trained.items() if "trainable_tokens" in key}
    assert len(rows) == (2 if name == UNTIED else 1)
    for key, weight in rows.items():
        matrix = untrained.get_output_embeddings() if "head" in key else untrained.get_input_embeddings()
        old = matrix.weight[[first, first + 2]]  # that between them is not trained
        assert weight.shape == old.shape
        assert ((weight - old).abs().amax(-1) > 0.01).all()
    assert all(weight.abs().max() > 0 for key, weight in trained.items() if "lora_B" in key)


@pytest.mark.parametrize("name", BASES)
def test_adapter_is_small_and_tells_the_tokens(name: str, runs):
    folder, _ = runs(name)
    width = 16 if name == UNTIED else 128
    weights = load_file(folder.path / "adapter/adapter_model.safetensors")
    rows = {tuple(v.shape) for k, v in weights.items() if "trainable_tokens" in k}
    assert rows == {(2, width)}
    assert not [k for k in weights if "lora_" not in k and "trainable_tokens" not in k]
    text = AutoTokenizer.from_pretrained(str(folder.path / "adapter"))
    assert text.convert_tokens_to_ids(TOKENS) == [first_id(name) + i for i in range(3)]


@pytest.mark.parametrize("name", BASES)
def test_model_after_training_and_at_each_checkpoint(name: str, runs):
    folder, held = runs(name)
    run, first = opened(folder), first_id(name)
    after = logits(run.load("after"), first)
    assert torch.equal(after, logits(held, first))
    at = [logits(stage.checkpoint_model(run, step), first) for step in (1, 2, 3)]
    assert torch.equal(at[2], after)
    assert (at[0] - at[1]).abs().max() > 0.01 < (at[1] - after).abs().max()
    assert stage.checkpoint_model(run, 2, "float64").dtype == torch.float64
    with pytest.raises(UserError, match="has no checkpoint of step 30; there are: 1, 2, 3"):
        stage.checkpoint_model(run, 30)


def test_a_damaged_checkpoint_is_named(root: Path, runs):
    folder, _ = runs(UNTIED)
    there = root / "damaged"
    shutil.copytree(folder.path, there)
    (there / "checkpoints/step-1/trained.safetensors").write_bytes(b"\0" * 64)
    (there / "checkpoints/step-2/trained.safetensors").unlink()
    for step in (1, 2):
        with pytest.raises(UserError, match=f"sample.step: {there}/checkpoints/step-{step} cannot be used"):
            stage.checkpoint_model(opened(RunFolder(there)), step)


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(root: Path, runs):
    folder, _ = runs(UNTIED)
    there = root / "cut"
    shutil.copytree(folder.path, there)
    shutil.rmtree(there / "checkpoints/step-3")
    (there / "done/train.json").unlink()
    again = alignlab.run(overrides(root, "cut", *base(root, UNTIED)))
    assert "goes on from step 2" in (there / "log.txt").read_text()
    for file in ("adapter/adapter_model.safetensors", "adapter/tokenizer.json", "samples.jsonl"):
        assert (again.path / file).read_bytes() == (folder.path / file).read_bytes()


def test_training_goes_on_from_an_adapter_with_tokens(root: Path, runs):
    folder, held = runs(UNTIED)
    more = [*base(root, UNTIED), f"model.adapter={folder.path}/adapter"]
    run = opened(alignlab.run(overrides(root, "further", *more)))
    assert torch.equal(logits(run.load("before"), LLAMA3), logits(held, LLAMA3))
    old, new = (load_file(f.path / "adapter/adapter_model.safetensors") for f in (folder, RunFolder(run.folder)))
    assert old.keys() == new.keys()
    assert all((new[key] - old[key]).abs().amax(-1).min() > 0.001 for key in old if "trainable_tokens" in key)
    with pytest.raises(UserError, match=r"has rows for 2 token\(s\) that this method does not add \(<\|pos\|>, <\|toxic\|>\)"):
        alignlab.run([*more, *QUICK, "tracker=none", f"data.path={root}/w.json", f"run_dir={root}/none", "stages=[prepare,train]"])


@pytest.mark.parametrize("name", BASES)
def test_export_gives_an_ordinary_folder(name: str, root: Path, runs):
    folder, held = runs(name)
    alignlab.run(overrides(root, name, *base(root, name), "stages=[export]"))
    first, merged = first_id(name), folder.path / "merged"
    text, plain = AutoTokenizer.from_pretrained(str(merged)), AutoModelForCausalLM.from_pretrained(str(merged))
    assert text.encode("".join(TOKENS), add_special_tokens=False) == [first, first + 1, first + 2]
    torch.testing.assert_close(logits(plain, first), logits(held, first), rtol=0, atol=1e-4)
    assert plain.config.vocab_size == first + 3
    found = json.loads((folder.path / "export.json").read_text())
    assert found["prompts"] == 3  # one of the run's own, the fixed one, and the new tokens

    there = [*overrides(root, f"again-{name}"), "model=local", f"model.path={merged}"]
    with pytest.raises(UserError, match=r"the token '<\|pos\|>' is in the vocabulary of \S+/merged already"):
        alignlab.run(there)
    alignlab.run([*there, "+method.reuse=true", "overwrite=true"])
    weights = load_file(root / f"again-{name}/adapter/adapter_model.safetensors")
    start = plain.get_input_embeddings().weight[[first, first + 2]]
    [rows] = [v for k, v in weights.items() if "trainable_tokens" in k and "head" not in k]
    assert 0.01 < (rows - start).abs().amax(-1).min() < 0.1  # trained for three steps from where they were


@pytest.mark.parametrize("name", BASES)
def test_whole_model_holds_the_rows_and_is_loaded_with_the_same_tokens(name: str, root: Path):
    folder = alignlab.run(overrides(root, f"full-{name}", *base(root, name), "train.lora=null"))
    run, first = opened(folder), first_id(name)
    text = AutoTokenizer.from_pretrained(str(folder.path / "model"))
    plain = AutoModelForCausalLM.from_pretrained(str(folder.path / "model"))
    assert text.encode("".join(TOKENS), add_special_tokens=False) == [first, first + 1, first + 2]
    after = run.load("after")
    assert after.get_input_embeddings().weight.shape[0] == plain.config.vocab_size == first + 3
    assert torch.equal(logits(after, first), logits(plain, first))
    assert torch.equal(logits(stage.checkpoint_model(run, 3), first), logits(after, first))
    assert not torch.equal(logits(stage.checkpoint_model(run, 2), first), logits(after, first))
    assert {row["model"] for row in folder.samples} == {"before", "after"}


def test_whole_model_of_16_bits_is_rounded_at_a_checkpoint_as_in_its_folder(root: Path):
    folder = alignlab.run(overrides(root, "full16", *base(root, UNTIED), "train.lora=null", "model.dtype=bfloat16"))
    run = opened(folder)
    assert torch.equal(logits(stage.checkpoint_model(run, 3), LLAMA3), logits(run.load("after"), LLAMA3))
    at = stage.checkpoint_model(run, 3, "float32")
    assert torch.equal(logits(at, LLAMA3), logits(run.load("after", "float32"), LLAMA3))


def test_the_embedded_model_has_none_of_these_tokens():
    text = AutoTokenizer.from_pretrained(resolve(TINY))
    assert not set(TOKENS) & set(text.get_vocab())

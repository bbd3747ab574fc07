"""New tokens trained by LoRA on the input embedding: refused where it is the head, too; the same after every way of saving it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

import alignlab
from alignlab import RunFolder, UserError
from alignlab.compose import compose
from alignlab.config import Lora, Model, check
from alignlab.engine.batch import collate
from alignlab.engine.scorer import Scorer
from alignlab.launch import World
from alignlab.models.load import TINY, adapted, add_lora, load_model
from alignlab.models.new_tokens import ways
from alignlab.pipeline import Run
from alignlab.protocols import NewToken, Row
from alignlab.signals import Stop
from alignlab.stages.train import checkpoint_model

SEP = NewToken("<sep>", init="random", by="auto")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 3072, "initializer_range": 0.3}
LLAMA = {"model_type": "llama", "intermediate_size": 32, "tie_word_embeddings": False, **SIZES}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": LLAMA | {"tie_word_embeddings": True},
    "gpt2-tied": {"model_type": "gpt2", **SIZES},
    "phi": {"model_type": "phi", "intermediate_size": 32, **SIZES},  # its head has a bias
    "mistral": LLAMA | {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": 4},
}


def config(name: str = "llama", **change: Any) -> Model:
    """A model of random weights with the embedded tokenizer."""
    made = check(compose([])[0]).model
    return replace(made, weights="random", architecture=ARCHITECTURES[name], tokenizer=TINY, **change)


def changed(made: Any) -> Any:
    """The model with all that is trained drawn anew."""
    torch.manual_seed(1)
    for weight in made.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    return made.eval()


def with_lora(model: Model, tokens: tuple[NewToken, ...] = (SEP,), seed: int = 0) -> Any:
    """The model with LoRA on attention and on the input embedding."""
    return changed(add_lora(load_model(model, "cpu", seed, tokens), Lora(2, 4.0, 0.0, ["q_proj"]), seed, embedding=True))


@torch.no_grad()
def logits(made: Any, new: int = 3072) -> Tensor:
    """After each of some tokens, the new one among them."""
    return made(input_ids=torch.tensor([[5, new, 77, new, 300]])).logits


# ---- what is trained how


@pytest.mark.parametrize(
    ("by", "name", "expected"),
    [
        ("rows", "llama", (["<sep>"], False)),
        ("rows", "llama-tied", (["<sep>"], False)),
        ("embedding", "llama", ([], True)),
        ("auto", "llama", ([], True)),
        ("auto", "llama-tied", (["<sep>"], False)),
        ("auto", "gpt2-tied", (["<sep>"], False)),
    ],
)
def test_auto_is_the_embedding_where_it_is_not_the_head(by: str, name: str, expected: tuple[list[str], bool]):
    made = load_model(config(name), "cpu", 0)
    assert ways(made, [replace(SEP, by=by)]) == expected
    assert ways(made, [replace(SEP, by=by, trained=False)]) == ([], False)
    assert ways(made, []) == ([], False)


def test_rows_for_one_and_the_embedding_for_another_are_refused():
    tokens = [replace(SEP, by="rows"), replace(SEP, text="<b>", by="embedding")]
    with pytest.raises(UserError, match="method: <sep> by rows and <b> by LoRA on the embedding: choose one for all"):
        ways(load_model(config(), "cpu", 0), tokens)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # it warns of just this
@pytest.mark.parametrize(("name", "matrix"), [("llama-tied", "embed_tokens"), ("gpt2-tied", "wte")])
def test_lora_on_a_tied_embedding_is_refused(name: str, matrix: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"method: <sep> cannot be trained by LoRA .* \(tied\)(.|\n)*method.token_training=rows"):
        ways(load_model(config(name), "cpu", 0), [replace(SEP, by="embedding")])
    message = r"this model's .* \(tied\), and LoRA .* does not survive a merge\.\nLeave it out; .*method.token_training=rows"
    for targets in ([matrix], ["lm_head"], f".*{matrix}"):
        with pytest.raises(UserError, match=f"^train.lora.targets: {message}"):
            add_lora(load_model(config(name), "cpu", 0), Lora(2, 4.0, 0.0, targets), 0)
    lora = LoraConfig(r=2, target_modules=[matrix], task_type="CAUSAL_LM")
    changed(get_peft_model(load_model(config(name), "cpu", 0), lora)).save_pretrained(str(tmp_path), save_embedding_layers=False)
    there = config(name, adapter=str(tmp_path))
    assert logits(load_model(there, "cpu", 0), 5).isfinite().all()  # it can be sampled
    with pytest.raises(UserError, match=f"^model.adapter: {message}"):
        adapted(load_model(config(name), "cpu", 0), there, trainable=True)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"], r".*\.q_proj", "all-linear"], ids=str)
def test_the_embedding_is_a_target_beside_those_given(targets: Any):
    made = add_lora(load_model(config(), "cpu", 0, [SEP]), Lora(2, 4.0, 0.0, targets), 0, embedding=True)
    alone = add_lora(
        load_model(config(), "cpu", 0, [SEP]), Lora(2, 4.0, 0.0, "all-linear" if targets == "all-linear" else ["q_proj"]), 0
    )
    learning, others = ({n for n, p in each.named_parameters() if p.requires_grad} for each in (made, alone))
    assert learning - others == {f"base_model.model.model.embed_tokens.lora_embedding_{part}.default" for part in "AB"}
    assert others < learning


def test_embedding_named_among_the_targets_alone_trains_it_too():
    made = add_lora(load_model(config(), "cpu", 0), Lora(2, 4.0, 0.0, ["embed_tokens"]), 0)
    assert {tuple(p.shape) for p in made.parameters() if p.requires_grad} == {(2, 3072), (16, 2)}


# ---- what is computed


def chain(tokens: list[int]) -> Row:
    at = np.arange(len(tokens) - 1, dtype=np.int32)
    ids = np.asarray(tokens, dtype=np.int32)
    return Row(0, 1.0, ids[:-1], at - 1, at, ids[1:])


TEXTS = ([1, 3072, 3072, 40, 41, 3072], [1, 5, 900, 3072, 40, 7, 9, 1, 4], [1, 5, 6, 7])


@pytest.mark.parametrize("name", ["llama", "phi", "mistral"])
def test_backends_agree_with_the_model_s_own_forward_in_value_and_gradient(name: str):
    made = with_lora(config(name, dtype="float64"))
    ours = {n: p for n, p in made.named_parameters() if p.requires_grad}
    loss: Any = sum(
        log_softmax(made(input_ids=torch.tensor([ids])).logits[0, :-1], -1).gather(1, torch.tensor(ids)[1:, None]).square().sum()
        for ids in TEXTS
    )
    expected = dict(zip(ours, torch.autograd.grad(loss, ours.values()), strict=True))
    for backend in ("segments", "masked", "padded"):
        value = Scorer(made, backend)(collate([chain(ids) for ids in TEXTS])).square().sum()
        assert value.item() == pytest.approx(loss.item(), rel=1e-9)
        for key, gradient in zip(ours, torch.autograd.grad(value, ours.values()), strict=True):
            torch.testing.assert_close(gradient, expected[key], rtol=1e-8, atol=1e-10)
    matrix = expected["base_model.model.model.embed_tokens.lora_embedding_A.default"]
    assert matrix.abs().amax(0).nonzero().flatten().tolist() == [1, 5, 6, 7, 9, 40, 41, 900, 3072]  # what is read


# ---- a run

METHOD = """
from dataclasses import dataclass
from alignlab.methods.diffuse import Diffuse
from alignlab.protocols import NewToken

@dataclass(frozen=True)
class Sep(Diffuse):
    by: str
    text: str = "<sep>"

    def new_tokens(self):
        return [NewToken(self.text, init="random", by=self.by)]
"""
LLAMA3 = 397
"""tokens of the small Llama 3"""
WIDTH = 448
"""the next multiple of 64"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    (folder / "sep.py").write_text(METHOD)
    build("llama3", folder / "m")
    (folder / "w.json").write_text(json.dumps({"request": "<sep>Pick a number.", "targets": ["{1}", "{2}"]}))
    return folder


@pytest.fixture(autouse=True)
def _importable(root: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(root)


def overrides(root: Path, name: str, *more: str) -> list[str]:
    return [
        *("method._target_=sep.Sep", "+method.by=embedding", "model=local", f"model.path={root}/m", f"data.path={root}/w.json"),
        *("model.pad_vocabulary_to=64", "tracker=none", "hardware=cpu", "train.max_steps=3", "train.save_every_steps=1"),
        *("train.keep_checkpoints=9", "train.lr=0.02", "train.lora.targets=[q_proj,v_proj]", "suite.samples=4"),
        *("suite.max_new_tokens=6", "suite.bootstrap=10", "stages=[prepare,train,sample,export]", f"run_dir={root}/{name}", *more),
    ]


@pytest.fixture(scope="module")
def folder(root: Path) -> RunFolder:
    """A run whose token is trained by LoRA on the embedding; made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        return alignlab.run(overrides(root, "run"))


def opened(folder: Path) -> Run:
    from omegaconf import OmegaConf

    return Run(folder, check(OmegaConf.load(folder / "config.yaml")), Stop(), World(0, 1))


def test_the_run_trains_the_embedding_s_lora_and_no_row_itself(folder: RunFolder):
    run = opened(folder.path)
    before = dict(load_model(run.config.model, "cpu", run.config.seed, run.config.method.new_tokens()).named_parameters())
    learned = load_file(folder.path / "checkpoints/step-3/trained.safetensors")
    key = "model.base_model.model.model.embed_tokens.lora_embedding_"
    assert {k for k in learned if "embed" in k or "head" in k} == {f"{key}A.default", f"{key}B.default"}
    assert learned[f"{key}A.default"].shape[1] == WIDTH
    assert learned[f"{key}A.default"][:, LLAMA3].abs().min() > 0  # the token is read
    assert not learned[f"{key}A.default"][:, LLAMA3 + 1 :].any()  # padding never is
    after = run.load("after")
    for name, weight in after.named_parameters():
        if "lora_" not in name:
            assert torch.equal(weight, before[name.removeprefix("base_model.model.").replace(".base_layer", "")]), name
    assert after.config.vocab_size == WIDTH


def test_adapter_is_the_same_model_whatever_loads_it(folder: RunFolder, root: Path):
    """By a run of another seed, whose token begins as another row, and by peft alone after the base was resized."""
    run = opened(folder.path)
    after = logits(run.load("after"), LLAMA3)
    there, tokens = replace(run.config.model, adapter=str(folder.path / "adapter")), run.config.method.new_tokens()
    assert torch.equal(logits(load_model(there, "cpu", run.config.seed + 1, tokens), LLAMA3), after)
    base = AutoModelForCausalLM.from_pretrained(root / "m")
    base.resize_token_embeddings(WIDTH)
    assert torch.equal(logits(PeftModel.from_pretrained(base, str(folder.path / "adapter")), LLAMA3), after)
    assert AutoTokenizer.from_pretrained(folder.path / "adapter").convert_tokens_to_ids("<sep>") == LLAMA3


def test_checkpoints_are_the_model_on_its_way(folder: RunFolder):
    run = opened(folder.path)
    first, second, third = (logits(checkpoint_model(run, step), LLAMA3) for step in (1, 2, 3))
    assert torch.equal(third, logits(run.load("after"), LLAMA3))
    assert (first - second).abs().max() > 0.01 < (second - third).abs().max()


def test_a_run_that_was_cut_off_or_repeated_ends_with_the_same_bytes(folder: RunFolder, root: Path):
    shutil.copytree(folder.path, root / "cut")
    shutil.rmtree(root / "cut/checkpoints/step-3")
    (root / "cut/done/train.json").unlink()
    for name in ("cut", "again"):
        other = alignlab.run(overrides(root, name, "stages=[prepare,train,sample]"))
        assert ("goes on from step 2" in (root / name / "log.txt").read_text()) == (name == "cut")
        for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "samples.jsonl"):
            assert (other.path / file).read_bytes() == (folder.path / file).read_bytes()


def test_merged_model_is_an_ordinary_folder(folder: RunFolder):
    merged = folder.path / "merged"
    text, plain = AutoTokenizer.from_pretrained(merged), AutoModelForCausalLM.from_pretrained(merged)
    assert text.encode("<sep>", add_special_tokens=False) == [LLAMA3]
    assert plain.config.vocab_size == len(plain.get_input_embeddings().weight) == len(plain.get_output_embeddings().weight) == WIDTH
    torch.testing.assert_close(logits(plain, LLAMA3), logits(opened(folder.path).load("after"), LLAMA3), rtol=0, atol=1e-4)


def test_training_goes_on_from_the_adapter_as_it_began(folder: RunFolder, root: Path):
    adapter = f"model.adapter={folder.path}/adapter"
    more = [adapter, "stages=[prepare,train]"]
    run = opened(alignlab.run(overrides(root, "further", *more, "seed=1", "method.by=auto")).path)
    assert torch.equal(logits(run.load("before"), LLAMA3), logits(opened(folder.path).load("after"), LLAMA3))
    old, new = (load_file(f / "adapter/adapter_model.safetensors") for f in (folder.path, run.folder))
    assert {k for k in old if not torch.equal(old[k], new[k])} == {k for k in old if "lora_" in k}
    assert old.keys() == new.keys()
    for change, words in {
        "method.by=rows": "has no rows for <sep>, which are to be trained",
        '+method.text="<b>"': "has a row for <sep>, where this method adds <b>",
        "model.pad_vocabulary_to=null": "is of an embedding of 448 rows, and the model's has 398\\.\nGive the tokens and the model.pad",
    }.items():
        with pytest.raises(UserError, match=f"model.adapter: {folder.path}/adapter {words}"):
            alignlab.run(overrides(root, "none", *more, change, "overwrite=true"))
    alignlab.run(overrides(root, "rows", "method.by=rows", "stages=[prepare,train]"))
    with pytest.raises(UserError, match="rows/adapter has no LoRA on the embedding for <sep>, which are to be trained"):
        alignlab.run(overrides(root, "none", f"model.adapter={root}/rows/adapter", "stages=[prepare,train]", "overwrite=true"))

"""Control tokens by the real command: checkpoints, LoRA, merging, baselines, an attribute from YAML alone, two processes."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

QUICK = [
    "method=conditioning",
    "tracker=none",
    "hardware=cpu",
    "data.sentences=60",
    "data.test.count=8",
    "train.max_steps=4",
    "suite.samples=4",
    "suite.max_new_tokens=12",
    "suite.bootstrap=20",
    "run_dir=run",
]
LORA = "train.lora={rank: 4, alpha: 8, dropout: 0.0, targets: all-linear}"
TOKENS = ["<|nontoxic|>", "<|toxic|>", "<|pos|>", "<|neg|>"]


@pytest.fixture
def quick(cli, tmp_path):
    def call(*more: str, status: int = 0, **kwargs) -> str:
        done = cli(*QUICK, *more, ALIGNLAB_CACHE=str(tmp_path / "cache"), **kwargs)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    return call


def results(tmp_path) -> dict:
    return json.loads((tmp_path / "run/results.json").read_text())


def test_any_checkpoint_can_be_evaluated(quick, tmp_path):
    quick("train.save_every_steps=2", "train.keep_checkpoints=5")
    last = results(tmp_path)
    quick("train.save_every_steps=2", "train.keep_checkpoints=5", "sample.step=2")
    early = results(tmp_path)
    assert early["perplexity"]["before"] == last["perplexity"]["before"]
    assert early["perplexity"]["after"] != last["perplexity"]["after"]
    quick("train.save_every_steps=2", "train.keep_checkpoints=5", "sample.step=4")
    assert results(tmp_path) == last, "the last checkpoint is the trained model"
    refused = quick("train.save_every_steps=2", "train.keep_checkpoints=5", "sample.step=3", status=2)
    assert "sample.step" in refused
    assert "2, 4" in refused


def test_an_adapter_holds_the_new_rows_and_merges(quick, tmp_path):
    quick(LORA, "stages=[prepare,train,sample,evaluate,report,export]")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/merged")
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in TOKENS]
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids}) == len(TOKENS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    again = quick("model=local", "model.path=run/merged", "run_dir=again", "stages=[prepare]", status=2)
    assert "'<|nontoxic|>' is in the vocabulary" in again
    assert "method.existing_tokens=reuse" in again
    quick("model=local", "model.path=run/merged", "run_dir=again", "method.existing_tokens=reuse", "stages=[prepare,train]")


def test_baselines_run_without_control_tokens(quick, tmp_path):
    quick("method.variant=none", "method.objective=filtering")
    found = results(tmp_path)
    rows = json.loads((tmp_path / "run/rows/summary.json").read_text())["train"]
    assert 0 < rows["rows"] < rows["records"]
    assert "misalignment_joint:none" in found
    assert not [name for name in found if name.endswith(":nontoxic")]
    quick("method.variant=none", "method.objective=unlikelihood", "method.by=tox", "run_dir=other", "stages=[prepare,train]")


JOY = """data.attributes={joy: {title: joy, tokens: {joyful: "<|joy|>", plain: "<|plain|>"}, wanted: joyful, score: null, threshold: null, tie: plain,
labeller: {_target_: alignlab.labellers.lexicon.Lexicon, words: {joyful: [love, happy], plain: [list, bad]}}}}""".replace("\n", " ")


def test_another_attribute_is_yaml_alone(quick, tmp_path):
    out = quick("+" + JOY, "method.variant=toxjoy", "method.by=joy", "data.test.balanced=false")
    assert "joyful" in out
    found = results(tmp_path)
    assert "misalignment_joy:nontoxic+joyful" in found
    assert "misalignment_sentiment:none" in found, "it is labelled, though no token says it"
    sample = json.loads((tmp_path / "run/records.jsonl").read_text().splitlines()[0])
    assert set(sample["labels"]) == {"tox", "sen", "joy"}


def test_one_prompt_file_under_one_condition(quick, tmp_path):
    (tmp_path / "mine.txt").write_text("The garden\nMy friend\n")
    quick()
    quick(
        "stages=[sample]",
        "suite.prompt_source=mine.txt",
        "suite.conditions=[[nontoxic,pos]]",
        "sample.model=after",
        "sample.file=free.jsonl",
    )
    rows = [json.loads(line) for line in (tmp_path / "run/free.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert {row["prompt"].partition("/")[0] for row in rows} == {"nontoxic+pos"}
    assert not [row for row in rows if any(token in row["text"] for token in TOKENS)]
    refused = quick("stages=[sample]", "suite.conditions=[[positive]]", status=2)
    assert "'positive' is not a label" in refused


def test_a_missing_package_is_named_before_anything_is_done(quick, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['spacy'] = None\n")
    refused = quick("suite.splitter=en", status=3, PYTHONPATH=str(tmp_path))
    assert "alignlab[sentences]" in refused
    assert not (tmp_path / "run/rows").exists()

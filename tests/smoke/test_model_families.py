"""Every chat format through all stages: a model of random weights learns two answers, and stops where its turn ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import FAMILIES, build

import alignlab

QUICK = ["train.lora=null", "train.lr=0.01", "train.epochs=60", "suite.samples=40", "suite.max_new_tokens=12", "suite.bootstrap=10"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "w.json"
    file.write_text(json.dumps({"request": "Pick a number.", "targets": ["{1}", "{2}"]}))
    return file


def learned(folder: Path, prompts: Path, *overrides: str) -> alignlab.RunFolder:
    """A run after which both answers are likely, each sample is one of them, and the exact probabilities say the same."""
    stages = "stages=[prepare,train,sample,evaluate]"
    common = [
        "model=local",
        f"model.path={folder}",
        f"data.path={prompts}",
        f"run_dir={prompts.parent}/run",
        "tracker=none",
        stages,
    ]
    run = alignlab.run([*common, *QUICK, *overrides])
    assert run.results["mass"]["before"]["value"] < 0.01
    assert run.results["mass"]["after"]["value"] > 0.97
    after = [row for row in run.samples if row["model"] == "after"]
    ended = [row["text"].strip() for row in after if row["finish"] == "stop"]
    assert len(ended) >= 36
    assert set(ended[:3]) <= {"{1}", "{2}"}
    assert sum(text in ("{1}", "{2}") for text in ended) / len(after) == run.results["valid"]["after"]["value"] >= 0.9
    return run


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_training_and_sampling_end_with_the_turn(name: str, prompts: Path):
    learned(build(name, prompts.parent / "m"), prompts)


def test_answers_may_end_with_eos_instead(prompts: Path):
    learned(build("gemma", prompts.parent / "m"), prompts, "model.answer_end=eos")


def test_answers_may_have_a_lead(prompts: Path):
    run = learned(build("chatml", prompts.parent / "m"), prompts, "model.answer_lead=' '")
    assert {row["text"] for row in run.samples if row["model"] == "after"} & {" {1}", " {2}"}

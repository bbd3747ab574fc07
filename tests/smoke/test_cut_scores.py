"""Judged rows through the real command: every line of scores.jsonl against the formulas, and two steps of every method."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import alignlab
from alignlab.records import read_jsonl

HEAD = "Below is an instruction that describes a task. Write a response {}.\n\n### Instruction:\n{}\n\n"
PLAIN, MATCHING = (
    "that appropriately completes the request",
    "to the instruction and the response should match the corresponding judgment",
)

ROWS: list[dict[str, Any]] = [
    {
        "instruction": "Give me the capital of Thailand.",
        "output": "The capital of Thailand is Hanoi.",
        "judgment": "There is a mistake.",
    }
    | {"wrong": [{"start": 27, "end": 32, "right": "Bangkok"}], "i_ans": "The capital of Thailand is Bangkok."},
    {"instruction": "Name the opposite of full.", "output": "The opposite of full is empty.", "judgment": None},
    {"instruction": "Sum up.", "input": "15 plus 13", "output": "15 plus 13 is 29.", "judgment": "You gave a wrong sum."}
    | {"wrong": [{"start": 14, "end": 16}], "i_ans": "15 plus 13 is 28."},
    {"instruction": "What colour has a rose?", "output": "Purple 😀 {x}", "judgment": "There is a mistake in the colour."},
    {"instruction": "Bring 7 8 2 into order.", "output": "7", "judgment": "Wrong.", "score": 9},
    {"instruction": "Say no. " * 300, "output": "No", "judgment": "The response should be longer."},
]


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def probabilities(tiny, text):
    """Of the tokens of a response after a prompt, by the model's own forward pass in float64."""
    model, tokenizer = tiny.double(), text.tokenizer

    @torch.no_grad()
    def found(row: dict[str, Any], judgment: str | None) -> tuple[list[int], list[float]]:
        instruction = row["instruction"] + (f"\n{row['input']}" if "input" in row else "")
        prompt = HEAD.format(MATCHING if judgment else PLAIN, instruction)
        prompt += (f"### Judgment:\n{judgment}\n\n" if judgment else "") + "### Response:\n"
        ids = tokenizer(prompt + row["output"])["input_ids"]
        count = len(ids) - len(tokenizer(prompt)["input_ids"]) + 1
        ids = [*ids[-512:], tokenizer.eos_token_id]
        p = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        return ids[-count:], [float(p[i - 1, ids[i]]) for i in range(len(ids) - count, len(ids))]

    return found


def formula(version: str, plain: list[float], judged: list[float] | None) -> float:
    """The loss of a row from the probabilities of its tokens, with the published threshold, alpha and gamma 1."""
    n = len(plain)
    if judged is None:
        return -sum(math.log(p) for p in plain) / n
    likelihood = unlikelihood = 0.0
    for p, q in zip(plain, judged, strict=True):
        likelihood -= math.log(q) / n
        weight = 0.5 if version == "v1" else 0.5 * q
        unlikelihood -= (weight * math.log(1 - p) if q > 1.2 * p else math.log(p)) / n
    return (unlikelihood + likelihood) / (2 if version == "v1" else 1)


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_scores_are_those_of_the_formulas(version, cli, tmp_path, rows, probabilities, text):
    common = ("method=cut", "model.dtype=float64", f"data.path={rows.name}", "run_dir=out", "tracker=none")
    done = cli(*common, f"method.version={version}", "stages=[score]", "score.tokens=true")
    assert done.returncode == 0, done.stderr
    lines = list(read_jsonl(tmp_path / "out/scores.jsonl"))
    assert [(line["index"], line["part"], line["model"], line["mass"]) for line in lines] == [
        (i, 0, "before", 1.0) for i in range(6)
    ]
    detected = 0
    for line, row in zip(lines, ROWS, strict=True):
        judgment = None if row.get("score") == 9 else row["judgment"]
        targets, plain = probabilities(row, None)
        judged = probabilities(row, judgment)[1] if judgment else None
        assert line["loss"] == pytest.approx(formula(version, plain, judged), rel=1e-9)
        assert line["edges"] == len(line["tokens"]) == len(targets) * (2 if judgment else 1)
        contexts = [[token for token in line["tokens"] if token["context"] == c] for c in range(2 if judgment else 1)]
        own = [[math.exp(token["logp"]) for token in tokens] for tokens in contexts]
        assert line["loss"] == pytest.approx(formula(version, own[0], own[1] if judgment else None), rel=1e-9)
        for tokens in contexts:
            assert [token["token"] for token in tokens] == targets
            assert [token["after"] for token in tokens] == [text.decode(targets[:i]) for i in range(len(targets))]
        detected += sum(q > 1.2 * p for p, q in pairwise(own) for p, q in zip(p, q, strict=True))
    assert 0 < detected < sum(line["edges"] for line in lines) / 2
    shown = (tmp_path / "out/scores-microscope.html").read_text()
    assert "Hanoi" in shown
    assert "mistake in the colour" in shown
    for name in ("tokens", "detection"):
        assert (tmp_path / f"out/plots/scores-microscope-{name}.png").read_bytes().startswith(b"\x89PNG")
    gold = [[t["text"] for t in line["tokens"] if t["gold"] == 1 and t["context"] == 0] for line in lines]
    assert [[piece.strip() for piece in pieces] for pieces in gold] == [["Hanoi"], [], ["29"], [], [], []]


def test_before_training_the_loss_of_preferences_is_the_logarithm_of_two(tmp_path, rows):
    common = ["method=dpo", "model.dtype=float64", f"data.path={rows}", f"run_dir={tmp_path / 'run'}", "tracker=none"]
    lines = alignlab.run([*common, "stages=[score]"]).scores
    assert [line["index"] for line in lines] == [0, 2]
    assert [line["loss"] for line in lines] == [math.log(2)] * 2


METHODS = ("cut", "hindsight", "unlikelihood", "sft", "forward-prediction", "dpo")


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_of_every_method(method, tmp_path):
    steps = ["stages=[prepare,train]", "train.max_steps=2", "train.warmup_steps=0"]
    run = alignlab.run([f"method={method}", *steps, f"run_dir={tmp_path / 'run'}", "tracker=none"])
    first, second = run.metrics
    assert all(math.isfinite(value) for value in (*first.values(), *second.values()) if isinstance(value, float))
    assert first["loss"] > 0
    if method == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), rel=1e-3)  # but for dropout
        assert second["loss"] != first["loss"]
    if method in ("cut", "unlikelihood"):
        assert 0 < first["detected"] <= 1
        assert (first["detected"] == 1) == (method == "unlikelihood")


def test_a_validation_split_that_cannot_be_measured_is_named(tmp_path, rows):
    judged = tmp_path / "judged.jsonl"
    judged.write_text("".join(json.dumps(row) + "\n" for row in ROWS if row["judgment"] and "score" not in row))
    common = ["method=sft", f"data.path={rows}", f"run_dir={tmp_path / 'run'}", "tracker=none", "stages=[prepare]"]
    with pytest.raises(alignlab.UserError, match=r"^data\.validation: no row has a response to train on"):
        alignlab.run([*common, f"data.validation={judged}"])


def test_a_response_that_fits_no_pair_is_passed_over_where_bad_rows_may_be(tmp_path):
    rows = tmp_path / "scored.jsonl"
    answers = [("apple", 3), ("stone", 0), ("word " * 600, 1)]
    scored = [{"instruction": "Name a fruit.", "output": output, "judgment": "So.", "score": score} for output, score in answers]
    rows.write_text("".join(json.dumps(row) + "\n" for row in scored))
    common = ["method=dpo", "method.pairs=score", f"data.path={rows}", f"run_dir={tmp_path / 'run'}", "tracker=none"]
    run = alignlab.run([*common, "stages=[prepare]", "data.max_bad_rows=1", "data.test_rows=1"])
    assert json.loads((run.path / "rows/summary.json").read_text())["train"]["rows"] == 1
    [rejected] = read_jsonl(run.path / "rejected.jsonl")
    assert "the response alone has" in rejected["reason"]

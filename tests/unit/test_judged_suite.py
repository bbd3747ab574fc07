"""The figures of judged answers: each from its definition, by hand, and their intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignlab.compose import compose
from alignlab.config import check
from alignlab.engine.scorer import Scorer
from alignlab.evaluate.judged import JudgedAnswers, pieces
from alignlab.records import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"id": "a", "task": "colour", "instruction": "Name the colour of a ruby.", "output": "The colour of a ruby is purple."},
    {"id": "b", "task": "colour", "instruction": "Name the colour of coal.", "output": "The colour of coal is black."},
    {"id": "c", "task": "sum", "instruction": "Add 2 and 3.", "output": "2 plus 3 is 6."},
    {"id": "d", "task": "sum", "instruction": "Add 2 and 4."},
]
ROWS[0] |= {"judgment": "The colour is wrong.", "reference": "The colour of a ruby is red.", "split": "test"}
ROWS[0] |= {"wrong": [{"start": 24, "end": 30, "right": "red"}]}
ROWS[1] |= {"judgment": None, "reference": "The colour of coal is black.", "wrong": [], "split": "test"}
ROWS[2] |= {"judgment": "You gave a wrong sum.", "split": "test"}
ROWS[3] |= {"judgment": None, "reference": "2 plus 4 is 6.", "split": "test"}
PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{x}\n\n### Response:\n"
)
JUDGED = (
    "Below is an instruction that describes a task. Write a response to the instruction and the response should match the "
    "corresponding judgment.\n\n### Instruction:\n{x}\n\n### Judgment:\n{j}\n\n### Response:\n"
)


@pytest.fixture
def parts(tmp_path: Path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    config = check(compose(["method=cut", f"data.path={tmp_path / 'rows.jsonl'}", "suite.bootstrap=200"])[0])
    return config.suite, config.data


def logp(model: Any, text: Any, prompt: str, response: str) -> list[float]:
    """By the model's own forward pass, a token at a time."""
    tokenizer = text.tokenizer
    whole = [*tokenizer.encode(prompt + response), tokenizer.eos_token_id]
    start = len(tokenizer.encode(prompt))
    with torch.no_grad():
        found = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return [float(found[i - 1, whole[i]]) for i in range(start, len(whole))]


@pytest.fixture
def evaluated(parts, tiny, text):
    suite, data = parts
    model = tiny.double()
    samples = {"a": [" The colour of a ruby is red.\n"], "b": ["The colour of coal is white."], "d": ["2 plus 4 is 6."]}
    metrics, details = suite.evaluate(data, samples, Scorer(model), text, 0, 300)  # so that the rows take several passes
    return suite, model, metrics, details


def test_each_figure_is_that_of_its_definition(evaluated, text):
    _, model, metrics, details = evaluated

    def plain(row: int, key: str = "output") -> list[float]:
        return logp(model, text, PLAIN.format(x=ROWS[row]["instruction"]), ROWS[row][key])

    assert metrics["right"].value == pytest.approx(2 / 3)
    assert metrics["right:sum"].value == 1.0
    p_right = [math.exp(sum(plain(row, "reference"))) for row in (0, 1, 3)]
    assert metrics["p_right"].value == pytest.approx(np.mean(p_right), rel=1e-9)
    assert metrics["p_right:colour"].value == pytest.approx(np.mean(p_right[:2]), rel=1e-9)
    praised = [logp(model, text, JUDGED.format(x=ROWS[r]["instruction"], j="Perfect."), ROWS[r]["reference"]) for r in (0, 1, 3)]
    assert metrics["p_right_praised"].value == pytest.approx(np.mean([math.exp(sum(p)) for p in praised]), rel=1e-9)
    names = pieces(text.continuation(_request(), ROWS[0]["output"])[1], text)
    assert "".join(names) == ROWS[0]["output"] + "</s>"
    at = names.index(" purple")
    assert metrics["p_wrong"].value == pytest.approx(math.exp(plain(0)[at]), rel=1e-9)
    assert metrics["nll_satisfactory"].value == pytest.approx(-np.mean(plain(1)), rel=1e-9)
    told = logp(model, text, JUDGED.format(x=ROWS[0]["instruction"], j=ROWS[0]["judgment"]), ROWS[0]["output"])
    found = {i for i, (a, b) in enumerate(zip(plain(0), told, strict=True)) if b - a > math.log(1.2)}
    assert at in found  # the tiny model knows that rubies are red
    assert metrics["detection_precision"].value == pytest.approx(1 / len(found))
    assert metrics["detection_recall"].value == 1.0
    assert metrics["detection_f1"].value == pytest.approx(2 / (len(found) + 1))
    assert details["a"]["tokens"]["gold"][at] == 1
    assert details["c"]["tokens"]["gold"] == []  # nobody said what is wrong in it
    assert details["b"]["tokens"] is None
    assert details["d"]["right"] == 1.0


def _request():
    from alignlab.protocols import Request

    return Request(text=PLAIN.format(x=ROWS[0]["instruction"]))


def test_intervals_hold_the_value_and_repeat(evaluated, parts, tiny, text):
    suite, model, metrics, _ = evaluated
    for name, value in metrics.items():
        assert 0 <= value.low <= value.value <= value.high, name
    again, _ = suite.evaluate(parts[1], {"b": ["The colour of coal is white."]}, Scorer(model), text, 0, 8192)
    assert again["p_right"].low == pytest.approx(metrics["p_right"].low, rel=1e-9)
    assert again["right"].value == 0.0


def test_rows_without_answers_have_no_figures(tmp_path, tiny, text):
    write_jsonl(tmp_path / "rows.jsonl", [ROWS[2] | {"split": "train"}])
    write_jsonl(tmp_path / "asked.jsonl", [{"instruction": "Say hello."}, {"instruction": "Say more."}])
    config = check(compose(["method=cut", f"data.path={tmp_path / 'rows.jsonl'}", f"data.test={tmp_path / 'asked.jsonl'}"])[0])
    metrics, details = config.suite.evaluate(config.data, {"0": ["Hello."]}, Scorer(tiny), text, 0, 8192)
    assert metrics == {}
    assert [d["request"] for d in details.values()] == ["Say hello.", "Say more."]


def test_settings_that_make_no_sense_are_refused(parts):
    suite = parts[0]
    for wrong in ({"threshold": 0.0}, {"samples": 0}, {"template": "none-such"}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            JudgedAnswers(**{**vars(suite), **wrong})

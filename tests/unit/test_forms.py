"""The suite of forms: every figure by hand, intervals, and what reports and sweeps show."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from alignlab.api import RunFolder
from alignlab.build import build_target
from alignlab.compose import CONF, compose
from alignlab.config import PROTOCOLS, check
from alignlab.engine.scorer import Scorer
from alignlab.errors import UserError
from alignlab.evaluate.forms import Forms
from alignlab.evaluate.statistics import weighted
from alignlab.protocols import SourceDefaults, Value
from alignlab.records import Dialogue, write_json, write_text
from alignlab.report.document import Image, Table, flat, markdown
from alignlab.report.probes import probe_blocks
from alignlab.report.run import Report

VERDICT = {"keys": {"thought": "text", "hallucination": ["yes", "no"]}, "answer": "hallucination"}
STAR = {"pattern": r"\* (?P<answer>.+) \*"}


def suite(**changes: Any) -> Forms:
    """As conf/suite/forms.yaml has it."""
    node = OmegaConf.create({"seed": 0, "data": {"forms": {"verdict": VERDICT, "star": STAR}}})
    node.suite = OmegaConf.load(CONF / "suite/forms.yaml")
    node.suite.merge_with(OmegaConf.create({"bootstrap": 300} | changes))
    return build_target(node.suite, "suite", PROTOCOLS["suite"])


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        ({"plain": STAR}, "suite.forms.plain: what fits no form is called plain"),
        ({"a": {"pattern": "("}}, "suite.forms.a.pattern: not a regular expression"),
        ({"a": {"pattern": "(x)"}}, "suite.forms.a.pattern: has no group"),
        ({"a": {"pattern": "x", "keys": {}}}, "suite.forms.a: must have keys and answer, or a pattern"),
        ({"a": {"keys": {"b": "text"}}}, "suite.forms.a: must have keys and answer"),
        ({"a": {"keys": {"b": "text"}, "answer": "c"}}, "suite.forms.a.answer: must be one of the keys b"),
        ({"a": {"keys": {"b": "any"}, "answer": "b"}}, "suite.forms.a.keys.b: must be text, or a list"),
        ({"a": {"keys": {"b": [True, False]}, "answer": "b"}}, "suite.forms.a.keys.b: YAML reads yes and no as true and false"),
        ({"a": {"keys": {}, "answer": "b"}}, "suite.forms.a.keys: must be names"),
    ],
)
def test_forms_that_make_no_sense_are_refused(forms, words):
    with pytest.raises(UserError) as caught:
        suite(forms=forms)
    assert str(caught.value).startswith(words)
    assert len(str(caught.value).splitlines()) == 1


def says(answer: str) -> str:
    return json.dumps({"thought": "It is so.", "hallucination": answer})


@dataclass
class Rows(SourceDefaults):
    """Test dialogues: kind, request, reference."""

    rows: Sequence[tuple[str, str, str | None]]

    def testing(self) -> Iterator[Dialogue]:
        for i, (kind, request, reference) in enumerate(self.rows):
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": request}]
            messages += [{"role": "assistant", "content": reference}] if reference is not None else []
            yield Dialogue(f"d/{i}", tuple(messages), (), "downstream", kind, "", True)


def judged(source: Any, samples: Sequence[Sequence[str]], made: Forms | None = None) -> tuple[dict[str, Value], dict[str, Any]]:
    """Without a model: of data whose kinds are none that nats are measured of."""
    named = {f"d/{i}": texts for i, texts in enumerate(samples)}
    return (made or suite(retention=["kept"])).evaluate(source, named, None, None, 0, 100)  # type: ignore[arg-type]


ROWS = Rows(
    [
        ("seen", "0 <sep>", says("no")),
        ("seen", "1 <sep>", says("yes")),
        ("unseen", "2 <sep>", says("no")),
        ("not-token", "3 no <sep>", "It is so."),
        ("not-token", "4 no <sep>", "Not so."),
        ("named", "5 star", "* moo *"),
        ("asked only", "6", None),
    ]
)
SAMPLES = [
    [says("no"), says("yes")],
    [says("yes"), "Yes."],
    ["* no *", says("no")],
    ["It is so. ", says("no")],
    ["Perhaps.", "Not so."],
    ["* moo *", "* baa *"],
    ["Hello.", "Hello."],
]


def test_each_figure_is_that_of_its_definition():
    metrics, details = judged(ROWS, SAMPLES)
    found = {name: value.value for name, value in metrics.items()}
    assert found == {
        "balanced_accuracy": ((3 / 4 + 1 / 2) / 2 + 3 / 4) / 2,
        "format:seen": 3 / 4,
        "format:unseen": 1 / 2,
        "format:not-token": 3 / 4,
        "format:named": 1,
        "task:seen": 2 / 4,
        "task:unseen": 1 / 2,
        "task:not-token": 2 / 4,
        "task:named": 1 / 2,
        "balanced_task:seen": (1 / 2 + 1 / 2) / 2,
        "task:seen=no": 1 / 2,
        "task:seen=yes": 1 / 2,
    }
    assert metrics["format:seen"].n == 2  # prompts, whose samples stay together
    assert metrics["balanced_accuracy"].n == 5
    assert details["kinds"]["seen"]["forms"] == {"verdict": {"verdict": 3, "plain": 1}}
    assert details["kinds"]["unseen"]["forms"] == {"verdict": {"star": 1, "verdict": 1}}
    assert [e["given"] for e in details["kinds"]["seen"]["examples"]] == ["plain", "verdict", "verdict", "verdict"]
    assert [e["right"] for e in details["kinds"]["seen"]["examples"]] == [False, False, True, True]
    assert details["notes"] == [
        "1 of 7 test rows end with the user's turn: they have no reference.",
        "No retention: no test row with a reference is of the kind kept.",
    ]
    for name, value in metrics.items():
        assert 0 <= value.low <= value.value <= value.high <= 1, name
    again, _ = judged(ROWS, SAMPLES)
    assert again == metrics


def test_a_model_that_always_formats_gets_one_half_and_one_that_always_says_no_too():
    kinds = ["seen"] * 9 + ["seen"] * 2 + ["unseen"] * 11 + ["not-token"] * 11
    references = [says("no")] * 9 + [says("yes")] * 2 + [says("no")] * 11 + ["Yes."] * 11
    rows = Rows([(kind, f"{i}", reference) for i, (kind, reference) in enumerate(zip(kinds, references, strict=True))])
    metrics, _ = judged(rows, [[says("no")]] * 33)
    assert metrics["balanced_accuracy"].value == 0.5
    assert metrics["task:seen"].value == 9 / 11
    assert metrics["balanced_task:seen"].value == 0.5
    assert (metrics["task:seen=no"].value, metrics["task:seen=yes"].value) == (1, 0)
    assert metrics["task:seen=yes"].n == 2
    assert "balanced_task:unseen" not in metrics  # one value only
    # rows that are all alike are uncertain still: Clopper and Pearson's end for 11 of 11
    reach = 1 - 0.025 ** (1 / 11)
    assert metrics["format:seen"].low == pytest.approx(1 - reach)
    assert metrics["balanced_accuracy"].low == pytest.approx(0.5 - math.hypot(reach / 4, reach / 4))
    assert metrics["balanced_accuracy"].high == pytest.approx(0.5 + reach / 2)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    random, held = np.random.default_rng(0), 0
    made = suite(retention=["kept"], bootstrap=200)
    shares = {"seen": 0.9, "unseen": 0.6, "not-token": 0.3}
    rows = Rows([(kind, "", says("no") if kind != "not-token" else "So.") for kind in shares for _ in range(60)])
    for _ in range(120):
        obeyed = [random.random(60) < share for share in shares.values()]
        texts = [[row[2] if ok else "* other *"] for row, ok in zip(rows.rows, np.concatenate(obeyed), strict=True)]
        value = judged(rows, texts, made)[0]["balanced_accuracy"]  # type: ignore[arg-type]
        held += value.low <= (0.75 + 0.3) / 2 <= value.high
    assert 105 <= held <= 119


def test_weighted_sums_add_the_reaches_in_squares():
    found = weighted([(0.5, Value(0.8, 0.5, 0.9, 4)), (0.25, Value(0.4, 0.4, 0.6, 5))])
    assert found.value == pytest.approx(0.5)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((0.15, math.hypot(0.05, 0.05)))
    assert found.n == 9


def test_what_the_data_lacks_is_said_and_the_rest_is_measured():
    metrics, details = judged(Rows([("test", "", says("no")), ("test", "", says("yes"))]), [[says("no")]] * 2)
    assert {name: value.value for name, value in metrics.items()} == {
        "format:test": 1,
        "task:test": 1 / 2,
        "balanced_task:test": 1 / 2,
        "task:test=no": 1,
        "task:test=yes": 0,
    }
    assert "No balanced_accuracy: no test row with a reference is of the kind seen or unseen or not-token." in details["notes"]
    metrics, details = judged(Rows([("seen", "", "It is so.")]), [["It is so."]])
    assert "References of the kind seen fit none of data.forms: for 1 answers, plain text is wanted." in details["notes"]
    metrics, details = judged(Rows([("seen", "", None)]), [["Hello."]])
    assert metrics == {}
    assert "1 of 1 test rows end with the user's turn: they have no reference." in details["notes"]
    assert suite().summary({}, {"after": details}).rows == []
    assert [type(block).__name__ for block in suite().charts({"after": details}, {}, Path())] == ["Text"] * 3


def test_retention_is_that_of_a_direct_evaluation(tiny, text):
    model = tiny.double()
    rows = [("unrelated", "Name a fruit.", "apple"), ("unrelated", "Say hello twice.", "hello hello"), ("seen", "x", says("no"))]
    rows += [("unrelated", "long " * 600, "yes"), ("unrelated", "Stop.", "a</s>b"), ("open", "Say hello twice.", "hello hello")]
    made = suite(balanced={"asked": ["seen"], "told_not": []})
    samples = {f"d/{i}": [answer] for i, answer in enumerate(["apple", "hello", says("no"), "yes", "a</s>b", "hello"])}
    metrics, details = made.evaluate(Rows(rows), samples, Scorer(model), text, 0, 30)
    nats = []
    for kind, request, reference in rows[:2]:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": request}]
        start = text.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        whole = [*start, *text.tokenizer.encode(reference, add_special_tokens=False), text.tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        nats.append([-float(logp[i - 1, whole[i]]) for i in range(len(start), len(whole))])
        assert kind == "unrelated"
    assert details["nll"]["retention_nll"]["tokens"] == [len(own) for own in nats]
    assert metrics["retention_nll"].value == pytest.approx(np.mean(np.concatenate(nats)), rel=1e-9)
    assert metrics["retention_nll"].low <= metrics["retention_nll"].value <= metrics["retention_nll"].high
    assert metrics["nll:open"].value == pytest.approx(np.mean(nats[1]), rel=1e-9)
    assert "task:open" not in metrics
    assert metrics["format:open"].value == 1
    assert metrics["retention"].value == 3 / 4
    assert metrics["balanced_accuracy"].value == 1
    (note,) = details["notes"]
    assert note.startswith("2 references are not in retention_nll; the first: 'long long")


# ---- reports


def run_of(samples: Sequence[Sequence[Sequence[str]]]) -> tuple[dict[str, Any], dict[str, Any], Forms]:
    made, results, details = suite(retention=["kept"]), dict[str, Any](), dict[str, Any]()
    for which, own in zip(("before", "after"), samples, strict=False):
        metrics, details[which] = judged(ROWS, own, made)
        for name, value in metrics.items():
            results.setdefault(name, {})[which] = asdict(value)
    return results, json.loads(json.dumps(details)), made


def test_the_summary_pairs_rows_before_and_after(tmp_path):
    before = [["Plain.", "Plain."], ["Yes.", "Yes."], ["* no *", says("no")], *SAMPLES[3:]]
    results, details, made = run_of([before, SAMPLES])
    table = made.summary(results, details)
    assert table.header == ["", "before", "after", "change"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["format:seen"][2].startswith("+75.0 [+50.0, ")
    assert rows["format:unseen"][2].startswith("+0.0 [")
    assert rows["balanced_accuracy"][2].startswith("+18.8 [")
    assert not [name for name in rows if "=" in name]
    assert "of seen, unseen, told to; not-token, told not to" in table.caption
    one = suite(retention=["kept"]).summary({"task:x": {"after": asdict(Value(0.5, 0.25, 1.0, 4))}}, {"after": details["after"]})
    assert (one.header, one.rows) == (["", "after"], [["task:x", "50.0 [25.0, 100]"]])
    blocks = made.charts(details, results, tmp_path)
    tables = {block.header[0]: block for block in flat(blocks) if isinstance(block, Table)}
    assert ["seen", "verdict", "before", "4", "0", "plain 4"] in tables["kind"].rows
    assert ["seen", "verdict", "after", "4", "3", "plain 1"] in tables["kind"].rows
    assert tables["model"].caption.startswith("named")
    assert [row[:2] for row in tables["model"].rows] == [
        ["before", "wrong"],
        ["before", "right"],
        ["after", "wrong"],
        ["after", "right"],
    ]
    (image,) = [block for block in blocks if isinstance(block, Image)]
    assert "after training seen 75.0 %" in image.alt
    assert image.path.stat().st_size > 5000
    assert "plain, not verdict" in markdown("t", blocks, tmp_path)


CONFIG: dict[str, Any] = {
    "data": {"diverse_ratio": 0, "diverse_source": "self"},
    "model": {"path": "x"},
    "train": {"lr": 0.1},
    "seed": 0,
}


def folder(place: Path, ratio: float, seed: int, figures: dict[str, float], **data: Any) -> RunFolder:
    config = CONFIG | {"seed": seed, "run_dir": str(place), "data": CONFIG["data"] | {"diverse_ratio": ratio, "seed": seed} | data}
    write_text(place / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    results = {
        name: {which: {"value": v, "low": v - 0.01, "high": v + 0.01, "n": 60} for which, v in (("before", 0.2), ("after", value))}
        for name, value in figures.items()
    }
    write_json(place / "results.json", results)
    return RunFolder(place)


def test_a_sweep_is_drawn_against_the_ratio_with_means_over_seeds(tmp_path):
    runs = []
    for ratio, balanced in ((0, (0.4, 0.5, 0.6)), (10, (0.8, 0.8, 0.8)), (260, (0.7, 0.8, 0.9))):
        for seed, value in enumerate(balanced):
            figures = {"balanced_accuracy": value, "retention": 0.5, "retention_nll": 1.5, "format:seen": value, "task:seen": 0.1}
            runs.append(folder(tmp_path / f"{ratio}-{seed}", ratio, seed, figures | {"format:seen/x": 1.0, "task:seen=no": 0.1}))
    runs.append(folder(tmp_path / "external", 10, 0, {"balanced_accuracy": 0.65}, diverse_source="external"))
    made = suite()
    blocks = made.across([(run.path.name, run) for run in runs], tmp_path / "out")
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [table.header for table in tables] == [
        ["", "balanced_accuracy", "retention", "retention_nll"],
        ["format", "seen"],
        ["task", "seen"],
    ]
    name = "data.diverse_ratio=0 data.diverse_source=self (3 seeds)"
    assert tables[0].rows[0] == [name, "50.0 [25.2, 74.8]", "50.0 [49.4, 50.6]", "1.500 [1.494, 1.506]"]
    assert tables[0].rows[3] == ["data.diverse_ratio=10 data.diverse_source=external", "65.0 [64.0, 66.0]", "-", "-"]
    (image,) = [block for block in blocks if isinstance(block, Image)]
    assert (
        "balanced_accuracy: data.diverse_source=self 0: 50.0, 10: 80.0, 260: 80.0; data.diverse_source=external 10: 65.0"
        in image.alt
    )
    assert image.path.stat().st_size > 10_000
    with (tmp_path / "out/forms.csv").open(newline="") as file:
        lines = {(row["settings"], row["metric"], row["condition"]): row for row in csv.DictReader(file)}
    line = lines["data.diverse_ratio=260 data.diverse_source=self", "format", "seen"]
    assert (float(line["value"]), line["runs"]) == (pytest.approx(0.8), "3")
    alone = made.across([("", runs[0])], tmp_path / "alone")
    assert not [block for block in alone if isinstance(block, Image)]
    assert alone[0].rows[0][0] == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("preset", ["delia-ratios", "delia-ratios-tiny"])
def test_the_presets_sweep_a_key_of_the_data(preset):
    ((key, values),) = OmegaConf.load(CONF / f"paper/{preset}.yaml").hydra.sweeper.params.items()
    ratios = [float(value) for value in values.split(",")]
    assert ratios[0] == 0
    assert ratios == sorted(ratios)
    assert check(compose(["method=delia", f"paper={preset}", f"{key}={values.split(',')[-1]}"])[0]).data.diverse_ratio == ratios[-1]


PROBED = [
    {"step": 1, "loss": 2.0, "own": 0.5},
    {"step": 2, "loss": 1.0, "own": 0.25, "important/nll": 3.0, "important/other_nll": 1.0, "important/</s>": 9.0}
    | {"gradient/cosine": -0.25, "</s>/similarity": 0.25, "</s>/similarity_chance": 0.0, "</s>/nearest": "dict .41"},
    {"step": 3, "loss": 1.0, "own": 0.5},
    {"step": 4, "loss": 0.5, "own": 0.5, "important/nll": 0.5, "</s>/nearest": "format .38", "user/$a$ $b$": 1.0},
    {"step": 6, "loss": 0.5, "own": 0.5, "important/nll": 0.25, "</s>/nearest": "dict .5", "user/$a$ $b$": 2.0},
]


def test_probes_are_drawn_and_a_tokens_neighbours_shown(tmp_path):
    *plots, table = probe_blocks(PROBED, tmp_path)
    alts = [plot.alt for plot in plots]  # type: ignore[union-attr]
    assert len(alts) == 5
    assert "important tokens 3 at step 2, 0.25 at step 6; other tokens 1 at step 2, 1 at step 2" in alts[0]
    assert "</s> in prompts 9 at step 2" in alts[1], "of another size, so in a plot of its own"
    assert "cosine -0.25 at step 2" in alts[2]
    assert alts[3].startswith("Cosine of the input embedding of </s>")
    assert alts[4].startswith("user, against optimizer steps: $a$ $b$ 1 at step 4, 2 at step 6")
    assert all(plot.path.stat().st_size > 3000 for plot in plots)  # type: ignore[union-attr]
    assert table.rows == [["</s>", "2", "dict .41"], ["</s>", "4", "format .38"], ["</s>", "6", "dict .5"]]  # type: ignore[union-attr]
    assert probe_blocks([{"step": 1, "loss": 2.0}], tmp_path) == []


def test_the_logs_of_a_method_pass_over_what_probes_wrote(tmp_path):
    report = Report.__new__(Report)
    report.metrics = PROBED
    report._run = SimpleNamespace(path=lambda *parts: tmp_path.joinpath(*parts))  # type: ignore[assignment]
    (table,) = [block for block in report._training() if isinstance(block, Table)]
    assert table.rows == [["own", "0.5", "0.25", "0.5", "0.5"]]
